import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

import ofa
from predictors import statistics
from predictors.devices import DEVICES
from predictors.engines import ENGINES, NetworkError, process_engine
from predictors.runtimes.onnxruntime import onnx_precision
from predictors.statistics import STATISTICS, Failure
from predictors.store import Store, digest
from recipes import bench, closed_loop, device_files, report, sampling
from recipes.benches import open_bench
from recipes.closed_loop import distinct
from recipes.evaluate import evaluate
from recipes.export import export
from recipes.measure import measure
from recipes.report import FRONT_FILES
from recipes.saved import make_data
from recipes.specialize import specialize
from supernet.atomic import lock_folder
from supernet.saving import load, save
from supernet.search import InfeasibleError

DATA = {"class_path": "ofa.ImageData", "init_args": {"holdout": 60, "calibration": 64}}
FEW = dict(device="onnxruntime", latency_samples=10, accuracy_samples=10, finalists=2, population=20, generations=5)


def test_states_of_any_precision_have_a_digest_of_their_own():
    state = {"weight": torch.ones(2, 3)}
    digests = {bench.state_digest({"weight": state["weight"].to(dtype)}) for dtype in (torch.float32, torch.bfloat16)}
    assert len(digests) == 2 and bench.state_digest(state) in digests


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained supernet's folder."""
    torch.manual_seed(0)
    space = ofa.mobilenet_v3_space(resolution=(16,))
    network = ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1)
    return save(network, tmp_path_factory.mktemp("run") / "supernet", data=DATA)


@pytest.fixture(autouse=True)
def quick_devices(monkeypatch):
    """Devices that measure as little as is allowed: the tests ask what is done with numbers, not how good they are."""
    for name, device in DEVICES.items():
        monkeypatch.setitem(
            DEVICES, name, dataclasses.replace(device, warmup=1, rounds=4, runs=5, spacing=0.0, statistic="min")
        )
    monkeypatch.setattr(bench, "CHECKED", 1)  # whose figure, then, is not to change what the tests see
    monkeypatch.setattr(bench, "PAIRS", 1)
    monkeypatch.setattr(bench, "WORTH", math.inf)  # other processes know nothing of what a test patches
    monkeypatch.setattr(bench, "AGREE", math.inf)
    monkeypatch.setattr(bench, "VISITS", 1)
    monkeypatch.setattr(sampling, "ASKED", 1)
    monkeypatch.setattr(statistics, "MAX_TRIES", 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The files of float32 that were exported before, by what they are of."""
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(autouse=True)
def exported_once(exported, monkeypatch):
    """The tests' networks are often the same, and most of what a test takes is their export."""
    write = device_files.write_parts

    def writing(network, device, folder, fast, inputs):
        if device.precision == "int8":  # its files are of the inputs, too
            return write(network, device, folder, fast, inputs)
        of = [bench.state_digest(network.state_dict()), repr(network.config), device.runtime, device.batch, fast]
        known = exported / digest(of)
        if not known.is_dir():
            write(network, device, folder, fast, inputs)
            shutil.copytree(folder, known)
        else:
            shutil.copytree(known, folder, dirs_exist_ok=True)

    monkeypatch.setattr(bench, "write_parts", writing)


@pytest.fixture
def work(monkeypatch):
    """Counts the networks, and the parts of files, that are evaluated, and the networks that are timed."""
    counts = {"evaluated": 0, "files": 0, "timed": 0}
    evaluate, evaluate_items, measure = bench.evaluate_network, bench.evaluate_items, bench.time_networks

    def evaluating(*arguments, **options):
        counts["evaluated"] += 1
        return evaluate(*arguments, **options)

    def evaluating_file(*arguments, **options):
        counts["files"] += 1
        return evaluate_items(*arguments, **options)

    def measuring(*arguments, **options):
        for item in measure(*arguments, **options):
            counts["timed"] += 1
            yield item

    monkeypatch.setattr(bench, "evaluate_network", evaluating)
    monkeypatch.setattr(bench, "evaluate_items", evaluating_file)
    monkeypatch.setattr(bench, "time_networks", measuring)
    return counts


def test_the_winner_meets_the_budget_and_is_what_the_report_says(folder, tmp_path):
    out = tmp_path / "out"
    report = specialize(str(folder), max_latency=50.0, out=str(out), **FEW)
    assert report["latency_ms"] <= 50 and report["confirmed_ms"] <= 50
    files = {"network.json", "network.safetensors", "subnet.onnx", "report.json", "report.html", "front.png"}
    files |= {"metadata.json", "README.md"}
    assert {path.name for path in out.iterdir()} == files
    assert sum(p.numel() for p in load(out).parameters()) == report["params"]
    assert json.loads((out / "report.json").read_text())["budget_ms"] == 50
    properties = {entry.key: entry.value for entry in onnx.load(out / "subnet.onnx").metadata_props}
    metadata = json.loads((out / "metadata.json").read_text())
    assert properties.keys() == metadata.keys() and metadata["latency"]["ms"] == report["confirmed_ms"]
    assert json.loads(properties["latency"]) == metadata["latency"]


def test_what_was_measured_is_not_measured_again(folder, tmp_path, work):
    specialize(str(folder), max_latency=50.0, out=str(tmp_path / "first"), **FEW)
    work.update(evaluated=0, files=0, timed=0)
    specialize(str(folder), max_latency=50.0, out=str(tmp_path / "second"), **FEW)
    assert work == {"evaluated": 0, "files": 0, "timed": 0}


def test_each_part_of_the_data_is_identified_once(folder, tmp_path, monkeypatch):
    identify, identified = bench.data_digest, []
    monkeypatch.setattr(bench, "data_digest", lambda *arguments: identified.append(1) or identify(*arguments))
    specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **FEW)
    assert len(identified) == len(bench.PARTS)


@pytest.mark.parametrize(("changed", "same"), [({"class_names": list("abcdefghij")}, True), ({"std": [2.0]}, False)])
def test_names_are_not_part_of_what_accuracies_are_of(changed, same):
    data = ofa.ImageData("digits", batch_size=32, holdout=64, calibration=32)
    before = bench.data_digest(data, bench.part_of(data, "select"))
    data.input_spec |= changed
    assert (bench.data_digest(data, bench.part_of(data, "select")) == before) == same


def test_a_network_that_misses_the_budget_when_measured_again_is_not_chosen(folder, tmp_path, monkeypatch):
    confirm, refused = bench.Bench.confirm, []

    def slow_once(self, config):
        figures = confirm(self, config)
        if not refused:
            refused.append(config)
            figures["confirmed_ms"] = 60.0
        return figures

    monkeypatch.setattr(bench.Bench, "confirm", slow_once)
    report = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **FEW)
    assert report["confirmed_ms"] <= 50 and load(tmp_path / "out").config != refused[0]


def test_finalists_are_those_of_the_least_cross_entropy(folder, tmp_path, monkeypatch):
    def made_up(self, X, what):
        loss = self.supernet.costs(X)["macs"] / 1e6
        return {"loss": loss, "accuracy": loss}  # where the others would be the most accurate

    monkeypatch.setattr(bench.Bench, "evaluate", made_up)
    monkeypatch.setattr(closed_loop, "WRONG", math.inf)
    report = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **FEW)
    losses = sorted(final["loss"] for final in report["finalists"])
    assert losses[0] <= min(sample["loss"] for sample in report["samples"])
    assert losses[-1] < max(sample["loss"] for sample in report["samples"])


