"""Compare a model file's numbers between backends, and find the first layer call that differs.

Each backend runs in a process of its own on the same inputs. The output of every layer call is compared with the parity
record beside the file (see `zoo.parity.records`) and with the other backends.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zoo.backends import check_backend, import_keras, installed_backends, run_on_backend, skip_optional_imports
from zoo.errors import UserError, run_command
from zoo.io import files, model_files
from zoo.parity.records import ParityRecord, compute_parity_record, parity_path
from zoo.typing import Log, StrPath

TOLERANCE = 1e-4
# When something is over the tolerance, the call where it began is looked for with a finer one: an error may be small
# where it starts and grow from call to call. Float32 backends agree to about 1e-6.
_FIRST_CALL_FACTOR = 0.1


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference between two parity records.

    Attributes:
        output_error: the largest `max_scaled_error` of the outputs; infinite where shapes do not match.
        layer_error: that of the samples of any layer call; infinite where layers do not match.
        weights: paths of the layers whose weights differ.
        first_different_call: (path, class name, index in call order, error) of the first layer call that differs.
        passed: whether no error is over the tolerance and the weights are equal.
    """

    output_error: float
    layer_error: float
    weights: tuple[str, ...]
    first_different_call: tuple[str, str, int, float] | None
    passed: bool


@dataclasses.dataclass(frozen=True)
class BackendResult:
    """One backend's row in a report.

    Attributes:
        file: path of the model file.
        backend: name of the backend.
        version: of the backend; None if the file does not run there.
        output_error: error of the outputs against the parity record, or else against the first backend; None if this is
            the reference itself or does not run.
        layer_error: that of the layers, likewise.
        seconds: time to load and run the model; None if it does not run.
        verdict: "same", "DIFFERS", "reference" or "does not run".
    """

    file: str
    backend: str
    version: str | None = None
    output_error: float | None = None
    layer_error: float | None = None
    seconds: float | None = None
    verdict: str = "does not run"

    def __str__(self):
        if self.version is None:
            return f"{self.backend:<12}{'':<38}  {self.verdict}"
        errors = f"{'':>19}"
        if self.output_error is not None:
            errors = f"{self.output_error:>9.1e}{self.layer_error:>10.1e}"
        return f"{self.backend:<12}{self.version:<10}{errors}{self.seconds:>9.1f}  {self.verdict}"


@dataclasses.dataclass(frozen=True)
class VerificationReport:
    """Result of `verify`; `print(report)` shows it.

    Attributes:
        passed: whether all backends run the model and give the numbers of its parity record and of one another.
        rows: tuple of `BackendResult`s.
        text: the report as text.
    """

    passed: bool
    rows: tuple[BackendResult, ...]
    text: str

    def __str__(self):
        return self.text


def max_scaled_error(array: np.ndarray, reference: np.ndarray) -> float:
    """max |array - reference| / max(1, max |reference|).

    Args:
        array: of numbers.
        reference: of the same shape.

    Returns:
        the error; infinite if shapes or non-finite values do not match.
    """
    finite = reference[np.isfinite(reference)].astype(np.float64)
    return max_difference(array, reference) / float(np.abs(finite).max(initial=1.0))


def max_difference(array: np.ndarray, reference: np.ndarray) -> float:
    """max |array - reference|.

    Args:
        array: of numbers.
        reference: of the same shape.

    Returns:
        the difference; infinite if shapes or non-finite values do not match.
    """
    if array.shape != reference.shape:
        return np.inf
    array, reference = array.astype(np.float64), reference.astype(np.float64)
    same = (array == reference) | (np.isnan(array) & np.isnan(reference))
    if not np.isfinite(array[~same]).all() or not np.isfinite(reference[~same]).all():
        return np.inf
    return float(np.abs(array[~same] - reference[~same]).max(initial=0.0))


