"""The search space: named choices, whose points are frozen configs and whose samples are one matrix X."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from supernet.values import generator, integer, numbers, unwrapped

Nested = Any  # a value, or tuples of tuples of values, as deep as its choice has axes


@dataclasses.dataclass(frozen=True)
class Choice:
    """One named dimension of a space: an array of genes, each one of `values`.

    A gated choice (`gate` names another, integer choice) describes the layers that the gate counts: its shape is
    the gate's shape, one layer axis, and any further axes. Layer i exists where i < gate; 0 marks the others in X.
    """

    name: str
    values: tuple
    shape: tuple[int, ...] = ()
    gate: str | None = None

    def __post_init__(self) -> None:
        values = tuple(sorted(set(numbers(self.name, self.values))))
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "shape", tuple(integer(f"{self.name}: shape", size) for size in self.shape))
        if not values:
            raise ValueError(f"{self.name}: a choice needs at least one value")
        if 0 in values:
            raise ValueError(f"{self.name}: 0 marks absent layers in X, so it cannot be a value")


def truncate(values: Nested, depth: int | Sequence) -> Nested:
    """`values` (gate's axes, layer axis, ...) without the layers at or beyond `depth` (gate's axes)."""
    values, depth = as_tuples(values), as_tuples(depth)
    if not isinstance(values, tuple):
        raise ValueError(f"{values!r} where a value for each layer is expected: space.config() repeats one value")
    if not isinstance(depth, tuple):
        return values[: integer("depth", depth)]
    if len(values) != len(depth):
        raise ValueError(f"{values!r} has {len(values)} entries, for depths {depth} of {len(depth)}")
    return tuple(truncate(v, d) for v, d in zip(values, depth))


def as_tuples(values: Nested) -> Nested:
    """Lists (as they come from JSON and YAML) and arrays as the tuples, and numbers as Python's, of frozen configs."""
    if hasattr(values, "tolist"):  # an array, a tensor or a NumPy scalar
        values = values.tolist()
    return tuple(as_tuples(v) for v in values) if isinstance(values, (list, tuple)) else values


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Named choices; a point is a `config_class` instance, n points are a float64 matrix X (n, genes).

    X holds values, not indices, and 0 where a layer is beyond the active depth, so that equal networks have equal
    rows. `config_class` is a frozen dataclass with one field per choice. A gate stands before what it gates.
    """

    config_class: type
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        fields = [field.name for field in dataclasses.fields(self.config_class)]
        if fields != [choice.name for choice in self.choices]:
            raise ValueError(f"{self.config_class.__name__} has the fields {fields}, the choices are {list(self)}")
        seen: dict[str, Choice] = {}
        for choice in self.choices:
            if choice.gate is not None:
                gate = seen.get(choice.gate)
                if gate is None:
                    raise ValueError(f"{choice.name}: its gate {choice.gate!r} must stand before it")
                axes = len(gate.shape)
                if choice.shape[:axes] != gate.shape or len(choice.shape) <= axes:
                    raise ValueError(f"{choice.name}: shape {choice.shape} does not extend its gate's {gate.shape}")
                if max(gate.values) > choice.shape[axes]:
                    raise ValueError(f"{choice.gate}: {max(gate.values)} is more than {choice.name}'s layers")
            seen[choice.name] = choice

    def __iter__(self) -> Iterable[str]:
        return (choice.name for choice in self.choices)

    def __getitem__(self, name: str) -> Choice:
        for choice in self.choices:
            if choice.name == name:
                return choice
        raise KeyError(f"{name!r} is not a choice of this space; it has {list(self)}")

    # ---- where each choice lives in X

    @cached_property
    def columns(self) -> dict[str, slice]:
        """The columns of X that hold each choice, in C order of its shape."""
        ends = itertools.accumulate(int(np.prod(choice.shape)) for choice in self.choices)
        starts = itertools.chain([0], ends)
        sizes = (int(np.prod(choice.shape)) for choice in self.choices)
        return {c.name: slice(start, start + size) for c, start, size in zip(self.choices, starts, sizes)}

    @cached_property
    def width(self) -> int:
        """The number of genes: the columns of X."""
        return sum(int(np.prod(choice.shape)) for choice in self.choices)

    @cached_property
    def names(self) -> list[str]:
        """A name for each column of X, such as `kernel_size[2][0]`."""
        indices = ((c.name, index) for c in self.choices for index in np.ndindex(c.shape))
        return [name + "".join(f"[{i}]" for i in index) for name, index in indices]

    @cached_property
    def _gating(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every gated gene: its column, its gate's column, its layer."""
        rows = []
        for choice in self.choices:
            if choice.gate is None:
                continue
            gate = self[choice.gate]
            start, gate_start = self.columns[choice.name].start, self.columns[choice.gate].start
            for offset, index in enumerate(np.ndindex(choice.shape)):
                axes = len(gate.shape)
                gate_offset = int(np.ravel_multi_index(index[:axes], gate.shape)) if axes else 0
                rows.append((start + offset, gate_start + gate_offset, index[axes]))
        return tuple(np.array(rows, dtype=int).reshape(-1, 3).T)

    @cached_property
    def _values(self) -> tuple[np.ndarray, np.ndarray]:
        """The values of every gene, (genes, most values), and how many of them count, (genes,)."""
        counts = np.concatenate([np.full(int(np.prod(c.shape)), len(c.values)) for c in self.choices])
        table = np.zeros((self.width, int(counts.max())))
        for choice in self.choices:
            table[self.columns[choice.name], : len(choice.values)] = choice.values
        return table, counts

    def unpack(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """X (n, genes) as one array per choice, (n, *shape)."""
        X = self.matrix(X)
        return {c.name: X[:, self.columns[c.name]].reshape(len(X), *c.shape) for c in self.choices}

    # ---- points and matrices

    @cached_property
    def size(self) -> int:
        """The exact number of different configs."""
        gated: dict[str, list[Choice]] = {}
        for choice in self.choices:
            if choice.gate is not None:
                gated.setdefault(choice.gate, []).append(choice)
        total = 1
        for choice in self.choices:
            if choice.gate is not None:
                continue  # counted with its gate
            options = len(choice.values)
            if choice.name in gated:
                axes = len(choice.shape) + 1
                per_layer = 1
                for other in gated[choice.name]:
                    per_layer *= len(other.values) ** int(np.prod(other.shape[axes:]))
                options = sum(per_layer**depth for depth in choice.values)
            total *= options ** int(np.prod(choice.shape))
        return total

    def sample(self, n: int, rng: np.random.Generator | int) -> np.ndarray:
        """X (n, genes): every gene drawn uniformly and independently, as OFA and HAT draw subnets.

        `rng` is a generator, or a seed.
        """
        return self._zero_absent(_draw(self, integer("n", n, 0), generator(rng)))

    def config(self, **values: Nested) -> Any:
        """A config from values that may be scalars (used for all genes of the choice); the largest elsewhere."""
        fields = {}
        for choice in self.choices:
            value = as_tuples(values.pop(choice.name, choice.values[-1]))
            if not isinstance(value, tuple):
                value = choice.values[_index(choice, value, choice.name)]
                value = _nest([value] * int(np.prod(choice.shape)), choice.shape)
            # `encode` knows the depth of a gated choice.
            elif choice.gate is None and len(value) != (choice.shape or (0,))[0]:
                wanted = f"one value, or {choice.shape[0]} entries" if choice.shape else "one value"
                raise ValueError(f"{choice.name} = {value}: expected {wanted}")
            fields[choice.name] = value
        if values:
            raise ValueError(f"{', '.join(values)}: not a choice of this space; it has {list(self)}")
        config = self.config_class(**fields)
        self.encode([config])
        return config

    def largest(self) -> Any:
        return self.config()

    def smallest(self) -> Any:
        return self.config(**{choice.name: choice.values[0] for choice in self.choices})

    def as_config(self, given: Any) -> Any:
        """The config that `given` stands for: a config, {choice: value} of all choices, or one row of X.

        TypeError for anything else, such as a config of another space or several configs; values are not checked.
        """
        wanted = self.config_class.__name__
        if isinstance(given, self.config_class):
            return given
        if isinstance(given, Mapping):
            if lacks := [name for name in self if name not in given]:
                raise ValueError(f"{dict(given)} lacks {', '.join(lacks)} of a {wanted}: space.config(...) fills them")
            if strangers := [str(name) for name in given if name not in list(self)]:
                raise ValueError(f"{', '.join(strangers)}: not a choice of this space; it has {list(self)}")
            return self.config_class(**given)
        if hasattr(given, "tolist") or (isinstance(given, (list, tuple)) and _are_numbers(given)):
            X = self.matrix(given)
            if len(X) != 1:
                raise TypeError(f"expected one {wanted} or one row of X, got {len(X)} rows: pass one, as X[0]")
            return self.decode(X)[0]
        if isinstance(given, (list, tuple)):
            raise TypeError(f"expected one {wanted}, got a {type(given).__name__} of {len(given)}: pass one of them")
        hint = ": it is in its .config" if hasattr(given, "config") else ""
        raise TypeError(f"expected a {wanted}, got {_described(given)}{hint}")

    def matrix(self, given: Any) -> np.ndarray:
        """X (n, genes) as float64, of an array, a tensor, one row, configs or one config; genes are not checked.

        TypeError where it is none of them; ValueError where it has another number of genes.
        """
        given = list(given) if isinstance(given, Iterator) else given
        if isinstance(given, np.ndarray) and given.ndim == 2 and given.dtype == np.float64:
            X = given
        elif isinstance(given, (self.config_class, Mapping)) or _are_configs(given):
            return self.encode(given)
        else:
            try:
                X = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given, dtype=np.float64)
                if X.ndim == 0:
                    raise TypeError
            except (TypeError, ValueError):
                wanted = f"X, an array (n, {self.width}), or {self.config_class.__name__}s"
                raise TypeError(f"expected {wanted}; got {_described(given)}") from None
            X = X[None] if X.shape == (self.width,) else X
        if X.ndim != 2 or X.shape[1] != self.width:
            raise ValueError(f"X must be (n, {self.width}) for this space, not {X.shape}")
        return X

    def encode(self, configs: Iterable[Any]) -> np.ndarray:
        """X (n, genes) of n configs, or of one. ValueError for a value outside the space has its name and choices."""
        if hasattr(configs, "tolist") and not _are_configs(configs):
            return self.check(configs).copy()
        if isinstance(configs, (self.config_class, Mapping)):
            configs = [configs]
        elif not isinstance(configs, Iterable) or isinstance(configs, str):
            configs = [self.as_config(configs)]  # which raises
        rows = []
        for config in configs:
            config = self.as_config(config)
            genes: list[float] = []
            for choice in self.choices:
                depth = None if choice.gate is None else getattr(config, choice.gate)
                _flatten(choice, getattr(config, choice.name), choice.shape, depth, choice.name, genes)
            rows.append(genes)
        return np.array(rows, dtype=np.float64).reshape(len(rows), self.width)

    def decode(self, X: np.ndarray) -> list[Any]:
        """The configs of the rows of X (n, genes). A value outside the space raises ValueError."""
        X = self.check(X)
        gates = {choice.name: choice.gate for choice in self.choices}
        configs = []
        for row in X:
            fields: dict[str, Nested] = {}
            for choice in self.choices:
                genes = row[self.columns[choice.name]]
                exact = {float(v): v for v in choice.values} | {0.0: 0}
                value = _nest([exact[float(gene)] for gene in genes], choice.shape)
                fields[choice.name] = truncate(value, fields[choice.gate]) if gates[choice.name] else value
            configs.append(self.config_class(**fields))
        return configs

    def check(self, X: np.ndarray) -> np.ndarray:
        """X as float64 if every row is a point of this space, else ValueError naming gene, value and choices."""
        X = self.matrix(X)
        for choice in self.choices:
            _check_values(self, X, choice)
        return X

    def restrict(self, **values: Any) -> SearchSpace:
        """The sub-space in which the named choices keep only these values (or this one); X keeps its columns."""
        choices = []
        for choice in self.choices:
            wanted = numbers(choice.name, values.pop(choice.name, choice.values))
            for value in wanted:
                if value not in choice.values:
                    raise ValueError(f"{choice.name}: {value!r} is not one of {choice.values}")
            # The choice's own values: 4.0, as it may come from YAML, is its 4.
            kept = tuple(value for value in choice.values if value in wanted)
            choices.append(dataclasses.replace(choice, values=kept))
        if values:
            raise ValueError(f"{', '.join(values)}: not a choice of this space; it has {list(self)}")
        return SearchSpace(self.config_class, tuple(choices))

    # ---- variation, for evolutionary search

    def mutate(self, X: np.ndarray, rng: np.random.Generator | int, probability: float = 0.1) -> np.ndarray:
        """Rows of X with every gene redrawn with this probability; a gene that becomes active is redrawn."""
        X, rng = self.matrix(X), generator(rng)
        drawn = _draw(self, len(X), rng)
        return self._zero_absent(np.where((rng.random(X.shape) < probability) | (X == 0), drawn, X))

    def crossover(self, X: np.ndarray, Y: np.ndarray, rng: np.random.Generator | int) -> np.ndarray:
        """Rows that take every gene from the row of X or of Y; one absent there that becomes active is redrawn."""
        X, Y, rng = self.matrix(X), self.matrix(Y), generator(rng)
        child = np.where(rng.random(X.shape) < 0.5, X, Y)
        absent = child == 0
        if absent.any():
            child = np.where(absent, _draw(self, len(X), rng), child)
        return self._zero_absent(child)

    def neighbours(self, row: np.ndarray, rng: np.random.Generator | int) -> np.ndarray:
        """All rows (n, genes) that differ from `row` (genes,) in one active gene; layers that this adds are drawn."""
        row, rng = self.encode(self.as_config(row))[0] if np.ndim(row) != 1 else self.matrix(row)[0], generator(rng)
        table, counts = self._values
        gene = np.repeat(np.arange(self.width), counts)
        value = np.concatenate([table[g, :count] for g, count in enumerate(counts)])
        changes = (row[gene] != value) & (row[gene] != 0)
        gene, value = gene[changes], value[changes]
        X = np.where(row == 0, _draw(self, len(gene), rng), row)
        X[np.arange(len(gene)), gene] = value
        return self._zero_absent(X)

    # ---- as JSON

    def to_dict(self) -> dict[str, Any]:
        return {c.name: {"values": list(c.values), "shape": list(c.shape), "gate": c.gate} for c in self.choices}

    @classmethod
    def from_dict(cls, config_class: type, choices: Mapping[str, Mapping[str, Any]]) -> SearchSpace:
        return cls(config_class, tuple(Choice(name, **fields) for name, fields in choices.items()))

    # ---- parts

    def _zero_absent(self, X: np.ndarray) -> np.ndarray:
        gene, gate, layer = self._gating
        X[:, gene] *= X[:, gate] > layer
        return X


