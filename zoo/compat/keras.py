"""Private names of Keras, as of 3.15.1 and 3.16.0.dev2026102704."""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from zoo.compat import private
from zoo.typing import Tensor

if TYPE_CHECKING:
    import h5py
    import keras


def version() -> tuple[int, ...]:
    """(major, minor) of the Keras that is imported."""
    import keras

    return tuple(map(int, keras.__version__.split(".")[:2]))


# ------------------------------------------------------------------------------------------------------ initial weights


@contextlib.contextmanager
def skip_weight_init() -> Iterator[None]:
    """Models built inside have the shapes of their weights, but no values; they must hold no random layers.

    They can be counted, summarised and traced; each weight must be given a value by `set_initial_value` before the
    model is called. Drawing random numbers that are overwritten at once takes longer than reading a file, on JAX by
    far, which compiles that for each shape: 14 of the 16 s that loading a small diffusion took.

    Since Keras 3.0: `StatelessScope(initialize_variables=False)` is public, but would leave the variables on the list
    of those that the end of the next scope initializes. Public way: zeros, `zoo.io.weight_memory.zero_weight_init`.
    """
    import keras

    state = private("keras", "src.backend.common.global_state")
    pending = list(state.get_global_attribute("uninitialized_variables", []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        state.set_global_attribute("uninitialized_variables", pending)


def set_initial_value(variable: keras.Variable, array: np.ndarray) -> None:
    """Set a variable, also one that has no value yet.

    Since Keras 3.0. Public way: `Variable.assign`, which first draws the variable's random numbers.
    """
    if private(variable, "_value") is None:
        private(variable, "_initializer")
        variable._initializer = lambda shape, dtype=None: array
        private(variable, "_deferred_initialize")()
    else:
        variable.assign(array)


# ---------------------------------------------------------------------------------------------------- layers and graphs


def flatten_layers(layer: keras.layers.Layer, include_self: bool = True) -> list[keras.layers.Layer]:
    """List a layer, or model, and every layer inside it, each once, however deeply nested.

    Since Keras 3.0. Public way: none; `Model.layers` holds the outermost layers only, and a layer that keeps others as
    attributes has no list of them.
    """
    return list(private(layer, "_flatten_layers")(include_self=include_self))


def track_variables(layer: keras.layers.Layer, variables: Iterable[keras.Variable]) -> None:
    """Make variables that a built layer holds count as its own, so that a compiled step hands their new values out.

    For a stateful RNN, whose states Keras makes (`RNN._create_state_variables`) and does not count. Since Keras 3.0.
    Public way: assigning a variable as an attribute, which a built layer refuses.
    """
    tracker = private(layer, "_tracker")
    tracker.unlock()
    for variable in variables:
        private(layer, "_track_variable")(variable)
    tracker.lock()


def lora_base_kernel(layer: keras.layers.Layer) -> keras.Variable:
    """The kernel of a layer, without the low-rank product that `enable_lora` adds to it.

    Since Keras 3.0, where `layer.kernel` is the variable, or after `enable_lora` the sum, a tensor. Public way: none.
    """
    return private(layer, "_kernel")


def remove_lora(layer: keras.layers.Layer) -> None:
    """Undo `enable_lora` but for the values of the kernel: the layer is as it was built, and saved as such.

    Since Keras 3.0. Public way: `del layer.lora_kernel_a`, which collects garbage for each.
    """
    untrack = private(layer, "_untrack_variable")
    for name in ("lora_kernel_a", "lora_kernel_b"):
        untrack(getattr(layer, name))
        vars(layer).pop(name)
    layer.lora_enabled, layer.lora_rank, layer.lora_alpha = False, None, None


class GraphCall:
    """One call in the graph of a functional model.

    Attributes:
        operation: the layer, model or `keras.ops` operation.
        arguments: positional and keyword arguments, with symbolic tensors in them, as (list, dict).
        inputs, outputs: flat lists of the symbolic tensors.
    """

    def __init__(self, node: Any) -> None:
        self.operation, self.inputs, self.outputs = node.operation, node.input_tensors, node.outputs
        self.arguments, self._fill_in = (list(node.arguments.args), node.arguments.kwargs), node.arguments.fill_in

    def fill_in(self, values: Mapping[int, Any]) -> Any:
        """The arguments (args, kwargs) with {id of a symbolic tensor: value} in the symbolic tensors' places."""
        return self._fill_in(values)


def graph_calls(model: keras.Model) -> list[GraphCall]:
    """List the `GraphCall`s of a functional model or `keras.Function` in the order in which they run.

    Since Keras 3.0. Public way: `clone_model(call_function=)`, which follows a graph, but only with symbolic tensors
    and to make a new model of what comes out.
    """
    by_depth = private(model, "_nodes_by_depth")
    nodes = (node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth])
    return [GraphCall(node) for node in nodes if node.operation and not node.is_input]


def run_graph(
    model: keras.Model, inputs: Sequence[Tensor], call: Callable[..., Any], calls: Sequence[GraphCall] | None = None
) -> Any:
    """Run the graph of a functional model; each tensor is let go of after its last use (Keras keeps all to the end).

    Args:
        model: functional `keras.Model`.
        inputs: flat list of tensors, or symbolic tensors, in the order of `model.inputs`.
        call: function of (operation, *args, **kwargs) that returns the operation's outputs.
        calls: `graph_calls(model)`, if they are at hand.

    Returns:
        the outputs in the structure of the model's.
    """
    import keras

    calls = graph_calls(model) if calls is None else calls
    uses = collections.Counter(id(x) for one in calls for x in one.inputs)
    uses.update(id(x) for x in model.outputs)
    values = {id(x): value for x, value in zip(model.inputs, inputs)}
    for one in calls:
        args, kwargs = one.fill_in(values)
        outputs = call(one.operation, *args, **kwargs)
        values |= {id(x): value for x, value in zip(one.outputs, keras.tree.flatten(outputs))}
        del args, kwargs, outputs
        for x in one.inputs:
            uses[id(x)] -= 1
            if not uses[id(x)]:
                del values[id(x)]
    return keras.tree.pack_sequence_as(model.output, [values[id(x)] for x in model.outputs])


def functional_graph(model: keras.Model) -> keras.Model | None:
    """The functional model that a functional or sequential model is; None where `call` is the user's Python.

    It has no private name: the class of functional models is that of any one of them.
    """
    import keras

    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs, name=model.name) if model.built else None
    functional = _functional_class()
    return model if isinstance(model, functional) and type(model).call is functional.call else None


