"""Which stock layers and operations of graphs have a fast path on which backend, and where it does not apply.

A `FastPath` takes the place of one method of a layer object, by a `FastCall` among the object's attributes: the class,
the configuration and the weights stay as they are, and files know nothing of it. It decides at every call: a layer that
has been changed since, and inputs that it is not made for, take the stock way.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import layers

from zoo.compat.keras import graph_calls


@dataclasses.dataclass(frozen=True)
class FastPath:
    """A faster way through the stock layers of one class.

    Attributes:
        method: the layer's method whose place it takes.
        run: function (layer, *args, **kwargs) with the arguments of that method, which returns what it does, or
            `NotImplemented` where the fast path does not apply to these arguments.
        why_not: function of a layer that says in a few words why the fast path does not apply to it, "" where it does.
        means: what computes the layer, in a few words.
    """

    method: str
    run: Callable[..., Any]
    why_not: Callable[[keras.Operation], str]
    means: str


class FastCall:
    """What stands in a layer object in place of a method.

    Args:
        layer: stock layer.
        path: the `FastPath`.
    """

    def __init__(self, layer: keras.layers.Layer, path: FastPath) -> None:
        self.layer, self.path = layer, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.path.why_not(self.layer) and not _are_symbolic(args):
            outputs = self.path.run(self.layer, *args, **kwargs)
            if outputs is not NotImplemented:
                return outputs
        return getattr(type(self.layer), self.path.method)(self.layer, *args, **kwargs)


def _are_symbolic(args):
    """Whether tensors have no values: Keras on PyTorch infers shapes by calls on the "meta" device."""
    return keras.backend.backend() == "torch" and bool(args) and getattr(args[0], "is_meta", False)


def fast_paths() -> Mapping[type, FastPath]:
    """{class of stock layers: its `FastPath`} of the current backend and its device."""
    backend = keras.backend.backend()
    if backend == "torch":
        return _torch_paths()
    return _jax_paths() if backend == "jax" else _tensorflow_paths()


def inference_paths() -> Mapping[type, FastPath]:
    """As `fast_paths`, for `inference_call`, where gradients are not asked for; {} where the stock way is as good."""
    backend = keras.backend.backend()
    if backend == "torch":
        return _torch_paths()
    return _jax_inference_paths() if backend == "jax" else {}


@functools.cache
def _jax_inference_paths():
    import jax

    if jax.default_backend() != "cpu":
        return {}
    from zoo.fast_paths.jax_layers import attention

    means = "a block of queries of one head after the other"
    return {_attention_operation(): FastPath("call", attention, _why_no_attention, means)}


def _attention_operation():
    """The class of what `keras.ops.dot_product_attention` puts into the graph of a functional model."""
    inputs = keras.Input((4, 2, 8))
    model = keras.Model(inputs, keras.ops.dot_product_attention(inputs, inputs, inputs))
    return type(graph_calls(model)[0].operation)


def _gelu_operation():
    """The class of what `keras.ops.gelu` puts into the graph of a functional model."""
    inputs = keras.Input((1,))
    return type(graph_calls(keras.Model(inputs, keras.ops.gelu(inputs)))[0].operation)


def _why_no_gelu(operation):
    return "the approximation by tanh" if operation.approximate else ""


def _why_no_attention(operation):
    if operation.is_causal:
        return "is causal"
    return "has a soft cap" if operation.attn_logits_soft_cap is not None else ""


@functools.cache
def _torch_paths():
    from zoo.fast_paths import torch_layers

    def path(run, why_not, means):
        return FastPath("call", run, why_not, means)

    return {
        layers.Conv2D: path(torch_layers.convolution, _why_no_convolution, "conv2d, channels-last"),
        layers.DepthwiseConv2D: path(torch_layers.depthwise_convolution, _why_no_convolution, "conv2d, channels-last"),
        layers.MaxPooling2D: path(torch_layers.max_pooling, _why_no_pooling, "max_pool2d, channels-last"),
        layers.AveragePooling2D: path(torch_layers.average_pooling, _why_no_pooling, "avg_pool2d, channels-last"),
        layers.BatchNormalization: path(torch_layers.batch_normalization, _why_no_batch_norm, "batch_norm"),
        layers.GroupNormalization: path(torch_layers.group_normalization, _why_no_group_norm, "group_norm"),
        layers.Dropout: path(torch_layers.dropout, _why_no_dropout, "one product with the scaled mask"),
        **_product_paths("linear, on a CPU by oneDNN"),
        **_recurrent_paths(),
    }


@functools.cache
def _jax_paths():
    import jax

    found = _recurrent_paths()
    if jax.default_backend() == "cpu":
        from zoo.fast_paths import jax_layers

        means = "elementwise gradient from the positions of the maxima"
        found[layers.MaxPooling2D] = FastPath("call", jax_layers.max_pooling, _why_no_jax_pooling, means)
        found[_gelu_operation()] = FastPath("call", jax_layers.gelu, _why_no_gelu, "erf in place of erfc")
        means = "gradient of the bias by a product"
        found[layers.Conv2D] = FastPath("call", jax_layers.convolution, _why_no_bias, means)
        means = "gradients of scale and offset by products"
        found[layers.LayerNormalization] = FastPath("call", jax_layers.layer_normalization, _why_no_layer_norm, means)
        found |= _product_paths("a product of matrices, and so its gradient")
    return found


@functools.cache
def _tensorflow_paths():
    from zoo.fast_paths.tensorflow_layers import batch_normalization

    fused = FastPath("call", batch_normalization, _why_no_tensorflow_batch_norm, "FusedBatchNormV3")
    return {layers.BatchNormalization: fused, **_recurrent_paths()}


def _product_paths(means):
    from zoo.fast_paths import products

    return {
        layers.Dense: FastPath("call", products.dense, _why_not_dtype, means),
        layers.EinsumDense: FastPath("call", products.einsum_dense, _why_no_einsum, means),
        layers.ReversibleEmbedding: FastPath("call", products.reversible_embedding, _why_no_logits, means),
    }


def _recurrent_paths():
    from zoo.fast_paths.recurrent import inner_loop, why_not

    means = "one product before the loop over time, gradient by hand"
    return {kind: FastPath("inner_loop", inner_loop, why_not, means) for kind in (layers.LSTM, layers.GRU)}


def _why_not_dtype(layer):
    if layer.quantization_mode is not None:
        return "is quantized"
    if layer.compute_dtype != layer.variable_dtype:
        return f"computes in {layer.compute_dtype}, with weights of {layer.variable_dtype}"
    return ""


def _why_no_convolution(layer):
    if layer.data_format != "channels_last":
        return "channels_first"
    if layer.padding not in ("valid", "same"):
        return f"{layer.padding} padding"
    return _why_not_dtype(layer)


def _why_no_einsum(layer):
    from zoo.fast_paths.products import num_contracted_axes

    if not num_contracted_axes(layer.equation):
        return f"{layer.equation} is no product over the last axes"
    return _why_not_dtype(layer)


def _why_no_logits(layer):
    if layer.reverse_dtype is not None:
        return "a reverse_dtype"
    return "a soft cap" if layer.logit_soft_cap is not None else _why_not_dtype(layer)


def _why_no_bias(layer):
    return _why_no_convolution(layer) if layer.use_bias else "no bias"


def _why_no_layer_norm(layer):
    if layer.rms_scaling:
        return "rms_scaling"
    if not isinstance(layer.axis, int) and len(layer.axis) > 1:
        return "over several axes"
    return _why_not_dtype(layer)


def _why_no_dropout(layer):
    if layer.seed is None:
        return "PyTorch's own dropout, without a seed"
    if layer.rate in (0, 1):
        return "drops nothing, or all"
    return "a noise_shape" if layer.noise_shape is not None else ""


def _why_no_pooling(layer):
    if layer.data_format != "channels_last":
        return "channels_first"
    return "" if layer.padding == "valid" else f"{layer.padding} padding"


def _why_no_jax_pooling(layer):
    if tuple(layer.strides) != tuple(layer.pool_size):
        return "its windows overlap, or leave gaps"
    return _why_no_pooling(layer)


def _why_no_batch_norm(layer):
    if getattr(layer, "renorm", False):  # since Keras 3.15
        return "batch renormalization"
    if layer.synchronized:
        return "synchronized over devices"
    return _why_not_dtype(layer)


def _why_no_tensorflow_batch_norm(layer):
    if layer.built and (layer.input_spec.ndim != 4 or layer.axis not in (-1, 3)):
        return "not over the last of four axes"
    return _why_no_batch_norm(layer)


def _why_no_group_norm(layer):
    if layer.axis != -1:
        return "not over the last axis"
    return "scale or center alone" if layer.scale != layer.center else _why_not_dtype(layer)
