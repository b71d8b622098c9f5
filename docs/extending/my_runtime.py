"""A runtime: ONNX's reference implementation in NumPy; and a device that times networks in it."""

import numpy as np

from predictors.devices import DEVICES, Device
from predictors.runtimes import RUNTIMES, of_files


class ReferenceSession:
    """An .onnx file in onnx.reference."""

    precision = "float32"

    def __init__(self, path, *, threads: int, precision: str) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(str(path))
        inputs = self._evaluator.proto_.graph.input
        shapes = {x.name: tuple(dim.dim_value or None for dim in x.type.tensor_type.shape.dim) for x in inputs}
        self.inputs = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}
        self.outputs = list(self._evaluator.output_names)

    def run(self, feeds):
        return self._evaluator.run(None, dict(feeds))


RUNTIMES["reference"] = of_files(ReferenceSession, "onnx", formats={"float32": "onnx"})
DEVICES["reference"] = Device("reference", "reference", rounds=4, runs=5, sessions=2, spacing=0.0)
