"""Random inputs for any Keras model: of the shapes, dtypes and ranges that its first layers expect, without ties.

Values are drawn by NumPy from a seed. Two equal numbers in a pooling window, or a zero in front of a ReLU, have more
than one right gradient, and each backend may take another: so floats have all their digits. Ids are within the range of
the embedding that they enter; where that has a mask, some rows are padded at the end. Batches are as large as every
batch normalization needs to have `NORMALIZED` values: few values that chance to be close are spread by it, and their
rounding with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.compat.keras import flatten_layers, functional_graph, graph_calls
from zoo.errors import UserError, did_you_mean, error_summary

if TYPE_CHECKING:
    import keras

BATCH_SIZE, _SEQUENCE_LENGTH = 4, 16
_IMAGE_SIZES = (40, 64, 96, 128, 224, 331)  # tried in turn where a model leaves the size open
_LENGTHS = (_SEQUENCE_LENGTH, 64, 256, 1024, 16384)
_MAX_VALUES = 400_000  # of one input; a smaller batch where examples are large
# Of 10,000 channels, 204 have less than a quarter of their deviation in 4 values, 0.002 in 16 (chi-square law).
NORMALIZED = 16
# Operations that leave values as they are: what comes after them is looked at too.
_TRANSPARENT = {
    *("Resizing", "CenterCrop", "Cropping1D", "Cropping2D", "Cropping3D", "ZeroPadding1D", "ZeroPadding2D", "Reshape"),
    *("Flatten", "Permute", "RepeatVector", "Dropout", "SpatialDropout1D", "GetItem", "Transpose", "ExpandDims"),
    *("Squeeze", "Cast", "Identity", "RandomFlip", "RandomCrop", "RandomRotation", "RandomZoom", "RandomTranslation"),
    *("RandomContrast", "RandomBrightness", "Masking", "Activation"),
}
_CROPS = ("CenterCrop", "RandomCrop", "Resizing")


def input_tensors(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The inputs of a model by name, with their shapes and dtypes.

    Args:
        model: a built model.

    Returns:
        {name: symbolic tensor}; of a model that is not functional as its build config states them, "input" for one.

    Raises:
        UserError: if the model does not state its inputs.
    """
    import keras

    if graph := functional_graph(model):
        return {x.name: x for x in graph.inputs}
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"input": config.get("input_shape")}
    shapes = {name.removesuffix("_shape"): shape for name, shape in shapes.items() if shape}
    if not shapes or not all(_is_shape(shape) for shape in shapes.values()):
        raise UserError(
            f"{model.name!r} is not functional and does not state its inputs: give them with --inputs FILE.npz."
        )
    shapes = {name: (None, *shape[1:]) for name, shape in shapes.items()}  # of the batch it was built with
    return {name: keras.KerasTensor(shape, dtype=model.input_dtype, name=name) for name, shape in shapes.items()}


def _is_shape(shape):
    return isinstance(shape, (tuple, list)) and all(size is None or isinstance(size, int) for size in shape)


