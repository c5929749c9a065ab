"""The 48x48 image classifier: three convolutions, two poolings, two dense layers.

image (48, 48, 3)
  conv1   3x3, 32, same, ReLU      (48, 48, 32)          896 parameters
  conv2   3x3, 64, same, ReLU      (48, 48, 64)       18,496
  pool1   2x2 maximum              (24, 24, 64)
  conv3   3x3, 128, same, ReLU     (24, 24, 128)      73,856
  pool2   2x2 maximum              (12, 12, 128)
  flatten, dropout                 (18432,)
  dense1  512, ReLU                (512,)          9,437,696
  dropout
  logits  num_classes              (num_classes,)      5,130 for 10 classes

The shorter network of many tutorials (`single_pool=True`) has no conv3 and pool2: dense1 has 64·24·24 inputs and
18,874,880 parameters, twice as many, because the feature map is not halved again.
"""

import keras
from keras import layers


def cnn(
    *,
    num_classes: int,
    image_size: int = 48,
    channels: int = 3,
    dropout: float = 0.5,
    single_pool: bool = False,
    units: int = 512,
    seed: int = 0,
    name: str = "cnn",
) -> keras.Model:
    """Build the classifier as a functional model that returns logits.

    Args:
        num_classes: number of classes, at least 2.
        image_size: height and width of the input in pixels; a multiple of 4.
        channels: channels of the input.
        dropout: dropout rate before each dense layer, in [0, 1).
        single_pool: leave out conv3 and pool2.
        units: width of dense1.
        seed: seed of the dropout layers. Unseeded dropout on PyTorch draws from the process's global stream, which no
            checkpoint saves.
        name: name of the model.

    Returns:
        `keras.Model` from float images (B, image_size, image_size, channels), already normalized, to logits
        (B, num_classes). Parameters: 9,536,074 for 10 classes, 9,553,003 for 43; with a single pool 18,899,402 for 10.

    Raises:
        ValueError: if an argument is out of the range given above.

    Example:
        >>> cnn(num_classes=10).count_params()
        9536074
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
    if image_size < 4 or image_size % 4:
        raise ValueError(f"image_size must be a positive multiple of 4 (two poolings halve it), got {image_size}.")
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}.")
    if units < 1:
        raise ValueError(f"units must be at least 1, got {units}.")

    image = keras.Input((image_size, image_size, channels), name="image")
    x = layers.Conv2D(32, 3, padding="same", activation="relu", data_format="channels_last", name="conv1")(image)
    x = layers.Conv2D(64, 3, padding="same", activation="relu", data_format="channels_last", name="conv2")(x)
    x = layers.MaxPooling2D(2, data_format="channels_last", name="pool1")(x)
    if not single_pool:
        x = layers.Conv2D(128, 3, padding="same", activation="relu", data_format="channels_last", name="conv3")(x)
        x = layers.MaxPooling2D(2, data_format="channels_last", name="pool2")(x)
    x = layers.Flatten(data_format="channels_last", name="flatten")(x)  # (B, 18432), with a single pool (B, 36864)
    x = layers.Dropout(dropout, seed=seed, name="dropout1")(x)
    x = layers.Dense(units, activation="relu", name="dense1")(x)
    x = layers.Dropout(dropout, seed=seed + 1, name="dropout2")(x)
    logits = layers.Dense(num_classes, name="logits")(x)
    return keras.Model(image, logits, name=name)
