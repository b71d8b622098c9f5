import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from predictors.devices import DEVICES, get_device
from predictors.measuring import measure
from supernet.export import to_onnx

FEW = {"warmup": 1, "rounds": 4, "runs": 5, "spacing": 0.0}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    return to_onnx(network(), tmp_path_factory.mktemp("onnx") / "network.onnx", (torch.zeros(1, 3, 8, 8),), fast=True)


def made_up_input():
    """What a device feeds to a file with one input of 1, 3, 8, 8."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32))


@pytest.mark.openvino
@pytest.mark.parametrize("name, tolerance", [("openvino", 1e-5), ("openvino-bf16", 0.05)])
def test_openvino_computes_what_the_network_does_in_the_precision_asked_for(onnx_file, name, tolerance):
    if name == "openvino-bf16" and "BF16" not in openvino_capabilities():
        pytest.skip("this processor has no bfloat16")
    (output,) = get_device(name).load(onnx_file)()
    with torch.no_grad():
        expected = network()(made_up_input()).numpy()
    assert np.abs(output - expected).max() <= tolerance * np.abs(expected).max()
    assert (name == "openvino-bf16") == (np.abs(output - expected).max() > 1e-5 * np.abs(expected).max())


def openvino_capabilities():
    import openvino

    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.openvino
def test_a_float32_file_is_not_timed_as_int8(onnx_file):
    with pytest.raises(ValueError, match="measures int8, but openvino runs this in float32"):
        get_device("openvino-int8").load(onnx_file)


@pytest.mark.openvino
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_openvino_is_measured(onnx_file, engine):
    device = dataclasses.replace(DEVICES["openvino"], **FEW)
    results = dict(measure(device, {"a": onnx_file, "b": onnx_file}, ("reference", onnx_file), engine=engine))
    assert all(m.rounds == 4 and 0 < m.p10 <= m.median <= m.p90 for m in results.values())


@pytest.mark.openvino
def test_a_thread_count_that_openvino_does_not_take_is_an_error(onnx_file, monkeypatch):
    import openvino

    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core,
        "compile_model",
        lambda self, model, name, asked: compile_model(self, model, name, asked | {"INFERENCE_NUM_THREADS": 1}),
    )
    device = dataclasses.replace(DEVICES["openvino"], threads=2)
    with pytest.raises(RuntimeError, match="OpenVINO took INFERENCE_NUM_THREADS = 1"):
        device.load(onnx_file)


@pytest.mark.slow
def test_torch_compile_computes_what_the_network_does():
    module, x = network(), made_up_input()
    output = get_device("torch-compile").load((module, (x,)))()
    with torch.no_grad():
        assert torch.allclose(output, module(x), atol=1e-5)
