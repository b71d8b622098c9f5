"""The page of a report, and its pictures: one HTML file that loads nothing else."""

from __future__ import annotations

import html
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from recipes.report import Report
from supernet.space import SearchSpace

SPLITS = {
    "selection": "half of the held-out data, which chose the network",
    "held_out": "the other half, which chose nothing",
    "test": "the test set, which chose nothing",
}
CHOSEN, FINALIST, SAMPLE = "#c0392b", "#2471a3", "#b3b6b7"


def write_page(report: Report, space: SearchSpace, config: Any, path: Path) -> None:
    """Write the page of a report: the verdict first, then the front, the files, the network and the measurements."""
    device = report.device
    title = f"A network for {device['name']} within {report.budget_ms:g} ms"
    sections = [
        section("Compared with other networks of the supernet", rivals_table(report), RIVALS_NOTE),
        section(f"{report.metric.capitalize()} against latency", svg(draw_front(report)), FRONT_NOTE),
        section("Files", files_table(report)),
        section("The network", svg(draw_network(space, config)) + table(ungated(space, config))),
        section("Metrics of the exported file", metrics_table(report), "Computed by the file in its own runtime."),
        section("Latency", latency_table(report), LATENCY_NOTE),
        *predictions_sections(report),
        section("Bounds", bounds_table(report)),
        section("Time spent", seconds_table(report), "Seconds on this device so far, by activity."),
        section("Supernet, data and command", origin_table(report)),
        section("Device", table({key: str(value) for key, value in device.items()})),
    ]
    path.write_text(page(title, verdict(report), sections), encoding="utf-8")


RIVALS_NOTE = """
Metrics are of the test set. The chosen network's is of its exported file, the others' of networks in PyTorch.
<i>Difference</i> is the chosen network's metric minus the other's on the same items, with its 95 % interval. An
interval that contains 0 shows no difference.
"""
FRONT_NOTE = """
<i>Samples</i> are random networks that were evaluated to fit the predictors; their latency is predicted.
<i>Finalists</i> are networks that the search proposed: each was exported, and its file was timed. A line leads from
a finalist's predicted place to its measured place. The star is the chosen network.
"""
LATENCY_NOTE = """
<i>Confirmed</i>: the file was timed again in new processes with ordinary memory addresses; this latency kept the
budget. <i>Drift</i>, a slowdown of the whole machine, is measured on a reference network and divided out.
"""
PREDICTORS_NOTE = """
By cross-validation, on networks that a predictor has not seen. <i>Error</i> is the mean absolute error in percent.
<i>Rank correlation</i> is Kendall's tau; 1 means that the order is predicted exactly.
"""


def verdict(report: Report) -> str:
    """The result in some sentences, as HTML."""
    measured, device = report.measured_metric, report.device
    interval = "" if measured.low is None else f" (95 % interval {measured.low:.4f} to {measured.high:.4f})"
    where = f"{device['name']}, {device.get('cpu') or device.get('machine', '')}"
    lines = [
        f"<b>{report.latency_ms:.3f} ms</b> on {html.escape(where)}, by the {device['statistic']} of its runs: within"
        f" the budget of {report.budget_ms:g} ms.",
        f"<b>{report.metric.capitalize()} {measured.value:.4f}</b> on {measured.n} items of the test set{interval}.",
    ]
    for rival in report.rivals:
        if rival.low <= 0 <= rival.high:
            words = f"no difference in {report.metric} is shown"
        else:
            words = f"{report.metric} is {'higher' if rival.low > 0 else 'lower'} by {abs(rival.difference):.4f}"
        speed = f", at {report.latency_ms / rival.latency_ms:.0%} of its latency" if rival.latency_ms else ""
        lines.append(f"Compared with the {html.escape(rival.name)}: {words}{speed}.")
    return "".join(f"<p>{line}</p>" for line in lines)


