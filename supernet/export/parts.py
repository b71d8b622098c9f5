"""What all export formats share: the parts of a network, how they run together, and the check of a written file."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from supernet.atomic import write_atomically
from supernet.export import DYNAMIC
from supernet.model import Part, Supernet
from supernet.values import in_batches

PLAN = "run.json"  # how the files of a network in several parts run


TOLERANCE = 1e-4  # largest difference over largest output
CALIBRATION_ITEMS, CALIBRATION_RUNS = 128, 16  # see `calibration_feeds`


def as_inputs(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Example inputs of an export as a tuple of tensors: of a sequence of tensors or arrays, or of one alone."""
    given = (inputs,) if isinstance(inputs, (Tensor, np.ndarray)) else inputs
    if not isinstance(given, (tuple, list)) or not all(isinstance(x, (Tensor, np.ndarray)) for x in given):
        raise TypeError(f"inputs: the arguments of forward, as tensors, are expected, not a {type(inputs).__name__}")
    return tuple(torch.as_tensor(x) for x in given)


def check_float32(model: nn.Module) -> None:
    """Raise ValueError where a parameter or buffer has half precision, TypeError where it is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a file is written of a torch module, not of a {type(model).__name__}")
    for name, tensor in model.state_dict().items():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"{name} is {tensor.dtype}: files are written of float32 networks (.float())")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; then each of its modules as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def grouped(model: nn.Module, values: Sequence[Any]) -> tuple[Any, ...]:
    """One value an input, as a tuple in the place of `forward`'s *arguments."""
    named = [p for p in inspect.signature(model.forward).parameters.values() if p.kind != p.VAR_POSITIONAL]
    rest = tuple(values[len(named) :])
    return (*values[: len(named)], rest) if rest else tuple(values)


def write_plan(network: Supernet, folder: Path, batch: int = 1) -> bool:
    """Write how the parts of a network run as one inference to `folder`, as run.json; False where it has one part."""
    plan = network.plan(batch)
    if plan is not None:
        write_atomically(folder / PLAN, lambda temporary: temporary.write_text(json.dumps(plan, indent=1) + "\n"))
    return plan is not None


@torch.no_grad()
def check_outputs(part: Part, run: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]], kind: str) -> float:
    """The largest difference between a file that `run` runs and the module, over the largest output; above the
    tolerance, RuntimeError. The inputs are `drawn_anew`."""
    inputs = drawn_anew(part.inputs)
    found = run({name: x.cpu().numpy() for name, x in zip(part.names, inputs, strict=True)})
    made = part.module(*inputs)
    worst = 0.0
    for name, expected in zip(part.outputs, [made] if isinstance(made, Tensor) else made, strict=True):
        expected, x = expected.cpu().double(), torch.from_numpy(found[name]).double()
        largest = expected.abs().max().item() or 1.0  # all zero: the file's must be nearly so
        difference = (x - expected).abs().max().item()
        if not difference <= TOLERANCE * largest:
            raise RuntimeError(
                f"{name} of the {kind} file differs from the model's by {difference:.3g}; it reaches {largest:.3g}"
            )
        worst = max(worst, difference / largest)
    return worst


def drawn_anew(inputs: Iterable[Tensor]) -> list[Tensor]:
    """Other floating-point inputs, as those that were traced may be constants of the file; the rest as they are."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in inputs]


def batched_parts(network: Supernet, batch: int | str) -> dict[str, Part]:
    """The parts of a network; with a dynamic batch, the first axis of all inputs and outputs may have any size."""
    if batch != DYNAMIC:
        return network.parts(batch)

    def opened(part: Part) -> Part:
        axes = {name: {0: "batch"} for name in (*part.names, *part.outputs)}
        return part if part.dynamic else dataclasses.replace(part, dynamic=axes)

    parts = network.parts(2)  # exporters take a size of 1 for a constant
    return {name: opened(part) for name, part in parts.items()}


def made_by(part: Part) -> Sequence[Any]:
    """The outputs of a part on its example inputs."""
    import torch

    with torch.no_grad():
        made = part.module(*part.inputs)
    return [made] if isinstance(made, torch.Tensor) else made


@torch.inference_mode()
def calibration_feeds(
    network: Supernet, batch: int, inputs: Iterable[Sequence[Tensor]], fixed: bool = False
) -> dict[str, list[dict[str, np.ndarray]]]:
    """{part: its inputs by name, in batches} on data of a network: int8 layers take their ranges from them.

    The batches have the size that a part's file is for: `batch`, or any size for a part with dynamic axes. A format
    that is `fixed` to one batch size gets the part's limit. The first `CALIBRATION_ITEMS` items of `inputs` are run; of
    a part that runs often, `CALIBRATION_RUNS` runs are kept at random.
    """
    parts, rng = network.parts(batch), np.random.default_rng(0)
    seen: dict[str, list[Mapping[str, np.ndarray]]] = {name: [] for name in parts}
    runs = dict.fromkeys(seen, 0)

    def run(name: str, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if all(x.size for x in feeds.values()):  # caches are empty before the first step, and have no range
            runs[name] += 1
            place = len(seen[name]) if runs[name] <= CALIBRATION_RUNS else rng.integers(runs[name])
            if place < CALIBRATION_RUNS:
                seen[name][place : place + 1] = [feeds]
        part = parts[name]
        made = part.module(*(torch.from_numpy(feeds[key]) for key in part.names))
        return {key: x.numpy() for key, x in zip(part.outputs, [made] if isinstance(made, Tensor) else made)}

    items = 0
    for some in inputs:
        some = [x[: CALIBRATION_ITEMS - items] for x in some]
        network.run_parts(run, network.prepare(some))
        if (items := items + len(some[0])) == CALIBRATION_ITEMS:
            break

    def size(part: Part) -> int | None:
        return batch if not part.dynamic else part.limits.get("batch") if fixed else None

    return {name: [some for feeds in seen[name] for some in in_batches(feeds, size(parts[name]))] for name in parts}
