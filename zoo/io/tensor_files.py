"""State dicts in files, read one tensor at a time: safetensors, and torch files, of which no code is executed.

Opening a file reads names and shapes only; a file of several gigabytes takes the memory of its largest tensor.
"""

import pathlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from zoo.errors import UserError, did_you_mean, error_summary, listed, require
from zoo.io import schemas
from zoo.io.foreign_files import explain_foreign_file
from zoo.typing import StrPath

# File names of a model's weights in the layout of Hugging Face, by preference; an index names shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_REOPEN_AFTER_BYTES = 2**28  # of a safetensors file


class TensorFile:
    """The tensors of one file. A .safetensors file needs the package safetensors; any other is read by torch.

    Args:
        path: of the file.
        key: of the tensors in a torch file that holds more, such as a checkpoint of a training; None for a file of
            tensors by name.

    Attributes:
        shapes: dict name -> shape.
        metadata: dict of texts by name that a safetensors file may hold; {} for a torch file.

    Raises:
        UserError: if the file is missing, is damaged, holds code or anything but tensors by name, or if the package
            that reads it is missing.
    """

    def __init__(self, path: StrPath, *, key: str | None = None) -> None:
        self.path = path = pathlib.Path(path)
        if not path.is_file():
            siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(
                f"There is no file at {path}: give the path of a .pt or .safetensors file."
                f"{did_you_mean(path.name, siblings)}"
            )
        self._safe = path.suffix == ".safetensors"
        if words := explain_foreign_file(path, expected=["safetensors"] if self._safe else ["torch"]):
            raise UserError(words)
        require("safetensors" if self._safe else "torch", what=f"Reading {path}")
        try:
            content = _open_safetensors(path) if self._safe else _open_torch(path)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds more than tensors by name, or is damaged, and code in a file is never run: save the "
                "state dict alone, torch.save(model.state_dict(), path)."
            ) from error
        except Exception as error:  # zip and the libraries raise many kinds; all mean that this file cannot be used
            raise UserError(
                f"{path} is damaged or no {'safetensors' if self._safe else 'torch'} file ({type(error).__name__}: "
                f"{error_summary(error)}): fetch it or save it again."
            ) from error
        if not self._safe:
            content = _tensors_by_name(path, content, key)
            _check_storage(path, content)
        elif key is not None:
            raise UserError(f"{path} is a safetensors file, which holds tensors by name alone: leave out key={key!r}.")
        self._content, self._bytes_read = content, 0
        self.metadata: dict[str, str] = (content.metadata() or {}) if self._safe else {}
        self.shapes = {
            name: tuple(content.get_slice(name).get_shape() if self._safe else content[name].shape)
            for name in content.keys()
        }

    def get_tensor(self, name: str) -> np.ndarray:
        """Read a tensor.

        Args:
            name: one of `shapes`.

        Returns:
            NumPy array of the file's dtype (bfloat16 becomes float32).
        """
        if self._safe:
            if self._bytes_read > _REOPEN_AFTER_BYTES:  # else mapped pages add up in memory
                self._content, self._bytes_read = _open_safetensors(self.path), 0
            array = self._content.get_tensor(name)
            self._bytes_read += array.nbytes
            return array.astype("float32") if array.dtype.name == "bfloat16" else array
        tensor = self._content[name].detach()
        try:
            return np.asarray(tensor.numpy())
        except TypeError:  # a dtype that NumPy does not have, such as bfloat16 or float8
            return np.asarray(tensor.float().numpy())


class CheckpointReader:
    """The tensors of a folder in the layout of Hugging Face, in one file or in shards; used as a `TensorFile` is.

    Args:
        folder: where the files are.
        names: of the files that may hold the weights, the first choice first.

    Raises:
        UserError: if the folder holds no such file, or one that is unusable.
    """

    def __init__(self, folder: StrPath, names: Sequence[str] = WEIGHT_FILES) -> None:
        folder = pathlib.Path(folder)
        self.path = next((folder / name for name in names if (folder / name).is_file()), None)
        if self.path is None:
            raise UserError(
                f"{folder} holds no weights that can be read: {', '.join(names[:-1])} or {names[-1]} was expected."
            )
        paths = _shards(self.path) if self.path.suffix == ".json" else [self.path]
        self._files = {}
        for file in map(TensorFile, paths):
            self._files |= dict.fromkeys(file.shapes, file)
        self.shapes = {name: file.shapes[name] for name, file in self._files.items()}

    def get_tensor(self, name: str) -> np.ndarray:
        """Read a tensor.

        Args:
            name: one of `shapes`.

        Returns:
            NumPy array of the file's dtype (bfloat16 becomes float32).
        """
        return self._files[name].get_tensor(name)


