import dataclasses

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import ofa
from supernet import sampling
from supernet.distillation import label_loss, soft_cross_entropy, squared_error
from supernet.evaluation import compare, evaluate_network
from supernet.model import calibrate
from supernet.phases import Phase, learning_rate, locate
from supernet.resuming import AtomicCheckpointIO, LastCheckpoint, ResumableSampler, ShardSampler
from supernet.training import SubnetValidation, SupernetTask

SPACE = ofa.mobilenet_v3_space(resolution=(16, 24))
ALL = {"depth": [4], "kernel_size": [7], "expand_ratio": [6]}
PHASES = [
    Phase("largest", lr=0.1, epochs=1, space=ALL),
    Phase("expand", lr=0.05, epochs=1, warmup_epochs=0, subnets=2, teacher="frozen", space={"expand_ratio": [4, 6]}),
    Phase("all", lr=0.02, epochs=1, subnets=3, sampler="sandwich", teacher="inplace", label_weight=0.0),
]


def make_task(phases=PHASES, **options):
    torch.manual_seed(0)
    supernet = ofa.MobileNetV3(SPACE, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1, dropout=0.2)
    return SupernetTask(supernet, phases, **options)


def make_trainer(folder, **options):
    options = {"max_epochs": -1, "limit_train_batches": 2, "limit_val_batches": 1, "logger": False} | options
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False} | options
    return pl.Trainer(default_root_dir=folder, accelerator="cpu", plugins=[AtomicCheckpointIO()], **options)


def make_data():
    return ofa.ImageData(batch_size=16, calibration=32, padding=1, flip=True)


