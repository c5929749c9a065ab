"""Which backend and which layer differ: found for altered files, and for a backend that computes something else."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
from keras import layers

from tests.conftest import ROOT
from zoo.errors import UserError
from zoo.io import cards, model_files
from zoo.parity import records, verify

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
    """A folder with small.keras and its parity record."""
    folder = tmp_path_factory.mktemp("small")
    keras.utils.set_random_seed(0)
    model_files.save_model(small_model(), folder / "small.keras")
    records.write_parity_record(folder / "small.keras")
    return folder


@pytest.fixture
def copy(small, tmp_path):
    """The path of a copy of small.keras with its parity record, to spoil."""
    for path in small.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "small.keras"


def alter(path, name, change):
    """Change the kernel of a layer in a model file."""
    model = model_files.load_model(path)
    layer = next(layer for layer in model._flatten_layers() if layer.name == name)
    kernel = layer.get_weights()[0].copy()
    change(kernel)
    layer.set_weights([kernel, *layer.get_weights()[1:]])
    model_files.save_model(model, path)


def add_everywhere(kernel):
    kernel += 0.1


def change_one_number(kernel):
    kernel.flat[0] += 0.5


# -------------------------------------------------------------------------------------------------------- comparing


@pytest.mark.once
def test_max_scaled_error():
    error = verify.max_scaled_error
    a = np.array([1.0, -20.0, 3.0])
    assert error(a, a) == 0
    assert error(a + [0, 0, 0.5], a) == 0.5 / 20
    assert error(a / 100 + [0, 0, 0.5], a / 100) == pytest.approx(0.5)  # small numbers are not blown up
    assert error(a, a[:2]) == np.inf
    nan, infinite = np.array([np.nan, 1.0]), np.array([np.inf, 1.0])
    assert error(nan, nan) == 0 and error(infinite, infinite) == 0
    assert error(np.array([2.0, 1.0]), nan) == np.inf == error(nan, np.array([2.0, 1.0]))
    assert error(infinite, -infinite) == np.inf == error(infinite, nan)
    assert error(np.array([np.nan, 1.5]), nan) == 0.5
    assert error(np.zeros(0), np.zeros(0)) == 0


@pytest.mark.once
def test_the_first_layer_is_the_first_in_the_order_of_calls():
    def record(*layers, output=0.0):
        about = {"weights": {}}
        return records.ParityRecord([], [np.array([output])], {k: ("Kind", np.array([v])) for k, v in layers}, about)

    right = record(("a", 0.0), ("b", 0.0), ("c", 0.0))
    found = verify.compare_records(record(("a", 1e-6), ("b", 0.2), ("c", 0.9), output=0.4), right)
    assert found.first_different_call == ("b", "Kind", 1, 0.2) and (
        found.output_error,
        found.layer_error,
        found.passed,
    ) == (
        0.4,
        0.9,
        False,
    )
    # A difference that grows on its way is traced to where it is still below the tolerance.
    assert verify.compare_records(record(("a", 1e-6), ("b", 5e-5), ("c", 0.1)), right).first_different_call[0] == "b"
    found = verify.compare_records(record(("a", 1e-6), ("b", 5e-5), ("c", 5e-5)), right)
    assert found.passed and found.first_different_call is None
    assert verify.compare_records(record(("a", 0.0), ("other", 0.0), ("c", 0.0)), right).first_different_call[:2] == (
        "b",
        "Kind",
    )
    assert (
        verify.compare_records(record(("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 0.0)), right).first_different_call[0]
        == "d"
    )
    assert verify.compare_records(record(("a", np.nan), ("b", 0.0), ("c", 0.0)), right).first_different_call[0] == "a"
    assert not verify.compare_records(record(("a", 0.0), ("b", 0.0), ("c", 0.0), output=1e-3), right).passed


@pytest.mark.parametrize("change", [pytest.param(add_everywhere, marks=pytest.mark.once), change_one_number])
@pytest.mark.parametrize(
    "name, call",
    [
        pytest.param("shared", "shared", marks=pytest.mark.once),
        pytest.param("conv1", "inner/conv1", marks=pytest.mark.once),
        ("conv2", "inner/conv2"),
        pytest.param("dense", "inner/dense", marks=pytest.mark.once),
        pytest.param("logits", "logits", marks=pytest.mark.once),
    ],
)
def test_a_changed_kernel_is_found_at_its_layer(copy, name, call, change):
    right = records.ParityRecord.load(records.parity_path(copy))
    options = {"inputs": right.inputs, "max_values": right.metadata["values"]}
    assert list(right.layers) == CALLS
    assert verify.compare_records(records.compute_parity_record(copy, **options), right).passed
    alter(copy, name, change)
    found = verify.compare_records(records.compute_parity_record(copy, **options), right)
    assert not found.passed and found.weights == (call,)
    assert found.first_different_call[0] == call and found.first_different_call[3] > verify.TOLERANCE
    # Its numbers alone give it away too: a backend may go wrong with the right weights.
    blind = records.ParityRecord(right.inputs, right.outputs, right.layers, right.metadata | {"weights": {}})
    changed = records.compute_parity_record(copy, **options)
    assert verify.compare_records(changed, blind).first_different_call[0] == call


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.parent.name, marks=[] if path.parent.name == "cnn_mnist" else pytest.mark.once)
        for path in sorted(SAVED.glob("*/model.keras"))
    ],
)
def test_the_parity_record_of_a_pretrained_file(name):
    path = records.parity_path(SAVED / name / "model.keras")
    right = records.ParityRecord.load(path)
    assert right.metadata["sha256"] == cards.read_card(SAVED / name)["files"]["model.keras"]["sha256"]
    if name.startswith("cnn"):
        assert path.stat().st_size < 100_000
        assert {f"cnn/{layer}" for layer in ("conv1", "conv2", "conv3", "dense1", "logits")} == set(
            right.metadata["weights"]
        )
    here = records.compute_parity_record(
        SAVED / name / "model.keras", inputs=right.inputs, max_values=right.metadata["values"]
    )
    found = verify.compare_records(here, right)
    assert found.passed and found.output_error < 1e-5 and found.layer_error < 1e-5


# -------------------------------------------------------------------------------------------------------- verifying


def verified(path, **options):
    """(whether all is the same, the lines of the report)."""
    lines = []
    report = verify.verify_file(path, log=lines.append, **options)
    assert lines == report.text.split("\n") == str(report).split("\n")
    return report.passed, lines


def row(lines, backend):
    return next(line for line in lines if line.startswith(backend + " ")).split()


def test_each_line_comes_when_it_is_known(monkeypatch):
    """The head before any backend runs; each backend's line before the next one starts."""
    events = []
    path = SAVED / "cnn_mnist" / "model.keras"
    recorded = records.ParityRecord.load(records.parity_path(path))

    def run_child(backend, *arguments):
        events.append(f"{backend} runs")
        return dataclasses.replace(recorded, metadata=recorded.metadata | {"backend": backend, "seconds": 1.0})

    monkeypatch.setattr(verify, "_run_child", run_child)
    monkeypatch.setattr(verify, "check_backend", lambda *arguments: None)
    report = verify.verify_file(
        path, backends=["torch", "jax"], log=events.append, on_start=lambda name: events.append(f"{name} starts")
    )
    head = next(i for i, line in enumerate(events) if line.startswith("backend "))
    words = [" ".join(line.split()[:2]) for line in events[head + 1 : head + 7]]
    version = recorded.metadata["version"]
    assert words == [
        *("torch starts", "torch runs", f"torch {version}", "jax starts", "jax runs", f"jax {version}"),
    ]
    assert report.passed and [row.backend for row in report.rows] == ["torch", "jax"]


