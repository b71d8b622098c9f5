"""The elastic layers that transformers are made of: their slices, and the gradients that slices get."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from supernet.elastic import (
    ElasticDepthwiseConv1d,
    ElasticDropout,
    ElasticEmbedding,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticModuleList,
    extract,
    linear,
)

IDS = torch.tensor([[4, 0, 1], [2, 1, 4]])
LAYERS = {  # elastic, torch's, its input, the sizes of a slice, that one's input
    "linear": (lambda: ElasticLinear(6, 8), nn.Linear, (2, 3, 6), (4, 5), (2, 3, 4)),
    "linear_without_bias": (lambda: ElasticLinear(6, 8, bias=False), nn.Linear, (2, 3, 6), (6, 5), (2, 3, 6)),
    "norm": (lambda: ElasticLayerNorm(8), nn.LayerNorm, (2, 3, 8), (5,), (2, 3, 5)),
    "embedding": (lambda: ElasticEmbedding(5, 8, padding_idx=1), nn.Embedding, None, (3,), None),
    "dropout": (lambda: ElasticDropout(0.6), nn.Dropout, (40, 40), (0.5,), (40, 40)),
    "conv": (lambda: ElasticDepthwiseConv1d(8, 8, 5, groups=8), nn.Conv1d, (2, 8, 9), (6, 3, 1), (2, 6, 9)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    torch.manual_seed(0)
    return LAYERS[request.param]


def some(shape):
    return IDS if shape is None else torch.randn(shape)


@torch.no_grad()
def shaken(layer):
    """A layer whose parameters are neither ones nor zeros."""
    for p in layer.parameters():
        p.normal_()
    return layer


def under_one_seed(layer, x):
    torch.manual_seed(1)
    return layer(x)


def test_full_size_is_torchs_layer(case):
    make, plain, shape, _, _ = case
    layer = shaken(make())
    twin = extract(layer)
    assert type(twin) is plain
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}
    x = some(shape)
    forward = plain.forward.__get__(layer)  # torch's own, on the layer as it is
    assert torch.equal(under_one_seed(layer, x), under_one_seed(forward, x))
    assert torch.equal(under_one_seed(layer, x), under_one_seed(twin, x))


def test_the_extracted_slice_is_what_is_active(case):
    make, plain, _, sizes, shape = case
    layer = shaken(make())
    layer.set_active(*sizes)
    twin = extract(layer)
    assert type(twin) is plain
    x = some(shape)
    assert torch.equal(under_one_seed(layer, x), under_one_seed(twin, x))


def test_a_slice_of_a_layer_is_its_leading_part():
    x, w, b = torch.randn(2, 3, 4), torch.randn(8, 6), torch.randn(8)
    layer = ElasticLinear(6, 8)
    layer.load_state_dict({"weight": w, "bias": b})
    layer.set_active(4, 5)
    assert torch.equal(layer(x), F.linear(x, w[:5, :4], b[:5]))
    norm = shaken(ElasticLayerNorm(6))
    norm.set_active(4)
    assert torch.equal(norm(x), F.layer_norm(x, (4,), norm.weight[:4], norm.bias[:4]))
    embedding = ElasticEmbedding(5, 8, padding_idx=1)
    embedding.set_active(3)
    assert torch.equal(embedding(IDS), embedding.weight[IDS][..., :3])
    conv = ElasticDepthwiseConv1d(8, 8, 5, groups=8)
    conv.set_active(4, 3, 2)
    x = torch.randn(2, 4, 9)
    expected = sum(conv.weight[:4, 0, 2 + tap, None] * x[..., tap : tap + 7] for tap in range(3))
    assert torch.allclose(conv(x), expected, atol=1e-6)


def test_a_module_list_is_as_long_as_its_depth():
    layers = ElasticModuleList([nn.Linear(2, 2) for _ in range(3)])
    assert len(list(layers)) == 3 and list(layers) == list(layers._modules.values())
    layers.set_active(2)
    assert list(layers) == [layers[0], layers[1]]
    twin = extract(layers)
    assert type(twin) is nn.ModuleList and len(twin) == 2
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers, twin))
    assert len(list(layers.parameters())) == 6


@pytest.mark.parametrize(
    ("layer", "sizes", "message"),
    [
        (lambda: ElasticLinear(6, 8), (7, 8), "in_features = 7 is not in 1..6"),
        (lambda: ElasticLinear(6, 8), (6, 0), "out_features = 0 is not in 1..8"),
        (lambda: ElasticLayerNorm(8), (9,), "features = 9"),
        (lambda: ElasticEmbedding(5, 8), (9,), "dim = 9"),
        (lambda: ElasticDropout(0.5), (1.5,), "share of 1.5"),
        (lambda: ElasticDepthwiseConv1d(8, 8, 5, groups=8), (8, 3, 3), "taps 3 to 6"),
        (lambda: ElasticDepthwiseConv1d(8, 8, 5, groups=8), (9, 3, 0), "channels = 9"),
        (lambda: ElasticModuleList([nn.Identity()]), (2,), "depth = 2"),
    ],
)
def test_a_size_that_is_not_there_is_refused(layer, sizes, message):
    with pytest.raises(ValueError, match=message):
        layer().set_active(*sizes)


# ---------------------------------------------------------------- gradients, against autograd's of plain slices


class Sliced(nn.Module):
    """Tied embedding and output around a layer, elastic or of plain slices, which a subnet is a pair of widths of."""

    def __init__(self, elastic):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.elastic = elastic
        self.tokens = ElasticEmbedding(7, 8, padding_idx=1)
        self.hidden = ElasticLinear(8, 10)
        self.output = ElasticLinear(10, 7, bias=False)
        self.tied = ElasticLinear(8, 7, bias=False)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.tied.weight = self.tokens.weight

    def forward(self, ids, width, hidden):
        if self.elastic:
            self.tokens.set_active(width)
            self.hidden.set_active(width, hidden)
            self.output.set_active(hidden, 7)
            self.tied.set_active(width, 7)
            x = self.tokens(ids)
            return self.output(self.hidden(x).tanh()) + self.tied(x)
        tokens = self.tokens.weight[:, :width]
        x = F.embedding(ids, tokens, padding_idx=1)
        y = F.linear(x, self.hidden.weight[:hidden, :width], self.hidden.bias[:hidden]).tanh()
        return F.linear(y, self.output.weight[:, :hidden]) + F.linear(x, tokens)


def gradients(elastic, subnets, frozen=(), precision=None):
    """{parameter: gradient} after a backward pass of each subnet, (width, hidden)."""
    module = Sliced(elastic)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    ids = torch.tensor([[4, 0, 1, 6], [2, 1, 4, 4]])
    for width, hidden in subnets:
        with nullcontext() if precision is None else torch.autocast("cpu", precision):
            loss = F.cross_entropy(module(ids, width, hidden).flatten(0, 1).float(), ids.flatten())
        loss.backward()
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("frozen", [(), ("hidden.bias",), ("hidden.weight",), ("tokens.weight",)], ids=str)
@pytest.mark.parametrize(
    "subnets",
    [[(8, 10)], [(5, 6)], [(8, 6)], [(5, 10)], [(3, 9), (8, 10), (5, 6)]],
    ids=["full", "both", "outputs", "inputs", "several"],
)
def test_gradients_are_those_of_plain_slices(subnets, frozen):
    ours, plain = gradients(True, subnets, frozen), gradients(False, subnets, frozen)
    for name, expected in plain.items():
        assert (expected is None) == (name in frozen) == (ours[name] is None), name
        if expected is not None:
            assert torch.allclose(ours[name], expected, rtol=1e-5, atol=1e-6), name


def test_gradients_under_autocast_are_those_of_plain_slices():
    subnets = [(3, 9), (8, 10), (5, 6)]
    ours, plain = (gradients(elastic, subnets, precision=torch.bfloat16) for elastic in (True, False))
    for name, expected in plain.items():
        assert ours[name].dtype == torch.float32
        assert (ours[name] - expected).abs().max() < 0.02 * expected.abs().max(), name


def test_an_input_of_any_number_of_axes_gets_its_gradient():
    layer = ElasticLinear(6, 8)
    layer.set_active(4, 5)
    for shape in ((4,), (3, 4), (2, 3, 4), (0, 4)):
        layer.zero_grad()
        x = torch.randn(shape, requires_grad=True)
        layer(x).square().sum().backward()
        w, b = layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_()
        loss = F.linear(x, w[:5, :4], b[:5]).square().sum()
        for ours, expected in zip((x.grad, layer.weight.grad, layer.bias.grad), torch.autograd.grad(loss, (x, w, b))):
            assert torch.allclose(ours, expected, atol=1e-5)


def test_only_the_slice_gets_a_gradient():
    layer = ElasticLinear(6, 8)
    layer.set_active(4, 5)
    layer(torch.randn(3, 4)).square().sum().backward()
    assert layer.weight.grad[:5, :4].all() and layer.bias.grad[:5].all()
    assert not layer.weight.grad[5:].any() and not layer.weight.grad[:, 4:].any() and not layer.bias.grad[5:].any()


def test_a_gradient_that_is_asked_for_of_a_slice_is_an_error():
    module = Sliced(elastic=True)
    for name in ("tokens.weight", "hidden.weight", "hidden.bias", "output.weight"):
        for options in ({}, {"allow_unused": True}):
            loss = module(IDS, 5, 6).sum()
            with pytest.raises(RuntimeError, match="torch.autograd.grad of a sliced parameter"):
                torch.autograd.grad(loss, module.get_parameter(name), **options)
    # Part of this one's gradient would be autograd's own: the embedding is at full size, the output is not.
    tied = linear(module.tokens.weight[IDS][..., :5], module.tokens.weight, None, 7, 5)
    with pytest.raises(RuntimeError, match="torch.autograd.grad of a sliced parameter"):
        torch.autograd.grad(tied.sum(), module.tokens.weight)


def test_gradients_of_other_tensors_leave_the_parameters_alone():
    layer, embedding = ElasticLinear(6, 8), ElasticEmbedding(5, 6)
    layer.set_active(4, 5)
    embedding.set_active(4)
    x = torch.randn(2, 3, 4, requires_grad=True)
    loss = layer(x + embedding(IDS)).square().sum()
    (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward(inputs=[x], retain_graph=True)
    assert torch.equal(grad, x.grad)
    assert all(p.grad is None for p in (layer.weight, layer.bias, embedding.weight))
    loss.backward(inputs=[layer.bias])
    assert layer.bias.grad is not None and layer.weight.grad is None


def test_nothing_is_kept_for_a_gradient_that_nobody_wants():
    layer, embedding = ElasticLinear(6, 8), ElasticEmbedding(5, 6)
    layer.set_active(4, 5)
    embedding.set_active(4)
    with torch.no_grad():
        assert not layer(embedding(IDS)).requires_grad
    layer.requires_grad_(False)
    assert layer(embedding(IDS)).requires_grad and not layer(torch.randn(3, 4)).requires_grad
