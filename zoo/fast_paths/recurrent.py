"""Faster recurrent layers for the same weights and files: what `use_fast_paths` puts into LSTM and GRU.

Stock Keras 3.15 multiplies the inputs of each time step by the kernel inside the loop over time, and differentiates
that loop step by step, so that the gradient of the recurrent kernel is a sum of T products that each pass over all of
it. Here all steps are projected by one product before the loop, and the gradient is written by hand: the loop back
through time yields only what reaches the gates, and the recurrent kernel's gradient is one product after it.

    LSTM   i, f, o = sigmoid, g = tanh of (projected + h U)      c' = f·c + i·g        h' = o·tanh(c')
    GRU    z, r = sigmoid(projected + a),  a = h U + b           n = tanh(projected + r·a)      h' = z·h + (1 - z)·n

The loop is what suits the backend: on JAX `lax.scan`; on TensorFlow written out (up to `_MAX_UNROLLED_STEPS` steps, the
length of a training batch), which costs a few seconds of tracing and saves the bookkeeping of `tf.while_loop`, while
longer or open lengths keep the stock loop; on PyTorch its own `lstm`, whose gradient is fused already (Keras uses it on
CUDA only), and for a GRU on a CPU, where it is not, a Python loop over in-place kernels.

Letters: B batch, T steps, d features, h units, U the recurrent kernel (h, gates·h). Gates in Keras' order: LSTM input,
forget, candidate, output (i f g o); GRU update, reset, candidate (z r n).
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

_MAX_UNROLLED_STEPS = 256


def fast_inner_loop(layer: keras.layers.RNN) -> Callable[..., Any] | None:
    """The fast `inner_loop` of a recurrent layer on this backend.

    Args:
        layer: a stock `LSTM` or `GRU`.

    Returns:
        a function with the arguments of `layer.inner_loop`, or None where the stock one stays.
    """
    if not _is_plain(layer):
        return None
    kind = "lstm" if type(layer) is layers.LSTM else "gru"
    fast = {"torch": _TORCH, "jax": _JAX, "tensorflow": _TENSORFLOW}[keras.backend.backend()][kind]
    return functools.partial(_inner_loop, fast, layer, functools.partial(type(layer).inner_loop, layer))


def fast_step(layer: keras.layers.RNN) -> Callable[..., Any] | None:
    """One time step of a recurrent layer as plain calls of PyTorch, for generation.

    A call of Keras' cell costs a hundred microseconds of Python, and building a model of it imports PyTorch's compiler.

    Args:
        layer: a stock `LSTM` or `GRU`.

    Returns:
        a function (x (B, d), old states, each (B, h)) -> list of new states, the first of which is the output; None on
        other backends, and for a layer that does not compute the equations above.
    """
    if keras.backend.backend() != "torch" or not _is_plain(layer):
        return None
    step = _torch_lstm_step if type(layer) is layers.LSTM else _torch_gru_step
    cell = layer.cell
    return lambda x, states: step(x, states, cell.kernel.value, cell.recurrent_kernel.value, cell.bias.value)


def _is_plain(layer):
    """Whether the layer computes the equations above, with biases and without dropout."""
    cell = getattr(layer, "cell", None)
    return (
        type(layer) in (layers.LSTM, layers.GRU)
        and cell is not None
        and cell.use_bias
        and cell.activation is keras.activations.tanh
        and cell.recurrent_activation is keras.activations.sigmoid
        and getattr(cell, "reset_after", True)
        and not (cell.dropout or cell.recurrent_dropout or layer.go_backwards)
        and layer.compute_dtype == layer.variable_dtype
    )


def _inner_loop(fast, layer, stock, sequences, initial_state, mask, training=False):
    """The fast loop where nothing is masked and the sequence is not too long, else the stock one."""
    masked = any(part is not None for part in keras.tree.flatten(mask))
    steps = sequences.shape[1]
    too_long = keras.backend.backend() == "tensorflow" and (steps is None or steps > _MAX_UNROLLED_STEPS)
    if masked or too_long:
        return stock(sequences, initial_state, mask, training)
    cell, states = layer.cell, keras.tree.flatten(initial_state)
    if layer.stateful and keras.backend.backend() == "torch":
        # Keras writes the new states over the old ones before the backward pass, which needs the old ones.
        states = [state.clone() for state in states]
    weights = (cell.kernel.value, cell.recurrent_kernel.value, cell.bias.value)
    outputs, new = fast(sequences, states, *weights)  # (B, T, h)
    return outputs[:, -1], outputs, new


# ------------------------------------------------------------------------------------------------------------- PyTorch


def _torch_lstm(x, states, kernel, recurrent_kernel, bias):
    import torch

    weights = [kernel.t(), recurrent_kernel.t(), bias, torch.zeros_like(bias)]  # both orders are i f g o
    outputs, h, c = torch.lstm(x, tuple(s[None] for s in states), weights, True, 1, 0.0, False, False, True)
    return outputs, [h[0], c[0]]


def _torch_gru(x, states, kernel, recurrent_kernel, bias):
    import torch

    if x.is_cuda:

        def reset_first(t):
            z, r, n = t.chunk(3, dim=-1)
            return torch.cat([r, z, n], dim=-1)

        weights = [reset_first(kernel).t(), reset_first(recurrent_kernel).t(), *reset_first(bias)]
        outputs, h = torch.gru(x, states[0][None], weights, True, 1, 0.0, False, False, True)
        return outputs, [h[0]]
    projected = torch.addmm(bias[0], x.transpose(0, 1).flatten(0, 1), kernel)  # (T·B, 3h)
    projected = projected.view(x.shape[1], x.shape[0], -1)
    h = _torch_gru_function().apply(projected, states[0], recurrent_kernel, bias[1])
    return h.transpose(0, 1), [h[-1]]


def _torch_lstm_step(x, states, kernel, recurrent_kernel, bias):
    import torch

    h, c = states
    gates = torch.addmm(bias, x, kernel).addmm_(h, recurrent_kernel)  # (B, 4h)
    i, f, g, o = gates.chunk(4, dim=1)
    c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
    return [o.sigmoid() * c.tanh(), c]


def _torch_gru_step(x, states, kernel, recurrent_kernel, bias):
    import torch

    (h,) = states
    projected, a = torch.addmm(bias[0], x, kernel), torch.addmm(bias[1], h, recurrent_kernel)  # (B, 3h)
    units = 2 * h.shape[1]
    z, r = (projected[:, :units] + a[:, :units]).sigmoid_().chunk(2, dim=1)
    n = torch.addcmul(projected[:, units:], r, a[:, units:]).tanh_()
    return [torch.lerp(n, h, z)]


@functools.cache
def _torch_gru_function():
    import torch

    class Gru(torch.autograd.Function):
        @staticmethod
        def forward(context, projected, h0, kernel, bias):
            steps, batch, width = projected.shape
            units = width // 3
            hs, gates = h0.new_empty(steps + 1, batch, units), torch.empty_like(projected)
            hs[0] = h0
            candidates = h0.new_empty(steps, batch, units)  # the part of a that the reset gate multiplies
            for t in range(steps):
                a = torch.addmm(bias, hs[t], kernel)
                gate, candidates[t] = gates[t], a[:, 2 * units :]
                zr = torch.add(projected[t, :, : 2 * units], a[:, : 2 * units], out=gate[:, : 2 * units]).sigmoid_()
                z, r = zr.chunk(2, dim=1)
                n = torch.addcmul(projected[t, :, 2 * units :], r, candidates[t], out=gate[:, 2 * units :]).tanh_()
                torch.lerp(n, hs[t], z, out=hs[t + 1])
            context.save_for_backward(gates, hs, candidates, kernel)
            return hs[1:]

        @staticmethod
        def backward(context, d_hs):
            gates, hs, candidates, kernel = context.saved_tensors
            steps, batch, units = candidates.shape
            z, r, n = gates.chunk(3, dim=2)
            # Slopes for all steps at once, of what enters the gates (the last: the candidate) per unit of dh.
            to_n = (1 - z) * (1 - n * n)
            d_a = torch.cat([(hs[:-1] - n) * z * (1 - z), to_n * candidates * r * (1 - r), to_n * r], 2)
            d_ns = torch.empty_like(to_n)
            dh, transposed = torch.zeros_like(hs[0]), kernel.t()
            for t in reversed(range(steps)):
                dh = dh + d_hs[t]
                torch.mul(to_n[t], dh, out=d_ns[t])
                d_a[t].view(batch, 3, units).mul_(dh[:, None])
                dh = torch.addmm(dh * z[t], d_a[t], transposed)
            flat = d_a.flatten(0, 1)
            d_projected = torch.cat([d_a[:, :, : 2 * units], d_ns], 2)
            return d_projected, dh, hs[:-1].flatten(0, 1).t() @ flat, flat.sum(0)

    return Gru


# ----------------------------------------------------------------------------------------------------------------- JAX


def _jax_lstm(x, states, kernel, recurrent_kernel, bias):
    import jax.numpy as jnp

    h, c = _jax_functions()["lstm"](jnp.swapaxes(x @ kernel + bias, 0, 1), *states, recurrent_kernel)
    return jnp.swapaxes(h, 0, 1), [h[-1], c[-1]]


def _jax_gru(x, states, kernel, recurrent_kernel, bias):
    import jax.numpy as jnp

    h = _jax_functions()["gru"](jnp.swapaxes(x @ kernel + bias[0], 0, 1), states[0], recurrent_kernel, bias[1])
    return jnp.swapaxes(h, 0, 1), [h[-1]]


@functools.cache
def _jax_functions():
    import jax
    import jax.numpy as jnp

    sigmoid, split = jax.nn.sigmoid, functools.partial(jnp.split, axis=-1)

    def previous(first, rest):
        """The states before each step."""
        return jnp.concatenate([first[None], rest[:-1]])

    def lstm_forward(projected, h0, c0, kernel):
        def step(state, projected):
            h, c = state
            i, f, g, o = split(projected + h @ kernel, 4)
            i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
            c = f * c + i * g
            h = o * jnp.tanh(c)
            return (h, c), (h, c, i, f, g, o)

        _, (h, c, *gates) = jax.lax.scan(step, (h0, c0), projected)
        return (h, c), (h0, c0, h, c, gates, kernel)

    def lstm_backward(residual, gradients):
        h0, c0, h, c, gates, kernel = residual

        def step(state, inputs):
            dh, dc = state
            d_h, d_c, c_previous, c, i, f, g, o = inputs
            dh, tanh_c = dh + d_h, jnp.tanh(c)
            dc = dc + d_c + dh * o * (1 - tanh_c * tanh_c)
            d_gates = (
                dc * g * i * (1 - i),
                dc * c_previous * f * (1 - f),
                dc * i * (1 - g * g),
                dh * tanh_c * o * (1 - o),
            )
            d_gates = jnp.concatenate(d_gates, axis=-1)
            return (d_gates @ kernel.T, dc * f), d_gates

        initial = (jnp.zeros_like(h0), jnp.zeros_like(c0))
        (dh, dc), d_gates = jax.lax.scan(step, initial, (*gradients, previous(c0, c), c, *gates), reverse=True)
        return d_gates, dh, dc, jnp.einsum("tbh,tbg->hg", previous(h0, h), d_gates)

    def gru_forward(projected, h0, kernel, bias):
        def step(h, projected):
            xz, xr, xn = split(projected, 3)
            az, ar, an = split(h @ kernel + bias, 3)
            z, r = sigmoid(xz + az), sigmoid(xr + ar)
            n = jnp.tanh(xn + r * an)
            h = z * h + (1 - z) * n
            return h, (h, z, r, n, an)

        _, (h, *gates) = jax.lax.scan(step, h0, projected)
        return h, (h0, h, gates, kernel)

    def gru_backward(residual, d_hs):
        h0, h, gates, kernel = residual
        h_previous = previous(h0, h)

        def step(dh, inputs):
            d_h, h, z, r, n, an = inputs
            dh = dh + d_h
            dn = dh * (1 - z) * (1 - n * n)
            d_zr = (dh * (h - n) * z * (1 - z), dn * an * r * (1 - r))
            d_a = jnp.concatenate([*d_zr, dn * r], axis=-1)
            return dh * z + d_a @ kernel.T, (d_a, dn)

        dh, (d_a, dn) = jax.lax.scan(step, jnp.zeros_like(h0), (d_hs, h_previous, *gates), reverse=True)
        d_projected = jnp.concatenate([d_a[..., : 2 * h0.shape[-1]], dn], axis=-1)
        return d_projected, dh, jnp.einsum("tbh,tbg->hg", h_previous, d_a), d_a.sum((0, 1))

    functions = {}
    for name, forward, backward in (("lstm", lstm_forward, lstm_backward), ("gru", gru_forward, gru_backward)):
        functions[name] = jax.custom_vjp(lambda *inputs, forward=forward: forward(*inputs)[0])
        functions[name].defvjp(forward, backward)
    return functions


# ---------------------------------------------------------------------------------------------------------- TensorFlow


def _tensorflow_lstm(x, states, kernel, recurrent_kernel, bias):
    import tensorflow as tf

    @tf.custom_gradient
    def recurrence(projected, h0, c0, kernel):
        hs, cs, gates = [h0], [c0], []
        for step in tf.unstack(projected):
            i, f, g, o = tf.split(step + tf.matmul(hs[-1], kernel), 4, axis=-1)
            gates.append((tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)))
            i, f, g, o = gates[-1]
            cs.append(f * cs[-1] + i * g)
            hs.append(o * tf.tanh(cs[-1]))

        def backward(d_hs, d_cs):
            dh, dc, d_gates = tf.zeros_like(h0), tf.zeros_like(c0), []
            steps = zip(tf.unstack(d_hs), tf.unstack(d_cs), cs, cs[1:], gates)
            for d_h, d_c, c_previous, c, (i, f, g, o) in reversed(list(steps)):
                dh, tanh_c = dh + d_h, tf.tanh(c)
                dc += d_c + dh * o * (1 - tanh_c * tanh_c)
                parts = [dc * g * i * (1 - i), dc * c_previous * f * (1 - f), dc * i * (1 - g * g)]
                d_gates.append(tf.concat([*parts, dh * tanh_c * o * (1 - o)], axis=-1))
                dc, dh = dc * f, tf.matmul(d_gates[-1], kernel, transpose_b=True)
            d_gates = d_gates[::-1]
            d_kernel = tf.matmul(tf.concat(hs[:-1], 0), tf.concat(d_gates, 0), transpose_a=True)
            return tf.stack(d_gates), dh, dc, d_kernel

        return (tf.stack(hs[1:]), tf.stack(cs[1:])), backward

    projected = tf.tensordot(tf.transpose(x, (1, 0, 2)), kernel, 1) + bias  # (T, B, 4h)
    h, c = recurrence(projected, *states, tf.convert_to_tensor(recurrent_kernel))
    return tf.transpose(h, (1, 0, 2)), [h[-1], c[-1]]


def _tensorflow_gru(x, states, kernel, recurrent_kernel, bias):
    import tensorflow as tf

    @tf.custom_gradient
    def recurrence(projected, h0, kernel, bias):
        hs, gates = [h0], []
        for step in tf.unstack(projected):
            xz, xr, xn = tf.split(step, 3, axis=-1)
            az, ar, an = tf.split(tf.matmul(hs[-1], kernel) + bias, 3, axis=-1)
            z, r = tf.sigmoid(xz + az), tf.sigmoid(xr + ar)
            n = tf.tanh(xn + r * an)
            gates.append((z, r, n, an))
            hs.append(z * hs[-1] + (1 - z) * n)

        def backward(d_hs):
            dh, d_as, d_ns = tf.zeros_like(h0), [], []
            for d_h, h, (z, r, n, an) in reversed(list(zip(tf.unstack(d_hs), hs, gates))):
                dh += d_h
                dn = dh * (1 - z) * (1 - n * n)
                d_as.append(tf.concat([dh * (h - n) * z * (1 - z), dn * an * r * (1 - r), dn * r], axis=-1))
                d_ns.append(dn)
                dh = dh * z + tf.matmul(d_as[-1], kernel, transpose_b=True)
            d_a, d_n = tf.stack(d_as[::-1]), tf.stack(d_ns[::-1])
            d_kernel = tf.matmul(tf.concat(hs[:-1], 0), tf.concat(d_as[::-1], 0), transpose_a=True)
            d_projected = tf.concat([d_a[..., : 2 * d_n.shape[-1]], d_n], axis=-1)
            return d_projected, dh, d_kernel, tf.reduce_sum(d_a, (0, 1))

        return tf.stack(hs[1:]), backward

    projected = tf.tensordot(tf.transpose(x, (1, 0, 2)), kernel, 1) + bias[0]  # (T, B, 3h)
    h = recurrence(projected, states[0], *(tf.convert_to_tensor(part) for part in (recurrent_kernel, bias[1])))
    return tf.transpose(h, (1, 0, 2)), [h[-1]]


_TORCH = {"lstm": _torch_lstm, "gru": _torch_gru}
_JAX = {"lstm": _jax_lstm, "gru": _jax_gru}
_TENSORFLOW = {"lstm": _tensorflow_lstm, "gru": _tensorflow_gru}
