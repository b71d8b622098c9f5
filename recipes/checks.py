"""Checks of a command line of fit, validate or test. They import no torch, so a wrong line is refused at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.keys import OPTIONS, RUN, read_yaml, wrong_keys
from recipes.recipes import recipe_path, shipped
from supernet.description import LAST
from supernet.values import did_you_mean

NEWEST = ("auto", "last", "hpc")  # values of --ckpt-path that are not files
Options = list[tuple[str, str | None]]  # (name without --, value), in the order of the command line


class OptionError(ValueError):
    """Options that cannot be parsed: exit status 2."""


def check_command(command: str, argv: Sequence[str]) -> None:
    """Raise an error for a misspelt option, key or file, and for a run that cannot begin.

    OptionError where an option or a key is not known; ValueError or OSError for a file or folder.
    """
    options = read_options(command, argv)
    for name, known in wrong_keys(options):
        what = f"an option of supernet {command}" if name.startswith("--") else "a key"
        hint = did_you_mean(name.partition(" in ")[0], known)
        raise OptionError(f"{name} is not {what}{hint}\nsupernet {command} --help lists the options")
    settings = read_settings(options)
    run = Path(settings["run"] or RUN)
    check_checkpoint(command, run, settings.get("ckpt_path"))
    resumes = settings.get("ckpt_path") is not None or "SLURM_JOB_ID" in os.environ
    later = os.environ.get("LOCAL_RANK", "0") != "0"  # a process of a run that has begun
    prints = any(argument.startswith(("--print_config", "--print-config")) for argument in argv)
    if command == "fit" and not (resumes or later or prints or settings["overwrite"] or fast_dev_run(settings)):
        ours = [run / LAST, *sorted(run.glob("hpc_ckpt_*.ckpt"))]  # the latter of a job that SLURM requeued
        check_taken([*ours, run / "supernet", run / "config.yaml"], any(path.exists() for path in ours))


def read_options(command: str, argv: Sequence[str]) -> Options:
    """The options of a command line; OptionError for what is not one."""
    options, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name == "-c":
            name = "--config"
        if not name.startswith("--"):
            is_recipe = argument in shipped() or argument.endswith((".yaml", ".yml"))
            hint = f"; did you mean --config {argument}?" if is_recipe else ""
            raise OptionError(f"{argument!r} is not an option{hint}\nsupernet {command} --help lists the options")
        if not equals:
            alone = name in ("--help", "--help-all", "--print_config", "--print-config")
            value = None if alone or not rest or rest[0].startswith("--") else rest.pop(0)
        if name == "--config" and not value:
            raise OptionError(f"--config needs a recipe, for example: supernet {command} --config ofa/digits")
        options.append((name.removeprefix("--"), value))
    return options


def read_settings(options: Options) -> dict[str, Any]:
    """The keys outside sections that a command line and its recipes set, with the defaults of `OPTIONS`."""
    settings = {name: default for name, (_, default, _) in OPTIONS.items()}
    for name, value in options:
        if name == "config" and value:
            content = read_yaml(recipe_path(value))
            settings |= content if isinstance(content, Mapping) else {}
        elif name == "trainer.fast_dev_run":
            settings["trainer"] = {"fast_dev_run": read_flag(value)}
        else:
            settings[name.replace("-", "_")] = value
    settings["overwrite"] = read_flag(settings["overwrite"])
    return settings


def read_flag(value: Any) -> bool:
    return str(value).lower() not in ("false", "0", "none", "null")


def fast_dev_run(settings: Mapping[str, Any]) -> bool:
    trainer = settings.get("trainer")
    return isinstance(trainer, Mapping) and read_flag(trainer.get("fast_dev_run", False))


def check_checkpoint(command: str, run: Path, given: str | None) -> None:
    """Raise ValueError where a checkpoint is to be read, and there is none."""
    if given not in (None, *NEWEST) and not Path(given).is_file():
        raise ValueError(f"--ckpt-path {given}: this file does not exist")
    if command != "fit" and given in (None, "auto", "last"):
        if not (run / LAST).is_file() and not any(run.glob("hpc_ckpt_*.ckpt")):
            raise ValueError(f"--ckpt-path {given or 'last'}: {run / LAST} does not exist")


def check_taken(places: Iterable[Path], has_checkpoint: bool) -> None:
    """Raise FileExistsError for the first of the places that exists."""
    for place in places:
        if place.exists():
            resume = "resume with --ckpt-path auto, " if has_checkpoint else ""
            raise FileExistsError(f"{place} already exists: {resume}choose another --run, or --overwrite true")
