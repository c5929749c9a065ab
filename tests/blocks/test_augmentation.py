import keras
import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from zoo.blocks.augmentation import RandomAffine, affine_resample

IMAGES = np.random.default_rng(0).random((3, 9, 12, 2)).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def test_resampling_equals_scipy():
    rng = np.random.default_rng(1)
    matrix = (np.array([[1, 0, 0, 1]]) + rng.uniform(-0.3, 0.3, (3, 4))).astype("float32")
    shift = rng.uniform(-0.2, 0.2, (3, 2)).astype("float32")
    out = numpy(
        affine_resample(ops.convert_to_tensor(IMAGES), ops.convert_to_tensor(matrix), ops.convert_to_tensor(shift))
    )
    for image, (xx, xy, yx, yy), (dx, dy), result in zip(IMAGES, matrix, shift, out):
        rows_columns = np.array([[yy, yx], [xy, xx]])  # SciPy counts (row, column), the layer (x, y)
        centre = np.array([4.0, 5.5])
        offset = centre - rows_columns @ centre + np.array([dy * 9, dx * 12])
        for channel in range(2):
            expected = ndimage.affine_transform(image[..., channel], rows_columns, offset, order=1, mode="nearest")
            np.testing.assert_allclose(result[..., channel], expected, atol=2e-5)


def test_quarter_turn_is_exact():
    square = IMAGES[:, :, :9]
    matrix = np.tile(np.array([[0, -1, 1, 0]], "float32"), (3, 1))
    out = numpy(affine_resample(ops.convert_to_tensor(square), ops.convert_to_tensor(matrix), ops.zeros((3, 2))))
    expected = np.empty_like(square)
    for y in range(9):
        for x in range(9):
            expected[:, y, x] = square[:, 4 + (x - 4), 4 - (y - 4)]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_identity_at_inference_and_for_zero_amounts():
    layer = RandomAffine(rotation=30.0, translation=0.2)
    np.testing.assert_array_equal(numpy(layer(IMAGES)), IMAGES)
    np.testing.assert_allclose(numpy(RandomAffine()(IMAGES, training=True)), IMAGES, atol=1e-6)


def test_rotation_stays_within_its_range():
    """A bright dot right of the centre moves along a circle by no more than the largest angle."""
    image = np.zeros((200, 41, 41, 1), "float32")
    image[:, 19:22, 35:38] = 1
    out = numpy(RandomAffine(rotation=10.0, seed=0)(image, training=True))[..., 0]
    grid = np.arange(41) - 20
    y, x = (out * grid[:, None]).sum((1, 2)) / out.sum((1, 2)), (out * grid).sum((1, 2)) / out.sum((1, 2))
    angles = np.degrees(np.arctan2(y, x))
    assert np.abs(angles).max() <= 10.5
    assert angles.min() < -7 and angles.max() > 7 and abs(angles.mean()) < 2


def test_config_round_trip():
    layer = RandomAffine(rotation=10.0, translation=0.1, scale=0.2, shear=5.0, seed=7)
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("wrong, word", [({"rotation": -1.0}, "rotation"), ({"scale": 1.0}, "scale")])
def test_wrong_amounts_are_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        RandomAffine(**wrong)
