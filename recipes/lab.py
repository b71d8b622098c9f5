"""What networks of a supernet are made and evaluated from, in this process or in another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from predictors.devices import Device
from recipes.device_files import write_parts
from supernet.atomic import write_folder
from supernet.evaluation import evaluate_network
from supernet.model import Supernet, calibrate


@dataclasses.dataclass(frozen=True)
class Lab:
    """What another process exports and evaluates networks of: the supernet, and the batches of the data."""

    supernet: Supernet
    device: Device
    calibration: Sequence[Any] | None
    selected: Sequence[Any] | None

    def write(self, config: Any, exporter: str, folder: Path) -> None:
        """Write the files that the device loads of a network, as `Bench.network_file` does."""

        def write(temporary: Path) -> None:
            subnet = self._calibrated(config) if exporter == "final" else uncalibrated(self.supernet, config)
            ranges = self.calibration if self.device.precision == "int8" else ()
            write_parts(subnet, self.device, temporary, exporter == "search", ranges)

        torch.set_num_threads(1)
        write_folder(folder, write, ())

    def evaluate(self, config: Any) -> dict[str, float]:
        """The figures of a network, as `Bench.evaluate` has them."""
        torch.set_num_threads(1)
        return evaluate_network(self._calibrated(config), self.selected)

    def _calibrated(self, config: Any) -> Supernet:
        return calibrate(self.supernet.extract(config).eval(), self.calibration)


def uncalibrated(supernet: Supernet, config: Any) -> Supernet:
    """A network to time: its latency does not depend on BatchNorm's statistics, which must be sane for the file to be
    checked."""
    subnet = supernet.extract(config).eval()
    return calibrate(subnet, [subnet.example_inputs(8)])
