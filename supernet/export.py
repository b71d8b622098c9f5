"""A network as files: the self-describing folder of a supernet or a subnet, and what runtimes load."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from supernet.model import Part, Supernet
from supernet.space import SearchSpace
from supernet.values import json_value

FORMAT = 1
PLAN = "run.json"  # how the files of a network in several parts run
NETWORK_FILES = DESCRIPTION, WEIGHTS = "network.json", "network.safetensors"
ONNX_OPSET = 20  # the newest that both of torch's exporters write
NEWER_EXPORTERS_LEAST = 18  # opset: for older ones torch's newer exporter has no operators
TOLERANCE = 1e-4  # largest difference over largest output


def describe(network: Supernet) -> dict[str, Any]:
    """What makes the network again, apart from its weights: JSON values only."""
    return {
        "format": FORMAT,
        "family": type(network).__name__,
        "arguments": json_value("arguments", network.arguments),
        "space": network.space.to_dict(),
        "config": json_value("config", dataclasses.asdict(network.config)) if network.extracted else None,
        "input_spec": json_value("input_spec", network.input_spec),
    }  # the dtype is that of the weights


def build(description: dict[str, Any]) -> Supernet:
    """A network of fresh weights from its description."""
    family = find_family(description["family"])
    space = SearchSpace.from_dict(family.config_class, description["space"])
    network = family(space, **description["arguments"])
    if description["config"] is not None:
        network = network.extract(family.config_class(**description["config"]))
    network.input_spec = description["input_spec"]
    return network


def find_family(name: str) -> type[Supernet]:
    """The imported Supernet class of that name, or the one that an imported package lists in its FAMILIES.

    A file names a family, never a module to import. ValueError if there is none.
    """
    for package in tuple(sys.modules.values()):
        if name in getattr(package, "__dict__", {}).get("FAMILIES", ()):
            return getattr(package, name)
    families = {cls.__name__: cls for cls in Supernet.__subclasses__()}
    if name not in families:
        raise ValueError(f"no imported family is named {name!r} (known: {sorted(families)}): import its package first")
    return families[name]


def save(network: Supernet, folder: str | Path, data: dict[str, Any] | None = None, overwrite: bool = False) -> Path:
    """Write a supernet or a subnet as a folder of JSON and safetensors; all of it or, on an error, none.

    `data` is kept beside it: how the data it was trained on are made again.
    """
    if not isinstance(network, Supernet):
        raise TypeError(f"save writes a supernet or a subnet that extract() returned, not a {type(network).__name__}")
    folder = Path(folder)
    write_folder(folder, lambda temporary: write_network(network, temporary, data), NETWORK_FILES, overwrite)
    return folder


def write_network(network: Supernet, folder: Path, data: dict[str, Any] | None) -> None:
    """Write the two files of a saved network into a folder that is there."""
    (folder / DESCRIPTION).write_text(json.dumps(describe(network) | {"data": data}, indent=1) + "\n")
    state = network.state_dict()
    same = aliases(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items() if name not in same}, folder / WEIGHTS)


def aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: earlier name} of the tensors of a state that are another one's, as tied embeddings are."""
    first: dict[tuple[int, torch.Size], str] = {}
    same = {}
    for name, tensor in state.items():
        earlier = first.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if earlier != name:
            same[name] = earlier
    return same


def load(folder: str | Path) -> Supernet:
    """The network that `save` wrote, in eval mode; a folder that is not one raises ValueError."""
    description = read_description(folder)
    try:
        network = build(description)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{Path(folder) / DESCRIPTION} does not describe a network: {type(error).__name__}: {error}"
        ) from error
    try:
        state = load_file(Path(folder) / WEIGHTS)
        for dtype in {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}:
            network.to(dtype)
        network.load_state_dict(state | {name: state[first] for name, first in aliases(network.state_dict()).items()})
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{Path(folder) / WEIGHTS} cannot be read as this network's weights: {error}") from error
    return network.eval()


