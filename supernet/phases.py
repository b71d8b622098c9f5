"""The schedule of progressive shrinking: phases, and which one a global step belongs to. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from supernet.sampling import SAMPLERS
from supernet.space import SearchSpace
from supernet.values import integer, json_value, numbers, real


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of a schedule: a sub-space, a length and a learning rate.

    Args:
        name: what the logs call it.
        lr: the peak learning rate.
        epochs: length in epochs, warm-up included.
        steps: length in optimizer steps, instead of epochs. All phases of a recipe have the same unit.
        warmup_epochs: the part of the length in which lr rises linearly from `warmup_lr`.
        warmup_steps: the same in optimizer steps.
        warmup_lr: where the warm-up starts.
        decay: of the learning rate after the warm-up: cosine, to `final_lr`; or inverse_sqrt of the step (Vaswani et
            al., arXiv 1706.03762), which needs a warm-up.
        final_lr: where the cosine ends.
        space: {choice: the values it may take, or the one}; a choice that is not named has all its values.
        config: the one network that is trained, alone, as {choice: value}; as HAT trains what its search found.
        subnets: how many subnets a step trains; their gradients add up.
        sampler: uniform, sandwich or stratified (by MACs).
        teacher: frozen (the largest network as it was when the first such phase began), inplace (the largest network
            as it is; needs the sandwich) or None.
        label_weight: weight of a student's loss against the labels. In place, the largest network has labels only.
        teacher_weight: weight of a student's loss against the teacher.
    """

    name: str
    lr: float
    epochs: int | None = None
    steps: int | None = None
    warmup_epochs: int = 0
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    decay: str = "cosine"
    final_lr: float = 0.0
    space: dict[str, float | list[float]] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] | None = None
    subnets: int = 1
    sampler: str = "uniform"
    teacher: str | None = None
    label_weight: float = 1.0
    teacher_weight: float = 1.0

    def __post_init__(self) -> None:
        def check(ok: bool, message: str) -> None:
            if not ok:
                raise ValueError(f"phase {self.name!r}: {message}")

        self._take_numbers()
        check((self.epochs is None) != (self.steps is None), "give its length as epochs or as steps")
        check(self.length > 0, f"a length of {self.length} is not positive")
        warmup, other = (
            (self.warmup_epochs, self.warmup_steps) if self.steps is None else (self.warmup_steps, self.warmup_epochs)
        )
        check(other == 0, "the warm-up has the unit of the length")
        check(0 <= warmup <= self.length, f"a warm-up of {warmup} does not fit in a length of {self.length}")
        check(self.decay in ("cosine", "inverse_sqrt"), f"unknown decay {self.decay!r}: cosine or inverse_sqrt")
        check(self.decay == "cosine" or warmup > 0, "decay: inverse_sqrt needs a warm-up")
        check(self.decay == "cosine" or self.final_lr == 0, "final_lr is the cosine's")
        check(0 < self.lr < math.inf, f"lr = {self.lr} is not a positive number")
        for name in ("warmup_lr", "final_lr", "label_weight", "teacher_weight"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{name} = {value} is not a number of at least 0")
        losses = self.label_weight + self.teacher_weight if self.teacher else 1.0
        check(losses > 0, "label_weight and teacher_weight are both 0: there is nothing to learn")
        check(self.subnets >= 1, f"subnets = {self.subnets} is not positive")
        check(self.sampler in SAMPLERS, f"unknown sampler {self.sampler!r}: one of {', '.join(SAMPLERS)}")
        alone = self.sampler == "uniform" and self.subnets == 1 and not self.space
        check(self.config is None or alone, "a config is one subnet a step: without space, sampler and subnets")
        check(self.teacher in (None, "frozen", "inplace"), f"unknown teacher {self.teacher!r}: frozen or inplace")
        check(self.teacher != "inplace" or self.sampler == "sandwich", "teacher: inplace needs sampler: sandwich")
        check(self.sampler != "sandwich" or self.subnets >= 2, "the sandwich needs at least 2 subnets a step")

    def _take_numbers(self) -> None:
        """Have every number as Python's own, which a checkpoint can hold."""
        try:
            for name in ("epochs", "steps", "warmup_epochs", "warmup_steps", "subnets"):
                if (value := getattr(self, name)) is not None:
                    object.__setattr__(self, name, integer(name, value))
            for name in ("lr", "warmup_lr", "final_lr", "label_weight", "teacher_weight"):
                object.__setattr__(self, name, real(name, getattr(self, name)))
            for name in ("space", "config"):
                if not isinstance(value := getattr(self, name), (Mapping, type(None))):
                    raise ValueError(f"{name} = {value!r}: {{choice: values}} is expected")
            space = {name: list(numbers(f"space.{name}", values)) for name, values in (self.space or {}).items()}
            object.__setattr__(self, "space", space)
            object.__setattr__(self, "config", json_value("config", self.config))
        except ValueError as error:
            raise ValueError(f"phase {self.name!r}: {error}") from error

    @property
    def length(self) -> int:
        return self.epochs if self.steps is None else self.steps

    def in_steps(self, steps_per_epoch: int) -> tuple[int, int]:
        """(length, warm-up) in optimizer steps."""
        if self.steps is not None:
            return self.steps, self.warmup_steps
        return self.epochs * steps_per_epoch, self.warmup_epochs * steps_per_epoch

    def scaled(self, scale: float) -> Phase:
        """This phase with its length and warm-up times `scale`; at least 1 long, as is a warm-up that there is."""
        unit = "epochs" if self.steps is None else "steps"
        if not 0 < real("scale_phases", scale) < math.inf:
            raise ValueError(f"scale_phases = {scale} is not a positive number")
        length = max(1, round(self.length * scale))
        given = getattr(self, f"warmup_{unit}")
        warmup = min(length, max(round(given * scale), min(given, 1)))
        return dataclasses.replace(self, **{unit: length, f"warmup_{unit}": warmup})


def locate(phases: Sequence[Phase], steps_per_epoch: int, step: int) -> tuple[int, int]:
    """(index of the phase, step within it) of a global optimizer step; the last phase has no end."""
    for index, phase in enumerate(phases):
        length, _ = phase.in_steps(steps_per_epoch)
        if step < length or index == len(phases) - 1:
            return index, step
        step -= length
    raise ValueError("a schedule needs at least one phase")


def learning_rate(phase: Phase, steps_per_epoch: int, step: int) -> float:
    """The learning rate of a step of a phase: linear warm-up, then a cosine to `final_lr` or an inverse square root."""
    length, warmup = phase.in_steps(steps_per_epoch)
    if step < warmup:
        return phase.warmup_lr + (phase.lr - phase.warmup_lr) * step / warmup
    if phase.decay == "inverse_sqrt":
        return phase.lr * math.sqrt(warmup / step)
    done = (step - warmup) / max(1, length - warmup)
    return phase.final_lr + (phase.lr - phase.final_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def read_phases(given: Any) -> list[Phase]:
    """The phases of a list, whose entries may be dicts of their fields, or of one alone; TypeError otherwise."""
    if isinstance(given, (Phase, Mapping)):
        given = [given]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"phases = {given!r}: a list of Phase is expected")
    phases = [Phase(**phase) if isinstance(phase, Mapping) else phase for phase in given]
    for phase in phases:
        if not isinstance(phase, Phase):
            raise TypeError(f"phases: {phase!r} is a {type(phase).__name__}, and not a Phase")
    return phases


def check_phases(phases: Sequence[Phase], space: SearchSpace) -> list[Phase]:
    """The phases, if they make a schedule over the space; else ValueError."""
    if not phases:
        raise ValueError("phases: a schedule needs at least one")
    if len({phase.steps is None for phase in phases}) > 1:
        raise ValueError("phases: all lengths are in epochs or all in steps")
    for phase in phases:
        try:
            space.restrict(**phase.space).config(**(phase.config or {}))
        except ValueError as error:
            raise ValueError(f"phase {phase.name!r}: {error}") from error
    return list(phases)
