"""HAT's published checkpoints and yml files, whose layout is written out here once more."""

import argparse
import collections
import os
import pickle
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hat
from hat.weights import config_from_yml, config_to_yml, load, space_from_yml, to_published

SOURCE_SIZE, TARGET_SIZE, Q = 24, 16, 64


def make(E=64, D=64, shared=True, space=None, **arguments):
    """A supernet with an encoder of 3 layers and a decoder of 2, feed-forward 96 and 80 wide."""
    space = hat.transformer_space(
        **dict(
            embed_dim=(48, 64),
            encoder_embed_dim=(48, E),
            decoder_embed_dim=(48, D),
            encoder_ffn_embed_dim=(40, 96),
            decoder_ffn_embed_dim=(40, 80),
            heads=(2, 4),
            encoder_layer_num=(3,),
            decoder_layer_num=(1, 2),
        )
        | (space or {})
    )
    sizes = dict(vocab_size=SOURCE_SIZE, target_vocab_size=None if shared else TARGET_SIZE, share_embeddings=shared)
    return hat.Transformer(space, **{"qkv_dim": Q} | sizes | arguments).eval()


def published(E=64, D=64, shared=True):
    """A state in the published layout with random values."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    state = {}

    def linear(name, n_out, n_in):
        state[f"{name}.weight"], state[f"{name}.bias"] = random(n_out, n_in), random(n_out)

    def norm(name, width):
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + random(width), random(width)

    def attention(name, width, memory_width):
        if width == memory_width:
            state[f"{name}.in_proj_weight"] = random(3 * Q, width)
        else:
            state[f"{name}.q_proj_weight"] = random(Q, width)
            state[f"{name}.k_proj_weight"] = random(Q, memory_width)
            state[f"{name}.v_proj_weight"] = random(Q, memory_width)
        state[f"{name}.in_proj_bias"] = random(3 * Q)
        linear(f"{name}.out_proj", width, Q)

    tokens = random(SOURCE_SIZE, E)
    state["encoder.version"] = torch.tensor([3.0])
    state["encoder.embed_tokens.weight"] = tokens
    state["encoder.embed_positions._float_tensor"] = torch.zeros(1)
    for i in range(3):
        layer = f"encoder.layers.{i}"
        attention(f"{layer}.self_attn", E, E)
        norm(f"{layer}.self_attn_layer_norm", E)
        linear(f"{layer}.fc1", 96, E)
        linear(f"{layer}.fc2", E, 96)
        norm(f"{layer}.final_layer_norm", E)
    state["decoder.version"] = torch.tensor([3.0])
    state["decoder.embed_tokens.weight"] = tokens if shared else random(TARGET_SIZE, D)
    state["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    for i in range(2):
        layer = f"decoder.layers.{i}"
        attention(f"{layer}.self_attn", D, D)
        norm(f"{layer}.self_attn_layer_norm", D)
        attention(f"{layer}.encoder_attn", D, E)
        norm(f"{layer}.encoder_attn_layer_norm", D)
        linear(f"{layer}.fc1", 80, D)
        linear(f"{layer}.fc2", D, 80)
        norm(f"{layer}.final_layer_norm", D)
    if not shared:
        state["decoder.embed_out"] = random(TARGET_SIZE, D)
    return state


KINDS = {
    "shared": dict(),
    "separate": dict(shared=False),
    "other_widths": dict(E=80, shared=False),
}
NO_PARAMETERS = {
    f"{side}.{name}" for side in ("encoder", "decoder") for name in ("version", "embed_positions._float_tensor")
}


# --------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_state_is_loaded_and_given_back(kind):
    state = published(**KINDS[kind])
    back = to_published(load(state, make(**KINDS[kind])))
    assert back.keys() == state.keys() - NO_PARAMETERS
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def test_every_parameter_is_loaded():
    for kind in KINDS.values():
        net = make(**kind)
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(torch.nan)
        load(published(**kind), net)
        assert not any(p.isnan().any() for p in net.parameters())


def test_embeddings_and_output_stay_one_matrix():
    net = load(published(), make())
    assert net.encoder.embedding.tokens.weight is net.decoder.embedding.tokens.weight is net.decoder.output.weight


def test_the_layout_has_the_published_names_and_shapes():
    with torch.device("meta"):
        net = hat.Transformer(hat.space0(), vocab_size=32768)
        iwslt = hat.Transformer(hat.space1(), vocab_size=8848, target_vocab_size=6632, share_embeddings=False)
    state = to_published(net)
    shapes = {
        "encoder.embed_tokens.weight": (32768, 640),
        "encoder.layers.5.self_attn.in_proj_weight": (1536, 640),
        "encoder.layers.5.self_attn.in_proj_bias": (1536,),
        "encoder.layers.5.self_attn.out_proj.weight": (640, 512),
        "encoder.layers.5.self_attn_layer_norm.weight": (640,),
        "encoder.layers.5.fc1.weight": (3072, 640),
        "encoder.layers.5.fc2.bias": (640,),
        "decoder.layers.5.encoder_attn.in_proj_weight": (1536, 640),
        "decoder.layers.5.encoder_attn_layer_norm.bias": (640,),
        "decoder.layers.5.final_layer_norm.weight": (640,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert len(state) == 2 + 6 * 12 + 6 * 18
    assert len(to_published(iwslt)) == len(state) + 1
    assert tuple(to_published(iwslt)["decoder.embed_out"].shape) == (6632, 640)


# ------------------------------------------------------------------------------------------- what the names mean


# Published -> torch's, in a layer.
ENCODER_LAYER = {
    "self_attn": "self_attn",
    "self_attn_layer_norm": "norm1",
    "fc1": "linear1",
    "fc2": "linear2",
    "final_layer_norm": "norm2",
}
DECODER_LAYER = ENCODER_LAYER | {
    "encoder_attn": "multihead_attn",
    "encoder_attn_layer_norm": "norm2",
    "final_layer_norm": "norm3",
}


def copied(layer, state, prefix, names):
    """One of torch's layers with the tensors of a layer of a published state."""
    tensors = {}
    for name, tensor in state.items():
        if name.startswith(f"{prefix}."):
            part, _, leaf = name.removeprefix(f"{prefix}.").partition(".")
            tensors[f"{names[part]}.{leaf}"] = tensor
    layer.load_state_dict(tensors)
    return layer.eval()


