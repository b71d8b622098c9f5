"""The README and the documentation: their commands and their Python run as they stand, on little data."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
# What makes a command of the documentation short; the budget must hold for networks that were hardly trained.
SHORTER = {
    "fit": "--scale-phases 0.01 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1",
    "measure": "--samples 5",
    "specialize": "--latency-samples 5 --accuracy-samples 5 --finalists 1 --population 8 --generations 1",
}
BUDGET = ("--max-latency 0.25", "--max-latency 50")


def commands(text):
    """The lines of code blocks that call the command, without comments."""
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("supernet "):
                yield line.partition("#")[0].strip()


def run(line, folder):
    arguments = shlex.split(line)[1:] + shlex.split(SHORTER.get(shlex.split(line)[1], ""))
    code = "from recipes.cli import main; main()"
    options = {"cwd": folder, "env": ENVIRONMENT, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code, *arguments], **options)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def test_the_readme_is_a_page_and_a_half():
    assert len(README.splitlines()) <= 150


def test_the_commands_of_the_readme_and_of_the_quickstart_run_in_order(tmp_path):
    seen = []
    for line in [*commands(README), *commands(QUICKSTART)]:
        line = line.replace(*BUDGET)
        if line in seen or "my_recipe.yaml" in line and "fit" in line:
            continue  # the recipe is for images of the reader's
        seen.append(line)
        run(line, tmp_path)
    assert (tmp_path / "runs/digits/fast/report.html").is_file() and (tmp_path / "my_recipe.yaml").is_file()
    assert {"subnet.onnx", "timm"} <= {path.name for path in (tmp_path / "runs/digits/files").iterdir()}
    assert len(seen) >= 7


def test_the_python_of_the_readme_runs(tmp_path):
    block = re.search(r"## In Python\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    few = 'Effort(5, 5, finalists=1, options={"population": 8, "generations": 1})'
    for long, short in (
        ("epochs=10", "epochs=1"),
        ("pl.Trainer(", "pl.Trainer(limit_train_batches=2, "),
        ("Effort(finalists=4)", few),
        ("latency_ms=5.0", "latency_ms=50.0"),
    ):
        assert long in block
        block = block.replace(long, short)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits/fast/subnet.onnx").is_file()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
