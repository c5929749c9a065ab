import numpy as np
import pytest
import torch
from keras import ops
from PIL import Image

from zoo.blocks.random_streams import random_streams
from zoo.models.preprocessing import MNIST_MEAN, MNIST_STD, preprocessing

DIGITS = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1)).astype("uint8")
RAW = (None, None, 1)


def resized(images):
    """Bilinear resize to 48x48 by PyTorch, half-pixel centres, pixels averaged where it shrinks."""
    tensor = torch.tensor(images.astype("float32")).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(tensor, (48, 48), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).numpy() / 255


def test_base_resizes_and_copies_grey_to_three_channels():
    out = preprocessing("base", input_shape=RAW).predict(DIGITS, verbose=0)
    assert out.shape == (3, 48, 48, 3)
    for channel in range(3):
        np.testing.assert_allclose(out[..., channel], resized(DIGITS)[..., 0], atol=1e-5)


def test_a_large_image_is_averaged_as_pillow_does():
    """Thin strokes of a large image must not vanish: every pixel counts, not one in ten."""
    image = np.full((700, 500, 1), 255, "uint8")
    image[:, 100:400:40] = 0  # strokes of one pixel
    expected = np.asarray(Image.fromarray(image[..., 0]).resize((48, 48), Image.Resampling.BILINEAR))
    out = preprocessing("base", input_shape=RAW).predict(image[None], verbose=0)[0, ..., 0] * 255
    np.testing.assert_allclose(out, expected, atol=1)
    assert expected.min() < 245  # and the strokes are there


def test_test_is_base_normalised():
    out = preprocessing("test", input_shape=RAW).predict(DIGITS, verbose=0)
    np.testing.assert_allclose(out, np.repeat((resized(DIGITS) - 0.1307) / 0.3081, 3, axis=-1), atol=1e-5)
    assert (MNIST_MEAN, MNIST_STD) == (0.1307, 0.3081)


def test_a_digit_may_come_without_its_channel():
    with_channel, without = (preprocessing("test", input_shape=RAW) for _ in range(2))
    np.testing.assert_array_equal(without.predict(DIGITS[..., 0], verbose=0), with_channel.predict(DIGITS, verbose=0))


def test_train_is_test_at_inference_and_random_in_training():
    train, test = (preprocessing(name, input_shape=RAW) for name in ("train", "test"))
    np.testing.assert_allclose(train.predict(DIGITS, verbose=0), test.predict(DIGITS, verbose=0), atol=1e-6)
    first, second = (ops.convert_to_numpy(train(DIGITS, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.1
    lowest, highest = (0 - MNIST_MEAN) / MNIST_STD, (1 - MNIST_MEAN) / MNIST_STD
    assert first.min() >= lowest - 1e-4 and first.max() <= highest + 1e-4


def test_erasing_greys_one_rectangle_of_some_images():
    images = np.full((400, 48, 48, 3), 255, "uint8")
    plain = dict(rotation=0, brightness=0, contrast=0, mean=0.0, std=1.0, input_shape=(None, None, 3))
    erase = preprocessing("train", erasing=0.25, **plain)
    out = ops.convert_to_numpy(erase(images, training=True))
    grey = (out == 0.5).all(axis=-1)  # (B, H, W)
    assert (grey | (out == 1.0).all(axis=-1)).all()
    touched = grey.any(axis=(1, 2))
    assert abs(touched.mean() - 0.25) < 5 * (0.25 * 0.75 / 400) ** 0.5
    for mask in grey[touched]:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        assert (mask == np.outer(rows, columns)).all() and mask.sum() < 0.36 * 48**2
        for line in (rows, columns):  # without a gap
            assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() == 2
    np.testing.assert_array_equal(erase.predict(images[:2], verbose=0), images[:2] / 255)  # only in training
    assert len(random_streams(erase)) == 1  # which a checkpoint keeps


def test_per_image_normalisation():
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    out = preprocessing("test", input_shape=(None, None, 3), per_image_standardization=True).predict(images, verbose=0)
    base = resized(images)
    mean, var = base.mean((1, 2, 3), keepdims=True), base.var((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(out, (base - mean) / np.sqrt(var + 1e-4), atol=1e-4)


def test_no_weights_in_any_pipeline():
    for name in ("base", "train", "test"):
        assert preprocessing(name, input_shape=(None, None, 3), per_image_standardization=True).count_params() == 0


@pytest.mark.parametrize("arguments, word", [(("tset", RAW), "tset"), (("test", (28, 28, 2)), "1 channel")])
def test_wrong_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        preprocessing(arguments[0], input_shape=arguments[1])
