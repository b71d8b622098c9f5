"""The main job in one run: train on the digits, specialize for onnxruntime on this machine, export, test.

    python -m recipes.demo [--seed 0]        (or: make demo)

It fails only for what is wrong whatever the luck: the exported file misses the budget, or does not compute what the
network does, or the largest network is less than 1.5 times as slow as the smallest. How the chosen network compares
with random ones on the test set, which chose neither, is luck too, and is reported with its interval.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from recipes.report import Report

DEVICE = "onnxruntime"
RANDOM = 20
WRONG = 1e-3  # the largest difference between the outputs of a file and of its network, over the largest output
Items = Mapping[str, np.ndarray]  # of each image: "accuracy", 1 where it is right, and "counted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0, help="of the training, the search and the random networks")
    arguments = parser.parse_args()
    out, seed = arguments.out, arguments.seed
    shutil.rmtree(out, ignore_errors=True)
    run = out / "fit"
    command("fit", "--config", "ofa/digits", "--run", str(run), "--seed_everything", str(seed), "--overwrite", "true")

    import torch

    from recipes.export import export
    from recipes.lab import open_lab
    from recipes.specialize import specialize
    from supernet.saving import load

    torch.set_num_threads(1)
    folder = run / "supernet"
    with open_lab(folder, DEVICE, files=out / "onnx") as lab:
        samples = lab.samples(None, seed)  # the networks that `specialize` will time: it finds them in the store
        latency = samples.predictor().fit(samples.X, samples.ms)
        smallest, largest = samples.ends_ms
        budget = round(smallest + 0.4 * (largest - smallest), 3)
        report = specialize(str(folder), DEVICE, str(out / "subnet"), budget, seed=seed)
        export(str(out / "subnet"), str(out / "files"), "onnx,timm")
        rivals = within_budget(lab.space, latency, budget, np.random.default_rng(seed + 1))
        selection = lab.evaluate(rivals, f"evaluating {RANDOM} random networks")["accuracy"]
        subnet, data = load(out / "subnet"), lab.data
        tested = [lab.evaluator.torch_items(config, "test") for config in lab.space.decode(rivals)]
        whole_items = lab.evaluator.torch_items(lab.space.largest(), "test")
        costs = lab.supernet.costs(lab.space.encode([lab.space.smallest(), lab.space.largest()]))

    draw_training(run / "logs", out / "training.png")
    smaller = smallest + 0.2 * (largest - smallest)
    items, difference = file_items(out / "subnet" / "subnet.onnx", subnet, data)
    print(
        f"\nA supernet was trained on the digits, and a network was cut from it for {DEVICE} on this machine.\n"
        f"  budget {budget:.3f} ms: latency predicted {report.predicted_latency_ms:.3f} ms, measured"
        f" {report.latency_ms:.3f} ms (smallest network {smallest:.3f} ms, largest {largest:.3f} ms)\n"
        f"{beside_largest(report, items, whole_items, largest, costs)}\n"
        f"{beside_random(items, tested, int(selection.argmax()))}\n\n{next_steps(out, smaller)}"
    )
    if failures := what_is_wrong(smallest, largest, budget, report.latency_ms, difference):
        sys.exit("demo failed: " + "; ".join(failures))


def what_is_wrong(smallest: float, largest: float, budget: float, confirmed: float, difference: float) -> list[str]:
    """What of a demo's result is wrong whatever the luck. Latencies are in ms; `difference` is that of the outputs of
    the exported file and of the network, over the largest output."""
    failures = []
    if not largest >= 1.5 * smallest:
        failures.append(
            f"the largest network ({largest:.3f} ms) is less than 1.5 times as slow as the smallest ({smallest:.3f} ms)"
        )
    if not confirmed <= budget:
        failures.append(f"the exported network takes {confirmed:.3f} ms, and the budget is {budget:.3f} ms")
    if not difference <= WRONG:
        failures.append(f"the outputs of the exported file differ from the network's by {difference:.2g}")
    return failures


@dataclasses.dataclass(frozen=True)
class Compared:
    """The accuracy of a network less that of others on the same items: the difference, and the bounds of its 95 %
    interval."""

    difference: float
    low: float
    high: float

    def beside(self, others: str) -> str:
        """The result in words; an interval that contains 0 shows no difference."""
        words = "no difference is shown from" if self.low <= 0 <= self.high else None
        words = words or ("more accurate than" if self.low > 0 else "less accurate than")
        return (
            f"{words} {others}: {100 * self.difference:+.2f} points (95 % interval {100 * self.low:+.2f} to"
            f" {100 * self.high:+.2f})"
        )


def compare_with(items: Items, others: Sequence[Items]) -> Compared:
    """A network's accuracy compared with the mean of others', paired by item."""
    from supernet.evaluation import compare

    mean = {name: np.mean([other[name] for other in others], axis=0) for name in ("accuracy", "counted")}
    difference, error = compare(items, mean, "accuracy")
    return Compared(difference, difference - 1.96 * error, difference + 1.96 * error)


def beside_random(items: Items, others: Sequence[Items], best: int) -> str:
    """How a network compares on the test set with the mean of random ones, and with the `best` of them, which was
    chosen on other images."""
    return (
        f"  test accuracy ({len(items['counted'])} images) beside {len(others)} random networks within the budget:\n"
        f"    {compare_with(items, others).beside('their mean')}\n"
        f"    {compare_with(items, [others[best]]).beside('the best of them on the images by which it was chosen')}"
    )


def beside_largest(report: Report, items: Items, whole: Items, largest: float, costs: Mapping[str, np.ndarray]) -> str:
    accuracy, whole_accuracy = (float(x["accuracy"].sum() / x["counted"].sum()) for x in (items, whole))
    macs, params = (getattr(report, unit) / costs[unit][1] for unit in ("macs", "params"))
    return (
        f"  test accuracy {accuracy:.4f} of the exported file, {whole_accuracy:.4f} of the largest network\n"
        f"  beside the largest network: {report.latency_ms / largest:.0%} of its latency, {macs:.0%} of its"
        f" multiply-accumulates, {params:.0%} of its parameters"
    )


def next_steps(out: Path, smaller: float) -> str:
    """Where the files are, how a network is loaded, and what a newcomer may do next."""
    specialize = f"supernet specialize --supernet {out / 'fit' / 'supernet'} --device {DEVICE}"
    return f"""Files
  {out / "subnet"}    the network: subnet.onnx, its weights, report.html (what was measured), front.png
  {out / "files"}     the same network for other programs: subnet.onnx, timm/
  {out / "fit"}       the run: the supernet, its logs, measurements.sqlite; the curves are in {out / "training.png"}

