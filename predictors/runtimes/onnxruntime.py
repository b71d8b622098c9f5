"""onnxruntime, of .onnx files, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeSession:
    """An .onnx file in onnxruntime."""

    def __init__(self, path: Path, *, threads: int, precision: str) -> None:
        import onnxruntime

        self.precision = onnx_precision(path)  # onnxruntime computes in it on a CPU; read first, to free its copy
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {}
        for x in self._session.get_inputs():
            if x.type not in ONNX_TYPES:
                raise ValueError(f"{path} has the input {x.name} of type {x.type}, not one of {list(ONNX_TYPES)}")
            shape = tuple(size if isinstance(size, int) else None for size in x.shape)
            self.inputs[x.name] = shape, np.dtype(ONNX_TYPES[x.type])
        self.outputs = [x.name for x in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        return self._session.run(None, feeds)


def onnx_precision(path: Path) -> str:
    """The precision of a file: the dtypes of its weights, inputs and outputs; int8 where a layer is quantized."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any("Quantize" in node.op_type or "Integer" in node.op_type or "QLinear" in node.op_type for node in graph.node):
        return "int8"
    types = {weight.data_type for weight in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    names = {onnx.TensorProto.DataType.Name(type).lower() for type in types}
    names = {"float32" if name == "float" else "float64" if name == "double" else name for name in names}
    return "+".join(sorted(names & {"float32", "float64", "float16", "bfloat16"})) or "unknown"
