"""Certificate of a training: whether the losses of the backends part, from which step on, and why.

Every backend trains in a process of its own what a function returns (`zoo.parity.training_run`). Then what may differ
is taken away one by one, and the same steps are trained again: the same weights and batches for all, then without
dropout. What is left is in the model, whose layers and optimizer `zoo.parity.certificate` compares, or in the loss.

The unit of a loss is what rounding makes of it by that step: the largest change, up to there, of the same run from
weights that are each moved to a neighbouring float32 number, and at least half the spacing at the loss. The losses
part where they differ by more than `ALARM` units.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.parity.certificate import Certificate, certify
from zoo.parity.units import ALARM
from zoo.parity.worker import load_arrays, save_arrays, split_function
from zoo.parity.workers import Worker, WorkerError, start_workers
from zoo.typing import Log, StrPath


@dataclasses.dataclass(frozen=True)
class TrainingCertificate:
    """Result of `certify_training`; `print(certificate)` shows it.

    Attributes:
        passed: whether every backend trains the model and the losses stay together.
        source: FILE.py:FUNCTION.
        losses: {backend: losses of the first steps, as the function has them}.
        parts_at: the first step, from 1, at which losses differ by more than rounding; None if none does.
        causes: {"batch order", "batches", "initial weights", "dropout", "optimizer", "layer" or "loss": sentence}.
        problems: {backend that does not train: sentence}.
        model: the certificate of the model, where it was made.
        text: the report as text.
    """

    passed: bool
    source: str
    losses: dict[str, list[float]]
    parts_at: int | None
    causes: dict[str, str]
    problems: dict[str, str]
    model: Certificate | None
    text: str

    def __str__(self):
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The certificate as numbers and text, for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "text"}
        return fields | {"model": self.model.to_dict() if self.model else None}


def certify_training(
    source: str,
    *,
    steps: int = 20,
    backends: Sequence[str] | None = None,
    arguments: Sequence[str] = (),
    setup: StrPath | None = None,
    workers: dict[str, Worker] | None = None,
    log: Log | None = None,
    on_start: Callable[[str], None] | None = None,
) -> TrainingCertificate:
    """Train the first steps of a function's model on every backend and find out why the losses part, if they do.

    Args:
        source: FILE.py:FUNCTION. The function returns (compiled model, batches) or (compiled model, dict of the
            arguments of fit), or calls `model.fit`.
        steps: how many steps.
        backends: names of backends; those installed if None.
        arguments: words for the file's `parse_args`, if the function takes what that returns, as in a recipe.
        setup: Python file that each process runs first.
        workers: processes to use, of `start_workers`; new ones, ended afterwards, if None.
        log: function that takes each line of the report as soon as it is known.
        on_start: function that takes the name of each backend before its process starts.

    Returns:
        `TrainingCertificate`.

    Raises:
        UserError: if the function does not work on any backend, or returns something else.
    """
    if not split_function(source):
        raise UserError(f"--train takes FILE.py:FUNCTION, got {source!r}.")
    if steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}.")
    path, name = split_function(source) or ("", "")
    source = f"{os.path.abspath(path)}:{name}"
    own, problems = (dict(workers), {}) if workers else start_workers(backends, setup, on_start)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run = _Training(source, steps, list(arguments), own, problems, pathlib.Path(scratch), log)
            return run.certificate(f"{path}:{name}")
        finally:
            if not workers:
                for worker in own.values():
                    worker.close()


class _Training:
    """One certificate in the making."""

    def __init__(self, source, steps, arguments, workers, problems, scratch, log):
        self.source, self.steps, self.arguments, self.scratch = source, steps, arguments, scratch
        self.workers, self.problems, self.log, self.lines = dict(workers), dict(problems), log, []
        self.causes: dict[str, str] = {}

    def report(self, line=""):
        self.lines.append(str(line))
        if self.log:
            self.log(str(line))

    def certificate(self, name):
        about, files = self._start()
        names = list(self.workers)
        self.report(f"{name}: {self.steps} steps on {', '.join(names)}")
        losses = self._losses(nudge=False)
        units = self._units(losses, {})
        parts_at = self._parts(losses, units)
        self._table(losses, parts_at)
        model = None
        if parts_at:
            model = self._find_causes(name, about, files, parts_at)
        for backend, problem in self.problems.items():
            self.report(f"{backend}: {problem}")
        if len(names) == 1:
            self.report(f"Only {names[0]} trains it, so there is nothing to compare with.")
        elif not parts_at:
            self.report(f"The losses stay together for {self.steps} steps.")
        passed = not parts_at and not self.problems
        text = "\n".join(self.lines)
        return TrainingCertificate(passed, name, losses, parts_at, self.causes, self.problems, model, text)

    # ------------------------------------------------------------------------------------------------------ running

    def _start(self):
        """What the function gives on each backend, and the files of weights and batches."""
        about, files = {}, {}
        for backend in list(self.workers):
            target = str(self.scratch / f"{backend}-start.npz")
            arguments = {"source": self.source, "arguments": self.arguments, "steps": self.steps, "target": target}
            try:
                about[backend], files[backend] = self.workers[backend]("start_training", **arguments), target
            except WorkerError as error:
                self._drop(backend, error)
        if not self.workers:
            raise UserError(*list(dict.fromkeys(self.problems.values()))[:1])
        return about, files

    def _drop(self, backend, error):
        self.problems[backend] = str(error)
        self.workers.pop(backend)

    def _losses(self, *, nudge, backends=None, **options):
        found = {}
        for backend in backends or list(self.workers):
            try:
                found[backend] = self.workers[backend]("losses", nudge=nudge, **options)["losses"]
            except WorkerError as error:
                self._drop(backend, error)
        if not found and not self.workers:
            raise UserError(*list(dict.fromkeys(self.problems.values()))[:1])
        return found

    def _units(self, losses, options):
        """The unit of the loss of each step, of a run on the first backend from weights moved by rounding."""
        first = next(iter(losses))
        moved = self._losses(nudge=True, backends=[first], **options).get(first, losses[first])
        change = np.maximum.accumulate(np.abs(np.subtract(moved, losses[first])))
        return np.maximum(change, np.abs(losses[first]) * 2.0**-24)

    def _parts(self, losses, units):
        """The first step at which two backends differ by more than rounding, from 1; None if there is none."""
        table = np.array(list(losses.values()))
        spread = table.max(axis=0) - table.min(axis=0)
        parted = np.flatnonzero(~(spread <= ALARM * units))
        return int(parted[0]) + 1 if len(parted) else None

    def _table(self, losses, parts_at):
        marks = sorted({1, 2, 3, 5, 10, self.steps, *([parts_at] if parts_at else [])} & set(range(1, self.steps + 1)))
        self.report("")
        self.report(f"{'loss at step':<14}" + "".join(f"{step:>11}" for step in marks))
        for backend, values in losses.items():
            self.report(f"{backend:<14}" + "".join(f"{values[step - 1]:>11.6f}" for step in marks))
        self.report("")

    # ------------------------------------------------------------------------------------------------------- causes

    def _find_causes(self, name, about, files, parts_at):
        self.report(f"The losses part at step {parts_at}.")
        first = next(iter(self.workers))
        own = {backend: load_arrays(files[backend]) for backend in self.workers}
        self._compare_weights(own, about, first)
        self._compare_batches(own, about, first)
        options = {"weights": files[first], "batches": files[first]}
        try:
            losses = self._losses(nudge=False, **options)
        except UserError as error:
            self._cause("batches", f"The backends cannot train on the same batches: {error}")
            return None
        parts = self._parts(losses, self._units(losses, options))
        self._say("With the same weights and batches", parts)
        if parts is None:
            return None
        silenced = []
        losses = {}
        for backend in list(self.workers):
            answer = self.workers[backend]("losses", silence=True, **options)
            losses[backend], silenced = answer["losses"], answer["silenced"]
        if silenced:
            before, parts = parts, self._parts(losses, self._units(losses, options))
            self._say(f"Without dropout and noise as well ({', '.join(silenced[:4])})", parts)
            if parts is None or parts > before:
                self._cause("dropout", "Dropout: each backend draws its own masks, whatever the seed.")
            if parts is None:
                return None
        return self._check_model(name, files[first], about[first])

    def _say(self, what, parts):
        self.report(f"{what} the losses {'stay together' if parts is None else f'part at step {parts}'}.")

    def _cause(self, kind, sentence):
        self.causes[kind] = sentence
        self.report(f"Cause: {sentence}")

    def _compare_weights(self, own, about, first):
        rights, differing = own[first]["weights"], set()
        for backend, arrays in own.items():
            if [x.shape for x in arrays["weights"]] != [x.shape for x in rights]:
                self._cause("initial weights", f"The model has other weights on {backend} than on {first}.")
                return
            for path, a, b in zip(about[first]["weights"], arrays["weights"], rights):
                if a.dtype.kind == "f" and np.abs(a - b).max(initial=0) > 2.0**-20 * max(
                    np.abs(b).max(initial=0), 1e-30
                ):
                    differing.add(path)
        if differing:
            self._cause(
                "initial weights",
                f"Initial weights: {len(differing)} of {len(rights)} differ, first {sorted(differing)[0]!r}: "
                "the same seed gives other numbers on each backend (draw them by NumPy, or load one file of weights).",
            )

    def _compare_batches(self, own, about, first):
        for backend, arrays in own.items():
            for step, (a, b) in enumerate(zip(arrays["batches"], own[first]["batches"]), start=1):
                if len(a) == len(b) and all(x.shape == y.shape and np.allclose(x, y, rtol=1e-6) for x, y in zip(a, b)):
                    continue
                rows, others = (collections.Counter(about[one]["rows"]) for one in (backend, first))
                if rows == others or (sum((rows & others).values()) > 0.5 * min(rows.total(), others.total())):
                    self._cause(
                        "batch order",
                        f"Batch order: from batch {step} on {backend} has the examples in another order than "
                        f"{first}: each "
                        "backend shuffles by a generator of its own (shuffle by NumPy, and give fit shuffle=False).",
                    )
                else:
                    self._cause("batches", f"Batches: batch {step} has other values on {backend} than on {first}.")
                return

    def _check_model(self, name, start, about):
        """The model by itself, on the first batch."""
        batch = load_arrays(start)["batches"][0][: about["num_inputs"]]
        inputs = str(self.scratch / "inputs.npz")
        np.savez(inputs, *batch)
        weights = str(self.scratch / "weights.npz")
        save_arrays(weights, {"weights": load_arrays(start)["weights"]})
        try:
            options = {"workers": self.workers, "name": name, "weights": weights, "arguments": self.arguments}
            certificate = certify(self.source, inputs=inputs, **options)
        except UserError as error:
            self.report(f"The model could not be compared by itself: {error}")
            return None
        for finding in certificate.findings:
            self._cause("optimizer" if finding.kind == "optimizer" else "layer", str(finding))
        if not certificate.findings:
            self._cause("loss", "The loss, or the training step: neither a layer nor the optimizer differs by itself.")
        return certificate
