"""The KL autoencoder of latent diffusion (Rombach et al. 2022): images to small latents, and back.

image (B, H, W, 3) ─ conv ─ levels [residual blocks, downsample] ─ mid block ─ conv ─ mean, log-variance (B, h, w, 4)
latents (B, h, w, 4) ─ conv ─ mid block ─ levels [residual blocks, upsample] ─ conv ─ image (B, H, W, 3)

The mid block is a residual block, self-attention of one head over all pixels, and another residual block.
Images are in [-1, 1]; the caller makes sure that H and W are divisible by F = 2^(levels - 1).

Letters: B batch, H height, W width, h = H/F, w = W/F, C channels, T tokens (pixels in a row).

Source: diffusers 0.42, models/autoencoders/autoencoder_kl.py and vae.py: AutoencoderKL.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from zoo.blocks.attention import attention_layers, multi_head_attention
from zoo.blocks.residual import conv3x3, flatten_spatial, group_norm, pixel_indices, residual_block, unflatten_spatial

_EPSILON = 1e-6  # of the normalizations, vae.py
_LOG_VARIANCE_RANGE = (-30.0, 20.0)  # vae.py: DiagonalGaussianDistribution


def encoder(
    *,
    block_out_channels: Sequence[int] = (128, 256, 512, 512),
    layers_per_block: int = 2,
    norm_num_groups: int = 32,
    image_channels: int = 3,
    latent_channels: int = 4,
    name: str = "encoder",
) -> keras.Model:
    """Build the encoder in the functional API.

    Args:
        block_out_channels: channels of each level, multiples of `norm_num_groups`; between two levels, height and
            width are halved.
        layers_per_block: residual blocks per level.
        norm_num_groups: groups of the normalizations.
        image_channels: channels of an image.
        latent_channels: channels of the latents.
        name: name of the model.

    Returns:
        `keras.Model` from image (B, H, W, image_channels) to [mean, log_variance], each (B, h, w, latent_channels);
        the log-variance is clipped to [-30, 20].

    Raises:
        ValueError: if an argument is out of the range given above.

    Example:
        >>> encoder(**variants.AUTOENCODER["sd15"]).count_params()
        34163664
    """
    _check(block_out_channels, layers_per_block, norm_num_groups, image_channels, latent_channels)
    norm: dict[str, Any] = {"groups": norm_num_groups, "epsilon": _EPSILON}
    image = keras.Input((None, None, image_channels), name="image")
    x = conv3x3(image, "conv_in", block_out_channels[0])
    for level, channels in enumerate(block_out_channels):
        for block in range(layers_per_block):
            x = residual_block(x, f"down_{level}_resnet_{block}", out_channels=channels, **norm)
        if level < len(block_out_channels) - 1:
            # "same" pads even sizes at the bottom and the right only, as the published weights expect
            x = layers.Conv2D(
                channels, 3, strides=2, padding="same", data_format="channels_last", name=f"down_{level}_downsample"
            )(x)
    x = ops.silu(group_norm(_mid_block(x, **norm), "norm_out", **norm))
    x = conv3x3(x, "conv_out", 2 * latent_channels)
    moments = layers.Dense(2 * latent_channels, name="quant_conv")(x)  # (B, h, w, 2·latent_channels)
    mean, log_variance = ops.split(moments, 2, axis=-1)
    return keras.Model(image, [mean, ops.clip(log_variance, *_LOG_VARIANCE_RANGE)], name=name)


def decoder(
    *,
    block_out_channels: Sequence[int] = (128, 256, 512, 512),
    layers_per_block: int = 2,
    norm_num_groups: int = 32,
    image_channels: int = 3,
    latent_channels: int = 4,
    name: str = "decoder",
) -> keras.Model:
    """Build the decoder, the mirror image of the encoder but for one more residual block per level.

    Args:
        block_out_channels: as in `encoder`.
        layers_per_block: as in `encoder`.
        norm_num_groups: as in `encoder`.
        image_channels: as in `encoder`.
        latent_channels: as in `encoder`.
        name: name of the model.

    Returns:
        `keras.Model` from latents (B, h, w, latent_channels) to image (B, F·h, F·w, image_channels), not clipped.

    Raises:
        ValueError: if an argument is out of the range given in `encoder`.

    Example:
        >>> decoder(**variants.AUTOENCODER["sd15"]).count_params()
        49490199
    """
    _check(block_out_channels, layers_per_block, norm_num_groups, image_channels, latent_channels)
    norm: dict[str, Any] = {"groups": norm_num_groups, "epsilon": _EPSILON}
    latents = keras.Input((None, None, latent_channels), name="latents")
    x = layers.Dense(latent_channels, name="post_quant_conv")(latents)
    x = _mid_block(conv3x3(x, "conv_in", block_out_channels[-1]), **norm)
    for level, channels in enumerate(reversed(block_out_channels)):
        for block in range(layers_per_block + 1):
            x = residual_block(x, f"up_{level}_resnet_{block}", out_channels=channels, **norm)
        if level < len(block_out_channels) - 1:
            x = layers.UpSampling2D(2, data_format="channels_last", name=f"up_{level}_double")(x)
            x = conv3x3(x, f"up_{level}_upsample", channels)
    x = ops.silu(group_norm(x, "norm_out", **norm))
    return keras.Model(latents, conv3x3(x, "conv_out", image_channels), name=name)


def autoencoder(*, latent_channels: int = 4, name: str = "autoencoder", **kwargs: Any) -> keras.Model:
    """Build encoder and decoder as one model, with the reparameterized latents between them.

    Args:
        latent_channels: channels of the latents.
        name: name of the model.
        **kwargs: as in `encoder`.

    Returns:
        `keras.Model` from [image (B, H, W, 3), noise (B, h, w, 4)] to [image, mean, log_variance]: the decoder's input
        is mean + exp(log_variance / 2) · noise. Give standard normal noise to train, and zeros to decode the mean.
        Its layers "encoder" and "decoder" are the two models.

    Raises:
        ValueError: as in `encoder`.

    Example:
        >>> autoencoder(**variants.AUTOENCODER["sd15"]).count_params()
        83653863
    """
    parts = [build(latent_channels=latent_channels, **kwargs) for build in (encoder, decoder)]
    return autoencoder_from_parts(*parts, name=name)


def autoencoder_from_parts(encoder: keras.Model, decoder: keras.Model, *, name: str = "autoencoder") -> keras.Model:
    """`autoencoder` of two built models, e.g. loaded from files; it shares their weights.

    Args:
        encoder: what `encoder` returned.
        decoder: what `decoder` returned.
        name: name of the model.

    Returns:
        `keras.Model` as of `autoencoder`.
    """
    image = keras.Input(encoder.inputs[0].shape[1:], name="image")
    noise = keras.Input(decoder.inputs[0].shape[1:], name="noise")
    mean, log_variance = encoder(image)
    reconstruction = decoder(mean + ops.exp(0.5 * log_variance) * noise)
    return keras.Model([image, noise], [reconstruction, mean, log_variance], name=name)


def _mid_block(x, **norm):
    """Residual block, attention over all pixels, residual block; (B, H, W, C) -> (B, H, W, C)."""
    channels, name = x.shape[-1], "mid_attention"
    x = residual_block(x, "mid_resnet_0", out_channels=channels, **norm)
    by_name = {layer.name: layer for layer in attention_layers(name, hidden_dim=channels, num_heads=1)}
    y = flatten_spatial(group_norm(x, f"{name}_norm", **norm), f"{name}_tokens")  # (B, T, C)
    x = x + unflatten_spatial(multi_head_attention(by_name.__getitem__, name, y, y), pixel_indices(x))
    return residual_block(x, "mid_resnet_1", out_channels=channels, **norm)


def _check(block_out_channels, layers_per_block, norm_num_groups, image_channels, latent_channels):
    for argument, value in (
        ("layers_per_block", layers_per_block),
        ("norm_num_groups", norm_num_groups),
        ("image_channels", image_channels),
        ("latent_channels", latent_channels),
    ):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}.")
    if not block_out_channels or any(channels < 1 or channels % norm_num_groups for channels in block_out_channels):
        raise ValueError(
            f"block_out_channels must be multiples of norm_num_groups = {norm_num_groups}, got "
            f"{tuple(block_out_channels)}."
        )
