"""Training on picture files gives the weights of training on arrays, bit for bit."""

import pathlib
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import data
from zoo.errors import UserError


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


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize(
    "damage, words", [("gone", "There is no image at .*7.png: give the path"), ("cut", ".*7.png is not an image")]
)
def test_a_file_that_is_damaged_meanwhile_is_one_sentence(files, tmp_path, part, damage, words):
    """Also on TensorFlow, whose tf.data raises an error of its own about that of a batch."""
    folder = shutil.copytree(pathlib.Path(files.paths[0]).parent, tmp_path / "files")
    path = folder / "7.png"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60])
    images = {"training": files, "validation": files}
    images[part] = data.ImageFiles([str(folder / pathlib.Path(path).name) for path in files.paths], image_size=8)
    y = np.arange(37, dtype="int32") % 3
    train = data.PrefetchedBatches(images["training"], y, batch_size=8, seed=1)
    validation = data.PrefetchedBatches(images["validation"], y, batch_size=16, seed=None)
    with zoo.strategy("cpu"), pytest.raises(UserError, match=f"^{words}[^\n]*$") as raised:
        trained(train, validation)
    assert type(raised.value) is UserError
    (validation if part == "validation" else train).x = files  # repaired
    with zoo.strategy("cpu"):
        history, _ = trained(train, validation)
    assert len(history["loss"]) == 3
