"""What `supernet specialize` found, drawn: the front, predictions against measurements, the network block by block."""

from __future__ import annotations

import html
import io
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from supernet.atomic import write_atomically
from supernet.space import SearchSpace


def write_page(report: Mapping[str, Any], space: SearchSpace, config: Any, path: Path) -> None:
    """A page of one file, which needs no network: figures and tables of a report."""
    name, device = report["figure"], report["device"]
    parts = {
        "select": "held-out, by which it was chosen",
        "report": "held-out, which chose nothing",
        "test": "test set",
    }
    figures = {f"{name}, {what}": f"{report[part][name]:.4f}" for part, what in parts.items()}
    latency = {
        "budget": f"{report['budget_ms']:.3f} ms",
        "predicted": f"{report['predicted_latency_ms']:.3f} ms",
        "measured, first": f"{report['latency_ms']:.3f} ms",
        "measured again, by other processes": f"{report['confirmed_ms']:.3f} ms",
        "the same with the machine's drift": f"{report['confirmed_with_drift_ms']:.3f} ms",
        "smallest network": f"{report['smallest_ms']:.3f} ms",
        "largest network": "it failed" if report["largest_ms"] is None else f"{report['largest_ms']:.3f} ms",
    }
    costs = {cost: f"{report[cost]:,}" for cost in ("macs", "params")}
    costs |= {f"{cost}, at most": f"{bound:g}; it has {report[cost]:g}" for cost, bound in report["bounds"].items()}
    known = report["latency_predictor"]
    predictors = {
        "latency, mean absolute error": f"{known['mape']:.2f} %, of {known['n']} networks",
        "measurements repeat to": f"{100 * report['noise_floor']:.2f} %",
    }
    if known := report.get("accuracy_predictor"):
        predictors[f"{name}, Kendall's tau"] = f"{known[name]['tau']:.3f}, of {known[name]['n']} networks"
    spent = {what: f"{seconds:.1f}" for what, seconds in report["seconds"].items()}
    sections = [
        ("Accuracy against latency", svg(draw_front(report))),
        ("Finalists: predicted against measured", svg(draw_predictions(report))),
        ("The network", svg(draw_network(space, config)) + table(ungated(space, config))),
        ("Figures of the exported file, in its runtime", table(figures)),
        ("Latency", table(latency)),
        ("Costs", table(costs)),
        ("Predictors, cross-validated on the samples", table(predictors)),
        ("Seconds spent on the device's budgets, so far", table(spent)),
        ("Timed", table({"batch": str(device["batch"])} | {key: str(x) for key, x in report["timed"].items()})),
        ("Device", table({key: str(value) for key, value in device.items()})),
    ]
    body = "\n".join(f"<section><h2>{html.escape(title)}</h2>\n{content}\n</section>" for title, content in sections)
    title = html.escape(f"A network for {device['name']} within {report['budget_ms']:g} ms")
    path.write_text(PAGE.format(title=title, body=body), encoding="utf-8")


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }}
h2 {{ font-size: 1.1em; margin: 2em 0 .5em }}
table {{ border-collapse: collapse }}
td, th {{ text-align: left; padding: .15em 1.5em .15em 0; border-bottom: 1px solid #ddd }}
svg {{ max-width: 100%; height: auto }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def table(rows: Mapping[str, str]) -> str:
    cells = (f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def svg(figure: Figure) -> str:
    """A figure as an element of a page; its text stays text."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def draw_front(report: Mapping[str, Any]) -> Figure:
    """The figure against latency: samples, finalists as predicted and as measured, the winner, the budget."""
    name, figure = report["figure"], Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=f"latency on {report['device']['name']} (ms)", ylabel=f"held-out {name}")
    samples, finals = report["samples"], report["finalists"]
    axes.scatter(
        [s["predicted_latency_ms"] for s in samples],
        [s[name] for s in samples],
        s=14,
        c="0.7",
        label="samples, latency predicted",
    )
    for final in finals:
        axes.plot(
            [final["predicted_latency_ms"], final["latency_ms"]],
            [final[f"predicted_{name}"], final[name]],
            c="0.8",
            lw=0.8,
            zorder=1,
        )
    axes.scatter(
        [f["predicted_latency_ms"] for f in finals],
        [f[f"predicted_{name}"] for f in finals],
        s=22,
        facecolors="none",
        edgecolors="tab:blue",
        label="finalists, predicted",
    )
    axes.scatter([f["latency_ms"] for f in finals], [f[name] for f in finals], s=22, label="finalists, measured")
    axes.scatter([report["confirmed_ms"]], [report[name]], s=90, marker="*", c="tab:red", label="chosen")
    axes.axvline(report["budget_ms"], c="tab:red", lw=1, ls="--", label="budget")
    axes.legend(frameon=False)
    return figure


FRONT_FILES = ("front.json", "front.png", "front.html")


def write_fronts(reports: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """front.json and front.png of the networks for several budgets or devices: of each device those that no other one
    of it beats, in latency and in the figure of the held-out part by which they were chosen; fastest first. front.html
    shows both, and leads to the pages of all networks."""
    fronts: dict[str, list[dict[str, Any]]] = {}
    for name, report in reports.items():
        row = {"network": name, "budget_ms": report["budget_ms"], "latency_ms": report["confirmed_ms"]}
        row |= {part: report[part] for part in ("select", "report", "test")} | {"config": report["config"]}
        fronts.setdefault(report["device"]["name"], []).append(row)
    figure_of = next(iter(reports.values()))["figure"]
    sign = 1 if figure_of == "accuracy" else -1
    for device, rows in fronts.items():
        best, kept = -math.inf, []
        for row in sorted(rows, key=lambda row: (row["latency_ms"], -sign * row["select"][figure_of])):
            if sign * row["select"][figure_of] > best:
                best = sign * row["select"][figure_of]
                kept.append(row)
        fronts[device] = kept

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="latency (ms)", ylabel=f"{figure_of}, held-out, which chose nothing", xscale="log")
    for device, rows in fronts.items():
        x, y = [row["latency_ms"] for row in rows], [row["report"][figure_of] for row in rows]
        axes.plot(x, y, marker="o", ms=4, lw=1, label=device)
    axes.legend(frameon=False)
    best = {row["network"] for rows in fronts.values() for row in rows}
    table_rows = [
        (
            f'<a href="{html.escape(quote(name))}/report.html">{html.escape(name)}</a>',
            f"{report['confirmed_ms']:.3f} ms of {report['budget_ms']:g}",
            *(f"{report[part][figure_of]:.4f}" for part in ("select", "report", "test")),
            "" if name in best else "another one is as fast and as good",
        )
        for name, report in reports.items()
    ]
    heads = ("network", "measured again", f"held-out {figure_of}, which chose", "which chose nothing", "test set", "")
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in heads)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in table_rows]
    body = f"<section>{svg(figure)}</section>\n<table>{''.join(lines)}</table>"
    page = PAGE.format(title=html.escape(f"{len(reports)} networks of a supernet"), body=body)
    text = json.dumps(fronts, indent=1, default=float) + "\n"
    write_atomically(folder / FRONT_FILES[0], lambda path: path.write_text(text))
    write_atomically(folder / FRONT_FILES[1], lambda path: figure.savefig(path, dpi=120, format="png"))
    write_atomically(folder / FRONT_FILES[2], lambda path: path.write_text(page, encoding="utf-8"))


def draw_predictions(report: Mapping[str, Any]) -> Figure:
    """Latency and the figure of the finalists, as measured against as predicted."""
    name, figure = report["figure"], Figure(figsize=(7, 3.2), layout="constrained")
    pairs = (("predicted_latency_ms", "latency_ms", "latency (ms)"), (f"predicted_{name}", name, name))
    for place, (predicted, measured, what) in enumerate(pairs, 1):
        axes = figure.add_subplot(1, 2, place, xlabel=f"{what}, predicted", ylabel=f"{what}, measured")
        x, y = ([final[key] for final in report["finalists"]] for key in (predicted, measured))
        axes.scatter(x, y, s=22)
        axes.axline((min(x + y), min(x + y)), slope=1, c="0.8", lw=0.8, zorder=0)
    return figure


def draw_network(space: SearchSpace, config: Any) -> Figure:
    """The blocks of a network, a row for each stage or side, with what was chosen for each; absent ones are empty."""
    gates = [choice for choice in space.choices if any(other.gate == choice.name for other in space.choices)]
    rows = [(gate, place) for gate in gates for place in itertools.product(*map(range, gate.shape))]
    columns = max(max(gate.values) for gate in gates)
    lines = max(sum(choice.gate == gate.name for choice in space.choices) for gate in gates)
    figure = Figure(figsize=(1.2 + 1.6 * columns, 0.4 + (0.3 + 0.16 * lines) * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlim=(-0.05, columns), ylim=(len(rows), -0.05))
    axes.set_axis_off()
    for y, (gate, place) in enumerate(rows):
        label = " ".join([gate.name.removesuffix("_layer_num"), *(str(i + 1) for i in place)])
        axes.text(-0.05, y + 0.42, label, ha="right", va="center", fontsize=8, weight="bold")
        for x in range(max(gate.values)):
            there = x < at(getattr(config, gate.name), place)
            style = {"facecolor": "#dce9f5", "edgecolor": "#4878a8"} if there else {"fill": False, "edgecolor": "0.85"}
            axes.add_patch(Rectangle((x + 0.03, y + 0.04), 0.94, 0.84, lw=0.8, **style))
            if there:
                told = [
                    f"{choice.name.removeprefix(gate.name.partition('_')[0] + '_').replace('_', ' ')}"
                    f" {at(getattr(config, choice.name), (*place, x))}"
                    for choice in space.choices
                    if choice.gate == gate.name
                ]
                axes.text(x + 0.5, y + 0.46, "\n".join(told), ha="center", va="center", fontsize=6.5)
    return figure


def at(values: Any, place: tuple[int, ...]) -> Any:
    """The value of a nested tuple at a place."""
    for i in place:
        values = values[i]
    return values


def ungated(space: SearchSpace, config: Any) -> dict[str, str]:
    """The choices of a network that are of all its blocks."""
    return {c.name.replace("_", " "): str(getattr(config, c.name)) for c in space.choices if c.gate is None}
