"""Figures of matplotlib, which is imported when the first one is made."""

import warnings
from typing import Any

from zoo.errors import require
from zoo.io import files
from zoo.typing import StrPath


def new_figure(width: float, height: float) -> Any:
    """A figure whose parts are laid out so that none overlap.

    Args:
        width: in inches.
        height: in inches.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        UserError: if matplotlib is not installed.
    """
    require("matplotlib", what="A plot")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: StrPath) -> None:
    """Write a figure as PNG, atomically.

    Args:
        figure: of `new_figure`.
        path: PNG file.
    """
    with files.atomic_write(path) as temporary, warnings.catch_warnings():
        # Texts of users and of barely trained models hold characters that the font lacks: it draws a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(temporary, dpi=110)


def set_epoch_axis(axes: Any, history: list[dict[str, Any]]) -> None:
    """Make the x-axis of a plot one of whole epochs, with room for a run of one epoch.

    Args:
        axes: `matplotlib.axes.Axes`.
        history: rows of `history.csv`, dicts.
    """
    axes.set(xlabel="epoch", xlim=(0.5, history[-1]["epoch"] + 0.5))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
