"""Plots of a latent diffusion: training curves, samples, loss by timestep, samplers.

Letters: N images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.evaluation.figures import new_figure, save_figure, set_epoch_axis
from zoo.typing import StrPath


def plot_training_curves(path: StrPath, history: list[dict[str, Any]]) -> None:
    """Write a PNG of every measured quantity by epoch, training and validation together.

    Args:
        path: PNG file.
        history: rows of `history.csv`, dicts.
    """
    not_plotted = ("epoch", "learning_rate", "seconds", "images_per_second")
    quantities = [key for key in history[0] if key not in not_plotted and not key.startswith("val_")]
    figure = new_figure(4 * len(quantities), 3.4)
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities):
        for key, label in ((quantity, "training"), (f"val_{quantity}", "validation")):
            if key in history[0]:
                axes.plot([row["epoch"] for row in history], [row[key] for row in history], "o-", ms=3, label=label)
        axes.set(title=quantity.replace("_", " "))
        set_epoch_axis(axes, history)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_loss_by_timestep(path: StrPath, errors: Sequence[float] | np.ndarray, timesteps: int = 1000) -> None:
    """Plot the denoiser's mean squared error by timestep as PNG.

    Args:
        path: PNG file.
        errors: over equal ranges of timesteps, (bins,).
        timesteps: T.
    """
    figure = new_figure(6, 3.4)
    axes = figure.add_subplot()
    centers = (np.arange(len(errors)) + 0.5) * timesteps / len(errors)
    axes.semilogy(centers, errors, "o-", ms=3)
    axes.set(xlabel="timestep t (0 is nearly clean)", ylabel="mean of |ε - ε̂|²", title="Loss by timestep")
    axes.grid(alpha=0.3, which="both")
    save_figure(figure, path)


def plot_steps(path: StrPath, table: Mapping[str, Mapping[int, tuple[float, float]]]) -> None:
    """Plot quality by number of steps as PNG.

    Args:
        path: PNG file.
        table: {sampler: {steps: (Fréchet distance, accuracy)}}.
    """
    figure = new_figure(9, 3.6)
    for index, (axes, title) in enumerate(
        zip(figure.subplots(1, 2), ("Fréchet distance (lower is better)", "class and both colors correct"))
    ):
        for sampler, points in table.items():
            axes.plot(list(points), [point[index] for point in points.values()], "o-", ms=3, label=sampler)
        axes.set(xlabel="steps", title=title, xscale="log")
        axes.set_xticks(sorted({steps for points in table.values() for steps in points}))
        if index == 0:  # some samplers are ten times as far off with few steps
            axes.set(yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}" if axis is axes.yaxis and index == 0 else "")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_grid(path: StrPath, rows: Sequence[np.ndarray], captions: Sequence[str]) -> None:
    """Write a PNG of rows of images.

    Args:
        path: PNG file.
        rows: each an array (N, H, W, 3) uint8.
        captions: N texts, above the columns.
    """
    count = len(captions)
    figure = new_figure(1.5 * count, 1.5 * len(rows) + _height(captions))
    for index, (axes, row) in enumerate(
        (axes, row) for row, line in zip(rows, figure.subplots(len(rows), count, squeeze=False)) for axes in line
    ):
        axes.imshow(row[index % count], interpolation="nearest")
        axes.axis("off")
        if index < count:
            axes.set_title(_wrap(captions[index]), fontsize=7)
    save_figure(figure, path)


def plot_gallery(path: StrPath, images: np.ndarray, captions: Sequence[str], columns: int = 8) -> None:
    """Write a PNG of images, each under its caption.

    Args:
        path: PNG file.
        images: (N, H, W, 3) uint8.
        captions: N texts.
        columns: images in a row.
    """
    lines = -(-len(images) // columns)
    figure = new_figure(1.45 * columns, (1.45 + _height(captions)) * lines)
    for index, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.axis("off")
        if index < len(images):
            axes.imshow(images[index], interpolation="nearest")
            axes.set_title(_wrap(captions[index]), fontsize=7)
    save_figure(figure, path)


def _height(captions):
    """Height in inches of captions in 7-point letters."""
    return 0.15 + 0.12 * max(_wrap(caption).count("\n") + 1 for caption in captions)


def _wrap(text, width=18):
    """A text in lines of about `width` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
