"""The accuracy predictor: from a hundred evaluated networks to the accuracy of any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import RidgeCV
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.latency import Terms, rows_of


class AccuracyPredictor(RegressorMixin, BaseEstimator):
    """X (n, genes) -> accuracy (n,) in the unit it was fitted in: ridge regression on genes and their values.

    Features are the standardised genes, one indicator for each value of each gene that has at most `max_values` (0, an
    absent layer, is one of them) and, where `terms` are given, the standardised logarithms of the cost terms. The
    penalty is the one of `alphas` with the least leave-one-out error; targets are standardised inside.

    Minus the held-out cross entropy is a less noisy target than accuracy, and ranks networks alike. Cost terms help
    where rows are few and a choice that moves all costs, such as the resolution, decides.
    """

    def __init__(
        self,
        *,
        terms: Terms | None = None,
        alphas: Sequence[float] = (0.01, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 10000),
        max_values: int = 16,
    ) -> None:
        self.terms = terms
        self.alphas = alphas
        self.max_values = max_values

    def fit(self, X: np.ndarray, y: np.ndarray) -> AccuracyPredictor:
        X = rows_of(X, self.terms)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        values = [np.unique(column) for column in X.T]
        kept = [(i, value) for i, v in enumerate(values) if 1 < len(v) <= self.max_values for value in v]
        self.gene_ = np.array([i for i, _ in kept], dtype=int)
        self.value_ = np.array([value for _, value in kept])
        features = self._features(X)
        scale = features.std(axis=0)
        scale[scale == 0] = 1.0
        scale[X.shape[1] : X.shape[1] + len(kept)] = 1.0  # indicators: rare values are to be shrunk more
        spread = y.std() or 1.0
        mean = features.mean(axis=0)
        model = RidgeCV(self.alphas).fit((features - mean) / scale, (y - y.mean()) / spread)
        self.alpha_ = model.alpha_
        self.coef_ = model.coef_ / scale * spread
        self.intercept_ = model.intercept_ * spread + y.mean() - mean @ self.coef_
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, rows_of(X, self.terms), dtype=np.float64, reset=False)
        return self._features(X) @ self.coef_ + self.intercept_

    def _features(self, X: np.ndarray) -> np.ndarray:
        features = [X, X[:, self.gene_] == self.value_]
        if self.terms is not None:
            features += [np.log1p(term)[:, None] for term in self.terms(X).values()]
        return np.hstack(features)
