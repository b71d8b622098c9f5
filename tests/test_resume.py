"""A run that is killed and resumed ends with the weights of one that was not, bit for bit."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from safetensors.torch import load_file

RECIPE = """
run: RUN
checkpoint_every: 1
data:
  class_path: ofa.ImageData
  init_args: {batch_size: 64, padding: 1, flip: true, workers: 1, calibration: 64}
model:
  supernet:
    class_path: ofa.MobileNetV3
    init_args:
      {num_classes: 10, in_channels: 1, width_mult: 0.2, stem_stride: 1, dropout: 0.2,
       space: {class_path: ofa.mobilenet_v3_space, init_args: {resolution: [16]}}}
  phases:
    - {name: largest, epochs: 1, lr: 0.05, space: {depth: [4], kernel_size: [7], expand_ratio: [6]}}
    - {name: kernel, epochs: 1, lr: 0.05, teacher: frozen, space: {depth: [4], expand_ratio: [6]}}
    - {name: all, epochs: 1, lr: 0.05, subnets: 2, sampler: sandwich, teacher: inplace, label_weight: 0}
trainer:
  {limit_train_batches: 6, limit_val_batches: 0, num_sanity_val_steps: 0, logger: false, enable_progress_bar: false}
"""
# Pauses before each step, so that the kill falls where it is meant to.
FIT = textwrap.dedent("""
    import sys, time
    from supernet import training
    kill_at, step = int(sys.argv[1]), training.SupernetTask.training_step
    def paused(task, batch, batch_idx):
        if task.global_step == kill_at:
            print("here", flush=True)
            time.sleep(600)
        return step(task, batch, batch_idx)
    training.SupernetTask.training_step = paused
    from recipes.cli import main
    main(["fit", *sys.argv[2:]])
""")


def fit(recipe, run, kill_at=-1, *more):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", FIT, str(kill_at), "--config", str(recipe), "--run", str(run), *more]
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        output = []
        for line in process.stdout:
            output.append(line)
            if line.strip() == "here":
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (0 if kill_at < 0 else -signal.SIGKILL), "".join(output)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    fit(recipe, run)
    return load_file(run / "supernet" / "network.safetensors")


@pytest.mark.parametrize("kill_at", [3, 6, 15], ids=["mid-epoch", "first step of a phase", "last phase"])
def test_a_killed_run_resumes_bit_identically(recipe, uninterrupted, tmp_path, kill_at):
    fit(recipe, tmp_path / "run", kill_at)
    assert not (tmp_path / "run" / "supernet").exists()
    fit(recipe, tmp_path / "run", -1, "--ckpt_path", "last")
    resumed = load_file(tmp_path / "run" / "supernet" / "network.safetensors")
    assert resumed.keys() == uninterrupted.keys()
    assert all((resumed[name] == tensor).all() for name, tensor in uninterrupted.items())
