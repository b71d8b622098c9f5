"""Facts about this machine, and what only Linux can do: address randomization, memory limits, cache sizes."""

from __future__ import annotations

import ctypes
import platform
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDR_NO_RANDOMIZE = 0x0040000  # of Linux's personality(2)
# Fields of /proc/cpuinfo that all cores of a kind share. ARM processors have no model name.
CPU_FIELDS = ("model name", "cpu family", "model", "stepping")
CPU_FIELDS += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
LOCK = Path("/tmp/supernet-measures.lock")  # the same for all users, whatever their TMPDIR


def cpu_model() -> str:
    """The processor's name and numbers, for each kind of core; on ARM also the name of the board."""
    found = []
    try:
        for core in Path("/proc/cpuinfo").read_text().split("\n\n"):
            fields = [[part.strip() for part in line.split(":", 1)] for line in core.splitlines() if ":" in line]
            found.append(", ".join(f"{name} {value}" for name, value in fields if name in CPU_FIELDS))
        found.append(Path("/proc/device-tree/model").read_text().strip("\0"))
    except OSError:  # another system, or no board
        pass
    if platform.system() == "Darwin":
        sysctl = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found.append(subprocess.run(sysctl, capture_output=True, text=True, check=True).stdout.strip())
    return "; ".join(dict.fromkeys(filter(None, found))) or platform.processor() or platform.machine()


# --------------------------------------------------------------------------------------- address randomization


@contextmanager
def fixed_addresses(fixed: bool = True) -> Iterator[bool]:
    """Start child processes without address randomization; with `fixed=False`, with it, whatever this process has.

    Yields whether the system allows it: Linux does, some containers do not.

    Memory addresses change a network's latency by up to some percent, by a different share for each network
    (Mytkowicz et al., ASPLOS 2009; `benchmarks/layout.py`). With random addresses a second process would contradict
    the first. Fixed addresses make latencies comparable, and biased alike; `time_networks(...,
    new_process_per_round=True)` averages over random ones.
    """
    before = personality()
    wanted = before | ADDR_NO_RANDOMIZE if fixed else before & ~ADDR_NO_RANDOMIZE
    done = before >= 0 and personality(wanted) >= 0
    try:
        yield done
    finally:
        if done:
            personality(before)


def has_fixed_addresses() -> bool:
    """Whether this process was started without address randomization."""
    return bool(max(personality(), 0) & ADDR_NO_RANDOMIZE)


def personality(new: int = 0xFFFFFFFF) -> int:
    """Call Linux's personality(2): returns this thread's old value, and sets `new` if it is given.

    Child processes inherit the value. On other systems, and on an error, the result is negative.
    """
    try:
        return ctypes.CDLL(None).personality(ctypes.c_ulong(new))
    except (AttributeError, TypeError):  # another system
        return -1


# ------------------------------------------------------------------------------------------------------ memory


def resident(field: str) -> int:
    """The resident memory of this process in bytes: now (`VmRSS`), or at its peak (`VmHWM`). Linux."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def limit_memory() -> None:
    """Limit this process to the memory that is free now, and make it the first that the system kills (Linux)."""
    try:
        import resource

        free = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
        limit = 1024 * int(free[0].split()[1])
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
        Path("/proc/self/oom_score_adj").write_text("1000")
    except (ImportError, OSError, IndexError):
        return  # another system


def largest_cache() -> int:
    """The size of the processor's largest cache in bytes; 64 MiB where the system does not report it."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1024, "M": 1024**2}[text[-1]])
    return max(sizes, default=64 * 1024**2)


# --------------------------------------------------------------------------------------------------- processes


@contextmanager
def alone_here() -> Iterator[None]:
    """Wait until no other process on this machine measures, then keep others waiting (not on Windows)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    if not LOCK.exists():
        LOCK.touch()
        LOCK.chmod(0o666)
    with LOCK.open() as lock:  # read access suffices, and is all that another user's file allows
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def describe_status(status: int) -> str:
    """How a process ended, in words, from its exit status as `subprocess` reports it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}" + (", which is how the system frees memory" if name == "SIGKILL" else "")
