"""Predictors of latency and accuracy, the devices that latency is measured on, and the store of measurements."""

from importlib import import_module
from typing import Any

_HOMES = {
    "AccuracyPredictor": "predictors.accuracy",
    "LatencyPredictor": "predictors.latency",
    "Device": "predictors.devices",
    "get_device": "predictors.devices",
    "measure": "predictors.devices",
    "Store": "predictors.store",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
