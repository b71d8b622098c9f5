"""A subnet as a native timm `MobileNetV3`, in memory or as a folder that needs only timm, and back."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import runpy
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg, is_model, mobilenetv3, register_model
from torch import nn

from ofa.blocks import middle_width
from ofa.mobilenet_v3 import FINAL, FIRST, LAST, STAGES, STEM, MobileNetV3, scaled
from ofa.preprocessing import Preprocessing, fit_code, open_code
from supernet.atomic import write_folder
from supernet.export import Request
from supernet.metadata import CARD_FILES, Exported, Measured, import_lines, write_card
from supernet.saving import build as network_from
from supernet.saving import describe

FORMAT = "supernet-timm-1"
FILES = ("arch.json", "config.json", "build.py", "model.safetensors", *CARD_FILES)
NOTES = """timm has no architecture of its own for this network: `build.py` registers one when it is imported. After
that `create_model` takes `features_only=True`, `num_classes` and `in_chans` as for timm's own models, and the network
has `forward_intermediates` and `reset_classifier`. `build.build(folder)` makes it without `create_model`."""
TOLERANCE = 1e-6  # largest difference over largest output


def to_timm(subnet: MobileNetV3) -> mobilenetv3.MobileNetV3:
    """A timm MobileNetV3 that computes what `subnet` computes, with its weights (copied), mode, device and dtype.

    Raises TypeError for another family, ValueError for a supernet that was not extracted.
    """
    weights = subnet.state_dict()
    model = network(architecture(subnet)).to(subnet.conv_stem.weight.device, subnet.conv_stem.weight.dtype)
    model.load_state_dict(weights)
    return model.train(subnet.training)


def save_timm(
    subnet: MobileNetV3, folder: str | Path, overwrite: bool = False, measured: Measured | None = None
) -> Path:
    """Write `model.safetensors`, `arch.json` and `build.py`, which makes the network again with only timm.

    `config.json` is timm's: once build.py is imported, `timm.create_model("local-dir:FOLDER", pretrained=True)` makes
    the network, too. README.md and metadata.json say how it is used, and what was `measured` of it.

    The folder appears whole and checked, or not at all: what its build.py makes may differ from `subnet` by at most
    1e-6 of the largest output on random images in eval mode, else RuntimeError. An existing folder raises
    FileExistsError, unless `overwrite` is set and it holds nothing but such an export. Returns `folder`.
    """
    arch, folder = architecture(subnet), Path(folder)

    def write(temporary: Path) -> None:
        weights = {name: tensor.cpu().contiguous() for name, tensor in subnet.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")
        (temporary / "arch.json").write_text(json.dumps(arch, indent=1) + "\n")
        (temporary / "config.json").write_text(json.dumps(hub_config(arch), indent=1) + "\n")
        (temporary / "build.py").write_text(build_script())
        model = runpy.run_path(str(temporary / "build.py"))["build"](temporary)
        check(subnet, model)
        use = dataclasses.replace(subnet.use(), snippet=lambda _: snippet(subnet), notes=NOTES)
        write_card(
            temporary,
            subnet,
            exported_as(arch, subnet.conv_stem.weight.dtype),
            measured or Measured(),
            folder.name,
            use,
        )

    write_folder(folder, write, FILES, overwrite)
    return folder


def export_timm(subnet: MobileNetV3, folder: Path, request: Request) -> Path:
    """`save_timm` as an entry of the table of formats."""
    return save_timm(subnet, folder, request.overwrite, request.measured)


def hub_config(arch: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json, as timm writes it for the Hugging Face Hub."""
    return {
        "architecture": supernet_mobilenet_v3.__name__,
        "num_classes": arch["kwargs"]["num_classes"],
        "num_features": arch["kwargs"]["num_features"],
        "model_args": {"arch_def": arch["arch_def"], "stem_stride": arch["stem_stride"], **arch["kwargs"]},
        "pretrained_cfg": arch["pretrained_cfg"],
    }


def exported_as(arch: dict[str, Any], dtype: torch.dtype) -> Exported:
    """The description of the folder's network."""
    precision = str(dtype).removeprefix("torch.")
    classes = arch["kwargs"]["num_classes"]
    return Exported(
        format="timm",
        runtime="timm",
        precision=precision,
        files=("model.safetensors",),
        inputs={"model.safetensors": {"x": {"shape": ["batch", *arch["input"]["input_size"]], "dtype": precision}}},
        outputs={"model.safetensors": {"output": {"shape": ["batch", classes], "dtype": precision}}},
        programs=("timm", "safetensors"),
    )


