"""Lightning's own callbacks, listed in a recipe: each works, or is refused before training with a reason."""

import shutil
import sys

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from safetensors.torch import load_file

import ofa
from recipes.cli import main
from supernet.callbacks import WeightAverage
from supernet.phases import Phase
from supernet.resuming import AtomicCheckpointIO, LastCheckpoint, read_checkpoint
from supernet.saving import load
from supernet.training import SubnetValidation, SupernetTask, is_finished

RECIPE = """
data:
  class_path: ofa.ImageData
  init_args: {batch_size: 16, calibration: 32, holdout: 32, padding: 1}
model:
  supernet:
    class_path: ofa.MobileNetV3
    init_args:
      {num_classes: 10, in_channels: 1, width_mult: 0.2, stem_stride: 1, dropout: 0.2,
       space: {class_path: ofa.mobilenet_v3_space,
               init_args: {resolution: [8], depth: [1], kernel_size: [3], expand_ratio: [2, 3]}}}
  phases:
    - {name: first, epochs: 1, lr: 0.05}
    - {name: second, epochs: 2, lr: 0.05, subnets: 2, teacher: frozen}
validation: {random: 0}
trainer:
  {limit_train_batches: 2, limit_val_batches: 1, num_sanity_val_steps: 0, log_every_n_steps: 1, accelerator: cpu}
"""


