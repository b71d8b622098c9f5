"""The formats that a network is exported in: FORMATS, and how one is written, with what its user needs beside it.

Importing this module imports no torch, so that a wrong name is answered at once. A package of families may have a
table `FORMATS` of its own, of formats for its families alone.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.metadata import CARD_FILES, METADATA, README, Exported, Measured, metadata_of, tensors, use_of, write_card

if TYPE_CHECKING:
    from supernet.model import Part, Supernet

DYNAMIC, LEAST_OPSET = "dynamic", 17
Feeds = Sequence[Mapping[str, Any]]  # inputs by name, in batches


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of an export: `batch`, a number or "dynamic"; `opset`, None for the default; `overwrite`.

    `seen` are the inputs of each part that int8 layers take their ranges from, `measured` what is known of the network.
    """

    batch: int | str = 1
    opset: int | None = None
    seen: Mapping[str, Feeds] | None = None
    measured: Measured = Measured()
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files.

    `write` names the function "module:function" that writes them: of one part (part, path without suffix, request,
    feeds, ONNX properties); or, where `families` has the only families that it is for, of a network
    (network, folder, request). `runtime` loads the files, `suffix` is theirs. `packages` are the distributions that
    write them; `extra` is ours that installs them. `batches` are the forms of batch size that it takes: "fixed",
    "dynamic"; without one it takes any. `calibrates` on inputs; `has_opset`: takes an ONNX opset.
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

    def function(self) -> Callable[..., Any]:
        module, _, name = self.write.partition(":")
        return getattr(import_module(module), name)


