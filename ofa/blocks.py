"""Elastic blocks of convolutional supernets. Parameters are named as in timm, so a subnet's state dict is timm's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ofa.depthwise import depthwise_conv2d
from supernet.elastic import Elastic, ElasticBatchNorm2d, ElasticConv2d, check_active, leading, own
from supernet.model import WidthGroup


def make_divisible(width: np.ndarray | float) -> np.ndarray:
    """Widths as multiples of 8, at least 8 and not below 0.9 of what was asked (MobileNet's rounding)."""
    rounded = np.maximum(8, np.floor(np.trunc(np.asarray(width) + 4) / 8) * 8)
    return (rounded + 8 * (rounded < 0.9 * np.asarray(width))).astype(int)


def middle_width(in_channels: np.ndarray | int, expand_ratio: np.ndarray | float) -> np.ndarray:
    """The width inside an inverted residual; halves round to even, as Python's round does."""
    return make_divisible(np.rint(in_channels * np.asarray(expand_ratio)))


def reduced_width(channels: np.ndarray | int) -> np.ndarray:
    """The hidden width of squeeze-excite."""
    return make_divisible(np.asarray(channels) // 4)


def activation(name: str) -> nn.Module:
    # Hardswish keeps its input for the backward pass, so running it in place would only add a copy.
    return nn.ReLU(inplace=True) if name == "relu" else nn.Hardswish()


class ElasticDepthwiseConv2d(Elastic, nn.Conv2d):
    """Depthwise Conv2d with its leading `active_channels`, and a kernel of `active_kernel_size`.

    A smaller kernel is the centre of the next larger one times a learned matrix that all channels share, from the
    largest down (OFA, arXiv 1908.09791, section 3.3): k3 = T53 centre3(T75 centre5(k7)). Matrices start as identity.
    """

    def __init__(self, channels: int, kernel_sizes: Sequence[int], stride: int = 1) -> None:
        self.kernel_sizes = sorted(kernel_sizes)
        largest = self.kernel_sizes[-1]
        super().__init__(channels, channels, largest, stride, largest // 2, groups=channels, bias=False)
        self.transforms = nn.ParameterDict(
            {f"{large}to{small}": torch.eye(small**2) for small, large in zip(self.kernel_sizes, self.kernel_sizes[1:])}
        )
        for small, large in zip(self.kernel_sizes, self.kernel_sizes[1:]):
            self.register_buffer(f"centre_{large}to{small}", centre_matrix(large, small), persistent=False)
        self.set_active(channels, largest)

    def set_active(self, channels: int, kernel_size: int) -> None:
        if kernel_size not in self.kernel_sizes:
            raise ValueError(f"{type(self).__name__}: kernel_size = {kernel_size} is not one of {self.kernel_sizes}")
        self.activate(
            active_channels=check_active(self, "channels", channels, self.out_channels), active_kernel_size=kernel_size
        )

    def active_weight(self) -> Tensor:
        weight = leading(self.weight, self.active_channels)
        if self.active_kernel_size == self.kernel_sizes[-1]:
            return weight
        # The matrices are multiplied first: they are small, and all channels see one product. To take a centre is a
        # product as well, with rows of 0 and 1: one operation, where slicing needs several, forward and backward.
        product = None
        for large, small in reversed(list(zip(self.kernel_sizes[1:], self.kernel_sizes))):
            centre = getattr(self, f"centre_{large}to{small}")
            product = self.transforms[f"{large}to{small}"] @ (centre if product is None else centre @ product)
            if small == self.active_kernel_size:
                break
        kernels = F.linear(weight.view(self.active_channels, -1), product)
        return kernels.view(self.active_channels, 1, small, small)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.active_weight(), self.stride[0])

    def extract(self, memo: dict[int, object]) -> nn.Conv2d:
        channels, kernel_size = self.active_channels, self.active_kernel_size
        conv = nn.Conv2d(
            channels,
            channels,
            kernel_size,
            self.stride,
            kernel_size // 2,
            groups=channels,
            bias=False,
            device="meta",
        )
        conv.weight = own(self.active_weight(), self.weight)
        return conv

    @torch.no_grad()
    def permute_outputs(self, order: Tensor) -> None:
        self.weight.copy_(self.weight[order])


@torch.no_grad()
def fold_batchnorm(network: nn.Module) -> nn.Module:
    """A copy in eval mode, with every BatchNorm2d folded into the convolution that stands before it in its module."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        for (name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network


def centre_matrix(large: int, small: int) -> Tensor:
    """(small², large²): what a flattened large x large kernel is multiplied by to give its centre."""
    edge = (large - small) // 2
    grid = torch.arange(large**2).view(large, large)[edge : edge + small, edge : edge + small]
    return F.one_hot(grid.flatten(), large**2).float()


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channels' means (B, C, H, W -> same)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = ElasticConv2d(channels, reduced, 1)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = ElasticConv2d(reduced, channels, 1)
        self.gate = nn.Hardsigmoid()

    def set_active(self, channels: int, reduced: int) -> None:
        self.conv_reduce.set_active(channels, reduced)
        self.conv_expand.set_active(reduced, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * self.gate(self.conv_expand(hidden))


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, squeeze-excite, pointwise projection; B, C, H, W.

    Elastic in kernel size and expand ratio; the residual width is fixed, so a skip joins equal shapes of stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int],
        expand_ratios: Sequence[float],
        stride: int,
        act: str,
        squeeze_excite: bool,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.has_skip = stride == 1 and in_channels == out_channels
        self.middle_widths = {ratio: int(middle_width(in_channels, ratio)) for ratio in expand_ratios}
        middle = max(self.middle_widths.values())
        self.conv_pw = ElasticConv2d(in_channels, middle, 1, bias=False)
        self.bn1 = ElasticBatchNorm2d(middle)
        self.act1 = activation(act)
        self.conv_dw = ElasticDepthwiseConv2d(middle, kernel_sizes, stride)
        self.bn2 = ElasticBatchNorm2d(middle)
        self.act2 = activation(act)
        self.se_widths = {width: int(reduced_width(width)) for width in self.middle_widths.values()}
        self.se = SqueezeExcite(middle, self.se_widths[middle]) if squeeze_excite else nn.Identity()
        self.conv_pwl = ElasticConv2d(middle, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def set_active(self, kernel_size: int, expand_ratio: float) -> None:
        middle = self.middle_widths[expand_ratio]
        self.conv_pw.set_active(self.in_channels, middle)
        self.bn1.set_active(middle)
        self.conv_dw.set_active(middle, kernel_size)
        self.bn2.set_active(middle)
        if isinstance(self.se, SqueezeExcite):
            self.se.set_active(middle, self.se_widths[middle])
        self.conv_pwl.set_active(middle, self.out_channels)

    def width_groups(self, expand_ratios: Sequence[float]) -> Iterator[WidthGroup]:
        widths = [self.middle_widths[ratio] for ratio in expand_ratios]
        outputs, inputs = [self.conv_pw, self.bn1, self.conv_dw, self.bn2], [self.conv_pwl]
        if isinstance(self.se, SqueezeExcite):
            outputs.append(self.se.conv_expand)
            inputs.append(self.se.conv_reduce)
        yield WidthGroup(self.conv_pwl.input_importance(), outputs, inputs, widths)
        if isinstance(self.se, SqueezeExcite):
            hidden = [self.se_widths[width] for width in widths]
            yield WidthGroup(
                self.se.conv_expand.input_importance(), [self.se.conv_reduce], [self.se.conv_expand], hidden
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv_pw(x)))
        y = self.se(self.act2(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.has_skip else y
