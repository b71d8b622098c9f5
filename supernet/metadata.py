"""What someone needs to know who has only an exported folder: metadata.json, README.md and ONNX properties.

Importing this module imports no torch: a family describes its networks by a `Use`, a measurement is a `Measured`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from supernet.model import Part, Supernet

METADATA, README = CARD_FILES = "metadata.json", "README.md"
FORMAT = 1
Z = 1.959963984540054  # of a two-sided 95 % interval


@dataclasses.dataclass(frozen=True)
class MeasuredMetric:
    """A metric of a network on a split of its data, with its 95 % interval from `low` to `high`; None of one sentence.

    `n` counts the items (images, sentences), `targets` what the mean is over (images, tokens). `runtime` and
    `precision` say what computed the network's outputs.
    """

    name: str
    value: float
    split: str
    n: int
    targets: int
    low: float | None
    high: float | None
    interval: str | None
    runtime: str | None = None
    precision: str | None = None

    @classmethod
    def of(cls, items: Mapping[str, np.ndarray], name: str, split: str, **computed: str) -> MeasuredMetric:
        """The metric `name` of items as `supernet.evaluation.evaluate_items` gives them.

        Wilson's interval for a fraction of items, each right or wrong; else the normal one, of a mean over targets
        whose items vary.
        """
        import numpy as np

        values, counted = np.asarray(items[name], float), np.asarray(items["counted"], float)
        n, targets = len(values), int(counted.sum())
        value = float(values.sum() / counted.sum())
        if (counted == 1).all() and np.isin(values, (0, 1)).all():
            low, high, interval = *wilson(value, n), "Wilson, 95 %"
        elif n == 1:
            low = high = interval = None
        else:
            spread = (values - value * counted) / counted.mean()
            half = Z * float(spread.std(ddof=1)) / math.sqrt(n)
            low, high, interval = value - half, value + half, "normal, 95 %"
        return cls(name, value, split, n, targets, low, high, interval, **computed)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n items (Wilson 1927)."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclasses.dataclass(frozen=True)
class Latency:
    """A measured latency in ms, and where it was measured. `timed` are the lengths of a translation, in tokens."""

    ms: float
    statistic: str
    batch: int
    device: str
    cpu: str | None
    threads: int
    runtime: str
    version: str | None
    precision: str
    timed: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a network; None where nothing was."""

    metric: MeasuredMetric | None = None
    latency: Latency | None = None

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Measured:
        """What a report.json of `specialize` says; what an older report lacks is None."""
        device = report.get("device") or {}
        names = ("latency_ms", "measured_metric") if "version" in report else ("confirmed_ms", "metric")
        ms, metric = map(report.get, names)
        latency = None
        if ms is not None and device:
            latency = Latency(
                ms=ms,
                statistic=device["statistic"],
                batch=device["batch"],
                device=device["name"],
                cpu=device.get("cpu"),
                threads=device["threads"],
                runtime=device["runtime"],
                version=device.get("version"),
                precision=device["precision"],
                timed=report.get("timed") or {},
            )
        return cls(MeasuredMetric(**metric) if metric else None, latency)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A network's files in one format: what loads them, and what goes in and comes out, by the file's name.

    `inputs` and `outputs` are {file: {tensor: {"shape", "dtype"}}}; a size that may be any is given by its name.
    """

    format: str
    runtime: str
    precision: str
    files: tuple[str, ...]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    batch: int | str = "dynamic"
    opset: int | None = None
    programs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Use:
    """How a network is used, as its family describes it.

    `task` is Hugging Face's name of the task, None if there is none. `facts` are JSON values for metadata.json: how an
    input is made and an output read. `snippet` gives the Python code of a README that runs exported files; it may use
    `$folder`, the folder's name. `notes` follow it. `files` {name: text} are written beside them. `languages` are
    codes.
    """

    task: str | None
    title: str
    facts: Mapping[str, Any]
    snippet: Callable[[Exported], str]
    packages: tuple[str, ...] = ("numpy",)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: str = ""
    languages: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The content of metadata.json."""

    family: str
    config: Mapping[str, Any]
    parameters: int
    macs: int
    task: str | None
    use: Mapping[str, Any]
    exported: Exported
    measured: Measured
    data: Mapping[str, Any]
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the facts of the family stand beside the rest."""
        values = {"format_version": FORMAT} | dataclasses.asdict(self)
        exported, measured, use = (values.pop(name) for name in ("exported", "measured", "use"))
        return json.loads(json.dumps(values | exported | measured | use, default=float))

    def properties(self) -> dict[str, str]:
        """The same as properties of an ONNX file, which are text: JSON where a value is not."""
        values = self.to_dict()
        return {name: x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for name, x in values.items()}


def metadata_of(network: Supernet, exported: Exported, measured: Measured, use: Use | None = None) -> Metadata:
    """The metadata of an extracted network in a format; `use` stands in the place of the family's own."""
    costs = network.costs(network.space.encode([network.config]))
    spec = network.input_spec
    use = use or use_of(network)
    return Metadata(
        family=type(network).__name__,
        config=dataclasses.asdict(network.config),
        parameters=int(costs["params"][0]),
        macs=int(costs["macs"][0]),
        task=use.task,
        use=use.facts,
        exported=exported,
        measured=measured,
        data={"name": spec.get("dataset"), "license": spec.get("license")},
        versions=versions(("supernet", "torch", *exported.programs)),
    )


