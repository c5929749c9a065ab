"""A lesson as a Jupyter notebook, copied or executed, and what an executed one printed."""

from __future__ import annotations

import os
import pathlib
import re
import sys
import tempfile
from typing import Any

from zoo.backends import check_backend
from zoo.errors import UserError, require
from zoo.io import files
from zoo.lessons.exercises import Lesson
from zoo.lessons.notebook import QUICK_VARIABLE
from zoo.typing import StrPath

TIMEOUT = 900  # seconds of one cell


def to_notebook(lesson: Lesson) -> Any:
    """A lesson as a notebook.

    Args:
        lesson: of `zoo.lessons.exercises`.

    Returns:
        `nbformat.NotebookNode`, not executed.

    Raises:
        UserError: if jupytext is not installed.
    """
    require("jupytext", what="A lesson as a notebook")
    import jupytext
    from nbformat.v4 import new_code_cell, new_markdown_cell

    notebook = jupytext.read(lesson.path, fmt="md")
    notebook.cells.append(new_markdown_cell("## Exercises\n\nPut your answer in place of `None` and run the cell."))
    for exercise in lesson.exercises:
        choices = ", ".join(f'`"{choice}"`' for choice in exercise.choices)
        question = f"**{exercise.id}** {exercise.question}" + (f" One of {choices}." if choices else "")
        notebook.cells.append(new_markdown_cell(question))
        notebook.cells.append(new_code_cell(f'answer = None\nlessons.check("{exercise.id}", answer)'))
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "title": lesson.title,
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def code_cells(lesson: Lesson) -> list[str]:
    """The Python of a lesson.

    Args:
        lesson: of `zoo.lessons.exercises`.

    Returns:
        the source of each code cell, in order.

    Raises:
        UserError: as `to_notebook`.
    """
    return [cell.source for cell in to_notebook(lesson).cells if cell.cell_type == "code"]


def copy_lesson(lesson: Lesson, folder: StrPath = ".") -> tuple[pathlib.Path, bool]:
    """Write a lesson as a notebook; one that is there already, with somebody's answers, stays.

    Args:
        lesson: of `zoo.lessons.exercises`.
        folder: where to.

    Returns:
        (path of the notebook, whether it was written now).

    Raises:
        UserError: as `to_notebook`.
    """
    path = pathlib.Path(folder) / f"lesson_{lesson.number}_{lesson.name}.ipynb"
    if path.exists():
        return path, False
    write_notebook(to_notebook(lesson), path)
    return path, True


def write_notebook(notebook: Any, path: StrPath) -> None:
    """Write a notebook, atomically.

    Args:
        notebook: `nbformat.NotebookNode`.
        path: of the `.ipynb` file.
    """
    import nbformat

    files.write_text(path, nbformat.writes(notebook))


def execute(lesson: Lesson, *, folder: StrPath = ".", backend: str | None = None, quick: bool = False) -> Any:
    """Run all cells of a lesson in a Jupyter kernel of its own.

    Args:
        lesson: of `zoo.lessons.exercises`.
        folder: the working folder of the kernel.
        backend: name of the backend; that of `KERAS_BACKEND` unless given.
        quick: train shortly, as tests do.

    Returns:
        `nbformat.NotebookNode` with the outputs.

    Raises:
        UserError: if a package or the backend is not installed, or a cell raises.
    """
    require("jupytext", "nbconvert", "ipykernel", what="Executing a lesson")
    import nbclient
    from nbclient.exceptions import CellExecutionError
    from traitlets.config import Config

    if backend is not None:
        check_backend(backend)
    notebook = to_notebook(lesson)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path),
        "MPLBACKEND": "agg",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        QUICK_VARIABLE: "1" if quick else "",
    }
    if backend is not None:
        environment["KERAS_BACKEND"] = backend
    config = Config()
    with tempfile.TemporaryDirectory(prefix="zoo-lessons-") as sockets:
        if os.name == "posix":  # no port that others on the machine could reach
            config.KernelManager.transport = "ipc"
            config.KernelManager.ip = os.path.join(sockets, "kernel")  # whole: the kernel has a folder of its own
        resources = {"metadata": {"path": str(folder)}}
        client = nbclient.NotebookClient(
            notebook,
            timeout=TIMEOUT,
            startup_timeout=TIMEOUT,
            kernel_name="python3",
            resources=resources,
            config=config,
        )
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            message = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-1]
            raise UserError(f"Lesson {lesson.number} stopped: {message.removesuffix('.')}.") from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day
    return notebook


def printed(notebook: Any) -> str:
    """What the cells of an executed notebook printed.

    Args:
        notebook: `nbformat.NotebookNode`.

    Returns:
        the text of all outputs.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(texts)


def key_figures(text: str) -> dict[str, str]:
    """What `zoo.lessons.key_figure` printed.

    Args:
        text: of a lesson's output.

    Returns:
        {name: value as it was printed}.
    """
    return dict(re.findall(r"^→ (.+): (\S+)$", text, re.MULTILINE))


def to_html(notebook: Any, title: str) -> str:
    """An executed notebook as a page.

    Args:
        notebook: `nbformat.NotebookNode`.
        title: of the page.

    Returns:
        HTML; formulas are drawn by MathJax, which the page fetches.

    Raises:
        UserError: if nbconvert is not installed.
    """
    require("nbconvert", what="A lesson as a page")
    import nbconvert

    return nbconvert.HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": title}})[0]
