"""A data module of the user's own: what it must give, the helpers that give it, and what follows from it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2

import hat
import ofa
import recipes.evaluate
import recipes.saved
import recipes.specialize
from recipes.cli import main
from recipes.fit import follow_data
from supernet.data import calibration_batches, check_module, first_batch, image_spec
from supernet.phases import Phase
from supernet.saving import load
from supernet.search import evolutionary_search
from supernet.training import SubnetValidation, SupernetTask

PHOTOS = """
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split
from supernet.data import calibration_batches, image_spec

class Photos(pl.LightningDataModule):
    def __init__(self, classes: int = 10):
        super().__init__()
        images, labels = (torch.tensor(x) for x in load_digits(n_class=classes, return_X_y=True))
        whole = TensorDataset(images.float().reshape(-1, 1, 8, 8) / 16, labels)
        self.parts = random_split(whole, [len(whole) - 200, 98, 102])
        self.input_spec = image_spec(whole, mean=0, std=1)
        self.train_dataloader, self.val_dataloader, self.test_dataloader = (
            lambda part=part: DataLoader(part, 16, shuffle=part is self.parts[0]) for part in self.parts
        )

    def calibration_batches(self):
        return calibration_batches(self.train_dataloader(), 64)
"""
RECIPE = """
run: run
data: {class_path: my_photos.Photos}
model:
  supernet:
    class_path: ofa.MobileNetV3
    init_args:
      width_mult: 0.2
      stem_stride: 1
      space: {class_path: ofa.mobilenet_v3_space, init_args: {depth: [2, 3], resolution: 8}}
  phases: [{name: all, steps: "2", lr: "0.1", warmup_lr: 1e-3, space: {depth: 2}}]
trainer: {limit_val_batches: 1}
"""


NETS = """
import ofa

def small(num_classes: int | None = None, width: float = 1.0) -> ofa.MobileNetV3:
    return ofa.MobileNetV3(None, num_classes, width)
"""


def supernet(*arguments, cwd):
    """The console script's way: the current folder is not on the path by itself."""
    code = f"import sys; sys.path[0] = sys.prefix; sys.argv[1:] = {list(arguments)}; import recipes.cli as c; c.main()"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a data module and a recipe of the user's own, and what they train."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_photos.py").write_text(PHOTOS)
    (folder / "hat.py").write_text("raise RuntimeError('a file of the user hides a package')")
    (folder / "recipe.yaml").write_text(RECIPE)
    done = supernet("fit", "--config", "recipe.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls what jsonargparse deprecated
    yield folder
    sys.modules.pop("my_photos", None)


def test_classes_and_channels_follow_the_data(folder):
    arguments = json.loads((folder / "run" / "supernet" / "network.json").read_text())["arguments"]
    assert (arguments["num_classes"], arguments["in_channels"]) == (10, 1)
    config = (folder / "run" / "config.yaml").read_text()
    assert "num_classes: 10" in config and "in_channels: 1" in config


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["validate", "test", "fit"])
def test_a_run_whose_arguments_followed_is_validated_and_resumed(here, verb):
    done = supernet(verb, "--config", "recipe.yaml", *["--ckpt_path", "last"], cwd=here)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_other_classes_than_the_run_began_with_are_named(here):
    done = supernet("validate", "--config", "recipe.yaml", "--data.classes", "7", cwd=here)
    assert done.returncode == 1 and "'num_classes': 10" in done.stderr and "'num_classes': 7" in done.stderr


@pytest.mark.parametrize(("argument", "given", "has"), [("num_classes", 7, 10), ("in_channels", 3, 1)])
def test_a_contradiction_names_both_numbers(here, argument, given, has, capsys):
    options = ["--run", "other", f"--model.supernet.{argument}", str(given)]
    with pytest.raises(SystemExit, match="1"):
        main(["fit", "--config", "recipe.yaml", *options])
    assert f"made with {argument} = {given}, the data have {has}" in capsys.readouterr().err
    assert not (here / "other").exists()


