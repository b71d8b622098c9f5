"""Networks timed in rounds on a device, beside a reference network that shows how the machine drifts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from itertools import islice

import numpy as np

from predictors.devices import Device
from predictors.engines import Call, NetworkError, open_engine
from predictors.runtimes.session import Source
from predictors.statistics import Failure, Measurement

ATTEMPTS = 2  # to time a network that fails
COPIES = 3  # of the reference


def time_networks(
    device: Device,
    networks: Mapping[str, Source] | Iterable[tuple[str, Source]],
    reference: tuple[str, Source] | None = None,
    *,
    group: int = 20,
    seed: int = 0,
    engine: str = "thread",
    new_process_per_round: bool = False,
    worker: RecoveringWorker | None = None,
) -> Iterator[tuple[str, Measurement | Failure]]:
    """Time networks on a device; yields (key, Measurement) as soon as a network has had all its rounds.

    Networks are read lazily (a source may be a function that exports on demand), `group` at a time. A group is loaded,
    then timed in rounds of all its networks, each round in a random order. While a group waits for its next round, the
    rounds of other groups take place.

    Args:
        device: the runtime and the protocol.
        networks: {key: source}, or pairs.
        reference: (name, source) of a network that runs at both ends of every round, so that `latencies` can divide
            out drift. Memory addresses change its latency by some percent, and with it those of all networks, so it is
            loaded `COPIES` times.
        group: networks that are loaded together.
        seed: of the orders.
        engine: thread, a pinned thread of this process; process, one for each group; or ray, a process on the machine
            of a Ray cluster that offers the device. A network may crash, hang or exhaust a process, or break the
            reference there: it is tried once more, alone, and yields (key, Failure) if it fails again, or if it cannot
            be exported. Other networks lose no round.
        new_process_per_round: each round in another process with random addresses, as other programs have them. It
            loads each network and the reference once. The latencies of one network differ between processes, by more
            than between the runs of one process.
        worker: a worker of this device, which may differ in its number of rounds, that the networks run on. A network
            that an earlier call has loaded by the same key is not loaded again.

    Raises ValueError, TypeError or OSError for a source that the device does not time; NetworkError if the reference
    fails.
    """
    rng = np.random.default_rng(seed)
    arriving = iter(networks.items() if isinstance(networks, Mapping) else networks)
    with nullcontext(worker) if worker else open_worker(device, engine, not new_process_per_round) as worker:
        description = dataclasses.asdict(device) | worker.fingerprint()
        copies = 0 if reference is None else 1 if new_process_per_round else COPIES
        beside = _Reference(*(reference or ("", None)), copies)
        groups, again, first = [], [], True  # the groups whose rounds take place now; networks that failed once
        if not worker.fast:
            worker.restart()
        while True:
            if not groups or (worker.fast and not new_process_per_round and _leave_room(groups, device)):
                some = [_Timing(*network) for network in islice(arriving, group)]
                alone = not some and not groups and bool(again)
                if some or alone:
                    if not groups and not first and engine != "thread" and (alone or not (worker.kept and worker.fast)):
                        worker.restart()
                    groups.append(_Group([again.pop()] if alone else some))
                first = False
            if not groups:
                return
            for one in list(groups):
                if one.next:  # it has had a round
                    time.sleep(max(0.0, one.next - time.perf_counter()))
                one.next = time.perf_counter() + device.spacing
                if new_process_per_round:
                    worker.restart()
                one.seconds = _run_round(worker, one.active, beside, rng, again)
                for timing in list(one.active):
                    if len(timing.failures) >= ATTEMPTS:
                        yield timing.key, Failure(tuple(timing.failures), now(), description)
                    elif timing.failed:
                        timing.failed = False
                        again.append(timing)
                    elif len(timing.times) == device.rounds:
                        times, reference_times = timing.times, timing.reference_times
                        yield timing.key, Measurement.of(times, beside.name, reference_times, timing.taken, description)
                    else:
                        continue
                    one.active.remove(timing)
                    if timing.failures or not worker.kept:
                        worker.drop(timing)
                if not one.active:
                    groups.remove(one)
                    worker.fast = one.seconds <= device.spacing


class _Group:
    """Networks that are timed in the same rounds."""

    def __init__(self, active: list[_Timing]) -> None:
        self.active = active
        self.next, self.seconds = 0.0, 0.0  # when the next round may begin; how long the last one lasted


def _leave_room(groups: Sequence[_Group], device: Device) -> bool:
    """Whether the rounds of all these groups leave time for the rounds of another group."""
    spent = [one.seconds for one in groups]
    return min(spent) > 0 and sum(spent) * (len(spent) + 1) / len(spent) <= device.spacing


def _run_round(
    worker: RecoveringWorker, active: list[_Timing], beside: _Reference, rng: np.random.Generator, again: list[_Timing]
) -> float:
    """Run a group once, the reference before and after it, and record the times and the failures.

    Returns the seconds it took once all were loaded, 0 if not all were.
    """
    copies, taken, timed, began = beside.copies, now(), [], math.inf
    for copy in copies:
        copy.failed = False
    if worker.load((*copies, *active)):
        began = time.perf_counter()
        before = [worker.time(copy) for copy in copies]
        order = rng.permutation(len(active))
        timed = [(active[i], times) for i in order if (times := worker.time(active[i]))]
        after = [worker.time(copy) for copy in copies]
        if not all(before + after):  # a network took the process along, or the reference itself
            timed = []
        broken = [copy for copy in copies if copy.failed]  # each of them ran when it was loaded
        if broken and len(active) > 1:  # a network may have broken the reference: each is tried alone
            again.extend(active)
            active.clear()
            broken[0].failures.clear()
        elif broken and worker.run_alone(copies):
            active[0].fail(f"beside it the reference: {broken[0].failures.pop()}", broken[0].error)
    for timing, times in timed:
        timing.taken = timing.taken if timing.times else taken
        timing.times.append(times)
        timing.reference_times.append([first + last for first, last in zip(before, after)])
    for copy in copies:
        if len(copy.failures) >= ATTEMPTS:
            message = f"the reference network {beside.name} failed: {'; '.join(copy.failures)}"
            raise NetworkError(message) from copy.error
        if timed:
            copy.failures.clear()
    return max(0.0, time.perf_counter() - began)


class _Timing:
    """A network, its rounds so far and the reasons of failed attempts."""

    def __init__(self, key: str, source: Source, place: str = "") -> None:
        self.key, self.source = key, source
        self.place = place or key  # of the worker's
        self.times: list[tuple[float, ...]] = []
        self.reference_times: list[list[tuple[float, ...]]] = []
        self.failures: list[str] = []
        self.failed = False  # just now
        self.error: NetworkError | None = None  # the last one
        self.taken = ""  # when its first round began

    def fail(self, reason: str, error: NetworkError | None) -> None:
        """Record a failed attempt; its rounds are lost."""
        self.failures.append(reason)
        self.failed, self.error = True, error
        self.times.clear()
        self.reference_times.clear()


class _Reference:
    """The network that is timed at both ends of every round, in some copies."""

    def __init__(self, name: str, source: Source, copies: int) -> None:
        self.name = name
        self.copies = [_Timing(name, source, f"copy {i} of {name}") for i in range(copies)]


class RecoveringWorker:
    """Loads and times networks on an engine's worker; if the worker is lost, networks are loaded again on a new one.

    With `kept`, networks stay loaded for the next call of `time_networks`, as long as their rounds are `fast`: they
    end within the device's spacing.
    """

    def __init__(self, call: Call, kept: bool = False) -> None:
        self._call, self._loaded = call, set()
        self.kept, self.fast = kept, True

    def fingerprint(self) -> dict[str, object]:
        """The fingerprint of the machine on which networks run."""
        return self._call("fingerprint")

    def load(self, timings: Iterable[_Timing]) -> bool:
        """Load networks that are not loaded, up to the first failure, which is recorded; returns whether all are."""
        for timing in timings:
            if timing.place not in self._loaded:
                with self._recording(timing):
                    self._call("load", timing.place, made(timing.source))
                    self._loaded.add(timing.place)
            if timing.place not in self._loaded:
                return False
        return True

    def time(self, timing: _Timing) -> tuple[float, ...]:
        """The times of one round of a network; () if it fails, which is recorded, or was lost with another network."""
        if timing.place in self._loaded:
            with self._recording(timing):
                return self._call("time", timing.place)
        return ()

    @contextmanager
    def _recording(self, timing: _Timing) -> Iterator[None]:
        try:
            yield
        except NetworkError as error:
            if not isinstance(error, ExportError):  # the worker is unchanged by it
                self._loaded.clear()
            timing.fail(str(error), error)
        except Exception as error:
            error.add_note(f"while timing {timing.key}")
            raise

    def restart(self) -> None:
        """Go on in a new process."""
        with suppress(NetworkError):  # the worker was lost since
            self._call("end")
        self._loaded.clear()
        self.fast = True

    def run_alone(self, timings: Sequence[_Timing]) -> bool:
        """Whether these networks run in a new process, without the others."""
        self.restart()
        return self.load(timings) and all([self.time(timing) for timing in timings])

    def drop(self, timing: _Timing) -> None:
        if timing.place in self._loaded:
            self._loaded.remove(timing.place)
            try:
                self._call("drop", timing.place)
            except NetworkError:  # the worker was lost since, by no fault of a network
                self._loaded.clear()


@contextmanager
def open_worker(device: Device, engine: str, fixed: bool = True, kept: bool = False) -> Iterator[RecoveringWorker]:
    """A worker of a device, which starts when a network is timed; see `time_networks` for the engines."""
    opened = open_engine(engine, device, fixed)
    if engine != "ray":
        device.cpus()  # before any process is asked to run on them
    with opened as call:
        yield RecoveringWorker(call, kept)


class ExportError(NetworkError):
    """A network could not be made ready to be timed."""


def made(source: Source) -> Source:
    """The source that a device loads. A function, which may export, is called; for a new worker, it is called again."""
    if not callable(source) or hasattr(source, "forward"):
        return source
    try:
        return source()
    except (OSError, ImportError):  # of the disk or of missing packages, not of this network
        raise
    except Exception as error:
        raise ExportError(f"it could not be exported: {type(error).__name__}: {error}") from error


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
