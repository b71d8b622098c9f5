"""What a data module must give, checked before any work, and helpers that give the usual ones for images."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from supernet.values import integer, json_value, numbers, unwrapped

BATCHES = "batches are (*inputs, target), such as (images, labels)"
HOW = {  # how to give what a data module lacks
    "input_spec": "a dict that says what a batch is: self.input_spec = supernet.data.image_spec(training_set)",
    "calibration_batches": (
        "a method that yields (images,) of training images, the same every time:"
        " return supernet.data.calibration_batches(self.train_dataloader(), 500)"
    ),
    "train_dataloader": f"a method that returns the loader of the training set, whose {BATCHES}",
    "val_dataloader": f"a method that returns the loader of held-out images, whose {BATCHES}",
    "test_dataloader": f"a method that returns the loader of the test set, whose {BATCHES}",
}


# --------------------------------------------------------------------------------------------------- helpers


def calibration_batches(data: DataLoader | Dataset | Iterable, n: int = 2000, seed: int = 0) -> Iterator[tuple]:
    """The inputs of `n` items of a loader or data set, in its batches, without labels: `(images,)`.

    Of a data set with a length, and of a loader of one, the items are drawn by `seed` without replacement, so that a
    data set sorted by class gives mixed batches. They are the same every time, random augmentation included. Of
    anything else that yields batches, they are the first ones.
    """
    n = integer("n", n, 1)
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if not is_indexed(dataset) or isinstance(data, (list, tuple)):  # a list alone is one of batches
        yield from _first_inputs(data, n)
        return
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=128)
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    if loader.batch_size is None and loader.batch_sampler is None:  # an item is a batch
        yield from _first_inputs(_read(dataset, order, None, loader.collate_fn, seed), n)
        return
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 128
    yield from _first_inputs(_read(dataset, order[:n], size, loader.collate_fn, seed), n)


def image_spec(
    data: DataLoader | Dataset,
    classes: int | Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The `input_spec` of images and labels: shape, number and names of classes, normalisation.

    The shape is that of the first image. `classes`, names or their number, are those of the data set (its `classes`,
    or its `targets`) if None. `mean` and `std`, per channel, of pixels in 0..1, are those of the `Normalize` in the
    data set's `transform` if None; a data set without one leaves them out. `more` are other entries.
    ValueError where the first item is not an image tensor C, H, W with a label, or nothing says the classes.
    """
    dataset = data.dataset if isinstance(data, DataLoader) else data
    item = dataset[0] if is_indexed(dataset) else next(iter(dataset))
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(f"an item of {_name(dataset)} is {_kind(item)}: (image, label) is expected")
    image = item[0]
    if not isinstance(image, Tensor) or image.dim() != 3:
        raise ValueError(f"an image of {_name(dataset)} is {_kind(image)}: a tensor C, H, W is expected (ToTensor)")
    found = classes if classes is not None else _classes(dataset)
    if found is None:
        raise ValueError(f"{_name(dataset)} has neither `classes` nor `targets`: give image_spec(..., classes=names)")
    names = None if isinstance(unwrapped(found), (int, float)) else [str(name) for name in found]
    spec: dict[str, Any] = {"shape": list(image.shape)}
    spec["classes"] = integer("classes", found, 2) if names is None else len(names)
    if spec["classes"] < 2:
        raise ValueError(f"classes = {names}: at least 2 are needed to learn from")
    if names is not None:
        spec["class_names"] = names
    normalize = _normalization(dataset) if mean is None and std is None else (mean, std)
    if (normalize[0] is None) != (normalize[1] is None):
        raise ValueError(f"mean = {mean}, std = {std}: give both or neither")
    if normalize[0] is not None:
        for name, values in zip(("mean", "std"), normalize):
            values = [float(value) for value in numbers(name, values)]
            spec[name] = values * len(image) if len(values) == 1 else values
            if len(spec[name]) != len(image):
                raise ValueError(f"{name} = {values}: a value for each of {len(image)} channels is expected")
    return spec | {name: json_value(name, value) for name, value in more.items()}


# ---------------------------------------------------------------------------------------------------- checks


