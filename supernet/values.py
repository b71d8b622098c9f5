"""Plain Python values out of what users hand in: numbers of NumPy or torch, seeds, values for JSON."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

IGNORE = -100  # a target that does not count, as in torch


def unwrapped(value: Any) -> Any:
    """A NumPy scalar, or an array or tensor without axes, as the Python value in it; anything else as it is."""
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0):
        return value.item()
    return value


def number(name: str, value: Any) -> int | float:
    """A number as Python's int or float; ValueError where `value` is anything else, such as a text or a bool."""
    plain = unwrapped(value)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise ValueError(f"{name} = {value!r} is a {type(value).__name__}: a number is expected")
    return plain


def real(name: str, value: Any) -> float:
    """A number as Python's float; ValueError as in `number`."""
    return float(number(name, value))


def integer(name: str, value: Any, least: int | None = None) -> int:
    """A whole number as Python's int, at least `least`; 3.0 is one. ValueError otherwise."""
    plain = number(name, value)
    if not math.isfinite(plain) or plain != int(plain):
        raise ValueError(f"{name} = {plain} is not a whole number")
    if least is not None and plain < least:
        raise ValueError(f"{name} = {plain:g}: at least {least}")
    return int(plain)


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """A NumPy generator: the given one, or a new one from a seed (a whole number of at least 0, or several)."""
    plain = unwrapped(rng)
    if isinstance(plain, (np.random.Generator, np.random.SeedSequence, np.random.BitGenerator)):
        return np.random.default_rng(plain)
    if isinstance(plain, (tuple, list)):
        return np.random.default_rng([integer(name, part, 0) for part in plain])
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise ValueError(f"{name} = {rng!r} is neither a seed (a whole number) nor a numpy.random.Generator")
    return np.random.default_rng(integer(name, plain, 0))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the known name that is most like a misspelt one; "" if none is like it."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def in_batches(arrays: Mapping[str, np.ndarray], size: int | None) -> Iterator[dict[str, np.ndarray]]:
    """Named arrays in batches of `size` rows, or as one batch if None. The last batch repeats its last row."""
    rows = len(next(iter(arrays.values())))
    for start in range(0, rows, size or rows):
        taken = np.arange(start, start + (size or rows)).clip(max=rows - 1)
        yield {key: x[taken] for key, x in arrays.items()}


def json_value(name: str, value: Any) -> Any:
    """`value` in JSON types: arrays and tensors as lists, paths as text; ValueError names what has no such form."""
    plain = unwrapped(value)
    if hasattr(plain, "tolist"):
        plain = plain.tolist()
    if isinstance(plain, Mapping):
        return {str(key): json_value(f"{name}.{key}", part) for key, part in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [json_value(f"{name}[{i}]", part) for i, part in enumerate(plain)]
    if isinstance(plain, Path):
        return str(plain)
    if plain is None or isinstance(plain, (bool, int, float, str)):
        return plain
    raise ValueError(f"{name} = {value!r} is a {type(value).__name__}, which JSON has no form for")


def numbers(name: str, values: Any) -> tuple[int | float, ...]:
    """The numbers of a list, an array, a range or a set, or one number alone; ValueError as in `number`."""
    plain = unwrapped(values)
    if hasattr(plain, "tolist"):
        plain = plain.tolist()
    if isinstance(plain, (str, bytes, Mapping)) or not isinstance(plain, Iterable):
        return (number(name, plain),)
    return tuple(number(name, value) for value in plain)