def test_of_finalists_only_what_seems_better_is_timed_once_one_met_the_budget(folder, tmp_path):
    report = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **FEW)
    first, later = (report["finalists"][some] for some in (slice(FEW["finalists"]), slice(FEW["finalists"], None)))
    met = max(final["accuracy"] for final in first if "confirmed_ms" in final)
    assert len(first) == 2 and all(final["accuracy"] > met for final in later)


def test_a_budget_that_no_file_meets_ends_without_a_result(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.Bench, "confirm", lambda self, config: {"confirmed_ms": 60.0})
    with pytest.raises(ValueError, match=r"none met 50.000 ms: the fastest took 60.000 ms, 10.000 ms too long: Mobile"):
        specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **FEW)
    assert not (tmp_path / "out").exists()


def test_accuracies_of_other_weights_and_other_data_are_not_taken(folder, tmp_path, work):
    specialize(str(folder), max_latency=50.0, out=str(tmp_path / "first"), **FEW)
    work.update(evaluated=0)
    augmented = DATA | {"init_args": DATA["init_args"] | {"mean": [0.0], "std": [1.0]}}
    (tmp_path / "data.yaml").write_text(json.dumps(augmented))
    specialize(str(folder), max_latency=50.0, out=str(tmp_path / "second"), data=str(tmp_path / "data.yaml"), **FEW)
    assert work["evaluated"] >= 10
    assert load(tmp_path / "second").input_spec["mean"] == [0.0]
    assert json.loads((tmp_path / "second" / "network.json").read_text())["data"] == augmented
    work.update(evaluated=0)
    network = load(folder)
    torch.nn.init.normal_(network.classifier.weight)
    save(network, tmp_path / "supernet", data=DATA)
    more = FEW | {"store": str(folder.parent / "measurements.sqlite")}
    specialize(str(tmp_path / "supernet"), max_latency=50.0, out=str(tmp_path / "third"), **more)
    assert work["evaluated"] >= 10


def test_a_budget_that_nothing_meets_is_refused_before_any_evaluation(folder, tmp_path, work, monkeypatch):
    monkeypatch.setattr(closed_loop, "MARGIN", math.inf)  # else the smallest network's first visit is enough
    with pytest.raises(ValueError, match=r"cannot be met: of the samples the fastest took .* ms too long: Mobile"):
        specialize(str(folder), max_latency=1e-4, out=str(tmp_path / "x"), **FEW)
    assert not (tmp_path / "x").exists() and work["evaluated"] == 0


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


