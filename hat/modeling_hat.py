"""A HAT translation network as a transformers model; needs torch, transformers and the layers.py beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import can_return_tuple

from .layers import (
    BOS,
    EOS,
    PAD,
    SPANS,
    UNK,
    Decoder,
    DecoderLayer,
    Embedding,
    Encoder,
    EncoderLayer,
    Record,
    sinusoids,
)

IGNORE = -100  # a label that the loss ignores
CACHE = "cache" if "cache" in Seq2SeqLMOutput.__annotations__ else "past_key_values"  # transformers 5.24 renamed it


class HatConfig(PreTrainedConfig):
    """The sizes of one network; the default is the largest of HAT's WMT models (Wang et al., arXiv 2005.14187).

    Args:
        vocab_size, target_vocab_size: ids of the source and of the target vocabulary; one for both where None.
        tie_word_embeddings: one matrix for source, target and output; for the latter two where the widths are unequal.
        encoder_embed_dim, encoder_layer_num, decoder_embed_dim, decoder_layer_num: width and depth of the sides.
        encoder_ffn_embed_dim, decoder_ffn_embed_dim: of each layer, as all that follow up to the kernel sizes.
        encoder_self_attention_heads, decoder_self_attention_heads, decoder_ende_attention_heads: heads.
        decoder_arbitrary_ende_attn: -1, 1 or 2 for attention to the last 1, 2 or 3 encoder layers.
        encoder_relu_power, decoder_relu_power: 1, a ReLU, or 2, its square.
        encoder_conv_kernel_size, decoder_conv_kernel_size: of the convolutions in self-attention, where a kernel
            of 1 is a factor per channel; None where the side has no convolutions.
        qkv_dim, head_dim: attention is qkv_dim wide inside, or head_dim times its heads where that is not None.
        normalize_before: norms before the sublayers, and one at the end of both sides.
        encoder_dropout, decoder_dropout, attention_dropout: probabilities, as this network trains with.
        max_positions: the longest sentence, in tokens.
        encoder_position_dim, decoder_position_dim: columns of the position tables; the leading columns are used.
    """

    model_type = "hat"
    attribute_map = {
        "hidden_size": "decoder_embed_dim",
        "num_hidden_layers": "decoder_layer_num",
        "max_position_embeddings": "max_positions",
    }
    keys_to_ignore_at_inference = ["cache", "past_key_values", "encoder_last_hidden_state"]

    def __init__(
        self,
        vocab_size: int = 32000,
        target_vocab_size: int | None = None,
        tie_word_embeddings: bool = True,
        encoder_embed_dim: int = 640,
        encoder_layer_num: int = 6,
        encoder_ffn_embed_dim: Sequence[int] = (3072,) * 6,
        encoder_self_attention_heads: Sequence[int] = (8,) * 6,
        encoder_relu_power: Sequence[int] = (1,) * 6,
        encoder_conv_kernel_size: Sequence[int] | None = None,
        decoder_embed_dim: int = 640,
        decoder_layer_num: int = 6,
        decoder_ffn_embed_dim: Sequence[int] = (3072,) * 6,
        decoder_self_attention_heads: Sequence[int] = (8,) * 6,
        decoder_ende_attention_heads: Sequence[int] = (8,) * 6,
        decoder_arbitrary_ende_attn: Sequence[int] = (2,) * 6,
        decoder_relu_power: Sequence[int] = (1,) * 6,
        decoder_conv_kernel_size: Sequence[int] | None = None,
        qkv_dim: int = 512,
        head_dim: int | None = None,
        normalize_before: bool = False,
        encoder_dropout: float = 0.3,
        decoder_dropout: float = 0.3,
        attention_dropout: float = 0.1,
        max_positions: int = 1024,
        encoder_position_dim: int = 640,
        decoder_position_dim: int = 640,
        use_cache: bool = True,
        bos_token_id: int = BOS,
        pad_token_id: int = PAD,
        eos_token_id: int = EOS,
        unk_token_id: int = UNK,
        decoder_start_token_id: int = EOS,
        is_encoder_decoder: bool = True,
        **others: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "others", "__class__")}
        super().__init__(**others)
        for name, value in given.items():
            setattr(self, name, list(value) if isinstance(value, tuple) else value)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> HatConfig:
        """One for both sides: transformers would otherwise take "decoder_" off the names."""
        if not decoder or getattr(self, "target_vocab_size", None) is None:  # it is asked for before there are sizes
            return self
        config = copy.copy(self)
        config.vocab_size = self.target_vocab_size
        return config


@dataclass
class HatEncoderOutput(BaseModelOutput):
    """What the encoder made of a source: of its last layer (B, S, E), of its last layers (B, kept, S, E), and a mask.

    `memory` is the last layers' outputs, last first, which the decoder attends to; `mask` (B, S) is True where a token
    is real. `hidden_states` and `attentions` are given where they are asked for, one of each layer, the former with
    the embeddings before them.
    """

    memory: Tensor | None = None
    mask: Tensor | None = None


def recorded(record: Record, name: str) -> tuple[Tensor, ...] | None:
    """The list of a record, as transformers returns it."""
    tensors = getattr(record, name)
    return None if tensors is None else tuple(tensors)


class Checkpointing:
    """Runs layers so that their activations are computed again for the gradients, where transformers asks for it."""

    gradient_checkpointing = False

    def run(self, layer: nn.Module, *arguments: Any) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer.__call__, *arguments)
        return layer(*arguments)


class HatEncoder(Checkpointing, Encoder):
    """The encoder as transformers calls it."""

    main_input_name = "input_ids"

    def __init__(self, config: HatConfig, *modules: Any) -> None:
        super().__init__(*modules)
        self.config = config

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> HatEncoderOutput:
        """See HatForConditionalGeneration.forward; other arguments of transformers' models are ignored."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds: the encoder needs one of them, and not both")
        source = input_ids if inputs_embeds is None else inputs_embeds
        given = None if attention_mask is None else attention_mask.bool()
        attentions, states, record = asked(self.config, output_attentions, output_hidden_states)
        outputs, mask = super().forward(source, given, record)
        return HatEncoderOutput(
            last_hidden_state=outputs[:, 0],
            hidden_states=recorded(record, "hidden_states") if states else None,
            attentions=recorded(record, "attentions") if attentions else None,
            memory=outputs,
            mask=mask[:, 0, 0],
        )

    def resume(self, given: Any, attention_mask: Tensor | None) -> HatEncoderOutput:
        """An encoder's output as this class, of its tuple or of another BaseModelOutput.

        ValueError where the decoder attends to more layers than the output has.
        """
        if getattr(given, "memory", None) is not None and given.mask is not None:
            return given
        parts = list(given.to_tuple() if isinstance(given, BaseModelOutput) else given)
        last, tensors = parts[0], [part for part in parts[1:] if isinstance(part, Tensor)]
        lists = [part for part in parts[1:] if isinstance(part, (tuple, list))]
        states = next((part for part in lists if part[0].dim() == 3), None)
        memory = next((part for part in tensors if part.dim() == 4), None)
        mask = next((part for part in tensors if part.dim() == 2), None)
        if memory is None and self.kept == 1:
            memory = last[:, None]
        elif memory is None and states is not None:
            before = [state if self.norm is None else self.norm(state) for state in states[-self.kept : -1]]
            memory = torch.stack([last, *before[::-1]], dim=1)
        elif memory is None:
            raise ValueError(
                f"encoder_outputs: this network's decoder attends to the last {self.kept} encoder layers, and these are"
                " of one: give what model.get_encoder() returns, or the hidden_states as well"
            )
        if mask is None:
            mask = last.new_ones(last.shape[:2]) if attention_mask is None else attention_mask
        attentions = next((part for part in lists if part[0].dim() == 4), None)
        return HatEncoderOutput(last, states, attentions, memory, mask)


