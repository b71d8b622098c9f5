"""The README's Python blocks run as they stand, but for the length of the training."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def run(block, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_block_on_translation_runs(tmp_path):
    run(re.search(r"```python\n(import torch\n\nimport hat\n.*?)```", README, re.DOTALL)[1], tmp_path)


def test_the_first_python_block_runs(tmp_path):
    block = re.search(r"## In Python\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    for long, short in (("epochs=10", "epochs=1"), ("pl.Trainer(", "pl.Trainer(limit_train_batches=2, ")):
        assert long in block
        block = block.replace(long, short)
    run(block, tmp_path)
    assert {"digits-supernet", "digits-subnet", "digits-subnet.onnx", "digits-timm"} <= {
        p.name for p in tmp_path.iterdir()
    }