def embedded(table, ids, rows):
    """Tokens times the square root of the width, plus HAT's position table of width 64."""
    frequency = torch.exp(-torch.arange(32) * torch.log(torch.tensor(10000.0)) / 31)
    angle = torch.tensor(rows)[:, None] * frequency
    return 8 * table[ids] + torch.cat([angle.sin(), angle.cos()], dim=1)


@torch.no_grad()
def test_the_network_computes_what_torchs_layers_compute_with_the_published_tensors():
    state = published(shared=False)
    net = load(state, make(shared=False))
    net.set_active(net.space.config(decoder_arbitrary_ende_attn=(-1, 2)))
    source = torch.tensor([[5, 9, 4, 23, 2], [7, 8, 9, 10, 2]])
    previous = torch.tensor([[2, 15, 4], [2, 5, 6]])
    options = dict(dropout=0.0, batch_first=True)
    x = embedded(state["encoder.embed_tokens.weight"], source, [2, 3, 4, 5, 6])
    outputs = []
    for i in range(3):
        layer = nn.TransformerEncoderLayer(64, 4, 96, **options)
        x = copied(layer, state, f"encoder.layers.{i}", ENCODER_LAYER)(x)
        outputs.append(x)
    y = embedded(state["decoder.embed_tokens.weight"], previous, [2, 3, 4])
    causal = torch.ones(3, 3, dtype=torch.bool).triu(1)
    for i, memory in enumerate([x, torch.cat(outputs[::-1], dim=1)]):
        layer = nn.TransformerDecoderLayer(64, 4, 80, **options)
        y = copied(layer, state, f"decoder.layers.{i}", DECODER_LAYER)(y, memory, tgt_mask=causal)
    expected = y @ state["decoder.embed_out"].T
    assert (net(source, previous) - expected).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", ["separate", "other_widths"])
