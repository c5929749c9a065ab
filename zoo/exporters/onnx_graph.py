"""Functional Keras models as ONNX graphs of native operators, with batch and lengths left open.

    write_onnx(model, "model.onnx")

The graph of the model is walked call by call; `zoo.exporters.onnx_layers` has a rule for each layer and `keras.ops`
operation. No framework is traced, so that every backend writes the same graph: a convolution is one `Conv`, a recurrent
layer one `LSTM`, `GRU` or `RNN`. What acts in training alone, such as dropout, is left out.

Source: ONNX 1.23, operators of opset 21 (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import keras
import numpy as np

from zoo.compat.keras import functional_graph, graph_calls
from zoo.errors import UserError, require
from zoo.io import files
from zoo.typing import StrPath

if TYPE_CHECKING:
    import onnx

OPSET = 21
IR_VERSION = 10  # the first with opset 21
MOST_INLINE_BYTES = 1_800_000_000  # of weights inside the .onnx file: protobuf holds less than 2 GiB
_ALIGNMENT = 4096  # of a tensor in a data file, so that runtimes can map it to memory


@dataclasses.dataclass(frozen=True)
class GraphTensor:
    """A tensor of the graph: its name, its shape with None for open sizes, and its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class OnnxGraph:
    """The nodes and weights of an ONNX graph, while a model is walked.

    Args:
        title: what error messages call the model.
    """

    def __init__(self, title: str) -> None:
        self.title, self.scope = title, ""
        self.outputs: list[GraphTensor] = []  # of the call that a rule emits, for their shapes and dtypes
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}  # weights and constants by name
        self._known: dict[Any, tuple[str, Any]] = {}  # weights that are there already
        self._counts: collections.Counter[str] = collections.Counter()

    # ---------------------------------------------------------------------------------------------- what rules call

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node.

        Args:
            kind: of operator, e.g. "MatMul".
            *inputs: tensors by name or `GraphTensor`, "" for one left out; arrays and numbers become constants, an int
                or a list of ints int64, as ONNX has shapes and axes, a float float32.
            outputs: how many the node has.
            **attributes: of the operator.

        Returns:
            name of the output; a list of names if there are several.
        """
        import onnx

        name = self.unique(f"{self.scope}/{kind}")
        results = [name] if outputs == 1 else [f"{name}:{index}" for index in range(outputs)]
        names = [self.name(x) for x in inputs]
        self.nodes.append(onnx.helper.make_node(kind, names, results, name, **attributes))
        return results[0] if outputs == 1 else results

    def name(self, x: Any) -> str:
        """The name of a tensor or constant, see `op`."""
        if isinstance(x, (GraphTensor, str)):
            return x if isinstance(x, str) else x.name
        array = np.asarray(x)
        if not isinstance(x, (np.ndarray, np.generic)):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return self._add_array(("constant", array.dtype.str, array.shape, array.tobytes()), "constant", array)

    def weight(self, weight: Any, change: Callable[[np.ndarray], np.ndarray] | None = None, key: str = "") -> str:
        """The name of a layer's weight.

        Args:
            weight: variable or tensor of a layer.
            change: function from the array to the one that ONNX expects; None for the array as it is.
            key: what the changed array is called, e.g. "transposed"; the same weight and key are stored once.

        Returns:
            its name.
        """
        known = (id(weight), key)
        if known in self._known:
            return self._known[known][0]
        array = np.asarray(keras.ops.convert_to_numpy(weight))
        name = "/".join(part for part in (self.scope, getattr(weight, "name", "weight"), key) if part)
        return self._add_array(known, name, array if change is None else change(array), owner=weight)

    def cast(self, x: Any, dtype: str) -> Any:
        """A tensor or constant in a dtype.

        Args:
            x: `GraphTensor`, or a number, array or tensor that the model holds as a constant.
            dtype: name of the dtype.

        Returns:
            what `op` takes.
        """
        if isinstance(x, GraphTensor):
            return x if x.dtype == dtype else self.op("Cast", x, to=onnx_dtype(dtype))
        array = np.asarray(keras.ops.convert_to_numpy(x) if hasattr(x, "shape") else x)
        return array.astype(dtype)

    def unsupported(self, why: str) -> NoReturn:
        """Raise the error that the call which is emitted has no counterpart in ONNX.

        Args:
            why: subject of the sentence left out, e.g. "has the data format channels_first".

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.title} cannot be exported to ONNX, because {self.scope or 'the model'} {why}: replace it by what "
            "docs/guides/export.md lists."
        )

    # ------------------------------------------------------------------------------------------------------ walking

    def add_model(self, model: keras.Model, inputs: Sequence[GraphTensor], scope: str) -> list[GraphTensor]:
        """Add the calls of a functional or sequential model.

        Args:
            model: the model.
            inputs: in the order of `model.inputs`.
            scope: prefix of the names, e.g. "classifier".

        Returns:
            its outputs, in the order of `model.outputs`.
        """
        graph = self.check_functional(model, scope or model.name)
        values: dict[int, GraphTensor] = {}
        for symbol, value in zip(graph.inputs, inputs, strict=True):
            cast = self.cast(value, symbol.dtype)
            values[id(symbol)] = GraphTensor(self.name(cast), value.shape, symbol.dtype)
        for call in graph_calls(graph):
            path = f"{scope}/{call.operation.name}".strip("/")
            args, kwargs = call.fill_in(values)
            names = self._call(call.operation, args, kwargs, call.outputs, path)
            for symbol, name in zip(call.outputs, names, strict=True):
                values[id(symbol)] = GraphTensor(name, tuple(symbol.shape), symbol.dtype)
        return [values[id(symbol)] for symbol in graph.outputs]

    def check_functional(self, model: keras.Model, scope: str) -> keras.Model:
        """The functional model that a model is.

        Args:
            model: the model.
            scope: what error messages call it.

        Returns:
            it, or that of a sequential model.

        Raises:
            UserError: if its `call` is Python.
        """
        graph = functional_graph(model)
        if graph is None:
            self.scope = scope
            self.unsupported("is a model whose `call` is Python, not a functional or sequential one")
        return graph

    def _call(self, operation, args, kwargs, outputs, path):
        """Add one call; the names of its outputs."""
        from zoo.exporters.onnx_layers import rule_of

        self.scope = path
        kwargs.pop("training", None)  # what Keras gives an inference counts more
        if isinstance(operation, keras.layers.Layer) and kwargs.pop("mask", None) is not None:
            self.unsupported("is called with a mask")
        if isinstance(operation, keras.Model):
            return [x.name for x in self.add_model(operation, keras.tree.flatten(args[0]), path)]
        rule = rule_of(operation)
        if rule is None:
            self.unsupported(f"is of the class {type(operation).__name__}, for which there is no rule")
        if isinstance(operation, keras.layers.Layer) and operation.compute_dtype != "float32":
            self.unsupported(f"computes in {operation.compute_dtype}, not in float32")
        self.outputs = [GraphTensor("", tuple(x.shape), x.dtype) for x in outputs]
        return [self.name(x) for x in keras.tree.flatten(rule(self, operation, *args, **kwargs))]

    def unique(self, name: str) -> str:
        """A name that no node has, e.g. "lstm_0/Transpose_1"."""
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name}_{self._counts[name] - 1}"

    def _add_array(self, key, name, array, owner=None):
        if key not in self._known:
            self._known[key] = name = self.unique(name), owner  # `owner` keeps its id from being used again
            self.arrays[name[0]] = array
        return self._known[key][0]


def write_onnx(
    model: keras.Model,
    path: StrPath,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    most_inline_bytes: int = MOST_INLINE_BYTES,
) -> list[pathlib.Path]:
    """Write a functional model as an ONNX file.

    Args:
        model: functional or sequential, in float32.
        path: of the `.onnx` file.
        input_names: in the order of `model.inputs`; those of the model's own inputs if None.
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
    graph.check_functional(model, model.name)
    names = list(input_names or [symbol.name for symbol in model.inputs])
    inputs = [GraphTensor(name, tuple(x.shape), x.dtype) for name, x in zip(names, model.inputs, strict=True)]
    results = graph.add_model(model, inputs, "")
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


def onnx_dtype(dtype: str) -> int:
    """ONNX's number of a dtype.

    Args:
        dtype: its name, e.g. "float32".

    Returns:
        a value of `onnx.TensorProto.DataType`.
    """
    import onnx

    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


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
