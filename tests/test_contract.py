"""What every supernet family promises, checked on each."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hat
import ofa
from supernet.model import calibrate

TINY = dict(embed_dim=(32, 48), ffn_embed_dim=(32, 64, 96), heads=(2, 4), encoder_layer_num=(3, 4))
PRIMER = dict(relu_power=(1, 2), conv_kernel_size=(1, 3))
FAMILIES = {
    "mobilenet_v3": lambda: ofa.MobileNetV3(
        ofa.mobilenet_v3_space(resolution=(32, 48, 64)), num_classes=10, width_mult=0.35
    ),
    "mobilenet_v3_grey": lambda: ofa.MobileNetV3(
        ofa.mobilenet_v3_space(resolution=(28,)), num_classes=7, width_mult=0.5, in_channels=1, stem_stride=1
    ),
    "transformer": lambda: hat.Transformer(
        hat.transformer_space(**TINY, decoder_layer_num=(1, 2, 3)), vocab_size=60, qkv_dim=64
    ),
    "transformer_of_unequal_widths": lambda: hat.Transformer(
        hat.transformer_space(
            **TINY, **PRIMER, decoder_layer_num=(1, 2), encoder_embed_dim=(32, 48), decoder_embed_dim=(32, 64)
        ),
        vocab_size=60,
        qkv_dim=64,
        share_embeddings=False,
    ),
    "transformer_nested_tied": lambda: hat.Transformer(
        hat.transformer_space(**TINY, decoder_layer_num=(1, 2)), vocab_size=60, head_dim=16
    ),
    "transformer_nested": lambda: hat.Transformer(
        hat.transformer_space(**TINY, **PRIMER, decoder_layer_num=(1, 2)),
        vocab_size=60,
        target_vocab_size=50,
        share_embeddings=False,
        head_dim=16,
        normalize_before=True,
    ),
}
SORTED = {  # the choices of widths whose channels are sorted
    ofa.MobileNetV3: ("expand_ratio",),
    hat.Transformer: ("encoder_ffn_embed_dim", "decoder_ffn_embed_dim", *hat.transformer.HEADS),
}


def inputs(supernet, batch=2):
    """Random inputs of the family's kind, which `prepare` is to fit to a config."""
    if isinstance(supernet, ofa.MobileNetV3):
        return (torch.randn(batch, supernet.arguments["in_channels"], 32, 32),)
    source, previous = (torch.randint(4, 50, (batch, length)) for length in (11, 9))
    source[0, :3] = 1  # padding
    return source, previous


def in_format(tensors, memory_format):
    return [x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in tensors]


@pytest.fixture(params=FAMILIES)
def supernet(request):
    torch.manual_seed(0)
    supernet = FAMILIES[request.param]()
    randomise(supernet)
    return supernet


@pytest.fixture
def with_batchnorm(supernet):
    if not any(isinstance(module, nn.BatchNorm2d) for module in supernet.modules()):
        pytest.skip("a family without BatchNorm")
    return supernet


@torch.no_grad()
def randomise(supernet):
    """Weights and statistics as unequal as training makes them."""
    for p in supernet.parameters():
        p.add_(0.1 * torch.randn_like(p) * (p.std() if p.numel() > 1 and p.std() > 0 else 1))
    for name, buffer in supernet.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.2)


def configs(supernet, n, seed=0):
    return supernet.space.decode(supernet.space.sample(n, np.random.default_rng(seed)))


def train_a_little(supernet, steps=3):
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05)
    for config in configs(supernet, steps, seed=9):
        optimizer.zero_grad()
        supernet.set_active(config)(*supernet.prepare(inputs(supernet, 4))).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def largest_difference(supernet, n, memory_format):
    supernet.eval().to(memory_format=memory_format)
    worst = 0.0
    for config in configs(supernet, n):
        prepared = in_format(supernet.prepare(inputs(supernet), config), memory_format)
        subnet = supernet.extract(config)
        worst = max(worst, float((supernet.set_active(config)(*prepared) - subnet(*prepared)).abs().max()))
    return worst


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_a_subnet_computes_exactly_what_the_supernet_computes(supernet, memory_format):
    assert largest_difference(supernet, 100, memory_format) == 0


def test_it_still_does_after_training_and_sorting(supernet):
    train_a_little(supernet)
    supernet.sort(supernet.space)
    assert largest_difference(supernet, 100, torch.channels_last) == 0


def test_every_leaf_of_a_subnet_is_a_torch_layer(supernet):
    for config in configs(supernet, 3):
        for module in supernet.extract(config).modules():
            if not list(module.children()):
                assert type(module) is getattr(nn, type(module).__name__)


def test_costs_are_the_parameters_and_the_counted_operations(supernet):
    X = supernet.space.sample(10, np.random.default_rng(0))
    costs = supernet.costs(X)
    for config, macs, params in zip(supernet.space.decode(X), costs["macs"], costs["params"]):
        subnet = supernet.extract(config).eval()
        assert sum(p.numel() for p in subnet.parameters()) == params
        # The counter does not know the fused attention of CPUs.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            subnet(*subnet.example_inputs())
        assert counter.get_total_flops() == 2 * macs


def test_costs_of_many_rows_are_the_costs_of_each(supernet):
    X = supernet.space.sample(20, np.random.default_rng(1))
    for unit, values in supernet.costs(X).items():
        assert list(values) == [supernet.costs(row[None])[unit][0] for row in X]


