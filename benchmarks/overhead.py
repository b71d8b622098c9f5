"""What elasticity costs: a step of a supernet over the same step of the extracted subnet.

    python benchmarks/overhead.py

Forward and backward of MobileNetV3 (width 1.0, 1000 classes) at 64 px on one thread; setting the config is inside the
clock. CPU seconds, medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

import ofa


def step(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, config: object = None) -> float:
    network.zero_grad()
    start = time.process_time()
    if config is not None:
        network.set_active(config)
    F.cross_entropy(network(images), labels).backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    supernet = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=(64,)))
    space = supernet.space
    mixed = space.decode(space.sample(1, np.random.default_rng(1)))[0]
    other = space.decode(space.sample(1, np.random.default_rng(2)))[0]
    configs = {"smallest": space.smallest(), "mixed": mixed, "largest": space.largest()}
    for layout, batch in (("NCHW", 8), ("channels_last", 32)):
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        supernet.to(memory_format=memory_format)
        images = torch.randn(batch, 3, 64, 64).contiguous(memory_format=memory_format)
        labels = torch.randint(1000, (batch,))
        for name, config in configs.items():
            subnet = supernet.extract(config)
            dynamic, static = [], []
            for _ in range(runs):
                supernet.set_active(other)  # so that set_active has work to do
                dynamic.append(step(supernet, images, labels, config))
                static.append(step(subnet, images, labels))
            ratio = median(a / b for a, b in zip(dynamic[3:], static[3:]))
            print(
                f"{layout:>13} batch {batch:>2} {name:>8}: elastic {1e3 * median(dynamic):7.1f} ms, extracted"
                f" {1e3 * median(static):7.1f} ms, ratio {ratio:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
