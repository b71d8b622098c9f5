"""The report of a specialized network: what was found, how good it is, and how it was measured."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.constraints import LATENCY, Constraints, Deployed
from recipes.quality import Quality
from supernet.evaluation import compare, means
from supernet.metadata import Measured, MeasuredMetric, Z

if TYPE_CHECKING:
    from recipes.lab.lab import Lab

VERSION = 1  # of report.json


@dataclasses.dataclass(frozen=True)
class Rival:
    """Another network of the supernet, which the chosen one is compared with on the test set.

    Args:
        name: what it is.
        config: its choices.
        latency_ms: its latency; None where it failed on the device.
        measured: whether the latency was measured; else it is predicted.
        macs: multiply-accumulates of one inference.
        params: parameters.
        metrics: {metric: value} on the test set, computed by torch.
        difference: the chosen network's metric less its own, on the same items.
        low: lower end of the 95 % interval of the difference.
        high: upper end of the 95 % interval of the difference.
    """

    name: str
    config: dict[str, Any]
    latency_ms: float | None
    measured: bool
    macs: int
    params: int
    metrics: dict[str, float]
    difference: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Report:
    """A specialized network, as report.json has it. Latencies are in ms, sizes in MB (1e6 bytes).

    Args:
        version: of this format.
        config: the network: a value for each choice of the search space.
        device: the device, its protocol, and the machine.
        bounds: {constraint: the largest value asked for}, such as latency_ms.
        latency_ms: latency of the exported file in new processes, with drift divided out: the one that kept the budget.
        clock_latency_ms: the same measurement as the clock reported it.
        first_latency_ms: the earlier measurement by which the network was shortlisted.
        predicted_latency_ms: what was predicted before any measurement.
        measured: {constraint: all its measurements of the exported file}.
        macs: multiply-accumulates of one inference.
        params: parameters.
        metric: what the network was chosen by.
        metrics: {split: {metric: value}} of the exported file in its runtime. `selection` chose the network;
            `held_out` and `test` chose nothing.
        measured_metric: the metric on the test set with its 95 % interval.
        torch_metrics: {metric: value} on the selection split, computed by torch.
        rivals: the largest network, and the best random network that is predicted to keep the bounds.
        smallest_ms: latency of the smallest network; None if it failed.
        largest_ms: latency of the largest network; None if it failed.
        finalists: the networks that were exported and measured for this budget.
        failed_finalists: how many more failed.
        samples: the random networks that were evaluated, with predicted latency and metrics.
        latency_predictor: {"mape": mean absolute error in %, "tau": Kendall's tau, "n"}, cross-validated.
        metric_predictors: the same of each metric.
        noise_floor: how well latencies repeat, as a relative difference.
        reference_ms: undisturbed latency of the reference network, which drift is relative to.
        proxy_check: {"ratio", "low", "high"} of the latency of delivered files over that of proxies; None if unchecked.
        transfers_from: {"devices": whose latencies helped the predictor, "share": their weight}.
        file_offset: {metric: mean difference of exported files and networks in torch}.
        timed: lengths of the timed inference, in tokens, of a translation network.
        seconds: {activity: seconds} on the device so far.
        files: names of the files of the folder.
        supernet: folder of the supernet.
        data: class_path and init_args of the data.
        command: the command that wrote the report, if a command did.
        written: when, UTC.
    """

    config: dict[str, Any]
    device: dict[str, Any]
    bounds: dict[str, float]
    latency_ms: float
    clock_latency_ms: float | None
    first_latency_ms: float
    predicted_latency_ms: float
    measured: dict[str, list[float]]
    macs: int
    params: int
    metric: str
    metrics: dict[str, dict[str, float]]
    measured_metric: MeasuredMetric
    torch_metrics: dict[str, float]
    rivals: list[Rival]
    smallest_ms: float | None
    largest_ms: float | None
    finalists: list[dict[str, Any]]
    failed_finalists: int
    samples: list[dict[str, float]]
    latency_predictor: dict[str, float]
    metric_predictors: dict[str, dict[str, float]]
    noise_floor: float
    reference_ms: float
    proxy_check: dict[str, float] | None
    transfers_from: dict[str, Any]
    file_offset: dict[str, float]
    timed: dict[str, int]
    seconds: dict[str, float]
    supernet: str | None
    data: dict[str, Any]
    command: str | None
    written: str
    files: tuple[str, ...] = ()
    version: int = VERSION

    @classmethod
    def of(
        cls,
        lab: Lab,
        best: Deployed,
        bounds: Mapping[str, float],
        quality: Quality,
        constraints: Constraints,
        deployed: Sequence[Deployed],
    ) -> Report:
        """The report of a chosen network; evaluates its file and its rivals on all splits."""
        from predictors.engines import NetworkError
        from recipes.lab.keys import LENGTHS
        from recipes.lab.splits import SPLITS, TEST

        try:
            items = {split: lab.evaluator.file_items(best.config, split) for split in SPLITS}
        except NetworkError as error:
            raise ValueError(f"{lab.device.name}: {best.config} can no longer be evaluated: {error}") from error
        samples, metric = constraints.samples, quality.metric.name
        own = [one for one in deployed if one.found_for == bounds[LATENCY] or one is best]
        ran = [one for one in own if math.isfinite(one.latency_ms)]
        by_file = [one for one in own if one.file_metrics]
        costs = {unit: int(values[0]) for unit, values in lab.supernet.costs(np.array([best.row])).items()}
        computed = {"runtime": lab.device.runtime, "precision": lab.device.precision}
        evaluated = quality.X[: quality.n_random]
        random = {name: values[: quality.n_random] for name, values in quality.metrics.items()}
        spec = lab.supernet.input_spec
        return cls(
            config=dataclasses.asdict(best.config),
            device=dataclasses.asdict(lab.device) | lab.timer.fingerprint,
            bounds=dict(bounds),
            latency_ms=best.measured[LATENCY][-1],
            clock_latency_ms=best.clock_ms,
            first_latency_ms=best.measured[LATENCY][0],
            predicted_latency_ms=best.predicted[LATENCY],
            measured={name: list(values) for name, values in best.measured.items()},
            macs=costs["macs"],
            params=costs["params"],
            metric=metric,
            metrics={split: means(of) for split, of in items.items()},
            measured_metric=MeasuredMetric.of(items[TEST], metric, TEST, **computed),
            torch_metrics=best.metrics,
            rivals=find_rivals(lab, quality, constraints, items[TEST]),
            smallest_ms=finite(samples.ends_ms[0]),
            largest_ms=finite(samples.ends_ms[1]),
            finalists=[describe(one, metric) for one in ran],
            failed_finalists=len(own) - len(ran),
            samples=[
                {"predicted_latency_ms": ms} | {name: float(values[i]) for name, values in random.items()}
                for i, ms in enumerate(constraints.latency.predict(evaluated).tolist())
            ],
            latency_predictor=samples.quality,
            metric_predictors=quality.reliability,
            noise_floor=samples.noise_floor,
            reference_ms=samples.baseline[lab.timer.reference_key],
            proxy_check=samples.check and dataclasses.asdict(samples.check),
            transfers_from={"devices": list(samples.sources), "share": constraints.latency.share},
            file_offset={
                name: float(np.mean([one.file_metrics[name] - one.metrics[name] for one in by_file]))
                for name in quality.metrics
            },
            timed={name: spec[name] for name in LENGTHS if name in spec},
            seconds={what: round(seconds, 3) for what, seconds in lab.ledger.seconds.items()},
            supernet=lab.source,
            data=lab.section,
            command=this_command(),
            written=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def budget_ms(self) -> float:
        """The bound on latency in ms."""
        return self.bounds[LATENCY]

    def to_json(self) -> str:
        """The report as JSON, in which NaN and infinity are null."""
        values = dataclasses.asdict(self)
        plain = json.loads(json.dumps(values, default=float), parse_constant=lambda _: None)
        return json.dumps(plain, indent=1) + "\n"

    def as_measured(self) -> Measured:
        """What the metadata of the exported files state."""
        return Measured.of(json.loads(self.to_json()))

    def verdict(self) -> str:
        """The result in one line."""
        values = [f"{self.metrics[split][self.metric]:.4f} ({split})" for split in self.metrics]
        return (
            f"budget {self.budget_ms:.3f} ms: predicted {self.predicted_latency_ms:.3f} ms, measured"
            f" {self.latency_ms:.3f} ms; {self.metric} of the exported file {', '.join(values)}"
        )


def find_rivals(lab: Lab, quality: Quality, constraints: Constraints, items: Mapping[str, np.ndarray]) -> list[Rival]:
    """The largest network, and the best random network within the bounds; compared with the test `items`."""
    from recipes.lab.splits import TEST

    metric, rivals = quality.metric, []
    ends = lab.space.encode([lab.space.largest()])
    candidates = [("largest network", ends[0], finite(constraints.samples.ends_ms[1]), True)]
    X = quality.X[: quality.n_random]
    within = np.flatnonzero(constraints.within(X, cautious=False))
    if len(within):
        best = X[max(within, key=lambda i: metric.sign * quality.metrics[metric.name][i])]
        ms = float(constraints.latency.predict(best[None])[0])
        candidates.append(("best random network within the bounds", best, ms, False))
    for name, row, ms, measured in candidates:
        (config,) = lab.space.decode(row[None])
        its = lab.evaluator.torch_items(config, TEST)
        difference, error = compare(items, its, metric.name)
        costs = lab.supernet.costs(row[None])
        rivals.append(
            Rival(
                name=name,
                config=dataclasses.asdict(config),
                latency_ms=ms,
                measured=measured,
                macs=int(costs["macs"][0]),
                params=int(costs["params"][0]),
                metrics=means(its),
                difference=difference,
                low=difference - Z * error,
                high=difference + Z * error,
            )
        )
    return rivals


def describe(one: Deployed, metric: str) -> dict[str, Any]:
    """A finalist in a report."""
    return {
        "config": dataclasses.asdict(one.config),
        "found_for_ms": one.found_for,
        "latency_ms": one.measured[LATENCY][0],
        "confirmed_latency_ms": one.measured[LATENCY][-1] if one.confirmed else None,
        "measured": {name: list(values) for name, values in one.measured.items()},
        "predicted_latency_ms": one.predicted[LATENCY],
        f"predicted_{metric}": one.predicted[metric],
        "metrics": one.metrics,
        "file_metrics": one.file_metrics or None,
    }


def finite(ms: float) -> float | None:
    """A latency; None for a network that failed."""
    return ms if math.isfinite(ms) else None


def this_command() -> str | None:
    """The command line of this process, if it is the command `supernet`."""
    name = Path(sys.argv[0]).name
    return shlex.join(["supernet", *sys.argv[1:]]) if name == "supernet" else None
