"""`supernet export`: a subnet in other programs' formats."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from recipes.saved import check_saved, import_families, load_subnet, make_data, read_section


def export(
    subnet: str,
    out: str,
    format: str = "onnx",
    architecture: str | None = None,
    batch: int | str = 1,
    opset: int | None = None,
    data: str | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write a subnet in other programs' formats, each checked against the torch network.

    Beside the files of each format, metadata.json and README.md say how they are used, and what was measured where
    `subnet` is a folder that `specialize` wrote.

    Args:
        subnet: folder of a saved subnet, or of a supernet if `architecture` is given.
        out: folder to write to; files or a folder per format.
        format: comma-separated, of {formats}: timm is for convolutional networks, huggingface for translation.
        architecture: which subnet of a supernet: largest, smallest, or a JSON or YAML file of its config.
        batch: how many inputs the files take at once, or dynamic, any number; not for timm and huggingface, which take
            any, and ExecuTorch has no dynamic.
        opset: version of the operators of ONNX files, 17 or later; 20 if left out.
        data: a YAML file with class_path and init_args, to recalibrate BatchNorm of a supernet's subnet on, and to take
            the ranges of int8 layers from; the data the supernet was trained on if left out.
        overwrite: let it replace an earlier export.

    Returns:
        {format: what was written}
    """
    import_families()
    from supernet.atomic import check_writable
    from supernet.export import DYNAMIC, Request, check_network, check_request, known_formats

    names = list(dict.fromkeys(name.strip() for name in format.split(",")))
    check_request(names, batch, opset)
    check_writable(out)
    check_saved(subnet)
    for taken in (
        Path(out) / place for name in names for place in ([name, "subnet.onnx"] if name == "onnx" else [name])
    ):
        if taken.exists() and not overwrite:
            raise FileExistsError(f"{taken} already exists: choose another --out, or --overwrite true")
    from supernet.export.folder import check_place, write_export

    network, module = load_subnet(subnet, architecture, data, ())
    check_network(names, network, subnet)
    folder = Path(out)
    for name in names:
        check_place(network, name, folder, overwrite)
    calibrates = [name for name in names if known_formats()[name].calibrates]
    if data or calibrates:
        module = module or make_data(read_section(subnet, data), ())
        network.check_data(module.input_spec)
        network.input_spec = module.input_spec | network.input_spec  # older networks lack some of it
    fixed = {name: DYNAMIC not in known_formats()[name].batches for name in calibrates}
    feeds = {kind: calibration_inputs(network, module, batch, kind) for kind in set(fixed.values())}
    if network.input_spec and (lacks := unknown_facts(network)):
        print(f"{subnet} does not record {', '.join(lacks)}; where the data say it, --data adds it")
    measured, written = measured_of(subnet, network), {}
    for name in names:
        request = Request(batch, opset, feeds[fixed[name]] if name in fixed else None, measured, overwrite)
        written[name] = write_export(network, name, folder, request)
        print(f"{name}: {written[name]}")
    return written


def calibration_inputs(network: Any, data: Any, batch: int | str, fixed: bool) -> Any:
    """What the parts of a network get as inputs on its data, from which int8 layers take their ranges."""
    from supernet.export.parts import calibration_feeds

    size = batch if isinstance(batch, int) else 1
    return calibration_feeds(network, size, data.calibration_batches(), fixed)


def unknown_facts(network: Any) -> list[str]:
    """What the network does not say of its use that a user needs, as an older saved network may not."""
    from supernet.metadata import use_of

    facts = use_of(network).facts
    nested = [(f"{name}.{key}", x) for name, of in facts.items() if isinstance(of, dict) for key, x in of.items()]
    return [name for name, value in (*facts.items(), *nested) if value is None]


def measured_of(folder: str, network: Any) -> Any:
    """What the report.json beside a saved network says that was measured of it (a `Measured`); nothing without one."""
    import json

    from supernet.metadata import Measured

    path = Path(folder) / "report.json"
    if not path.is_file():
        return Measured()
    try:
        report = json.loads(path.read_text())
        of_it = report["config"] == json.loads(json.dumps(dataclasses.asdict(network.config)))
        return Measured.of(report) if of_it else Measured()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a report of specialize: {error}") from error
