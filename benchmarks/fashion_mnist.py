"""Supernets on Fashion-MNIST: the recipe against other schedules at equal passes, and networks trained alone.

    python benchmarks/fashion_mnist.py train recipe --seed 0 --root IMAGES [--holdout 2000] [--out runs/benchmark]
    python benchmarks/fashion_mnist.py table [--out runs/benchmark]

`train` runs (or resumes) one schedule for one seed, with as many images held out as the recipe has, or --holdout;
`table` scores every finished run on the test set, with BatchNorm recalibrated on 2,000 training images: the largest
network, a middle one, the smallest, and the mean of 16 random ones (the same for all). A pass is one forward and
backward over 60,000 images; a frozen teacher's forwards count apart.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recipes.cli import recipe_path

IMAGES = 60_000
LARGEST = {"depth": [4], "kernel_size": [7], "expand_ratio": [6]}
MIDDLE = {"depth": [3], "kernel_size": [5], "expand_ratio": [4]}
SMALLEST = {"depth": [2], "kernel_size": [3], "expand_ratio": [3]}
START = {"warmup_epochs": 1}


def phase(name: str, epochs: int, lr: float = 0.1, **options: Any) -> dict[str, Any]:
    return {"name": name, "epochs": epochs, "lr": lr} | options


def alone(name: str, space: dict[str, list[int]]) -> list[dict[str, Any]]:
    return [phase(name, 10, space=space, **START)]


# What `train` knows, beside the recipe itself. Each supernet takes 23 to 26 passes, each network alone as many as the
# largest gets in the recipe.
SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "shrinking": [
        phase("largest", 6, space=LARGEST, **START),
        phase("kernel", 2, 0.05, space={"depth": [4], "expand_ratio": [6]}, teacher="frozen"),
        phase("depth 1", 1, 0.02, space={"depth": [3, 4], "expand_ratio": [6]}, subnets=2, teacher="frozen"),
        phase("depth 2", 2, 0.05, space={"expand_ratio": [6]}, subnets=2, teacher="frozen"),
        phase("expand 1", 1, 0.02, space={"expand_ratio": [4, 6]}, subnets=4, teacher="frozen"),
        phase("expand 2", 2, 0.05, subnets=4, teacher="frozen"),
    ],
    "sandwich": [
        phase("sandwich", 9, subnets=3, sampler="sandwich", teacher="inplace", label_weight=0.0, **START),
    ],
    "random": [phase("random", 6, subnets=4, **START)],
    "largest alone": alone("largest", LARGEST),
    "middle alone": alone("middle", MIDDLE),
    "smallest alone": alone("smallest", SMALLEST),
}


def train(name: str, seed: int, root: str, holdout: int | None, out: Path) -> None:
    """Run or resume a schedule; its CPU seconds are added to those of earlier starts."""
    recipe = yaml.safe_load(Path(recipe_path("ofa/fashion_mnist")).read_text())
    if name != "recipe":
        recipe["model"]["phases"] = SCHEDULES[name]
    if holdout is not None:
        recipe["data"]["init_args"]["holdout"] = holdout
    run = out / f"{name.replace(' ', '_')}_{seed}"
    run.mkdir(parents=True, exist_ok=True)
    path = run / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    seeds = ["--seed_everything", "--data.init_args.seed", "--model.seed"]
    arguments = ["fit", "--config", str(path), "--run", str(run), "--data.init_args.root", root]
    arguments += [part for option in seeds for part in (option, str(seed))]
    if (run / "checkpoints" / "last.ckpt").is_file():
        arguments += ["--ckpt_path", "last"]
    else:
        arguments += ["--overwrite", "true"]  # what a run left that ended before its first checkpoint
    code = "from recipes.cli import main; main()"
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    status = subprocess.run([sys.executable, "-c", code, *arguments], env=environment).returncode
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = run / "cpu_seconds.json"
    before = json.loads(spent.read_text()) if spent.is_file() else 0
    spent.write_text(json.dumps(before + usage.ru_utime + usage.ru_stime))
    sys.exit(status)


def score(run: Path) -> dict[str, Any]:
    """Test accuracies in %, passes, teacher forwards (in passes) and CPU seconds of a finished run."""
    import torch

    import ofa  # noqa: F401  (its families can then be loaded)
    from recipes.saved import make_data, read_section
    from supernet.evaluation import evaluate_network
    from supernet.model import calibrate
    from supernet.saving import load

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    supernet, data = load(run / "supernet"), make_data(read_section(str(run / "supernet")))
    space = supernet.space
    phases = yaml.safe_load((run / "recipe.yaml").read_text())["model"]["phases"]
    only = phases[0]["space"] if len(phases) == 1 and "space" in phases[0] else None  # a network trained alone

    def accuracy(config: Any) -> float:
        subnet = calibrate(supernet.extract(config).eval(), data.calibration_batches())
        return 100 * evaluate_network(subnet, data.test_dataloader())["accuracy"]

    if only is not None:
        accuracies = {"alone": accuracy(space.restrict(**only).largest())}
    else:
        random = [accuracy(config) for config in space.decode(space.sample(16, np.random.default_rng(0)))]
        accuracies = {"largest": accuracy(space.largest()), "smallest": accuracy(space.smallest())}
        accuracies["middle"] = accuracy(space.restrict(**MIDDLE).largest())
        accuracies["random"] = float(np.mean(random))
    share = (len(data.train) // data.batch_size * data.batch_size) / IMAGES
    passes = share * sum(p["epochs"] * p.get("subnets", 1) for p in phases)
    teacher = share * sum(p["epochs"] for p in phases if p.get("teacher") == "frozen")
    spent = json.loads((run / "cpu_seconds.json").read_text())
    return {"run": run.name, "passes": passes, "teacher": teacher, "cpu_seconds": spent} | accuracies


def table(out: Path) -> None:
    rows = []
    for run in sorted(out.glob("*_*")):
        if not (run / "supernet").is_dir():
            continue
        cache = run / "score.json"  # the test set is scored once
        if not cache.is_file():
            cache.write_text(json.dumps(score(run)))
        rows.append(json.loads(cache.read_text()))
    columns = ["run", "passes", "teacher", "largest", "middle", "smallest", "random", "alone", "cpu_seconds"]
    print(" | ".join(columns))
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        print(" | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("name", choices=["recipe", *SCHEDULES])
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--root", required=True, help="folder of the idx files")
    training.add_argument("--holdout", type=int, help="images held out; as many as in the recipe if left out")
    for command in (training, commands.add_parser("table")):
        command.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.name, arguments.seed, arguments.root, arguments.holdout, arguments.out)
    else:
        table(arguments.out)


if __name__ == "__main__":
    main()