def compare_records(record: ParityRecord, reference: ParityRecord, tolerance: float = TOLERANCE) -> Difference:
    """Compare two runs of a model.

    Args:
        record: `ParityRecord` of one.
        reference: that of the other, which sets the scale.
        tolerance: the largest `max_scaled_error` that passes.

    Returns:
        `Difference`.
    """
    if len(record.outputs) == len(reference.outputs):
        output_error = max(map(max_scaled_error, record.outputs, reference.outputs), default=0.0)
    else:
        output_error = np.inf
    calls = []
    for index, (path, (kind, array)) in enumerate(reference.layers.items()):
        other = record.layers.get(path, (None, np.zeros(0)))[1]
        calls.append((path, kind, index, max_scaled_error(other, array)))
    for index, (path, (kind, _)) in enumerate(record.layers.items()):
        if path not in reference.layers:
            calls.append((path, kind, index, np.inf))
    calls.sort(key=lambda call: call[2])
    layer_error = max((call[3] for call in calls), default=0.0)
    digests = reference.metadata["weights"]
    weights = tuple(path for path in digests if record.metadata["weights"].get(path) != digests[path])
    passed = max(output_error, layer_error) <= tolerance and not weights
    differing = (call for call in calls if call[3] > _FIRST_CALL_FACTOR * tolerance or call[0] in weights)
    return Difference(output_error, layer_error, weights, None if passed else next(differing, None), passed)


# ---------------------------------------------------------------------------------------------------------- verifying


def verify_file(
    model_path: StrPath,
    *,
    tolerance: float = TOLERANCE,
    backends: Sequence[str] | None = None,
    log: Log | None = None,
    on_start: Callable[[str], None] | None = None,
) -> VerificationReport:
    """Run a model file on each backend and compare the numbers.

    Args:
        model_path: a `.keras` file; compared with its card.
        tolerance: the largest `max_scaled_error` that passes.
        backends: names of backends; those installed if None.
        log: function that takes each line of the report as soon as it is known.
        on_start: function that takes the name of each backend before it runs, which takes seconds.

    Returns:
        `VerificationReport`.

    Raises:
        UserError: if the file is missing, altered or unusable on every backend, or a backend is not installed.
    """
    model_path, lines, rows = pathlib.Path(model_path), [], []

    def report(line):
        lines.append(str(line))
        if log:
            log(str(line))

    if not 0 <= tolerance < np.inf:
        raise UserError(f"The tolerance must be a number from 0 up, got {tolerance}.")
    for name in backends or ():
        check_backend(name, "a backend to run")
    backends = list(dict.fromkeys(backends or installed_backends()))
    model_files.check_model_file(model_path)
    digest, record_path = files.sha256(model_path), parity_path(model_path)
    parity_record = ParityRecord.load(record_path) if record_path.is_file() else None
    report(f"{model_path}, sha256 {digest[:12]}…, tolerance {tolerance:g}")
    for line in _describe_parity_record(parity_record, record_path, digest, backends):
        report(line)
    report("")
    report(f"{'backend':<12}{'version':<10}{'outputs':>9}{'layers':>10}{'seconds':>9}  verdict")
    records, problems = {}, {}
    inputs_path = parity_record and record_path  # the record whose inputs the child processes take
    with tempfile.TemporaryDirectory() as scratch:
        for backend in backends:
            reference = parity_record or next(iter(records.values()), None)
            target = pathlib.Path(scratch) / f"{backend}.npz"
            if on_start:
                on_start(backend)
            try:
                record = _run_child(backend, model_path, inputs_path, target)
            except UserError as error:
                problems[backend] = str(error)
                rows.append(BackendResult(str(model_path), backend))
            else:
                records[backend], inputs_path = record, inputs_path or target
                rows.append(_result(model_path, record, reference, tolerance))
            report(rows[-1])
    report("")
    if not records and len(set(problems.values())) == 1:
        raise UserError(*set(problems.values()))
    for backend, problem in problems.items():
        report(f"{backend}: {problem}")
    if not records:
        raise UserError(f"{model_path} does not run on {' or '.join(backends)}.")
    if parity_record is None and not record.metadata["functional"]:
        report("The model is not functional, so only its outputs are compared, not its layers.")
    passed, conclusions = _conclude(records, parity_record, tolerance)
    for line in conclusions:
        report(line)
    if problems:
        report(f"{' and '.join(problems)} {'do' if len(problems) > 1 else 'does'} not run the file.")
    return VerificationReport(passed and not problems, tuple(rows), "\n".join(lines))


