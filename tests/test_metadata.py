"""What is known of a network, and how it is told."""

import dataclasses
import json

import numpy as np
import pytest

import ofa
from recipes.export import export
from supernet.metadata import Exported, Latency, Measured, MeasuredMetric, measured_text, wilson
from supernet.saving import save

EXPORTED = Exported("onnx", "onnxruntime", "float32", ("subnet.onnx",), {}, {})
DEVICE = {
    "name": "onnxruntime", "statistic": "median", "batch": 1, "threads": 2, "runtime": "onnxruntime",
    "version": "1.32", "precision": "float32", "cpu": "Some CPU",
}  # fmt: skip


def items(right, counted):
    return {"accuracy": np.array(right, float), "counted": np.array(counted, float)}


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    [(0.5, 100, (0.4038, 0.5962)), (1.0, 20, (0.8389, 1.0)), (0.0, 20, (0.0, 0.1611))],  # Newcombe 1998's formula
)
def test_wilsons_interval_is_the_published_one(share, n, expected):
    assert wilson(share, n) == pytest.approx(expected, abs=1e-4)


def test_images_are_counted_and_sentences_vary():
    metric = MeasuredMetric.of(items([1, 0, 1, 1], [1, 1, 1, 1]), "accuracy", "test")
    assert (metric.value, metric.n, metric.interval) == (0.75, 4, "Wilson, 95 %")
    metric = MeasuredMetric.of(items([3, 0, 5], [5, 5, 5]), "accuracy", "test")
    half = 1.96 * np.std([0.6, 0.0, 1.0], ddof=1) / 3**0.5
    assert (metric.n, metric.targets, metric.interval) == (3, 15, "normal, 95 %")
    assert metric.low == pytest.approx(8 / 15 - half, abs=1e-3)
    alone = MeasuredMetric.of(items([2], [5]), "accuracy", "test")
    assert (alone.low, alone.high) == (None, None)  # one sentence does not show how sentences vary
    assert "interval" not in measured_text(Measured(alone), EXPORTED)


def test_a_report_says_what_was_measured_and_an_older_one_says_less():
    metric = MeasuredMetric("accuracy", 0.9, "test", 200, 200, 0.85, 0.93, "Wilson, 95 %", "onnxruntime", "float32")
    report = {"confirmed_ms": 0.25, "device": DEVICE, "metric": vars(metric)}
    measured = Measured.of(json.loads(json.dumps(report)))
    assert measured.metric == metric and measured.latency.ms == 0.25 and measured.latency.device == "onnxruntime"
    assert Measured.of({"confirmed_ms": 0.25, "device": DEVICE}).metric is None
    assert Measured.of({}) == Measured()


def test_a_measurement_of_another_file_is_not_passed_off_as_this_ones():
    latency = Latency(0.25, "median", 1, "onnxruntime-int8", "Some CPU", 1, "onnxruntime", "1.32", "int8")
    text = measured_text(Measured(latency=latency), EXPORTED)
    assert "0.250 ms (median, batch 1) on onnxruntime-int8" in text
    assert "This export, for onnxruntime in float32, was not measured" in text


def test_export_takes_the_figures_of_a_report_of_the_same_network(tmp_path):
    space = ofa.mobilenet_v3_space(depth=[1], kernel_size=[3], expand_ratio=[3], resolution=[24])
    network = ofa.MobileNetV3(space, num_classes=3, width_mult=0.2, stem_stride=1).extract().eval()
    folder = save(network, tmp_path / "subnet")
    metric = MeasuredMetric("accuracy", 0.9, "test", 200, 200, 0.85, 0.93, "Wilson, 95 %", "onnxruntime", "float32")
    report = {"confirmed_ms": 0.25, "device": DEVICE, "metric": vars(metric)}
    for config, expected in ((dataclasses.asdict(network.config), 0.9), ({"depth": 3}, None)):
        (folder / "report.json").write_text(json.dumps(report | {"config": config}))
        out = tmp_path / str(expected)
        export(str(folder), str(out), opset=17)
        found = json.loads((out / "metadata.json").read_text())
        assert (found["metric"] or {"value": None})["value"] == expected
        assert (found["latency"] is None) == (expected is None)
    (folder / "report.json").write_text("{")
    with pytest.raises(ValueError, match="report.json cannot be read as a report"):
        export(str(folder), str(tmp_path / "other"), opset=17)
