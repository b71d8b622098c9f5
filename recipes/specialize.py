"""`supernet specialize`: the best network within bounds on a device, found by search and measured as its exported file.

The idea of the product is `find_network`. From Python, with parts of one's own:

        from recipes.specialize import Bounds, Effort, Memory, find_network, write_result

    with open_lab("runs/digits/supernet", "onnxruntime") as lab:
        report = find_network(lab, Bounds(latency_ms=0.25, file_mb=1.0), Effort(finalists=4), Memory())
        write_result(lab, report, "runs/digits/fast")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import recipes.lab as labs
from predictors.engines import ENGINES
from recipes.choosing import choose, distinct, none_met, shortlist
from recipes.constraints import LATENCY, Bounds, Constraints, Deployed, constrain
from recipes.quality import RANKED_BY, Effort, Memory, Quality
from recipes.report import Report
from recipes.results import FRONT_FILES, result_files, write_fronts, write_result
from recipes.saved import check_supernet
from recipes.values import ending_on_sigterm, read_budgets, read_samples
from supernet.atomic import check_free, check_writable, lock_folder, remove_leftovers
from supernet.evaluation import find_metric
from supernet.search import SEARCHES, InfeasibleError
from supernet.values import integer

ROUNDS = 5  # of search, export and measuring
SEARCHES_PER_ROUND = 3  # at most, each with a predictor that has learned what the one before found
FAILURES = (ValueError, RuntimeError, OSError, ImportError)  # of one budget or device: the others are still tried


def find_network(lab: labs.Lab, bounds: Bounds, effort: Effort, memory: Memory) -> Report:
    """Search with predictors, measure the best networks as exported files, correct the predictors; repeat.

    It ends when no network that seems to meet the bounds seems better than the best one that was measured to meet
    them, or after `ROUNDS`.

    Args:
        lab: measures and evaluates networks of a supernet on a device.
        bounds: the largest latency, and other bounds.
        effort: how much is measured.
        memory: what earlier searches left; this search adds to it.

    Raises ValueError where no network is measured to meet the bounds.
    """
    constraints = constrain(lab, bounds, effort.latency_samples, effort.seed)  # times samples, fits predictors
    quality = Quality(lab, constraints, effort, memory)  # evaluates networks near the bounds
    deployed = memory.on(lab)
    if deployed:
        constraints.learn(deployed.values())
    # The first round keeps to networks that are almost surely fast enough. Later rounds go as far as the predictor,
    # which was corrected by then.
    cautious = constraints.latency.corrections < effort.finalists
    for _ in range(ROUNDS):
        search(lab, constraints, quality, effort, cautious)
        within = constraints.within(quality.X, cautious)
        chosen = shortlist(quality.X, quality.metrics, quality.metric, within, deployed, bounds, effort.finalists)
        if not chosen and not cautious:
            break
        if chosen:
            for one in deploy(lab, quality, chosen, constraints, bounds):
                deployed[one.row] = one
            choose(lab, list(deployed.values()), quality.metric, constraints, bounds)  # confirms what it would choose
            constraints.learn(deployed.values())
        cautious = False
    best = choose(lab, list(deployed.values()), quality.metric, constraints, bounds)
    if best is None:
        samples = constraints.samples
        fastest = samples.ms.argmin()
        config = lab.space.decode(samples.X[[fastest]])[0]
        raise ValueError(none_met(list(deployed.values()), bounds, float(samples.ms[fastest]), config))
    return Report.of(lab, best, bounds, quality, constraints, list(deployed.values()))


def explore(lab: labs.Lab, bounds: Bounds, effort: Effort, memory: Memory) -> None:
    """Search once, and leave the evaluated networks to the memory; no file is delivered or timed."""
    constraints = constrain(lab, bounds, effort.latency_samples, effort.seed)
    quality = Quality(lab, constraints, effort, memory)
    if deployed := memory.on(lab):
        constraints.learn(deployed.values())
    search(lab, constraints, quality, effort, constraints.latency.corrections < effort.finalists, searches=1)


def search(
    lab: labs.Lab,
    constraints: Constraints,
    quality: Quality,
    effort: Effort,
    cautious: bool,
    searches: int = SEARCHES_PER_ROUND,
) -> None:
    """Search until the best evaluated network within the bounds gets no better, at most `searches` times.

    A predictor errs most where a search takes it to be best, so what a search finds is evaluated, and corrects it.
    """

    def found() -> np.ndarray:
        limits = constraints.limits(cautious)
        result = SEARCHES[effort.search](lab.space, quality.score, limits, seed=effort.seed, **effort.options)
        return distinct(result.X, quality.X, effort.finalists)

    for _ in range(searches if quality.predicts else 1):
        quality.fit()
        try:
            with lab.ledger.spending("searching"):
                if quality.predicts:
                    model = quality.predictors[RANKED_BY]
                    rows = lab.searched((cautious, constraints.identity(), model, lab.space, quality.X, effort), found)
                else:
                    rows = found()
        except InfeasibleError:  # to the corrected predictor no network is fast enough
            return
        least = quality.least_loss(constraints.within(quality.X, cautious))
        quality.learn(rows)
        if quality.least_loss(constraints.within(quality.X, cautious)) >= least:
            return


def deploy(
    lab: labs.Lab, quality: Quality, chosen: list[int], constraints: Constraints, bounds: Mapping[str, float]
) -> Iterator[Deployed]:
    """Export the chosen rows of the evaluated networks, and measure their files; yields each when it is measured."""
    X = quality.X[chosen]
    latencies = constraints.latency.measure(lab, X)
    name = quality.metric.name
    predicted = {one.name: one.predict(X) for one in constraints.all} | {name: quality.predicted(chosen)}
    for i, (row, config) in enumerate(zip(X, lab.space.decode(X))):
        measured = {LATENCY: latencies[i]}
        for constraint in constraints.others:
            ran = np.isfinite(latencies[i][0])
            measured[constraint.name] = constraint.measure(lab, X[i : i + 1])[0] if ran else (np.inf,)
        yield Deployed(
            row=tuple(row),
            config=config,
            found_for=bounds[LATENCY],
            measured=measured,
            predicted={key: float(values[i]) for key, values in predicted.items()},
            metrics={key: float(values[chosen[i]]) for key, values in quality.metrics.items()},
        )


def specialize(
    supernet: str,
    device: str,
    out: str,
    max_latency: float | str | list[float] | None = None,
    pareto: int | None = None,
    data: str | None = None,
    metric: str | None = None,
    latency_samples: int | str = "auto",
    accuracy_samples: int | str = 100,
    finalists: int = 8,
    search: str = "evolutionary",
    score: str = "predicted",
    population: int = 100,
    generations: int = 200,
    max_macs: float | None = None,
    max_params: float | None = None,
    max_file_mb: float | None = None,
    max_memory_mb: float | None = None,
    bounds: dict[str, float] | None = None,
    store: str | None = None,
    files: str | None = None,
    engine: str = "process",
    workers: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Report | dict[str, Report]:
    """Find the best network of a supernet within a latency budget, with no retraining, and write it as files.

    With several budgets or devices it finds a network for each budget on each device. These searches share what they
    evaluate, and a network that was found for one budget competes for the larger ones.

    Args:
        supernet: folder of a trained supernet.
        device: what the latency is of, on this machine: a device that `supernet devices` lists, or a YAML file with the
            fields of a `predictors.Device`; several are separated by commas.
        out: folder to write: the subnet, the exported file that was timed, report.html, report.json and front.png. Of
            several networks it gets such a folder for each, named DEVICE-BUDGETms, and front.html, front.json and
            front.png, which compare them.
        max_latency: the budget in ms for the exported file, by the device's statistic (the median); several are
            separated by commas.
        pareto: number of budgets, evenly spread on a log scale over the latencies of the supernet's networks; instead
            of --max-latency.
        data: a YAML file with class_path and init_args; the data that the supernet was trained on if left out.
        metric: what networks are chosen by: {metrics}; that of the family if left out.
        latency_samples: networks timed for the latency predictor; auto times networks until it has converged.
        accuracy_samples: networks evaluated for the metric predictors, with recalibrated BatchNorm; auto evaluates
            networks until these have converged.
        finalists: networks that each round of search proposes, and exports and times.
        search: {searches}.
        score: predicted, by a predictor of the loss; or evaluated, which evaluates every network that the search
            scores. Evaluations are stored, so an interrupted search continues.
        population: of the search.
        generations: of the search.
        max_macs: largest number of multiply-accumulates of one inference.
        max_params: largest number of parameters.
        max_file_mb: largest size of the exported file, or of all its files together, in MB (1e6 bytes).
        max_memory_mb: largest memory in MB by which a new process grows that loads the network on the device and runs
            it once, by the larger of two measurements (Linux).
        bounds: other bounds, by the names of `recipes.constraints.CONSTRAINTS`.
        store: SQLite file of all measurements, which are never repeated; measurements.sqlite beside the supernet if
            left out. The folder STORE.files keeps up to 200 MB of delivered files.
        files: folder that keeps the exported files that are timed for later calls; a temporary folder if left out.
        engine: where networks are timed: process, on this machine; or ray, on the machine of a Ray cluster that was
            started with --resources '{{"device:NAME": 1}}'.
        workers: processes that export and evaluate networks; one a core if left out.
        seed: of sampling and search.
        overwrite: replace an earlier result in `out`. A call for several networks that was ended early continues
            without it.

    Returns:
        the report, as in report.json; of several networks {name of its folder: its report}

    Raises ValueError where a budget is not met; with several budgets or devices, after all others were tried.
    """
    budgets = read_budgets(max_latency)
    pareto = None if pareto is None else integer("pareto", pareto)
    if (pareto is None) != bool(budgets) or (pareto is not None and pareto < 2):
        raise ValueError(
            f"max_latency = {max_latency}, pareto = {pareto}: give --max-latency, or --pareto with at least 2 budgets"
        )
    others = {"macs": max_macs, "params": max_params, "file_mb": max_file_mb, "memory_mb": max_memory_mb}
    others |= bounds or {}
    if search not in SEARCHES:
        raise ValueError(f"search: {search!r} is not one of {', '.join(SEARCHES)}")
    if score not in ("predicted", "evaluated"):
        raise ValueError(f"score: {score!r} is neither predicted nor evaluated")
    effort = Effort(
        latency_samples=read_samples("latency_samples", latency_samples),
        metric_samples=read_samples("accuracy_samples", accuracy_samples),
        finalists=integer("finalists", finalists, 1),
        search=search,
        score=score,
        options={
            "population": integer("population", population, 2),
            "generations": integer("generations", generations, 0),
        },
        metric=metric and find_metric(metric).name,
        seed=integer("seed", seed, 0),
    )
    for budget in budgets or [1.0]:
        Bounds(budget, **others)
    several = pareto is not None or len(budgets) * len(device.split(",")) > 1
    devices = read_devices(device)
    folder = Path(out)
    check_supernet(supernet, data)
    if engine not in ENGINES:
        raise ValueError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}")
    check_folder(folder, Path(supernet), devices, budgets, several, overwrite)
    options = {"data": data, "store": store, "files": files, "engine": engine, "workers": workers}
    with ending_on_sigterm(), lock_folder(folder.absolute(), inside=several):
        remove_leftovers(folder)  # of a process that was killed
        if not several:
            (given,) = devices.values()
            with labs.open_lab(supernet, given, **options) as lab:
                report = find_network(lab, Bounds(budgets[0], **others), effort, Memory())
                return write_result(lab, report, folder)
        return specialize_several(supernet, devices, folder, budgets, pareto, others, effort, options)


def specialize_several(
    supernet: str,
    devices: Mapping[str, str],
    folder: Path,
    budgets: Sequence[float],
    pareto: int | None,
    others: Mapping[str, float | None],
    effort: Effort,
    options: Mapping[str, Any],
) -> dict[str, Report]:
    """A network for each budget on each device ({name: as given}), each in a folder of its own, and their comparison.

    The budgets are searched twice. First largest to smallest, once each: what is evaluated for one budget informs the
    searches for the others. Then smallest to largest: a network that was found for one budget is within the others.
    """
    memory, reports, missed = Memory(), {}, {}
    for name, given in devices.items():
        try:
            with labs.open_lab(supernet, given, **options) as lab:
                samples = lab.samples(effort.latency_samples, effort.seed)
                ascending = sorted(budgets or samples.spread_budgets(pareto))
                for budget in reversed(ascending if len(ascending) > 1 else ()):
                    print(f"{place(folder, name, budget).name}: a first search", flush=True)
                    try:
                        explore(lab, Bounds(budget, **others), effort, memory)
                    except FAILURES as error:
                        print(f"{place(folder, name, budget).name}: {error}; it will be tried again")
                for budget in ascending:
                    to = place(folder, name, budget)
                    print(f"{to.name}: the search that counts", flush=True)
                    remove_leftovers(to)
                    try:
                        report = find_network(lab, Bounds(budget, **others), effort, memory)
                        reports[to.name] = write_result(lab, report, to)
                    except FAILURES as error:
                        missed[to.name] = error
        except FAILURES as error:
            missed[name] = error
    reports = dict(sorted(reports.items(), key=lambda item: (item[1].device["name"], item[1].bounds[LATENCY])))
    if reports:
        write_fronts(reports, folder)
        print(f"{len(reports)} networks, compared in {folder / FRONT_FILES[-1]}")
    if missed:
        reasons = "".join(f"\n{name}: {why}" for name, why in missed.items())
        message = f"{len(reports)} networks were written. For {len(missed)} budgets or devices there is none:{reasons}"
        raise ValueError(message) from ExceptionGroup("what was missed", list(missed.values()))
    return reports


def place(folder: Path, device: str, budget: float) -> Path:
    """The folder of the network for one of several budgets and devices."""
    return folder / f"{device}-{budget:g}ms"


def read_devices(given: str) -> dict[str, str]:
    """{name: as given} of devices that are separated by commas; ValueError for two of one name, or an unknown one."""
    from predictors.devices import get_device
    from recipes.formats import written_by

    devices: dict[str, str] = {}
    for part in dict.fromkeys(part.strip() for part in given.split(",")):
        device = get_device(part)
        written_by(device)  # before the work for any of them
        if device.name in devices or set("/\\") & set(device.name):
            raise ValueError(
                f"device = {given}: output folders are named after devices, so names must be unique and contain no / or"
                f" \\: {device.name}"
            )
        devices[device.name] = part
    return devices


def check_folder(
    folder: Path, supernet: Path, devices: Mapping[str, str], budgets: Sequence[float], several: bool, overwrite: bool
) -> None:
    """Raise an OSError where the results cannot be written to `folder`, or would replace something."""
    if folder.resolve() == supernet.resolve():
        raise ValueError(f"out = {folder} is the supernet's own folder")
    if not several:
        check_free(folder, result_files(folder), overwrite)
    elif folder.exists():
        if not folder.is_dir():
            raise FileExistsError(f"{folder} is a file: choose another folder")
        goes_on = ended_early(folder, list(devices))
        if not (overwrite or goes_on):
            raise FileExistsError(f"{folder} is not empty: choose another folder, or write into it (--overwrite true)")
        for to in (place(folder, name, budget) for name in devices for budget in budgets):
            check_free(to, result_files(to), overwrite or goes_on)
    check_writable(folder)


def ended_early(folder: Path, devices: Sequence[str]) -> bool:
    """Whether a folder holds only networks of these devices, as of a call that was ended before it compared them."""
    found = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return all(name.endswith("ms") and name.startswith(tuple(f"{device}-" for device in devices)) for name in found)
