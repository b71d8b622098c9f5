"""The Once-for-All MobileNetV3 supernet (Cai et al., arXiv 1908.09791), elastic in depth, kernel, width, resolution."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa.blocks import InvertedResidual, activation, fold_batchnorm, make_divisible, middle_width, reduced_width
from ofa.preprocessing import Preprocessing, image_use
from supernet.elastic import ElasticSequential
from supernet.metadata import Use
from supernet.model import Supernet, WidthGroup, check_arguments
from supernet.space import Choice, SearchSpace, as_tuples, truncate
from supernet.values import integer, numbers, real

# The five elastic stages: width, stride of the first block, activation, squeeze-excite.
STAGES = (
    (24, 2, "relu", False),
    (40, 2, "relu", True),
    (80, 2, "hard_swish", False),
    (112, 1, "hard_swish", True),
    (160, 2, "hard_swish", True),
)
STEM, FIRST, FINAL, LAST = 16, 16, 960, 1280  # the fixed widths around them

COST_ARGUMENTS = ("num_classes", "width_mult", "in_channels", "stem_stride")  # of the supernet, that shape its networks


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config:
    """One network: blocks per stage; kernel size and expand ratio per block; input height and width in pixels."""

    depth: tuple[int, ...]
    kernel_size: tuple[tuple[int, ...], ...]
    expand_ratio: tuple[tuple[int, ...], ...]
    resolution: int

    def __post_init__(self) -> None:
        for name in ("depth", "resolution"):
            object.__setattr__(self, name, as_tuples(getattr(self, name)))
        for name in ("kernel_size", "expand_ratio"):
            object.__setattr__(self, name, truncate(getattr(self, name), self.depth))


def mobilenet_v3_space(
    depth: int | Sequence[int] = (2, 3, 4),
    kernel_size: int | Sequence[int] = (3, 5, 7),
    expand_ratio: float | Sequence[float] = (3, 4, 6),
    resolution: int | Sequence[int] = (224,),
) -> SearchSpace:
    """The space of MobileNetV3: OFA's choices unless given otherwise. OFA trains 25 resolutions, 128 to 224 by 4.

    One number stands for a choice that has one value.
    """
    named = {"depth": depth, "kernel_size": kernel_size, "expand_ratio": expand_ratio, "resolution": resolution}
    values: dict[str, tuple] = {}
    for name, given in named.items():
        values[name] = tuple(int(v) if v == v // 1 else v for v in numbers(name, given))
        for value in values[name]:
            if value <= 0 or (isinstance(value, float) and name != "expand_ratio"):
                raise ValueError(f"{name}: {value} is not a positive integer")
    for size in values["kernel_size"]:
        if size % 2 == 0:
            raise ValueError(f"kernel_size: {size} is even, so it has no centre")
    stages, blocks = len(STAGES), max(values["depth"], default=1)
    return SearchSpace(
        MobileNetV3Config,
        (
            Choice("depth", values["depth"], (stages,)),
            Choice("kernel_size", values["kernel_size"], (stages, blocks), gate="depth"),
            Choice("expand_ratio", values["expand_ratio"], (stages, blocks), gate="depth"),
            Choice("resolution", values["resolution"]),
        ),
    )


class DepthwiseSeparable(nn.Module):
    """The fixed first block: depthwise 3x3, pointwise projection, skip; B, C, H, W."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.has_skip = in_channels == out_channels
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = activation("relu")
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(x)))))
        return x + y if self.has_skip else y


