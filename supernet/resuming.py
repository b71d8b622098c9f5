"""What makes a run go on: where it stands, which checkpoint it goes on from, and stops that leave a whole state."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only

LAST = Path("checkpoints") / "last.ckpt"  # of a run
REQUEUED = re.compile(r"hpc_ckpt_(\d+)\.ckpt")  # what Lightning saves in a run's folder when its job is requeued


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
    """The file that --ckpt_path means; None where a run is to begin.

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
            raise ValueError(f"--ckpt_path hpc: there is no file {run / 'hpc_ckpt_N.ckpt'}, of a job that was requeued")
        return found[-1]
    if not Path(given).is_file():
        raise ValueError(f"--ckpt_path {given}: there is no file {given}")
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
