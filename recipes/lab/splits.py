"""The splits of evaluation data: selection, held_out, test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

SPLITS = SELECTION, HELD_OUT, TEST = "selection", "held_out", "test"


def batches_of(data: Any, split: str) -> Iterator[list[Tensor]]:
    """The batches of a split of a data module.

    `selection` is every other item of the validation data: networks are chosen by it. `held_out` is the items in
    between, and `test` the test set: they choose nothing.
    """
    if split == TEST:
        yield from data.test_dataloader()
        return
    seen = 0
    for batch in data.val_dataloader():
        items = [x[(SPLITS.index(split) + seen) % 2 :: 2] for x in batch]
        seen += len(batch[-1])
        if len(items[-1]):
            yield items


def within_bytes(batches: Iterable[Any], most: float) -> list[Any] | None:
    """The batches as a list; None where they have more than `most` bytes."""
    kept, size = [], 0
    for batch in batches:
        size += sum(x.nbytes for x in ([batch] if isinstance(batch, Tensor) else batch))
        if size > most:
            return None
        kept.append(batch)
    return kept


def joined(batches: Iterable[Sequence[Tensor]], most: int = 256) -> Iterator[list[Tensor]]:
    """The items in larger batches of at most `most`; batches whose items differ in shape are not joined."""
    some: list[list[Tensor]] = []
    for batch in batches:
        shapes = [x.shape[1:] for x in batch]
        full = some and sum(len(x[-1]) for x in some) + len(batch[-1]) > most
        if some and (full or [x.shape[1:] for x in some[-1]] != shapes):
            yield [torch.cat(parts) for parts in zip(*some)]
            some = []
        some.append(list(batch))
    if some:
        yield [torch.cat(parts) for parts in zip(*some)]
