"""What a saved folder holds, and the data that belong to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

LOADERS = {"held_out": "val_dataloader", "test": "test_dataloader"}  # of a data module, by split


def read_split(name: str) -> str:
    """The name of a split as in Python, where the command line has a hyphen; ValueError lists the splits."""
    if (split := name.replace("-", "_")) not in LOADERS:
        raise ValueError(f"split: {name!r} is neither {' nor '.join(LOADERS).replace('_', '-')}")
    return split


def load_subnet(folder: str, architecture: str | None, data: str | None, splits: Sequence[str]) -> tuple[Any, Any]:
    """A saved subnet, or the subnet of a supernet that `architecture` names; and the data module, if one was made.

    ValueError where the folder does not hold a saved network, before torch is imported.
    """
    extracted = check_saved(folder)
    if extracted and architecture is not None:
        raise ValueError(f"{folder} is a subnet, which has one architecture: leave {architecture} out")
    if not extracted and architecture is None:
        raise ValueError(
            f"{folder} is a supernet: name a subnet of it (--architecture largest, smallest or a file of a config)"
        )
    if architecture is not None:
        check_architecture(architecture)
    if data is not None and not Path(data).is_file():
        raise FileNotFoundError(f"--data {data}: this file does not exist")
    import_families()
    from supernet.model import calibrate
    from supernet.saving import load

    network = load(folder)
    if extracted:
        return network, None
    subnet = network.extract(read_config(network.space, architecture)).eval()
    module = make_data(read_section(folder, data), splits)
    network.check_data(module.input_spec)
    return calibrate(subnet, module.calibration_batches()), module


def check_saved(folder: str) -> bool:
    """Whether a folder holds a subnet, not a supernet; ValueError where it holds neither. It imports no torch."""
    from supernet.description import read_description

    return read_description(folder)["config"] is not None


def check_supernet(folder: str, data: str | None = None) -> None:
    """Raise ValueError where a folder does not hold a supernet, or a file of data is missing. It imports no torch."""
    if check_saved(folder):
        raise ValueError(f"{folder} is a subnet: this needs its supernet")
    if data is not None and not Path(data).is_file():
        raise FileNotFoundError(f"--data {data}: this file does not exist")


def check_architecture(name: str) -> None:
    """Raise ValueError where the name of a config is neither largest nor smallest nor a file."""
    if name not in ("largest", "smallest") and not Path(name).is_file():
        raise ValueError(f"architecture: {name!r} is not largest, smallest or the name of a file")


def read_config(space: Any, name: str) -> Any:
    """A config of the space: its largest, its smallest, or what a JSON or YAML file says (a report.json, too)."""
    import yaml

    if name in ("largest", "smallest"):
        return getattr(space, name)()
    check_architecture(name)
    try:
        values = yaml.safe_load(Path(name).read_text())
        if isinstance(values, dict) and isinstance(values.get("config"), dict):
            values = values["config"]
        fields = {field.name for field in dataclasses.fields(space.config_class)}
        if isinstance(values, dict) and (lacks := fields - values.keys()):
            raise ValueError(f"it lacks {', '.join(sorted(lacks))}")
        config = space.config_class(**values)
        space.encode([config])
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} is not a config of a {space.config_class.__name__}: {error}") from error
    return config


def import_families() -> None:
    """Import the families and installed plug-ins, so that saved networks can be loaded and recipes can name them.

    Plug-ins are the entry points of the group supernet.plugins of installed packages.

    Raises ImportError where another distribution's package `ofa` (there is one on PyPI) has overwritten ours.
    """
    import hat  # noqa: F401
    import ofa

    if not hasattr(ofa, "FAMILIES"):
        place = getattr(ofa, "__file__", None) or list(ofa.__path__)[0]  # a package without __init__ has no file
        raise ImportError(
            f"{place} is another project's package `ofa`, which has overwritten this one's: use an environment without"
            " it, or `pip uninstall ofa` and install supernet again"
        )
    for point in entry_points(group="supernet.plugins"):
        point.load()


def read_section(folder: str, data: str | None = None) -> dict[str, Any]:
    """The class_path and init_args of a YAML file, or of the data that a saved network was trained on."""
    import yaml

    from supernet.description import read_description

    try:
        section = yaml.safe_load(Path(data).read_text()) if data else read_description(folder).get("data")
    except yaml.YAMLError as error:
        raise ValueError(f"{data} is not YAML: {error}") from error
    if not isinstance(section, dict) or "class_path" not in section:
        raise ValueError(f"{data or folder} does not say its data: give --data, a YAML file with class_path, init_args")
    return section


def make_data(section: dict[str, Any], splits: Sequence[str] = tuple(LOADERS)) -> Any:
    """The data module of a class_path and init_args, set up; ValueError for one that lacks what networks need, or one
    of the `splits`."""
    import pytorch_lightning as pl
    from jsonargparse import ArgumentError, ArgumentParser

    from supernet.data import check_calibration, check_loader, check_module, seeded
    from supernet.values import json_value

    import_from_here()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    with seeded():  # as in a training: a split at random is the same one
        try:
            data = parser.instantiate(parser.parse_object({"data": section})).data
        except ArgumentError as error:
            looked = looked_in(str(section["class_path"]))
            raise ValueError(
                f"the data {section}: {error}{looked}\n--data gives other data, or another root"
            ) from error
    data.prepare_data()
    for stage in ("fit", "test") if "test" in splits else ("fit",):
        data.setup(stage)
    check_module(data, ["input_spec", "calibration_batches", *(LOADERS[split] for split in splits)])
    if not isinstance(getattr(type(data), "input_spec", None), property):
        data.input_spec = json_value("input_spec", data.input_spec)  # of arrays, too, networks and their ids are made
    check_calibration(data, None)
    for name in (LOADERS[split] for split in splits):
        check_loader(getattr(data, name)(), f"{type(data).__name__}.{name}()", data.input_spec, None)
    return data


def import_from_here() -> None:
    """Let modules of the current folder be imported, after all others: a file there hides no installed package."""
    import os
    import sys

    try:
        here = os.getcwd()
    except FileNotFoundError:  # the folder was removed
        return
    if not {"", here} & set(sys.path):
        # An editable install is found by a finder that runs after sys.path: its folder has to come before `here`.
        sys.path += [str(Path(__file__).parents[1]), here]


def looked_in(class_path: str) -> str:
    """Where a class was looked for, as the end of an error message; nothing where its module was found and has it."""
    import os
    from importlib import import_module

    module, _, name = class_path.rpartition(".")
    try:
        found = import_module(module or name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module or name}.".startswith(f"{error.name}."):
            return ""  # it was found, and imports what is not there
        return f"\nlooked for {error.name} among the installed packages and in the current folder, {os.getcwd()}"
    except Exception:  # whatever the module does; the parser's message has it
        return ""
    if module and not hasattr(found, name):
        place = getattr(found, "__file__", None) or "no file"
        return f"\n{module} is {place}, which has no {name}: rename your file where it has the name of a package"
    return ""
