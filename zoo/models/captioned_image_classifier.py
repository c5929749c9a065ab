"""The classifier of captioned images, and its feature extractor: both score a latent diffusion and train its parts.

Letters: B images, H x W pixels, K classes, F features.
"""

import keras

from zoo.models.cnn import cnn
from zoo.models.preprocessing import attach_preprocessing, preprocessing

MEAN, STD = 0.42, 0.34  # of captioned images in [0, 1], over all channels; inputs are normalized with them


def captioned_image_classifier(
    num_classes: int, *, image_size: int = 48, dropout: float = 0.25, seed: int = 0
) -> keras.Model:
    """A CNN behind its preprocessing.

    Args:
        num_classes: K.
        image_size: side to which images are resized, in pixels.
        dropout: rate of the dropout layers.
        seed: of the dropout layers.

    Returns:
        `keras.Model` from images (B, H, W, 3) in [0, 255] to logits (B, K).
    """
    classifier = cnn(num_classes=num_classes, units=128, dropout=dropout, seed=seed, name="classifier")
    prepare = preprocessing(
        "test", input_shape=(None, None, 3), image_size=image_size, mean=MEAN, std=STD, name="prepare"
    )
    return attach_preprocessing(prepare, classifier, name="captioned_image_classifier")


def feature_extractor(classifier: keras.Model) -> keras.Model:
    """The last hidden layer of a classifier, without dropout; it shares the weights.

    Args:
        classifier: a `captioned_image_classifier`.

    Returns:
        `keras.Model` from images (B, H, W, 3) in [0, 255] to activations (B, F).
    """
    image = keras.Input((None, None, 3), name="image")
    network, x = classifier.get_layer("classifier"), classifier.get_layer("prepare")(image)
    for name in ("conv1", "conv2", "pool1", "conv3", "pool2", "flatten", "dense1"):
        x = network.get_layer(name)(x)
    return keras.Model(image, x, name="feature_extractor")