def _describe_parity_record(record, path, digest, backends):
    if record is None:
        yield f"There is no {path.name}: the backends are compared with one another only."
        if len(backends) == 1:
            yield f"Only {backends[0]} is to run, so there is nothing to compare with."
        return
    metadata = record.metadata
    inputs = ", ".join(f"{'x'.join(map(str, array.shape))} {array.dtype}" for array in record.inputs)
    yield f"parity record: {metadata['backend']} {metadata['version']}, keras {metadata['keras']}; inputs {inputs}"
    if metadata["sha256"] != digest:
        yield f"The parity record is of another file (sha256 {metadata['sha256'][:12]}…); comparing all the same."
    if not metadata["functional"]:
        yield "The model is not functional, so only its outputs are compared, not its layers."
    if len(backends) == 1:
        yield f"Only {backends[0]} is to run, so there is nothing to compare with but the parity record."


def _result(model_path, record, reference, tolerance):
    """The row of a backend that ran the file."""
    errors: dict[str, Any] = {}
    verdict = "reference"
    if reference is not None:
        difference = compare_records(record, reference, tolerance)
        errors = {"output_error": difference.output_error, "layer_error": difference.layer_error}
        verdict = "same" if difference.passed else "DIFFERS"
    about = {key: record.metadata[key] for key in ("backend", "version", "seconds")}
    return BackendResult(str(model_path), **about, **errors, verdict=verdict)


def _conclude(records, parity_record, tolerance):
    """(whether nothing differs, lines that say where differences begin and which backend is wrong)."""
    names, lines = list(records), []
    pairs = {
        (a, b): compare_records(records[b], records[a], tolerance) for i, a in enumerate(names) for b in names[i + 1 :]
    }
    differing = [pair for pair, difference in pairs.items() if not difference.passed]
    if parity_record is not None:
        wrong = [name for name in names if not compare_records(records[name], parity_record, tolerance).passed]
        for name in wrong:
            lines.append(_first_difference(name, records[name], "the parity record", parity_record, tolerance))
        if len(names) > 1 and wrong == names and not differing:
            lines.append("The backends agree with one another: the file is not the one that was recorded.")
    else:
        wrong = [name for name in names if sum(name in pair for pair in differing) == len(names) - 1 > 0]
        if len(wrong) == 1 and len(names) > 2:  # the others agree with one another
            other = next(name for name in names if name not in wrong)
            lines.append(_first_difference(wrong[0], records[wrong[0]], "the others", records[other], tolerance))
        elif differing:
            lines += [_first_difference(b, records[b], a, records[a], tolerance) for a, b in differing]
            lines.append("Without a parity record it cannot be told which of them is right.")
    if pairs:
        (a, b), worst = max(pairs.items(), key=lambda item: max(item[1].output_error, item[1].layer_error))
        error = max(worst.output_error, worst.layer_error)
        lines.append(f"Between backends the largest difference is {error:.1e} ({a} and {b}).")
    if wrong or differing:
        return False, lines
    subject = {1: f"{names[0]} gives", 2: "Both backends give"}.get(len(names), f"All {len(names)} backends give")
    if parity_record is not None:
        lines.append(f"{subject} the numbers of the parity record.")
    elif pairs:
        lines.append(f"{subject} the same numbers.")
    return True, lines


def _first_difference(name, record, other_name, other, tolerance):
    """The sentence that says where a record begins to differ from another."""
    difference = compare_records(record, other, tolerance)
    if difference.first_different_call is None:
        return f"{name} differs from {other_name} in its outputs, by {difference.output_error:.1e}."
    path, kind, index, error = difference.first_different_call
    how = f"by {error:.1e}" if np.isfinite(error) else "in its shape, or in values that are not finite"
    if path in difference.weights:
        more = len(difference.weights) - 1
        how += f": its weights{f' and those of {more} other layers' if more else ''} are not the same"
    return f"{name} differs from {other_name} first at {path} ({kind}, call {index + 1} of {len(other.layers)}), {how}."


def _run_child(backend, model_path, inputs_path, target):
    """Record the file on a backend in a process of its own, with the inputs of the record at `inputs_path`, if any."""
    inputs = [inputs_path] if inputs_path else []
    run_on_backend(backend, "zoo.parity.verify", model_path, target, *inputs)
    return ParityRecord.load(target)


def _child(model_path, target, inputs_path=None):
    import_keras()
    reference = ParityRecord.load(inputs_path) if inputs_path else None
    inputs, max_values = (reference.inputs, reference.metadata["values"]) if reference else (None, None)
    compute_parity_record(model_path, inputs=inputs, max_values=max_values).save(target)


if __name__ == "__main__":
    skip_optional_imports()
    run_command(_child, *sys.argv[1:])
