"""What `supernet specialize` does: the bench that measures networks, and the search that it corrects."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold, cross_val_predict
from torch import Tensor, nn

from predictors.accuracy import AccuracyPredictor
from predictors.devices import LEAST_ROUNDS, LEAST_RUNS, Device
from predictors.engines import ENGINES, NetworkError, peak_memory
from predictors.latency import LatencyPredictor, enough, most_telling, quality
from predictors.measuring import (
    ATTEMPTS,
    COPIES,
    TOO_NOISY,
    VISITS,
    Failure,
    Measurement,
    judged,
    latencies,
    least_latencies,
    measure,
    noise_floor,
    now,
    undisturbed,
)
from predictors.runtimes import RUNTIMES, SUFFIXES, batches, part_file
from predictors.store import Store, digest, network_id
from recipes import FEW_SAMPLES, FIRST_SAMPLES, LEAST_SAMPLES, MOST_SAMPLES, MOST_TIMED
from recipes.report import draw_front, write_page
from supernet.export import (
    NETWORK_FILES,
    PLAN,
    part_to_executorch,
    part_to_onnx,
    quantize_onnx,
    quantize_openvino,
    write_folder,
    write_network,
    write_plan,
)
from supernet.model import Part, Supernet, calibrate, total
from supernet.search import InfeasibleError, evolutionary_search
from supernet.space import SearchSpace
from supernet.training import compare, evaluate_items, evaluate_network, means

PART_FILES = tuple(
    f"{part}{suffix}" for part in ("subnet", "encoder", "decoder") for suffix in (*SUFFIXES, ".bin")
)  # of any family, for any runtime
FILES = (*NETWORK_FILES, *PART_FILES, PLAN, "report.json", "report.html", "front.png")
ROUNDS = 5  # of search, export and measuring
LENGTHS = ("source_length", "target_length", "beam")  # of an input_spec: what is timed of a translation network
TIMING = (*LENGTHS, "length_penalty")  # they change no accuracy
CALIBRATION, CALIBRATION_RUNS = 128, 16  # items, and runs, that the ranges of int8 networks are taken from
CACHE, KEPT = 4e9, 64  # bytes of exported networks, and how many stay whatever they take
CHECKED, AGREE = 5, 0.02  # networks on which the faster exporter is checked, and how much longer or shorter it may take
WRONG = 0.01  # the largest difference between the losses of a network and of its float32 file, relative
STEP = 10  # networks timed between asking whether they are enough
ASKED = 4  # of their visits, by which that is told
LEVEL = 0.9  # of the intervals whose upper ends the first round goes by
REFITS = 3  # searches in a round, each with an accuracy predictor that has seen what the one before found


@dataclasses.dataclass
class Evaluated:
    """The rows that were evaluated for one budget, which teach the accuracy predictors of the next ones: `random` ones,
    and those that searches `found`."""

    random: np.ndarray | None = None
    found: np.ndarray | None = None


def find_network(
    bench: Bench,
    budget: float,
    folder: Path | None,
    latency_samples: int | None,
    accuracy_samples: int | None,
    finalists: int,
    population: int,
    generations: int,
    seed: int,
    direct: bool = False,
    bounds: Mapping[str, float] | None = None,
    evaluated: Evaluated | None = None,
) -> dict[str, Any]:
    """Search, measure what was found as the files that ship, correct the predictors, and again.

    Until one meets the budget (ms) and the other `bounds` ({one of `COSTS`: its largest value}) and nothing that seems
    to is better, or for `ROUNDS`. `direct` evaluates every network that the search scores, where there is else a
    predictor of `accuracy_samples` evaluated ones; those that `evaluated` has count, and what is evaluated here joins
    them. Without `latency_samples` or `accuracy_samples`, networks are timed or evaluated until more would tell little.
    All of this sees the `select` part of the data.
    Writes the network to `folder` and returns the report; without a folder, {}, and what was evaluated is what it is
    for. ValueError if none meets the budget.
    """
    space, rng, figure = bench.supernet.space, np.random.default_rng(seed), bench.supernet.figure
    if "memory_mb" in (bounds or {}):
        bench.device.check_tells_memory()
    evaluated = evaluated or Evaluated()
    ends = space.encode([space.smallest(), space.largest()])
    X, timed_ms = time_samples(bench, latency_samples, rng)
    smallest_ms, largest_ms = timed_ms[:2]
    X, timed_ms = X[np.isfinite(timed_ms)], timed_ms[np.isfinite(timed_ms)]
    bench.fix_scale(X)
    latency = LatencyPredictor(terms=bench.supernet.cost_terms, sources=list(bench.sources.values()))
    folds = KFold(5, shuffle=True, random_state=seed)
    report: dict[str, Any] = {
        "budget_ms": budget,
        "timed": {name: bench.supernet.input_spec[name] for name in LENGTHS if name in bench.supernet.input_spec},
        "device": dataclasses.asdict(bench.device) | bench.fingerprint,
        "latency_predictor": quality(timed_ms, cross_val_predict(clone(latency), X, timed_ms, cv=folds)),
        "noise_floor": bench.noise_floor(X),
        "reference_ms": bench.reference_ms,
        "exporters_ratio": bench.exporters_ratio,
        "smallest_ms": smallest_ms,
        "largest_ms": largest_ms if math.isfinite(largest_ms) else None,  # it failed on the device
    }
    latency.fit(X, timed_ms)
    report["transfers_from"] = list(bench.sources) if latency.transfers_ else []
    cheapest = min(timed_ms.min(), latency.predict(X).min())
    if budget < cheapest:
        raise ValueError(f"{budget} ms cannot be met: the fastest network seen takes {cheapest:.3f} ms")
    limits = [Limit(bench, name, bound, X) for name, bound in (bounds or {}).items()]
    report["bounds"] = dict(bounds or {})

    # The search ranks by cross entropy, which a few hundred items tell far better than accuracy.
    predictors = {name: AccuracyPredictor(terms=bench.supernet.cost_terms) for name in ("accuracy", "loss")}
    A = ends
    if not direct:
        constraints = [(latency.predict, budget), *limits_of(limits)]
        A = samples_near(bench, evaluated, accuracy_samples, rng, constraints, folds)
        evaluated.random = A[2:]
    samples = len(A)
    if evaluated.found is not None:
        A = np.concatenate([A, evaluated.found])
    figures = bench.evaluate(A, "evaluating samples")
    if not direct:  # how good they are is told by random networks alone
        told_by = {name: values[:samples] for name, values in figures.items()}
        report["accuracy_predictor"] = {
            name: quality(told_by[name], cross_val_predict(clone(model), A[:samples], told_by[name], cv=folds))
            for name, model in predictors.items()
        }

    def score(X: np.ndarray) -> np.ndarray:
        return -(bench.evaluate(X, "evaluating")["loss"] if direct else predictors["loss"].predict(X))

    def slowest_told(X: np.ndarray) -> np.ndarray:
        """The upper ends of the intervals that latencies are predicted to lie in; few rows tell none for `LEVEL`.

        An interval without an end, where the predictor knows nothing, is beyond any budget.
        """
        rows = len(latency.cv_errors_)
        return np.minimum(latency.interval(X, min(LEVEL, (rows - 0.5) / (rows + 1)))[1], 1e6 * budget)

    winner, timed, asked = None, {}, {"latency_ms": budget} | report["bounds"]
    # The first round keeps to networks that are fast enough for sure, the others go as far as the corrected predictor.
    for told in (slowest_told, *[latency.predict] * (ROUNDS - 1)):
        # A predictor errs most where search takes it to be best, so what it finds there is evaluated, and corrects it.
        for _ in range(1 if direct else REFITS):
            if not direct:
                predictors["loss"].fit(A, figures["loss"])
            try:
                result = evolutionary_search(
                    space,
                    score,
                    [(told, budget), *limits_of(limits)],
                    population=population,
                    generations=generations,
                    seed=seed,
                )
            except InfeasibleError:  # to the corrected predictor nothing is fast enough
                break
            new = distinct(result.X, A, finalists)
            A = np.concatenate([A, new])
            evaluated.found = A[samples:]
            found = bench.evaluate(new, "evaluating what the search found")
            figures = {name: np.concatenate([values, found[name]]) for name, values in figures.items()}
        # The best of all that were evaluated, and seem fast enough, are timed as the files that ship: those of the
        # least cross entropy, since the highest of hundreds of accuracies is that of the luckiest network. Where one
        # met the budget already, only those of them that seem better than the best of these.
        merits = figures["accuracy"] if figure == "accuracy" else -figures["loss"]
        took = {tuple(row): ms for row, ms in zip(X, timed_ms)}  # what was timed needs no prediction
        within = np.array([took.get(tuple(row), ms) for row, ms in zip(A, told(A))]) <= budget
        for limit in limits:
            within &= limit.predict(A) <= limit.bound
        missed = {
            row
            for row, final in timed.items()
            if not final.get("passed", all(final[name] <= bound for name, bound in asked.items()))
        }
        order = np.argsort(figures["loss"], kind="stable")
        best = [i for i in order if within[i] and tuple(A[i]) not in missed][:finalists]
        met = max((final["merit"] for final in timed.values() if final.get("passed")), default=-math.inf)
        chosen = [i for i in best if tuple(A[i]) not in timed and merits[i] > met]
        if not chosen and told is slowest_told:
            continue
        if not chosen:
            break
        C, measured = A[chosen], bench.final_latencies(A[chosen], "timing finalists as the files that ship")
        hopes = figures[figure][chosen]
        if not direct:
            others = np.delete(np.arange(len(A)), chosen)  # a prediction is by one that has not seen the network
            hopes = clone(predictors[figure]).fit(A[others], figures[figure][others]).predict(C)
        for i, row, config, ms, guess, hope in zip(chosen, C, space.decode(C), measured, latency.predict(C), hopes):
            timed[tuple(row)] = {
                "config": config,
                "merit": merits[i],
                "latency_ms": float(ms),
                "predicted_latency_ms": float(guess),
                f"predicted_{figure}": float(hope),
            } | {name: float(values[i]) for name, values in figures.items()}
            timed[tuple(row)] |= {limit.name: limit.of(config) if math.isfinite(ms) else math.inf for limit in limits}
        for limit in limits:
            limit.learn(C[np.isfinite(measured)])
        winner = best_file(bench, list(timed.values()), asked)
        # The first measurement, which a repeated call finds again, unless the second one said no.
        finals = [timed[tuple(row)] for row in C]
        measured = [slowest(f) if f.get("confirmed_ms", 0.0) > budget else f["latency_ms"] for f in finals]
        ran = np.isfinite(measured)
        X, timed_ms = np.concatenate([X, C[ran]]), np.concatenate([timed_ms, np.asarray(measured)[ran]])
        latency.fit(X, timed_ms)
    finals = list(timed.values())
    if winner is None:
        found = "none was predicted to"
        if (short := timed_ms.min() - budget) > 0:
            found += f"; of the samples the fastest took {timed_ms.min():.3f} ms, {short:.3f} ms too long"
        if finals:
            fastest = min(finals, key=slowest)
            found = f"the fastest took {slowest(fastest):.3f} ms"
            if (short := slowest(fastest) - budget) > 0:
                found += f", {short:.3f} ms too long"
            found += "".join(f", the least {limit.name} is {min(f[limit.name] for f in finals):g}" for limit in limits)
            found += f": {fastest['config']}"
        wanted = "".join(f" and {limit.name} = {limit.bound:g}" for limit in limits)
        raise ValueError(
            f"of {len(finals)} networks timed as the files that ship, none met {budget:.3f} ms{wanted}: {found}"
        )
    if folder is None:
        return {}

    report["config"] = dataclasses.asdict(winner["config"])
    report["figure"] = figure
    hidden = ("config", "merit")
    report |= {k: v for k, v in winner.items() if k not in hidden}
    report |= {part: means(bench.file_items(winner["config"], part)) for part in PARTS}
    ran = [final for final in finals if math.isfinite(slowest(final))]
    # What the file computes is not quite what torch does, least of all where its layers are quantized.
    files = [final for final in finals if f"file_{figure}" in final]
    report["file_offset"] = {name: float(np.mean([f[f"file_{name}"] - f[name] for f in files])) for name in figures}
    report["finalists"] = [{k: v for k, v in final.items() if k not in hidden} for final in ran]
    report["failed_finalists"] = len(finals) - len(ran)
    costs = bench.supernet.costs(space.encode([winner["config"]]))
    report |= {unit: int(values[0]) for unit, values in costs.items()}
    report["seconds"] = {what: round(seconds, 3) for what, seconds in bench.seconds.items()}
    report["samples"] = [
        {"predicted_latency_ms": ms} | {name: float(values[i]) for name, values in figures.items()}
        for i, ms in enumerate(latency.predict(A[:samples]).tolist())
    ]
    bench.write(folder, winner["config"], report)
    print(
        f"budget {budget:.3f} ms; predicted {winner['predicted_latency_ms']:.3f} ms, measured"
        f" {winner['confirmed_ms']:.3f} ms; the file's {figure} {report['select'][figure]:.4f} where it was chosen,"
        f" {report['report'][figure]:.4f} on other held-out items, {report['test'][figure]:.4f} on the test set;"
        f" written to {folder}"
    )
    return report


def limits_of(limits: Iterable[Limit]) -> list[tuple[Callable[[np.ndarray], np.ndarray], float]]:
    """The constraints of a search that keep within limits."""
    return [(limit.predict, limit.bound) for limit in limits]


def samples_near(
    bench: Bench,
    evaluated: Evaluated,
    n: int | None,
    rng: np.random.Generator,
    constraints: Sequence[tuple[Callable[[np.ndarray], np.ndarray], float]],
    folds: KFold,
) -> np.ndarray:
    """The rows that accuracy predictors learn from: both ends of the space, random ones that were evaluated, and new.

    Networks within the bounds teach most about those that could be chosen; where few are, the nearest to them. Of the
    evaluated ones those within the bounds count among the n. Where n is None, as many as are `enough` for the
    cross-validated error of the loss, at most `MOST_SAMPLES`.
    """
    space = bench.supernet.space
    ends, pool = space.encode([space.smallest(), space.largest()]), space.sample(20 * (n or MOST_SAMPLES), rng)
    known = ends[:0] if evaluated.random is None else evaluated.random

    def excess(X: np.ndarray) -> np.ndarray:
        return np.max([np.maximum(cost(X) / bound - 1, 0) for cost, bound in constraints], axis=0)

    counted = len(ends) + (int((excess(known) == 0).sum()) if len(known) else 0)
    sizes = range(max(FIRST_SAMPLES, counted), max(MOST_SAMPLES, counted) + 1, FIRST_SAMPLES) if n is None else [n]
    taken = {tuple(row) for rows in (ends, known, evaluated.found) if rows is not None for row in rows}
    pool = unique([row for row in pool[np.argsort(excess(pool), kind="stable")] if tuple(row) not in taken])
    errors: dict[int, float] = {}
    for size in sizes:
        A = np.vstack([ends, known, *pool[: max(size - counted, 0)]])
        if n is None:
            loss = bench.evaluate(A, "evaluating samples")["loss"]
            told = cross_val_predict(AccuracyPredictor(terms=bench.supernet.cost_terms), A, loss, cv=folds)
            errors[len(A)] = float(np.sqrt(np.mean((told - loss) ** 2)))
            if enough(errors, floor=0.0):
                break
    return A


def spread_budgets(bench: Bench, samples: int | None, n: int, seed: int) -> list[float]:
    """n budgets in ms, evenly spread on a log scale from just above the fastest timed network to the slowest."""
    _, ms = time_samples(bench, samples, np.random.default_rng(seed))
    ms = ms[np.isfinite(ms)]
    return [float(f"{budget:.4g}") for budget in np.geomspace(1.05 * ms.min(), ms.max(), n)]


def measure_space(bench: Bench, samples: int | None, max_samples: int, max_seconds: float, seed: int) -> dict[str, Any]:
    """Time networks, and report how well a latency predictor and two simpler ones do on them."""
    X, ms = time_samples(bench, samples, np.random.default_rng(seed), max_samples, max_seconds)
    smallest_ms, largest_ms = ms[:2]
    ran = np.isfinite(ms)
    X, ms = X[ran], ms[ran]
    errors = {
        "cv_error": LatencyPredictor(terms=bench.supernet.cost_terms, sources=list(bench.sources.values()))
        .fit(X, ms)
        .cv_error_,
        "macs_error": LatencyPredictor(terms=MacsAlone(bench.supernet.cost_terms)).fit(X, ms).cv_error_,
        "constant_error": LatencyPredictor(terms=MacsAlone(None)).fit(X, ms).cv_error_,
    }
    report = {"n": len(ran), "failed": int((~ran).sum())} | errors | {"noise_floor": bench.noise_floor(X)}
    report |= {
        "smallest_ms": float(smallest_ms) if math.isfinite(smallest_ms) else None,
        "largest_ms": float(largest_ms) if math.isfinite(largest_ms) else None,
        "seconds": {what: round(seconds, 1) for what, seconds in bench.seconds.items()},
    }
    print(
        f"{bench.device.name}: {len(ran)} networks, {len(ran) - len(X)} of which failed; the predictor's error is"
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


def latency_rows(space: SearchSpace, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows that the latency predictor may be fitted on: both ends of the space, and random ones; fewer where some of
    them are the same, as in a small space."""
    return np.array(unique([*space.encode([space.smallest(), space.largest()]), *space.sample(n - 2, rng)]))


