"""The yml files and checkpoints of HAT (mit-han-lab/hardware-aware-transformers), and our configs and names.

A network of a checkpoint computes here what it computes in HAT's code, to rounding. Two things differ on purpose:

- Encoder depth below the supernet's. HAT counts `arbitrary_ende_attn` from the end of the supernet's layers, and a
  layer that is left out repeats its input: a shallower encoder's last outputs are copies of one output. Here the
  decoder attends to the last layers that run. HAT's spaces have one encoder depth, for which the two are the same.
- Dropout after the encoder's self-attention, in training. HAT scales each dropout by the share of the width that is
  active, but not this one. Here it is scaled, too.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hat.transformer import SPANS, Transformer, TransformerConfig, transformer_space
from supernet.resuming import read_checkpoint
from supernet.space import SearchSpace

# ----------------------------------------------------------------------------------------------------- yml files

PRIMER = ("relu_power", "conv_kernel_size")  # what HAT has not; 1 in all its networks
FIELDS = [field.name for field in dataclasses.fields(TransformerConfig) if not field.name.endswith(PRIMER)]
NUMBERS = [name for name in FIELDS if name.endswith(("layer_num", "coder_embed_dim"))]  # the others are of each layer


def config_key(name: str) -> str:
    """The key of a field of TransformerConfig in a SubTransformer's yml file."""
    return f"{name}-{'' if name in NUMBERS else 'all-'}subtransformer".replace("_", "-")


def space_key(name: str) -> str:
    """The key of a field of TransformerConfig in a space's yml file."""
    return f"{name.replace('coder_embed_dim', 'coder_embed')}-choice".replace("_", "-")


def config_from_yml(path: str | Path) -> TransformerConfig:
    """The network of a SubTransformer's yml file; keys of training settings are ignored.

    Lists may be longer than the network is deep. ValueError names the file and the key of what is missing or wrong.
    """
    settings = read_yml(path)
    values: dict[str, Any] = {name: number(settings, name, config_key(name), path) for name in NUMBERS}
    for name in FIELDS:
        if name not in NUMBERS:
            values[name] = numbers(settings, name, config_key(name), path)
            depth = values[f"{name.partition('_')[0]}_layer_num"]
            if len(values[name]) < depth:
                raise ValueError(f"{path}: {config_key(name)} = {values[name]} is not of {depth} layers")
    for side in ("encoder", "decoder"):
        values |= {f"{side}_{name}": [1] * values[f"{side}_layer_num"] for name in PRIMER}
    return TransformerConfig(**values)


def config_to_yml(config: TransformerConfig, path: str | Path) -> None:
    """Write a network as a SubTransformer's yml file; ValueError where it is none of HAT's."""
    for field in dataclasses.fields(config):
        if field.name.endswith(PRIMER) and set(getattr(config, field.name)) != {1}:
            raise ValueError(f"{field.name} = {getattr(config, field.name)}: HAT's networks have 1 in all layers")
    values = {name: getattr(config, name) for name in FIELDS}
    settings = {config_key(name): list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    Path(path).write_text(yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=1000))


