"""The arrows between packages: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "supernet/space.py": set(),
    "supernet/elastic.py": set(),
    "supernet/model.py": {"supernet.elastic", "supernet.space"},
    "supernet/sampling.py": {"supernet.space"},
    "supernet/distillation.py": set(),
    "supernet/training.py": {
        "supernet",
        "supernet.distillation",
        "supernet.export",
        "supernet.model",
        "supernet.sampling",
        "supernet.space",
    },
    "supernet/export.py": {"supernet.model", "supernet.space"},
}
PACKAGES = {
    "ofa": {"ofa", "supernet"},
    "hat": {"hat", "supernet"},
    "predictors": {"predictors", "supernet"},
    "supernet": {"supernet"},
    "recipes": {"recipes", "ofa", "hat", "predictors", "supernet"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def ours(path):
    return {name for name in imported(path) if name.partition(".")[0] in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package):
    for path in (ROOT / package).glob("**/*.py"):
        assert {name.partition(".")[0] for name in ours(path)} <= PACKAGES[package], path


@pytest.mark.parametrize("file", ALLOWED)
def test_core_modules_import_only_what_they_may(file):
    assert ours(ROOT / file) <= ALLOWED[file]


def test_the_help_of_the_command_is_cheap():
    code = "import sys; from recipes.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