def unique(rows: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The rows, each once."""
    return list({tuple(row): row for row in rows}.values())


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
    pool = pool[most_telling(np.stack(list(bench.supernet.cost_terms(pool).values()), axis=1), first=2)]
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
    asked = min(ASKED, VISITS)
    first = FEW_SAMPLES if bench.sources else FIRST_SAMPLES
    least = first if math.isinf(most_seconds) else STEP
    for n in range(min(least, len(X)), len(X) + STEP, STEP) if samples is None else [samples]:
        n = min(n, len(X))
        ms = bench.latencies(X[:n], "timing samples", asked)
        ran = np.isfinite(ms)
        if ran.any() and not bench.agrees(X[:n][ran], ms[ran]):
            ms = bench.latencies(X[:n], "timing samples", asked)  # now as the files that ship
            ran = np.isfinite(ms)
        if ran.sum() < LEAST_SAMPLES and (n == len(X) or n >= first):
            why = bench.reasons(X[:n], bench.exporter) or "there are no others"
            raise ValueError(f"only {ran.sum()} networks could be timed on {bench.device.name}: {why}")
        if samples is None and ran.sum() >= LEAST_SAMPLES and bench.busy_seconds(X[:n], asked) > most_seconds:
            break
        if samples is None and n >= first:
            model = LatencyPredictor(terms=bench.supernet.cost_terms, sources=list(bench.sources.values()))
            errors[n] = model.fit(X[:n][ran], ms[ran]).cv_error_
            # The mean of two halves errs half as much as they differ. That a machine is too busy excuses nothing.
            noise = min(bench.noise_floor(X[:n][ran], asked), TOO_NOISY) / 2
            if (model.transfers_ or n >= FIRST_SAMPLES) and enough(errors, noise):
                break
    return n, bench.latencies(X[:n], "timing samples")


def slowest(final: dict[str, Any]) -> float:
    """The larger of a finalist's measurements in ms."""
    return max(final["latency_ms"], final.get("confirmed_ms", 0.0))


def distinct(X: np.ndarray, known: np.ndarray, n: int) -> np.ndarray:
    """The first n rows of X (ranked) that are not among `known` and differ from each other in at least 3 genes."""
    taken = {tuple(row) for row in known}
    chosen: list[np.ndarray] = []
    for row in X:
        if tuple(row) not in taken and all((row != other).sum() >= 3 for other in chosen):
            chosen.append(row)
            if len(chosen) == n:
                break
    return np.array(chosen).reshape(-1, X.shape[1])


def best_file(bench: Bench, finals: Sequence[dict[str, Any]], bounds: Mapping[str, float]) -> dict[str, Any] | None:
    """The finalist whose file is the best of those that meet all bounds, that on latency in two measurements.

    Where the files of faster ones are as good, within one standard error of the paired differences in accuracy and in
    cross entropy, which tells more from as many items, the fastest of them.
    ValueError where a file of float32 does not compute what the network does.
    """
    figure, budget = bench.supernet.figure, bounds["latency_ms"]
    sign = 1 if figure == "accuracy" else -1
    fast = [final for final in finals if all(final[name] <= bound for name, bound in bounds.items())]
    items = {id(final): bench.file_items(final["config"], "select") for final in fast}
    for final in fast:
        final |= {f"file_{name}": value for name, value in means(items[id(final)]).items()}
        if bench.device.precision != "float32":
            continue
        if not math.isclose(final["file_loss"], final["loss"], rel_tol=WRONG, abs_tol=1e-4):
            raise ValueError(
                f"{bench.device.name} does not compute {final['config']} as torch does: the loss is"
                f" {final['file_loss']:g} by the exported file, {final['loss']:g} by the network"
            )

    def passes(final: dict[str, Any]) -> bool:
        if "confirmed_ms" not in final:
            final |= bench.confirm(final["config"])
            final["passed"] = final["confirmed_ms"] <= budget
        return final["passed"]

    best = next(filter(passes, sorted(fast, key=lambda f: (-sign * f[f"file_{figure}"], f["latency_ms"]))), None)
    if best is None:
        return None

    def as_good(final: dict[str, Any]) -> bool:
        accuracy, loss = (compare(items[id(best)], items[id(final)], name) for name in ("accuracy", "loss"))
        return accuracy[0] <= accuracy[1] and -loss[0] <= loss[1]

    for final in sorted(fast, key=lambda final: final["latency_ms"]):
        if final["latency_ms"] >= best["latency_ms"]:
            return best
        if as_good(final) and passes(final):
            return final
    return best


COSTS = ("macs", "params", "file_mb", "memory_mb")  # that may be bounded, beside latency; MB are 1e6 bytes


class Limit:
    """A bound on one of `COSTS`: a closed form, or what a predictor tells of what the files of some networks X take."""

    def __init__(self, bench: Bench, name: str, bound: float, X: np.ndarray) -> None:
        self.bench, self.name, self.bound = bench, name, bound
        self.exact = name in ("macs", "params")
        self.model = LatencyPredictor(terms=bench.supernet.cost_terms)
        self.X, self.y = X, np.array([])
        if not self.exact:
            self.y = bench.footprints(X, "search", name)
            self.X, self.y = self.X[np.isfinite(self.y)], self.y[np.isfinite(self.y)]
            if len(self.y) < LEAST_SAMPLES:
                raise ValueError(f"{name}: of {len(X)} networks only {len(self.y)} could be measured")
            self.model.fit(self.X, self.y)
        least = min(self.predict(X).min(), self.y.min(initial=math.inf))
        if bound < least:
            raise ValueError(f"{name} = {bound:g} cannot be met: the least of {len(X)} networks is {least:g}")

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.bench.supernet.costs(X)[self.name] if self.exact else self.model.predict(X)

    def of(self, config: Any) -> float:
        """What the file that ships takes."""
        X = self.bench.supernet.space.encode([config])
        return float((self.predict(X) if self.exact else self.bench.footprints(X, "final", self.name))[0])

    def learn(self, X: np.ndarray) -> None:
        """Correct the predictor by the files that ship of the rows X, which were measured."""
        if not self.exact and len(X):
            y = self.bench.footprints(X, "final", self.name)
            self.X, self.y = np.concatenate([self.X, X[np.isfinite(y)]]), np.concatenate([self.y, y[np.isfinite(y)]])
            self.model.fit(self.X, self.y)


class Bench:
    """A supernet, its data, a device and the store: what is measured once is never measured again.

    Without data (None) it measures latencies of files that calibrate on nothing, those of the faster exporter.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: Any | None,
        device: Device,
        store: Store,
        files: Path,
        section: dict[str, Any],
        engine: str = "process",
    ) -> None:
        if data is not None:
            supernet.check_data(data.input_spec)
            supernet.input_spec = dict(data.input_spec)
        self.supernet, self.data, self.device, self.store = supernet, data, device, store
        self.section, self.engine = section, engine
        # Files are shared by the devices that load the same ones.
        kind = f"int8-{device.runtime}" if device.precision == "int8" else "float32"
        self.files = files / f"{kind}-{device.batch}{RUNTIMES[device.runtime].files or ''}"
        self.exporter = "search"  # of the files that are searched by
        self.sources: dict[str, FrozenEstimator] | None = None  # of other devices, once `time_samples` asked
        self.exporters_ratio: float | None = None  # see `agrees`; None where it was not asked
        self.quiet: dict[str, float] | None = None  # see `fix_scale`
        self._data_ids: dict[str, str] = {}  # of the parts of the data
        self.seconds = {"export": 0.0, "timing": 0.0, "memory": 0.0, "accuracy": 0.0}  # spent on each
        self.files.mkdir(parents=True, exist_ok=True)

    @cached_property
    def selected(self) -> list[list[Tensor]]:
        """The batches by which networks are chosen."""
        return list(part_of(self.data, "select"))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """That of the machine which has the device."""
        if self.engine == "process":
            return self.device.fingerprint()
        try:
            with ENGINES[self.engine](self.device) as call:
                return call("fingerprint")
        except NetworkError as error:
            raise ValueError(f"{self.device.name}: {error}") from error

    @cached_property
    def device_id(self) -> str:
        return self.device.id_on(self.fingerprint)

    @cached_property
    def _written_by(self) -> tuple[str, ...]:
        return written_by(self.device.runtime, self.device.precision)

    @cached_property
    def weights_id(self) -> str:
        return state_digest(self.supernet.state_dict())

    def data_id(self, part: str) -> str:
        if part not in self._data_ids:
            self._data_ids[part] = data_digest(self.data, part_of(self.data, part))
        return self._data_ids[part]

    # ---- latency

    def latencies(self, X: np.ndarray, what: str, visits: int | None = None) -> np.ndarray:
        """Latencies (n,) in ms of the rows of X, drift divided out, of files of the faster exporter if it `agrees`:
        what predictors are fitted on. By the first `visits`, all `VISITS` if left out; infinite where the network
        fails on the device."""
        return self._latencies(X, self.exporter, what, visits=visits)

    def agrees(self, X: np.ndarray, ms: np.ndarray) -> bool:
        """Whether files of the faster exporter take as long as those that ship; if not, `latencies` is of the latter.

        They do if on `CHECKED` of the rows of X, which take `ms`, the median ratio of the two is within `AGREE` of 1.
        Without data nothing ships, and some devices have no faster exporter.
        """
        if self.exporter == "final" or self.data is None or RUNTIMES[self.device.runtime].files != ".onnx":
            return True
        if self.exporters_ratio is not None:  # it was asked before
            return True
        spread = X[np.unique(np.argsort(ms)[np.linspace(0, len(ms) - 1, CHECKED).round().astype(int)])]
        quiet = self.quiet or self._quiet([self._visits(c, "search") for c in self.supernet.space.decode(X)])
        shipped = self._latencies(spread, "final", "checking the faster exporter", quiet)
        ran = np.isfinite(shipped)
        if not ran.any():
            why = self.reasons(spread, "final")
            raise ValueError(f"{self.device.name}: no file that ships could be timed: {why}")
        self.exporters_ratio = float(np.median(shipped[ran] / self._latencies(spread[ran], "search", "", quiet)))
        if abs(self.exporters_ratio - 1) > AGREE:
            print(
                f"{self.device.name}: files that ship take {self.exporters_ratio:.3f} times as long as those of the"
                " faster exporter: from now on they are what is timed"
            )
            self.exporter = "final"
        return self.exporter == "search"

    def _latencies(
        self,
        X: np.ndarray,
        exporter: str,
        what: str,
        quiet: Mapping[str, float] | None = None,
        visits: int | None = None,
    ) -> np.ndarray:
        """What `latencies` are, of either exporter, and on the scale of what the reference takes undisturbed, if that
        is given."""
        configs = self.supernet.space.decode(X)
        for visit in range(visits or VISITS):  # each in an order of its own, since neighbours share what disturbs
            order = np.random.default_rng(visit).permutation(len(configs)) if visit else range(len(configs))
            some = [configs[i] for i in order if len(self._visits(configs[i], exporter)) <= visit]
            some = [config for config in some if not self._failures(config, exporter)]
            self._time(some, exporter, f"{what}, again" if visit else what, rounds=self._visit_rounds)
        records = [self._visits(config, exporter, visits) for config in configs]
        ran = [bool(measurements) for measurements in records]
        records = list(filter(None, records))
        ms = np.full(len(configs), np.inf)
        ms[ran] = least_latencies(records, quiet or self.quiet or self._quiet(records))
        return ms

    def final_latencies(self, X: np.ndarray, what: str) -> np.ndarray:
        """Latencies (n,) in ms of the rows of X as the files that ship, drift divided out: the statistic that budgets
        are judged by, of the first measurement that counts, on a scale that was fixed. Infinite where it fails."""
        configs = self.supernet.space.decode(X)
        return np.array([ms for ms, _ in self._judge(configs, "latency", what)])

    def confirm(self, config: Any) -> dict[str, float]:
        """A second, independent measurement of the file that ships, each round by another process as those that will
        run it are others, in ms, without drift and as the clock gave it."""
        (judgement,) = self._judge([config], "confirmation", "confirming")
        return dict(zip(("confirmed_ms", "confirmed_with_drift_ms"), judgement))

    def _judge(self, configs: Sequence[Any], table: str, what: str) -> list[tuple[float, float]]:
        """What the first measurement in a table of the store that is `judged` tells of each file that ships, timed
        until there is one: in ms, without drift and as the clock gave it; infinite where the network fails first."""
        statistic = self.device.statistic

        def counted(config: Any) -> list[Measurement]:
            records = self._records(config, "final", table)
            return judged([m for m in records if m.rounds == self.device.rounds], statistic, self.quiet)

        while some := [c for c in configs if not counted(c) and not self._failures(c, "final")]:
            self._time(some, "final", what, table)
            what = what.removesuffix(", again") + ", again"
        firsts = [counted(config)[:1] for config in configs]
        return [
            (float(latencies(first, statistic, self.quiet)[0]), getattr(first[0], statistic))
            if first
            else 2 * (math.inf,)
            for first in firsts
        ]

    def footprints(self, X: np.ndarray, exporter: str, kind: str) -> np.ndarray:
        """What the rows of X take, (n,) in MB: `file_mb`, the size of their files; or `memory_mb`, by how much a fresh
        process grows at most that loads the network and runs it once. Infinite where it cannot."""
        configs = self.supernet.space.decode(X)
        keys = [(*self._key(config, exporter), kind) for config in configs]
        missing = set(self.store.missing("footprint", keys))
        todo = {key: config for key, config in zip(keys, configs) if key in missing}
        for key, config in progress(iter(todo.items()), len(todo), f"measuring {kind}"):
            if kind == "memory_mb":
                if (taken := self._memory(config, exporter)) is None:
                    continue
            else:
                taken = sum(file.stat().st_size for file in self._files(config, exporter))
            self.store.add("footprint", key, {"mb": taken / 1e6})
        records = self.store.get("footprint", keys)
        return np.array([records[key][-1]["mb"] if key in records else math.inf for key in keys])

    def _memory(self, config: Any, exporter: str) -> int | None:
        """The bytes that a network takes; None where it failed twice, which the store keeps as a failure to be told."""
        name, device_id = self._failure_key(config, exporter)
        key = (name, digest([device_id, "memory"]))
        if not self.store.missing("failure", [key]):
            return None
        source, reasons = self._source(config, exporter)(), []
        while len(reasons) < ATTEMPTS:
            try:
                with self._spending("memory"):
                    return peak_memory(self.device, source, self.engine)
            except NetworkError as error:
                reasons.append(str(error))
        device = dataclasses.asdict(self.device) | self.fingerprint
        self.store.add("failure", key, dataclasses.asdict(Failure(tuple(reasons), now(), device)))
        print(f"{self.device.name}: how much memory {config} takes cannot be told: {reasons[-1]}")
        return None

    def reasons(self, X: np.ndarray, exporter: str) -> str:
        """Why rows of X failed on the device."""
        failures = [failure for config in self.supernet.space.decode(X) for failure in self._failures(config, exporter)]
        return "; ".join(sorted({reason for failure in failures for reason in failure["reasons"]}))

    def fix_scale(self, X: np.ndarray) -> None:
        """Take what the reference takes when nothing disturbs from the measurements of X, which were taken; for good.

        So all latencies of a search are on one scale, and those of a second search are on the same.
        """
        self.quiet = self._quiet([self._visits(config, self.exporter) for config in self.supernet.space.decode(X)])

    @property
    def reference_ms(self) -> float:
        """What the reference network takes when nothing disturbs: the scale of all latencies, once it is fixed."""
        return self.quiet[self._reference]

    @cached_property
    def _reference(self) -> str:
        """The id of what is timed beside all others: the smallest network, in `COPIES`."""
        return digest([self._key(self.supernet.space.smallest(), "search")[0], COPIES])

    def noise_floor(self, X: np.ndarray, visits: int | None = None) -> float:
        """How well the measurements of the rows of X, which were taken, repeat; relative."""
        return noise_floor(self._visits(config, self.exporter, visits) for config in self.supernet.space.decode(X))

    def busy_seconds(self, X: np.ndarray, visits: int) -> float:
        """For how many seconds the rows of X run in all `VISITS`, told by the first `visits`, or were waited for in
        vain."""
        configs = self.supernet.space.decode(X)
        known = [m for config in configs for m in self._visits(config, self.exporter, visits)]
        reasons = [why for c in configs for failed in self._failures(c, self.exporter) for why in failed["reasons"]]
        waited = sum(float(found[1]) for why in reasons if (found := re.search(r"no answer in ([\d.]+) s", why)))
        ran = sum(m.rounds * (m.runs + self.device.warmup) * m.median / 1e3 for m in known)
        return waited + ran * VISITS / visits

    def _quiet(self, networks: Iterable[Sequence[Measurement]]) -> dict[str, float]:
        return undisturbed((m for measurements in networks for m in measurements), self.device.statistic)

    def other_devices(self, X: np.ndarray) -> dict[str, FrozenEstimator]:
        """By device, predictors of the others on which enough rows of X were timed before any was on this one.

        None is taken that was stored later, so that a call which is repeated does as before.
        """
        configs, kinds = self.supernet.space.decode(X), product(("search", "final"), writers())
        networks = [[self._network(config, *kind) for config in configs] for kind in kinds]
        own = self.store.first("latency", [(name, self.device_id) for names in networks for name in names])
        found = {}
        for device_id, names in product(self.store.values("latency", "device_id"), networks):
            records = self.store.get("latency", [(name, device_id) for name in names], before=own)
            timed = {
                i: [Measurement(**record) for record in records[name, device_id][:VISITS]]
                for i, name in enumerate(names)
                if (name, device_id) in records
            }
            if device_id != self.device_id and len(timed) >= FIRST_SAMPLES:
                model = LatencyPredictor(terms=self.supernet.cost_terms)
                model.fit(X[list(timed)], least_latencies(timed.values()))
                found[f"{next(iter(timed.values()))[0].device['name']} {device_id[:8]}"] = FrozenEstimator(model)
        return found

    def _key(self, config: Any, exporter: str) -> tuple[str, str]:
        return self._network(config, exporter, self._written_by), self.device_id

    def _network(self, config: Any, exporter: str, by: Sequence[str]) -> str:
        """The id of a network as an exporter writes it, "search" or "final", with the programs that it needs."""
        terms = self.supernet.cost_terms  # its fields are what shapes a network, beside the config
        arguments = {f.name: getattr(terms, f.name) for f in dataclasses.fields(terms) if f.name != "space"}
        exporter = [exporter, *by, *self.supernet.files_form] if exporter else ""
        return network_id(type(self.supernet).__name__, arguments | {"exporter": exporter}, config)

    def _records(self, config: Any, exporter: str, table: str = "latency") -> list[Measurement]:
        """What was measured of a network beside the reference, as it was taken."""
        key = self._key(config, exporter)
        records = [Measurement(**record) for record in self.store.get(table, [key]).get(key, [])]
        return [m for m in records if m.reference == self._reference]

    def _visits(self, config: Any, exporter: str, visits: int | None = None) -> Sequence[Measurement]:
        """Those that predictors learn from: later ones change nothing that is known."""
        records = self._records(config, exporter)
        return [m for m in records if m.rounds == self._visit_rounds][: visits or VISITS]

    @property
    def _visit_rounds(self) -> int:
        """The rounds of a visit: half of the device's, but no fewer than a device may have."""
        return min(
            max(self.device.rounds // 2, LEAST_ROUNDS, math.ceil(LEAST_RUNS / self.device.runs)), self.device.rounds
        )

    def _failures(self, config: Any, exporter: str) -> list[dict[str, Any]]:
        key = self._failure_key(config, exporter)
        return self.store.get("failure", [key]).get(key, [])

    def _failure_key(self, config: Any, exporter: str) -> tuple[str, str]:
        """As `_key`; that of a file that ships also by the weights, with others of which it may work."""
        name, device_id = self._key(config, exporter)
        return (digest([name, self.weights_id]) if exporter == "final" else name), device_id

    def _time(
        self, configs: Sequence[Any], exporter: str, what: str, table: str = "latency", rounds: int | None = None
    ) -> None:
        """Time networks in so many rounds, or in as many as the device asks for."""
        if not configs:
            return
        fresh = table == "confirmation"
        expected = self.fingerprint | ({"layout": "random"} if fresh else {})
        keys = {self._key(config, exporter)[0]: config for config in configs}
        sources = ((key, self._source(config, exporter)) for key, config in keys.items())
        reference = (self._reference, self._source(self.supernet.space.smallest(), "search"))
        try:
            with self._spending("timing"):
                device = dataclasses.replace(self.device, rounds=rounds or self.device.rounds)
                timed = measure(device, sources, reference, engine=self.engine, fresh=fresh)
                for key, result in progress(timed, len(keys), what):
                    if any(result.device[name] != told for name, told in expected.items() if name != "cpus"):
                        raise ValueError(f"{self.device.name}: of several machines that differ: {result.device}")
                    if isinstance(result, Failure):
                        self.store.add("failure", self._failure_key(keys[key], exporter), dataclasses.asdict(result))
                    else:
                        self.store.add(table, (key, self.device_id), dataclasses.asdict(result))
        except NetworkError as error:
            raise ValueError(f"{self.device.name}: {error}") from error

    def _source(self, config: Any, exporter: str) -> Callable[[], Any]:
        def make() -> Any:
            if self.device.times_modules:
                return self._subnet(config, exporter).inference(self.device.batch)
            return self.network_file(config, exporter)

        return make

    @contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        """Adds the seconds that it lasts to those spent on `what`, less those spent on something else meanwhile."""
        began, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            others = sum(self.seconds.values()) - before
            self.seconds[what] += time.perf_counter() - began - others

    def _subnet(self, config: Any, exporter: str) -> Supernet:
        if exporter == "final":
            return self.calibrated(config)
        # Time does not depend on the statistics, but they must be sane for the file to be checked.
        subnet = self.supernet.extract(config).eval()
        return calibrate(subnet, [subnet.example_inputs(8)])

    def network_file(self, config: Any, exporter: str) -> Path:
        """What the device loads of the network, written where it is not there yet: a file, or a folder of them."""
        folder = self.files / self._key(config, exporter)[0]

        def write(temporary: Path) -> None:
            ranges = self.data.calibration_batches() if self.device.precision == "int8" else ()
            write_parts(self._subnet(config, exporter), self.device, temporary, exporter == "search", ranges)

        if not folder.is_dir():  # each appears whole
            try:
                with self._spending("export"):
                    write_folder(folder, write, ())
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            trim(self.files)
        else:
            os.utime(folder)  # `trim` takes the oldest
        return folder if (folder / PLAN).is_file() else part_file(folder, next(folder.iterdir()).stem)

    def _files(self, config: Any, exporter: str) -> list[Path]:
        path = self.network_file(config, exporter)
        return sorted((path if path.is_dir() else path.parent).iterdir())

    # ---- accuracy

    def evaluate(self, X: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """{"accuracy": (n,), "loss": (n,)} of the rows of X on the select part, by torch, BatchNorm recalibrated."""
        configs = self.supernet.space.decode(X)
        keys = [(self._key(config, "")[0], self.weights_id, self.data_id("select")) for config in configs]
        missing = set(self.store.missing("accuracy", keys))
        todo = {key: config for key, config in zip(keys, configs) if key in missing}
        for key, config in progress(iter(todo.items()), len(todo), what):
            with self._spending("accuracy"):
                figures = evaluate_network(self.calibrated(config), self.selected)
            if not np.isfinite(figures["loss"]):
                raise ValueError(f"the loss of {config} is {figures['loss']}: did the supernet's training diverge?")
            self.store.add("accuracy", key, figures)
        records = self.store.get("accuracy", keys)
        return {name: np.array([records[key][-1][name] for key in keys]) for name in ("accuracy", "loss")}

    def torch_items(self, config: Any) -> dict[str, np.ndarray]:
        """Figures of the items of the select part (see `evaluate_items`), by torch."""
        network = self.calibrated(config)
        return evaluate_items(lambda inputs: network(*network.prepare(inputs)), self.selected)

    def file_items(self, config: Any, part: str) -> dict[str, np.ndarray]:
        """Figures of the items of a part of the data (see `evaluate_items`): of the file that ships, in its runtime.

        The devices that time modules, torch-compile too, have no file: there it is the network, layer by layer.
        """
        runtime = {name: self.fingerprint[name] for name in ("cpu", "version")}
        runtime |= {"runtime": self.device.runtime, "precision": self.device.precision}
        key = (self._key(config, "final")[0], self.weights_id, digest([self.data_id(part), runtime]))
        if not self.store.missing("items", [key]):
            return {name: np.array(values) for name, values in self.store.get("items", [key])[key][-1].items()}
        with self._spending("accuracy"):
            with self._forward(config) as (network, forward):
                items = evaluate_items(lambda inputs: forward(network.prepare(inputs)), part_of(self.data, part))
        self.store.add("items", key, {name: values.tolist() for name, values in items.items()})
        return items

    @contextmanager
    def _forward(self, config: Any) -> Iterator[tuple[Supernet, Callable[[Sequence[Tensor]], Tensor]]]:
        """The network, and what the device computes of its inputs."""
        if self.device.times_modules:
            network = self.calibrated(config).to(memory_format=torch.channels_last)  # as the device runs it
            yield network, lambda inputs: network(*inputs)
            return
        network, file = self.supernet.extract(config).eval(), self.network_file(config, "final")
        if self.engine == "process":  # it ran before, so that nothing is to be feared for this process
            yield network, partial(network.run_parts, self.device.open(file))
            return
        try:
            with ENGINES[self.engine](self.device) as call:
                call("open", file)
                yield network, partial(network.run_parts, partial(call, "run"))
        except NetworkError as error:
            raise ValueError(f"{self.device.name}: {config} cannot be evaluated: {error}") from error

    def calibrated(self, config: Any) -> Supernet:
        return calibrate(self.supernet.extract(config).eval(), self.data.calibration_batches())

    # ---- result

    def write(self, folder: Path, config: Any, report: dict[str, Any]) -> None:
        """The winner's files, all or none: the saved subnet, those that the device loads, the report and the front."""
        subnet = self.calibrated(config)
        files = self._files(config, "final")  # those that were timed, if they were

        def write(temporary: Path) -> None:
            write_network(subnet, temporary, self.section)
            for file in files:
                shutil.copyfile(file, temporary / file.name)
            text = json.dumps(json.loads(json.dumps(report, default=float), parse_constant=lambda _: None), indent=1)
            (temporary / "report.json").write_text(text + "\n")  # JSON has no NaN, and no infinity
            draw_front(report).savefig(temporary / "front.png", dpi=120)
            write_page(report, self.supernet.space, config, temporary / "report.html")

        write_folder(folder, write, FILES, overwrite=True)


def trim(files: Path) -> None:
    """Delete networks' folders while all take more than `CACHE` bytes, the longest unused first; `KEPT` stay.

    Other processes may write, and trim, the same.
    """
    found = []
    for folder in files.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):  # which are not yet whole
            with suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in folder.iterdir())
                found.append((folder.stat().st_mtime_ns, folder, size))
    surplus = sum(size for *_, size in found) - CACHE
    for _, folder, size in sorted(found)[:-KEPT]:
        if surplus <= 0:
            return
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        surplus -= size


def write_parts(
    network: Supernet, device: Device, folder: Path, fast: bool, inputs: Iterable[Sequence[Tensor]]
) -> None:
    """Write the files that a device loads of a network to `folder`, and its plan, if it has several parts.

    `fast` takes a faster exporter, where there is one. For an int8 device the `inputs` of the network, in batches, are
    what it is calibrated on (`seen_by_parts`).
    """
    seen = seen_by_parts(network, device.batch, inputs) if device.precision == "int8" else {}
    for name, part in network.parts(device.batch).items():
        write_part(part, device, folder / name, fast, seen.get(name))
    write_plan(network, folder, device.batch)


def write_part(
    part: Part, device: Device, path: Path, fast: bool, seen: Sequence[Mapping[str, np.ndarray]] | None
) -> Path:
    """Write the file that a device loads of a part; `path` is without its suffix. With the inputs `seen`, as int8."""
    if RUNTIMES[device.runtime].files == ".pte":
        # Its file is for one batch size alone.
        fitting = seen and [some for feeds in seen for some in batches(feeds, part.limits.get("batch"))]
        return part_to_executorch(part, path.with_suffix(".pte"), fitting)
    if seen is None:
        return part_to_onnx(part, path.with_suffix(".onnx"), fast)
    with tempfile.TemporaryDirectory() as folder:
        source = part_to_onnx(part, Path(folder) / "float32.onnx", fast)
        if device.runtime == "openvino":
            return quantize_openvino(source, path.with_suffix(".xml"), seen)
        return quantize_onnx(source, path.with_suffix(".onnx"), seen)


@torch.inference_mode()
def seen_by_parts(
    network: Supernet, batch: int, inputs: Iterable[Sequence[Tensor]]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """What the parts of a network get as inputs, each in batches of the size that its file is for.

    That of the first `CALIBRATION` items of `inputs`; of a part that runs often, of `CALIBRATION_RUNS` of its runs.
    """
    parts, rng = network.parts(batch), np.random.default_rng(0)
    seen: dict[str, list[Mapping[str, np.ndarray]]] = {name: [] for name in parts}
    runs = dict.fromkeys(seen, 0)

    def watched(name: str, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if all(x.size for x in feeds.values()):  # caches are empty before the first step, and have no range
            runs[name] += 1
            place = len(seen[name]) if runs[name] <= CALIBRATION_RUNS else rng.integers(runs[name])
            if place < CALIBRATION_RUNS:
                seen[name][place : place + 1] = [feeds]
        part = parts[name]
        made = part.module(*(torch.from_numpy(feeds[key]) for key in part.names))
        return {key: x.numpy() for key, x in zip(part.outputs, [made] if isinstance(made, Tensor) else made)}

    items = 0
    for some in inputs:
        some = [x[: CALIBRATION - items] for x in some]
        network.run_parts(watched, network.prepare(some))
        if (items := items + len(some[0])) == CALIBRATION:
            break
    sizes = {name: None if part.dynamic else batch for name, part in parts.items()}
    return {name: [some for feeds in seen[name] for some in batches(feeds, sizes[name])] for name in parts}


def written_by(runtime: str, precision: str) -> tuple[str, ...]:
    """The programs that write the files which a runtime loads: other versions may write files that take other times."""
    files = RUNTIMES[runtime].files
    packages = {None: [], ".pte": ["torch", "executorch"]}.get(files, ["torch", "onnxscript"])
    if precision == "int8":
        packages = [*packages, {"openvino": "nncf", "executorch": "torchao"}.get(runtime, "onnxruntime")]
    try:
        return tuple(f"{package} {importlib.metadata.version(package)}" for package in packages)
    except importlib.metadata.PackageNotFoundError as error:
        extra = RUNTIMES[runtime].extra
        what = f"'supernet[{extra}]'" if extra else error.name
        raise ImportError(f"{error.name} is not installed: pip install {what}") from None


def writers() -> list[tuple[str, ...]]:
    """`written_by` of all that is installed here, each once."""
    found = {}
    for name, runtime in RUNTIMES.items():
        for precision in runtime.precisions:
            with suppress(ImportError):
                found[written_by(name, precision)] = None
    return list(found)


def try_device(device: Device, folder: Path) -> Measurement:
    """Measure a small network; whatever keeps the device from doing so is raised."""
    device.fingerprint()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)).eval()
    x = torch.randn(device.batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    source: Any = (network, (x,))
    if not device.times_modules:
        seen = [{"input": x.numpy()}] if device.precision == "int8" else None
        source = write_part(Part(network, (x,), ("input",)), device, folder / "network", True, seen)
    ((_, result),) = measure(dataclasses.replace(device, spacing=0.0), {"network": source}, engine="process")
    if isinstance(result, Failure):
        raise NetworkError(result.reasons[0])
    return result


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


PARTS = ("select", "report", "test")


def part_of(data: Any, name: str) -> Iterator[list[Tensor]]:
    """Batches of a part of the data: select, every other held-out item, by which networks are chosen; report, the held-
    out items in between, and test, the test set, which choose nothing."""
    if name == "test":
        yield from data.test_dataloader()
        return
    seen = 0
    for batch in data.val_dataloader():
        items = [x[(PARTS.index(name) + seen) % 2 :: 2] for x in batch]
        seen += len(batch[-1])
        if len(items[-1]):
            yield items


def data_digest(data: Any, batches: Iterable[Sequence[Tensor]]) -> str:
    """The identity of what accuracies are of: these batches, and those that calibrate."""
    seen = [
        [state_digest({str(i): x for i, x in enumerate(batch)}) for batch in some]
        for some in (batches, data.calibration_batches())
    ]
    return digest([seen, {name: value for name, value in data.input_spec.items() if name not in TIMING}])


def progress(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """The items, with a progress bar."""
    yield from track(items, description=what, total=total) if total else ()
