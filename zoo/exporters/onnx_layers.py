"""How each layer and operation of Keras is said in ONNX: one rule a class.

A rule is a function of (graph, layer or operation, arguments of the call) that adds nodes to a
`zoo.exporters.onnx_graph.OnnxGraph` and returns the names of the outputs.

Letters: B batch, T positions, H and W height and width, C channels, N heads, S keys, h units of a recurrent layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from zoo.blocks.attention import MASK_VALUE
from zoo.blocks.augmentation import RandomAffine
from zoo.exporters.onnx_graph import GraphTensor, onnx_dtype

Rule = Callable[..., Any]


def rule_of(operation: keras.Operation) -> Rule | None:
    """The rule of a layer or operation.

    Args:
        operation: of a functional model.

    Returns:
        a function, see above; None if there is none. A subclass that keeps the `call` of a layer has that layer's rule.
    """
    kind: Any = type(operation)
    if not isinstance(operation, layers.Layer):
        return OPERATION_RULES.get(kind.__name__) if kind.__module__.partition(".")[0] == "keras" else None
    parent: Any = next((parent for parent in kind.__mro__ if parent in LAYER_RULES), None)
    return LAYER_RULES[parent] if parent is not None and kind.call is parent.call else None


# ---------------------------------------------------------------------------------------------- functions of one tensor

# Functions of `keras.activations`, and operations of the same names in CamelCase, that ONNX has as they are.
_ONE_NODE: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "exponential": ("Exp", {}),
    "elu": ("Elu", {}),
    "selu": ("Selu", {}),
    "mish": ("Mish", {}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.2}),
    "gelu": ("Gelu", {}),
    "softmax": ("Softmax", {"axis": -1}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
}


def _activate(g, function, x):
    name = getattr(function, "__name__", type(function).__name__)
    if name == "linear":
        return x
    if name == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if name not in _ONE_NODE:
        g.unsupported(f"has the activation {name}, for which there is no rule")
    kind, attributes = _ONE_NODE[name]
    return g.op(kind, x, **attributes)


def _relu(g, layer, x):
    if layer.negative_slope or layer.threshold:
        g.unsupported("is a ReLU with a negative slope or a threshold")
    return g.op("Relu", x) if layer.max_value is None else g.op("Clip", x, 0.0, float(layer.max_value))


def _identity(g, layer, x):
    return x


# ----------------------------------------------------------------------------------------------------- weighted layers


def _dense(g, layer, x):
    _refuse_quantized(g, layer)
    y = g.op("MatMul", x, g.weight(layer.kernel))
    return _activate(g, layer.activation, g.op("Add", y, g.weight(layer.bias)) if layer.use_bias else y)


def _einsum_dense(g, layer, x):
    _refuse_quantized(g, layer)
    y = g.op("Einsum", x, g.weight(layer.kernel), equation=layer.equation)
    return _activate(g, layer.activation, y if layer.bias is None else g.op("Add", y, g.weight(layer.bias)))


def _refuse_quantized(g, layer):
    if layer.quantization_mode:
        g.unsupported(f"is quantized to {layer.quantization_mode} already")


def _embedding(g, layer, x):
    _refuse_quantized(g, layer)
    if layer.mask_zero:
        g.unsupported("masks the token 0 (mask_zero)")
    return g.op("Gather", g.weight(layer.embeddings), x)


def _reversible_embedding(g, layer, x, reverse=False):
    if not reverse:
        return _embedding(g, layer, x)
    if layer.tie_weights:
        kernel = g.op("Transpose", g.weight(layer.embeddings), perm=[1, 0])
    else:
        kernel = g.weight(layer.reverse_embeddings)
    if layer.logit_soft_cap is not None:
        g.unsupported("caps its logits")
    return g.op("MatMul", x, kernel)


def _spatial(g, layer, x, kind, *inputs, **attributes):
    """An operator over images (B, C, H, W), or sequences (B, C, T), in the layer's own format."""
    rank = len(x.shape)
    if layer.data_format == "channels_first":
        return g.op(kind, x, *inputs, **attributes)
    x = g.op("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])
    return g.op("Transpose", g.op(kind, x, *inputs, **attributes), perm=[0, *range(2, rank), 1])


def _window(sizes, strides, padding, dilations=None):
    """Attributes of a window that moves over images."""
    dilations = dilations or [1] * len(sizes)
    attributes: dict[str, Any] = {"kernel_shape": list(sizes), "strides": list(strides), "dilations": list(dilations)}
    spans = [dilation * (size - 1) for size, dilation in zip(sizes, dilations)]
    if padding == "causal":
        attributes["pads"] = [*spans, *[0] * len(spans)]
    elif padding == "same" and max(strides) == 1:
        attributes["pads"] = [span // 2 for span in spans] + [span - span // 2 for span in spans]
    elif padding == "same":
        attributes["auto_pad"] = "SAME_UPPER"  # depends on the size of the image
    return attributes


def _convolution(g, layer, x):
    _refuse_quantized(g, layer)
    rank = len(layer.kernel_size)
    kernel = g.weight(layer.kernel, lambda a: a.transpose(rank + 1, rank, *range(rank)), "channels_first")
    bias = [g.weight(layer.bias)] if layer.use_bias else []
    window = _window(layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    return _activate(g, layer.activation, _spatial(g, layer, x, "Conv", kernel, *bias, group=layer.groups, **window))


def _depthwise_convolution(g, layer, x):
    rank, channels = len(layer.kernel_size), layer.kernel.shape[-2]

    def change(a):  # (H, W, C, multiplier) to (C * multiplier, 1, H, W)
        return a.transpose(rank, rank + 1, *range(rank)).reshape(-1, 1, *a.shape[:rank])

    bias = [g.weight(layer.bias)] if layer.use_bias else []
    window = _window(layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    kernel = g.weight(layer.kernel, change, "channels_first")
    return _activate(g, layer.activation, _spatial(g, layer, x, "Conv", kernel, *bias, group=channels, **window))


def _pooling(kind, **attributes):
    def rule(g, layer, x):
        window = _window(layer.pool_size, layer.strides, layer.padding)
        return _spatial(g, layer, x, kind, **window, **attributes)

    return rule


def _global_pooling(kind):
    def rule(g, layer, x):
        first = layer.data_format == "channels_first"
        axes = list(range(2, len(x.shape)) if first else range(1, len(x.shape) - 1))
        return g.op(kind, x, axes, keepdims=int(layer.keepdims))

    return rule


# ------------------------------------------------------------------------------------------------------- normalization


def _layer_normalization(g, layer, x):
    rank = len(x.shape)
    axes = sorted(axis % rank for axis in keras.tree.flatten(layer.axis))
    sizes = [x.shape[axis] for axis in axes]
    if axes != list(range(rank - len(axes), rank)) or None in sizes:
        g.unsupported(f"normalizes axes {axes} of {rank}, which are not the last, or of open size")
    scale = g.weight(layer.gamma) if layer.scale else np.ones(sizes, "float32")
    bias = [g.weight(layer.beta)] if layer.center else []
    return g.op("LayerNormalization", x, scale, *bias, axis=axes[0], epsilon=layer.epsilon)


def _group_normalization(g, layer, x):
    rank = len(x.shape)
    if layer.axis % rank != rank - 1:
        g.unsupported(f"normalizes channels at axis {layer.axis}, not at the last")
    channels = x.shape[-1]
    scale = g.weight(layer.gamma) if layer.scale else np.ones(channels, "float32")
    bias = g.weight(layer.beta) if layer.center else np.zeros(channels, "float32")
    x = g.op("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])
    y = g.op("GroupNormalization", x, scale, bias, num_groups=layer.groups, epsilon=layer.epsilon)
    return g.op("Transpose", y, perm=[0, *range(2, rank), 1])


def _batch_normalization(g, layer, x):
    variance, mean = (keras.ops.convert_to_numpy(a) for a in (layer.moving_variance, layer.moving_mean))
    factor = 1 / np.sqrt(variance.astype("float64") + layer.epsilon)
    factor = factor * (keras.ops.convert_to_numpy(layer.gamma) if layer.scale else 1)
    offset = (keras.ops.convert_to_numpy(layer.beta) if layer.center else 0) - mean * factor
    shape = [1] * len(x.shape)
    shape[layer.axis] = -1
    factor, offset = (np.reshape(a, shape).astype("float32") for a in (factor, offset))
    return g.op("Add", g.op("Mul", x, factor), offset)


# ---------------------------------------------------------------------------------------------------- shapes and images


def _rescaling(g, layer, x):
    x, scale, offset = g.cast(x, "float32"), np.float32(layer.scale), np.float32(layer.offset)
    x = g.op("Mul", x, scale)
    return g.op("Add", x, offset) if np.any(offset) else x


def _resizing(g, layer, x):
    """Bilinear resizing as two matrix products, the same in every runtime: OpenVINO's Resize ignores `antialias`."""
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or layer.interpolation != "bilinear":
        g.unsupported("resizes by cropping, padding, or another interpolation than bilinear")
    first, y = layer.data_format == "channels_first", g.cast(x, "float32")
    y = y if first else g.op("Transpose", y, perm=[0, 3, 1, 2])  # (B, C, H, W)
    rows, columns = (_resizing_weights(g, y, axis, getattr(layer, name), layer.antialias) for axis, name in _SIDES)
    y = g.op("MatMul", g.op("MatMul", rows, y), g.op("Transpose", columns, perm=[1, 0]))
    return y if first else g.op("Transpose", y, perm=[0, 2, 3, 1])


_SIDES = ((2, "height"), (3, "width"))


def _resizing_weights(g, x, axis, size, antialias):
    """Weights (size, H) of the pixels along an axis: triangles around each new pixel's centre, wider where it shrinks.

    Source: Pillow 12, Resample.c: precompute_coeffs with the bilinear filter.
    """
    count = g.op("Squeeze", g.op("Shape", x, start=axis, end=axis + 1))
    scale = g.op("Div", g.op("Cast", count, to=onnx_dtype("float32")), float(size))
    pixels = g.op("Cast", g.op("Range", np.int64(0), count, np.int64(1)), to=onnx_dtype("float32"))
    centres = g.op("Mul", np.arange(size, dtype="float32")[:, None] + np.float32(0.5), scale)  # (size, 1)
    distances = g.op("Abs", g.op("Sub", g.op("Add", pixels, 0.5), centres))  # (size, H)
    if antialias:
        distances = g.op("Div", distances, g.op("Max", scale, 1.0))
    weights = g.op("Max", g.op("Sub", 1.0, distances), 0.0)
    return g.op("Div", weights, g.op("ReduceSum", weights, [1], keepdims=1))


def _upsampling(g, layer, x):
    scales = np.array([1, 1, *np.broadcast_to(layer.size, len(x.shape) - 2)], "float32")
    mode: dict[str, Any] = {"mode": "linear"}
    if getattr(layer, "interpolation", "nearest") == "nearest":
        mode = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    elif layer.interpolation != "bilinear":
        g.unsupported("interpolates neither bilinearly nor by the nearest value")
    return _spatial(g, layer, x, "Resize", "", scales, **mode)


def _zero_padding(g, layer, x):
    pairs = [list(pair) for pair in np.reshape(layer.padding, (-1, 2))]
    first = getattr(layer, "data_format", None) == "channels_first"
    pairs = [[0, 0], [0, 0], *pairs] if first else [[0, 0], *pairs, [0, 0]]
    return g.op("Pad", x, [int(pair[end]) for end in (0, 1) for pair in pairs])


def _flatten(g, layer, x):
    if layer.data_format == "channels_first" and len(x.shape) > 2:
        x = g.op("Transpose", x, perm=[0, *range(2, len(x.shape)), 1])
    return g.op("Reshape", x, [0, -1])


def _reshape_layer(g, layer, x):
    return g.op("Reshape", x, [0, *layer.target_shape])


def _merge(kind):
    def rule(g, layer, xs):
        if len({len(x.shape) for x in xs}) > 1:
            g.unsupported("joins tensors of different numbers of axes")
        y = xs[0]
        for x in xs[1:]:
            y = g.op(kind, y, x)
        return g.op("Div", y, np.float32(len(xs))) if isinstance(layer, layers.Average) else y

    return rule


# --------------------------------------------------------------------------------------------------- recurrent layers

_RECURRENT = {layers.LSTM: "LSTM", layers.GRU: "GRU", layers.SimpleRNN: "RNN"}
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "RNN": (0,)}  # ONNX: i o f c; z r h


def _recurrent(g, layer, x, initial_state=None):
    sequence, last = _one_direction(g, layer, x, keras.tree.flatten(initial_state or []), layer.go_backwards)
    if layer.go_backwards and layer.return_sequences:  # Keras gives the last position first
        sequence = g.op("Slice", sequence, [-1], [-(2**31)], [1], [-1])
    output = sequence if layer.return_sequences else last[0]
    return [output, *last] if layer.return_state else output


def _bidirectional(g, layer, x, initial_state=None):
    one = layer.forward_layer
    if not isinstance(one, tuple(_RECURRENT)) or initial_state is not None:
        g.unsupported("wraps another layer than LSTM, GRU or SimpleRNN, or has an initial state")
    ways = [_one_direction(g, way, x, [], way.go_backwards) for way in (one, layer.backward_layer)]
    outputs = [sequence if one.return_sequences else last[0] for sequence, last in ways]
    if layer.merge_mode == "concat":
        outputs = [g.op("Concat", *outputs, axis=-1)]
    elif layer.merge_mode is not None:
        y = g.op("Mul" if layer.merge_mode == "mul" else "Add", *outputs)
        outputs = [g.op("Mul", y, 0.5) if layer.merge_mode == "ave" else y]
    return [*outputs, *(state for _, last in ways for state in last)] if one.return_state else outputs


def _one_direction(g, layer, x, states, reverse):
    """(outputs (B, T, h) in the order of time, last states [(B, h)]) of one LSTM, GRU or RNN node."""
    if layer.stateful:
        g.unsupported("is stateful")
    cell, kind = layer.cell, _RECURRENT[next(kind for kind in _RECURRENT if isinstance(layer, kind))]
    gates, order = len(_GATES[kind]), list(_GATES[kind])

    def change(array):  # (in, gates * h) to (1, gates * h, in)
        return array.reshape(len(array), gates, -1)[:, order].reshape(len(array), -1).T[None]

    def change_bias(array):  # of the inputs, then of the states
        array = array.reshape(-1, gates, cell.units)[:, order].reshape(-1, gates * cell.units)
        return np.resize(np.concatenate([array, np.zeros_like(array)]), (1, 2 * gates * cell.units))

    functions: dict[str, tuple] = (
        {"LSTM": (cell.recurrent_activation, cell.activation, cell.activation)} if kind == "LSTM" else {}
    )
    functions |= {"GRU": (cell.recurrent_activation, cell.activation)} if kind == "GRU" else {}
    functions |= {"RNN": (cell.activation,)}
    names = [getattr(function, "__name__", "") for function in functions[kind]]
    if other := next((name for name in names if name not in ("tanh", "sigmoid", "relu")), None):
        g.unsupported(f"has the activation {other}, and recurrent layers take tanh, sigmoid or relu")
    attributes: dict[str, Any] = {"hidden_size": cell.units, "activations": [name.capitalize() for name in names]}
    attributes |= {"linear_before_reset": int(cell.reset_after)} if kind == "GRU" else {}
    bias = g.weight(cell.bias, change_bias, "gates") if cell.use_bias else ""
    initial = [g.op("Unsqueeze", state, [0]) for state in states]
    inputs = [g.op("Transpose", x, perm=[1, 0, 2])]
    inputs += [g.weight(weight, change, "gates") for weight in (cell.kernel, cell.recurrent_kernel)]
    direction = "reverse" if reverse else "forward"
    inputs += [bias, *(["", *initial] if initial else [])]
    y, *last = g.op(kind, *inputs, outputs=3 if kind == "LSTM" else 2, direction=direction, **attributes)
    sequence = g.op("Transpose", g.op("Squeeze", y, [1]), perm=[1, 0, 2])  # (T, 1, B, h) to (B, T, h)
    return sequence, [g.op("Squeeze", state, [0]) for state in last]


def _split(g, x, parts, axis):
    return g.op("Split", x, outputs=parts, num_outputs=parts, axis=axis)


def _affine(g, x, kernel, bias=None):
    y = g.op("MatMul", x, g.weight(kernel))
    return y if bias is None else g.op("Add", y, bias)


def _lstm_cell(g, cell, x, states):
    h, c = states
    bias = g.weight(cell.bias) if cell.use_bias else None
    z = g.op("Add", _affine(g, x, cell.kernel, bias), _affine(g, h, cell.recurrent_kernel))
    i, f, candidate, o = _split(g, z, 4, 1)
    i, f, o = (_activate(g, cell.recurrent_activation, gate) for gate in (i, f, o))
    c = g.op("Add", g.op("Mul", f, c), g.op("Mul", i, _activate(g, cell.activation, candidate)))
    h = g.op("Mul", o, _activate(g, cell.activation, c))
    return h, [h, c]


def _gru_cell(g, cell, x, states):
    if not cell.reset_after:
        g.unsupported("is a GRU cell with reset_after=False")
    (h,) = keras.tree.flatten(states)
    biases = [g.weight(cell.bias, lambda a, i=i: a[i], ("input", "recurrent")[i]) for i in (0, 1) if cell.use_bias]
    of_input = _split(g, _affine(g, x, cell.kernel, *biases[:1]), 3, 1)
    of_state = _split(g, _affine(g, h, cell.recurrent_kernel, *biases[1:]), 3, 1)
    z, r = (_activate(g, cell.recurrent_activation, g.op("Add", *pair)) for pair in list(zip(of_input, of_state))[:2])
    candidate = _activate(g, cell.activation, g.op("Add", of_input[2], g.op("Mul", r, of_state[2])))
    h = g.op("Add", g.op("Mul", z, h), g.op("Mul", g.op("Sub", 1.0, z), candidate))
    return h, [h]


def _simple_cell(g, cell, x, states):
    (h,) = keras.tree.flatten(states)
    bias = g.weight(cell.bias) if cell.use_bias else None
    y = g.op("Add", _affine(g, x, cell.kernel, bias), _affine(g, h, cell.recurrent_kernel))
    h = _activate(g, cell.activation, y)
    return h, [h]


LAYER_RULES: dict[Any, Rule] = {
    layers.Dense: _dense,
    layers.EinsumDense: _einsum_dense,
    layers.Embedding: _embedding,
    layers.ReversibleEmbedding: _reversible_embedding,
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _convolution),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise_convolution),
    **dict.fromkeys((layers.MaxPooling1D, layers.MaxPooling2D), _pooling("MaxPool")),
    **dict.fromkeys((layers.AveragePooling1D, layers.AveragePooling2D), _pooling("AveragePool", count_include_pad=0)),
    **dict.fromkeys((layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D), _global_pooling("ReduceMean")),
    **dict.fromkeys((layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D), _global_pooling("ReduceMax")),
    layers.LayerNormalization: _layer_normalization,
    layers.GroupNormalization: _group_normalization,
    layers.BatchNormalization: _batch_normalization,
    layers.Rescaling: _rescaling,
    layers.Resizing: _resizing,
    **dict.fromkeys((layers.UpSampling1D, layers.UpSampling2D), _upsampling),
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D), _zero_padding),
    layers.Flatten: _flatten,
    layers.Reshape: _reshape_layer,
    layers.Permute: lambda g, layer, x: g.op("Transpose", x, perm=[0, *layer.dims]),
    layers.RepeatVector: lambda g, layer, x: g.op("Tile", g.op("Unsqueeze", x, [1]), [1, layer.n, 1]),
    layers.Concatenate: lambda g, layer, xs: g.op("Concat", *xs, axis=layer.axis),
    layers.Add: _merge("Add"),
    layers.Average: _merge("Add"),
    layers.Subtract: _merge("Sub"),
    layers.Multiply: _merge("Mul"),
    layers.Maximum: _merge("Max"),
    layers.Minimum: _merge("Min"),
    layers.Activation: lambda g, layer, x: _activate(g, layer.activation, x),
    layers.ReLU: _relu,
    layers.LeakyReLU: lambda g, layer, x: g.op("LeakyRelu", x, alpha=float(layer.negative_slope)),
    layers.ELU: lambda g, layer, x: g.op("Elu", x, alpha=float(layer.alpha)),
    layers.Softmax: lambda g, layer, x: g.op("Softmax", x, axis=layer.axis),
    layers.LSTM: _recurrent,
    layers.GRU: _recurrent,
    layers.SimpleRNN: _recurrent,
    layers.Bidirectional: _bidirectional,
    layers.LSTMCell: _lstm_cell,
    layers.GRUCell: _gru_cell,
    layers.SimpleRNNCell: _simple_cell,
    # These change nothing at inference.
    **dict.fromkeys(
        (layers.Identity, layers.ActivityRegularization, layers.Dropout, layers.AlphaDropout, layers.GaussianDropout)
        + (layers.GaussianNoise, layers.SpatialDropout1D, layers.SpatialDropout2D, RandomAffine)
        + (layers.RandomBrightness, layers.RandomContrast, layers.RandomFlip, layers.RandomRotation)
        + (layers.RandomTranslation, layers.RandomZoom, layers.RandomShear),
        _identity,
    ),
}


