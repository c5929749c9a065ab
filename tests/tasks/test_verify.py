"""zoo.verify: presets of one model and of several, and what is wrong with the question."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import zoo
from tests.parity.local_workers import local_workers
from tests.parity.test_verify import run_child_here
from zoo import cli
from zoo.errors import UserError
from zoo.io import cards, model_files
from zoo.parity import certificate, training, verify
from zoo.parity.records import write_parity_record
from zoo.tasks.certificate_page import render_certificate

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


@pytest.fixture
def here(monkeypatch):
    """Certificates are made in this process."""
    for module in (certificate, training):
        monkeypatch.setattr(module, "start_workers", lambda *arguments: (local_workers(), {}))


def test_models_without_a_parity_record_get_a_certificate(folder, here):
    report = zoo.verify(folder / "encoder.keras")
    assert isinstance(report, certificate.Certificate) and report.passed
    x = keras.Input((None, 4), name="x")
    model = keras.Model(x, layers.GRU(2, name="gru")(x), name="mine")
    report = zoo.verify(model, input_shapes={"x": (3, 4)})
    assert report.passed and report.model == "mine" and report.inputs == {"x": "4x3x4 float32"}
    both = zoo.verify(folder, gradients=True)
    assert both.passed and len(both.rows) == 6 and str(both).endswith("2 of 2 models passed.")
    with pytest.raises(UserError, match="takes a model, a name or a path, got int"):
        zoo.verify(3)
    with pytest.raises(UserError, match="'unbuilt' is not built"):
        zoo.verify(keras.Sequential([layers.Dense(2)], name="unbuilt"))


def test_the_command_writes_json_and_a_page(folder, here, tmp_path, capsys):
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 4), "float32"))
    words = ["verify", str(folder / "encoder.keras"), "--inputs", str(tmp_path / "inputs.npz")]
    assert cli.run([*words, "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]) == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["passed"] and written["inputs"] == {"x": "2x4 float32"} and len(written["rows"]) == 3
    page = (tmp_path / "a.html").read_text()
    assert page.count("<tr>") == 4 and "http" not in page.replace("http-equiv", "") and "GUTTER" not in page
    assert "All 3 backends give the same numbers." in capsys.readouterr().out


def test_the_page_of_findings_and_of_a_training(tmp_path, here):
    finding = certificate.Finding("jax", "float32", "gradient", "<b>", "Dense", "inference", 2e5, 0.01)
    row = certificate.BackendCertificate("jax", "1", "float32", {"forward": 2.0, "gradients": 2e5}, {}, "DIFFERS")
    report = certificate.Certificate(False, "m", "torch", {}, 1, 2, "Adam", (row,), (finding,), ("A note.",), "")
    page = render_certificate(report)
    assert "&lt;b&gt;" in page and "'<b>'" not in page and "200,000</td>" in page and "A note." in page
    assert "not the same" in page and "What differs" in page and "incomplete" not in page
    broken = certificate.BackendCertificate("jax", "", "float32", {}, {}, "does not run", "JAX is broken.")
    right = certificate.BackendCertificate("torch", "2", "float32", {"forward": 2.0}, {}, "same")
    report = certificate.Certificate(False, "a/m", "torch", {}, 1, 2, "Adam", (right, broken), (), (), "")
    page = render_certificate(report)
    assert "incomplete" in page and "the same on torch; jax does not run it" in page and "<h1>m</h1>" in page
    (tmp_path / "train.py").write_text(
        "import keras\nimport numpy as np\n"
        "def main():\n"
        "    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer='ones')])\n"
        "    model.compile('sgd', 'mse')\n"
        "    return model, [(np.ones((3, 2), 'float32'), np.ones((3, 1), 'float32'))] * 4\n"
    )
    report = zoo.verify(f"{tmp_path}/train.py:main", train_steps=3)
    assert report.passed and "stay together" in render_certificate(report)


def test_wrong_commands(capsys):
    for words in (["verify"], ["verify", "cnn_mnist", "--train", "a.py:b"]):
        with pytest.raises(UserError, match="either a model to verify or --train"):
            cli.run(words)
