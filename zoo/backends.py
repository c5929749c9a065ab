"""The backends: which are installed, and Keras started on one of them. Importing this module loads none."""

import contextlib
import importlib.util
import os
import sys
import tempfile

from zoo.errors import UserError, nearest

BACKENDS = ("tensorflow", "jax", "torch")


def installed():
    """Names of the installed backends.

    Raises:
        UserError: if there is none.
    """
    found = [name for name in BACKENDS if importlib.util.find_spec(name)]
    if not found:
        raise UserError("No backend is installed: pip install tensorflow, jax or torch.")
    return found


def check(name, what="the backend"):
    """Raise UserError if a backend is unknown or not installed; `what` says where its name was given."""
    if name not in BACKENDS:
        raise UserError(f"{what} is {name!r}: choose one of {', '.join(BACKENDS)}.{nearest(name, BACKENDS)}")
    if name not in installed():
        raise UserError(f"{what} is {name}, which is not installed: pip install {name}, or use {_or(installed())}.")


def start():
    """Import Keras on the backend that `KERAS_BACKEND` names, without the messages TensorFlow writes as it starts.

    Where it names none and TensorFlow, Keras' default, is not installed, another one is taken, and a line says so.

    Raises:
        UserError: if it names an unknown backend, or one that is not installed.
    """
    if "keras" in sys.modules:
        return
    if chosen := os.environ.get("KERAS_BACKEND"):
        check(chosen, "KERAS_BACKEND")
    elif "tensorflow" not in installed():
        os.environ["KERAS_BACKEND"] = installed()[0]
        print(f"KERAS_BACKEND is not set and TensorFlow is not installed: using {installed()[0]}.", file=sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _stderr_held_back():
        import keras  # noqa: F401


def _or(names):
    return " or ".join(names)


@contextlib.contextmanager
def _stderr_held_back():
    """Keep what is written to stderr, by C++ too, and show it only if an error comes out."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
