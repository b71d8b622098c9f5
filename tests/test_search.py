import time

import numpy as np
import pytest

from ofa.mobilenet_v3 import MobileNetV3, mobilenet_v3_space
from supernet.search import SEARCHES, InfeasibleError, evolutionary_search, random_search

SUPERNET = MobileNetV3(mobilenet_v3_space(resolution=range(128, 225, 4)))
SPACE = SUPERNET.space
TINY = SPACE.restrict(depth=(2,), kernel_size=(3,), expand_ratio=(6,))
TOP = SPACE.encode([SPACE.largest()])[0]


def macs(X):
    return SUPERNET.costs(X)["macs"] / 1e6


def mlp(seed, width=400):
    rng = np.random.default_rng(seed)
    shapes = ((SPACE.width, width), (width, width), (width, width), (width, 1))
    layers = [(rng.normal(size=shape) * (2 / shape[0]) ** 0.5).astype(np.float32) for shape in shapes]

    def score(X):
        h = (X / TOP).astype(np.float32)
        for layer in layers[:-1]:
            h = np.maximum(h @ layer, 0)
        return (h @ layers[-1])[:, 0]

    return score


def test_no_row_is_scored_or_costed_twice():
    rows = {"score": [], "cost": []}

    def spy(name, function):
        return lambda X: (rows[name].append(X.copy()), function(X))[1]

    evolutionary_search(SPACE, spy("score", mlp(0, 20)), [(spy("cost", macs), 200)], generations=30)
    for seen in rows.values():
        seen = np.concatenate(seen)
        assert len(np.unique(seen, axis=0)) == len(seen)


def test_one_seed_gives_one_answer():
    results = [evolutionary_search(SPACE, mlp(0, 20), [(macs, 200)], generations=20, seed=s) for s in (1, 1, 2)]
    assert (results[0].X == results[1].X).all() and not np.array_equal(results[0].X, results[2].X)


def test_the_result_is_feasible_ranked_and_what_the_functions_say():
    score = mlp(1, 20)
    result = evolutionary_search(SPACE, score, [(macs, 150)], generations=20)
    assert (result.costs[:, 0] <= 150).all() and np.allclose(result.costs[:, 0], macs(result.X))
    assert (np.diff(result.scores) <= 0).all() and result.score == result.history[-1]
    assert np.allclose(score(result.X), result.scores, atol=1e-5)
    assert (SPACE.encode([result.config]) == result.X[:1]).all()


def test_an_infeasible_budget_says_so_soon_and_names_the_cheapest():
    cheapest = macs(SPACE.encode([SPACE.smallest()]))[0]
    began = time.process_time()
    with pytest.raises(InfeasibleError, match=f"bound 10, cheapest cost seen {cheapest:g}"):
        evolutionary_search(SPACE, mlp(0, 20), [(macs, 10)])
    assert time.process_time() - began < 10


def test_a_budget_that_only_the_smallest_networks_meet_is_met():
    cheapest = macs(SPACE.encode([SPACE.smallest()]))[0]
    result = evolutionary_search(SPACE, mlp(0, 20), [(macs, 1.02 * cheapest)], generations=20)
    assert (result.costs <= 1.02 * cheapest).all()


def test_a_needle_that_sampling_misses_is_found_by_descent():
    # Not the smallest config, and far from where uniform sampling draws.
    target = SPACE.encode([SPACE.config(depth=4, kernel_size=7, expand_ratio=3, resolution=128)])[0]

    def distance(X):
        return np.abs(X - target).sum(axis=1)

    result = evolutionary_search(SPACE, lambda X: -macs(X), [(distance, 8)], generations=5)
    assert (distance(result.X) <= 8).all()


def test_a_tiny_space_is_searched_to_its_optimum_and_ends():
    rows = np.unique(TINY.sample(2000, np.random.default_rng(0)), axis=0)
    assert len(rows) == TINY.size
    score = mlp(3, 20)
    result = evolutionary_search(TINY, score, generations=50)
    assert result.score == pytest.approx(score(rows).max(), abs=1e-6)


def test_the_last_generation_counts():
    results = [evolutionary_search(SPACE, mlp(0, 20), generations=g) for g in (0, 1)]
    assert len(results[1].X) > len(results[0].X) and len(results[1].history) == 2


