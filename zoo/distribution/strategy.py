"""Strategy scopes: one script on any number of devices, with the numbers that one device gives.

    with zoo.strategy("cpu:4"):          # or "auto", or a number of accelerators
        model = build()
        model.compile(...)
        model.fit(x, y, batch_size=64)   # a global batch: each device gets an equal part of its rows

Plain `model.fit` and `model.evaluate` inside the scope take arrays or a `keras.utils.PyDataset` of global batches, and
give the losses, metrics and weights of one device: gradients are means over all rows, rows that are missing for equal
parts are added and weigh nothing, every process sees the same order and starts from the first one's weights. Beneath is
each framework's own engine:

    TensorFlow  tf.distribute: MirroredStrategy, or MultiWorkerMirroredStrategy where TF_CONFIG names several workers
    JAX         keras.distribution: DataParallel, or ModelParallel; several hosts by KERAS_DISTRIBUTION_* variables
    PyTorch     torch.distributed: a process a device under torchrun, gradients averaged before they are applied

`fit` also builds the optimizer, repairs `zero_grad` on PyTorch and waits for the other processes at its end; a batch
size that the replicas do not divide is a `UserError`. Metrics count added rows unless they are `weighted_metrics`, and
batch normalisation works on the rows of a replica. Of several processes the first one writes and prints; what the
others write is thrown away.
"""

import contextlib
import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ParamSpec, TypeVar

import keras
import numpy as np

from zoo import errors
from zoo.compat.keras import flatten_layers, without_ddp, without_tensorflow
from zoo.data.batches import Batches
from zoo.distribution.devices import PARALLEL, PRECISIONS, Devices, parse_devices
from zoo.distribution.sharding import ArrayBatches, ShardedBatches, num_rows
from zoo.errors import UserError
from zoo.io import files
from zoo.io.weight_memory import zero_weight_init

PEER_FAILURE_MESSAGE = "Another process of this run has gone, and the run with it"
_PEER_FAILURE_SIGNS = re.compile(
    r"connection (closed|reset|refused)|heartbeat|peer|unhealthy|collective ops is aborted|gloo", re.I
)
_single_device = Devices()
_current = _single_device
_num_barriers = 0
_P = ParamSpec("_P")
_R = TypeVar("_R")


def current_devices() -> Devices:
    """The `Devices` of the scope that is open, or those of one device."""
    return _current


def _backend():
    """The module of this process's backend."""
    return importlib.import_module(f"zoo.distribution.{keras.backend.backend()}")


