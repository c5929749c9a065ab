"""Outputs and gradients of a model on the backend of this process, as NumPy arrays."""

import keras
import numpy as np


def outputs_and_gradients(model, inputs, *, training=True):
    """(flat outputs, gradients of the trainable weights, other variables after the call).

    The gradient is that of a sum of all outputs, each times a number of its own. What the call does to other variables
    is taken back, and dropout is the same each time.
    """
    keras.utils.set_random_seed(0)  # on PyTorch, dropout without a seed of its own draws of the global state
    before = [np.array(v) for v in model.non_trainable_variables]
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    outputs, gradients = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}[keras.backend.backend()](
        model, inputs, training
    )
    after = [np.array(v) for v in model.non_trainable_variables]
    for variable, value in zip(model.non_trainable_variables, before):
        variable.assign(value)
    as_numpy = keras.ops.convert_to_numpy
    gradients = [
        np.zeros(v.shape) if gradient is None else as_numpy(gradient)
        for gradient, v in zip(gradients, model.trainable_variables)
    ]
    return [as_numpy(x) for x in keras.tree.flatten(outputs)], gradients, after


def largest_error(arrays, references):
    """max |array - reference| / max |reference|, over lists of arrays."""
    scale = max(np.abs(b.astype("float64")).max(initial=0) for b in references)
    return max(np.abs(a.astype("float64") - b).max(initial=0) for a, b in zip(arrays, references, strict=True)) / scale


def _loss(outputs):
    rng = np.random.default_rng(0)
    terms = []
    for x in keras.tree.flatten(outputs):
        numbers = keras.ops.convert_to_tensor(rng.normal(size=x.shape), keras.backend.standardize_dtype(x.dtype))
        terms.append(keras.ops.sum(x * numbers))
    return sum(terms[1:], terms[0])


def _torch(model, inputs, training):
    for variable in model.trainable_variables:  # `zero_grad` of a model does not know those of `enable_lora`
        variable.value.grad = None
    outputs = model(inputs, training=training)
    _loss(outputs).backward()
    return keras.tree.map_structure(lambda x: x.detach(), outputs), [v.value.grad for v in model.trainable_variables]


def _tensorflow(model, inputs, training):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        outputs = model(inputs, training=training)
        loss = _loss(outputs)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    return outputs, [None if g is None else tf.convert_to_tensor(g) for g in gradients]


def _jax(model, inputs, training):
    import jax

    @jax.jit
    def run(trainable, other, inputs):
        def loss(trainable):
            outputs, after = model.stateless_call(trainable, other, inputs, training=training)
            return _loss(outputs), (outputs, after)

        return jax.grad(loss, has_aux=True)(trainable)

    values = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]
    gradients, (outputs, after) = run(*values, inputs)
    for variable, value in zip(model.non_trainable_variables, after):
        variable.assign(value)
    return outputs, gradients