@pytest.mark.parametrize("search", SEARCHES.values())
def test_every_search_keeps_the_bounds_and_scores_no_row_twice(search):
    rows = []

    def score(X):
        rows.extend(map(tuple, X))
        return mlp(2, 20)(X)

    bound = float(np.median(macs(SPACE.sample(200, np.random.default_rng(0)))))
    result = search(SPACE, score, [(macs, bound)], population=20, generations=10)
    assert (macs(result.X) <= bound).all() and len(set(rows)) == len(rows) <= 20 * 11
    assert (np.diff(result.scores) <= 0).all() and len(result.history) == 11


def test_evolution_finds_better_rows_than_random_search():
    options = {"population": 50, "generations": 20}
    assert evolutionary_search(SPACE, mlp(2, 20), **options).score > random_search(SPACE, mlp(2, 20), **options).score


@pytest.mark.parametrize(
    ("score", "options", "message"),
    [
        (lambda X: X, {}, "score of 100 rows has the shape"),
        (lambda X: np.full(len(X), np.nan), {}, "score is not finite"),
        (lambda X: X[:, 0], {"constraints": [(lambda X: np.full(len(X), np.inf), 1)]}, "cost is not finite"),
        (lambda X: X[:, 0], {"population": 1}, "population = 1"),
        (lambda X: X[:, 0], {"parent_ratio": 2}, "parent_ratio = 2"),
    ],
)
def test_what_makes_no_sense_is_refused(score, options, message):
    with pytest.raises(ValueError, match=message):
        evolutionary_search(SPACE, score, **options)


# ---- the original's algorithm, as a plain loop


def test_constraints_may_come_from_an_iterator():
    result = evolutionary_search(SPACE, macs, zip([macs], [250.0]), population=10, generations=3)
    assert result.costs.shape[1] == 1 and (result.costs <= 250).all()


@pytest.mark.parametrize("bound", [None, float("nan")])
def test_a_bound_that_is_no_number_is_refused(bound):
    with pytest.raises(ValueError, match="is not a number"):
        evolutionary_search(SPACE, macs, [(macs, bound)])


def published_evolution(score, bound, distinct, seed, population=100):
    """Once-for-All's evolution with its defaults, until it has scored `distinct` different networks: (best, scored)."""
    rng = np.random.default_rng(seed)
    columns = SPACE.columns
    block = np.arange(20)

    def feasible(make):
        while True:
            row = make()
            if macs(row)[0] <= bound:
                return row[0]

    def mutate(row):
        drawn = SPACE._draw(1, rng)[0]
        full = np.where(row == 0, drawn, row)
        stages, blocks = rng.random(5) < 0.1, block[rng.random(20) < 0.1]
        full[columns["depth"]] = np.where(stages, drawn[columns["depth"]], full[columns["depth"]])
        for name in ("kernel_size", "expand_ratio"):
            full[columns[name].start + blocks] = drawn[columns[name].start + blocks]
        if rng.random() < 0.5:
            full[columns["resolution"]] = drawn[columns["resolution"]]
        return SPACE._zero_absent(full[None])

    scores = {}

    def evaluate(rows):
        new = list({row.tobytes(): row for row in rows if row.tobytes() not in scores}.values())
        if new:
            scores.update(zip([row.tobytes() for row in new], score(np.stack(new)).tolist()))
        return [(scores[row.tobytes()], row) for row in rows]

    people = evaluate([feasible(lambda: SPACE.sample(1, rng)) for _ in range(population)])
    while len(scores) < distinct:
        parents = sorted(people, key=lambda pair: -pair[0])[: population // 4]
        pick = [parents[i][1] for i in rng.integers(len(parents), size=3 * population)]
        children = [feasible(lambda row=row: mutate(row)) for row in pick[: population // 2]]
        couples = zip(pick[population : population + population // 2], pick[2 * population :])
        children += [feasible(lambda a=a, b=b: SPACE.crossover(a[None], b[None], rng)) for a, b in couples]
        people = parents + evaluate(children)
    return max(scores.values()), len(scores)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_it_finds_at_least_what_the_original_finds_with_as_many_evaluations(seed):
    score = mlp(seed)
    result = evolutionary_search(SPACE, score, [(macs, 250)], seed=seed)
    best, _ = published_evolution(score, 250, len(result.X), seed)
    assert result.score >= best - 1e-6
