"""`supernet evaluate`: the metrics of a saved network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from recipes.saved import LOADERS, import_families, load_subnet, make_data, read_section


def evaluate(
    subnet: str,
    architecture: str | None = None,
    data: str | None = None,
    split: str = "holdout",
    beam: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | None = None,
    tokenize: str | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Evaluate a subnet as it is, on the held-out part or, for a last look, the test set.

    Args:
        subnet: folder of a saved subnet, or of a supernet if `architecture` is given.
        architecture: which subnet of a supernet: largest, smallest, or a JSON or YAML file of its config.
        data: a YAML file with class_path and init_args; the data the supernet was trained on if left out.
        split: holdout or test.
        beam: hypotheses of a translation network's search; the data's if left out.
        length_penalty: the power of a translation's length that its score is divided by; the data's if left out.
        early_stopping: end a search when `beam` hypotheses are finished, as HAT does; if left out or false, when no
            unfinished hypothesis can become better.
        tokenize: sacrebleu's tokenizer for BLEU: 13a, intl, zh, ja-mecab (needs sacrebleu[ja]), ko-mecab (needs
            sacrebleu[ko]), char, none, flores101 or flores200 (each needs sentencepiece and downloads a model); if left
            out, that of the target language: zh for Chinese, ja-mecab for Japanese, ko-mecab for Korean, char for Thai,
            Lao, Khmer, Burmese and Tibetan, 13a for others.
        against: folder of another saved translation network, whose BLEU and chrF are compared.

    Returns:
        {"loss": mean cross entropy, "accuracy": fraction of right labels or tokens}; of an image network also
        "balanced_accuracy", the mean over the classes, and "per_class": {class: its accuracy}; of a translation network
        also its "perplexity", and of sacrebleu "bleu", with a bootstrap interval from "low" to "high" and a "signature"
        that names the tokenizer, and "chrf", "chrf_low", "chrf_high" and "chrf_signature"; the search: "beam",
        "length_penalty" and "early_stopping"; with `against`, "difference" and "chrf_difference", by how much BLEU and
        chrF are above the other network's, with intervals of a paired bootstrap
    """
    if split not in LOADERS:
        raise ValueError(f"split: {split!r} is neither {' nor '.join(LOADERS)}")
    if beam is not None and beam < 1:
        raise ValueError(f"beam = {beam}: at least 1")
    import_families()
    import hat
    from supernet.evaluation import evaluate_network
    from supernet.saving import load

    network, module = load_subnet(subnet, architecture, data, [split])
    if module is None:
        module = make_data(read_section(subnet, data), [split])
    network.check_data(module.input_spec)
    if isinstance(network, hat.Transformer):
        from hat.translation import bleu_metric, choose_tokenizer

        sources, references = module.texts(split)
        tokenize = tokenize or choose_tokenizer(module.input_spec.get("target_language"), references)
        bleu_metric(tokenize)  # what it needs is missing before the work, if it is
        others = [] if against is None else [load(against)]
        for other in others:
            if not isinstance(other, hat.Transformer) or not other.extracted:
                raise ValueError(f"against: {against} is not a saved subnet of a translation supernet")
            other.check_data(module.input_spec)
    elif {beam, length_penalty, early_stopping, tokenize, against} != {None}:
        raise ValueError(
            "beam, length_penalty, early_stopping, tokenize and against are for translation networks, not"
            f" {type(network).__name__}"
        )
    loader = getattr(module, LOADERS[split])()
    figures = evaluate_classes(network, loader) if "classes" in module.input_spec else evaluate_network(network, loader)
    if isinstance(network, hat.Transformer):
        search = {
            "beam": module.beam if beam is None else beam,
            "length_penalty": module.length_penalty if length_penalty is None else length_penalty,
            "early_stopping": bool(early_stopping),
        }
        figures["perplexity"] = math.exp(figures["loss"])
        figures |= score_translations([network, *others], module.tokenizer, sources, references, search, tokenize)
    told = {name: x for name, x in figures.items() if name != "per_class"}
    print(", ".join(f"{name} {f'{x:.4f}' if isinstance(x, float) else x}" for name, x in told.items()))
    return figures


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


def score_translations(
    networks: Sequence[Any],
    tokenizer: Any,
    sources: Sequence[str],
    references: Sequence[str],
    search: dict[str, Any],
    tokenize: str,
) -> dict[str, Any]:
    """BLEU and chrF of the first network's translations, and how they differ from those of the second if there is one.

    `search` is the beam, the length penalty and whether a search stops early.
    """
    from hat.huggingface import to_huggingface
    from hat.translation import bleu, chrf, compare_bleu, compare_chrf, translate

    beam, length_penalty, early_stopping = search.values()
    options = {"num_beams": beam, "length_penalty": length_penalty, "early_stopping": early_stopping}
    ours, *others = [translate(to_huggingface(network), tokenizer, sources, **options) for network in networks]
    figures = bleu(ours, references, tokenize=tokenize) | chrf(ours, references) | search
    for theirs in others:
        figures |= compare_bleu(ours, theirs, references, tokenize=tokenize) | compare_chrf(ours, theirs, references)
    return figures
