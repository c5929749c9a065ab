"""Strategy scopes: one recipe on any number of devices, with the numbers that one device gives.

    with zoo.strategy("cpu:4"):          # or "auto", or a number of accelerators
        model = build()
        model.compile(...)
        train(model, ...)                # zoo.training.loop

What lies underneath is each framework's own engine:

    TensorFlow  tf.distribute: MirroredStrategy, or MultiWorkerMirroredStrategy where TF_CONFIG names several workers
    JAX         keras.distribution: DataParallel, or ModelParallel; several hosts by KERAS_DISTRIBUTION_* variables
    PyTorch     torch.distributed: a process a device under torchrun, DistributedDataParallel

A batch is the global batch: each device gets an equal part of its rows, gradients are means over all of them, and every
process sees the same order. Of several processes the first one writes and prints; what the others write is thrown away.
"""

import contextlib
import datetime
import functools
import json
import os
import re

import keras
import numpy as np

from zoo import errors
from zoo.blocks.random_streams import random_streams
from zoo.compat.keras import zero_weight_init
from zoo.errors import UserError
from zoo.io import files, model_files

KINDS = ("data", "model")
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
GONE = "Another process of this run has gone, and the run with it"
SIGNS_OF_LOSS = re.compile(
    r"connection (closed|reset|refused)|heartbeat|peer|unhealthy|collective ops is aborted|gloo", re.I
)
HEARTBEAT = 20  # seconds without a sign of life after which a process counts as lost


def add_flags(add):
    """The flags of a recipe that say what it runs on; `add` is `ArgumentParser.add_argument`."""
    add("--devices", default="auto", help="auto: all accelerators, else one CPU; a number; cpu:4 simulates four")
    add("--parallel", choices=KINDS, default="data", help="what the devices divide: the rows of a batch or the weights")
    add("--precision", choices=tuple(PRECISIONS), default="float32", help="of the arithmetic in training")


def parse(text):
    """What `--devices` asks for: (platform or None, number or None).

    Raises:
        UserError: if it is none of auto, a number, cpu, cpu:N.
    """
    found = re.fullmatch(r"(auto)|(cpu)(?::(\d+))?|(\d+)", str(text).strip().lower())
    if not found or "0" in (found[3], found[4]):
        raise UserError(f"--devices is {str(text)!r}: give auto, a number of accelerators, or cpu:4 to simulate four.")
    if found[2]:
        return "cpu", int(found[3] or 1)
    return None, int(found[4]) if found[4] else None


class Devices:
    """What a run is on: how many devices there are, in how many processes, and which of these this one is.

    Attributes:
        kind: "data" or "model".
        count: devices of the whole run.
        processes, process: how many processes there are, and the place of this one.
        parts: into how many equal parts the rows of a batch must fall.
        scope: function that returns a context manager in which variables are made, or None.
    """

    precision = "float32"

    def __init__(self, count=1, *, kind="data", processes=1, process=0, scope=None, strategy=None):
        self.count, self.kind, self.processes, self.process = count, kind, processes, process
        self.parts = count if kind == "data" else 1
        self.scope, self.strategy, self._entered = scope, strategy, None

    def enter(self):
        self._policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(PRECISIONS[self.precision])
        if self.scope:
            self._entered = self.scope()
            self._entered.__enter__()

    def leave(self):
        keras.config.set_dtype_policy(self._policy)
        if self._entered:
            self._entered.__exit__(None, None, None)
            self._entered = None

    def rows(self, batch_size):
        """How many rows of a global batch one copy of a model works on; on JAX there is one copy, cut in parts.

        Raises:
            UserError: if the devices cannot divide it.
        """
        if batch_size % self.parts:
            raise UserError(f"--batch-size {batch_size} cannot be divided by {self.parts} devices: use a multiple.")
        return batch_size if keras.backend.backend() == "jax" else batch_size // self.parts


_one = Devices()
_current = _one
_waits = 0


def current():
    """The `Devices` of the scope that is open, or those of one device."""
    return _current


@contextlib.contextmanager
def strategy(devices="auto", *, kind="data", layout=None, precision="float32"):
    """A scope in which models are built, compiled and trained on several devices.

    Args:
        devices: "auto", all accelerators or else one CPU; a number of accelerators; "cpu:4", four simulated devices.
            With several hosts, those of this one.
        kind: "data", each device has all weights and a part of the batch; or "model", on JAX, each device has a part
            of the weights and all of the batch.
        layout: for "model", {regular expression of a weight's path: axes of the weight, "model" for the divided one}.
        precision: "float32", or "bfloat16" or "float16" for arithmetic in half precision with weights in float32.

    Yields:
        `Devices`.

    Raises:
        UserError: if there are fewer devices, or the backend cannot do what is asked for.
    """
    global _current
    if kind not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    backend = keras.backend.backend()
    platform, count = parse(devices)
    if kind == "model" and backend != "jax":
        raise UserError(f"--parallel model needs the JAX backend, this is {backend}: set KERAS_BACKEND=jax.")
    if kind == "model" and not layout:
        raise UserError("This model has no layout for --parallel model: use --parallel data.")
    open_ = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[backend]
    before = _current
    if precision == "float16" and backend == "jax" and _platform() == "cpu":
        raise UserError("float16 does not run on a CPU with JAX: use --precision bfloat16 or float32.")
    _current = open_(platform, count, kind, layout)
    if _current.process:
        files.discard_writes()
        errors.mute_output()
    _current.precision = precision
    _current.enter()
    try:
        yield _current
    finally:
        _current.leave()
        _current = before


