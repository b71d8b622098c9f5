"""FORMATS: the formats that a network is exported in, one module each. `folder.write_export` writes one of them.

Importing this package does not import torch, so that a wrong name is refused at once. A package of families may have
a table `FORMATS` of its own, for formats of its families alone.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from supernet.metadata import Measured

if TYPE_CHECKING:
    from supernet.model import Supernet

DYNAMIC, LEAST_OPSET = "dynamic", 17
Feeds = Sequence[Mapping[str, Any]]  # inputs by name, in batches

_HOMES = {
    "load": "supernet.saving",
    "part_to_executorch": "supernet.export.executorch",
    "part_to_onnx": "supernet.export.onnx",
    "quantize_onnx": "supernet.export.onnx",
    "quantize_openvino": "supernet.export.openvino",
    "save": "supernet.saving",
    "to_executorch": "supernet.export.executorch",
    "to_onnx": "supernet.export.onnx",
    "to_openvino": "supernet.export.openvino",
    "write_export": "supernet.export.folder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of an export.

    Args:
        batch: how many inputs a file takes at once: a number, or "dynamic" for any number.
        opset: version of the operators of ONNX files; None for the default.
        seen: {part: its inputs in batches}, from which int8 layers take their ranges.
        measured: what was measured of the network; it is written into the metadata.
        overwrite: replace an earlier export.
        fast: use a faster exporter, where there is one, whose files need only have the same latency.
    """

    batch: int | str = 1
    opset: int | None = None
    seen: Mapping[str, Feeds] | None = None
    measured: Measured = Measured()
    overwrite: bool = False
    fast: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files.

    Args:
        write: names the function "module:function" that writes the files of one part (part, path without suffix,
            request, feeds, ONNX properties); or, if `families` is given, of a network (network, folder, request).
        runtime: loads the files.
        suffix: of the files.
        precision: of the network in the files.
        packages: the distributions that write the files.
        extra: the extra of this project that installs them.
        batches: the kinds of batch size that files may be for: "fixed", "dynamic"; none for files that take any.
        has_opset: whether `Request.opset` applies.
        calibrates: whether int8 layers take their ranges from data.
        families: the only families that the format is for; all if left out.
        writers: the distributions whose versions identify files that are timed; `packages` if left out.
        fast: whether there is a faster exporter (`Request.fast`).
    """

    write: str
    runtime: str
    suffix: str = ""
    precision: str = "float32"
    packages: tuple[str, ...] = ()
    extra: str | None = None
    batches: tuple[str, ...] = ()
    has_opset: bool = False
    calibrates: bool = False
    families: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()
    fast: bool = False

    def function(self) -> Callable[..., Any]:
        module, _, name = self.write.partition(":")
        return getattr(import_module(module), name)

    def written_by(self) -> tuple[str, ...]:
        """The distributions that write the files, each with its version: another version may write slower files.

        ImportError, with what to install, where one of them is not installed.
        """
        found = []
        for package in self.writers or self.packages:
            try:
                found.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                what = f"'supernet[{self.extra}]'" if self.extra else package
                raise ImportError(f"{package} is not installed: pip install {what}") from None
        return tuple(found)


ANY = ("fixed", "dynamic")
FORMATS = {
    "onnx": Format(
        "supernet.export.onnx:write_onnx_part",
        "onnxruntime",
        ".onnx",
        packages=("onnx", "onnxscript"),
        batches=ANY,
        has_opset=True,
        writers=("torch", "onnxscript"),
        fast=True,
    ),
    "onnx-int8": Format(
        "supernet.export.onnx:write_onnx_int8_part",
        "onnxruntime",
        ".onnx",
        "int8",
        ("onnx", "onnxscript", "onnxruntime"),
        batches=ANY,
        has_opset=True,
        calibrates=True,
        writers=("torch", "onnxscript", "onnxruntime"),
        fast=True,
    ),
    "openvino": Format(
        "supernet.export.openvino:write_openvino_part",
        "openvino",
        ".xml",
        packages=("openvino",),
        extra="openvino",
        batches=ANY,
        writers=("torch", "onnxscript", "openvino"),
        fast=True,
    ),
    "openvino-int8": Format(
        "supernet.export.openvino:write_openvino_int8_part",
        "openvino",
        ".xml",
        "int8",
        ("openvino", "nncf"),
        "openvino",
        batches=ANY,
        calibrates=True,
        writers=("torch", "onnxscript", "nncf"),
        fast=True,
    ),
    "executorch": Format(
        "supernet.export.executorch:write_executorch_part",
        "executorch",
        ".pte",
        packages=("executorch",),
        extra="executorch",
        batches=("fixed",),
        writers=("torch", "executorch"),
    ),
    "executorch-int8": Format(
        "supernet.export.executorch:write_executorch_part",
        "executorch",
        ".pte",
        "int8",
        ("executorch", "torchao"),
        "executorch",
        batches=("fixed",),
        calibrates=True,
        writers=("torch", "executorch", "torchao"),
    ),
}


def known_formats() -> dict[str, Format]:
    """All formats by name: FORMATS, and those of the imported packages of families."""
    known = dict(FORMATS)
    for package in tuple(sys.modules.values()):
        names = getattr(package, "__dict__", {})
        if "FAMILIES" in names:
            known |= names.get("FORMATS", {})
    return known


def check_request(names: Sequence[str], batch: int | str, opset: int | None) -> None:
    """Raise ValueError, with what to do, for an unknown format or an option that a format does not take."""
    known = known_formats()
    for name in names:
        if name not in known:
            raise ValueError(f"format: {name!r} is not one of {', '.join(known)}")
    if isinstance(batch, str) and batch != DYNAMIC or not isinstance(batch, str) and batch < 1:
        raise ValueError(f"batch = {batch}: a number of at least 1, or {DYNAMIC}")
    if opset is not None:
        import onnx.defs

        newest = onnx.defs.onnx_opset_version()
        if not LEAST_OPSET <= opset <= newest:
            raise ValueError(f"opset = {opset}: at least {LEAST_OPSET}, at most {newest} (onnx {onnx.__version__})")
    kind = DYNAMIC if batch == DYNAMIC else "fixed"
    for name in names:
        if opset is not None and not known[name].has_opset:
            takers = ", ".join(other for other, format in known.items() if format.has_opset)
            raise ValueError(f"opset = {opset}: {name} has no opset ({takers} have): export {name} without --opset")
        if batch != 1 and kind not in known[name].batches:
            why = "its files are for one batch size" if known[name].batches else "it takes any batch size"
            raise ValueError(f"batch = {batch}: not for {name}, as {why}: export {name} without --batch {batch}")


def check_network(names: Sequence[str], network: Supernet, source: str) -> None:
    """Raise, before the work, where a format is not for this family or its packages are not installed."""
    family = type(network).__name__
    for name in names:
        format = known_formats()[name]
        if format.families and family not in format.families:
            raise ValueError(f"format: {name} is for {' and '.join(format.families)}, and {source} is a {family}")
        for package in format.packages if format.extra else ():
            require(package, format.extra)


def require(package: str, extra: str) -> None:
    """ImportError with what to install, where a package of an extra is not there."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed: pip install 'supernet[{extra}]'")
