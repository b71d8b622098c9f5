"""Training, validating and resuming in every precision that Lightning has, on families small enough for a test."""

import functools
import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

import hat
import ofa
from ofa.depthwise import DepthwiseConv2d, depthwise_conv2d
from supernet.distillation import label_loss, soft_cross_entropy, squared_error
from supernet.elastic import ElasticEmbedding, ElasticLinear, linear
from supernet.model import calibrate
from supernet.phases import Phase
from supernet.resuming import AtomicCheckpointIO, LastCheckpoint
from supernet.training import SubnetValidation, SupernetTask

PRECISIONS = ["bf16-mixed", "bf16-true", "64-true"]


def convolutional(**options):
    """(task, data) that meet every operation: kernels up to 7, resizing, all three teachers."""
    torch.manual_seed(0)
    space = ofa.mobilenet_v3_space(resolution=(8, 12), depth=(1, 2), kernel_size=(3, 5, 7), expand_ratio=(2, 3))
    supernet = ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1, dropout=0.2)
    all_of = {"depth": [2], "kernel_size": [7], "expand_ratio": [3]}
    phases = [
        Phase("largest", lr=0.05, epochs=1, space=all_of),
        Phase("mixed", lr=0.05, epochs=1, subnets=2),
        Phase("taught", lr=0.05, epochs=1, subnets=2, teacher="frozen"),
        Phase("all", lr=0.02, epochs=1, subnets=3, sampler="sandwich", teacher="inplace", label_weight=0.0),
    ]
    data = ofa.ImageData(batch_size=16, calibration=32, holdout=32, padding=1, flip=True)
    return SupernetTask(supernet, phases, **options), data


def translating(**options):
    torch.manual_seed(0)
    space = hat.transformer_space(
        embed_dim=(16, 24), ffn_embed_dim=(16, 32), heads=(1, 2), encoder_layer_num=(2,), decoder_layer_num=(1, 2),
        arbitrary_ende_attn=(-1, 1), conv_kernel_size=(1, 3),
    )  # fmt: skip
    supernet = hat.Transformer(
        space, vocab_size=300, head_dim=8, max_positions=60, dropout=0.2, attention_dropout=0.1
    )  # fmt: skip
    phases = [
        Phase("uniform", lr=0.002, epochs=2),
        Phase("all", lr=0.001, epochs=1, subnets=3, sampler="sandwich", teacher="inplace"),
        Phase("taught", lr=0.001, epochs=1, subnets=2, teacher="frozen"),
    ]
    optimizer = lambda groups: torch.optim.Adam(groups, lr=1e-3, betas=(0.9, 0.98))  # noqa: E731
    task = SupernetTask(supernet, phases, optimizer, **({"accumulate": 2, "decay_unsampled": False} | options))
    return task, text()


@functools.cache
def text():
    return hat.ParallelText(vocab_size=300, max_tokens=256, max_length=60)


FAMILIES = {"MobileNetV3": convolutional, "Transformer": translating}
family = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)


def make_trainer(folder, precision, callbacks=(), **options):
    options = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1, "logger": False} | options
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False} | options
    options = {"max_epochs": -1, "num_sanity_val_steps": 0, "accelerator": "cpu"} | options
    if isinstance(precision, str):
        options["precision"], plugins = precision, []
    else:
        plugins = [precision]
    plugins.append(AtomicCheckpointIO())
    return pl.Trainer(default_root_dir=folder, plugins=plugins, callbacks=list(callbacks), **options)


@family
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_family_trains_validates_and_tests(tmp_path, make, precision):
    task, data = make()
    validation = SubnetValidation(random=1)
    trainer = make_trainer(tmp_path, precision, [validation, LastCheckpoint(tmp_path)])
    trainer.fit(task, data)
    assert all(math.isfinite(value) for value in trainer.callback_metrics.values())
    for verb in ("validate", "test"):
        trainer = make_trainer(tmp_path, precision, [SubnetValidation(random=1)])
        (figures,) = getattr(trainer, verb)(make()[0], data, ckpt_path=tmp_path / "last.ckpt", verbose=False)
        assert len(figures) == 6 and all(math.isfinite(value) for value in figures.values())


@pytest.mark.gpu
@family
@pytest.mark.parametrize("precision", [*PRECISIONS, "16-mixed"])
def test_every_family_trains_validates_and_tests_on_a_gpu(tmp_path, make, precision):
    task, data = make(clip_norm=1.0)
    trainer = make_trainer(tmp_path, precision, [SubnetValidation(random=1)], accelerator="gpu", devices=1)
    trainer.fit(task, data)
    for verb in ("validate", "test"):
        (figures,) = getattr(trainer, verb)(task, data, verbose=False)
        assert len(figures) == 6 and all(math.isfinite(value) for value in figures.values())


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_validation_is_in_float32_as_the_network_is_deployed(tmp_path, precision):
    seen = []

    class Task(SupernetTask):
        def prepare(self, inputs, config):
            seen.append({x.dtype for x in inputs})
            return super().prepare(inputs, config)

    task, data = convolutional()
    task = Task(task.supernet, task.phases)
    make_trainer(tmp_path, precision, [SubnetValidation(random=0)]).validate(task, data, verbose=False)
    assert seen and all(dtypes == {torch.float32} for dtypes in seen)


