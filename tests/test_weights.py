import pytest
import torch

import ofa
from ofa.weights import load_published, to_published


def make():
    return ofa.MobileNetV3(num_classes=10)


def test_published_names_and_shapes_are_those_of_the_published_supernet():
    state = to_published(make())
    assert len(state) == 475
    shapes = {
        "blocks.1.conv.inverted_bottleneck.conv.conv.weight": (96, 16, 1, 1),
        "blocks.1.conv.depth_conv.conv.conv.weight": (96, 1, 7, 7),
        "blocks.1.conv.depth_conv.conv.7to5_matrix": (25, 25),
        "blocks.1.conv.point_linear.conv.conv.weight": (24, 96, 1, 1),
        "blocks.5.conv.depth_conv.se.fc.reduce.weight": (40, 144, 1, 1),
        "blocks.5.conv.depth_conv.se.fc.expand.weight": (144, 40, 1, 1),
        "blocks.20.conv.point_linear.bn.bn.running_var": (160,),
        "blocks.0.conv.point_linear.bn.bias": (16,),
        "first_conv.conv.weight": (16, 3, 3, 3),
        "final_expand_layer.bn.weight": (960,),
        "feature_mix_layer.conv.weight": (1280, 960, 1, 1),
        "classifier.linear.bias": (10,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize("spelling", ["supernet", "static", "old"])
def test_every_published_spelling_is_loaded(spelling):
    source, target = make(), make()
    state = to_published(source)
    if spelling == "static":
        plain = {k.replace(".conv.conv.weight", ".conv.weight").replace(".bn.bn.", ".bn."): v for k, v in state.items()}
        state = {k: v for k, v in plain.items() if "matrix" not in k}
    elif spelling == "old":
        state = {k.replace(".conv.depth_conv", ".mobile_inverted_conv.depth_conv"): v for k, v in state.items()}
    load_published(target, {"state_dict": state})
    ours = target.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in source.state_dict().items())


def test_what_does_not_fit_is_named(tmp_path):
    state = to_published(make())
    with pytest.raises(ValueError, match="such as zzz"):
        load_published(make(), state | {"zzz": torch.zeros(1)})
    lacking = {k: v for k, v in state.items() if k != "first_conv.bn.bias"}
    with pytest.raises(ValueError, match=r"has no first_conv\.bn\.bias"):
        load_published(make(), lacking)
    with pytest.raises(ValueError, match=r"classifier\.linear\.weight is \(10, 1280\)"):
        load_published(ofa.MobileNetV3(num_classes=7), state)
    (tmp_path / "x").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_published(make(), tmp_path / "x")
