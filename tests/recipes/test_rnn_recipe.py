"""The language-model recipe as a user runs it: what it leaves behind, resuming, and what it says to mistakes."""

import json
import os
import pathlib
import signal
import time

import keras
import numpy as np
import pytest

from recipes import rnn_shakespeare
from tests.conftest import write_verses
from zoo.errors import UserError
from zoo.evaluation.reports import token_nll
from zoo.io import model_files
from zoo.models.rnn_language_model import rnn_language_model
from zoo.tasks.causal_lm import CausalLM
from zoo.tokenizers import text as tokenizers
from zoo.training.initial_weights import set_initial_weights

RECIPE = "recipes/rnn_shakespeare.py"
TINY = ["--units", "16", "--embedding-dim", "8", "--sequence-length", "16", "--batch-size", "8", "--epochs", "2"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of 6,000 characters in which the next character can be learned."""
    return write_verses(tmp_path_factory.mktemp("text") / "verses.txt", words=1300, characters=6000)


def train(text, output, *extra):
    return rnn_shakespeare.main(
        rnn_shakespeare.parse_args([*TINY, "--text", str(text), "--output", str(output), *extra])
    )


RESUMABLE = ["--epochs", "3", "--patience", "1"]


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """(folder, metrics) of a run of three epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(text, folder, *RESUMABLE)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")  # trained there by test_same_losses.py
def test_a_run_leaves_everything_behind(text, finished, tmp_path):
    folder, metrics = finished
    made = {path.name for path in folder.iterdir()}
    assert made == {
        *("model.keras", "tokenizer.json", "card.json", "history.csv", "metrics.json", "report.txt", "samples.txt"),
        "training_curves.png",
    }
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["validation_perplexity"] == pytest.approx(np.exp(metrics["validation_loss"]))
    # At the level of characters a token is a character.
    bits = metrics["validation_loss"] / np.log(2)
    assert metrics["validation_bits_per_character"] == pytest.approx(bits)
    again = train(text, tmp_path, "--evaluate", str(folder))
    assert again["test_loss"] == pytest.approx(metrics["test_loss"], abs=1e-6)
    assert (folder / "samples.txt").read_text().count("--- after epoch") == metrics["epochs_trained"] >= 2


@pytest.mark.heavy
@pytest.mark.parametrize(
    "level, cell", [("word", "gru"), pytest.param("bpe", "lstm", marks=pytest.mark.slow("tensorflow", "jax"))]
)
@pytest.mark.slow("tensorflow", "jax")
def test_other_levels_and_windows(text, tmp_path, level, cell):
    small = ["--batch-size", "2", "--sequence-length", "8", "--embedding-dim", "16", "--tie-embeddings"]
    metrics = train(text, tmp_path / level, "--tokenizer", level, "--cell", cell, "--stateless", *small)
    assert metrics["tokenizer"] == level and np.isfinite(metrics["test_bits_per_character"])


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_it_learns(text, tmp_path):
    metrics = train(text, tmp_path / "run", "--epochs", "6", "--dropout", "0", "--learning-rate", "0.02")
    letters = np.unique(list(text.read_text()), return_counts=True)[1] / 6000
    assert metrics["test_loss"] < 0.8 * -(letters * np.log(letters)).sum()  # well below the entropy of the letters


@pytest.mark.slow("tensorflow", "jax")
def test_loss_does_not_depend_on_how_the_text_is_cut():
    model = rnn_language_model(cell="lstm", vocabulary_size=11, embedding_dim=5, units=7)
    set_initial_weights(model, seed=1, initializer="recurrent")
    ids = np.random.default_rng(0).integers(0, 11, 150)
    whole = token_nll(model, ids, sequence_length=149)
    logits = keras.ops.convert_to_numpy(model(ids[None, :-1]))[0].astype("float64")
    by_hand = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(149), ids[1:]]
    np.testing.assert_allclose(whole, by_hand, atol=1e-5)
    for length in (7, 50):
        np.testing.assert_allclose(token_nll(model, ids, sequence_length=length), whole, atol=1e-5)


def test_generation_is_the_full_models_choice():
    """The greedy text, character by character, from the whole text each time."""
    text = "abcdefgh"
    tokenizer = tokenizers.train_tokenizer(text, "char")
    model = rnn_language_model(cell="gru", vocabulary_size=8, embedding_dim=6, units=9)
    model.set_weights([np.random.default_rng(3).normal(size=w.shape) for w in model.get_weights()])
    task = CausalLM(model, tokenizer)
    generated = task.generate("ab", max_new_tokens=12, greedy=True)
    so_far = "ab"
    for _ in range(12):
        whole = tokenizers.encode(tokenizer, so_far.ljust(14, "a"))  # what stands behind changes nothing before it
        logits = keras.ops.convert_to_numpy(model(np.array([whole])))
        so_far += text[int(logits[0, len(so_far) - 1].argmax())]
    assert generated == so_far
    (first, p), *_ = task.top_next_tokens("ab", count=3)
    assert first == generated[2] and 0 < p <= 1


@pytest.mark.heavy
@pytest.mark.slow  # on PyTorch in test_killed.py
def test_killed_and_resumed_is_the_run_that_was_not(text, finished, tmp_path, run, capsys):
    process = run([RECIPE, *TINY, "--text", text, *RESUMABLE, "--output", tmp_path], wait=False)
    while process.poll() is None and not (tmp_path / "checkpoint.npz").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.communicate() and process.returncode == -signal.SIGKILL, "it was done before it was killed"
    train(text, tmp_path, *RESUMABLE, "--resume")
    assert "Resuming after epoch" in capsys.readouterr().out
    one, other = (model_files.load_model(folder / "model.keras").get_weights() for folder in (finished[0], tmp_path))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.once
@pytest.mark.parametrize(
    "content, extra, message",
    [
        (b"", [], "holds no text"),
        (b"short", [], "give a longer text"),
        (b"caf\xe9 " * 2000, [], "not UTF-8"),
        (b"abc " * 2000, ["--units", "0"], "units must be at least 1"),
        (b"abc " * 2000, ["--sequence-length", "0"], "--sequence-length must be at least 1"),
        (b"abc " * 2000, ["--tokenizer", "bpe", "--vocabulary-size", "9"], "at least 256"),
    ],
)
def test_mistakes(tmp_path, content, extra, message):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        train(tmp_path / "t.txt", tmp_path / "out", *extra)


@pytest.mark.once
def test_files_that_do_not_belong_together(tmp_path):
    model = rnn_language_model(cell="gru", vocabulary_size=5, embedding_dim=4, units=4)
    model_files.save_model(model, tmp_path / "model.keras")
    with pytest.raises(UserError, match="There is no tokenizer"):
        CausalLM.from_preset(tmp_path)
    tokenizer = tokenizers.train_tokenizer("abcdef", "char")
    tokenizers.save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="6 entries but the model has 5"):
        CausalLM.from_preset(tmp_path)
    mnist = pathlib.Path(__file__).resolve().parent.parent.parent / "saved_models" / "cnn_mnist" / "model.keras"
    with pytest.raises(UserError, match="not a recurrent language model"):
        CausalLM(model_files.load_model(mnist), tokenizer)