class ConvBnAct(nn.Module):
    """The final expansion: 1x1 convolution, BatchNorm, activation; B, C, H, W."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act = activation("hard_swish")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv(x)))


class MobileNetV3(Supernet):
    """MobileNetV3 supernet: images B, C, H, W -> logits B, num_classes.

    `width_mult` scales every width but the fully connected ones, through `make_divisible`. `stem_stride` 1 suits
    small images. BatchNorm has torch's momentum and eps, as OFA's has. `zero_init_residual` starts every block that has
    a skip as the identity (Goyal et al., arXiv 1706.02677), which OFA does not: it trains far faster at first.

    `num_classes` and `in_channels` are 1000 and 3 if None; in a recipe, None means those of the data.
    """

    config_class = MobileNetV3Config
    input_choices = ("resolution",)

    def __init__(
        self,
        space: SearchSpace | None = None,
        num_classes: int | None = None,
        width_mult: float = 1.0,
        in_channels: int | None = None,
        dropout: float = 0.1,
        stem_stride: int = 2,
        zero_init_residual: bool = True,
    ) -> None:
        num_classes = integer("num_classes", 1000 if num_classes is None else num_classes, 1)
        in_channels = integer("in_channels", 3 if in_channels is None else in_channels, 1)
        stem_stride = integer("stem_stride", stem_stride, 1)
        width_mult, dropout = real("width_mult", width_mult), real("dropout", dropout)
        if not 0 < width_mult < math.inf:
            raise ValueError(f"width_mult = {width_mult} is not positive")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout} is not in 0..1")
        arguments = dict(
            num_classes=num_classes,
            width_mult=width_mult,
            in_channels=in_channels,
            dropout=dropout,
            stem_stride=stem_stride,
            zero_init_residual=bool(zero_init_residual),
        )
        super().__init__(mobilenet_v3_space() if space is None else space, arguments)
        kernel_sizes, expand_ratios = self.space["kernel_size"].values, self.space["expand_ratio"].values
        stem, first, final, last = scaled(width_mult, STEM, FIRST, FINAL, LAST)

        self.conv_stem = nn.Conv2d(in_channels, stem, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.act1 = activation("hard_swish")
        stages: list[nn.Module] = [nn.Sequential(DepthwiseSeparable(stem, first))]
        width_in = first
        for width, stride, act, squeeze_excite in STAGES:
            (width_out,) = scaled(width_mult, width)
            blocks = [
                InvertedResidual(
                    width_out if i else width_in,
                    width_out,
                    kernel_sizes,
                    expand_ratios,
                    1 if i else stride,
                    act,
                    squeeze_excite,
                )
                for i in range(self.space["kernel_size"].shape[1])
            ]
            stages.append(ElasticSequential(*blocks))
            width_in = width_out
        self.blocks = nn.Sequential(*stages, nn.Sequential(ConvBnAct(width_in, final)))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_head = nn.Conv2d(final, last, 1, bias=False)
        self.act2 = activation("hard_swish")
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(last, num_classes)
        self.apply(init_weights)
        if zero_init_residual:
            for block in (block for stage in self.elastic_stages for block in stage):
                if block.has_skip:
                    nn.init.zeros_(block.bn3.weight)
        self._activate(self.config)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv_stem(x)))
        x = self.blocks(x)
        x = self.act2(self.conv_head(self.global_pool(x)))
        return self.classifier(self.dropout(self.flatten(x)))

    def for_tracing(self) -> nn.Module:
        return fold_batchnorm(self) if self.extracted else self

    @property
    def elastic_stages(self) -> list[ElasticSequential]:
        return list(self.blocks)[1:-1]

    def _activate(self, config: MobileNetV3Config) -> None:
        for stage, kernel_sizes, expand_ratios in zip(self.elastic_stages, config.kernel_size, config.expand_ratio):
            stage.set_active(len(kernel_sizes))
            for block, kernel_size, expand_ratio in zip(stage, kernel_sizes, expand_ratios):
                block.set_active(kernel_size, expand_ratio)

    def width_groups(self, space: SearchSpace) -> Iterator[WidthGroup]:
        for stage in self.elastic_stages:
            for block in stage:
                yield from block.width_groups(space["expand_ratio"].values)

    def prepare(self, inputs: Sequence[Tensor], config: MobileNetV3Config | None = None) -> Sequence[Tensor]:
        """The images (B, C, H, W) resized to the config's resolution: bilinear, antialiased when it shrinks them."""
        if isinstance(inputs, Tensor):
            inputs = (inputs,)
        if len(inputs) != 1:
            raise ValueError(f"prepare takes (images,), not {len(inputs)} tensors")
        (images,) = inputs
        size = (self.config if config is None else config).resolution
        if images.shape[-2:] == (size, size):
            return (images,)
        shrinks = size < max(images.shape[-2:])
        return (F.interpolate(images, (size, size), mode="bilinear", antialias=shrinks),)

    @classmethod
    def arguments_from(cls, input_spec: Mapping[str, Any]) -> dict[str, Any]:
        if lacks := sorted({"classes", "shape"} - input_spec.keys()):
            raise ValueError(f"MobileNetV3 needs image data: this data module's input_spec has no {', '.join(lacks)}")
        return {"num_classes": input_spec["classes"], "in_channels": input_spec["shape"][0]}

    def check_data(self, input_spec: Mapping[str, Any]) -> None:
        check_arguments(self.arguments, self.arguments_from(input_spec), "the data have", input_spec.get("dataset"))
        sizes = [self.config.resolution] if self.extracted else self.space["resolution"].values
        size = input_spec.get("image_size")
        size = None if size is None else integer("input_spec: image_size", size, 1)
        check_resolution(max(sizes), size, self.extracted)

    def example_inputs(self, batch: int = 1) -> tuple[Tensor]:
        size = self.config.resolution
        return (
            torch.randn(batch, self.arguments["in_channels"], size, size, generator=torch.Generator().manual_seed(0)),
        )

    def use(self) -> Use:
        preprocessing = Preprocessing.of(self.input_spec, self.arguments["in_channels"], self.config.resolution)
        return image_use(preprocessing, self.input_spec, self.arguments["num_classes"])

    @property
    def cost_terms(self) -> MobileNetV3Costs:
        return MobileNetV3Costs(self.space, **{k: self.arguments[k] for k in COST_ARGUMENTS})


