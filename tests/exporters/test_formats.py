"""SavedModel and LiteRT where Keras runs on TensorFlow, `torch.export` files where it runs on PyTorch."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import zoo
from tests.exporters.small_tasks import classifier, language_model, randomize, translator
from zoo.errors import UserError
from zoo.exporters.framework_formats import resizing_weights
from zoo.exporters.runtimes import FORMATS, RuntimeModel
from zoo.io.model_files import save_model

BACKEND = keras.backend.backend()
OWN_FORMATS = [name for name, about in FORMATS.items() if about.backend == BACKEND]
KINDS = pytest.mark.parametrize(
    "make",
    [classifier, language_model, pytest.param(translator, marks=pytest.mark.slow)],
    ids=lambda make: make.__name__,
)
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="written by TensorFlow")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="written by PyTorch")


def file_of(folder, name):
    config = json.loads((folder / "config.json").read_text())
    key = f"{name}{FORMATS[config['format']].suffix}"
    return folder / key, config["models"][key]


def load(folder, name):
    path, described = file_of(folder, name)
    (runtime,) = FORMATS[json.loads((folder / "config.json").read_text())["format"]].runtimes
    return RuntimeModel(runtime, path, [x["name"] for x in described["outputs"]])


@pytest.mark.parametrize("folder_format", OWN_FORMATS)
@KINDS
def test_every_kind(make, folder_format, tmp_path):
    path = make().export(tmp_path / "out", format=folder_format)
    report = zoo.verify(path)
    assert report.passed and max(row.max_error for row in report.rows) < 1e-5
    certificate = json.loads((path / "certificate.json").read_text())
    files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert set(certificate["files"]) == files - {"certificate.json"}
    name = "model" if make is classifier else "decode_step"
    shape = file_of(path, name)[1]["inputs"][0]["shape"]
    assert (shape[0] == 1) == FORMATS[folder_format].fixed_shapes
    if FORMATS[folder_format].fixed_shapes:
        assert all(isinstance(size, int) for x in file_of(path, name)[1]["outputs"] for size in x["shape"])
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-9] + b"different")
    with pytest.raises(UserError, match=f"{file.relative_to(path.parent).as_posix()} has sha256 .* was altered or cut"):
        zoo.verify(path)


@on_tensorflow
def test_a_saved_model_takes_any_batch_and_length(tmp_path):
    task = language_model("gru")
    model = load(task.export(tmp_path / "out", format="saved_model"), "model")
    for shape in ((1, 1), (3, 9)):
        tokens = np.random.default_rng(0).integers(0, 5, shape).astype("int32")
        np.testing.assert_allclose(model({"token": tokens})[0], task.model(tokens, training=False), atol=1e-5)


@pytest.mark.slow
@on_torch
def test_a_torch_program_takes_any_batch_and_size(tmp_path):
    task = classifier()
    model = load(task.export(tmp_path / "out", format="torch"), "model")
    for shape in ((1, 8, 8, 3), (5, 30, 21, 3)):
        images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
        expected = ops.convert_to_numpy(task.model(images, training=False))
        np.testing.assert_allclose(model({"image": images})[0], expected, atol=1e-4)


@on_tensorflow
def test_litert_on_noise(tmp_path):
    """A LiteRT file of Keras' own export once differed by 1.19 on noise; also from images that are made smaller."""
    task, rng = classifier(), np.random.default_rng(0)
    x = keras.Input((21, 30, 3), name="image")
    for model in (task.model, keras.Model(x, task.model(x), name="large")):
        path = zoo.ImageClassifier(model).export(tmp_path / model.name, format="litert")
        shape = file_of(path, "model")[1]["inputs"][0]["shape"]
        assert shape == ([1, 8, 8, 3] if model is task.model else [1, 21, 30, 3])
        runtime = load(path, "model")
        for _ in range(20):
            images = rng.uniform(0, 255, shape).astype("float32")
            np.testing.assert_allclose(runtime({"image": images})[0], model(images, training=False), atol=1e-4)


