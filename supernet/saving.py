"""The folder of a saved network: a supernet or a subnet as JSON and safetensors, without pickle."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from supernet.atomic import write_folder
from supernet.description import DESCRIPTION, FORMAT, NETWORK_FILES, WEIGHTS, read_description
from supernet.model import Supernet
from supernet.space import SearchSpace
from supernet.values import json_value


def describe(network: Supernet) -> dict[str, Any]:
    """What makes the network again, apart from its weights: JSON values only."""
    return {
        "format": FORMAT,
        "family": type(network).__name__,
        "arguments": json_value("arguments", network.arguments),
        "space": network.space.to_dict(),
        "config": json_value("config", dataclasses.asdict(network.config)) if network.extracted else None,
        "input_spec": json_value("input_spec", network.input_spec),
    }  # the dtype is that of the weights


def build(description: dict[str, Any]) -> Supernet:
    """A network of fresh weights from its description."""
    family = find_family(description["family"])
    space = SearchSpace.from_dict(family.config_class, description["space"])
    network = family(space, **description["arguments"])
    if description["config"] is not None:
        network = network.extract(family.config_class(**description["config"]))
    network.input_spec = description["input_spec"]
    return network


def find_family(name: str) -> type[Supernet]:
    """The imported Supernet class of that name, or the one that an imported package lists in its FAMILIES.

    A file names a family, never a module to import. ValueError if there is none.
    """
    for package in tuple(sys.modules.values()):
        if name in getattr(package, "__dict__", {}).get("FAMILIES", ()):
            return getattr(package, name)
    families = {cls.__name__: cls for cls in Supernet.__subclasses__()}
    if name not in families:
        raise ValueError(f"no imported family is named {name!r} (known: {sorted(families)}): import its package first")
    return families[name]


def save(network: Supernet, folder: str | Path, data: dict[str, Any] | None = None, overwrite: bool = False) -> Path:
    """Write a supernet or a subnet as a folder of JSON and safetensors; all of it or, on an error, none.

    `data` is kept beside it: how the data it was trained on are made again.
    """
    if not isinstance(network, Supernet):
        raise TypeError(f"save writes a supernet or a subnet that extract() returned, not a {type(network).__name__}")
    folder = Path(folder)
    write_folder(folder, lambda temporary: write_network(network, temporary, data), NETWORK_FILES, overwrite)
    return folder


def write_network(network: Supernet, folder: Path, data: dict[str, Any] | None) -> None:
    """Write the two files of a saved network into a folder that is there."""
    (folder / DESCRIPTION).write_text(json.dumps(describe(network) | {"data": data}, indent=1) + "\n")
    state = network.state_dict()
    same = aliases(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items() if name not in same}, folder / WEIGHTS)


def aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: earlier name} of the tensors of a state that are another one's, as tied embeddings are."""
    first: dict[tuple[int, torch.Size], str] = {}
    same = {}
    for name, tensor in state.items():
        earlier = first.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if earlier != name:
            same[name] = earlier
    return same


def load(folder: str | Path) -> Supernet:
    """The network that `save` wrote, in eval mode; a folder that is not one raises ValueError."""
    description = read_description(folder)
    try:
        network = build(description)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{Path(folder) / DESCRIPTION} does not describe a network: {type(error).__name__}: {error}"
        ) from error
    try:
        state = load_file(Path(folder) / WEIGHTS)
        for dtype in {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}:
            network.to(dtype)
        network.load_state_dict(state | {name: state[first] for name, first in aliases(network.state_dict()).items()})
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{Path(folder) / WEIGHTS} cannot be read as this network's weights: {error}") from error
    return network.eval()
