"""Plots as a reader sees them: nothing is cut at the edge, no label lies on another, also at the smallest sizes."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from zoo.data.images import GTSRB_CLASSES
from zoo.evaluation import classification, diffusion_plots, figures, language, translation

ONE_EPOCH = {
    classification: {"loss": 2.3, "accuracy": 0.1, "val_loss": 2.2, "val_accuracy": 0.2},
    diffusion_plots: {"image_loss": 0.3, "kl_loss": 3.1, "loss": 0.3, "val_image_loss": 0.2, "val_loss": 0.25},
    language: {"loss": 4.0, "val_loss": 3.0},
    translation: {"loss": 4.0, "val_loss": 3.0, "val_bleu": 0.0},
}
CAPTIONS = ["on an orange background a purple pair of trousers", "t-shirt, black on white"]
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A function that plots and returns the figure, drawn."""
    found = []

    def save(figure, path):
        found.append(figure)
        figures.save_figure(figure, path)

    for module in ONE_EPOCH:
        monkeypatch.setattr(module, "save_figure", save)

    def plot(function, *args):
        function(tmp_path / "plot.png", *args)
        FigureCanvasAgg(found[-1]).draw()
        return found[-1]

    return plot


def labels_in_view(axes):
    low, high = axes.get_xlim()
    return [label for tick, label in zip(axes.get_xticks(), axes.get_xticklabels()) if low <= tick <= high]


def texts(figure):
    """[(text, its extent in pixels)] of all that is written in a figure."""
    artists = [artist for axes in figure.axes if axes.axison for artist in (*axes.texts, *labels_in_view(axes))]
    artists += [axes.title for axes in figure.axes] + ([figure._suptitle] if figure._suptitle else [])
    renderer = figure.canvas.get_renderer()
    return [(artist.get_text(), artist.get_window_extent(renderer)) for artist in artists if artist.get_text()]


def assert_nothing_is_cut(figure):
    width, height = figure.canvas.get_width_height()
    for text, box in texts(figure):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text


@pytest.mark.once
@pytest.mark.parametrize("module", ONE_EPOCH, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_run_of_one_epoch(drawn, module):
    rest = {"learning_rate": 1.0, "seconds": 1.0, "images_per_second": 1.0}
    figure = drawn(module.plot_training_curves, [{"epoch": 1} | ONE_EPOCH[module] | rest])
    assert_nothing_is_cut(figure)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
        inside = axes.get_window_extent()
        for text in axes.texts:  # clear of the axis
            assert text.get_window_extent().y0 > inside.y0


@pytest.mark.once
@pytest.mark.parametrize("rows", [1, 3])
def test_captions_of_a_grid(drawn, rows):
    images = np.zeros((4, 48, 48, 3), "uint8")
    assert_nothing_is_cut(drawn(diffusion_plots.plot_grid, [images] * rows, CAPTIONS * 2))


@pytest.mark.once
@pytest.mark.parametrize("count", [2, 12])
def test_captions_of_a_gallery(drawn, count):
    assert_nothing_is_cut(drawn(diffusion_plots.plot_gallery, np.zeros((count, 48, 48, 3), "uint8"), CAPTIONS * 6))


def predictions(mistakes, classes):
    labels = np.zeros(60, int)
    logits = np.zeros((60, classes))
    logits[:, 0] = 3
    labels[:mistakes] = 1 + np.arange(mistakes) % (classes - 1)
    return labels, logits


@pytest.mark.once
@pytest.mark.parametrize("mistakes", [0, 1, 2, 40])
def test_worst_mistakes(drawn, mistakes, tmp_path):
    labels, logits = predictions(mistakes, len(GTSRB_CLASSES))
    figure = drawn(classification.plot_worst_mistakes, np.zeros((60, 8, 8, 1), "uint8"), labels, logits, GTSRB_CLASSES)
    assert_nothing_is_cut(figure)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.height < 200 or mistakes  # no empty page


@pytest.mark.once
@pytest.mark.parametrize("names", [tuple("0123456789"), FASHION, GTSRB_CLASSES], ids=["digits", "fashion", "signs"])
def test_labels_of_a_confusion_matrix(drawn, names):
    figure = drawn(classification.plot_confusion_matrix, *predictions(30, len(names)), names)
    assert_nothing_is_cut(figure)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in zip(boxes, boxes[1:]))


@pytest.mark.once
def test_pieces_that_the_font_lacks(tmp_path):
    """They bring no warning, which the tests would take for an error."""
    weights = {"decoder_0_cross_attention": np.ones((1, 2, 2))}
    translation.plot_attention(tmp_path / "attention.png", weights, ["\x03", "日"], ["\ufffd", "a"])
