"""Functions of tensors that call models, compiled once for each shape where the backend compiles."""

import keras


def compiled(function, variables, *, xla=False):
    """Compile a function.

    Args:
        function: takes and returns tensors, or tuples of them; it calls models.
        variables: those of the models. Weights that change later are noticed.
        xla: on TensorFlow, compile with XLA too, which a loop of small steps gains from.

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
    import torch

    def run(*args):
        with torch.inference_mode():
            return function(*args)

    return run
