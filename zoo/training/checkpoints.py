"""Checkpoints of a whole training state in one `.npz`: weights, optimizer, random streams, epoch and history.

Plain arrays, so that a run can go on in another process or on another backend, and atomic, so that a run killed while
writing leaves the last good one.
"""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.blocks.random_streams import random_streams
from zoo.errors import UserError, error_summary
from zoo.io import files, schemas
from zoo.typing import StrPath

if TYPE_CHECKING:
    import keras


def save_checkpoint(
    path: StrPath, model: keras.Model, *, settings: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    """Write the state of a compiled model after an epoch.

    Args:
        path: the `.npz` file.
        model: compiled and built, optimizer included.
        settings: dict of what defines the run; a checkpoint is only resumed under equal settings.
        history: list of one dict an epoch.
    """
    arrays = {}
    for key, variable in _state(model):
        arrays[key] = np.asarray(variable.numpy())
    meta = json.dumps({"settings": settings, "history": history})
    with files.atomic_write(path) as temporary:
        np.savez(temporary, meta=np.array(meta), **arrays)  # type: ignore[arg-type]  # as if for allow_pickle, too


def load_checkpoint(path: StrPath, model: keras.Model, *, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Restore a saved state into a compiled model.

    Args:
        path: the `.npz` file.
        model: compiled and built, optimizer included, as the one that was saved.
        settings: dict of what defines the run, to be compared with what the file says.

    Returns:
        the history, one dict for each finished epoch.

    Raises:
        UserError: if the file is missing, damaged, or of a run with other settings or another model.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"There is nothing to resume: {path} does not exist (it is removed when a run finishes).")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: np.asarray(stored[key]) for key in stored.files}  # bytes where it is no array
        meta = schemas.check(schemas.parse_object(str(arrays.pop("meta")), path), schemas.CheckpointMeta, path)
    except UserError:
        raise
    except Exception as error:  # NumPy, zipfile and Python's tokenizer raise many kinds for a damaged archive
        raise UserError(f"{path} is damaged ({error_summary(error)}): remove it and start the run again.") from error
    for key in sorted(settings.keys() | meta.settings.keys()):
        saved, current = meta.settings.get(key), settings.get(key)
        if saved != current:
            raise UserError(
                f"{path} was written by a run with {key}={saved}, this one has {key}={current}: use the same."
            )
    model.optimizer.build(model.trainable_variables)
    state = dict(_state(model))
    if state.keys() != arrays.keys():
        different = sorted(state.keys() ^ arrays.keys())
        raise UserError(
            f"{path} holds the state of another model (it differs in {different[0]} and {len(different) - 1} more)."
        )
    for key, variable in state.items():
        if tuple(variable.shape) != arrays[key].shape:
            raise UserError(f"{path}: {key} has shape {arrays[key].shape}, the model's is {tuple(variable.shape)}.")
        if arrays[key].dtype.kind not in "fiub":
            raise UserError(f"{path}: {key} holds no numbers: remove the file and start the run again.")
        variable.assign(arrays[key].astype(_dtype(variable)))
    return meta.history


def _state(model):
    """(key, variable) for everything that training changes; metrics and carried states are reset in each epoch.

    Weights are identified by position and path: two models within a model may have layers of the same name. Random
    streams and optimizer slots by position alone, since their automatic names count up within a process.
    """
    yield from ((f"weight {i} {v.path}", v) for i, v in enumerate(model.weights) if v.name != "rnn_state")
    yield from ((f"random stream {i}", v) for i, v in enumerate(random_streams(model)))
    yield from ((f"optimizer {i}", v) for i, v in enumerate(model.optimizer.variables))


def _dtype(variable):
    return np.asarray(variable.numpy()).dtype
