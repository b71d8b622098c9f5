"""The help of `supernet fit`, made from the code without importing torch; Lightning's whole list is `--help-all`."""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator

from recipes.keys import OPTIONS, PHASE, TASK, arguments_of, find_source, spelled
from recipes.recipes import shipped, summary

WIDTH = 120
START = """{command} needs a recipe: supernet {command} --config RECIPE

For example, in some minutes on the digits inside scikit-learn:
  supernet {command} --config ofa/digits

supernet recipes lists the recipes, supernet fit --help the keys of a recipe."""
HEADS = {
    "fit": "Train a supernet through all phases of a recipe. A run is one folder: checkpoints, logs, config.yaml and,"
    " at the end, the supernet. --print-config writes a recipe with all its keys.",
    "validate": "Evaluate subnets of a run's last checkpoint on the held-out data.",
    "test": "Evaluate subnets of a run's last checkpoint on the test set.",
}
CONFIG = {"--config RECIPE": "the name of a shipped recipe, or a YAML file"}
CHECKPOINT = {"--ckpt-path FILE": "a checkpoint (default: the last one of the run)"}
KEYS = {
    "--ckpt-path auto": "go on with the run from its last checkpoint, or begin it",
    "--scale-phases F": "multiply the length of every phase, 0.1 for a tenth (default: 1)",
    "--seed-everything N": "seed of the initial weights (default: 0)",
    "--data FILE": "a YAML file with class_path and init_args of a data module",
    "--data.init_args.KEY V": "a key of the data module, for example --data.init_args.batch_size 64",
    "--model.KEY V": "a key of the training, see below, for example --model.clip_norm 1",
    "--trainer.max_time T": "end after DD:HH:MM:SS, with exit status 75; --ckpt-path auto goes on",
    "--trainer.precision P": "32-true, bf16-mixed, 16-mixed (on a GPU), bf16-true or 64-true (default: 32-true)",
    "--trainer.devices N": "processes or GPUs; with --trainer.strategy ddp",
    "--trainer.fast_dev_run true": "try one batch of everything, and write nothing",
}
VALUES = {str: "FOLDER", bool: "true", int: "N"}  # of `OPTIONS`, by type
OPTIMIZERS = (
    "Any class of torch.optim: --model.optimizer torch.optim.AdamW --model.optimizer.weight_decay 0.01. The learning"
    " rate is that of the phases."
)


def lightning_help(command: str) -> str:
    """The help of fit, validate or test: recipes, the keys that matter and, of fit, what a recipe may name."""
    usage = f"usage: supernet {command} --config RECIPE [--KEY VALUE ...]"
    text = f"{HEADS[command]} --help-all lists all keys, with those of Lightning."
    run = {
        f"--{spelled(name)} {VALUES[kind]}": with_default(text, default)
        for name, (kind, default, text) in (
            (name, option) for name, option in OPTIONS.items() if command == "fit" or name == "run"
        )
    }
    recipes = {"Shipped recipes": {name: summary(path) for name, path in shipped().items()}}
    if command == "fit":
        sections = recipes | {"Keys that matter": CONFIG | run | KEYS} | recipe_sections()
    else:
        sections = recipes | {"Keys that matter": CONFIG | run | CHECKPOINT}
    blocks = [usage, textwrap.fill(text, WIDTH), *(block(title, rows) for title, rows in sections.items())]
    if command == "fit":
        indent = {"initial_indent": "  ", "subsequent_indent": "  "}
        blocks.append("Optimizers (model.optimizer)\n" + textwrap.fill(OPTIMIZERS, WIDTH, **indent))
    return "\n\n".join(blocks)


def recipe_sections() -> dict[str, dict[str, str]]:
    """What a recipe may name, from the docstrings and signatures of the classes."""
    return {
        "Keys of the training (--model.KEY)": documented(TASK),
        "Keys of a phase (model.phases is a list of them; lengths in epochs or optimizer steps)": documented(PHASE),
        "Families (model.supernet.class_path)": dict(named("FAMILIES")),
        "Data modules (data.class_path)": dict(named("DATA_MODULES")),
    }


def named(table: str) -> Iterator[tuple[str, str]]:
    """(class path, first sentence of the docstring) of the classes in a table of ours, and of the imported plug-ins."""
    import hat  # noqa: F401
    import ofa  # noqa: F401

    for package, module in sorted(sys.modules.items()):
        for name in getattr(module, "__dict__", {}).get(table, ()) if package != "__main__" else ():
            source = find_source(f"{package}.{name}")  # a plug-in is imported, and its class at hand
            text = getattr(module, name).__doc__ if source is None else ast.get_docstring(source)
            yield f"{package}.{name}", first_sentence(text or "")


def first_sentence(text: str) -> str:
    words = " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    return f"{words}." if words else ""


def documented(class_path: str) -> dict[str, str]:
    """{argument: its text in the docstring of the class, with its default}."""
    lines = (ast.get_docstring(find_source(class_path)) or "").partition("Args:\n")[2].splitlines()
    texts: dict[str, str] = {}
    for line in lines:
        if not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            texts[name] = text
        else:
            texts[name] += " " + line.strip()
    defaults = arguments_of(class_path)
    return {name: with_default(text.rstrip(".;"), defaults[name.partition(",")[0]]) for name, text in texts.items()}


def with_default(text: str, default: object) -> str:
    if default == "required":
        return f"{text} (required)"
    return f"{text} (default: {str(default).lower() if isinstance(default, bool) else default})"


def block(title: str, rows: dict[str, str]) -> str:
    """A titled list of names and texts."""
    column = min(max(map(len, rows)), 28) + 4
    lines = []
    for name, text in rows.items():
        first = f"  {name}".ljust(column)
        if not text:
            lines.append(first.rstrip())
        if len(first) > column:
            lines.append(first)
            first = " " * column
        lines += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * column)
    return "\n".join([title, *lines])
