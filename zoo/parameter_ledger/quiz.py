"""Questions about the parameters and output shapes of a model's layers, answered with the ledger's formulas."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from zoo.errors import UserError
from zoo.parameter_ledger.format import format_formula, format_shape
from zoo.parameter_ledger.formulas import LEGEND
from zoo.parameter_ledger.ledger import VIEW_LAYERS, ledger
from zoo.typing import Log

if TYPE_CHECKING:
    import keras

_VOWEL_PREFIXES = ("A", "E", "I", "O", "LSTM", "RMS", "Up")  # of layer kinds that take the article "an"
# Attributes of a layer that determine its output shape, and their names in a question.
_SHAPE_ATTRIBUTES = {
    "filters": "filters",
    "kernel_size": "kernel",
    "pool_size": "pool",
    "strides": "strides",
    "padding": "padding",
    "dilation_rate": "dilation",
    "depth_multiplier": "depth multiplier",
    "size": "size",
    "cropping": "cropping",
    "units": "units",
    "output_dim": "output dim",
    "return_sequences": "returns sequences",
    "merge_mode": "merge",
    "target_shape": "target shape",
    "axis": "axis",
    "n": "times",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: the question, with all the numbers needed to answer it.
        answer: an int, or a tuple for a shape.
        explanation: the formulas, a sentence or a few lines.
        answer_without_bias: the answer if the biases are forgotten; None where that does not apply.
    """

    text: str
    answer: int | tuple[int, ...]
    explanation: str
    answer_without_bias: int | None = None

    @property
    def answer_text(self) -> str:
        """The answer as text."""
        return format_shape(self.answer) if isinstance(self.answer, tuple) else f"{self.answer:,}"


def questions(model: keras.Model, *, count: int = 5, seed: int = 0) -> list[Question]:
    """Choose questions about a model; the same seed gives the same questions on every backend.

    Args:
        model: a built `keras.Model`.
        count: number of questions; fewer if the model does not have as many.
        seed: integer seed.

    Returns:
        list of `Question`s in the order of the layers, at most one about the parameters and one about the output
        shape of each.

    Raises:
        UserError: if `count` is below 1 or the model has nothing to ask about.
    """
    if count < 1:
        raise UserError(f"--questions must be at least 1, got {count}.")
    rows = ledger(model).leaf_rows
    pool = [(i, _parameters_question(row)) for i, row in enumerate(rows) if row.counted_parameters and row.inputs]
    pool += [(i, _output_question(row)) for i, row in enumerate(rows) if _changes_shape(row)]
    if not pool:
        raise UserError(f"The model {model.name!r} has no layer with parameters or a fixed output shape to ask about.")
    chosen = np.random.default_rng(seed).permutation(len(pool))[:count]
    return [question for _, question in sorted((pool[i] for i in chosen), key=lambda item: item[0])]


def run_quiz(
    model: keras.Model,
    *,
    seed: int = 0,
    count: int = 5,
    answers: Sequence[str] | None = None,
    ask: Callable[[str], str] = input,
    log: Log = print,
) -> tuple[int, int]:
    """Ask questions, grade each answer, and explain the wrong ones.

    Args:
        model: a built `keras.Model`.
        seed: as in `questions`.
        count: as in `questions`.
        answers: list of answers, one for each question; None to ask for them with `ask`.
        ask: function that takes a prompt and reads an answer.
        log: function that prints a line.

    Returns:
        (number of right answers, number of answers).

    Raises:
        UserError: if there are not as many answers as questions.
    """
    quiz = questions(model, count=count, seed=seed)
    if answers is not None and len(answers) != len(quiz):
        raise UserError(f"There are {len(quiz)} questions but {len(answers)} answers: give one line for each.")
    right = 0
    for number, question in enumerate(quiz, start=1):
        log(f"\n{number}. {question.text}")
        try:
            answer = _ask_until_readable(question, ask, log) if answers is None else answers[number - 1]
        except EOFError:
            log(f"\n{right} of {number - 1} right; {len(quiz) - number + 1} not answered.")
            return right, number - 1
        if answers is not None:
            log(f"   > {answer}")
        correct, remark = grade(question, answer)
        right += correct
        log("   " + remark.replace("\n", "\n   "))
    log(f"\n{right} of {len(quiz)} right.")
    return right, len(quiz)


def _ask_until_readable(question, ask, log):
    """Ask again where what was typed is no answer, so that a slip costs nothing."""
    while True:
        answer = ask("   > ")
        if _parse_answer(question, answer) is not None:
            return answer
        log(f"   {_not_readable(question, answer)} Please answer again.")


def _not_readable(question, answer):
    """The sentence that says why an answer cannot be read."""
    if isinstance(question.answer, tuple):
        return f"{answer.strip()!r} is not a shape such as 24x24x64 or (24, 24, 64)."
    if re.fullmatch(r"[\d.,]+ ?[kKmMgGbB]", answer.strip()):
        return f"{answer.strip()!r} is rounded, and the exact number is asked, such as 9,437,696."
    return f"{answer.strip()!r} is not a whole number such as 9437696 or 9,437,696."


def worksheet(model: keras.Model, *, seed: int = 0, count: int = 5) -> str:
    """The questions, then the answers with their formulas, as text to hand out.

    Args:
        model: a built `keras.Model`.
        seed: as in `questions`.
        count: as in `questions`.

    Returns:
        the text.

    Raises:
        UserError: as `questions`.
    """
    quiz = questions(model, count=count, seed=seed)
    lines = [f"{model.name}: {len(quiz)} questions (seed {seed})", ""]
    lines += [f"{number}. {question.text}\n" for number, question in enumerate(quiz, start=1)]
    lines += ["Answers", ""]
    for number, question in enumerate(quiz, start=1):
        lines.append(f"{number}. {question.answer_text}\n   " + question.explanation.replace("\n", "\n   "))
    return "\n".join(lines)


