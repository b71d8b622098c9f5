"""Texts translated by a transformers model, and scored: BLEU and chrF of sacrebleu, by the target language."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hat.deploying import SEARCH
from hat.layers import EOS, PAD

GENERATION = {"num_beams": SEARCH["beam"], "length_penalty": SEARCH["length_penalty"]}
BOOTSTRAP = 1000  # resamples of an interval
SEED = 12345  # sacrebleu's

# sacrebleu's tokenizers by the target language; 13a for all others. Languages that are written without spaces, and have
# no tokenizer that works without a download, are scored by characters.
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"} | dict.fromkeys(
    ("th", "lo", "km", "my", "bo", "dz"), "char"
)
OTHER_CODES = {  # of the same languages: ISO 639-2 and -3
    "zho": "zh",
    "chi": "zh",
    "cmn": "zh",
    "yue": "zh",
    "wuu": "zh",
    "jpn": "ja",
    "kor": "ko",
    "tha": "th",
    "lao": "lo",
    "khm": "km",
    "mya": "my",
    "bur": "my",
    "bod": "bo",
    "tib": "bo",
    "dzo": "dz",
}
# The first word of a character's Unicode name -> the language whose tokenizer a text of such characters needs.
SCRIPTS = {"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko"}
SCRIPTS |= {"THAI": "th", "LAO": "lo", "KHMER": "km", "MYANMAR": "my", "TIBETAN": "bo"}
INSTALL = {  # what a tokenizer needs beside sacrebleu
    "ja-mecab": "pip install 'sacrebleu[ja]'",
    "ko-mecab": "pip install 'sacrebleu[ko]'",
} | dict.fromkeys(("spm", "flores101", "flores200", "spBLEU-1K"), "pip install sentencepiece")


# ------------------------------------------------------------------------------------------------- translation


@torch.inference_mode()
def translate(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    num_beams: int = GENERATION["num_beams"],
    length_penalty: float = GENERATION["length_penalty"],
    max_tokens: int = 4096,
    max_length: int | None = None,
    early_stopping: bool = False,
) -> list[str]:
    """The translations of `texts`, in their order, by beam search in eval mode on the model's device.

    `max_tokens` bounds a batch: its source tokens, with padding, times the hypotheses of each. A translation ends
    after `max_length` tokens, where None is twice those of the longest text and 10 more; in any case with the model's
    positions. With `early_stopping`, as in HAT, a search ends when `num_beams` hypotheses are finished; without, as
    transformers' does, when the best unfinished one, scored at its present length, is not better than the worst
    finished one. ValueError for a text of more tokens than there are positions.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one string: give a sequence of them")
    if num_beams < 1:
        raise ValueError(f"num_beams = {num_beams}: at least 1")
    positions = model.config.max_position_embeddings
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(f"tokenizer: it has {len(tokenizer)} tokens, the network {model.config.vocab_size}")
    sources = [tokenizer(text)["input_ids"] or [EOS] for text in texts]
    for number, source in enumerate(sources):
        if len(source) > positions:
            raise ValueError(f"text {number} has {len(source)} tokens: this network has {positions} positions")
    if max_length is None:
        max_length = 2 * max(map(len, sources), default=0) + 10
    beams = dict(length_penalty=length_penalty, early_stopping=early_stopping)
    translations, training = [""] * len(texts), model.training
    model.eval()
    try:
        for batch in batches([len(source) for source in sources], max_tokens // num_beams):
            source = left_padded([sources[i] for i in batch]).to(model.device)
            hypotheses = model.generate(
                input_ids=source,
                attention_mask=source != PAD,
                num_beams=num_beams,
                max_new_tokens=min(max_length, positions),
                max_length=None,  # of the model's generation config
                **(beams if num_beams > 1 else dict.fromkeys(beams)),
            )
            for i, text in zip(batch, tokenizer.batch_decode(hypotheses, skip_special_tokens=True)):
                translations[i] = text
    finally:
        model.train(training)
    return translations


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sentences of similar lengths, longest first; a batch has at most `max_tokens`, with its padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, max_tokens // lengths[order[0]])
        yield order[:count]
        order = order[count:]


def left_padded(sentences: Sequence[Sequence[int]]) -> Tensor:
    """Sentences as one matrix (B, S) of ids, ending in the last column."""
    longest = max(map(len, sentences))
    return torch.tensor([[PAD] * (longest - len(sentence)) + list(sentence) for sentence in sentences])


# ----------------------------------------------------------------------------------------------------- scoring


def import_sacrebleu() -> Any:
    """sacrebleu's module of metrics; ImportError says what to install."""
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise ImportError("BLEU and chrF need sacrebleu: pip install 'supernet[text]'") from error
    return sacrebleu.metrics


def choose_tokenizer(language: str | None = None, references: Sequence[str] = ()) -> str:
    """The name of sacrebleu's tokenizer for BLEU of a target language, as zh, zh-CN, zh_Hans or zho; else 13a.

    Where the language is None or has no entry in TOKENIZERS, the script of the references may have one.
    """
    code = (language or "").lower().replace("_", "-").partition("-")[0]
    code = OTHER_CODES.get(code, code)
    if code not in TOKENIZERS:
        code = language_of_script(references)
    return TOKENIZERS.get(code, "13a")


def language_of_script(texts: Sequence[str]) -> str | None:
    """The entry of TOKENIZERS that a quarter of all letters or more are of, else None.

    A quarter, as a word in such a script has few letters. Chinese characters with kana are Japanese.
    """
    counts: Counter[str | None] = Counter()
    for character, count in Counter("".join(texts)).items():
        if character.isalpha():
            counts[SCRIPTS.get(unicodedata.name(character, "").partition(" ")[0])] += count
    letters = counts.total()
    if counts["ja"] > 0.1 * counts["zh"]:  # a Japanese text has about as many kana as Chinese characters
        counts["ja"] += counts.pop("zh", 0)
    del counts[None]
    language, found = max(counts.items(), key=lambda item: item[1], default=(None, 0))
    return language if found and 4 * found >= letters else None


def bleu_metric(tokenize: str) -> Any:
    """sacrebleu's BLEU with one of its tokenizers; ValueError for another, ImportError says what it needs."""
    metrics = import_sacrebleu()
    if tokenize not in metrics.BLEU.TOKENIZERS:
        raise ValueError(f"tokenize: {tokenize!r} is not one of {', '.join(sorted(metrics.BLEU.TOKENIZERS))}")
    try:
        return metrics.BLEU(tokenize=tokenize)
    except (ImportError, RuntimeError) as error:  # a RuntimeError is what sacrebleu's Japanese and Korean ones raise
        needs = INSTALL.get(tokenize, "see below")
        raise ImportError(f"BLEU with the tokenizer {tokenize} needs a package: {needs} ({error!r})") from error
    except (OSError, SystemExit) as error:  # sacrebleu exits where a certificate is wrong
        raise OSError(
            f"the tokenizer {tokenize} needs a model, which sacrebleu downloads into ~/.sacrebleu/models; this failed:"
            f" {error!r}. Copy it there from a machine with internet access, or choose another tokenizer"
        ) from error


def check_lengths(*texts: Sequence[str]) -> None:
    *hypotheses, references = map(len, texts)
    if set(hypotheses) != {references}:
        raise ValueError(f"{' and '.join(map(str, hypotheses))} hypotheses of {references} references")


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    seed: int = SEED,
    language: str | None = None,
    tokenize: str | None = None,
) -> dict[str, Any]:
    """sacrebleu's BLEU of a corpus, {"bleu", "low", "high", "signature"}, with a 95 % interval of 1000 resamples.

    `tokenize` is one of sacrebleu's tokenizers. If None, the target `language` decides, or else the script of the
    references (see choose_tokenizer). The signature names the tokenizer. The interval is the bootstrap's mean plus and
    minus half its width, as `sacrebleu --confidence` states it.
    """
    check_lengths(hypotheses, references)
    metric = bleu_metric(tokenize or choose_tokenizer(language, references))
    score, low, high = interval(metric, hypotheses, references, seed)
    return {"bleu": score, "low": low, "high": high, "signature": str(metric.get_signature())}


