"""ImageClassifier: every kind of image, one or many, the same scores; what it refuses."""

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from tests.conftest import ROOT
from zoo import cli
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


@pytest.mark.parametrize("mode", ["none", "unit", "tf", "torch", "caffe"])
def test_preprocessing_of_models_of_others(mode, tmp_path):
    """Against `preprocess_input` of the module in keras.applications that documents each mode."""
    from keras import applications

    reference = {
        "none": lambda x: x,
        "unit": lambda x: x / 255,
        "tf": applications.mobilenet_v2.preprocess_input,
        "torch": applications.densenet.preprocess_input,
        "caffe": applications.resnet50.preprocess_input,
    }[mode]
    model = tiny(channels=3).model
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype("uint8")
    logits = keras.ops.convert_to_numpy(model(reference(image.astype("float32"))[None]))
    ours = zoo.ImageClassifier(model, preprocess_input=mode)
    np.testing.assert_allclose(ours.predict(image), ours.postprocess(logits), atol=1e-5)
    again = zoo.ImageClassifier.from_preset(ours.save_to_preset(tmp_path))
    assert again.preprocess_input == mode and again.assumptions() == {}
    np.testing.assert_allclose(again.predict(image), ours.predict(image), atol=1e-6)


@pytest.mark.once
def test_what_is_assumed_is_said_with_the_flag_that_states_it(tmp_path, capsys):
    image = Image.fromarray(np.full((6, 9), 200, "uint8"))
    image.save(tmp_path / "light.png")
    foreign = tiny().model
    foreign.save(tmp_path / "foreign.keras")
    command = ["classify", str(tmp_path / "light.png"), "--model", str(tmp_path / "foreign.keras")]
    assert cli.run(command) == 0
    printed, told = capsys.readouterr()
    unlisted, assumed = told.splitlines(keepends=True)
    assert unlisted.startswith(f"note: nothing vouches for {tmp_path / 'foreign.keras'}: no card.json beside it")
    assert assumed == (
        f"note: nothing says what {tmp_path / 'foreign.keras'} takes: pixels go in as 0 to 255 (--preprocess); images "
        "with a light border are inverted (--invert); classes are called by their numbers (--labels FILE).\n"
    )
    assert "inverted, because its border is light" in printed
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n\n")
    assert cli.run([*command, "--invert", "no", "--preprocess", "unit", "--labels", str(tmp_path / "names.txt")]) == 0
    printed, told = capsys.readouterr()
    scores = zoo.ImageClassifier(foreign, preprocess_input="unit").predict(image, invert=False)[0]
    assert told == unlisted and f"{['ant', 'bee', 'cat', 'dog'][scores.argmax()]}  {scores.max():>6.1%}" in printed
    x = keras.Input((6, 9, 3))
    scaled = keras.Sequential([x, keras.layers.Rescaling(1 / 127.5, -1), *tiny(channels=3).model.layers[1:]])
    assert list(zoo.ImageClassifier(scaled).assumptions()) == ["class_names"]  # it scales pixels itself
    assert zoo.ImageClassifier.from_preset("cnn_mnist").assumptions() == {}


@pytest.mark.once
@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.txt", "ant\r\n bee \n", ["ant", "bee"]),
        ("a.json", '["ant", "bee"]', ["ant", "bee"]),
        ("a.json", '{"1": "bee", "0": "ant"}', ["ant", "bee"]),
        ("config.json", '{"model_type": "vit", "id2label": {"0": "ant", "1": "bee"}}', ["ant", "bee"]),
        ("a.json", '["ant", 3]', "holds no names of classes"),
        ("a.json", '{"1": "bee"}', "holds no names of classes"),
        ("a.json", "[" * 9999, "is not valid JSON"),
        ("a.txt", b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_labels(name, content, expected, tmp_path):
    from zoo.io.labels import read_labels

    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if isinstance(expected, list):
        assert read_labels(tmp_path / name) == expected
        return
    with pytest.raises(UserError, match=expected):
        read_labels(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "absent.txt")


def test_models_that_are_no_classifiers():
    words = keras.Input((7,))
    with pytest.raises(UserError, match="an image classifier maps .batch, height, width, 1 or 3. to"):
        zoo.ImageClassifier(keras.Model(words, keras.layers.Dense(3)(words)))
    with pytest.raises(UserError, match="There are 2 class names, but tiny has 4 classes"):
        tiny(class_names=["a", "b"])
