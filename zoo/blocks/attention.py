"""Multi-head attention as functions on tensors, with stock layers that hold the weights.

    Attention(Q, K, V) = softmax(Q Kᵀ / sqrt(H)) V          Vaswani et al. 2017, equation 1

Letters: B batch, T queries, S keys, N heads, H size of a head, d = N·H. `get_layer` maps a name to a layer:
`model.get_layer` of a built model, or the `__getitem__` of a dict while one is being built.
"""

import math
from collections.abc import Callable

import numpy as np
from keras import layers, ops

from zoo.typing import Tensor

_PROJECTIONS = ("query", "key", "value", "output")
MASK_VALUE = -1e9  # attention score of a masked key; softmax maps it to 0
# Tensor parallelism of attention and feed-forward layers (Shoeybi et al. 2019, "Megatron-LM", section 3), as a
# `keras.distribution.LayoutMap` takes it: regular expression of a variable's path -> mesh axis by which each dimension
# is sharded. First products are sharded by columns, so that each device has whole heads, second ones by rows.
ATTENTION_LAYOUT_MAP = {
    ".*_(query|key|value)/kernel": (None, "model"),
    ".*_(query|key|value)/bias": ("model",),
    ".*_output/kernel": ("model", None),
    ".*_inner/kernel": (None, "model"),
    ".*_inner/bias": ("model",),
    ".*_outer/kernel": ("model", None),
}


def attention_layers(
    name: str, *, hidden_dim: int, num_heads: int, qkv_bias: bool = True, out_bias: bool = True
) -> list[layers.Layer]:
    """Build the layers of one multi-head attention.

    Args:
        name: prefix of the layers' names.
        hidden_dim: d, divisible by `num_heads`.
        num_heads: N.
        qkv_bias: whether the projections to queries, keys and values add a bias.
        out_bias: whether the output projection adds a bias.

    Returns:
        list of layers: four `Dense` to d, and the `Reshape`s that split d into heads and join them again.
    """
    biases = (qkv_bias, qkv_bias, qkv_bias, out_bias)
    projections = [
        layers.Dense(hidden_dim, use_bias=bias, name=f"{name}_{projection}")
        for projection, bias in zip(_PROJECTIONS, biases)
    ]
    split = [
        layers.Reshape((-1, num_heads, hidden_dim // num_heads), name=f"{name}_{projection}_heads")
        for projection in _PROJECTIONS[:3]
    ]
    return [*projections, *split, layers.Reshape((-1, hidden_dim), name=f"{name}_join")]


def project_heads(get_layer: Callable[[str], layers.Layer], name: str, x: Tensor) -> Tensor:
    """Project queries, keys or values and split them into heads.

    Args:
        get_layer: function from a name to a layer.
        name: of the projection, e.g. "encoder_0_self_attention_query".
        x: (B, T, d).

    Returns:
        (B, T, N, H).
    """
    return get_layer(f"{name}_heads")(get_layer(name)(x))


def multi_head_attention(
    get_layer: Callable[[str], layers.Layer],
    name: str,
    x: Tensor,
    context: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Multi-head attention from `x` to `context`; self-attention where both are the same tensor.

    Args:
        get_layer: function from a name to a layer.
        name: name of the attention, e.g. "encoder_0_self_attention".
        x: queries before their projection, (B, T, d).
        context: keys and values before their projection, (B, S, d).
        mask: bool, broadcastable to (B, N, T, S), True where a query may attend to a key; None for no mask.
        causal: whether query t attends to keys up to t only.

    Returns:
        (B, T, d).
    """
    query, key, value = (
        project_heads(get_layer, f"{name}_{projection}", inputs)
        for projection, inputs in zip(_PROJECTIONS, (x, context, context))
    )  # (B, T, N, H), (B, S, N, H) twice
    outputs = ops.dot_product_attention(query, key, value, mask=mask, is_causal=causal)  # (B, T, N, H)
    return get_layer(f"{name}_output")(get_layer(f"{name}_join")(outputs))


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention weights, the softmax of equation 1.

    Args:
        query: (B, T, N, H).
        key: (B, S, N, H).
        mask: as in `multi_head_attention`.
        causal: as in `multi_head_attention`.

    Returns:
        (B, N, T, S); rows sum to 1.
    """
    query, key = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key))  # (B, N, T, H), (B, N, S, H)
    scores = ops.matmul(query, ops.swapaxes(key, 2, 3)) / math.sqrt(query.shape[-1])  # (B, N, T, S)
    if causal:
        key_index = ops.cumsum(ops.ones_like(scores[:1, :1], dtype="int32"), axis=-1)  # (1, 1, T, S): 1, 2, ... S
        query_index = ops.cumsum(ops.ones_like(scores[:1, :1], dtype="int32"), axis=-2)
        scores = ops.where(key_index > query_index, MASK_VALUE, scores)
    if mask is not None:
        scores = ops.where(mask, scores, MASK_VALUE)
    return ops.softmax(scores, axis=-1)


def cached_attention(
    get_layer: Callable[[str], layers.Layer],
    name: str,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    current_key_value: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention from one new position of each of K sequences to cached keys and values.

    Args:
        get_layer: function from a name to a layer.
        name: name of the attention.
        x: (B, K, d), the new position of each sequence.
        keys: (B, N, M, H), cached keys that the K sequences of a row share or hold side by side.
        values: (B, N, M, H).
        mask: bool, broadcastable to (B, N, K, M): True where sequence k may attend to cached key m.
        current_key_value: (key, value), each (B, N, K, H), of the new position itself, to which it attends as well;
            None for none.

    Returns:
        (B, K, d).
    """
    query = ops.transpose(project_heads(get_layer, f"{name}_query", x), (0, 2, 1, 3))  # (B, N, K, H)
    query = query / math.sqrt(query.shape[-1])
    scores = ops.where(mask, ops.matmul(query, ops.swapaxes(keys, 2, 3)), MASK_VALUE)  # (B, N, K, M)
    if current_key_value is None:
        outputs = ops.matmul(ops.softmax(scores, axis=-1), values)
    else:
        key, value = current_key_value
        score = ops.sum(query * key, axis=-1, keepdims=True)  # (B, N, K, 1)
        weights = ops.softmax(ops.concatenate([scores, score], axis=-1), axis=-1)  # (B, N, K, M + 1)
        outputs = ops.matmul(weights[..., :-1], values) + weights[..., -1:] * value
    outputs = ops.transpose(outputs, (0, 2, 1, 3))  # (B, K, N, H)
    return get_layer(f"{name}_output")(get_layer(f"{name}_join")(outputs))


def sinusoidal_embedding(position: Tensor, dim: int) -> Tensor:
    """Sinusoidal position embedding: sines in the first half, cosines in the second.

        sin(p / 10000^(2i/d)),  cos(p / 10000^(2i/d)),  i = 0 … d/2 - 1        Vaswani et al. 2017, section 3.5

    The paper interleaves sines and cosines, a permutation of the same values. This is the order of tensor2tensor,
    Marian and diffusers.

    Args:
        position: int (...).
        dim: d, even.

    Returns:
        float32 (..., d).
    """
    frequencies = 1e4 ** (-2.0 * np.arange(dim // 2) / dim)
    angle = ops.multiply(ops.expand_dims(ops.cast(position, "float32"), -1), frequencies.astype("float32"))
    return ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)
