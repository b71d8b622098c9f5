"""The Hardware-Aware Transformers supernet (Wang et al., arXiv 2005.14187): an elastic encoder-decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hat.decoding import Cache, DecoderPart, EncoderPart, Translation, empty_caches, plan, shapes, state_names, tensors
from hat.deploying import translation_use
from hat.layers import PAD, SPANS, Attention, Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, sinusoids
from supernet.elastic import (
    ElasticDepthwiseConv1d,
    ElasticDropout,
    ElasticEmbedding,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticModuleList,
)
from supernet.metadata import Use
from supernet.model import Part, RunPart, Supernet, WidthGroup, check_arguments, total
from supernet.space import Choice, SearchSpace, as_tuples, truncate
from supernet.values import integer, numbers, real

LAYERS = SimpleNamespace(
    Linear=ElasticLinear, LayerNorm=ElasticLayerNorm, Dropout=ElasticDropout, Conv1d=ElasticDepthwiseConv1d
)
EXAMPLE_LENGTH, EXAMPLE_BEAM = 30, 5  # tokens of a sentence, and hypotheses, where no data say; HAT's


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """One network, in HAT's words: global widths and depths; feed-forward width, heads and span of each layer.

    `*_ende_attn` is -1, 1 or 2 for attention to the last 1, 2 or 3 encoder layers. From Primer (arXiv 2109.08668):
    `*_relu_power` is 1 or 2 (squared ReLU), `*_conv_kernel_size` that of the convolutions in self-attention.
    """

    encoder_embed_dim: int
    encoder_layer_num: int
    encoder_ffn_embed_dim: tuple[int, ...]
    encoder_self_attention_heads: tuple[int, ...]
    encoder_relu_power: tuple[int, ...]
    encoder_conv_kernel_size: tuple[int, ...]
    decoder_embed_dim: int
    decoder_layer_num: int
    decoder_ffn_embed_dim: tuple[int, ...]
    decoder_self_attention_heads: tuple[int, ...]
    decoder_ende_attention_heads: tuple[int, ...]
    decoder_arbitrary_ende_attn: tuple[int, ...]
    decoder_relu_power: tuple[int, ...]
    decoder_conv_kernel_size: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, as_tuples(getattr(self, field.name)))
        for field in dataclasses.fields(self):
            if not field.name.endswith(("embed_dim", "layer_num")) or "ffn" in field.name:
                depth = getattr(self, f"{field.name.partition('_')[0]}_layer_num")
                object.__setattr__(self, field.name, truncate(getattr(self, field.name), depth))


def transformer_space(
    embed_dim: int | Sequence[int] = (512, 640),
    ffn_embed_dim: int | Sequence[int] = (1024, 2048, 3072),
    heads: int | Sequence[int] = (4, 8),
    encoder_layer_num: int | Sequence[int] = (6,),
    decoder_layer_num: int | Sequence[int] = (1, 2, 3, 4, 5, 6),
    arbitrary_ende_attn: int | Sequence[int] = (-1, 1, 2),
    relu_power: int | Sequence[int] = (1,),
    conv_kernel_size: int | Sequence[int] = (1,),
    **others: int | Sequence[int],
) -> SearchSpace:
    """A space of Transformers; HAT's for WMT unless given otherwise.

    `embed_dim`, `ffn_embed_dim`, `heads`, `relu_power` and `conv_kernel_size` are those of both sides and of all their
    attentions; a field of TransformerConfig, such as `decoder_embed_dim`, given as well, stands for its own. One number
    stands for a choice that has one value.
    """
    both = {"embed_dim": embed_dim, "ffn_embed_dim": ffn_embed_dim}
    both |= {"relu_power": relu_power, "conv_kernel_size": conv_kernel_size}
    values = {f"{side}_{name}": v for side in ("encoder", "decoder") for name, v in both.items()}
    for name in ("encoder_self_attention_heads", "decoder_self_attention_heads", "decoder_ende_attention_heads"):
        values[name] = heads
    values |= {"encoder_layer_num": encoder_layer_num, "decoder_layer_num": decoder_layer_num}
    values |= {"decoder_arbitrary_ende_attn": arbitrary_ende_attn}
    if unknown := others.keys() - values.keys():
        raise ValueError(f"{', '.join(sorted(unknown))}: not a choice; there are {', '.join(sorted(values))}")
    values = {name: numbers(name, given) for name, given in (values | others).items()}
    choices = []
    for field in dataclasses.fields(TransformerConfig):
        gate = f"{field.name.partition('_')[0]}_layer_num"
        if field.name.endswith(("_layer_num", "coder_embed_dim")):
            choices.append(Choice(field.name, values[field.name]))
        else:
            choices.append(Choice(field.name, values[field.name], (max(values[gate], default=1),), gate=gate))
    space = SearchSpace(TransformerConfig, tuple(choices))
    check_space(space)
    return space


def space0() -> SearchSpace:
    """HAT's space 0, of its WMT models."""
    return transformer_space()