def test_data_of_ones_own_is_set_up_and_told_what_it_lacks(folder, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(DATA_OF_ONES_OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "data.yaml").write_text("class_path: own.Whole")
    report = specialize(
        str(folder), max_latency=50.0, out=str(tmp_path / "out"), data=str(tmp_path / "data.yaml"), **FEW
    )
    assert 0 <= report["test"]["accuracy"] <= 1
    (tmp_path / "data.yaml").write_text("class_path: own.SetUp")
    with pytest.raises(ValueError, match="SetUp has no test_dataloader"):
        specialize(str(folder), max_latency=50.0, out=str(tmp_path / "x"), data=str(tmp_path / "data.yaml"), **FEW)


def test_only_what_sees_the_test_set_needs_one(folder, tmp_path, monkeypatch):
    (tmp_path / "untested.py").write_text(DATA_OF_ONES_OWN.replace('"fit", "test"', '"fit"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "data.yaml").write_text("class_path: untested.SetUp")
    own = {"data": str(tmp_path / "data.yaml")}
    assert 0 <= evaluate(str(folder), architecture="smallest", split="holdout", **own)["accuracy"] <= 1
    with pytest.raises(ValueError, match="SetUp has no test_dataloader"):
        evaluate(str(folder), architecture="smallest", split="test", **own)
    assert set(export(str(folder), str(tmp_path / "files"), architecture="smallest", **own)) == {"onnx"}
    assert measure(str(folder), "onnxruntime", samples=6, store=str(tmp_path / "store"), **own)["n"] == 6


def test_a_loader_may_be_the_instances_own(tmp_path, monkeypatch):
    own = "\n\nclass Own(SetUp):\n    def __init__(self):\n        super().__init__()\n"
    (tmp_path / "instance.py").write_text(
        DATA_OF_ONES_OWN + own + "        self.test_dataloader = self.val_dataloader\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = make_data({"class_path": "instance.Own"})
    assert data.test_dataloader().dataset is data.images.held_out


def test_data_of_another_family_is_refused(folder, tmp_path):
    (tmp_path / "text.yaml").write_text("{class_path: hat.ParallelText, init_args: {vocab_size: 300}}")
    with pytest.raises(
        ValueError, match="MobileNetV3 needs image data: this data module's input_spec has no classes, shape"
    ):
        specialize(str(folder), max_latency=50.0, out=str(tmp_path / "x"), data=str(tmp_path / "text.yaml"), **FEW)


def test_a_file_in_place_of_the_folder_is_refused_before_the_work(folder, tmp_path, work):
    (tmp_path / "out").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        specialize(str(folder), max_latency="50, 60", out=str(tmp_path / "out"), overwrite=True, **FEW)
    assert work["timed"] == 0


def test_what_makes_no_sense_is_refused(folder, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="--overwrite"):
        specialize(str(folder), max_latency=1.0, out=str(tmp_path / "taken"), **FEW)
    with pytest.raises(ValueError, match="supernet's own folder"):
        specialize(str(folder), max_latency=1.0, out=str(folder), **FEW, overwrite=True)
    with pytest.raises(ValueError, match="accuracy_samples = 1: a number of at least 5, or auto"):
        specialize(str(folder), max_latency=1.0, out=str(tmp_path / "x"), **(FEW | {"accuracy_samples": 1}))
    with pytest.raises(ValueError, match="not a positive number"):
        specialize(str(folder), max_latency=-1.0, out=str(tmp_path / "x"), **FEW)
    with pytest.raises(ValueError, match="no device 'toaster'; there are .*onnxruntime, .*, torch"):
        specialize(str(folder), max_latency=1.0, out=str(tmp_path / "x"), **(FEW | {"device": "toaster"}))
    subnet = load(folder).extract()
    save(subnet, tmp_path / "subnet")
    with pytest.raises(ValueError, match="is a subnet"):
        specialize(str(tmp_path / "subnet"), max_latency=1.0, out=str(tmp_path / "x"), **FEW)


def test_networks_are_timed_until_more_would_tell_little(folder, tmp_path, work, monkeypatch):
    asked = []
    monkeypatch.setattr(sampling, "has_converged", lambda errors, floor: asked.append(max(errors)) or len(asked) == 2)
    store = str(tmp_path / "store.sqlite")
    report = measure(str(folder), "onnxruntime", store=store)
    assert asked == [20, 30] and report["n"] == 30 and report["failed"] == 0
    assert work["timed"] == 30 + 2 * bench.CHECKED
    assert 0 < report["cv_error"] < report["constant_error"] and report["smallest_ms"] < report["largest_ms"]
    timed, original = [], bench.Bench._time

    def timing(self, configs, exporter, what, *table, **rounds):
        timed.extend([exporter] * len(configs))
        original(self, configs, exporter, what, *table, **rounds)

    monkeypatch.setattr(bench.Bench, "_time", timing)
    measure(str(folder), "onnxruntime", samples=30, store=store)
    assert timed == []
    specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), store=store, **FEW | {"latency_samples": 30})
    assert set(timed) == {"final"}


def test_samples_are_timed_several_times(folder, tmp_path, work, monkeypatch):
    monkeypatch.setattr(bench, "VISITS", 3)
    store = str(tmp_path / "store.sqlite")
    for _ in range(2):
        measure(str(folder), "onnxruntime", samples=6, store=store)
        assert work["timed"] == 3 * 6 + bench.CHECKED  # the pair counts as a visit of the faster exporter's file
    with open_bench(str(folder), "onnxruntime", None, store, str(tmp_path / "files"), "process") as known:
        X = sampling.latency_rows(known.supernet.space, 6, np.random.default_rng(0))
        config, before = known.supernet.space.decode(X)[2], known.latencies(X, "")
        other = dataclasses.replace(known._records(config, "search")[0], min=1e-3)
        known.store.add("latency", known._key(config, "search"), dataclasses.asdict(other))
        assert np.array_equal(known.latencies(X, ""), before)  # a later measurement changes nothing


def test_samples_are_timed_in_half_of_the_rounds_and_finalists_in_all(folder, tmp_path, work, monkeypatch):
    monkeypatch.setitem(DEVICES, "onnxruntime", dataclasses.replace(DEVICES["onnxruntime"], rounds=8))
    store = str(tmp_path / "store.sqlite")
    with open_bench(str(folder), "onnxruntime", None, store, str(tmp_path / "files"), "process") as opened:
        X = sampling.latency_rows(opened.supernet.space, 3, np.random.default_rng(0))
        opened.exporter = "final"  # samples are of the files that ship, as finalists are
        for _ in range(2):
            opened.latencies(X, "")
            opened.fix_scale(X)
            opened.final_latencies(X, "")
        assert work["timed"] == 6
        records = opened._records(opened.supernet.space.smallest(), "final")
        assert [m.rounds for m in records] == [4, 8]


def test_each_time_samples_are_timed_in_another_order(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "VISITS", 3)
    orders, timing = [], bench.Bench._time

    def spying(self, configs, exporter, what, *table, **rounds):
        orders.append(configs)
        timing(self, configs, exporter, what, *table, **rounds)

    monkeypatch.setattr(bench.Bench, "_time", spying)
    with open_bench(str(folder), "torch", None, str(tmp_path / "store"), str(tmp_path / "files"), "process") as opened:
        opened.latencies(sampling.latency_rows(opened.supernet.space, 6, np.random.default_rng(0)), "")
    assert len(orders) == 3 and all(a != b and set(a) == set(b) for a, b in zip(orders, orders[1:]))


def test_more_samples_are_asked_for_by_the_first_visits_and_the_others_are_of_all(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "VISITS", 3)
    monkeypatch.setattr(sampling, "ASKED", 2)
    monkeypatch.setattr(sampling, "FIRST_SAMPLES", 6)
    monkeypatch.setattr(sampling, "STEP", 3)
    monkeypatch.setattr(sampling, "has_converged", lambda errors, floor: max(errors) == 9)
    numbers, timing, store = [], bench.Bench._time, str(tmp_path / "store")

    def spying(self, configs, exporter, what, *table, **rounds):
        numbers.append(len(configs))
        timing(self, configs, exporter, what, *table, **rounds)

    monkeypatch.setattr(bench.Bench, "_time", spying)
    told = []
    for _ in range(2):  # the second one, which finds all visits, does as the first
        with open_bench(str(folder), "torch", None, store, str(tmp_path / "files"), "process") as opened:
            told.append(sampling.time_samples(opened, None, np.random.default_rng(0))[1].tolist())
    assert [n for n in numbers if n] == [6, 6, 3, 3, 9]
    assert told[0] == told[1] and len(told[0]) == 9


def test_what_was_timed_beside_another_reference_does_not_count(folder, tmp_path, work):
    with open_bench(str(folder), "torch", None, str(tmp_path / "store"), str(tmp_path / "files"), "process") as opened:
        X = sampling.latency_rows(opened.supernet.space, 3, np.random.default_rng(0))
        before, config = opened.latencies(X, ""), opened.supernet.space.decode(X)[2]
        record = dataclasses.asdict(opened._records(config, "search")[0])
        (other,) = opened.supernet.space.sample(1, np.random.default_rng(1))
        key = opened._key(opened.supernet.space.decode(other[None])[0], "search")
        opened.store.add("latency", key, record | {"reference": "another"})
        assert np.isfinite(opened.latencies(other[None], "")).all() and work["timed"] == 4
        assert np.array_equal(opened.latencies(X, ""), before)


def test_a_finalist_that_was_timed_while_the_machine_drifted_is_timed_again(folder, tmp_path, work, monkeypatch):
    monkeypatch.setattr(statistics, "MAX_TRIES", 3)
    timing, slow = bench.time_networks, 5 * [1.0] + [9.0, 7.0, 1.0, 1.0]

    def drifting(*arguments, **options):
        for key, m in timing(*arguments, **options):
            factor = slow[min(work["timed"], len(slow)) - 1]
            times = {f"reference_{name}": 0.1 * factor for name in STATISTICS}
            median = 0.4 * factor if factor == 1 else 0.5 * factor
            yield key, dataclasses.replace(m, min=median, median=median, **times, quiet_median=0.1, quiet_min=0.1)

    monkeypatch.setattr(bench, "time_networks", drifting)
    store = str(tmp_path / "store.sqlite")
    for _ in range(2):
        with open_bench(str(folder), "onnxruntime", None, store, str(tmp_path / "files"), "process") as opened:
            X = sampling.latency_rows(opened.supernet.space, 5, np.random.default_rng(0))
            opened.latencies(X, "")
            opened.fix_scale(X)
            assert opened.final_latencies(X[2:3], "") == pytest.approx([0.4])
            confirmed = opened.confirm(opened.supernet.space.decode(X)[2])
        assert confirmed == {"confirmed_ms": pytest.approx(0.4), "confirmed_with_drift_ms": 0.4}
        assert work["timed"] == 5 + 3 + 1


def test_what_a_network_was_chosen_by_does_not_confirm_it(folder, tmp_path, work, monkeypatch):
    monkeypatch.setattr(bench, "VISITS", 2)
    store = str(tmp_path / "store.sqlite")
    for _ in range(2):
        with open_bench(str(folder), "onnxruntime", None, store, str(tmp_path / "files"), "process") as opened:
            X = sampling.latency_rows(opened.supernet.space, 5, np.random.default_rng(0))
            opened.exporter = "final"  # samples are of the files that ship
            opened.latencies(X, "")
            opened.fix_scale(X)
            (ms,), config = opened.final_latencies(X[2:3], ""), opened.supernet.space.decode(X)[2]
            confirmed = opened.confirm(config)["confirmed_with_drift_ms"]
            assert work["timed"] == 2 * 5 + 1
            (confirmation,) = opened._records(config, "final", "confirmation")
            assert np.isfinite(ms) and confirmed == confirmation.min
            assert {m.device["layout"] for m in opened._records(config, "final")} == {opened.fingerprint["layout"]}
            assert confirmation.device["layout"] == "random"


def test_files_that_failed_with_other_weights_are_tried(folder, tmp_path, work, monkeypatch):
    write, failing = device_files.write_parts, [True]

    def writing(network, device, folder, fast, inputs):
        if failing and not fast:
            raise ValueError("the weights are not finite")
        write(network, device, folder, fast, inputs)

    monkeypatch.setattr(bench, "write_parts", writing)
    for scale in (1.0, 1.0, 1.5):
        with open_bench(
            str(folder), "onnxruntime", None, str(tmp_path / "store"), str(tmp_path / "files"), "process"
        ) as opened:
            opened.supernet.get_parameter("classifier.weight").data *= scale
            X = sampling.latency_rows(opened.supernet.space, 5, np.random.default_rng(0))
            opened.latencies(X, "")
            opened.fix_scale(X)
            ran = np.isfinite(opened.final_latencies(X[2:3], "")).all()
            assert ran == (scale != 1)
        failing.clear()  # with the same weights it is not tried again
    assert work["timed"] == 5 + 1 + 1


def of_one_kind(folder, sizes):
    """A saved supernet with as many networks as sizes of images."""
    space = ofa.mobilenet_v3_space(kernel_size=(3,), expand_ratio=(3,), depth=(2,), resolution=sizes)
    network = ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1)
    return str(save(network, folder, data=DATA))


def test_a_space_of_few_networks_is_timed_in_full(tmp_path):
    assert measure(of_one_kind(tmp_path / "supernet", (12, 16, 20, 24, 28, 32)), "onnxruntime")["n"] == 6


def test_a_network_that_fails_when_it_is_timed_once_more_is_not_timed_again(folder, tmp_path, work, monkeypatch):
    monkeypatch.setattr(bench, "VISITS", 3)
    timing, store = bench.time_networks, str(tmp_path / "store.sqlite")

    def failing_later(*arguments, **options):
        for key, result in timing(*arguments, **options):
            yield key, result if work["timed"] <= 6 else Failure(("it fails now",) * 2, "now", result.device)

    monkeypatch.setattr(bench, "time_networks", failing_later)
    X = sampling.latency_rows(load(folder).space, 6, np.random.default_rng(0))
    for _ in range(3):
        with open_bench(str(folder), "onnxruntime", None, store, str(tmp_path / "files"), "process") as opened:
            assert np.isfinite(opened.latencies(X, "")).all()
    assert work["timed"] == 12


def test_a_machine_that_is_too_busy_is_no_reason_to_end(folder, tmp_path, monkeypatch):
    floors = []
    monkeypatch.setattr(sampling, "has_converged", lambda errors, floor: floors.append(floor) or True)
    monkeypatch.setattr(bench.Bench, "noise_floor", lambda self, X, visits=None: 0.9)
    measure(str(folder), "onnxruntime", store=str(tmp_path / "store.sqlite"))
    assert floors == [statistics.TOO_NOISY / 2]


def test_timing_ends_where_it_is_told_to(folder, tmp_path, work, monkeypatch):
    monkeypatch.setattr(sampling, "has_converged", lambda errors, floor: False)
    assert measure(str(folder), "onnxruntime", max_samples=23, store=str(tmp_path / "a.sqlite"))["n"] == 23
    for _ in range(2):  # once more, it knows how long the networks ran
        report = measure(str(folder), "onnxruntime", max_seconds=1e-6, store=str(tmp_path / "b.sqlite"))
        assert report["n"] == 10
    assert work["timed"] == 23 + 10 + 2 * 2 * bench.CHECKED


def test_measuring_what_makes_no_sense_is_refused(folder):
    for wrong in ({"samples": 4}, {"samples": "many"}, {"max_samples": 5}, {"max_seconds": 0.0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} = "):
            measure(str(folder), "onnxruntime", **wrong)


def test_the_parts_of_the_held_out_data_share_nothing():
    data = ofa.ImageData(**DATA["init_args"])
    held_out = sum((batch[1].tolist() for batch in data.val_dataloader()), [])
    parts = {name: sum((batch[1].tolist() for batch in bench.part_of(data, name)), []) for name in bench.PARTS}
    assert sorted(parts["select"] + parts["report"]) == sorted(held_out)
    assert abs(len(parts["select"]) - len(parts["report"])) <= 1
    assert parts["test"] == sum((batch[1].tolist() for batch in data.test_dataloader()), [])


def test_the_parts_do_not_depend_on_the_batches():
    def targets(part, size):
        data = ofa.ImageData(**DATA["init_args"] | {"batch_size": size})
        return sum((batch[1].tolist() for batch in bench.part_of(data, part)), [])

    for part in bench.PARTS:
        assert targets(part, 1) == targets(part, 7) == targets(part, 60)


def test_no_network_is_a_sample_twice():
    space = ofa.mobilenet_v3_space(depth=(2,), kernel_size=(3,), expand_ratio=(3, 4), resolution=(16,))
    X = sampling.latency_rows(space, 5000, np.random.default_rng(0))
    assert len({tuple(row) for row in X}) == len(X) > 1000


def test_another_device_is_told_of_by_those_that_the_store_has(folder, tmp_path, monkeypatch):
    store = str(tmp_path / "store.sqlite")
    measure(str(folder), "torch", samples=20, store=store)
    asked, samples = [], sampling.time_samples

    def spying(opened, *arguments):
        found = samples(opened, *arguments)
        asked.append((list(opened.sources), len(found[0])))
        return found

    monkeypatch.setattr(closed_loop, "time_samples", spying)
    for _ in range(2):
        specialize(str(folder), max_latency=500.0, out=str(tmp_path / "out"), store=store, overwrite=True, **FEW)
    ((source,), timed), again = asked
    assert source.startswith("torch ") and timed == 10 and again == asked[0]
    X = sampling.latency_rows(load(folder).space, 20, np.random.default_rng(0))
    with open_bench(str(folder), "torch", None, store, str(tmp_path / "files"), "process") as first:
        assert first.other_devices(X) == {}  # it was there before the other one


def test_the_file_is_evaluated_as_the_network_is(folder, tmp_path):
    report = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **FEW)
    data, subnet = ofa.ImageData(**DATA["init_args"]), load(tmp_path / "out")
    for part in bench.PARTS:
        expected = bench.evaluate_network(subnet, bench.part_of(data, part))
        assert report[part] == pytest.approx(expected, rel=1e-4)


def test_an_int8_network_is_chosen_as_the_file_that_ships(folder, tmp_path):
    few = FEW | {"device": "onnxruntime-int8", "latency_samples": 6}
    report = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **few)
    assert onnx_precision(tmp_path / "out" / "subnet.onnx") == "int8"
    exact = bench.evaluate_network(load(tmp_path / "out"), ofa.ImageData(**DATA["init_args"]).test_dataloader())
    assert report["test"] != exact and report["test"]["loss"] == pytest.approx(exact["loss"], rel=0.2)


