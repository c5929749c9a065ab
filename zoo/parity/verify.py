"""Does a model file give the same numbers on every backend, and if not, which layer is the first to differ?

Each backend runs in a process of its own, fed with the same inputs. What comes out of every layer call is compared
with the golden record beside the file (see `zoo.parity.records`) and with the other backends.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from zoo.backends import check, installed, start
from zoo.errors import UserError, run_command
from zoo.io import files
from zoo.parity.records import Record, golden_path, make_golden, record_file

__all__ = ["Record", "compare", "distance", "golden_path", "make_golden", "record_file", "verify"]

TOLERANCE = 1e-4
# When something is over the tolerance, the layer where it began is looked for with a finer one: an error may be small
# where it starts and grow on its way. Float32 backends agree to about 1e-6.
FINER = 0.1


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one record is from another.

    Attributes:
        outputs, layers: the largest difference of the outputs, and of the samples of any layer call; infinite where
            shapes or layers do not match.
        weights: paths of the layers whose weights are not the same.
        first: (path, kind, place in the order of calls, difference) of the layer call where it begins, if any.
        same: whether nothing is over the tolerance and the weights are the same.
    """

    outputs: float
    layers: float
    weights: tuple
    first: tuple | None
    same: bool


def distance(a, golden):
    """max |a - golden| / max(1, max |golden|); infinite if the shapes differ or only one is finite at some place."""
    if a.shape != golden.shape:
        return np.inf
    a, golden = a.astype(np.float64), golden.astype(np.float64)
    same = (a == golden) | (np.isnan(a) & np.isnan(golden))
    if not np.isfinite(a[~same]).all() or not np.isfinite(golden[~same]).all():
        return np.inf
    scale = np.abs(golden[np.isfinite(golden)]).max(initial=1.0)
    return float(np.abs(a[~same] - golden[~same]).max(initial=0.0) / scale)


def compare(record, golden, tolerance=TOLERANCE):
    """Return the `Difference` of a record from another one, which sets the scale."""
    if len(record.outputs) == len(golden.outputs):
        outputs = max(map(distance, record.outputs, golden.outputs), default=0.0)
    else:
        outputs = np.inf
    by_call = []
    for place, (path, (kind, array)) in enumerate(golden.layers.items()):
        found = record.layers.get(path, (None, np.zeros(0)))[1]
        by_call.append((path, kind, place, distance(found, array)))
    for place, (path, (kind, _)) in enumerate(record.layers.items()):
        if path not in golden.layers:
            by_call.append((path, kind, place, np.inf))
    by_call.sort(key=lambda call: call[2])
    layers = max((call[3] for call in by_call), default=0.0)
    digests = golden.about["weights"]
    weights = tuple(path for path in digests if record.about["weights"].get(path) != digests[path])
    same = max(outputs, layers) <= tolerance and not weights
    begun = (call for call in by_call if call[3] > FINER * tolerance or call[0] in weights)
    return Difference(outputs, layers, weights, None if same else next(begun, None), same)


# ---------------------------------------------------------------------------------------------------------- verifying


def verify(model_path, *, backends=None, tolerance=TOLERANCE, say=print):
    """Run a model file on each backend and compare; every line of the report goes to `say`, as soon as it is known.

    Args:
        model_path: a `.keras` file; its card is checked.
        backends: names of backends; those installed if None.
        tolerance: the largest difference that is still the same number; see `distance`.

    Returns:
        True if all backends give the same numbers as the golden record and as one another.

    Raises:
        UserError: if the file is missing, altered or unusable on every backend, or a backend is not there.
    """
    model_path = pathlib.Path(model_path)
    if not 0 <= tolerance < np.inf:
        raise UserError(f"The tolerance must be a number from 0 up, got {tolerance}.")
    for name in backends or ():
        check(name, "a backend to run")
    backends = list(dict.fromkeys(backends or installed()))
    files.check_model_file(model_path)
    digest = files.sha256(model_path)
    golden = Record.load(golden_path(model_path)) if golden_path(model_path).is_file() else None
    say(f"{model_path}, sha256 {digest[:12]}…, tolerance {tolerance:g}")
    for line in _about_golden(golden, golden_path(model_path), digest, backends):
        say(line)
    say("")
    say(f"{'backend':<12}{'version':<10}{'outputs':>9}{'layers':>10}{'seconds':>9}  verdict")
    records, problems = {}, {}
    source = golden and golden_path(model_path)  # where the children read their inputs
    with tempfile.TemporaryDirectory() as scratch:
        for backend in backends:
            reference = golden or next(iter(records.values()), None)
            target = pathlib.Path(scratch) / f"{backend}.npz"
            try:
                record = _run_child(backend, model_path, source, target)
            except UserError as error:
                problems[backend] = str(error)
                say(f"{backend:<12}{'':<38}  does not run")
                continue
            records[backend], source = record, source or target
            say(_row(record, reference, tolerance))
    say("")
    if not records and len(set(problems.values())) == 1:
        raise UserError(*set(problems.values()))
    for backend, problem in problems.items():
        say(f"{backend}: {problem}")
    if not records:
        raise UserError(f"{model_path} does not run on {' or '.join(backends)}.")
    if golden is None and not record.about["functional"]:
        say("The model is not functional, so only its outputs are compared, not its layers.")
    same = _conclude(records, golden, tolerance, say)
    if problems:
        say(f"{' and '.join(problems)} {'do' if len(problems) > 1 else 'does'} not run the file.")
    return same and not problems


