"""Quantized ONNX files: what onnxruntime's tools made of them, and what the certificate says."""

import collections
import json

import keras
import numpy as np
import onnx
import pytest
from keras import layers

import zoo
from tests.exporters.small_tasks import classifier, language_model, randomize, translator
from zoo.cli import run
from zoo.errors import UserError
from zoo.exporters.onnx_model import write_onnx
from zoo.exporters.quantization import QUANTIZATIONS, quantize_onnx

pytestmark = pytest.mark.once


def operators(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def weights(path):
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    "make, name",
    [
        pytest.param(make, name, id=f"{make.__name__}-{name}", marks=[pytest.mark.slow] * (make is translator))
        for make in (classifier, language_model, translator)
        for name in QUANTIZATIONS
    ],
)
def test_every_kind_in_both_runtimes(make, name, tmp_path):
    path = make().export(tmp_path / "out", quantize=name)
    report = zoo.verify(path, runtimes=["onnxruntime", "openvino"])
    assert report.passed and min(row.max_error for row in report.rows) > 1e-6  # it is quantized
    certificate = json.loads((path / "certificate.json").read_text())
    assert certificate["tolerance"] == QUANTIZATIONS[name].tolerance
    assert certificate["quantization"]["name"] == name and "Scores before" in certificate["quantization"]["meaning"]
    assert json.loads((path / "config.json").read_text())["quantization"] == name
    assert not [file for file in path.rglob("*") if file.suffix not in (".onnx", ".json", ".npz")]
    if make is language_model:  # its step alone
        assert [file.name for file in path.glob("*.onnx")] == ["decode_step.onnx"]


def test_int8_weights_are_the_rounded_ones(tmp_path):
    model = randomize(keras.Sequential([keras.Input((40,)), layers.Dense(30, name="dense")], name="mine"))
    path = tmp_path / "model.onnx"
    write_onnx(model, path)
    size, kernel = path.stat().st_size, keras.ops.convert_to_numpy(model.layers[0].kernel)
    quantize_onnx(path, "int8")
    assert operators(path)["MatMulInteger"] == 1 and operators(path)["MatMul"] == 0
    stored = weights(path)
    (integers,) = (array for array in stored.values() if array.shape == kernel.shape)
    (scales,) = (array for key, array in stored.items() if "kernel" in key and key.endswith("scale"))
    assert integers.dtype == np.int8 and scales.shape == (30,)  # one for each column
    np.testing.assert_allclose(scales, np.abs(kernel).max(0) / 127, rtol=0.01)
    assert np.abs(integers * scales - kernel).max() <= 0.51 * scales.max()
    assert path.stat().st_size < size - 0.5 * kernel.nbytes


def test_convolutions_are_quantized_where_they_hold_much(tmp_path):
    for image_size, kind in ((8, "ConvInteger"), (64, "Conv")):  # in the second the dense layer holds nearly all
        x = keras.Input((image_size, image_size, 3), name="x")
        y = layers.Conv2D(8, 3, padding="same", data_format="channels_last")(x)
        y = layers.Dense(3)(layers.Flatten(data_format="channels_last")(y[:, ::4, ::4]))
        write_onnx(randomize(keras.Model(x, y)), tmp_path / "model.onnx")
        quantize_onnx(tmp_path / "model.onnx", "int8")
        found = operators(tmp_path / "model.onnx")
        assert found[kind] == 1 and found["Conv"] + found["ConvInteger"] == 1 and found["MatMulInteger"] == 1


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_tied_embedding_is_quantized_where_it_is_used(name, tmp_path):
    step = language_model()._export_plan().parts["decode_step"].model
    write_onnx(step, tmp_path / "step.onnx")
    size = (tmp_path / "step.onnx").stat().st_size
    quantize_onnx(tmp_path / "step.onnx", name)
    found = operators(tmp_path / "step.onnx")
    if name == "int4":
        assert found["MatMulNBits"] == 5 and found["MatMul"] == 0
    else:  # of the embedding's product, onnxruntime quantizes the weights alone
        assert found["MatMulInteger"] == 4 and found["MatMul"] == 1 and found["DequantizeLinear"] == 2
    assert not [
        array
        for array in weights(tmp_path / "step.onnx").values()
        if array.shape in ((5, 32), (32, 5)) and array.dtype == np.float32
    ]
    assert (tmp_path / "step.onnx").stat().st_size < 0.6 * size


def test_weights_in_a_file_beside_are_quantized(tmp_path):
    model = randomize(keras.Sequential([keras.Input((6,)), layers.Dense(300), layers.Dense(2)]))
    write_onnx(model, tmp_path / "model.onnx", most_inline_bytes=1000)
    assert (tmp_path / "model.onnx.data").is_file()
    quantize_onnx(tmp_path / "model.onnx", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert operators(tmp_path / "model.onnx")["MatMulInteger"] == 2


def test_recurrent_layers_stay_float32(tmp_path):
    model = randomize(keras.Sequential([keras.Input((None, 4)), layers.LSTM(3, name="lstm")], name="mine"))
    for name in ("int8", "int4"):
        write_onnx(model, tmp_path / "model.onnx")
        with pytest.raises(UserError, match=f"model has no weights that onnxruntime quantizes to {name}, as where all"):
            quantize_onnx(tmp_path / "model.onnx", name)


def test_bad_input(tmp_path):
    for arguments, words in (
        (
            ["--to", "onnx", "--quantize", "int9"],
            "There is no quantization 'int9': choose one of int8, int4, float16. Di",
        ),
        (
            ["--to", "openvino", "--quantize", "int8"],
            "Only ONNX files are quantized, not openvino: choose the format onn",
        ),
    ):
        with pytest.raises(UserError) as caught:
            run(["export", "cnn_mnist", *arguments, "--output", str(tmp_path / "x")])
        assert words in str(caught.value)
    with pytest.raises(UserError, match=r"differs from the Keras model by .* more than the tolerance 1e-09, so that"):
        classifier().export(tmp_path / "x", quantize="int8", tolerance=1e-9)
    assert not list(tmp_path.iterdir())
