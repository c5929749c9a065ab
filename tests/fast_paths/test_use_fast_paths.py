"""`use_fast_paths` on models of any kind: what it takes and leaves, what works after it, and how it is undone."""

import keras
import numpy as np
import pytest
from keras import layers

import zoo
from benchmarks.gradients import largest_error, outputs_and_gradients
from zoo import fast_paths
from zoo.errors import UserError
from zoo.fast_paths.paths import FastCall

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
LEFT_ALONE = "none for this class on this backend"


class DoubledDense(layers.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


class Subclassed(keras.Model):
    """Layers as attributes and in a list; one is called twice, one model is nested."""

    def __init__(self):
        super().__init__()
        self.shared = layers.Dense(6, activation="relu", name="shared")
        self.inner = keras.Sequential(
            [layers.LSTM(5, return_sequences=True, name="rnn"), layers.Dense(6)], name="inner"
        )
        self.heads = [layers.Dense(2, name="first"), DoubledDense(2, name="second")]

    def call(self, inputs, training=None):
        x = self.inner(self.shared(self.shared(inputs)))
        return [head(x) for head in self.heads]


def batch(*shape):
    return RNG.normal(size=shape).astype("float32")


def built():
    model, x = Subclassed(), batch(3, 4, 6)
    model(x)
    return model, x


def fast_methods(model):
    return [
        value
        for layer in fast_paths.layers.flatten_layers(model)
        for value in vars(layer).values()
        if isinstance(value, FastCall)
    ]


def small_classifier():
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(9, 6)(tokens)
    x = layers.LSTM(6)(x)
    return keras.Model(tokens, layers.Dense(3)(x))


def test_the_front_door_has_it():
    assert zoo.use_fast_paths is fast_paths.use_fast_paths


def test_a_subclassed_model_with_shared_and_nested_layers():
    model, x = built()
    stock = outputs_and_gradients(model, x)
    zoo.use_fast_paths(model)
    for part, references in zip(outputs_and_gradients(model, x)[:2], stock):
        assert largest_error(part, references) < 1e-5
    rows = {row.path.split("/")[-1]: row for row in fast_paths.report(model).layers}
    assert rows["rnn"].is_fast
    assert rows["shared"].is_fast == rows["first"].is_fast == (BACKEND != "tensorflow")
    assert rows["second"].reason == ("a class derived from Dense" if BACKEND != "tensorflow" else LEFT_ALONE)


def test_undo_leaves_nothing_behind():
    model, x = built()
    model.compile("adam", "mse")
    before = [set(vars(layer)) for layer in fast_paths.layers.flatten_layers(model)]
    optimizer_before = set(vars(model.optimizer))
    zoo.use_fast_paths(model)
    zoo.use_fast_paths(model)  # twice is once
    assert fast_methods(model)
    fast_paths.undo(model)
    assert not fast_methods(model)
    assert [set(vars(layer)) for layer in fast_paths.layers.flatten_layers(model)] == before
    assert set(vars(model.optimizer)) == optimizer_before
    assert {row.reason for row in fast_paths.report(model).layers if row.kind == "LSTM"} == {
        "eligible: call zoo.use_fast_paths(model)"
    }
    fast_paths.undo(keras.Sequential([keras.Input((2,)), layers.Dense(1)]))  # nothing to undo, not compiled


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(UserError, match="not built"):
        zoo.use_fast_paths(Subclassed())


def test_the_report_as_a_table():
    model = small_classifier()
    model.compile("adam", "mse")
    zoo.use_fast_paths(model)
    report = fast_paths.report(model)
    assert report.backend == BACKEND and {row.kind for row in report.layers} == {
        "Embedding",
        "LSTM",
        "LSTMCell",
        "Dense",
    }
    lines = str(report).splitlines()
    assert len(lines) == 1 + 1 + 4 + 1
    assert any(line.split()[:2] == ["1", "LSTM"] and "gradient by hand" in line for line in lines)
    assert any(line.split()[:2] == ["1", "Embedding"] and line.endswith(f"- {LEFT_ALONE}") for line in lines)
    adam = {"torch": "fused Adam", "tensorflow": "ResourceApplyAdam", "jax": "- XLA fuses its update already"}[BACKEND]
    assert lines[-1].split() == ["Adam", *adam.split()]
    model.compile("sgd", "mse")
    assert "not Keras' Adam" in fast_paths.report(model).optimizer.reason


COMPILED = pytest.mark.slow("tensorflow", "jax")
OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), epsilon=1e-3),
    "AdamW, clipped": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.1),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}