def use_of(network: Supernet) -> Use:
    """What the network's family says of its use, or what is known without it."""
    return network.use() or Use(None, type(network).__name__, {}, generic_snippet)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """{package: version} of the installed ones."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def tensors(part: Part, values: Iterable[Any], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: {"shape", "dtype"}} of a part's inputs or outputs; axes of any size have their name for a size."""
    described = {}
    for name, x in zip(names, values, strict=True):
        axes = part.dynamic.get(name, {})
        shape = [axes.get(axis, size) for axis, size in enumerate(x.shape)]
        described[name] = {"shape": shape, "dtype": str(x.dtype).removeprefix("torch.")}
    return described


# ------------------------------------------------------------------------------------------------ the files


def write_card(
    folder: Path, network: Supernet, exported: Exported, measured: Measured, name: str, use: Use | None = None
) -> None:
    """Write metadata.json, README.md and the files of a `Use`, the family's own if None, to a folder that will be
    called `name`."""
    use = use or use_of(network)
    metadata = metadata_of(network, exported, measured, use)
    for file, text in use.files.items():
        (folder / file).write_text(text, encoding="utf-8")
    text = json.dumps(metadata.to_dict(), indent=1, ensure_ascii=False)
    (folder / METADATA).write_text(text + "\n", encoding="utf-8")
    files = sorted(path.name for path in folder.iterdir() if path.name != README)
    (folder / README).write_text(readme(metadata, use, name, files), encoding="utf-8")


