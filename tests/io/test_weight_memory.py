"""Initial values that take no memory, and the weights of large files, in the file's pages or read into place."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers

from zoo.io import model_files
from zoo.io.weight_memory import aligned_zeros, share_memory, zero_weight_init


def test_every_random_initializer_gives_zeros():
    random = {
        kind
        for name in dir(keras.initializers)
        if isinstance(kind := getattr(keras.initializers, name), type) and "seed" in inspect.signature(kind).parameters
    }
    assert len(random) >= 11
    with zero_weight_init():
        for kind in random:
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(kind()((3, 4))), 0)
        dense = layers.Dense(2, bias_initializer="ones")
        dense.build((None, 3))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(dense.bias), 1)
    assert np.abs(keras.ops.convert_to_numpy(keras.initializers.GlorotUniform()((3, 4)))).max() > 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (300, 301)])
def test_a_tensor_in_an_arrays_memory(shape):
    array = aligned_zeros(shape)
    array[...] = np.arange(array.size).reshape(shape)
    assert (array.ctypes.data % 64 == 0 or not array.size) and array.dtype == "float32" and array.shape == shape
    tensor = share_memory(array)
    assert tuple(tensor.shape) == shape
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensor), array)


def test_large_initial_values_are_zeros_of_ones_own():
    with zero_weight_init():
        first, second = (layers.Dense(200) for _ in range(2))
        for layer in (first, second):
            layer.build((None, 100))
    first.kernel.assign(np.ones((100, 200)))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(second.kernel), 0)


def test_training_a_mapped_model_leaves_its_file_alone(tmp_path, monkeypatch):
    """Its weights may be pages of the file, and optimizers of TensorFlow and JAX write to memory that they own."""
    monkeypatch.setattr(model_files, "LARGE_MODEL", 1000)
    model = keras.Sequential([keras.Input((150,)), layers.Dense(150, activation="relu"), layers.Dense(1)])
    path = tmp_path / "large.keras"
    model_files.save_model(model, path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    x, y = rng.normal(size=(16, 150)).astype("float32"), rng.normal(size=(16, 1)).astype("float32")
    loaded = model_files.load_model(path)
    losses = []
    for one in (model, loaded):
        one.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
        losses.append(one.fit(x, y, epochs=3, shuffle=False, verbose=0).history["loss"])
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert path.read_bytes() == content
    model_files.save_model(loaded, path)  # over the pages that its weights came from
    np.testing.assert_array_equal(model_files.load_model(path).get_weights()[0], model.get_weights()[0])
