"""The timer: sessions, accepted measurements, confirmations and failures, on a simulated engine."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from predictors.devices import DEVICES
from predictors.engines import NetworkError
from predictors.store import Store
from predictors.timer import Target, Timer, ratio_interval

QUICK = dataclasses.replace(DEVICES["onnxruntime"], warmup=0, rounds=8, runs=8, spacing=0.0, sessions=3)


@pytest.fixture
def opened(simulation, tmp_path):
    """Opens a timer of a device on the same store; the latency of a target in ms is its source."""
    simulation.ms = lambda source, confirms: source
    store = Store(tmp_path / "store.sqlite")

    def make(device=QUICK, reference="reference", **options):
        return Timer(device, store, Target(reference, 1.0, reference), engine="simulated", **options)

    yield make
    store.close()


def targets(*ms):
    return [Target(f"network {i}", x, f"network {i}") for i, x in enumerate(ms)]


def test_samples_are_timed_once_in_several_sessions(opened, simulation):
    for _ in range(2):
        ms, baseline = opened().samples(targets(2.0, 3.0), "timing")
        assert ms.tolist() == [2.0, 3.0] and list(baseline.values()) == [1.0]
        records = opened().store.records("latency")
        assert len(records) == 2 * 3 and {record["rounds"] for record in records} == {4}  # half of the rounds


def test_later_measurements_change_no_known_latency(opened):
    timer = opened()
    before, _ = timer.samples(targets(2.0, 3.0), "timing")
    record = timer.store.records("latency")[0]
    timer.store.add("latency", ("network 0", timer.device_id), record | {"p10": 0.1, "min": 0.1})
    assert np.array_equal(timer.samples(targets(2.0, 3.0), "timing")[0], before)


def test_each_session_has_an_order_of_its_own(opened, simulation):
    opened().samples(targets(*range(1, 7)), "timing")
    loads = [call[1] for call in simulation.asked if call[0] == "load" and not call[1].startswith("copy")]
    orders = [loads[i : i + 6] for i in range(0, 18, 6)]
    assert len({tuple(order) for order in orders}) == 3 and len({frozenset(order) for order in orders}) == 1


def test_measurements_beside_another_reference_do_not_count(opened):
    opened(reference="another").samples(targets(2.0), "timing")
    timer = opened()
    timer.samples(targets(2.0), "timing")
    assert len(timer.store.records("latency")) == 2 * 3 and len(timer.sessions(targets(2.0)[0])) == 3


def test_finalists_are_timed_in_all_rounds_and_confirmed_in_new_processes(opened, simulation):
    timer = opened()
    _, baseline = timer.samples(targets(2.0), "timing")
    simulation.ms = lambda source, confirms: source + (0.5 if confirms else 0.0)
    for _ in range(2):
        assert timer.final(targets(2.0), baseline, "timing the finalists").tolist() == [2.0]
        assert timer.confirm(*targets(2.0), baseline) == (2.5, 2.5)
    assert [record["rounds"] for record in timer.store.records("latency")] == [4, 4, 4, 8]
    (confirmation,) = timer.store.records("confirmation")
    assert confirmation["device"]["layout"] == "random" and confirmation["rounds"] == 8


def test_drift_of_the_machine_is_divided_out(opened, simulation):
    timer = opened()
    _, baseline = timer.samples(targets(2.0), "timing")
    simulation.reference_ms = 1.1
    simulation.ms = lambda source, confirms: 1.1 * source
    assert timer.confirm(*targets(2.0), baseline) == (pytest.approx(2.0), pytest.approx(2.2))


def test_a_measurement_under_much_drift_is_repeated_and_the_least_disturbed_of_three_is_accepted(opened, simulation):
    timer = opened()
    _, baseline = timer.samples(targets(2.0), "timing")
    drifts = iter([9.0, 5.0, 7.0])

    def ms(source, confirms):
        simulation.reference_ms = next(drifts)
        return source * simulation.reference_ms

    simulation.ms, simulation.reference_ms = ms, 8.0
    assert timer.final(targets(2.0), baseline, "timing").shape == (1,)
    assert len([record for record in timer.store.records("latency") if record["rounds"] == 8]) == 3


def test_a_target_that_fails_twice_is_not_tried_again(opened, simulation):
    def fails(source, confirms):
        if source == 3.0:
            raise NetworkError("it failed")
        return source

    simulation.ms = fails
    for _ in range(2):
        ms, _ = opened().samples(targets(2.0, 3.0), "timing")
        assert ms.tolist() == [2.0, math.inf]
    assert opened().reasons(targets(2.0, 3.0)) == "it failed"
    assert [call[1:] for call in simulation.asked].count(("network 1",)) == 2


def test_targets_are_prepared_together_with_the_reference(opened):
    prepared = []
    opened(prepare=lambda some: prepared.append([target.key for target in some])).samples(targets(2.0), "timing")
    assert prepared == 3 * [["network 0", "reference"]]


def test_ratios_are_of_two_files_in_the_same_sessions(opened):
    timer = opened()
    pairs = targets(4.0, 3.0), [Target("beside 0", 2.0, "b"), Target("beside 1", 2.0, "b")]
    assert timer.ratios(*pairs, "comparing") == [[2.0, 2.0], [1.5, 1.5]]
    assert len(timer.store.records("latency")) == 2 * 4


def test_an_attempt_that_fails_once_is_repeated_and_one_that_fails_twice_is_remembered(opened):
    timer, (target,), outcomes = opened(), targets(2.0), [NetworkError("lost"), 7]

    def ask():
        if isinstance(outcome := outcomes.pop(0), Exception):
            raise outcome
        return outcome

    assert timer.attempt(target, "memory", ask) == 7
    outcomes[:] = [NetworkError("lost"), NetworkError("lost again")]
    for _ in range(2):
        with pytest.raises(NetworkError, match="lost again"):
            timer.attempt(target, "memory", ask)
    assert not outcomes


def test_a_result_of_another_machine_is_refused(opened, simulation):
    timer = opened()
    assert timer.fingerprint["cpu"] == simulation.cpu
    simulation.cpu = "another CPU"
    with pytest.raises(ValueError, match="comes from another machine"):
        timer.samples(targets(2.0), "timing")


def test_a_ratio_is_known_to_differ_only_where_its_interval_shows_it():
    rng = np.random.default_rng(0)
    noisy = [0.96 * np.exp(rng.normal(0, 0.05, 4)) for _ in range(3)]
    ratio, low, high = ratio_interval(noisy)
    assert low < ratio < high and high > 0.98
    apart = [level * np.exp(rng.normal(0, 0.002, 4)) for level in (0.9, 0.95)]  # whose levels are known well
    assert ratio_interval(apart)[2] < 0.98
    assert ratio_interval([[1.1], [0.9]])[1:] == (0.0, math.inf)


def test_busy_seconds_count_runs_and_answers_awaited_in_vain():
    timer = SimpleNamespace(
        device=SimpleNamespace(warmup=2, sessions=8),
        sessions=lambda target, n: [SimpleNamespace(rounds=4, runs=8, median=5.0)] * n,
        failures=lambda target: ["no answer in 30.0 s"],
    )
    assert Timer.busy_seconds(timer, ["a"], 4) == pytest.approx(30.0 + 8 * 4 * 10 * 5e-3)
