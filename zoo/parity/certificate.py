"""Certificate of a model: the same outputs, gradients and optimizer step on every backend, told apart from rounding.

Each backend runs in a process of its own (`zoo.parity.worker`), on the same weights and inputs. One backend also runs
in float64, the reference; differences are measured in units of what rounding makes of it (`zoo.parity.units`). Up to
`ALARM` units count as rounding; above `SUSPECT` every layer is given the input, and the gradient at its output, that
the reference has there, on every backend: a layer that differs by itself is at fault, one that only follows is not.
Which backend is wrong is told by the float64 runs of all of them, by majority.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.errors import UserError, did_you_mean
from zoo.io import model_files
from zoo.parity.units import ALARM, BITS, DRAWS, SUSPECT, changes, measure
from zoo.parity.verify import max_difference
from zoo.parity.worker import REFERENCE, load_arrays, save_arrays, split_function
from zoo.parity.workers import Worker, WorkerError, start_workers
from zoo.typing import Log, StrPath

PRECISIONS = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"} | {
    f"mixed_{name}": name for name in ("bfloat16", "float16")
}
_PARTS = ("forward", "gradients", "states", "step")  # columns of the report
_REFERENCE_ORDER = ("torch", "tensorflow", "jax")  # who is asked first: JAX compiles each of the reference's runs
_NOISY = ("Dropout", "Noise", "Random")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a backend computes differently.

    Attributes:
        backend: its name.
        precision: of the run.
        kind: "forward", "gradient", "state" (what a call in training leaves behind, as moving averages), "dropout" (not
            off where it should be), "optimizer", or "unexplained": no layer differs by itself.
        layer: path of the layer, class of the optimizer, or "" for the whole model.
        layer_class: class of the layer or optimizer.
        mode: "inference" or "training" call.
        units: the difference.
        relative: the difference over the largest value of the tensor.
        note: what else is known, a sentence or "".
    """

    backend: str
    precision: str
    kind: str
    layer: str
    layer_class: str
    mode: str
    units: float
    relative: float
    note: str = ""

    def __str__(self):
        where = f"{self.backend} {self.precision}: "
        size = f"{_format_units(self.units)} units, {self.relative:.1e} of the largest value"
        name = f"{self.layer_class} {self.layer!r}"
        sentence = {
            "forward": f"{name} gives another output ({size})",
            "gradient": f"{name} gives another gradient ({size})",
            "state": f"{name} leaves other moving averages or states behind in training ({size})",
            "dropout": f"{name} is not off in inference ({size})",
            "optimizer": f"{self.layer_class} takes another step from the same gradient ({size})",
            "unexplained": f"the {self.mode} run of the model differs ({size}), though no layer differs by itself",
        }[self.kind]
        return f"{where}{sentence}.{f' {self.note}' if self.note else ''}"


@dataclasses.dataclass(frozen=True)
class BackendCertificate:
    """One backend's row in one precision.

    Attributes:
        backend: name.
        version: of the backend; "" if it does not run the model.
        precision: of the run.
        units: {"forward", "gradients", "states", "step": largest difference in units}; a part that the model does not
            have is missing.
        worst: {the same: the tensor with that difference}.
        verdict: "same", "DIFFERS" or "does not run".
        error: why it does not run, a sentence or "".
    """

    backend: str
    version: str
    precision: str
    units: dict[str, float]
    worst: dict[str, str]
    verdict: str
    error: str = ""

    def __str__(self):
        columns = "".join(f"{_format_units(self.units[part]) if part in self.units else '-':>10}" for part in _PARTS)
        return f"{self.backend:<12}{self.version:<10}{self.precision:<15}{columns}  {self.verdict}"


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Result of `certify`; `print(certificate)` shows it.

    Attributes:
        passed: whether every backend runs the model and none differs by more than rounding.
        model: name of the model or path of the file.
        reference: name of the backend whose float64 run the others are compared with; "" where none ran.
        inputs: {name: shape and dtype of an input}.
        layers: how many the model has.
        parameters: how many the model has.
        optimizer: class name of the optimizer of the step.
        rows: tuple of `BackendCertificate`s.
        findings: tuple of `Finding`s.
        notes: sentences about what was not compared.
        text: the report as text.
    """

    passed: bool
    model: str
    reference: str
    inputs: dict[str, str]
    layers: int
    parameters: int
    optimizer: str
    rows: tuple[BackendCertificate, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    text: str

    def __str__(self):
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The certificate as numbers and text, for JSON; an infinite difference is null."""
        return _finite({key: value for key, value in dataclasses.asdict(self).items() if key != "text"})


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _format_units(units):
    if not np.isfinite(units):
        return "inf"
    return f"{units:.1f}" if units < 100 else f"{units:,.0f}" if units < 1e7 else f"{units:.0e}"


