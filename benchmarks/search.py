"""Closed-form costs, and evolutionary search at the papers' defaults: CPU seconds, evaluations, score.

    python benchmarks/search.py [ofa|hat]

ofa: population 100, 500 generations, 25 resolutions, a random ReLU network of 3 x 400 on X as score, a budget in MACs.
hat: population 125, 30 generations, space 0; an accuracy predictor fitted on 100 networks and a latency predictor
fitted on 60, of made-up losses and latencies. One thread. `pytest -m slow tests/test_search.py` compares the scores
with those of the original's algorithm.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import time  # noqa: E402
from statistics import median  # noqa: E402

import numpy as np  # noqa: E402

import hat  # noqa: E402
import ofa  # noqa: E402
from predictors import AccuracyPredictor, LatencyPredictor  # noqa: E402
from supernet.search import evolutionary_search  # noqa: E402


def search_ofa() -> None:
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


def search_hat() -> None:
    supernet = hat.Transformer(vocab_size=4008)
    space, seconds = supernet.space, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        X = space.sample(100, rng)
        costs = supernet.costs(X)
        latency = LatencyPredictor(terms=supernet.cost_terms).fit(X[:60], costs["macs"][:60] * rng.normal(1, 0.02, 60))
        loss = -np.log(costs["params"]) + rng.normal(0, 0.01, 100)
        accuracy = AccuracyPredictor(terms=supernet.cost_terms).fit(X, -loss)
        start = time.process_time()
        result = evolutionary_search(
            space,
            accuracy.predict,
            [(latency.predict, float(np.median(costs["macs"])))],
            population=125,
            generations=30,
            parent_ratio=0.2,
            mutation_probability=0.3,
            seed=seed,
        )
        seconds.append(time.process_time() - start)
        print(f"search {seed}: {len(result.X)} networks scored, {seconds[-1]:.2f} CPU s", flush=True)
    print(f"median {median(seconds):.2f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", choices=["ofa", "hat"], default="ofa")
    {"ofa": search_ofa, "hat": search_hat}[parser.parse_args().family]()


if __name__ == "__main__":
    main()
