"""Certificates: gradients against closed forms, units that tell rounding from faults, faults named at their layer."""

import contextlib
import functools
import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.parity.local_workers import NAMES, local_workers
from zoo.compat.keras import float64_results
from zoo.errors import UserError
from zoo.io import model_files
from zoo.parity import certificate, inputs, probes, units
from zoo.parity.certificate import certify


def small_model():
    x = keras.Input((6, 6, 2), name="image")
    y = layers.Conv2D(3, 3, name="conv")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Activation("relu", name="relu")(y)
    y = layers.Flatten(name="flat")(layers.Dropout(0.5, name="drop")(y))
    return keras.Model(x, layers.Dense(4, name="logits")(ops.multiply(y, 0.5)), name="small")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.keras"
    model_files.save_model(small_model(), path)
    return path


# ------------------------------------------------------------------------------------------------ one backend's numbers


def test_outputs_gradients_and_calls_of_a_linear_model():
    """Two dense layers: every gradient has a closed form, and the cotangent between them too."""
    x = keras.Input((3,), name="x")
    hidden = layers.Dense(4, name="first")(x)
    model = keras.Model(x, layers.Dense(2, name="second")(hidden))
    value = np.random.default_rng(0).standard_normal((5, 3)).astype("float32")
    (a, b, c, d), probe = model.get_weights(), probes.Probe(model)
    result = probe.run([value], None, training=False, record=True)
    (cotangent,) = probe.cotangents([np.zeros((5, 2), "float32")])
    np.testing.assert_allclose(result["cotangents"][0], cotangent)
    assert abs(cotangent).max() < 3 / 10 + 0.1  # of a mean over ten numbers
    between = cotangent @ c.T
    expected = [value.T @ between, between.sum(0), (value @ a + b).T @ cotangent, cotangent.sum(0)]
    for got, right in zip(result["gradients"], expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result["outputs"][0], (value @ a + b) @ c + d, atol=1e-5)
    assert result["paths"] == ["first", "second"] and result["kinds"] == ["Dense", "Dense"]
    np.testing.assert_allclose(result["call_cotangents"][0][0], between, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result["call_inputs"][1][0], value @ a + b, atol=1e-5)
    other = np.ones((5, 3), "float32")
    alone = probe.run_call(probe.calls([value], training=False)[0], [other], [between.astype("float32")])
    np.testing.assert_allclose(alone["outputs"][0], other @ a + b, atol=1e-5)
    np.testing.assert_allclose(alone["gradients"][0], other.T @ between, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(alone["input_gradients"][0], between @ a.T, rtol=1e-4, atol=1e-6)


def test_float64_is_float64_and_rounding_is_float32():
    """Keras' BatchNormalization computes a float64 model in float32 on JAX and PyTorch, but for `float64_results`."""
    value = np.random.default_rng(0).standard_normal((8, 5)).astype("float32")
    with float64_results():
        x = keras.Input((5,), dtype="float64")
        model = keras.Model(x, layers.BatchNormalization(momentum=0.9, name="norm")(x))
        probe = probes.Probe(model, "float64")
        exact = probe.run([value], None, training=True)
        rounded = probe.run([value], exact["cotangents"], training=True, rounding="float32")
    wide = value.astype("float64")
    right = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-3)
    np.testing.assert_allclose(exact["outputs"][0], right, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(exact["states"][0], 0.1 * wide.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(rounded["outputs"][0], exact["outputs"][0].astype("float32"))
    np.testing.assert_array_equal(model.get_weights()[2], np.zeros(5))  # set back
    assert keras.config.floatx() == "float32" == keras.config.dtype_policy().name
    assert keras.backend.result_type("float64", "float32") == (
        "float64" if keras.backend.backend() == "tensorflow" else "float32"
    )


def test_a_step_of_adam():
    """Keras adds epsilon before the bias correction; `adam_first_step` has both ways."""
    x = keras.Input((2,))
    model = keras.Model(x, layers.Dense(3)(x))
    config = keras.optimizers.serialize(keras.optimizers.Adam(0.01, epsilon=1e-3))
    gradients = [np.random.default_rng(0).standard_normal(w.shape).astype("float32") / 100 for w in model.get_weights()]
    before, probe = model.get_weights(), probes.Probe(model)
    after = probe.step(config, gradients)
    for weight, new, gradient in zip(before, after, gradients):
        step = certificate.adam_first_step(gradient, config["config"], after_correction=False)
        np.testing.assert_allclose(weight - new, step, rtol=1e-3, atol=1e-7)
        other = certificate.adam_first_step(gradient, config["config"], after_correction=True)
        assert abs(other - step).max() > 1e-3
    for weight, now in zip(before, model.get_weights()):
        np.testing.assert_array_equal(weight, now)


def test_dropout_is_silenced_and_recurrent_layers_too():
    x = keras.Input((4, 3))
    y = layers.LSTM(2, dropout=0.5, recurrent_dropout=0.3, name="lstm", return_sequences=True)(x)
    model = keras.Model(x, layers.GaussianNoise(1.0, name="noise")(layers.Dropout(0.5, name="drop")(y)))
    silenced = probes.silence(model)
    assert {"noise", "drop"} <= set(silenced) and len(silenced) == 3
    value = np.ones((2, 4, 3), "float32")
    first, second = (np.array(ops.convert_to_numpy(model(value, training=True))) for _ in range(2))
    np.testing.assert_array_equal(first, second)


# -------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.once
def test_inputs_fit_what_the_first_layers_expect():
    words, float_ids = keras.Input((None,), dtype="int32", name="words"), keras.Input((5,), name="float_ids")
    picture, plain = keras.Input((None, None, 3), name="picture"), keras.Input((7,), name="plain")
    table = layers.Embedding(6, 2, mask_zero=True)(words)
    other = layers.Embedding(4, 2)(layers.Reshape((5,))(float_ids))
    cropped = layers.CenterCrop(48, 48)(layers.Rescaling(1 / 255)(picture))
    outputs = [table, other, layers.CenterCrop(32, 32)(picture), cropped, plain]
    model = keras.Model([words, float_ids, picture, plain], outputs)
    drawn = inputs.random_inputs(model, {"plain": (7,)})
    assert list(drawn) == ["words", "float_ids", "picture", "plain"]
    assert drawn["words"].max() < 6 and drawn["words"][0].min() >= 1 and (drawn["words"][1:] == 0).any()
    ids = drawn["float_ids"]
    assert ids.dtype == "float32" and (ids == np.floor(ids)).all() and ids.min() >= 0 and ids.max() < 4
    assert drawn["picture"].shape[1] >= 40 and drawn["picture"].min() >= 0 and 200 < drawn["picture"].max() <= 255
    assert len(np.unique(drawn["picture"][0, ..., 0])) > 0.99 * drawn["picture"][0, ..., 0].size  # no ties
    assert abs(drawn["plain"].mean()) < 1
    again = inputs.random_inputs(model, seed=1)
    assert not np.array_equal(again["plain"], drawn["plain"])


@pytest.mark.once
def test_open_sizes_grow_until_the_model_takes_them():
    x = keras.Input((None, None, 1), name="x")
    y = layers.AveragePooling2D(60)(x)
    drawn = inputs.random_inputs(keras.Model(x, layers.GlobalAveragePooling2D()(y)))
    assert drawn["x"].shape[1] == 64
    given = inputs.random_inputs(keras.Model(x, layers.GlobalAveragePooling2D()(y)), {"x": (70, 80, 1)})
    assert given["x"].shape[1:] == (70, 80, 1)


@pytest.mark.once
def test_batches_have_as_many_examples_as_normalizations_need():
    picture, numbers = keras.Input((8, 8, 1), name="picture"), keras.Input((3,), name="numbers")
    wide = layers.BatchNormalization()(picture)
    half = layers.BatchNormalization()(layers.AveragePooling2D((4, 2))(picture))  # 8 values of an example
    flat = layers.BatchNormalization(axis=1)(numbers)
    for outputs, expected in ((wide, 4), (half, 4), (flat, 16), ([wide, flat], 16)):
        drawn = inputs.random_inputs(keras.Model([picture, numbers], outputs))
        assert drawn["picture"].shape == (expected, 8, 8, 1) and drawn["numbers"].shape == (expected, 3)
    three = layers.BatchNormalization()(layers.Flatten()(layers.AveragePooling2D((2, 8))(picture)))
    nested = keras.Model(picture, three)
    assert inputs.random_inputs(keras.Model([picture, numbers], nested(picture)))["numbers"].shape == (16, 3)
    fixed = keras.Input(batch_shape=(2, 3), name="fixed")
    model = keras.Model([fixed, numbers], layers.BatchNormalization()(layers.Add()([fixed, numbers])))
    assert {x.shape for x in inputs.random_inputs(model).values()} == {(2, 3)}


@pytest.mark.once
def test_a_large_input_makes_the_batch_of_all_inputs_smaller():
    large, small = keras.Input((400, 400, 1), name="large"), keras.Input((3,), name="small")
    drawn = inputs.random_inputs(keras.Model([large, small], [layers.AveragePooling2D(50)(large), small]))
    assert drawn["large"].shape[0] == drawn["small"].shape[0] == 2


@pytest.mark.once
def test_inputs_that_do_not_fit(small, tmp_path):
    model = small_model()
    for arrays, words in (
        ({"imagee": np.ones(2), "b": np.ones(2)}, "have 'imagee', but the model takes image .*Did you mean 'image'"),
        ({"image": np.ones((1, 5, 6, 2))}, r"given as float64 1x5x6x2, but the model takes floats \?x6x6x2"),
        ({"image": np.array(["a"])}, "but the model takes"),
        ({"image": np.ones((0, 6, 6, 2))}, "was given as 0x6x6x2, without a number: give one example"),
        ({"image": np.full((1, 6, 6, 2), np.nan)}, "was given with NaN in it"),
    ):
        with pytest.raises(UserError, match=words):
            inputs.given_inputs(model, arrays)
    with pytest.raises(UserError, match="--input-shape names 'img'.*Did you mean 'image'"):
        inputs.random_inputs(model, {"img": (6, 6, 2)})
    with pytest.raises(UserError, match="gives 'image' 7x6x2 for an example, but the model takes 6x6x2"):
        inputs.random_inputs(model, {"image": (7, 6, 2)})
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    for file, words in (("broken.npz", "is no .npz file of arrays"), ("absent.npz", "There is no file of inputs")):
        with pytest.raises(UserError, match=words):
            certify(small, inputs=tmp_path / file, workers=local_workers())


# --------------------------------------------------------------------------------------------------------------- units


@pytest.mark.once
def test_units_are_the_largest_of_several():
    right, one = np.array([4.0, -1.0]), np.array([4.0, -1.0]) + 2.0**-22
    measured = units.measure([right], [0.0], {"a": [one]}, 24)["a"][0]
    assert measured == (1.0, 2.0**-24)  # half a spacing at 4 is 2^-22
    magnified = units.measure([right], units.changes([right], [right + 2.0**-20]), {"a": [one]}, 24)["a"][0]
    assert magnified[0] == 0.25
    drawn = units.changes([right], [right + 2.0**-17], is_draw=True)  # counts as ten units
    assert units.measure([right], drawn, {"a": [right + 2.0**-17]}, 24)["a"][0][0] == 10
    assert units.changes([right, right], [right * np.nan, right]).tolist() == [0, 0]
    both = units.measure([right], [0.0], {"a": [right + 2.0**-10], "b": [right + 2.0**-12]}, 24)
    assert both["b"][0][0] == 1 and both["a"][0][0] == 4
    assert units.measure([right], [0.0], {"a": [np.ones(3)]}, 24)["a"][0][0] == np.inf
    assert units.measure([right], [0.0], {"a": [right * np.nan]}, 24)["a"][0][0] == np.inf
    assert units.measure([right], [0.0], {"a": []}, 24)["a"][0][0] == np.inf


def test_perturbations_are_as_large_as_they_say():
    """Numbers and gradients are multiplied by the same 1 + d; whole numbers stay."""
    rng = np.random.default_rng(0)
    value = np.concatenate([rng.standard_normal(2000), [0.0, 1.0, -3.0, 2.0**30]])

    def compute(tensors, deltas):
        with float64_results():
            outputs = probes.perturb(tensors[0], "bfloat16", np.random.default_rng(1))
        return ops.sum(outputs), [outputs], []

    with float64_results():
        kept, (gradient,), *_ = probes.differentiate(compute, [ops.convert_to_tensor(value)], [], [])
    assert kept[0].dtype == "float64"
    relative, largest = (kept[0] / np.where(value, value, 1) - 1)[:2000], probes.PERTURBATION * 2.0**-8
    assert 0.99 * largest < abs(relative).max() <= largest and abs(relative.mean()) < 0.05 * largest
    np.testing.assert_allclose(gradient[:2000], 1 + relative, rtol=1e-12)
    np.testing.assert_array_equal(kept[0][2000:], value[2000:])
    np.testing.assert_array_equal(gradient[2000:], 1)


def other_sums(original, self, x, **kwargs):
    """The same up to rounding: the terms of a float32 sum are moved by two spacings, as another order would."""
    if "float32" not in str(x.dtype):
        return original(self, x, **kwargs)
    return original(self, x * ops.convert_to_tensor(np.array([1 - 2.0**-22, 1 + 2.0**-22], "float32")), **kwargs)


@pytest.mark.once
@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param([[4096.0], [-4095.0]], marks=pytest.mark.slow),  # loses 12 bits
        [[1.0, 1.0], [-1.0 + 2.0**-23, 0.0]],  # the first sum is so small that the ReLU after it may be off as well
    ],
)
def test_rounding_that_a_model_magnifies_is_no_fault(tmp_path, monkeypatch, kernel):
    x = keras.Input((2,), name="x")
    y = layers.Dense(len(kernel[0]), use_bias=False, name="sum")(x)
    model = keras.Model(x, layers.Dense(1, use_bias=False, name="out")(layers.ReLU(name="relu")(y)))
    model.set_weights([np.array(kernel), np.ones((len(kernel[0]), 1))])
    model_files.save_model(model, tmp_path / "model.keras")
    fault = changed_call(layers.Dense, "sum", other_sums)
    options = {"inputs": {"x": np.full((1, 2), 1.25, "float32")}, "workers": local_workers(jax=fault)}
    report = certify(tmp_path / "model.keras", **options)
    assert report.passed, str(report)
    monkeypatch.setattr(certificate, "DRAWS", 0)
    (finding,) = certify(tmp_path / "model.keras", **options).findings  # what the draws are for
    assert finding.backend == "jax" and finding.kind == ("forward" if len(kernel[0]) == 1 else "unexplained")


