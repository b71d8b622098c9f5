"""Parallel text: what is read, how it is tokenized, and the batches that training sees."""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hat.data import Batches, ParallelText, english, german
from hat.layers import EOS, PAD
from hat.libreoffice import HELP, make
from recipes.cli import main
from supernet.distillation import IGNORE
from supernet.resuming import ResumableSampler

SMALL = {"vocab_size": 400, "max_tokens": 200, "max_length": 40}


@pytest.fixture(scope="module")
def data():
    return ParallelText(**SMALL)


def write_text(folder, train=None, **files):
    """A folder of number words, with `train` (sources, targets) or whole files in place of some."""
    for split, first in (("train", 100), ("valid", 500), ("test", 600)):
        sides = [[spell(n) for n in range(first, first + 90)] for spell in (english, german)]
        if split == "train" and train is not None:
            sides = train
        for language, lines in zip(("en", "de"), sides):
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
    return folder


def in_folder(folder, vocab_size=300, **options):
    return ParallelText(str(folder), vocab_size=vocab_size, **options)


def epoch_of(data, epoch, start=0):
    """The training batches of an epoch, from one on, as lists of arrays."""
    batches = data.parts["train"]
    sampler = ResumableSampler(len(batches), data.seed, lambda: (epoch, start))
    return [batches[index] for index in sampler]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for ours, theirs in zip(a, b) for x, y in zip(ours, theirs))


def rows(batches):
    """Each pair of the batches, as ids without padding."""
    return [
        (tuple(s[s != PAD].tolist()), tuple(t[t != IGNORE].tolist()))
        for source, _, target in batches
        for s, t in zip(source, target)
    ]


# --------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "null"),
        (1, "eins"),
        (16, "sechzehn"),
        (17, "siebzehn"),
        (21, "einundzwanzig"),
        (30, "dreißig"),
        (100, "einhundert"),
        (101, "einhunderteins"),
        (312, "dreihundertzwölf"),
        (1000, "eintausend"),
        (1001, "eintausendeins"),
        (21_000, "einundzwanzigtausend"),
        (71_121, "einundsiebzigtausendeinhunderteinundzwanzig"),
    ],
)
def test_german_numbers(n, words):
    assert german(n) == words


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "zero"),
        (21, "twenty-one"),
        (101, "one hundred and one"),
        (312, "three hundred and twelve"),
        (1000, "one thousand"),
        (1001, "one thousand and one"),
        (40_140, "forty thousand one hundred and forty"),
    ],
)
def test_english_numbers(n, words):
    assert english(n) == words


@pytest.mark.parametrize("spell", [english, german])
def test_no_two_numbers_have_the_same_words(spell):
    assert len({spell(n) for n in range(100_000)}) == 100_000


def test_the_splits_of_numbers_share_none(data):
    held_out, test = ({*zip(*data.texts(split))} for split in ("held_out", "test"))
    train = {data.tokenizer.decode(source[:-1]) for source in data.parts["train"].sources}
    assert len(train) + len(held_out) + len(test) == 4000
    assert not held_out & test and not train & {source for source, _ in held_out | test}


# --------------------------------------------------------------------------------------------------- batches


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60),
    max_tokens=st.integers(30, 200),
    epoch=st.integers(0, 3),
)
def test_batches_hold_every_pair_once_and_at_most_max_tokens(lengths, max_tokens, epoch):
    sources, targets = ([np.full(pair[side], 10 + i, np.int32) for i, pair in enumerate(lengths)] for side in (0, 1))
    batches, seen = Batches(sources, targets, max_tokens, seed=0), []
    for number in range(len(batches)):
        source, previous, target = batches[epoch, number]
        assert len(source) * max(source.size(1), target.size(1)) <= max_tokens
        assert target.shape == previous.shape
        seen += source[:, -1].tolist()
    assert sorted(seen) == [10 + i for i in range(len(lengths))]


def test_pairs_of_a_batch_are_of_like_length(data):
    longest = [max(source.size(1), target.size(1)) for source, _, target in data.parts["train"]]
    assert longest == sorted(longest) and longest[0] < longest[-1]


