"""What is made of the answers of a network: accuracies of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def per_class(rights: np.ndarray, targets: np.ndarray, names: Sequence[str] | None = None) -> dict[str, float]:
    """{class: share of right answers (n,)} of the classes that `targets` (n,) has, in their order.

    A class is named by `names`, with its number where two have the same name; else by its number.
    """
    named: dict[str, float] = {}
    for label in np.unique(targets).tolist():
        name = str(names[label]) if names is not None and label < len(names) else str(label)
        if names is not None and list(names).count(name) > 1:
            name = f"{name} ({label})"
        named[name] = float(np.mean(rights[targets == label]))
    return named


def class_table(accuracies: dict[str, float], counts: dict[str, int], most: int = 20) -> str:
    """A table of accuracies by class; the worst first, and no others, where there are more than `most`."""
    shown = list(accuracies)
    if len(shown) > most:
        shown = sorted(shown, key=accuracies.get)[:most]
    width = max(len("class"), *map(len, shown))
    lines = [f"{'class':<{width}}  accuracy  items"]
    lines += [f"{name:<{width}}  {accuracies[name]:8.4f}  {counts[name]:5d}" for name in shown]
    if rest := [accuracy for name, accuracy in accuracies.items() if name not in shown]:
        lines.append(f"and {len(rest)} classes of {min(rest):.4f} and more")
    return "\n".join(lines)