# ---------------------------------------------------------------------------------------------------------- operations


def _unary(kind, **attributes):
    return lambda g, operation, x: g.op(kind, g.cast(x, g.outputs[0].dtype), **attributes)


def _binary(kind):
    return lambda g, operation, *xs: g.op(kind, *(g.cast(x, g.outputs[0].dtype) for x in xs))


def _comparison(kind):
    def rule(g, operation, *xs):
        dtype = keras.backend.result_type(*(getattr(x, "dtype", type(x)) for x in xs))
        return g.op(kind, *(g.cast(x, dtype) for x in xs))

    return rule


def _floor_divide(g, operation, *xs):
    dtype = g.outputs[0].dtype
    x, divisor = (g.cast(x, dtype) for x in xs)
    if "float" in dtype:
        return g.op("Floor", g.op("Div", x, divisor))
    # ONNX rounds the quotient of integers towards zero; its Mod has the sign of the divisor.
    return g.op("Div", g.op("Sub", x, g.op("Mod", x, divisor)), divisor)


def _reduction(kind):
    def rule(g, operation, x):
        axes = [] if operation.axis is None else [[int(axis) for axis in np.atleast_1d(operation.axis)]]
        return g.op(kind, g.cast(x, g.outputs[0].dtype), *axes, keepdims=int(operation.keepdims))

    return rule