@contextlib.contextmanager
def strategy(
    devices: str | int = "auto",
    *,
    parallel: str = "data",
    layout_map: Mapping[str, Sequence[str | None]] | None = None,
    precision: str = "float32",
) -> Iterator[Devices]:
    """A scope in which models are built, compiled and trained on several devices.

    Args:
        devices: "auto", all accelerators or else one CPU; a number of accelerators; "cpu:4", four simulated devices.
            With several hosts, those of this one.
        parallel: "data", each device has all weights and a part of the batch; or "model", on JAX, each device has a
            part of the weights and all of the batch.
        layout_map: for "model", {regular expression of a weight's path: axes of the weight, "model" for the divided
            one}, as `keras.distribution.LayoutMap` takes.
        precision: dtype policy: "float32", or "mixed_bfloat16" or "mixed_float16" for arithmetic in half precision
            with weights in float32.

    Yields:
        `zoo.distribution.devices.Devices`.

    Raises:
        UserError: if there are fewer devices, or the backend cannot do what is asked for.
    """
    global _current
    for name, value, known in (("parallel", parallel, PARALLEL), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    backend = keras.backend.backend()
    platform, count = parse_devices(str(devices))
    if parallel == "model" and backend != "jax":
        raise UserError(f"--parallel model needs the JAX backend, this is {backend}: set KERAS_BACKEND=jax.")
    if parallel == "model" and not layout_map:
        raise UserError("This model has no layout for --parallel model: use --parallel data.")
    if precision == "mixed_float16" and backend == "jax" and not _backend().is_float16_supported():
        raise UserError("float16 does not run on a CPU with JAX: use --precision mixed_bfloat16 or float32.")
    opened = _backend().open_devices(platform, count, parallel, layout_map)
    opened.precision = precision
    if opened.process_id:
        files.discard_writes()
        errors.mute_output()
    before, _current = _current, opened
    with without_ddp():
        _enter(opened)
        try:
            yield opened
        finally:
            _leave(opened)
            _current = before


def prepare_devices(devices: str | int = "auto") -> None:
    """Let the backend know the devices of a later `strategy`, before anything is computed.

    TensorFlow and JAX decide how many CPU devices there are when they compute for the first time.

    Args:
        devices: as of `strategy`.

    Raises:
        UserError: if there are fewer devices.
    """
    with strategy(devices):
        pass


def _enter(devices):
    """Open the scope of `Devices`: where variables lie, their precision, `fit` and `evaluate`."""
    with contextlib.ExitStack() as stack:
        stack.callback(keras.config.set_dtype_policy, keras.config.dtype_policy())
        keras.config.set_dtype_policy(devices.precision)
        if devices.scope:
            stack.enter_context(devices.scope())
        stack.enter_context(_methods_of_scope())
        devices.opened = stack.pop_all()


def _leave(devices):
    devices.opened.close()


@contextlib.contextmanager
def outside_scope() -> Iterator[None]:
    """Outside the scope for a while: what is built and computed here is whole in every process."""
    devices = _current
    if devices is _single_device:
        yield
        return
    _leave(devices)
    try:
        yield
    finally:
        _enter(devices)


@contextlib.contextmanager
def single_device() -> Iterator[None]:
    """On one device for a while, in every process by itself."""
    global _current
    before = _current
    with outside_scope():
        _current = Devices()
        _current.precision = keras.config.dtype_policy().name
        _enter(_current)
        try:
            yield
        finally:
            _leave(_current)
            _current = before


# ---------------------------------------------------------------------------------------------------- fit and evaluate


@contextlib.contextmanager
def _methods_of_scope():
    """`keras.Model.fit` and `evaluate` that work on the devices of the open scope."""
    names = ("fit", "evaluate")
    before = {name: vars(keras.Model).get(name) for name in names}
    for name in names:
        setattr(keras.Model, name, _in_scope(getattr(keras.Model, name)))
    try:
        yield
    finally:
        for name, method in before.items():
            if method:
                setattr(keras.Model, name, method)
            else:
                delattr(keras.Model, name)


def _in_scope(method):
    """A method of `keras.Model` that takes global batches."""
    method = getattr(method, "outside_scope", method)
    signature = inspect.signature(method)
    is_fit = "epochs" in signature.parameters

    @functools.wraps(method)
    def wrapper(model, *args, **kwargs):
        optimizer = getattr(model, "optimizer", None)
        if model.built and optimizer and not optimizer.built:
            optimizer.build(model.trainable_variables)  # TensorFlow takes longer when the first step does it
        if keras.backend.backend() == "torch":
            _backend().fix_zero_grad(model)
        call = signature.bind(model, *args, **kwargs)
        # Within `fit`, Keras calls `evaluate` with what has been sharded before.
        if isinstance(call.arguments.get("x"), ShardedBatches):
            return method(model, *args, **kwargs)
        with _errors_of_batches(call.arguments.get("x"), call.arguments.get("validation_data")):
            if _current.num_devices == 1:
                return method(model, *args, **kwargs)
            _shard_arguments(call.arguments, is_fit)
            with _backend().training_scope(model, _current, call.arguments["x"]):
                result = method(*call.args, **call.kwargs)
        if is_fit:
            barrier()
        return result

    wrapper.outside_scope = method  # type: ignore[attr-defined]
    return wrapper


@contextlib.contextmanager
def _errors_of_batches(*data):
    """Raise the `UserError` of a batch as it is, not TensorFlow's error about it."""
    batches = [one for one in data if isinstance(one, Batches)]
    for one in batches:
        one.error = None
    try:
        yield
    except UserError:
        raise
    except Exception:
        for one in batches:
            if one.error:
                raise one.error from None
        raise


def _shard_arguments(arguments, is_fit):
    """Replace the data in the arguments of `fit` or `evaluate` by what this process works on."""
    batch_size = arguments.get("batch_size") or 32
    data = [arguments.pop(name, None) for name in ("x", "y", "sample_weight")]
    validation = arguments.pop("validation_data", None)
    fraction = arguments.pop("validation_split", 0)
    if fraction and validation is None:
        data, validation = _split(data, fraction)
    if validation is not None:
        validation = keras.utils.unpack_x_y_sample_weight(validation)
        batches = _batches(validation, arguments.get("validation_batch_size") or batch_size)
        arguments["validation_data"] = ShardedBatches(batches, _current, training=False)
    batches = _batches(data, batch_size)
    _check_batch_size(batches, single_is_fine=not is_fit)
    if (
        _current.num_processes == 1
        and isinstance(batches, ArrayBatches)
        and batches.is_divisible_by(_current.num_replicas)
    ):
        arguments |= dict(zip(("x", "y", "sample_weight"), data))  # Keras shuffles as on one device
        return
    sharded = ShardedBatches(batches, _current, arguments.pop("class_weight", None), training=is_fit)
    arguments["x"] = sharded
    if not is_fit or not arguments.get("shuffle", True):
        return
    if keras.backend.backend() == "torch":  # every process draws the order that Keras draws on one device
        start_epoch = _backend().synchronize_random_states
        if isinstance(batches, ArrayBatches):
            arguments["x"], start_epoch = _backend().shuffled_loader(batches, sharded.shard)
            arguments["shuffle"] = False
    elif isinstance(batches, ArrayBatches) or _current.num_processes > 1:
        start_epoch = sharded.shuffle
        arguments["shuffle"] = False
    else:
        return
    callback = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: start_epoch(epoch))
    arguments["callbacks"] = [callback, *keras.tree.flatten(arguments.get("callbacks") or ())]


