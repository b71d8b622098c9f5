import bz2
import csv
import inspect
import json
import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

import ofa
from ofa.datasets import LAYOUTS, REFUSED, TIMM_TORCH, open_dataset, stratified

CATEGORIES = ("airport", "beach")


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: any(n > 1 for n in sizes)),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=200)
def test_the_hold_out_has_each_class_s_share(sizes, share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    most = sum(max(n - 1, 0) for n in sizes)
    count = max(1, round(share * most))
    held, rest = stratified(labels, count, np.random.default_rng(seed))
    again, _ = stratified(labels, count, np.random.default_rng(seed))
    taken = np.bincount(labels[held], minlength=len(sizes))
    assert sorted([*held, *rest]) == list(range(len(labels))) and len(held) == count and (held == again).all()
    exact, limits = count * np.array(sizes) / len(labels), np.maximum(np.array(sizes) - 1, 0)
    assert (taken <= limits).all() and ((taken > exact - 1) | (taken == limits)).all()
    assert (taken < exact + 1).all() or (taken == limits).any()  # more only where other classes have no more to give


def test_other_seeds_hold_out_other_images():
    labels = np.repeat([0, 1], 50)
    assert {*stratified(labels, 10, np.random.default_rng(0))[0]} != {
        *stratified(labels, 10, np.random.default_rng(1))[0]
    }


@pytest.mark.parametrize("count", [0, 9, 10])
def test_a_hold_out_that_empties_a_class_is_refused(count):
    with pytest.raises(ValueError, match="at most 8"):
        stratified(np.repeat([0, 1], 5), count, np.random.default_rng(0))


# ------------------------------------------------------------------------------------------------ torchvision


def picture(path, size=(30, 34)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"uint8": 8, "int32": 12}[array.dtype.name]
    path.write_bytes(
        struct.pack(f">{1 + array.ndim}i", kind * 256 + array.ndim, *array.shape)
        + array.astype(">" + array.dtype.str[1:]).tobytes()
    )


def labels_of(n, classes=2):
    return np.arange(n, dtype=np.uint8) % classes


def mnist(name, prefixes=("train", "t10k"), offset=0):
    def write(root):
        for prefix, n in zip(prefixes, (12, 6)):
            idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", np.zeros((n, 28, 28), np.uint8))
            idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", labels_of(n) + np.uint8(offset))

    return write


def qmnist(root):
    for part, n in (("train", 12), ("test", 6)):
        idx(root / "QMNIST" / "raw" / f"qmnist-{part}-images-idx3-ubyte", np.zeros((n, 28, 28), np.uint8))
        idx(
            root / "QMNIST" / "raw" / f"qmnist-{part}-labels-idx2-int",
            np.repeat(labels_of(n)[:, None], 8, 1).astype(np.int32),
        )


def cifar(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name, n in (*((f"data_batch_{i}", 2) for i in range(1, 6)), ("test_batch", 6)):
        (folder / name).write_bytes(
            pickle.dumps({"data": np.zeros((n, 3072), np.uint8), "labels": labels_of(n).tolist()})
        )
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CATEGORIES)}))


def svhn(root):
    for part, n in (("train", 12), ("test", 6)):
        scipy.io.savemat(
            root / f"{part}_32x32.mat", {"X": np.zeros((32, 32, 3, n), np.uint8), "y": 9 + labels_of(n)[:, None]}
        )


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, n in (("train", 12), ("test", 6)):
        (folder / f"{part}_X.bin").write_bytes(bytes(n * 3 * 96 * 96))
        (folder / f"{part}_y.bin").write_bytes(bytes(1 + labels_of(n)))
    (folder / "class_names.txt").write_text("\n".join(CATEGORIES))


def usps(root):
    for name, n in (("usps.bz2", 12), ("usps.t.bz2", 6)):
        lines = [f"{1 + label} " + " ".join(f"{i}:0.5" for i in range(1, 257)) for label in labels_of(n)]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode() + b"\n"))


def semeion(root):
    rows = [" ".join(["1"] * 256 + ["1" if i == label else "0" for i in range(10)]) for label in labels_of(20)]
    (root / "semeion.data").write_text("\n".join(rows))


