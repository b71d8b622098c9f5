"""The verbs of the command `supernet`, as functions. Heavy imports happen inside them, so that help is quick."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from supernet.values import integer

__all__ = ["devices", "evaluate", "export", "make_data", "measure", "prepare", "read_section", "records", "specialize"]

LOADERS = {"holdout": "val_dataloader", "test": "test_dataloader"}  # of a data module, by what they load
# Networks that are timed, or evaluated: at least; before it is asked whether they are enough; at most, if not told.
LEAST_SAMPLES, FIRST_SAMPLES, MOST_SAMPLES = 5, 20, 200
MOST_TIMED = 60  # at most, of those that are timed
GARBAGE = 100_000  # new objects from which on the garbage collector runs, where exports and imports make many
FEW_SAMPLES = 10  # timed before that is asked where the store has another device's latencies
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


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Meanwhile SIGTERM ends this process as an exception does, so that temporary files are deleted; what was measured
    is in the store."""
    import signal
    import threading

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def read_budgets(given: float | str | list[float] | None) -> list[float]:
    """Budgets in ms, each once: a number, several, or a text of several that are separated by commas."""
    parts = given.split(",") if isinstance(given, str) else np.ravel(given).tolist() if given is not None else []
    try:
        return list({f"{float(part):g}": float(part) for part in parts if part is not None}.values())
    except (TypeError, ValueError):
        raise ValueError(f"max_latency = {given}: a number of ms, or several separated by commas") from None


def measure(
    supernet: str,
    device: str,
    samples: int | str = "auto",
    max_samples: int = MOST_TIMED,
    max_seconds: float = 3600.0,
    data: str | None = None,
    store: str | None = None,
    engine: str = "process",
    seed: int = 0,
) -> dict[str, Any]:
    """Time networks of a supernet on a device, and tell how well a latency predictor does on them.

    They are those of random ones from which a linear model learns most. What is measured goes to the store, from which
    `specialize` takes it.

    Args:
        supernet: folder of a supernet; it need not be trained.
        device: what the latency is of, as in `specialize`.
        samples: networks to time; auto, until more would tell the predictor little.
        max_samples: at most so many, with auto.
        max_seconds: no more once the networks ran on the device for so long, with auto.
        data: a YAML file with class_path and init_args; the data the supernet was trained on if left out.
        store: SQLite file of all measurements, which are never repeated; beside the supernet if left out.
        engine: as in `specialize`.
        seed: of the networks.

    Returns:
        {"n": networks timed, "failed": of them, "cv_error": cross-validated mean absolute relative error of the
        predictor, "macs_error": that of a straight line on MACs, "constant_error": that of one number for all,
        "noise_floor": how well the measurements repeat, relative, "smallest_ms", "largest_ms", "seconds": by what they
        were spent on}
    """
    number, seed = read_samples("samples", samples), integer("seed", seed, 0)
    max_samples = integer("max_samples", max_samples, FIRST_SAMPLES)
    if not 0 < max_seconds < math.inf:
        raise ValueError(f"max_seconds = {max_seconds} is not a positive number")

    import tempfile

    from recipes.sampling import measure_space

    with ending_on_sigterm(), tempfile.TemporaryDirectory() as files:
        with open_bench(supernet, device, data, store, files, engine, ()) as bench:
            return measure_space(bench, number, max_samples, max_seconds, seed)


def read_samples(name: str, given: int | str) -> int | None:
    """A number of networks to time or to evaluate, or None for auto."""
    if given == "auto":
        return None
    try:
        return integer(name, given, LEAST_SAMPLES)
    except ValueError:
        raise ValueError(f"{name} = {given}: a number of at least {LEAST_SAMPLES}, or auto") from None


@contextmanager
def open_bench(
    supernet: str,
    device: str,
    data: str | None,
    store: str | None,
    files: str,
    engine: str,
    splits: Sequence[str] = tuple(LOADERS),
) -> Iterator[Any]:
    """The `recipes.bench.Bench` of a saved supernet on a device, with its data (those `splits` of it) and its store."""
    from predictors.devices import get_device
    from predictors.store import Store
    from recipes.bench import Bench
    from supernet.saving import load

    if engine not in ("process", "ray"):
        raise ValueError(f"engine: {engine!r} is neither process nor ray")
    import_families()
    network = load(supernet)
    if network.extracted:
        raise ValueError(f"{supernet} is a subnet: this needs its supernet")
    timed_on = get_device(device)
    path = Path(store) if store else Path(supernet).resolve().parent / "measurements.sqlite"
    with Store(path) as measurements:
        section = read_section(supernet, data)
        kept = path.with_name(f"{path.name}.files")
        bench = Bench(network, make_data(section, splits), timed_on, measurements, Path(files), section, engine, kept)
        try:
            yield bench
        finally:
            bench.close()
            print(f"{timed_on.name}: seconds by stage\n{bench.ledger}", flush=True)


