"""What the cells of a lesson call: the start, pictures with a text alternative, figures that are compared."""

import io
import os
import sys
from typing import Any, TypeVar

from zoo import backends
from zoo.errors import UserError, require

_T = TypeVar("_T")
QUICK_VARIABLE = "ZOO_LESSONS_QUICK"  # environment: short trainings, for tests
_DPI = 100


def start(lesson: int, *, backend: str | None = None) -> None:
    """Import Keras on the chosen backend and say which it is, the first cell of a lesson.

    From here on, a mistake that a user can put right is shown as one sentence, without a traceback.

    Args:
        lesson: number of the lesson.
        backend: "tensorflow", "jax" or "torch"; that of `KERAS_BACKEND` unless given.

    Raises:
        UserError: if there is no such lesson, a backend or matplotlib is not installed, or Keras runs on another
            backend already.
    """
    _show_user_errors_as_sentences()
    from zoo.lessons.exercises import find_lesson

    found = find_lesson(lesson)
    require("matplotlib", "sklearn", what="A lesson")
    if backend is not None:
        backends.check_backend(backend)
        if "keras" not in sys.modules:
            os.environ["KERAS_BACKEND"] = backend
    backends.import_keras()
    import keras

    name = keras.backend.backend()
    if backend not in (None, name):
        raise UserError(
            f"Keras runs on {name} here and cannot change to {backend}: restart the notebook's kernel first."
        )
    print(f"Lesson {found.number}, {found.title}: Keras {keras.__version__} on {name} {backends.package_version(name)}")


def full_or_quick(full: _T, quick: _T) -> _T:
    """A number of steps or examples, smaller where the environment has `ZOO_LESSONS_QUICK=1`, as in tests.

    Args:
        full: what a reader gets.
        quick: what tests get.

    Returns:
        one of the two.
    """
    return quick if os.environ.get(QUICK_VARIABLE) else full


def key_figure(name: str, value: float, digits: int = 4) -> None:
    """Print a figure that has to be the same on every backend; tests compare what is printed.

    Args:
        name: of the figure.
        value: an integer, or a number that is rounded.
        digits: after the point.
    """
    print(f"→ {name}: {f'{value:,}' if isinstance(value, int) else f'{value:,.{digits}f}'}")


def show(figure: Any, alt: str) -> None:
    """Show a picture with a text alternative.

    Args:
        figure: `matplotlib.figure.Figure`; every axes with scales has labels, every one without has a title.
        alt: what the picture shows, for those who cannot see it.

    Raises:
        ValueError: if the text or a label is missing.
    """
    require("matplotlib", what="A picture")
    import matplotlib.pyplot as plt

    if len(alt.split()) < 5:
        raise ValueError(f"Say in a sentence what the picture shows, not {alt!r}.")
    for axes in figure.axes:
        if not _is_labelled(axes):
            raise ValueError(
                f"The axes {axes.get_title()!r} has no labels: set xlabel and ylabel, or a title if it is off."
            )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI, bbox_inches="tight")
    plt.close(figure)
    _display(content.getvalue(), alt)


def _display(content, alt):
    """Show a PNG in a notebook; a script shows none."""
    if _ipython() is not None:
        from IPython.display import Image, display

        display(Image(data=content, format="png", alt=alt))


def _is_labelled(axes):
    """Whether a reader knows what an axes shows; those that share a scale need one label between them."""
    if not axes.axison:
        return bool(axes.get_title() or axes.texts)
    if axes.get_label() == "<colorbar>":
        return bool(axes.get_ylabel() or axes.get_xlabel())
    x = [axes, *axes.get_shared_x_axes().get_siblings(axes)]
    y = [axes, *axes.get_shared_y_axes().get_siblings(axes)]
    return any(one.get_xlabel() for one in x) and any(one.get_ylabel() for one in y)


def _ipython():
    """The running IPython, or None outside of a notebook."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def _show_user_errors_as_sentences():
    """In a notebook, show a `UserError` as its sentence alone."""
    if (shell := _ipython()) is None:
        return

    def show_sentence(shell, kind, error, traceback, tb_offset=None):
        print(f"error: {error}", file=sys.stderr)

    shell.set_custom_exc((UserError,), show_sentence)
