import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from predictors.devices import DEVICES
from predictors.engines import (
    ENGINES,
    NetworkError,
    cache_evictor,
    peak_memory,
    process_engine,
    runtime_threads,
    thread_engine,
)
from predictors.machine import (
    ADDR_NO_RANDOMIZE,
    alone_here,
    describe_status,
    fixed_addresses,
    largest_cache,
    personality,
)
from predictors.runtimes import RUNTIMES, Runtime
from predictors.statistics import Failure, Measurement
from predictors.timing import time_networks

TORCH = dataclasses.replace(DEVICES["torch"], warmup=1, rounds=4, runs=5, spacing=0.0)
INPUTS = (torch.zeros(1, 2),)
MISBEHAVING = """
import ctypes
import os
import time

import numpy

calls = 0


def crash(x):
    ctypes.string_at(0)


def crash_in_the_third_round(x):
    global calls
    calls += 1
    if calls > 14:
        crash(x)


def hang(x):
    time.sleep(1000)


def exhaust(x):
    kept = []
    while True:
        kept.append(numpy.empty(2**28))


def leave(x):
    os.write(2, b"a message of the runtime\\nno room for the kernel\\n\\n")
    os._exit(7)


def load_mine(seconds, **_):
    return (lambda: time.sleep(seconds)), "float32"


def log(x):
    os.write(2, b"deprecated")
    return x


def no_memory(x):
    raise OSError(12, "no memory")


broken = False


def break_what_comes_later(x):
    global broken
    broken = True


def break_with_others(x):
    if broken:
        crash(x)


def refuse(x):
    raise RuntimeError("no kernel for this")


def hold_64_mb(x):
    return numpy.ones(2**23)


def place(x):
    with open(os.environ["WHERE"], "a") as file:
        print(ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value, file=file)
    return x


def where(x):
    with open(os.environ["WHERE"], "a") as file:
        print(os.getpid(), *os.sched_getaffinity(0), file=file)
    return x
"""


@pytest.fixture
def misbehaving(tmp_path, monkeypatch):
    """A module that the worker's process can import, too."""
    (tmp_path / "misbehaving.py").write_text(MISBEHAVING)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("misbehaving")
    monkeypatch.delitem(__import__("sys").modules, "misbehaving")


def good():
    return nn.Linear(2, 2).eval(), INPUTS


def test_peak_memory_is_that_of_the_network(misbehaving):
    assert 60e6 < peak_memory(TORCH, (misbehaving.hold_64_mb, INPUTS)) - peak_memory(TORCH, good()) < 75e6


def test_what_runtimes_log_in_their_processes_is_kept_back(misbehaving, capfd):
    results = dict(time_networks(TORCH, {"a": (misbehaving.log, INPUTS)}, engine="process"))
    assert results["a"].rounds == 4 and "deprecated" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "name, reason",
    [
        ("crash", "its process was ended by SIGSEGV"),
        ("crash_in_the_third_round", "its process was ended by SIGSEGV"),
        ("exhaust", "MemoryError"),
        ("leave", "its process ended with status 7; its last line: no room for the kernel"),
        ("refuse", "RuntimeError: no kernel for this"),
    ],
)
def test_what_a_network_does_to_its_process_is_told_and_no_other_loses_a_round(misbehaving, name, reason):
    networks = {"a": good(), "bad": (getattr(misbehaving, name), INPUTS), "b": good(), "c": good()}
    results = dict(time_networks(TORCH, networks, ("reference", good()), engine="process"))
    assert isinstance(results["bad"], Failure) and len(results["bad"].reasons) == 2
    assert all(reason in told for told in results["bad"].reasons)
    for key in "abc":
        assert isinstance(results[key], Measurement)
        assert (results[key].rounds, results[key].runs) == (4, 5) and results[key].reference_p10 > 0


def test_a_network_that_breaks_the_reference_is_told_and_costs_no_other_one(misbehaving):
    networks = {"a": good(), "bad": (misbehaving.break_what_comes_later, INPUTS), "b": good()}
    results = dict(time_networks(TORCH, networks, ("r", (misbehaving.break_with_others, INPUTS)), engine="process"))
    told = results["bad"].reasons
    assert len(told) == 2 and all("beside it the reference: its process was ended by" in reason for reason in told)
    assert [results[key].rounds for key in "ab"] == [4, 4]