def test_all_bounds_hold_on_the_file(folder, tmp_path):
    bounds = dict(max_macs=1.2e6, max_params=2.4e5, max_file_mb=1.4, max_memory_mb=100.0)
    report = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **FEW, **bounds)
    file = tmp_path / "out" / "subnet.onnx"
    assert report["macs"] <= 1.2e6 and report["params"] <= 2.4e5
    assert report["file_mb"] == file.stat().st_size / 1e6 <= 1.4
    assert 0 < report["memory_mb"] <= 100


def test_a_network_whose_memory_cannot_be_told_is_none_within_the_bound(folder, tmp_path, monkeypatch):
    asked, memory = [], bench.peak_memory

    def failing(device, source, engine):
        asked.append(source)
        if len(asked) <= 2:
            raise NetworkError("it was ended")
        return memory(device, source, engine)

    monkeypatch.setattr(bench, "peak_memory", failing)
    X = sampling.latency_rows(load(folder).space, 6, np.random.default_rng(0))
    store = str(tmp_path / "store.sqlite")
    for times in (7, 9):  # the first one twice, and none again but the file that ships, twice
        with open_bench(str(folder), "onnxruntime", None, store, str(tmp_path / "files"), "process") as opened:
            taken = opened.footprints(X, "search", "memory_mb")
            assert len(asked) == times and np.isinf(taken[0]) and np.isfinite(taken[1:]).all()
            limit = closed_loop.Limit(opened, "memory_mb", 1000.0, X)
            assert (limit.X == X[1:]).all() and limit.of(opened.supernet.space.smallest()) > 0


