"""Check that a preset gives the same numbers on every backend."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

from zoo.errors import UserError
from zoo.exporters.certificates import ExportReport, is_export, verify_folder
from zoo.exporters.runtimes import FORMATS, check_runtime, check_runtimes
from zoo.parity.verify import TOLERANCE, VerificationReport, verify_file
from zoo.presets import find_preset
from zoo.typing import Log, StrPath


def verify(
    preset: StrPath,
    *,
    tolerance: float | None = None,
    backends: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
    log: Log | None = None,
    on_start: Callable[[str], None] | None = None,
) -> VerificationReport | ExportReport:
    """Run each model of a preset on every backend and compare the numbers, layer by layer.

    Each backend runs in a process of its own; the numbers are compared with the preset's parity record, or where there
    is none with those of the other backends. A folder that `zoo.export` wrote is checked by itself: the files against
    its certificate, and the runtime against the parity records in it.

    Args:
        preset: a preset's name or folder, "hf://owner/name", or the path of a `.keras` file; one of several models is
            named after a slash, "diffusion_captions/denoiser".
        tolerance: the largest difference that passes, as a fraction of the largest value (or of 1, if that is larger);
            1e-4, or what the certificate says, if None.
        backends: names of backends; those installed if None.
        runtimes: names of runtimes, "onnxruntime", "openvino", "litert", "tensorflow" or "torch": the preset is
            exported to a temporary folder, in the format of each, and run there instead; or the runtimes that are to
            run an exported folder.
        log: function that takes each line of the report as soon as it is known.
        on_start: function that takes the name of each backend before it runs, which takes seconds.

    Returns:
        `zoo.parity.verify.VerificationReport`, or of an export `zoo.exporters.certificates.ExportReport`: `passed`,
        `rows` and, by `print(report)`, a text.

    Raises:
        UserError: if there is no such preset, a file is altered or unusable on every backend, the tolerance is no
            number from 0 up, or a backend is not installed.

    Example:
        >>> zoo.verify("cnn_mnist", backends=["torch"]).passed
        True
    """
    if is_export(preset):
        if backends:
            raise UserError(f"{preset} is an exported folder, which runtimes run, not backends: leave backends out.")
        return verify_folder(preset, tolerance=tolerance, runtimes=runtimes, log=log)
    if runtimes:
        if backends:
            raise UserError("A model is verified on backends or in runtimes: give one of the two.")
        return _verify_in_runtimes(preset, TOLERANCE if tolerance is None else tolerance, runtimes, log)
    tolerance = TOLERANCE if tolerance is None else tolerance
    found = find_preset(preset)
    one_file = os.fspath(preset).endswith(".keras")
    reports = []
    for path in [found.model_path] if one_file else found.model_paths or [found.model_path]:
        if reports and log:
            log("")
        reports.append(verify_file(path, tolerance=tolerance, backends=backends, log=log, on_start=on_start))
    text = "\n\n".join(report.text for report in reports)
    if len(reports) > 1:
        line = f"{sum(report.passed for report in reports)} of {len(reports)} models passed."
        text = f"{text}\n\n{line}"
        if log:
            log(f"\n{line}")
    return VerificationReport(
        passed=all(report.passed for report in reports),
        rows=tuple(row for report in reports for row in report.rows),
        text=text,
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
