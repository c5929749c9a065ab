"""Functions of tensors that call models, compiled once for each shape."""

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from zoo.fast_paths.layers import inference_call

_MAX_TRACED_SECONDS = 0.5  # in longer calls on PyTorch, the time in Python does not matter
_num_changes = 0  # of layers, see `recompile_functions`


def recompile_functions() -> None:
    """Have every compiled function compiled again at its next call, since layers have gained or lost weights.

    `zoo.lora` calls it; so should who calls `enable_lora` or `quantize` of a layer.
    """
    global _num_changes
    _num_changes += 1


def inference_function(model: keras.Model) -> Callable[[Any], Any]:
    """A model as a compiled function for inference, by the backend's fast paths.

    Nothing in the model is replaced: it can be trained before and after, and the function reads its weights at each
    call. Several threads may call it. Gradients are not kept.

    Args:
        model: built `keras.Model`.

    Returns:
        function of the inputs, arrays or tensors in the structure that the model takes, that returns tensors.
    """
    run = compile_function(inference_call(model), lambda: model.variables)
    return lambda inputs: run(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))


def compile_function(
    function: Callable[..., Any],
    variables: Sequence[keras.Variable] | Callable[[], Sequence[keras.Variable]],
    *,
    jit_compile: bool = False,
    trace: bool = True,
) -> Callable[..., Any]:
    """Compile a function. Several threads may call the result.

    Args:
        function: takes and returns tensors, or nests of them; it calls models.
        variables: those of the models, or a function that gives them, where layers may gain some: it is called before
            the function is compiled, and again after `recompile_functions`. Weights are read at each call.
        jit_compile: on TensorFlow, compile with XLA too, which speeds up a loop of small steps.
        trace: on PyTorch, record the operations of a call with tensors of certain shapes, if the one before it was
            short, and from then on run them without Keras' Python around each layer. (While it records, PyTorch keeps
            all tensors, too many of a long call.) False for functions whose tensors have another shape at each call.

    Returns:
        a function with the same arguments; gradients are not kept.
    """
    latest = None

    def run(*args):
        nonlocal latest
        current = latest
        if current is None or current[0] != _num_changes:
            found = variables() if callable(variables) else variables
            latest = current = _num_changes, _compile(function, found, jit_compile, trace)
        return current[1](*args)

    return run


def _compile(function, variables, jit_compile, trace):
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        @jax.jit
        def run(values, *args):
            with keras.StatelessScope(list(zip(variables, values))):
                return function(*args)

        return lambda *args: run([variable.value for variable in variables], *args)
    if backend == "tensorflow":
        import tensorflow as tf

        graph_function = tf.function(function, jit_compile=jit_compile, autograph=False)
        traces = {}  # by shapes and dtypes: to `graph_function` itself each new shape is an oversight, it warns

        def run_trace(*args):
            signature = tuple((tuple(x.shape), x.dtype) for x in keras.tree.flatten(args))
            if signature not in traces:
                traces[signature] = graph_function.get_concrete_function(*args)
            return traces[signature](*args)

        return run_trace
    return _compile_torch(function, variables, trace)


def _compile_torch(function, variables, trace):
    import torch

    class FlatFunction(torch.nn.Module):
        """The function of flat tensors, with the variables as its parameters; keeps the outputs of the traced call."""

        def __init__(self, structure):
            super().__init__()
            for index, variable in enumerate(variables):
                self.register_parameter(str(index), variable.value)
            self.structure = [structure]

        def forward(self, *flat):
            self.outputs = [function(*keras.tree.pack_sequence_as(self.structure[0], flat))]
            return tuple(keras.tree.flatten(self.outputs[0]))

    traces, seconds = {}, {}  # by shapes of the tensors: (traced function, structure of the outputs); of the last call
    lock = threading.Lock()

    @torch.inference_mode()
    def run(*args):
        if not trace:
            return function(*args)
        flat = keras.tree.flatten(args)
        shapes = tuple(tuple(x.shape) for x in flat)
        if shapes not in traces and seconds.get(shapes, _MAX_TRACED_SECONDS) < _MAX_TRACED_SECONDS:
            with lock:
                if shapes not in traces:
                    flat_function = FlatFunction(args)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # of numbers that become constants, as they may for one shape
                        traced = torch.jit.trace(flat_function, tuple(flat), check_trace=False)
                    outputs = flat_function.outputs.pop()
                    traces[shapes] = traced, keras.tree.map_structure(lambda x: 0, outputs)
                    return outputs
        if shapes in traces:
            traced, structure = traces[shapes]
            with torch.jit.optimized_execution(False):  # which takes longer at small sizes than it saves
                return keras.tree.pack_sequence_as(structure, traced(*flat))
        start = time.perf_counter()
        outputs = function(*args)
        seconds[shapes] = time.perf_counter() - start
        return outputs

    return run