class Recorder(pl.Callback):
    """What the task does at each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.configs = []
        original = task.supernet.set_active
        task.supernet.set_active = lambda config: (self.configs.append(config), original(config))[1]

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        del task.supernet.set_active
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.steps.append({"step": trainer.global_step - 1, "lr": lr, "configs": self.configs})


def test_one_fit_walks_all_phases(tmp_path):
    recorder, task = Recorder(), make_task()
    make_trainer(tmp_path, callbacks=[recorder, SubnetValidation(random=1)]).fit(task, make_data())
    assert [s["step"] for s in recorder.steps] == list(range(6))
    for s in recorder.steps:
        phase = PHASES[s["step"] // 2]
        space = SPACE.restrict(**phase.space)
        trained = [c for c in s["configs"] if c in space.decode(space.encode([c]))]
        assert len(trained) >= phase.subnets
        assert s["lr"] == pytest.approx(phase.lr if s["step"] % 2 == 0 else phase.lr / 2)


def test_a_phase_begins_sorted_with_an_empty_optimizer_and_a_frozen_teacher(tmp_path):
    seen = []

    class Task(SupernetTask):
        def _begin_phase(self, index, optimizer):
            super()._begin_phase(index, optimizer)
            largest = self.supernet.extract(SPACE.largest()).state_dict()
            same = all(torch.equal(largest[k], v) for k, v in self.teacher.state_dict().items())
            seen.append((index, len(optimizer.state), same))

    task = Task(make_task().supernet, PHASES)
    make_trainer(tmp_path, limit_val_batches=0).fit(task, make_data())
    assert [(index, state) for index, state, _ in seen] == [(0, 0), (1, 0), (2, 0)]
    # The teacher is the largest network as it was when the phase that wants it began.
    assert seen[1][2] and not seen[2][2]
    assert not any(p.requires_grad for p in task.teacher.parameters()) and not task.teacher.training


def test_the_teacher_computes_what_the_largest_network_computed(tmp_path):
    task = make_task()
    with torch.no_grad():
        for p in task.supernet.parameters():
            p.mul_(1.1)
    task.trainer = make_trainer(tmp_path)
    optimizer = task.configure_optimizers()
    x = torch.randn(2, 1, 24, 24)
    task.eval()
    with torch.no_grad():
        before = task.supernet.set_active(SPACE.largest())(x)
        task._begin_phase(1, optimizer)
        assert torch.allclose(task.teacher(x), before, atol=1e-5)


def test_a_teacher_made_after_a_mixture_is_calibrated(tmp_path):
    made = []

    class Task(SupernetTask):
        def _begin_phase(self, index, optimizer):
            super()._begin_phase(index, optimizer)
            if index == 1:
                expected = calibrate(self.supernet.extract(SPACE.largest()).eval(), data.calibration_batches())
                made.append((expected.bn1.running_mean, self.teacher.bn1.running_mean.clone()))

    phases = [Phase("mixed", lr=0.1, epochs=1), Phase("taught", lr=0.1, epochs=1, teacher="frozen")]
    task, data = Task(make_task().supernet, phases), make_data()
    make_trainer(tmp_path, limit_val_batches=0).fit(task, data)
    ((expected, found),) = made
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_teacher_in_train_mode_drops_nothing():
    teacher = make_task(teacher_mode="train").train().teacher
    modes = {type(module).__name__: module.training for module in teacher.modules()}
    assert modes["BatchNorm2d"] and not modes["Dropout"]


def test_subnets_of_a_step_share_the_resolution(tmp_path):
    recorder = Recorder()
    task = make_task([Phase("x", lr=0.1, epochs=4, subnets=4)])
    make_trainer(tmp_path, callbacks=[recorder], limit_val_batches=0).fit(task, make_data())
    drawn = [{config.resolution for config in step["configs"]} for step in recorder.steps]
    assert all(len(resolutions) == 1 for resolutions in drawn) and len(set.union(*drawn)) == 2


def test_learning_rate_warms_up_linearly_then_falls_as_a_cosine():
    phase = Phase("x", lr=1.0, epochs=10, warmup_epochs=2, warmup_lr=0.2, final_lr=0.1)
    rates = [learning_rate(phase, 5, step) for step in range(51)]
    assert rates[0] == 0.2 and rates[5] == pytest.approx(0.6) and rates[10] == 1.0
    assert rates[30] == pytest.approx(0.1 + 0.9 * 0.5) and rates[50] == pytest.approx(0.1)


def test_learning_rate_falls_as_the_inverse_square_root_of_the_step():
    phase = Phase("p", lr=1.0, steps=100, warmup_steps=4, decay="inverse_sqrt")
    assert [learning_rate(phase, 1, step) for step in (0, 2, 4, 16, 64)] == [0, 0.5, 1, 0.5, 0.25]


def test_a_phase_may_be_one_network():
    config = dataclasses.asdict(SPACE.smallest())
    task = make_task([Phase("alone", lr=0.1, steps=2, config=config)])
    assert task.sample(task.phases[0], task.spaces[0], 1) == [SPACE.smallest()]
    with pytest.raises(ValueError, match="phase 'alone': resolution = 1 is not one of"):
        make_task([Phase("alone", lr=0.1, steps=2, config=config | {"resolution": 1})])


def test_locate_finds_the_phase_of_every_step():
    phases = [Phase("a", lr=1, epochs=2), Phase("b", lr=1, epochs=1)]
    assert [locate(phases, 3, step) for step in (0, 5, 6, 8, 9)] == [(0, 0), (0, 5), (1, 0), (1, 2), (1, 3)]


def test_scaled_phases_are_at_least_one_long():
    phase = Phase("x", lr=1, epochs=120, warmup_epochs=5)
    assert (phase.scaled(0.1).epochs, phase.scaled(0.1).warmup_epochs) == (12, 1)
    assert phase.scaled(1e-6).epochs == 1
    assert Phase("x", lr=1, epochs=120).scaled(0.1).warmup_epochs == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "length as epochs or as steps"),
        ({"epochs": 1, "steps": 1}, "length as epochs or as steps"),
        ({"epochs": 0}, "not positive"),
        ({"epochs": 1, "warmup_epochs": 2}, "does not fit"),
        ({"epochs": 1, "warmup_steps": 1}, "unit of the length"),
        ({"epochs": 1, "lr": 0.0}, "lr = 0.0"),
        ({"epochs": 1, "final_lr": -1.0}, "final_lr = -1.0"),
        ({"epochs": 1, "label_weight": float("nan")}, "label_weight = nan"),
        ({"epochs": 1, "teacher": "frozen", "label_weight": 0, "teacher_weight": 0}, "nothing to learn"),
        ({"epochs": 1, "sampler": "best"}, "unknown sampler 'best'"),
        ({"epochs": 1, "teacher": "big"}, "unknown teacher 'big'"),
        ({"epochs": 1, "teacher": "inplace"}, "needs sampler: sandwich"),
        ({"epochs": 1, "sampler": "sandwich"}, "at least 2 subnets"),
        ({"epochs": 1, "decay": "step"}, "unknown decay 'step'"),
        ({"epochs": 1, "decay": "inverse_sqrt"}, "needs a warm-up"),
        ({"epochs": 1, "config": {}, "subnets": 2}, "one subnet a step"),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=f"phase 'x': .*{message}"):
        Phase("x", **({"lr": 0.1} | options))


@pytest.mark.parametrize(
    "options",
    [{"clip_norm": -1.0}, {"accumulate": 0}, {"label_smoothing": 2.0}, {"seed": -1}, {"scale_phases": 0.0}],
)
def test_a_setting_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_task(**options)


def test_a_phase_outside_the_space_is_refused():
    with pytest.raises(ValueError, match="phase 'x': depth: 5 is not one of"):
        make_task([Phase("x", lr=1, epochs=1, space={"depth": [5]})])


def test_a_trainer_length_that_contradicts_the_phases_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_epochs = 7, but the phases are 3 epochs long"):
        make_trainer(tmp_path, max_epochs=7).fit(make_task(), make_data())


def test_classes_that_are_not_the_datas_are_refused(tmp_path):
    supernet = ofa.MobileNetV3(SPACE, num_classes=9, width_mult=0.2, in_channels=1)
    with pytest.raises(ValueError, match="num_classes = 9, the data have 10"):
        make_trainer(tmp_path).fit(SupernetTask(supernet, PHASES), make_data())


def frozen_statistics(phases, **options):
    """A task whose BatchNorm and dropout stay in eval mode, and its parameters."""
    task = make_task(phases, **options)
    for module in task.supernet.modules():
        module.momentum = 1.0
    task.supernet(torch.randn(64, 1, 24, 24))
    task.supernet.eval()
    task.train = lambda mode=True: task
    return task, {name: p.detach().clone() for name, p in task.supernet.named_parameters()}


def update_without_batch_statistics(folder, batch_size, accumulate=1, **options):
    """{parameter: change} in one step on 32 images, with BatchNorm and dropout in eval mode."""
    phases = [Phase("x", lr=0.1, steps=1, subnets=2, space={"depth": [2, 4]})]
    task, before = frozen_statistics(phases, accumulate=accumulate, clip_norm=1.0)
    data = ofa.ImageData(batch_size=batch_size)
    make_trainer(folder, limit_train_batches=accumulate, limit_val_batches=0, **options).fit(task, data)
    return {name: p.detach() - before[name] for name, p in task.supernet.named_parameters()}


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"strategy": "ddp_fork", "devices": 2}], ids=["accumulated", "two processes"]
)
def test_the_step_of_two_half_batches_is_that_of_the_whole(tmp_path, options):
    whole = update_without_batch_statistics(tmp_path, 32)
    halves = update_without_batch_statistics(tmp_path, 16, **options)
    assert max(change.abs().max() for change in whole.values()) > 1e-3
    for name, change in whole.items():
        assert torch.allclose(change, halves[name], atol=1e-6), name


def test_accumulated_losses_weigh_by_the_targets_they_counted(tmp_path):
    images, labels = torch.randn(32, 1, 24, 24), torch.randint(0, 10, (32,))
    labels[4:16] = -100
    updates = []
    for batch_size in (32, 16):
        task, before = frozen_statistics([Phase("x", lr=0.1, steps=1)], accumulate=32 // batch_size)
        loader = DataLoader(TensorDataset(images, labels), batch_size)
        make_trainer(tmp_path, limit_train_batches=1.0).fit(task, loader, loader)
        updates.append({name: p.detach() - before[name] for name, p in task.supernet.named_parameters()})
    for name, change in updates[0].items():
        assert torch.allclose(change, updates[1][name], atol=1e-6), name


def test_validation_figures_are_those_of_calibrated_subnets(tmp_path):
    task, data = make_task(), ofa.ImageData(batch_size=16, calibration=32, holdout=37)
    trainer = make_trainer(tmp_path, callbacks=[SubnetValidation(random=0)], limit_val_batches=1.0)
    figures = trainer.validate(task, data, verbose=False)[0]
    for name in ("largest", "smallest"):
        subnet = calibrate(task.supernet.extract(getattr(SPACE, name)()), data.calibration_batches())
        expected = evaluate_network(subnet, data.val_dataloader())
        assert figures[f"val/accuracy/{name}"] == pytest.approx(expected["accuracy"])
        assert figures[f"val/loss/{name}"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_difference_has_the_standard_error_of_its_items():
    rng = np.random.default_rng(0)
    counted = rng.integers(1, 9, 400).astype(float)
    easy = rng.random(400) * counted  # what both have in common does not count
    a, b = ({"loss": easy + counted * rng.normal(mean, 0.2, 400), "counted": counted} for mean in (1.1, 1.0))
    difference, error = compare(a, b, "loss")
    assert abs(difference - 0.1) < 3 * error and 0.01 < error < 0.03


def test_targets_that_do_not_count_are_not_evaluated():
    subnet = make_task().supernet.extract().eval()
    batches = [
        (torch.randn(4, 1, 24, 24), torch.tensor([1, 2, 3, 4])),
        (torch.randn(4, 1, 24, 24), torch.full((4,), -100)),
    ]
    assert evaluate_network(subnet, batches) == evaluate_network(subnet, batches[:1])
    with pytest.raises(ValueError, match="all targets are ignored"):
        evaluate_network(subnet, batches[1:])
    subnet.train()(batches[0][0]).sum().backward()  # it can still be trained


def test_figures_over_two_processes_are_those_of_one(tmp_path):
    figures = []
    for options in ({}, {"strategy": "ddp_fork", "devices": 2}):
        trainer = make_trainer(tmp_path, callbacks=[SubnetValidation(random=1)], limit_val_batches=1.0, **options)
        data = ofa.ImageData(batch_size=16, calibration=32, holdout=37)
        figures.append(trainer.validate(make_task(), data, verbose=False)[0])
    assert len(figures[0]) == 6 and figures[1] == pytest.approx(figures[0])


def test_clipping_bounds_the_gradient_norm(tmp_path):
    norms = []

    class Task(SupernetTask):
        def _step(self, optimizer):
            super()._step(optimizer)
            grads = [p.grad for p in self.supernet.parameters() if p.grad is not None]
            norms.append(float(torch.stack([g.norm() for g in grads]).norm()))

    task = Task(make_task().supernet, PHASES[:1], clip_norm=1e-2)
    make_trainer(tmp_path, limit_val_batches=0).fit(task, make_data())
    assert norms and all(norm <= 1.01e-2 for norm in norms)


def test_batchnorm_and_biases_do_not_decay():
    decayed, plain = make_task().configure_optimizers().param_groups
    assert decayed["weight_decay"] > 0 and plain["weight_decay"] == 0
    assert all(p.dim() == 1 for p in plain["params"]) and all(p.dim() > 1 for p in decayed["params"])


@pytest.mark.parametrize("decay_unsampled", [True, False])
def test_unsampled_parameters_decay_as_told(tmp_path, decay_unsampled):
    phases = [Phase("x", lr=0.1, steps=1, space={"depth": [2]})]
    task = make_task(phases, decay_unsampled=decay_unsampled, optimizer=lambda g: torch.optim.SGD(g, weight_decay=0.1))
    unsampled = task.supernet.blocks[1][3].conv_pw.weight
    before = unsampled.clone()
    make_trainer(tmp_path, limit_val_batches=0).fit(task, make_data())
    assert torch.equal(unsampled, before) != decay_unsampled


# ---- sampling


def test_samplers_are_functions_of_step_and_seed():
    for sampler in (sampling.uniform, sampling.sandwich):
        assert sampler(SPACE, 4, 7, 1) == sampler(SPACE, 4, 7, 1) != sampler(SPACE, 4, 8, 1)


def test_shared_choices_are_equal_within_a_step():
    for step in range(5):
        assert len({c.resolution for c in sampling.uniform(SPACE, 6, step, 0, shared=("resolution",))}) == 1


def test_the_sandwich_has_both_ends():
    configs = sampling.sandwich(SPACE, 4, 0, 0)
    assert len(configs) == 4 and configs[0] == SPACE.largest() and configs[-1] == SPACE.smallest()


def test_stratified_sampling_spreads_the_costs():
    def cost(X):
        return X.sum(axis=1)

    spread = {}
    for name in ("stratified", "uniform"):
        extra = {"costs": cost} if name == "stratified" else {}
        costs = [cost(SPACE.encode(getattr(sampling, name)(SPACE, 4, step, 0, **extra))) for step in range(50)]
        spread[name] = np.mean([np.ptp(c) for c in costs])
    assert spread["stratified"] > spread["uniform"]


def test_stratified_sampling_takes_one_config_of_each_band_of_cost():
    for step in range(20):
        X = SPACE.encode(sampling.stratified(SPACE, 4, step, 0, costs=lambda X: X.sum(axis=1)))
        assert (np.diff(X.sum(axis=1)) >= 0).all()


# ---- losses


def test_ignored_items_do_not_count():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    target = torch.tensor([[1, 2, -100], [-100, 0, 4]])
    kept = target.flatten() != -100
    for loss in (soft_cross_entropy, squared_error):
        expected = loss(student.flatten(0, 1)[kept], teacher.flatten(0, 1)[kept], target.flatten()[kept])
        assert torch.allclose(loss(student, teacher, target), expected)
    assert torch.allclose(label_loss(student, target), label_loss(student.flatten(0, 1)[kept], target.flatten()[kept]))


def test_soft_cross_entropy_is_least_at_the_teacher():
    teacher = torch.randn(4, 6)
    target = torch.zeros(4, dtype=torch.long)
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
    assert soft_cross_entropy(teacher, teacher, target).item() == pytest.approx(entropy.item())
    assert soft_cross_entropy(torch.randn(4, 6), teacher, target) > entropy


# ---- resuming


def test_the_order_is_a_function_of_seed_and_epoch_and_starts_anywhere():
    whole = list(ResumableSampler(50, 3, lambda: (2, 0)))
    assert list(ResumableSampler(50, 3, lambda: (2, 16))) == whole[16:]
    assert list(ResumableSampler(50, 3, lambda: (1, 0))) != whole
    assert sorted(whole) == [(2, i) for i in range(50)]


def test_processes_together_see_the_batches_that_one_would():
    whole = list(ResumableSampler(50, 3, lambda: (0, 0)))
    parts = [list(ResumableSampler(50, 3, lambda: (0, 4), rank, 2)) for rank in range(2)]
    assert set(whole[8:16]) == {*parts[0][:4], *parts[1][:4]}


@pytest.mark.parametrize("items", [5, 6, 7])
def test_shards_hold_every_item_once(items):
    shards = [ShardSampler(items, rank, 3) for rank in range(3)]
    assert sorted(i for shard in shards for i in shard) == list(range(items))
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]


class StopAt(pl.Callback):
    """Saves, then stops the process's training as a kill would, after a global step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_resuming_goes_on_bit_identically(tmp_path, stop):
    def fit(callbacks=(), ckpt_path=None):
        task = make_task()
        trainer = make_trainer(tmp_path, limit_train_batches=3, callbacks=list(callbacks), limit_val_batches=0)
        trainer.fit(task, make_data(), ckpt_path=ckpt_path)
        return task.supernet.state_dict()

    whole = fit()
    path = tmp_path / "last.ckpt"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit([StopAt(stop, path)])
    resumed = fit(ckpt_path=path)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_checkpoint_of_another_supernet_or_schedule_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    trainer = make_trainer(tmp_path, limit_val_batches=0)
    trainer.fit(make_task(), make_data())
    trainer.save_checkpoint(path)
    with pytest.raises(ValueError, match="other phases"):
        make_trainer(tmp_path).fit(make_task(PHASES[:1]), make_data(), ckpt_path=path)
    other = SupernetTask(ofa.MobileNetV3(SPACE, num_classes=10, width_mult=0.3, in_channels=1, stem_stride=1), PHASES)
    with pytest.raises(ValueError, match="the checkpoint's arguments"):
        make_trainer(tmp_path).fit(other, make_data(), ckpt_path=path)


