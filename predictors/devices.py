"""Devices: a runtime on this machine, and how its latency is timed."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import platform
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import yaml

from predictors.machine import cpu_model, fixed_addresses
from predictors.runtimes import RUNTIMES
from predictors.runtimes.session import Run, RunPart, Source
from predictors.runtimes.torch import gpu_name
from predictors.statistics import STATISTICS
from predictors.store import digest
from supernet.values import did_you_mean, unwrapped

UNIDENTIFYING = ("name", "statistic", "sessions", "tries")  # fields that change no measurement
LEAST_ROUNDS, LEAST_RUNS = 3, 20  # of a network; the runs in all rounds together


@dataclasses.dataclass(frozen=True)
class Device:
    """A named runtime on this machine, and the protocol by which networks are timed on it. All of it is recorded.

    Args:
        name: of the device.
        runtime: a key of `RUNTIMES`.
        precision: float32, bfloat16 or int8, as far as the runtime has them.
        place: cpu; or cuda, where torch computes on the GPU, without TF32, and a run ends when the GPU is done.
        threads: that a network runs on.
        affinity: the CPUs that it may run on; None takes the first `threads` that this process may use.
        batch: items of one inference.
        warmup: unrecorded runs at the start of a round.
        rounds: in which a network is timed, other networks in between. Samples for predictors are timed in half as many
            rounds, in several sessions.
        runs: recorded runs of a round.
        spacing: seconds between the starts of two rounds, at least.
        protocol: tight, a loop with warm caches; or cold, where other data fill the caches before each run, as when a
            program does something else in between. A small network then takes up to 3 times as long.
        statistic: the one that a budget is judged on: min, p10, median or p90.
        sessions: in which a network is timed that a predictor learns from.
        tries: measurements of an exported file; if all of them are disturbed, the least disturbed one is accepted.
    """

    name: str
    runtime: str
    precision: str = "float32"
    place: str = "cpu"
    threads: int = 1
    affinity: tuple[int, ...] | None = None
    batch: int = 1
    warmup: int = 3
    rounds: int = 8
    runs: int = 8
    spacing: float = 0.25
    protocol: str = "tight"
    statistic: str = "median"
    sessions: int = 8
    tries: int = 3

    def __post_init__(self) -> None:
        if self.affinity is not None:
            object.__setattr__(self, "affinity", tuple(self.affinity))
        kinds = {"str": str, "int": int, "float": (int, float)}  # a description may come from a file
        for field in dataclasses.fields(self):
            value = unwrapped(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if not isinstance(value, kinds.get(field.type, object)) or isinstance(value, bool):
                raise ValueError(f"{self.name}: {field.name} = {value!r} is not of the type {field.type}")
        for field, known in (
            ("runtime", tuple(RUNTIMES)),
            ("precision", RUNTIMES[self.runtime].precisions if self.runtime in RUNTIMES else ()),
            ("place", RUNTIMES[self.runtime].places if self.runtime in RUNTIMES else ()),
            ("protocol", ("tight", "cold") if self.place == "cpu" else ("tight",)),
            ("statistic", tuple(STATISTICS)),
        ):
            if getattr(self, field) not in known:
                value = getattr(self, field)
                raise ValueError(f"{self.name}: {field} = {value!r} is not one of {', '.join(known)}")
        if min(self.threads, self.batch, self.sessions, self.tries) < 1:
            raise ValueError(f"{self.name}: threads, batch, sessions and tries must be at least 1: {self}")
        if self.warmup < 0 or not 0 <= self.spacing < math.inf:
            raise ValueError(f"{self.name}: warmup and spacing must be at least 0: {self}")
        if self.rounds < LEAST_ROUNDS or self.runs * self.rounds < LEAST_RUNS:
            raise ValueError(
                f"{self.name}: rounds = {self.rounds} and runs = {self.runs}: give at least {LEAST_ROUNDS} rounds, and"
                f" {LEAST_RUNS} runs in all of them together"
            )

    def fingerprint(self) -> dict[str, Any]:
        """The machine, the runtime's version, the CPUs in use, and whether timing processes have `fixed_addresses`.

        ImportError if the runtime is not installed.
        """
        with fixed_addresses() as fixed:
            layout = "fixed" if fixed else "random"
        return {
            "cpu": cpu_model(),
            "machine": platform.machine(),
            "system": platform.system(),
            "version": RUNTIMES[self.runtime].version(),
            "layout": layout,
            "cpus": list(self.cpus()),
        } | ({"gpu": gpu_name()} if self.place == "cuda" else {})

    def cpus(self) -> tuple[int, ...]:
        """The CPUs that measuring is pinned to; empty where the system cannot pin."""
        if not hasattr(os, "sched_getaffinity"):
            if self.affinity is not None:
                raise ValueError(
                    f"{self.name}: affinity = {self.affinity}: {platform.system()} cannot pin processes to CPUs"
                )
            return ()
        allowed = sorted(os.sched_getaffinity(0))
        cpus = tuple(allowed[: self.threads]) if self.affinity is None else self.affinity
        if len(cpus) < self.threads or not set(cpus) <= set(allowed):
            raise ValueError(f"{self.name}: {self.threads} threads need as many CPUs: {cpus} of the allowed {allowed}")
        return cpus

    @property
    def format(self) -> str | None:
        """The name of the export format of the files that the device times; None where it times modules."""
        return RUNTIMES[self.runtime].formats.get(self.precision)

    @property
    def times_modules(self) -> bool:
        """Whether the device times (module, inputs) of torch rather than files."""
        return not RUNTIMES[self.runtime].formats

    @property
    def id(self) -> str:
        """A hash of all that changes a latency: latencies of equal ids may be compared and reused.

        The name, the statistic (all are recorded), the numbers of sessions and tries, and the CPUs that `affinity` =
        None resolved to are left out.
        Machines that differ in properties that their systems do not report, such as the clock of a virtual machine,
        need separate stores.
        """
        return self.id_on(self.fingerprint())

    def id_on(self, fingerprint: Mapping[str, Any]) -> str:
        """The `id` on a machine with this fingerprint."""
        kept = {k: v for k, v in dataclasses.asdict(self).items() if k not in UNIDENTIFYING}
        return digest(kept | {k: v for k, v in fingerprint.items() if k != "cpus"})

    def load(self, source: Source) -> Run:
        """`source` made ready to run: a function that does one inference on fixed inputs.

        torch takes (module, inputs) and runs a copy of the module, channels_last if an input is B, C, H, W. The other
        runtimes take the path of a file, or of a folder with a plan (`load_plan`), and make their inputs (batch first).
        ValueError if the precision or the batch is not this device's. Only `time_networks` pins threads: the time of
        a run by other means is not a measurement.
        """
        return self._checked(RUNTIMES[self.runtime].load, source)

    def open(self, source: Source) -> RunPart:
        """A function that runs a file, or those of a folder with a plan, on given inputs, in this runtime.

        It takes the file's name without its suffix and {input: array}, and returns {output: array}. ValueError for a
        runtime that does not load files.
        """
        if RUNTIMES[self.runtime].open is None:
            raise ValueError(f"{self.name}: {self.runtime} opens no files")
        return self._checked(RUNTIMES[self.runtime].open, source)

    def check_memory(self) -> None:
        """Raise ValueError where the memory that a network needs cannot be measured."""
        if self.place == "cuda":
            raise ValueError(f"{self.name}: the memory that a network needs on a GPU cannot be measured")

    def import_runtime(self) -> None:
        """Import what loading a network in this runtime imports."""
        runtime = RUNTIMES[self.runtime]
        for module in runtime.modules or (runtime.package,):
            importlib.import_module(module)

    def _checked(self, make: Callable[..., tuple[Any, str]], source: Source) -> Any:
        """The run that `make` returns, if the runtime reports this device's precision."""
        RUNTIMES[self.runtime].version()
        keywords = {name: getattr(self, name) for name in ("threads", "precision", "batch", "place")}
        try:
            run, precision = make(source, **keywords)
        except (ValueError, TypeError) as error:
            raise (ValueError if isinstance(error, ValueError) else TypeError)(f"{self.name}: {error}") from error
        if precision != self.precision:
            raise ValueError(f"{self.name}: measures {self.precision}, but {self.runtime} runs this in {precision}")
        return run