def rivals_table(report: Report) -> str:
    """The chosen network beside its rivals."""
    heads = ("network", "latency (ms)", "MACs", "parameters", f"test {report.metric}", "difference")
    rows = [
        (
            "chosen",
            f"{report.latency_ms:.3f}, measured",
            f"{report.macs:,}",
            f"{report.params:,}",
            f"{report.measured_metric.value:.4f}",
            "",
        )
    ]
    for rival in report.rivals:
        how = "measured" if rival.measured else "predicted"
        ms = "it failed" if rival.latency_ms is None else f"{rival.latency_ms:.3f}, {how}"
        difference = f"{rival.difference:+.4f} ({rival.low:+.4f} to {rival.high:+.4f})"
        rows.append(
            (rival.name, ms, f"{rival.macs:,}", f"{rival.params:,}", f"{rival.metrics[report.metric]:.4f}", difference)
        )
    return grid(heads, rows)


def files_table(report: Report) -> str:
    """The files of the folder, and how each is loaded."""
    runtime = report.device["runtime"]
    uses = {
        "network.json": "the network for PyTorch: <code>supernet.load(folder)</code>",
        "network.safetensors": "its weights",
        "metadata.json": "inputs, preprocessing, classes, metric and latency, for programs",
        "README.md": "how to use the files without this package, with code to copy",
        "report.json": "this report, for programs",
        "report.html": "this page",
        "front.png": "the picture of the front",
    }
    other = f"loaded by {html.escape(runtime)}; README.md has the code"
    cells = ((html.escape(name), uses.get(name, other)) for name in report.files)
    return grid(("file", "use"), cells, escape=False)


def metrics_table(report: Report) -> str:
    """All metrics on the three splits."""
    names = list(report.metrics["test"])
    rows = [(what, *(f"{report.metrics[split][name]:.4f}" for name in names)) for split, what in SPLITS.items()]
    return grid(("data", *names), rows)


def latency_table(report: Report) -> str:
    clock = report.clock_latency_ms
    rows = {
        "budget": f"{report.budget_ms:.3f} ms",
        "predicted": f"{report.predicted_latency_ms:.3f} ms",
        "measured first": f"{report.first_latency_ms:.3f} ms",
        "confirmed": f"{report.latency_ms:.3f} ms",
        "confirmed, with drift": "not measured" if clock is None else f"{clock:.3f} ms",
        "smallest network": "it failed" if report.smallest_ms is None else f"{report.smallest_ms:.3f} ms",
        "largest network": "it failed" if report.largest_ms is None else f"{report.largest_ms:.3f} ms",
        "measurements repeat to": f"{100 * report.noise_floor:.2f} %",
    }
    rows |= {name.replace("_", " "): str(value) for name, value in report.timed.items()}
    return table(rows)


def predictions_sections(report: Report) -> list[str]:
    """The quality of the predictors, and their predictions of the finalists; empty plots are left out."""
    heads = ("predictor", "error", "rank correlation", "networks")
    named = {"latency": report.latency_predictor} | report.metric_predictors
    rows = [
        (name, f"{known['mape']:.2f} %", f"{known['tau']:.3f}", str(known["n"]))
        for name, known in named.items()
        if known["mape"] is not None
    ]
    found = [section("Predictors", grid(heads, rows), PREDICTORS_NOTE)] if rows else []
    if len(report.finalists) > 1:
        found.append(section("Finalists: predicted against measured", svg(draw_predictions(report))))
    return found


def bounds_table(report: Report) -> str:
    heads = ("property", "largest value asked for", "measured on the exported file")
    rows = [
        (name, f"{bound:g}", ", ".join(f"{value:g}" for value in report.measured[name]))
        for name, bound in report.bounds.items()
    ]
    return grid(heads, rows)


def seconds_table(report: Report) -> str:
    return table({what: f"{seconds:.1f}" for what, seconds in report.seconds.items() if seconds >= 0.05})