def test_batches_differ_between_epochs_in_pairs_of_one_length_only(data):
    batches = data.parts["train"]
    first, second = ([batches[epoch, i] for i in range(len(batches))] for epoch in (0, 1))
    assert not equal(first, second)
    for a, b in zip(first, second):
        lengths = [sorted(max(len(s), len(t)) for s, t in rows([batch])) for batch in (a, b)]
        assert lengths[0] == lengths[1]


def test_an_epoch_is_a_function_of_seed_and_epoch(data):
    again, other = ParallelText(**SMALL), ParallelText(**SMALL, seed=1)
    assert equal(epoch_of(again, 2), epoch_of(data, 2))
    assert not equal(epoch_of(other, 2), epoch_of(data, 2)) and not equal(epoch_of(data, 1), epoch_of(data, 2))


def test_starting_at_a_batch_is_skipping_those_before(data):
    assert equal(epoch_of(ParallelText(**SMALL), 1, start=7), epoch_of(data, 1)[7:])


def test_workers_change_nothing(data):
    assert equal(list(ParallelText(**SMALL, workers=1).train_dataloader()), epoch_of(data, 0))


def test_processes_share_an_epoch_evenly(data):
    count = len(data.parts["train"])
    shares = [list(ResumableSampler(count, 0, lambda: (0, 0), rank, 2)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == count // 2 and not set(shares[0]) & set(shares[1])


def test_sources_are_padded_left_and_targets_right_and_previous_is_a_step_behind(data):
    padded = 0
    for source, previous, target in data.parts["train"]:
        assert {x.dtype for x in (source, previous, target)} == {torch.int64}
        for s, p, t in zip(source.tolist(), previous.tolist(), target.tolist()):
            sentence, ids = [i for i in s if i != PAD], [i for i in t if i != IGNORE]
            assert s == [PAD] * (len(s) - len(sentence)) + sentence and sentence[-1] == EOS
            assert t == ids + [IGNORE] * (len(t) - len(ids)) and ids[-1] == EOS
            assert p == [EOS, *ids[:-1]] + [PAD] * (len(t) - len(ids))
            padded += len(s) > len(sentence)
    assert padded


@pytest.mark.parametrize(("split", "part", "loader"), [("held_out", "valid", "val"), ("test", "test", "test")])
def test_the_texts_are_those_of_the_batches(data, split, part, loader):
    decoded = [
        tuple(data.tokenizer.decode(ids[:-1]) for ids in pair) for pair in rows(getattr(data, f"{loader}_dataloader")())
    ]
    assert sorted(decoded) == sorted(zip(*data.texts(split)))
    assert data.report[part] == {"pairs": len(decoded), "empty": 0, "too_long": 0}


def test_calibration_batches_are_inputs_of_training_and_the_same_every_time(data):
    first, second = (list(data.calibration_batches()) for _ in range(2))
    assert equal(first, second) and all(source.size(0) == previous.size(0) for source, previous in first)


def test_the_input_spec_is_json_and_says_the_mean_lengths(data):
    spec = json.loads(json.dumps(data.input_spec))
    held_out = rows(data.val_dataloader())
    for side, name in enumerate(("source_length", "target_length")):
        assert spec[name] == round(np.mean([len(pair[side]) for pair in held_out]))
    assert (spec["vocab_size"], spec["beam"], spec["length_penalty"], spec["max_length"]) == (400, 4, 0.6, 40)


def test_a_training_is_not_resumed_with_other_batches(data):
    data.trainer = types.SimpleNamespace(state=types.SimpleNamespace(fn="fit"))
    try:
        data.load_state_dict(data.state_dict())
        with pytest.raises(ValueError, match="the run began with the training data"):
            data.load_state_dict(ParallelText(**SMALL | {"max_tokens": 300}).state_dict())
    finally:
        data.trainer = None


# ------------------------------------------------------------------------------------------------- tokenizer


@given(text=st.text())
def test_decoding_inverts_encoding(data, text):
    if any(token in text for token in ("<s>", "<pad>", "</s>", "<unk>")):
        return
    ids = data.tokenizer(text)["input_ids"]
    assert ids[-1] == EOS and data.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_texts_encoded_in_chunks_are_those_encoded_at_once(data, monkeypatch):
    texts = data.texts("held_out")[0]
    at_once = data.encode(texts)
    monkeypatch.setattr("hat.data.CHUNK", 7)
    in_chunks = data.encode(texts)
    assert len(in_chunks) == len(at_once) and all(map(np.array_equal, in_chunks, at_once))


def test_the_tokenizer_has_hats_special_ids(data):
    tokenizer = data.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, PAD, EOS)
    assert len(tokenizer) == 400


def test_a_tokenizer_is_kept_and_read_again(tmp_path, monkeypatch):
    first = in_folder(write_text(tmp_path))
    assert (tmp_path / "tokenizer-300" / "tokenizer.json").is_file()
    monkeypatch.setattr("hat.data.train_tokenizer", None)
    second = in_folder(tmp_path)
    assert second.input_spec["tokenizer"] == first.input_spec["tokenizer"] and equal(
        epoch_of(first, 0), epoch_of(second, 0)
    )


def test_a_tokenizer_is_replaced_when_the_training_text_changes(tmp_path):
    before = in_folder(write_text(tmp_path)).input_spec["tokenizer"]
    write_text(tmp_path, ([english(n) for n in range(2000, 2090)], [german(n) for n in range(2000, 2090)]))
    after = in_folder(tmp_path).input_spec["tokenizer"]
    assert after != before and in_folder(tmp_path).input_spec["tokenizer"] == after


def test_a_saved_tokenizer_can_be_given(tmp_path, data):
    data.tokenizer.save_pretrained(tmp_path)
    given = ParallelText(tokenizer=str(tmp_path), **SMALL)
    assert equal(epoch_of(given, 0), epoch_of(data, 0))
    with pytest.raises(ValueError, match="400 tokens, vocab_size is 500"):
        ParallelText(tokenizer=str(tmp_path), vocab_size=500)


@pytest.mark.parametrize(("content", "message"), [(None, "tokenizer.json"), ("{", "cannot be read as a tokenizer")])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        ParallelText(tokenizer=str(tmp_path))


def test_a_text_too_small_for_the_vocabulary_is_told_with_what_it_gives(tmp_path):
    with pytest.raises(ValueError, match=r"gives \d+ tokens"):
        in_folder(write_text(tmp_path), vocab_size=4000)


# ----------------------------------------------------------------------------------------------------- files


NO_VALID = {"valid_en": None, "valid_de": None}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_en": b"one\ntwo\n", "train_de": b"eins\nzwei\ndrei\n"}, r"train\.de, line 3.*train\.en"),
        ({"valid_en": b"one\n", "valid_de": b""}, r"valid\.en, line 1.*valid\.de"),
        ({"train_en": b"", "train_de": b""}, r"train has no pair"),
        ({"test_de": b"eins\nzw\xf6lf\n"}, r"test\.de, line 2: not UTF-8"),
        ({"valid_de": None}, r"valid"),
        ({"valid_tsv": b"one\teins\ntwo zwei\n"} | NO_VALID, r"valid\.tsv, line 2: 0 tabs"),
        ({"valid_tsv": b"one\teins\tun\n"} | NO_VALID, r"valid\.tsv, line 1: 2 tabs"),
        ({"valid_tsv": b"one\teins\n"}, r"valid\.tsv and valid\.en, valid\.de: which is the text of valid"),
        ({"test_en": b" \n", "test_de": b"eins\n"}, r"test has no pair"),
    ],
)
def test_a_faulty_file_is_told_with_its_name_and_line(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        in_folder(write_text(tmp_path, **files))


def test_only_a_line_feed_ends_a_line(tmp_path):
    source = "one\u2028two\x85\x0bthree\r\nfour\r\n".encode()
    data = in_folder(write_text(tmp_path, test_en=source, test_de=b"eins\nvier"))
    assert data.texts("test") == (["one\u2028two\x85\x0bthree", "four"], ["eins", "vier"])


def test_a_table_is_read_as_two_files_are(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "tables").mkdir()
    files = write_text(tmp_path / "files")
    for split in ("train", "valid", "test"):
        sides = [(files / f"{split}.{language}").read_text().splitlines() for language in ("en", "de")]
        (tmp_path / "tables" / f"{split}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(*sides)))
    assert equal(epoch_of(in_folder(files), 0), epoch_of(in_folder(tmp_path / "tables"), 0))


def test_pairs_that_are_empty_or_too_long_are_left_out_and_counted(tmp_path):
    long = " ".join(["seven"] * 50)
    files = {"valid_en": f"one\n\ntwo\n{long}\n".encode(), "valid_de": b"eins\nnichts\n \nsieben\n"}
    data = in_folder(write_text(tmp_path, **files), max_length=20)
    assert data.report["valid"] == {"pairs": 1, "empty": 2, "too_long": 1}
    assert data.texts("held_out") == (["one"], ["eins"]) and len(rows(data.val_dataloader())) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 259},
        {"max_length": 0},
        {"max_tokens": 0},
        {"beam": 0},
        {"workers": -1},
        {"seed": -1},
        {"length_penalty": -1},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ParallelText(**options)


def test_what_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder, and neither numbers nor hf:NAME"):
        ParallelText(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="'fr' is not one of en, de"):
        ParallelText(target="fr")


# ---------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture
def hugging_face(monkeypatch):
    """A stand-in for the package datasets; returns what it was asked for."""
    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        ranges = {"train": range(100, 200), "validation": range(300, 310), "test": range(400, 410)}
        return {
            split: {"translation": [{"en": english(n), "de": german(n)} for n in numbers] + [{"en": None, "de": "x"}]}
            for split, numbers in ranges.items()
        }

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_a_hugging_face_data_set_by_name_and_configuration(hugging_face):
    data = ParallelText("hf:organisation/name:de-en", vocab_size=300)
    assert hugging_face == [("organisation/name", "de-en")]
    assert data.texts("held_out")[1][0] == german(300)
    assert data.report["train"] == {"pairs": 100, "empty": 1, "too_long": 0}
    ParallelText("hf:name", vocab_size=300)
    assert hugging_face[1] == ("name", None)


def test_a_hugging_face_data_set_without_the_language_is_told(hugging_face):
    with pytest.raises(ValueError, match="'fr'"):
        ParallelText("hf:name", target="fr", vocab_size=300)


PAIRS_OF = {
    "train": [(english(n), german(n)) for n in range(100, 200)],
    "validation": [(english(n), german(n)) for n in range(300, 310)],
    "test": [(english(n), german(n)) for n in range(400, 410)],
}
COLUMNS = {
    "a column each": (lambda a, b: {"en": a, "de": b, "id": 3}, {}),
    "codes of countries": (lambda a, b: {"en_US": a, "de_DE": b}, {}),
    "languages of codes": (lambda a, b: {"en": a, "de": b}, {"source": "en_GB", "target": "de-AT"}),
    "another case": (lambda a, b: {"EN": a, "De": b}, {}),
    "translation": (lambda a, b: {"id": "x", "translation": {"en": a, "de": b}}, {}),
    "translation, Indonesian": (lambda a, b: {"id": "7", "translation": {"id": a, "de": b}}, {"source": "id"}),
    "translation, flat": (lambda a, b: {"translation.en": a, "translation.de": b}, {}),
    "translation, listed": (lambda a, b: {"translation": [{"en": a}, {"de": b}]}, {}),
    "translation, rows": (
        lambda a, b: {"translation": [{"language": "de", "text": b}, {"language": "en", "text": a}]},
        {},
    ),
    "translation, variable": (lambda a, b: {"translation": {"language": ["de", "en"], "translation": [b, a]}}, {}),
    "source and translation": (
        lambda a, b: {"source": a, "translation": b},
        {"source": "source", "target": "translation"},
    ),
}


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("kind", ["files", "saved"])
def test_a_data_set_of_any_columns_is_read(tmp_path, columns, kind):
    datasets = pytest.importorskip("datasets")
    row, languages = COLUMNS[columns]
    rows = {split: [row(*pair) for pair in pairs] for split, pairs in PAIRS_OF.items()}
    if kind == "files":
        for split, lines in rows.items():
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        whole = datasets.DatasetDict({split: datasets.Dataset.from_list(lines) for split, lines in rows.items()})
        whole.save_to_disk(tmp_path)
    data = ParallelText(f"hf:{tmp_path}", vocab_size=300, **languages)
    assert [data.texts("test"), data.texts("held_out")] == [
        tuple(map(list, zip(*PAIRS_OF[split]))) for split in ("test", "validation")
    ]


@pytest.mark.parametrize(
    ("row", "splits", "message"),
    [
        ({"en": "one", "fr": "un"}, tuple(PAIRS_OF), r"train has no language 'de': its columns are en, fr"),
        (
            {"id": 1, "translation": {"en": "one", "fr": "un"}},
            tuple(PAIRS_OF),
            r"no language 'de': its columns are id, translation, and translation the languages en, fr",
        ),
        ({"en": "one", "de_DE": "eins", "de_AT": "eins"}, tuple(PAIRS_OF), r"has de_DE and de_AT: which is 'de'"),
        ({"en": 1, "de": "eins"}, tuple(PAIRS_OF), r"en of row 0 is 1, and not a text"),
        ({"en": "one", "de": "eins"}, ("train", "validation"), r"no split 'test'; it has train, validation.*save_to"),
        ({"en": "one", "de": "eins"}, ("train", "test"), r"no split 'validation' or 'valid'.*; it has train, test"),
        ({"en": "one", "de": "eins"}, None, r"is one split: save a DatasetDict"),
    ],
)
def test_what_a_data_set_lacks_is_named_with_what_it_has(tmp_path, row, splits, message):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_list([row] * 3)
    (part if splits is None else datasets.DatasetDict(dict.fromkeys(splits, part))).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=f"hf:.*set.* {message}"):
        ParallelText(f"hf:{tmp_path / 'set'}", vocab_size=300)


