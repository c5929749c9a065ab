"""Questions about the parameters and output shapes of a model's layers, answered with the ledger's arithmetic."""

import dataclasses
import math
import re

import numpy as np

from zoo.errors import UserError
from zoo.parameter_ledger.formulas import LEGEND
from zoo.parameter_ledger.ledger import VIEWS, ledger, shape_text
from zoo.parameter_ledger.text import sentence

AN = ("A", "E", "I", "O", "LSTM", "RMS", "Up")  # beginnings of layer kinds that are spoken with a vowel
# Numbers of a layer's configuration that decide its output shape, with the words for them.
DECISIVE = {
    "filters": "filters",
    "kernel_size": "window",
    "pool_size": "pool",
    "strides": "strides",
    "padding": "padding",
    "dilation_rate": "dilation",
    "depth_multiplier": "depth multiplier",
    "size": "size",
    "cropping": "cropping",
    "units": "units",
    "output_dim": "width",
    "return_sequences": "gives every step",
    "merge_mode": "merge",
    "target_shape": "target shape",
    "axis": "axis",
    "n": "times",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: what is asked, with all the numbers needed to work it out.
        answer: an int, or a tuple for a shape.
        explanation: the arithmetic, a sentence or a few lines.
        without_bias: what the answer would be if the biases were forgotten; None where that does not apply.
    """

    text: str
    answer: object
    explanation: str
    without_bias: int | None = None

    @property
    def shown(self):
        """The answer as it is written."""
        return shape_text(self.answer) if isinstance(self.answer, tuple) else f"{self.answer:,}"


def questions(model, *, count=5, seed=0):
    """Draw questions about a model; the same seed gives the same ones on every backend.

    Args:
        model: a built `keras.Model`.
        count: how many; fewer if the model has no more to ask about.
        seed: integer seed.

    Returns:
        list of `Question`s in the order of the layers, at most one about the parameters and one about the output
        shape of each.

    Raises:
        UserError: if `count` is below 1 or nothing can be asked about the model.
    """
    if count < 1:
        raise UserError(f"--questions must be at least 1, got {count}.")
    rows = ledger(model).layers
    pool = [(place, _about_parameters(row)) for place, row in enumerate(rows) if row.counted and row.inputs]
    pool += [(place, _about_output(row)) for place, row in enumerate(rows) if _has_shapes(row)]
    if not pool:
        raise UserError(f"The model {model.name!r} has no layer with parameters or a fixed output shape to ask about.")
    drawn = np.random.default_rng(seed).permutation(len(pool))[:count]
    return [question for _, question in sorted((pool[i] for i in drawn), key=lambda item: item[0])]


def run(model, *, seed=0, count=5, answers=None, ask=input, say=print):
    """Ask, judge each answer, and explain the wrong ones.

    Args:
        model: a built `keras.Model`.
        seed, count: see `questions`.
        answers: list of answers given beforehand, one a question; None to ask for them with `ask`.
        ask, say: how to ask and how to print.

    Returns:
        (right, asked).

    Raises:
        UserError: if there are not as many answers as questions.
    """
    asked = questions(model, count=count, seed=seed)
    if answers is not None and len(answers) != len(asked):
        raise UserError(f"There are {len(asked)} questions but {len(answers)} answers: give one line for each.")
    right = 0
    for number, question in enumerate(asked, start=1):
        say(f"\n{number}. {question.text}")
        try:
            answer = ask("   > ") if answers is None else answers[number - 1]
        except EOFError:
            say(f"\n{right} of {number - 1} right; {len(asked) - number + 1} not answered.")
            return right, number - 1
        if answers is not None:
            say(f"   > {answer}")
        correct, remark = judge(question, answer)
        right += correct
        say("   " + remark.replace("\n", "\n   "))
    say(f"\n{right} of {len(asked)} right.")
    return right, len(asked)


def sheet(model, *, seed=0, count=5):
    """The questions, then the answers with their arithmetic, as text to hand out."""
    asked = questions(model, count=count, seed=seed)
    lines = [f"{model.name}: {len(asked)} questions (seed {seed})", ""]
    lines += [f"{number}. {question.text}\n" for number, question in enumerate(asked, start=1)]
    lines += ["Answers", ""]
    for number, question in enumerate(asked, start=1):
        lines.append(f"{number}. {question.shown}\n   " + question.explanation.replace("\n", "\n   "))
    return "\n".join(lines)


def judge(question, answer):
    """(whether an answer is right, what to say to it). Accepts 18496, 18,496, 24x24x64, (24, 24, 64), 24·24·64."""
    given = _read(answer, shape=isinstance(question.answer, tuple))
    if given == question.answer:
        return True, "Right."
    if given is None:
        wanted = "a shape such as 24x24x64" if isinstance(question.answer, tuple) else "a whole number"
        start = f"{answer.strip()!r} is not {wanted}."
    elif question.without_bias is not None and given == question.without_bias:
        start = "Almost: the biases are missing."
    else:
        start = "No."
    return False, f"{start} It is {question.shown}:\n{question.explanation}"


def _read(answer, *, shape):
    text = re.sub(r"[_\s'()\[\]]", "" if not shape else " ", answer.strip())
    if not shape:
        text = text.replace(",", "")
        return int(text) if re.fullmatch(r"\d+", text) else None
    sizes = [size for size in re.split(r"[\s,;x×·*]+", text) if size]
    return tuple(int(size) for size in sizes) if sizes and all(size.isdecimal() for size in sizes) else None


def _has_shapes(row):
    sizes = [size for shape in (*row.inputs, *row.outputs) for size in shape]
    return bool(row.inputs) and len(row.outputs) == 1 and sizes and None not in sizes and _decisive(row)


def _decisive(row):
    """Whether the output shape takes thought: the layer changes it."""
    return row.outputs[0] not in row.inputs and (row.kind not in VIEWS or row.kind == "Flatten")


def _about_parameters(row):
    letters = {letter: formula.values[letter] for formula in row.formulas for letter in formula.used}
    numbers = ", ".join(f"{LEGEND.get(letter, letter)} {value}" for letter, value in letters.items())
    bias = ", with a bias" if any("+ 1)" in formula.letters for formula in row.formulas) else ""
    text = _is_a(row) + (f" ({numbers}{bias})" if numbers else "")
    explanation = "\n".join(sentence(formula) for formula in row.formulas)
    if len(row.formulas) > 1:
        explanation += f"\ntogether {row.parameters:,}"
    forgotten = [dataclasses.replace(f, letters=f.letters.replace(" + 1)", ")")).value for f in row.formulas]
    return Question(
        text=f"{text}{_takes(row)}. How many parameters does it have?",
        answer=row.parameters,
        explanation=explanation,
        without_bias=sum(forgotten) if sum(forgotten) != row.parameters else None,
    )


def _about_output(row):
    config = {key: getattr(row.layer, key, None) for key in (*DECISIVE, "data_format")}
    if set(config["dilation_rate"] or (1,)) == {1}:
        config["dilation_rate"] = None
    numbers = [f"{word} {_plain(config[key])}" for key, word in DECISIVE.items() if config[key] is not None]
    text = _is_a(row) + (f" ({', '.join(numbers)})" if numbers else "")
    return Question(
        text=f"{text}{_takes(row)}. What is the shape of its output, without the batch?",
        answer=row.outputs[0],
        explanation=_why(row, config),
    )


def _why(row, config):
    """Where an output shape comes from."""
    given, made = row.inputs[0], row.outputs[0]
    stride, padding = config["strides"], config["padding"]
    window = config["kernel_size"] or config["pool_size"]
    if isinstance(stride, (tuple, list)) and window and "Transpose" not in row.kind and len(made) == len(given):
        places = zip(given, window, stride, config["dilation_rate"] or [1] * len(stride), made)
        if padding == "same":
            sums = [f"⌈{size}/{step}⌉ = {out}" for size, _, step, _, out in places]
        else:
            sums = [f"⌊({size} - {(wide - 1) * gap + 1})/{step}⌋ + 1 = {out}" for size, wide, step, gap, out in places]
        channels = f"; channels: {made[-1]}" if config["data_format"] != "channels_first" else ""
        return f"padding {padding}: {', '.join(sums)}{channels}"
    if row.kind == "Flatten":
        return f"{shape_text(given)} = {math.prod(given):,} numbers in a row"
    return f"from {_shapes(row.inputs)} it makes {shape_text(made)}"


def _is_a(row):
    return f"{row.path} is {'an' if row.kind.startswith(AN) else 'a'} {row.kind}"


def _takes(row):
    """What goes in, unless all its sizes are open."""
    if all(set(shape) == {None} for shape in row.inputs):
        return ""
    shapes = _shapes(row.inputs)
    return f" and takes {shapes}" + (" (? is any size)" if "?" in shapes else "")


def _shapes(shapes):
    return " and ".join(shape_text(shape) for shape in shapes)


def _plain(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
