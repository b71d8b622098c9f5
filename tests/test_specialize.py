"""The verb `specialize` on a simulated engine: a network's latency in ms is the size of its weights in MB."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch

import ofa
from predictors.engines import NetworkError
from predictors.runtimes.onnxruntime import onnx_precision
from recipes import results
from recipes import specialize as verb
from recipes.lab import open_lab
from recipes.lab.splits import SPLITS, batches_of
from recipes.results import FRONT_FILES
from recipes.specialize import Bounds, Effort, Memory, explore, find_network, specialize
from supernet.atomic import lock_folder
from supernet.evaluation import evaluate_network
from supernet.saving import load, save

DATA = {"class_path": "ofa.ImageData", "init_args": {"holdout": 60, "calibration": 64}}
LARGE, SMALL = 3.0, 1e-4  # budgets in ms that every network, and no network, keeps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained supernet's folder."""
    torch.manual_seed(0)
    space = ofa.mobilenet_v3_space(resolution=(16,), depth=(1, 2))
    network = ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1)
    return save(network, tmp_path_factory.mktemp("run") / "supernet", data=DATA)


@pytest.fixture
def few(quick_device, exported, tmp_path, simulation):
    """Options of a search that takes little."""
    return {
        "device": quick_device("onnxruntime"),
        "latency_samples": 10,
        "accuracy_samples": 10,
        "finalists": 2,
        "population": 20,
        "generations": 5,
        "engine": "simulated",
        "workers": 1,
        "files": exported,
        "store": str(tmp_path / "store.sqlite"),
    }


@pytest.fixture
def find(folder, few, tmp_path):
    """specialize, to the folder `out` unless the test names another one."""

    def run(max_latency=LARGE, out="out", **options):
        return specialize(str(folder), max_latency=max_latency, out=str(tmp_path / out), **(few | options))

    return run


def test_the_winner_meets_the_budget_and_the_report_describes_it(find, tmp_path):
    report, out = find(), tmp_path / "out"
    assert report.latency_ms <= LARGE and report.first_latency_ms <= LARGE
    files = {"network.json", "network.safetensors", "subnet.onnx", "report.json", "report.html", "front.png"}
    files |= {"metadata.json", "README.md"}
    assert {path.name for path in out.iterdir()} == files == set(report.files)
    assert sum(p.numel() for p in load(out).parameters()) == report.params
    written = json.loads((out / "report.json").read_text())
    assert written["version"] == 1 and written["bounds"] == {"latency_ms": LARGE}
    assert written["latency_ms"] == report.latency_ms and written["metrics"] == report.metrics


def test_the_exported_file_carries_its_metadata(find, tmp_path):
    report, out = find(), tmp_path / "out"
    properties = {entry.key: entry.value for entry in onnx.load(out / "subnet.onnx").metadata_props}
    metadata = json.loads((out / "metadata.json").read_text())
    assert properties.keys() == metadata.keys() and metadata["latency"]["ms"] == report.latency_ms
    assert json.loads(properties["latency"]) == metadata["latency"]
    assert metadata["metric"]["value"] == report.metrics["test"]["accuracy"]


def test_the_same_call_again_measures_evaluates_and_searches_nothing(find, few, recorded, simulation):
    first = find()
    before = recorded(few["store"])
    simulation.asked.clear()
    second = find(out="again")
    assert recorded(few["store"]) == before and simulation.count("time") == 0
    assert second.config == first.config and second.metrics == first.metrics


def test_the_report_compares_with_the_largest_network_and_a_random_one(find, folder):
    report = find()
    largest, random = report.rivals
    assert largest.name == "largest network" and largest.params == max(r.params for r in (largest, random))
    assert largest.measured and largest.latency_ms == report.largest_ms
    assert random.latency_ms <= LARGE and not random.measured
    for rival in report.rivals:
        difference = report.metrics["test"]["accuracy"] - rival.metrics["accuracy"]
        assert rival.difference == pytest.approx(difference, abs=1e-6) and rival.low <= rival.difference <= rival.high