def space1() -> SearchSpace:
    """HAT's space 1, of its IWSLT models."""
    return transformer_space(ffn_embed_dim=(512, 1024, 2048), heads=(2, 4))


def check_space(space: SearchSpace) -> None:
    """Raise ValueError where values of a space of Transformers make no network."""
    for choice in space.choices:
        for value in choice.values:
            if choice.name == "decoder_arbitrary_ende_attn":
                if value not in SPANS:
                    raise ValueError(f"{choice.name}: {value} is not one of {tuple(SPANS)}")
            elif not isinstance(value, int) or value <= 0:
                raise ValueError(f"{choice.name}: {value} is not a positive integer")
            elif choice.name.endswith("relu_power") and value > 2:
                raise ValueError(f"{choice.name}: {value} is neither 1, a ReLU, nor 2, its square")
            elif choice.name == "encoder_conv_kernel_size" and value % 2 == 0:
                raise ValueError(f"{choice.name}: {value} is even, so it has no centre")
    spans, depth = space["decoder_arbitrary_ende_attn"].values, space["encoder_layer_num"].values[0]
    if depth <= max(spans):
        raise ValueError(
            f"decoder_arbitrary_ende_attn: {max(spans)} attends to {SPANS[max(spans)]} encoder layers, but"
            f" encoder_layer_num may be {depth}"
        )


