"""Large models without their numbers, to count and explain parameters in no memory."""

import contextlib

import keras


@contextlib.contextmanager
def unset():
    """Models built inside have the shapes of their weights, but no values; they must hold no random state."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        keras.src.backend.common.global_state.set_global_attribute("uninitialized_variables", [])
