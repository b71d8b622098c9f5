import dataclasses
import time

import pytest

from predictors.devices import DEVICES
from predictors.timing import RecoveringWorker, time_networks

DEVICE = dataclasses.replace(DEVICES["torch"], warmup=0, rounds=4, runs=5, spacing=0.05)
NETWORKS = {f"network {i}": i for i in range(6)}


class Clock:
    """Time that passes only while networks run and while a program sleeps."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.pass_by)

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def timed(monkeypatch):
    """A function that times networks, of so many seconds a round, and returns the calls of the worker."""
    clock, calls = Clock(monkeypatch), []

    def call(method, *arguments):
        calls.append((method, str(*arguments[:1])))
        if method == "time":
            clock.pass_by(call.seconds)
            return (1.0,) * DEVICE.runs
        return {}

    def run(session, networks=NETWORKS, seconds=0.001):
        calls.clear()
        call.seconds, began = seconds, clock.now
        results = dict(time_networks(DEVICE, networks, ("reference", 0), group=3, engine="process", worker=session))
        assert set(results) == set(networks) and all(m.rounds == DEVICE.rounds for m in results.values())
        return list(calls), clock.now - began

    run.call = call
    return run


def count(calls, method):
    return sum(name == method for name, *_ in calls)


def test_networks_of_a_kept_session_are_loaded_once(timed):
    session = RecoveringWorker(timed.call, kept=True)
    first, _ = timed(session)
    again, _ = timed(session, NETWORKS | {"another": 1})
    assert count(first, "load") == len(NETWORKS) + 3 and count(first, "end") == 0
    assert [name for method, name in again if method == "load"] == ["another"]


def test_networks_of_a_session_that_is_not_kept_are_dropped(timed):
    session = RecoveringWorker(timed.call)
    assert count(timed(session)[0], "drop") == len(NETWORKS)
    assert count(timed(session)[0], "load") >= len(NETWORKS)


def test_rounds_of_another_group_take_place_while_a_group_waits(timed):
    calls, seconds = timed(RecoveringWorker(timed.call, kept=True))
    groups = [int(name.split()[1]) // 3 for method, name in calls if method == "time" and name.startswith("network")]
    assert groups.count(0) == groups.count(1) == 3 * DEVICE.rounds
    assert sum(a != b for a, b in zip(groups, groups[1:])) > 3
    assert seconds < 2 * (DEVICE.rounds - 1) * DEVICE.spacing  # what one after the other waits


def test_slow_networks_are_loaded_one_group_at_a_time(timed):
    session = RecoveringWorker(timed.call, kept=True)
    calls, _ = timed(session, seconds=0.1)
    order = [name for method, name in calls if method == "time" and name.startswith("network")]
    assert {name for name in order[: 3 * DEVICE.rounds]} == {f"network {i}" for i in range(3)}
    assert count(calls, "end") == 1 and count(timed(session, seconds=0.1)[0], "end") == 2
