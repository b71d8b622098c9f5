"""Figures of a network: accuracy and loss over batches, of two networks compared, of each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.distillation import IGNORE
from supernet.model import Supernet


def evaluate_network(network: Supernet, batches: Iterable, ignore_index: int = IGNORE) -> dict[str, float]:
    """{"accuracy", "loss"} of an extracted network over batches `(*inputs, target)`; puts it in eval mode.

    ValueError if no target counts.
    """
    network.eval().to(memory_format=torch.channels_last)
    return means(evaluate_items(lambda inputs: network(*network.prepare(inputs)), batches, ignore_index))


@torch.no_grad()
def evaluate_items(
    forward: Callable[[Sequence[Tensor]], Tensor], batches: Iterable, ignore_index: int = IGNORE
) -> dict[str, np.ndarray]:
    """Of each item (image, sentence): right answers and cross entropy, summed over its targets, and their number.

    {"accuracy": (n,), "loss": (n,), "counted": (n,)} over batches `(*inputs, target)`; `forward` gives the logits
    (B, ..., classes) of the inputs. ValueError if no target counts.
    """
    parts: dict[str, list[np.ndarray]] = {"accuracy": [], "loss": [], "counted": []}
    for *inputs, target in batches:
        logits, counts = forward(inputs).float(), target != ignore_index
        losses = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=ignore_index, reduction="none")
        rights = (logits.argmax(-1) == target) & counts
        for name, values in (("accuracy", rights), ("loss", losses), ("counted", counts)):
            parts[name].append(values.reshape(len(target), -1).double().sum(1).cpu().numpy())
    figures = {name: np.concatenate(values) if values else np.zeros(0) for name, values in parts.items()}
    if figures["counted"].sum() == 0:
        raise ValueError("there is no target to evaluate on")
    return figures


def means(items: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{"accuracy", "loss"} over all targets, of figures of items."""
    return {name: float(items[name].sum() / items["counted"].sum()) for name in ("accuracy", "loss")}


def compare(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], figure: str) -> tuple[float, float]:
    """By how much a network's figure exceeds another's on the same items, and the standard error of that difference."""
    counted = a["counted"]
    difference = float((a[figure] - b[figure]).sum() / counted.sum())
    rest = (a[figure] - b[figure] - difference * counted) / counted.mean()
    return difference, float(rest.std(ddof=1) / math.sqrt(len(rest)))


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
