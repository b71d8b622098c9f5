"""OpenVINO files, in float32 and int8: converted from ONNX, quantized by NNCF."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from supernet.atomic import sync
from supernet.export import Feeds, Request, require
from supernet.export.onnx import write_onnx_part
from supernet.export.parts import check_outputs
from supernet.model import Part


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
            # Weights have 7 bits: without VNNI instructions, a CPU saturates sums of two products of 8 bits.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    for output in openvino.compile_model(quantized, "CPU")(batches[0]).values():
        if not np.isfinite(output).all():
            raise ValueError(f"{source} quantized gives outputs that are NaN or infinite")
    save_openvino(quantized, path)
    return path


def write_openvino_part(part: Part, path: Path, request: Request, feeds: None, properties: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_onnx_part(part, source := Path(folder) / "float32.onnx", request, None, {})
        to_openvino(part, source, path.with_suffix(".xml"))


def write_openvino_int8_part(
    part: Part, path: Path, request: Request, feeds: Feeds, properties: Mapping[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_onnx_part(part, source := Path(folder) / "float32.onnx", request, None, {})
        quantize_openvino(source, path.with_suffix(".xml"), feeds)
