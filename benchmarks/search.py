"""Closed-form costs, and evolutionary search at Once-for-All's defaults: CPU seconds, evaluations, score.

    python benchmarks/search.py

Population 100, 500 generations, 25 resolutions, a random ReLU network of 3 x 400 on X as score, a budget in MACs, one
thread. `pytest -m slow tests/test_search.py` compares the scores with those of the original's algorithm.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import time  # noqa: E402
from statistics import median  # noqa: E402

import numpy as np  # noqa: E402

import ofa  # noqa: E402
from supernet.search import evolutionary_search  # noqa: E402


def main() -> None:
    supernet = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=tuple(range(128, 225, 4))))
    space, terms = supernet.space, supernet.cost_terms
    largest = space.encode([space.largest()])[0]

    def macs(X: np.ndarray) -> np.ndarray:
        return sum(values for term, values in terms(X).items() if term.startswith("macs."))

    def mlp(seed: int):
        rng = np.random.default_rng(seed)
        shapes = ((space.width, 400), (400, 400), (400, 400), (400, 1))
        layers = [(rng.normal(size=shape) * (2 / shape[0]) ** 0.5).astype(np.float32) for shape in shapes]

        def score(X: np.ndarray) -> np.ndarray:
            hidden = (X / largest).astype(np.float32)
            for layer in layers[:-1]:
                hidden = np.maximum(hidden @ layer, 0)
            return (hidden @ layers[-1])[:, 0]

        return score

    X = space.sample(10_000, np.random.default_rng(0))
    seconds = []
    for _ in range(20):
        start = time.process_time()
        supernet.costs(X)
        seconds.append(time.process_time() - start)
    print(f"costs of 10,000 networks: median {1000 * median(seconds):.1f} CPU ms", flush=True)

    for budget in (250e6, 400e6):
        seconds = []
        for seed in range(5):
            score = mlp(seed)
            start = time.process_time()
            result = evolutionary_search(space, score, [(macs, budget)], seed=seed)
            seconds.append(time.process_time() - start)
            print(
                f"{budget / 1e6:.0f} MMACs, network {seed}: score {result.score:.4f} at {result.costs[0, 0] / 1e6:.1f}"
                f" MMACs, {len(result.X)} networks scored, {seconds[-1]:.2f} CPU s",
                flush=True,
            )
        print(f"{budget / 1e6:.0f} MMACs: median {median(seconds):.2f} CPU s")


if __name__ == "__main__":
    main()
