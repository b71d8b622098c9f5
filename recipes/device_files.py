"""What a device loads of a network: the files, how they are written, and by which programs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from predictors.devices import Device
from predictors.runtimes import RUNTIMES
from predictors.runtimes.session import SUFFIXES, batches
from supernet.export import FORMATS, Request
from supernet.export.executorch import part_to_executorch
from supernet.export.folder import exported_as, saved_as
from supernet.export.onnx import finish_onnx, part_to_onnx, quantize_onnx
from supernet.export.openvino import quantize_openvino
from supernet.export.parts import PLAN, write_plan
from supernet.metadata import CARD_FILES, Exported, Measured, metadata_of, write_card
from supernet.model import Part, Supernet
from supernet.saving import NETWORK_FILES

PART_FILES = tuple(
    f"{part}{suffix}" for part in ("subnet", "encoder", "decoder") for suffix in (*SUFFIXES, ".bin")
)  # of any family, for any runtime
USE_FILES = ("translate.py", "tokenizer.json")  # of any family, beside its files
FILES = (*NETWORK_FILES, *PART_FILES, PLAN, *USE_FILES, *CARD_FILES, "report.json", "report.html", "front.png")
CALIBRATION, CALIBRATION_RUNS = 128, 16  # items, and runs, that the ranges of int8 networks are taken from
MEASURED_ROOM, PROPERTY = 2000, 16  # bytes that measured figures, and the frame of a property, take at most
CACHE, KEPT = 4e9, 64  # bytes of exported networks, and how many stay whatever they take


def write_parts(
    network: Supernet, device: Device, folder: Path, fast: bool, inputs: Iterable[Sequence[Tensor]]
) -> None:
    """Write the files that a device loads of a network to `folder`, and its plan, if it has several parts.

    `fast` takes a faster exporter, where there is one. For an int8 device the `inputs` of the network, in batches, are
    what it is calibrated on (`seen_by_parts`).
    """
    seen = seen_by_parts(network, device.batch, inputs) if device.precision == "int8" else {}
    for name, part in network.parts(device.batch).items():
        write_part(part, device, folder / name, fast, seen.get(name))
    write_plan(network, folder, device.batch)


def write_part(
    part: Part, device: Device, path: Path, fast: bool, seen: Sequence[Mapping[str, np.ndarray]] | None
) -> Path:
    """Write the file that a device loads of a part; `path` is without its suffix. With the inputs `seen`, as int8."""
    if RUNTIMES[device.runtime].files == ".pte":
        # Its file is for one batch size alone.
        fitting = seen and [some for feeds in seen for some in batches(feeds, part.limits.get("batch"))]
        return part_to_executorch(part, path.with_suffix(".pte"), fitting)
    if seen is None:
        return part_to_onnx(part, path.with_suffix(".onnx"), fast)
    with tempfile.TemporaryDirectory() as folder:
        source = part_to_onnx(part, Path(folder) / "float32.onnx", fast)
        if device.runtime == "openvino":
            return quantize_openvino(source, path.with_suffix(".xml"), seen)
        return quantize_onnx(source, path.with_suffix(".onnx"), seen)


@torch.inference_mode()
def seen_by_parts(
    network: Supernet, batch: int, inputs: Iterable[Sequence[Tensor]]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """What the parts of a network get as inputs, each in batches of the size that its file is for.

    That of the first `CALIBRATION` items of `inputs`; of a part that runs often, of `CALIBRATION_RUNS` of its runs.
    """
    parts, rng = network.parts(batch), np.random.default_rng(0)
    seen: dict[str, list[Mapping[str, np.ndarray]]] = {name: [] for name in parts}
    runs = dict.fromkeys(seen, 0)

    def watched(name: str, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if all(x.size for x in feeds.values()):  # caches are empty before the first step, and have no range
            runs[name] += 1
            place = len(seen[name]) if runs[name] <= CALIBRATION_RUNS else rng.integers(runs[name])
            if place < CALIBRATION_RUNS:
                seen[name][place : place + 1] = [feeds]
        part = parts[name]
        made = part.module(*(torch.from_numpy(feeds[key]) for key in part.names))
        return {key: x.numpy() for key, x in zip(part.outputs, [made] if isinstance(made, Tensor) else made)}

    items = 0
    for some in inputs:
        some = [x[: CALIBRATION - items] for x in some]
        network.run_parts(watched, network.prepare(some))
        if (items := items + len(some[0])) == CALIBRATION:
            break
    sizes = {name: None if part.dynamic else batch for name, part in parts.items()}
    return {name: [some for feeds in seen[name] for some in batches(feeds, sizes[name])] for name in parts}


def write_device_card(network: Supernet, device: Device, folder: Path, report: Mapping[str, Any], called: str) -> None:
    """Write metadata.json, README.md and what else is used with a device's files to their folder, which will be
    `called` so; and the metadata into ONNX files, whose graphs stay as they were timed."""
    suffixes = {".onnx", ".xml", ".pte"} & {file.suffix for file in folder.iterdir()}
    exported, measured = exported_for(network, device, suffixes), Measured.of(report)
    for file in folder.glob("*.onnx"):
        finish_onnx(file, None, metadata_of(network, exported, measured).properties())
    write_card(folder, network, exported, measured, called)


def exported_for(network: Supernet, device: Device, suffixes: Container[str]) -> Exported:
    """The description of a network's files of some suffixes for a device; of the saved network where there is none."""
    names = [name for name, format in FORMATS.items() if format.suffix in suffixes]
    parts = network.parts(device.batch)
    if names:
        name = next((name for name in names if FORMATS[name].precision == device.precision), names[0])
        exported = exported_as(name, parts, Request(device.batch))
    else:
        exported = saved_as(network, parts)
    return dataclasses.replace(exported, runtime=device.runtime)


