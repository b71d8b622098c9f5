"""Evolutionary search over X: it knows rows, a score and costs, and nothing of networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from supernet.space import SearchSpace

Function = Callable[[np.ndarray], np.ndarray]  # X (n, genes) -> (n,)
Constraint = tuple[Function, float]  # a cost and its bound: cost(X) <= bound

STALE = 10  # generations without a better network after which the population is drawn anew
RATES = 0.2, 3.0  # a child's mutation probability is drawn between these multiples of the given one, log-uniformly
TRIES = 8  # rounds of variation for one generation; then it stays smaller
DESCENT = 50  # generations that look for a feasible network before there is said to be none


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found: all distinct feasible rows it scored, best first.

    X (n, genes), scores (n,); costs (n, constraints); `history` has the best score after every generation.
    """

    space: SearchSpace
    X: np.ndarray
    scores: np.ndarray
    costs: np.ndarray
    history: np.ndarray

    @property
    def config(self) -> Any:
        """The best config."""
        return self.space.decode(self.X[:1])[0]

    @property
    def score(self) -> float:
        return float(self.scores[0])


def evolutionary_search(
    space: SearchSpace,
    score: Function,
    constraints: Sequence[Constraint] = (),
    *,
    population: int = 100,
    generations: int = 500,
    parent_ratio: float = 0.25,
    mutation_share: float = 0.5,
    mutation_probability: float = 0.1,
    seed: int = 0,
) -> SearchResult:
    """The rows of the space with the highest score among those that keep every cost within its bound.

    OFA's evolution (arXiv 1908.09791, appendix): the best `parent_ratio` of the population survive and have
    `population` children, `mutation_share` of them by mutation, the others by crossover. Here no row is scored twice,
    so that children are always new, and a population that got stuck is drawn anew. ValueError if no row is feasible,
    with the cheapest costs seen, or if a function returns something other than (n,) finite numbers.
    """
    if population < 2 or generations < 0:
        raise ValueError(f"population = {population} must be at least 2 and generations = {generations} at least 0")
    for name, value in (("parent_ratio", parent_ratio), ("mutation_share", mutation_share)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value} is not in 0..1")
    rng = np.random.default_rng(seed)
    parents = max(1, round(population * parent_ratio))
    archive = _Archive(space, score, constraints)

    def sample(n: int) -> np.ndarray:
        return space.sample(n, rng)

    def children(pool: np.ndarray, n: int, boost: float = 1.0) -> np.ndarray:
        mutants = int(n * mutation_share)
        first, second = pool[rng.integers(len(pool), size=n)], pool[rng.integers(len(pool), size=n - mutants)]
        low, high = RATES
        rate = mutation_probability * boost * low * (high / low) ** rng.random((mutants, 1))
        crossed = space.crossover(first[mutants:], second, rng)
        return np.concatenate([space.mutate(first[:mutants], rng, np.minimum(rate, 1.0)), crossed])

    X, y = archive.take(lambda n, _: sample(n), population)
    if not len(X):
        X, y = archive.take(lambda n, _: archive.descend(children, n), population, DESCENT)
    if not len(X):
        raise ValueError(archive.infeasible())
    stale = 0
    history = [archive.best]
    for _ in range(generations):
        order = np.argsort(-y, kind="stable")[:parents]
        X, y = X[order], y[order]
        best = y[0]
        if stale >= STALE:
            stale, (X, y) = 0, archive.take(lambda n, _: sample(n), population)
            if not len(X):
                X, y = archive.elite(parents)
        else:
            pool = X
            C, scores = archive.take(lambda n, attempt: children(pool, n, 2.0**attempt), population)  # noqa: B023
            X, y = np.concatenate([X, C]), np.concatenate([y, scores])
            stale = 0 if y.max() > best else stale + 1
        history.append(archive.best)
    X, y, costs = archive.ranked()
    return SearchResult(space, X, y, costs, np.array(history))


