"""Engines: where networks are loaded and timed, so that what one of them breaks breaks nothing else."""

from __future__ import annotations

import dataclasses
import gc
import glob
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
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from predictors.devices import Device, fixed_layout, has_fixed_layout
from predictors.runtimes import RUNTIMES, Run, RunPart, Runtime, Source

# Errors of what was asked for, not of the network.
USERS_ERRORS = (ValueError, TypeError, OSError, ImportError)


class NetworkError(Exception):
    """A network cannot be timed: what its runtime raised, or how it ended its process."""


class Worker:
    """The loaded networks of a device, in whatever thread, process or machine it is made."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.runs: dict[str, Run] = {}
        self.parts: RunPart | None = None

    def fingerprint(self) -> dict[str, Any]:
        """The machine that this is, as the device sees it."""
        return self.device.fingerprint() | {"layout": "fixed" if has_fixed_layout() else "random"}

    def load(self, key: str, source: Source) -> None:
        """Load a network, and run it once, since that allocates."""
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
        """By how many bytes this process grows at most while it loads a network and runs it once (Linux).

        Meant for a process that has not done so before; the runtime is imported first, and does not count.
        """
        self.device.check_tells_memory()
        if not (forget := Path("/proc/self/clear_refs")).is_file():
            raise OSError("how much memory a network takes is only told on Linux")
        self.device.import_runtime()
        gc.collect()
        forget.write_text("5")  # the peak is that from now on
        before = resident("VmRSS")
        self.load("", source)
        return resident("VmHWM") - before


@contextmanager
def networks_errors() -> Iterator[None]:
    """Whatever is raised while a network runs is its own error, an OSError that there is no memory, too."""
    try:
        yield
    except Exception as error:
        raise NetworkError(f"{type(error).__name__}: {error}") from error


def resident(field: str) -> int:
    """The bytes of this process that are in memory now (VmRSS), or were at most (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


@contextmanager
def alone_here() -> Iterator[None]:
    """Keeps whoever else measures on this machine, in whatever engine, waiting (not on Windows)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path("/tmp/supernet-measures.lock")  # the same for all, whatever their TMPDIR
    if not path.exists():
        path.touch()
        path.chmod(0o666)
    with path.open() as lock:  # to read, which is all that another user's file allows
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def waiting_for(method: str) -> AbstractContextManager[None]:
    """What a call of a worker waits for, before its limit begins: to be the only one whose networks run."""
    return nullcontext() if method in ("fingerprint", "drop") else alone_here()


Call = Callable[..., Any]  # call("load" | "drop" | "time" | ..., *arguments) of a worker; "end" of its process


@contextmanager
def thread_engine(device: Device, fixed: bool = True) -> Iterator[Call]:
    """A worker on a pinned thread of this process; one that is not `fixed` is a ValueError.

    Linux pins a thread and what it starts, not a process: a pool that the runtime already keeps for the caller's thread
    would stay where it was, and pinning the caller would pin whatever else it starts. A thread of its own does neither.
    What crashes the runtime ends this process; `process_engine` survives it.
    """
    if not fixed:
        raise ValueError("a thread cannot be moved to another process: the engine must be process or ray")
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
    """A worker in a pinned process of its own, replaced by a fresh one, without networks, whenever a call fails.

    It has a `fixed_layout`, if the system lets; if not `fixed`, random addresses, as other programs have them, and
    others after call("end"). A call that takes longer than `limit` seconds fails. The process may use as much memory as
    was free when it began, and is the first that the system ends when memory runs out. What it writes to stderr is kept
    back, but for the last line before it ends by itself. Sources must be picklable.
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


@contextmanager
def ray_engine(device: Device, fixed: bool = True, limit: float = 300.0) -> Iterator[Call]:
    """A worker in a process of its own on that machine of a Ray cluster which has the device (the extra `ray`).

    The machine says so by a custom resource: `ray start --resources '{"device:NAME": 1}'`. The worker holds one of it
    from its first call to the end, and of two devices on a machine one is timed at a time. Files travel with the call;
    this project is to be installed there. The cluster is that of the caller's `ray.init`, of RAY_ADDRESS, or the one
    that runs on this machine. ValueError where no machine has the device, ConnectionError where that machine is lost
    and no other one like it has it. Else as `process_engine`, also where a worker is lost.
    """
    ray = import_ray()
    token = f"device:{device.name}"
    joined = not ray.is_initialized()
    if joined:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
    host, machine = None, None

    def there() -> bool:
        return token in ray.cluster_resources()

    def made() -> Any:
        """A host that holds the device, however long others do before."""
        host = ray.remote(num_cpus=0, resources={token: 1})(_Host).remote(
            device, RUNTIMES[device.runtime], fixed, limit
        )
        ready = host.ready.remote()
        while not ray.wait([ready], timeout=10)[0]:
            if not there():
                raise ConnectionError(f"the Ray cluster has lost {token}: no machine of it has the device any more")
        try:
            ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        return host

    def call(method: str, *arguments: Any) -> Any:
        nonlocal host, machine
        if method == "end" and host is None:
            return None
        if method in ("load", "open", "memory") and not device.times_modules:
            arguments = (*arguments[:-1], packed(Path(arguments[-1])))
        try:
            if host is None:
                host = made()
                found = {name: told for name, told in answer_of("fingerprint").items() if name != "cpus"}
                if found != (machine := machine or found):
                    raise ConnectionError(f"the machine that had {token} is lost, and another is not the same: {found}")
            return answer_of(method, *arguments)
        except ray.exceptions.RayError as error:  # those of the worker itself are answers
            end()
            raise NetworkError(f"its worker was lost: {type(error).__name__}: {error}") from error

    def answer_of(method: str, *arguments: Any) -> Any:
        answer = pickle.loads(ray.get(host.call.remote(method, *arguments)))  # the limit is the process engine's
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end() -> None:
        nonlocal host
        if host is not None:
            ray.wait([host.close.remote()], timeout=5)
            ray.kill(host)
            host = None

    try:
        if not there():
            known = ", ".join(sorted(name for name in ray.cluster_resources() if name.startswith("device:")))
            raise ValueError(
                f"no machine of the Ray cluster has {token} (it has {known or 'no device'}): start one that has it with"
                f" ray start --resources '{{\"{token}\": 1}}'"
            )
        yield call
    finally:
        end()
        if joined:
            ray.shutdown()


class _Host:
    """What runs on the device's machine, one at a time: the process engine, which gets files that arrived as files."""

    def __init__(self, device: Device, runtime: Runtime, fixed: bool, limit: float) -> None:
        self._device, self._fixed, self._limit, self._stack = device, fixed, limit, ExitStack()
        RUNTIMES[device.runtime] = runtime  # it may be of another package

    def ready(self) -> None:
        if os.nice(0) > 0:  # Ray's default, with which other programs would go first
            try:
                os.setpriority(os.PRIO_PROCESS, 0, 0)
            except PermissionError as error:
                raise OSError("Ray's workers have a low priority here: start it with RAY_worker_niceness=0") from error
        self._call = self._stack.enter_context(process_engine(self._device, self._fixed, self._limit))

    def call(self, method: str, *arguments: Any) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            try:
                sources = [x.unpack(Path(folder)) if isinstance(x, Packed) else x for x in arguments]
                answer = self._call(method, *sources)
            except (NetworkError, *USERS_ERRORS) as error:
                answer = error
        return pickle.dumps(answer)  # Ray's own arrays could not be written to

    def close(self) -> None:
        self._stack.close()


@dataclasses.dataclass(frozen=True)
class Packed:
    """A network's files on their way to another machine: of a folder, or one (`name`) with what lies beside it."""

    files: dict[str, bytes]
    name: str = ""

    def unpack(self, folder: Path) -> Path:
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder / self.name


def packed(path: Path) -> Packed:
    if path.is_dir():
        return Packed({file.name: file.read_bytes() for file in path.iterdir() if file.is_file()})
    if not path.is_file():
        raise FileNotFoundError(f"a file is timed, and {path} is not there")
    beside = path.parent.glob(f"{glob.escape(path.stem)}.*")
    return Packed({file.name: file.read_bytes() for file in beside if file.is_file()}, path.name)


def import_ray() -> Any:
    """Ray; ImportError says what to install."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("ray is not installed: pip install 'supernet[ray]'") from error
    return ray


ENGINES = {"thread": thread_engine, "process": process_engine, "ray": ray_engine}


def peak_memory(device: Device, source: Source, engine: str = "process") -> int:
    """The bytes by which a fresh process, with the runtime imported, grows at most that loads a network and runs it."""
    with ENGINES[engine](device) as call:
        return call("memory", source)


class _Process:
    """A process that serves the calls of one worker."""

    def __init__(self, device: Device, fixed: bool) -> None:
        unknown = (
            f"{device.name}: the process that times cannot import its runtime {device.runtime}: put it in a module"
        )
        try:
            runtime = pickle.dumps(RUNTIMES[device.runtime])
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"{unknown} ({error})") from error
        if b"__main__" in runtime:
            raise ValueError(unknown)
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from predictors.engines import serve; serve({theirs.fileno()})"
        # What runtimes log there would come from every process; the end of it may tell why one ended.
        self._stderr = tempfile.TemporaryFile()
        with theirs, fixed_layout(fixed):
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
            raise NetworkError(f"its process {ended(self._process.wait())}{self._last_words()}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _last_words(self) -> str:
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 500))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((f"; the last that it wrote: {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._stderr.close()


def serve(descriptor: int) -> None:
    """Answer the calls that come through a socket, until it closes: what runs in a process engine's process.

    It also ends, whatever runs, when the process ends that started it.
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
        told = f"{type(error).__name__}: {error}"
        broken = ValueError(f"{device.name}: the process that times cannot import its runtime {device.runtime}: {told}")
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

    So is whether convolutions on a GPU round float32 to TF32, which they then do not. Denormals are flushed on the
    calling thread, which is the worker's own.
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


def cache_evictor() -> Call:
    """A function that reads and writes twice as many bytes as the largest cache holds."""
    buffer = np.zeros(2 * largest_cache(), np.uint8)
    return lambda: np.add(buffer, 1, out=buffer)


def largest_cache() -> int:
    """The bytes of the processor's largest cache, or 64 MiB where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1024, "M": 1024**2}[text[-1]])
    return max(sizes, default=64 * 1024**2)
