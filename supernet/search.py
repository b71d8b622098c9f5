"""Search over X: it knows rows, a score and costs, and nothing of networks."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from supernet.space import SearchSpace
from supernet.values import generator, integer, real, unwrapped

Function = Callable[[np.ndarray], np.ndarray]  # X (n, genes) -> (n,), finite
Constraint = tuple[Function, float]  # a cost and its bound: cost(X) <= bound
Proposal = Callable[[int, int], np.ndarray]  # how many rows, which attempt it is -> X (about n, genes)

PATIENCE = 3  # generations without a better network before the best one's neighbourhood is looked at
ATTEMPTS = 6  # rounds of proposals for one generation; then it stays smaller
NEAR = 25  # infeasible rows that a search for feasible ones starts from
DESCENT = 50  # generations that look for a feasible network before there is said to be none


class InfeasibleError(ValueError):
    """No row was found within the bounds."""


@dataclasses.dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found: all distinct feasible rows it scored, best first.

    X (n, genes), scores (n,), costs (n, constraints). `history` has the best score after the first population and
    after every generation; it is shorter than asked for if the search ran out of new rows.
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
        """The best score."""
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
    progress: Callable[[int, float], None] | None = None,
) -> SearchResult:
    """The rows of the space with the highest score among those that keep every cost within its bound.

    `constraints` are pairs (cost, bound), or one pair.

    OFA's evolution (arXiv 1908.09791): the best `parent_ratio` of the population survive and have `population`
    children, `mutation_share` of them by mutation, which redraws every gene with `mutation_probability`, the others
    by crossover. Three things differ. No row is scored twice: known children are replaced by new ones. When
    generations bring nothing better, the best row's neighbourhood (one gene changed) is scored, and when that brings
    nothing either, a fresh population starts; every row counts in the result. Infeasible rows are never scored, and
    the search for a feasible one is bounded.

    `progress(generation, best score)` is called after each generation. At most `population * (generations + 1)` rows
    are scored.
    InfeasibleError if no row is found feasible, with each bound and the cheapest cost seen; ValueError if a function
    returns anything but (n,) finite numbers; if an argument makes no sense.
    """
    population, generations = _check_sizes(population, generations)
    _check_share("parent_ratio", parent_ratio)
    propose = _Proposals(space, population, mutation_share, mutation_probability, seed)
    archive = _Archive(space, score, read_constraints(constraints))
    parents = max(1, round(population * parent_ratio))

    rows = _first(archive, propose)
    history, stale = [archive.best], 0
    for generation in range(1, generations + 1):
        rows = rows.at(np.argsort(-rows.scores, kind="stable")[:parents])
        if stale > PATIENCE:
            rows, stale = _population(archive, propose, propose.sample), 0
            if not len(rows.X):
                break
        else:
            if stale < PATIENCE:
                new = archive.take(functools.partial(propose.children, rows.X), population)
            else:
                new = archive.take(functools.partial(propose.neighbours, rows.X[0]), population, attempts=1)
            stale = 0 if len(new.X) and new.scores.max() > rows.scores[0] else stale + 1
            rows = rows.join(new)
        history.append(archive.best)
        if progress is not None:
            progress(generation, archive.best)
    return _result(space, archive, history)


def random_search(
    space: SearchSpace,
    score: Function,
    constraints: Sequence[Constraint] = (),
    *,
    population: int = 100,
    generations: int = 500,
    seed: int = 0,
) -> SearchResult:
    """Uniform random rows within the bounds: the baseline of a search, with the same number of rows scored.

    The arguments, errors and result are those of `evolutionary_search`.
    """
    population, generations = _check_sizes(population, generations)
    propose = _Proposals(space, population, 0.5, 0.1, seed)
    archive = _Archive(space, score, read_constraints(constraints))
    _first(archive, propose)
    history = [archive.best]
    for _ in range(generations):
        if not len(archive.take(propose.sample, population).X):
            break
        history.append(archive.best)
    return _result(space, archive, history)


SEARCHES: dict[str, Callable[..., SearchResult]] = {"evolutionary": evolutionary_search, "random": random_search}


def _result(space: SearchSpace, archive: _Archive, history: Sequence[float]) -> SearchResult:
    """All rows that were scored, best first."""
    rows = archive.rows()
    rows = rows.at(np.argsort(-rows.scores, kind="stable"))
    return SearchResult(space, rows.X, rows.scores, rows.costs, np.array(history))


class _Rows(NamedTuple):
    """Scored rows: X (n, genes), scores (n,), costs (n, constraints)."""

    X: np.ndarray
    scores: np.ndarray
    costs: np.ndarray

    def at(self, index: np.ndarray) -> _Rows:
        return _Rows(*(part[index] for part in self))

    def join(self, *others: _Rows) -> _Rows:
        return _Rows(*(np.concatenate(parts) for parts in zip(self, *others)))


def _first(archive: _Archive, propose: _Proposals) -> _Rows:
    """The first population: the space's two ends and samples. InfeasibleError if nothing feasible was found."""
    rows = _population(archive, propose, propose.first)
    if not len(rows.X):
        raise InfeasibleError(archive.infeasible())
    return rows


