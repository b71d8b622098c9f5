"""Formats of export: what is refused before the work, what the files are, and what lies beside them."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import hat
import ofa
from predictors.devices import DEVICES
from recipes.cli import main
from recipes.export import export
from recipes.lab.files import write_device_card
from supernet.export import Request, known_formats
from supernet.export.folder import write_export
from supernet.metadata import Measured
from supernet.saving import save

SPEC = {"shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3, "classes": 3, "class_names": ["ant", "bee", "äsp"]}


def subnet():
    space = ofa.mobilenet_v3_space(depth=[1], kernel_size=[3], expand_ratio=[3], resolution=[24])
    torch.manual_seed(0)
    network = ofa.MobileNetV3(space, num_classes=3, width_mult=0.2, stem_stride=1).extract().eval()
    network.input_spec = dict(SPEC)
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(subnet(), tmp_path_factory.mktemp("saved") / "subnet")


def images(batch=1, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, 24, 24)).astype(np.float32)


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onx"}, "format: 'onx' is not one of onnx, onnx-int8, openvino"),
        ({"format": "onnx,timm", "opset": 17}, "opset = 17: timm has no opset"),
        ({"format": "openvino", "opset": 17}, "openvino has no opset"),
        ({"format": "timm", "batch": 8}, "batch = 8: not for timm, as it takes any batch size"),
        ({"format": "executorch", "batch": "dynamic"}, "not for executorch, as its files are for one batch size"),
        ({"batch": 0}, "batch = 0: a number of at least 1, or dynamic"),
        ({"batch": "many"}, "batch = many: a number of at least 1, or dynamic"),
        ({"opset": 16}, "opset = 16: at least 17"),
        ({"opset": 99}, "opset = 99: at least 17, at most"),
        ({"format": "huggingface"}, "huggingface is for Transformer, and .* is a MobileNetV3"),
        ({"format": "onnx-int8"}, "does not say its data: give --data"),
    ],
)
def test_what_no_file_can_be_is_refused_before_the_work(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(str(folder), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/out cannot be written"):
        export(str(tmp_path / "no subnet"), str(tmp_path / "file" / "out"))


def test_help_and_errors_list_the_table(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in known_formats()) and "timm" in known_formats()


def test_a_readme_of_the_users_own_is_not_replaced(folder, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="README.md"):
            export(str(folder), str(tmp_path), overwrite=overwrite)
    assert (tmp_path / "README.md").read_text() == "mine"


# ---- what is written


@pytest.mark.parametrize(("opset", "batch"), [(17, 1), (17, 3), (17, "dynamic"), (18, "dynamic")])
def test_an_onnx_file_has_the_batch_and_the_operators_that_were_asked_for(folder, tmp_path, opset, batch):
    path = export(str(folder), str(tmp_path / "out"), batch=batch, opset=opset)["onnx"]
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)] and model.ir_version == 8
    for size in (1, 2, 5) if batch == "dynamic" else (batch,):
        (found,) = session(path).run(None, {"x": images(size)})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), subnet()(torch.from_numpy(images(size))))
    metadata = json.loads((path.parent / "metadata.json").read_text())
    sizes = {1: 1, 3: 3, "dynamic": "batch"}
    assert metadata["inputs"]["subnet.onnx"]["x"] == {"shape": [sizes[batch], 3, 24, 24], "dtype": "float32"}
    assert (metadata["batch"], metadata["opset"]) == (batch, opset)


@pytest.mark.parametrize("opset", [17, 20])
def test_axes_of_any_size_have_the_names_that_the_metadata_states(folder, tmp_path, opset):
    path = export(str(folder), str(tmp_path), batch="dynamic", opset=opset)["onnx"]
    stated = json.loads((tmp_path / "metadata.json").read_text())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for tensors, kind in ((session.get_inputs(), "inputs"), (session.get_outputs(), "outputs")):
        assert [x.shape for x in tensors] == [x["shape"] for x in stated[kind][path.name].values()]


def test_int8_files_calibrate_on_the_networks_data(tmp_path):
    space = ofa.mobilenet_v3_space(depth=[1], kernel_size=[3], expand_ratio=[3], resolution=[8])
    network = ofa.MobileNetV3(space, num_classes=10, in_channels=1, width_mult=0.2, stem_stride=1).extract().eval()
    data = ofa.ImageData("digits", holdout=60, calibration=32)
    network.input_spec = dict(data.input_spec)
    section = {"class_path": "ofa.ImageData", "init_args": {"holdout": 60, "calibration": 32}}
    save(network, tmp_path / "subnet", data=section)
    path = export(str(tmp_path / "subnet"), str(tmp_path / "out"), format="onnx-int8", batch="dynamic", opset=17)
    folder = path["onnx-int8"]
    operators = {node.op_type for node in onnx.load(folder / "subnet.onnx").graph.node}
    assert "QuantizeLinear" in operators
    (found,) = session(folder / "subnet.onnx").run(None, {"x": images(4)[:, :1, :8, :8]})
    assert found.shape == (4, 10)
    assert json.loads((folder / "metadata.json").read_text())["precision"] == "int8"


def test_a_network_in_train_mode_is_exported_in_eval_mode(tmp_path):
    network = subnet().train()
    path = write_export(network, "onnx", tmp_path, Request(opset=17))
    (found,) = session(path).run(None, {"x": images()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), subnet()(torch.from_numpy(images())))
    assert all(module.training for module in network.modules())


def test_an_onnx_file_carries_its_metadata(folder, tmp_path):
    path = export(str(folder), str(tmp_path), opset=17)["onnx"]
    metadata = json.loads((tmp_path / "metadata.json").read_text(encoding="utf-8"))
    properties = session(path).get_modelmeta().custom_metadata_map
    assert {name: properties[name] if isinstance(x, str) else json.loads(properties[name]) for name, x in
            metadata.items()} == metadata  # fmt: skip
    assert metadata["class_names"] == SPEC["class_names"] and metadata["num_classes"] == 3
    preprocessing = metadata["preprocessing"]
    assert preprocessing["color_order"] == "RGB" and preprocessing["value_range"] == [0.0, 1.0]
    assert preprocessing["image_size"] == [32, 32] and preprocessing["resolution"] == [24, 24]
    assert preprocessing["mean"] == [0.5] * 3 and preprocessing["fit"] is None  # not recorded
    assert metadata["metric"] is None and metadata["latency"] is None
    assert {"supernet", "torch", "onnx", "onnxscript"} <= metadata["versions"].keys()
    assert "No metric was measured" in (tmp_path / "README.md").read_text()


def test_a_file_of_the_users_is_not_replaced(tmp_path):
    (tmp_path / "subnet.onnx").touch()
    with pytest.raises(FileExistsError, match="subnet.onnx already exists"):
        write_export(subnet(), "onnx", tmp_path, Request(opset=17))


def test_a_second_export_replaces_the_first_only_when_asked(folder, tmp_path):
    export(str(folder), str(tmp_path), opset=17)
    with pytest.raises(FileExistsError, match="already exists"):
        export(str(folder), str(tmp_path), opset=17)
    export(str(folder), str(tmp_path), opset=17, batch=2, overwrite=True)
    assert json.loads((tmp_path / "metadata.json").read_text())["batch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "metadata.json", "subnet.onnx"]


@pytest.mark.extras
@pytest.mark.parametrize("name", ["openvino", "openvino-int8", "executorch", "executorch-int8", "onnx-int8"])
@pytest.mark.parametrize("batch", [2, "dynamic"])
def test_every_format_writes_a_folder_that_says_its_use(tmp_path, name, batch):
    if batch == "dynamic" and "dynamic" not in known_formats()[name].batches:
        return
    seen = {"subnet": [{"x": images(2, seed)} for seed in range(4)]}
    target = write_export(subnet(), name, tmp_path, Request(batch, None, seen))
    metadata = json.loads((target / "metadata.json").read_text())
    assert (metadata["format"], metadata["batch"]) == (name, batch)
    assert all((target / file).is_file() for file in metadata["files"])
    assert metadata["class_names"] == SPEC["class_names"] and (target / "README.md").is_file()


@pytest.mark.extras
@pytest.mark.parametrize("name", ["openvino", pytest.param("executorch", marks=pytest.mark.slow)])
def test_translation_networks_are_written_in_every_format(tmp_path, name):
    space = hat.transformer_space(
        embed_dim=(32,), ffn_embed_dim=(64,), heads=(2,), encoder_layer_num=(2,), decoder_layer_num=(1,),
        arbitrary_ende_attn=(-1,),
    )  # fmt: skip
    network = hat.Transformer(space, vocab_size=60, qkv_dim=32, max_positions=50).extract().eval()
    target = write_export(network, name, tmp_path, Request(1))
    assert {"encoder", "decoder", "run", "translate"} <= {path.stem for path in target.iterdir()}


# ---- the folders of specialize


@pytest.mark.parametrize(
    ("device", "files", "runs"),
    [
        ("onnxruntime", ["subnet.onnx"], "onnxruntime.InferenceSession"),
        ("onnxruntime-int8", ["subnet.onnx"], "onnxruntime.InferenceSession"),
        ("openvino", ["subnet.onnx"], "openvino.compile_model"),
        ("openvino-int8", ["subnet.xml", "subnet.bin"], "openvino.compile_model"),
        ("executorch", ["subnet.pte"], "Runtime.get().load_program"),
        ("torch", [], "load(folder)"),
    ],
)
def test_the_files_of_a_device_say_how_it_runs_them(tmp_path, device, files, runs):
    device = DEVICES[device]
    for file in files:
        (tmp_path / file).touch()
        if file.endswith(".onnx"):
            onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), tmp_path / file)
    write_device_card(subnet(), device, tmp_path, Measured(), "best")
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert (metadata["runtime"], metadata["precision"]) == (device.runtime, device.precision)
    assert metadata["files"] == (files[:1] or ["network.safetensors"])
    text = (tmp_path / "README.md").read_text()
    assert runs in text and 'folder = Path("best")' in text
