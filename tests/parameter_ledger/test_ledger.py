"""The ledger against count_params(), closed forms written out here, other counters, and measured memory."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import layers

import zoo
from zoo.compat.keras import skip_weight_init
from zoo.errors import UserError
from zoo.models.cnn import cnn
from zoo.parameter_ledger.ledger import ledger


def opened(inputs, outputs, **options):
    """The ledger of a functional model, after checking its totals and rows against Keras' own count."""
    model = keras.Model(inputs, outputs)
    book = ledger(model, **options)
    check(book, model)
    return book


def check(book, model):
    assert book.parameters == model.count_params() == sum(row.counted_parameters for row in book.leaf_rows)
    assert book.trainable == sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert book.trainable == sum(row.trainable for row in book.leaf_rows)
    for row in book.leaf_rows:
        if row.layer is not None and hasattr(row.layer, "count_params") and row.inputs:
            assert row.parameters == row.layer.count_params()
            assert sum(formula.value for formula in row.formulas) == row.parameters, row.path


def test_classic_walk_through():
    book = ledger(cnn(num_classes=10))
    rows = {row.name: row for row in book.rows}
    counted = [rows[name].counted_parameters for name in ("conv1", "conv2", "conv3", "dense1", "logits")]
    assert counted == [896, 18_496, 73_856, 9_437_696, 5_130] and book.parameters == 9_536_074
    numbers = [rows[name].formulas[0].substituted for name in ("conv1", "dense1", "logits")]
    assert numbers == ["(3·3·3 + 1)·32", "(128·12·12 + 1)·512", "(512 + 1)·10"]
    assert rows["conv1"].formulas[0].symbolic == "(k_h·k_w·c_in + 1)·c_out"
    assert [rows[name].outputs[0] for name in ("conv1", "pool1", "flatten")] == [(48, 48, 32), (24, 24, 64), (18432,)]
    # Multiply-accumulates: every output pixel and filter looks at a window of inputs.
    assert rows["conv2"].macs == 48 * 48 * 64 * 3 * 3 * 32 and rows["dense1"].macs == 18_432 * 512
    assert rows["conv2"].activation_bytes == 48 * 48 * 64 * 4 and rows["flatten"].activation_bytes == 0


def test_single_pool_variant():
    """Some texts print 3,221,504 for this layer: that would be (64·y + 1)·512 with y = 98.3, which is no picture."""
    row = next(row for row in ledger(cnn(num_classes=10, single_pool=True)).rows if row.name == "dense1")
    assert row.formulas[0].substituted == "(64·24·24 + 1)·512" and row.counted_parameters == 18_874_880
    assert (3_221_504 / 512 - 1) % 64 != 0


