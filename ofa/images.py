"""One image: read as a viewer shows it, fitted to a square, and augmented."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

WHITE = (255, 255, 255)
INTERPOLATION = "bilinear"
BILINEAR = v2.InterpolationMode.BILINEAR
SCALED_CROP = 0.875  # the crop of evaluation where training crops at random (`scale`), as in the ImageNet recipes

TURNS = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WIDE = (None, "PNG", "PPM")  # formats whose mode I holds 16 bits; None is an image from memory
DRAWINGS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # PIL knows them, but does not decode them by itself


def suffixes() -> frozenset[str]:
    """The suffixes, in lower case with their dot, of the files that PIL decodes."""
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in DRAWINGS
    )


# --------------------------------------------------------------------------------------------------- reading


def as_shown(image: Image.Image, mode: str, background: Sequence[int] = WHITE) -> Image.Image:
    """The image in 8-bit `mode` L or RGB, as a viewer shows it.

    It is turned upright by its EXIF orientation, and lies on `background` (R, G, B) where it is transparent. Of 16
    bits a channel, the upper 8 are taken. Of an animation, the first frame is. Colour profiles are not applied.
    ValueError for pixels of 32 bits (modes I and F), whose range is not known.
    """
    image.load()
    turn = TURNS.get(orientation(image))
    image = eight_bits(image)
    if image.has_transparency_data:
        image = flattened(image, background)
    if image.mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    image = image if image.mode == mode else image.convert(mode)
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL raises many kinds for damaged EXIF data; a viewer shows such an image as it is stored
        return 1


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits as one of 8, with its transparency; other images as they are."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or (image.mode == "I" and image.format not in WIDE):
        raise ValueError("its pixels have 32 bits, whose range is not known: save it with 8 or 16")
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels reach from {values.min()} to {values.max()}: save it with 8 or 16 bits")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    opaque = (values != image.info["transparency"]).astype(np.uint8) * 255
    return Image.merge("LA", (grey, Image.fromarray(opaque)))


def flattened(image: Image.Image, background: Sequence[int]) -> Image.Image:
    """A transparent image of any mode as RGB on the background."""
    image = image.convert("LA") if image.mode == "La" else image  # PIL converts La to nothing else
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def to_picture(image: Image.Image | np.ndarray | Tensor) -> Image.Image:
    """A PIL image of what data sets hand over: a PIL image, a uint8 array H, W (, C) or a uint8 tensor C, H, W."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        image = image.numpy() if image.ndim == 2 else image.movedim(0, -1).numpy()
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"an array of {image.dtype} with shape {image.shape} is not an image of 8 bits")
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)


# --------------------------------------------------------------------------------------------------- fitting


def crop(image: Image.Image, size: int, crop_pct: float, background: Sequence[int]) -> Image.Image:
    """The centre: the shorter side is resized to floor(size / crop_pct), then size x size are cut out."""
    image = functional.resize(image, [math.floor(size / crop_pct)], BILINEAR)
    return functional.center_crop(image, [size])


def squeeze(image: Image.Image, size: int, crop_pct: float, background: Sequence[int]) -> Image.Image:
    """The whole image, resized to a square."""
    return functional.resize(image, [size, size], BILINEAR)


def pad(image: Image.Image, size: int, crop_pct: float, background: Sequence[int]) -> Image.Image:
    """The whole image: the longer side is resized to `size`, the rest of the square is background on both sides."""
    ratio = max(image.size) / size
    width, height = (max(1, round(side / ratio)) for side in image.size)
    return centred(functional.resize(image, [height, width], BILINEAR), size, background)


def centred(image: Image.Image, side: int, background: Sequence[int]) -> Image.Image:
    """The image in the middle of a square of background."""
    if image.size == (side, side):
        return image
    ground = Image.new("RGB", (1, 1), tuple(background)).convert(image.mode).resize((side, side))
    ground.paste(image, (round((side - image.width) / 2), round((side - image.height) / 2)))
    return ground


# Random crops of training: a share of the area within `scale`, of an aspect between 3/4 and 4/3, resized to a square.


def random_crop(image: Image.Image, size: int, scale: Sequence[float], background: Sequence[int]) -> Image.Image:
    """A part of the image."""
    top, left, height, width = random_box(image.width, image.height, scale)
    return functional.resized_crop(image, top, left, height, width, [size, size], BILINEAR)


def random_squeeze(image: Image.Image, size: int, scale: Sequence[float], background: Sequence[int]) -> Image.Image:
    """A part of the squeezed image: its aspect is relative to the image's own."""
    side = max(image.size)
    top, left, height, width = random_box(side, side, scale)
    across, down = image.width / side, image.height / side
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def random_pad(image: Image.Image, size: int, scale: Sequence[float], background: Sequence[int]) -> Image.Image:
    """A part of the image that was made square by background."""
    return random_crop(centred(image, max(image.size), background), size, scale, background)


def random_box(width: int, height: int, scale: Sequence[float]) -> tuple[int, int, int, int]:
    """top, left, height and width of torchvision's random resized crop, drawn from torch's generator."""
    canvas = torch.empty(1, height, width, device="meta")
    drawn = v2.RandomResizedCrop(1, scale=tuple(scale)).make_params([canvas])
    return drawn["top"], drawn["left"], drawn["height"], drawn["width"]


FITS: dict[str, tuple[Callable[..., Image.Image], Callable[..., Image.Image]]] = {  # plain, random
    "crop": (crop, random_crop),
    "squeeze": (squeeze, random_squeeze),
    "pad": (pad, random_pad),
}


# ------------------------------------------------------------------------------------------------ transforms


def crop_share(fit: str, scale: Sequence[float] | None) -> float:
    """crop_pct: which share of the resized image's side evaluation keeps. Only `crop` ever cuts something off."""
    return SCALED_CROP if scale is not None and fit == "crop" else 1.0


def transforms(
    image_size: int | None,
    fit: str,
    background: Sequence[int],
    padding: int = 0,
    scale: Sequence[float] | None = None,
    flip: bool = False,
    jitter: Sequence[float] | None = None,
) -> tuple[Callable, Callable]:
    """The augmenting and the plain transform, from 8-bit PIL images to uint8 tensors C, H, W."""
    if fit not in FITS:
        raise ValueError(f"fit = {fit!r} is not one of {', '.join(FITS)}")
    for name, needed in (("scale", scale is not None), (f"fit = {fit}", fit != "crop")):
        if needed and image_size is None:
            raise ValueError(f"{name} needs an image_size")
    plain: list[Callable] = [functional.pil_to_tensor]
    augment: list[Callable] = [functional.pil_to_tensor]
    if image_size is not None:
        whole, part = FITS[fit]
        fitted = partial(whole, size=image_size, crop_pct=crop_share(fit, scale), background=tuple(background))
        plain.insert(0, fitted)
        random = partial(part, size=image_size, scale=scale, background=tuple(background))
        augment.insert(0, fitted if scale is None else random)
    if padding:
        augment.append(PaddedCrop(padding))
    if flip:
        augment.append(v2.RandomHorizontalFlip())
    if jitter is not None:
        augment.append(v2.ColorJitter(brightness=jitter[0], saturation=jitter[1]))
    return v2.Compose(augment), v2.Compose(plain)


class PaddedCrop:
    """A random crop, of the image's size, from the image (a tensor C, H, W) with a border of zeros."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, image: Tensor) -> Tensor:
        top, left = torch.randint(0, 2 * self.padding + 1, (2,)).tolist()
        padded = functional.pad(image, [self.padding])
        return padded[:, top : top + image.size(1), left : left + image.size(2)]
