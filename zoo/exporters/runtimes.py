"""Formats of exported models, and their runtimes: load a file, run it on NumPy arrays.

Keras is not imported, and a framework only where it is the runtime.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from zoo.backends import BACKENDS, package_version
from zoo.errors import UserError, did_you_mean, error_summary, require
from zoo.typing import StrPath


@dataclasses.dataclass(frozen=True)
class ExportFormat:
    """A format of model files.

    Attributes:
        suffix: what a file of it is called after the model.
        runtimes: the runtimes that run it, the one of the certificate first.
        packages: names of the packages that write it.
        backend: the backend that Keras has to run on to write it; None for any.
        fixed_shapes: whether the sizes of inputs are fixed.
    """

    suffix: str
    runtimes: tuple[str, ...]
    packages: tuple[str, ...] = ()
    backend: str | None = None
    fixed_shapes: bool = False


FORMATS = {
    "onnx": ExportFormat(".onnx", ("onnxruntime", "openvino"), ("onnx",)),
    "openvino": ExportFormat(".xml", ("openvino",), ("onnx",)),
    "litert": ExportFormat(".tflite", ("litert",), backend="tensorflow", fixed_shapes=True),
    "saved_model": ExportFormat("", ("tensorflow",), backend="tensorflow"),
    "torch": ExportFormat(".pt2", ("torch",), backend="torch"),
}
# Runtime -> the package that it is imported as.
RUNTIMES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai_edge_litert",
    "tensorflow": "tensorflow",
    "torch": "torch",
}


class RuntimeModel:
    """A model file in a runtime.

    Args:
        runtime: a key of `RUNTIMES`.
        path: of the model file; of a SavedModel the folder.
        output_names: the order of the outputs; that of the file if None, which LiteRT and TensorFlow do not state.

    Raises:
        UserError: if the runtime is not installed or refuses the file.
    """

    def __init__(self, runtime: str, path: StrPath, output_names: Sequence[str] | None = None) -> None:
        self.runtime, self.path, self._output_names = runtime, pathlib.Path(path), output_names
        load = {
            "onnxruntime": self._load_onnxruntime,
            "openvino": self._load_openvino,
            "litert": self._load_litert,
            "tensorflow": self._load_tensorflow,
            "torch": self._load_torch,
        }[runtime]
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
            feeds: {name of an input: array}, in the order of the model's inputs.

        Returns:
            list of outputs.

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

    def _load_litert(self):
        require("ai_edge_litert", what="The runtime litert")
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(self.path)).get_signature_runner()
        return lambda feeds: self._ordered(runner(**feeds))

    def _load_tensorflow(self):
        require("tensorflow", what="The runtime tensorflow")
        import tensorflow

        self._loaded = tensorflow.saved_model.load(str(self.path))  # which its signatures do not keep alive
        run = self._loaded.signatures["serving_default"]
        return lambda feeds: self._ordered(run(**{name: tensorflow.constant(x) for name, x in feeds.items()}))

    def _load_torch(self):
        require("torch", what="The runtime torch")
        import torch

        module = torch.export.load(self.path).module()

        def run(feeds):
            with torch.no_grad():
                return [x.numpy() for x in module(*(torch.from_numpy(array.copy()) for array in feeds.values()))]

        return run

    def _ordered(self, outputs):
        """The outputs of a dict, in the order of `output_names`."""
        return [outputs[name] for name in self._output_names or sorted(outputs)]


def check_runtimes(runtimes: list[str], folder_format: str) -> None:
    """Check that runtimes exist, run a format and are installed.

    Args:
        runtimes: their names.
        folder_format: a key of `FORMATS`.

    Raises:
        UserError: if one does not.
    """
    for name in runtimes:
        check_runtime(name)
        if name not in FORMATS[folder_format].runtimes:
            others = " or ".join(FORMATS[folder_format].runtimes)
            raise UserError(f"{name} does not run files of the format {folder_format}: choose {others}.")
        require(RUNTIMES[name], what=f"The runtime {name}")


def check_runtime(name: str) -> None:
    """Check the name of a runtime.

    Args:
        name: what was asked for.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in RUNTIMES:
        raise UserError(
            f"There is no runtime {name!r}: choose one of {', '.join(RUNTIMES)}.{did_you_mean(name, RUNTIMES)}"
        )


def check_format(folder_format: str) -> None:
    """Check the name of a format.

    Args:
        folder_format: what was asked for.

    Raises:
        UserError: if there is none of that name.
    """
    if folder_format not in FORMATS:
        raise UserError(
            f"There is no format {folder_format!r}: choose one of {', '.join(FORMATS)}."
            f"{did_you_mean(folder_format, FORMATS)}"
        )


def runtime_version(runtime: str) -> str:
    """The version of an installed runtime.

    Args:
        runtime: its name.

    Returns:
        e.g. "1.32.0".
    """
    if runtime in BACKENDS:  # whose distributions have several names
        return package_version(runtime).partition("+")[0]
    return importlib.metadata.version(RUNTIMES[runtime])