# (layer, input shape, parameters in closed form, multiply-accumulates in closed form)
KINDS = {
    "conv": (lambda: layers.Conv2D(6, 3), (32, 30, 8), (3 * 3 * 8 + 1) * 6, 30 * 28 * 9 * 8 * 6),
    "grouped": (lambda: layers.Conv2D(8, 3, groups=4, use_bias=False), (32, 32, 8), 144, 30 * 30 * 144),
    "dilated": (lambda: layers.Conv2D(6, 3, dilation_rate=2), (32, 32, 8), 438, 28 * 28 * 432),
    "strided": (lambda: layers.Conv2D(6, 3, strides=2, padding="same"), (31, 31, 8), 438, 16 * 16 * 432),
    "conv1d": (lambda: layers.Conv1D(4, 3), (20, 16), (3 * 16 + 1) * 4, 18 * 3 * 16 * 4),
    "conv3d": (lambda: layers.Conv3D(4, 3), (8, 8, 8, 3), (27 * 3 + 1) * 4, 6**3 * 27 * 3 * 4),
    "transposed": (lambda: layers.Conv2DTranspose(5, 3, strides=2), (9, 9, 8), (9 * 8 + 1) * 5, 81 * 9 * 8 * 5),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (32, 32, 8), 160, 30 * 30 * 144),
    "separable": (
        lambda: layers.SeparableConv2D(7, 3, depth_multiplier=2),
        (32, 32, 8),
        9 * 16 + (16 + 1) * 7,
        30 * 30 * (9 * 16 + 16 * 7),
    ),
    "dense": (lambda: layers.Dense(9), (5, 4), (4 + 1) * 9, 5 * 4 * 9),
    "einsum": (lambda: layers.EinsumDense("btd,dhk->bthk", (5, 2, 3), bias_axes="hk"), (5, 4), 30, 5 * 4 * 6),
    "einsum dots": (lambda: layers.EinsumDense("...d,dh->...h", 6), (5, 7, 4), 24, 35 * 24),
    "batch norm": (lambda: layers.BatchNormalization(), (5, 4), 16, 0),
    "batch norm, no scale": (lambda: layers.BatchNormalization(scale=False), (5, 4), 12, 0),
    "layer norm": (lambda: layers.LayerNormalization(), (5, 4), 8, 0),
    "layer norm over all": (lambda: layers.LayerNormalization(axis=(1, 2)), (5, 4), 40, 0),
    "rms norm": (lambda: layers.RMSNormalization(), (5, 4), 4, 0),
    "group norm": (lambda: layers.GroupNormalization(2), (5, 4), 8, 0),
    "slopes": (lambda: layers.PReLU(shared_axes=(1, 2)), (5, 5, 4), 4, 0),
    "normalization": (lambda: layers.Normalization(), (5, 4), 9, 0),
    "simple": (lambda: layers.SimpleRNN(5), (20, 16), (16 + 5) * 5 + 5, 20 * 21 * 5),
    "lstm": (lambda: layers.LSTM(12), (20, 16), 4 * ((16 + 12) * 12 + 12), 20 * 4 * 28 * 12),
    "gru": (lambda: layers.GRU(12), (20, 16), 3 * ((16 + 12) * 12 + 24), 20 * 3 * 28 * 12),
    "gru, one bias": (lambda: layers.GRU(12, reset_after=False), (20, 16), 3 * (28 * 12 + 12), 20 * 3 * 28 * 12),
    "bidirectional": (lambda: layers.Bidirectional(layers.LSTM(7)), (20, 16), 2 * 4 * (23 * 7 + 7), 20 * 8 * 23 * 7),
    "cells": (
        lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(5)]),
        (20, 16),
        4 * (20 * 4 + 4) + 3 * (9 * 5 + 10),
        20 * (4 * 20 * 4 + 3 * 9 * 5),
    ),
    "conv lstm": (
        lambda: layers.ConvLSTM2D(4, 3, padding="same"),
        (5, 8, 8, 3),
        4 * (9 * 7 + 1) * 4,
        5 * 64 * 4 * 9 * 7 * 4,
    ),
    "time distributed": (lambda: layers.TimeDistributed(layers.Conv1D(4, 3)), (6, 9, 8), 100, 6 * 7 * 24 * 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    make, shape, parameters, macs = KINDS[kind]
    inputs = keras.Input(shape)
    row = opened(inputs, make()(inputs)).leaf_rows[-1]
    assert (row.counted_parameters, row.macs) == (parameters, macs)
    assert not any(formula.symbolic == formula.substituted for formula in row.formulas if formula.part != "bias") or (
        kind == "slopes"
    ), "a known kind has letters"


def test_attention_is_split():
    query, source = keras.Input((10, 16)), keras.Input((6, 24))
    row = opened(
        [query, source], layers.MultiHeadAttention(4, 8, value_dim=5, output_shape=7)(query, source)
    ).leaf_rows[-1]
    assert {formula.part: formula.value for formula in row.formulas} == {
        "query": (16 + 1) * 4 * 8,
        "key": (24 + 1) * 4 * 8,
        "value": (24 + 1) * 4 * 5,
        "output": (4 * 5 + 1) * 7,
    }
    assert row.macs == 10 * 16 * 32 + 6 * 24 * 32 + 6 * 24 * 20 + 10 * 6 * 32 + 10 * 6 * 20 + 10 * 20 * 7
    mask = keras.Input((10, 6), dtype="bool")
    named = layers.MultiHeadAttention(4, 8)(attention_mask=mask, value=source, query=query)
    assert opened([mask, query, source], named).leaf_rows[-1].macs == (
        10 * 16 * 32 + 2 * 6 * 24 * 32 + 2 * 10 * 6 * 32 + 10 * 32 * 16
    )
    grouped = opened(query, layers.GroupQueryAttention(8, 4, 2)(query, query)).leaf_rows[-1]
    assert [formula.value for formula in grouped.formulas] == [17 * 32, 17 * 16, 17 * 16, 33 * 16]


def test_shared_layers_count_once():
    x = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a")], name="inner")
    dense = layers.Dense(4, name="twice")
    book = opened(x, inner(dense(dense(inner(x)))))
    assert [(row.path, row.counted_parameters, row.macs) for row in book.leaf_rows if row.parameters] == [
        ("inner/a", 20, 16),
        ("twice", 20, 16),
        ("twice", 0, 16),
        ("inner/a", 0, 16),
    ]
    notes = [row.note for row in book.rows if row.note]
    assert "shared: counted at twice" in notes and "shared: counted at inner/a" in notes
    assert "shared: counted at twice" in str(book)


def test_tied_weights_count_once():
    class Tied(layers.Dense):
        """A dense layer whose kernel is another's."""

        def __init__(self, other, **options):
            super().__init__(other.units, **options)
            self.other = other

        def build(self, shape):
            self._kernel = self.other.kernel
            self.bias = self.add_weight(name="bias", shape=(self.units,))
            self.built = True

        def call(self, inputs):
            return inputs @ self._kernel + self.bias

    x = keras.Input((4,))
    first = layers.Dense(4, name="first")
    y = first(x)
    model = keras.Model(x, Tied(first, name="second")(y))
    book = ledger(model)
    assert book.parameters == sum(row.counted_parameters for row in book.leaf_rows) == 20 + 4
    assert "kernel counted at first" in next(row.note for row in book.rows if row.path.startswith("second"))


def test_tied_embedding_and_open_sizes():
    token = keras.Input((None,), dtype="int32")
    embedding = layers.ReversibleEmbedding(100, 8, name="embedding")
    model = keras.Model(token, embedding(layers.Dense(8)(embedding(token)), reverse=True), name="tied")
    book = ledger(model)
    check(book, model)
    assert book.parameters == 100 * 8 + 9 * 8 and len(book.unknown_layers) == 3 and "--input-shape" in str(book)
    closed = ledger(model, input_shape=(7,))
    assert closed.macs == 7 * 8 * 8 + 7 * 8 * 100
    # What cannot be counted is not called nothing.
    assert "MACs) an example" not in str(book) and " 0 B" not in str(book) and "takes at least" in str(book)
    assert "| **?** |" in book.to_markdown() and "≥ 0" not in book.to_html()
    assert "6,048 multiply-accumulates (MACs) an example" in closed.to_text(100)
    assert "takes about" in str(closed)


def test_frozen_layers_are_not_trainable():
    model = cnn(num_classes=10)
    model.get_layer("dense1").trainable = False
    book = ledger(model)
    check(book, model)
    assert book.trainable == 9_536_074 - 9_437_696
    assert book.training_memory()["gradients"] == 4 * book.trainable


class Block(layers.Layer):
    """A layer of the user's own, made of others and a tensor of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm = layers.LayerNormalization(name="norm")
        self.attention = layers.MultiHeadAttention(2, 8, name="attention")

    def build(self, shape):
        self.norm.build(shape)
        self.attention.build(shape, shape)
        self.temperature = self.add_weight(name="temperature", shape=(3,))

    def call(self, x):
        y = self.norm(x)
        return x + self.attention(y, y) * self.temperature[0]


def test_one_shape_for_all_inputs():
    model = zoo.create_model("transformer_tiny")
    book = ledger(model, input_shape=(16,))
    assert book.to_text(width=80) == ledger(model, input_shape=[(16,), (16,)]).to_text(width=80)
    layers = 16 * (4 * (4 * 128 * 128 + 2 * 128 * 256) + 4 * (8 * 128 * 128 + 2 * 128 * 256))
    attention = 12 * 2 * 16 * 16 * 128  # 12 times scores and mixing
    assert book.macs == layers + attention + 16 * 128 * 10_000
    assert book.parameters == model.count_params() and not book.unknown_layers


def test_long_names_keep_both_ends():
    text = ledger(zoo.create_model("transformer_tiny")).to_text(width=80, full=True)
    assert "encoder_…n_query" in text and "encoder_…ion_key" in text


def test_layers_of_unknown_kind_are_opened():
    x = keras.Input((10, 16))
    book = opened(x, Block(name="block")(x))
    paths = [row.path for row in book.rows]
    assert paths[1:4] == ["block", "block/norm", "block/attention"] and book.rows[1].group
    assert book.parameters == 2 * 16 + 4 * 17 * 16 + 3
    assert book.macs == 4 * 10 * 16 * 16 + 2 * 10 * 10 * 16


class Bilinear(layers.Layer):
    """A layer of the user's own, with a product that is written in Keras' operations or in the framework's."""

    def __init__(self, einsum, **options):
        super().__init__(**options)
        self.einsum = einsum

    def build(self, shape):
        self.form = self.add_weight(name="form", shape=(shape[-1], 5, 2))

    def call(self, x):
        return self.einsum("bi,ijk->bjk", x, self.form if self.einsum is keras.ops.einsum else self.form.value)


def framework_einsum():
    if keras.backend.backend() == "tensorflow":
        from tensorflow import einsum
    elif keras.backend.backend() == "jax":
        from jax.numpy import einsum
    else:
        from torch import einsum
    return einsum


def test_operations_of_a_layer_without_others_are_counted_in_its_row():
    x = keras.Input((3,))
    book = opened(x, Bilinear(keras.ops.einsum, name="bilinear")(x))
    row = book.rows[1]
    assert len(book.rows) == 2 and (row.path, row.group) == ("bilinear", False)
    assert row.formulas[0].substituted == "3·5·2" and row.macs == 3 * 5 * 2
    assert [(formula.part, formula.substituted) for formula in row.mac_formulas] == [("einsum", "3·5·2")]
    assert row.activation_bytes == 4 * 5 * 2


def test_what_a_framework_computes_is_unknown():
    x = keras.Input((3,))
    book = opened(x, Bilinear(framework_einsum(), name="bilinear")(x))
    assert book.rows[1].formulas[0].substituted == "3·5·2" and book.rows[1].macs is None
    assert "unknown kind: bilinear" in str(book)

    class Around(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.dense, self.bilinear = layers.Dense(3, name="dense"), Bilinear(framework_einsum(), name="bilinear")

        def build(self, shape):
            self.dense.build(shape)
            self.bilinear.build(shape)

        def call(self, x):
            y = self.dense(x)
            return framework_einsum()("bi,bjk->ijk", y, self.bilinear(y))

        def compute_output_shape(self, shape):
            return (3, 5, 2)

    book = opened(x, Around(name="around")(x))
    assert [row.path for row in book.rows[1:]] == ["around", "around/dense", "around/bilinear", "around/operations"]
    assert [row.macs for row in book.rows[2:]] == [9, None, None] and "≥ 9" in book.to_html()


def test_subclassed_model():
    class Classifier(keras.Model):
        def __init__(self):
            super().__init__(name="classifier")
            self.hidden, self.out = layers.Dense(4, name="hidden"), layers.Dense(3, name="out")

        def call(self, x):
            return self.out(keras.ops.relu(self.hidden(x)))

    model = Classifier()
    with pytest.raises(UserError, match="no weights yet"):
        ledger(model)
    model(np.zeros((2, 5), "float32"))
    book = ledger(model)
    check(book, model)
    assert [(row.path, row.macs) for row in book.rows] == [("hidden", 20), ("relu", 0), ("out", 12)]
    assert [row.sources for row in book.rows] == [(), (0,), (1,)]


def test_other_widths_and_quantised_layers():
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(4, dtype="bfloat16")(x))
    assert ledger(model).weight_bytes == 36 * 2
    model = keras.Model(x, layers.Dense(4, name="d")(x))
    model.get_layer("d").quantize("int8")
    book = ledger(model)
    check(book, model)
    assert book.weight_bytes == 8 * 4 + 4 * 4 + 4 * 4  # int8 kernel; bias and scales in float32


def test_the_same_on_paper_and_in_json():
    book = ledger(cnn(num_classes=10), batch_size=32)
    described = json.loads(json.dumps(book.to_dict()))
    assert described["parameters"] == 9_536_074 and described["training_memory"]["total"] > 4 * 38e6
    row = described["rows"][1]
    assert row["formulas"][0] == {
        "part": "",
        "symbolic": "(k_h·k_w·c_in + 1)·c_out",
        "substituted": "(3·3·3 + 1)·32",
        "value": 896,
    }
    assert "| conv1 | Conv2D | 48·48·32 | 896 | (k_h·k_w·c_in + 1)·c_out = (3·3·3 + 1)·32 = 896 |" in book.to_markdown()
    for width in (60, 80, 120):
        text = book.to_text(width)
        assert max(map(len, text.splitlines())) <= max(width, 72) and "(128·12·12 + 1)·512" in text


@pytest.mark.parametrize(
    "argument, options, message",
    [
        ("cnn", {}, "got str"),
        (None, {"batch_size": 0}, "got 0"),
        (None, {"input_shape": (48, 48)}, "48·48·3"),
        (None, {"input_shape": (40, 40, 3)}, "has shape 48·48·3"),
    ],
)
def test_wrong_arguments(argument, options, message):
    with pytest.raises(UserError, match=message):
        ledger(argument or cnn(num_classes=10), **options)


def test_public_name():
    assert zoo.ledger(cnn(num_classes=3)).parameters == 9_530_944 + 512 * 3 + 3


# Independent counters, in the process that stands on PyTorch


ARCHITECTURES = [name for name, build in vars(keras.applications).items() if inspect.isfunction(build)]
# Keras 3.15 refuses to build these on PyTorch.
NOT_ON_TORCH = ("NASNetLarge", "NASNetMobile")
# One of each family; the others differ in depth and width.
FAMILIES = {
    *("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionV3", "MobileNet", "MobileNetV2"),
    *("MobileNetV3Small", "ResNet50", "ResNet50V2", "VGG16", "Xception"),
}


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow)
        for name in ARCHITECTURES
        if name not in NOT_ON_TORCH
    ],
)
def test_every_architecture_of_keras_applications(name):
    with skip_weight_init():  # it counts weights and reads none
        model = getattr(keras.applications, name)(weights=None)
    book = ledger(model, input_shape=(224, 224, 3) if None in model.input_shape[1:] else None)
    check(book, model)
    assert not book.unknown_layers


