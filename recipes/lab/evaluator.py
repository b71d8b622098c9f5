"""Metrics of networks, as torch computes them and as their exported files do; each is evaluated once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from predictors.engines import open_engine
from predictors.ledger import Ledger
from predictors.store import Store, digest
from predictors.timer import Timer
from recipes.lab.files import Files, Maker
from recipes.lab.keys import batch_digests, data_digest, network_key
from recipes.lab.splits import SELECTION, batches_of
from recipes.lab.workers import Sharing
from recipes.values import RELEASE
from supernet.evaluation import METRICS, evaluate_items
from supernet.model import Supernet
from supernet.progress import progress

STORED = ("accuracy", "loss")  # metrics that have columns of their own in the store; others are rows


class Evaluator:
    """Evaluates networks of a supernet, and the files that a device runs, on the splits of its data."""

    def __init__(
        self, maker: Maker, data: Any, files: Files, timer: Timer, store: Store, workers: Sharing, ledger: Ledger
    ) -> None:
        self._maker, self._files, self._timer, self._store = maker, files, timer, store
        self._workers, self._ledger = workers, ledger
        self.data, self.supernet, self.device = data, maker.supernet, maker.device
        self._data_ids: dict[str, str] = {}

    @cached_property
    def _calibration(self) -> list[str]:
        return batch_digests(self.data.calibration_batches())

    def data_id(self, split: str) -> str:
        """The identity of a split of the data, together with the batches that calibrate."""
        if split not in self._data_ids:
            self._data_ids[split] = data_digest(self.data, batches_of(self.data, split), self._calibration)
        return self._data_ids[split]

    def evaluate(self, X: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """{metric: (n,)} of the n rows of X on the selection split, by torch with recalibrated BatchNorm.

        `what` is shown as progress. ValueError where a loss is NaN or infinite.
        """
        configs = self.supernet.space.decode(X)
        names = [network_key(self.supernet, config, timed=False) for config in configs]
        keys = [(name, self._files.weights_id, self.data_id(SELECTION)) for name in names]
        known = self._known(keys)
        todo = {key: config for key, config in zip(keys, configs) if key not in known}
        with self._ledger.spending(what):
            jobs = [(config,) for config in todo.values()]
            for i, metrics in progress(self._workers.share("evaluate", jobs, self._maker.evaluate), len(jobs), what):
                key, config = list(todo.items())[i]
                if not np.isfinite(metrics["loss"]):
                    raise ValueError(f"the loss of {config} is {metrics['loss']}: did the supernet's training diverge?")
                self._remember(key, metrics)
                known[key] = metrics
        return {name: np.array([known[key][name] for key in keys]) for name in METRICS}

    def _known(self, keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], dict[str, float]]:
        """The stored metrics of those keys that have all metrics."""
        known = {key: dict(records[-1]) for key, records in self._store.get("accuracy", keys).items()}
        for name in METRICS.keys() - set(STORED):
            found = self._store.get("metric", [(*key, name) for key in known])
            known = {
                key: metrics | {name: found[*key, name][-1]["mean"]}
                for key, metrics in known.items()
                if (*key, name) in found
            }
        return known

    def _remember(self, key: tuple[str, str, str], metrics: Mapping[str, float]) -> None:
        if self._store.missing("accuracy", [key]):
            self._store.add("accuracy", key, {name: metrics[name] for name in STORED})
        others = [((*key, name), {"mean": value}) for name, value in metrics.items() if name not in STORED]
        missing = set(self._store.missing("metric", [other for other, _ in others]))
        self._store.extend("metric", [other for other in others if other[0] in missing])

    # ---- items: the metrics of each image or sentence

    def file_items(self, config: Any, split: str) -> dict[str, np.ndarray]:
        """The metrics of each item of a split (see `evaluate_items`), by the delivered file in its runtime.

        A device that times modules of torch has no file: there the network computes them in torch. NetworkError where
        the machine that has the device fails at it twice.
        """
        runtime = {name: self._timer.fingerprint[name] for name in ("cpu", "version")}
        runtime |= {"runtime": self.device.runtime, "precision": self.device.precision}
        if self.device.precision == "int8":  # such batches decide the ranges of quantized layers
            runtime |= {"batch": self.device.batch, "beam": self.supernet.input_spec.get("beam")}
        name = network_key(self.supernet, config, RELEASE, self._files.written_by, timed=False)
        key = (name, self._files.weights_id, digest([self.data_id(split), runtime]))

        def ask() -> dict[str, np.ndarray]:
            return self._items(key, lambda: self._by_file(config, split))

        # A file that fails on one split is of no use, even where another split is known.
        with self._ledger.spending("evaluating files"):
            return self._timer.attempt(self._files.target(config, RELEASE), "items", ask)

    def torch_items(self, config: Any, split: str) -> dict[str, np.ndarray]:
        """The metrics of each item of a split by the network in torch, with recalibrated BatchNorm."""
        name = network_key(self.supernet, config, timed=False)
        key = (name, self._files.weights_id, self.data_id(split))

        def evaluate() -> dict[str, np.ndarray]:
            network = self._maker.subnet(config).to(memory_format=torch.channels_last)
            return evaluate_items(lambda inputs: network(*network.prepare(inputs)), batches_of(self.data, split))

        with self._ledger.spending("evaluating other networks"):
            return self._items(key, evaluate)

    def _items(self, key: tuple[str, str, str], evaluate: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The stored items of a key; they are evaluated, and stored, where a metric is missing."""
        others = [name for name in METRICS if name not in STORED]
        known = self._store.get("items", [key]).get(key)
        found = self._store.get("metric_items", [(*key, name) for name in others])
        if known and len(found) == len(others):
            items = known[-1] | {name: found[*key, name][-1]["of_items"] for name in others}
            return {name: np.array(values) for name, values in items.items()}
        items = evaluate()
        if not known:
            self._store.add("items", key, {name: items[name].tolist() for name in (*STORED, "counted")})
        missing = [((*key, name), {"of_items": items[name].tolist()}) for name in others if (*key, name) not in found]
        self._store.extend("metric_items", missing)
        return items

    def _by_file(self, config: Any, split: str) -> dict[str, np.ndarray]:
        with self._forward(config) as (network, forward):
            return evaluate_items(lambda inputs: forward(network.prepare(inputs)), batches_of(self.data, split))

    @contextmanager
    def _forward(self, config: Any) -> Iterator[tuple[Supernet, Callable[[Sequence[Tensor]], Tensor]]]:
        """The network, and what the device computes of its inputs."""
        if self.device.times_modules:
            network = self._maker.subnet(config).to(memory_format=torch.channels_last)  # as the device runs it
            yield network, lambda inputs: network(*inputs)
            return
        network, file = self.supernet.extract(config).eval(), self._files.path(config, RELEASE)
        if self._timer.engine == "process":  # the file ran before, so it does not endanger this process
            yield network, partial(network.run_parts, self.device.open(file))
            return
        with open_engine(self._timer.engine, self.device) as call:
            call("open", file)
            yield network, partial(network.run_parts, partial(call, "run"))