def _filled(value):
    def rule(g, operation, x, dtype=None):
        return g.op("Expand", np.array(value, g.outputs[0].dtype), g.op("Shape", x))

    return rule


def _cumsum(g, operation, x):
    axis = operation.axis
    x = g.cast(x, g.outputs[0].dtype)
    return g.op("CumSum", g.op("Reshape", x, [-1]) if axis is None else x, np.int64(axis or 0))


def _take(g, operation, x, indices):
    indices = indices if isinstance(indices, GraphTensor) else g.cast(indices, "int64")
    if operation.axis is None:
        x = g.op("Reshape", x, [-1])
    return g.op("Gather", x, indices, axis=operation.axis or 0)


def _get_item(g, operation, x, key):
    key = list(key) if isinstance(key, (list, tuple)) else [key]
    if any(not isinstance(part, (int, slice, type(None), type(Ellipsis))) for part in key):
        g.unsupported("indexes with a tensor")
    if Ellipsis in key:
        place = key.index(Ellipsis)
        count = len(x.shape) - sum(part is not None for part in key) + 1
        key[place : place + 1] = [slice(None)] * count
    slices, squeezed, added, axis = [], [], [], 0
    for position, part in enumerate(key):
        if part is None:
            added.append(position - len(squeezed))
            continue
        if isinstance(part, int):
            squeezed.append(axis)
            part = slice(part, part + 1 if part != -1 else None)
        if part != slice(None):
            step = 1 if part.step is None else part.step
            start = (0 if step > 0 else -1) if part.start is None else part.start
            stop = (2**31 - 1 if step > 0 else -(2**31)) if part.stop is None else part.stop
            slices.append((start, stop, axis, step))
        axis += 1
    y = g.op("Slice", x, *(list(column) for column in zip(*slices))) if slices else x
    y = g.op("Squeeze", y, squeezed) if squeezed else y
    return g.op("Unsqueeze", y, added) if added else y


