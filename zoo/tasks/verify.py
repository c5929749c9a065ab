"""Check that a preset or any Keras model gives the same numbers on every backend."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError, error_summary
from zoo.exporters.certificates import ExportReport, is_export, verify_folder
from zoo.exporters.runtimes import FORMATS, check_runtime, check_runtimes
from zoo.parity.certificate import Certificate, certify
from zoo.parity.records import parity_path
from zoo.parity.training import TrainingCertificate, certify_training
from zoo.parity.verify import TOLERANCE, VerificationReport, verify_file
from zoo.parity.worker import split_function
from zoo.presets import find_preset
from zoo.typing import Log, StrPath

if TYPE_CHECKING:
    import keras
    import numpy as np

Report = VerificationReport | ExportReport | Certificate | TrainingCertificate


def verify(
    model: StrPath | keras.Model,
    *,
    tolerance: float | None = None,
    backends: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
    gradients: bool | None = None,
    precisions: Sequence[str] | None = None,
    inputs: StrPath | Mapping[str, np.ndarray] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int | None = None,
    setup: StrPath | None = None,
    train_steps: int | None = None,
    arguments: Sequence[str] = (),
    log: Log | None = None,
    on_start: Callable[[str], None] | None = None,
) -> Report:
    """Run a model on every backend, each in a process of its own, and compare the numbers.

    What is published in this zoo has parity records beside it: outputs are compared with those, layer by layer. Any
    other model, ours or not, gets a certificate: outputs, gradients of every weight, states after a training call and
    one optimizer step, in units of float32's rounding of a float64 run. A folder that `zoo.export` wrote is checked
    by itself: the files against its certificate, and the runtime against the parity records in it.

    Args:
        model: a preset's name or folder, "hf://owner/name", the path of a `.keras` file, FILE.py:FUNCTION, where the
            function returns a built model, or a `keras.Model`; one of a preset of several models is named after a
            slash, "diffusion_captions/denoiser".
        tolerance: against parity records, the largest difference that passes, as a fraction of the largest value (or of
            1, if that is larger); 1e-4, or what an export's certificate says, if None.
        backends: names of backends; those installed if None.
        runtimes: names of runtimes, "onnxruntime", "openvino", "litert", "tensorflow" or "torch": the preset is
            exported to a temporary folder, in the format of each, and run there instead; or the runtimes that are to
            run an exported folder.
        gradients: True for a certificate also where there is a parity record, False for outputs alone; if None, where
            there is no parity record or one of the arguments below is given.
        precisions: of the certificate: float32 (also if None), mixed_bfloat16, bfloat16, mixed_float16, float16.
        inputs: of the certificate: arrays by the names of the model's inputs, or an .npz file; random ones if None.
        input_shapes: sizes of one example by name of the input, or under "" for all of them.
        seed: of random inputs; 0 if None.
        setup: Python file that each process runs before it loads the model, e.g. to register classes.
        train_steps: trains what FILE.py:FUNCTION gives (a compiled model and batches) for so many steps and compares
            the losses; None for no training.
        arguments: words for `parse_args` of that file, where the function takes what that returns, as in a recipe.
        log: function that takes each line of the report as soon as it is known.
        on_start: function that takes the name of each backend before it runs, which takes seconds.

    Returns:
        a report with `passed` and, by `print(report)`, a text: `zoo.parity.verify.VerificationReport`,
        `zoo.parity.certificate.Certificate`, `zoo.parity.training.TrainingCertificate`, or of an export
        `zoo.exporters.certificates.ExportReport`.

    Raises:
        UserError: if there is no such model, a file is altered or unusable on every backend, inputs do not fit, the
            tolerance is no number from 0 up, or a name is unknown.

    Example:
        >>> zoo.verify("cnn_mnist", backends=["torch"]).passed
        True
    """
    options: dict[str, Any] = {"precisions": precisions, "inputs": inputs, "input_shapes": input_shapes, "seed": seed}
    common: dict[str, Any] = {"backends": backends, "log": log, "on_start": on_start}
    if train_steps is not None:
        return certify_training(str(model), steps=train_steps, arguments=arguments, setup=setup, **common)
    own: dict[str, Any] = {key: value for key, value in (options | {"setup": setup}).items() if value is not None}
    if not isinstance(model, (str, os.PathLike)):
        return _certify_model(model, own | common)
    if split_function(os.fspath(model)):
        return certify(model, arguments=arguments, **own, **common)
    if is_export(model):
        if backends:
            raise UserError(f"{model} is an exported folder, which runtimes run, not backends: leave backends out.")
        return verify_folder(model, tolerance=tolerance, runtimes=runtimes, log=log)
    if runtimes:
        if backends:
            raise UserError("A model is verified on backends or in runtimes: give one of the two.")
        return _verify_in_runtimes(model, TOLERANCE if tolerance is None else tolerance, runtimes, log)
    paths = _model_paths(model)
    if gradients is None:
        gradients = bool(own) or (tolerance is None and not any(parity_path(path).is_file() for path in paths))
    tolerance = TOLERANCE if tolerance is None else tolerance
    reports: list[Any] = []
    for path in paths:
        if reports and log:
            log("")
        one = certify(path, **own, **common) if gradients else verify_file(path, tolerance=tolerance, **common)
        reports.append(one)
    return _joined(reports, log)


def _model_paths(model):
    """The `.keras` files that a preset consists of, or the one that is named."""
    found = find_preset(model)
    if os.fspath(model).endswith(".keras"):
        return [found.model_path]
    return found.model_paths or [found.model_path]


def _certify_model(model, options):
    """Certificate of a model of this process, by way of a file."""
    import keras

    if not isinstance(model, keras.Model):
        raise UserError(f"verify takes a model, a name or a path, got {type(model).__name__}.")
    if not model.built:
        raise UserError(f"{model.name!r} is not built, so it has no weights to compare: call it once on data.")
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "model.keras"
        try:
            model.save(path)
        except Exception as error:  # Keras raises many kinds
            raise UserError(
                f"{model.name!r} cannot be saved for the other backends: {error_summary(error)}."
            ) from error
        return certify(path, name=model.name, **options)


def _joined(reports, log):
    """One report of several models."""
    if len(reports) == 1:
        return reports[0]
    text = "\n\n".join(report.text for report in reports)
    line = f"{sum(report.passed for report in reports)} of {len(reports)} models passed."
    if log:
        log(f"\n{line}")
    return VerificationReport(
        passed=all(report.passed for report in reports),
        rows=tuple(row for report in reports for row in report.rows),
        text=f"{text}\n\n{line}",
    )


def _verify_in_runtimes(preset, tolerance, runtimes, log):
    """Export to a temporary folder and verify that; a difference is a row of the report, not an error."""
    from zoo.tasks.export import export

    formats: dict[str, list[str]] = {}
    for runtime in dict.fromkeys(runtimes):
        check_runtime(runtime)
        folder_format = next(name for name, about in FORMATS.items() if runtime in about.runtimes)
        check_runtimes([runtime], folder_format)
        formats.setdefault(folder_format, []).append(runtime)
    reports = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder_format, names in formats.items():
            folder = pathlib.Path(scratch) / folder_format
            export(preset, folder, format=folder_format, tolerance=1.0)
            reports.append(verify_folder(folder, tolerance=tolerance, runtimes=names, log=log))
    return ExportReport(
        passed=all(report.passed for report in reports),
        rows=tuple(row for report in reports for row in report.rows),
        text="\n\n".join(report.text for report in reports),
    )
