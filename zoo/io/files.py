"""Atomic writes, digests, output folders."""

import contextlib
import hashlib
import json
import os
import pathlib

from zoo.errors import UserError

_discarding = False


def discard_writes():
    """From now on, throw away what this process writes: another one of the same run writes the same."""
    global _discarding
    _discarding = True


def discarding():
    """Whether what this process writes is thrown away."""
    return _discarding


def remove(path):
    """Delete a file if it is there, in the one process of a run that writes."""
    if not _discarding:
        pathlib.Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path` (same suffix); on success it is flushed to disk and renamed to `path`.

    Whatever happens, `path` holds either its old content or the whole new one.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if _discarding:
            return
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write a JSON file atomically, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path):
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_folder(path):
    """Make an output folder and prove that it can be written to, before any work is done for it.

    Raises:
        UserError: if it cannot be made or written to.
    """
    path = pathlib.Path(path)
    probe = path / f".write-test.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to {path} ({error.strerror}): choose another folder with --output.") from error
    return path
