"""The lessons run on every backend, print the same key figures, and state no number that they did not compute."""

import contextlib
import datetime
import io
import re
import subprocess
import sys

import keras
import matplotlib
import pytest

from tests.conftest import BACKENDS, ROOT
from zoo.lessons import execution, exercises, notebook

LESSONS = exercises.list_lessons()
# In one run each lesson runs on one backend, in rotation; with --full all run on all, whole.
DAY = datetime.date.today().toordinal()


def whose_turn(lesson):
    """The backend on which a lesson runs today."""
    return BACKENDS[(lesson.number + DAY) % len(BACKENDS)]


def prose(lesson):
    """The text of a lesson without its code and its sources."""
    text = re.sub(r"```.*?```", "", lesson.path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("Source: "))


def long_numbers(text):
    """The whole numbers of four digits or more, without commas."""
    found = re.findall(r"(?<![\w.])(\d{1,3}(?:,\d{3})+|\d{4,})(?![\d])", text)
    return {number.replace(",", "") for number in found}


def run_here(lesson):
    """Run the cells of a lesson in this process; returns what they printed and their names."""
    names, printed = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(execution.code_cells(lesson)):
            exec(compile(cell, f"<lesson {lesson.number}, cell {number}>", "exec"), names)
    return printed.getvalue(), names


@pytest.mark.heavy
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_it_runs(lesson, monkeypatch, tmp_path):
    """Today's third of the lessons on this backend, with short trainings, in this process: no time for kernels."""
    if keras.backend.backend() != whose_turn(lesson):
        pytest.skip(f"today on {whose_turn(lesson)}")
    monkeypatch.setattr(matplotlib, "use", lambda *_: None)
    matplotlib.rcParams["backend"] = "agg"
    monkeypatch.setenv(notebook.QUICK_VARIABLE, "1")
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(notebook, "_display", lambda content, alt: shown.append(alt))
    printed, names = run_here(lesson)
    assert shown and len(set(shown)) == len(shown)
    assert execution.key_figures(printed)
    missing = long_numbers(prose(lesson)) - long_numbers(printed)
    assert not missing, f"the prose has {missing}, which no cell prints"
    for exercise in lesson.exercises:
        value = eval(exercise.solution, names)
        assert exercises.grade(exercise.id, value).right, f"{exercise.id}: {exercise.solution} is {value}"


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_whole_on_three_backends_with_the_same_key_figures(lesson, tmp_path):
    figures = {}
    for backend in BACKENDS:
        executed = execution.execute(lesson, folder=tmp_path, backend=backend)
        outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
        assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert pictures and all(len(p.metadata["image/png"]["alt"].split()) >= 5 for p in pictures)
        printed = execution.printed(executed)
        assert f" on {backend} " in printed
        assert not long_numbers(prose(lesson)) - long_numbers(printed)
        figures[backend] = execution.key_figures(printed)
    assert figures["tensorflow"]
    for backend in ("jax", "torch"):
        assert figures[backend].keys() == figures["tensorflow"].keys()
        for name, text in figures["tensorflow"].items():
            assert_same_figure(figures[backend][name], text, name)


def assert_same_figure(text, other, name):
    """Whole numbers are equal; others differ by at most two units of their last printed digit."""
    a, b = (float(one.replace(",", "")) for one in (text, other))
    digits = len(text.partition(".")[2])
    assert abs(a - b) <= (2.001 * 10**-digits if digits else 0), f"{name}: {text} and {other}"


@pytest.mark.once
def test_the_comparison_of_figures():
    assert_same_figure("0.124", "0.122", "x")
    assert_same_figure("1,024", "1,024", "x")
    for text, other in (("0.124", "0.121"), ("1,024", "1,025")):
        with pytest.raises(AssertionError):
            assert_same_figure(text, other, "x")


@pytest.mark.once
def test_the_numbers_that_are_looked_for():
    assert long_numbers("896; 18,496 and 3221504, 0.12345, conv1234, lr 1000.") == {"18496", "3221504", "1000"}


@pytest.mark.once
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_a_lesson_is_whole_and_in_style(lesson, tmp_path):
    assert lesson.path.is_file() and 10 <= lesson.minutes <= 20 and 3 <= len(lesson.exercises) <= 5
    cells = execution.code_cells(lesson)
    assert cells[0].startswith(f"from zoo import lessons\n\nlessons.start({lesson.number})\n")
    assert lesson.path.read_text(encoding="utf-8").startswith(f"# {lesson.title}\n")
    assert [exercise.id for exercise in lesson.exercises] == [
        f"{lesson.number}.{place}" for place in range(1, len(lesson.exercises) + 1)
    ]
    for number, cell in enumerate(cells):
        (tmp_path / f"cell_{number}.py").write_text(cell + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=140", "--select=E,F,W"]
    ignored = "--ignore=F821,E402,F401,F811"  # names of other cells
    ended = subprocess.run([*command, ignored, str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    used = "\n".join(cells)
    compile(used, str(lesson.path), "exec")
    long = [line for line in used.splitlines() if len(line) > 140]
    assert not long


@pytest.mark.once
def test_the_course_names_every_lesson():
    text = (ROOT / "docs" / "lessons" / "index.md").read_text(encoding="utf-8")
    for lesson in LESSONS:
        assert f"[{lesson.number} {lesson.title}]({lesson.path.name}) | {lesson.minutes} |" in text
        assert f"lessons/{lesson.path.name}" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
