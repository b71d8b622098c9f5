"""METRICS of a network over batches, the paired comparison of two networks, and the accuracy of each class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from supernet.values import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.model import Supernet


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a network over a set of items (images, sentences).

    Args:
        name: its name in reports, in `--metric` and in the store of measurements. Values in a store are found by it: a
            metric that is defined otherwise needs another name.
        of_targets: (logits (B, ..., classes), target (B, ...)) -> (B, ...), a value for each target. The metric is the
            mean over all targets that are not ignored.
        higher_is_better: whether a larger value is better.
    """

    name: str
    of_targets: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool = True

    @property
    def sign(self) -> int:
        """1 where a larger value is better, -1 where a smaller one is."""
        return 1 if self.higher_is_better else -1


def is_right(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the largest logit is that of the target."""
    return logits.argmax(-1) == target


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The cross entropy of each target, in nats; 0 where the target is ignored."""
    import torch.nn.functional as F

    losses = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.reshape(target.shape)


METRICS = {metric.name: metric for metric in (Metric("accuracy", is_right), Metric("loss", cross_entropy, False))}


def find_metric(name: str) -> Metric:
    """A metric by its name; ValueError lists the names."""
    if name not in METRICS:
        raise ValueError(f"metric: {name!r} is not one of {', '.join(METRICS)}")
    return METRICS[name]


def evaluate_network(
    network: Supernet,
    batches: Iterable,
    ignore_index: int = IGNORE,
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """{metric: its value} of an extracted network over batches `(*inputs, target)`; puts the network in eval mode.

    `metrics` is `METRICS` if left out. ValueError if all targets are ignored.
    """
    import torch

    network.eval().to(memory_format=torch.channels_last)
    return means(evaluate_items(lambda inputs: network(*network.prepare(inputs)), batches, ignore_index, metrics))


def evaluate_items(
    forward: Callable[[Sequence[Tensor]], Tensor],
    batches: Iterable,
    ignore_index: int = IGNORE,
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, np.ndarray]:
    """The metrics of each item (image, sentence), summed over its targets, and the number of its targets.

    {metric: (n,), "counted": (n,)} over batches `(*inputs, target)`; `forward` gives the logits (B, ..., classes) of
    the inputs. Targets equal to `ignore_index` do not count. ValueError if all targets are ignored.
    """
    import torch

    metrics = METRICS if metrics is None else metrics
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*metrics, "counted")}
    for *inputs, target in batches:
        with torch.no_grad():
            logits, counts = forward(inputs).float(), target != ignore_index
            target = torch.where(counts, target, IGNORE)
            values = {name: metric.of_targets(logits, target) * counts for name, metric in metrics.items()}
        for name, of_targets in (values | {"counted": counts}).items():
            parts[name].append(of_targets.reshape(len(target), -1).double().sum(1).cpu().numpy())
    items = {name: np.concatenate(values) if values else np.zeros(0) for name, values in parts.items()}
    if items["counted"].sum() == 0:
        raise ValueError("all targets are ignored: nothing can be evaluated")
    return items


def means(items: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{metric: its mean over all targets} of the metrics of items."""
    counted = items["counted"].sum()
    return {name: float(values.sum() / counted) for name, values in items.items() if name != "counted"}


def compare(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], metric: str) -> tuple[float, float]:
    """A network's metric less another network's on the same items, and the standard error of that difference."""
    counted = a["counted"]
    difference = float((a[metric] - b[metric]).sum() / counted.sum())
    rest = (a[metric] - b[metric] - difference * counted) / counted.mean()
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