ANY = ("fixed", "dynamic")
FORMATS = {
    "onnx": Format(
        "supernet.formats:write_onnx_part",
        "onnxruntime",
        ".onnx",
        packages=("onnx", "onnxscript"),
        batches=ANY,
        has_opset=True,
    ),
    "onnx-int8": Format(
        "supernet.formats:write_onnx_int8_part",
        "onnxruntime",
        ".onnx",
        "int8",
        ("onnx", "onnxscript", "onnxruntime"),
        batches=ANY,
        has_opset=True,
        calibrates=True,
    ),
    "openvino": Format(
        "supernet.formats:write_openvino_part",
        "openvino",
        ".xml",
        packages=("openvino",),
        extra="openvino",
        batches=ANY,
    ),
    "openvino-int8": Format(
        "supernet.formats:write_openvino_int8_part",
        "openvino",
        ".xml",
        "int8",
        ("openvino", "nncf"),
        "openvino",
        batches=ANY,
        calibrates=True,
    ),
    "executorch": Format(
        "supernet.formats:write_executorch_part",
        "executorch",
        ".pte",
        packages=("executorch",),
        extra="executorch",
        batches=("fixed",),
    ),
    "executorch-int8": Format(
        "supernet.formats:write_executorch_part",
        "executorch",
        ".pte",
        "int8",
        ("executorch", "torchao"),
        "executorch",
        batches=("fixed",),
        calibrates=True,
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
    from supernet.export import require

    family = type(network).__name__
    for name in names:
        format = known_formats()[name]
        if format.families and family not in format.families:
            raise ValueError(f"format: {name} is for {' and '.join(format.families)}, and {source} is a {family}")
        for package in format.packages if format.extra else ():
            require(package, format.extra)


def place(network: Supernet, name: str, out: Path) -> Path:
    """What the export in a format is, inside `out`: a file where ONNX is one file, else a folder of that name."""
    return out / "subnet.onnx" if name == "onnx" and list(network.parts()) == ["subnet"] else out / name


def write_export(network: Supernet, name: str, out: Path, request: Request) -> Path:
    """Write an extracted network in a format into `out`, checked, and metadata.json and README.md beside it.

    Returns the file or the folder (see `place`). It appears whole, or not at all. FileExistsError where it is there,
    unless `request.overwrite`.
    """
    from supernet.export import write_folder

    format, target = known_formats()[name], place(network, name, out)
    check_place(network, name, out, request.overwrite)
    if format.families:
        format.function()(network, target, request)
    elif target.suffix:
        write_beside(target, lambda folder: write_parts(network, name, folder, out.resolve().name, request))
    else:
        files = (*file_names(network, format), *use_of(network).files, *CARD_FILES)
        write_folder(
            target, lambda folder: write_parts(network, name, folder, target.name, request), files, request.overwrite
        )
    return target


def check_place(network: Supernet, name: str, out: Path, overwrite: bool) -> None:
    """Raise FileExistsError where an export would replace something without having been asked to."""
    target = place(network, name, out)
    taken = [path for path in (target, *(out / file for file in CARD_FILES if target.suffix)) if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} already exists: choose another --out, or --overwrite true")
    if target.suffix and (out / README).exists() and not (out / METADATA).exists():
        raise FileExistsError(f"{out / README} is not of an earlier export: choose another --out")


def write_beside(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary folder, then give its files their place beside others. Each appears whole; `target`
    comes last."""
    from supernet.export import sync

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as temporary:
        write(Path(temporary))
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == target.name):
            file.chmod(0o644)
            sync(file)
            os.replace(file, target.parent / file.name)
    sync(target.parent)


def file_names(network: Supernet, format: Format) -> list[str]:
    """The files of a network's parts, and its plan."""
    from supernet.export import PLAN

    parts = list(network.parts())
    suffixes = (".xml", ".bin") if format.suffix == ".xml" else (format.suffix,)
    return [f"{part}{suffix}" for part in parts for suffix in suffixes] + ([PLAN] if len(parts) > 1 else [])


def write_parts(network: Supernet, name: str, folder: Path, called: str, request: Request) -> None:
    """Write the files of each part to `folder`, which will be `called` so, and what their user needs."""
    from supernet.export import evaluating, write_plan

    format = known_formats()[name]
    size = 1 if request.batch == DYNAMIC else request.batch
    with evaluating(network):
        parts = batched_parts(network, request.batch)
        exported = exported_as(name, parts, request)
        properties = metadata_of(network, exported, request.measured).properties()
        for part_name, part in parts.items():
            feeds = request.seen[part_name] if format.calibrates else None
            format.function()(part, folder / part_name, request, feeds, properties)
        write_plan(network, folder, size)
        write_card(folder, network, exported, request.measured, called)


def batched_parts(network: Supernet, batch: int | str) -> dict[str, Part]:
    """The parts of a network; with a dynamic batch, the first axis of all inputs and outputs may have any size."""
    if batch != DYNAMIC:
        return network.parts(batch)

    def opened(part: Part) -> Part:
        axes = {name: {0: "batch"} for name in (*part.names, *part.outputs)}
        return part if part.dynamic else dataclasses.replace(part, dynamic=axes)

    parts = network.parts(2)  # exporters take a size of 1 for a constant
    return {name: opened(part) for name, part in parts.items()}


def exported_as(name: str, parts: Mapping[str, Part], request: Request) -> Exported:
    """The description of the files that a format writes."""
    from supernet.export import ONNX_OPSET, for_one_batch

    format, inputs, outputs = known_formats()[name], {}, {}
    batch = request.batch
    for part_name, part in parts.items():
        part = for_one_batch(part) if part.dynamic and DYNAMIC not in format.batches else part
        file = part_name + format.suffix
        inputs[file] = tensors(part, part.inputs, part.names)
        outputs[file] = tensors(part, made_by(part), part.outputs)
    return Exported(
        format=name,
        runtime=format.runtime,
        precision=format.precision,
        files=tuple(inputs),
        inputs=inputs,
        outputs=outputs,
        batch=DYNAMIC if all(x["shape"][:1] == ["batch"] for of in inputs.values() for x in of.values()) else batch,
        opset=(request.opset or ONNX_OPSET) if format.has_opset else None,
        programs=format.packages,
    )


def saved_as(network: Supernet, parts: Mapping[str, Part]) -> Exported:
    """The description of a folder that holds a saved network alone, which torch runs."""
    from supernet.export import WEIGHTS

    (dtype,) = {str(x.dtype).removeprefix("torch.") for x in network.parameters()}
    inputs = {
        WEIGHTS: {name: x for part in parts.values() for name, x in tensors(part, part.inputs, part.names).items()}
    }
    return Exported("network", "torch", dtype, (WEIGHTS,), inputs, {})


def made_by(part: Part) -> Sequence[Any]:
    """The outputs of a part on its example inputs."""
    import torch

    with torch.no_grad():
        made = part.module(*part.inputs)
    return [made] if isinstance(made, torch.Tensor) else made


# ------------------------------------------------------------------------------------------------ the writers


def write_onnx_part(
    part: Part, path: Path, request: Request, feeds: Feeds | None, properties: Mapping[str, str]
) -> None:
    from supernet.export import ONNX_OPSET, check_onnx, part_to_onnx

    path = part_to_onnx(part, path.with_suffix(".onnx"), opset=request.opset or ONNX_OPSET, properties=properties)
    if all(part.dynamic.get(name, {}).get(0) == "batch" for name in part.names):  # it was written of a larger batch
        check_onnx(dataclasses.replace(part, inputs=tuple(x[:1] for x in part.inputs)), path)


def write_onnx_int8_part(part: Part, path: Path, request: Request, feeds: Feeds, properties: Mapping[str, str]) -> None:
    from supernet.export import quantize_onnx

    with tempfile.TemporaryDirectory() as folder:
        write_onnx_part(part, source := Path(folder) / "float32.onnx", request, None, {})
        quantize_onnx(source, path.with_suffix(".onnx"), feeds, properties)


def write_openvino_part(part: Part, path: Path, request: Request, feeds: None, properties: Mapping[str, str]) -> None:
    from supernet.export import to_openvino

    with tempfile.TemporaryDirectory() as folder:
        write_onnx_part(part, source := Path(folder) / "float32.onnx", request, None, {})
        to_openvino(part, source, path.with_suffix(".xml"))


def write_openvino_int8_part(
    part: Part, path: Path, request: Request, feeds: Feeds, properties: Mapping[str, str]
) -> None:
    from supernet.export import quantize_openvino

    with tempfile.TemporaryDirectory() as folder:
        write_onnx_part(part, source := Path(folder) / "float32.onnx", request, None, {})
        quantize_openvino(source, path.with_suffix(".xml"), feeds)


def write_executorch_part(
    part: Part, path: Path, request: Request, feeds: Feeds | None, properties: Mapping[str, str]
) -> None:
    from supernet.export import part_to_executorch

    part_to_executorch(part, path.with_suffix(".pte"), feeds)
