import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import recipes.devices
import recipes.saved
from predictors.devices import DEVICES, Device, get_device
from predictors.engines import Worker
from predictors.machine import cpu_model
from predictors.runtimes import RUNTIMES, Runtime
from predictors.runtimes.torch import load_torch
from predictors.statistics import (
    Measurement,
    accepted,
    latencies,
    noise_floor,
    repeatability,
    robust_latencies,
    undisturbed,
)
from predictors.store import Store
from predictors.timing import COPIES, time_networks

SMALL = {"warmup": 1, "rounds": 4, "runs": 5, "spacing": 0.0}
TORCH = dataclasses.replace(DEVICES["torch"], **SMALL)
ONNX = dataclasses.replace(DEVICES["onnxruntime"], **SMALL)


def network(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 2)).eval()


def source(width=4):
    return network(width), (torch.zeros(1, 1, 8, 8),)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    from onnx import TensorProto, helper, save

    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 8]) for name in "xy")
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    save(model, path)
    return path


# ---- descriptions


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'toaster'. There are .*onnxruntime, .*, torch"):
        get_device("toaster")


@pytest.mark.parametrize("extra, what", [(None, "no-such-package"), ("odd", r"'supernet\[odd\]'")])
def test_a_missing_runtime_is_reported_with_what_to_install(monkeypatch, extra, what):
    odd = Runtime(load_torch, "no-such-package", extra)
    monkeypatch.setitem(RUNTIMES, "odd", odd)
    monkeypatch.setitem(DEVICES, "odd", Device("odd", "odd"))
    with pytest.raises(ImportError, match=f"no-such-package is not installed: pip install {what}"):
        get_device("odd")


@pytest.mark.parametrize(
    "field, value",
    [
        ("runtime", "tensorrt"),
        ("precision", "int8"),
        ("protocol", "lukewarm"),
        ("statistic", "mean"),
        ("threads", 0),
        ("rounds", 2),
        ("runs", 1),
    ],
)
def test_a_field_that_cannot_be_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(TORCH, **{field: value})


def test_the_id_changes_with_what_changes_the_number():
    assert dataclasses.replace(TORCH, name="mine", statistic="p10").id == TORCH.id
    others = [dataclasses.replace(TORCH, **change) for change in ({"threads": 2}, {"warmup": 2}, {"affinity": (0,)})]
    assert len({device.id for device in (TORCH, ONNX, *others)}) == 5


def test_processors_of_the_same_name_or_none_are_told_apart(monkeypatch):
    files = {}

    def read(self, *arguments, **options):
        if str(self) not in files:
            raise FileNotFoundError(self)
        return files[str(self)]

    monkeypatch.setattr(Path, "read_text", read)
    intel = "processor : {}\ncpu family : 6\nmodel : 85\nmodel name : Xeon\nstepping : {}\ncpu MHz : {}\n\n"
    files["/proc/cpuinfo"] = intel.format(0, 7, 2600) + intel.format(1, 7, 2700)
    assert cpu_model() == "cpu family 6, model 85, model name Xeon, stepping 7"
    arm = "processor : {}\nBogoMIPS : 50\nCPU implementer : 0x41\nCPU part : {}\n\n"
    files["/proc/cpuinfo"] = arm.format(0, "0xd05") + arm.format(1, "0xd05") + arm.format(2, "0xd0b")
    assert cpu_model() == "CPU implementer 0x41, CPU part 0xd05; CPU implementer 0x41, CPU part 0xd0b"
    files["/proc/device-tree/model"] = "Raspberry Pi 4\0"
    assert cpu_model().endswith("CPU part 0xd0b; Raspberry Pi 4")


def test_a_cpu_that_this_process_may_not_use_is_an_error():
    with pytest.raises(ValueError, match="9999"):
        next(time_networks(dataclasses.replace(TORCH, affinity=(9999,)), {"a": source()}))


@pytest.mark.parametrize(
    "name, text",
    [
        ("mine.yaml", "{name: mine, runtime: torch, threads: 2, affinity: [0, 1]}"),
        ("mine.json", '{"name": "mine", "runtime": "torch", "threads": 2, "affinity": [0, 1]}'),
    ],
)
def test_a_device_can_be_described_in_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert get_device(str(tmp_path / name)) == Device("mine", "torch", threads=2, affinity=(0, 1))


