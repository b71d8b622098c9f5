"""The transformer supernet: HAT's sizes, and what its attention, positions, caches and dropout do."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hat
from hat.layers import sinusoids

SMALL = dict(embed_dim=(32, 48), ffn_embed_dim=(32, 64), heads=(2, 4), encoder_layer_num=(3, 4))
PRIMER = dict(relu_power=(1, 2), conv_kernel_size=(1, 3))
# HAT's convention and head_dim's; ReLU and Primer
KINDS = {
    "reshaped": dict(),
    "nested": dict(head_dim=16),
    "primer": dict(primer=True),
    "nested_primer": dict(primer=True, head_dim=16, normalize_before=True),
}


def make(primer=False, decoder_layer_num=(1, 2, 3), space=None, **arguments):
    """A small supernet in eval mode with weights as unequal as training makes them."""
    torch.manual_seed(0)
    space = hat.transformer_space(
        **SMALL | (space or {}), **(PRIMER if primer else {}), decoder_layer_num=decoder_layer_num
    )
    net = hat.Transformer(space, **{"vocab_size": 60, "qkv_dim": 64} | arguments)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


@pytest.fixture(params=KINDS)
def net(request):
    return make(**KINDS[request.param])


def configs(net, n, seed=0):
    return net.space.decode(net.space.sample(n, np.random.default_rng(seed)))


def tokens(*shape, seed=0):
    return torch.randint(4, 60, shape, generator=torch.Generator().manual_seed(seed))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def on_meta(space, **arguments):
    """A supernet without values, for what depends on sizes alone."""
    with torch.device("meta"):
        return hat.Transformer(space, **arguments)


# ------------------------------------------------------------------------------------------------ published sizes

# HAT's searched networks: millions of parameters and GFLOPs, both without embeddings and vocabulary; widths; of each
# encoder layer the feed-forward width / 1024 and the heads; of each decoder layer the feed-forward width / 1024, the
# heads of self- and of cross-attention, and how many encoder layers it attends to (1, 2, 3 for HAT's -1, 1, 2).
SEARCHED = {
    "wmt14ende_raspberrypi": """
        25.22 1.53 512/512 133222 484448 3 8 8 1
        29.42 1.78 512/512 323232 888488 12 44 88 11
        35.72 2.19 512/512 333333 488488 33 88 88 12
        36.77 2.26 512/512 333233 888884 123 488 488 121
        44.13 2.70 512/512 333333 444884 2233 4884 4888 1121
        48.33 3.02 512/512 333333 848888 22332 88848 48888 12221
    """,
    "wmt14ende_xeon": """
        30.47 1.87 512/512 333333 488888 3 8 8 2
        35.72 2.19 512/512 333333 488488 33 88 88 12
        40.97 2.54 512/512 333333 448884 333 888 488 122
        46.23 2.86 512/512 333333 448884 3333 8884 4888 1221
        51.48 3.21 512/512 333333 848884 33333 88848 48888 12221
        56.73 3.53 512/512 333333 448884 333333 888444 488888 122211
    """,
    "wmt14ende_titanxp": """
        30.47 1.87 512/512 333333 488888 3 8 8 2
        35.72 2.19 512/512 333333 488488 33 88 88 12
        40.97 2.54 512/512 333333 448884 333 888 488 122
        51.20 3.17 640/640 333333 488844 333 888 488 122
        49.38 3.09 512/512 333333 848884 22333 88848 48888 12221
    """,
    "wmt14enfr_raspberrypi": """
        25.22 1.53 512/512 222232 444848 3 8 8 1
        35.72 2.23 512/512 333333 888888 33 88 88 13
        36.77 2.26 512/512 333332 888888 123 488 488 112
        44.13 2.70 512/512 333333 448488 2323 4888 4488 1121
        49.38 3.09 512/512 333333 888888 23332 88888 48888 12221
        56.73 3.57 512/512 333333 888888 333333 888844 488888 121231
    """,
    "wmt14enfr_xeon": """
        30.47 1.84 512/512 333333 888888 3 8 8 1
        35.72 2.23 512/512 333333 888888 33 88 88 13
        44.13 2.70 512/512 323332 888888 3333 8888 4888 1121
        51.48 3.28 512/512 333333 888888 33333 88884 48888 13231
        56.73 3.57 512/512 333333 888888 333333 888884 488888 122311
    """,
    "wmt14enfr_titanxp": """
        30.47 1.84 512/512 333333 888888 3 8 8 1
        35.72 2.23 512/512 333333 888888 33 88 88 13
        40.97 2.51 512/512 333333 888888 333 888 488 112
        46.23 2.90 512/512 333333 888888 3333 8888 4888 1321
        51.48 3.25 512/512 333333 888888 33333 88888 48888 13221
    """,
    "wmt19ende_titanxp": """
        36.89 2.27 640/512 333333 888888 3 8 8 2
        42.28 2.63 640/512 333333 888888 33 88 88 13
        40.97 2.54 512/512 333333 488888 333 888 488 122
        46.23 2.86 512/512 333333 488888 3333 8888 4888 1221
        51.48 3.18 512/512 333333 488888 33333 88884 48888 12211
        56.73 3.53 512/512 333333 488888 333333 888844 488888 122211
    """,
    "iwslt14deen_titanxp": """
        16.82 0.78 512/512 111111 442444 2 4 4 1
        19.98 0.93 512/512 111111 444444 21 42 44 11
        23.13 1.13 512/512 111111 444444 112 444 444 311
        27.33 1.32 512/512 111111 444444 1221 4442 4444 3111
        31.54 1.52 512/512 111111 444444 22211 44422 44444 31111
    """,
}


def searched(row):
    """(millions of parameters, GFLOPs, config) of a row."""
    params, flops, widths, *layers = row.split()
    E, D = map(int, widths.split("/"))
    f, heads, g, own, cross, spans = ([int(digit) for digit in digits] for digits in layers)
    config = hat.TransformerConfig(
        encoder_embed_dim=E,
        encoder_layer_num=6,
        encoder_ffn_embed_dim=[1024 * n for n in f],
        encoder_self_attention_heads=heads,
        encoder_relu_power=[1] * 6,
        encoder_conv_kernel_size=[1] * 6,
        decoder_embed_dim=D,
        decoder_layer_num=len(g),
        decoder_ffn_embed_dim=[1024 * n for n in g],
        decoder_self_attention_heads=own,
        decoder_ende_attention_heads=cross,
        decoder_arbitrary_ende_attn=[{1: -1, 2: 1, 3: 2}[n] for n in spans],
        decoder_relu_power=[1] * 6,
        decoder_conv_kernel_size=[1] * 6,
    )
    return float(params), float(flops), config


@pytest.mark.parametrize("name", SEARCHED)
def test_searched_networks_have_the_published_sizes(name):
    iwslt = name.startswith("iwslt")
    net = on_meta(hat.space1() if iwslt else hat.space0(), vocab_size=8, share_embeddings=not iwslt)
    params, flops, found = zip(*map(searched, SEARCHED[name].strip().splitlines()))
    length = 23 if iwslt else 30
    costs = net.costs(net.space.encode(found), source_length=length, target_length=length)
    assert np.abs(costs["non_embedding_params"] / 1e6 - params).max() < 0.01
    assert np.abs(2 * costs["non_embedding_macs"] / 1e9 - flops).max() < 0.02


def test_there_are_44_searched_networks():
    assert sum(len(rows.strip().splitlines()) for rows in SEARCHED.values()) == 44


def test_the_largest_and_smallest_networks_have_the_published_sizes():
    net = on_meta(hat.space0(), vocab_size=4008)
    space = net.space
    sizes = net.costs(space.encode([space.largest(), space.smallest()]))
    assert list(sizes["non_embedding_params"]) == [70_900_992, 15_771_136]
    assert parameters(net) == sizes["params"][0] == 73_466_112
    assert parameters(net.extract(space.smallest())) == sizes["params"][1] == 15_771_136 + 4008 * 512


@pytest.mark.parametrize("space", [hat.space0, hat.space1])
def test_the_spaces_have_their_sizes(space):
    # Two widths each; 3 ffn x 2 heads in 6 encoder layers; 3 ffn x 2 x 2 heads x 3 spans in 1 to 6 decoder layers.
    assert space().size == 2 * 2 * (3 * 2) ** 6 * sum((3 * 2 * 2 * 3) ** depth for depth in range(1, 7))
    assert space().size == 417_846_678_672_384


# --------------------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize(("source_length", "target_length"), [(7, 12), (13, 1)])
def test_macs_are_the_counted_ones_at_any_lengths(net, source_length, target_length):
    X = net.space.sample(8, np.random.default_rng(0))
    macs = net.costs(X, source_length=source_length, target_length=target_length)["macs"]
    for config, expected in zip(net.space.decode(X), macs):
        subnet = net.extract(config)
        # The counter does not know the fused attention of CPUs.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet(tokens(1, source_length), tokens(1, target_length))
        assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize("shared", [True, False])
def test_costs_outside_the_layers_are_those_of_the_vocabulary(shared):
    net = make(share_embeddings=shared, target_vocab_size=None if shared else 50)
    X = net.space.sample(20, np.random.default_rng(0))
    costs = net.costs(X, source_length=7, target_length=9)
    for i, config in enumerate(net.space.decode(X)):
        E, D, size = config.encoder_embed_dim, config.decoder_embed_dim, 60 if shared else 50
        assert costs["macs"][i] - costs["non_embedding_macs"][i] == 9 * D * size
        one, several = 60 * E, 60 * (E + D)  # a shared matrix is cut twice where the widths differ
        expected = (one if E == D else several) if shared else 60 * E + 2 * 50 * D
        assert costs["params"][i] - costs["non_embedding_params"][i] == expected


def test_costs_of_no_tokens_are_refused():
    net = make()
    with pytest.raises(ValueError, match="target_length = 0: at least 1"):
        net.costs(net.space.encode([net.space.largest()]), target_length=0)


# ----------------------------------------------------------------------------------------- positions and padding


def test_the_position_table_is_fairseqs():
    half, rows = 320, 50
    frequency = np.exp(-np.arange(half) * np.log(10000) / (half - 1))
    angle = np.arange(rows)[:, None] * frequency
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    table = sinusoids(48, 640)
    assert table.shape == (rows, 640)
    assert np.abs(table[2:].numpy() - expected[2:]).max() < 1e-5  # row 2 is the first token's
    assert not table[1].any()  # padding's


def test_a_narrower_network_has_the_leading_columns_of_the_position_table():
    net = make()
    seen = []
    for config in (net.space.largest(), net.space.smallest()):
        subnet = net.extract(config)
        source, previous = torch.tensor([[1, 1, 5, 6, 7]]), torch.tensor([[2, 8, 9]])
        with torch.no_grad():
            for embedding, ids, rows in (
                (subnet.encoder.embedding, source, [1, 1, 2, 3, 4]),
                (subnet.decoder.embedding, previous, [2, 3, 4]),
            ):
                found = []
                hook = embedding.register_forward_hook(lambda module, args, output, found=found: found.append(output))
                subnet(source, previous)
                hook.remove()
                width = embedding.tokens.embedding_dim
                positions = found[0] - width**0.5 * embedding.tokens(ids)
                assert torch.allclose(positions[0], sinusoids(10, 48)[rows, :width], atol=1e-5)
                seen.append(width)
    assert seen == [48, 48, 32, 32]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_the_source_changes_no_logits(net, side):
    source, previous = tokens(1, 6), tokens(1, 5, seed=1)
    padding = torch.ones(1, 4, dtype=torch.long)
    padded = torch.cat([padding, source] if side == "left" else [source, padding], dim=1)
    batch = torch.cat([padded, tokens(1, 10, seed=2)])
    for config in configs(net, 8):
        with torch.no_grad():
            alone = net.set_active(config)(source, previous)
            together = net(batch, previous.repeat(2, 1))
        assert (alone[0] - together[0]).abs().max() < 1e-5


def test_later_targets_change_no_earlier_logits(net):
    source, previous = tokens(2, 6), tokens(2, 9, seed=1)
    other = torch.cat([previous[:, :5], tokens(2, 4, seed=2)], dim=1)
    for config in configs(net, 8):
        with torch.no_grad():
            a, b = (net.set_active(config)(source, x) for x in (previous, other))
        assert (a[:, :5] - b[:, :5]).abs().max() < 1e-5
        assert (a[:, 5:] - b[:, 5:]).abs().max() > 1e-3


def test_a_relu_power_of_2_is_the_square_of_the_relu():
    net = make(primer=True)
    layer, x = net.encoder.layers[0].feed_forward, torch.randn(2, 5, 48)
    for power in (1, 2):
        net.set_active(net.space.config(encoder_relu_power=power))
        hidden = (x @ layer.fc1.weight.T + layer.fc1.bias).clamp(min=0) ** power
        assert torch.allclose(layer(x), hidden @ layer.fc2.weight.T + layer.fc2.bias, atol=1e-5)


@pytest.mark.parametrize("kind", ["primer", "nested_primer"])
def test_convolutions_of_kernel_3_see_their_neighbours_on_the_right_sides(kind):
    net = make(**KINDS[kind])
    net.set_active(net.space.config(encoder_conv_kernel_size=3, decoder_conv_kernel_size=3))
    reach = {}
    for side, attention in (
        ("encoder", net.encoder.layers[0].self_attention),
        ("decoder", net.decoder.layers[0].self_attention),
    ):
        x = torch.randn(1, 9, 3 * attention.q_proj.out_features, requires_grad=True)
        q, _, _ = attention.convolve(x, None, None)
        (grad,) = torch.autograd.grad(q[0, 4].sum(), x)
        reach[side] = grad[0].abs().sum(1).nonzero().flatten().tolist()
    assert reach == {"encoder": [3, 4, 5], "decoder": [2, 3, 4]}


def test_convolutions_start_as_the_identity():
    torch.manual_seed(0)
    net = hat.Transformer(hat.transformer_space(**SMALL, **PRIMER), vocab_size=60, qkv_dim=64).eval()
    inputs = tokens(2, 6), tokens(2, 5, seed=1)
    with torch.no_grad():
        a, b = (
            net.set_active(net.space.config(encoder_conv_kernel_size=n, decoder_conv_kernel_size=n))(*inputs)
            for n in (1, 3)
        )
    assert (a - b).abs().max() < 1e-5


# -------------------------------------------------------------------------------------------------------- caches


class Cache:
    history = keys = None

    def update(self, keys, values):
        if self.keys is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


@pytest.mark.parametrize("steps", [[1] * 9, [4, 1, 3, 1], [2, 7]], ids=str)
def test_decoding_in_steps_gives_the_logits_of_the_whole(net, steps):
    source, previous = tokens(2, 6), tokens(2, 9, seed=1)
    source[0, :2] = 1
    for config in configs(net, 6):
        subnet = net.extract(config)
        with torch.no_grad():
            outputs, mask = subnet.encoder(source)
            memory = subnet.decoder.keys_values(outputs)
            caches = [Cache() for _ in memory]
            past, logits = 0, []
            for chunk in previous.split(steps, dim=1):
                logits.append(subnet.decoder(chunk, memory, mask, caches, past))
                past += chunk.size(1)
            assert (torch.cat(logits, dim=1) - subnet(source, previous)).abs().max() < 1e-5


# --------------------------------------------------------------------------------------------------------- spans


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize(("span", "attended"), [(-1, 1), (1, 2), (2, 3)])
def test_a_span_attends_to_the_last_active_encoder_layers_last_first(depth, span, attended):
    net = make()
    net.set_active(
        net.space.config(decoder_layer_num=3, **of_depth(net.space, depth), decoder_arbitrary_ende_attn=span)
    )
    outputs, memories = [], []
    for layer in net.encoder.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    for layer in net.decoder.layers:
        layer.cross_attention.v_proj.register_forward_pre_hook(lambda module, args: memories.append(args[0]))
    with torch.no_grad():
        net(tokens(2, 6), tokens(2, 5))
    assert len(outputs) == depth and len(memories) == 3
    for memory in memories:
        assert torch.equal(memory, torch.cat(outputs[::-1][:attended], dim=1))


def of_depth(space, depth):
    """The values of an encoder that is `depth` deep, for `space.config`."""
    gated = [choice for choice in space.choices if choice.gate == "encoder_layer_num"]
    return {"encoder_layer_num": depth} | {choice.name: (choice.values[-1],) * depth for choice in gated}


def test_padding_is_not_attended_to_in_any_layer_of_a_span():
    net = make()
    net.set_active(net.space.config(decoder_arbitrary_ende_attn=2))
    source = tokens(1, 6)
    source[0, :2] = 1
    seen = []
    layer = net.decoder.layers[0].cross_attention
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    with torch.no_grad():
        net(source, tokens(1, 5))
    assert seen[0].flatten().tolist() == [False, False, True, True, True, True] * 3


# ------------------------------------------------------------------------------------------------------- dropout


def test_dropout_is_scaled_by_the_active_share_of_the_sides_width():
    net = make(dropout=0.4, attention_dropout=0.2)
    subnet = net.extract(dataclasses.replace(net.space.largest(), encoder_embed_dim=32))
    p = {
        side: {module.p for module in getattr(subnet, side).modules() if isinstance(module, torch.nn.Dropout)}
        for side in ("encoder", "decoder")
    }
    assert p == {"encoder": {0.4 * (32 / 48)}, "decoder": {0.4}}
    assert {layer.self_attention.dropout for layer in subnet.encoder.layers} == {0.2}
    assert {module.p for module in net.modules() if isinstance(module, torch.nn.Dropout)} == {0.4}
    p = {module.active_p for module in net.modules() if isinstance(module, torch.nn.Dropout)}
    assert p == {0.4}  # extracting has left the supernet as it was


def test_a_subnet_drops_what_its_supernet_drops():
    net = make(dropout=0.5, attention_dropout=0.3).train()
    inputs = tokens(2, 6), tokens(2, 5, seed=1)
    for config in configs(net, 4):
        subnet = net.extract(config)
        torch.manual_seed(3)
        ours = net.set_active(config)(*inputs)
        torch.manual_seed(3)
        assert torch.equal(ours, subnet(*inputs))
        assert not torch.equal(ours, net(*inputs))


# --------------------------------------------------------------------------------------------------------- heads


def test_heads_that_are_dropped_drop_their_weights_where_they_have_a_width():
    for head_dim, inner in ((16, 32), (None, 64)):
        net = make(head_dim=head_dim)
        choices = dict.fromkeys(hat.transformer.HEADS, 2)
        many, few = net.space.largest(), net.space.config(**choices)
        subnet = net.extract(few)
        layer = subnet.decoder.layers[0]
        for attention in (subnet.encoder.layers[0].self_attention, layer.self_attention, layer.cross_attention):
            assert attention.heads == 2
            assert attention.q_proj.weight.shape == attention.k_proj.weight.shape == (inner, 48)
            assert attention.out_proj.weight.shape == (48, inner)
        params = net.costs(net.space.encode([many, few]))["params"]
        assert parameters(subnet) == params[1]
        assert params[1] < params[0] if head_dim else params[1] == params[0]


def test_sorting_moves_heads_as_blocks():
    net = make(head_dim=16, primer=True)
    attention = net.decoder.layers[0].self_attention
    made = [attention.q_proj, attention.k_proj, attention.v_proj, attention.q_conv, attention.k_conv, attention.v_conv]

    def heads():
        """Of each head all its weights, in one vector."""
        rows = [layer.weight.detach().reshape(4, -1) for layer in made]
        rows += [layer.bias.detach().reshape(4, -1) for layer in made[:3]]
        columns = attention.out_proj.weight.detach().reshape(48, 4, 16).transpose(0, 1).reshape(4, -1)
        return torch.cat([*rows, columns], dim=1), columns.abs().sum(1)

    before, importance = heads()
    order = importance.argsort(descending=True)
    assert order.tolist() != [0, 1, 2, 3]
    net.sort(net.space.restrict(decoder_self_attention_heads=4))
    after, importance = heads()
    assert torch.equal(after, before[order])
    assert (importance.diff() <= 0).all()


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (dict(heads=(3, 4)), dict(), "encoder_self_attention_heads: 3 heads do not divide qkv_dim = 64"),
        (dict(decoder_ende_attention_heads=(5,)), dict(), "decoder_ende_attention_heads: 5 heads do not divide"),
        (dict(encoder_layer_num=(2, 4)), dict(), "2 attends to 3 encoder layers, but encoder_layer_num may be 2"),
        (dict(decoder_embed_dim=(32, 64)), dict(), "share_embeddings: widths up to 48 and 64"),
        (dict(), dict(target_vocab_size=50), "share_embeddings: .* vocabularies of 60 and 50"),
        (dict(relu_power=(1, 3)), dict(), "encoder_relu_power: 3 is neither"),
        (dict(encoder_conv_kernel_size=(1, 2)), dict(), "encoder_conv_kernel_size: 2 is even"),
        (dict(arbitrary_ende_attn=(-1, 3)), dict(), "decoder_arbitrary_ende_attn: 3 is not one of"),
        (dict(decoder_heads=(4,)), dict(), "decoder_heads: not a choice; there are .*decoder_self_attention_heads"),
        (dict(ffn_embed_dim=(-32, 64)), dict(), "encoder_ffn_embed_dim: -32 is not a positive integer"),
        (dict(), dict(vocab_size=3), "vocab_size = 3: at least 4"),
        (dict(), dict(head_dim=0), "head_dim = 0"),
        (dict(), dict(dropout=1.0), "dropout = 1.0"),
    ],
)
def test_what_makes_no_network_is_refused(space, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(space=space, **arguments)


def test_sizes_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match="encoder_layer_num: 3.0 is not a positive integer"):
        make(space=dict(encoder_layer_num=(3.0, 4.0)))
    with pytest.raises(ValueError, match="32.5 is not a positive integer"):
        make(space=dict(encoder_embed_dim=(32.5, 48)))


@pytest.mark.parametrize(("source_length", "target_length"), [(9, 5), (5, 9)])
def test_a_sentence_longer_than_the_positions_is_refused(source_length, target_length):
    net = make(max_positions=8)
    assert net(tokens(1, 8), tokens(1, 8)).shape == (1, 8, 60)
    with pytest.raises(ValueError, match="a sentence of 9 tokens: this network has 8 positions"):
        net(tokens(1, source_length), tokens(1, target_length))


def test_an_even_decoder_kernel_and_one_encoder_layer_make_a_network():
    space = hat.transformer_space(
        **SMALL | dict(encoder_layer_num=(1, 2)), arbitrary_ende_attn=(-1,), decoder_conv_kernel_size=(1, 2)
    )
    net = hat.Transformer(space, vocab_size=60, qkv_dim=64)
    for config in (space.largest(), space.smallest()):
        assert net.set_active(config)(tokens(2, 6), tokens(2, 5)).shape == (2, 5, 60)