def read_description(folder: str | Path) -> dict[str, Any]:
    """The description in a folder that `save` wrote, checked for completeness."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        inside = f"; {path.parent / 'supernet'} has" if (path.parent / "supernet" / DESCRIPTION).is_file() else ""
        raise ValueError(f"{folder} does not hold a saved network: it has no {DESCRIPTION}{inside}")
    try:
        description = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path} is not a description of format {FORMAT}")
    missing = {"family", "arguments", "space", "config", "input_spec"} - description.keys()
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}")
    if not isinstance(description["input_spec"], dict):
        raise ValueError(f"{path}: input_spec is {description['input_spec']!r}, and no mapping")
    return description


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


def as_inputs(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Example inputs of an export as a tuple of tensors: of a sequence of tensors or arrays, or of one alone."""
    given = (inputs,) if isinstance(inputs, (Tensor, np.ndarray)) else inputs
    if not isinstance(given, (tuple, list)) or not all(isinstance(x, (Tensor, np.ndarray)) for x in given):
        raise TypeError(f"inputs: the arguments of forward, as tensors, are expected, not a {type(inputs).__name__}")
    return tuple(torch.as_tensor(x) for x in given)


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


def check_float32(model: nn.Module) -> None:
    """Raise ValueError where a parameter or buffer has half precision, TypeError where it is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a file is written of a torch module, not of a {type(model).__name__}")
    for name, tensor in model.state_dict().items():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"{name} is {tensor.dtype}: files are written of float32 networks (.float())")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; then each of its modules as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def grouped(model: nn.Module, values: Sequence[Any]) -> tuple[Any, ...]:
    """One value an input, as a tuple in the place of `forward`'s *arguments."""
    named = [p for p in inspect.signature(model.forward).parameters.values() if p.kind != p.VAR_POSITIONAL]
    rest = tuple(values[len(named) :])
    return (*values[: len(named)], rest) if rest else tuple(values)


def write_onnx(network: Supernet, folder: Path, fast: bool = False, batch: int = 1) -> Path:
    """Write each part of an extracted network to `folder` as PART.onnx, and run.json, its plan, if it has several.

    Returns what a device loads: the one file, or the folder.
    """
    files = [part_to_onnx(part, folder / f"{name}.onnx", fast) for name, part in network.parts(batch).items()]
    return folder if write_plan(network, folder, batch) else files[0]


def write_plan(network: Supernet, folder: Path, batch: int = 1) -> bool:
    """Write how the parts of a network run as one inference to `folder`, as run.json; False where it has one part."""
    plan = network.plan(batch)
    if plan is not None:
        write_atomically(folder / PLAN, lambda temporary: temporary.write_text(json.dumps(plan, indent=1) + "\n"))
    return plan is not None


