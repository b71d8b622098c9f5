"""Progress of long work: a bar in a terminal, one line in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, shown as a progress bar with the text `what`; as one line with their number outside a terminal."""
    if not total:
        return
    if sys.stdout.isatty():
        from rich.progress import track

        yield from track(items, description=what, total=total)
        return
    print(f"{what}: {total}", flush=True)
    yield from items
