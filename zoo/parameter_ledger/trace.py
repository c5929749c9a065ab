"""Every call of a layer or operation inside a model, in order, followed with symbolic tensors (nothing is computed)."""

import dataclasses

import keras
from keras import tree

from zoo.parameter_ledger import formulas as arithmetic


@dataclasses.dataclass
class Call:
    """One call.

    Attributes:
        operation: the layer, nested model or `keras.ops` operation.
        path: its name after those of the models it is nested in, e.g. "classifier/conv1".
        depth: how many models it is nested in.
        group: True for a nested model, whose own calls follow.
        inputs, outputs: lists of symbolic tensors, batch included.
        keywords: keyword arguments of the call.
    """

    operation: object
    path: str
    depth: int
    group: bool
    inputs: list
    keywords: dict
    outputs: list


def trace(model, inputs):
    """Follow a model.

    Args:
        model: a built `keras.Model`.
        inputs: nest of `keras.KerasTensor`s, batch included, as the model takes it.

    Returns:
        list of `Call`s. Nested functional and sequential models are opened, and so are layers of unknown kind and
        models whose `call` is Python: there the calls of the layers inside are recorded while Keras traces it.
    """
    calls = []
    graph = functional_graph(model)
    if graph is None:
        _follow_python(calls, model, (inputs,), {}, "", 0)
        return calls
    for tensor, value in zip(graph.inputs, tree.flatten(inputs)):
        layer = tensor._keras_history.operation
        calls.append(Call(layer, layer.name, 0, False, [], {}, [value]))
    _follow_graph(calls, graph, inputs, "", 0)
    return calls


def functional_graph(model):
    """The functional model of a functional or sequential model; None where `call` is the user's Python."""
    if isinstance(model, keras.Sequential):
        return model._functional
    functional = keras.src.models.functional.Functional
    return model if isinstance(model, functional) and type(model).call is functional.call else None


def _follow_graph(calls, graph, inputs, prefix, depth):
    return graph._run_through_graph(
        tree.flatten(inputs), operation_fn=lambda operation: _follow(calls, operation, prefix, depth)
    )


def _follow(calls, operation, prefix, depth):
    """A stand-in for an operation of a graph: called like it, it records and returns symbolic outputs."""

    def call(*arguments, **keywords):
        path = prefix + operation.name
        nested = isinstance(operation, keras.Model) and functional_graph(operation)
        record = Call(operation, path, depth, False, _tensors((arguments, keywords)), keywords, [])
        calls.append(record)
        inner = []
        if nested:
            outputs = _follow_graph(inner, nested, arguments[0], path + "/", depth + 1)
        elif _made_of_layers(operation):
            outputs = _follow_python(inner, operation, arguments, keywords, path + "/", depth + 1)
        else:
            outputs = operation.compute_output_spec(*arguments, **keywords)
        record.group, record.outputs = bool(inner), _tensors(outputs)
        calls.extend(inner)
        return outputs

    return call


def _follow_python(calls, layer, arguments, keywords, prefix, depth):
    """Record the calls of known or innermost layers that a layer's Python `call` makes."""
    seen, inside = set(), []
    original = keras.layers.Layer.__call__

    def recording(inner, *inner_arguments, **inner_keywords):
        if inner is layer or inside or _made_of_layers(inner):
            return original(inner, *inner_arguments, **inner_keywords)
        inside.append(inner)
        try:
            outputs = original(inner, *inner_arguments, **inner_keywords)
        finally:
            inside.pop()
        taken = _tensors((inner_arguments, inner_keywords))
        # Keras may trace the same Python twice; a layer called again on the same shapes is taken for that.
        key = (id(inner), tuple(tuple(x.shape) for x in taken))
        if key not in seen:
            seen.add(key)
            calls.append(Call(inner, prefix + inner.name, depth, False, taken, inner_keywords, _tensors(outputs)))
        return outputs

    keras.layers.Layer.__call__ = recording
    try:
        return layer.compute_output_spec(*arguments, **keywords)
    finally:
        keras.layers.Layer.__call__ = original


def _made_of_layers(operation):
    """Whether this is a layer of unknown kind that is made of other layers with weights."""
    if not isinstance(operation, keras.layers.Layer) or type(operation) in arithmetic.PARAMETERS:
        return False
    return any(inner.weights for inner in operation._flatten_layers(include_self=False))


def _tensors(nest):
    return [leaf for leaf in tree.flatten(nest) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
