"""Models that the zoo did not build: `use_fast_paths` changes neither outputs nor gradients."""

import keras
import numpy as np
import pytest
from keras import layers

from benchmarks.gradients import largest_error, outputs_and_gradients
from zoo import fast_paths

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
PARTS = {"torch": "Conv2D", "tensorflow": "BatchNormalization"}  # on JAX, none of these models has a layer with a path


def assert_the_same(model, inputs, *kinds, training_tolerance=1e-5):
    """Outputs, gradients and moving averages, in inference and in training."""
    stock = [outputs_and_gradients(model, inputs, training=training) for training in (False, True)]
    fast_paths.use_fast_paths(model)
    assert set(kinds) <= {row.kind for row in fast_paths.report(model).layers if row.is_fast}
    fast = [outputs_and_gradients(model, inputs, training=training) for training in (False, True)]
    for part, references in zip(fast[0][:2], stock[0]):
        assert largest_error(part, references) < 1e-5
    for part, references in zip(fast[1], stock[1]):
        if references and training_tolerance:
            assert largest_error(part, references) < training_tolerance
    if not training_tolerance:
        assert largest_error(fast[1][0], stock[1][0]) < 1e-3


@pytest.mark.skipif(BACKEND not in PARTS, reason="no layer of these models has a path")
@pytest.mark.parametrize(
    "kind, options",
    [
        ("MobileNetV2", {"alpha": 0.35}),
        pytest.param("ResNet50", {}, marks=pytest.mark.slow("tensorflow")),
        pytest.param("EfficientNetB0", {}, marks=pytest.mark.slow("tensorflow")),
    ],
)
def test_keras_applications(kind, options):
    # In training, BatchNormalization and ReLU at random weights make a thousandth of a rounding error, without fast
    # paths too; each layer alone is held to 1e-5 in test_stock_layers.py.
    make = getattr(keras.applications, kind)
    model = make(input_shape=(32, 32, 3), weights=None, classes=5, classifier_activation=None, **options)
    assert_the_same(model, RNG.normal(size=(8, 32, 32, 3)).astype("float32"), PARTS[BACKEND], training_tolerance=None)


@pytest.mark.skipif(BACKEND != "torch", reason="no layer of this model has a path")
def test_convnext():
    model = keras.applications.ConvNeXtTiny(
        input_shape=(32, 32, 3), weights=None, classes=5, classifier_activation=None
    )
    assert_the_same(model, RNG.normal(size=(2, 32, 32, 3)).astype("float32"), "Conv2D", "Dense")


def test_a_bidirectional_stacked_lstm_with_its_mask():
    model = keras.Sequential(
        [
            keras.Input((9,), dtype="int32"),
            layers.Embedding(20, 8, mask_zero=True),
            layers.Bidirectional(layers.LSTM(6, return_sequences=True, dropout=0.3, seed=1)),
            layers.Bidirectional(layers.LSTM(6)),
            layers.Dense(4),
        ]
    )
    tokens = RNG.integers(1, 20, (5, 9)).astype("int32")
    for row, length in zip(tokens, (9, 5, 1, 7, 3)):
        row[length:] = 0
    assert_the_same(model, tokens, "LSTM")
    assert sum(row.is_fast for row in fast_paths.report(model).layers if row.kind == "LSTM") == 4


@pytest.mark.skipif(BACKEND == "tensorflow", reason="no layer of this model has a path")
@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
@pytest.mark.parametrize("normalize_first", [False, True])
def test_keras_hub_transformer_layers(normalize_first):
    hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed (the extra nlp)").layers
    source, target = (keras.Input((7,), dtype="int32") for _ in range(2))
    embedding = layers.Embedding(20, 8, mask_zero=True)
    encoded = hub.TransformerEncoder(16, 2, dropout=0.0, normalize_first=normalize_first)(embedding(source))
    decoded = hub.TransformerDecoder(16, 2, dropout=0.0, normalize_first=normalize_first)(embedding(target), encoded)
    model = keras.Model([source, target], layers.Dense(20)(decoded))
    for weight in model.trainable_weights:
        weight.assign(RNG.normal(0, 0.5, weight.shape))
    tokens = RNG.integers(1, 20, (2, 3, 7)).astype("int32")
    tokens[:, 0, 4:] = 0
    assert_the_same(model, list(tokens), "EinsumDense", "Dense")