ELSEWHERE = """
from zoo import backends
backends.import_keras()
import keras
from tests.parameter_ledger.test_ledger import check, NOT_ON_TORCH
from zoo.parameter_ledger.ledger import ledger
for name in NOT_ON_TORCH:
    model = getattr(keras.applications, name)(weights=None)
    book = ledger(model)
    check(book, model)
    print(name, book.parameters)
"""


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.heavy
def test_architectures_that_do_not_build_on_torch(run):
    ended = run(["-c", ELSEWHERE], backend="tensorflow")
    assert ended.stdout.split() == ["NASNetLarge", "88949818", "NASNetMobile", "5326716"], ended.stderr


def transformer_block():
    x = keras.Input((20, 16))
    y = layers.LayerNormalization()(x)
    y = layers.Add()([x, layers.MultiHeadAttention(4, 4)(y, y, use_causal_mask=True)])
    z = layers.Dense(64, activation="gelu")(layers.LayerNormalization()(y))
    return keras.Model(x, layers.Add()([y, layers.Dense(16)(z)]))


def recurrent(layer):
    x = keras.Input((20, 16))
    return keras.Model(x, layer(x))


class Attention(layers.Layer):
    """Attention by hand: four dense layers and two products."""

    def __init__(self, heads, width, **options):
        super().__init__(**options)
        self.heads, self.width = heads, width
        self.query, self.key, self.value, self.out = (layers.Dense(width, name=name) for name in "qkvo")

    def build(self, shape):
        for layer in (self.query, self.key, self.value, self.out):
            layer.build(shape)

    def split(self, x):
        return keras.ops.transpose(keras.ops.reshape(x, (*x.shape[:2], self.heads, -1)), (0, 2, 1, 3))

    def call(self, x):
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ keras.ops.swapaxes(key, -1, -2) / keras.ops.sqrt(self.width / self.heads)
        mixed = keras.ops.transpose(keras.ops.matmul(keras.activations.softmax(scores), value), (0, 2, 1, 3))
        return self.out(keras.ops.reshape(mixed, x.shape))

    def compute_output_shape(self, shape):
        return shape


