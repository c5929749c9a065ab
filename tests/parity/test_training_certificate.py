"""Certificates of a training: losses that part are traced to batches, weights, dropout, the optimizer or a layer."""

import json
import pathlib

import keras
import pytest
from keras import layers

from tests.parity.local_workers import local_workers
from tests.parity.test_certificate import changed_call, other_epsilon
from zoo.errors import UserError
from zoo.parity.training import certify_training

pytestmark = pytest.mark.once

# What a function draws differs by OWN, the backend's own seed, where it says so.
SCRIPT = """
import os
import keras
import numpy as np
from keras import layers

OWN = len(os.environ["LOCAL_WORKER"])

def model(seed=0, dropout=0.0, optimizer="sgd"):
    rng = np.random.default_rng(seed)
    x = keras.Input((6,), name="x")
    y = layers.Dense(5, activation="tanh", name="hidden")(x)
    y = layers.Dropout(dropout, seed=OWN, name="drop")(y) if dropout else y
    made = keras.Model(x, layers.Dense(3, activation="softmax", name="classes")(y))
    made.set_weights([rng.standard_normal(w.shape) / 2 for w in made.get_weights()])
    made.compile(optimizer, "sparse_categorical_crossentropy")
    return made

def data(seed=0, order=0):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((40, 6)).astype("float32"), rng.integers(0, 3, 40)
    turn = np.random.default_rng(order).permutation(40)
    return x[turn], y[turn]

def batches(**kwargs):
    x, y = data(**kwargs)
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]

def same():
    return model(), batches()

def other_weights():
    return model(seed=OWN), batches()

def other_order():
    return model(), batches(order=OWN)

def other_data():
    return model(), batches(seed=OWN)

def both():
    return model(seed=OWN), batches(order=OWN)

def other_masks():
    return model(dropout=0.5), batches()

def adam():
    return model(optimizer=keras.optimizers.Adam(0.01, epsilon=1e-3)), batches()

def script():
    x, y = data()
    model().fit(x, y, batch_size=8, shuffle=False, epochs=3)
    raise AssertionError("fit returned")

def arguments():
    x, y = data()
    return model(), {"x": x, "y": y, "batch_size": 8, "shuffle": False}

def parse_args(words):
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float)
    parser.add_argument("--output")
    return parser.parse_args(words)

def recipe(args):
    made = model(optimizer=keras.optimizers.SGD(args.rate))
    made.fit(*data(), batch_size=8, shuffle=False)

def not_compiled():
    return keras.Model(x := keras.Input((6,)), layers.Dense(1)(x)), batches()

def a_number():
    return 3

def no_pairs():
    return model(), [(1, 2, 3, 4)]

def empty():
    return model(), []

def raises():
    raise RuntimeError("no data here")
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return f"{tmp_path}/script.py"


def certified(script, function, **faults):
    return certify_training(f"{script}:{function}", steps=6, workers=local_workers(**faults))


@pytest.mark.parametrize("function", ["same", "script", "arguments"])
def test_the_same_training_in_three_shapes(script, function):
    report = certified(script, function)
    assert report.passed and report.parts_at is None and not report.causes, str(report)
    assert len(report.losses) == 3 and len(report.losses["jax"]) == 6 and report.losses["jax"] == report.losses["torch"]
    assert report.losses["jax"] == pytest.approx(certified(script, "same").losses["jax"], rel=1e-6)
    assert "The losses stay together for 6 steps." in str(report)


def test_losses_are_those_of_fit(script):
    """The mean over an epoch's batches, which `fit` gives."""
    import runpy

    names = runpy.run_path(script)
    model, (x, y) = names["model"](), names["data"]()
    history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    losses = certified(script, "script").losses["torch"]
    assert sum(losses[:5]) / 5 == pytest.approx(history.history["loss"][0], rel=1e-5)


@pytest.mark.parametrize(
    "function, causes, parts_at",
    [
        ("other_weights", ["initial weights"], 1),
        ("other_order", ["batch order"], 1),
        ("other_data", ["batches"], 1),
        ("both", ["initial weights", "batch order"], 1),
        ("other_masks", ["dropout"], 1),
    ],
)
def test_causes_in_the_data_and_the_seeds(script, function, causes, parts_at):
    report = certified(script, function)
    assert not report.passed and list(report.causes) == causes and report.parts_at == parts_at, str(report)
    assert json.loads(json.dumps(report.to_dict()))["parts_at"] == parts_at
    together = function != "other_masks"
    assert ("With the same weights and batches the losses stay together." in str(report)) == together


def test_a_layer_and_the_optimizer(script):
    fault = changed_call(layers.Dense, "hidden", lambda f, self, x, training=None: f(self, x) * 1.001)
    report = certified(script, "same", jax=fault)
    assert list(report.causes) == ["layer"] and "Dense 'hidden' gives another output" in report.causes["layer"]
    assert report.model is not None and not report.model.passed
    report = certified(script, "adam", torch=other_epsilon)
    assert list(report.causes) == ["optimizer"] and report.parts_at == 2, str(report)
    assert "adds epsilon to the root after the bias correction" in report.causes["optimizer"]


def test_a_function_that_takes_flags(script):
    options = {"steps": 2, "workers": local_workers()}
    report = certify_training(f"{script}:recipe", arguments=["--rate", "0.1"], **options)
    assert report.passed and len(report.losses["jax"]) == 2
    with pytest.raises(UserError, match="parse_args does not take --rte 1"):
        certify_training(f"{script}:recipe", arguments=["--rte", "1"], **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, flags",
    [
        ("cnn_mnist", "--dataset digits --limit 60 --batch-size 8"),
        ("rnn_shakespeare", "--text {text} --units 8 --batch-size 4 --sequence-length 16"),
    ],
)
def test_recipes_of_the_zoo(recipe, flags, tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question " * 60)
    words = flags.format(text=tmp_path / "text.txt").split() + ["--parity"]
    path = pathlib.Path(__file__).resolve().parents[2] / "recipes" / f"{recipe}.py"
    report = certify_training(f"{path}:main", steps=2, arguments=words, workers=local_workers())
    assert report.passed and len(report.losses["jax"]) == 2, str(report)


@pytest.mark.parametrize(
    "function, words",
    [
        ("not_compiled", "returns a model that is not compiled: call model.compile in it"),
        ("a_number", "returns int: expected a compiled model and its batches"),
        ("no_pairs", r"A batch of .* is a tuple of 4: expected \(x, y\) or \(x, y, sample_weight\)"),
        ("empty", "The batches of .* are empty"),
        ("raises", "raises RuntimeError: no data here"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_functions_that_give_something_else(script, function, words):
    with pytest.raises(UserError, match=words) as error:
        certified(script, function)
    assert str(error.value).count(". ") == 0
    assert not keras.Model.fit.__qualname__.startswith("call_function")


def test_what_is_no_function():
    with pytest.raises(UserError, match="--train takes FILE.py:FUNCTION, got 'model.keras'"):
        certify_training("model.keras")
    with pytest.raises(UserError, match="--steps must be at least 1"):
        certify_training("a.py:b", steps=0)