def metadata_room(network: Supernet, device: Device) -> int:
    """By how many bytes the metadata may enlarge a network's ONNX files, what is measured of it included."""
    if RUNTIMES[device.runtime].files != ".onnx" or (device.runtime, device.precision) == ("openvino", "int8"):
        return 0  # other files, or none
    count = len(network.parts(device.batch))
    properties = metadata_of(network, exported_for(network, device, {".onnx"}), Measured()).properties()
    return count * (MEASURED_ROOM + sum(len(f"{name}{text}".encode()) + PROPERTY for name, text in properties.items()))


def written_by(runtime: str, precision: str) -> tuple[str, ...]:
    """The programs that write the files which a runtime loads: other versions may write files that take other times."""
    files = RUNTIMES[runtime].files
    packages = {None: [], ".pte": ["torch", "executorch"]}.get(files, ["torch", "onnxscript"])
    if precision == "int8":
        packages = [*packages, {"openvino": "nncf", "executorch": "torchao"}.get(runtime, "onnxruntime")]
    try:
        return tuple(f"{package} {importlib.metadata.version(package)}" for package in packages)
    except importlib.metadata.PackageNotFoundError as error:
        extra = RUNTIMES[runtime].extra
        what = f"'supernet[{extra}]'" if extra else error.name
        raise ImportError(f"{error.name} is not installed: pip install {what}") from None


def writers() -> list[tuple[str, ...]]:
    """`written_by` of all that is installed here, each once."""
    found = {}
    for name, runtime in RUNTIMES.items():
        for precision in runtime.precisions:
            with suppress(ImportError):
                found[written_by(name, precision)] = None
    return list(found)


def trim(files: Path, most: float | None = None, least: int | None = None) -> None:
    """Delete networks' folders while all take more than `most` bytes (`CACHE`), the longest unused first; the `least`
    number (`KEPT`) stay.

    Other processes may write, and trim, the same.
    """
    found = []
    for folder in files.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):  # which are not yet whole
            with suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in folder.iterdir())
                found.append((folder.stat().st_mtime_ns, folder, size))
    surplus = sum(size for *_, size in found) - (CACHE if most is None else most)
    for _, folder, size in sorted(found)[: -(KEPT if least is None else least)]:
        if surplus <= 0:
            return
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        surplus -= size
