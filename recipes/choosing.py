"""Which networks are exported and measured, and which of them is chosen: pure functions of tables, apart from files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from predictors.engines import NetworkError
from recipes.constraints import LATENCY, Constraints, Deployed
from supernet.evaluation import METRICS, Metric, compare, means

if TYPE_CHECKING:
    from recipes.lab.lab import Lab

LOSS_TOLERANCE = 0.01  # the largest relative difference between the losses of a network and of its float32 file


def distinct(X: np.ndarray, known: np.ndarray, n: int) -> np.ndarray:
    """The first n rows of X that are not among `known`, and differ from one another in at least 3 genes."""
    taken = {tuple(row) for row in known}
    chosen: list[np.ndarray] = []
    for row in X:
        if tuple(row) not in taken and all((row != other).sum() >= 3 for other in chosen):
            chosen.append(row)
            if len(chosen) == n:
                break
    return np.array(chosen).reshape(-1, X.shape[1])


def shortlist(
    X: np.ndarray,
    metrics: Mapping[str, np.ndarray],
    metric: Metric,
    within: np.ndarray,
    deployed: Mapping[tuple[float, ...], Deployed],
    bounds: Mapping[str, float],
    n: int,
) -> list[int]:
    """Which of the evaluated rows of X to export and measure next, as indices; at most n.

    Of the rows that seem `within` the bounds these are the n of the least loss: the highest of hundreds of accuracies
    is that of the luckiest network. A network that was measured to violate a bound is left out. Where one met all
    bounds, so are those that do not seem better than the best of these.
    """
    violating = {row for row, one in deployed.items() if one.violates(bounds)}
    order = np.argsort(metrics["loss"], kind="stable")
    best = [i for i in order if within[i] and tuple(X[i]) not in violating][:n]
    met = [one for row, one in deployed.items() if one.confirmed and row not in violating]
    least = max((metric.sign * one.metrics[metric.name] for one in met), default=-math.inf)
    return [i for i in best if tuple(X[i]) not in deployed and metric.sign * metrics[metric.name][i] > least]


def choose(
    lab: Lab, deployed: Sequence[Deployed], metric: Metric, constraints: Constraints, bounds: Mapping[str, float]
) -> Deployed | None:
    """The network whose exported file is the best of those that meet all bounds; None if none does.

    Among the files that meet every bound the best one wins, by the metric on the selection split that the file reaches
    in its own runtime. If faster files are within one standard error of it, in the metric, in accuracy and in loss, the
    fastest of them wins. A network is confirmed before it is chosen.

    ValueError where a float32 file does not compute what the network does.
    """
    items = {}
    for one in deployed:
        if not one.violates(bounds):
            try:
                items[id(one)] = lab.evaluator.file_items(one.config, "selection")
            except NetworkError as error:
                print(f"{lab.device.name}: {one.config} cannot be evaluated: {error}")
                one.failed = str(error)
    fast = [one for one in deployed if id(one) in items]
    for one in fast:
        one.file_metrics = means(items[id(one)])
        if lab.device.precision == "float32":
            check_loss(lab.device.name, one)

    def passes(one: Deployed) -> bool:
        for constraint in constraints.all:
            constraint.confirm(lab, one)
        return not one.violates(bounds)

    ranked = sorted(fast, key=lambda one: (-metric.sign * one.file_metrics[metric.name], one.measured[LATENCY][0]))
    best = next(filter(passes, ranked), None)
    if best is None:
        return None

    def as_good(one: Deployed) -> bool:
        for name in dict.fromkeys((metric.name, "accuracy", "loss")):
            difference, error = compare(items[id(best)], items[id(one)], name)
            if METRICS[name].sign * difference > error:
                return False
        return True

    for one in sorted(fast, key=lambda one: one.measured[LATENCY][0]):
        if one.measured[LATENCY][0] >= best.measured[LATENCY][0]:
            return best
        if as_good(one) and passes(one) and one.measured[LATENCY][1] < best.measured[LATENCY][1]:
            return one
    return best


def check_loss(device: str, one: Deployed) -> None:
    """Raise ValueError where the loss of a float32 file is not that of its network; other searches leave it out."""
    loss, file_loss = one.metrics["loss"], one.file_metrics["loss"]
    if not math.isclose(file_loss, loss, rel_tol=LOSS_TOLERANCE, abs_tol=1e-4):
        one.failed = f"its loss is {file_loss:g} by the exported file, {loss:g} by the network"
        raise ValueError(f"{device} does not compute {one.config} as torch does: {one.failed}")


def none_met(
    deployed: Sequence[Deployed], bounds: Mapping[str, float], fastest_sample: float, sample_config: object
) -> str:
    """Why no network met the bounds: by how much the nearest ones exceeded them, and the fastest of the samples."""
    budget = bounds[LATENCY]
    wanted = "".join(f" and {name} = {bound:g}" for name, bound in bounds.items() if name != LATENCY)
    own = [one for one in deployed if one.found_for == budget]
    ran = [one for one in deployed if math.isfinite(one.latency_ms)]
    parts = [] if own else ["none was predicted to meet it"]
    if ran:
        parts += [
            f"the least {name} is {min(max(d.measured[name]) for d in ran):g}" for name in bounds if name != LATENCY
        ]
        nearest = min(ran, key=lambda one: one.latency_ms)
        parts.append(describe_fastest(nearest.latency_ms, budget, nearest.config))
    elif own:
        parts.append("none of them ran")
    elsewhere = f" and {len(deployed) - len(own)} for other budgets" if len(deployed) > len(own) else ""
    return (
        f"{len(own)} exported networks were timed{elsewhere}, none met {budget:.3f} ms{wanted}: {', '.join(parts)}; of"
        f" the samples {describe_fastest(fastest_sample, budget, sample_config)}"
    )


def describe_fastest(ms: float, budget: float, config: object) -> str:
    """The latency of the fastest of some networks, and by how much it exceeds the budget."""
    excess = f", {ms - budget:.3f} ms more than the budget" if ms > budget else ""
    return f"the fastest has a latency of {ms:.3f} ms{excess}: {config}"
