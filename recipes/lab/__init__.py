"""The lab: how configs become numbers, for one supernet, its data, one device and the store of measurements."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.lab.lab import Lab


def open_lab(*arguments: Any, **options: Any) -> AbstractContextManager[Lab]:
    """See `recipes.lab.lab.open_lab`, which imports torch."""
    return import_module("recipes.lab.lab").open_lab(*arguments, **options)
