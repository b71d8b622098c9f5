"""Other processes that share the work of this one, each on a core of its own, while no network is timed."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from predictors.engines import end_with_stdin
from recipes.values import GARBAGE

MOST = 8  # processes
EACH = 1e9  # bytes that a process needs beside its copy of the state, roughly
LARGEST = 1e9  # bytes of a state that is copied to other processes
WORTH = 4.0  # seconds of remaining work from which on starting processes is worth it; they start in about three


@dataclasses.dataclass(frozen=True)
class Failed:
    """A job failed in another process: what it raised there, or how the process ended."""

    reason: str


class Sharing:
    """Jobs that are done here until other processes are worth their start, and from then on there.

    Args:
        state: makes the object whose methods do the jobs in other processes; None where it cannot be copied.
        most: processes; None takes one a core, 1 starts none.
    """

    def __init__(self, state: Callable[[], Any], most: int | None = None) -> None:
        self._make_state, self._most = state, most
        self._workers: Workers | None = None
        self._tried = False

    @property
    def running(self) -> int:
        """How many other processes run now."""
        return 0 if self._workers is None else self._workers.n

    def share(
        self, method: str, jobs: Sequence[tuple[Any, ...]], here: Callable[..., Any]
    ) -> Iterator[tuple[int, Any]]:
        """(number of the job, its result) of jobs as they are done: by `here`, or by the state's method elsewhere.

        A job that fails elsewhere is done here, where it raises the reason.
        """
        done, last = 0, 0.0
        for done, job in enumerate(jobs):
            left = last * (len(jobs) - done) * (0.5 if done == 1 else 1)  # the first one imports
            if self._workers is None and left > WORTH and not self._tried:
                self._start()
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

    def _start(self) -> None:
        """Start processes, unless there is one core, little memory, or a state that cannot be copied."""
        self._tried = True
        if self._most == 1 or (state := self._make_state()) is None:
            return
        try:
            pickled = pickle.dumps(state)
        except Exception as error:  # of another package's class
            print(f"one process works alone: the supernet cannot be copied to others ({type(error).__name__}: {error})")
            return
        n = min(how_many(len(pickled)), self._most or MOST)
        if b"__main__" not in pickled and len(pickled) <= LARGEST and n > 1:
            self._workers = Workers(pickled, n)

    def close(self) -> None:
        """End the other processes; new ones may start later, with a new state."""
        self._tried = False
        if self._workers is not None:
            self._workers.close()
            self._workers = None


class Workers:
    """Processes that each have a copy of an object, and call its methods; a context manager.

    `state` is the pickled object. The processes end with this one, however that ends.
    """

    def __init__(self, state: bytes, n: int) -> None:
        self._state, self.n = state, n
        self._pool = ThreadPoolExecutor(n, thread_name_prefix="workers")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker(state) for _ in range(n)]
        self._closed = False
        for worker in self._all:
            self._idle.put(worker)

    def map(self, method: str, jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """(number of the job, what the method returned, or `Failed`) of jobs as they are done.

        Jobs that have not begun when the iterator is closed never do.
        """
        futures = {self._pool.submit(self._call, method, job): i for i, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    def _call(self, method: str, job: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(method, job)
        except (EOFError, OSError) as error:
            worker.end()
            if not self._closed:
                self._all.remove(worker)
                worker = _Worker(self._state)
                self._all.append(worker)
            return Failed(f"a process that worked was lost: {error}")
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all processes, those that work as well."""
        self._closed = True
        for worker in self._all:
            worker.kill()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.end()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Worker:
    """One process."""

    def __init__(self, state: bytes) -> None:
        ours, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from recipes.lab.workers import serve; serve({theirs.fileno()})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"OMP_NUM_THREADS": "1"},  # each process has a core of its own
                stdin=subprocess.PIPE,  # at an end when this process is
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # of exporters, which warn of what is checked
            )
        self._connection = Connection(ours.detach())
        self._state: bytes | None = state  # sent with the first call: a large one waits for the process to read it

    def call(self, method: str, job: tuple[Any, ...]) -> Any:
        if self._state is not None:
            self._connection.send_bytes(self._state)
            self._state = None
        self._connection.send_bytes(pickle.dumps((method, job)))
        return pickle.loads(self._connection.recv_bytes())

    def kill(self) -> None:
        """End the process; a call that waits for it fails."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        self.kill()
        self._connection.close()
        self._process.stdin.close()


def serve(descriptor: int) -> None:
    """Answer the calls that come through a socket, until it closes: what runs in a process of `Workers`."""
    connection = Connection(descriptor)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the driver ends this process
    state, broken = None, ""
    try:
        state = pickle.loads(connection.recv_bytes())
    except EOFError:
        return
    except Exception as error:
        broken = f"{type(error).__name__}: {error}"
    gc.disable()  # an export makes many objects, and collecting among them takes a fifth of its time
    while True:
        try:
            method, job = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = Failed(broken) if broken else getattr(state, method)(*job)
        except Exception as error:
            answer = Failed(f"{type(error).__name__}: {error}")
        connection.send_bytes(pickle.dumps(answer))
        if gc.get_count()[0] > GARBAGE:
            gc.collect()
            gc.freeze()  # what stays, as imported modules do, need not be looked at again


def how_many(state: int) -> int:
    """How many processes may work, each with a copy of a state of so many bytes: one a core, as memory allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, int(min(cores, MOST, free_memory() / 2 / (EACH + 3 * state))))


def free_memory() -> float:
    """The bytes of memory that are free; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return 1024.0 * next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)
