"""The fast path of maximum pooling on JAX.

XLA differentiates a maximum pooling by `select_and_scatter`, which runs on one thread of a CPU. Here the position of
each maximum is kept from the forward pass, and the gradient is one elementwise pass.
"""

import functools

import keras

from zoo.typing import Tensor


def max_pooling(layer: keras.layers.MaxPooling2D, inputs: Tensor) -> Tensor:
    """Maxima of windows that neither overlap nor pad.

    Args:
        layer: stock layer to which it applies.
        inputs: (B, H, W, C).

    Returns:
        array, (B, H/h, W/w, C) for windows of size (h, w).
    """
    return _pooling()(tuple(layer.pool_size), inputs)


@functools.cache
def _pooling():
    import jax
    import jax.numpy as jnp

    def windows(size, inputs):
        """The elements of each window in row-major order: a list of h·w arrays (B, H/h, W/w, C)."""
        (h, w), (batch, height, width, channels) = size, inputs.shape
        rows, columns = height // h, width // w
        inputs = inputs[:, : rows * h, : columns * w].reshape(batch, rows, h, columns, w, channels)
        return [inputs[:, :, i, :, j] for i in range(h) for j in range(w)]

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def pooling(size, inputs):
        return functools.reduce(jnp.maximum, windows(size, inputs))

    def forward(size, inputs):
        elements = windows(size, inputs)
        maximum = functools.reduce(jnp.maximum, elements)
        position = jnp.full(maximum.shape, len(elements) - 1, jnp.int8)
        for index in reversed(range(len(elements) - 1)):  # the first of equal elements wins
            position = jnp.where(elements[index] == maximum, jnp.int8(index), position)
        return maximum, (position, inputs)

    def backward(size, residual, gradient):
        position, inputs = residual
        (h, w), (batch, height, width, channels) = size, inputs.shape
        rows, columns = height // h, width // w
        index = jnp.arange(h * w, dtype=jnp.int8).reshape(1, 1, h, 1, w, 1)
        spread = jnp.where(position[:, :, None, :, None] == index, gradient[:, :, None, :, None], 0)
        spread = spread.reshape(batch, rows * h, columns * w, channels)
        pad = ((0, 0), (0, height - rows * h), (0, width - columns * w), (0, 0))
        return (jnp.pad(spread, pad) if any(b for _, b in pad) else spread,)

    pooling.defvjp(forward, backward)
    return pooling
