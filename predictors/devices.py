"""Devices: what a latency is measured on, and how. A device times files (or, for torch, a module with its inputs)."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import yaml

from predictors.runtimes import RUNTIMES, Run, RunPart, Source, gpu_name
from predictors.store import digest
from supernet.values import unwrapped

STATISTICS = {"min": 0, "p10": 10, "median": 50, "p90": 90}  # as percentiles
LEAST_ROUNDS, LEAST_RUNS = 3, 20  # of a network, the runs in all rounds together
ADDR_NO_RANDOMIZE = 0x0040000  # of Linux's personality(2)
# Of /proc/cpuinfo, what is the same for all cores of a kind; ARM tells no name.
CPU_FIELDS = ("model name", "cpu family", "model", "stepping")
CPU_FIELDS += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")


@dataclasses.dataclass(frozen=True)
class Device:
    """A named description of a runtime on this machine and of how it is timed; everything in it is recorded.

    A network is loaded and timed in `rounds` that start at least `spacing` seconds apart, other networks in between; in
    every round it runs `warmup` times unrecorded, then `runs` times. What predictors learn from is timed in half as
    many rounds, on several occasions. With the protocol "tight" that is a loop with warm caches; with "cold" the caches
    are filled with other data before each of the runs, as by a program that does something else in between: a small
    network then takes up to 3 times as long. `affinity` are the CPUs that it may run on; None takes the first `threads`
    that this process may use. `statistic` is the one that a budget is judged on. In the `place` "cuda" torch computes
    on the GPU, without TF32, and a run ends when the GPU is done.
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
                raise ValueError(f"{self.name}: {field} = {getattr(self, field)!r} is not one of {known}")
        if min(self.threads, self.batch) < 1 or self.warmup < 0 or not 0 <= self.spacing < math.inf:
            raise ValueError(f"{self.name}: threads and batch are at least 1, warmup and spacing at least 0: {self}")
        if self.rounds < LEAST_ROUNDS or self.runs * self.rounds < LEAST_RUNS:
            least = f"{LEAST_ROUNDS} rounds and {LEAST_RUNS} runs in all"
            raise ValueError(f"{self.name}: at least {least}, not {self.rounds} of {self.runs}")

    def fingerprint(self) -> dict[str, Any]:
        """The machine, the runtime's version, the CPUs in use and whether a process that times has a `fixed_layout`, as
        with every engine but "thread".

        A runtime that is not installed is an ImportError.
        """
        with fixed_layout() as fixed:
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
                raise ValueError(f"{self.name}: {platform.system()} cannot pin to the CPUs {self.affinity}")
            return ()
        allowed = sorted(os.sched_getaffinity(0))
        cpus = tuple(allowed[: self.threads]) if self.affinity is None else self.affinity
        if len(cpus) < self.threads or not set(cpus) <= set(allowed):
            raise ValueError(f"{self.name}: {self.threads} threads on the CPUs {cpus}; this process may use {allowed}")
        return cpus

    @property
    def times_modules(self) -> bool:
        """Whether it times (module, inputs) of torch rather than files."""
        return RUNTIMES[self.runtime].files is None

    @property
    def id(self) -> str:
        """A hash of all that changes the number: latencies of equal ids may be compared and reused.

        Left out are the name, the statistic (all are kept) and which CPUs `affinity` = None came to. Machines that
        differ in what their systems do not tell, as the clock of a virtual one, want a store each.
        """
        return self.id_on(self.fingerprint())

    def id_on(self, fingerprint: Mapping[str, Any]) -> str:
        """The `id` on a machine with this fingerprint."""
        kept = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "statistic")}
        return digest(kept | {k: v for k, v in fingerprint.items() if k != "cpus"})

    def load(self, source: Source) -> Run:
        """`source` made ready to run: a function that does one inference on fixed inputs.

        torch takes (module, inputs) and runs a copy of the module, channels_last if an input is B, C, H, W; the others
        take the path of a file, or of a folder with a plan (`load_plan`), and make their inputs (batch first).
        ValueError if precision or batch is not this device's. Only `measure` pins threads: a run from elsewhere is not
        a measurement.
        """
        return self._made(RUNTIMES[self.runtime].load, source)

    def open(self, source: Source) -> RunPart:
        """A function that runs a file, or those of a folder with a plan, on inputs that are given, in this runtime.

        It takes the file's name without its suffix and {input: array}, and returns {output: array}. A runtime that
        has no files raises ValueError.
        """
        if RUNTIMES[self.runtime].open is None:
            raise ValueError(f"{self.name}: {self.runtime} opens no files")
        return self._made(RUNTIMES[self.runtime].open, source)

    def check_tells_memory(self) -> None:
        """ValueError where it is not told how much memory a network takes."""
        if self.place == "cuda":
            raise ValueError(f"{self.name}: how much memory a network takes of a GPU is not told")

    def import_runtime(self) -> None:
        """Import of the runtime what loading a network would."""
        runtime = RUNTIMES[self.runtime]
        for module in runtime.modules or (runtime.package,):
            importlib.import_module(module)

    def _made(self, make: Callable[[Device, Source], tuple[Any, str]], source: Source) -> Any:
        RUNTIMES[self.runtime].version()
        run, precision = make(self, source)
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
    """A device by its name, or by the YAML or JSON file that describes it; a Device is given back.

    Names are those of DEVICES, and of the entry points `supernet.devices` of installed packages, each a Device or a
    function that makes one; a package may add its runtime to `predictors.runtimes.RUNTIMES`, its functions those of a
    module that the process which times can import. ValueError lists what there is, ImportError says what to install.
    """
    if isinstance(name, Device):
        device = name
    elif not isinstance(name, (str, Path)):
        raise TypeError(f"device = {name!r}: a name, a file of one or a Device is expected")
    elif Path(name).suffix in (".yaml", ".yml", ".json"):
        device = read_device(Path(name))
    elif str(name) in (known := known_devices()):
        device = known[str(name)]()
    else:
        raise ValueError(f"no device {str(name)!r}; there are {', '.join(sorted(known))}, or a .yaml file of one")
    RUNTIMES[device.runtime].version()
    return device


