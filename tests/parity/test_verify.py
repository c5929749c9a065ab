"""Which backend and which layer differ: found for altered files, and for a backend that computes something else."""

import shutil

import keras
import numpy as np
import pytest
from keras import layers

from tests.conftest import ROOT
from zoo.errors import UserError
from zoo.io import files
from zoo.parity import records as golden
from zoo.parity import verify

SAVED = ROOT / "saved_models"


def small_model():
    """A classifier inside a model, with a layer that is called twice; tanh, so that no unit sleeps."""
    x = keras.Input((8, 8, 2), name="features")
    y = layers.Conv2D(4, 3, padding="same", activation="tanh", name="conv1")(x)
    y = layers.Conv2D(5, 3, padding="same", activation="tanh", name="conv2")(y)
    y = layers.Flatten(name="flat")(layers.MaxPooling2D(2, name="pool")(y))
    inner = keras.Model(x, layers.Dense(6, name="dense")(y), name="inner")
    image = keras.Input((8, 8, 2), name="image")
    shared = layers.Conv2D(2, 1, name="shared")
    y = shared(layers.Rescaling(0.5, name="scale")(shared(image)))
    return keras.Model(image, layers.Dense(3, name="logits")(inner(y)), name="outer")


CALLS = [
    "shared",
    "scale",
    "shared #2",
    "inner/conv1",
    "inner/conv2",
    "inner/pool",
    "inner/flat",
    "inner/dense",
    "logits",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with small.keras and its golden record."""
    folder = tmp_path_factory.mktemp("small")
    keras.utils.set_random_seed(0)
    files.save_model(small_model(), folder / "small.keras")
    golden.make_golden(folder / "small.keras")
    return folder


@pytest.fixture
def copy(small, tmp_path):
    """The path of a copy of small.keras with its golden record, to spoil."""
    for path in small.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "small.keras"


def alter(path, name, change):
    """Change the kernel of a layer in a model file."""
    model = files.load_model(path)
    layer = next(layer for layer in model._flatten_layers() if layer.name == name)
    kernel = layer.get_weights()[0].copy()
    change(kernel)
    layer.set_weights([kernel, *layer.get_weights()[1:]])
    files.save_model(model, path)


def add_everywhere(kernel):
    kernel += 0.1


def change_one_number(kernel):
    kernel.flat[0] += 0.5


# -------------------------------------------------------------------------------------------------------- comparing


@pytest.mark.once
def test_distance():
    a = np.array([1.0, -20.0, 3.0])
    assert verify.distance(a, a) == 0
    assert verify.distance(a + [0, 0, 0.5], a) == 0.5 / 20
    assert verify.distance(a / 100 + [0, 0, 0.5], a / 100) == pytest.approx(0.5)  # small numbers are not blown up
    assert verify.distance(a, a[:2]) == np.inf
    nan, infinite = np.array([np.nan, 1.0]), np.array([np.inf, 1.0])
    assert verify.distance(nan, nan) == 0 and verify.distance(infinite, infinite) == 0
    assert verify.distance(np.array([2.0, 1.0]), nan) == np.inf == verify.distance(nan, np.array([2.0, 1.0]))
    assert verify.distance(infinite, -infinite) == np.inf == verify.distance(infinite, nan)
    assert verify.distance(np.array([np.nan, 1.5]), nan) == 0.5
    assert verify.distance(np.zeros(0), np.zeros(0)) == 0


@pytest.mark.once
def test_the_first_layer_is_the_first_in_the_order_of_calls():
    def record(*layers, output=0.0):
        about = {"weights": {}}
        return golden.Record([], [np.array([output])], {k: ("Kind", np.array([v])) for k, v in layers}, about)

    right = record(("a", 0.0), ("b", 0.0), ("c", 0.0))
    found = verify.compare(record(("a", 1e-6), ("b", 0.2), ("c", 0.9), output=0.4), right)
    assert found.first == ("b", "Kind", 1, 0.2) and (found.outputs, found.layers, found.same) == (0.4, 0.9, False)
    # A difference that grows on its way is traced to where it is still below the tolerance.
    assert verify.compare(record(("a", 1e-6), ("b", 5e-5), ("c", 0.1)), right).first[0] == "b"
    found = verify.compare(record(("a", 1e-6), ("b", 5e-5), ("c", 5e-5)), right)
    assert found.same and found.first is None
    assert verify.compare(record(("a", 0.0), ("other", 0.0), ("c", 0.0)), right).first[:2] == ("b", "Kind")
    assert verify.compare(record(("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 0.0)), right).first[0] == "d"
    assert verify.compare(record(("a", np.nan), ("b", 0.0), ("c", 0.0)), right).first[0] == "a"
    assert not verify.compare(record(("a", 0.0), ("b", 0.0), ("c", 0.0), output=1e-3), right).same


@pytest.mark.parametrize("change", [add_everywhere, change_one_number])
@pytest.mark.parametrize(
    "name, call",
    [
        ("shared", "shared"),
        ("conv1", "inner/conv1"),
        ("conv2", "inner/conv2"),
        ("dense", "inner/dense"),
        ("logits", "logits"),
    ],
)
def test_a_changed_kernel_is_found_at_its_layer(copy, name, call, change):
    right = golden.Record.load(golden.golden_path(copy))
    assert list(right.layers) == CALLS
    assert verify.compare(golden.record_file(copy, inputs=right.inputs, values=right.about["values"]), right).same
    alter(copy, name, change)
    found = verify.compare(golden.record_file(copy, inputs=right.inputs, values=right.about["values"]), right)
    assert not found.same and found.weights == (call,)
    assert found.first[0] == call and found.first[3] > verify.TOLERANCE
    # Its numbers alone give it away too: a backend may go wrong with the right weights.
    blind = golden.Record(right.inputs, right.outputs, right.layers, right.about | {"weights": {}})
    changed = golden.record_file(copy, inputs=right.inputs, values=right.about["values"])
    assert verify.compare(changed, blind).first[0] == call


@pytest.mark.parametrize("name", ["cnn_mnist", "cnn_gtsrb"])
def test_the_golden_record_of_a_pretrained_file(name):
    path = golden.golden_path(SAVED / f"{name}.keras")
    right = golden.Record.load(path)
    assert path.stat().st_size < 100_000
    assert right.about["sha256"] == files.read_card(SAVED / f"{name}.keras")["sha256"]
    assert {"cnn/conv1", "cnn/conv2", "cnn/conv3", "cnn/dense1", "cnn/logits"} == set(right.about["weights"])
    here = golden.record_file(SAVED / f"{name}.keras", inputs=right.inputs, values=right.about["values"])
    found = verify.compare(here, right)
    assert found.same and found.outputs < 1e-5 and found.layers < 1e-5


# -------------------------------------------------------------------------------------------------------- verifying


def verified(path, **options):
    """(whether all is the same, the lines said)."""
    lines = []
    return verify.verify(path, say=lines.append, **options), lines


def row(lines, backend):
    return next(line for line in lines if line.startswith(backend + " ")).split()


@pytest.mark.once
@pytest.mark.heavy
def test_an_altered_file(copy):
    files.write_json(copy.with_suffix(".json"), {"sha256": files.sha256(copy)})
    alter(copy, "conv2", change_one_number)
    with pytest.raises(UserError, match="small.keras has sha256 .* but its card small.json says"):
        verify.verify(copy)
    files.write_json(copy.with_suffix(".json"), {"sha256": files.sha256(copy)})  # as one who hides it would
    same, lines = verified(copy, backends=["jax", "torch"])
    assert not same
    assert any("The golden record is of another file" in line for line in lines)
    for backend in ("jax", "torch"):
        assert row(lines, backend)[-1] == "DIFFERS"
        (sentence,) = [line for line in lines if line.startswith(f"{backend} differs")]
        assert "the golden record first at inner/conv2 (Conv2D, call 5 of 9), by " in sentence
    assert any("backends agree with one another: the file is not the one" in line for line in lines)


# Imported by Python itself at the start of each child: on torch, one layer computes something else.
SITECUSTOMIZE = """
import os, sys, importlib.abc, importlib.util

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "zoo.parity.records" or os.environ.get("KERAS_BACKEND") not in os.environ["SPOILT"].split(","):
            return None
        sys.meta_path.remove(self)
        import keras
        kind = getattr(keras.layers, os.environ["SPOILT_KIND"])
        original = kind.call
        def call(self, inputs):
            outputs = original(self, inputs)
            return outputs + 0.01 if self.name == os.environ["SPOILT_LAYER"] else outputs
        kind.call = call
        return None

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def spoil(tmp_path, monkeypatch):
    """Makes a layer compute something else in children on the given backends."""

    def on(backends, kind, layer):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        monkeypatch.syspath_prepend(tmp_path / "site")
        for key, value in (("SPOILT", backends), ("SPOILT_KIND", kind), ("SPOILT_LAYER", layer)):
            monkeypatch.setenv(key, value)

    return on


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize(
    "kind, layer, call, others",
    [("MaxPooling2D", "pool", "inner/pool", ["jax"]), ("Conv2D", "conv1", "inner/conv1", [])],
)
def test_a_backend_that_goes_wrong(small, spoil, kind, layer, call, others):
    spoil("torch", kind, layer)
    same, lines = verified(small / "small.keras", backends=[*others, "torch"])
    assert not same and row(lines, "torch")[-1] == "DIFFERS"
    assert all(row(lines, other)[-1] == "same" for other in others)
    (sentence,) = [line for line in lines if "differs from" in line]
    assert sentence.startswith(f"torch differs from the golden record first at {call} ({kind}, call ")
    assert "weights" not in sentence


@pytest.mark.once
@pytest.mark.heavy
def test_without_a_golden_record_the_majority_is_right(copy, spoil):
    golden.golden_path(copy).unlink()
    spoil("tensorflow", "Dense", "dense")
    same, lines = verified(copy)  # the backend that goes wrong is the one that the others are compared with
    assert not same and any("There is no small.golden.npz" in line for line in lines)
    (sentence,) = [line for line in lines if "differs from" in line]
    assert sentence.startswith("tensorflow differs from the others first at inner/dense (Dense, call 8 of 9), by ")


@pytest.mark.once
@pytest.mark.heavy
def test_two_that_differ_without_a_golden_record(copy, spoil):
    golden.golden_path(copy).unlink()
    spoil("jax", "Rescaling", "scale")
    same, lines = verified(copy, backends=["jax", "torch"])
    assert not same
    assert any(line.startswith("torch differs from jax first at scale (Rescaling, call 2 of 9)") for line in lines)
    assert "Without a golden record it cannot be told which of them is right." in lines


@pytest.mark.once
@pytest.mark.heavy
def test_one_backend_alone(copy):
    same, lines = verified(copy, backends=["torch"])
    assert same and "Only torch is to run, so there is nothing to compare with but the golden record." in lines
    golden.golden_path(copy).unlink()
    same, lines = verified(copy, backends=["torch"])
    assert same and "Only torch is to run, so there is nothing to compare with." in lines


@pytest.mark.once
@pytest.mark.heavy
def test_a_backend_that_does_not_run_leaves_the_others(small, tmp_path, monkeypatch):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise ImportError('this JAX is broken')")
    monkeypatch.syspath_prepend(tmp_path)
    same, lines = verified(small / "small.keras", backends=["jax", "torch"])
    assert not same and row(lines, "torch")[-1] == "same"
    assert row(lines, "jax")[1:] == ["does", "not", "run"]
    assert any(line.startswith("jax: ") and "this JAX is broken" in line for line in lines)
    assert lines[-1] == "jax does not run the file."


@pytest.mark.once
@pytest.mark.heavy
def test_a_golden_record_of_another_architecture(copy):
    x = keras.Input((5,))
    files.save_model(keras.Model(x, layers.Dense(2)(x)), copy)
    with pytest.raises(UserError, match=r"cannot be run on inputs float32 \(4, 8, 8, 2\)"):
        verify.verify(copy, backends=["torch"])


@pytest.mark.once
def test_mistakes(small, tmp_path):
    file = small / "small.keras"
    with pytest.raises(UserError, match="There is no model file at .*smal.keras.*Did you mean 'small.keras'"):
        verify.verify(small / "smal.keras")
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        verify.verify(file, backends=["toch"])
    for tolerance in (-1, float("nan")):
        with pytest.raises(UserError, match="tolerance must be a number from 0 up"):
            verify.verify(file, tolerance=tolerance)
    shutil.copy(file, tmp_path)
    (tmp_path / "small.golden.npz").write_bytes(b"cut short")
    with pytest.raises(UserError, match="small.golden.npz is not a record"):
        verify.verify(tmp_path / "small.keras")


@pytest.mark.once
def test_every_pretrained_file_has_a_golden_record():
    for path in SAVED.glob("*.keras"):
        assert golden.golden_path(path).is_file(), f"run make_golden({str(path)!r})"
