"""The lab: how configs become numbers, for one supernet, its data, one device and the store of measurements."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.lab.lab import Lab

# The two forms of a network's files, by the names that stores of measurements have for them.
PROXY = "search"  # a quick export that is only timed
RELEASE = "final"  # the delivered file


def open_lab(*arguments: Any, **options: Any) -> AbstractContextManager[Lab]:
    """See `recipes.lab.lab.open_lab`, which imports torch."""
    return import_module("recipes.lab.lab").open_lab(*arguments, **options)
