import dataclasses
import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import ofa
from predictors.devices import DEVICES
from predictors.engines import ENGINES
from predictors.ray import ray_engine
from predictors.statistics import Failure
from predictors.timing import time_networks
from recipes.specialize import specialize
from supernet.export.onnx import to_onnx
from supernet.saving import load, save

pytestmark = pytest.mark.extras

TORCH = dataclasses.replace(DEVICES["torch"], name="board", warmup=1, rounds=4, runs=5, spacing=0.0)
INPUTS = (torch.zeros(1, 2),)
SPYING = """
import os
import time


def crash(x):
    import ctypes

    ctypes.string_at(0)


def hang(x):
    time.sleep(1000)


def exhaust(x):
    import numpy

    kept = []
    while True:
        kept.append(numpy.empty(2**28))


def logged(x):
    began = time.time()
    time.sleep(0.002)
    with open(os.environ["LOGGED"], "a") as file:
        print(os.getppid(), os.nice(0), began, time.time(), file=file)
    return x
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Four workers, one of which has the device; and a module that they can import."""
    ray = pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "spying.py").write_text(SPYING)
    os.environ["LOGGED"] = str(folder / "log")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address="local",
        num_cpus=4,
        resources={"device:board": 1},
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "LOGGED": os.environ["LOGGED"]}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    ray.shutdown()
    del os.environ["LOGGED"]


def good():
    return nn.Linear(2, 2).eval(), INPUTS


def spied():
    import spying

    return spying.logged, INPUTS


def runs(folder):
    """What `spied` networks logged: (Ray's process, its niceness, begin, end) of each run."""
    lines = map(str.split, (folder / "log").read_text().splitlines())
    return [(int(process), int(nice), float(began), float(ended)) for process, nice, began, ended in lines]


def test_no_two_measurements_overlap_on_one_device(cluster):
    from concurrent.futures import ThreadPoolExecutor

    (cluster / "log").unlink(missing_ok=True)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(lambda i=i: dict(time_networks(TORCH, {f"{i}": spied()}, engine="ray"))) for i in range(4)]
        found = {key for job in jobs for key in job.result()}
    assert found == set("0123")
    seen = sorted(runs(cluster), key=lambda run: run[2])
    assert len({process for process, *_ in seen}) == 4  # each had a worker of its own
    assert all(before[3] <= after[2] for before, after in zip(seen, seen[1:]))
    assert {nice for _, nice, *_ in seen} == {os.nice(0)}


def test_a_worker_that_is_killed_loses_no_row(cluster, monkeypatch):
    (cluster / "log").unlink(missing_ok=True)
    networks, results, killed = {key: spied() for key in "abcdef"}, {}, []
    serial = dict(time_networks(TORCH, {key: good() for key in "abcdef"}, ("reference", good()), engine="process"))

    def killing(seconds):
        if not killed:
            killed.append(runs(cluster)[-1][0])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr("predictors.timing.time.sleep", killing)  # as between rounds
    for key, result in time_networks(TORCH, networks, ("reference", good()), engine="ray"):
        assert key not in results
        results[key] = result
    assert killed and results.keys() == serial.keys()
    assert all((m.rounds, m.runs) == (4, 5) for m in results.values())
    assert len({process for process, *_ in runs(cluster)}) == 2


@pytest.mark.parametrize(
    "name, reason", [("crash", "SIGSEGV"), ("exhaust", "MemoryError"), ("hang", "no answer in 15 s")]
)
def test_what_a_network_does_to_its_process_is_told_and_no_other_loses_a_round(cluster, monkeypatch, name, reason):
    import spying

    monkeypatch.setitem(ENGINES, "ray", partial(ray_engine, limit=15))
    networks = {"a": good(), "bad": (getattr(spying, name), INPUTS), "b": good()}
    results = dict(time_networks(TORCH, networks, engine="ray"))
    assert isinstance(results["bad"], Failure) and len(results["bad"].reasons) == 2
    assert all(reason in told for told in results["bad"].reasons)
    assert [results[key].rounds for key in "ab"] == [4, 4]


