"""PyTorch: layer by layer, or compiled. Times (module, inputs) rather than a file."""

from __future__ import annotations

import copy
from typing import Any

from predictors.runtimes.session import Run, Source


def load_torch(source: Source, *, place: str, batch: int, **_: Any) -> tuple[Run, str]:
    """PyTorch, layer by layer, of (module, inputs): a copy of the module, channels_last if an input is B, C, H, W."""
    import torch

    module, inputs, precision = torch_network(source, place, batch)

    def run() -> Any:
        with torch.inference_mode():
            return finished(module(*inputs), place)

    return run, precision


def load_torch_compile(source: Source, *, place: str, batch: int, **_: Any) -> tuple[Run, str]:
    """torch.compile with the weights frozen into the code, of (module, inputs); the first run compiles."""
    import torch

    module, inputs, precision = torch_network(source, place, batch)
    compiled = torch.compile(module, fullgraph=True, dynamic=False, options={"freezing": True})

    def run() -> Any:
        with torch.no_grad():  # inference mode would prevent freezing
            return finished(compiled(*inputs), place)

    return run, precision


def finished(outputs: Any, place: str) -> Any:
    """The outputs, once they are computed: a GPU computes after the call has returned."""
    if place == "cuda":
        import torch

        torch.cuda.synchronize()
    return outputs


def gpu_name() -> str:
    """The GPU that torch computes on; ValueError if there is none."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} finds no CUDA GPU on this machine")
    return torch.cuda.get_device_name()


def torch_network(source: Source, place: str, batch: int) -> tuple[Any, tuple[Any, ...], str]:
    """(a copy of the module, its inputs, their precision)."""
    import torch

    if place == "cuda":
        gpu_name()
    if not isinstance(source, tuple) or len(source) != 2 or not callable(source[0]):
        raise TypeError(f"torch times (module, inputs), not {source!r}")
    module, inputs = source
    inputs = tuple(x.to(place) for x in inputs)
    for x in inputs:
        if len(x) != batch:
            raise ValueError(f"batch {batch} is timed, but an input has {len(x)}: {tuple(x.shape)}")
    if isinstance(module, torch.nn.Module):
        if module.training:
            raise ValueError("the module is in train mode; call its eval() first")
        module = copy.deepcopy(module).to(place)
        if any(x.ndim == 4 for x in inputs):
            module = module.to(memory_format=torch.channels_last)
            inputs = tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)
        dtypes = {p.dtype for p in module.parameters()}
    else:
        dtypes = {x.dtype for x in inputs if x.is_floating_point()}
    precisions = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    products = torch.get_float32_matmul_precision()
    if products == "medium":  # lets matrix products run in bfloat16
        precisions.add("bfloat16")
    elif products == "high" and place == "cuda":
        precisions.add("tfloat32")
    return module, inputs, "+".join(sorted(precisions)) or "unknown"