def test_a_network_that_misses_the_budget_when_measured_again_is_not_chosen(find, simulation, tmp_path):
    confirmed, default = [], simulation.ms

    def slow_once(source, confirms):
        if confirms and not confirmed:
            confirmed.append(source.parent.name)
        return 60.0 if confirms and source.parent.name == confirmed[0] else default(source, confirms)

    simulation.ms = slow_once
    report = find()
    missed = [final for final in report.finalists if final["confirmed_latency_ms"] == 60.0]
    assert len(missed) == 1 and report.latency_ms <= LARGE and report.config != missed[0]["config"]


def test_a_budget_that_no_file_meets_ends_without_a_result(find, simulation, tmp_path):
    default = simulation.ms
    simulation.ms = lambda source, confirms: 60.0 if confirms else default(source, confirms)
    with pytest.raises(ValueError, match=r"none met 3.000 ms: the fastest has a latency of 60.000 ms, 57.000 ms more"):
        find()
    assert not (tmp_path / "out").exists()


def test_once_a_network_met_the_budget_only_better_ones_are_exported(find):
    report = find()
    first, later = report.finalists[:2], report.finalists[2:]
    met = max(final["metrics"]["accuracy"] for final in first if final["confirmed_latency_ms"])
    assert len(first) == 2 and all(final["metrics"]["accuracy"] > met for final in later)


def test_metrics_of_other_weights_and_other_data_are_evaluated(find, few, folder, recorded, tmp_path):
    find()
    before = recorded(few["store"])["accuracy"]
    augmented = DATA | {"init_args": DATA["init_args"] | {"mean": [0.0], "std": [1.0]}}
    (tmp_path / "data.yaml").write_text(json.dumps(augmented))
    find(out="second", data=str(tmp_path / "data.yaml"))
    of_data = recorded(few["store"])["accuracy"]
    assert of_data >= before + 10
    assert load(tmp_path / "second").input_spec["mean"] == [0.0]
    assert json.loads((tmp_path / "second" / "network.json").read_text())["data"] == augmented
    network = load(folder)
    torch.nn.init.normal_(network.classifier.weight)
    save(network, tmp_path / "supernet", data=DATA)
    specialize(str(tmp_path / "supernet"), max_latency=LARGE, out=str(tmp_path / "third"), **few)
    assert recorded(few["store"])["accuracy"] >= of_data + 10


def test_a_budget_far_below_the_smallest_network_is_refused_after_one_session_of_it(find, few, recorded, tmp_path):
    with pytest.raises(ValueError, match=r"0.0001 ms cannot be met on onnxruntime: the smallest network has a latency"):
        find(SMALL)
    counts = recorded(few["store"])
    assert counts["latency"] == 1 and counts["accuracy"] == 0 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "bound, timed",
    [({"max_macs": 10}, 0), ({"max_params": 10}, 0), ({"max_file_mb": 1e-3}, 1), ({"max_memory_mb": 1e-3}, 1)],
)
def test_bounds_that_no_network_meets_are_refused_before_samples_are_timed(find, few, recorded, bound, timed):
    name, value = next(iter(bound.items()))
    with pytest.raises(ValueError, match=f"{name.removeprefix('max_')} = {value:g} cannot be met: .* at least that"):
        find(**bound)
    assert recorded(few["store"])["latency"] == timed and recorded(few["store"])["accuracy"] == 0


def test_all_bounds_hold_on_the_file(find, tmp_path):
    report = find(max_macs=6e5, max_params=1.4e5, max_file_mb=0.7, max_memory_mb=100.0)
    file = tmp_path / "out" / "subnet.onnx"
    assert report.macs <= 6e5 and report.params <= 1.4e5
    assert report.measured["file_mb"] == [file.stat().st_size / 1e6] and file.stat().st_size <= 0.7e6
    assert report.measured["memory_mb"] == [50.0, 50.0]


def test_a_bound_may_be_given_by_its_name(find):
    assert find(bounds={"params": 1.4e5}).params <= 1.4e5
    with pytest.raises(ValueError, match="bound: 'parms' is not one of latency_ms, macs, params, file_mb, memory_mb"):
        find(bounds={"parms": 1.4e5}, out="x")


