"""What `fit` shows of its progress."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl

import ofa
from recipes.fit import Pace, PhaseBars
from supernet.phases import Phase
from supernet.training import SupernetTask

PHASES = [Phase("alone", lr=0.1, steps=2), Phase("together", lr=0.1, steps=2, subnets=3)]


@pytest.mark.parametrize(("step", "left"), [(1, 700), (2, 300), (4, 0)])
def test_the_time_left_counts_a_step_as_often_as_it_trains_subnets(step, left):
    task, pace = SimpleNamespace(phases=PHASES, steps_per_epoch=2, total_steps=4), Pace()
    pace.start_epoch(0)
    pace.began -= 100  # seconds ago
    assert pace.left(task, step) == pytest.approx(left, rel=0.01)


def test_there_is_no_time_left_to_state_before_the_first_step():
    assert Pace().left(SimpleNamespace(phases=PHASES, steps_per_epoch=2, total_steps=4), 0) is None


def test_the_bars_of_a_terminal_name_the_phase(tmp_path):
    shown = []

    class Watched(PhaseBars):
        def on_train_batch_end(self, trainer, task, *batch):
            super().on_train_batch_end(trainer, task, *batch)
            shown.append(self.get_metrics(trainer, task))

    supernet = ofa.MobileNetV3(num_classes=10, in_channels=1, width_mult=0.35, stem_stride=1)
    task = SupernetTask(supernet, PHASES)
    bars = {"callbacks": [Watched()], "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    data = ofa.ImageData("digits", batch_size=4)
    trainer = pl.Trainer(max_epochs=-1, accelerator="cpu", limit_val_batches=0, default_root_dir=tmp_path, **bars)
    trainer.fit(task, data)
    assert [metrics["phase"] for metrics in shown[:3]] == ["alone", "together", "together"]
    assert shown[0]["run left"].endswith("s")
