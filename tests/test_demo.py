import numpy as np
import pytest

from recipes.demo import Compared, beside_random, compare_with, what_is_wrong

FINE = dict(smallest=0.1, largest=0.5, budget=0.26, confirmed=0.25, difference=1e-6)


def drawn(rng, accuracy, items=360):
    """A network that is right on each image with this probability."""
    return {"accuracy": (rng.random(items) < accuracy).astype(float), "counted": np.ones(items)}


@pytest.mark.parametrize("seed", range(20))
def test_a_demo_does_not_fail_by_luck(seed):
    rng = np.random.default_rng(seed)
    others = [drawn(rng, 0.98) for _ in range(20)]
    best = int(np.argmax([other["accuracy"].mean() for other in others]))
    assert "their mean" in beside_random(drawn(rng, 0.98), others, best)
    assert what_is_wrong(**FINE) == []


def test_networks_of_equal_accuracy_are_nearly_always_said_to_be_equal():
    said = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        compared = compare_with(drawn(rng, 0.9), [drawn(rng, 0.9) for _ in range(20)])
        said.append(compared.beside("their mean").startswith("no difference is shown from their mean"))
    assert np.mean(said) > 0.9


def test_a_difference_is_said_in_words():
    assert Compared(0.02, 0.01, 0.03).beside("it").startswith("more accurate than it: +2.00 points")
    assert Compared(-0.02, -0.03, -0.01).beside("it").startswith("less accurate than it: -2.00 points")


@pytest.mark.parametrize(
    "wrong, why",
    [
        ({"largest": 0.14}, "less than 1.5 times"),
        ({"confirmed": 0.27}, "takes 0.270 ms, and the budget is 0.260 ms"),
        ({"difference": 0.1}, "differ from the network's by 0.1"),
        ({"confirmed": float("nan")}, "takes nan ms"),
    ],
)
def test_what_is_wrong_whatever_the_luck_fails(wrong, why):
    (failure,) = what_is_wrong(**FINE | wrong)
    assert why in failure
