"""ONNX export of a plain module (to be merged into supernet/export.py)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from supernet.export import write_atomically

ONNX_OPSET = 20  # the newest that both of torch's exporters write
ONNX_TOLERANCE = 1e-4  # largest difference over largest output


def to_onnx(model: nn.Module, path: str | Path, inputs: Sequence[Tensor], fast: bool = False) -> Path:
    """Write `model`, which returns one tensor, in eval mode as one ONNX file for inputs of exactly these shapes.

    `inputs` are `forward`'s arguments, on the model's device, and name the file's inputs; its output is `output`.
    `fast` takes torch's older exporter, for the many files that are only measured: they run equally fast.
    The file appears whole and checked, or not at all: onnxruntime's output may differ from the model's by at most
    1e-4 of the largest, else RuntimeError. An existing file is replaced. Returns `path`.
    """
    path, inputs = Path(path), tuple(inputs)
    training = {module: module.training for module in model.modules()}

    def write(temporary: Path) -> None:
        with torch.no_grad(), warnings.catch_warnings():
            # torch 2.9 and later: every call of the older exporter says twice that it is deprecated.
            for message in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
                warnings.filterwarnings("ignore", message, DeprecationWarning)
            torch.onnx.export(
                model,
                inputs,
                str(temporary),
                dynamo=not fast,
                opset_version=ONNX_OPSET,
                external_data=False,
                verbose=False,
                input_names=list(inspect.signature(model.forward).parameters)[: len(inputs)],
                output_names=["output"],
            )
        check_onnx(model, temporary, inputs)

    model.eval()
    try:
        write_atomically(path, write)
    finally:
        for module, mode in training.items():
            module.training = mode
    return path


@torch.no_grad()
def check_onnx(model: nn.Module, path: Path, inputs: Sequence[Tensor]) -> float:
    """The largest difference between file and model over the largest output; above the tolerance, RuntimeError.

    Floating-point inputs are drawn anew, as those that were traced may be constants of the file; others are taken.
    """
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in inputs]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {spec.name: x.cpu().numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)}
    expected = model(*inputs).cpu()
    largest = expected.abs().max().item()
    difference = (torch.from_numpy(session.run(None, feed)[0]) - expected).abs().max().item()
    if not difference <= ONNX_TOLERANCE * largest:
        raise RuntimeError(f"the ONNX file differs from the model by {difference:.3g}; outputs reach {largest:.3g}")
    return difference / largest
