"""The fast paths of stock layers on PyTorch: its own functions, on channels-last tensors.

Keras 3.15 on PyTorch copies every channels-last tensor to channels-first and back around each convolution and pooling,
adds biases in a pass of its own, and normalizes in a dozen passes. Here tensors stay channels-last (PyTorch's
`torch.channels_last` memory format), biases go into the convolution or product, and normalizations are PyTorch's own.

Each function takes a layer and the arguments of its `call`, and returns its outputs, or `NotImplemented` where it does
not apply to these inputs. Letters: B batch, H height, W width, C channels.
"""

import functools
from typing import Any

import keras

from zoo.fast_paths.products import has_dtype_of, kernel_value
from zoo.typing import Tensor


def reorder_kernel(kernel: keras.Variable) -> None:
    """Store a convolution's kernel in the order OHWI in memory; its shape and values stay.

    Args:
        kernel: variable of shape HWIO.
    """
    import torch

    with torch.no_grad():
        ordered = kernel.value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        kernel.value.data = ordered.permute(2, 3, 1, 0)


def convolution(layer: keras.layers.Conv2D, inputs: Tensor) -> Tensor:
    """`torch.nn.functional.conv2d` with its bias.

    Args:
        layer: stock layer to which it applies.
        inputs: (B, H, W, C).

    Returns:
        tensor, (B, H', W', C'), or `NotImplemented`.
    """
    if not has_dtype_of(layer, inputs):
        return NotImplemented
    return _convolution(layer, inputs, kernel_value(layer), layer.groups)


def depthwise_convolution(layer: keras.layers.DepthwiseConv2D, inputs: Tensor) -> Tensor:
    """`torch.nn.functional.conv2d` with a group for each channel.

    Args:
        layer: stock layer to which it applies.
        inputs: (B, H, W, C).

    Returns:
        tensor, (B, H', W', C times the depth multiplier), or `NotImplemented`.
    """
    if not has_dtype_of(layer, inputs):
        return NotImplemented
    kernel = layer.kernel.value  # (h, w, C, multiplier)
    return _convolution(layer, inputs, kernel.flatten(2)[:, :, None], kernel.shape[2])


