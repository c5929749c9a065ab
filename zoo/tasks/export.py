"""Write a preset, or any functional model file, in the format of another runtime, with a certificate."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from zoo import backends
from zoo.parity.records import ParityRecord, parity_path
from zoo.presets import Preset, find_preset
from zoo.typing import Log, StrPath


def export(
    preset: StrPath | Preset,
    folder: StrPath,
    *,
    format: str = "onnx",
    quantize: str | None = None,
    tolerance: float | None = None,
    log: Log | None = None,
) -> pathlib.Path:
    """Export a preset or a `.keras` file and prove that the result gives the same numbers.

    The parity records of the preset are replayed in the runtime of the format. A difference over the tolerance is an
    error, and nothing is written.

    Args:
        preset: a preset's name or folder, "hf://owner/name", or the path of a `.keras` file; one of several models is
            named after a slash, "diffusion_captions/denoiser". What its card says no task of is exported as one model.
        folder: where it goes; an export that is there is replaced, and anything else is an error.
        format: "onnx", "openvino", "litert", "saved_model" or "torch". The last three are written by TensorFlow or
            PyTorch, in a process of its own where Keras runs on another backend.
        quantize: "int8", "int4" or "float16" for smaller ONNX files; None for float32.
        tolerance: the largest difference that passes, as a fraction of the largest output (or of 1, if that is larger);
            1e-4, or that of the quantization, if None.
        log: function that takes a line for each result.

    Returns:
        pathlib.Path of the folder; `zoo.verify` takes it.

    Raises:
        UserError: if there is no such preset, its files are altered, the format is unknown, a package is missing, the
            folder cannot be written to, a model holds a layer or operation that cannot be exported, or a difference is
            over the tolerance.

    Example:
        >>> zoo.export("lstm_shakespeare", "lstm_onnx")
    """
    found = find_preset(preset)
    backends.import_keras()
    from zoo.exporters.export_folder import check_export, plan_of_model, write_export
    from zoo.tasks.base import TASK_CLASSES, task_class

    options: dict[str, Any] = {"folder_format": format, "quantize": quantize, "tolerance": tolerance, "log": log}
    check_export(folder, format, quantize)
    one_file = not isinstance(preset, Preset) and os.fspath(preset).endswith(".keras")
    paths = [found.model_path] if one_file or found.model_path.is_file() else found.model_paths
    records = {path.stem: ParityRecord.load(parity_path(path)) for path in paths if parity_path(path).is_file()}
    if found.task in TASK_CLASSES:
        task = task_class(found.task).from_preset(found, dtype="float32")
        return task._export(folder, records, **options)
    plan = plan_of_model(found.load_model(dtype="float32"))
    records = {"model": next(iter(records.values()))} if records else {}
    return write_export(folder, plan, records=records, **options)
