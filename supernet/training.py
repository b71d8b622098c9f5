"""Progressive shrinking in one Lightning fit: phases, the task that walks them, validation of subnets."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, DistributedSampler

from supernet import sampling
from supernet.callbacks import adopt
from supernet.distillation import DISTILLATION, IGNORE, label_loss
from supernet.export import describe, write_atomically
from supernet.model import Supernet, calibrate
from supernet.space import SearchSpace

SAMPLERS = ("uniform", "sandwich", "stratified")
OptimizerCallable = Callable[[Iterable], Optimizer]


# ---------------------------------------------------------------------------------------------------- phases


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of a schedule: a sub-space, a length and a learning rate.

    Args:
        name: what the logs call it.
        lr: the peak learning rate.
        epochs: length in epochs, warm-up included; or
        steps: length in optimizer steps. All phases of a recipe use the same one.
        warmup_epochs, warmup_steps: the part of the length in which lr rises linearly from `warmup_lr`.
        warmup_lr: where the warm-up starts.
        decay: of the learning rate after the warm-up: cosine, to `final_lr`; or inverse_sqrt of the step (Vaswani et
            al., arXiv 1706.03762), which needs a warm-up.
        final_lr: where the cosine ends.
        space: {choice: the values it may take}; a choice that is not named has all its values.
        config: the one network that is trained, alone, as {choice: value}; as HAT trains what its search found.
        subnets: how many subnets a step trains; their gradients add up.
        sampler: uniform, sandwich or stratified (by MACs).
        teacher: frozen (the largest network as it was when the first such phase began), inplace (the largest network
            as it is; needs the sandwich) or None.
        label_weight, teacher_weight: weights of the two losses of a student. In place, the largest network has
            labels only.
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
    space: dict[str, list[float]] = dataclasses.field(default_factory=dict)
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
        if not 0 < scale < math.inf:
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


# ------------------------------------------------------------------------------------------------------ data


class ResumableSampler(DistributedSampler):
    """An order that is a function of (seed, epoch), cut among the processes, which starts where the training stands.

    Yields (epoch, index), so that augmentation can be a function of (seed, epoch, index) in any worker. `position`
    gives (epoch, items of this process already seen) when an epoch's iterator is made. The batches of `batch_size` of
    all processes together are the batch of `batch_size * world` that one process would see. Lightning leaves a
    DistributedSampler as it is.
    """

    def __init__(
        self, items: int, seed: int, position: Callable[[], tuple[int, int]], rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(range(items), num_replicas=world, rank=rank, seed=seed, drop_last=True)
        self.position = position

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, seen = self.position()
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))
        for index in order[self.rank :: self.num_replicas][seen : self.num_samples]:
            yield epoch, int(index)

    def __len__(self) -> int:
        return self.num_samples


class ShardSampler(DistributedSampler):
    """Every `world`-th item, in order; unlike torch's, none twice, so that figures over all processes are exact."""

    def __init__(self, items: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(range(items), num_replicas=world, rank=rank)

    def __iter__(self) -> Iterator[int]:
        return iter(self.dataset[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return len(self.dataset[self.rank :: self.num_replicas])


class ResumableLoader(DataLoader):
    """A DataLoader over a `ResumableSampler`. Lightning asks a resumable loader for its state; ours is the step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def training_position(trainer: pl.Trainer, batches: int) -> tuple[int, int]:
    """(epoch, batch) at which training goes on, from the optimizer steps done; `batches` of a process in an epoch."""
    accumulate = trainer.lightning_module.accumulate
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epoch, step = divmod(trainer.global_step, math.ceil(batches / accumulate))
    return epoch, step * accumulate


# ------------------------------------------------------------------------------------------------------ task


class SupernetTask(pl.LightningModule):
    """Trains a supernet through phases; batches are `(*inputs, target)`.

    Everything a step does is a function of the global optimizer step: the phase, the learning rate, the subnets, the
    seed of dropout. At a phase's first step the channels are sorted by importance, the optimizer's state is emptied
    (momentum would no longer match) and, where the phase wants a frozen teacher and there is none yet, it is made.

    Args:
        supernet: what to train.
        phases: the schedule.
        optimizer: parameter groups -> optimizer. Parameters of norms and biases form a group without weight decay.
        label_smoothing: of the loss against labels.
        distillation: cross_entropy (soft labels) or squared_error (logits).
        teacher_mode: eval, or train (BatchNorm of the batch, as OFA's published recipe); without dropout in both.
        clip_norm: gradient norm to clip at, or None.
        accumulate: batches per optimizer step; their losses are weighted by their counted targets.
        decay_unsampled: whether parameters that no subnet of the step used still decay and keep their momentum.
        channels_last: train 4-d inputs in the channels_last memory format (faster, on CPUs and on GPUs).
        ignore_index: the target value that does not count.
        seed: of subnet sampling and dropout.
        scale_phases: multiplies the length of every phase.
    """

    def __init__(
        self,
        supernet: Supernet,
        phases: list[Phase],
        optimizer: OptimizerCallable = lambda params: SGD(params, momentum=0.9, nesterov=True, weight_decay=3e-5),
        label_smoothing: float = 0.1,
        distillation: str = "cross_entropy",
        teacher_mode: str = "eval",
        clip_norm: float | None = None,
        accumulate: int = 1,
        decay_unsampled: bool = True,
        channels_last: bool = True,
        ignore_index: int = IGNORE,
        seed: int = 0,
        scale_phases: float = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.supernet = supernet
        self.phases = check_phases([phase.scaled(scale_phases) for phase in phases], supernet.space)
        self.make_optimizer = optimizer
        self.label_smoothing = label_smoothing
        for name, value, ok in (
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1),
            ("clip_norm", clip_norm, clip_norm is None or 0 < clip_norm < math.inf),
            ("accumulate", accumulate, accumulate >= 1),
            ("seed", seed, seed >= 0),
        ):
            if not ok:
                raise ValueError(f"{name} = {value} makes no sense")
        if distillation not in DISTILLATION:
            raise ValueError(f"distillation: {distillation!r} is not one of {sorted(DISTILLATION)}")
        self.distillation = DISTILLATION[distillation]
        self.settings = {  # what a resumed run must have in common with the one that began, beside the phases
            "label_smoothing": label_smoothing,
            "distillation": distillation,
            "teacher_mode": teacher_mode,
            "clip_norm": clip_norm,
            "accumulate": accumulate,
            "decay_unsampled": decay_unsampled,
            "ignore_index": ignore_index,
            "seed": seed,
        }
        self.resumed_steps_per_epoch: int | None = None
        if teacher_mode not in ("eval", "train"):
            raise ValueError(f"teacher_mode: {teacher_mode!r} is neither eval nor train")
        self.teacher_mode = teacher_mode
        self.clip_norm, self.accumulate = clip_norm, accumulate
        self.decay_unsampled, self.channels_last = decay_unsampled, channels_last
        self.ignore_index, self.seed = ignore_index, seed
        self.spaces = [supernet.space.restrict(**phase.space) for phase in self.phases]
        self.teacher = None
        if any(phase.teacher == "frozen" for phase in self.phases):
            self.teacher = supernet.extract(supernet.space.largest()).requires_grad_(False)
        self.train()

    # ---- schedule

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.trainer.num_training_batches / self.accumulate)

    def configure_callbacks(self) -> list[pl.Callback]:
        """None of its own; but Lightning's averages of weights become ones that know phases (see `adopt`)."""
        self.trainer.callbacks = adopt(self.trainer.callbacks)
        return []

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        if data is not None and hasattr(data, "input_spec"):
            self.supernet.check_data(data.input_spec)
            self.supernet.input_spec = dict(data.input_spec)
        if stage == "fit":
            self._set_trainer_length()
        if self.channels_last:
            self.to(memory_format=torch.channels_last)

    def _set_trainer_length(self) -> None:
        trainer = self.trainer
        if trainer.fast_dev_run:
            return
        in_steps = self.phases[0].steps is not None
        total = sum(phase.length for phase in self.phases)
        given = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps}
        wanted = {"max_epochs": -1, "max_steps": total} if in_steps else {"max_epochs": total, "max_steps": -1}
        for name, value in given.items():
            if value not in (None, -1, 1000 if name == "max_epochs" else -1, wanted[name]):
                raise ValueError(
                    f"{name} = {value}, but the phases are {total} {'steps' if in_steps else 'epochs'} long: leave it"
                    " out, and change the phases or scale them (--scale-phases)"
                )
        trainer.fit_loop.max_epochs = wanted["max_epochs"]
        trainer.fit_loop.epoch_loop.max_steps = wanted["max_steps"]

    def on_fit_start(self) -> None:
        if any(isinstance(module, nn.SyncBatchNorm) for module in self.supernet.modules()):
            raise ValueError("sync_batchnorm would replace elastic BatchNorm layers by plain ones: leave it off")
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and self.clip_norm is not None:
            for optimizer in self.trainer.optimizers:
                if getattr(optimizer, "_step_supports_amp_scaling", False):
                    raise ValueError(
                        f"clip_norm = {self.clip_norm}: a fused {type(optimizer).__name__} unscales the gradients of"
                        f" precision {self.trainer.precision} itself, too late to clip them: give it fused: false"
                    )
        if self.trainer.world_size > 1 and not isinstance(self.trainer.strategy, DDPStrategy):
            raise NotImplementedError(
                f"{type(self.trainer.strategy).__name__}: training on several processes needs strategy ddp"
            )

    def on_train_start(self) -> None:
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError("accumulate_grad_batches is the task's `accumulate` here")
        if self.resumed_steps_per_epoch not in (None, self.steps_per_epoch):
            raise ValueError(
                f"the run began with {self.resumed_steps_per_epoch} steps an epoch, now there are"
                f" {self.steps_per_epoch}: a run can only be resumed as it began"
            )
        self._set_learning_rate(self.optimizers())

    # ---- a step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        step, micro = self.global_step, batch_idx % self.accumulate
        index, phase_step = locate(self.phases, self.steps_per_epoch, step)
        phase, space = self.phases[index], self.spaces[index]
        optimizer = self.optimizers()
        if micro == 0:
            if phase_step == 0:
                self._begin_phase(index, optimizer)
            lr = self._set_learning_rate(optimizer)
            optimizer.zero_grad()
            self.counted = 0
            self.log_dict({"lr": lr, "phase": float(index)}, prog_bar=True)
        torch.manual_seed(derive_seed(self.seed, step, micro, self.global_rank))

        *inputs, target = batch
        counted = int((target != self.ignore_index).sum()) if self.weighted else 1
        losses = self.losses(inputs, target, phase, self.sample(phase, space, step))
        total = 0.0
        ddp = isinstance(self.trainer.model, DistributedDataParallel)
        with self.trainer.model.no_sync() if ddp else nullcontext():  # `_step` reduces, once for all subnets
            for loss in losses:  # one backward a subnet: the next one changes the active size
                self.manual_backward(loss * counted if self.weighted else loss)
                total += loss.detach()
        self.counted += counted
        self.log("train/loss", total / phase.subnets, prog_bar=True)
        if micro == self.accumulate - 1 or self.trainer.is_last_batch:
            self._step(optimizer)
        return total / phase.subnets

    def on_train_batch_end(self, *_: Any) -> None:
        """Set the next step's learning rate, which callbacks read before that step; they have read this one's."""
        self._set_learning_rate(self.optimizers())

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a global optimizer step."""
        index, phase_step = locate(self.phases, self.steps_per_epoch, step)
        return learning_rate(self.phases[index], self.steps_per_epoch, phase_step)

    def _set_learning_rate(self, optimizer: Optimizer) -> float:
        lr = self.learning_rate_at(self.global_step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr

    @property
    def weighted(self) -> bool:
        """Whether a step's gradient is made of several losses, which then weigh by the targets they counted."""
        return self.accumulate > 1 or self.trainer.world_size > 1

    def sample(self, phase: Phase, space: SearchSpace, step: int) -> list[Any]:
        """The configs that a global step trains, the same in every process."""
        shared = self.supernet.input_choices
        if phase.config is not None:
            return [space.config(**phase.config)]
        if phase.sampler == "stratified":
            cost = lambda X: self.supernet.costs(X)["macs"]  # noqa: E731
            return sampling.stratified(space, phase.subnets, step, self.seed, shared, cost=cost)
        sampler = {"uniform": sampling.uniform, "sandwich": sampling.sandwich}[phase.sampler]
        return sampler(space, phase.subnets, step, self.seed, shared)

    def losses(
        self, inputs: Sequence[Tensor], target: Tensor, phase: Phase, configs: Sequence[Any]
    ) -> Iterator[Tensor]:
        """The loss of each subnet, one after the other: each must have had its backward before the next is drawn."""
        soft: dict[torch.Size, Tensor] = {}
        largest: Tensor | None = None
        for position, config in enumerate(configs):
            prepared = self.prepare(inputs, config)
            logits = self.supernet.set_active(config)(*prepared)
            if phase.teacher == "inplace" and position == 0:
                largest = logits.detach()
                yield label_loss(logits, target, self.label_smoothing, self.ignore_index)
                continue
            loss = logits.new_zeros(())
            if phase.label_weight or phase.teacher is None:
                weight = phase.label_weight if phase.teacher else 1.0
                loss = loss + weight * label_loss(logits, target, self.label_smoothing, self.ignore_index)
            if phase.teacher == "frozen":
                shape = prepared[0].shape
                if shape not in soft:
                    with torch.no_grad():
                        soft[shape] = self.teacher(*prepared)
                largest = soft[shape]
            if phase.teacher is not None:
                loss = loss + phase.teacher_weight * self.distillation(logits, largest, target, self.ignore_index)
            yield loss

    def prepare(self, inputs: Sequence[Tensor], config: Any) -> Sequence[Tensor]:
        """The inputs at the config's resolution, and in the memory format of training."""
        prepared = self.supernet.prepare(inputs, config)
        if self.channels_last:
            prepared = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in prepared]
        return prepared

    def _begin_phase(self, index: int, optimizer: Optimizer) -> None:
        if index > 0:
            self.supernet.sort(self.spaces[index - 1])
        optimizer.state.clear()
        wants = [phase.teacher == "frozen" for phase in self.phases]
        if wants[index] and not any(wants[:index]):
            if self.trainer.world_size > 1:  # BatchNorm statistics are each process's own; the teacher is the same
                for buffer in self.supernet.buffers():
                    torch.distributed.broadcast(buffer, 0)
            trained = self.supernet.extract(self.supernet.space.largest())
            self.teacher.load_state_dict(trained.state_dict())
            if self.teacher_mode == "eval" and not all(map(self._is_largest_only, self.spaces[:index])):
                calibrate(self.teacher, self.trainer.datamodule.calibration_batches())
                if self.channels_last:  # as it is after resuming: another format rounds differently
                    self.teacher.to(memory_format=torch.channels_last)

    def _is_largest_only(self, space: SearchSpace) -> bool:
        """Whether a phase over `space` leaves the largest network's own BatchNorm statistics, not a mixture's."""
        top = self.supernet.space.largest()
        inputs = {name: getattr(top, name) for name in self.supernet.input_choices}
        return all(dataclasses.replace(end, **inputs) == top for end in (space.largest(), space.smallest()))

    def _step(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.trainer.world_size > 1:
            self.counted = sum_over_processes(grads, self.counted)
        if self.weighted:
            for grad in grads:
                grad /= self.counted
        if self.decay_unsampled:
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip here: Lightning has unscaled the gradients by now, which 16-mixed scales for the backward pass."""
        if self.clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            self.log("train/grad_norm", norm)

    def configure_optimizers(self) -> Optimizer:
        decayed, plain = [], []
        for module in self.supernet.modules():
            for name, p in module.named_parameters(recurse=False):
                (plain if isinstance(module, (_BatchNorm, nn.LayerNorm)) or name == "bias" else decayed).append(p)
        groups = [{"params": unique(decayed)}, {"params": unique(plain), "weight_decay": 0.0}]
        return self.make_optimizer([group for group in groups if group["params"]])

    # ---- modes, checkpoints

    def train(self, mode: bool = True) -> SupernetTask:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.train(self.teacher_mode == "train")
            for module in self.teacher.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
        return self

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Nothing here: `SubnetValidation` evaluates extracted, calibrated subnets on the batch."""

    test_step = validation_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all(torch.isfinite(p).all() for p in self.supernet.parameters()):
            raise ValueError(
                f"training diverged by step {self.global_step}: weights are no finite numbers. Lower lr, or set"
                " clip_norm; the last checkpoint is kept"
            )
        checkpoint["supernet"] = describe(self.supernet)
        checkpoint["phases"] = [dataclasses.asdict(phase) for phase in self.phases]
        checkpoint["settings"] = self.settings
        checkpoint["steps_per_epoch"] = self.steps_per_epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "supernet" not in checkpoint:
            raise ValueError("not a checkpoint of a SupernetTask: it has no description of a supernet")
        ours = describe(self.supernet)
        for key in ("family", "arguments", "space"):
            if checkpoint["supernet"][key] != ours[key]:
                raise ValueError(f"the checkpoint's {key} is {checkpoint['supernet'][key]}, this run's is {ours[key]}")
        if spec := self.supernet.input_spec:  # of the data now; the checkpoint's are those it was trained on
            self.supernet.input_spec = checkpoint["supernet"]["input_spec"]
            self.supernet.check_data(spec)
            self.supernet.input_spec = spec
        if self.trainer.state.fn != "fit":
            return
        if checkpoint["phases"] != [dataclasses.asdict(p) for p in self.phases]:
            raise ValueError("the checkpoint was trained with other phases: a run can only be resumed as it began")
        for name, value in self.settings.items():
            if checkpoint["settings"][name] != value:
                raise ValueError(
                    f"the run began with {name} = {checkpoint['settings'][name]}, now it is {value}: a run can only be"
                    " resumed as it began"
                )
        self.resumed_steps_per_epoch = checkpoint["steps_per_epoch"]


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


def derive_seed(*keys: int) -> int:
    """One 63-bit seed from several integers."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def sum_over_processes(grads: Sequence[Tensor], counted: int) -> float:
    """Sum gradients in place, in one message, over all processes; returns the sum of their `counted`."""
    message = torch.cat([grad.flatten() for grad in grads])
    total = torch.tensor(counted, dtype=torch.float64, device=message.device)
    torch.distributed.all_reduce(message)
    torch.distributed.all_reduce(total)
    for grad, part in zip(grads, message.split([grad.numel() for grad in grads])):
        grad.copy_(part.view_as(grad))
    return float(total)


def unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(p): p for p in parameters}.values())


# ------------------------------------------------------------------------------------------------ validation


class SubnetValidation(pl.Callback):
    """Evaluates subnets on the validation (or test) set: the largest, the smallest and fixed random ones.

    Each is extracted and its BatchNorm recalibrated on the data module's `calibration_batches()`, so the figures are
    those of the networks that would be deployed. Logs `val/accuracy/NAME` and `val/loss/NAME`, and the random ones'
    mean as `.../random`.
    """

    def __init__(self, random: int = 4, seed: int = 0) -> None:
        if random < 0 or seed < 0:
            raise ValueError(f"validation: random = {random} and seed = {seed} are at least 0")
        self.random, self.seed = random, seed
        self.subnets: dict[str, Supernet] = {}

    def on_validation_start(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        space = task.supernet.space
        configs = {"largest": space.largest(), "smallest": space.smallest()}
        drawn = space.decode(space.sample(self.random, np.random.default_rng(self.seed)))
        configs |= {f"random{i}": config for i, config in enumerate(drawn)}
        for name, config in configs.items():
            subnet = task.supernet.extract(config).eval()
            self.subnets[name] = calibrate(subnet.float(), trainer.datamodule.calibration_batches())
        self.sums = {name: torch.zeros(2, device=task.device) for name in self.subnets}  # of accuracy, loss
        self.counted = torch.zeros(1, device=task.device)

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, task: SupernetTask, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        *inputs, target = batch
        counted = (target != task.ignore_index).sum()
        if counted == 0:
            return
        inputs = [x.float() if x.is_floating_point() else x for x in inputs]
        for name, subnet in self.subnets.items():
            figures = figures_of(subnet(*task.prepare(inputs, subnet.config)), target, task.ignore_index)
            self.sums[name] += counted * torch.stack([figures["accuracy"], figures["loss"]])
        self.counted += counted

    def on_validation_epoch_end(self, trainer: pl.Trainer, task: SupernetTask, stage: str = "val") -> None:
        # Lightning's own mean over processes truncates the weights to integers.
        sums = trainer.strategy.reduce(torch.stack(list(self.sums.values())), reduce_op="sum")
        figures = dict(zip(self.sums, sums / trainer.strategy.reduce(self.counted, reduce_op="sum")))
        drawn = [figures.pop(name) for name in list(figures) if name.startswith("random")]
        if drawn:
            figures["random"] = torch.stack(drawn).mean(0)
        for name, (accuracy, loss) in figures.items():
            task.log(f"{stage}/accuracy/{name}", accuracy, prog_bar=True, sync_dist=True)
            task.log(f"{stage}/loss/{name}", loss, sync_dist=True)

    def on_validation_end(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        self.subnets.clear()

    def on_test_epoch_end(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        self.on_validation_epoch_end(trainer, task, "test")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end


def figures_of(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> dict[str, Tensor]:
    """{"accuracy", "loss"}: means over the items of a batch that count."""
    right = (logits.argmax(-1) == target)[target != ignore_index]
    return {"accuracy": right.float().mean(), "loss": label_loss(logits, target, ignore_index=ignore_index)}


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


# ----------------------------------------------------------------------------------------------- checkpoints


class LastCheckpoint(pl.Callback):
    """Keeps one file, FOLDER/last.ckpt, renewed after every epoch and, if `every` > 0, every that many steps."""

    def __init__(self, folder: str | Path, every: int = 0) -> None:
        self.path, self.every = Path(folder) / "last.ckpt", every

    def on_train_start(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: SupernetTask, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A batch that only accumulated leaves the step where it was.
        if self.every and trainer.global_step % self.every == 0 and trainer.global_step != self.saved_step:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, task: SupernetTask, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) and self.path.is_file():
            rank_zero_info(f"{self.path} is there: the same command with --ckpt_path last goes on from it")

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:
            self.saved_step = trainer.global_step
            trainer.save_checkpoint(self.path, weights_only=False)


def read_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """The dict in a file that `torch.save` wrote; ValueError if it is anything else."""
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever the bytes make the unpickler do: KeyError, EOFError, UnpicklingError, ...
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, and is no checkpoint")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent: written beside, synced and renamed, and read with a clear error."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path, map_location)
