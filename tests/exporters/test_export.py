"""`zoo export`: the folder, its certificate, and what is wrong with either."""

import hashlib
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
from keras import layers

import zoo
from zoo.cli import run
from zoo.errors import UserError
from zoo.exporters import export_folder
from zoo.exporters.onnx_model import write_onnx
from zoo.io.model_files import save_model
from zoo.models.cnn import cnn
from zoo.models.rnn_language_model import rnn_language_model
from zoo.tokenizers.text import train_tokenizer

once = pytest.mark.once


def set_weights(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "seed_generator" not in weight.path:
            weight.assign(rng.uniform(-0.3, 0.3, weight.shape))


def small_language_model():
    model = rnn_language_model(cell="lstm", vocabulary_size=5, embedding_dim=4, units=6, dropout=0.2)
    set_weights(model)
    return zoo.CausalLM(model, train_tokenizer("abcde", "char"), card={"name": "letters"})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported language model; tests copy it."""
    return small_language_model().export(tmp_path_factory.mktemp("export") / "letters")


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "letters")


@pytest.mark.parametrize("name", ["cnn", "gru"])
def test_every_backend_writes_the_same_graph(name, tmp_path):
    if name == "cnn":
        model = cnn(num_classes=3, image_size=8, units=4, name="cnn")
    else:
        model = rnn_language_model(cell="gru", vocabulary_size=7, embedding_dim=4, units=5, name="gru")
    set_weights(model)
    write_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    # Written with PyTorch on 2026-11-28; equal with TensorFlow and JAX.
    digests = {"cnn": "198c9cc13792287b", "gru": "7ec7f76b96639de6"}
    assert hashlib.sha256(graph.SerializeToString()).hexdigest()[:16] == digests[name]


@once
def test_runtimes_shrink_images_as_keras_does(tmp_path):
    """OpenVINO's own Resize ignores `antialias`, which a record of small images does not show."""
    x = keras.Input((None, None, 3), name="image")
    y = layers.Resizing(8, 8, antialias=True, data_format="channels_last")(x)
    model = keras.Model(x, layers.Dense(2)(layers.Flatten(data_format="channels_last")(y)), name="small")
    set_weights(model)
    path = zoo.ImageClassifier(model).export(tmp_path / "small")
    report = zoo.verify(path, runtimes=["onnxruntime", "openvino"])
    assert report.passed and len(report.rows) == 4


@once
def test_openvino(tmp_path):
    path = small_language_model().export(tmp_path / "letters", format="openvino")
    assert {file.suffix for file in path.iterdir()} == {".xml", ".bin", ".json", ".npz"}
    assert zoo.verify(path).passed
    with pytest.raises(UserError, match="onnxruntime does not run files of the format openvino: choose openvino"):
        zoo.verify(path, runtimes=["onnxruntime"])


@once
def test_a_model_without_a_task(tmp_path):
    x = keras.Input((3,), name="x")
    model = keras.Model(x, [layers.Dense(2, name="a")(x), layers.Dense(1, name="b")(x)], name="mine")
    set_weights(model)
    save_model(model, tmp_path / "mine.keras")
    assert run(["export", str(tmp_path / "mine.keras"), "--to", "onnx", "--output", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["models"]["model.onnx"]["outputs"][1] == {
        "name": "output_1",
        "shape": ["batch", 1],
        "dtype": "float32",
    }


@once
def test_the_folder_alone_is_verified_without_keras(folder):
    code = (
        "import sys, zoo\n"
        f"assert zoo.verify({str(folder)!r}).passed\n"
        "print(sorted({'keras', 'tensorflow', 'jax', 'torch', 'onnx'} & set(sys.modules)))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


@once
@pytest.mark.parametrize("name", ["model.onnx", "decode_step.onnx", "tokenizer.json", "config.json", "parity.npz"])
def test_an_altered_file_is_named(name, folder):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"letters/{name} has sha256 .* the file was altered or cut short, export"):
        zoo.verify(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"There is no {name} in .*letters, which its certificate lists"):
        zoo.verify(folder)


def certify_again(folder):
    """Let the certificate list the files as they are now."""
    path = folder / "certificate.json"
    certificate = json.loads(path.read_text())
    for name, entry in certificate["files"].items():
        entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(certificate))


@once
def test_other_weights_under_a_true_hash_are_found(folder, capsys):
    proto = onnx.load(folder / "decode_step.onnx")
    bias = next(one for one in proto.graph.initializer if one.name == "logits/bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1e-3), bias.name))
    onnx.save(proto, folder / "decode_step.onnx")
    certify_again(folder)
    assert run(["verify", str(folder)]) == 1
    assert "decode_step.onnx                   onnxruntime" in (out := capsys.readouterr().out)
    assert "1.0e-03  DIFFERS" in out and "gives other numbers than the parity record." in out
    assert run(["verify", str(folder), "--tolerance", "0.01"]) == 0


@once
@pytest.mark.parametrize(
    "name, change, words",
    [
        (
            "config.json",
            lambda c: c["models"].pop("model.onnx"),
            "does not describe model.onnx: export the model again",
        ),
        ("config.json", lambda c: c.update(format="onxx"), "format is 'onxx'"),
        ("config.json", lambda c: c["models"]["model.onnx"].update(inputs=[]), "inputs"),
        ("certificate.json", lambda c: c.update(replays=[]), "replays"),
        (
            "certificate.json",
            lambda c: c["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}),
            "the name of a file",
        ),
        ("certificate.json", lambda c: c["replays"][0].update(kind="exec"), "kind is 'exec'"),
    ],
)
def test_json_that_says_nonsense(name, change, words, folder):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    if name == "config.json":
        certify_again(folder)
    with pytest.raises(UserError, match=words):
        zoo.verify(folder)


@once
def test_a_difference_leaves_nothing_behind(tmp_path, monkeypatch):
    task = small_language_model()
    monkeypatch.setattr(export_folder, "write_onnx", lambda model, path, **kwargs: _biased(model, path, **kwargs))
    with pytest.raises(UserError, match=r"model.onnx in onnxruntime .* differs from the Keras model by .* nothing was"):
        task.export(tmp_path / "letters")
    assert not list(tmp_path.iterdir())


def _biased(model, path, **kwargs):
    model.get_layer("logits").bias.assign_add(np.full(5, 0.01))
    try:
        return write_onnx(model, path, **kwargs)
    finally:
        model.get_layer("logits").bias.assign_sub(np.full(5, 0.01))


@once
def test_an_export_is_replaced_and_nothing_else(exported, folder, tmp_path):
    before = (folder / "certificate.json").read_bytes()
    task = small_language_model()
    task.model.get_layer("logits").bias.assign_add(np.ones(5))
    task.export(folder)
    assert (folder / "certificate.json").read_bytes() != before
    assert zoo.verify(folder).passed
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="mine holds other files than an export, which would be lost: name another"):
        task.export(tmp_path / "mine")
    with pytest.raises(UserError, match="thesis.tex is a file: name a folder with --output"):
        task.export(tmp_path / "mine" / "thesis.tex")
    assert {path.name for path in tmp_path.iterdir()} == {"letters", "mine"}


@once
def test_bad_input(tmp_path, monkeypatch):
    for arguments, words in (
        (
            ["cnn_mnist", "--to", "onxx"],
            "There is no format 'onxx': choose one of onnx, openvino, litert, saved_model, torch. Did you mean 'onnx'?",
        ),
        (["cnn_mnits", "--to", "onnx"], "Did you mean 'cnn_mnist'?"),
        (["cnn_mnist", "--to", "onnx", "--output", "/proc/x/y"], "Cannot write to /proc/x"),
        (
            ["cnn_mnist", "--to", "onnx", "--output", str(tmp_path / "x"), "--tolerance", "-1"],
            "The tolerance must be a",
        ),
    ):
        with pytest.raises(UserError) as caught:
            run(["export", *arguments])
        assert words in str(caught.value)
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=rf"An export needs {name}, .*pip install 'keras-model-zoo\[export\]'"):
                run(["export", "cnn_mnist", "--to", "onnx", "--output", str(tmp_path / "x")])
    with pytest.raises(
        UserError, match="There is no runtime 'onnxruntim': choose one of onnxruntime, openvino, litert, tensorflow, to"
    ):
        zoo.verify("cnn_mnist", runtimes=["onnxruntim"])
    with pytest.raises(UserError, match="A model is verified on backends or in runtimes: give one of the two"):
        zoo.verify("cnn_mnist", runtimes=["onnxruntime"], backends=["torch"])
    assert not list(tmp_path.iterdir())
