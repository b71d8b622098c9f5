"""Files and folders that appear whole or not at all, and locks of folders that one process writes."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of a file system that has none
_held: set[Path] = set()  # a process is never in the way of its own locks, so it remembers them


def check_writable(folder: str | Path) -> None:
    """Raise OSError, with the folder and the reason, unless files can be written in a folder or where it will be made.

    A temporary file is really written: permissions alone say nothing to root, or of a read-only file system.
    """
    place = Path(folder)
    while not place.exists() and place != place.parent:
        if place.is_symlink():
            raise FileNotFoundError(f"{folder} cannot be written: {place} is a link to {os.readlink(place)}, not there")
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{folder} cannot be written: {place} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        where = "" if place == Path(folder) else f" ({place})"
        raise type(error)(f"{folder} cannot be written: {error.strerror}{where}: choose another folder") from error


def remove_leftovers(path: str | Path) -> None:
    """Remove temporary files and folders. A killed process leaves them beside NAME, as `.NAME.XXXXXXXX`.

    Hold the lock of the folder first: another process may be writing one of them.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if len(leftover.name) == len(path.name) + 10:  # tempfile's names have eight characters
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextmanager
def lock_folder(folder: str | Path, inside: bool = True) -> Iterator[None]:
    """Hold a folder against other processes; BlockingIOError, with the holder, where another process has it.

    The lock is of the process: it ends with it, however it ends, and a forked process does not inherit it. The file
    FOLDER/.lock (or beside the folder .FOLDER.lock, if not `inside`) names the holder and goes when the lock does; one
    that a killed process left is taken over. Missing folders are made, and removed again if nothing was put into them.
    On a network file system the lock also holds between machines (NFS needs its lock service). A file system without
    locks gives a warning, and no lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder = Path(folder)
    path = (folder / LOCK if inside else folder.with_name(f".{folder.name}{LOCK}")).absolute()
    missing = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.parent.resolve() / path.name
    while True:
        if path in _held:
            raise BlockingIOError(f"{folder} is in use by this process (of {os.getpid()}): choose another folder")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(
                    f"{folder} is in use by {holder or 'another process'}: wait until it ends, or choose another folder"
                ) from error
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}): start nothing else that writes {folder}", stacklevel=3
            )
            yield
            return
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # its last holder removed the file between our opening and locking it
    _held.add(path)
    holder, process = f"process {os.getpid()} on {socket.gethostname()}", os.getpid()
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
        yield
    finally:
        if os.getpid() == process:  # not in a fork
            path.unlink(missing_ok=True)
            os.close(descriptor)
            _held.discard(path)
            with suppress(OSError):  # they hold something now
                for place in missing:
                    place.rmdir()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file, then sync it and give it its name. On an error the old file is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        sync(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_free(folder: Path, names: Iterable[str], overwrite: bool = False) -> None:
    """Raise FileExistsError unless `folder` is free, or may be overwritten and holds nothing but `names`."""
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link: give the folder that it leads to")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: choose a folder")
    if not overwrite:
        raise FileExistsError(f"{folder} already exists: choose another folder, or overwrite it (--overwrite true)")
    if strangers := sorted({path.name for path in folder.iterdir()} - {*names, "__pycache__"}):
        raise FileExistsError(f"{folder} is not overwritten: it also holds {', '.join(strangers)}")


def write_folder(folder: Path, write: Callable[[Path], None], names: Iterable[str], overwrite: bool = False) -> None:
    """Have `write` fill a temporary folder with `names`, then give it its name, if that is free (see check_free).

    On an error the old folder is untouched.
    """
    check_free(folder, names, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                sync(file)
        sync(temporary)
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            os.replace(folder, old)
            try:
                os.replace(temporary, folder)
            except BaseException:
                os.replace(old, folder)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, reach the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