def test_the_cost_model_is_small_and_survives_copying(supernet):
    X = supernet.space.sample(3, np.random.default_rng(2))
    terms, again = supernet.cost_terms, copy.deepcopy(supernet.cost_terms)
    assert again == terms and all((again(X)[k] == v).all() for k, v in terms(X).items())


def test_a_subnet_shares_no_storage_and_leaves_the_supernet_alone(supernet):
    active = configs(supernet, 1, seed=5)[0]
    supernet.set_active(active)
    subnet = supernet.extract(configs(supernet, 1)[0])
    ours = {t.untyped_storage().data_ptr() for t in supernet.state_dict().values()}
    assert not ours & {t.untyped_storage().data_ptr() for t in subnet.state_dict().values()}
    assert supernet.config == active


def test_a_subnet_keeps_mode_dtype_and_config(supernet):
    supernet.double().train()
    config = configs(supernet, 1)[0]
    subnet = supernet.extract(config)
    assert all(module.training for module in subnet.modules())
    assert all(p.dtype == torch.float64 for p in subnet.parameters())
    assert subnet.config == config
    assert not any(module.training for module in supernet.eval().extract(config).modules())


def test_train_mode_is_equal_under_one_seed(supernet):
    config = configs(supernet, 1)[0]
    prepared = supernet.prepare(inputs(supernet, 4), config)
    subnet = supernet.extract(config)
    torch.manual_seed(1)
    ours = supernet.set_active(config)(*prepared)
    torch.manual_seed(1)
    assert torch.equal(ours, subnet(*prepared))


def test_the_largest_subnet_loads_the_supernets_state(supernet):
    largest = supernet.extract(supernet.space.largest())
    missing, unexpected = largest.load_state_dict(supernet.state_dict(), strict=False)
    assert not missing and all("transforms" in key for key in unexpected)


def test_a_subnet_cannot_be_set_to_another_config(supernet):
    with pytest.raises(RuntimeError, match="extracted subnet"):
        supernet.extract().set_active(supernet.space.smallest())


def test_a_config_outside_the_space_changes_nothing(supernet):
    before = supernet.config
    name = next(choice.name for choice in reversed(supernet.space.choices) if choice.shape == ())
    outside = type(before)(**{**vars(before), name: 33})
    with pytest.raises(ValueError, match=f"{name} = 33"):
        supernet.set_active(outside)
    with pytest.raises(ValueError, match=f"{name} = 33"):
        supernet.extract(outside)
    assert supernet.config == before


def widest(supernet, n):
    """The sub-space with the n largest values of each width."""
    space = supernet.space
    return space.restrict(**{name: space[name].values[-n:] for name in SORTED[type(supernet)]})


@pytest.mark.parametrize("n", [1, 2, 3])
def test_sorting_changes_no_subnet_of_the_previous_phase(supernet, n):
    previous = widest(supernet, n)
    supernet.eval().double()
    drawn = previous.decode(previous.sample(8, np.random.default_rng(3)))
    given = [x.double() if x.is_floating_point() else x for x in inputs(supernet)]
    prepared = [supernet.prepare(given, config) for config in drawn]
    with torch.no_grad():
        before = [supernet.set_active(config)(*x) for config, x in zip(drawn, prepared)]
        supernet.sort(previous)
        after = [supernet.set_active(config)(*x) for config, x in zip(drawn, prepared)]
    for a, b in zip(before, after):
        assert (a - b).abs().max() < 1e-9 * a.abs().max()


def test_sorting_orders_the_channels_that_the_next_phase_cuts(supernet):
    supernet.sort(widest(supernet, 1))
    for group in supernet.width_groups(widest(supernet, 1)):
        assert (group.importance.diff() <= 0).all()


def test_calibration_gives_the_statistics_of_its_batches(with_batchnorm):
    supernet = with_batchnorm
    subnet = supernet.extract(supernet.space.smallest())
    batches = [n * inputs(supernet, n)[0] + n for n in (8, 3, 1)]  # of one item no statistics are taken
    calibrate(subnet.eval(), batches)
    first = next(m for m in subnet.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0].transpose(0, 1).flatten(1)))
    with torch.no_grad():
        for batch in batches[:2]:
            subnet(*subnet.prepare((batch,)))
    for found, values in (
        (first.running_mean, [x.mean(1) for x in seen]),
        (first.running_var, [x.var(1) for x in seen]),
    ):
        assert torch.allclose(found, (8 * values[0] + 3 * values[1]) / 11, rtol=1e-4)


def test_calibration_restores_modes_momentum_and_memory_format(with_batchnorm):
    supernet = with_batchnorm
    subnet = supernet.extract(supernet.space.smallest()).eval()
    calibrate(subnet, inputs(supernet, 8))
    assert not any(module.training for module in subnet.modules())
    assert all(m.momentum == 0.1 for m in subnet.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(weight.is_contiguous() for weight in subnet.parameters())


def test_calibration_refuses_a_supernet_and_no_data(with_batchnorm):
    supernet = with_batchnorm
    with pytest.raises(ValueError, match="extracted"):
        calibrate(supernet, inputs(supernet))
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(supernet.extract(), [])


def test_calibration_reads_no_batch_without_batchnorm():
    def batches():
        raise AssertionError("read")
        yield

    calibrate(nn.Linear(2, 2), batches())
