"""Depthwise convolution whose weight gradient is fast on a CPU.

torch's (oneDNN's) weight gradient of a depthwise convolution is fast only for weights at most 3 wide; a 5x5 or 7x7
takes several times as long as its forward pass. Here a wide kernel is cut into strips 3 wide, and each strip is the
weight gradient of a narrow convolution over the same, shifted image. `benchmarks/overhead.py` shows the gain:
extracted subnets train with torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.elastic import autocast

STRIP = 3  # columns of a kernel for which the weight gradient is fast
CHUNK_BYTES = 4 << 20  # of padded images at a time: what a core's cache can hold for the strips to share


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Same-padded depthwise convolution of x (B, C, H, W) with weight (C, 1, k, k), k odd.

    Equal to `F.conv2d(x, weight, None, stride, k // 2, groups=C)`; the weight's gradient differs by rounding. Under
    autocast it runs in the lower precision, as torch's convolution.
    """
    kernel, channels_last = weight.size(3), x.is_contiguous(memory_format=torch.channels_last)
    # A channels_last image smaller than the kernel misses torch's fast path, too.
    slow = kernel > STRIP or (channels_last and kernel > min(x.shape[2:]))
    if weight.requires_grad and x.device.type == "cpu" and slow:
        return DepthwiseConv2d.apply(x, weight, stride)
    return F.conv2d(x, weight, None, stride, weight.size(3) // 2, groups=x.size(1))


class DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        x, weight = autocast(x), autocast(weight)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.size(3) // 2, groups=x.size(1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x, _ = _gradients(grad, x, weight, ctx.stride, weight.size(3) // 2, inputs=True)
        return grad_x, _weight_gradient(grad, x, weight, ctx.stride), None


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, inputs: bool
) -> tuple[Tensor | None, Tensor | None]:
    """torch's own gradient of the depthwise convolution: of its inputs, or else of its weight."""
    convolution = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], x.size(1))
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *convolution, [inputs, not inputs, False]
    )
    return grad_x, grad_weight


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The gradient (C, 1, k, k) from `grad` (B, C, H', W') of the output and the input x (B, C, H, W)."""
    batch, channels, height, width = x.shape
    kernel = weight.size(3)
    # Taps further from the centre than the image is wide only ever meet padding: their gradient is 0.
    reach = min(kernel // 2, max(height, width) - 1)
    taps = 2 * reach + 1
    edge = kernel // 2 - reach
    strip = min(STRIP, taps)
    offsets = [*range(0, taps - strip, strip), taps - strip]

    # One zero-padded copy of the images (B, H, W, C); a strip sees it from `offset` pixels on, so that rows wrap, and
    # meets zeros of the padded output gradient where they do.
    padded_height, padded_width = height + 2 * reach, width + 2 * reach
    image = padded_height * padded_width * channels
    chunk = max(1, min(batch, CHUNK_BYTES // (image * x.element_size())))
    memory = x.new_zeros(chunk * image + offsets[-1] * channels)
    padded_grad = grad.new_zeros(chunk, grad.size(2), (padded_width - strip) // stride + 1, channels)
    narrow_weight = x.new_empty(channels, 1, taps, strip)
    total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    for start in range(0, batch, chunk):
        n = min(chunk, batch - start)
        images = memory[: n * image].view(n, padded_height, padded_width, channels)
        images[:, reach : reach + height, reach : reach + width] = x[start : start + n].permute(0, 2, 3, 1)
        padded_grad[:n, :, : grad.size(3)] = grad[start : start + n].permute(0, 2, 3, 1)
        grad_n = padded_grad[:n].permute(0, 3, 1, 2)
        for offset in offsets:
            shifted = memory[offset * channels :][: n * image].view_as(images).permute(0, 3, 1, 2)
            _, part = _gradients(grad_n, shifted, narrow_weight, stride, 0, inputs=False)
            rows, columns = slice(edge, edge + taps), slice(edge + offset, edge + offset + strip)
            if offset == offsets[-1] and len(offsets) > 1:  # the last strip overlaps the one before it
                overlap = offsets[-2] + strip - offset
                part, columns = part[..., overlap:], slice(columns.start + overlap, columns.stop)
            total[:, :, rows, columns] += part
    return total.to(weight.dtype)
