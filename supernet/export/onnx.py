"""ONNX files, in float32 and int8: written by torch, quantized by onnxruntime, checked in onnxruntime."""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from supernet.atomic import write_atomically
from supernet.export import DYNAMIC, Feeds, Request
from supernet.export.parts import as_inputs, check_float32, check_outputs, evaluating, grouped, write_plan
from supernet.model import Part, Supernet

ONNX_OPSET = 20  # the newest that both of torch's exporters write


NEWER_EXPORTERS_LEAST = 18  # opset: for older ones torch's newer exporter has no operators


def to_onnx(model: nn.Module, path: str | Path, inputs: Sequence[Tensor], fast: bool = False) -> Path:
    """Write `model`, which returns one tensor, in eval mode as one ONNX file for inputs of exactly these shapes.

    `inputs` are `forward`'s arguments, on the model's device, and name the file's inputs; its output is `output`.
    `fast` takes torch's older exporter, for the many files that are only measured: they run equally fast.
    The file appears whole and checked, or not at all: onnxruntime's output may differ from the model's by at most
    1e-4 of the largest, else RuntimeError. An existing file is replaced. Returns `path`.
    """
    inputs = as_inputs(inputs)
    check_float32(model)
    names = tuple(inspect.signature(model.forward).parameters)[: len(inputs)]
    return part_to_onnx(Part(model, inputs, names), path, fast)


def part_to_onnx(
    part: Part,
    path: str | Path,
    fast: bool = False,
    opset: int = ONNX_OPSET,
    properties: Mapping[str, str] | None = None,
) -> Path:
    """`to_onnx` of a module with several outputs, or with axes of any size, in operators of the version `opset`.

    The file states the oldest format version that has these operators, so that old runtimes load it. `properties` are
    written into the file's metadata_props.
    """
    path = Path(path)
    check_float32(part.module)
    model = part.module.for_tracing() if isinstance(part.module, Supernet) else part.module
    fast = fast or opset < NEWER_EXPORTERS_LEAST
    dynamic = [dict.fromkeys(part.dynamic.get(name, ()), torch.export.Dim.DYNAMIC) for name in part.names]

    def write(temporary: Path) -> None:
        with torch.no_grad(), warnings.catch_warnings():
            # torch 2.9 and later: every call of the older exporter says twice that it is deprecated.
            for message in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
                warnings.filterwarnings("ignore", message, DeprecationWarning)
            # It also warns of sizes that decide something, and of slices; the check below runs what it made of them.
            warnings.filterwarnings("ignore", "Constant folding", UserWarning)
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            torch.onnx.export(
                model,
                part.inputs,
                str(temporary),
                dynamo=not fast,
                opset_version=opset,
                external_data=False,
                verbose=False,
                input_names=list(part.names),
                output_names=list(part.outputs),
                dynamic_axes={name: dict(axes) for name, axes in part.dynamic.items()} if fast else None,
                dynamic_shapes=grouped(model, dynamic) if part.dynamic and not fast else None,
            )
        finish_onnx(temporary, opset, properties or {}, part)
        check_onnx(part, temporary)

    with evaluating(part.module):
        write_atomically(path, write)
    return path


def finish_onnx(path: Path, opset: int | None, properties: Mapping[str, str], part: Part | None = None) -> None:
    """Write properties into an ONNX file, and the oldest format version that has its operators.

    Axes of any size get the names that the part has for them. Domains of operators that it does not use are left out,
    as old runtimes may not know them. RuntimeError where its operators are not of the version `opset`; None accepts
    any.
    """
    import onnx

    model = onnx.load(path)
    if part is not None:
        name_axes(model.graph, part)
    used = {"", "ai.onnx"} | {node.domain for node in nodes_of(model.graph)}
    if not model.functions:  # which may use others
        kept = [entry for entry in model.opset_import if entry.domain in used]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    (found,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if found != (opset or found):
        raise RuntimeError(f"torch wrote operators of opset {found}, not {opset}: choose another opset")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    properties = {prop.key: prop.value for prop in model.metadata_props} | dict(properties)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)