def known_devices() -> dict[str, Callable[[], Device]]:
    """By name, a function that gives the device."""
    known: dict[str, Callable[[], Device]] = {
        point.name: partial(plugged_device, point) for point in entry_points(group="supernet.devices")
    }
    return known | {name: partial(DEVICES.get, name) for name in DEVICES}


def plugged_device(point: EntryPoint) -> Device:
    """The device of another package's entry point."""
    made = point.load()
    device = made() if callable(made) else made
    if not isinstance(device, Device):
        raise ValueError(f"the entry point {point.name} = {point.value} gives a {type(device).__name__}, and no Device")
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


@contextmanager
def fixed_layout(fixed: bool = True) -> Iterator[bool]:
    """Processes that are started meanwhile get no random addresses, or not `fixed` get them, whatever this process has;
    yields whether the system, Linux alone and not in every container, lets that be.

    Where in its memory a process has its code and its data changes what a network takes, in some runtimes, and that of
    one network otherwise than that of another (Mytkowicz et al., ASPLOS 2009; `benchmarks/layout.py`): at random places
    a second process would contradict the first. What is left is the bias of one layout out of many, against which
    `measure` has `fresh`.
    """
    before = personality()
    wanted = before | ADDR_NO_RANDOMIZE if fixed else before & ~ADDR_NO_RANDOMIZE
    done = before >= 0 and personality(wanted) >= 0
    try:
        yield done
    finally:
        if done:
            personality(before)


def has_fixed_layout() -> bool:
    """Whether this process was started in a `fixed_layout`."""
    return bool(max(personality(), 0) & ADDR_NO_RANDOMIZE)


def personality(new: int = 0xFFFFFFFF) -> int:
    """What Linux's personality(2) of this thread was, which the processes that it starts inherit, and is to be, if
    given; negative where it is not told."""
    try:
        return ctypes.CDLL(None).personality(ctypes.c_ulong(new))
    except (AttributeError, TypeError):  # another system
        return -1


def cpu_model() -> str:
    """What the system tells of its kinds of cores: the processor's name and numbers, and on ARM that of the board."""
    told = []
    try:
        for core in Path("/proc/cpuinfo").read_text().split("\n\n"):
            fields = [[part.strip() for part in line.split(":", 1)] for line in core.splitlines() if ":" in line]
            told.append(", ".join(f"{name} {value}" for name, value in fields if name in CPU_FIELDS))
        told.append(Path("/proc/device-tree/model").read_text().strip("\0"))
    except OSError:  # another system, or no board
        pass
    if platform.system() == "Darwin":
        sysctl = ["sysctl", "-n", "machdep.cpu.brand_string"]
        told.append(subprocess.run(sysctl, capture_output=True, text=True, check=True).stdout.strip())
    return "; ".join(dict.fromkeys(filter(None, told))) or platform.processor() or platform.machine()
