"""Intact files of another kind than the one expected: what each is, and what to do with it.

A file is told by its first bytes and, if it is a zip archive, by the names in it; its own name counts for nothing.
"""

from __future__ import annotations

import pathlib
import struct
import zipfile
from collections.abc import Sequence

from zoo.typing import StrPath

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HDF5 = b"\x89HDF\r\n\x1a\n"


def explain_foreign_file(path: StrPath, *, expected: Sequence[str]) -> str | None:
    """A sentence about a file of a known kind that is not among those expected.

    Args:
        path: of a file that exists.
        expected: kinds that the caller reads: "keras", "safetensors" or "torch".

    Returns:
        what the file is and what to do; None for a file of an expected kind or of none that is known here.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        start = file.read(512)
    kind = _kind(path, start)
    if kind is None or kind in expected:
        return None
    stem = path.with_suffix("")
    target = path.with_suffix(".keras") if path.suffix != ".keras" else path.with_name(f"{path.stem}-converted.keras")
    old = path if path.suffix in (".h5", ".hdf5") else path.with_suffix(".h5")  # Keras reads HDF5 by that name alone
    rename = "" if old == path else f"rename it to {old.name} and "
    explanations = {
        "empty": "is empty: fetch it again.",
        "git lfs": "is a pointer of Git LFS, a few lines in place of the file itself: run `git lfs pull` in the "
        "repository that it comes from, or download the file from its page.",
        "web page": "is a web page, not the file that the page offers: download the file itself.",
        "hdf5 model": f"is a model in HDF5, the format of Keras before 3: {rename}convert it once, "
        f"keras.models.load_model('{old}', compile=False).save('{target}').",
        "hdf5 weights": f"holds weights without the model, in HDF5: {rename}build the model, then model.load_weights("
        f"'{old}') and model.save('{target}').",
        "npz": "is an archive of NumPy arrays (.npz), without a model: build the model, then model.set_weights(...) "
        f"and model.save('{target}').",
        "torchscript": "is a TorchScript program, which is code: save its weights alone, "
        f"torch.save(torch.jit.load('{path}').state_dict(), '{stem}-weights.pt').",
        "torch": "is a file of PyTorch, weights without a Keras model: `zoo convert --help` says what can be "
        "converted.",
        "safetensors": "is a safetensors file, weights without a Keras model: `zoo convert --help` says what can be "
        "converted.",
        "keras": f"is a Keras model: name it {path.stem}.keras, and give it where a model is expected.",
    }
    return f"{path} {explanations[kind]}"


def _kind(path, start):
    if not start:
        return "empty"
    if start.startswith(_LFS_POINTER):
        return "git lfs"
    if start.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "web page"
    if start.startswith(_HDF5):
        return "hdf5 model" if _has_model_config(path) else "hdf5 weights"
    if start.startswith(b"PK"):
        return _kind_of_archive(path)
    if len(start) > 8 and start[8:9] == b"{":  # the size of the header in 8 bytes, then the header in JSON
        (size,) = struct.unpack("<Q", start[:8])
        return "safetensors" if size <= path.stat().st_size - 8 else None
    return None


def _has_model_config(path):
    """Whether an HDF5 file holds a model as Keras before 3 wrote it."""
    try:
        import h5py

        with h5py.File(path) as file:
            return "model_config" in file.attrs
    except Exception:  # damaged, or h5py is not installed
        return True


def _kind_of_archive(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged, for which zipfile raises many kinds; the reader says so
        return None
    if "config.json" in names:
        return "keras"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    ends = {name.partition("/")[2] for name in names}
    if "data.pkl" in ends:
        return "torchscript" if any(name.partition("/")[2].startswith("code/") for name in names) else "torch"
    return None
