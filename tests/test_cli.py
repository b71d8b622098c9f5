import re
import subprocess
import sys
from pathlib import Path

import pytest

import ofa  # noqa: F401 (the family of the networks loaded here)
from predictors.store import Store
from recipes.cli import RECIPES, main, recipe_path

SMALL = ["--scale-phases", "0.01", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]


def supernet(*arguments, cwd=None):
    code = "from recipes.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A digits run of one step a phase, made from another folder."""
    folder = tmp_path_factory.mktemp("fit")
    done = supernet("fit", "--config", "ofa/digits", "--run", "run", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_run_is_one_folder(run):
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoints", "config.yaml", "logs", "supernet"}
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_runs_config_is_a_recipe(run, tmp_path):
    done = supernet(
        "fit", "--config", str(run / "config.yaml"), "--run", str(tmp_path), "--trainer.fast_dev_run", "true"
    )
    assert done.returncode == 0, done.stderr


def test_a_run_says_nothing_of_third_party_deprecations(tmp_path):
    done = supernet("fit", "--config", "ofa/digits", "--run", str(tmp_path), "--trainer.fast_dev_run", "true")
    assert "deprecated" not in done.stderr and "eval mode" not in done.stderr


def test_a_taken_folder_is_not_overwritten_unasked(run):
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    done = supernet("fit", "--config", "ofa/digits", "--run", str(run), *SMALL)
    assert done.returncode == 1 and "--overwrite" in done.stderr and "Traceback" not in done.stderr
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_resuming_a_file_that_is_not_there_is_an_error(tmp_path):
    options = ["--run", str(tmp_path / "none"), "--ckpt_path", str(tmp_path / "absent.ckpt")]
    done = supernet("fit", "--config", "ofa/digits", *options, *SMALL)
    assert done.returncode == 1 and "this file does not exist" in done.stderr and not (tmp_path / "none").exists()


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_what_is_validated_is_the_runs_checkpoint(run, tmp_path, verb):
    done = supernet(verb, "--config", "ofa/digits", "--run", str(tmp_path))
    assert done.returncode == 1 and "does not exist" in done.stderr
    done = supernet(verb, "--config", "ofa/digits", "--run", str(run), "--scale-phases", "0.01")
    assert done.returncode == 0 and str(run / "checkpoints" / "last.ckpt") in done.stderr


def test_another_runs_checkpoint_does_not_replace_a_run_unasked(run, tmp_path):
    other = tmp_path / "other.ckpt"
    other.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    done = supernet("fit", "--config", "ofa/digits", "--run", str(run), "--ckpt_path", str(other), *SMALL)
    assert done.returncode == 1 and "--overwrite" in done.stderr


STOPS = """
from supernet.training import SupernetTask
def stop(*arguments):
    raise ValueError("stopped in the first step")
SupernetTask.training_step = stop
from recipes.cli import main
main()
"""


def test_overwriting_leaves_nothing_that_could_be_resumed(tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_bytes(b"an earlier run")
    arguments = ["fit", "--config", "ofa/digits", "--run", str(tmp_path), "--overwrite", "true", *SMALL]
    done = subprocess.run([sys.executable, "-c", STOPS, *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "stopped in the first step" in done.stderr
    assert not last.exists() and not (tmp_path / "supernet").exists()


def test_a_run_that_is_refused_overwrites_nothing(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "logs" not in path.parts}
    for more in (
        ("--overwrite", "true", "--trainer.max_epochs", "3"),
        ("--overwrite", "true", "--model.supernet.num_classes", "7"),
        ("--ckpt_path", "last", "--model.clip_norm", "7"),
    ):
        done = supernet("fit", "--config", "ofa/digits", "--run", str(run), *SMALL, *more)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert all(path.read_bytes() == content for path, content in before.items()), more


def test_a_recipe_of_the_users_in_the_runs_folder_is_not_overwritten_unasked(tmp_path):
    mine = (RECIPES / "ofa" / "digits.yaml").read_text()
    (tmp_path / "config.yaml").write_text(mine)
    done = supernet("fit", "--config", str(tmp_path / "config.yaml"), "--run", str(tmp_path), *SMALL)
    assert done.returncode == 1 and (tmp_path / "config.yaml").read_text() == mine


def test_a_misspelt_key_is_an_error(tmp_path):
    recipe = tmp_path / "x.yaml"
    recipe.write_text((RECIPES / "ofa" / "digits.yaml").read_text().replace("padding:", "pading:"))
    done = supernet("fit", "--config", str(recipe), "--run", str(tmp_path / "run"))
    assert done.returncode != 0 and "pading" in done.stderr and not (tmp_path / "run").exists()


def test_evaluate_reads_the_data_from_the_supernets_folder(run, tmp_path, capsys):
    from supernet.saving import load, read_description, save

    network = load(run / "supernet")
    data = read_description(run / "supernet")["data"]
    save(network.extract(network.space.smallest()), tmp_path / "subnet", data=data)
    main(["evaluate", "--subnet", str(tmp_path / "subnet")])
    assert "accuracy" in capsys.readouterr().out


def test_evaluate_refuses_a_supernet_and_other_classes(run, tmp_path, capsys):
    from supernet.saving import load, save

    with pytest.raises(SystemExit):
        main(["evaluate", "--subnet", str(run / "supernet")])
    assert "is a supernet" in capsys.readouterr().err
    network = load(run / "supernet")
    save(network.extract(), tmp_path / "subnet")
    (tmp_path / "data.yaml").write_text(
        "{class_path: ofa.ImageData, init_args: {channels: 3, mean: [0, 0, 0], std: [1, 1, 1]}}"
    )
    with pytest.raises(SystemExit):
        main(["evaluate", "--subnet", str(tmp_path / "subnet"), "--data", str(tmp_path / "data.yaml")])
    assert "in_channels = 1, the data have 3" in capsys.readouterr().err
    for text, message in (("{class_path: [", "is not YAML"), ("{class_path: ofa.NoSuch}", "NoSuch")):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(SystemExit):
            main(["evaluate", "--subnet", str(tmp_path / "subnet"), "--data", str(tmp_path / "data.yaml")])
        assert message in capsys.readouterr().err


def test_export_writes_checked_files_once(run, tmp_path, capsys):
    from supernet.saving import load, save

    network = load(run / "supernet")
    save(network.extract(network.space.smallest()), tmp_path / "subnet")
    arguments = ["export", "--subnet", str(tmp_path / "subnet"), "--out", str(tmp_path / "files"), "--format", "timm"]
    main(arguments)
    assert (tmp_path / "files" / "timm" / "build.py").is_file()
    with pytest.raises(SystemExit):
        main(arguments)
    assert "already exists" in capsys.readouterr().err


def test_records_are_written_of_a_store_that_is_there(tmp_path, capsys):
    with Store(tmp_path / "store.sqlite") as store:
        store.add("accuracy", ("network", "weights", "data"), {"accuracy": 0.5, "loss": 1.0})
    options = ["--table", "accuracy", "--out", str(tmp_path / "accuracy.csv")]
    main(["records", "--store", str(tmp_path / "store.sqlite"), *options])
    assert (tmp_path / "accuracy.csv").read_text().splitlines()[1] == "network,weights,data,0.5,1.0"
    for store, message in (("store.sqlite", "already exists"), ("absent.sqlite", "is not there")):
        with pytest.raises(SystemExit):
            main(["records", "--store", str(tmp_path / store), *options])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "absent.sqlite").exists()


def test_unknown_names_are_told_what_there_is(capsys):
    with pytest.raises(ValueError, match="Shipped: .*ofa/digits"):
        recipe_path("ofa/nothing")
    with pytest.raises(SystemExit):
        main(["conquer"])
    assert "'conquer' is not a command" in capsys.readouterr().err


def test_shipped_recipes_are_found_by_name():
    assert Path(recipe_path("ofa/digits")).is_file()


def test_a_fault_of_the_data_is_told_without_the_parsers_wrapping(tmp_path):
    done = supernet("fit", "--config", "ofa/digits", "--run", str(tmp_path), "--data.init_args.holdout", "5000")
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    why = "holdout: 5000 of 1437 images cannot be held out: at least 1, and at most 1427, as each class keeps an image"
    assert lines == [f"supernet: error: {why}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.init_args.holdot", "5"), "did you mean --data.init_args.holdout?"),
        (("--model.optimizer.init_args.weight_decy", "5"), "did you mean weight_decay?"),
        (("--model.phases", "[{name: a, lr: x, epochs: 2}]"), "Expected a <class 'float'>. Got value: x"),
        (("--nothing", "3"), "--nothing is not an option of supernet fit"),
    ],
)
def test_options_that_cannot_be_parsed_are_told_in_few_lines(options, message):
    done = supernet("fit", "--config", "ofa/digits", *options)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) <= 6 and "supernet fit --help lists the options" in done.stderr


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    options = ("--run", str(tmp_path / "run"), "--ckpt_path", str(tmp_path / "half.ckpt"))
    done = supernet("fit", "--config", "ofa/digits", *options, *SMALL)
    assert done.returncode == 1 and "half.ckpt cannot be read as a checkpoint" in done.stderr


def test_an_interrupted_verb_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("recipes.cli.run", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["specialize"])
    assert stopped.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_a_log_has_a_line_per_epoch(tmp_path):
    done = supernet("fit", "--config", "ofa/digits", "--run", str(tmp_path / "run"), *SMALL)
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    for line, phase in zip(lines, ("largest", "kernel", "depth", "expand"), strict=True):
        assert re.match(rf"epoch \d of 4 \(phase {phase}, \d+ s, about \d+ (s|min) left\): lr ", line), line
    assert "about 0 s left" in lines[-1]
    assert done.stdout.index("reading the data: ofa.ImageData, digits") < done.stdout.index("epoch 1")


def test_a_copied_recipe_is_trained(tmp_path):
    assert supernet("recipes", "copy", "ofa/digits", "my.yaml", cwd=tmp_path).returncode == 0
    done = supernet("fit", "--config", "my.yaml", "--trainer.fast_dev_run", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
