"""The pages of the lessons: what a notebook printed and showed is on them, formulas are MathML, code is left alone."""

import base64
import runpy

import pytest

from tests.conftest import ROOT
from zoo.lessons import execution, exercises

pytest.importorskip("latex2mathml")
pytestmark = pytest.mark.once
HOOKS = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
PNG = b"\x89PNG picture"


def executed():
    """Lesson 3 as if it had been executed: its first cell printed, and its second showed a picture."""
    from nbformat.v4 import new_output

    notebook = execution.to_notebook(exercises.find_lesson(3))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells[0].outputs = [
        new_output("stream", name="stdout", text="Lesson 3\n"),
        new_output("stream", name="stderr", text="a warning\n"),
    ]
    data = {"image/png": base64.b64encode(PNG).decode(), "text/plain": "<IPython.core.display.Image object>"}
    cells[1].outputs = [new_output("display_data", data, metadata={"image/png": {"alt": 'Four "edges" < five'}})]
    return notebook


def test_a_page_has_what_was_printed_and_shown():
    text, pictures = HOOKS["lesson_page"](exercises.find_lesson(3), executed(), executed=True)
    assert pictures == {"03_convolution_1.png": PNG}
    assert "```{.text .output}\nLesson 3\n```" in text and "a warning" not in text and "IPython" not in text
    assert '<img class="picture" src="03_convolution_1.png" alt="Four &quot;edges&quot; &lt; five">' in text
    assert "[worksheet](03_convolution_worksheet.html)" in text and HOOKS["NOT_EXECUTED"] not in text
    assert '```python\nanswer = None\nlessons.check("3.1", answer)\n```' in text


def test_a_page_that_was_not_executed_says_so():
    lesson = exercises.find_lesson(3)
    text, pictures = HOOKS["lesson_page"](lesson, execution.to_notebook(lesson), executed=False)
    assert HOOKS["NOT_EXECUTED"] in text and not pictures


def test_formulas_are_mathml_and_code_stays():
    text = HOOKS["formulas_to_mathml"]("With $x_1$ and `$HOME` $$\na < b\n$$ end\n```bash\necho $A $B\n```")
    assert "<msub><mi>x</mi><mn>1</mn></msub>" in text and 'aria-label="x_1"' in text
    assert "`$HOME`" in text and "echo $A $B" in text
    assert '<div class="formulas">' in text and 'display="block"' in text and "<mo>&#x0003C;</mo>" in text


@pytest.mark.parametrize("lesson", exercises.list_lessons(), ids=lambda lesson: lesson.name)
def test_every_formula_of_a_lesson_can_be_drawn(lesson):
    for cell in execution.to_notebook(lesson).cells:
        if cell.cell_type == "markdown":
            drawn = HOOKS["formulas_to_mathml"](cell.source)
            assert "$" not in drawn and "\\" not in HOOKS["re"].sub(r'aria-label="[^"]*"', "", drawn)


def test_which_lessons_are_executed(monkeypatch):
    asked = []
    monkeypatch.setitem(
        HOOKS["lesson_files"].__globals__, "executed_lesson", lambda one: asked.append(one) or executed()
    )
    monkeypatch.setenv("ZOO_DOCS_LESSONS", "3")
    files = HOOKS["lesson_files"]()
    assert [lesson.number for lesson in asked] == [3]
    lessons = len(exercises.list_lessons())
    assert len(files) == 4 * lessons + 1 and files["lessons/03_convolution_1.png"] == PNG
    assert HOOKS["NOT_EXECUTED"] in files["lessons/01_neuron.md"]
