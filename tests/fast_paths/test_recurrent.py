"""LSTM and GRU with every option: `use_fast_paths` changes no output, no gradient and no state."""

import re

import keras
import numpy as np
import pytest
from keras import layers

from benchmarks.gradients import largest_error, outputs_and_gradients
from zoo import fast_paths
from zoo.errors import UserError
from zoo.training.optimizers import TorchAdam

UNITS, STEPS, BATCH, WIDTH = 4, 5, 5, 2
RNG = np.random.default_rng(0)
MASK = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
RAISES_IN_TRAINING = "dropout for each gate"  # in Keras 3.15, whose own code expects one mask

# name: (options of the layer, what the model has besides, reason of the report where it is left alone)
CASES = {
    "plain": ({}, {}, ""),
    "last output": ({"return_sequences": False}, {}, ""),
    "states": ({"return_state": True}, {}, ""),
    "last output and states": ({"return_sequences": False, "return_state": True}, {}, ""),
    "initial states": ({"return_state": True}, {"initial": True}, ""),
    "go_backwards": ({"go_backwards": True, "return_state": True}, {"initial": True}, ""),
    "unroll": ({"unroll": True}, {}, ""),
    "no bias": ({"use_bias": False}, {}, ""),
    "dropout": ({"dropout": 0.5}, {}, ""),
    "dropout, backwards, mask": ({"dropout": 0.5, "go_backwards": True}, {"mask": True}, ""),
    "implementation 1": ({"implementation": 1}, {}, ""),
    "mask": ({"return_state": True}, {"mask": True}, ""),
    "mask, last output": ({"return_sequences": False}, {"mask": True}, ""),
    "mask, backwards": ({"go_backwards": True, "return_state": True}, {"mask": True}, ""),
    "mask, initial states": ({"return_state": True}, {"mask": True, "initial": True}, ""),
    "mask, unroll": ({"unroll": True, "return_state": True}, {"mask": True, "initial": True}, ""),
    "mask, no bias": ({"use_bias": False}, {"mask": True}, ""),
    "mask, zeros": ({"zero_output_for_mask": True}, {"mask": True}, ""),
    "bidirectional": ({}, {"bidirectional": True}, ""),
    "bidirectional, mask": ({"return_state": True}, {"bidirectional": True, "mask": True}, ""),
    "bidirectional, last output, mask": ({"return_sequences": False}, {"bidirectional": True, "mask": True}, ""),
    "other activation": ({"activation": "relu"}, {}, "an activation other than tanh"),
    "other gates": ({"recurrent_activation": "hard_sigmoid"}, {}, "a recurrent_activation other than sigmoid"),
    "dropout for each gate": ({"dropout": 0.5, "implementation": 1}, {}, "dropout with a mask for each gate"),
    "recurrent dropout": ({"recurrent_dropout": 0.5}, {}, "recurrent_dropout"),
    "mixed precision": ({"dtype": "mixed_bfloat16"}, {}, "computes in bfloat16, with weights of float32"),
    "float64": ({"dtype": "float64"}, {}, ""),
    "reset before": ({"reset_after": False}, {}, "reset_after=False"),
}


def model_and_inputs(kind, options, *, initial=False, mask=False, bidirectional=False):
    options = {"return_sequences": True, "seed": 1} | options
    sequences = keras.Input((STEPS, WIDTH), batch_size=BATCH)
    inputs, arrays = [sequences], [RNG.normal(size=(BATCH, STEPS, WIDTH)).astype("float32")]
    arguments = {}
    if mask:
        inputs.append(keras.Input((STEPS,), batch_size=BATCH, dtype="bool"))
        arrays.append(np.array(MASK, bool))
        arguments["mask"] = inputs[-1]
    if initial:
        states = [keras.Input((UNITS,), batch_size=BATCH) for _ in range(2 if kind is layers.LSTM else 1)]
        arrays += [RNG.normal(size=(BATCH, UNITS)).astype("float32") for _ in states]
        inputs += states
        arguments["initial_state"] = states
    layer = kind(UNITS, **options)
    layer = layers.Bidirectional(layer) if bidirectional else layer
    # A layer before it, for the gradient of its inputs.
    outputs = layer(layers.Dense(WIDTH)(sequences), **arguments)
    model = keras.Model(inputs, outputs)
    for weight in model.weights:
        if "seed_generator" not in weight.path:
            weight.assign(RNG.normal(size=weight.shape))
    return model, arrays