def test_the_languages_are_in_the_input_spec(tmp_path):
    spec = in_folder(write_text(tmp_path)).input_spec
    assert (spec["source_language"], spec["target_language"], spec["vocab_size"]) == ("en", "de", 300)


def test_the_package_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'supernet\[text\]'"):
        ParallelText("hf:name")


# ----------------------------------------------------------------------------------------------- LibreOffice

PAIRS = {
    "good": ("Choose a file to open it.", "Wählen Sie eine Datei zum Öffnen."),
    "short": ("Open it.", "Öffnen Sie."),
    "long": ("word " * 81, "Wort " * 81),
    "ratio": ("Choose a file.", "Wählen Sie hier bitte nun eine Datei aus."),
    "signs": ("=A1 + 22 - 333 * 4444", "=B1 + 22 - 333 * 4444"),
    "same": ("LibreOffice Writer Help", "LibreOffice Writer Help"),
}


def write_help(root, pages):
    """A tree of help pages {name: {id: (English, German)}}."""
    for side, language in enumerate(("en-US", "de")):
        for name, paragraphs in pages.items():
            path = root / "usr/share/libreoffice/help" / language / "text" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            body = "\n".join(f'<p id="par_{key}"> {pair[side]}\n</p>' for key, pair in paragraphs.items())
            path.write_text(f"<html><body><h1>{side}</h1>{body}</body></html>")
    return root


