"""Devices: what a latency is measured on, and how. A device times files (or, for torch, a module with its inputs)."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

from predictors.runtimes import RUNTIMES, Run, Source
from predictors.store import digest

STATISTICS = {"p10": 10, "median": 50, "p90": 90}  # as percentiles


@dataclasses.dataclass(frozen=True)
class Device:
    """A named description of a runtime on this machine and of how it is timed; everything in it is recorded.

    A network is loaded once and timed in `rounds` that start at least `spacing` seconds apart, other networks in
    between; in every round it runs `warmup` times unrecorded, then `runs` times. With the protocol "tight" that is a
    loop with warm caches; with "cold" the caches are filled with other data before each of the runs, as by a program
    that does something else in between: a small network then takes up to 3 times as long. `affinity` are the CPUs that
    it may run on; None takes the first `threads` that this process may use. `statistic` is the one that a budget is
    judged on.
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
            ("precision", RUNTIMES[self.runtime].precisions if self.runtime in RUNTIMES else ()),
            ("protocol", ("tight", "cold")),
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
            "version": RUNTIMES[self.runtime].version(),
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
    def times_modules(self) -> bool:
        """Whether it times (module, inputs) of torch rather than files."""
        return RUNTIMES[self.runtime].package == "torch"

    @property
    def id(self) -> str:
        """A hash of all that changes the number: latencies of equal ids may be compared and reused.

        Left out are the name, the statistic (all are kept) and which CPUs `affinity` = None came to.
        """
        kept = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "statistic")}
        return digest(kept | {k: v for k, v in self.fingerprint().items() if k != "cpus"})

    def load(self, source: Source) -> Run:
        """`source` made ready to run: a function that does one inference on fixed inputs.

        torch takes (module, inputs) and runs a copy of the module, channels_last if an input is B, C, H, W; the others
        take the path of a file, or of a folder with a plan (`load_plan`), and make their inputs (batch first).
        ValueError if precision or batch is not this device's. Only `measure` pins threads: a run from elsewhere is not
        a measurement.
        """
        RUNTIMES[self.runtime].version()
        run, precision = RUNTIMES[self.runtime].load(self, source)
        if precision != self.precision:
            raise ValueError(f"{self.name}: measures {self.precision}, but {self.runtime} runs this in {precision}")
        return run


DEVICES = {
    device.name: device
    for device in (
        Device("torch", "torch"),
        Device("torch-compile", "torch-compile"),
        Device("onnxruntime", "onnxruntime"),
        Device("onnxruntime-int8", "onnxruntime", "int8"),
        Device("openvino", "openvino"),
        Device("openvino-bf16", "openvino", "bfloat16"),
        Device("openvino-int8", "openvino", "int8"),
    )
}


def get_device(name: str) -> Device:
    """A known device by name; ValueError lists what there is, ImportError says what to install."""
    if name not in DEVICES:
        raise ValueError(f"no device {name!r}; there are {', '.join(sorted(DEVICES))}")
    RUNTIMES[DEVICES[name].runtime].version()
    return DEVICES[name]


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
