"""The backends: which are installed, and how Keras is imported on one of them. Importing this module loads none."""

import contextlib
import importlib.util
import inspect
import os
import sys
import tempfile

from zoo.errors import UserError, did_you_mean, run_command

BACKENDS = ("tensorflow", "jax", "torch")

# Keras imports these where they are installed, for wrappers and plots that the zoo does not use (2 of its 6 seconds),
# and JAX on every backend, for the sake of Orbax's checkpoints.
_OPTIONAL_PACKAGES = ("sklearn", "matplotlib", "jax")
_skip_optional_imports = False


def installed_backends():
    """Names of the installed backends.

    Raises:
        UserError: if there is none.
    """
    names = [name for name in BACKENDS if importlib.util.find_spec(name)]
    if not names:
        raise UserError("No backend is installed: pip install tensorflow, jax or torch.")
    return names


def check_backend(name, what="the backend"):
    """Raise UserError if a backend is unknown or not installed; `what` says where its name was given."""
    if name not in BACKENDS:
        raise UserError(f"{what} is {name!r}: choose one of {', '.join(BACKENDS)}.{did_you_mean(name, BACKENDS)}")
    if name not in (names := installed_backends()):
        raise UserError(f"{what} is {name}, which is not installed: pip install {name}, or use {' or '.join(names)}.")


def import_keras(preferred=None):
    """Import Keras on the backend that `KERAS_BACKEND` names, without the messages TensorFlow writes at its start.

    Keras is imported whole, as `import keras` would, unless `skip_optional_imports` was called in this process.

    Args:
        preferred: the backend where `KERAS_BACKEND` is not set and this one is installed. Else it is TensorFlow, Keras'
            default; if that is not installed another one is taken, and a line on stderr says so.

    Raises:
        UserError: if it names an unknown backend, or one that is not installed.
    """
    if "keras" in sys.modules:
        return
    if chosen := os.environ.get("KERAS_BACKEND"):
        check_backend(chosen, "KERAS_BACKEND")
    elif preferred in installed_backends():
        os.environ["KERAS_BACKEND"] = preferred
    elif "tensorflow" not in installed_backends():
        os.environ["KERAS_BACKEND"] = installed_backends()[0]
        print(
            f"KERAS_BACKEND is not set and TensorFlow is not installed: using {installed_backends()[0]}.",
            file=sys.stderr,
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _stderr_held_back(), _without_optional_packages():
        import keras  # noqa: F401


def import_keras_or_exit():
    """`import_keras` for the top of a script: what it raises ends the process with one line.

    A script that is the process, not one that another program imports, calls `skip_optional_imports` by this.
    """
    if inspect.currentframe().f_back.f_globals.get("__name__") == "__main__":
        skip_optional_imports()
    run_command(import_keras)


def skip_optional_imports():
    """Let `import_keras` leave out, in this process, what Keras imports for features that the zoo does not use.

    For processes that are the zoo's own (the `zoo` command, a recipe), which start up to 5 seconds sooner. There
    `keras.wrappers.SKLearn…`, Keras' plots and Orbax checkpoints do not work, and PyTorch's compiler is imported when
    it is first used. Never called when zoo is imported as a library.
    """
    global _skip_optional_imports
    _skip_optional_imports = True


@contextlib.contextmanager
def _without_optional_packages():
    """While Keras is imported, let its optional packages look as if they were not installed, if that was asked for."""
    if not _skip_optional_imports:
        yield
        return
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    names = [name for name in _OPTIONAL_PACKAGES if name != backend and name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))
    with contextlib.ExitStack() as stack:
        if backend == "torch":
            from zoo.compat.torch import without_compiler

            stack.enter_context(without_compiler())
        try:
            yield
        finally:
            for name in names:
                sys.modules.pop(name, None)


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
