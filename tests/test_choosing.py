"""Which networks are exported, and which of them is chosen: on made-up tables."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from recipes.choosing import choose, distinct, none_met, shortlist
from recipes.constraints import LATENCY, Bounds, Deployed
from supernet.evaluation import METRICS

ACCURACY = METRICS["accuracy"]


def deployed(name, ms, again=None, found_for=5.0, accuracy=0.5, loss=1.0, **others):
    """A network with a first and perhaps a second latency."""
    measured = {LATENCY: (ms,) if again is None else (ms, again)} | {key: (value,) for key, value in others.items()}
    return Deployed((ms,), name, found_for, measured, {}, {"accuracy": accuracy, "loss": loss})


class Lab:
    """A lab that evaluates and confirms made-up files; it is a constraint on latency, too."""

    name = LATENCY

    def __init__(self, items, again, precision="int8"):
        self.items, self.again = items, again
        self.device = SimpleNamespace(name="openvino", precision=precision)
        self.evaluator = SimpleNamespace(file_items=lambda config, split: self.items(config))
        self.all = (self,)

    def confirm(self, lab, one):
        if not one.confirmed:
            one.measured[LATENCY] += (self.again(one.config),)

    def choose(self, found, **bounds):
        return choose(self, found, ACCURACY, self, Bounds(**bounds))


def test_distinct_rows_are_new_and_apart():
    X = np.array([[1, 1, 1, 1.0], [1, 1, 1, 2], [2, 2, 2, 2], [3, 3, 3, 3]])
    assert distinct(X, X[3:], 5).tolist() == [[1, 1, 1, 1], [2, 2, 2, 2]]
    assert distinct(X, X, 5).shape == (0, 4)


X = np.arange(6.0)[:, None]
METRIC_VALUES = {"loss": np.array([3.0, 1, 2, 5, 4, 0]), "accuracy": np.array([0.9, 0.5, 0.6, 0.8, 0.7, 1.0])}


def listed(known=(), within=(True,) * 5 + (False,), n=2):
    by_row = {one.row: one for one in known}
    return shortlist(X, METRIC_VALUES, ACCURACY, np.array(within), by_row, Bounds(5.0), n)


def test_finalists_are_the_networks_of_least_loss_within_the_bounds():
    assert listed() == [1, 2]


def test_a_network_that_violated_a_bound_is_not_exported_again():
    assert listed([deployed("missed", 1.0, again=9.0)]) == [2, 0]


def test_after_a_network_met_all_bounds_only_better_ones_are_exported():
    assert listed([deployed("met", 4.0, again=4.0, accuracy=0.55)], n=3) == [2, 0]
    assert listed([deployed("met", 4.0, again=4.0, accuracy=0.95)], n=3) == []


def right(n):
    """The items of a network that is right on n of 100 items."""
    rights = np.r_[np.ones(n), np.zeros(100 - n)]
    return {"accuracy": rights, "loss": 1 - rights, "counted": np.ones(100)}


def flipped(items, more_loss=0):
    """The same number of items, of which others are right."""
    return {
        "accuracy": items["accuracy"][::-1],
        "loss": 1 - items["accuracy"][::-1] + more_loss,
        "counted": np.ones(100),
    }


FILES = {
    "good": (3.0, right(90)),
    "as good": (2.0, flipped(right(89))),
    "worse": (1.0, right(80)),
    "unsure": (1.2, flipped(right(89), more_loss=1)),
    "misses": (1.5, right(95)),
    "slow": (6.0, right(99)),
    "not again": (1.8, flipped(right(89))),
}
AGAIN = {"misses": 9.0, "not again": 4.0}


def lab_of_files():
    return Lab(lambda name: FILES[name][1], lambda name: AGAIN.get(name, FILES[name][0]))


def test_of_files_that_are_as_good_the_fastest_is_chosen():
    found = [deployed(name, ms) for name, (ms, _) in FILES.items()]
    assert lab_of_files().choose(found, latency_ms=5.0).config == "as good"


def test_no_file_is_chosen_that_violates_a_bound():
    assert lab_of_files().choose([deployed("good", 3.0)], latency_ms=2.0) is None
    sized = [deployed(name, ms, params=7.0 - ms) for name, (ms, _) in FILES.items()]
    assert lab_of_files().choose(sized, latency_ms=5.0, params=4.0).config == "good"


def test_a_runtime_that_does_not_compute_what_the_network_does_is_an_error():
    items = {"accuracy": np.ones(4), "loss": np.full(4, 1.1), "counted": np.ones(4)}
    lab, found = Lab(lambda config: items, lambda config: 1.0, precision="float32"), [deployed("a network", 1.0)]
    with pytest.raises(ValueError, match="openvino does not compute a network as torch does: its loss is 1.1 by the"):
        lab.choose(found, latency_ms=5.0)
    assert lab.choose(found, latency_ms=6.0) is None  # another search leaves it out


def test_a_failed_search_counts_its_own_networks_and_those_for_other_budgets():
    found = [deployed("a", 3.0, found_for=5.0)]
    text = none_met(found, Bounds(2.0), 2.5, "b")
    assert text.startswith("0 exported networks were timed and 1 for other budgets, none met 2.000 ms: none was pred")
    assert "the fastest has a latency of 3.000 ms, 1.000 ms more than the budget: a; of the samples the fastest" in text
    text = none_met(found, Bounds(5.0), 2.5, "b")
    assert text.startswith(
        "1 exported networks were timed, none met 5.000 ms: the fastest has a latency of 3.000 ms: a"
    )


def test_a_network_that_failed_violates_all_bounds():
    one = deployed("a", 1.0)
    assert not one.violates(Bounds(2.0))
    one.failed = "its worker was lost"
    assert one.violates(Bounds(2.0)) and math.isinf(one.latency_ms)


@pytest.mark.parametrize(
    "bounds, reason",
    [
        ({"latency_ms": 0.0}, "max_latency_ms = 0.0 is not a positive number"),
        ({"latency_ms": math.inf}, "not a positive number"),
        ({"latency_ms": 1.0, "macs": -1}, "max_macs = -1 is not a positive number"),
        ({"latency_ms": 1.0, "speed": 1}, "bound: 'speed' is not one of latency_ms, macs"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(bounds, reason):
    with pytest.raises(ValueError, match=reason):
        Bounds(**bounds)
