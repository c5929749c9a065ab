"""Faster recurrent layers for the same weights and files: what `use_fast_paths` puts into LSTM and GRU.

Stock Keras 3.15 multiplies the inputs of each time step by the kernel inside the loop over time. Here all steps are
projected by one matrix product before the loop, and the loop is what suits the backend:

- PyTorch: its own `lstm` and `gru` kernels, those behind `torch.nn.LSTM` and `torch.nn.GRU`; Keras uses them on CUDA
  only.
- JAX: one `lax.scan`.
- TensorFlow: the loop written out (up to `LONGEST_UNROLLED` steps, the length of a training batch), which costs a few
  seconds of tracing and saves the bookkeeping of `tf.while_loop`. Longer or open lengths keep the stock loop.

Letters: B batch, T steps, d features, h units. Gates in Keras' order: LSTM input, forget, candidate, output (i f g o);
GRU update, reset, candidate (z r n).
"""

import functools

import keras
from keras import layers

LONGEST_UNROLLED = 256


def fast_recurrence(layer):
    """The replacement of a recurrent layer's `inner_loop` on this backend, or None where the stock one stays."""
    if not _plain(layer):
        return None
    kind = "lstm" if type(layer) is layers.LSTM else "gru"
    fast = {"torch": _TORCH, "jax": _JAX, "tensorflow": _TENSORFLOW}[keras.backend.backend()][kind]
    return functools.partial(_masked_or, fast, layer, functools.partial(type(layer).inner_loop, layer))


def _plain(layer):
    """Whether the layer computes the usual equations, with nothing between."""
    cell = getattr(layer, "cell", None)
    return (
        type(layer) in (layers.LSTM, layers.GRU)
        and cell.use_bias
        and cell.activation is keras.activations.tanh
        and cell.recurrent_activation is keras.activations.sigmoid
        and getattr(cell, "reset_after", True)
        and not (cell.dropout or cell.recurrent_dropout or layer.go_backwards)
        and layer.compute_dtype == layer.variable_dtype
    )


def _masked_or(fast, layer, stock, sequences, initial_state, mask, training=False):
    """The fast loop where nothing is masked and the length suits it, else the stock one."""
    masked = any(part is not None for part in keras.tree.flatten(mask))
    steps = sequences.shape[1]
    unsuited = keras.backend.backend() == "tensorflow" and (steps is None or steps > LONGEST_UNROLLED)
    if masked or unsuited:
        return stock(sequences, initial_state, mask, training)
    cell, states = layer.cell, keras.tree.flatten(initial_state)
    if layer.stateful and keras.backend.backend() == "torch":
        # Keras writes the new states over the old ones before the backward pass, which needs the old ones.
        states = [state.clone() for state in states]
    weights = (cell.kernel.value, cell.recurrent_kernel.value, cell.bias.value)
    outputs, new = fast(sequences, states, *weights)  # (B, T, h)
    return outputs[:, -1], outputs, new


def _torch_lstm(x, states, kernel, recurrent_kernel, bias):
    import torch

    weights = [kernel.t(), recurrent_kernel.t(), bias, torch.zeros_like(bias)]  # both orders are i f g o
    outputs, h, c = torch._VF.lstm(x, tuple(s[None] for s in states), weights, True, 1, 0.0, False, False, True)
    return outputs, [h[0], c[0]]


def _torch_gru(x, states, kernel, recurrent_kernel, bias):
    import torch

    def reset_first(t):
        z, r, n = t.chunk(3, dim=-1)
        return torch.cat([r, z, n], dim=-1)

    weights = [reset_first(kernel).t(), reset_first(recurrent_kernel).t(), *reset_first(bias)]
    outputs, h = torch._VF.gru(x, states[0][None], weights, True, 1, 0.0, False, False, True)
    return outputs, [h[0]]


def _jax_lstm(x, states, kernel, recurrent_kernel, bias):
    import jax
    import jax.numpy as jnp

    def step(state, projected):
        h, c = state
        i, f, g, o = jnp.split(projected + h @ recurrent_kernel, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    states, outputs = jax.lax.scan(step, tuple(states), jnp.swapaxes(x @ kernel + bias, 0, 1))
    return jnp.swapaxes(outputs, 0, 1), list(states)


def _jax_gru(x, states, kernel, recurrent_kernel, bias):
    import jax
    import jax.numpy as jnp

    def step(h, projected):
        xz, xr, xn = jnp.split(projected, 3, axis=-1)
        hz, hr, hn = jnp.split(h @ recurrent_kernel + bias[1], 3, axis=-1)
        z, r = jax.nn.sigmoid(xz + hz), jax.nn.sigmoid(xr + hr)
        h = z * h + (1 - z) * jnp.tanh(xn + r * hn)
        return h, h

    state, outputs = jax.lax.scan(step, states[0], jnp.swapaxes(x @ kernel + bias[0], 0, 1))
    return jnp.swapaxes(outputs, 0, 1), [state]


def _tensorflow_lstm(x, states, kernel, recurrent_kernel, bias):
    import tensorflow as tf

    recurrent_kernel = tf.convert_to_tensor(recurrent_kernel)
    (h, c), outputs = states, []
    for projected in tf.unstack(tf.tensordot(x, kernel, 1) + bias, axis=1):
        i, f, g, o = tf.split(projected + tf.matmul(h, recurrent_kernel), 4, axis=-1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(c)
        outputs.append(h)
    return tf.stack(outputs, axis=1), [h, c]


def _tensorflow_gru(x, states, kernel, recurrent_kernel, bias):
    import tensorflow as tf

    recurrent_kernel, bias = tf.convert_to_tensor(recurrent_kernel), tf.convert_to_tensor(bias)
    h, outputs = states[0], []
    for projected in tf.unstack(tf.tensordot(x, kernel, 1) + bias[0], axis=1):
        xz, xr, xn = tf.split(projected, 3, axis=-1)
        hz, hr, hn = tf.split(tf.matmul(h, recurrent_kernel) + bias[1], 3, axis=-1)
        z, r = tf.sigmoid(xz + hz), tf.sigmoid(xr + hr)
        h = z * h + (1 - z) * tf.tanh(xn + r * hn)
        outputs.append(h)
    return tf.stack(outputs, axis=1), [h]


_TORCH = {"lstm": _torch_lstm, "gru": _torch_gru}
_JAX = {"lstm": _jax_lstm, "gru": _jax_gru}
_TENSORFLOW = {"lstm": _tensorflow_lstm, "gru": _tensorflow_gru}
