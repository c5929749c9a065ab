"""The conditional U-Net of latent diffusion (Rombach et al. 2022): what noise is in these latents, given a context?

latents ─ conv ─ levels [residual block, transformer, …, halve] ─ mid ─ levels [join skip, residual block, …, double]
─ norm ─ conv ─ (B, H, W, 4)

Every output on the way down is kept, and joined to the channels on the way up at the same size. The timestep, as sines
and cosines through two dense layers, shifts the channels inside every residual block. A transformer block is pre-norm:
self-attention over all pixels, cross-attention to the context, and a feed-forward layer with gates (GEGLU, Shazeer
2020).

Letters: B latents, H height, W width, C channels, T = H·W tokens, S tokens of the context, d_c their width, N heads.

Source: diffusers 0.42, models/unets/unet_2d_condition.py: UNet2DConditionModel.
"""

import math

import keras
import numpy as np
from keras import layers, ops

from zoo.blocks.attention import LAYOUT as DIVIDED
from zoo.blocks.attention import attention, attention_layers
from zoo.blocks.residual import convolution, doubled, group_norm, picture, residual_block, token_places, tokens

# How devices divide the weights between them; of a residual block the first convolution is divided by what it gives,
# the second by what it takes.
LAYOUT = DIVIDED | {
    ".*_conv1/kernel": (None, None, None, "model"),
    ".*_conv1/bias": ("model",),
    ".*_time/kernel": (None, "model"),
    ".*_time/bias": ("model",),
    ".*_norm2/(gamma|beta)": ("model",),
    ".*_conv2/kernel": (None, None, "model", None),
}
VARIANTS = {
    # Chosen here, for latents of 12x12 and the context of the tiny text encoder
    "tiny": {
        "widths": (64, 96, 128),
        "blocks": 1,
        "attention": (False, True, True),
        "num_heads": 4,
        "context_width": 128,
        "groups": 16,
    },
    # Rombach et al. 2022, table 15 (text-to-image); runwayml/stable-diffusion-v1-5, unet/config.json
    "sd15": {
        "widths": (320, 640, 1280, 1280),
        "blocks": 2,
        "attention": (True, True, True, False),
        "num_heads": 8,
        "context_width": 768,
        "groups": 32,
    },
}
PERIOD = 10_000  # of the slowest sine of a timestep, over 2π (Ho et al. 2020)
ATTENTION_EPSILON = 1e-6  # of the group normalisation before a transformer, transformer_2d.py


def denoiser(
    *,
    widths=(320, 640, 1280, 1280),
    blocks=2,
    attention=(True, True, True, False),
    num_heads=8,
    transformer_layers=1,
    context_width=768,
    in_channels=4,
    out_channels=4,
    groups=32,
    epsilon=1e-5,
    name="denoiser",
):
    """Build the U-Net in the functional API.

    Where "each level" is said, one number means the same at every level.

    Args:
        widths: C at each level, a multiple of `groups`; between two levels, height and width are halved. widths[0] is
            even: it is also the number of sines and cosines of a timestep.
        blocks: residual blocks of each level; on the way up, a level has one more.
        attention: whether each level has a transformer after each residual block. The mid always has one.
        num_heads: N at each level, the last one also for the mid; each divides the level's width.
        transformer_layers: blocks in a transformer at each level, the last one also for the mid.
        context_width: d_c.
        in_channels: 4, or 9 for an inpainting model (latents, mask, latents of the masked image).
        out_channels: of the result.
        groups, epsilon: of the normalisations.
        name: name of the model.

    Returns:
        `keras.Model` from [latents (B, H, W, in_channels), timestep (B,) float32, context (B, S, d_c)] to
        (B, H, W, out_channels). A timestep may lie between whole numbers. H and W may be any.

    Raises:
        ValueError: if a number is out of the range given above.

    Example:
        >>> denoiser(**VARIANTS["sd15"]).count_params()
        859520964
    """
    levels = len(widths)
    blocks, has_attention, heads, depth = (
        _each_level(key, value, levels)
        for key, value in (
            ("blocks", blocks),
            ("attention", attention),
            ("num_heads", num_heads),
            ("transformer_layers", transformer_layers),
        )
    )
    _check(widths, blocks, heads, depth, groups, context_width, in_channels, out_channels)
    options = {"groups": groups, "epsilon": epsilon}

    latents = keras.Input((None, None, in_channels), name="latents")
    timestep = keras.Input((), dtype="float32", name="timestep")
    context = keras.Input((None, context_width), name="context")

    time = layers.Dense(4 * widths[0], activation="silu", name="time_inner")(waves(timestep, widths[0]))
    time = layers.Dense(4 * widths[0], activation="silu", name="time_outer")(time)  # (B, 4·widths[0])

    x = convolution(latents, "conv_in", widths[0])
    skips, places = [x], {}

    def transform(x, name, level):
        if level not in places:
            places[level] = token_places(x)
        return transformer(
            x, context, places[level], name, num_heads=heads[level], num_layers=depth[level], groups=groups
        )

    for level, width in enumerate(widths):
        for block in range(blocks[level]):
            x = residual_block(x, f"down_{level}_resnet_{block}", width=width, time=time, **options)
            if has_attention[level]:
                x = transform(x, f"down_{level}_attention_{block}", level)
            skips.append(x)
        if level < levels - 1:
            x = layers.ZeroPadding2D(1, name=f"down_{level}_pad")(x)
            x = layers.Conv2D(width, 3, strides=2, name=f"down_{level}_downsample")(x)
            skips.append(x)

    x = residual_block(x, "mid_resnet_0", width=widths[-1], time=time, **options)
    x = transform(x, "mid_attention_0", levels - 1)
    x = residual_block(x, "mid_resnet_1", width=widths[-1], time=time, **options)

    for place, level in enumerate(reversed(range(levels))):
        for block in range(blocks[level] + 1):
            x = layers.Concatenate(name=f"up_{place}_join_{block}")([x, skips.pop()])
            x = residual_block(x, f"up_{place}_resnet_{block}", width=widths[level], time=time, **options)
            if has_attention[level]:
                x = transform(x, f"up_{place}_attention_{block}", level)
        if level > 0:
            x = convolution(doubled(x, skips[-1]), f"up_{place}_upsample", widths[level])

    x = ops.silu(group_norm(x, "norm_out", **options))
    x = convolution(x, "conv_out", out_channels)
    return keras.Model([latents, timestep, context], x, name=name)


