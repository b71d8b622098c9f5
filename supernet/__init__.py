"""The core of the framework: search spaces, elastic layers, supernets, progressive shrinking, search and export.

The public names are imported when they are first used: `import supernet` imports nothing else.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Choice": "supernet.space",
    "InfeasibleError": "supernet.search",
    "Phase": "supernet.phases",
    "SearchResult": "supernet.search",
    "SearchSpace": "supernet.space",
    "SubnetValidation": "supernet.training",
    "Supernet": "supernet.model",
    "SupernetTask": "supernet.training",
    "calibrate": "supernet.model",
    "evaluate_network": "supernet.evaluation",
    "evolutionary_search": "supernet.search",
    "load": "supernet.saving",
    "random_search": "supernet.search",
    "METRICS": "supernet.evaluation",
    "Metric": "supernet.evaluation",
    "SEARCHES": "supernet.search",
    "save": "supernet.saving",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
