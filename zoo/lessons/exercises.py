"""The lessons and their exercises, which are data: right answers, and typical mistakes with what is wrong in them."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from typing import Any

from zoo.errors import UserError, did_you_mean

FOLDER = pathlib.Path(__file__).parent
Answer = int | float | str | list[int | float]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A typical wrong answer.

    Attributes:
        answer: of the kind of the right one.
        explanation: a sentence about what went wrong.
    """

    answer: Answer
    explanation: str


@dataclasses.dataclass(frozen=True)
class Exercise:
    """A question with one answer.

    Attributes:
        id: lesson and place in it, "3.1".
        question: with all that is needed to answer it.
        answer: a number, a list of numbers (such as a shape), or one of `choices`.
        solution: a Python expression that gives the answer in the executed notebook.
        explanation: why this is the answer.
        hint: what helps after an answer that is no typical mistake.
        mistakes: at least three.
        tolerance: largest distance to the answer that is accepted, for each number.
        choices: the words to choose from; empty where numbers are asked.
    """

    id: str
    question: str
    answer: Answer
    solution: str
    explanation: str
    hint: str
    mistakes: tuple[Mistake, ...]
    tolerance: float = 0.0
    choices: tuple[str, ...] = ()

    @property
    def answer_text(self) -> str:
        """The answer as text."""
        return format_answer(self.answer)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A lesson.

    Attributes:
        number: 1 to 9.
        name: a word for files, "convolution".
        title: its heading.
        minutes: it takes in a class.
        summary: what one can do after it, a sentence.
        exercises: tuple of `Exercise`s.
    """

    number: int
    name: str
    title: str
    minutes: int
    summary: str
    exercises: tuple[Exercise, ...]

    @property
    def path(self) -> pathlib.Path:
        """The notebook as text."""
        return FOLDER / f"{self.number:02d}_{self.name}.md"


@dataclasses.dataclass(frozen=True)
class Grade:
    """What `grade` says about an answer.

    Attributes:
        right: whether it is right; None where there is no answer yet.
        text: the answer as it was understood, "" where it was not.
        remark: a sentence or two that explain.
    """

    right: bool | None
    text: str
    remark: str


@functools.cache
def list_lessons() -> tuple[Lesson, ...]:
    """The lessons of this package, in order.

    Returns:
        tuple of `Lesson`s.
    """
    import msgspec

    lessons = []
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.json")):
        number, _, name = path.stem.partition("_")
        data = msgspec.json.decode(path.read_bytes())
        lessons.append(msgspec.convert(data | {"number": int(number), "name": name}, type=Lesson))
    return tuple(lessons)


def find_lesson(number: int | str) -> Lesson:
    """A lesson by its number or name.

    Args:
        number: 3, "3" or "convolution".

    Returns:
        the `Lesson`.

    Raises:
        UserError: if there is no such lesson.
    """
    lessons = list_lessons()
    for lesson in lessons:
        if str(number) in (str(lesson.number), lesson.name):
            return lesson
    known = ", ".join(f"{lesson.number} ({lesson.name})" for lesson in lessons)
    hint = did_you_mean(str(number), [lesson.name for lesson in lessons])
    raise UserError(f"There is no lesson {str(number)!r:.50}: choose one of {known}.{hint}")


def find_exercise(exercise: str) -> Exercise:
    """An exercise by its id.

    Args:
        exercise: such as "3.1".

    Returns:
        the `Exercise`.

    Raises:
        UserError: if there is no such exercise.
    """
    lesson = find_lesson(str(exercise).partition(".")[0])
    for one in lesson.exercises:
        if one.id == str(exercise):
            return one
    known = ", ".join(one.id for one in lesson.exercises)
    raise UserError(f"Lesson {lesson.number} has no exercise {str(exercise)!r:.50}: choose one of {known}.")


def grade(exercise: str, answer: Any) -> Grade:
    """Grade an answer.

    Args:
        exercise: its id, "3.1".
        answer: a number, an array or a sequence of numbers, or a word, as the exercise asks; also as text, "9,437,696"
            or "(24, 24, 64)". None if there is none yet.

    Returns:
        `Grade`.

    Raises:
        UserError: if there is no such exercise.
    """
    found = find_exercise(exercise)
    if answer is None or answer is Ellipsis or (isinstance(answer, str) and not answer.strip()):
        return Grade(None, "", "not answered yet.")
    value = _read(found, answer)
    if value is None:
        return Grade(False, "", f"{str(answer)!r:.60} cannot be read: {_expected(found)}.")
    text = format_answer(value)
    if _equal(found, value, found.answer):
        return Grade(True, text, f"{text} is right. {found.explanation}")
    if isinstance(found.answer, list) and isinstance(value, list) and len(value) != len(found.answer):
        return Grade(False, text, f"{text} is not right: {len(found.answer)} numbers are asked, not {len(value)}.")
    for mistake in found.mistakes:
        if _equal(found, value, mistake.answer):
            return Grade(False, text, f"{text} is not right. {mistake.explanation}")
    return Grade(False, text, f"{text} is not right. {found.hint}")


def check(exercise: str, answer: Any) -> None:
    """Print whether an answer is right, and if not, what went wrong.

    Args:
        exercise: its id, "3.1".
        answer: as in `grade`.

    Raises:
        UserError: if there is no such exercise.

    Example:
        >>> check("3.1", 864)
        Exercise 3.1: 864 is not right. The biases are missing: one for each of the 32 filters.
    """
    print(f"Exercise {exercise}: {grade(exercise, answer).remark}")


def format_answer(answer: Answer) -> str:
    """An answer as text.

    Args:
        answer: a number, a list of numbers or a word.

    Returns:
        such as "9,437,696", "(24, 24, 64)" or "0.25".
    """
    if isinstance(answer, list):
        return f"({', '.join(map(format_answer, answer))})"
    if isinstance(answer, str):
        return answer
    return f"{answer:,}" if isinstance(answer, int) else f"{answer:.6g}"


def _expected(exercise):
    """What kind of answer is asked, the end of a sentence."""
    if exercise.choices:
        return f"answer with one of {', '.join(exercise.choices)}"
    if isinstance(exercise.answer, list):
        return f"{len(exercise.answer)} numbers are asked, such as {format_answer([1] * len(exercise.answer))}"
    return "a number is asked, such as 12" if isinstance(exercise.answer, int) else "a number is asked, such as 0.25"


def _read(exercise, answer):
    """An answer as a number, a list of numbers or a word; None if it is none of these."""
    if exercise.choices:
        words = {choice.casefold(): choice for choice in exercise.choices}
        return words.get(str(answer).strip().casefold())
    if isinstance(exercise.answer, list):
        return _read_list(answer)
    return _read_number(answer)


def _read_number(answer):
    """A number of Python, NumPy, a backend or a text; None if it is none."""
    if isinstance(answer, bool):
        return None
    if isinstance(answer, str):
        answer = answer.strip().replace("−", "-")
        if re.fullmatch(r"-?\d{1,3}(,\d{3})+", answer):
            answer = answer.replace(",", "")
    try:
        number = float(answer)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 2**53 else number


def _read_list(answer):
    """A list of numbers of a sequence, an array or a text such as 24x24x64; None if it is none."""
    if isinstance(answer, str):
        answer = [part for part in re.split(r"[\s,;x×·()\[\]]+", answer) if part]
    try:
        values = [_read_number(part) for part in list(answer)[:100]]
    except TypeError:
        return None
    return values if values and None not in values else None


def _equal(exercise, value, answer):
    """Whether a value is an answer, within the tolerance."""
    if isinstance(answer, str) or isinstance(value, str):
        return value == answer
    if isinstance(answer, list):
        return len(value) == len(answer) and all(_equal(exercise, a, b) for a, b in zip(value, answer, strict=True))
    return abs(value - answer) <= exercise.tolerance