def recurrent_rows(model):
    return [row for row in fast_paths.report(model).layers if row.kind in ("LSTM", "GRU")]


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
@pytest.mark.parametrize("case", [case for case in CASES if case != "float64" or keras.backend.backend() != "jax"])
@pytest.mark.parametrize("training", [True, False])
def test_every_option_gives_the_same(kind, case, training):
    options, besides, reason = CASES[case]
    if "reset_after" in options and kind is layers.LSTM:
        pytest.skip("an option of GRU")
    if case == RAISES_IN_TRAINING if training else "dropout" not in case and keras.backend.backend() != "torch":
        pytest.skip("raises in Keras, or is the same as in training, and compiled")
    model, arrays = model_and_inputs(kind, options, **besides)
    stock = outputs_and_gradients(model, arrays, training=training)
    fast_paths.use_fast_paths(model)
    assert all(row.reason == reason and row.is_fast == (not reason) for row in recurrent_rows(model))
    assert len(recurrent_rows(model)) == (2 if besides.get("bidirectional") else 1)
    fast = outputs_and_gradients(model, arrays, training=training)
    for a, b in zip(fast[0], stock[0], strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
    for part, references in zip(fast, stock):
        if references:
            assert largest_error(part, references) < 1e-5
    assert np.abs(stock[1][-1]).max() > 0  # something can differ


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
@pytest.mark.parametrize("mask", [False, True])
def test_a_stateful_layer_goes_on_where_it_ended(kind, mask):
    """Beside a stock layer that is given the states; Keras 3.15 on PyTorch cannot train a stateful one."""
    carrying, arrays = model_and_inputs(kind, {"stateful": True}, mask=mask)
    given, more = model_and_inputs(kind, {"return_state": True}, mask=mask, initial=True)
    given.set_weights(carrying.get_weights())
    fast_paths.use_fast_paths(carrying)
    states, variables = more[len(arrays) :], carrying.layers[-1].states
    for variable, state in zip(variables, states):
        variable.assign(state)
    for _ in range(2):
        outputs, gradients, _ = outputs_and_gradients(carrying, arrays)
        (_, expected_gradients, _) = outputs_and_gradients(keras.Model(given.inputs, given.outputs[0]), arrays + states)
        expected, *states = map(keras.ops.convert_to_numpy, given(arrays + states, training=True))
        assert largest_error(outputs, [expected]) < 1e-5
        assert largest_error(gradients, expected_gradients) < 1e-5
        if keras.backend.backend() != "jax":  # where Keras does not count the states among a model's variables
            assert largest_error([np.array(v) for v in variables], states) < 1e-5
        else:
            for variable, state in zip(variables, states):
                variable.assign(state)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the order in memory")
@pytest.mark.parametrize("kind", ["zoo", "keras"])
def test_training_with_kernels_in_another_order_in_memory(kind):
    """An LSTM's kernels are kept as oneDNN takes them, which a fused optimizer must not mix up."""
    weights = []
    for fast in (False, True):
        inputs = keras.Input((STEPS, WIDTH))
        model = keras.Model(inputs, layers.Dense(2)(layers.LSTM(UNITS)(inputs)))
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
        model.compile(TorchAdam(0.01) if kind == "zoo" else keras.optimizers.Adam(0.01), loss="mse")
        x, y = rng.normal(size=(BATCH, STEPS, WIDTH)).astype("float32"), np.ones((BATCH, 2), "float32")
        for step in range(4):
            if fast and step == 1:  # when the moments are there
                fast_paths.use_fast_paths(model)
            model.train_on_batch(x, y)
        kernels = model.layers[1].cell.kernel, model.layers[1].cell.recurrent_kernel
        assert all(kernel.value.t().is_contiguous() == fast for kernel in kernels)
        weights.append(model.get_weights())
    for a, b in zip(*weights):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def second_derivatives(model, x):
    """Gradients, by the weights and the inputs, of the sum of squares of the gradient of a sum of outputs."""
    numbers = keras.ops.convert_to_tensor(np.random.default_rng(1).normal(size=(BATCH, STEPS, UNITS)), "float32")
    weights = [weight.value for weight in model.trainable_variables]
    if keras.backend.backend() == "jax":
        import jax

        others = [variable.value for variable in model.non_trainable_variables]

        def penalty(values, x):
            def outputs(x):
                return (model.stateless_call(values, others, x)[0] * numbers).sum()

            return (jax.grad(outputs)(x) ** 2).sum()

        gradients, of_x = jax.grad(penalty, argnums=(0, 1))(weights, x)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)
        def run(x):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    outputs = tf.reduce_sum(model(x) * numbers)
                penalty = tf.reduce_sum(inner.gradient(outputs, x) ** 2)
            return outer.gradient(penalty, [weights, x])

        gradients, of_x = run(tf.constant(x))
    else:
        import torch

        x = torch.tensor(x, requires_grad=True)
        (first,) = torch.autograd.grad((model(x) * numbers).sum(), x, create_graph=True)
        *gradients, of_x = torch.autograd.grad((first**2).sum(), [*weights, x], materialize_grads=True)
    return [keras.ops.convert_to_numpy(part) for part in (*gradients, of_x)]


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
@pytest.mark.parametrize("mask", [False, True])
def test_second_derivatives_are_right_or_refused(kind, mask):
    inputs = keras.Input((STEPS, WIDTH))
    x = layers.Masking()(inputs) if mask else inputs
    model = keras.Model(inputs, kind(UNITS, return_sequences=True)(x))
    arrays = RNG.normal(size=(BATCH, STEPS, WIDTH)).astype("float32")
    arrays[0, 2:] = 0
    stock = second_derivatives(model, arrays)
    fast_paths.use_fast_paths(model)
    try:
        fast = second_derivatives(model, arrays)
    except (RuntimeError, UserError) as error:  # of PyTorch's own LSTM, of the loops of this project
        assert keras.backend.backend() == "torch" and re.search("mkldnn_rnn_layer_backward|undo", str(error))
    else:
        assert largest_error(fast, stock) < 1e-5
