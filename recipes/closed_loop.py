"""The search of `supernet specialize`: what it finds is measured as the files that ship, which corrects it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import KFold

from predictors.accuracy import AccuracyPredictor
from predictors.engines import NetworkError
from predictors.latency import LatencyPredictor
from recipes.bench import LENGTHS, PARTS, Bench
from recipes.benches import LEAST_SAMPLES
from recipes.sampling import Shared, at_least_two, ends_of, held_out_quality, samples_near, time_samples
from supernet.evaluation import compare, means
from supernet.search import InfeasibleError, evolutionary_search

ROUNDS = 5  # of search, export and measuring
REFITS = 3  # searches in a round at most, each with an accuracy predictor that has seen what the one before found
LEVEL = 0.9  # of the intervals whose upper ends the first round goes by
WRONG = 0.01  # the largest difference between the losses of a network and of its float32 file, relative
MARGIN = 1.25  # by how much the smallest network may exceed a bound before the search is refused at once
POOL = 1000  # networks whose MACs and parameters are looked at for that
COSTS = ("macs", "params", "file_mb", "memory_mb")  # that may be bounded, beside latency; MB are 1e6 bytes


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
    shared: Shared | None = None,
    explore: bool = False,
) -> dict[str, Any]:
    """Search, measure what was found as the files that ship, correct the predictors, and again.

    Until one meets the budget (ms) and the other `bounds` ({one of `COSTS`: its largest value}) and nothing that seems
    to is better, or for `ROUNDS`. `direct` evaluates every network that the search scores, where there is else a
    predictor of `accuracy_samples` evaluated ones; what is `shared` counts, and competes, and what is evaluated and
    timed here joins it. Without `latency_samples` or `accuracy_samples`, networks are timed or evaluated until more
    would tell little. All of this sees the `select` part of the data.
    Writes the network to `folder` and returns the report; without a folder, {}, and what is shared is what it is for.
    `explore` ends after one search, of which the evaluated networks are shared: no file is delivered or timed for it.
    ValueError if none meets the budget.
    """
    space, rng, figure = bench.supernet.space, np.random.default_rng(seed), bench.supernet.figure
    if "memory_mb" in (bounds or {}):
        bench.device.check_memory()
    shared = shared or Shared()
    bench.will_evaluate()
    ends = space.encode([space.smallest(), space.largest()])
    refuse_closed_forms(bench, bounds or {}, ends)
    refuse_budget(bench, budget, ends[:1])
    refuse_footprints(bench, bounds or {}, ends[:1])
    X, timed_ms = sampled_once(bench, latency_samples, rng, seed)
    smallest_ms, largest_ms = ends_of(timed_ms)
    X, timed_ms = X[np.isfinite(timed_ms)], timed_ms[np.isfinite(timed_ms)]
    bench.fix_scale(X)
    floor = bench.noise_floor(X)
    X, timed_ms = at_least_two(X, timed_ms)
    latency = LatencyPredictor(terms=bench.supernet.cost_terms, sources=list(bench.sources.values()))
    folds = KFold(5, shuffle=True, random_state=seed)
    asked = bench.device, latency_samples, seed
    if asked not in bench.latency_quality:
        bench.latency_quality[asked] = held_out_quality(latency, X, timed_ms, KFold(5))
    report: dict[str, Any] = {
        "budget_ms": budget,
        "timed": {name: bench.supernet.input_spec[name] for name in LENGTHS if name in bench.supernet.input_spec},
        "device": dataclasses.asdict(bench.device) | bench.fingerprint,
        "latency_predictor": bench.latency_quality[asked],
        "noise_floor": floor,
        "reference_ms": bench.reference_ms,
        "exporters_ratio": bench.exporters_ratio,
        "exporters_interval": bench.exporters_interval,
        "smallest_ms": smallest_ms,
        "largest_ms": largest_ms if math.isfinite(largest_ms) else None,  # it failed on the device
    }
    latency.fit(X, timed_ms)
    report["transfers_from"] = {"devices": list(bench.sources), "share": latency.share_}
    fastest = {"config": space.decode(X[[timed_ms.argmin()]])[0], "latency_ms": timed_ms.min()}
    if budget < min(timed_ms.min(), latency.predict(X).min()):
        raise ValueError(f"{budget:g} ms cannot be met: of the samples {told_fastest([fastest], budget)}")
    limits = [Limit(bench, name, bound, X) for name, bound in (bounds or {}).items()]
    report["bounds"] = dict(bounds or {})

    # The search ranks by cross entropy, which a few hundred items tell far better than accuracy.
    predictors = {name: AccuracyPredictor(terms=bench.supernet.cost_terms) for name in ("accuracy", "loss")}
    A = ends
    if not direct:
        constraints = [(latency.predict, budget), *limits_of(limits)]
        A = samples_near(bench, shared, accuracy_samples, rng, constraints, folds)
        shared.random = A[2:]
    samples = len(A)
    if shared.found is not None:
        A = np.concatenate([A, shared.found])
    figures = bench.evaluate(A, "evaluating samples")
    if not direct:  # how good they are is told by random networks alone
        told_by = {name: values[:samples] for name, values in figures.items()}
        report["accuracy_predictor"] = {
            name: held_out_quality(model, A[:samples], told_by[name], folds) for name, model in predictors.items()
        }

    def score(X: np.ndarray) -> np.ndarray:
        return -(bench.evaluate(X, "evaluating")["loss"] if direct else predictors["loss"].predict(X))

    def slowest_told(X: np.ndarray) -> np.ndarray:
        """The upper ends of the intervals that latencies are predicted to lie in; few rows tell none for `LEVEL`.

        An interval without an end, where the predictor knows nothing, is beyond any budget.
        """
        rows = len(latency.cv_errors_)
        return np.minimum(latency.interval(X, min(LEVEL, (rows - 0.5) / (rows + 1)))[1], 1e6 * budget)

    timed = shared.timed.setdefault((bench.device_id, bench.device.statistic), {})
    asked = {"latency_ms": budget} | report["bounds"]

    def known_latencies() -> tuple[np.ndarray, np.ndarray]:
        """Rows and what they took: the samples, and what ran of the networks timed as the files that ship."""
        # The first measurement, which a repeated call finds again, unless the second one said no.
        took = {row: slowest(f) if f.get("confirmed_ms", 0.0) > budget else f["latency_ms"] for row, f in timed.items()}
        took = {row: ms for row, ms in took.items() if math.isfinite(ms)}
        return np.array([*X, *took]), np.array([*timed_ms, *took.values()])

    def learn(C: np.ndarray) -> None:
        """Correct the predictors by the rows C, which ran as the files that ship."""
        for limit in limits:
            limit.learn(C)
        latency.fit(*known_latencies())

    def within(told: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Which of the evaluated rows seem to keep all bounds."""
        took = {tuple(row): ms for row, ms in zip(*known_latencies())}  # what was timed needs no prediction
        keeps = np.array([took.get(tuple(row), ms) for row, ms in zip(A, told(A))]) <= budget
        for limit in limits:
            keeps &= limit.predict(A) <= limit.bound
        return keeps

    def least_loss(told: Callable[[np.ndarray], np.ndarray]) -> float:
        return figures["loss"][within(told)].min(initial=math.inf)

    def search_once(told: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What a search finds that is new, at most as many rows as finalists."""

        def search() -> np.ndarray:
            constraints = [(told, budget), *limits_of(limits)]
            sizes = {"population": population, "generations": generations, "seed": seed}
            return distinct(evolutionary_search(space, score, constraints, **sizes).X, A, finalists)

        if direct:  # what it evaluates is to be shared
            return search()
        by = [(limit.name, limit.bound, limit.model) for limit in limits]
        sizes = (population, generations, seed, finalists)
        return bench.searched((told is slowest_told, latency, predictors["loss"], budget, by, space, A, sizes), search)

    if timed:
        learn(np.array([row for row, final in timed.items() if math.isfinite(final["latency_ms"])]))
    # The first round keeps to networks that are fast enough for sure, the others go as far as the predictor, which has
    # been corrected by then; of a later budget, by the networks that were timed for others.
    corrected = len(known_latencies()[0]) >= len(X) + finalists
    for told in (latency.predict if corrected else slowest_told, *[latency.predict] * (ROUNDS - 1)):
        # A predictor errs most where search takes it to be best, so what it finds there is evaluated, and corrects it.
        for _ in range(1 if direct or explore else REFITS):
            if not direct:
                predictors["loss"].fit(A, figures["loss"])
            try:
                with bench.ledger.spending("searching"):
                    new = search_once(told)
            except InfeasibleError:  # to the corrected predictor nothing is fast enough
                break
            found = bench.evaluate(new, "evaluating what the search found")
            least = least_loss(told)
            A = np.concatenate([A, new])
            shared.found = A[samples:]
            figures = {name: np.concatenate([values, found[name]]) for name, values in figures.items()}
            if least_loss(told) >= least:  # another one would find no better either
                break
        if explore:
            return {}
        chosen = next_finalists(A, figures, figure, within(told), timed, asked, finalists)
        if not chosen and told is slowest_told:
            continue
        if not chosen:
            break
        C, measured = A[chosen], bench.final_latencies(A[chosen], "timing the exported files of the finalists")
        hopes = figures[figure][chosen]
        others = np.delete(np.arange(len(A)), chosen)  # a prediction is by one that has not seen the network
        if not direct and len(others) < 2:  # of a space of few networks
            hopes = np.full(len(chosen), math.nan)
        elif not direct:
            hopes = clone(predictors[figure]).fit(A[others], figures[figure][others]).predict(C)
        for i, row, config, ms, guess, hope in zip(chosen, C, space.decode(C), measured, latency.predict(C), hopes):
            final = {
                "config": config,
                "found_for_ms": budget,
                "latency_ms": float(ms),
                "predicted_latency_ms": float(guess),
                f"predicted_{figure}": float(hope),
            } | {name: float(values[i]) for name, values in figures.items()}
            final |= {limit.name: limit.of(config) if math.isfinite(ms) else math.inf for limit in limits}
            timed[tuple(row)] = final
        best_file(bench, list(timed.values()), asked)  # confirms
        learn(C[np.isfinite(measured)])
    winner = best_file(bench, list(timed.values()), asked)
    if winner is None:
        raise ValueError(none_met(list(timed.values()), asked, fastest))
    if folder is None:
        return {}

    report |= winner | {"config": dataclasses.asdict(winner["config"]), "figure": figure}
    try:
        report |= {part: means(bench.file_items(winner["config"], part)) for part in PARTS}
    except NetworkError as error:
        raise ValueError(f"{bench.device.name}: {winner['config']} can no longer be evaluated: {error}") from error
    finals = [final for final in timed.values() if final["found_for_ms"] == budget or final is winner]
    ran = [final for final in finals if math.isfinite(slowest(final))]
    # What the file computes is not quite what torch does, least of all where its layers are quantized.
    files = [final for final in finals if f"file_{figure}" in final]
    report["file_offset"] = {name: float(np.mean([f[f"file_{name}"] - f[name] for f in files])) for name in figures}
    report["finalists"] = [{k: v for k, v in final.items() if k != "config"} for final in ran]
    report["failed_finalists"] = len(finals) - len(ran)
    costs = bench.supernet.costs(space.encode([winner["config"]]))
    report |= {unit: int(values[0]) for unit, values in costs.items()}
    report["seconds"] = {what: round(seconds, 3) for what, seconds in bench.ledger.seconds.items()}
    report["samples"] = [
        {"predicted_latency_ms": ms} | {name: float(values[i]) for name, values in figures.items()}
        for i, ms in enumerate(latency.predict(A[:samples]).tolist())
    ]
    with bench.ledger.spending("writing"):
        bench.write(folder, winner["config"], report)
    print(
        f"budget {budget:.3f} ms; predicted {winner['predicted_latency_ms']:.3f} ms, measured"
        f" {winner['confirmed_ms']:.3f} ms; the file's {figure} {report['select'][figure]:.4f} where it was chosen,"
        f" {report['report'][figure]:.4f} on other held-out items, {report['test'][figure]:.4f} on the test set;"
        f" written to {folder}"
    )
    return report


def sampled_once(
    bench: Bench, samples: int | None, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`time_samples` by a generator of this seed; the searches for several budgets ask once, and draw on alike."""
    asked = bench.device, samples, seed
    if asked not in bench.sampled:
        X, ms = time_samples(bench, samples, rng)
        bench.sampled[asked] = X, ms, rng.bit_generator.state
    X, ms, rng.bit_generator.state = bench.sampled[asked]
    return X, ms


def refuse_closed_forms(bench: Bench, bounds: Mapping[str, float], ends: np.ndarray) -> None:
    """ValueError where no network keeps a bound on MACs or parameters: nothing needs to be measured for that."""
    X = np.concatenate([ends, bench.supernet.space.sample(POOL, np.random.default_rng(0))])
    for name, least in ((name, float(values.min())) for name, values in bench.supernet.costs(X).items()):
        if bounds.get(name, math.inf) < least:
            raise ValueError(
                f"{name} = {bounds[name]:g} cannot be met: the smallest value among {len(X)} networks is"
                f" {least:g}. Give at least that"
            )


def refuse_budget(bench: Bench, budget: float, smallest: np.ndarray) -> None:
    """ValueError where the smallest network never ran within the budget, nor nearly so: told by its first visit."""
    (ms,) = bench.latencies(smallest, "timing the smallest network", visits=1)
    config = bench.supernet.space.decode(smallest)[0]
    least = bench.least_ms(config)
    if math.isfinite(ms) and budget * MARGIN < least:
        raise ValueError(
            f"the budget of {budget:g} ms cannot be met on {bench.device.name}: the smallest network takes {ms:.3f} ms,"
            f" its fastest run {least:.3f} ms. Give at least {1.05 * ms:.3f} ms, or a faster device"
        )


def refuse_footprints(bench: Bench, bounds: Mapping[str, float], smallest: np.ndarray) -> None:
    """ValueError where the smallest network's file, or its memory by a margin, is beyond the bound."""
    for name, exporter, margin in (("file_mb", "final", 1.0), ("memory_mb", "search", MARGIN)):
        if name in bounds:
            (mb,) = bench.footprints(smallest, exporter, name)
            if math.isfinite(mb) and bounds[name] * margin < mb:
                raise ValueError(
                    f"{name} = {bounds[name]:g} cannot be met: the smallest network has {mb:.3g} MB. Give at least that"
                )


def sign_of(figure: str) -> int:
    """1 where more of a figure is better, -1 where less is."""
    return 1 if figure == "accuracy" else -1


def next_finalists(
    A: np.ndarray,
    figures: Mapping[str, np.ndarray],
    figure: str,
    within: np.ndarray,
    timed: Mapping[tuple[float, ...], Mapping[str, Any]],
    bounds: Mapping[str, float],
    n: int,
) -> list[int]:
    """Which of the evaluated rows of A are to be timed as the files that ship, after those that are `timed`.

    Of those that seem `within` the bounds the n of the least cross entropy, since the highest of hundreds of accuracies
    is that of the luckiest network. One that turned out to miss a bound is none of them; where another one met them
    all, only those that seem better than the best of these.
    """
    missed = {row for row, final in timed.items() if misses(final, bounds)}
    order = np.argsort(figures["loss"], kind="stable")
    best = [i for i in order if within[i] and tuple(A[i]) not in missed][:n]
    sign = sign_of(figure)
    passed = [final for row, final in timed.items() if "confirmed_ms" in final and row not in missed]
    met = max((sign * final[figure] for final in passed), default=-math.inf)
    return [i for i in best if tuple(A[i]) not in timed and sign * figures[figure][i] > met]


def none_met(finals: Sequence[Mapping[str, Any]], bounds: Mapping[str, float], sample: Mapping[str, Any]) -> str:
    """By how much the finalists, those for other budgets too, missed the bounds, or why there are none; and the fastest
    of the samples."""
    (_, budget), *others = bounds.items()
    wanted = "".join(f" and {name} = {bound:g}" for name, bound in others)
    own = [final for final in finals if final["found_for_ms"] == budget]
    told = [] if own else ["none was predicted to"]
    if ran := [final for final in finals if math.isfinite(slowest(final))]:
        told += [f"the least {name} is {min(final[name] for final in ran):g}" for name, _ in others]
        told.append(told_fastest(ran, budget))
    elif own:
        told.append("none of them ran")
    elsewhere = f" and {len(finals) - len(own)} for other budgets" if len(finals) > len(own) else ""
    return (
        f"{len(own)} exported networks were timed{elsewhere}, none met {budget:.3f} ms{wanted}:"
        f" {', '.join(told)}; of the samples {told_fastest([sample], budget)}"
    )


def told_fastest(measured: Iterable[Mapping[str, Any]], budget: float) -> str:
    """The fastest of some networks, what it took, and by how much that is too long."""
    fastest = min(measured, key=slowest)
    short = slowest(fastest) - budget
    too_long = f", {short:.3f} ms too long" if short > 0 else ""
    return f"the fastest took {slowest(fastest):.3f} ms{too_long}: {fastest['config']}"


def misses(final: Mapping[str, Any], bounds: Mapping[str, float]) -> bool:
    """Whether a finalist misses one of the bounds, that on latency in either measurement."""
    return slowest(final) > bounds["latency_ms"] or any(final[name] > bound for name, bound in bounds.items())


def best_file(bench: Bench, finals: Sequence[dict[str, Any]], bounds: Mapping[str, float]) -> dict[str, Any] | None:
    """The finalist whose file is the best of those that meet all bounds, that on latency in two measurements.

    Where the files of faster ones are as good, within one standard error of the paired differences in accuracy and in
    cross entropy, which tells more from as many items, the fastest of them.
    ValueError where a file of float32 does not compute what the network does.
    """
    figure, budget = bench.supernet.figure, bounds["latency_ms"]
    sign = sign_of(figure)
    items = {}
    for final in finals:
        if not misses(final, bounds):
            try:
                items[id(final)] = bench.file_items(final["config"], "select")
            except NetworkError as error:
                print(f"{bench.device.name}: {final['config']} cannot be evaluated: {error}")
                final["confirmed_ms"] = math.inf  # as one that does not run
    fast = [final for final in finals if id(final) in items]
    for final in fast:
        final |= {f"file_{name}": value for name, value in means(items[id(final)]).items()}
        if bench.device.precision != "float32":
            continue
        if not math.isclose(final["file_loss"], final["loss"], rel_tol=WRONG, abs_tol=1e-4):
            final["confirmed_ms"] = math.inf  # the searches for other budgets leave it out
            raise ValueError(
                f"{bench.device.name} does not compute {final['config']} as torch does: the loss is"
                f" {final['file_loss']:g} by the exported file, {final['loss']:g} by the network"
            )

    def passes(final: dict[str, Any]) -> bool:
        if "confirmed_ms" not in final:
            final |= bench.confirm(final["config"])
        return final["confirmed_ms"] <= budget

    best = next(filter(passes, sorted(fast, key=lambda f: (-sign * f[f"file_{figure}"], f["latency_ms"]))), None)
    if best is None:
        return None

    def as_good(final: dict[str, Any]) -> bool:
        accuracy, loss = (compare(items[id(best)], items[id(final)], name) for name in ("accuracy", "loss"))
        return accuracy[0] <= accuracy[1] and -loss[0] <= loss[1]

    for final in sorted(fast, key=lambda final: final["latency_ms"]):
        if final["latency_ms"] >= best["latency_ms"]:
            return best
        if as_good(final) and passes(final) and final["confirmed_ms"] < best["confirmed_ms"]:
            return final
    return best


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
            if len(self.y) < min(LEAST_SAMPLES, len(X)):
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


def limits_of(limits: Iterable[Limit]) -> list[tuple[Callable[[np.ndarray], np.ndarray], float]]:
    """The constraints of a search that keep within limits."""
    return [(limit.predict, limit.bound) for limit in limits]
