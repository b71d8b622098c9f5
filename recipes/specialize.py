"""`supernet specialize`: the most accurate network within a budget, on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.benches import ending_on_sigterm, open_bench, read_samples
from supernet.values import integer

FAILURES = (
    ValueError,
    RuntimeError,
    OSError,
    ImportError,
)  # at one of several devices or budgets; the others are still tried


def specialize(
    supernet: str,
    device: str,
    out: str,
    max_latency: float | str | list[float] | None = None,
    pareto: int | None = None,
    data: str | None = None,
    latency_samples: int | str = "auto",
    accuracy_samples: int | str = 100,
    finalists: int = 8,
    population: int = 100,
    generations: int = 200,
    search: str = "predictor",
    max_macs: float | None = None,
    max_params: float | None = None,
    max_file_mb: float | None = None,
    max_memory_mb: float | None = None,
    store: str | None = None,
    engine: str = "process",
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Find the most accurate network within a latency budget, with no retraining, and write it as files.

    With several budgets or devices, a network for each budget on each device, which share what was evaluated; what is
    found for one budget competes for the larger ones.

    Args:
        supernet: folder of a trained supernet.
        device: what the latency is of, on this machine: one that `supernet devices` lists, or a YAML file with the
            fields of a `predictors.Device`; several, separated by commas.
        out: folder to write: the subnet, the file that was timed, report.json, report.html and front.png; of several
            networks such a folder for each, named DEVICE-BUDGETms, and front.json, front.png and front.html, which
            compare them.
        max_latency: the budget in ms, on the device's statistic (the median) of the exported file; several, separated
            by commas.
        pareto: this many budgets, evenly spread over the latencies that the supernet has, on a log scale.
        data: a YAML file with class_path and init_args; the data the supernet was trained on if left out.
        latency_samples: networks timed to fit the latency predictor; auto, as many as `measure` does.
        accuracy_samples: networks evaluated, each with recalibrated BatchNorm, to fit the accuracy predictor; auto:
            networks are added until the predictor's error stops falling.
        finalists: networks that each search proposes, and that are exported and timed before one is chosen.
        population: of the evolutionary search.
        generations: of the evolutionary search.
        search: predictor, or direct: evaluate every network that the search scores, of which there are many. What was
            evaluated is in the store, so that an interrupted search goes on.
        max_macs: multiply-accumulates of one inference, at most.
        max_params: parameters, at most.
        max_file_mb: size of the exported file, or of both files, in MB (1e6 bytes), at most.
        max_memory_mb: MB, at most, by which a fresh process grows that loads the network on the device and runs it
            once, the larger of two measurements (Linux).
        store: SQLite file of all measurements, which are never repeated; beside the supernet if left out. The files
            that were delivered are kept in the folder STORE.files, up to 200 MB of them.
        engine: process, on this machine; or ray, on the machine of a Ray cluster that was started with
            --resources '{"device:NAME": 1}'.
        seed: of sampling and search.
        overwrite: let it replace an earlier result in `out`. Of several networks, the same command goes on where it
            was ended early, with no need for it.

    Returns:
        the report, as in report.json; of several networks, {the name of its folder: its report}

    Raises ValueError where a budget is not met, of several ones after all others were tried.
    """
    budgets = read_budgets(max_latency)
    pareto = None if pareto is None else integer("pareto", pareto)
    if (pareto is None) != bool(budgets) or (pareto is not None and pareto < 2):
        raise ValueError(f"max_latency = {max_latency}, pareto = {pareto}: give budgets, or their number, at least 2")
    given = {"macs": max_macs, "params": max_params, "file_mb": max_file_mb, "memory_mb": max_memory_mb}
    bounds = {name: bound for name, bound in given.items() if bound is not None}
    for name, bound in [*(("latency", budget) for budget in budgets), *bounds.items()]:
        if not 0 < bound < math.inf:
            raise ValueError(f"max_{name} = {bound} is not a positive number")
    if search not in ("predictor", "direct"):
        raise ValueError(f"search: {search!r} is neither predictor nor direct")
    samples = read_samples("latency_samples", latency_samples)
    evaluations = read_samples("accuracy_samples", accuracy_samples)
    finalists, seed = integer("finalists", finalists, 1), integer("seed", seed, 0)
    population, generations = integer("population", population, 2), integer("generations", generations, 0)

    import glob
    import tempfile

    from predictors.devices import get_device
    from recipes.closed_loop import find_network
    from recipes.device_files import FILES, written_by
    from recipes.report import FRONT_FILES, write_fronts
    from recipes.sampling import Shared, spread_budgets
    from supernet.atomic import check_free, check_writable, lock_folder, remove_leftovers

    names = list(dict.fromkeys(name.strip() for name in device.split(",")))
    described = [get_device(name) for name in names]  # before the work for any of them
    for timed_on in described:
        written_by(timed_on.runtime, timed_on.precision)
    devices = [timed_on.name for timed_on in described]
    if len(set(devices)) < len(devices) or any(set("/\\") & set(name) for name in devices):
        raise ValueError(
            f"device = {device}: folders have the names of devices: {', '.join(devices)} repeat, or have / or \\"
        )
    folder = Path(out)
    if folder.resolve() == Path(supernet).resolve():
        raise ValueError(f"out = {out} is the supernet's own folder")
    several = pareto is not None or len(devices) * len(budgets) > 1
    if not several:
        check_free(folder, FILES, overwrite)
    if several and folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: choose another folder")
    goes_on = several and folder.is_dir() and ended_early(folder, devices)
    if several and folder.is_dir() and not (overwrite or goes_on):
        raise FileExistsError(f"{folder} is not empty: choose another folder, or write into it (--overwrite true)")
    check_writable(folder)

    def place(name: str, budget: float) -> Path:
        return folder / f"{name}-{budget:g}ms"

    for name in devices if several else ():
        for budget in budgets:
            check_free(place(name, budget), FILES, overwrite or goes_on)

    def find(bench: Any, budget: float, to: Path | None, explore: bool = False) -> dict[str, Any]:
        direct = search == "direct"
        lengths = (samples, evaluations, finalists, population, generations, seed)
        return find_network(bench, budget, to, *lengths, direct=direct, bounds=bounds, shared=shared, explore=explore)

    shared = Shared()
    found: dict[Path, dict[str, Any]] = {}
    missed: dict[str, Exception] = {}
    with ending_on_sigterm(), lock_folder(folder.absolute(), inside=several), tempfile.TemporaryDirectory() as files:
        remove_leftovers(folder)  # of a process that was killed
        for leftover in [left for name in devices for left in folder.glob(f".{glob.escape(name)}-*ms.????????")]:
            remove_leftovers(leftover.with_name(leftover.name[1:-9]))
        if not several:
            with open_bench(supernet, names[0], data, store, files, engine) as bench:
                return find(bench, budgets[0], folder)
        for given_as, name in zip(names, devices):
            try:
                with open_bench(supernet, given_as, data, store, files, engine) as bench:
                    bench.will_evaluate()
                    # Largest first: what is evaluated for it tells something of the others, too. Then in earnest, the
                    # smallest first: what was found for it is within the others.
                    ascending = sorted(budgets or spread_budgets(bench, samples, pareto, seed))
                    for budget in reversed(ascending if len(ascending) > 1 else ()):
                        print(f"{place(name, budget).name}: a first search", flush=True)
                        try:
                            find(bench, budget, None, explore=True)
                        except FAILURES as error:
                            print(f"{place(name, budget).name}: {error}; it will be tried again")
                    for budget in ascending:
                        print(f"{place(name, budget).name}: the search that counts", flush=True)
                        try:
                            found[place(name, budget)] = find(bench, budget, place(name, budget))
                        except FAILURES as error:
                            missed[place(name, budget).name] = error
            except FAILURES as error:
                missed[name] = error
    by_budget = sorted(found.items(), key=lambda item: (item[1]["device"]["name"], item[1]["budget_ms"]))
    reports = {path.name: report for path, report in by_budget}
    if reports:
        write_fronts(reports, folder)
        print(f"{len(reports)} networks, compared in {folder / FRONT_FILES[-1]}")
    if missed:
        told = "".join(f"\n{name}: {why}" for name, why in missed.items())
        message = f"{len(reports)} networks were written. For {len(missed)} budgets or devices there is none:{told}"
        raise ValueError(message) from ExceptionGroup("what was missed", list(missed.values()))
    return reports


def ended_early(folder: Path, devices: Sequence[str]) -> bool:
    """Whether a folder holds nothing but networks of these devices that a search wrote before it was ended: those that
    compare them, front.json first, come last."""
    found = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return all(name.endswith("ms") and name.startswith(tuple(f"{device}-" for device in devices)) for name in found)


def read_budgets(given: float | str | list[float] | None) -> list[float]:
    """Budgets in ms, each once: a number, several, or a text of several that are separated by commas."""
    parts = given.split(",") if isinstance(given, str) else np.ravel(given).tolist() if given is not None else []
    try:
        return list({f"{float(part):g}": float(part) for part in parts if part is not None}.values())
    except (TypeError, ValueError):
        raise ValueError(f"max_latency = {given}: a number of ms, or several separated by commas") from None
