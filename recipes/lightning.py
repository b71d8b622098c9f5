"""LightningCLI for supernets: a run is one folder, with checkpoints, config.yaml and, at the end, the supernet."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from recipes import import_families
from supernet.export import NETWORK_FILES, check_free, save
from supernet.training import AtomicCheckpointIO, LastCheckpoint, SubnetValidation, SupernetTask


class SupernetCLI(LightningCLI):
    def __init__(self) -> None:
        import_families()
        super().__init__(
            model_class=SupernetTask,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"max_epochs": -1, "enable_checkpointing": False},
            auto_configure_optimizers=False,
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
        if trainer["enable_progress_bar"] is not False:
            self.trainer_defaults["callbacks"].append(RichProgressBar())
        self.trainer_defaults["plugins"] = [AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    # ---- fit

    def before_fit(self) -> None:
        run = Path(self._get(self.config, "run"))
        subcommand = self.config_init["fit"]
        last = run / "checkpoints" / "last.ckpt"
        if subcommand["ckpt_path"] == "last":
            if not last.is_file():
                raise ValueError(f"--ckpt_path last: there is no {last} to resume from")
            subcommand["ckpt_path"] = str(last)
        elif subcommand["ckpt_path"] is not None and not Path(subcommand["ckpt_path"]).is_file():
            raise ValueError(f"--ckpt_path: there is no file {subcommand['ckpt_path']}")
        elif subcommand["ckpt_path"] is None and not self._get(self.config, "overwrite"):
            for taken in (last, run / "supernet"):
                if taken.exists():
                    raise FileExistsError(
                        f"{taken} is already there: resume with --ckpt_path last, choose another --run, or --overwrite"
                        " true"
                    )
        check_free(run / "supernet", NETWORK_FILES, overwrite=True)
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            run.mkdir(parents=True, exist_ok=True)
            parser = self._parser("fit")
            parser.save(self.config.fit, run / "config.yaml", overwrite=True, skip_check=True, multifile=False)

    def after_fit(self) -> None:
        if self.trainer.fast_dev_run or self.trainer.interrupted or not self.trainer.is_global_zero:
            return
        run = Path(self._get(self.config, "run"))
        data = self._get(self.config, "data").as_dict()
        save(self.model.supernet, run / "supernet", data=data, overwrite=True)
        print(f"supernet saved: {run / 'supernet'}")
