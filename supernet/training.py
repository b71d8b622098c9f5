"""Progressive shrinking in one Lightning fit: the task that walks the phases, and the validation of subnets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from supernet.callbacks import adopt
from supernet.data import check_batch, check_calibration, check_loader, check_module, gives
from supernet.distillation import DISTILLATION, IGNORE, label_loss
from supernet.evaluation import compare as compare
from supernet.evaluation import evaluate_items as evaluate_items
from supernet.evaluation import evaluate_network as evaluate_network
from supernet.evaluation import means as means
from supernet.model import Supernet, calibrate, has_batchnorm, positional_inputs
from supernet.phases import Phase, check_phases, learning_rate, locate, read_phases
from supernet.resuming import derive_seed, loops_at
from supernet.sampling import SAMPLERS
from supernet.saving import describe
from supernet.space import SearchSpace
from supernet.values import integer, json_value, numbers, real

OptimizerCallable = Callable[[Iterable], Optimizer]


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
        class_weights: of the loss against labels, one a class, each above 0; or balanced, the inverse of each class's
            share of the training images (the data's `class_counts`). That loss is the weighted mean, as torch's
            `cross_entropy`; losses against a teacher are not weighted.
        distillation: cross_entropy (soft labels) or squared_error (logits).
        teacher_mode: eval, or train (BatchNorm of the batch, as OFA's published recipe); without dropout in both.
        clip_norm: gradient norm to clip at, or None.
        accumulate: batches per optimizer step; their losses are weighted by their counted targets, or by the sum of
            the class weights of those.
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
        class_weights: Literal["balanced"] | list[float] | None = None,
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
        if not isinstance(supernet, Supernet):
            raise TypeError(f"supernet: a Supernet is expected, not a {type(supernet).__name__}")
        self.phases = check_phases([phase.scaled(scale_phases) for phase in read_phases(phases)], supernet.space)
        self.make_optimizer = optimizer
        self.label_smoothing = label_smoothing = real("label_smoothing", label_smoothing)
        clip_norm = None if clip_norm is None else real("clip_norm", clip_norm)
        accumulate, seed = integer("accumulate", accumulate), integer("seed", seed)
        ignore_index = integer("ignore_index", ignore_index)
        decay_unsampled, channels_last = bool(decay_unsampled), bool(channels_last)
        self.class_weights = check_class_weights(class_weights)
        self.register_buffer("class_weight", None, persistent=False)  # (classes,), once the data are known
        for name, value, ok, allowed in (
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "at least 0 and less than 1"),
            ("clip_norm", clip_norm, clip_norm is None or 0 < clip_norm < math.inf, "a positive number, or None"),
            ("accumulate", accumulate, accumulate >= 1, "at least 1"),
            ("seed", seed, seed >= 0, "at least 0"),
        ):
            if not ok:
                raise ValueError(f"{name} = {value}: {allowed}")
        if distillation not in DISTILLATION:
            raise ValueError(f"distillation: {distillation!r} is not one of {sorted(DISTILLATION)}")
        self.distillation = DISTILLATION[distillation]
        self.settings = {  # what a resumed run must have in common with the one that began, beside the phases
            "label_smoothing": label_smoothing,
            "class_weights": self.class_weights,
            "distillation": distillation,
            "teacher_mode": teacher_mode,
            "clip_norm": clip_norm,
            "accumulate": accumulate,
            "decay_unsampled": decay_unsampled,
            "ignore_index": ignore_index,
            "seed": seed,
        }
        self.resumed_steps_per_epoch: int | None = None
        self.resumed_finished = False
        self.begun_step: int | None = None  # the step for which its phase was begun
        self.whole = True  # whether the weights, the teacher and the optimizer are those after `global_step` steps
        self.unfinished = False  # whether a step has begun: its batches have changed buffers, and nothing else
        self.before_step: dict[str, Tensor] = {}  # the buffers as they were when it began
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

    @property
    def total_steps(self) -> int:
        """The optimizer steps of all phases."""
        return sum(phase.in_steps(self.steps_per_epoch)[0] for phase in self.phases)

    def configure_callbacks(self) -> list[pl.Callback]:
        """None of its own; but Lightning's averages of weights become ones that know phases (see `adopt`)."""
        self.trainer.callbacks = adopt(self.trainer.callbacks)
        return []

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        if data is not None and hasattr(data, "input_spec"):
            check_module(data, ["input_spec"])
            spec = json_value("input_spec", data.input_spec)
            self.supernet.check_data(spec)
            self.supernet.input_spec = spec
        if stage == "fit" and self.class_weights is not None:
            classes = self.supernet.input_spec.get("classes")
            self.class_weight = torch.tensor(weigh_classes(self.class_weights, data, classes))
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
        self._check_module()
        if self.resumed_finished:  # EarlyStopping ended the run, which Lightning would take up again
            self.trainer.should_stop = True

    def _check_module(self) -> None:
        """Refuse, before the first step, data that the steps, the validations or the teacher could not use."""
        data, trainer, inputs = self.trainer.datamodule, self.trainer, positional_inputs(self.supernet)
        validates = trainer.limit_val_batches != 0 and any(isinstance(c, SubnetValidation) for c in trainer.callbacks)
        calibrates = validates or (self.teacher is not None and self.teacher_mode == "eval")
        if calibrates and has_batchnorm(self.supernet):
            check_module(data, ["calibration_batches"])
            check_calibration(data, inputs)
        for name in ("train_dataloader", "val_dataloader"):
            if data is not None and gives(data, name) and (validates or name == "train_dataloader"):
                where = f"{type(data).__name__}.{name}()"
                check_loader(getattr(data, name)(), where, self.supernet.input_spec, inputs)

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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Lightning counts one more where it resumes at a batch after which it would validate.
        loop = self.trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = loop.total_batch_idx

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        step, micro = self.global_step, batch_idx % self.accumulate
        index, phase_step = locate(self.phases, self.steps_per_epoch, step)
        phase, space = self.phases[index], self.spaces[index]
        optimizer = self.optimizers()
        if micro == 0:
            if phase_step == 0 and self.begun_step != step:
                self.whole = False
                self._begin_phase(index, optimizer)
                self.whole, self.begun_step = True, step
            self.before_step = keep(dict(self.named_buffers(remove_duplicate=False)), self.before_step)
            self.unfinished = True
            lr = self._set_learning_rate(optimizer)
            optimizer.zero_grad()
            self.counted = 0
            self.log_dict({"lr": lr, "phase": float(index)}, prog_bar=True)
        torch.manual_seed(derive_seed(self.seed, step, micro, self.global_rank))

        if batch_idx == 0:
            check_batch(batch, "the training loader", self.supernet.input_spec, positional_inputs(self.supernet))
        *inputs, target = batch
        counted = self.mass(target, phase) if self.weighted else 1
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
            self.unfinished = False
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

    def mass(self, target: Tensor, phase: Phase) -> float:
        """What a batch weighs in a step: its counted targets, or the sum of their class weights."""
        counted = target[target != self.ignore_index]
        if self.class_weight is None or (phase.teacher == "frozen" and not phase.label_weight):
            return counted.numel()
        return float(self.class_weight.to(target.device)[counted].double().sum())

    def label_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return label_loss(logits, target, self.label_smoothing, self.ignore_index, self.class_weight)

    def sample(self, phase: Phase, space: SearchSpace, step: int) -> list[Any]:
        """The configs that a global step trains, the same in every process."""
        shared = self.supernet.input_choices
        if phase.config is not None:
            return [space.config(**phase.config)]

        def macs(X: np.ndarray) -> np.ndarray:
            return self.supernet.costs(X)["macs"]

        return SAMPLERS[phase.sampler](space, phase.subnets, step, self.seed, shared, macs)

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
                yield self.label_loss(logits, target)
                continue
            loss = logits.new_zeros(())
            if phase.label_weight or phase.teacher is None:
                weight = phase.label_weight if phase.teacher else 1.0
                loss = loss + weight * self.label_loss(logits, target)
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
                calibrate(self.teacher, calibration_of(self.trainer))
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
        self.whole = False
        optimizer.step()
        self.whole = True

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
                f"training diverged by step {self.global_step}: weights are NaN or infinite. Lower lr, or set"
                " clip_norm; the last checkpoint is kept"
            )
        if not self.whole:
            raise ValueError(f"step {self.global_step + 1} is half done: its state cannot be saved")
        if self.unfinished:  # it is done again from its first batch
            state = checkpoint["state_dict"]
            state |= {name: buffer for name, buffer in self.before_step.items() if name in state}
        checkpoint["supernet"] = describe(self.supernet)
        checkpoint["phases"] = [dataclasses.asdict(phase) for phase in self.phases]
        checkpoint["settings"] = self.settings
        checkpoint["steps_per_epoch"] = self.steps_per_epoch
        checkpoint["batches_per_epoch"] = self.trainer.num_training_batches
        checkpoint["begun_step"] = self.begun_step
        checkpoint["processes"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_supernet(checkpoint)
        if spec := self.supernet.input_spec:  # of the data now; the checkpoint's are those it was trained on
            self.supernet.input_spec = checkpoint["supernet"]["input_spec"]
            self.supernet.check_data(spec)
            self.supernet.input_spec = spec
        if self.trainer.state.fn != "fit":
            return
        self.check_run(checkpoint, except_for=("accumulate",) if self._check_processes(checkpoint) else ())
        self.resumed_steps_per_epoch = steps = checkpoint["steps_per_epoch"]
        self.begun_step = checkpoint.get("begun_step")
        accumulated = checkpoint["settings"]["accumulate"]  # another one where the number of processes is another
        batches = checkpoint.get("batches_per_epoch", steps * accumulated) * self.accumulate // accumulated
        position = (checkpoint["global_step"], steps, batches, self.accumulate)
        checkpoint["loops"] = loops_at(checkpoint["loops"], *position)
        callbacks = checkpoint.get("callbacks", {})
        for key in [key for key in callbacks if key.startswith("Timer")]:
            del callbacks[key]  # max_time is each command's: the same one would have none left
        self.resumed_finished = is_finished(checkpoint)
        if not self.resumed_finished:
            for state in callbacks.values():  # EarlyStopping, which ended an earlier phase, would end the run for good
                if "stopping_reason" in state:
                    state["stopping_reason"] = EarlyStoppingReason.NOT_STOPPED.value

    def _check_supernet(self, checkpoint: dict[str, Any]) -> None:
        if "supernet" not in checkpoint:
            raise ValueError("not a checkpoint of a SupernetTask: it has no description of a supernet")
        ours = describe(self.supernet)
        for key in ("family", "arguments", "space"):
            if checkpoint["supernet"][key] != ours[key]:
                raise ValueError(f"the checkpoint's {key} is {checkpoint['supernet'][key]}, this run's is {ours[key]}")

    def check_run(self, checkpoint: dict[str, Any], except_for: Sequence[str] = ()) -> None:
        """Raise ValueError unless a checkpoint is of a run with this supernet, schedule and settings."""
        self._check_supernet(checkpoint)
        if checkpoint["phases"] != [dataclasses.asdict(p) for p in self.phases]:
            raise ValueError("the checkpoint was trained with other phases: a run can only be resumed as it began")
        for name, value in self.settings.items():
            if (began := checkpoint["settings"].get(name)) != value and name not in except_for:
                raise ValueError(
                    f"the run began with {name} = {began}, now it is {value}: a run can only be resumed as it began"
                )

    def _check_processes(self, checkpoint: dict[str, Any]) -> bool:
        """Whether the run began on another number of processes; ValueError unless a step sees as many items here."""
        processes, data = self.trainer.world_size, self.trainer.datamodule
        began = checkpoint.get("processes", processes)
        if began == processes:
            return False
        state = checkpoint.get(type(data).__qualname__, {})
        size = getattr(data, "batch_size", None)
        then = [began, checkpoint["settings"]["accumulate"], state.get("batch_size")]
        now = [processes, self.accumulate, size if "batch_size" in state else None]
        described = [
            f"{n} processes with accumulate = {accumulate}" + (f" and batch_size = {size}" if size else "")
            for n, accumulate, size in (then, now)
        ]
        if math.prod(filter(None, then)) != math.prod(filter(None, now)):
            raise ValueError(
                f"the run began on {described[0]}; now there are {described[1]}. It goes on where a step sees as many"
                " items: give a batch_size, or accumulate, that makes the product of the three the same"
            )
        if "batch_size" in state:  # the data module would refuse another one
            state["batch_size"] = size
        rank_zero_info(
            f"The run began on {described[0]} and goes on with {described[1]}: the same items in each step, but other"
            " BatchNorm statistics and dropout"
        )
        return True


def ends(phases: Sequence[Phase], steps_per_epoch: int, step: int, callbacks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a schedule ends at a global step: after all its steps, or where EarlyStopping ended its last phase.

    `callbacks` are the states of the callbacks, as in a checkpoint.
    """
    if step >= sum(phase.in_steps(steps_per_epoch)[0] for phase in phases):
        return True
    index, step_of_phase = locate(phases, steps_per_epoch, step)
    wanted = (EarlyStoppingReason.PATIENCE_EXHAUSTED.value, EarlyStoppingReason.STOPPING_THRESHOLD.value)
    stopped = any(state.get("stopping_reason") in wanted for state in callbacks.values())
    return stopped and index == len(phases) - 1 and step_of_phase > 0


def is_finished(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of a SupernetTask was saved at the end of its schedule."""
    phases = [Phase(**phase) for phase in checkpoint["phases"]]
    return ends(phases, checkpoint["steps_per_epoch"], checkpoint["global_step"], checkpoint.get("callbacks", {}))


def check_class_weights(given: Any) -> str | list[float] | None:
    """The class weights of a task: balanced, positive numbers, or None; ValueError otherwise."""
    if given is None or (isinstance(given, str) and given == "balanced"):
        return given
    if isinstance(given, str):
        raise ValueError(f"class_weights: {given!r} is neither balanced nor a list of numbers")
    weights = [float(weight) for weight in numbers("class_weights", given)]
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"class_weights = {weights}: a number above 0 for each class is expected")
    return weights


def weigh_classes(weights: str | list[float], data: Any, classes: int | None) -> list[float]:
    """The weight of each class; balanced, images / (classes * images of the class), 0 where a class has none."""
    if weights == "balanced":
        counts = getattr(data, "class_counts", None)
        if counts is None:
            raise ValueError(
                "class_weights: balanced needs the data module's `class_counts`, the number of training images of each"
                " class; or give the weights as a list"
            )
        counts = np.array(numbers("class_counts", counts), dtype=np.float64)
        if not (counts >= 0).all() or not counts.any():
            raise ValueError(f"class_counts = {counts.tolist()} are not numbers of images")
        weights = np.divide(counts.sum() / (counts > 0).sum(), counts, out=np.zeros_like(counts), where=counts > 0)
        weights = weights.tolist()
    if classes is not None and len(weights) != classes:
        raise ValueError(f"class_weights: {len(weights)} weights, the data have {classes} classes")
    return weights


def keep(tensors: Mapping[str, Tensor], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, written into those kept before where they are there and fit."""
    kept = {name: kept[name] if name in kept else torch.empty_like(x) for name, x in tensors.items()}
    if any(kept[name].device != x.device or kept[name].dtype != x.dtype for name, x in tensors.items()):
        return {name: x.clone() for name, x in tensors.items()}
    with torch.no_grad():
        for name, x in tensors.items():
            kept[name].copy_(x)
    return kept


def sum_over_processes(grads: Sequence[Tensor], counted: float) -> float:
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
    mean as `.../random`. `latest` keeps them with their step. The end of the last phase is validated, whatever the
    trainer's val_check_interval and check_val_every_n_epoch.
    """

    def __init__(self, random: int = 4, seed: int = 0) -> None:
        random, seed = integer("random", random), integer("seed", seed)
        if random < 0 or seed < 0:
            raise ValueError(f"validation: random = {random} and seed = {seed} are at least 0")
        self.random, self.seed = random, seed
        self.subnets: dict[str, Supernet] = {}
        self.latest: tuple[int, dict[str, tuple[float, float]]] | None = None  # step, {subnet: (accuracy, loss)}
        self.intervals: dict[str, Any] = {}  # the trainer's, while they are set aside

    def on_train_batch_end(self, trainer: pl.Trainer, task: SupernetTask, *_: Any) -> None:
        done = trainer.global_step == task.total_steps and not trainer.fast_dev_run
        if done and (self.latest is None or self.latest[0] != trainer.global_step):
            at_once = {"check_val_every_n_epoch": 1, "val_check_batch": 1, "_val_check_time_interval": None}
            self.intervals = {name: getattr(trainer, name) for name in at_once}
            for name, value in at_once.items():
                setattr(trainer, name, value)

    def on_validation_start(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        space = task.supernet.space
        configs = {"largest": space.largest(), "smallest": space.smallest()}
        drawn = space.decode(space.sample(self.random, np.random.default_rng(self.seed)))
        configs |= {f"random{i}": config for i, config in enumerate(drawn)}
        for name, config in configs.items():
            subnet = task.supernet.extract(config).eval()
            self.subnets[name] = calibrate(subnet.float(), calibration_of(trainer))
        self.sums = {name: torch.zeros(2, device=task.device) for name in self.subnets}  # of accuracy, loss
        self.counted = torch.zeros(1, device=task.device)

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, task: SupernetTask, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            check_batch(batch, "the evaluation loader", task.supernet.input_spec, positional_inputs(task.supernet))
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
        if not trainer.sanity_checking:
            self.latest = trainer.global_step, {name: tuple(pair.tolist()) for name, pair in figures.items()}
        for name, (accuracy, loss) in figures.items():
            task.log(f"{stage}/accuracy/{name}", accuracy, prog_bar=True, sync_dist=True)
            task.log(f"{stage}/loss/{name}", loss, sync_dist=True)

    def on_validation_end(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        self.subnets.clear()
        for name, value in self.intervals.items():
            setattr(trainer, name, value)
        self.intervals = {}

    def on_test_epoch_end(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        self.on_validation_epoch_end(trainer, task, "test")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end


def calibration_of(trainer: pl.Trainer) -> Iterator[Any]:
    """The calibration batches of a training's data module; ValueError, once they are read, where it has none."""
    if trainer.datamodule is None:
        raise ValueError(
            "BatchNorm statistics are recalibrated on calibration_batches() of a data module, and there is none: pass"
            " datamodule=... to the trainer, not loaders"
        )
    check_module(trainer.datamodule, ["calibration_batches"])
    yield from trainer.datamodule.calibration_batches()


def figures_of(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> dict[str, Tensor]:
    """{"accuracy", "loss"}: means over the items of a batch that count."""
    right = (logits.argmax(-1) == target)[target != ignore_index]
    return {"accuracy": right.float().mean(), "loss": label_loss(logits, target, ignore_index=ignore_index)}
