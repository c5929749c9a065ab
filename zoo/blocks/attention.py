"""Multi-head attention as functions on tensors, with stock layers that hold the weights.

    Attention(Q, K, V) = softmax(Q Kᵀ / sqrt(H)) V          Vaswani et al. 2017, equation 1

Letters: B batch, T queries, S keys, N heads, H width of a head, d = N·H. `layer` is a function from a name to a layer:
`model.get_layer` of a finished model, or the `__getitem__` of a dict while one is built.
"""

import math

import numpy as np
from keras import layers, ops

PARTS = ("query", "key", "value", "output")
# How devices divide the weights of attentions and feed-forward layers between them (Shoeybi et al. 2019, "Megatron-LM",
# section 3): first products by columns, so that each device has whole heads, second ones by rows. Paths of weights, and
# which axis is divided.
LAYOUT = {
    ".*_(query|key|value)/kernel": (None, "model"),
    ".*_(query|key|value)/bias": ("model",),
    ".*_output/kernel": ("model", None),
    ".*_inner/kernel": (None, "model"),
    ".*_inner/bias": ("model",),
    ".*_outer/kernel": ("model", None),
}


def attention_layers(name, *, width, num_heads, biased=PARTS):
    """The layers of one attention, a list: four dense layers to d and what splits d into heads and joins them.

    `biased` names those of `PARTS` that add a bias.
    """
    weighted = [layers.Dense(width, use_bias=part in biased, name=f"{name}_{part}") for part in PARTS]
    split = [layers.Reshape((-1, num_heads, width // num_heads), name=f"{name}_{part}_heads") for part in PARTS[:3]]
    return [*weighted, *split, layers.Reshape((-1, width), name=f"{name}_join")]


def heads(layer, name, x):
    """Project x (B, T, d) by the layer `name` and split it into heads (B, T, N, H)."""
    return layer(f"{name}_heads")(layer(name)(x))


def attention(layer, name, x, memory, mask=None, causal=False):
    """Attend from x to memory.

    Args:
        layer: function from a name to a layer.
        name: name of the attention, e.g. "encoder_0_self_attention".
        x: where the queries come from, (B, T, d).
        memory: where keys and values come from, (B, S, d).
        mask: bool, True where a key may be seen, anything that broadcasts to (B, N, T, S); None for all.
        causal: whether query t sees keys up to t only.

    Returns:
        (B, T, d).
    """
    query, key, value = (
        heads(layer, f"{name}_{part}", source) for part, source in zip(PARTS, (x, memory, memory))
    )  # (B, T, N, H), (B, S, N, H) twice
    mixed = ops.dot_product_attention(query, key, value, mask=mask, is_causal=causal)  # (B, T, N, H)
    return layer(f"{name}_output")(layer(f"{name}_join")(mixed))


def attention_weights(query, key, mask=None, causal=False):
    """How much each query looks at each key: the softmax of equation 1, (B, N, T, S); rows sum to 1.

    Args:
        query: (B, T, N, H).
        key: (B, S, N, H).
        mask, causal: as in `attention`.
    """
    query, key = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key))  # (B, N, T, H), (B, N, S, H)
    scores = ops.matmul(query, ops.swapaxes(key, 2, 3)) / math.sqrt(query.shape[-1])  # (B, N, T, S)
    if causal:
        place = ops.cumsum(ops.ones_like(scores[:1, :1], dtype="int32"), axis=-1)  # (1, 1, T, S): 1, 2, ... S
        row = ops.cumsum(ops.ones_like(scores[:1, :1], dtype="int32"), axis=-2)
        scores = ops.where(place > row, HIDDEN, scores)
    if mask is not None:
        scores = ops.where(mask, scores, HIDDEN)
    return ops.softmax(scores, axis=-1)


HIDDEN = -1e9  # a score that softmax turns into 0


def attention_step(layer, name, x, keys, values, mask, *, own=None):
    """Attend from one new position of each of K texts to what is remembered of them.

    Args:
        layer: function from a name to a layer.
        name: name of the attention.
        x: (B, K, d), the new position of each text.
        keys: (B, N, M, H), what the K texts of a row share or hold side by side.
        values: (B, N, M, H).
        mask: bool, anything that broadcasts to (B, N, K, M): True where text k may see key m.
        own: (key, value), each (B, N, K, H), of the new position itself, which every text sees too; None for none.

    Returns:
        (B, K, d).
    """
    query = ops.transpose(heads(layer, f"{name}_query", x), (0, 2, 1, 3))  # (B, N, K, H)
    query = query / math.sqrt(query.shape[-1])
    scores = ops.where(mask, ops.matmul(query, ops.swapaxes(keys, 2, 3)), HIDDEN)  # (B, N, K, M)
    if own is None:
        mixed = ops.matmul(ops.softmax(scores, axis=-1), values)
    else:
        score = ops.sum(query * own[0], axis=-1, keepdims=True)  # (B, N, K, 1)
        weights = ops.softmax(ops.concatenate([scores, score], axis=-1), axis=-1)  # (B, N, K, M + 1)
        mixed = ops.matmul(weights[..., :-1], values) + weights[..., -1:] * own[1]
    mixed = ops.transpose(mixed, (0, 2, 1, 3))  # (B, K, N, H)
    return layer(f"{name}_output")(layer(f"{name}_join")(mixed))


def sinusoids(position, width):
    """Sinusoidal position vectors: sines in the first half, cosines in the second.

        sin(p / 10000^(2i/d)),  cos(p / 10000^(2i/d)),  i = 0 … d/2 - 1        Vaswani et al. 2017, section 3.5

    The paper interleaves the two; that is a permutation of the same numbers. This is the order of tensor2tensor,
    Marian and diffusers.

    Args:
        position: int (...).
        width: d, even.

    Returns:
        float32 (..., d).
    """
    frequencies = 1e4 ** (-2.0 * np.arange(width // 2) / width)
    angle = ops.multiply(ops.expand_dims(ops.cast(position, "float32"), -1), frequencies.astype("float32"))
    return ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)