class Repeated(keras.Model):
    """One dense layer called three times on equal shapes, in Python."""

    def __init__(self):
        super().__init__(name="repeated")
        self.dense = layers.Dense(16, name="dense")

    def call(self, x):
        for _ in range(3):
            x = keras.ops.tanh(self.dense(x))
        return x


@keras.saving.register_keras_serializable()
class OwnCell(layers.Layer):
    """A recurrent cell of the user's own."""

    state_size = output_size = 5

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 5))
        self.recurrent_kernel = self.add_weight(name="recurrent_kernel", shape=(5, 5))

    def call(self, x, states, training):
        h = keras.ops.tanh(keras.ops.matmul(x, self.kernel) + keras.ops.dot(states[0], self.recurrent_kernel))
        return h, [h]


class Scaled(layers.Dense):
    """A subclass that does what its parent does, and something elementwise."""

    def call(self, x):
        return 2 * super().call(x)


class Twice(layers.Dense):
    """A subclass that does more products than its parent."""

    def call(self, x):
        return super().call(super().call(x))


class Renamed(layers.Conv1D):
    """A subclass that changes nothing."""


class Unrolled(layers.Layer):
    """A stock cell called by hand at every step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.cell = layers.GRUCell(6, name="cell")

    def build(self, shape):
        self.cell.build(shape[::2])

    def call(self, x):
        state = keras.ops.zeros_like(x[:, 0, :6])
        for step in range(x.shape[1]):
            state, _ = self.cell(x[:, step], [state])
        return state


class TimeFirst(layers.Layer):
    """A product with the time steps on the first axis."""

    def call(self, x):
        return keras.ops.matmul(keras.ops.transpose(x, (1, 0, 2)), np.ones((16, 7), "float32"))


def of(layer):
    x = keras.Input((20, 16))
    return keras.Model(x, layer(x))


def built(model):
    model(np.zeros((1, 20, 16), "float32"))
    return model


def inner():
    return keras.Sequential([keras.Input((16,)), layers.Dense(8), layers.Dense(4)], name="inner")


# Models that Keras' own layers do not make: (model, MACs in closed form).
BY_HAND = {
    "attention": (lambda: of(Attention(4, 16)), 4 * 20 * 16 * 16 + 2 * 20 * 20 * 16),
    "a layer three times": (lambda: built(Repeated()), 3 * 20 * 16 * 16),
    "lambda": (lambda: of(layers.Lambda(lambda x: keras.ops.einsum("btd,bsd->bts", x, x))), 20 * 20 * 16),
    "convolution": (
        lambda: of(layers.Lambda(lambda x: keras.ops.conv(x, np.ones((3, 16, 7), "float32")))),
        18 * 3 * 16 * 7,
    ),
    "time first": (lambda: of(TimeFirst()), 20 * 16 * 7),
    "tensordot": (
        lambda: of(layers.Lambda(lambda x: keras.ops.tensordot(x, np.ones((20, 16, 3), "float32"), 2))),
        20 * 16 * 3,
    ),
    "own cell": (lambda: of(layers.RNN(OwnCell(name="cell"))), 20 * (16 * 5 + 5 * 5)),
    "own cells, both directions": (
        lambda: of(layers.Bidirectional(layers.RNN([OwnCell(name="a"), layers.GRUCell(6, name="b")]))),
        2 * 20 * (16 * 5 + 5 * 5 + 3 * (5 + 6) * 6),
    ),
    "unrolled": (lambda: of(Unrolled()), 20 * 3 * (16 + 6) * 6),
    "model at each step": (lambda: of(layers.TimeDistributed(inner())), 20 * (16 * 8 + 8 * 4)),
    "scaled": (lambda: of(Scaled(9)), 20 * 16 * 9),
    "twice": (lambda: of(Twice(16)), 2 * 20 * 16 * 16),
    "renamed": (lambda: of(Renamed(9, 3)), 18 * 3 * 16 * 9),
    "spectral norm": (lambda: of(layers.SpectralNormalization(layers.Dense(9))), 20 * 16 * 9),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_macs_of_what_is_written_by_hand(name):
    make, macs = BY_HAND[name]
    model = make()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]  # the graph that Keras keeps
    book = ledger(model)
    assert book.macs == macs and not book.unknown_layers
    assert book.parameters == model.count_params() == sum(row.counted_parameters for row in book.leaf_rows)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes


def test_attention_by_hand_is_a_row_for_each_layer_and_product():
    x = keras.Input((20, 16))
    book = opened(x, Attention(4, 16, name="attention")(x))
    products = [(row.name, row.macs) for row in book.leaf_rows if row.macs]
    dense = [(name, 20 * 16 * 16) for name in "qkv"]
    assert products == [*dense, ("matmul", 20 * 20 * 16), ("matmul_1", 20 * 20 * 16), ("o", 20 * 16 * 16)]
    # What is saved: three projections, scores, divided scores, probabilities, mixed values and outputs.
    assert sum(row.activation_bytes for row in book.leaf_rows) == 4 * (3 * 20 * 16 + 3 * 4 * 20 * 20 + 2 * 20 * 16)
    names = [row.name for row in book.rows]
    assert [names[source] for source in book.rows[names.index("matmul")].sources] == ["q", "k"]


def test_a_layer_called_again_counts_its_work_again():
    book = ledger(built(Repeated()))
    assert [row.macs for row in book.rows if row.name == "dense"] == [20 * 16 * 16] * 3
    assert [row.counted_parameters for row in book.rows if row.name == "dense"] == [17 * 16, 0, 0]


def test_a_subclass_counts_as_its_parent():
    x = keras.Input((20, 16))
    for layer in (Scaled(9, name="scaled"), Renamed(9, 3, name="renamed")):
        row = opened(x, layer(x)).leaf_rows[-1]
        assert not row.group and row.name == layer.name
        assert row.formulas[0].symbolic != row.formulas[0].substituted and len(row.mac_formulas) == 1


@pytest.mark.once
@pytest.mark.parametrize("name", ["TransformerEncoder", "TransformerDecoder", "BertBackbone", "GPT2Backbone"])
def test_layers_of_keras_hub_are_opened(name):
    """Against the products that PyTorch counts."""
    keras_hub = pytest.importorskip("keras_hub")
    if name.endswith("Backbone"):
        sizes = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
        model = getattr(keras_hub.models, name)(**sizes, max_sequence_length=20)
        example = {name: np.ones((1, 20), "int32") for name in model.input}
        book = ledger(model, input_shape=(20,))
    else:
        layer = getattr(keras_hub.layers, name)(32, 4, name="block")
        model = of(layer)
        example, book = np.ones((1, 20, 16), "float32"), ledger(model)
        assert [row.path for row in book.rows[1:3]] == ["block", book.rows[2].path] and book.rows[1].group
    assert book.parameters == model.count_params() and not book.unknown_layers
    assert book.macs == counted_by_torch(model, example)


COUNTED = {
    "cnn": lambda: cnn(num_classes=10),
    "lstm": lambda: recurrent(layers.LSTM(12, return_sequences=True)),
    "gru": lambda: recurrent(layers.GRU(12)),
    "bidirectional": lambda: recurrent(layers.Bidirectional(layers.GRU(12))),
    "transformer block": transformer_block,
    "MobileNetV2": lambda: keras.applications.MobileNetV2(weights=None),
    "ResNet50": lambda: keras.applications.ResNet50(weights=None),
    "Xception": lambda: keras.applications.Xception(weights=None),
    "ConvNeXtTiny": lambda: keras.applications.ConvNeXtTiny(weights=None),
}


@pytest.mark.once
@pytest.mark.parametrize("name", COUNTED)
def test_macs_agree_with_pytorch_counter(name):
    """`torch.utils.flop_counter` has a formula for what runs: two operations a multiply-accumulate."""
    model = COUNTED[name]()
    images = np.random.default_rng(0).random((1, *model.input_shape[1:])).astype("float32")
    assert ledger(model).macs == pytest.approx(counted_by_torch(model, images), rel=0.01)


def counted_by_torch(model, example):
    """Multiply-accumulates of one example, as PyTorch counts those that it runs."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        flops = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            outputs = function(*args, **(kwargs or {}))
            if function._overloadpacket in flop_registry:
                self.flops += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=outputs)
            return outputs

    # There is no formula for the fused attention kernel of CPUs, so attention runs as plain matrix products.
    with Counter() as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(example)
    return counter.flops / 2


@pytest.mark.once
@pytest.mark.parametrize("batch_size", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_training_memory_of_the_cnn(batch_size):
    """Against the most that PyTorch's allocator held during a step: its own record of every allocation and release,
    on top of the weights and optimizer slots that were there before the step."""
    from torch.profiler import ProfilerActivity, profile

    from zoo.fast_paths.layers import use_fast_paths

    model = cnn(num_classes=10)
    model.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    use_fast_paths(model)  # as the recipes do
    rng = np.random.default_rng(0)
    images, labels = rng.random((batch_size, 48, 48, 3)).astype("float32"), rng.integers(0, 10, batch_size)
    model.train_on_batch(images, labels)
    for weight in model.trainable_variables:
        weight.value.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        model.train_on_batch(images, labels)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    before = sum(v.value.untyped_storage().nbytes() for v in (*model.variables, *model.optimizer.variables))
    measured = before + changes.max()
    predicted = ledger(model).training_memory(batch_size)["total"]
    print(f"batch {batch_size}: predicted {predicted / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert predicted == pytest.approx(measured, rel=0.25)
