"""`supernet bleu`: BLEU and chrF of a translation network."""

from __future__ import annotations

from typing import Any

from recipes.saved import check_saved, load_subnet, make_data, read_section, read_split


def bleu(
    subnet: str,
    architecture: str | None = None,
    data: str | None = None,
    split: str = "test",
    beam: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool = False,
    tokenize: str | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Translate with a translation network, and report BLEU and chrF with their intervals.

    Args:
        subnet: folder of a saved subnet, or of a supernet if `architecture` is given.
        architecture: which subnet of a supernet: largest, smallest, or a JSON or YAML file of its config.
        data: a YAML file with class_path and init_args; the data that the supernet was trained on if left out.
        split: held-out or test.
        beam: hypotheses of a search; that of the data if left out.
        length_penalty: the power of a translation's length that its score is divided by; that of the data if left out.
        early_stopping: end a search when `beam` hypotheses are finished, as HAT does; otherwise, when no unfinished
            hypothesis can become better.
        tokenize: sacrebleu's tokenizer for BLEU: 13a, intl, zh, ja-mecab (needs sacrebleu[ja]), ko-mecab (needs
            sacrebleu[ko]), char, none, flores101 or flores200 (each needs sentencepiece and downloads a model). If left
            out, it is that of the target language: zh for Chinese, ja-mecab for Japanese, ko-mecab for Korean, char for
            Thai, Lao, Khmer, Burmese and Tibetan, 13a for others.
        against: folder of another saved translation network, to compare with.

    Returns:
        {"bleu", its bootstrap interval from "low" to "high", "signature", which names the tokenizer, "chrf",
        "chrf_low", "chrf_high", "chrf_signature", and the search: "beam", "length_penalty", "early_stopping"}; with
        `against`, "difference" and "chrf_difference", by how much BLEU and chrF are above those of the other network,
        with intervals of a paired bootstrap
    """
    if beam is not None and beam < 1:
        raise ValueError(f"beam = {beam}: at least 1")
    loader = read_split(split)
    if against is not None:
        check_saved(against)
    network, module = load_subnet(subnet, architecture, data, [loader])
    from hat.huggingface import check_translates, score
    from supernet.saving import load

    check_translates(network, subnet)
    if module is None:
        module = make_data(read_section(subnet, data), [loader])
    others = [] if against is None else [load(against)]
    for other in others:
        check_translates(other, against, extracted=True)
    for one in (network, *others):
        one.check_data(module.input_spec)
    search = {
        "beam": module.beam if beam is None else beam,
        "length_penalty": module.length_penalty if length_penalty is None else length_penalty,
        "early_stopping": early_stopping,
    }
    scores = score([network, *others], module, loader, search, tokenize)
    print(", ".join(f"{name} {f'{x:.4f}' if isinstance(x, float) else x}" for name, x in scores.items()))
    return scores
