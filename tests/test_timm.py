"""A subnet as a native timm MobileNetV3, in memory and as a folder."""

import errno
import itertools
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models.mobilenetv3 import MobileNetV3 as TimmMobileNetV3
from torch import nn

import ofa
import ofa.timm
from ofa.timm import from_timm, save_timm, to_timm

REBUILD = """
import json, pathlib, runpy, sys
import torch
from safetensors.torch import load_file

torch.set_num_threads(1)
differences = {}
for folder in map(pathlib.Path, sys.argv[1:]):
    model = runpy.run_path(str(folder / "build.py"))["build"](folder)
    example = load_file(folder.with_suffix(".example"))
    with torch.no_grad():
        difference = (model(example["images"]) - example["logits"]).abs().max() / example["logits"].abs().max()
    differences[folder.name] = difference.item()
print(json.dumps({"differences": differences, "modules": list(sys.modules), "class": type(model).__module__}))
"""


def random_subnet(seed: int = 0, **arguments) -> ofa.MobileNetV3:
    """A random subnet with random BatchNorm statistics and weights."""
    space = ofa.mobilenet_v3_space(depth=(1, 2, 3), expand_ratio=(1.5, 3, 4, 6), resolution=(32, 40))
    arguments = {"num_classes": 10, "width_mult": 0.35} | arguments
    config = space.decode(space.sample(1, np.random.default_rng(seed)))[0]
    torch.manual_seed(seed)
    subnet = ofa.MobileNetV3(space, **arguments).extract(config)
    with torch.no_grad():
        for module in subnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.running_mean, module.bias):
                    tensor.normal_(0, 0.3)
                for tensor in (module.running_var, module.weight):
                    tensor.uniform_(0.5, 2)
    return subnet.eval()