def run_child_here(backend, model_path, inputs_path, target):
    """In place of `verify._run_child`, whose processes take seconds: the same in this one, whatever the backend."""
    verify._child(model_path, target, inputs_path)
    record = records.ParityRecord.load(target)
    return dataclasses.replace(record, metadata=record.metadata | {"backend": backend})


@pytest.mark.once
def test_an_altered_file(copy, monkeypatch):
    monkeypatch.setattr(verify, "_run_child", run_child_here)
    cards.write_card(copy.parent, {}, [copy.name])
    alter(copy, "conv2", change_one_number)
    with pytest.raises(UserError, match="small.keras has sha256 .* but card.json beside it says"):
        verify.verify_file(copy)
    cards.write_card(copy.parent, {}, [copy.name])  # as one who hides it would
    same, lines = verified(copy, backends=["jax", "torch"])
    assert not same
    assert any("The parity record is of another file" in line for line in lines)
    for backend in ("jax", "torch"):
        assert row(lines, backend)[-1] == "DIFFERS"
        (sentence,) = [line for line in lines if line.startswith(f"{backend} differs")]
        assert "the parity record first at inner/conv2 (Conv2D, call 5 of 9), by " in sentence
    assert any("backends agree with one another: the file is not the one" in line for line in lines)


# Imported by Python itself at the start of each child: on torch, one layer computes something else.
SITECUSTOMIZE = """
import os, sys, importlib.abc

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "zoo.parity.records" or os.environ.get("KERAS_BACKEND") not in os.environ["SPOILT"].split(","):
            return None
        sys.meta_path.remove(self)
        from zoo import backends
        backends.skip_optional_imports()
        backends.import_keras()
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
    [
        pytest.param("MaxPooling2D", "pool", "inner/pool", ["jax"], marks=pytest.mark.slow),
        ("Conv2D", "conv1", "inner/conv1", []),
    ],
)
def test_a_backend_that_goes_wrong(small, spoil, kind, layer, call, others):
    spoil("torch", kind, layer)
    same, lines = verified(small / "small.keras", backends=[*others, "torch"])
    assert not same and row(lines, "torch")[-1] == "DIFFERS"
    assert all(row(lines, other)[-1] == "same" for other in others)
    (sentence,) = [line for line in lines if "differs from" in line]
    assert sentence.startswith(f"torch differs from the parity record first at {call} ({kind}, call ")
    assert "weights" not in sentence


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_a_parity_record_the_majority_is_right(copy, spoil, monkeypatch, processes):
    records.parity_path(copy).unlink()
    if processes:
        spoil("tensorflow", "Dense", "dense")
    else:
        right = layers.Dense.call

        def run_child(backend, *arguments):
            with monkeypatch.context() as patch:
                if backend == "tensorflow":
                    patch.setattr(layers.Dense, "call", lambda self, x: right(self, x) + 0.01 * (self.name == "dense"))
                return run_child_here(backend, *arguments)

        monkeypatch.setattr(verify, "_run_child", run_child)
    same, lines = verified(copy)  # the backend that goes wrong is the one that the others are compared with
    assert not same and any("There is no small.parity.npz" in line for line in lines)
    (sentence,) = [line for line in lines if "differs from" in line]
    assert sentence.startswith("tensorflow differs from the others first at inner/dense (Dense, call 8 of 9), by ")


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.heavy
def test_two_that_differ_without_a_parity_record(copy, spoil):
    records.parity_path(copy).unlink()
    spoil("jax", "Rescaling", "scale")
    same, lines = verified(copy, backends=["jax", "torch"])
    assert not same
    assert any(line.startswith("torch differs from jax first at scale (Rescaling, call 2 of 9)") for line in lines)
    assert "Without a parity record it cannot be told which of them is right." in lines


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.heavy
def test_one_backend_alone(copy):
    same, lines = verified(copy, backends=["torch"])
    assert same and "Only torch is to run, so there is nothing to compare with but the parity record." in lines
    records.parity_path(copy).unlink()
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
def test_a_parity_record_of_another_architecture(copy, monkeypatch):
    monkeypatch.setattr(verify, "_run_child", run_child_here)
    x = keras.Input((5,))
    model_files.save_model(keras.Model(x, layers.Dense(2)(x)), copy)
    with pytest.raises(UserError, match=r"cannot be run on inputs float32 \(4, 8, 8, 2\)"):
        verify.verify_file(copy, backends=["torch"])


@pytest.mark.once
def test_mistakes(small, tmp_path):
    file = small / "small.keras"
    with pytest.raises(UserError, match="There is no model file at .*smal.keras.*Did you mean 'small.keras'"):
        verify.verify_file(small / "smal.keras")
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        verify.verify_file(file, backends=["toch"])
    for tolerance in (-1, float("nan")):
        with pytest.raises(UserError, match="tolerance must be a number from 0 up"):
            verify.verify_file(file, tolerance=tolerance)
    shutil.copy(file, tmp_path)
    (tmp_path / "small.parity.npz").write_bytes(b"cut short")
    with pytest.raises(UserError, match="small.parity.npz is not a parity record"):
        verify.verify_file(tmp_path / "small.keras")


@pytest.mark.once
def test_every_pretrained_file_has_a_parity_record():
    for path in SAVED.glob("*/*.keras"):  # one of several models, too
        assert records.parity_path(path).is_file(), f"run write_parity_record({str(path)!r})"
