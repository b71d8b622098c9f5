"""How an image file becomes a network's input: as a value, as timm's config, and as Python code for a README."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from supernet.metadata import Exported, Use, assembled

CROP_MODES = {"crop": "center", "squeeze": "squash", "pad": "border"}  # timm's names


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The steps from an image file to an input. All sizes are (H, W), in pixels.

    1. By `fit` it is resized (its shorter side to `resize`) and cropped, squeezed or padded to `image_size`.
    2. It is scaled to 0..1.
    3. It is normalized by `mean` and `std`; None where the saved network does not record them.
    4. It is resized to `resolution`.

    `assumed` names the fields that the saved network does not record, and which have torchvision's usual values here.
    """

    color_order: str
    value_range: tuple[float, float]
    image_size: tuple[int, int]
    fit: str
    crop_pct: float
    resize: int | None
    interpolation: str
    background: tuple[int, int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    resolution: tuple[int, int]
    assumed: tuple[str, ...] = ()

    @classmethod
    def of(cls, input_spec: Mapping[str, Any], channels: int, resolution: int) -> Preprocessing:
        """The preprocessing of data with this input_spec; keys that it lacks are `assumed`."""
        _, height, width = input_spec.get("shape") or (channels, resolution, resolution)
        fit = input_spec.get("fit") or "crop"
        if height != width or ("image_size" in input_spec and input_spec["image_size"] is None):
            fit = "squeeze"  # the data's images share a shape, which it leaves as it is
        if fit not in CROP_MODES:
            raise ValueError(f"input_spec: fit = {fit!r} is not one of {', '.join(CROP_MODES)}")
        fields = ("fit", "interpolation", "background", *(("crop_pct",) if fit == "crop" else ()))
        assumed = tuple(name for name in fields if input_spec.get(name) is None)
        crop_pct = float(input_spec.get("crop_pct") or 1.0) if fit == "crop" else 1.0
        mean, std = (input_spec.get(name) and tuple(input_spec[name]) for name in ("mean", "std"))
        return cls(
            color_order="RGB" if channels == 3 else "grey",
            value_range=(0.0, 1.0),
            image_size=(height, width),
            fit=fit,
            crop_pct=crop_pct,
            resize=math.floor(height / crop_pct) if fit == "crop" else None,
            interpolation=input_spec.get("interpolation") or "bilinear",
            background=tuple(input_spec.get("background") or (255, 255, 255)),
            mean=mean or None,
            std=std or None,
            resolution=(resolution, resolution),
            assumed=assumed,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the steps in words among them."""
        values = {"steps": self.steps()} | dataclasses.asdict(self) | dict.fromkeys(self.assumed)
        if self.resize is None or self.assumed:
            del values["resize"]
        del values["assumed"]
        return values

    def steps(self) -> list[str]:
        """What is done, in order and in words."""
        size = f"{self.image_size[1]} x {self.image_size[0]}"
        fits = {
            "crop": f"resize the shorter side to {self.resize} pixels and cut {size} out of the centre",
            "squeeze": f"resize to {size} pixels, whatever the aspect ratio",
            "pad": f"resize to fit into {size} pixels and pad with the colour {list(self.background)}",
        }
        normalized = "mean and standard deviation are not recorded"
        if self.mean and self.std:
            normalized = f"subtract the mean {list(self.mean)}, divide by the standard deviation {list(self.std)}"
        unsure = f"; assumed, as the network does not record {', '.join(self.assumed)}" if self.assumed else ""
        steps = [
            f"decode to 8 bits, turn as EXIF says, compose transparent pixels on the colour {list(self.background)}",
            "convert to RGB" if self.color_order == "RGB" else "convert to grey (PIL's L)",
            f"{fits[self.fit]} ({self.interpolation}, antialiased, as PIL does{unsure})",
            "divide by 255",
            normalized,
        ]
        if self.resolution != self.image_size:
            how = "bilinear, antialiased" if self.resolution[0] < max(self.image_size) else "bilinear"
            steps.append(f"resize the normalized pixels to {self.resolution[1]} x {self.resolution[0]} ({how})")
        return steps

    def to_timm(self) -> dict[str, Any]:
        """The fields of timm's pretrained_cfg. timm resizes once, so the input is of the network's resolution."""
        height, width = self.resolution
        channels = 3 if self.color_order == "RGB" else 1
        normalized = {"mean": list(self.mean), "std": list(self.std)} if self.mean and self.std else {}
        return {
            "input_size": [channels, height, width],
            "crop_mode": CROP_MODES[self.fit],
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
        } | normalized


# ------------------------------------------------------------------------------------------------ as code


def open_code(p: Preprocessing) -> str:
    """A function that opens an image file as 8-bit pixels, as a viewer shows it."""
    mode = "RGB" if p.color_order == "RGB" else "L"
    return f'''def open_image(path):
    """An image file as a viewer shows it, in 8 bits."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"{{path}} has pixels of 32 bits, whose range is not known")
        opaque = pixels != image.info.get("transparency", -1)
        planes = [(pixels >> 8).astype(np.uint8), opaque.astype(np.uint8) * 255]
        image = Image.merge("LA", [Image.fromarray(plane) for plane in planes])
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, {(*p.background, 255)}), image)
    return image.convert("{mode}")
