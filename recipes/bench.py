"""The bench that measures networks: their latencies, what their files take, and how accurate they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from predictors.devices import LEAST_ROUNDS, LEAST_RUNS, Device
from predictors.engines import ENGINES, NetworkError, peak_memory
from predictors.latency import LatencyPredictor
from predictors.measuring import (
    ATTEMPTS,
    COPIES,
    VISITS,
    Failure,
    Measurement,
    judged,
    latencies,
    least_latencies,
    measure,
    noise_floor,
    now,
    undisturbed,
)
from predictors.runtimes import RUNTIMES, part_file
from predictors.store import Store, digest, network_id
from recipes import FIRST_SAMPLES
from recipes.device_files import FILES, trim, write_device_card, write_part, write_parts, writers, written_by
from recipes.report import draw_front, write_page
from supernet.export import PLAN, write_folder, write_network
from supernet.metadata import Metric
from supernet.model import Part, Supernet, calibrate
from supernet.training import evaluate_items, evaluate_network

LENGTHS = ("source_length", "target_length", "beam")  # of an input_spec: what is timed of a translation network
TIMING = (*LENGTHS, "length_penalty")  # they change no accuracy
CONFIRMED = 2  # measurements of the memory that a file takes, both of which must keep within a bound
CHECKED, AGREE = 5, 0.02  # networks on which the faster exporter is checked, and how much longer or shorter it may take


class Bench:
    """A supernet, its data, a device and the store: what is measured once is never measured again.

    Without data (None) it measures latencies of files that calibrate on nothing, those of the faster exporter.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: Any | None,
        device: Device,
        store: Store,
        files: Path,
        section: dict[str, Any],
        engine: str = "process",
    ) -> None:
        if data is not None:
            supernet.check_data(data.input_spec)
            supernet.input_spec = dict(data.input_spec)
        self.supernet, self.data, self.device, self.store = supernet, data, device, store
        self.section, self.engine = section, engine
        # Files are shared by the devices that load the same ones.
        kind = f"int8-{device.runtime}" if device.precision == "int8" else "float32"
        self.files = files / f"{kind}-{device.batch}{RUNTIMES[device.runtime].files or ''}"
        self.exporter = "search"  # of the files that are searched by
        self.sources: dict[str, FrozenEstimator] | None = None  # of other devices, once `time_samples` asked
        self.exporters_ratio: float | None = None  # see `agrees`; None where it was not asked
        self.quiet: dict[str, float] | None = None  # see `fix_scale`
        self._data_ids: dict[str, str] = {}  # of the parts of the data
        self.seconds = {"export": 0.0, "timing": 0.0, "memory": 0.0, "accuracy": 0.0}  # spent on each
        self.files.mkdir(parents=True, exist_ok=True)

    @cached_property
    def selected(self) -> list[list[Tensor]]:
        """The batches by which networks are chosen."""
        return list(part_of(self.data, "select"))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """That of the machine which has the device."""
        if self.engine == "process":
            return self.device.fingerprint()
        try:
            with ENGINES[self.engine](self.device) as call:
                return call("fingerprint")
        except NetworkError as error:
            raise ValueError(f"{self.device.name}: {error}") from error

    @cached_property
    def device_id(self) -> str:
        return self.device.id_on(self.fingerprint)

    @cached_property
    def _written_by(self) -> tuple[str, ...]:
        return written_by(self.device.runtime, self.device.precision)

    @cached_property
    def weights_id(self) -> str:
        return state_digest(self.supernet.state_dict())

    def data_id(self, part: str) -> str:
        if part not in self._data_ids:
            self._data_ids[part] = data_digest(self.data, part_of(self.data, part))
        return self._data_ids[part]

    # ---- latency

    def latencies(self, X: np.ndarray, what: str, visits: int | None = None) -> np.ndarray:
        """Latencies (n,) in ms of the rows of X, drift divided out, of files of the faster exporter if it `agrees`:
        what predictors are fitted on. By the first `visits`, all `VISITS` if left out; infinite where the network
        fails on the device."""
        return self._latencies(X, self.exporter, what, visits=visits)

    def agrees(self, X: np.ndarray, ms: np.ndarray) -> bool:
        """Whether files of the faster exporter take as long as those that ship; if not, `latencies` is of the latter.

        They do if on `CHECKED` of the rows of X, which take `ms`, the median ratio of the two is within `AGREE` of 1.
        Without data nothing ships, and some devices have no faster exporter.
        """
        if self.exporter == "final" or self.data is None or RUNTIMES[self.device.runtime].files != ".onnx":
            return True
        if self.exporters_ratio is not None:  # it was asked before
            return True
        spread = X[np.unique(np.argsort(ms)[np.linspace(0, len(ms) - 1, CHECKED).round().astype(int)])]
        quiet = self.quiet or self._quiet([self._visits(c, "search") for c in self.supernet.space.decode(X)])
        shipped = self._latencies(spread, "final", "checking the faster exporter", quiet)
        ran = np.isfinite(shipped)
        if not ran.any():
            why = self.reasons(spread, "final")
            raise ValueError(f"{self.device.name}: no file that ships could be timed: {why}")
        self.exporters_ratio = float(np.median(shipped[ran] / self._latencies(spread[ran], "search", "", quiet)))
        if abs(self.exporters_ratio - 1) > AGREE:
            print(
                f"{self.device.name}: files that ship take {self.exporters_ratio:.3f} times as long as those of the"
                " faster exporter: from now on they are what is timed"
            )
            self.exporter = "final"
        return self.exporter == "search"

    def _latencies(
        self,
        X: np.ndarray,
        exporter: str,
        what: str,
        quiet: Mapping[str, float] | None = None,
        visits: int | None = None,
    ) -> np.ndarray:
        """What `latencies` are, of either exporter, and on the scale of what the reference takes undisturbed, if that
        is given."""
        configs = self.supernet.space.decode(X)
        for visit in range(visits or VISITS):  # each in an order of its own, since neighbours share what disturbs
            order = np.random.default_rng(visit).permutation(len(configs)) if visit else range(len(configs))
            some = [configs[i] for i in order if len(self._visits(configs[i], exporter)) <= visit]
            some = [config for config in some if not self._failures(config, exporter)]
            self._time(some, exporter, f"{what}, again" if visit else what, rounds=self._visit_rounds)
        records = [self._visits(config, exporter, visits) for config in configs]
        ran = [bool(measurements) for measurements in records]
        records = list(filter(None, records))
        ms = np.full(len(configs), np.inf)
        ms[ran] = least_latencies(records, quiet or self.quiet or self._quiet(records))
        return ms

    def final_latencies(self, X: np.ndarray, what: str) -> np.ndarray:
        """Latencies (n,) in ms of the rows of X as the files that ship, drift divided out: the statistic that budgets
        are judged by, of the first measurement that counts, on a scale that was fixed. Infinite where it fails."""
        configs = self.supernet.space.decode(X)
        return np.array([ms for ms, _ in self._judge(configs, "latency", what)])

    def confirm(self, config: Any) -> dict[str, float]:
        """A second, independent measurement of the file that ships, each round by another process as those that will
        run it are others, in ms, without drift and as the clock gave it."""
        (judgement,) = self._judge([config], "confirmation", "confirming")
        return dict(zip(("confirmed_ms", "confirmed_with_drift_ms"), judgement))

    def _judge(self, configs: Sequence[Any], table: str, what: str) -> list[tuple[float, float]]:
        """What the first measurement in a table of the store that is `judged` tells of each file that ships, timed
        until there is one: in ms, without drift and as the clock gave it; infinite where the network fails first."""
        statistic = self.device.statistic

        def counted(config: Any) -> list[Measurement]:
            records = self._records(config, "final", table)
            return judged([m for m in records if m.rounds == self.device.rounds], statistic, self.quiet)

        while some := [c for c in configs if not counted(c) and not self._failures(c, "final")]:
            self._time(some, "final", what, table)
            what = what.removesuffix(", again") + ", again"
        firsts = [counted(config)[:1] for config in configs]
        return [
            (float(latencies(first, statistic, self.quiet)[0]), getattr(first[0], statistic))
            if first
            else 2 * (math.inf,)
            for first in firsts
        ]

    def footprints(self, X: np.ndarray, exporter: str, kind: str) -> np.ndarray:
        """What the rows of X take, (n,) in MB: `file_mb`, the size of their files; or `memory_mb`, by how much a fresh
        process grows at most that loads the network and runs it once, of files that ship the larger of `CONFIRMED`
        measurements. Infinite where it cannot."""
        configs = self.supernet.space.decode(X)
        keys = [(*self._key(config, exporter), kind) for config in configs]
        times = CONFIRMED if kind == "memory_mb" and exporter == "final" else 1
        known = self.store.get("footprint", keys)
        todo = {key: config for key, config in zip(keys, configs) if len(known.get(key, [])) < times}
        for key, config in progress(iter(todo.items()), len(todo), f"measuring {kind}"):
            for _ in range(times - len(known.get(key, []))):
                if kind == "memory_mb":
                    taken = self._memory(config, exporter)
                else:
                    taken = sum(file.stat().st_size for file in self._files(config, exporter))
                if taken is None:
                    break
                self.store.add("footprint", key, {"mb": taken / 1e6})
        known = self.store.get("footprint", keys)
        taken = [[record["mb"] for record in known.get(key, [])[:times]] for key in keys]
        return np.array([max(mb) if len(mb) == times else math.inf for mb in taken])

    def _memory(self, config: Any, exporter: str) -> int | None:
        """The bytes that a network takes; None where they cannot be told."""

        def ask() -> int:
            return peak_memory(self.device, self._source(config, exporter)(), self.engine)

        try:
            with self._spending("memory"):
                return self._attempt(config, exporter, "memory", ask)
        except NetworkError as error:
            print(f"{self.device.name}: how much memory {config} takes cannot be told: {error}")
            return None

    def _attempt(self, config: Any, exporter: str, what: str, ask: Callable[[], Any]) -> Any:
        """What is asked about a network, which may fail once; NetworkError where it did twice, now or in the store."""
        name, device_id = self._failure_key(config, exporter)
        key = (name, digest([device_id, what]))
        if failures := self.store.get("failure", [key]).get(key):
            raise NetworkError(failures[0]["reasons"][-1])
        reasons: list[str] = []
        while len(reasons) < ATTEMPTS:
            try:
                return ask()
            except NetworkError as error:
                reasons.append(str(error))
        device = dataclasses.asdict(self.device) | self.fingerprint
        self.store.add("failure", key, dataclasses.asdict(Failure(tuple(reasons), now(), device)))
        raise NetworkError(reasons[-1])

    def reasons(self, X: np.ndarray, exporter: str) -> str:
        """Why rows of X failed on the device."""
        failures = [failure for config in self.supernet.space.decode(X) for failure in self._failures(config, exporter)]
        return "; ".join(sorted({reason for failure in failures for reason in failure["reasons"]}))

    def fix_scale(self, X: np.ndarray) -> None:
        """Take what the reference takes when nothing disturbs from the measurements of X, which were taken; for good.

        So all latencies of a search are on one scale, and those of a second search are on the same.
        """
        self.quiet = self._quiet([self._visits(config, self.exporter) for config in self.supernet.space.decode(X)])

    @property
    def reference_ms(self) -> float:
        """What the reference network takes when nothing disturbs: the scale of all latencies, once it is fixed."""
        return self.quiet[self._reference]

    @cached_property
    def _reference(self) -> str:
        """The id of what is timed beside all others: the smallest network, in `COPIES`."""
        return digest([self._key(self.supernet.space.smallest(), "search")[0], COPIES])

    def noise_floor(self, X: np.ndarray, visits: int | None = None) -> float:
        """How well the measurements of the rows of X, which were taken, repeat; relative."""
        return noise_floor(self._visits(config, self.exporter, visits) for config in self.supernet.space.decode(X))

    def busy_seconds(self, X: np.ndarray, visits: int) -> float:
        """For how many seconds the rows of X run in all `VISITS`, told by the first `visits`, or were waited for in
        vain."""
        configs = self.supernet.space.decode(X)
        known = [m for config in configs for m in self._visits(config, self.exporter, visits)]
        reasons = [why for c in configs for failed in self._failures(c, self.exporter) for why in failed["reasons"]]
        waited = sum(float(found[1]) for why in reasons if (found := re.search(r"no answer in ([\d.]+) s", why)))
        ran = sum(m.rounds * (m.runs + self.device.warmup) * m.median / 1e3 for m in known)
        return waited + ran * VISITS / visits

    def _quiet(self, networks: Iterable[Sequence[Measurement]]) -> dict[str, float]:
        return undisturbed((m for measurements in networks for m in measurements), self.device.statistic)

    def other_devices(self, X: np.ndarray) -> dict[str, FrozenEstimator]:
        """By device, predictors of the others on which enough rows of X were timed before any was on this one.

        None is taken that was stored later, so that a call which is repeated does as before.
        """
        configs, kinds = self.supernet.space.decode(X), product(("search", "final"), writers())
        networks = [[self._network(config, *kind) for config in configs] for kind in kinds]
        own = self.store.first("latency", [(name, self.device_id) for names in networks for name in names])
        found = {}
        for device_id, names in product(self.store.values("latency", "device_id"), networks):
            records = self.store.get("latency", [(name, device_id) for name in names], before=own)
            timed = {
                i: [Measurement(**record) for record in records[name, device_id][:VISITS]]
                for i, name in enumerate(names)
                if (name, device_id) in records
            }
            if device_id != self.device_id and len(timed) >= FIRST_SAMPLES:
                model = LatencyPredictor(terms=self.supernet.cost_terms)
                model.fit(X[list(timed)], least_latencies(timed.values()))
                found[f"{next(iter(timed.values()))[0].device['name']} {device_id[:8]}"] = FrozenEstimator(model)
        return found

    def _key(self, config: Any, exporter: str) -> tuple[str, str]:
        return self._network(config, exporter, self._written_by), self.device_id

    def _network(self, config: Any, exporter: str, by: Sequence[str], timed: bool = True) -> str:
        """The id of a network as an exporter writes it, "search" or "final", with the programs that it needs; and of
        how it is `timed`, which tells its accuracy nothing."""
        terms = self.supernet.cost_terms  # its fields are what shapes a network, beside the config
        left_out = ("space",) if timed else ("space", *TIMING)
        arguments = {f.name: getattr(terms, f.name) for f in dataclasses.fields(terms) if f.name not in left_out}
        exporter = [exporter, *by, *self.supernet.files_form] if exporter else ""
        return network_id(type(self.supernet).__name__, arguments | {"exporter": exporter}, config)

    def _records(self, config: Any, exporter: str, table: str = "latency") -> list[Measurement]:
        """What was measured of a network beside the reference, as it was taken."""
        key = self._key(config, exporter)
        records = [Measurement(**record) for record in self.store.get(table, [key]).get(key, [])]
        return [m for m in records if m.reference == self._reference]

    def _visits(self, config: Any, exporter: str, visits: int | None = None) -> Sequence[Measurement]:
        """Those that predictors learn from: later ones change nothing that is known."""
        records = self._records(config, exporter)
        return [m for m in records if m.rounds == self._visit_rounds][: visits or VISITS]

    @property
    def _visit_rounds(self) -> int:
        """The rounds of a visit: half of the device's, but no fewer than a device may have."""
        return min(
            max(self.device.rounds // 2, LEAST_ROUNDS, math.ceil(LEAST_RUNS / self.device.runs)), self.device.rounds
        )

    def _failures(self, config: Any, exporter: str) -> list[dict[str, Any]]:
        key = self._failure_key(config, exporter)
        return self.store.get("failure", [key]).get(key, [])

    def _failure_key(self, config: Any, exporter: str) -> tuple[str, str]:
        """As `_key`; that of a file that ships also by the weights, with others of which it may work."""
        name, device_id = self._key(config, exporter)
        return (digest([name, self.weights_id]) if exporter == "final" else name), device_id

    def _time(
        self, configs: Sequence[Any], exporter: str, what: str, table: str = "latency", rounds: int | None = None
    ) -> None:
        """Time networks in so many rounds, or in as many as the device asks for."""
        if not configs:
            return
        fresh = table == "confirmation"
        expected = self.fingerprint | ({"layout": "random"} if fresh else {})
        keys = {self._key(config, exporter)[0]: config for config in configs}
        sources = ((key, self._source(config, exporter)) for key, config in keys.items())
        reference = (self._reference, self._source(self.supernet.space.smallest(), "search"))
        try:
            with self._spending("timing"):
                device = dataclasses.replace(self.device, rounds=rounds or self.device.rounds)
                timed = measure(device, sources, reference, engine=self.engine, fresh=fresh)
                for key, result in progress(timed, len(keys), what):
                    if any(result.device[name] != told for name, told in expected.items() if name != "cpus"):
                        raise ValueError(f"{self.device.name}: of several machines that differ: {result.device}")
                    if isinstance(result, Failure):
                        self.store.add("failure", self._failure_key(keys[key], exporter), dataclasses.asdict(result))
                    else:
                        self.store.add(table, (key, self.device_id), dataclasses.asdict(result))
        except NetworkError as error:
            raise ValueError(f"{self.device.name}: {error}") from error

    def _source(self, config: Any, exporter: str) -> Callable[[], Any]:
        def make() -> Any:
            if self.device.times_modules:
                return self._subnet(config, exporter).inference(self.device.batch)
            return self.network_file(config, exporter)

        return make

    @contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        """Adds the seconds that it lasts to those spent on `what`, less those spent on something else meanwhile."""
        began, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            others = sum(self.seconds.values()) - before
            self.seconds[what] += time.perf_counter() - began - others

    def _subnet(self, config: Any, exporter: str) -> Supernet:
        if exporter == "final":
            return self.calibrated(config)
        # Time does not depend on the statistics, but they must be sane for the file to be checked.
        subnet = self.supernet.extract(config).eval()
        return calibrate(subnet, [subnet.example_inputs(8)])

    def network_file(self, config: Any, exporter: str) -> Path:
        """What the device loads of the network, written where it is not there yet: a file, or a folder of them."""
        folder = self.files / self._key(config, exporter)[0]

        def write(temporary: Path) -> None:
            ranges = self.data.calibration_batches() if self.device.precision == "int8" else ()
            write_parts(self._subnet(config, exporter), self.device, temporary, exporter == "search", ranges)

        if not folder.is_dir():  # each appears whole
            try:
                with self._spending("export"):
                    write_folder(folder, write, ())
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            trim(self.files)
        else:
            os.utime(folder)  # `trim` takes the oldest
        return folder if (folder / PLAN).is_file() else part_file(folder, next(folder.iterdir()).stem)

    def _files(self, config: Any, exporter: str) -> list[Path]:
        path = self.network_file(config, exporter)
        return sorted((path if path.is_dir() else path.parent).iterdir())

    # ---- accuracy

    def evaluate(self, X: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """{"accuracy": (n,), "loss": (n,)} of the rows of X on the select part, by torch, BatchNorm recalibrated."""
        configs = self.supernet.space.decode(X)
        names = [self._network(config, "", (), timed=False) for config in configs]
        keys = [(name, self.weights_id, self.data_id("select")) for name in names]
        missing = set(self.store.missing("accuracy", keys))
        todo = {key: config for key, config in zip(keys, configs) if key in missing}
        for key, config in progress(iter(todo.items()), len(todo), what):
            with self._spending("accuracy"):
                figures = evaluate_network(self.calibrated(config), self.selected)
            if not np.isfinite(figures["loss"]):
                raise ValueError(f"the loss of {config} is {figures['loss']}: did the supernet's training diverge?")
            self.store.add("accuracy", key, figures)
        records = self.store.get("accuracy", keys)
        return {name: np.array([records[key][-1][name] for key in keys]) for name in ("accuracy", "loss")}

    def torch_items(self, config: Any) -> dict[str, np.ndarray]:
        """Figures of the items of the select part (see `evaluate_items`), by torch."""
        network = self.calibrated(config)
        return evaluate_items(lambda inputs: network(*network.prepare(inputs)), self.selected)

    def file_items(self, config: Any, part: str) -> dict[str, np.ndarray]:
        """Figures of the items of a part of the data (see `evaluate_items`): of the file that ships, in its runtime.

        The devices that time modules, torch-compile too, have no file: there it is the network, layer by layer.
        NetworkError where the machine that has the device cannot tell them.
        """
        runtime = {name: self.fingerprint[name] for name in ("cpu", "version")}
        runtime |= {"runtime": self.device.runtime, "precision": self.device.precision}
        if self.device.precision == "int8":  # the ranges of what is quantized are told by such batches
            runtime |= {"batch": self.device.batch, "beam": self.supernet.input_spec.get("beam")}
        name = self._network(config, "final", self._written_by, timed=False)
        key = (name, self.weights_id, digest([self.data_id(part), runtime]))

        def ask() -> dict[str, Any]:
            if known := self.store.get("items", [key]).get(key):
                return known[-1]
            with self._forward(config) as (network, forward):
                items = evaluate_items(lambda inputs: forward(network.prepare(inputs)), part_of(self.data, part))
            self.store.add("items", key, {name: values.tolist() for name, values in items.items()})
            return items

        # One of which a part could not be told is of no use, even where another part is known.
        with self._spending("accuracy"):
            return {name: np.array(values) for name, values in self._attempt(config, "final", "items", ask).items()}

    @contextmanager
    def _forward(self, config: Any) -> Iterator[tuple[Supernet, Callable[[Sequence[Tensor]], Tensor]]]:
        """The network, and what the device computes of its inputs."""
        if self.device.times_modules:
            network = self.calibrated(config).to(memory_format=torch.channels_last)  # as the device runs it
            yield network, lambda inputs: network(*inputs)
            return
        network, file = self.supernet.extract(config).eval(), self.network_file(config, "final")
        if self.engine == "process":  # it ran before, so that nothing is to be feared for this process
            yield network, partial(network.run_parts, self.device.open(file))
            return
        with ENGINES[self.engine](self.device) as call:
            call("open", file)
            yield network, partial(network.run_parts, partial(call, "run"))

    def calibrated(self, config: Any) -> Supernet:
        return calibrate(self.supernet.extract(config).eval(), self.data.calibration_batches())

    # ---- result

    def write(self, folder: Path, config: Any, report: dict[str, Any]) -> None:
        """The winner's files, all or none: the saved subnet, those that the device loads, the report and the front."""
        subnet = self.calibrated(config)
        files = self._files(config, "final")  # those that were timed, if they were
        computed = {"runtime": self.device.runtime, "precision": self.device.precision}
        metric = Metric.of(self.file_items(config, "test"), report["figure"], "test", **computed)
        report["metric"] = dataclasses.asdict(metric)

        def write(temporary: Path) -> None:
            write_network(subnet, temporary, self.section)
            for file in files:
                shutil.copyfile(file, temporary / file.name)
            write_device_card(subnet, self.device, temporary, report, folder.name)
            text = json.dumps(json.loads(json.dumps(report, default=float), parse_constant=lambda _: None), indent=1)
            (temporary / "report.json").write_text(text + "\n")  # JSON has no NaN, and no infinity
            draw_front(report).savefig(temporary / "front.png", dpi=120)
            write_page(report, self.supernet.space, config, temporary / "report.html")

        write_folder(folder, write, FILES, overwrite=True)


def try_device(device: Device, folder: Path) -> Measurement:
    """Measure a small network; whatever keeps the device from doing so is raised."""
    device.fingerprint()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)).eval()
    x = torch.randn(device.batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    source: Any = (network, (x,))
    if not device.times_modules:
        seen = [{"input": x.numpy()}] if device.precision == "int8" else None
        source = write_part(Part(network, (x,), ("input",)), device, folder / "network", True, seen)
    ((_, result),) = measure(dataclasses.replace(device, spacing=0.0), {"network": source}, engine="process")
    if isinstance(result, Failure):
        raise NetworkError(result.reasons[0])
    return result


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tuple(tensor.shape)}".encode())
        state.update(tensor_bytes(tensor))
    return state.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor's items in C order, whatever its strides, dtype (also bfloat16) and number of items."""
    # `contiguous` keeps the stride of a single item, which `view` refuses; a contiguous clone has strides of its own.
    items = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return items.flatten().view(torch.uint8).numpy().tobytes()


PARTS = ("select", "report", "test")


def part_of(data: Any, name: str) -> Iterator[list[Tensor]]:
    """Batches of a part of the data: select, every other held-out item, by which networks are chosen; report, the held-
    out items in between, and test, the test set, which choose nothing."""
    if name == "test":
        yield from data.test_dataloader()
        return
    seen = 0
    for batch in data.val_dataloader():
        items = [x[(PARTS.index(name) + seen) % 2 :: 2] for x in batch]
        seen += len(batch[-1])
        if len(items[-1]):
            yield items


def data_digest(data: Any, batches: Iterable[Sequence[Tensor]]) -> str:
    """The identity of what accuracies are of: these batches, and those that calibrate."""
    seen = [
        [state_digest({str(i): x for i, x in enumerate(batch)}) for batch in some]
        for some in (batches, data.calibration_batches())
    ]
    return digest([seen, {name: value for name, value in data.input_spec.items() if name not in TIMING}])


def progress(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """The items, with a progress bar."""
    yield from track(items, description=what, total=total) if total else ()
