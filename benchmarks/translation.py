"""Translation supernets on LibreOffice's help: the recipe against HAT's, and a network trained alone.

    supernet prepare --out data/libreoffice_en_de
    python benchmarks/translation.py train better|hat|distilled|alone [--seed 0] [--scale 0.3334]
        [--network report.json] [--elastic CHOICE ...]
    python benchmarks/translation.py table [--network report.json] [--test]

`train` runs (or resumes) one schedule: better is recipes/hat/libreoffice_en_de.yaml; hat is one random subnet an update
(HAT, arXiv 2005.14187), with as many token passes, of the same network, data and optimizer; distilled is the largest
network alone for half of these passes and then one random subnet an update, on labels and on the logits of that
network; alone is the network of a report.json (of `supernet specialize`), for as many token passes. With --elastic
only these choices of the recipe's space (decoder_layer_num, ...) are left, the others at their largest, which tells
what each costs. CPU seconds leave out those of starts that were killed. `table` gives, of every run, the loss on the
held-out pages of 8 subnets (the largest, the smallest, 6 random ones: the same for all of one space) and of the network
of --network, and their BLEU with a 95 % bootstrap interval; --test takes the test pages instead, which chose nothing.
Where there are runs of better and hat of one seed, it also tells by how much BLEU differs, from paired resamples.
A token pass is one forward and backward of one subnet over all training tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import hat
from recipes.cli import recipe_path

RECIPE = "hat/libreoffice_en_de"
RANDOM = 6  # subnets, beside the largest and the smallest


def passes(phases: list[dict[str, Any]]) -> int:
    return sum(phase["epochs"] * phase.get("subnets", 1) for phase in phases)


def train(
    name: str, seed: int, scale: float, network: Path | None, elastic: list[str] | None, data: str, out: Path
) -> None:
    """Run or resume a schedule; its CPU seconds are added to those of earlier starts."""
    recipe = yaml.safe_load(Path(recipe_path(RECIPE)).read_text())
    choices = recipe["model"]["supernet"]["init_args"]["space"]["init_args"]
    if elastic is not None:
        if unknown := set(elastic) - set(choices):
            sys.exit(f"--elastic {' '.join(sorted(unknown))}: not one of {' '.join(choices)}")
        choices |= {choice: [max(values)] for choice, values in choices.items() if choice not in elastic}
    phases = recipe["model"]["phases"]
    whole = {"name": name, "epochs": passes(phases), "warmup_epochs": 1, "lr": phases[0]["lr"]}
    if name == "hat":
        recipe["model"]["phases"] = [whole]
    elif name == "distilled":
        half = whole["epochs"] // 2
        middle = {"lr": 0.75 * whole["lr"]}
        taught = middle | {"name": "taught", "epochs": whole["epochs"] - half, "teacher": "frozen"}
        taught |= {"label_weight": 0.5, "teacher_weight": 0.5}
        recipe["model"]["phases"] = [whole | {"epochs": half, "final_lr": middle["lr"], "config": {}}, taught]
    elif name == "alone":
        recipe["model"]["phases"] = [whole | {"config": json.loads(network.read_text())["config"]}]
    run = out / f"{'-'.join([name, *sorted(elastic or [])])}_{seed}"
    run.mkdir(parents=True, exist_ok=True)
    path = run / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    seeds = ["--seed_everything", "--data.init_args.seed", "--model.seed"]
    arguments = ["fit", "--config", str(path), "--run", str(run), "--data.init_args.dataset", data]
    arguments += ["--scale-phases", str(scale)] + [part for option in seeds for part in (option, str(seed))]
    if (run / "checkpoints" / "last.ckpt").is_file():
        arguments += ["--ckpt_path", "last"]
    else:
        arguments += ["--overwrite", "true"]  # what a run left that ended before its first checkpoint
    code = "from recipes.cli import main; main()"
    status = subprocess.run([sys.executable, "-c", code, *arguments], env={"OMP_NUM_THREADS": "1"} | os.environ)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = run / "cpu_seconds.json"
    before = json.loads(spent.read_text()) if spent.is_file() else 0
    spent.write_text(json.dumps(before + usage.ru_utime + usage.ru_stime))
    sys.exit(status.returncode)


def score(
    run: Path, data: str, split: str, network: Path | None, known: dict[str, Any], translations: dict[str, list[str]]
) -> dict[str, Any]:
    """Losses and BLEU of a finished run's subnets on a split, those of `known` included; adds to `translations`."""
    import torch

    from hat.huggingface import to_huggingface
    from hat.translation import bleu, translate
    from supernet.evaluation import evaluate_network
    from supernet.saving import load

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    supernet = load(run / "supernet")
    settings = yaml.safe_load((run / "recipe.yaml").read_text())
    text = hat.ParallelText(**settings["data"]["init_args"] | {"dataset": data})
    space, phases = supernet.space, settings["model"]["phases"]
    if "config" in phases[-1]:
        configs = {"alone": space.config(**phases[-1]["config"])}
    else:
        drawn = space.decode(space.sample(RANDOM, np.random.default_rng(0)))
        configs = {"largest": space.largest(), "smallest": space.smallest()}
        configs |= {f"random {i}": config for i, config in enumerate(drawn)}
        if network is not None:
            configs[str(network)] = space.config(**json.loads(network.read_text())["config"])
    sources, references = text.texts(split)
    rows = dict(known)
    for name, config in configs.items():
        if name in rows and name in translations:
            continue
        subnet = supernet.extract(config).eval()
        loader = text.val_dataloader() if split == "held_out" else text.test_dataloader()
        model = to_huggingface(subnet)
        hypotheses = translate(model, text.tokenizer, sources, text.beam, text.length_penalty)
        translations[name] = hypotheses
        rows[name] = {"loss": evaluate_network(subnet, loader)["loss"]} | bleu(hypotheses, references)
        print(run.name, split, name, rows[name], flush=True)
    return rows


