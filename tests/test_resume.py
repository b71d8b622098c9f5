"""A run that is killed and resumed ends with the weights of one that was not, bit for bit."""

import os
import signal
import subprocess
import sys

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
TEXT = """
run: RUN
checkpoint_every: 1
data:
  class_path: hat.ParallelText
  init_args: {vocab_size: 300, max_tokens: 1024, max_length: 60, workers: 1}
model:
  supernet:
    class_path: hat.Transformer
    init_args:
      {vocab_size: 300, head_dim: 8, max_positions: 60, dropout: 0.2, attention_dropout: 0.1,
       space: {class_path: hat.transformer_space, init_args:
         {embed_dim: [16, 24], ffn_embed_dim: [16, 32], heads: [1, 2], encoder_layer_num: [2],
          decoder_layer_num: [1, 2], arbitrary_ende_attn: [-1, 1], conv_kernel_size: [1, 3]}}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.001, betas: [0.9, 0.98]}}
  accumulate: 2
  decay_unsampled: false
  phases:
    - {name: uniform, epochs: 1, warmup_epochs: 1, lr: 0.001}
    - {name: all, epochs: 2, lr: 0.001, subnets: 3, sampler: sandwich, teacher: inplace}
trainer:
  {limit_train_batches: 6, limit_val_batches: 0, num_sanity_val_steps: 0, logger: false, enable_progress_bar: false}
"""
# Stops before a step, so that the kill falls where it is meant to.
FIT = """
import os, time
from supernet import training
kill_at, step = int(os.environ["KILL_AT"]), training.SupernetTask.training_step
def paused(task, batch, batch_idx):
    if task.global_step == kill_at:
        if task.global_rank == 0:
            os.write(1, b"\\nstopped before the step\\n")  # one write: no other output comes between
        time.sleep(600)
    return step(task, batch, batch_idx)
training.SupernetTask.training_step = paused
from recipes.cli import main
main()
"""
TWO_PROCESSES = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")

# Lightning starts the second process with the file that is run.
STOPPED_FIT = """
import os, signal
from supernet import training
def stop(task, *_):
    if task.global_rank == 0 and task.global_step == int(os.environ["STOP_AT"]):
        os.kill(os.getpid(), signal.SIGTERM)
training.SupernetTask.on_train_batch_end = stop
from recipes.cli import main
main()
"""


def fit(recipe, run, *more, kill_at=-1):
    (recipe.parent / "fit.py").write_text(FIT)  # a file: the first process starts the second with it
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KILL_AT": str(kill_at)}
    arguments = [sys.executable, recipe.parent / "fit.py", "fit", "--config", str(recipe), "--run", str(run), *more]
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        output = []
        for line in process.stdout:
            output.append(line)
            if line.strip() == "stopped before the step":
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (0 if kill_at < 0 else -signal.SIGKILL), "".join(output)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    """{how many processes: the weights of a whole run}."""
    weights = {}
    for processes, more in ((1, ()), (2, TWO_PROCESSES)):
        run = tmp_path_factory.mktemp("whole") / "run"
        fit(recipe, run, *more)
        weights[processes] = load_file(run / "supernet" / "network.safetensors")
    return weights


def test_a_killed_training_on_text_resumes_bit_identically(tmp_path):
    (tmp_path / "recipe.yaml").write_text(TEXT)
    fit(tmp_path / "recipe.yaml", tmp_path / "whole")
    fit(tmp_path / "recipe.yaml", tmp_path / "run", kill_at=5)
    fit(tmp_path / "recipe.yaml", tmp_path / "run", "--ckpt_path", "last")
    whole, resumed = (load_file(tmp_path / run / "supernet" / "network.safetensors") for run in ("whole", "run"))
    assert resumed.keys() == whole.keys()
    assert all((resumed[name] == tensor).all() for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("kill_at", "processes"),
    [(3, 1), (6, 1), (15, 1), (6, 2)],
    ids=["mid-epoch", "first step of a phase", "last phase", "first step of a phase, two processes"],
)
def test_a_killed_run_resumes_bit_identically(recipe, uninterrupted, tmp_path, kill_at, processes):
    more = TWO_PROCESSES if processes == 2 else ()
    fit(recipe, tmp_path / "run", *more, kill_at=kill_at)
    assert not (tmp_path / "run" / "supernet").exists()
    fit(recipe, tmp_path / "run", *more, "--ckpt_path", "last")
    resumed = load_file(tmp_path / "run" / "supernet" / "network.safetensors")
    whole = uninterrupted[processes]
    assert resumed.keys() == whole.keys()
    assert all((resumed[name] == tensor).all() for name, tensor in whole.items())


@pytest.mark.slow
def test_sigterm_stops_all_processes_of_a_fit_which_goes_on_in_as_many_or_in_one(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "fit.py").write_text(STOPPED_FIT)

    def fit(run, *more, stop_at=-1):
        command = [sys.executable, "fit.py", "fit", "--config", "recipe.yaml", "--run", run, "--ckpt_path", "auto"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "STOP_AT": str(stop_at)}
        done = subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert fit("whole", *TWO_PROCESSES)[0] == 0
    status, said = fit("parts", *TWO_PROCESSES, stop_at=3)
    assert status == 143 and "4 of 18 optimizer steps" in said, said
    assert fit("parts", stop_at=-1)[0] == 1  # in one, a step would see half as many images
    status, said = fit("parts", *TWO_PROCESSES)
    assert status == 0, said
    whole, parts = (load_file(tmp_path / run / "supernet" / "network.safetensors") for run in ("whole", "parts"))
    assert all((parts[name] == tensor).all() for name, tensor in whole.items())
    fit("one", *TWO_PROCESSES, stop_at=3)
    status, said = fit("one", "--data.init_args.batch_size", "128")
    assert status == 0 and "supernet saved" in said, said