def origin_table(report: Report) -> str:
    arguments = report.data.get("init_args") or {}
    given = ", ".join(f"{name}: {value}" for name, value in arguments.items() if value is not None)
    rows = {"supernet": report.supernet, "data": f"{report.data.get('class_path')} ({given})"}
    rows |= {"command": report.command, "written": report.written}
    return table({name: value for name, value in rows.items() if value is not None})


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 0; padding: 1.5em 2.5vw; color: #222; background: #f6f7f9 }}
h1 {{ margin: 0 0 .5em; font-size: 1.7em }}
h2 {{ font-size: 1.05em; margin: 0 0 .6em }}
.verdict {{ font-size: 1.15em; border-left: 5px solid #c0392b; padding: .2em 0 .2em 1em; margin: 0 0 1.5em }}
.verdict p {{ margin: .2em 0 }}
main {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34em), 1fr)); gap: 1.2em }}
section {{ background: #fff; border: 1px solid #e2e4e8; border-radius: 6px; padding: 1.1em 1.4em; overflow-x: auto }}
.note {{ color: #555; font-size: .92em; margin: .8em 0 0 }}
table {{ border-collapse: collapse }}
td, th {{ text-align: left; vertical-align: top; padding: .2em 1.4em .2em 0; border-bottom: 1px solid #e8e8e8 }}
th {{ font-weight: 600 }}
svg {{ width: 100%; height: auto; max-height: 75vh }}
</style>
<h1>{title}</h1>
<div class="verdict">{verdict}</div>
<main>
{body}
</main>
</html>
"""


def page(title: str, verdict: str, sections: Iterable[str]) -> str:
    """A whole page; the verdict and the sections are HTML."""
    return PAGE.format(title=html.escape(title), verdict=verdict, body="\n".join(sections))


def section(title: str, content: str, note: str = "") -> str:
    note = f'<p class="note">{note.strip()}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>\n{content}\n{note}</section>"


def table(rows: Mapping[str, str]) -> str:
    """A table of names and values."""
    cells = (f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]], escape: bool = True) -> str:
    """A table with a head; cells are text, or HTML where they are not to be escaped."""

    def line(kind: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(x) if escape else x}</{kind}>" for x in cells) + "</tr>"

    return f"<table>{line('th', heads)}{''.join(line('td', row) for row in rows)}</table>"


def svg(figure: Figure) -> str:
    """A figure as an element of a page; its text stays text."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def draw_front(report: Report) -> Figure:
    """The metric on the selection split against latency: samples, finalists, the chosen network, the budget."""
    name, figure = report.metric, Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=f"latency on {report.device['name']} (ms)", ylabel=f"{name} (selection split)")
    ms = [sample["predicted_latency_ms"] for sample in report.samples]
    axes.scatter(ms, [sample[name] for sample in report.samples], s=14, c=SAMPLE, label="samples, latency predicted")
    predicted = [(final["predicted_latency_ms"], final[f"predicted_{name}"]) for final in report.finalists]
    measured = [(final["latency_ms"], final["metrics"][name]) for final in report.finalists]
    for (x, y), (to_x, to_y) in zip(predicted, measured):
        axes.plot([x, to_x], [y, to_y], c="0.8", lw=0.8, zorder=1)
    if predicted:
        axes.scatter(*zip(*predicted), s=22, facecolors="none", edgecolors=FINALIST, label="finalists, predicted")
        axes.scatter(*zip(*measured), s=22, c=FINALIST, label="finalists, measured")
    axes.scatter([report.latency_ms], [report.torch_metrics[name]], s=110, marker="*", c=CHOSEN, label="chosen")
    axes.axvline(report.budget_ms, c=CHOSEN, lw=1, ls="--", label="budget")
    axes.legend(frameon=False)
    return figure


def draw_predictions(report: Report) -> Figure:
    """Latency and the metric of the finalists, as measured against as predicted."""
    name, figure = report.metric, Figure(figsize=(7, 3.2), layout="constrained")
    pairs = {
        "latency (ms)": [(final["predicted_latency_ms"], final["latency_ms"]) for final in report.finalists],
        name: [(final[f"predicted_{name}"], final["metrics"][name]) for final in report.finalists],
    }
    for place, (what, points) in enumerate(pairs.items(), 1):
        axes = figure.add_subplot(1, 2, place, xlabel=f"{what}, predicted", ylabel=f"{what}, measured")
        axes.scatter(*zip(*points), s=22, c=FINALIST)
        least = min(min(point) for point in points)
        axes.axline((least, least), slope=1, c="0.8", lw=0.8, zorder=0)
    return figure


def draw_fronts(fronts: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> Figure:
    """The metric on the held_out split against latency, a line for each device."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="latency (ms)", ylabel=f"{metric} (held_out split)", xscale="log")
    for device, rows in fronts.items():
        x, y = [row["latency_ms"] for row in rows], [row["metrics"]["held_out"][metric] for row in rows]
        axes.plot(x, y, marker="o", ms=4, lw=1, label=device)
    axes.legend(frameon=False)
    return figure


def front_page(reports: Mapping[str, Report], fronts: Mapping[str, Sequence[Mapping[str, Any]]], figure: Figure) -> str:
    """The page that compares several networks, and leads to their pages."""
    metric = next(iter(reports.values())).metric
    best = {row["network"] for rows in fronts.values() for row in rows}
    rows = [
        (
            f'<a href="{html.escape(quote(name))}/report.html">{html.escape(name)}</a>',
            f"{report.latency_ms:.3f} of {report.budget_ms:g}",
            f"{report.params:,}",
            *(f"{report.metrics[split][metric]:.4f}" for split in SPLITS),
            "" if name in best else "another network is as fast and as good",
        )
        for name, report in reports.items()
    ]
    heads = ("network", "latency and budget (ms)", "parameters", *(f"{metric}, {split}" for split in SPLITS), "")
    count = f"<p>{len(reports)} networks were cut from one supernet, without retraining. Each is within its budget.</p>"
    notes = "; ".join(f"<i>{split}</i>: {what}" for split, what in SPLITS.items())
    sections = [section(f"{metric.capitalize()} against latency", svg(figure))]
    sections.append(section("Networks", grid(heads, rows, escape=False), notes))
    return page(f"{len(reports)} networks of a supernet", count, sections)


def draw_network(space: SearchSpace, config: Any) -> Figure:
    """The blocks of a network, a row for each stage, with the choices of each block; absent blocks are empty."""
    gates = [choice for choice in space.choices if any(other.gate == choice.name for other in space.choices)]
    rows = [(gate, place) for gate in gates for place in itertools.product(*map(range, gate.shape))]
    columns = max(max(gate.values) for gate in gates)
    lines = max(sum(choice.gate == gate.name for choice in space.choices) for gate in gates)
    figure = Figure(figsize=(1.2 + 1.6 * columns, 0.4 + (0.3 + 0.16 * lines) * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlim=(-0.05, columns), ylim=(len(rows), -0.05))
    axes.set_axis_off()
    for y, (gate, place) in enumerate(rows):
        label = " ".join([gate.name.replace("_", " "), *(str(i + 1) for i in place)])
        axes.text(-0.05, y + 0.42, label, ha="right", va="center", fontsize=8, weight="bold")
        for x in range(max(gate.values)):
            there = x < at(getattr(config, gate.name), place)
            style = {"facecolor": "#dce9f5", "edgecolor": "#4878a8"} if there else {"fill": False, "edgecolor": "0.85"}
            axes.add_patch(Rectangle((x + 0.03, y + 0.04), 0.94, 0.84, lw=0.8, **style))
            if there:
                choices = [
                    f"{choice.name.removeprefix(gate.name.partition('_')[0] + '_').replace('_', ' ')}"
                    f" {at(getattr(config, choice.name), (*place, x))}"
                    for choice in space.choices
                    if choice.gate == gate.name
                ]
                axes.text(x + 0.5, y + 0.46, "\n".join(choices), ha="center", va="center", fontsize=6.5)
    return figure


def at(values: Any, place: tuple[int, ...]) -> Any:
    """The value of a nested tuple at a place."""
    for i in place:
        values = values[i]
    return values


def ungated(space: SearchSpace, config: Any) -> dict[str, str]:
    """The choices of a network that apply to all its blocks."""
    return {c.name.replace("_", " "): str(getattr(config, c.name)) for c in space.choices if c.gate is None}
