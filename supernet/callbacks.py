"""Lightning's own callbacks under progressive shrinking: those that need another form, and those that cannot work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

REFUSED: dict[type[pl.Callback], str] = {
    lightning.GradientAccumulationScheduler: "a step is `accumulate` batches of the task, the same in the whole run",
    lightning.BackboneFinetuning: "a supernet has no backbone; a phase trains a part of it by its `space`",
    lightning.BaseFinetuning: "a phase trains a part of the supernet by its `space`",
    lightning.ModelPruning: "it would replace the weights that elastic layers slice; the supernet's smaller networks"
    " are in its space",
    lightning.BatchSizeFinder: "the batch size is the data module's `batch_size` or `max_tokens`, the same in the whole"
    " run",
    lightning.SpikeDetection: "Lightning cannot restore its state, so that no checkpoint could be resumed",
    lightning.LearningRateFinder: "the learning rates are those of the phases",
}


def adopt(callbacks: Sequence[pl.Callback]) -> list[pl.Callback]:
    """The callbacks of a trainer in the form in which they work here; ValueError for those that cannot.

    Lightning's averages of weights become `WeightAverage`s. They come first: others see the averaged weights.
    """
    for callback in callbacks:
        for refused, reason in REFUSED.items():
            if isinstance(callback, refused):
                raise ValueError(f"the callback {type(callback).__name__} does not work here: {reason}")
        if isinstance(callback, lightning.ModelCheckpoint) and callback._train_time_interval is not None:
            raise ValueError(
                "ModelCheckpoint: Lightning does not save at a train_time_interval where optimization is manual, as it"
                " is here: give every_n_train_steps"
            )
    adopted = []
    for callback in callbacks:
        makers = [make for kind, make in ADOPTED.items() if isinstance(callback, kind)]
        adopted.append(makers[0](callback) if makers else callback)
    if len(averages := [type(c).__name__ for c, a in zip(callbacks, adopted) if isinstance(a, WeightAverage)]) > 1:
        raise ValueError(f"{' and '.join(averages)}: a run has one average of weights")
    return sorted(adopted, key=lambda callback: not isinstance(callback, WeightAverage))


class SaveOnException(pl.Callback):
    """Saves a checkpoint where a fit ends by an exception, and removes it where the next one ends without.

    Lightning's OnExceptionCheckpoint, except that no later fit goes on from the file unless `--ckpt-path` names it,
    and that the exception is raised whether or not the file can be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_exception(self, trainer: pl.Trainer, task: Any, exception: BaseException) -> None:
        try:
            trainer.save_checkpoint(self.path)
        except Exception as error:  # the exception that ended the fit is the one to report
            rank_zero_info(f"{self.path} is not written: {error}")

    def teardown(self, trainer: pl.Trainer, task: Any, stage: str) -> None:
        if stage == "fit":
            trainer.strategy.remove_checkpoint(self.path)


