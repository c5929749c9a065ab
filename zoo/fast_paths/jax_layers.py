"""The fast paths on JAX, on a CPU; those of products are in `zoo.fast_paths.products`.

Maximum pooling: XLA differentiates it by `select_and_scatter`, which runs on one thread. Here the position of each
maximum is kept from the forward pass, and the gradient is one elementwise pass.

Convolutions and layer normalization: XLA adds up the gradient of a bias, over three axes or two, one number at a time.
Here it is a product with ones.

The exact GELU: JAX takes it of erfc, which costs four times what erf does, of which PyTorch and TensorFlow take it.

Attention of many queries, in inference: XLA writes out the scores of all heads, 1.07 GB in Stable Diffusion at 512x512,
three times. Here they are those of a block of queries of one head, which stay in the processor's cache.
"""

import functools

import keras

from zoo.fast_paths.products import has_dtype_of, in_each_row
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


def convolution(layer: keras.layers.Conv2D, inputs: Tensor) -> Tensor:
    """Keras' convolution, with a bias whose gradient is a product.

    Args:
        layer: stock layer to which it applies.
        inputs: (B, H, W, C).

    Returns:
        array, (B, H', W', C'), or `NotImplemented`.
    """
    if not has_dtype_of(layer, inputs):
        return NotImplemented
    outputs = layer.convolution_op(inputs, layer.kernel)
    outputs = outputs + in_each_row(layer.bias.value, outputs)
    return outputs if layer.activation is None else layer.activation(outputs)


def layer_normalization(layer: keras.layers.LayerNormalization, inputs: Tensor) -> Tensor:
    """Keras' normalization, with a scale and an offset whose gradients are products.

    Args:
        layer: stock layer to which it applies.
        inputs: (..., features).

    Returns:
        array, the shape of the inputs, or `NotImplemented`.
    """
    if not has_dtype_of(layer, inputs) or list(layer.axis) not in ([-1], [inputs.ndim - 1]):
        return NotImplemented
    outputs = keras.ops.layer_normalization(inputs, axis=-1, epsilon=layer.epsilon)
    if layer.scale:
        outputs = outputs * in_each_row(layer.gamma.value, outputs)
    return outputs + in_each_row(layer.beta.value, outputs) if layer.center else outputs


def gelu(operation: keras.Operation, x: Tensor) -> Tensor:
    """x (1 + erf(x / sqrt(2))) / 2.

    Args:
        operation: what `keras.ops.gelu` puts into the graph of a functional model, to which it applies.
        x: any shape.

    Returns:
        array, the shape of x, or `NotImplemented`.
    """
    import jax

    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)) if x.dtype == "float32" else NotImplemented


_FEWEST_QUERIES = 1024  # below, there is nothing to gain
_BLOCK_SIZES = (512, 384, 256)  # queries at once, by preference


def attention(
    operation: keras.Operation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """What `keras.ops.dot_product_attention` computes, a block of queries of one head after the other.

    The scores are divided by their sums after the product with the values (Rabe and Staats 2021, "Self-attention does
    not need O(n²) memory", without their blocks of keys).

    Args:
        operation: of a functional graph, to which it applies.
        query: (B, T, N, H).
        key: (B, S, N, H).
        value: (B, S, N, H).
        bias: as in Keras.
        mask: as in Keras.
        scale: of the scores; 1 / sqrt(H) if None.

    Returns:
        array, (B, T, N, H), or `NotImplemented` where it does not apply to these inputs.
    """
    import jax
    import jax.numpy as jnp

    batch, length, heads, size = query.shape
    block_size = next((block for block in _BLOCK_SIZES if length % block == 0), None)
    dtypes = {x.dtype.name for x in (query, key, value)}
    if bias is not None or mask is not None or block_size is None or length < _FEWEST_QUERIES or dtypes != {"float32"}:
        return NotImplemented
    scale = size**-0.5 if scale is None else scale

    def head_major(x):
        return x.swapaxes(1, 2).reshape(batch * heads, -1, size)

    def one_head(arrays):
        query, key, value = arrays

        def one_block(query):
            scores = query @ key.T * scale
            weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
            return weights @ value / weights.sum(axis=1, keepdims=True)

        return jax.lax.map(one_block, query.reshape(-1, block_size, size)).reshape(length, size)

    outputs = jax.lax.map(one_head, (head_major(query), head_major(key), head_major(value)))
    return outputs.reshape(batch, heads, length, size).swapaxes(1, 2)


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