def test_a_network_that_hangs_is_stopped_at_the_limit_and_no_other_loses_a_round(misbehaving, monkeypatch):
    monkeypatch.setitem(ENGINES, "process", partial(process_engine, limit=15))
    results = dict(
        time_networks(TORCH, {"a": good(), "bad": (misbehaving.hang, INPUTS), "b": good()}, engine="process")
    )
    assert isinstance(results["bad"], Failure) and results["bad"].reasons == ("no answer in 15 s",) * 2
    assert [results[key].rounds for key in "ab"] == [4, 4]


def test_what_a_network_raises_is_its_own_failure_and_no_error_of_the_user(misbehaving):
    results = dict(time_networks(TORCH, {"bad": (misbehaving.no_memory, INPUTS), "a": good()}, engine="thread"))
    assert "OSError: " in results["bad"].reasons[0] and results["a"].rounds == 4


def test_a_network_that_cannot_be_exported_costs_no_other_one():
    def unwritable():
        raise RuntimeError("no operator for this")

    results = dict(time_networks(TORCH, {"a": good, "bad": unwritable, "b": good}, ("reference", good)))
    assert results["bad"].reasons == ("it could not be exported: RuntimeError: no operator for this",) * 2
    assert [results[key].rounds for key in "ab"] == [4, 4]


def test_a_runtime_of_another_package_runs_in_the_process_too(misbehaving, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "mine", Runtime(misbehaving.load_mine, "torch"))
    device = dataclasses.replace(TORCH, name="mine", runtime="mine")
    (result,) = dict(time_networks(device, {"a": 0.01}, engine="process")).values()
    assert 10 <= result.p10 < 20
    main = sys.modules["__main__"]
    for known in (False, True):  # to pickle; the process cannot import it either way
        monkeypatch.setattr(main, "load_theirs", load_theirs, raising=False) if known else None
        monkeypatch.setitem(RUNTIMES, "mine", Runtime(load_theirs, "torch"))
        with pytest.raises(ValueError, match="cannot import the runtime mine: put it in a module"):
            dict(time_networks(device, {"a": 0.01}, engine="process"))


def load_theirs(source, **_): ...


load_theirs.__module__ = "__main__"


def test_a_module_that_the_process_cannot_import_is_told(misbehaving, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "mine", Runtime(misbehaving.load_mine, "torch"))
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "pytest" not in place])
    device = dataclasses.replace(TORCH, name="mine", runtime="mine")
    with pytest.raises(ValueError, match="cannot import the runtime mine: ModuleNotFoundError"):
        dict(time_networks(device, {"a": 0.01}, engine="process"))


@pytest.mark.parametrize("engine", [thread_engine, process_engine])
def test_only_one_times_on_a_machine_and_the_others_wait(engine):
    with engine(TORCH) as call, ThreadPoolExecutor(1) as pool:
        call("load", "good", good())
        with alone_here():
            waiting = pool.submit(call, "time", "good")
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
        assert len(waiting.result(timeout=60)) == 5


def test_no_network_is_loaded_while_another_is_timed():
    with thread_engine(TORCH) as call, ThreadPoolExecutor(1) as pool:
        with alone_here():
            waiting = pool.submit(call, "load", "good", good())
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
        waiting.result(timeout=60)


def test_waiting_for_others_is_no_part_of_the_limit():
    with process_engine(TORCH, limit=20) as call, ThreadPoolExecutor(1) as pool:
        call("load", "good", good())
        with alone_here():
            waiting = pool.submit(call, "time", "good")
            time.sleep(21)
        assert len(waiting.result(timeout=60)) == 5


def test_a_failed_call_is_followed_by_a_fresh_process(misbehaving):
    with process_engine(TORCH) as call:
        call("load", "good", good())
        with pytest.raises(NetworkError):
            call("load", "bad", (misbehaving.leave, INPUTS))
        with pytest.raises(NetworkError, match="KeyError"):  # which has nothing loaded
            call("time", "good")
        call("load", "good", good())
        assert len(call("time", "good")) == 5


