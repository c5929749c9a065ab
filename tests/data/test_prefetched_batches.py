"""Training on picture files gives the weights of training on arrays, bit for bit."""

import keras
import numpy as np
import pytest
from PIL import Image

from zoo import data


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """37 pictures: the last batch of 8 has 5."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    paths = [str(folder / f"{number}.png") for number in range(37)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (*rng.integers(5, 20, 2), 3), dtype=np.uint8)).save(path)
    return data.ImageFiles(paths, image_size=8)


def trained(batches, validation):
    """Losses of three epochs, validation losses and final weights."""

    class SetEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            batches.set_epoch(epoch)

    image = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(3, kernel_initializer="zeros")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss)
    history = model.fit(batches, validation_data=validation, epochs=3, shuffle=False, verbose=0, callbacks=[SetEpoch()])
    return history.history, [np.array(weight) for weight in model.get_weights()]


def test_training_on_files_equals_training_on_arrays(files):
    x, y = files[np.arange(len(files))], np.arange(37, dtype="int32") % 3
    results = []
    for kind, images in ((data.Batches, x), (data.PrefetchedBatches, files)):
        train, validation = kind(images, y, batch_size=8, seed=1), kind(images, y, batch_size=16, seed=None)
        results.append(trained(train, validation))
    assert len(results[0][0]["loss"]) == 3 and results[0][0]["loss"][2] < results[0][0]["loss"][0]
    assert results[0][0] == results[1][0]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(one, other)
