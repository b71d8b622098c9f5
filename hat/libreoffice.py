"""A real English-German text: the paragraphs of LibreOffice's help, which Debian packages in both languages."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

PACKAGES = ("libreoffice-help-en-us", "libreoffice-help-de")
HELP = Path("usr/share/libreoffice/help")
LANGUAGES = {"en": "en-US", "de": "de"}  # our suffix -> their folder
SHARES = {"valid": 5, "test": 5}  # percent of the help files; the others train
WORDS, RATIO, LETTERS = (3, 80), (0.5, 1.6), 0.6  # what a clean pair keeps to


class Paragraphs(HTMLParser):
    """Collects {id: text} of a page's paragraphs and headings, without program listings; the first text of an id.

    Keys and menus of macOS stand in the text before everybody else's, for a script to hide one: they are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.open: tuple[str, str] | None = None  # tag and id
        self.text: list[str] = []
        self.spans: list[bool] = []  # the open ones in it; True if it is macOS's

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if re.fullmatch("p|h[1-6]", tag):
            self.open = (tag, named["id"]) if named.get("id") and named.get("class") != "code" else None
            self.text, self.spans = [], []
        elif tag == "span":
            self.spans.append(named.get("class") == "MAC")

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self.spans:
            self.spans.pop()
        elif self.open is not None and tag == self.open[0]:
            text = " ".join("".join(self.text).split())
            if text:
                self.found.setdefault(self.open[1], text)
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is not None and not any(self.spans):
            self.text.append(data)


def paragraphs(path: Path) -> dict[str, str]:
    page = Paragraphs()
    data = path.read_bytes()
    try:
        page.feed(data.decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8: {error.reason}") from error
    return page.found


def is_clean(source: str, target: str) -> bool:
    """Whether a pair is a translation of a sentence: of some words, alike in length, mostly letters, not equal."""
    words = [len(re.findall(r"\w+", text)) for text in (source, target)]
    letters = min(sum(map(str.isalpha, text)) / max(1, len(text.replace(" ", ""))) for text in (source, target))
    return (
        WORDS[0] <= min(words)
        and max(words) <= WORDS[1]
        and RATIO[0] <= len(source) / len(target) <= RATIO[1]
        and letters >= LETTERS
        and source != target
    )


def split_of(page: str) -> str:
    """The split of a help file: by a hash of its name. Sister pages in different ones may share one side of a pair."""
    percent = int(hashlib.sha256(page.encode()).hexdigest(), 16) % 100
    for split, share in SHARES.items():
        if percent < share:
            return split
        percent -= share
    return "train"


def make(out: str | Path, root: str | Path | None = None, overwrite: bool = False) -> dict[str, int]:
    """Write train, valid and test of both languages to the folder `out`; returns and prints the counts.

    `root` is where both packages are unpacked, each in a folder of its own or together; they are fetched with apt-get
    where it is left out. A pair that several pages have counts once, in the split of the first of them.
    """
    from supernet.atomic import check_free, write_folder

    folder = Path(out)
    files = [f"{split}.{language}" for split in ("train", *SHARES) for language in LANGUAGES]
    check_free(folder, [*files, *(path.name for path in folder.glob("tokenizer-*"))], overwrite)
    if root is None:
        with tempfile.TemporaryDirectory() as temporary:
            fetch(Path(temporary))
            pages = read(Path(temporary))
    else:
        pages = read(Path(root))
    raw, seen = 0, set()
    splits: dict[str, list[tuple[str, str]]] = {split: [] for split in ("train", *SHARES)}
    for page, pairs in pages.items():
        raw += len(pairs)
        for pair in pairs:
            if pair not in seen and is_clean(*pair):
                seen.add(pair)
                splits[split_of(page)].append(pair)

    def write(temporary: Path) -> None:
        for split, pairs in splits.items():
            for side, language in enumerate(LANGUAGES):
                text = "".join(pair[side] + "\n" for pair in pairs)
                (temporary / f"{split}.{language}").write_text(text, encoding="utf-8")

    kept = [*files, *(path.name for path in folder.glob("tokenizer-*"))]
    write_folder(folder, write, kept, overwrite)
    counts = {"pages": len(pages), "pairs": raw, "clean": len(seen)} | {name: len(p) for name, p in splits.items()}
    print(", ".join(f"{name} {count}" for name, count in counts.items()), f"; written to {folder}", sep="")
    return counts


def read(root: Path) -> dict[str, list[tuple[str, str]]]:
    """{page: pairs} of all pages that both languages have, by paragraphs of one id, in the order of the first."""
    places = [root / HELP, root, *sorted(path / HELP for path in root.glob("*"))]  # in one folder, or one each
    texts = [[place / name / "text" for place in places] for name in LANGUAGES.values()]
    found = [next(filter(Path.is_dir, some), None) for some in texts]
    if None in found:
        raise ValueError(f"{root} does not hold the unpacked packages {' and '.join(PACKAGES)}")
    pages = {}
    first, second = found
    for path in sorted(first.rglob("*.html")):
        page = path.relative_to(first)
        if (second / page).is_file():
            ours, theirs = paragraphs(path), paragraphs(second / page)
            pages[page.as_posix()] = [(text, theirs[name]) for name, text in ours.items() if name in theirs]
    return pages


def fetch(folder: Path) -> None:
    """Download Debian's two packages and unpack them into `folder`, without installing them."""
    advice = f"give --root, the folder in which {' and '.join(PACKAGES)} are unpacked"
    try:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True, capture_output=True, text=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise OSError(f"this system has no {error.filename}: {advice}") from error
    except subprocess.CalledProcessError as error:
        raise OSError(f"{' '.join(error.cmd[:2])} failed: {error.stderr.strip()}; {advice}") from error
