"""Each exercise accepts its answer however it is written, and explains typical mistakes; the answers of a class."""

import csv
import io
import json

import keras
import numpy as np
import pytest

from zoo import cli, lessons
from zoo.errors import UserError
from zoo.lessons import execution, exercises, grading, notebook, sheets

pytestmark = pytest.mark.once
LESSONS = exercises.list_lessons()
EXERCISES = [exercise for lesson in LESSONS for exercise in lesson.exercises]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_right_answers_are_accepted_and_typical_mistakes_explained(exercise):
    right = exercises.grade(exercise.id, exercise.answer)
    assert right.right and exercise.explanation in right.remark
    for written in (exercise.answer_text, np.array(exercise.answer), f" {exercise.answer} "):
        assert exercises.grade(exercise.id, written).right, written
    assert len(exercise.mistakes) >= 3
    remarks = set()
    for mistake in exercise.mistakes:
        grade = exercises.grade(exercise.id, mistake.answer)
        assert grade.right is False and mistake.explanation in grade.remark
        assert exercise.answer_text not in mistake.explanation.split(), "a mistake's explanation gives the answer away"
        remarks.add(grade.remark)
    assert len(remarks) == len(exercise.mistakes)
    if any(isinstance(part, float) for part in np.ravel(exercise.answer).tolist()):
        assert exercise.tolerance > 0
    if exercise.choices:
        assert {exercise.answer, *(mistake.answer for mistake in exercise.mistakes)} == set(exercise.choices)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_other_answers_get_a_hint_or_are_not_read(exercise):
    if not exercise.choices:
        other = [777.5] * len(exercise.answer) if isinstance(exercise.answer, list) else 777.5
        assert exercises.grade(exercise.id, other).remark.endswith(exercise.hint)
    for unreadable in ("perhaps", object(), [[1, 2], 3], {}, float("nan")):
        grade = exercises.grade(exercise.id, unreadable)
        assert grade.right is False and "cannot be read" in grade.remark
    for empty in (None, ..., "", "  "):
        assert exercises.grade(exercise.id, empty) == exercises.Grade(None, "", "not answered yet.")


def test_tensors_and_wrong_lengths():
    assert exercises.grade("3.1", keras.ops.convert_to_tensor(4640)).right
    assert exercises.grade("3.2", keras.ops.convert_to_tensor([22, 22, 8])).right
    assert exercises.grade("3.2", "22x22x8").right
    assert "3 numbers are asked, not 2" in exercises.grade("3.2", (22, 22)).remark
    assert exercises.grade("3.1", True).right is False


def test_check_prints_a_line(capsys):
    lessons.check("3.1", 4608)
    lessons.check("3.1", "4,640")
    lessons.check("3.1", None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Exercise 3.1: 4,608 is not right. The biases are missing: each of the 32 filters has one."
    assert lines[1].startswith("Exercise 3.1: 4,640 is right. Each of the 32 filters")
    assert lines[2] == "Exercise 3.1: not answered yet."


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: lessons.check("3.9", 1), "Lesson 3 has no exercise '3.9': choose one of 3.1, 3.2,"),
        (lambda: lessons.check("33.1", 1), "There is no lesson '33': choose one of 1"),
        (lambda: exercises.find_lesson("convolutoin"), "Did you mean 'convolution'?"),
        (lambda: lessons.start(3, backend="pytorch"), "the backend is 'pytorch': choose one of"),
        (lambda: lessons.start(3, backend="jax"), "Keras runs on torch here and cannot change to jax"),
        (lambda: cli.run(["lessons", "grade"]), "The folder is missing"),
        (lambda: cli.run(["lessons", "grade", "nowhere"]), "There is no folder nowhere"),
        (lambda: cli.run(["lessons", "3", "nowhere"]), "nowhere belongs to grading"),
        (lambda: cli.run(["lessons", "--copy"]), "Which lesson is missing"),
    ],
)
def test_mistakes_of_the_user_are_one_sentence(call, sentence):
    with pytest.raises(UserError) as error:
        call()
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_missing_extras_and_backends_are_named(monkeypatch, tmp_path):
    import importlib.util
    import sys

    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    gone = set()
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in gone else find_spec(name, *rest)
    )
    gone.add("jupytext")
    with pytest.raises(UserError, match=r"needs jupytext, which is not installed: .*keras-model-zoo\[lessons\]"):
        cli.run(["lessons", "3"])
    gone.symmetric_difference_update({"jupytext", "jupyterlab"})
    with pytest.raises(UserError, match=r"^Jupyter is not installed, .*keras-model-zoo\[lessons\]"):
        cli.run(["lessons", "3"])
    gone.add("jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UserError, match="^KERAS_BACKEND is jax, which is not installed"):
        cli.run(["lessons", "3", "--execute"])
    assert "IPython" not in sys.modules or notebook._ipython() is None


def test_jupyter_is_started_where_it_is_installed(tmp_path, monkeypatch):
    import importlib.util
    import subprocess
    import sys

    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: name if name == "jupyterlab" else find_spec(name, *_)
    )
    started = []
    ended = subprocess.CompletedProcess([], returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: started.append(command) or ended)
    assert cli.run(["lessons", "1"]) == 0
    assert started == [[sys.executable, "-m", "jupyterlab", "lesson_1_neuron.ipynb"]]
    assert (tmp_path / "lesson_1_neuron.ipynb").is_file()


