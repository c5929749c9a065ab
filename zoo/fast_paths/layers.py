"""Faster paths through stock layers: the same layers, weights and files.

For training, `use_fast_paths(model)` gives the stock layers of one model object another `call`, and its `LSTM` and
`GRU` layers another loop (`zoo.fast_paths.recurrent`). For inference, `inference_call(model)` is a function that runs
the same layers and leaves the model as it is. Configuration, weights and saved files stay the same, and so do results
up to the order of float32 sums. What is slow in the stock path (see `benchmarks/`):

- PyTorch: Keras 3.15 copies every channels-last tensor to channels-first and back around each convolution and
  pooling, adds biases in a pass of its own, normalizes groups in a dozen passes, and keeps every tensor of a forward
  pass to its end. Here the tensors stay channels-last (PyTorch's `torch.channels_last` memory
  format), biases go into the convolution or product, the normalization is PyTorch's own, and inference lets go of a
  tensor after its last use.
- JAX on a CPU: XLA differentiates a maximum pooling by `select_and_scatter`, which runs on one thread. Here the
  position of each maximum is kept from the forward pass, and the gradient is one elementwise pass.
- TensorFlow: the stock path is good; nothing is replaced.

`set_compiler_flags()` is the other half on JAX: with XLA's matrix products and convolutions handed to its YNNPACK
library as `dot` fusions, the same float32 arithmetic runs twice as fast on a CPU.
"""

import functools
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from zoo.compat.keras import flatten_layers, functional_graph, graph_calls, lora_base_kernel, run_graph
from zoo.fast_paths.recurrent import fast_inner_loop
from zoo.typing import Tensor


def use_fast_paths(model: keras.Model) -> None:
    """Give every eligible layer of a model, nested ones included, the fast path of the current backend.

    Eligible are channels-last `Conv2D` without dilation or groups, `MaxPooling2D` whose windows do not overlap or pad,
    `Dense`, `GroupNormalization` over the last axis, `LSTM` and `GRU`, if stock and of one dtype. Other layers, and
    all but the recurrent ones on the TensorFlow backend, are left as they are.

    Args:
        model: `keras.Model`.
    """
    paths = _paths()
    for layer in flatten_layers(model):
        eligible, fast = paths.get(type(layer), (None, None))
        if fast and eligible(layer):
            layer.call = functools.partial(fast, layer)
        if inner_loop := fast_inner_loop(layer):
            layer.inner_loop = inner_loop


def inference_call(model: keras.Model) -> Callable[[Any], Any]:
    """A function that computes what `model(inputs, training=False)` does, by the backend's fast paths.

    Nothing in the model is replaced, weights are read at each call, and several threads may call it. On PyTorch, the
    kernels of convolutions are put into the order in memory in which they are used (their shapes and values stay),
    which saves a copy at every call. After `quantize`, make a new function.

    Args:
        model: built `keras.Model`.

    Returns:
        function of the inputs, tensors in the structure that the model takes.
    """

    def stock(inputs):
        return model(inputs, training=False)

    graph = functional_graph(model)
    masks = any(isinstance(one, layers.Masking) or getattr(one, "mask_zero", False) for one in flatten_layers(model))
    if keras.backend.backend() != "torch" or graph is None or masks:
        return stock
    return _graph_call(graph, _paths())


def _graph_call(graph, paths):
    """The function of inputs that runs a functional model on PyTorch."""
    calls, fast_calls = graph_calls(graph), {}
    for one in calls:
        operation, (args, _) = one.operation, one.arguments
        if operation in fast_calls or len(args) != 1:
            continue
        eligible, fast = paths.get(type(operation), (None, None))
        same_dtype = bool(one.inputs) and one.inputs[0].dtype == getattr(operation, "compute_dtype", None)
        if fast and eligible(operation) and same_dtype:
            fast_calls[operation] = functools.partial(fast, operation)
            if fast is _torch_convolution and not operation.lora_enabled:
                _reorder_kernel(operation.kernel)
        elif isinstance(operation, keras.Model) and (inner := functional_graph(operation)):
            fast_calls[operation] = _graph_call(inner, paths)

    def call(operation, *args, **kwargs):
        fast = fast_calls.get(operation)
        return fast(*args) if fast and len(args) == 1 and not kwargs else operation(*args, **kwargs)

    def run(inputs):
        inputs = keras.tree.flatten(inputs)
        inputs = [
            keras.ops.convert_to_tensor(x, dtype=like.dtype) for x, like in zip(inputs, graph.inputs, strict=True)
        ]
        outputs = run_graph(graph, inputs, call, calls)
        return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs

    return run


