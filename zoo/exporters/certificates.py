"""Certificates of exported folders: the sha256 of each file, and how far a runtime is from the parity record.

An exported folder holds model files, `config.json` (inputs, outputs, ids, labels, settings), the tokenizer, parity
records (`zoo.parity.records`: inputs and outputs of the Keras model) and `certificate.json`. The records are replayed
in a runtime when the folder is made, and again by `verify_folder`, which needs nothing but the folder and the runtime.

How a record is replayed, `kind`:

    call            the model is run on the record's inputs
    token_by_token  a language model's step is run on one token after the other, its states carried on
    decoder_steps   the source is encoded once, then the decoder's step is run on one target token after the other
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from zoo.errors import UserError
from zoo.exporters.quantization import QUANTIZATIONS
from zoo.exporters.runtimes import FORMATS, RuntimeModel, check_runtimes, runtime_version
from zoo.io import files, schemas
from zoo.parity.records import ParityRecord
from zoo.parity.verify import TOLERANCE, max_scaled_error
from zoo.typing import Log, StrPath

CERTIFICATE_FILE = "certificate.json"
CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class ReplayResult:
    """One replay in one runtime.

    Attributes:
        models: names of the files.
        kind: of the replay.
        runtime: its name.
        version: of the runtime.
        max_error: max |output - reference| / max(1, max |reference|) over the outputs.
        passed: whether that is within the tolerance.
    """

    models: tuple[str, ...]
    kind: str
    runtime: str
    version: str
    max_error: float
    passed: bool

    def __str__(self):
        verdict = "same" if self.passed else "DIFFERS"
        return f"{', '.join(self.models):<34} {self.runtime:<12}{self.version:<11}{self.max_error:>9.1e}  {verdict}"


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """Result of `verify_folder`; `print(report)` shows it.

    Attributes:
        passed: whether every replay is within the tolerance.
        rows: tuple of `ReplayResult`s.
        text: the report as text.
    """

    passed: bool
    rows: tuple[ReplayResult, ...]
    text: str

    def __str__(self):
        return self.text


def read_export_config(folder: StrPath) -> schemas.ExportConfig:
    """Read and check the config.json of an exported folder.

    Args:
        folder: the folder.

    Returns:
        what every task has of it.

    Raises:
        UserError: if it is missing or damaged.
    """
    return schemas.load(pathlib.Path(folder) / CONFIG_FILE, schemas.ExportConfig, "the description of the export")


def is_export(folder: StrPath) -> bool:
    """Whether a folder is an exported one.

    Args:
        folder: any path.

    Returns:
        True if it has a certificate.
    """
    return (pathlib.Path(folder) / CERTIFICATE_FILE).is_file()


def verify_folder(
    folder: StrPath,
    *,
    tolerance: float | None = None,
    runtimes: Sequence[str] | None = None,
    log: Log | None = None,
) -> ExportReport:
    """Check the files of an exported folder and replay its parity records.

    Args:
        folder: the folder.
        tolerance: the largest error that passes; that of the certificate if None.
        runtimes: names of runtimes; that of the certificate if None.
        log: function that takes each line of the report as soon as it is known.

    Returns:
        `ExportReport`.

    Raises:
        UserError: if a file is missing, altered or refused by the runtime; it is named.
    """
    folder, lines, rows = pathlib.Path(folder), [], []

    def report(line):
        lines.append(str(line))
        if log:
            log(str(line))

    certificate = schemas.load(folder / CERTIFICATE_FILE, schemas.Certificate, "the certificate of the export")
    _check_files(folder, certificate.files)
    config = read_export_config(folder)
    if tolerance is not None and not 0 <= tolerance < np.inf:
        raise UserError(f"The tolerance must be a number from 0 up, got {tolerance}.")
    tolerance = certificate.tolerance if tolerance is None else tolerance
    names = list(dict.fromkeys(runtimes or [certificate.runtime.name]))
    check_runtimes(names, config.format)
    report(f"{folder}, {len(certificate.files)} files as the certificate says, tolerance {tolerance:g}")
    report("")
    report(f"{'model':<34} {'runtime':<12}{'version':<11}{'error':>9}  verdict")
    for runtime in names:
        for replay in certificate.replays:
            error = replay_error(folder, config, replay.kind, replay.models, replay.record, runtime)
            row = (tuple(replay.models), replay.kind, runtime, runtime_version(runtime), error, error <= tolerance)
            rows.append(ReplayResult(*row))
            report(rows[-1])
    passed, many = all(row.passed for row in rows), len(names) > 1
    report("")
    where = f"{' and '.join(names)} {'give' if many else 'gives'}"
    report(f"{where} the numbers of the parity record." if passed else f"{where} other numbers than the parity record.")
    return ExportReport(passed, tuple(rows), "\n".join(lines))


def _check_files(folder, entries):
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"There is no {name} in {folder}, which its certificate lists: export the model again.")
        if (digest := files.sha256(path)) != entry.sha256:
            raise UserError(
                f"{path} has sha256 {digest[:12]}… but {CERTIFICATE_FILE} beside it says {entry.sha256[:12]}…: the "
                "file was altered or cut short, export the model again."
            )


def certify(
    folder: pathlib.Path,
    replays: Sequence[tuple[str, Sequence[str], str]],
    *,
    tolerance: float = TOLERANCE,
    metadata: dict[str, object],
    quantize: str | None = None,
) -> list[ReplayResult]:
    """Replay the records of a new folder in the runtime of its format, and write its certificate.

    Args:
        folder: with all other files in it.
        replays: (kind, names of model files, name of the record) of each.
        tolerance: the largest error that passes.
        metadata: what else the certificate says.
        quantize: how the files were quantized, or None.

    Returns:
        the results.

    Raises:
        UserError: if an error is over the tolerance, or the runtime refuses a file.
    """
    config = read_export_config(folder)
    runtime = FORMATS[config.format].runtimes[0]
    results, version = [], runtime_version(runtime)
    for kind, models, record in replays:
        error = replay_error(folder, config, kind, models, record, runtime)
        results.append(ReplayResult(tuple(models), kind, runtime, version, error, error <= tolerance))
        if error > tolerance:
            raise UserError(
                f"{' and '.join(models)} in {runtime} {version} {'differ' if len(models) > 1 else 'differs'} from the "
                f"Keras model by {error:.1e} of the largest output, more than the tolerance {tolerance:g}, so that "
                "nothing was exported: give a larger --tolerance if that will do."
            )
    described = {
        path.relative_to(folder).as_posix(): {"sha256": files.sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if quantize:
        metadata = metadata | {"quantization": _describe_quantization(quantize)}
    certificate = {
        **metadata,
        "runtime": {"name": runtime, "version": version},
        "tolerance": tolerance,
        "replays": [
            {"kind": kind, "models": list(models), "record": record, "max_error": float(f"{result.max_error:.3g}")}
            for (kind, models, record), result in zip(replays, results)
        ],
        "files": described,
    }
    (folder / CERTIFICATE_FILE).write_text(
        json.dumps(certificate, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return results


def _describe_quantization(quantize):
    """What the certificate of quantized files says of itself."""
    return {
        "name": quantize,
        "method": QUANTIZATIONS[quantize].method,
        "meaning": (
            "Quantized files differ from the float32 model by design: the tolerance bounds the difference on the "
            "parity records alone and says nothing of the score. Scores before and after, on test data: "
            "docs/guides/export.md, made by benchmarks/export_scores.py."
        ),
    }


# ------------------------------------------------------------------------------------------------------------- replays


def replay_error(
    folder: StrPath,
    config: schemas.ExportConfig,
    kind: str,
    models: Sequence[str],
    record: str,
    runtime: str,
) -> float:
    """Replay a parity record in a runtime.

    Args:
        folder: the exported folder.
        config: its config.json.
        kind: of the replay, see above.
        models: names of the model files.
        record: name of the parity record.
        runtime: name of the runtime.

    Returns:
        the largest `zoo.parity.verify.max_scaled_error` of an output; infinite if shapes do not match.

    Raises:
        UserError: if the runtime refuses a file, or the config does not describe one.
    """
    if missing := [name for name in models if name not in config.models]:
        raise UserError(f"{CONFIG_FILE} in {folder} does not describe {missing[0]}: export the model again.")
    path, reference = pathlib.Path(folder), ParityRecord.load(pathlib.Path(folder) / record)
    described = [config.models[name] for name in models]
    loaded = [
        RuntimeModel(runtime, path / name, [x.name for x in about.outputs]) for name, about in zip(models, described)
    ]
    replays: dict[str, Callable] = {
        "call": _call,
        "token_by_token": _token_by_token,
        "decoder_steps": _decoder_steps,
    }
    try:
        outputs = replays[kind](*loaded, *described, reference.inputs)
    except (IndexError, KeyError, StopIteration, ValueError) as error:
        raise UserError(
            f"{record} in {folder} cannot be replayed through {' and '.join(models)} ({error}): export the model again."
        ) from error
    if len(outputs) != len(reference.outputs):
        return float("inf")
    return max(map(max_scaled_error, outputs, reference.outputs), default=0.0)


def _feeds(described, arrays):
    return {x.name: np.asarray(array).astype(x.dtype) for x, array in zip(described.inputs, arrays, strict=True)}


def _call(model, described, inputs):
    return model(_feeds(described, inputs))


def _token_by_token(step, described, inputs):
    """Logits (B, T, V) of tokens (B, T)."""
    (tokens,), logits = inputs, []
    states = [np.zeros((len(tokens), x.shape[1]), x.dtype) for x in described.inputs[1:]]
    for token in tokens.T:
        first, *states = step(_feeds(described, [token, *states]))
        logits.append(first)
    return [np.stack(logits, axis=1)]


def _decoder_steps(encoder, step, encoder_described, step_described, inputs):
    """Logits (B, T, V) of sources (B, S) and targets (B, T), one hypothesis a sentence."""
    source, target = inputs
    padding_mask, *cross = encoder(_feeds(encoder_described, [source]))
    (batch, length), logits = target.shape, []
    heads, size = cross[0].shape[1], cross[0].shape[3]
    count = len(step_described.inputs) - 4 - len(cross)
    fixed = step_described.inputs[3].shape[2]  # cached positions; the name of an open size
    capacity = fixed if isinstance(fixed, int) else length
    caches = np.zeros((count, batch, heads, capacity, size), cross[0].dtype)
    for position, token in enumerate(target.T):
        mask = np.broadcast_to(np.arange(capacity) < position, (batch, 1, capacity))
        positions = np.full(batch, position)
        first, *new = step(_feeds(step_described, [token[:, None], positions, padding_mask, mask, *cross, *caches]))
        caches[:, :, :, position] = np.stack(new)[:, :, :, 0]
        logits.append(first[:, 0])
    return [np.stack(logits, axis=1)]
