"""One translation in steps: what is timed on a device, and the two modules that are exported to run there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hat.layers import EOS, Decoder, Encoder, SelfAttention


class Cache:
    """What a layer's self-attention has seen: keys and values (B, heads, tokens, width), and what convolutions need."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, history: Tensor | None = None) -> None:
        self.keys, self.values, self.history = keys, values, history

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class Translation(nn.Module):
    """Source (B, S) -> logits (B x beam, vocabulary) after `steps` decoder steps of `beam` hypotheses with caches.

    HAT's protocol of timing, of a network in eval mode: the encoder once, then decoder steps whose tokens are fixed.
    Choosing tokens and reordering hypotheses are not part of it.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, steps: int, beam: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.steps, self.beam = encoder, decoder, steps, beam

    def forward(self, source: Tensor) -> Tensor:
        outputs, mask = self.encoder(source)
        memory = [[x.repeat_interleave(self.beam, dim=0) for x in pair] for pair in self.decoder.keys_values(outputs)]
        mask = mask.repeat_interleave(self.beam, dim=0)
        caches = [Cache() for _ in memory]
        previous = torch.full((len(mask), 1), EOS, device=source.device)
        for step in range(self.steps):
            logits = self.decoder(previous, memory, mask, caches, step)
        return logits[:, -1]


class EncoderPart(nn.Module):
    """Source (B, S) -> the mask (B, 1, 1, S), then the keys and the values that each decoder layer attends to."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        outputs, mask = self.encoder(source)
        return mask, *(x for pair in self.decoder.keys_values(outputs) for x in pair)


class DecoderPart(nn.Module):
    """One step: the previous token (B, 1), the encoder's tensors and the caches' -> logits (B, vocabulary), caches."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, previous: Tensor, mask: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        layers = list(self.decoder.layers)
        memory, own = state[: 2 * len(layers)], iter(state[2 * len(layers) :])
        caches = [Cache(*islice(own, 3 if remembers(layer.self_attention) else 2)) for layer in layers]
        pairs = list(zip(memory[::2], memory[1::2]))
        logits = self.decoder(previous, pairs, mask, caches, caches[0].keys.size(2))
        return logits.flatten(0, 1), *(x for cache in caches for x in tensors(cache))


def tensors(cache: Cache) -> tuple[Tensor, ...]:
    return (cache.keys, cache.values) if cache.history is None else (cache.keys, cache.values, cache.history)


def state_names(decoder: Decoder) -> tuple[list[str], list[str]]:
    """The names of the encoder's tensors for the decoder, and of the caches'."""
    memory, own = [], []
    for i, layer in enumerate(decoder.layers):
        memory += [f"cross_key_{i}", f"cross_value_{i}"]
        own += [f"key_{i}", f"value_{i}"] + ([f"history_{i}"] if remembers(layer.self_attention) else [])
    return memory, own


def remembers(attention: SelfAttention) -> bool:
    """Whether its convolutions reach back over tokens before this step's."""
    return attention.kernel_size not in (None, 1)


def empty_caches(decoder: Decoder, batch: int) -> list[Cache]:
    """Caches before the first token."""
    caches = []
    for layer in decoder.layers:
        attention = layer.self_attention
        inner = attention.q_proj.out_features
        none = attention.q_proj.weight.new_zeros(batch, attention.heads, 0, inner // attention.heads)
        steps = attention.kernel_size - 1 if remembers(attention) else None
        caches.append(Cache(none, none, None if steps is None else none.new_zeros(batch, steps, 3 * inner)))
    return caches


def shapes(caches: Sequence[Cache]) -> list[list[int]]:
    return [list(x.shape) for cache in caches for x in tensors(cache)]


def plan(decoder: Decoder, batch: int, source_length: int, steps: int, beam: int) -> dict[str, Any]:
    """How the two exported parts run as `Translation` does, on `batch` sentences (see predictors.runtimes)."""
    _, own = state_names(decoder)
    start = dict(zip(own, shapes(empty_caches(decoder, batch * beam))))
    return {
        "first": "encoder",
        "then": "decoder",
        "steps": steps,
        "copies": beam,
        "inputs": {"source": [batch, source_length]},
        "start": {"previous": [batch * beam, 1]} | start,
        "integers": EOS,
    }
