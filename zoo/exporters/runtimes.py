"""Exported models in their runtimes: load a file, run it on NumPy arrays. Neither Keras nor a framework is imported."""

from __future__ import annotations

import importlib.metadata
import pathlib
from collections.abc import Mapping

import numpy as np

from zoo.errors import UserError, did_you_mean, error_summary, require
from zoo.typing import StrPath

# Format of a folder -> the runtimes that run its files, the one of the certificate first.
RUNTIMES = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}
# Format -> what a file of it is called after the model.
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


class RuntimeModel:
    """A model file in a runtime.

    Args:
        runtime: "onnxruntime" or "openvino".
        path: of the model file.

    Raises:
        UserError: if the runtime is not installed or refuses the file.
    """

    def __init__(self, runtime: str, path: StrPath) -> None:
        self.runtime, self.path = runtime, pathlib.Path(path)
        load = {"onnxruntime": self._load_onnxruntime, "openvino": self._load_openvino}[runtime]
        try:
            self._run = load()
        except UserError:
            raise
        except Exception as error:  # runtimes raise many kinds
            raise UserError(
                f"{runtime} does not load {path} ({error_summary(error)}): export the model again, or take a newer "
                f"{runtime}."
            ) from error

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the model.

        Args:
            feeds: {name of an input: array}.

        Returns:
            list of outputs, in the order of the file.

        Raises:
            UserError: if the runtime cannot run it.
        """
        try:
            return [np.asarray(output) for output in self._run(dict(feeds))]
        except Exception as error:
            raise UserError(
                f"{self.runtime} does not run {self.path} ({error_summary(error)}): export the model again, or take a "
                f"newer {self.runtime}."
            ) from error

    def _load_onnxruntime(self):
        require("onnxruntime", what="The runtime onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)

    def _load_openvino(self):
        require("openvino", what="The runtime openvino")
        import openvino

        # The processor's bfloat16, which OpenVINO would take by itself, has 8 bits.
        compiled = openvino.Core().compile_model(str(self.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda feeds: list(compiled(feeds).values())


def check_runtimes(runtimes: list[str], folder_format: str) -> None:
    """Check that runtimes exist, run a format and are installed.

    Args:
        runtimes: their names.
        folder_format: a key of `RUNTIMES`.

    Raises:
        UserError: if one does not.
    """
    known = sorted({name for names in RUNTIMES.values() for name in names})
    for name in runtimes:
        if name not in known:
            raise UserError(
                f"There is no runtime {name!r}: choose one of {', '.join(known)}.{did_you_mean(name, known)}"
            )
        if name not in RUNTIMES[folder_format]:
            others = " or ".join(RUNTIMES[folder_format])
            raise UserError(f"{name} does not run files of the format {folder_format}: choose {others}.")
        require(name, what=f"The runtime {name}")


def check_format(folder_format: str) -> None:
    """Check the name of a format.

    Args:
        folder_format: what was asked for.

    Raises:
        UserError: if there is none of that name.
    """
    if folder_format not in RUNTIMES:
        raise UserError(
            f"There is no format {folder_format!r}: choose one of {', '.join(RUNTIMES)}."
            f"{did_you_mean(folder_format, RUNTIMES)}"
        )


def runtime_version(runtime: str) -> str:
    """The version of an installed runtime.

    Args:
        runtime: its name.

    Returns:
        e.g. "1.32.0".
    """
    return importlib.metadata.version(runtime)
