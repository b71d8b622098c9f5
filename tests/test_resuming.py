"""Runs that are stopped, resumed by the same command, and end as one that was not stopped."""

import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from recipes.cli import main

# Of the command in this process: pytorch-lightning 2.6 calls jsonargparse's deprecated names, and likes other loaders.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
RECIPE = """
data: {class_path: ofa.ImageData, init_args:
  {dataset: digits, batch_size: 16, holdout: 100, calibration: 32, padding: 1, flip: true, workers: WORKERS}}
model:
  supernet:
    class_path: ofa.MobileNetV3
    init_args:
      {num_classes: 10, in_channels: 1, width_mult: 0.2, stem_stride: 1, dropout: 0.2,
       space: {class_path: ofa.mobilenet_v3_space, init_args:
         {resolution: [8], depth: [1, 2], kernel_size: [3, 5], expand_ratio: [3]}}}
  teacher_mode: train
  accumulate: ACCUMULATE
  phases:
    - {name: first, UNIT: 2, lr: 0.05}
    - {name: second, UNIT: 1, lr: 0.05, subnets: 2, sampler: sandwich, teacher: frozen}
validation: {random: 1}
trainer:
  {limit_train_batches: 5, limit_val_batches: 1, num_sanity_val_steps: 0, logger: false, enable_model_summary: false,
   callbacks: [{class_path: pytorch_lightning.callbacks.LambdaCallback}]}
"""


class StopAfter(pl.Callback):
    """Does `stop` after a number of batches of this process."""

    def __init__(self, batches, stop):
        self.left, self.stop = batches, stop

    def on_train_batch_end(self, trainer, task, *_):
        self.left -= 1
        if self.left == 0:
            self.stop(trainer)


def ask_to_stop(trainer):
    trainer.should_stop = True


def fail(trainer):
    raise ValueError("the disk is gone")


STOPS = {
    "should_stop": (ask_to_stop, 0),
    "SIGTERM": (lambda trainer: os.kill(os.getpid(), signal.SIGTERM), 143),
    "Ctrl-C": (lambda trainer: os.kill(os.getpid(), signal.SIGINT), 130),
    "an error": (fail, 1),
}


@pytest.fixture
def fit(tmp_path, monkeypatch, capfd):
    """fit(run, *options, stop=(batches, what)) -> (exit status, what it wrote)."""

    def run_it(run, *options, stop=None, workers=0, accumulate=1, unit="epochs"):
        text = RECIPE.replace("WORKERS", str(workers)).replace("ACCUMULATE", str(accumulate)).replace("UNIT", unit)
        (tmp_path / "recipe.yaml").write_text(text)
        start = pl.Trainer.fit
        with monkeypatch.context() as patched:
            if stop is not None:
                patched.setattr(
                    pl.Trainer, "fit", lambda self, **k: (self.callbacks.insert(0, StopAfter(*stop)), start(self, **k))
                )
            try:
                main(["fit", "--config", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / run), *options])
                status = 0
            except SystemExit as ended:
                status = ended.code
        out, err = capfd.readouterr()
        return status, out + err

    return run_it


def weights(run):
    return load_file(run / "supernet" / "network.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("how", "batches", "options"),
    [
        ("should_stop", 7, {"workers": 2}),
        ("SIGTERM", 3, {"accumulate": 2}),
        ("Ctrl-C", 11, {"accumulate": 2}),
        ("an error", 6, {"unit": "steps", "accumulate": 2}),
    ],
)
def test_a_run_that_is_stopped_goes_on_bit_identically_with_the_same_command(fit, tmp_path, how, batches, options):
    stop, status = STOPS[how]
    assert fit("whole", "--ckpt_path", "auto", **options)[0] == 0
    ended, said = fit("parts", "--ckpt_path", "auto", stop=(batches, stop), **options)
    assert ended == status and "optimizer steps are done" in said and "--ckpt_path auto" in said
    assert not (tmp_path / "parts" / "supernet").exists()
    assert fit("parts", "--ckpt_path", "auto", **options)[0] == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