class Transformer(Supernet):
    """Transformer supernet: source (B, S) and previous target tokens (B, T) -> logits (B, T, target vocabulary).

    Source sentences are padded on either side, targets on the right. Token ids are HAT's: 1 is padding, 2 the end,
    which also begins `previous`.

    Args:
        space: its networks; HAT's for WMT if None.
        vocab_size: ids of the source vocabulary; 32000 if None, or in a recipe what the data have.
        target_vocab_size: ids of the target vocabulary, where it is another one.
        share_embeddings: one matrix for source, target and output, as for HAT's WMT models; else three, as for IWSLT.
        qkv_dim: what attention is wide inside, whatever its heads: they reshape it, as in HAT. Heads cost nothing then.
        head_dim: what each head is wide instead: then a head that is dropped drops its weights.
        normalize_before: norms before the sublayers, and one at the end of both sides; HAT's are after them.
        dropout: of embeddings and sublayers, times the share of the side's width that is active.
        attention_dropout: of attention weights.
        max_positions: the longest sentence, in tokens.

    HAT scales each dropout but the one after the encoder's self-attention; here that one is scaled, too.
    """

    config_class = TransformerConfig
    metric = "loss"
    more_metrics = "bleu"

    def __init__(
        self,
        space: SearchSpace | None = None,
        vocab_size: int | None = None,
        target_vocab_size: int | None = None,
        share_embeddings: bool = True,
        qkv_dim: int = 512,
        head_dim: int | None = None,
        normalize_before: bool = False,
        dropout: float = 0.3,
        attention_dropout: float = 0.1,
        max_positions: int = 1024,
    ) -> None:
        vocab_size = integer("vocab_size", 32000 if vocab_size is None else vocab_size, 4)
        if target_vocab_size is not None:
            target_vocab_size = integer("target_vocab_size", target_vocab_size, 4)
        if head_dim is not None:
            head_dim = integer("head_dim", head_dim, 1)
        qkv_dim, max_positions = integer("qkv_dim", qkv_dim, 1), integer("max_positions", max_positions, 1)
        dropout, attention_dropout = real("dropout", dropout), real("attention_dropout", attention_dropout)
        arguments = dict(
            vocab_size=vocab_size,
            target_vocab_size=target_vocab_size,
            share_embeddings=bool(share_embeddings),
            qkv_dim=qkv_dim,
            head_dim=head_dim,
            normalize_before=bool(normalize_before),
            dropout=dropout,
            attention_dropout=attention_dropout,
            max_positions=max_positions,
        )
        super().__init__(space0() if space is None else space, arguments)
        space = self.space
        check_space(space)
        for name, value in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} = {value} is not in 0..1")
        if head_dim is None:
            for name in HEADS:
                for heads in space[name].values:
                    if qkv_dim % heads:
                        raise ValueError(f"{name}: {heads} heads do not divide qkv_dim = {qkv_dim}")
        top = space.largest()
        E, D = top.encoder_embed_dim, top.decoder_embed_dim
        if share_embeddings and (E != D or target_vocab_size not in (None, vocab_size)):
            raise ValueError(
                f"share_embeddings: widths up to {E} and {D} and vocabularies of {vocab_size} and"
                f" {target_vocab_size or vocab_size} do not share one matrix"
            )

        def inner(heads: Sequence[int], layer: int) -> int:
            return qkv_dim if head_dim is None else heads[layer] * head_dim

        def kernel_size(side: str) -> int | None:
            """None where no network of the space has a convolution that is more than a factor."""
            largest = space[f"{side}_conv_kernel_size"].values[-1]
            return None if largest == 1 else largest

        options = dict(
            dropout=dropout, attention_dropout=attention_dropout, normalize_before=normalize_before, kit=LAYERS
        )
        encoder_layers = [
            EncoderLayer(
                width=E,
                inner=inner(top.encoder_self_attention_heads, i),
                heads=top.encoder_self_attention_heads[i],
                ffn=top.encoder_ffn_embed_dim[i],
                relu_power=top.encoder_relu_power[i],
                kernel_size=kernel_size("encoder"),
                **options,
            )
            for i in range(top.encoder_layer_num)
        ]
        decoder_layers = [
            DecoderLayer(
                width=D,
                memory_width=E,
                inner=inner(top.decoder_self_attention_heads, i),
                cross_inner=inner(top.decoder_ende_attention_heads, i),
                heads=top.decoder_self_attention_heads[i],
                cross_heads=top.decoder_ende_attention_heads[i],
                span=SPANS[top.decoder_arbitrary_ende_attn[i]],
                ffn=top.decoder_ffn_embed_dim[i],
                relu_power=top.decoder_relu_power[i],
                kernel_size=kernel_size("decoder"),
                **options,
            )
            for i in range(top.decoder_layer_num)
        ]
        target_size = target_vocab_size or vocab_size
        source_tokens, target_tokens = ElasticEmbedding(vocab_size, E, PAD), ElasticEmbedding(target_size, D, PAD)
        output = ElasticLinear(D, target_size, bias=False)
        self.encoder = Encoder(
            Embedding(source_tokens, sinusoids(max_positions, E), dropout, LAYERS),
            ElasticModuleList(encoder_layers),
            max(map(SPANS.get, space["decoder_arbitrary_ende_attn"].values)),
            ElasticLayerNorm(E) if normalize_before else None,
        )
        self.decoder = Decoder(
            Embedding(target_tokens, sinusoids(max_positions, D), dropout, LAYERS),
            ElasticModuleList(decoder_layers),
            output,
            ElasticLayerNorm(D) if normalize_before else None,
        )
        self.apply(init_weights)
        nn.init.normal_(output.weight, std=D**-0.5)
        if share_embeddings:
            target_tokens.weight = output.weight = source_tokens.weight
        self._activate(self.config)

    def forward(self, source: Tensor, previous: Tensor) -> Tensor:
        outputs, mask = self.encoder(source)
        return self.decoder(previous, self.decoder.keys_values(outputs), mask)

    def _activate(self, config: TransformerConfig) -> None:
        head_dim, qkv_dim = self.arguments["head_dim"], self.arguments["qkv_dim"]

        def attention(module: nn.Module, width: int, memory_width: int, heads: int) -> int:
            inner = qkv_dim if head_dim is None else heads * head_dim
            module.q_proj.set_active(width, inner)
            module.k_proj.set_active(memory_width, inner)
            module.v_proj.set_active(memory_width, inner)
            module.out_proj.set_active(inner, width)
            module.__dict__["heads"] = heads
            return inner

        def self_attention(module: nn.Module, width: int, heads: int, kernel_size: int) -> None:
            inner = attention(module, width, width, heads)
            if module.kernel_size is not None:
                module.__dict__["kernel_size"] = kernel_size
                for conv in (module.q_conv, module.k_conv, module.v_conv):
                    more = conv.kernel_size[0] - kernel_size
                    conv.set_active(inner, kernel_size, more if module.causal else more // 2)

        def feed_forward(module: nn.Module, width: int, ffn: int, relu_power: int) -> None:
            module.fc1.set_active(width, ffn)
            module.fc2.set_active(ffn, width)
            module.__dict__["relu_power"] = relu_power

        def residual(module: nn.Module, width: int, share: float) -> None:
            module.norm.set_active(width)
            module.dropout.set_active(share)

        def side(module: nn.Module, width: int, depth: int) -> float:
            share = width / module.embedding.tokens.embedding_dim
            module.embedding.tokens.set_active(width)
            module.embedding.dropout.set_active(share)
            module.layers.set_active(depth)
            if module.norm is not None:
                module.norm.set_active(width)
            return share

        E, D = config.encoder_embed_dim, config.decoder_embed_dim
        share = side(self.encoder, E, config.encoder_layer_num)
        spans = [SPANS[span] for span in config.decoder_arbitrary_ende_attn]
        self.encoder.__dict__["kept"] = max(spans)
        for i, layer in enumerate(self.encoder.layers):
            heads, kernel_size = config.encoder_self_attention_heads[i], config.encoder_conv_kernel_size[i]
            self_attention(layer.self_attention, E, heads, kernel_size)
            feed_forward(layer.feed_forward, E, config.encoder_ffn_embed_dim[i], config.encoder_relu_power[i])
            residual(layer.self_attention_residual, E, share)
            residual(layer.feed_forward_residual, E, share)
        share = side(self.decoder, D, config.decoder_layer_num)
        self.decoder.output.set_active(D, self.decoder.output.out_features)
        for i, (layer, span) in enumerate(zip(self.decoder.layers, spans)):
            heads, kernel_size = config.decoder_self_attention_heads[i], config.decoder_conv_kernel_size[i]
            self_attention(layer.self_attention, D, heads, kernel_size)
            attention(layer.cross_attention, D, E, config.decoder_ende_attention_heads[i])
            feed_forward(layer.feed_forward, D, config.decoder_ffn_embed_dim[i], config.decoder_relu_power[i])
            residual(layer.self_attention_residual, D, share)
            residual(layer.cross_attention_residual, D, share)
            residual(layer.feed_forward_residual, D, share)
            layer.__dict__["span"] = span

    def width_groups(self, space: SearchSpace) -> Iterator[WidthGroup]:
        """Feed-forward units, and heads where they have weights of their own."""
        for side, layers in (("encoder", self.encoder.layers), ("decoder", self.decoder.layers)):
            for layer in list(layers._modules.values()):
                ffn = layer.feed_forward
                widths = space[f"{side}_ffn_embed_dim"].values
                yield WidthGroup(ffn.fc2.input_importance(), [ffn.fc1], [ffn.fc2], widths)
                if (head_dim := self.arguments["head_dim"]) is None:
                    continue
                attentions = [(layer.self_attention, f"{side}_self_attention_heads")]
                if side == "decoder":
                    attentions.append((layer.cross_attention, "decoder_ende_attention_heads"))
                for attention, name in attentions:
                    # All channels of a head have its importance, so that a stable sort keeps them together.
                    heads = attention.out_proj.input_importance().view(-1, head_dim).sum(1)
                    made = [attention.q_proj, attention.k_proj, attention.v_proj]
                    if getattr(attention, "kernel_size", None) is not None:
                        made += [attention.q_conv, attention.k_conv, attention.v_conv]
                    yield WidthGroup(
                        heads.repeat_interleave(head_dim),
                        made,
                        [attention.out_proj],
                        [head_dim * count for count in space[name].values],
                    )

    @property
    def files_form(self) -> tuple[str, ...]:
        return "attention as products", f"{self.arguments['max_positions']} positions"  # their table is in the files

    @classmethod
    def arguments_from(cls, input_spec: Mapping[str, Any]) -> dict[str, Any]:
        if lacks := sorted({"vocab_size", "max_length", "tokenizer"} - input_spec.keys()):
            raise ValueError(f"Transformer needs text data: this data module's input_spec has no {', '.join(lacks)}")
        return {"vocab_size": input_spec["vocab_size"]}

    def check_data(self, input_spec: Mapping[str, Any]) -> None:
        wanted = self.arguments_from(input_spec)
        if self.arguments["target_vocab_size"] is not None:
            wanted["target_vocab_size"] = wanted["vocab_size"]
        check_arguments(self.arguments, wanted, "the tokenizer has")
        if self.arguments["max_positions"] < input_spec["max_length"]:
            raise ValueError(
                f"the supernet has {self.arguments['max_positions']} positions, the data have sentences of up to"
                f" {input_spec['max_length']} tokens: give them a smaller max_length"
            )
        if self.input_spec.get("tokenizer", input_spec["tokenizer"]) != input_spec["tokenizer"]:
            raise ValueError(
                "the data's tokenizer is not the one that this network was trained with: its ids mean other tokens"
            )

    def example_inputs(self, batch: int = 1) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        sizes = self.arguments["vocab_size"], self.arguments["target_vocab_size"] or self.arguments["vocab_size"]
        return tuple(
            torch.randint(min(4, size - 1), size, (batch, length), generator=generator)
            for size, length in zip(sizes, self.lengths)
        )

    def inference(self, batch: int = 1) -> tuple[nn.Module, tuple[Tensor]]:
        """A translation as HAT times it: see hat.decoding.Translation."""
        source, _ = self.example_inputs(batch)
        translation = Translation(self.encoder, self.decoder, self.lengths[1], self.beam)
        return translation.train(self.training), (source,)

    def parts(self, batch: int = 1) -> dict[str, Part]:
        """The encoder, with the keys and values that the decoder attends to, and one decoder step with its caches."""
        traced = max(batch, 2)  # exporters take a size of 1 for a constant
        source, previous = self.example_inputs(traced)
        encoder, decoder = EncoderPart(self.encoder, self.decoder), DecoderPart(self.decoder)
        memory, own = state_names(self.decoder)
        with torch.no_grad():
            mask, *memory_tensors = encoder(source)
            caches = [Cache(history=cache.history) for cache in empty_caches(self.decoder, traced)]
            self.decoder(previous[:, :5], list(zip(memory_tensors[::2], memory_tensors[1::2])), mask, caches)
        cached = [x for cache in caches for x in tensors(cache)]
        dynamic = {"source": {0: "batch", 1: "source"}, "previous": {0: "batch"}, "mask": {0: "batch", 3: "source"}}
        dynamic |= {name: {0: "batch", 2: f"memory_{name.rpartition('_')[2]}"} for name in memory}
        for name in own:
            dynamic[name] = {0: "batch"} if name.startswith("history") else {0: "batch", 2: "past"}
        renewed = [f"new_{name}" for name in own]
        for name in own:
            dynamic[f"new_{name}"] = {0: "batch"} if name.startswith("history") else {0: "batch", 2: "past_and_one"}
        dynamic["logits"] = {0: "batch"}
        tokens = self.arguments["max_positions"]
        limits = {"source": tokens, "past": tokens - 1}
        limits |= {f"memory_{i}": layer.span * tokens for i, layer in enumerate(self.decoder.layers)}

        def part(module: nn.Module, inputs: list[Tensor], names: list[str], outputs: list[str], rows: int) -> Part:
            axes = {name: dynamic[name] for name in (*names, *outputs)}
            return Part(module, tuple(inputs), tuple(names), tuple(outputs), axes, limits | {"batch": rows})

        return {
            "encoder": part(encoder, [source], ["source"], ["mask", *memory], batch),
            "decoder": part(
                decoder,
                [previous[:, :1], mask, *memory_tensors, *cached],
                ["previous", "mask", *memory, *own],
                ["logits", *renewed],
                batch * self.beam,
            ),
        }

    def use(self) -> Use:
        return translation_use(self)

    def run_parts(self, run: RunPart, inputs: Sequence[Tensor]) -> Tensor:
        """The decoder goes through the previous tokens one by one."""
        source, previous = (x.numpy() for x in inputs)
        _, own = state_names(self.decoder)
        state = dict(run("encoder", {"source": source}))
        for name, shape in zip(own, shapes(empty_caches(self.decoder, len(source)))):
            state[name] = np.zeros(shape, np.float32)
        logits = []
        for step in range(previous.shape[1]):
            made = run("decoder", state | {"previous": previous[:, step : step + 1]})
            logits.append(made["logits"])
            state.update((name, made[f"new_{name}"]) for name in own)
        return torch.from_numpy(np.stack(logits, axis=1))

    def plan(self, batch: int = 1) -> dict[str, Any]:
        return plan(self.decoder, batch, *self.lengths, self.beam)

    @property
    def beam(self) -> int:
        """Hypotheses of a translation that is timed."""
        return self.input_spec.get("beam", EXAMPLE_BEAM)

    @property
    def lengths(self) -> tuple[int, int]:
        """Source and target tokens of a sentence of the data it is for."""
        length = min(EXAMPLE_LENGTH, self.arguments["max_positions"])
        return tuple(self.input_spec.get(f"{side}_length", length) for side in ("source", "target"))

    @property
    def cost_terms(self) -> TransformerCosts:
        return self._cost_terms(*self.lengths)

    def _cost_terms(self, source_length: int, target_length: int) -> TransformerCosts:
        arguments = {name: self.arguments[name] for name in COST_ARGUMENTS}
        for side, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            arguments[f"{side}_convolutions"] = module.layers[0].self_attention.kernel_size is not None
        return TransformerCosts(self.space, source_length, target_length, self.beam, **arguments)

    def costs(
        self, X: np.ndarray, source_length: int | None = None, target_length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Costs (n,) of the n rows of X at these lengths in tokens; those of the data, or 30, where left out.

        `params`, and `macs` of one sentence whose target is known (all positions at once, attention not halved for
        being causal). `non_embedding_params` and `non_embedding_macs`, as HAT counts, leave out embeddings and the
        projection to the vocabulary.
        """
        for name, length in (("source_length", source_length), ("target_length", target_length)):
            if length is not None and length < 1:
                raise ValueError(f"{name} = {length}: at least 1")
        given = zip((source_length, target_length), self.lengths)
        terms = self._cost_terms(*(own if length is None else length for length, own in given))(self.space.check(X))
        costs = {unit: total(terms, unit) for unit in ("macs", "params")}
        for unit, outside in (("macs", "macs.vocabulary"), ("params", "params.embedding")):
            costs[f"non_embedding_{unit}"] = costs[unit] - terms[outside]
        return costs


HEADS = ("encoder_self_attention_heads", "decoder_self_attention_heads", "decoder_ende_attention_heads")


def init_weights(module: nn.Module) -> None:
    """HAT's: Xavier uniform for linear layers, where q, k and v are one; embeddings normal with variance 1 / width."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        for layer in (module.q_proj, module.k_proj, module.v_proj):
            bound = (6 / (layer.in_features + 3 * layer.out_features)) ** 0.5
            nn.init.uniform_(layer.weight, -bound, bound)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        nn.init.zeros_(module.weight[module.padding_idx])


COST_ARGUMENTS = (
    "vocab_size",
    "target_vocab_size",
    "share_embeddings",
    "qkv_dim",
    "head_dim",
    "normalize_before",
)


@dataclasses.dataclass(frozen=True)
class TransformerCosts:
    """Cost terms of Transformer networks, in closed form over (n, layer) arrays; lengths in tokens.

    They are of one sentence. A timed inference has `beam` hypotheses of it in the decoder; its latency depends on them.
    """

    space: SearchSpace
    source_length: int
    target_length: int
    beam: int
    vocab_size: int
    target_vocab_size: int | None
    share_embeddings: bool
    qkv_dim: int
    head_dim: int | None
    normalize_before: bool
    encoder_convolutions: bool  # a kernel of 1 is a factor where the space has larger ones, and else nothing
    decoder_convolutions: bool

    def __call__(self, X: np.ndarray) -> dict[str, np.ndarray]:
        X = self.space.matrix(X)
        genes = self.space.unpack(X)
        S, T = self.source_length, self.target_length
        E, D = genes["encoder_embed_dim"][:, None], genes["decoder_embed_dim"][:, None]
        f, g = genes["encoder_ffn_embed_dim"], genes["decoder_ffn_embed_dim"]
        runs, decodes = f > 0, g > 0
        spans = genes["decoder_arbitrary_ende_attn"]
        span = np.where(spans > 0, spans + 1, 1) * decodes
        encoder, decoder, cross = (self._inner(genes[name]) for name in HEADS)
        kernel, causal = (self._kernel(genes, side) for side in ("encoder", "decoder"))
        target_size = self.target_vocab_size or self.vocab_size

        def layers(x: np.ndarray) -> np.ndarray:
            return x.sum(axis=1)

        if self.share_embeddings:
            embedding = self.vocab_size * np.where(E == D, E, E + D)[:, 0]
        else:
            embedding = (self.vocab_size * E + 2 * target_size * D)[:, 0]
        final_norms = 2 * (E + D)[:, 0] if self.normalize_before else 0
        return {
            "macs.encoder_projections": layers(4 * S * encoder * E),
            "macs.encoder_attention": layers(2 * S * S * encoder),
            "macs.encoder_ffn": layers(2 * S * E * f),
            "macs.encoder_convolutions": layers(3 * S * encoder * kernel),
            "macs.decoder_projections": layers(4 * T * decoder * D + 2 * T * cross * D),
            "macs.decoder_attention": layers(2 * T * T * decoder),
            "macs.cross_keys_values": layers(2 * span * S * cross * E),
            "macs.cross_attention": layers(2 * T * span * S * cross),
            "macs.decoder_ffn": layers(2 * T * D * g),
            "macs.decoder_convolutions": layers(3 * T * decoder * causal),
            "macs.vocabulary": T * target_size * D[:, 0],
            "params.encoder": layers(
                (4 * encoder * E + 3 * encoder + E + 2 * E * f + f + E + 4 * E) * runs + 3 * encoder * kernel
            ),
            "params.decoder": layers(
                (4 * decoder * D + 3 * decoder + D + 2 * cross * (D + E) + 3 * cross + D) * decodes
                + (2 * D * g + g + D + 6 * D) * decodes
                + 3 * decoder * causal
            ),
            "params.final_norms": np.zeros(len(X)) + final_norms,
            "params.embedding": embedding,
            "layers.encoder": layers(runs),
            "layers.encoder_heads": layers(genes[HEADS[0]]),
            "layers.decoder": layers(decodes),
            "layers.decoder_heads": layers(genes[HEADS[1]] + genes[HEADS[2]]),
            "layers.squares": layers(genes["encoder_relu_power"] == 2) + layers(genes["decoder_relu_power"] == 2),
        }

    def _inner(self, heads: np.ndarray) -> np.ndarray:
        """What attention is wide inside, (n, layers); 0 in absent layers."""
        return self.qkv_dim * (heads > 0) if self.head_dim is None else self.head_dim * heads

    def _kernel(self, genes: dict[str, np.ndarray], side: str) -> np.ndarray:
        """Taps of the convolutions, (n, layers); 0 where there are none."""
        return genes[f"{side}_conv_kernel_size"] * getattr(self, f"{side}_convolutions")
