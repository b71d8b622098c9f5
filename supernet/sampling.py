"""SAMPLERS: which subnets a training step trains, as functions of (space, subnets, step, seed), equal on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from supernet.space import SearchSpace

Costs = Callable[[np.ndarray], np.ndarray]  # of rows (n, genes), such as their MACs: (n,)


def uniform(
    space: SearchSpace, subnets: int, step: int, seed: int, shared: Sequence[str] = (), costs: Costs | None = None
) -> list[Any]:
    """Uniform random configs (OFA, HAT), in which the choices named by `shared` are drawn once for all."""
    return space.decode(_share(space, space.sample(subnets, _rng(step, seed)), shared))


def sandwich(
    space: SearchSpace, subnets: int, step: int, seed: int, shared: Sequence[str] = (), costs: Costs | None = None
) -> list[Any]:
    """The largest config, `subnets` - 2 uniform random ones, the smallest (Yu & Huang, arXiv 1903.05134).

    The largest and the smallest keep their own inputs; `shared` holds among the random ones.
    """
    if subnets < 2:
        raise ValueError(f"the sandwich rule needs at least 2 subnets a step, not {subnets}")
    return [space.largest(), *uniform(space, subnets - 2, step, seed, shared), space.smallest()]


def stratified(
    space: SearchSpace,
    subnets: int,
    step: int,
    seed: int,
    shared: Sequence[str] = (),
    costs: Costs | None = None,
    candidates: int = 64,
) -> list[Any]:
    """Random configs whose costs are spread evenly: one from each of `subnets` bands of `candidates` ranked by `costs`.

    Uniform sampling hardly ever draws a network near the ends of the cost range (ElasticViT, arXiv 2303.09730).
    """
    if costs is None:
        raise ValueError("stratified sampling needs `costs`, a function of rows")
    rng = _rng(step, seed)
    X = _share(space, space.sample(max(candidates, subnets), rng), shared)
    bands = np.array_split(np.argsort(costs(X), kind="stable"), subnets)
    return space.decode(X[[rng.choice(band) for band in bands]])


SAMPLERS = {"uniform": uniform, "sandwich": sandwich, "stratified": stratified}


def _rng(step: int, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, step))


def _share(space: SearchSpace, X: np.ndarray, names: Sequence[str]) -> np.ndarray:
    for name in names:
        X[:, space.columns[name]] = X[:1, space.columns[name]]
    return X
