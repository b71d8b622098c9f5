"""Files of images: those of a folder, and which of them cannot be read."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import PIL
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info

from ofa.images import as_shown, suffixes
from supernet.atomic import write_atomically

CHECK = f"1, pillow {PIL.__version__}"  # results of another check, or of another Pillow, are not used again
NAMED = 20  # broken files that are named; the rest is counted
CHUNK = 1024  # files that wait for a processor at a time


def class_folders(root: Path) -> list[str]:
    """The names of the class folders in `root`, sorted; a hidden folder is not one."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def list_images(root: Path, classes: Sequence[str]) -> tuple[list[tuple[str, int]], Counter[str]]:
    """The images in `root`/CLASS, at any depth: (path, number of the class), sorted. And what is left out, by kind.

    An image has a suffix that PIL decodes, in any case, and is not hidden.
    """
    known, samples, left_out = suffixes(), [], Counter()
    for path in root.iterdir():
        if path.is_file():
            left_out["outside the class folders"] += 1
        elif path.name[0] == ".":
            left_out["hidden"] += sum(len(files) for _, _, files in os.walk(path))
    for label, name in enumerate(classes):
        for folder, _, files in sorted(os.walk(root / name, followlinks=True)):
            hidden = any(part[0] == "." for part in Path(folder).relative_to(root).parts)
            for file in sorted(files):
                suffix = os.path.splitext(file)[1].lower()
                if hidden or file[0] == ".":
                    left_out["hidden"] += 1
                elif suffix not in known:
                    left_out[suffix or "without a suffix"] += 1
                else:
                    samples.append((os.path.join(folder, file), label))
    return samples, left_out


def report_left_out(root: Path, left_out: Counter[str]) -> None:
    """One line that says how many files are left out, and which kinds of file they are."""
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common(8))
        more = f", and {len(left_out) - 8} kinds more" if len(left_out) > 8 else ""
        rank_zero_info(f"{root}: {left_out.total()} files are left out ({kinds}{more})")


# -------------------------------------------------------------------------------------------------- checking


def find_broken(paths: Sequence[str]) -> dict[str, str]:
    """Which files cannot be read as images, and why. Decodes each file once, on all processors, with a progress bar.

    What was found is remembered in `cache_folder()` by the files' names, sizes and times of change, a folder
    at a time, so that the next call decodes only what changed. Broken files are tried again at every call.
    """
    absolute = {folder: os.path.abspath(folder) for folder in {os.path.dirname(path) for path in paths}}
    folders: dict[str, dict[str, str]] = {}  # absolute folder -> name of a file -> path as given
    for path in paths:
        folder, name = os.path.split(path)
        folders.setdefault(absolute[folder], {})[name] = path
    start, decoded, broken = time.monotonic(), 0, {}
    with remembered(folders) as known, ThreadPoolExecutor(processors()) as pool:
        states = {folder: state_of(folder, files) for folder, files in folders.items()}
        todo = {}
        for folder, files in folders.items():
            found = known.get(folder, {})
            todo[folder] = found["broken"] if found.get("state") == states[folder] else list(files)
        with progress(sum(map(len, todo.values()))) as advance:
            for folder, names in todo.items():
                found = check([folders[folder][name] for name in names], why_broken, pool, advance)
                decoded += len(names)
                broken |= found
                known[folder] = {"state": states[folder], "broken": [os.path.basename(path) for path in found]}
    if decoded > len(broken):
        rank_zero_info(f"{decoded} image files were checked in {time.monotonic() - start:.0f} s")
    return broken


def find_broken_items(state: str, count: int, read: Callable[[int], Image.Image]) -> dict[int, str]:
    """The numbers of the images that `read` cannot give, and why; remembered by the data set's digest `state`."""
    start = time.monotonic()
    with remembered([state]) as known, ThreadPoolExecutor(processors()) as pool:
        todo = known[state]["broken"] if state in known else range(count)
        with progress(len(todo)) as advance:
            broken = check(todo, lambda number: why_undecodable(partial(read, number)), pool, advance)
        known[state] = {"broken": list(broken)}
    if len(todo) > len(broken):
        rank_zero_info(f"{len(todo)} images were checked in {time.monotonic() - start:.0f} s")
    return broken


