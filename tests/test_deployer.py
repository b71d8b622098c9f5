"""A deployer's walk: what someone does who has only an exported folder, by the code in its README.md."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import hat
import ofa
from hat.huggingface import to_huggingface
from hat.translation import translate
from recipes.export import export
from recipes.saved import read_section
from recipes.specialize import specialize
from supernet.evaluation import evaluate_network
from supernet.model import calibrate
from supernet.saving import save

OURS = ("supernet", "ofa", "hat", "predictors", "recipes")
MAY_IMPORT = {  # of the packages that load a network
    "onnxruntime": {"onnxruntime"},
    "openvino": {"openvino"},
    "executorch": {"executorch", "torch"},
    "timm": {"timm", "torch"},
    "transformers": {"transformers", "torch"},
}
QUICK = {"onnx": {"opset": 17}}  # which torch writes by its faster exporter
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(name + " is not needed here")

sys.meta_path.insert(0, Blocked())
"""


def walk(folder, runtime, then, **texts):
    """What a process prints as JSON that runs the code in a folder's README.md, changed by `texts`, and `then` code.

    It can import nothing of ours, and no runtime but the folder's.
    """
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    for old, new in texts.items():
        code = code.replace(old, new)
    others = set().union(*MAY_IMPORT.values()) - MAY_IMPORT[runtime]
    # torch looks whether other packages are there.
    blocked = {*OURS, *(() if "torch" in MAY_IMPORT[runtime] else others)}
    seen = f'assert not {blocked} & {{name.partition(".")[0] for name in sys.modules}}'
    script = "\n".join([BLOCK.format(blocked=blocked), code, "import json, sys", then, seen])
    # -I: neither the current folder nor PYTHON* variables can add a package to what is installed.
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=folder.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------- images

SHAPES = ("cross", "disc", "ring", "square")
COUNT = {"train": 160, "val": 200}


