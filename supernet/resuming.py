"""Resuming a run bit by bit: data order, Lightning's position, checkpoints, and stops that leave a whole state."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from torch.utils.data import DataLoader, DistributedSampler

from supernet.atomic import write_atomically
from supernet.description import LAST

REQUEUED = re.compile(r"hpc_ckpt_(\d+)\.ckpt")  # what Lightning saves in a run's folder when its job is requeued


# ------------------------------------------------------------------------------------------------- data order


def derive_seed(*keys: int) -> int:
    """One 63-bit seed from several integers."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


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


# --------------------------------------------------------------------------------------------------- position


def loops_at(
    loops: dict[str, Any], step: int, steps_per_epoch: int, batches_per_epoch: int, accumulate: int
) -> dict[str, Any]:
    """Lightning's loop states (`loops` of a checkpoint) with a fit that has done `step` optimizer steps, and no more.

    What Lightning itself writes depends on the hook that saves: a stop within an epoch counts as the epoch's end.
    """
    epoch, step_of_epoch = divmod(step, steps_per_epoch)
    batch = step_of_epoch * accumulate
    batches = epoch * batches_per_epoch + batch

    def count(done: int, begun: int | None = None) -> dict[str, int]:
        begun = done if begun is None else begun
        return {"ready": begun, "started": begun, "processed": done, "completed": done}

    epochs, steps = count(epoch, epoch + (batch > 0)), {"ready": step, "completed": step}
    fit = loops["fit_loop"] | {
        "epoch_progress": {"total": epochs, "current": epochs},
        "epoch_loop.state_dict": {"_batches_that_stepped": batches},
        "epoch_loop.batch_progress": {"total": count(batches), "current": count(batch), "is_last_batch": False},
        "epoch_loop.val_loop.batch_progress": {"total": count(0), "current": count(0), "is_last_batch": False},
        "epoch_loop.manual_optimization.optim_step_progress": {"total": steps, "current": steps},
    }
    return loops | {"fit_loop": fit}


# ------------------------------------------------------------------------------------------------- checkpoints


def read_checkpoint(path: str | os.PathLike, map_location: Any = "cpu", mmap: bool | None = None) -> dict[str, Any]:
    """The dict in a file that `torch.save` wrote; ValueError if it is anything else."""
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # whatever the bytes make the unpickler do: KeyError, EOFError, UnpicklingError, ...
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, and is not a checkpoint")
    return checkpoint


def requeued(run: Path) -> list[Path]:
    """The checkpoints that Lightning saved in a run's folder before its job was requeued, the oldest first."""
    found = {int(match[1]): path for path in run.glob("hpc_ckpt_*.ckpt") if (match := REQUEUED.fullmatch(path.name))}
    return [path for _, path in sorted(found.items())]


def newest(run: Path) -> Path | None:
    """The checkpoint of a run that has done the most steps, or None: its last one, or that of a requeued job."""
    found = [path for path in (run / LAST, *requeued(run)[-1:]) if path.is_file()]
    if len(found) < 2:
        return found[0] if found else None
    return max(found, key=lambda path: read_checkpoint(path, mmap=True).get("global_step", -1))  # the first of equals


def find_checkpoint(run: Path, given: str | None) -> Path | None:
    """The file that --ckpt-path means; None where a run is to begin.

    auto and last: the run's newest, None if it has none. hpc: that of a requeued job. Else a path. None given: as auto
    where SLURM has started a job again that Lightning has saved, which Lightning goes on with. ValueError where the
    file is not there.
    """
    if given is None and requeued(run) and SLURMEnvironment.detect():
        given = "auto"
    if given in (None, "auto", "last"):
        return newest(run) if given else None
    if given == "hpc":
        if not (found := requeued(run)):
            raise ValueError(
                f"--ckpt-path hpc: {run / 'hpc_ckpt_N.ckpt'} does not exist; Lightning writes it for a requeued job"
            )
        return found[-1]
    if not Path(given).is_file():
        raise ValueError(f"--ckpt-path {given}: this file does not exist")
    return Path(given)