def _draw(space: SearchSpace, n: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform random genes (n, genes), also of layers beyond the depth."""
    table, counts = space._values
    picks = (rng.random((n, space.width)) * counts).astype(int)
    return table[np.arange(space.width), picks]


def _check_values(space: SearchSpace, X: np.ndarray, choice: Choice) -> None:
    """Raise ValueError where a gene of a choice is not one of its values, or is set beyond the active depth."""
    genes = X[:, space.columns[choice.name]]
    allowed = np.isin(genes, choice.values)
    if choice.gate is not None:
        gene, gate, layer = space._gating
        mine = (gene >= space.columns[choice.name].start) & (gene < space.columns[choice.name].stop)
        allowed = np.where(X[:, gate[mine]] > layer[mine], allowed, genes == 0)
    if not allowed.all():
        row, column = np.argwhere(~allowed)[0]
        name, value = space.names[space.columns[choice.name].start + column], genes[row, column]
        if choice.gate is not None and value != 0 and value in choice.values:
            raise ValueError(f"{name} = {value:g}, but that layer is beyond the active {choice.gate}")
        raise ValueError(f"{name} = {value:g} is not one of {choice.values}")


def _flatten(
    choice: Choice, value: Nested, shape: tuple[int, ...], depth: int | tuple | None, name: str, genes: list[float]
) -> None:
    """Append the genes of a choice's value, 0 for absent layers. `depth` counts the layers of gated choices."""
    if not shape:
        index = _index(choice, value, name)
        # 3.0 equals 3, but is not a size of a layer.
        if isinstance(value, float) and isinstance(choice.values[index], int):
            raise ValueError(f"{name} = {value!r} is not one of {choice.values}, which are whole numbers")
        genes.append(value)
        return
    expected = depth if isinstance(depth, int) else shape[0]
    if not isinstance(value, tuple) or len(value) != expected:
        what = f"{expected} layers, as {choice.gate} says" if isinstance(depth, int) else f"{expected} entries"
        raise ValueError(f"{name} = {value!r}: expected {what}; each is one of {choice.values}")
    for i, v in enumerate(value):
        _flatten(choice, v, shape[1:], depth[i] if isinstance(depth, tuple) else None, f"{name}[{i}]", genes)
    genes.extend([0] * (shape[0] - expected) * int(np.prod(shape[1:])))


def _index(choice: Choice, value: Any, name: str) -> int:
    """The index of a value among those of a choice; ValueError with its name and its choices."""
    if isinstance(value, bool) or value not in choice.values:
        raise ValueError(f"{name} = {value!r} is not one of {choice.values}")
    return choice.values.index(value)


def _are_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(unwrapped(v), (int, float)) for v in values)


def _are_configs(given: Any) -> bool:
    """Whether it is several configs: dataclass instances or mappings, and no numbers."""
    if isinstance(given, np.ndarray) and given.dtype == object:
        given = given.ravel().tolist()
    if not isinstance(given, (list, tuple)) or not given:
        return False
    return all(isinstance(one, Mapping) or dataclasses.is_dataclass(one) for one in given)


def _described(given: Any) -> str:
    """A value in an error message, cut where it is long, with its type."""
    text = repr(given)
    return f"{text if len(text) <= 200 else text[:200] + '...'} (a {type(given).__name__})"


def _nest(flat: list, shape: tuple[int, ...]) -> Nested:
    if not shape:
        return flat[0]
    step = len(flat) // shape[0]
    return tuple(_nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0]))
