"""Elastic layers: torch layers that compute with a leading slice of themselves and can extract that slice."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HALVES = (torch.bfloat16, torch.float16)


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


def owned(parameter: nn.Parameter, sizes: tuple[int, ...], memo: dict[int, object]) -> nn.Parameter:
    """The leading block of a parameter as one of its own; layers that share the parameter share equal blocks of it."""
    key = (id(parameter), sizes)
    if key not in memo:
        memo[key] = own(leading(parameter, *sizes), parameter)
    return memo[key]


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


class ElasticLinear(Elastic, nn.Linear):
    """Linear with its leading `active_in_features` and `active_out_features`. Input (..., active_in_features).

    Where it is sliced, its backward pass adds to a block of the parameters' `.grad` (see `linear`).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.set_active(in_features, out_features)

    def set_active(self, in_features: int, out_features: int) -> None:
        self.activate(
            active_in_features=check_active(self, "in_features", in_features, self.in_features),
            active_out_features=check_active(self, "out_features", out_features, self.out_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.active_out_features, self.active_in_features)

    def extract(self, memo: dict[int, object]) -> nn.Linear:
        n_out, n_in = self.active_out_features, self.active_in_features
        layer = nn.Linear(n_in, n_out, bias=self.bias is not None, device="meta")
        layer.weight = owned(self.weight, (n_out, n_in), memo)
        if self.bias is not None:
            layer.bias = owned(self.bias, (n_out,), memo)
        return layer

    @torch.no_grad()
    def input_importance(self) -> Tensor:
        """The L1 norm of the weights that read each input feature, (in_features,)."""
        return self.weight.abs().sum(dim=0)

    @torch.no_grad()
    def permute_inputs(self, order: Tensor) -> None:
        self.weight.copy_(self.weight[:, order])

    @torch.no_grad()
    def permute_outputs(self, order: Tensor) -> None:
        self.weight.copy_(self.weight[order])
        if self.bias is not None:
            self.bias.copy_(self.bias[order])


class ElasticEmbedding(Elastic, nn.Embedding):
    """Embedding that looks up its first `active_dim` columns. Input any shape of int64, output (..., dim).

    Where it is sliced, its backward pass adds to a block of the weight's `.grad` (see `linear`).
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.set_active(embedding_dim)

    def set_active(self, dim: int) -> None:
        self.activate(active_dim=check_active(self, "dim", dim, self.embedding_dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.active_dim == self.embedding_dim:
            return F.embedding(x, self.weight, self.padding_idx)
        if _adds_to_block(self.weight):
            return _EmbeddingBlock.apply(x, self.weight, self.active_dim, self.padding_idx)
        return F.embedding(x, self.weight[:, : self.active_dim], self.padding_idx)

    def extract(self, memo: dict[int, object]) -> nn.Embedding:
        layer = nn.Embedding(self.num_embeddings, self.active_dim, self.padding_idx, device="meta")
        layer.weight = owned(self.weight, (self.num_embeddings, self.active_dim), memo)
        return layer


def linear(x: Tensor, weight: nn.Parameter, bias: nn.Parameter | None, n_out: int, n_in: int) -> Tensor:
    """F.linear with weight[:n_out, :n_in] and bias[:n_out], whose backward pass adds to that block of their `.grad`.

    Autograd would make a zero-filled full-size gradient for every slice and add it up, which for a feed-forward layer
    costs a third to a half more than the extracted layer's step. Hooks of the parameters do not see these gradients,
    and `torch.autograd.grad` with respect to them raises RuntimeError; with respect to other tensors it, like
    `backward(inputs=...)`, leaves `.grad` alone.
    """
    if (n_out, n_in) != weight.shape and _adds_to_block(weight):
        return _LinearBlock.apply(x, weight, bias, n_out, n_in)
    return F.linear(x, leading(weight, n_out, n_in), None if bias is None else leading(bias, n_out))


def autocast(x: Tensor) -> Tensor:
    """`x` in autocast's precision where autocast is on, as torch casts the inputs of a convolution or a product.

    A custom autograd Function casts its inputs by this in `forward`, so that what it saves has the dtype of the
    gradient that `backward` gets. Autograd casts the gradients that `backward` returns to the dtypes of the inputs.
    """
    device = x.device.type
    try:
        enabled = torch.is_autocast_enabled(device)
    except RuntimeError:  # a device without autocast: meta
        return x
    return x.to(torch.get_autocast_dtype(device)) if enabled and x.dtype != torch.float64 else x


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """A context without autocast on a device, and in which new tensors have at least the precision of float32."""
    available = torch.amp.is_autocast_available(device.type)  # not on the device meta
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.promote_types(default, torch.float32))
    try:
        with torch.autocast(device.type, enabled=False) if available else nullcontext():
            yield
    finally:
        torch.set_default_dtype(default)


def _adds_to_block(weight: Tensor) -> bool:
    """Whether a gradient will be wanted, and of a leaf: only those have a `.grad`."""
    return torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf


def _is_wanted(ctx: Any, index: int) -> bool:
    """Whether this backward pass is to add to the `.grad` of the tensor that was the Function's input `index`."""
    node = ctx.next_functions[index][0]
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError as error:  # the node is a leaf's, whose gradient torch.autograd.grad is to return
        raise RuntimeError(
            "torch.autograd.grad of a sliced parameter: its gradient is added to .grad, by backward() alone"
        ) from error


def _grad_of(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _LinearBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, n_out: int, n_in: int) -> Tensor:
        x = autocast(x)
        # Hooks on saved tensors (checkpointing, save_on_cpu) would give back others than the parameters.
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias, ctx.block = weight, bias, (n_out, n_in)
        return F.linear(x, leading(weight, n_out, n_in), None if bias is None else leading(bias, n_out))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        weight, bias, (n_out, n_in) = ctx.weight, ctx.bias, ctx.block
        # Under autocast x, the output and its gradient have the lower precision, the parameters have not.
        grad_x = (grad @ leading(weight, n_out, n_in).to(grad.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad = grad.reshape(-1, n_out)
        if _is_wanted(ctx, 1):
            block, flat = leading(_grad_of(weight), n_out, n_in), x.reshape(-1, n_in)
            if grad.dtype == weight.dtype:
                block.addmm_(grad.t(), flat.to(weight.dtype))
            else:
                block.add_(grad.t() @ flat.to(grad.dtype))
        if bias is not None and _is_wanted(ctx, 2):
            leading(_grad_of(bias), n_out).add_(grad.sum(0))
        return grad_x, None, None, None, None


class _EmbeddingBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dim: int, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.dim, ctx.padding_idx = weight, dim, padding_idx
        return F.embedding(x, weight[:, :dim])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        if not _is_wanted(ctx, 1):
            return None, None, None, None
        if ctx.padding_idx is not None:
            grad = grad.masked_fill((x == ctx.padding_idx).unsqueeze(-1), 0)
        block, tokens, grad = _grad_of(weight)[:, : ctx.dim], x.flatten(), grad.reshape(-1, ctx.dim)
        if weight.dtype in HALVES:  # a frequent token's gradients would be rounded each time that one is added
            tokens, places = tokens.unique(return_inverse=True)
            sums = grad.new_zeros(len(tokens), ctx.dim, dtype=torch.float32)
            grad = sums.index_add_(0, places, grad.float())
        block.index_add_(0, tokens, grad.to(weight.dtype))
        return None, None, None, None


class ElasticLayerNorm(Elastic, nn.LayerNorm):
    """LayerNorm over its leading `active_features`. Input (..., active_features)."""

    def __init__(self, normalized_shape: int, eps: float = 1e-5) -> None:
        super().__init__(normalized_shape, eps)
        self.set_active(normalized_shape)

    def set_active(self, features: int) -> None:
        self.activate(active_features=check_active(self, "features", features, self.normalized_shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        n = self.active_features
        return F.layer_norm(x, (n,), leading(self.weight, n), leading(self.bias, n), self.eps)

    def extract(self, memo: dict[int, object]) -> nn.LayerNorm:
        n = self.active_features
        norm = nn.LayerNorm(n, self.eps, device="meta")
        norm.weight, norm.bias = owned(self.weight, (n,), memo), owned(self.bias, (n,), memo)
        return norm


class ElasticDropout(Elastic, nn.Dropout):
    """Dropout with the probability p times the share of the width that is active (HAT, arXiv 2005.14187)."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)
        self.set_active(1.0)

    def set_active(self, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"ElasticDropout: a share of {share} is not in 0..1")
        self.activate(active_p=self.p * share)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.active_p, self.training)

    def extract(self, memo: dict[int, object]) -> nn.Dropout:
        return nn.Dropout(self.active_p)


class ElasticDepthwiseConv1d(Elastic, nn.Conv1d):
    """Depthwise Conv1d, without padding, of its leading channels and of adjacent taps. Input B, channels, T.

    The active taps are `active_kernel_size` from `active_start` on: the middle ones of a symmetric convolution, the
    last ones of a causal one.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int, bias: bool = False) -> None:
        if not in_channels == out_channels == groups or bias:
            raise ValueError("ElasticDepthwiseConv1d has one filter for each channel, and no bias")
        super().__init__(in_channels, out_channels, kernel_size, groups=groups, bias=False)
        self.set_active(in_channels, kernel_size, 0)

    def set_active(self, channels: int, kernel_size: int, start: int) -> None:
        full = self.kernel_size[0]
        if not 0 <= start <= full - kernel_size:
            raise ValueError(f"ElasticDepthwiseConv1d: taps {start} to {start + kernel_size} are not in 0..{full}")
        self.activate(
            active_channels=check_active(self, "channels", channels, self.in_channels),
            active_kernel_size=check_active(self, "kernel_size", kernel_size, full),
            active_start=start,
        )

    def active_weight(self) -> Tensor:
        taps = slice(self.active_start, self.active_start + self.active_kernel_size)
        return leading(self.weight, self.active_channels)[..., taps]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.active_weight(), groups=self.active_channels)

    def extract(self, memo: dict[int, object]) -> nn.Conv1d:
        n = self.active_channels
        conv = nn.Conv1d(n, n, self.active_kernel_size, groups=n, bias=False, device="meta")
        conv.weight = own(self.active_weight(), self.weight)
        return conv

    @torch.no_grad()
    def permute_outputs(self, order: Tensor) -> None:
        self.weight.copy_(self.weight[order])


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
    """Sequential that runs its first `active_depth` modules."""

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


class ElasticModuleList(Elastic, nn.ModuleList):
    """ModuleList that iterates over its first `active_depth` modules."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__(modules)
        self.set_active(len(self))

    def set_active(self, depth: int) -> None:
        self.activate(active_depth=check_active(self, "depth", depth, len(self)))

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(list(self._modules.values())[: self.active_depth])

    def extract(self, memo: dict[int, object]) -> nn.ModuleList:
        return nn.ModuleList([extract(module, memo) for module in self])
