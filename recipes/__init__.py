"""The verbs of the command `supernet`, as functions. Heavy imports happen inside them, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.specialize import specialize

__all__ = ["evaluate", "export", "make_data", "specialize"]

FORMATS = ("onnx", "timm")


def export(subnet: str, out: str, format: str = "onnx", overwrite: bool = False) -> dict[str, Path]:
    """Write a subnet in other programs' formats, each checked against the torch network.

    Args:
        subnet: folder of a saved subnet.
        out: folder to write to; a file or folder per format.
        format: comma-separated: onnx, timm.
        overwrite: let it replace an earlier export.

    Returns:
        {format: what was written}
    """
    formats = [name.strip() for name in format.split(",")]
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"format: {name!r} is not one of {', '.join(FORMATS)}")
    import_families()
    from ofa.timm import save_timm
    from supernet.export import load, to_onnx

    network = load(subnet)
    if not network.extracted:
        raise ValueError(f"{subnet} is a supernet: export a subnet of it")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    targets = {"onnx": folder / "subnet.onnx", "timm": folder / "timm"}
    for name in formats:
        if targets[name].exists() and not overwrite:
            raise FileExistsError(f"{targets[name]} already exists: choose another --out, or --overwrite true")
    for name in formats:
        if name == "onnx":
            to_onnx(network, targets[name], network.example_inputs())
        else:
            save_timm(network, targets[name], overwrite=overwrite)
        print(f"{name}: {targets[name]}")
    return {name: targets[name] for name in formats}


def evaluate(subnet: str, data: str | None = None, split: str = "holdout") -> dict[str, float]:
    """Evaluate a saved subnet: loss and accuracy on the held-out part (or, for a last look, the test set).

    Args:
        subnet: folder of a saved subnet.
        data: a YAML file with class_path and init_args; the data the supernet was trained on if left out.
        split: holdout or test.

    Returns:
        {"loss": mean cross entropy, "accuracy": fraction of right labels}
    """
    if split not in ("holdout", "test"):
        raise ValueError(f"split: {split!r} is neither holdout nor test")
    import_families()
    from supernet.export import load
    from supernet.training import evaluate_network

    network = load(subnet)
    module = make_data(subnet, data)
    loader = module.val_dataloader() if split == "holdout" else module.test_dataloader()
    figures = evaluate_network(network, loader)
    print(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    return figures


def import_families() -> None:
    """Import the families, so that saved networks of theirs can be loaded and recipes can name them.

    Raises ImportError where another distribution's package `ofa` (there is one on PyPI) has overwritten ours.
    """
    import ofa

    if not hasattr(ofa, "FAMILIES"):
        place = ofa.__file__ or list(ofa.__path__)[0]
        raise ImportError(
            f"{place} is another project's package `ofa`, which has overwritten this one's: use an environment without"
            " it, or `pip uninstall ofa` and install supernet again"
        )


def make_data(folder: str, data: str | None = None) -> Any:
    """The data module of a YAML file, or the one that a saved network was trained on."""
    import yaml

    from supernet.export import read_description

    section = yaml.safe_load(Path(data).read_text()) if data else read_description(folder).get("data")
    if not isinstance(section, dict) or "class_path" not in section:
        raise ValueError(f"{data or folder} does not say its data: give --data, a YAML file with class_path, init_args")
    import pytorch_lightning as pl
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    return parser.instantiate(parser.parse_object({"data": section})).data