def images_for(subnet: ofa.MobileNetV3, batch: int = 2) -> torch.Tensor:
    size = subnet.config.resolution
    return torch.randn(batch, subnet.arguments["in_channels"], size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(model: nn.Module, subnet: ofa.MobileNetV3) -> float:
    expected = subnet(images_for(subnet))
    return ((model(images_for(subnet)) - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a process with only timm and torch makes of random exports of both stem strides and channel counts."""
    home, folders = tmp_path_factory.mktemp("exports"), []
    for seed, (stem_stride, in_channels) in enumerate(itertools.product((1, 2), (1, 3))):
        subnet = random_subnet(seed, stem_stride=stem_stride, in_channels=in_channels)
        folder = save_timm(subnet, home / f"stride_{stem_stride}_channels_{in_channels}")
        with torch.no_grad():
            example = {"images": images_for(subnet), "logits": subnet(images_for(subnet))}
        save_file(example, folder.with_suffix(".example"))
        folders.append(str(folder))
    # -I: no current folder, no user site and no PYTHON* variable can add a package to what is installed.
    command = [sys.executable, "-I", "-c", REBUILD, *folders]
    return json.loads(subprocess.run(command, cwd="/", check=True, capture_output=True, text=True).stdout)


def test_rebuilt_network_equals_the_subnet(rebuilt: dict) -> None:
    assert len(rebuilt["differences"]) == 4
    assert max(rebuilt["differences"].values()) <= 1e-6, rebuilt["differences"]


def test_rebuilding_imports_none_of_our_packages(rebuilt: dict) -> None:
    assert not {"ofa", "supernet", "hat", "predictors", "recipes"} & {m.split(".")[0] for m in rebuilt["modules"]}


def test_rebuilt_network_is_of_timms_class(rebuilt: dict) -> None:
    assert rebuilt["class"] == "timm.models.mobilenetv3"


def test_build_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = save_timm(random_subnet(num_classes=7), tmp_path / "export")
    runpy.run_path(str(folder / "build.py"), run_name="__main__")
    assert "logits (1, 7)" in capsys.readouterr().out


@pytest.mark.parametrize("width_mult", [0.05, 0.75, 1.0, 1.2])
def test_timm_network_equals_the_subnet(width_mult: float) -> None:
    subnet = random_subnet(seed=int(width_mult * 100), width_mult=width_mult)
    model = to_timm(subnet)
    assert type(model) is TimmMobileNetV3
    assert difference(model, subnet) <= 1e-6


def test_timm_network_equals_the_subnet_in_train_mode() -> None:
    subnet = random_subnet(dropout=0.5).train()
    model = to_timm(subnet)
    outputs = []
    for network in (subnet, model):
        torch.manual_seed(0)
        outputs.append(network(images_for(subnet)))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(subnet.buffers(), model.buffers(), strict=True))


def test_state_dict_is_timms() -> None:
    subnet = random_subnet()
    ours, theirs = subnet.state_dict(), to_timm(subnet).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_timm_network_shares_no_storage() -> None:
    subnet = random_subnet()
    pointers = {tensor.data_ptr() for tensor in subnet.state_dict().values()}
    assert not pointers & {tensor.data_ptr() for tensor in to_timm(subnet).state_dict().values()}


def test_feature_reductions_are_those_of_the_strides() -> None:
    for stem_stride in (1, 2):
        subnet = random_subnet(stem_stride=stem_stride)
        model = to_timm(subnet)
        images = torch.zeros(1, 3, 64, 64)
        with torch.no_grad():
            _, features = model.eval().forward_intermediates(images)
        assert [64 // f.shape[-1] for f in features] == [info["reduction"] for info in model.feature_info]


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    subnet = random_subnet(in_channels=1, dropout=0.2)
    subnet.input_spec = {"shape": [1, 32, 32], "mean": [0.25], "std": [0.5], "classes": 10}
    again = from_timm(save_timm(subnet, tmp_path / "export"))
    assert (again.config, again.arguments, again.space) == (subnet.config, subnet.arguments, subnet.space)
    assert again.input_spec == subnet.input_spec and again.extracted
    ours, theirs = subnet.state_dict(), again.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert difference(again, subnet) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_round_trip_keeps_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    subnet = random_subnet().to(dtype)
    again = from_timm(save_timm(subnet, tmp_path / "export"))
    assert again.classifier.weight.dtype == dtype and torch.equal(again.classifier.weight, subnet.classifier.weight)


def test_saving_leaves_mode_and_memory_format(tmp_path: Path) -> None:
    subnet = random_subnet().to(memory_format=torch.channels_last).train()
    save_timm(subnet, tmp_path / "export")
    assert all(module.training for module in subnet.modules())
    assert subnet.blocks[1][0].conv_dw.weight.is_contiguous(memory_format=torch.channels_last)


def test_input_is_described(tmp_path: Path) -> None:
    subnet = random_subnet(in_channels=1)
    subnet.input_spec = {"mean": [0.25], "std": [0.5]}
    arch = json.loads((save_timm(subnet, tmp_path / "export") / "arch.json").read_text())
    size = subnet.config.resolution
    assert arch["input"] == {"input_size": [1, size, size], "mean": [0.25], "std": [0.5], "num_classes": 10}


# ---- bad input


@pytest.mark.parametrize("function", [to_timm, lambda supernet: save_timm(supernet, "never")])
def test_supernet_is_refused(function) -> None:
    with pytest.raises(ValueError, match="extract"):
        function(ofa.MobileNetV3(width_mult=0.35))


def test_other_module_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear"):
        to_timm(nn.Linear(2, 2))


def test_existing_folder_is_refused_unless_overwritten(tmp_path: Path) -> None:
    first, second = random_subnet(0), random_subnet(1)
    folder = save_timm(first, tmp_path / "export")
    with pytest.raises(FileExistsError, match="overwrite"):
        save_timm(second, folder)
    assert from_timm(folder).config == first.config
    save_timm(second, folder, overwrite=True)
    assert from_timm(folder).config == second.config
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_overwriting_spares_other_files(tmp_path: Path) -> None:
    (tmp_path / "photographs").touch()
    with pytest.raises(FileExistsError, match="photographs"):
        save_timm(random_subnet(), tmp_path, overwrite=True)


def test_failed_check_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ofa.timm, "TOLERANCE", -1)
    with pytest.raises(RuntimeError, match="differs"):
        save_timm(random_subnet(), tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_nan_fails_the_check(tmp_path: Path) -> None:
    subnet = random_subnet()
    subnet.classifier.bias.data[0] = float("nan")
    with pytest.raises(RuntimeError, match="nan"):
        save_timm(subnet, tmp_path / "export")


def test_full_disk_leaves_the_old_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    subnet = random_subnet(0)
    folder = save_timm(subnet, tmp_path / "export")
    monkeypatch.setattr(ofa.timm, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_timm(random_subnet(1), folder, overwrite=True)
    assert from_timm(folder).config == subnet.config
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def spoil_truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def spoil_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_json(folder: Path) -> None:
    (folder / "arch.json").write_text((folder / "arch.json").read_text()[:-100])


def spoil_foreign(folder: Path) -> None:
    (folder / "arch.json").write_text('{"architecture": "mobilenetv3_large_100"}')


def spoil_list(folder: Path) -> None:
    (folder / "arch.json").write_text("[]")


def spoil_config(folder: Path) -> None:
    arch = json.loads((folder / "arch.json").read_text())
    arch["subnet"]["config"]["resolution"] = 33
    (folder / "arch.json").write_text(json.dumps(arch))


def spoil_blocks(folder: Path) -> None:
    arch = json.loads((folder / "arch.json").read_text())
    arch["arch_def"][1].append(arch["arch_def"][1][0])
    (folder / "arch.json").write_text(json.dumps(arch))


def spoil_weights(folder: Path) -> None:
    save_file({"conv_stem.weight": torch.zeros(8, 3, 3, 3)}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_timm(random_subnet(), tmp_path_factory.mktemp("whole") / "export")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_truncated, "incomplete"),
        (spoil_missing, "model.safetensors"),
        (spoil_json, "JSON"),
        (spoil_foreign, "supernet-timm-1"),
        (spoil_list, "supernet-timm-1"),
        (spoil_config, "resolution = 33"),
        (spoil_blocks, "arch.json"),
        (spoil_weights, "Missing key"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_spoilt_folder_is_refused(export: Path, tmp_path: Path, spoil, reason: str) -> None:
    folder = shutil.copytree(export, tmp_path / "export")
    spoil(folder)
    with pytest.raises(ValueError, match="save_timm") as error:
        from_timm(folder)
    assert reason in str(error.value)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_timm"):
        from_timm(tmp_path / "nothing")