def grade(question: Question, answer: str) -> tuple[bool, str]:
    """Grade an answer.

    Args:
        question: one of `questions`.
        answer: 18496 or 18,496, exact to the last digit; for a shape 24x24x64, (24, 24, 64) or 24·24·64.

    Returns:
        (whether it is right, a remark).
    """
    parsed = _parse_answer(question, answer)
    if parsed == question.answer:
        return True, "Right."
    if parsed is None:
        start = _not_readable(question, answer)
    elif question.answer_without_bias is not None and parsed == question.answer_without_bias:
        start = "Almost: the biases are missing."
    else:
        start = "No."
    return False, f"{start} It is {question.answer_text}:\n{question.explanation}"


def _parse_answer(question, answer):
    """The number or the shape that a text says; None if it says none."""
    text, is_shape = answer.strip(), isinstance(question.answer, tuple)
    digits = re.sub(r"[_\s'()\[\]]", "", text)
    if not is_shape or len(question.answer) == 1:
        digits = digits.rstrip(",") if is_shape else digits  # (18432,) as Python writes it
        if re.fullmatch(r"\d+|\d{1,3}(,\d{3})+", digits):
            number = int(digits.replace(",", ""))
            return (number,) if is_shape else number
        if not is_shape:
            return None
    sizes = [size for size in re.split(r"[\s,;x×·*()\[\]]+", text) if size]
    return tuple(int(size) for size in sizes) if sizes and all(size.isdecimal() for size in sizes) else None


def _changes_shape(row):
    """Whether the row has fixed sizes and one output of another shape than its inputs."""
    sizes = [size for shape in (*row.inputs, *row.outputs) for size in shape]
    if not row.inputs or len(row.outputs) != 1 or not sizes or None in sizes:
        return False
    return row.outputs[0] not in row.inputs and (row.kind not in VIEW_LAYERS or row.kind == "Flatten")


def _parameters_question(row):
    values = {symbol: formula.values[symbol] for formula in row.formulas for symbol in formula.symbols}
    details = ", ".join(f"{LEGEND.get(symbol, symbol)} {value}" for symbol, value in values.items())
    bias = ", with a bias" if any("+ 1)" in formula.symbolic for formula in row.formulas) else ""
    text = _introduction(row) + (f" ({details}{bias})" if details else "")
    explanation = "\n".join(format_formula(formula) for formula in row.formulas)
    if len(row.formulas) > 1:
        explanation += f"\ntogether {row.parameters:,}"
    without_bias = [dataclasses.replace(f, symbolic=f.symbolic.replace(" + 1)", ")")).value for f in row.formulas]
    return Question(
        text=f"{text}{_inputs_text(row)}. How many parameters does it have?",
        answer=row.parameters,
        explanation=explanation,
        answer_without_bias=sum(without_bias) if sum(without_bias) != row.parameters else None,
    )


def _output_question(row):
    config = {key: getattr(row.layer, key, None) for key in (*_SHAPE_ATTRIBUTES, "data_format")}
    if set(config["dilation_rate"] or (1,)) == {1}:
        config["dilation_rate"] = None
    details = [
        f"{name} {_value_text(config[key])}" for key, name in _SHAPE_ATTRIBUTES.items() if config[key] is not None
    ]
    text = _introduction(row) + (f" ({', '.join(details)})" if details else "")
    return Question(
        text=f"{text}{_inputs_text(row)}. What is the shape of its output, without the batch?",
        answer=row.outputs[0],
        explanation=_explain_output(row, config),
    )


def _explain_output(row, config):
    """The formula of an output shape."""
    inputs, outputs = row.inputs[0], row.outputs[0]
    stride, padding = config["strides"], config["padding"]
    kernel = config["kernel_size"] or config["pool_size"]
    if isinstance(stride, (tuple, list)) and kernel and "Transpose" not in row.kind and len(outputs) == len(inputs):
        dims = zip(inputs, kernel, stride, config["dilation_rate"] or [1] * len(stride), outputs)
        if padding == "same":
            sums = [f"⌈{size}/{step}⌉ = {out}" for size, _, step, _, out in dims]
        else:
            sums = [f"⌊({size} - {(k - 1) * d + 1})/{step}⌋ + 1 = {out}" for size, k, step, d, out in dims]
        channels = f"; channels: {outputs[-1]}" if config["data_format"] != "channels_first" else ""
        return f"padding {padding}: {', '.join(sums)}{channels}"
    if row.kind == "Flatten":
        return f"{format_shape(inputs)} = {math.prod(inputs):,}"
    return f"from {_shapes(row.inputs)} to {format_shape(outputs)}"


def _introduction(row):
    return f"{row.path} is {'an' if row.kind.startswith(_VOWEL_PREFIXES) else 'a'} {row.kind}"


def _inputs_text(row):
    """The input shapes, unless all their sizes are open."""
    if all(set(shape) == {None} for shape in row.inputs):
        return ""
    shapes = _shapes(row.inputs)
    return f" and takes {shapes}" + (" (? is any size)" if "?" in shapes else "")


def _shapes(shapes):
    return " and ".join(format_shape(shape) for shape in shapes)


def _value_text(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