@pytest.mark.once
def test_layers_without_a_name_are_the_same_in_each_precision(tmp_path):
    """What a function builds twice in a process is not numbered on, so that its layers are found again."""
    (tmp_path / "build.py").write_text(
        "import keras\ndef build():\n    x = keras.Input((4,))\n"
        "    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(3)(x)))\n"
    )
    fault = changed_call(layers.Dense, "dense_1", lambda f, self, x, training=None: f(self, x) * 1.001)
    report = certify(f"{tmp_path}/build.py:build", workers=local_workers(torch=fault))
    assert [finding.layer for finding in report.findings] == ["dense_1"] and not report.notes, str(report)


# ---------------------------------------------------------------------------------------------------- planted faults


def changed_call(layer_class, name, change):
    """Context in which the layer of a name computes something else."""

    @contextlib.contextmanager
    def fault():
        original, is_own = layer_class.call, "call" in vars(layer_class)

        @functools.wraps(original)  # Keras looks at the names of the arguments
        def call(self, *args, **kwargs):
            if self.name == name:
                return change(original, self, *args, **kwargs)
            return original(self, *args, **kwargs)

        layer_class.call = call
        try:
            yield
        finally:
            setattr(layer_class, "call", original) if is_own else delattr(layer_class, "call")

    return fault