@contextlib.contextmanager
def aside():
    """Outside the scope for a while: what is built and computed here is whole in every process."""
    devices = _current
    if devices is _one:
        yield
        return
    devices.leave()
    try:
        yield
    finally:
        devices.enter()


@contextlib.contextmanager
def alone():
    """On one device for a while, in every process by itself."""
    global _current
    before = _current
    with aside():
        _current = _one
        try:
            yield
        finally:
            _current = before


def count_accelerators(wanted, accelerators):
    """How many of the accelerators to use; 0 stands for one CPU.

    Raises:
        UserError: if more are asked for than there are.
    """
    if wanted is not None and wanted > max(1, accelerators):
        found = f"{accelerators} of them" if accelerators else "none"
        raise UserError(
            f"--devices {wanted} asks for {wanted} accelerators, {keras.backend.backend()} finds {found}: ask for "
            f"fewer, or use cpu:{wanted} to simulate them."
        )
    return accelerators if wanted is None else min(wanted, accelerators)


def _platform():
    import jax

    return jax.default_backend()


# ----------------------------------------------------------------------------------------------------------- TensorFlow


def _tensorflow(platform, wanted, kind, layout):
    import tensorflow as tf

    if platform == "cpu":
        _simulate_tensorflow(wanted)
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
    workers = len(cluster.get("cluster", {}).get("worker", ()))
    if workers > 1:
        one = _workers()
        count = one.num_replicas_in_sync
        if wanted is not None and wanted * workers != count:
            raise UserError(
                f"--devices {wanted} on {workers} workers makes {wanted * workers}, tf.distribute found {count}."
            )
        place = cluster["task"]["index"]
        return Devices(count, processes=workers, process=place, scope=functools.partial(_scope, one), strategy=one)
    if platform == "cpu":
        names = [f"CPU:{place}" for place in range(wanted)]
    else:
        names = [
            f"GPU:{place}" for place in range(count_accelerators(wanted, len(tf.config.list_physical_devices("GPU"))))
        ]
    if len(names) < 2:
        return Devices()
    reduction = tf.distribute.ReductionToOneDevice() if platform == "cpu" else None
    one = tf.distribute.MirroredStrategy(names, cross_device_ops=reduction)
    return Devices(len(names), scope=functools.partial(_scope, one), strategy=one)


@functools.cache
def _workers():
    """The strategy of several workers; there can be one in a process."""
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()


def _simulate_tensorflow(count):
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:  # TensorFlow has begun
        there = len(tf.config.list_logical_devices("CPU"))
        if there < count:
            raise UserError(
                f"TensorFlow has begun with {there} CPU devices: ask for cpu:{count} before anything is computed."
            ) from None


@contextlib.contextmanager
def _scope(one):
    """The scope of a tf.distribute strategy, in which each device carries the states of its own part of the batch."""
    import tensorflow as tf

    def create(next_creator, **options):
        if "rnn_state" in (options.get("name") or ""):
            options |= {
                "synchronization": tf.VariableSynchronization.ON_READ,
                "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
            }
        return next_creator(**options)

    with one.scope(), tf.variable_creator_scope(create):
        yield