def _convolution(layer, inputs, kernel, groups):
    import torch

    kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)  # HWIO -> OIHW
    bias = layer.bias.value if layer.use_bias else None
    inputs, padding = inputs.permute(0, 3, 1, 2), (0, 0)  # (B, C, H, W)
    if layer.padding == "same":
        axes = list(zip(inputs.shape[2:], layer.kernel_size, layer.strides, layer.dilation_rate))
        reaches = [(size - 1) * dilation + 1 for _, size, _, dilation in axes]
        totals = [
            max(0, (-(-length // stride) - 1) * stride + reach - length)
            for (length, _, stride, _), reach in zip(axes, reaches)
        ]
        if any(total % 2 for total in totals):  # the larger half goes to the bottom and the right
            (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
            inputs = torch.nn.functional.pad(inputs, (left, right, top, bottom))
        else:
            padding = tuple(total // 2 for total in totals)
    outputs = torch.nn.functional.conv2d(inputs, kernel, bias, layer.strides, padding, layer.dilation_rate, groups)
    outputs = outputs.permute(0, 2, 3, 1)  # (B, H, W, C)
    return outputs if layer.activation is None else layer.activation(outputs)


def max_pooling(layer: keras.layers.MaxPooling2D, inputs: Tensor) -> Tensor:
    """`torch.nn.functional.max_pool2d`.

    Args:
        layer: stock layer to which it applies.
        inputs: (B, H, W, C).

    Returns:
        tensor, (B, H', W', C).
    """
    return _pool("max_pool2d", layer, inputs)


def average_pooling(layer: keras.layers.AveragePooling2D, inputs: Tensor) -> Tensor:
    """`torch.nn.functional.avg_pool2d`.

    Args:
        layer: stock layer to which it applies.
        inputs: (B, H, W, C).

    Returns:
        tensor, (B, H', W', C).
    """
    return _pool("avg_pool2d", layer, inputs)


def _pool(name, layer, inputs):
    """A function of `torch.nn.functional` on a view of (B, H, W, C) as (B, C, H, W)."""
    import torch

    pool, size, strides = getattr(torch.nn.functional, name), tuple(layer.pool_size), tuple(layer.strides)
    return pool(inputs.permute(0, 3, 1, 2), size, strides).permute(0, 2, 3, 1)


def batch_normalization(
    layer: keras.layers.BatchNormalization, inputs: Tensor, training: bool | None = None, mask: Any = None
) -> Tensor:
    """`torch.batch_norm` with Keras' statistics of the batch, and PyTorch's gradient.

    PyTorch's own statistics on a CPU add the values one after another, which loses a digit or two of float32.

    Args:
        layer: stock layer to which it applies.
        inputs: any shape with the layer's axis.
        training: whether the statistics are the batch's.
        mask: None.

    Returns:
        tensor, the shape of the inputs, or `NotImplemented`.
    """
    import torch

    if mask is not None or not has_dtype_of(layer, inputs):
        return NotImplemented
    gamma = layer.gamma.value if layer.scale else None
    beta = layer.beta.value if layer.center else None
    inputs = inputs.movedim(layer.axis, 1)  # (B, C, ...)
    if training and layer.trainable:
        outputs, mean, variance = _batch_norm_function().apply(inputs, gamma, beta, layer.epsilon)
        for moving, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving.value * layer.momentum + new * (1.0 - layer.momentum))
    else:
        mean, variance = layer.moving_mean.value, layer.moving_variance.value
        outputs = torch.batch_norm(inputs, gamma, beta, mean, variance, False, 0.0, layer.epsilon, True)
    return outputs.movedim(1, layer.axis)


@functools.cache
def _batch_norm_function():
    import torch

    class BatchNorm(torch.autograd.Function):
        @staticmethod
        def forward(context, inputs, gamma, beta, epsilon):
            axes = [axis for axis in range(inputs.ndim) if axis != 1]
            mean = inputs.mean(axes)
            variance = inputs.square().mean(axes) - mean.square()
            context.save_for_backward(inputs, gamma, mean, (variance + epsilon).rsqrt())
            context.epsilon, context.has_beta = epsilon, beta is not None
            context.mark_non_differentiable(mean, variance)
            outputs = torch.batch_norm(inputs, gamma, beta, mean, variance, False, 0.0, epsilon, True)
            return outputs, mean, variance

        @staticmethod
        def backward(context, gradient, *_):
            inputs, gamma, mean, inverse = context.saved_tensors
            needed = (context.needs_input_grad[0], gamma is not None, context.has_beta)
            gradients = torch.ops.aten.native_batch_norm_backward(
                gradient, inputs, gamma, None, None, mean, inverse, True, context.epsilon, needed
            )
            return *(one if wanted else None for one, wanted in zip(gradients, needed)), None

    return BatchNorm


def group_normalization(layer: keras.layers.GroupNormalization, inputs: Tensor) -> Tensor:
    """`torch.nn.functional.group_norm`.

    Args:
        layer: stock layer to which it applies.
        inputs: (B, ..., C).

    Returns:
        tensor, the shape of the inputs, or `NotImplemented`.
    """
    import torch

    if not has_dtype_of(layer, inputs):
        return NotImplemented
    gamma = layer.gamma.value if layer.scale else None
    beta = layer.beta.value if layer.center else None
    inputs = inputs.movedim(-1, 1)  # (B, C, ...)
    return torch.nn.functional.group_norm(inputs, layer.groups, gamma, beta, layer.epsilon).movedim(1, -1)


def dropout(layer: keras.layers.Dropout, inputs: Tensor, training: bool = False) -> Tensor:
    """What Keras drops out for the same seed, by one product with the scaled mask.

    `torch.bernoulli` of a tensor draws a uniform number for each of its elements too, at four times the price.

    Args:
        layer: stock layer to which it applies.
        inputs: any shape, float32.
        training: whether anything is dropped.

    Returns:
        tensor, the shape of the inputs, or `NotImplemented`.
    """
    import torch

    if not training or inputs.dtype != torch.float32 or inputs.device.type != "cpu":
        return NotImplemented
    first, second = layer.seed_generator.next()
    generator = torch.Generator().manual_seed(int(first + second) & 0xFFFFFFFF)
    kept = torch.rand(inputs.shape, generator=generator).lt_(1.0 - layer.rate)
    return inputs * kept.div_(1.0 - layer.rate)
