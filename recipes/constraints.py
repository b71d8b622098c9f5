"""CONSTRAINTS: what may be bounded of a network, each predicted for a search and measured on the exported file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.values import MIN_SAMPLES, PROXY, RELEASE
from supernet.values import real

if TYPE_CHECKING:
    from recipes.lab.lab import Lab
    from recipes.lab.sampling import TimedSamples

CONFIDENCE = 0.9  # of the intervals by whose upper ends the first round of a search goes
MARGIN = 1.25  # by how much the smallest network may exceed a bound before a search is refused at once
POOL = 1000  # networks whose closed forms are looked at for that
MEMORY_MEASUREMENTS = 2  # of a delivered file
LATENCY = "latency_ms"
Limit = tuple[Callable[[np.ndarray], np.ndarray], float]  # a cost of rows X, and its bound


class Bounds(dict[str, float]):
    """{name of a constraint: the largest value that a network may have}, latency first.

    `Bounds(latency_ms=0.25, file_mb=1.0)`. ValueError for a name that `CONSTRAINTS` lacks, or a bound that is not a
    positive number.
    """

    def __init__(self, latency_ms: float, **others: float | None) -> None:
        given = {LATENCY: latency_ms} | {name: bound for name, bound in others.items() if bound is not None}
        for name, bound in given.items():
            if name not in CONSTRAINTS:
                raise ValueError(f"bound: {name!r} is not one of {', '.join(CONSTRAINTS)}")
            if not 0 < (value := real(f"max_{name}", bound)) < math.inf:
                raise ValueError(f"max_{name} = {bound} is not a positive number")
            self[name] = value

    @property
    def latency_ms(self) -> float:
        """The budget in ms."""
        return self[LATENCY]


@dataclasses.dataclass(eq=False)
class Deployed:
    """A network as its exported file: what was measured of it; it gains measurements while it may be chosen.

    Args:
        row: its row of X.
        config: its config.
        found_for: the budget in ms that it was found for.
        measured: {constraint: its measurements, inf where the network fails}. All must keep the bound.
        predicted: {constraint or metric: the value that was predicted before it was measured}.
        metrics: {metric: value} on the selection split, computed by torch.
        file_metrics: the same, computed by the exported file in its runtime; empty until it is evaluated.
        clock_ms: the last latency as the clock reported it, drift included.
        failed: why it cannot be chosen; None if nothing failed.
    """

    row: tuple[float, ...]
    config: Any
    found_for: float
    measured: dict[str, tuple[float, ...]]
    predicted: dict[str, float]
    metrics: dict[str, float]
    file_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    clock_ms: float | None = None
    failed: str | None = None

    @property
    def latency_ms(self) -> float:
        """The larger of its measured latencies."""
        return math.inf if self.failed else max(self.measured[LATENCY])

    @property
    def ran(self) -> bool:
        """Whether it ran on the device."""
        return math.isfinite(self.measured[LATENCY][0])

    @property
    def confirmed(self) -> bool:
        """Whether its latency was measured a second time."""
        return len(self.measured[LATENCY]) > 1

    def violates(self, bounds: Mapping[str, float]) -> bool:
        """Whether a measurement exceeds its bound."""
        return self.failed is not None or any(max(self.measured[name]) > bound for name, bound in bounds.items())


class Constraint:
    """A bound on one property of a network. A subclass predicts the property, and measures it.

    Args:
        lab: whose networks are bounded.
        name: of the property, an entry of `CONSTRAINTS`; a name ends in its unit.
        bound: the largest value that a network may have.
        samples: networks that were timed, on which a predictor may be fitted.
    """

    def __init__(self, lab: Lab, name: str, bound: float, samples: TimedSamples) -> None:
        self.name, self.bound = name, bound

    @classmethod
    def refuse(cls, lab: Lab, name: str, bound: float) -> None:
        """Raise ValueError where it is quickly seen that no network keeps the bound; before samples are timed."""

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The predicted values (n,) of the rows of X."""
        raise NotImplementedError

    def cautious(self, X: np.ndarray) -> np.ndarray:
        """The upper ends (n,) of the intervals in which values are predicted to lie; exact values have none."""
        return self.predict(X)

    def limit(self, cautious: bool) -> Limit:
        """The cost and the bound that a search keeps."""
        return self.cautious if cautious else self.predict, self.bound

    def measure(self, lab: Lab, X: np.ndarray) -> list[tuple[float, ...]]:
        """The measured values of the delivered file of each row of X: one or more, inf where it cannot be measured.

        A network keeps the bound if all of them do.
        """
        return [(float(value),) for value in self.predict(X)]

    def confirm(self, lab: Lab, deployed: Deployed) -> None:
        """Add measurements that only a network that may be chosen is worth."""

    def learn(self, deployed: Iterable[Deployed]) -> None:
        """Correct the predictor by all networks that were measured as delivered files."""

    def identity(self) -> Any:
        """All that decides `predict`, as a value that can be pickled: an equal search is not made again."""
        return type(self), self.name, self.bound, getattr(self, "_model", None)


