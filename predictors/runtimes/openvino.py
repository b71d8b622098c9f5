"""OpenVINO, of .onnx and .xml files, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OPENVINO_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "int8"}


class OpenVinoSession:
    """An .onnx or .xml file in OpenVINO."""

    def __init__(self, path: Path, *, threads: int, precision: str) -> None:
        import openvino

        core = openvino.Core()
        options = {
            # By default OpenVINO computes float32 in bfloat16 where the processor has it.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the calling thread is pinned
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", options)
        for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS"):
            if (actual := compiled.get_property(name)) != options[name]:
                raise RuntimeError(f"OpenVINO set {name} to {actual}, not to {options[name]}")
        # Names are those of the model: the compiled one adds those of layers that it has removed.
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


def openvino_precision(compiled: Any) -> str:
    """The precision of the layers with weights, as the compiled graph reports it; int8 if any layer has it."""
    found = set()
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul"):
            found.add(info["runtimePrecision"].astype(str))
    names = {OPENVINO_TYPES.get(name, name) for name in found}
    return "int8" if "int8" in names else "+".join(sorted(names)) or "unknown"
