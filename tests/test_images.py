import io
import struct
import zlib

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image, ImageOps
from torchvision import transforms as v1

from ofa.images import TURNS, as_shown, suffixes, to_picture, transforms

QUARTERS = np.zeros((24, 40, 3), np.uint8)
QUARTERS[:12, :20], QUARTERS[:12, 20:], QUARTERS[12:, :20] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
BACKGROUND = (9, 99, 199)


def noise(height, width, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind, options", [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {})])
def test_an_image_is_shown_upright(kind, options, orientation):
    undone = {6: 8, 8: 6}.get(orientation, orientation)
    upright, tag = Image.fromarray(QUARTERS), Image.Exif()
    tag[0x0112] = orientation
    stored = upright if orientation == 1 else upright.transpose(TURNS[undone])
    shown = np.asarray(as_shown(saved(stored, kind, exif=tag, **options), "RGB")).astype(int)
    assert shown.shape == QUARTERS.shape and np.abs(shown - QUARTERS).mean() < (8 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x4d\0\0"]
)
def test_an_image_with_damaged_exif_data_is_shown_as_it_is_stored(exif):
    shown = as_shown(saved(Image.fromarray(QUARTERS), "PNG", exif=exif), "RGB")
    assert (np.asarray(shown) == QUARTERS).all()


def drawing(mode):
    """The left half opaque black, the right half transparent."""
    pixels = np.zeros((4, 8, 4), np.uint8)
    pixels[:, :4, 3] = 255
    image = Image.fromarray(pixels)
    return (
        image.quantize(4) if mode == "P" else image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    )


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P"])
def test_a_transparent_image_lies_on_the_background(mode):
    shown = np.asarray(as_shown(drawing(mode), "RGB", BACKGROUND))
    assert (shown[:, :4] == 0).all() and (shown[:, 4:] == BACKGROUND).all()
    assert (np.asarray(as_shown(drawing(mode), "L"))[:, 4:] == 255).all()


@pytest.mark.parametrize(
    "kind, options", [("PNG", {}), ("GIF", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("TGA", {})]
)
def test_transparency_is_read_from_every_format_that_has_it(kind, options):
    shown = np.asarray(as_shown(saved(drawing("RGBA"), kind, **options), "RGB", BACKGROUND))
    assert (shown[:, :4] == 0).all() and (shown[:, 4:] == BACKGROUND).all()


@pytest.mark.parametrize(
    "image, key",
    [
        (Image.new("L", (2, 2), 7), 7),
        (Image.new("1", (2, 2), 0), 0),
        (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (Image.new("I;16", (2, 2), 300), 300),
        (Image.new("P", (2, 2), 0), 0),
        (Image.new("P", (2, 2), 1), bytes([255, 0])),
    ],
)
def test_a_colour_or_a_palette_entry_may_be_the_transparent_one(image, key):
    if image.mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    shown = as_shown(saved(image, "PNG", transparency=key), "RGB", BACKGROUND)
    assert (np.asarray(shown) == BACKGROUND).all()


def test_half_transparent_pixels_mix_with_the_background():
    shown = as_shown(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "RGB")
    assert np.abs(np.asarray(shown).astype(int) - 127).max() <= 1


def test_opaque_images_keep_their_pixels():
    image = noise(9, 7)
    assert (np.asarray(as_shown(image.convert("RGBA"), "RGB")) == np.asarray(image)).all()


@pytest.mark.parametrize(
    "image",
    [
        Image.new("1", (2, 2), 1),
        Image.new("L", (2, 2), 255),
        Image.new("P", (2, 2), 0),
        Image.new("CMYK", (2, 2), 0),
        Image.new("RGBX", (2, 2), (255, 255, 255, 0)),
        Image.new("YCbCr", (2, 2), (255, 128, 128)),
        Image.new("HSV", (2, 2), (0, 0, 255)),
        Image.new("LAB", (2, 2), (255, 128, 128)),
        Image.new("I;16", (2, 2), 65535),
        Image.new("I", (2, 2), 65535),
    ],
    ids=lambda image: image.mode,
)
def test_white_is_white_in_every_mode(image):
    if image.mode == "P":
        image.putpalette([255, 255, 255])
    assert np.asarray(as_shown(image, "RGB")).min() >= 254 and np.asarray(as_shown(image, "L")).min() >= 254


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_the_upper_8_of_16_bits_are_shown(kind):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    shown = as_shown(saved(Image.fromarray(ramp), kind), "L")
    assert (np.asarray(shown) == ramp >> 8).all()


def test_colour_of_16_bits_is_scaled():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header, pixels = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"\0" + struct.pack(">3H", 65535, 32768, 256)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    assert np.asarray(as_shown(Image.open(io.BytesIO(file)), "RGB"))[0, 0].tolist() == [255, 128, 1]


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 1 << 20, np.int32)])
def test_pixels_of_32_bits_are_refused(values):
    with pytest.raises(ValueError, match="save it with 8 or 16"):
        as_shown(saved(Image.fromarray(values), "TIFF"), "RGB")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_shown(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    options = {"lossless": True} if kind == "WEBP" else {}
    shown = as_shown(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options), "RGB")
    assert np.asarray(shown).min() == 255