def lines(folder, split):
    return list(zip(*((folder / f"{split}.{language}").read_text().splitlines() for language in ("en", "de"))))


@pytest.mark.parametrize("name", PAIRS)
def test_only_clean_pairs_are_taken_from_the_help(tmp_path, name):
    counts = make(tmp_path / "out", write_help(tmp_path / "root", {"a.html": {name: PAIRS[name]}}))
    assert counts["pairs"] == 1 and counts["clean"] == (name == "good")


def test_a_pages_pairs_go_to_one_split_and_a_repeated_pair_to_the_first_page(tmp_path):
    def pair(page, i):
        words = english(1000 * page + i), german(1000 * page + i)
        return f"The sum of the cells is {words[0]}.", f"Die Summe aller Zellen ist {words[1]}."

    pages = {
        f"shared/{page:02}.html": {"repeated": PAIRS["good"]} | {f"{i}": pair(page, i) for i in range(3)}
        for page in range(40)
    }
    counts = make(tmp_path / "out", write_help(tmp_path / "root", pages))
    where = {}
    for split in ("train", "valid", "test"):
        found = lines(tmp_path / "out", split)
        assert len(found) == counts[split]
        for pair_ in found:
            assert pair_ not in where
            where[pair_] = split
    own = [{where.get(pair(page, i)) for i in range(3)} for page in range(40)]
    assert all(len(splits) == 1 for splits in own) and {split for splits in own for split in splits} >= {"train"}
    assert where[PAIRS["good"]] in own[0]