def snippet(subnet: MobileNetV3) -> str:
    """The Python code of README.md."""
    p = preprocessing_of(subnet)
    imports = ["import sys", "import timm", "import torch", "import numpy as np", "from PIL import Image, ImageOps"]
    config, image, resized, padded = "timm.data.resolve_model_data_config(model)", "open_image(path)", "", ""
    if p.resolution != p.image_size:
        size = [3 if p.color_order == "RGB" else 1, *p.image_size]
        config = f'timm.data.resolve_model_data_config(model, args={{"input_size": {size}}})  # of its data'
        antialias = p.resolution[0] < max(p.image_size)
        resized = f"""
    # The network takes {p.resolution[1]} x {p.resolution[0]} pixels: the normalized pixels are resized.
    images = torch.nn.functional.interpolate(images, {p.resolution}, mode="bilinear", antialias={antialias})"""
    if p.fit == "pad":  # timm pads with another colour
        image = "padded(open_image(path))"
        padded = f'''

def padded(image):
    """The image on its background."""
{textwrap.indent(fit_code(p), "    ")}
    return image
'''
    return f'''{import_lines(imports)}

folder = "$folder"  # the path of this folder
sys.path.insert(0, folder)
import build  # registers the architecture with timm

model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
classes = model.pretrained_cfg.get("label_names") or range(model.num_classes)
config = {config}
transform = timm.data.create_transform(**config)


{open_code(p)}{padded}

def classify(path):
    """The class of an image file, and its probability."""
    images = transform({image})[None]{resized}
    with torch.inference_mode():
        probabilities = model(images).softmax(-1)[0]
    best = int(probabilities.argmax())
    return classes[best], float(probabilities[best])


print(classify("picture.jpg"))  # a file of yours
'''


def preprocessing_of(subnet: MobileNetV3) -> Preprocessing:
    return Preprocessing.of(subnet.input_spec, subnet.arguments["in_channels"], subnet.config.resolution)


def from_timm(folder: str | Path) -> MobileNetV3:
    """The subnet that `save_timm` wrote, bit for bit, on the CPU in eval mode.

    Raises ValueError, with the reason, for a folder that is not such an export, or is incomplete or altered.
    """
    folder = Path(folder)
    try:
        arch = json.loads((folder / "arch.json").read_text())
        if not isinstance(arch, dict) or arch.get("format") != FORMAT:
            raise ValueError(f"arch.json is not of the format {FORMAT!r}")
        subnet, weights = network_from(arch["subnet"]), load_file(folder / "model.safetensors")
        expected = architecture(subnet)
        if any(arch[name] != expected[name] for name in ("arch_def", "kwargs", "stem_stride", "subnet")):
            raise ValueError("arch.json: the timm network is not that of the subnet's config")
        subnet.to(weights["conv_stem.weight"].dtype).load_state_dict(weights)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{folder} cannot be read as a subnet that save_timm wrote: {type(error).__name__}: {error}"
        ) from error
    return subnet.eval()


def architecture(subnet: MobileNetV3) -> dict[str, Any]:
    """The content of arch.json: what `network` needs, the input, and what makes our subnet again."""
    if not isinstance(subnet, MobileNetV3):
        raise TypeError(f"expected an ofa.MobileNetV3 subnet, got {type(subnet).__name__}")
    if not subnet.extracted:
        raise ValueError("this is a supernet: give what its extract(config) returns")
    arguments, config, spec = subnet.arguments, subnet.config, subnet.input_spec
    stem, first, final, last = scaled(arguments["width_mult"], STEM, FIRST, FINAL, LAST)
    arch_def, width_in = [[f"ds_r1_k3_s1_e1_c{first}_nre"]], first
    for (width, stride, act, squeeze_excite), kernels, ratios in zip(STAGES, config.kernel_size, config.expand_ratio):
        (width_out,) = scaled(arguments["width_mult"], width)
        blocks = []
        for kernel, ratio in zip(kernels, ratios):
            # timm rounds width_in * e to a multiple of 8, so e is written to give the middle width exactly.
            expand = int(middle_width(width_in, ratio)) / width_in
            block = f"ir_r1_k{kernel}_s{1 if blocks else stride}_e{expand:.10g}_c{width_out}"
            blocks.append(block + "_se0.25" * squeeze_excite + "_nre" * (act == "relu"))
            width_in = width_out
        arch_def.append(blocks)
    arch = {
        "format": FORMAT,
        "arch_def": [*arch_def, [f"cn_r1_k1_s1_c{final}"]],
        "kwargs": {
            "num_classes": arguments["num_classes"],
            "in_chans": arguments["in_channels"],
            "stem_size": stem,
            "fix_stem": True,
            "num_features": last,
            "head_bias": False,
            "drop_rate": arguments["dropout"],
        },
        "stem_stride": arguments["stem_stride"],
        "input": {
            "input_size": [arguments["in_channels"], config.resolution, config.resolution],
            "mean": spec.get("mean"),
            "std": spec.get("std"),
            "num_classes": arguments["num_classes"],
        },
        "pretrained_cfg": pretrained_cfg(subnet),
        "subnet": describe(subnet),
    }
    return json.loads(json.dumps(arch))  # tuples as the lists that come back from the file


