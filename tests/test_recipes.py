"""Every shipped recipe is parsed and its phases are walked, two batches each, on made-up data."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import hat
from recipes.cli import RECIPES
from supernet.phases import learning_rate, locate
from supernet.training import SubnetValidation, SupernetTask


class MadeUp(pl.LightningDataModule):
    """Random inputs and targets of the supernet's kind."""

    def __init__(self, supernet, batch_size=2, batches=2):
        super().__init__()
        items = batch_size * batches
        if isinstance(supernet, hat.Transformer):
            self.tensors = [torch.randint(4, supernet.arguments["vocab_size"], (items, 6)) for _ in range(3)]
        else:
            images = torch.randn(items, supernet.arguments["in_channels"], 32, 32)
            self.tensors = [images, torch.randint(supernet.arguments["num_classes"], (items,))]
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(torch.utils.data.TensorDataset(*self.tensors), self.batch_size)

    val_dataloader = train_dataloader

    def calibration_batches(self):
        yield tuple(self.tensors[:-1])


class Watch(pl.Callback):
    """Checks each phase's first step, and that every subnet lies in the phase's sub-space."""

    def __init__(self):
        self.begun = []

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        _, phase_step = locate(task.phases, 2, trainer.global_step)
        if phase_step == 0:  # what the step before left must be gone after this step
            self.before = {id(p): s.get("momentum_buffer") for p, s in trainer.optimizers[0].state.items()}

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        step = trainer.global_step - 1
        index, phase_step = locate(task.phases, 2, step)
        phase, optimizer = task.phases[index], trainer.optimizers[0]
        assert optimizer.param_groups[0]["lr"] == learning_rate(phase, 2, phase_step)
        for config in task.sample(phase, task.spaces[index], step):
            task.spaces[index].encode([config])
        if phase_step == 0:
            kept = [p for p, s in optimizer.state.items() if s.get("momentum_buffer") is self.before.get(id(p), 0)]
            assert not kept, "the optimizer kept momentum over a boundary"
            self.begun.append(phase.name)
        if task.teacher is not None:
            assert not any(p.requires_grad or p.grad is not None for p in task.teacher.parameters())


def parse(recipe):
    """The recipe's task, without its data."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--run", type=str)
    parser.add_argument("--checkpoint_every", type=int)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    parser.add_class_arguments(SupernetTask, "model")
    parser.add_argument("--trainer", type=dict)
    config = parser.parse_path(recipe)
    del config["data"]
    return parser.instantiate(config).model


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_the_phases_of_a_recipe_are_walked(recipe, tmp_path):
    task, watch = parse(recipe), Watch()
    given = task.phases
    task = SupernetTask(
        task.supernet, given, clip_norm=task.clip_norm, teacher_mode=task.teacher_mode, scale_phases=1e-6
    )
    trainer = pl.Trainer(
        max_epochs=-1,
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[watch, SubnetValidation(random=1)],
    )
    trainer.fit(task, MadeUp(task.supernet))
    assert watch.begun == [phase.name for phase in given]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command(recipe):
    head = recipe.read_text().partition("run:")[0]
    assert f"supernet fit --config {recipe.parent.name}/{recipe.stem}" in head
