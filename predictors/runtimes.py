"""Runtimes: each a function that makes a network ready to run, and says in which precision it then computes."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from predictors.devices import Device

Run = Callable[[], Any]  # one inference on fixed inputs
Source = Any  # what a device times: the path of a file, or (module, inputs) for torch; or a function that makes it
RunPart = Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # a file's name, its inputs -> its outputs
PLAN = "run.json"  # in the folder of a network that runs in several files, as supernet.export writes it
SUFFIXES = (".onnx", ".xml", ".pte")  # of files that a runtime loads


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A program that runs networks.

    `load` (device, source) gives the run and the precision that the runtime itself says it computes in; `precisions`
    are those that a device may ask for, `places` where it may compute. `package` is the distribution that it comes in,
    `extra` ours that installs it. `files` is the suffix of what it takes, None of one that takes modules of torch;
    `open` (device, path), of a runtime of files, gives a function that runs them on given inputs, and the precision.
    `modules` are what loading a network imports, the package if left out.
    """

    load: Callable[[Device, Source], tuple[Run, str]]
    package: str
    extra: str | None = None
    precisions: tuple[str, ...] = ("float32",)
    places: tuple[str, ...] = ("cpu",)
    files: str | None = ".onnx"
    modules: tuple[str, ...] = ()
    open: Callable[[Device, Source], tuple[RunPart, str]] | None = None

    def version(self) -> str:
        """The installed version, without importing it; ImportError says what to install."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            what = f"'supernet[{self.extra}]'" if self.extra else self.package
            raise ImportError(f"{self.package} is not installed: pip install {what}") from None


# ---- torch


def load_torch(device: Device, source: Source) -> tuple[Run, str]:
    """PyTorch, layer by layer, of (module, inputs): a copy of the module, channels_last if an input is B, C, H, W."""
    import torch

    module, inputs, precision = torch_network(device, source)

    def run() -> Any:
        with torch.inference_mode():
            return finished(device, module(*inputs))

    return run, precision


def load_torch_compile(device: Device, source: Source) -> tuple[Run, str]:
    """torch.compile with the weights frozen into the code, of (module, inputs); its first run compiles."""
    import torch

    module, inputs, precision = torch_network(device, source)
    compiled = torch.compile(module, fullgraph=True, dynamic=False, options={"freezing": True})

    def run() -> Any:
        with torch.no_grad():  # inference mode would keep it from freezing
            return finished(device, compiled(*inputs))

    return run, precision


def finished(device: Device, outputs: Any) -> Any:
    """The outputs, once they are there: a GPU computes after the call has returned."""
    if device.place == "cuda":
        import torch

        torch.cuda.synchronize()
    return outputs


def gpu_name() -> str:
    """The GPU that torch computes on; ValueError where it has none."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} finds no CUDA GPU on this machine")
    return torch.cuda.get_device_name()


def torch_network(device: Device, source: Source) -> tuple[Any, tuple[Any, ...], str]:
    """(a copy of the module, its inputs, their precision)."""
    import torch

    if device.place == "cuda":
        gpu_name()
    if not isinstance(source, tuple) or len(source) != 2 or not callable(source[0]):
        raise TypeError(f"{device.name} times (module, inputs), not {source!r}")
    module, inputs = source
    inputs = tuple(x.to(device.place) for x in inputs)
    for x in inputs:
        if len(x) != device.batch:
            raise ValueError(f"{device.name}: batch {device.batch}, but an input has {len(x)}: {tuple(x.shape)}")
    if isinstance(module, torch.nn.Module):
        if module.training:
            raise ValueError(f"{device.name}: the module is in train mode; call its eval() first")
        module = copy.deepcopy(module).to(device.place)
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
    elif products == "high" and device.place == "cuda":
        precisions.add("tfloat32")
    return module, inputs, "+".join(sorted(precisions)) or "unknown"


# ---- files


class Session(Protocol):
    """A loaded file: the shape (None where open) and type of each input, the names of the outputs, and the call."""

    inputs: dict[str, tuple[tuple[int | None, ...], np.dtype]]
    outputs: list[str]
    precision: str

    def run(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]: ...