class _Archive:
    """Every row that was ever looked at; scores those that are new and feasible, once."""

    def __init__(self, space: SearchSpace, score: Function, constraints: Sequence[Constraint]) -> None:
        self.space, self.score, self.constraints = space, score, list(constraints)
        self.seen: set[bytes] = set()
        self.waiting = np.empty((0, space.width)), np.empty((0, len(self.constraints)))
        self.X: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self.costs: list[np.ndarray] = []
        self.best = -np.inf
        self.near = np.empty((0, space.width)), np.empty(0)  # the rows that miss the bounds least
        self.cheapest = np.full(len(self.constraints), np.inf)
        self._consider(space.encode([space.smallest()]))

    def take(self, draw: Callable[[int, int], np.ndarray], n: int, tries: int = TRIES) -> tuple[np.ndarray, np.ndarray]:
        """At most n new feasible rows (m, genes) made by draw(n, attempt), with their scores (m,)."""
        for attempt in range(tries):
            missing = n - len(self.waiting[0])
            if missing <= 0:
                break
            self._consider(draw(min(2 * missing, 4 * n), attempt))
        X, costs = (part[:n] for part in self.waiting)
        self.waiting = tuple(part[n:] for part in self.waiting)
        if not len(X):
            return X, np.empty(0)
        scores = _values(self.score, X, "score")
        self.best = max(self.best, float(scores.max()))
        for kept, part in ((self.X, X), (self.scores, scores), (self.costs, costs)):
            kept.append(part)
        return X, scores

    def _consider(self, X: np.ndarray) -> None:
        """Put the rows that are new and feasible among the waiting ones."""
        X = np.ascontiguousarray(X + 0.0)  # no -0.0, which is equal and has other bytes
        size = X.shape[1] * X.itemsize
        raw, fresh = X.tobytes(), []
        for i in range(len(X)):
            key = raw[i * size : (i + 1) * size]
            if key not in self.seen:
                self.seen.add(key)
                fresh.append(i)
        X = X[fresh]
        if not len(X):
            return
        costs = np.empty((len(X), len(self.constraints)))
        for j, (cost, _) in enumerate(self.constraints):
            costs[:, j] = _values(cost, X, "cost")
        feasible = np.ones(len(X), dtype=bool)
        if self.constraints:
            bounds = np.array([bound for _, bound in self.constraints])
            self.cheapest = np.minimum(self.cheapest, costs.min(axis=0))
            feasible = (costs <= bounds).all(axis=1)
            if not self.X and not feasible.any():
                self._keep_near(X, (np.maximum(costs - bounds, 0) / np.maximum(np.abs(bounds), 1e-12)).sum(axis=1))
        self.waiting = tuple(
            np.concatenate([old, new[feasible]]) for old, new in zip(self.waiting, (X, costs), strict=True)
        )

    def _keep_near(self, X: np.ndarray, excess: np.ndarray) -> None:
        X, excess = np.concatenate([self.near[0], X]), np.concatenate([self.near[1], excess])
        order = np.argsort(excess, kind="stable")[:25]
        self.near = X[order], excess[order]

    def descend(self, children: Callable[[np.ndarray, int], np.ndarray], n: int) -> np.ndarray:
        """Children of the rows that miss the bounds least."""
        return children(self.near[0], n)

    def elite(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        X, scores, _ = self.ranked()
        return X[:n], scores[:n]

    def ranked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        X, scores, costs = (np.concatenate(part) for part in (self.X, self.scores, self.costs))
        order = np.argsort(-scores, kind="stable")
        return X[order], scores[order], costs[order]

    def infeasible(self) -> str:
        pairs = zip(self.constraints, self.cheapest)
        found = "; ".join(f"bound {bound:g}, cheapest cost seen {least:g}" for (_, bound), least in pairs)
        return f"no network was found that keeps within the bounds ({len(self.seen)} looked at): {found}"


def _values(function: Function, X: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(function(X), dtype=np.float64)
    if values.shape != (len(X),):
        raise ValueError(f"the {name} of {len(X)} rows has the shape {values.shape}, not ({len(X)},)")
    if not np.isfinite(values).all():
        raise ValueError(f"the {name} is not finite for {X[~np.isfinite(values)][0].tolist()}")
    return values
