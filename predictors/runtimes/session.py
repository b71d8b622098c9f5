"""What the runtimes of files share: a session is a loaded file; a network is one file, or two with a plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from supernet.values import in_batches

Run = Callable[[], Any]  # one inference on fixed inputs
Source = Any  # what is timed: the path of a file or folder, (module, inputs) for torch, or a function that makes it
RunPart = Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # a file's name, its inputs -> its outputs
PLAN = "run.json"  # in the folder of a network that runs in several files; written by supernet.export
SUFFIXES = (".onnx", ".xml", ".pte")  # of files that a runtime loads


class Session(Protocol):
    """A loaded file: the shape (None where any size is allowed) and dtype of each input, and the outputs' names.

    `precision` is the one that the runtime itself reports.
    """

    inputs: dict[str, tuple[tuple[int | None, ...], np.dtype]]
    outputs: list[str]
    precision: str

    def run(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]: ...


OpenSession = Callable[..., Session]  # (path, threads=, precision=)


def load_session(
    source: Source, *, session: OpenSession, threads: int, precision: str, batch: int, **_: Any
) -> tuple[Run, str]:
    """A run of one file, or of a folder with a plan, on random inputs (batch first); and its precision."""
    path = Path(source)
    if (path / PLAN).is_file():
        return load_plan(path, session=session, threads=threads, precision=precision, batch=batch)
    if not path.is_file():
        raise FileNotFoundError(f"a file is timed, and {path} does not exist")
    opened = session(path, threads=threads, precision=precision)
    rng = np.random.default_rng(0)
    feeds = {}
    for name, (shape, dtype) in opened.inputs.items():
        if not shape or shape[0] not in (batch, None):
            raise ValueError(f"batch {batch} is timed, but {path} has the input {name} {list(shape)}")
        if None in shape[1:]:
            raise ValueError(f"{path} leaves the size of input {name} open: {list(shape)}")
        values = rng.standard_normal((batch, *shape[1:]))
        feeds[name] = (values if np.issubdtype(dtype, np.floating) else np.ones_like(values)).astype(dtype)
    return lambda: opened.run(feeds), opened.precision


def load_plan(folder: Path, *, session: OpenSession, threads: int, precision: str, batch: int) -> tuple[Run, str]:
    """A network in two files, as a folder's run.json describes: `first` runs once, `then` runs `steps` times.

    The outputs of `first` are inputs of `then`, each item `copies` times; an output `new_X` of `then` is the next
    step's input X. `inputs` of `first` and `start`, the other inputs of the first step, are shapes, filled with zeros
    or, for integers, with `integers`.
    """
    plan = json.loads((folder / PLAN).read_text())
    first, then = (
        session(part_file(folder, plan[part]), threads=threads, precision=precision) for part in ("first", "then")
    )
    types = {name: dtype for opened in (first, then) for name, (_, dtype) in opened.inputs.items()}

    def filled(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
        integer = {name: np.issubdtype(types[name], np.integer) for name in shapes}
        return {name: np.full(s, plan["integers"] if integer[name] else 0, types[name]) for name, s in shapes.items()}

    inputs, start = filled(plan["inputs"]), filled(plan["start"])
    for name, x in inputs.items():
        if len(x) != batch:
            raise ValueError(f"batch {batch} is timed, but {folder} is for {name} {x.shape}")
    returned = [name.removeprefix("new_") for name in then.outputs]

    def run() -> Any:
        outputs = zip(first.outputs, first.run(inputs))
        state = start | {name: np.repeat(x, plan["copies"], axis=0) for name, x in outputs}
        for _ in range(plan["steps"]):
            outputs = then.run(state)
            state.update((name, x) for name, x in zip(returned, outputs) if name in then.inputs)
        return outputs

    return run, joined(opened.precision for opened in (first, then))


def open_parts(source: Source, *, session: OpenSession, threads: int, precision: str, **_: Any) -> tuple[RunPart, str]:
    """A function that runs a file, or one of a folder with a plan, on given inputs; and the precision.

    It takes the name of the file (without its suffix) and inputs by name, and returns the outputs by name. Inputs that
    the file does not have are ignored. A file for one batch size runs as often as the inputs need.
    """
    path = Path(source)
    plan = json.loads((path / PLAN).read_text()) if (path / PLAN).is_file() else None
    files = [path] if plan is None else [part_file(path, plan[part]) for part in ("first", "then")]
    sessions = {file.stem: session(file, threads=threads, precision=precision) for file in files}

    def run(name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        opened = sessions[name]
        rows, size = len(next(iter(feeds.values()))), next(iter(opened.inputs.values()))[0][0]
        # The arrays that a session returns may be its own, and change at its next run.
        made = [
            [x.copy() for x in opened.run(part)]
            for part in in_batches({key: feeds[key] for key in opened.inputs}, size)
        ]
        return {key: np.concatenate(parts)[:rows] for key, parts in zip(opened.outputs, zip(*made))}

    return run, joined(opened.precision for opened in sessions.values())


def part_file(folder: Path, name: str) -> Path:
    """The file of a network's part; FileNotFoundError if it does not exist."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    if (found := next((path for path in paths if path.is_file()), None)) is None:
        raise FileNotFoundError(f"{folder} has no file of the part {name}: none of {', '.join(p.name for p in paths)}")
    return found


def joined(precisions: Iterable[str]) -> str:
    """The precision of a network of several files."""
    return "+".join(sorted({part for precision in precisions for part in precision.split("+")}))