def test_what_data_sets_hand_over_becomes_a_picture():
    pixels = np.array(noise(4, 6))
    grey = pixels[..., 0]
    for image in (pixels, torch.from_numpy(pixels).movedim(-1, 0), Image.fromarray(pixels)):
        assert (np.asarray(to_picture(image)) == pixels).all()
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert (np.asarray(to_picture(image)) == grey).all()
    with pytest.raises(ValueError, match="float32"):
        to_picture(torch.rand(3, 4, 4))


def test_the_suffixes_are_those_that_pillow_decodes():
    assert {".jpg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".avif", ".jp2", ".tif", ".bmp"} <= suffixes()
    assert not {".pdf", ".eps", ".h5", ".mpg", ".txt"} & suffixes()


# ------------------------------------------------------------------------------------------------- transforms

SIZES = [(48, 48), (30, 77), (77, 30), (100, 61), (20, 21), (13, 99)]


def by_timm(size, **options):
    return timm.data.create_transform(
        (3, size, size), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1), **options
    )


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize(
    "fit, scale, theirs",
    [
        ("crop", None, {"crop_pct": 1.0, "crop_mode": "center"}),
        ("crop", (0.1, 1), {"crop_pct": 0.875, "crop_mode": "center"}),
        ("squeeze", None, {"crop_pct": 1.0, "crop_mode": "squash"}),
        ("squeeze", (0.1, 1), {"crop_pct": 1.0, "crop_mode": "squash"}),
    ],
)
def test_timm_gives_the_images_of_evaluation(fit, scale, theirs, height, width):
    image = noise(height, width)
    _, plain = transforms(45, fit, BACKGROUND, scale=scale)
    assert torch.equal(plain(image), (by_timm(45, **theirs)(image) * 255).round().to(torch.uint8))


@pytest.mark.parametrize("height, width", SIZES)
def test_torchvision_gives_the_images_of_evaluation(height, width):
    image = noise(height, width)
    _, plain = transforms(45, "crop", BACKGROUND)
    assert torch.equal(plain(image), v1.Compose([v1.Resize(45), v1.CenterCrop(45), v1.PILToTensor()])(image))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("height, width", SIZES)
def test_pillow_gives_the_images_of_evaluation(height, width, mode):
    image = noise(height, width, mode)
    colour = BACKGROUND if mode == "RGB" else Image.new("RGB", (1, 1), BACKGROUND).convert("L").getpixel((0, 0))
    short = min(image.size)
    resized = image.resize([45 if side == short else int(45 * side / short) for side in image.size], Image.BILINEAR)
    left, top = (round((side - 45) / 2) for side in resized.size)
    expected = {
        "crop": resized.crop((left, top, left + 45, top + 45)),
        "squeeze": image.resize((45, 45), Image.BILINEAR),
        "pad": ImageOps.pad(image, (45, 45), Image.BILINEAR, color=colour),
    }
    for fit, theirs in expected.items():
        _, plain = transforms(45, fit, BACKGROUND)
        assert (plain(image).movedim(0, -1).squeeze(-1).numpy() == np.asarray(theirs)).all(), fit


@pytest.mark.parametrize("fit", ["crop", "squeeze", "pad"])
@pytest.mark.parametrize("height, width", [*SIZES, (1, 200), (200, 1)])
def test_random_crops_have_the_size_and_stay_inside(fit, height, width):
    augment, _ = transforms(16, fit, (255, 0, 0), scale=(0.3, 1.0), flip=True)
    torch.manual_seed(0)
    images = [augment(Image.new("RGB", (width, height), (0, 255, 0))) for _ in range(8)]
    assert {tuple(image.shape) for image in images} == {(3, 16, 16)}
    assert fit == "pad" or all((image == torch.tensor([0, 255, 0])[:, None, None]).all() for image in images)


def test_a_random_crop_of_the_whole_is_the_squeezed_image():
    image = noise(30, 70)
    augment, plain = transforms(16, "squeeze", BACKGROUND, scale=(0.999, 1.0))
    torch.manual_seed(0)
    drawn = torch.stack([augment(image) for _ in range(64)]).float()
    assert (drawn - plain(image).float()).abs().mean(dim=(1, 2, 3)).min() < 8


@pytest.mark.parametrize(
    "options", [{"fit": "stretch"}, {"fit": "pad", "image_size": None}, {"scale": (0.1, 1), "image_size": None}]
)
def test_a_fit_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        transforms(**{"image_size": 8, "fit": "crop", "background": BACKGROUND} | options)
