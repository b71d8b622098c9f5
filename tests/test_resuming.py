"""Runs that are stopped, resumed by the same command, and end as one that was not stopped."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from recipes.cli import main
from supernet.atomic import lock_folder
from supernet.resuming import AtomicCheckpointIO, find_checkpoint

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
    - {name: first, UNIT: FIRST, lr: 0.05}
    - {name: second, UNIT: 1, lr: 0.05, subnets: 2, sampler: sandwich, teacher: frozen}
validation: {random: 1}
trainer:
  {limit_train_batches: 5, limit_val_batches: 1, num_sanity_val_steps: 0, logger: false, enable_model_summary: false}
"""
STOPPER = """
import os, signal, time
import pytorch_lightning as pl

class StopAfter(pl.Callback):
    def __init__(self, batches: int, how: str):
        self.left, self.how = batches, how

    def on_train_batch_end(self, trainer, task, *_):
        self.left -= 1
        if self.left == 0:
            if self.how == "should_stop":
                trainer.should_stop = True
            elif self.how == "max_time":
                time.sleep(1.1)
            elif self.how == "an error":
                raise ValueError("the disk is gone")
            else:
                os.kill(os.getpid(), getattr(signal, self.how))
"""
STATUS = {"should_stop": 0, "SIGTERM": 143, "SIGINT": 130, "an error": 1}


