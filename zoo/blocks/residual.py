"""Blocks of convolutional networks on images: group normalization, residual blocks, and images as token sequences.

Letters: B batch, H height, W width, C channels; T = H·W tokens. Height and width may be None: where they are needed,
they are taken from a tensor at run time. A 1x1 convolution is a dense layer over channels.

Source: Wu and He 2018 (group normalization); diffusers 0.42, models/resnet.py: ResnetBlock2D.
"""

from keras import layers, ops

from zoo.typing import Tensor


def group_norm(x: Tensor, name: str, *, groups: int, epsilon: float) -> Tensor:
    """Group normalization (Wu and He 2018): over the pixels and the channels of each group.

    Args:
        x: (B, H, W, C).
        name: of the layer.
        groups: number of groups, a divisor of C.
        epsilon: added to the variance.

    Returns:
        (B, H, W, C).
    """
    return layers.GroupNormalization(groups, epsilon=epsilon, name=name)(x)


def conv3x3(x: Tensor, name: str, filters: int) -> Tensor:
    """3x3 convolution with padding.

    Args:
        x: (B, H, W, C).
        name: of the layer.
        filters: channels of the result.

    Returns:
        (B, H, W, filters).
    """
    return layers.Conv2D(filters, 3, padding="same", data_format="channels_last", name=name)(x)


def residual_block(
    x: Tensor, name: str, *, out_channels: int, groups: int, epsilon: float, temb: Tensor | None = None
) -> Tensor:
    """x + f(x), where f is two times group normalization, SiLU and convolution.

    Args:
        x: (B, H, W, C).
        name: prefix of the layers `<name>_norm1`, `_conv1`, `_time`, `_norm2`, `_conv2` and `_shortcut`.
        out_channels: channels of the result; where C differs, a dense layer `_shortcut` projects x to them.
        groups: groups of the normalizations.
        epsilon: of the normalizations.
        temb: timestep embedding (B, d), projected and added to the channels between the convolutions; None for none.

    Returns:
        (B, H, W, out_channels).
    """
    y = ops.silu(group_norm(x, f"{name}_norm1", groups=groups, epsilon=epsilon))
    y = conv3x3(y, f"{name}_conv1", out_channels)
    if temb is not None:
        shift = layers.Dense(out_channels, name=f"{name}_time")(temb)  # (B, out_channels)
        y = y + ops.expand_dims(ops.expand_dims(shift, 1), 1)  # (B, H, W, out_channels)
    y = ops.silu(group_norm(y, f"{name}_norm2", groups=groups, epsilon=epsilon))
    y = conv3x3(y, f"{name}_conv2", out_channels)
    return y + (x if x.shape[-1] == out_channels else layers.Dense(out_channels, name=f"{name}_shortcut")(x))


def flatten_spatial(x: Tensor, name: str) -> Tensor:
    """Flatten an image into tokens, row by row.

    Args:
        x: (B, H, W, C).
        name: of the layer.

    Returns:
        (B, T, C).
    """
    return layers.Reshape((-1, x.shape[-1]), name=name)(x)


def pixel_indices(x: Tensor) -> Tensor:
    """Index of each pixel among the tokens of an image: 0, 1, 2, … row by row.

    Args:
        x: (B, H, W, C).

    Returns:
        (H, W) int32.
    """
    ones = ops.ones_like(x[0, :, :, 0], dtype="int32")  # (H, W)
    row, column = ops.cumsum(ones, axis=0) - 1, ops.cumsum(ones, axis=1) - 1
    return row * (column[:, -1:] + 1) + column


def unflatten_spatial(x: Tensor, indices: Tensor) -> Tensor:
    """Undo `flatten_spatial`.

    Args:
        x: tokens (B, T, C).
        indices: (H, W), what `pixel_indices` gave for the image.

    Returns:
        (B, H, W, C).
    """
    return ops.take(x, indices, axis=1)


def upsample_nearest(x: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbor upsampling by 2, cropped to the height and width of another image.

    H is 2h or 2h - 1, and W is 2w or 2w - 1: the size before a convolution of stride 2.

    Args:
        x: (B, h, w, C).
        like: (B, H, W, …).

    Returns:
        (B, H, W, C).
    """
    edges = like[0, :, 0, 0], like[0, 0, :, 0]  # (H,), (W,)
    rows, columns = (ops.cumsum(ops.ones_like(edge, dtype="int32")) - 1 for edge in edges)
    return ops.take(ops.take(x, rows // 2, axis=1), columns // 2, axis=2)
