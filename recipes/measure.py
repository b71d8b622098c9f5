"""`supernet measure`: time networks, and report how well a latency predictor does on them."""

from __future__ import annotations

import math
from typing import Any

from recipes.benches import FIRST_SAMPLES, MOST_TIMED, ending_on_sigterm, open_bench, read_samples
from supernet.values import integer


def measure(
    supernet: str,
    device: str,
    samples: int | str = "auto",
    max_samples: int = MOST_TIMED,
    max_seconds: float = 3600.0,
    data: str | None = None,
    store: str | None = None,
    engine: str = "process",
    seed: int = 0,
) -> dict[str, Any]:
    """Time networks of a supernet on a device, and tell how well a latency predictor does on them.

    They are those of random ones from which a linear model learns most. What is measured goes to the store, from which
    `specialize` takes it.

    Args:
        supernet: folder of a supernet; it need not be trained.
        device: what the latency is of, as in `specialize`.
        samples: networks to time; auto, until more would tell the predictor little.
        max_samples: at most so many, with auto.
        max_seconds: no more once the networks ran on the device for so long, with auto.
        data: a YAML file with class_path and init_args; the data the supernet was trained on if left out.
        store: SQLite file of all measurements, which are never repeated; beside the supernet if left out.
        engine: as in `specialize`.
        seed: of the networks.

    Returns:
        {"n": networks timed, "failed": of them, "cv_error": cross-validated mean absolute relative error of the
        predictor, "macs_error": that of a straight line on MACs, "constant_error": that of one number for all,
        "noise_floor": how well the measurements repeat, relative, "smallest_ms", "largest_ms", "seconds": by what they
        were spent on}
    """
    number, seed = read_samples("samples", samples), integer("seed", seed, 0)
    max_samples = integer("max_samples", max_samples, FIRST_SAMPLES)
    if not 0 < max_seconds < math.inf:
        raise ValueError(f"max_seconds = {max_seconds} is not a positive number")

    import tempfile

    from recipes.sampling import measure_space

    with ending_on_sigterm(), tempfile.TemporaryDirectory() as files:
        with open_bench(supernet, device, data, store, files, engine, ()) as bench:
            return measure_space(bench, number, max_samples, max_seconds, seed)
