"""Saving `.keras` files, and loading them with sentences that say what is wrong.

Keras is imported where a model is saved or loaded.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import json
import os
import pathlib
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from zoo.compat.keras import (
    flatten_layers,
    save_through_disk,
    without_tensorflow,
)
from zoo.errors import UserError, did_you_mean, error_summary, listed
from zoo.io.cards import check_file
from zoo.io.files import atomic_write
from zoo.io.foreign_files import explain_foreign_file
from zoo.io.mapped_weights import find_weights, load_mapped
from zoo.io.schemas import MOST_BYTES
from zoo.io.weight_memory import zero_weight_init
from zoo.typing import StrPath

if TYPE_CHECKING:
    import keras

LARGE_MODEL = 2**28  # bytes of weights


def save_model(model: keras.Model, path: StrPath) -> None:
    """Save a model without its compile state (so that it loads on every backend), atomically.

    Args:
        model: a built model.
        path: of the `.keras` file.

    Raises:
        UserError: if a layer has LoRA, whose A and B a `.keras` file loses: Keras loads it with zeros in their places.
    """
    import keras

    if any(getattr(layer, "lora_enabled", False) for layer in flatten_layers(model)):
        raise UserError(
            f"{model.name} has LoRA layers, which a .keras file does not keep apart: merge them into the weights with "
            "zoo.lora.merge_lora(model), or save them alone with zoo.lora.save_lora(model, path)."
        )
    if isinstance(model, keras.Sequential):  # has no `input` before it was called
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    else:
        model = keras.Model(model.input, model.output, name=model.name)
    with atomic_write(path) as temporary, without_tensorflow(), save_through_disk(LARGE_MODEL):
        model.save(temporary)


def check_model_file(path: StrPath) -> None:
    """Prove that a `.keras` file is whole and, if a card in its folder describes it, the one described.

    Args:
        path: of the file.

    Raises:
        UserError: if the file is missing, truncated, altered, or of another kind.
    """
    _check_kind(path)
    _check_content(path)


def _check_kind(path):
    """Refuse what is no `.keras` file, by its first bytes."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the path of a .keras file{_files_in(path)}.")
    if not path.is_file():
        siblings = [file.name for file in path.parent.glob("*.keras")] if path.parent.is_dir() else []
        raise UserError(
            f"There is no model file at {path}: give the path of a .keras file.{did_you_mean(path.name, siblings)}"
        )
    if words := explain_foreign_file(path, expected=["keras"]):
        raise UserError(words)


def _check_content(path):
    """Read the whole file and compare it with its card's sha256 or, where no card names it, with its own checksums."""
    is_whole = check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = None if is_whole else archive.testzip()
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise UserError(
            f"{path} is not a whole .keras file ({error_summary(error)}): fetch or save it again."
        ) from error
    if damaged:
        raise UserError(f"{path} is damaged (checksum of {damaged} is wrong): fetch or save it again.")
    if (size := _file_size(path, "config.json")) > MOST_BYTES:
        raise UserError(f"{path} has a description of {size:,} bytes, too many for a model: fetch or save it again.")


@contextlib.contextmanager
def _content_checked(path):
    """Check a file's content before the block or, where it is large, on another thread beside it, and raise that first.

    On two cores, building a model of 4 GB takes as long as its sha256.
    """
    if os.path.getsize(path) < LARGE_MODEL:
        _check_content(path)
        yield
        return
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        check = executor.submit(_check_content, path)
        try:
            yield
        finally:
            check.result()


def load_model(path: StrPath, *, dtype: str | None = None, load_weights: bool = True) -> keras.Model:
    """Load a `.keras` file after checking that it is whole and, if a card in its folder describes it, that very file.

    Nothing in the file is run or imported: classes of your own must be registered before.

    Args:
        path: of the file.
        dtype: name of a dtype policy for all layers, e.g. "bfloat16" or "mixed_bfloat16"; as in the file if None.
        load_weights: False for fresh initial weights.

    Returns:
        `keras.Model`, not compiled.

    Raises:
        UserError: if the file is missing, truncated, altered, not a Keras model, or needs unknown custom classes
            (all of which are named), or the dtype is unknown.
    """
    _check_kind(path)
    import keras

    if dtype is not None:
        try:
            dtype = keras.dtype_policies.get(dtype).name
        except (ValueError, TypeError) as error:
            raise UserError(f"dtype is {dtype!r}, expected a policy such as float32 or mixed_bfloat16.") from error
    with _content_checked(path):
        return _load(path, dtype, load_weights)


def _load(path, dtype, load_weights):
    import keras

    try:
        with without_tensorflow(), zero_weight_init(_most_bytes(path)) if load_weights else contextlib.nullcontext():
            if dtype is not None or not load_weights:
                model = _model_from_config(path, dtype)
                if load_weights:
                    model.load_weights(path)
                return model
            if (extent := find_weights(path)) and extent[1] >= LARGE_MODEL:
                return load_mapped(path, read_config(path), *extent)
            try:
                return keras.saving.load_model(path, compile=False, safe_mode=True)
            except ValueError:
                if (model := _load_quantized_attention(path)) is None:
                    raise
                return model
    except Exception as error:  # Keras raises many kinds; all of them mean that this file cannot be used
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            raise UserError(
                f"{path} describes a model with more weights than the file can hold: it is damaged, or made to harm."
            ) from error
        if missing := _unknown_objects(path):
            raise UserError(_needs(path, missing)) from error
        if "Python lambda" in str(error):
            raise UserError(
                f"{path} holds a Lambda layer, which is Python code inside the file and is never run: save the model "
                "again with stock layers or registered classes in its place."
            ) from error
        raise UserError(f"{path} cannot be loaded as a Keras model: {error_summary(error)}.") from error


