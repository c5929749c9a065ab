"""Loading files of other people: what loads, and the errors about classes that are not registered."""

import io
import re
import sys
import types
import zipfile

import keras
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.io import model_files

# Two classes of our own, one registered and one not, and a function, nested in a sequential model in a functional one.
CLASSES = """
import keras

@keras.saving.register_keras_serializable("mine")
class Scale(keras.layers.Layer):
    def call(self, x):
        return 2 * x

class Shift(keras.layers.Layer):
    def call(self, x):
        return x + 1

@keras.saving.register_keras_serializable("mine")
def cube(x):
    return x**3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files made from a module that can be imported here and is not: afterwards nothing is registered."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "my_layers.py").write_text(CLASSES)
    my_layers = types.ModuleType("my_layers")
    exec(CLASSES, vars(my_layers))
    x = keras.Input((4,))
    deep = keras.Sequential([keras.Input((4,)), my_layers.Scale(), keras.layers.Dense(4, activation=my_layers.cube)])
    middle = keras.Sequential([keras.Input((4,)), deep])
    keras.Model(x, my_layers.Shift()(middle(x))).save(folder / "custom.keras")
    keras.Model(x, my_layers.Scale()(x)).save(folder / "one.keras")
    keras.Model(x, keras.layers.Lambda(lambda t: 2 * t)(x)).save(folder / "lambda.keras")
    model = keras.Model(x, keras.layers.Dense(1)(x))
    model.compile("sgd", loss=my_layers.cube)
    model.save(folder / "custom_loss.keras")
    for name in ("mine>Scale", "mine>cube"):
        del keras.saving.get_custom_objects()[name]
    return folder


@pytest.mark.once
def test_every_missing_class_is_named_and_no_module_is_imported(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(UserError) as caught:
        model_files.load_model(folder / "custom.keras")
    words = str(caught.value)
    # Keras 3.16 knows the module of a function, too.
    pattern = r"needs the custom classes mine>Scale \(of my_layers\), mine>cube( \(of my_layers\))?, Shift \(of my_l"
    assert re.search(pattern, words)
    assert "import the module that defines them" in words and "\n" not in words
    with pytest.raises(UserError, match=r"needs the custom class mine>Scale \(of my_layers\), .* that defines it"):
        model_files.load_model(folder / "one.keras")
    assert "my_layers" not in sys.modules


@pytest.mark.once
def test_classes_that_are_here_are_not_missing(folder):
    space = {}  # the classes, not registered for good, since other tests count on their absence
    exec(CLASSES.replace("@keras.saving.register_keras_serializable", "@(lambda _: lambda c: c)"), space)
    known = {"mine>Scale": space["Scale"], "mine>cube": space["cube"]}
    with keras.saving.custom_object_scope(known), pytest.raises(UserError, match="the custom class Shift"):
        model_files.load_model(folder / "custom.keras")
    with keras.saving.custom_object_scope(known | {"Shift": space["Shift"]}):
        model = model_files.load_model(folder / "custom.keras")
    x = np.ones((2, 4), "float32")
    kernel = model.layers[1].layers[0].layers[1].get_weights()[0]
    np.testing.assert_allclose(model.predict(x, verbose=0), (2 * x @ kernel) ** 3 + 1, rtol=1e-4, atol=1e-5)


@pytest.mark.once
def test_a_custom_loss_is_not_needed(folder):
    assert model_files.load_model(folder / "custom_loss.keras").count_params() == 5


@pytest.mark.once
def test_python_code_in_a_file_is_never_run(folder):
    with pytest.raises(UserError, match="holds a Lambda layer, which is Python code"):
        model_files.load_model(folder / "lambda.keras")


def test_files_of_stock_layers_load(tmp_path):
    """Nested, shared, sequential, with several inputs and outputs and `keras.ops`, as anyone may have saved them."""
    layers = keras.layers
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="gelu"), layers.BatchNormalization()])
    shared = layers.Dense(3, activation=keras.activations.swish, kernel_regularizer=keras.regularizers.L2(0.1))
    outputs = {"sum": shared(inner(a)) + shared(inner(b)), "product": keras.ops.multiply(a, b)}
    model = keras.Model([a, b], outputs)
    model.compile("adam", loss="mse")
    model.save(tmp_path / "nested.keras")
    sequential = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(1)])
    sequential.save(tmp_path / "sequential.keras")

    x = [np.ones((2, 6), "float32"), np.full((2, 6), 2, "float32")]
    again = model_files.load_model(tmp_path / "nested.keras").predict(x, verbose=0)
    for key, value in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(again[key], value, atol=1e-6)
    assert model_files.load_model(tmp_path / "sequential.keras").count_params() == sequential.count_params()


@pytest.mark.once
def test_a_file_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.keras", "w") as archive:
        archive.writestr("picture.png", b"")
    with pytest.raises(UserError, match="pictures.keras cannot be loaded as a Keras model") as caught:
        model_files.load_model(tmp_path / "pictures.keras")
    assert "\n" not in str(caught.value)


def test_random_initial_weights_are_not_drawn_while_loading_and_are_again_after(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(4, dtype="float16")])
    model.save(tmp_path / "model.keras")
    drawn = []
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", lambda *args, **kwargs: drawn.append(1))
    loaded = model_files.load_model(tmp_path / "model.keras")
    assert not drawn
    keras.initializers.GlorotUniform()((2, 2))
    assert drawn
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        assert ours.dtype == theirs.dtype and (ours == theirs).all()


def test_large_models_are_read_where_they_are(tmp_path, monkeypatch):
    """The same weights, with nothing written beside the file; damaged and incomplete files are told apart as ever."""
    monkeypatch.setattr(model_files, "LARGE_MODEL", 1000)
    image = keras.Input((9, 9, 2))
    inner = keras.Sequential([keras.Input((9, 9, 4)), keras.layers.Conv2D(8, 3), keras.layers.GroupNormalization(2)])
    shared = keras.layers.Dense(8, dtype="float16")
    x = inner(keras.layers.Conv2D(4, 3, padding="same")(image))
    model = keras.Model(image, shared(shared(keras.ops.silu(x))))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    path = tmp_path / "large.keras"
    model_files.save_model(model, path)
    monkeypatch.setattr(keras.saving, "load_model", None)
    loaded = model_files.load_model(path)
    assert [file.name for file in tmp_path.iterdir()] == ["large.keras"]
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        assert ours.dtype == theirs.dtype and (ours == theirs).all()

    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole .keras file"):
        model_files.load_model(path)
    with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(io.BytesIO(whole)) as old:
        for name in old.namelist():
            archive.writestr(name, old.read(name).replace(b'"filters": 8', b'"filters": 6'))
    with pytest.raises(UserError, match="cannot be loaded as a Keras model"):
        model_files.load_model(path)
