"""A device: onnxruntime on one thread, eight images at once, by the 90th percentile of the latencies."""

from predictors.devices import DEVICES, Device

DEVICES["batches-of-8"] = Device("batches-of-8", "onnxruntime", batch=8, statistic="p90", sessions=2, spacing=0.0)