def test_what_is_left_out_is_left_out_of_the_printed_config(here, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", "recipe.yaml", "--print_config"])
    assert "num_classes: null" in capsys.readouterr().out


def test_evaluate_gives_the_accuracy_of_each_class(here, capsys):
    figures = recipes.evaluate.evaluate("run/supernet", architecture="smallest")
    assert list(figures["per_class"]) == [str(i) for i in range(10)]
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(list(figures["per_class"].values())))
    assert "class  accuracy  items" in capsys.readouterr().out


def test_export_finds_the_data_module_of_the_current_folder(here):
    main(["export", "--subnet", "run/supernet", "--architecture", "smallest", "--out", "files", "--format", "onnx"])
    assert (here / "files" / "subnet.onnx").is_file()


@pytest.mark.slow
def test_specialize_finds_it_too_where_the_last_held_out_batch_has_two_images(here):
    few = dict(latency_samples=5, accuracy_samples=5, finalists=1, population=4, generations=1)
    report = recipes.specialize.specialize("run/supernet", "onnxruntime", "result", max_latency=50.0, **few)
    assert report.budget_ms == 50.0
    main(["export", "--subnet", "result", "--out", "exported", "--format", "onnx"])


def test_a_module_that_is_not_found_says_where_it_was_looked_for(here, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "recipe.yaml", "--run", "another", "--data", "my_fotos.Photos"])
    assert f"in the current folder, {here}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="looked for my_fotos among the installed packages and in the current folder"):
        recipes.saved.make_data({"class_path": "my_fotos.Photos"})
    with pytest.raises(ValueError, match="which has no Photo: rename your file"):
        recipes.saved.make_data({"class_path": "my_photos.Photo"})


def test_the_vocabulary_follows_the_tokenizer(tmp_path):
    small = dict(dataset="numbers", max_length=60)
    hat.ParallelText(vocab_size=300, **small).tokenizer.save_pretrained(tmp_path)
    data = hat.ParallelText(tokenizer=str(tmp_path), **small)
    assert data.input_spec["vocab_size"] == 300
    model = Namespace(supernet=Namespace(class_path="hat.Transformer", init_args=Namespace(vocab_size=None, qkv_dim=8)))
    follow_data(model, data)
    assert model.supernet.init_args == Namespace(vocab_size=300, qkv_dim=8)
    with pytest.raises(ValueError, match="vocab_size = 32000, the tokenizer has 300"):
        hat.Transformer(hat.transformer_space(32, 64, 2, 2, 1, -1)).check_data(data.input_spec)


def test_arguments_of_a_function_that_makes_a_supernet_follow_too(here):
    (here / "my_nets.py").write_text(NETS)
    make = Namespace(class_path="my_nets.small", init_args=Namespace(num_classes=None, width=0.2))
    sys.path.append(str(here))
    follow_data(Namespace(supernet=make), Mine())
    assert make.init_args.num_classes == 4


def test_data_of_another_kind_are_named():
    images = Namespace(class_path="hat.Transformer", init_args=Namespace(vocab_size=None))
    with pytest.raises(
        ValueError, match="Transformer needs text data: this data module's input_spec has no max_length"
    ):
        follow_data(Namespace(supernet=images), Mine())


# ---- refused before training


class Mine(pl.LightningDataModule):
    """Made-up images in batches as `collate` makes them."""

    def __init__(self, collate=None, labels=None):
        super().__init__()
        labels = torch.arange(16) % 4 if labels is None else labels
        self.images, self.collate = TensorDataset(torch.randn(16, 1, 8, 8), labels), collate

    def train_dataloader(self):
        return DataLoader(self.images, 4, collate_fn=self.collate)

    val_dataloader = train_dataloader
    input_spec = {"shape": [1, 8, 8], "classes": 4}

    def calibration_batches(self):
        return calibration_batches(TensorDataset(torch.randn(16, 1, 8, 8), torch.arange(16)), 8)


def stacked(items):
    return [torch.stack(parts) for parts in zip(*items)]


