"""SavedModel, LiteRT and `torch.export` files, each by the framework it belongs to, with Keras on that backend.

Where Keras runs on another backend, the models are saved as `.keras` files, which every backend loads, and a process of
its own converts them:

    KERAS_BACKEND=tensorflow python -m zoo.exporters.framework_formats FOLDER

Sources: TensorFlow 2.21, `tf.saved_model` and `tf.lite.TFLiteConverter`; PyTorch 2.13, `torch.export`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import layers, ops

from zoo.backends import run_on_backend
from zoo.compat.keras import flatten_layers
from zoo.errors import UserError, error_summary, run_command
from zoo.exporters.runtimes import FORMATS
from zoo.io.model_files import load_model, save_model

_TITLES = {"saved_model": "a SavedModel", "litert": "LiteRT", "torch": "torch.export"}
# Sizes of the inputs that PyTorch traces a model with where they are open; the batch is another than the rest.
_TRACED_BATCH, _TRACED_SIZE = 3, 7


@dataclasses.dataclass(frozen=True)
class ConversionJob:
    """A model to be written in the format of a framework.

    Attributes:
        model: functional `keras.Model`.
        path: of the file, or of the folder of a SavedModel.
        shapes: of its inputs, None where a size is open.
        output_names: in the order of its outputs.
    """

    model: keras.Model
    path: pathlib.Path
    shapes: Sequence[Sequence[int | None]]
    output_names: Sequence[str]


def write_framework_models(jobs: Sequence[ConversionJob], folder_format: str) -> None:
    """Write models in the format of a framework, in a process of its own if Keras runs on another backend.

    Args:
        jobs: what to write.
        folder_format: "saved_model", "litert" or "torch".

    Raises:
        UserError: if the framework cannot convert a model; the sentence names the layer where that is known.
    """
    backend = FORMATS[folder_format].backend
    if backend is None or keras.backend.backend() == backend:
        for job in jobs:
            _convert(job, folder_format)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, described = pathlib.Path(scratch), []
        for index, job in enumerate(jobs):
            save_model(job.model, folder / f"{index}.keras")
            about = {"path": str(job.path.resolve()), "shapes": job.shapes, "output_names": job.output_names}
            described.append(about)
        (folder / "jobs.json").write_text(json.dumps({"format": folder_format, "jobs": described}), encoding="utf-8")
        run_on_backend(backend, "zoo.exporters.framework_formats", folder)


def _child(folder):
    path = pathlib.Path(folder)
    described = json.loads((path / "jobs.json").read_text(encoding="utf-8"))
    for index, about in enumerate(described["jobs"]):
        model = load_model(path / f"{index}.keras")
        job = ConversionJob(model, pathlib.Path(about["path"]), about["shapes"], about["output_names"])
        _convert(job, described["format"])


def _convert(job, folder_format):
    writers = {"saved_model": _write_saved_model, "litert": _write_litert, "torch": _write_torch}
    try:
        writers[folder_format](job)
    except (UserError, OSError):
        raise
    except Exception as error:  # converters raise many kinds
        layer = re.search(r"Exception encountered when calling (?:layer ')?(\w+)", str(error))
        where, why = f" at {layer[1].removesuffix('.call')}" if layer else "", error_summary(error)
        if "Constraints violated" in why:  # of torch.export
            why = "it fixes a length that the model leaves open, as of recurrent layers, which are unrolled"
        raise UserError(
            f"{job.model.name} cannot be exported to {_TITLES[folder_format]}{where} ({why}): "
            "choose another format, such as onnx."
        ) from error


# ---------------------------------------------------------------------------------------------------------- TensorFlow


def _write_saved_model(job):
    import tensorflow as tf

    function = _concrete_function(job)
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in job.model.variables]
    with _quiet():
        tf.saved_model.save(module, str(job.path), signatures={"serving_default": function})


def _concrete_function(job):
    """The model as a function of named tensors that returns a dict of named tensors."""
    import tensorflow as tf

    names = [x.name for x in job.model.inputs]

    def call(**tensors):
        inputs = [tensors[name] for name in names]
        outputs = job.model(inputs if len(inputs) > 1 else inputs[0], training=False)
        return dict(zip(job.output_names, keras.tree.flatten(outputs), strict=True))

    inputs = zip(job.model.inputs, job.shapes, strict=True)
    specs = {x.name: tf.TensorSpec(shape, x.dtype, name=x.name) for x, shape in inputs}
    return tf.function(call, autograph=False).get_concrete_function(**specs)


def _write_litert(job):
    import tensorflow as tf

    with _resizing_by_products(job.model), tempfile.TemporaryDirectory() as scratch, _quiet():
        saved = dataclasses.replace(job, path=pathlib.Path(scratch))
        _write_saved_model(saved)
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        try:
            content = converter.convert()
        except Exception as error:
            listed = re.search(r"(?:Flex|Custom) ops: (.*)", str(error))
            if listed is None:
                raise
            missing = listed[1].split(", ")
            nodes = [node.name for node in _concrete_function(job).graph.get_operations() if node.type in missing]
            raise UserError(
                f"{job.model.name} cannot be exported to LiteRT, because {nodes[0] if nodes else 'it'} needs "
                f"TensorFlow's operator {missing[0]}, which LiteRT does not have: choose another format, such as onnx."
            ) from error
    job.path.write_bytes(content)


@contextlib.contextmanager
def _resizing_by_products(model: keras.Model) -> Iterator[None]:
    """Let `Resizing` layers with antialias be matrix products inside, since LiteRT has no such operator."""
    resizing = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, layers.Resizing) and layer.antialias and layer.interpolation == "bilinear"
    ]
    resizing = [layer for layer in resizing if not (layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio)]
    for layer in resizing:
        layer.call = functools.partial(_resize, layer)
    try:
        yield
    finally:
        for layer in resizing:
            del layer.call


def _resize(layer, images, training=None):
    first, x = layer.data_format == "channels_first", ops.cast(images, "float32")
    x = x if first else ops.transpose(x, (0, 3, 1, 2))  # (B, C, H, W)
    rows, columns = resizing_weights(x.shape[2], layer.height), resizing_weights(x.shape[3], layer.width)
    x = ops.matmul(ops.matmul(rows, x), columns.T)
    return x if first else ops.transpose(x, (0, 2, 3, 1))


def resizing_weights(old_size: int, new_size: int) -> np.ndarray:
    """Weights of the old pixels in each new one along an axis, bilinear with antialias.

    Triangles around each new pixel's centre, wider where the axis shrinks. Source: Pillow 12, Resample.c:
    precompute_coeffs with the bilinear filter.

    Args:
        old_size: pixels along the axis.
        new_size: pixels along the new axis.

    Returns:
        float32 (new_size, old_size); rows sum to 1.
    """
    scale = old_size / new_size
    centres = (np.arange(new_size)[:, None] + 0.5) * scale
    distances = np.abs(np.arange(old_size) + 0.5 - centres) / max(scale, 1)
    weights = np.maximum(1 - distances, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


@contextlib.contextmanager
def _quiet():
    """Keep what TensorFlow's converter reports of its progress off the terminal."""
    import absl.logging

    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(level)


# ------------------------------------------------------------------------------------------------------------- PyTorch


def _write_torch(job):
    import torch

    class Program(torch.nn.Module):
        """The model's weights are constants of it: registered as parameters, they would be stored twice."""

        def forward(self, *inputs):
            outputs = job.model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
            return tuple(keras.tree.flatten(outputs))

    inputs = tuple(_traced_input(x, shape) for x, shape in zip(job.model.inputs, job.shapes, strict=True))
    open_axes = [
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if size is None} for shape in job.shapes
    ]
    with torch.no_grad():
        program = torch.export.export(Program().eval(), inputs, dynamic_shapes=(tuple(open_axes),), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch 2.13 warns of weights that share memory
        torch.export.save(program, job.path)


def _traced_input(symbol, shape):
    import torch

    is_image = len(shape) == 4 and shape[-1] in (1, 3)
    sizes = [
        size or (_TRACED_BATCH if axis == 0 else 5 * _TRACED_SIZE + axis if is_image else _TRACED_SIZE)
        for axis, size in enumerate(shape)
    ]
    return torch.ones(sizes, dtype=getattr(torch, symbol.dtype))


if __name__ == "__main__":
    run_command(_child, *sys.argv[1:])
