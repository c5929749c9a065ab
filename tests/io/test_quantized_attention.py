"""Quantized models with attention, which Keras 3.15 saves and does not load."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from zoo.io.model_files import load_model, save_model


@pytest.mark.parametrize("mode", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_a_quantized_model_with_attention_reloads(mode, tmp_path):
    x = keras.Input((6, 8))
    y = layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    model = keras.Model(x, layers.Dense(3)(y))
    inputs = np.random.default_rng(0).standard_normal((2, 6, 8)).astype("float32")
    before = ops.convert_to_numpy(model(inputs))
    with pytest.warns(UserWarning, match="does not have a `quantize` method"):
        model.quantize(mode)
    expected = ops.convert_to_numpy(model(inputs))
    assert np.abs(expected - before).max() > 1e-5
    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(ops.convert_to_numpy(loaded(inputs)), expected, atol=1e-6)
    assert [weight.dtype for weight in loaded.weights] == [weight.dtype for weight in model.weights]
