"""The timer: latencies of networks as files on one device, each measured once and remembered in the store."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import t as student

from predictors.devices import LEAST_ROUNDS, LEAST_RUNS, Device
from predictors.engines import NetworkError, open_engine
from predictors.ledger import Ledger
from predictors.runtimes.session import Source
from predictors.statistics import Failure, Measurement, accepted, latencies, noise_floor, robust_latencies, undisturbed
from predictors.store import Store, digest
from predictors.timing import ATTEMPTS, COPIES, RecoveringWorker, now, open_worker, time_networks
from supernet.progress import progress

APART = 4  # sessions of a network start at least this many times the device's spacing apart
LEVEL = 0.99  # of the interval of a ratio of latencies
WAITING = "waiting between sessions"  # a stage of the ledger


@dataclasses.dataclass(frozen=True)
class Target:
    """A network in the form in which it is timed.

    Args:
        key: the identity of the network and of the programs that wrote its file.
        source: what the device loads, or a function that makes it.
        failure_key: the identity by which failures are stored.
        network: what a caller's `prepare` needs to write the files of several targets at once.
    """

    key: str
    source: Source
    failure_key: str
    network: Any = None


class Baseline(dict[str, float]):
    """The undisturbed latency in ms of the reference network, by the reference's key.

    `Timer.samples` returns it. All later latencies of a search are divided by the drift relative to this one value, so
    that they are on one scale.
    """


class Timer:
    """Times targets on a device beside a reference network. What the store knows is not measured again.

    Args:
        device: the runtime and the protocol.
        store: where measurements and failures are kept.
        reference: the network that is timed at both ends of every round, in `COPIES` copies.
        engine: an entry of `predictors.engines.ENGINES`.
        prepare: called with targets before they are timed, for example to write their files in parallel.
        ledger: the seconds that are spent are added to its stages.
    """

    def __init__(
        self,
        device: Device,
        store: Store,
        reference: Target,
        *,
        engine: str = "process",
        prepare: Callable[[Sequence[Target]], None] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.device, self.store, self.engine = device, store, engine
        self.ledger = ledger or Ledger()
        self._reference, self._prepare = reference, prepare
        self._worker: RecoveringWorker | None = None  # see `_staying`

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the machine that has the device."""
        if self.engine == "process":
            return self.device.fingerprint()
        try:
            with open_engine(self.engine, self.device) as call:
                return call("fingerprint")
        except NetworkError as error:
            raise ValueError(f"{self.device.name}: {error}") from error

    @cached_property
    def device_id(self) -> str:
        """The identity of the device on this machine: latencies of equal ids are comparable."""
        return self.device.id_on(self.fingerprint)

    @cached_property
    def reference_key(self) -> str:
        """The name of the reference in measurements."""
        return digest([self._reference.key, COPIES])

    # ---- samples: what predictors learn from

    def samples(
        self,
        targets: Sequence[Target],
        what: str,
        *,
        sessions: int | None = None,
        meanwhile: Iterator[None] | None = None,
    ) -> tuple[np.ndarray, Baseline]:
        """The latencies (n,) in ms of n targets, with drift divided out, and the baseline; inf for a target that fails.

        A target is timed in several sessions: the device's number, or only the first `sessions`. The sessions are some
        seconds apart, so that a disturbance that lasts for seconds affects only some of them. Each session has an
        order of its own, because a disturbance affects neighbours in that order alike. One step of `meanwhile` is
        taken between two sessions. `what` is shown as progress.
        """
        last = -math.inf
        with self._staying():
            for session in range(sessions or self.device.sessions):
                order = np.random.default_rng(session).permutation(len(targets)) if session else range(len(targets))
                due = [targets[i] for i in order if len(self.sessions(targets[i])) <= session]
                due = [target for target in due if not self.failures(target)]
                if due and session:
                    next(meanwhile or iter(()), None)
                    self._wait(last)
                last = time.perf_counter()
                self._time(due, f"{what}, again" if session else what, rounds=self._session_rounds)
        records = [self.sessions(target, sessions) for target in targets]
        ran = [bool(measurements) for measurements in records]
        records = list(filter(None, records))
        baseline = Baseline(undisturbed((m for some in records for m in some), self.device.statistic))
        ms = np.full(len(targets), np.inf)
        ms[ran] = robust_latencies(records, baseline)
        return ms, baseline

    def sessions(self, target: Target, n: int | None = None) -> Sequence[Measurement]:
        """The first n sessions of a target, the device's number if left out: later ones change no known latency."""
        records = self._records(target)
        return [m for m in records if m.rounds == self._session_rounds][: n or self.device.sessions]

    def noise_floor(self, targets: Iterable[Target], sessions: int | None = None) -> float:
        """How well the latencies of timed targets repeat, as a relative difference."""
        return noise_floor(self.sessions(target, sessions) for target in targets)

    def fastest_run(self, target: Target) -> float:
        """The fastest single run in ms of a target; inf if it was not timed."""
        return min((m.min for m in self.sessions(target)), default=math.inf)

    def busy_seconds(self, targets: Sequence[Target], sessions: int) -> float:
        """The seconds that the device is busy with all sessions of targets, extrapolated from the first `sessions`.

        Seconds in which an answer was awaited in vain count, too.
        """
        known = [m for target in targets for m in self.sessions(target, sessions)]
        reasons = [reason for target in targets for reason in self.failures(target)]
        waited = sum(float(found[1]) for why in reasons if (found := re.search(r"no answer in ([\d.]+) s", why)))
        ran = sum(m.rounds * (m.runs + self.device.warmup) * m.median / 1e3 for m in known)
        return waited + ran * self.device.sessions / sessions

    # ---- two files of one network

    def ratios(self, targets: Sequence[Target], beside: Sequence[Target], what: str) -> list[list[float]]:
        """The latency of each target over the latency of the target `beside` it, once a session; failures are left out.

        Both are timed in the same rounds, in half as many sessions as samples.
        """
        pairs, last = list(zip(targets, beside, strict=True)), -math.inf
        with self._staying():
            for session in range(sessions := (self.device.sessions + 1) // 2):
                due = [pair for pair in pairs if len(self._ratios(*pair)) <= session and not self.failures(pair[0])]
                if due and session:
                    self._wait(last)
                last = time.perf_counter()
                both = [target for pair in due for target in pair]
                self._time(both, f"{what}, again" if session else what, rounds=self._session_rounds)
        return [ratios[:sessions] for pair in pairs if (ratios := self._ratios(*pair))]

    def _ratios(self, target: Target, beside: Target) -> list[float]:
        rounds = self._session_rounds
        others = {m.taken: m for m in self._records(beside) if m.rounds == rounds}
        own = [m for m in self._records(target) if m.rounds == rounds and m.taken in others]
        return [m.p10 / others[m.taken].p10 for m in own]

    # ---- finalists: what budgets are compared with

    def final(self, targets: Sequence[Target], baseline: Baseline, what: str) -> np.ndarray:
        """The latencies (n,) in ms of n targets by the device's statistic, of each the first accepted measurement.

        Drift is divided out. inf for a target that fails.
        """
        return np.array([ms for ms, _ in self._accepted(targets, baseline, "latency", what)])

    def confirm(self, target: Target, baseline: Baseline) -> tuple[float, float]:
        """A second, independent measurement: latency in ms with drift divided out, and as the clock reported it.

        Each round is in a new process with random memory addresses, as in the programs that will run the file.
        """
        ((ms, clock_ms),) = self._accepted([target], baseline, "confirmation", "confirming")
        return ms, clock_ms

    def _accepted(
        self, targets: Sequence[Target], baseline: Baseline, table: str, what: str
    ) -> list[tuple[float, float]]:
        """Of each target the latency by its first accepted measurement in a table of the store, and the clock's."""
        statistic = self.device.statistic

        def known(target: Target) -> list[Measurement]:
            records = [m for m in self._records(target, table) if m.rounds == self.device.rounds]
            return accepted(records, statistic, baseline, self.device.tries)

        while due := [target for target in targets if not known(target) and not self.failures(target)]:
            self._time(due, what, table)
            what = what.removesuffix(", again") + ", again"
        firsts = [known(target)[:1] for target in targets]
        return [
            (float(latencies(first, statistic, baseline)[0]), getattr(first[0], statistic))
            if first
            else (math.inf, math.inf)
            for first in firsts
        ]

    # ---- failures

    def failures(self, target: Target) -> list[str]:
        """Why a target failed on the device, a reason for each attempt."""
        key = target.failure_key, self.device_id
        return [reason for failure in self.store.get("failure", [key]).get(key, []) for reason in failure["reasons"]]

    def reasons(self, targets: Iterable[Target]) -> str:
        """The different reasons for which targets failed, for a message."""
        return "; ".join(sorted({reason for target in targets for reason in self.failures(target)}))

    def attempt(self, target: Target, what: str, ask: Callable[[], Any]) -> Any:
        """The result of `ask`, which runs the target on the device and may fail once.

        NetworkError if it fails twice, now or in an earlier call: the failure is stored under `what`.
        """
        key = (target.failure_key, digest([self.device_id, what]))
        if failures := self.store.get("failure", [key]).get(key):
            raise NetworkError(failures[0]["reasons"][-1])
        reasons: list[str] = []
        while len(reasons) < ATTEMPTS:
            try:
                return ask()
            except NetworkError as error:
                reasons.append(str(error))
        device = dataclasses.asdict(self.device) | self.fingerprint
        self.store.add("failure", key, dataclasses.asdict(Failure(tuple(reasons), now(), device)))
        raise NetworkError(reasons[-1])

    # ---- measuring

    @property
    def _session_rounds(self) -> int:
        """The rounds of a session: half of the device's, but no fewer than a device may have."""
        least = max(LEAST_ROUNDS, math.ceil(LEAST_RUNS / self.device.runs))
        return min(max(self.device.rounds // 2, least), self.device.rounds)

    def _records(self, target: Target, table: str = "latency") -> list[Measurement]:
        """The measurements of a target beside this reference, oldest first."""
        key = target.key, self.device_id
        records = [Measurement(**record) for record in self.store.get(table, [key]).get(key, [])]
        return [m for m in records if m.reference == self.reference_key]

    def _wait(self, last: float) -> None:
        with self.ledger.spending(WAITING):
            time.sleep(max(0.0, last + APART * self.device.spacing - time.perf_counter()))

    @contextmanager
    def _staying(self) -> Iterator[None]:
        """Networks that are timed in this context stay loaded in one process, which waits between sessions."""
        if self._worker is not None or self.engine != "process":
            yield
            return
        with open_worker(self.device, self.engine, kept=True) as self._worker:
            try:
                yield
            finally:
                self._worker = None

    def _time(self, targets: Sequence[Target], what: str, table: str = "latency", rounds: int | None = None) -> None:
        """Time targets in some rounds, the device's number if left out, and store the results as they arrive."""
        if not targets:
            return
        new_processes = table == "confirmation"
        expected = self.fingerprint | ({"layout": "random"} if new_processes else {})
        if self._prepare is not None:
            self._prepare([*targets, self._reference])
        by_key = {target.key: target for target in targets}
        try:
            with self.ledger.spending(what.removesuffix(", again")):
                timed = time_networks(
                    dataclasses.replace(self.device, rounds=rounds or self.device.rounds),
                    ((key, target.source) for key, target in by_key.items()),
                    (self.reference_key, self._reference.source),
                    engine=self.engine,
                    new_process_per_round=new_processes,
                    worker=None if new_processes else self._worker,
                )
                for key, result in progress(timed, len(by_key), what):
                    if any(result.device[name] != value for name, value in expected.items() if name != "cpus"):
                        raise ValueError(
                            f"{self.device.name}: this result comes from another machine than the others:"
                            f" {result.device}"
                        )
                    record = dataclasses.asdict(result)
                    if isinstance(result, Failure):
                        self.store.add("failure", (by_key[key].failure_key, self.device_id), record)
                    else:
                        self.store.add(table, (key, self.device_id), record)
        except NetworkError as error:
            raise ValueError(f"{self.device.name}: {error}") from error


def ratio_interval(networks: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The geometric mean of ratios, and the bounds of its interval of the level `LEVEL`.

    `networks` has the ratios of each network. Networks may have different ratios, so the spread is that within each
    network. With a single ratio of each network the spread is unknown, and the interval is (0, inf).
    """
    logs = [np.log(ratios) for ratios in networks]
    every = np.concatenate(logs)
    mean, freedom = float(every.mean()), len(every) - len(logs)
    if freedom == 0:
        return math.exp(mean), 0.0, math.inf
    variance = sum(float(((values - values.mean()) ** 2).sum()) for values in logs) / freedom
    reach = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance / len(every))
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)


def known_sessions(
    store: Store, device_id: str, keys: Sequence[str], before: int | None, sessions: int
) -> Mapping[int, list[Measurement]]:
    """The stored measurements of networks on a device, by the place of their key; those that have any.

    Only the first `sessions` of each, and only those stored `before` a place in the store.
    """
    records = store.get("latency", [(key, device_id) for key in keys], before=before)
    return {
        i: [Measurement(**record) for record in records[key, device_id][:sessions]]
        for i, key in enumerate(keys)
        if (key, device_id) in records
    }
