"""The files of saved networks and of runs, and the description of a network. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1
NETWORK_FILES = DESCRIPTION, WEIGHTS = "network.json", "network.safetensors"
LAST = Path("checkpoints") / "last.ckpt"  # of a run


def read_description(folder: str | Path) -> dict[str, Any]:
    """The description in a folder that `save` wrote, checked for completeness."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        inside = f"; {path.parent / 'supernet'} has" if (path.parent / "supernet" / DESCRIPTION).is_file() else ""
        raise ValueError(f"{folder} does not hold a saved network: it has no {DESCRIPTION}{inside}")
    try:
        description = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path} is not a description of format {FORMAT}")
    missing = {"family", "arguments", "space", "config", "input_spec"} - description.keys()
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}")
    if not isinstance(description["input_spec"], dict):
        raise ValueError(f"{path}: input_spec is {description['input_spec']!r}, not a mapping")
    return description