class Exact(Constraint):
    """A closed form of the supernet's costs: macs, params."""

    def __init__(self, lab: Lab, name: str, bound: float, samples: TimedSamples) -> None:
        super().__init__(lab, name, bound, samples)
        self._terms = lab.supernet.cost_terms
        refuse_below(name, bound, float(self.predict(samples.X).min()), len(samples.X))

    @classmethod
    def refuse(cls, lab: Lab, name: str, bound: float) -> None:
        ends = lab.space.encode([lab.space.smallest(), lab.space.largest()])
        X = np.concatenate([ends, lab.space.sample(POOL, np.random.default_rng(0))])
        least = float(lab.supernet.costs(X)[name].min())
        if bound < least:
            raise ValueError(
                f"{name} = {bound:g} cannot be met: the smallest value among {len(X)} networks is {least:g}. Give at"
                " least that"
            )

    def predict(self, X: np.ndarray) -> np.ndarray:
        return sum(values for name, values in self._terms(X).items() if name.startswith(f"{self.name}."))


class Measured(Constraint):
    """A property that is measured on proxies of the samples, predicted, and measured on delivered files."""

    def __init__(self, lab: Lab, name: str, bound: float, samples: TimedSamples) -> None:
        super().__init__(lab, name, bound, samples)
        from predictors.latency import LatencyPredictor

        self._model = LatencyPredictor(terms=lab.supernet.cost_terms)
        y = self.of_proxies(lab, samples.X)
        measured = np.isfinite(y)
        self._X, self._y = samples.X[measured], y[measured]
        if len(self._y) < min(MIN_SAMPLES, len(samples.X)):
            raise ValueError(f"{name}: of {len(samples.X)} networks only {len(self._y)} could be measured")
        self._model.fit(self._X, self._y)
        least = min(self.predict(samples.X).min(), self._y.min(initial=math.inf))
        refuse_below(name, bound, float(least), len(samples.X))

    @classmethod
    def refuse(cls, lab: Lab, name: str, bound: float) -> None:
        smallest = lab.space.encode([lab.space.smallest()])
        (mb,), margin = cls.of_smallest(lab, smallest)
        if math.isfinite(mb) and bound * margin < mb:
            raise ValueError(
                f"{name} = {bound:g} cannot be met: the smallest network has {mb:.3g} MB. Give at least that"
            )

    @classmethod
    def of_smallest(cls, lab: Lab, X: np.ndarray) -> tuple[np.ndarray, float]:
        """The value of the smallest network, and by how much it may exceed the bound."""
        return cls.of_proxies(lab, X), MARGIN

    @classmethod
    def of_proxies(cls, lab: Lab, X: np.ndarray) -> np.ndarray:
        """The measured values (n,) of proxies of the rows of X."""
        raise NotImplementedError

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self._model.predict(X)

    def learn(self, deployed: Iterable[Deployed]) -> None:
        known = {d.row: max(d.measured[self.name]) for d in deployed if d.ran}
        known = {row: value for row, value in known.items() if math.isfinite(value)}
        if known:
            self._model.fit(np.array([*self._X, *known]), np.array([*self._y, *known.values()]))