def check_module(data: Any, needs: Iterable[str]) -> None:
    """Raise ValueError that names all that a data module lacks of `needs`, and how to give each.

    An input_spec must be a dict of JSON values.
    """
    name = type(data).__name__
    if lacks := [need for need in needs if not gives(data, need)]:
        needs = "".join(f"\n  {need}: {HOW[need]}" for need in lacks)
        raise ValueError(f"the data module {name} has no {', '.join(lacks)}, which is needed:{needs}")
    if "input_spec" in needs:
        if not isinstance(data.input_spec, Mapping):
            raise ValueError(f"{name}.input_spec is {_kind(data.input_spec)}: a dict is expected")
        json_value(f"{name}.input_spec", data.input_spec)


def check_batch(batch: Any, where: str, input_spec: Mapping[str, Any] | None = None, inputs: int | None = None) -> None:
    """Raise ValueError unless a batch is `(*inputs, target)`: tensors of one length, the targets whole numbers.

    With the `input_spec` of images, their shape and the range of the labels are checked, too; `inputs` is how many
    of them the network takes.
    """
    if isinstance(batch, Mapping):
        keys = ", ".join(map(str, batch))
        raise ValueError(f"{where} gives a dict ({keys}): {BATCHES}: give a collate_fn that returns such a tuple")
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise ValueError(f"{where} gives {_kind(batch)}: {BATCHES}")
    if wrong := [part for part in batch if not isinstance(part, Tensor)]:
        raise ValueError(f"{where} gives {_kind(wrong[0])} in a batch: {BATCHES}, all of them tensors")
    target = batch[-1]
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool or target.dim() == 0:
        raise ValueError(f"{where} gives targets of {target.dtype}, {tuple(target.shape)}: numbers of classes (int64)")
    if lengths := {len(part) for part in batch if part.dim()} - {len(target)}:
        raise ValueError(f"{where} gives {len(target)} targets for {', '.join(map(str, lengths))} inputs")
    if inputs is not None and len(batch) - 1 != inputs:
        raise ValueError(f"{where} gives {len(batch) - 1} inputs and a target, the network takes {inputs}: {BATCHES}")
    if input_spec and {"shape", "classes"} <= set(input_spec):
        _check_images(batch, where, input_spec)


def _check_images(batch: Sequence[Tensor], where: str, input_spec: Mapping[str, Any]) -> None:
    images, target = batch[0], batch[-1]
    wanted, classes = tuple(input_spec["shape"]), input_spec["classes"]
    if images.dim() != 4 or images.size(1) != wanted[0]:
        raise ValueError(f"{where} gives images of {tuple(images.shape[1:])}, the input_spec says {wanted}")
    if not images.is_floating_point():
        raise ValueError(
            f"{where} gives images of {images.dtype}: normalised float32 is expected (ToTensor, Normalize)"
        )
    if target.dim() != 1:
        raise ValueError(f"{where} gives labels of shape {tuple(target.shape)}: one number an image is expected, (B,)")
    counted = target[target >= 0]
    if len(counted) and int(counted.max()) >= classes:
        raise ValueError(f"{where} gives the label {int(counted.max())}; the input_spec says {classes} classes, from 0")


def check_loader(loader: Any, where: str, input_spec: Mapping[str, Any] | None, inputs: int | None) -> None:
    """`check_batch` of the first items of a loader, or of each of several loaders."""
    loaders = loader if isinstance(loader, (list, tuple)) else [loader]
    for one in loaders if all(isinstance(one, DataLoader) for one in loaders) else [loader]:
        batch = first_batch(one)
        if batch is None:
            raise ValueError(f"{where} gives no batch: its data set is empty")
        check_batch(batch, where, input_spec, inputs)


