"""The supernet: a model of elastic layers that computes as any config of its space, and can be cut to it."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.elastic import extract, full_precision
from supernet.space import SearchSpace


class CostTerms(Protocol):
    """The closed-form cost of a family's networks: picklable, without weights."""

    def __call__(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """{term: (n,)} for the n rows of X. A term is named `unit.kind`; units are macs, params, bytes, layers, and
        padded for multiply-accumulates that fill up vectors."""


@dataclasses.dataclass(frozen=True)
class WidthGroup:
    """Layers that share one elastic width, which are sorted together: the channels of `outputs` and the input
    channels of `inputs`, by `importance` (channels,), within the bands that `widths` delimit."""

    importance: Tensor
    outputs: Sequence[nn.Module]
    inputs: Sequence[nn.Module]
    widths: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Part:
    """A module that is exported, with example inputs and the names of inputs and outputs.

    `dynamic` names the axes that may have any size: {input or output: {axis: name}}; `limits` are the largest sizes
    of those of inputs, {name: size}, for formats that plan their memory; that of `batch` is what the network is timed
    with.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]
    outputs: tuple[str, ...] = ("output",)
    dynamic: Mapping[str, Mapping[int, str]] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)


RunPart = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""The name of a part and its inputs by name -> its outputs by name."""


class Supernet(nn.Module, ABC):
    """A model of elastic layers over a search space; made at full size, so that it is its largest network.

    A family gives `config_class`, its layers, `forward`, `_activate`, `width_groups`,
    `example_inputs` and `cost_terms`. `arguments` are
    the JSON values that, with the space, make the family again. A subnet that `extract` returns is the same class
    with plain torch layers; it keeps `config` and `input_spec`, and cannot be set to another config.
    """

    config_class: type
    input_choices: tuple[str, ...] = ()
    """The choices that change the input (resolution) rather than the network: one value a step, for all its subnets."""
    metric: str = "accuracy"
    """The metric that networks are chosen by, an entry of `supernet.evaluation.METRICS`."""
    more_metrics: str | None = None
    """The verb of the command `supernet` that reports further metrics of this family's networks."""
    files_form: tuple[str, ...] = ()
    """Identifies the form of the network's files: the same network in another form has another latency."""

    def __init__(self, space: SearchSpace, arguments: dict[str, Any]) -> None:
        super().__init__()
        if space.config_class is not self.config_class:
            raise TypeError(f"{type(self).__name__} needs a space of {self.config_class.__name__}")
        self.space = space
        self.arguments = arguments
        self.config = space.largest()
        self.extracted = False
        self.input_spec: dict[str, Any] = {}

    @abstractmethod
    def _activate(self, config: Any) -> None:
        """Set the active size of every elastic layer. The config is in the space."""

    @abstractmethod
    def width_groups(self, space: SearchSpace) -> Iterator[WidthGroup]:
        """The groups of layers whose channels are sorted, with the widths that `space` gives them, producers first."""

    @property
    @abstractmethod
    def cost_terms(self) -> CostTerms:
        """The cost model of this supernet's networks."""

    @abstractmethod
    def example_inputs(self, batch: int = 1) -> tuple[Tensor, ...]:
        """Random inputs of the active config's shapes, for tracing and timing."""

    def inference(self, batch: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """One inference as it is timed: a module of this network, and its inputs."""
        return self, self.example_inputs(batch)

    def parts(self, batch: int = 1) -> dict[str, Part]:
        """What is exported, by name: the network as one module, unless the family runs in several (see `plan`)."""
        inputs = self.example_inputs(batch)
        names = tuple(inspect.signature(self.forward).parameters)[: len(inputs)]
        return {"subnet": Part(self, inputs, names)}

    def for_tracing(self) -> nn.Module:
        """The network as an ONNX exporter traces it: a module that computes the same, perhaps in fewer layers.

        Exporters take seconds, by the number of layers. The file is checked against the network itself.
        """
        return self

    def plan(self, batch: int = 1) -> dict[str, Any] | None:
        """How the parts run as one inference, in JSON values; None where there is one part."""
        return None

    def use(self) -> Any:
        """A `supernet.metadata.Use`: how someone who has only the exported files makes inputs and reads outputs.

        None where the family does not say it: the files then state shapes and types alone.
        """
        return None

    def run_parts(self, run: RunPart, inputs: Sequence[Tensor]) -> Tensor:
        """What `forward` returns for these inputs, computed by what `parts` was exported to."""
        ((name, part),) = self.parts().items()
        made = run(name, {key: x.numpy() for key, x in zip(part.names, inputs, strict=True)})
        return torch.from_numpy(made[part.outputs[0]])

    def prepare(self, inputs: Sequence[Tensor], config: Any = None) -> Sequence[Tensor]:
        """The inputs as `config` (the active one if None) wants them; a family with elastic resolution resizes."""
        return inputs

    @classmethod
    def arguments_from(cls, input_spec: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the constructor that follow from data of this spec, such as the number of classes.

        ValueError where the data are not of the family's kind.
        """
        return {}

    def check_data(self, input_spec: Mapping[str, Any]) -> None:
        """Raise ValueError where data of this spec are not what the supernet was made, or trained, for."""

    def set_active(self, config: Any) -> Supernet:
        """Compute as `config` from now on; returns self. A config outside the space raises ValueError.

        A dict of all its choices, or its row of X, stands for a config.
        """
        if self.extracted:
            raise RuntimeError("this is an extracted subnet: only its supernet can be set to another config")
        config = self.space.as_config(config)
        if config != self.config:
            self.space.encode([config])
            self._activate(config)
            self.config = config
        return self

    def extract(self, config: Any = None) -> Supernet:
        """The network of `config` (the active one if None) as plain torch layers with their own storage.

        Its weights have the supernet's dtype, under autocast, too.
        """
        active = self.config
        try:
            with full_precision(next(self.parameters()).device):
                subnet = extract(self.set_active(active if config is None else config))
        finally:
            self.set_active(active)
        subnet.extracted = True
        return subnet

    @torch.no_grad()
    def sort(self, previous: SearchSpace) -> None:
        """Put important channels first, so that the narrower widths of the next phase inherit them.

        Channels move only within the bands between the widths of the `previous` phase, so no subnet of that phase
        changes its output beyond rounding. Importance is the L1 norm of the weights that read the channel (OFA,
        arXiv 1908.09791, section 3.3).
        """
        for group in self.width_groups(previous):
            edges = [0, *sorted(set(group.widths))]
            bands = [slice(low, high) for low, high in zip(edges, [*edges[1:], len(group.importance)]) if low != high]
            order = torch.cat(
                [band.start + group.importance[band].argsort(descending=True, stable=True) for band in bands]
            )
            for layer in group.outputs:
                layer.permute_outputs(order)
            for layer in group.inputs:
                layer.permute_inputs(order)

    def costs(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """{"macs": (n,), "params": (n,)} of the n rows of X: multiply-accumulates at the row's input, parameters.

        A config, or several, stands for its rows.
        """
        terms = self.cost_terms(self.space.check(X))
        return {unit: total(terms, unit) for unit in ("macs", "params")}


def check_arguments(
    made: Mapping[str, Any], wanted: Mapping[str, Any], data_have: str, name: str | None = None
) -> None:
    """Raise ValueError where an argument a supernet was made with is not what its data want; it names both values.

    `data_have` says where the second comes from, such as "the data have", and `name` is that of the data.
    """
    called = f" ({name})" if name else ""
    for name, value in wanted.items():
        if made[name] != value:
            raise ValueError(
                f"the supernet was made with {name} = {made[name]}, {data_have} {value}{called}: leave {name} out of"
                " the recipe's model.supernet, so that it follows the data; or give other data"
            )


def total(terms: Mapping[str, np.ndarray], unit: str) -> np.ndarray:
    """The sum (n,) of all cost terms of a unit."""
    return sum(values for name, values in terms.items() if name.startswith(f"{unit}."))


def positional_inputs(model: nn.Module) -> int | None:
    """How many arguments `forward` needs; None where it takes any number."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a model has statistics that `calibrate` sets."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def model_inputs(model: nn.Module, batch: Any, device: torch.device) -> list[Tensor]:
    """The inputs in a batch, on a device: tensors or arrays, without what follows them, such as labels."""
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    wanted = positional_inputs(model)
    if isinstance(batch, Mapping) or not all(isinstance(part, (Tensor, np.ndarray)) for part in parts):
        found = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else ", ".join(type(p).__name__ for p in parts)
        raise ValueError(
            f"a batch is a {type(batch).__name__} ({found}): a tensor, or (*inputs,) of tensors, is expected"
        )
    if wanted is not None and len(parts) < wanted:
        raise ValueError(f"a batch has {len(parts)} tensors, {type(model).__name__} takes {wanted}")
    return [torch.as_tensor(part).to(device) for part in parts[:wanted]]


@torch.no_grad()
def calibrate(subnet: nn.Module, batches: Tensor | Iterable[Tensor | Sequence[Tensor]]) -> nn.Module:
    """Set the BatchNorm statistics of an extracted subnet to the averages over `batches`; returns it.

    A batch is a tensor or `(*inputs,)`; what it holds beyond the inputs of `forward`, such as labels, is left out. One
    tensor stands for one batch.

    A supernet's statistics are those of the mixture it was trained as, and wrong for every subnet. Averages weigh
    batches by size; only BatchNorm layers run in train mode. Without BatchNorm no batch is read. Convolutions run in
    `channels_last`; the weights come back in torch's default memory format. A network in half precision runs in
    float32; autocast has no effect. Inputs of floating-point numbers are cast to what the network runs in.
    """
    if isinstance(subnet, Supernet) and not subnet.extracted:
        raise ValueError("calibrate an extracted subnet: a supernet's statistics are shared by all its subnets")
    if isinstance(batches, (Tensor, np.ndarray)):
        batches = [batches]
    elif isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"calibrate needs batches, such as a loader, not a {type(batches).__name__}")
    elif isinstance(batches, (tuple, list)) and _is_one_batch(batches):
        batches = [batches]
    norms = [module for module in subnet.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return subnet
    training = {module: module.training for module in subnet.modules()}
    momenta = [norm.momentum for norm in norms]
    device, dtype = norms[0].running_mean.device, norms[0].running_mean.dtype
    full = torch.promote_types(dtype, torch.float32)
    subnet.eval().to(full if full != dtype else None, memory_format=torch.channels_last)
    seen = 0
    try:
        for norm in norms:
            norm.train()
        with full_precision(device):
            for batch in batches:
                inputs = model_inputs(subnet, batch, device)
                inputs = [x.to(full) if x.is_floating_point() else x for x in inputs]
                if seen and len(inputs[0]) == 1:
                    continue  # a last batch of one item: torch computes no statistics of it where a map is 1 x 1
                if isinstance(subnet, Supernet):
                    inputs = subnet.prepare(inputs)
                seen += len(inputs[0])
                for norm in norms:
                    norm.momentum = len(inputs[0]) / seen
                subnet(*inputs)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, mode in training.items():
            module.training = mode
        subnet.to(dtype if full != dtype else None, memory_format=torch.contiguous_format)
    if seen == 0:
        raise ValueError("calibrate needs at least one batch")
    return subnet


def _is_one_batch(parts: Sequence[Any]) -> bool:
    """Whether it is `(images, labels)` rather than batches: the last is labels, whole numbers along one axis."""
    if len(parts) < 2 or not all(isinstance(part, (Tensor, np.ndarray)) for part in parts):
        return False
    first, last = (torch.as_tensor(part) for part in (parts[0], parts[-1]))
    return first.is_floating_point() and not last.is_floating_point() and last.dim() == 1 and len(first) == len(last)