def export(
    subnet: str,
    out: str,
    format: str = "onnx",
    architecture: str | None = None,
    batch: int | str = 1,
    opset: int | None = None,
    data: str | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write a subnet in other programs' formats, each checked against the torch network.

    Beside the files of each format, metadata.json and README.md say how they are used, and what was measured where
    `subnet` is a folder that `specialize` wrote.

    Args:
        subnet: folder of a saved subnet, or of a supernet if `architecture` is given.
        out: folder to write to; files or a folder per format.
        format: comma-separated, of {formats}: timm is for convolutional networks, huggingface for translation.
        architecture: which subnet of a supernet: largest, smallest, or a JSON or YAML file of its config.
        batch: how many inputs the files take at once, or dynamic, any number; not for timm and huggingface, which take
            any, and ExecuTorch has no dynamic.
        opset: version of the operators of ONNX files, 17 or later; 20 if left out.
        data: a YAML file with class_path and init_args, to recalibrate BatchNorm of a supernet's subnet on, and to take
            the ranges of int8 layers from; the data the supernet was trained on if left out.
        overwrite: let it replace an earlier export.

    Returns:
        {format: what was written}
    """
    import_families()
    from supernet.atomic import check_writable
    from supernet.export import Request, check_network, check_request, known_formats
    from supernet.export.folder import check_place, write_export

    names = list(dict.fromkeys(name.strip() for name in format.split(",")))
    check_request(names, batch, opset)
    check_writable(out)
    network, module = load_subnet(subnet, architecture, data, ())
    check_network(names, network, subnet)
    folder = Path(out)
    for name in names:
        check_place(network, name, folder, overwrite)
    calibrates = any(known_formats()[name].calibrates for name in names)
    if data or calibrates:
        module = module or make_data(read_section(subnet, data), ())
        network.check_data(module.input_spec)
        network.input_spec = module.input_spec | network.input_spec  # older networks lack some of it
    seen = calibration_inputs(network, module, batch) if calibrates else None
    if network.input_spec and (lacks := unknown_facts(network)):
        print(f"{subnet} does not record {', '.join(lacks)}; where the data say it, --data adds it")
    request = Request(batch, opset, seen, measured_of(subnet, network), overwrite)
    written = {}
    for name in names:
        written[name] = write_export(network, name, folder, request)
        print(f"{name}: {written[name]}")
    return written


def calibration_inputs(network: Any, data: Any, batch: int | str) -> Any:
    """What the parts of a network get as inputs on its data, of which int8 layers take their ranges."""
    from recipes.device_files import seen_by_parts

    return seen_by_parts(network, batch if isinstance(batch, int) else 1, data.calibration_batches())


def unknown_facts(network: Any) -> list[str]:
    """What the network does not say of its use that a user needs, as an older saved network may not."""
    from supernet.metadata import use_of

    facts = use_of(network).facts
    nested = [(f"{name}.{key}", x) for name, of in facts.items() if isinstance(of, dict) for key, x in of.items()]
    return [name for name, value in (*facts.items(), *nested) if value is None]


def measured_of(folder: str, network: Any) -> Any:
    """What the report.json beside a saved network says that was measured of it (a `Measured`); nothing without one."""
    import json

    from supernet.metadata import Measured

    path = Path(folder) / "report.json"
    if not path.is_file():
        return Measured()
    try:
        report = json.loads(path.read_text())
        of_it = report["config"] == json.loads(json.dumps(dataclasses.asdict(network.config)))
        return Measured.of(report) if of_it else Measured()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a report of specialize: {error}") from error


def evaluate(
    subnet: str,
    architecture: str | None = None,
    data: str | None = None,
    split: str = "holdout",
    beam: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | None = None,
    tokenize: str | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Evaluate a subnet as it is, on the held-out part or, for a last look, the test set.

    Args:
        subnet: folder of a saved subnet, or of a supernet if `architecture` is given.
        architecture: which subnet of a supernet: largest, smallest, or a JSON or YAML file of its config.
        data: a YAML file with class_path and init_args; the data the supernet was trained on if left out.
        split: holdout or test.
        beam: hypotheses of a translation network's search; the data's if left out.
        length_penalty: the power of a translation's length that its score is divided by; the data's if left out.
        early_stopping: end a search when `beam` hypotheses are finished, as HAT does; if left out or false, when no
            unfinished hypothesis can become better.
        tokenize: sacrebleu's tokenizer for BLEU: 13a, intl, zh, ja-mecab (needs sacrebleu[ja]), ko-mecab (needs
            sacrebleu[ko]), char, none, flores101 or flores200 (each needs sentencepiece and downloads a model); if left
            out, that of the target language: zh for Chinese, ja-mecab for Japanese, ko-mecab for Korean, char for Thai,
            Lao, Khmer, Burmese and Tibetan, 13a for others.
        against: folder of another saved translation network, whose BLEU and chrF are compared.

    Returns:
        {"loss": mean cross entropy, "accuracy": fraction of right labels or tokens}; of an image network also
        "balanced_accuracy", the mean over the classes, and "per_class": {class: its accuracy}; of a translation network
        also its "perplexity", and of sacrebleu "bleu", with a bootstrap interval from "low" to "high" and a "signature"
        that names the tokenizer, and "chrf", "chrf_low", "chrf_high" and "chrf_signature"; the search: "beam",
        "length_penalty" and "early_stopping"; with `against`, "difference" and "chrf_difference", by how much BLEU and
        chrF are above the other network's, with intervals of a paired bootstrap
    """
    if split not in LOADERS:
        raise ValueError(f"split: {split!r} is neither {' nor '.join(LOADERS)}")
    if beam is not None and beam < 1:
        raise ValueError(f"beam = {beam}: at least 1")
    import_families()
    import hat
    from supernet.evaluation import evaluate_network
    from supernet.saving import load

    network, module = load_subnet(subnet, architecture, data, [split])
    if module is None:
        module = make_data(read_section(subnet, data), [split])
    network.check_data(module.input_spec)
    if isinstance(network, hat.Transformer):
        from hat.translation import bleu_metric, choose_tokenizer

        sources, references = module.texts(split)
        tokenize = tokenize or choose_tokenizer(module.input_spec.get("target_language"), references)
        bleu_metric(tokenize)  # what it needs is missing before the work, if it is
        others = [] if against is None else [load(against)]
        for other in others:
            if not isinstance(other, hat.Transformer) or not other.extracted:
                raise ValueError(f"against: {against} is not a saved subnet of a translation supernet")
            other.check_data(module.input_spec)
    elif {beam, length_penalty, early_stopping, tokenize, against} != {None}:
        raise ValueError(
            "beam, length_penalty, early_stopping, tokenize and against are for translation networks, not"
            f" {type(network).__name__}"
        )
    loader = getattr(module, LOADERS[split])()
    figures = evaluate_classes(network, loader) if "classes" in module.input_spec else evaluate_network(network, loader)
    if isinstance(network, hat.Transformer):
        search = {
            "beam": module.beam if beam is None else beam,
            "length_penalty": module.length_penalty if length_penalty is None else length_penalty,
            "early_stopping": bool(early_stopping),
        }
        figures["perplexity"] = math.exp(figures["loss"])
        figures |= score_translations([network, *others], module.tokenizer, sources, references, search, tokenize)
    told = {name: x for name, x in figures.items() if name != "per_class"}
    print(", ".join(f"{name} {f'{x:.4f}' if isinstance(x, float) else x}" for name, x in told.items()))
    return figures


def evaluate_classes(network: Any, batches: Any) -> dict[str, Any]:
    """{"accuracy", "loss", "balanced_accuracy", "per_class"} of an image network over batches; prints a table."""
    import numpy as np
    import torch

    from supernet.evaluation import class_table, evaluate_items, means, per_class

    targets: list[Any] = []

    def seen() -> Iterator[Any]:
        for batch in batches:
            targets.append(batch[-1].numpy())
            yield batch

    network.eval().to(memory_format=torch.channels_last)
    items = evaluate_items(lambda inputs: network(*network.prepare(inputs)), seen())
    labels, counts = np.concatenate(targets), items["counted"] > 0
    names = network.input_spec.get("class_names")
    accuracies = per_class(items["accuracy"][counts], labels[counts], names)
    sizes = np.unique(labels[counts], return_counts=True)[1].tolist()
    print(class_table(accuracies, dict(zip(accuracies, sizes))))
    mean = float(np.mean(list(accuracies.values())))
    return means(items) | {"balanced_accuracy": mean, "per_class": accuracies}


def score_translations(
    networks: Sequence[Any],
    tokenizer: Any,
    sources: Sequence[str],
    references: Sequence[str],
    search: dict[str, Any],
    tokenize: str,
) -> dict[str, Any]:
    """BLEU and chrF of the first network's translations, and how they differ from those of the second if there is one.

    `search` is the beam, the length penalty and whether a search stops early.
    """
    from hat.huggingface import to_huggingface
    from hat.translation import bleu, chrf, compare_bleu, compare_chrf, translate

    beam, length_penalty, early_stopping = search.values()
    options = {"num_beams": beam, "length_penalty": length_penalty, "early_stopping": early_stopping}
    ours, *others = [translate(to_huggingface(network), tokenizer, sources, **options) for network in networks]
    figures = bleu(ours, references, tokenize=tokenize) | chrf(ours, references) | search
    for theirs in others:
        figures |= compare_bleu(ours, theirs, references, tokenize=tokenize) | compare_chrf(ours, theirs, references)
    return figures


def devices() -> dict[str, str]:
    """List the devices, each tried on this machine with a small network.

    Returns:
        {name: "works", or why it does not}
    """
    import tempfile

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from predictors.devices import known_devices
    from recipes.bench import try_device

    table = Table("device", "runtime", "precision", "threads", "on this machine", box=None)
    told = {}
    for name, make in sorted(known_devices().items()):
        with tempfile.TemporaryDirectory() as folder:
            try:
                device = make()
                try_device(device, Path(folder))
                told[name] = "works"
            except Exception as error:  # whatever another package's device, or a runtime, makes of it
                told[name] = str(error)
        columns = (device.runtime, device.precision, str(device.threads)) if told[name] == "works" else ("", "", "")
        table.add_row(
            name, *columns, escape(told[name].splitlines()[0]) if told[name] else "fails, and does not say why"
        )
    Console().print(table)
    return told


def records(store: str, out: str, table: str = "latency", overwrite: bool = False) -> int:
    """Write the measurements of a store as a file: .csv or .parquet.

    Args:
        store: SQLite file, as `specialize` and `measure` leave it beside the supernet.
        out: file to write; its suffix says which.
        table: latency, confirmation, footprint, failure, accuracy or items.
        overwrite: let it replace a file.

    Returns:
        the number of records
    """
    from predictors.store import Store

    path = Path(out)
    if not Path(store).is_file():
        raise FileNotFoundError(f"{store} is not there")  # opening it would make one
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} already exists: choose another --out, or --overwrite true")
    path.parent.mkdir(parents=True, exist_ok=True)
    with Store(store) as measurements:
        written = measurements.write(table, path)
    print(f"{written} records written to {path}")
    return written


