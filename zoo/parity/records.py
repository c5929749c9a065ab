"""The record of one run of a model: its inputs, its outputs, and a sample of what every layer call gave.

A record beside a model file (`<name>.golden.npz`, made by `make_golden`) is what `zoo.parity.verify` compares with.

Of each layer call a sample is kept: all of a small output; of a large one, values spread evenly over it and a mean of
each channel, which every value enters.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
import re
import time

import numpy as np

from zoo.errors import UserError, reason
from zoo.io import files

SPREAD, MEANS = 64, 256  # values kept of a large output, of either kind
RECORD_VALUES = 20_000  # kept of all layers together, so that the record of a deep model stays small
# Of synthetic inputs, where the model leaves a size open. 40 is not 48, so that a layer that resizes has work to do.
BATCH, SIDE, STEPS = 4, 40, 16
PICTURE_VALUES = 30_000  # fewer pictures where they are large, for the size of the record


@dataclasses.dataclass(frozen=True)
class Record:
    """What one run of a model gave.

    Attributes:
        inputs, outputs: lists of arrays.
        layers: {path of the layer call, e.g. "classifier/conv1": (kind, sample of its output)}, in call order.
        about: dict of backend, version, keras, sha256, functional, values (the most that is kept of a layer), weights
            ({path of a layer: digest of its weights}), seconds.
    """

    inputs: list
    outputs: list
    layers: dict
    about: dict

    def save(self, path):
        """Write to an .npz file, atomically."""
        arrays = {f"inputs/{i}": array for i, array in enumerate(self.inputs)}
        arrays |= {f"outputs/{i}": array for i, array in enumerate(self.outputs)}
        # One array for all samples: an entry each would cost more than the numbers in it.
        arrays["samples"] = np.concatenate([np.zeros(0, "float32"), *(array for _, array in self.layers.values())])
        layers = [(path, kind, len(array)) for path, (kind, array) in self.layers.items()]
        with files.atomic(path) as temporary:
            np.savez_compressed(temporary, about=json.dumps(self.about | {"layers": layers}), **arrays)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises:
            UserError: if it is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                inputs, outputs = (
                    [stored[key] for key in stored.files if key.startswith(part)] for part in ("inputs/", "outputs/")
                )
                names = about.pop("layers")
                samples = np.split(stored["samples"], np.cumsum([length for *_, length in names])[:-1])
            layers = {path: (kind, array) for (path, kind, _), array in zip(names, samples)}
            if not {"backend", "version", "keras", "sha256", "functional", "values", "weights"} <= about.keys():
                raise ValueError("it is not complete")
        except Exception as error:  # NumPy, zipfile and json raise many kinds for a damaged archive
            raise UserError(f"{path} is not a record of a model ({error}): make it again with make_golden.") from error
        return cls(inputs, outputs, layers, about)


def golden_path(model_path):
    """Where the golden record of a model file is."""
    path = pathlib.Path(model_path)
    return path.with_name(f"{path.stem}.golden.npz")


def make_golden(model_path, inputs=None):
    """Run a model file on the backend of this process and write its golden record beside it.

    Args:
        model_path: a `.keras` file.
        inputs: list of arrays in the order of `model.inputs`; synthetic ones if None.

    Returns:
        path of the record.
    """
    record = record_file(model_path, inputs=inputs)
    del record.about["seconds"]  # so that the same numbers make the same file
    record.save(golden_path(model_path))
    return golden_path(model_path)


# ------------------------------------------------------------------------------------------------- running one model


def record_file(model_path, *, inputs=None, values=None):
    """Load a model file on this process's backend, run it once and return the `Record`.

    Args:
        model_path: a `.keras` file; its card is checked.
        inputs: list of arrays; synthetic ones if None.
        values: most values to keep of one layer; chosen by the number of layers if None.
    """
    import keras

    began = time.perf_counter()
    digest = files.sha256(model_path)
    model = files.load_model(model_path)
    inputs = synthetic_inputs(model) if inputs is None else inputs
    try:
        outputs, calls = run_and_listen(model, inputs)
    except Exception as error:  # frameworks raise many kinds where shapes do not fit
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in inputs)
        raise UserError(f"{model_path} cannot be run on inputs {shapes}: {reason(error)}.") from error
    values = values or min(SPREAD + MEANS, max(16, RECORD_VALUES // max(1, len(calls))))
    layers = {}
    for path, kind, output in calls:
        times = sum(name == path or name.startswith(f"{path} #") for name in layers)
        layers[f"{path} #{times + 1}" if times else path] = kind, sample(output, values)
    backend = keras.backend.backend()
    about = {
        "backend": backend,
        "version": importlib.metadata.version(backend).partition("+")[0],
        "keras": keras.__version__,
        "sha256": digest,
        "functional": is_functional(model),
        "values": values,
        "weights": weight_digests(model),
        "seconds": round(time.perf_counter() - began, 2),
    }
    return Record(inputs, outputs, layers, about)


def weight_digests(model, prefix=""):
    """{path of a layer: start of the sha256 of its weights}; nested models are entered."""
    import keras

    found = {}
    for layer in model.layers:
        if isinstance(layer, (keras.src.models.Functional, keras.Sequential)):
            found |= weight_digests(layer, f"{prefix}{layer.name}/")
        elif layer.weights:
            digest = hashlib.sha256()
            for weight in layer.weights:
                digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
            found[prefix + layer.name] = digest.hexdigest()[:12]
    return found


def is_functional(model):
    """Whether the layer calls inside a model can be listened to."""
    import keras

    return isinstance(model, keras.src.models.Functional) or getattr(model, "_functional", None) is not None


def run_and_listen(model, inputs):
    """Run a model once, not compiled and not training.

    Args:
        model: any built `keras.Model`.
        inputs: list of arrays in the order of `model.inputs`.

    Returns:
        (outputs, calls): the list of output arrays, and one (path, kind, list of output arrays) for each call of a
        layer or `keras.ops` operation, in order. Functional and sequential models are entered, however deeply they are
        nested; other layers are one call each. Without any call if the model itself is not functional.
    """
    import keras
    from keras.src.models import functional

    calls, models, original = [], [], functional.operation_fn
    entered = keras.src.models.Functional, keras.Sequential

    def arrays(nest):
        return [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(nest) if x is not None]

    # Functional models put every operation they call through this function of Keras; what they compute stays as it is.
    def operation_fn(operation, **context):
        call = original(operation, **context)

        def listening_call(*arguments, **keywords):
            if models and models[-1] is None:  # inside a layer that is one call
                return call(*arguments, **keywords)
            before = len(calls)
            models.append(operation.name if isinstance(operation, entered) else None)
            try:
                outputs = call(*arguments, **keywords)
            finally:
                models.pop()
            if len(calls) == before:
                # Keras numbers operations (add, add_1, …) by all it made in the process: only their order counts here.
                layer = isinstance(operation, keras.layers.Layer)
                name = operation.name if layer else re.sub(r"_\d+$", "", operation.name)
                calls.append(("/".join([*models, name]), type(operation).__name__, arrays(outputs)))
            return outputs

        return listening_call

    graph = model._functional if isinstance(model, keras.Sequential) else model
    structure = graph._inputs_struct if is_functional(model) else inputs
    functional.operation_fn = operation_fn if is_functional(model) else original
    try:
        fed = keras.tree.pack_sequence_as(structure, [keras.ops.convert_to_tensor(x) for x in inputs])
        if not is_functional(model) and len(fed) == 1:
            fed = fed[0]
        outputs = model(fed, training=False)
    finally:
        functional.operation_fn = original
    return arrays(outputs), calls


def sample(arrays, values):
    """A float32 vector of at most `values` numbers that stands for the arrays: themselves, if they are small.

    Of a larger one, every fifth number is a value at a fixed, evenly spread place, and the others are the means of its
    channels (of several together, where there are more). The means are weighted by place, so that a normalisation,
    which makes all plain means alike, hides nothing.
    """
    share = max(2, values // max(1, len(arrays)))
    parts = [np.zeros(0)]
    for array in arrays:
        array = np.asarray(array).astype(np.float64)
        flat = array.reshape(-1)
        if flat.size > share:
            places = np.linspace(0, flat.size - 1, max(1, share * SPREAD // (SPREAD + MEANS))).astype(int)
            rows = flat.reshape(-1, array.shape[-1])
            means = (1 + np.cos(np.arange(len(rows)))) @ rows / len(rows)
            bins = np.arange(means.size) * min(means.size, share - places.size) // means.size
            flat = np.concatenate([flat[places], np.bincount(bins, means) / np.bincount(bins)])
        parts.append(flat)
    return np.concatenate(parts).astype(np.float32)


# --------------------------------------------------------------------------------------------------- synthetic inputs


def synthetic_inputs(model):
    """Inputs for any model, made by NumPy from seed 0 and the shapes and dtypes that the model states.

    Four-dimensional inputs with 1 or 3 channels are smooth pictures, 0..255; integers are token ids; other floats are
    normally distributed.

    Raises:
        UserError: if the model does not state what it takes.
    """
    import keras

    tensors = getattr(model, "inputs", None) if is_functional(model) else None
    if not tensors:
        shapes = [shape for shape in (getattr(model, "_build_shapes_dict", None) or {}).values() if shape]
        if not shapes or not all(isinstance(shape, (tuple, list)) for shape in shapes):
            raise UserError(f"What {model.name!r} takes is not stated in its file: pass inputs to make_golden.")
        tensors = [keras.KerasTensor(tuple(shape), dtype=model.input_dtype) for shape in shapes]
    tables = [layer.input_dim for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    rng = np.random.default_rng(0)
    return [_synthetic(rng, tuple(x.shape), keras.backend.standardize_dtype(x.dtype), tables) for x in tensors]


def _synthetic(rng, shape, dtype, tables):
    picture = len(shape) == 4 and shape[-1] in (1, 3)
    one = [size or (SIDE if picture else STEPS) for size in shape[1:]]
    most = max(1, PICTURE_VALUES // math.prod(one)) if picture else BATCH
    shape = (shape[0] or min(BATCH, most), *one)
    if picture:
        return smooth_pictures(rng, shape)
    if dtype == "bool":
        return np.ones(shape, bool)
    if "int" in dtype:
        return rng.integers(1, max(2, min(tables, default=10)), shape).astype("int32")
    return rng.standard_normal(shape).astype("float32")


def smooth_pictures(rng, shape):
    """uint8 pictures (N, H, W, C): each channel a sum of six waves in random directions, stretched to 0..255."""
    count, height, width, channels = shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pictures = np.zeros(shape)
    for index in np.ndindex(count, channels):
        for a, b, phase, weight in zip(*rng.uniform(-3, 3, (2, 6)), *rng.uniform(0, 1, (2, 6))):
            pictures[index[0], :, :, index[1]] += weight * np.cos(2 * np.pi * (a * x + b * y + phase))
    low, high = (f(axis=(1, 2), keepdims=True) for f in (pictures.min, pictures.max))
    return np.round(255 * (pictures - low) / np.maximum(high - low, 1e-9)).astype(np.uint8)