def test_markup_is_left_out_and_a_paragraph_is_one_line(tmp_path):
    marked = (
        'Choose <span class="menuitem">File</span>\n to &quot;open&quot; it.',
        "Wählen Sie <b>Datei</b>\n&amp; Öffnen.",
    )
    make(tmp_path / "out", write_help(tmp_path / "root", {"a.html": {"1": marked}}))
    pairs = [pair for split in ("train", "valid", "test") for pair in lines(tmp_path / "out", split)]
    assert pairs == [('Choose File to "open" it.', "Wählen Sie Datei & Öffnen.")]


def test_a_folder_without_the_help_is_refused(tmp_path):
    with pytest.raises(ValueError, match="libreoffice-help-de"):
        make(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_packages_may_be_unpacked_each_in_a_folder_of_its_own(tmp_path):
    pages = {f"{i}.html": {"1": (f"The sum is {english(i)}.", f"Die Summe ist {german(i)}.")} for i in range(60)}
    together = write_help(tmp_path / "together", pages)
    for language in ("en-US", "de"):
        place = tmp_path / "apart" / language / HELP
        place.mkdir(parents=True)
        (next(together.rglob(language))).rename(place / language)
    assert make(tmp_path / "out", tmp_path / "apart")["pages"] == 60


def test_a_page_that_is_not_utf8_is_told(tmp_path):
    root = write_help(tmp_path / "root", {"a.html": {"1": PAIRS["good"]}})
    page = next((next(root.rglob("de"))).rglob("a.html"))
    page.write_bytes(page.read_bytes() + b"\n<p>W\xf6rter</p>")
    with pytest.raises(ValueError, match=r"a\.html, line \d+: not UTF-8"):
        make(tmp_path / "out", root)


def test_without_apt_the_help_must_be_given(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="apt-get.*--root"):
        make(tmp_path / "out")


def test_prepare_makes_a_data_set_that_trains_once(tmp_path, capsys):
    pages = {
        f"{page}.html": {
            f"{i}": (f"The sum of cells is {english(i)}.", f"Die Summe der Zellen ist {german(i)}.")
            for i in range(100 * page, 100 * page + 9)
        }
        for page in range(60)
    }
    arguments = ["prepare", "--out", str(tmp_path / "out"), "--root", str(write_help(tmp_path / "root", pages))]
    main(arguments)
    data = in_folder(tmp_path / "out")
    assert sum(counts["pairs"] for counts in data.report.values()) == 540
    with pytest.raises(SystemExit):
        main(arguments)
    assert "already exists" in capsys.readouterr().err
    main([*arguments, "--overwrite", "true"])
    assert not (tmp_path / "out" / "tokenizer-300").exists()


def test_prepare_tells_what_there_is(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--out", str(tmp_path / "out"), "--dataset", "imagenet"])
    assert "there is libreoffice_en_de" in capsys.readouterr().err


def test_the_whole_help(tmp_path):
    root = Path(os.environ.get("LIBREOFFICE_HELP", "/usr/share/libreoffice/help"))
    try:
        counts = make(tmp_path, root, overwrite=True)
    except ValueError as error:
        pytest.skip(f"{error} (LIBREOFFICE_HELP says where they are)")
    assert counts["pages"] > 2000 and counts["pairs"] > 60_000 and counts["clean"] > 25_000


def test_the_name_and_the_licence_of_a_text_are_those_of_the_data(tmp_path):
    numbers = ParallelText(vocab_size=300).input_spec
    assert (numbers["dataset"], numbers["license"]) == ("numbers", None)
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text("one two\teins zwei\n")
    spec = ParallelText(str(tmp_path), vocab_size=262, license="CC0-1.0").input_spec
    assert (spec["dataset"], spec["license"]) == (tmp_path.name, "CC0-1.0")


def test_a_data_set_of_hugging_face_states_its_licence(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"en": ["one"], "de": ["eins"]})
    part.info.license = "MIT"
    datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), part)).save_to_disk(tmp_path / "words")
    spec = ParallelText(f"hf:{tmp_path / 'words'}", vocab_size=262).input_spec
    assert (spec["dataset"], spec["license"]) == ("words", "MIT")
