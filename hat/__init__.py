"""Hardware-Aware Transformers: translation supernets, elastic in width, depth, heads and attention span.

Where a network computes or trains otherwise than the same one of HAT's code, on purpose, `hat.weights` says.
"""

from importlib import import_module
from typing import Any

from supernet.export import Format

FAMILIES = ("Transformer",)  # the supernets, which saved networks name
DATA_MODULES = ("ParallelText",)
FORMATS = {
    "huggingface": Format(
        "hat.huggingface:export_huggingface", "transformers", packages=("transformers",), families=("Transformer",)
    ),
}

_HOMES = {
    "Transformer": "hat.transformer",
    "TransformerConfig": "hat.transformer",
    "transformer_space": "hat.transformer",
    "space0": "hat.transformer",
    "space1": "hat.transformer",
    "ParallelText": "hat.data",
}


_MODULES = ("huggingface", "translation", "weights")  # imported when they are asked for


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"hat.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_MODULES])
