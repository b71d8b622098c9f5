"""Engines: where networks are loaded and timed, so that what one of them breaks breaks nothing else."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from predictors.devices import Device
from predictors.machine import (
    alone_here,
    describe_status,
    fixed_addresses,
    has_fixed_addresses,
    largest_cache,
    limit_memory,
    resident,
)
from predictors.runtimes import RUNTIMES
from predictors.runtimes.session import Run, RunPart, Source

USERS_ERRORS = (ValueError, TypeError, OSError, ImportError)  # of the request, not of the network
Call = Callable[..., Any]  # call("load" | "drop" | "time" | ..., *arguments) of a worker; "end" ends its process
# Where networks run: context managers (device, fixed=) that yield a Call, or the "module:function" of one.
ENGINES: dict[str, Any] = {
    "thread": "predictors.engines:thread_engine",
    "process": "predictors.engines:process_engine",
    "ray": "predictors.ray:ray_engine",
}


def open_engine(name: str, device: Device, fixed: bool = True) -> AbstractContextManager[Call]:
    """An engine by its name, with `fixed_addresses` or random ones; ValueError lists the engines there are."""
    if name not in ENGINES:
        raise ValueError(f"engine: {name!r} is not one of {', '.join(ENGINES)}")
    engine = ENGINES[name]
    if isinstance(engine, str):
        module, _, function = engine.partition(":")
        engine = getattr(import_module(module), function)
    return engine(device, fixed=fixed)


class NetworkError(Exception):
    """A network cannot be timed: the error of its runtime, or how it ended its process."""


class Worker:
    """Loads and runs the networks of a device, in the thread, process or machine in which it is made."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.runs: dict[str, Run] = {}
        self.parts: RunPart | None = None

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the machine that this worker runs on."""
        return self.device.fingerprint() | {"layout": "fixed" if has_fixed_addresses() else "random"}

    def load(self, key: str, source: Source) -> None:
        """Load a network and run it once, since the first run allocates memory."""
        with runtime_threads(self.device):
            run = self.device.load(source)
            with networks_errors():
                run()
        self.runs[key] = run

    def drop(self, key: str) -> None:
        self.runs.pop(key, None)

    def open(self, source: Source) -> None:
        """Open a network's files, for `run`."""
        self.parts = self.device.open(source)

    def run(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a file of the network that was opened."""
        return self.parts(name, feeds)

    def time(self, key: str) -> tuple[float, ...]:
        """The times of `device.runs` runs in ms, after `device.warmup` unrecorded ones."""
        device, run, times = self.device, self.runs[key], []
        evict = cache_evictor() if device.protocol == "cold" else None
        collects = gc.isenabled()
        gc.disable()
        try:
            with runtime_threads(device), networks_errors():
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
        """The peak growth of this process in bytes while it loads a network and runs it once (Linux).

        For a process that has not loaded a network before. The runtime is imported first, and does not count.
        """
        self.device.check_memory()
        if not (forget := Path("/proc/self/clear_refs")).is_file():
            raise OSError("the memory that a network needs can only be measured on Linux")
        self.device.import_runtime()
        gc.collect()
        forget.write_text("5")  # resets the peak
        before = resident("VmRSS")
        self.load("", source)
        return resident("VmHWM") - before


@contextmanager
def networks_errors() -> Iterator[None]:
    """Raise whatever a network raises while it runs as NetworkError, including an OSError for lack of memory."""
    try:
        yield
    except Exception as error:
        raise NetworkError(f"{type(error).__name__}: {error}") from error


def waiting_for(method: str) -> AbstractContextManager[None]:
    """The lock that a call waits for before its time limit starts, so that networks run one at a time."""
    return nullcontext() if method in ("fingerprint", "drop") else alone_here()


@contextmanager
def thread_engine(device: Device, fixed: bool = True) -> Iterator[Call]:
    """A worker on a pinned thread of this process; ValueError unless `fixed`.

    Linux pins a thread and the threads that it starts, not a process. The runtime may already have a thread pool for
    the caller's thread, which would stay unpinned; and pinning the caller would pin everything that it starts later.
    A network that crashes the runtime ends this process; `process_engine` survives it.
    """
    if not fixed:
        raise ValueError("the engine thread has the addresses of this process: choose the engine process or ray")
    cpus, worker = device.cpus(), Worker(device)

    def call(method: str, *arguments: Any) -> Any:
        try:
            with waiting_for(method):
                return pool.submit(getattr(worker, method), *arguments).result()
        except (NetworkError, *USERS_ERRORS):
            raise
        except Exception as error:
            raise NetworkError(f"{type(error).__name__}: {error}") from error

    with ThreadPoolExecutor(1, initializer=lambda: cpus and os.sched_setaffinity(0, cpus)) as pool:
        yield call


@contextmanager
def process_engine(device: Device, fixed: bool = True, limit: float = 300.0) -> Iterator[Call]:
    """A worker in a pinned process, which is replaced by a new one, without networks, whenever a call fails.

    With `fixed`, it has fixed addresses where the system allows; otherwise random ones, as other programs have, and
    new ones after call("end"). A call that takes longer than `limit` seconds fails. The process may use the memory that
    was free when it began, and is the first that the system kills when memory runs out. Its stderr is not shown; the
    last line is part of the error if it ends by itself. Sources must be picklable.
    """
    worker: _Process | None = None

    def call(method: str, *arguments: Any) -> Any:
        nonlocal worker
        if method == "end":
            if worker is not None:
                worker.end()
                worker = None
            return None
        if worker is None:
            worker = _Process(device, fixed)
        try:
            with waiting_for(method):
                return worker.call(limit, method, *arguments)
        except BaseException:
            worker.end()
            worker = None
            raise

    try:
        yield call
    finally:
        call("end")


def peak_memory(device: Device, source: Source, engine: str = "process") -> int:
    """The peak growth in bytes of a new process, with the runtime imported, that loads a network and runs it once."""
    with open_engine(engine, device) as call:
        return call("memory", source)


class _Process:
    """A process that serves the calls of one worker."""

    def __init__(self, device: Device, fixed: bool) -> None:
        unknown = f"{device.name}: the timing process cannot import the runtime {device.runtime}: put it in a module"
        try:
            runtime = pickle.dumps(RUNTIMES[device.runtime])
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"{unknown} ({error})") from error
        if b"__main__" in runtime:
            raise ValueError(unknown)
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from predictors.engines import serve; serve({theirs.fileno()})"
        # Runtimes log there, in every process; the last line may say why a process ended.
        self._stderr = tempfile.TemporaryFile()
        with theirs, fixed_addresses(fixed):
            # Its stdin is at an end when this process is.
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stderr=self._stderr,
            )
        self._connection = Connection(ours.detach())
        self._connection.send_bytes(pickle.dumps(device))
        self._connection.send_bytes(runtime)

    def call(self, limit: float, method: str, *arguments: Any) -> Any:
        # Plain pickle: torch would have multiprocessing's share the memory of tensors.
        request = pickle.dumps((method, arguments))
        try:
            self._connection.send_bytes(request)
            if not self._connection.poll(limit):
                raise NetworkError(f"no answer in {limit:g} s")
            answer = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            raise NetworkError(f"its process {describe_status(self._process.wait())}{self._last_words()}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _last_words(self) -> str:
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 500))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((f"; its last line: {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._stderr.close()


def serve(descriptor: int) -> None:
    """Answer calls through a socket until it closes: the main function of a process engine's process.

    The process also ends when its parent process ends.
    """
    connection = Connection(descriptor)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    for signum in (signal.SIGINT, signal.SIGTERM):  # may go to the whole group; the driver ends this process
        signal.signal(signum, signal.SIG_IGN)
    device = pickle.loads(connection.recv_bytes())
    if cpus := device.cpus():
        os.sched_setaffinity(0, cpus)
    limit_memory()
    try:
        RUNTIMES[device.runtime], broken = pickle.loads(connection.recv_bytes()), None  # it may be another package's
    except Exception as error:
        broken = ValueError(
            f"{device.name}: the timing process cannot import the runtime {device.runtime}: {type(error).__name__}:"
            f" {error}"
        )
    worker = Worker(device)
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        try:
            if broken is not None:
                raise broken
            method, arguments = pickle.loads(request)
            answer = getattr(worker, method)(*arguments)
        except NetworkError as error:
            answer = error
        except USERS_ERRORS as error:
            answer = next(cls for cls in USERS_ERRORS if isinstance(error, cls))(str(error))
        except Exception as error:
            answer = NetworkError(f"{type(error).__name__}: {error}")
        connection.send_bytes(pickle.dumps(answer))


def end_with_stdin() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


@contextmanager
def runtime_threads(device: Device) -> Iterator[None]:
    """Set torch's thread count, and float32 without TF32 on GPUs, while networks run. Both settings are global.

    Other runtimes have the thread count in their session. Denormals are flushed on the calling thread, which is the
    worker's own.
    """
    if not device.times_modules:
        yield
        return
    import torch

    threads, rounds = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(device.threads)
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = rounds


def cache_evictor() -> Callable[[], Any]:
    """A function that reads and writes twice the size of the largest cache."""
    buffer = np.zeros(2 * largest_cache(), np.uint8)
    return lambda: np.add(buffer, 1, out=buffer)
