"""zoo.convert: what it refuses before anything is read; each format is tested with its converter."""

import pytest

import zoo
from zoo.cli import run
from zoo.errors import UserError


def test_an_unknown_kind(tmp_path, capsys):
    with pytest.raises(
        UserError, match="no kind 'mariam': choose one of marian, stable-diffusion, torch-rnn. Did you mean 'marian'"
    ):
        zoo.convert("mariam", tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit):
        run(["convert", "mariam", str(tmp_path), str(tmp_path / "out")])
    assert "invalid choice: 'mariam'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["marian", "stable-diffusion"])
def test_a_source_that_is_not_there(kind, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        zoo.convert(kind, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trained_model_is_not_overwritten(tmp_path):
    (tmp_path / "card.json").write_text('{"command": "python recipes/cnn_mnist.py"}')
    with pytest.raises(UserError, match="card.json is the card of a trained model: choose another folder"):
        zoo.convert("marian", tmp_path / "nowhere", tmp_path)
