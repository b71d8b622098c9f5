"""Measuring: networks timed on a device in rounds, beside a reference network that tells how the machine drifts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np

from predictors.devices import STATISTICS, Device
from predictors.engines import ENGINES, NetworkError
from predictors.runtimes import Source

ATTEMPTS = 2  # at a network that fails
TOO_NOISY = 0.015  # of the noise floor
VISITS = 8  # measurements of a network that a predictor learns from
COPIES = 3  # of the reference
TRIES, DRIFTED = 3, 1.15  # see `judged`


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one network took on one device, in ms, as the clock gave it: statistics over all runs of all rounds.

    Those of the network named `reference` are of its runs at both ends of the same rounds; each as `quiet` of its runs
    in a single round, the one where it was least; both are means over its copies. Where there was no such network, the
    name is empty and they are 0.
    """

    min: float
    p10: float
    median: float
    p90: float
    noise: float  # relative difference in p10 between the first and the last half of the rounds, drift divided out
    reference_min: float
    reference_p10: float
    reference_median: float
    reference_p90: float
    quiet_min: float
    quiet_p10: float
    quiet_median: float
    quiet_p90: float
    rounds: int
    runs: int  # in a round
    reference: str
    taken: str  # when its first round began, UTC
    device: Mapping[str, Any]  # the description and the fingerprint

    @classmethod
    def of(
        cls,
        times: Sequence[Sequence[float]],
        reference: str,
        reference_times: Sequence[Sequence[Sequence[float]]],
        taken: str,
        device: Mapping[str, Any],
    ) -> Measurement:
        """From the times (rounds, runs) of the network, and those (rounds, copies, runs) of the reference, if there is
        one."""
        half = len(times) // 2
        first, last = statistic_of(times[:half], "p10"), statistic_of(times[-half:], "p10")
        if reference:
            first /= statistic_of_copies(reference_times[:half], "p10")
            last /= statistic_of_copies(reference_times[-half:], "p10")
        rounds = reference_times if reference else (((0.0,),),)
        return cls(
            **{name: statistic_of(times, name) for name in STATISTICS},
            noise=2 * abs(first - last) / (first + last),
            **{f"reference_{name}": statistic_of_copies(rounds, name) for name in STATISTICS},
            **{f"quiet_{name}": statistic_of_copies(rounds, name, quiet=True) for name in STATISTICS},
            rounds=len(times),
            runs=len(times[0]),
            reference=reference,
            taken=taken,
            device=device,
        )


@dataclasses.dataclass(frozen=True)
class Failure:
    """A network that could not be timed, and why: the reason of every attempt."""

    reasons: tuple[str, ...]
    taken: str  # when it was given up, UTC
    device: Mapping[str, Any]  # the description and the fingerprint


def statistic_of(times: Sequence[Sequence[float]], statistic: str) -> float:
    """One of `STATISTICS` of all runs of all rounds."""
    return float(np.percentile(times, STATISTICS[statistic]))


def statistic_of_copies(times: Sequence[Sequence[Sequence[float]]], statistic: str, quiet: bool = False) -> float:
    """The mean over copies of one of `STATISTICS` of all runs of all rounds, or, if `quiet`, of the runs of the round
    where it is least; times (rounds, copies, runs)."""
    if quiet:
        return float(np.percentile(times, STATISTICS[statistic], axis=2).min(axis=0).mean())
    return float(np.percentile(times, STATISTICS[statistic], axis=(0, 2)).mean())


def undisturbed(measurements: Iterable[Measurement], statistic: str) -> dict[str, float]:
    """What each reference network takes, in ms, when nothing else disturbs the machine: the tenth percentile over all
    measurements given of its latency in their quietest rounds. Its runs at the ends of a round take some ms, so that
    even on a busy machine some are quiet, where the median of all never is."""
    seen: dict[str, list[float]] = {}
    for m in measurements:
        if m.reference:
            seen.setdefault(m.reference, []).append(getattr(m, f"quiet_{statistic}"))
    return {reference: float(np.percentile(values, 10)) for reference, values in seen.items()}


