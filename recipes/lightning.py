"""LightningCLI for supernets: a run is one folder, with checkpoints, config.yaml and, at the end, the supernet."""

from __future__ import annotations

import enum
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse.typing import register_type
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from recipes import import_families
from supernet.callbacks import adopt
from supernet.export import NETWORK_FILES, check_free, save
from supernet.training import AtomicCheckpointIO, LastCheckpoint, SubnetValidation, SupernetTask


class EpochLines(ProgressBar):
    """A line per epoch, for logs: where standard output is no terminal, Lightning's bars leave little of use."""

    def disable(self) -> None:
        pass

    def on_train_epoch_end(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        figures = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.callback_metrics.items())
        rank_zero_only(print)(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {figures}", flush=True)


class Begin(pl.Callback):
    """Calls `begin` once, before the first step: after everything has been checked that could refuse the run."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin: Callable[[], None] | None = begin

    def on_train_epoch_start(self, trainer: pl.Trainer, task: SupernetTask) -> None:
        if self.begin is not None:
            self.begin()
            self.begin = None


# Defaults of Lightning's callbacks that have no form in YAML: Timer's enum, the device of an average.
yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, value: dumper.represent_data(value.value))
register_type(torch.device, serializer=str, deserializer=torch.device)


class SupernetCLI(LightningCLI):
    def __init__(self) -> None:
        import_families()
        super().__init__(
            model_class=SupernetTask,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"max_epochs": -1},
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False} | {name: {"exit_on_error": False} for name in self.subcommands()},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="runs/supernet", help="the folder of this run")
        parser.add_argument("--overwrite", type=bool, default=False, help="let the run replace an earlier one")
        parser.add_argument(
            "--checkpoint_every", type=int, default=0, help="optimizer steps between checkpoints; 0: only after epochs"
        )
        parser.add_lightning_class_args(SubnetValidation, "validation")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        run = Path(self._get(self.config, "run"))
        trainer = self._get(self.config_init, "trainer")
        every = self._get(self.config, "checkpoint_every")
        kwargs.setdefault("default_root_dir", run)
        if trainer["logger"] in (None, True):
            kwargs["logger"] = [CSVLogger(run, name="logs")]
            if find_spec("tensorboard"):
                kwargs["logger"].append(TensorBoardLogger(run, name="logs"))
        self.trainer_defaults["callbacks"] = [LastCheckpoint(run / "checkpoints", every)]
        listed = trainer["callbacks"] or []
        kwargs["callbacks"] = listed = adopt(listed if isinstance(listed, list) else [listed])
        if trainer["enable_checkpointing"] is None:  # Lightning's default would add a ModelCheckpoint to ours
            kwargs["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in listed)
        for callback in listed:  # Lightning's own folder is another one in each command
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((run / "checkpoints" / "kept").resolve())
        bars = any(isinstance(callback, ProgressBar) for callback in listed)
        if trainer["enable_progress_bar"] is not False and not bars:
            self.trainer_defaults["callbacks"].append(RichProgressBar() if sys.stdout.isatty() else EpochLines())
        given = trainer["plugins"] or []
        kwargs["plugins"] = [*(given if isinstance(given, list) else [given]), AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would read hyperparameters, which our checkpoints do not have, and fail on any other."""

    def _resolve_checkpoint(self, default: str | None) -> None:
        """--ckpt_path last as the run's file; ValueError where there is no file (Lightning would go on without)."""
        subcommand = self.config_init[self.subcommand]
        path = subcommand["ckpt_path"] or default
        if path == "last":
            path = Path(subcommand["run"]) / "checkpoints" / "last.ckpt"
        if path is not None and not Path(path).is_file():
            raise ValueError(f"--ckpt_path {subcommand['ckpt_path'] or default}: there is no file {path}")
        subcommand["ckpt_path"] = None if path is None else str(path)

    def before_validate(self) -> None:
        self._resolve_checkpoint("last")

    before_test = before_validate

    # ---- fit

    def before_fit(self) -> None:
        run = Path(self._get(self.config, "run"))
        self._resolve_checkpoint(None)
        check_free(run / "supernet", NETWORK_FILES, overwrite=True)
        last = run / "checkpoints" / "last.ckpt"
        given = self.config_init["fit"]["ckpt_path"]
        ours = given is not None and last.is_file() and last.samefile(given)
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:
            return
        if not ours:
            for taken in (last, run / "supernet", run / "config.yaml"):
                if taken.exists() and not self._get(self.config, "overwrite"):
                    resume = "resume with --ckpt_path last, " if last.is_file() else ""
                    raise FileExistsError(
                        f"{taken} is already there: {resume}choose another --run, or --overwrite true"
                    )

        def begin() -> None:
            if not ours:
                # What is overwritten goes now: a run that ended before its first checkpoint would resume the old one.
                last.unlink(missing_ok=True)
                shutil.rmtree(run / "supernet", ignore_errors=True)
            run.mkdir(parents=True, exist_ok=True)
            parser = self._parser("fit")
            parser.save(self.config.fit, run / "config.yaml", overwrite=True, skip_check=True, multifile=False)

        self.trainer.callbacks.append(Begin(begin))

    def after_fit(self) -> None:
        if self.trainer.fast_dev_run or self.trainer.interrupted or not self.trainer.is_global_zero:
            return
        if self.trainer.global_step == 0:
            raise ValueError("no step was trained, so no supernet is saved: is limit_train_batches 0?")
        run = Path(self._get(self.config, "run"))
        data = self._get(self.config, "data").as_dict()
        # In float32 whatever it was trained in: what is cut from it is measured and exported in float32.
        save(self.model.supernet.float(), run / "supernet", data=data, overwrite=True)
        print(f"supernet saved: {run / 'supernet'}")