class OnnxRuntimeSession:
    """An .onnx file in onnxruntime."""

    def __init__(self, device: Device, path: Path) -> None:
        import onnxruntime

        self.precision = onnx_precision(path)  # as onnxruntime computes on a CPU; first, so that its copy is free again
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = device.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {}
        for x in self._session.get_inputs():
            if x.type not in ONNX_TYPES:
                raise ValueError(f"{device.name}: {path} has the input {x.name} of {x.type}, not {list(ONNX_TYPES)}")
            shape = tuple(size if isinstance(size, int) else None for size in x.shape)
            self.inputs[x.name] = shape, np.dtype(ONNX_TYPES[x.type])
        self.outputs = [x.name for x in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        return self._session.run(None, feeds)


class OpenVinoSession:
    """An .onnx or .xml file in OpenVINO."""

    def __init__(self, device: Device, path: Path) -> None:
        import openvino

        core = openvino.Core()
        asked = {
            # OpenVINO takes bfloat16 for float32 where the processor has it, unless it is told.
            "INFERENCE_PRECISION_HINT": "bf16" if device.precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": device.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the thread that calls it is pinned
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", asked)
        for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS"):
            if compiled.get_property(name) != asked[name]:
                raise RuntimeError(f"{device.name}: OpenVINO took {name} = {compiled.get_property(name)}")
        # An input that is compiled may have the names of layers, too, that were left out.
        self.inputs = {
            x.any_name: (
                tuple(None if size.is_dynamic else size.get_length() for size in x.partial_shape),
                np.dtype(x.element_type.to_dtype()),
            )
            for x in model.inputs
        }
        self.outputs = [x.any_name for x in model.outputs]
        self.precision = openvino_precision(compiled)
        self._request = compiled.create_infer_request()

    def run(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        return self._request.infer(feeds, share_inputs=True).to_tuple()


class ExecuTorchSession:
    """A .pte file in ExecuTorch, with XNNPACK."""

    def __init__(self, device: Device, path: Path) -> None:
        import torch

        self.precision = executorch_precision(path)  # first, so that what it takes is free again
        executorch = import_executorch()
        torch.set_flush_denormal(True)  # of this thread, and of those that it starts now
        if executorch._threadpool_get_thread_count() != device.threads:
            executorch._unsafe_reset_threadpool(device.threads)  # of the process; unsafe while networks run
        if (threads := executorch._threadpool_get_thread_count()) != device.threads:
            raise RuntimeError(f"{device.name}: ExecuTorch took {threads} threads, not {device.threads}")
        self._program = executorch._load_program(str(path))
        methods = [self._program.get_method_name(i) for i in range(self._program.num_methods())]
        self._method = self._program.load_method("forward")
        meta = self._method.method_meta()

        def names(of: str, n: int) -> list[str]:
            """Those that the exporter wrote into the file; it has none itself."""
            return list(self._program.load_method(of)([])) if of in methods else [f"{of}_{i}" for i in range(n)]

        infos = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
        for info in infos:
            if info.dtype() not in EXECUTORCH_TYPES:
                raise ValueError(f"{device.name}: {path} has an input of the type {info.dtype()}, which is not known")
        self.inputs = {
            name: (tuple(info.sizes()), np.dtype(EXECUTORCH_TYPES[info.dtype()]))
            for name, info in zip(names("input_names", len(infos)), infos, strict=True)
        }
        self.outputs = names("output_names", meta.num_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        import torch

        inputs = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.inputs]
        # numpy's strides of an empty array are zeros, which ExecuTorch does not take.
        outputs = self._method([x if x.numel() else torch.empty(x.shape, dtype=x.dtype) for x in inputs])
        return [x.numpy() for x in outputs]


def import_executorch() -> Any:
    """ExecuTorch's bindings, without its warning that they are experimental."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.extension.pybindings import portable_lib

    return portable_lib


def load_session(device: Device, source: Source, session: Callable[[Device, Path], Session]) -> tuple[Run, str]:
    """A run of one file, or of a folder with a plan, on inputs that it makes up (batch first)."""
    path = Path(source)
    if (path / PLAN).is_file():
        return load_plan(device, path, session)
    if not path.is_file():
        raise FileNotFoundError(f"{device.name} times a file, and {path} is not there")
    opened = session(device, path)
    rng = np.random.default_rng(0)
    feeds = {}
    for name, (shape, dtype) in opened.inputs.items():
        if not shape or shape[0] not in (device.batch, None):
            raise ValueError(f"{device.name}: batch {device.batch}, but {path} has the input {name} {list(shape)}")
        if None in shape[1:]:
            raise ValueError(f"{device.name}: {path} leaves the size of input {name} open: {list(shape)}")
        values = rng.standard_normal((device.batch, *shape[1:]))
        feeds[name] = (values if np.issubdtype(dtype, np.floating) else np.ones_like(values)).astype(dtype)
    return lambda: opened.run(feeds), opened.precision


def load_plan(device: Device, folder: Path, session: Callable[[Device, Path], Session]) -> tuple[Run, str]:
    """A network in two files, as a folder's run.json says: `first` runs once, `then` runs `steps` times.

    The outputs of `first` are inputs of `then`, each item `copies` times; an output `new_X` of `then` is the next
    step's input X. `inputs` of `first` and `start`, the other inputs of the first step, are shapes, filled with zeros
    or, for integers, with `integers`.
    """
    plan = json.loads((folder / PLAN).read_text())
    first, then = (session(device, part_file(folder, plan[part])) for part in ("first", "then"))
    types = {name: dtype for opened in (first, then) for name, (_, dtype) in opened.inputs.items()}

    def filled(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
        integer = {name: np.issubdtype(types[name], np.integer) for name in shapes}
        return {name: np.full(s, plan["integers"] if integer[name] else 0, types[name]) for name, s in shapes.items()}

    inputs, start = filled(plan["inputs"]), filled(plan["start"])
    for name, x in inputs.items():
        if len(x) != device.batch:
            raise ValueError(f"{device.name}: batch {device.batch}, but {folder} is for {name} of {x.shape}")
    returned = [name.removeprefix("new_") for name in then.outputs]

    def run() -> Any:
        outputs = zip(first.outputs, first.run(inputs))
        state = start | {name: np.repeat(x, plan["copies"], axis=0) for name, x in outputs}
        for _ in range(plan["steps"]):
            outputs = then.run(state)
            state.update((name, x) for name, x in zip(returned, outputs) if name in then.inputs)
        return outputs

    return run, joined(opened.precision for opened in (first, then))


def open_parts(device: Device, source: Source, session: Callable[[Device, Path], Session]) -> tuple[RunPart, str]:
    """A function that runs a file, or one of a folder with a plan, on inputs that are given; and the precision.

    It takes the name of the file (without its suffix) and inputs by name, of which the file may lack some, and returns
    the outputs by name. Where the file is for one batch size, it runs as often as the inputs need.
    """
    path = Path(source)
    plan = json.loads((path / PLAN).read_text()) if (path / PLAN).is_file() else None
    files = [path] if plan is None else [part_file(path, plan[part]) for part in ("first", "then")]
    sessions = {file.stem: session(device, file) for file in files}

    def run(name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        opened = sessions[name]
        rows, size = len(next(iter(feeds.values()))), next(iter(opened.inputs.values()))[0][0]
        # What a session returns may be its own, and another's at its next run.
        made = [
            [x.copy() for x in opened.run(part)] for part in batches({key: feeds[key] for key in opened.inputs}, size)
        ]
        return {key: np.concatenate(parts)[:rows] for key, parts in zip(opened.outputs, zip(*made))}

    return run, joined(opened.precision for opened in sessions.values())


def part_file(folder: Path, name: str) -> Path:
    """The file of a network's part."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    if (found := next((path for path in paths if path.is_file()), None)) is None:
        raise FileNotFoundError(f"{folder} has no file of the part {name}: none of {', '.join(p.name for p in paths)}")
    return found


def batches(feeds: Mapping[str, np.ndarray], size: int | None) -> Iterator[dict[str, np.ndarray]]:
    """The inputs in batches of `size` rows, of which the last repeats its last row where it needs to; all if None."""
    rows = len(next(iter(feeds.values())))
    for start in range(0, rows, size or rows):
        taken = np.arange(start, start + (size or rows)).clip(max=rows - 1)
        yield {key: x[taken] for key, x in feeds.items()}


def joined(precisions: Iterable[str]) -> str:
    """The precision of a network of several files."""
    return "+".join(sorted({part for precision in precisions for part in precision.split("+")}))


def onnx_precision(path: Path) -> str:
    """What the numbers of a file are: the types of its weights, inputs and outputs; int8 where a layer is quantized."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any("Quantize" in node.op_type or "Integer" in node.op_type or "QLinear" in node.op_type for node in graph.node):
        return "int8"
    types = {weight.data_type for weight in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    names = {onnx.TensorProto.DataType.Name(type).lower() for type in types}
    names = {"float32" if name == "float" else "float64" if name == "double" else name for name in names}
    return "+".join(sorted(names & {"float32", "float64", "float16", "bfloat16"})) or "unknown"


def openvino_precision(compiled: Any) -> str:
    """What the layers with weights run in, as the compiled graph says; int8 if any does."""
    found = set()
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul"):
            found.add(info["runtimePrecision"].astype(str))
    names = {OPENVINO_TYPES.get(name, name) for name in found}
    return "int8" if "int8" in names else "+".join(sorted(names)) or "unknown"


def executorch_precision(path: Path) -> str:
    """What the weights are in the graphs that the file leaves to XNNPACK; int8 if any are."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ExecuTorch 1.5 reads its resources in an old way
        from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
        from executorch.exir._serialize._flatbuffer import _flatc_decompile
        from executorch.exir._serialize._program import deserialize_pte_binary

        program = deserialize_pte_binary(path.read_bytes()).program
        found = set()
        for delegate in program.backend_delegate_data:
            data = bytes(delegate.data)
            header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
            start = header.flatbuffer_offset
            with tempfile.TemporaryDirectory() as folder:
                schema, graph = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
                schema.write_bytes(_get_schema_bytes())
                graph.write_bytes(data[start : start + header.flatbuffer_size])
                _flatc_decompile(folder, str(schema), str(graph))
                text = graph.with_suffix(".json").read_text()
            weights = set(re.findall(r'"filter_id": (\d+)', text))
            for value in json.loads(re.sub(r"(?<=: )(-?)inf\b", r"\1Infinity", text))["xvalues"]:
                tensor = value["xvalue_union"].get("tensor_value", value["xvalue_union"])
                if str(tensor["id_out"]) in weights:
                    found.add(tensor["datatype"].removeprefix("xnn_datatype_"))
    names = {"int8" if name.startswith("q") else EXECUTORCH_PRECISIONS.get(name, name) for name in found}
    return "int8" if "int8" in names else "+".join(sorted(names)) or "unknown"


ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
OPENVINO_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "int8"}

EXECUTORCH_TYPES = {0: np.uint8, 1: np.int8, 3: np.int32, 4: np.int64, 6: np.float32, 7: np.float64, 11: np.bool_}
EXECUTORCH_PRECISIONS = {"fp32": "float32", "pfp32": "float32", "fp16": "float16"}


def of_files(session: Callable[[Device, Path], Session], *arguments: Any, **options: Any) -> Runtime:
    """The runtime that a kind of session makes."""
    load, opened = (partial(function, session=session) for function in (load_session, open_parts))
    return Runtime(load, *arguments, **options, open=opened)


RUNTIMES = {
    "torch": Runtime(load_torch, "torch", places=("cpu", "cuda"), files=None),
    "torch-compile": Runtime(load_torch_compile, "torch", places=("cpu", "cuda"), files=None),
    "onnxruntime": of_files(
        OnnxRuntimeSession,
        "onnxruntime",
        None,
        ("float32", "int8"),
        modules=("onnxruntime", "onnx"),
    ),
    "openvino": of_files(OpenVinoSession, "openvino", "openvino", ("float32", "bfloat16", "int8")),
    "executorch": of_files(
        ExecuTorchSession,
        "executorch",
        "executorch",
        ("float32", "int8"),
        files=".pte",
        modules=("executorch.exir", "executorch.backends.xnnpack", "executorch.extension.pybindings.portable_lib"),
    ),
}
