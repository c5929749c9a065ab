"""Faster paths through stock layers: the same layers, weights and files.

`use_fast_paths(model)` replaces the `call` of stock layers of one model object, and the loop of `LSTM` and `GRU` layers
(`zoo.fast_paths.recurrent`), by an equivalent that suits the backend. Nothing about the model's configuration, weights
or saved file changes, and the result is the same up to the order of float32 sums. What is wrong with the stock path
(see `benchmarks/`):

- PyTorch: Keras 3.15 copies every channels-last tensor to channels-first and back around each convolution and pooling
  (`_transpose_spatial_inputs`), adds biases in a pass of its own, normalises groups in a dozen passes, and keeps every
  tensor of a forward pass to its end. Here the tensors stay channels-last (PyTorch's `torch.channels_last` memory
  format), biases go into the convolution or product, and the normalisation is PyTorch's own.
- JAX on a CPU: XLA differentiates a maximum pooling by `select_and_scatter`, which runs on one thread. Here the
  position of each maximum is kept from the forward pass, and the gradient is one elementwise pass.
- TensorFlow: the stock path is good; nothing is replaced.

`set_compiler_flags()` is the other half on JAX: with XLA's matrix products and convolutions handed to its YNNPACK
library as `dot` fusions, the same float32 arithmetic runs twice as fast on a CPU.
"""

import collections
import functools
import importlib.metadata
import os

import keras
from keras import layers

from zoo.fast_paths.recurrent import fast_recurrence


def use_fast_paths(model, *, training=True):
    """Give every eligible layer of a model, nested ones included, the fast path of the current backend.

    Eligible are channels-last `Conv2D` without dilation or groups, `MaxPooling2D` whose windows do not overlap or pad,
    `Dense`, `GroupNormalization` over the last axis, `LSTM` and `GRU`, if stock and of one dtype. Other layers, and
    all but the recurrent ones on the TensorFlow backend, are left as they are.

    Args:
        model: `keras.Model`.
        training: False for a model that will not be trained. On PyTorch the kernels of its convolutions are then put
            into the order in memory in which they are used, which saves a copy at every call (fused optimizers walk
            weights and their moments in the order of memory), and tensors are let go of after their last use.
    """
    paths = _paths()
    for layer in model._flatten_layers():
        eligible, fast = paths.get(type(layer), (None, None))
        if fast and eligible(layer):
            layer.call = functools.partial(fast, layer)
            if fast is _torch_convolution and not training:
                _lay_out(layer.kernel)
        if recurrence := fast_recurrence(layer):
            layer.inner_loop = recurrence
        if isinstance(layer, keras.Function) and keras.backend.backend() == "torch" and not training:
            layer._run_through_graph = functools.partial(_run_and_let_go, layer)


def set_compiler_flags():
    """On JAX, choose XLA's faster CPU kernels through `XLA_FLAGS`; call it before JAX runs its first operation.

    Only for the jaxlib releases it was measured on, because XLA ends the process on a flag it does not know, and only
    where the user has not set the flag. Accuracy was compared with float64: equal to the default kernels.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if keras.backend.backend() == "jax" and flag not in flags:
        if importlib.metadata.version("jaxlib").startswith("0.10."):
            os.environ["XLA_FLAGS"] = f"{flags} {flag}=LIBRARY_FUSION_TYPE_DOT".strip()


def _paths():
    """{type of layer: (function that says whether one is eligible, its fast path)} of the backend."""
    backend = keras.backend.backend()
    if backend == "torch":
        return {
            layers.Conv2D: (_plain_convolution, _torch_convolution),
            layers.MaxPooling2D: (_plain_pooling, _torch_pooling),
            layers.Dense: (_plain_dense, _torch_dense),
            layers.GroupNormalization: (_plain_group_norm, _torch_group_norm),
        }
    if backend == "jax":
        import jax

        if jax.default_backend() == "cpu":
            return {layers.MaxPooling2D: (_plain_pooling, _jax_pooling())}
    return {}


def _plain_convolution(layer):
    odd = all(size % 2 for size in layer.kernel_size)
    return (
        layer.data_format == "channels_last"
        and (layer.padding == "valid" or (layer.padding == "same" and (odd or set(layer.strides) != {1})))
        and set(layer.dilation_rate) == {1}
        and layer.groups == 1
        and _plain_dense(layer)
    )


def _plain_dense(layer):
    return not layer.lora_enabled and layer.quantization_mode is None and layer.compute_dtype == layer.variable_dtype


def _plain_pooling(layer):
    return (
        layer.data_format == "channels_last"
        and layer.padding == "valid"
        and tuple(layer.strides) == tuple(layer.pool_size)
    )


def _plain_group_norm(layer):
    return layer.axis == -1 and layer.scale and layer.center and layer.compute_dtype == layer.variable_dtype


def _torch_convolution(layer, inputs):
    import torch

    kernel = layer.kernel.value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)  # HWIO -> OIHW
    bias = layer.bias.value if layer.use_bias else None
    inputs, padding = inputs.permute(0, 3, 1, 2), 0  # (B, C, H, W)
    if layer.padding == "same" and set(layer.strides) == {1}:
        padding = [size // 2 for size in layer.kernel_size]
    elif layer.padding == "same":  # with strides, more of it comes at the bottom and the right
        sides = zip(inputs.shape[2:], layer.kernel_size, layer.strides)
        missing = [max(0, (-(-length // stride) - 1) * stride + size - length) for length, size, stride in sides]
        (top, bottom), (left, right) = ((count // 2, count - count // 2) for count in missing)
        inputs = torch.nn.functional.pad(inputs, (left, right, top, bottom))
    outputs = torch.nn.functional.conv2d(inputs, kernel, bias, stride=layer.strides, padding=padding)
    return layer.activation(outputs.permute(0, 2, 3, 1))  # (B, H, W, C)


def _lay_out(kernel):
    """Bring a convolution's kernel, of shape HWIO and to stay so, into the order OHWI in memory."""
    import torch

    with torch.no_grad():
        ordered = kernel.value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        kernel.value.data = ordered.permute(2, 3, 1, 0)