@pytest.mark.parametrize(
    "text, match",
    [
        ("{name: mine, runtime: torch, thread: 2}", "no field thread; it has name, runtime, .*threads"),
        ("{runtime: torch}", "at least a name and a runtime"),
        ("[1, 2]", "at least a name and a runtime"),
        ("{name: mine, runtime: tensorrt}", "runtime = 'tensorrt' is not one of"),
        ("{name: mine, runtime: torch, threads: two}", "threads = 'two' is not of the type int"),
        ("{name: mine, runtime: [torch]}", "runtime = .*is not of the type str"),
        ("{name: mine", "cannot be read as a device"),
    ],
)
def test_a_file_that_describes_no_device_is_told_what_is_wrong(tmp_path, text, match):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml.*{match}"):
        get_device(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("made", [TORCH, lambda: TORCH])
def test_a_package_adds_a_device_by_an_entry_point(monkeypatch, made):
    point = EntryPoint("board", "package:board", "supernet.devices")
    monkeypatch.setattr(EntryPoint, "load", lambda self: made)
    monkeypatch.setattr("predictors.devices.entry_points", lambda group: [point])
    assert get_device("board") is TORCH
    with pytest.raises(ValueError, match="There are board, .*onnxruntime"):
        get_device("toaster")


def test_an_entry_point_that_gives_no_device_is_an_error(monkeypatch):
    point = EntryPoint("board", "package:board", "supernet.devices")
    monkeypatch.setattr(EntryPoint, "load", lambda self: "a board")
    monkeypatch.setattr("predictors.devices.entry_points", lambda group: [point])
    with pytest.raises(ValueError, match="board = package:board is a str"):
        get_device("board")


# ---- loading


def test_torch_runs_a_copy_and_leaves_the_module_alone():
    module, inputs = source(8)
    before = module[0].weight.stride()
    run = TORCH.load((module, inputs))
    assert torch.equal(run(), module(*inputs)) and run().is_inference()
    assert module[0].weight.stride() == before


def test_onnxruntime_runs_the_file_on_the_same_inputs_each_time(onnx_file):
    assert np.array_equal(ONNX.load(onnx_file)()[0], ONNX.load(str(onnx_file))()[0])


@pytest.mark.parametrize(
    "bad, error, match",
    [
        ((network().train(), (torch.zeros(1, 1, 8, 8),)), ValueError, "train mode"),
        ((network(), (torch.zeros(2, 1, 8, 8),)), ValueError, "batch 1"),
        ((network().double(), (torch.zeros(1, 1, 8, 8).double(),)), ValueError, "float64"),
        (network(), TypeError, "module, inputs"),
        ("network.pt", TypeError, "network.pt"),
    ],
)
def test_what_torch_cannot_time_as_asked_is_refused(bad, error, match):
    with pytest.raises(error, match=match):
        TORCH.load(bad)


def test_what_onnxruntime_cannot_time_as_asked_is_refused(onnx_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.onnx"):
        ONNX.load(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match="batch 2"):
        dataclasses.replace(ONNX, batch=2).load(onnx_file)


# ---- measuring


def test_a_quantized_file_is_not_timed_as_float32(onnx_file, tmp_path):
    from onnx import load, numpy_helper, save
    from onnxruntime.quantization import quantize_dynamic

    model = load(onnx_file)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))
    model.graph.node[0].input[1] = "w"
    save(model, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    with pytest.raises(ValueError, match="measures float32, but onnxruntime runs this in .*int8"):
        get_device("onnxruntime").load(tmp_path / "int8.onnx")


@pytest.mark.parametrize("kind", ["torch", "onnxruntime"])
def test_every_network_gets_all_its_rounds(kind, onnx_file):
    device, one = (TORCH, source()) if kind == "torch" else (ONNX, onnx_file)
    results = dict(time_networks(device, {f"n{i}": one for i in range(7)}, ("reference", one), group=2))
    assert list(results) == [f"n{i}" for i in range(7)]
    for m in results.values():
        assert (m.rounds, m.runs, m.reference) == (4, 5, "reference") and m.reference_min >= m.quiet_min > 0
        assert 0 < m.min <= m.p10 <= m.median <= m.p90 and m.noise >= 0
        assert m.device["version"] and m.device["cpu"] and m.device["cpus"] == list(device.cpus())


def test_networks_are_loaded_lazily_and_yielded_early():
    made = []

    def maker(i):
        return f"n{i}", lambda: made.append(i) or source()

    sweep = time_networks(TORCH, map(maker, range(100)), group=1)
    next(sweep)
    assert len(made) == 1
    sweep.close()


def test_torchs_thread_count_is_put_back():
    def counts():
        with ThreadPoolExecutor(1) as pool:
            return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()

    torch.set_num_threads(2)
    before = counts()
    for _ in time_networks(TORCH, {"a": source()}):
        assert counts() == before
    assert counts() == before


def made_up(slow, ms=2.0, reference="r", least=1.0):
    """A measurement of a network of `ms` on a machine that is `slow` times as slow as usual, but for the first run of a
    round, which takes `least` of that."""
    times, reference_times = ((slow * ms * least, *(slow * ms,) * 7),) * 4, (((slow * 1.0,) * 16,),) * 4
    return Measurement.of(times, reference, reference_times, "now", {})


def test_drift_is_divided_out():
    measurements = [made_up(1.0), made_up(1.3), made_up(1.0, ms=3.0), *[made_up(1.0)] * 7]
    assert np.allclose(latencies(measurements, "median")[:3], [2.0, 2.0, 3.0])


def test_what_the_reference_takes_undisturbed_is_told_by_its_quietest_rounds():
    busy = (((1.5,) * 16,),) * 7
    measurements = [Measurement.of(((2.0,) * 8,) * 8, "r", (*busy, ((ms,) * 16,)), "now", {}) for ms in (1.0, 1.1)]
    assert measurements[0].reference_median == 1.5 and measurements[0].quiet_median == 1.0
    assert undisturbed(measurements, "median") == {"r": pytest.approx(1.01)}


def test_what_the_reference_takes_is_the_mean_over_its_copies():
    rounds = [((1.0,) * 16, (1.4,) * 16)] * 3 + [((1.2,) * 16, (1.0,) * 16)]
    m = Measurement.of(((2.0,) * 8,) * 4, "r", rounds, "now", {})
    assert (m.reference_median, m.quiet_median) == (pytest.approx(1.2), pytest.approx(1.0))


def test_a_network_may_be_the_reference_too(monkeypatch):
    loaded, loading = [], Worker.load
    monkeypatch.setattr(Worker, "load", lambda self, key, of: loaded.append(key) or loading(self, key, of))
    one = source()
    results = dict(time_networks(TORCH, {"r": one, "a": one, "b": one}, ("r", one), group=1))
    assert {m.rounds for m in results.values()} == {TORCH.rounds} and len(loaded) == len(set(loaded)) == 3 + COPIES


def test_a_budget_is_judged_by_measurements_with_little_drift():
    quiet, good, bad, worse = {"r": 1.0}, made_up(1.1), made_up(1.3), made_up(1.6)
    assert accepted([good, made_up(1.0)], "median", quiet) == [good, made_up(1.0)]
    assert accepted([bad, good, bad], "median", quiet) == [good]
    assert accepted([worse, bad, worse, bad, good], "median", quiet) == [bad, good]
    assert accepted([made_up(9.0, reference="")], "median", {}) == [made_up(9.0, reference="")]


def test_a_budget_is_judged_by_measurements_whose_runs_are_close_together():
    quiet, good, bad = {"r": 1.0}, made_up(1.0, least=0.9), made_up(1.0, least=0.8)
    assert accepted([bad, good, bad], "median", quiet) == [good]
    assert accepted([bad, good, bad], "min", quiet) == [bad, good, bad]
    assert accepted([bad, made_up(1.3), bad, good], "median", quiet) == [bad, good]


def test_without_a_reference_times_stay_as_they_are():
    assert latencies([made_up(1.3, reference="")], "min") == pytest.approx([2.6])


def test_noise_is_the_difference_between_halves():
    assert made_up(1.0).noise == 0
    times = ((1.0,) * 8,) * 2 + ((1.5,) * 8,) * 2
    assert Measurement.of(times, "", (), "now", {}).noise == pytest.approx(0.4)


def test_of_measurements_of_a_network_the_lower_half_counts_without_its_drift():
    several = [made_up(1.0, ms=2.2), made_up(1.3, ms=2.0), made_up(1.0, ms=2.4), made_up(1.0, ms=9.0)]
    networks = [several, several[:3], several[:2], several[:1], [made_up(1.0)] * 8]
    assert np.allclose(robust_latencies(networks), [2.1, 2.1, 2.0, 2.2, 2.0])
    assert len(robust_latencies([])) == 0
    assert robust_latencies([[made_up(1.0, least=0.5)]]) == pytest.approx([1.1])  # the p10, and not the least run


def test_measurements_repeat_as_every_other_one_and_those_in_between_do():
    assert repeatability([made_up(1.0, ms=3.0), made_up(1.3), made_up(1.0, ms=9.0), made_up(1.0)]) == pytest.approx(0.4)
    halves = Measurement.of(((1.0,) * 8,) * 2 + ((1.5,) * 8,) * 2, "", (), "now", {})
    assert repeatability([halves]) == halves.noise
    assert noise_floor([[halves], [made_up(1.0)], [made_up(1.0), made_up(1.0, ms=2.2)]]) == pytest.approx(0.2 / 2.1)


def test_a_measurement_survives_the_store(tmp_path):
    ((_, m),) = time_networks(TORCH, {"a": source()}, ("reference", source()))
    with Store(tmp_path / "store") as store:
        store.add("latency", ("a", TORCH.id), dataclasses.asdict(m))
        (record,) = store.get("latency", [("a", TORCH.id)])[("a", TORCH.id)]
    assert Measurement(**record) == dataclasses.replace(m, device=json.loads(json.dumps(m.device)))


def test_devices_are_listed_with_what_keeps_them_from_working(monkeypatch, capsys):
    monkeypatch.setitem(RUNTIMES, "absent", Runtime(load_torch, "no-such-package"))
    elsewhere = dataclasses.replace(TORCH, name="elsewhere", affinity=(9999,))
    known = {"torch": TORCH, "elsewhere": elsewhere, "absent": Device("absent", "absent")}
    monkeypatch.setattr("predictors.devices.known_devices", lambda: {n: lambda d=d: d for n, d in known.items()})
    told = recipes.devices.devices()
    assert told["torch"] == "works" and "9999" in told["elsewhere"] and "pip install" in told["absent"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in known)
