"""One process's part of a certificate: run a model, its gradients, single layers and an optimizer step on one backend.

Everything goes in and out as NumPy arrays. The loss is the mean of each output times a fixed random tensor, so its
gradient at the outputs (the cotangent) is that tensor over the number of values. `Recorder` stands between Keras and
its layers: it keeps what each call was given and gave, and can round both, and the gradient on its way back, to another
precision, or perturb them at random by as much.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from zoo.compat.keras import flatten_layers, functional_graph
from zoo.errors import UserError, error_summary
from zoo.parity.units import BITS

MODES = ("inference", "training")
PERTURBATION = 4.0  # of a random perturbation, in half spacings: a layer is many operations, each of which rounds


@dataclasses.dataclass
class Call:
    """One call of a layer or operation inside a model.

    Attributes:
        path: its name after those of the models it is nested in; "#2" for its second call.
        operation: the layer or `keras.ops` operation.
        args: nest of positional arguments.
        kwargs: keyword arguments, the mask among them.
        outputs: nest of what it gave, rounded if the recorder rounds.
        is_composite: whether calls inside it are recorded too.
        parent: index of the recorded call that it was made in; None for none.
    """

    path: str
    operation: keras.Operation
    args: tuple
    kwargs: dict[str, Any]
    outputs: Any = None
    is_composite: bool = False
    parent: int | None = None


def is_entered(operation: keras.Operation) -> bool:
    """Whether the calls inside an operation are looked at one by one: models, and layers of one's own with layers in.

    Args:
        operation: a layer, model or operation.

    Returns:
        False for Keras' own layers, which are looked at as a whole.
    """
    if not isinstance(operation, keras.layers.Layer):
        return False
    if isinstance(operation, keras.Model):
        return True
    is_stock = type(operation).__module__.partition(".")[0] == "keras"
    return not is_stock and bool(flatten_layers(operation, include_self=False))


class Recorder:
    """Keeps the calls that are made while it is active.

    Args:
        root: the model that is called; it is no call itself.
        tap: function (index of the call, index of the output, tensor) that gives the tensor to go on with; None for the
            tensor itself. It is called for outputs of floating point.
        inside: whether the tap takes the outputs of layers inside Keras' own layers as well; then no call is kept.
    """

    def __init__(self, root: keras.Model, tap: Callable | None = None, *, inside: bool = False) -> None:
        self.root, self.tap, self.inside, self.calls = root, tap, inside, []
        self._closed, self._prefix, self._parent = False, "", None
        self._times: dict[str, int] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[list[Call]]:
        """In this context calls are recorded; its value is the list of them."""
        original, recorder = keras.Operation.__call__, self

        def call(operation, *args, **kwargs):
            return recorder._record(original, operation, args, kwargs)

        keras.Operation.__call__ = call
        try:
            yield self.calls
        finally:
            keras.Operation.__call__ = original

    def _record(self, original, operation, args, kwargs):
        symbolic = any(isinstance(x, keras.KerasTensor) for x in tree.flatten((args, kwargs)))
        if self._closed or symbolic or operation is self.root:
            return original(operation, *args, **kwargs)
        if self.inside:
            return self._tapped(original(operation, *args, **kwargs), 0)
        entered = is_entered(operation)
        if entered and isinstance(operation, keras.Model) and functional_graph(operation) is not None:
            return self._inside(original, operation, args, kwargs, self._parent)  # wiring and nothing else
        call = Call(self._path(operation), operation, args, kwargs, is_composite=entered, parent=self._parent)
        index = len(self.calls)
        self.calls.append(call)
        if entered:
            outputs = self._inside(original, operation, args, kwargs, index)
        else:
            self._closed = True
            try:
                outputs = original(operation, *args, **kwargs)
            finally:
                self._closed = False
        if not entered:
            outputs = self._tapped(outputs, index)
        call.outputs = outputs
        return outputs

    def _tapped(self, outputs, index):
        if self.tap is None:
            return outputs
        flat = [self.tap(index, i, x) if is_float(x) else x for i, x in enumerate(tree.flatten(outputs))]
        return tree.pack_sequence_as(outputs, flat)

    def _inside(self, original, operation, args, kwargs, parent):
        outer = self._prefix, self._parent
        self._prefix, self._parent = f"{self._prefix}{operation.name}/", parent
        try:
            return original(operation, *args, **kwargs)
        finally:
            self._prefix, self._parent = outer

    def _path(self, operation):
        name = operation.name
        if not isinstance(operation, keras.layers.Layer):  # Keras numbers these by all it made in the process
            name = re.sub(r"_\d+$", "", name)
        path = self._prefix + name
        self._times[path] = times = self._times.get(path, 0) + 1
        return path if times == 1 else f"{path} #{times}"


def pack_inputs(model: keras.Model, tensors: Sequence[Any]) -> Any:
    """A flat list of tensors in the structure in which a model takes its inputs.

    Args:
        model: a built model.
        tensors: in the order of `zoo.parity.inputs.input_tensors`.

    Returns:
        what to call the model with.
    """
    graph = functional_graph(model)
    if graph is not None:
        return keras.tree.pack_sequence_as(graph.input, list(tensors))
    return tensors[0] if len(tensors) == 1 else list(tensors)


def is_tensor(x: Any) -> bool:
    """Whether something has a shape and a dtype.

    Args:
        x: anything.

    Returns:
        True for tensors, arrays, variables and symbolic tensors.
    """
    return hasattr(x, "shape") and hasattr(x, "dtype")


def is_float(x: Any) -> bool:
    """Whether something is a tensor of floating point.

    Args:
        x: anything.

    Returns:
        False for tensors of integers too.
    """
    return is_tensor(x) and "float" in keras.backend.standardize_dtype(x.dtype)


def round_to(x: Any, dtype: str) -> Any:
    """Round a tensor to a narrower precision, keeping its dtype; the gradient on its way back is rounded as well.

    Args:
        x: tensor of floating point.
        dtype: "float32", "bfloat16" or "float16".

    Returns:
        tensor of the same dtype.
    """
    if keras.backend.backend() == "jax":  # XLA takes a cast there and back away
        import jax

        bits = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}[dtype]
        return jax.lax.reduce_precision(x, *bits)
    return keras.ops.cast(keras.ops.cast(x, dtype), keras.backend.standardize_dtype(x.dtype))


def perturb(x: Any, dtype: str, rng: np.random.Generator) -> Any:
    """Multiply numbers, and the gradient on its way back, by 1 + d with random d of at most `PERTURBATION` roundings.

    That is Monte Carlo arithmetic (Parker 1997, random rounding and precision bounding) with a layer in place of an
    operation. Whole numbers stay: they are ids, counts, masks, or the zeros that a ReLU or padding leaves.

    Args:
        x: tensor of floating point.
        dtype: "float32", "bfloat16" or "float16", whose rounding it is.
        rng: draws d.

    Returns:
        tensor of the dtype of x.
    """
    if None in tuple(x.shape):  # inside a loop of TensorFlow
        return round_to(x, dtype)
    largest, own = PERTURBATION * 2.0 ** -BITS[dtype], keras.backend.standardize_dtype(x.dtype)
    noise = keras.ops.convert_to_tensor(rng.uniform(-largest, largest, tuple(x.shape)), dtype=own)
    return x * (1 + keras.ops.where(keras.ops.equal(x, keras.ops.floor(x)), keras.ops.zeros_like(noise), noise))


def silence(model: keras.Model) -> list[str]:
    """Switch dropout, noise and random augmentation off, in training too, where each backend draws its own numbers.

    Args:
        model: any built model; it stays so.

    Returns:
        names of the layers.
    """
    silenced = []
    for layer in flatten_layers(model):
        for name in ("dropout", "recurrent_dropout"):
            if isinstance(getattr(layer, name, None), float) and getattr(layer, name) > 0:
                try:
                    setattr(layer, name, 0.0)
                except AttributeError:  # of an RNN layer, which shows that of its cell
                    continue
                silenced.append(layer.name)
        draws = any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())
        if draws and not [v for v in layer.weights if "seed" not in v.path] and "training" in _parameters(layer):
            layer.call = _without_training(layer)
            silenced.append(layer.name)
    return list(dict.fromkeys(silenced))


def _parameters(layer):
    return inspect.signature(layer.call).parameters


def _without_training(layer):
    def call(*args, training=None, **kwargs):
        return type(layer).call(layer, *args, training=False, **kwargs)

    return call


# ------------------------------------------------------------------------------------------------------ differentiation


def differentiate(
    compute: Callable,
    tensors: Sequence[Any],
    variables: Sequence[keras.Variable],
    states: Sequence[keras.Variable],
    *,
    compiled: bool = True,
) -> tuple[Any, list, list, list, list]:
    """Compute something once, and the gradients of what it sums up to.

    Args:
        compute: function of the list of tensors that gives (loss, nest of tensors to keep, list of tensors inside the
            computation whose gradients are wanted). On JAX it is traced twice, with a `tap` that adds zeros.
        tensors: what to differentiate by, beside the variables.
        variables: trainable variables.
        states: variables that the computation may change; they are set back.
        compiled: on JAX, whether it is compiled as a whole.

    Returns:
        (kept, gradients by the tensors, gradients by the variables, gradients by the inner tensors, new states), NumPy
        arrays; zeros where nothing depends on it.
    """
    before = [to_numpy(v) for v in states]
    runs: dict[str, Callable] = {"tensorflow": _tensorflow, "torch": _torch}
    run = runs.get(keras.backend.backend(), functools.partial(_jax, compiled=compiled))
    kept, by_tensors, by_variables, inner, inner_gradients, after = run(compute, list(tensors), variables, states)
    for variable, value in zip(states, before):
        variable.assign(value)
    by_tensors = [_gradient(g, x) for g, x in zip(by_tensors, tensors)]
    by_variables = [_gradient(g, v) for g, v in zip(by_variables, variables)]
    inner_gradients = [_gradient(g, x) for g, x in zip(inner_gradients, inner)]
    kept = tree.map_structure(lambda x: to_numpy(x) if is_tensor(x) else x, kept)
    return kept, by_tensors, by_variables, inner_gradients, after


def to_numpy(x: Any) -> np.ndarray:
    """A tensor as an array of its own, bfloat16 as float32.

    Args:
        x: tensor or variable.

    Returns:
        NumPy array.
    """
    x = getattr(x, "value", x) if isinstance(x, keras.Variable) else x
    if hasattr(x, "detach"):
        x = x.detach()
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        x = keras.ops.cast(x, "float32")
    return np.array(keras.ops.convert_to_numpy(x))


def _gradient(gradient, like):
    return np.zeros(tuple(like.shape)) if gradient is None else to_numpy(gradient)


def _tensorflow(compute, tensors, variables, states):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss, kept, inner = compute(tensors, None)
    sources = [*tensors, *(v.value for v in variables), *inner]
    gradients = tape.gradient(loss, sources) if sources else []
    gradients = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    return kept, *_split(gradients, tensors, variables), inner, gradients[len(tensors) + len(variables) :], _now(states)


def _torch(compute, tensors, variables, states):
    import torch

    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    # A stateful RNN assigns the states that its gradient needs.
    keeps = torch.autograd.graph.allow_mutation_on_saved_tensors if states else contextlib.nullcontext
    with keeps():
        loss, kept, inner = compute(tensors, None)
        inner_sources = [x for x in inner if x.requires_grad]
        sources = [*tensors, *(v.value for v in variables), *inner_sources]
        gradients: list = [None] * len(sources)
        if sources and loss.requires_grad:
            gradients = list(torch.autograd.grad(loss, sources, allow_unused=True))
    found = dict(zip(map(id, inner_sources), gradients[len(tensors) + len(variables) :]))
    return kept, *_split(gradients, tensors, variables), inner, [found.get(id(x)) for x in inner], _now(states)


def _jax(compute, tensors, variables, states, compiled):
    import jax

    def run(tensors, values, deltas):
        mapping = [*zip(variables, values), *((v, v.value) for v in states)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            loss, kept, inner = compute(tensors, deltas)
        after = [scope.get_current_value(v) for v in states]
        arrays = [x for x in tree.flatten(kept) if is_tensor(x)]  # jit returns arrays alone
        structure.append((kept, [None if is_tensor(x) else x for x in tree.flatten(kept)]))
        return loss, (arrays, inner, [v.value if after_v is None else after_v for v, after_v in zip(states, after)])

    structure: list = []
    values = [v.value for v in variables]
    shapes = jax.eval_shape(lambda a, b: run(a, b, None)[1][1], tensors, values) if compiled else []
    deltas = [jax.numpy.zeros(x.shape, x.dtype) for x in shapes]
    gradient = jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)
    gradient = jax.jit(gradient) if compiled else gradient
    (_, (arrays, inner, after)), gradients = gradient(tensors, values, deltas)
    kept, others = structure[-1]
    arrays = iter(arrays)
    flat = [next(arrays) if other is None and is_tensor(x) else other for x, other in zip(tree.flatten(kept), others)]
    kept = tree.pack_sequence_as(kept, flat)
    return kept, gradients[0], gradients[1], inner, gradients[2], [to_numpy(x) for x in after]


def _split(gradients, tensors, variables):
    return gradients[: len(tensors)], gradients[len(tensors) : len(tensors) + len(variables)]


def _now(states):
    return [to_numpy(v) for v in states]


def seed_states(model: keras.layers.Layer) -> set[int]:
    """ids of the variables that random generators count with, which are no numbers of the model.

    Args:
        model: layer or model.

    Returns:
        set of `id`s.
    """
    generators = [value for layer in flatten_layers(model) for value in vars(layer).values()]
    return {id(g.state) for g in generators if isinstance(g, keras.random.SeedGenerator)}


def state_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The variables that a call may change, without those of random generators and metrics; states of RNNs too.

    Args:
        layer: layer or model.

    Returns:
        list of `keras.Variable`s.
    """
    seeds = seed_states(layer)
    found = [v for v in layer.non_trainable_variables if id(v) not in seeds and "seed_generator" not in v.path]
    for inner in flatten_layers(layer):
        if getattr(inner, "stateful", False):  # Keras does not count these variables
            found += [v for v in tree.flatten(inner.states) if isinstance(v, keras.Variable)]
    return list({id(v): v for v in found}.values())


