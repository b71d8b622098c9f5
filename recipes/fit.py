"""LightningCLI for supernets: a run is one folder, with checkpoints, config.yaml and, at the end, the supernet."""

from __future__ import annotations

import enum
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar, Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from recipes.checks import check_taken
from recipes.keys import OPTIONS
from recipes.saved import import_families, import_from_here
from supernet.atomic import check_free, check_writable, lock_folder, remove_leftovers
from supernet.callbacks import adopt
from supernet.data import check_module, gives, seeded
from supernet.phases import locate
from supernet.resuming import (
    LAST,
    AtomicCheckpointIO,
    LastCheckpoint,
    StopSignals,
    find_checkpoint,
    read_checkpoint,
    requeued,
)
from supernet.saving import NETWORK_FILES, save
from supernet.training import SubnetValidation, SupernetTask, ends, is_finished
from supernet.values import json_value

UNFINISHED = 75  # exit status of a run that max_time ended; of sysexits.h: try again
WRITTEN = {"seed_everything", "trainer", "model", "data", "validation", *OPTIONS}
PARSING = {"exit_on_error": False, "allow_abbrev": False}
CKPT_PATH = (
    "where to go on: auto (or last), the newest checkpoint of the run, also one that Lightning saved for a SLURM job"
    " that is requeued; without one a fit begins, and a finished run is left as it is. hpc: the checkpoint of a"
    " requeued job. Or a file. Under SLURM a fit goes on from the checkpoint of a requeued job by itself. Exit status"
    f" of a fit: 0 finished, or ended by a callback; {UNFINISHED} ended by max_time, 143 by SIGTERM, 130 by Ctrl-C"
)


class Pace:
    """The phase of a training, the time of the current epoch and the time left.

    A step counts as many times as it trains subnets, so that the estimate holds across phases.
    """

    def __init__(self) -> None:
        self.began, self.first = time.perf_counter(), 0

    def start_epoch(self, step: int) -> None:
        self.began, self.first = time.perf_counter(), step

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def left(self, task: SupernetTask, step: int) -> float | None:
        """Seconds to the end of the last phase after `step` optimizer steps; None before a step of the epoch."""
        done = work(task, self.first, step)
        return self.seconds / done * work(task, step, task.total_steps) if done else None


def work(task: SupernetTask, first: int, last: int) -> int:
    """How many subnets the optimizer steps from `first` to before `last` train."""
    total, start = 0, 0
    for phase in task.phases:
        end = start + phase.in_steps(task.steps_per_epoch)[0]
        total += max(0, min(last, end) - max(first, start)) * phase.subnets
        start = end
    return total


def phase_name(task: SupernetTask, step: int) -> str:
    """The name of the phase of a global optimizer step."""
    return task.phases[locate(task.phases, task.steps_per_epoch, step)[0]].name


