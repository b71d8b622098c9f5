"""The keys of a recipe, read from the source of the classes that it names. Nothing here imports torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from recipes.recipes import recipe_path

Wrong = tuple[str, list[str]]  # a key that is not known, and the keys that it may be
RUN = "runs/supernet"
OPTIONS: dict[str, tuple[type, Any, str]] = {  # of a run, beside Lightning's: type, default, help
    "run": (str, RUN, "the folder of this run"),
    "overwrite": (bool, False, "replace an earlier run in this folder"),
    "checkpoint_every": (int, 0, "optimizer steps between checkpoints; 0: only after epochs"),
}
LIGHTNING = ("seed_everything", "ckpt_path", "verbose", "weights_only", "trainer", "model", "data", "validation")
ONLY_OPTIONS = ("config", "print_config", "scale_phases", "help", "help_all")  # not keys of a file
TRAINER, TASK = "pytorch_lightning.trainer.trainer.Trainer", "supernet.training.SupernetTask"
VALIDATION, PHASE = "supernet.training.SubnetValidation", "supernet.phases.Phase"
OF_A_CLASS = ("class_path", "init_args", "dict_kwargs", "help")


# ------------------------------------------------------------------------------------------------------ source


def find_source(class_path: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The syntax tree of a class or function, without importing its module; None where it is not found."""
    return next(
        (node for node in read_module(class_path) if getattr(node, "name", None) == class_path.split(".")[-1]), None
    )


def read_module(path: str) -> list[ast.stmt]:
    """The statements of the module in which the name at the end of a dotted path is defined; [] if it is not found.

    Only packages of this project list names that other modules define: they import them when they are used.
    """
    module, _, name = path.rpartition(".")
    if module in ("ofa", "hat", "supernet"):
        homes = getattr(import_module(module), "_HOMES", {})  # another project may have a package of that name
        module = homes.get(name, module)
    package, *rest = module.split(".")
    spec = find_spec(package) if package not in ("", "__main__") else None
    if spec is None or not spec.submodule_search_locations:
        return []
    return parse(Path(spec.submodule_search_locations[0]).joinpath(*rest or ["__init__"]).with_suffix(".py"))


@cache
def parse(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text()).body if file.is_file() else []


def arguments_of(class_path: str) -> dict[str, str] | None:
    """{argument: its default as source, "required" without one} of a class or function; None where it takes any.

    None, too, where its source is not found.
    """
    node = find_source(class_path)
    if isinstance(node, ast.ClassDef):
        init = next((part for part in node.body if getattr(part, "name", None) == "__init__"), None)
        if init is None and not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            return None  # its constructor is inherited
        fields = [(part.target.id, part.value) for part in node.body if isinstance(part, ast.AnnAssign)]
        node = init
    else:
        fields = []
    if node is not None:
        if node.args.kwarg is not None:
            return None
        names = [argument.arg for argument in node.args.args if argument.arg != "self"]
        defaults = [None] * (len(names) - len(node.args.defaults)) + node.args.defaults
        keywords = zip((argument.arg for argument in node.args.kwonlyargs), node.args.kw_defaults)
        fields = [*zip(names, defaults), *keywords]
    module = class_path.rpartition(".")[0]
    return {name: shown(default, module) for name, default in fields} or None


def shown(default: ast.expr | None, module: str) -> str:
    """A default in a module as a recipe spells it."""
    if default is None:
        return "required"
    if isinstance(default, ast.Constant):
        words = {"None": "null", "True": "true", "False": "false"}
        return words.get(str(default.value), str(default.value))
    if isinstance(default, ast.Name):
        for node in read_module(f"{module}.{default.id}"):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == default.id:
                return shown(node.value, module)
            if isinstance(node, ast.ImportFrom) and default.id in [alias.name for alias in node.names]:
                return shown(default, node.module)
    if isinstance(default, ast.Lambda) and isinstance(default.body, ast.Call):
        return ast.unparse(default.body.func)
    return "{}" if "default_factory" in ast.unparse(default) else ast.unparse(default)


# -------------------------------------------------------------------------------------------------------- keys


