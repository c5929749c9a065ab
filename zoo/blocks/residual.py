"""Blocks of convolutional networks on pictures: group normalisation, residual blocks, pictures as tokens and back.

Letters: B batch, H height, W width, C channels; T = H·W tokens. Sizes may stay open: what needs H and W takes them
from a tensor while the model runs. A 1x1 convolution is a dense layer over channels.

Source: Wu and He 2018 (group normalisation); diffusers 0.42, models/resnet.py: ResnetBlock2D.
"""

from keras import layers, ops


def group_norm(x, name, *, groups, epsilon):
    """Normalise x (B, H, W, C) over its pixels and the channels of each of `groups` groups."""
    return layers.GroupNormalization(groups, epsilon=epsilon, name=name)(x)


def convolution(x, name, width):
    """3x3 convolution, (B, H, W, C) -> (B, H, W, width)."""
    return layers.Conv2D(width, 3, padding="same", name=name)(x)


def residual_block(x, name, *, width, groups, epsilon, time=None):
    """x + f(x), with f two times normalise, SiLU and convolve.

    Args:
        x: (B, H, W, C).
        name: the layers are `<name>_norm1`, `_conv1`, `_time`, `_norm2`, `_conv2` and `_shortcut`.
        width: channels of the result; where C differs, a dense layer `_shortcut` brings x to them.
        groups, epsilon: of the normalisations.
        time: (B, d), shifts the channels between the convolutions; None for no such input.

    Returns:
        (B, H, W, width).
    """
    y = ops.silu(group_norm(x, f"{name}_norm1", groups=groups, epsilon=epsilon))
    y = convolution(y, f"{name}_conv1", width)
    if time is not None:
        shift = layers.Dense(width, name=f"{name}_time")(time)  # (B, width)
        y = y + ops.expand_dims(ops.expand_dims(shift, 1), 1)  # (B, H, W, width)
    y = ops.silu(group_norm(y, f"{name}_norm2", groups=groups, epsilon=epsilon))
    y = convolution(y, f"{name}_conv2", width)
    return y + (x if x.shape[-1] == width else layers.Dense(width, name=f"{name}_shortcut")(x))


def tokens(x, name):
    """A picture (B, H, W, C) as tokens (B, T, C), row by row."""
    return layers.Reshape((-1, x.shape[-1]), name=name)(x)


def token_places(x):
    """Which token each pixel of x (B, H, W, C) is, (H, W) int32: 0, 1, 2, … row by row."""
    ones = ops.ones_like(x[0, :, :, 0], dtype="int32")  # (H, W)
    row, column = ops.cumsum(ones, axis=0) - 1, ops.cumsum(ones, axis=1) - 1
    return row * (column[:, -1:] + 1) + column


def picture(x, places):
    """Tokens (B, T, C) as the picture (B, H, W, C) whose `token_places` are given."""
    return ops.take(x, places, axis=1)


def doubled(x, like):
    """x (B, h, w, C) with each pixel repeated in both directions, cut to the size of `like` (B, H, W, …).

    H is 2h or 2h - 1, and so is W of w: what a convolution of stride 2 had before it.
    """
    edges = like[0, :, 0, 0], like[0, 0, :, 0]  # (H,), (W,)
    rows, columns = (ops.cumsum(ops.ones_like(edge, dtype="int32")) - 1 for edge in edges)
    return ops.take(ops.take(x, rows // 2, axis=1), columns // 2, axis=2)
