"""Atomic writes, digests, output folders."""

import contextlib
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

_discarding = False


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

    Args:
        path: of the file.

    Yields:
        a temporary path beside it (same suffix); on success it is flushed to disk and renamed to `path`.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}.{_host()}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if _discarding:
            return
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    return path
