"""`supernet evaluate`: the metrics of a saved network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from recipes.saved import LOADERS, load_subnet, make_data, read_section, read_split


def evaluate(
    subnet: str,
    architecture: str | None = None,
    data: str | None = None,
    split: str = "held-out",
) -> dict[str, Any]:
    """Evaluate a subnet on the held-out data or, for a last look, on the test set.

    `supernet bleu` translates with a translation network, and reports BLEU and chrF.

    Args:
        subnet: folder of a saved subnet, or of a supernet if `architecture` is given.
        architecture: which subnet of a supernet: largest, smallest, or a JSON or YAML file of its config.
        data: a YAML file with class_path and init_args; the data that the supernet was trained on if left out.
        split: held-out or test.

    Returns:
        {metric: its value}, such as "loss", the mean cross entropy, and "accuracy", the fraction of right labels or
        tokens; of an image network also "balanced_accuracy", the mean over the classes, and "per_class": {class: its
        accuracy}; of a translation network also its "perplexity"
    """
    from supernet.evaluation import evaluate_network

    loader_of = read_split(split)
    network, module = load_subnet(subnet, architecture, data, [loader_of])
    if module is None:
        module = make_data(read_section(subnet, data), [loader_of])
    network.check_data(module.input_spec)
    loader = getattr(module, LOADERS[loader_of])()
    if "classes" in module.input_spec:
        metrics = evaluate_classes(network, loader)
    else:
        metrics = evaluate_network(network, loader)
        metrics["perplexity"] = math.exp(metrics["loss"])
    print(", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "per_class"))
    if network.more_metrics:
        of = f" --architecture {architecture}" if architecture else ""
        print(f"further metrics: supernet {network.more_metrics} --subnet {subnet}{of} --split {split}")
    return metrics


def evaluate_classes(network: Any, batches: Any) -> dict[str, Any]:
    """{"accuracy", "loss", "balanced_accuracy", "per_class"} of an image network over batches; prints a table."""
    import numpy as np
    import torch

    from supernet.evaluation import class_table, evaluate_items, means, per_class

    targets: list[Any] = []

    def seen() -> Iterator[Any]:
        for batch in batches:
            targets.append(batch[-1].numpy())
            yield batch

    network.eval().to(memory_format=torch.channels_last)
    items = evaluate_items(lambda inputs: network(*network.prepare(inputs)), seen())
    labels, counts = np.concatenate(targets), items["counted"] > 0
    names = network.input_spec.get("class_names")
    accuracies = per_class(items["accuracy"][counts], labels[counts], names)
    sizes = np.unique(labels[counts], return_counts=True)[1].tolist()
    print(class_table(accuracies, dict(zip(accuracies, sizes))))
    mean = float(np.mean(list(accuracies.values())))
    return means(items) | {"balanced_accuracy": mean, "per_class": accuracies}
