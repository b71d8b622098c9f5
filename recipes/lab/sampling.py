"""Which networks predictors learn from: networks that are timed, and networks that are evaluated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold, cross_val_predict

from predictors.accuracy import AccuracyPredictor
from predictors.latency import LatencyPredictor, d_optimal_order, has_converged, quality
from predictors.statistics import TOO_NOISY, robust_latencies
from predictors.timer import Baseline, known_sessions, ratio_interval
from recipes.formats import known_writers
from recipes.lab.keys import network_key
from recipes.values import FIRST_SAMPLES, FIRST_WITH_TRANSFER, MAX_EVALUATED, MAX_TIMED, MIN_SAMPLES, PROXY, RELEASE
from supernet.space import SearchSpace

STEP = 10  # networks that are timed between two looks at convergence
NEAR = 1.25  # times a bound, up to which evaluated networks teach a predictor about networks within the bound
PROXY_CHECKS, PROXY_TOLERANCE = 3, 0.02  # networks that proxies are checked on; how much their latency may differ


@dataclasses.dataclass(frozen=True)
class ProxyCheck:
    """The latency of delivered files over that of proxies: the mean ratio and the bounds of its interval."""

    ratio: float
    low: float
    high: float

    @property
    def faithful(self) -> bool:
        """Whether proxies may have the latency of delivered files, as far as the measurements show."""
        return self.low <= 1 + PROXY_TOLERANCE and self.high >= 1 - PROXY_TOLERANCE


@dataclasses.dataclass(frozen=True, eq=False)
class TimedSamples:
    """Networks that were timed on a device, for a latency predictor to learn from.

    Args:
        X: (n, genes), networks that ran; the first rows are the smallest and the largest network, if they ran.
        ms: (n,), latencies in ms with drift divided out.
        n: how many networks were timed, failed ones included.
        failed: how many of them failed.
        ends_ms: latency in ms of the smallest and of the largest network; inf for a network that failed.
        baseline: of all later latencies of this search.
        kind: PROXY or RELEASE, the files that were timed.
        noise_floor: how well latencies repeat, as a relative difference.
        terms: the supernet's cost terms.
        sources: fitted predictors of other devices, by name.
        check: how delivered files compare with proxies; None where that was not checked.
        rng_state: of the random generator after the networks were drawn; evaluated samples are drawn from there on.
    """

    X: np.ndarray
    ms: np.ndarray
    n: int
    failed: int
    ends_ms: tuple[float, float]
    baseline: Baseline
    kind: str
    noise_floor: float
    terms: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    sources: Mapping[str, FrozenEstimator]
    check: ProxyCheck | None
    rng_state: Mapping[str, Any]

    def predictor(self) -> LatencyPredictor:
        """A latency predictor that is not fitted."""
        return LatencyPredictor(terms=self.terms, sources=list(self.sources.values()))

    def spread_budgets(self, n: int) -> list[float]:
        """n budgets in ms, evenly spread on a log scale from just above the fastest network to the slowest."""
        return [float(f"{budget:.4g}") for budget in np.geomspace(1.05 * self.ms.min(), self.ms.max(), n)]

    @cached_property
    def quality(self) -> dict[str, Any]:
        """How well the predictor does on samples that it has not seen, by 5-fold cross-validation."""
        return held_out_quality(self.predictor(), self.X, self.ms, KFold(5))

    def rng(self) -> np.random.Generator:
        """A random generator that continues after the networks were drawn."""
        rng = np.random.default_rng(0)
        rng.bit_generator.state = dict(self.rng_state)
        return rng


def time_samples(
    lab: Any, samples: int | None, seed: int, most: int = MAX_TIMED, most_seconds: float = math.inf
) -> TimedSamples:
    """Time networks for a latency predictor: both ends of the space, then always the most informative of random ones.

    Args:
        lab: a `recipes.lab.Lab`.
        samples: how many networks; None times networks until more would not improve the predictor.
        seed: of the random networks.
        most: networks at most, if `samples` is None.
        most_seconds: no more networks after the device was busy for so long, if `samples` is None.

    Raises ValueError where hardly any network runs.
    """
    rng = np.random.default_rng(seed)
    pool = latency_rows(lab.space, max(most, MAX_EVALUATED, samples or 0), rng)  # the same for any `most`
    sources = other_devices(lab, pool)
    terms = lab.supernet.cost_terms
    pool = pool[d_optimal_order(np.stack(list(terms(pool).values()), axis=1), first=2)]
    X = pool[: most if samples is None else samples]
    n, kind, check = time_until_converged(lab, X, sources, samples, most_seconds)
    ms, baseline = lab.time(X[:n], kind, "timing samples")
    ran = np.isfinite(ms)
    floor = lab.timer.noise_floor(lab.targets(X[:n][ran], kind))
    if floor > TOO_NOISY:
        print(
            f"{lab.device.name}: the machine is too busy: measurements of a network differ by {100 * floor:.1f} %,"
            f" {100 * TOO_NOISY} % is good"
        )
    rows, latencies = at_least_two(X[:n][ran], ms[ran])
    ends = float(ms[0]), float(ms[min(1, n - 1)])  # a space may have one network
    return TimedSamples(
        rows,
        latencies,
        n,
        int((~ran).sum()),
        ends,
        baseline,
        kind,
        floor,
        terms,
        sources,
        check,
        rng.bit_generator.state,
    )


def time_until_converged(
    lab: Any, X: np.ndarray, sources: Mapping[str, FrozenEstimator], samples: int | None, most_seconds: float
) -> tuple[int, str, ProxyCheck | None]:
    """How many of the first rows of X to time, and as which files, by the first half of the sessions.

    The first networks show whether proxies have the latency of delivered files; if not, the latter are timed. The other
    sessions are of all rows together: a session of a few networks takes seconds, and what disturbs the reference
    meanwhile shifts all their latencies alike.
    """
    errors: dict[int, float] = {}
    kind, check, sessions = PROXY, None, (lab.device.sessions + 1) // 2
    first = FIRST_WITH_TRANSFER if sources else FIRST_SAMPLES
    least = first if math.isinf(most_seconds) else STEP
    for n in range(min(least, len(X)), len(X) + STEP, STEP) if samples is None else [samples]:
        n = min(n, len(X))
        rows = X[:n]
        due = rows_to_check(lab, rows) if check is None else rows[:0]
        meanwhile = lab.files.writing(lab.space.decode(due), RELEASE)
        ms, _ = lab.time(rows, kind, "timing samples", sessions=sessions, meanwhile=meanwhile)
        ran = np.isfinite(ms)
        if ran.any() and check is None and len(due := rows_to_check(lab, rows[ran])):
            check = check_proxies(lab, due)
            if not check.faithful:
                kind = RELEASE
                ms, _ = lab.time(rows, kind, "timing samples", sessions=sessions)
                ran = np.isfinite(ms)
        targets = lab.targets(rows, kind)
        if ran.sum() < min(MIN_SAMPLES, len(X)) and (n == len(X) or n >= first):
            why = lab.timer.reasons(targets) or "the space has no other networks"
            raise ValueError(f"only {ran.sum()} networks could be timed on {lab.device.name}: {why}")
        if n == len(X):
            break
        if samples is None and ran.sum() >= MIN_SAMPLES and lab.timer.busy_seconds(targets, sessions) > most_seconds:
            break
        if samples is None and n >= first:
            model = LatencyPredictor(terms=lab.supernet.cost_terms, sources=list(sources.values()))
            errors[n] = model.fit(rows[ran], ms[ran]).cv_error_
            # The mean of two halves errs half as much as they differ. A machine that is too busy is not an excuse.
            noise = min(lab.timer.noise_floor(lab.targets(rows[ran], kind), sessions), TOO_NOISY) / 2
            if (model.share_ > 0.5 or n >= FIRST_SAMPLES) and has_converged(errors, noise):
                break
    return n, kind, check


def rows_to_check(lab: Any, X: np.ndarray) -> np.ndarray:
    """The rows of X on which proxies are checked, spread over the MACs.

    None where there is nothing to check: without data no file is delivered, and some formats have one exporter only.
    """
    if lab.data is None or not lab.files.has_proxies:
        return X[:0]
    order = np.argsort(lab.supernet.costs(X)["macs"], kind="stable")
    return X[np.unique(order[np.linspace(0, len(X) - 1, PROXY_CHECKS).round().astype(int)])]


def check_proxies(lab: Any, X: np.ndarray) -> ProxyCheck:
    """Compare the latency of delivered files and of proxies on the rows of X, both timed in the same rounds.

    ValueError where no delivered file runs.
    """
    releases, proxies = lab.targets(X, RELEASE), lab.targets(X, PROXY)
    ratios = lab.timer.ratios(releases, proxies, "comparing delivered files with proxies")
    if not ratios:
        raise ValueError(f"{lab.device.name}: no exported file could be timed: {lab.timer.reasons(releases)}")
    check = ProxyCheck(*ratio_interval(ratios))
    if not check.faithful:
        print(
            f"{lab.device.name}: delivered files have {check.ratio:.3f} times the latency of proxies"
            f" ({check.low:.3f} to {check.high:.3f}): delivered files are timed from now on"
        )
    return check


def other_devices(lab: Any, X: np.ndarray) -> dict[str, FrozenEstimator]:
    """{device: its fitted latency predictor} of other devices on which the store has enough of the rows of X.

    Only measurements from before the first one on this device count, so that a repeated call does the same.
    """
    configs, store, sessions = lab.space.decode(X), lab.store, lab.device.sessions
    kinds = product((PROXY, RELEASE), known_writers())
    networks = [[network_key(lab.supernet, config, *kind) for config in configs] for kind in kinds]
    own = store.first("latency", [(name, lab.timer.device_id) for names in networks for name in names])
    found = {}
    for device_id, names in product(store.values("latency", "device_id"), networks):
        timed = known_sessions(store, device_id, names, own, sessions)
        if device_id != lab.timer.device_id and len(timed) >= FIRST_SAMPLES:
            model = LatencyPredictor(terms=lab.supernet.cost_terms)
            model.fit(X[list(timed)], robust_latencies(timed.values()))
            name = next(iter(timed.values()))[0].device["name"]
            found[f"{name} {device_id[:8]}"] = FrozenEstimator(model)
    return found


def latency_rows(space: SearchSpace, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most n different rows: both ends of the space, and random networks."""
    return np.array(unique([*space.encode([space.smallest(), space.largest()]), *space.sample(n - 2, rng)]))


