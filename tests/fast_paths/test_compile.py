"""Compiled functions give what the functions give, for any shapes, and see weights that change."""

import concurrent.futures
import logging

import keras
import numpy as np
import pytest
from keras import layers

from zoo.fast_paths import compile_function, inference_function


@pytest.mark.parametrize("trace", [True, False])
def test_a_compiled_function_gives_the_same(trace):
    model = keras.Sequential(
        [keras.Input((None, 3)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dropout(0.5)]
    )
    rng = np.random.default_rng(0)

    def function(pair, more, number):
        first, second = pair
        y = model(first, training=False) * number
        return [y, (second + y, *more)]

    fast = compile_function(function, model.variables, trace=trace)
    tensor = keras.ops.convert_to_tensor
    for rows in (2, 2, 2, 5, 2):
        for weight in model.trainable_weights:
            weight.assign(rng.normal(size=weight.shape))
        first, second = (rng.normal(size=(rows, 7, width)).astype("float32") for width in (3, 4))
        for more in ((), (np.full((2,), rows, "float32"),)):
            args = (tensor(first), tensor(second)), tuple(map(tensor, more)), tensor(np.float32(rows))
            y, (added, *kept) = keras.tree.map_structure(keras.ops.convert_to_numpy, fast(*args))
            kernel, bias = model.get_weights()[:2]
            expected = np.tanh(first @ kernel + bias) * rows
            np.testing.assert_allclose(y, expected, atol=1e-5)
            np.testing.assert_allclose(added, second + expected, atol=1e-5)
            assert len(kept) == len(more) and all((a == b).all() for a, b in zip(kept, more))


def test_shapes_and_dtypes_by_the_dozen_without_a_warning():
    """TensorFlow warns of retracing on its own logger, on the screen of a user who has done nothing wrong."""
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logger = logging.getLogger("tensorflow")
    logger.addHandler(handler)
    try:
        for jit_compile in (False, True):
            double = compile_function(lambda *x: [part * 2 for part in x], [], jit_compile=jit_compile)
            for size in [*range(1, 13), *range(1, 13)]:
                for dtype in ("float32", "uint8"):
                    (y,) = double(keras.ops.ones((size,), dtype))
                    assert y.shape == (size,) and keras.backend.standardize_dtype(y.dtype) == dtype
    finally:
        logger.removeHandler(handler)
    assert not logged


def two_branches(dropout=0.5):
    """A model with a nested model called twice, two inputs, and a dictionary of outputs."""
    inner_image = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inner_image)
    inner = keras.Model(inner_image, layers.BatchNormalization()(layers.GroupNormalization(2)(x)), name="inner")
    image, number = keras.Input((8, 8, 3), name="image"), keras.Input((), name="number")
    x = layers.Conv2D(4, 3, padding="same")(image)
    x = inner(inner(x)) + keras.ops.reshape(number, (-1, 1, 1, 1))
    pooled = layers.Dropout(dropout)(layers.Flatten()(layers.MaxPooling2D(2)(x)))
    return keras.Model([image, number], {"logits": layers.Dense(5)(pooled), "features": x})


def inputs_of_size(batch_size):
    rng = np.random.default_rng(batch_size)
    return [rng.normal(size=(batch_size, *shape)).astype("float32") for shape in ((8, 8, 3), ())]


def assert_gives_the_same(function, model, inputs):
    outputs, expected = function(inputs), model(inputs, training=False)
    assert outputs.keys() == expected.keys()
    for name in expected:
        outputs[name], expected[name] = map(keras.ops.convert_to_numpy, (outputs[name], expected[name]))
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5 * max(1, np.abs(expected[name]).max()))


def test_an_inference_function_leaves_the_model_as_it_is_and_sees_training():
    model = two_branches()
    before = [dict(vars(layer)) for layer in [model, *model.layers]]
    function = inference_function(model)
    for batch_size in (2, 2, 2, 3):
        assert_gives_the_same(function, model, inputs_of_size(batch_size))
    for layer, attributes in zip([model, *model.layers], before, strict=True):
        assert vars(layer).keys() - attributes.keys() <= {"_input_spec"} and "call" not in vars(layer)
    model.compile(keras.optimizers.SGD(0.1), loss={"logits": "mse", "features": "mse"})
    for _ in range(2):
        x = inputs_of_size(2)
        targets = {"logits": np.ones((2, 5)), "features": np.zeros((2, 8, 8, 4))}
        weights = model.get_weights()
        model.fit(x, targets, epochs=1, verbose=0)
        assert any((a != b).any() for a, b in zip(weights, model.get_weights()))
        for batch_size in (2, 3):
            assert_gives_the_same(function, model, inputs_of_size(batch_size))


def test_an_inference_function_may_be_called_from_several_threads():
    model = two_branches()
    function = inference_function(model)
    sizes = [1 + place % 3 for place in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda size: function(inputs_of_size(size))["logits"], sizes))
    for size, logits in zip(sizes, outputs):
        expected = keras.ops.convert_to_numpy(model(inputs_of_size(size), training=False)["logits"])
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(keras.ops.convert_to_numpy(logits), expected, atol=1e-5 * scale)


def test_masks_reach_the_layers_that_obey_them():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Dense(4)(layers.Embedding(9, 4, mask_zero=True)(tokens))
    model = keras.Model(tokens, layers.GlobalAveragePooling1D()(x))
    ids = np.array([[3, 4, 0, 0], [1, 2, 3, 4]], "int32")
    outputs = inference_function(model)(ids), model(ids)
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, outputs), atol=1e-6)