def test_a_subnet_attends_with_the_leading_columns_and_all_rows(kind):
    state = published(**KINDS[kind])
    net = load(state, make(**KINDS[kind]))
    subnet = net.extract(net.space.config(encoder_embed_dim=48, decoder_embed_dim=48, decoder_ende_attention_heads=2))
    attention = subnet.decoder.layers[1].cross_attention
    x, memory = torch.randn(2, 3, 48), torch.randn(2, 5, 48)

    name = "decoder.layers.1.encoder_attn"
    if kind == "other_widths":
        weights = [state[f"{name}.{part}_proj_weight"] for part in "qkv"]
    else:
        weights = [state[f"{name}.in_proj_weight"][rows : rows + Q] for rows in (0, Q, 2 * Q)]
    biases = state[f"{name}.in_proj_bias"].view(3, Q)
    q, k, v = (F.linear(z, w[:, :48], b) for z, w, b in zip((x, memory, memory), weights, biases))
    heads = []
    for head in (slice(0, 32), slice(32, 64)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) * 32**-0.5
        heads.append(scores.softmax(-1) @ v[..., head])
    out = state[f"{name}.out_proj.weight"][:48], state[f"{name}.out_proj.bias"][:48]
    expected = F.linear(torch.cat(heads, dim=-1), *out)
    assert (attention(x, *attention.keys_values(memory)) - expected).abs().max() < 1e-5


# --------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def meters(monkeypatch):
    """The classes of fairseq whose objects published files hold, while they are written."""
    module = types.ModuleType("fairseq.meters")
    for name in ("AverageMeter", "TimeMeter", "StopwatchMeter"):
        setattr(module, name, type(name, (), {"__module__": "fairseq.meters"}))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
        patch.setitem(sys.modules, "fairseq.meters", module)
        yield module


def checkpoint(**more):
    return {
        "args": argparse.Namespace(arch="transformersuper", lr=[0.001], share_all_embeddings=True, best=None),
        "model": published(),
        "optimizer_history": [{"criterion_name": "LabelSmoothedCrossEntropyCriterion", "num_updates": 40000}],
        "extra_state": {"train_iterator": {"epoch": 3}, "val_loss": 4.2} | more,
        "last_optimizer_state": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_file_is_loaded(tmp_path, zipped, meters):
    average = meters.AverageMeter()
    average.__dict__ |= {"val": 1.0, "avg": 2.0}
    more = {"train_meters": collections.OrderedDict(loss=average, wall=meters.TimeMeter(), gb=meters.StopwatchMeter())}
    torch.save(checkpoint(**more), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    del sys.modules["fairseq.meters"], sys.modules["fairseq"]
    net = load(tmp_path / "x.pt", make())
    assert torch.equal(net.encoder.embedding.tokens.weight, published()["encoder.embed_tokens.weight"])


def test_a_file_of_the_state_alone_and_of_half_precision_is_loaded(tmp_path):
    torch.save({name: tensor.half() for name, tensor in published().items()}, tmp_path / "x.pt")
    net = load(str(tmp_path / "x.pt"), make())
    assert net.decoder.output.weight.dtype == torch.float32
    assert torch.equal(net.decoder.output.weight, published()["encoder.embed_tokens.weight"].half().float())


class Harmful:
    def __init__(self, call, *arguments):
        self.arguments = call, arguments

    def __reduce__(self):
        return self.arguments


@pytest.mark.parametrize("where", ["args", "model", "extra_state"])
def test_a_file_that_would_run_code_is_refused(tmp_path, where):
    for harm in (Harmful(os.mkdir, str(tmp_path / "harm")), Harmful(exec, f"open({str(tmp_path / 'harm')!r}, 'w')")):
        for save in (torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))):
            save(checkpoint() | {where: harm}, tmp_path / "x.pt")
            with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
                load(tmp_path / "x.pt", make())
            assert not (tmp_path / "harm").exists()


def test_only_loading_trusts_the_classes_of_a_published_file(tmp_path):
    torch.save(checkpoint(), tmp_path / "x.pt")
    load(tmp_path / "x.pt", make())
    with pytest.raises(pickle.UnpicklingError, match="argparse.Namespace"):
        torch.load(tmp_path / "x.pt", weights_only=True)


# -------------------------------------------------------------------------------------------------------- errors


