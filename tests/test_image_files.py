import io
import os

import numpy as np
import pytest
from PIL import Image

import ofa
from ofa.image_files import find_broken

FORMATS = {
    ".jpg": "JPEG",
    ".png": "PNG",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".bmp": "BMP",
    ".jp2": "JPEG2000",
}


def photo(seed=0, kind="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_photos(root, images=6, suffix=".jpg"):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(images):
                (folder / f"{i}{suffix}").write_bytes(photo(i, FORMATS[suffix]))
    return root


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def open_photos(root, **options):
    return ofa.ImageData("folder", str(root), **{"batch_size": 2, "holdout": 2, "image_size": 24} | options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_truncated_photo_is_named_before_training(tmp_path, part, workers):
    cut(write_photos(tmp_path) / part / "cat" / "3.jpg")
    with pytest.raises(
        ValueError, match=rf"(?s)1 of 24 .*{part}/cat/3\.jpg cannot be read as an image: .*truncated"
    ) as error:
        open_photos(tmp_path, workers=workers)
    assert "on_error: skip" in str(error.value)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.95])
def test_a_truncated_file_of_every_format_is_found(tmp_path, suffix, share):
    whole, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    for path in (whole, broken):
        path.write_bytes(photo(0, FORMATS[suffix]))
    cut(broken, share)
    assert list(find_broken([str(whole), str(broken)])) == [str(broken)]


@pytest.mark.parametrize(
    "content, why",
    [(b"", "the file is empty"), (b"not an image", "no image format"), (None, "does not exist")],
)
def test_why_a_file_is_broken_is_said(tmp_path, content, why):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    assert why in find_broken([str(path)])[str(path)]


def test_twenty_broken_files_are_named_and_the_rest_counted(tmp_path):
    for path in write_photos(tmp_path, 7).glob("train/*/*.jpg"):
        cut(path)
    for path in list(write_photos(tmp_path / "more", 6).glob("train/*/*.jpg")):
        path.rename(tmp_path / "train" / "cat" / f"more{path.parent.name}{path.name}")
        cut(tmp_path / "train" / "cat" / f"more{path.parent.name}{path.name}")
    with pytest.raises(
        ValueError, match="26 of 40 image files are broken .26 of the train part, 0 of the test part"
    ) as error:
        open_photos(tmp_path)
    assert str(error.value).count("cannot be read") == 20 and "and 6 more" in str(error.value)


def test_broken_files_are_left_out_on_request(tmp_path, caplog):
    write_photos(tmp_path)
    for path in ("train/cat/3.jpg", "train/dog/1.jpg", "val/dog/0.jpg"):
        cut(tmp_path / path)
    with caplog.at_level("INFO"):
        data = open_photos(tmp_path, on_error="skip")
    assert "3 of 24 image files are broken and left out (2 of the train part, 1 of the test part)" in caplog.text
    assert "val/dog/0.jpg" in caplog.text
    assert len(data.train) + len(data.held_out) == 10 and len(data.test) == 11
    assert sum(len(images) for images, _ in data.test_dataloader()) == 11


def test_a_part_whose_files_are_all_broken_is_refused(tmp_path):
    for path in write_photos(tmp_path).glob("val/*/*.jpg"):
        cut(path)
    with pytest.raises(ValueError, match="no part may lose all .0 of the train part, 12 of the test part"):
        open_photos(tmp_path, on_error="skip")


def test_an_unknown_way_with_broken_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="on_error = 'ignore'"):
        open_photos(write_photos(tmp_path), on_error="ignore")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_later_is_named(tmp_path, workers):
    data = open_photos(write_photos(tmp_path), workers=workers)
    cut(tmp_path / "val" / "dog" / "2.jpg")
    with pytest.raises(ValueError, match=r"val/dog/2\.jpg cannot be read as an image"):
        list(data.test_dataloader())


