"""Smaller ONNX files by onnxruntime's own tools, made of float32 ones; onnxruntime and OpenVINO run them.

    int8      weights of 8 bits; inputs of the products are rounded to 8 bits when they are known ("dynamic")
    int4      weights of 4 bits in blocks of 32 with a scale each; the products are of float32 ("weight-only")
    float16   everything of 16 bits but inputs and outputs

Sources: onnxruntime 1.32, `onnxruntime.quantization.quantize_dynamic` and `matmul_nbits_quantizer`,
`onnxruntime.transformers.float16`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from zoo.errors import UserError, did_you_mean, require
from zoo.io import files

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Quantization:
    """A way to make files smaller.

    Attributes:
        method: what onnxruntime does, for the certificate.
        tolerance: the largest difference on a parity record that passes unless another is asked for.
    """

    method: str
    tolerance: float


QUANTIZATIONS = {
    "int8": Quantization(
        "dynamic: products by constants, embeddings, and convolutions where they hold a tenth of the weights", 0.15
    ),
    "int4": Quantization("weight-only, blocks of 32: products by constants, and embeddings", 0.5),
    "float16": Quantization("all weights and products, beside recurrent layers", 5e-3),
}
_LEAST_CONVOLUTIONS = 0.1  # of the weights; fewer are not worth what their rounding costs
_BLOCK_SIZE = 32
_RECURRENT = ("LSTM", "GRU", "RNN")  # onnxruntime has no kernels of 16 bits for these


def check_quantization(name: str | None, folder_format: str) -> None:
    """Check the name of a quantization, and that a format takes it.

    Args:
        name: what was asked for; None for none.
        folder_format: a key of `zoo.exporters.runtimes.FORMATS`.

    Raises:
        UserError: if there is none of that name, or the format is not ONNX.
    """
    if name is None:
        return
    if name not in QUANTIZATIONS:
        raise UserError(
            f"There is no quantization {name!r}: choose one of {', '.join(QUANTIZATIONS)}."
            f"{did_you_mean(name, QUANTIZATIONS)}"
        )
    if folder_format != "onnx":
        raise UserError(
            f"Only ONNX files are quantized, not {folder_format}: choose the format onnx, which OpenVINO runs too."
        )


def quantize_onnx(path: pathlib.Path, name: str) -> None:
    """Replace an ONNX file by a smaller one.

    Args:
        path: of the `.onnx` file; weights that it keeps in a file beside it are quantized too.
        name: a key of `QUANTIZATIONS`.

    Raises:
        UserError: if it has no weights that are quantized, as where all are in recurrent layers.
    """
    require("onnx", "onnxruntime", "onnx_ir", what="Quantization")
    import onnx

    before = _kinds(onnx.load(path, load_external_data=False))
    {"int8": _to_int8, "int4": _to_int4, "float16": _to_float16}[name](path)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    if _kinds(onnx.load(path, load_external_data=False)) == before:
        raise UserError(
            f"{path.stem} has no weights that onnxruntime quantizes to {name}, as where all are in recurrent layers: "
            "choose float16, or export without --quantize."
        )


def _kinds(model):
    """The operators and the dtypes of the weights of a model."""
    return {node.op_type for node in model.graph.node} | {weight.data_type for weight in model.graph.initializer}


def _to_int8(path):
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    kinds = ["MatMul", "Gather", "Transpose"]
    has_convolutions = _share_of_convolutions(onnx.load(path)) >= _LEAST_CONVOLUTIONS
    with _silent(), files.atomic_write(path) as target:
        source = inferred = target.with_suffix(".inferred.onnx")
        try:
            if has_convolutions:  # which are left as they are where the types of their inputs are unknown
                quant_pre_process(path, inferred, skip_optimization=True)
            else:
                source = path
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=[*kinds, "Conv"] if has_convolutions else kinds,
                per_channel=not has_convolutions,
                weight_type=QuantType.QUInt8 if has_convolutions else QuantType.QInt8,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        finally:
            inferred.unlink(missing_ok=True)


def _share_of_convolutions(model: onnx.ModelProto) -> float:
    """The fraction of the weights that belong to convolutions."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    return sum(sizes.get(name, 0) for name in kernels) / max(1, sum(sizes.values()))


def _to_int4(path):
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK_SIZE, is_symmetric=True, bits=4, op_types_to_quantize=("MatMul", "Gather")
    )
    model = onnx.load(path)
    _fold_transposes(model)
    with _silent(), files.atomic_write(path) as target:
        quantizer = MatMulNBitsQuantizer(model, algo_config=config)
        quantizer.process()
        quantizer.model.clean_initializers()
        onnx.save(quantizer.model.model, target)


def _fold_transposes(model: onnx.ModelProto) -> None:
    """Make a transposed weight, as of a tied embedding, a weight of its own."""
    import onnx

    weights = {weight.name: weight for weight in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        (perm,) = (list(attribute.ints) for attribute in node.attribute)
        array = onnx.numpy_helper.to_array(weights[node.input[0]]).transpose(perm)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), node.output[0]))
        model.graph.node.remove(node)


def _to_float16(path):
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    # Min and Max, which are on the list for GPUs, would be left with inputs of two dtypes.
    blocked = [kind for kind in DEFAULT_OP_BLOCK_LIST if kind not in ("Min", "Max")]
    with _silent(), files.atomic_write(path) as target:
        model = convert_float_to_float16(onnx.load(path), keep_io_types=True, op_block_list=[*blocked, *_RECURRENT])
        onnx.save(model, target)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the advice of onnxruntime's tools off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