@pytest.mark.parametrize(
    ("options", "batch_size", "message"),
    [({"seed": 1}, 16, "began with seed = 0"), ({"clip_norm": 1.0}, 16, "clip_norm"), ({}, 32, "'batch_size': 16")],
)
def test_a_run_is_only_resumed_as_it_began(tmp_path, options, batch_size, message):
    path = tmp_path / "x.ckpt"
    trainer = make_trainer(tmp_path, limit_val_batches=0)
    trainer.fit(make_task(), make_data())
    trainer.save_checkpoint(path)
    data = ofa.ImageData(batch_size=batch_size, calibration=32)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path).fit(make_task(**options), data, ckpt_path=path)


def test_no_checkpoint_is_written_within_an_accumulated_step(tmp_path):
    class Recording(LastCheckpoint):
        def _save(self, trainer):
            saved.append(trainer.fit_loop.epoch_loop.batch_progress.current.processed)
            super()._save(trainer)

    saved, path = [], tmp_path / "x.ckpt"
    for ckpt_path in (None, path):
        task = make_task(PHASES[:1], accumulate=2)
        callbacks = [Recording(tmp_path, every=1)] + ([] if ckpt_path else [StopAt(1, path)])
        trainer = make_trainer(tmp_path, limit_train_batches=4, callbacks=callbacks, limit_val_batches=0)
        try:
            trainer.fit(task, make_data(), ckpt_path=ckpt_path)
        except (KeyboardInterrupt, SystemExit):
            pass
    assert saved and all(batches % 2 == 0 for batches in saved)


def test_a_diverged_training_keeps_its_last_checkpoint(tmp_path):
    task = make_task([Phase("x", lr=1e30, epochs=1)])
    with pytest.raises(ValueError, match="training diverged"):
        make_trainer(tmp_path, callbacks=[LastCheckpoint(tmp_path)], limit_val_batches=0).fit(task, make_data())
    assert not (tmp_path / "last.ckpt").exists()


def test_a_truncated_or_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {}}, path)
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "text").write_text("hello")
    torch.save([1], tmp_path / "list")
    for name, message in (("text", "cannot be read as a checkpoint"), ("list", "holds a list")):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path).fit(make_task(), make_data(), ckpt_path=tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        make_trainer(tmp_path).fit(make_task(), make_data(), ckpt_path=path)
