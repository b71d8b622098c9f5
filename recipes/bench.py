"""The bench that measures networks: their latencies, what their files take, and how accurate they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from rich.progress import track
from scipy.stats import t as student
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from predictors.devices import LEAST_ROUNDS, LEAST_RUNS, Device
from predictors.engines import NetworkError, open_engine, peak_memory
from predictors.latency import LatencyPredictor
from predictors.ledger import Ledger
from predictors.runtimes import RUNTIMES
from predictors.runtimes.session import part_file
from predictors.statistics import Failure, Measurement, accepted, latencies, noise_floor, robust_latencies, undisturbed
from predictors.store import Store, digest, network_id
from predictors.timing import ATTEMPTS, COPIES, RecoveringWorker, now, open_worker, time_networks
from recipes.benches import FIRST_SAMPLES
from recipes.device_files import (
    FILES,
    metadata_room,
    trim,
    write_device_card,
    write_part,
    write_parts,
    writers,
    written_by,
)
from recipes.lab import Lab, uncalibrated
from recipes.report import draw_front, write_page
from recipes.workers import Failed, Workers, how_many
from supernet.atomic import write_folder
from supernet.evaluation import evaluate_items, evaluate_network
from supernet.export.parts import PLAN
from supernet.metadata import Metric
from supernet.model import Part, Supernet, calibrate
from supernet.saving import write_network

LENGTHS = ("source_length", "target_length", "beam")  # of an input_spec: what is timed of a translation network
TIMING = (*LENGTHS, "length_penalty")  # they change no accuracy
NAMES = ("dataset", "license", "class_names", "source_language", "target_language")  # nor do these, of an input_spec
VISITS = 8  # timing sessions of a network that a predictor learns from
CONFIRMED = 2  # measurements of the memory that a file takes, both of which must keep within a bound
# Networks on which the faster exporter is checked, how often, and by how much the latency of its files may differ.
CHECKED, PAIRS, AGREE = 3, 4, 0.02
SURE = 0.99  # the level of the interval that this difference lies in
APART = 4  # visits of a network begin at least so many times the device's spacing apart
WORTH = 4.0  # seconds of work in this process from which on other processes share it; they start in about three
KEPT_BYTES = 200e6  # of delivered files that are kept beside the store
LARGEST = 1e9  # bytes of a supernet and its data that are copied to other processes


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
        kept: Path | None = None,
    ) -> None:
        if data is not None:
            supernet.check_data(data.input_spec)
            supernet.input_spec = dict(data.input_spec)
        self.supernet, self.data, self.device, self.store = supernet, data, device, store
        self.section, self.engine, self.kept = section, engine, kept
        # Files are shared by the devices that load the same ones.
        kind = f"int8-{device.runtime}" if device.precision == "int8" else "float32"
        self.files = files / f"{kind}-{device.batch}{RUNTIMES[device.runtime].files or ''}"
        self.exporter = "search"  # of the files that are searched by
        self.sources: dict[str, FrozenEstimator] | None = None  # of other devices, once `time_samples` asked
        self.exporters_ratio: float | None = None  # see `agrees`; None where it was not asked
        self.exporters_interval: tuple[float, float] | None = None
        self.quiet: dict[str, float] | None = None  # see `fix_scale`
        # What the searches for several budgets have in common: see `recipes.closed_loop`.
        self.sampled: dict[tuple[Device, int | None, int], tuple[np.ndarray, np.ndarray, Any]] = {}
        self.latency_quality: dict[tuple[Device, int | None, int], dict[str, Any]] = {}
        self._data_ids: dict[str, str] = {}  # of the parts of the data
        self.ledger = Ledger()
        self._session: RecoveringWorker | None = None  # see `_staying`
        self._workers: Workers | None = None  # see `_share`
        self._alone = False  # nothing can be shared
        self.evaluates = False  # whether networks will be evaluated, too
        self.files.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """End the processes that work for this one."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    @cached_property
    def selected(self) -> list[list[Tensor]]:
        """The batches by which networks are chosen."""
        return list(joined(part_of(self.data, "select")))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """That of the machine which has the device."""
        if self.engine == "process":
            return self.device.fingerprint()
        try:
            with open_engine(self.engine, self.device) as call:
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

    @cached_property
    def _calibration_digests(self) -> list[str]:
        return batch_digests(self.data.calibration_batches())

    def data_id(self, part: str) -> str:
        if part not in self._data_ids:
            self._data_ids[part] = data_digest(self.data, part_of(self.data, part), self._calibration_digests)
        return self._data_ids[part]

    # ---- latency

    def latencies(
        self, X: np.ndarray, what: str, visits: int | None = None, meanwhile: Iterator[None] | None = None
    ) -> np.ndarray:
        """Latencies (n,) in ms of the rows of X, drift divided out, of files of the faster exporter if it `agrees`:
        what predictors are fitted on. By the first `visits`, all `VISITS` if left out; infinite where the network
        fails on the device.

        Each visit is in an order of its own, since neighbours share what disturbs. Visits are some seconds apart: what
        disturbs for a while then disturbs some of them alone. A step of `meanwhile` is taken between two.
        """
        configs, last = self.supernet.space.decode(X), -math.inf
        with self._staying():
            for visit in range(visits or VISITS):
                order = np.random.default_rng(visit).permutation(len(configs)) if visit else range(len(configs))
                some = [configs[i] for i in order if len(self._visits(configs[i], self.exporter)) <= visit]
                some = [config for config in some if not self._failures(config, self.exporter)]
                if some and visit:
                    next(meanwhile or iter(()), None)
                    with self.ledger.spending("waiting between visits"):
                        time.sleep(max(0.0, last + APART * self.device.spacing - time.perf_counter()))
                last = time.perf_counter()
                self._time(some, self.exporter, f"{what}, again" if visit else what, rounds=self._visit_rounds)
        records = [self._visits(config, self.exporter, visits) for config in configs]
        ran = [bool(measurements) for measurements in records]
        records = list(filter(None, records))
        ms = np.full(len(configs), np.inf)
        ms[ran] = robust_latencies(records, self.quiet or self._quiet(records))
        return ms

    @contextmanager
    def _staying(self) -> Iterator[None]:
        """The networks that are timed meanwhile stay loaded in one process, which waits between visits."""
        if self._session is not None or self.engine != "process":
            yield
            return
        with open_worker(self.device, self.engine, kept=True) as self._session:
            try:
                yield
            finally:
                self._session = None

    def agrees(self, X: np.ndarray) -> bool:
        """Whether files of the faster exporter take as long as the final ones; if not, `latencies` is of the latter.

        Both files of the rows `to_check` of X are timed in the same rounds, `PAIRS` times. They disagree where the
        interval of the ratio of their latencies (`ratio_interval`) is wholly more than `AGREE` away from 1.
        """
        if not len(spread := self.to_check(X)):
            return True
        configs, last = self.supernet.space.decode(spread), -math.inf
        with self._staying():
            for pair in range(PAIRS):
                some = [config for config in configs if len(self._pairs(config)) <= pair]
                some = [config for config in some if not self._failures(config, "final")]
                if some and pair:
                    with self.ledger.spending("waiting between visits"):
                        time.sleep(max(0.0, last + APART * self.device.spacing - time.perf_counter()))
                last = time.perf_counter()
                what = "checking the faster exporter" + (", again" if pair else "")
                self._time(some, "final", what, rounds=self._visit_rounds, beside="search")
        ratios = [found for config in configs if (found := self._pairs(config))]
        if not ratios:
            why = self.reasons(spread, "final")
            raise ValueError(f"{self.device.name}: no exported file could be timed: {why}")
        self.exporters_ratio, low, high = ratio_interval(ratios)
        self.exporters_interval = (low, high)
        if low > 1 + AGREE or high < 1 - AGREE:
            print(
                f"{self.device.name}: the latency of the exported files is {self.exporters_ratio:.3f} times the latency"
                f" of the faster exporter's ({low:.3f} to {high:.3f}): from now on the exported files are timed"
            )
            self.exporter = "final"
        return self.exporter == "search"

    def to_check(self, X: np.ndarray) -> np.ndarray:
        """The rows of X on which the faster exporter is to be checked: `CHECKED` that are spread over the MACs.

        None where it was checked before, and where there is nothing to check: without data nothing is delivered, and
        some devices have no faster exporter.
        """
        if self.exporter == "final" or self.data is None or RUNTIMES[self.device.runtime].files != ".onnx":
            return X[:0]
        if self.exporters_ratio is not None:
            return X[:0]
        order = np.argsort(self.supernet.costs(X)["macs"], kind="stable")
        return X[np.unique(order[np.linspace(0, len(X) - 1, CHECKED).round().astype(int)])]

    def _pairs(self, config: Any) -> list[float]:
        """The latency of the final file over the latency of the faster exporter's, of each visit of both."""
        rounds = self._visit_rounds
        fast = {m.taken: m for m in self._records(config, "search") if m.rounds == rounds}
        both = [(m, fast[m.taken]) for m in self._records(config, "final") if m.rounds == rounds and m.taken in fast]
        return [final.p10 / beside.p10 for final, beside in both][:PAIRS]

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
            return accepted([m for m in records if m.rounds == self.device.rounds], statistic, self.quiet)

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
        """What the rows of X take, (n,) in MB: `file_mb`, the size of their files, of files that ship with the room for
        their metadata; or `memory_mb`, by how much a fresh process grows at most that loads the network and runs it
        once, of files that ship the larger of `CONFIRMED` measurements. Infinite where it cannot."""
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
        mb = np.array([max(mb) if len(mb) == times else math.inf for mb in taken])
        if kind == "file_mb" and exporter == "final":
            mb += [metadata_room(self.supernet.extract(config), self.device) / 1e6 for config in configs]
        return mb

    def _memory(self, config: Any, exporter: str) -> int | None:
        """The bytes that a network takes; None where they cannot be told."""

        def ask() -> int:
            return peak_memory(self.device, self._source(config, exporter)(), self.engine)

        try:
            with self.ledger.spending("measuring memory"):
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

    def least_ms(self, config: Any) -> float:
        """The fastest of all runs of a network that was timed, in ms; infinite where it was not."""
        return min((m.min for m in self._visits(config, self.exporter)), default=math.inf)

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
                model.fit(X[list(timed)], robust_latencies(timed.values()))
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
        self,
        configs: Sequence[Any],
        exporter: str,
        what: str,
        table: str = "latency",
        rounds: int | None = None,
        beside: str | None = None,
    ) -> None:
        """Time networks in so many rounds, or in as many as the device asks for; `beside` their files of another
        exporter, in the same rounds."""
        if not configs:
            return
        fresh = table == "confirmation"
        expected = self.fingerprint | ({"layout": "random"} if fresh else {})
        both = [(config, by) for config in configs for by in (exporter, beside) if by is not None]
        self.export([*both, (self.supernet.space.smallest(), "search")])
        keys = {self._key(*network)[0]: network for network in both}
        sources = ((key, self._source(*network)) for key, network in keys.items())
        reference = (self._reference, self._source(self.supernet.space.smallest(), "search"))
        try:
            with self.ledger.spending(what.removesuffix(", again")):
                device = dataclasses.replace(self.device, rounds=rounds or self.device.rounds)
                timed = time_networks(
                    device,
                    sources,
                    reference,
                    engine=self.engine,
                    new_process_per_round=fresh,
                    worker=None if fresh else self._session,
                )
                for key, result in progress(timed, len(keys), what):
                    if any(result.device[name] != told for name, told in expected.items() if name != "cpus"):
                        raise ValueError(f"{self.device.name}: of several machines that differ: {result.device}")
                    if isinstance(result, Failure):
                        self.store.add("failure", self._failure_key(*keys[key]), dataclasses.asdict(result))
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

    def _subnet(self, config: Any, exporter: str) -> Supernet:
        return self.calibrated(config) if exporter == "final" else uncalibrated(self.supernet, config)

    def network_file(self, config: Any, exporter: str) -> Path:
        """What the device loads of the network, written where it is not there yet: a file, or a folder of them."""
        folder = self._folder(config, exporter)

        def write(temporary: Path) -> None:
            ranges = self.data.calibration_batches() if self.device.precision == "int8" else ()
            write_parts(self._subnet(config, exporter), self.device, temporary, exporter == "search", ranges)

        if not folder.is_dir():  # each appears whole
            try:
                with self.ledger.spending("exporting"):
                    write_folder(folder, write, ())
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            trim(self.files)
        else:
            os.utime(folder)  # `trim` takes the oldest
        return folder if (folder / PLAN).is_file() else part_file(folder, next(folder.iterdir()).stem)

    def _folder(self, config: Any, exporter: str) -> Path:
        return self.files / self._key(config, exporter)[0]

    def export(self, networks: Sequence[tuple[Any, str]], what: str = "exporting") -> None:
        """Write the files of networks (config, exporter) which are not there yet, in several processes where that is
        faster. A network that fails is left to `network_file`, which says why."""
        if self.device.times_modules:
            return
        todo = [(*network, folder) for network in networks if not (folder := self._folder(*network)).is_dir()]

        def here(config: Any, exporter: str, folder: Path) -> None:
            with suppress(Exception):
                self.network_file(config, exporter)

        if len(todo) > 1 or (todo and self._workers is not None):
            with self.ledger.spending("exporting"):
                for _ in progress(self._share("write", todo, here), len(todo), what):
                    pass
            trim(self.files)

    def exporting(self, X: np.ndarray, exporter: str) -> Iterator[None]:
        """Writes the files of the rows of X, some at each step."""
        configs = self.supernet.space.decode(X)
        step = 1 if self._workers is None else self._workers.n
        for start in range(0, len(configs), step):
            self.export([(config, exporter) for config in configs[start : start + step]])
            yield

    def _share(self, method: str, jobs: Sequence[tuple], here: Callable[..., Any]) -> Iterator[tuple[int, Any]]:
        """(number of a job, its result) of jobs that are done `here`, until other processes are worth their start; from
        then on by a `Lab` method there. A job that fails there is done here, where it raises what is wrong."""
        done, last = 0, 0.0
        for done, job in enumerate(jobs):
            left = last * (len(jobs) - done) * (0.5 if done == 1 else 1)  # the first one imports
            if self._workers is None and left > WORTH and not self._alone:
                self._start_workers()
            if self._workers is not None:
                break
            began = time.process_time()  # not the clock: a busy machine makes no work worth sharing
            result = here(*job)
            last = time.process_time() - began
            yield done, result
        else:
            return
        rest = jobs[done:]
        for i, result in self._workers.map(method, rest):
            yield done + i, here(*rest[i]) if isinstance(result, Failed) else result

    def _start_workers(self) -> None:
        """Start the processes that share the work of this one; none where there is one core or little memory, or where
        the supernet or its data cannot be copied to another process."""
        self._alone = True
        calibration = None if self.data is None else at_most(self.data.calibration_batches(), LARGEST)
        selected = at_most(self.selected, LARGEST) if self.evaluates else None
        if (self.data is not None and calibration is None) or (self.evaluates and selected is None):
            return
        try:
            state = pickle.dumps(Lab(self.supernet, self.device, calibration, selected))
        except Exception as error:  # of another package's class
            print(f"one process works alone: the supernet cannot be copied to others ({type(error).__name__}: {error})")
            return
        if b"__main__" in state or len(state) > LARGEST or (n := how_many(len(state))) < 2:
            return
        self._workers, self._alone = Workers(state, n), False

    def _files(self, config: Any, exporter: str) -> list[Path]:
        path = self.network_file(config, exporter)
        return sorted((path if path.is_dir() else path.parent).iterdir())

    def _delivered(self, config: Any) -> list[Path]:
        """The final files of a network: those that were timed, if they were, or that an earlier call delivered."""
        if self.kept is None or self.device.times_modules:
            return self._files(config, "final")
        ranges = self.data_id("select")  # which the batches that calibrate are part of
        kept = self.kept / digest([*self._key(config, "final"), self.weights_id, ranges, code_id(self.supernet)])

        def copy(temporary: Path) -> None:
            for file in self._files(config, "final"):
                shutil.copyfile(file, temporary / file.name)

        if not kept.is_dir():
            try:
                write_folder(kept, copy, ())
            except OSError:
                if not kept.is_dir():  # else another process was faster
                    raise
            trim(self.kept, KEPT_BYTES, least=1)
        os.utime(kept)
        return sorted(kept.iterdir())

    # ---- accuracy

    def evaluate(self, X: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """{"accuracy": (n,), "loss": (n,)} of the rows of X on the select part, by torch, BatchNorm recalibrated."""
        configs = self.supernet.space.decode(X)
        names = [self._network(config, "", (), timed=False) for config in configs]
        keys = [(name, self.weights_id, self.data_id("select")) for name in names]
        missing = set(self.store.missing("accuracy", keys))
        todo = {key: config for key, config in zip(keys, configs) if key in missing}

        def here(config: Any) -> dict[str, float]:
            return evaluate_network(self.calibrated(config), self.selected)

        self.will_evaluate()
        with self.ledger.spending(what):
            found = self._share("evaluate", [(config,) for config in todo.values()], here)
            for i, figures in progress(found, len(todo), what):
                key, config = list(todo.items())[i]
                if not np.isfinite(figures["loss"]):
                    raise ValueError(f"the loss of {config} is {figures['loss']}: did the supernet's training diverge?")
                self.store.add("accuracy", key, figures)
        records = self.store.get("accuracy", keys)
        return {name: np.array([records[key][-1][name] for key in keys]) for name in ("accuracy", "loss")}

    def will_evaluate(self) -> None:
        """Have other processes evaluate networks, too; those that were started before have no batches for it."""
        if not self.evaluates:
            self.evaluates = True
            self.close()

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
        with self.ledger.spending("evaluating files"):
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
        with open_engine(self.engine, self.device) as call:
            call("open", file)
            yield network, partial(network.run_parts, partial(call, "run"))

    def calibrated(self, config: Any) -> Supernet:
        return calibrate(self.supernet.extract(config).eval(), self.data.calibration_batches())

    # ---- searches

    def searched(self, decides: Any, search: Callable[[], np.ndarray]) -> np.ndarray:
        """The rows (n, genes) that a search finds, or found before where the same `decides` it, and the same code."""
        try:
            state = pickle.dumps(decides)
        except Exception:  # of another package's class; it is searched again
            return search()
        modules = {"supernet.search", "supernet.space", "supernet.values", "predictors.latency", "predictors.accuracy"}
        code = code_digests(sorted(modules | family_modules(self.supernet)))
        programs = [np.__version__, sklearn.__version__]
        key = (digest([hashlib.sha256(state).hexdigest(), code, programs]),)
        if not (found := self.store.get("search", [key]).get(key)):
            self.store.add("search", key, {"found": search().tolist()})
            found = self.store.get("search", [key])[key]
        return np.array(found[0]["found"]).reshape(-1, self.supernet.space.width)

    # ---- result

    def write(self, folder: Path, config: Any, report: dict[str, Any]) -> None:
        """The winner's files, all or none: the saved subnet, those that the device loads, the report and the front."""
        subnet = self.calibrated(config)
        files = self._delivered(config)
        computed = {"runtime": self.device.runtime, "precision": self.device.precision}
        metric = Metric.of(self.file_items(config, "test"), report["figure"], "test", **computed)
        report["metric"] = dataclasses.asdict(metric)

        def write(temporary: Path) -> None:
            write_network(subnet, temporary, self.section)
            for file in files:
                shutil.copyfile(file, temporary / file.name)
            write_device_card(subnet, self.device, temporary, report, folder.name)
            if "file_mb" in report:
                report["file_mb"] = sum((temporary / file.name).stat().st_size for file in files) / 1e6
            text = json.dumps(json.loads(json.dumps(report, default=float), parse_constant=lambda _: None), indent=1)
            (temporary / "report.json").write_text(text + "\n")  # JSON has no NaN, and no infinity
            draw_front(report).savefig(temporary / "front.png", dpi=120)
            write_page(report, self.supernet.space, config, temporary / "report.html")

        write_folder(folder, write, FILES, overwrite=True)


def ratio_interval(networks: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The geometric mean of ratios, and the bounds of its interval of the level `SURE`.

    Networks may have ratios of their own: the spread is what the measurements of each differ by. A single measurement
    of each does not show it, and bounds nothing.
    """
    logs = [np.log(ratios) for ratios in networks]
    every = np.concatenate(logs)
    mean, freedom = float(every.mean()), len(every) - len(logs)
    if freedom == 0:
        return math.exp(mean), 0.0, math.inf
    variance = sum(float(((values - values.mean()) ** 2).sum()) for values in logs) / freedom
    reach = float(student.ppf((1 + SURE) / 2, freedom)) * math.sqrt(variance / len(every))
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)


def try_device(device: Device, folder: Path) -> Measurement:
    """Measure a small network; whatever keeps the device from doing so is raised."""
    device.fingerprint()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)).eval()
    x = torch.randn(device.batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    source: Any = (network, (x,))
    if not device.times_modules:
        seen = [{"input": x.numpy()}] if device.precision == "int8" else None
        source = write_part(Part(network, (x,), ("input",)), device, folder / "network", True, seen)
    ((_, result),) = time_networks(dataclasses.replace(device, spacing=0.0), {"network": source}, engine="process")
    if isinstance(result, Failure):
        raise NetworkError(result.reasons[0])
    return result


def code_id(supernet: Supernet) -> str:
    """The identity of the code that writes files of a supernet's networks: another version may write others."""
    modules = {*family_modules(supernet), "supernet.elastic", "supernet.model", "supernet.saving"}
    modules |= {name for name in sys.modules if name.startswith("supernet.export")}
    return digest(code_digests(sorted(modules | {"recipes.device_files"})))


def family_modules(supernet: Supernet) -> set[str]:
    """The imported modules of the package that a supernet's family is in."""
    package = type(supernet).__module__.partition(".")[0]
    return {name for name in sys.modules if name.partition(".")[0] == package}


def code_digests(modules: Iterable[str]) -> list[str]:
    """sha256 of the files of imported modules; of one without a file, as of an interpreter's session, none."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file]


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


def at_most(batches: Iterable[Any], most: float) -> list[Any] | None:
    """The batches; None where they take more bytes."""
    kept, size = [], 0
    for batch in batches:
        size += sum(x.nbytes for x in ([batch] if isinstance(batch, Tensor) else batch))
        if size > most:
            return None
        kept.append(batch)
    return kept


def joined(batches: Iterable[Sequence[Tensor]], most: int = 256) -> Iterator[list[Tensor]]:
    """The items in larger batches, of at most so many, where batches in a row have items of one shape."""
    some: list[list[Tensor]] = []
    for batch in batches:
        shapes = [x.shape[1:] for x in batch]
        full = some and sum(len(x[-1]) for x in some) + len(batch[-1]) > most
        if some and (full or [x.shape[1:] for x in some[-1]] != shapes):
            yield [torch.cat(parts) for parts in zip(*some)]
            some = []
        some.append(list(batch))
    if some:
        yield [torch.cat(parts) for parts in zip(*some)]


def data_digest(data: Any, batches: Iterable[Sequence[Tensor]], calibration: Sequence[str] | None = None) -> str:
    """The identity of what accuracies are of: these batches, and those that calibrate, whose digests may be given."""
    calibration = batch_digests(data.calibration_batches()) if calibration is None else calibration
    left_out = (*TIMING, *NAMES)
    spec = {name: value for name, value in data.input_spec.items() if name not in left_out}
    return digest([[batch_digests(batches), calibration], spec])


def batch_digests(batches: Iterable[Sequence[Tensor]]) -> list[str]:
    return [state_digest({str(i): x for i, x in enumerate(batch)}) for batch in batches]


def progress(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """The items, with a progress bar."""
    yield from track(items, description=what, total=total) if total else ()