# ---- custom autograd Functions


def gradients_of(function, tensors, precision=None):
    """(output, gradients of its squared sum) of float32 tensors, under autocast where a precision is given."""
    tensors = [x.clone().detach().requires_grad_() for x in tensors]
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        made = function(*tensors)
    made.float().square().sum().backward()
    return made, [x.grad for x in tensors]


def assert_close(found, expected):
    assert found.dtype == expected.dtype == torch.float32
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(2, 2), (12, 12)])
@pytest.mark.parametrize("function", [DepthwiseConv2d.apply, depthwise_conv2d], ids=["Function", "function"])
def test_a_depthwise_convolution_under_autocast(function, size, kernel, stride, precision):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 8, *size).to(memory_format=torch.channels_last), torch.randn(8, 1, kernel, kernel)
    made, found = gradients_of(lambda x, weight: function(x, weight, stride), (x, weight), precision)
    _, expected = gradients_of(lambda x, w: F.conv2d(x, w, None, stride, kernel // 2, groups=8), (x, weight))
    assert made.dtype == precision
    for ours, theirs in zip(found, expected):
        assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", [5, 7])
def test_a_depthwise_convolution_takes_what_the_layer_before_it_gives_under_autocast(kernel):
    x, weight = torch.randn(4, 8, 12, 12).bfloat16(), torch.randn(8, 1, kernel, kernel, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        depthwise_conv2d(x, weight, 1).sum().backward()
    assert weight.grad.dtype == torch.float32


def test_float64_is_left_alone_under_autocast():
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    weight = torch.randn(8, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv2d(x, weight, 1).dtype == torch.float64


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(20, 24), (32, 24), (20, 48)], ids=str)
def test_a_sliced_linear_layer_under_autocast(sizes, precision):
    torch.manual_seed(0)
    n_in, n_out = sizes
    tensors = torch.randn(2, 9, n_in), torch.randn(48, 32), torch.randn(48)
    made, found = gradients_of(lambda x, w, b: linear(x, w, b, n_out, n_in), tensors, precision)
    _, expected = gradients_of(lambda x, w, b: F.linear(x, w[:n_out, :n_in], b[:n_out]), tensors)
    assert made.dtype == precision
    for ours, theirs in zip(found, expected):
        assert_close(ours, theirs)


def test_a_sliced_embedding_under_autocast():
    torch.manual_seed(0)
    tokens, layer = torch.randint(30, (8, 40)), ElasticEmbedding(30, 16, padding_idx=1)
    layer.set_active(12)
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(tokens)
    assert made.dtype == torch.float32
    made.square().sum().backward()
    plain = layer.weight.detach().requires_grad_()
    F.embedding(tokens, plain[:, :12], 1).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.grad)


def test_a_token_that_occurs_often_keeps_its_gradient_in_half_precision():
    layer = ElasticEmbedding(5, 8).bfloat16()
    layer.set_active(4)
    layer(torch.zeros(3000, dtype=torch.long)).sum().backward()
    assert layer.weight.grad[0, 0].item() == pytest.approx(3000, rel=0.01)
    assert layer.weight.grad.dtype == torch.bfloat16 and not layer.weight.grad[1:].any()


def test_a_sliced_linear_layer_in_half_precision():
    layer, plain = ElasticLinear(32, 48).bfloat16(), nn.Linear(32, 48)
    plain.load_state_dict(layer.state_dict())
    layer.set_active(20, 24)
    x = torch.randn(2, 9, 20).bfloat16()
    layer(x).float().square().sum().backward()
    F.linear(x.float(), plain.weight[:24, :20], plain.bias[:24]).square().sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16
    assert_close(layer.weight.grad.float(), plain.weight.grad)


@pytest.mark.parametrize("loss", [soft_cross_entropy, squared_error, lambda s, t, y, i: label_loss(s, y)])
def test_losses_of_half_precision_logits_are_computed_in_float32(loss):
    student, teacher = torch.randn(8, 50).bfloat16(), torch.randn(8, 50).bfloat16()
    target = torch.arange(8)
    assert torch.equal(loss(student, teacher, target, -100), loss(student.float(), teacher.float(), target, -100))


# ---- scaled gradients


def scaled(scale=2.0**6):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def step_of(folder, precision, **options):
    """(weights before, weights after, logged metrics) of one step of the convolutional family."""
    task, data = convolutional(**options)
    task = SupernetTask(task.supernet, [Phase("x", lr=0.1, steps=1, subnets=2)], **options)
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    trainer = make_trainer(folder, precision, limit_train_batches=options.get("accumulate", 1), limit_val_batches=0)
    trainer.fit(task, data)
    return before, dict(task.named_parameters()), trainer


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"decay_unsampled": False}], ids=str)
def test_scaled_gradients_are_clipped_as_those_of_float32(tmp_path, options):
    norms = []
    for precision in ("32-true", scaled()):
        before, after, trainer = step_of(tmp_path, precision, clip_norm=0.01, **options)
        norms.append(float(trainer.callback_metrics["train/grad_norm"]))
        moved = torch.cat([(after[name].detach() - p).flatten() for name, p in before.items()]).norm()
        moved = float(moved) / (0.1 * 0.01 * 1.9)  # lr * clip_norm, with Nesterov's 1 + momentum
        assert 0.9 < moved < 1.1
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_a_step_whose_scaled_gradients_overflow_is_skipped(tmp_path):
    before, after, trainer = step_of(tmp_path, scaled(2.0**100), clip_norm=1.0)
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert trainer.global_step == 1 and trainer.precision_plugin.scaler.get_scale() == 2.0**99


