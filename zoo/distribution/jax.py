"""JAX: `keras.distribution.DataParallel` or `ModelParallel`; several hosts by KERAS_DISTRIBUTION_* variables."""

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence

import keras

from zoo.distribution.devices import Devices, resolve_num_accelerators
from zoo.errors import UserError

_HEARTBEAT_SECONDS = 20  # without a sign of life after which a process counts as lost; JAX waits 100


def open_devices(
    platform: str | None, requested: int | None, parallel: str, layout_map: Mapping[str, Sequence[str | None]] | None
) -> Devices:
    """The devices of a run.

    Args:
        platform: "cpu", or None for accelerators where there are some.
        requested: how many; None for all.
        parallel: "data" or "model".
        layout_map: as in `zoo.distribution.strategy.strategy`.

    Returns:
        `Devices`.

    Raises:
        UserError: if there are not so many.
    """
    import jax

    if platform == "cpu":
        try:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", max(requested, jax.config.jax_num_cpu_devices))
        except RuntimeError:  # JAX is already initialized
            pass
    if num_processes() > 1:
        _join_processes()
    accelerators = [] if jax.default_backend() == "cpu" else jax.local_devices()
    num_local = requested if platform == "cpu" else max(1, resolve_num_accelerators(requested, len(accelerators)))
    if num_local > jax.local_device_count():
        raise UserError(
            f"JAX has begun with {jax.local_device_count()} CPU devices: ask for cpu:{num_local} before anything is "
            "computed."
        )
    chosen = [device for process in range(num_processes()) for device in _devices_of(process)[:num_local]]
    if len(chosen) == 1:
        return Devices()
    names = [f"{device.platform}:{device.id}" for device in chosen]
    if parallel == "model":
        if num_processes() > 1:
            raise UserError("--parallel model works on one host: use --parallel data for several.")
        mesh = keras.distribution.DeviceMesh((1, len(chosen)), ("batch", "model"), names)
        layouts = keras.distribution.LayoutMap(mesh)
        for path, axes in (layout_map or {}).items():
            layouts[path] = axes
        distribution = _ModelParallel(layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False)
    else:
        distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
    return Devices(
        len(chosen),
        parallel=parallel,
        num_processes=num_processes(),
        process_id=jax.process_index(),
        scope=distribution.scope,
        distribution=distribution,
    )


class _ModelParallel(keras.distribution.ModelParallel):
    """`ModelParallel` with a one-line error for a weight that cannot be divided."""

    def get_variable_layout(self, variable):
        layout = super().get_variable_layout(variable)
        count = self.device_mesh.shape[1]
        for size, axis in zip(variable.shape, layout.axes):
            if axis == "model" and size % count:
                raise UserError(
                    f"--parallel model cannot divide {size} of {variable.path} {tuple(variable.shape)} among {count} "
                    "devices: use a number that divides the widths, or --parallel data."
                )
        return layout


def num_processes() -> int:
    """How many processes `keras.distribution.initialize` is to join."""
    return int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))


def _devices_of(process_id):
    import jax

    return [device for device in jax.devices() if device.process_index == process_id]


@functools.cache
def _join_processes():
    """`keras.distribution.initialize`, which has no argument for the heartbeat of `jax.distributed.initialize`."""
    import jax

    initialize = jax.distributed.initialize
    jax.distributed.initialize = functools.partial(
        initialize, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, initialization_timeout=300
    )
    keras.utils.set_random_seed(0)  # else Keras draws one; every process must have the same
    try:
        keras.distribution.initialize()
    finally:
        jax.distributed.initialize = initialize


def training_scope(
    model: keras.Model, devices: Devices, batches: keras.utils.PyDataset
) -> contextlib.AbstractContextManager:
    """What `fit` and `evaluate` of a model need around them: nothing, arrays are divided by their shardings.

    Keras 3.16 would build the metrics with what this process has of a batch, which a stateful RNN refuses: they are
    built here, with the whole batch.

    Args:
        model: compiled.
        devices: of the run.
        batches: `ShardedBatches`, or arrays.

    Returns:
        a context manager.
    """
    if devices.num_processes > 1:
        from zoo.compat.keras import build_compiled

        build_compiled(model, batches.batches[0])
    return contextlib.nullcontext()


def barrier(count: int) -> None:
    """Wait for every process.

    Args:
        count: the number of barriers so far.
    """
    if _join_processes.cache_info().currsize:
        from zoo.compat.jax import wait_at_barrier

        wait_at_barrier(f"zoo {count}", timeout=24 * 3600)


def is_float16_supported() -> bool:
    """Whether float16 runs: not on a CPU."""
    import jax

    return jax.default_backend() != "cpu"


def is_distributed(model: keras.Model) -> bool:
    """Whether a model's variables lie on several devices.

    Args:
        model: a built model.

    Returns:
        True if they do.
    """
    return any(len(weight.value.sharding.device_set) > 1 for weight in model.weights)