def changed(**tensors):
    """A published state with these tensors, dots written as two underscores; without those that are None."""
    state = published() | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(zzz=torch.ones(1)), "1 tensors that this supernet has not, such as zzz"),
        (changed(encoder__layers__3__fc1__weight=torch.ones(1)), r"such as encoder\.layers\.3\.fc1"),
        (changed(encoder__layer_norm__weight=torch.ones(64)), r"such as encoder\.layer_norm\.weight"),
        (changed(decoder__layers__1__fc1__bias=None), r"has no decoder\.layers\.1\.fc1\.bias"),
        (
            changed(decoder__layers__1__fc1__bias=torch.ones(3)),
            r"decoder\.layers\.1\.fc1\.bias is \(3,\), this supernet's \(80,\)",
        ),
        (
            changed(encoder__embed_tokens__weight=torch.ones(20, 64)),
            r"embed_tokens\.weight is \(20, 64\), this supernet's \(24, 64\); vocab_size",
        ),
        (
            changed(encoder__layers__0__self_attn__in_proj_weight=torch.ones(2 * Q, 64)),
            r"in_proj_weight is \(128, 64\), this supernet's \(192, 64\)",
        ),
        (changed(decoder__layers__1__fc1__bias=torch.full((80,), torch.nan)), r"fc1\.bias .* NaN, infinite or not"),
        (
            changed(decoder__layers__1__fc1__bias=torch.ones(80).long()),
            r"fc1\.bias .torch\.int64. .* NaN, infinite or not",
        ),
        (changed(decoder__embed_tokens__weight=torch.ones(24, 64)), "differ: this supernet's are one matrix"),
        ({}, "has no encoder.embed_tokens.weight"),
        ({"model": [1]}, "does not name tensors"),
        (changed(zzz=3), "does not name tensors"),
        ({1: torch.ones(1)}, "does not name tensors"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named_and_changes_nothing(state, message):
    net = make()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load(state, net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head_dim=16), "head_dim = 16: HAT's heads share one qkv_dim"),
        (dict(normalize_before=True), "normalize_before: HAT's norms are after"),
        (dict(space=dict(relu_power=(1, 2))), r"encoder_relu_power: \(1, 2\); HAT's"),
        (dict(space=dict(decoder_conv_kernel_size=(3,))), r"decoder_conv_kernel_size: \(3,\); HAT's"),
    ],
)
def test_networks_of_another_convention_are_refused(options, message):
    net = make(**options)
    for refused in (lambda: load(published(), net), lambda: to_published(net)):
        with pytest.raises(ValueError, match=message):
            refused()


COMPUTES_OTHERWISE = [
    ("vocab_original_scaling", True, "width that is active"),
    ("no_scale_embedding", True, "width that is active"),
    ("activation_fn", "gelu", "activation is relu"),
    ("no_token_positional_embeddings", True, "sinusoidal positions"),
    ("decoder_learned_pos", True, "sinusoidal"),
    ("encoder_learned_pos", "True", "sinusoidal"),
    ("encoder_normalize_before", True, "norms are after"),
    ("decoder_normalize_before", True, "norms are after"),
    ("adaptive_softmax_cutoff", "1000,2000", "the output is one matrix"),
    ("no_cross_attention", True, "attends to the encoder"),
    ("layernorm_embedding", True, "no norm"),
    ("share_all_embeddings", False, "share_embeddings = True"),
    ("qkv_dim", 128, "this supernet has 64"),
]


@pytest.mark.parametrize(("name", "value", "have"), COMPUTES_OTHERWISE)
@pytest.mark.parametrize("form", [lambda arguments: arguments, vars])
def test_a_checkpoint_of_what_the_network_does_not_compute_is_refused(tmp_path, name, value, have, form):
    arguments = argparse.Namespace(**{"share_all_embeddings": True, "activation_fn": "relu", name: value})
    torch.save(checkpoint() | {"args": form(arguments)}, tmp_path / "x.pt")
    net = make()
    before = net.encoder.embedding.tokens.weight.clone()
    with pytest.raises(ValueError, match=f"trained with {name} = {value!r}. .*{have}"):
        load(tmp_path / "x.pt", net)
    assert torch.equal(net.encoder.embedding.tokens.weight, before)


@pytest.mark.parametrize("name", ["share_all_embeddings", "share_decoder_input_output_embed"])
def test_a_checkpoint_that_shares_other_matrices_is_refused(name):
    arguments = argparse.Namespace(**{"share_all_embeddings": False, name: True})
    with pytest.raises(ValueError, match=f"{name} = True.* share"):
        load(checkpoint() | {"args": arguments}, make(shared=False))


