"""The latency predictor on a busy machine: fitted while other programs burn the processor, tested against quiet truth.

    python benchmarks/busy.py [--device onnxruntime] [--statistic min] [--size 64] [--out runs/busy]

The truth of 40 random subnets is the mean of what they take before and after all else; how far both are apart is
printed, and above 2 % (median) the machine was not quiet. In between 60 others are timed three times: quiet; while two
burners, seeded, are on and off for random 0.5 to 3 s; and while both are always on. Printed are the noise floor of each
and the mean absolute relative error in % on the 40 of a predictor that is fitted on it. Latencies are in terms of the
device's --statistic, its own (median) if left out. They depend on no weights, so these are random. Each run starts
anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from latency import FITTED, TESTED, error, make

from predictors import Device, LatencyPredictor, Store, get_device
from predictors.statistics import STATISTICS, TOO_NOISY
from recipes.lab.lab import Lab
from recipes.values import PROXY
from supernet.model import Supernet

BURNER = """
import random
import sys
import time

rng, always = random.Random(int(sys.argv[1])), sys.argv[2] == "always"
while True:
    end = time.monotonic() + rng.uniform(0.5, 3)
    while time.monotonic() < end:
        sum(range(1000))
    if not always:
        time.sleep(rng.uniform(0.5, 3))
"""


@contextmanager
def burners(when: str) -> Iterator[None]:
    """Two processes that burn `half` the time, or `always`; none for `never`."""
    seeds = () if when == "never" else (1, 2)
    running = [subprocess.Popen([sys.executable, "-c", BURNER, str(seed), when]) for seed in seeds]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def timed(supernet: Supernet, device: Device, X: np.ndarray, folder: Path, what: str) -> tuple[np.ndarray, float]:
    """Latencies (n,) in ms of the rows of X, measured now, and their noise floor."""
    with Store(folder / f"{what}.sqlite") as store:
        lab = Lab(supernet, None, device, store, folder / "files")
        ms, _ = lab.time(X, PROXY, what)
        return ms, lab.timer.noise_floor(lab.targets(X, PROXY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="onnxruntime")
    parser.add_argument("--statistic", choices=list(STATISTICS))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/busy"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    supernet, device = make("cnn", arguments.size), get_device(arguments.device)
    device = dataclasses.replace(device, statistic=arguments.statistic or device.statistic)
    X = supernet.space.sample(FITTED + TESTED, np.random.default_rng(0))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
        before, _ = timed(supernet, device, X[FITTED:], Path(folder), "truth, before")
        found = {}
        for when in ("never", "half", "always"):
            with burners(when):
                found[when] = timed(supernet, device, X[:FITTED], Path(folder), f"burning {when}")
        after, _ = timed(supernet, device, X[FITTED:], Path(folder), "truth, after")
    truth = (before + after) / 2
    print(
        f"{device.name}: truth {truth.min():.3f} to {truth.max():.3f} ms, its halves are {apart(before, after):.2f} %"
    )
    for when, (ms, floor) in found.items():
        model = LatencyPredictor(terms=supernet.cost_terms).fit(X[:FITTED], ms)
        busy = ", too busy" if floor > TOO_NOISY else ""
        print(f"  burning {when}: floor {100 * floor:.2f} %{busy}; predictor {error(model, X[FITTED:], truth):.2f} %")


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The median relative difference in %."""
    return float(100 * np.median(2 * np.abs(a - b) / (a + b)))


if __name__ == "__main__":
    main()
