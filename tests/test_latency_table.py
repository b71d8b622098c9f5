import pickle

import numpy as np
import pytest
import yaml
from sklearn.base import clone

import ofa
from ofa.latency_table import LatencyTable, block_keys, fixed_keys
from predictors import LatencyPredictor

SIZES = (160, 224)
NET = ofa.MobileNetV3(ofa.mobilenet_v3_space(resolution=SIZES))
TERMS = NET.cost_terms


def keys(size):
    """Every layer that a network of this resolution can have, in OFA's names."""
    found = [
        key
        for stage in range(5)
        for first in (True, False)
        for row in block_keys(TERMS, size, stage, first)
        for key in row
    ]
    return fixed_keys(TERMS, size) + found


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for size in SIZES:
        rows = {key: {"count": 10, "mean": float(rng.random()), "var": 0.1} for key in keys(size)}
        (tmp_path / f"{size}_lookup_table.yaml").write_text(yaml.safe_dump(rows))
    return tmp_path


def test_a_resolution_has_as_many_layers_as_ofas_table():
    assert len(keys(224)) == len(set(keys(224))) == 96


def test_layers_are_named_as_in_ofas_table():
    assert set(keys(224)) >= {
        "Conv-input:224x224x3-output:112x112x16",
        "expanded_conv-input:112x112x16-output:112x112x16-expand:16-kernel:3-stride:1-idskip:1-se:0-hs:0",
        "expanded_conv-input:112x112x16-output:56x56x24-expand:48-kernel:3-stride:2-idskip:0-se:0-hs:0",
        "expanded_conv-input:14x14x112-output:14x14x112-expand:672-kernel:7-stride:1-idskip:1-se:1-hs:1",
        "Conv_1-input:7x7x160-output:7x7x960",
        "AvgPool2D-input:7x7x960-output:1x1x960",
        "Conv_2-input:1x1x960-output:1x1x1280",
        "Logits-input:1x1x1280-output:1000",
    }


def test_the_term_is_the_sum_of_the_layers_of_the_network(folder):
    X = NET.space.sample(20, np.random.default_rng(1))
    found = LatencyTable.read(TERMS, folder)(X)
    assert found.keys() == TERMS(X).keys() | {"table.ms"}
    for config, ms in zip(NET.space.decode(X), found["table.ms"]):
        rows = yaml.safe_load((folder / f"{config.resolution}_lookup_table.yaml").read_text())
        layers = fixed_keys(TERMS, config.resolution)
        for stage, (kernels, ratios) in enumerate(zip(config.kernel_size, config.expand_ratio)):
            for place, (kernel, ratio) in enumerate(zip(kernels, ratios)):
                named = block_keys(TERMS, config.resolution, stage, place == 0)
                layers.append(named[(3, 5, 7).index(kernel)][(3, 4, 6).index(ratio)])
        assert ms == pytest.approx(sum(rows[key]["mean"] for key in layers))


def test_a_block_is_named_as_the_layer_that_it_is():
    subnet = NET.extract(NET.space.smallest())
    block = subnet.blocks[2][0]
    named = block_keys(TERMS, 224, 1, first=True)[0][0]
    middle, kernel = block.conv_dw.out_channels, block.conv_dw.kernel_size[0]
    assert named == (
        f"expanded_conv-input:56x56x{block.conv_pw.in_channels}-output:28x28x{block.conv_pwl.out_channels}"
        f"-expand:{middle}-kernel:{kernel}-stride:2-idskip:0-se:1-hs:0"
    )


def test_a_table_is_a_feature_of_the_latency_predictor(folder):
    table, X = LatencyTable.read(TERMS, folder), NET.space.sample(60, np.random.default_rng(2))
    ms = 1 + 2 * table(X)["table.ms"]
    model = clone(LatencyPredictor(terms=table)).fit(X[:40], ms[:40])
    assert np.abs(pickle.loads(pickle.dumps(model)).predict(X[40:]) / ms[40:] - 1).max() < 0.01


def test_a_layer_that_the_file_lacks_is_named(folder):
    path = folder / "224_lookup_table.yaml"
    rows = yaml.safe_load(path.read_text())
    del rows["Conv_2-input:1x1x960-output:1x1x1280"]
    path.write_text(yaml.safe_dump(rows))
    with pytest.raises(ValueError, match="224_lookup_table.yaml has no mean latency of Conv_2-input:1x1x960"):
        LatencyTable.read(TERMS, folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match="224_lookup_table.yaml is not a latency table"):
        LatencyTable.read(TERMS, folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="224_lookup_table.yaml"):
        LatencyTable.read(TERMS, folder)
