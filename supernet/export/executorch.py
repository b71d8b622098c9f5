"""ExecuTorch files for XNNPACK, in float32 and int8."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from supernet.atomic import write_atomically
from supernet.export import Feeds, Request, require
from supernet.export.parts import TOLERANCE, as_inputs, check_float32, drawn_anew, evaluating, grouped
from supernet.model import Part


def to_executorch(
    model: nn.Module,
    path: str | Path,
    inputs: Sequence[Tensor],
    batches: Iterable[Mapping[str, np.ndarray]] | None = None,
) -> Path:
    """Write `model`, which returns one tensor, as one ExecuTorch file for XNNPACK and inputs of exactly these shapes.

    With `batches`, inputs by the names of `forward`'s arguments, its layers are int8: static quantization, a scale for
    each channel of the weights. The rest is as in `to_onnx`, ExecuTorch's output in the place of onnxruntime's; of int8
    it must be finite.
    """
    inputs = as_inputs(inputs)
    check_float32(model)
    names = tuple(inspect.signature(model.forward).parameters)[: len(inputs)]
    return part_to_executorch(Part(model, inputs, names), path, batches)


def part_to_executorch(part: Part, path: str | Path, batches: Iterable[Mapping[str, np.ndarray]] | None = None) -> Path:
    """`to_executorch` of a module with several outputs, or with axes of any size up to the part's limits.

    The limit of an axis `batch` is the only size of it that the file is for, and that `batches` may have. ValueError
    where an axis has no limit.
    """
    require("executorch", "executorch")
    path, model = Path(path), part.module
    check_float32(model)
    with warnings.catch_warnings(), evaluating(model), torch.no_grad():
        # ExecuTorch 1.5 and torchao 0.18 call what Python and torch deprecate, and warn of their own new names.
        warnings.simplefilter("ignore")
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
        from executorch.backends.xnnpack.partition.config.generic_node_configs import CatConfig
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        kinds, sizes = list(ALL_PARTITIONER_CONFIGS), None
        if part.dynamic:
            part = for_one_batch(part)
            dim = torch.export.Dim.DYNAMIC
            axes = [part.dynamic.get(name, {}).items() for name in part.names]
            sizes = [{axis: dim(max=part.limits[of]) for axis, of in some} for some in axes]
            kinds.remove(CatConfig)  # XNNPACK joins no tensors of size 0, as caches are before the first step

        def program_of(module: nn.Module) -> torch.export.ExportedProgram:
            return torch.export.export(module, part.inputs, dynamic_shapes=sizes and grouped(module, sizes))

        program = program_of(model)
        if batches is not None:
            program = program_of(quantized_module(part, program.module(), batches))
        names = {"input_names": list(part.names), "output_names": list(part.outputs)}
        lowered = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner(kinds)],
            constant_methods=names,
            # Its check of a program takes an axis for a constant where an operator has several outputs.
            compile_config=EdgeCompileConfig(_check_ir_validity=not part.dynamic),
        )
        data = lowered.to_executorch().buffer

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)
            check_executorch(part, temporary, exactly=batches is None)

        write_atomically(path, write)
    return path


def for_one_batch(part: Part) -> Part:
    """The part with contiguous inputs of the batch size that it is timed with; the batch axis is fixed."""
    if missing := {of for name in part.names for of in part.dynamic.get(name, {}).values()} - part.limits.keys():
        raise ValueError(f"ExecuTorch plans its memory: how large may the axes {sorted(missing)} be? (Part.limits)")

    def sized(name: str, x: Tensor) -> Tensor:
        for axis in (axis for axis, of in part.dynamic.get(name, {}).items() if of == "batch"):
            x = x.index_select(axis, torch.arange(part.limits["batch"]) % x.size(axis))
        return x.contiguous()

    return dataclasses.replace(
        part,
        inputs=tuple(map(sized, part.names, part.inputs)),
        dynamic={name: {axis: of for axis, of in axes.items() if of != "batch"} for name, axes in part.dynamic.items()},
    )


def quantized_module(part: Part, module: nn.Module, batches: Iterable[Mapping[str, np.ndarray]]) -> nn.Module:
    """An exported module with its layers quantized for XNNPACK, by ranges that it has on the batches."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class LinearQuantizer(xnnpack.XNNPACKQuantizer):
        def transform_for_annotation(self, model: nn.Module) -> nn.Module:
            return model  # the other's makes numbers floats, also those that are added to the positions of tokens

    layers = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    if any(not x.is_floating_point() for x in part.inputs):
        # Of a network of tokens linear layers alone: XNNPACK does not load what pads a quantized convolution's input.
        quantizer = LinearQuantizer().set_operator_type(torch.ops.aten.linear.default, layers)
    else:
        quantizer = xnnpack.XNNPACKQuantizer().set_global(layers)
    prepared = prepare_pt2e(module, quantizer)
    batch = None
    for batch in batches:
        prepared(*(torch.from_numpy(batch[name]) for name in part.names))
    if batch is None:
        raise ValueError("quantization needs at least one batch to calibrate on")
    return convert_pt2e(prepared)


@torch.no_grad()
def check_executorch(part: Part, path: Path, exactly: bool) -> None:
    """Raise where ExecuTorch's outputs are not the module's, within the tolerance; or, unless exactly, not finite."""
    from executorch.extension.pybindings.portable_lib import _load_for_executorch

    inputs = drawn_anew(part.inputs)
    made = part.module(*inputs)
    file = _load_for_executorch(str(path))
    meta, found = file.method_meta("forward"), file.forward(inputs)
    for i, (name, x) in enumerate(zip(part.names, inputs)):
        axes, sizes = part.dynamic.get(name, {}), meta.input_tensor_meta(i).sizes()
        wanted = tuple(part.limits[axes[axis]] if axis in axes else size for axis, size in enumerate(x.shape))
        if sizes != wanted:
            raise RuntimeError(f"the ExecuTorch file takes {name} of up to {sizes}, not {wanted}")
    for name, expected, x in zip(part.outputs, [made] if isinstance(made, Tensor) else made, found, strict=True):
        if not x.isfinite().all():
            raise ValueError(f"{name} of the ExecuTorch file is NaN or infinite")
        x, expected = x.double(), expected.double()
        difference, largest = (x - expected).abs().max().item(), expected.abs().max().item() or 1.0
        if exactly and not difference <= TOLERANCE * largest:
            raise RuntimeError(
                f"{name} of the ExecuTorch file differs from the model's by {difference:.3g}; it reaches {largest:.3g}"
            )


def write_executorch_part(
    part: Part, path: Path, request: Request, feeds: Feeds | None, properties: Mapping[str, str]
) -> None:
    part_to_executorch(part, path.with_suffix(".pte"), feeds)
