"""The parameter names of the published Once-for-All checkpoints (mit-han-lab/once-for-all), and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ofa.mobilenet_v3 import STAGES, MobileNetV3
from supernet.resuming import read_checkpoint

# Ours -> published, for layers outside and inside the blocks. Elastic blocks of a published supernet wrap each
# convolution and BatchNorm once more, so that their names are doubled: conv.conv.weight, bn.bn.weight.
OUTER = {
    "conv_stem": "first_conv.conv",
    "bn1": "first_conv.bn",
    "conv_head": "feature_mix_layer.conv",
    "classifier": "classifier.linear",
}
FIRST = {
    "conv_dw": "depth_conv.conv",
    "bn1": "depth_conv.bn",
    "conv_pw": "point_linear.conv",
    "bn2": "point_linear.bn",
}
BLOCK = {
    "conv_pw": "inverted_bottleneck.conv",
    "bn1": "inverted_bottleneck.bn",
    "conv_dw": "depth_conv.conv",
    "bn2": "depth_conv.bn",
    "se.conv_reduce": "depth_conv.se.fc.reduce",
    "se.conv_expand": "depth_conv.se.fc.expand",
    "conv_pwl": "point_linear.conv",
    "bn3": "point_linear.bn",
}
FINAL = {"conv": "final_expand_layer.conv", "bn1": "final_expand_layer.bn"}


def published_name(name: str, blocks_per_stage: int) -> str:
    """The published supernet's name of a parameter or buffer of ours."""
    if not name.startswith("blocks."):
        layer, _, leaf = name.rpartition(".")
        return f"{OUTER[layer]}.{leaf}"
    stage, block, rest = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", name).groups()
    stage, block = int(stage), int(block)
    if matrix := re.fullmatch(r"conv_dw\.transforms\.(\w+)", rest):
        return f"blocks.{_index(stage, block, blocks_per_stage)}.conv.depth_conv.conv.{matrix[1]}_matrix"
    layer, _, leaf = rest.rpartition(".")
    if stage == 0:
        return f"blocks.0.conv.{FIRST[layer]}.{leaf}"
    if stage > len(STAGES):
        return f"{FINAL[layer]}.{leaf}"
    published = BLOCK[layer]
    last = published.rpartition(".")[2]
    doubled = f"{published}.{last}" if last in ("conv", "bn") else published
    return f"blocks.{_index(stage, block, blocks_per_stage)}.conv.{doubled}.{leaf}"


def _index(stage: int, block: int, blocks_per_stage: int) -> int:
    return 1 + (stage - 1) * blocks_per_stage + block


def to_published(supernet: MobileNetV3) -> dict[str, Tensor]:
    """The supernet's state under the published names."""
    blocks = supernet.space["kernel_size"].shape[1]
    return {published_name(name, blocks): tensor for name, tensor in supernet.state_dict().items()}


def load_published(supernet: MobileNetV3, source: str | Path | Mapping[str, Tensor]) -> MobileNetV3:
    """Load a published checkpoint (a file, or its state) into a supernet of its sizes; returns the supernet.

    Files of supernets and of the static largest network (the teacher, which has no kernel matrices: those stay as they
    are) are read, of all published spellings. ValueError names what is missing, unknown or of another shape.
    """
    if isinstance(source, Mapping):
        state = dict(source)
    else:
        state = read_checkpoint(source)
    state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError("the checkpoint does not name tensors")
    given = {_plain(name): tensor for name, tensor in state.items()}
    blocks = supernet.space["kernel_size"].shape[1]
    ours, loaded = supernet.state_dict(), {}
    for name, tensor in ours.items():
        published = _plain(published_name(name, blocks))
        if published in given:
            loaded[name] = given.pop(published)
            if loaded[name].shape != tensor.shape:
                raise ValueError(f"{published} is {tuple(loaded[name].shape)}, this supernet's {tuple(tensor.shape)}")
        elif "transforms" not in name:
            raise ValueError(f"the checkpoint has no {published}")
    if given:
        raise ValueError(f"the checkpoint has {len(given)} tensors that this supernet has not, such as {min(given)}")
    supernet.load_state_dict(loaded, strict=False)
    return supernet


def _plain(name: str) -> str:
    """A published name as in a static network: without doubled leaves, in the newer spelling."""
    name = name.removeprefix("module.").replace(".mobile_inverted_conv.", ".conv.")
    for part in ("bn", "linear"):
        name = name.replace(f".{part}.{part}.", f".{part}.")
    return re.sub(r"\.conv\.conv\.weight$", ".conv.weight", name)