def readme(metadata: Metadata, use: Use, name: str, files: Iterable[str]) -> str:
    """The text of README.md: a Hugging Face model card, whose Python code runs. `files` are those beside it."""
    exported, measured = metadata.exported, metadata.measured
    runtime = runtime_of(exported)
    code = Template(use.snippet(exported)).safe_substitute(folder=name)
    header = ["library_name: " + runtime.library, *([f"pipeline_tag: {use.task}"] if use.task else [])]
    header += ["language:", *(f"- {json.dumps(language)}" for language in use.languages)] if use.languages else []
    header += ["tags:", *(f"- {tag}" for tag in ("supernet", exported.format))]
    needs = ", ".join(dict.fromkeys((*runtime.packages, *use.packages)))
    versions = ", ".join(f"{package} {version}" for package, version in metadata.versions.items())
    rows = {
        "format": f"{exported.format}, {exported.precision}" + (f", opset {exported.opset}" if exported.opset else ""),
        "files": ", ".join(f"`{file}`" for file in files),
        "batch": "any"
        if exported.batch == "dynamic"
        else f"{exported.batch} at a time; `supernet export --batch N` writes files for another number",
        "size": f"{metadata.parameters:,} parameters, {metadata.macs:,} multiply-accumulates an inference",
        "data": f"{metadata.data['name'] or 'not recorded'}, license: {metadata.data['license'] or 'not known'}",
        "written by": versions,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    onnx = [file for file in exported.files if file.endswith(".onnx")]
    embedded = f"; so has the metadata_props of {' and '.join(f'`{file}`' for file in onnx)}" if onnx else ""
    return f"""---
{chr(10).join(header)}
---
# {use.title}

A {metadata.family} network that was cut out of a trained supernet. `{METADATA}` has the facts below, and more, for
programs{embedded}.

| | |
|---|---|
{table}

## Use

It needs {needs}.

```python
{code.strip()}
```
{use.notes and chr(10) + use.notes + chr(10)}
{facts_text(metadata.use)}
## Quality and latency

{measured_text(measured, exported)}
"""


def facts_text(facts: Mapping[str, Any]) -> str:
    """What is known of input and output, as a list; long values are left to metadata.json."""
    lines = []
    for name, value in facts.items():
        title = name.replace("_", " ")
        if isinstance(value, Mapping):
            lines.append(f"## {title.capitalize()}\n")
            lines += [f"- {key.replace('_', ' ')}: {shown(x)}" for key, x in value.items()]
            lines.append("")
        else:
            lines += [f"{title.capitalize()}: {shown(value)}", ""]
    return "\n".join(lines)


def shown(value: Any, most: int = 400) -> str:
    """A value in a sentence."""
    if value is None:
        return "not known"
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= most else f"{text[:most].rpartition(', ')[0]}, ... (see `{METADATA}`)"


def measured_text(measured: Measured, exported: Exported) -> str:
    """What was measured, in sentences."""
    metric, latency, lines = measured.metric, measured.latency, []
    if metric is None:
        lines.append(
            "No metric was measured of this network: it was exported without a report of `supernet specialize`."
        )
    else:
        on = f" ({metric.runtime}, {metric.precision})" if metric.runtime else ""
        interval = f", interval {metric.low:.4f} to {metric.high:.4f} ({metric.interval})" if metric.interval else ""
        name = metric.name.capitalize()
        lines.append(f"{name} {metric.value:.4f} on the {metric.split} split, {metric.n} items{interval}{on}.")
    if latency is None:
        lines.append("No latency was measured.")
    else:
        timed = "".join(f", {name.replace('_', ' ')} {value}" for name, value in latency.timed.items())
        lines.append(
            f"Latency {latency.ms:.3f} ms ({latency.statistic}, batch {latency.batch}{timed}) on {latency.device}:"
            f" {latency.runtime} {latency.version or ''}, {latency.precision}, {latency.threads} thread"
            f"{'s' if latency.threads != 1 else ''}, {latency.cpu or 'processor not recorded'}."
        )
    for what, of in (("metric", metric), ("latency", latency)):
        if of and of.runtime and (of.runtime, of.precision) != (exported.runtime, exported.precision):
            lines.append(
                f"The {what} was measured with the network's file for {of.runtime} in {of.precision}. This export, for"
                f" {exported.runtime} in {exported.precision}, was not measured."
            )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ the runtimes


@dataclasses.dataclass(frozen=True)
class RuntimeUse:
    """How a README runs a network's file: Hugging Face's name of the library, packages, imports, and the code of
    `run(*arrays)`, which returns the first output."""

    library: str
    packages: tuple[str, ...]
    imports: tuple[str, ...] = ()
    code: str = ""


RUNTIMES = {
    "onnxruntime": RuntimeUse(
        "onnx",
        ("onnxruntime",),
        ("import onnxruntime",),
        '''session = onnxruntime.InferenceSession(str(folder / "$file"), providers=["CPUExecutionProvider"])


def run(*arrays):
    """The network's output of its inputs."""
    return session.run(None, {x.name: array for x, array in zip(session.get_inputs(), arrays)})[0]
''',
    ),
    "openvino": RuntimeUse(
        "openvino",
        ("openvino",),
        ("import openvino",),
        '''# OpenVINO would compute in bfloat16 or float16 where the processor has it.
model = openvino.compile_model(folder / "$file", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run(*arrays):
    """The network's output of its inputs."""
    return model(list(arrays))[0]
''',
    ),
    "executorch": RuntimeUse(
        "executorch",
        ("executorch",),
        ("import torch", "from executorch.runtime import Runtime"),
        '''program = Runtime.get().load_program(str(folder / "$file"))
method = program.load_method("forward")


def run(*arrays):
    """The network's output of its inputs."""
    return method.execute([torch.from_numpy(array) for array in arrays])[0].numpy()
''',
    ),
    "torch": RuntimeUse(
        "pytorch",
        ("supernet",),
        ("import torch", "import hat, ofa  # the families of saved networks", "from supernet.export import load"),
        '''network = load(folder)


def run(*arrays):
    """The network's output of its inputs."""
    with torch.inference_mode():
        return network(*map(torch.from_numpy, arrays)).numpy()
''',
    ),
    "timm": RuntimeUse("timm", ("timm", "torch")),
    "transformers": RuntimeUse("transformers", ("transformers>=5", "torch")),
}


def runtime_of(exported: Exported) -> RuntimeUse:
    """How the runtime of an export is used; torch-compile runs what torch runs. Of a runtime that another package
    added, only the name is known."""
    return RUNTIMES.get(exported.runtime.removesuffix("-compile"), RuntimeUse(exported.runtime, (exported.runtime,)))


def assembled(exported: Exported, imports: Iterable[str], code: str) -> str:
    """The code of a README for a network of one file: imports, `run` in the format's runtime, then `code`."""
    runtime = runtime_of(exported)
    running = Template(runtime.code).safe_substitute(file=exported.files[0])
    where = 'folder = Path("$folder")  # the path of this folder'
    return "\n".join([import_lines({*imports, *runtime.imports}), "", where, running, "", code.strip()])


def import_lines(lines: Iterable[str]) -> str:
    """Import statements in order, those of Python's own modules first."""
    ordered = sorted({"from pathlib import Path", *lines}, key=lambda line: (line.startswith("from "), line))
    own = [line for line in ordered if line.split()[1].split(".")[0] in sys.stdlib_module_names]
    return "\n".join([*own, "", *(line for line in ordered if line not in own)])


def generic_snippet(exported: Exported) -> str:
    """The code of a README for a family that does not say what its inputs mean: zeros of the right shapes."""
    if len(exported.files) > 1:
        return f"# The files run as one inference as run.json says: {', '.join(exported.files)}."
    (inputs,) = exported.inputs.values()
    arrays = ", ".join(
        f"np.zeros({[size if isinstance(size, int) else 1 for size in x['shape']]}, np.{x['dtype']})"
        for x in inputs.values()
    )
    return assembled(exported, ["import numpy as np"], f"print(run({arrays}).shape)")
