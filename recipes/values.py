"""What the verbs share: how options are read, and how a process ends. Importing it does not import torch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from supernet.values import integer

# The two forms of a network's files, by the names that stores of measurements have for them.
PROXY = "search"  # a quick export that is only timed
RELEASE = "final"  # the delivered file

GARBAGE = 100_000  # new objects after which the garbage collector runs: exports and imports make many
MIN_SAMPLES = 5  # networks that a predictor is fitted on, at least
FIRST_SAMPLES, FIRST_WITH_TRANSFER = 20, 10  # before the first look at convergence; with another device's latencies
MAX_TIMED, MAX_EVALUATED = 60, 200  # at most, unless a number is given


def read_samples(name: str, given: int | str) -> int | None:
    """A number of networks, or None for "auto"; ValueError names the option."""
    if given == "auto":
        return None
    try:
        return integer(name, given, MIN_SAMPLES)
    except ValueError:
        raise ValueError(f"{name} = {given}: give a number of at least {MIN_SAMPLES}, or auto") from None


def read_budgets(given: float | str | list[float] | None) -> list[float]:
    """Budgets in ms, each once: from a number, several numbers, or a text in which commas separate them."""
    parts = given.split(",") if isinstance(given, str) else np.ravel(given).tolist() if given is not None else []
    try:
        return list({f"{float(part):g}": float(part) for part in parts if part is not None}.values())
    except (TypeError, ValueError):
        raise ValueError(f"max_latency = {given}: give a number of ms, or several separated by commas") from None


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """In this context SIGTERM ends the process as an exception does, so that temporary files are deleted."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
