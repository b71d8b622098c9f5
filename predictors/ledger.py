"""A ledger: what time was spent on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Ledger:
    """Seconds by stage. A stage within another one counts for itself alone; what is in no stage is `other`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def spending(self, stage: str) -> Iterator[None]:
        """Add the seconds that it lasts to the stage, less the seconds of other stages meanwhile."""
        began, before = time.perf_counter(), sum(self._spent.values())
        self._spent.setdefault(stage, 0.0)
        try:
            yield
        finally:
            others = sum(self._spent.values()) - before
            self._spent[stage] += time.perf_counter() - began - others

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage, of what is `other`, and in `total`."""
        total = time.perf_counter() - self._began
        return self._spent | {"other": max(0.0, total - sum(self._spent.values())), "total": total}

    def __str__(self) -> str:
        """A line a stage."""
        return "\n".join(f"{stage:<32}{seconds:8.1f} s" for stage, seconds in self.seconds.items() if seconds >= 0.05)
