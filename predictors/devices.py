"""Devices: what a latency is measured on, and how. A device times files (or, for torch, a module with its inputs)."""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from predictors.store import digest

Run = Callable[[], Any]  # one inference on fixed inputs
Source = Any  # what a device times: the path of a file, or (module, inputs) for torch; or a function that makes it
PLAN = "run.json"  # in the folder of a network that runs in several files, as supernet.export writes it
STATISTICS = {"p10": 10, "median": 50, "p90": 90}  # as percentiles


@dataclasses.dataclass(frozen=True)
class Device:
    """A named description of a runtime on this machine and of how it is timed; everything in it is recorded.

    A network is loaded once and timed in `rounds` that start at least `spacing` seconds apart, other networks in
    between; in every round it runs `warmup` times unrecorded, then `runs` times in a tight loop (protocol "tight":
    warm caches; a cold call of a small network takes up to 3 times as long). `affinity` are the CPUs that it may run
    on; None takes the first `threads` that this process may use. `statistic` is the one that a budget is judged on.
    """

    name: str
    runtime: str
    precision: str = "float32"
    threads: int = 1
    affinity: tuple[int, ...] | None = None
    batch: int = 1
    warmup: int = 3
    rounds: int = 8
    runs: int = 8
    spacing: float = 0.25
    protocol: str = "tight"
    statistic: str = "median"

    def __post_init__(self) -> None:
        if self.affinity is not None:
            object.__setattr__(self, "affinity", tuple(self.affinity))
        for field, known in (
            ("runtime", tuple(RUNTIMES)),
            ("precision", ("float32",)),
            ("protocol", ("tight",)),
            ("statistic", tuple(STATISTICS)),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"{self.name}: {field} = {getattr(self, field)!r} is not one of {known}")
        if min(self.threads, self.batch) < 1 or self.warmup < 0 or self.spacing < 0:
            raise ValueError(f"{self.name}: threads and batch are at least 1, warmup and spacing at least 0: {self}")
        if self.rounds < 3 or self.runs * self.rounds < 20:
            raise ValueError(f"{self.name}: at least 3 rounds and 20 runs in all, not {self.rounds} of {self.runs}")

    def fingerprint(self) -> dict[str, Any]:
        """The machine, the runtime's version and the CPUs in use. A runtime that is not installed is an ImportError."""
        return {
            "cpu": cpu_model(),
            "machine": platform.machine(),
            "system": platform.system(),
            "version": runtime_version(self.runtime),
            "cpus": list(self.cpus()),
        }

    def cpus(self) -> tuple[int, ...]:
        """The CPUs that measuring is pinned to; empty where the system cannot pin."""
        if not hasattr(os, "sched_getaffinity"):
            if self.affinity is not None:
                raise ValueError(f"{self.name}: {platform.system()} cannot pin to the CPUs {self.affinity}")
            return ()
        allowed = sorted(os.sched_getaffinity(0))
        cpus = tuple(allowed[: self.threads]) if self.affinity is None else self.affinity
        if len(cpus) < self.threads or not set(cpus) <= set(allowed):
            raise ValueError(f"{self.name}: {self.threads} threads on the CPUs {cpus}; this process may use {allowed}")
        return cpus

    @property
    def id(self) -> str:
        """A hash of all that changes the number: latencies of equal ids may be compared and reused.

        Left out are the name, the statistic (all are kept) and which CPUs `affinity` = None came to.
        """
        kept = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "statistic")}
        return digest(kept | {k: v for k, v in self.fingerprint().items() if k != "cpus"})

    def load(self, source: Source) -> Run:
        """`source` made ready to run: a function that does one inference on fixed inputs.

        onnxruntime takes the path of an .onnx file, or of a folder with a plan (`load_plan`), and makes its inputs
        (batch first). torch takes (module, inputs);
        it runs a copy of the module, channels_last if an input is B, C, H, W. ValueError if precision or batch is not
        this device's. Only `measure` pins threads: a run from elsewhere is not a measurement.
        """
        runtime_version(self.runtime)
        run, precision = RUNTIMES[self.runtime](self, source)
        if precision != self.precision:
            raise ValueError(f"{self.name}: measures {self.precision}, but {self.runtime} runs this in {precision}")
        return run


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The times of one network on one device, in ms, as the clock gave them.

    `times` is (rounds, runs). `reference_times` (rounds, runs at both ends of the round) are those of the network named
    `reference`, which ran in the same rounds; both are empty where there was none.
    """

    times: tuple[tuple[float, ...], ...]
    reference: str
    reference_times: tuple[tuple[float, ...], ...]
    taken: str  # when its first round began, UTC
    device: Mapping[str, Any]  # the description and the fingerprint

    @property
    def p10(self) -> float:
        return statistic_of(self.times, "p10")

    @property
    def median(self) -> float:
        return statistic_of(self.times, "median")

    @property
    def p90(self) -> float:
        return statistic_of(self.times, "p90")

    @property
    def noise(self) -> float:
        """The relative difference in p10 between the first and the last half of the rounds, drift divided out."""
        half = len(self.times) // 2
        first, last = statistic_of(self.times[:half], "p10"), statistic_of(self.times[-half:], "p10")
        if self.reference:
            first /= statistic_of(self.reference_times[:half], "p10")
            last /= statistic_of(self.reference_times[-half:], "p10")
        return 2 * abs(first - last) / (first + last)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the fields, and the statistics for whoever reads them elsewhere."""
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in (*STATISTICS, "noise")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        for name in ("times", "reference_times"):
            fields[name] = tuple(map(tuple, fields[name]))
        return cls(**fields)


