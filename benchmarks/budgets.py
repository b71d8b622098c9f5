"""Budgets: are they met later, on the files, and is what `supernet specialize` finds better than the best of a pool?

    supernet fit --config ofa/fashion_mnist --data.init_args.download true
    python benchmarks/budgets.py specialize runs/fashion_mnist/supernet onnxruntime openvino [--out runs/budgets]
    python benchmarks/budgets.py pool       runs/fashion_mnist/supernet onnxruntime openvino
    python benchmarks/budgets.py later      runs/fashion_mnist/supernet onnxruntime openvino
    python benchmarks/budgets.py table      runs/fashion_mnist/supernet onnxruntime openvino
    python benchmarks/budgets.py singly     runs/fashion_mnist/supernet onnxruntime

`specialize` finds a network for each of 10 budgets on each device, evenly spread on a log scale from 1.05 times the
fastest network's latency to the slowest's. `pool` times 400 random networks, whose MACs are spread evenly, and
evaluates them on the report part of the held-out data. `later`, at least 10 minutes after `specialize`, times the files
five times, every round by a fresh process at random addresses, and divides by what the reference network takes now and
took then. `table` gives, of each budget, the latency then and later over the budget, and the difference to the pool's
member that keeps within the budget and is best on one half of the report part, on the other half and on the test set,
each with its paired standard error, and that member's number, its figure on the half by which it was chosen and that
on the select part, by which the network was; at the end, how many budgets are met within 1.02 and 1.05, and at how many
the network is no worse by more than one standard error of the other half.

`singly` finds a network for each of the budgets in a call of its own, whose search learns nothing from the others' (the
store only keeps what it asks for from being measured again), and prints the hypervolume of both fronts: the area that
lies below a figure and above the worst one of both, at latencies up to the largest, on a log scale. The figure is that
of the select part, by which both were found, of the report part, of the test set, and of the last two together, which
chose nothing; with the standard error of the difference, by drawing the items with replacement.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from predictors import Store, get_device
from predictors.runtimes.session import part_file
from predictors.timing import time_networks
from recipes.lab.lab import Lab
from recipes.lab.splits import SPLITS
from recipes.saved import import_families, make_data, read_section
from recipes.specialize import specialize
from recipes.values import PROXY
from supernet.evaluation import METRICS, compare, means
from supernet.sampling import stratified
from supernet.saving import load

BUDGETS, POOL, TIMES, WAIT = 10, 400, 5, 600
DRAWS = 1000  # of items, for a standard error


@contextmanager
def opened(supernet: Path, device: str, out: Path) -> Iterator[Lab]:
    import_families()
    section = read_section(str(supernet))
    with Store(out / "measurements.sqlite") as store:
        yield Lab(load(supernet), make_data(section), get_device(device), store, out / "files", section=section)


def found(device: str, out: Path) -> dict[str, dict]:
    """The reports of the networks for a device by the names of their folders, smallest budget first."""
    reports = json.loads((folder_of(device, out) / "reports.json").read_text())
    return dict(sorted(reports.items(), key=lambda row: row[1]["bounds"]["latency_ms"]))


def folder_of(device: str, out: Path) -> Path:
    return out / "networks" / get_device(device).name


def pool(supernet: Path, device: str, out: Path) -> None:
    with opened(supernet, device, out) as lab:
        pool_latencies(lab)
    with opened(supernet, "torch", out) as lab:  # float32 files compute the same
        for i, config in enumerate(lab.space.decode(pool_rows(lab))):
            lab.evaluator.file_items(config, "held_out")
            if i % 50 == 0:
                print(f"{i} of {POOL} evaluated", flush=True)


def pool_rows(lab: Lab) -> np.ndarray:
    space = lab.space
    cost = lambda X: lab.supernet.costs(X)["macs"]  # noqa: E731
    return space.encode(stratified(space, POOL, 0, 1, costs=cost, candidates=20 * POOL))


def pool_latencies(lab: Lab) -> np.ndarray:
    samples, key = lab.samples(None, seed=0), lab.timer.reference_key
    ms, baseline = lab.time(pool_rows(lab), samples.kind, f"{lab.device.name}, pool")
    return ms * samples.baseline[key] / baseline[key]  # on the scale of the budgets


def later(supernet: Path, device: str, out: Path) -> None:
    networks = found(device, out)
    ready = (folder_of(device, out) / "reports.json").stat().st_mtime + WAIT
    if time.time() < ready:
        raise SystemExit(f"{device}: not before {time.ctime(ready)}")
    with opened(supernet, device, out) as lab:
        smallest = lab.space.smallest()
        reference = ("reference", lab.files.path(smallest, PROXY))
        files = {folder: part_file(folder_of(device, out) / folder, "subnet") for folder in networks}
        ratios = []
        for _ in range(TIMES):
            timed = dict(time_networks(lab.device, files, reference, engine="process", new_process_per_round=True))
            ratios.append([timed[key].median / timed[key].reference_median for key in files])
    later_ms = {
        folder: float(ratio * networks[folder]["reference_ms"])
        for folder, ratio in zip(files, np.median(ratios, axis=0))
    }
    (out / f"later-{lab.device.name}.json").write_text(json.dumps(later_ms, indent=1))
    for folder, report in networks.items():
        print(f"{device} | {budget_of(report):g} ms | later {later_ms[folder] / budget_of(report):.3f} of it")


def budget_of(report: dict) -> float:
    return report["bounds"]["latency_ms"]


def table(supernet: Path, device: str, out: Path) -> list[tuple[float, float, float, float]]:
    """(latency later over budget, difference to the pool's best, its standard error, that on the test set) of each."""
    rows, networks = [], found(device, out)
    with opened(supernet, device, out) as lab:
        ms = pool_latencies(lab)
    with opened(supernet, "torch", out) as lab:
        X, space, metric = pool_rows(lab), lab.space, lab.supernet.metric
        sign, file_items = METRICS[metric].sign, lab.evaluator.file_items
        items = [halves(file_items(config, "held_out")) for config in space.decode(X)]
        merit = np.array([sign * means(chosen)[metric] for chosen, _ in items])
        later_ms = json.loads((out / f"later-{get_device(device).name}.json").read_text())
        for folder, report in networks.items():
            budget = budget_of(report)
            later_share, then = later_ms[folder] / budget, report["latency_ms"] / budget
            columns = f"{device} | {budget:g} ms | {then:.3f} | {later_share:.3f}"
            fits = ms <= budget
            if not fits.any():
                rows.append((later_share, np.nan, np.nan, np.nan))
                print(f"{columns} | no member of the pool")
                continue
            best = np.where(fits, merit, -np.inf).argmax()
            chosen_by, on_select = sign * merit[best], lab.evaluate(X[best : best + 1], "")[metric][0]
            ours = space.config_class(**report["config"])
            theirs = space.decode(X[best : best + 1])[0]
            difference, error = compare(halves(file_items(ours, "held_out"))[1], items[best][1], metric)
            tests = compare(file_items(ours, "test"), file_items(theirs, "test"), metric)
            rows.append((later_share, sign * difference, error, sign * tests[0]))
            print(
                f"{columns} | {sign * difference:+.4f} ({error:.4f}) | {sign * tests[0]:+.4f} ({tests[1]:.4f})"
                f" | {best}: {chosen_by:.4f}, {on_select:.4f}",
                flush=True,
            )
    return rows


def singly(supernet: Path, device: str, out: Path) -> None:
    networks, alone = found(device, out), {}
    began = (folder_of(device, out) / "reports.json").stat().st_mtime
    for folder, budget in networks.items():
        place = out / "singly" / folder
        report = place / "report.json"
        if not report.is_file() or report.stat().st_mtime < began:  # of an earlier search
            store = str(out / "measurements.sqlite")
            specialize(str(supernet), device, str(place), budget_of(budget), store=store, overwrite=True)
        alone[folder] = json.loads(report.read_text())
    with opened(supernet, device, out) as lab:
        metric = lab.supernet.metric
        sign = METRICS[metric].sign
        reports = [*networks.values(), *alone.values()]
        x = np.log([report["latency_ms"] for report in reports])
        configs = [lab.space.config_class(**report["config"]) for report in reports]
        parts = {split: [lab.evaluator.file_items(config, split) for config in configs] for split in SPLITS}
        parts["held_out and test"] = [
            {name: np.concatenate([report[name], test[name]]) for name in report}
            for report, test in zip(parts["held_out"], parts["test"])
        ]
        for part, items in parts.items():
            values, counted = sign * np.array([of[metric] for of in items]), items[0]["counted"]
            rng = np.random.default_rng(0)
            drawn = [np.arange(len(counted)), *rng.integers(len(counted), size=(DRAWS, len(counted)))]
            areas = np.array([hypervolumes(x, values[:, some].sum(1) / counted[some].sum()) for some in drawn])
            (a, b), error = areas[0], (areas[1:, 0] - areas[1:, 1]).std()
            print(
                f"{device}, {part}: hypervolume of {len(networks)} budgets together {a:.5f}, singly {b:.5f}, together"
                f" less singly {a - b:+.5f} (standard error {error:.5f})"
            )


def hypervolumes(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The areas of what some point of the first half of the points (x, y), and some of the others, is as good as: up
    to the largest x and down to the least y of all."""
    half = len(x) // 2
    return tuple(hypervolume(zip(x[front], y[front]), x.max(), y.min()) for front in (slice(half), slice(half, None)))


def hypervolume(front: Iterable[tuple[float, float]], latest: float, worst: float) -> float:
    """The area of what some point (x, y) of a front is as good as, up to `latest` in x and down to `worst` in y."""
    area, best = 0.0, worst
    for x, y in sorted(front, key=lambda point: (point[0], -point[1])):
        if y > best:
            area += (latest - x) * (y - best)
            best = y
    return area


def halves(items: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return tuple({name: values[half::2] for name, values in items.items()} for half in (0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["specialize", "pool", "later", "table", "singly"])
    parser.add_argument("supernet", type=Path)
    parser.add_argument("devices", nargs="+", metavar="DEVICE")
    parser.add_argument("--out", type=Path, default=Path("runs/budgets"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.command == "specialize":
        store = str(a.out / "measurements.sqlite")
        options = dict(pareto=BUDGETS, store=store, overwrite=True)
        for device in a.devices:  # each may have a call of its own
            networks = folder_of(device, a.out)
            reports = specialize(str(a.supernet), device, str(networks), **options)
            (networks / "reports.json").write_text(json.dumps(reports, default=float))
        return
    rows = [globals()[a.command](a.supernet, device, a.out) for device in a.devices]
    if a.command == "table":
        took, difference, error, tests = np.concatenate(rows).T
        print(
            f"of {len(took)}: later within 1.02 of the budget {(took <= 1.02).sum()}, 1.05 {(took <= 1.05).sum()}; no"
            f" worse than the pool's best {(difference >= -error).sum()} of {np.isfinite(difference).sum()}, better by"
            f" {np.nanmean(difference):.4f} on the mean, by {np.nanmean(tests):.4f} on the test set"
        )


if __name__ == "__main__":
    main()