def quantize_onnx(
    source: str | Path,
    path: str | Path,
    batches: Iterable[Mapping[str, np.ndarray]],
    properties: Mapping[str, str] | None = None,
) -> Path:
    """Write an ONNX file of int8 layers from one of float32: static quantization, with no training.

    `batches` are inputs by name, of the shapes that the file takes; the ranges of all activations are the smallest and
    largest values seen on them. Weights have a scale for each channel. onnxruntime and OpenVINO run the file. It
    appears whole, or not at all: no batches, or outputs that are no finite numbers, are a ValueError.
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
                # Unsigned activations: signed ones ran slower in onnxruntime on x86.
                quantize_static(
                    prepared,
                    temporary,
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
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


def to_openvino(part: Part, source: str | Path, path: str | Path) -> Path:
    """Write an .xml file for OpenVINO, and a .bin file beside it, from a part's float32 .onnx file.

    The files appear whole and checked, or not at all: OpenVINO's output in float32 may differ from the module's by at
    most 1e-4 of the largest, else RuntimeError.
    """
    require("openvino", "openvino")
    import openvino

    model = openvino.convert_model(Path(source))
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled(feed)
        return {output.any_name: found[output] for output in compiled.outputs}

    check_outputs(part, run, "OpenVINO")
    save_openvino(model, Path(path))
    return Path(path)


def save_openvino(model: Any, path: Path) -> None:
    """Write an OpenVINO model as `path`, an .xml file, and the .bin file beside it."""
    import openvino

    if path.suffix != ".xml":
        raise ValueError(f"OpenVINO's files are named .xml, not {path.name}")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        openvino.save_model(model, written := Path(folder) / path.name, compress_to_fp16=False)
        for file in (written.with_suffix(".bin"), written):  # the file that names the other comes last
            sync(file)
            os.replace(file, path.parent / file.name)
    sync(path.parent)


def quantize_openvino(source: str | Path, path: str | Path, batches: Iterable[Mapping[str, np.ndarray]]) -> Path:
    """`quantize_onnx` by NNCF, for OpenVINO alone: an .xml file from a float32 .onnx file, and a .bin file beside it.

    Which layers are quantized, and with which ranges, is NNCF's default for the network.
    """
    require("openvino", "openvino")
    require("nncf", "openvino")
    import nncf
    import openvino

    source, path, batches = Path(source), Path(path), list(batches)
    if path.suffix != ".xml":
        raise ValueError(f"OpenVINO's files are named .xml, not {path.name}")
    if not batches:
        raise ValueError("quantization needs at least one batch to calibrate on")
    model = openvino.Core().read_model(source)
    attends = any(operation.get_type_name() == "Softmax" for operation in model.get_ops())
    with redirect_stdout(io.StringIO()):  # a progress bar for each network
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
        )
    for output in openvino.compile_model(quantized, "CPU")(batches[0]).values():
        if not np.isfinite(output).all():
            raise ValueError(f"{source} quantized gives outputs that are NaN or infinite")
    save_openvino(quantized, path)
    return path


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
    """The part with inputs of the batch that it is timed with, which is no open axis any more; they are contiguous."""
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


def require(package: str, extra: str) -> None:
    """ImportError with what to install, where a package of an extra is not there."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed: pip install 'supernet[{extra}]'")


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


@torch.no_grad()
def check_outputs(part: Part, run: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]], kind: str) -> float:
    """The largest difference between a file that `run` runs and the module, over the largest output; above the
    tolerance, RuntimeError. The inputs are `drawn_anew`."""
    inputs = drawn_anew(part.inputs)
    found = run({name: x.cpu().numpy() for name, x in zip(part.names, inputs, strict=True)})
    made = part.module(*inputs)
    worst = 0.0
    for name, expected in zip(part.outputs, [made] if isinstance(made, Tensor) else made, strict=True):
        expected, x = expected.cpu().double(), torch.from_numpy(found[name]).double()
        largest = expected.abs().max().item() or 1.0  # all zero: the file's must be nearly so
        difference = (x - expected).abs().max().item()
        if not difference <= TOLERANCE * largest:
            raise RuntimeError(
                f"{name} of the {kind} file differs from the model's by {difference:.3g}; it reaches {largest:.3g}"
            )
        worst = max(worst, difference / largest)
    return worst


def drawn_anew(inputs: Iterable[Tensor]) -> list[Tensor]:
    """Other floating-point inputs, as those that were traced may be constants of the file; the rest as they are."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in inputs]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file, then sync it and give it its name. On an error the old file is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        sync(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_free(folder: Path, names: Iterable[str], overwrite: bool = False) -> None:
    """Raise FileExistsError unless `folder` is free, or may be overwritten and holds nothing but `names`."""
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link: give the folder that it leads to")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: choose a folder")
    if not overwrite:
        raise FileExistsError(f"{folder} already exists: choose another folder, or overwrite it (--overwrite true)")
    if strangers := sorted({path.name for path in folder.iterdir()} - {*names, "__pycache__"}):
        raise FileExistsError(f"{folder} is not overwritten: it also holds {', '.join(strangers)}")


def write_folder(folder: Path, write: Callable[[Path], None], names: Iterable[str], overwrite: bool = False) -> None:
    """Have `write` fill a temporary folder with `names`, then give it its name, if that is free (see check_free).

    On an error the old folder is untouched.
    """
    check_free(folder, names, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                sync(file)
        sync(temporary)
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            os.replace(folder, old)
            try:
                os.replace(temporary, folder)
            except BaseException:
                os.replace(old, folder)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, reach the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
