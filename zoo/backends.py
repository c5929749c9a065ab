"""The backends: which are installed, which one Keras runs on, and how it is imported. Importing this module loads none.

Keras runs on the backend that `KERAS_BACKEND` names, else the one in `~/.keras/keras.json`, else TensorFlow. Where none
was chosen and TensorFlow is not installed, `import zoo` chooses JAX or, if that is not installed either, PyTorch. The
"tensorflow" in `keras.json` counts as no choice: Keras writes it there when it is first imported, on any backend.
"""

import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile

from zoo.errors import UserError, did_you_mean, error_summary, install_command, run_command

BACKENDS = ("tensorflow", "jax", "torch")

# Keras imports these where they are installed, for wrappers and plots that the zoo does not use (2 of its 6 seconds),
# and JAX on every backend, for the sake of Orbax's checkpoints.
_OPTIONAL_PACKAGES = ("sklearn", "matplotlib", "jax")
_skip_optional_imports = False
_default_backend = None  # what `set_default_backend` chose
_announce_start = False


def installed_backends() -> list[str]:
    """The installed backends.

    Returns:
        their names.

    Raises:
        UserError: if there is none.
    """
    names = [name for name in BACKENDS if importlib.util.find_spec(name)]
    if not names:
        raise UserError(f"No backend is installed: {install_command('torch')}, or [jax] or [tensorflow].")
    return names


def package_version(name: str) -> str:
    """The version of an installed package, from its module: distributions may be called keras-nightly, tensorflow-cpu.

    Args:
        name: of the module.

    Returns:
        its version.
    """
    return str(importlib.import_module(name).__version__)


def check_backend(name: str, what: str = "the backend") -> None:
    """Check that a backend can be used.

    Args:
        name: of the backend.
        what: where its name was given, the subject of the sentence.

    Raises:
        UserError: if it is unknown or not installed.
    """
    if name not in BACKENDS:
        raise UserError(f"{what} is {name!r}: choose one of {', '.join(BACKENDS)}.{did_you_mean(name, BACKENDS)}")
    if name not in (names := installed_backends()):
        raise UserError(
            f"{what} is {name}, which is not installed: {install_command(name)}, or use {' or '.join(names)}."
        )


def set_default_backend() -> None:
    """Set `KERAS_BACKEND` where no backend was chosen and TensorFlow, Keras' own default, is not installed."""
    global _default_backend
    if "keras" in sys.modules or os.environ.get("KERAS_BACKEND") or _configured_backend():
        return
    others = [name for name in BACKENDS if importlib.util.find_spec(name)]
    if others and "tensorflow" not in others:
        os.environ["KERAS_BACKEND"] = _default_backend = others[0]


def _keras_json():
    folder = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return os.path.join(folder, "keras.json")


def _configured_backend():
    """The backend that `keras.json` names, None if there is none or Keras' own default."""
    try:
        with open(_keras_json(), encoding="utf-8") as file:
            backend = json.load(file).get("backend")
    except (OSError, ValueError, AttributeError):  # no such file, or not one of Keras
        return None
    return backend if backend != "tensorflow" else None


def import_keras(preferred: str | None = None) -> None:
    """Import Keras on the backend that `KERAS_BACKEND` names, without the messages TensorFlow writes at its start.

    Keras is imported whole, as `import keras` would, unless `skip_optional_imports` was called in this process. There
    float32, channels last and Keras' own epsilon count, whatever keras.json says.

    Args:
        preferred: the backend where none was chosen and this one is installed.

    Raises:
        UserError: if an unknown backend was chosen, or one that is not installed, or none is installed, or if Keras
            cannot use its keras.json.
    """
    if "keras" in sys.modules:
        return
    set_default_backend()
    chosen = os.environ.get("KERAS_BACKEND")
    if chosen and chosen != _default_backend:
        check_backend(chosen, "KERAS_BACKEND")
    elif configured := _configured_backend():
        check_backend(configured, "the backend in keras.json")
        os.environ["KERAS_BACKEND"] = configured
    elif preferred in installed_backends():
        os.environ["KERAS_BACKEND"] = preferred
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if _announce_start:
        names = {"tensorflow": " on TensorFlow", "jax": " on JAX", "torch": " on PyTorch"}
        print(f"Starting Keras{names.get(os.environ.get('KERAS_BACKEND', ''), '')} …", flush=True)
    try:
        with _stderr_held_back(), _without_optional_packages():
            import keras
    except (ValueError, AttributeError, TypeError) as error:
        if not os.path.isfile(_keras_json()):
            raise
        raise UserError(
            f"Keras cannot start with {_keras_json()} ({error_summary(error)}): correct that file or delete it."
        ) from error
    if _skip_optional_imports:  # what keras.json says is the user's own, for programs of the user's own
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
        keras.config.set_epsilon(1e-7)


def import_keras_or_exit() -> None:
    """`import_keras` for the top of a script: what it raises ends the process with one line.

    A script that is the process, not one that another program imports, calls `skip_optional_imports` by this, and says
    in one line that Keras starts, which takes seconds.
    """
    global _announce_start
    frame = inspect.currentframe()
    if frame and frame.f_back and frame.f_back.f_globals.get("__name__") == "__main__":
        skip_optional_imports()
        # Not for --help, nor in each of the processes that `zoo.distribution.launch` starts.
        _announce_start = not {"-h", "--help"} & set(sys.argv) and "ZOO_WATCHED" not in os.environ
    run_command(import_keras)


def skip_optional_imports() -> None:
    """Let `import_keras` leave out, in this process, what Keras imports for features that the zoo does not use.

    For processes that are the zoo's own (the `zoo` command, a recipe), which start up to 5 seconds sooner. There
    `keras.wrappers.SKLearn…`, Keras' plots and Orbax checkpoints do not work, and PyTorch's compiler is imported when
    it is first used. Never called when zoo is imported as a library.
    """
    global _skip_optional_imports
    _skip_optional_imports = True


def run_on_backend(backend: str, module: str, *arguments: object) -> None:
    """Run a module of the zoo in a process of its own, with Keras on a backend.

    Args:
        backend: its name.
        module: whose `main` is a `zoo.errors.run_command`.
        *arguments: of its command line.

    Raises:
        UserError: with the process's own sentence, if it fails.
    """
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    child = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if child.returncode:
        messages = child.stderr.strip().splitlines()
        signal = f"the process ended with signal {-child.returncode}"
        last = messages[-1] if messages and child.returncode > 0 else signal
        raise UserError(last.removeprefix("error: "))


@contextlib.contextmanager
def _without_optional_packages():
    """While Keras is imported, let its optional packages look as if they were not installed, if that was asked for."""
    if not _skip_optional_imports:
        yield
        return
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    names = [name for name in _OPTIONAL_PACKAGES if name != backend and name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: as if it were not installed
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