def check_calibration(data: Any, inputs: int | None) -> None:
    """Raise ValueError unless the first of `calibration_batches()` has the inputs of a network, labels or not."""
    with seeded():
        batch = next(iter(data.calibration_batches()), None)
    where = f"{type(data).__name__}.calibration_batches()"
    if batch is None:
        raise ValueError(f"{where} gives no batch")
    parts = [batch] if isinstance(batch, Tensor) else batch
    if not isinstance(parts, (tuple, list)) or not parts or not all(isinstance(part, Tensor) for part in parts):
        raise ValueError(f"{where} gives {_kind(batch)}: (images,) is expected. {HOW['calibration_batches']}")
    if inputs is not None and len(parts) < inputs:
        raise ValueError(f"{where} gives {len(parts)} inputs, the network takes {inputs}")


def first_batch(loader: Any) -> Any:
    """A first batch of a loader, of at most two items where it is a DataLoader; None where the loader is empty.

    The global random state stays as it was.
    """
    with seeded():
        if not isinstance(loader, DataLoader) or not is_indexed(loader.dataset):
            return next(iter(loader), None)
        if not len(loader.dataset):
            return None
        try:
            if loader.batch_sampler is None:
                return loader.collate_fn(loader.dataset[0])
            return loader.collate_fn([loader.dataset[i] for i in range(min(2, len(loader.dataset)))])
        except (TypeError, LookupError):  # the indices of this data set are of another kind: those of its sampler
            return next(iter(loader), None)


def is_indexed(dataset: Any) -> bool:
    """Whether items have numbers; torch's Dataset, and so an IterableDataset, has a `__getitem__` that raises."""
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return indexed and not isinstance(dataset, IterableDataset)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Python's, NumPy's and torch's global random numbers from `seed`; then as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (data sets of users draw from it)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds GPUs, too
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


# ----------------------------------------------------------------------------------------------------- parts


def _read(dataset: Dataset, order: Sequence[int], size: int | None, collate: Any, seed: int) -> Iterator[Any]:
    for start in range(0, len(order), size or 1):
        with seeded(seed + start):
            items = [dataset[i] for i in order[start : start + (size or 1)]]
        yield collate(items if size else items[0])


def _first_inputs(batches: Iterable, n: int) -> Iterator[tuple]:
    """Batches without their targets, until `n` items are given."""
    for batch in batches:
        check_batch(batch, "the loader")
        inputs = tuple(part[:n] for part in batch[:-1])
        yield inputs
        n -= len(inputs[0])
        if n <= 0:
            return


def _classes(dataset: Any) -> int | Sequence[str] | None:
    """The names of a data set's classes, or their number; through Subset and ConcatDataset. None where unknown."""
    names = getattr(dataset, "classes", None)
    if names is not None and not callable(names):
        return names
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if labels is None and hasattr(dataset, "tensors"):
        labels = dataset.tensors[-1]
    if labels is not None and len(labels):
        return int(np.max(np.asarray(labels))) + 1
    found = [_classes(inner) for inner in _inner(dataset)]
    if not found or None in found:
        return None
    if all(isinstance(classes, int) for classes in found):
        return max(found)
    return found[0] if all(list(classes) == list(found[0]) for classes in found) else None


def _normalization(dataset: Any) -> tuple[Any, Any]:
    """The mean and std of the Normalize in a data set's transform, else (None, None)."""
    for step in _steps(getattr(dataset, "transform", None)):
        if type(step).__name__ == "Normalize" and hasattr(step, "mean"):
            return step.mean, step.std
    return next((found for inner in _inner(dataset) if (found := _normalization(inner)) != (None, None)), (None, None))


def _steps(transform: Any) -> Iterator[Any]:
    """The transforms that a transform is made of."""
    for step in getattr(transform, "transforms", ()):
        yield from _steps(step)
    yield transform


def _inner(dataset: Any) -> list[Any]:
    """The data sets that a Subset or a ConcatDataset is made of."""
    return [dataset.dataset] if isinstance(dataset, Subset) else list(getattr(dataset, "datasets", ()))


def gives(data: Any, name: str) -> bool:
    """Whether a data module has a member of its own, and not the one of Lightning's base class, which raises."""
    import pytorch_lightning as pl

    inherited = getattr(pl.LightningDataModule, name, None)
    own = inherited is None or name in vars(data) or getattr(type(data), name, None) is not inherited
    return own and hasattr(data, name)


def _name(dataset: Any) -> str:
    return type(dataset).__name__


def _kind(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
