"""The latency predictor: a robust linear model on cost terms, from a few dozen measurements."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import mean_absolute_percentage_error
from sklearn.model_selection import KFold
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from supernet.space import SearchSpace
from supernet.values import real

Terms = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # X (n, genes) -> {term: (n,)}, such as supernet.cost_terms
FEW = 20  # rows up to which each is a fold of its own


class LatencyPredictor(RegressorMixin, BaseEstimator):
    """X (n, genes) -> latency (n,) in the unit it was fitted in (ms): linear in the cost terms of the networks.

    `terms` is a frozen, picklable function of X; without it, X itself is the terms. The model minimises Huber's loss of
    the *relative* error, which the slow spells of a busy machine do not drag along, plus a ridge penalty, since terms
    are collinear: its strength is the one of `alphas` with the least cross-validated mean absolute relative error.
    Rows are to be in the order in which they were first measured: what drifted is then held out together, since a fold
    is a stretch of them. Of at most 20 rows each is a fold.

    `sources` are fitted predictors of other devices, each in a `sklearn.frozen.FrozenEstimator`. A second model has
    their predictions as terms too, without penalty, and what is predicted is the mean of both models' predictions, each
    weighted by one over its squared error (Bates and Granger 1969), here the median cross-validated one, where that of
    the second counts twice: what is measured on the device itself is to weigh more where both err alike. `share_` is
    the second's weight. Some ten measurements then do for a new device that resembles a source.

    Latencies that are not positive raise ValueError.
    """

    def __init__(
        self,
        *,
        terms: Terms | None = None,
        sources: Sequence[Any] = (),
        alphas: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100),
        folds: int = 5,
    ) -> None:
        self.terms = terms
        self.sources = sources
        self.alphas = alphas
        self.folds = folds

    def fit(self, X: np.ndarray, y: np.ndarray) -> LatencyPredictor:
        X = rows_of(X, self.terms)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = np.asarray(y, dtype=np.float64)
        if y.min() <= 0:
            raise ValueError(f"a latency is positive, not {y.min():g}")
        folds = KFold(len(y) if len(y) <= FEW else self.folds)
        held_out, self.intercept_, self.coef_ = self._best(*self._terms(X, False), y, folds)
        self.share_ = 0.0
        if self.sources:
            others, intercept, coef = self._best(*self._terms(X, True), y, folds)
            alone, second = (float(np.median((predicted / y - 1) ** 2)) for predicted in (held_out, others))
            share = self.share_ = alone / (alone + 2 * second) if alone else 0.0
            held_out = (1 - share) * held_out + share * others
            self.intercept_ = (1 - share) * self.intercept_ + share * intercept
            self.coef_ = (1 - share) * np.pad(self.coef_, (0, len(coef) - len(self.coef_))) + share * coef
        self.cv_errors_ = np.abs(held_out / y - 1)
        self.cv_error_ = float(self.cv_errors_.mean())
        return self

    def _best(
        self, terms: np.ndarray, free: np.ndarray, y: np.ndarray, folds: KFold
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """With the best penalty: what is predicted of each row (n,) from the other folds, the intercept, and the
        coefficients (terms,)."""
        best, least = (np.empty(0), 0.0), math.inf
        for alpha in self.alphas:
            predicted = np.empty(len(y))
            for train, test in folds.split(terms):
                intercept, coef = fit_relative_huber(terms[train], y[train], alpha, free)
                predicted[test] = intercept + terms[test] @ coef
            if (error := np.abs(predicted / y - 1).mean()) < least:
                best, least = (predicted, alpha), error
        return best[0], *fit_relative_huber(terms, y, best[1], free)

    def predict(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, rows_of(X, self.terms), dtype=np.float64, reset=False)
        return self.intercept_ + self._terms(X, True)[0] @ self.coef_

    def interval(self, X: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """The bounds (n,), (n,) between which a network's latency lies with probability `level`.

        They are as far from the prediction as the cross-validated relative errors reach (the jackknife of Barber et
        al., arXiv 1905.02928, with folds); few rows tell no bound for a high level, and then it is infinite.
        """
        if not 0 < real("level", level) < 1:
            raise ValueError(f"level = {level} is not between 0 and 1")
        predicted = self.predict(X)
        errors = np.r_[np.sort(self.cv_errors_), np.inf]
        reach = errors[min(math.ceil(level * len(errors)), len(errors)) - 1]
        return predicted / (1 + reach), predicted / (1 - reach) if reach < 1 else np.full(len(predicted), np.inf)

    def _terms(self, X: np.ndarray, sources: bool) -> tuple[np.ndarray, np.ndarray]:
        """The terms (n, terms), with those of the sources or without, and which are free of the penalty (terms,)."""
        terms = X if self.terms is None else np.stack(list(self.terms(X).values()), axis=1).astype(np.float64)
        others = [source.predict(X)[:, None] for source in self.sources if sources]
        free = np.arange(terms.shape[1] + len(others)) >= terms.shape[1]
        return np.hstack([terms, *others]), free

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags


def rows_of(X: Any, terms: Terms | None) -> Any:
    """What a predictor takes for X: configs, tensors and one row as rows where the terms know the space, else as it is.

    TypeError where X is configs and no terms say their space, or where the terms are not a function.
    """
    if terms is not None and (not callable(terms) or hasattr(terms, "cost_terms")):
        raise TypeError(f"terms = {type(terms).__name__}: a function of X is expected, such as supernet.cost_terms")
    if isinstance(space := getattr(terms, "space", None), SearchSpace):
        return space.matrix(X)
    one = X[0] if isinstance(X, (list, tuple)) and X else X
    if dataclasses.is_dataclass(one) or (isinstance(one, Mapping) and not hasattr(one, "shape")):  # not sparse X
        wanted = "X, an array (n, genes), is expected"
        raise TypeError(f"{wanted}, not a {type(one).__name__}: space.encode([config]) makes it")
    return X.detach().cpu().numpy() if hasattr(X, "detach") else X


def fit_relative_huber(
    terms: np.ndarray, y: np.ndarray, alpha: float, free: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """The intercept and coefficients (terms,) that minimise Huber's loss of (prediction - y) / y plus a ridge penalty.

    Iteratively reweighted least squares; residuals beyond 1.345 robust standard deviations (95 % efficient on Gaussian
    noise) count linearly. The penalty is on the standardised terms, relative to the mean of y, except the `free` ones.
    """
    mean, scale = mean_and_scale(terms)
    rows = np.column_stack([np.ones(len(y)), (terms - mean) / scale]) / y[:, None]
    penalties = np.full(terms.shape[1], alpha / y.mean() ** 2)
    if free is not None:
        penalties[free] = 0.0
    penalty = np.diag(np.r_[0.0, penalties])
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


def mean_and_scale(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What standardises terms (n, terms): each one's mean and standard deviation.

    That of a constant term is infinite: an intercept says the same.
    """
    mean, scale = terms.mean(axis=0), terms.std(axis=0)
    scale[scale <= 1e-12 * np.abs(mean)] = np.inf
    return mean, scale


