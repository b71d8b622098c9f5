"""Images for training, calibrating, choosing and testing: a Lightning data module over common data sets."""

from __future__ import annotations

import gzip
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms import v2

from supernet.training import ResumableLoader, ResumableSampler, ShardSampler, derive_seed, training_position
from supernet.values import integer

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist installs
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CACHE_BYTES = 512 << 20  # calibration images up to this size stay in memory


class ImageData(pl.LightningDataModule):
    """Image classification data; batches are (images B, C, H, W float32, labels B).

    The training images are split once, by `seed`, into a part that trains (and calibrates BatchNorm) and `holdout`
    images that choose: `val_dataloader` serves those. The test set chooses nothing.

    Args:
        dataset: digits (inside scikit-learn), fashion_mnist, folder (`root`/train and `root`/val with a folder per
            class; val is the test set), torchvision:NAME or timm:NAME.
        root: where the files are. fashion_mnist also looks where Debian's package puts them.
        batch_size: of training and evaluation, in each process.
        holdout: images held out of the training set.
        calibration: training images whose statistics recalibrate BatchNorm, without augmentation.
        image_size: height and width of the batches in pixels; None for images that share a size already.
        padding: random crops from images padded by so many pixels; 0 for none.
        scale: random resized crops of this range of the area, such as [0.08, 1]; None for none.
        flip: random horizontal flips.
        jitter: random brightness and saturation, each within this fraction; None for none.
        channels: 1 or 3; None for the data set's.
        mean, std: per channel, of pixels in 0..1; None for the data set's.
        workers: processes that load.
        seed: of the split, the order and the augmentation.
        download: let torchvision fetch the files.
    """

    def __init__(
        self,
        dataset: str = "digits",
        root: str | None = None,
        batch_size: int = 128,
        holdout: int = 300,
        calibration: int = 2000,
        image_size: int | None = None,
        padding: int = 0,
        scale: tuple[float, float] | None = None,
        flip: bool = False,
        jitter: tuple[float, float] | None = None,
        channels: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        workers: int = 0,
        seed: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__()
        batch_size, workers, seed = (
            integer("batch_size", batch_size),
            integer("workers", workers),
            integer("seed", seed),
        )
        holdout, calibration = integer("holdout", holdout), integer("calibration", calibration)
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        source = open_dataset(dataset, root, download)
        self.classes = source.classes
        if len(self.classes) < 2:
            raise ValueError(f"{dataset}: {len(self.classes)} class is not enough to learn from")
        if not 0 < holdout < len(source.train):
            raise ValueError(f"holdout = {holdout} does not leave both parts of {len(source.train)} training images")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("calibration", calibration, 1),
            ("padding", padding, 0),
            ("workers", workers, 0),
            ("seed", seed, 0),
            ("image_size", 1 if image_size is None else image_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name} = {value}: at least {least}")
        channels = source.channels if channels is None else channels
        if channels not in (1, 3):
            raise ValueError(f"channels = {channels} is neither 1 nor 3")
        mean, std = source.mean if mean is None else mean, source.std if std is None else std
        if not len(mean) == len(std) == channels:
            raise ValueError(f"mean and std must have {channels} values, one for each channel")
        if not (np.isfinite([*mean, *std]).all() and min(std) > 0):
            raise ValueError(f"mean = {mean} and std = {std} must be finite, std positive")

        augment, plain = transforms(image_size, padding, scale, flip, jitter)
        finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
        order = np.random.default_rng((seed, 0)).permutation(len(source.train))
        held, trained = np.sort(order[:holdout]), order[holdout:]
        mode = "L" if channels == 1 else "RGB"
        self.train = Images(source.train, np.sort(trained), mode, v2.Compose([*augment, finish]), seed)
        # In random order: many data sets are sorted by class, and a batch of one class has that class's statistics.
        self.calibration = Images(source.train, trained[:calibration], mode, v2.Compose([*plain, finish]))
        self.held_out = Images(source.train, held, mode, v2.Compose([*plain, finish]))
        self.test = Images(source.test, np.arange(len(source.test)), mode, v2.Compose([*plain, finish]))
        image, _ = self.held_out[0]
        for part in (self.train, self.calibration, self.held_out, self.test):
            part.shape = image.shape
        self.input_spec: dict[str, Any] = {
            "shape": list(image.shape),
            "mean": list(mean),
            "std": list(std),
            "classes": len(self.classes),
        }
        self._calibration_cache: list[tuple[Tensor]] | None = None

    @property
    def class_counts(self) -> np.ndarray:
        """How many training images each class has, (classes,)."""
        source = self.train.source
        labels = getattr(source, "targets", getattr(source, "labels", None))
        labels = [label for _, label in source] if labels is None else labels
        return np.bincount(np.asarray(labels)[self.train.indices].astype(int), minlength=len(self.classes))

    @property
    def _process(self) -> tuple[int, int]:
        """(rank, processes) of the training this module is attached to."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        sampler = ResumableSampler(len(self.train), self.seed, self._position, *self._process)
        if len(sampler) < self.batch_size:
            raise ValueError(f"{len(sampler)} training images do not fill one batch of {self.batch_size}")
        return ResumableLoader(
            self.train,
            self.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def _position(self) -> tuple[int, int]:
        if not self.trainer:
            return 0, 0
        _, processes = self._process
        epoch, batch = training_position(self.trainer, len(self.train) // processes // self.batch_size)
        return epoch, batch * self.batch_size

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.held_out, ShardSampler(len(self.held_out), *self._process))

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, ShardSampler(len(self.test), *self._process))

    def _loader(self, images: Images, sampler: ShardSampler | None = None) -> DataLoader:
        return DataLoader(images, self.batch_size, sampler=sampler, num_workers=self.workers)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "batch_size": self.batch_size, "images": len(self.train)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise ValueError where a training would be resumed with other batches than it began with."""
        if self.trainer.state.fn == "fit" and state != self.state_dict():
            raise ValueError(f"the run began with the training data {state}; now they are {self.state_dict()}")

    def calibration_batches(self) -> Iterator[tuple[Tensor]]:
        """Batches `(images,)` of training images for BatchNorm statistics, the same ones every time."""
        if self._calibration_cache is not None:
            yield from self._calibration_cache
            return
        image, _ = self.calibration[0]
        keep = len(self.calibration) * image.numel() * image.element_size() <= CACHE_BYTES
        batches = []
        for images, _ in self._loader(self.calibration):
            if keep:
                batches.append((images,))
            yield (images,)
        if keep:
            self._calibration_cache = batches


class Images(Dataset):
    """A part of a data set, as tensors. An index is a number, or (epoch, number) for seeded augmentation."""

    def __init__(self, source: Dataset, indices: np.ndarray, mode: str, transform: Callable, seed: int = 0) -> None:
        self.source, self.indices, self.mode, self.transform, self.seed = source, indices, mode, transform, seed
        self.shape: torch.Size | None = None  # what every image must have come to

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        position = int(self.indices[number])
        path = getattr(self.source, "samples", None)
        name = path[position][0] if path else f"image {position}"
        try:
            image, label = self.source[position]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all seen of PIL
            raise ValueError(f"{name} cannot be read as an image: {error}") from error
        if isinstance(image, Image.Image):
            image = v2.functional.pil_to_tensor(image if image.mode == self.mode else to_mode(image, self.mode, name))
        elif image.size(0) != (1 if self.mode == "L" else 3):
            image = v2.functional.rgb_to_grayscale(image) if self.mode == "L" else image.expand(3, -1, -1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, epoch, position))
            image = self.transform(image)
        if self.shape is not None and image.shape != self.shape:
            raise ValueError(f"{name} is {tuple(image.shape)}, others are {tuple(self.shape)}: give an image_size")
        return image, int(label)


