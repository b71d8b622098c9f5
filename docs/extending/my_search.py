"""A search: neighbours of the best row so far, until none is better."""

import numpy as np

from supernet import SEARCHES, SearchResult


def hill_climbing(space, score, constraints=(), *, population=100, generations=200, seed=0):
    def within(X: np.ndarray) -> np.ndarray:
        return X[np.all([cost(X) <= bound for cost, bound in constraints], axis=0)] if constraints else X

    rng, history = np.random.default_rng(seed), []
    X = within(np.unique(np.concatenate([space.encode([space.smallest()]), space.sample(population, rng)]), axis=0))
    scores = score(X)
    for _ in range(generations):
        history.append(scores.max())
        known = {tuple(row) for row in X}
        new = [row for row in within(space.neighbours(X[scores.argmax()], rng)) if tuple(row) not in known]
        if not new:
            break
        X, scores = np.concatenate([X, new]), np.concatenate([scores, score(np.array(new))])
        if scores.max() <= history[-1]:
            break
    order = np.argsort(-scores, kind="stable")
    costs = np.stack([cost(X) for cost, _ in constraints], axis=1)
    return SearchResult(space, X[order], scores[order], costs[order], np.array(history))


SEARCHES["hill_climbing"] = hill_climbing