DEVICES = {
    device.name: device
    for device in (
        Device("torch", "torch"),
        Device("torch-cuda", "torch", place="cuda"),
        Device("torch-compile", "torch-compile"),
        Device("onnxruntime", "onnxruntime"),
        Device("onnxruntime-int8", "onnxruntime", "int8"),
        Device("openvino", "openvino"),
        Device("openvino-bf16", "openvino", "bfloat16"),
        Device("openvino-int8", "openvino", "int8"),
        Device("executorch", "executorch"),
        Device("executorch-int8", "executorch", "int8"),
    )
}


def get_device(name: str | Path | Device) -> Device:
    """A device by its name, or by the YAML or JSON file that describes it; a Device is returned as it is.

    Names are those of DEVICES, and of the entry points `supernet.devices` of installed packages, each a Device or a
    function that makes one. A package may add its runtime to `predictors.runtimes.RUNTIMES`; its functions must be in a
    module that the timing process can import. ValueError lists the known names; ImportError says what to install.
    """
    if isinstance(name, Device):
        device = name
    elif not isinstance(name, (str, Path)):
        raise TypeError(f"device = {name!r}: give a name, the path of a file or a Device")
    elif Path(name).suffix in (".yaml", ".yml", ".json"):
        device = read_device(Path(name))
    elif str(name) in (known := known_devices()):
        device = known[str(name)]()
    else:
        hint = did_you_mean(str(name), known) or "."
        raise ValueError(f"no device {str(name)!r}{hint} There are {', '.join(sorted(known))}, or a .yaml file of one")
    RUNTIMES[device.runtime].version()
    return device


def known_devices() -> dict[str, Callable[[], Device]]:
    """{name: a function that returns the device}."""
    known: dict[str, Callable[[], Device]] = {
        point.name: partial(plugged_device, point) for point in entry_points(group="supernet.devices")
    }
    return known | {name: partial(DEVICES.get, name) for name in DEVICES}


def plugged_device(point: EntryPoint) -> Device:
    """The device of another package's entry point."""
    made = point.load()
    device = made() if callable(made) else made
    if not isinstance(device, Device):
        raise ValueError(f"the entry point {point.name} = {point.value} is a {type(device).__name__}, not a Device")
    return device


def read_device(path: Path) -> Device:
    """The device that a YAML or JSON file describes by its fields; ValueError if it does not."""
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a device: {error}") from error
    fields = [field.name for field in dataclasses.fields(Device)]
    if not isinstance(values, dict) or not {"name", "runtime"} <= values.keys():
        raise ValueError(f"{path}: a device has at least a name and a runtime ({', '.join(RUNTIMES)})")
    if unknown := sorted(map(str, values.keys() - set(fields))):
        raise ValueError(f"{path}: a device has no field {', '.join(unknown)}; it has {', '.join(fields)}")
    try:
        return Device(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
