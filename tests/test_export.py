import json
import os

import numpy as np
import pytest
import torch
from torch import nn

import ofa
from predictors.devices import DEVICES
from supernet.atomic import write_atomically, write_folder
from supernet.export.executorch import to_executorch
from supernet.export.onnx import quantize_onnx, to_onnx
from supernet.export.openvino import quantize_openvino
from supernet.saving import load, save


@pytest.fixture
def supernet():
    space = ofa.mobilenet_v3_space(resolution=(24, 32))
    return ofa.MobileNetV3(space, num_classes=5, width_mult=0.25, in_channels=1, stem_stride=1)


def test_a_saved_network_loads_bit_equal(supernet, tmp_path):
    subnet = supernet.extract(supernet.space.smallest())
    subnet.input_spec = {"shape": [1, 28, 28], "mean": [0.5], "std": [0.2], "classes": 5}
    for name, network in (("supernet", supernet), ("subnet", subnet)):
        save(network, tmp_path / name, data={"class_path": "x"})
        again = load(tmp_path / name)
        assert again.config == network.config and again.space == network.space
        assert again.extracted == network.extracted and again.input_spec == network.input_spec
        state = again.state_dict()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_a_folder_is_only_replaced_when_told(supernet, tmp_path):
    save(supernet, tmp_path / "x")
    with pytest.raises(FileExistsError, match="already exists"):
        save(supernet, tmp_path / "x")
    save(supernet, tmp_path / "x", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_only_an_earlier_network_is_replaced(supernet, tmp_path):
    save(supernet, tmp_path / "x")
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="also holds notes.txt"):
        save(supernet, tmp_path / "x", overwrite=True)
    (tmp_path / "y").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        save(supernet, tmp_path / "y", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


@pytest.mark.parametrize(
    "change", [{"arguments": {"colour": 3}}, {"space": {}}, {"config": {"depth": 2}}, {"family": 1}]
)
def test_a_malformed_description_is_named(supernet, tmp_path, change):
    save(supernet, tmp_path / "x")
    description = tmp_path / "x" / "network.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | change))
    with pytest.raises(ValueError, match="network.json does not describe a network"):
        load(tmp_path / "x")


def test_an_input_spec_that_is_no_mapping_is_named(supernet, tmp_path):
    save(supernet, tmp_path / "x")
    description = tmp_path / "x" / "network.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"input_spec": None}))
    with pytest.raises(ValueError, match="network.json: input_spec is None"):
        load(tmp_path / "x")


def test_what_is_not_a_saved_network_is_refused(supernet, tmp_path):
    with pytest.raises(ValueError, match="does not hold a saved network"):
        load(tmp_path)
    save(supernet, tmp_path / "x")
    weights = tmp_path / "x" / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as this network's weights"):
        load(tmp_path / "x")
    description = tmp_path / "x" / "network.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"family": "os.system"}))
    with pytest.raises(ValueError, match="no imported family is named 'os.system'"):
        load(tmp_path / "x")
    description.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "x")


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def full_disk(temporary):
        temporary.write_text("ne")
        raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, full_disk)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_replacement_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    write_folder(tmp_path / "x", lambda folder: (folder / "a").write_text("old"), ["a"])
    replace = os.replace

    def interrupted(source, target):
        if target == tmp_path / "x" and (source / "a").read_text() == "new":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "x", lambda folder: (folder / "a").write_text("new"), ["a"], overwrite=True)
    assert (tmp_path / "x" / "a").read_text() == "old"


def test_a_link_is_not_taken_for_a_folder(supernet, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="is a link"):
        save(supernet, tmp_path / "link", overwrite=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_saved_network_keeps_its_dtype(supernet, tmp_path, dtype):
    save(supernet.extract().to(dtype), tmp_path / "x")
    assert load(tmp_path / "x").classifier.weight.dtype == dtype


class Counting(torch.nn.Module):
    """Computes something else at every call, which no file can."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("fast", [True, False])
def test_an_onnx_file_that_differs_from_the_model_is_not_kept(tmp_path, fast):
    with pytest.raises(RuntimeError, match="differs from the model"):
        to_onnx(Counting(), tmp_path / "x.onnx", (torch.randn(1, 4),), fast=fast)
    assert not list(tmp_path.iterdir())


def test_half_precision_is_refused_before_the_file_is_made(tmp_path):
    with pytest.raises(ValueError, match="weight is torch.bfloat16"):
        to_onnx(torch.nn.Linear(4, 2).bfloat16(), tmp_path / "x.onnx", (torch.randn(1, 4).bfloat16(),))
    assert not list(tmp_path.iterdir())


def test_a_model_whose_outputs_are_zero_can_be_written(tmp_path):
    layer = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    assert to_onnx(layer, tmp_path / "x.onnx", (torch.randn(1, 4),), fast=True).is_file()


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    return to_onnx(network, tmp_path_factory.mktemp("float") / "float.onnx", (torch.zeros(1, 3, 8, 8),), fast=True)


def batches(n, seed=0):
    rng = np.random.default_rng(seed)
    return [{"input": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(n)]


def test_a_quantized_file_runs_in_int8_and_computes_nearly_the_same(float_file, tmp_path):
    path = quantize_onnx(float_file, tmp_path / "int8.onnx", batches(32))
    (exact,), (rough,) = DEVICES["onnxruntime"].load(float_file)(), DEVICES["onnxruntime-int8"].load(path)()
    difference = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 0 < difference < 0.05


def test_quantizing_without_inputs_leaves_no_file(float_file, tmp_path):
    with pytest.raises(ValueError, match="at least one batch"):
        quantize_onnx(float_file, tmp_path / "int8.onnx", [])
    assert list(tmp_path.iterdir()) == []


def test_exporters_of_extras_that_are_not_installed_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("supernet.export.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"executorch is not installed: pip install 'supernet\[executorch\]'"):
        to_executorch(torch.nn.Linear(4, 2), tmp_path / "x.pte", (torch.randn(1, 4),))
    with pytest.raises(ImportError, match=r"pip install 'supernet\[openvino\]'"):
        quantize_openvino(tmp_path / "x.onnx", tmp_path / "x.xml", [])