@pytest.fixture
def fit(tmp_path, monkeypatch, capfd):
    """fit(run, *options, stop=(batches, how)) -> (exit status, what it wrote)."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stopper.py").write_text(STOPPER)

    def run_it(run, *options, stop=None, workers=0, accumulate=1, unit="epochs"):
        text = RECIPE.replace("WORKERS", str(workers)).replace("ACCUMULATE", str(accumulate)).replace("UNIT", unit)
        text = text.replace("FIRST", "2" if unit == "epochs" else "4")
        (tmp_path / "recipe.yaml").write_text(text)
        arguments = ["fit", "--config", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / run), *options]
        if stop:
            arguments += ["--trainer.callbacks+=stopper.StopAfter", f"--trainer.callbacks.batches={stop[0]}"]
            arguments += [f"--trainer.callbacks.how={stop[1]}"]
        try:
            main(arguments)
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, "".join(capfd.readouterr())

    return run_it


def weights(run):
    return load_file(run / "supernet" / "network.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole():
    """{a kind of run: the weights at its end}, filled by the tests that need them."""
    return {}


@pytest.mark.parametrize(
    ("how", "batches", "options", "more"),
    [
        ("should_stop", 7, {"workers": 2}, ()),
        ("SIGTERM", 3, {"accumulate": 2}, ("--trainer.val_check_interval", "2")),
        ("SIGINT", 11, {"accumulate": 2}, ("--trainer.check_val_every_n_epoch", "2")),
        (
            "an error",
            8,
            {"unit": "steps", "accumulate": 2},
            ("--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "3"),
        ),
    ],
    ids=[
        "should_stop, workers",
        "SIGTERM, accumulated",
        "Ctrl-C, a phase's first step",
        "an error, a phase's first step",
    ],
)
def test_a_run_that_is_stopped_goes_on_bit_identically_with_the_same_command(
    fit, whole, tmp_path, how, batches, options, more
):
    more = ("--ckpt_path", "auto", *more)
    kind = str({**options, "workers": 0})
    if kind not in whole:
        assert fit("whole", *more, **options)[0] == 0
        whole[kind] = weights(tmp_path / "whole")
    ended, said = fit("parts", *more, stop=(batches, how), **options)
    assert ended == STATUS[how] and "optimizer steps are done" in said and "--ckpt-path auto goes on" in said
    assert not (tmp_path / "parts" / "supernet").exists()
    assert fit("parts", *more, **options)[0] == 0
    assert same(weights(tmp_path / "parts"), whole[kind])


def test_a_run_that_is_stopped_before_its_first_step_goes_on(fit, tmp_path):
    status, said = fit("run", stop=(1, "should_stop"), accumulate=2)
    assert status == 0 and "the run is not finished: 0 of " in said
    status, said = fit("run", "--ckpt_path", "auto", accumulate=2)
    assert status == 0 and (tmp_path / "run" / "supernet").exists()


def test_a_run_without_batches_saves_no_supernet(fit, tmp_path):
    status, said = fit("run", "--trainer.limit_train_batches", "0")
    assert status == 1 and "limit_train_batches" in said and not (tmp_path / "run" / "supernet").exists()


def test_max_time_is_of_each_command_and_its_exit_status_says_that_the_run_is_unfinished(fit, whole, tmp_path):
    more = ("--ckpt_path", "auto", "--trainer.max_time", "00:00:00:01")
    status, said = fit("parts", *more, stop=(4, "max_time"))
    assert status == 75 and "the run is not finished" in said and not (tmp_path / "parts" / "supernet").exists()
    while status == 75:
        status, said = fit("parts", *more)
    assert status == 0 and "supernet saved" in said
    kind = str({"workers": 0})
    if kind in whole:
        assert same(weights(tmp_path / "parts"), whole[kind])


def test_one_command_begins_goes_on_and_leaves_a_finished_run_as_it_is(fit, tmp_path):
    run = tmp_path / "run"
    status, said = fit("run", "--ckpt_path", "auto", stop=(1, "an error"), accumulate=2)  # before the first checkpoint
    assert status == 1 and (run / "config.yaml").is_file() and not (run / "checkpoints").exists()
    status, said = fit("run", "--ckpt_path", "last", accumulate=2)
    assert status == 0 and "has no checkpoint yet" in said
    assert "held-out accuracy of subnets: largest 0." in said and "smallest 0." in said and "random 0." in said
    assert f"supernet specialize --supernet {run / 'supernet'} --device onnxruntime --max-latency MS" in said
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.yaml", "supernet"}
    before = (run / "supernet" / "network.safetensors").stat()
    status, said = fit("run", "--ckpt_path", "auto", accumulate=2)
    assert status == 0 and "nothing is left to train" in said
    assert (run / "supernet" / "network.safetensors").stat() == before
    status, said = fit("run", "--ckpt_path", "auto", "--model.clip_norm", "3", accumulate=2)
    assert status == 1 and "began with clip_norm = None, now it is 3.0" in said
    # Killed after the last checkpoint, before the supernet was written: its end is validated now.
    shutil.rmtree(run / "supernet")
    status, said = fit("run", "--ckpt_path", "auto", accumulate=2)
    assert status == 0 and "supernet saved" in said and "held-out accuracy of subnets: largest 0." in said


def test_a_job_that_slurm_requeues_goes_on_by_itself(fit, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert fit("run", stop=(6, "should_stop"))[0] == 0
    (run / "checkpoints" / "last.ckpt").rename(run / "hpc_ckpt_3.ckpt")
    status, said = fit("run")
    assert status == 1 and "hpc_ckpt_3.ckpt already exists: resume with --ckpt-path auto" in said
    for name, value in {"JOB_ID": 7, "NTASKS": 1, "JOB_NAME": "train", "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    status, said = fit("run")
    assert status == 0 and "supernet saved" in said
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 15


def test_the_newest_checkpoint_of_a_run_has_the_most_steps(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    last, requeued = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "hpc_ckpt_10.ckpt"
    assert find_checkpoint(tmp_path, "auto") is None
    for path, step in ((tmp_path / "hpc_ckpt_9.ckpt", 90), (requeued, 50), (last, 40)):
        torch.save({"global_step": step}, path)
    assert [find_checkpoint(tmp_path, given) for given in ("auto", "last", "hpc")] == [requeued] * 3
    torch.save({"global_step": 50}, last)
    assert [find_checkpoint(tmp_path, given) for given in ("auto", "hpc", None)] == [last, requeued, None]
    with pytest.raises(ValueError, match="does not exist"):
        find_checkpoint(tmp_path / "checkpoints", "hpc")


def test_a_second_run_in_a_folder_is_refused_and_a_folder_that_cannot_be_written(fit, tmp_path):
    (tmp_path / "file").touch()
    status, said = fit("file/run")
    assert status == 1 and f"{tmp_path / 'file' / 'run'} cannot be written" in said
    with lock_folder(tmp_path / "run"):
        status, said = fit("run")
    assert status == 1 and "run is in use by" in said and not (tmp_path / "run").exists()


def test_lines_have_fresh_figures_and_the_last_epoch_is_validated(fit):
    _, said = fit("run", "--trainer.check_val_every_n_epoch", "2")
    lines = [line for line in said.splitlines() if line.startswith("epoch ")]
    assert ["val/accuracy/largest" in line for line in lines] == [False, True, True]
    assert all("train/loss" in line for line in lines)


def test_a_checkpoint_of_another_device_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")["weight"].device.type == "cpu"


@pytest.mark.parametrize(
    ("batch_size", "options", "message"),
    [
        (8, (), None),
        (16, (), "began on 2 processes with accumulate = 1 and batch_size = 16; now there are 1 processes"),
        (16, ("--model.accumulate", "2"), "began with 5 steps an epoch, now there are 3"),
    ],
)
def test_a_run_of_two_processes_goes_on_in_one_where_a_step_sees_as_many_items(
    fit, tmp_path, batch_size, options, message
):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert fit("run", stop=(6, "should_stop"))[0] == 0
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["processes"], checkpoint["ImageData"]["batch_size"] = 2, batch_size
    torch.save(checkpoint, path)
    status, said = fit("run", "--ckpt_path", "auto", *options)
    assert status == (1 if message else 0) and (message or "") in said
