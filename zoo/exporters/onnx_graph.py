"""The nodes and weights of an ONNX graph, as the rules of `zoo.exporters.onnx_layers` add them.

Source: ONNX 1.23, operators of opset 21 (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import keras
import numpy as np

from zoo.errors import UserError, require

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class GraphTensor:
    """A tensor of the graph.

    Attributes:
        name: its name.
        shape: its sizes, None where they are open.
        dtype: name of its dtype.
    """

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
        require("onnx", what="An export to ONNX")
        import onnx

        name = self.unique(f"{self.scope}/{kind}")
        results = [name] if outputs == 1 else [f"{name}:{index}" for index in range(outputs)]
        names = [self.name(x) for x in inputs]
        self.nodes.append(onnx.helper.make_node(kind, names, results, name, **attributes))
        return results[0] if outputs == 1 else results

    def name(self, x: Any) -> str:
        """The name of a tensor or constant.

        Args:
            x: as an input of `op`; an array or number becomes a constant.

        Returns:
            its name.
        """
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
            why: the reason, a verb without its subject, e.g. "masks the token 0".

        Returns:
            nothing.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.title} cannot be exported to ONNX, because {self.scope or 'the model'} {why}: replace it by what "
            "docs/guides/export.md lists."
        )

    def unique(self, name: str) -> str:
        """A name that no node has.

        Args:
            name: the beginning.

        Returns:
            e.g. "lstm_0/Transpose_1".
        """
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name}_{self._counts[name] - 1}"

    def _add_array(self, key, name, array, owner=None):
        if key not in self._known:
            self._known[key] = name = self.unique(name), owner  # `owner` keeps its id from being used again
            self.arrays[name[0]] = array
        return self._known[key][0]


def onnx_dtype(dtype: str) -> int:
    """ONNX's number of a dtype.

    Args:
        dtype: its name, e.g. "float32".

    Returns:
        a value of `onnx.TensorProto.DataType`.
    """
    require("onnx", what="An export to ONNX")
    import onnx

    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
