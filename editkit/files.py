"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from editkit.errors import InputError

_PARTIAL = re.compile(r"^\.(.+)\.[a-z0-9_]{8}\.partial$")  # as tempfile names them


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes its place when the block ends well, else it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, mark: str = "") -> Iterator[Path]:
    """Like `atomic_path` for a folder; an older folder of that name is replaced, with all that is in it, only when the
    new one is whole, and stays where it cannot be replaced.

    With `mark` only a folder that is empty or holds a file of that name is replaced. Raises InputError for another, and
    FileExistsError for a file.
    """
    path = Path(path).resolve()
    _check_may_replace(path, mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        yield temporary
        _as_the_umask_says(temporary)
        _check_may_replace(path, mark)  # it may have come while the new one was made
        _take_the_place_of(path, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Raises OSError, which names the folder, where nothing could be written to `path`: its nearest folder that is
    there takes no file. What cannot be kept is thus known before it is computed."""
    place = Path(path).resolve()
    folder = next(each for each in (place, *place.parents) if each.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EACCES), str(folder)) from None


def as_named(path: str) -> str:
    """A path without what `atomic_path` and `atomic_folder` put around its names while they write."""
    return str(Path(*(_PARTIAL.sub(r"\1", part) for part in Path(path).parts)))


def _check_may_replace(path: Path, mark: str) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(errno.EEXIST, "is a file; name a folder", str(path))
    if mark and path.is_dir() and not (path / mark).is_file() and any(path.iterdir()):
        raise InputError(f"{path} holds other files and no {mark}; name a new folder, for this one would be replaced")


def _take_the_place_of(path: Path, new: Path) -> None:
    if not path.exists():
        os.replace(new, path)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
    old = aside / path.name
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _as_the_umask_says(folder: Path) -> None:
    """The rights that plain `open` and `mkdir` give: temporary files, and what safetensors writes, are the owner's."""
    umask = _umask()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file, read in pieces."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp_of(path: Path) -> str:
    """Names the present state of a file, or of the files in a folder, by names, sizes and times, without reading them:
    whatever is written to them gives another stamp."""
    path = Path(path)
    state = hashlib.sha256()
    for each in sorted(path.iterdir()) if path.is_dir() else [path]:
        if each.is_file():
            status = each.stat()
            state.update(f"{each.name} {status.st_size} {status.st_mtime_ns};".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def _umask() -> int:
    try:  # setting it to read it would be seen by other threads
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:"))
    except (OSError, StopIteration):
        current = os.umask(0)
        os.umask(current)
        return current