# ------------------------------------------------------------------------------------------------------- stops


class Stopped(SystemExit):
    """A signal has stopped a training at the end of a batch; its exit status is the signal's."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class StopSignals(pl.Callback):
    """Lets SIGTERM and SIGINT (Ctrl-C) stop a training at the end of a batch, where its state is whole.

    During validation, the training stops after the current validation batch. A validation that was cut short, or that
    was due after the batch, is not repeated: EarlyStopping and ModelCheckpoint do not see it.

    Raises `Stopped` in every process of the training; the second signal is a KeyboardInterrupt at once. SLURM announces
    the end of a job by a signal, by which Lightning saves the state and has the job requeued; it waits for the end of a
    batch, too. Works in the main thread.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.requeue: int | None = None
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        # Lightning has registered its own by now. In several processes its SIGTERM could wait for itself forever.
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in (signal.SIGTERM, signal.SIGINT):
            self.handlers[signum] = signal.signal(signum, self._note)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            signum = environment.requeue_signal
            self.handlers[signum] = signal.signal(signum, self._note_requeue)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        name = signal.Signals(signum).name
        rank_zero_only(print)(f"supernet: {name}: stopping after this batch", file=sys.stderr, flush=True)

    def _note_requeue(self, signum: int, frame: FrameType | None) -> None:
        self.requeue = signum

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: Any) -> None:
        self._stop(trainer, everywhere=True)

    def on_validation_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: Any) -> None:
        # Processes may have different numbers of these batches: several of them wait for a batch of training.
        if self.handlers and trainer.world_size == 1:
            self._stop(trainer, everywhere=False)

    def _stop(self, trainer: pl.Trainer, everywhere: bool) -> None:
        requeue, signum = self.requeue, self.signum
        if trainer.world_size > 1 and everywhere:
            noted = torch.tensor([requeue or 0, signum or 0], device=trainer.strategy.root_device)
            requeue, signum = trainer.strategy.reduce(noted, reduce_op="max").tolist()
        if requeue and callable(handler := self.handlers.get(requeue)):
            self.requeue = None
            handler(requeue, None)  # saves, and has the job requeued; SIGTERM follows
        if signum:
            raise Stopped(signum)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        self.handlers = {}

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, task)


class LastCheckpoint(pl.Callback):
    """Keeps one file, FOLDER/last.ckpt, renewed after every epoch, every `every` > 0 steps, and where a fit ends.

    It is written before the next batch, when all that belongs to the steps before it has been done: validation, what
    other callbacks do after a step or an epoch. When the fit ends early, by `should_stop`, by a signal or by an error,
    the file holds the last optimizer step that was done; batches that were accumulated since are done again.
    """

    def __init__(self, folder: str | Path, every: int = 0) -> None:
        self.path, self.every = Path(folder) / LAST.name, every
        self.saved_step: int | None = None

    def on_train_start(self, trainer: pl.Trainer, task: Any) -> None:
        self.first_step = self.saved_step = trainer.global_step
        self.epoch_ended = False

    def on_train_batch_start(self, trainer: pl.Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if self.epoch_ended or (self.every and step % self.every == 0 and step != self.saved_step):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: Any) -> None:
        self.epoch_ended = True

    def on_train_end(self, trainer: pl.Trainer, task: Any) -> None:
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, task: Any, exception: BaseException) -> None:
        # Of several processes an error may be one's alone, and the others would wait.
        together = trainer.world_size == 1 or isinstance(exception, Stopped)
        if together and task.whole and self.saved_step not in (None, trainer.global_step):
            try:
                self._save(trainer)
            except Exception as error:  # what stopped the fit is what counts: weights that diverged, a broken device
                rank_zero_info(f"{self.path} is as it was: {error}")

    def _save(self, trainer: pl.Trainer) -> None:
        self.epoch_ended = False
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved_step = trainer.global_step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent: written beside, synced and renamed, and read with a clear error."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """A checkpoint on the CPU, whatever device it was written on, unless a `map_location` is given."""
        return read_checkpoint(path, "cpu" if map_location is None else map_location)
