"""The latency predictor on HAT's published measurements: how few of them it needs.

    python benchmarks/hat_latency.py FILE... [--rows 50 100 200] [--seeds 20]

FILE is one of the `*_all.csv` of HAT's latency datasets (Wang et al., arXiv 2005.14187): features of a network, the
decoder's averaged over its layers, and its latency in ms, encoder and decoder. `LatencyPredictor` sees 13 products of
them. A permutation of the rows puts four fifths in the training pool and the last tenth in the test set; of the pool a
seed draws the training rows. For each file and number of rows: mean and standard deviation over the seeds of the mean
absolute error in %, and of Kendall's tau among test networks of equal decoder depth (mean over the depths, weighted by
their networks). Beside them, what a constant (the median) and a line on decoder depth alone reach.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from predictors.latency import LatencyPredictor, fit_relative_huber, quality

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    files = {path.name: read(path) for path in arguments.files}
    mean = {rows: [] for rows in arguments.rows}
    print("file | rows | MAPE % (sd) | tau within a depth (sd)")
    for name, (products, depths, y) in files.items():
        order = np.random.default_rng(2020).permutation(len(y))
        pool, test = order[: int(POOL * len(y))], order[int(TEST * len(y)) :]
        for rows in arguments.rows:
            errors, taus = [], []
            for seed in range(arguments.seeds):
                drawn = np.random.default_rng(seed).choice(pool, rows, replace=False)
                predicted = LatencyPredictor().fit(products[drawn], y[drawn]).predict(products[test])
                errors.append(quality(y[test], predicted)["mape"])
                taus.append(within(depths[test], y[test], predicted))
            mean[rows].append(np.mean(errors))
            print(
                f"{name} | {rows} | {np.mean(errors):.3f} ({np.std(errors):.3f})"
                f" | {np.mean(taus):.3f} ({np.std(taus):.3f})",
                flush=True,
            )
        intercept, coef = fit_relative_huber(depths[pool, None], y[pool], 0.0)
        line = quality(y[test], intercept + depths[test] * coef[0])["mape"]
        constant = quality(y[test], np.full(len(test), np.median(y[pool])))["mape"]
        print(f"{name} | {len(pool)} | decoder depth alone {line:.3f}, constant {constant:.3f} |", flush=True)
    for rows, errors in mean.items():
        print(f"mean of the files | {rows} | {np.mean(errors):.3f} |")


if __name__ == "__main__":
    main()