Load the network
  from supernet.export import load
  import ofa
  network = load("{out / "subnet"}")           # a torch module, in eval mode

  import onnxruntime
  session = onnxruntime.InferenceSession("{out / "subnet" / "subnet.onnx"}")

Next
  {specialize} --max-latency {smaller:.3f} --out runs/faster
  {specialize} --pareto 4 --out runs/front
  supernet devices                             # what else can be measured on this machine
"""


def command(*arguments: str) -> None:
    """Run the command `supernet` in a process of its own, as a user would."""
    code = "from recipes.cli import main; main()"
    if status := subprocess.run([sys.executable, "-c", code, *arguments]).returncode:
        sys.exit(status)


def within_budget(space: Any, latency: Any, budget: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of `RANDOM` uniform random networks that are predicted to keep the budget."""
    X = space.sample(100 * RANDOM, rng)
    found = np.unique(X[latency.predict(X) <= budget], axis=0)
    if len(found) < RANDOM:
        sys.exit(f"demo failed: only {len(found)} of {len(X)} random networks are predicted to keep the budget")
    return rng.permutation(found)[:RANDOM]


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


def file_items(path: Path, subnet: Any, data: Any) -> tuple[Items, float]:
    """Figures of the test images by an ONNX file, one image at a time, as a program without torch would see it; and the
    largest difference of its outputs from the network's, over the largest output."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (x.name for x in session.get_inputs())
    right, difference, largest = [], 0.0, 0.0
    for images, labels in data.test_dataloader():
        (prepared,) = subnet.prepare((images,))
        made = np.concatenate([session.run(None, {name: image[None]})[0] for image in prepared.numpy()])
        with torch.inference_mode():
            expected = subnet(prepared).numpy()
        right.append(made.argmax(axis=1) == labels.numpy())
        difference, largest = max(difference, np.abs(made - expected).max()), max(largest, np.abs(expected).max())
    accuracy = np.concatenate(right).astype(float)
    return {"accuracy": accuracy, "counted": np.ones(len(accuracy))}, float(difference / largest)


if __name__ == "__main__":
    main()
