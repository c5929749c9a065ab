"""A recipe says that it starts before it imports Keras, which takes seconds."""

import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__")


@pytest.mark.once
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_line_comes_before_keras(tmp_path, run, recipe):
    (tmp_path / "keras.py").write_text("raise SystemExit")
    before = sum(os.times()[2:4])  # seconds of processor time of child processes
    ended = run([ROOT / "recipes" / recipe], backend="jax", PYTHONPATH=str(tmp_path))
    assert ended.stdout == "Starting Keras on JAX …\n", ended.stderr
    assert sum(os.times()[2:4]) - before < 2


@pytest.mark.once
def test_then_what_is_read(tmp_path, run):
    """And the lines of a recipe's own imports do not come between."""
    (tmp_path / "text.txt").write_text("too short")
    ended = run(["recipes/rnn_shakespeare.py", "--text", tmp_path / "text.txt", "--output", tmp_path], backend="jax")
    assert re.match("Starting Keras on JAX …\nReading the text …\njax backend", ended.stdout), ended.stdout
    assert ended.returncode == 2 and "give a longer text" in ended.stderr
