import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import parametrize_with_checks

from ofa.mobilenet_v3 import MobileNetV3, mobilenet_v3_space
from predictors.accuracy import AccuracyPredictor
from predictors.latency import LatencyPredictor, d_optimal_order, fit_relative_huber, has_converged, quality

SUPERNET = MobileNetV3(mobilenet_v3_space(resolution=(32, 48)), num_classes=10, width_mult=0.35)
X = SUPERNET.space.sample(120, np.random.default_rng(0))


def latency(X):
    terms = SUPERNET.cost_terms(X)
    return 0.2 + terms["macs.pointwise"] / 1e7 + terms["macs.depthwise_7"] / 2e6 + 0.02 * terms["layers.blocks"]


@parametrize_with_checks([LatencyPredictor(), AccuracyPredictor()])
def test_estimators_are_scikit_learns(estimator, check):
    check(estimator)


def test_a_linear_latency_is_learnt_from_fifty_rows():
    model = LatencyPredictor(terms=SUPERNET.cost_terms).fit(X[:50], latency(X[:50]))
    assert quality(latency(X[50:]), model.predict(X[50:]))["mape"] < 1


def test_slow_spells_do_not_drag_it_along():
    y = latency(X)
    y[:60:6] *= 1.5
    model = LatencyPredictor(terms=SUPERNET.cost_terms).fit(X[:60], y[:60])
    assert quality(y[60:], model.predict(X[60:]))["mape"] < 2.5


def test_it_survives_cloning_and_pickling_without_weights():
    model = LatencyPredictor(terms=SUPERNET.cost_terms).fit(X, latency(X))
    data = pickle.dumps(clone(model).fit(X, latency(X)))
    assert len(data) < 20_000 and (pickle.loads(data).predict(X) == model.predict(X)).all()


def test_measurements_are_enough_at_the_noise_or_where_more_did_not_help():
    assert has_converged({20: 0.012}, floor=0.01) and not has_converged({20: 0.02}, floor=0.01)
    assert not has_converged({20: 0.05, 25: 0.049}, floor=0.01)  # five more tell nothing yet
    assert has_converged({20: 0.05, 25: 0.049, 30: 0.046}, floor=0.01)
    assert not has_converged({20: 0.05, 25: 0.049, 30: 0.044}, floor=0.01)


@pytest.mark.parametrize("n", [10, 20, 40])
def test_the_most_telling_rows_determine_a_linear_model_better_than_random_ones(n):
    terms = np.stack(list(SUPERNET.cost_terms(X).values()), axis=1)
    rows = np.column_stack([np.ones(len(X)), (terms - terms.mean(axis=0)) / np.maximum(terms.std(axis=0), 1e-9)])

    def determined(some):
        return np.linalg.slogdet(rows[some].T @ rows[some] + 0.01 * np.eye(rows.shape[1])).logabsdet

    drawn = [np.random.default_rng(seed).choice(len(X), n, replace=False) for seed in range(20)]
    assert determined(d_optimal_order(terms)[:n]) > max(map(determined, drawn))


def test_the_most_telling_rows_are_an_order_after_the_first_ones():
    order = d_optimal_order(X, first=3)
    assert order[:3].tolist() == [0, 1, 2] and sorted(order) == list(range(len(X)))


def test_a_latency_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive"):
        LatencyPredictor().fit(X, np.zeros(len(X)))


def test_exactly_collinear_terms_are_no_trouble():
    terms = np.random.default_rng(0).random((40, 3))
    intercept, coef = fit_relative_huber(np.hstack([terms, terms]), 1 + terms.sum(axis=1), 1e-4)
    assert np.allclose(intercept + np.hstack([terms, terms]) @ coef, 1 + terms.sum(axis=1), rtol=1e-2)


def test_latency_is_predicted_alike_in_any_unit():
    ms = LatencyPredictor(terms=SUPERNET.cost_terms).fit(X, latency(X)).predict(X)
    us = LatencyPredictor(terms=SUPERNET.cost_terms).fit(X, 1000 * latency(X)).predict(X)
    assert np.allclose(us, 1000 * ms, rtol=1e-6)


def noisy(X, seed=0, sd=0.02):
    return latency(X) * np.random.default_rng(seed).lognormal(0, sd, len(X))


def test_intervals_cover_as_often_as_they_say():
    covered = []
    for seed in range(10):
        rows = np.random.default_rng(seed).permutation(len(X))
        model = LatencyPredictor(terms=SUPERNET.cost_terms).fit(X[rows[:60]], noisy(X, seed)[rows[:60]])
        low, high = model.interval(X[rows[60:]])
        y = noisy(X, seed)[rows[60:]]
        covered.append(((low <= y) & (y <= high)).mean())
    assert 0.85 <= np.mean(covered) <= 0.95


