"""A trial of a device: does it time a small network here?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from predictors.devices import Device
from predictors.engines import NetworkError
from predictors.statistics import Failure, Measurement
from predictors.timing import time_networks
from recipes.formats import device_format
from supernet.export import Request
from supernet.model import Part


def try_device(device: Device, folder: Path) -> Measurement:
    """Export a small network to `folder` and time it; whatever keeps the device from doing so is raised."""
    device.fingerprint()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)).eval()
    x = torch.randn(device.batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    source: Any = (network, (x,))
    if not device.times_modules:
        format = device_format(device)
        feeds = [{"input": x.numpy()}] if format.calibrates else None
        part, request = Part(network, (x,), ("input",)), Request(batch=device.batch, fast=True)
        format.function()(part, folder / "network", request, feeds, {})
        source = folder / f"network{format.suffix}"
    ((_, result),) = time_networks(dataclasses.replace(device, spacing=0.0), {"network": source}, engine="process")
    if isinstance(result, Failure):
        raise NetworkError(result.reasons[0])
    return result
