"""Recurrent language models: parameters in closed form, one-token steps, carried states, no look at the future."""

import keras
import numpy as np
import pytest
from keras import ops

from zoo.compat.keras import skip_weight_init
from zoo.fast_paths.layers import use_fast_paths
from zoo.io import model_files
from zoo.models.rnn_language_model import (
    CELLS,
    decode_step_model,
    infer_config,
    recurrent_layers,
    reset_states,
    rnn_language_model,
)
from zoo.training.initial_weights import set_initial_weights

NUMPY = ops.convert_to_numpy
GATES = {"lstm": (4, 1), "gru": (3, 2), "simple": (1, 1)}  # gates, bias vectors a gate


def small(cell, seed=0, **options):
    options = {"vocabulary_size": 17, "embedding_dim": 12, "units": 12, "num_layers": 2} | options
    model = rnn_language_model(cell=cell, **options)
    set_initial_weights(model, seed=seed, initializer="recurrent")
    # Larger weights than at the start of training: differences would be too small to see otherwise.
    model.set_weights([2 * weight for weight in model.get_weights()])
    return model


def tokens(batch, length, seed=1):
    return np.random.default_rng(seed).integers(0, 17, (batch, length)).astype("int32")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters(cell, tied):
    v, d, h, layers = 65, 32, 32, 3
    model = rnn_language_model(
        cell=cell, vocabulary_size=v, embedding_dim=d, units=h, num_layers=layers, tie_embeddings=tied
    )
    gates, biases = GATES[cell]
    recurrent = sum(gates * ((width + h) * h + biases * h) for width in (d, h, h))
    assert model.count_params() == v * d + recurrent + (0 if tied else (h + 1) * v)


def test_sizes_of_the_published_files_fit():
    """At most 3.5 million parameters."""
    with skip_weight_init():
        lstm, gru = (rnn_language_model(cell=cell, vocabulary_size=65) for cell in ("lstm", "gru"))
    assert (lstm.count_params(), gru.count_params()) == (3_318_401, 2_501_249)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_step_model_equals_full_model(cell, tied):
    model, text = small(cell, tie_embeddings=tied), tokens(3, 16)
    step = decode_step_model(model)
    assert len(step.weights) == len(model.weights) and {id(w) for w in step.weights} == {id(w) for w in model.weights}
    states = [ops.zeros((3, state.shape[1])) for state in step.inputs[1:]]
    full = NUMPY(model(text))
    for t in range(text.shape[1]):
        logits, *states = step([ops.convert_to_tensor(text[:, t]), *states])
        np.testing.assert_allclose(NUMPY(logits), full[:, t], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_carried_states_equal_one_long_sequence(cell, fast):
    model, text = small(cell), tokens(3, 16)
    carrying = rnn_language_model(**infer_config(model), stateful_batch_size=3)
    for old, new in zip(model.trainable_variables, carrying.trainable_variables, strict=True):
        new.assign(old)
    if fast:
        use_fast_paths(carrying)
    full = NUMPY(model(text))
    for _ in range(2):
        parts = [NUMPY(carrying(text[:, begin : begin + 4])) for begin in range(0, 16, 4)]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=1e-5, rtol=0)
        reset_states(carrying)


@pytest.mark.parametrize("cell", ["lstm", "gru", pytest.param("simple", marks=pytest.mark.slow("tensorflow", "jax"))])
def test_states_are_carried_in_compiled_steps(cell):
    """Keras' own stateful layers forget them on JAX, since the states are not variables of the layer there."""
    model, text = small(cell), tokens(3, 16)
    carrying = rnn_language_model(**infer_config(model), stateful_batch_size=3)
    for old, new in zip(model.trainable_variables, carrying.trainable_variables, strict=True):
        new.assign(ops.copy(old))
    parts = [carrying.predict_on_batch(text[:, begin : begin + 8]) for begin in (0, 8)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), NUMPY(model(text)), atol=1e-5, rtol=0)
    carrying.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    reset_states(carrying)
    losses = [float(carrying.test_on_batch(text[:, b : b + 8], text[:, b : b + 8])) for b in (0, 8)]
    reset_states(carrying)
    trained = [float(carrying.train_on_batch(text[:, b : b + 8], text[:, b : b + 8])) for b in (0, 8)]
    np.testing.assert_allclose(trained, losses, atol=1e-5)
    assert abs(losses[1] - float(carrying.test_on_batch(text[:, 8:], text[:, 8:]))) > 1e-4  # other states by now


@pytest.mark.parametrize("cell", CELLS)
def test_no_look_at_the_future(cell):
    model, text = small(cell), tokens(3, 16)
    changed = text.copy()
    changed[:, 11] = (changed[:, 11] + 1) % 17
    before, after = NUMPY(model(text)), NUMPY(model(changed))
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert np.abs(before[:, 11] - after[:, 11]).min() > 0


@pytest.mark.parametrize("cell", CELLS)
def test_padding_behind_changes_nothing(cell):
    """A shorter text in a longer batch: what stands behind it has no influence."""
    model, text = small(cell), tokens(3, 16)
    padded = np.concatenate([text, np.zeros((3, 13), "int32")], axis=1)
    np.testing.assert_allclose(NUMPY(model(padded))[:, :16], NUMPY(model(text)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fast_paths_change_no_numbers(cell):
    """Logits and gradients of the stock layers, a training step each way."""
    stock, fast, text = small(cell), small(cell), tokens(3, 16)
    use_fast_paths(fast)
    assert all("inner_loop" in vars(layer) for layer in recurrent_layers(fast))
    np.testing.assert_allclose(NUMPY(fast(text)), NUMPY(stock(text)), atol=2e-6, rtol=0)
    for model in (stock, fast):
        model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.train_on_batch(text[:, :-1], text[:, 1:])
    for one, other in zip(stock.get_weights(), fast.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)  # with rate 1 the steps are the gradients


@pytest.mark.filterwarnings("ignore:.* does not support masking:UserWarning")  # of Keras 3.16, of what uses up a mask
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fast_paths_leave_other_layers_alone(cell):
    kind = CELLS[cell]
    x = keras.Input((5, 3))
    for layer in (kind(4, activation="relu"), kind(4, recurrent_dropout=0.1), kind(4, dtype="mixed_bfloat16")):
        model = keras.Model(x, layer(x))
        use_fast_paths(model)
        assert "inner_loop" not in vars(layer)
    masked = keras.Sequential([keras.Input((5, 3)), keras.layers.Masking(), kind(4)])
    batch = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    batch[0, 3:] = 0
    before = NUMPY(masked(batch))
    use_fast_paths(masked)
    np.testing.assert_allclose(NUMPY(masked(batch)), before, atol=1e-6)


def test_saved_file_needs_keras_alone(tmp_path):
    model, text = small("gru", tie_embeddings=True, dropout=0.2), tokens(2, 9)
    model_files.save_model(model, tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(NUMPY(loaded(text)), NUMPY(model(text)), atol=1e-6)
    assert infer_config(loaded) == infer_config(model)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cell": "rnn"}, "lstm, gru, simple, got 'rnn'"),
        ({"units": 0}, "units must be at least 1, got 0"),
        ({"dropout": 1.0}, r"\[0, 1\), got 1.0"),
        ({"tie_embeddings": True, "units": 8}, "got 12 and 8"),
    ],
)
def test_wrong_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        rnn_language_model(**({"cell": "lstm", "vocabulary_size": 17, "embedding_dim": 12, "units": 12} | options))