def _split_operation(g, operation, x):
    if not isinstance(operation.indices_or_sections, int):
        g.unsupported("splits at indices, not into equal parts")
    return _split(g, x, operation.indices_or_sections, operation.axis)


def _swapaxes(g, operation, x):
    axes = list(range(len(x.shape)))
    one, two = operation.axis1, operation.axis2
    axes[one], axes[two] = axes[two], axes[one]
    return g.op("Transpose", x, perm=axes)


def _reshape(g, operation, x):
    return g.op("Reshape", x, [-1 if size is None else int(size) for size in operation.newshape])


def _clip(g, operation, x):
    dtype = g.outputs[0].dtype
    low, high = (np.asarray(bound, dtype) for bound in (operation.x_min, operation.x_max))
    return g.op("Min", g.op("Max", g.cast(x, dtype), low), high)


def _where(g, operation, condition, x1, x2):
    return g.op("Where", g.cast(condition, "bool"), *(g.cast(x, g.outputs[0].dtype) for x in (x1, x2)))


def _dot_product_attention(g, operation, query, key, value, bias=None, mask=None, scale=None):
    """softmax(Q Kᵀ · scale) V, Vaswani et al. 2017, equation 1; (B, T, N, H), (B, S, N, H) twice -> (B, T, N, H)."""
    if bias is not None or operation.attn_logits_soft_cap is not None or query.shape[2] != key.shape[2]:
        g.unsupported("has a bias, a cap of its logits, or fewer heads of keys than of queries")
    scale = np.float32(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    q, v = (g.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (query, value))  # (B, N, T, H), (B, N, S, H)
    k = g.op("Transpose", key, perm=[0, 2, 3, 1])  # (B, N, H, S)
    scores = g.op("MatMul", g.op("Mul", q, scale), k)  # (B, N, T, S)
    if operation.is_causal:
        sizes = [
            g.op("Reshape", g.op("Shape", scores, start=axis, end=axis + 1), np.zeros(0, "int64")) for axis in (2, 3)
        ]
        of_query, of_key = (g.op("Range", np.int64(0), size, np.int64(1)) for size in sizes)
        causal = g.op("GreaterOrEqual", g.op("Unsqueeze", of_query, [1]), g.op("Unsqueeze", of_key, [0]))
        scores = g.op("Where", causal, scores, MASK_VALUE)
    if mask is not None:
        scores = g.op("Where", g.cast(mask, "bool"), scores, MASK_VALUE)
    outputs = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    return g.op("Transpose", outputs, perm=[0, 2, 1, 3])


def _activation_operation(name):
    return lambda g, operation, x: _activate(g, getattr(keras.activations, name), x)


def _gelu(g, operation, x):
    return g.op("Gelu", x, approximate="tanh" if operation.approximate else "none")


OPERATION_RULES: dict[str, Rule] = {
    **{
        name: _unary(name)
        for name in ("Sin", "Cos", "Sqrt", "Exp", "Log", "Floor", "Ceil", "Erf", "Sign", "Reciprocal")
    },
    **{name: _activation_operation(name.lower()) for name in ("Relu", "Sigmoid", "Tanh", "Silu", "Softplus")},
    "Negative": _unary("Neg"),
    "Absolute": _unary("Abs"),
    "Abs": _unary("Abs"),
    "LogicalNot": _unary("Not"),
    "Square": lambda g, operation, x: g.op("Mul", x, x),
    "Add": _binary("Add"),
    "Subtract": _binary("Sub"),
    "Multiply": _binary("Mul"),
    "Divide": _binary("Div"),
    "TrueDivide": _binary("Div"),
    "FloorDivide": _floor_divide,
    "Power": _binary("Pow"),
    "Maximum": _binary("Max"),
    "Minimum": _binary("Min"),
    "Matmul": _binary("MatMul"),
    "LogicalAnd": _binary("And"),
    "LogicalOr": _binary("Or"),
    "Equal": _comparison("Equal"),
    "NotEqual": lambda g, operation, *xs: g.op("Not", _comparison("Equal")(g, operation, *xs)),
    "Greater": _comparison("Greater"),
    "GreaterEqual": _comparison("GreaterOrEqual"),
    "Less": _comparison("Less"),
    "LessEqual": _comparison("LessOrEqual"),
    "Mean": _reduction("ReduceMean"),
    "Sum": _reduction("ReduceSum"),
    "Max": _reduction("ReduceMax"),
    "Min": _reduction("ReduceMin"),
    "OnesLike": _filled(1),
    "ZerosLike": _filled(0),
    "Cumsum": _cumsum,
    "Take": _take,
    "GetItem": _get_item,
    "Split": _split_operation,
    "Swapaxes": _swapaxes,
    "Reshape": _reshape,
    "Clip": _clip,
    "Where": _where,
    "Transpose": lambda g, operation, x: g.op("Transpose", x, perm=operation.axes or range(len(x.shape))[::-1]),
    "ExpandDims": lambda g, operation, x: g.op("Unsqueeze", x, [int(a) for a in np.atleast_1d(operation.axis)]),
    "Squeeze": lambda g, operation, x: g.op("Squeeze", x, [int(a) for a in np.atleast_1d(operation.axis)]),
    "Concatenate": lambda g, operation, xs: g.op(
        "Concat", *(g.cast(x, g.outputs[0].dtype) for x in xs), axis=operation.axis
    ),
    "Cast": lambda g, operation, x: g.op("Cast", x, to=onnx_dtype(operation.dtype)),
    "Softmax": lambda g, operation, x: g.op("Softmax", x, axis=operation.axis),
    "LogSoftmax": lambda g, operation, x: g.op("LogSoftmax", x, axis=operation.axis),
    "Gelu": _gelu,
    "DotProductAttention": _dot_product_attention,
}


def supported() -> tuple[list[str], list[str]]:
    """What the exporter knows.

    Returns:
        (names of the classes of layers, names of the classes of operations), each sorted.
    """
    return sorted(kind.__name__ for kind in LAYER_RULES), sorted(OPERATION_RULES)
