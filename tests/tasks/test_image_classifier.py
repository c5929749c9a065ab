"""ImageClassifier: every kind of image, one or many, the same scores; what it refuses."""

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from tests.conftest import ROOT
from zoo.errors import UserError

DIGIT = ROOT / "docs" / "images" / "digit.png"  # a MNIST test image of a 3, enlarged


@pytest.fixture(scope="module")
def classifier():
    return zoo.ImageClassifier.from_preset("cnn_mnist")


def tiny(channels=1, size=(6, 9), classes=4, **arguments):
    """A classifier of random weights."""
    image = keras.Input((*size, channels))
    x = keras.layers.Flatten()(image) if None not in size else keras.layers.GlobalAveragePooling2D()(image)
    return zoo.ImageClassifier(keras.Model(image, keras.layers.Dense(classes)(x), name="tiny"), **arguments)


def test_the_snippet(classifier, monkeypatch):
    monkeypatch.chdir(ROOT)
    first, *others = classifier.classify("docs/images/digit.png", top_k=3)
    assert first["label"] == "3" and first["score"] > 0.99 and len(others) == 2
    assert others[0]["score"] >= others[1]["score"] and first.keys() == {"label", "score"}
    assert classifier.class_names == list("0123456789") and classifier.card["name"] == "cnn_mnist"


def test_kinds_of_images_and_one_or_many(classifier):
    """A path, Pillow, arrays (H, W), (H, W, 1) and (H, W, 3), of either ground; and a list of them all in one order."""
    pixels = np.asarray(Image.open(DIGIT))
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    images = [DIGIT, str(DIGIT), Image.open(DIGIT), grey, grey[..., None], np.stack(3 * [grey], -1), 255 - grey]
    expected = classifier.classify(DIGIT)
    together = classifier.classify(images)
    assert len(expected) == 3 and len(together) == len(images) and classifier.classify([]) == []
    for image, classes in zip(images, together):
        alone = classifier.classify(image)
        for one, other, reference in zip(alone, classes, expected):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(reference["score"], abs=1e-6)
            assert other["score"] == pytest.approx(reference["score"], abs=1e-6)
    batch = np.stack([grey, 255 - grey])[..., None]  # (2, H, W, 1)
    assert [classes[0]["label"] for classes in classifier.classify(batch)] == ["3", "3"]


def test_predict(classifier):
    grey = np.asarray(Image.open(DIGIT).convert("L"))
    one, many = classifier.predict(grey), classifier.predict([grey, DIGIT, grey[:90]])
    assert one.shape == (1, 10) and many.shape == (3, 10) and classifier.predict([]).shape == (0, 10)
    np.testing.assert_allclose(many.sum(axis=1), 1)
    logits = classifier.model.predict(grey[None], verbose=0)
    np.testing.assert_allclose(one, classifier.postprocess(logits), atol=1e-6)
    for batch_size in (1, 2):
        np.testing.assert_allclose(classifier.predict([grey, DIGIT, grey[:90]], batch_size=batch_size), many, atol=1e-6)


def test_a_large_photo_gives_what_the_model_alone_gives(classifier, tmp_path):
    """One preprocessing for the task, the command and whoever loads the file with Keras alone."""
    large = Image.fromarray(255 - np.asarray(Image.open(DIGIT).convert("L"))).resize(
        (900, 1200), Image.Resampling.BICUBIC
    )
    large.save(tmp_path / "large.png")
    model = zoo.load_model("cnn_mnist")  # on TensorFlow, predict fails once it has seen images without their channel
    expected = classifier.postprocess(model.predict(255 - np.asarray(large)[None, ..., None], verbose=0))
    np.testing.assert_allclose(classifier.predict(tmp_path / "large.png", invert=True), expected, atol=1e-6)
    assert expected.argmax() == 3 and expected.max() > 0.9


def test_inversion():
    task, dark = tiny(), np.zeros((6, 9), "uint8")
    assert [task.is_inverted(image) for image in (dark, 255 - dark)] == [False, True]
    assert [task.is_inverted(dark, invert) for invert in (True, False)] == [True, False]
    np.testing.assert_array_equal(task.preprocess(255 - dark), task.preprocess(dark))
    assert not tiny(channels=3).is_inverted(255 - dark)
    with pytest.raises(UserError, match='invert must be "auto", True or False, got .yes.'):
        task.classify(dark, invert="yes")


def test_arrays_that_fit_stay_as_they_are():
    task, image = tiny(size=(None, None)), np.random.default_rng(0).uniform(0, 100, (5, 7, 1)).astype("float32")
    assert task.preprocess(image) is image
    assert task.preprocess(image[..., 0]).shape == (5, 7, 1)
    other = tiny(channels=3).preprocess(image)
    assert other.shape == (6, 9, 3) and other.dtype == np.uint8


def test_the_model_is_the_users_own(classifier, tmp_path):
    """It trains, and what `save_to_preset` writes comes back with its names and settings."""
    task = tiny(class_names=["a", "b", "c", "d"], generation_config={"top_k": 2})
    images, labels = np.random.default_rng(0).uniform(0, 255, (8, 6, 9, 1)).astype("float32"), np.arange(8) % 4
    task.model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = task.predict(images)
    task.model.fit(images, labels, verbose=0)
    assert np.abs(task.predict(images) - before).max() > 0
    again = zoo.ImageClassifier.from_preset(task.save_to_preset(tmp_path / "mine"))
    np.testing.assert_allclose(again.predict(images), task.predict(images), atol=1e-6)
    assert again.class_names == list("abcd") and len(again.classify(images[0])) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"top_k": 0}, "top_k must be a positive integer, got 0"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"images": "nowhere.png"}, "There is no image at nowhere.png"),
        ({"images": 5}, "ImageClassifier takes one item or a list of them, got 5"),
        ({"images": np.zeros((2, 3, 4, 5, 6))}, "ImageClassifier takes one item or a list of them"),
    ],
)
def test_what_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        tiny().classify(**{"images": np.zeros((6, 9), "uint8")} | arguments)


def test_models_that_are_no_classifiers():
    words = keras.Input((7,))
    with pytest.raises(UserError, match="an image classifier maps .batch, height, width, 1 or 3. to"):
        zoo.ImageClassifier(keras.Model(words, keras.layers.Dense(3)(words)))
    with pytest.raises(UserError, match="There are 2 class names, but tiny has 4 classes"):
        tiny(class_names=["a", "b"])
