"""Parity records: the inputs, the outputs and a sample of every layer call of one run of a model.

A record (`parity.npz` in the folder of `model.keras`, written by `write_parity_record`) is the reference that
`zoo.parity.verify` compares backends with.

Of each layer call a sample is kept: a small output in full; of a large one, values evenly spread over it and weighted
channel means, which depend on every value.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from zoo import backends
from zoo.compat.keras import flatten_layers, functional_graph
from zoo.errors import UserError, error_summary
from zoo.io import files, schemas
from zoo.io.cards import MODEL_FILE, PARITY_FILE
from zoo.io.model_files import load_model
from zoo.typing import StrPath

if TYPE_CHECKING:
    import keras

# Of a large output, values and channel means are kept in this proportion, and at most this many.
_NUM_VALUES, _NUM_MEANS = 64, 256
_MAX_RECORD_VALUES = 20_000  # of all layers together, so that the record of a deep model stays small
# Sizes of synthetic inputs where the model leaves one open. 40 is not 48, so that a resizing layer changes something.
_BATCH_SIZE, _IMAGE_SIZE, _SEQUENCE_LENGTH = 4, 40, 16
_MAX_IMAGE_VALUES = 30_000  # fewer images where they are large


@dataclasses.dataclass(frozen=True)
class ParityRecord:
    """The inputs and outputs of one run of a model.

    Attributes:
        inputs: list of arrays.
        outputs: list of arrays.
        layers: {path of the layer call, e.g. "classifier/conv1": (class name, sample of its output)}, in call order.
        metadata: dict of backend, version, keras, sha256, functional, values (the most that is kept of a layer),
            weights ({path of a layer: digest of its weights}), seconds.
    """

    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    layers: dict[str, tuple[str, np.ndarray]]
    metadata: dict[str, Any]

    def save(self, path: StrPath) -> None:
        """Write to an .npz file, atomically.

        Args:
            path: of the file.
        """
        arrays = {f"inputs/{i}": array for i, array in enumerate(self.inputs)}
        arrays |= {f"outputs/{i}": array for i, array in enumerate(self.outputs)}
        # One array for all samples: an entry each would cost more than the numbers in it.
        arrays["samples"] = np.concatenate([np.zeros(0, "float32"), *(array for _, array in self.layers.values())])
        layers = [(path, kind, len(array)) for path, (kind, array) in self.layers.items()]
        with files.atomic_write(path) as temporary:
            about = json.dumps(self.metadata | {"layers": layers})
            np.savez_compressed(temporary, about=about, **arrays)  # type: ignore[arg-type]  # as if for allow_pickle

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read what `save` wrote.

        Args:
            path: of the file.

        Returns:
            `ParityRecord`.

        Raises:
            UserError: if it is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                metadata = schemas.parse_object(str(stored["about"]), path)
                schemas.check(metadata, schemas.ParityMetadata, path)
                inputs, outputs = (
                    [np.asarray(stored[key]) for key in stored.files if key.startswith(part)]
                    for part in ("inputs/", "outputs/")
                )
                names = metadata.pop("layers")
                samples = np.split(stored["samples"], np.cumsum([length for *_, length in names])[:-1])
            layers = {path: (kind, array) for (path, kind, _), array in zip(names, samples)}
        except UserError:
            raise
        except Exception as error:  # NumPy and zipfile raise many kinds for a damaged archive
            raise UserError(
                f"{path} is not a parity record ({error_summary(error)}): write it again with write_parity_record."
            ) from error
        return cls(inputs, outputs, layers, metadata)


def parity_path(model_path: StrPath) -> pathlib.Path:
    """Path of a model file's parity record.

    Args:
        model_path: a `.keras` file.

    Returns:
        `parity.npz` beside `model.keras`, `<name>.parity.npz` beside others.
    """
    path = pathlib.Path(model_path)
    return path.with_name(PARITY_FILE if path.name == MODEL_FILE else f"{path.stem}.{PARITY_FILE}")


def recorded_input_shapes(model_path: StrPath) -> list[tuple[int, ...]]:
    """Read the shapes of the inputs of a model file's parity record.

    Args:
        model_path: a `.keras` file.

    Returns:
        the shapes without the batch, in the order of `model.inputs`; none where there is no record.

    Raises:
        UserError: if the record is damaged.
    """
    path = parity_path(model_path)
    return [array.shape[1:] for array in ParityRecord.load(path).inputs] if path.is_file() else []


def write_parity_record(model_path: StrPath, inputs: Sequence[np.ndarray] | None = None) -> pathlib.Path:
    """Run a model file on the backend of this process and write its parity record beside it.

    Args:
        model_path: a `.keras` file.
        inputs: list of arrays in the order of `model.inputs`; synthetic ones if None.

    Returns:
        path of the record.
    """
    record = compute_parity_record(model_path, inputs=inputs)
    del record.metadata["seconds"]  # so that the same numbers give the same file
    record.save(parity_path(model_path))
    return parity_path(model_path)


# ------------------------------------------------------------------------------------------------- running one model


def compute_parity_record(
    model_path: StrPath, *, inputs: Sequence[np.ndarray] | None = None, max_values: int | None = None
) -> ParityRecord:
    """Load a model file on this process's backend and run it once.

    Args:
        model_path: a `.keras` file; compared with its card.
        inputs: list of arrays; synthetic ones if None.
        max_values: most values to keep of one layer; chosen by the number of layers if None.

    Returns:
        `ParityRecord`.

    Raises:
        UserError: if the file is missing, altered or unusable.
    """
    import keras

    start = time.perf_counter()
    digest = files.sha256(model_path)
    model = load_model(model_path)
    inputs = synthetic_inputs(model) if inputs is None else inputs
    functional, weights = functional_graph(model) is not None, weight_digests(model)
    try:
        outputs, calls = record_layer_outputs(model, inputs)
    except Exception as error:  # frameworks raise many kinds where shapes do not fit
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in inputs)
        raise UserError(f"{model_path} cannot be run on inputs {shapes}: {error_summary(error)}.") from error
    max_values = max_values or min(_NUM_VALUES + _NUM_MEANS, max(16, _MAX_RECORD_VALUES // max(1, len(calls))))
    layers = {}
    for path, kind, output in calls:
        times = sum(name == path or name.startswith(f"{path} #") for name in layers)
        layers[f"{path} #{times + 1}" if times else path] = kind, sample_values(output, max_values)
    backend = keras.backend.backend()
    metadata = {
        "backend": backend,
        "version": backends.package_version(backend).partition("+")[0],
        "keras": keras.__version__,
        "sha256": digest,
        "functional": functional,
        "values": max_values,
        "weights": weights,
        "seconds": round(time.perf_counter() - start, 2),
    }
    return ParityRecord(list(inputs), outputs, layers, metadata)


def weight_digests(model: keras.Model, prefix: str = "") -> dict[str, str]:
    """Digests of the weights of a model, nested models included.

    Args:
        model: a built model.
        prefix: put before each path.

    Returns:
        {path of a layer: start of the sha256 of its weights}.
    """
    import keras

    digests = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model) and functional_graph(layer):
            digests |= weight_digests(layer, f"{prefix}{layer.name}/")
        elif layer.weights:
            digest = hashlib.sha256()
            for weight in layer.weights:
                digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
            digests[prefix + layer.name] = digest.hexdigest()[:12]
    return digests


def record_layer_outputs(
    model: keras.Model, inputs: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[tuple[str, str, list[np.ndarray]]]]:
    """Run a model once, not compiled and not training, and return what every layer call gave.

    Args:
        model: any built `keras.Model`. Its layers are called once more, symbolically.
        inputs: list of arrays in the order of `model.inputs`.

    Returns:
        (outputs, calls): the list of output arrays, and one (path, class name, list of output arrays) for each call of
        a layer or `keras.ops` operation, in order. Nested functional and sequential models are entered; other layers
        are one call each. No calls if the model itself is not functional.
    """
    import keras

    def arrays(nest):
        return [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(nest) if x is not None]

    tensors, graph = [keras.ops.convert_to_tensor(x) for x in inputs], functional_graph(model)
    if graph is None:
        return arrays(model(tensors[0] if len(tensors) == 1 else tensors, training=False)), []
    probe, calls = _layer_output_model(graph)
    outputs, layer_outputs = probe(keras.tree.pack_sequence_as(graph.input, tensors), training=False)
    return arrays(outputs), [(*call, arrays(output)) for call, output in zip(calls, layer_outputs)]


def _layer_output_model(graph):
    """A model of the same layers with outputs [outputs of the graph, [outputs of each call]], and [(path, kind)]."""
    import keras

    calls, layer_outputs, nested = [], [], {}

    def call(operation, *args, **kwargs):
        inner_graph = functional_graph(operation) if isinstance(operation, keras.Model) else None
        if inner_graph is not None:
            if id(operation) not in nested:
                nested[id(operation)] = _layer_output_model(inner_graph)
            probe, inner_calls = nested[id(operation)]
            if inner_calls:
                outputs, inner_outputs = probe(*args, **kwargs)
                calls.extend((f"{operation.name}/{path}", kind) for path, kind in inner_calls)
                layer_outputs.extend(inner_outputs)
                return outputs
        outputs = operation(*args, **kwargs)
        # Keras numbers operations (add, add_1, …) by all it made in the process: only their order counts here.
        is_layer = isinstance(operation, keras.layers.Layer)
        name = operation.name if is_layer else re.sub(r"_\d+$", "", operation.name)
        calls.append((name, type(operation).__name__))
        layer_outputs.append(keras.tree.flatten(outputs))
        return outputs

    clone = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    return keras.Model(clone.input, [clone.output, layer_outputs], name=graph.name), calls


def sample_values(arrays: Sequence[np.ndarray], count: int) -> np.ndarray:
    """A vector that stands for arrays: the arrays themselves, if small.

    Of a larger one, every fifth number is a value at a fixed, evenly spread position, and the others are means of its
    channels (of several together, where there are more). The means are weighted by position, so that a normalization,
    which makes all plain means alike, hides no change.

    Args:
        arrays: of numbers.
        count: most numbers in the vector.

    Returns:
        float32 array (at most `count`,).
    """
    count_each = max(2, count // max(1, len(arrays)))
    parts = [np.zeros(0)]
    for array in arrays:
        array = np.asarray(array).astype(np.float64)
        flat = array.reshape(-1)
        if flat.size > count_each:
            num_values = max(1, count_each * _NUM_VALUES // (_NUM_VALUES + _NUM_MEANS))
            positions = np.linspace(0, flat.size - 1, num_values).astype(int)
            rows = flat.reshape(-1, array.shape[-1])
            means = (1 + np.cos(np.arange(len(rows)))) @ rows / len(rows)
            bins = np.arange(means.size) * min(means.size, count_each - positions.size) // means.size
            flat = np.concatenate([flat[positions], np.bincount(bins, means) / np.bincount(bins)])
        parts.append(flat)
    return np.concatenate(parts).astype(np.float32)


# --------------------------------------------------------------------------------------------------- synthetic inputs


def synthetic_inputs(model: keras.Model) -> list[np.ndarray]:
    """Inputs for any model, generated by NumPy from seed 0 and the shapes and dtypes of the model's inputs.

    Four-dimensional inputs with 1 or 3 channels are smooth images, 0..255; integers are token ids; other floats are
    normally distributed.

    Args:
        model: a built model.

    Returns:
        arrays in the order of `model.inputs`.

    Raises:
        UserError: if the model does not state its inputs.
    """
    import keras

    graph = functional_graph(model)
    tensors = graph.inputs if graph else None
    if not tensors:
        config = model.get_build_config() or {}
        shapes = [shape for shape in config.get("shapes_dict", {"": config.get("input_shape")}).values() if shape]
        if not shapes or not all(isinstance(shape, (tuple, list)) for shape in shapes):
            raise UserError(
                f"The inputs of {model.name!r} are not stated in its file: pass them to write_parity_record."
            )
        tensors = [keras.KerasTensor(tuple(shape), dtype=model.input_dtype) for shape in shapes]
    vocabularies = [layer.input_dim for layer in flatten_layers(model) if isinstance(layer, keras.layers.Embedding)]
    rng = np.random.default_rng(0)
    return [_synthetic(rng, tuple(x.shape), keras.backend.standardize_dtype(x.dtype), vocabularies) for x in tensors]


def _synthetic(rng, shape, dtype, vocabularies):
    is_image = len(shape) == 4 and shape[-1] in (1, 3)
    example = [size or (_IMAGE_SIZE if is_image else _SEQUENCE_LENGTH) for size in shape[1:]]
    max_batch_size = max(1, _MAX_IMAGE_VALUES // math.prod(example)) if is_image else _BATCH_SIZE
    shape = (shape[0] or min(_BATCH_SIZE, max_batch_size), *example)
    if is_image:
        return smooth_images(rng, shape)
    if dtype == "bool":
        return np.ones(shape, bool)
    if "int" in dtype:
        return rng.integers(1, max(2, min(vocabularies, default=10)), shape).astype("int32")
    return rng.standard_normal(shape).astype("float32")


def smooth_images(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Images of which each channel is a sum of six waves in random directions, stretched to 0..255.

    Args:
        rng: draws the waves.
        shape: (N, H, W, C).

    Returns:
        uint8 (N, H, W, C).
    """
    count, height, width, _ = shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    images = np.zeros(shape)
    for index in np.ndindex(count, shape[-1]):
        for a, b, phase, weight in zip(*rng.uniform(-3, 3, (2, 6)), *rng.uniform(0, 1, (2, 6))):
            images[index[0], :, :, index[1]] += weight * np.cos(2 * np.pi * (a * x + b * y + phase))
    low, high = (f(axis=(1, 2), keepdims=True) for f in (images.min, images.max))
    return np.round(255 * (images - low) / np.maximum(high - low, 1e-9)).astype(np.uint8)
