"""Random stops of fit, measure and specialize, each followed by the same command, against the same without stops.

    python benchmarks/stops.py [--what fit,measure,specialize] [--stops 20] [--seed 0]

Kinds of stops: SIGKILL, SIGTERM, SIGINT; for fit also max_time and a callback's should_stop. Fails unless the stopped
run and the uninterrupted one have bit-identical weights, nothing in the store was measured again, and no file is
half-written. On two busy cores the 20 stops of fit took 31 minutes, of measure 16 and of specialize 10.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from predictors.store import TABLES, Store
from supernet.resuming import LAST, read_checkpoint

RECIPE = """
checkpoint_every: 3
data: {class_path: ofa.ImageData, init_args:
  {dataset: digits, batch_size: 16, holdout: 100, calibration: 64, padding: 1, flip: true, workers: 2}}
model:
  supernet:
    class_path: ofa.MobileNetV3
    init_args:
      {num_classes: 10, in_channels: 1, width_mult: 0.25, stem_stride: 1, dropout: 0.2,
       space: {class_path: ofa.mobilenet_v3_space, init_args: {resolution: [8, 16]}}}
  accumulate: 2
  phases:
    - {name: largest, epochs: 2, lr: 0.05, space: {depth: [4], kernel_size: [7], expand_ratio: [6]}}
    - {name: kernel, epochs: 3, lr: 0.05, teacher: frozen, space: {depth: [4], expand_ratio: [6]}}
    - {name: all, epochs: 4, lr: 0.05, subnets: 2, sampler: sandwich, teacher: inplace}
validation: {random: 1}
trainer:
  {limit_train_batches: 25, val_check_interval: 10, num_sanity_val_steps: 0, enable_model_summary: false,
   callbacks: [{class_path: watching.Watch}]}
"""
WATCH = """
import os
import pytorch_lightning as pl

class Watch(pl.Callback):
    def __init__(self):
        self.left = int(os.environ.get("SHOULD_STOP", -1))

    def on_train_batch_end(self, trainer, task, *_):
        print("batch", trainer.global_step, flush=True)
        self.left -= 1
        if self.left == 0:
            trainer.should_stop = True