def prepare(
    out: str, dataset: str = "libreoffice_en_de", root: str | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Make a data set of files: libreoffice_en_de, sentence pairs from the help pages of LibreOffice.

    Args:
        out: folder to write: train, valid and test, each as two files of aligned lines.
        dataset: libreoffice_en_de, English and German (MPL-2.0).
        root: folder in which Debian's libreoffice-help-en-us and libreoffice-help-de are unpacked, together or each in
            a folder of its own; fetched with apt-get if left out.
        overwrite: let it replace an earlier one in `out`.

    Returns:
        {"pages", "pairs": all found, "clean": those kept, "train", "valid", "test": of them in each split}
    """
    if dataset != "libreoffice_en_de":
        raise ValueError(f"dataset: {dataset!r} is not one that can be made; there is libreoffice_en_de")
    from hat.libreoffice import make

    return make(out, root, overwrite=overwrite)


def load_subnet(folder: str, architecture: str | None, data: str | None, splits: Sequence[str]) -> tuple[Any, Any]:
    """A saved subnet, or the one of a supernet that `architecture` names; and the data module (with those `splits`), if
    one was made."""
    from supernet.model import calibrate
    from supernet.saving import load

    network = load(folder)
    if network.extracted:
        if architecture is not None:
            raise ValueError(f"{folder} is a subnet, which has one architecture: leave {architecture} out")
        return network, None
    if architecture is None:
        raise ValueError(f"{folder} is a supernet: say which subnet of it (--architecture largest, smallest or a file)")
    subnet = network.extract(read_config(network.space, architecture)).eval()
    module = make_data(read_section(folder, data), splits)
    network.check_data(module.input_spec)
    return calibrate(subnet, module.calibration_batches()), module


def read_config(space: Any, name: str) -> Any:
    """A config of the space: its largest, its smallest, or what a JSON or YAML file says (a report.json, too)."""
    import yaml

    if name in ("largest", "smallest"):
        return getattr(space, name)()
    if not Path(name).is_file():
        raise ValueError(f"architecture: {name!r} is neither largest nor smallest, and no file")
    try:
        values = yaml.safe_load(Path(name).read_text())
        if isinstance(values, dict) and isinstance(values.get("config"), dict):
            values = values["config"]
        fields = {field.name for field in dataclasses.fields(space.config_class)}
        if isinstance(values, dict) and (lacks := fields - values.keys()):
            raise ValueError(f"it lacks {', '.join(sorted(lacks))}")
        config = space.config_class(**values)
        space.encode([config])
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} is not a config of a {space.config_class.__name__}: {error}") from error
    return config


def import_families() -> None:
    """Import the families, so that saved networks of theirs can be loaded and recipes can name them.

    Raises ImportError where another distribution's package `ofa` (there is one on PyPI) has overwritten ours.
    """
    import hat  # noqa: F401
    import ofa

    if not hasattr(ofa, "FAMILIES"):
        place = getattr(ofa, "__file__", None) or list(ofa.__path__)[0]  # a package without __init__ has no file
        raise ImportError(
            f"{place} is another project's package `ofa`, which has overwritten this one's: use an environment without"
            " it, or `pip uninstall ofa` and install supernet again"
        )


def read_section(folder: str, data: str | None = None) -> dict[str, Any]:
    """The class_path and init_args of a YAML file, or of the data that a saved network was trained on."""
    import yaml

    from supernet.saving import read_description

    try:
        section = yaml.safe_load(Path(data).read_text()) if data else read_description(folder).get("data")
    except yaml.YAMLError as error:
        raise ValueError(f"{data} is not YAML: {error}") from error
    if not isinstance(section, dict) or "class_path" not in section:
        raise ValueError(f"{data or folder} does not say its data: give --data, a YAML file with class_path, init_args")
    return section


def make_data(section: dict[str, Any], splits: Sequence[str] = tuple(LOADERS)) -> Any:
    """The data module of a class_path and init_args, set up; ValueError for one that lacks what networks need, or one
    of the `splits`."""
    import pytorch_lightning as pl
    from jsonargparse import ArgumentError, ArgumentParser

    from supernet.data import check_calibration, check_loader, check_module, seeded
    from supernet.values import json_value

    import_from_here()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    with seeded():  # as in a training: a split at random is the same one
        try:
            data = parser.instantiate(parser.parse_object({"data": section})).data
        except ArgumentError as error:
            looked = looked_in(str(section["class_path"]))
            raise ValueError(
                f"the data {section}: {error}{looked}\n--data gives other data, or another root"
            ) from error
    data.prepare_data()
    for stage in ("fit", "test") if "test" in splits else ("fit",):
        data.setup(stage)
    check_module(data, ["input_spec", "calibration_batches", *(LOADERS[split] for split in splits)])
    if not isinstance(getattr(type(data), "input_spec", None), property):
        data.input_spec = json_value("input_spec", data.input_spec)  # of arrays, too, networks and their ids are made
    check_calibration(data, None)
    for name in (LOADERS[split] for split in splits):
        check_loader(getattr(data, name)(), f"{type(data).__name__}.{name}()", data.input_spec, None)
    return data


def import_from_here() -> None:
    """Let modules of the current folder be imported, after all others: a file there hides no installed package."""
    import os
    import sys

    try:
        here = os.getcwd()
    except FileNotFoundError:  # the folder was removed
        return
    if not {"", here} & set(sys.path):
        # An editable install is found by a finder that runs after sys.path: its folder has to come before `here`.
        sys.path += [str(Path(__file__).parents[1]), here]


def looked_in(class_path: str) -> str:
    """Where a class was looked for, as the end of an error message; nothing where its module was found and has it."""
    import os
    from importlib import import_module

    module, _, name = class_path.rpartition(".")
    try:
        found = import_module(module or name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module or name}.".startswith(f"{error.name}."):
            return ""  # it was found, and imports what is not there
        return f"\nlooked for {error.name} among the installed packages and in the current folder, {os.getcwd()}"
    except Exception:  # whatever the module does; the parser's message has it
        return ""
    if module and not hasattr(found, name):
        place = getattr(found, "__file__", None) or "no file"
        return f"\n{module} is {place}, which has no {name}: rename your file where it has the name of a package"
    return ""
