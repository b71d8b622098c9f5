"""A progressive-shrinking step against the same step with the original Once-for-All modules.

    pip install --no-deps --target DIR ofa==0.1.0.post202307202001
    python benchmarks/step.py --original DIR

A frozen teacher (in train mode, as the original's) and four subnets, MobileNetV3 of width 1.0 at 64 px, batch 32, one
thread: same weights, same images, same subnets. The original shares our import name, so it runs in its own process;
steps alternate. CPU seconds; the losses of every step are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
BATCH, SIZE, CLASSES, SUBNETS = 32, 64, 1000, 4
LEARNING_RATE = 1e-5  # small, since training from random weights multiplies rounding differences at every step

# The original's training step (its progressive_shrinking.py), driven by lines of JSON on standard input.
ORIGINAL = f"""
import json, sys, time, torch
import torch.nn.functional as F
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
from ofa.utils import cross_entropy_loss_with_soft_target, cross_entropy_with_label_smoothing
torch.set_num_threads(1)
net = OFAMobileNetV3(n_classes={CLASSES}, dropout_rate=0, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6],
                     depth_list=[2, 3, 4])
state, images, labels = torch.load(sys.argv[1])
net.load_state_dict(state)
net.set_active_subnet(ks=7, e=6, d=4)
teacher = net.get_active_subnet().train()
net.train()
decayed = [p for n, p in net.named_parameters() if "bn" not in n and "bias" not in n]
plain = [p for n, p in net.named_parameters() if "bn" in n or "bias" in n]
optimizer = torch.optim.SGD([{{"params": decayed, "weight_decay": 3e-5}}, {{"params": plain, "weight_decay": 0}}],
                            lr={LEARNING_RATE}, momentum=0.9, nesterov=True)
print("ready", flush=True)
for line in sys.stdin:
    start = time.process_time()
    with torch.no_grad():
        soft = F.softmax(teacher(images), dim=1)
    net.zero_grad()
    losses = []
    for subnet in json.loads(line):
        net.set_active_subnet(**subnet)
        logits = net(images)
        kd = cross_entropy_loss_with_soft_target(logits, soft)
        loss = kd + cross_entropy_with_label_smoothing(logits, labels, 0.1)
        losses.append(loss.item())
        loss.backward()
    optimizer.step()
    print(json.dumps([time.process_time() - start, losses]), flush=True)
"""


def published(config: object) -> dict[str, list[int]]:
    """A config as the original's lists, in which absent blocks have values too."""
    pad = lambda stages, value: [v for stage in stages for v in (*stage, *[value] * (4 - len(stage)))]  # noqa: E731
    return {"ks": pad(config.kernel_size, 7), "e": pad(config.expand_ratio, 6), "d": list(config.depth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", required=True, help="folder that holds the original's package")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    os.environ.update(THREADS)

    import pytorch_lightning as pl
    import torch

    import ofa
    from ofa.weights import to_published
    from supernet.phases import Phase
    from supernet.sampling import uniform
    from supernet.training import SupernetTask

    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = ofa.mobilenet_v3_space(resolution=(SIZE,))
    phase = Phase("expand", lr=LEARNING_RATE, epochs=1, subnets=SUBNETS, teacher="frozen")
    task = SupernetTask(ofa.MobileNetV3(space, dropout=0.0), [phase], teacher_mode="train")
    task.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)  # says: one process
    task.to(memory_format=torch.channels_last)
    optimizer = task.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = phase.lr
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(CLASSES, (BATCH,))

    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "shared.pt"
        torch.save((to_published(task.supernet), images, labels), shared)
        script = Path(folder) / "original.py"
        script.write_text(ORIGINAL)
        child = subprocess.Popen(
            [sys.executable, script, shared],
            env=os.environ | {"PYTHONPATH": str(Path(arguments.original).resolve())},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if child.stdout.readline().strip() != "ready":
            raise SystemExit("the original did not start")
        ours, theirs, worst = [], [], 0.0
        for step in range(arguments.steps):
            configs = uniform(space, SUBNETS, step, seed=0)
            child.stdin.write(json.dumps([published(config) for config in configs]) + "\n")
            child.stdin.flush()
            seconds, losses = json.loads(child.stdout.readline())
            start = time.process_time()
            optimizer.zero_grad()
            found = []
            for loss in task.losses((images,), labels, phase, configs):
                loss.backward()
                found.append(loss.item())
            task._step(optimizer)
            ours.append(time.process_time() - start)
            theirs.append(seconds)
            drift = max(abs(a - b) / abs(b) for a, b in zip(found, losses))
            worst = max(worst, drift)
            print(
                f"step {step}: ours {ours[-1]:.2f} s, original {seconds:.2f} s, losses differ by {drift:.1e}",
                flush=True,
            )
        child.stdin.close()
        child.wait()
    ratio = median(b / a for a, b in zip(ours[2:], theirs[2:]))
    print(
        f"CPU seconds a step: ours {median(ours):.3f}, original {median(theirs):.3f}; {ratio:.2f} times as fast;"
        f" losses differ by at most {worst:.1e} (relative)"
    )


if __name__ == "__main__":
    main()
