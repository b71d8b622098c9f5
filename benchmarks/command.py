"""CPU seconds of the command's help and of refusals, user and system of the whole process: the median of some runs.

python benchmarks/command.py [--runs 5]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from recipes import VERBS

DESCRIPTION = '{"format": 1, "family": "MobileNetV3", "arguments": {}, "space": {}, "config": null, "input_spec": {}}'
LINES = {
    "help of the command": "--help",
    **{f"help of {verb}": f"{verb} --help" for verb in ("fit", "validate", "test", *VERBS)},
    "a misspelt verb": "specialise",
    "a misspelt option": "specialize --max-latncy 1",
    "a misspelt key of fit": "fit --config ofa/digits --model.clp_norm 1",
    "a misspelt key of the data of fit": "fit --config ofa/digits --data.init_args.holdot 5",
    "a misspelt recipe": "fit --config ofa/digit",
    "fit without a recipe": "fit",
    "a run folder that is taken": "fit --config ofa/digits --run {run}",
    "a checkpoint that does not exist": "fit --config ofa/digits --ckpt-path {new}",
    "a misspelt device": "specialize --supernet {supernet} --device onnxrutime --max-latency 1 --out {new}",
    "a missing budget": "specialize --supernet {supernet} --device onnxruntime --out {new}",
    "a folder without a supernet": "specialize --supernet {new} --device onnxruntime --max-latency 1 --out {new}",
    "an output folder that exists": (
        "specialize --supernet {supernet} --device onnxruntime --max-latency 1 --out {supernet}/.."
    ),
    "all keys of fit (--help-all)": "fit --help-all",
}


def cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "from recipes.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print("| command | CPU seconds, median | smallest | largest |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        supernet = Path(folder) / "supernet"
        supernet.mkdir()
        (supernet / "network.json").write_text(DESCRIPTION)
        (Path(folder) / "run" / "supernet").mkdir(parents=True)
        places = {"supernet": supernet, "new": Path(folder) / "new", "run": Path(folder) / "run"}
        for what, line in LINES.items():
            seconds = [cpu_seconds([part.format(**places) for part in line.split()]) for _ in range(arguments.runs)]
            print(
                f"| {what} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
