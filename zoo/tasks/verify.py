"""Check that a preset gives the same numbers on every backend."""

import os
from collections.abc import Callable, Sequence

from zoo.parity.verify import TOLERANCE, VerificationReport, verify_file
from zoo.presets import find_preset
from zoo.typing import Log, StrPath


def verify(
    preset: StrPath,
    *,
    tolerance: float = TOLERANCE,
    backends: Sequence[str] | None = None,
    log: Log | None = None,
    on_start: Callable[[str], None] | None = None,
) -> VerificationReport:
    """Run each model of a preset on every backend and compare the numbers, layer by layer.

    Each backend runs in a process of its own; the numbers are compared with the preset's parity record, or where there
    is none with those of the other backends.

    Args:
        preset: a preset's name or folder, "hf://owner/name", or the path of a `.keras` file; one of several models is
            named after a slash, "diffusion_captions/denoiser".
        tolerance: the largest difference that passes, as a fraction of the largest value (or of 1, if that is larger).
        backends: names of backends; those installed if None.
        log: function that takes each line of the report as soon as it is known.
        on_start: function that takes the name of each backend before it runs, which takes seconds.

    Returns:
        `zoo.parity.verify.VerificationReport`: `passed`, `rows` and, by `print(report)`, a text.

    Raises:
        UserError: if there is no such preset, a file is altered or unusable on every backend, the tolerance is no
            number from 0 up, or a backend is not installed.

    Example:
        >>> zoo.verify("cnn_mnist", backends=["torch"]).passed
        True
    """
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
