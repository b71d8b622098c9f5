"""From a config to what a device loads: the files of a network, written once and kept."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from predictors.devices import Device
from predictors.ledger import Ledger
from predictors.store import digest
from predictors.timer import Target
from recipes.formats import device_format, written_by
from recipes.lab.keys import batch_digests, code_id, network_key, state_digest
from recipes.lab.workers import Sharing
from recipes.values import PROXY, RELEASE
from supernet.atomic import write_folder
from supernet.evaluation import Metric, evaluate_network
from supernet.export import DYNAMIC, Request
from supernet.export.folder import exported_as, saved_as
from supernet.export.onnx import finish_onnx
from supernet.export.parts import PLAN, calibration_feeds, write_plan
from supernet.metadata import Exported, Measured, metadata_of, write_card
from supernet.model import Supernet, calibrate
from supernet.progress import progress
from supernet.saving import WEIGHTS, write_network

ROOM_MEASURED, ROOM_PROPERTY = 2000, 16  # bytes that measured values, and the frame of a property, take at most
CACHE_BYTES, CACHE_FOLDERS = 4e9, 64  # of exported networks; how many stay whatever their size
KEPT_BYTES = 200e6  # of delivered files that are kept beside the store


def write_network_files(
    network: Supernet,
    device: Device,
    folder: Path,
    fast: bool = False,
    calibration: Iterable[Sequence[Tensor]] = (),
) -> None:
    """Write the files of a network that a device loads to a folder, and its plan if it has several parts.

    `fast` uses the format's faster exporter, if it has one. `calibration` are batches of data, from which int8 layers
    take their ranges.
    """
    format = device_format(device)
    seen = {}
    if format.calibrates:
        seen = calibration_feeds(network, device.batch, calibration, fixed=DYNAMIC not in format.batches)
    write, request = format.function(), Request(batch=device.batch, fast=fast)
    for name, part in network.parts(device.batch).items():
        write(part, folder / name, request, seen.get(name), {})
    write_plan(network, folder, device.batch)


@dataclasses.dataclass(frozen=True)
class Maker:
    """What files and metrics of networks are made from, in this process or, pickled, in another one.

    Args:
        supernet: the trained supernet.
        device: the device that the files are for.
        calibration: batches that set BatchNorm and the ranges of int8 layers; None without data.
        selection: the batches by which networks are chosen; None if no network will be evaluated.
        metrics: that are evaluated.
    """

    supernet: Supernet
    device: Device
    calibration: Iterable[Any] | None
    selection: Iterable[Any] | None
    metrics: dict[str, Metric]

    def subnet(self, config: Any, kind: str = RELEASE) -> Supernet:
        """The network of a config, with calibrated BatchNorm.

        A proxy is calibrated on noise: its latency does not depend on the statistics of BatchNorm, but they must be
        sane for the check of the written file.
        """
        subnet = self.supernet.extract(config).eval()
        return calibrate(subnet, [subnet.example_inputs(8)] if kind == PROXY else self.calibration)

    def write(self, config: Any, kind: str, folder: Path) -> None:
        """Write the files of a network to `folder`, which appears whole. FileExistsError if it exists."""

        def write(temporary: Path) -> None:
            calibration = self.calibration or ()
            write_network_files(self.subnet(config, kind), self.device, temporary, kind == PROXY, calibration)

        write_folder(folder, write, ())

    def evaluate(self, config: Any) -> dict[str, float]:
        """The metrics of a network on the selection split, computed by torch."""
        return evaluate_network(self.subnet(config), self.selection, metrics=self.metrics)


class Files:
    """The files of networks that a device loads, in a folder; files are written where they do not exist yet.

    Args:
        maker: writes the files.
        folder: of all files; devices that load the same format share files in it.
        kept: folder of the delivered files, which later calls reuse; None keeps none.
        workers: write files in parallel.
        ledger: the seconds that exporting takes are added to it.
    """

    def __init__(self, maker: Maker, folder: Path, kept: Path | None, workers: Sharing, ledger: Ledger) -> None:
        self._maker, self._kept, self._workers, self._ledger = maker, kept, workers, ledger
        self.device, self.supernet = maker.device, maker.supernet
        self._format = None if self.device.times_modules else device_format(self.device)
        self.folder = folder / f"{self.device.format}-{self.device.batch}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def has_proxies(self) -> bool:
        """Whether there is a faster exporter, whose files may be timed in the place of delivered files."""
        return self._format is not None and self._format.fast

    @cached_property
    def written_by(self) -> tuple[str, ...]:
        """The programs, with versions, that write the files."""
        return written_by(self.device)

    @cached_property
    def weights_id(self) -> str:
        """The identity of the supernet's weights."""
        return state_digest(self.supernet.state_dict())

    @cached_property
    def _release_id(self) -> str:
        """The identity of all that makes a delivered file, apart from the config and the exporter."""
        calibration = batch_digests(self._maker.calibration or ())
        return digest([self.weights_id, calibration, code_id(self.supernet)])

    def key(self, config: Any, kind: str) -> str:
        """The identity of a network's file: equal ones have equal latency."""
        return network_key(self.supernet, config, kind, self.written_by)

    def target(self, config: Any, kind: str) -> Target:
        """What a `Timer` times of a network; failures of a delivered file depend on its weights, too."""
        key = self.key(config, kind)
        failure_key = digest([key, self.weights_id]) if kind == RELEASE else key

        def source() -> Any:
            if self.device.times_modules:
                return self._maker.subnet(config, kind).inference(self.device.batch)
            return self.path(config, kind)

        return Target(key, source, failure_key, (config, kind))

    def path(self, config: Any, kind: str) -> Path:
        """The file, or the folder of several files with a plan, of a network; written if it does not exist."""
        folder = self._folder(config, kind)
        if not folder.is_dir():
            try:
                with self._ledger.spending("exporting"):
                    self._maker.write(config, kind, folder)
            except OSError:
                if not folder.is_dir():  # else another process has written it meanwhile
                    raise
            trim(self.folder, CACHE_BYTES, CACHE_FOLDERS)
        else:
            os.utime(folder)  # `trim` deletes the oldest
        if (folder / PLAN).is_file():
            return folder
        return next(path for path in sorted(folder.iterdir()) if path.suffix == self._format.suffix)

    def all_files(self, config: Any, kind: str) -> list[Path]:
        """All files of a network."""
        path = self.path(config, kind)
        return sorted((path if path.is_dir() else path.parent).iterdir())

    def _folder(self, config: Any, kind: str) -> Path:
        key = self.key(config, kind)
        return self.folder / (digest([key, self._release_id]) if kind == RELEASE else key)

    def write(self, networks: Sequence[tuple[Any, str]], what: str = "exporting") -> None:
        """Write the missing files of networks (config, kind), in several processes where that is faster.

        A network that cannot be exported is left out: `path` raises the reason.
        """
        if self.device.times_modules:
            return
        todo = [(*network, folder) for network in networks if not (folder := self._folder(*network)).is_dir()]

        def here(config: Any, kind: str, folder: Path) -> None:
            with suppress(Exception):
                self.path(config, kind)

        if len(todo) > 1 or (todo and self._workers.running):
            with self._ledger.spending("exporting"):
                for _ in progress(self._workers.share("write", todo, here), len(todo), what):
                    pass
            trim(self.folder, CACHE_BYTES, CACHE_FOLDERS)

    def writing(self, configs: Sequence[Any], kind: str) -> Iterator[None]:
        """Writes the missing files of networks, some at each step."""
        for start in range(0, len(configs), step := self._workers.running or 1):
            self.write([(config, kind) for config in configs[start : start + step]])
            yield

    def delivered(self, config: Any) -> list[Path]:
        """The files of a network that are delivered, in the folder that keeps them for later calls.

        None beside the saved network for a device that times modules of torch.
        """
        if self._format is None:
            return []
        if self._kept is None:
            return self.all_files(config, RELEASE)
        kept = self._kept / self._folder(config, RELEASE).name

        def copy(temporary: Path) -> None:
            for file in self.all_files(config, RELEASE):
                shutil.copyfile(file, temporary / file.name)

        if not kept.is_dir():
            try:
                write_folder(kept, copy, ())
            except OSError:
                if not kept.is_dir():  # else another process has written it meanwhile
                    raise
            trim(self._kept, KEPT_BYTES, 1)
        os.utime(kept)
        return sorted(kept.iterdir())

    def bytes(self, config: Any, kind: str) -> int:
        """The size of a network's files; of its saved weights for a device that times modules of torch."""
        if self._format is None:
            with tempfile.TemporaryDirectory() as temporary:
                write_network(self._maker.subnet(config, kind), Path(temporary), None)
                return (Path(temporary) / WEIGHTS).stat().st_size
        return sum(file.stat().st_size for file in self.all_files(config, kind))

    def room(self, config: Any, kind: str) -> int:
        """The bytes by which metadata may enlarge a network's delivered ONNX files, measured values included."""
        if kind != RELEASE or self._format is None or self._format.suffix != ".onnx":
            return 0
        network = self.supernet.extract(config)
        exported = exported_for(network, self.device)
        properties = metadata_of(network, exported, Measured()).properties()
        room = sum(len(f"{name}{text}".encode()) + ROOM_PROPERTY for name, text in properties.items())
        return len(network.parts(self.device.batch)) * (ROOM_MEASURED + room)


