"""The latency predictor on HAT's published measurements: how few of them it needs.

    python benchmarks/hat_latency.py FILE... [--rows 50 100 200] [--seeds 20] [--others]

FILE is one of the `*_all.csv` of HAT's latency datasets (Wang et al., arXiv 2005.14187): features of a network, the
decoder's averaged over its layers, and its latency in ms, encoder and decoder. `LatencyPredictor` sees 13 products of
them. A permutation of the rows puts four fifths in the training pool and the last tenth in the test set; of the pool a
seed draws the training rows. For each file and number of rows: mean and standard deviation over the seeds of the mean
absolute error in %, and of Kendall's tau among test networks of equal decoder depth (mean over the depths, weighted by
their networks). Beside them, what a constant (the median) and a line on decoder depth alone reach; with --others also
scikit-learn's Gaussian process (Matern kernel of a length for each product, and noise) and gradient boosting (on the
absolute error), both of the logarithm of the latency.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau
from sklearn.base import BaseEstimator, clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from predictors.latency import LatencyPredictor, fit_relative_huber, quality

PRODUCTS = 13  # of features
POOL, TEST = 0.8, 0.9  # of the shuffled rows, before the first and after the second


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the 13 products (n, 13), decoder depths (n,), latencies (n,) in ms) of a file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows")

    def column(name: str) -> np.ndarray:
        if name not in rows[0]:
            raise ValueError(f"{path} has no column {name}")
        return np.array([float(row[name]) for row in rows])

    E, encoder_ffn = column("encoder_embed_dim"), column("encoder_ffn_embed_dim_avg")
    D, ffn, L = column("decoder_embed_dim"), column("decoder_ffn_embed_dim_avg"), column("decoder_layer_num")
    heads, cross_heads = column("decoder_self_attention_heads_avg"), column("decoder_ende_attention_heads_avg")
    span, encoder_heads = column("decoder_arbitrary_ende_attn_avg"), column("encoder_self_attention_heads_avg")
    decoder = [L, L * D, L * ffn, L * ffn * D, L * heads, L * cross_heads, L * span, L * span * E, D, ffn]
    products = np.stack([*decoder, E, encoder_ffn * E, encoder_heads], axis=1)
    return products, L, column("latency_mean_encoder") + column("latency_mean_decoder")


def within(groups: np.ndarray, y: np.ndarray, predicted: np.ndarray) -> float:
    """Kendall's tau among the rows of equal group, mean over the groups weighted by their rows."""
    sizes, taus = [], []
    for group in np.unique(groups):
        rows = groups == group
        if rows.sum() > 2:
            sizes.append(rows.sum())
            taus.append(kendalltau(y[rows], predicted[rows]).statistic)
    return float(np.average(taus, weights=sizes))


def gaussian_process() -> BaseEstimator:
    kernel = ConstantKernel() * Matern(np.ones(PRODUCTS), (1e-2, 1e4), nu=2.5) + WhiteKernel(1e-2, (1e-6, 1))
    model = make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0))
    return TransformedTargetRegressor(model, func=np.log, inverse_func=np.exp)


def gradient_boosting() -> BaseEstimator:
    model = GradientBoostingRegressor(loss="absolute_error", n_estimators=300, max_depth=3, random_state=0)
    return TransformedTargetRegressor(model, func=np.log, inverse_func=np.exp)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--others", action="store_true", help="other kinds of predictors, too: slow")
    arguments = parser.parse_args()
    files = {path.name: read(path) for path in arguments.files}
    models = {"": LatencyPredictor()}
    if arguments.others:
        models |= {", Gaussian process": gaussian_process(), ", gradient boosting": gradient_boosting()}
    mean = {(rows, kind): [] for rows in arguments.rows for kind in models}
    print("file | rows | MAPE % (sd) | tau within a depth (sd)")
    for name, (products, depths, y) in files.items():
        order = np.random.default_rng(2020).permutation(len(y))
        pool, test = order[: int(POOL * len(y))], order[int(TEST * len(y)) :]
        for rows, kind in mean:
            errors, taus = [], []
            for seed in range(arguments.seeds):
                drawn = np.random.default_rng(seed).choice(pool, rows, replace=False)
                predicted = clone(models[kind]).fit(products[drawn], y[drawn]).predict(products[test])
                errors.append(quality(y[test], predicted)["mape"])
                taus.append(within(depths[test], y[test], predicted))
            mean[rows, kind].append(np.mean(errors))
            print(
                f"{name}{kind} | {rows} | {np.mean(errors):.3f} ({np.std(errors):.3f})"
                f" | {np.mean(taus):.3f} ({np.std(taus):.3f})",
                flush=True,
            )
        intercept, coef = fit_relative_huber(depths[pool, None], y[pool], 0.0)
        line = quality(y[test], intercept + depths[test] * coef[0])["mape"]
        constant = quality(y[test], np.full(len(test), np.median(y[pool])))["mape"]
        print(f"{name} | {len(pool)} | decoder depth alone {line:.3f}, constant {constant:.3f} |", flush=True)
    for (rows, kind), errors in mean.items():
        print(f"mean of the files{kind} | {rows} | {np.mean(errors):.3f} |")


if __name__ == "__main__":
    main()
