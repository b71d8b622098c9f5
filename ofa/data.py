"""Images for training, calibrating, choosing and testing: a Lightning data module over common data sets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ofa.datasets import Files, Items, open_dataset, readable, stratified
from ofa.image_files import reason, unreadable
from ofa.images import INTERPOLATION, WHITE, as_shown, crop_share, transforms
from supernet.resuming import ResumableLoader, ResumableSampler, ShardSampler, derive_seed, training_position
from supernet.values import integer

CACHE_BYTES = 512 << 20  # calibration images up to this size stay in memory


class ImageData(pl.LightningDataModule):
    """Image classification data; batches are (images B, C, H, W float32, labels B).

    The training images are split once, by `seed`, into a part that trains (and calibrates BatchNorm) and `holdout`
    images that choose: `val_dataloader` serves the latter. The hold-out has each class's share, and leaves each class
    an image to train on. The test set chooses nothing.

    An image is what a viewer shows (see `ofa.images.as_shown`): upright by its EXIF orientation, on `background` where
    it is transparent, with 8 bits a channel. Evaluation resizes and crops it with Pillow (see `fit`), so that Pillow,
    torchvision and timm reproduce the batches. Every file is decoded once before training, to find broken ones.

    Args:
        dataset: digits (inside scikit-learn), fashion_mnist, folder (`root`/train and `root`/val with a folder per
            class; val is the test set), torchvision:NAME, or timm:NAME (folder, hfds/NAME or torch/NAME).
            `ofa.datasets.LAYOUTS` lists which of torchvision are read, and which parts of them train and test.
        root: where the files are. fashion_mnist also looks where Debian's package puts them.
        batch_size: of training and evaluation, in each process.
        holdout: images held out of the training set.
        calibration: training images whose statistics recalibrate BatchNorm, without augmentation.
        image_size: height and width of the batches in pixels, at least the largest resolution of the search space;
            None for images that share a size already.
        padding: random crops from images padded by so many pixels; 0 for none.
        scale: random resized crops of this range of the area, such as [0.08, 1]; None for none. With it, evaluation
            by `fit: crop` cuts image_size out of image_size / 0.875.
        flip: random horizontal flips.
        jitter: random brightness and saturation, each within this fraction; None for none.
        channels: 1 or 3; None for the data set's.
        mean, std: per channel, of pixels in 0..1; None for the data set's.
        workers: processes that load.
        seed: of the split, the order and the augmentation.
        download: let torchvision fetch the files.
        fit: how an image becomes square. crop resizes the shorter side and cuts out the centre; squeeze resizes both
            sides; pad resizes the longer side and fills the rest with `background`.
        background: red, green and blue, 0 to 255, behind transparent images and beside padded ones.
        on_error: raise an error that names the broken image files, or skip them.
        dataset_args: more arguments of torchvision's or timm's data set, such as {split: letters} for EMNIST.
        license: the licence of the images, for the metadata of exported files; None for the data set's where known.
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
        fit: str = "crop",
        background: tuple[int, int, int] = WHITE,
        on_error: str = "raise",
        dataset_args: dict[str, Any] | None = None,
        license: str | None = None,
    ) -> None:
        super().__init__()
        batch_size, workers, seed = (
            integer("batch_size", batch_size),
            integer("workers", workers),
            integer("seed", seed),
        )
        holdout, calibration = integer("holdout", holdout), integer("calibration", calibration)
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        check_least(batch_size=batch_size, calibration=calibration, image_size=1 if image_size is None else image_size)
        check_least(0, padding=padding, workers=workers, seed=seed)
        if len(background) != 3 or not all(0 <= value <= 255 for value in background):
            raise ValueError(f"background = {background} is not red, green and blue, each 0 to 255")
        augment, plain = transforms(image_size, fit, background, padding, scale, flip, jitter)
        source = readable(open_dataset(dataset, root, download, dataset_args), on_error)
        self.classes = list(source.classes)
        if len(self.classes) < 2:
            raise ValueError(f"{dataset}: {len(self.classes)} class is not enough to learn from")
        channels = len(source.mean) if channels is None else channels
        mean, std = source.mean if mean is None else mean, source.std if std is None else std
        check_normalization(channels, mean, std)

        finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
        augment, plain = v2.Compose([augment, finish]), v2.Compose([plain, finish])
        try:
            held, trained = stratified(source.train.labels, holdout, np.random.default_rng((seed, 0)))
        except ValueError as error:
            raise ValueError(f"holdout: {error}") from error
        report_small_classes(source.train.labels, self.classes)
        look = ("L" if channels == 1 else "RGB", tuple(background))
        self.train = Images(source.train, np.sort(trained), *look, augment, seed)
        # In random order: many data sets are sorted by class, and a batch of one class has that class's statistics.
        self.calibration = Images(source.train, trained[:calibration], *look, plain)
        self.held_out = Images(source.train, np.sort(held), *look, plain)
        self.test = Images(source.test, np.arange(len(source.test)), *look, plain)
        image, _ = self.held_out[0]
        for part in (self.train, self.calibration, self.held_out, self.test):
            part.shape = image.shape
        self.class_counts = np.bincount(self.train.labels, minlength=len(self.classes))  # training images of each
        self.input_spec: dict[str, Any] = {
            "shape": list(image.shape),
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "classes": len(self.classes),
            "class_names": self.classes,
            "image_size": None if image_size is None else int(image_size),
            "fit": fit,
            "crop_pct": crop_share(fit, scale),
            "interpolation": INTERPOLATION,
            "background": [int(value) for value in background],
            "dataset": source.name,
            "license": source.license if license is None else license,
        }
        self._calibration_cache: list[tuple[Tensor]] | None = None

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
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "images": len(self.train),
            "digest": self.train.digest,
        }

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

    def __init__(
        self,
        source: Files | Items,
        indices: np.ndarray,
        mode: str,
        background: tuple[int, int, int],
        transform: Callable,
        seed: int = 0,
    ) -> None:
        self.source, self.indices, self.mode, self.background = source, indices, mode, background
        self.transform, self.seed = transform, seed
        self.shape: torch.Size | None = None  # what every image must have come to

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]

    @cached_property
    def digest(self) -> str:
        """A digest of the images' names within their folder, file sizes and labels. Pixels are not read."""
        state = hashlib.sha256(self.indices.astype("<i8").tobytes() + self.labels.astype("<i8").tobytes())
        if isinstance(self.source, Files):
            paths = [self.source.name(i) for i in self.indices]
            root = os.path.commonpath({os.path.dirname(path) for path in paths})
            for path in paths:
                size = os.path.getsize(path) if os.path.exists(path) else -1
                state.update(f"{os.path.relpath(path, root)}\0{size}\n".encode(errors="surrogateescape"))
        return state.hexdigest()

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        position = int(self.indices[number])
        name = self.source.name(position)
        try:
            image, label = self.source[position]
            with image:
                image = as_shown(image, self.mode, self.background)
        except Exception as error:  # the plugins of PIL raise many kinds
            raise ValueError(unreadable(name, reason(name, error))) from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                derive_seed(self.seed, epoch, position)
            )  # torch.manual_seed seeds GPUs, too
            image = self.transform(image)
        if self.shape is not None and image.shape != self.shape:
            raise ValueError(f"{name} is {tuple(image.shape)}, others are {tuple(self.shape)}: give an image_size")
        return image, label


def check_least(least: int = 1, **settings: int) -> None:
    """Raise ValueError for a setting below `least`."""
    for name, value in settings.items():
        if value < least:
            raise ValueError(f"{name} = {value}: at least {least}")


def check_normalization(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError for a mean or std that does not fit the channels, or makes no sense."""
    if channels not in (1, 3):
        raise ValueError(f"channels = {channels} is neither 1 nor 3")
    if not len(mean) == len(std) == channels:
        raise ValueError(f"mean and std must have {channels} values, one for each channel")
    if not (np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise ValueError(f"mean = {mean} and std = {std} must be finite, std positive")


def report_small_classes(labels: np.ndarray, classes: list[str]) -> None:
    """Lines that name the classes that have no image to train on, or one, which is not held out."""
    counts = np.bincount(labels, minlength=len(classes))
    for count, what in ((0, "no training image"), (1, "one training image, and none is held out")):
        if len(few := np.flatnonzero(counts == count)):
            named = ", ".join(classes[i] for i in few[:20]) + (", ..." if len(few) > 20 else "")
            rank_zero_info(f"{len(few)} of {len(classes)} classes have {what}: {named}")
