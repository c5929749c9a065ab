"""Faster convolution, pooling and recurrence for the same layers, weights and files.

`use_fast_paths(model)` replaces the `call` of stock `Conv2D` and `MaxPooling2D` layers of one model object, and the
loop of `LSTM` and `GRU` layers (`zoo.training.fast_recurrence`), by an
equivalent that suits the backend. Nothing about the model's configuration, weights or saved file changes, and the
result is the same up to the order of float32 sums. What is wrong with the stock path, measured on the CNN of this
project (see `benchmarks/cnn_training.py`):

- PyTorch: Keras 3.15 copies every channels-last tensor to channels-first and back around each convolution and pooling
  (`_transpose_spatial_inputs`), and adds the bias in a pass of its own. Here the tensors stay channels-last (PyTorch's
  `torch.channels_last` memory format) and the bias goes into the convolution.
- JAX on a CPU: XLA differentiates a maximum pooling by `select_and_scatter`, which runs on one thread. Here the
  position of each maximum is kept from the forward pass, and the gradient is one elementwise pass.
- TensorFlow: the stock path is good; nothing is replaced.

`set_compiler_flags()` is the other half on JAX: with XLA's matrix products and convolutions handed to its YNNPACK
library as `dot` fusions, the same float32 arithmetic runs twice as fast on a CPU.
"""

import functools
import importlib.metadata
import os

import keras
from keras import layers

from zoo.training.fast_recurrence import fast_recurrence


def use_fast_paths(model):
    """Give every eligible layer of a model, nested ones included, the fast path of the current backend.

    Eligible are channels-last `Conv2D` without strides, dilation or groups, and `MaxPooling2D` whose windows do not
    overlap or pad. Other layers, and the TensorFlow backend, are left as they are.
    """
    fast_convolution, fast_pooling = _paths()
    for layer in model._flatten_layers():
        if type(layer) is layers.Conv2D and fast_convolution and _plain_convolution(layer):
            layer.call = functools.partial(fast_convolution, layer)
        if type(layer) is layers.MaxPooling2D and fast_pooling and _plain_pooling(layer):
            layer.call = functools.partial(fast_pooling, tuple(layer.pool_size))
        if recurrence := fast_recurrence(layer):
            layer.inner_loop = recurrence


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
    """(convolution, pooling) of the backend; None where the stock path stays."""
    backend = keras.backend.backend()
    if backend == "torch":
        return _torch_convolution, _torch_pooling
    if backend == "jax":
        import jax

        if jax.default_backend() == "cpu":
            return None, _jax_pooling()
    return None, None


def _plain_convolution(layer):
    odd = all(size % 2 for size in layer.kernel_size)
    return (
        layer.data_format == "channels_last"
        and (layer.padding == "valid" or (layer.padding == "same" and odd))
        and set(layer.strides) == set(layer.dilation_rate) == {1}
        and layer.groups == 1
        and not layer.lora_enabled
        and layer.compute_dtype == layer.variable_dtype
    )


def _plain_pooling(layer):
    return (
        layer.data_format == "channels_last"
        and layer.padding == "valid"
        and tuple(layer.strides) == tuple(layer.pool_size)
    )


def _torch_convolution(layer, inputs):
    import torch

    kernel = layer.kernel.value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)  # HWIO -> OIHW
    bias = layer.bias.value if layer.use_bias else None
    padding = [size // 2 for size in layer.kernel_size] if layer.padding == "same" else 0
    outputs = torch.nn.functional.conv2d(inputs.permute(0, 3, 1, 2), kernel, bias, padding=padding)  # (B, C, H, W)
    return layer.activation(outputs.permute(0, 2, 3, 1))  # (B, H, W, C)


def _torch_pooling(size, inputs):
    import torch

    return torch.nn.functional.max_pool2d(inputs.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


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
    return pooling
