"""The fast paths change speed and nothing else."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from zoo.fast_paths import inference_function, use_fast_paths
from zoo.training.initial_weights import set_initial_weights
from zoo.training.optimizers import TorchAdam

RNG = np.random.default_rng(0)
COMPILED = pytest.mark.slow("tensorflow", "jax")  # where every case is compiled, in seconds


def small_model(padding="same", pool=2, activation="relu", use_bias=True, **convolution):
    image = keras.Input((11, 14, 3))
    x = layers.Conv2D(8, (3, 5), padding=padding, activation=activation, use_bias=use_bias, name="c1", **convolution)(
        image
    )
    x = layers.MaxPooling2D(pool, name="p1")(x)
    x = layers.Dense(8)(layers.GroupNormalization(2)(x))
    inner = keras.Sequential([keras.Input(x.shape[1:]), layers.Conv2D(4, 3, padding=padding, name="c2")], name="inner")
    return keras.Model(image, layers.GlobalAveragePooling2D()(inner(x)))


def losses_and_weights(model, images, targets):
    """Three steps of plain gradient descent: sensitive to any difference in outputs or gradients."""
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    losses = [float(model.train_on_batch(images, targets)) for _ in range(3)]
    return losses, [np.array(w) for w in model.get_weights()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "valid"},
        pytest.param({"pool": 3}, marks=COMPILED),
        {"pool": (2, 3)},
        pytest.param({"use_bias": False}, marks=COMPILED),
        pytest.param({"activation": None}, marks=COMPILED),
    ],
    ids=str,
)
def test_training_is_the_same(options):
    images = RNG.standard_normal((5, 11, 14, 3)).astype("float32")
    targets = RNG.standard_normal((5, 4)).astype("float32")
    stock = small_model(**options)
    set_initial_weights(stock, seed=0)
    fast = keras.models.clone_model(stock)
    fast.set_weights(stock.get_weights())
    use_fast_paths(fast)
    stock_losses, stock_weights = losses_and_weights(stock, images, targets)
    fast_losses, fast_weights = losses_and_weights(fast, images, targets)
    np.testing.assert_allclose(fast_losses, stock_losses, rtol=1e-5)
    for a, b in zip(fast_weights, stock_weights):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_of_equal_maxima_the_first_gets_the_gradient():
    """On an image of one value every window is a tie; stock and fast pooling must pick the same element."""
    images = np.ones((2, 4, 4, 1), "float32")
    weights = []
    for fast in (False, True):
        image = keras.Input((4, 4, 1))
        scale = layers.EinsumDense("bhwc,hwc->bhwc", output_shape=(4, 4, 1), kernel_initializer="ones", name="scale")
        model = keras.Model(image, layers.Flatten()(layers.MaxPooling2D(2)(scale(image))))
        if fast:
            use_fast_paths(model)
        model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
        model.train_on_batch(images, np.zeros((2, 4), "float32"))
        weights.append(np.array(model.get_weights()[0])[..., 0])
    np.testing.assert_allclose(weights[0], weights[1])
    changed = weights[0] < 1
    expected = np.zeros((4, 4), bool)
    expected[::2, ::2] = True  # the upper left element of each window
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("size", [(11, 14), pytest.param((12, 9), marks=COMPILED)])
@pytest.mark.parametrize("strides, kernel", [(2, 3), ((1, 3), (5, 2)), pytest.param(2, 1, marks=COMPILED)])
def test_dense_layers_normalisations_and_strides_are_the_same(inference, size, strides, kernel):
    image = keras.Input((*size, 6))
    x = layers.Conv2D(8, kernel, strides=strides, padding="same", activation="relu")(image)
    x = layers.GroupNormalization(4, epsilon=1e-3)(x)
    x = layers.Conv2D(4, kernel, strides=strides, use_bias=False)(layers.ZeroPadding2D(2)(x))
    x = layers.Dense(5, activation="tanh")(x)
    model = keras.Model(image, layers.Dense(3, use_bias=False)(layers.Flatten()(x)))
    for weight in model.weights:
        weight.assign(RNG.normal(size=weight.shape))
    images = RNG.normal(size=(3, *size, 6)).astype("float32")
    expected, weights = model.predict(images, verbose=0), model.get_weights()
    if inference:
        outputs = ops.convert_to_numpy(inference_function(model)(images))
    else:
        use_fast_paths(model)
        model.predict_function = None
        outputs = model.predict(images, verbose=0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    for after, before in zip(model.get_weights(), weights):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("options", [{"strides": 2}, {"dilation_rate": 2}, {"pool": 1}])
def test_layers_outside_its_reach_still_work(options):
    model = small_model(**options)
    images = RNG.standard_normal((2, 11, 14, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    use_fast_paths(model)
    model.predict_function = None
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-6)


def test_the_saved_file_knows_nothing_of_it(tmp_path):
    model = small_model()
    before = model.get_config()
    use_fast_paths(model)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert model.get_config() == before
    images = RNG.standard_normal((2, 11, 14, 3)).astype("float32")
    np.testing.assert_allclose(ops.convert_to_numpy(again(images)), ops.convert_to_numpy(model(images)), atol=1e-6)


def test_training_after_inference_is_the_same():
    """On PyTorch, inference puts kernels in another order in memory, which a fused optimizer must not mix up."""
    weights = []
    for infer in (False, True):
        model = small_model()
        set_initial_weights(model, seed=0)
        images = np.random.default_rng(1).standard_normal((4, 11, 14, 3)).astype("float32")
        if infer:
            inference_function(model)(images)
        model.compile(TorchAdam(0.01), loss="mse")
        for _ in range(3):
            model.train_on_batch(images, np.ones((4, 4)))
        weights.append(model.get_weights())
    for a, b in zip(*weights):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.1}], ids=str)
@pytest.mark.parametrize("length", [1024, 1025, 8])
def test_attention_of_many_queries_is_the_same(length, options):
    """Beside softmax(Q Kᵀ scale) V in float64, where it takes blocks of queries and where it cannot."""
    query, key = keras.Input((length, 2, 4)), keras.Input((7, 2, 4)) if not options.get("is_causal") else None
    key = query if key is None else key
    inputs = [query] if key is query else [query, key]
    model = keras.Model(inputs, ops.dot_product_attention(query, key, key * 2, **options))
    arrays = [RNG.normal(size=(2, *x.shape[1:])).astype("float32") for x in inputs]
    outputs = ops.convert_to_numpy(inference_function(model)(arrays))

    q, k = arrays[0].astype("float64"), arrays[-1].astype("float64")
    scores = np.einsum("btnh,bsnh->bnts", q, k) * options.get("scale", 0.5)
    if options.get("is_causal"):
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), 2 * k)
    np.testing.assert_allclose(outputs, expected, atol=2e-5)
