"""ONNX graphs in onnxruntime and OpenVINO against the Keras model, rule by rule.

All passed on the three backends on 2026-11-28; since no rule computes with a backend, they run on one.
"""

import collections
import pathlib
import re

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers, ops

from zoo.errors import UserError
from zoo.exporters.onnx_layers import LAYER_RULES, supported
from zoo.exporters.onnx_model import write_onnx
from zoo.exporters.runtimes import RuntimeModel
from zoo.models.rnn_language_model import decode_step_model, rnn_language_model
from zoo.models.transformer import transformer

pytestmark = pytest.mark.once
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype("float32")


def randomize(model):
    """Give every weight random values, so that none is neutral; variances stay positive."""
    for weight in model.weights:
        if "seed_generator" not in weight.path:
            value = RNG.uniform(-0.5, 0.5, weight.shape)
            weight.assign(np.abs(value) + 0.5 if "variance" in weight.path else value)


def run_onnx(path, arrays):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {x.name: array for x, array in zip(session.get_inputs(), arrays, strict=True)})


def operators(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def compare(model, path, *batches, tolerance=1e-5):
    """Write a model, and compare it with Keras on each batch of inputs."""
    write_onnx(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    for arrays in batches:
        expected = model([ops.convert_to_tensor(x) for x in arrays] if len(arrays) > 1 else arrays[0], training=False)
        expected = [ops.convert_to_numpy(x) for x in keras.tree.flatten(expected)]
        feeds = {x.name: array for x, array in zip(model.inputs, arrays, strict=True)}
        for runtime in ("onnxruntime", "openvino"):
            outputs = RuntimeModel(runtime, path)(feeds)
            assert len(outputs) == len(expected)
            for output, reference in zip(outputs, expected):
                assert output.dtype == reference.dtype and output.shape == reference.shape, runtime
                np.testing.assert_allclose(output, reference, rtol=tolerance, atol=tolerance, err_msg=runtime)


IMAGE, SEQUENCE, VECTOR = (None, None, 3), (None, 5), (6,)
IMAGES, SEQUENCES, VECTORS = ([floats(2, 9, 7, 3)], [floats(3, 4, 5)], [floats(4, 6)])
LAST = {"data_format": "channels_last"}
# name: (layers of one input each, shape of the input, [inputs of one call])
LAYERS = {
    "dense": ([layers.Dense(4, activation="tanh"), layers.Dense(3, use_bias=False)], VECTOR, VECTORS),
    "dense_sequence": ([layers.Dense(4, activation="gelu")], SEQUENCE, SEQUENCES),
    "einsum_dense": ([layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d")], SEQUENCE, SEQUENCES),
    "conv2d_same": ([layers.Conv2D(4, 3, padding="same", activation="relu", **LAST)], IMAGE, IMAGES),
    "conv2d_strides": ([layers.Conv2D(4, 3, strides=2, padding="same", **LAST)], IMAGE, IMAGES),
    "conv2d_even": ([layers.Conv2D(4, (2, 4), padding="same", use_bias=False, **LAST)], IMAGE, IMAGES),
    "conv2d_dilated": ([layers.Conv2D(3, 3, dilation_rate=2, groups=3, **LAST)], IMAGE, IMAGES),
    "conv1d_causal": ([layers.Conv1D(4, 3, padding="causal", **LAST)], SEQUENCE, SEQUENCES),
    "depthwise": ([layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", **LAST)], IMAGE, IMAGES),
    "pooling": (
        [layers.MaxPooling2D(2, padding="same", **LAST), layers.AveragePooling2D(3, 1, padding="same", **LAST)],
        IMAGE,
        IMAGES,
    ),
    "global_average": ([layers.GlobalAveragePooling2D(**LAST)], IMAGE, IMAGES),
    "global_max": ([layers.GlobalMaxPooling2D(keepdims=True, **LAST)], IMAGE, IMAGES),
    "layer_normalization": ([layers.LayerNormalization(epsilon=1e-3)], SEQUENCE, SEQUENCES),
    "layer_normalization_of_images": (
        [layers.LayerNormalization(axis=(1, 2, 3), center=False, scale=False)],
        (9, 7, 3),
        IMAGES,
    ),
    "group_normalization": ([layers.GroupNormalization(2)], (None, None, 6), [floats(2, 3, 5, 6)]),
    "batch_normalization": ([layers.BatchNormalization(), layers.BatchNormalization(scale=False)], IMAGE, IMAGES),
    "rescaling": ([layers.Rescaling(1 / 255, -0.5)], IMAGE, IMAGES),
    "rescaling_channels": ([layers.Rescaling([1.0, 2.0, 3.0], [0.0, -1.0, 0.5])], IMAGE, IMAGES),
    "resizing": ([layers.Resizing(12, 5, antialias=True, **LAST)], IMAGE, IMAGES),
    "resizing_plain": ([layers.Resizing(12, 5, **LAST)], IMAGE, IMAGES),
    "resizing_much": ([layers.Resizing(4, 3, antialias=True, **LAST)], IMAGE, [floats(2, 60, 41, 3)]),
    "upsampling": ([layers.UpSampling2D((2, 3), **LAST)], IMAGE, IMAGES),
    "upsampling_bilinear": ([layers.UpSampling2D(2, interpolation="bilinear", **LAST)], IMAGE, IMAGES),
    "zero_padding": ([layers.ZeroPadding2D(((1, 2), (0, 3)), **LAST)], IMAGE, IMAGES),
    "shapes": (
        [layers.Permute((3, 1, 2)), layers.Reshape((-1, 7)), layers.Flatten(**LAST), layers.RepeatVector(2)],
        (9, 7, 3),
        IMAGES,
    ),
    "activations": (
        [
            layers.Activation(name)
            for name in (
                *("silu", "elu", "selu", "softplus", "softsign", "mish", "hard_sigmoid", "leaky_relu", "sigmoid"),
                *("exponential", "log_softmax", "softmax", "linear"),
            )
        ],
        VECTOR,
        VECTORS,
    ),
    "activation_layers": (
        [layers.LeakyReLU(0.1), layers.ELU(0.5), layers.ReLU(max_value=0.7), layers.Softmax(axis=1)],
        VECTOR,
        VECTORS,
    ),
    "only_in_training": (
        [layers.Dropout(0.5, seed=0), layers.GaussianNoise(1.0, seed=0), layers.RandomRotation(0.5, seed=0, **LAST)],
        (9, 7, 3),
        IMAGES,
    ),
    "lstm": ([layers.LSTM(4, return_sequences=True), layers.LSTM(3, use_bias=False)], SEQUENCE, SEQUENCES),
    "lstm_backwards": ([layers.LSTM(4, return_sequences=True, go_backwards=True)], SEQUENCE, SEQUENCES),
    "lstm_states": ([layers.LSTM(4, return_sequences=True, return_state=True)], SEQUENCE, SEQUENCES),
    "gru": ([layers.GRU(4, return_sequences=True), layers.GRU(3, return_state=True)], SEQUENCE, SEQUENCES),
    "gru_reset_before": ([layers.GRU(4, reset_after=False)], SEQUENCE, SEQUENCES),
    "simple_rnn": ([layers.SimpleRNN(4, return_sequences=True, activation="relu")], SEQUENCE, SEQUENCES),
    "bidirectional": (
        [layers.Bidirectional(layers.LSTM(4, return_sequences=True, use_cudnn=False))],
        SEQUENCE,
        SEQUENCES,
    ),
    "bidirectional_average": ([layers.Bidirectional(layers.GRU(4), merge_mode="ave")], SEQUENCE, SEQUENCES),
}
# name: (function of symbolic tensors, [inputs of one call])
INTEGERS = RNG.integers(-9, 9, (3, 4)).astype("int32")
OPERATIONS = {
    "arithmetic": (lambda x, y: (x + 2 * y - 1) / (ops.square(y) + 3) ** 0.5, [floats(3, 4), floats(3, 4)]),
    "integers": (lambda n, x: (n // 4 + n - 1, x * n, n // -3), [INTEGERS, floats(3, 4)]),
    "floats_floor": (lambda x: x // 0.3, [floats(3, 4)]),
    "unary": (
        lambda x: ops.sin(x) + ops.cos(x) - ops.exp(-x) + ops.sqrt(ops.abs(x)) + ops.log(ops.abs(x) + 1),
        VECTORS,
    ),
    "activations": (lambda x: ops.silu(x) + ops.gelu(x) + ops.gelu(x, approximate=False) + ops.sigmoid(x), VECTORS),
    "comparisons": (
        lambda n: (ops.not_equal(n, 1), n > 2, n <= 0.5, ops.logical_and(n >= 0, ops.logical_not(n == 3))),
        [INTEGERS],
    ),
    "extremes": (lambda x: ops.maximum(ops.minimum(x, 0.5), ops.clip(x, -0.1, 0.7)), VECTORS),
    "reductions": (
        lambda x: (ops.mean(x, axis=-1, keepdims=True), ops.sum(x, axis=(1, 2)), ops.max(x), ops.min(x, axis=1)),
        SEQUENCES,
    ),
    "cumsum": (lambda x: (ops.cumsum(ops.ones_like(x[:1, :], dtype="int32"), axis=1), ops.cumsum(x)), SEQUENCES),
    "indexing": (
        lambda x: (x[:, -1], x[..., 1:4:2], x[0, :, None, 2], x[:, 1:-1], x[..., -1:]),
        SEQUENCES,
    ),
    "take": (lambda x: (ops.take(x, [2, 0], axis=1), ops.take(x, np.array([1])), ops.take(x, [-1], axis=2)), SEQUENCES),
    "shapes": (
        lambda x: (
            ops.transpose(ops.expand_dims(x, 1), (0, 2, 3, 1)),
            ops.squeeze(ops.expand_dims(x, 2), 2),
            ops.swapaxes(x, 1, -1),
            ops.reshape(x, (-1, 10)),
            ops.concatenate(ops.split(x[..., :4], 2, axis=-1), axis=1),
            ops.zeros_like(x) + ops.ones_like(x, dtype="int32"),
        ),
        SEQUENCES,
    ),
    "where": (lambda x, y: ops.where(x > 0, y, -1e9), [floats(3, 4), floats(3, 4)]),
    "matmul": (lambda x, y: ops.softmax(ops.matmul(x, ops.swapaxes(y, 1, 2))), [floats(2, 3, 5), floats(2, 4, 5)]),
    "attention": (
        lambda q, k, v: ops.dot_product_attention(q, k, v, is_causal=True),
        [floats(2, 6, 2, 4) for _ in range(3)],
    ),
    "masked_attention": (
        lambda q, k, v, mask: ops.dot_product_attention(q, k, v, mask=mask, scale=0.3),
        [floats(2, 3, 2, 4), floats(2, 5, 2, 4), floats(2, 5, 2, 4), np.arange(60).reshape(2, 2, 3, 5) % 3 > 0],
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name, tmp_path):
    kinds, shape, arrays = LAYERS[name]
    model = keras.Sequential([keras.Input(shape), *(type(one).from_config(one.get_config()) for one in kinds)])
    if kinds[-1].__class__ in (layers.GRU, layers.LSTM) and kinds[-1].return_state:
        x = y = keras.Input(shape)
        for one in kinds:
            y = type(one).from_config(one.get_config())(y)
        model = keras.Model(x, y)
    randomize(model)
    compare(model, tmp_path / "model.onnx", arrays)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, tmp_path):
    function, arrays = OPERATIONS[name]
    open_axes = {"attention": (1,), "masked_attention": ()}.get(name, ())
    inputs = [
        keras.Input(
            tuple(None if axis in open_axes else size for axis, size in enumerate(x.shape))[1:], dtype=x.dtype.name
        )
        for x in arrays
    ]
    outputs = function(*inputs)
    compare(keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs), tmp_path / "model.onnx", arrays)


def test_layers_of_several_inputs(tmp_path):
    one, two = keras.Input((4,)), keras.Input((4,))
    kinds = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
    outputs = [*(kind()([one, two]) for kind in kinds), layers.Concatenate(axis=1)([one, two, one])]
    compare(keras.Model([one, two], outputs), tmp_path / "model.onnx", [floats(3, 4), floats(3, 4)])


def test_a_recurrent_layer_with_initial_states(tmp_path):
    x, h, c = keras.Input((None, 5)), keras.Input((3,)), keras.Input((3,))
    model = keras.Model([x, h, c], layers.LSTM(3, return_state=True)(x, initial_state=[h, c]))
    randomize(model)
    compare(model, tmp_path / "model.onnx", [floats(2, 4, 5), floats(2, 3), floats(2, 3)])


@pytest.mark.parametrize("cell", ["lstm", "gru", "simple"])
def test_a_language_model_has_one_node_a_layer_and_takes_any_batch_and_length(cell, tmp_path):
    model = rnn_language_model(
        cell=cell, vocabulary_size=11, embedding_dim=8, units=8, tie_embeddings=True, dropout=0.3
    )
    randomize(model)
    batches = [[RNG.integers(0, 11, shape).astype("int32")] for shape in ((1, 1), (3, 17), (2, 70))]
    compare(model, tmp_path / "model.onnx", *batches)
    node = {"lstm": "LSTM", "gru": "GRU", "simple": "RNN"}[cell]
    assert operators(tmp_path / "model.onnx")[node] == 2
    if cell == "gru":
        nodes = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "GRU"]
        assert all(a.i == 1 for node in nodes for a in node.attribute if a.name == "linear_before_reset")
    step = decode_step_model(model)
    states = [floats(3, 8) for _ in step.inputs[1:]]
    compare(step, tmp_path / "step.onnx", [np.array([1, 5, 2], "int32"), *states])
    assert operators(tmp_path / "step.onnx")["MatMul"] == 5  # what quantizers look for


def test_nested_models_share_their_weights(tmp_path):
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="dense")], name="inner")
    x = keras.Input((6,))
    model = keras.Model(x, inner(inner(x)))
    randomize(model)
    compare(model, tmp_path / "model.onnx", VECTORS)
    weights = [one.name for one in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert sorted(weights) == ["inner/dense/bias", "inner/dense/kernel"]


def test_large_weights_go_to_a_file_beside(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(300, name="wide"), layers.Dense(2, name="logits")])
    randomize(model)
    paths = write_onnx(model, tmp_path / "model.onnx", most_inline_bytes=1000)
    assert [path.name for path in paths] == ["model.onnx", "model.onnx.data"]
    assert paths[0].stat().st_size < 3000 < paths[1].stat().st_size
    onnx.checker.check_model(str(paths[0]), full_check=True)
    (outputs,) = run_onnx(paths[0], VECTORS)
    np.testing.assert_allclose(outputs, ops.convert_to_numpy(model(VECTORS[0])), rtol=1e-5, atol=1e-5)


def test_padding_of_a_batch_is_masked(tmp_path):
    model = transformer(
        vocabulary_size=20, num_layers=1, hidden_dim=8, intermediate_dim=12, num_heads=2, pre_norm=True, name="t"
    )
    randomize(model)
    source, target = (RNG.integers(1, 20, shape).astype("int32") for shape in ((2, 6), (2, 4)))
    source[1, 3:] = 0
    write_onnx(model, tmp_path / "model.onnx")
    (together,) = run_onnx(tmp_path / "model.onnx", [source, target])
    (alone,) = run_onnx(tmp_path / "model.onnx", [source[1:, :3], target[1:]])
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together, ops.convert_to_numpy(model([source, target])), rtol=1e-5, atol=1e-5)


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


class Renamed(layers.Dense):
    """A subclass that computes what its parent does."""


def test_a_subclass_that_keeps_call_is_its_parent(tmp_path):
    model = keras.Sequential([keras.Input((6,)), Renamed(3)])
    randomize(model)
    compare(model, tmp_path / "model.onnx", VECTORS)


@pytest.mark.parametrize(
    "layer, shape, words",
    [
        (Doubled(name="twice"), (6,), "because twice is of the class Doubled, for which there is no rule"),
        (layers.Dense(2, activation="relu6", name="d"), (6,), "because d has the activation relu6"),
        (layers.Dense(2, dtype="bfloat16", name="d"), (6,), "because d computes in bfloat16, not in float32"),
        (layers.Embedding(5, 2, mask_zero=True, name="e"), (6,), "because e masks the token 0"),
        (layers.LSTM(2, activation="elu", name="r"), (None, 5), "because r has the activation elu"),
        (layers.LayerNormalization(axis=1, name="n"), (5, 3), "because n normalizes axes [1] of 3"),
    ],
    ids=lambda x: x.name if isinstance(x, layers.Layer) else "",
)
def test_what_has_no_counterpart_is_named(layer, shape, words, tmp_path):
    x = keras.Input(shape)
    with pytest.raises(UserError, match="cannot be exported to ONNX") as caught:
        write_onnx(keras.Model(x, layer(x), name="mine"), tmp_path / "model.onnx")
    assert words in str(caught.value) and str(caught.value).startswith("mine cannot")
    assert not list(tmp_path.iterdir())


def test_a_model_in_python_is_refused(tmp_path):
    class Mine(keras.Model):
        def call(self, x):
            return x

    model = Mine(name="mine")
    model(floats(2, 3))
    with pytest.raises(UserError, match="because mine is a model whose `call` is Python"):
        write_onnx(model, tmp_path / "model.onnx")


def test_every_rule_is_tested():
    tested = {type(one) for kinds, _, _ in LAYERS.values() for one in kinds}
    tested |= {layers.Embedding, layers.ReversibleEmbedding, layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell}
    tested |= {layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum}
    tested |= {layers.Concatenate}
    rules = {LAYER_RULES[kind] for kind in tested}
    untested = [kind.__name__ for kind, rule in LAYER_RULES.items() if rule not in rules]
    assert not untested


def test_the_guide_lists_what_there_is():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "guides" / "export.md").read_text(encoding="utf-8")
    listed = [re.findall(r"`(\w+)`", part) for part in re.split(r"\n(?:Layers|Operations|Not exported)\b", text)[1:3]]
    assert listed == [*supported()]
