"""A translation in steps: the exported parts, run as their plan says, are the network."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import hat
from hat.layers import EOS
from predictors.devices import DEVICES
from supernet.export.onnx import write_onnx
from supernet.export.parts import PLAN

SPACE = dict(embed_dim=(32, 48), ffn_embed_dim=(32, 64), heads=(2, 4), encoder_layer_num=(3,), decoder_layer_num=(1, 2))
KINDS = {
    "reshaped": ({}, dict(qkv_dim=64)),
    "nested": (dict(relu_power=(1, 2), conv_kernel_size=(1, 3)), dict(head_dim=16, normalize_before=True)),
}


@pytest.fixture(params=KINDS)
def subnet(request):
    torch.manual_seed(0)
    space, arguments = KINDS[request.param]
    supernet = hat.Transformer(hat.transformer_space(**SPACE, **space), vocab_size=60, **arguments).eval()
    subnet = supernet.extract(supernet.space.decode(supernet.space.sample(1, np.random.default_rng(3)))[0])
    subnet.input_spec = {"source_length": 7, "target_length": 6, "beam": 3}
    return subnet


@torch.inference_mode()
def test_what_is_timed_is_the_last_step_of_the_whole(subnet):
    timed, (source,) = subnet.inference()
    assert source.shape == (1, 7)
    whole = subnet(source, torch.full((1, 6), EOS))[:, -1]
    assert timed(source).shape == (3, 60)
    assert torch.allclose(timed(source), whole.expand(3, -1), atol=1e-5)


def test_the_files_compute_what_is_timed(subnet, tmp_path):
    folder = write_onnx(subnet, tmp_path, fast=True)
    assert {path.name for path in folder.iterdir()} == {"encoder.onnx", "decoder.onnx", PLAN}
    logits, *_ = DEVICES["onnxruntime"].load(folder)()
    timed, (source,) = subnet.inference()
    with torch.inference_mode():
        assert np.allclose(logits, timed(torch.full_like(source, EOS)).numpy(), atol=1e-5)


def test_the_files_take_any_batch_and_any_length(subnet, tmp_path):
    import onnxruntime

    folder = write_onnx(subnet, tmp_path)
    encoder, decoder = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder"))
    source = torch.randint(4, 60, (4, 13))
    source[1, :5] = 1
    feed = dict(zip([x.name for x in encoder.get_outputs()], encoder.run(None, {"source": source.numpy()})))
    start = json.loads((folder / PLAN).read_text())["start"]
    feed |= {name: np.zeros((4, *shape[1:]), np.float32) for name, shape in start.items() if name != "previous"}
    previous = torch.randint(4, 60, (4, 9))
    made = []
    for token in previous.T:
        outputs = dict(
            zip([x.name for x in decoder.get_outputs()], decoder.run(None, feed | {"previous": token[:, None].numpy()}))
        )
        made.append(outputs["logits"])
        feed |= {name.removeprefix("new_"): x for name, x in outputs.items() if name != "logits"}
    with torch.inference_mode():
        assert np.allclose(np.stack(made, axis=1), subnet(source, previous).numpy(), atol=1e-4)


def test_the_files_run_as_many_sentences_as_the_device_times(subnet, tmp_path):
    folder = write_onnx(subnet, tmp_path, fast=True, batch=2)
    logits, *_ = dataclasses.replace(DEVICES["onnxruntime"], batch=2).load(folder)()
    timed, (source,) = subnet.inference(2)
    with torch.inference_mode():
        expected = timed(torch.full_like(source, EOS))
    assert logits.shape == expected.shape == (6, 60) and np.allclose(logits, expected.numpy(), atol=1e-5)


def test_a_plan_for_another_batch_is_refused(subnet, tmp_path):
    folder = write_onnx(subnet, tmp_path, fast=True)
    with pytest.raises(ValueError, match="batch 2 is timed, but"):
        dataclasses.replace(DEVICES["onnxruntime"], batch=2).load(folder)
