import dataclasses
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import hat
import ofa
from recipes.lab.splits import SPLITS
from recipes.page import draw_network, write_page
from recipes.report import Report, Rival
from supernet.metadata import MeasuredMetric

SPACES = {"ofa": ofa.mobilenet_v3_space(resolution=(16, 24)), "hat": hat.space0()}


def made_up(name, config, **changes):
    """A report as `specialize` writes it."""
    rng = np.random.default_rng(0)
    metrics = {"accuracy": 0.625, "loss": 0.375}
    finalists = [
        {
            "latency_ms": ms,
            "confirmed_latency_ms": None,
            "predicted_latency_ms": ms + 0.1,
            f"predicted_{name}": 0.5,
            "metrics": metrics,
        }
        for ms in (1.0, 1.5, 2.0)
    ]
    rival = Rival("largest network", {}, None, True, 2_000_000, 900_000, metrics, 0.01, -0.02, 0.04)
    fields = dict(
        config=dataclasses.asdict(config),
        device={"name": "<made up>", "runtime": "onnxruntime", "batch": 1, "statistic": "median", "threads": 1,
                "precision": "float32", "cpu": "a CPU"},
        bounds={"latency_ms": 2.0, "params": 9e5},
        latency_ms=1.52,
        clock_latency_ms=1.6,
        first_latency_ms=1.5,
        predicted_latency_ms=1.6,
        measured={"latency_ms": [1.5, 1.52], "params": [800_000.0]},
        macs=1_000_000,
        params=800_000,
        metric=name,
        metrics={split: metrics for split in SPLITS},
        measured_metric=MeasuredMetric(name, 0.625, "test", 200, 200, 0.55, 0.69, "Wilson, 95 %"),
        torch_metrics=metrics,
        rivals=[rival],
        smallest_ms=0.5,
        largest_ms=None,
        finalists=finalists,
        failed_finalists=0,
        samples=[
            {"predicted_latency_ms": ms, "accuracy": value, "loss": value}
            for ms, value in zip(rng.random(20).tolist(), rng.random(20).tolist())
        ],
        latency_predictor={"mape": 1.5, "tau": 0.9, "n": 30},
        metric_predictors={key: {"mape": 1.5, "tau": 0.8, "n": 100} for key in metrics},
        noise_floor=0.004,
        reference_ms=0.5,
        proxy_check=None,
        transfers_from={"devices": [], "share": 0.0},
        file_offset={"accuracy": 0.0, "loss": math.nan},
        timed={"source_length": 17, "beam": 4},
        seconds={"exporting": 3.0, "timing": 10.0, "memory": 0.0},
        supernet="runs/digits/supernet",
        data={"class_path": "ofa.ImageData"},
        command="supernet specialize",
        written="2026-01-01T00:00:00+00:00",
        files=("report.html", "subnet.onnx"),
    )  # fmt: skip
    return Report(**fields | changes)


@pytest.fixture(params=SPACES)
def page(request, tmp_path):
    space = SPACES[request.param]
    path = tmp_path / "report.html"
    config = space.largest()
    write_page(made_up("accuracy" if request.param == "ofa" else "loss", config), space, config, path)
    return path


def test_a_page_is_one_file_that_loads_nothing(page):
    loaded = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            loaded.extend(
                value
                for key, value in attributes
                if key in ("src", "href", "xlink:href", "data") and not value.startswith("#")
            )

    text = page.read_text(encoding="utf-8")
    Parser().feed(text)
    assert not loaded and not re.search(r"@import|url\((?!#)", text)
    assert "&lt;made up&gt;" in text and "<made up>" not in text
    assert "source length" in text and "1.520 ms" in text and "it failed" in text and "800,000" in text


def test_the_verdict_comes_first(page):
    text = page.read_text(encoding="utf-8")
    verdict = text.index('class="verdict"')
    assert verdict < text.index("<section") and "1.520 ms" in text[verdict : text.index("<section")]


def test_plots_and_tables_without_values_are_left_out(tmp_path):
    space = SPACES["ofa"]
    config, unknown = space.largest(), {"mape": None, "tau": None, "n": 2}
    report = made_up("accuracy", config, finalists=[], latency_predictor=unknown, metric_predictors={})
    write_page(report, space, config, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "predicted against measured" not in text and "Predictors" not in text and text.count("<svg") == 2


def test_the_report_as_json_has_a_version_and_null_for_unknown_values():
    written = json.loads(made_up("accuracy", SPACES["ofa"].largest()).to_json())
    assert written["version"] == 1 and written["file_offset"]["loss"] is None
    assert written["measured_metric"]["low"] == 0.55 and written["rivals"][0]["name"] == "largest network"


@pytest.mark.parametrize("family", SPACES)
def test_every_block_is_drawn_with_its_choices(family):
    space = SPACES[family]
    for config in (space.smallest(), space.largest()):
        texts = [text.get_text() for text in draw_network(space, config).axes[0].texts]
        blocks = [text for text in texts if "\n" in text]
        depths = [
            np.sum(getattr(config, name))
            for name in ("depth", "encoder_layer_num", "decoder_layer_num")
            if hasattr(config, name)
        ]
        assert len(blocks) == sum(depths)
        if family == "ofa":
            assert blocks[0] == f"kernel size {config.kernel_size[0][0]}\nexpand ratio {config.expand_ratio[0][0]}"


@pytest.mark.browser
def test_a_browser_shows_the_page(page, tmp_path):
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed"
    options = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    shot = tmp_path / "page.png"
    subprocess.run([*options, f"--screenshot={shot}", "--window-size=900,3000", page.as_uri()], check=True, timeout=120)
    from matplotlib.image import imread

    pixels = imread(shot)
    assert pixels.shape[:2] == (3000, 900) and pixels[..., :3].std() > 0.05
    heights = "[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().height > 50)"
    script = f"<script>document.title = {heights}.join()</script>"
    page.write_text(page.read_text(encoding="utf-8") + script, encoding="utf-8")
    shown = subprocess.run(
        [*options, "--dump-dom", page.as_uri()], check=True, timeout=120, capture_output=True, text=True
    )
    assert "<title>true,true,true</title>" in shown.stdout
