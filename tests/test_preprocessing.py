"""The preprocessing that an exported network states is the one that its data had."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import ofa
from ofa.preprocessing import Preprocessing, preprocess_code
from ofa.timm import to_timm


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of many sizes, grey and in colour."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i, size in enumerate([(40, 61), (50, 33), (37, 37), (32, 32), (100, 20), (9, 14)]):
                shape = size if i % 2 else (*size, 3)
                small = rng.integers(0, 256, shape, np.uint8)
                Image.fromarray(small).resize(size).save(root / part / name / f"{i}.png")
    return root


def images(root, channels, options):
    normalized = {"mean": [0.5] * channels, "std": [0.2] * channels}
    return ofa.ImageData("folder", root=str(root), holdout=2, image_size=32, channels=channels, **normalized, **options)


def network(data, resolution):
    space = ofa.mobilenet_v3_space(depth=[1], kernel_size=[3], expand_ratio=[3], resolution=[resolution])
    channels = data.input_spec["shape"][0]
    net = ofa.MobileNetV3(space, num_classes=2, in_channels=channels, width_mult=0.2, stem_stride=1).extract().eval()
    net.input_spec = dict(data.input_spec)
    return net


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [24, 32, 40])
@pytest.mark.parametrize(
    "options", [{}, {"scale": (0.5, 1.0)}, {"fit": "squeeze"}, {"fit": "pad", "background": (9, 90, 200)}]
)
def test_the_code_of_a_readme_makes_the_inputs_that_the_network_had(root, channels, resolution, options):
    data = images(root, channels, options)
    net, names = network(data, resolution), {}
    exec("import numpy as np\nfrom PIL import Image, ImageOps\n", names)
    exec(preprocess_code(Preprocessing.of(net.input_spec, channels, resolution)), names)
    (expected,) = net.prepare((torch.stack([image for image, _ in data.test]),))
    found = np.concatenate([names["preprocess"](path) for path, _ in data.test.source.samples])
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"scale": (0.5, 1.0)}, {"fit": "squeeze"}])
def test_timms_transform_makes_the_inputs_that_the_network_had(root, channels, options):
    data = images(root, channels, options)
    config = resolve_model_data_config(to_timm(network(data, 32)))
    transform = create_transform(**config)
    for (expected, _), (path, _) in zip(data.test, data.test.source.samples):
        image = Image.open(path).convert("RGB" if channels == 3 else "L")
        torch.testing.assert_close(transform(image), expected, atol=2e-6, rtol=0)


def test_what_a_network_does_not_record_is_said_to_be_assumed():
    p = Preprocessing.of({"shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "classes": 10}, 3, 32)
    facts = p.to_dict()
    assert {facts[name] for name in ("fit", "crop_pct", "interpolation", "background")} == {None}
    assert facts["mean"] == (0.5, 0.5, 0.5) and "resize" not in facts
    unsure = "does not record fit, interpolation, background, crop_pct"
    assert any(unsure in step for step in facts["steps"]) and unsure in preprocess_code(p)
    assert Preprocessing.of({}, 1, 28).mean is None


def test_an_unknown_fit_is_named():
    with pytest.raises(ValueError, match="fit = 'stretch' is not one of crop, squeeze, pad"):
        Preprocessing.of({"fit": "stretch"}, 3, 32)
