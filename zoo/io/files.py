"""Atomic writes, digests, output folders."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

from zoo.errors import UserError
from zoo.typing import StrPath

try:
    import fcntl

    _HAS_LOCKS = True
except ImportError:  # Windows
    _HAS_LOCKS = False

# Folders that macOS' archives and network storage put beside one's own.
_SYSTEM_FOLDERS = frozenset(("__MACOSX", "@eaDir"))

_discarding = False
_prepared: set[pathlib.Path] = set()


def discard_writes() -> None:
    """From now on, throw away what this process writes: another one of the same run writes the same."""
    global _discarding
    _discarding = True


def discarding() -> bool:
    """Whether what this process writes is thrown away."""
    return _discarding


def remove(path: StrPath) -> None:
    """Delete a file if it is there, in the one process of a run that writes.

    Args:
        path: of the file.
    """
    if not _discarding:
        pathlib.Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: StrPath) -> Iterator[pathlib.Path]:
    """Write a file whole or not at all: whatever happens, `path` holds either its old content or the whole new one.

    A folder of `prepare_folder` that was removed meanwhile, such as while a model was trained for it, is made again.

    Args:
        path: of the file.

    Yields:
        a temporary path beside it (same suffix); on success it is flushed to disk and renamed to `path`.

    Raises:
        UserError: if there is no room for it.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}.{_host()}-{os.getpid()}{path.suffix}")
    if path.parent.absolute() in _prepared:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if _discarding:
            return
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:  # HDF5's library raises kinds of its own
        if not _no_room(error):
            raise
        raise UserError(
            f"There is no room for {path}: free some space on its disk and repeat the command; what was written "
            "before is intact."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _no_room(error):
    """Whether an exception, or the one it was raised from, says that the disk is full or a quota is used up."""
    codes = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    return any(
        isinstance(one, OSError) and one.errno in codes or any(f"errno = {code}" in str(one) for code in codes)
        for one in chain
    )


_claimed: dict[pathlib.Path, int] = {}


def claim_folder(path: StrPath) -> None:
    """Keep an output folder for this process until it ends: another run must not write there meanwhile.

    The folder itself is locked (`flock`), which leaves no file and ends with the process, however that ends. Where the
    system has no such locks, nothing is checked.

    Args:
        path: of the folder.

    Raises:
        UserError: if another process has claimed it.
    """
    path = pathlib.Path(path).resolve()
    if path in _claimed or _discarding or not _HAS_LOCKS:
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise UserError(
            f"Another run is writing to {path}: wait for its end, or name another folder with --output."
        ) from error
    except OSError:  # a file system without locks
        os.close(folder)
        return
    _claimed[path] = folder


def remove_leftovers(folder: StrPath) -> None:
    """Delete the temporary files of `atomic_write` in a folder whose processes, on this host, have been killed.

    Args:
        folder: where they are.
    """
    for path in pathlib.Path(folder).glob(f".*.{_host()}-*"):
        match = re.search(rf"\.{re.escape(_host())}-(\d+)(\.\w+)?$", path.name)
        if match and not _is_running(int(match[1])):
            remove(path)


def _host():
    """Name of this host, as a part of file names."""
    return re.sub(r"\W", "_", socket.gethostname())


def _is_running(pid):
    """Whether a process of this host runs; True where that cannot be told."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


def cache_dir() -> pathlib.Path:
    """Folder for what can be made again: `ZOO_CACHE_DIR`, else keras-model-zoo in the platform's cache folder."""
    if folder := os.environ.get("ZOO_CACHE_DIR"):
        return pathlib.Path(folder).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "keras-model-zoo"


def write_text(path: StrPath, text: str) -> None:
    """Write a text file atomically.

    Args:
        path: of the file.
        text: its content, written as UTF-8.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: StrPath, value: Any) -> None:
    """Write a JSON file atomically, indented.

    Args:
        path: of the file.
        value: its content.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def is_hidden(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a file or folder is one of the system's, or in one: its name begins with a dot, or is __MACOSX or @eaDir.

    Args:
        path: below `folder`.
        folder: whose own name does not count.

    Returns:
        bool.
    """
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in path.relative_to(folder).parts)


def sha256(path: StrPath) -> str:
    """The sha256 of a file.

    Args:
        path: of the file.

    Returns:
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_folder(path: StrPath) -> pathlib.Path:
    """Make an output folder and prove that it can be written to, before any work is done for it.

    Temporary files that a killed process left there are deleted.

    Args:
        path: of the folder.

    Returns:
        the same as `pathlib.Path`.

    Raises:
        UserError: if it cannot be made or written to.
    """
    path = pathlib.Path(path)
    probe = path / f".write-test.{_host()}-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to {path} ({error.strerror}): choose another folder with --output.") from error
    remove_leftovers(path)
    _prepared.add(path.absolute())
    return path
