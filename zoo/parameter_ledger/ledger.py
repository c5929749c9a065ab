"""The parameter ledger of any Keras model: one row a layer, with the formula of its parameters, MACs and memory.

    ledger = zoo.ledger(model)
    print(ledger)               a table for the terminal
    ledger.rows, ledger.parameters, ledger.macs, ledger.training_memory()
    ledger.to_dict(), ledger.to_markdown(), ledger.to_html()

Sizes are for one example unless a batch is named. A multiply-accumulate (MAC) is one multiplication and one addition
inside a matrix product or a convolution; elementwise work, normalization and look-ups are not counted, as is usual.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import tree
from keras.layers import Layer

from zoo.compat.keras import flatten_layers, functional_graph
from zoo.errors import UserError, did_you_mean
from zoo.parameter_ledger.format import format_shape
from zoo.parameter_ledger.formulas import (
    Formula,
    is_stock,
    mac_formulas,
    operation_mac_formulas,
    parameter_formulas,
    saved_activations,
    shape_formula,
    stock_parent,
    unique_weights,
)
from zoo.parameter_ledger.page import render_page
from zoo.parameter_ledger.text import format_markdown, format_table
from zoo.parameter_ledger.trace import trace

# The batch size that a model is traced with: a prime, to recognize it among other sizes.
_TRACE_BATCH_SIZE = 97
# Layers whose output is another view of the memory of their input.
VIEW_LAYERS = {"InputLayer", "Flatten", "Reshape", "Identity", "Squeeze", "ExpandDims", "GetItem", "Permute"}
VIEW_LAYERS |= {"Transpose", "Swapaxes", "Moveaxis", "BroadcastTo", "StopGradient", "Split", "Unstack", "Slice"}
# Layers that keep the meaning of each position, so that a flattened feature map is still recognized behind them.
_ELEMENTWISE_LAYERS = {"Activation", "ReLU", "LeakyReLU", "ELU", "Identity"}
_ELEMENTWISE_LAYERS |= {"Dropout", "GaussianNoise", "GaussianDropout"}


@dataclasses.dataclass(frozen=True)
class LedgerRow:
    """One call of a layer or operation.

    Attributes:
        path: its name after those of the models it is nested in, e.g. "classifier/conv1".
        kind: name of its class, e.g. "Conv2D".
        depth: number of models it is nested in.
        group: True for a nested model: a heading for the rows below it, which have the parameters.
        inputs: shapes without the batch; None for sizes that stay open.
        outputs: shapes, likewise.
        sources: indices of the rows whose outputs are its inputs.
        formulas: `Formula`s of its parameters.
        parameters: their sum, which is the layer's `count_params()`.
        counted_parameters: those parameters that no earlier row has.
        trainable: those of `counted_parameters` that are trained.
        note: why `counted_parameters` is less than `parameters`.
        mac_formulas: `Formula`s of the multiply-accumulates for one example.
        macs: their sum; None where unknown.
        activation_bytes: bytes saved for the backward pass, for one example; None where unknown.
        layer: the layer or operation itself.
    """

    path: str
    kind: str
    depth: int = 0
    group: bool = False
    inputs: tuple[tuple[int | None, ...], ...] = ()
    outputs: tuple[tuple[int | None, ...], ...] = ()
    sources: tuple[int, ...] = ()
    formulas: tuple[Formula, ...] = ()
    parameters: int = 0
    counted_parameters: int = 0
    trainable: int = 0
    note: str = ""
    mac_formulas: tuple[Formula, ...] = ()
    macs: int | None = 0
    activation_bytes: int | None = 0
    layer: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The rows of a model and their totals; see the head of this module.

    Attributes:
        name: the model's name.
        rows: tuple of `LedgerRow`s in call order.
        parameters: of the whole model, each tensor once.
        trainable: those that are trained.
        weight_bytes: bytes of the parameters.
        trainable_bytes: bytes of those that are trained.
        input_bytes: bytes of one example; None where a size is open.
        batch_size: default batch size of `training_memory`.
    """

    name: str
    rows: tuple[LedgerRow, ...]
    parameters: int
    trainable: int
    weight_bytes: int
    trainable_bytes: int
    input_bytes: int | None
    batch_size: int

    @property
    def leaf_rows(self) -> list[LedgerRow]:
        """The rows that are not headings of nested models."""
        return [row for row in self.rows if not row.group]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one example, over the rows where they are known."""
        return sum(row.macs or 0 for row in self.leaf_rows)

    @property
    def unknown_layers(self) -> list[LedgerRow]:
        """Rows whose MACs or activations are unknown: a size is open, or the layer is of an unknown kind."""
        return [row for row in self.leaf_rows if None in (row.macs, row.activation_bytes)]

    def fraction(self, row: LedgerRow) -> float:
        """A row's fraction of all parameters.

        Args:
            row: one of `rows`.

        Returns:
            0 to 1.
        """
        return row.counted_parameters / self.parameters if self.parameters else 0.0

    def training_memory(self, batch_size: int | None = None, slots: int = 2) -> dict[str, int]:
        """Bytes of memory for training at a batch size: a dict of parts and their "total".

        Args:
            batch_size: the ledger's own if None.
            slots: optimizer variables for each trainable weight: Adam 2, momentum 1, plain SGD 0.

        Returns:
            dict with "weights", "gradients" (one for each trainable weight), "optimizer", "activations" (the batch, and
            what layers save for the backward pass), "backward" (the largest pair of gradients alive at once: of a
            layer's outputs and of its inputs), "total".
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        pairs = [_bytes(row.outputs) + _bytes(row.inputs) for row in self.leaf_rows if row.kind not in VIEW_LAYERS]
        parts = {
            "weights": self.weight_bytes,
            "gradients": self.trainable_bytes,
            "optimizer": slots * self.trainable_bytes,
            "activations": batch_size
            * ((self.input_bytes or 0) + sum(row.activation_bytes or 0 for row in self.leaf_rows)),
            "backward": batch_size * max(pairs, default=0),
        }
        return parts | {"total": sum(parts.values())}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        totals = ("name", "parameters", "trainable", "weight_bytes", "macs", "batch_size")
        return {
            **{key: getattr(self, key) for key in totals},
            "training_memory": self.training_memory(),
            "unknown": [row.path for row in self.unknown_layers],
            "rows": [self._row_dict(row) for row in self.rows],
        }

    def _row_dict(self, row):
        keys = ["path", "kind", "depth", "group", "inputs", "outputs", "parameters"]
        keys += ["counted_parameters", "trainable", "note"]
        return {
            **{key: getattr(row, key) for key in keys},
            "fraction": self.fraction(row),
            "formulas": [formula.to_dict() for formula in row.formulas],
            "macs": row.macs,
            "mac_formulas": [formula.to_dict() for formula in row.mac_formulas],
            "activation_bytes": row.activation_bytes,
        }

    def to_text(self, width: int | None = None, *, full: bool = False) -> str:
        """A table for a terminal, a line for each block of a deep model.

        Args:
            width: columns; the terminal's own if None, 80 where the output is no terminal.
            full: show every layer with its formula; models of a few layers are always shown so.

        Returns:
            the table.
        """
        return format_table(self, width, full)

    def to_markdown(self) -> str:
        """A Markdown table."""
        return format_markdown(self)

    def to_html(self) -> str:
        """One self-contained page."""
        return render_page(self)

    __str__ = to_text


def ledger(
    model: keras.Model,
    batch_size: int = 64,
    input_shape: (
        Sequence[int | None] | Sequence[Sequence[int | None]] | Mapping[str, Sequence[int | None]] | None
    ) = None,
) -> Ledger:
    """Make the parameter ledger of a model.

    Args:
        model: a built `keras.Model`: functional, sequential or subclassed, with nested and shared layers.
        batch_size: batch size of the stated training memory.
        input_shape: shape of one example, e.g. (48, 48, 3), for a model that leaves sizes open; a list of shapes, one
            for each of several inputs, or one shape for all of them, or {name of an input: shape} for some. The model's
            own if None.

    Returns:
        `Ledger`.

    Raises:
        UserError: if this is not a built model, or it does not accept such examples.

    Example:
        >>> zoo.ledger(zoo.create_model("cnn")).rows[1].formulas[0].substituted
        '(3·3·3 + 1)·32'
    """
    if not isinstance(model, keras.Model):
        raise UserError(f"A ledger is made of a keras.Model, got {type(model).__name__}: pass the model itself.")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}.")
    if not model.built:
        raise UserError(f"The model {model.name!r} has no weights yet: call model.build(input_shape) first.")
    inputs = _symbolic_inputs(model, input_shape)
    try:
        whole = trace(model, inputs)
    except Exception as error:  # frameworks raise many kinds where shapes do not fit
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The model {model.name!r} does not take inputs {input_shape or ''}: {reason}") from error
    leaves = tree.flatten(inputs)
    builder = _LedgerBuilder(batch_size=leaves[0].shape[0])
    rows = [row for call in whole.inner or () for row in builder.rows(call)]
    rows += builder.unknown_rows(whole)
    rows += builder.uncalled_rows(model)
    weights, trainable = unique_weights(model.weights), unique_weights(model.trainable_weights)
    return Ledger(
        name=model.name,
        rows=tuple(rows),
        parameters=sum(math.prod(weight.shape) for weight in weights),
        trainable=sum(math.prod(weight.shape) for weight in trainable),
        weight_bytes=sum(math.prod(weight.shape) * bytes_per_element(weight.dtype) for weight in weights),
        trainable_bytes=sum(math.prod(weight.shape) * bytes_per_element(weight.dtype) for weight in trainable),
        input_bytes=builder.bytes(leaves),
        batch_size=batch_size,
    )


