"""The help of `supernet fit`, made from the code without importing torch; Lightning's whole list is `--help-all`."""

from __future__ import annotations

import ast
import dataclasses
import textwrap
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from recipes.recipes import shipped, summary
from supernet.phases import Phase

WIDTH = 120
START = """fit needs a recipe: supernet fit --config RECIPE

For example, in some minutes on the digits inside scikit-learn:
  supernet fit --config ofa/digits

supernet recipes lists the recipes, supernet fit --help the keys of a recipe."""
HEAD = """usage: supernet fit --config RECIPE [--KEY VALUE ...]

Train a supernet through all phases of a recipe. A run is one folder: checkpoints, logs, config.yaml and, at the end,
the supernet. --print_config writes a recipe with all its keys, --help-all lists every key of Lightning's, too."""
KEYS = {
    "--config RECIPE": "the name of a shipped recipe, or a YAML file",
    "--run FOLDER": "the folder of this run (default: runs/supernet)",
    "--overwrite true": "replace an earlier run (default: false)",
    "--ckpt_path auto": "go on with the run from its last checkpoint, or begin it",
    "--checkpoint_every N": "optimizer steps between checkpoints (default: 0, only after epochs)",
    "--scale-phases F": "multiply the length of every phase, 0.1 for a tenth (default: 1)",
    "--seed_everything N": "seed of weights, data order and subnets (default: 0)",
    "--data FILE": "a YAML file with class_path and init_args of a data module",
    "--data.init_args.KEY V": "a key of the data module, for example --data.init_args.batch_size 64",
    "--model.KEY V": "a key of the training, see below, for example --model.clip_norm 1",
    "--trainer.max_time T": "end after DD:HH:MM:SS, with exit status 75; --ckpt_path auto goes on",
    "--trainer.precision P": "32-true, bf16-mixed, 16-mixed (on a GPU), bf16-true or 64-true (default: 32-true)",
    "--trainer.devices N": "processes or GPUs; with --trainer.strategy ddp",
    "--trainer.fast_dev_run true": "try one batch of everything, and write nothing",
}
TOP = (
    "config run overwrite ckpt_path checkpoint_every scale-phases seed_everything data model trainer validation"
    " print_config help help-all weights_only verbose"
).split()  # all options of fit, validate and test before their first dot
OPTIMIZERS = (
    "Any class of torch.optim: --model.optimizer torch.optim.AdamW --model.optimizer.weight_decay 0.01. The learning"
    " rate is that of the phases."
)


def fit_help() -> str:
    """The help: shipped recipes, the keys that matter, and what a recipe may name."""
    phase = ast_class("supernet.phases", "Phase")
    defaults = {
        field.name: "required" if field.default is dataclasses.MISSING else repr(field.default)
        for field in dataclasses.fields(Phase)
    }
    defaults["space"] = "all choices"
    task = ast_class("supernet.training", "SupernetTask")
    sections = {
        "Shipped recipes": {name: summary(path) for name, path in shipped().items()},
        "Keys that matter": KEYS,
        "Keys of the training (--model.KEY)": documented(task, argument_defaults(task)),
        "Keys of a phase (model.phases is a list of them; lengths in epochs or optimizer steps)": documented(
            phase, defaults
        ),
        "Families (model.supernet.class_path)": dict(named("FAMILIES")),
        "Data modules (data.class_path)": dict(named("DATA_MODULES")),
    }
    blocks = [HEAD, *(block(title, rows) for title, rows in sections.items())]
    return "\n\n".join([*blocks, "Optimizers\n" + textwrap.fill(OPTIMIZERS, WIDTH, **both("  "))])


def training_keys() -> list[str]:
    """The keys of `model` in a recipe."""
    return list(argument_defaults(ast_class("supernet.training", "SupernetTask")))


def named(table: str) -> Iterator[tuple[str, str]]:
    """(class path, first sentence of the docstring) of the classes in a table of the families' packages."""
    for package in ("ofa", "hat"):
        module = import_module(package)
        for name in getattr(module, table):
            text = ast.get_docstring(ast_class(module._HOMES[name], name)) or ""
            yield f"{package}.{name}", first_sentence(text)


def first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".") + "."


def ast_class(module: str, name: str) -> ast.ClassDef:
    """The syntax tree of a class, without importing its module."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def argument_defaults(node: ast.ClassDef) -> dict[str, str]:
    """{argument of the constructor: its default as source, "required" without one}."""
    init = next(x for x in node.body if isinstance(x, ast.FunctionDef) and x.name == "__init__")
    names = [argument.arg for argument in init.args.args[1:]]
    defaults = [ast.unparse(default) for default in init.args.defaults]
    found = dict(zip(names, ["required"] * (len(names) - len(defaults)) + defaults))
    return {name: "SGD" if default.startswith("lambda") else default for name, default in found.items()}


def documented(node: ast.ClassDef, defaults: dict[str, str]) -> dict[str, str]:
    """{argument: its text in the docstring, with its default}."""
    lines = (ast.get_docstring(node) or "").partition("Args:\n")[2].splitlines()
    texts: dict[str, str] = {}
    for line in lines:
        if not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            texts[name] = text
        else:
            texts[name] += " " + line.strip()
    rows = {}
    for name, text in texts.items():
        shown = [defaults[part] for part in name.split(", ") if part in defaults]
        what = "" if not shown else " (required)" if shown[0] == "required" else f" (default: {', '.join(shown)})"
        rows[name] = text.rstrip(".") + what
    return rows


def block(title: str, rows: dict[str, str]) -> str:
    """A titled list of names and texts."""
    column = min(max(map(len, rows)), 28) + 4
    lines = []
    for name, text in rows.items():
        first = f"  {name}".ljust(column)
        if len(first) > column:
            lines.append(first)
            first = " " * column
        lines += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * column)
    return "\n".join([title, *lines])


def both(indent: str) -> dict[str, str]:
    return {"initial_indent": indent, "subsequent_indent": indent}


def unknown_options(argv: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """(a misspelt option, the options that it may be) of a command line of fit."""
    keys = training_keys()
    for argument in argv:
        name = argument.partition("=")[0]
        if not name.startswith("--"):
            continue
        top, _, rest = name.removeprefix("--").partition(".")
        top = top.rstrip("+")
        if top not in TOP:
            yield name, [f"--{known}" for known in TOP]
        elif top == "model" and rest and rest.partition(".")[0].rstrip("+") not in keys:
            yield name, [f"--model.{key}" for key in keys]