'''


def fit_code(p: Preprocessing) -> str:
    """Lines that make `image` of the data's size."""
    height, width = p.image_size
    method = f"Image.Resampling.{p.interpolation.upper()}"
    mode = "RGB" if p.color_order == "RGB" else "L"
    lines = {
        "crop": f"""shorter = min(image.size)
size = [int({p.resize} * side / shorter) for side in image.size]
image = image.resize(size, {method})
left, top = round((size[0] - {width}) / 2), round((size[1] - {height}) / 2)
image = image.crop((left, top, left + {width}, top + {height}))""",
        "squeeze": f"image = image.resize(({width}, {height}), {method})",
        "pad": f"""ratio = max(image.size) / {height}
image = image.resize([max(1, round(side / ratio)) for side in image.size], {method})
ground = Image.new("RGB", ({width}, {height}), {p.background}).convert("{mode}")
ground.paste(image, (round(({width} - image.width) / 2), round(({height} - image.height) / 2)))
image = ground""",
    }
    return lines[p.fit]


def preprocess_code(p: Preprocessing) -> str:
    """A function that makes the input (1, C, H, W) of an image file, by PIL and NumPy alone."""
    channels = 3 if p.color_order == "RGB" else 1
    normalized = f"(pixels - np.float32({list(p.mean)})) / np.float32({list(p.std)})" if p.mean and p.std else "pixels"
    lines = [
        *([f"# The network does not record {', '.join(p.assumed)} of its training: assumed."] if p.assumed else []),
        "image = open_image(path)",
        *fit_code(p).splitlines(),
        f"pixels = np.asarray(image, np.float32).reshape({p.image_size[0]}, {p.image_size[1]}, {channels}) / 255",
        f"planes = ({normalized}).transpose(2, 0, 1)" if p.mean and p.std else "planes = pixels.transpose(2, 0, 1)",
    ]
    if p.mean is None or p.std is None:
        lines.insert(-1, "# The mean and the standard deviation of the training data are not recorded.")
    if p.resolution != p.image_size:
        height, width = p.resolution
        lines += [
            f"# The network takes {width} x {height} pixels: the normalized pixels are resized.",
            f"resized = [Image.fromarray(x).resize(({width}, {height}), Image.Resampling.BILINEAR) for x in planes]",
            "planes = np.stack([np.asarray(x) for x in resized])",
        ]
    body = "\n".join(f"    {line}" for line in [*lines, "return np.ascontiguousarray(planes[None], np.float32)"])
    return f'{open_code(p)}\n\ndef preprocess(path):\n    """An image file as the network\'s input."""\n{body}\n'


def classify_code(batch: int | str) -> str:
    """A function that names the class of an image file; `run` and `preprocess` are there."""
    images = "preprocess(path)"
    if batch not in (1, "dynamic"):
        images = f"np.repeat(preprocess(path), {batch}, axis=0)  # the file takes {batch} images at once"
    return f'''def classify(path):
    """The class of an image file, and its probability."""
    images = {images}
    logits = run(images)[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = int(probabilities.argmax())
    return classes[best], float(probabilities[best])


print(classify("picture.jpg"))  # a file of yours
'''


CLASSES = """metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
classes = metadata["class_names"] or range(metadata["num_classes"])
"""


def image_use(p: Preprocessing, input_spec: Mapping[str, Any], num_classes: int) -> Use:
    """How a network is used that classifies images."""
    names = input_spec.get("class_names")

    def snippet(exported: Exported) -> str:
        imports = ["import json", "import numpy as np", "from PIL import Image, ImageOps"]
        code = [CLASSES, preprocess_code(p), classify_code(exported.batch)]
        return assembled(exported, imports, "\n\n".join(code))

    facts = {
        "preprocessing": p.to_dict(),
        "num_classes": num_classes,
        "class_names": list(names) if names else None,
        "output": "logits, one for each class in the order of class_names; softmax makes probabilities of them",
    }
    return Use("image-classification", "Image classification network", facts, snippet, ("numpy", "pillow"))