def test_arguments_that_change_no_output_are_loaded():
    names = dict.fromkeys((name for name, value, _ in COMPUTES_OTHERWISE if value is True), False)
    others = dict(adaptive_softmax_cutoff=None, activation_dropout=0.2, left_pad_source="True", encoder_layerdrop=0.1)
    arguments = argparse.Namespace(**names | others | {"share_all_embeddings": True, "activation_fn": "relu"})
    net = load(checkpoint() | {"args": arguments}, make())
    assert torch.equal(net.encoder.embedding.tokens.weight, published()["encoder.embed_tokens.weight"])


def test_a_subnet_is_refused():
    subnet = make().extract()
    for refused in (lambda: load(published(), subnet), lambda: to_published(subnet)):
        with pytest.raises(ValueError, match="has the size of the supernet"):
            refused()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load(tmp_path / "x", make())


# ----------------------------------------------------------------------------------------------------- yml files

SUBTRANSFORMER = """
arch: transformersuper_wmt_en_de
lr: [0.001]
train-subtransformer: True
encoder-embed-dim-subtransformer: 640
decoder-embed-dim-subtransformer: 512
encoder-ffn-embed-dim-all-subtransformer: [2048, 3072, 3072, 1024, 3072, 3072]
decoder-ffn-embed-dim-all-subtransformer: "[3072, 2048]"
encoder-layer-num-subtransformer: 6
decoder-layer-num-subtransformer: '2'
encoder-self-attention-heads-all-subtransformer: [8, 8, 4, 8, 8, 8]
decoder-self-attention-heads-all-subtransformer: [8, 4]
decoder-ende-attention-heads-all-subtransformer:
  - 4
  - 8
decoder-arbitrary-ende-attn-all-subtransformer: [-1, 2, 1, 1, -1, 1]
"""
CONFIG = hat.TransformerConfig(
    encoder_embed_dim=640,
    encoder_layer_num=6,
    encoder_ffn_embed_dim=(2048, 3072, 3072, 1024, 3072, 3072),
    encoder_self_attention_heads=(8, 8, 4, 8, 8, 8),
    encoder_relu_power=(1,) * 6,
    encoder_conv_kernel_size=(1,) * 6,
    decoder_embed_dim=512,
    decoder_layer_num=2,
    decoder_ffn_embed_dim=(3072, 2048),
    decoder_self_attention_heads=(8, 4),
    decoder_ende_attention_heads=(4, 8),
    decoder_arbitrary_ende_attn=(-1, 2),
    decoder_relu_power=(1,) * 2,
    decoder_conv_kernel_size=(1,) * 2,
)
SPACE = """
encoder-embed-choice: [640, 512]
decoder-embed-choice: "[640, 512]"
encoder-ffn-embed-dim-choice: [3072, 2048, 1024]
decoder-ffn-embed-dim-choice: [3072, 2048, 1024]
encoder-layer-num-choice: [6]
decoder-layer-num-choice: [6, 5, 4, 3, 2, 1]
encoder-self-attention-heads-choice: [8, 4]
decoder-self-attention-heads-choice: [8, 4]
decoder-ende-attention-heads-choice: [8, 4]
decoder-arbitrary-ende-attn-choice: [-1, 1, 2]
max-update: 40000
"""


def written(tmp_path, text):
    (tmp_path / "x.yml").write_text(text)
    return tmp_path / "x.yml"


def test_a_subtransformers_file_is_a_config(tmp_path):
    config = config_from_yml(written(tmp_path, SUBTRANSFORMER))
    assert config == CONFIG
    hat.space0().encode([config])


def test_a_config_is_written_and_read_again(tmp_path):
    space = hat.space1()
    for config in (CONFIG, space.largest(), space.smallest()):
        config_to_yml(config, tmp_path / "x.yml")
        assert config_from_yml(tmp_path / "x.yml") == config
    config_to_yml(CONFIG, tmp_path / "x.yml")
    lines = (tmp_path / "x.yml").read_text().splitlines()
    assert "decoder-arbitrary-ende-attn-all-subtransformer: [-1, 2]" in lines
    assert "encoder-embed-dim-subtransformer: 640" in lines and len(lines) == 10