def _about_golden(golden, path, digest, backends):
    if golden is None:
        yield f"There is no {path.name}: the backends are compared with one another only."
        if len(backends) == 1:
            yield f"Only {backends[0]} is to run, so there is nothing to compare with."
        return
    about = golden.about
    inputs = ", ".join(f"{'x'.join(map(str, array.shape))} {array.dtype}" for array in golden.inputs)
    yield f"golden record: {about['backend']} {about['version']}, keras {about['keras']}; inputs {inputs}"
    if about["sha256"] != digest:
        yield f"The golden record is of another file (sha256 {about['sha256'][:12]}…); comparing all the same."
    if not about["functional"]:
        yield "The model is not functional, so only its outputs are compared, not its layers."
    if len(backends) == 1:
        yield f"Only {backends[0]} is to run, so there is nothing to compare with but the golden record."


def _row(record, reference, tolerance):
    about, numbers, verdict = record.about, f"{'':>19}", "reference"
    if reference is not None:
        difference = compare(record, reference, tolerance)
        numbers = f"{difference.outputs:>9.1e}{difference.layers:>10.1e}"
        verdict = "same" if difference.same else "DIFFERS"
    return f"{about['backend']:<12}{about['version']:<10}{numbers}{about['seconds']:>9.1f}  {verdict}"


def _conclude(records, golden, tolerance, say):
    """Say where differences begin and whose they are; return whether there are none."""
    names = list(records)
    pairs = {(a, b): compare(records[b], records[a], tolerance) for i, a in enumerate(names) for b in names[i + 1 :]}
    apart = [pair for pair, difference in pairs.items() if not difference.same]
    if golden is not None:
        wrong = [name for name in names if not compare(records[name], golden, tolerance).same]
        for name in wrong:
            say(_first(name, records[name], "the golden record", golden, tolerance))
        if len(names) > 1 and wrong == names and not apart:
            say("The backends agree with one another: the file is not the one that the golden record describes.")
    else:
        wrong = [name for name in names if sum(name in pair for pair in apart) == len(names) - 1 > 0]
        if len(wrong) == 1 and len(names) > 2:  # the others agree with one another
            other = next(name for name in names if name not in wrong)
            say(_first(wrong[0], records[wrong[0]], "the others", records[other], tolerance))
        elif apart:
            for a, b in apart:
                say(_first(b, records[b], a, records[a], tolerance))
            say("Without a golden record it cannot be told which of them is right.")
    if pairs:
        (a, b), worst = max(pairs.items(), key=lambda item: max(item[1].outputs, item[1].layers))
        say(f"Between backends the largest difference is {max(worst.outputs, worst.layers):.1e} ({a} and {b}).")
    if wrong or apart:
        return False
    subject = {1: f"{names[0]} gives", 2: "Both backends give"}.get(len(names), f"All {len(names)} backends give")
    if golden is not None:
        say(f"{subject} the numbers of the golden record.")
    elif pairs:
        say(f"{subject} the same numbers.")
    return True


def _first(name, record, other_name, other, tolerance):
    """The sentence that says where a record begins to differ from another."""
    difference = compare(record, other, tolerance)
    if difference.first is None:
        return f"{name} differs from {other_name} in its outputs, by {difference.outputs:.1e}."
    path, kind, place, by = difference.first
    how = f"by {by:.1e}" if np.isfinite(by) else "in its shape, or in values that are not finite"
    if path in difference.weights:
        more = len(difference.weights) - 1
        how += f": its weights{f' and those of {more} other layers' if more else ''} are not the same"
    return f"{name} differs from {other_name} first at {path} ({kind}, call {place + 1} of {len(other.layers)}), {how}."


def _run_child(backend, model_path, reference, target):
    """Record the file on a backend in a process of its own, with the inputs of the record at `reference`, if any."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    child = subprocess.run(
        [sys.executable, "-m", "zoo.parity.verify", model_path, target, *([reference] if reference else [])],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if child.returncode:
        said = child.stderr.strip().splitlines()
        last = said[-1] if said and child.returncode > 0 else f"the process ended with signal {-child.returncode}"
        raise UserError(last.removeprefix("error: "))
    return Record.load(target)


def _child(model_path, target, reference=None):
    start()
    given = Record.load(reference) if reference else None
    inputs, values = (given.inputs, given.about["values"]) if given else (None, None)
    record_file(model_path, inputs=inputs, values=values).save(target)


if __name__ == "__main__":
    run_command(_child, *sys.argv[1:])
