"""List every call of a layer or operation inside a model, in order, with symbolic tensors (nothing is computed).

Keras' own layers are taken as they are. A layer or model of any other class is opened: its `call` runs with symbolic
tensors, on which each layer and each `keras.ops` operation states its output's shape. Where a `call` cannot be run so,
because it uses a framework's own functions or the values of its input, the layers inside are still recorded, by Keras'
own shape inference, and the rest is marked as unknown.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
import re
from typing import Any

import keras
from keras import layers, tree

from zoo.compat.keras import flatten_layers, functional_graph, run_graph
from zoo.parameter_ledger.formulas import MAC_RULES, PARAMETER_RULES, is_stock, stock_parent


@dataclasses.dataclass
class LayerCall:
    """One call.

    Attributes:
        operation: the layer, nested model or `keras.ops` operation.
        path: its name after those of the models it is nested in, e.g. "classifier/conv1".
        depth: number of models it is nested in.
        inputs: list of symbolic tensors, batch included.
        operands: list of all tensors it was called with, weights and constants too.
        kwargs: keyword arguments of the call.
        outputs: list of symbolic tensors, batch included.
        inner: list of `LayerCall`s that it made, in order; None if it was not opened.
        complete: False if some of what it computes is not in `inner`.
        repeat: number of times that it is called in turn, e.g. at each time step; None if that is open.
        named: True for an operation in the graph of a functional model, where it has a name.
    """

    operation: keras.Operation
    path: str
    depth: int
    inputs: list = dataclasses.field(default_factory=list)
    operands: list = dataclasses.field(default_factory=list)
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: list = dataclasses.field(default_factory=list)
    inner: list[LayerCall] | None = None
    complete: bool = True
    repeat: int | None = 1
    named: bool = False


def trace(model: keras.Model, inputs: Any) -> LayerCall:
    """Trace a model.

    Args:
        model: a built `keras.Model`.
        inputs: nest of `keras.KerasTensor`s, batch included, in the structure of the model's inputs.

    Returns:
        the `LayerCall` of the model, its path empty.
    """
    tracer, graph = _Tracer(model), functional_graph(model)
    with tracer.in_place_of_keras():
        tracer.record(model, (inputs,), {})
    (whole,) = tracer.calls
    if graph is not None:
        input_layers = {id(layer.output): layer for layer in graph.layers if isinstance(layer, layers.InputLayer)}
        named = [(input_layers[id(tensor)], value) for tensor, value in zip(graph.inputs, tree.flatten(inputs))]
        whole.inner[:0] = [LayerCall(layer, layer.name, 0, outputs=[value]) for layer, value in named]
    return whole


def must_open(operation: keras.Operation) -> bool:
    """Whether the calls inside have to be looked at: all but operations, and layers that the formulas know.

    Args:
        operation: a layer, model or operation.

    Returns:
        True for models, for layers of the user's own, and for layers of Keras that hold layers which must be opened.
    """
    if not isinstance(operation, layers.Layer):
        return False
    kind: Any = type(operation)
    if isinstance(operation, keras.Model) or kind is layers.Lambda:
        return True
    if kind in _HOLDERS:
        return any(must_open(inner) for inner in _HOLDERS[kind](operation))
    if kind in PARAMETER_RULES or kind in MAC_RULES:
        return False
    if is_stock(kind):
        return any(inner.weights for inner in flatten_layers(operation, include_self=False))
    parent: Any = stock_parent(kind)
    return parent is None or kind.call is not parent.call


# Layers of Keras that are known if those they hold are.
_HOLDERS = {
    layers.TimeDistributed: lambda layer: [layer.layer],
    layers.Bidirectional: lambda layer: [layer.forward_layer, layer.backward_layer],
    layers.RNN: lambda layer: _cells(layer.cell),
    layers.StackedRNNCells: lambda cell: _cells(cell),
}


class _Tracer:
    """Keeps the calls of the layer that is open; takes the place of Keras where layers and operations are called."""

    def __init__(self, root):
        self.root = root
        self.calls, self.names = [], collections.Counter()
        self.prefix, self.depth = "", -1
        self.repeat: int | None = 1
        self.busy = False  # nothing inside the present call is recorded
        self.inferring: set | None = (
            None  # the calls that Keras' shape inference has made; None while tensors are symbolic
        )

    def record(self, operation, args, kwargs, name=None):
        """Record a call with symbolic tensors; returns its outputs."""
        operands = _operands(operation, args, kwargs)
        call = LayerCall(
            operation,
            "" if operation is self.root else self.prefix + (name or self.name(operation)),
            self.depth,
            [x for x in operands if isinstance(x, keras.KerasTensor)],
            operands,
            kwargs,
            repeat=self.repeat,
            named=name is not None,
        )
        self.calls.append(call)
        outputs = self.open(call, args, kwargs) if must_open(operation) else self.spec(operation, args, kwargs)
        call.outputs = _tensors(outputs)
        return outputs

    def name(self, operation):
        """A layer's own name; for an operation that of its class, with a number if the layer has called others."""
        if isinstance(operation, layers.Layer):
            return operation.name
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(operation).__name__).lower()
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}_{self.names[name] - 1}"

    def spec(self, operation, args, kwargs):
        """The symbolic outputs of a call that is looked at as a whole."""
        self.busy, outer = True, self.busy
        try:
            outputs = operation.compute_output_spec(*args, **kwargs)
            if _is_open(outputs) and not _is_open((args, kwargs)):  # a layer's own rule may leave sizes open
                outputs = keras.Operation.compute_output_spec(operation, *args, **kwargs)
            return outputs
        finally:
            self.busy = outer

    def open(self, call, args, kwargs):
        """Record what a layer calls in `call.inner`; returns its outputs."""
        if type(call.operation) in _HOLDERS:
            return self.open_holder(call, args, kwargs)
        for follow in (self.follow, self.infer):
            try:
                with self.inside(call) as call.inner:
                    outputs = follow(call.operation, args, kwargs)
            except Exception:  # whatever this Python does that symbolic tensors do not take
                continue
            call.complete = follow == self.follow
            return outputs
        call.inner, call.complete = None, False
        return self.spec(call.operation, args, kwargs)

    @contextlib.contextmanager
    def inside(self, call):
        """Calls go into a new list, which is the value of this context."""
        outer = self.calls, self.names, self.prefix, self.depth
        self.calls, self.names, self.depth = [], collections.Counter(), self.depth + 1
        self.prefix = f"{call.path}/" if call.path else ""
        try:
            yield self.calls
        finally:
            self.calls, self.names, self.prefix, self.depth = outer

    def follow(self, layer, args, kwargs):
        """Run a layer's `call` with symbolic tensors."""
        graph = functional_graph(layer) if isinstance(layer, keras.Model) else None
        if graph is not None:
            return run_graph(graph, tree.flatten(args[0]), self.call_in_graph)
        args, kwargs = tree.map_structure(_autocast(layer), (args, kwargs))
        parameters = inspect.signature(layer.call).parameters
        required = [name for name in ("training", "mask") if name in parameters and name not in kwargs]
        kwargs = kwargs | {name: None for name in required if parameters[name].default is inspect.Parameter.empty}
        with keras.StatelessScope():  # states of random generators stay as they are
            return layer.call(*args, **kwargs)

    def call_in_graph(self, operation, *args, **kwargs):
        return self.record(operation, args, kwargs, name=operation.name)

    def infer(self, layer, args, kwargs):
        """Run a layer's `call` by Keras' shape inference, with the framework's own tensors."""
        if self.inferring is not None:
            raise RuntimeError("Keras infers the shapes of an outer layer already.")
        self.inferring = set()
        try:
            return keras.Operation.compute_output_spec(layer, *args, **kwargs)
        finally:
            self.inferring = None

    def record_inferred(self, layer, args, kwargs, original):
        """Record a call with the framework's tensors, unless layers inside it are to be recorded."""
        opened = must_open(layer)
        if opened and flatten_layers(layer, include_self=False):
            return original(layer, *args, **kwargs)
        self.busy = True
        try:
            outputs = original(layer, *args, **kwargs)
        finally:
            self.busy = False
        inputs = _operands(layer, args, kwargs)
        # Keras may run the same Python twice; a layer called again on the same shapes is taken for that.
        key = (id(layer), tuple(tuple(x.shape) for x in inputs))
        if self.inferring is not None and key not in self.inferring:
            self.inferring.add(key)
            path = self.prefix + layer.name
            call = LayerCall(layer, path, self.depth, inputs, inputs, kwargs, _tensors(outputs), repeat=self.repeat)
            call.complete = not opened
            self.calls.append(call)
        return outputs

    def open_holder(self, call, args, kwargs):
        """Record the layers that a layer of Keras calls in turn, with the inputs that it gives them."""
        holder, x = call.operation, call.inputs[0]
        with self.inside(call) as call.inner:
            if isinstance(holder, layers.Bidirectional):
                for layer in (holder.forward_layer, holder.backward_layer):
                    self.record(layer, args, {})
            elif isinstance(holder, layers.StackedRNNCells):
                self.record_cells(holder, x)
            else:
                repeat, steps = self.repeat, x.shape[1]
                self.repeat = None if None in (repeat, steps) else repeat * steps
                step = keras.KerasTensor((x.shape[0], *x.shape[2:]), dtype=x.dtype)
                if isinstance(holder, layers.TimeDistributed):
                    self.record(holder.layer, (step,), {})
                else:
                    self.record_cells(holder.cell, step)
                self.repeat = repeat
        return self.spec(holder, args, kwargs)

    def record_cells(self, cell, x):
        """Record one step of a recurrent cell, or of several of which each takes the output of the one before."""
        for one in _cells(cell):
            states = [keras.KerasTensor(shape, dtype=x.dtype) for shape in _state_shapes(one, x)]
            x, _ = self.record(one, (x, states), {})

    @contextlib.contextmanager
    def in_place_of_keras(self):
        """Layers and operations that are called inside call this tracer."""
        layer_call, symbolic_call = layers.Layer.__call__, keras.Operation.symbolic_call

        def call_layer(layer, *args, **kwargs):
            symbolic = any(isinstance(x, keras.KerasTensor) for x in tree.flatten((args, kwargs)))
            if symbolic:
                return self.spec(layer, args, kwargs) if self.busy else self.record(layer, args, kwargs)
            if self.inferring is None or self.busy:
                return layer_call(layer, *args, **kwargs)
            return self.record_inferred(layer, args, kwargs, layer_call)

        def call_operation(operation, *args, **kwargs):
            return self.spec(operation, args, kwargs) if self.busy else self.record(operation, args, kwargs)

        layers.Layer.__call__, keras.Operation.symbolic_call = call_layer, call_operation
        try:
            yield
        finally:
            layers.Layer.__call__, keras.Operation.symbolic_call = layer_call, symbolic_call


def _autocast(layer):
    """A function that gives symbolic floats the dtype that a layer computes in, as Keras does."""

    def convert(x):
        floats = isinstance(x, keras.KerasTensor) and layer.autocast and "float" in x.dtype
        return keras.KerasTensor(x.shape, dtype=layer.compute_dtype) if floats and x.dtype != layer.compute_dtype else x

    return convert


def _operands(operation, args, kwargs):
    """The tensors among the arguments, in the order of the parameters of `call`."""
    try:
        arguments = inspect.signature(operation.call).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return _tensors((args, kwargs))
    return _tensors(list(arguments.values()))


def _is_open(nest):
    return any(None in x.shape for x in tree.flatten(nest) if isinstance(x, keras.KerasTensor))


def _cells(cell):
    return getattr(cell, "cells", [cell])


def _state_shapes(cell, x):
    sizes = cell.state_size if isinstance(cell.state_size, (list, tuple)) else [cell.state_size]
    return [(x.shape[0], *(size if isinstance(size, (list, tuple)) else (size,))) for size in sizes]


def _tensors(nest: Any) -> list:
    return [leaf for leaf in tree.flatten(nest) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
