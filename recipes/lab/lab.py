"""Lab: a supernet, its data and a device, and everything that is measured of its networks."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from predictors.devices import Device, get_device
from predictors.engines import ENGINES, NetworkError, peak_memory
from predictors.ledger import Ledger
from predictors.store import Store, digest
from predictors.timer import Baseline, Target, Timer
from recipes.lab.evaluator import Evaluator
from recipes.lab.files import Files, Maker
from recipes.lab.keys import code_digests, family_modules
from recipes.lab.sampling import TimedSamples, time_samples
from recipes.lab.splits import SELECTION, batches_of, joined, within_bytes
from recipes.lab.workers import LARGEST, Sharing
from recipes.saved import LOADERS, check_supernet, import_families, make_data, read_section
from recipes.values import PROXY
from supernet.evaluation import METRICS
from supernet.model import Supernet
from supernet.progress import progress
from supernet.saving import load

SEARCH_CODE = {"supernet.search", "supernet.space", "supernet.values", "predictors.latency", "predictors.accuracy"}


class Lab:
    """A supernet, its data and a device; what the store knows is not measured, evaluated or searched again.

    Args:
        supernet: a trained supernet; `input_spec` is that of the data.
        data: its data module; None measures latencies only, of files that were calibrated on noise.
        device: what latencies are of.
        store: of all measurements.
        folder: of exported files.
        engine: an entry of `predictors.engines.ENGINES`.
        kept: folder that keeps delivered files for later calls; None keeps none.
        section: of the recipe that makes the data; saved networks record it.
        workers: other processes that share exports and evaluations; None takes one a core, 1 starts none.
        source: the folder of the supernet, for reports.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: Any | None,
        device: Device,
        store: Store,
        folder: Path,
        *,
        engine: str = "process",
        kept: Path | None = None,
        section: dict[str, Any] | None = None,
        workers: int | None = None,
        source: str | None = None,
    ) -> None:
        if data is not None:
            supernet.check_data(data.input_spec)
        self.supernet, self.data, self.device, self.store = supernet, data, device, store
        self.section, self.space, self.source = section or {}, supernet.space, source
        self.ledger = Ledger()
        self.maker = Maker(supernet, device, Calibration(data), Selection(data), METRICS)
        self._evaluates = False
        self._workers = Sharing(self._worker_state, workers)
        self.files = Files(self.maker, folder, kept, self._workers, self.ledger)
        reference = self.files.target(self.space.smallest(), PROXY)
        self.timer = Timer(device, store, reference, engine=engine, prepare=self._prepare, ledger=self.ledger)
        self.evaluator = Evaluator(self.maker, data, self.files, self.timer, store, self._workers, self.ledger)
        self._samples: dict[tuple[int | None, int], TimedSamples] = {}

    def close(self) -> None:
        """End the processes that work for this one."""
        self._workers.close()

    # ---- latency

    def targets(self, X: np.ndarray, kind: str) -> list[Target]:
        """The rows of X as files of a kind, `PROXY` or `RELEASE`, for the timer."""
        return [self.files.target(config, kind) for config in self.space.decode(X)]

    def time(self, X: np.ndarray, kind: str, what: str, **options: Any) -> tuple[np.ndarray, Baseline]:
        """The latencies (n,) in ms of the rows of X, and the baseline; see `predictors.timer.Timer.samples`."""
        return self.timer.samples(self.targets(X, kind), what, **options)

    def samples(self, n: int | None, seed: int) -> TimedSamples:
        """`time_samples` of n networks; the searches for several budgets share them."""
        if (n, seed) not in self._samples:
            self._samples[n, seed] = time_samples(self, n, seed)
        return self._samples[n, seed]

    def _prepare(self, targets: Sequence[Target]) -> None:
        self.files.write([target.network for target in targets])

    # ---- metrics

    def evaluate(self, X: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """{metric: (n,)} of the rows of X on the selection split, computed by torch."""
        if not self._evaluates:  # processes that were started before have no data for it
            self._evaluates = True
            self._workers.close()
        return self.evaluator.evaluate(X, what)

    # ---- footprint

    def footprint(self, config: Any, kind: str, what: str, measure: Callable[[], float | None], n: int) -> list[float]:
        """n measurements in MB (1e6 bytes) of a property `what` of a network's files; fewer if one fails.

        `measure` returns bytes; None if the measurement failed.
        """
        key, known = self._footprints(config, kind, what)
        while len(known) < n:
            if (size := measure()) is None:
                break
            self.store.add("footprint", key, {"mb": size / 1e6})
            known.append(size / 1e6)
        return known[:n]

    def _footprints(self, config: Any, kind: str, what: str) -> tuple[tuple[str, ...], list[float]]:
        """The key of a property in the store, and its measurements in MB."""
        key = self.files.key(config, kind), self.timer.device_id, what
        return key, [record["mb"] for record in self.store.get("footprint", [key]).get(key, [])]

    def _shown(self, configs: Sequence[Any], kind: str, what: str) -> Iterator[Any]:
        """The configs, with progress if some of them are to be measured."""
        if len(configs) > 1 and any(not self._footprints(config, kind, what)[1] for config in configs):
            return progress(configs, len(configs), f"measuring {what}")
        return iter(configs)

    def file_mb(self, X: np.ndarray, kind: str) -> np.ndarray:
        """The sizes (n,) in MB of the files of the rows of X, of delivered files with room for their metadata."""
        sizes = []
        for config in self._shown(self.space.decode(X), kind, "file_mb"):
            (size,) = self.footprint(config, kind, "file_mb", lambda: self.files.bytes(config, kind), 1)  # noqa: B023
            sizes.append(size + self.files.room(config, kind) / 1e6)
        return np.array(sizes)

    def memory_mb(self, X: np.ndarray, kind: str, n: int) -> list[list[float]]:
        """n measurements in MB of the memory of each row of X: the peak growth of a new process that loads and runs it.

        Fewer measurements where the network fails.
        """

        def measure(config: Any) -> float | None:
            target = self.files.target(config, kind)
            try:
                with self.ledger.spending("measuring memory"):
                    return self.timer.attempt(
                        target, "memory", lambda: peak_memory(self.device, target.source(), self.timer.engine)
                    )
            except NetworkError as error:
                print(f"{self.device.name}: the memory of {config} cannot be measured: {error}")
                return None

        return [
            self.footprint(config, kind, "memory_mb", lambda: measure(config), n)  # noqa: B023
            for config in self._shown(self.space.decode(X), kind, "memory_mb")
        ]

    # ---- searches

    def searched(self, decides: Any, search: Callable[[], np.ndarray]) -> np.ndarray:
        """The rows (n, genes) that `search` finds, or found before if it was decided by equal values and code."""
        try:
            state = pickle.dumps(decides)
        except Exception:  # of another package's class: search again
            return search()
        code = code_digests(sorted(SEARCH_CODE | family_modules(self.supernet)))
        versions = [np.__version__, sklearn.__version__]
        key = (digest([hashlib.sha256(state).hexdigest(), code, versions]),)
        if not (found := self.store.get("search", [key]).get(key)):
            self.store.add("search", key, {"found": search().tolist()})
            found = self.store.get("search", [key])[key]
        return np.array(found[0]["found"]).reshape(-1, self.space.width)

    # ---- other processes

    def _worker_state(self) -> Maker | None:
        """What other processes make networks from; None where the data are too large to be copied."""
        calibration = None if self.data is None else within_bytes(self.maker.calibration, LARGEST)
        selection = within_bytes(self.maker.selection, LARGEST) if self._evaluates else None
        if (self.data is not None and calibration is None) or (self._evaluates and selection is None):
            return None
        return dataclasses.replace(self.maker, calibration=calibration, selection=selection)


class Calibration:
    """The batches of a data module that calibrate, read anew each time; none without data."""

    def __init__(self, data: Any | None) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(() if self._data is None else self._data.calibration_batches())


class Selection:
    """The batches of the selection split, read once."""

    def __init__(self, data: Any | None) -> None:
        self._data, self._batches = data, None

    def __iter__(self) -> Iterator[Any]:
        if self._batches is None:
            self._batches = list(joined(batches_of(self._data, SELECTION)))
        return iter(self._batches)


@contextmanager
def open_lab(
    supernet: str | Path,
    device: str | Path | Device,
    *,
    data: str | None = None,
    store: str | Path | None = None,
    files: str | Path | None = None,
    engine: str = "process",
    splits: Sequence[str] = tuple(LOADERS),
    workers: int | None = None,
) -> Iterator[Lab]:
    """The lab of a saved supernet on a device, with its data and its store of measurements; a context manager.

    Args:
        supernet: folder of a saved supernet.
        device: a name that `supernet devices` lists, a YAML file or a `predictors.devices.Device`.
        data: a YAML file with class_path and init_args; the data that the supernet was trained on if left out.
        store: SQLite file of measurements; measurements.sqlite beside the supernet if left out.
        files: folder of exported files, which stay there for later calls; a temporary folder if left out.
        engine: where networks run; an entry of `predictors.engines.ENGINES`.
        splits: of the data that are needed.
        workers: other processes that share exports and evaluations; one a core if left out, 1 starts none.

    Raises ValueError for a folder that is not a supernet, for data of another family, or for an unknown device.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}")
    import_families()
    check_supernet(str(supernet), data)
    network = load(supernet)
    timed_on = get_device(device)
    path = Path(store) if store else Path(supernet).resolve().parent / "measurements.sqlite"
    with ExitStack() as stack:
        measurements = stack.enter_context(Store(path))
        folder = Path(files or stack.enter_context(tempfile.TemporaryDirectory()))
        section = read_section(str(supernet), data)
        module = make_data(section, splits)
        network.check_data(module.input_spec)
        network.input_spec = dict(module.input_spec)
        kept = path.with_name(f"{path.name}.files")
        options = {"engine": engine, "kept": kept, "section": section, "workers": workers, "source": str(supernet)}
        lab = Lab(network, module, timed_on, measurements, folder, **options)
        try:
            yield lab
        finally:
            lab.close()
            print(f"{timed_on.name}: seconds by stage\n{lab.ledger}", flush=True)