@functools.cache
def _functional_class():
    import keras

    probe = keras.Input((1,), name="probe")
    return type(keras.Model(probe, probe, name="probe"))


# ------------------------------------------------------------------------------------------------------------ precision


@contextlib.contextmanager
def float64_results() -> Iterator[None]:
    """In this context float64 stays float64 in operations of Keras, and is what new layers have.

    Keras on JAX and PyTorch else takes float32 for the result of an operation:
    `keras.backend.result_type("float64", "float32")` is float32 there since Keras 3.0, so that a BatchNormalization of
    dtype float64 computes in float32. Public way: none.
    """
    import keras

    table = private("keras", "src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE")
    original, is_jax = table.get("float64"), keras.backend.backend() == "jax"
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    if is_jax:
        import jax

        enabled = jax.config.read("jax_enable_x64")
        jax.config.update("jax_enable_x64", True)
    table["float64"] = "float64"
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        table["float64"] = original
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        if is_jax:
            jax.config.update("jax_enable_x64", enabled)


# ---------------------------------------------------------------------------------------------------------------- files


def deserialize_model(config: dict[str, Any]) -> keras.Model:
    """Build a model from the `config.json` of a .keras file, without weights.

    Layers that are shared inside the model stay shared, as in `keras.saving.load_model`, by its private scope. Since
    Keras 3.0. Public way: `keras.saving.load_model`, which reads the weights too.
    """
    import keras

    with private("keras", "src.saving.serialization_lib.ObjectSharingScope")():
        return keras.saving.deserialize_keras_object(config, safe_mode=True)