def d_optimal_order(terms: np.ndarray, first: int = 0) -> np.ndarray:
    """The order (n,) of rows of terms (n, terms) in which each informs a linear model most beyond the rows before it.

    After the `first` rows, which stay where they are, it is always the one whose prediction varies most given those
    before (a sequential D-optimal design: Wynn, Annals of Mathematical Statistics 41, 1970). Of few rows that were
    drawn at random, chance decides how well they determine the model.
    """
    mean, scale = mean_and_scale(terms)
    rows = np.column_stack([np.ones(len(terms)), (terms - mean) / scale])
    covariance = 100 * np.eye(rows.shape[1])  # of the coefficients; large, since nothing is known
    variance = 100 * (rows**2).sum(axis=1)  # of the predictions
    order = np.empty(len(rows), dtype=int)
    for k in range(len(rows)):
        order[k] = i = k if k < first else variance.argmax()
        projected, row = covariance @ rows[i], rows[i]
        covariance -= np.outer(projected, projected) / (1 + row @ projected)
        variance -= (rows @ projected) ** 2 / (1 + row @ projected)
        variance[i] = -np.inf
    return order


def has_converged(errors: Mapping[int, float], floor: float) -> bool:
    """Whether more measurements would tell a latency predictor little more.

    `errors` has its cross-validated relative error by the number of rows it was fitted on. The last one is within 1.2
    times the noise of the measurements, the `floor`, or it fell by less than a tenth while the rows grew by half.
    """
    rows = max(errors)
    earlier = max((n for n in errors if 1.5 * n <= rows), default=None)
    return errors[rows] <= 1.2 * floor or (earlier is not None and errors[rows] > 0.9 * errors[earlier])


def quality(y: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """How good held-out predictions are: mean absolute error in % of y (`mape`), Kendall's tau (`tau`), rows (`n`)."""
    return {
        "mape": float(100 * mean_absolute_percentage_error(y, predicted)),
        "tau": float(kendalltau(y, predicted).statistic),
        "n": len(y),
    }
