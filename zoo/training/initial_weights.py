"""Initial weights drawn by NumPy: one seed gives the same weights on every backend."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

INITIALIZERS = ("glorot", "he", "recurrent", "transformer")


def set_initial_weights(model: keras.Model, *, seed: int, initializer: str = "glorot") -> None:
    """Draw every kernel from U(-a, a) and set every bias to zero.

    Keras' own initialisers draw different numbers on each backend for the same seed; these do not. Tensors are drawn
    in the order of `model.weights` from one NumPy generator.

    Args:
        model: a built model whose weights are kernels (rank 2 or more) and biases (rank 1).
        seed: integer seed.
        initializer: "glorot", a = sqrt(6 / (fan_in + fan_out)), Keras' default (Glorot and Bengio 2010, equation 16);
            or "he", a = sqrt(6 / fan_in) for convolutions, made for ReLU (He et al. 2015, equation 10), with
            a = sqrt(1 / fan_in) for dense kernels as in `torch.nn.Linear`, which keeps the first logits small.
            Fans count the receptive field. Or "recurrent", for language models: kernels as "glorot", recurrent kernels
            orthogonal (Saxe et al. 2014), embeddings U(-0.05, 0.05), biases zero but for the forget gate of an LSTM,
            which is one (Jozefowicz et al. 2015, section 2.2): the distributions that Keras uses. Or "transformer":
            kernels as "glorot", embeddings normal with standard deviation 1 / sqrt(hidden_dim) (Vaswani et al. 2017,
            section 3.4, scales them back), scales of normalisations one.

    Raises:
        ValueError: if the initializer is unknown.
    """
    if initializer not in INITIALIZERS:
        raise ValueError(f"Unknown initializer {initializer!r}: choose one of {', '.join(INITIALIZERS)}.")
    rng = np.random.default_rng(seed)
    values = []
    for weight in model.weights:
        shape = tuple(weight.shape)
        if initializer == "recurrent" and weight.name != "kernel":
            values.append(_initial_recurrent(weight, shape, rng))
            continue
        if initializer == "transformer" and weight.name != "kernel":
            values.append(_initial_transformer(weight, shape, rng))
            continue
        if len(shape) < 2:
            values.append(np.zeros(shape, "float32"))
            continue
        fan_in, fan_out = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
        if initializer != "he":
            bound = math.sqrt(6 / (fan_in + fan_out))
        else:
            bound = math.sqrt((6 if len(shape) > 2 else 1) / fan_in)
        values.append(rng.uniform(-bound, bound, shape).astype("float32"))
    model.set_weights(values)


def _initial_recurrent(weight, shape, rng):
    """The initial value of a recurrent language model's weight that is not a kernel."""
    if weight.name == "recurrent_kernel":
        q, r = np.linalg.qr(rng.normal(size=shape[::-1]))  # (gates·h, h), orthonormal columns
        return (q * np.sign(np.diag(r))).T.astype("float32")
    if weight.name in ("embeddings", "reverse_embeddings"):
        return rng.uniform(-0.05, 0.05, shape).astype("float32")
    values = np.zeros(shape, "float32")
    if "lstm" in weight.path and weight.name == "bias":
        units = shape[0] // 4
        values[units : 2 * units] = 1.0
    return values


def _initial_transformer(weight, shape, rng):
    """The initial value of a transformer's weight that is not a kernel."""
    if weight.name in ("embeddings", "reverse_embeddings") and shape[0] > 1:
        return (rng.normal(size=shape) / math.sqrt(shape[-1])).astype("float32")
    return np.full(shape, 1.0 if weight.name == "gamma" else 0.0, "float32")
