"""Evaluation of classifiers whose classes have names."""

import types

import keras
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluation.reports import evaluate_classifier

pytestmark = pytest.mark.once


def test_classes_are_matched_by_name(tmp_path):
    """Of a model that is always right, whatever the order of its classes; other classes are refused."""
    names = ("ant", "bee", "cat")
    labels = np.arange(30) % 3
    images = np.zeros((30, 2, 2, 3), "uint8")
    images[np.arange(30), :, :, (labels + 1) % 3] = 9  # the model's class k is the data's k - 1
    image = keras.Input((2, 2, 3), name="image")
    model = keras.Model(image, keras.layers.GlobalMaxPooling2D()(image), name="tiny")
    dataset = types.SimpleNamespace(
        name="insects", x_test=images, y_test=labels, class_names=names, fingerprint=lambda: "0"
    )
    accuracy = evaluate_classifier(model, dataset, tmp_path, class_names=("cat", "ant", "bee"))["test_accuracy"]
    assert accuracy == 1.0
    assert evaluate_classifier(model, dataset, tmp_path)["test_accuracy"] == 0.0
    with pytest.raises(UserError, match="^tiny knows no class 'cat', which insects has: evaluate it on data"):
        evaluate_classifier(model, dataset, tmp_path / "other", class_names=("ant", "bee", "cow"))
    assert not (tmp_path / "other").exists()
