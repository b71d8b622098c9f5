"""The latency predictor: a robust linear model on cost terms, from a few dozen measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import mean_absolute_percentage_error
from sklearn.model_selection import KFold
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

Terms = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # X (n, genes) -> {term: (n,)}, such as supernet.cost_terms


class LatencyPredictor(RegressorMixin, BaseEstimator):
    """X (n, genes) -> latency (n,) in the unit it was fitted in (ms): linear in the cost terms of the networks.

    `terms` is a frozen, picklable function of X; without it, X itself is the terms. The model minimises Huber's loss of
    the *relative* error, which the slow spells of a busy machine do not drag along, plus a ridge penalty, since terms
    are collinear: its strength is the one of `alphas` with the least cross-validated mean absolute relative error.
    Latencies that are not positive raise ValueError.
    """

    def __init__(
        self,
        *,
        terms: Terms | None = None,
        alphas: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100),
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.terms = terms
        self.alphas = alphas
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> LatencyPredictor:
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = np.asarray(y, dtype=np.float64)
        if y.min() <= 0:
            raise ValueError(f"a latency is positive, not {y.min():g}")
        terms = self._terms(X)
        folds = KFold(min(self.folds, len(y)), shuffle=True, random_state=self.random_state)
        errors = np.zeros(len(self.alphas))
        for train, test in folds.split(terms):
            for i, alpha in enumerate(self.alphas):
                intercept, coef = fit_relative_huber(terms[train], y[train], alpha)
                errors[i] += np.abs((intercept + terms[test] @ coef) / y[test] - 1).sum()
        self.alpha_ = self.alphas[int(errors.argmin())]
        self.cv_error_ = float(errors.min() / len(y))
        self.intercept_, self.coef_ = fit_relative_huber(terms, y, self.alpha_)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.intercept_ + self._terms(X) @ self.coef_

    def _terms(self, X: np.ndarray) -> np.ndarray:
        return X if self.terms is None else np.stack(list(self.terms(X).values()), axis=1).astype(np.float64)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags


def fit_relative_huber(terms: np.ndarray, y: np.ndarray, alpha: float) -> tuple[float, np.ndarray]:
    """The intercept and coefficients (terms,) that minimise Huber's loss of (prediction - y) / y plus a ridge penalty.

    Iteratively reweighted least squares; residuals beyond 1.345 robust standard deviations (95 % efficient on Gaussian
    noise) count linearly. The penalty is on the standardised terms, relative to the mean of y.
    """
    mean, scale = terms.mean(axis=0), terms.std(axis=0)
    scale[scale <= 1e-12 * np.abs(mean)] = np.inf  # a constant term tells nothing that the intercept does not
    rows = np.column_stack([np.ones(len(y)), (terms - mean) / scale]) / y[:, None]
    penalty = np.diag(np.r_[0.0, np.full(terms.shape[1], alpha / y.mean() ** 2)])
    weights = np.ones(len(y))
    for _ in range(50):
        weighted = rows.T * weights
        # lstsq, since without a penalty terms may be exactly collinear.
        solution = np.linalg.lstsq(weighted @ rows + penalty, weighted.sum(axis=1))[0]
        residual = np.abs(rows @ solution - 1)
        previous, limit = weights, 1.345 * np.median(residual) / 0.6745 + 1e-12
        weights = np.minimum(1, limit / np.maximum(residual, 1e-12))
        if np.abs(weights - previous).max() < 1e-4:
            break
    coef = solution[1:] / scale
    return float(solution[0] - mean @ coef), coef


def quality(y: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """How good held-out predictions are: mean absolute error in % of y (`mape`), Kendall's tau (`tau`), rows (`n`)."""
    return {
        "mape": float(100 * mean_absolute_percentage_error(y, predicted)),
        "tau": float(kendalltau(y, predicted).statistic),
        "n": len(y),
    }