def picture(shape, rng):
    """A drawn shape, of a random size and aspect, on a light ground."""
    width, height = rng.integers(40, 90, 2).tolist()
    ground, colour = (tuple(rng.integers(*span, 3).tolist()) for span in ((150, 256), (0, 110)))
    image = Image.new("RGB", (width, height), ground)
    draw, side = ImageDraw.Draw(image), min(width, height) // 2
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if shape == "cross":
        draw.line(box, fill=colour, width=side // 4)
        draw.line((box[0], box[3], box[2], box[1]), fill=colour, width=side // 4)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=side // 5)
    else:
        {"disc": draw.ellipse, "square": draw.rectangle}[shape](box, fill=colour)
    return image


def write_picture(image, path, number):
    """A file of one of the kinds that people have."""
    kind = number % 4
    if kind == 0:
        image.save(path.with_suffix(".jpg"), quality=95)
    elif kind == 1:
        image.save(path.with_suffix(".png"))
    elif kind == 2:  # an icon: what is not dark is transparent
        image = image.convert("RGBA")
        image.putalpha(image.convert("L").point(lambda value: 255 * (value < 130)))
        image.save(path.with_suffix(".png"))
    else:  # a camera that was held upright
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), quality=95, exif=exif)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in COUNT.items():
        for number in range(count):
            shape = SHAPES[number // 4 % len(SHAPES)]
            (root / part / shape).mkdir(parents=True, exist_ok=True)
            write_picture(picture(shape, rng), root / part / shape / str(number), number)
    return root


@pytest.fixture(scope="module")
def classifier(pictures, tmp_path_factory):
    """The folder of a subnet that was trained for seconds, the accuracy and the classes that it gives, and the files.

    Its resolution is not the size of its images.
    """
    arguments = {"dataset": "folder", "root": str(pictures), "batch_size": 32, "holdout": 32, "calibration": 64}
    arguments |= {"image_size": 32}
    data = ofa.ImageData(**arguments)
    space = ofa.mobilenet_v3_space(depth=[1], kernel_size=[3], expand_ratio=[3], resolution=[24])
    torch.manual_seed(0)
    network = ofa.MobileNetV3(space, num_classes=4, width_mult=0.35, stem_stride=1, dropout=0.0)
    network.input_spec = dict(data.input_spec)
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    for _ in range(6):
        for images, labels in data.train_dataloader():
            loss = torch.nn.functional.cross_entropy(network(*network.prepare((images,))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    subnet = calibrate(network.extract().eval(), data.calibration_batches())
    section = {"class_path": "ofa.ImageData", "init_args": arguments}
    folder = save(subnet, tmp_path_factory.mktemp("classifier") / "subnet", data=section)
    with torch.inference_mode():
        logits = torch.cat([subnet(*subnet.prepare((images,))) for images, _ in data.test_dataloader()])
    names = [SHAPES[i] for i in logits.argmax(1)]
    accuracy = evaluate_network(subnet, data.test_dataloader())["accuracy"]
    return folder, accuracy, names, [path for path, _ in data.test.source.samples]


EXTRAS = pytest.mark.extras
IMAGE_FORMATS = [
    ("onnx", "onnxruntime"),
    ("timm", "timm"),
    pytest.param("openvino", "openvino", marks=EXTRAS),
    pytest.param("executorch", "executorch", marks=EXTRAS),
]


@pytest.mark.parametrize(("format", "runtime"), IMAGE_FORMATS)
def test_pictures_are_classified_by_the_folder_alone(classifier, tmp_path, format, runtime):
    folder, accuracy, names, paths = classifier
    assert accuracy > 0.5  # else all networks would agree
    written = export(str(folder), str(tmp_path / "files"), format=format, **QUICK.get(format, {}))[format]
    place = written if written.is_dir() else written.parent
    then = f"print(json.dumps([classify(path)[0] for path in {paths}]))"
    found = walk(place, runtime, then, **{"picture.jpg": paths[0]})
    assert np.mean([name == Path(path).parent.name for name, path in zip(found, paths)]) == pytest.approx(accuracy)
    assert found == names


@pytest.mark.slow
def test_the_folder_of_specialize_keeps_what_its_report_says(classifier, pictures, tmp_path, quick_device):
    folder, _, _, paths = classifier
    space = ofa.mobilenet_v3_space(depth=[1, 2], kernel_size=[3], expand_ratio=[3], resolution=[24, 32])
    supernet = ofa.MobileNetV3(space, num_classes=4, width_mult=0.35, stem_stride=1)
    save(supernet, tmp_path / "supernet", data=read_section(str(folder)))
    few = dict(latency_samples=10, accuracy_samples=10, finalists=2, population=20, generations=5)
    out = tmp_path / "best"
    report = specialize(str(tmp_path / "supernet"), quick_device("onnxruntime"), str(out), max_latency=50.0, **few)
    export(str(out), str(tmp_path / "files"), format="onnx,timm")
    then = f"print(json.dumps([classify(path)[0] for path in {paths}]))"
    for place, runtime in (
        (out, "onnxruntime"),
        (tmp_path / "files", "onnxruntime"),
        (tmp_path / "files/timm", "timm"),
    ):
        found = walk(place, runtime, then, **{"picture.jpg": paths[0]})
        accuracy = np.mean([name == Path(path).parent.name for name, path in zip(found, paths)])
        assert accuracy == pytest.approx(report.metrics["test"]["accuracy"], abs=1e-6)
        metadata = json.loads((place / "metadata.json").read_text())
        assert metadata["metric"]["value"] == pytest.approx(accuracy) and metadata["metric"]["n"] == len(paths)
        assert metadata["latency"]["ms"] == report.latency_ms and metadata["latency"]["cpu"]


# ------------------------------------------------------------------------------------------------------ text


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """The folder of a translation subnet that was trained for seconds, sentences, and their translations by it."""
    data = hat.ParallelText("numbers", vocab_size=300, max_tokens=2048, beam=3)
    space = hat.transformer_space(
        embed_dim=(32,), ffn_embed_dim=(64,), heads=(2,), encoder_layer_num=(2,), decoder_layer_num=(1,),
        arbitrary_ende_attn=(1,), conv_kernel_size=(3,),
    )  # fmt: skip
    torch.manual_seed(0)
    network = hat.Transformer(space, vocab_size=300, qkv_dim=32, max_positions=200, dropout=0.0)
    network.input_spec = dict(data.input_spec)
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    for source, previous, target in data.train_dataloader():
        loss = torch.nn.functional.cross_entropy(network(source, previous).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    subnet = network.extract().eval()
    folder = save(subnet, tmp_path_factory.mktemp("translator") / "subnet")
    texts = data.texts("test")[0][:50]
    return folder, texts, translate(to_huggingface(subnet), data.tokenizer, texts, 3, 0.6)


@pytest.mark.parametrize(
    ("format", "runtime"),
    [
        ("onnx", "onnxruntime"),
        pytest.param("openvino", "openvino", marks=EXTRAS),
        pytest.param("executorch", "executorch", marks=EXTRAS),
    ],
)
def test_sentences_are_translated_by_the_folder_alone(translator, tmp_path, format, runtime):
    folder, texts, translations = translator
    written = export(str(folder), str(tmp_path / "files"), format=format, **QUICK.get(format, {}))[format]
    found = walk(written, runtime, f"print(json.dumps(translator({texts})))")
    assert found == translations and len(set(found)) > 10


def test_sentences_are_translated_by_transformers_alone(translator, tmp_path, monkeypatch):
    folder, texts, translations = translator
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "home" / "modules"))
    written = export(str(folder), str(tmp_path / "files"), format="huggingface")["huggingface"]
    then = f"""
outputs = model.generate(**tokenizer({texts}, padding=True, return_tensors="pt"))
print(json.dumps(tokenizer.batch_decode(outputs, skip_special_tokens=True)))"""
    found = walk(written, "transformers", then)
    assert np.mean([a == b for a, b in zip(found, translations)]) > 0.9  # whose longest translation is shorter
