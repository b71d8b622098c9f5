"""`supernet measure`: time networks, and report how well a latency predictor does on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from predictors.devices import get_device
from recipes.formats import written_by
from recipes.lab import open_lab
from recipes.saved import check_supernet
from recipes.values import FIRST_SAMPLES, MAX_TIMED, ending_on_sigterm, read_samples
from supernet.values import integer


def measure(
    supernet: str,
    device: str,
    samples: int | str = "auto",
    max_samples: int = MAX_TIMED,
    max_seconds: float = 3600.0,
    data: str | None = None,
    store: str | None = None,
    files: str | None = None,
    engine: str = "process",
    workers: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Time networks of a supernet on a device, and report how well a latency predictor does on them.

    The networks are those of 200 random ones from which a linear model learns most. The measurements are stored, and
    `specialize` uses them.

    Args:
        supernet: folder of a supernet; it need not be trained.
        device: what the latency is of, as in `specialize`.
        samples: networks to time; auto times networks until the predictor has converged.
        max_samples: largest number of networks, with auto.
        max_seconds: seconds that the device is busy, after which no more networks are timed, with auto.
        data: a YAML file with class_path and init_args; the data that the supernet was trained on if left out.
        store: SQLite file of all measurements, which are never repeated; measurements.sqlite beside the supernet if
            left out.
        files: folder that keeps exported files for later calls; a temporary folder if left out.
        engine: where networks are timed, as in `specialize`.
        workers: processes that export networks; one a core if left out.
        seed: of the random networks.

    Returns:
        {"n": networks timed, "failed": how many of them failed, "cv_error": cross-validated mean absolute relative
        error of the predictor, "macs_error": that of a straight line on MACs, "constant_error": that of one number for
        all networks, "noise_floor": how well measurements repeat, as a relative difference, "smallest_ms",
        "largest_ms", "seconds": by activity}
    """
    number, seed = read_samples("samples", samples), integer("seed", seed, 0)
    max_samples = integer("max_samples", max_samples, FIRST_SAMPLES)
    if not 0 < max_seconds < math.inf:
        raise ValueError(f"max_seconds = {max_seconds} is not a positive number")
    check_supernet(supernet, data)
    written_by(get_device(device))
    options = {"data": data, "store": store, "files": files, "engine": engine, "workers": workers}
    with ending_on_sigterm(), open_lab(supernet, device, splits=(), **options) as lab:
        return measure_space(lab, number, max_samples, max_seconds, seed)


def measure_space(lab: Any, samples: int | None, max_samples: int, max_seconds: float, seed: int) -> dict[str, Any]:
    """Time networks, and compare a latency predictor with two simpler ones; the result is that of `measure`."""
    from predictors.latency import LatencyPredictor
    from recipes.lab.sampling import time_samples

    timed = time_samples(lab, samples, seed, max_samples, max_seconds)
    terms = lab.supernet.cost_terms
    models = {
        "cv_error": timed.predictor(),
        "macs_error": LatencyPredictor(terms=MacsAlone(terms)),
        "constant_error": LatencyPredictor(terms=NoTerms()),
    }
    errors = {name: model.fit(timed.X, timed.ms).cv_error_ for name, model in models.items()}
    smallest, largest = (ms if math.isfinite(ms) else None for ms in timed.ends_ms)
    report = {"n": timed.n, "failed": timed.failed} | errors | {"noise_floor": timed.noise_floor}
    report |= {
        "smallest_ms": smallest,
        "largest_ms": largest,
        "seconds": {what: round(seconds, 1) for what, seconds in lab.ledger.seconds.items()},
    }
    print(
        f"{lab.device.name}: {timed.n} networks timed, {timed.failed} failed. The predictor's error is"
        f" {100 * errors['cv_error']:.2f} %, that of a line on MACs {100 * errors['macs_error']:.2f} %, that of a"
        f" constant {100 * errors['constant_error']:.2f} %. Measurements repeat to {100 * timed.noise_floor:.2f} %."
    )
    return report


@dataclasses.dataclass(frozen=True)
class MacsAlone:
    """MACs as the only term of a network's cost, for a straight line on MACs."""

    terms: Callable[[np.ndarray], Mapping[str, np.ndarray]]

    def __call__(self, X: np.ndarray) -> dict[str, np.ndarray]:
        return {"macs": sum(values for name, values in self.terms(X).items() if name.startswith("macs."))}


@dataclasses.dataclass(frozen=True)
class NoTerms:
    """No term that differs between networks, for a constant."""

    def __call__(self, X: np.ndarray) -> dict[str, np.ndarray]:
        return {"macs": np.zeros(len(X))}