def test_a_copy_with_answers_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["lessons", "convolution", "--copy"]) == 0
    path = tmp_path / "lesson_3_convolution.ipynb"
    content = json.loads(path.read_text())
    assert content["cells"][-1]["source"][-1] == 'lessons.check("3.5", answer)'
    path.write_text("mine")
    assert cli.run(["lessons", "3", "--copy"]) == 0 and path.read_text() == "mine"
    assert "stays as it is" in capsys.readouterr().out


def test_a_notebook_asks_every_question_with_its_choices():
    for lesson in LESSONS:
        cells = execution.to_notebook(lesson).cells[-2 * len(lesson.exercises) :]
        for exercise, question, code in zip(lesson.exercises, cells[::2], cells[1::2], strict=True):
            assert exercise.question in question.source and f'check("{exercise.id}", answer)' in code.source
            assert all(f'`"{choice}"`' in question.source for choice in exercise.choices)


def test_the_list(capsys):
    assert cli.run(["lessons"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{lesson.number}  {lesson.title} ({lesson.minutes} minutes)" in printed for lesson in LESSONS)


def test_sheets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["lessons", "3", "--worksheet", "w.html", "--answers", "a.html"]) == 0
    assert not list(tmp_path.glob("*.ipynb"))
    questions, answers = (tmp_path / "w.html").read_text(), (tmp_path / "a.html").read_text()
    for exercise in exercises.find_lesson(3).exercises:
        assert f"<b>{exercise.id}</b>" in questions and f"<b>{exercise.answer_text}</b>" in answers
        assert exercise.explanation not in questions and exercise.mistakes[0].explanation in answers
    assert "<script" not in questions + answers


def cell(source, printed=""):
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed.splitlines(True)}] if printed else []
    return {"cell_type": "code", "source": source.splitlines(True), "outputs": outputs}


@pytest.mark.parametrize(
    "source, printed, right",
    [
        ("answer = 4640\nlessons.check('3.1', answer)", "", True),
        ("lessons.check('3.1', (3 * 3 * 16 + 1) * 32)", "", True),
        ("n = 3 * 3\nanswer = (n * 16 + 1) * 2**5\nlessons.check('3.1', answer)", "", True),
        ("from zoo.lessons import check\n%time\ncheck('3.1', '4,640')", "", True),
        ("answer = 4608\nlessons.check('3.1', answer)", "Exercise 3.1: 4,640 is right.", False),
        ("answer = layer.count_params()\nlessons.check('3.1', answer)", "Exercise 3.1: 4,640 is right. Each", True),
        ("answer = layer.count_params()\nlessons.check('3.1', answer)", "Exercise 3.1: 12 is not right. Count", False),
        ("answer = layer.count_params()\nlessons.check('3.1', answer)", "", None),
        ("answer = None\nlessons.check('3.1', answer)", "Exercise 3.1: not answered yet.", None),
        ("answer = 9 ** 9 ** 9 ** 9\nlessons.check('3.1', answer)", "", None),
        ("answer = 'a' * 10**12\nlessons.check('3.1', answer)", "", None),
        ("answer = 1 / 0\nlessons.check('3.1', answer)", "", None),
    ],
)
def test_an_answer_is_read_from_a_cell_without_running_it(source, printed, right, tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [cell(source, printed)], "nbformat": 4}))
    assert grading.grade_notebook(path)["3.1"].right is right