def test_of_two_measurements_the_memory_of_a_file_that_ships_is_the_larger(folder, tmp_path, monkeypatch):
    for told in ((8e6, 9e6), (9e6, 8e6)):
        answers = list(told)
        monkeypatch.setattr(bench, "peak_memory", lambda *asked: answers.pop(0))  # noqa: B023
        store = str(tmp_path / f"{told[0]}.sqlite")
        with open_bench(str(folder), "onnxruntime", None, store, str(tmp_path / "files"), "process") as opened:
            X = opened.supernet.space.encode([opened.supernet.space.smallest()])
            assert [opened.footprints(X, "final", "memory_mb")[0] for _ in range(2)] == [9.0, 9.0]


def test_a_bound_that_nothing_meets_is_refused_before_any_evaluation(folder, tmp_path, work):
    for bound in ("macs", "params", "file_mb", "memory_mb"):
        with pytest.raises(
            ValueError, match=f"{bound} = 0.001 cannot be met: the (smallest value among|smallest network has)"
        ):
            specialize(str(folder), max_latency=50.0, out=str(tmp_path / "x"), **FEW, **{f"max_{bound}": 0.001})
    assert work["evaluated"] == 0


def test_the_batches_that_calibrate_an_int8_file_are_part_of_what_it_computes(folder, tmp_path, work, monkeypatch):
    paths = str(tmp_path / "store.sqlite"), str(tmp_path / "files")
    device = DEVICES["onnxruntime-int8"]
    for batch, beam in ((1, 4), (8, 4), (8, 4), (8, 1)):  # rows that are decoded at once: the batch times the beam
        monkeypatch.setitem(DEVICES, device.name, dataclasses.replace(device, batch=batch))
        with open_bench(str(folder), device.name, None, *paths, "process") as opened:
            opened.supernet.input_spec["beam"] = beam
            opened.file_items(opened.supernet.space.smallest(), "select")
    assert work["files"] == 3


def test_files_of_another_form_are_other_files_of_the_same_network(folder, tmp_path):
    paths = str(tmp_path / "store.sqlite"), str(tmp_path / "files")
    with open_bench(str(folder), "onnxruntime", None, *paths, "process") as opened:
        config, kinds = opened.supernet.space.smallest(), ("search", "final", "")
        before = [opened._key(config, kind)[0] for kind in kinds]
        opened.supernet.files_form = ("another",)
        after = [opened._key(config, kind)[0] for kind in kinds]
    assert [a == b for a, b in zip(after, before)] == [False, False, True]  # the last is what accuracies are of


def test_a_runtime_that_does_not_compute_what_the_network_does_is_an_error():
    class Stub:
        supernet = SimpleNamespace(figure="accuracy")
        device = SimpleNamespace(name="openvino", precision="float32")

        def file_items(self, config, part):
            return {"accuracy": np.ones(4), "loss": np.full(4, 1.1), "counted": np.ones(4)}

    finals = [{"config": "a network", "latency_ms": 1.0, "loss": 1.0}]
    with pytest.raises(ValueError, match="openvino does not compute a network as torch does: the loss is 1.1 by the"):
        closed_loop.best_file(Stub(), finals, {"latency_ms": 5.0})
    assert closed_loop.best_file(Stub(), finals, {"latency_ms": 6.0}) is None  # it is known to another search


@pytest.fixture
def losing(monkeypatch):
    """An engine, by the name of ray's, that loses the machine when that is to open a file for which `lost` holds; and
    the files that it was asked to open."""
    opened, engine = [], SimpleNamespace(lost=lambda path: False)

    @contextmanager
    def elsewhere(device, fixed=True):
        def call_or_lose(method, *arguments):
            if method == "open":
                opened.append(arguments[0])
                if engine.lost(arguments[0]):
                    raise NetworkError("its worker was lost")
            return call(method, *arguments)

        with process_engine(device, fixed) as call:
            yield call_or_lose

    monkeypatch.setitem(ENGINES, "ray", elsewhere)
    return engine, opened


def test_a_file_that_is_timed_but_cannot_be_evaluated_is_tried_twice_and_left_out(folder, tmp_path, losing, capsys):
    engine, opened = losing
    engine.lost = lambda path: path == opened[0]
    few = FEW | {"max_latency": [40.0, 50.0], "engine": "ray", "store": str(tmp_path / "store.sqlite")}
    opens = set()
    for out in ("first", "second"):
        assert len(specialize(str(folder), out=str(tmp_path / out), **few)) == 2
        assert "cannot be evaluated: its worker was lost" in capsys.readouterr().out
        assert opened.count(opened[0]) == 2
        opens.add(len(opened))
    assert len(opens) == 1  # the second time none


def test_a_file_of_which_a_part_of_the_data_cannot_be_told_is_not_chosen_again(folder, tmp_path, losing):
    engine, opened = losing
    paths = str(tmp_path / "store.sqlite"), str(tmp_path / "files")
    with open_bench(str(folder), "onnxruntime", None, *paths, "ray") as opened_bench:
        config = opened_bench.supernet.space.smallest()
        assert (opened_bench.file_items(config, "select")["loss"] > 0).all()
        engine.lost = lambda path: True
        for part in ("report", "select"):
            with pytest.raises(NetworkError, match="its worker was lost"):
                opened_bench.file_items(config, part)
    assert len(opened) == 3