def wrong_keys(options: Iterable[tuple[str, str | None]]) -> Iterator[Wrong]:
    """The misspelt keys of a command line, (name without --, value) each, and of the files that it names.

    Keys of classes of other packages are left to Lightning's parser.
    """
    classes: dict[str, str] = {}
    for name, value in options:
        top, *rest = name.split(".")
        top = top.replace("-", "_")
        if name == "config" and value is not None:
            path = recipe_path(value)
            yield from ((f"{key} in {path}", known) for key, known in of_recipe(read_yaml(path), classes))
            continue
        if top not in (*OPTIONS, *LIGHTNING, *ONLY_OPTIONS):
            known = [*OPTIONS, *LIGHTNING, *ONLY_OPTIONS]
            yield f"--{name}", [f"--{spelled(key)}" for key in known]
        elif top in LIGHTNING and (rest or top == "data"):
            given: Any = read_section(value) if not rest else value
            for part in reversed(rest):
                given = {part.removesuffix("+"): given}
            found = of_recipe({top: given}, classes)
            yield from ((f"--{key}", [f"--{other}" for other in known]) for key, known in found)


def spelled(name: str) -> str:
    """An option as the help spells it: with hyphens."""
    return name.replace("_", "-")


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file; ValueError, with the place, where it is not YAML."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error


def read_section(value: str | None) -> Any:
    """What --data gives: the content of a YAML file, or a class path; FileNotFoundError for a missing file."""
    if value is None or not re.search(r"[/\\]|\.(ya?ml|json)$", value) or value.lstrip().startswith("{"):
        return value
    if not Path(value).is_file():
        raise FileNotFoundError(f"--data {value}: this file does not exist")
    return read_yaml(value)


def of_recipe(given: Any, classes: dict[str, str]) -> Iterator[Wrong]:
    """The misspelt keys of a recipe, dotted. `classes` maps the keys of what was read before to their classes."""

    def model(part: Any, where: str) -> Iterator[Wrong]:
        below = {"supernet": of_class, "optimizer": of_class, "phases": of_phases}
        yield from of_mapping(part, where, arguments_of(TASK), below)

    def of_class(part: Any, where: str) -> Iterator[Wrong]:
        if isinstance(part, str):
            part = {"class_path": part}
        if not isinstance(part, Mapping):
            return
        if isinstance(part.get("class_path"), str):
            for earlier in [key for key in classes if key == where or key.startswith(f"{where}.")]:
                del classes[earlier]
            classes[where] = part["class_path"]
        arguments = part.get("init_args") if "init_args" in part else {**part}
        if isinstance(arguments, Mapping):
            arguments = {key: value for key, value in arguments.items() if key not in OF_A_CLASS}
            below = {key: of_class for key, value in arguments.items() if is_class(value, f"{where}.init_args.{key}")}
            known = arguments_of(classes[where]) if where in classes else None
            yield from of_mapping(arguments, f"{where}.init_args", known, below)

    def is_class(value: Any, where: str) -> bool:
        return isinstance(value, Mapping) and ("class_path" in value or where in classes)

    def of_phases(part: Any, where: str) -> Iterator[Wrong]:
        for i, phase in enumerate(part if isinstance(part, list) else ()):
            if isinstance(phase, Mapping) and "class_path" not in phase:
                yield from of_mapping(phase, f"{where}[{i}]", arguments_of(PHASE), {})

    def flat(class_path: str) -> Callable[[Any, str], Iterator[Wrong]]:
        return lambda part, where: of_mapping(part, where, arguments_of(class_path), {})

    sections = {"model": model, "data": of_class, "trainer": flat(TRAINER), "validation": flat(VALIDATION)}
    yield from of_mapping(given, "", [*OPTIONS, *LIGHTNING], sections)


def of_mapping(
    given: Any, where: str, known: Iterable[str] | None, below: Mapping[str, Callable[[Any, str], Iterator[Wrong]]]
) -> Iterator[Wrong]:
    """The keys of a mapping that are not `known`, and what is found `below` the others."""
    if not isinstance(given, Mapping):
        return
    prefix = f"{where}." if where else ""
    for key, part in given.items():
        if known is not None and key not in known and key != "help":
            yield f"{prefix}{key}", [f"{prefix}{name}" for name in known]
        elif key in below:
            yield from below[key](part, f"{prefix}{key}")