def fit(data, tmp_path, classes=4, **options):
    space = ofa.mobilenet_v3_space(2, 3, 3, 8)
    model = ofa.MobileNetV3(space, classes, width_mult=0.2, in_channels=1, stem_stride=1)
    phases = options.pop("phases", [Phase("all", lr=0.1, steps=1)])
    task = SupernetTask(model, phases, **options)
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[SubnetValidation(random=0)],
    )
    trainer.fit(task, datamodule=data)
    return task


@pytest.mark.parametrize(
    ("collate", "labels", "message"),
    [
        (
            lambda items: dict(zip(("image", "label"), stacked(items))),
            None,
            r"gives a dict \(image, label\): batches are",
        ),
        (lambda items: stacked(items)[0], None, r"gives a tensor \(2, 1, 8, 8\): batches are"),
        (lambda items: stacked(items)[:1], None, "gives a list of 1: batches are"),
        (lambda items: [*stacked(items), ["a", "b"]], None, "gives a list of 2 in a batch"),
        (lambda items: [stacked(items)[0], *stacked(items)], None, "gives 2 inputs and a target, the network takes 1"),
        (lambda items: [stacked(items)[0][:1], stacked(items)[1]], None, "gives 2 targets for 1 inputs"),
        (
            lambda items: [(255 * stacked(items)[0]).byte(), stacked(items)[1]],
            None,
            "images of torch.uint8: normalised",
        ),
        (lambda items: [stacked(items)[0][:, 0], stacked(items)[1]], None, r"images of \(8, 8\), the input_spec says"),
        (None, torch.randn(16), r"targets of torch.float32, \(2,\): numbers of classes"),
        (None, torch.full((16,), 4), "gives the label 4; the input_spec says 4 classes, from 0"),
        (None, torch.zeros(16, 4).long(), r"labels of shape \(2, 4\): one number an image"),
    ],
)
def test_batches_that_no_step_could_use_are_refused_before_training(collate, labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(Mine(collate, labels), tmp_path)


class Stream(IterableDataset):
    transform = v2.Compose([v2.Compose([v2.Normalize([0.5], [0.25])])])

    def __iter__(self):
        return iter([(torch.full((1, 4, 4), float(i)), i % 2) for i in range(6)])


def test_a_stream_of_items_is_read_from_its_beginning():
    assert first_batch(DataLoader(Stream(), batch_size=2))[1].tolist() == [0, 1]
    assert image_spec(Stream(), classes=2)["std"] == [0.25]  # of a nested transform
    (images,) = next(iter(calibration_batches(DataLoader(Stream(), batch_size=3), 3)))
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_list_in_a_loader_is_a_data_set_that_is_drawn_from():
    items = [(torch.full((1, 2, 2), float(i)), i // 32) for i in range(64)]
    first, second = (list(calibration_batches(DataLoader(items, 16, shuffle=True), 32)) for _ in range(2))
    assert all(torch.equal(a, b) for (a,), (b,) in zip(first, second)) and first[0][0].max() > 31


def test_data_sets_in_a_row_have_the_classes_of_all():
    parts = [TensorDataset(torch.zeros(5, 1, 2, 2), labels) for labels in (torch.arange(5), torch.arange(5, 10))]
    assert image_spec(ConcatDataset(parts), mean=0.5, std=0.5)["classes"] == 10


def test_a_module_that_lacks_something_is_refused_with_how_to_give_it(tmp_path):
    class Lacks(pl.LightningDataModule):
        def train_dataloader(self):
            raise AssertionError("read")

        val_dataloader = train_dataloader

    with pytest.raises(ValueError, match=r"(?s)Lacks has no calibration_batches.*supernet.data.calibration_batches\("):
        fit(Lacks(), tmp_path)
    with pytest.raises(
        ValueError, match=r"(?s)no input_spec, calibration_batches, test_data.*image_spec\(training_set"
    ):
        check_module(Lacks(), ["input_spec", "calibration_batches", "train_dataloader", "test_dataloader"])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "gives no batch"),
        ([{"image": 1}], r"gives a dict: \(images,\) is expected"),
        ([("a",)], "gives a tuple of 1"),
    ],
)
def test_calibration_batches_that_are_none_are_refused_before_training(batches, message, tmp_path):
    data = Mine()
    data.calibration_batches = lambda: batches
    with pytest.raises(ValueError, match=message):
        fit(data, tmp_path)


