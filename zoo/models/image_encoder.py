"""A small CNN that turns an image into a vector, to train a text encoder by contrast with it (Radford et al. 2021).

image (B, H, W, 3) in [0, 255], for 48x48 pixels
  scale            to [-1, 1]                             (48, 48, 3)
  down_0, conv_0   3x3, 32, stride 2; norm, SiLU, 3x3, 32 (24, 24, 32)     10,208 parameters
  down_1, conv_1   3x3, 64, …                             (12, 12, 64)     55,552
  down_2, conv_2   3x3, 128, …                            (6, 6, 128)     221,696
  norm, SiLU, flatten                                     (4608,)             256
  features         128, SiLU                              (128,)          589,952

Strided convolutions instead of pooling, and group instead of batch normalization (Wu and He 2018), so that an image's
vector does not depend on the others of its batch.
"""

from collections.abc import Sequence

import keras
from keras import layers, ops

from zoo.blocks.residual import conv3x3, group_norm

_EPSILON = 1e-5  # of the normalizations


def image_encoder(
    *,
    image_size: int = 48,
    block_out_channels: Sequence[int] = (32, 64, 128),
    norm_num_groups: int = 8,
    units: int = 128,
    name: str = "image_encoder",
) -> keras.Model:
    """Build the encoder in the functional API.

    Args:
        image_size: height and width in pixels; divisible by 2 for each of `block_out_channels`.
        block_out_channels: channels of each level, multiples of `norm_num_groups`; each halves height and width.
        norm_num_groups: groups of the normalizations.
        units: F, size of the vector.
        name: name of the model.

    Returns:
        `keras.Model` from images (B, image_size, image_size, 3) in [0, 255] to vectors (B, F).

    Raises:
        ValueError: if an argument is out of the range given above.

    Example:
        >>> image_encoder().count_params()
        877664
    """
    factor = 2 ** len(block_out_channels)
    if image_size < factor or image_size % factor:
        raise ValueError(f"image_size must be a positive multiple of {factor}, got {image_size}.")
    if not block_out_channels or any(channels < 1 or channels % norm_num_groups for channels in block_out_channels):
        raise ValueError(
            f"block_out_channels must be multiples of norm_num_groups = {norm_num_groups}, got "
            f"{tuple(block_out_channels)}."
        )
    if units < 1:
        raise ValueError(f"units must be at least 1, got {units}.")
    image = keras.Input((image_size, image_size, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(image)
    for level, channels in enumerate(block_out_channels):
        x = layers.Conv2D(channels, 3, strides=2, padding="same", data_format="channels_last", name=f"down_{level}")(
            x
        )  # (B, H / 2^(level + 1), …, channels)
        x = ops.silu(group_norm(x, f"norm_{level}", groups=norm_num_groups, epsilon=_EPSILON))
        x = conv3x3(x, f"conv_{level}", channels)
    x = ops.silu(group_norm(x, "norm_out", groups=norm_num_groups, epsilon=_EPSILON))
    x = layers.Flatten(data_format="channels_last", name="flatten")(x)
    return keras.Model(image, ops.silu(layers.Dense(units, name="features")(x)), name=name)
