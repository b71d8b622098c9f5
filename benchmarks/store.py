"""The store at scale: how long a file of a million measurements takes to open, and to tell what it knows.

    python benchmarks/store.py [--rows 1000000] [--networks 100000] [--devices 5] [--repeats 5]

Writes a fresh file, then opens it (SQLite's quick_check included) and asks for all measurements of 1,000 networks on
one device: medians of `repeats`, cold (the system has dropped the file from memory) and warm. Nobody ran ANALYZE.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from predictors.store import FIGURES, Store, digest

ASKED = 1000


def measurements(rows: int, networks: int, devices: int) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Keys and records, the networks in random order."""
    rng = np.random.default_rng(0)
    names, boards = [digest(i) for i in range(networks)], [digest(f"device {i}") for i in range(devices)]
    device = {"name": "board", "runtime": "onnxruntime", "cpu": "AMD EPYC", "version": "1.0", "cpus": [0]}
    figures = rng.random((rows, len(FIGURES)))
    for network, board, values in zip(rng.integers(networks, size=rows), rng.integers(devices, size=rows), figures):
        record = dict(zip(FIGURES, values.tolist())) | {"rounds": 8, "runs": 8, "reference": names[0]}
        yield (names[network], boards[board]), record | {"taken": "2020-01-01T00:00:00+00:00", "device": device}


def drop_from_memory(path: Path) -> None:
    """Have the system read the file from the disk next time."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--networks", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "store.sqlite"
        with Store(path) as store:
            store.extend("latency", measurements(arguments.rows, arguments.networks, arguments.devices))
        print(f"{arguments.rows} measurements in {path.stat().st_size / 1e6:.0f} MB")
        keys = [(digest(i), digest("device 0")) for i in range(ASKED)]
        for cold in (True, False):
            opened, answered = [], []
            for _ in range(arguments.repeats):
                if cold:
                    drop_from_memory(path)
                start = time.perf_counter()
                with Store(path) as store:
                    opened.append(time.perf_counter() - start)
                    start = time.perf_counter()
                    found = store.get("latency", keys)
                    answered.append(time.perf_counter() - start)
            what = f"opens in {np.median(opened):.2f} s, answers in {1000 * np.median(answered):.0f} ms"
            print(f"{'cold' if cold else 'warm'}: {what}, {sum(map(len, found.values()))} rows")


if __name__ == "__main__":
    main()