def _load_quantized_attention(path):
    """The model of a file in which attention layers are quantized, or None if it is no such file.

    Keras 3.15 quantizes the four projections of `MultiHeadAttention`, but writes nothing of it to the layer's
    configuration, so that it builds them in float32 again and then finds other weights in the file.
    """
    import keras

    attention = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    for mode in ("int8", "int4"):
        model = _model_from_config(path, None)
        layers = [layer for layer in flatten_layers(model) if isinstance(layer, attention)]
        projections = [
            one
            for layer in layers
            for one in flatten_layers(layer)
            if isinstance(one, keras.layers.EinsumDense) and one.built and not one.quantization_mode
        ]
        if not projections:
            return None
        for projection in projections:
            projection.quantize(mode)
        try:
            model.load_weights(path)
        except ValueError:
            continue
        return model
    return None


def _file_size(path, name):
    """Bytes of a member of a .keras file when inflated; 0 if there is none."""
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(name).file_size if name in archive.namelist() else 0


def _most_bytes(path):
    """Most bytes of float32 for the weights of a file, which may be of half precision, with room for states."""
    return 2 * _file_size(path, "model.weights.h5") + 2**26


def read_config(path: StrPath) -> dict[str, Any]:
    """The description of the model in a `.keras` file, without its compile state.

    Args:
        path: of the file, one that `check_model_file` has passed.

    Returns:
        dict, for `keras.saving.deserialize_keras_object`.

    Raises:
        UserError: if there is no description of a model in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        return config | {"compile_config": None}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no model of Keras ({error_summary(error)}): give one that model.save wrote."
        ) from error


def _model_from_config(path, dtype):
    """The model that a file describes, with initial weights, all layers of one dtype policy."""
    import keras

    config = read_config(path)
    return keras.saving.deserialize_keras_object(_with_dtype(config, dtype) if dtype else config, safe_mode=True)


def _with_dtype(config, dtype):
    """A serialized object with every dtype policy in it replaced; inputs and casts name a plain dtype and keep it."""
    if isinstance(config, list):
        return [_with_dtype(value, dtype) for value in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return config | {"config": {"name": dtype}}
    return {key: _with_dtype(value, dtype) for key, value in config.items()}


def _files_in(folder):
    names = sorted(file.name for file in folder.glob("*.keras"))
    return f", e.g. {folder / names[0]}" if names else " (it holds none)"


# Where Keras looks for a function that a file knows by its bare name, such as "relu".
_FUNCTION_MODULES = ("activations", "constraints", "initializers", "losses", "metrics", "optimizers", "regularizers")
# Packages that Keras imports by itself for the classes in a file.
_KNOWN_PACKAGES = ("keras", "keras_hub", "keras_cv", "keras_nlp")


def _unknown_objects(path):
    """Classes and functions that a model file names and this process does not have: {registered name: module or None}.

    Reads the description in the file (config.json) and imports nothing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pending = [json.loads(archive.read("config.json"))]
    except (KeyError, ValueError, RecursionError, OSError, zipfile.BadZipFile, zlib.error):
        return {}
    found = {}
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += reversed(item)
        elif isinstance(item, dict):
            # Models are loaded without their compile state, so a custom loss or metric is not needed.
            pending += [value for key, value in reversed(item.items()) if key not in ("compile_config", "build_config")]
            name, module = _unknown(item)
            if name:
                found.setdefault(name, module)
    return found


def _unknown(item):
    """(registered name, module) of a serialised object that cannot be resolved here, else (None, None)."""
    import keras

    kind, module = item.get("class_name"), item.get("module")
    if not isinstance(kind, str) or "config" not in item or kind.startswith("__"):
        return None, None
    name = item["config"] if kind == "function" else item.get("registered_name") or kind
    if not isinstance(name, str) or keras.saving.get_registered_object(name) is not None:
        return None, None
    if module == "builtins":
        module = None
        if any(hasattr(getattr(keras, part), name) for part in _FUNCTION_MODULES):
            return None, None
    package = str(module).partition(".")[0]
    if package in _KNOWN_PACKAGES and importlib.util.find_spec(package):
        return None, None
    return name, module


_UNKNOWN = "which this process does not know"


def without_advice(error: UserError) -> str | None:
    """What is missing for a file with classes of one's own, for callers that have another way to register them.

    Args:
        error: that `load_model` raised.

    Returns:
        "… needs the custom class …, which this process does not know"; None for other errors.
    """
    sentence, found, _ = str(error).partition(f"{_UNKNOWN}:")
    return sentence + _UNKNOWN if found else None


def _needs(path, missing):
    words = [f"{name} (of {module})"[:120] if module else str(name)[:120] for name, module in missing.items()]
    one = len(missing) == 1
    return (
        f"{path} needs the custom {'class' if one else 'classes'} {listed(words, most=6)}, {_UNKNOWN}: "
        f"import the module that defines {'it' if one else 'them'} (registered with "
        "keras.saving.register_keras_serializable), then load the file again."
    )
