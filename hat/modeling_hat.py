"""A HAT translation network as a transformers model; needs torch, transformers and the layers.py beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import can_return_tuple

from .layers import BOS, EOS, PAD, SPANS, UNK, Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, sinusoids

IGNORE = -100  # a label that is no target
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
        encoder_conv_kernel_size, decoder_conv_kernel_size: of the convolutions in self-attention, of which a kernel
            of 1 is a factor per channel; None where the side has no convolutions.
        qkv_dim, head_dim: attention is qkv_dim wide inside, or head_dim times its heads where that is not None.
        normalize_before: norms before the sublayers, and one at the end of both sides.
        encoder_dropout, decoder_dropout, attention_dropout: probabilities, as this network trains with.
        max_positions: the longest sentence, in tokens.
        encoder_position_dim, decoder_position_dim: columns of the position tables, of which the leading ones are used.
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
        return self  # one for both sides: transformers would otherwise take "decoder_" off the names


@dataclass
class HatEncoderOutput(BaseModelOutput):
    """`last_hidden_state` (B, kept, S, E), of the last layers, last first; `mask` (B, S), True where a token is real.

    Both are tensors, since generation repeats nothing else for its beams.
    """

    mask: Tensor | None = None


class HatEncoder(Encoder):
    """The encoder as transformers calls it."""

    main_input_name = "input_ids"

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> HatEncoderOutput:
        """`attention_mask` (B, S) is 0 where a token is to be left out; padding always is."""
        outputs, mask = super().forward(input_ids, None if attention_mask is None else attention_mask.bool())
        return HatEncoderOutput(outputs, mask=mask[:, 0, 0])


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
            embedding(config.vocab_size, E, config.encoder_position_dim, config.encoder_dropout),
            nn.ModuleList(encoder_layers),
            max(layer.span for layer in decoder_layers),
            nn.LayerNorm(E) if config.normalize_before else None,
        )
        self.decoder = Decoder(
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

    def get_encoder(self, modality: str | None = None) -> HatEncoder:
        return self.encoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embedding.tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder.output

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: HatEncoderOutput | Sequence[Tensor] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Seq2SeqLMOutput:
        """Logits (B', T, target vocabulary), and the loss where there are labels.

        Args:
            input_ids: the source (B, S), padded on either side.
            attention_mask: (B, S), 0 where a token of the source is to be left out; padding always is.
            decoder_input_ids: previous target tokens (B', T), padded on the right; those after the cache's if there is
                one. The labels, shifted, where left out. B' may be a multiple of B: hypotheses of one sentence that
                lie next to each other.
            decoder_attention_mask: (B', T), zeros only at the end, else ValueError.
            encoder_outputs: what the encoder returned, instead of a source.
            past_key_values, cache: one argument under its older and its newer name.
            labels: the target (B, T); -100 is no target.
            use_cache: make a cache, or return the one given, which is also the default.
        """
        cache = past_key_values if cache is None else cache
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("decoder_input_ids or labels: the decoder needs one of them")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if decoder_attention_mask is not None and (decoder_attention_mask.long().diff(dim=1) > 0).any():
            raise ValueError("decoder_attention_mask: a zero before a one; targets are padded on the right only")
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("input_ids or encoder_outputs: the decoder needs one of them")
            encoder_outputs = self.encoder(input_ids, attention_mask)
        outputs, mask = encoder_outputs[0], getattr(encoder_outputs, "mask", None)
        if mask is None:
            sentences, tokens = len(outputs), outputs.size(2)
            mask = outputs.new_ones(sentences, tokens) if attention_mask is None else attention_mask
        hypotheses, rest = divmod(len(decoder_input_ids), len(outputs))
        if rest:
            raise ValueError(f"{len(decoder_input_ids)} targets of {len(outputs)} sources: not the same number of each")

        use_cache = cache is not None if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if cache is None:
            keys_values, past, layers = self.keys_values(outputs, hypotheses), 0, None
        else:
            past = self.prepare_cache(cache)
            if past == 0:
                for layer, (keys, values) in zip(
                    cache.cross_attention_cache.layers, self.keys_values(outputs, hypotheses)
                ):
                    layer.update(keys, values)
                cache.is_updated = dict.fromkeys(range(len(self.decoder.layers)), True)
            keys_values = [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]
            layers = cache.self_attention_cache.layers
        mask = mask.bool()[:, None, None, :].repeat_interleave(hypotheses, dim=0)
        logits = self.decoder(decoder_input_ids, keys_values, mask, layers, past)

        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten().to(logits.device), ignore_index=IGNORE)
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, encoder_last_hidden_state=outputs, **{CACHE: cache if use_cache else None}
        )

    def keys_values(self, outputs: Tensor, hypotheses: int) -> list[tuple[Tensor, Tensor]]:
        """What each decoder layer attends to, for so many hypotheses of each sentence."""
        pairs = self.decoder.keys_values(outputs)
        if hypotheses == 1:
            return pairs
        return [tuple(x.repeat_interleave(hypotheses, dim=0) for x in pair) for pair in pairs]

    def prepare_cache(self, cache: Any) -> int:
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
        return past

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The labels (B, T) one later: the end of a sentence, which begins the next, then all but the last."""
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, PAD)], dim=1)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **given: Any) -> dict[str, Any]:
        cache = given.get(CACHE)
        past = 0 if cache is None else cache.get_seq_length()
        names = ("encoder_outputs", "attention_mask", "decoder_attention_mask", "use_cache", CACHE)
        return {"decoder_input_ids": input_ids[:, past:]} | {name: given.get(name) for name in names}

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