def test_a_process_that_is_killed_between_rounds_loses_no_row(misbehaving, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    networks, killed = {key: (misbehaving.where, INPUTS) for key in "abcd"}, []

    def killing(seconds):
        if not killed:
            killed.append(int((tmp_path / "where").read_text().split()[0]))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(time, "sleep", killing)  # as between rounds
    results = dict(time_networks(TORCH, networks, engine="process"))
    assert killed and set(results) == set("abcd") and all(m.rounds == 4 for m in results.values())


def test_each_group_and_what_failed_once_has_a_process_of_its_own(misbehaving, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    networks = {key: (misbehaving.where, INPUTS) for key in "abcd"} | {"bad": (misbehaving.leave, INPUTS)}
    results = dict(time_networks(TORCH, networks, ("reference", good()), engine="process", group=2))
    assert isinstance(results.pop("bad"), Failure) and all(m.rounds == TORCH.rounds for m in results.values())
    runs = [line.split()[0] for line in (tmp_path / "where").read_text().splitlines()]
    each = 2 * (1 + TORCH.rounds * (TORCH.warmup + TORCH.runs))  # of a process: two networks, which are loaded once
    assert [runs.count(process) for process in dict.fromkeys(runs)] == [each, each]


def test_a_thread_tells_what_the_runtime_raised_and_goes_on(misbehaving):
    networks = {"bad": (misbehaving.refuse, INPUTS), "a": good()}
    results = dict(time_networks(TORCH, networks))
    assert results["bad"].reasons == ("RuntimeError: no kernel for this",) * 2
    assert (results["a"].rounds, results["a"].runs) == (4, 5)


def test_a_reference_that_fails_ends_the_measuring(misbehaving):
    with pytest.raises(NetworkError, match="reference network r failed: .*no kernel"):
        list(time_networks(TORCH, {"a": good()}, ("r", (misbehaving.refuse, INPUTS))))


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_what_a_user_asked_for_wrongly_is_raised(engine):
    with pytest.raises(ValueError, match="train mode") as caught:
        list(time_networks(TORCH, {"a": (nn.Linear(2, 2).train(), INPUTS)}, engine=engine))
    assert caught.value.__notes__ == ["while timing a"]
    with pytest.raises(ValueError, match="engine: 'cloud' is not one of thread, process"):
        list(time_networks(TORCH, {"a": good()}, engine="cloud"))


def test_a_source_that_the_process_cannot_import_is_told(misbehaving, tmp_path):
    (tmp_path / "misbehaving.py").unlink()
    with pytest.raises(ImportError, match="misbehaving"):
        list(time_networks(TORCH, {"a": (misbehaving.where, INPUTS)}, engine="process"))


def test_the_process_is_pinned_and_this_one_is_not(misbehaving, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    before = os.sched_getaffinity(0)
    device = dataclasses.replace(TORCH, affinity=(max(before),))
    list(time_networks(device, {"a": (misbehaving.where, INPUTS)}, engine="process"))
    seen = {tuple(map(int, line.split())) for line in (tmp_path / "where").read_text().splitlines()}
    assert os.sched_getaffinity(0) == before
    ((process, *cpus),) = seen
    assert process != os.getpid() and cpus == [max(before)]


def test_processes_that_time_have_their_code_at_the_same_place(misbehaving, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    before = personality()
    if TORCH.fingerprint()["layout"] == "random":
        pytest.skip("this system does not fix where a process has its memory")
    for _ in range(3):
        (timed,) = time_networks(TORCH, {"a": (misbehaving.place, INPUTS)}, engine="process")
        assert timed[1].device["layout"] == "fixed"
    assert len(set((tmp_path / "where").read_text().splitlines())) == 1
    assert personality() == before


@pytest.mark.parametrize("reference", [None, ("reference", good())])
def test_with_fresh_every_round_is_by_another_process_at_random_addresses(
    misbehaving, tmp_path, monkeypatch, reference
):
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    networks = {"a": (misbehaving.where, INPUTS), "b": (misbehaving.where, INPUTS), "c": good()}
    timed = dict(time_networks(TORCH, networks, reference, engine="process", new_process_per_round=True))
    assert {(m.rounds, m.device["layout"]) for m in timed.values()} == {(TORCH.rounds, "random")}
    seen = [line.split()[0] for line in (tmp_path / "where").read_text().splitlines()]
    assert len(set(seen)) == TORCH.rounds
    assert {seen.count(process) for process in seen} == {2 * (1 + TORCH.warmup + TORCH.runs)}


def test_fresh_addresses_are_random_where_those_of_this_process_are_not():
    with fixed_addresses() as done:
        if not done:
            pytest.skip("this system does not fix where a process has its memory")
        ((_, timed),) = time_networks(TORCH, {"a": good()}, engine="process", new_process_per_round=True)
    assert timed.device["layout"] == "random"


def test_what_fails_in_a_fresh_process_costs_no_other_network_a_round(misbehaving):
    networks = {"a": good(), "bad": (misbehaving.leave, INPUTS), "b": good()}
    timed = dict(time_networks(TORCH, networks, ("reference", good()), engine="process", new_process_per_round=True))
    assert isinstance(timed.pop("bad"), Failure)
    assert {m.rounds for m in timed.values()} == {TORCH.rounds}


def test_a_thread_is_no_fresh_process():
    with pytest.raises(ValueError, match="the engine thread has the addresses of this process"):
        list(time_networks(TORCH, {"a": good()}, new_process_per_round=True))


def test_a_thread_has_the_layout_of_its_process():
    (timed,) = time_networks(TORCH, {"a": good()})
    told = Path("/proc/self/personality")
    fixed = told.is_file() and int(told.read_text(), 16) & ADDR_NO_RANDOMIZE
    assert timed[1].device["layout"] == ("fixed" if fixed else "random")


def test_a_process_ends_with_its_engine(misbehaving, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    with process_engine(TORCH) as call:
        call("load", "a", (misbehaving.where, INPUTS))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "where").read_text().split()[0]), 0)


def test_a_process_that_hangs_ends_with_the_one_that_started_it(misbehaving, tmp_path):
    code = """
import threading
from predictors.devices import DEVICES
from predictors.engines import process_engine
import misbehaving, torch

with process_engine(DEVICES["torch"]) as call:
    call("load", "a", (misbehaving.where, (torch.zeros(1, 2),)))
    threading.Thread(target=call, args=("load", "b", (misbehaving.hang, (torch.zeros(1, 2),))), daemon=True).start()
    print("hangs", flush=True)
    threading.Event().wait()
"""
    environment = {**os.environ, "WHERE": str(tmp_path / "where"), "PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert driver.stdout.readline() == b"hangs\n"
    pid = int((tmp_path / "where").read_text().split()[0])
    time.sleep(0.5)
    driver.kill()
    driver.communicate()
    for _ in range(100):
        if not Path(f"/proc/{pid}/status").is_file() or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("it still runs")


def test_on_a_gpu_convolutions_are_cudnns_without_tf32():
    cudnn, device = torch.backends.cudnn, dataclasses.replace(TORCH, place="cuda")
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    with runtime_threads(device):
        assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (*before[:3], False)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == before


def test_a_thread_is_pinned_and_the_caller_is_not():
    before, seen = os.sched_getaffinity(0), []

    def spy(x):
        pool_thread = ThreadPoolExecutor(1).submit(os.sched_getaffinity, 0).result()
        seen.append((os.sched_getaffinity(0), pool_thread, threading.current_thread(), torch.get_num_threads()))
        return x

    device = dataclasses.replace(TORCH, affinity=(max(before),))
    with thread_engine(device) as call:
        call("load", "spy", (spy, INPUTS))
        call("time", "spy")
        assert os.sched_getaffinity(0) == before
    for own, inherited, thread, threads in seen:
        assert own == inherited == {max(before)}
        assert thread is not threading.main_thread() and threads == 1


def test_cold_runs_have_the_caches_filled_with_other_data(monkeypatch):
    evicted = []
    monkeypatch.setattr("predictors.engines.cache_evictor", lambda: lambda: evicted.append(1))
    ((_, m),) = time_networks(dataclasses.replace(TORCH, protocol="cold"), {"a": good()})
    assert len(evicted) == m.device["rounds"] * m.device["runs"]


def test_evicting_touches_twice_the_largest_cache():
    buffer = cache_evictor()()
    assert buffer.nbytes == 2 * largest_cache() and (buffer == 1).all()


@pytest.mark.parametrize("status, words", [(3, "status 3"), (-signal.SIGKILL, "frees memory"), (-40, "signal 40")])
def test_how_a_process_ended_is_told_in_words(status, words):
    assert words in describe_status(status)
