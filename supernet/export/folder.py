"""One export: the files of a network in a format, with metadata.json and README.md beside them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from supernet.atomic import sync, write_folder
from supernet.export import DYNAMIC, Format, Request, known_formats
from supernet.export.executorch import for_one_batch
from supernet.export.onnx import ONNX_OPSET
from supernet.export.parts import PLAN, batched_parts, evaluating, made_by, write_plan
from supernet.metadata import CARD_FILES, METADATA, README, Exported, metadata_of, tensors, use_of, write_card
from supernet.model import Part, Supernet
from supernet.saving import WEIGHTS


def place(network: Supernet, name: str, out: Path) -> Path:
    """What the export in a format is, inside `out`: a file where ONNX is one file, else a folder of that name."""
    return out / "subnet.onnx" if name == "onnx" and list(network.parts()) == ["subnet"] else out / name


def write_export(network: Supernet, name: str, out: Path, request: Request) -> Path:
    """Write an extracted network in a format into `out`, checked, and metadata.json and README.md beside it.

    Returns the file or the folder (see `place`). It appears whole, or not at all. FileExistsError where it is there,
    unless `request.overwrite`.
    """
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
    parts = list(network.parts())
    suffixes = (".xml", ".bin") if format.suffix == ".xml" else (format.suffix,)
    return [f"{part}{suffix}" for part in parts for suffix in suffixes] + ([PLAN] if len(parts) > 1 else [])


def write_parts(network: Supernet, name: str, folder: Path, called: str, request: Request) -> None:
    """Write the files of each part to `folder`, which will be `called` so, and what their user needs."""
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


def exported_as(name: str, parts: Mapping[str, Part], request: Request) -> Exported:
    """The description of the files that a format writes."""
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
    (dtype,) = {str(x.dtype).removeprefix("torch.") for x in network.parameters()}
    inputs = {
        WEIGHTS: {name: x for part in parts.values() for name, x in tensors(part, part.inputs, part.names).items()}
    }
    return Exported("network", "torch", dtype, (WEIGHTS,), inputs, {})