def space_from_yml(path: str | Path) -> SearchSpace:
    """The space in a yml file, where each list holds the choices of all layers; other keys are ignored.

    ValueError names the file and the key of what is missing or wrong.
    """
    settings = read_yml(path)
    values = {name: numbers(settings, name, space_key(name), path) for name in FIELDS}
    try:
        return transformer_space(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_yml(path: str | Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has no keys")
    return settings


def entry(settings: Mapping[str, Any], key: str, path: str | Path) -> Any:
    """The value of a key, which may be a number or a list, or the same as a string."""
    if key not in settings:
        raise ValueError(f"{path} has no {key}")
    value = settings[key]
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {key} = {value!r} is not a list of numbers") from error


def number(settings: Mapping[str, Any], name: str, key: str, path: str | Path) -> int:
    value = entry(settings, key, path)
    check_number(name, value, f"{path}: {key}")
    return value


def numbers(settings: Mapping[str, Any], name: str, key: str, path: str | Path) -> list[int]:
    values = entry(settings, key, path)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path}: {key} = {values!r} is not a list of numbers")
    for value in values:
        check_number(name, value, f"{path}: {key}")
    return values


def check_number(name: str, value: Any, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: {value!r} is not an integer")
    if name == "decoder_arbitrary_ende_attn":
        if value not in SPANS:
            raise ValueError(f"{where}: {value} is not one of {tuple(SPANS)}")
    elif value < 1:
        raise ValueError(f"{where}: {value} is not positive")


# --------------------------------------------------------------------------------------------------- checkpoints

# Published -> ours, in a layer; the encoder has those without encoder_attn.
ATTENTIONS = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}
OTHERS = {
    "self_attn_layer_norm": "self_attention_residual.norm",
    "encoder_attn_layer_norm": "cross_attention_residual.norm",
    "fc1": "feed_forward.fc1",
    "fc2": "feed_forward.fc2",
    "final_layer_norm": "feed_forward_residual.norm",
}
IGNORED = (".version", ".embed_positions._float_tensor")  # no parameters
# The meters of a published file, which nobody needs and whose classes are fairseq's.
METERS = tuple(f"fairseq.meters.{name}" for name in ("AverageMeter", "StopwatchMeter", "TimeMeter"))

# The arguments that a checkpoint was trained with, and the values of them that these networks compute; of any other
# argument each value is right, or shows in the names and shapes of the tensors.
OFF = (None, False, 0, "", "0", "None", "False", "false", [])
ABSENT = {  # arguments of HAT and fairseq that these networks do not implement, and what they do instead
    "vocab_original_scaling": "embeddings are multiplied by the square root of the width that is active",
    "no_scale_embedding": "embeddings are multiplied by the square root of the width that is active",
    "no_token_positional_embeddings": "sinusoidal positions are added to the embeddings",
    "encoder_learned_pos": "positions are sinusoidal",
    "decoder_learned_pos": "positions are sinusoidal",
    "encoder_normalize_before": "norms are after the sublayers",
    "decoder_normalize_before": "norms are after the sublayers",
    "layernorm_embedding": "embeddings have no norm",
    "adaptive_softmax_cutoff": "the output is one matrix",
    "adaptive_input": "the embeddings of a side are one matrix",
    "character_embeddings": "the embeddings of a side are one matrix",
    "no_cross_attention": "each decoder layer attends to the encoder",
    "cross_self_attention": "self-attention and attention to the encoder are two",
    "layer_wise_attention": "the decoder attends to the last encoder layers",
    "encoder_layers_to_keep": "layers are left out by a config of the space",
    "decoder_layers_to_keep": "layers are left out by a config of the space",
    "adaptive_attention_span": "attention is to the whole sentence",
}


def check_trained_with(arguments: Any, supernet: Transformer) -> None:
    """Raise ValueError where a checkpoint was trained with arguments by which it computes something else.

    `arguments` are its argparse.Namespace, or a mapping; a checkpoint without them is not checked.
    """
    given = dict(arguments) if isinstance(arguments, Mapping) else vars(arguments)
    for name, have in ABSENT.items():
        if (value := given.get(name)) not in OFF:
            raise ValueError(f"the checkpoint was trained with {name} = {value!r}. In this network, {have}")
    for name in ("activation_fn", "encoder_activation_fn", "decoder_activation_fn"):
        if (value := given.get(name)) not in (*OFF, "relu"):
            raise ValueError(f"the checkpoint was trained with {name} = {value!r}; this network's activation is relu")
    ours = supernet.arguments
    shared, tied = (given.get(name) for name in ("share_all_embeddings", "share_decoder_input_output_embed"))
    if shared is not None and (shared not in OFF) != ours["share_embeddings"]:
        raise ValueError(
            f"the checkpoint was trained with share_all_embeddings = {shared!r}; this supernet has share_embeddings ="
            f" {ours['share_embeddings']}"
        )
    if tied not in OFF and not ours["share_embeddings"]:
        raise ValueError(
            f"the checkpoint was trained with share_decoder_input_output_embed = {tied!r}; these networks share the"
            " target's embeddings and the output only where the source's are the same matrix, too (share_embeddings)"
        )
    if (width := given.get("qkv_dim")) is not None and int(width) != ours["qkv_dim"]:
        raise ValueError(f"the checkpoint was trained with qkv_dim = {width}; this supernet has {ours['qkv_dim']}")


def published_names(supernet: Transformer) -> dict[str, tuple[str, ...]]:
    """{name in a published checkpoint: our names, whose rows it holds one after another}.

    ValueError where the supernet is of another convention than HAT's.
    """
    if supernet.extracted:
        raise ValueError("a published checkpoint has the size of the supernet: load that, and extract from it")
    arguments, space = supernet.arguments, supernet.space
    if arguments["head_dim"] is not None:
        raise ValueError(f"head_dim = {arguments['head_dim']}: HAT's heads share one qkv_dim")
    if arguments["normalize_before"]:
        raise ValueError("normalize_before: HAT's norms are after the sublayers")
    for choice in space.choices:
        if choice.name.endswith(PRIMER) and choice.values != (1,):
            raise ValueError(f"{choice.name}: {choice.values}; HAT's networks have 1 in all layers")
    names = {f"{side}.embed_tokens.weight": (f"{side}.embedding.tokens.weight",) for side in ("encoder", "decoder")}
    if not arguments["share_embeddings"]:
        names["decoder.embed_out"] = ("decoder.output.weight",)
    top = space.largest()
    other_width = top.encoder_embed_dim != top.decoder_embed_dim
    for side, depth in (("encoder", top.encoder_layer_num), ("decoder", top.decoder_layer_num)):
        for i in range(depth):
            layer = f"{side}.layers.{i}"
            for theirs, ours in ATTENTIONS.items():
                cross = theirs == "encoder_attn"
                if side == "decoder" or not cross:
                    names |= attention_names(f"{layer}.{theirs}", f"{layer}.{ours}", separate=cross and other_width)
            for theirs, ours in OTHERS.items():
                if side == "decoder" or "encoder_attn" not in theirs:
                    names |= {f"{layer}.{theirs}.{leaf}": (f"{layer}.{ours}.{leaf}",) for leaf in ("weight", "bias")}
    return names


def attention_names(theirs: str, ours: str, separate: bool) -> dict[str, tuple[str, ...]]:
    """Names of one attention; of one with `separate` matrices where its memory has another width."""
    parts = ("q_proj", "k_proj", "v_proj")
    names = {f"{theirs}.in_proj_bias": tuple(f"{ours}.{part}.bias" for part in parts)}
    if separate:
        names |= {f"{theirs}.{part}_weight": (f"{ours}.{part}.weight",) for part in parts}
    else:
        names[f"{theirs}.in_proj_weight"] = tuple(f"{ours}.{part}.weight" for part in parts)
    return names | {f"{theirs}.out_proj.{leaf}": (f"{ours}.out_proj.{leaf}",) for leaf in ("weight", "bias")}


def to_published(supernet: Transformer) -> dict[str, Tensor]:
    """The supernet's state under the published names."""
    state = supernet.state_dict()
    return {
        name: state[parts[0]] if len(parts) == 1 else torch.cat([state[part] for part in parts])
        for name, parts in published_names(supernet).items()
    }


def load(source: str | Path | Mapping[str, Any], supernet: Transformer) -> Transformer:
    """Load a published checkpoint (a file, or what it holds) into a supernet of its sizes; returns the supernet.

    The vocabulary's size is that of the checkpoint, which is padded to a multiple of 8. ValueError names what is
    missing, unknown, of another shape or not finite, or the argument of its training by which it computes what this
    network does not, and leaves the supernet as it was. A file of the tensors alone does not have these arguments.
    """
    if isinstance(source, Mapping):
        state = source
    else:
        with torch.serialization.safe_globals([argparse.Namespace, *((argparse.Namespace, name) for name in METERS)]):
            state = read_checkpoint(source)
    arguments, state = state.get("args"), state.get("model", state)
    if isinstance(arguments, (Mapping, argparse.Namespace)):
        check_trained_with(arguments, supernet)
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError("the checkpoint does not name tensors")
    given = {name: tensor for name, tensor in state.items() if not name.endswith(IGNORED)}
    ours, loaded = supernet.state_dict(), {}
    for name, parts in published_names(supernet).items():
        if name not in given:
            raise ValueError(f"the checkpoint has no {name}")
        tensor = given.pop(name)
        rows = [len(ours[part]) for part in parts]
        shape = (sum(rows), *ours[parts[0]].shape[1:])
        if tensor.shape != shape:
            hint = ""
            if "embed" in name:
                hint = "; vocab_size and target_vocab_size are the sizes of the checkpoint's vocabularies"
            raise ValueError(f"{name} is {tuple(tensor.shape)}, this supernet's {shape}{hint}")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{name} ({tensor.dtype}) has values that are NaN, infinite or not floating-point")
        loaded |= zip(parts, tensor.split(rows))
    if given:
        raise ValueError(f"the checkpoint has {len(given)} tensors that this supernet has not, such as {min(given)}")
    source_tokens, target_tokens = (loaded[f"{side}.embedding.tokens.weight"] for side in ("encoder", "decoder"))
    if supernet.arguments["share_embeddings"]:
        if not torch.equal(source_tokens, target_tokens):
            raise ValueError(
                "encoder.embed_tokens.weight and decoder.embed_tokens.weight differ: this supernet's are one matrix"
            )
        loaded["decoder.output.weight"] = target_tokens
    supernet.load_state_dict(loaded)
    return supernet
