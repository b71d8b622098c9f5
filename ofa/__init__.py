"""Once-for-All supernets: convolutional networks, elastic in kernel, depth, width and resolution."""

from importlib import import_module
from typing import Any

from supernet.export import Format

FAMILIES = ("MobileNetV3",)  # the supernets, which saved networks name
DATA_MODULES = ("ImageData",)
FORMATS = {
    "timm": Format("ofa.timm:export_timm", "timm", packages=("timm", "safetensors"), families=("MobileNetV3",)),
}

_HOMES = {
    "LatencyTable": "ofa.latency_table",
    "MobileNetV3": "ofa.mobilenet_v3",
    "MobileNetV3Config": "ofa.mobilenet_v3",
    "mobilenet_v3_space": "ofa.mobilenet_v3",
    "ImageData": "ofa.data",
}


_MODULES = ("timm", "weights")  # imported when they are asked for


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"ofa.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_MODULES])
