"""The folder of a specialized network, and the comparison of several networks."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.report import Report
from supernet.atomic import write_atomically, write_folder
from supernet.evaluation import METRICS

if TYPE_CHECKING:
    from recipes.lab.lab import Lab

REPORT, PAGE, FRONT = "report.json", "report.html", "front.png"
FRONT_FILES = ("front.json", "front.png", "front.html")


def write_result(lab: Lab, report: Report, folder: str | Path) -> Report:
    """Write the network of a report, and the report, to a folder, all or nothing; an earlier result there is replaced.

    The folder gets the saved subnet, the files that the device loads, metadata.json and README.md for their users,
    report.html, report.json and front.png. Returns the report with the names of these files.
    """
    from recipes.lab.files import write_device_card
    from recipes.page import draw_front, write_page
    from supernet.saving import WEIGHTS, write_network

    folder, written = Path(folder), []
    config = lab.space.as_config(report.config)
    with lab.ledger.spending("writing"):
        subnet, delivered = lab.maker.subnet(config), lab.files.delivered(config)

        def write(temporary: Path) -> None:
            write_network(subnet, temporary, lab.section)
            for file in delivered:
                shutil.copyfile(file, temporary / file.name)
            write_device_card(subnet, lab.device, temporary, report.as_measured(), folder.name)
            measured = dict(report.measured)
            if "file_mb" in measured:  # without the room for metadata that was reckoned with
                names = [file.name for file in delivered] or [WEIGHTS]
                measured["file_mb"] = [sum((temporary / name).stat().st_size for name in names) / 1e6]
            files = {path.name for path in temporary.iterdir()} | {REPORT, PAGE, FRONT}
            final = dataclasses.replace(report, measured=measured, files=tuple(sorted(files)))
            (temporary / REPORT).write_text(final.to_json())
            draw_front(final).savefig(temporary / FRONT, dpi=120)
            write_page(final, lab.space, config, temporary / PAGE)
            written.append(final)

        write_folder(folder, write, result_files(folder), overwrite=True)
    print(report.verdict() + f"; written to {folder}", flush=True)
    return written[0]


def result_files(folder: Path) -> set[str]:
    """The files of an earlier result in a folder, which a new result may replace; none without a report."""
    try:
        return set(json.loads((folder / REPORT).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_fronts(reports: Mapping[str, Report], folder: Path) -> None:
    """Compare the networks for several budgets or devices: front.json, front.png and front.html.

    front.json has for each device the networks that no other one beats in latency and in the metric on the selection
    split, fastest first.
    """
    from recipes.page import draw_fronts, front_page

    rows: dict[str, list[dict[str, Any]]] = {}
    for name, report in reports.items():
        row = {"network": name, "budget_ms": report.budget_ms, "latency_ms": report.latency_ms}
        rows.setdefault(report.device["name"], []).append(row | {"metrics": report.metrics, "config": report.config})
    metric = METRICS[next(iter(reports.values())).metric]

    def merit(row: Mapping[str, Any]) -> float:
        return metric.sign * row["metrics"]["selection"][metric.name]

    fronts: dict[str, list[dict[str, Any]]] = {}
    for device, of_device in rows.items():
        best = -math.inf
        for row in sorted(of_device, key=lambda row: (row["latency_ms"], -merit(row))):
            if merit(row) > best:
                best = merit(row)
                fronts.setdefault(device, []).append(row)
    figure = draw_fronts(fronts, metric.name)
    text = json.dumps(fronts, indent=1, default=float) + "\n"
    page = front_page(reports, fronts, figure)
    write_atomically(folder / FRONT_FILES[0], lambda path: path.write_text(text))
    write_atomically(folder / FRONT_FILES[1], lambda path: figure.savefig(path, dpi=120, format="png"))
    write_atomically(folder / FRONT_FILES[2], lambda path: path.write_text(page, encoding="utf-8"))