@cache  # one line in a process for each pair of sizes
def check_resolution(resolution: int, image_size: int | None, extracted: bool) -> None:
    """Raise ValueError where the largest resolution exceeds the `image_size` that the data module was given.

    Without one (None), images have a size of their own, such as the digits' 8 pixels, and may be enlarged.
    """
    if image_size is None or resolution == image_size or (extracted and resolution < image_size):
        return
    if resolution > image_size:
        raise ValueError(
            f"the largest resolution is {resolution}, the data's image_size is {image_size}: images would be made"
            f" smaller, then larger. Set image_size to {resolution}, or keep resolutions to {image_size}"
        )
    from pytorch_lightning.utilities import rank_zero_info  # slow to import, and a network alone does not need it

    rank_zero_info(
        f"the data's image_size is {image_size}, the largest resolution is {resolution}: every image is resized twice;"
        f" image_size {resolution} would do"
    )


@cache
def scaled(width_mult: float, *widths: int) -> tuple[int, ...]:
    return tuple(int(make_divisible(width * width_mult)) for width in widths)


def whole(x: np.ndarray, n: int) -> np.ndarray:
    """x, rounded up to multiples of n."""
    return -(-x // n) * n


def init_weights(module: nn.Module) -> None:
    """He initialisation by fan-out without groups (OFA's `he_fout`); a classifier uniform within 1 / sqrt(inputs)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=(2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.uniform_(module.weight, -(module.in_features**-0.5), module.in_features**-0.5)
        nn.init.zeros_(module.bias)


@dataclasses.dataclass(frozen=True)
class MobileNetV3Costs:
    """Cost terms of MobileNetV3 networks, in closed form over (n, stage, block) arrays."""

    space: SearchSpace
    num_classes: int
    width_mult: float
    in_channels: int
    stem_stride: int

    def __call__(self, X: np.ndarray) -> dict[str, np.ndarray]:
        X = self.space.matrix(X)
        genes = self.space.unpack(X)
        kernel, expand = genes["kernel_size"], genes["expand_ratio"]
        runs = kernel > 0
        stem, first, final, last = scaled(self.width_mult, STEM, FIRST, FINAL, LAST)
        out = np.array(scaled(self.width_mult, *(width for width, *_ in STAGES)))[:, None]
        into = np.repeat(out, kernel.shape[2], axis=1)
        into[:, 0] = [first, *out[:-1, 0]]
        excited = np.array([squeeze_excite for *_, squeeze_excite in STAGES])[:, None]

        # The sides of square maps: of the stem, then of the input and the output of every block.
        side = (genes["resolution"] - 1) // self.stem_stride + 1
        stem_pixels, sides = side**2, [side]
        for _, stride, _, _ in STAGES:
            sides.append((sides[-1] - 1) // stride + 1)
        side = np.stack(sides, axis=1)  # (n, stages + 1)
        side_out = side[:, 1:, None]
        side_in = np.repeat(side_out, kernel.shape[2], axis=2)
        side_in[:, :, 0] = side[:, :-1]
        pixels, pixels_in, pixels_out = side**2, side_in**2, side_out**2

        middle = middle_width(into, expand) * runs
        reduced = reduced_width(middle) * (runs & excited)
        project = middle * out
        expanded = into * middle
        area = kernel**2

        def total(x: np.ndarray) -> np.ndarray:
            return x.reshape(len(x), -1).sum(axis=1)

        ones = np.ones(len(X))
        head = final * out[-1, 0]
        terms = {
            "macs.stem": stem_pixels * (9 * self.in_channels * stem + 9 * stem + stem * first),
            "macs.pointwise": total(expanded * pixels_in) + total(project * pixels_out),
            "macs.squeeze_excite": total(2 * reduced * middle),
            "macs.head": head * pixels[:, -1] + final * last + last * self.num_classes,
            "params.stem": ones
            * (9 * self.in_channels * stem + 2 * stem + 9 * stem + 2 * stem + stem * first + 2 * first),
            "params.pointwise": total(expanded + 2 * middle + project + 2 * out * runs),
            "params.depthwise": total(middle * area + 2 * middle),
            "params.squeeze_excite": total(2 * reduced * middle + reduced + middle * (reduced > 0)),
            "params.head": ones * (head + 2 * final + final * last + last * self.num_classes + self.num_classes),
            # Float32 activations that the block's layers read and write.
            "bytes.pointwise": 4
            * total((into + middle * runs) * runs * pixels_in + (middle + out) * runs * pixels_out),
            "bytes.depthwise": 4 * total(middle * (pixels_in + pixels_out)),
            "bytes.squeeze_excite": 4 * total(3 * middle * (reduced > 0) * pixels_out),
            # Multiply-accumulates of 1x1 convolutions that fill whole vectors, with rows of pixels or with channels.
            "padded.rows": total(expanded * side_in * whole(side_in, 8))
            + total(project * side_out * whole(side_out, 8)),
            "padded.channels": total(whole(into, 16) * whole(middle, 16) * pixels_in)
            + total(whole(middle, 16) * whole(out, 16) * pixels_out),
            "layers.blocks": total(runs),
            "layers.squeeze_excite": total(runs & excited),
        }
        depthwise = middle * area * pixels_out
        for size in self.space["kernel_size"].values:
            terms[f"macs.depthwise_{size}"] = total(depthwise * (kernel == size))
        return terms
