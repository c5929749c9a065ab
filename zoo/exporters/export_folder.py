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
from zoo.exporters.onnx_model import axis_names, write_onnx
from zoo.exporters.runtimes import SUFFIXES, check_format
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
        save_tokenizer: function that writes the tokenizer to a path, or None.
    """

    parts: Mapping[str, ExportedPart]
    recorded: Mapping[str, keras.Model]
    replays: Sequence[tuple[str, Sequence[str], str]]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Mapping[str, Sequence[np.ndarray]] = dataclasses.field(default_factory=dict)
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


def check_export(folder: StrPath, folder_format: str) -> None:
    """Check, before a model is loaded, that an export can be made.

    Args:
        folder: where it goes.
        folder_format: a key of `zoo.exporters.runtimes.RUNTIMES`.

    Raises:
        UserError: if the format is unknown, a package is missing, or the folder holds something else or cannot be
            written to.
    """
    check_format(folder_format)
    require("onnx", *(["openvino"] if folder_format == "openvino" else ["onnxruntime"]), what="An export")
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
    tolerance: float = TOLERANCE,
    records: Mapping[str, ParityRecord] | None = None,
    log: Log | None = None,
) -> pathlib.Path:
    """Write an exported folder: model files, tokenizer, config.json, parity records, certificate.json.

    It is made beside its place and put there when the certificate is written. An export that was there is replaced.

    Args:
        folder: where it goes.
        plan: what it consists of.
        folder_format: a key of `zoo.exporters.runtimes.RUNTIMES`.
        tolerance: the largest `zoo.parity.verify.max_scaled_error` that passes.
        records: {name of a record: parity record of a published model}; used where the model has the recorded weights,
            else the model is run on this backend.
        log: function that takes a line for each result.

    Returns:
        the path of the folder.

    Raises:
        UserError: as `check_export` and `zoo.exporters.onnx_graph.write_onnx`; or if a difference is over the
            tolerance.
    """
    check_export(folder, folder_format)
    if not 0 <= tolerance < float("inf"):
        raise UserError(f"The tolerance must be a number from 0 up, got {tolerance}.")
    path, suffix = pathlib.Path(folder), SUFFIXES[folder_format]
    temporary, old = (path.with_name(f".{path.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    try:
        temporary.mkdir()
        described = {}
        for name, part in plan.parts.items():
            described[f"{name}{suffix}"] = _write_model(part, temporary / f"{name}.onnx", folder_format)
        backend = keras.backend.backend()
        references = {}
        for name, model in plan.recorded.items():
            record = _record_of(model, (records or {}).get(name), plan.inputs.get(name))
            record.save(temporary / _record_name(name))
            references[_record_name(name)] = {key: record.metadata[key] for key in ("backend", "version", "keras")}
        if plan.save_tokenizer:
            plan.save_tokenizer(temporary / TOKENIZER_FILE)
        config = {"format": folder_format, **plan.config, "models": described}
        files.write_json(temporary / CONFIG_FILE, config)
        results = certify(
            temporary,
            [
                (kind, [f"{name}{suffix}" for name in names], _record_name(record))
                for kind, names, record in plan.replays
            ],
            tolerance=tolerance,
            metadata={"written_by": _versions(backend), "references": references},
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


def _write_model(part, path, folder_format):
    """Write a part as `path` or, in another format, in its place; its entry in config.json."""
    write_onnx(part.model, path, output_names=part.output_names)
    if folder_format == "openvino":
        require("openvino", what="An export to OpenVINO")
        import openvino

        converted = openvino.convert_model(str(path))
        openvino.save_model(converted, str(path.with_suffix(".xml")), compress_to_fp16=False)
        del converted
        for one in path.parent.glob(f"{path.name}*"):
            one.unlink()
    names = {"inputs": [x.name for x in part.model.inputs], "outputs": part.output_names}
    return {
        side: [
            {"name": name, "shape": axis_names(name, x.shape), "dtype": x.dtype}
            for name, x in zip(names[side], getattr(part.model, side))
        ]
        for side in names
    }


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


def _versions(backend):
    from zoo import __version__

    packages = {"zoo": __version__, "keras": keras.__version__, "onnx": backends.package_version("onnx")}
    return packages | {backend: backends.package_version(backend)}
