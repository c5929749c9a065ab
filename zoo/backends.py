"""The backends: which are installed, and Keras started on one of them. Importing this module loads none."""

import contextlib
import importlib.util
import os
import sys
import tempfile
import types

from zoo.errors import UserError, nearest, run_command

BACKENDS = ("tensorflow", "jax", "torch")

# Keras imports these where they are installed, for wrappers and plots that nothing here uses: up to 2 of its 6 seconds.
UNUSED = ("sklearn", "matplotlib")


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


def start(preferred=None):
    """Import Keras on the backend that `KERAS_BACKEND` names, without the messages TensorFlow writes as it starts.

    Args:
        preferred: the backend where `KERAS_BACKEND` is not set and this one is installed. Else it is TensorFlow, Keras'
            default; if that is not installed another one is taken, and a line says so.

    Raises:
        UserError: if it names an unknown backend, or one that is not installed.
    """
    if "keras" in sys.modules:
        return
    if chosen := os.environ.get("KERAS_BACKEND"):
        check(chosen, "KERAS_BACKEND")
    elif preferred in installed():
        os.environ["KERAS_BACKEND"] = preferred
    elif "tensorflow" not in installed():
        os.environ["KERAS_BACKEND"] = installed()[0]
        print(f"KERAS_BACKEND is not set and TensorFlow is not installed: using {installed()[0]}.", file=sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # It also imports JAX on every backend, for the sake of Orbax's checkpoints.
    unused = (*UNUSED, "jax") if os.environ.get("KERAS_BACKEND", "jax") != "jax" else UNUSED
    with _stderr_held_back(), _hidden(unused), _without_torch_compiler():
        import keras  # noqa: F401


def start_script():
    """`start` for the top of a script: what it raises ends the process with one line."""
    run_command(start)


def _or(names):
    return " or ".join(names)


@contextlib.contextmanager
def _hidden(names):
    """Let packages that are not imported yet look as if they were not installed."""
    names = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _without_torch_compiler():
    """Let Keras mark what PyTorch's compiler must leave alone without importing that compiler, which takes 2 seconds.

    PyTorch's own decorator, which imports it when a marked function is first called, takes the place of Keras' choice.
    """
    name = "torch._dynamo"
    if os.environ.get("KERAS_BACKEND") != "torch" or name in sys.modules:
        yield
        return
    import torch

    sys.modules[name] = types.SimpleNamespace(disable=torch._compile._disable_dynamo)
    try:
        yield
    finally:
        del sys.modules[name]


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
