"""Help and refusals of the command: what they say, and that they come before torch is imported."""

import subprocess
import sys

import pytest

from recipes import VERBS
from recipes.checks import read_options
from recipes.keys import wrong_keys
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
    "a recipe without --config": ("fit ofa/digits", "did you mean --config ofa/digits?", 2),
    "--config without a recipe": ("fit --config", "--config needs a recipe", 2),
    "a misspelt key of the data": ("fit --config ofa/digits --data.init_args.holdot 5", "init_args.holdout?", 2),
    "a misspelt key of the supernet": (
        "fit --config ofa/digits --model.supernet.width_mul 1",
        "init_args.width_mult?",
        2,
    ),
    "a misspelt key of the space": (
        "fit --config ofa/digits --model.supernet.init_args.space.init_args.resolutio [16]",
        "space.init_args.resolution?",
        2,
    ),
    "an abbreviated key": ("fit --config ofa/digits --validation.rando 5", "did you mean --validation.random?", 2),
    "an abbreviated key of Lightning": ("fit --config ofa/digits --trainer.max_ti 1", "--trainer.max_time?", 2),
    "a misspelt key of a recipe": ("fit --config {recipe}", "did you mean model.phases[0].warmup_epochs?", 2),
    "a recipe that is not YAML": ("fit --config {broken}", "is not YAML", 1),
    "a missing file of data of fit": ("fit --config ofa/digits --data {new}.yaml", "this file does not exist", 1),
    "a missing checkpoint": ("fit --config ofa/digits --ckpt-path {new}", "this file does not exist", 1),
    "a run without a checkpoint": ("validate --config ofa/digits --run {new}", "last.ckpt does not exist", 1),
    "a run folder that is taken": ("fit --config ofa/digits --run {run}", "--overwrite true", 1),
    "a misspelt word after recipes": ("recipes coppy ofa/digits {new}", "did you mean copy?", 2),
    "a copy without a name": ("recipes copy ofa/digits", "name a recipe and a file", 1),
    "a device to measure": ("measure --supernet {supernet} --device tourch", "did you mean torch?", 1),
    "a format": ("export --subnet {supernet} --out {new} --format onxn", "'onxn' is not one of onnx", 1),
    "a split": ("evaluate --subnet {supernet} --split holdout", "'holdout' is neither held-out nor test", 1),
    "a folder to evaluate": ("evaluate --subnet {new}", "does not hold a saved network", 1),
    "a file of a config": ("evaluate --subnet {supernet} --architecture {new}", "the name of a file", 1),
    "a network to compare with": ("bleu --subnet {supernet} --against {new}", "does not hold a saved network", 1),
    "an export that exists": ("export --subnet {supernet} --out {exports}", "subnet.onnx already exists", 1),
    "a file of data": ("bleu --subnet {supernet} --architecture largest --data {new}", "this file does not exist", 1),
}


@pytest.mark.parametrize(("line", "reason", "status"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_before_torch_is_imported(line, reason, status, supernet, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "run" / "supernet").mkdir(parents=True)
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "subnet.onnx").touch()
    text = shipped()["ofa/digits"].read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("warmup_epochs", "warmup_epoch"))
    (tmp_path / "broken.yaml").write_text("model: [")
    places = {name: tmp_path / name for name in ("new", "taken", "run", "exports")} | {"supernet": supernet}
    places |= {name: tmp_path / f"{name}.yaml" for name in ("recipe", "broken")}
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
    for key in ("clip_norm", "warmup_lr", "teacher", "--scale-phases", "--ckpt-path auto"):
        assert key in text
    for line in ("(default: -100)", "(default: runs/supernet)", "(default: 0.1)", "(default: cosine)"):
        assert line in text


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_the_help_of_an_evaluation_is_short_and_imports_no_torch(verb):
    done = command(verb, "--help")
    assert done.returncode == 0 and "torch was not imported" in done.stdout
    assert "--ckpt-path" in done.stdout and len(done.stdout.splitlines()) < 30


@pytest.mark.parametrize("recipe", shipped().values(), ids=lambda path: path.stem)
def test_a_recipe_opens_with_a_line_that_sums_it_up(recipe):
    first = recipe.read_text().partition("\n")[0]
    assert first.startswith("# ") and first.endswith(".") and len(first) <= 92


@pytest.mark.parametrize("recipe", shipped(), ids=lambda name: name)
def test_no_key_of_a_shipped_recipe_is_taken_for_misspelt(recipe):
    assert not list(wrong_keys([("config", recipe)]))


@pytest.mark.parametrize(
    "options",
    [
        "--scale_phases 0.1 --ckpt_path auto --checkpoint-every 3",
        "--data.batch_size 4 --data.init_args.padding=2 --model.phases+=[]",
        "--data my.Images --data.anything 3",
        "--data __main__.Images --data.anything 3",
        "--model.optimizer torch.optim.AdamW --model.optimizer.weight_decay 0.01",
        "--trainer.callbacks+=DeviceStatsMonitor --trainer.callbacks.cpu_stats true --print-config=skip_default",
        "--model.supernet my.family --model.supernet.whatever 3 --config ofa/digits",
        "--config ofa/digits --model.supernet hat.Transformer --model.supernet.init_args.vocab_size 300",
        "--config ofa/digits --data hat.ParallelText --data.init_args.max_tokens 300",
    ],
)
def test_options_that_exist_are_taken(options):
    given = read_options("fit", options.split())
    assert not list(wrong_keys(given))


def test_recipes_are_listed_and_copied(tmp_path):
    listed = command("recipes").stdout
    assert all(name in listed and summary(path) in listed for name, path in shipped().items())
    mine = tmp_path / "my.yaml"
    assert command("recipes", "copy", "ofa/digits", mine).returncode == 0
    assert mine.read_text() == shipped()["ofa/digits"].read_text()
    again = command("recipes", "copy", "ofa/digits", mine)
    assert again.returncode == 1 and "already exists" in again.stderr
