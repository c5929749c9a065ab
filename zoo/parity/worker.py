"""The process in which one backend computes its part of a certificate: commands come in on stdin, replies go out.

    python -m zoo.parity.worker

A command is a line of JSON: {"method": name of a method of `_Worker`, "arguments": {…}}. The reply is one line too:
{"result": …}, or {"error": one sentence}. Arrays are in .npz files that the commands name.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import runpy
import sys
import traceback
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.backends import import_keras, package_version, skip_optional_imports
from zoo.errors import UserError, error_summary

if TYPE_CHECKING:
    from zoo.parity.probes import Probe
    from zoo.parity.training_run import TrainingRun

REFERENCE = "float64"


def save_arrays(path: str, results: dict[str, Any]) -> None:
    """Write a dict of lists, of arrays or of lists of arrays, to an .npz file.

    Args:
        path: of the file.
        results: values; None in place of a list of arrays is kept, and lists of text or numbers.
    """
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for key, value in results.items():
        if all(isinstance(x, np.ndarray) for x in value):
            about[key] = len(value)
            arrays |= {f"{key}/{i}": x for i, x in enumerate(value)}
        elif any(isinstance(x, (list, tuple)) for x in value):
            about[key] = [None if x is None else len(x) for x in value]
            arrays |= {f"{key}/{i}/{j}": y for i, x in enumerate(value) for j, y in enumerate(x or ())}
        else:
            about[key] = {"plain": list(value)}
    np.savez(path, about=json.dumps(about), **arrays)


def load_arrays(path: str) -> dict[str, Any]:
    """Read what `save_arrays` wrote.

    Args:
        path: of the file.

    Returns:
        the dict.
    """
    with np.load(path, allow_pickle=False) as stored:
        results: dict[str, Any] = {}
        for key, count in json.loads(str(stored["about"])).items():
            if isinstance(count, dict):
                results[key] = count["plain"]
            elif isinstance(count, int):
                results[key] = [stored[f"{key}/{i}"] for i in range(count)]
            else:
                lists = enumerate(count)
                results[key] = [None if n is None else [stored[f"{key}/{i}/{j}"] for j in range(n)] for i, n in lists]
    return results


class _Worker:
    """What a process does on its backend; each public method is a command."""

    def __init__(self) -> None:
        self.source: str | None = None
        self.probes: dict[str, Probe] = {}
        self.training: TrainingRun | None = None

    def start(self, setup: str | None = None) -> dict[str, Any]:
        """Import Keras, then run a file of the user's; returns backend and versions."""
        import_keras()
        import keras

        if setup:
            self.setup(setup)
        backend = keras.backend.backend()
        version = package_version(backend).partition("+")[0]
        return {"backend": backend, "version": version, "keras": keras.__version__}

    def setup(self, path: str) -> None:
        """Run a Python file in this process, e.g. to register classes."""
        _run_file(path)

    # ------------------------------------------------------------------------------------------------------ the model

    def load(
        self, source: str, precision: str, weights: str | None = None, arguments: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Load or build the model in a precision, with the weights of a file if there is one; describe it."""
        import keras

        from zoo.compat.keras import flatten_layers, functional_graph
        from zoo.parity import probes

        if source != self.source:
            self.source, self.probes = source, {}
        keras.utils.clear_session()  # so that layers without a name are numbered alike, in each precision and process
        with self._in(precision):
            model = load_source(source, precision, arguments)
            silenced = probes.silence(model)
            for layer in flatten_layers(model):
                layer.trainable = True  # the gradient of every weight, of frozen layers too
            if weights:
                given = load_arrays(weights)["weights"]
                if [x.shape for x in given] != [tuple(v.shape) for v in model.weights]:
                    raise UserError(f"{source} builds another model on {keras.backend.backend()}: its weights differ.")
                model.set_weights(given)
            if precision == REFERENCE:  # from the numbers that the others have too
                narrow = [w.astype("float32") if w.dtype.kind == "f" else w for w in model.get_weights()]
                model.set_weights(narrow)
            probe = probes.Probe(model, REFERENCE if precision == REFERENCE else "float32")
        self.probes[precision] = probe
        return {
            "name": model.name,
            "variables": [v.path for v in probe.variables],
            "states": [v.path for v in probe.states],
            "silenced": silenced,
            "layers": len(flatten_layers(model, include_self=False)),
            "parameters": int(model.count_params()),
            "functional": functional_graph(model) is not None,
            "wide": precision != REFERENCE or all(_is_wide(v) for v in model.weights),
            "optimizer": optimizer_config(source, model),
        }

    def weights(self, target: str, precision: str) -> None:
        """Write the weights of the model, for the other backends."""
        save_arrays(target, {"weights": self.probes[precision].model.get_weights()})

    def inputs(
        self,
        target: str,
        precision: str,
        given: str | None = None,
        shapes: dict[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Write inputs, those of a file or random ones; returns their names."""
        from zoo.parity import inputs

        with self._in(precision):
            model = self.probes[precision].model
            if given:
                arrays = inputs.given_inputs(model, _read_npz(given))
            else:
                arrays = inputs.random_inputs(model, shapes, seed=seed)
        save_arrays(target, {"inputs": list(arrays.values())})
        return list(arrays)

    def run(
        self,
        target: str,
        precision: str,
        inputs: str,
        mode: str,
        cotangents: str | None = None,
        rounding: str | None = None,
        draw: int | None = None,
        record: bool = False,
    ) -> bool:
        """Run the whole model, `Probe.run`, and write the results; returns whether a second call gives the same."""
        given = load_arrays(cotangents)["cotangents"] if cotangents else None
        arrays = load_arrays(inputs)["inputs"]
        with self._in(precision):
            probe = self.probes[precision]
            options: dict[str, Any] = {"rounding": rounding, "draw": draw, "record": record}
            results = probe.run(arrays, given, training=mode == "training", **options)
            once = precision != REFERENCE or rounding or record
            again = [] if once else probe.outputs(arrays, training=mode == "training")
        save_arrays(target, results)
        return all(np.allclose(a, b, rtol=1e-9, atol=1e-30, equal_nan=True) for a, b in zip(again, results["outputs"]))

    def run_calls(
        self,
        target: str,
        precision: str,
        inputs: str,
        mode: str,
        record: str,
        wanted: Sequence[int],
        rounding: str | None = None,
        draw: int | None = None,
    ) -> None:
        """Give layers the inputs and the cotangent of a record, `Probe.run_call`, and write the results.

        `wanted` are the numbers of their calls in the record.
        """
        recorded, results = load_arrays(record), {}
        kind = "float32"
        with self._in(precision):
            probe = self.probes[precision]
            calls = probe.calls(load_arrays(inputs)["inputs"], training=mode == "training")
            pairs = itertools.zip_longest((call.path for call in calls), recorded["paths"])
            for number, (own, others) in enumerate(pairs, start=1):
                if own != others:
                    raise UserError(f"call {number} is of {own!r} here, and of {others!r} in the reference.")
            for index in wanted:
                call = calls[index]
                given = [x.astype(kind) if x.dtype.kind == "f" else x for x in recorded["call_inputs"][index]]
                cotangents = recorded["call_cotangents"][index]
                cotangents = None if cotangents is None else [x.astype(kind) for x in cotangents]
                for key, value in probe.run_call(call, given, cotangents, rounding=rounding, draw=draw).items():
                    results[f"{index}.{key}"] = value
        save_arrays(target, results)

    def step(self, target: str, precision: str, gradients: str, optimizer: dict[str, Any]) -> None:
        """Take an optimizer's step from the gradients of a file and write the weights after it."""
        from zoo.parity.probes import to_numpy

        given = [x.astype("float32") for x in load_arrays(gradients)["gradients"]]
        with self._in(precision):
            probe = self.probes[precision]
            before = [to_numpy(variable) for variable in probe.variables]
            after = probe.step(optimizer, given)
        save_arrays(target, {"step": after, "before": before})

    def variance_loses_digits(self) -> bool:
        """Whether `keras.ops.moments` takes a variance as E[x^2] - E[x]^2: that of 8192, …, 8195 is 1.25."""
        import keras

        numbers = keras.ops.convert_to_tensor(np.arange(8192.0, 8196.0, dtype="float32"))
        _, variance = keras.ops.moments(numbers, axes=[0])
        return abs(float(keras.ops.convert_to_numpy(variance)) - 1.25) > 0.1

    # ------------------------------------------------------------------------------------------------------- training

    def start_training(self, source: str, arguments: Sequence[str], steps: int, target: str) -> dict[str, Any]:
        """Get model and batches of a function, and write the first batches and the weights."""
        import keras

        from zoo.parity.training_run import TrainingRun, call_function

        function, names = find_function(source)
        self.training = run = TrainingRun(call_function(function, names, arguments, source), source)
        run.read(steps)
        run.prepare()
        batches = [[x for x in keras.tree.flatten(batch) if x is not None] for batch in run.batches]
        save_arrays(target, {"batches": batches, "weights": run.model.get_weights()})
        first = run.batches[0][0]
        return {
            "rows": run.rows,
            "complete": run.complete,
            "num_inputs": len(keras.tree.flatten(first)),
            "weights": [v.path for v in run.model.weights],
            "optimizer": type(run.model.optimizer).__name__,
        }

    def losses(
        self, weights: str | None = None, batches: str | None = None, nudge: bool = False, silence: bool = False
    ) -> dict[str, Any]:
        """Losses of the first steps, with the weights and the batches of files where they are given."""
        assert self.training is not None
        silenced = self.training.silence() if silence else []
        given = load_arrays(batches)["batches"] if batches else None
        values = load_arrays(weights)["weights"] if weights else None
        return {"losses": self.training.losses(values, given, nudge), "silenced": silenced}

    @contextlib.contextmanager
    def _in(self, precision):
        import keras

        from zoo.compat.keras import float64_results

        with float64_results() if precision == REFERENCE else contextlib.nullcontext():
            policy = keras.config.dtype_policy()
            keras.config.set_dtype_policy(precision)
            try:
                yield
            finally:
                keras.config.set_dtype_policy(policy)


def _is_wide(variable):
    """Whether a variable is float64, or no float at all."""
    dtype = str(variable.dtype)
    return dtype == "float64" or "float" not in dtype


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise UserError(f"There is no file of inputs at {path}: give one that np.savez wrote.") from None
    except Exception as error:  # NumPy and zipfile raise many kinds for what is no archive of arrays
        raise UserError(f"{path} is no .npz file of arrays ({error_summary(error)}): write it by np.savez.") from error


# ----------------------------------------------------------------------------------------------- where models come from


def split_function(source: str) -> tuple[str, str] | None:
    """(file, function) of FILE.py:FUNCTION, None for anything else.

    Args:
        source: of a model.

    Returns:
        the two, or None.
    """
    path, colon, name = source.rpartition(":")
    return (path, name) if colon and path.endswith(".py") else None


def _run_file(path):
    if not os.path.isfile(path):
        raise UserError(f"There is no Python file at {path}.")
    folder = str(pathlib.Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return runpy.run_path(path, run_name=pathlib.Path(path).stem)
    except UserError:
        raise
    except BaseException as error:  # whatever a file of somebody's does, and sys.exit
        raise UserError(
            f"{path} cannot be run on this backend: {type(error).__name__}: {error_summary(error)}."
        ) from error


def find_function(source: str) -> Any:
    """The function that FILE.py:FUNCTION names; the file is run.

    Args:
        source: FILE.py:FUNCTION.

    Returns:
        (function, the file's names).

    Raises:
        UserError: if the file cannot be run or has no such function.
    """
    path, name = split_function(source) or (source, "")
    names = _run_file(path)
    if not callable(names.get(name)):
        functions = [key for key, value in names.items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{path} has no function {name!r}: it has {', '.join(functions[:6]) or 'none'}.")
    return names[name], names


def load_source(source: str, precision: str, arguments: Sequence[str] = ()) -> Any:
    """The model of a `.keras` file, or that a function returns, in a precision.

    Args:
        source: path of a `.keras` file, or FILE.py:FUNCTION.
        precision: a dtype policy; float64 for the reference.
        arguments: words for `parse_args` of the function's file.

    Returns:
        built `keras.Model`.

    Raises:
        UserError: if it cannot be loaded or built, or the function returns something else.
    """
    import keras

    from zoo.io import model_files

    if not split_function(source):
        try:
            return _load_file(source, precision)
        except UserError as error:
            if missing := model_files.without_advice(error):
                raise UserError(f"{missing}: name the file that registers it with --setup.") from error
            raise
    from zoo.parity.training_run import call_function

    function, names = find_function(source)
    model = call_function(function, names, arguments, source)
    if isinstance(model, tuple) and model and isinstance(model[0], keras.Model):
        model = model[0]
    if not isinstance(model, keras.Model) or not model.built:
        what = "a model that is not built" if isinstance(model, keras.Model) else f"{type(model).__name__}"
        raise UserError(f"{source} returns {what}: expected a built keras.Model.")
    return model


def _load_file(path, precision):
    import keras

    from zoo.io import model_files

    config = model_files.read_config(path)
    if _in_precision(config, precision) == config:
        return model_files.load_model(path)
    try:
        model = keras.saving.deserialize_keras_object(_in_precision(config, precision), safe_mode=True)
        model.load_weights(path)
    except Exception:
        model_files.load_model(path)  # raises the sentence, if it is the file's fault
        raise
    return model


def _in_precision(config, precision):
    """A serialized object with the dtypes of its layers replaced; for float64 those of inputs and casts as well."""
    if isinstance(config, list):
        return [_in_precision(value, precision) for value in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return config | {"config": {"name": precision}}
    replaced = {key: _in_precision(value, precision) for key, value in config.items()}
    dtype, is_layer = config.get("dtype"), "trainable" in config
    if isinstance(dtype, str) and "float" in dtype and (precision == REFERENCE or is_layer):
        replaced["dtype"] = precision
    return replaced


def optimizer_config(source: str, model: Any) -> dict[str, Any]:
    """The optimizer that a model was compiled with, as its config; Keras' Adam for one that was not.

    Args:
        source: path of a `.keras` file, or FILE.py:FUNCTION.
        model: that was loaded of it.

    Returns:
        dict with class_name, module and config.
    """
    import keras

    config = None
    if getattr(model, "optimizer", None) is not None:
        config = keras.optimizers.serialize(model.optimizer)
    elif not split_function(source):
        with zipfile.ZipFile(source) as archive:
            compiled = json.loads(archive.read("config.json")).get("compile_config") or {}
        config = compiled.get("optimizer")
    if not isinstance(config, dict) or "config" not in config:
        config = keras.optimizers.serialize(keras.optimizers.Adam())
    return {key: config.get(key) for key in ("module", "class_name", "config", "registered_name")}


# ------------------------------------------------------------------------------------------------------------- the loop


def main() -> None:
    """Answer commands until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what others print is no reply
    skip_optional_imports()
    worker = _Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = {"result": getattr(worker, command["method"])(**command["arguments"])}
        except UserError as error:
            reply = {"error": str(error)}
        except Exception as error:  # Keras and frameworks raise many kinds: each ends one backend's part, not all
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error_summary(error)}."}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
