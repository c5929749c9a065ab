"""Faster recurrent layers for the same weights and files: what `use_fast_paths` puts into LSTM and GRU.

Stock Keras 3.15 multiplies the inputs of each time step by the kernel inside the loop over time, and differentiates
that loop step by step, so that the gradient of the recurrent kernel is a sum of T products that each pass over all of
it. Here all steps are projected by one product before the loop, and the gradient is written by hand: the loop back
through time yields only what reaches the gates, and the recurrent kernel's gradient is one product after it.

    LSTM   i, f, o = sigmoid, g = tanh of (projected + h U)      c' = f·c + i·g        h' = o·tanh(c')
    GRU    z, r = sigmoid(projected + a),  a = h U + b           n = tanh(projected + r·a)      h' = z·h + (1 - z)·n

A masked step keeps the states: there z = 1 in a GRU, and in an LSTM i = o = 0, f = 1 and h' = h. With these gates the
gradient is that of any other step.

The loop is what suits the backend: on JAX `lax.scan`; on TensorFlow written out (up to `_MAX_UNROLLED_STEPS` steps, the
length of a training batch), which costs a few seconds of tracing and saves the bookkeeping of `tf.while_loop`, while
longer or open lengths keep the stock loop; on PyTorch its own `lstm`, whose gradient is fused already (Keras uses it on
CUDA only), and for a GRU or with a mask on a CPU, where it is not, a Python loop over in-place kernels.

Letters: B batch, T steps, d features, h units, U the recurrent kernel (h, gates·h), m the masked steps (T, B, 1), 1
where a step is masked. Gates in Keras' order: LSTM input, forget, candidate, output (i f g o); GRU update, reset,
candidate (z r n).
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from zoo.compat.torch import packed_linear
from zoo.errors import UserError
from zoo.fast_paths.products import linear, product_over_rows, sum_over_rows

_MAX_UNROLLED_STEPS = 256


def why_not(layer: keras.layers.RNN) -> str:
    """Why the fast loop does not apply to a recurrent layer on this backend.

    Args:
        layer: a stock `LSTM` or `GRU`.

    Returns:
        the reason in a few words; "" where it applies.
    """
    cell = layer.cell
    if type(cell) not in (layers.LSTMCell, layers.GRUCell):
        return "another cell"
    if cell.activation is not keras.activations.tanh:
        return "an activation other than tanh"
    if cell.recurrent_activation is not keras.activations.sigmoid:
        return "a recurrent_activation other than sigmoid"
    if not getattr(cell, "reset_after", True):
        return "reset_after=False"
    if cell.recurrent_dropout:
        return "recurrent_dropout"
    if cell.dropout and cell.implementation == 1:
        return "dropout with a mask for each gate"
    if layer.compute_dtype != layer.variable_dtype or cell.compute_dtype != cell.variable_dtype:
        return f"computes in {layer.compute_dtype}, with weights of {layer.variable_dtype}"
    if layer.use_cudnn is True:
        return "use_cudnn=True"
    return "Keras uses cuDNN" if _has_cudnn(layer) else ""


@functools.cache
def _gpu_is_used():
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    return False  # PyTorch's functions below choose cuDNN themselves


def _has_cudnn(layer):
    """Whether stock Keras computes a layer by cuDNN: TensorFlow's LSTM and GRU, JAX' LSTM, on a GPU."""
    return _gpu_is_used() and (keras.backend.backend() == "tensorflow" or type(layer) is layers.LSTM)


def fast_step(layer: keras.layers.RNN) -> Callable[[], tuple[Callable[..., Any], Callable[..., Any]]] | None:
    """One time step of a recurrent layer as plain calls of PyTorch, for generation.

    A call of Keras' cell costs a hundred microseconds of Python, reading its variables ten, and building a model of it
    imports PyTorch's compiler.

    Args:
        layer: a stock `LSTM` or `GRU`.

    Returns:
        a function that reads the weights and gives two functions. The first gives what inputs (B, d) contribute to the
        gates, (B, gates·h). The second takes that, which it may overwrite, and the list of old states (B, h); it gives
        the list of new states, the first of which is the output. None on other backends, and for a layer that does not
        compute the equations above.
    """
    if keras.backend.backend() != "torch" or type(layer) not in (layers.LSTM, layers.GRU):
        return None
    if why_not(layer) or layer.go_backwards or not layer.use_bias:
        return None
    import torch

    cell, is_lstm = layer.cell, type(layer) is layers.LSTM

    def read_weights():
        kernel, recurrent_kernel, bias = (one.value for one in (cell.kernel, cell.recurrent_kernel, cell.bias))
        if is_lstm:
            return (
                lambda x: torch.addmm(bias, x, kernel),
                lambda projected, states: _torch_lstm_step(projected, states, recurrent_kernel),
            )
        bias, recurrent_bias = bias
        return (
            lambda x: torch.addmm(bias, x, kernel),
            lambda projected, states: _torch_gru_step(projected, states, recurrent_kernel, recurrent_bias),
        )

    return read_weights


def inner_loop(layer: keras.layers.RNN, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
    """The fast loop over time, with the arguments and results of `keras.layers.RNN.inner_loop`.

    Args:
        layer: a stock `LSTM` or `GRU` to which it applies (`why_not`).
        sequences: (B, T, d).
        initial_state: the states before the first step, (B, h) each.
        mask: (B, T), False where a step is masked; None for no mask.
        training: whether dropout is applied.

    Returns:
        (last output (B, h), outputs (B, T, h), list of states), or `NotImplemented` where the sequence is too long for
        a loop that is written out, or Keras has a kernel for these inputs.
    """
    backend, cell, steps = keras.backend.backend(), layer.cell, sequences.shape[1]
    mask = keras.tree.flatten(mask)[0]
    if keras.backend.standardize_dtype(sequences.dtype) != layer.compute_dtype or steps == 0:
        return NotImplemented
    if mask is not None and len(mask.shape) != 2:
        return NotImplemented
    if backend == "tensorflow" and (steps is None or steps > _MAX_UNROLLED_STEPS):
        return NotImplemented
    if backend == "torch" and mask is not None and sequences.is_cuda:  # cuDNN, or Keras' message about its limits
        return NotImplemented
    if training and cell.dropout:
        sequences = sequences * ops.expand_dims(cell.get_dropout_mask(sequences[:, 0, :]), 1)
    if layer.go_backwards:
        sequences = ops.flip(sequences, 1)
    masked = None
    if mask is not None:
        mask = ops.cast(ops.flip(mask, 1) if layer.go_backwards else mask, "bool")
        masked = ops.cast(ops.transpose(ops.logical_not(mask))[:, :, None], sequences.dtype)  # (T, B, 1)
    states = keras.tree.flatten(initial_state)
    if layer.stateful:  # Keras writes the new states over the old ones before the backward pass, which needs the old
        states = [ops.copy(state) for state in states]
    kernel, recurrent_kernel = cell.kernel.value, cell.recurrent_kernel.value
    is_lstm = type(layer) is layers.LSTM
    if cell.use_bias:
        bias = cell.bias.value
    else:
        bias = ops.zeros((kernel.shape[1],) if is_lstm else (2, kernel.shape[1]), kernel.dtype)
    fast = {"torch": _TORCH, "jax": _JAX, "tensorflow": _TENSORFLOW}[backend]["lstm" if is_lstm else "gru"]
    outputs, states = fast(sequences, states, kernel, recurrent_kernel, bias, masked)  # (B, T, h)
    if mask is not None:
        outputs = _masked_outputs(layer, outputs, mask)
    return outputs[:, -1], outputs, states


def _masked_outputs(layer, outputs, mask):
    """What Keras outputs at masked steps: zeros, or the output of the step before, which is h.

    Before the first step that counts that is zero too, but for the loop of its JAX backend, where it is the initial h.
    """
    if not layer.zero_output_for_mask:
        if keras.backend.backend() == "jax" and not layer.unroll:
            return outputs
        mask = ops.cumsum(ops.cast(mask, "int32"), axis=1) > 0
    return ops.where(mask[:, :, None], outputs, ops.zeros_like(outputs))


# ------------------------------------------------------------------------------------------------------------- PyTorch


def _torch_lstm(x, states, kernel, recurrent_kernel, bias, masked):
    import torch

    if masked is not None:
        h, c = _torch_functions()["lstm"].apply(_torch_projected(x, kernel, bias), *states, recurrent_kernel, masked)
        return h.transpose(0, 1), [h[-1], c]
    if not x.is_cuda and torch.is_grad_enabled():
        for weight in (kernel, recurrent_kernel):
            _store_transposed(weight)
    weights = [kernel.t(), recurrent_kernel.t(), bias, torch.zeros_like(bias)]  # both orders are i f g o
    outputs, h, c = torch.lstm(x, tuple(s[None] for s in states), weights, True, 1, 0.0, False, False, True)
    return outputs, [h[0], c[0]]


def _store_transposed(weight):
    """Keep a weight (d, 4h) in memory as oneDNN's LSTM takes it, (4h, d); its shape and values stay.

    Else it is copied forward and backward, and so is its gradient: a part in twenty of a training step.
    """
    import torch

    if isinstance(weight, torch.nn.Parameter) and not weight.t().is_contiguous():
        with torch.no_grad():
            weight.data = weight.data.t().contiguous().t()


def _torch_projected(x, kernel, bias):
    """(B, T, d) to (T, B, gates·h)."""
    return linear(x.transpose(0, 1).contiguous(), kernel, bias)


def _torch_gru(x, states, kernel, recurrent_kernel, bias, masked):
    import torch

    if x.is_cuda:

        def reset_first(t):
            z, r, n = t.chunk(3, dim=-1)
            return torch.cat([r, z, n], dim=-1)

        weights = [reset_first(kernel).t(), reset_first(recurrent_kernel).t(), *reset_first(bias)]
        outputs, h = torch.gru(x, states[0][None], weights, True, 1, 0.0, False, False, True)
        return outputs, [h[0]]
    projected = _torch_projected(x, kernel, bias[0])
    h = _torch_functions()["gru"].apply(projected, states[0], recurrent_kernel, bias[1], masked)
    return h.transpose(0, 1), [h[-1]]


def _torch_lstm_step(projected, states, recurrent_kernel):
    import torch

    h, c = states
    i, f, g, o = projected.addmm_(h, recurrent_kernel).chunk(4, dim=1)
    c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
    return [o.sigmoid() * c.tanh(), c]


def _torch_gru_step(projected, states, recurrent_kernel, bias):
    import torch

    (h,) = states
    a, units = torch.addmm(bias, h, recurrent_kernel), 2 * h.shape[1]  # (B, 3h)
    z, r = (projected[:, :units] + a[:, :units]).sigmoid_().chunk(2, dim=1)
    n = torch.addcmul(projected[:, units:], r, a[:, units:]).tanh_()
    return [torch.lerp(n, h, z)]


def _torch_product(weight, bias=None):
    """The function x -> x weight + bias for a loop over time; on a CPU by oneDNN, at twice the rate of MKL or more."""
    import torch

    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return packed_linear(weight.t(), bias)
    return lambda x: torch.nn.functional.linear(x, weight.t(), bias)


def _refuse_second_derivatives():
    """The gradient below is not itself recorded, so that the second derivative would lack parts of it."""
    import torch

    if torch.is_grad_enabled():
        raise UserError(
            "Second derivatives (create_graph=True) of a recurrent layer were asked for, which its fast path does not "
            "have: take zoo.fast_paths.undo(model) first."
        )


@functools.cache
def _torch_functions():
    import torch

    class Lstm(torch.autograd.Function):
        """With masked steps; gives h of all steps and the last c."""

        @staticmethod
        def forward(context, projected, h0, c0, kernel, masked):
            steps, batch, width = projected.shape
            units = width // 4
            hs, cs = (state.new_empty(steps + 1, batch, units) for state in (h0, c0))
            hs[0], cs[0] = h0, c0
            counts, tanh_cs = 1 - masked, torch.empty_like(cs[1:])
            all_gates, product = torch.empty_like(projected), _torch_product(kernel)
            for t in range(steps):
                gates = torch.add(projected[t], product(hs[t]), out=all_gates[t])
                gates[:, : 2 * units].sigmoid_()
                gates[:, 2 * units : 3 * units].tanh_()
                gates[:, 3 * units :].sigmoid_()
                i, f, g, o = gates.chunk(4, dim=1)
                i.mul_(counts[t])
                f.mul_(counts[t]).add_(masked[t])
                o.mul_(counts[t])
                torch.addcmul(f * cs[t], i, g, out=cs[t + 1])
                torch.tanh(cs[t + 1], out=tanh_cs[t])
                torch.addcmul(hs[t] * masked[t], o, tanh_cs[t], out=hs[t + 1])
            context.save_for_backward(all_gates, hs, cs, tanh_cs, kernel, masked)
            return hs[1:], cs[-1]

        @staticmethod
        def backward(context, d_hs, dc):
            _refuse_second_derivatives()
            all_gates, hs, cs, tanh_cs, kernel, masked = context.saved_tensors
            steps, batch, units = tanh_cs.shape
            i, f, g, o = all_gates.chunk(4, dim=2)
            # Slopes for all steps at once: of c per unit of dh, and of what enters the gates per unit of dc (o: of dh).
            to_c = o * (1 - tanh_cs * tanh_cs)
            d_gates = torch.cat(
                [g * i * (1 - i), cs[:-1] * f * (1 - f), i * (1 - g * g), tanh_cs * o * (1 - o)], 2
            ).view(steps, batch, 4, units)
            dh, product = torch.zeros_like(hs[0]), _torch_product(kernel.t())
            for t in reversed(range(steps)):
                dh = dh + d_hs[t]
                dc = torch.addcmul(dc, dh, to_c[t])
                d_gates[t, :, :3].mul_(dc[:, None])
                d_gates[t, :, 3].mul_(dh)
                dc = dc * f[t]
                dh = torch.addcmul(product(d_gates[t].flatten(1)), dh, masked[t])
            d_projected = d_gates.flatten(2)
            d_kernel = product_over_rows(hs[:-1].flatten(0, 1), d_projected.flatten(0, 1))
            return d_projected, dh, dc, d_kernel, None

    class Gru(torch.autograd.Function):
        @staticmethod
        def forward(context, projected, h0, kernel, bias, masked):
            steps, batch, width = projected.shape
            units = width // 3
            hs, gates = h0.new_empty(steps + 1, batch, units), torch.empty_like(projected)
            hs[0] = h0
            candidates = h0.new_empty(steps, batch, units)  # the part of a that the reset gate multiplies
            product = _torch_product(kernel, bias)
            for t in range(steps):
                a = product(hs[t])
                gate, candidates[t] = gates[t], a[:, 2 * units :]
                zr = torch.add(projected[t, :, : 2 * units], a[:, : 2 * units], out=gate[:, : 2 * units]).sigmoid_()
                z, r = zr.chunk(2, dim=1)
                if masked is not None:
                    z.copy_(torch.maximum(z, masked[t]))  # 1 where the step is masked
                n = torch.addcmul(projected[t, :, 2 * units :], r, candidates[t], out=gate[:, 2 * units :]).tanh_()
                torch.lerp(n, hs[t], z, out=hs[t + 1])
            context.save_for_backward(gates, hs, candidates, kernel)
            return hs[1:]

        @staticmethod
        def backward(context, d_hs):
            _refuse_second_derivatives()
            gates, hs, candidates, kernel = context.saved_tensors
            steps, batch, units = candidates.shape
            z, r, n = gates.chunk(3, dim=2)
            # Slopes for all steps at once, of what enters the gates (the last: the candidate) per unit of dh.
            to_n = (1 - z) * (1 - n * n)
            d_a = torch.cat([(hs[:-1] - n) * z * (1 - z), to_n * candidates * r * (1 - r), to_n * r], 2)
            d_ns = torch.empty_like(to_n)
            dh, product = torch.zeros_like(hs[0]), _torch_product(kernel.t())
            for t in reversed(range(steps)):
                dh = dh + d_hs[t]
                torch.mul(to_n[t], dh, out=d_ns[t])
                d_a[t].view(batch, 3, units).mul_(dh[:, None])
                dh = torch.addcmul(product(d_a[t]), dh, z[t])
            flat = d_a.flatten(0, 1)
            d_projected = torch.cat([d_a[:, :, : 2 * units], d_ns], 2)
            return d_projected, dh, product_over_rows(hs[:-1].flatten(0, 1), flat), flat.sum(0), None

    return {"lstm": Lstm, "gru": Gru}


# ----------------------------------------------------------------------------------------------------------------- JAX


def _jax_lstm(x, states, kernel, recurrent_kernel, bias, masked):
    import jax.numpy as jnp

    projected = linear(jnp.swapaxes(x, 0, 1), kernel, bias)  # (T, B, 4h)
    h, c = _jax_functions()["lstm"](projected, *states, recurrent_kernel, masked)
    return jnp.swapaxes(h, 0, 1), [h[-1], c]


def _jax_gru(x, states, kernel, recurrent_kernel, bias, masked):
    import jax.numpy as jnp

    projected = linear(jnp.swapaxes(x, 0, 1), kernel, bias[0])  # (T, B, 3h)
    h = _jax_functions()["gru"](projected, states[0], recurrent_kernel, bias[1], masked)
    return jnp.swapaxes(h, 0, 1), [h[-1]]


@functools.cache
def _jax_functions():
    import jax
    import jax.numpy as jnp

    sigmoid, split = jax.nn.sigmoid, functools.partial(jnp.split, axis=-1)

    def previous(first, rest):
        """The states before each step."""
        return jnp.concatenate([first[None], rest[:-1]])

    def transpose(kernel):
        """In memory: XLA would read a view across its rows at each step."""
        return jax.lax.optimization_barrier(kernel.T)

    def product_over_steps(h, d_gates):
        """The gradient of a recurrent kernel, as a product over one axis, for which XLA has a library."""
        return h.reshape(-1, h.shape[-1]).T @ d_gates.reshape(-1, d_gates.shape[-1])

    def no_gradient(masked):
        return None if masked is None else jnp.zeros_like(masked)

    def lstm_forward(projected, h0, c0, kernel, masked):
        def step(state, inputs):
            (h, c), (projected, masked) = state, inputs
            i, f, g, o = split(projected + h @ kernel, 4)
            i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
            if masked is not None:
                i, f, o = i * (1 - masked), f * (1 - masked) + masked, o * (1 - masked)
            c = f * c + i * g
            h = o * jnp.tanh(c) + (0 if masked is None else masked * h)
            return (h, c), (h, c, i, f, g, o)

        (_, last_c), (h, c, *gates) = jax.lax.scan(step, (h0, c0), (projected, masked))
        return (h, last_c), (h0, c0, h, c, gates, kernel, masked)

    def lstm_backward(residual, gradients):
        h0, c0, h, c, gates, kernel, masked = residual
        transposed = transpose(kernel)

        def step(state, inputs):
            dh, dc = state
            d_h, c_previous, c, i, f, g, o, masked = inputs
            dh, tanh_c = dh + d_h, jnp.tanh(c)
            dc = dc + dh * o * (1 - tanh_c * tanh_c)
            d_gates = (
                dc * g * i * (1 - i),
                dc * c_previous * f * (1 - f),
                dc * i * (1 - g * g),
                dh * tanh_c * o * (1 - o),
            )
            d_gates = jnp.concatenate(d_gates, axis=-1)
            return (d_gates @ transposed + (0 if masked is None else masked * dh), dc * f), d_gates

        d_hs, dc = gradients
        inputs = (d_hs, previous(c0, c), c, *gates, masked)
        (dh, dc), d_gates = jax.lax.scan(step, (jnp.zeros_like(h0), dc), inputs, reverse=True)
        return d_gates, dh, dc, product_over_steps(previous(h0, h), d_gates), no_gradient(masked)

    def gru_forward(projected, h0, kernel, bias, masked):
        def step(h, inputs):
            projected, masked = inputs
            xz, xr, xn = split(projected, 3)
            az, ar, an = split(h @ kernel + bias, 3)
            z, r = sigmoid(xz + az), sigmoid(xr + ar)
            z = z if masked is None else jnp.maximum(z, masked)
            n = jnp.tanh(xn + r * an)
            h = z * h + (1 - z) * n
            return h, (h, z, r, n, an)

        _, (h, *gates) = jax.lax.scan(step, h0, (projected, masked))
        return h, (h0, h, gates, kernel, masked)

    def gru_backward(residual, d_hs):
        h0, h, gates, kernel, masked = residual
        h_previous, transposed = previous(h0, h), transpose(kernel)

        def step(dh, inputs):
            d_h, h, z, r, n, an = inputs
            dh = dh + d_h
            dn = dh * (1 - z) * (1 - n * n)
            d_zr = (dh * (h - n) * z * (1 - z), dn * an * r * (1 - r))
            d_a = jnp.concatenate([*d_zr, dn * r], axis=-1)
            return dh * z + d_a @ transposed, (d_a, dn)

        dh, (d_a, dn) = jax.lax.scan(step, jnp.zeros_like(h0), (d_hs, h_previous, *gates), reverse=True)
        d_projected = jnp.concatenate([d_a[..., : 2 * h0.shape[-1]], dn], axis=-1)
        return d_projected, dh, product_over_steps(h_previous, d_a), sum_over_rows(d_a), no_gradient(masked)

    functions = {}
    for name, forward, backward in (("lstm", lstm_forward, lstm_backward), ("gru", gru_forward, gru_backward)):
        functions[name] = jax.custom_vjp(lambda *inputs, forward=forward: forward(*inputs)[0])
        functions[name].defvjp(forward, backward)
    return functions


# ---------------------------------------------------------------------------------------------------------- TensorFlow


def _tensorflow_lstm(x, states, kernel, recurrent_kernel, bias, masked):
    import tensorflow as tf

    # dy·y·(1 - y) and dy·(1 - y²), one operation each.
    sigmoid_gradient, tanh_gradient = tf.raw_ops.SigmoidGrad, tf.raw_ops.TanhGrad
    masks = [None] * x.shape[1] if masked is None else tf.unstack(masked, x.shape[1])

    @tf.custom_gradient
    def recurrence(projected, h0, c0, kernel):
        hs, cs, tanh_cs, gates = [h0], [c0], [], []
        for step, m in zip(tf.unstack(projected), masks):
            i, f, g, o = tf.split(step + tf.matmul(hs[-1], kernel), 4, axis=-1)
            i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
            if m is not None:
                i, f, o = i * (1 - m), f * (1 - m) + m, o * (1 - m)
            gates.append((i, f, g, o))
            cs.append(f * cs[-1] + i * g)
            tanh_cs.append(tf.tanh(cs[-1]))
            h = o * tanh_cs[-1]
            hs.append(h if m is None else h + m * hs[-1])

        def backward(d_hs, dc):
            dh, d_gates, transposed = tf.zeros_like(h0), [], _tensorflow_transpose(kernel)
            for d_h, c_previous, tanh_c, (i, f, g, o), m in reversed(
                list(zip(tf.unstack(d_hs), cs, tanh_cs, gates, masks))
            ):
                dh += d_h
                dc += tanh_gradient(y=tanh_c, dy=dh * o)
                parts = [sigmoid_gradient(y=i, dy=dc * g), sigmoid_gradient(y=f, dy=dc * c_previous)]
                parts += [tanh_gradient(y=g, dy=dc * i), sigmoid_gradient(y=o, dy=dh * tanh_c)]
                d_gates.append(tf.concat(parts, axis=-1))
                carried, dh = dh, tf.matmul(d_gates[-1], transposed)
                dc, dh = dc * f, dh if m is None else dh + m * carried
            d_gates = d_gates[::-1]
            d_kernel = tf.matmul(tf.concat(hs[:-1], 0), tf.concat(d_gates, 0), transpose_a=True)
            return tf.stack(d_gates), dh, dc, d_kernel

        return (tf.stack(hs[1:]), cs[-1]), backward

    projected = tf.tensordot(tf.transpose(x, (1, 0, 2)), kernel, 1) + bias  # (T, B, 4h)
    h, c = recurrence(projected, *states, tf.convert_to_tensor(recurrent_kernel))
    return tf.transpose(h, (1, 0, 2)), [h[-1], c]


def _tensorflow_gru(x, states, kernel, recurrent_kernel, bias, masked):
    import tensorflow as tf

    # dy·y·(1 - y) and dy·(1 - y²), one operation each.
    sigmoid_gradient, tanh_gradient = tf.raw_ops.SigmoidGrad, tf.raw_ops.TanhGrad
    masks = [None] * x.shape[1] if masked is None else tf.unstack(masked, x.shape[1])

    @tf.custom_gradient
    def recurrence(projected, h0, kernel, bias):
        hs, gates = [h0], []
        for step, m in zip(tf.unstack(projected), masks):
            xz, xr, xn = tf.split(step, 3, axis=-1)
            az, ar, an = tf.split(tf.matmul(hs[-1], kernel) + bias, 3, axis=-1)
            z, r = tf.sigmoid(xz + az), tf.sigmoid(xr + ar)
            z = z if m is None else tf.maximum(z, m)
            n = tf.tanh(xn + r * an)
            gates.append((z, r, n, an))
            hs.append(z * hs[-1] + (1 - z) * n)

        def backward(d_hs):
            dh, d_as, d_ns, transposed = tf.zeros_like(h0), [], [], _tensorflow_transpose(kernel)
            for d_h, h, (z, r, n, an) in reversed(list(zip(tf.unstack(d_hs), hs, gates))):
                dh += d_h
                dn = tanh_gradient(y=n, dy=dh * (1 - z))
                d_zr = sigmoid_gradient(y=z, dy=dh * (h - n)), sigmoid_gradient(y=r, dy=dn * an)
                d_as.append(tf.concat([*d_zr, dn * r], axis=-1))
                d_ns.append(dn)
                dh = dh * z + tf.matmul(d_as[-1], transposed)
            d_a, d_n = tf.stack(d_as[::-1]), tf.stack(d_ns[::-1])
            d_kernel = tf.matmul(tf.concat(hs[:-1], 0), tf.concat(d_as[::-1], 0), transpose_a=True)
            d_projected = tf.concat([d_a[..., : 2 * d_n.shape[-1]], d_n], axis=-1)
            return d_projected, dh, d_kernel, tf.reduce_sum(d_a, (0, 1))

        return tf.stack(hs[1:]), backward

    projected = tf.tensordot(tf.transpose(x, (1, 0, 2)), kernel, 1) + bias[0]  # (T, B, 3h)
    h = recurrence(projected, states[0], *(tf.convert_to_tensor(part) for part in (recurrent_kernel, bias[1])))
    return tf.transpose(h, (1, 0, 2)), [h[-1]]


def _tensorflow_transpose(kernel):
    """In memory, for a product at each step; Grappler would undo `tf.transpose`, and read it across its rows."""
    import tensorflow as tf

    return tf.einsum("hg->gh", kernel)


_TORCH = {"lstm": _torch_lstm, "gru": _torch_gru}
_JAX = {"lstm": _jax_lstm, "gru": _jax_gru}
_TENSORFLOW = {"lstm": _tensorflow_lstm, "gru": _tensorflow_gru}
