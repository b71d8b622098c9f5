"""Mixed precision against float32: the losses of 20 steps of each family, finite gradients, and the time of a step.

    python benchmarks/precision.py [--precision bf16-mixed] [--steps 20] [--family MobileNetV3]

Two copies of a supernet of the same weights see the same batches, subnets and dropout; their steps alternate, on one
thread. MobileNetV3 has width 0.5 at 48 px and batches of 32 images; Transformer is HAT's space of IWSLT'14 with 2 000
tokens and batches of 16 sentences of 20 tokens. Each step trains three subnets: the sandwich, taught in place. With
higher learning rates, losses of float32 itself differ as much once a rounding differs.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

LEARNING_RATES = {"MobileNetV3": 0.005, "Transformer": 2e-4}
IMAGES, SIZE, CLASSES = 32, 48, 100
SENTENCES, LENGTH, VOCABULARY = 16, 20, 2000


def convolutional() -> tuple[Any, Callable[[], tuple[Any, ...]]]:
    """(supernet, what makes a batch)."""
    import torch

    import ofa

    space = ofa.mobilenet_v3_space(resolution=(SIZE,))
    supernet = ofa.MobileNetV3(space, num_classes=CLASSES, width_mult=0.5, dropout=0.1)
    return supernet, lambda: (torch.randn(IMAGES, 3, SIZE, SIZE), torch.randint(CLASSES, (IMAGES,)))


def translating() -> tuple[Any, Callable[[], tuple[Any, ...]]]:
    import torch

    import hat

    space = hat.transformer_space(ffn_embed_dim=(512, 1024, 2048), heads=(2, 4))
    supernet = hat.Transformer(space, vocab_size=VOCABULARY)

    def batch() -> tuple[Any, ...]:
        source, target = (torch.randint(4, VOCABULARY, (SENTENCES, LENGTH)) for _ in range(2))
        return source, target.roll(1, 1), target

    return supernet, batch


FAMILIES = {"MobileNetV3": convolutional, "Transformer": translating}


def losses_of_steps(
    supernet: Any, batch: Callable[[], tuple[Any, ...]], precision: str, steps: int, lr: float
) -> tuple[list[float], list[float], list[float], bool]:
    """Steps in float32 and in a precision, by turns: (losses of float32, losses, ratios of the times, whether all
    gradients were finite)."""
    import pytorch_lightning as pl
    import torch

    from supernet.phases import Phase
    from supernet.resuming import derive_seed
    from supernet.training import SupernetTask

    phase = Phase("all", lr=lr, steps=steps, subnets=3, sampler="sandwich", teacher="inplace")
    optimizer = torch.optim.SGD if lr >= 0.001 else torch.optim.Adam
    losses: dict[str, list[float]] = {"32-true": [], precision: []}
    seconds: dict[str, list[float]] = {"32-true": [], precision: []}
    tasks, finite = {}, True
    for name in losses:
        task = SupernetTask(copy.deepcopy(supernet), [phase], lambda groups: optimizer(groups, lr=lr))
        task.trainer = pl.Trainer(
            accelerator="cpu", precision=name, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        plugin = task.trainer.precision_plugin
        plugin.convert_module(task.to(memory_format=torch.channels_last))
        tasks[name] = task, plugin, task.configure_optimizers()
    for step in range(steps):
        torch.manual_seed(derive_seed(0, step))
        data = batch()
        for name in losses if step % 2 else reversed(losses):
            task, plugin, optimizer_of = tasks[name]
            *inputs, target = plugin.convert_input(data)
            torch.manual_seed(step)
            start = time.perf_counter()
            total = 0.0
            with plugin.forward_context():
                optimizer_of.zero_grad()
                for loss in task.losses(inputs, target, phase, task.sample(phase, task.spaces[0], step)):
                    loss.backward()
                    total += float(loss.detach())
                finite &= all(bool(p.grad.isfinite().all()) for p in task.supernet.parameters() if p.grad is not None)
                task._step(optimizer_of)
            seconds[name].append(time.perf_counter() - start)
            losses[name].append(total / phase.subnets)
    ratios = [b / a for a, b in zip(seconds["32-true"], seconds[precision])]
    return losses["32-true"], losses[precision], ratios, finite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--family", choices=FAMILIES, help="only this one")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"

    import torch

    torch.set_num_threads(1)
    for name in [arguments.family] if arguments.family else FAMILIES:
        torch.manual_seed(0)
        supernet, batch = FAMILIES[name]()
        plain, lower, ratios, finite = losses_of_steps(
            supernet, batch, arguments.precision, arguments.steps, LEARNING_RATES[name]
        )
        worst, mean = max(abs(b - a) / a for a, b in zip(plain, lower)), sum(lower) / sum(plain) - 1
        print(
            f"{name}, {arguments.steps} steps in {arguments.precision}: loss {lower[0]:.3f} to {lower[-1]:.3f}, float32"
            f" {plain[0]:.3f} to {plain[-1]:.3f}, at most {worst:.2%} apart, {mean:+.2%} in the mean; gradients"
            f" {'finite' if finite else 'NOT finite'}; a step takes {median(ratios):.2f} times as long as in float32"
            f" (median of {len(ratios)})",
            flush=True,
        )


if __name__ == "__main__":
    main()
