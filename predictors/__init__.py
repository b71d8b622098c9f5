"""Predictors of latency and accuracy, and the measurements that they are fitted on."""

from importlib import import_module
from typing import Any

_HOMES = {
    "AccuracyPredictor": "predictors.accuracy",
    "DEVICES": "predictors.devices",
    "Device": "predictors.devices",
    "Failure": "predictors.statistics",
    "LatencyPredictor": "predictors.latency",
    "Measurement": "predictors.statistics",
    "RUNTIMES": "predictors.runtimes",
    "Runtime": "predictors.runtimes",
    "Store": "predictors.store",
    "get_device": "predictors.devices",
    "latencies": "predictors.statistics",
    "network_id": "predictors.store",
    "quality": "predictors.latency",
    "time_networks": "predictors.timing",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
