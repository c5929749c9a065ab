"""Models built without numbers in their weights, or with zeros, to be given them by a file or by NumPy.

Drawing random numbers that are overwritten at once takes longer than reading a file, on JAX by far, which compiles that
for each shape: 14 of the 16 s that loading a small diffusion took.
"""

import contextlib


@contextlib.contextmanager
def unset():
    """Models built inside have the shapes of their weights, but no values; they must hold no random layers.

    They can be counted, summarised and followed; each weight must be `fill`ed before the model is called.
    """
    import keras

    state = keras.src.backend.common.global_state
    waiting = list(state.get_global_attribute("uninitialized_variables", []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Else Keras would draw random numbers for them at the end of the next scope.
        state.set_global_attribute("uninitialized_variables", waiting)


def fill(variable, array):
    """Set a variable, also one that has no value yet."""
    if variable._value is None:
        variable._initializer = lambda shape, dtype=None: array
        variable._deferred_initialize()
    else:
        variable.assign(array)


@contextlib.contextmanager
def blank():
    """Models built inside have zeros where random numbers would be; what is not random has its usual value."""
    import keras
    import numpy as np

    def zeros(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(np.zeros(shape, "float32"), dtype=dtype or keras.config.floatx())

    drawing = keras.src.initializers.random_initializers.RandomInitializer
    kinds = [kind for kind in _subclasses(drawing) if "__call__" in vars(kind)]
    originals = [kind.__call__ for kind in kinds]
    for kind in kinds:
        kind.__call__ = zeros
    try:
        yield
    finally:
        for kind, original in zip(kinds, originals):
            kind.__call__ = original


def _subclasses(kind):
    return [one for direct in kind.__subclasses__() for one in (direct, *_subclasses(direct))]