def test_an_input_spec_of_arrays_is_saved_as_lists(tmp_path):
    data = Mine()
    data.input_spec = {
        "shape": torch.Size((1, 8, 8)),
        "classes": np.int64(4),
        "mean": np.zeros(1),
        "std": torch.ones(1),
    }
    task = fit(data, tmp_path)
    assert task.supernet.input_spec == {"shape": [1, 8, 8], "classes": 4, "mean": [0.0], "std": [1.0]}
    data.input_spec = Mine.input_spec | {"transform": len}
    with pytest.raises(ValueError, match="input_spec.transform = <built-in function len>"):
        fit(data, tmp_path)


# ---- helpers


class Augmented(Dataset):
    """Images sorted by class, each with noise."""

    classes = ["cat", "dog", "owl"]
    transform = v2.Compose([v2.ToImage(), v2.Normalize([0.5], [0.25])])

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return torch.rand(1, 8, 8), i // 20


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: DataLoader(x, 16, shuffle=True), lambda x: Subset(x, range(60))]
)
def test_calibration_batches_are_mixed_without_labels_and_the_same_every_time(wrap):
    seen = [], []
    for found in seen:
        found += calibration_batches(wrap(Augmented()), 50)
    assert all(len(batch) == 1 for batch in seen[0]) and sum(len(x) for (x,) in seen[0]) == 50
    assert all(torch.equal(a, b) for (a,), (b,) in zip(*seen))


def test_calibration_batches_of_an_iterable_are_its_first():
    batches = [(torch.full((4, 1, 2, 2), float(i)), torch.zeros(4).long()) for i in range(5)]
    found = [x for (x,) in calibration_batches(iter(batches), 6)]
    assert [len(x) for x in found] == [4, 2] and found[1].unique().tolist() == [1.0]


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(calibration_batches(DataLoader(Augmented(), 16, shuffle=True), 32))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_an_input_spec_has_shape_classes_names_and_normalisation():
    spec = image_spec(DataLoader(Subset(Augmented(), [5, 6])), license="CC0")
    names = {"class_names": ["cat", "dog", "owl"], "classes": 3}
    assert spec == {"shape": [1, 8, 8], "mean": [0.5], "std": [0.25], "license": "CC0"} | names
    plain = image_spec(TensorDataset(torch.randn(6, 3, 4, 5), torch.arange(6)), mean=(0, 0, 0), std=0.5)
    assert plain == {"shape": [3, 4, 5], "classes": 6, "mean": [0.0] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([torch.zeros(1, 2, 2)], {}, r"an item of list is a tensor \(1, 2, 2\): \(image, label\)"),
        ([(torch.zeros(2, 2), 0)], {"classes": 3}, "a tensor C, H, W is expected"),
        ([(torch.zeros(1, 2, 2), 0)], {}, "neither `classes` nor `targets`"),
        ([(torch.zeros(1, 2, 2), 0)], {"classes": ["cat"]}, "at least 2"),
        ([(torch.zeros(1, 2, 2), 0)], {"classes": 2, "mean": 0.5}, "give both or neither"),
        ([(torch.zeros(3, 2, 2), 0)], {"classes": 2, "mean": [0, 0], "std": 1}, "for each of 3 channels"),
    ],
)
def test_an_input_spec_that_cannot_be_made_says_why(data, options, message):
    with pytest.raises(ValueError, match=message):
        image_spec(data, **options)


# ---- class weights


class Rare(Mine):
    class_counts = np.array([40, 10, 10, 0])