if BACKEND != "jax":  # where Keras 3.15 fails in a second `fit` with averages
    OPTIMIZERS["averaged"] = lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=2)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=[] if name == "Adam" else COMPILED) for name, make in OPTIMIZERS.items()],
)
def test_fit_is_the_same(make):
    """Through `fit`, with Keras' own optimizer."""
    x, y = RNG.integers(0, 9, (8, 4)), RNG.integers(0, 3, 8)
    initial, results = small_classifier().get_weights(), []
    for fast in (False, True):
        model = small_classifier()
        model.set_weights(initial)
        model.compile(make(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0)  # compiled, where it is, before the next line
        if fast:
            zoo.use_fast_paths(model)
            fused = fast_paths.report(model).optimizer.is_fast
            assert fused == (BACKEND != "jax" and not model.optimizer.amsgrad)
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        loss = model.evaluate(x, y, verbose=0)
        results.append([loss, *model.get_weights(), *(np.array(v) for v in model.optimizer.variables)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * max(1, np.abs(a).max()))
    assert max(np.abs(a - b).max() for a, b in zip(results[1][1:], initial)) > 0.01


def test_the_file_is_that_of_the_stock_model(tmp_path):
    model = small_classifier()
    model.compile("adam", "mse")
    config = model.get_config()
    zoo.use_fast_paths(model)
    model.fit(RNG.integers(0, 9, (4, 4)), batch(4, 3), verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert model.get_config() == config and not fast_methods(again)
    assert type(again.optimizer) is type(model.optimizer) and int(again.optimizer.iterations) == 1
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not fast_methods(keras.models.clone_model(model))


def convolutional():
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu")(image)
    return keras.Model(image, layers.Dense(3)(layers.EinsumDense("abcd,cde->abe", (4, 5), bias_axes="e")(x)))


def test_lora_after_it():
    model, x = convolutional(), batch(2, 6, 6, 3)
    zoo.use_fast_paths(model)
    for layer in model.layers[1:]:
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(RNG.normal(size=layer.lora_kernel_b.shape))
    fast = outputs_and_gradients(model, x)
    fast_paths.undo(model)
    stock = outputs_and_gradients(model, x)
    for part, references in zip(fast[:2], stock):
        assert len(part) and largest_error(part, references) < 1e-5


@pytest.mark.filterwarnings("ignore:.* does not have a `quantize` method:UserWarning")
def test_quantize_after_it():
    model, x = convolutional(), batch(2, 6, 6, 3)
    stock = keras.models.clone_model(model)
    stock.set_weights(model.get_weights())
    zoo.use_fast_paths(model)
    model(x)
    for one in (stock, model):
        one.quantize("int8")
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(one(x)) for one in (model, stock)), atol=1e-5)
    dense = next(row for row in fast_paths.report(model).layers if row.kind == "Dense")
    assert dense.reason == ("is quantized" if BACKEND != "tensorflow" else LEFT_ALONE)


def test_a_layer_that_is_changed_afterwards_takes_the_stock_way():
    model, x = small_classifier(), RNG.integers(0, 9, (2, 4))
    zoo.use_fast_paths(model)
    recurrent = next(layer for layer in model.layers if isinstance(layer, layers.LSTM))
    recurrent.cell.activation = keras.activations.relu
    row = next(row for row in fast_paths.report(model).layers if row.kind == "LSTM")
    assert row.reason == "an activation other than tanh"
    fast = keras.ops.convert_to_numpy(model(x))
    fast_paths.undo(model)
    np.testing.assert_allclose(fast, keras.ops.convert_to_numpy(model(x)), atol=1e-6)


def test_a_call_that_somebody_else_replaced_stays():
    model = small_classifier()
    recurrent = next(layer for layer in model.layers if isinstance(layer, layers.LSTM))
    mine = vars(recurrent)["inner_loop"] = recurrent.inner_loop
    zoo.use_fast_paths(model)
    fast_paths.undo(model)
    assert vars(recurrent)["inner_loop"] is mine
    row = next(row for row in fast_paths.report(model).layers if row.kind == "LSTM")
    assert row.reason == "its inner_loop has been replaced"
