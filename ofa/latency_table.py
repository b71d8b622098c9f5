"""Once-for-All's latency tables: the milliseconds of every layer that a network can have, measured one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ofa.blocks import middle_width
from ofa.mobilenet_v3 import FINAL, FIRST, LAST, STAGES, STEM, MobileNetV3Costs, scaled


@dataclasses.dataclass(frozen=True, eq=False)
class LatencyTable:
    """The `terms` of a network and one more: the sum of its layers' latencies in a table, `table.ms`.

    For `LatencyPredictor(terms=LatencyTable.read(supernet.cost_terms, folder))`: a table leaves out what layers cost
    one another, and what it says of one device, or of one version of a runtime, a few measurements adapt to another.

    `fixed` (resolutions,) has the layers that all networks have; `blocks` (resolutions, stages, first or later, kernel
    sizes, expand ratios) the others; both in ms, in the order of the space's values.
    """

    terms: MobileNetV3Costs
    fixed: np.ndarray
    blocks: np.ndarray

    @classmethod
    def read(cls, terms: MobileNetV3Costs, folder: str | Path) -> LatencyTable:
        """From OFA's files, SIZE_lookup_table.yaml for each resolution of the space: {layer: {"mean": ms, ...}}.

        ValueError names a file that is not such a table, or that lacks a layer of a network of the space.
        """
        tables = [_Table(Path(folder) / f"{size}_lookup_table.yaml") for size in terms.space["resolution"].values]
        sizes = terms.space["resolution"].values
        fixed = [sum(table[key] for key in fixed_keys(terms, size)) for table, size in zip(tables, sizes)]
        blocks = [
            [
                [
                    [[table[key] for key in row] for row in block_keys(terms, size, stage, first)]
                    for first in (True, False)
                ]
                for stage in range(len(STAGES))
            ]
            for table, size in zip(tables, sizes)
        ]
        return cls(terms, np.array(fixed), np.array(blocks))

    def __call__(self, X: np.ndarray) -> dict[str, np.ndarray]:
        space = self.terms.space
        genes = space.unpack(X)
        kernel, expand, sizes = genes["kernel_size"], genes["expand_ratio"], np.ravel(genes["resolution"])
        of = np.searchsorted(space["resolution"].values, sizes)
        stage, block = np.indices(kernel.shape[1:])
        places = [np.searchsorted(space[n].values, x) for n, x in (("kernel_size", kernel), ("expand_ratio", expand))]
        ms = self.blocks[of[:, None, None], stage, np.minimum(block, 1), *places] * (kernel > 0)
        return self.terms(X) | {"table.ms": self.fixed[of] + ms.sum(axis=(1, 2))}


def fixed_keys(terms: MobileNetV3Costs, size: int) -> list[str]:
    """The layers before and after the elastic stages, as OFA's table names them."""
    stem, first, final, last = scaled(terms.width_mult, STEM, FIRST, FINAL, LAST)
    sides = sides_of(terms, size)
    (width,) = scaled(terms.width_mult, STAGES[-1][0])
    return [
        f"Conv-input:{image(size, terms.in_channels)}-output:{image(sides[0], stem)}",
        block_key((sides[0], stem), (sides[0], first), stem, 3, 1, False, "relu"),
        f"Conv_1-input:{image(sides[-1], width)}-output:{image(sides[-1], final)}",
        f"AvgPool2D-input:{image(sides[-1], final)}-output:{image(1, final)}",
        f"Conv_2-input:{image(1, final)}-output:{image(1, last)}",
        f"Logits-input:{image(1, last)}-output:{terms.num_classes}",
    ]


def block_keys(terms: MobileNetV3Costs, size: int, stage: int, first: bool) -> list[list[str]]:
    """The first, or any later, block of a stage: a row for each kernel size, a column for each expand ratio."""
    sides, (width, stride, act, squeeze_excite) = sides_of(terms, size), STAGES[stage]
    (out,) = scaled(terms.width_mult, width)
    (before,) = scaled(terms.width_mult, STAGES[stage - 1][0] if stage else FIRST)
    entry = (sides[stage], before) if first else (sides[stage + 1], out)
    return [
        [
            block_key(
                entry,
                (sides[stage + 1], out),
                int(middle_width(entry[1], ratio)),
                kernel,
                stride if first else 1,
                squeeze_excite,
                act,
            )
            for ratio in terms.space["expand_ratio"].values
        ]
        for kernel in terms.space["kernel_size"].values
    ]


def block_key(
    entry: tuple[int, int], exit: tuple[int, int], middle: int, kernel: int, stride: int, excited: bool, act: str
) -> str:
    skips = stride == 1 and entry[1] == exit[1]
    return (
        f"expanded_conv-input:{image(*entry)}-output:{image(*exit)}-expand:{middle}-kernel:{kernel}-stride:{stride}"
        f"-idskip:{skips:d}-se:{excited:d}-hs:{act == 'hard_swish':d}"
    )


def image(side: int, channels: int) -> str:
    return f"{side}x{side}x{channels}"


def sides_of(terms: MobileNetV3Costs, size: int) -> list[int]:
    """Height and width in pixels after the stem, and after each stage."""
    sides = [(size - 1) // terms.stem_stride + 1]
    for _, stride, *_ in STAGES:
        sides.append((sides[-1] - 1) // stride + 1)
    return sides


class _Table:
    """The layers of a file; a missing layer is reported by its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.rows: Any = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(self.rows, dict):
            raise ValueError(f"{path} is not a latency table: it holds a {type(self.rows).__name__}")

    def __getitem__(self, key: str) -> float:
        try:
            return float(self.rows[key]["mean"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{self.path} has no mean latency of {key}") from None