def table(data: str, out: Path, split: str, network: Path | None) -> None:
    from hat.translation import compare_bleu

    made: dict[str, dict[str, list[str]]] = {}
    for run in sorted(path.parent for path in out.glob("*_*/supernet")):
        cache = run / f"score_{split}.json"  # once: the test pages choose nothing
        known = json.loads(cache.read_text()) if cache.is_file() else {}
        written = run / f"translations_{split}.json"
        made[run.name] = json.loads(written.read_text()) if written.is_file() else {}
        rows = score(run, data, split, network, known, made[run.name])
        cache.write_text(json.dumps(rows, indent=1))
        written.write_text(json.dumps(made[run.name], indent=1, ensure_ascii=False))
        spent = json.loads((run / "cpu_seconds.json").read_text())
        for name, row in rows.items():
            interval = f"{row['low']:.2f} to {row['high']:.2f}"
            print(f"{run.name} | {name} | {row['loss']:.4f} | {row['bleu']:.2f} | {interval} | {spent:.0f}")

    pairs = [(name, name.replace("better", "hat")) for name in made if name.startswith("better")]
    pairs = [pair for pair in pairs if pair[1] in made]
    if not pairs:
        return
    settings = next(yaml.safe_load((out / name / "recipe.yaml").read_text()) for name in made)
    text = hat.ParallelText(**settings["data"]["init_args"] | {"dataset": data})
    references = text.texts(split)[1]
    for ours, theirs in pairs:
        for row in filter(made[theirs].get, made[ours]):
            found = compare_bleu(made[ours][row], made[theirs][row], references)
            interval = f"{found['difference_low']:.2f} to {found['difference_high']:.2f}"
            print(f"{ours} less {theirs} | {row} | {found['difference']:+.2f} | {interval}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("name", choices=["better", "hat", "distilled", "alone"])
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--scale", type=float, default=1.0, help="multiplies the length of the recipe")
    training.add_argument("--network", type=Path, help="report.json of the network to train alone")
    training.add_argument("--elastic", nargs="+", metavar="CHOICE", help="the choices to leave; all if not given")
    scoring = commands.add_parser("table")
    scoring.add_argument("--test", action="store_true")
    scoring.add_argument("--network", type=Path, help="report.json of a network to score as well, inherited")
    for command in (training, scoring):
        command.add_argument("--data", default="data/libreoffice_en_de")
        command.add_argument("--out", type=Path, default=Path("runs/translation"))
    arguments = parser.parse_args()
    if arguments.command == "train":
        if (arguments.name == "alone") != (arguments.network is not None):
            parser.error("alone needs --network, the others have none")
        a = arguments
        train(a.name, a.seed, a.scale, a.network, a.elastic, a.data, a.out)
    else:
        table(arguments.data, arguments.out, "test" if arguments.test else "held_out", arguments.network)


if __name__ == "__main__":
    main()
