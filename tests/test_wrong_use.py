"""What is taken for what it stands for, and what is refused with a message that says what was expected."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn

import hat
import ofa
from predictors import AccuracyPredictor, LatencyPredictor
from predictors.devices import get_device
from supernet.export.onnx import to_onnx
from supernet.model import calibrate
from supernet.phases import Phase
from supernet.saving import load, save
from supernet.search import evolutionary_search, random_search
from supernet.space import Choice
from supernet.training import SubnetValidation, SupernetTask

SPACE = ofa.mobilenet_v3_space(depth=(2, 3), kernel_size=(3, 5), expand_ratio=(3, 4), resolution=(16, 24))
NET = ofa.MobileNetV3(SPACE, num_classes=5, width_mult=0.2, in_channels=1, stem_stride=1).eval()
X = SPACE.sample(40, 0)
CONFIGS = SPACE.decode(X)
CONFIG, ROW = CONFIGS[0], X[0]
OTHER = hat.transformer_space().largest()
Y = NET.costs(X)["macs"] / 1e6
LATENCY = LatencyPredictor(terms=NET.cost_terms).fit(X, Y)
ACCURACY = AccuracyPredictor().fit(X, Y)
IMAGES, LABELS = torch.randn(8, 1, 16, 16), torch.zeros(8).long()
SMALL = dict(population=4, generations=2)


def macs(X):
    return NET.costs(X)["macs"]


def of_space(**choices):
    return ofa.mobilenet_v3_space(**choices).to_dict()


def statistics(batches):
    return calibrate(NET.extract(SPACE.smallest()), batches).bn1.running_mean


# ---- the right thing

TAKEN = {
    "an integer seed": (lambda: SPACE.sample(3, 7), lambda: SPACE.sample(3, np.random.default_rng(7))),
    "a NumPy seed and number": (lambda: SPACE.sample(np.int64(3), np.int32(7)), lambda: SPACE.sample(3, 7)),
    "a number of a tensor": (lambda: SPACE.sample(torch.tensor(3), np.array(7)), lambda: SPACE.sample(3, 7)),
    "several seeds": (lambda: SPACE.sample(3, (1, 2)), lambda: SPACE.sample(3, np.random.default_rng((1, 2)))),
    "a seed of mutation": (lambda: SPACE.mutate(X, 1), lambda: SPACE.mutate(X, np.random.default_rng(1))),
    "a seed of crossover": (lambda: SPACE.crossover(X, X, 1), lambda: SPACE.crossover(X, X, np.random.default_rng(1))),
    "neighbours of a config": (lambda: SPACE.neighbours(CONFIG, 1), lambda: SPACE.neighbours(ROW, 1)),
    "one value of a restriction": (lambda: SPACE.restrict(depth=2), lambda: SPACE.restrict(depth=(2,))),
    "a NumPy value of one": (lambda: SPACE.restrict(depth=np.int64(2)), lambda: SPACE.restrict(depth=[2])),
    "a set of values": (lambda: SPACE.restrict(depth={2, 3}), lambda: SPACE),
    "an array of values": (lambda: SPACE.restrict(resolution=np.array([16.0])), lambda: SPACE.restrict(resolution=16)),
    "a tensor of values": (lambda: SPACE.restrict(depth=torch.tensor([3])), lambda: SPACE.restrict(depth=3)),
    "one resolution": (lambda: of_space(resolution=24), lambda: of_space(resolution=(24,))),
    "NumPy resolutions": (lambda: of_space(resolution=np.arange(16, 25, 4)), lambda: of_space(resolution=[16, 20, 24])),
    "whole floats": (lambda: of_space(kernel_size=[3.0, 5.0]), lambda: of_space(kernel_size=[3, 5])),
    "one width of transformers": (
        lambda: hat.transformer_space(embed_dim=32, heads=np.int64(2)),
        lambda: hat.transformer_space(embed_dim=(32,), heads=(2,)),
    ),
    "a choice of one value": (lambda: Choice("x", np.int64(3)), lambda: Choice("x", (3,))),
    "a config of NumPy values": (lambda: SPACE.config(depth=np.full(5, 2)), lambda: SPACE.config(depth=2)),
    "a config of a NumPy number": (lambda: SPACE.config(resolution=np.int32(16)), lambda: SPACE.config(resolution=16)),
    "a field of a NumPy number": (
        lambda: json.dumps(dataclasses.asdict(dataclasses.replace(CONFIG, resolution=np.int64(24)))),
        lambda: json.dumps(dataclasses.asdict(dataclasses.replace(CONFIG, resolution=24))),
    ),
    "one config to encode": (lambda: SPACE.encode(CONFIG), lambda: X[:1]),
    "a dict to encode": (lambda: SPACE.encode([dataclasses.asdict(CONFIG)]), lambda: X[:1]),
    "X to encode": (lambda: SPACE.encode(X), lambda: X),
    "one row to decode": (lambda: SPACE.decode(ROW), lambda: [CONFIG]),
    "a tensor to decode": (lambda: SPACE.decode(torch.tensor(X)), lambda: CONFIGS),
    "a list to decode": (lambda: SPACE.decode(X.tolist()), lambda: CONFIGS),
    "float32 to decode": (lambda: SPACE.decode(X.astype(np.float32)), lambda: CONFIGS),
    "a row to set": (lambda: NET.set_active(ROW).config, lambda: CONFIG),
    "a list of genes to set": (lambda: NET.set_active(ROW.tolist()).config, lambda: CONFIG),
    "X of one row to set": (lambda: NET.set_active(torch.tensor(X[:1])).config, lambda: CONFIG),
    "a dict to set": (
        lambda: NET.set_active(json.loads(json.dumps(dataclasses.asdict(CONFIG)))).config,
        lambda: CONFIG,
    ),
    "a row to extract": (lambda: NET.extract(ROW).config, lambda: CONFIG),
    "costs of a config": (lambda: NET.costs(CONFIG)["macs"], lambda: macs(X[:1])),
    "costs of configs": (lambda: NET.costs(CONFIGS)["macs"], lambda: macs(X)),
    "costs of a row": (lambda: NET.costs(ROW)["macs"], lambda: macs(X[:1])),
    "costs of a tensor": (lambda: NET.costs(torch.tensor(X, requires_grad=True))["macs"], lambda: macs(X)),
    "terms of a config": (lambda: NET.cost_terms(CONFIG)["macs.stem"], lambda: NET.cost_terms(X[:1])["macs.stem"]),
    "latency of a config": (lambda: LATENCY.predict(CONFIG), lambda: LATENCY.predict(X[:1])),
    "latency of configs": (lambda: LATENCY.predict(CONFIGS), lambda: LATENCY.predict(X)),
    "latency of a row": (lambda: LATENCY.predict(ROW), lambda: LATENCY.predict(X[:1])),
    "latency fitted on tensors": (
        lambda: LatencyPredictor(terms=NET.cost_terms).fit(torch.tensor(X), torch.tensor(Y)).predict(X),
        lambda: LATENCY.predict(X),
    ),
    "accuracy of a tensor": (lambda: ACCURACY.predict(torch.tensor(X)), lambda: ACCURACY.predict(X)),
    "terms of configs one by one": (lambda: NET.costs(iter(CONFIGS))["macs"], lambda: macs(X)),
    "images to prepare": (lambda: NET.prepare(IMAGES, CONFIG)[0], lambda: NET.prepare((IMAGES,), CONFIG)[0]),
    "labels to calibrate on": (lambda: statistics([(IMAGES, LABELS)]), lambda: statistics([(IMAGES,)])),
    "one batch to calibrate on": (lambda: statistics((IMAGES, LABELS)), lambda: statistics([IMAGES])),
    "one tensor to calibrate on": (lambda: statistics(IMAGES), lambda: statistics([IMAGES])),
    "arrays to calibrate on": (lambda: statistics([IMAGES.numpy()]), lambda: statistics([IMAGES])),
    "one constraint": (
        lambda: evolutionary_search(SPACE, macs, (macs, np.float64(1e9)), **SMALL).X,
        lambda: evolutionary_search(SPACE, macs, [(macs, 1e9)], **SMALL).X,
    ),
    "a predictor for a function": (
        lambda: evolutionary_search(SPACE, ACCURACY, [(LATENCY, 1e9)], **SMALL).X,
        lambda: evolutionary_search(SPACE, ACCURACY.predict, [(LATENCY.predict, 1e9)], **SMALL).X,
    ),
    "a function of tensors": (
        lambda: evolutionary_search(SPACE, lambda X: torch.tensor(macs(X), requires_grad=True), **SMALL).X,
        lambda: evolutionary_search(SPACE, macs, **SMALL).X,
    ),
    "sizes of NumPy": (
        lambda: evolutionary_search(SPACE, macs, population=np.int64(4), generations=2.0, seed=np.int64(0)).X,
        lambda: evolutionary_search(SPACE, macs, **SMALL).X,
    ),
    "a phase of one value": (
        lambda: Phase("a", 1, 1, space={"depth": 2}),
        lambda: Phase("a", 1, 1, space={"depth": [2]}),
    ),
    "a phase of NumPy": (
        lambda: json.dumps(
            dataclasses.asdict(Phase("a", np.float64(0.5), np.int64(3), space={"depth": np.arange(2, 4)}))
        ),
        lambda: json.dumps(dataclasses.asdict(Phase("a", 0.5, 3, space={"depth": [2, 3]}))),
    ),
    "one phase": (lambda: SupernetTask(NET, Phase("a", 1, 1)).phases, lambda: [Phase("a", 1, 1)]),
    "a phase as a dict": (
        lambda: SupernetTask(NET, [dict(name="a", lr=1, epochs=1)]).phases,
        lambda: [Phase("a", 1, 1)],
    ),
    "settings of NumPy": (
        lambda: json.dumps(
            SupernetTask(NET, [Phase("a", 1, 1)], label_smoothing=np.float32(0), seed=np.int64(3)).settings
        ),
        lambda: json.dumps(SupernetTask(NET, [Phase("a", 1, 1)], label_smoothing=0.0, seed=3).settings),
    ),
    "arguments of NumPy": (
        lambda: json.dumps(ofa.MobileNetV3(SPACE, np.int64(5), np.float64(0.2), torch.tensor(1)).arguments),
        lambda: json.dumps(ofa.MobileNetV3(SPACE, 5, 0.2, 1).arguments),
    ),
    "a device for its name": (lambda: get_device(get_device("torch")), lambda: get_device("torch")),
    "a device's name as a path": (lambda: get_device(Path("torch")), lambda: get_device("torch")),
}


def equal(a, b):
    if isinstance(a, (np.ndarray, torch.Tensor)):
        return a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("form", TAKEN)
def test_it_is_taken_for_what_it_stands_for(form):
    found, wanted = TAKEN[form]
    assert equal(found(), wanted())


# ---- a message

Task = SupernetTask
REFUSED = {
    # spaces
    "a text for a seed": (lambda: SPACE.sample(3, "7"), "rng = '7' is neither a seed"),
    "no seed": (lambda: SPACE.sample(3, None), "rng = None is neither a seed"),
    "a negative seed": (lambda: SPACE.sample(3, -1), "rng = -1: at least 0"),
    "a torch generator": (lambda: SPACE.sample(3, torch.Generator()), "nor a numpy.random.Generator"),
    "half a sample": (lambda: SPACE.sample(2.5, 0), "n = 2.5 is not a whole number"),
    "a negative number": (lambda: SPACE.sample(-1, 0), "n = -1: at least 0"),
    "a text for a value": (lambda: SPACE.restrict(depth="2"), "depth = '2' is a str: a number is expected"),
    "a bool for a value": (lambda: SPACE.restrict(depth=np.True_), "is a bool: a number is expected"),
    "no value": (lambda: SPACE.restrict(depth=None), "depth = None is a NoneType: a number is expected"),
    "no values": (lambda: SPACE.restrict(depth=[]), "depth: a choice needs at least one value"),
    "nested values": (lambda: SPACE.restrict(depth=[[2]]), r"depth = \[2\] is a list: a number is expected"),
    "a value outside": (lambda: SPACE.config(depth=np.int64(7)), r"depth = 7 is not one of \(2, 3\)"),
    "a text for a resolution": (lambda: ofa.mobilenet_v3_space(resolution="24"), "resolution = '24' is a str"),
    "a half resolution": (lambda: ofa.mobilenet_v3_space(resolution=24.5), "24.5 is not a positive integer"),
    "no depth": (lambda: ofa.mobilenet_v3_space(depth=[]), "depth: a choice needs at least one value"),
    "a float for a size": (
        lambda: SPACE.encode(dataclasses.replace(CONFIG, resolution=24.0)),
        "which are whole numbers",
    ),
    "a scalar for layers": (
        lambda: ofa.MobileNetV3Config((2,) * 5, 3, ((3,) * 2,) * 5, 16),
        "3 where a value for each layer is expected",
    ),
    "too few stages": (
        lambda: ofa.MobileNetV3Config((2,) * 5, ((3,) * 2,) * 4, ((3,) * 2,) * 5, 16),
        "has 4 entries, for depths .* of 5",
    ),
    # a config
    "another family's config": (lambda: NET.set_active(OTHER), "expected a MobileNetV3Config, got TransformerConfig"),
    "configs for one": (lambda: NET.extract(CONFIGS), "expected one MobileNetV3Config, got a list of 40"),
    "X for a config": (lambda: NET.extract(X), "expected one .* got 40 rows"),
    "a name for a config": (lambda: NET.extract("largest"), r"expected a MobileNetV3Config, got 'largest' \(a str\)"),
    "no config": (lambda: NET.set_active(None), "expected a MobileNetV3Config, got None"),
    "a result for a config": (lambda: NET.extract(evolutionary_search(SPACE, macs, **SMALL)), "it is in its .config"),
    "half a dict": (lambda: NET.set_active({"depth": (2,) * 5}), "lacks kernel_size, expand_ratio, resolution of a"),
    "a dict of more": (
        lambda: NET.set_active(dataclasses.asdict(CONFIG) | {"width": 3}),
        "width: not a choice of this space",
    ),
    "a short row": (lambda: NET.extract(ROW[:5]), r"X must be \(n, 36\) for this space, not \(5,\)"),
    "a row outside": (lambda: NET.extract(ROW + 1), "is not one of"),
    # X
    "another family's config for X": (
        lambda: NET.costs(OTHER),
        r"expected X, an array \(n, 36\), or MobileNetV3Configs",
    ),
    "another family's configs for X": (lambda: NET.costs([OTHER]), "expected a MobileNetV3Config, got Transformer"),
    "a text for X": (lambda: NET.costs("x"), r"expected X, an array \(n, 36\).*got 'x' \(a str\)"),
    "nothing for X": (lambda: NET.costs(None), r"expected X, an array \(n, 36\).*got None"),
    "labels to prepare": (lambda: NET.prepare((IMAGES, LABELS)), r"prepare takes \(images,\), not 2 tensors"),
    "two depths of five": (lambda: SPACE.config(depth=[2, 2]), r"depth = \(2, 2\): expected one value, or 5 entries"),
    "two resolutions": (lambda: SPACE.config(resolution=[16, 24]), r"resolution = \(16, 24\): expected one value"),
    "terms of a text": (lambda: NET.cost_terms("x"), r"expected X, an array \(n, 36\)"),
    "X of another width": (lambda: LATENCY.predict(X[:, :5]), r"X must be \(n, 36\)"),
    "latency of another family": (lambda: LATENCY.predict(OTHER), r"expected X, an array \(n, 36\)"),
    "accuracy of a config": (
        lambda: ACCURACY.predict(CONFIG),
        r"X, an array \(n, genes\), is expected, not a MobileNetV3C",
    ),
    "accuracy of configs": (lambda: ACCURACY.fit(CONFIGS, Y), r"space.encode\(\[config\]\) makes it"),
    "accuracy of a row": (lambda: ACCURACY.predict(ROW), "Expected 2D array, got 1D array"),
    "latencies that are none": (lambda: LatencyPredictor().fit(X, np.full(40, np.nan)), "contains NaN"),
    "a supernet for terms": (lambda: LatencyPredictor(terms=NET).fit(X, Y), "such as supernet.cost_terms"),
    "a text for a level": (lambda: LATENCY.interval(X, "0.9"), "level = '0.9' is a str"),
    # searches
    "a supernet for a space": (lambda: evolutionary_search(NET, macs), "a SearchSpace, which is its .space, not"),
    "a number for a score": (lambda: evolutionary_search(SPACE, 3.0), "score = 3.0 is not a function of X"),
    "an unfitted score": (lambda: evolutionary_search(SPACE, LinearRegression(), **SMALL), "not fitted yet"),
    "a cost without a bound": (lambda: evolutionary_search(SPACE, macs, macs), "a list of pairs"),
    "a cost alone": (lambda: evolutionary_search(SPACE, macs, [macs]), r"is not a pair \(cost, bound\)"),
    "a bound first": (lambda: evolutionary_search(SPACE, macs, [(25.0, macs)]), "has its bound first"),
    "a text for a bound": (lambda: evolutionary_search(SPACE, macs, (macs, "25")), "the bound '25' is not a number"),
    "a dict of constraints": (lambda: evolutionary_search(SPACE, macs, {"macs": 25}), "a list of pairs"),
    "a cost that is none": (lambda: evolutionary_search(SPACE, macs, [(25, 25)]), "cost = 25 is not a function"),
    "a text for a population": (
        lambda: evolutionary_search(SPACE, macs, population="10"),
        "population = '10' is a str",
    ),
    "half a generation": (lambda: random_search(SPACE, macs, generations=2.5), "2.5 is not a whole number"),
    "a text for a share": (lambda: evolutionary_search(SPACE, macs, parent_ratio="a"), "parent_ratio = 'a' is a str"),
    "no cost": (lambda: random_search(SPACE, macs, [(None, 1.0)]), "cost = None is not a function"),
    "scores of NaN": (
        lambda: evolutionary_search(SPACE, lambda X: np.where(X[:, -1] > 20, np.nan, 1), **SMALL),
        r"the score is not finite: nan for MobileNetV3Config\(depth=.*resolution=24\) \(",
    ),
    "no scores": (lambda: evolutionary_search(SPACE, lambda X: None, **SMALL), "the score"),
    "texts for scores": (lambda: evolutionary_search(SPACE, lambda X: ["a"] * len(X), **SMALL), "is a list, not"),
    # supernets, calibration, files
    "a text for classes": (lambda: ofa.MobileNetV3(SPACE, "10"), "num_classes = '10' is a str: a number is expected"),
    "half a class": (lambda: ofa.MobileNetV3(SPACE, 10.5), "num_classes = 10.5 is not a whole number"),
    "no classes": (lambda: ofa.MobileNetV3(SPACE, 0), "num_classes = 0: at least 1"),
    "a bool for channels": (lambda: ofa.MobileNetV3(SPACE, in_channels=True), "in_channels = True is a bool"),
    "a text for a vocabulary": (lambda: hat.Transformer(vocab_size="a"), "vocab_size = 'a' is a str"),
    "another family's space": (lambda: ofa.MobileNetV3(hat.space0()), "needs a space of MobileNetV3Config"),
    "dicts to calibrate on": (lambda: statistics([{"image": IMAGES}]), r"a batch is a dict \(image\)"),
    "texts to calibrate on": (lambda: statistics([["a"]]), r"a batch is a list \(str\)"),
    "a dict of batches": (
        lambda: statistics({"image": IMAGES}),
        "calibrate needs batches, such as a loader, not a dict",
    ),
    "a number of batches": (lambda: statistics(3), "calibrate needs batches"),
    "a module to save": (lambda: save(nn.Linear(2, 2), "nowhere"), "not a Linear"),
    "a text to export": (lambda: to_onnx("net", "x.onnx", IMAGES), "of a torch module, not of a str"),
    "texts for inputs": (
        lambda: to_onnx(nn.Linear(2, 2), "x.onnx", ["a"]),
        "inputs: the arguments of forward, as tensors",
    ),
    # training
    "a text for a rate": (lambda: Phase("a", "0.1", 1), "phase 'a': lr = '0.1' is a str: a number is expected"),
    "half an epoch": (lambda: Phase("a", 0.1, 1.5), "phase 'a': epochs = 1.5 is not a whole number"),
    "a phase of texts": (lambda: Phase("a", 0.1, 1, space={"depth": "2"}), "phase 'a': space.depth = '2' is a str"),
    "a list for a space": (lambda: Phase("a", 0.1, 1, space=[2]), r"phase 'a': space = \[2\]: {choice: values} is"),
    "a text for phases": (lambda: Task(NET, "a"), "phases = 'a': a list of Phase is expected"),
    "numbers for phases": (lambda: Task(NET, [3]), "phases: 3 is a int, and not a Phase"),
    "a module to train": (lambda: Task(nn.Linear(2, 2), [Phase("a", 1, 1)]), "a Supernet is expected, not a Linear"),
    "a text for smoothing": (
        lambda: Task(NET, Phase("a", 1, 1), label_smoothing="a"),
        "label_smoothing = 'a' is a str",
    ),
    "half a batch": (lambda: Task(NET, Phase("a", 1, 1), accumulate=1.5), "accumulate = 1.5 is not a whole number"),
    "a text for subnets": (lambda: SubnetValidation(random="4"), "random = '4' is a str"),
    # devices and data
    "a text for a batch": (lambda: ofa.ImageData(batch_size="32"), "batch_size = '32' is a str"),
    "half a beam": (lambda: hat.ParallelText(beam=1.5), "beam = 1.5 is not a whole number"),
    "an unknown device": (lambda: get_device("onnxrutime"), "no device 'onnxrutime'; did you mean onnxruntime"),
    "a number for a device": (lambda: get_device(3), "device = 3: give a name, the path of a file or a Device"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_it_is_refused_with_what_was_expected(form):
    use, message = REFUSED[form]
    with pytest.raises((ValueError, TypeError), match=message):
        use()


# ---- more of the right thing


@pytest.mark.parametrize(
    "choices",
    [
        dict(depth=2, kernel_size=3, expand_ratio=3, resolution=16),
        dict(depth=2, kernel_size=3, expand_ratio=3, resolution=(16, 24)),
        dict(depth=(2, 3), kernel_size=3, expand_ratio=3, resolution=16),
    ],
    ids=["one network", "two", "one value but of depth"],
)
@pytest.mark.parametrize("generations", [0, 30])
def test_searches_work_in_spaces_of_few_networks(choices, generations):
    space = ofa.mobilenet_v3_space(**choices)
    everything = np.unique(space.sample(2000, 0), axis=0)
    options = dict(population=20, generations=generations)
    result = evolutionary_search(space, lambda X: X.sum(1), [(lambda X: X.sum(1), 1e9)], **options)
    random = random_search(space, lambda X: X.sum(1), [(lambda X: X.sum(1), 1e9)], **options)
    if generations or space.size <= 2:
        assert result.score == everything.sum(1).max()
        assert random.score == everything.sum(1).max()
    assert len(result.X) <= space.size == len(everything)


def test_a_network_of_one_is_trained_and_extracted():
    space = ofa.mobilenet_v3_space(2, 3, 3, 16)
    net = ofa.MobileNetV3(space, 3, width_mult=0.2).eval()
    assert space.size == 1 and torch.equal(net.extract()(torch.ones(1, 3, 16, 16)), net(torch.ones(1, 3, 16, 16)))


def test_a_model_in_train_mode_is_exported_in_eval_mode_and_stays_in_train_mode(tmp_path):
    import onnxruntime

    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3), nn.Dropout(0.9)).train()
    model[0].eval()
    path = to_onnx(model, str(tmp_path / "x.onnx"), torch.randn(4, 2), fast=True)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    x = torch.randn(4, 2)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"input": x.numpy()})
    assert np.allclose(found, model.eval()(x).detach().numpy(), atol=1e-6)


def test_a_network_made_of_numpy_numbers_is_saved_and_loaded(tmp_path):
    space = ofa.mobilenet_v3_space(np.int64(2), np.array([3]), np.float64(3), np.int32(16))
    net = ofa.MobileNetV3(space, np.int64(3), np.float32(0.25), np.uint8(1))
    net.input_spec = {"mean": np.float32(0.5), "shape": torch.Size((1, 16, 16)), "classes": np.int64(3)}
    again = load(save(net, str(tmp_path / "net")))
    assert again.arguments == net.arguments and again.input_spec["shape"] == [1, 16, 16]
    subnet = load(save(net.extract({name: getattr(space.largest(), name) for name in space}), tmp_path / "subnet"))
    assert subnet.extracted and subnet.config == space.largest()


def test_a_checkpoint_holds_no_numbers_of_numpy(tmp_path):
    task = SupernetTask(
        NET, [Phase("a", np.float64(0.1), np.int64(1), space={"depth": np.arange(2, 4)})], seed=np.int64(3)
    )
    torch.save([task.settings, [dataclasses.asdict(phase) for phase in task.phases]], tmp_path / "x")
    torch.load(tmp_path / "x", weights_only=True)