def _population(archive: _Archive, propose: _Proposals, start: Proposal) -> _Rows:
    """A population from `start`; where nothing of it is feasible, from descending on the excess over the bounds."""
    rows = archive.take(start, propose.population)
    for _ in range(DESCENT):
        if len(rows.X) or not len(archive.near):
            break
        rows = archive.take(functools.partial(propose.children, archive.near), propose.population, attempts=1)
    return rows


class _Proposals:
    """The ways to make rows, known ones and infeasible ones among them; holds the random state."""

    def __init__(
        self,
        space: SearchSpace,
        population: int,
        mutation_share: float,
        mutation_probability: float,
        seed: int,
    ) -> None:
        if not isinstance(space, SearchSpace):
            hint = ", which is its .space" if isinstance(getattr(space, "space", None), SearchSpace) else ""
            raise TypeError(f"a search needs a SearchSpace{hint}, not a {type(space).__name__}")
        _check_share("mutation_share", mutation_share)
        _check_share("mutation_probability", mutation_probability)
        self.space, self.population = space, population
        self.mutation_share, self.mutation_probability = mutation_share, mutation_probability
        self.rng = generator(seed, "seed")
        self.ends = space.encode([space.smallest(), space.largest()])

    def first(self, n: int, attempt: int) -> np.ndarray:
        return np.concatenate([self.ends, self.sample(n, attempt)])

    def sample(self, n: int, attempt: int) -> np.ndarray:
        return self.space.sample(n, self.rng)

    def children(self, pool: np.ndarray, n: int, attempt: int) -> np.ndarray:
        """Mutants and crossings of the pool's rows, which stand best first; each attempt mutates twice as much."""
        picks = self.rng.integers(len(pool), size=(2, n))
        mutants = round(n * self.mutation_share)
        rate = self.mutation_probability * 2.0**attempt
        first, second = pool[picks[0]], pool[picks[1, mutants:]]
        mutated = self.space.mutate(first[:mutants], self.rng, min(1.0, rate))
        return self.rng.permutation(np.concatenate([mutated, self.space.crossover(first[mutants:], second, self.rng)]))

    def neighbours(self, row: np.ndarray, n: int, attempt: int) -> np.ndarray:
        return self.rng.permutation(self.space.neighbours(row, self.rng))


