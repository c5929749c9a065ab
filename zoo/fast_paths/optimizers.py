"""Keras' Adam and AdamW by the kernel that updates a variable in one pass over memory, with Keras' numbers.

    m <- b1·m + (1 - b1)·g,    v <- b2·v + (1 - b2)·g²
    w <- w - lr · sqrt(1 - b2^t) / (1 - b1^t) · m / (sqrt(v) + eps)

Keras 3.15 makes a pass of each operation: on TensorFlow one variable after another, on PyTorch by `torch._foreach_*`.
TensorFlow's `ResourceApplyAdam` is this equation; the gradient of an `Embedding`, which comes there in rows, keeps the
update of Keras. PyTorch's fused Adam adds epsilon to sqrt(v / (1 - b2^t)), so that epsilon is divided by sqrt(1 - b2^t)
here. On JAX, XLA makes one pass of it, and nothing is replaced.

Weight decay, clipping, moving averages and the accumulation of gradients are Keras', and so are all variables.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras

from zoo.compat.keras import adam_slots, replace_update_step, replaced_update_step
from zoo.typing import Tensor

MEANS = {"tensorflow": "ResourceApplyAdam", "torch": "fused Adam"}


def fuse(optimizer: keras.optimizers.Optimizer | None) -> None:
    """Have an optimizer object update variables by the backend's fused kernel, if it is Keras' own Adam or AdamW.

    Args:
        optimizer: of a compiled model; None for none.
    """
    optimizer = innermost(optimizer)
    if optimizer is not None and not why_not(optimizer) and replaced_update_step(optimizer) is None:
        update = {"tensorflow": _update_tensorflow, "torch": _update_torch}[keras.backend.backend()]
        replace_update_step(optimizer, functools.partial(update, optimizer))


def unfuse(optimizer: keras.optimizers.Optimizer | None) -> None:
    """Take `fuse` back.

    Args:
        optimizer: of a compiled model; None for none.
    """
    optimizer = innermost(optimizer)
    if optimizer is not None and replaced_update_step(optimizer) is not None:
        replace_update_step(optimizer, None)


def innermost(optimizer: Any) -> Any:
    """The optimizer that a `keras.optimizers.LossScaleOptimizer` holds, or the optimizer itself.

    Args:
        optimizer: of a compiled model; None for none.

    Returns:
        the optimizer that updates the weights, or None.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)


def why_not(optimizer: keras.optimizers.Optimizer) -> str:
    """Why an optimizer has no fused update on this backend.

    Args:
        optimizer: any.

    Returns:
        the reason in a few words; "" where it has one.
    """
    kind = type(optimizer)
    if kind.__name__ not in ("Adam", "AdamW") or not kind.__module__.startswith("keras."):
        return "no fused update: not Keras' Adam or AdamW"
    if keras.backend.backend() not in MEANS:
        return "XLA fuses its update already"
    return "amsgrad" if optimizer.amsgrad else ""


def _update_tensorflow(optimizer, gradient, variable, learning_rate):
    import tensorflow as tf

    if isinstance(gradient, tf.IndexedSlices):  # of an Embedding: Keras adds the squares of rows that come twice
        return type(optimizer).update_step(optimizer, gradient, variable, learning_rate)
    return apply_adam_tensorflow(optimizer, gradient, variable, learning_rate)


def apply_adam_tensorflow(
    optimizer: keras.optimizers.Optimizer,
    gradient: Tensor,
    variable: Any,
    learning_rate: Tensor,
    *,
    correct_epsilon: bool = False,
) -> Any:
    """Update a variable and its two moments by TensorFlow's `ResourceApplyAdam`, the equation above.

    Args:
        optimizer: Keras' Adam, or of a class derived from it.
        gradient: of the variable.
        variable: `keras.Variable`, or under a tf.distribute strategy the tf.Variable itself.
        learning_rate: scalar.
        correct_epsilon: multiply epsilon by sqrt(1 - b2^t), which gives Adam as PyTorch defines it.

    Returns:
        the operation.
    """
    import tensorflow as tf

    slots = adam_slots(optimizer, variable)
    # Under a tf.distribute strategy Keras hands over the tf.Variable itself.
    variable, m, v = (one.value if isinstance(one, keras.Variable) else one for one in (variable, *slots))
    dtype = variable.dtype
    step = tf.cast(optimizer.iterations + 1, dtype)
    beta_1, beta_2 = tf.cast(optimizer.beta_1, dtype), tf.cast(optimizer.beta_2, dtype)
    beta_2_power = tf.pow(beta_2, step)
    epsilon = optimizer.epsilon * tf.sqrt(1 - beta_2_power) if correct_epsilon else tf.cast(optimizer.epsilon, dtype)
    return tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=m.handle,
        v=v.handle,
        beta1_power=tf.pow(beta_1, step),
        beta2_power=beta_2_power,
        lr=tf.cast(learning_rate, dtype),
        beta1=beta_1,
        beta2=beta_2,
        epsilon=epsilon,
        grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
    )


def _update_torch(optimizer, gradients, variables, learning_rate):
    step = float(keras.ops.convert_to_numpy(optimizer.iterations)) + 1
    epsilon = optimizer.epsilon / math.sqrt(1 - optimizer.beta_2**step)
    apply_adam_torch(optimizer, gradients, variables, learning_rate, epsilon=epsilon)


def apply_adam_torch(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Tensor],
    variables: Sequence[keras.Variable],
    learning_rate: Tensor,
    *,
    epsilon: float,
    l2_penalty: float = 0.0,
) -> None:
    """Update variables and their moments by PyTorch's fused kernel, in one call for each dtype and device.

    Args:
        optimizer: Keras' Adam, or of a class derived from it.
        gradients: of the variables.
        variables: those of a model.
        learning_rate: scalar.
        epsilon: added to the root of the corrected second moment.
        l2_penalty: multiplied by a weight and added to its gradient.
    """
    import torch

    from zoo.compat.torch import fused_adam

    groups: dict[Any, list[Any]] = {}
    with torch.no_grad():
        for gradient, variable in zip(gradients, variables):
            weight, slots = variable.value, [slot.value for slot in adam_slots(optimizer, variable)]
            for slot in slots:  # a fast path may have reordered the weight in memory
                slot.data = _ordered_like(weight, slot)
            row = (weight, _ordered_like(weight, gradient.to(weight.dtype)), *slots)
            groups.setdefault((weight.device, weight.dtype), []).append(row)
        # A variable or, where gradients of several steps are added up, a tensor.
        step = keras.ops.convert_to_tensor(optimizer.iterations).to(torch.float32) + 1
        for (device, _), rows in groups.items():
            fused_adam(  # which goes through the memory of all of these alike
                *(list(part) for part in zip(*rows)),
                [],
                [step.to(device)] * len(rows),
                lr=float(learning_rate),
                beta1=optimizer.beta_1,
                beta2=optimizer.beta_2,
                weight_decay=l2_penalty,
                eps=epsilon,
                amsgrad=False,
                maximize=False,
            )


def _ordered_like(weight, tensor):
    """A tensor's values in the order in memory that a weight of its shape has."""
    import torch

    if tensor.stride() == weight.stride():
        return tensor
    return torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)