def chrf(hypotheses: Sequence[str], references: Sequence[str], seed: int = SEED) -> dict[str, Any]:
    """sacrebleu's chrF2 of a corpus, {"chrf", "chrf_low", "chrf_high", "chrf_signature"}; the interval as of `bleu`."""
    check_lengths(hypotheses, references)
    metric = import_sacrebleu().CHRF()
    score, low, high = interval(metric, hypotheses, references, seed)
    return {"chrf": score, "chrf_low": low, "chrf_high": high, "chrf_signature": str(metric.get_signature())}


def interval(
    metric: Any, hypotheses: Sequence[str], references: Sequence[str], seed: int
) -> tuple[float, float, float]:
    """The score of a corpus, and the ends of its interval."""
    with sacrebleu_seed(seed):
        score = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=BOOTSTRAP)
    return score.score, score._mean - score._ci, score._mean + score._ci


def compare_bleu(
    hypotheses: Sequence[str],
    others: Sequence[str],
    references: Sequence[str],
    seed: int = SEED,
    language: str | None = None,
    tokenize: str | None = None,
) -> dict[str, float]:
    """The BLEU of `hypotheses` less the BLEU of `others`, {"difference", "difference_low", "difference_high"}.

    The 95 % interval is of a paired bootstrap (Koehn 2004): both are scored on the same 1000 resamples.
    """
    check_lengths(hypotheses, others, references)
    metric = bleu_metric(tokenize or choose_tokenizer(language, references))
    names = "difference", "difference_low", "difference_high"
    return dict(zip(names, paired(metric, hypotheses, others, references, seed)))


def compare_chrf(
    hypotheses: Sequence[str], others: Sequence[str], references: Sequence[str], seed: int = SEED
) -> dict[str, float]:
    """As `compare_bleu`, of chrF2: {"chrf_difference", "chrf_difference_low", "chrf_difference_high"}."""
    check_lengths(hypotheses, others, references)
    names = "chrf_difference", "chrf_difference_low", "chrf_difference_high"
    return dict(zip(names, paired(import_sacrebleu().CHRF(), hypotheses, others, references, seed)))


def paired(
    metric: Any, hypotheses: Sequence[str], others: Sequence[str], references: Sequence[str], seed: int
) -> tuple[float, float, float]:
    """The difference of two scores, and the ends of its interval."""
    from sacrebleu.significance import _bootstrap_resample, estimate_ci

    scores, resampled = [], []
    with sacrebleu_seed(seed):
        for system in (hypotheses, others):
            counts = metric._extract_corpus_statistics(list(system), [list(references)])
            scores.append(metric._aggregate_and_compute(counts).score)
            resampled.append(np.array([score.score for score in _bootstrap_resample(counts, metric, BOOTSTRAP)[1]]))
    mean, half = (float(value) for value in estimate_ci(resampled[0] - resampled[1]))
    return scores[0] - scores[1], mean - half, mean + half


@contextmanager
def sacrebleu_seed(seed: int) -> Iterator[None]:
    """sacrebleu takes the seed of its resamples from nowhere but the environment."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        os.environ.pop("SACREBLEU_SEED")
        if before is not None:
            os.environ["SACREBLEU_SEED"] = before