def test_an_interval_is_wider_at_a_higher_level_and_infinite_where_rows_are_few():
    model = LatencyPredictor(terms=SUPERNET.cost_terms).fit(X[:12], noisy(X)[:12])
    (low, high), (lower, higher) = model.interval(X, 0.5), model.interval(X, 0.9)
    assert (lower < low).all() and (high < higher).all()
    assert np.isinf(model.interval(X, 0.99)[1]).all()
    with pytest.raises(ValueError, match="level"):
        model.interval(X, 90)


def other_device(X):
    return 0.1 + 0.6 * latency(X) ** 0.9


def test_ten_rows_do_for_a_new_device_that_resembles_another():
    known = FrozenEstimator(LatencyPredictor(terms=SUPERNET.cost_terms).fit(X[:60], latency(X[:60])))
    new, y = X[60:70], other_device(X)
    models = [LatencyPredictor(terms=SUPERNET.cost_terms, sources=sources) for sources in ([], [known])]
    alone, transferred = (quality(y[70:], m.fit(new, y[60:70]).predict(X[70:]))["mape"] for m in models)
    assert models[1].share_ > 0.5 and transferred < 1 and transferred < alone / 2


def test_a_slow_spell_does_not_spoil_what_another_device_tells():
    known = FrozenEstimator(LatencyPredictor(terms=SUPERNET.cost_terms).fit(X[:60], latency(X[:60])))
    y = other_device(X) * np.random.default_rng(0).lognormal(0, 0.01, len(X))
    y[63] *= 1.6
    models = [LatencyPredictor(terms=SUPERNET.cost_terms, sources=sources) for sources in ([], [known])]
    alone, transferred = (quality(y[70:], m.fit(X[60:70], y[60:70]).predict(X[70:]))["mape"] for m in models)
    assert models[1].share_ > 0.5 and transferred < alone / 2


def test_a_source_that_tells_nothing_does_no_harm():
    y = noisy(X)[np.random.default_rng(0).permutation(len(X))]
    useless = FrozenEstimator(LatencyPredictor(terms=SUPERNET.cost_terms).fit(X, y))
    models = [LatencyPredictor(terms=SUPERNET.cost_terms, sources=sources) for sources in ([], [useless])]
    for rows in (10, 60):
        fitted = [model.fit(X[:rows], noisy(X)[:rows]) for model in models]
        alone, with_source = (quality(latency(X[60:]), model.predict(X[60:]))["mape"] for model in fitted)
        assert with_source < 1.1 * alone


def test_a_source_survives_cloning_if_it_is_frozen():
    source = LatencyPredictor(terms=SUPERNET.cost_terms).fit(X[:60], latency(X[:60]))
    clone(LatencyPredictor(sources=[FrozenEstimator(source)])).fit(X[:10], other_device(X[:10]))
    with pytest.raises(NotFittedError):
        clone(LatencyPredictor(sources=[source])).fit(X[:10], other_device(X[:10]))


def test_quality_of_perfect_predictions():
    assert quality(latency(X), latency(X)) == {"mape": 0.0, "tau": pytest.approx(1.0), "n": len(X)}


def accuracy(X):
    """Better with every block, and best with a kernel of 5: no straight line in the genes."""
    genes = SUPERNET.space.unpack(X)
    kernel = (genes["kernel_size"] == 5).sum(axis=(1, 2))
    return 0.8 + 0.004 * kernel + 0.003 * genes["depth"].sum(axis=1)


def test_indicators_learn_that_a_middle_value_is_best():
    y = accuracy(X) + 0.001 * np.random.default_rng(1).normal(size=len(X))
    models = AccuracyPredictor(), AccuracyPredictor(max_values=0)
    full, straight = (model.fit(X[:80], y[:80]).predict(X[80:]) for model in models)
    assert quality(accuracy(X[80:]), full)["tau"] > quality(accuracy(X[80:]), straight)["tau"] + 0.1


def test_accuracy_is_predicted_alike_as_fraction_and_percent():
    fraction, percent = (AccuracyPredictor().fit(X, scale * accuracy(X)).predict(X) for scale in (1, 100))
    assert np.allclose(percent, 100 * fraction)


def test_cost_terms_let_accuracy_follow_size():
    y = 0.9 + 0.02 * np.log(SUPERNET.costs(X)["macs"])
    with_terms, without = AccuracyPredictor(terms=SUPERNET.cost_terms), AccuracyPredictor()
    with_terms, without = (quality(y[40:], m.fit(X[:40], y[:40]).predict(X[40:]))["tau"] for m in (with_terms, without))
    assert with_terms > without


def test_a_value_never_seen_is_no_error():
    seen = SUPERNET.space.restrict(kernel_size=(3, 7)).sample(40, np.random.default_rng(2))
    assert np.isfinite(AccuracyPredictor().fit(seen, accuracy(seen) + seen[:, 0] / 100).predict(X)).all()


def test_accuracy_that_grows_with_size_is_ranked():
    y = 0.9 + 0.05 * X.sum(axis=1) / X.sum(axis=1).max() + 0.001 * np.random.default_rng(1).normal(size=len(X))
    model = AccuracyPredictor().fit(X[:80], y[:80])
    assert quality(y[80:], model.predict(X[80:]))["tau"] > 0.7
