"""Preprocessing and augmentation of images as a Keras model, in front of a classifier.

Three modes:

    base    resize to 48x48 (bilinear; pixels are averaged where it shrinks), grey to three channels, rescale to [0, 1]
    train   base, then random affine map, brightness, contrast and erased rectangle, as asked, then normalization
    test    base, then normalization

Grey images are augmented before the channel is copied to three, which gives the same values for a third of the work.
"""

from collections.abc import Sequence

import keras
from keras import layers, ops

from zoo.blocks.augmentation import RandomAffine
from zoo.typing import Tensor

MODES = ("base", "train", "test")

# Mean and standard deviation of the 60,000 MNIST training images in [0, 1], for every channel.
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081


def preprocessing(
    mode: str,
    *,
    input_shape: tuple[int | None, ...],
    image_size: int = 48,
    mean: float | Sequence[float] = MNIST_MEAN,
    std: float | Sequence[float] = MNIST_STD,
    per_image_standardization: bool = False,
    local_contrast_window: int = 0,
    rotation: float = 10.0,
    brightness: float = 0.2,
    contrast: float = 0.2,
    translation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    erasing: float = 0.0,
    seed: int = 0,
    name: str | None = None,
) -> keras.Model:
    """Build the preprocessing model of a mode.

    Args:
        mode: "base", "train" or "test".
        input_shape: (height, width, channels) of the raw images; 1 or 3 channels.
        image_size: output height and width in pixels.
        mean: subtracted from images in [0, 1], a number or one for each channel.
        std: then they are divided by it, a number or one for each channel.
        per_image_standardization: subtract each image's own mean and divide by its own standard deviation, instead of
            `mean` and `std`.
        local_contrast_window: window in pixels of `local_contrast_normalization`; 0 for none.
        rotation: maximal random rotation in either direction, degrees (train only, like the six below).
        brightness: maximal random shift in either direction, as a fraction of the range.
        contrast: maximal random change of contrast in either direction, as a fraction.
        translation: largest random shift along each axis, as a fraction of the side.
        scale: largest random change of size; 0.1 means a factor between 0.9 and 1.1.
        shear: largest random shear angle in either direction, degrees.
        erasing: probability that a random rectangle, 2 to 33 % of the image, becomes grey (Zhong et al. 2017).
        seed: seed of the random layers.
        name: name of the model; the mode if None.

    Returns:
        `keras.Model` from raw images (B, height, width, channels) with values 0..255, uint8 or float, to float32
        images (B, image_size, image_size, 3). For grey images (B, height, width) is accepted too.

    Raises:
        ValueError: if the mode is unknown or the images have neither 1 nor 3 channels.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown mode {mode!r}: choose one of {', '.join(MODES)}.")
    channels = input_shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"Images have 1 channel (grey) or 3 (RGB), got input_shape={tuple(input_shape)}.")

    image = keras.Input(input_shape, name="image")
    x = layers.Resizing(image_size, image_size, antialias=True, data_format="channels_last", name="resize")(image)
    x = layers.Rescaling(1 / 255, name="to_unit_range")(x)
    if local_contrast_window:
        x = local_contrast_normalization(x, local_contrast_window)
    if mode == "train":
        if rotation or translation or scale or shear:
            x = RandomAffine(
                rotation=rotation, translation=translation, scale=scale, shear=shear, seed=seed, name="random_affine"
            )(x)
        if brightness:
            x = layers.RandomBrightness(brightness, value_range=(0, 1), seed=seed + 1, name="random_brightness")(x)
        if contrast:
            x = layers.RandomContrast(contrast, value_range=(0, 1), seed=seed + 2, name="random_contrast")(x)
        if erasing:
            x = layers.RandomErasing(
                (erasing, erasing), fill_value=0.5, value_range=(0, 1), seed=seed + 3, name="random_erasing"
            )(x)
    if channels == 1:
        x = layers.Concatenate(name="grey_to_rgb")([x, x, x])
    if mode != "base":
        if per_image_standardization:
            # With neither scale nor center this layer has no weights: (x - mean) / std of the whole image.
            x = layers.LayerNormalization(axis=(1, 2, 3), center=False, scale=False, epsilon=1e-4, name="normalise")(x)
        else:
            mean, std = ([v] * 3 if isinstance(v, (int, float)) else list(v) for v in (mean, std))
            x = layers.Rescaling([1 / s for s in std], [-m / s for m, s in zip(mean, std)], name="normalise")(x)
    return keras.Model(image, x, name=name or mode)


def local_contrast_normalization(x: Tensor, window: int) -> Tensor:
    """Local contrast normalization of images in [0, 1].

    Each pixel becomes 0.5 + (x - m) / (6 s), clipped to [0, 1], where m and s are the mean and the standard deviation
    (at least 0.03) of the brightness in the window around it. The brightness is the mean of the channels, so that hues
    are kept. Source: the subtractive and divisive normalization of Jarrett et al. 2009, section 2.1, with a square
    window.

    Args:
        x: symbolic images (B, H, W, C) in [0, 1].
        window: side of the window in pixels, odd.

    Returns:
        (B, H, W, C) in [0, 1].
    """
    brightness = ops.mean(x, axis=-1, keepdims=True)  # (B, H, W, 1)
    mean = layers.AveragePooling2D(window, strides=1, padding="same", data_format="channels_last", name="local_mean")(
        brightness
    )
    variance = layers.AveragePooling2D(
        window, strides=1, padding="same", data_format="channels_last", name="local_variance"
    )(ops.square(brightness - mean))
    return ops.clip(0.5 + (x - mean) / (6 * ops.sqrt(variance + 0.03**2)), 0.0, 1.0)


def attach_preprocessing(preprocessing_model: keras.Model, classifier: keras.Model, *, name: str) -> keras.Model:
    """One model from the raw image to the logits; it shares the weights of both parts.

    Args:
        preprocessing_model: what `preprocessing` returned.
        classifier: from its images to logits (B, K).
        name: name of the model.

    Returns:
        `keras.Model`.
    """
    image = keras.Input(preprocessing_model.input_shape[1:], name="image")
    return keras.Model(image, classifier(preprocessing_model(image)), name=name)
