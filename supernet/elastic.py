"""Elastic layers: torch layers that compute with a leading slice of themselves and can extract that slice."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Elastic(ABC):
    """What an elastic layer adds to the torch layer it subclasses: active sizes, and `extract` of that slice."""

    def activate(self, **sizes: int) -> None:
        """Set plain attributes. Module.__setattr__ would look each up among parameters, buffers and modules, which
        for all the layers of a supernet takes as long as several percent of a small network's step."""
        self.__dict__.update(sizes)

    @abstractmethod
    def extract(self, memo: dict[int, object]) -> nn.Module:
        """A plain torch layer that computes what this one computes now, and shares no storage with it."""


def extract(module: nn.Module, memo: dict[int, object] | None = None) -> nn.Module:
    """A copy of `module` in which every elastic layer is the plain torch layer of its active slice.

    Training mode, device, dtype and memory format are kept, and so is sharing: a module met twice is extracted once.
    """
    memo = {} if memo is None else memo
    if id(module) not in memo:
        if isinstance(module, Elastic):
            memo[id(module)] = module.extract(memo).train(module.training)
        else:
            for child in module.children():
                extract(child, memo)
            memo[id(module)] = copy.deepcopy(module, memo)
    return memo[id(module)]


def leading(tensor: Tensor, *sizes: int) -> Tensor:
    """The leading block of a tensor, one size per leading dimension. A full-size dimension is not sliced: each slice
    costs a zero-filled full-size gradient in the backward pass."""
    for dim, size in enumerate(sizes):
        if size != tensor.size(dim):
            tensor = tensor.narrow(dim, 0, size)
    return tensor


def own(tensor: Tensor, like: nn.Parameter) -> nn.Parameter:
    """A parameter with its own storage and the values of `tensor`, which is a slice of (or made from) `like`."""
    return nn.Parameter(tensor.detach().clone(), requires_grad=like.requires_grad)


def check_active(layer: nn.Module, name: str, size: int, limit: int) -> int:
    if not 1 <= size <= limit:
        raise ValueError(f"{type(layer).__name__}: {name} = {size} is not in 1..{limit}")
    return size


class ElasticConv2d(Elastic, nn.Conv2d):
    """Conv2d with its leading `active_in_channels` and `active_out_channels`. Input B, C, H, W; not grouped."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.set_active(in_channels, out_channels)

    def set_active(self, in_channels: int, out_channels: int) -> None:
        self.activate(
            active_in_channels=check_active(self, "in_channels", in_channels, self.in_channels),
            active_out_channels=check_active(self, "out_channels", out_channels, self.out_channels),
        )

    def active_weight(self) -> Tensor:
        return leading(self.weight, self.active_out_channels, self.active_in_channels)

    def active_bias(self) -> Tensor | None:
        return None if self.bias is None else leading(self.bias, self.active_out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.active_weight(), self.active_bias(), self.stride, self.padding)

    def extract(self, memo: dict[int, object]) -> nn.Conv2d:
        conv = nn.Conv2d(
            self.active_in_channels,
            self.active_out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            bias=self.bias is not None,
            device="meta",
        )
        conv.weight = own(self.active_weight(), self.weight)
        if self.bias is not None:
            conv.bias = own(self.active_bias(), self.bias)
        return conv

    @torch.no_grad()
    def input_importance(self) -> Tensor:
        """The L1 norm of the weights that read each input channel, (in_channels,)."""
        return self.weight.abs().sum(dim=(0, 2, 3))

    @torch.no_grad()
    def output_importance(self) -> Tensor:
        """The L1 norm of the weights that make each output channel, (out_channels,)."""
        return self.weight.abs().sum(dim=(1, 2, 3))

    @torch.no_grad()
    def permute_inputs(self, order: Tensor) -> None:
        self.weight.copy_(self.weight[:, order])

    @torch.no_grad()
    def permute_outputs(self, order: Tensor) -> None:
        self.weight.copy_(self.weight[order])
        if self.bias is not None:
            self.bias.copy_(self.bias[order])


class ElasticBatchNorm2d(Elastic, nn.BatchNorm2d):
    """BatchNorm2d over its leading `active_features`; in train mode it updates that part of its statistics."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.set_active(num_features)

    def set_active(self, features: int) -> None:
        self.activate(active_features=check_active(self, "features", features, self.num_features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        n = self.active_features
        return F.batch_norm(
            x,
            leading(self.running_mean, n),
            leading(self.running_var, n),
            leading(self.weight, n),
            leading(self.bias, n),
            self.training,
            self.momentum,
            self.eps,
        )

    def extract(self, memo: dict[int, object]) -> nn.BatchNorm2d:
        n = self.active_features
        norm = nn.BatchNorm2d(n, self.eps, self.momentum, device="meta")
        norm.weight, norm.bias = own(self.weight[:n], self.weight), own(self.bias[:n], self.bias)
        norm.running_mean, norm.running_var = self.running_mean[:n].clone(), self.running_var[:n].clone()
        norm.num_batches_tracked = self.num_batches_tracked.clone()
        return norm

    @torch.no_grad()
    def permute_outputs(self, order: Tensor) -> None:
        for tensor in (self.weight, self.bias, self.running_mean, self.running_var):
            tensor.copy_(tensor[order])


class ElasticSequential(Elastic, nn.Sequential):
    """Sequential of which the first `active_depth` modules run."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.set_active(len(self))

    def set_active(self, depth: int) -> None:
        self.activate(active_depth=check_active(self, "depth", depth, len(self)))

    def active(self) -> list[nn.Module]:
        return list(self)[: self.active_depth]

    def forward(self, x: Tensor) -> Tensor:
        for module in self.active():
            x = module(x)
        return x

    def extract(self, memo: dict[int, object]) -> nn.Sequential:
        return nn.Sequential(*(extract(module, memo) for module in self.active()))
