"""The latency predictor on this machine: random subnets, measured here, of an image and of a translation supernet.

    python benchmarks/latency.py cnn|translation DEVICE ... [--size 128] [--batch 8] [--out runs/latency]

Of each device 60 uniformly random subnets are timed to fit the predictor and 40 others, later, to test it. Printed are
the mean absolute relative errors in % on the 40: of the predictor, of a straight line on MACs and of a constant; the
noise floor of the measurements; how many of the 40 the predictor's 90 % intervals hold, as the mean over 10 random
splits of the 100; and where `supernet measure --samples auto` stops, which times subnets that it chooses, with its
predictor's error. Each device but the first also has the error of a predictor that is fitted on 10 of its measurements
with the first one's predictor as its source, and without it, as the mean over 20 draws of 40 of the 60: of these the 10
which tell most (`supernet measure` chooses so, among more), and 10 random ones.

Weights are random: latency does not depend on them. cnn is MobileNetV3, width 0.5, at --size pixels (64) and smaller;
translation is that of recipes/hat/libreoffice_en_de.yaml. Measurements are in OUT/*.sqlite: a run that was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from sklearn.frozen import FrozenEstimator

import hat
import ofa
from predictors import LatencyPredictor, Store, get_device, quality
from predictors.latency import d_optimal_order
from recipes.cli import recipe_path
from recipes.lab.lab import Lab
from recipes.measure import MacsAlone, NoTerms
from recipes.values import PROXY
from supernet.model import Supernet

FITTED, TESTED = 60, 40


def make(family: str, size: int) -> Supernet:
    torch.manual_seed(0)
    if family == "cnn":
        space = ofa.mobilenet_v3_space(resolution=tuple(range(size // 2, size + 1, size // 4)))
        return ofa.MobileNetV3(space, num_classes=10, width_mult=0.5)
    arguments = yaml.safe_load(Path(recipe_path("hat/libreoffice_en_de")).read_text())["model"]["supernet"]["init_args"]
    space = hat.transformer_space(**arguments.pop("space")["init_args"])
    return hat.Transformer(space, **arguments)


def error(model: LatencyPredictor, X: np.ndarray, ms: np.ndarray) -> float:
    return quality(ms, model.predict(X))["mape"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["cnn", "translation"])
    parser.add_argument("devices", nargs="+", metavar="DEVICE")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/latency"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    supernet = make(arguments.family, arguments.size)
    space, terms, rng = supernet.space, supernet.cost_terms, np.random.default_rng(0)
    X = space.sample(FITTED + TESTED, rng)
    fitted, tested = slice(0, FITTED), slice(FITTED, None)
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = None
    for name in arguments.devices:
        device = dataclasses.replace(get_device(name), batch=arguments.batch)
        with Store(arguments.out / f"{arguments.family}.sqlite") as store:
            lab = Lab(supernet, None, device, store, arguments.out / "files")
            lab.time(X[fitted], PROXY, f"{name}, to fit")
            lab.time(X[tested], PROXY, f"{name}, to test")
            ms, baseline = lab.time(X, PROXY, name)
            floor = lab.timer.noise_floor(lab.targets(X, PROXY))
        models = {
            "predictor": LatencyPredictor(terms=terms),
            "MACs": LatencyPredictor(terms=MacsAlone(terms)),
            "constant": LatencyPredictor(terms=NoTerms()),
        }
        errors = {
            what: error(model.fit(X[fitted], ms[fitted]), X[tested], ms[tested]) for what, model in models.items()
        }
        print(f"{arguments.family}, {name}, batch {arguments.batch}: {ms.min():.3f} to {ms.max():.3f} ms")
        print(
            "  " + ", ".join(f"{what} {value:.2f} %" for what, value in errors.items()) + f", floor {100 * floor:.2f} %"
        )
        print(f"  90 % intervals hold {100 * coverage(terms, X, ms):.0f} %", flush=True)
        if source is not None:
            for which, few in transfer(terms, source, X, ms).items():
                print(
                    f"  from 10 {which}: {few[0]:.2f} % with {arguments.devices[0]} as source, {few[1]:.2f} % without",
                    flush=True,
                )
        if source is None:
            source = models["predictor"]
        with Store(arguments.out / f"{arguments.family}-{name}-auto.sqlite") as store:
            lab = Lab(supernet, None, device, store, arguments.out / "files")
            samples = lab.samples(None, seed=1)
            key = lab.timer.reference_key
            scale = baseline[key] / samples.baseline[key]  # all latencies are on one scale
        auto = error(LatencyPredictor(terms=terms).fit(samples.X, scale * samples.ms), X[tested], ms[tested])
        print(f"  auto stops at {samples.n}, {auto:.2f} %", flush=True)


def coverage(terms: object, X: np.ndarray, ms: np.ndarray) -> float:
    held = []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(X))
        fitted, tested = np.sort(order[:FITTED]), order[FITTED:]
        low, high = LatencyPredictor(terms=terms).fit(X[fitted], ms[fitted]).interval(X[tested])
        held.append(np.mean((low <= ms[tested]) & (ms[tested] <= high)))
    return float(np.mean(held))


def transfer(
    terms: Callable[[np.ndarray], dict[str, np.ndarray]], source: LatencyPredictor, X: np.ndarray, ms: np.ndarray
) -> dict[str, np.ndarray]:
    """Errors on the tested rows of predictors of 10 fitted ones, with and without a source, by how the 10 are chosen:
    means of 20 draws."""
    table = np.stack(list(terms(X).values()), axis=1)
    errors = {"most informative": np.empty((20, 2)), "random": np.empty((20, 2))}
    for seed in range(20):
        some = np.random.default_rng(seed).choice(FITTED, 40, replace=False)
        for which, rows in (("most informative", some[d_optimal_order(table[some])[:10]]), ("random", some[:10])):
            few = np.sort(rows)
            for column, sources in enumerate(([FrozenEstimator(source)], [])):
                model = LatencyPredictor(terms=terms, sources=sources).fit(X[few], ms[few])
                errors[which][seed, column] = error(model, X[FITTED:], ms[FITTED:])
    return {which: of.mean(axis=0) for which, of in errors.items()}


if __name__ == "__main__":
    main()
