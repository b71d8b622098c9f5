"""The bench of a verb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.saved import LOADERS, import_families, make_data, read_section
from supernet.values import integer

# Networks that are timed, or evaluated: at least; before it is asked whether they are enough; at most, if not told.
LEAST_SAMPLES, FIRST_SAMPLES, MOST_SAMPLES = 5, 20, 200


MOST_TIMED = 60  # at most, of those that are timed


GARBAGE = 100_000  # new objects from which on the garbage collector runs, where exports and imports make many


FEW_SAMPLES = 10  # timed before that is asked where the store has another device's latencies


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Meanwhile SIGTERM ends this process as an exception does, so that temporary files are deleted; what was measured
    is in the store."""
    import signal
    import threading

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


def read_samples(name: str, given: int | str) -> int | None:
    """A number of networks to time or to evaluate, or None for auto."""
    if given == "auto":
        return None
    try:
        return integer(name, given, LEAST_SAMPLES)
    except ValueError:
        raise ValueError(f"{name} = {given}: a number of at least {LEAST_SAMPLES}, or auto") from None


@contextmanager
def open_bench(
    supernet: str,
    device: str,
    data: str | None,
    store: str | None,
    files: str,
    engine: str,
    splits: Sequence[str] = tuple(LOADERS),
) -> Iterator[Any]:
    """The `recipes.bench.Bench` of a saved supernet on a device, with its data (those `splits` of it) and its store."""
    from predictors.devices import get_device
    from predictors.store import Store
    from recipes.bench import Bench
    from supernet.saving import load

    if engine not in ("process", "ray"):
        raise ValueError(f"engine: {engine!r} is neither process nor ray")
    import_families()
    network = load(supernet)
    if network.extracted:
        raise ValueError(f"{supernet} is a subnet: this needs its supernet")
    timed_on = get_device(device)
    path = Path(store) if store else Path(supernet).resolve().parent / "measurements.sqlite"
    with Store(path) as measurements:
        section = read_section(supernet, data)
        kept = path.with_name(f"{path.name}.files")
        bench = Bench(network, make_data(section, splits), timed_on, measurements, Path(files), section, engine, kept)
        try:
            yield bench
        finally:
            bench.close()
            print(f"{timed_on.name}: seconds by stage\n{bench.ledger}", flush=True)
