"""TensorFlow: `MirroredStrategy` of tf.distribute, or `MultiWorkerMirroredStrategy` where TF_CONFIG names workers."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence

import keras

from zoo.distribution.devices import Devices, resolve_num_accelerators
from zoo.errors import UserError


def open_devices(
    platform: str | None, requested: int | None, parallel: str, layout_map: Mapping[str, Sequence[str | None]] | None
) -> Devices:
    """The devices of a run.

    Args:
        platform: "cpu", or None for accelerators where there are some.
        requested: how many; None for all.
        parallel: "data".
        layout_map: not used.

    Returns:
        `Devices`.

    Raises:
        UserError: if there are not so many.
    """
    import tensorflow as tf

    if platform == "cpu":
        _simulate_cpus(requested)
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
    num_workers = len(cluster.get("cluster", {}).get("worker", ()))
    if num_workers > 1:
        strategy = _multi_worker_strategy()
        count = strategy.num_replicas_in_sync
        if requested is not None and requested * num_workers != count:
            raise UserError(
                f"--devices {requested} on {num_workers} workers makes {requested * num_workers}, tf.distribute found "
                f"{count}."
            )
        return Devices(
            count,
            num_processes=num_workers,
            process_id=cluster["task"]["index"],
            scope=functools.partial(_scope, strategy),
            distribution=strategy,
        )
    if platform == "cpu":
        names = [f"CPU:{index}" for index in range(requested or 1)]
    else:
        available = len(tf.config.list_physical_devices("GPU"))
        names = [f"GPU:{index}" for index in range(resolve_num_accelerators(requested, available))]
    if len(names) < 2:
        return Devices()
    reduction = tf.distribute.ReductionToOneDevice() if platform == "cpu" else None
    strategy = tf.distribute.MirroredStrategy(names, cross_device_ops=reduction)
    return Devices(len(names), scope=functools.partial(_scope, strategy), distribution=strategy)


@functools.cache
def _multi_worker_strategy():
    """The strategy of several workers; there can be one in a process."""
    import tensorflow as tf

    keras.utils.set_random_seed(0)  # every process must shuffle alike
    return tf.distribute.MultiWorkerMirroredStrategy()


def _simulate_cpus(count):
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:  # TensorFlow is already initialized
        available = len(tf.config.list_logical_devices("CPU"))
        if available < count:
            raise UserError(
                f"TensorFlow has begun with {available} CPU devices: ask for cpu:{count} before anything is computed."
            ) from None


@contextlib.contextmanager
def _scope(strategy):
    """The scope of a tf.distribute strategy, in which each replica carries the RNN states of its own rows."""
    import tensorflow as tf

    def create(next_creator, **options):
        if "rnn_state" in (options.get("name") or ""):
            options |= {
                "synchronization": tf.VariableSynchronization.ON_READ,
                "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
            }
        return next_creator(**options)

    with strategy.scope(), tf.variable_creator_scope(create):
        yield


@contextlib.contextmanager
def training_scope(model: keras.Model, devices: Devices, batches: keras.utils.PyDataset) -> Iterator[None]:
    """What `fit` and `evaluate` of a model need around them.

    Args:
        model: compiled.
        devices: of the run.
        batches: `ShardedBatches`.

    Yields:
        None.
    """
    model.jit_compile = False  # XLA knows no collective operations
    if devices.num_processes > 1:
        _prepare_workers(model, devices, batches)
    yield


def _prepare_workers(model, devices, batches):
    """Train by `strategy.run`: Keras 3.15's own step reads and reduces what several workers have in a wrong way."""
    import tensorflow as tf

    from zoo.compat.tensorflow import build_from_batch

    def make_function(step):
        @tf.function(reduce_retracing=True)
        def run(data):
            logs = devices.distribution.run(step, args=(data,))
            return {name: devices.distribution.reduce("MEAN", value, axis=None) for name, value in logs.items()}

        return lambda iterator: run(next(iterator))

    if model.train_function is None or model.test_function is None:
        part = keras.tree.map_structure(lambda x: x[: len(x) // devices.num_devices], batches[0])
        build_from_batch(model, part, devices.distribution)
        model.train_function, model.test_function = make_function(model.train_step), make_function(model.test_step)


def barrier(count: int) -> None:
    """Wait for every process.

    Args:
        count: the number of barriers so far.
    """
    if _multi_worker_strategy.cache_info().currsize:
        import tensorflow as tf

        reduce = tf.function(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.zeros(())))
        _multi_worker_strategy().run(reduce)


def is_distributed(model: keras.Model) -> bool:
    """Whether a model's variables lie on several devices.

    Args:
        model: a built model.

    Returns:
        True if they do.
    """
    import tensorflow as tf

    return any(isinstance(weight.value, tf.distribute.DistributedValues) for weight in model.weights)