def load_weights(model: keras.Model, file: IO[bytes], read: Callable[[h5py.Dataset], Tensor | None]) -> None:
    """Load a model's weights from an HDF5 file that is an `io.BytesIO`, e.g. a part of another file.

    Since Keras 3.0. Public way: `Model.load_weights`, which takes the path of a whole file only.

    Args:
        model: built.
        file: HDF5.
        read: gives a weight for its dataset in the file, as a tensor of the backend; None where Keras is to read it.
    """
    saving = private("keras", "src.saving.saving_lib")
    load_state, get_dataset = private(saving, "_load_state"), private(saving, "safe_get_h5_dataset")
    keras_store: Any = private(saving, "H5IOStore")

    class Store(keras_store):
        def __getitem__(self, key):
            value = read(get_dataset(private(self, "_h5_entry_group"), key))
            return super().__getitem__(key) if value is None else value

    weights, failed, messages = Store(file, mode="r"), set(), {}
    try:
        load_state(
            model,
            weights_store=weights,
            assets_store=None,
            inner_path="",
            visited_saveables=set(),
            failed_saveables=failed,
            error_msgs=messages,
        )
    finally:
        weights.close()
    if failed:
        private(saving, "_raise_loading_failure")(messages)


@contextlib.contextmanager
def save_through_disk(limit: int) -> Iterator[None]:
    """Let Keras hold the weights of models of `limit` bytes and more in a temporary file while saving, not in memory.

    Where the free memory is twice their size, Keras 3.15 holds them there once more. Public way: none.
    """
    saving = private("keras", "src.saving.saving_lib")
    original, size = private(saving, "is_memory_sufficient"), private(saving, "weight_memory_size")
    saving.is_memory_sufficient = lambda model: original(model) and size(model.variables) < limit
    try:
        yield
    finally:
        saving.is_memory_sufficient = original


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Keep Keras on JAX and PyTorch from importing TensorFlow while saving and loading.

    Keras 3.15 imports it only to ask whether an object is one of its types (`serialize_keras_object`), which takes
    seconds and hundreds of megabytes. Public way: none, short of not installing TensorFlow.
    """
    import keras

    lazy_module = private("keras", "src.utils.module_utils.tensorflow")
    hide = keras.backend.backend() != "tensorflow" and "tensorflow" not in sys.modules
    if hide:
        private(lazy_module, "_available")
        lazy_module._available = False
    try:
        yield
    finally:
        if hide:
            lazy_module._available = None


# ---------------------------------------------------------------------------------------------------- several processes


@contextlib.contextmanager
def without_ddp() -> Iterator[None]:
    """Keep Keras on PyTorch from distributing models itself while `torch.distributed` is initialized.

    Since Keras 3.16 (keras #23316): `fit`, `evaluate` and `predict` wrap the model in `DistributedDataParallel`, and
    metrics are summed over the processes. That leaves out all but one of the variables that share a path, as layers of
    one name in two nested models do, so that the processes drift apart; it refuses models of which a step does not use
    every weight; and a process that predicts alone, as the one that writes samples, waits for the others for ever.
    Earlier releases have nothing to keep back. Public way: none.
    """
    import keras

    if keras.backend.backend() != "torch" or version() < (3, 16):
        yield
        return
    trainer = private("keras", "src.backend.torch.trainer.Trainer")
    originals = {name: private(trainer, name) for name in ("_initialize_ddp", "get_metrics_result")}
    trainer._initialize_ddp = lambda self: None
    trainer.get_metrics_result = super(trainer, trainer).get_metrics_result  # that of every backend
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(trainer, name, original)


def build_compiled(model: keras.Model, batch: Any) -> None:
    """Build the metrics, the loss and the optimizer of a compiled model for the shapes of a batch, without computing.

    `fit` does so with the first batch of this process, which is a part of the batch where there are several.

    Since Keras 3.0. Public way: `Model.train_on_batch`, which takes a step.

    Args:
        model: compiled and built.
        batch: arrays x, (x, y) or (x, y, sample_weight), of a global batch.
    """
    private(model, "_symbolic_build")(data_batch=batch)


def shuffled_batch_sampler(num_rows: int, batch_size: int) -> tuple[Iterable[list[int]], Callable[[], None]]:
    """The orders of rows in which `fit` on PyTorch takes arrays, as Keras draws them.

    Of PyTorch's global random state in Keras 3.15, of the number of the epoch since 3.16. Public way: none.

    Returns:
        (sampler, next_order): the lists of indices of one epoch's batches, and a function to call before each epoch.
    """
    adapter = private("keras", "src.trainers.data_adapters.array_data_adapter.ArrayDataAdapter")
    adapter = adapter(np.arange(num_rows), batch_size=batch_size, shuffle=True)
    return private(adapter, "get_torch_dataloader")().batch_sampler, private(adapter, "on_epoch_end")


def fit_batches(x: Any, y: Any = None, **options: Any) -> Iterator[Any]:
    """The batches that `Model.fit` takes in its first epoch, shuffled as it shuffles them on this backend.

    Since Keras 3.0. Public way: none, `fit` keeps its data adapters to itself.

    Args:
        x: as `fit` takes it: arrays, a dataset, a `PyDataset`, a generator.
        y: as `fit` takes it.
        **options: sample_weight, batch_size, steps_per_epoch, shuffle, class_weight.

    Returns:
        iterator over (x,), (x, y) or (x, y, sample_weight) in the backend's tensors or arrays.
    """
    import keras

    adapter = private("keras", "src.trainers.data_adapters.get_data_adapter")(x=x, y=y, **options)
    adapter.on_epoch_begin()
    method = {"torch": "get_torch_dataloader", "tensorflow": "get_tf_dataset"}.get(keras.backend.backend())
    yield from private(adapter, method or "get_jax_iterator")()


# ----------------------------------------------------------------------------------------------------------- optimizers


def clip_summed_gradients(optimizer_class: Any) -> Any:
    """Class decorator: clip the gradients of the whole batch, not those of each `tf.distribute` replica.

    Keras 3.15 on TensorFlow clips each replica's gradients, then sums them. Public way: none.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return optimizer_class
    clip = private(optimizer_class, "_clip_gradients")
    all_reduce = private(optimizer_class, "_all_reduce_sum_gradients")

    def clip_gradients(self, gradients):
        return clip(self, [gradient for gradient, _ in all_reduce(self, [(g, None) for g in gradients])])

    optimizer_class._clip_gradients = clip_gradients
    # Called after clipping, when the sums have been made.
    optimizer_class._all_reduce_sum_gradients = lambda self, grads_and_vars: grads_and_vars
    return optimizer_class


def update_variables_at_once(optimizer_class: Any) -> Any:
    """Class decorator: on PyTorch, the class updates by its method `update_variables`, of lists.

    Since Keras 3.0. Public way: `update_step`, which is called for one variable after another.
    """
    if (name := _update_method()) != "update_step":
        private(optimizer_class, name)
        setattr(optimizer_class, name, lambda self, *args: self.update_variables(*args))
    return optimizer_class


def adam_slots(
    optimizer: keras.optimizers.Optimizer, variable: keras.Variable
) -> tuple[keras.Variable, keras.Variable]:
    """(first, second) moment variables that a `keras.optimizers.Adam` keeps for a model's variable.

    Since Keras 3.0. Public way: `Optimizer.variables`, a flat list in no documented order.
    """
    index = private(optimizer, "_get_variable_index")(variable)
    return private(optimizer, "_momentums")[index], private(optimizer, "_velocities")[index]


def replaced_update_step(optimizer: keras.optimizers.Optimizer) -> Callable[..., None] | None:
    """The function that `replace_update_step` gave an optimizer; None without one."""
    return vars(optimizer).get(_update_method())


def replace_update_step(optimizer: keras.optimizers.Optimizer, update: Callable[..., None] | None) -> None:
    """Give one optimizer object another update of variables; what Keras does before and after stays.

    Since Keras 3.0. Public way: a class derived from the optimizer's, which the file of a compiled model would name.

    Args:
        update: function (gradient, variable, learning rate), on PyTorch of lists of the first two; None for the
            optimizer's own.
    """
    name = _update_method()
    private(type(optimizer), name)
    if update is None:
        vars(optimizer).pop(name, None)
    else:
        vars(optimizer)[name] = update


def _update_method():
    import keras

    return "_backend_update_step" if keras.backend.backend() == "torch" else "update_step"