def rows_near_bounds(
    lab: Any,
    known: np.ndarray,
    found: np.ndarray,
    n: int | None,
    rng: np.random.Generator,
    limits: Sequence[tuple[Callable[[np.ndarray], np.ndarray], float]],
    folds: KFold,
) -> np.ndarray:
    """The rows that metric predictors learn from: both ends of the space, known random networks, and new ones.

    Networks within the bounds teach most about the networks that could be chosen; where few are, the nearest ones.
    `known` rows within `NEAR` times the bounds count among the n. If n is None, rows are added until the error of the
    predicted loss has converged, by cross-validation, at most `MAX_EVALUATED`. `found` rows are not drawn again.
    """
    space = lab.space
    ends, pool = space.encode([space.smallest(), space.largest()]), space.sample(20 * (n or MAX_EVALUATED), rng)

    def excess(X: np.ndarray) -> np.ndarray:
        return np.max([np.maximum(cost(X) / bound - 1, 0) for cost, bound in limits], axis=0)

    counted = len(ends) + (int((excess(known) <= NEAR - 1).sum()) if len(known) else 0)
    sizes = range(max(FIRST_SAMPLES, counted), max(MAX_EVALUATED, counted) + 1, FIRST_SAMPLES) if n is None else [n]
    taken = {tuple(row) for rows in (ends, known, found) for row in rows}
    pool = unique([row for row in pool[np.argsort(excess(pool), kind="stable")] if tuple(row) not in taken])
    errors: dict[int, float] = {}
    for size in sizes:
        A = np.vstack([ends, known, *pool[: max(size - counted, 0)]])
        if n is None:
            loss = lab.evaluate(A, "evaluating samples")["loss"]
            if len(A) < MIN_SAMPLES:  # the space has no other networks
                break
            model = AccuracyPredictor(terms=lab.supernet.cost_terms)
            predicted = cross_val_predict(model, A, loss, cv=at_most(folds, len(A)))
            errors[len(A)] = float(np.sqrt(np.mean((predicted - loss) ** 2)))
            if has_converged(errors, floor=0.0):
                break
    return A


def held_out_quality(model: BaseEstimator, X: np.ndarray, y: np.ndarray, folds: KFold) -> dict[str, Any]:
    """The `quality` of cross-validated predictions; NaN where there are too few rows to hold any out."""
    if len(X) < MIN_SAMPLES:
        return {"mape": math.nan, "tau": math.nan, "n": len(X)}
    return quality(y, cross_val_predict(clone(model), X, y, cv=at_most(folds, len(X))))


def at_most(folds: KFold, rows: int) -> KFold:
    """The folds, or as many folds as rows: a space may have fewer networks than folds."""
    return KFold(min(folds.n_splits, rows), shuffle=folds.shuffle, random_state=folds.random_state)


def at_least_two(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and their values; the only network of a space twice, because an estimator needs two rows."""
    return (np.repeat(X, 2, axis=0), np.repeat(y, 2)) if len(X) == 1 else (X, y)


def unique(rows: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The rows, each once."""
    return list({tuple(row): row for row in rows}.values())