def check_folder(folder: StrPath, *, holds: str, single_file: str) -> pathlib.Path:
    """Check that there is a folder to convert a model from.

    Args:
        folder: path.
        holds: what should be in it, e.g. "config.json, source.spm and so on".
        single_file: what to do with a file of weights in its place, for an error message.

    Returns:
        the path.

    Raises:
        UserError: if there is none, or a file is there.
    """
    path = pathlib.Path(folder)
    if path.is_file():
        words = explain_foreign_file(path, expected=["safetensors", "torch"])
        raise UserError(words or f"{path} is a file, where a folder was expected: {single_file}")
    if not path.is_dir():
        siblings = [one.name for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
        raise UserError(
            f"There is no folder {path}: give the one that holds {holds}, fetched with `hf download NAME --local-dir "
            f"FOLDER`.{did_you_mean(path.name, siblings)}"
        )
    return path


def read_float_tensor(checkpoint: TensorFile | CheckpointReader, name: str) -> np.ndarray:
    """Read a tensor of floating-point numbers.

    Args:
        checkpoint: has the tensor.
        name: one of its `shapes`.

    Returns:
        NumPy array of float32.

    Raises:
        UserError: if it holds something else than floating-point numbers.
    """
    array = checkpoint.get_tensor(name)
    if array.dtype.kind != "f":
        raise UserError(
            f"In {checkpoint.path}, {name} holds {array.dtype}, where floating-point numbers were expected."
        )
    return array.astype("float32", copy=False)


def check_state_dict(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], owner: str, advice: str
) -> None:
    """Check the names and shapes of a state dict.

    Args:
        found: {name: shape} of the state dict.
        expected: {name: shape} that it should have.
        owner: what it should fit, for the message "The state dict does not fit <owner>".
        advice: what to do, for the message.

    Raises:
        UserError: if tensors are missing, unexpected or of another shape; they are named.
    """
    missing = [f"{name} {tuple(shape)}" for name, shape in expected.items() if name not in found]
    unexpected = [name for name in found if name not in expected]
    wrong = [
        f"{name} has shape {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    differences = [f"missing {listed(missing, most=8)}"] if missing else []
    differences += [f"unexpected {listed(unexpected, most=8)}"] if unexpected else []
    differences += [listed(wrong, most=4, between="; ")] if wrong else []
    if differences:
        raise UserError(f"The state dict does not fit {owner}: {'; '.join(differences)}: {advice}.")


def _open_safetensors(path):
    import ml_dtypes  # noqa: F401  (Keras needs it too) teaches NumPy what bfloat16 is
    from safetensors import safe_open

    return safe_open(path, framework="np")


def _open_torch(path):
    import torch

    # Files that are zip archives stay on the disk until a tensor is used; those of torch before 1.6 are read at once.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)


def _tensors_by_name(path, content, key):
    """What a torch file holds under a key, or as a whole; UserError for anything but tensors by name."""
    inside = (
        {name: value for name, value in content.items() if _are_tensors(value)} if isinstance(content, Mapping) else {}
    )
    if key is not None:
        if key not in inside:
            offered = f": choose one of {', '.join(map(str, inside))}" if inside else ""
            raise UserError(
                f"{path} holds no tensors by name under {key!r}{offered}.{did_you_mean(key, map(str, inside))}"
            )
        return inside[key]
    if _are_tensors(content):
        return content
    others = (
        [f"{name} (a {type(value).__name__})" for name, value in content.items() if not hasattr(value, "shape")]
        if (isinstance(content, Mapping))
        else [f"a {type(content).__name__}"]
    )
    advice = "save the state dict itself, torch.save(model.state_dict(), path)"
    if inside:
        advice = f"read those under one of its keys, key={' or key='.join(map(repr, inside))}"
    raise UserError(f"{path} holds {listed(others, most=8) or 'nothing'}, not only tensors by name: {advice}.")


def _are_tensors(value):
    return isinstance(value, Mapping) and bool(value) and all(hasattr(one, "shape") for one in value.values())


def _check_storage(path, tensors):
    """Raise UserError for tensors that do not hold their numbers one by one."""
    for name, tensor in tensors.items():
        kinds = {
            "sparse": str(tensor.layout) != "torch.strided",
            "quantized": tensor.is_quantized,
            "meta": tensor.is_meta,  # without numbers
        }
        if kind := next((kind for kind, found in kinds.items() if found), None):
            raise UserError(f"In {path}, {name} is a {kind} tensor: save the model's weights as plain tensors.")


def _shards(path):
    """Paths of the files that an index names."""
    shards = schemas.load(path, schemas.WeightIndex, "the index of the weights").weight_map
    paths = [path.with_name(name) for name in sorted(set(shards.values()))]
    if missing := [shard.name for shard in paths if not shard.is_file()]:
        raise UserError(
            f"{path} names {listed(missing, most=8)}, which {path.parent} does not hold: fetch all of its files."
        )
    return paths
