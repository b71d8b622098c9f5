import gzip
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

import ofa
from ofa.datasets import read_idx


def write_folder(root, classes=("cat", "dog"), images=6, size=(20, 24)):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(images):
                Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def test_parts_are_disjoint_and_the_same_for_one_seed():
    data, again = ofa.ImageData(seed=3), ofa.ImageData(seed=3)
    assert not set(data.train.indices) & set(data.held_out.indices)
    assert set(data.calibration.indices) <= set(data.train.indices)
    assert len(data.train) + len(data.held_out) == 1437 and len(data.test) == 360
    assert (data.held_out.indices == again.held_out.indices).all()


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    data = ofa.ImageData(padding=2, flip=True)
    state = torch.get_rng_state()
    images = [data.train[(epoch, 5)][0] for epoch in range(8)]
    assert torch.equal(data.train[(3, 5)][0], images[3])
    assert any(not torch.equal(images[0], image) for image in images[1:])
    assert torch.equal(torch.get_rng_state(), state)


def test_calibration_images_are_the_same_every_time():
    data = ofa.ImageData(calibration=100, padding=2)
    first, second = ([x for (x,) in data.calibration_batches()] for _ in range(2))
    assert sum(map(len, first)) == 100 and all(torch.equal(a, b) for a, b in zip(first, second))


def test_calibration_batches_mix_the_classes_of_a_sorted_folder(tmp_path):
    data = ofa.ImageData("folder", str(write_folder(tmp_path, images=40)), 8, 10, calibration=8, image_size=16)
    labels = [label for _, label in (data.calibration[i] for i in range(8))]
    assert 0 < sum(labels) < 8


def test_training_batches_can_be_read_without_a_trainer():
    batch = next(iter(ofa.ImageData(batch_size=8).train_dataloader()))
    assert batch[0].shape == (8, 1, 8, 8)


def test_hidden_folders_are_no_classes(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert ofa.ImageData("folder", str(tmp_path), 4, 3, image_size=16).classes == ["cat", "dog"]


def test_sixteen_bit_images_keep_their_greys(tmp_path):
    write_folder(tmp_path)
    ramp = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    for path in tmp_path.glob("*/*/*.png"):
        Image.fromarray(ramp).save(path)
    data = ofa.ImageData("folder", str(tmp_path), 4, 3, channels=1, mean=(0.0,), std=(1.0,))
    assert torch.allclose(data.held_out[0][0], torch.from_numpy(ramp / 65535).float()[None], atol=1 / 255)


def test_images_of_several_sizes_need_an_image_size(tmp_path):
    write_folder(tmp_path)
    Image.new("RGB", (30, 30)).save(tmp_path / "train" / "cat" / "2.png")
    with pytest.raises(ValueError, match=r"train/.*png is .*, others are .*: give an image_size"):
        data = ofa.ImageData("folder", str(tmp_path), 4, 3)
        [part[i] for part in (data.train, data.held_out) for i in range(len(part))]


@pytest.mark.parametrize(
    "options", [{"calibration": 0}, {"padding": -1}, {"std": (0.0,), "mean": (0.0,)}, {"seed": -1}]
)
def test_a_setting_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ofa.ImageData(**options)


def test_an_image_folder_gives_batches_of_one_size(tmp_path):
    data = ofa.ImageData("folder", str(write_folder(tmp_path)), 4, 3, image_size=16, scale=(0.5, 1), flip=True)
    assert data.classes == ["cat", "dog"] and data.input_spec["shape"] == [3, 16, 16]
    assert next(iter(data.test_dataloader()))[0].shape == (4, 3, 16, 16)
    assert data.train[(0, 1)][0].shape == (3, 16, 16)


def test_a_grey_reading_of_colour_images(tmp_path):
    data = ofa.ImageData(
        "folder", str(write_folder(tmp_path)), 4, 3, image_size=16, channels=1, mean=(0.5,), std=(0.5,)
    )
    assert data.held_out[0][0].shape == (1, 16, 16)


def test_an_unreadable_image_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"train/cat/3\.png cannot be read as an image"):
        data = ofa.ImageData("folder", str(tmp_path), 4, 3, image_size=16)
        [data.train[i] for i in range(len(data.train))] + [data.held_out[i] for i in range(3)]


@pytest.mark.parametrize("classes", [(), ("cat",)])
def test_a_folder_without_two_classes_is_refused(tmp_path, classes):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    if classes:
        for part in ("train", "val"):
            (tmp_path / part).rmdir()
        write_folder(tmp_path, classes)
    with pytest.raises(ValueError, match="class"):
        ofa.ImageData("folder", str(tmp_path), 4, 3, image_size=16)


def test_what_does_not_exist_is_refused(tmp_path):
    for name, message in (
        ("imagenet", "is not digits"),
        ("torchvision:NoSuch", "no data set named 'NoSuch'"),
        ("folder", "needs --data.root"),
    ):
        with pytest.raises(ValueError, match=message):
            ofa.ImageData(name)
    with pytest.raises(ValueError, match="holdout: 5000 of 1437"):
        ofa.ImageData(holdout=5000)


