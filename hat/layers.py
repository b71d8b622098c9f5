"""The encoder-decoder of HAT (Wang et al., arXiv 2005.14187), of plain torch layers; needs torch alone.

A supernet is the same modules made of elastic layers: `kit` is the namespace that the layers are taken from. B is the
batch, S and T are source and target tokens, E and D encoder and decoder width, N a sequence of any length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOS, PAD, EOS, UNK = range(4)  # token ids, as in HAT; the decoder's first token is EOS
SPANS = {-1: 1, 1: 2, 2: 3}  # HAT's names of how many encoder layers, from the last on, a decoder layer attends to


def sinusoids(length: int, width: int) -> Tensor:
    """The position table (rows, width): sines in the first half of the columns, cosines in the second.

    Row 1 is that of padding, and zero; token i has row i + 2. A narrower network has the leading columns of this
    table, which are not a narrower table.
    """
    half, single = width // 2, torch.float32  # whatever precision new tensors have: it is rounded afterwards
    frequency = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0, dtype=single)) / (half - 1)))
    angle = torch.arange(length + 2)[:, None] * frequency
    table = torch.cat([angle.sin(), angle.cos(), torch.zeros(length + 2, width % 2, dtype=single)], dim=1)
    table[PAD] = 0
    return table


@dataclass(frozen=True)
class Record:
    """What a side keeps of one pass, where it is asked to: lists that its layers append to, each in their order.

    `hidden_states` is each layer's input (B, N, width), then the last layer's output; `attentions` the weights of
    self-attention (B, heads, N, M); `cross_attentions` of attention to the encoder (B, heads, T, span x S).
    """

    hidden_states: list[Tensor] | None = None
    attentions: list[Tensor] | None = None
    cross_attentions: list[Tensor] | None = None


NOTHING = Record()


class Embedding(nn.Module):
    """Token embeddings times the square root of their width, plus positions, with dropout: (B, N) -> (B, N, width)."""

    def __init__(self, tokens: nn.Embedding, positions: Tensor, dropout: float, kit: Any = nn) -> None:
        super().__init__()
        self.tokens = tokens
        self.dropout = kit.Dropout(dropout)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """`rows` (B, N) or (N,) of the position table. `tokens` are ids (B, N), or vectors of tokens (B, N, width)."""
        x = tokens if tokens.is_floating_point() else self.tokens(tokens)
        width = x.size(-1)
        return self.dropout(x * width**0.5 + F.embedding(rows, self.positions[:, :width]))

    def check(self, length: int) -> None:
        """Raise ValueError where a sentence has more tokens than there are positions."""
        # While exporting, lengths are symbols; the file has the bound in its shapes, or is for one length.
        if not torch.jit.is_tracing() and not torch.compiler.is_exporting() and length > len(self.positions) - 2:
            raise ValueError(f"a sentence of {length} tokens: this network has {len(self.positions) - 2} positions")


class Attention(nn.Module):
    """Multi-head attention of (B, N, width) to a memory (B, M, memory_width), inside `inner` wide in all its heads."""

    def __init__(
        self, width: int, memory_width: int, inner: int, heads: int, dropout: float = 0.0, kit: Any = nn
    ) -> None:
        super().__init__()
        self.q_proj = kit.Linear(width, inner)
        self.k_proj = kit.Linear(memory_width, inner)
        self.v_proj = kit.Linear(memory_width, inner)
        self.out_proj = kit.Linear(inner, width)
        self.heads, self.dropout = heads, dropout

    def split(self, x: Tensor) -> Tensor:
        """(B, N, inner) -> (B, heads, N, inner / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, M, inner / heads)."""
        return self.split(self.k_proj(memory)), self.split(self.v_proj(memory))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """`mask`, to be broadcast to (B, heads, N, M), is True where a query sees a key.

        With a list `weights`, attention is computed as two products, and its weights (B, heads, N, M) are appended.
        """
        exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()
        dropout = self.dropout if self.training else 0.0
        if weights is not None:
            if causal:
                mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril(k.size(2) - q.size(2))
            weights.append(F.dropout(attention_weights(q, k, mask), dropout))
            y = weights[-1] @ v
        elif exporting and not causal and not self.training:
            y = attention_weights(q, k, mask) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        return self.attend(self.split(self.q_proj(x)), keys, values, mask, weights=weights)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """The weights (B, heads, N, M) that `F.scaled_dot_product_attention` gives the values.

    Exporters write fewer layers of this than of that function. Keys times queries, transposed: a single query then
    needs no transposed keys. Written as queries times keys, OpenVINO 2026.4 computes attention of a single query to 16
    keys or more, without a mask, wrongly; and it does not compile what NNCF quantizes of an encoder.
    """
    scores = (k @ q.transpose(2, 3)).transpose(2, 3) * (1 / math.sqrt(q.size(-1)))
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


class SelfAttention(Attention):
    """Attention of (B, N, width) to itself, the causal kind through a cache if one is given.

    With a `kernel_size`, q, k and v go through depthwise convolutions over time (Primer, arXiv 2109.08668): symmetric
    ones, or causal ones. They start as the identity.

    A cache has `update(k, v)`, which returns all keys and values so far, and `history`: the last kernel_size - 1 of q,
    k and v before their convolutions, (B, kernel_size - 1, 3 inner), or None at the start of a sentence.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        heads: int,
        dropout: float = 0.0,
        causal: bool = False,
        kernel_size: int | None = None,
        kit: Any = nn,
    ) -> None:
        super().__init__(width, width, inner, heads, dropout, kit)
        self.causal, self.kernel_size = causal, kernel_size
        if kernel_size is not None:
            self.q_conv, self.k_conv, self.v_conv = (
                kit.Conv1d(inner, inner, kernel_size, groups=inner, bias=False) for _ in range(3)
            )
            for conv in (self.q_conv, self.k_conv, self.v_conv):
                nn.init.zeros_(conv.weight)
                nn.init.ones_(conv.weight[..., -1 if causal else kernel_size // 2])

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: Any = None, weights: list[Tensor] | None = None
    ) -> Tensor:
        """`mask` (B, 1, 1, N) of symmetric attention is True where a token is not padding; `weights`: see attend."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.kernel_size is not None:
            q, k, v = self.convolve(torch.cat([q, k, v], dim=-1), mask, cache)
        q, k, v = self.split(q), self.split(k), self.split(v)
        if cache is not None:
            k, v = cache.update(k, v)
        steps, known = q.size(2), k.size(2)
        if self.causal and cache is not None:
            # The last query sees every key; only a step of several tokens needs a mask.
            if steps == 1:
                return self.attend(q, k, v, weights=weights)
            if known != steps:
                mask = torch.ones(steps, known, dtype=torch.bool, device=x.device).tril(known - steps)
                return self.attend(q, k, v, mask, weights=weights)
        return self.attend(q, k, v, mask, self.causal, weights)

    def convolve(self, qkv: Tensor, mask: Tensor | None, cache: Any) -> list[Tensor]:
        """q, k and v, convolved; of (B, N, 3 inner)."""
        more = self.kernel_size - 1
        if self.causal and more:
            past = None if cache is None else cache.history
            if past is None:
                past = qkv.new_zeros(qkv.size(0), more, qkv.size(2))
            qkv = torch.cat([past, qkv], dim=1)
            if cache is not None:
                cache.history = qkv[:, qkv.size(1) - more :]
        else:
            if mask is not None:  # so that a sentence in a batch sees the zeros that it sees alone
                qkv = qkv * mask[:, 0, 0, :, None]
            if more:
                qkv = F.pad(qkv, (0, 0, more // 2, more // 2))
        convs = self.q_conv, self.k_conv, self.v_conv
        return [conv(x.transpose(1, 2)).transpose(1, 2) for conv, x in zip(convs, qkv.chunk(3, dim=-1))]


class FeedForward(nn.Module):
    """Two linear layers with a ReLU, or its square (Primer), between: (B, N, width)."""

    def __init__(self, width: int, inner: int, relu_power: int = 1, kit: Any = nn) -> None:
        super().__init__()
        self.fc1 = kit.Linear(width, inner)
        self.fc2 = kit.Linear(inner, width)
        self.relu_power = relu_power

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        return self.fc2(x if self.relu_power == 1 else x.square())


class Residual(nn.Module):
    """The norm and the dropout around a sublayer, whose norm is before it (pre-norm) or after the sum (post-norm)."""

    def __init__(self, width: int, dropout: float, normalize_before: bool, kit: Any = nn) -> None:
        super().__init__()
        self.norm = kit.LayerNorm(width)
        self.dropout = kit.Dropout(dropout)
        self.normalize_before = normalize_before

    def forward(self, x: Tensor, sublayer: Any, *arguments: Any) -> Tensor:
        if self.normalize_before:
            return x + self.dropout(sublayer(self.norm(x), *arguments))
        return self.norm(x + self.dropout(sublayer(x, *arguments)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward: (B, S, E)."""

    def __init__(
        self,
        width: int,
        inner: int,
        heads: int,
        ffn: int,
        relu_power: int,
        kernel_size: int | None,
        dropout: float,
        attention_dropout: float,
        normalize_before: bool,
        kit: Any = nn,
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, inner, heads, attention_dropout, False, kernel_size, kit)
        self.self_attention_residual = Residual(width, dropout, normalize_before, kit)
        self.feed_forward = FeedForward(width, ffn, relu_power, kit)
        self.feed_forward_residual = Residual(width, dropout, normalize_before, kit)

    def forward(self, x: Tensor, mask: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        x = self.self_attention_residual(x, self.self_attention, mask, None, weights)
        return self.feed_forward_residual(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the last `span` encoder layers, feed-forward: (B, T, D)."""

    def __init__(
        self,
        width: int,
        memory_width: int,
        inner: int,
        cross_inner: int,
        heads: int,
        cross_heads: int,
        span: int,
        ffn: int,
        relu_power: int,
        kernel_size: int | None,
        dropout: float,
        attention_dropout: float,
        normalize_before: bool,
        kit: Any = nn,
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, inner, heads, attention_dropout, True, kernel_size, kit)
        self.self_attention_residual = Residual(width, dropout, normalize_before, kit)
        self.cross_attention = Attention(width, memory_width, cross_inner, cross_heads, attention_dropout, kit)
        self.cross_attention_residual = Residual(width, dropout, normalize_before, kit)
        self.feed_forward = FeedForward(width, ffn, relu_power, kit)
        self.feed_forward_residual = Residual(width, dropout, normalize_before, kit)
        self.span = span

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        cache: Any = None,
        weights: list[Tensor] | None = None,
        cross_weights: list[Tensor] | None = None,
    ) -> Tensor:
        x = self.self_attention_residual(x, self.self_attention, None, cache, weights)
        x = self.cross_attention_residual(x, self.cross_attention, keys, values, mask, cross_weights)
        return self.feed_forward_residual(x, self.feed_forward)


class Encoder(nn.Module):
    """Source tokens (B, S), padded on either side -> the outputs of the last layers, (B, kept, S, E), last first."""

    def __init__(self, embedding: Embedding, layers: Sequence[nn.Module], kept: int, norm: nn.Module | None) -> None:
        super().__init__()
        self.embedding, self.layers, self.kept = embedding, layers, kept
        self.norm = norm  # of pre-norm networks; applied to each output that is kept

    def forward(self, source: Tensor, given: Tensor | None = None, record: Record = NOTHING) -> tuple[Tensor, Tensor]:
        """The outputs, and the mask (B, 1, 1, S) of the tokens that are not padding, nor left out by `given` (B, S).

        `source` may be the vectors of tokens (B, S, E); only `given` then marks padding.
        """
        self.embedding.check(source.size(1))
        real = source != PAD if source.dim() == 2 else source.new_ones(source.shape[:2], dtype=torch.bool)
        real = real if given is None else real & given
        x = self.embedding(source, PAD + real.long().cumsum(1) * real)
        mask = real[:, None, None, :]
        outputs: list[Tensor] = []
        for layer in self.layers:
            if record.hidden_states is not None:
                record.hidden_states.append(x)
            x = self.run(layer, x, mask, record.attentions)
            outputs = [x, *outputs[: self.kept - 1]]
        if self.norm is not None:
            outputs = [self.norm(x) for x in outputs]
        if record.hidden_states is not None:
            record.hidden_states.append(outputs[0])
        return torch.stack(outputs, dim=1), mask

    def run(self, layer: nn.Module, *arguments: Any) -> Tensor:
        return layer(*arguments)


class Decoder(nn.Module):
    """Previous target tokens (B, T), padded on the right, and what the encoder made -> logits (B, T, vocabulary)."""

    def __init__(
        self, embedding: Embedding, layers: Sequence[nn.Module], output: nn.Linear, norm: nn.Module | None
    ) -> None:
        super().__init__()
        self.embedding, self.layers, self.output, self.norm = embedding, layers, output, norm

    def keys_values(self, outputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What each layer attends to in the encoder's outputs (B, kept, S, E): keys and values over span x S tokens.

        -1 in HAT's configs is a span of 1, 1 of 2, 2 of 3.
        """
        return [layer.cross_attention.keys_values(outputs[:, : layer.span].flatten(1, 2)) for layer in self.layers]

    def forward(
        self,
        previous: Tensor,
        keys_values: Sequence[tuple[Tensor, Tensor]],
        mask: Tensor,
        caches: Sequence[Any] | None = None,
        past: int | Tensor = 0,
        record: Record = NOTHING,
    ) -> Tensor:
        """With `caches`, one a layer, `previous` goes on after `past` tokens that they hold.

        `previous` may be the vectors of tokens (B, T, D).
        """
        self.embedding.check(past + previous.size(1))
        x = self.embedding(previous, torch.arange(previous.size(1), device=previous.device) + (past + PAD + 1))
        masks: dict[int, Tensor] = {}
        for i, (layer, (keys, values)) in enumerate(zip(self.layers, keys_values)):
            if layer.span not in masks:
                masks[layer.span] = mask.repeat(1, 1, 1, layer.span) if layer.span > 1 else mask
            if record.hidden_states is not None:
                record.hidden_states.append(x)
            cache = None if caches is None else caches[i]
            lists = record.attentions, record.cross_attentions
            x = self.run(layer, x, keys, values, masks[layer.span], cache, *lists)
        if self.norm is not None:
            x = self.norm(x)
        if record.hidden_states is not None:
            record.hidden_states.append(x)
        return self.output(x)

    def run(self, layer: nn.Module, *arguments: Any) -> Tensor:
        return layer(*arguments)
