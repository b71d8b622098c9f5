import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import hat
from hat.layers import PAD
from predictors.devices import DEVICES, get_device
from predictors.timing import time_networks
from recipes.lab.files import write_network_files
from supernet.export.executorch import part_to_executorch, to_executorch
from supernet.export.onnx import to_onnx
from supernet.export.openvino import quantize_openvino
from supernet.model import Part

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


@pytest.mark.extras
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


@pytest.mark.extras
def test_a_float32_file_is_not_timed_as_int8(onnx_file):
    with pytest.raises(ValueError, match="measures int8, but openvino runs this in float32"):
        get_device("openvino-int8").load(onnx_file)


def calibration(n=8):
    rng = np.random.default_rng(1)
    return [{"input": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(n)]


@pytest.mark.extras
def test_a_file_that_nncf_quantized_runs_in_int8_and_computes_nearly_the_same(onnx_file, tmp_path):
    path = quantize_openvino(onnx_file, tmp_path / "int8.xml", calibration())
    assert {file.name for file in tmp_path.iterdir()} == {"int8.xml", "int8.bin"}
    (exact,), (rough,) = get_device("openvino").load(onnx_file)(), get_device("openvino-int8").load(path)()
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


@pytest.fixture(scope="module")
def executorch_files(tmp_path_factory):
    """A network as ExecuTorch files, float32 and int8."""
    folder = tmp_path_factory.mktemp("executorch")
    return {
        "executorch": to_executorch(network(), folder / "float32.pte", (torch.zeros(1, 3, 8, 8),)),
        "executorch-int8": to_executorch(network(), folder / "int8.pte", (torch.zeros(1, 3, 8, 8),), calibration()),
    }


@pytest.mark.extras
@pytest.mark.parametrize("name, tolerance", [("executorch", 1e-5), ("executorch-int8", 0.1)])
def test_executorch_computes_what_the_network_does_in_the_precision_asked_for(executorch_files, name, tolerance):
    (output,) = get_device(name).load(executorch_files[name])()
    with torch.no_grad():
        expected = network()(made_up_input()).numpy()
    assert np.abs(output - expected).max() <= tolerance * np.abs(expected).max()
    assert (name == "executorch-int8") == (np.abs(output - expected).max() > 1e-5 * np.abs(expected).max())


@pytest.mark.extras
def test_executorch_reads_the_precision_back(executorch_files):
    with pytest.raises(ValueError, match="measures int8, but executorch runs this in float32"):
        get_device("executorch-int8").load(executorch_files["executorch"])
    with pytest.raises(ValueError, match="measures float32, but executorch runs this in int8"):
        get_device("executorch").load(executorch_files["executorch-int8"])


@pytest.mark.extras
def test_an_executorch_file_knows_its_inputs_and_takes_their_batches_apart(executorch_files):
    run = get_device("executorch").open(executorch_files["executorch"])
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = network()(x).numpy()
    assert np.allclose(run("float32", {"input": x.numpy()})["output"], expected, atol=1e-5)


@pytest.mark.extras
def test_executorch_takes_the_threads_of_the_device(executorch_files):
    from predictors.runtimes.executorch import import_executorch

    for threads in (2, 1):
        dataclasses.replace(DEVICES["executorch"], threads=threads).load(executorch_files["executorch"])
        assert import_executorch()._threadpool_get_thread_count() == threads


@pytest.mark.extras
@pytest.mark.parametrize(
    "name, tolerance",
    [
        pytest.param("executorch", 1e-5, marks=pytest.mark.slow),
        ("executorch-int8", 0.1),
        ("openvino", 1e-5),
        ("openvino-int8", 0.3),
    ],
)
def test_translation_files_compute_what_the_network_does_and_run_as_they_are_timed(tmp_path, name, tolerance):
    torch.manual_seed(0)
    space = hat.transformer_space(
        embed_dim=[24, 32],
        ffn_embed_dim=[32],
        heads=[4],
        encoder_layer_num=[2],
        decoder_layer_num=[2],
        arbitrary_ende_attn=[-1, 1],
        conv_kernel_size=[3],
    )
    supernet = hat.Transformer(space, vocab_size=40, head_dim=8, max_positions=40)
    network = supernet.extract(space.config(decoder_embed_dim=24)).eval()
    source, previous = torch.randint(4, 40, (3, 20)), torch.randint(4, 40, (3, 20))
    source[0, 5:] = PAD
    write_network_files(network, get_device(name), tmp_path, calibration=[(source, previous)])
    logits = network.run_parts(get_device(name).open(tmp_path), (source, previous))
    with torch.no_grad():
        expected = network(source, previous)
    difference = (logits - expected).abs().max() / expected.abs().max()
    assert difference <= tolerance and ("int8" in name) == (difference > 1e-5)
    get_device(name).load(tmp_path)()  # as it is timed, from empty caches on


@pytest.mark.extras
def test_an_executorch_file_of_axes_without_a_largest_size_is_refused(tmp_path):
    part = Part(nn.Linear(4, 2), (torch.randn(2, 3, 4),), ("input",), dynamic={"input": {0: "batch", 1: "length"}})
    with pytest.raises(ValueError, match=r"how large may the axes \['batch', 'length'\] be"):
        part_to_executorch(part, tmp_path / "x.pte")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extras
def test_executorch_is_measured(executorch_files):
    device, path = dataclasses.replace(DEVICES["executorch"], **FEW), executorch_files["executorch"]
    results = dict(time_networks(device, {"a": path}, ("reference", path), engine="process"))
    assert all(m.rounds == 4 and 0 < m.p10 <= m.median <= m.p90 for m in results.values())


@pytest.mark.extras
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_openvino_is_measured(onnx_file, engine):
    device = dataclasses.replace(DEVICES["openvino"], **FEW)
    results = dict(time_networks(device, {"a": onnx_file, "b": onnx_file}, ("reference", onnx_file), engine=engine))
    assert all(m.rounds == 4 and 0 < m.p10 <= m.median <= m.p90 for m in results.values())


@pytest.mark.extras
def test_a_thread_count_that_openvino_does_not_take_is_an_error(onnx_file, monkeypatch):
    import openvino

    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core,
        "compile_model",
        lambda self, model, name, asked: compile_model(self, model, name, asked | {"INFERENCE_NUM_THREADS": 1}),
    )
    device = dataclasses.replace(DEVICES["openvino"], threads=2)
    with pytest.raises(RuntimeError, match="OpenVINO set INFERENCE_NUM_THREADS to 1"):
        device.load(onnx_file)


@pytest.mark.slow
def test_torch_compile_computes_what_the_network_does():
    module, x = network(), made_up_input()
    output = get_device("torch-compile").load((module, (x,)))()
    with torch.no_grad():
        assert torch.allclose(output, module(x), atol=1e-5)
