"""Compiled functions give what the functions give, for any shapes, and see weights that change."""

import keras
import numpy as np
import pytest

from zoo.fast_paths.compile import compiled


@pytest.mark.parametrize("traced", [True, False])
def test_a_compiled_function_gives_the_same(traced):
    model = keras.Sequential(
        [keras.Input((None, 3)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dropout(0.5)]
    )
    rng = np.random.default_rng(0)

    def function(pair, more, number):
        first, second = pair
        y = model(first, training=False) * number
        return [y, (second + y, *more)]

    fast = compiled(function, model.variables, traced=traced)
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
