"""The conditional U-Net of latent diffusion (Rombach et al. 2022), which predicts the noise in latents.

latents ─ conv ─ down blocks [residual block, transformer, …, downsample] ─ mid block
─ up blocks [concatenate skip connection, residual block, transformer, …, upsample] ─ norm ─ conv ─ (B, H, W, 4)

Every output of a down block is concatenated to the input of the up block of the same size. The timestep embedding
(sinusoids through two dense layers) is added to the channels inside every residual block. A transformer block is
pre-norm: self-attention over all pixels, cross-attention to the context, and a gated feed-forward layer (GEGLU,
Shazeer 2020).

Letters: B batch, H height, W width, C channels, T = H·W tokens, S tokens of the context, d_c their size, N heads.

Source: diffusers 0.42, models/unets/unet_2d_condition.py: UNet2DConditionModel.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from zoo.blocks.attention import ATTENTION_LAYOUT_MAP, attention_layers, multi_head_attention
from zoo.blocks.residual import (
    conv3x3,
    flatten_spatial,
    group_norm,
    pixel_indices,
    residual_block,
    unflatten_spatial,
    upsample_nearest,
)
from zoo.typing import Tensor

# Tensor parallelism, see `zoo.blocks.attention`. In a residual block the first convolution is sharded by its output
# channels, the second by its input channels.
TENSOR_PARALLEL_LAYOUT_MAP = ATTENTION_LAYOUT_MAP | {
    ".*_conv1/kernel": (None, None, None, "model"),
    ".*_conv1/bias": ("model",),
    ".*_time/kernel": (None, "model"),
    ".*_time/bias": ("model",),
    ".*_norm2/(gamma|beta)": ("model",),
    ".*_conv2/kernel": (None, None, "model", None),
}
_MAX_PERIOD = 10_000  # of the sinusoids of a timestep, over 2π (Ho et al. 2020)
_TRANSFORMER_EPSILON = 1e-6  # of the group normalization before a transformer, transformer_2d.py


def denoiser(
    *,
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
    layers_per_block: int | Sequence[int] = 2,
    has_attention: bool | Sequence[bool] = (True, True, True, False),
    num_heads: int | Sequence[int] = 8,
    transformer_layers_per_block: int | Sequence[int] = 1,
    cross_attention_dim: int = 768,
    in_channels: int = 4,
    out_channels: int = 4,
    norm_num_groups: int = 32,
    epsilon: float = 1e-5,
    name: str = "denoiser",
) -> keras.Model:
    """Build the U-Net in the functional API.

    Arguments documented "per level" take one value for all levels, or a tuple with one for each.

    Args:
        block_out_channels: C at each level, multiples of `norm_num_groups`; between two levels, height and width are
            halved. The first is even: it is also the size of the sinusoidal timestep embedding.
        layers_per_block: residual blocks per level; up blocks have one more.
        has_attention: per level, whether a transformer follows each residual block. The mid block always has one.
        num_heads: N per level, the last one also for the mid block; each divides the level's channels.
        transformer_layers_per_block: layers of a transformer per level, the last one also for the mid block.
        cross_attention_dim: d_c.
        in_channels: 4, or 9 for an inpainting model (latents, mask, latents of the masked image).
        out_channels: channels of the output.
        norm_num_groups: groups of the normalizations.
        epsilon: of the normalizations.
        name: name of the model.

    Returns:
        `keras.Model` from [latents (B, H, W, in_channels), timestep (B,) float32, context (B, S, d_c)] to
        (B, H, W, out_channels). A timestep need not be whole. H and W are arbitrary.

    Raises:
        ValueError: if an argument is out of the range given above.

    Example:
        >>> denoiser(**variants.DENOISER["sd15"]).count_params()
        859520964
    """
    num_levels = len(block_out_channels)
    num_blocks, attends, heads, depths = (
        _per_level(argument, value, num_levels)
        for argument, value in (
            ("layers_per_block", layers_per_block),
            ("has_attention", has_attention),
            ("num_heads", num_heads),
            ("transformer_layers_per_block", transformer_layers_per_block),
        )
    )
    _check_channels(block_out_channels, heads, norm_num_groups)
    for argument, values in (
        ("layers_per_block", num_blocks),
        ("transformer_layers_per_block", depths),
        ("cross_attention_dim", (cross_attention_dim,)),
        ("in_channels", (in_channels,)),
        ("out_channels", (out_channels,)),
    ):
        if min(values) < 1:
            raise ValueError(f"{argument} must be at least 1, got {min(values)}.")
    norm: dict[str, Any] = {"groups": norm_num_groups, "epsilon": epsilon}

    latents = keras.Input((None, None, in_channels), name="latents")
    timestep = keras.Input((), dtype="float32", name="timestep")
    context = keras.Input((None, cross_attention_dim), name="context")

    temb = timestep_embedding(timestep, block_out_channels[0])
    temb = layers.Dense(4 * block_out_channels[0], activation="silu", name="time_inner")(temb)
    temb = layers.Dense(4 * block_out_channels[0], activation="silu", name="time_outer")(temb)  # (B, 4·channels[0])

    x = conv3x3(latents, "conv_in", block_out_channels[0])
    skips, indices_per_level = [x], {}

    def transform(x, name, level):
        if level not in indices_per_level:
            indices_per_level[level] = pixel_indices(x)
        return spatial_transformer(
            x,
            context,
            indices_per_level[level],
            name,
            num_heads=heads[level],
            num_layers=depths[level],
            norm_num_groups=norm_num_groups,
        )

    for level, channels in enumerate(block_out_channels):
        for block in range(num_blocks[level]):
            x = residual_block(x, f"down_{level}_resnet_{block}", out_channels=channels, temb=temb, **norm)
            if attends[level]:
                x = transform(x, f"down_{level}_attention_{block}", level)
            skips.append(x)
        if level < num_levels - 1:
            x = layers.ZeroPadding2D(1, data_format="channels_last", name=f"down_{level}_pad")(x)
            x = layers.Conv2D(channels, 3, strides=2, data_format="channels_last", name=f"down_{level}_downsample")(x)
            skips.append(x)

    x = residual_block(x, "mid_resnet_0", out_channels=block_out_channels[-1], temb=temb, **norm)
    x = transform(x, "mid_attention_0", num_levels - 1)
    x = residual_block(x, "mid_resnet_1", out_channels=block_out_channels[-1], temb=temb, **norm)

    for up, level in enumerate(reversed(range(num_levels))):
        channels = block_out_channels[level]
        for block in range(num_blocks[level] + 1):
            x = layers.Concatenate(name=f"up_{up}_join_{block}")([x, skips.pop()])
            x = residual_block(x, f"up_{up}_resnet_{block}", out_channels=channels, temb=temb, **norm)
            if attends[level]:
                x = transform(x, f"up_{up}_attention_{block}", level)
        if level > 0:
            x = conv3x3(upsample_nearest(x, skips[-1]), f"up_{up}_upsample", channels)

    x = ops.silu(group_norm(x, "norm_out", **norm))
    x = conv3x3(x, "conv_out", out_channels)
    return keras.Model([latents, timestep, context], x, name=name)


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding: cos(t / 10000^(2i/dim)), then the sines, i = 0 … dim/2 - 1.

    The frequencies are rounded as in diffusers: at t = 999 the last digits of an angle matter.

    Args:
        timestep: (B,) float32.
        dim: size of the embedding, even.

    Returns:
        (B, dim) float32.
    """
    exponent = np.float32(-math.log(_MAX_PERIOD)) * np.arange(dim // 2, dtype="float32") / np.float32(dim // 2)
    angle = ops.multiply(ops.expand_dims(timestep, -1), np.exp(exponent))
    return ops.concatenate([ops.cos(angle), ops.sin(angle)], axis=-1)


def spatial_transformer(
    x: Tensor, context: Tensor, indices: Tensor, name: str, *, num_heads: int, num_layers: int, norm_num_groups: int
) -> Tensor:
    """x + f(x), with f a transformer over the pixels: self-attention, and cross-attention to the context.

    Args:
        x: (B, H, W, C).
        context: (B, S, d_c).
        indices: `pixel_indices(x)`.
        name: prefix of the layers `<name>_norm`, `_in`, `_block_0_self_attention_query`, … and `_out`.
        num_heads: N.
        num_layers: number of transformer layers.
        norm_num_groups: groups of the normalization.

    Returns:
        (B, H, W, C).
    """
    channels = x.shape[-1]
    y = group_norm(x, f"{name}_norm", groups=norm_num_groups, epsilon=_TRANSFORMER_EPSILON)
    y = layers.Dense(channels, name=f"{name}_in")(flatten_spatial(y, f"{name}_tokens"))  # (B, T, C)
    for block in (f"{name}_block_{i}" for i in range(num_layers)):
        for kind in ("self_attention", "cross_attention"):
            sublayer = f"{block}_{kind}"
            attention_parts = attention_layers(sublayer, hidden_dim=channels, num_heads=num_heads, qkv_bias=False)
            by_name = {layer.name: layer for layer in attention_parts}
            z = layers.LayerNormalization(epsilon=1e-5, name=f"{sublayer}_norm")(y)
            y = y + multi_head_attention(by_name.__getitem__, sublayer, z, z if kind == "self_attention" else context)
        z = layers.LayerNormalization(epsilon=1e-5, name=f"{block}_feed_forward_norm")(y)
        z, gate = ops.split(layers.Dense(8 * channels, name=f"{block}_inner")(z), 2, axis=-1)  # (B, T, 4C) each
        y = y + layers.Dense(channels, name=f"{block}_outer")(z * ops.gelu(gate, approximate=False))
    y = layers.Dense(channels, name=f"{name}_out")(y)
    return x + unflatten_spatial(y, indices)


def _per_level(argument, value, num_levels):
    """The value of an argument for each level."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * num_levels
    if len(values) != num_levels:
        raise ValueError(f"{argument} must be one value or one for each of the {num_levels} levels, got {values}.")
    return values


def _check_channels(block_out_channels, num_heads, norm_num_groups):
    if norm_num_groups < 1:
        raise ValueError(f"norm_num_groups must be at least 1, got {norm_num_groups}.")
    multiples = all(channels >= 1 and channels % norm_num_groups == 0 for channels in block_out_channels)
    if not block_out_channels or not multiples or block_out_channels[0] % 2:
        raise ValueError(
            f"block_out_channels must be multiples of norm_num_groups = {norm_num_groups} and the first even, got "
            f"{tuple(block_out_channels)}."
        )
    for channels, heads in zip(block_out_channels, num_heads):
        if heads < 1:
            raise ValueError(f"num_heads must be at least 1, got {heads}.")
        if channels % heads:
            raise ValueError(f"block_out_channels must be divisible by num_heads, got {channels} and {heads} heads.")