def to_mode(image: Image.Image, mode: str, name: str) -> Image.Image:
    """An image as 8-bit L or RGB. Of 16 bits, which PIL would clip, the upper 8 are taken."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"{name} has pixels of 32 bits, whose range is not known: save it with 8 or 16")
    return image.convert(mode)


def transforms(
    image_size: int | None,
    padding: int,
    scale: Sequence[float] | None,
    flip: bool,
    jitter: Sequence[float] | None,
) -> tuple[list[Callable], list[Callable]]:
    """The augmenting and the plain transforms of uint8 tensors C, H, W."""
    augment: list[Callable] = []
    plain: list[Callable] = []
    if scale is not None:
        if image_size is None:
            raise ValueError("scale: random resized crops need an image_size")
        augment.append(v2.RandomResizedCrop(image_size, scale=tuple(scale), antialias=True))
        plain += [v2.Resize(math.ceil(image_size / 0.875), antialias=True), v2.CenterCrop(image_size)]
    elif image_size is not None:
        plain += [v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)]
        augment += plain
    if padding:
        augment.append(PaddedCrop(padding))
    if flip:
        augment.append(v2.RandomHorizontalFlip())
    if jitter is not None:
        augment.append(v2.ColorJitter(brightness=jitter[0], saturation=jitter[1]))
    return augment, plain


class PaddedCrop:
    """A random crop, of the image's size, from the image with a border of zeros."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, image: Tensor) -> Tensor:
        top, left = torch.randint(0, 2 * self.padding + 1, (2,)).tolist()
        padded = v2.functional.pad(image, [self.padding])
        return padded[:, top : top + image.size(1), left : left + image.size(2)]


