"""The memory of weights: tensors in the memory of arrays, and initial values that take none."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from zoo.typing import Tensor

ALIGNMENT = 64  # bytes: XLA and TensorFlow use memory in place where it begins at a multiple of this
_LARGE = 2**16  # bytes


def aligned_zeros(shape: tuple[int, ...], dtype: str | np.dtype[Any] = "float32") -> np.ndarray:
    """Zeros that JAX and TensorFlow can use in place; the system provides pages as they are written.

    Args:
        shape: of the array.
        dtype: of the array.

    Returns:
        NumPy array whose first byte is at a multiple of 64.
    """
    dtype = np.dtype(dtype)
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    memory = np.zeros(size + ALIGNMENT, "uint8")
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def share_memory(array: np.ndarray) -> Tensor:
    """A tensor of the backend in the memory of an array, which must not be written to afterwards.

    Args:
        array: contiguous; on JAX and TensorFlow it is copied where it is not aligned to 64 bytes.

    Returns:
        tensor of the same shape and dtype, in the memory of the CPU.
    """
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.from_numpy(array)
    if backend == "jax":
        import jax

        return jax.device_put(array, may_alias=True)
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


@contextlib.contextmanager
def zero_weight_init(max_bytes: int | None = None) -> Iterator[None]:
    """Models built inside have zeros where random numbers would be; what is not random has its usual value.

    Large ones take no memory until they are written to. Replaces the `__call__` of Keras' public initializers for the
    time.

    Args:
        max_bytes: of float32, of all weights together; None for no limit.

    Yields:
        None.

    Raises:
        MemoryError: if a model built inside would take more.
    """
    import keras

    taken = 0

    def take(shape):
        nonlocal taken
        taken += 4 * math.prod(shape)
        if max_bytes is not None and taken > max_bytes:
            raise MemoryError(f"more than {max_bytes:,} bytes of weights")

    def counted(original):
        def initial(self, shape, dtype=None):
            take(shape)
            return original(self, shape, dtype=dtype)

        return initial

    def zeros(self, shape, dtype=None):
        take(shape)
        dtype = dtype or keras.config.floatx()
        if dtype == "float32" and 4 * math.prod(shape) >= _LARGE:
            return share_memory(aligned_zeros(shape))
        return keras.ops.convert_to_tensor(np.zeros(shape, "float32"), dtype=dtype)

    roots = [getattr(keras.initializers, name) for name in ("RandomNormal", "RandomUniform", "TruncatedNormal")]
    roots += [keras.initializers.VarianceScaling, keras.initializers.Orthogonal]
    kinds = [kind for root in roots for kind in (root, *_subclasses(root)) if "__call__" in vars(kind)]
    fixed = [keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant]
    originals = {kind: kind.__call__ for kind in kinds + fixed}
    for kind, original in originals.items():
        kind.__call__ = counted(original) if kind in fixed else zeros
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__call__ = original


def _subclasses(kind):
    return [one for direct in kind.__subclasses__() for one in (direct, *_subclasses(direct))]