def latencies(
    measurements: Iterable[Measurement], statistic: str, quiet: Mapping[str, float] | None = None
) -> np.ndarray:
    """The latencies (n,) in ms of n measurements, with drift divided out.

    A machine that is busy or slowed down for a while slows the reference network alike. Each measurement is divided by
    that same statistic of the reference in its rounds, and multiplied by the reference's undisturbed one: `quiet`, or
    that of the measurements given. Those taken without a reference stay as they are.
    """
    measurements = list(measurements)
    quiet = undisturbed(measurements, statistic) if quiet is None else quiet
    y = np.array([getattr(m, statistic) for m in measurements])
    for i, m in enumerate(measurements):
        if m.reference:
            y[i] *= quiet[m.reference] / getattr(m, f"reference_{statistic}")
    return y


def least_latencies(networks: Iterable[Sequence[Measurement]], quiet: Mapping[str, float] | None = None) -> np.ndarray:
    """The latency (n,) in ms of each network, from several measurements: the mean over the lower half of them of the
    p10, drift divided out as by `latencies`. What a predictor is fitted on.

    Other programs slow a network down for seconds to minutes, so that of measurements some time apart the lower ones
    were disturbed less; but where it was the reference that was disturbed, the lowest is too low. A burst
    changes the p10 less than the median, and the single runs of which a min consists repeat less well. With the median
    of the reference as `quiet` it is in terms of that: a network's median is to the reference's as its p10 is.
    """
    networks = [list(measurements) for measurements in networks]
    every = latencies([m for measurements in networks for m in measurements], "p10", quiet)
    seen = np.split(every, np.cumsum([len(measurements) for measurements in networks]))
    return np.array([np.sort(ms)[: (len(ms) + 1) // 2].mean() for ms in seen[: len(networks)]])


def judged(measurements: Iterable[Measurement], statistic: str, quiet: Mapping[str, float]) -> list[Measurement]:
    """Those measurements of a network by which a budget is judged, one after the other.

    One in whose rounds the reference took more than `DRIFTED` times what it takes undisturbed (`quiet`) does not count:
    so much is not divided out. Nor does one whose statistic is that much further above its own min than the reference's
    is in its quietest round: a network may be slowed down more than the reference, as a large one by programs that
    share its cache. Of `TRIES` in a row the least disturbed one counts whatever it was.
    """

    def drift(m: Measurement) -> float:
        if not m.reference:
            return 1.0
        spread = (getattr(m, statistic) / m.min) / (getattr(m, f"quiet_{statistic}") / m.quiet_min)
        return max(getattr(m, f"reference_{statistic}") / quiet[m.reference], spread)

    counted: list[Measurement] = []
    tried: list[Measurement] = []
    for m in measurements:
        tried.append(m)
        if drift(m) <= DRIFTED or len(tried) == TRIES:
            counted.append(min(tried, key=drift))
            tried = []
    return counted


def repeats(measurements: Sequence[Measurement]) -> float:
    """How well the measurements of one network repeat: by how much what every other one tells (`least_latencies`) and
    what those in between tell differ, relative; the halves of the rounds, where there is one measurement."""
    if len(measurements) == 1:
        return measurements[0].noise
    a, b = least_latencies([measurements[::2], measurements[1::2]])
    return float(2 * abs(a - b) / (a + b))


def noise_floor(networks: Iterable[Sequence[Measurement]]) -> float:
    """How well the measurements of networks repeat: the median over the networks. Above `TOO_NOISY` the machine is too
    busy to be measured."""
    return float(np.median([repeats(measurements) for measurements in networks]))


def measure(
    device: Device,
    networks: Mapping[str, Source] | Iterable[tuple[str, Source]],
    reference: tuple[str, Source] | None = None,
    *,
    group: int = 20,
    seed: int = 0,
    engine: str = "thread",
    fresh: bool = False,
    session: Session | None = None,
) -> Iterator[tuple[str, Measurement | Failure]]:
    """Time networks on a device; yields (key, Measurement) as soon as a network has had all its rounds.

    Networks are read lazily (a source may be a function that exports on demand), `group` at a time: these are loaded,
    then timed in rounds of all of them, each in a random order. The `reference` (its name, its source) runs at both
    ends of every round, so that `latencies` can divide out drift. Where in memory a network comes to lie changes what
    it takes by some percent, and where the reference does changes what is told of all others: it is loaded `COPIES`
    times. While a group would wait for its next round, the rounds of other groups take place.

    Where networks run is the `engine`: "thread", a pinned thread of this process; "process", one for each group, that a
    network may crash, hang or fill, or break for the reference: it is then tried once more, alone, and yields (key,
    Failure) if that fails, too, as where it cannot be exported; no other network loses a round; or "ray", such a
    process on the machine of a Ray cluster that has the device. With `fresh` every round is by another process, which
    loads each network and the reference once, at random addresses as other programs have them: what one process takes
    differs from what the next one does, more than its own runs tell. A source that is not what the device times raises
    ValueError, TypeError or OSError; a reference that fails, NetworkError.

    With a `session` of this device, which may differ in its number of rounds, networks run in the session's process.
    A network that a call before has loaded there by the same key is not loaded again.
    """
    rng = np.random.default_rng(seed)
    arriving = iter(networks.items() if isinstance(networks, Mapping) else networks)
    with open_session(device, engine, not fresh) if session is None else nullcontext(session) as session:
        description = dataclasses.asdict(device) | session.fingerprint()
        beside = _Reference(*(reference or ("", None)), 0 if reference is None else 1 if fresh else COPIES)
        groups, again, first = [], [], True  # those whose rounds take place now, and what failed once
        if not session.fast:
            session.restart()
        while True:
            if not groups or (session.fast and not fresh and _leave_room(groups, device)):
                some = [_Timing(*network) for network in islice(arriving, group)]
                alone = not some and not groups and bool(again)
                if some or alone:
                    if (
                        not groups
                        and not first
                        and engine != "thread"
                        and (alone or not (session.kept and session.fast))
                    ):
                        session.restart()
                    groups.append(_Group([again.pop()] if alone else some))
                first = False
            if not groups:
                return
            for one in list(groups):
                if one.next:  # it has had a round
                    time.sleep(max(0.0, one.next - time.perf_counter()))
                one.next = time.perf_counter() + device.spacing
                if fresh:
                    session.restart()
                one.seconds = _run_round(session, one.active, beside, rng, again)
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
                    if timing.failures or not session.kept:
                        session.drop(timing)
                if not one.active:
                    groups.remove(one)
                    session.fast = one.seconds <= device.spacing


class _Group:
    """Networks that are timed in the same rounds."""

    def __init__(self, active: list[_Timing]) -> None:
        self.active = active
        self.next, self.seconds = 0.0, 0.0  # when the next round may begin; how long the last one lasted


def _leave_room(groups: Sequence[_Group], device: Device) -> bool:
    """Whether the rounds of all these groups leave time for those of another group until the first one's next."""
    spent = [one.seconds for one in groups]
    return min(spent) > 0 and sum(spent) * (len(spent) + 1) / len(spent) <= device.spacing


def _run_round(
    session: Session, active: list[_Timing], beside: _Reference, rng: np.random.Generator, again: list[_Timing]
) -> float:
    """Have a group run once, the reference before and after it, and note the times, or what failed; returns how many
    seconds it took once all were loaded, 0 where not all were."""
    copies, taken, timed, began = beside.copies, now(), [], math.inf
    for copy in copies:
        copy.failed = False
    if session.load((*copies, *active)):
        began = time.perf_counter()
        before = [session.time(copy) for copy in copies]
        order = rng.permutation(len(active))
        timed = [(active[i], times) for i in order if (times := session.time(active[i]))]
        after = [session.time(copy) for copy in copies]
        if not all(before + after):  # a network took the process along, or the reference itself
            timed = []
        broken = [copy for copy in copies if copy.failed]  # each ran when it was loaded
        if broken and len(active) > 1:  # so one of these may have broken it: each is tried alone
            again.extend(active)
            active.clear()
            broken[0].failures.clear()
        elif broken and session.run_alone(copies):
            active[0].fail(f"beside it the reference: {broken[0].failures.pop()}", broken[0].error)
    for timing, times in timed:
        timing.taken = timing.taken if timing.times else taken
        timing.times.append(times)
        timing.reference_times.append([first + last for first, last in zip(before, after)])
    for copy in copies:
        if len(copy.failures) >= ATTEMPTS:
            told = f"the reference network {beside.name} failed: {'; '.join(copy.failures)}"
            raise NetworkError(told) from copy.error
        if timed:
            copy.failures.clear()
    return max(0.0, time.perf_counter() - began)


class _Timing:
    """A network, its rounds so far and why attempts at it failed."""

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
        """Note an attempt that failed; its rounds are lost."""
        self.failures.append(reason)
        self.failed, self.error = True, error
        self.times.clear()
        self.reference_times.clear()


class _Reference:
    """The network that is timed at both ends of every round, in so many copies."""

    def __init__(self, name: str, source: Source, copies: int) -> None:
        self.name = name
        self.copies = [_Timing(name, source, f"copy {i} of {name}") for i in range(copies)]


class Session:
    """Has networks timed by a worker that may be lost; what it had loaded is then loaded again.

    One that is `kept` keeps networks loaded until it is closed, for the next call of `measure`, as long as their rounds
    are `fast`: they end within the device's spacing.
    """

    def __init__(self, call: Callable[..., Any], kept: bool = False) -> None:
        self._call, self._loaded = call, set()
        self.kept, self.fast = kept, True

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the machine on which networks run."""
        return self._call("fingerprint")

    def load(self, timings: Iterable[_Timing]) -> bool:
        """Have networks loaded that are not, up to the first that fails, which is noted; whether all are."""
        for timing in timings:
            if timing.place not in self._loaded:
                with self._noting(timing):
                    self._call("load", timing.place, made(timing.source))
                    self._loaded.add(timing.place)
            if timing.place not in self._loaded:
                return False
        return True

    def time(self, timing: _Timing) -> tuple[float, ...]:
        """One round of a network: its times, or () where it fails, which is noted, or was lost with another one."""
        if timing.place in self._loaded:
            with self._noting(timing):
                return self._call("time", timing.place)
        return ()

    @contextmanager
    def _noting(self, timing: _Timing) -> Iterator[None]:
        try:
            yield
        except NetworkError as error:
            if not isinstance(error, ExportError):  # else the worker is as it was
                self._loaded.clear()
            timing.fail(str(error), error)
        except Exception as error:
            error.add_note(f"while timing {timing.key}")
            raise

    def restart(self) -> None:
        """Go on in another process."""
        with suppress(NetworkError):  # the worker was lost since
            self._call("end")
        self._loaded.clear()
        self.fast = True

    def run_alone(self, timings: Sequence[_Timing]) -> bool:
        """Whether these run in another process, without what was loaded."""
        self.restart()
        return self.load(timings) and all([self.time(timing) for timing in timings])

    def drop(self, timing: _Timing) -> None:
        if timing.place in self._loaded:
            self._loaded.remove(timing.place)
            try:
                self._call("drop", timing.place)
            except NetworkError:  # the worker was lost since, and nobody's network did it
                self._loaded.clear()


@contextmanager
def open_session(device: Device, engine: str, fixed: bool = True, kept: bool = False) -> Iterator[Session]:
    """A session of a device, whose worker starts when a network is timed; see `measure` for the engines."""
    if engine not in ENGINES:
        raise ValueError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}")
    if engine != "ray":
        device.cpus()  # before any process is asked to run on them
    with ENGINES[engine](device, fixed=fixed) as call:
        yield Session(call, kept)


class ExportError(NetworkError):
    """A network could not be made ready to be timed."""


def made(source: Source) -> Source:
    """What a device loads: of a function, which may export and is asked again for a fresh worker, what it gives."""
    if not callable(source) or hasattr(source, "forward"):
        return source
    try:
        return source()
    except (OSError, ImportError):  # of the disk or of what is installed, and not of this network
        raise
    except Exception as error:
        raise ExportError(f"it could not be exported: {type(error).__name__}: {error}") from error


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