# ------------------------------------------------------------------------------------------------------ the certificate


def certify(
    source: StrPath,
    *,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] = ("float32",),
    inputs: StrPath | Mapping[str, np.ndarray] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    setup: StrPath | None = None,
    name: str | None = None,
    every_layer: bool = False,
    weights: str | None = None,
    arguments: Sequence[str] = (),
    workers: Mapping[str, Worker] | None = None,
    log: Log | None = None,
    on_start: Callable[[str], None] | None = None,
) -> Certificate:
    """Compare outputs, gradients of every weight, states after a training call and one optimizer step of a model.

    Args:
        source: path of a `.keras` file, or FILE.py:FUNCTION, where the function returns a built model.
        backends: names of backends; those installed if None.
        precisions: dtype policies to run in: float32, mixed_bfloat16, bfloat16, mixed_float16, float16.
        inputs: arrays by the names of the inputs, or an .npz file of them; drawn at random if None.
        input_shapes: sizes of one example by name of the input, or under "" for all, where the model leaves them open.
        seed: of the random inputs.
        setup: Python file that each process runs before it loads the model, e.g. to register classes.
        name: what to call the model in the report; the source if None.
        every_layer: whether every layer is compared by itself even where the whole model agrees.
        weights: file of weights that `zoo.parity.worker.save_arrays` wrote, for a function; those of the first backend
            that builds the model if None.
        arguments: words for `parse_args` of the function's file, where the function takes what that returns.
        workers: processes to use, of `start_workers`; new ones, ended afterwards, if None.
        log: function that takes each line of the report as soon as it is known.
        on_start: function that takes the name of each backend before its process starts.

    Returns:
        `Certificate`.

    Raises:
        UserError: if the model is unusable on every backend, the inputs do not fit, or a name is unknown.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UserError(
                f"precision is {precision!r}: choose of {', '.join(PRECISIONS)}.{did_you_mean(precision, PRECISIONS)}"
            )
    if not split_function(os.fspath(source)):
        model_files.check_model_file(source)
    own, problems = (dict(workers), {}) if workers else start_workers(backends, setup, on_start)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run = _Run(os.fspath(source), own, problems, precisions, pathlib.Path(scratch), every_layer)
            run.weights, run.arguments = weights, list(arguments)
            return run.certificate(name or os.fspath(source), inputs, input_shapes, seed, log)
        finally:
            if not workers:
                for worker in own.values():
                    worker.close()


class _Run:
    """One certificate in the making."""

    def __init__(self, source, workers, problems, precisions, scratch, every_layer):
        self.source = str(pathlib.Path(source).resolve()) if not split_function(source) else source
        self.workers, self.problems, self.precisions = dict(workers), dict(problems), list(precisions)
        self.scratch, self.every_layer, self.count = scratch, every_layer, 0
        self.notes, self.findings, self.about = [], [], {}
        self.weights = None  # the file of a function's weights, for the other backends
        self.arguments = []
        self.modes = ["inference"]
        self.results: dict[tuple[str, str], Any] = {}
        self.random: dict[str, set[str]] = {}  # {backend: modes in which two float64 runs differ}
        self.cotangents: dict[str, str] = {}
        self.gradients: str | None = None

    def file(self, what="arrays"):
        self.count += 1
        return str(self.scratch / f"{self.count}-{what}.npz")

    # ------------------------------------------------------------------------------------------------------ the order

    def certificate(self, name, inputs, input_shapes, seed, log):
        lines = []

        def report(line):
            lines.append(str(line))
            if log:
                log(str(line))

        self.reference = self._first_reference(inputs, input_shapes, seed)
        about = self.about[self.reference]
        arrays = load_arrays(self.inputs)["inputs"]
        for i, right in enumerate(self.results[self.reference, REFERENCE]["inference"]["outputs"]):
            if right.dtype.kind == "f" and not np.isfinite(right).all():
                self.notes.append(f"Output {i} has values that are not finite, of which nothing can be said.")
        if not about["wide"]:
            self.notes.append("Some layers have a dtype of their own, so that the reference is not float64 there.")
        described = {
            name: f"{'x'.join(map(str, x.shape))} {x.dtype}" for name, x in zip(self.input_names, arrays, strict=True)
        }
        report(f"{name}: {about['layers']} layers, {about['parameters']:,} parameters")
        report(f"inputs: {', '.join(f'{key} {words}' for key, words in described.items())}")
        rows = [row for precision in self.precisions for row in self._precision(precision)]
        report(f"reference: {self.reference}, float64; differences in units of rounding, up to {ALARM:g} pass")
        report("")
        report(f"{'backend':<12}{'version':<10}{'precision':<15}" + "".join(f"{p:>10}" for p in _PARTS) + "  verdict")
        rows += [
            BackendCertificate(backend, "", precision, {}, {}, "does not run", problem)
            for precision in self.precisions
            for backend, problem in self.problems.items()
        ]
        for row in rows:
            report(row)
        report("")
        for finding in self.findings:
            report(finding)
        for backend, problem in self.problems.items():
            report(f"{backend}: {problem}")
        for note in dict.fromkeys(self.notes):
            report(note)
        passed = not self.findings and not self.problems
        report(self._conclusion(passed))
        return Certificate(
            passed,
            name,
            self.reference,
            described,
            about["layers"],
            about["parameters"],
            about["optimizer"]["class_name"],
            tuple(rows),
            tuple(self.findings),
            tuple(dict.fromkeys(self.notes)),
            "\n".join(lines),
        )

    def _conclusion(self, passed):
        names = list(self.workers)
        if passed and len(names) == 1:
            return f"{names[0]} gives the numbers of its own float64 run, but for rounding."
        if passed:
            return f"{' and '.join(names) if len(names) == 2 else f'All {len(names)} backends'} give the same numbers."
        if self.findings:
            wrong = list(dict.fromkeys(finding.backend for finding in self.findings))
            return f"{' and '.join(wrong)} {'differ' if len(wrong) > 1 else 'differs'} by more than rounding."
        return f"{' and '.join(self.problems)} {'do' if len(self.problems) > 1 else 'does'} not run the model."

    # -------------------------------------------------------------------------------------------------- the reference

    def _first_reference(self, inputs, input_shapes, seed):
        """Load the model in float64 on the first backend that can; its inputs, and its runs."""
        candidates = [name for name in _REFERENCE_ORDER if name in self.workers]
        for backend in candidates:
            if not self._load(backend, REFERENCE):
                continue
            worker = self.workers[backend]
            self.inputs = self.file("inputs")
            if inputs is not None and not isinstance(inputs, (str, os.PathLike)):
                given = self.file("given")
                np.savez(given, **{key: np.asarray(value) for key, value in inputs.items()})  # type: ignore[arg-type]
                inputs = given
            # What does not fit here fits nowhere, so that this is the user's to put right.
            file = None if inputs is None else os.path.abspath(str(inputs))
            shapes = {key: list(value) for key, value in (input_shapes or {}).items()}
            arguments = {"given": file, "shapes": shapes, "seed": seed}
            self.input_names = worker("inputs", target=self.inputs, precision=REFERENCE, **arguments)
            try:
                if self.about[backend]["states"]:
                    self.modes = ["inference", "training"]
                self._compute(backend, REFERENCE)
            except WorkerError as error:
                self._drop(backend, error)
                continue
            if "training" in self.random.get(backend, ()) and "training" in self.modes:
                self.modes.remove("training")
                self.notes.append("Training mode was not compared: layers draw random numbers there.")
            if "inference" not in self.random.get(backend, ()) or backend == candidates[-1]:
                return backend
            self.notes.append(f"{backend} draws random numbers in inference, so it is no reference.")
            self.cotangents, self.gradients = {}, None
        raise UserError(*list(dict.fromkeys(self.problems.values()))[:1])

    def _load(self, backend, precision):
        """Load the model on a backend; False, and the backend is left out, if it does not."""
        try:
            self._load_on(backend, precision)
        except WorkerError as error:
            self._drop(backend, error)
            return False
        return True

    def _load_on(self, backend, precision):
        arguments = {"source": self.source, "weights": self.weights, "arguments": self.arguments}
        about = self.workers[backend]("load", precision=precision, **arguments)
        if split_function(self.source) and self.weights is None:
            self.weights = self.file("weights")
            self.workers[backend]("weights", target=self.weights, precision=precision)
        self.about.setdefault(backend, about)

    def _drop(self, backend, error):
        self.problems[backend] = str(error)
        self.workers.pop(backend)

    def _compute(self, backend, precision):
        """Run the model and the optimizer on a backend; {(mode or "step"): results}."""
        worker, results = self.workers[backend], {}
        for mode in self.modes:
            target = self.file(f"{backend}-{precision}-{mode}")
            arguments = {"inputs": self.inputs, "mode": mode, "cotangents": self.cotangents.get(mode)}
            if not worker("run", target=target, precision=precision, **arguments):
                self.random.setdefault(backend, set()).add(mode)
            results[mode] = load_arrays(target)
            self.cotangents.setdefault(mode, target)
        if self.gradients is None:
            self.gradients = self.file("gradients")
            save_arrays(self.gradients, {"gradients": results["inference"]["gradients"]})
            self.optimizer = self.about[backend]["optimizer"]
        target = self.file(f"{backend}-{precision}-step")
        arguments = {"target": target, "gradients": self.gradients, "optimizer": self.optimizer}
        try:
            worker("step", precision=precision, **arguments)
            results["step"] = load_arrays(target)
        except WorkerError as error:
            if precision == REFERENCE:
                self.notes.append(f"The optimizer step was not compared: {error}")
            else:
                raise
        self.results[backend, precision] = results
        return results

    def _changes(self, precision):
        """{mode or "step": {key: what rounding changes of the reference, a number for each tensor}}."""
        key = self.reference, f"changes {PRECISIONS[precision]}"
        if key not in self.results:
            self.results[key] = {mode: self._rounded_run(precision, mode) for mode in self.modes}
            if "step" in self.results[self.reference, REFERENCE]:
                self.results[key]["step"] = {"step": self._rounded_step()}
        return self.results[key]

    def _rounded_run(self, precision, mode, draw=None):
        """What the rounding of every layer, or a random draw in its place, changes of the reference's run."""
        target = self.file("rounded")
        arguments = {"precision": REFERENCE, "inputs": self.inputs, "mode": mode, "cotangents": self.cotangents[mode]}
        self.workers[self.reference]("run", target=target, rounding=PRECISIONS[precision], draw=draw, **arguments)
        run, right = load_arrays(target), self.results[self.reference, REFERENCE][mode]
        os.remove(target)
        return {key: changes(right[key], run[key], draw is not None) for key in ("outputs", "gradients", "states")}

    def _rounded_step(self):
        """What float32's bias correction changes of the step: its 1 - b2 is off by up to half of 2^-24."""
        results = self.results[self.reference, REFERENCE]["step"]
        decay = self.optimizer["config"].get("beta_2")
        error = 2.0**-25 / (1 - decay) / 2 if isinstance(decay, float) and decay < 1 else 0.0  # of a square root
        steps = [error * max_difference(old, new) for old, new in zip(results["before"], results["step"])]
        return np.array(steps + [0.0] * (len(results["step"]) - len(steps)))

    # ------------------------------------------------------------------------------------------------- one precision

    def _precision(self, precision):
        """Rows of every backend in a precision; findings are kept."""
        for backend in list(self.workers):
            if self._load(backend, precision):
                try:
                    self._compute(backend, precision)
                except WorkerError as error:
                    self._drop(backend, error)
        if self.reference not in self.workers:
            raise UserError(self.problems[self.reference])
        compared = self._compare(precision)
        if self._suspects(compared) and len(self.workers) > 1 and self._arbitrate(precision):
            compared = self._compare(precision)
        suspects = self._suspects(compared)
        findings = self._find(precision, compared, suspects) if suspects or self.every_layer else []
        compared = self._compare(precision)  # in the units that the draws may have made larger
        self.findings += findings
        wrong = {finding.backend for finding in findings}
        return [
            BackendCertificate(
                backend,
                self.workers[backend].about["version"],
                precision,
                {part: item[0] for part, item in _parts(compared[backend]).items()},
                {part: item[2] for part, item in _parts(compared[backend]).items()},
                "DIFFERS" if backend in wrong else "same",
            )
            for backend in self.workers
        ]

    def _compare(self, precision):
        """{backend: {(mode, key): [(units, relative difference, name) of each tensor]}} against the reference."""
        reference, rounding = self.results[self.reference, REFERENCE], self._changes(precision)
        bits = BITS[PRECISIONS[precision]]
        found: dict[str, dict] = {backend: {} for backend in self.workers}
        for mode, key in [(m, k) for m in self.modes for k in ("outputs", "gradients", "states")] + [("step", "step")]:
            if mode not in reference:
                continue
            rights = reference[mode][key]
            others = {b: self.results[b, precision][mode][key] for b in self.workers}
            names = self._names(key, len(rights))
            compared = measure(rights, rounding[mode][key], others, bits)
            for backend in self.workers:
                found[backend][mode, key] = [(*pair, name) for pair, name in zip(compared[backend], names)]
        return found

    def _names(self, key, count):
        about = self.about[self.reference]
        if key in ("gradients", "states"):
            return about["variables" if key == "gradients" else "states"]
        if key == "outputs":
            return [f"output {i}" for i in range(count)]
        paths = about["variables"]
        return [*paths, *(f"optimizer variable {i}" for i in range(count - len(paths)))]

    def _suspects(self, compared):
        """{(backend, mode)} that differ by more than `SUSPECT`."""
        return {
            (backend, mode)
            for backend, parts in compared.items()
            for (mode, _), tensors in parts.items()
            if max((units for units, *_ in tensors), default=0) > SUSPECT
        }

    def _arbitrate(self, precision):
        """Run the others in float64 too; choose the reference by majority. True if it is another one now."""
        for backend in list(self.workers):
            if (backend, REFERENCE) not in self.results:
                try:
                    self._load_on(backend, REFERENCE)
                    self._compute(backend, REFERENCE)
                except WorkerError as error:
                    self.notes.append(f"{backend} does not run the model in float64: {error}")
        names = [
            b for b in self.workers if (b, REFERENCE) in self.results and "inference" not in self.random.get(b, ())
        ]
        names = names or [self.reference]
        names.sort(key=_REFERENCE_ORDER.index)
        rounding, bits = self._changes(precision), BITS[PRECISIONS[precision]]
        base = self.results[self.reference, REFERENCE]

        def agree(a, b):
            first, second = self.results[a, REFERENCE], self.results[b, REFERENCE]
            for mode in first.keys() & second.keys() & base.keys():
                for key in first[mode].keys() & {"outputs", "gradients", "states", "step"}:
                    tensors = zip(base[mode][key], first[mode][key], second[mode][key], strict=True)
                    for i, (right, one, other) in enumerate(tensors):
                        half_spacing = float(np.abs(right).max(initial=0.0)) * 2.0**-bits
                        unit = max(half_spacing, rounding[mode][key][i], float(np.finfo("float32").tiny))
                        if not max_difference(one, other) <= SUSPECT * unit:
                            return False
            return True

        votes = {a: sum(agree(a, b) for b in names if b != a) for a in names}
        best = max(names, key=lambda name: votes[name])
        if len(names) == 2 and not votes[best]:
            self.notes.append(f"{' and '.join(names)} differ in float64 too: which is right cannot be told of two.")
        changed, self.reference = best != self.reference, best if votes[best] else self.reference
        return changed and self.reference == best

    # ---------------------------------------------------------------------------------------------- which layer it is

    def _find(self, precision, compared, suspects):
        findings = []
        for mode in self.modes:
            here = {backend for backend, one in suspects if one == mode}
            if not here and not self.every_layer:
                continue
            found = self._layers(precision, mode, composite=False)
            if here - {finding.backend for finding in found}:
                found += self._layers(precision, mode, composite=True)
            known = {(f.backend, f.layer) for f in findings}
            findings += [f for f in found if (f.backend, f.layer) not in known]
            findings += self._unexplained(precision, mode, here - {finding.backend for finding in findings})
        for backend in [b for b, mode in suspects if mode == "step"]:
            units, relative, name = max(compared[backend]["step", "step"])
            if units > ALARM:
                note = self._explain_step(backend, precision)
                kind = self.optimizer["class_name"]
                findings.append(Finding(backend, precision, "optimizer", kind, kind, "step", units, relative, note))
        return sorted(findings, key=lambda finding: list(self.workers).index(finding.backend))

    def _unexplained(self, precision, mode, backends):
        """Findings of backends of which the whole model differs, by more than random draws do, and no layer."""
        rounding, draws = self._changes(precision)[mode], 0
        while True:
            worst = {}
            for backend, parts in self._compare(precision).items():
                if backend in backends:
                    worst[backend] = max(item for (m, _), items in parts.items() if m == mode for item in items)
            worst = {backend: item for backend, item in worst.items() if item[0] > ALARM}
            if not worst or draws == DRAWS:
                break
            draws += 1
            for key, more in self._rounded_run(precision, mode, draw=draws).items():
                rounding[key] = np.maximum(rounding[key], more)
        note = "The largest difference is in {}."
        return [
            Finding(backend, precision, "unexplained", "", "", mode, units, relative, note.format(name))
            for backend, (units, relative, name) in worst.items()
        ]

    def _record(self, mode):
        """The file with what each call of the reference was given, and the gradient at what it gave."""
        key = self.reference, f"record {mode}"
        if key not in self.results:
            target = self.file("record")
            arguments = {"precision": REFERENCE, "inputs": self.inputs, "mode": mode}
            cotangents = self.cotangents[mode]
            self.workers[self.reference]("run", target=target, cotangents=cotangents, record=True, **arguments)
            self.results[key] = target
        return self.results[key]

    def _layers(self, precision, mode, composite):
        """Findings of the layers that differ when each is given what the reference's is given."""
        record = self._record(mode)
        recorded = load_arrays(record)
        wanted = [i for i, value in enumerate(recorded["composite"]) if value == composite]
        if not wanted:
            return []
        arguments = {"inputs": self.inputs, "mode": mode, "record": record}

        def results(backend, own_precision, calls=wanted, **options):
            target = self.file("layers")
            worker = self.workers[backend]
            worker("run_calls", target=target, precision=own_precision, wanted=calls, **arguments, **options)
            return load_arrays(target)

        def rounded_changes(calls, draw=None):
            run = results(self.reference, REFERENCE, calls, rounding=PRECISIONS[precision], draw=draw)
            return {name: changes(right[name], arrays, draw is not None) for name, arrays in run.items()}

        try:
            right = results(self.reference, REFERENCE)
            rounding = rounded_changes(wanted)
        except WorkerError as error:
            self.notes.append(f"Layers were not compared by themselves: {error}")
            return []
        others = {}
        for backend in self.workers:
            try:
                others[backend] = results(backend, precision)
            except WorkerError as error:
                self.notes.append(f"Layers on {backend} were not compared by themselves: {error}")
        faulty, draws = self._faulty(precision, mode, recorded, wanted, right, rounding, others), 0
        while faulty and draws < DRAWS:
            draws += 1
            for name, more in rounded_changes(list(faulty), draw=draws).items():
                rounding[name] = np.maximum(rounding[name], more)
            faulty = self._faulty(precision, mode, recorded, list(faulty), right, rounding, others)
        return [
            dataclasses.replace(finding, note=self._explain_variance(finding, recorded["call_inputs"][index][0]))
            for index, findings in faulty.items()
            for finding in findings
        ]

    def _explain_variance(self, finding, x):
        """What Keras 3.15's variance of a batch on PyTorch looks like, if that is what a batch normalization does."""
        if finding.layer_class != "BatchNormalization" or finding.mode != "training":
            return ""
        channels = x.reshape(-1, x.shape[-1])
        lost = np.max(channels.mean(axis=0) ** 2 / (channels.var(axis=0) + 1e-3))
        if lost < ALARM or not self.workers[finding.backend]("variance_loses_digits"):
            return ""
        return (
            "keras.ops.moments takes the variance as E[x^2] - E[x]^2 there, which loses digits where the mean is large "
            "beside the deviation."
        )

    def _faulty(self, precision, mode, recorded, wanted, right, rounding, others):
        """{number of a call: findings of its layer}."""
        findings: dict[int, list[Finding]] = {}
        bits = BITS[PRECISIONS[precision]]
        for index in wanted:
            worst: dict[str, dict] = {backend: {} for backend in others}
            for key in ("outputs", "states", "gradients", "input_gradients"):
                name = f"{index}.{key}"
                own = {backend: arrays[name] for backend, arrays in others.items()}
                for backend, pairs in measure(right[name], rounding[name], own, bits).items():
                    worst[backend][key] = max(pairs, default=(0.0, 0.0))
            for backend, found in worst.items():
                path, kind = recorded["paths"][index], recorded["kinds"][index]
                over = [key for key in found if found[key][0] > ALARM]
                if not over:
                    continue
                what = {"outputs": "forward", "states": "state"}.get(over[0], "gradient")
                if what == "forward" and mode == "inference" and any(word in kind for word in _NOISY):
                    what = "dropout"
                finding = Finding(backend, precision, what, path, kind, mode, *found[over[0]])
                findings.setdefault(index, []).append(finding)
        return findings

    def _explain_step(self, backend, precision):
        """What Adam's step looks like with epsilon in its other place, if that is what a backend does."""
        if self.optimizer["class_name"] not in ("Adam", "AdamW", "TorchAdam"):
            return ""
        config = self.optimizer["config"]
        if not isinstance(config.get("learning_rate"), float) or config.get("weight_decay"):
            return ""
        gradients = load_arrays(str(self.gradients))["gradients"]
        got = self.results[backend, precision]["step"]
        right = self.results[self.reference, REFERENCE]["step"]["step"]
        keras_way = self.optimizer["class_name"] != "TorchAdam"
        other = [
            before - adam_first_step(g.astype("float32").astype("float64"), config, after_correction=keras_way)
            for before, g in zip(got["before"], gradients)
        ]
        count = len(gradients)
        errors = [max_difference(a, b) for a, b in zip(got["step"][:count], other)]
        apart = [max_difference(a, b) for a, b in zip(right[:count], other)]
        if max(errors) < 0.1 * max(apart):
            place = "after" if keras_way else "before"
            return f"It is the step of an Adam that adds epsilon to the root {place} the bias correction."
        return ""


