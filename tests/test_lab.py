"""The lab: samples, files, evaluations and identities of a small supernet, on a simulated engine."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ofa
from predictors.engines import NetworkError
from predictors.runtimes.onnxruntime import onnx_precision
from recipes.constraints import CONSTRAINTS
from recipes.lab import open_lab, sampling
from recipes.lab.files import trim
from recipes.lab.keys import data_digest, network_key, state_digest
from recipes.lab.splits import SPLITS, batches_of
from recipes.measure import measure
from recipes.values import PROXY, RELEASE
from supernet.saving import load, save

DATA = {"class_path": "ofa.ImageData", "init_args": {"holdout": 60, "calibration": 64}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained supernet's folder."""
    torch.manual_seed(0)
    space = ofa.mobilenet_v3_space(resolution=(16,), depth=(1, 2))
    network = ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1)
    return save(network, tmp_path_factory.mktemp("run") / "supernet", data=DATA)


@pytest.fixture
def opened(folder, quick_device, exported, tmp_path, simulation):
    """Opens a lab on the test's own store."""

    def make(device="onnxruntime", batch=1, sessions=2, **options):
        places = {"files": exported, "store": str(tmp_path / "store.sqlite"), "workers": 1, "engine": "simulated"}
        return open_lab(folder, quick_device(device, batch=batch, sessions=sessions), **(places | options))

    return make


@pytest.fixture
def lab(opened):
    with opened() as one:
        yield one


def rows(lab, n=6):
    return sampling.latency_rows(lab.space, n, np.random.default_rng(0))


# ---- identities


def test_states_of_any_precision_have_a_digest_of_their_own():
    state = {"weight": torch.ones(2, 3)}
    digests = {state_digest({"weight": state["weight"].to(dtype)}) for dtype in (torch.float32, torch.bfloat16)}
    assert len(digests) == 2 and state_digest(state) in digests


@pytest.mark.parametrize(("changed", "same"), [({"class_names": list("abcdefghij")}, True), ({"std": [2.0]}, False)])
def test_names_do_not_change_the_identity_of_data(changed, same):
    data = ofa.ImageData("digits", batch_size=32, holdout=64, calibration=32)
    before = data_digest(data, batches_of(data, "selection"))
    data.input_spec |= changed
    assert (data_digest(data, batches_of(data, "selection")) == before) == same


def test_files_of_another_form_are_other_files_of_the_same_network(folder):
    supernet = load(folder)
    config, kinds = supernet.space.smallest(), (PROXY, RELEASE, "")
    before = [network_key(supernet, config, kind) for kind in kinds]
    supernet.files_form = ("another",)
    after = [network_key(supernet, config, kind) for kind in kinds]
    assert [a == b for a, b in zip(after, before)] == [False, False, True]  # the last one identifies metrics


# ---- splits


def test_selection_and_held_out_share_no_item():
    data = ofa.ImageData(**DATA["init_args"])
    all_items = sum((batch[1].tolist() for batch in data.val_dataloader()), [])
    splits = {name: sum((batch[1].tolist() for batch in batches_of(data, name)), []) for name in SPLITS}
    assert sorted(splits["selection"] + splits["held_out"]) == sorted(all_items)
    assert abs(len(splits["selection"]) - len(splits["held_out"])) <= 1
    assert splits["test"] == sum((batch[1].tolist() for batch in data.test_dataloader()), [])


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_does_not_depend_on_the_batch_size(split):
    def targets(size):
        data = ofa.ImageData(**DATA["init_args"] | {"batch_size": size})
        return sum((batch[1].tolist() for batch in batches_of(data, split)), [])

    assert targets(1) == targets(7) == targets(60)


# ---- samples


def test_no_network_is_a_sample_twice():
    space = ofa.mobilenet_v3_space(depth=(2,), kernel_size=(3,), expand_ratio=(3, 4), resolution=(16,))
    X = sampling.latency_rows(space, 5000, np.random.default_rng(0))
    assert len({tuple(row) for row in X}) == len(X) > 1000


def test_samples_start_with_both_ends_of_the_space(lab):
    samples = lab.samples(8, seed=0)
    ends = lab.space.encode([lab.space.smallest(), lab.space.largest()])
    assert np.array_equal(samples.X[:2], ends) and samples.n == len(samples.ms) == 8
    assert samples.ends_ms == (samples.ms.min(), samples.ms.max())


def test_networks_are_timed_until_the_predictor_has_converged(folder, quick_device, simulation, exported, tmp_path):
    store = str(tmp_path / "store.sqlite")
    options = {"store": store, "engine": "simulated", "workers": 1, "files": exported}
    report = measure(str(folder), quick_device("onnxruntime"), **options)
    assert report["n"] in range(20, 61, 10) and report["failed"] == 0
    assert report["cv_error"] < report["constant_error"] and report["smallest_ms"] < report["largest_ms"]
    limited = measure(str(folder), quick_device("onnxruntime"), max_seconds=1e-6, **options)
    assert limited["n"] == 10


@pytest.mark.parametrize("wrong", [{"samples": 4}, {"samples": "many"}, {"max_samples": 5}, {"max_seconds": 0.0}])
def test_wrong_arguments_of_measure_are_refused(folder, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} = "):
        measure(str(folder), "onnxruntime", **wrong)


