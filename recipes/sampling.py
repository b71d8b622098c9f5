"""Which networks predictors learn from: those that are timed, and those that are evaluated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import KFold, cross_val_predict

from predictors.accuracy import AccuracyPredictor
from predictors.latency import LatencyPredictor, d_optimal_order, has_converged, quality
from predictors.statistics import TOO_NOISY
from recipes.bench import Bench
from recipes.benches import FEW_SAMPLES, FIRST_SAMPLES, LEAST_SAMPLES, MOST_SAMPLES, MOST_TIMED
from supernet.model import total
from supernet.space import SearchSpace

STEP = 10  # networks timed between asking whether they are enough
ASKED = 4  # of their visits, by which that is told
NEAR = 1.25  # times a bound, up to which evaluated networks teach an accuracy predictor what is within the bound


def measure_space(bench: Bench, samples: int | None, max_samples: int, max_seconds: float, seed: int) -> dict[str, Any]:
    """Time networks, and report how well a latency predictor and two simpler ones do on them."""
    X, ms = time_samples(bench, samples, np.random.default_rng(seed), max_samples, max_seconds)
    smallest_ms, largest_ms = ends_of(ms)
    ran = np.isfinite(ms)
    floor = bench.noise_floor(X[ran])
    X, ms = at_least_two(X[ran], ms[ran])
    errors = {
        "cv_error": LatencyPredictor(terms=bench.supernet.cost_terms, sources=list(bench.sources.values()))
        .fit(X, ms)
        .cv_error_,
        "macs_error": LatencyPredictor(terms=MacsAlone(bench.supernet.cost_terms)).fit(X, ms).cv_error_,
        "constant_error": LatencyPredictor(terms=MacsAlone(None)).fit(X, ms).cv_error_,
    }
    report = {"n": len(ran), "failed": int((~ran).sum())} | errors | {"noise_floor": floor}
    report |= {
        "smallest_ms": float(smallest_ms) if math.isfinite(smallest_ms) else None,
        "largest_ms": float(largest_ms) if math.isfinite(largest_ms) else None,
        "seconds": {what: round(seconds, 1) for what, seconds in bench.ledger.seconds.items()},
    }
    print(
        f"{bench.device.name}: {len(ran)} networks, {report['failed']} of which failed; the predictor's error is"
        f" {100 * errors['cv_error']:.2f} %, of a line on MACs {100 * errors['macs_error']:.2f} %, of a constant"
        f" {100 * errors['constant_error']:.2f} %; the measurements repeat to {100 * report['noise_floor']:.2f} %"
    )
    return report


@dataclasses.dataclass(frozen=True)
class MacsAlone:
    """MACs as the only term of a network's cost; without `terms`, nothing that differs between networks."""

    terms: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None

    def __call__(self, X: np.ndarray) -> dict[str, np.ndarray]:
        return {"macs": np.zeros(len(X)) if self.terms is None else total(self.terms(X), "macs")}


def ends_of(ms: np.ndarray) -> tuple[float, float]:
    """The latencies of the smallest and of the largest network among those of `time_samples`, which may be the same."""
    return float(ms[0]), float(ms[min(1, len(ms) - 1)])


def spread_budgets(bench: Bench, samples: int | None, n: int, seed: int) -> list[float]:
    """n budgets in ms, evenly spread on a log scale from just above the fastest timed network to the slowest."""
    _, ms = time_samples(bench, samples, np.random.default_rng(seed))
    ms = ms[np.isfinite(ms)]
    return [float(f"{budget:.4g}") for budget in np.geomspace(1.05 * ms.min(), ms.max(), n)]