def statistic_of(times: Sequence[Sequence[float]], statistic: str) -> float:
    """The p10, median or p90 of all runs of all rounds."""
    return float(np.percentile(times, STATISTICS[statistic]))


def undisturbed(measurements: Iterable[Measurement], statistic: str) -> dict[str, float]:
    """What each reference network takes, in ms, when nothing else disturbs the machine: the tenth percentile of its
    latency over all measurements given."""
    seen: dict[str, list[float]] = {}
    for m in measurements:
        if m.reference:
            seen.setdefault(m.reference, []).append(statistic_of(m.reference_times, statistic))
    return {reference: float(np.percentile(values, 10)) for reference, values in seen.items()}


def latencies(
    measurements: Iterable[Measurement], statistic: str, quiet: Mapping[str, float] | None = None
) -> np.ndarray:
    """The latencies (n,) in ms of n measurements, with drift divided out: what a predictor is fitted on.

    A machine that is busy or slowed down for a while slows the reference network alike. Each measurement is divided by
    that same statistic of the reference in its rounds, and multiplied by the reference's undisturbed one: `quiet`, or
    that of the measurements given. Those taken without a reference stay as they are. On a busy machine the p10 repeats
    several times better than the median does.
    """
    measurements = list(measurements)
    quiet = undisturbed(measurements, statistic) if quiet is None else quiet
    y = np.array([statistic_of(m.times, statistic) for m in measurements])
    for i, m in enumerate(measurements):
        if m.reference:
            y[i] *= quiet[m.reference] / statistic_of(m.reference_times, statistic)
    return y


def measure(
    device: Device,
    networks: Mapping[str, Source] | Iterable[tuple[str, Source]],
    reference: tuple[str, Source] | None = None,
    *,
    group: int = 3,
    seed: int = 0,
) -> Iterator[tuple[str, Measurement]]:
    """Time networks on a device; yields (key, Measurement) as soon as a network has had all its rounds.

    Networks are read lazily, `group` before every round (a source may be a function that exports on demand), so that
    the rounds of one lie between those of others and apart in time, and rounds x group of them are held at once. The
    order within a round is random. The `reference` (its name, its source) runs at both ends of every round, so that
    `latencies` can divide out drift. Inference happens on a pinned thread of its own; its children inherit that.
    """
    rng = np.random.default_rng(seed)
    arriving = iter(networks.items() if isinstance(networks, Mapping) else networks)
    description = dataclasses.asdict(device) | device.fingerprint()
    active: deque[_Timing] = deque()
    with _pinned_thread(device) as call:
        name, source = ("", None) if reference is None else reference
        reference_run = None if reference is None else _load(call, device, name, source)
        while True:
            for key, source in islice(arriving, group):
                active.append(_Timing(key, _load(call, device, key, source)))
            if not active:
                return
            began = time.perf_counter()
            call(_round, device, [active[i] for i in rng.permutation(len(active))], reference_run)
            while active and len(active[0].times) == device.rounds:
                done = active.popleft()
                times, reference_times = tuple(done.times), tuple(done.reference_times)
                yield done.key, Measurement(times, name, reference_times, done.taken, description)
            if active:
                time.sleep(max(0.0, device.spacing - (time.perf_counter() - began)))