def _prepare_tensorflow(model, batches, devices):
    """Train by `strategy.run`; Keras 3.15's own step reads and reduces what several workers have in a wrong way."""
    import tensorflow as tf

    def function(step):
        @tf.function(reduce_retracing=True)
        def run(data):
            told = devices.strategy.run(step, args=(data,))
            return {name: devices.strategy.reduce("MEAN", value, axis=None) for name, value in told.items()}

        return lambda iterator: run(next(iterator))

    model.jit_compile = False
    part = keras.tree.map_structure(lambda x: x[: len(x) // devices.count], batches[0])
    with devices.strategy.scope():
        model._symbolic_build(data_batch=part)
    model._maybe_symbolic_build = lambda *args, **options: None
    model.train_function, model.test_function = function(model.train_step), function(model.test_step)


# ------------------------------------------------------------------------------------------------------------------ JAX


def _jax(platform, wanted, kind, layout):
    import jax

    if platform == "cpu":
        try:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", max(wanted, jax.config.jax_num_cpu_devices))
        except RuntimeError:  # JAX has begun
            pass
    processes = jax_processes()
    if processes > 1:
        _join_processes()
    accelerators = [] if jax.default_backend() == "cpu" else jax.local_devices()
    here = wanted if platform == "cpu" else max(1, count_accelerators(wanted, len(accelerators)))
    if here > jax.local_device_count():
        raise UserError(
            f"JAX has begun with {jax.local_device_count()} CPU devices: ask for cpu:{here} before anything is "
            "computed."
        )
    chosen = [device for process in range(processes) for device in _of_process(process)[:here]]
    count = len(chosen)
    if count == 1:
        return Devices()
    names = [f"{device.platform}:{device.id}" for device in chosen]
    if kind == "model":
        if processes > 1:
            raise UserError("--parallel model works on one host: use --parallel data for several.")
        mesh = keras.distribution.DeviceMesh((1, count), ("batch", "model"), names)
        layouts = keras.distribution.LayoutMap(mesh)
        for path, axes in layout.items():
            layouts[path] = axes
        one = _ModelParallel(layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False)
    else:
        one = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
    return Devices(count, kind=kind, processes=processes, process=jax.process_index(), scope=one.scope, strategy=one)


class _ModelParallel(keras.distribution.ModelParallel):
    """Says in the project's words which weight cannot be divided."""

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


def jax_processes():
    """How many processes `keras.distribution.initialize` is to join."""
    return int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))


def _of_process(process):
    import jax

    return [device for device in jax.devices() if device.process_index == process]


@functools.cache
def _join_processes():
    """`keras.distribution.initialize`, which says nothing of when a process counts as lost: JAX waits 100 seconds."""
    import jax

    initialize = jax.distributed.initialize
    jax.distributed.initialize = functools.partial(
        initialize, heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=300
    )
    keras.utils.set_random_seed(0)  # else Keras draws one; every process must have the same
    try:
        keras.distribution.initialize()
    finally:
        jax.distributed.initialize = initialize


# -------------------------------------------------------------------------------------------------------------- PyTorch


def _torch(platform, wanted, kind, layout):
    import torch

    world = int(os.environ.get("WORLD_SIZE", 1))
    gpus = 0 if platform == "cpu" else torch.cuda.device_count()
    here = wanted if platform == "cpu" else max(1, count_accelerators(wanted, gpus))
    if world == 1:
        if here > 1:
            raise UserError(
                f"PyTorch needs a process for each device: start the recipe as a command, or by torchrun "
                f"--nproc-per-node {here}."
            )
        return Devices()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if wanted is not None and wanted != local:
        raise UserError(f"--devices asks for {wanted}, torchrun has started {local} processes: use the same number.")
    _join_group(gpus)
    return Devices(world, processes=world, process=int(os.environ["RANK"]))


@functools.cache
def _join_group(gpus):
    """Join the other processes: NCCL on GPUs, gloo on CPUs."""
    import torch

    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if gpus else "gloo")


def _prepare_torch(model):
    """Gradients by `DistributedDataParallel`, sums of the metrics over all processes, random numbers of their own."""
    import torch

    for state in random_streams(model):
        start, place = np.asarray(state.numpy())
        state.assign(np.array([(int(start) + 7919 * current().process) % 2**31, place]))
    reduced = torch.nn.parallel.DistributedDataParallel(_whole(model))

    def train_step(data):
        """`keras.Model.train_step` of the PyTorch backend, with the forward pass by way of `reduced`."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        predicted = reduced(x)
        model.zero_grad()
        loss = model._compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weights, training=True)
        model._loss_tracker.update_state(loss, sample_weight=keras.tree.flatten(x)[0].shape[0])
        model.optimizer.scale_loss(loss).backward()
        variables = model.trainable_weights[:]
        with torch.no_grad():
            model.optimizer.apply([variable.value.grad for variable in variables], variables)
        return model.compute_metrics(x, y, predicted, weights)

    def get_metrics_result():
        variables = [variable for metric in model.metrics for variable in metric.variables]
        sums = torch.cat([variable.value.reshape(-1).to(torch.float32) for variable in variables])
        torch.distributed.all_reduce(sums)
        parts = sums.split([variable.value.numel() for variable in variables])
        state = [(v, part.reshape(tuple(v.shape)).to(v.value.dtype)) for v, part in zip(variables, parts)]
        with keras.StatelessScope(state_mapping=state):
            return type(model).get_metrics_result(model)

    model.train_step, model.get_metrics_result = train_step, get_metrics_result


def _whole(model):
    """A torch module whose parameters are a model's trainable variables, each once, whatever layers are called."""
    import torch

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.all = torch.nn.ParameterList([variable.value for variable in model.trainable_variables])

        def forward(self, x):
            return model(x, training=True)

    return Whole()


