"""One new entry of each table, as docs/extending.md shows it, driven through the public command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ofa
from supernet.saving import save

TOYS = Path(__file__).parent.parent / "docs" / "extending"
DATA = {"class_path": "ofa.ImageData", "init_args": {"holdout": 60, "calibration": 64}}
FEW = "--latency-samples 5 --accuracy-samples 5 --finalists 1 --population 8 --generations 1 --workers 1".split()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the modules of the documentation, and an untrained supernet."""
    folder = tmp_path_factory.mktemp("extending")
    for toy in TOYS.glob("*.py"):
        shutil.copyfile(toy, folder / toy.name)
    torch.manual_seed(0)
    space = ofa.mobilenet_v3_space(depth=(1, 2), kernel_size=(3,), expand_ratio=(3, 4), resolution=(16,))
    network = ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1)
    save(network, folder / "supernet", data=DATA)
    return folder


@pytest.fixture(scope="module")
def supernet(here):
    """Runs the command in that folder, with plug-ins, and returns what it prints."""

    def run(plugins, *arguments):
        given = [part for plugin in plugins for part in ("--plugin", plugin)]
        code = "from recipes.cli import main; main()"
        path = os.pathsep.join([str(TOYS.parents[1]), os.environ.get("PYTHONPATH", "")])
        options = {"cwd": here, "capture_output": True, "text": True, "env": os.environ | {"PYTHONPATH": path}}
        done = subprocess.run([sys.executable, "-c", code, *given, *map(str, arguments)], **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def report(here, supernet):
    """The report of a network that was specialized with a runtime, a device, a constraint, a metric and a search."""
    plugins = ("my_runtime", "my_constraint", "my_metric", "my_search")
    options = "--supernet supernet --device reference --max-latency 1000 --out out --metric top3 --search hill_climbing"
    supernet(plugins, "specialize", *options.split(), "--bounds", '{"blocks": 8}', *FEW)
    return json.loads((here / "out" / "report.json").read_text())


def test_a_runtime_times_and_evaluates_the_exported_file(report):
    assert report["device"]["runtime"] == "reference" and 0 < report["latency_ms"] <= 1000
    assert report["measured_metric"]["runtime"] == "reference"


def test_a_metric_chooses_the_network_and_is_in_the_report(report):
    assert report["metric"] == "top3" and report["metrics"]["test"]["top3"] >= report["metrics"]["test"]["accuracy"]


def test_a_constraint_is_kept(report):
    assert report["bounds"]["blocks"] == 8 and report["measured"]["blocks"][0] <= 8
    assert sum(report["config"]["depth"]) <= 8


def test_a_search_finds_the_networks(here, report):
    assert report["finalists"] and (here / "out" / "subnet.onnx").is_file()


def test_a_metric_is_evaluated(supernet):
    printed = supernet(("my_metric",), "evaluate", "--subnet", "supernet", "--architecture", "smallest")
    assert "top3 0." in printed


def test_a_format_is_exported_and_checked(here, supernet):
    options = "--subnet supernet --architecture smallest --format archive --out files"
    supernet(("my_format",), "export", *options.split())
    loaded = torch.export.load(here / "files" / "archive" / "subnet.pt2").module()
    assert loaded(torch.zeros(1, 1, 16, 16)).shape == (1, 10)
    assert json.loads((here / "files" / "archive" / "metadata.json").read_text())["format"] == "archive"


def test_a_device_times_networks(supernet):
    printed = supernet(("my_device",), "measure", "--supernet", "supernet", "--device", "batches-of-8", "--samples", 5)
    assert "batches-of-8: 5 networks timed, 0 failed" in printed


def test_a_family_is_trained_and_its_networks_are_exported(here, supernet):
    recipe = {
        "run": "run",
        "data": {"class_path": "ofa.ImageData", "init_args": DATA["init_args"] | {"padding": 0}},
        "model": {
            "supernet": {
                "class_path": "my_family.Perceptron",
                "init_args": {"space": {"class_path": "my_family.perceptron_space"}},
            },
            "phases": [{"name": "all", "lr": 0.1, "epochs": 1, "subnets": 2, "sampler": "sandwich"}],
        },
    }
    (here / "perceptron.yaml").write_text(yaml.safe_dump(recipe))
    supernet((), "fit", "--config", "perceptron.yaml", "--trainer.limit_train_batches", 2)
    options = "--subnet run/supernet --architecture smallest --format onnx --out perceptron"
    supernet(("my_family",), "export", *options.split())
    assert (here / "perceptron" / "subnet.onnx").is_file()