def time_samples(
    bench: Bench,
    samples: int | None,
    rng: np.random.Generator,
    most: int = MOST_TIMED,
    most_seconds: float = math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows X that a latency predictor is fitted on, and their latencies in ms; infinite where a network fails.

    After both ends of the space always that of the `latency_rows` which tells most beyond those before it. As many as
    `samples`; or, where that is None, until more would tell little (`predictors.latency.enough`), at most `most`, and
    no more once the device was busy for `most_seconds`. ValueError where hardly any network runs.
    """
    pool = latency_rows(bench.supernet.space, max(most, MOST_SAMPLES, samples or 0), rng)  # the same for any `most`
    if bench.sources is None:
        bench.sources = bench.other_devices(pool)
    pool = pool[d_optimal_order(np.stack(list(bench.supernet.cost_terms(pool).values()), axis=1), first=2)]
    X = pool[: most if samples is None else samples]
    n, ms = time_enough(bench, X, samples, most_seconds)
    ran = np.isfinite(ms)
    floor = bench.noise_floor(X[:n][ran])
    if floor > TOO_NOISY:
        print(
            f"{bench.device.name}: the machine is too busy: measurements of a network differ by {100 * floor:.1f} %,"
            f" {100 * TOO_NOISY} % is good"
        )
    return X[:n], ms


def time_enough(bench: Bench, X: np.ndarray, samples: int | None, most_seconds: float) -> tuple[int, np.ndarray]:
    """How many of the first rows of X are timed for `time_samples`, and their latencies.

    The first few tell which exporter's files are timed (`Bench.agrees`). Whether they are enough is asked after the
    first visits. The others are of all rows together: a visit of a few networks takes seconds, and what disturbs the
    reference meanwhile shifts them all alike.
    """
    errors: dict[int, float] = {}
    first = FEW_SAMPLES if bench.sources else FIRST_SAMPLES
    least = first if math.isinf(most_seconds) else STEP
    for n in range(min(least, len(X)), len(X) + STEP, STEP) if samples is None else [samples]:
        n = min(n, len(X))
        ms = bench.latencies(X[:n], "timing samples", ASKED, bench.exporting(bench.to_check(X[:n]), "final"))
        ran = np.isfinite(ms)
        if ran.any() and not bench.agrees(X[:n][ran]):
            ms = bench.latencies(X[:n], "timing samples", ASKED)  # now as the files that ship
            ran = np.isfinite(ms)
        if ran.sum() < min(LEAST_SAMPLES, len(X)) and (n == len(X) or n >= first):
            why = bench.reasons(X[:n], bench.exporter) or "there are no others"
            raise ValueError(f"only {ran.sum()} networks could be timed on {bench.device.name}: {why}")
        if n == len(X):
            break
        if samples is None and ran.sum() >= LEAST_SAMPLES and bench.busy_seconds(X[:n], ASKED) > most_seconds:
            break
        if samples is None and n >= first:
            model = LatencyPredictor(terms=bench.supernet.cost_terms, sources=list(bench.sources.values()))
            errors[n] = model.fit(X[:n][ran], ms[ran]).cv_error_
            # The mean of two halves errs half as much as they differ. That a machine is too busy excuses nothing.
            noise = min(bench.noise_floor(X[:n][ran], ASKED), TOO_NOISY) / 2
            if (model.share_ > 0.5 or n >= FIRST_SAMPLES) and has_converged(errors, noise):
                break
    return n, bench.latencies(X[:n], "timing samples")


def latency_rows(space: SearchSpace, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows that the latency predictor may be fitted on: both ends of the space, and random ones; fewer where some of
    them are the same, as in a small space."""
    return np.array(unique([*space.encode([space.smallest(), space.largest()]), *space.sample(n - 2, rng)]))


def at_most(folds: KFold, rows: int) -> KFold:
    """The folds, or as many as there are rows: a space may have fewer networks than folds."""
    return KFold(min(folds.n_splits, rows), shuffle=folds.shuffle, random_state=folds.random_state)


def held_out_quality(model: BaseEstimator, X: np.ndarray, y: np.ndarray, folds: KFold) -> dict[str, Any]:
    """The `quality` of cross-validated predictions; NaN for rows of a space too small to hold any out."""
    if len(X) < LEAST_SAMPLES:
        return {"mape": math.nan, "tau": math.nan, "n": len(X)}
    return quality(y, cross_val_predict(clone(model), X, y, cv=at_most(folds, len(X))))


def at_least_two(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and their values; the only network of a space twice, since an estimator needs two rows."""
    return (np.repeat(X, 2, axis=0), np.repeat(y, 2)) if len(X) == 1 else (X, y)


def unique(rows: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The rows, each once."""
    return list({tuple(row): row for row in rows}.values())


@dataclasses.dataclass
class Shared:
    """What the searches for several budgets and devices know of each other: the rows that were evaluated, which teach
    accuracy predictors, `random` ones and those that searches `found`; and the networks that were `timed` as the files
    that ship, each with its figures, by the row and by the device's id with the statistic that they are of."""

    random: np.ndarray | None = None
    found: np.ndarray | None = None
    timed: dict[tuple[str, str], dict[tuple[float, ...], dict[str, Any]]] = dataclasses.field(default_factory=dict)


def samples_near(
    bench: Bench,
    shared: Shared,
    n: int | None,
    rng: np.random.Generator,
    constraints: Sequence[tuple[Callable[[np.ndarray], np.ndarray], float]],
    folds: KFold,
) -> np.ndarray:
    """The rows that accuracy predictors learn from: both ends of the space, random ones that were evaluated, and new.

    Networks within the bounds teach most about those that could be chosen; where few are, the nearest to them. Of the
    evaluated ones those within `NEAR` times the bounds count among the n. Where n is None, as many as are `enough` for
    the cross-validated error of the loss, at most `MOST_SAMPLES`.
    """
    space = bench.supernet.space
    ends, pool = space.encode([space.smallest(), space.largest()]), space.sample(20 * (n or MOST_SAMPLES), rng)
    known = ends[:0] if shared.random is None else shared.random

    def excess(X: np.ndarray) -> np.ndarray:
        return np.max([np.maximum(cost(X) / bound - 1, 0) for cost, bound in constraints], axis=0)

    counted = len(ends) + (int((excess(known) <= NEAR - 1).sum()) if len(known) else 0)
    sizes = range(max(FIRST_SAMPLES, counted), max(MOST_SAMPLES, counted) + 1, FIRST_SAMPLES) if n is None else [n]
    taken = {tuple(row) for rows in (ends, known, shared.found) if rows is not None for row in rows}
    pool = unique([row for row in pool[np.argsort(excess(pool), kind="stable")] if tuple(row) not in taken])
    errors: dict[int, float] = {}
    for size in sizes:
        A = np.vstack([ends, known, *pool[: max(size - counted, 0)]])
        if n is None:
            loss = bench.evaluate(A, "evaluating samples")["loss"]
            if len(A) < LEAST_SAMPLES:  # there are no others
                break
            model = AccuracyPredictor(terms=bench.supernet.cost_terms)
            told = cross_val_predict(model, A, loss, cv=at_most(folds, len(A)))
            errors[len(A)] = float(np.sqrt(np.mean((told - loss) ** 2)))
            if has_converged(errors, floor=0.0):
                break
    return A