def _run_and_let_go(function, inputs, operation_fn=lambda operation: operation, call_fn=None):
    """`keras.Function._run_through_graph`, but each tensor goes after its last use; Keras 3.15 keeps all to the end."""
    nodes = [
        node
        for depth in sorted(function._nodes_by_depth, reverse=True)
        for node in function._nodes_by_depth[depth]
        if node.operation and not node.is_input
    ]
    uses = collections.Counter(id(x) for node in nodes for x in node.input_tensors)
    uses.update(id(x) for x in function.outputs)
    tensors = {id(x): tensor for x, tensor in zip(function.inputs, keras.tree.flatten(inputs))}
    call_fn = call_fn or (lambda operation, *args, **kwargs: operation(*args, **kwargs))
    for node in nodes:
        args, kwargs = node.arguments.fill_in(tensors)
        outputs = call_fn(operation_fn(node.operation), *args, **kwargs)
        tensors |= {id(x): tensor for x, tensor in zip(node.outputs, keras.tree.flatten(outputs))}
        del args, kwargs, outputs
        for x in node.input_tensors:
            uses[id(x)] -= 1
            if not uses[id(x)]:
                del tensors[id(x)]
    return keras.tree.pack_sequence_as(function._outputs_struct, [tensors[id(x)] for x in function.outputs])


def _torch_pooling(layer, inputs):
    import torch

    return torch.nn.functional.max_pool2d(inputs.permute(0, 3, 1, 2), tuple(layer.pool_size)).permute(0, 2, 3, 1)


def _torch_dense(layer, inputs, training=None):
    import torch

    bias = layer.bias.value if layer.use_bias else None
    return layer.activation(torch.nn.functional.linear(inputs, layer.kernel.value.t(), bias))


def _torch_group_norm(layer, inputs):
    import torch

    inputs = inputs.permute(0, 3, 1, 2)  # (B, C, H, W)
    outputs = torch.nn.functional.group_norm(inputs, layer.groups, layer.gamma.value, layer.beta.value, layer.epsilon)
    return outputs.permute(0, 2, 3, 1)


@functools.cache
def _jax_pooling():
    import jax
    import jax.numpy as jnp

    def windows(size, inputs):
        """The elements of each window along a new first axis, in row-major order: (h·w, B, H/h, W/w, C)."""
        (h, w), (batch, height, width, channels) = size, inputs.shape
        rows, columns = height // h, width // w
        inputs = inputs[:, : rows * h, : columns * w].reshape(batch, rows, h, columns, w, channels)
        return [inputs[:, :, i, :, j] for i in range(h) for j in range(w)]

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def pooling(size, inputs):
        return functools.reduce(jnp.maximum, windows(size, inputs))

    def forward(size, inputs):
        elements = windows(size, inputs)
        maximum = functools.reduce(jnp.maximum, elements)
        position = jnp.full(maximum.shape, len(elements) - 1, jnp.int8)
        for index in reversed(range(len(elements) - 1)):  # the first of equal elements wins
            position = jnp.where(elements[index] == maximum, jnp.int8(index), position)
        return maximum, (position, inputs)

    def backward(size, residual, gradient):
        position, inputs = residual
        (h, w), (batch, height, width, channels) = size, inputs.shape
        rows, columns = height // h, width // w
        index = jnp.arange(h * w, dtype=jnp.int8).reshape(1, 1, h, 1, w, 1)
        spread = jnp.where(position[:, :, None, :, None] == index, gradient[:, :, None, :, None], 0)
        spread = spread.reshape(batch, rows * h, columns * w, channels)
        pad = ((0, 0), (0, height - rows * h), (0, width - columns * w), (0, 0))
        return (jnp.pad(spread, pad) if any(b for _, b in pad) else spread,)

    pooling.defvjp(forward, backward)
    return lambda layer, inputs: pooling(tuple(layer.pool_size), inputs)