class PhaseBars(RichProgressBar):
    """Lightning's bars for a terminal, with the name of the phase and the time left of the run."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = Pace()

    def on_train_epoch_start(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        super().on_train_epoch_start(trainer, task)
        self.pace.start_epoch(trainer.global_step)

    def get_metrics(self, trainer: pl.Trainer, task: SupernetTask) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, task)
        metrics.pop("phase", None)
        if not trainer.training:
            return metrics
        left = self.pace.left(task, trainer.global_step)
        shown = {"phase": phase_name(task, trainer.global_step)}
        return shown | ({} if left is None else {"run left": duration(left)}) | metrics


class EpochLines(ProgressBar):
    """Prints a line per epoch where standard output is not a terminal; Lightning's bars are unreadable in a log.

    A line has the phase, the time of the epoch, the time left and the metrics; those of validation only where the epoch
    was validated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.validated: set[str] = set()  # names of the metrics of validation
        self.fresh: set[str] = set()
        self.pace = Pace()

    def disable(self) -> None:
        pass

    def on_train_epoch_start(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        super().on_train_epoch_start(trainer, task)
        self.pace.start_epoch(trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        super().on_validation_start(trainer, task)
        self.before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        super().on_validation_end(trainer, task)
        now = trainer.callback_metrics
        names = {name for name, value in now.items() if value is not self.before.get(name)}
        self.validated |= names
        self.fresh |= names

    def on_train_epoch_end(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        metrics = trainer.callback_metrics
        names = [name for name in metrics if name not in self.validated or name in self.fresh]
        self.fresh = set()
        shown = ", ".join(f"{name} {float(metrics[name]):.4g}" for name in names if name != "phase")
        of = f" of {trainer.max_epochs}" if trainer.max_epochs > 0 else ""
        done = trainer.global_step
        step = done % task.steps_per_epoch
        part = f", to step {step} of {task.steps_per_epoch}" if step else ""
        left = self.pace.left(task, done)
        where = f"phase {phase_name(task, max(0, done - 1))}, {duration(self.pace.seconds)}"
        where += "" if left is None else f", about {duration(left)} left"
        rank_zero_only(print)(f"epoch {trainer.current_epoch + 1}{of}{part} ({where}): {shown}", flush=True)


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class Begin(pl.Callback):
    """Calls `begin` once, before the first step: after everything has been checked that could refuse the run."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin: Callable[[], None] | None = begin

    def on_train_batch_start(self, trainer: pl.Trainer, task: SupernetTask, batch: Any, batch_idx: int) -> None:
        if self.begin is not None:
            self.begin()
            self.begin = None


def ready(data: pl.LightningDataModule, subcommand: str) -> pl.LightningDataModule:
    """The data module, set up where it has no input_spec before; ValueError names what it lacks for a subcommand."""
    if not gives(data, "input_spec"):
        if os.environ.get("LOCAL_RANK", "0") == "0":
            data.prepare_data()
        data.setup("fit")
    loaders = {"fit": ("train_dataloader", "val_dataloader"), "validate": ("val_dataloader",)}
    check_module(data, ["input_spec", "calibration_batches", *loaders.get(subcommand, ("test_dataloader",))])
    return data


def data_name(section: Namespace) -> str:
    """A section `data` in a few words: its class, and its data set where it says one."""
    dataset = (section.get("init_args") or {}).get("dataset")
    return section.class_path + (f", {dataset}" if dataset else "")


def follow_data(model: Namespace, data: Any) -> None:
    """Give the supernet of a recipe, in place, the arguments that follow from the data and are left out (None)."""
    supernet = model.get("supernet")
    if not isinstance(supernet, Namespace) or "class_path" not in supernet:
        return
    module, _, name = supernet.class_path.rpartition(".")
    made = getattr(import_module(module), name)
    family = made if isinstance(made, type) else get_type_hints(made).get("return")
    arguments = supernet.get("init_args") or Namespace()
    left_out = [name for name, value in arguments.items() if value is None]
    if left_out and hasattr(family, "arguments_from"):
        following = family.arguments_from(data.input_spec)
        for name in left_out:
            if name in following:
                arguments[name] = json_value(name, following[name])


def wrote(path: Path) -> bool:
    """Whether a fit wrote a configuration file: it has a header and all keys, which nobody types."""
    try:
        text = path.read_text()
        return text.startswith("# pytorch_lightning==") and yaml.safe_load(text).keys() >= WRITTEN
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return False


# Defaults of Lightning's callbacks that have no form in YAML: Timer's enum, the device of an average.
yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, value: dumper.represent_data(value.value))
register_type(torch.device, serializer=str, deserializer=torch.device)


class SupernetCLI(LightningCLI):
    def __init__(self) -> None:
        import_families()
        import_from_here()
        self.finished = False
        with ExitStack() as self.held:  # the run's folder
            super().__init__(
                model_class=SupernetTask,
                datamodule_class=pl.LightningDataModule,
                subclass_mode_data=True,
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"max_epochs": -1},
                auto_configure_optimizers=False,
                parser_kwargs=PARSING | {name: PARSING for name in self.subcommands()},
            )

    def setup_parser(self, *arguments: Any) -> None:
        super().setup_parser(*arguments)
        for parser in self._subcommand_parsers.values():
            for action in parser._actions:
                if action.dest == "ckpt_path":
                    action.help = CKPT_PATH

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, (kind, default, text) in OPTIONS.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
        parser.add_lightning_class_args(SubnetValidation, "validation")

    def instantiate_classes(self) -> None:
        """Make the data first, so that arguments of the supernet which the recipe leaves out follow them."""
        config = self.config
        if self.subcommand == "fit" and not config.fit.trainer.fast_dev_run:
            self._hold_run()  # before the data are read, which may take minutes
        rank_zero_only(print)(f"reading the data: {data_name(self._get(config, 'data'))}", flush=True)
        with seeded():  # as in `recipes.make_data`: a split at random is the same one
            section = Namespace(
                {"subcommand": self.subcommand, self.subcommand: Namespace(data=self._get(config, "data"))}
            )
            data = self.parser.instantiate(section, instantiate_groups=False)[self.subcommand].data
        follow_data(self._get(config, "model"), ready(data, self.subcommand))
        self.config = config.clone()
        self.config[self.subcommand].data = data
        try:
            super().instantiate_classes()
        finally:
            self.config = config
        self.model.supernet.check_data(data.input_spec)  # a contradiction, before the folder of the run is made

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        run = Path(self._get(self.config, "run"))
        trainer = self._get(self.config_init, "trainer")
        every = self._get(self.config, "checkpoint_every")
        kwargs.setdefault("default_root_dir", run)
        if trainer["logger"] in (None, True):
            kwargs["logger"] = [CSVLogger(run, name="logs")]
            if find_spec("tensorboard"):
                kwargs["logger"].append(TensorBoardLogger(run, name="logs"))
        self.last = LastCheckpoint(run / LAST.parent, every)
        self.trainer_defaults["callbacks"] = [self.last, StopSignals()]
        listed = trainer["callbacks"] or []
        if any(
            isinstance(callback, SubnetValidation) for callback in (listed if isinstance(listed, list) else [listed])
        ):
            raise ValueError("trainer.callbacks: SubnetValidation is set by the section `validation`: leave it out")
        kwargs["callbacks"] = listed = adopt(listed if isinstance(listed, list) else [listed])
        if trainer["enable_checkpointing"] is None:  # Lightning's default would add a ModelCheckpoint to ours
            kwargs["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in listed)
        for callback in listed:  # Lightning's own folder is another one in each command
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((run / "checkpoints" / "kept").resolve())
        bars = any(isinstance(callback, ProgressBar) for callback in listed)
        if trainer["enable_progress_bar"] is not False and not bars:
            self.trainer_defaults["callbacks"].append(PhaseBars() if sys.stdout.isatty() else EpochLines())
        given = trainer["plugins"] or []
        kwargs["plugins"] = [*(given if isinstance(given, list) else [given]), AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would read hyperparameters, which our checkpoints do not have, and fail on any other."""

    def _resolve_checkpoint(self, default: str | None) -> None:
        """--ckpt-path as a file; ValueError where there is none, unless a fit is to begin."""
        subcommand = self.config_init[self.subcommand]
        run, given = Path(subcommand["run"]), subcommand["ckpt_path"] or default
        path = find_checkpoint(run, given)
        if path is None and self.subcommand != "fit":
            raise ValueError(f"--ckpt-path {given}: {run / LAST} does not exist")
        subcommand["ckpt_path"] = None if path is None else str(path)

    def before_validate(self) -> None:
        self._resolve_checkpoint("last")

    before_test = before_validate

    # ---- fit

    @rank_zero_only
    def _hold_run(self) -> None:
        """Refuse a run folder that cannot be written or is in use, else hold it to the end."""
        run = Path(self._get(self.config, "run"))
        for folder in (run, run / LAST.parent, run / "logs"):
            check_writable(folder)
        self.held.enter_context(lock_folder(run))
        for written in (run / LAST, run / "supernet"):
            remove_leftovers(written)

    def before_fit(self) -> None:
        run = Path(self._get(self.config, "run"))
        first = self.trainer.is_global_zero and not self.trainer.fast_dev_run
        given = self.config_init["fit"]["ckpt_path"]
        self._resolve_checkpoint(None)
        check_free(run / "supernet", NETWORK_FILES, overwrite=True)
        path = self.config_init["fit"]["ckpt_path"]
        ours = [place for place in (run / LAST, *requeued(run)) if place.is_file()]
        resumes = path is not None and any(place.samefile(path) for place in ours)
        self.finished = resumes and (run / "supernet").is_dir() and self._check_finished(Path(path))
        if not first:
            return
        parser = self._parser("fit")
        if not resumes:
            recipes = [Path(str(recipe)).resolve() for recipe in self._get(self.config, "config") or ()]
            written = run / "config.yaml"
            # A run that ended before its first checkpoint has left its configuration.
            begun = given and wrote(written) and written.resolve() not in recipes
            if not self._get(self.config, "overwrite"):
                check_taken([*ours, run / "supernet", *(() if begun else (written,))], bool(ours))
            if given is not None and path is None:
                print(f"{run} has no checkpoint yet: the run begins", flush=True)

        def begin() -> None:
            if not resumes:
                # What is overwritten goes now: a run that ended before its first checkpoint would resume the old one.
                for place in ours:
                    place.unlink(missing_ok=True)
                shutil.rmtree(run / "supernet", ignore_errors=True)
            run.mkdir(parents=True, exist_ok=True)
            parser.save(self.config.fit, run / "config.yaml", overwrite=True, skip_check=True, multifile=False)

        self.trainer.callbacks.append(Begin(begin))

    def _check_finished(self, path: Path) -> bool:
        """Whether a checkpoint is of a finished run; ValueError if that run is another one than this."""
        checkpoint = read_checkpoint(path, mmap=True)
        self.model.check_run(checkpoint)
        return is_finished(checkpoint)

    def fit(self, **options: Any) -> None:
        """Train; whatever ends it early is followed by how the run goes on."""
        if self.finished:
            return
        try:
            self.trainer.fit(**options)
        except BaseException as stop:
            step = self.last.saved_step
            if step and (not isinstance(stop, Exception) or step > self.last.first_step):
                rank_zero_only(print)(f"supernet: {self._where(step)}", file=sys.stderr, flush=True)
            raise

    def _where(self, step: int) -> str:
        """A sentence on where the run stands, and how it goes on."""
        index, _ = locate(self.model.phases, self.model.steps_per_epoch, step)
        phase = f"phase {self.model.phases[index].name!r}, {index + 1} of {len(self.model.phases)}"
        return (
            f"the run is not finished: {step} of {self.model.total_steps} optimizer steps are done ({phase}) and saved"
            f" in {self.last.path}. The same command with --ckpt-path auto goes on"
        )

    def after_fit(self) -> None:
        trainer, run = self.trainer, Path(self._get(self.config, "run"))
        say = rank_zero_only(print)
        if self.finished:
            say(f"the run is finished, nothing is left to train: {run / 'supernet'} is its supernet")
            return
        if trainer.fast_dev_run or trainer.interrupted:
            return
        if trainer.limit_train_batches == 0:
            raise ValueError("limit_train_batches is 0: no step was trained, and no supernet is saved")
        states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
        if not ends(self.model.phases, self.model.steps_per_epoch, trainer.global_step, states):
            say(self._where(trainer.global_step), flush=True)
            if any(
                isinstance(timer, Timer) and timer.time_remaining() is not None and timer.time_remaining() <= 0
                for timer in trainer.callbacks
            ):
                raise SystemExit(UNFINISHED)
            return
        if trainer.is_global_zero:
            data = self._get(self.config, "data").as_dict()
            # In float32 whatever it was trained in: what is cut from it is measured and exported in float32.
            save(self.model.supernet.float(), run / "supernet", data=data, overwrite=True)
        if trainer.global_step < self.model.total_steps:
            say(f"EarlyStopping ended the run after {trainer.global_step} of {self.model.total_steps} optimizer steps")
        say(f"supernet saved: {run / 'supernet'}", flush=True)
        self._validate_end()
        say(f"""next, the latencies that it has on this machine, to choose a budget in ms:
  supernet measure --supernet {run / "supernet"} --device onnxruntime
then the most accurate network within a budget:
  supernet specialize --supernet {run / "supernet"} --device onnxruntime --max-latency MS --out {run / "subnet"}""")

    def _validate_end(self) -> None:
        """Print the figures of the last step; validate it if a run that is resumed at its end has not yet."""
        (validation,) = (callback for callback in self.trainer.callbacks if isinstance(callback, SubnetValidation))
        step = self.trainer.global_step
        if (validation.latest is None or validation.latest[0] != step) and self.trainer.limit_val_batches:
            options = {"ckpt_path": self.last.path, "verbose": False}
            self.trainer.validate(self.model, datamodule=self.datamodule, **options)
        if validation.latest is not None and validation.latest[0] == step:
            figures = ", ".join(f"{name} {accuracy:.4f}" for name, (accuracy, _) in validation.latest[1].items())
            mean = f" (random: the mean of {validation.random})" if "random" in validation.latest[1] else ""
            rank_zero_only(print)(f"held-out accuracy of subnets: {figures}{mean}", flush=True)