def test_of_files_that_are_as_good_the_fastest_is_chosen():
    class Stub:
        supernet, device = SimpleNamespace(figure="accuracy"), SimpleNamespace(precision="int8")

        def __init__(self, right):
            self.right = right

        def file_items(self, config, part):
            rights = np.r_[np.ones(self.right[config]), np.zeros(100 - self.right[config])]
            if config in ("as good", "unsure", "not again"):  # right where others are not
                rights = rights[::-1]
            return {"accuracy": rights, "loss": 1 - rights + (config == "unsure"), "counted": np.ones(100)}

        def confirm(self, config):
            return {"confirmed_ms": {"misses": 9.0, "not again": 4.0}.get(config, took[config])}

    took = {"good": 3.0, "as good": 2.0, "worse": 1.0, "unsure": 1.2, "misses": 1.5, "slow": 6.0, "not again": 1.8}
    finals = [{"config": name, "latency_ms": ms} for name, ms in took.items()]
    right = {"good": 90, "as good": 89, "worse": 80, "unsure": 89, "misses": 95, "slow": 99, "not again": 89}
    assert closed_loop.best_file(Stub(right), finals, {"latency_ms": 5.0})["config"] == "as good"
    assert closed_loop.best_file(Stub(right), finals[:1], {"latency_ms": 2.0}) is None
    sized = [final | {"params": 7.0 - final["latency_ms"]} for final in finals]
    assert closed_loop.best_file(Stub(right), sized, {"latency_ms": 5.0, "params": 4.0})["config"] == "good"


def test_budgets_and_devices_share_what_is_evaluated(folder, tmp_path, work, monkeypatch):
    shared, samples_near = [], sampling.samples_near

    def spying(some_bench, evaluated, n, rng, constraints, folds):
        shared.append((id(evaluated), evaluated.random is None, constraints[0][1]))
        return samples_near(some_bench, evaluated, n, rng, constraints, folds)

    monkeypatch.setattr(closed_loop, "samples_near", spying)
    many = FEW | {"device": "onnxruntime,torch", "max_latency": "500, 600", "latency_samples": 6}
    reports = specialize(str(folder), out=str(tmp_path / "out"), **many)
    names = {f"{device}-{budget}ms" for device in ("onnxruntime", "torch") for budget in (500, 600)}
    assert set(reports) == names
    assert len({known for known, *_ in shared}) == 1 and [new for _, new, _ in shared] == [True, *7 * [False]]
    assert [budget for *_, budget in shared] == 2 * [600, 500, 500, 600]  # each again, with what all others found
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | set(FRONT_FILES)
    page = (tmp_path / "out" / "front.html").read_text()
    assert all(f'href="{name}/report.html"' in page for name in names) and "<svg" in page and "http-equiv" not in page
    front = json.loads((tmp_path / "out" / "front.json").read_text())
    assert set(front) == {"onnxruntime", "torch"} and all(1 <= len(rows) <= 2 for rows in front.values())
    done = dict(work)
    specialize(str(folder), out=str(tmp_path / "out"), overwrite=True, **many)
    assert work == done


LENGTHS = (10, 10, 2, 20, 5, 0)  # what `find_network` takes beside the budget


@pytest.fixture
def blind(monkeypatch):
    """A function after which searches find nothing, and know what is shared."""

    def infeasible(*arguments, **options):
        raise InfeasibleError

    def blinded():
        monkeypatch.setattr(closed_loop, "evolutionary_search", infeasible)
        monkeypatch.setattr(closed_loop, "next_finalists", lambda *arguments: [])

    return blinded


def test_what_was_timed_for_one_budget_competes_for_the_others(folder, tmp_path, work, blind):
    shared, paths = sampling.Shared(), (str(tmp_path / "store"), str(tmp_path / "files"))
    with open_bench(str(folder), "onnxruntime", None, *paths, "process") as opened:
        found = closed_loop.find_network(opened, 50.0, tmp_path / "first", *LENGTHS, shared=shared)
        work.update(timed=0)
        blind()
        again = closed_loop.find_network(opened, 60.0, tmp_path / "second", *LENGTHS, shared=shared)
        assert again["config"] == found["config"] and work["timed"] == 0
        assert [final["found_for_ms"] for final in again["finalists"]] == [50.0]


def test_a_failed_search_tells_its_own_finalists_from_those_for_other_budgets():
    finals = [{"config": "a", "found_for_ms": 5.0, "latency_ms": 3.0}]
    told = closed_loop.none_met(finals, {"latency_ms": 2.0}, {"config": "b", "latency_ms": 2.5})
    assert told.startswith("0 exported networks were timed and 1 for other budgets, none met 2.000 ms: none ")
    assert "none was predicted to, the fastest took 3.000 ms, 1.000 ms too long: a; of the samples the fastest" in told
    told = closed_loop.none_met(finals, {"latency_ms": 5.0}, {"config": "b", "latency_ms": 2.5})
    assert told.startswith("1 exported networks were timed, none met 5.000 ms: the fastest took 3.000 ms: a;")


def test_a_network_timed_by_one_statistic_says_nothing_of_another(folder, tmp_path, blind):
    shared, paths = sampling.Shared(), (str(tmp_path / "store"), str(tmp_path / "files"))
    with open_bench(str(folder), "onnxruntime", None, *paths, "process") as opened:
        closed_loop.find_network(opened, 50.0, None, *LENGTHS, shared=shared)
        opened.device = dataclasses.replace(opened.device, statistic="p90")
        blind()
        with pytest.raises(ValueError, match="0 exported networks were timed, none met"):
            closed_loop.find_network(opened, 50.0, None, *LENGTHS, shared=shared)


def test_a_report_has_the_finalists_of_both_searches_for_its_budget(folder, tmp_path, blind):
    shared, paths = sampling.Shared(), (str(tmp_path / "store"), str(tmp_path / "files"))
    with open_bench(str(folder), "onnxruntime", None, *paths, "process") as opened:
        closed_loop.find_network(opened, 50.0, None, *LENGTHS, shared=shared)
        (timed,) = shared.timed.values()
        blind()
        report = closed_loop.find_network(opened, 50.0, tmp_path / "out", *LENGTHS, shared=shared)
    assert len(report["finalists"]) == len(timed) >= 2


def test_a_finalist_whose_memory_could_not_be_asked_is_not_shared(folder, tmp_path, monkeypatch):
    def failing(self, config):
        raise OSError("the machine is gone")

    monkeypatch.setattr(closed_loop.Limit, "of", failing)
    shared, paths = sampling.Shared(), (str(tmp_path / "store"), str(tmp_path / "files"))
    with open_bench(str(folder), "onnxruntime", None, *paths, "process") as opened:
        with pytest.raises(OSError, match="the machine is gone"):
            closed_loop.find_network(opened, 50.0, None, *LENGTHS, bounds={"file_mb": 9.0}, shared=shared)
    assert list(shared.timed.values()) == [{}]


def test_a_budget_that_is_missed_costs_no_other_one(folder, tmp_path):
    one = "1 networks were written. For 1 budgets or devices there is none:\n"
    with pytest.raises(ValueError, match=f"{one}onnxruntime-0.0001ms: the budget of 0.0001 ms cannot"):
        specialize(str(folder), out=str(tmp_path / "out"), max_latency=[1e-4, 50.0], **FEW)
    assert (tmp_path / "out" / "onnxruntime-50ms" / "report.json").is_file()


