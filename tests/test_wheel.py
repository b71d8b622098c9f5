"""The wheel, installed in an environment of its own, works from another folder."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out, clean = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "clean"
    # What an earlier build left in build/ would be packed again.
    shutil.copytree(ROOT, clean, ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, clean], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_ships_the_recipes_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"recipes/ofa/digits.yaml", "recipes/ofa/fashion_mnist.yaml"} <= set(names)
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"supernet", "ofa", "hat", "predictors", "recipes"}
    modules = {str(path.relative_to(ROOT)) for top in tops for path in (ROOT / top).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_it_fits_the_digits_in_an_empty_environment_from_another_folder(wheel):
    # Gigabytes, which pytest would keep for three sessions: a folder that goes away.
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", "--no-compile", wheel], check=True)
        done = subprocess.run(
            [
                environment / "bin" / "supernet",
                *("fit", "--config", "ofa/digits", "--scale-phases", "0.01"),
                *("--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"),
            ],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert (Path(folder) / "runs" / "digits" / "supernet" / "network.safetensors").is_file()
