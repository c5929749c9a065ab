"""Layers that are a matrix product, on PyTorch and JAX: `Dense`, `EinsumDense`, `ReversibleEmbedding`.

    y = x W + b,        dx = dy Wᵀ,    dW = xᵀ dy,    db = sum of dy

Keras 3.15 adds biases in a pass of its own. On a CPU there is more to gain:

- PyTorch multiplies float32 by MKL, which on an AMD processor reaches half the speed of oneDNN or less (107 and 245
  GFLOP/s a core of an EPYC with AVX-512). `linear` takes oneDNN for y, dx and dW.
- XLA calls its library for a product over one axis alone. x with three axes or more has dW over two, which took two to
  three times as long; here x has two. And it adds up over several axes one number at a time; here db is a product.

`dense` and the others take a layer and the arguments of its `call`, and return its outputs, or `NotImplemented` where
they do not apply to these inputs.
"""

import functools
import math
import re

import keras

from zoo.compat.keras import lora_base_kernel
from zoo.typing import Tensor

_FEWEST_MULTIPLICATIONS = 2**19  # below, the gain is less than what it costs to call it


def dense(layer: keras.layers.Dense, inputs: Tensor, training: bool | None = None) -> Tensor:
    """`linear`, and the low-rank product of `enable_lora` beside it.

    Args:
        layer: stock layer to which it applies.
        inputs: (..., features).
        training: without effect, as in Keras.

    Returns:
        tensor, (..., units), or `NotImplemented`.
    """
    if not has_dtype_of(layer, inputs):
        return NotImplemented
    outputs = linear(inputs, lora_base_kernel(layer).value, layer.bias.value if layer.use_bias else None)
    if layer.lora_enabled:  # x W + s (x A) B: no gradient of the size of W, which x (W + s A B) would need
        a, b = (keras.ops.cast(part, inputs.dtype) for part in (layer.lora_kernel_a, layer.lora_kernel_b))
        outputs = outputs + layer.lora_alpha / layer.lora_rank * (inputs @ a @ b)
    return outputs if layer.activation is None else layer.activation(outputs)


def einsum_dense(layer: keras.layers.EinsumDense, inputs: Tensor, training: bool | None = None) -> Tensor:
    """`linear` on the last axes, in place of an einsum and a sum.

    Args:
        layer: stock layer to which it applies.
        inputs: with the axes of the equation.
        training: without effect, as in Keras.

    Returns:
        tensor, with the axes of the equation, or `NotImplemented`.
    """
    contracted = num_contracted_axes(layer.equation)
    if not contracted or not has_dtype_of(layer, inputs):
        return NotImplemented
    kernel, batch = kernel_value(layer), tuple(inputs.shape[:-contracted])
    bias = None if layer.bias is None else layer.bias.value
    features = tuple(kernel.shape[contracted:])
    if bias is not None and tuple(bias.shape) != features:
        return NotImplemented
    matrix = kernel.reshape(-1, math.prod(features))
    outputs = linear(inputs.reshape(*batch, matrix.shape[0]), matrix, None if bias is None else bias.reshape(-1))
    outputs = outputs.reshape(*batch, *features) if len(features) > 1 else outputs
    return outputs if layer.activation is None else layer.activation(outputs)


def reversible_embedding(layer: keras.layers.ReversibleEmbedding, inputs: Tensor, reverse: bool = False) -> Tensor:
    """`linear` for the logits; the embedding itself is Keras'.

    Args:
        layer: stock layer to which it applies.
        inputs: (..., width) if reversed.
        reverse: whether logits are asked for.

    Returns:
        tensor, (..., entries of the vocabulary), or `NotImplemented`.
    """
    if not reverse or not has_dtype_of(layer, inputs):
        return NotImplemented
    table = keras.ops.convert_to_tensor(layer.embeddings if layer.tie_weights else layer.reverse_embeddings)
    return linear(inputs, table.T if layer.tie_weights else table, None)


@functools.cache
def num_contracted_axes(equation: str) -> int:
    """How many of the last axes of the inputs an einsum multiplies by the first axes of a kernel, in order.

    Args:
        equation: of `keras.layers.EinsumDense`, e.g. "abc,cde->abde".

    Returns:
        the number; 0 where the einsum is no product of that form.
    """
    match = re.fullmatch(r"(\.\.\.)?(\w*),(\w+)->(\.\.\.)?(\w*)", equation.replace(" ", ""))
    if match is None or match[1] != match[4]:
        return 0
    inputs, kernel, outputs = match[2], match[3], match[5]
    for count in range(1, min(len(inputs), len(kernel) - 1) + 1):
        batch, rest = inputs[:-count], kernel[count:]
        letters = batch + kernel
        if inputs[-count:] == kernel[:count] and outputs == batch + rest and len(set(letters)) == len(letters):
            return count
    return 0


