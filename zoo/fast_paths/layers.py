"""Faster paths through stock layers: the same layers, weights, numbers and files.

For training, `use_fast_paths(model)` gives the stock layers of one model object another `call`, its `LSTM` and `GRU`
layers another loop (`zoo.fast_paths.recurrent`), and the optimizer it is compiled with a fused update
(`zoo.fast_paths.optimizers`). For inference, `inference_call(model)` is a function that runs the same layers and leaves
the model as it is. Configuration, weights and saved files stay the same, and so do results up to the order of float32
sums. What is slow in the stock path (see `benchmarks/`):

- PyTorch: see `zoo.fast_paths.torch_layers`; and a forward pass keeps every tensor to its end, where inference here
  lets go of a tensor after its last use.
- JAX on a CPU: the gradient of maximum pooling, and attention of many queries (`zoo.fast_paths.jax_layers`).
- TensorFlow: the stock path is good, but for recurrent layers and the optimizer.

`set_compiler_flags()` is the other half on JAX: XLA's matrix products and convolutions are handed to its YNNPACK
library one by one, which is faster on a CPU and, unlike jaxlib 0.10.2's default, right.
"""

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from zoo.compat.keras import flatten_layers, functional_graph, graph_calls, run_graph
from zoo.errors import UserError
from zoo.fast_paths import optimizers
from zoo.fast_paths.paths import FastCall, fast_paths, inference_paths


def use_fast_paths(model: keras.Model) -> None:
    """Give every eligible layer of a model, nested ones included, the fast path of the current backend.

    Eligible are the stock layers that `zoo.fast_paths.report` names, where their options allow it; others, and layers
    of classes derived from them, are left as they are. If the model is compiled with Keras' own Adam or AdamW, the
    optimizer's update is fused as well; after another `compile`, call this again. Numbers stay the same up to the order
    of sums, and weights, configuration and files stay as they are; `enable_lora`, `quantize`, `fit` and `save` work as
    before. `zoo.fast_paths.undo` takes it back.

    Args:
        model: built `keras.Model`, functional, sequential or subclassed.

    Raises:
        UserError: if the model is not built.
    """
    if not model.built:
        raise UserError(f"{model.name} is not built, so that its layers are not known: call it on a batch first.")
    paths = fast_paths()
    for layer in _layers_and_operations(model):
        path = paths.get(type(layer))
        if path and path.method not in vars(layer) and not path.why_not(layer):
            vars(layer)[path.method] = FastCall(layer, path)
    optimizers.fuse(getattr(model, "optimizer", None))
    _forget_compiled(model)


def undo(model: keras.Model) -> None:
    """Take `use_fast_paths` back: each layer of a model, and its optimizer, computes as Keras made it.

    Args:
        model: `keras.Model`, whether or not it has fast paths.
    """
    for layer in _layers_and_operations(model):
        for name in [name for name, value in vars(layer).items() if isinstance(value, FastCall)]:
            vars(layer).pop(name)
    optimizers.unfuse(getattr(model, "optimizer", None))
    _forget_compiled(model)


def _layers_and_operations(model):
    """Each layer of a model, nested ones included, and each operation of `keras.ops` in functional graphs."""
    found = flatten_layers(model)
    graphs = [graph for one in found if isinstance(one, keras.Model) and (graph := functional_graph(one))]
    operations = [call.operation for graph in graphs for call in graph_calls(graph)]
    return [*found, *(one for one in operations if not isinstance(one, layers.Layer))]


def _forget_compiled(model):
    """Have `fit`, `evaluate` and `predict` compile again: TensorFlow and JAX have recorded the layers as they were."""
    model.train_function = model.test_function = model.predict_function = None


def inference_call(model: keras.Model) -> Callable[[Any], Any]:
    """A function that computes what `model(inputs, training=False)` does, by the backend's fast paths.

    Nothing in the model is replaced, weights are read at each call, and several threads may call it. On PyTorch, the
    kernels of convolutions are put into the order in memory in which they are used (their shapes and values stay),
    which saves a copy at every call. After `quantize`, make a new function.

    Args:
        model: built `keras.Model`.

    Returns:
        function of the inputs, tensors in the structure that the model takes.
    """

    def stock(inputs):
        return model(inputs, training=False)

    graph = functional_graph(model)
    masks = any(isinstance(one, layers.Masking) or getattr(one, "mask_zero", False) for one in flatten_layers(model))
    if not inference_paths() or graph is None or masks:
        return stock
    return _graph_call(graph)


def _graph_call(graph):
    """The function of inputs that runs a functional model by the fast paths of inference."""
    calls, fast_calls, paths = graph_calls(graph), {}, inference_paths()
    for one in calls:
        operation, (args, _) = one.operation, one.arguments
        if operation in fast_calls:
            continue
        path = paths.get(type(operation))
        is_layer = isinstance(operation, layers.Layer)
        same_dtype = bool(one.inputs) and one.inputs[0].dtype == getattr(operation, "compute_dtype", None)
        if path and path.method == "call" and not path.why_not(operation) and (same_dtype or not is_layer):
            fast_calls[operation] = FastCall(operation, path)
            if keras.backend.backend() == "torch" and type(operation) is layers.Conv2D and not operation.lora_enabled:
                from zoo.fast_paths.torch_layers import reorder_kernel

                reorder_kernel(operation.kernel)
        elif isinstance(operation, keras.Model) and len(args) == 1 and (inner := functional_graph(operation)):
            fast_calls[operation] = _graph_call(inner)

    def call(operation, *args, **kwargs):
        fast = fast_calls.get(operation, operation)
        if isinstance(operation, layers.Layer) and (len(args) != 1 or kwargs):
            fast = operation
        return fast(*args, **kwargs)

    def run(inputs):
        inputs = keras.tree.flatten(inputs)
        inputs = [
            keras.ops.convert_to_tensor(x, dtype=like.dtype) for x, like in zip(inputs, graph.inputs, strict=True)
        ]
        outputs = run_graph(graph, inputs, call, calls)
        return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs

    return run


def set_compiler_flags() -> None:
    """On JAX, choose XLA's faster CPU kernels through `XLA_FLAGS`; call it before JAX runs its first operation.

    Only for the jaxlib releases it was measured on, because XLA ends the process on a flag it does not know, and only
    where the user has not set the flag. Accuracy was compared with float64. Products that are fused with what follows
    them, jaxlib 0.10.2's default, are left out: they give wrong numbers without a word (jax issue 39103).
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if keras.backend.backend() == "jax" and flag not in flags:
        if importlib.metadata.version("jaxlib").startswith("0.10."):
            os.environ["XLA_FLAGS"] = f"{flags} {flag}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT".strip()
