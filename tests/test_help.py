"""Help and refusals of the command: what they say, and that they come before torch is imported."""

import subprocess
import sys

import pytest

from recipes import VERBS
from recipes.recipes import shipped, summary

RUN = """
import sys
from recipes.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code or 0
else:
    status = 0
print("torch was imported" if "torch" in sys.modules else "torch was not imported")
sys.exit(status)
"""


def command(*arguments):
    return subprocess.run([sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """A folder whose description says that it is a supernet."""
    folder = tmp_path_factory.mktemp("supernet")
    (folder / "network.json").write_text(
        '{"format": 1, "family": "MobileNetV3", "arguments": {}, "space": {}, "config": null, "input_spec": {}}'
    )
    return folder


REFUSED = {
    "a misspelt verb": ("specialise", "did you mean specialize?", 2),
    "a misspelt device": (
        "specialize --supernet {supernet} --device onnxrutime --max-latency 1 --out {new}",
        "did you mean onnxruntime?",
        1,
    ),
    "a folder that does not exist": (
        "specialize --supernet {new} --device onnxruntime --max-latency 1 --out {new}",
        "does not hold a saved network",
        1,
    ),
    "an output folder that exists": (
        "specialize --supernet {supernet} --device onnxruntime --max-latency 1 --out {taken}",
        "already exists",
        1,
    ),
    "a missing budget": ("specialize --supernet {supernet} --device onnxruntime --out {new}", "give --max-latency", 1),
    "a misspelt option": ("specialize --max-latncy 1", "did you mean --max-latency?", 2),
    "an abbreviated option": ("specialize --max-lat 1", "--max-lat is not an option of supernet specialize", 2),
    "a misspelt option of fit": ("fit --confg ofa/digits", "did you mean --config?", 2),
    "a misspelt key": ("fit --config ofa/digits --model.clp_norm 1", "did you mean --model.clip_norm?", 2),
    "a misspelt recipe": ("fit --config ofa/digit", "did you mean ofa/digits?", 1),
    "fit without a recipe": ("fit", "supernet fit --config ofa/digits", 2),
    "another spelling of an option": ("fit --config ofa/digits --scale_phases 1", "did you mean --scale-phases?", 2),
    "a device to measure": ("measure --supernet {supernet} --device tourch", "did you mean torch?", 1),
    "a format": ("export --subnet {supernet} --out {new} --format onxn", "'onxn' is not one of onnx", 1),
    "a split": ("evaluate --subnet {supernet} --split holdout", "'holdout' is neither held-out nor test", 1),
    "a folder to evaluate": ("evaluate --subnet {new}", "does not hold a saved network", 1),
    "a file of data": ("bleu --subnet {supernet} --architecture largest --data {new}", "this file does not exist", 1),
}


@pytest.mark.parametrize(("line", "reason", "status"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_before_torch_is_imported(line, reason, status, supernet, tmp_path):
    (tmp_path / "taken").mkdir()
    places = {"supernet": supernet, "new": tmp_path / "new", "taken": tmp_path / "taken"}
    done = command(*(part.format(**places) for part in line.split()))
    assert reason in done.stderr and "torch was not imported" in done.stdout and done.returncode == status
    assert "Traceback" not in done.stderr and not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_spells_options_with_hyphens_and_imports_no_torch(verb):
    done = command(verb, "--help")
    assert done.returncode == 0 and "torch was not imported" in done.stdout and "usage: supernet " in done.stdout
    options = [word for word in done.stdout.split() if word.startswith("--")]
    assert not [option for option in options if "_" in option.partition(".")[0]]


def test_the_help_of_fit_starts_with_the_recipes_and_lists_what_they_name():
    done = command("fit", "--help")
    assert done.returncode == 0 and "torch was not imported" in done.stdout
    text = done.stdout
    assert text.index("Shipped recipes") < text.index("Keys that matter") < text.index("Keys of a phase")
    for name in (*shipped(), "ofa.ImageData", "hat.ParallelText", "ofa.MobileNetV3", "hat.Transformer", "torch.optim"):
        assert name in text
    for key in ("clip_norm", "warmup_lr", "teacher", "--scale-phases", "--ckpt_path auto"):
        assert key in text


def test_recipes_are_listed_and_copied(tmp_path):
    listed = command("recipes").stdout
    assert all(name in listed and summary(path) in listed for name, path in shipped().items())
    mine = tmp_path / "my.yaml"
    assert command("recipes", "copy", "ofa/digits", mine).returncode == 0
    assert mine.read_text() == shipped()["ofa/digits"].read_text()
    again = command("recipes", "copy", "ofa/digits", mine)
    assert again.returncode == 1 and "already exists" in again.stderr
