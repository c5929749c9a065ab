"""Each stock layer with each of its options gives what Keras gives, by its fast path or the stock way."""

import keras
import numpy as np
import pytest
from keras import layers

from benchmarks.gradients import largest_error, outputs_and_gradients
from zoo import fast_paths

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
IMAGE, SEQUENCE = (9, 12, 6), (5, 6)
FIRST = "channels_first"

# (layer, shape of its inputs, reason in the report where it is left alone)
CASES = {
    "conv": (lambda: layers.Conv2D(4, (3, 5), padding="same", activation="relu"), IMAGE, ""),
    "conv, valid, no bias": (lambda: layers.Conv2D(4, 3, use_bias=False), IMAGE, ""),
    "conv, even kernel": (lambda: layers.Conv2D(4, (2, 4), padding="same"), IMAGE, ""),
    "conv, strides": (lambda: layers.Conv2D(4, (3, 2), strides=(2, 3), padding="same"), IMAGE, ""),
    "conv, dilation": (lambda: layers.Conv2D(4, 3, dilation_rate=(2, 3), padding="same"), IMAGE, ""),
    "conv, groups": (lambda: layers.Conv2D(4, 3, groups=2, activation="gelu"), IMAGE, ""),
    "conv, channels first": (lambda: layers.Conv2D(4, 3, data_format=FIRST), IMAGE, FIRST),
    "conv 1D": (lambda: layers.Conv1D(4, 3), SEQUENCE, "none for this class on this backend"),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, padding="same", activation="relu"), IMAGE, ""),
    "depthwise, multiplier": (lambda: layers.DepthwiseConv2D((3, 2), strides=2, depth_multiplier=2), IMAGE, ""),
    "depthwise, channels first": (lambda: layers.DepthwiseConv2D(3, data_format=FIRST), IMAGE, FIRST),
    "max pooling, overlapping": (lambda: layers.MaxPooling2D(3, strides=2), IMAGE, ""),
    "max pooling, padded": (lambda: layers.MaxPooling2D(2, padding="same"), IMAGE, "same padding"),
    "average pooling": (lambda: layers.AveragePooling2D((2, 3)), IMAGE, ""),
    "average pooling, padded": (lambda: layers.AveragePooling2D(2, padding="same"), IMAGE, "same padding"),
    "dense": (lambda: layers.Dense(3, activation="tanh"), SEQUENCE, ""),
    "dense, no bias": (lambda: layers.Dense(3, use_bias=False), (6,), ""),
    "dense, mixed precision": (
        lambda: layers.Dense(3, dtype="mixed_bfloat16"),
        (6,),
        "computes in bfloat16, with weights of float32",
    ),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (5, 3), bias_axes="d", activation="relu"), SEQUENCE, ""),
    "einsum, heads": (lambda: layers.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de"), SEQUENCE, ""),
    "einsum, from heads": (lambda: layers.EinsumDense("abcd,cde->abe", (9, 3), bias_axes="e"), IMAGE, ""),
    "einsum, ellipsis": (lambda: layers.EinsumDense("...x,xy->...y", 3), SEQUENCE, ""),
    "einsum, part of a bias": (lambda: layers.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="e"), SEQUENCE, ""),
    "einsum, over time": (
        lambda: layers.EinsumDense("abc,bd->adc", (3, 6)),
        SEQUENCE,
        "abc,bd->adc is no product over the last axes",
    ),
    "layer norm": (lambda: layers.LayerNormalization(epsilon=1e-2), SEQUENCE, ""),
    "layer norm, images": (lambda: layers.LayerNormalization(axis=3), IMAGE, ""),
    "layer norm, no scale": (lambda: layers.LayerNormalization(scale=False), SEQUENCE, ""),
    "layer norm, no center": (lambda: layers.LayerNormalization(center=False), SEQUENCE, ""),
    "layer norm, two axes": (lambda: layers.LayerNormalization(axis=(1, 2)), SEQUENCE, "over several axes"),
    "layer norm, first axis": (lambda: layers.LayerNormalization(axis=1), SEQUENCE, ""),
    "logits of an embedding": (lambda: layers.ReversibleEmbedding(9, 6), SEQUENCE, ""),
    "logits, not tied": (lambda: layers.ReversibleEmbedding(9, 6, tie_weights=False), SEQUENCE, ""),
    "logits, soft cap": (lambda: layers.ReversibleEmbedding(9, 6, logit_soft_cap=2.0), SEQUENCE, "a soft cap"),
    "logits, half": (lambda: layers.ReversibleEmbedding(9, 6, reverse_dtype="bfloat16"), SEQUENCE, "a reverse_dtype"),
    "dropout": (lambda: layers.Dropout(0.3, seed=1), IMAGE, ""),
    "dropout, rate of no exact float": (lambda: layers.Dropout(1 / 3, seed=2), IMAGE, ""),
    "dropout, nothing": (lambda: layers.Dropout(0.0, seed=1), SEQUENCE, "drops nothing, or all"),
    "dropout, no seed": (lambda: layers.Dropout(0.3), SEQUENCE, "PyTorch's own dropout, without a seed"),
    "dropout, columns": (lambda: layers.Dropout(0.5, noise_shape=(None, 1, 6), seed=1), SEQUENCE, "a noise_shape"),
    "batch norm": (lambda: layers.BatchNormalization(momentum=0.6, epsilon=1e-2), IMAGE, ""),
    "batch norm, no scale": (lambda: layers.BatchNormalization(scale=False), IMAGE, ""),
    "batch norm, sequence": (lambda: layers.BatchNormalization(scale=False), SEQUENCE, ""),
    "batch norm, no center": (lambda: layers.BatchNormalization(center=False), (6,), ""),
    "batch norm, first axis": (lambda: layers.BatchNormalization(axis=1), IMAGE, ""),
    "batch norm, frozen": (lambda: layers.BatchNormalization(trainable=False), IMAGE, ""),
    "group norm": (lambda: layers.GroupNormalization(3), IMAGE, ""),
    "group norm, sequence": (lambda: layers.GroupNormalization(2), SEQUENCE, ""),
    "group norm, vector": (lambda: layers.GroupNormalization(2, scale=False, center=False), (6,), ""),
    "group norm, no scale": (lambda: layers.GroupNormalization(2, scale=False), IMAGE, "scale or center alone"),
    "group norm, first axis": (lambda: layers.GroupNormalization(3, axis=1), IMAGE, "not over the last axis"),
}