def name_axes(graph: Any, part: Part) -> None:
    """Give the axes of any size in an ONNX graph the part's names: torch's newer exporter calls them s77, or 2*s77."""
    names: dict[str, str] = {}
    for tensor in (*graph.input, *graph.output):
        dims = tensor.type.tensor_type.shape.dim
        for axis, name in part.dynamic.get(tensor.name, {}).items():
            if dims[axis].dim_param:
                names.setdefault(dims[axis].dim_param, name)
                dims[axis].dim_param = name
    for tensor in graph.value_info:
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def nodes_of(graph: Any) -> Iterator[Any]:
    """The nodes of an ONNX graph, and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_of(inner)


def write_onnx(network: Supernet, folder: Path, fast: bool = False, batch: int = 1) -> Path:
    """Write each part of an extracted network to `folder` as PART.onnx, and run.json, its plan, if it has several.

    Returns what a device loads: the one file, or the folder.
    """
    files = [part_to_onnx(part, folder / f"{name}.onnx", fast) for name, part in network.parts(batch).items()]
    return folder if write_plan(network, folder, batch) else files[0]


def quantize_onnx(
    source: str | Path,
    path: str | Path,
    batches: Iterable[Mapping[str, np.ndarray]],
    properties: Mapping[str, str] | None = None,
) -> Path:
    """Write an ONNX file of int8 layers from one of float32: static quantization, with no training.

    `batches` are inputs by name, of the shapes that the file takes; the ranges of all activations are the smallest and
    largest values seen on them. Weights have a scale for each channel. onnxruntime and OpenVINO run the file. It
    appears whole, or not at all: ValueError without batches, or where outputs are NaN or infinite.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, seen = Path(path), []
    # What attention masks has a range from minus infinity on: of such a network only products are quantized.
    nodes = onnx.load(source, load_external_data=False).graph.node
    kinds = ["Conv", "Gemm", "MatMul"] if any(node.op_type == "Softmax" for node in nodes) else None

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            batch = next(self._batches, None)
            if batch is not None and not seen:
                seen.append(batch)
            return batch

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(source, prepared, skip_symbolic_shape=True)  # it fails on axes of any size
            try:
                # Unsigned activations: signed ones ran slower in onnxruntime on x86. Weights have 7 bits: without VNNI
                # instructions, a CPU saturates sums of two products of 8 bits.
                quantize_static(
                    prepared,
                    temporary,
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    op_types_to_quantize=kinds,
                )
            except ValueError as error:
                if seen:
                    raise
                raise ValueError("quantization needs at least one batch to calibrate on") from error
        if properties is not None:
            finish_onnx(temporary, None, properties)
        for output in onnx_session(temporary).run(None, dict(seen[0])):
            if not np.isfinite(output).all():
                raise ValueError(f"{source} quantized gives outputs that are NaN or infinite")

    write_atomically(path, write)
    return path


def onnx_session(path: Path) -> Any:
    """A file in onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check_onnx(part: Part, path: Path) -> float:
    """`check_outputs` of an ONNX file in onnxruntime."""
    session = onnx_session(path)

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(part.outputs, session.run(list(part.outputs), feed), strict=True))

    return check_outputs(part, run, "ONNX")


def write_onnx_part(
    part: Part, path: Path, request: Request, feeds: Feeds | None, properties: Mapping[str, str]
) -> None:
    opset = request.opset or ONNX_OPSET
    path = part_to_onnx(part, path.with_suffix(".onnx"), request.fast, opset, properties)
    if request.batch == DYNAMIC and all(part.dynamic.get(name, {}).get(0) == "batch" for name in part.names):
        # It was traced with a larger batch.
        check_onnx(dataclasses.replace(part, inputs=tuple(x[:1] for x in part.inputs)), path)


def write_onnx_int8_part(part: Part, path: Path, request: Request, feeds: Feeds, properties: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_onnx_part(part, source := Path(folder) / "float32.onnx", request, None, {})
        quantize_onnx(source, path.with_suffix(".onnx"), feeds, properties)