# ------------------------------------------------------------------------------------------------- data sets


class Source:
    """An opened data set: map-style `train` and `test` of (image, label), and what is known of them."""

    def __init__(
        self, train: Dataset, test: Dataset, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.train, self.test, self.classes = train, test, list(classes)
        self.mean, self.std, self.channels = tuple(mean), tuple(std), len(mean)


class ArrayImages(Dataset):
    """Images in memory: uint8 tensor N, C, H, W and labels N."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = torch.from_numpy(images), labels.astype(int)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def open_dataset(name: str, root: str | None, download: bool) -> Source:
    """The data set of that name; ValueError says what is wrong with the name or the files."""
    library, _, rest = name.partition(":")
    if name == "digits":
        return digits()
    if name == "fashion_mnist":
        return fashion_mnist(root, download)
    if name == "folder":
        return image_folder(root)
    if library == "torchvision" and rest:
        return from_torchvision(rest, root, download)
    if library == "timm" and rest:
        return from_timm(rest, root, download)
    raise ValueError(f"dataset: {name!r} is not digits, fashion_mnist, folder, torchvision:NAME or timm:NAME")


def digits() -> Source:
    """1,797 grey 8x8 digits; the test set is every fifth image of the (shuffled) file."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[::5], np.delete(order, np.s_[::5])
    pixels = images[train] / 255
    names = [str(label) for label in range(10)]
    return Source(
        ArrayImages(images[train], labels[train]),
        ArrayImages(images[test], labels[test]),
        names,
        [float(pixels.mean())],
        [float(pixels.std())],
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
    parts = [
        ArrayImages(read_idx(place, f"{part}-images-idx3-ubyte")[:, None], read_idx(place, f"{part}-labels-idx1-ubyte"))
        for part in ("train", "t10k")
    ]
    return Source(*parts, datasets.FashionMNIST.classes, [0.2860], [0.3530])


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


class Folder(datasets.ImageFolder):
    """torchvision's, without hidden folders such as .ipynb_checkpoints, and with images in their own mode."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = sorted(path.name for path in Path(directory).iterdir() if path.is_dir() and path.name[0] != ".")
        if not names:
            raise FileNotFoundError(f"there is no class folder in {directory}")
        return names, {name: i for i, name in enumerate(names)}


def image_folder(root: str | None) -> Source:
    """`root`/train and `root`/val, each with a folder of images per class."""
    if root is None:
        raise ValueError("dataset: folder needs --data.root, a folder with train and val inside")
    try:
        train, test = (Folder(Path(root) / part, loader=Image.open) for part in ("train", "val"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{root} is not an image folder with train/CLASS/ and val/CLASS/: {error}") from error
    if train.classes != test.classes:
        raise ValueError(f"{root}: train has the classes {train.classes}, val has {test.classes}")
    return Source(train, test, train.classes, *IMAGENET)


def from_torchvision(name: str, root: str | None, download: bool) -> Source:
    """A data set of torchvision.datasets with a training and a test part."""
    factory = getattr(datasets, name, None)
    if not inspect.isclass(factory):
        raise ValueError(f"torchvision has no data set named {name!r}")
    parameters = inspect.signature(factory).parameters
    if "train" in parameters:
        parts = [{"train": True}, {"train": False}]
    elif "split" in parameters:
        parts = [{"split": "train"}, {"split": "test"}]
    else:
        raise ValueError(f"torchvision's {name} has no training and test parts to tell apart")
    options = {"download": download} if "download" in parameters else {}
    try:
        train, test = (factory(root or "data", **part, **options) for part in parts)
    except (RuntimeError, FileNotFoundError) as error:
        raise ValueError(f"torchvision's {name}: {error}") from error
    classes = getattr(train, "classes", None)
    if classes is None:
        raise ValueError(f"torchvision's {name} does not say its classes: it is not a classification data set")
    image = train[0][0]
    grey = isinstance(image, Image.Image) and image.mode == "L"
    return Source(train, test, classes, *([0.5], [0.5]) if grey else IMAGENET)


def from_timm(name: str, root: str | None, download: bool) -> Source:
    """A data set that timm.data.create_dataset knows, with splits named train and validation."""
    from timm.data import create_dataset

    train, test = (create_dataset(name, root=root, split=split, download=download) for split in ("train", "validation"))
    classes = getattr(train.reader, "class_to_idx", None)
    if not classes:
        raise ValueError(f"timm's {name} does not say its classes")
    return Source(train, test, sorted(classes, key=classes.get), *IMAGENET)
