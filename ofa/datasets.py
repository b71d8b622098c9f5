"""Data sets of labelled images by name: scikit-learn's digits, Fashion-MNIST, folders, torchvision's and timm's."""

from __future__ import annotations

import dataclasses
import gzip
import inspect
import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import ConcatDataset, Dataset
from torchvision import datasets

from ofa.image_files import (
    NAMED,
    class_folders,
    find_broken,
    find_broken_items,
    list_images,
    report_left_out,
    unreadable,
)
from ofa.images import suffixes, to_picture

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist installs
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEST_SHARE = 0.2  # of a data set that has one part only

# --------------------------------------------------------------------------------------------------- parts


class Files(Dataset):
    """Images in files: an item is (PIL image, not yet decoded; label). `samples` lists (path, label)."""

    def __init__(self, samples: Sequence[tuple[str, int]]) -> None:
        self.samples = list(samples)
        self.labels = np.array([label for _, label in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        return Image.open(path), label

    def name(self, index: int) -> str:
        return self.samples[index][0]

    def subset(self, indices: np.ndarray) -> Files:
        return Files([self.samples[i] for i in indices])


class Items(Dataset):
    """Images that `read` gives by number, out of an array or another library's data set; an item is as of `Files`."""

    def __init__(
        self, read: Callable[[int], Image.Image], labels: Sequence[int], numbers: np.ndarray | None = None
    ) -> None:
        self.read, self.labels = read, np.array(labels, dtype=np.int64)
        self.numbers = np.arange(len(self.labels)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(int(self.numbers[index])), int(self.labels[index])

    def name(self, index: int) -> str:
        return f"image {self.numbers[index]}"

    def subset(self, indices: np.ndarray) -> Items:
        return Items(self.read, self.labels[indices], self.numbers[indices])


class Encoded(Items):
    """Images that another library's data set gives as the bytes of files; `state` is a digest of that data set."""

    def __init__(self, state: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state = state

    def subset(self, indices: np.ndarray) -> Encoded:
        return Encoded(self.state, self.read, self.labels[indices], self.numbers[indices])


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened data set: its two parts and what is known of them."""

    name: str
    train: Files | Items
    test: Files | Items
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]
    license: str | None = None


def stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All indices in random order, cut in two: `count` with each class's share to within one image, and the rest.

    Each class keeps an image in the rest, so that a class with one image is in the rest. ValueError where `count` asks
    for more.
    """
    sizes = np.bincount(labels)
    limit = np.maximum(sizes - 1, 0)
    if not 0 < count <= limit.sum():
        raise ValueError(
            f"{count} of {len(labels)} images cannot be held out: at least 1, and at most {limit.sum()}, as each class"
            " keeps an image"
        )
    quota = np.minimum(count * sizes // len(labels), limit)
    while (missing := count - quota.sum()) > 0:
        short = count * sizes - quota * len(labels)  # what a class lacks of its exact share, in len(labels)-ths
        order = np.lexsort((rng.random(len(sizes)), -short))
        quota[order[quota[order] < limit[order]][:missing]] += 1
    order = rng.permutation(len(labels))
    seen = np.zeros(len(sizes), dtype=np.int64)
    first = np.zeros(len(labels), dtype=bool)
    for position, label in enumerate(labels[order]):
        first[position] = seen[label] < quota[label]
        seen[label] += 1
    return order[first], order[~first]


def split_off(part: Files | Items) -> tuple[Files | Items, Files | Items]:
    """Training and test part of a data set with one part: a stratified fifth, the same for every seed, is the test."""
    test, train = stratified(part.labels, round(TEST_SHARE * len(part)), np.random.default_rng(0))
    return part.subset(np.sort(train)), part.subset(np.sort(test))


def readable(source: Source, on_error: str) -> Source:
    """The data set without its broken files; where `on_error` is "raise", a ValueError that names them."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error = {on_error!r} is neither raise nor skip")
    parts = {"train": source.train, "test": source.test}
    broken: dict[str, dict[str, str]] = {name: {} for name in parts}  # part -> name of an image in it -> why
    if files := {name: part for name, part in parts.items() if isinstance(part, Files)}:
        found = find_broken([path for part in files.values() for path, _ in part.samples])
        for name, part in files.items():
            broken[name] = {path: found[path] for path, _ in part.samples if path in found}
    for name, part in parts.items():
        if isinstance(part, Encoded):
            found = find_broken_items(part.state, len(part), part.read)
            broken[name] = {part.name(number): why for number, why in found.items()}
    if not any(broken.values()):
        return source
    listed = [
        unreadable(image if name in files else f"{image} of the {name} part", why)
        for name, part in broken.items()
        for image, why in part.items()
    ]
    named = "".join(f"\n{line}" for line in listed[:NAMED])
    more = f"\nand {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    counts = ", ".join(f"{len(part)} of the {name} part" for name, part in broken.items())
    head = f"{len(listed)} of {sum(map(len, parts.values()))} image files are broken"
    if on_error == "raise":
        raise ValueError(f"{head} ({counts}). Mend or remove them, or leave them out by on_error: skip.{named}{more}")
    whole = {
        name: np.array([i for i in range(len(part)) if part.name(i) not in broken[name]], dtype=np.int64)
        for name, part in parts.items()
    }
    if not all(map(len, whole.values())):
        raise ValueError(f"{head}, no part may lose all ({counts}).{named}{more}")
    rank_zero_info(f"{head} and left out ({counts}):{named}{more}")
    return dataclasses.replace(source, **{name: part.subset(whole[name]) for name, part in parts.items()})


# ---------------------------------------------------------------------------------------------------- names


def open_dataset(name: str, root: str | None, download: bool, arguments: Mapping[str, Any] | None = None) -> Source:
    """The data set of that name; ValueError says what is wrong with the name, the arguments or the files."""
    library, _, rest = name.partition(":")
    arguments = dict(arguments or {})
    if rest and library in LIBRARIES:
        source = LIBRARIES[library](rest, root, download, arguments)
    elif name in BY_NAME:
        if arguments:
            raise ValueError(f"dataset_args: {name} has no arguments, {', '.join(arguments)} is given")
        source = BY_NAME[name](root, download)
    else:
        raise ValueError(f"dataset: {name!r} is not {', '.join(BY_NAME)}, torchvision:NAME or timm:NAME")
    for what, part in (("training", source.train), ("test", source.test)):
        if not len(part):
            raise ValueError(f"{name}: it has no {what} image")
        if part.labels.min() < 0 or part.labels.max() >= len(source.classes):
            low, high = part.labels.min(), part.labels.max()
            raise ValueError(
                f"{name}: the labels of the {what} part reach from {low} to {high}, for {len(source.classes)} classes"
            )
    return source


def digits(root: str | None, download: bool) -> Source:
    """1,797 grey 8x8 digits; the test set is every fifth image of the (shuffled) file."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[::5], np.delete(order, np.s_[::5])
    pixels = images[train] / 255
    return Source(
        "digits",
        from_arrays(images[train], labels[train]),
        from_arrays(images[test], labels[test]),
        tuple(str(label) for label in range(10)),
        (float(pixels.mean()),),
        (float(pixels.std()),),
        "CC-BY-4.0",  # of the UCI repository, where scikit-learn has them from
    )


def fashion_mnist(root: str | None, download: bool) -> Source:
    """60,000 + 10,000 grey 28x28 images of clothing, from torchvision's or Debian's files."""
    if download:
        datasets.FashionMNIST(root or "data", download=True)
    places = [Path(root), Path(root) / "FashionMNIST" / "raw"] if root else []
    places += [Path("data") / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    for place in places:
        if list(place.glob("train-images-idx3-ubyte*")):
            break
    else:
        raise ValueError(
            f"fashion_mnist: no train-images-idx3-ubyte(.gz) in {', '.join(map(str, places))}: give --data.root, set"
            " --data.download true, or install Debian's dataset-fashion-mnist"
        )
    train, test = (
        from_arrays(read_idx(place, f"{part}-images-idx3-ubyte"), read_idx(place, f"{part}-labels-idx1-ubyte"))
        for part in ("train", "t10k")
    )
    return Source("fashion_mnist", train, test, tuple(datasets.FashionMNIST.classes), (0.2860,), (0.3530,), "MIT")


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of bytes from an idx file, compressed or not (http://yann.lecun.com/exdb/mnist)."""
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
        axes = data[3]
        shape = np.frombuffer(data, ">i4", axes, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as an idx file: {error}") from error


def from_arrays(images: np.ndarray, labels: np.ndarray) -> Items:
    """Images in memory: uint8 N, H, W (, C)."""
    return Items(partial(picture_of, images), labels)


def picture_of(images: Sequence[Any], index: int) -> Image.Image:
    return to_picture(images[index])


def image_folder(root: str | None, download: bool) -> Source:
    """`root`/train and `root`/val, each with a folder of images per class; val is the test set."""
    if root is None:
        raise ValueError("dataset: folder needs --data.root, a folder with train and val inside")
    parts = [Path(root) / part for part in ("train", "val")]
    try:
        names = [class_folders(part) for part in parts]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{root} is not an image folder with train/CLASS/ and val/CLASS/: {error}") from error
    for part, classes in zip(parts, names):
        if not classes:
            raise ValueError(f"{root} is not an image folder: {part} has no class folder")
    if names[0] != names[1]:
        raise ValueError(f"{root}: train has the classes {names[0]}, val has {names[1]}")
    found = []
    for part, classes in zip(parts, names):
        samples, left_out = list_images(part, classes)
        report_left_out(part, left_out)
        found.append(Files(samples))
        if empty := sorted(set(range(len(classes))) - set(found[-1].labels.tolist())):
            lacks, known = ", ".join(classes[i] for i in empty), " ".join(sorted(suffixes()))
            raise ValueError(f"{part} has no image of the class {lacks}. The suffixes of images are {known}")
    return Source(Path(root).resolve().name, *found, tuple(names[0]), *IMAGENET)


# ---------------------------------------------------------------------------------------------- torchvision


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a data set of torchvision is read.

    `train` and `test` are the arguments that choose these parts. Several of `train` are put together, as the hold-out
    is taken from them. Without `test`, a stratified fifth is split off (see `split_off`). A data set in memory gives
    its `labels`; of one in files that takes no `loader`, `files` gives the (path, label). `names` gives the names of
    the classes; where there are none, they are numbers.
    """

    train: tuple[dict[str, Any], ...]
    test: dict[str, Any] | None
    labels: Callable[[Any], Sequence[int]] | None = None
    files: Callable[[Any], Sequence[tuple[Any, int]]] | None = None
    names: Callable[[Any], Sequence[Any]] = lambda dataset: getattr(dataset, "classes", ())


BY_TRAIN = ({"train": True},), {"train": False}
BY_SPLIT = ({"split": "train"},), {"split": "test"}
BY_THREE = ({"split": "train"}, {"split": "val"}), {"split": "test"}
TRAIN_VAL = ({"split": "train"},), {"split": "val"}
TRAINVAL = ({"split": "trainval"},), {"split": "test"}
ONE_PART = ({},), None


def targets(dataset: Any) -> Sequence[int]:
    return dataset.targets


def labels(dataset: Any) -> Sequence[int]:
    return dataset.labels


def categories(dataset: Any) -> Sequence[str]:
    return dataset.categories


def characters(dataset: Any) -> Sequence[str]:
    """The classes of Omniglot, sorted: torchvision has them in the order of the file system."""
    return sorted(dataset._characters)


def omniglot(dataset: Any) -> list[tuple[str, int]]:
    folders = [Path(dataset.target_folder) / character for character in characters(dataset)]
    return [(str(path), label) for label, folder in enumerate(folders) for path in folder.glob("*.png")]


def pcam_labels(dataset: Any) -> Sequence[int]:
    with dataset.h5py.File(dataset._base_folder / dataset._FILES[dataset._split]["targets"][0]) as file:
        return file["y"][:, 0, 0, 0].tolist()


def caltech(folder: str, name: str) -> Callable[[Any], list[tuple[str, int]]]:
    """The files of Caltech101 or Caltech256, which are numbered within their class."""

    def files(dataset: Any) -> list[tuple[str, int]]:
        place = Path(dataset.root) / folder
        numbered = zip(dataset.index, dataset.y)
        return [
            (str(place / dataset.categories[y] / name.format(label=y + 1, index=index)), y) for index, y in numbered
        ]

    return files


LAYOUTS: dict[str, Layout] = {
    "CIFAR10": Layout(*BY_TRAIN, targets),
    "CIFAR100": Layout(*BY_TRAIN, targets),
    "CLEVRClassification": Layout(*TRAIN_VAL),
    "Caltech101": Layout(*ONE_PART, files=caltech("101_ObjectCategories", "image_{index:04d}.jpg"), names=categories),
    "Caltech256": Layout(
        *ONE_PART, files=caltech("256_ObjectCategories", "{label:03d}_{index:04d}.jpg"), names=categories
    ),
    "Country211": Layout(({"split": "train"}, {"split": "valid"}), {"split": "test"}),
    "DTD": Layout(*BY_THREE),
    "EMNIST": Layout(*BY_TRAIN, targets),
    "EuroSAT": Layout(*ONE_PART),
    "FER2013": Layout(*BY_SPLIT, lambda dataset: [label for _, label in dataset._samples]),
    "FGVCAircraft": Layout(*TRAINVAL),
    "FakeData": Layout(({},), {"random_offset": 1_000_000}),
    "FashionMNIST": Layout(*BY_TRAIN, targets),
    "Flowers102": Layout(*BY_THREE),
    "Food101": Layout(*BY_SPLIT),
    "GTSRB": Layout(*BY_SPLIT, files=lambda dataset: dataset._samples),
    "INaturalist": Layout(
        ({"version": "2021_train"},), {"version": "2021_valid"}, names=lambda dataset: dataset.all_categories
    ),
    "ImageNet": Layout(*TRAIN_VAL),
    "Imagenette": Layout(*TRAIN_VAL),
    "KMNIST": Layout(*BY_TRAIN, targets),
    "MNIST": Layout(*BY_TRAIN, targets),
    "Omniglot": Layout(({"background": True},), None, files=omniglot, names=characters),
    "OxfordIIITPet": Layout(*TRAINVAL, files=lambda dataset: [*zip(dataset._images, dataset._labels)]),
    "PCAM": Layout(*BY_THREE, pcam_labels),
    "Places365": Layout(({"split": "train-standard"},), {"split": "val"}),
    "QMNIST": Layout(*BY_TRAIN, lambda dataset: dataset.targets[:, 0]),
    "RenderedSST2": Layout(*BY_THREE),
    "SEMEION": Layout(*ONE_PART, labels),
    "STL10": Layout(*BY_SPLIT, labels),
    "SUN397": Layout(*ONE_PART),
    "SVHN": Layout(*BY_SPLIT, labels),
    "StanfordCars": Layout(*BY_SPLIT),
    "USPS": Layout(*BY_TRAIN, targets),
}

REFUSED = {  # the others, and why
    "its images have no single class each": (
        "CelebA CocoCaptions Flickr30k Flickr8k SBU VOCDetection CocoDetection Kitti WIDERFace Cityscapes"
        " VOCSegmentation SBDataset"
    ),
    "its items are pairs of images": (
        "CREStereo CarlaStereo ETH3DStereo FallingThingsStereo FlyingChairs FlyingThings3D HD1K InStereo2k"
        " Kitti2012Stereo Kitti2015Stereo KittiFlow LFWPairs Middlebury2014Stereo PhotoTour SceneFlowStereo Sintel"
        " SintelStereo"
    ),
    "its items are videos": "HMDB51 Kinetics MovingMNIST UCF101",
    "its test part shows other people than its training part": "LFWPeople",
    "it is kept in lmdb databases": "LSUN LSUNClass",
    "it is a folder of images: dataset: folder reads those": "DatasetFolder ImageFolder VisionDataset",
}
OURS = ("root", "download", "loader", "transform", "transforms", "target_transform", "target_type", "target_types")


def from_torchvision(name: str, root: str | None, download: bool, arguments: Mapping[str, Any]) -> Source:
    """A data set of torchvision.datasets: one of `LAYOUTS`.

    `arguments` go to its class. One that chooses a part (`train`, `split` or `version`) chooses the training part.
    """
    layout = LAYOUTS.get(name)
    if layout is None:
        raise ValueError(why_refused(name))
    if taken := sorted(set(arguments) & set(OURS)):
        raise ValueError(f"dataset_args: {', '.join(taken)} of torchvision's {name} cannot be set")
    factory, train = getattr(datasets, name), [{**part, **arguments} for part in layout.train]
    if any(key in arguments for part in layout.train for key in part):
        train = [dict(arguments)]
    if layout.test is not None and any(part.items() >= layout.test.items() for part in train):
        raise ValueError(f"dataset_args: {arguments} choose the test part of torchvision's {name} for training")
    parts = [[opened(factory, root, download, part) for part in train]]
    if layout.test is not None:
        parts.append([opened(factory, root, download, {**arguments, **layout.test})])
    try:
        read = [as_part(layout, some) for some in parts]
        names = [class_names(layout, some[0]) for some in parts]
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"torchvision's {name} cannot be read as images with one class each: {error}") from error
    if names[0] != names[-1]:
        raise ValueError(f"torchvision's {name}: the classes are {names[0]} for training, {names[-1]} for testing")
    train_part, test_part = read if len(read) == 2 else split_off(read[0])
    classes = names[0] or tuple(str(i) for i in range(1 + max(part.labels.max() for part in read)))
    return Source(name, train_part, test_part, classes, *(((0.5,), (0.5,)) if is_grey(train_part) else IMAGENET))


def is_grey(part: Files | Items) -> bool:
    """Whether the first image that can be read has no colours; broken ones are reported later (see `readable`)."""
    for position in range(len(part)):
        try:
            image, _ = part[position]
            with image:
                return image.mode in ("1", "L")
        except Exception:  # the plugins of PIL raise many kinds
            continue
    return False


def why_refused(name: str) -> str:
    known = f"Those that are read: {', '.join(sorted(LAYOUTS))}"
    for why, names in REFUSED.items():
        if name in names.split():
            return f"torchvision's {name} is not a data set to classify: {why}. {known}"
    exists = inspect.isclass(getattr(datasets, name, None))
    return f"torchvision has no data set named {name!r}" + (" that is known here" if exists else "") + f". {known}"


def parameters_of(factory: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class, with those that it passes on to its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in factory.__mro__:
        parameters = inspect.signature(base.__init__).parameters
        found = {**parameters, **found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return found
    return found


def opened(factory: type, root: str | None, download: bool, arguments: Mapping[str, Any]) -> Any:
    """torchvision's object, which gives paths in place of images where it lets a `loader` be chosen."""
    name, parameters = factory.__name__, parameters_of(factory)
    options = {"root": root or "data", "download": download, "loader": str}
    options = {key: value for key, value in options.items() if key in parameters} | dict(arguments)
    if download and "download" not in parameters:
        raise ValueError(f"torchvision cannot download {name}: put its files into --data.root")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in ("self", "args", "kwargs", *options):
            choices = getattr(factory, f"{key}s", None)
            raise ValueError(
                f"torchvision's {name} needs dataset_args with {key}" + (f": {choices}" if choices else "")
            )
    if unknown := sorted(set(arguments) - set(parameters)):
        raise ValueError(f"dataset_args: torchvision's {name} has no {', '.join(unknown)}; it has {[*parameters][1:]}")
    try:
        return factory(**options)
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise ValueError(f"torchvision's {name} in {root or 'data'}: {error}") from error


def as_part(layout: Layout, opened_parts: Sequence[Any]) -> Files | Items:
    """One part of torchvision objects: of files where it is known where they are."""
    if layout.files is not None or "loader" in parameters_of(type(opened_parts[0])):
        listed = layout.files or (lambda dataset: [dataset[i] for i in range(len(dataset))])
        # Sorted: torchvision lists some data sets in the order of the file system.
        return Files(sorted((str(path), int(label)) for dataset in opened_parts for path, label in listed(dataset)))
    dataset = ConcatDataset(opened_parts)
    if layout.labels is not None:
        found = [int(label) for one in opened_parts for label in layout.labels(one)]
    else:
        found = [int(dataset[i][1]) for i in range(len(dataset))]
    return Items(partial(image_of, dataset), found)


def image_of(dataset: Any, index: int) -> Image.Image:
    return to_picture(dataset[index][0])


def class_names(layout: Layout, dataset: Any) -> tuple[str, ...]:
    """The names of the classes; none where the data set has none. Of synonyms, all."""
    return tuple(", ".join(name) if isinstance(name, (tuple, list)) else str(name) for name in layout.names(dataset))


# ----------------------------------------------------------------------------------------------------- timm

TIMM_TORCH = {  # timm:torch/NAME, by the name of torchvision's class
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "kmnist": "KMNIST",
    "fashion_mnist": "FashionMNIST",
    "qmnist": "QMNIST",
    "imagenet": "ImageNet",
    "places365": "Places365",
    "inaturalist": "INaturalist",
    "inat": "INaturalist",
}


def from_timm(name: str, root: str | None, download: bool, arguments: Mapping[str, Any]) -> Source:
    """A data set that timm.data.create_dataset knows: torch/NAME (as torchvision:NAME), hfds/NAME, or a folder.

    A folder has the parts train and validation (or val, valid, eval); of hfds/NAME, the test set is `validation`, or
    `test` where there is none.
    """
    prefix, _, rest = name.partition("/")
    if prefix.lower() == "torch":
        if rest.lower() in ("folder", "image_folder"):
            return from_timm("folder", root, download, arguments)
        if rest.lower() not in TIMM_TORCH:
            raise ValueError(f"timm's torch/{rest} is not one of {', '.join('torch/' + x for x in TIMM_TORCH)}")
        return from_torchvision(TIMM_TORCH[rest.lower()], root, download, arguments)
    if prefix.lower() in ("hfids", "tfds", "wds"):
        raise ValueError(f"timm's {name} is a stream, whose images cannot be read by number: use hfds/NAME or a folder")
    if prefix.lower() == "hfds":
        readers = timm_hfds(name, root, download, arguments)
        parts = [encoded(reader) for reader in readers]
    else:
        readers = timm_folders(name, root, arguments)
        parts = [Files(reader.samples) for reader in readers]
    classes = [sorted(reader.class_to_idx, key=reader.class_to_idx.get) for reader in readers]
    if not classes[0]:
        raise ValueError(f"timm's {name} does not say its classes")
    if classes[0] != classes[1]:
        raise ValueError(f"timm's {name}: the classes are {classes[0]} for training, {classes[1]} for testing")
    named = Path(rest or root)
    called = named.resolve().name if named.is_dir() else rest  # a folder is called by its name, without its path
    return Source(called, *parts, tuple(map(str, classes[0])), *IMAGENET)


def timm_folders(name: str, root: str | None, arguments: Mapping[str, Any]) -> list[Any]:
    """timm's readers of the training and test part of a folder."""
    if root is None or not os.path.isdir(root):
        raise ValueError(
            f"timm's {name}: --data.root must be a folder with train and validation inside, it is {root!r}"
        )
    types = {"input_key": ";".join(sorted(suffixes()))}
    readers = [timm_reader(name, root, split, False, types | dict(arguments)) for split in ("train", "validation")]
    if readers[0].samples == readers[1].samples:
        raise ValueError(f"timm's {name}: {root} has no folders train and validation (or val, valid, eval) inside")
    for reader in readers:
        here = Path(reader.root)
        shown = [not any(part[0] == "." for part in Path(path).relative_to(here).parts) for path, _ in reader.samples]
        reader.samples = [sample for sample, keep in zip(reader.samples, shown) if keep]
        _, left_out = list_images(here, class_folders(here))
        report_left_out(here, left_out)
    return readers


def timm_hfds(name: str, root: str | None, download: bool, arguments: Mapping[str, Any]) -> list[Any]:
    """timm's readers of the training and test part of a data set of Hugging Face's."""
    train = timm_reader(name, root, "train", download, arguments)
    try:
        return [train, timm_reader(name, root, "validation", download, arguments)]
    except ValueError:
        return [train, timm_reader(name, root, "test", download, arguments)]


def timm_reader(name: str, root: str | None, split: str, download: bool, arguments: Mapping[str, Any]) -> Any:
    from timm.data import create_dataset

    try:
        return create_dataset(name, root=root, split=split, download=download, **arguments).reader
    except ImportError as error:
        raise ValueError(f"timm's {name} needs the package datasets: pip install 'supernet[text]'") from error
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"timm's {name}, {split}: {type(error).__name__}: {error}") from error


def timm_image(reader: Any, index: int) -> Image.Image:
    with reader[index][0] as file:
        return Image.open(io.BytesIO(file.read()))


def encoded(reader: Any) -> Encoded:
    """A split of a Hugging Face data set; its fingerprint changes with its files."""
    return Encoded(reader.dataset._fingerprint, partial(timm_image, reader), [*reader.iter_targets()])


LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm}
BY_NAME = {"digits": digits, "fashion_mnist": fashion_mnist, "folder": image_folder}
