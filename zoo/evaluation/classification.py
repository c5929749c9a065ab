"""Evaluation of a classifier: loss, accuracy, report by class, plots of the confusion matrix and of mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import require
from zoo.evaluation.figures import new_figure, save_figure, set_epoch_axis
from zoo.typing import StrPath

if TYPE_CHECKING:
    from zoo.data import ImageFiles


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax.

    Args:
        logits: float (N, K).

    Returns:
        float64 (N, K).
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Scores of a classifier.

    Args:
        labels: (N,) int.
        logits: (N, K).

    Returns:
        {"loss": mean cross-entropy in nats, "accuracy": fraction right}.
    """
    log_p = log_softmax(logits)
    loss = -log_p[np.arange(len(labels)), labels].mean()
    return {"loss": float(loss), "accuracy": float((log_p.argmax(axis=1) == labels).mean())}


def format_report(labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> str:
    """Precision, recall and F1 of each class, then the confusion matrix (or, for many classes, its largest errors).

    Args:
        labels: (N,) int.
        logits: (N, K).
        class_names: K names.

    Returns:
        the report.
    """
    predicted = np.argmax(logits, axis=1)
    classes = np.arange(len(class_names))
    metrics = _metrics()
    report = metrics.classification_report(
        labels, predicted, labels=classes, target_names=class_names, digits=4, zero_division=0
    )
    matrix = metrics.confusion_matrix(labels, predicted, labels=classes)
    if len(class_names) <= 12:
        width = max(6, *(len(name) + 1 for name in class_names))
        lines = ["Confusion matrix (rows: truth, columns: prediction)", ""]
        lines.append(" " * width + "".join(name.rjust(width) for name in class_names))
        lines += [
            name.rjust(width) + "".join(str(n).rjust(width) for n in row) for name, row in zip(class_names, matrix)
        ]
    else:
        errors = matrix - np.diag(np.diag(matrix))
        lines = ["Largest confusions (the whole matrix is in confusion_matrix.png)", ""]
        for flat in np.argsort(-errors, axis=None, kind="stable")[:10]:
            truth, guess = np.unravel_index(flat, errors.shape)
            if errors[truth, guess]:
                lines.append(f"{errors[truth, guess]:5d}  {class_names[truth]} taken for {class_names[guess]}")
    return report + "\n" + "\n".join(lines) + "\n"


def plot_confusion_matrix(path: StrPath, labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> None:
    """Plot the confusion matrix as PNG; colors are fractions of the row, numbers are counts.

    Args:
        path: PNG file.
        labels: (N,) int.
        logits: (N, K).
        class_names: K names.
    """
    classes = np.arange(len(class_names))
    matrix = _metrics().confusion_matrix(labels, np.argmax(logits, axis=1), labels=classes)
    fraction = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(5.0, 0.33 * len(class_names) + 2.5)
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    size = 10 if len(class_names) <= 12 else 6
    for row, column in np.argwhere(matrix > 0):
        color = "white" if fraction[row, column] > 0.5 else "black"
        axes.text(column, row, matrix[row, column], ha="center", va="center", fontsize=size, color=color)
    axes.set_xticks(classes, class_names, rotation=90 if max(map(len, class_names)) > 3 else 0, fontsize=size)
    axes.set_yticks(classes, class_names, fontsize=size)
    axes.set(xlabel="prediction", ylabel="truth", title=f"{np.trace(matrix):,} of {matrix.sum():,} right")
    save_figure(figure, path)


def plot_worst_mistakes(
    path: StrPath,
    images: np.ndarray | ImageFiles,
    labels: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    count: int = 24,
) -> None:
    """Plot the wrong predictions with the highest loss as PNG, with truth → prediction and its probability.

    Args:
        path: PNG file.
        images: (N, H, W, C) uint8, an array or `zoo.data.ImageFiles`.
        labels: (N,) int.
        logits: (N, K).
        class_names: K names.
        count: most images.
    """
    log_p = log_softmax(logits)
    predicted = log_p.argmax(axis=1)
    loss = -log_p[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-loss[wrong], kind="stable")][:count]
    columns = min(8, max(3, len(worst)))
    rows = -(-len(worst) // columns)
    figure = new_figure(columns * 1.6, max(1.5, rows * 2.2 + 0.5))
    figure.suptitle(f"The {len(worst)} worst of {len(wrong)} mistakes" if len(worst) else "No mistakes")
    for position, index in enumerate(worst, start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        probability = np.exp(log_p[index, predicted[index]])
        truth, guess = (_short(class_names[k]) for k in (labels[index], predicted[index]))
        axes.set_title(f"{truth}\n→ {guess}\n({probability:.0%})", fontsize=8)
    save_figure(figure, path)


def plot_training_curves(path: StrPath, history: list[dict[str, Any]]) -> None:
    """Plot training and validation loss and accuracy by epoch as PNG.

    Args:
        path: PNG file.
        history: rows of `history.csv`, dicts.
    """
    epochs = [row["epoch"] for row in history]
    figure = new_figure(9, 3.6)
    for position, metric in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, position)
        for prefix, label in (("", "training"), ("val_", "validation")):
            if prefix + metric in history[0]:
                axes.plot(epochs, [row[prefix + metric] for row in history], marker="o", ms=4, label=label)
        axes.set(title=metric)
        set_epoch_axis(axes, history)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def _metrics():
    require("sklearn", what="The report of a classifier")
    from sklearn import metrics

    return metrics


def _short(name, length=22):
    return name if len(name) <= length else name[: length - 1] + "…"