def adam_first_step(gradient: np.ndarray, config: Mapping[str, Any], *, after_correction: bool) -> np.ndarray:
    """What Adam takes off a weight in its first step (Kingma and Ba 2015, algorithm 1 and section 2).

    Args:
        gradient: g.
        config: of the optimizer: learning_rate, beta_2, epsilon.
        after_correction: True for lr·g / (sqrt(v / (1 - b2)) + eps), algorithm 1, as PyTorch; False for epsilon before
            the bias correction ("epsilon hat"), as Keras and TensorFlow.

    Returns:
        array of the gradient's shape.
    """
    epsilon = config["epsilon"] if after_correction else config["epsilon"] / np.sqrt(1 - config["beta_2"])
    return config["learning_rate"] * gradient / (np.abs(gradient) + epsilon)


def _parts(compared):
    """{column of the report: the largest (units, relative difference, name) of it}."""
    columns = {"outputs": "forward", "gradients": "gradients", "states": "states", "step": "step"}
    found: dict[str, tuple] = {}
    for (mode, key), tensors in compared.items():
        if key == "states" and mode == "inference":
            continue
        for units, relative, name in tensors:
            item = (units, relative, f"{name} in {mode}" if mode == "training" else name)
            found[columns[key]] = max(found.get(columns[key], item), item)
    return found
