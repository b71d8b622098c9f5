"""The command `supernet`: fit, validate and test go to LightningCLI, the verbs to jsonargparse.

Options are spelled with hyphens, as in `--max-latency`. Underscores, as the keys of YAML files have them, are accepted,
too. Dotted keys of a recipe, such as `--model.clip_norm`, have underscores. No option can be abbreviated.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from types import FrameType
from typing import Any

from recipes import VERBS
from recipes.checks import OptionError, check_command
from recipes.recipes import RECIPES as RECIPES
from recipes.recipes import recipe_path
from recipes.saved import import_from_here, looked_in
from recipes.values import GARBAGE
from supernet.values import did_you_mean

LIGHTNING = ("fit", "validate", "test")
USERS_ERRORS = (ValueError, OSError, ImportError, NotImplementedError)
WRAPPING = ("Does not validate against any", "Subtypes: ", "Errors:", "- Expected a <class 'NoneType'>", "Given value")


def main(argv: list[str] | None = None) -> None:
    """Run the command; an error of the user's is reported, with exit status 1 (SUPERNET_TRACEBACK=1 shows where).

    That of options that cannot be parsed is 2; 130 that of Ctrl-C, and 143 of SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    import_from_here()
    try:
        with terminable():
            run(argv)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning makes a SystemExit(1) of a KeyboardInterrupt.
        interrupt = stop if isinstance(stop, KeyboardInterrupt) else stop.__context__
        if not isinstance(interrupt, KeyboardInterrupt):
            raise
        measures = argv[0] in ("measure", "specialize")
        kept = "; what was measured is kept, and the same command goes on from it" if measures else ""
        terminated = isinstance(interrupt, Terminated)
        print(f"supernet: {'terminated' if terminated else 'interrupted'}{kept}", file=sys.stderr)
        raise SystemExit(143 if terminated else 130) from None
    except Exception as error:
        # The parser's, and Lightning's for a setting that makes no sense; importing them would slow every help.
        name = type(error).__name__
        users = isinstance(error, USERS_ERRORS) or name in ("ArgumentError", "MisconfigurationException")
        if os.environ.get("SUPERNET_TRACEBACK") or not users:
            raise
        where = "".join(dict.fromkeys(map(looked_in, re.findall(r"class_path '([\w.]+)'", str(error)))))
        message = str(error) if name == "OptionError" else f"{plain(str(error))}{meant(str(error))}{where}"
        print(f"supernet: error: {message}", file=sys.stderr)
        if name == "ArgumentError":
            print(f"supernet {argv[0]} --help lists the options", file=sys.stderr)
        raise SystemExit(2 if name in ("ArgumentError", "OptionError") else 1) from error


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what was begun is cleaned up as after Ctrl-C."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raises `Terminated` where SIGTERM (a plain `kill`) arrives, in the main thread."""

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plain(message: str) -> str:
    """A message without what jsonargparse wraps around it where an argument may also be something else."""
    lines = [line for line in message.splitlines() if line.strip() and not line.lstrip().startswith(WRAPPING)]
    if lines and len(lines) < len(message.splitlines()):
        lines = [line.strip().removeprefix("- ") for line in lines]
        lines = [line for line in lines if not re.fullmatch('Parser key "[a-z]+":', line)] or lines
    return "\n".join(lines) or message


def meant(message: str) -> str:
    """ "; did you mean KEY?" for a message of the parser on an argument that a class does not have."""
    key = re.search(r"Option '(\w+)' is not accepted", message)
    paths = re.findall(r"class_path[ =]'([\w.]+)'", message)
    if not key or not paths:
        return ""
    module, _, name = paths[-1].rpartition(".")
    made = getattr(sys.modules.get(module), name, None)
    return did_you_mean(key[1], inspect.signature(made).parameters) if callable(made) else ""


def run(argv: list[str]) -> None:
    """Import the plug-ins that come first, then run the command."""
    while argv[:1] == ["--plugin"]:
        if len(argv) < 2:
            raise OptionError("--plugin needs the name of a module")
        import_module(argv[1])
        argv = argv[2:]
    command = argv[0] if argv else "--help"
    if command in LIGHTNING:
        if answer_fit(argv):
            return
        from recipes.fit import SupernetCLI

        # pytorch-lightning 2.6 calls torch's deprecated pytree name itself.
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)
        # ... and warns of the frozen teacher, which is meant to be in eval mode.
        warnings.filterwarnings("ignore", "Found .* module.s. in eval mode at the start of training")
        # ... and of a checkpoint that is written after its step, as is meant.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
        # ... and that FLOPs, which differ from step to step, are not counted.
        warnings.filterwarnings("ignore", "When using the `ThroughputMonitor`, you need to define a `flops_per_batch`")
        keep_freed_memory()
        # Lightning's processes beyond the first run the command of sys.argv.
        sys.argv = [sys.argv[0], *resolve_recipes(argv)]
        SupernetCLI()
    elif command in VERBS:
        gc.set_threshold(GARBAGE)  # looking through the many objects of imports and exports takes seconds
        run_verb(command, argv[1:])
    elif command == "--version":
        print(version("supernet"))
    else:
        if command not in ("-h", "--help"):
            hint = did_you_mean(command, [*LIGHTNING, *VERBS])
            raise OptionError(f"{command!r} is not a command{hint}\nsupernet --help lists the commands")
        print(usage())