def grown_gradient(x):
    """The same value with a gradient that is off by 1 %."""
    return x * 1.01 - ops.stop_gradient(x * 0.01)


def other_momentum(original, self, *args, **kwargs):
    momentum, self.momentum = self.momentum, 0.5
    try:
        return original(self, *args, **kwargs)
    finally:
        self.momentum = momentum


@contextlib.contextmanager
def other_epsilon():
    """Epsilon after the bias correction."""
    original = keras.optimizers.Adam.apply

    def apply(self, *args, **kwargs):
        epsilon = self.epsilon
        self.epsilon = epsilon * (1 - self.beta_2) ** 0.5
        try:
            return original(self, *args, **kwargs)
        finally:
            self.epsilon = epsilon

    keras.optimizers.Adam.apply = apply
    try:
        yield
    finally:
        keras.optimizers.Adam.apply = original


FAULTS = {
    "forward": ("conv", changed_call(layers.Conv2D, "conv", lambda f, self, x: f(self, x) * 1.001)),
    "gradient": (
        "logits",
        changed_call(layers.Dense, "logits", lambda f, self, x, training=None: grown_gradient(f(self, x))),
    ),
    "dropout": ("drop", changed_call(layers.Dropout, "drop", lambda f, self, x, training: f(self, x, training=True))),
    "state": ("norm", changed_call(layers.BatchNormalization, "norm", other_momentum)),
    "optimizer": ("Adam", other_epsilon),
}