def _batches(data, batch_size):
    """A `PyDataset` of global batches of what `fit` takes as (x, y, sample_weight)."""
    x, y, sample_weight = data
    if isinstance(x, keras.utils.PyDataset):
        if y is not None or sample_weight is not None:
            raise UserError("A PyDataset gives y and sample_weight itself: pass them in its batches.")
        return x
    if not all(hasattr(array, "shape") and hasattr(array, "__getitem__") for array in keras.tree.flatten(x)):
        raise UserError(
            f"model.fit and model.evaluate on {_current.num_devices} devices take arrays or a keras.utils.PyDataset of "
            f"global batches, got {type(x).__name__}: wrap it in a PyDataset."
        )
    return ArrayBatches(x, y, sample_weight, batch_size=batch_size)


def _check_batch_size(batches, *, single_is_fine):
    """Raise UserError if the first batch cannot be divided; batches of several sizes that have weights are padded."""
    if single_is_fine and batches.num_batches == 1:
        return
    if hasattr(batches, "batch_size"):
        _current.per_replica_batch_size(batches.batch_size)
    elif keras.utils.unpack_x_y_sample_weight(batches[0])[2] is None:
        _current.per_replica_batch_size(num_rows(batches[0]))


def _split(data, fraction):
    """The first rows to train on, and the last ones to validate."""
    if isinstance(data[0], keras.utils.PyDataset) or not 0 < fraction < 1:
        raise UserError(f"validation_split={fraction} needs arrays and a number between 0 and 1: give validation_data.")
    batches = ArrayBatches(*data, batch_size=1)
    at = math.floor(len(batches) * (1 - fraction))
    return batches.take(slice(None, at)), batches.take(slice(at, None))


# --------------------------------------------------------------------------------------------------- several processes


def barrier() -> None:
    """Return once every process of the run has come here; at most a day later."""
    global _num_barriers
    _num_barriers += 1
    _backend().barrier(_num_barriers)


def on_main_process(function: Callable[_P, _R]) -> Callable[_P, _R | None]:
    """Decorator: only the first process of a run calls the function; the others wait for its end and return None.

    Args:
        function: what one process is to do, e.g. write a file.

    Returns:
        function of the same arguments.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        result = None if files.discarding() else function(*args, **kwargs)
        barrier()
        return result

    return wrapper


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error is what a process sees when another one of its run has gone.

    Args:
        error: the exception.

    Returns:
        True if it is; False in a run of one process.
    """
    return _current.num_processes > 1 and bool(_PEER_FAILURE_SIGNS.search(f"{type(error).__name__} {error}"))


def to_single_device(model: keras.Model) -> keras.Model:
    """The same model on one device and in float32, with copies of the weights; itself if it is so already.

    Call it in the scope or after it. A model that was trained on several devices is of use only by them.

    Args:
        model: a model built or trained in the scope of `strategy`.

    Returns:
        `keras.Model`.
    """
    mixed = any(layer.dtype_policy.name.startswith("mixed_") for layer in flatten_layers(model))
    if not _backend().is_distributed(model) and not mixed:
        return model
    with without_tensorflow():
        config = _in_float32(model.get_config())
    with outside_scope(), zero_weight_init():
        copy = type(model).from_config(config)
    with outside_scope():
        for new, old in zip(flatten_layers(copy), flatten_layers(model), strict=True):
            if getattr(old, "lora_enabled", False):  # `Dense` forgets it when it is built from its config
                new.lora_alpha = old.lora_alpha
        for new, old in zip(_stateless_weights(copy), _stateless_weights(model), strict=True):
            new.assign(np.array(keras.ops.convert_to_numpy(old)))
            new.trainable = old.trainable
    return copy


def _stateless_weights(model):
    """The weights of a model without states that it carries from batch to batch."""
    return [weight for weight in model.weights if weight.name != "rnn_state"]


def _in_float32(config):
    """A configuration with every mixed policy replaced."""
    if isinstance(config, dict):
        return {key: _in_float32(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float32(value) for value in config)
    return "float32" if isinstance(config, str) and config.startswith("mixed_") else config
