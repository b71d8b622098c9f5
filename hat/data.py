"""Parallel text for training, choosing and testing: a Lightning data module over sentence pairs."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from hat.layers import BOS, EOS, PAD, UNK
from supernet.atomic import write_folder
from supernet.distillation import IGNORE
from supernet.resuming import ResumableLoader, ResumableSampler, ShardSampler, training_position
from supernet.values import integer

SPECIALS = {BOS: "<s>", PAD: "<pad>", EOS: "</s>", UNK: "<unk>"}  # by id, as in HAT
SPLITS = ("train", "valid", "test")
DEFAULT_VOCABULARY = 4008  # tokens
MANY = 10_000  # pairs, which a tokenizer takes seconds or minutes to learn from
CHUNK = 10_000  # texts that are encoded at once; what the tokenizer returns of each is large
Pairs = list[tuple[str, str]]


class ParallelText(pl.LightningDataModule):
    """Sentence pairs; batches are (source (B, S), previous (B, T), target (B, T)), int64.

    Sources end with </s> and are padded on the left, targets end with </s> and are padded on the right with -100;
    `previous` is the target shifted right, beginning with </s>, padded with <pad> (HAT's order). A batch holds pairs of
    like length. `valid` chooses: `val_dataloader` serves it. The test split chooses nothing.

    Args:
        dataset: a folder with train, valid and test, each as two line-aligned files SPLIT.SOURCE and SPLIT.TARGET or as
            one SPLIT.tsv; hf:NAME or hf:NAME:CONFIG, a data set of Hugging Face's `datasets`, on its hub or in a
            folder, with a column for each language or a column `translation`, and the splits train, validation and
            test; or numbers, number words that are made up on the spot (English and German).
        source, target: the languages, as the files or columns are called. BLEU is of the target language's words.
        vocab_size: tokens of the byte-level BPE, shared by both languages, that is trained on the training split: 4008
            if left out, or the number of tokens of the `tokenizer`.
        tokenizer: a folder with a tokenizer to use instead; its special tokens are <s> 0, <pad> 1, </s> 2, <unk> 3.
        max_tokens: of a batch, padding included: pairs times the longer side.
        max_length: tokens of a sentence with its </s>. Pairs with a longer one are left out, counted and reported.
        beam: hypotheses of a translation that is scored or timed.
        length_penalty: of those that are scored.
        workers: processes that load.
        seed: of the order.
        license: of the texts, for the metadata of exports; of hf: data sets that state one, theirs if left out.
    """

    def __init__(
        self,
        dataset: str = "numbers",
        source: str = "en",
        target: str = "de",
        vocab_size: int | None = None,
        tokenizer: str | None = None,
        max_tokens: int = 4096,
        max_length: int = 200,
        beam: int = 4,
        length_penalty: float = 0.6,
        workers: int = 0,
        seed: int = 0,
        license: str | None = None,
    ) -> None:
        super().__init__()
        if vocab_size is None:
            vocab_size = DEFAULT_VOCABULARY if tokenizer is None else len(load_tokenizer(tokenizer))
        vocab_size, max_tokens = integer("vocab_size", vocab_size), integer("max_tokens", max_tokens)
        max_length, beam, seed = integer("max_length", max_length), integer("beam", beam), integer("seed", seed)
        for name, value, least in (
            ("vocab_size", vocab_size, len(SPECIALS) + 256),
            ("max_length", max_length, 2),
            ("max_tokens", max_tokens, max_length),
            ("beam", beam, 1),
            ("workers", workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} = {value}: at least {least}")
        if not 0 <= length_penalty < math.inf:
            raise ValueError(f"length_penalty = {length_penalty} is not a number of at least 0")
        if source == target:
            raise ValueError(f"source = target = {source}: there is nothing to translate")
        self.beam, self.length_penalty, self.workers, self.seed = beam, length_penalty, workers, seed
        self.max_tokens = max_tokens
        pairs, stated = read_pairs(dataset, source, target)
        whole = {split: [pair for pair in pairs[split] if pair[0].strip() and pair[1].strip()] for split in SPLITS}
        for split in SPLITS:
            if not whole[split]:
                raise ValueError(f"{dataset}: {split} has no pair with text on both sides")
        if tokenizer is not None:
            self.tokenizer = load_tokenizer(tokenizer, vocab_size)
        elif dataset == "numbers" or dataset.startswith("hf:"):
            self.tokenizer = fast(train_tokenizer(whole["train"], vocab_size))
        else:
            self.tokenizer = kept_tokenizer(Path(dataset), whole["train"], vocab_size)

        self.report: dict[str, dict[str, int]] = {}
        self.parts: dict[str, Batches] = {}
        self._texts: dict[str, Pairs] = {}
        for split in SPLITS:
            encoded = [self.encode([pair[side] for pair in whole[split]]) for side in (0, 1)]
            fits = [i for i, ids in enumerate(zip(*encoded)) if max(map(len, ids)) <= max_length]
            counts = {"pairs": len(fits), "empty": len(pairs[split]) - len(whole[split])}
            self.report[split] = counts | {"too_long": len(whole[split]) - len(fits)}
            if counts["pairs"] < len(pairs[split]):
                rank_zero_info(
                    f"{dataset}, {split}: of {len(pairs[split])} pairs {counts['empty']} with an empty side and"
                    f" {self.report[split]['too_long']} of more than {max_length} tokens are left out"
                )
            if not fits:
                raise ValueError(f"{dataset}: {split} has no pair of at most max_length = {max_length} tokens")
            if split != "train":
                self._texts[split] = [whole[split][i] for i in fits]
            self.parts[split] = Batches(*([side[i] for i in fits] for side in encoded), max_tokens, seed)
        held_out = self.parts["valid"]
        self.input_spec: dict[str, Any] = {
            "vocab_size": vocab_size,
            "source": source,
            "target": target,
            "source_language": language_code(source),
            "target_language": language_code(target),
            "source_length": round(float(np.mean([len(ids) for ids in held_out.sources]))),
            "target_length": round(float(np.mean([len(ids) for ids in held_out.targets]))),
            "max_length": max_length,
            "beam": beam,
            "length_penalty": length_penalty,
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "dataset": name_of(dataset),
            "license": license or stated,
        }

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, </s> included."""
        encode = self.tokenizer.backend_tokenizer.encode_batch
        chunks = (list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK))
        return [np.array(encoding.ids, dtype=np.int32) for chunk in chunks for encoding in encode(chunk)]

    def texts(self, split: str) -> tuple[list[str], list[str]]:
        """The sources and the references of the split "held_out" or "test"."""
        names = {"held_out": "valid", "test": "test"}
        if split not in names:
            raise ValueError(f"split: {split!r} is neither {' nor '.join(names)}")
        pairs = self._texts[names[split]]
        return [source for source, _ in pairs], [target for _, target in pairs]

    @property
    def _process(self) -> tuple[int, int]:
        """(rank, processes) of the training this module is attached to."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        batches = self.parts["train"]
        sampler = ResumableSampler(len(batches), self.seed, self._position, *self._process)
        if len(sampler) == 0:
            raise ValueError(f"{len(batches)} batches are not one for each of {self._process[1]} processes")
        return ResumableLoader(
            batches, batch_size=None, sampler=sampler, num_workers=self.workers, persistent_workers=self.workers > 0
        )

    def _position(self) -> tuple[int, int]:
        if not self.trainer:
            return 0, 0
        return training_position(self.trainer, len(self.parts["train"]) // self._process[1])

    def val_dataloader(self) -> DataLoader:
        return self._loader("valid")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def _loader(self, split: str) -> DataLoader:
        sampler = ShardSampler(len(self.parts[split]), *self._process)
        return DataLoader(self.parts[split], batch_size=None, sampler=sampler, num_workers=self.workers)

    def calibration_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs of a few training batches, of all lengths: of them int8 networks take their ranges."""
        batches = self.parts["train"]
        for i in np.linspace(0, len(batches) - 1, min(4, len(batches))).round().astype(int).tolist():
            source, previous, _ = batches[i]
            yield source, previous

    def state_dict(self) -> dict[str, Any]:
        train = self.parts["train"]
        content = hashlib.sha256()
        for ids in (*train.sources, *train.targets):
            content.update(ids.tobytes())
        counts = {"seed": self.seed, "max_tokens": self.max_tokens, "pairs": len(train.sources)}
        return counts | {"sha256": content.hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise ValueError where a training would be resumed with other batches than it began with."""
        if self.trainer.state.fn == "fit" and state != self.state_dict():
            raise ValueError(f"the run began with the training data {state}; now they are {self.state_dict()}")


class Batches(Dataset):
    """Batches of pairs of like length, each of at most `max_tokens`. An index is a number, or (epoch, number).

    Pairs are sorted by the longer side; which pairs of one length share a batch is drawn anew for each epoch. So where
    batches begin is the same in all epochs.
    """

    def __init__(self, sources: list[np.ndarray], targets: list[np.ndarray], max_tokens: int, seed: int) -> None:
        self.sources, self.targets, self.seed = sources, targets, seed
        self.lengths = np.array([max(len(s), len(t)) for s, t in zip(sources, targets)])
        self.starts = [0]
        for i, length in enumerate(np.sort(self.lengths)):  # ascending: the last pair of a batch is its longest
            if (i + 1 - self.starts[-1]) * length > max_tokens:
                self.starts.append(i)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self._order[0] != epoch:
            ties = np.random.default_rng((self.seed, epoch)).random(len(self.lengths))
            self._order = epoch, np.lexsort((ties, self.lengths))
        stop = self.starts[number + 1] if number + 1 < len(self) else len(self.lengths)
        return collate(*([side[i] for i in self._order[1][self.starts[number] : stop]] for side in self.sides))

    @property
    def sides(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return self.sources, self.targets


def collate(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, </s> included, as (source, previous, target)."""
    S, T = max(map(len, sources)), max(map(len, targets))
    source, target = np.full((len(sources), S), PAD), np.full((len(targets), T), IGNORE)
    previous = np.full((len(targets), T), PAD)
    for i, (s, t) in enumerate(zip(sources, targets)):
        source[i, S - len(s) :] = s
        target[i, : len(t)] = t
        previous[i, 0], previous[i, 1 : len(t)] = EOS, t[:-1]
    return torch.from_numpy(source), torch.from_numpy(previous), torch.from_numpy(target)


# ------------------------------------------------------------------------------------------------- tokenizers


def untrained() -> Tokenizer:
    """A byte-level BPE without merges, which ends what it encodes with </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = SPECIALS[EOS]
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", f"$A {end} $B {end}", [(end, EOS)])
    return tokenizer


def train_tokenizer(pairs: Pairs, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of both sides; ValueError where the text has not enough to merge."""
    tokenizer = untrained()
    if len(pairs) >= MANY:
        rank_zero_info(f"training a tokenizer of {vocab_size} tokens on {len(pairs)} sentence pairs")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SPECIALS[i] for i in sorted(SPECIALS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for pair in pairs for text in pair), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(f"the training text gives {tokenizer.get_vocab_size()} tokens: vocab_size = {vocab_size}")
    return tokenizer


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers' own class."""
    names = {"bos_token": BOS, "pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        padding_side="right",  # of labels, too; models take sources that are padded on either side
        split_special_tokens=True,  # a text that says </s> does not end there
        **{name: SPECIALS[i] for name, i in names.items()},
    )


def read_tokenizer(input_spec: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that a saved network was trained with."""
    if "tokenizer" not in input_spec:
        raise ValueError("the network does not say its tokenizer: it was not trained on text")
    return fast(Tokenizer.from_str(input_spec["tokenizer"]))


def load_tokenizer(folder: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, checked: as many tokens (if given), and the special ones where they belong."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no tokenizer: {path} does not exist")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error
    tokenizer.no_truncation()  # both are saved with the last use
    tokenizer.no_padding()
    if vocab_size not in (None, tokenizer.get_vocab_size()):
        found = tokenizer.get_vocab_size()
        raise ValueError(f"{path} has {found} tokens, vocab_size is {vocab_size}: leave vocab_size out of the data")
    for i, token in SPECIALS.items():
        if tokenizer.id_to_token(i) != token:
            raise ValueError(f"{path}: token {i} is {tokenizer.id_to_token(i)!r}, not {token!r}")
    if tokenizer.encode("a").ids[-1] != EOS:
        raise ValueError(f"{path} does not end what it encodes with {SPECIALS[EOS]}")
    return fast(tokenizer)


def kept_tokenizer(folder: Path, pairs: Pairs, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder of text, kept in it; trained anew where it was trained on another text or otherwise."""
    state = hashlib.sha256(f"{vocab_size}\n{untrained().to_str()}\n".encode())
    for pair in pairs:
        state.update("\t".join(pair).encode() + b"\n")
    digest, place = state.hexdigest(), folder / f"tokenizer-{vocab_size}"
    known = place / "trained_on.json"
    try:
        if json.loads(known.read_text()) == {"sha256": digest}:
            return load_tokenizer(place, vocab_size)
    except (OSError, ValueError):  # there is none, or none that can be read
        pass
    tokenizer = fast(train_tokenizer(pairs, vocab_size))

    def write(temporary: Path) -> None:
        tokenizer.save_pretrained(temporary)
        (temporary / known.name).write_text(json.dumps({"sha256": digest}) + "\n")

    files = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", known.name)
    try:
        write_folder(place, write, files, overwrite=True)
    except OSError as error:  # it is not ours to write, or another process was first
        rank_zero_info(f"{place} is not written: {error}; the tokenizer is trained again next time")
    return tokenizer


# ------------------------------------------------------------------------------------------------------ text


def name_of(dataset: str) -> str:
    """What a data set is called: a folder, also one of hf:, by its own name, without its path."""
    path = dataset.removeprefix("hf:").partition(":")[0]
    return Path(path).resolve().name if Path(path).is_dir() else dataset.removeprefix("hf:")


def read_pairs(dataset: str, source: str, target: str) -> tuple[dict[str, Pairs], str | None]:
    """({split: pairs}, the licence) of a data set; ValueError says what is wrong with the name or the files."""
    if dataset == "numbers":
        return numbers(source, target), None
    library, _, name = dataset.partition(":")
    if library == "hf" and name:
        return from_datasets(name, source, target)
    folder = Path(dataset)
    if not folder.is_dir():
        raise ValueError(f"dataset: {dataset!r} is not a folder, and neither numbers nor hf:NAME")
    return {split: read_split(folder, split, source, target) for split in SPLITS}, None


def read_split(folder: Path, split: str, source: str, target: str) -> Pairs:
    table, sides = folder / f"{split}.tsv", [folder / f"{split}.{side}" for side in (source, target)]
    if table.is_file():
        if found := [path.name for path in sides if path.is_file()]:
            raise ValueError(f"{folder} has {table.name} and {', '.join(found)}: which is the text of {split}?")
        rows = [line.split("\t") for line in read_lines(table)]
        for number, row in enumerate(rows, 1):
            if len(row) != 2:
                raise ValueError(f"{table}, line {number}: {len(row) - 1} tabs, where one parts source and target")
        return [(row[0], row[1]) for row in rows]
    for path in sides:
        if not path.is_file():
            raise ValueError(f"{folder} has no {table.name}, and no {path.name} in its place")
    lines = [read_lines(path) for path in sides]
    if len(lines[0]) != len(lines[1]):
        short, long = sorted((0, 1), key=lambda side: len(lines[side]))
        raise ValueError(
            f"{sides[long]}, line {len(lines[short]) + 1}: it has no partner, as {sides[short]} has"
            f" {len(lines[short])} lines and this file {len(lines[long])}"
        )
    return list(zip(*lines))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, as an editor counts them; ValueError names the line that is not UTF-8."""
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            decoded.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8: {error.reason} at byte {error.start + 1}") from error
    return decoded


HF_SPLITS = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}


def from_datasets(name: str, source: str, target: str) -> tuple[dict[str, Pairs], str | None]:
    """({split: pairs}, the licence) of NAME or NAME:CONFIG: of the hub, of a folder of files, or of save_to_disk."""
    try:
        import datasets
    except ImportError:
        raise ImportError("hf: needs the package datasets: pip install 'supernet[text]'") from None
    path, _, config = name.partition(":")
    if any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        splits = datasets.load_from_disk(path)
    else:
        splits = datasets.load_dataset(path, config or None)
    if not isinstance(splits, Mapping):
        raise ValueError(f"hf:{name} is one split: save a DatasetDict with {', '.join(HF_SPLITS)}")
    pairs, license = {}, None
    for split, names in HF_SPLITS.items():
        found = next((name for name in names if name in splits), None)
        if found is None:
            raise ValueError(
                f"hf:{name} has no split {' or '.join(map(repr, names))}; it has {', '.join(splits)}. Divide it with"
                " train_test_split, save_to_disk the DatasetDict, and give dataset: hf:FOLDER"
            )
        rows = splits[found]
        sides = [language_column(rows, language, f"hf:{name}, {found}") for language in (source, target)]
        pairs[split] = list(zip(*sides))
        license = license or getattr(getattr(rows, "info", None), "license", None) or None
    return pairs, license


def language_column(rows: Any, language: str, where: str) -> list[str]:
    """The texts in a language of a split of `datasets`; "" where there is none.

    The column `translation` has both languages, or else a column has the language's name. `translation` comes first:
    a column `id` may be Indonesian, or the number of a row. A row of `translation` is {language: text}, a list of such
    mappings, or the lists {"language": [...], "translation": [...]}. ValueError names the columns.
    """
    columns = list(getattr(rows, "column_names", None) or rows)
    translations = [as_mapping(row) for row in rows["translation"]] if "translation" in columns else []
    if any(row is None for row in translations):
        translations = []  # a text, as in a table with the columns source and translation
    languages = sorted({key for row in translations for key in row})
    for names, texts in (
        (languages, lambda key: [row.get(key) for row in translations]),
        (columns, lambda key: rows[key]),
        (flat := [column for column in columns if column.startswith("translation.")], lambda key: rows[key]),
    ):
        if key := matching(names, language, where, "translation." if names is flat else ""):
            column = ["" if text is None else text for text in texts(key)]
            for number, text in enumerate(column):
                if not isinstance(text, str):
                    raise ValueError(f"{where}: {key} of row {number} is {text!r}, and not a text")
            return column
    known = f", and translation the languages {', '.join(languages)}" if languages else ""
    raise ValueError(f"{where} has no language {language!r}: its columns are {', '.join(columns)}{known}")


def as_mapping(row: Any) -> dict[str, str] | None:
    """A row of a column `translation` as {language: text}; None where it is another thing."""
    if row is None:
        return {}
    if isinstance(row, list):
        pairs: dict[str, str] = {}
        for part in row:
            if not isinstance(part, Mapping):
                return None
            if "language" in part:
                part = {part["language"]: next((part[key] for key in ("translation", "text") if key in part), None)}
            pairs |= {key: text for key, text in part.items() if text is not None}  # rows of a table have all keys
        return pairs
    if not isinstance(row, Mapping):
        return None
    if row.keys() == {"language", "translation"}:
        if isinstance(row["language"], str):
            return {row["language"]: row["translation"]}
        return dict(zip(row["language"], row["translation"]))
    return dict(row)


def matching(names: Sequence[str], language: str, where: str, prefix: str = "") -> str | None:
    """The name of a language: the same, or with another case or separator (pt_BR, pt-br), or of the same language (pt).

    ValueError where several are of the same language.
    """
    exact = prefix + language
    if exact in names:
        return exact
    for form in (normal, lambda code: normal(code).partition("-")[0]):
        found = [name for name in names if form(name.removeprefix(prefix)) == form(language)]
        if len(found) > 1:
            raise ValueError(f"{where} has {' and '.join(found)}: which is {language!r}?")
        if found:
            return found[0]
    return None


def language_code(name: str) -> str:
    """The language of the name of a file's suffix or of a column: de of tok.de."""
    return name.rpartition(".")[2]


def normal(code: str) -> str:
    return code.lower().replace("_", "-")


NUMBERS, HELD_OUT = 4000, 200  # how many are made, and of those how many are valid's, and test's


def numbers(source: str, target: str) -> dict[str, Pairs]:
    """Number words below 100,000, for tests and recipes of seconds."""
    for language in (source, target):
        if language not in SPELLERS:
            raise ValueError(f"numbers: {language!r} is not one of {', '.join(SPELLERS)}")
    drawn = np.random.default_rng(0).choice(100_000, NUMBERS, replace=False).tolist()
    pairs = [(SPELLERS[source](n), SPELLERS[target](n)) for n in drawn]
    return {"valid": pairs[:HELD_OUT], "test": pairs[HELD_OUT : 2 * HELD_OUT], "train": pairs[2 * HELD_OUT :]}


ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
GERMAN = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn"
    " achtzehn neunzehn"
).split()
GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()


def english(n: int) -> str:
    """A number below 1,000,000 in English words."""
    if n >= 1000:
        rest = n % 1000
        tail = "" if rest == 0 else f" and {english(rest)}" if rest < 100 else f" {english(rest)}"
        return f"{english(n // 1000)} thousand{tail}"
    if n >= 100:
        return f"{ENGLISH[n // 100]} hundred" + (f" and {english(n % 100)}" if n % 100 else "")
    if n >= 20:
        return ENGLISH_TENS[n // 10 - 2] + (f"-{ENGLISH[n % 10]}" if n % 10 else "")
    return ENGLISH[n]


def german(n: int) -> str:
    """A number below 1,000,000 in German words."""
    if n >= 1000:
        return german_before(n // 1000) + "tausend" + (german(n % 1000) if n % 1000 else "")
    if n >= 100:
        return german_before(n // 100) + "hundert" + (german(n % 100) if n % 100 else "")
    if n >= 20:
        return (f"{german_before(n % 10)}und" if n % 10 else "") + GERMAN_TENS[n // 10 - 2]
    return GERMAN[n]


def german_before(n: int) -> str:
    """A number in front of und, hundert or tausend: ein, not eins."""
    return german(n)[:-1] if n % 100 == 1 else german(n)


SPELLERS: dict[str, Callable[[int], str]] = {"en": english, "de": german}
