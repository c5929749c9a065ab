"""Write a task's models in the format of another runtime: a folder with a certificate, or nothing."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from zoo import backends
from zoo.compat.keras import functional_graph
from zoo.errors import UserError, require
from zoo.exporters.certificates import CONFIG_FILE, certify, is_export
from zoo.exporters.framework_formats import ConversionJob, write_framework_models
from zoo.exporters.onnx_model import axis_names, write_onnx
from zoo.exporters.quantization import QUANTIZATIONS, check_quantization, quantize_onnx
from zoo.exporters.runtimes import FORMATS, RUNTIMES, check_format
from zoo.io import files
from zoo.io.cards import TOKENIZER_FILE
from zoo.parity.records import ParityRecord, record_layer_outputs, synthetic_inputs, weight_digests
from zoo.parity.verify import TOLERANCE
from zoo.typing import Log, StrPath


@dataclasses.dataclass(frozen=True)
class ExportedPart:
    """One model of an export.

    Attributes:
        model: functional `keras.Model`.
        output_names: in the order of its outputs.
    """

    model: keras.Model
    output_names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """What an export consists of.

    Attributes:
        parts: {name of the file, without suffix: `ExportedPart`}.
        recorded: {name of a record: the model whose parity record it is}.
        replays: (kind, names of parts, name of a record) of each replay, see `zoo.exporters.certificates`.
        config: what config.json says beside inputs and outputs.
        inputs: {name of a record: inputs} of records that are made now and not taken from the preset, because they try
            what its own leaves out.
        left_out: {format or quantization: names of parts that it leaves out}.
        fixed_shapes: {name of a part: shape of each input} for formats that fix them; a part that is not there has a
            batch of 1, and where its sizes are open those of its record.
        fixed_inputs: {name of a record: inputs} as `inputs`, for formats that fix shapes.
        save_tokenizer: function that writes the tokenizer to a path, or None.
    """

    parts: Mapping[str, ExportedPart]
    recorded: Mapping[str, keras.Model]
    replays: Sequence[tuple[str, Sequence[str], str]]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Mapping[str, Sequence[np.ndarray]] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    fixed_shapes: Mapping[str, Sequence[Sequence[int]]] = dataclasses.field(default_factory=dict)
    fixed_inputs: Mapping[str, Sequence[np.ndarray]] = dataclasses.field(default_factory=dict)
    save_tokenizer: Callable[[pathlib.Path], object] | None = None


def plan_of_model(model: keras.Model) -> ExportPlan:
    """The plan of a model of any kind: one file and its parity record.

    Args:
        model: a functional model.

    Returns:
        `ExportPlan`.
    """
    graph = functional_graph(model)
    names = [f"output_{index}" for index in range(len(graph.outputs if graph else model.outputs))]
    parts = {"model": ExportedPart(model, names if len(names) > 1 else ["output"])}
    return ExportPlan(parts, {"model": model}, [("call", ["model"], "model")], {"name": model.name})


def check_export(folder: StrPath, folder_format: str, quantize: str | None = None) -> None:
    """Check, before a model is loaded, that an export can be made.

    Args:
        folder: where it goes.
        folder_format: a key of `zoo.exporters.runtimes.FORMATS`.
        quantize: a key of `zoo.exporters.quantization.QUANTIZATIONS`, or None.

    Raises:
        UserError: if the format or quantization is unknown, a package or backend is missing, or the folder holds
            something else or cannot be written to.
    """
    check_format(folder_format)
    check_quantization(quantize, folder_format)
    about = FORMATS[folder_format]
    packages = [*about.packages, *([about.backend] if about.backend else []), RUNTIMES[about.runtimes[0]]]
    require(*dict.fromkeys(packages), what="An export")
    path = pathlib.Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: name a folder with --output.")
    if path.is_dir() and any(path.iterdir()) and not is_export(path):
        raise UserError(
            f"{path} holds other files than an export, which would be lost: name another folder with --output."
        )
    parent = path.absolute().parent
    files.prepare_folder(parent)


def write_export(
    folder: StrPath,
    plan: ExportPlan,
    *,
    folder_format: str = "onnx",
    quantize: str | None = None,
    tolerance: float | None = None,
    records: Mapping[str, ParityRecord] | None = None,
    log: Log | None = None,
) -> pathlib.Path:
    """Write an exported folder: model files, tokenizer, config.json, parity records, certificate.json.

    It is made beside its place and put there when the certificate is written. An export that was there is replaced.

    Args:
        folder: where it goes.
        plan: what it consists of.
        folder_format: a key of `zoo.exporters.runtimes.FORMATS`.
        quantize: a key of `zoo.exporters.quantization.QUANTIZATIONS`, or None for float32.
        tolerance: the largest `zoo.parity.verify.max_scaled_error` that passes; 1e-4, or that of the quantization, if
            None.
        records: {name of a record: parity record of a published model}; used where the model has the recorded weights,
            else the model is run on this backend.
        log: function that takes a line for each result.

    Returns:
        the path of the folder.

    Raises:
        UserError: as `check_export` and `zoo.exporters.onnx_graph.write_onnx`; or if a difference is over the
            tolerance.
    """
    check_export(folder, folder_format, quantize)
    if tolerance is None:
        tolerance = QUANTIZATIONS[quantize].tolerance if quantize else TOLERANCE
    if not 0 <= tolerance < float("inf"):
        raise UserError(f"The tolerance must be a number from 0 up, got {tolerance}.")
    path, suffix, backend = pathlib.Path(folder), FORMATS[folder_format].suffix, keras.backend.backend()
    temporary, old = (path.with_name(f".{path.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    left_out = {name for key in (folder_format, quantize) if key for name in plan.left_out.get(key, ())}
    parts = {name: part for name, part in plan.parts.items() if name not in left_out}
    replays, references = _replays(plan, parts, FORMATS[folder_format].fixed_shapes), {}
    try:
        temporary.mkdir()
        made = {name: _record_of_plan(plan, name, records or {}, folder_format) for _, _, name in replays}
        for name, record in made.items():
            record.save(temporary / _record_name(name))
            references[_record_name(name)] = {key: record.metadata[key] for key in ("backend", "version", "keras")}
        shapes = {name: _shapes(plan, name, made.get(name), folder_format) for name in parts}
        _write_models(parts, shapes, temporary, folder_format, quantize)
        if plan.save_tokenizer:
            plan.save_tokenizer(temporary / TOKENIZER_FILE)
        described = {f"{name}{suffix}": _describe(part, shapes[name]) for name, part in parts.items()}
        config = {"format": folder_format, "quantization": quantize, **plan.config, "models": described}
        files.write_json(temporary / CONFIG_FILE, config)
        results = certify(
            temporary,
            [(kind, [f"{name}{suffix}" for name in names], _record_name(record)) for kind, names, record in replays],
            tolerance=tolerance,
            metadata={"written_by": _versions(backend, folder_format), "references": references},
            quantize=quantize,
        )
        if path.is_dir():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        if old.is_dir():
            os.replace(old, path)
        raise UserError(
            f"The export cannot be written to {path} ({error.strerror}): name another folder with --output."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    for result in results:
        (log or (lambda line: None))(str(result))
    return path


def _record_name(name):
    return "parity.npz" if name == "model" else f"{name}.parity.npz"


def _replays(plan, parts, fixed):
    """The replays of the parts that are written; of the records, those that have the shapes of a format."""
    return [
        (kind, names, record)
        for kind, names, record in plan.replays
        if all(name in parts for name in names)
        and not (fixed and plan.fixed_inputs and record not in plan.fixed_inputs)
    ]


def _record_of_plan(plan, name, records, folder_format):
    """The parity record of a replay; of one item where the format fixes shapes."""
    fixed = FORMATS[folder_format].fixed_shapes
    inputs = (plan.fixed_inputs if fixed and name in plan.fixed_inputs else plan.inputs).get(name)
    record = _record_of(plan.recorded[name], records.get(name) if inputs is None else None, inputs)
    if not fixed:
        return record
    inputs, outputs = ([array[:1] for array in arrays] for arrays in (record.inputs, record.outputs))
    return dataclasses.replace(record, inputs=inputs, outputs=outputs)


def _shapes(plan, name, record, folder_format):
    """The shape of each input of a part, as the format has it."""
    inputs = plan.parts[name].model.inputs
    if not FORMATS[folder_format].fixed_shapes:
        return [tuple(x.shape) for x in inputs]
    if name in plan.fixed_shapes:
        return list(plan.fixed_shapes[name])
    examples = [array.shape for array in record.inputs] if record is not None else [(1, *x.shape[1:]) for x in inputs]
    return [tuple(size or example[axis] for axis, size in enumerate(x.shape)) for x, example in zip(inputs, examples)]


def _write_models(parts, shapes, folder, folder_format, quantize):
    suffix = FORMATS[folder_format].suffix
    if FORMATS[folder_format].backend:
        jobs = [
            ConversionJob(part.model, folder / f"{name}{suffix}", shapes[name], part.output_names)
            for name, part in parts.items()
        ]
        write_framework_models(jobs, folder_format)
        return
    for name, part in parts.items():
        path = folder / f"{name}.onnx"
        write_onnx(part.model, path, output_names=part.output_names)
        if quantize:
            quantize_onnx(path, quantize)
        if folder_format == "openvino":
            _to_openvino(path)


def _to_openvino(path):
    """Write an ONNX file as OpenVINO's, in its place."""
    require("openvino", what="An export to OpenVINO")
    import openvino

    converted = openvino.convert_model(str(path))
    openvino.save_model(converted, str(path.with_suffix(".xml")), compress_to_fp16=False)
    del converted
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def _describe(part, shapes):
    """The entry of a part in config.json."""
    inputs = [
        {"name": x.name, "shape": axis_names(x.name, shape), "dtype": x.dtype}
        for x, shape in zip(part.model.inputs, shapes)
    ]
    results = part.model.outputs
    if all(None not in shape for shape in shapes):  # where the format fixes them
        symbols = [keras.KerasTensor(shape, x.dtype) for x, shape in zip(part.model.inputs, shapes)]
        results = keras.tree.flatten(part.model.compute_output_spec(symbols if len(symbols) > 1 else symbols[0]))
    outputs = [
        {"name": name, "shape": axis_names(name, x.shape), "dtype": x.dtype}
        for name, x in zip(part.output_names, results)
    ]
    return {"inputs": inputs, "outputs": outputs}


def _record_of(model, recorded, inputs=None):
    """The inputs and outputs of a model: as they were recorded, if its weights are those, else by running it."""
    if recorded is not None and recorded.metadata["weights"] == weight_digests(model):
        return dataclasses.replace(recorded, layers={})
    if inputs is None:
        inputs = recorded.inputs if recorded is not None else synthetic_inputs(model)
    outputs, _ = record_layer_outputs(model, inputs)
    backend = keras.backend.backend()
    metadata = {
        "backend": backend,
        "version": backends.package_version(backend).partition("+")[0],
        "keras": keras.__version__,
        "sha256": "0" * 64,  # of no file
        "functional": functional_graph(model) is not None,
        "values": 0,
        "weights": weight_digests(model),
    }
    return ParityRecord(list(inputs), outputs, {}, metadata)


def _versions(backend, folder_format):
    from zoo import __version__

    names = [backend, *FORMATS[folder_format].packages, FORMATS[folder_format].backend]
    versions = {name: backends.package_version(name) for name in dict.fromkeys(names) if name}
    return {"zoo": __version__, "keras": keras.__version__, **versions}