def kernel_value(layer: keras.layers.Layer) -> Tensor:
    """The kernel of a layer as a tensor, with the low-rank product of `enable_lora` if there is one.

    Args:
        layer: with a `kernel`.

    Returns:
        tensor, which on PyTorch shares the variable's memory without `enable_lora`.
    """
    kernel = layer.kernel
    return kernel.value if isinstance(kernel, keras.Variable) else kernel


def set_compiler_flags() -> None:
    """On JAX, choose XLA's faster CPU kernels through `XLA_FLAGS`; call it before JAX runs its first operation.

    Only for the jaxlib releases it was measured on, because XLA ends the process on a flag it does not know, and only
    where the user has not set the flag. Accuracy was compared with float64. Products that are fused with what follows
    them, jaxlib 0.10.2's default, are left out: they give wrong numbers without a word (jax issue 39103).
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if keras.backend.backend() == "jax" and flag not in flags:
        if importlib.metadata.version("jaxlib").startswith("0.10."):
            os.environ["XLA_FLAGS"] = f"{flags} {flag}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT".strip()


def _paths():
    """{type of layer: (function that tells whether a layer is eligible, its fast path)} of the backend."""
    backend = keras.backend.backend()
    if backend == "torch":
        return {
            layers.Conv2D: (_is_plain_convolution, _torch_convolution),
            layers.MaxPooling2D: (_is_plain_pooling, _torch_pooling),
            layers.Dense: (_is_plain_dense, _torch_dense),
            layers.GroupNormalization: (_is_plain_group_norm, _torch_group_norm),
        }
    if backend == "jax":
        import jax

        if jax.default_backend() == "cpu":
            return {layers.MaxPooling2D: (_is_plain_pooling, _jax_pooling())}
    return {}


def _is_plain_convolution(layer):
    odd_kernel = all(size % 2 for size in layer.kernel_size)
    return (
        layer.data_format == "channels_last"
        and (layer.padding == "valid" or (layer.padding == "same" and (odd_kernel or set(layer.strides) != {1})))
        and set(layer.dilation_rate) == {1}
        and layer.groups == 1
        and _is_plain_dense(layer)
    )


def _is_plain_dense(layer):
    return layer.quantization_mode is None and layer.compute_dtype == layer.variable_dtype


def _is_plain_pooling(layer):
    return (
        layer.data_format == "channels_last"
        and layer.padding == "valid"
        and tuple(layer.strides) == tuple(layer.pool_size)
    )


def _is_plain_group_norm(layer):
    return layer.axis == -1 and layer.scale and layer.center and layer.compute_dtype == layer.variable_dtype


def _torch_convolution(layer, inputs):
    import torch

    kernel = kernel_value(layer).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)  # HWIO -> OIHW
    bias = layer.bias.value if layer.use_bias else None
    inputs, padding = inputs.permute(0, 3, 1, 2), [0, 0]  # (B, C, H, W)
    if layer.padding == "same" and set(layer.strides) == {1}:
        padding = [size // 2 for size in layer.kernel_size]
    elif layer.padding == "same":  # with strides, the larger half of the padding goes to the bottom and the right
        axes = zip(inputs.shape[2:], layer.kernel_size, layer.strides)
        totals = [max(0, (-(-length // stride) - 1) * stride + size - length) for length, size, stride in axes]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        inputs = torch.nn.functional.pad(inputs, (left, right, top, bottom))
    outputs = torch.nn.functional.conv2d(inputs, kernel, bias, stride=layer.strides, padding=padding)
    return layer.activation(outputs.permute(0, 2, 3, 1))  # (B, H, W, C)


def _reorder_kernel(kernel):
    """Store a convolution's kernel, of shape HWIO, in the order OHWI in memory; its shape and values stay."""
    import torch

    with torch.no_grad():
        ordered = kernel.value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        kernel.value.data = ordered.permute(2, 3, 1, 0)


def _torch_pooling(layer, inputs):
    import torch

    return torch.nn.functional.max_pool2d(inputs.permute(0, 3, 1, 2), tuple(layer.pool_size)).permute(0, 2, 3, 1)


def _torch_dense(layer, inputs, training=None):
    import torch

    bias = layer.bias.value if layer.use_bias else None
    outputs = torch.nn.functional.linear(inputs, lora_base_kernel(layer).value.t(), bias)
    if layer.lora_enabled:  # x W + s (x A) B: no gradient of the size of W, which x (W + s A B) would need
        low_rank = inputs @ layer.lora_kernel_a.value.to(inputs.dtype) @ layer.lora_kernel_b.value.to(inputs.dtype)
        outputs = outputs + layer.lora_alpha / layer.lora_rank * low_rank
    return layer.activation(outputs)


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
        """The elements of each window in row-major order: a list of h·w arrays (B, H/h, W/w, C)."""
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