def check(
    items: Sequence[Any], why: Callable[[Any], str | None], pool: ThreadPoolExecutor, advance: Callable[[], None]
) -> dict[Any, str]:
    """The items for which `why` gives a reason, with it."""
    found = {}
    for chunk in (items[i : i + CHUNK] for i in range(0, len(items), CHUNK)):
        for item, reason in zip(chunk, pool.map(why, chunk)):
            advance()
            if reason is not None:
                found[item] = reason
    return found


def why_broken(path: str) -> str | None:
    """Why a file cannot be read as an image; None if it can."""
    return why_undecodable(lambda: Image.open(path), path)


def why_undecodable(read: Callable[[], Image.Image], path: str = "") -> str | None:
    """Why the image that `read` opens cannot be decoded; None if it can. JPEG is decoded whole, at low resolution."""
    try:
        with read() as image:
            image.draft(None, (1, 1))
            as_shown(image, "RGB")
        return None
    except Exception as error:  # the plugins of PIL raise many kinds
        return reason(path, error)


def reason(path: str, error: Exception) -> str:
    """What is wrong with a file that raised this error, in words."""
    if isinstance(error, PIL.UnidentifiedImageError):
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return "the file is empty" if empty else "PIL knows no image format with such content"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    return str(error) or type(error).__name__


def unreadable(path: str, why: str) -> str:
    return f"{path} cannot be read as an image: {why}"


def state_of(folder: str, names: Iterable[str]) -> str:
    """A digest of the names, sizes and times of change of files in one folder."""
    state = hashlib.sha256()
    for name in names:
        try:
            found = os.stat(f"{folder}/{name}")
            seen = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:
            seen = "none"
        state.update(f"{name}\0{seen}\n".encode(errors="surrogateescape"))
    return state.hexdigest()


@contextmanager
def remembered(folders: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What earlier checks found, by absolute folder; what the caller changes in it is kept.

    Other processes that check the same data set (those of one training, say) wait meanwhile.
    """
    home = cache_folder() / "images"
    key = os.path.commonpath(folders).encode(errors="surrogateescape")
    place = home / f"{hashlib.sha256(key).hexdigest()[:32]}.json"
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = open(place.with_suffix(".lock"), "w")
    except OSError as error:
        rank_zero_info(f"{home} cannot be written ({error}): the image files will be checked again next time")
        yield {}
        return
    with lock:
        wait_for(lock)
        known = read_json(place)
        before = json.dumps(known)
        try:
            yield known
        finally:
            after = json.dumps(known)
            if after != before:
                keep(place, f'{{"check": {json.dumps(CHECK)}, "folders": {after}}}')


def keep(place: Path, content: str) -> None:
    try:
        write_atomically(place, lambda temporary: temporary.write_text(content))
    except OSError as error:
        rank_zero_info(f"{place} is not written ({error}): the image files will be checked again next time")


def cache_folder() -> Path:
    """The folder of what can be found out again: $SUPERNET_CACHE, else ~/.cache/supernet."""
    if chosen := os.environ.get("SUPERNET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "supernet"


def read_json(place: Path) -> dict[str, Any]:
    """The folders of a file that `remembered` wrote; nothing where it is missing, damaged or of another check."""
    try:
        content = json.loads(place.read_text())
        return content["folders"] if content["check"] == CHECK else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def wait_for(lock: Any) -> None:
    """Hold the lock file, if the system can: without locks, processes may check the same files twice."""
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
    except (ImportError, OSError):  # Windows; a network file system without locks
        pass


def processors() -> int:
    """The threads that decode: one for each processor that this process may use."""
    return min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """A bar on standard error, and the function that moves it on by one file."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=total == 0) as bar:
        task = bar.add_task("image files checked", total=total)
        yield lambda: bar.advance(task)
