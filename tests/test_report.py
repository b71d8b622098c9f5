import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import hat
import ofa
from recipes.report import draw_network, write_page

SPACES = {"ofa": ofa.mobilenet_v3_space(resolution=(16, 24)), "hat": hat.space0()}


def made_up(name):
    """A report as `specialize` writes it."""
    rng = np.random.default_rng(0)
    figures = ("accuracy", "loss")
    finals = [
        {"latency_ms": ms, "predicted_latency_ms": ms + 0.1, f"predicted_{name}": 0.5, "accuracy": 0.6, "loss": 0.4}
        for ms in (1.0, 1.5, 2.0)
    ]
    return (
        finals[1]
        | {
            "budget_ms": 2.0,
            "bounds": {"params": 9e5},
            "device": {"name": "<made up>", "runtime": "onnxruntime", "batch": 1, "cpus": [0]},
            "timed": {"source_length": 17, "beam": 4},
            "latency_predictor": {"mape": 1.5, "tau": 0.9, "n": 30},
            "accuracy_predictor": {figure: {"mape": 1.5, "tau": 0.8, "n": 100} for figure in figures},
            "noise_floor": 0.004,
            "smallest_ms": 0.5,
            "largest_ms": None,
            "figure": name,
            "confirmed_ms": 1.52,
            "confirmed_with_drift_ms": 1.6,
            "finalists": finals,
            "samples": [
                {"predicted_latency_ms": ms} | dict.fromkeys(figures, float(value))
                for ms, value in zip(rng.random(20), rng.random(20))
            ],
            "macs": 1_000_000,
            "params": 800_000,
            "seconds": {"export": 3.0, "timing": 10.0, "memory": 0.0, "accuracy": 5.0},
        }
        | {part: {"accuracy": 0.625, "loss": 0.375} for part in ("select", "report", "test")}
    )


@pytest.fixture(params=SPACES)
def page(request, tmp_path):
    space = SPACES[request.param]
    path = tmp_path / "report.html"
    write_page(made_up("accuracy" if request.param == "ofa" else "loss"), space, space.largest(), path)
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
    assert "source_length" in text and "1.520 ms" in text and "it failed" in text and "800,000" in text


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
    told = subprocess.run(
        [*options, "--dump-dom", page.as_uri()], check=True, timeout=120, capture_output=True, text=True
    )
    assert "<title>true,true,true</title>" in told.stdout