def test_idx_files_are_read_plain_and_compressed_and_refused_truncated(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = bytes([0, 0, 8, 3]) + struct.pack(">3i", 2, 3, 4) + array.tobytes()
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b.gz").write_bytes(gzip.compress(data))
    (tmp_path / "c").write_bytes(data[:-5])
    (tmp_path / "d.gz").write_bytes(gzip.compress(data)[:-9])
    assert (read_idx(tmp_path, "a") == array).all() and (read_idx(tmp_path, "b") == array).all()
    for name in ("c", "d"):
        with pytest.raises(ValueError, match="cannot be read as an idx file"):
            read_idx(tmp_path, name)


def test_the_input_spec_says_how_images_are_prepared(tmp_path):
    write_folder(tmp_path / "pets")
    options = {"image_size": 16, "scale": (0.5, 1), "background": (1, 2, 3), "license": "CC0-1.0"}
    spec = ofa.ImageData("folder", str(tmp_path / "pets"), 4, 3, **options).input_spec
    assert spec == {
        "shape": [3, 16, 16],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "classes": 2,
        "class_names": ["cat", "dog"],
        "image_size": 16,
        "fit": "crop",
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "background": [1, 2, 3],
        "dataset": "pets",
        "license": "CC0-1.0",
    }
    assert json.loads(json.dumps(spec)) == spec


@pytest.mark.parametrize("fit, crop_pct", [("crop", 0.875), ("squeeze", 1.0), ("pad", 1.0)])
def test_only_a_crop_cuts_something_off(tmp_path, fit, crop_pct):
    data = ofa.ImageData("folder", str(write_folder(tmp_path)), 4, 3, image_size=16, scale=(0.5, 1), fit=fit)
    assert data.input_spec["crop_pct"] == crop_pct and data.train[0][0].shape == (3, 16, 16)


def test_known_names_and_licences_are_in_the_input_spec():
    spec = ofa.ImageData().input_spec
    assert (spec["class_names"], spec["dataset"], spec["license"]) == (list("0123456789"), "digits", "CC-BY-4.0")


@pytest.mark.parametrize(
    "options", [{"background": (0, 0)}, {"background": (0, 0, 256)}, {"fit": "stretch"}, {"fit": "pad"}]
)
def test_a_wrong_background_or_fit_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ofa.ImageData(**options)


def test_pillow_and_numpy_give_the_batches_of_evaluation(tmp_path):
    data = ofa.ImageData("folder", str(write_folder(tmp_path, size=(30, 47))), 4, 3, image_size=20)
    mean, std = (np.array(data.input_spec[name], np.float32) for name in ("mean", "std"))
    for i, (path, label) in enumerate(data.test.source.samples):
        image = Image.open(path)
        resized = image.resize((int(20 * 47 / 30), 20), Image.BILINEAR)
        left = round((resized.width - 20) / 2)
        pixels = np.asarray(resized.crop((left, 0, left + 20, 20)), np.float32) / 255
        expected = ((pixels - mean) / std).transpose(2, 0, 1)
        assert np.abs(data.test[i][0].numpy() - expected).max() < 1e-6 and data.test[i][1] == label


def test_images_in_memory_pass_the_same_steps_as_files(tmp_path):
    options = {"image_size": 12, "fit": "pad", "background": (0, 0, 0)}
    digits = ofa.ImageData(**options)
    for part in ("train", "val"):
        for i in range(6):
            folder = tmp_path / part / ("even", "odd")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            digits.test.source[i][0].save(folder / f"{i}.png")
    grey = {"channels": 1, "mean": digits.input_spec["mean"], "std": digits.input_spec["std"]}
    files = ofa.ImageData("folder", str(tmp_path), 2, 2, **options, **grey)
    for i, number in enumerate((0, 2, 4, 1, 3, 5)):
        assert torch.equal(files.test[i][0], digits.test[number][0])


def test_the_hold_out_is_stratified_and_small_classes_are_reported(tmp_path, caplog):
    write_folder(tmp_path, images=40)
    for i in range(30):
        (tmp_path / "train" / "dog" / f"{i}.png").unlink()
    for part in ("train", "val"):
        (tmp_path / part / "owl").mkdir()
        Image.new("RGB", (24, 20)).save(tmp_path / part / "owl" / "0.png")
    with caplog.at_level("INFO"):
        data = ofa.ImageData("folder", str(tmp_path), 4, 10, image_size=16)
    assert np.bincount(data.held_out.labels, minlength=3).tolist() == [8, 2, 0]
    assert data.class_counts.tolist() == [32, 8, 1]
    assert "1 of 3 classes have one training image, and none is held out: owl" in caplog.text


@pytest.mark.parametrize("change", ["name", "size", "label"])
def test_resuming_with_other_images_is_noticed(tmp_path, change):
    def state():
        return ofa.ImageData("folder", str(tmp_path), 4, 3, image_size=16).state_dict()

    write_folder(tmp_path)
    before = state()
    assert state() == before
    for path in list((tmp_path / "train" / "cat").iterdir()):  # of some, one may be held out
        if change == "name":
            path.rename(path.with_name(f"new{path.name}"))
        elif change == "size":
            Image.new("RGB", (99, 99)).save(path)
        else:
            path.rename(tmp_path / "train" / "dog" / f"cat{path.name}")
            break
    assert state() != before


def test_a_moved_folder_is_the_same_data(tmp_path):
    states = []
    for name in ("a", "b"):
        states.append(ofa.ImageData("folder", str(write_folder(tmp_path / name)), 4, 3, image_size=16).state_dict())
    assert states[0] == states[1]


@pytest.mark.parametrize("fit", ["crop", "squeeze", "pad"])
def test_augmented_batches_do_not_depend_on_workers_or_on_what_was_read_before(tmp_path, fit):
    root = str(write_folder(tmp_path, size=(20, 31)))
    options = {"image_size": 16, "scale": (0.3, 1), "flip": True, "jitter": (0.2, 0.2), "fit": fit}
    alone, workers = (ofa.ImageData("folder", root, 4, 3, workers=n, **options) for n in (0, 2))
    alone.train[(7, 0)]
    for ours, theirs in zip(alone.train_dataloader(), workers.train_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert not torch.equal(alone.train[(0, 0)][0], alone.train[(1, 0)][0])
