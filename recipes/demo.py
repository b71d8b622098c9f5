"""The main job in one run: train on the digits, specialize for onnxruntime on this machine, export, test.

    python -m recipes.demo        (or: make demo)

Fails if the largest network is less than 1.5 times as slow as the smallest, if the exported file misses the budget,
or if the chosen network is less accurate on held-out images than the best of 20 random ones within the budget.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

DEVICE = "onnxruntime"
RANDOM = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    run = out / "fit"
    command("fit", "--config", "ofa/digits", "--run", str(run), "--overwrite", "true")

    import torch

    from predictors.devices import get_device
    from predictors.store import Store
    from recipes import export, import_families, make_data, read_section, specialize
    from recipes.bench import Bench
    from recipes.sampling import time_samples
    from supernet.export import load

    torch.set_num_threads(1)
    import_families()
    folder = run / "supernet"
    supernet = load(folder)
    section = read_section(str(folder))
    space, data = supernet.space, make_data(section)
    with Store(run / "measurements.sqlite") as store:
        bench = Bench(supernet, data, get_device(DEVICE), store, out / "onnx", section)
        # The networks that `specialize` will time, first: they show what this machine's undisturbed speed is.
        samples, _ = time_samples(bench, None, np.random.default_rng(0))
        bench.fix_scale(samples)
        smallest, largest = bench.final_latencies(space.encode([space.smallest(), space.largest()]), "timing both ends")
        budget = smallest + 0.4 * (largest - smallest)
        report = specialize(str(folder), DEVICE, str(out / "subnet"), budget)
        export(str(out / "subnet"), str(out / "files"), "onnx,timm")
        rivals = within_budget(bench, budget)
        best_random = rivals[bench.evaluate(rivals, "evaluating 20 random networks")["accuracy"].argmax()]
        (random_config,) = space.decode(best_random[None])
        random_items, found_items = map(bench.torch_items, (random_config, load(out / "subnet").config))
        whole = bench.calibrated(space.largest())

    draw_training(run / "logs", out / "training.png")
    found = accuracy_of_file(out / "subnet" / "subnet.onnx", load(out / "subnet"), data)
    from supernet.training import compare, evaluate_network, means

    reference = evaluate_network(whole, data.test_dataloader())["accuracy"]
    predicted, measured = (report[k] for k in ("predicted_latency_ms", "confirmed_ms"))
    better, error = compare(random_items, found_items, "accuracy")
    accuracy, random_accuracy = (means(items)["accuracy"] for items in (found_items, random_items))
    print(f"both ends: smallest {smallest:.3f} ms, largest {largest:.3f} ms on {DEVICE}")
    print(f"budget {budget:.3f} ms; latency predicted {predicted:.3f} ms, measured {measured:.3f} ms")
    print(f"held-out accuracy {accuracy:.4f}; best of {RANDOM} random networks within the budget {random_accuracy:.4f}")
    print(f"test accuracy {found:.4f} of the exported ONNX file, {reference:.4f} of the largest network")
    failures = []
    if largest < 1.5 * smallest:
        failures.append("the largest network is less than 1.5 times as slow as the smallest")
    if report["confirmed_ms"] > budget:
        failures.append("the exported network misses the budget")
    if better > error:
        failures.append("a random network within the budget is more accurate, by more than a standard error")
    if failures:
        sys.exit("demo failed: " + "; ".join(failures))


def command(*arguments: str) -> None:
    """Run the command `supernet` in a process of its own, as a user would."""
    code = "from recipes.cli import main; main()"
    if status := subprocess.run([sys.executable, "-c", code, *arguments]).returncode:
        sys.exit(status)


def within_budget(bench: object, budget: float) -> np.ndarray:
    """Rows of `RANDOM` uniform random networks whose measured latency keeps the budget."""
    rng, found = np.random.default_rng(1), np.empty((0, bench.supernet.space.width))
    for _ in range(20):
        X = bench.supernet.space.sample(20, rng)
        found = np.unique(np.concatenate([found, X[bench.latencies(X, "timing random networks") <= budget]]), axis=0)
        if len(found) >= RANDOM:
            return found[:RANDOM]
    sys.exit(f"demo failed: only {len(found)} of 400 random networks keep the budget")


def draw_training(logs: Path, path: Path) -> None:
    """Held-out accuracy of the largest, the smallest and the random subnets over the epochs; lines between phases."""
    from matplotlib.figure import Figure

    with open(next(logs.glob("*/metrics.csv")), newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="held-out accuracy")
    for name in ("largest", "random", "smallest"):
        points = [(row["epoch"] + 1, row[f"val/accuracy/{name}"]) for row in rows if f"val/accuracy/{name}" in row]
        axes.plot(*zip(*points), marker="o", label=name)
    first = {}
    for row in rows:
        if "phase" in row:
            first.setdefault(row["phase"], row["epoch"])
    for epoch in list(first.values())[1:]:
        axes.axvline(epoch, c="0.7", lw=1, ls="--")
    axes.legend(frameon=False, title="subnets")
    figure.savefig(path, dpi=120)


def accuracy_of_file(path: Path, subnet: object, data: object) -> float:
    """The test accuracy of an ONNX file, one image at a time, as a program without torch would see it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (x.name for x in session.get_inputs())
    right = total = 0
    for images, labels in data.test_dataloader():
        (prepared,) = subnet.prepare((images,))
        for image, label in zip(prepared.numpy(), labels.tolist()):
            right += session.run(None, {name: image[None]})[0].argmax() == label
            total += 1
    return right / total


if __name__ == "__main__":
    main()