class HatDecoder(Checkpointing, Decoder):
    """The decoder, whose activations may be computed again for the gradients."""


def asked(config: HatConfig, attentions: bool | None, states: bool | None) -> tuple[bool, bool, Record]:
    """Whether attention weights and hidden states are to be returned, and the record to take them from.

    Eager attention computes the weights in any case.
    """
    attentions = config.output_attentions if attentions is None else attentions
    states = config.output_hidden_states if states is None else states
    weights = attentions or config._attn_implementation == "eager"
    return attentions, states, Record([] if states else None, [] if weights else None, [] if weights else None)


class ConvolvedLayer(DynamicLayer):
    """The cache of a self-attention with convolutions: also the steps before them that the next token's reach."""

    is_croppable = False
    history: Tensor | None = None  # (B, kernel_size - 1, 3 inner)

    def reset(self) -> None:
        super().reset()
        self.history = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.batch_history(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.batch_history(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.batch_history(lambda x: x[indices])

    def batch_history(self, change: Any) -> None:
        if self.history is not None:
            self.history = change(self.history)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise NotImplementedError(
                "the cache of a network with convolutions cannot be cropped: the steps before them are not kept"
            )


class HatForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A network of plain torch layers: source and previous target tokens -> logits of the next ones.

    Its parameters are named as those of the extracted hat.Transformer.
    """

    config_class = HatConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the loss is a sum over `num_items_in_batch` where that is given
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]

    def __init__(self, config: HatConfig) -> None:
        super().__init__(config)
        E, D = config.encoder_embed_dim, config.decoder_embed_dim
        target_size = config.target_vocab_size or config.vocab_size

        def inner(heads: int) -> int:
            return config.qkv_dim if config.head_dim is None else heads * config.head_dim

        def embedding(vocabulary: int, width: int, columns: int, dropout: float) -> Embedding:
            # from_pretrained makes a network in its precision; casting one that is made casts its buffers.
            positions = sinusoids(config.max_positions, columns).to(torch.get_default_dtype())
            return Embedding(nn.Embedding(vocabulary, width, PAD), positions, dropout)

        options = dict(attention_dropout=config.attention_dropout, normalize_before=config.normalize_before)
        encoder_layers = [
            EncoderLayer(
                width=E,
                inner=inner(config.encoder_self_attention_heads[i]),
                heads=config.encoder_self_attention_heads[i],
                ffn=config.encoder_ffn_embed_dim[i],
                relu_power=config.encoder_relu_power[i],
                kernel_size=config.encoder_conv_kernel_size and config.encoder_conv_kernel_size[i],
                dropout=config.encoder_dropout,
                **options,
            )
            for i in range(config.encoder_layer_num)
        ]
        decoder_layers = [
            DecoderLayer(
                width=D,
                memory_width=E,
                inner=inner(config.decoder_self_attention_heads[i]),
                cross_inner=inner(config.decoder_ende_attention_heads[i]),
                heads=config.decoder_self_attention_heads[i],
                cross_heads=config.decoder_ende_attention_heads[i],
                span=SPANS[config.decoder_arbitrary_ende_attn[i]],
                ffn=config.decoder_ffn_embed_dim[i],
                relu_power=config.decoder_relu_power[i],
                kernel_size=config.decoder_conv_kernel_size and config.decoder_conv_kernel_size[i],
                dropout=config.decoder_dropout,
                **options,
            )
            for i in range(config.decoder_layer_num)
        ]
        self.encoder = HatEncoder(
            config,
            embedding(config.vocab_size, E, config.encoder_position_dim, config.encoder_dropout),
            nn.ModuleList(encoder_layers),
            max(layer.span for layer in decoder_layers),
            nn.LayerNorm(E) if config.normalize_before else None,
        )
        self.decoder = HatDecoder(
            embedding(target_size, D, config.decoder_position_dim, config.decoder_dropout),
            nn.ModuleList(decoder_layers),
            nn.Linear(D, target_size, bias=False),
            nn.LayerNorm(D) if config.normalize_before else None,
        )
        source, target, output = (
            "encoder.embedding.tokens.weight",
            "decoder.embedding.tokens.weight",
            "decoder.output.weight",
        )
        self._tied_weights_keys = {target: source, output: source} if E == D else {output: target}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Of what no file has: Xavier uniform, embeddings normal. Convolutions stay as they are made, the identity."""
        if isinstance(module, Embedding):
            # No file has the table, so from_pretrained leaves it to be filled here.
            rows, columns = module.positions.shape
            initialization.copy_(module.positions, sinusoids(rows - 2, columns))
        elif isinstance(module, nn.Embedding):
            initialization.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.Linear):
            if module is self.decoder.output:
                initialization.normal_(module.weight, std=module.in_features**-0.5)
            else:
                initialization.xavier_uniform_(module.weight)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        source = torch.tensor([[UNK, UNK, EOS], [UNK, EOS, PAD]], device=self.device)
        return {"input_ids": source, "attention_mask": source != PAD, "decoder_input_ids": source}

    def get_encoder(self, modality: str | None = None) -> HatEncoder:
        return self.encoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embedding.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embedding.tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder.output

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.decoder.output = value

    def get_decoder(self) -> HatDecoder:
        return self.decoder

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """The source's tokens, and the target's and the output's where there is one vocabulary for both."""
        tokens = self.encoder.embedding.tokens
        if new_num_tokens is None and pad_to_multiple_of is None:
            return tokens
        tokens = self._get_resized_embeddings(tokens, new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.encoder.embedding.tokens = tokens
        if self.config.target_vocab_size in (None, self.config.vocab_size):
            self._resize_target(len(tokens.weight), mean_resizing)
            if self.config.target_vocab_size is not None:
                self._describe_vocabulary("target_vocab_size", len(tokens.weight))
        self._describe_vocabulary("vocab_size", len(tokens.weight))
        return tokens

    def resize_decoder_token_embeddings(self, new_num_tokens: int, mean_resizing: bool = True) -> nn.Embedding:
        """Resize the target's tokens and the output, where the target has a vocabulary of its own, else ValueError."""
        if self.config.target_vocab_size is None:
            raise ValueError("there is one vocabulary for source and target: resize_token_embeddings resizes it")
        self._resize_target(new_num_tokens, mean_resizing)
        self._describe_vocabulary("target_vocab_size", new_num_tokens)
        self.tie_weights()
        return self.decoder.embedding.tokens

    def _resize_target(self, new_num_tokens: int, mean_resizing: bool) -> None:
        config, embedding = self.config, self.decoder.embedding
        tied = config.tie_word_embeddings
        if not (tied and config.encoder_embed_dim == config.decoder_embed_dim):
            embedding.tokens = self._get_resized_embeddings(embedding.tokens, new_num_tokens, None, mean_resizing)
        embedding.tokens.num_embeddings = new_num_tokens
        if not tied:
            self.decoder.output = self._get_resized_lm_head(
                self.decoder.output, new_num_tokens, mean_resizing=mean_resizing
            )
        self.decoder.output.out_features = new_num_tokens

    def _describe_vocabulary(self, name: str, tokens: int) -> None:
        """Set the size of a vocabulary in the config and in the description of its subnet."""
        setattr(self.config, name, tokens)
        if hasattr(self.config, "subnet"):
            self.config.subnet["arguments"][name] = tokens
            if name in self.config.subnet["input_spec"]:
                self.config.subnet["input_spec"][name] = tokens

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: HatEncoderOutput | Sequence[Tensor] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: EncoderDecoderCache | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits (B', T, target vocabulary), and the loss where there are labels.

        Args:
            input_ids: the source (B, S), padded on either side.
            attention_mask: (B, S), 0 where a token of the source is to be left out; padding always is.
            decoder_input_ids: previous target tokens (B', T), padded on the right, else ValueError; those after the
                cache's if there is one. The labels, shifted, where left out. B' may be a multiple of B: hypotheses of
                one sentence that lie next to each other.
            decoder_attention_mask: (B', T), zeros only at the end, else ValueError.
            encoder_outputs: what the encoder returned, instead of a source.
            past_key_values, cache: one argument under its older and its newer name.
            inputs_embeds, decoder_inputs_embeds: vectors (B, S, E) and (B', T, D) in place of those that
                `get_input_embeddings()` and the decoder's embeddings have for tokens.
            labels: the target (B, T), padded on the right with -100, which is ignored; else ValueError.
            use_cache: return a cache: the given one, or a new one. True by default without labels.
            output_attentions: return the weights of attention, one tensor a layer: `encoder_attentions`
                (B, heads, S, S), `decoder_attentions` (B', heads, T, T), `cross_attentions` (B', heads, T, span x S),
                where the first S keys are of the last encoder layer, the next S of the layer before it.
            output_hidden_states: return `encoder_hidden_states` and `decoder_hidden_states`, embeddings first.
            num_items_in_batch: the number of targets by which the loss is divided; the targets of `labels` if None.
            kwargs: other arguments of transformers' models, which are not used.
        """
        cache = past_key_values if cache is None else cache
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("decoder_input_ids or labels: the decoder needs one of them")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        elif decoder_input_ids is not None and decoder_inputs_embeds is not None:
            raise ValueError("decoder_input_ids and decoder_inputs_embeds: the decoder takes one of them")
        if decoder_input_ids is None:
            previous = decoder_inputs_embeds
        else:
            previous = decoder_input_ids
            check_right_padded("decoder_input_ids", previous != PAD)
        if decoder_attention_mask is not None:
            check_right_padded("decoder_attention_mask", decoder_attention_mask != 0)
        if encoder_outputs is None:
            if input_ids is None and inputs_embeds is None:
                raise ValueError("input_ids or encoder_outputs: the decoder needs one of them")
            options = dict(output_attentions=output_attentions, output_hidden_states=output_hidden_states)
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, return_dict=True, **options)
        encoded = self.encoder.resume(encoder_outputs, attention_mask)
        hypotheses, rest = divmod(len(previous), len(encoded.memory))
        if rest:
            raise ValueError(f"{len(previous)} targets of {len(encoded.memory)} sources: not the same number of each")

        again = self.training and self.decoder.gradient_checkpointing  # a cache would be filled twice
        if again and (use_cache or cache is not None):
            raise ValueError("use_cache: with gradient checkpointing, training has no cache")
        if use_cache is None:
            use_cache = cache is not None or (self.config.use_cache and labels is None and not again)
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if cache is None:
            keys_values, past, layers = self.keys_values(encoded.memory, hypotheses), 0, None
        else:
            past = self.prepare_cache(cache, len(previous))
            if past == 0:
                for layer, (keys, values) in zip(
                    cache.cross_attention_cache.layers, self.keys_values(encoded.memory, hypotheses)
                ):
                    layer.update(keys, values)
                cache.is_updated = dict.fromkeys(range(len(self.decoder.layers)), True)
            keys_values = [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]
            layers = cache.self_attention_cache.layers
        mask = encoded.mask.bool()[:, None, None, :].repeat_interleave(hypotheses, dim=0)
        attentions, states, record = asked(self.config, output_attentions, output_hidden_states)
        logits = self.decoder(previous, keys_values, mask, layers, past, record)

        return Seq2SeqLMOutput(
            loss=None if labels is None else label_loss(logits, labels, num_items_in_batch),
            logits=logits,
            decoder_hidden_states=recorded(record, "hidden_states") if states else None,
            decoder_attentions=recorded(record, "attentions") if attentions else None,
            cross_attentions=recorded(record, "cross_attentions") if attentions else None,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
            **{CACHE: cache if use_cache else None},
        )

    def keys_values(self, outputs: Tensor, hypotheses: int) -> list[tuple[Tensor, Tensor]]:
        """What each decoder layer attends to, for so many hypotheses of each sentence."""
        pairs = self.decoder.keys_values(outputs)
        if hypotheses == 1:
            return pairs
        return [tuple(x.repeat_interleave(hypotheses, dim=0) for x in pair) for pair in pairs]

    def prepare_cache(self, cache: Any, hypotheses: int) -> int:
        """How many tokens a cache holds. One that is empty is given layers of the kinds that this network needs."""
        both = isinstance(cache, EncoderDecoderCache) and (cache.self_attention_cache, cache.cross_attention_cache)
        if not both or not all(isinstance(x, DynamicCache) and not getattr(x, "offloading", False) for x in both):
            raise TypeError(f"the cache is {cache!r}: expected EncoderDecoderCache(DynamicCache(), DynamicCache())")
        past = cache.get_seq_length()
        if past == 0:
            attentions = [layer.self_attention for layer in self.decoder.layers]
            cache.self_attention_cache.layers = [
                DynamicLayer() if attention.kernel_size in (None, 1) else ConvolvedLayer() for attention in attentions
            ]
            cache.cross_attention_cache.layers = [DynamicLayer() for _ in attentions]
        elif (rows := len(cache.self_attention_cache.layers[0].keys)) != hypotheses:
            raise ValueError(f"the cache holds {rows} hypotheses, and there are {hypotheses} to go on with")
        return past

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The labels (B, T) one later: the end of a sentence, which begins the next, then all but the last.

        ValueError where labels are padded on the left.
        """
        check_right_padded("labels", labels != IGNORE)
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, PAD)], dim=1)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As of all models; of a cache that is continued, `input_ids` may be all tokens so far, or those after it."""
        cache = kwargs.get(CACHE)
        past = 0 if cache is None else cache.get_seq_length()
        if next_sequence_length:
            given = input_ids[:, -next_sequence_length:]
        else:
            given = input_ids[:, past if input_ids.size(1) > past else 0 :]
        names = ("encoder_outputs", "attention_mask", "decoder_attention_mask", "use_cache", CACHE)
        names += ("decoder_inputs_embeds", "output_attentions", "output_hidden_states")
        return {"decoder_input_ids": given} | {name: kwargs.get(name) for name in names}

    def _prepare_model_inputs(self, inputs: Tensor | None, bos_token_id: Any, model_kwargs: dict[str, Any]) -> Any:
        # Labels, which the batches of a Trainer have, are not generated from.
        model_kwargs.pop("labels", None)
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_decoder_input_ids_for_generation(self, *given: Any, **named: Any) -> tuple[Tensor, dict[str, Any]]:
        input_ids, model_kwargs = super()._prepare_decoder_input_ids_for_generation(*given, **named)
        if (input_ids == PAD).any():
            raise ValueError(
                "decoder_input_ids: they have padding; prefixes that are continued together are of one length"
            )
        return input_ids, model_kwargs

    def _get_logits_processor(self, generation_config: Any, *given: Any, **named: Any) -> LogitsProcessorList:
        # As in HAT: no padding is generated, and no end at once. The end of a given prefix may be.
        processors = super()._get_logits_processor(generation_config, *given, **named)
        device, ends = named.get("device") or "cpu", generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [EOS if ends is None else ends]
        processors.insert(0, SuppressTokensAtBeginLogitsProcessor(ends, 1, device=device))
        processors.insert(0, SuppressTokensLogitsProcessor([PAD], device=device))
        return processors

    def _validate_generated_length(self, generation_config: Any, input_ids_length: int, *given: Any) -> None:
        # Before the work: the last token is not fed to the decoder.
        if (tokens := generation_config.max_length - 1) > (positions := self.config.max_positions):
            raise ValueError(f"up to {tokens} tokens are asked for: this network has {positions} positions")
        super()._validate_generated_length(generation_config, input_ids_length, *given)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **given: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        # The hypotheses of a sentence share what the encoder made of it; `forward` computes its keys and values once.
        shared = {name: given.pop(name) for name in ("encoder_outputs", "attention_mask") if name in given}
        input_ids, given = super()._expand_inputs_for_generation(expand_size, False, input_ids, **given)
        return input_ids, given | shared

    def _reorder_cache(self, cache: EncoderDecoderCache, beam_idx: Tensor) -> EncoderDecoderCache:
        # Beam search moves hypotheses only within a sentence, whose keys and values of the source are all equal.
        cache.self_attention_cache.reorder_cache(beam_idx)
        return cache


def check_right_padded(name: str, real: Tensor) -> None:
    """Raise ValueError where padding comes before a token, `real` (B, T) being True of tokens."""
    tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if real.size(1) > 1 and not tracing and (real.long().diff(dim=1) > 0).any():
        raise ValueError(
            f"{name}: padding before a token; targets are padded on the right only, as a tokenizer with"
            ' padding_side = "right" does'
        )


def label_loss(logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
    """Mean cross entropy of the labels that are targets; over `count` of them where these are part of a batch."""
    labels = labels.flatten().to(logits.device)
    if count is None:
        return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORE)
    count = count.to(logits.device) if isinstance(count, Tensor) else count
    return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORE, reduction="sum") / count