def test_a_class(tmp_path, capsys):
    class_ = {
        "ada": ["answer = 4640\nlessons.check('3.1', answer)", "answer = (22, 22, 8)\nlessons.check('3.2', answer)"],
        "bob": [
            "answer = 4608\nlessons.check('3.1', answer)",
            "import os; os.remove('x'); lessons.check('3.2', '=1+1')",
        ],
        "eve/late": ["answer = 4608\nlessons.check('3.1', answer)", "this is no Python"],
    }
    for name, sources in class_.items():
        path = tmp_path / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"cells": [cell(source) for source in sources]}))
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "ada-checkpoint.ipynb").write_text("{}")
    assert cli.run(["lessons", "grade", str(tmp_path)]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "grades.csv").read_text())))
    assert [row["file"] for row in rows] == ["ada.ipynb", "bob.ipynb", "eve/late.ipynb"]
    assert [(row["3.1"], row["3.2"], row["right"], row["of"]) for row in rows] == [
        ("1", "1", "2", "2"),
        ("0", "0", "0", "2"),
        ("0", "", "0", "2"),
    ]
    assert rows[0]["answer 3.2"] == "(22, 22, 8)" and rows[0]["answer 3.1"] == "4,640"
    printed = capsys.readouterr().out
    assert "3.1  1 of 3 right; 2x: 4,608 is not right. The biases are missing" in printed
    assert "3.2  1 of 3 right; 1x: '=1+1' cannot be read" in printed


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("no JSON", "is not valid JSON"),
        ('{"cells": 3}', "cells"),
        ('{"cells": [{"cell_type": "code", "source": 4}]}', "source"),
        ("[]", "not a JSON object"),
    ],
)
def test_what_is_no_notebook_is_named(content, sentence, tmp_path):
    (tmp_path / "a.ipynb").write_text(content)
    with pytest.raises(UserError, match=sentence) as error:
        grading.grade_folder(tmp_path)
    assert "a.ipynb" in str(error.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="holds no notebook with exercises"):
        grading.grade_folder(tmp_path)


def test_no_formula_reaches_a_spreadsheet():
    grades = grading.ClassGrades(("=A1",), ("3.1",), ({"3.1": exercises.Grade(False, "@SUM(1)", "")},))
    assert "\n'=A1,0,0,1,'@SUM(1)\n" in grades.to_csv()


def test_a_picture_needs_labels_and_a_text():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2, sharey=True)
    with pytest.raises(ValueError, match="Say in a sentence"):
        notebook.show(figure, "a curve")
    with pytest.raises(ValueError, match="has no labels"):
        notebook.show(figure, "Two empty charts beside each other.")
    for ax in axes:
        ax.set_xlabel("x")
    with pytest.raises(ValueError, match="has no labels"):
        notebook.show(figure, "Two empty charts beside each other.")
    axes[0].set_ylabel("y")
    notebook.show(figure, "Two empty charts beside each other.")
    axes[1].axis("off")
    with pytest.raises(ValueError, match="has no labels"):
        notebook.show(figure, "Two empty charts beside each other.")


def test_sheets_escape_what_they_show():
    exercise = exercises.Exercise("3.1", "Is 1 < 2 in `a < b`?", 1, "1", "Since 1 < 2.", "Look.", ())
    lesson = exercises.Lesson(3, "x", "A < B", 10, "", (exercise,))
    for page in (sheets.worksheet(lesson), sheets.answer_sheet(lesson)):
        assert "1 &lt; 2 in <code>a &lt; b</code>" in page and "A &lt; B" in page