def write_device_card(network: Supernet, device: Device, folder: Path, measured: Measured, called: str) -> None:
    """Write metadata.json, README.md and what else is used with a device's files to their folder.

    The folder will be `called` so. ONNX files get the metadata, too; their graphs stay as they were timed.
    """
    exported = exported_for(network, device)
    for file in folder.glob("*.onnx"):
        finish_onnx(file, None, metadata_of(network, exported, measured).properties())
    write_card(folder, network, exported, measured, called)


def exported_for(network: Supernet, device: Device) -> Exported:
    """The description of a network's files for a device; of the saved network if the device times modules."""
    parts = network.parts(device.batch)
    if device.times_modules:
        exported = saved_as(network, parts)
    else:
        exported = exported_as(device.format, parts, Request(device.batch))
    return dataclasses.replace(exported, runtime=device.runtime)


def trim(folder: Path, most: float, least: int) -> None:
    """Delete the longest unused folders in `folder` while all take more than `most` bytes; `least` of them stay.

    Other processes may write and trim the same folder. Folders whose names begin with a dot are being written.
    """
    found = []
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.name.startswith("."):
            with suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in inner.iterdir())
                found.append((inner.stat().st_mtime_ns, inner, size))
    surplus = sum(size for *_, size in found) - most
    for _, inner, size in sorted(found)[:-least]:
        if surplus <= 0:
            return
        with suppress(FileNotFoundError):
            shutil.rmtree(inner)
        surplus -= size
