"""Which files a device loads, and which programs write them. Importing it does not import torch."""

from __future__ import annotations

from contextlib import suppress

from predictors.devices import Device
from predictors.runtimes import RUNTIMES
from supernet.export import Format, known_formats


def device_format(device: Device) -> Format:
    """The export format of the files that a device times; ValueError for an unknown format."""
    if device.format not in (known := known_formats()):
        raise ValueError(
            f"{device.name}: {device.runtime} loads files of the format {device.format!r} for {device.precision}, which"
            f" is not one of {', '.join(known)}"
        )
    return known[device.format]


def written_by(device: Device) -> tuple[str, ...]:
    """The programs, with versions, that write the files that a device times; none if it times modules of torch.

    ImportError, with what to install, where one of them is not installed.
    """
    return () if device.times_modules else device_format(device).written_by()


def known_writers() -> list[tuple[str, ...]]:
    """`written_by` of all devices that could time networks here, each once."""
    found: dict[tuple[str, ...], None] = {}
    for runtime in RUNTIMES.values():
        for name in runtime.formats.values() if runtime.formats else (None,):
            with suppress(ImportError):
                found[known_formats()[name].written_by() if name in known_formats() else ()] = None
    return list(found)