@pytest.fixture
def steady(monkeypatch):
    """Latencies that multiply-accumulates tell exactly, whatever else the machine does."""
    timing, measuring, macs = bench.Bench._time, bench.time_networks, {}

    def knowing(self, configs, exporter, what, *table, **rounds):
        for config in configs:
            costs = self.supernet.costs(self.supernet.space.encode([config]))
            macs[self._key(config, exporter)[0]] = costs["macs"][0]
        timing(self, configs, exporter, what, *table, **rounds)

    def exact(*arguments, **options):
        for key, measured in measuring(*arguments, **options):
            known = dict.fromkeys(STATISTICS, macs[key] / 1e6)
            known |= {f"{kind}_{name}": 1.0 for kind in ("reference", "quiet") for name in STATISTICS}
            yield key, dataclasses.replace(measured, **known)

    monkeypatch.setattr(bench.Bench, "_time", knowing)
    monkeypatch.setattr(bench, "time_networks", exact)


def test_a_front_has_networks_over_all_latencies(folder, tmp_path, steady):
    few = FEW | {"store": str(tmp_path / "store.sqlite")}  # what others measured is not steady
    reports = specialize(str(folder), out=str(tmp_path / "out"), pareto=3, **few)
    budgets = [report["budget_ms"] for report in reports.values()]
    report = reports[next(iter(reports))]
    assert len(budgets) == 3
    assert budgets[0] <= 1.051 * report["smallest_ms"] and report["largest_ms"] <= 1.001 * budgets[2]
    assert budgets[1] / budgets[0] == pytest.approx(budgets[2] / budgets[1], rel=0.01)
    rows = json.loads((tmp_path / "out" / "front.json").read_text())["onnxruntime"]
    figures = [(row["latency_ms"], row["select"]["accuracy"]) for row in rows]
    assert figures == sorted(figures) and len({figure for _, figure in figures}) == len(figures)


def test_files_that_ship_are_timed_where_those_of_the_faster_exporter_do_not_agree(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "AGREE", -1.0)
    monkeypatch.setattr(bench, "PAIRS", 2)
    exporters, timing = [], bench.Bench._time

    def spying(self, configs, exporter, what, *table, **rounds):
        exporters.extend([exporter] * len(configs))
        timing(self, configs, exporter, what, *table, **rounds)

    monkeypatch.setattr(bench.Bench, "_time", spying)
    measure(str(folder), device="onnxruntime", samples=6, store=str(tmp_path / "store.sqlite"))
    assert exporters == ["search"] * 6 + ["final"] * (2 + 5)  # of both files of one network twice


def test_evaluations_end_where_more_would_tell_little(folder, tmp_path, work):
    few = FEW | {"accuracy_samples": "auto"}
    report = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **few)
    assert report["accuracy_predictor"]["loss"]["n"] in range(20, 201, 20)


def test_what_was_evaluated_for_another_budget_counts_where_it_is_near_this_one(folder):
    space, cost = load(folder).space, lambda X: X.sum(axis=1)
    known, found = space.sample(40, np.random.default_rng(1)), space.sample(3, np.random.default_rng(2))
    budget = float(np.median(cost(known)))
    near = int((cost(known) <= sampling.NEAR * budget).sum())
    stub = SimpleNamespace(supernet=SimpleNamespace(space=space))
    A = sampling.samples_near(
        stub, sampling.Shared(known, found), near + 7, np.random.default_rng(0), [(cost, budget)], folds=None
    )
    assert (A[2:42] == known).all() and len(A) == 2 + 40 + 5  # the ends count, too
    assert (cost(A[42:]) <= budget).all() and len(np.unique(np.concatenate([A, found]), axis=0)) == len(A) + 3


def test_devices_that_would_share_a_folder_are_refused(folder, tmp_path):
    (tmp_path / "other.yaml").write_text("{name: onnxruntime, runtime: onnxruntime, threads: 2}")
    few = FEW | {"device": f"onnxruntime,{tmp_path / 'other.yaml'}"}
    with pytest.raises(ValueError, match="folders have the names of devices: onnxruntime, onnxruntime repeat"):
        specialize(str(folder), out=str(tmp_path / "out"), max_latency=50.0, **few)


def test_a_device_that_fails_costs_no_other_one(folder, tmp_path, monkeypatch):
    write = device_files.write_parts

    def failing(network, device, *arguments):
        if device.runtime == "onnxruntime":
            raise RuntimeError("no such instruction")
        write(network, device, *arguments)

    few = FEW | {"device": "torch,onnxruntime", "latency_samples": 6, "store": str(tmp_path / "store.sqlite")}
    monkeypatch.setattr(bench, "write_parts", failing)
    with pytest.raises(
        ValueError, match="1 networks were written. For 1 budgets or devices there is none:\nonnxruntime.*: no such"
    ) as caught:
        specialize(str(folder), out=str(tmp_path / "out"), max_latency=[500.0], **few)
    error, chain = caught.value.__cause__.exceptions[0], []
    while error is not None:
        chain.append(type(error))
        error = error.__cause__
    assert chain[-1] is RuntimeError  # and where it came from


@pytest.mark.parametrize("given", [{}, {"max_latency": 1.0, "pareto": 3}, {"pareto": 1}, {"max_latency": "1,x"}])
def test_budgets_that_make_no_sense_are_refused(folder, tmp_path, given):
    with pytest.raises(ValueError, match="max_latency = "):
        specialize(str(folder), out=str(tmp_path / "out"), **FEW, **given)


def test_exported_files_keep_within_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(device_files, "CACHE", 250)
    monkeypatch.setattr(device_files, "KEPT", 1)
    for i in range(4):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "x").write_bytes(bytes(100))
        os.utime(tmp_path / str(i), (i, i))
    device_files.trim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}


