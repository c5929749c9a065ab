"""Functional Keras models as ONNX files of native operators, with batch and lengths left open.

    write_onnx(model, "model.onnx")

The graph of the model is walked call by call; `zoo.exporters.onnx_layers` has a rule for each layer and `keras.ops`
operation. No framework is traced, so that every backend writes the same graph: a convolution is one `Conv`, a recurrent
layer one `LSTM`, `GRU` or `RNN`. What acts in training alone, such as dropout, is left out.
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.compat.keras import functional_graph, graph_calls
from zoo.errors import require
from zoo.exporters.onnx_graph import GraphTensor, OnnxGraph, onnx_dtype
from zoo.exporters.onnx_layers import rule_of
from zoo.io import files
from zoo.typing import StrPath

if TYPE_CHECKING:
    import onnx

OPSET = 21
IR_VERSION = 10  # the first with opset 21
MOST_INLINE_BYTES = 1_800_000_000  # of weights inside the .onnx file: protobuf holds less than 2 GiB
_ALIGNMENT = 4096  # of a tensor in a data file, so that runtimes can map it to memory


def add_model(graph: OnnxGraph, model: keras.Model, inputs: Sequence[GraphTensor], scope: str) -> list[GraphTensor]:
    """Add the calls of a functional or sequential model to a graph.

    Args:
        graph: the graph.
        model: the model.
        inputs: in the order of `model.inputs`.
        scope: prefix of the names, e.g. "classifier".

    Returns:
        its outputs, in the order of `model.outputs`.

    Raises:
        UserError: if the model is not functional, or a call has no counterpart in ONNX.
    """
    functional = functional_graph(model)
    if functional is None:
        graph.scope = scope or model.name
        graph.unsupported("is a model whose `call` is Python, not a functional or sequential one")
    values: dict[int, GraphTensor] = {}
    for symbol, value in zip(functional.inputs, inputs, strict=True):
        name = graph.name(graph.cast(value, symbol.dtype))
        values[id(symbol)] = GraphTensor(name, value.shape, symbol.dtype)
    for call in graph_calls(functional):
        args, kwargs = call.fill_in(values)
        path = f"{scope}/{call.operation.name}".strip("/")
        names = _add_call(graph, call.operation, args, kwargs, call.outputs, path)
        for symbol, name in zip(call.outputs, names, strict=True):
            values[id(symbol)] = GraphTensor(name, tuple(symbol.shape), symbol.dtype)
    return [values[id(symbol)] for symbol in functional.outputs]


def _add_call(graph: OnnxGraph, operation: Any, args: Any, kwargs: Any, outputs: Any, path: str) -> list[str]:
    """Add one call; the names of its outputs."""
    graph.scope = path
    kwargs.pop("training", None)  # what Keras gives an inference counts more
    if isinstance(operation, keras.layers.Layer) and kwargs.pop("mask", None) is not None:
        graph.unsupported("is called with a mask")
    if isinstance(operation, keras.Model):
        return [x.name for x in add_model(graph, operation, keras.tree.flatten(args[0]), path)]
    rule = rule_of(operation)
    if rule is None:
        graph.unsupported(f"is of the class {type(operation).__name__}, for which there is no rule")
    if isinstance(operation, keras.layers.Layer) and operation.compute_dtype != "float32":
        graph.unsupported(f"computes in {operation.compute_dtype}, not in float32")
    graph.outputs = [GraphTensor("", tuple(x.shape), x.dtype) for x in outputs]
    return [graph.name(x) for x in keras.tree.flatten(rule(graph, operation, *args, **kwargs))]


def write_onnx(
    model: keras.Model,
    path: StrPath,
    *,
    output_names: Sequence[str] | None = None,
    most_inline_bytes: int = MOST_INLINE_BYTES,
) -> list[pathlib.Path]:
    """Write a functional model as an ONNX file.

    Args:
        model: functional or sequential, in float32.
        path: of the `.onnx` file.
        output_names: in the order of `model.outputs`; those of the layers that they come from if None.
        most_inline_bytes: weights of more bytes in all go to a file of their own, `<path>.data`.

    Returns:
        the paths of what was written: the file, and the data file if there is one.

    Raises:
        UserError: if the model is not functional or holds a layer or operation that has no rule; the sentence names it.
    """
    require("onnx", what="An export to ONNX")
    import onnx

    from zoo import __version__

    path, graph = pathlib.Path(path), OnnxGraph(model.name)
    symbols = getattr(model, "inputs", None) or []  # of a model whose `call` is Python there may be none
    inputs = [GraphTensor(x.name, tuple(x.shape), x.dtype) for x in symbols]
    results = add_model(graph, model, inputs, "")
    names = list(output_names or _distinct(getattr(model, "output_names", None) or [x.name for x in model.outputs]))
    graph.scope = "outputs"
    for name, result in zip(names, results, strict=True):
        graph.nodes.append(onnx.helper.make_node("Identity", [result.name], [name], f"outputs/{name}"))
    external = sum(array.nbytes for array in graph.arrays.values()) > most_inline_bytes
    data_path = path.with_name(f"{path.name}.data")
    initializers = _write_external(graph.arrays, data_path) if external else _inline(graph.arrays)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            model.name,
            [_value_info(x.name, x) for x in inputs],
            [_value_info(name, x) for name, x in zip(names, results)],
            initializers,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="keras-model-zoo",
        producer_version=__version__,
    )
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return [path, data_path] if external else [path]


def axis_names(name: str, shape: Sequence[int | None]) -> list[int | str]:
    """The shape of an input or output as ONNX and `config.json` state it.

    Args:
        name: of the input or output.
        shape: its sizes, None where they are open.

    Returns:
        sizes; "batch" for an open first axis and e.g. "token_1" for an open second one.
    """
    return [("batch" if axis == 0 else f"{name}_{axis}") if size is None else size for axis, size in enumerate(shape)]


def _value_info(name, tensor):
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx_dtype(tensor.dtype), axis_names(name, tensor.shape))


def _distinct(names):
    """The names, with a number after those that were there before."""
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        counts[name] += 1
        yield name if counts[name] == 1 else f"{name}_{counts[name] - 1}"


def _inline(arrays: Mapping[str, np.ndarray]) -> list[onnx.TensorProto]:
    import onnx

    return [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]


def _write_external(arrays, path):
    """Write the arrays to a file, one after the other; tensors that say where they are."""
    import onnx

    tensors = []
    with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
        for name, array in arrays.items():
            if array.nbytes < 1024:  # shapes and axes, which shape inference has to see
                tensors += _inline({name: array})
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            place = {"location": path.name, "offset": str(file.tell()), "length": str(array.nbytes)}
            file.write(np.ascontiguousarray(array).data)
            tensors.append(
                onnx.TensorProto(
                    name=name,
                    dims=array.shape,
                    data_type=onnx_dtype(array.dtype.name),
                    data_location=onnx.TensorProto.EXTERNAL,
                    external_data=[
                        onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()
                    ],
                )
            )
    return tensors
