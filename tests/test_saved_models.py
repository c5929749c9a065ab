"""The pretrained files: whole, described by their cards, small enough, and the same numbers on every backend."""

import json
import pathlib

import keras
import numpy as np
import pytest

from zoo import data, files

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "saved_models"
CARDS = sorted(FOLDER.glob("*.json"))


@pytest.mark.once
def test_each_file_has_a_card_and_each_card_a_file():
    assert {path.stem for path in CARDS} == {path.stem for path in FOLDER.glob("*.keras")}
    assert {"cnn_mnist", "cnn_gtsrb"} <= {path.stem for path in CARDS}


@pytest.mark.parametrize("card_path", CARDS, ids=lambda path: path.stem)
def test_card_describes_the_file(card_path):
    card, path = json.loads(card_path.read_text()), card_path.with_suffix(".keras")
    assert files.sha256(path) == card["sha256"] and path.stat().st_size == card["bytes"] < 50e6
    assert {"command", "backend", "versions", "data_sha256", "seed", "test_accuracy", "data_licence"} <= card.keys()
    model = keras.saving.load_model(path)  # keras alone: no custom objects of ours
    assert model.count_params() == card["parameters"]


def test_a_raw_digit_is_classified_in_one_call():
    """A uint8 image of any size, without any preparation by the caller."""
    digits = data.load("digits")  # other scans than MNIST's: 8x8 pixels, another hand
    model = files.load_model(FOLDER / "cnn_mnist.keras")
    predicted = model.predict(digits.x_test[..., 0], verbose=0).argmax(axis=1)
    assert (predicted == digits.y_test).mean() > 0.6
    assert model.predict(np.zeros((1, 28, 28), "uint8"), verbose=0).shape == (1, 10)


PREDICT = """
import sys
import keras, numpy as np
file, images, target = sys.argv[1:]
logits = keras.saving.load_model(file).predict(np.load(images), batch_size=250, verbose=0)
np.save(target, logits)
"""


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("name", ["cnn_mnist", "cnn_gtsrb"])
def test_same_logits_on_every_backend(tmp_path, run, name, request):
    """`import keras` alone, each backend in its own process, over the whole test set."""
    source = request.getfixturevalue("tfds_dir" if name == "cnn_mnist" else "gtsrb_file")
    dataset = data.load("mnist" if name == "cnn_mnist" else "gtsrb", source)
    card = json.loads((FOLDER / f"{name}.json").read_text())
    assert dataset.fingerprint() == card["data_sha256"] and len(dataset.x_test) == card["test_images"]
    np.save(tmp_path / "images.npy", dataset.x_test)
    logits = {}
    for backend in ("tensorflow", "jax", "torch"):
        target = tmp_path / f"{backend}.npy"
        ended = run(["-c", PREDICT, FOLDER / f"{name}.keras", tmp_path / "images.npy", target], backend=backend)
        assert ended.returncode == 0, ended.stderr
        logits[backend] = np.load(target)
        accuracy = (logits[backend].argmax(axis=1) == dataset.y_test).mean()
        assert accuracy == pytest.approx(card["test_accuracy"], abs=1e-9)
    for backend in ("jax", "torch"):
        difference = np.abs(logits[backend] - logits["tensorflow"]).max()
        print(f"{name}: largest difference of logits, {backend} to tensorflow: {difference:.1e}")
        assert difference <= 1e-4
