"""What the addresses at which a process has its memory do to latencies: at fixed and at random ones.

    python benchmarks/layout.py DEVICE ... [--processes 8]

Ten random subnets of a MobileNetV3, width 0.5, 64 px and smaller, with random weights, are timed beside the smallest
one by processes that take turns: those of one kind have a `predictors.devices.fixed_layout`, those of the other random
addresses. Printed is by how much, as a standard deviation in %, what a process tells of all ten (the mean logarithm of
their tenth percentiles over the reference's) differs from process to process of a kind.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from latency import make

from predictors import Store, get_device
from predictors.machine import fixed_addresses
from predictors.timing import time_networks
from recipes.lab.lab import Lab
from recipes.values import PROXY

LAYOUTS = ("fixed", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("devices", nargs="+", metavar="DEVICE")
    parser.add_argument("--processes", type=int, default=8, help="of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    supernet = make("cnn", 64)
    space = supernet.space
    configs = [space.smallest(), *space.decode(space.sample(10, np.random.default_rng(0)))]
    for name in arguments.devices:
        device, ratios = get_device(name), {layout: [] for layout in LAYOUTS}
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store") as store:
            lab = Lab(supernet, None, device, store, Path(folder) / "files")
            reference, *sources = [lab.files.target(config, PROXY).source() for config in configs]
            for _ in range(arguments.processes):
                for layout in LAYOUTS:
                    with patch(
                        "predictors.engines.fixed_addresses", lambda _, fixed=layout == "fixed": fixed_addresses(fixed)
                    ):
                        networks = {str(i): source for i, source in enumerate(sources)}
                        timed = dict(time_networks(device, networks, ("reference", reference), engine="process"))
                    if any(m.device["layout"] != layout for m in timed.values()):
                        raise SystemExit(f"this system has no {layout} layout")
                    ratios[layout].append(np.mean([np.log(m.p10 / m.reference_p10) for m in timed.values()]))
        spread = {layout: 100 * np.std(values, ddof=1) for layout, values in ratios.items()}
        print(f"{name}: " + ", ".join(f"{layout} {value:.2f} %" for layout, value in spread.items()), flush=True)


if __name__ == "__main__":
    main()
