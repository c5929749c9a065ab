"""The processes in which backends compute, one each, seen from outside; what runs in them is `zoo.parity.worker`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from zoo.backends import BACKENDS, check_backend, installed_backends
from zoo.errors import UserError, did_you_mean
from zoo.typing import StrPath


class WorkerError(UserError):
    """What a worker answered in place of a result."""


class Worker:
    """A process in which one backend computes, for as many models as are asked for.

    Args:
        backend: name.
        setup: Python file that the process runs once Keras is imported; None for none.

    Attributes:
        backend: name.
        about: dict of backend, version and keras.

    Raises:
        UserError: if the backend or the file does not work.
    """

    def __init__(self, backend: str, setup: str | None = None) -> None:
        self.backend = backend
        environment = os.environ | {
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zoo.parity.worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.about = self("start", setup=setup)
        except BaseException:
            self.close()
            raise

    def __call__(self, method: str, **arguments: Any) -> Any:
        """Send a command and wait for its result.

        Args:
            method: of the process, see `zoo.parity.worker`.
            **arguments: of the method.

        Returns:
            its result.

        Raises:
            WorkerError: with the sentence that the process answered, or its last words.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerError(self._last_words(code))
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["result"]

    def _last_words(self, code):
        if code < 0:
            return f"the process ended with signal {-code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return (lines[-1] if lines else f"the process ended with code {code}").removeprefix("error: ")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()


def start_workers(
    backends: Sequence[str] | None = None,
    setup: StrPath | None = None,
    on_start: Callable[[str], None] | None = None,
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start a process for each backend.

    Args:
        backends: names; the installed ones if None.
        setup: Python file that each process runs; None for none.
        on_start: function that takes the name of each backend before its process starts.

    Returns:
        ({backend: worker}, {backend: sentence that says why it does not work}).

    Raises:
        UserError: if a name is unknown, or none works.
    """
    for name in backends or ():
        if name not in BACKENDS:
            raise UserError(
                f"A backend to run is {name!r}: choose of {', '.join(BACKENDS)}.{did_you_mean(name, BACKENDS)}"
            )
    workers, problems = {}, {}
    for name in dict.fromkeys(backends or installed_backends()):
        if on_start:
            on_start(name)
        try:
            check_backend(name, "a backend to run")
            workers[name] = Worker(name, os.path.abspath(setup) if setup else None)
        except UserError as error:
            problems[name] = str(error)
    if not workers:
        raise UserError(next(iter(problems.values())))
    return workers, problems
