"""The answers of a class as a table: one row a notebook, one column an exercise.

Notebooks are read, never run: an answer is a number, a list, a word or arithmetic of numbers in the exercise's cell.
"""

from __future__ import annotations

import ast
import collections
import csv
import dataclasses
import io
import operator
import pathlib
import re
from typing import Any

from zoo.errors import UserError
from zoo.io import files, schemas
from zoo.lessons import exercises
from zoo.typing import StrPath

_MOST_CELL = 20_000  # characters
_MOST_NUMBER = 2**63
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@dataclasses.dataclass(frozen=True)
class ClassGrades:
    """The answers of a class.

    Attributes:
        files: names of the notebooks.
        ids: of the exercises that they hold, in order.
        grades: for each notebook {id: `zoo.lessons.exercises.Grade`}.
    """

    files: tuple[str, ...]
    ids: tuple[str, ...]
    grades: tuple[dict[str, exercises.Grade], ...]

    def to_csv(self) -> str:
        """The table: for each notebook 1, 0 or nothing for each exercise, how many are right, and the answers."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", *self.ids, "right", "of", *(f"answer {one}" for one in self.ids)])
        for file, grades in zip(self.files, self.grades, strict=True):
            found = [grades.get(one, exercises.Grade(None, "", "")) for one in self.ids]
            marks = ["" if one.right is None else int(one.right) for one in found]
            answers = [_as_text(one.text) for one in found]
            writer.writerow([_as_text(file), *marks, sum(one.right is True for one in found), len(self.ids), *answers])
        return text.getvalue()

    def summary(self) -> list[str]:
        """A line for each exercise: how many were right, and the most frequent mistake with what it comes from."""
        lines = []
        for one in self.ids:
            found = [grades[one] for grades in self.grades if one in grades]
            right = sum(grade.right is True for grade in found)
            line = f"{one}  {right} of {len(self.files)} right"
            wrong = collections.Counter(grade.remark for grade in found if grade.right is False)
            if wrong:
                remark, count = wrong.most_common(1)[0]
                line += f"; {count}x: {remark}"
            lines.append(line)
        return lines


def grade_folder(folder: StrPath) -> ClassGrades:
    """Grade the notebooks of a class.

    Args:
        folder: holds `.ipynb` files, also in folders of it, as a class has handed them in.

    Returns:
        `ClassGrades`.

    Raises:
        UserError: if there is no such folder, no notebook in it has an exercise, or a file is no notebook.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name the one that holds the notebooks of the class.")
    paths = [path for path in sorted(folder.rglob("*.ipynb")) if not files.is_hidden(path, folder)]
    graded = {path: grade_notebook(path) for path in paths}
    known = [one.id for lesson in exercises.list_lessons() for one in lesson.exercises]
    seen = {one for grades in graded.values() for one in grades}
    if not seen:
        raise UserError(f"{folder} holds no notebook with exercises of a lesson: put the class's .ipynb files into it.")
    return ClassGrades(
        files=tuple(str(path.relative_to(folder)) for path in paths),
        ids=tuple(one for one in known if one in seen),
        grades=tuple(graded.values()),
    )


def grade_notebook(path: StrPath) -> dict[str, exercises.Grade]:
    """Grade the answers of one notebook without running it.

    Args:
        path: of the `.ipynb` file.

    Returns:
        {exercise: `zoo.lessons.exercises.Grade`}, of the last cell that checks it. What no cell says as numbers, such
        as a name of another cell, is taken from what the check printed.

    Raises:
        UserError: if the file is no notebook.
    """
    notebook = schemas.load(path, schemas.StudentNotebook, "a notebook of a lesson")
    known = {one.id for lesson in exercises.list_lessons() for one in lesson.exercises}
    grades = {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        source = cell.source if isinstance(cell.source, str) else "".join(cell.source)
        for exercise, value in _answers(source).items():
            if exercise in known:
                printed = _printed_answer(cell.outputs, exercise) if isinstance(value, _Unknown) else value
                grades[exercise] = exercises.grade(exercise, printed)
    return grades


class _Unknown:
    """An answer that is no arithmetic of numbers."""


def _answers(source):
    """{exercise: its answer or `_Unknown`} of the calls of `check` in a cell."""
    lines = [line for line in source[:_MOST_CELL].splitlines() if not line.lstrip().startswith(("%", "!"))]
    try:
        tree = ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    names, found = {}, {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names[name] = _value(value, names)
            case ast.Expr(value=ast.Call(func=function, args=[ast.Constant(value=str(exercise)), answer])):
                if ast.unparse(function).split(".")[-1] == "check":
                    found[exercise] = _value(answer, names)
    return found


def _value(node, names):
    """The value of an expression of constants, earlier names and arithmetic; `_Unknown` for anything else."""
    try:
        return _evaluate(node, names)
    except (ValueError, ArithmeticError, TypeError, RecursionError):
        return _Unknown()


def _evaluate(node, names):
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, (int, float, str)):
            return value
        case ast.Name(id=name) if name in names and not isinstance(names[name], _Unknown):
            return names[name]
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [_evaluate(part, names) for part in parts]
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_number(_evaluate(part, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _number(_evaluate(left, names)), _number(_evaluate(right, names))
            if isinstance(op, ast.Pow) and abs(b) > 64:
                raise ValueError("too large")
            return _number(_OPERATORS[type(op)](a, b))
    raise ValueError("no arithmetic")


def _number(value):
    """A number of a sane size."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _MOST_NUMBER:
        raise ValueError("no number")
    return value


def _printed_answer(outputs, exercise):
    """The answer in what `check` printed into a cell's output; None where it was not run."""
    pattern = re.compile(rf"^Exercise {re.escape(exercise)}: (.{{1,200}}?) is (?:not )?right\.", re.MULTILINE)
    for output in reversed(outputs):
        text = output.get("text", "") if isinstance(output, dict) else ""
        match = pattern.search("".join(map(str, text)) if isinstance(text, list) else str(text))
        if match:
            return match[1]
    return None


def _as_text(text):
    """A cell of a table that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "@", "\t") or (text[:1] == "-" and not text[1:2].isdigit()) else text
