"""The accuracy predictor of a trained supernet: how well it ranks subnets that it has not seen.

    supernet fit --config ofa/fashion_mnist --data.init_args.download true
    python benchmarks/accuracy.py runs/fashion_mnist/supernet [--out runs/accuracy]

Random subnets are evaluated on half of the held-out data, BatchNorm recalibrated: 200 to fit the predictor and 100
others to test it. Printed for fits of 25 to 200 are Kendall's tau between predicted and measured loss of the 100, and
between predicted loss and accuracy; beside it tau of minus MACs, and the ceiling: tau between two halves of the items.
Then tau within three bins of equally many networks by MACs, with the one-sided probability of so high a one by chance.
Figures are in OUT/accuracy.sqlite: a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from predictors import AccuracyPredictor, Store, get_device
from recipes.lab.lab import Lab
from recipes.saved import import_families, make_data, read_section
from supernet.evaluation import means
from supernet.saving import load

FITTED, TESTED, SIZES = 200, 100, (25, 50, 100, 200)


def tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(kendalltau(a, b).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernet", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    import_families()
    arguments.out.mkdir(parents=True, exist_ok=True)
    supernet, section = load(arguments.supernet), read_section(str(arguments.supernet))
    space = supernet.space
    X = space.sample(FITTED + TESTED, np.random.default_rng(0))
    with Store(arguments.out / "accuracy.sqlite") as store, tempfile.TemporaryDirectory() as files:
        lab = Lab(supernet, make_data(section), get_device("torch"), store, Path(files), section=section)
        fitted = lab.evaluate(X[:FITTED], "to fit")["loss"]
        items = [lab.evaluator.file_items(config, "selection") for config in space.decode(X[FITTED:])]
    tested, macs = X[FITTED:], supernet.costs(X[FITTED:])["macs"]
    found = {name: np.array([means(one)[name] for one in items]) for name in ("loss", "accuracy")}
    halves = [
        {name: np.array([means({k: v[half::2] for k, v in one.items()})[name] for one in items]) for name in found}
        for half in (0, 1)
    ]
    for n in SIZES:
        predicted = AccuracyPredictor(terms=supernet.cost_terms).fit(X[:n], fitted[:n]).predict(tested)
        print(f"fitted on {n}: tau {tau(predicted, found['loss']):.3f}, {tau(-predicted, found['accuracy']):.3f}")
    for name, sign in (("loss", -1), ("accuracy", 1)):
        ceiling = tau(halves[0][name], halves[1][name])
        print(f"{name}: MACs alone {tau(macs, sign * found[name]):.3f}, ceiling {ceiling:.3f}")
    for rows in np.array_split(np.argsort(macs), 3):
        test = kendalltau(predicted[rows], found["loss"][rows], alternative="greater")
        print(
            f"{macs[rows].min() / 1e6:.1f} to {macs[rows].max() / 1e6:.1f} MMACs: tau {test.statistic:.3f} (chance"
            f" {test.pvalue:.2g}), MACs alone {tau(-macs[rows], found['loss'][rows]):.3f}"
        )


if __name__ == "__main__":
    main()
