"""Figures of matplotlib, which is imported when the first one is made."""

from zoo.errors import require
from zoo.io import files


def new_figure(width, height):
    """A `matplotlib.figure.Figure` of a size in inches, whose parts are laid out so that none overlap.

    Raises:
        UserError: if matplotlib is not installed.
    """
    require("matplotlib", what="A plot")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path):
    """Write a figure as PNG, atomically."""
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
