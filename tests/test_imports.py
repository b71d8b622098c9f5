"""The arrows between packages: who may import whom."""

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import recipes.devices
import recipes.saved

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "supernet/__init__.py": set(),
    "supernet/values.py": set(),
    "supernet/atomic.py": set(),
    "supernet/space.py": {"supernet.values"},
    "supernet/search.py": {"supernet.space", "supernet.values"},
    "supernet/sampling.py": {"supernet.space"},
    "supernet/phases.py": {"supernet.sampling", "supernet.space", "supernet.values"},
    "supernet/elastic.py": set(),
    "supernet/distillation.py": {"supernet.values"},
    "supernet/model.py": {"supernet.elastic", "supernet.space", "supernet.values"},
    "supernet/data.py": {"supernet.values"},
    "supernet/evaluation.py": {"supernet.model", "supernet.values"},
    "supernet/description.py": set(),
    "supernet/saving.py": {
        "supernet.atomic",
        "supernet.description",
        "supernet.model",
        "supernet.space",
        "supernet.values",
    },
    "supernet/metadata.py": {"supernet.model"},
    "supernet/export/__init__.py": {"supernet.metadata", "supernet.model"},
    "supernet/resuming.py": {"supernet.atomic", "supernet.description"},
    "supernet/callbacks.py": set(),
    "supernet/training.py": {
        "supernet.callbacks",
        "supernet.data",
        "supernet.distillation",
        "supernet.evaluation",
        "supernet.model",
        "supernet.phases",
        "supernet.resuming",
        "supernet.sampling",
        "supernet.saving",
        "supernet.space",
        "supernet.values",
    },
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


@pytest.mark.parametrize("arguments", [["--help"], ["specialize", "--help"], ["export", "--help"]])
def test_help_is_cheap(arguments):
    code = f"""
import sys
from recipes.cli import main
try:
    main({arguments})
except SystemExit:
    pass
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "usage" in done.stdout


def test_another_package_of_the_name_ofa_is_told(monkeypatch):
    stranger = types.ModuleType("ofa")
    stranger.__file__ = "site-packages/ofa/__init__.py"
    monkeypatch.setitem(sys.modules, "ofa", stranger)
    with pytest.raises(ImportError, match="another project's package `ofa`"):
        recipes.saved.import_families()


@pytest.mark.parametrize(
    "name",
    [
        *(f"supernet.training.{name}" for name in ("Phase", "SupernetTask", "compare", "evaluate_network", "means")),
        *(f"hat.huggingface.{name}" for name in ("bleu", "chrf", "compare_bleu", "to_huggingface", "translate")),
    ],
)
def test_a_function_is_imported_from_where_users_look_for_it(name):
    module, _, function = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))
