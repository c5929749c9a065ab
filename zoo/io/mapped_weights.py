"""The weights of a large `.keras` file, read where they are in it.

`keras.saving.load_model` first copies all weights to memory or to another file, reads each into an array, and copies
that into a variable whose memory was filled with initial values. Here a weight is copied at most once: on PyTorch it is
a private view of the file's pages (`mmap`), which are read when they are used and shared between processes; on JAX and
TensorFlow, which use memory in place where it is aligned to 64 bytes, it is read into such memory.
"""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.compat.keras import deserialize_model, load_weights
from zoo.io.weight_memory import aligned_zeros, share_memory
from zoo.typing import StrPath, Tensor

if TYPE_CHECKING:
    import h5py
    import keras

_SMALLEST = 2**16  # bytes of a weight that is worth it


def find_weights(path: StrPath) -> tuple[int, int] | None:
    """Where the weights are in a `.keras` file.

    Args:
        path: of the file, a whole one.

    Returns:
        (first byte, bytes); None if they are compressed, or if there is more to the model, such as assets.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) > 3 or "model.weights.h5" not in names:
            return None
        member = archive.getinfo("model.weights.h5")
    if member.compress_type != zipfile.ZIP_STORED:
        return None
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        return member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))), member.file_size


def load_mapped(path: StrPath, config: dict[str, Any], start: int, length: int) -> keras.Model:
    """Load a model whose weights are a part of its file.

    Args:
        path: of the `.keras` file.
        config: its description of the model.
        start: first byte of its weights.
        length: their bytes.

    Returns:
        `keras.Model`, not compiled.
    """
    import keras

    in_place = keras.backend.backend() == "torch" and sys.platform != "win32"  # Windows cannot replace a mapped file
    model = deserialize_model(config)
    with open(path, "rb", buffering=0) as file, _assign_by_reference():
        part = _Part(file, start, length)

        def read(dataset: h5py.Dataset) -> Tensor | None:
            offset, dtype = dataset.id.get_offset(), dataset.dtype
            plain = dtype.kind == "f" and dtype.isnative and "dtype" not in dataset.attrs
            if offset is None or not plain or dataset.nbytes < _SMALLEST or offset + dataset.nbytes > length:
                return None
            if in_place:
                return share_memory(np.memmap(path, dtype, "c", start + offset, dataset.shape))
            array = aligned_zeros(dataset.shape, dtype)
            part.seek(offset)
            part.readinto(array)
            return share_memory(array)

        load_weights(model, part, read)
    return model


@contextlib.contextmanager
def _assign_by_reference() -> Iterator[None]:
    """On PyTorch, let `Variable.assign` take a tensor's memory, which Keras copies; on the others Keras takes it."""
    import keras

    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    original = keras.Variable.assign

    def assign(variable, value):
        old = variable.value
        if not isinstance(value, torch.Tensor) or (value.dtype, value.shape, value.device) != (
            old.dtype,
            old.shape,
            old.device,
        ):
            return original(variable, value)
        old.data = value
        return value

    keras.Variable.assign = assign
    try:
        yield
    finally:
        keras.Variable.assign = original


class _Part(io.BytesIO):
    """Some bytes of an open file as a file to be read."""

    def __init__(self, file, start, length):
        super().__init__()
        self.file, self.start, self.length, self.position = file, start, length, 0

    def seek(self, offset, whence=io.SEEK_SET):
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    def tell(self):
        return self.position

    def readinto(self, buffer):
        self.file.seek(self.start + self.position)
        done = 0
        with memoryview(buffer).cast("B") as view:
            while done < len(view) and (count := self.file.readinto(view[done:])):  # at most 2 GB at once
                done += count
        self.position += done
        return done

    def read(self, size=-1):
        buffer = bytearray(max(0, self.length - self.position) if size is None or size < 0 else size)
        return bytes(buffer[: self.readinto(buffer)])