# ---------------------------------------------------------------------------------------------------- for every backend


def prepare(model, batches):
    """Make a compiled model ready to be fitted to batches on the devices of the open scope."""
    if _current.count > 1 and keras.backend.backend() == "tensorflow":
        _prepare_tensorflow(model, batches, _current)
    elif _current.count > 1 and keras.backend.backend() == "torch":
        _prepare_torch(model)


def share(batches):
    """The part of each global batch that this process hands to its devices; `batches` themselves on one device."""
    return Share(batches, _current) if _current.count > 1 and batches is not None else batches


class Share(keras.utils.PyDataset):
    """Batches that devices can divide, of which a process takes its part.

    Rows that are missing for equal parts are added and weigh nothing; the others weigh so much more that means over the
    batch stay what they were. Means over an epoch, which Keras takes by numbers of rows, count the added ones.

    Args:
        batches: global batches, a `PyDataset` with `set_epoch`.
        devices: `Devices`.
    """

    def __init__(self, batches, devices):
        super().__init__(workers=1, use_multiprocessing=False)
        self.batches, self.devices = batches, devices
        sizes = {len(keras.tree.flatten(batches[place])[0]) for place in (0, len(batches) - 1)}
        self.weighted = any(size % devices.parts for size in sizes)

    def set_epoch(self, epoch):
        self.batches.set_epoch(epoch)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        x, y, weights = keras.utils.unpack_x_y_sample_weight(self.batches[index])
        rows = len(keras.tree.flatten(x)[0])
        added = -rows % self.devices.parts
        if weights is None and self.weighted:
            weights = np.ones(rows, "float32")
        if added:
            places = np.concatenate([np.arange(rows), np.zeros(added, int)])
            x, y, weights = keras.tree.map_structure(lambda a: np.asarray(a)[places], (x, y, weights))
            weights = weights * np.float32((rows + added) / rows)
            weights[rows:] = 0
        batch = (x, y) if weights is None else (x, y, weights)
        if self.devices.processes == 1 or keras.backend.backend() == "tensorflow":  # tf.distribute divides by itself
            return batch
        part = (rows + added) // self.devices.processes
        mine = slice(self.devices.process * part, (self.devices.process + 1) * part)
        return keras.tree.map_structure(lambda a: a[mine], batch)


def wait_for_all():
    """Return once every process of the run has come here; at most a day later."""
    global _waits
    _waits += 1
    backend = keras.backend.backend()
    if backend == "torch" and _join_group.cache_info().currsize:
        import torch

        torch.distributed.monitored_barrier(timeout=datetime.timedelta(days=1), wait_all_ranks=False)
    elif backend == "jax" and _join_processes.cache_info().currsize:
        from jax._src.distributed import global_state

        global_state.client.wait_at_barrier(f"zoo {_waits}", 24 * 3600 * 1000)
    elif backend == "tensorflow" and _workers.cache_info().currsize:
        import tensorflow as tf

        one = tf.function(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.zeros(())))
        _workers().run(one)


def by_the_first(function):
    """Let only the first process of a run call a function; the others wait for its end and return None."""

    @functools.wraps(function)
    def called(*args, **options):
        result = None if files.discarding() else function(*args, **options)
        wait_for_all()
        return result

    return called


def plain(model):
    """The same model on one device and in float32, with copies of the weights; itself if it is so already.

    Call it in the scope or after it. A model that was trained on several devices is of use only by them.
    """
    mixed = any(layer.dtype_policy.name.startswith("mixed_") for layer in model._flatten_layers())
    if _placed(model) or mixed:
        with model_files.without_tensorflow():
            config = _in_float32(model.get_config())
        with aside(), zero_weight_init():
            copy = type(model).from_config(config)
        with aside():
            for new, old in zip(_lasting(copy), _lasting(model), strict=True):
                new.assign(np.array(keras.ops.convert_to_numpy(old)))
        return copy
    return model


def _lasting(model):
    """The weights of a model without states that it carries from batch to batch."""
    return [weight for weight in model.weights if weight.name != "rnn_state"]


def _placed(model):
    """Whether a model's variables lie on several devices."""
    backend = keras.backend.backend()
    if backend == "jax":
        return any(len(weight.value.sharding.device_set) > 1 for weight in model.weights)
    return backend == "tensorflow" and model._distribute_strategy is not None


def _in_float32(config):
    """A configuration with every mixed policy replaced."""
    if isinstance(config, dict):
        return {key: _in_float32(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float32(value) for value in config)
    return "float32" if isinstance(config, str) and config.startswith("mixed_") else config


def lost_process(error):
    """Whether an error is what a process sees when another one of its run has gone."""
    return _current.processes > 1 and bool(SIGNS_OF_LOSS.search(f"{type(error).__name__} {error}"))