def test_an_unchanged_folder_is_not_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERNET_CACHE", str(tmp_path / "cache"))
    paths = sorted(map(str, write_photos(tmp_path / "photos").rglob("*.jpg")))
    decoded = []
    opener = Image.open
    monkeypatch.setattr(Image, "open", lambda path: decoded.append(path) or opener(path))
    assert not find_broken(paths) and sorted(decoded) == paths
    decoded.clear()
    assert not find_broken(paths) and not decoded
    cut(tmp_path / "photos" / "val" / "dog" / "4.jpg")
    for _ in range(2):  # a broken file is tried again at every call
        assert list(find_broken(paths)) == [str(tmp_path / "photos" / "val" / "dog" / "4.jpg")]
    assert {os.path.dirname(path) for path in decoded} == {str(tmp_path / "photos" / "val" / "dog")}
    assert len(decoded) == 6 + 1


def test_a_mended_file_is_read_again(tmp_path):
    path = write_photos(tmp_path) / "train" / "cat" / "0.jpg"
    cut(path)
    with pytest.raises(ValueError, match="truncated"):
        open_photos(tmp_path)
    path.write_bytes(photo(0))
    assert len(open_photos(tmp_path).test) == 12


def test_files_are_checked_where_nothing_can_be_remembered(tmp_path, monkeypatch, caplog):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("SUPERNET_CACHE", str(tmp_path / "taken"))
    cut(write_photos(tmp_path / "photos") / "train" / "cat" / "0.jpg")
    with caplog.at_level("INFO"), pytest.raises(ValueError, match="cat/0.jpg"):
        open_photos(tmp_path / "photos")
    assert "cannot be written" in caplog.text


def test_what_was_remembered_wrongly_is_checked_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERNET_CACHE", str(tmp_path / "cache"))
    open_photos(write_photos(tmp_path / "photos"))
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text('{"check"')
    cut(tmp_path / "photos" / "train" / "cat" / "0.jpg")
    with pytest.raises(ValueError, match="cat/0.jpg"):
        open_photos(tmp_path / "photos")


# --------------------------------------------------------------------------------------------------- folders


def test_every_suffix_that_pillow_reads_is_used_in_any_case(tmp_path):
    write_photos(tmp_path, 1)
    for name, kind in (("a.GIF", "GIF"), ("b.jfif", "JPEG"), ("c.avif", "AVIF"), ("d.Jpe", "JPEG"), ("e.tif", "TIFF")):
        (tmp_path / "train" / "cat" / name).write_bytes(photo(0, kind))
    assert len(open_photos(tmp_path, holdout=1).train.source) == 2 + 5


def test_files_that_are_left_out_are_counted(tmp_path, caplog):
    write_photos(tmp_path)
    train = tmp_path / "train"
    for name in ("readme.md", "cat/notes.txt", "cat/more.TXT", "cat/._1.jpg", "cat/.DS_Store", "dog/plain", "3.jpg"):
        (train / name).write_bytes(b"")
    (train / ".ipynb_checkpoints").mkdir()
    (train / ".ipynb_checkpoints" / "1.jpg").write_bytes(b"")
    with caplog.at_level("INFO"):
        data = open_photos(tmp_path)
    assert len(data.train.source) == 12
    lines = [line for line in caplog.messages if "left out" in line]
    assert len(lines) == 1 and f"{train}: 8 files are left out" in lines[0]
    for kind in ("2 .txt", "3 hidden", "2 outside the class folders", "1 without a suffix"):
        assert kind in lines[0]


def test_images_in_folders_of_a_class_folder_are_of_its_class(tmp_path):
    write_photos(tmp_path)
    (tmp_path / "train" / "dog" / "puppies").mkdir()
    (tmp_path / "train" / "dog" / "puppies" / "0.jpg").write_bytes(photo())
    assert open_photos(tmp_path).train.source.labels.tolist() == [0] * 6 + [1] * 7


def test_a_class_without_an_image_is_named(tmp_path):
    write_photos(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "bird").mkdir()
    with pytest.raises(ValueError, match="train has no image of the class bird"):
        open_photos(tmp_path)
