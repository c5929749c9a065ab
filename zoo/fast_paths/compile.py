"""Functions of tensors that call models, compiled once for each shape."""

import time
import warnings

import keras

SHORT = 0.5  # seconds of a call in PyTorch of which Python's share is worth saving


def compiled(function, variables, *, xla=False, traced=True):
    """Compile a function.

    Args:
        function: takes and returns tensors, or tuples of them; it calls models.
        variables: those of the models. Weights that change later are noticed.
        xla: on TensorFlow, compile with XLA too, which a loop of small steps gains from.
        traced: on PyTorch, record the operations of the first call with tensors of a shape that follows a short one,
            and from then on run them without Keras' Python around each layer. (While it records, PyTorch keeps all
            tensors, too many of a long call.) Not for functions whose tensors have another shape at each call.

    Returns:
        a function with the same arguments; gradients are not kept.
    """
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

        functions = {}  # one for each shape, as TensorFlow would do too, with a warning at the fifth

        def run_shape(*args):
            shapes = tuple(tuple(x.shape) for x in keras.tree.flatten(args))
            if shapes not in functions:
                functions[shapes] = tf.function(function, jit_compile=xla, autograph=False)
            return functions[shapes](*args)

        return run_shape
    return _torch(function, variables, traced)


def _torch(function, variables, traced):
    import torch

    class Recorded(torch.nn.Module):
        """The function of flat tensors, with the variables as its parameters; remembers what the recorded call gave."""

        def __init__(self, like):
            super().__init__()
            for place, variable in enumerate(variables):
                self.register_parameter(str(place), variable.value)
            self.like = [like]

        def forward(self, *flat):
            self.given = [function(*keras.tree.pack_sequence_as(self.like[0], flat))]
            return tuple(keras.tree.flatten(self.given[0]))

    recordings, seconds = {}, {}  # by shapes of the tensors: (recording, structure of what it gives); of the last call

    @torch.inference_mode()
    def run(*args):
        if not traced:
            return function(*args)
        flat = keras.tree.flatten(args)
        shapes = tuple(tuple(x.shape) for x in flat)
        if shapes in recordings:
            recording, given = recordings[shapes]
            with torch.jit.optimized_execution(False):  # which takes longer at small sizes than it saves
                return keras.tree.pack_sequence_as(given, recording(*flat))
        if seconds.get(shapes, SHORT) < SHORT:
            recorded = Recorded(args)
            with warnings.catch_warnings():  # of Python numbers that become constants, as they may for one shape
                warnings.simplefilter("ignore")
                recording = torch.jit.trace(recorded, tuple(flat), check_trace=False)
            given = recorded.given.pop()
            recordings[shapes] = recording, keras.tree.map_structure(lambda x: 0, given)
            return given
        began = time.perf_counter()
        given = function(*args)
        seconds[shapes] = time.perf_counter() - began
        return given

    return run
