import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ofa
from ofa.blocks import ElasticDepthwiseConv2d, InvertedResidual, make_divisible, middle_width, reduced_width
from ofa.depthwise import DepthwiseConv2d, depthwise_conv2d


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("width_mult", "sizes"),
    [
        (1.0, (7_678_880, 7_664_760, 566.17, 3_410_792, 121.28)),
        (1.2, (10_715_752, 10_701_632, 843.10, 4_602_456, 193.08)),
    ],
)
def test_sizes_are_the_published_ones(width_mult, sizes):
    supernet = ofa.MobileNetV3(width_mult=width_mult)
    space = supernet.space
    macs = supernet.costs(space.encode([space.largest(), space.smallest()]))["macs"] / 1e6
    found = (
        parameters(supernet),
        parameters(supernet.extract(space.largest())),
        round(float(macs[0]), 2),
        parameters(supernet.extract(space.smallest())),
        round(float(macs[1]), 2),
    )
    assert found == sizes
    matrices = sum(p.numel() for name, p in supernet.named_parameters() if "transforms" in name)
    assert matrices == 14_120


def test_a_network_is_traced_in_fewer_layers_that_compute_the_same():
    supernet = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=32), num_classes=10, width_mult=0.5)
    for norm in supernet.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for parameter in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    subnet = supernet.extract(supernet.space.smallest()).eval()
    before = [x.clone() for x in subnet.state_dict().values()]
    traced, images = subnet.for_tracing(), torch.randn(2, 3, 32, 32)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in traced.modules())
    torch.testing.assert_close(traced(images), subnet(images), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(x, y) for x, y in zip(before, subnet.state_dict().values()))


def test_widths_follow_the_published_rounding():
    assert list(middle_width(16, np.array([3, 4, 6]))) == [48, 64, 96]
    assert list(middle_width(112, np.array([3, 4, 6]))) == [336, 448, 672]
    assert list(reduced_width(np.array([144, 240, 480, 672, 960]))) == [40, 64, 120, 168, 240]
    assert list(make_divisible(np.array([3.0, 11.9, 12.0, 28.8]))) == [8, 16, 16, 32]


def test_the_work_of_whole_vectors_is_that_of_the_layers():
    space = ofa.mobilenet_v3_space(resolution=(32, 44))
    supernet = ofa.MobileNetV3(space, num_classes=10, width_mult=0.5)
    X = space.sample(5, np.random.default_rng(0))
    terms = supernet.cost_terms(X)
    for i, config in enumerate(space.decode(X)):
        subnet, seen = supernet.extract(config).eval(), []
        watch = lambda conv, inputs, output, seen=seen: seen.append((conv.in_channels, *output.shape[1:]))  # noqa: E731
        for block in subnet.modules():
            if isinstance(block, InvertedResidual):
                block.conv_pw.register_forward_hook(watch)
                block.conv_pwl.register_forward_hook(watch)
        subnet(*subnet.example_inputs())
        rows = sum(into * out * height * 8 * -(-width // 8) for into, out, height, width in seen)
        channels = sum(16 * -(-into // 16) * 16 * -(-out // 16) * height * width for into, out, height, width in seen)
        assert (rows, channels) == (terms["padded.rows"][i], terms["padded.channels"][i])


def test_a_smaller_kernel_is_the_transformed_centre_of_the_next_larger():
    conv = ElasticDepthwiseConv2d(4, (3, 5, 7))
    with torch.no_grad():
        for matrix in conv.transforms.values():
            matrix.add_(0.1 * torch.randn_like(matrix))
    five = (conv.weight[:, :, 1:-1, 1:-1].reshape(4, 25) @ conv.transforms["7to5"].T).view(4, 1, 5, 5)
    three = (five[:, :, 1:-1, 1:-1].reshape(4, 9) @ conv.transforms["5to3"].T).view(4, 1, 3, 3)
    conv.set_active(4, 5)
    assert torch.allclose(conv.active_weight(), five, atol=1e-6)
    conv.set_active(3, 3)
    assert torch.allclose(conv.active_weight(), three[:3], atol=1e-6)


def test_gradients_reach_the_kernel_matrices_that_a_subnet_uses():
    supernet = ofa.MobileNetV3(num_classes=3, width_mult=0.35)
    reached = {}
    for kernel_size in (3, 5, 7):
        supernet.zero_grad()
        supernet.set_active(supernet.space.config(kernel_size=kernel_size))(torch.randn(2, 3, 32, 32)).sum().backward()
        matrices = {n: p.grad for n, p in supernet.named_parameters() if "transforms" in n and p.grad is not None}
        reached[kernel_size] = {name.rpartition(".")[2] for name, grad in matrices.items() if grad.abs().sum() > 0}
    assert reached == {3: {"7to5", "5to3"}, 5: {"7to5"}, 7: set()}


@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 7), (12, 12)])
def test_depthwise_gradients_equal_torchs(kernel, stride, size):
    x = torch.randn(70, 8, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(8, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, None, stride, kernel // 2, groups=8)
    found = DepthwiseConv2d.apply(x, weight, stride)
    grad = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad)):
        assert torch.allclose(a, b, atol=1e-10)


def test_depthwise_gradients_equal_torchs_in_single_precision_over_many_chunks():
    x = torch.randn(64, 96, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(96, 1, 7, 7, requires_grad=True)
    grad = torch.randn(64, 96, 16, 16).contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(depthwise_conv2d(x, weight, 1), weight, grad)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=3, groups=96), weight, grad)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_images_are_resized_to_the_resolution():
    supernet = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=(32, 64)), num_classes=3, width_mult=0.35)
    for resolution in (32, 64):
        config = dataclasses.replace(supernet.space.largest(), resolution=resolution)
        (x,) = supernet.prepare((torch.randn(2, 3, 40, 40),), config)
        assert x.shape == (2, 3, resolution, resolution)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size: 4 is even"):
        ofa.mobilenet_v3_space(kernel_size=(3, 4))


def test_arguments_of_every_kind_build_and_run():
    supernet = ofa.MobileNetV3(
        ofa.mobilenet_v3_space(depth=(1, 2), kernel_size=(5,), expand_ratio=(2,), resolution=(20,)),
        num_classes=4,
        width_mult=0.25,
        in_channels=1,
        dropout=0.5,
        stem_stride=1,
    )
    assert supernet(torch.randn(2, 1, 20, 20)).shape == (2, 4)


def test_a_resolution_above_the_image_size_is_refused():
    supernet = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=[24, 32]), num_classes=10, in_channels=1)
    with pytest.raises(ValueError, match="resolution is 32, the data's image_size is 28"):
        supernet.check_data(ofa.ImageData(image_size=28).input_spec)
    supernet.check_data(ofa.ImageData().input_spec)  # images of 8 pixels, which have their own size, may be enlarged
    supernet.check_data(ofa.ImageData(image_size=32).input_spec)
    supernet.extract(supernet.space.smallest()).check_data(ofa.ImageData(image_size=28).input_spec)


def test_an_image_size_above_every_resolution_is_reported_once(caplog):
    supernet = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=[24, 32]), num_classes=10, in_channels=1)
    with caplog.at_level("INFO"):
        for _ in range(2):
            supernet.check_data(ofa.ImageData(image_size=48).input_spec)
    lines = [message for message in caplog.messages if "image_size is 48, the largest resolution is 32" in message]
    assert len(lines) == 1 and "resized twice" in lines[0]