def waves(timestep, width):
    """cos(t / 10000^(2i/width)) and then the sines, i = 0 … width/2 - 1: (B,) float32 -> (B, width).

    The frequencies are rounded as diffusers rounds them: at t = 999 an angle's last digits matter.
    """
    exponent = np.float32(-math.log(PERIOD)) * np.arange(width // 2, dtype="float32") / np.float32(width // 2)
    angle = ops.multiply(ops.expand_dims(timestep, -1), np.exp(exponent))
    return ops.concatenate([ops.cos(angle), ops.sin(angle)], axis=-1)


def transformer(x, context, places, name, *, num_heads, num_layers, groups):
    """Pixels look at one another and at the context, x + f(x).

    Args:
        x: (B, H, W, C).
        context: (B, S, d_c).
        places: `token_places(x)`.
        name: the layers are `<name>_norm`, `_in`, `_block_0_self_attention_query`, … and `_out`.
        num_heads: N.
        num_layers: how many blocks.
        groups: of the normalisation.

    Returns:
        (B, H, W, C).
    """
    width = x.shape[-1]
    y = group_norm(x, f"{name}_norm", groups=groups, epsilon=ATTENTION_EPSILON)
    y = layers.Dense(width, name=f"{name}_in")(tokens(y, f"{name}_tokens"))  # (B, T, C)
    for block in (f"{name}_block_{i}" for i in range(num_layers)):
        for kind in ("self_attention", "cross_attention"):
            part = f"{block}_{kind}"
            made = attention_layers(part, width=width, num_heads=num_heads, biased=("output",))
            made = {layer.name: layer for layer in made}
            z = layers.LayerNormalization(epsilon=1e-5, name=f"{part}_norm")(y)
            y = y + attention(made.__getitem__, part, z, z if kind == "self_attention" else context)
        z = layers.LayerNormalization(epsilon=1e-5, name=f"{block}_feed_forward_norm")(y)
        z, gate = ops.split(layers.Dense(8 * width, name=f"{block}_inner")(z), 2, axis=-1)  # (B, T, 4C) each
        y = y + layers.Dense(width, name=f"{block}_outer")(z * ops.gelu(gate, approximate=False))
    y = layers.Dense(width, name=f"{name}_out")(y)
    return x + picture(y, places)


def _each_level(key, value, levels):
    """A value for each level."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * levels
    if len(values) != levels:
        raise ValueError(f"{key} must be one number or one for each of the {levels} levels, got {values}.")
    return values


def _check(widths, blocks, heads, depth, groups, context_width, in_channels, out_channels):
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}.")
    if not widths or any(width < 1 or width % groups for width in widths) or widths[0] % 2:
        raise ValueError(f"widths must be multiples of the {groups} groups and the first even, got {tuple(widths)}.")
    for key, values in (
        ("blocks", blocks),
        ("num_heads", heads),
        ("transformer_layers", depth),
        ("context_width", (context_width,)),
        ("in_channels", (in_channels,)),
        ("out_channels", (out_channels,)),
    ):
        if min(values) < 1:
            raise ValueError(f"{key} must be at least 1, got {min(values)}.")
    for width, count in zip(widths, heads):
        if width % count:
            raise ValueError(f"widths must be divisible by num_heads, got {width} and {count} heads.")