def fer2013(root):
    rows = [
        f"{label},{'0 ' * 2304},{usage}" for usage, n in (("Training", 12), ("PublicTest", 6)) for label in labels_of(n)
    ]
    (root / "fer2013").mkdir()
    (root / "fer2013" / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))


def folders(*parts, suffix=".jpg"):
    def write(root):
        for folder, n in parts:
            for i in range(n):
                picture(root / folder / CATEGORIES[i % 2] / f"{i}{suffix}")

    return write


def gtsrb(root):
    for i in range(12):
        picture(root / "gtsrb" / "GTSRB" / "Training" / f"{i % 2:05d}" / f"{i}.ppm")
    with open(root / "gtsrb" / "GT-final_test.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
        table.writeheader()
        for i in range(6):
            picture(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{i}.ppm")
            table.writerow({"Filename": f"{i}.ppm", "ClassId": i % 2})


def pets(root):
    (root / "oxford-iiit-pet" / "annotations").mkdir(parents=True)
    for split, n in (("trainval", 12), ("test", 6)):
        names = [f"{CATEGORIES[i % 2]}_{split}{i}" for i in range(n)]
        for name in names:
            picture(root / "oxford-iiit-pet" / "images" / f"{name}.jpg")
        lines = [f"{name} {1 + i % 2} 1 1\n" for i, name in enumerate(names)]
        (root / "oxford-iiit-pet" / "annotations" / f"{split}.txt").write_text("".join(lines))


def food(root):
    for split, n in (("train", 12), ("test", 6)):
        names = {name: [f"{name}/{split}{i}" for i in range(n // 2)] for name in CATEGORIES}
        for name in sum(names.values(), []):
            picture(root / "food-101" / "images" / f"{name}.jpg")
        (root / "food-101" / "meta").mkdir(exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(names))


def dtd(root):
    for split in ("train", "val", "test"):
        names = [f"{CATEGORIES[i % 2]}/{split}{i}.jpg" for i in range(6)]
        for name in names:
            picture(root / "dtd" / "dtd" / "images" / name)
        (root / "dtd" / "dtd" / "labels").mkdir(exist_ok=True)
        (root / "dtd" / "dtd" / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")


def aircraft(root):
    data = root / "fgvc-aircraft-2013b" / "data"
    for split, n in (("trainval", 12), ("test", 6)):
        lines = []
        for i in range(n):
            picture(data / "images" / f"{split}{i}.jpg")
            lines.append(f"{split}{i} {CATEGORIES[i % 2]}\n")
        (data / f"images_variant_{split}.txt").write_text("".join(lines))
    (data / "variants.txt").write_text("\n".join(CATEGORIES) + "\n")


def flowers(root):
    folder = root / "flowers-102"
    for i in range(1, 19):
        picture(folder / "jpg" / f"image_{i:05d}.jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": 1 + labels_of(18)})
    parts = {"trnid": np.arange(1, 7), "valid": np.arange(7, 13), "tstid": np.arange(13, 19)}
    scipy.io.savemat(folder / "setid.mat", parts)


def cars(root):
    folder, kind = root / "stanford_cars", [("fname", object), ("class", object)]
    (folder / "devkit").mkdir(parents=True)
    for part, file, n in (("train", "devkit/cars_train_annos.mat", 12), ("test", "cars_test_annos_withlabels.mat", 6)):
        for i in range(n):
            picture(folder / f"cars_{part}" / f"{i}.jpg")
        rows = np.array([(f"{i}.jpg", 1 + i % 2) for i in range(n)], dtype=kind)
        scipy.io.savemat(folder / file, {"annotations": rows})
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(CATEGORIES, dtype=object)})


def clevr(root):
    folder = root / "clevr" / "CLEVR_v1.0"
    (folder / "scenes").mkdir(parents=True)
    for part, n in (("train", 12), ("val", 6)):
        scenes = []
        for i in range(n):
            picture(folder / "images" / part / f"{i}.png")
            scenes.append({"image_filename": f"{i}.png", "objects": [0] * (i % 2)})
        (folder / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": scenes}))


def caltech101(root):
    for i in range(20):
        picture(root / "caltech101" / "101_ObjectCategories" / CATEGORIES[i % 2] / f"image_{1 + i // 2:04d}.jpg")
    picture(root / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google" / "image_0001.jpg")


def caltech256(root):
    for i in range(20):
        name = f"{1 + i % 2:03d}.{CATEGORIES[i % 2]}"
        picture(root / "caltech256" / "256_ObjectCategories" / name / f"{1 + i % 2:03d}_{1 + i // 2:04d}.jpg")


def inaturalist(root):
    for part, n in (("2021_train", 12), ("2021_valid", 6)):
        for i in range(n):
            picture(root / part / f"{i % 2:05d}_Animalia_a_b_c_d_e_{CATEGORIES[i % 2]}" / f"{i}.jpg")


def imagenet(root):
    ids = {"n01440764": ("tench", "Tinca tinca"), "n02102040": ("English springer",)}
    for part, n in (("train", 12), ("val", 6)):
        for i in range(n):
            picture(root / part / list(ids)[i % 2] / f"{i}.JPEG")
    torch.save((ids, []), root / "meta.bin")


def imagenette(root):
    for part, n in (("train", 12), ("val", 6)):
        for i in range(n):
            picture(root / "imagenette2" / part / ("n01440764", "n02102040")[i % 2] / f"{i}.JPEG")


def omniglot(root):
    for i in range(20):
        picture(root / "omniglot-py" / "images_background" / "Greek" / f"character{1 + i % 2:02d}" / f"{i}.png")


def places(root):
    lists = {"data_large_standard": ("places365_train_standard.txt", 12), "val_large": ("places365_val.txt", 6)}
    (root / "categories_places365.txt").write_text("".join(f"/{name} {i}\n" for i, name in enumerate(CATEGORIES)))
    for folder, (file, n) in lists.items():
        for i in range(n):
            picture(root / folder / f"{i}.jpg")
        (root / file).write_text("".join(f"/{i}.jpg {i % 2}\n" for i in range(n)))


def sst2(root):
    for part in ("train", "valid", "test"):
        for i in range(6):
            picture(root / "rendered-sst2" / part / ("negative", "positive")[i % 2] / f"{i}.png")


def sun397(root):
    for i in range(20):
        picture(root / "SUN397" / CATEGORIES[i % 2][0] / CATEGORIES[i % 2] / f"sun_{i}.jpg")
    (root / "SUN397" / "ClassName.txt").write_text("".join(f"/{name[0]}/{name}\n" for name in CATEGORIES))


TEN = tuple("0123456789")
NAMES = {name: tuple(getattr(datasets, name).classes) for name in ("MNIST", "KMNIST", "FashionMNIST", "QMNIST")}
MADE = {  # what writes the files, and the names of the classes
    "CIFAR10": (cifar, CATEGORIES),
    "CLEVRClassification": (clevr, ("0", "1")),
    "Caltech101": (caltech101, CATEGORIES),
    "Caltech256": (caltech256, ("001.airport", "002.beach")),
    "Country211": (folders(("country211/train", 6), ("country211/valid", 6), ("country211/test", 6)), CATEGORIES),
    "DTD": (dtd, CATEGORIES),
    "EMNIST": (mnist("EMNIST", ("emnist-digits-train", "emnist-digits-test")), TEN),
    "EuroSAT": (folders(("eurosat/2750", 20)), CATEGORIES),
    "FER2013": (fer2013, ("0", "1")),
    "FGVCAircraft": (aircraft, CATEGORIES),
    "FashionMNIST": (mnist("FashionMNIST"), NAMES["FashionMNIST"]),
    "Flowers102": (flowers, tuple(datasets.Flowers102.classes)),
    "Food101": (food, CATEGORIES),
    "GTSRB": (gtsrb, ("0", "1")),
    "INaturalist": (inaturalist, tuple(f"{i:05d}_Animalia_a_b_c_d_e_{CATEGORIES[i]}" for i in (0, 1))),
    "ImageNet": (imagenet, ("tench, Tinca tinca", "English springer")),
    "Imagenette": (imagenette, ("tench, Tinca tinca", "English springer, English springer spaniel")),
    "KMNIST": (mnist("KMNIST"), NAMES["KMNIST"]),
    "MNIST": (mnist("MNIST"), NAMES["MNIST"]),
    "Omniglot": (omniglot, ("Greek/character01", "Greek/character02")),
    "OxfordIIITPet": (pets, ("Airport", "Beach")),
    "Places365": (places, ("/airport", "/beach")),
    "QMNIST": (qmnist, NAMES["QMNIST"]),
    "RenderedSST2": (sst2, ("negative", "positive")),
    "SEMEION": (semeion, ("0", "1")),
    "STL10": (stl10, CATEGORIES),
    "SUN397": (sun397, CATEGORIES),
    "SVHN": (svhn, TEN),
    "StanfordCars": (cars, CATEGORIES),
    "USPS": (usps, ("0", "1")),
}
ARGUMENTS = {"EMNIST": {"split": "digits"}}


@pytest.fixture
def any_content(monkeypatch):
    """torchvision compares checksums with those of the real files; ours are made up."""
    for name in ("cifar", "fer2013", "flowers102", "omniglot", "places365", "semeion", "stl10", "svhn"):
        module = inspect.getmodule(getattr(datasets, {"places365": "Places365"}.get(name, name), None)) or __import__(
            f"torchvision.datasets.{name}", fromlist=["x"]
        )
        monkeypatch.setattr(module, "check_integrity", lambda *arguments, **options: True)


@pytest.mark.parametrize("name", MADE)
def test_a_data_set_of_torchvision_is_read(tmp_path, any_content, name):
    write, classes = MADE[name]
    write(tmp_path)
    data = ofa.ImageData(
        f"torchvision:{name}", str(tmp_path), 2, 2, image_size=24, dataset_args=ARGUMENTS.get(name), calibration=4
    )
    one_part = LAYOUTS[name].test is None
    whole = {"CIFAR10": 10}.get(name, 16 if one_part else 12)
    assert (len(data.train), len(data.held_out), len(data.test)) == (whole - 2, 2, 4 if one_part else 6)
    assert data.input_spec["class_names"] == list(classes) and data.input_spec["dataset"] == name
    labels = [data.test[i][1] for i in range(len(data.test))]
    assert sorted(labels) == sorted([0, 1] * (len(labels) // 2)) or name == "SVHN"
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape[-2:] == (24, 24)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # torchvision leaves files open
@pytest.mark.parametrize("name", ["CIFAR10", "FER2013", "GTSRB", "OxfordIIITPet", "QMNIST", "STL10", "SVHN"])
def test_images_and_labels_are_those_that_torchvision_gives(tmp_path, any_content, name):
    MADE[name][0](tmp_path)
    theirs, ours = (
        getattr(datasets, name)(str(tmp_path)),
        open_dataset(f"torchvision:{name}", str(tmp_path), False).train,
    )
    pairs = [sorted((part[i][0].tobytes(), int(part[i][1])) for i in range(len(part))) for part in (theirs, ours)]
    assert pairs[0] == pairs[1]


def test_a_test_part_that_is_split_off_is_the_same_for_every_seed(tmp_path):
    MADE["EuroSAT"][0](tmp_path)
    tests = [
        ofa.ImageData("torchvision:EuroSAT", str(tmp_path), 2, 2, image_size=24, seed=seed).test for seed in (0, 1)
    ]
    assert tests[0].source.samples == tests[1].source.samples and tests[0].labels.tolist().count(0) == 2


def test_every_data_set_of_torchvision_is_read_or_refused_with_a_reason():
    refused = {name for names in REFUSED.values() for name in names.split()}
    classes = {name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))}
    assert classes == refused | set(LAYOUTS) and not refused & set(LAYOUTS)
    assert set(TIMM_TORCH.values()) <= set(LAYOUTS) and set(LAYOUTS) - set(MADE) == {"CIFAR100", "FakeData", "PCAM"}


def test_generated_images_are_read():
    data = ofa.ImageData(
        "torchvision:FakeData", None, 2, 4, dataset_args={"size": 16, "image_size": [3, 8, 8], "num_classes": 2}
    )
    assert data.input_spec["shape"] == [3, 8, 8] and len(data.test) == 16


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("torchvision:Nonsense", None, "no data set named 'Nonsense'. Those that are read: CIFAR10, "),
        ("torchvision:CelebA", None, "CelebA is not a data set to classify: .* no single class"),
        ("torchvision:UCF101", None, "UCF101 .* videos"),
        ("torchvision:EMNIST", None, "EMNIST needs dataset_args with split: .*balanced.*letters"),
        ("torchvision:MNIST", None, "MNIST in .*not found"),
        ("torchvision:MNIST", {"size": 3}, "MNIST has no size"),
        ("torchvision:MNIST", {"train": False}, "choose the test part"),
        ("torchvision:SVHN", {"split": "test"}, "choose the test part"),
        ("torchvision:OxfordIIITPet", {"target_types": "segmentation"}, "target_types of .* cannot be set"),
        ("timm:torch/nothing", None, "torch/nothing is not one of torch/cifar10"),
        ("timm:tfds/mnist", None, "a stream"),
        ("timm:folder", None, "Found 0 images"),
        ("digits", {"size": 3}, "digits has no arguments, size"),
    ],
)
def test_what_cannot_be_opened_is_named_with_the_reason(tmp_path, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(name, str(tmp_path), False, arguments)


def test_an_argument_may_choose_the_training_part(tmp_path):
    MADE["DTD"][0](tmp_path)
    assert len(open_dataset("torchvision:DTD", str(tmp_path), False).train) == 12
    assert len(open_dataset("torchvision:DTD", str(tmp_path), False, {"split": "train"}).train) == 6


# ------------------------------------------------------------------------------------------------------- timm


def test_timm_s_torch_data_sets_are_torchvision_s(tmp_path):
    MADE["FashionMNIST"][0](tmp_path)
    source = open_dataset("timm:torch/fashion_mnist", str(tmp_path), False)
    assert len(source.train) == 12 and source.classes == NAMES["FashionMNIST"]


def test_a_folder_of_timm_is_read_with_what_is_left_out(tmp_path, caplog):
    folders(("train", 8), ("validation", 4))(tmp_path)
    picture(tmp_path / "train" / "beach" / "x.gif")
    (tmp_path / "train" / "beach" / "x.txt").write_text("")
    (tmp_path / "train" / "beach" / "._x.jpg").write_text("")
    with caplog.at_level("INFO"):
        data = ofa.ImageData("timm:folder", str(tmp_path), 2, 2, image_size=24)
    assert len(data.train.source) == 9 and len(data.test) == 4 and data.classes == list(CATEGORIES)
    assert "2 files are left out" in caplog.text


def test_a_folder_of_timm_without_parts_is_refused(tmp_path):
    folders(("one", 8))(tmp_path)
    with pytest.raises(ValueError, match="no folders train and validation"):
        open_dataset("timm:folder", str(tmp_path), False)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_data_set_of_hugging_face_s_is_read(tmp_path, part):
    pytest.importorskip("datasets")
    folders(("set/train", 8), (f"set/{part}", 4))(tmp_path)
    data = ofa.ImageData(f"timm:hfds/{tmp_path}/set", str(tmp_path / "cache"), 2, 2, image_size=24)
    assert (len(data.train), len(data.test)) == (6, 4) and data.classes == list(CATEGORIES)
    assert data.test[0][0].shape == (3, 24, 24)


def test_broken_images_of_a_data_set_of_hugging_face_s_are_found_before_training(tmp_path):
    pytest.importorskip("datasets")
    folders(("set/train", 8), ("set/test", 4))(tmp_path)
    name, cache = f"timm:hfds/{tmp_path}/set", str(tmp_path / "cache")
    ofa.ImageData(name, cache, 2, 2, image_size=24)
    files = sorted((tmp_path / "set" / "train").glob("*/*"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(
        ValueError, match="1 of 12 image files are broken .1 of the train part.*\n.*0 of the train part"
    ):
        ofa.ImageData(name, cache, 2, 2, image_size=24)
    data = ofa.ImageData(name, cache, 2, 2, image_size=24, on_error="skip")
    assert len(data.train) + len(data.held_out) == 7
    assert sum(len(images) for images, _ in data.train_dataloader()) > 0
