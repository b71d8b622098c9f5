import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa.mobilenet_v3 import MobileNetV3Config, mobilenet_v3_space
from supernet.space import Choice, SearchSpace, as_tuples, truncate

SPACE = mobilenet_v3_space(resolution=(128, 160, 192, 224))
seeds = st.integers(0, 2**32 - 1)


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """A scalar gate, and a gated choice with a further axis."""

    layers: int
    heads: tuple
    ratio: float

    def __post_init__(self):
        object.__setattr__(self, "heads", truncate(as_tuples(self.heads), self.layers))


TOY = SearchSpace(
    ToyConfig,
    (Choice("layers", (1, 2)), Choice("heads", (2, 4), (2, 3), gate="layers"), Choice("ratio", (0.5, 1.0))),
)
spaces = pytest.mark.parametrize("space", [SPACE, TOY], ids=["mobilenet_v3", "toy"])


@spaces
@given(seed=seeds)
def test_encode_inverts_decode(space, seed):
    X = space.sample(4, np.random.default_rng(seed))
    assert (space.encode(space.decode(X)) == X).all()


@spaces
@given(seed=seeds)
def test_configs_survive_json(space, seed):
    (config,) = space.decode(space.sample(1, np.random.default_rng(seed)))
    again = space.config_class(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and hash(again) == hash(config)


@spaces
@given(seed=seeds)
def test_mutants_and_children_are_in_the_space(space, seed):
    rng = np.random.default_rng(seed)
    X, Y = space.sample(5, rng), space.sample(5, rng)
    space.check(space.mutate(X, rng, 0.3))
    space.check(space.crossover(X, Y, rng))


@given(seed=seeds)
def test_a_child_takes_each_shared_gene_from_a_parent(seed):
    rng = np.random.default_rng(seed)
    X, Y = SPACE.sample(5, rng), SPACE.sample(5, rng)
    child = SPACE.crossover(X, Y, rng)
    everywhere = (X != 0) & (Y != 0) & (child != 0)
    assert ((child == X) | (child == Y))[everywhere].all()


@given(seed=seeds)
def test_mutation_of_probability_zero_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    X = SPACE.sample(5, rng)
    assert (SPACE.mutate(X, rng, 0.0) == X).all()


@given(seed=seeds)
def test_neighbours_differ_in_one_shared_gene(seed):
    rng = np.random.default_rng(seed)
    row = SPACE.sample(1, rng)[0]
    X = SPACE.check(SPACE.neighbours(row, rng))
    assert (((X != row) & (X != 0) & (row != 0)).sum(axis=1) <= 1).all()
    assert (X != row).any(axis=1).all()


@given(
    depth=st.sets(st.sampled_from([2, 3, 4]), min_size=1),
    kernel_size=st.sets(st.sampled_from([3, 5, 7]), min_size=1),
    seed=seeds,
)
def test_a_restricted_space_lies_in_the_space_and_draws_only_its_values(depth, kernel_size, seed):
    sub = SPACE.restrict(depth=tuple(depth), kernel_size=tuple(kernel_size))
    X = SPACE.check(sub.sample(5, np.random.default_rng(seed)))
    assert set(X[:, sub.columns["depth"]].flat) <= depth
    assert set(X[:, sub.columns["kernel_size"]].flat) <= kernel_size | {0}
    assert sub.size == sum((len(kernel_size) * 3) ** d for d in depth) ** 5 * 4


def test_size_is_exact():
    assert mobilenet_v3_space(resolution=tuple(range(128, 225, 4))).size == 7371**5 * 25
    assert TOY.size == (2**3 + 2**6) * 2


@spaces
def test_size_counts_the_distinct_rows(space):
    tiny = TOY if space is TOY else SPACE.restrict(depth=(2,), kernel_size=(3,), expand_ratio=(6,))
    rows = np.unique(tiny.sample(5000, np.random.default_rng(0)), axis=0)
    assert len(rows) == tiny.size


def test_equal_networks_have_equal_configs():
    long = MobileNetV3Config((2,) * 5, ((3, 3, 5, 7),) * 5, ((6, 6, 3, 4),) * 5, 224)
    short = MobileNetV3Config([2] * 5, [[3, 3]] * 5, [[6, 6]] * 5, 224)
    assert long == short and hash(long) == hash(short)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expand_ratio": ((6, 6, 6, 5),) + ((6,) * 4,) * 4}, r"expand_ratio\[0\]\[3\] = 5 is not one of \(3, 4, 6\)"),
        ({"kernel_size": ((9,) * 4,) * 5}, r"kernel_size\[0\]\[0\] = 9 is not one of \(3, 5, 7\)"),
        ({"depth": (4, 4, 4, 4, 9)}, r"depth\[4\] = 9 is not one of \(2, 3, 4\)"),
        ({"resolution": 100}, r"resolution = 100 is not one of"),
        ({"resolution": 224.0}, r"resolution = 224\.0 is not one of"),
        ({"kernel_size": ((3,) * 4,) * 4 + ((3,),)}, r"kernel_size\[4\].*expected 4 layers"),
    ],
)
def test_a_value_outside_the_space_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        SPACE.encode([dataclasses.replace(SPACE.largest(), **change)])


def test_decode_names_a_wrong_gene_and_a_wrong_width():
    X = SPACE.encode([SPACE.largest()])
    X[0, 5] = 4
    with pytest.raises(ValueError, match=r"kernel_size\[0\]\[0\] = 4 is not one of"):
        SPACE.decode(X)
    with pytest.raises(ValueError, match="46"):
        SPACE.decode(X[:, :40])


def test_decode_refuses_layers_beyond_the_depth():
    X = SPACE.encode([SPACE.smallest()])
    X[0, SPACE.columns["kernel_size"].start + 3] = 7
    with pytest.raises(ValueError, match="beyond the active depth"):
        SPACE.decode(X)


def test_restrict_and_config_name_what_is_unknown():
    with pytest.raises(ValueError, match="depth: 5 is not one of"):
        SPACE.restrict(depth=(5,))
    with pytest.raises(ValueError, match="kernel: not a choice"):
        SPACE.restrict(kernel=(3,))
    with pytest.raises(ValueError, match="kernel: not a choice"):
        SPACE.config(kernel=3)


def test_zero_is_no_value_of_a_choice():
    with pytest.raises(ValueError, match="0 marks absent layers"):
        Choice("x", (0, 1), (3,), gate="depth")


def test_a_space_survives_its_dictionary():
    again = SearchSpace.from_dict(MobileNetV3Config, json.loads(json.dumps(SPACE.to_dict())))
    assert again == SPACE