class FileSize(Measured):
    """The size of the exported files in MB (1e6 bytes)."""

    @classmethod
    def of_smallest(cls, lab: Lab, X: np.ndarray) -> tuple[np.ndarray, float]:
        return lab.file_mb(X, RELEASE), 1.0

    @classmethod
    def of_proxies(cls, lab: Lab, X: np.ndarray) -> np.ndarray:
        return lab.file_mb(X, PROXY)

    def measure(self, lab: Lab, X: np.ndarray) -> list[tuple[float, ...]]:
        return [(float(mb),) for mb in lab.file_mb(X, RELEASE)]


class Memory(Measured):
    """The memory in MB (1e6 bytes) by which a new process grows at most that loads the network and runs it once."""

    @classmethod
    def refuse(cls, lab: Lab, name: str, bound: float) -> None:
        lab.device.check_memory()
        super().refuse(lab, name, bound)

    @classmethod
    def of_proxies(cls, lab: Lab, X: np.ndarray) -> np.ndarray:
        return np.array([max(mb, default=math.inf) for mb in lab.memory_mb(X, PROXY, 1)])

    def measure(self, lab: Lab, X: np.ndarray) -> list[tuple[float, ...]]:
        n = MEMORY_MEASUREMENTS
        return [tuple(mb) if len(mb) == n else (math.inf,) for mb in lab.memory_mb(X, RELEASE, n)]