class _Archive:
    """Every row looked at: a new one gets its costs, and its score if it is feasible, once."""

    def __init__(self, space: SearchSpace, score: Function, constraints: Sequence[Constraint]) -> None:
        self.space, self.score = space, read_function("score", score)
        self.cost_functions = [cost for cost, _ in constraints]
        self.bounds = np.array([bound for _, bound in constraints], dtype=np.float64)
        self.seen: set[bytes] = set()
        self.taken: list[_Rows] = []
        self.scored = 0
        self.best = -math.inf
        self.rate = 0.5  # the share of proposals that is new and feasible, lately
        self.spare = np.empty((0, space.width)), np.empty((0, len(self.bounds)))  # feasible, but more than was wanted
        self.near, self.excess = np.empty((0, space.width)), np.empty(0)  # infeasible, least first
        self.cheapest = np.full(len(self.bounds), math.inf)

    def take(self, propose: Proposal, n: int, attempts: int = ATTEMPTS) -> _Rows:
        """At most n new feasible rows out of what is proposed, scored."""
        found = []
        missing = n
        for attempt in range(attempts):
            proposed = propose(math.ceil(1.2 * missing / self.rate), attempt)
            X, costs = self._feasible(self._new(proposed))
            if attempt == 0:
                self.rate = min(max(len(X) / max(len(proposed), 1), 0.2), 1.0)
            found.append((X, costs))
            missing -= len(X)
            if missing <= 0:
                break
        if missing == n:
            X, costs = self.spare
            self.spare = X[n:], costs[n:]
        else:
            X, costs = (np.concatenate(parts) for parts in zip(*found))
            if len(X) > n:
                self.spare = tuple(np.concatenate(parts) for parts in zip(self.spare, (X[n:], costs[n:])))
        X, costs = X[:n], costs[:n]
        scores = _values(self.score, X, "score", self.space) if len(X) else np.empty(0)
        rows = _Rows(X, scores, costs)
        self.taken.append(rows)
        self.scored += len(X)
        self.best = max(self.best, scores.max(initial=-math.inf))
        return rows

    def rows(self) -> _Rows:
        """All rows scored, in that order."""
        return self.taken[0].join(*self.taken[1:])

    def infeasible(self) -> str:
        found = "; ".join(
            f"bound {bound:g}, cheapest cost seen {least:g}"
            for bound, least in zip(self.bounds, self.cheapest)
            if bound < math.inf
        )
        return f"no network was found within the bounds ({len(self.seen)} looked at): {found}"

    def _new(self, X: np.ndarray) -> np.ndarray:
        """The rows that were not looked at before, each once."""
        X = np.ascontiguousarray(X + 0.0)  # no -0.0, which is equal and has other bytes
        fresh = []
        for i, key in enumerate(X.view(np.dtype((np.void, X.shape[1] * X.itemsize))).ravel().tolist()):
            if key not in self.seen:
                self.seen.add(key)
                fresh.append(i)
        return X[fresh]

    def _feasible(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows within all bounds, and their costs."""
        costs = np.empty((len(X), len(self.bounds)))
        if not costs.size:
            return X, costs
        for j, cost in enumerate(self.cost_functions):
            costs[:, j] = _values(cost, X, "cost", self.space)
        self.cheapest = np.minimum(self.cheapest, costs.min(axis=0))
        feasible = (costs <= self.bounds).all(axis=1)
        if not feasible.any():
            scale = np.where(self.bounds == 0, 1.0, np.abs(self.bounds))
            excess = (np.maximum(costs - self.bounds, 0) / scale).sum(axis=1)
            X_near, excess = np.concatenate([self.near, X]), np.concatenate([self.excess, excess])
            order = np.argsort(excess, kind="stable")[:NEAR]
            self.near, self.excess = X_near[order], excess[order]
        return X[feasible], costs[feasible]


def read_constraints(given: Any) -> list[Constraint]:
    """The pairs (cost, bound) of several, or of one alone; ValueError or TypeError says what a constraint is."""
    if given is None:
        return []
    if callable(given) or hasattr(given, "predict") or isinstance(given, (str, dict)) or not np.iterable(given):
        raise TypeError(f"constraints = {given!r}: a list of pairs (cost, bound), such as [(latency.predict, 25.0)]")
    given = list(given)
    if len(given) == 2 and not any(isinstance(part, (tuple, list)) for part in given):
        given = [given]  # one pair
    constraints = []
    for pair in given:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"the constraint {pair!r} is not a pair (cost, bound), such as (latency.predict, 25.0)")
        cost, bound = pair
        if callable(bound) and not callable(cost):
            raise TypeError(f"the constraint {pair!r} has its bound first: a pair (cost, bound) is expected")
        plain = unwrapped(bound)
        if isinstance(plain, bool) or not isinstance(plain, (int, float)) or math.isnan(plain):
            raise ValueError(f"the bound {bound!r} is not a number")
        constraints.append((read_function("cost", cost), float(plain)))
    return constraints


def read_function(name: str, given: Any) -> Function:
    """A function of X: the one given, or `predict` of a fitted predictor."""
    if hasattr(given, "predict") and hasattr(given, "fit"):
        return given.predict
    if not callable(given):
        raise TypeError(f"{name} = {given!r} is not a function of X (n, genes) that returns (n,) numbers")
    return given


def _values(function: Function, X: np.ndarray, name: str, space: SearchSpace) -> np.ndarray:
    given = function(X)
    try:
        values = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"the {name} of {len(X)} rows is a {type(given).__name__}, not ({len(X)},) numbers") from None
    if values.shape != (len(X),):
        raise ValueError(f"the {name} of {len(X)} rows has the shape {values.shape}, not ({len(X)},)")
    if not np.isfinite(values).all():
        wrong = np.flatnonzero(~np.isfinite(values))
        config = space.decode(X[wrong[:1]])[0]
        raise ValueError(f"the {name} is not finite: {values[wrong[0]]} for {config} ({len(wrong)} of {len(X)} rows)")
    return values


def _check_sizes(population: Any, generations: Any) -> tuple[int, int]:
    """Both as Python's int; ValueError where a search of that size makes no sense."""
    return integer("population", population, 2), integer("generations", generations, 0)


def _check_share(name: str, value: Any) -> None:
    if not 0 <= real(name, value) <= 1:
        raise ValueError(f"{name} = {value} is not in 0..1")
