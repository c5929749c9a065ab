"""What a function or script trains: its compiled model and its batches, and the losses of the first steps.

A function returns (model, batches), where batches is any iterable of (x, y) or (x, y, sample_weight), or (model, dict)
with the arguments of `Model.fit`; or it calls `model.fit` itself, as a training script does: then the model and the
arguments of that call are taken in place of the training.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from zoo.compat.keras import fit_batches
from zoo.errors import UserError, error_summary

_DATA = ("x", "y", "batch_size", "shuffle", "class_weight", "sample_weight", "steps_per_epoch")
_MAX_ROWS = 200_000  # of an epoch that are compared between backends
EXPECTED = "a compiled model and its batches, or the arguments of fit as a dict, or that it calls model.fit"


class _FitReached(BaseException):
    """Raised by `Model.fit` in place of training; no `except Exception` on the way takes it."""

    def __init__(self, model, arguments):
        super().__init__("fit")
        self.model, self.arguments = model, arguments


def call_function(function: Any, names: dict[str, Any], arguments: Sequence[str], source: str) -> Any:
    """Call a function up to the end or to its call of `Model.fit`.

    Args:
        function: without required parameters, or with one that `parse_args` of its file makes, as in a recipe.
        names: of its file.
        arguments: words for `parse_args`.
        source: what the function is called in messages.

    Returns:
        what it returns; (model, arguments of fit) if it calls fit.

    Raises:
        UserError: if it raises, or takes other parameters.
    """
    required = [
        one.name for one in inspect.signature(function).parameters.values() if one.default is one.empty
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    given = []
    if required:
        if len(required) > 1 or "parse_args" not in names:
            raise UserError(f"{source} needs the arguments {', '.join(required)}: name a function that needs none.")
        given = [_parsed(names["parse_args"], arguments, source)]
    signature, original = inspect.signature(keras.Model.fit), keras.Model.fit

    def fit(model, *args, **kwargs):
        bound = signature.bind(model, *args, **kwargs)
        bound.apply_defaults()
        arguments = {key: bound.arguments[key] for key in _DATA if key in bound.arguments}
        if split := bound.arguments.get("validation_split"):  # the last examples are not trained on
            count = int(len(tree.flatten(arguments["x"])[0]) * (1.0 - split))
            for key in ("x", "y", "sample_weight"):
                arguments[key] = tree.map_structure(lambda a: None if a is None else a[:count], arguments[key])
        raise _FitReached(model, arguments)

    keras.Model.fit = fit
    try:
        return function(*given)
    except _FitReached as reached:
        return reached.model, reached.arguments
    except UserError:
        raise
    except BaseException as error:  # whatever the user's code does, and sys.exit
        raise UserError(f"{source} raises {type(error).__name__}: {error_summary(error)}.") from error
    finally:
        keras.Model.fit = original


def _parsed(parse_args, arguments, source):
    words = list(arguments)
    if "--output" not in words:  # each backend's own folder, which nobody keeps
        words += ["--output", tempfile.mkdtemp(prefix="zoo-verify-")]
    try:
        return parse_args(words)
    except SystemExit:
        raise UserError(f"{source}: parse_args does not take {' '.join(words)}.") from None


class TrainingRun:
    """A compiled model with its batches, to be trained from its first state any number of times.

    Args:
        result: what the function returned.
        source: what it is called in messages.

    Raises:
        UserError: if that is something else than a compiled model with batches.
    """

    def __init__(self, result: Any, source: str) -> None:
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], keras.Model)):
            raise UserError(f"{source} returns {_words(result)}: expected {EXPECTED}.")
        self.model, self.data = result
        if not getattr(self.model, "compiled", False):
            raise UserError(f"{source} returns a model that is not compiled: call model.compile in it.")
        if (
            not isinstance(self.data, dict)
            and not isinstance(self.data, Iterable)
            and not hasattr(self.data, "__getitem__")
        ):
            raise UserError(f"{source} returns {_words(self.data)} in place of batches: expected {EXPECTED}.")
        self.source = source
        self.batches: list = []
        self.rows: list[str] = []
        self.complete = True

    def read(self, steps: int) -> None:
        """Keep the first batches as arrays, and a digest of every example of the epoch.

        Args:
            steps: how many batches to keep; epochs are repeated if one is shorter.

        Raises:
            UserError: if there are no batches, or they are no (x, y).
        """
        seen = 0
        for batch in self._epoch(0):
            arrays = tree.map_structure(lambda x: None if x is None else _array(x), self._checked(batch))
            if len(self.batches) < steps:
                self.batches.append(arrays)
            self.rows += _digests(arrays)
            seen += 1
            if len(self.rows) >= _MAX_ROWS or (seen >= steps and not self._is_bounded()):
                self.complete = False
                break
        if not self.batches:
            raise UserError(f"The batches of {self.source} are empty.")
        epoch = 0
        while len(self.batches) < steps:
            epoch += 1
            more = [self._checked(b) for b in itertools.islice(self._epoch(epoch), steps - len(self.batches))]
            if not more:
                raise UserError(f"The batches of {self.source} end after {len(self.batches)}: --steps takes fewer.")
            self.batches += [tree.map_structure(lambda x: None if x is None else _array(x), b) for b in more]

    def _is_bounded(self):
        return isinstance(self.data, dict) or hasattr(self.data, "__len__")

    def _epoch(self, epoch: int) -> Iterator[Any]:
        if (
            not isinstance(self.data, dict)
            and isinstance(self.data, Iterable)
            and not hasattr(self.data, "__getitem__")
        ):
            return iter(self.data)
        if isinstance(self.data, list):
            return iter(self.data)
        arguments = dict(self.data) if isinstance(self.data, dict) else {"x": self.data, "shuffle": False}
        if unknown := [key for key in arguments if key not in (*_DATA, "epochs", "verbose", "callbacks")]:
            raise UserError(
                f"{self.source} returns {unknown[0]!r} among the arguments of fit: expected {', '.join(_DATA)}."
            )
        data: Any = arguments.get("x")
        if hasattr(data, "set_epoch"):
            data.set_epoch(epoch)
        arguments = {key: arguments[key] for key in _DATA if key in arguments}
        if arguments.get("y") is not None:
            arguments.setdefault("shuffle", True)  # fit's own default
        return fit_batches(**arguments)

    def _checked(self, batch):
        if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 3:
            raise UserError(f"A batch of {self.source} is {_words(batch)}: expected (x, y) or (x, y, sample_weight).")
        return tuple(batch)

    def prepare(self) -> None:
        """Build model and optimizer, and keep their first state."""
        x, y, *_ = self.batches[0]
        if not self.model.built:
            self.model(tree.map_structure(keras.ops.convert_to_tensor, x))
        self.model.optimizer.build(self.model.trainable_variables)
        self.first = [(v, np.array(keras.ops.convert_to_numpy(v))) for v in self._variables()]

    def _variables(self):
        return list({id(v): v for v in [*self.model.variables, *self.model.optimizer.variables]}.values())

    def losses(self, weights: Sequence[np.ndarray] | None, batches: Sequence[list] | None, nudge: bool) -> list[float]:
        """Losses of the first steps, from the first state.

        Args:
            weights: to start from; the model's own if None.
            batches: leaves of each batch; the model's own batches if None.
            nudge: whether every float weight is moved to a neighbouring number first.

        Returns:
            the loss of each step.
        """
        for variable, value in self.first:
            variable.assign(value)
        if weights is not None:
            self.model.set_weights(list(weights))
        if nudge:
            rng = np.random.default_rng(0)
            values = self.model.get_weights()
            towards = [rng.choice([-np.inf, np.inf], value.shape).astype("float32") for value in values]
            moved = [np.nextafter(v, t) if v.dtype == "float32" else v for v, t in zip(values, towards)]
            self.model.set_weights(moved)
        losses = []
        for index, own in enumerate(self.batches):
            batch = own if batches is None else tree.pack_sequence_as(own, _leaves(batches[index], own))
            x, y, *weight = batch
            self.model.reset_metrics()
            logs = self.model.train_on_batch(x, y, sample_weight=weight[0] if weight else None, return_dict=True)
            losses.append(float(logs["loss"]))
        return losses

    def silence(self) -> list[str]:
        """Switch dropout and noise off for the runs to come; returns the names of these layers."""
        from zoo.parity.probes import silence

        names = silence(self.model)
        self.model.make_train_function(force=True)
        return names


def _leaves(given, own):
    """The arrays of a batch in the places of those of another; None where that has None."""
    given = iter(given)
    return [None if x is None else next(given) for x in tree.flatten(own)]


def _words(value):
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}" if value is not None else "None"


def _array(x):
    return np.array(keras.ops.convert_to_numpy(x) if hasattr(x, "detach") else x)


def _digests(batch):
    """A digest of each example of a batch."""
    leaves = [np.ascontiguousarray(x) for x in tree.flatten(batch) if x is not None and x.ndim]
    return [
        hashlib.sha256(b"".join(leaf[row].astype("float64").tobytes() for leaf in leaves)).hexdigest()[:16]
        for row in range(min(map(len, leaves), default=0))
    ]