"""
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
STATUS = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "max_time": 75, "should_stop": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="fit,measure,specialize")
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "watching.py").write_text(WATCH)
        (folder / "recipe.yaml").write_text(RECIPE)
        whole = fit(folder, "whole")
        for what in given.what.split(","):
            rng, start = np.random.default_rng(given.seed), time.monotonic()
            if what == "fit":
                check_fit(folder, rng, given.stops)
            else:
                check_verb(folder, whole / "supernet", what, rng, given.stops)
            print(f"{what}: passed, {time.monotonic() - start:.0f} s", flush=True)


def begin(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """The command, in a process group of its own; its output comes through a pipe."""
    paths = os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", "from recipes.cli import main; main()", *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell has programs in the background ignore SIGINT, and those that they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen, output: str = "") -> str:
    output += process.communicate()[0]
    if process.returncode != 0:
        sys.exit(f"exit status {process.returncode}:\n{output}")
    return output


def fit(folder: Path, run: str) -> Path:
    finish(begin(folder, "fit", "--config", str(folder / "recipe.yaml"), "--run", str(folder / run)))
    return folder / run


def check_fit(folder: Path, rng: np.random.Generator, stops: int) -> None:
    """Stop a fit again and again; its weights equal the weights of an uninterrupted run."""
    run, happened, at = folder / "parts", collections.Counter(), []
    arguments = ["fit", "--config", str(folder / "recipe.yaml"), "--run", str(run), "--ckpt_path", "auto"]
    kinds = [*STATUS]
    for _ in range(stops):
        kind = kinds[rng.integers(len(kinds))]
        batches, delay = int(rng.integers(1, 10)), float(rng.uniform(0, 0.3))
        more = ["--trainer.max_time", "00:00:00:01"] if kind == "max_time" else []
        environment = {"SHOULD_STOP": str(batches)} if kind == "should_stop" else {}
        process = begin(folder, *arguments, *more, **environment)
        output, seen = "", 0
        for line in process.stdout:
            output, seen = output + line, seen + line.startswith("batch ")
            if kind in SIGNALS and seen == batches:
                time.sleep(delay)
                process.send_signal(getattr(signal, kind))
                break
        output += process.communicate()[0]
        if process.returncode == 0 and "supernet saved" in output:
            break
        if process.returncode != STATUS[kind]:
            sys.exit(f"{kind}: exit status {process.returncode}:\n{output}")
        if kind != "SIGKILL" and "optimizer steps are done" not in output:
            sys.exit(f"{kind}: it does not say that it is unfinished:\n{output}")
        happened[kind] += 1
        at.append(read_checkpoint(run / LAST)["global_step"] if (run / LAST).is_file() else 0)
    if not (run / "supernet").is_dir():
        finish(begin(folder, *arguments))
    print(f"fit: {dict(happened)}; optimizer steps in the checkpoint after each: {at}")
    files = {path.name for path in (*run.iterdir(), *(run / LAST.parent).iterdir())}
    if files != {"checkpoints", "config.yaml", "logs", "supernet", "last.ckpt"}:
        sys.exit(f"files that should not be there: {sorted(files)}")
    a, b = (load_file(folder / name / "supernet" / "network.safetensors") for name in ("whole", "parts"))
    if a.keys() != b.keys() or not all(torch.equal(a[name], b[name]) for name in a):
        sys.exit("the weights of the stopped run differ from the weights of the uninterrupted run")


def check_verb(folder: Path, supernet: Path, verb: str, rng: np.random.Generator, stops: int) -> None:
    """Stop `measure` or `specialize` again and again; nothing that was stored is measured again."""
    small = ["--latency-samples", "10", "--accuracy-samples", "10", "--finalists", "2", "--population", "20"]
    lengths = ["--samples", "20"] if verb == "measure" else [*small, "--generations", "10", "--max-latency", "1000"]
    happened, round = collections.Counter(), 0

    def arguments(name: str) -> tuple[list[str], Path]:
        store = folder / f"{verb}-{name}.sqlite"
        given = [verb, "--supernet", str(supernet), "--device", "onnxruntime", "--store", str(store), *lengths]
        if verb == "specialize":
            given += ["--out", str(folder / f"specialized-{name}"), "--overwrite", "true"]
        return given, store

    given, store = arguments("whole")
    finish(begin(folder, *given))
    whole = dict(records(store))
    while happened.total() < stops:  # once a command has ended, nothing is left to be stopped: another store
        given, store = arguments(f"parts-{round}")
        while happened.total() < stops:
            kind, process = str(rng.choice(SIGNALS)), begin(folder, *given)
            if not stop_after(process, store, kind, int(rng.integers(1, 8)), float(rng.uniform(0, 1))):
                break
            happened[kind] += 1
        finish(begin(folder, *given))
        parts = dict(records(store))
        for table, most in parts.items():
            if most > whole.get(table, 0):
                sys.exit(f"{verb}: {table} was measured again: {most} times, without stops {whole.get(table, 0)}")
        round += 1
    print(f"{verb}: {dict(happened)} in {round} runs; most records of a network, by table: {whole}, stopped {parts}")
    halves = [path.name for path in folder.rglob(".*") if not path.name.endswith(".lock")]
    if halves:
        sys.exit(f"{verb}: half-written: {halves}")


def stop_after(process: subprocess.Popen, store: Path, kind: str, more: int, delay: float) -> bool:
    """Stop a process some time after so many more records are in the store; False where it ended before."""
    start = rows(store)
    while process.poll() is None and rows(store) < start + more:
        time.sleep(0.05)
    time.sleep(delay)
    process.send_signal(getattr(signal, kind))
    output = process.communicate()[0]
    if process.returncode == 0:
        return False
    if process.returncode != STATUS[kind]:
        sys.exit(f"{kind}: exit status {process.returncode}:\n{output}")
    return True


def rows(store: Path) -> int:
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            return sum(connection.execute(f"select count(*) from {table}").fetchone()[0] for table in TABLES)
    except sqlite3.OperationalError:  # not there yet
        return 0


def records(store: Path) -> Iterator[tuple[str, int]]:
    """(table, the most records of a key in it); the store is checked as whoever opens it does."""
    Store(store).close()
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        for table, columns in TABLES.items():
            groups = f"SELECT count(*) AS n FROM {table} GROUP BY {', '.join(columns.key)}"
            if (most := connection.execute(f"SELECT max(n) FROM ({groups})").fetchone()[0]) is not None:
                yield table, most


if __name__ == "__main__":
    main()
