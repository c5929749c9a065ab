"""zoo.verify: presets of one model and of several, and what is wrong with the question."""

import keras
import pytest
from keras import layers

import zoo
from tests.parity.test_verify import run_child_here
from zoo.errors import UserError
from zoo.io import cards, model_files
from zoo.parity import verify
from zoo.parity.records import write_parity_record

pytestmark = pytest.mark.once


@pytest.fixture
def folder(tmp_path):
    """A preset of two models; the first has a parity record."""
    folder = tmp_path / "pair"
    folder.mkdir()
    for name in ("decoder", "encoder"):
        x = keras.Input((4,), name="x")
        model_files.save_model(keras.Model(x, layers.Dense(3, name="out")(x), name=name), folder / f"{name}.keras")
    cards.write_card(folder, {"task": "text-to-image"}, ["decoder.keras", "encoder.keras"])
    write_parity_record(folder / "decoder.keras")
    return folder


def test_every_model_of_a_preset_is_verified(folder, monkeypatch):
    monkeypatch.setattr(verify, "_run_child", run_child_here)
    lines = []
    report = zoo.verify(folder, backends=["torch"], log=lines.append)
    assert report.passed and str(report) == report.text == "\n".join(lines)
    assert [(row.file, row.backend, row.verdict) for row in report.rows] == [
        (str(folder / "decoder.keras"), "torch", "same"),
        (str(folder / "encoder.keras"), "torch", "reference"),
    ]
    assert "torch gives the numbers of the parity record." in report.text
    assert lines[-1] == "\n2 of 2 models passed."

    model = model_files.load_model(folder / "decoder.keras")
    model.set_weights([weight + 1 for weight in model.get_weights()])
    model_files.save_model(model, folder / "decoder.keras")
    cards.write_card(folder, {"task": "text-to-image"}, ["decoder.keras", "encoder.keras"])
    report = zoo.verify(folder / "decoder.keras", backends=["torch"])
    (row,) = report.rows
    assert not report.passed and row.verdict == "DIFFERS" and row.output_error > 1e-4
    assert "torch differs from the parity record first at out (Dense, call 1 of 1)" in report.text


def test_wrong_questions(folder):
    with pytest.raises(UserError, match="There is no model 'cnn_minst'.*Did you mean 'cnn_mnist'"):
        zoo.verify("cnn_minst")
    with pytest.raises(UserError, match="There is no model file at .*other.keras"):
        zoo.verify(folder / "other.keras")
    with pytest.raises(UserError, match="The tolerance must be a number from 0 up"):
        zoo.verify(folder, tolerance=-1)
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        zoo.verify(folder, backends=["toch"])
