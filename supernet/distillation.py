"""Losses of a student against labels and against a teacher's logits. Logits are (..., classes); means over items.

Losses of logits in half precision are computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.values import IGNORE


def label_loss(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross entropy with labels (...); with a `weight` (classes,), the weighted mean."""
    logits = full(logits).flatten(0, -2)
    weight = None if weight is None else weight.to(logits)
    return F.cross_entropy(logits, target.flatten(), weight, label_smoothing=label_smoothing, ignore_index=ignore_index)


def soft_cross_entropy(student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross entropy with the teacher's probabilities (Hinton et al., arXiv 1503.02531, at temperature 1)."""
    student, teacher = _counted(student, teacher, target, ignore_index)
    return F.cross_entropy(student, teacher.softmax(-1))


def squared_error(student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Mean squared difference of the logits."""
    return F.mse_loss(*_counted(student, teacher, target, ignore_index))


def _counted(student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Both logits as (items, classes), without the items that have no target."""
    student, teacher = full(student).flatten(0, -2), full(teacher).detach().flatten(0, -2)
    target = target.flatten()
    if torch.any(ignored := target == ignore_index):
        student, teacher = student[~ignored], teacher[~ignored]
    return student, teacher


def full(x: Tensor) -> Tensor:
    """A tensor of half precision in float32; others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


DISTILLATION = {"cross_entropy": soft_cross_entropy, "squared_error": squared_error}