class Latency(Constraint):
    """The latency in ms of the exported file on the device, by the device's statistic.

    A network that may be chosen is confirmed: its file is timed again in new processes with random memory addresses.
    """

    def __init__(self, lab: Lab, name: str, bound: float, samples: TimedSamples) -> None:
        super().__init__(lab, name, bound, samples)
        self._samples, self._X, self._y = samples, samples.X, samples.ms
        self._model = samples.predictor().fit(samples.X, samples.ms)
        self._known: dict[tuple[float, ...], float] = {}
        self.corrections = 0  # networks that it has learned from, beside the samples
        if bound < min(samples.ms.min(), self.predict(samples.X).min()):
            fastest = samples.ms.argmin()
            config = lab.space.decode(samples.X[[fastest]])[0]
            raise ValueError(
                f"{bound:g} ms cannot be met: of the samples the fastest has a latency of {samples.ms[fastest]:.3f} ms,"
                f" {samples.ms[fastest] - bound:.3f} ms more than the budget: {config}"
            )

    @classmethod
    def refuse(cls, lab: Lab, name: str, bound: float) -> None:
        smallest = lab.space.encode([lab.space.smallest()])
        ((ms,), _), (target,) = (
            lab.time(smallest, PROXY, "timing the smallest network", sessions=1),
            lab.targets(smallest, PROXY),
        )
        fastest = lab.timer.fastest_run(target)
        if math.isfinite(ms) and bound * MARGIN < fastest:
            raise ValueError(
                f"the budget of {bound:g} ms cannot be met on {lab.device.name}: the smallest network has a latency of"
                f" {ms:.3f} ms, its fastest run {fastest:.3f} ms. Give at least {1.05 * ms:.3f} ms, or a faster device"
            )

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self._model.predict(X)

    def cautious(self, X: np.ndarray) -> np.ndarray:
        # Few rows give no interval of the wanted confidence. An interval without an upper end is beyond any budget.
        rows = len(self._model.cv_errors_)
        upper = self._model.interval(X, min(CONFIDENCE, (rows - 0.5) / (rows + 1)))[1]
        return np.minimum(upper, 1e6 * self.bound)

    def measured_or(self, X: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """The measured latency of rows that were timed, and the predicted one of the others."""
        known = dict(zip(map(tuple, self._X), self._y)) | self._known
        return np.array([known.get(tuple(row), ms) for row, ms in zip(X, predicted)])

    @property
    def share(self) -> float:
        """The weight of other devices' latencies in the predictor."""
        return self._model.share_

    def measure(self, lab: Lab, X: np.ndarray) -> list[tuple[float, ...]]:
        targets = lab.targets(X, RELEASE)
        ms = lab.timer.final(targets, self._samples.baseline, "timing the exported files of the finalists")
        return [(float(value),) for value in ms]

    def confirm(self, lab: Lab, deployed: Deployed) -> None:
        if len(deployed.measured[self.name]) == 1:
            target = lab.files.target(deployed.config, RELEASE)
            ms, deployed.clock_ms = lab.timer.confirm(target, self._samples.baseline)
            deployed.measured[self.name] += (ms,)

    def learn(self, deployed: Iterable[Deployed]) -> None:
        # The first measurement, which a repeated call finds again, unless the second one missed the budget.
        self._known = {}
        for d in deployed:
            first, *again = d.measured[self.name]
            ms = max(first, *again) if again and again[0] > self.bound else first
            if math.isfinite(ms) and d.failed is None:
                self._known[d.row] = ms
        self.corrections = len(self._known)
        self._model.fit(np.array([*self._X, *self._known]), np.array([*self._y, *self._known.values()]))


CONSTRAINTS: dict[str, type[Constraint]] = {
    LATENCY: Latency,
    "macs": Exact,
    "params": Exact,
    "file_mb": FileSize,
    "memory_mb": Memory,
}


def refuse_below(name: str, bound: float, least: float, n: int) -> None:
    """Raise ValueError where a bound is below the least value of n networks."""
    if bound < least:
        raise ValueError(f"{name} = {bound:g} cannot be met: the least value of {n} networks is {least:g}")


@dataclasses.dataclass(frozen=True, eq=False)
class Constraints:
    """The constraints of one search.

    Args:
        latency: the constraint on latency.
        others: the constraints on other properties.
        samples: the networks that were timed.
    """

    latency: Latency
    others: tuple[Constraint, ...]
    samples: TimedSamples

    @property
    def all(self) -> tuple[Constraint, ...]:
        return (self.latency, *self.others)

    def limits(self, cautious: bool = False) -> list[Limit]:
        """The costs and bounds that a search keeps; `cautious` by the upper ends of predicted intervals."""
        return [constraint.limit(cautious) for constraint in self.all]

    def within(self, X: np.ndarray, cautious: bool) -> np.ndarray:
        """Which rows (n,) of X seem to keep all bounds; a timed row by its measured latency."""
        latency = self.latency
        keeps = latency.measured_or(X, latency.limit(cautious)[0](X)) <= latency.bound
        for constraint in self.others:
            keeps &= constraint.limit(cautious)[0](X) <= constraint.bound
        return keeps

    def identity(self) -> Any:
        """All that decides the limits; see `Constraint.identity`."""
        return [constraint.identity() for constraint in self.all]

    def learn(self, deployed: Iterable[Deployed]) -> None:
        """Correct all predictors by what was measured."""
        known = list(deployed)
        for constraint in (*self.others, self.latency):
            constraint.learn(known)


def constrain(lab: Lab, bounds: Mapping[str, float], samples: int | None, seed: int) -> Constraints:
    """Time samples and fit the predictors of all constraints; ValueError where a bound cannot be met."""
    quick = sorted(bounds, key=lambda name: not issubclass(CONSTRAINTS[name], Exact))  # closed forms cost nothing
    for name in quick:
        CONSTRAINTS[name].refuse(lab, name, bounds[name])
    timed = lab.samples(samples, seed)
    latency, *others = (CONSTRAINTS[name](lab, name, bound, timed) for name, bound in bounds.items())
    return Constraints(latency, tuple(others), timed)
