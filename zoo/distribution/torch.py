"""PyTorch: `torch.distributed`, a process a device under torchrun.

Each process trains on its part of every global batch, gradients are averaged over the processes before the optimizer
applies them, and metrics are summed over them before they are read. Keras 3.15 has nothing of the kind; what Keras 3.16
has (`DistributedDataParallel` within `fit`, keras #23316) is off in a scope, see `zoo.compat.keras.without_ddp`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.blocks.random_streams import random_streams
from zoo.compat.keras import shuffled_batch_sampler
from zoo.distribution.devices import Devices, resolve_num_accelerators
from zoo.errors import UserError

if TYPE_CHECKING:
    import torch

    from zoo.distribution.sharding import ArrayBatches

_BUCKET_ELEMENTS = 2**24  # gradients that are reduced at once, 64 MiB in float32
_barrier_group = None


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
        UserError: if there are not so many, or torchrun has started another number of processes.
    """
    import torch

    world_size = int(os.environ.get("WORLD_SIZE", 1))
    num_gpus = 0 if platform == "cpu" else torch.cuda.device_count()
    num_local = requested or 1 if platform == "cpu" else max(1, resolve_num_accelerators(requested, num_gpus))
    if world_size == 1:
        if num_local > 1:
            raise UserError(
                f"PyTorch needs a process for each device: start the recipe as a command, or by torchrun "
                f"--nproc-per-node {num_local}."
            )
        return Devices()
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if requested is not None and requested != local_world_size:
        raise UserError(
            f"--devices asks for {requested}, torchrun has started {local_world_size} processes: use the same number."
        )
    _join_group(num_gpus > 0)
    return Devices(world_size, num_processes=world_size, process_id=int(os.environ["RANK"]))


def _join_group(on_gpus):
    """Join the other processes: NCCL on GPUs, gloo on CPUs and for barriers, which only gloo has with a timeout."""
    import torch

    if torch.distributed.is_initialized():
        return
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpus else "gloo")
    global _barrier_group
    _barrier_group = torch.distributed.new_group(backend="gloo") if on_gpus else torch.distributed.group.WORLD


def fix_zero_grad(model: keras.Model) -> None:
    """Let a model's `zero_grad` reach every weight, also where two layers in it have the same name.

    Keras 3.15 collects them by path (`TorchLayer._track_variables`), so that of two models within a model, each with a
    layer "conv", one would keep the gradients of all steps before.

    Args:
        model: changed in place.
    """

    def zero_grad(set_to_none=True):
        for variable in model.trainable_variables:
            variable.value.grad = None

    model.zero_grad = zero_grad


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
    if "get_metrics_result" in vars(model):  # `fit` calls `evaluate`
        yield
        return
    _synchronize(model, devices.process_id)
    optimizer: Any = getattr(model, "optimizer", None)

    def apply(gradients, trainable_variables=None):
        _average([gradient for gradient in gradients if gradient is not None])
        return type(optimizer).apply(optimizer, gradients, trainable_variables)

    model.get_metrics_result = functools.partial(_global_metrics, model)
    if optimizer is not None:
        optimizer.apply = apply
    try:
        yield
    finally:
        del model.get_metrics_result
        if optimizer is not None:
            del optimizer.apply


def _synchronize(model, process_id):
    """Give every process the first one's weights, but dropout of its own."""
    import torch

    for variable in model.weights:
        if variable.name != "rnn_state":  # of the process's own rows
            torch.distributed.broadcast(variable.value.data, 0)
    streams = random_streams(model)
    starts = [0, *(int(np.asarray(stream.numpy())[0]) for stream in streams)]  # an empty list cannot be sent
    torch.distributed.broadcast_object_list(starts)
    for stream, start in zip(streams, starts[1:], strict=True):
        counter = np.asarray(stream.numpy())[1]
        stream.assign(np.array([(start + 7919 * process_id) % 2**31, counter]))
    synchronize_random_states()


def synchronize_random_states(epoch: int | None = None) -> None:
    """Give every process the first one's global random states, of which orders of rows and batches are drawn.

    Args:
        epoch: not used; for a callback, which gives it.
    """
    import torch

    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    torch.distributed.broadcast_object_list(states)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _average(gradients):
    """Replace gradients by their means over all processes."""
    import torch

    buckets, elements = [[]], 0
    for gradient in gradients:
        if buckets[-1] and elements + gradient.numel() > _BUCKET_ELEMENTS:
            buckets.append([])
            elements = 0
        buckets[-1].append(gradient)
        elements += gradient.numel()
    for bucket in filter(None, buckets):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket])):
            gradient.copy_(mean.view_as(gradient))


def _global_metrics(model):
    """`Model.get_metrics_result` of the metrics' variables summed over all processes."""
    import torch

    variables = [variable for metric in model.metrics for variable in metric.variables]
    sums = torch.cat([variable.value.reshape(-1).to(torch.float32) for variable in variables])
    if sums.device.type == "meta":  # Keras builds the metrics
        return type(model).get_metrics_result(model)
    torch.distributed.all_reduce(sums)
    parts = sums.split([variable.value.numel() for variable in variables])
    state = [(v, part.reshape(tuple(v.shape)).to(v.value.dtype)) for v, part in zip(variables, parts)]
    with keras.StatelessScope(state_mapping=state):
        return type(model).get_metrics_result(model)


def shuffled_loader(
    batches: ArrayBatches, shard: Callable[[Any], tuple]
) -> tuple[torch.utils.data.DataLoader, Callable[[int], None]]:
    """Parts of global batches in the order in which Keras would shuffle the arrays on one device.

    Args:
        batches: `zoo.distribution.sharding.ArrayBatches`.
        shard: function of a global batch to the part of this process.

    Returns:
        `torch.utils.data.DataLoader`.
    """
    import torch

    class Rows:
        def __getitems__(self, indices):
            return keras.tree.map_structure(keras.ops.convert_to_tensor, shard(batches.take(indices)))

        def __len__(self):
            return len(batches.order)

    sampler, next_order = shuffled_batch_sampler(len(batches.order), batches.batch_size)

    def start_epoch(epoch):
        synchronize_random_states()
        next_order()

    return torch.utils.data.DataLoader(Rows(), batch_sampler=sampler, collate_fn=lambda batch: batch), start_epoch


def barrier(count: int) -> None:
    """Wait for every process, at most a day.

    Args:
        count: the number of barriers so far.
    """
    if _barrier_group:
        import torch

        torch.distributed.monitored_barrier(_barrier_group, timeout=datetime.timedelta(days=1))


def is_distributed(model: keras.Model) -> bool:
    """Whether a model's variables lie on several devices.

    Args:
        model: a built model.

    Returns:
        False: each process has its own.
    """
    return False
