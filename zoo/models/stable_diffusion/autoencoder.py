"""The KL autoencoder of latent diffusion (Rombach et al. 2022): pictures into small latents, and back.

image (B, H, W, 3) ─ conv ─ levels [residual blocks, halve] ─ mid ─ conv ─ mean and log-variance (B, H/F, W/F, 4)
latents (B, H/F, W/F, 4) ─ conv ─ mid ─ levels [residual blocks, double] ─ conv ─ image (B, H, W, 3)

The mid is a residual block, self-attention of one head over all pixels, and another residual block. F = 2^(levels - 1).
Images are in [-1, 1]; H and W must be divisible by F, which the caller sees to.

Letters: B pictures, H height, W width, C channels, T tokens (pixels in a row).

Source: diffusers 0.42, models/autoencoders/autoencoder_kl.py and vae.py: AutoencoderKL.
"""

import keras
from keras import layers, ops

from zoo.blocks.attention import attention, attention_layers
from zoo.blocks.residual import convolution, group_norm, picture, residual_block, token_places, tokens

VARIANTS = {
    # Chosen here, for images of 48x48: latents of 12x12
    "tiny": {"widths": (32, 64, 96), "blocks": 1, "groups": 16},
    # Rombach et al. 2022, table 8, f = 8 KL; runwayml/stable-diffusion-v1-5, vae/config.json
    "sd15": {"widths": (128, 256, 512, 512), "blocks": 2, "groups": 32},
}
EPSILON = 1e-6  # of the normalisations, vae.py
LOG_VARIANCE = (-30.0, 20.0)  # vae.py: DiagonalGaussianDistribution


def encoder(
    *,
    widths=(128, 256, 512, 512),
    blocks=2,
    groups=32,
    image_channels=3,
    latent_channels=4,
    name="encoder",
):
    """Build the encoder in the functional API.

    Args:
        widths: channels of each level, a multiple of `groups`; between two levels, height and width are halved.
        blocks: residual blocks of a level.
        groups: of the normalisations.
        image_channels: channels of a picture.
        latent_channels: channels of the latents.
        name: name of the model.

    Returns:
        `keras.Model` from image (B, H, W, image_channels) to [mean, log_variance], each (B, H/F, W/F, latent_channels);
        the log-variance lies in [-30, 20].

    Raises:
        ValueError: if a number is out of the range given above.

    Example:
        >>> encoder(**VARIANTS["sd15"]).count_params()
        34163664
    """
    _check(widths, blocks, groups, image_channels, latent_channels)
    options = {"groups": groups, "epsilon": EPSILON}
    image = keras.Input((None, None, image_channels), name="image")
    x = convolution(image, "conv_in", widths[0])
    for level, width in enumerate(widths):
        for block in range(blocks):
            x = residual_block(x, f"down_{level}_resnet_{block}", width=width, **options)
        if level < len(widths) - 1:
            # "same" pads even sizes at the bottom and the right only, as the published weights expect
            x = layers.Conv2D(width, 3, strides=2, padding="same", name=f"down_{level}_downsample")(x)
    x = ops.silu(group_norm(_mid(x, **options), "norm_out", **options))
    x = convolution(x, "conv_out", 2 * latent_channels)
    moments = layers.Dense(2 * latent_channels, name="quant_conv")(x)  # (B, H/F, W/F, 2·latent_channels)
    mean, log_variance = ops.split(moments, 2, axis=-1)
    return keras.Model(image, [mean, ops.clip(log_variance, *LOG_VARIANCE)], name=name)


def decoder(
    *,
    widths=(128, 256, 512, 512),
    blocks=2,
    groups=32,
    image_channels=3,
    latent_channels=4,
    name="decoder",
):
    """Build the decoder in the functional API.

    Args:
        widths, blocks, groups, image_channels, latent_channels, name: as in `encoder`, of which it is the mirror image
            but for one more residual block at each level.

    Returns:
        `keras.Model` from latents (B, h, w, latent_channels) to image (B, F·h, F·w, image_channels), not clipped.

    Raises:
        ValueError: if a number is out of the range given in `encoder`.

    Example:
        >>> decoder(**VARIANTS["sd15"]).count_params()
        49490199
    """
    _check(widths, blocks, groups, image_channels, latent_channels)
    options = {"groups": groups, "epsilon": EPSILON}
    latents = keras.Input((None, None, latent_channels), name="latents")
    x = layers.Dense(latent_channels, name="post_quant_conv")(latents)
    x = _mid(convolution(x, "conv_in", widths[-1]), **options)
    for level, width in enumerate(reversed(widths)):
        for block in range(blocks + 1):
            x = residual_block(x, f"up_{level}_resnet_{block}", width=width, **options)
        if level < len(widths) - 1:
            x = layers.UpSampling2D(2, name=f"up_{level}_double")(x)
            x = convolution(x, f"up_{level}_upsample", width)
    x = ops.silu(group_norm(x, "norm_out", **options))
    return keras.Model(latents, convolution(x, "conv_out", image_channels), name=name)


def autoencoder(*, latent_channels=4, name="autoencoder", **numbers):
    """Build encoder and decoder as one model, with a draw of the latents between them.

    Args:
        latent_channels, **numbers: as in `encoder`.
        name: name of the model.

    Returns:
        `keras.Model` from [image (B, H, W, 3), noise (B, H/F, W/F, 4)] to [image, mean, log_variance]: the decoder gets
        mean + exp(log_variance / 2) · noise. The noise is standard normal to train, or zeros for the likeliest picture.
        Its layers "encoder" and "decoder" are the two models.

    Raises:
        ValueError: as in `encoder`.

    Example:
        >>> autoencoder(**VARIANTS["sd15"]).count_params()
        83653863
    """
    parts = [part(latent_channels=latent_channels, **numbers) for part in (encoder, decoder)]
    return join(*parts, name=name)


def join(encoder, decoder, *, name="autoencoder"):
    """`autoencoder` of a finished encoder and decoder, e.g. loaded from files; weights are shared with them."""
    image = keras.Input(encoder.inputs[0].shape[1:], name="image")
    noise = keras.Input(decoder.inputs[0].shape[1:], name="noise")
    mean, log_variance = encoder(image)
    restored = decoder(mean + ops.exp(0.5 * log_variance) * noise)
    return keras.Model([image, noise], [restored, mean, log_variance], name=name)


def _mid(x, **options):
    """Residual block, attention over all pixels, residual block; (B, H, W, C) -> (B, H, W, C)."""
    width, part = x.shape[-1], "mid_attention"
    x = residual_block(x, "mid_resnet_0", width=width, **options)
    made = {layer.name: layer for layer in attention_layers(part, width=width, num_heads=1)}
    y = tokens(group_norm(x, f"{part}_norm", **options), f"{part}_tokens")  # (B, T, C)
    x = x + picture(attention(made.__getitem__, part, y, y), token_places(x))
    return residual_block(x, "mid_resnet_1", width=width, **options)


def _check(widths, blocks, groups, image_channels, latent_channels):
    for key, value in (
        ("blocks", blocks),
        ("groups", groups),
        ("image_channels", image_channels),
        ("latent_channels", latent_channels),
    ):
        if value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}.")
    if not widths or any(width < 1 or width % groups for width in widths):
        raise ValueError(f"widths must be multiples of the {groups} groups, got {tuple(widths)}.")