def test_balanced_weights_are_the_inverse_of_the_classes_shares(tmp_path):
    task = fit(Rare(labels=torch.arange(16) % 3), tmp_path, class_weights="balanced")
    assert task.class_weight.tolist() == [0.5, 2.0, 2.0, 0.0] and "class_weight" not in task.state_dict()
    assert task.settings["class_weights"] == "balanced"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("balanced", "needs the data module's `class_counts`"),
        ("even", "'even' is neither balanced nor a list"),
        ([1.0, 2.0], "2 weights, the data have 4 classes"),
        ([1.0, 0.0, 1.0, 1.0], "a number above 0"),
    ],
)
def test_class_weights_that_make_no_sense_are_refused(weights, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(Mine(), tmp_path, class_weights=weights)


def gradients(tmp_path, batch_size, accumulate, **phase):
    """The gradients of one step on 16 images, in so many batches, of a network without BatchNorm's statistics."""
    torch.manual_seed(0)
    data = Mine(labels=torch.tensor([0] * 9 + [1] * 4 + [2] * 2 + [3]))
    data.train_dataloader = lambda: DataLoader(data.images, batch_size)
    space = ofa.mobilenet_v3_space((2, 3), 3, 3, 8)
    model = ofa.MobileNetV3(space, 4, width_mult=0.2, in_channels=1, stem_stride=1, dropout=0, zero_init_residual=False)
    task = SupernetTask(
        model,
        [Phase("all", lr=0.1, steps=1, **phase)],
        optimizer=lambda params: torch.optim.SGD(params, lr=0.0),
        class_weights=[1.0, 2.0, 4.0, 8.0],
        accumulate=accumulate,
    )
    task.train = lambda mode=True: task
    task.eval()
    for module in model.modules():
        module.training = False
    options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer = pl.Trainer(max_epochs=-1, enable_model_summary=False, limit_val_batches=0, **options)
    trainer.fit(task, datamodule=data)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("phase", [{}, {"sampler": "sandwich", "subnets": 3}], ids=["one", "sandwich"])
def test_weighted_losses_of_accumulated_batches_are_those_of_one(tmp_path, phase):
    whole, parts = gradients(tmp_path, 16, 1, **phase), gradients(tmp_path, 4, 4, **phase)
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-6 * float(whole.abs().max()))


def test_the_label_loss_is_torchs_weighted_mean():
    from supernet.distillation import label_loss

    logits, target, weight = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, -100]), torch.tensor([1.0, 2, 4, 8])
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")[:5]
    share = weight[target[:5]] / weight[target[:5]].sum()
    assert torch.allclose(label_loss(logits, target, weight=weight), (share * losses).sum())


def test_imagedata_counts_its_training_images():
    data = ofa.ImageData("digits", holdout=100)
    counts = np.bincount([data.train[i][1] for i in range(len(data.train))], minlength=10)
    assert (data.class_counts == counts).all()


def test_a_table_of_many_classes_has_the_worst_first():
    from supernet.evaluation import class_table, per_class

    targets = np.repeat(np.arange(30), 2)
    accuracies = per_class(targets / 60, targets, [f"c{i}" for i in range(28)] + ["same", "same"])
    lines = class_table(accuracies, dict.fromkeys(accuracies, 2)).splitlines()
    assert lines[1].startswith("c0 ") and lines[-1] == "and 10 classes of 0.3333 and more"
    assert "same (28)" in accuracies


def test_a_search_over_a_users_networks_takes_a_predictor_as_it_is(here):
    network = load("run/supernet")
    result = evolutionary_search(network.space, lambda X: X[:, 0], population=4, generations=1)
    assert network.extract(result.config).config == result.config


@pytest.mark.parametrize("items", [0, 1, 2, 3])
def test_the_identity_of_a_batch_does_not_depend_on_its_strides(items):
    from recipes.lab.keys import state_digest

    for x in (torch.arange(8), torch.arange(8.0).bfloat16(), torch.arange(8) > 3, torch.randn(8, 1, 2, 2)):
        part = x[1::2][:items]
        assert state_digest({"x": part}) == state_digest({"x": part.clone()})
    assert state_digest({"x": torch.tensor(3.0)}) != state_digest({"x": torch.tensor(4.0)})