def answer_fit(argv: list[str]) -> bool:
    """Print a help that is asked for, and return whether there was one; refuse a wrong command line.

    All of it before torch is imported.
    """
    from recipes.fit_help import START, lightning_help

    command, options = argv[0], argv[1:]
    if not options:
        raise OptionError(START.format(command=command))
    if {"-h", "--help"} & set(options):
        print(lightning_help(command))
        return True
    if "--help-all" not in options:
        check_command(command, options)
    return False


def run_verb(command: str, argv: list[str]) -> None:
    """Parse the options of a verb, and call its function. Misspelt and abbreviated options are refused."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def format_help(self) -> str:  # options are spelled with hyphens
            return re.sub(r"--[a-z][a-z_]*", lambda found: found[0].replace("_", "-"), super().format_help())

    verb = find_verb(command)
    verb.__doc__ = with_tables(verb.__doc__)
    parser = Parser(prog=f"supernet {command}", description=verb.__doc__.splitlines()[0], exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="a YAML file of options")
    parser.add_function_arguments(verb, as_positional=False)
    if command == "recipes":
        argv = copy_options(argv)
    argv = [dashes_to_underscores(argument) for argument in argv]
    known = {option for action in parser._actions for option in action.option_strings}
    for argument in argv:
        name = argument.partition("=")[0]
        # A nested key, as of `bounds`, is for the parser.
        if name.startswith("--") and name.partition(".")[0] not in known:
            spelled = [option.replace("_", "-") for option in known]
            hint = did_you_mean(name.replace("_", "-"), spelled)
            shown = name.replace("_", "-")
            raise OptionError(
                f"{shown} is not an option of supernet {command}{hint}\nsupernet {command} --help lists the options"
            )
    arguments = parser.parse_args(argv)
    arguments.pop("config", None)
    verb(**parser.instantiate(arguments).as_dict())


def copy_options(argv: list[str]) -> list[str]:
    """`copy NAME FILE` of `supernet recipes` as its options."""
    words = [argument for argument in argv if not argument.startswith("-")]
    if argv[: len(words)] != words or not words:
        return argv
    if words[0] != "copy":
        hint = did_you_mean(words[0], ["copy"])
        raise OptionError(
            f"supernet recipes has no command {words[0]!r}{hint}\nsupernet recipes --help shows how to copy one"
        )
    names = [f"--{option}={word}" for option, word in zip(("copy", "to"), words[1:3])]
    return [*names, *words[3:], *argv[len(words) :]]


def find_verb(name: str) -> Callable[..., Any]:
    """The function of a verb."""
    module, _, function = VERBS[name].partition(":")
    return getattr(import_module(module), function)


def with_tables(text: str) -> str:
    """A verb's help with the names in a table in the place of {formats}, {metrics} and {searches}."""
    tables = {
        "formats": ("supernet.export", "known_formats"),
        "metrics": ("supernet.evaluation", "METRICS"),
        "searches": ("supernet.search", "SEARCHES"),
    }
    for name, (module, table) in tables.items():
        if f"{{{name}}}" in text:
            if name == "formats":  # families have formats of their own
                from recipes.saved import import_families

                import_families()
            found = getattr(import_module(module), table)
            text = text.replace(f"{{{name}}}", ", ".join(found() if callable(found) else found))
    return text


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step.

    It gives blocks of some megabytes back to the system, and each activation of that size then takes new pages, one
    fault a page.
    """
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest that is allowed
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return  # another C library


def usage() -> str:
    from recipes.fit_help import HEADS, first_sentence

    verbs = {name: first_sentence(text) for name, text in HEADS.items()}
    verbs |= {name: find_verb(name).__doc__.splitlines()[0] for name in VERBS}
    lines = ["usage: supernet [--plugin MODULE] COMMAND [OPTIONS]   (COMMAND --help lists the options)", ""]
    lines += [f"  {name:<12} {summary}" for name, summary in verbs.items()]
    lines += [
        "",
        "--plugin MODULE imports a module first, which may add entries to the tables of families, runtimes, devices,",
        "formats, constraints, metrics and searches; entry points of the group supernet.plugins are imported, too",
        "",
        "exit status: 0; 1 after an error, 2 for options that cannot be parsed, 75 of a fit that max_time ended,",
    ]
    lines += [
        "130 after Ctrl-C, 143 after SIGTERM (the last three: the same command goes on; fit with --ckpt-path auto)"
    ]
    return "\n".join(lines)


def dashes_to_underscores(argument: str) -> str:
    """--max-latency=3 as --max_latency=3, the way Python spells it."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def resolve_recipes(argv: list[str]) -> list[str]:
    """A command line of fit as Lightning's parser takes it.

    `--config ofa/digits` has the path of the shipped recipe, and options have underscores, as the keys of a recipe.
    """
    resolved = []
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and "." not in name:
            name = "--" + name[2:].replace("-", "_")
        name = {"--scale_phases": "--model.scale_phases", "--help_all": "--help", "-c": "--config"}.get(name, name)
        if i and argv[i - 1] in ("-c", "--config"):
            argument = recipe_path(argument)
        elif name == "--config" and equals:
            argument = f"{name}={recipe_path(value)}"
        elif argument.startswith("-"):
            argument = f"{name}{equals}{value}"
        resolved.append(argument)
    return resolved
