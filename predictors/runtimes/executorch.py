"""ExecuTorch with XNNPACK, of .pte files, on the CPU."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXECUTORCH_TYPES = {0: np.uint8, 1: np.int8, 3: np.int32, 4: np.int64, 6: np.float32, 7: np.float64, 11: np.bool_}
EXECUTORCH_PRECISIONS = {"fp32": "float32", "pfp32": "float32", "fp16": "float16"}


class ExecuTorchSession:
    """A .pte file in ExecuTorch, with XNNPACK."""

    def __init__(self, path: Path, *, threads: int, precision: str) -> None:
        import torch

        self.precision = executorch_precision(path)  # first, to free the memory that reading it needs
        executorch = import_executorch()
        torch.set_flush_denormal(True)  # of this thread, and of those that it starts now
        if executorch._threadpool_get_thread_count() != threads:
            executorch._unsafe_reset_threadpool(threads)  # of the process; unsafe while networks run
        if (actual := executorch._threadpool_get_thread_count()) != threads:
            raise RuntimeError(f"ExecuTorch uses {actual} threads, not {threads}")
        self._program = executorch._load_program(str(path))
        methods = [self._program.get_method_name(i) for i in range(self._program.num_methods())]
        self._method = self._program.load_method("forward")
        meta = self._method.method_meta()

        def names(of: str, n: int) -> list[str]:
            """The names that the exporter wrote into the file, which has none of its own."""
            return list(self._program.load_method(of)([])) if of in methods else [f"{of}_{i}" for i in range(n)]

        infos = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
        for info in infos:
            if info.dtype() not in EXECUTORCH_TYPES:
                raise ValueError(f"{path} has an input of the unknown type {info.dtype()}")
        self.inputs = {
            name: (tuple(info.sizes()), np.dtype(EXECUTORCH_TYPES[info.dtype()]))
            for name, info in zip(names("input_names", len(infos)), infos, strict=True)
        }
        self.outputs = names("output_names", meta.num_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        import torch

        inputs = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.inputs]
        # numpy's strides of an empty array are zeros, which ExecuTorch does not accept.
        outputs = self._method([x if x.numel() else torch.empty(x.shape, dtype=x.dtype) for x in inputs])
        return [x.numpy() for x in outputs]


def import_executorch() -> Any:
    """Import ExecuTorch's bindings, without the warning that they are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.extension.pybindings import portable_lib

    return portable_lib


def executorch_precision(path: Path) -> str:
    """The precision of the weights in the graphs that XNNPACK runs; int8 if any weight has it."""
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