@on_tensorflow
def test_weights_of_resizing():
    """Beside Keras' own layer on TensorFlow, `tf.image.resize` with antialias."""
    rows = np.random.default_rng(0).uniform(0, 255, (1, 17, 29, 1)).astype("float32")
    for height, width in ((5, 40), (17, 29), (33, 7)):
        layer = layers.Resizing(height, width, antialias=True, data_format="channels_last")
        expected = ops.convert_to_numpy(layer(rows))[0, :, :, 0]
        found = resizing_weights(17, height) @ rows[0, :, :, 0] @ resizing_weights(29, width).T
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


@on_tensorflow
def test_an_operator_that_litert_lacks_is_named(tmp_path):
    x = keras.Input((3,), name="x")
    save_model(keras.Model(x, ops.erfinv(0.1 * x), name="mine"), tmp_path / "mine.keras")
    with pytest.raises(
        UserError, match=r"mine cannot be exported to LiteRT, because \S*Erfinv needs .* operator Erfinv"
    ):
        zoo.export(tmp_path / "mine.keras", tmp_path / "out", format="litert")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.keras"]


@on_torch
def test_a_recurrent_model_of_open_length_is_refused(tmp_path):
    save_model(language_model().model, tmp_path / "mine.keras")
    with pytest.raises(
        UserError, match=r"cannot be exported to torch.export \(it fixes a length that the model leaves op"
    ):
        zoo.export(tmp_path / "mine.keras", tmp_path / "out", format="torch")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.keras"]


@pytest.mark.once
def test_bad_input(tmp_path, monkeypatch):
    for name, package, extra in (("litert", "ai_edge_litert", "export"), ("saved_model", "tensorflow", "tensorflow")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UserError, match=rf"An export needs {package}, .*keras-model-zoo\[{extra}\]'"):
                classifier().export(tmp_path / "x", format=name)
    with pytest.raises(UserError, match="There is no format 'torhc': .* Did you mean 'torch'"):
        classifier().export(tmp_path / "x", format="torhc")
    with pytest.raises(UserError, match="There is no runtime 'liteRT': .* Did you mean 'litert'"):
        zoo.verify("cnn_mnist", runtimes=["liteRT"])
    assert not list(tmp_path.iterdir())


CODE = {
    "torch": (
        "import torch\nmodule = torch.export.load(path).module()\n"
        "out = [x.numpy() for x in module(*map(torch.tensor, inputs.values()))]"
    ),
    "saved_model": (
        "import tensorflow as tf\nrun = tf.saved_model.load(path).signatures['serving_default']\n"
        "out = run(**{name: tf.constant(x) for name, x in inputs.items()})\nout = [out['logits'].numpy()]"
    ),
    "litert": (
        "from ai_edge_litert.interpreter import Interpreter\n"
        "out = [Interpreter(path).get_signature_runner()(**inputs)['logits']]"
    ),
}


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("folder_format", CODE)
def test_from_another_backend_and_without_keras(folder_format, tmp_path):
    """On PyTorch, TensorFlow's formats are written by a process of its own; programs load them without zoo or Keras."""
    task = classifier()
    path = task.export(tmp_path / "out", format=folder_format)
    file, described = file_of(path, "model")
    shape = [size if isinstance(size, int) else 8 for size in described["inputs"][0]["shape"]]
    images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    np.save(tmp_path / "images.npy", images)
    forbidden = {"zoo"} if folder_format == "saved_model" else {"keras", "zoo"}  # TensorFlow imports Keras by itself
    code = (
        "import sys, numpy as np\n"
        f"path, inputs = {str(file)!r}, {{'image': np.load({str(tmp_path / 'images.npy')!r})}}\n"
        f"{CODE[folder_format]}\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, out[0])\n"
        f"found = {forbidden} & set(sys.modules)\nassert not found, found"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    expected = ops.convert_to_numpy(task.model(images, training=False))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.once
def test_a_failure_in_the_other_process_is_one_sentence(tmp_path):
    x = keras.Input((3,), name="x")
    save_model(randomize(keras.Model(x, ops.erfinv(0.1 * x), name="mine")), tmp_path / "mine.keras")
    with pytest.raises(UserError, match=r"^mine cannot be exported to LiteRT, because \S*Erfinv needs TensorFlow's"):
        zoo.export(tmp_path / "mine.keras", tmp_path / "out", format="litert")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.keras"]
