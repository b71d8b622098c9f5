"""What elasticity costs: a step of a supernet over the same step of the extracted subnet.

    python benchmarks/overhead.py [ofa|hat]

Forward and backward on one thread: ofa is MobileNetV3 (width 1.0, 1000 classes) at 64 px; hat is HAT's space 0 with
4,008 tokens, 8 sentences of 25, six random subnets. Setting the config is inside the clock. CPU seconds, medians of
interleaved runs.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import hat
import ofa
from supernet.model import Supernet


def step(network: torch.nn.Module, inputs: list[torch.Tensor], labels: torch.Tensor, config: object = None) -> float:
    network.zero_grad()
    start = time.process_time()
    if config is not None:
        network.set_active(config)
    F.cross_entropy(network(*inputs).flatten(0, -2), labels.flatten()).backward()
    return time.process_time() - start


def compare(
    supernet: Supernet, config: Any, other: Any, inputs: list[torch.Tensor], labels: torch.Tensor, runs: int, what: str
) -> float:
    """Print and return the ratio of elastic over extracted."""
    subnet = supernet.extract(config)
    dynamic, static = [], []
    for _ in range(runs):
        supernet.set_active(other)  # so that set_active has work to do
        dynamic.append(step(supernet, inputs, labels, config))
        static.append(step(subnet, inputs, labels))
    ratio = median(a / b for a, b in zip(dynamic[3:], static[3:]))
    print(
        f"{what}: elastic {1e3 * median(dynamic):7.1f} ms, extracted {1e3 * median(static):7.1f} ms, ratio {ratio:.3f}",
        flush=True,
    )
    return ratio


def compare_ofa(runs: int) -> None:
    supernet = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=(64,)))
    space = supernet.space
    mixed, other = (space.decode(space.sample(1, np.random.default_rng(seed)))[0] for seed in (1, 2))
    configs = {"smallest": space.smallest(), "mixed": mixed, "largest": space.largest()}
    for layout, batch in (("NCHW", 8), ("channels_last", 32)):
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        supernet.to(memory_format=memory_format)
        images = torch.randn(batch, 3, 64, 64).contiguous(memory_format=memory_format)
        labels = torch.randint(1000, (batch,))
        for name, config in configs.items():
            compare(supernet, config, other, [images], labels, runs, f"{layout:>13} batch {batch:>2} {name:>8}")


def compare_hat(runs: int) -> None:
    supernet = hat.Transformer(vocab_size=4008)
    space = supernet.space
    source, previous, labels = (torch.randint(4, 4008, (8, 25)) for _ in range(3))
    *configs, other = space.decode(space.sample(7, np.random.default_rng(0)))
    named = {f"random {i}": config for i, config in enumerate(configs)}
    named |= {"smallest": space.smallest(), "largest": space.largest()}
    ratios = {
        name: compare(supernet, config, other, [source, previous], labels, runs, f"{name:>8}")
        for name, config in named.items()
    }
    print(f"median of the random ones {median(ratio for name, ratio in ratios.items() if 'random' in name):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", choices=["ofa", "hat"], default="ofa")
    parser.add_argument("--runs", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    {"ofa": compare_ofa, "hat": compare_hat}[arguments.family](arguments.runs)


if __name__ == "__main__":
    main()