class WeightAverage(pl.Callback):
    """Averages the weights over steps of a phase. The average is what is validated, and what a fit ends with.

    An average begins anew with each phase, since a phase begins by sorting channels. Until an average has begun, the
    weights themselves are validated. The average has at least the precision of float32. It is kept in checkpoints,
    whose `state_dict` holds the weights that training goes on from. BatchNorm statistics are not averaged: they are
    calibrated for each extracted network.

    Args:
        is_due: (task, step) -> whether the weights after this global step, counted from 0, enter the average.
        average: (average, weight, number of weights in the average) -> the new average.
        learning_rates: (task, step) -> the learning rate of each parameter group; None leaves the phases' own.
        device: where the average is kept; None: where the weights are.
    """

    def __init__(
        self,
        is_due: Callable[[Any, int], bool],
        average: Callable[[Tensor, Tensor, Any], Tensor],
        learning_rates: Callable[[Any, int], list[float]] | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        self.is_due, self.average, self.learning_rates, self.device = is_due, average, learning_rates, device
        self.count, self.averaged, self.current = 0, {}, {}

    def on_train_start(self, trainer: pl.Trainer, task: Any) -> None:
        self.seen = trainer.global_step
        if self.learning_rates is not None:
            self.learning_rates(task, trainer.global_step)  # raises where they do not fit the optimizer

    def on_train_batch_start(self, trainer: pl.Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        self._set_learning_rates(trainer, task)

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: Any, optimizer: Any) -> None:
        if self.learning_rates is not None:
            task.log("lr", self._set_learning_rates(trainer, task), prog_bar=True)

    def _set_learning_rates(self, trainer: pl.Trainer, task: Any) -> float | None:
        if self.learning_rates is None:
            return None
        rates = self.learning_rates(task, trainer.global_step)
        for group, rate in zip(trainer.optimizers[0].param_groups, rates):
            group["lr"] = rate
        return rates[0]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.seen:  # the batch was accumulated
            return
        self.seen = trainer.global_step
        step = self.seen - 1
        if step in phase_starts(task):
            self.count, self.averaged = 0, {}
        if not self.is_due(task, step):
            return
        for name, weight in task.supernet.named_parameters():
            weight = weight.detach().to(self.device or weight.device, torch.promote_types(weight.dtype, torch.float32))
            if self.count == 0:
                self.averaged[name] = weight.clone()
            else:
                before = self.averaged[name].to(weight.device)
                self.averaged[name] = self.average(before, weight, torch.tensor(self.count, device=weight.device))
        self.count += 1

    # ---- validation, and the end

    def on_validation_start(self, trainer: pl.Trainer, task: Any) -> None:
        self.current = {name: p.detach().clone() for name, p in task.supernet.named_parameters()} if self.count else {}
        self._load(task, self.averaged)

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        self._load(task, self.current)
        self.current = {}

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_exception(self, trainer: pl.Trainer, task: Any, exception: BaseException) -> None:
        self.on_validation_end(trainer, task)

    def on_fit_end(self, trainer: pl.Trainer, task: Any) -> None:
        self._load(task, self.averaged)

    @torch.no_grad()
    def _load(self, task: Any, weights: Mapping[str, Tensor]) -> None:
        parameters = dict(task.supernet.named_parameters())
        for name, weight in weights.items():
            parameters[name].copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "averaged": self.averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.averaged = state["count"], dict(state["averaged"])


def phase_starts(task: Any) -> list[int]:
    """The global steps at which the phases of a task begin, and the one after the last phase."""
    return [0, *itertools.accumulate(phase.in_steps(task.steps_per_epoch)[0] for phase in task.phases)]


def ends_epoch(task: Any, step: int) -> bool:
    """Whether a global step is the last of its epoch, or of the schedule."""
    return (step + 1) % task.steps_per_epoch == 0 or step + 1 == phase_starts(task)[-1]


def equal_average(average: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    return average + (weight - average) / (count + 1)


def of_stochastic(callback: lightning.StochasticWeightAveraging) -> WeightAverage:
    """StochasticWeightAveraging: the mean of the weights at the ends of the epochs from `swa_epoch_start` on.

    The learning rate goes from the phases' to `swa_lrs` within `annealing_epochs` epochs. No epoch is added
    for BatchNorm statistics.
    """

    def first_step(task: Any) -> int:
        start = callback._swa_epoch_start
        if isinstance(start, float):
            start = int(start * math.ceil(phase_starts(task)[-1] / task.steps_per_epoch))
        return max(start - 1, 0) * task.steps_per_epoch

    def is_due(task: Any, step: int) -> bool:
        return step >= first_step(task) and ends_epoch(task, step)

    def learning_rates(task: Any, step: int) -> list[float]:
        groups, rates = len(task.trainer.optimizers[0].param_groups), callback._swa_lrs
        rates = rates if isinstance(rates, list) else [rates] * groups
        if len(rates) != groups:
            raise ValueError(
                f"swa_lrs = {rates}: the optimizer has {groups} groups of parameters, give one or {groups}"
            )
        done = step - first_step(task)
        if done < 0:
            return [task.learning_rate_at(step)] * groups
        part = min(1.0, done / max(1, callback._annealing_epochs * task.steps_per_epoch))
        share = part if callback._annealing_strategy == "linear" else (1 - math.cos(math.pi * part)) / 2
        return [share * rate + (1 - share) * task.learning_rate_at(step) for rate in rates]

    return WeightAverage(is_due, callback._avg_fn, learning_rates, callback._device)


def of_averaging(callback: lightning.WeightAveraging) -> WeightAverage:
    """WeightAveraging and its subclasses (EMAWeightAveraging), by their `should_update`.

    If `should_update` accepts an epoch, the weights of the epoch's last step enter the average, before validation.
    """
    options = dict(callback._kwargs)
    average = options.pop("avg_fn", None) or equal_average
    if given := sorted(name for name, value in options.items() if value is not None):
        raise ValueError(f"{type(callback).__name__} takes an avg_fn here, and no {', '.join(given)}")

    def is_due(task: Any, step: int) -> bool:
        if callback.should_update(step_idx=step):
            return True
        return ends_epoch(task, step) and callback.should_update(epoch_idx=step // task.steps_per_epoch)

    return WeightAverage(is_due, average, device=callback._device)


ADOPTED: dict[type[pl.Callback], Callable[[Any], pl.Callback]] = {
    lightning.OnExceptionCheckpoint: lambda callback: SaveOnException(callback.ckpt_path),
    lightning.StochasticWeightAveraging: of_stochastic,
    lightning.WeightAveraging: of_averaging,
}