def pretrained_cfg(subnet: MobileNetV3) -> dict[str, Any]:
    """What timm is to know of the weights: the preprocessing, the classes, and the layers that a fine-tuning adapts."""
    spec = subnet.input_spec
    names, license = spec.get("class_names"), spec.get("license")
    config = {
        "architecture": supernet_mobilenet_v3.__name__,
        "num_classes": subnet.arguments["num_classes"],
        "pool_size": None,
        "first_conv": "conv_stem",
        "classifier": "classifier",
        "description": "a MobileNetV3 that was cut out of a supernet without retraining",
        "paper_ids": "arXiv:1908.09791",
    }
    config |= {"label_names": list(names)} if names else {}
    config |= {"license": license} if license else {}
    return config | preprocessing_of(subnet).to_timm()


# The next functions are also the text of build.py: they may use only what `build_script` imports there.


def network(arch: dict) -> mobilenetv3.MobileNetV3:
    """The timm network that arch.json describes, with random weights."""
    model = mobilenetv3.MobileNetV3(
        mobilenetv3.decode_arch_def(arch["arch_def"]),
        act_layer=nn.Hardswish,
        se_layer=partial(
            mobilenetv3.SqueezeExcite,
            gate_layer="hard_sigmoid",
            force_act_layer=nn.ReLU,
            rd_round_fn=mobilenetv3.round_channels,
        ),
        **arch["kwargs"],
    )
    # timm's stem always has stride 2; a convolution reads its stride when it runs.
    model.conv_stem.stride = (arch["stem_stride"], arch["stem_stride"])
    for info in model.feature_info:
        info["reduction"] = info["reduction"] * arch["stem_stride"] // 2
    model.pretrained_cfg = model.default_cfg = arch["pretrained_cfg"]
    return model


def supernet_mobilenet_v3(
    pretrained: bool = False, arch_def: list | None = None, stem_stride: int = 2, **kwargs
) -> nn.Module:
    """What timm.create_model calls for this architecture, with the `model_args` of config.json."""

    def make(**kwargs) -> mobilenetv3.MobileNetV3:
        return network({"arch_def": arch_def, "stem_stride": stem_stride, "kwargs": kwargs, "pretrained_cfg": {}})

    features = {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"}
    return build_model_with_cfg(make, "supernet_mobilenet_v3", pretrained, feature_cfg=features, **kwargs)


def register() -> None:
    """Make the architecture known to timm, whose `create_model("local-dir:FOLDER", pretrained=True)` then works."""
    if not is_model("supernet_mobilenet_v3"):
        register_model(supernet_mobilenet_v3)


def build(folder: str | Path) -> mobilenetv3.MobileNetV3:
    """The network of an exported folder with its weights, on the CPU in eval mode."""
    model = network(json.loads((Path(folder) / "arch.json").read_text()))
    weights = load_file(Path(folder) / "model.safetensors")
    model.to(weights["conv_stem.weight"].dtype).load_state_dict(weights)
    return model.eval()


def build_script() -> str:
    """The text of build.py."""
    return f'''"""Makes this folder's network again: `from build import build; model = build(folder)`, or run it."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models import build_model_with_cfg, is_model, mobilenetv3, register_model
from torch import nn


{inspect.getsource(network)}

{inspect.getsource(supernet_mobilenet_v3)}

{inspect.getsource(register)}

register()


{inspect.getsource(build)}

if __name__ == "__main__":
    model = build(Path(__file__).parent)
    images = torch.rand(1, *model.pretrained_cfg["input_size"], dtype=model.conv_stem.weight.dtype)
    print(f"images {{tuple(images.shape)}} -> logits {{tuple(model(images).shape)}}")
'''


@torch.no_grad()
def check(subnet: MobileNetV3, model: nn.Module) -> None:
    """Raise RuntimeError unless `model` computes on the CPU in eval mode what `subnet` does, within TOLERANCE."""
    # A copy, so that mode, device and memory format of the caller's subnet stay as they are.
    subnet = copy.deepcopy(subnet).cpu().to(memory_format=torch.contiguous_format).eval()
    size = (2, *model.pretrained_cfg["input_size"])
    images = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(subnet.conv_stem.weight.dtype)
    expected = subnet(images)
    difference, largest = (model(images) - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise RuntimeError(f"the timm network differs from the subnet by {difference:.3g}; outputs reach {largest:.3g}")


register()