@pytest.mark.once
@pytest.mark.parametrize(
    "kind, backend",
    [("forward", "torch"), ("gradient", "jax"), ("dropout", "torch"), ("state", "tensorflow"), ("optimizer", "torch")],
)
def test_a_fault_is_named_at_its_layer(small, kind, backend):
    """Also on the backend whose float64 run is asked first ("torch"): it is outvoted."""
    layer, fault = FAULTS[kind]
    report = certify(small, workers=local_workers(**{backend: fault}))
    (finding,) = report.findings
    assert (finding.backend, finding.kind, finding.layer) == (backend, kind, layer), str(report)
    assert not report.passed and finding.units > 100
    assert [row.verdict for row in report.rows] == ["DIFFERS" if name == backend else "same" for name in NAMES]
    assert report.reference != backend or kind in ("gradient", "state")
    assert (finding.note != "") == (kind == "optimizer")
    assert str(finding) in str(report)


def centered_first(original, self, x, training, mask):
    """A batch normalization of x - 8192, the same in exact arithmetic, whose variance keeps its digits."""
    if not training:
        return original(self, x, training=training)
    outputs = original(self, x - 8192.0, training=training)
    self.moving_mean.assign(self.moving_mean + 8192.0 * (1.0 - self.momentum))
    return outputs