def test_files_travel(cluster, tmp_path):
    path = to_onnx(nn.Linear(4, 2).eval(), tmp_path / "network.onnx", (torch.zeros(1, 4),), fast=True)
    device = dataclasses.replace(DEVICES["onnxruntime"], name="board", warmup=1, rounds=4, runs=5, spacing=0.0)
    (result,) = dict(time_networks(device, {"a": path}, engine="ray")).values()
    assert result.p10 > 0
    with pytest.raises(FileNotFoundError, match="absent.onnx does not exist"):
        dict(time_networks(device, {"a": tmp_path / "absent.onnx"}, engine="ray"))


def test_fresh_rounds_are_at_random_addresses_where_the_device_is(cluster):
    timed = dict(
        time_networks(
            TORCH, {"a": good(), "b": good()}, ("reference", good()), engine="ray", new_process_per_round=True
        )
    )
    assert {(m.rounds, m.device["layout"]) for m in timed.values()} == {(TORCH.rounds, "random")}


def test_files_are_run_on_what_they_are_given_where_the_device_is(cluster, tmp_path):
    network, x = nn.Linear(4, 2).eval(), torch.randn(3, 4)
    path = to_onnx(network, tmp_path / "network.onnx", (torch.zeros(1, 4),), fast=True)
    device = dataclasses.replace(DEVICES["onnxruntime"], name="board")
    with ray_engine(device) as call:
        call("open", str(path))
        made = call("run", "network", {"input": x.numpy()})["output"]
        assert call("memory", path) > 0
    assert torch.allclose(torch.from_numpy(made), network(x), atol=1e-5)


def test_a_device_that_no_machine_has_is_told(cluster):
    with pytest.raises(ValueError, match="no machine of the Ray cluster has device:toaster .*device:board.*ray start"):
        dict(time_networks(dataclasses.replace(TORCH, name="toaster"), {"a": good()}, engine="ray"))


LOSING = """
import ray
import torch
from ray.cluster_utils import Cluster
from torch import nn

from predictors.devices import Device
from predictors.timing import time_networks

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
far = cluster.add_node(num_cpus=1, resources={"device:far": 1})
ray.init(address=cluster.address, log_to_driver=False)
device = Device("far", "torch", warmup=1, rounds=4, runs=5, spacing=0.0)
networks = ((str(i), (nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))) for i in range(30))
done = []
try:
    for key, result in time_networks(device, networks, engine="ray"):
        done.append((key, type(result).__name__))
        if len(done) == 2:
            cluster.remove_node(far)
except ConnectionError as error:
    print(len(done), {kind for _, kind in done}, error)
"""


def test_a_machine_that_is_lost_is_told_and_no_network_is_blamed():
    pytest.importorskip("ray")
    found = subprocess.run([sys.executable, "-c", LOSING], capture_output=True, text=True, timeout=300)
    assert "{'Measurement'} the Ray cluster has lost device:far" in found.stdout, found.stderr[-2000:]
    assert int(found.stdout.split()[0]) < 30


def test_specialize_times_and_evaluates_where_the_device_is(cluster, tmp_path, monkeypatch):
    network = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=(16,)), 10, width_mult=0.2, in_channels=1)
    data = {"class_path": "ofa.ImageData", "init_args": {"holdout": 60, "calibration": 64}}
    save(network, tmp_path / "supernet", data=data)
    description = {"name": "board", "runtime": "onnxruntime", "warmup": 1, "rounds": 4, "runs": 5, "spacing": 0.0}
    (tmp_path / "board.yaml").write_text(json.dumps(description))
    few = dict(latency_samples=10, accuracy_samples=10, finalists=2, population=20, generations=5)
    asked = []

    def here(*arguments):
        raise AssertionError("no file is run in the driver's process")

    monkeypatch.setattr("predictors.devices.Device.open", here)
    for out in ("once", "again"):
        report = specialize(
            str(tmp_path / "supernet"), str(tmp_path / "board.yaml"), str(tmp_path / out), 50.0, engine="ray", **few
        )
        assert report.latency_ms <= 50 and 0 <= report.metrics["held_out"]["accuracy"] <= 1
        assert load(tmp_path / out).config.depth
        asked.append(report.config)
    assert asked[0] == asked[1]
