"""Errors that a user can put right, each one sentence, and the exit codes that a command ends with."""

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any


class UserError(Exception):
    """Something the user can put right. The message is one sentence: what was found, what was expected, what to do."""

    exit_code = 2


class TrainingError(UserError):
    """Training cannot go on, e.g. because the loss is no longer a number."""

    exit_code = 1


# The extra of pyproject.toml that installs what the core does without, by the names that packages are imported by.
EXTRAS = {
    "tensorflow": ("tensorflow",),
    "jax": ("jax",),
    "torch": ("torch",),
    "data": ("tensorflow_datasets", "importlib_resources"),
    "train": ("matplotlib", "sklearn", "sacrebleu", "sacremoses", "num2words"),
    "convert": ("safetensors", "sentencepiece"),
    "export": ("onnx", "onnxruntime", "onnx_ir", "openvino", "ai_edge_litert"),
    "lessons": ("jupytext", "nbconvert", "ipykernel", "jupyterlab", "matplotlib", "sklearn"),
}


def require(*packages: str, what: str) -> None:
    """Check, before the work begins, that packages which the core does without are installed.

    Args:
        *packages: names that the packages are imported by, of `EXTRAS` or of the core.
        what: what needs them, the subject of the sentence, e.g. "A plot".

    Raises:
        UserError: if one is not installed; the sentence has the command that installs it.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        extras = _extras_with(missing)
        names = " and ".join([", ".join(missing[:-1]), missing[-1]]).removeprefix(" and ")
        verb = "are" if len(missing) > 1 else "is"
        command = install_command(*extras) if extras else f"pip install {' '.join(missing)}"  # a package of the core
        raise UserError(f"{what} needs {names}, which {verb} not installed: {command}.")


def _extras_with(packages):
    """One extra that has all of the packages, or else as many as it takes, in their order."""
    for extra, names in EXTRAS.items():
        if set(packages) <= set(names):
            return [extra]
    extras, left = [], set(packages)
    for extra, names in EXTRAS.items():
        if set(names) & left:
            extras.append(extra)
            left -= set(names)
    return extras


def install_command(*extras: str) -> str:
    """The command that installs extras.

    Args:
        *extras: their names.

    Returns:
        e.g. "pip install 'keras-model-zoo[train]'".
    """
    return f"pip install 'keras-model-zoo[{','.join(extras)}]'"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name.

    Args:
        name: the name received.
        known: the names that there are.

    Returns:
        " Did you mean X?" for the closest, or "" when none is close.
    """
    close = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[object], *, most: int, between: str = ", ") -> str:
    """Names as a part of a sentence, the first of them where there are many.

    Args:
        names: what to list.
        most: how many are shown.
        between: what stands between two.

    Returns:
        e.g. "a, b, … (9 in all)".
    """
    words = [str(name) for name in names]
    return between.join(words[:most]) + (f"{between}… ({len(words)} in all)" if len(words) > most else "")


def error_summary(error: BaseException) -> str:
    """The message of an exception of Keras or a backend as one short line, without frames and colours.

    Args:
        error: the exception.

    Returns:
        the line, without a full stop.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rsplit("Exception encountered: ", 1)[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception encountered when calling")]
    return (lines or [type(error).__name__])[0][:200].rstrip(".")


_muted = False


def mute_output() -> None:
    """Print nothing more from this process: another process of the same run reports."""
    global _muted
    _muted = True
    sys.stdout = open(os.devnull, "w", encoding="utf-8")


def run_command(main: Callable[..., Any], *arguments: Any) -> Any:
    """Run a command's `main`; end the process with one clear line, never a traceback, when the user must act.

    Exit codes: 0 done, 1 training failed, 2 wrong input, 130 interrupted with Ctrl-C.

    Args:
        main: the function.
        *arguments: of it.

    Returns:
        what `main` returns.
    """
    try:
        result = main(*arguments)
        sys.stdout.flush()
        return result
    except UserError as error:
        _exit(f"error: {error}", error.exit_code)
    except KeyboardInterrupt as interrupt:
        _exit(f"interrupted{f': {interrupt}' if str(interrupt) else '.'}", 130)
    except BrokenPipeError:  # `zoo list | head`: the reader has closed the pipe
        os._exit(0)
    except OSError as error:
        _exit(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.", 2)


def _exit(message, code):
    """Print one last line and exit at once.

    Not `sys.exit`: when training is cut short, TensorFlow's threads are still reading batches ahead and would print
    tracebacks of their own while Python shuts down. Files are written atomically, so nothing is lost.
    """
    sys.stdout.flush()
    if _muted:
        os._exit(code)
    # Training is cut short in the middle of a progress line; wrong input is found before anything is printed.
    print(message if code == UserError.exit_code else f"\n{message}", file=sys.stderr, flush=True)
    os._exit(code)