@pytest.mark.once
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Keras takes the variance of few digits on PyTorch")
def test_a_variance_that_loses_digits(tmp_path):
    """Of numbers far from zero Keras' batch normalization on PyTorch has no right digit in training."""
    x = keras.Input((3,), name="x")
    model_files.save_model(keras.Model(x, layers.BatchNormalization(name="norm")(x)), tmp_path / "model.keras")
    values = 8192 + np.random.default_rng(0).standard_normal((16, 3)).astype("float32")
    stable = changed_call(layers.BatchNormalization, "norm", centered_first)
    workers = local_workers(tensorflow=stable, jax=stable)
    report = certify(tmp_path / "model.keras", inputs={"x": values}, workers=workers)
    assert {(f.backend, f.layer, f.mode) for f in report.findings} == {("torch", "norm", "training")}, str(report)
    assert "takes the variance as E[x^2] - E[x]^2 there" in report.findings[0].note


@pytest.mark.once
def test_a_clean_run_in_several_precisions(small):
    lines = []
    report = certify(small, workers=local_workers(), precisions=["float32", "mixed_bfloat16"], log=lines.append)
    assert report.passed and not report.findings and lines == str(report).split("\n"), str(report)
    assert len(report.rows) == 6 and {row.precision for row in report.rows} == {"float32", "mixed_bfloat16"}
    for row in report.rows:
        assert set(row.units) == {"forward", "gradients", "states", "step"} and max(row.units.values()) < 25
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["verdict"] == "same"
    assert report.inputs == {"image": "4x6x6x2 float32"} and report.parameters == 265


@pytest.mark.once
def test_two_backends_that_differ_in_float64_too(small):
    workers = local_workers(jax=FAULTS["forward"][1])
    workers.pop("tensorflow")
    report = certify(small, workers=workers)
    assert [finding.layer for finding in report.findings] == ["conv"]
    assert any("which is right cannot be told of two" in note for note in report.notes)