def test_a_fused_optimizer_cannot_clip_scaled_gradients(tmp_path):
    optimizer = lambda groups: torch.optim.Adam(groups, fused=True)  # noqa: E731
    with pytest.raises(ValueError, match="clip_norm = 1.0: a fused Adam"):
        step_of(tmp_path, scaled(), clip_norm=1.0, optimizer=optimizer)
    step_of(tmp_path, scaled(), optimizer=optimizer)


# ---- resuming


class StopAt(pl.Callback):
    """Saves, then stops the training as a kill would, after a global step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == self.step and task.counted:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


@family
@pytest.mark.parametrize(("precision", "stop"), [("bf16-mixed", 3), ("bf16-true", 5)])
def test_resuming_goes_on_bit_identically(tmp_path, make, precision, stop):
    def fit(callbacks=(), ckpt_path=None):
        task, data = make(clip_norm=1.0)
        batches = 2 * task.accumulate
        trainer = make_trainer(tmp_path, precision, callbacks, limit_train_batches=batches, limit_val_batches=0)
        trainer.fit(task, data, ckpt_path=ckpt_path)
        return task.state_dict()

    whole = fit()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit([StopAt(stop, tmp_path / "x.ckpt")])
    resumed = fit(ckpt_path=tmp_path / "x.ckpt")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


# ---- extraction, calibration, saving


def test_what_is_extracted_under_autocast_has_the_supernets_precision():
    task, _ = convolutional()
    with torch.autocast("cpu", torch.bfloat16):
        subnet = task.supernet.extract(task.supernet.space.smallest())
    expected = task.supernet.extract(task.supernet.space.smallest()).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in subnet.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_calibration_takes_a_network_of_any_precision(dtype):
    task, _ = convolutional()
    images = torch.randn(32, 1, 24, 24)
    expected = calibrate(task.supernet.extract(), [images])
    found = calibrate(task.supernet.extract().to(dtype), [images])
    assert all(p.dtype == dtype for p in found.parameters())
    assert torch.allclose(found.bn1.running_mean.float(), expected.bn1.running_mean, rtol=0.05, atol=0.02)


def test_calibration_does_not_depend_on_autocast():
    task, _ = convolutional()
    images, found = torch.randn(32, 1, 24, 24), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(calibrate(task.supernet.extract(), [images]).state_dict())
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


# ---- the claim


def images_of_24():
    space = ofa.mobilenet_v3_space(resolution=(24,), depth=(1, 2), kernel_size=(3, 5, 7), expand_ratio=(2, 3))
    return ofa.MobileNetV3(space, num_classes=10, width_mult=0.2, in_channels=1, stem_stride=1, dropout=0.2)


@family
def test_twenty_steps_in_mixed_precision_have_the_losses_of_float32(tmp_path, make):
    losses = {}

    class Losses(pl.Callback):
        def on_before_optimizer_step(self, trainer, task, optimizer):
            gradients = [p.grad for p in task.supernet.parameters() if p.grad is not None]
            assert gradients and all(gradient.isfinite().all() for gradient in gradients)

        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            losses[trainer.precision].append(float(outputs["loss"]))

    for precision in ("32-true", "bf16-mixed"):
        task, data = make(accumulate=1)
        if make is convolutional:  # with maps of 1 x 1 and small batches, float32 alone differs by more from rounding
            data = ofa.ImageData(batch_size=64, holdout=32, image_size=24)
        phase = Phase("all", lr=0.005 if make is convolutional else 1e-3, steps=20, subnets=2)
        supernet = task.supernet if make is translating else images_of_24()
        task = SupernetTask(supernet, [phase], task.make_optimizer)
        losses[precision] = []
        trainer = make_trainer(tmp_path, precision, [Losses()], limit_train_batches=1.0, limit_val_batches=0)
        trainer.fit(task, data)
    assert len(losses["32-true"]) == 20 and losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
