"""Models built without numbers in their weights, to be given them one by one, or to be counted in no memory.

Drawing random numbers that are overwritten at once takes longer than reading a file, on JAX by far.
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