@pytest.mark.once
def test_functions_layers_of_ones_own_and_bad_input(small, tmp_path):
    (tmp_path / "own_layers.py").write_text(
        "import keras\n@keras.saving.register_keras_serializable('test')\n"
        "class Block(keras.layers.Layer):\n"
        "    def __init__(self, **kwargs):\n        super().__init__(**kwargs)\n"
        "        self.dense = keras.layers.Dense(3, name='inner')\n"
        "    def call(self, x):\n        return keras.ops.tanh(self.dense(x))\n"
    )
    (tmp_path / "build.py").write_text(
        "import keras, own_layers\n"
        "def build():\n    x = keras.Input((4,), name='x')\n"
        "    return keras.Model(x, own_layers.Block(name='block')(x))\n"
        "def nothing():\n    return 3\n"
        "def fails():\n    raise ValueError('no data')\n"
        "def needs(a, b):\n    pass\n"
    )
    fault = changed_call(layers.Dense, "inner", lambda f, self, x, training=None: f(self, x) + 0.01)
    report = certify(f"{tmp_path}/build.py:build", workers=local_workers(jax=fault))
    assert [(f.backend, f.layer, f.kind) for f in report.findings] == [("jax", "block/inner", "forward")], str(report)
    for function, words in (
        ("nothing", "returns int: expected a built keras.Model"),
        ("fails", "raises ValueError: no data"),
        ("needs", "needs the arguments a, b"),
        ("absent", "has no function 'absent': it has"),
    ):
        with pytest.raises(UserError, match=words):
            certify(f"{tmp_path}/build.py:{function}", workers=local_workers())
    with pytest.raises(UserError, match="There is no Python file"):
        certify(f"{tmp_path}/absent.py:build", workers=local_workers())
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("read.me", "no model")
    with pytest.raises(UserError, match="other.keras is no model of Keras .*give one that model.save wrote"):
        certify(tmp_path / "other.keras", workers=local_workers())
    block = keras.saving.get_registered_object("test>Block")
    model_files.save_model(keras.Model(x := keras.Input((4,)), block(name="block")(x)), tmp_path / "own.keras")
    keras.saving.get_custom_objects().pop("test>Block")
    with pytest.raises(UserError, match="needs the custom class test>Block .*know: name the file .* with --setup"):
        certify(tmp_path / "own.keras", workers=local_workers())
    with pytest.raises(UserError, match="precision is 'float8'"):
        certify(small, precisions=["float8"], workers=local_workers())
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        certify(small, backends=["toch"])


@pytest.mark.once
def test_one_backend_alone(small):
    """Where no other shares them, the rounding of Adam's bias correction counts as well."""
    ids = keras.Input((6,), dtype="int32", name="ids")
    y = layers.Flatten(name="flat")(layers.Embedding(9, 3, name="table")(ids))
    model_files.save_model(keras.Model(ids, layers.Dense(2, name="out")(y)), small.parent / "ids.keras")
    report = certify(small.parent / "ids.keras", workers={"torch": local_workers()["torch"]})
    assert report.passed and report.rows[0].units["step"] < 25, str(report)
    assert "torch gives the numbers of its own float64 run" in str(report)


@pytest.mark.once
def test_states_of_recurrent_layers(tmp_path):
    x = keras.Input(batch_shape=(3, 5, 2), name="x")
    model_files.save_model(keras.Model(x, layers.LSTM(2, stateful=True, name="lstm")(x)), tmp_path / "lstm.keras")
    report = certify(tmp_path / "lstm.keras", workers=local_workers())
    assert report.passed and not report.notes and report.inputs == {"x": "3x5x2 float32"}, str(report)
    assert all(0 < row.units["states"] < 25 for row in report.rows)


@pytest.mark.once
def test_what_cannot_be_compared_is_said(tmp_path):
    x = keras.Input((4,), name="x")
    model_files.save_model(keras.Model(x, ops.log(layers.Dense(6, name="dense")(x))), tmp_path / "nan.keras")
    assert "Output 0 has values that are not finite" in str(certify(tmp_path / "nan.keras", workers=local_workers()))
    (tmp_path / "build.py").write_text(
        "import keras\ndef build():\n    x = keras.Input((4,), name='x')\n"
        "    return keras.Model(x, keras.layers.Dense(2, dtype='float32')(x))\n"
    )
    report = certify(f"{tmp_path}/build.py:build", workers=local_workers())
    assert report.passed and "Some layers have a dtype of their own" in str(report)


@pytest.mark.once
def test_a_backend_that_fails_leaves_the_others(small):
    @contextlib.contextmanager
    def broken():
        raise UserError("this JAX is broken.")
        yield

    report = certify(small, workers=local_workers(jax=broken))
    assert not report.passed and [row.verdict for row in report.rows] == ["same", "same", "does not run"]
    assert "jax: this JAX is broken." in str(report)
    with pytest.raises(UserError, match="this JAX is broken"):
        certify(small, workers=dict(list(local_workers(jax=broken).items())[1:2]))


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.heavy
def test_processes(small, tmp_path):
    """The real thing: three backends in processes, one of them with a fault that --setup plants."""
    (tmp_path / "setup.py").write_text(
        "import keras\n"
        "if keras.backend.backend() == 'jax':\n"
        "    original = keras.layers.Dense.call\n"
        "    keras.layers.Dense.call = lambda self, x, training=None: original(self, x) * 1.001\n"
    )
    assert certify(small).passed
    (finding,) = certify(small, setup=tmp_path / "setup.py").findings
    assert (finding.backend, finding.layer, finding.kind) == ("jax", "logits", "forward")