def total(outputs: Any, cotangents: Sequence[np.ndarray]) -> Any:
    """The sum of outputs times cotangents, in the precision of the cotangents.

    Args:
        outputs: nest of tensors; those of integers are left out.
        cotangents: one array for each of the others.

    Returns:
        scalar tensor.
    """
    terms = []
    for x, cotangent in zip((x for x in tree.flatten(outputs) if is_float(x)), cotangents, strict=True):
        dtype = str(cotangent.dtype)
        terms.append(keras.ops.sum(keras.ops.cast(x, dtype) * keras.ops.convert_to_tensor(cotangent)))
    return sum(terms[1:], terms[0]) if terms else keras.ops.convert_to_tensor(np.float32(0))


# ------------------------------------------------------------------------------------------------------------ the probe


class Probe:
    """A model on this backend in one precision.

    Args:
        model: built, with dropout silenced.
        dtype: of float inputs and cotangents: "float64" for a reference, else "float32".
    """

    def __init__(self, model: keras.Model, dtype: str = "float32") -> None:
        self.model, self.dtype = model, dtype
        self.variables = list(model.trainable_variables)
        self.states = state_variables(model)

    def tensor(self, array: np.ndarray) -> Any:
        """An input as a tensor, floats in the precision of the probe.

        Args:
            array: of any dtype.

        Returns:
            tensor of this backend.
        """
        array = np.asarray(array)
        return keras.ops.convert_to_tensor(array.astype(self.dtype) if array.dtype.kind == "f" else array)

    def run(
        self,
        inputs: Sequence[np.ndarray],
        cotangents: Sequence[np.ndarray] | None,
        *,
        training: bool,
        rounding: str | None = None,
        draw: int | None = None,
        record: bool = False,
    ) -> dict[str, list]:
        """Run the whole model.

        Args:
            inputs: arrays in the order of the model's inputs.
            cotangents: arrays of the shapes of the float outputs; drawn from seed 0 if None.
            training: the `training` argument of the call.
            rounding: precision that every layer's output, and the gradient at it, are rounded to; None for none.
            draw: number of a random draw: perturb them and the inputs by as much instead, `perturb`; None to round.
            record: whether to keep what each call was given and the gradient at what it gave.

        Returns:
            dict of outputs, gradients (by the trainable variables), states (new values of the others); with `record`
            also paths, kinds, parents (of calls), call_inputs (list of arrays for each) and call_cotangents.
        """
        tensors = [self.tensor(x) for x in inputs]
        floats = [i for i, x in enumerate(tensors) if is_float(x)]
        if cotangents is None:
            cotangents = self.cotangents(self.outputs(inputs, training=training))
        cotangents = [np.asarray(x, self.dtype) for x in cotangents]
        recorded: list[Call] = []

        def compute(given, deltas):
            inexact = _inexact(rounding, draw)
            arguments = list(tensors)
            for index, x in zip(floats, given):
                arguments[index] = x if draw is None else inexact(x)
            inner, pending = [], list(deltas or ())

            def tap(_call, _output, x):
                x = inexact(x)
                if record:
                    if deltas is not None:
                        x = x + pending.pop(0)
                    inner.append(x)
                return x

            recorder = Recorder(self.model, tap if record or rounding else None, inside=not record)
            with recorder.active() if record or rounding else contextlib.nullcontext():
                outputs = self.model(pack_inputs(self.model, arguments), training=training)
            recorded[:] = recorder.calls
            kept = [tree.flatten(outputs)]
            if record:
                kept.append([[x for x in tree.flatten((c.args, c.kwargs)) if is_tensor(x)] for c in recorder.calls])
            return total(outputs, cotangents), kept, inner

        given = [tensors[i] for i in floats]
        kept, _, gradients, inner, states = differentiate(compute, given, self.variables, self.states)
        result = {"outputs": kept[0], "gradients": gradients, "states": states, "cotangents": cotangents}
        if record:
            result |= self._calls(recorded, kept[1], inner)
        return result

    def _calls(self, calls, inputs, inner):
        """What a recorded run keeps of its calls; gradients at their outputs in order."""
        inner, cotangents = iter(inner), []
        for call in calls:
            floats = [x for x in tree.flatten(call.outputs) if is_float(x)]
            cotangents.append(None if call.is_composite else [next(inner) for _ in floats])
        return {
            "paths": [call.path for call in calls],
            "kinds": [type(call.operation).__name__ for call in calls],
            "composite": [call.is_composite for call in calls],
            "parents": [call.parent for call in calls],
            "call_inputs": inputs,
            "call_cotangents": cotangents,
        }

    def outputs(self, inputs: Sequence[np.ndarray], *, training: bool = False) -> list[np.ndarray]:
        """The flat outputs of the model; states that training changes are set back.

        Args:
            inputs: arrays in the order of the model's inputs.
            training: the `training` argument of the call.

        Returns:
            list of arrays.
        """
        before = [to_numpy(v) for v in self.states]
        outputs = self.model(pack_inputs(self.model, [self.tensor(x) for x in inputs]), training=training)
        for variable, value in zip(self.states, before):
            variable.assign(value)
        return [to_numpy(x) for x in tree.flatten(outputs) if x is not None]

    def cotangents(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The fixed random tensor of each float output, over its number of values: the gradient of the loss there.

        Args:
            outputs: arrays; those of integers are left out.

        Returns:
            list of float32 arrays.
        """
        rng = np.random.default_rng(0)
        return [
            (rng.standard_normal(x.shape) / max(1, x.size)).astype("float32") for x in outputs if x.dtype.kind == "f"
        ]

    def calls(self, inputs: Sequence[np.ndarray], *, training: bool) -> list[Call]:
        """The calls of this backend's own run, in order, to be given other inputs by `run_call`.

        Args:
            inputs: arrays in the order of the model's inputs.
            training: the `training` argument of the call.

        Returns:
            list of `Call`s.
        """
        recorder = Recorder(self.model)
        before = [to_numpy(v) for v in self.states]
        with recorder.active() as calls:
            self.model(pack_inputs(self.model, [self.tensor(x) for x in inputs]), training=training)
        for variable, value in zip(self.states, before):
            variable.assign(value)
        return calls

    def run_call(
        self,
        call: Call,
        inputs: Sequence[np.ndarray],
        cotangents: Sequence[np.ndarray] | None,
        *,
        rounding: str | None = None,
        draw: int | None = None,
    ) -> dict[str, list]:
        """Call one layer with the inputs and the cotangent that another run had there.

        Args:
            call: of `calls`.
            inputs: arrays in the places of the tensors among its arguments.
            cotangents: of its float outputs; random ones if None.
            rounding: precision that the outputs and their gradients are rounded to; None for none.
            draw: number of a random draw: perturb inputs, outputs and gradients by as much instead; None to round.

        Returns:
            dict of outputs, input_gradients, gradients (by the layer's weights) and states.
        """
        flat = tree.flatten((call.args, call.kwargs))
        places = [i for i, x in enumerate(flat) if is_tensor(x)]
        tensors = {}
        for i, array in zip(places, inputs, strict=True):
            own = keras.backend.standardize_dtype(flat[i].dtype)
            tensors[i] = keras.ops.cast(keras.ops.convert_to_tensor(array), own)
        floats = [i for i in places if is_float(tensors[i])]
        is_layer = isinstance(call.operation, keras.layers.Layer)
        variables = list(call.operation.trainable_variables) if is_layer else []
        states = state_variables(call.operation) if is_layer else []

        def apply(given):
            inexact = _inexact(rounding, draw)
            arguments = given if draw is None else [inexact(x) for x in given]  # they have been rounded already
            values = {**tensors, **dict(zip(floats, arguments))}
            args, kwargs = tree.pack_sequence_as(
                (call.args, call.kwargs), [values.get(i, x) for i, x in enumerate(flat)]
            )
            recorder = Recorder(self.model, lambda _call, _output, x: inexact(x), inside=True)
            with recorder.active() if rounding else contextlib.nullcontext():
                return call.operation(*args, **kwargs)

        if cotangents is None:
            cotangents = self.cotangents([to_numpy(x) for x in tree.flatten(call.outputs) if is_tensor(x)])
        cotangents = [np.asarray(x, self.dtype) for x in cotangents]

        def compute(given, deltas):
            outputs = apply(given)
            return total(outputs, cotangents), [[x for x in tree.flatten(outputs) if is_tensor(x)]], []

        given = [tensors[i] for i in floats]
        kept, by_inputs, gradients, _, after = differentiate(compute, given, variables, states, compiled=False)
        return {"outputs": kept[0], "input_gradients": by_inputs, "gradients": gradients, "states": after}

    def step(self, optimizer: dict[str, Any], gradients: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Let a new optimizer take one step from given gradients; the weights are set back.

        Args:
            optimizer: its config, as `keras.optimizers.serialize` writes it.
            gradients: one for each trainable variable.

        Returns:
            the weights after the step, then the variables of the optimizer that are floats.
        """
        made = make_optimizer(optimizer)
        made.build(self.variables)
        before = [to_numpy(v) for v in self.variables]
        dtypes = [keras.backend.standardize_dtype(v.dtype) for v in self.variables]
        tensors = [keras.ops.cast(keras.ops.convert_to_tensor(g), d) for g, d in zip(gradients, dtypes)]
        made.apply(tensors, self.variables)
        after = [to_numpy(v) for v in self.variables]
        slots = [to_numpy(v) for v in made.variables if "float" in str(v.dtype) and "learning_rate" not in v.path]
        for variable, value in zip(self.variables, before):
            variable.assign(value)
        return after + slots


def _inexact(rounding, draw):
    """What arithmetic in a precision makes of a tensor: its rounding, or a random perturbation as large."""
    if rounding is None:
        return lambda x: x
    if draw is None:
        return lambda x: round_to(x, rounding)
    rng = np.random.default_rng(draw)
    return lambda x: perturb(x, rounding, rng)


def make_optimizer(config: dict[str, Any]) -> keras.optimizers.Optimizer:
    """An optimizer of its serialized config, whichever backend wrote that.

    Args:
        config: with class_name and config.

    Returns:
        `keras.optimizers.Optimizer`.

    Raises:
        UserError: if the class is unknown.
    """
    # A file saved on PyTorch names a module of that backend.
    config = config | {"module": "keras.optimizers"} if str(config.get("module")).startswith("keras.") else config
    try:
        return keras.optimizers.deserialize(config)
    except Exception as error:  # Keras raises many kinds
        raise UserError(
            f"The optimizer {config.get('class_name')!r} cannot be made ({error_summary(error)}): register its "
            "class in a file that --setup names."
        ) from error
