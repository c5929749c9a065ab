"""The quiz: same questions from a seed, right answers accepted however they are written, wrong ones explained."""

import keras
import pytest
from keras import layers

from zoo.errors import UserError
from zoo.models.cnn import cnn
from zoo.parameter_ledger import quiz

MODEL = cnn(num_classes=10)
ALL = quiz.questions(MODEL, count=100)


def find(text):
    return next(question for question in ALL if question.text.startswith(text))


def test_questions_hold_what_is_needed_and_the_right_answers():
    parameters = {q.text.split()[0]: q.answer for q in ALL if "parameters" in q.text}
    assert parameters == {"conv1": 896, "conv2": 18_496, "conv3": 73_856, "dense1": 9_437_696, "logits": 5_130}
    shapes = {q.text.split()[0]: q.answer for q in ALL if "shape of its output" in q.text}
    assert shapes["pool2"] == (12, 12, 128) and shapes["flatten"] == (18432,) and "dropout1" not in shapes
    text = find("conv2 is a Conv2D (kernel height").text
    assert all(
        number in text for number in ("kernel width 3", "channels in 32", "channels out 64", "48·48·32", "with a bias")
    )


def test_seed_draws_the_questions():
    first, again, other = (quiz.questions(MODEL, count=4, seed=seed) for seed in (1, 1, 2))
    assert first == again != other and len(first) == 4


def test_same_questions_on_every_backend():
    """What seed 7 asks, noted down on PyTorch; this test runs on each backend."""
    asked = [(q.text.split()[0], q.answer) for q in quiz.questions(MODEL, count=3, seed=7)]
    assert asked == [("conv1", 896), ("conv2", (48, 48, 64)), ("conv3", (24, 24, 128))]


@pytest.mark.parametrize("answer", ["18496", "18,496", " 18 496 ", "18_496"])
def test_right_numbers(answer):
    assert quiz.grade(find("conv2 is a Conv2D (kernel height"), answer) == (True, "Right.")


@pytest.mark.parametrize("answer", ["24x24x64", "(24, 24, 64)", "24·24·64", "24 24 64", "[24,24,64]"])
def test_right_shapes(answer):
    assert quiz.grade(find("pool1"), answer) == (True, "Right.")


@pytest.mark.parametrize("answer", ["18432", "18,432", "(18432,)", "[18432]"])
def test_right_shapes_of_one_size(answer):
    question = next(q for q in ALL if q.text.startswith("flatten"))
    assert question.answer == (18432,) and quiz.grade(question, answer) == (True, "Right.")


@pytest.mark.parametrize(
    "text, slip, sentence",
    [
        ("conv2 is a Conv2D (kernel height", "9.4M", "'9.4M' is rounded, and the exact number is asked"),
        ("conv2 is a Conv2D (kernel height", "many", "'many' is not a whole number such as"),
        ("conv2 is a Conv2D (kernel height", "18,49", "'18,49' is not a whole number such as"),
        ("conv2 is a Conv2D (kernel height", "", "'' is not a whole number such as"),
        ("pool1", "24x24xc", "'24x24xc' is not a shape such as"),
        ("pool1", "", "'' is not a shape such as"),
    ],
)
def test_a_slip_is_asked_again_and_costs_nothing(monkeypatch, text, slip, sentence):
    question, said = find(text), []
    monkeypatch.setattr(quiz, "questions", lambda *args, **kwargs: [question])
    given = iter([slip, slip, question.answer_text])
    assert quiz.run_quiz(MODEL, count=1, ask=lambda prompt: next(given), log=said.append) == (1, 1)
    assert [sentence in line for line in said].count(True) == 2 and "   Right." in said


@pytest.mark.parametrize(
    "answer, start", [("18432", "Almost: the biases are missing."), ("7", "No."), ("many", "'many' is not a whole")]
)
def test_wrong_answers_are_explained(answer, start):
    right, remark = quiz.grade(find("conv2 is a Conv2D (kernel height"), answer)
    assert not right and remark.startswith(start) and "(3·3·32 + 1)·64 = 18,496" in remark


def test_open_sizes_are_told():
    token = keras.Input((None,), dtype="int32")
    x = layers.LSTM(4, name="lstm")(layers.Embedding(9, 3, name="embedding")(token))
    first, second, third = quiz.questions(keras.Model(token, layers.Dense(2, name="out")(x)), count=3)
    assert first.text == (
        "embedding is an Embedding (entries of the table (vocabulary) 9, features 3). How many parameters does it have?"
    )
    assert second.text.startswith("lstm is an LSTM (") and "and takes ?·3 (? is any size). How" in second.text
    assert third.text.startswith("out is a Dense (") and "and takes 4. How" in third.text


def test_output_shapes_are_explained():
    assert "⌊(48 - 2)/2⌋ + 1 = 24" in find("pool1").explanation
    x = keras.Input((31, 31, 3))
    model = keras.Model(x, layers.Conv2D(5, 3, strides=2, dilation_rate=1, padding="same", name="c")(x))
    question = next(q for q in quiz.questions(model, count=9) if isinstance(q.answer, tuple))
    assert question.answer == (16, 16, 5) and "⌈31/2⌉ = 16" in question.explanation
    x = keras.Input((31, 31, 3))
    model = keras.Model(x, layers.Conv2D(5, 3, dilation_rate=4, name="c")(x))
    question = next(q for q in quiz.questions(model, count=9) if isinstance(q.answer, tuple))
    assert question.answer == (23, 23, 5) and "⌊(31 - 9)/1⌋ + 1 = 23" in question.explanation


def test_run_counts_and_prints():
    said, answers = [], [q.answer_text if i else "1" for i, q in enumerate(quiz.questions(MODEL, count=3, seed=3))]
    assert quiz.run_quiz(MODEL, seed=3, count=3, answers=answers, log=said.append) == (2, 3)
    assert said[-1].strip() == "2 of 3 right." and sum("Right." in line for line in said) == 2


def test_asks_one_by_one_and_stops_at_the_end_of_input():
    given = iter(["1"])

    def ask(prompt):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    said = []
    assert quiz.run_quiz(MODEL, count=3, ask=ask, log=said.append) == (0, 1)
    assert "2 not answered" in said[-1]


def test_sheet_has_questions_before_answers():
    text = quiz.worksheet(MODEL, seed=0, count=12)
    head, _, tail = text.partition("\nAnswers\n")
    assert "(128·12·12 + 1)·512 = 9,437,696" in tail and "9,437,696" not in head
    assert head.count("?") == 12


def test_wrong_use():
    with pytest.raises(UserError, match="3 questions but 1 answers"):
        quiz.run_quiz(MODEL, count=3, answers=["1"])
    with pytest.raises(UserError, match="at least 1, got 0"):
        quiz.questions(MODEL, count=0)
    x = keras.Input((None,))
    with pytest.raises(UserError, match="no layer"):
        quiz.questions(keras.Model(x, layers.Identity()(x)))
