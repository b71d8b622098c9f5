"""The engine `ray`: networks run on the machine of a Ray cluster that offers the device."""

from __future__ import annotations

import dataclasses
import glob
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from predictors.devices import Device
from predictors.engines import USERS_ERRORS, Call, NetworkError, process_engine
from predictors.runtimes import RUNTIMES, Runtime


@contextmanager
def ray_engine(device: Device, fixed: bool = True, limit: float = 300.0) -> Iterator[Call]:
    """A worker in a process on the machine of a Ray cluster that offers the device (the extra `ray`).

    A machine offers a device by a custom resource: `ray start --resources '{"device:NAME": 1}'`. The worker holds the
    resource from its first call to the end. Two devices on one machine are timed one at a time. Files travel with the
    call; this project must be installed on that machine. The cluster is the one of the caller's `ray.init`, of
    RAY_ADDRESS, or the one that runs on this machine. ValueError if no machine has the device; ConnectionError if that
    machine is lost and no equal one has the device. Otherwise like `process_engine`, also where a worker is lost.
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
        """A host that holds the device; waits for as long as others hold it."""
        host = ray.remote(num_cpus=0, resources={token: 1})(_Host).remote(
            device, RUNTIMES[device.runtime], fixed, limit
        )
        ready = host.ready.remote()
        while not ray.wait([ready], timeout=10)[0]:
            if not there():
                raise ConnectionError(f"the Ray cluster has lost {token}: none of its machines has the device any more")
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
                found = {name: value for name, value in answer_of("fingerprint").items() if name != "cpus"}
                if found != (machine := machine or found):
                    raise ConnectionError(
                        f"the machine that had {token} is lost, and another one differs from it: {found}"
                    )
            return answer_of(method, *arguments)
        except ray.exceptions.RayError as error:  # errors of the worker itself are answers
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
                f"no machine of the Ray cluster has {token} (the cluster has {known or 'no device'}): start one with"
                f" ray start --resources '{{\"{token}\": 1}}'"
            )
        yield call
    finally:
        end()
        if joined:
            ray.shutdown()


class _Host:
    """Runs on the device's machine: a process engine, with the files that arrived with each call."""

    def __init__(self, device: Device, runtime: Runtime, fixed: bool, limit: float) -> None:
        self._device, self._fixed, self._limit, self._stack = device, fixed, limit, ExitStack()
        RUNTIMES[device.runtime] = runtime  # of another package, maybe

    def ready(self) -> None:
        if os.nice(0) > 0:  # Ray's default, which lets other programs go first
            try:
                os.setpriority(os.PRIO_PROCESS, 0, 0)
            except PermissionError as error:
                raise OSError("Ray's workers have a low priority: start Ray with RAY_worker_niceness=0") from error
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
    """A network's files on their way to another machine: a folder, or a file (`name`) and the files beside it."""

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
        raise FileNotFoundError(f"a file is timed, and {path} does not exist")
    beside = path.parent.glob(f"{glob.escape(path.stem)}.*")
    return Packed({file.name: file.read_bytes() for file in beside if file.is_file()}, path.name)


def import_ray() -> Any:
    """Ray; ImportError says what to install."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("ray is not installed: pip install 'supernet[ray]'") from error
    return ray
