import math
import os
import pickle
import time

from recipes.lab import workers
from recipes.lab.workers import Failed, Workers, how_many


def test_methods_are_called_on_a_copy_of_the_state_and_what_they_raise_is_reported():
    with Workers(pickle.dumps("banana"), 2) as pool:
        found = dict(pool.map("count", [("a",), ("n",), (1,), ("b",)]))
        assert dict(pool.map("upper", [()])) == {0: "BANANA"}
    assert (found[0], found[1], found[3]) == (3, 2, 1)
    assert isinstance(found[2], Failed) and "TypeError" in found[2].reason


def test_a_process_that_is_lost_fails_its_job_alone():
    with Workers(pickle.dumps(os._exit), 1) as pool:
        for _ in range(2):  # the second time it is another process
            assert isinstance(dict(pool.map("__call__", [(3,)]))[0], Failed)


def test_no_more_processes_work_than_memory_allows():
    assert how_many(10**15) == 0 <= how_many(10**6)


def test_a_system_that_does_not_state_its_memory_bounds_no_processes(monkeypatch):
    monkeypatch.setattr(workers, "free_memory", lambda: math.inf)
    assert 1 <= how_many(10**15) <= workers.MOST


def test_processes_that_work_end_when_they_are_closed():
    with Workers(pickle.dumps(time.sleep), 1) as pool:
        jobs = pool.map("__call__", [(0,), (1000,)])
        assert next(jobs) == (0, None)
        began = time.monotonic()
    assert time.monotonic() - began < 10