class _Timing:
    """A loaded network and its rounds so far."""

    def __init__(self, key: str, run: Run) -> None:
        self.key, self.run = key, run
        self.times: list[tuple[float, ...]] = []
        self.reference_times: list[tuple[float, ...]] = []
        self.taken = datetime.now(UTC).isoformat(timespec="seconds")


def _load(call: Callable[..., Any], device: Device, key: str, source: Source) -> Run:
    try:
        if callable(source) and not hasattr(source, "forward"):
            source = source()  # may export, which need not be on the pinned thread
        return call(_warm, device, source)
    except Exception as error:
        error.add_note(f"while loading {key} on {device.name}")
        raise


def _warm(device: Device, source: Source) -> Run:
    """The loaded network after its first run, which allocates."""
    with _runtime_threads(device):
        run = device.load(source)
        run()
    return run


def _round(device: Device, order: Sequence[_Timing], reference: Run | None) -> None:
    """Time every network once, between two visits to the reference."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with _runtime_threads(device):
            before = () if reference is None else _time(device, reference)
            for timing in order:
                timing.times.append(_time(device, timing.run))
            after = () if reference is None else _time(device, reference)
    finally:
        if collects:
            gc.enable()
    if reference is not None:
        for timing in order:
            timing.reference_times.append(before + after)


def _time(device: Device, run: Run) -> tuple[float, ...]:
    """The times of a tight loop, in ms."""
    for _ in range(device.warmup):
        run()
    times = []
    for _ in range(device.runs):
        start = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return tuple(times)


@contextmanager
def _pinned_thread(device: Device) -> Iterator[Callable[..., Any]]:
    """A function that calls others on a thread pinned to the device's CPUs.

    Linux pins a thread and what it starts, not a process: a pool that the runtime already keeps for the caller's thread
    would stay where it was, and pinning the caller would pin whatever else it starts. A thread of its own does neither.
    """
    cpus = device.cpus()
    with ThreadPoolExecutor(1, initializer=lambda: cpus and os.sched_setaffinity(0, cpus)) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


@contextmanager
def _runtime_threads(device: Device) -> Iterator[None]:
    """torch's thread count is global to the process: set it while timing only. onnxruntime's is the session's."""
    if device.runtime != "torch":
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(device.threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---- runtimes: (device, source) -> (run, the precision that the runtime says it uses)


def load_torch(device: Device, source: Source) -> tuple[Run, str]:
    import torch

    if not isinstance(source, tuple) or len(source) != 2 or not callable(source[0]):
        raise TypeError(f"{device.name} times (module, inputs), not {source!r}")
    module, inputs = source
    inputs = tuple(inputs)
    for x in inputs:
        if len(x) != device.batch:
            raise ValueError(f"{device.name}: batch {device.batch}, but an input has {len(x)}: {tuple(x.shape)}")
    if isinstance(module, torch.nn.Module):
        if module.training:
            raise ValueError(f"{device.name}: the module is in train mode; call its eval() first")
        module = copy.deepcopy(module)
        if any(x.ndim == 4 for x in inputs):
            module = module.to(memory_format=torch.channels_last)
            inputs = tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)
        dtypes = {p.dtype for p in module.parameters()}
    else:
        dtypes = {x.dtype for x in inputs if x.is_floating_point()}
    precisions = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    if torch.get_float32_matmul_precision() == "medium":  # lets matrix products run in bfloat16
        precisions.add("bfloat16")

    def run() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return run, "+".join(sorted(precisions)) or "unknown"


