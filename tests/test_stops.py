"""Stops at random moments, in processes of their own, each followed by the same command."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "stops.py"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fit", "measure", "specialize"])
def test_twenty_random_stops_change_and_repeat_nothing(what):
    done = subprocess.run([sys.executable, BENCHMARK, "--what", what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