A_USERS = """
import pytorch_lightning as pl

def batch_size(batch):
    return len(batch[0])

class Crash(pl.Callback):
    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step == 3:
            raise ValueError("a crash")
"""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """A folder with a module of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "things_of_a_user.py").write_text(A_USERS)
    # pytorch-lightning 2.6 calls jsonargparse by names that are deprecated.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def convolutional(phases=None):
    """(task, data) of four epochs, of two batches each."""
    torch.manual_seed(0)
    space = ofa.mobilenet_v3_space(resolution=(8,), depth=(1,), kernel_size=(3,), expand_ratio=(2, 3))
    supernet = ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1, dropout=0.2)
    data = ofa.ImageData(batch_size=16, calibration=32, holdout=32)
    return SupernetTask(supernet, phases or [Phase("a", lr=0.05, epochs=4)]), data


def make_trainer(folder, callbacks, **options):
    options = {"limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0, "logger": False} | options
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options |= {"max_epochs": -1, "accelerator": "cpu", "plugins": [AtomicCheckpointIO()]}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **options)


def write(folder, callbacks, **trainer):
    recipe = yaml.safe_load(RECIPE)
    recipe["trainer"] |= {"callbacks": callbacks, **trainer}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def supernet(verb, recipe, *more):
    """The command, in this process; what it does to sys.argv is undone."""
    argv = sys.argv
    try:
        main([verb, "--config", str(recipe), "--run", "run", *more])
    finally:
        sys.argv = argv


WORKING = {
    "StochasticWeightAveraging": {"swa_lrs": 0.01, "swa_epoch_start": 0.7, "annealing_epochs": 1},
    "EMAWeightAveraging": {"decay": 0.9},
    "WeightAveraging": {},
    "ModelCheckpoint": {"monitor": "val/accuracy/smallest", "mode": "max", "save_top_k": 2, "save_last": True},
    "EarlyStopping": {"monitor": "val/loss/smallest", "patience": 5},
    "OnExceptionCheckpoint": {"dirpath": "crash"},
    "LearningRateMonitor": {"logging_interval": "step", "log_momentum": True},
    "DeviceStatsMonitor": {"cpu_stats": False},
    "Timer": {"duration": "00:01:00:00"},
    "RichProgressBar": {},
    "TQDMProgressBar": {"refresh_rate": 1},
    "ModelSummary": {"max_depth": 2},
    "RichModelSummary": {"max_depth": 2},
    "LambdaCallback": {},
    "ThroughputMonitor": {"batch_size_fn": "things_of_a_user.batch_size"},
}


def listed(*names):
    return [{"class_path": name, "init_args": WORKING[name]} for name in names]


def fit_validate_and_fit_again(folder, callbacks):
    supernet("fit", write(folder, callbacks))
    assert (folder / "run" / "supernet" / "network.json").is_file()
    supernet("validate", folder / "recipe.yaml")
    supernet("fit", folder / "run" / "config.yaml", "--run", "again", "--trainer.fast_dev_run", "true")


ALONE = {"StochasticWeightAveraging", "EMAWeightAveraging", "WeightAveraging"}, {"RichProgressBar", "TQDMProgressBar"}
ALONE = *ALONE, {"ModelSummary", "RichModelSummary"}


@pytest.mark.parametrize("choice", [0, 1])
def test_callbacks_in_a_recipe_work_together(tmp_path, choice):
    others = WORKING.keys() - set.union(*ALONE)
    fit_validate_and_fit_again(tmp_path, listed(*sorted(others), *(sorted(names)[choice] for names in ALONE)))


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_a_callback_in_a_recipe_works(tmp_path, name):
    fit_validate_and_fit_again(tmp_path, listed(name))


def test_a_checkpoint_on_an_exception_is_whole_and_only_resumed_on_demand(tmp_path, capsys):
    recipe = write(tmp_path, [*listed("OnExceptionCheckpoint"), {"class_path": "things_of_a_user.Crash"}])
    with pytest.raises(SystemExit):
        supernet("fit", recipe)
    assert "a crash" in capsys.readouterr().err
    assert torch.load("crash/on_exception.ckpt", weights_only=True)["global_step"] == 3
    quiet = write(tmp_path, listed("OnExceptionCheckpoint"))
    supernet("fit", quiet, "--overwrite", "true", "--ckpt_path", "crash/on_exception.ckpt")
    resumed = load_file("run/supernet/network.safetensors")
    assert not (tmp_path / "crash" / "on_exception.ckpt").exists()
    supernet("fit", quiet, "--overwrite", "true")
    whole = load_file("run/supernet/network.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_learning_rate_that_is_monitored_is_that_of_the_step(tmp_path):
    seen = []

    class Monitor(pl.Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            seen.append((trainer.optimizers[0].param_groups[0]["lr"], task.learning_rate_at(trainer.global_step)))

    task, data = convolutional()
    make_trainer(tmp_path, [Monitor()], limit_val_batches=0).fit(task, data)
    assert len(seen) == 8 and all(found == expected for found, expected in seen)


REFUSED = {
    "GradientAccumulationScheduler": ({"scheduling": {0: 2}}, "`accumulate` batches"),
    "BackboneFinetuning": ({}, "no backbone"),
    "ModelPruning": ({"pruning_fn": "l1_unstructured"}, "elastic layers slice"),
    "BatchSizeFinder": ({}, "`batch_size`"),
    "SpikeDetection": ({}, "no checkpoint could be resumed"),
    "LearningRateFinder": ({}, "those of the phases"),
    "ModelCheckpoint": ({"train_time_interval": "0:10:00"}, "every_n_train_steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_that_cannot_work_is_refused_before_training(tmp_path, capsys, name):
    arguments, reason = REFUSED[name]
    with pytest.raises(SystemExit) as exit:
        supernet("fit", write(tmp_path, [{"class_path": name, "init_args": arguments}]))
    assert exit.value.code == 1 and name in (said := capsys.readouterr().err) and reason in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_two_averages_are_refused(tmp_path):
    callbacks = [EMAWeightAveraging(), StochasticWeightAveraging(swa_lrs=0.01)]
    task, data = convolutional()
    with pytest.raises(ValueError, match="EMAWeightAveraging and StochasticWeightAveraging: a run has one"):
        make_trainer(tmp_path, callbacks).fit(task, data)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_checkpoints_of_steps_and_of_the_best_figure_can_be_resumed(tmp_path):
    steps = {"dirpath": "steps", "every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    best = {"dirpath": "best", "monitor": "val/accuracy/smallest", "mode": "max", "save_last": True}
    recipe = write(tmp_path, [{"class_path": "ModelCheckpoint", "init_args": x} for x in (steps, best)])
    supernet("fit", recipe)
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == [f"step={i}.ckpt" for i in range(1, 7)]
    assert len(list((tmp_path / "best").iterdir())) == 2
    whole = load_file(tmp_path / "run" / "supernet" / "network.safetensors")
    for checkpoint in ("steps/step=3.ckpt", "best/last.ckpt"):
        supernet("fit", recipe, "--ckpt_path", checkpoint, "--overwrite", "true")
        resumed = load_file(tmp_path / "run" / "supernet" / "network.safetensors")
        differ = [name for name, tensor in whole.items() if not torch.equal(resumed[name], tensor)]
        assert not differ


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_what_is_saved_of_any_precision_is_evaluated_in_float32(tmp_path, capsys, precision):
    supernet("fit", write(tmp_path, [], precision=precision))
    assert {p.dtype for p in load("run/supernet").parameters()} == {torch.float32}
    main(["evaluate", "--subnet", "run/supernet", "--architecture", "smallest"])
    assert "accuracy" in capsys.readouterr().out


# ---- averages of weights


class Weights(pl.Callback):
    """The weights after each step, and what is validated, by step."""

    def __init__(self):
        self.after, self.validated, self.rates = {}, {}, {}

    def on_before_optimizer_step(self, trainer, task, optimizer):
        self.rates[trainer.global_step] = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.after[trainer.global_step] = task.supernet.bn1.weight.detach().clone()

    def on_validation_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.validated[trainer.global_step] = task.supernet.bn1.weight.detach().clone()


def averaged(folder, callback, stop=None, ckpt_path=None, phases=None, **options):
    task, data = convolutional(phases)
    seen = Weights()
    callbacks = [seen, *([stop] if stop else []), callback, SubnetValidation(random=0)]
    trainer = make_trainer(folder, callbacks, **options)
    trainer.fit(task, data, ckpt_path=ckpt_path)
    return seen, task, trainer


def test_stochastic_weight_averaging_is_the_mean_of_the_epochs_from_its_start(tmp_path):
    seen, task, _ = averaged(tmp_path, StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=0.8, annealing_epochs=1))
    mean = torch.stack([seen.after[step] for step in (6, 8)]).mean(0)  # int(0.8 * 4) = 3: from the third epoch on
    assert torch.allclose(task.supernet.bn1.weight, mean, atol=1e-7)
    assert torch.allclose(seen.validated[8], mean, atol=1e-7)
    assert torch.equal(seen.validated[4], seen.after[4])
    rates = [seen.rates[step] for step in range(8)]
    assert rates[:4] == [task.learning_rate_at(step) for step in range(4)]
    assert rates[5] == pytest.approx((task.learning_rate_at(5) + 0.01) / 2) and rates[6:] == [0.01, 0.01]


def test_an_exponential_average_is_validated_and_ends_the_fit(tmp_path):
    seen, task, _ = averaged(tmp_path, EMAWeightAveraging(decay=0.5))
    average = seen.after[1]
    for step in range(2, 9):
        average = 0.5 * average + 0.5 * seen.after[step]
        if step in seen.validated:
            assert torch.allclose(seen.validated[step], average, atol=1e-7)
    assert torch.allclose(task.supernet.bn1.weight, average, atol=1e-7)


def test_an_average_begins_anew_with_each_phase(tmp_path):
    phases = [Phase("a", lr=0.05, epochs=1), Phase("b", lr=0.05, epochs=1)]
    seen, task, trainer = averaged(tmp_path, EMAWeightAveraging(decay=0.5), phases=phases)
    expected = (seen.after[3] + seen.after[4]) / 2
    assert torch.allclose(task.supernet.bn1.weight, expected, atol=1e-7)


def test_an_average_that_never_began_leaves_the_weights(tmp_path):
    seen, task, _ = averaged(tmp_path, EMAWeightAveraging(update_starting_at_step=100))
    assert torch.equal(task.supernet.bn1.weight, seen.after[8])


class StopAt(pl.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "make",
    [lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=0.5), lambda: EMAWeightAveraging(decay=0.9)],
    ids=["SWA", "EMA"],
)
def test_an_average_is_resumed_bit_identically(tmp_path, make):
    whole = averaged(tmp_path, make())[1].state_dict()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        averaged(tmp_path, make(), StopAt(5, tmp_path / "x.ckpt"))
    _, task, trainer = averaged(tmp_path, make(), ckpt_path=tmp_path / "x.ckpt")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in task.state_dict().items())
    assert any(isinstance(callback, WeightAverage) for callback in trainer.callbacks)


def test_swa_lrs_are_one_for_each_group_of_parameters(tmp_path):
    with pytest.raises(ValueError, match="the optimizer has 2 groups"):
        averaged(tmp_path, StochasticWeightAveraging(swa_lrs=[0.1, 0.1, 0.1]))


class EndAt(pl.Callback):
    def on_train_batch_end(self, trainer, task, *_):
        trainer.should_stop = trainer.global_step == 5


def test_a_run_whose_earlier_phase_was_stopped_early_is_finished_by_its_last_phase_alone(tmp_path):
    def fit(*callbacks, ckpt_path=None):
        task, data = convolutional([Phase("a", lr=0.05, epochs=1), Phase("b", lr=0.05, epochs=3)])
        trainer = make_trainer(tmp_path, [SubnetValidation(0), LastCheckpoint(tmp_path), *callbacks])
        trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
        return trainer.global_step, is_finished(read_checkpoint(tmp_path / "last.ckpt"))

    assert fit(EarlyStopping("train/loss", stopping_threshold=1e9)) == (2, False)
    assert fit(EarlyStopping("train/loss", patience=100), EndAt(), ckpt_path=tmp_path / "last.ckpt") == (5, False)


def test_a_run_that_was_stopped_early_is_not_trained_on(tmp_path):
    stopping = {"monitor": "train/loss", "stopping_threshold": 1e9}
    recipe = write(tmp_path, [{"class_path": "EarlyStopping", "init_args": stopping}])
    short = ["--model.phases", "[{name: all, epochs: 9, lr: 0.05}]"]
    supernet("fit", recipe, *short)
    before = load_file("run/supernet/network.safetensors")
    shutil.rmtree("run/supernet")  # as if the command had been killed before it wrote the supernet
    supernet("fit", recipe, *short, "--ckpt_path", "auto")
    after = load_file("run/supernet/network.safetensors")
    assert read_checkpoint("run/checkpoints/last.ckpt")["global_step"] == 2
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