if BACKEND == "torch":  # where Keras calls PyTorch's own already
    CASES = {name: case for name, case in CASES.items() if not name.startswith("layer norm")}
if BACKEND != "torch":  # where the other layers have no path; on JAX, that of maximum pooling is in test_layers.py
    names = {"tensorflow": ("batch norm",), "jax": ("conv, ", "dense", "einsum", "layer norm", "logits")}[BACKEND]
    CASES = {name: case for name, case in CASES.items() if name.startswith(names)}
    if BACKEND == "jax":
        CASES["conv, valid, no bias"] = (*CASES["conv, valid, no bias"][:2], "no bias")
    for name in ("batch norm, sequence", "batch norm, no center", "batch norm, first axis"):
        if name in CASES:
            CASES[name] = (*CASES[name][:2], "not over the last of four axes")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_each_layer_gives_the_same(case, training):
    make, shape, reason = CASES[case]
    inputs = keras.Input(shape)
    layer = make()
    # Scaled before, so that the gradient of the layer's inputs counts too.
    arguments = {"reverse": True} if case.startswith("logits") else {}
    model = keras.Model(inputs, layer(layers.Dense(shape[-1], name="before")(inputs), **arguments))
    for weight in model.weights:
        weight.assign(RNG.uniform(0.5, 1.5, weight.shape) * RNG.choice([1, 1, 1, -1], weight.shape))
    for variance in (v for v in model.non_trainable_variables if v.name == "moving_variance"):
        variance.assign(np.abs(variance))
    x = RNG.normal(size=(4, *shape)).astype("float32")
    stock = outputs_and_gradients(model, x, training=training)
    fast_paths.use_fast_paths(model)
    (row,) = (row for row in fast_paths.report(model).layers if row.path in (layer.path, layer.name))
    assert (row.reason, row.is_fast) == (reason, not reason)
    fast = outputs_and_gradients(model, x, training=training)
    for part, references in zip(fast, stock, strict=True):
        if references:
            assert [a.shape for a in part] == [b.shape for b in references]
            assert largest_error(part, references) < 1e-5
    if case.startswith("batch norm") and training and layer.trainable:
        assert largest_error([np.array(v) for v in model.non_trainable_variables], fast[2]) > 0.01  # they moved


def test_a_batch_of_one_value_has_no_variance():
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization()])
    x = RNG.normal(size=(1, 3)).astype("float32")
    stock = outputs_and_gradients(model, x)
    fast_paths.use_fast_paths(model)
    fast = outputs_and_gradients(model, x)
    np.testing.assert_allclose(fast[0], stock[0], atol=1e-5)
    np.testing.assert_allclose(fast[2], stock[2], atol=1e-6)


def test_a_mask_reaches_batch_normalization():
    model = keras.Sequential([keras.Input((4, 3)), layers.Masking(), layers.BatchNormalization()])
    x = RNG.normal(size=(3, 4, 3)).astype("float32")
    x[0, 2:] = 0
    stock = outputs_and_gradients(model, x)
    fast_paths.use_fast_paths(model)
    for part, references in zip(outputs_and_gradients(model, x), stock):
        assert largest_error(part, references) < 1e-5


@pytest.mark.skipif(BACKEND != "jax", reason="the other backends compute it so")
@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_as_an_operation_of_the_graph(approximate):
    inputs = keras.Input((6,))
    inner = keras.Model(inputs, keras.ops.gelu(layers.Dense(64)(inputs), approximate=approximate))
    model = keras.Model(inputs, inner(inputs))
    x = 3 * RNG.normal(size=(50, 6)).astype("float32")
    stock = outputs_and_gradients(model, x)
    fast_paths.use_fast_paths(model)
    (operation,) = (one for one in inner.operations if type(one).__name__ == "Gelu")
    fast = outputs_and_gradients(model, x)
    for part, references in zip(fast[:2], stock[:2], strict=True):
        assert largest_error(part, references) < 1e-6
    differs = any((a != b).any() for a, b in zip(fast[0], stock[0]))
    assert differs == (not approximate)
    fast_paths.undo(model)
    assert "call" not in vars(operation)