def test_delivered_files_are_timed_where_proxies_have_another_latency(opened, simulation, tmp_path, capsys):
    with opened(store=str(tmp_path / "other")) as lab:
        proxies = {lab.files.key(config, PROXY) for config in lab.space.decode(lab.samples(6, seed=0).X)}
    default = simulation.ms
    simulation.ms = lambda source, confirms: default(source, confirms) * (1 if source.parent.name in proxies else 1.3)
    with opened(sessions=4) as lab:
        samples = lab.samples(6, seed=0)
        assert samples.kind == RELEASE and samples.check.low > 1.02
    assert "delivered files are timed from now on" in capsys.readouterr().out


def test_latencies_of_another_device_help(opened):
    with opened("torch") as first:
        first.samples(20, seed=0)
        assert not first.samples(20, seed=0).sources
    with opened() as second:
        (source,) = second.samples(10, seed=0).sources
        assert source.startswith("torch ")
    with opened("torch") as first:  # it was measured before the other device was
        assert not sampling.other_devices(first, rows(first, 20))


def test_networks_known_from_another_budget_count_where_they_are_near_this_one(folder):
    class Lab:
        space = load(folder).space

    cost = lambda X: X.sum(axis=1)  # noqa: E731
    space = Lab.space
    known, found = space.sample(40, np.random.default_rng(1)), space.sample(3, np.random.default_rng(2))
    budget = float(np.median(cost(known)))
    near = int((cost(known) <= sampling.NEAR * budget).sum())
    A = sampling.rows_near_bounds(Lab, known, found, near + 7, np.random.default_rng(0), [(cost, budget)], folds=None)
    assert (A[2:42] == known).all() and len(A) == 2 + 40 + 5  # the ends count, too
    assert (cost(A[42:]) <= budget).all() and len(np.unique(np.concatenate([A, found]), axis=0)) == len(A) + 3


# ---- files


def test_exported_files_keep_within_their_bytes(tmp_path):
    for i in range(4):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "x").write_bytes(bytes(100))
        os.utime(tmp_path / str(i), (i, i))
    trim(tmp_path, 250, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}


def test_a_folder_that_is_being_written_is_not_trimmed(tmp_path, monkeypatch):
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
    trim(tmp_path, 0, 1)
    assert {path.name for path in listed(tmp_path)} == {".being-written", "b"}


def test_other_processes_make_the_same_files_and_metrics(opened, tmp_path):
    found = []
    for workers in (1, 2):
        with opened(
            workers=workers, store=str(tmp_path / f"{workers}"), files=str(tmp_path / f"files-{workers}")
        ) as lab:
            X = lab.space.sample(4, np.random.default_rng(0))
            lab.files.write([(config, PROXY) for config in lab.space.decode(X)])
            found.append(lab.evaluate(X, "evaluating")["loss"])
            assert len(list(lab.files.folder.iterdir())) == 4
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_files_that_failed_with_other_weights_are_tried(opened, simulation):
    default = simulation.ms

    def fails(source, confirms):
        raise NetworkError("the weights are not finite")

    for scale, works in ((1.0, False), (1.0, False), (1.5, True)):
        with opened() as lab:
            lab.supernet.get_parameter("classifier.weight").data *= scale
            simulation.ms = default
            baseline = lab.time(rows(lab), PROXY, "timing")[1]
            simulation.ms = default if works else fails
            ran = np.isfinite(lab.timer.final(lab.targets(rows(lab)[2:3], RELEASE), baseline, "")).all()
            assert ran == works


def test_an_int8_file_is_written_for_an_int8_device(opened):
    with opened("onnxruntime-int8") as lab:
        assert onnx_precision(lab.files.path(lab.space.smallest(), RELEASE)) == "int8"


# ---- evaluations


def test_the_batches_that_calibrate_an_int8_file_identify_what_it_computes(opened, recorded, tmp_path):
    for batch, beam in ((1, 4), (8, 4), (8, 4), (8, 1)):  # rows that are decoded at once: the batch times the beam
        with opened("onnxruntime-int8", batch=batch, files=str(tmp_path / "files")) as lab:
            lab.supernet.input_spec["beam"] = beam
            lab.evaluator.file_items(lab.space.smallest(), "selection")
    assert recorded(tmp_path / "store.sqlite")["items"] == 3


def test_a_file_that_fails_on_one_split_is_not_evaluated_again(lab, simulation):
    config = lab.space.smallest()
    assert (lab.evaluator.file_items(config, "selection")["loss"] > 0).all()

    def lost(source):
        raise NetworkError("its worker was lost")

    simulation.opens = lost
    for split in ("held_out", "selection"):
        with pytest.raises(NetworkError, match="its worker was lost"):
            lab.evaluator.file_items(config, split)
    assert simulation.count("open") == 3


# ---- memory


def test_a_network_whose_memory_cannot_be_measured_is_left_out(opened, simulation):
    first = []

    def memory(source):
        first.append(source)
        if source == first[0]:
            raise NetworkError("it was ended")
        return 50e6

    simulation.memory = memory
    for _ in range(2):  # the second time nothing is measured
        with opened() as lab:
            samples = lab.samples(8, seed=0)
            values = CONSTRAINTS["memory_mb"].of_proxies(lab, samples.X)
            assert np.isinf(values[0]) and (values[1:] == 50.0).all()
    assert simulation.count("memory") == 2 + 7


def test_the_memory_of_a_delivered_file_is_measured_twice(lab, simulation):
    answers = [8e6, 9e6]
    simulation.memory = lambda source: answers.pop(0)
    X = lab.space.encode([lab.space.smallest()])
    assert [lab.memory_mb(X, RELEASE, 2) for _ in range(2)] == 2 * [[[8.0, 9.0]]]
