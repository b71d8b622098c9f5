"""Engines: where networks are loaded and timed, so that what one of them breaks breaks nothing else."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from predictors.devices import Device
from predictors.runtimes import Run, Source

# Errors of what was asked for, not of the network.
USERS_ERRORS = (ValueError, TypeError, OSError, ImportError)


class NetworkError(Exception):
    """A network cannot be timed: what its runtime raised, or how it ended its process."""


class Worker:
    """The loaded networks of a device, in whatever thread, process or machine it is made."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.runs: dict[str, Run] = {}

    def load(self, key: str, source: Source) -> None:
        """Load a network, and run it once, since that allocates."""
        with runtime_threads(self.device):
            run = self.device.load(source)
            run()
        self.runs[key] = run

    def drop(self, key: str) -> None:
        self.runs.pop(key, None)

    def time(self, key: str) -> tuple[float, ...]:
        """The times of `device.runs` runs in ms, after `device.warmup` unrecorded ones."""
        device, run, times = self.device, self.runs[key], []
        evict = cache_evictor() if device.protocol == "cold" else None
        collects = gc.isenabled()
        gc.disable()
        try:
            with runtime_threads(device):
                for _ in range(device.warmup):
                    run()
                for _ in range(device.runs):
                    if evict is not None:
                        evict()
                    start = time.perf_counter_ns()
                    run()
                    times.append((time.perf_counter_ns() - start) / 1e6)
        finally:
            if collects:
                gc.enable()
        return tuple(times)

    def memory(self, source: Source) -> int:
        """By how many bytes this process grows at most while it loads a network and runs it once (Linux).

        Meant for a process that has not done so before; the runtime is imported first, and does not count.
        """
        if not (forget := Path("/proc/self/clear_refs")).is_file():
            raise OSError("how much memory a network takes is only told on Linux")
        self.device.import_runtime()
        gc.collect()
        forget.write_text("5")  # the peak is that from now on
        before = resident("VmRSS")
        self.load("", source)
        return resident("VmHWM") - before


def resident(field: str) -> int:
    """The bytes of this process that are in memory now (VmRSS), or were at most (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


Call = Callable[..., Any]  # call("load" | "drop" | "time", *arguments) of a worker


@contextmanager
def thread_engine(device: Device) -> Iterator[Call]:
    """A worker on a pinned thread of this process.

    Linux pins a thread and what it starts, not a process: a pool that the runtime already keeps for the caller's thread
    would stay where it was, and pinning the caller would pin whatever else it starts. A thread of its own does neither.
    What crashes the runtime ends this process; `process_engine` survives it.
    """
    cpus, worker = device.cpus(), Worker(device)

    def call(method: str, *arguments: Any) -> Any:
        try:
            return pool.submit(getattr(worker, method), *arguments).result()
        except USERS_ERRORS:
            raise
        except Exception as error:
            raise NetworkError(f"{type(error).__name__}: {error}") from error

    with ThreadPoolExecutor(1, initializer=lambda: cpus and os.sched_setaffinity(0, cpus)) as pool:
        yield call


@contextmanager
def process_engine(device: Device, limit: float = 300.0) -> Iterator[Call]:
    """A worker in a pinned process of its own, replaced by a fresh one, without networks, whenever a call fails.

    A call that takes longer than `limit` seconds fails. The process may use as much memory as was free when it began,
    and is the first that the system ends when memory runs out. Sources must be picklable.
    """
    worker: _Process | None = None

    def call(method: str, *arguments: Any) -> Any:
        nonlocal worker
        if worker is None:
            worker = _Process(device)
        try:
            return worker.call(limit, method, *arguments)
        except BaseException:
            worker.end()
            worker = None
            raise

    try:
        yield call
    finally:
        if worker is not None:
            worker.end()


def peak_memory(device: Device, source: Source) -> int:
    """The bytes by which a fresh process, with the runtime imported, grows at most that loads a network and runs it."""
    with process_engine(device) as call:
        return call("memory", source)


ENGINES = {"thread": thread_engine, "process": process_engine}


class _Process:
    """A process that serves the calls of one worker."""

    def __init__(self, device: Device) -> None:
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from predictors.engines import serve; serve({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()])
        self._connection = Connection(ours.detach())
        self._connection.send_bytes(pickle.dumps(device))

    def call(self, limit: float, method: str, *arguments: Any) -> Any:
        # Plain pickle: torch would have multiprocessing's share the memory of tensors.
        request = pickle.dumps((method, arguments))
        try:
            self._connection.send_bytes(request)
            if not self._connection.poll(limit):
                raise NetworkError(f"no answer in {limit:g} s")
            answer = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            raise NetworkError(f"its process {ended(self._process.wait())}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()


def serve(descriptor: int) -> None:
    """Answer the calls that come through a socket, until it closes: what runs in a process engine's process."""
    connection = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the driver ends this process
    device = pickle.loads(connection.recv_bytes())
    if cpus := device.cpus():
        os.sched_setaffinity(0, cpus)
    limit_memory()
    worker = Worker(device)
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        try:
            method, arguments = pickle.loads(request)
            answer = getattr(worker, method)(*arguments)
        except USERS_ERRORS as error:
            answer = next(cls for cls in USERS_ERRORS if isinstance(error, cls))(str(error))
        except Exception as error:
            answer = NetworkError(f"{type(error).__name__}: {error}")
        connection.send_bytes(pickle.dumps(answer))


def limit_memory() -> None:
    """Let this process use no more memory than is free now, and be the first to go if that does not hold (Linux)."""
    try:
        import resource

        free = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
        limit = 1024 * int(free[0].split()[1])
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
        Path("/proc/self/oom_score_adj").write_text("1000")
    except (ImportError, OSError, IndexError):
        return  # no Linux


def ended(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}" + (", which is how the system frees memory" if name == "SIGKILL" else "")


@contextmanager
def runtime_threads(device: Device) -> Iterator[None]:
    """torch's thread count is global to the process: set it while timing only. Others' are the session's.

    Denormals are flushed on the calling thread, which is the worker's own.
    """
    if not device.times_modules:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(device.threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cache_evictor() -> Call:
    """A function that reads and writes twice as many bytes as the largest cache holds."""
    import numpy as np

    buffer = np.zeros(2 * largest_cache(), np.uint8)
    return lambda: np.add(buffer, 1, out=buffer)


def largest_cache() -> int:
    """The bytes of the processor's largest cache, or 64 MiB where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1024, "M": 1024**2}[text[-1]])
    return max(sizes, default=64 * 1024**2)