def kernel_value(layer: keras.layers.Layer) -> Tensor:
    """The kernel of a layer as a tensor, with the low-rank product of `enable_lora` if there is one.

    Args:
        layer: with a `kernel`.

    Returns:
        tensor, which on PyTorch shares the variable's memory without `enable_lora`.
    """
    kernel = layer.kernel
    return kernel.value if isinstance(kernel, keras.Variable) else kernel


def has_dtype_of(layer: keras.layers.Layer, inputs: Tensor) -> bool:
    """Whether inputs have the dtype of a layer's weights.

    Args:
        layer: any.
        inputs: of the layer.

    Returns:
        True or False.
    """
    return str(inputs.dtype).removeprefix("torch.") == layer.variable_dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W + b with its gradients, by the fastest way on PyTorch or JAX.

    Args:
        x: (..., d).
        weight: W, (d, n), in any order in memory.
        bias: b, (n,); None for none.

    Returns:
        tensor, (..., n).
    """
    if keras.backend.backend() == "jax":
        rows = math.prod(x.shape[:-1])
        outputs = x.reshape(rows, x.shape[-1]) @ weight
        outputs = outputs if bias is None else outputs + _jax_rows()(bias, rows)
        return outputs.reshape(*x.shape[:-1], weight.shape[1])
    import torch

    if not _is_for_onednn(x, weight):
        return torch.nn.functional.linear(x, weight.t(), bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias is not None and bias.requires_grad):
        return _torch_product().apply(x, weight, bias)
    return _onednn()(x, weight.t(), bias)


def sum_over_rows(x: Tensor) -> Tensor:
    """The sum over all axes but the last, on JAX, as a product with ones.

    XLA's own sum over several axes on a CPU takes 50 times as long as one over the first of two, which it makes of it.

    Args:
        x: (..., n).

    Returns:
        tensor, (n,).
    """
    import jax.numpy as jnp

    rows = math.prod(x.shape[:-1])
    return (jnp.ones((1, rows), x.dtype) @ x.reshape(rows, x.shape[-1]))[0]


def in_each_row(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter of the last axis, such as a bias, in the shape of x, on JAX; its gradient is `sum_over_rows`.

    Args:
        parameter: (n,).
        x: (..., n).

    Returns:
        tensor, (..., n).
    """
    return _jax_rows()(parameter, math.prod(x.shape[:-1])).reshape(x.shape)


@functools.cache
def _jax_rows():
    import jax
    import jax.numpy as jnp

    @functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
    def rows(bias, count):
        """A bias (n,) as `count` rows; its gradient is a product with ones, see `sum_over_rows`."""
        return jnp.broadcast_to(bias, (count, bias.shape[0]))

    @rows.defjvp
    def derivative(count, primals, tangents):
        return rows(*primals, count), jnp.ones((count, 1), tangents[0].dtype) @ tangents[0][None]

    return rows


@functools.cache
def _onednn():
    from zoo.compat.torch import linear_operation

    return linear_operation()


def _is_for_onednn(x, weight):
    """Whether oneDNN takes a product: large enough, float32 on a CPU, and neither traced by a compiler nor exported."""
    import torch

    return (
        x.numel() * weight.shape[1] >= _FEWEST_MULTIPLICATIONS
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and _onednn() is not None
        and not torch.jit.is_tracing()  # whose graphs cannot hold the operation
        and not torch.compiler.is_compiling()
        and not torch.onnx.is_in_onnx_export()
        and not torch.is_autocast_enabled("cpu")
    )


def product_over_rows(x: Tensor, y: Tensor) -> Tensor:
    """The product xᵀ y on PyTorch, so that the smaller one is the one that is copied, transposed.

    Args:
        x: (B, d).
        y: (B, n).

    Returns:
        tensor, (d, n).
    """
    return linear(x.t(), y, None) if x.shape[1] <= y.shape[1] else linear(y.t(), x, None).t()


@functools.cache
def _torch_product():
    import torch

    class Product(torch.autograd.Function):
        """x W + b by oneDNN. Its gradients are such products, so that it can be differentiated again."""

        @staticmethod
        def forward(x, weight, bias):
            return _onednn()(x, weight.t(), bias)

        @staticmethod
        def setup_context(context, inputs, output):
            context.save_for_backward(*inputs[:2])

        @staticmethod
        def backward(context, gradient):
            x, weight = context.saved_tensors
            gradient = gradient.contiguous()  # that of a sum is one number, seen as many
            flat = gradient.flatten(0, -2)  # (B, n)
            wants_x, wants_weight, wants_bias = context.needs_input_grad
            return (
                linear(gradient, weight.t(), None) if wants_x else None,
                product_over_rows(x.flatten(0, -2), flat) if wants_weight else None,
                flat.sum(0) if wants_bias else None,
            )

    return Product
