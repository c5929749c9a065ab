"""Pictures and scores of what a latent diffusion draws.

Letters: N pictures, F features.
"""

import numpy as np
from matplotlib.figure import Figure

from zoo.io import files


def save_curves(path, history):
    """PNG of every measured quantity by epoch, from the rows of `history.csv`: training and validation together."""
    left_out = ("epoch", "learning_rate", "seconds", "images_per_second")
    quantities = [key for key in history[0] if key not in left_out and not key.startswith("val_")]
    figure = Figure(figsize=(4 * len(quantities), 3.4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities):
        for key, label in ((quantity, "training"), (f"val_{quantity}", "validation")):
            if key in history[0]:
                axes.plot([row["epoch"] for row in history], [row[key] for row in history], "o-", ms=3, label=label)
        axes.set(xlabel="epoch", title=quantity.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)


def save_loss_by_timestep(path, errors, timesteps=1000):
    """PNG of the denoiser's mean squared error by timestep: `errors` over equal ranges of timesteps."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    middles = (np.arange(len(errors)) + 0.5) * timesteps / len(errors)
    axes.semilogy(middles, errors, "o-", ms=3)
    axes.set(xlabel="timestep t (0 is nearly clean)", ylabel="mean of |ε - ε̂|²", title="How hard each timestep is")
    axes.grid(alpha=0.3, which="both")
    _save(figure, path)


def save_steps(path, table):
    """PNG of quality by number of steps: `table` is {sampler: {steps: (Fréchet distance, share all right)}}."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, (axes, title) in enumerate(
        zip(figure.subplots(1, 2), ("Fréchet distance (lower is better)", "class and both colours right"))
    ):
        for sampler, points in table.items():
            axes.plot(list(points), [point[place] for point in points.values()], "o-", ms=3, label=sampler)
        axes.set(xlabel="steps", title=title, xscale="log")
        axes.set_xticks(sorted({steps for points in table.values() for steps in points}))
        if place == 0:  # few steps of some samplers are ten times as far off
            axes.set(yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}" if axis is axes.yaxis and place == 0 else "")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    _save(figure, path)


def save_grid(path, rows, captions):
    """PNG of rows of pictures, each an array (N, H, W, 3) uint8, with `captions`, N texts, above the columns."""
    count = len(captions)
    figure = Figure(figsize=(1.5 * count, 1.5 * len(rows) + 0.5), layout="constrained")
    for place, (axes, row) in enumerate(
        (axes, row) for row, line in zip(rows, figure.subplots(len(rows), count, squeeze=False)) for axes in line
    ):
        axes.imshow(row[place % count], interpolation="nearest")
        axes.axis("off")
        if place < count:
            axes.set_title(_broken(captions[place]), fontsize=7)
    _save(figure, path)


def save_gallery(path, pictures, captions, columns=8):
    """PNG of pictures (N, H, W, 3) uint8, each under its caption."""
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.45 * columns, 1.75 * lines), layout="constrained")
    for place, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.axis("off")
        if place < len(pictures):
            axes.imshow(pictures[place], interpolation="nearest")
            axes.set_title(_broken(captions[place]), fontsize=7)
    _save(figure, path)


def frechet_distance(one, other):
    """The squared Fréchet distance of two normal distributions with the means and covariances of features.

        |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)                                     Heusel et al. 2017, equation 6

    Args:
        one, other: (N, F) features, each with more rows than columns.
    """
    means = [np.mean(part, axis=0, dtype="float64") for part in (one, other)]
    covariances = [np.cov(np.asarray(part, "float64"), rowvar=False) for part in (one, other)]
    # The trace of a root is the sum of the roots of the eigenvalues, here real and not negative but for rounding.
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1]).real
    roots = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances)) - 2 * roots)


def _broken(text, width=18):
    """A text in lines of about `width` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _save(figure, path):
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
