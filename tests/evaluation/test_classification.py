import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from zoo.evaluation import classification

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 200)
LOGITS = RNG.standard_normal((200, 4)) * 3 + 4 * np.eye(4)[LABELS]
NAMES = ("ant", "bee", "cat", "dog")

pytestmark = pytest.mark.once


def test_scores_equal_scikit_learn():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    score = classification.scores(LABELS, LOGITS)
    assert score["loss"] == pytest.approx(metrics.log_loss(LABELS, probabilities))
    assert score["accuracy"] == pytest.approx(metrics.accuracy_score(LABELS, LOGITS.argmax(axis=1)))


def test_scores_of_huge_logits_are_finite():
    assert classification.scores(np.array([0, 1]), np.array([[1e4, 0.0], [1e4, 0.0]]))["loss"] == pytest.approx(5e3)


def test_text_report_counts_every_class():
    text = classification.format_report(LABELS, LOGITS, NAMES)
    matrix = metrics.confusion_matrix(LABELS, LOGITS.argmax(axis=1))
    rows = [line.split() for line in text.splitlines()[-4:]]
    assert [row[0] for row in rows] == list(NAMES)
    np.testing.assert_array_equal([[int(n) for n in row[1:]] for row in rows], matrix)


def test_many_classes_show_the_largest_confusions_first():
    labels = np.repeat(np.arange(20), 10)
    predicted = labels.copy()
    predicted[:7], predicted[10:13] = 5, 6  # 7 of class 0 taken for 5, 3 of class 1 taken for 6
    text = classification.format_report(labels, np.eye(20)[predicted], [f"sign {i}" for i in range(20)])
    assert [line.split() for line in text.splitlines()[-2:]] == [
        "7 sign 0 taken for sign 5".split(),
        "3 sign 1 taken for sign 6".split(),
    ]


def test_pictures_are_drawn(tmp_path):
    images = RNG.integers(0, 256, (200, 8, 8, 1)).astype("uint8")
    history = [{"epoch": e, "loss": 1 / e, "accuracy": 1 - 1 / e, "val_loss": 1 / e} for e in (1, 2, 3)]
    classification.plot_confusion_matrix(tmp_path / "matrix.png", LABELS, LOGITS, NAMES)
    classification.plot_worst_mistakes(tmp_path / "mistakes.png", images, LABELS, LOGITS, NAMES)
    classification.plot_worst_mistakes(tmp_path / "none.png", images, LABELS, np.eye(4)[LABELS], NAMES)
    classification.plot_training_curves(tmp_path / "curves.png", history)
    for name in ("matrix", "mistakes", "none", "curves"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 150 and len(picture.convert("L").getcolors(1 << 20)) > 1