def given_inputs(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of one's own, checked against the model.

    Args:
        model: a built model.
        arrays: by name of the input; of a model with one input the name does not matter.

    Returns:
        {name: array} in the order of the model's inputs.

    Raises:
        UserError: if a name, a shape or a dtype does not fit.
    """
    expected = input_tensors(model)
    if len(arrays) == 1 == len(expected):
        arrays = dict(zip(expected, arrays.values()))
    elif all(name == f"arr_{i}" for i, name in enumerate(arrays)) and len(arrays) == len(expected):  # np.savez(f, a, b)
        arrays = dict(zip(expected, arrays.values()))
    words = ", ".join(f"{name} {_words(tensor.shape)}" for name, tensor in expected.items())
    for name in arrays:
        if name not in expected:
            raise UserError(
                f"The inputs given have {name!r}, but the model takes {words}.{did_you_mean(name, expected)}"
            )
    if missing := [name for name in expected if name not in arrays]:
        raise UserError(f"The inputs given lack {', '.join(missing)}: the model takes {words}.")
    for name, tensor in expected.items():
        array = arrays[name]
        fits = array.ndim == len(tensor.shape) and all(b in (None, a) for a, b in zip(array.shape, tensor.shape))
        if not fits or array.dtype.kind not in "fiub":
            raise UserError(
                f"Input {name!r} was given as {array.dtype} {_words(array.shape)}, but the model takes "
                f"{'floats' if 'float' in tensor.dtype else tensor.dtype} {_words(tensor.shape)}."
            )
        if not array.size:
            raise UserError(f"Input {name!r} was given as {_words(array.shape)}, without a number: give one example.")
        if np.isnan(array).any():
            raise UserError(f"Input {name!r} was given with NaN in it, of which nothing can be said: give numbers.")
    return {name: np.asarray(arrays[name]) for name in expected}


def _words(shape):
    return "x".join("?" if size is None else str(size) for size in shape) or "a number"


def random_inputs(
    model: keras.Model, shapes: Mapping[str, Sequence[int]] | None = None, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draw inputs for a model.

    Args:
        model: a built model.
        shapes: sizes of one example, without the batch, by name of the input, or under "" for all of them; open sizes
            of the others are chosen so that the model can be called.
        seed: of the numbers.

    Returns:
        {name: array} in the order of the model's inputs.

    Raises:
        UserError: if a shape does not fit, an input is text, or no size is found with which the model can be called.
    """
    tensors, shapes = input_tensors(model), dict(shapes or {})
    for name in shapes:
        if name and name not in tensors:
            raise UserError(
                f"--input-shape names {name!r}, but the model takes {', '.join(tensors)}.{did_you_mean(name, tensors)}"
            )
    uses, first_error = {name: _Use(model, tensor) for name, tensor in tensors.items()}, None
    if text := [name for name, tensor in tensors.items() if tensor.dtype == "string"]:
        raise UserError(f"Input {text[0]!r} is text, which TensorFlow alone computes with: no backends to compare.")
    fixed = {name: _fitted(name, tensors[name].shape, shapes.get(name, shapes.get(""))) for name in tensors}
    for attempt in range(len(_IMAGE_SIZES)):
        examples = {name: _example(uses[name], shape, attempt) for name, shape in fixed.items()}
        given = [example[0] for example in examples.values() if example[0]]
        room = min(_MAX_VALUES // max(1, math.prod(example[1:])) for example in examples.values())
        drawn = _draw_all(uses, examples, given[0] if given else max(1, min(BATCH_SIZE, room)), seed)
        error = _refusal(model, drawn)
        if error is None and given:
            return drawn
        if error is None:
            wanted = min(_batch_to_normalize(model, drawn), room)
            return drawn if wanted <= BATCH_SIZE else _draw_all(uses, examples, wanted, seed)
        first_error = first_error or error
        if not any(None in shape[1:] for shape in fixed.values()):
            break
    words = ", ".join(f"{name} {_words(array.shape)}" for name, array in drawn.items())
    reason = error_summary(first_error) if first_error else "no size fits"
    raise UserError(
        f"The model cannot be called with {words} ({reason}): give the sizes of an example with --input-shape "
        "NAME=H,W,C, or whole inputs with --inputs FILE.npz."
    ) from first_error


def _fitted(name, shape, given):
    """The shape of an input with the sizes of an example that were given."""
    if given is None:
        return tuple(shape)
    if len(given) != len(shape) - 1 or any(a not in (None, b) for a, b in zip(shape[1:], given)):
        raise UserError(
            f"--input-shape gives {name!r} {_words(given)} for an example, but the model takes {_words(shape[1:])}."
        )
    return (shape[0], *given)


def _refusal(model, drawn):
    """The error that a model raises for inputs, None where it computes something of them."""
    import keras

    from zoo.parity.probes import pack_inputs

    tensors = [keras.KerasTensor(array.shape, dtype=str(array.dtype)) for array in drawn.values()]
    graph = functional_graph(model)
    try:
        if graph is None:
            model(pack_inputs(model, [keras.ops.convert_to_tensor(array) for array in drawn.values()]), training=False)
            return None
        outputs = graph.compute_output_spec(pack_inputs(model, tensors), training=False)
        if any(0 in x.shape for x in keras.tree.flatten(outputs) if hasattr(x, "shape")):
            return ValueError("the outputs are empty")
    except Exception as error:  # Keras and frameworks raise many kinds where shapes do not fit
        return error
    return None


class _Use:
    """What the first layers make of an input: ids, pixels, a mask or other numbers.

    Attributes:
        dtype: of the input.
        num_ids: ids are below this; None if they are not ids.
        masked: whether id 0 is masked.
        scale: (mean, standard deviation) arrays that floats are expected to have; None for pixels of 0 to 255.
        crop: the size that a first layer crops or resizes to, or None.
        is_mask: whether it is a mask of an attention or recurrent layer.
    """

    def __init__(self, model, tensor):
        import keras

        self.dtype, self.masked = tensor.dtype, False
        self.num_ids: int | None = None
        self.scale: tuple[Any, Any] | None = (0.0, 1.0)
        self.crop: int | None = None
        name = tensor.name.lower()
        self.is_mask = tensor.dtype == "bool" or name.split("/")[-1].endswith("mask")
        for operation in _first_operations(model, tensor):
            kind = type(operation).__name__
            if isinstance(operation, keras.layers.Embedding):
                self.num_ids = min(operation.input_dim, self.num_ids or operation.input_dim)
                self.masked |= operation.mask_zero
            elif kind in ("CategoryEncoding", "OneHot"):
                self.num_ids = getattr(operation, "num_tokens", None) or getattr(operation, "num_classes", None)
            elif kind == "Rescaling" and np.max(np.abs(operation.scale)) < 0.1:
                self.scale = None
            elif kind == "Normalization" and getattr(operation, "mean", None) is not None:
                mean, variance = (np.array(keras.ops.convert_to_numpy(x)) for x in (operation.mean, operation.variance))
                self.scale = mean, np.sqrt(variance)
            elif kind in _CROPS:
                self.crop = max(self.crop or 0, operation.height, operation.width)
        graph = functional_graph(model)
        if graph is None and "int" in tensor.dtype:
            tables = [layer for layer in flatten_layers(model) if isinstance(layer, keras.layers.Embedding)]
            self.num_ids = min((table.input_dim for table in tables), default=None)
            self.masked = any(table.mask_zero for table in tables)


def _first_operations(model, tensor):
    """The operations that an input reaches before its values are changed, nested models entered."""
    graph = functional_graph(model)
    if graph is None:
        return []
    found, reached = [], {id(tensor)}
    for call in graph_calls(graph):
        if not any(id(x) in reached for x in call.inputs):
            continue
        operation = call.operation
        found.append(operation)
        inner = functional_graph(operation) if hasattr(operation, "layers") else None
        if inner is not None:
            for x, y in zip(call.inputs, inner.inputs):
                if id(x) in reached:
                    found += _first_operations(inner, y)
        if type(operation).__name__ in _TRANSPARENT:
            reached |= {id(x) for x in call.outputs}
    return found


def _batch_to_normalize(model, drawn):
    """How many examples give every BatchNormalization `NORMALIZED` values of a channel; 1 for a model without one."""
    import keras

    from zoo.parity.probes import Recorder, pack_inputs

    if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in flatten_layers(model)):
        return 1
    tensors = [keras.ops.convert_to_tensor(array) for array in drawn.values()]
    with Recorder(model).active() as calls:
        model(pack_inputs(model, tensors), training=False)
    wanted = 1
    for call in calls:
        if isinstance(call.operation, keras.layers.BatchNormalization):
            shape = keras.tree.flatten((call.args, call.kwargs))[0].shape
            values = math.prod(shape[1:]) // shape[call.operation.axis]  # of one example
            wanted = max(wanted, math.ceil(NORMALIZED / max(1, values)))
    return wanted


def _is_image(use, rank):
    return rank in (4, 5) and use.num_ids is None


def _example(use, shape, attempt):
    """The sizes of one example, after the size of the batch if that is fixed, else None."""
    is_image = _is_image(use, len(shape))
    sizes = _IMAGE_SIZES if is_image else _LENGTHS
    size = sizes[min(attempt, len(sizes) - 1)]
    if use.crop:
        size = max(size, use.crop + 8)  # so that cropping takes something away
    example = [one or size for one in shape[1:]]
    if is_image and shape[-1] is None:
        example[-1] = 3
    return [shape[0], *example]


def _draw_all(uses, examples, batch_size, seed):
    return {
        name: _draw(use, (examples[name][0] or batch_size, *examples[name][1:]), np.random.default_rng(seed + i))
        for i, (name, use) in enumerate(uses.items())
    }


def _draw(use, shape, rng):
    is_image = _is_image(use, len(shape))
    if use.is_mask:
        return _padded(np.ones(shape), rng).astype(use.dtype)
    if use.num_ids is not None:
        ids = rng.integers(min(1, use.num_ids - 1), use.num_ids, shape)
        return (_padded(ids, rng) if use.masked else ids).astype(use.dtype)
    if "int" in use.dtype:
        return rng.integers(0, 256 if is_image else 10, shape).astype(use.dtype)
    if use.scale is None:
        return (smooth_noise(rng, shape) if is_image else rng.uniform(0, 255, shape)).astype(use.dtype)
    mean, deviation = use.scale
    return (mean + deviation * rng.standard_normal(shape)).astype("float32")


def _padded(array, rng):
    """Zeros at the end of every row but the first; at least one number of each row stays."""
    if array.ndim < 2 or array.shape[1] < 2:
        return array
    for row in array[1:]:
        row[rng.integers(1, array.shape[1]) :] = 0
    return array


def smooth_noise(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Pictures without flat areas: four waves and a tenth of noise in each channel, stretched to 0..255.

    Args:
        rng: draws them.
        shape: (N, ..., H, W, C).

    Returns:
        float64 of that shape.
    """
    y, x = np.mgrid[0 : 1 : shape[-3] * 1j, 0 : 1 : shape[-2] * 1j][..., None]
    images = 0.4 * rng.standard_normal(shape)
    for _ in range(4):
        a, b, phase = rng.uniform(-3, 3, (3, *shape[:-3], 1, 1, shape[-1]))
        images += np.cos(2 * np.pi * (a * x + b * y + phase))
    low, high = images.min(), images.max()
    return 255 * (images - low) / max(high - low, 1e-9)