def test_what_another_process_is_writing_is_not_trimmed(tmp_path, monkeypatch):
    monkeypatch.setattr(device_files, "CACHE", 0)
    monkeypatch.setattr(device_files, "KEPT", 1)
    for i, name in enumerate((".being-written", "a", "b", "taken-away")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(bytes(100))
        os.utime(tmp_path / name, (i, i))
    listed = Path.iterdir

    def racing(path):
        if path.name == "taken-away":
            shutil.rmtree(path)
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", racing)
    device_files.trim(tmp_path)
    assert {path.name for path in listed(tmp_path)} == {".being-written", "b"}


def test_a_network_that_another_process_wrote_meanwhile_is_taken(folder, tmp_path, monkeypatch):
    write = bench.write_folder

    def overtaken(*arguments):
        write(*arguments)  # by the other process
        write(*arguments)

    monkeypatch.setattr(bench, "write_folder", overtaken)
    with open_bench(str(folder), "onnxruntime", None, str(tmp_path / "store"), str(tmp_path / "files"), "process") as b:
        file = b.network_file(b.supernet.space.smallest(), "search")
        assert file.is_file() and [path.name for path in b.files.iterdir()] == [file.parent.name]


def test_distinct_rows_are_new_and_apart():
    X = np.array([[1, 1, 1, 1.0], [1, 1, 1, 2], [2, 2, 2, 2], [3, 3, 3, 3]])
    assert distinct(X, X[3:], 5).tolist() == [[1, 1, 1, 1], [2, 2, 2, 2]]
    assert distinct(X, X, 5).shape == (0, 4)


def test_a_budget_far_below_the_smallest_network_is_refused_after_one_visit_of_it(folder, tmp_path, work):
    few = FEW | {"store": str(tmp_path / "store.sqlite")}
    with pytest.raises(ValueError, match=r"0.001 ms cannot be met on onnxruntime: the smallest network takes .* ms"):
        specialize(str(folder), max_latency=1e-3, out=str(tmp_path / "x"), **few)
    assert work["timed"] == 1 and work["evaluated"] == 0


@pytest.mark.parametrize("bound, timed", [({"max_macs": 10}, 0), ({"max_params": 10}, 0), ({"max_file_mb": 1e-3}, 1)])
def test_other_bounds_that_nothing_meets_are_refused_before_samples_are_timed(folder, tmp_path, work, bound, timed):
    few = FEW | {"store": str(tmp_path / "store.sqlite")} | bound
    name, value = next(iter(bound.items()))
    with pytest.raises(ValueError, match=f"{name.removeprefix('max_')} = {value:g} cannot be met: .* at least that"):
        specialize(str(folder), max_latency=50.0, out=str(tmp_path / "x"), **few)
    assert work["timed"] == timed and work["evaluated"] == 0


@pytest.mark.parametrize("sizes", [(12,), (12, 16, 20)])
def test_a_space_of_fewer_networks_than_samples_is_measured_in_full(tmp_path, sizes):
    assert measure(of_one_kind(tmp_path / "supernet", sizes), "onnxruntime")["n"] == len(sizes)


@pytest.mark.parametrize("sizes", [(12, 16), (12, 16, 20)])
def test_the_best_of_a_space_of_few_networks_is_found(tmp_path, sizes):
    supernet = of_one_kind(tmp_path / "supernet", sizes)
    report = specialize(supernet, max_latency=50.0, out=str(tmp_path / "out"), **FEW)
    assert report["config"]["resolution"] in sizes


def test_a_place_where_no_folder_can_be_made_is_refused_before_the_work(folder, tmp_path, work):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written: .* is a file, not a folder"):
        specialize(str(folder), max_latency=50.0, out=str(tmp_path / "file" / "x" / "out"), **FEW)
    assert work["timed"] == 0 and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_ratios_are_known_to_be_off_only_where_their_interval_says_so():
    rng = np.random.default_rng(0)
    noisy = [0.96 * np.exp(rng.normal(0, 0.05, 4)) for _ in range(3)]
    ratio, low, high = bench.ratio_interval(noisy)
    assert low < ratio < high and high > 0.98
    apart = [level * np.exp(rng.normal(0, 0.002, 4)) for level in (0.9, 0.95)]  # whose levels are known well
    assert bench.ratio_interval(apart)[2] < 0.98
    assert bench.ratio_interval([[1.1], [0.9]])[1:] == (0.0, math.inf)


def test_other_processes_make_the_same_of_networks(folder, tmp_path, monkeypatch):
    found = []
    for worth in (0.0, math.inf):
        monkeypatch.setattr(bench, "WORTH", worth)
        store, files = str(tmp_path / f"store-{worth}"), str(tmp_path / f"files-{worth}")
        with open_bench(str(folder), "onnxruntime", None, store, files, "process") as opened:
            opened.will_evaluate()
            X = opened.supernet.space.sample(4, np.random.default_rng(0))
            opened.export([(config, "search") for config in opened.supernet.space.decode(X)])
            found.append(opened.evaluate(X, "evaluating")["loss"])
            assert (opened._workers is not None) == (worth == 0)
            assert len([path for path in opened.files.iterdir()]) == 4
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_what_was_delivered_is_not_exported_again(folder, tmp_path, monkeypatch):
    few = FEW | {"store": str(tmp_path / "store.sqlite")}
    specialize(str(folder), max_latency=50.0, out=str(tmp_path / "first"), **few)
    monkeypatch.setattr(bench, "write_parts", lambda *arguments: pytest.fail("it was exported again"))
    specialize(str(folder), max_latency=50.0, out=str(tmp_path / "second"), **few)
    first, second = ((tmp_path / name / "subnet.onnx").read_bytes() for name in ("first", "second"))
    assert first == second


def test_the_same_call_again_searches_nothing(folder, tmp_path, monkeypatch):
    few = FEW | {"store": str(tmp_path / "store.sqlite")}
    first = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "first"), **few)
    monkeypatch.setattr(closed_loop, "evolutionary_search", lambda *arguments, **options: pytest.fail("it searched"))
    second = specialize(str(folder), max_latency=50.0, out=str(tmp_path / "second"), **few)
    assert first["config"] == second["config"]


def test_two_processes_do_not_write_one_folder(folder, tmp_path, work):
    with lock_folder(tmp_path / "out", inside=False), pytest.raises(BlockingIOError, match="out is in use by"):
        specialize(str(folder), max_latency=50.0, out=str(tmp_path / "out"), **FEW)
    assert work["timed"] == 0


def test_several_networks_go_on_where_they_were_ended(folder, tmp_path, monkeypatch):
    out, few = tmp_path / "out", FEW | {"max_latency": "50,100"}
    write = report.write_fronts
    monkeypatch.setattr(report, "write_fronts", lambda *arguments: sys.exit(143))
    with pytest.raises(SystemExit):
        specialize(str(folder), out=str(out), **few)
    (out / ".onnxruntime-100ms.abcd1234").mkdir()  # as of a process that was killed while it wrote
    monkeypatch.setattr(report, "write_fronts", write)
    monkeypatch.setattr(bench, "time_networks", lambda *arguments, **options: pytest.fail("it was measured again"))
    specialize(str(folder), out=str(out), **few)
    assert {path.name for path in out.iterdir()} == {*report.FRONT_FILES, "onnxruntime-50ms", "onnxruntime-100ms"}
    with pytest.raises(FileExistsError, match="out is not empty"):
        specialize(str(folder), out=str(out), **few)


KILLED = """
import dataclasses, sys
from predictors import statistics
from predictors.devices import DEVICES
from recipes.measure import measure
DEVICES["onnxruntime"] = dataclasses.replace(DEVICES["onnxruntime"], rounds=4, runs=5, spacing=0.02)
measure(sys.argv[1], "onnxruntime", samples=8, store=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_had_measured_is_not_measured_again(folder, tmp_path, how):
    store, temporary = tmp_path / "store.sqlite", tmp_path / "tmp"
    temporary.mkdir()
    arguments = [sys.executable, "-c", KILLED, str(folder), str(store)]
    options = {"env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)}}

    def timed():
        if not store.is_file():
            return 0
        with Store(store) as known:
            return len(known.records("latency"))

    process = subprocess.Popen(arguments, **options)
    while timed() < 20:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    process.wait()
    if how == signal.SIGTERM:  # what it was writing is gone with it
        assert process.returncode == 128 + how and not any(path.is_dir() for path in temporary.iterdir())
    before = timed()
    subprocess.run(arguments, check=True, **options)
    visits, (checked, pairs) = 8, (3, 4)  # of each sample, and of the final files that check the faster exporter
    assert before < timed() == 8 * visits + checked * pairs