def test_a_config_with_primers_choices_is_no_file_of_hats(tmp_path):
    space = hat.transformer_space(relu_power=(1, 2))
    with pytest.raises(ValueError, match="encoder_relu_power = .*HAT's networks have 1"):
        config_to_yml(space.largest(), tmp_path / "x.yml")
    assert not list(tmp_path.iterdir())


def test_a_spaces_file_is_a_space(tmp_path):
    assert space_from_yml(written(tmp_path, SPACE)) == hat.space0()
    smaller = SPACE.replace("decoder-layer-num-choice: [6, 5, 4, 3, 2, 1]", "decoder-layer-num-choice: [2, 3]")
    assert space_from_yml(written(tmp_path, smaller)) == hat.transformer_space(decoder_layer_num=(2, 3))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("decoder-layer-num-subtransformer: '2'\n", "", "x.yml has no decoder-layer-num-subtransformer"),
        ("transformer: '2'", "transformer: 0", "decoder-layer-num-subtransformer: 0 is not positive"),
        ("transformer: '2'", "transformer: [2]", r"decoder-layer-num-subtransformer: \[2\] is not an integer"),
        ("transformer: '2'", "transformer: true", "decoder-layer-num-subtransformer: True is not an integer"),
        ("transformer: '2'", "transformer: 3", "decoder-ffn-.* = .3072, 2048. is not of 3 layers"),
        ("transformer: 640", "transformer: 640.0", "encoder-embed-dim-subtransformer: 640.0 is not an integer"),
        ("transformer: 640", "transformer: wide", "encoder-embed-dim-subtransformer: 'wide' is not an integer"),
        ('"[3072, 2048]"', '"[3072, "', "decoder-ffn-embed-dim-all-subtransformer = .* is not a list of numbers"),
        ('"[3072, 2048]"', "3072", "decoder-ffn-embed-dim-all-subtransformer = 3072 is not a list of numbers"),
        ('"[3072, 2048]"', "", "decoder-ffn-embed-dim-all-subtransformer = None is not a list of numbers"),
        ("[8, 4]", "[8, x]", "decoder-self-attention-heads-all-subtransformer: 'x' is not an integer"),
        ("[8, 4]", "[8, -4]", "decoder-self-attention-heads-all-subtransformer: -4 is not positive"),
        ("[-1, 2, 1,", "[-1, 3, 1,", r"decoder-arbitrary-ende-attn-all-subtransformer: 3 is not one of \(-1, 1, 2\)"),
        ("lr: [0.001]", "lr: [0.001", "x.yml cannot be read as YAML"),
        (SUBTRANSFORMER, "- 3", "x.yml has no keys"),
        (SUBTRANSFORMER, "", "x.yml has no keys"),
    ],
)
def test_what_makes_no_config_is_named_with_its_file(tmp_path, old, new, message):
    assert old in SUBTRANSFORMER
    with pytest.raises(ValueError, match=f"x.yml.*{message}" if "x.yml" not in message else message):
        config_from_yml(written(tmp_path, SUBTRANSFORMER.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("encoder-embed-choice: [640, 512]\n", "", "x.yml has no encoder-embed-choice"),
        ("encoder-layer-num-choice: [6]", "encoder-layer-num-choice: 6", "encoder-layer-num-choice = 6 is not a list"),
        (
            "encoder-layer-num-choice: [6]",
            "encoder-layer-num-choice: []",
            "encoder-layer-num-choice = .. is not a list",
        ),
        ("encoder-layer-num-choice: [6]", "encoder-layer-num-choice: [2]", "x.yml: decoder_arbitrary_ende_attn: 2"),
        ("[-1, 1, 2]", "[-1, 0]", r"decoder-arbitrary-ende-attn-choice: 0 is not one of"),
        ("[6, 5, 4, 3, 2, 1]", "[6, 5.5]", r"decoder-layer-num-choice: 5.5 is not an integer"),
    ],
)
def test_what_makes_no_space_is_named_with_its_file(tmp_path, old, new, message):
    assert old in SPACE
    with pytest.raises(ValueError, match=f"x.yml.*{message}" if "x.yml" not in message else message):
        space_from_yml(written(tmp_path, SPACE.replace(old, new)))
