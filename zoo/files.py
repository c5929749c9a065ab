"""Files that can be trusted: atomic writes, sha256, model cards, and loading that says what is wrong."""

import contextlib
import hashlib
import json
import os
import pathlib
import sys
import zipfile

import keras

from zoo.errors import UserError


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path` (same suffix); on success it is flushed to disk and renamed to `path`.

    Whatever happens, `path` holds either its old content or the whole new one.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file atomically."""
    with atomic(path) as temporary:
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


def save_model(model, path):
    """Save a model without its compile state (so that it loads on every backend), atomically."""
    model = keras.Model(model.inputs, model.outputs, name=model.name)
    with atomic(path) as temporary, _without_tensorflow():
        model.save(temporary)


def load_model(path):
    """Load a `.keras` file after checking that it is whole and, if a card lies beside it, the one the card describes.

    Raises:
        UserError: if the file is missing, truncated, altered, not a Keras model, or needs unknown custom classes.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"There is no model file at {path}: give the path of a .keras file.")
    card = read_card(path)
    if card and card.get("sha256") != (found := sha256(path)):
        raise UserError(
            f"{path} has sha256 {found[:12]}… but its card {path.with_suffix('.json').name} says "
            f"{str(card.get('sha256'))[:12]}…: the file was altered or cut short, fetch it again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"{path} is not a whole .keras file ({error}): fetch or save it again.") from error
    if damaged:
        raise UserError(f"{path} is damaged (checksum of {damaged} is wrong): fetch or save it again.")
    try:
        with _without_tensorflow():
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds; all of them mean that this file cannot be used
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be loaded as a Keras model: {reason}") from error


def read_card(path):
    """Return the card (`<name>.json` beside a model file) as a dict, or None if there is none."""
    card = pathlib.Path(path).with_suffix(".json")
    if not card.is_file():
        return None
    try:
        return json.loads(card.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{card} is not valid JSON ({error}): fetch the card again.") from error


@contextlib.contextmanager
def _without_tensorflow():
    """Keep Keras on JAX and PyTorch from importing TensorFlow while saving and loading.

    Keras 3.15 imports it only to ask whether an object is one of its types (`serialize_keras_object`), which takes
    seconds and hundreds of megabytes.
    """
    lazy_module = keras.src.utils.module_utils.tensorflow
    hide = keras.backend.backend() != "tensorflow" and "tensorflow" not in sys.modules
    if hide:
        lazy_module._available = False
    try:
        yield
    finally:
        if hide:
            lazy_module._available = None
