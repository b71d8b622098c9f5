"""What is known and predicted of the metrics of networks, and what one search leaves to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.constraints import Constraints, Deployed
from supernet.evaluation import METRICS

if TYPE_CHECKING:
    from recipes.lab.lab import Lab

RANKED_BY = "loss"  # networks are ranked by loss: a few hundred items determine it far better than accuracy


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured for one network, and how it is searched for.

    Args:
        latency_samples: networks timed for the latency predictor; None times them until the predictor has converged.
        metric_samples: networks evaluated for the metric predictors; None evaluates them until these have converged.
        finalists: networks that one round of search proposes, and exports and measures.
        search: an entry of `supernet.search.SEARCHES`.
        score: "predicted", by a predictor of the loss; or "evaluated": every network that the search scores is
            evaluated.
        options: of the search, such as {"population": 100, "generations": 200}.
        metric: an entry of `supernet.evaluation.METRICS`; None takes the family's.
        seed: of sampling and search.
    """

    latency_samples: int | None = None
    metric_samples: int | None = 100
    finalists: int = 8
    search: str = "evolutionary"
    score: str = "predicted"
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"population": 100, "generations": 200})
    metric: str | None = None
    seed: int = 0


@dataclasses.dataclass
class Memory:
    """What earlier searches leave to later ones, for several budgets and devices.

    Args:
        random: rows of the random networks that were evaluated, (n, genes).
        found: rows of the networks that searches proposed, (n, genes).
        deployed: the networks that were exported and measured, by their row, for each device and statistic.
    """

    random: np.ndarray | None = None
    found: np.ndarray | None = None
    deployed: dict[tuple[str, str], dict[tuple[float, ...], Deployed]] = dataclasses.field(default_factory=dict)

    def on(self, lab: Lab) -> dict[tuple[float, ...], Deployed]:
        """The networks that were deployed on the lab's device."""
        return self.deployed.setdefault((lab.timer.device_id, lab.device.statistic), {})


class Quality:
    """Evaluated networks, and predictors of their metrics that learn from them."""

    def __init__(self, lab: Lab, constraints: Constraints, effort: Effort, memory: Memory) -> None:
        """Evaluate networks near the bounds, as many as the effort allows, together with those in the memory."""
        from sklearn.model_selection import KFold

        from predictors.accuracy import AccuracyPredictor
        from recipes.lab.sampling import held_out_quality, rows_near_bounds

        self._lab, self._memory, self.metric = lab, memory, METRICS[effort.metric or lab.supernet.metric]
        self.predicts = effort.score == "predicted"
        space = lab.space
        X = space.encode([space.smallest(), space.largest()])
        random, found = (X[:0] if rows is None else rows for rows in (memory.random, memory.found))
        folds = KFold(5, shuffle=True, random_state=effort.seed)
        if self.predicts:
            rng, limits = constraints.samples.rng(), constraints.limits()
            X = rows_near_bounds(lab, random, found, effort.metric_samples, rng, limits, folds)
            memory.random = X[2:]
        self.n_random = len(X)
        self.X = np.concatenate([X, found])
        self.metrics = lab.evaluate(self.X, "evaluating samples")
        names = dict.fromkeys((*METRICS, self.metric.name)) if self.predicts else ()
        self.predictors = {name: AccuracyPredictor(terms=lab.supernet.cost_terms) for name in names}
        # Only random networks show how good the predictors are.
        self.reliability = {
            name: held_out_quality(model, X, self.metrics[name][: len(X)], folds)
            for name, model in self.predictors.items()
        }

    def fit(self) -> None:
        """Fit the predictor that ranks networks to all evaluated networks."""
        if self.predicts:
            self.predictors[RANKED_BY].fit(self.X, self.metrics[RANKED_BY])

    def score(self, X: np.ndarray) -> np.ndarray:
        """The scores (n,) of the rows of X that a search maximizes."""
        sign = METRICS[RANKED_BY].sign
        if self.predicts:
            return sign * self.predictors[RANKED_BY].predict(X)
        return sign * self._lab.evaluate(X, "evaluating")[RANKED_BY]

    def least_loss(self, within: np.ndarray) -> float:
        """The least loss of the evaluated networks that seem to keep all bounds."""
        return float(self.metrics[RANKED_BY][within].min(initial=np.inf))

    def learn(self, X: np.ndarray) -> None:
        """Evaluate the rows that a search found; they correct the predictors, and are left to later searches."""
        found = self._lab.evaluate(X, "evaluating what the search found")
        self.X = np.concatenate([self.X, X])
        self.metrics = {name: np.concatenate([values, found[name]]) for name, values in self.metrics.items()}
        self._memory.found = self.X[self.n_random :]

    def predicted(self, chosen: list[int]) -> np.ndarray:
        """The metric (n,) of evaluated networks as a predictor that has not seen them predicts it; NaN without one."""
        from sklearn.base import clone

        others = np.delete(np.arange(len(self.X)), chosen)
        if not self.predicts:
            return self.metrics[self.metric.name][chosen]
        if len(others) < 2:  # of a space of few networks
            return np.full(len(chosen), np.nan)
        name = self.metric.name
        model = clone(self.predictors[name]).fit(self.X[others], self.metrics[name][others])
        return model.predict(self.X[chosen])