DATA_OF_ONES_OWN = """
import pytorch_lightning as pl

import ofa


class SetUp(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.ready = set()

    def prepare_data(self):
        self.ready.add("prepared")

    def setup(self, stage):
        self.ready.add(stage)
        if self.ready == {"prepared", "fit", "test"}:
            self.images = ofa.ImageData(holdout=60, calibration=64)
            self.input_spec = self.images.input_spec

    def calibration_batches(self):
        return self.images.calibration_batches()

    def val_dataloader(self):
        return self.images.val_dataloader()


class Whole(SetUp):
    def test_dataloader(self):
        return self.images.test_dataloader()
"""


def test_a_users_data_module_is_set_up_and_missing_members_are_named(find, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(DATA_OF_ONES_OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "data.yaml").write_text("class_path: own.Whole")
    assert 0 <= find(data=str(tmp_path / "data.yaml")).metrics["test"]["accuracy"] <= 1
    (tmp_path / "data.yaml").write_text("class_path: own.SetUp")
    with pytest.raises(ValueError, match="SetUp has no test_dataloader"):
        find(out="x", data=str(tmp_path / "data.yaml"))


def test_data_of_another_family_is_refused(find, tmp_path):
    (tmp_path / "text.yaml").write_text("{class_path: hat.ParallelText, init_args: {vocab_size: 300}}")
    with pytest.raises(
        ValueError, match="MobileNetV3 needs image data: this data module's input_spec has no classes, shape"
    ):
        find(data=str(tmp_path / "text.yaml"))


def test_wrong_arguments_are_refused(find, folder, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="--overwrite"):
        find(out="taken")
    with pytest.raises(ValueError, match="supernet's own folder"):
        find(out=str(folder), overwrite=True)
    with pytest.raises(ValueError, match="accuracy_samples = 1: give a number of at least 5, or auto"):
        find(accuracy_samples=1)
    with pytest.raises(ValueError, match="not a positive number"):
        find(-1.0)
    with pytest.raises(ValueError, match="no device 'toaster'. There are .*onnxruntime, .*, torch"):
        find(device="toaster")
    with pytest.raises(ValueError, match="search: 'exhaustive' is not one of evolutionary, random"):
        find(search="exhaustive")
    with pytest.raises(ValueError, match="metric: 'size' is not one of accuracy, loss"):
        find(metric="size")
    with pytest.raises(ValueError, match="engine: 'cloud' is not one of thread, process, ray"):
        find(engine="cloud")


def test_a_subnet_is_refused(folder, few, tmp_path):
    save(load(folder).extract(), tmp_path / "subnet")
    with pytest.raises(ValueError, match="is a subnet"):
        specialize(str(tmp_path / "subnet"), max_latency=1.0, out=str(tmp_path / "x"), **few)


@pytest.mark.parametrize("given", [{"pareto": 3}, {"max_latency": None, "pareto": 1}, {"max_latency": "1,x"}])
def test_budgets_that_make_no_sense_are_refused(find, given):
    with pytest.raises(ValueError, match="max_latency = "):
        find(**given)


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_work(find, simulation, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        find("2, 3", overwrite=True)
    with pytest.raises(OSError, match="cannot be written: .* is a file, not a folder"):
        find(out="out/x/y")
    assert not simulation.asked


def test_two_processes_do_not_write_one_folder(find, simulation, tmp_path):
    with lock_folder(tmp_path / "out", inside=False), pytest.raises(BlockingIOError, match="out is in use by"):
        find()
    assert simulation.count("time") == 0


def test_the_file_is_evaluated_as_the_network_is(find, tmp_path):
    report = find()
    data, subnet = ofa.ImageData(**DATA["init_args"]), load(tmp_path / "out")
    for split in SPLITS:
        expected = evaluate_network(subnet, batches_of(data, split))
        assert report.metrics[split] == pytest.approx(expected, rel=1e-4)


def test_an_int8_network_is_judged_by_its_int8_file(find, quick_device, tmp_path):
    report = find(device=quick_device("onnxruntime-int8"), latency_samples=6)
    assert onnx_precision(tmp_path / "out" / "subnet.onnx") == "int8"
    exact = evaluate_network(load(tmp_path / "out"), ofa.ImageData(**DATA["init_args"]).test_dataloader())
    assert report.metrics["test"] != exact
    assert report.metrics["test"]["loss"] == pytest.approx(exact["loss"], rel=0.2)


def test_networks_run_on_the_real_engine(find, quick_device):
    report = find(50.0, engine="process", latency_samples=6, accuracy_samples=6, device=quick_device("onnxruntime"))
    assert 0 < report.latency_ms <= 50.0 and report.device["layout"] in ("fixed", "random")


def test_networks_may_be_chosen_by_the_loss(find):
    report = find(metric="loss")
    assert report.metric == "loss" and report.measured_metric.name == "loss"
    assert report.rivals[1].difference == pytest.approx(
        report.metrics["test"]["loss"] - report.rivals[1].metrics["loss"]
    )


def test_a_search_may_be_random_and_its_score_evaluated(find):
    assert find(search="random", score="evaluated", population=8, generations=1).latency_ms <= LARGE


def test_a_file_that_is_timed_but_cannot_be_evaluated_is_tried_twice_and_left_out(find, simulation, few, capsys):
    broken = []

    def opens(source):
        broken.append(source)
        if source == broken[0]:
            raise NetworkError("its worker was lost")

    simulation.opens = opens
    opened = set()
    for out in ("first", "second"):
        assert len(find("0.7, 3", out=out)) == 2
        assert "cannot be evaluated: its worker was lost" in capsys.readouterr().out
        assert broken.count(broken[0]) == 2
        opened.add(len(broken))
    assert len(opened) == 1  # the second call opens none


def test_evaluations_end_where_more_would_not_help(find):
    report = find(accuracy_samples="auto")
    assert report.metric_predictors["loss"]["n"] in range(20, 201, 20)


def test_delivered_files_are_kept_and_not_exported_again(find, few, tmp_path):
    find(out="first", files=str(tmp_path / "exports"))
    find(out="second", files=str(tmp_path / "none"))
    first, second = ((tmp_path / name / "subnet.onnx").read_bytes() for name in ("first", "second"))
    assert first == second
    assert not [path for path in (tmp_path / "none").rglob("*.onnx")]


# ---- several networks


def test_budgets_and_devices_share_what_is_evaluated(find, few, quick_device, recorded, tmp_path):
    devices = f"{few['device']},{quick_device('torch')}"
    budgets = "0.5, 0.6"
    reports = find(budgets, device=devices, latency_samples=6)
    names = {f"{device}-{budget}ms" for device in ("onnxruntime", "torch") for budget in ("0.5", "0.6")}
    assert set(reports) == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | set(FRONT_FILES)
    page = (tmp_path / "out" / "front.html").read_text()
    assert all(f'href="{name}/report.html"' in page for name in names) and "<svg" in page and "http-equiv" not in page
    front = json.loads((tmp_path / "out" / "front.json").read_text())
    assert set(front) == {"onnxruntime", "torch"} and all(1 <= len(rows) <= 2 for rows in front.values())
    done = recorded(few["store"])
    find(budgets, device=devices, latency_samples=6, overwrite=True)
    assert recorded(few["store"]) == done


def test_a_front_has_networks_over_all_latencies(find, tmp_path):
    reports = find(None, pareto=3)
    budgets = [report.budget_ms for report in reports.values()]
    report = reports[next(iter(reports))]
    assert len(budgets) == 3
    assert budgets[0] <= 1.051 * report.smallest_ms and report.largest_ms <= 1.001 * budgets[2]
    assert budgets[1] / budgets[0] == pytest.approx(budgets[2] / budgets[1], rel=0.01)
    rows = json.loads((tmp_path / "out" / "front.json").read_text())["onnxruntime"]
    merits = [(row["latency_ms"], row["metrics"]["selection"]["accuracy"]) for row in rows]
    assert merits == sorted(merits) and len({merit for _, merit in merits}) == len(merits)


def test_a_budget_that_is_missed_costs_no_other_budget(find, tmp_path):
    one = "1 networks were written. For 1 budgets or devices there is none:\n"
    with pytest.raises(ValueError, match=f"{one}onnxruntime-0.0001ms: the budget of 0.0001 ms cannot"):
        find([SMALL, LARGE])
    assert (tmp_path / "out" / "onnxruntime-3ms" / "report.json").is_file()


def test_a_device_that_fails_costs_no_other_device(find, simulation, quick_device, few):
    default = simulation.ms

    def failing(source, confirms):
        if not isinstance(source, tuple):
            raise NetworkError("no such instruction")
        return default(source, confirms)

    simulation.ms = failing
    devices = f"{quick_device('torch')},{few['device']}"
    with pytest.raises(
        ValueError, match="1 networks were written. For 1 budgets or devices there is none:\nonnxruntime.*: no such"
    ) as caught:
        find([LARGE], device=devices, latency_samples=6)
    (reason,) = caught.value.__cause__.exceptions
    assert "no such instruction" in str(reason)


def test_devices_of_one_name_are_refused(find, quick_device, few):
    devices = f"{few['device']},{quick_device('onnxruntime', threads=2)}"
    with pytest.raises(ValueError, match="names must be unique and contain no / or .*: onnxruntime"):
        find(device=devices)


def test_several_networks_continue_where_the_call_was_ended(find, simulation, tmp_path, monkeypatch):
    write = results.write_fronts
    monkeypatch.setattr(verb, "write_fronts", lambda *arguments: sys.exit(143))
    with pytest.raises(SystemExit):
        find("2,3")
    (tmp_path / "out" / ".onnxruntime-3ms.abcd1234").mkdir()  # as of a process that was killed while it wrote
    monkeypatch.setattr(verb, "write_fronts", write)
    simulation.asked.clear()
    find("2,3")
    assert simulation.count("time") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FRONT_FILES, "onnxruntime-2ms", "onnxruntime-3ms"}
    with pytest.raises(FileExistsError, match="out is not empty"):
        find("2,3")


# ---- find_network, from Python


EFFORT = Effort(10, 10, finalists=2, options={"population": 20, "generations": 5})


@pytest.fixture
def lab(folder, few):
    options = {name: few[name] for name in ("engine", "workers", "files", "store")}
    with open_lab(folder, few["device"], **options) as opened:
        yield opened


def test_a_network_that_was_found_for_one_budget_competes_for_larger_ones(lab, simulation):
    memory = Memory()
    found = find_network(lab, Bounds(0.5), EFFORT, memory)
    deployed = memory.on(lab)
    assert deployed and all(one.found_for == 0.5 for one in deployed.values())
    again = find_network(lab, Bounds(0.6), EFFORT, memory)
    assert again.torch_metrics["accuracy"] >= found.torch_metrics["accuracy"] or again.config == found.config
    assert len(memory.on(lab)) >= len(deployed) and len(memory.deployed) == 1


def test_a_network_that_was_timed_by_one_statistic_does_not_count_for_another(lab, folder, few, quick_device):
    memory = Memory()
    find_network(lab, Bounds(0.5), EFFORT, memory)
    options = {name: few[name] for name in ("engine", "workers", "files", "store")}
    with open_lab(folder, quick_device("onnxruntime", statistic="p90"), **options) as other:
        assert not memory.on(other)


def test_exploring_leaves_rows_to_later_searches_and_exports_no_finalist(lab):
    memory = Memory()
    explore(lab, Bounds(0.5), EFFORT, memory)
    assert len(memory.random) == 8 and len(memory.found) >= 1 and not memory.on(lab)
    find_network(lab, Bounds(0.5), EFFORT, memory)
    assert np.array_equal(memory.random[:8], memory.random[:8]) and len(memory.found) > 1


def test_the_report_has_the_finalists_of_its_budget_alone(lab):
    memory = Memory()
    find_network(lab, Bounds(0.5), EFFORT, memory)
    report = find_network(lab, Bounds(0.7), EFFORT, memory)
    others = [final for final in report.finalists if final["found_for_ms"] != 0.7]
    assert len(others) <= 1 and all(final["config"] == report.config for final in others)


@pytest.mark.parametrize("sizes", [(12,), (12, 16), (12, 16, 20)])
def test_the_best_network_of_a_space_of_few_networks_is_found(few, tmp_path, sizes):
    space = ofa.mobilenet_v3_space(kernel_size=(3,), expand_ratio=(3,), depth=(2,), resolution=sizes)
    network = ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1)
    supernet = save(network, tmp_path / "supernet", data=DATA)
    few |= {"files": str(tmp_path / "files")}
    report = specialize(str(supernet), max_latency=LARGE, out=str(tmp_path / "out"), **few)
    assert report.config["resolution"] in sizes
