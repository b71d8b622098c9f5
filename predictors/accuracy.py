"""The accuracy predictor: from a hundred evaluated networks to the accuracy of any other."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import RidgeCV
from sklearn.utils.validation import check_is_fitted, validate_data


class AccuracyPredictor(RegressorMixin, BaseEstimator):
    """X (n, genes) -> accuracy (n,) in the unit it was fitted in: ridge regression on standardised genes.

    X holds 0 for an absent layer, so that depth shows in every gene of the layers it counts. The strength of the
    penalty is the one of `alphas` with the least leave-one-out error; targets are standardised inside.
    """

    def __init__(self, *, alphas: tuple[float, ...] = (0.1, 1, 10, 100, 1000)) -> None:
        self.alphas = alphas

    def fit(self, X: np.ndarray, y: np.ndarray) -> AccuracyPredictor:
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        self.mean_, self.scale_ = X.mean(axis=0), X.std(axis=0)
        self.scale_[self.scale_ == 0] = 1.0
        spread = y.std() or 1.0
        model = RidgeCV(self.alphas).fit((X - self.mean_) / self.scale_, (y - y.mean()) / spread)
        self.alpha_ = model.alpha_
        self.coef_, self.intercept_ = model.coef_ * spread, model.intercept_ * spread + y.mean()
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return (X - self.mean_) / self.scale_ @ self.coef_ + self.intercept_
