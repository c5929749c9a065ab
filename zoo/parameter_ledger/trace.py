"""List every call of a layer or operation inside a model, in order, with symbolic tensors (nothing is computed)."""

import dataclasses
from typing import Any

import keras
from keras import tree

from zoo.compat.keras import flatten_layers, functional_graph, run_graph
from zoo.parameter_ledger.formulas import PARAMETER_RULES


@dataclasses.dataclass
class LayerCall:
    """One call.

    Attributes:
        operation: the layer, nested model or `keras.ops` operation.
        path: its name after those of the models it is nested in, e.g. "classifier/conv1".
        depth: number of models it is nested in.
        group: True for a nested model, whose own calls follow.
        inputs: list of symbolic tensors, batch included.
        kwargs: keyword arguments of the call.
        outputs: list of symbolic tensors, batch included.
    """

    operation: keras.Operation
    path: str
    depth: int
    group: bool
    inputs: list
    kwargs: dict[str, Any]
    outputs: list


def trace(model: keras.Model, inputs: Any) -> list[LayerCall]:
    """Trace a model.

    Args:
        model: a built `keras.Model`.
        inputs: nest of `keras.KerasTensor`s, batch included, in the structure of the model's inputs.

    Returns:
        list of `LayerCall`s. Nested functional and sequential models are entered, and so are layers of unknown kind and
        models whose `call` is Python: there the calls of the layers inside are recorded while Keras traces it.
    """
    calls = []
    graph = functional_graph(model)
    if graph is None:
        _trace_python(calls, model, (inputs,), {}, "", 0)
        return calls
    input_layers = {id(layer.output): layer for layer in graph.layers if isinstance(layer, keras.layers.InputLayer)}
    for tensor, value in zip(graph.inputs, tree.flatten(inputs)):
        layer = input_layers[id(tensor)]
        calls.append(LayerCall(layer, layer.name, 0, False, [], {}, [value]))
    _trace_graph(calls, graph, inputs, "", 0)
    return calls


def _trace_graph(calls, graph, inputs, prefix, depth):
    """Record the calls in a functional model; returns its symbolic outputs."""

    def call(operation, *args, **kwargs):
        path = prefix + operation.name
        nested = isinstance(operation, keras.Model) and functional_graph(operation)
        record = LayerCall(operation, path, depth, False, _tensors((args, kwargs)), kwargs, [])
        calls.append(record)
        inner = []
        if nested:
            outputs = _trace_graph(inner, nested, args[0], path + "/", depth + 1)
        elif _is_composite(operation):
            outputs = _trace_python(inner, operation, args, kwargs, path + "/", depth + 1)
        else:
            outputs = operation.compute_output_spec(*args, **kwargs)
        record.group, record.outputs = bool(inner), _tensors(outputs)
        calls.extend(inner)
        return outputs

    return run_graph(graph, tree.flatten(inputs), call)


def _trace_python(calls, layer, args, kwargs, prefix, depth):
    """Record the calls of known or innermost layers that a layer's Python `call` makes; returns its outputs."""
    recorded, inside = set(), []
    original = keras.layers.Layer.__call__

    def recording_call(inner, *inner_args, **inner_kwargs):
        if inner is layer or inside or _is_composite(inner):
            return original(inner, *inner_args, **inner_kwargs)
        inside.append(inner)
        try:
            outputs = original(inner, *inner_args, **inner_kwargs)
        finally:
            inside.pop()
        inputs = _tensors((inner_args, inner_kwargs))
        # Keras may trace the same Python twice; a layer called again on the same shapes is taken for that.
        key = (id(inner), tuple(tuple(x.shape) for x in inputs))
        if key not in recorded:
            recorded.add(key)
            path = prefix + inner.name
            calls.append(LayerCall(inner, path, depth, False, inputs, inner_kwargs, _tensors(outputs)))
        return outputs

    keras.layers.Layer.__call__ = recording_call
    try:
        return layer.compute_output_spec(*args, **kwargs)
    finally:
        keras.layers.Layer.__call__ = original


def _is_composite(operation):
    """Whether this is a layer of unknown kind that is made of other layers with weights."""
    if not isinstance(operation, keras.layers.Layer) or type(operation) in PARAMETER_RULES:
        return False
    return any(inner.weights for inner in flatten_layers(operation, include_self=False))


def _tensors(nest):
    return [leaf for leaf in tree.flatten(nest) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