def load_onnxruntime(device: Device, source: Source) -> tuple[Run, str]:
    path = Path(source)
    if (path / PLAN).is_file():
        return load_plan(device, path)
    session = onnx_session(device, path)
    rng = np.random.default_rng(0)
    feeds = {}
    for x in session.get_inputs():
        if not x.shape or (isinstance(x.shape[0], int) and x.shape[0] != device.batch):
            raise ValueError(f"{device.name}: batch {device.batch}, but {path} has the input {x.name} {x.shape}")
        if any(not isinstance(size, int) for size in x.shape[1:]):
            raise ValueError(f"{device.name}: {path} leaves the size of input {x.name} open: {x.shape}")
        if x.type not in ONNX_TYPES:
            raise ValueError(f"{device.name}: {path} has the input {x.name} of {x.type}, not {list(ONNX_TYPES)}")
        values = rng.standard_normal((device.batch, *x.shape[1:]))
        floating = np.issubdtype(ONNX_TYPES[x.type], np.floating)
        feeds[x.name] = (values if floating else np.ones_like(values)).astype(ONNX_TYPES[x.type])
    return lambda: session.run(None, feeds), onnx_precision(path)


def onnx_session(device: Device, path: Path) -> Any:
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"{device.name} times an .onnx file, and {path} is not there")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = device.threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load_plan(device: Device, folder: Path) -> tuple[Run, str]:
    """A network in two files, as a folder's run.json says: `first` runs once, `then` runs `steps` times.

    The outputs of `first` are inputs of `then`, each item `copies` times; an output `new_X` of `then` is the next
    step's input X. `inputs` of `first` and `start`, the other inputs of the first step, are shapes, filled with zeros
    or, for integers, with `integers`.
    """
    plan = json.loads((folder / PLAN).read_text())
    files = [folder / f"{plan[part]}.onnx" for part in ("first", "then")]
    first, then = (onnx_session(device, path) for path in files)
    types = {
        x.name: ONNX_TYPES[x.type] for session in (first, then) for x in session.get_inputs() if x.type in ONNX_TYPES
    }

    def filled(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
        integer = {name: np.issubdtype(types[name], np.integer) for name in shapes}
        return {name: np.full(s, plan["integers"] if integer[name] else 0, types[name]) for name, s in shapes.items()}

    inputs, start = filled(plan["inputs"]), filled(plan["start"])
    for name, x in inputs.items():
        if len(x) != device.batch:
            raise ValueError(f"{device.name}: batch {device.batch}, but {folder} is for {name} of {x.shape}")
    made = [x.name for x in first.get_outputs()]
    returned = [x.name.removeprefix("new_") for x in then.get_outputs()]
    wanted = {x.name for x in then.get_inputs()}

    def run() -> Any:
        outputs = zip(made, first.run(None, inputs))
        state = start | {name: np.repeat(x, plan["copies"], axis=0) for name, x in outputs}
        for _ in range(plan["steps"]):
            outputs = then.run(None, state)
            state.update((name, x) for name, x in zip(returned, outputs) if name in wanted)
        return outputs

    precisions = {part for path in files for part in onnx_precision(path).split("+")}
    return run, "+".join(sorted(precisions))


def onnx_precision(path: Path) -> str:
    """What the numbers of a file are: the types of its weights, inputs and outputs; int8 where a layer is quantized.

    onnxruntime on a CPU computes as the file says.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    types = {weight.data_type for weight in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    names = {onnx.TensorProto.DataType.Name(type).lower() for type in types}
    names = {"float32" if name == "float" else "float64" if name == "double" else name for name in names}
    found = names & {"float32", "float64", "float16", "bfloat16", "int8", "uint8"}
    if any("Quantize" in node.op_type or "Integer" in node.op_type or "QLinear" in node.op_type for node in graph.node):
        found.add("int8")
    return "+".join(sorted(found)) or "unknown"


ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}

RUNTIMES: dict[str, Callable[[Device, Source], tuple[Run, str]]] = {
    "torch": load_torch,
    "onnxruntime": load_onnxruntime,
}

DEVICES = {
    "torch": Device("torch", "torch"),
    "onnxruntime": Device("onnxruntime", "onnxruntime"),
}


def get_device(name: str) -> Device:
    """A known device by name; ValueError lists what there is, ImportError says what to install."""
    if name not in DEVICES:
        raise ValueError(f"no device {name!r}; there are {', '.join(sorted(DEVICES))}")
    runtime_version(DEVICES[name].runtime)
    return DEVICES[name]


def runtime_version(runtime: str) -> str:
    """The installed version of a runtime, without importing it."""
    try:
        return importlib.metadata.version(runtime)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"the runtime {runtime} is not installed: pip install {runtime}") from None


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