class _LedgerBuilder:
    """Turns calls into rows; keeps which row produced a tensor and which one counted a weight."""

    def __init__(self, batch_size):
        self.batch_size = batch_size
        self.num_rows = 0
        self.producer = {}  # id of a tensor -> index of the row that produced it
        self.flattened = {}  # id of a tensor -> (channels, height, width) that it was flattened from
        self.counted_at = {}  # id of a weight -> path of the row that counted it
        self.followed = set()  # ids of the layers whose own operations have rows, or are counted in theirs

    def rows(self, call):
        """The rows of a call: its own, and of a call that was opened those inside."""
        if call.inner is not None and call.complete:
            self.followed.add(id(call.operation))
        if self.as_parent(call) or not any(isinstance(inner.operation, Layer) for inner in call.inner or ()):
            yield self.row(call)
            return
        yield self.heading(call)
        for inner in call.inner:
            if self.is_hidden(inner):
                self.pass_on(inner)
            else:
                yield from self.rows(inner)
        yield from self.unknown_rows(call)

    def heading(self, call):
        self.num_rows += 1
        layer = call.operation
        return LedgerRow(**self.common(call), group=True, parameters=layer.count_params(), note=self.group_note(layer))

    def unknown_rows(self, call):
        """A row for what a layer computes besides the calls of the layers inside it, if that could not be followed."""
        if not call.complete:
            self.num_rows += 1
            path = f"{call.path}/operations" if call.path else "operations"
            note = "computed outside Keras, not counted"
            yield LedgerRow(path, "Python", depth=call.depth + 1, note=note, macs=None, activation_bytes=None)

    def row(self, call):
        layer, kind = call.operation, type(call.operation).__name__
        index, self.num_rows = self.num_rows, self.num_rows + 1
        common = self.common(call)
        parameters = layer.count_params() if getattr(layer, "weights", None) else 0
        flattened = next((self.flattened[id(x)] for x in call.inputs if id(x) in self.flattened), None)
        formulas = parameter_formulas(layer, flattened) if parameters else ()
        sources = tuple(dict.fromkeys(self.producer[id(x)] for x in call.inputs if id(x) in self.producer))
        macs = self.mac_formulas(call)
        values = [None] if macs is None else [formula.value for formula in macs]
        counted, trainable, note = self.count(layer, call.path) if parameters else (0, 0, "")
        for x in call.outputs:
            self.producer[id(x)] = index
            if kind == "Flatten" and len(common["inputs"][0]) in (2, 3):
                channels = common["inputs"][0][-1]
                self.flattened[id(x)] = (channels, *common["inputs"][0][:-1])  # channels first, as papers write it
            elif kind in _ELEMENTWISE_LAYERS and flattened:
                self.flattened[id(x)] = flattened
        return LedgerRow(
            **common,
            sources=sources,
            formulas=formulas,
            parameters=parameters,
            counted_parameters=counted,
            trainable=trainable,
            note=note,
            mac_formulas=macs or (),
            macs=None if None in values else sum(filter(None, values)),
            activation_bytes=self.saved_bytes(call),
        )

    def common(self, call):
        """What rows of layers and headings have in common."""
        inputs, outputs = (tuple(self.per_example(x.shape) for x in tensors) for tensors in (call.inputs, call.outputs))
        kind = type(call.operation).__name__
        return {
            **{"path": call.path, "kind": kind, "depth": call.depth, "inputs": inputs, "outputs": outputs},
            "layer": call.operation,
        }

    def mac_formulas(self, call):
        """Formulas of the MACs of a call that has one row; None if they are unknown."""
        if not isinstance(call.operation, Layer):
            operands, outputs = ([tuple(x.shape) for x in tensors] for tensors in (call.operands, call.outputs))
            formulas = operation_mac_formulas(call.operation, operands, outputs, self.batch_size)
        elif call.inner is None and not call.complete and stock_parent(type(call.operation)) is None:
            return None
        elif call.inner is None or self.as_parent(call):
            inputs, outputs = ([self.per_example(x.shape) for x in tensors] for tensors in (call.inputs, call.outputs))
            formulas = mac_formulas(call.operation, inputs, outputs, call.kwargs)
        else:  # a layer of the user's own with operations alone
            each = [(inner, self.mac_formulas(inner)) for inner in call.inner]
            if not call.complete or any(formulas is None for _, formulas in each):
                return None
            return [
                dataclasses.replace(formula, part=" ".join(filter(None, (inner.path.rpartition("/")[2], formula.part))))
                for inner, formulas in each
                for formula in formulas
            ]
        if formulas is None or call.repeat == 1:
            return formulas
        return [
            dataclasses.replace(one, symbolic=f"t·{one.symbolic}", values=one.values | {"t": call.repeat})
            for one in formulas
        ]

    def as_parent(self, call):
        """Whether a layer that was opened counts as the class of Keras that it inherits from: it does the same work."""
        layer = call.operation
        if call.inner is None or not isinstance(layer, Layer) or is_stock(type(layer)):
            return False
        if isinstance(layer, keras.Model) or stock_parent(type(layer)) is None:
            return False
        inputs, outputs = ([self.per_example(x.shape) for x in tensors] for tensors in (call.inputs, call.outputs))
        expected = mac_formulas(layer, inputs, outputs, call.kwargs)
        if expected is None or not call.complete:
            return expected is not None
        return sum(formula.value or 0 for formula in expected) == self.macs_inside(call)

    def macs_inside(self, call):
        """MACs of the calls that a call made; None where one is unknown."""
        macs = []
        for inner in call.inner:
            if inner.inner is not None and inner.complete and not self.as_parent(inner):
                macs.append(self.macs_inside(inner))
            else:
                formulas = self.mac_formulas(inner)
                macs += [None] if formulas is None else [formula.value for formula in formulas]
        return None if None in macs else sum(macs)

    def is_hidden(self, call):
        """Whether an operation in a layer's Python has no row: it views its input, or makes a mask or positions."""
        if call.named or isinstance(call.operation, Layer):
            return False
        floats = any("float" in keras.backend.standardize_dtype(x.dtype) for x in call.outputs)
        return type(call.operation).__name__ in VIEW_LAYERS or not floats

    def pass_on(self, call):
        """What takes the output of an operation without a row is fed by the rows that feed the operation."""
        source = next((self.producer[id(x)] for x in call.inputs if id(x) in self.producer), None)
        if source is not None:
            self.producer |= {id(x): source for x in call.outputs}

    def count(self, layer, path):
        """(parameters that no earlier row has, how many of those are trainable, a note if that is not all)."""
        weights = unique_weights(layer.weights)
        shared = [weight for weight in weights if id(weight) in self.counted_at]
        new = {id(weight): math.prod(weight.shape) for weight in weights if id(weight) not in self.counted_at}
        self.counted_at |= dict.fromkeys(new, path)
        trainable = sum(new.get(id(weight), 0) for weight in unique_weights(layer.trainable_weights))
        note = ""
        if shared and not new:
            note = f"shared: counted at {self.counted_at[id(shared[0])]}"
        elif shared:
            note = "tied: " + ", ".join(f"{weight.name} counted at {self.counted_at[id(weight)]}" for weight in shared)
        return sum(new.values()), trainable, note

    def group_note(self, model):
        """The note of a nested model that is called a second time."""
        if model.weights and all(id(weight) in self.counted_at for weight in model.weights):
            return "shared: its parameters are counted above"
        return ""

    def uncalled_rows(self, model):
        """A row for each layer with weights that belong to no call: weights of its own, and unused layers."""
        for layer in flatten_layers(model)[::-1]:  # the innermost first
            weights = [weight for weight in unique_weights(layer.weights) if id(weight) not in self.counted_at]
            if not weights:
                continue
            whole = len(weights) == len(unique_weights(layer.weights))
            formulas = parameter_formulas(layer) if whole else map(shape_formula, weights)
            size, trainable, _ = self.count(_WeightList(weights), layer.path or layer.name)
            yield LedgerRow(
                path=layer.path or layer.name,
                kind=type(layer).__name__,
                formulas=tuple(formulas),
                parameters=size,
                counted_parameters=size,
                trainable=trainable,
                note="weights of the layer itself" if self.own_weights(layer) else "used by no call",
                macs=0 if id(layer) in self.followed or all(len(weight.shape) <= 1 for weight in weights) else None,
                layer=layer,
            )

    @staticmethod
    def own_weights(layer):
        """The weights that a layer holds itself, not a layer inside it."""
        inner = {id(weight) for one in flatten_layers(layer, include_self=False) for weight in one.weights}
        return [weight for weight in layer.weights if id(weight) not in inner]

    def per_example(self, shape):
        """A shape without the batch, wherever it is; of a first axis that is a multiple of it, the factor remains."""
        shape = tuple(shape)
        if shape and shape[0] in (None, self.batch_size):
            return shape[1:]
        if shape and shape[0] % self.batch_size == 0:
            return (shape[0] // self.batch_size, *shape[1:])
        if self.batch_size in shape:
            axis = shape.index(self.batch_size)
            return shape[:axis] + shape[axis + 1 :]
        return shape

    def bytes(self, tensors):
        sizes = [(self.per_example(x.shape), bytes_per_element(x.dtype)) for x in tensors]
        if any(None in shape for shape, _ in sizes):
            return None
        return sum(math.prod(shape) * element_bytes for shape, element_bytes in sizes)

    def saved_bytes(self, call):
        """Bytes that a call with one row saves for the backward pass; None if unknown."""
        if type(call.operation).__name__ in VIEW_LAYERS or not call.outputs:
            return 0
        if call.inner and call.complete and not self.as_parent(call):
            sizes = [self.saved_bytes(inner) for inner in call.inner if not self.is_hidden(inner)]
            return None if None in sizes else sum(sizes)
        inputs = tuple(self.per_example(x.shape) for x in call.inputs)
        outputs, inner = self.bytes(call.outputs), saved_activations(call.operation, inputs)
        if outputs is None or inner is None or call.repeat is None:
            return None
        return (outputs + inner * bytes_per_element(call.outputs[0].dtype)) * call.repeat


@dataclasses.dataclass
class _WeightList:
    """Weights with the attributes of a layer that are counted."""

    weights: list

    @property
    def trainable_weights(self):
        return [weight for weight in self.weights if weight.trainable]


def open_inputs(model: keras.Model) -> dict[str, tuple[int | None, ...]]:
    """Find the inputs that leave sizes open.

    Args:
        model: a built `keras.Model`.

    Returns:
        {name of an input: shape of one example}, with None for each open size; {} if the model is not functional.
    """
    graph = functional_graph(model)
    return {x.name: tuple(x.shape[1:]) for x in graph.inputs if None in x.shape[1:]} if graph else {}


def _shapes_by_name(graph, shapes):
    """The shape of each input of a graph: the one given for its name, or else its own."""
    names = [x.name for x in graph.inputs]
    for name in shapes:
        if name not in names:
            raise UserError(f"There is no input {name!r}: choose among {', '.join(names)}.{did_you_mean(name, names)}")
    return [tuple(shapes.get(x.name, x.shape[1:])) for x in graph.inputs]


def _symbolic_inputs(model, input_shape):
    """Symbolic inputs of a model, with the shapes of `input_shape`."""
    graph, names = functional_graph(model), []
    if isinstance(input_shape, Mapping) and graph is None:
        raise UserError(f"The inputs of {model.name!r} have no names, because it is not functional: pass their shapes.")
    if graph is not None:
        own, names = [(tuple(x.shape), x.dtype) for x in graph.inputs], [x.name for x in graph.inputs]
        if isinstance(input_shape, Mapping):
            input_shape = _shapes_by_name(graph, input_shape)
    else:
        built = model.get_build_config() or {}
        built = built.get("shapes_dict", built).values()
        own = [(tuple(shape), model.input_dtype) for shape in built if shape and not isinstance(shape, dict)]
        if not own:
            if input_shape is None:
                raise UserError(f"The input shape of {model.name!r} is not known: pass input_shape, e.g. (48, 48, 3).")
            own = [(None, *shape) for shape in _list_of_shapes(input_shape)]
            own = [(shape, model.input_dtype) for shape in own]
    wanted = [shape[1:] for shape, _ in own] if input_shape is None else _list_of_shapes(input_shape)
    if len(wanted) == 1 < len(own):
        wanted *= len(own)  # one shape for every input
    fits = len(wanted) == len(own) and all(_fits(shape, own_shape[1:]) for shape, (own_shape, _) in zip(wanted, own))
    if not fits:
        takes = [format_shape(shape[1:]) for shape, _ in own]
        if len(names) > 1:
            takes = [f"{shape} for {name}" for shape, name in zip(takes, names)]
        raise UserError(
            f"input_shape is {input_shape}, but one example for {model.name!r} has shape {', '.join(takes)}."
        )
    batch = next((shape[0] for shape, _ in own if shape[0]), _TRACE_BATCH_SIZE)
    tensors = [keras.KerasTensor((batch, *shape), dtype=dtype) for shape, (_, dtype) in zip(wanted, own)]
    if graph is not None:
        return tree.pack_sequence_as(graph.input, tensors)
    return tensors[0] if len(tensors) == 1 else tensors


def _fits(shape, own):
    """Whether a shape fits the model's own: the same rank, and the same sizes where those are fixed."""
    return len(shape) == len(own) and all(size in (None, wanted) for wanted, size in zip(shape, own))


def _list_of_shapes(input_shape):
    several = bool(input_shape) and isinstance(input_shape[0], (tuple, list))
    return [tuple(shape) for shape in input_shape] if several else [tuple(input_shape)]


def _bytes(shapes):
    """Bytes of float32 tensors; those with open sizes are left out."""
    return 4 * sum(math.prod(shape) for shape in shapes if None not in shape)


def bytes_per_element(dtype: str) -> int:
    """Bytes of one element of an array.

    Args:
        dtype: e.g. "float32".

    Returns:
        e.g. 4; at least 1.
    """
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return max(1, int(bits.group()) // 8) if bits else 1
