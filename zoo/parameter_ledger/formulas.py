"""Formulas of the parameters and of the multiply-accumulates (MACs) of each kind of layer.

A formula is written once, in symbols; its substituted form and its value follow from it. Symbols:

    k, k_h, k_w, k_d   size of a convolution's kernel            c_in, c_out   channels in and out
    t, t_out, h_out, w_out, d_out   positions of the output       g             groups of channels
    d_in, d_out, d     features in, out, and in general           m             depth multiplier
    h                  units of a recurrent layer                 v             entries of an embedding
    n, n_kv            heads, and heads of keys and values        d_k, d_v      width of a head's keys and values
    d_q_in, d_k_in, d_v_in   features that attention takes        t, s          positions asking, positions asked

Sources: the layers' definitions in Keras 3 (`keras.layers`); LSTM: Hochreiter and Schmidhuber 1997 with the forget
gate of Gers et al. 2000; GRU: Cho et al. 2014; attention: Vaswani et al. 2017, section 3.2.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
from keras import layers

LEGEND = {
    "k": "kernel width",
    "k_h": "kernel height",
    "k_w": "kernel width",
    "k_d": "kernel depth",
    "c_in": "channels in",
    "c_out": "channels out",
    "c": "channels",
    "g": "groups of channels, convolved separately",
    "m": "filters for each channel (depth multiplier)",
    "h_in": "height of the input",
    "w_in": "width of the input",
    "z_in": "depth of the input",
    "h_out": "height of the output",
    "w_out": "width of the output",
    "z_out": "depth of the output",
    "t_in": "positions of the input",
    "t_out": "positions of the output",
    "height": "height of the flattened feature map",
    "width": "width of the flattened feature map",
    "p": "positions, the layer being applied at each",
    "d": "features",
    "d_in": "features in",
    "d_out": "features out",
    "h": "units (size of the state)",
    "t": "time steps or positions",
    "s": "positions attended to",
    "v": "entries of the table (vocabulary)",
    "n": "heads",
    "n_kv": "key-value heads",
    "d_k": "query and key features of a head",
    "d_v": "value features of a head",
    "d_q_in": "features of the query input",
    "d_k_in": "features of the key input",
    "d_v_in": "features of the value input",
}


@dataclasses.dataclass(frozen=True)
class Formula:
    """A formula such as "(d_in + 1)·d_out" with the values of its symbols.

    Attributes:
        symbolic: the formula in symbols.
        values: {symbol: int, or None for a size that is open until the call}.
        part: what it counts, e.g. "query"; "" where a layer has one formula.
        trainable: False for numbers that are kept but not learned, e.g. moving averages.
    """

    symbolic: str
    values: dict[str, int | None]
    part: str = ""
    trainable: bool = True

    @property
    def substituted(self) -> str:
        """The symbols replaced by their values, e.g. "(18432 + 1)·512"; an open size is "?"."""
        values = {symbol: "?" if value is None else str(value) for symbol, value in self.values.items()}
        return re.sub(r"[A-Za-z_]\w*", lambda symbol: values[symbol.group()], self.symbolic)

    @property
    def symbols(self) -> list[str]:
        """The symbols in it, in order."""
        return re.findall(r"[A-Za-z_]\w*", self.symbolic)

    @property
    def value(self) -> int | None:
        """The result, an int, or None where a symbol has no value."""
        if any(self.values[symbol] is None for symbol in self.symbols):
            return None
        return round(eval(self.symbolic.replace("·", "*"), {"__builtins__": {}}, self.values))  # no text from outside

    def to_dict(self) -> dict[str, Any]:
        """Part, symbolic and substituted form, and value, as plain values."""
        return {"part": self.part, "symbolic": self.symbolic, "substituted": self.substituted, "value": self.value}


def parameter_formulas(layer: keras.layers.Layer, flattened: tuple[int, ...] | None = None) -> tuple[Formula, ...]:
    """Formulas of a layer's parameters, in the order of its tensors.

    Args:
        layer: a built `keras.layers.Layer`.
        flattened: (channels, height, width) of the feature map that a dense layer's input was flattened from, if so.

    Returns:
        tuple of `Formula`. Their sum is `layer.count_params()`: for a layer of an unknown kind, or one that is
        quantized or adapted by LoRA, they are the shapes of its weights.
    """
    if not layer.weights:
        return ()
    rule = _rule(PARAMETER_RULES, layer)
    formulas = ()
    if rule:
        try:
            formulas = tuple(rule(layer, flattened) if rule is _dense else rule(layer))
        except (AttributeError, TypeError, KeyError, IndexError):
            formulas = ()  # a subclass or a state that this kind's formula does not cover
    if formulas and sum(formula.value for formula in formulas) == layer.count_params():
        return formulas
    weights = unique_weights(layer.weights)
    names = [weight.name for weight in weights]
    if len(set(names)) == len(names):
        return tuple(map(shape_formula, weights))
    paths = [weight.path.split("/") for weight in weights]
    same = 0  # parts that all paths begin with
    while len({tuple(path[: same + 1]) for path in paths}) == 1:
        same += 1
    return tuple(
        dataclasses.replace(shape_formula(weight), part="/".join(path[same:])) for weight, path in zip(weights, paths)
    )


def mac_formulas(
    layer: keras.layers.Layer,
    inputs: Sequence[tuple[int | None, ...]],
    outputs: Sequence[tuple[int | None, ...]],
    arguments: Mapping[str, Any] | None = None,
) -> tuple[Formula, ...] | None:
    """Formulas of the multiply-accumulates for one example: matrix products and convolutions, nothing elementwise.

    Args:
        layer: a Keras layer.
        inputs: shapes of its inputs, without the batch; open sizes are None.
        outputs: shapes of its outputs, likewise.
        arguments: keyword arguments of the call.

    Returns:
        tuple of `Formula`, empty where there is nothing to multiply, or None for a layer of an unknown kind with
        weights.
    """
    if rule := _rule(MAC_RULES, layer):
        try:
            return tuple(rule(layer, inputs, outputs, arguments or {}))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None  # e.g. a recurrent layer with a cell of the user's own
    if _rule(PARAMETER_RULES, layer) or all(len(weight.shape) <= 1 for weight in layer.weights):
        return ()  # look-ups; scales and shifts, which are elementwise
    return None


def operation_mac_formulas(
    operation: keras.Operation,
    operands: Sequence[tuple[int | None, ...]],
    outputs: Sequence[tuple[int | None, ...]],
    batch_size: int | None,
) -> tuple[Formula, ...] | None:
    """Formulas of the multiply-accumulates of a `keras.ops` operation for one example.

    Args:
        operation: an operation that is no layer.
        operands: shapes of the tensors it takes, batch included; open sizes are None.
        outputs: shapes of its outputs, likewise.
        batch_size: the batch in them.

    Returns:
        tuple of `Formula`, empty where there is nothing to multiply, or None for an operation that runs a function or
        an algorithm of its own.
    """
    kind = type(operation).__name__
    if kind in _UNCOUNTED_OPERATIONS:
        return None
    if kind not in OPERATION_MAC_RULES:
        return ()
    try:
        return tuple(OPERATION_MAC_RULES[kind](operation, operands, outputs, batch_size))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def is_stock(kind: type) -> bool:
    """Whether a class is one of `keras.layers`.

    Args:
        kind: a class.

    Returns:
        True or False.
    """
    return getattr(layers, kind.__name__, None) is kind


def stock_parent(kind: type) -> type | None:
    """The class of `keras.layers` with formulas that a class is, or inherits from.

    Args:
        kind: a class of layers.

    Returns:
        the nearest such class, or None.
    """
    return next((parent for parent in kind.__mro__ if parent in PARAMETER_RULES or parent in MAC_RULES), None)


def _rule(rules, layer):
    """The rule of a layer's class, or of the nearest one that it inherits from."""
    return next((rules[kind] for kind in type(layer).__mro__ if kind in rules), None)


def unique_weights(weights: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Leave out repeated weights.

    Args:
        weights: variables.

    Returns:
        each weight once, in order.
    """
    return list({id(weight): weight for weight in weights}.values())


def shape_formula(weight: keras.Variable) -> Formula:
    """The shape of one weight as a formula.

    Args:
        weight: a variable.

    Returns:
        `Formula` such as "512·10".
    """
    shape = tuple(weight.shape) or (1,)
    return Formula("·".join(str(size) for size in shape), {}, part=weight.name, trainable=weight.trainable)


def _product(shape):
    return None if any(size is None for size in shape) else math.prod(shape)


# Parameters, kind by kind -------------------------------------------------------------------------------------------

_WINDOW = {1: ("k",), 2: ("k_h", "k_w"), 3: ("k_d", "k_h", "k_w")}
_SPACE = {1: ("t",), 2: ("h", "w"), 3: ("z", "h", "w")}


def _window(layer):
    symbols = _WINDOW[len(layer.kernel_size)]
    return "·".join(symbols), dict(zip(symbols, layer.kernel_size))


def _kernel_and_bias(fan_in, out, values, bias, **options):
    """(fan_in + 1)·out, the 1 being the bias; fan_in·out without."""
    return Formula(f"({fan_in} + 1)·{out}" if bias else f"{fan_in}·{out}", values, **options)


def _convolution(layer):
    window, values = _window(layer)
    groups = layer.groups
    values |= {"c_in": layer.kernel.shape[-2] * groups, "c_out": layer.filters, "g": groups}
    yield _kernel_and_bias(f"{window}·c_in" + ("/g" if groups > 1 else ""), "c_out", values, layer.use_bias)


def _transposed_convolution(layer):
    window, values = _window(layer)
    values |= {"c_in": layer.kernel.shape[-1], "c_out": layer.filters}
    yield _kernel_and_bias(f"{window}·c_in", "c_out", values, layer.use_bias)


def _depthwise_convolution(layer):
    window, values = _window(layer)
    values |= {"c_in": layer.kernel.shape[-2], "m": layer.depth_multiplier}
    yield _kernel_and_bias(window, "c_in·m" if layer.depth_multiplier > 1 else "c_in", values, layer.use_bias)


def _separable_convolution(layer):
    window, values = _window(layer)
    values |= {"c_in": layer.depthwise_kernel.shape[-2], "m": layer.depth_multiplier, "c_out": layer.filters}
    middle = "c_in·m" if layer.depth_multiplier > 1 else "c_in"
    yield Formula(f"{window}·{middle}", values, part="depthwise")
    yield _kernel_and_bias(middle, "c_out", values, layer.use_bias, part="pointwise")


def _dense(layer, flattened=None):
    d_in, d_out = layer.kernel.shape
    if flattened and None not in flattened and math.prod(flattened) == d_in:
        symbols = {2: ("c", "t"), 3: ("c", "height", "width")}[len(flattened)]
        values = dict(zip(symbols, flattened)) | {"d_out": d_out}
        yield _kernel_and_bias("·".join(symbols), "d_out", values, layer.use_bias)
    else:
        yield _kernel_and_bias("d_in", "d_out", {"d_in": d_in, "d_out": d_out}, layer.use_bias)


def _einsum_dense(layer):
    indices = layer.equation.replace(" ", "").split("->")[0].split(",")[1].replace("...", "")
    yield Formula("·".join(indices), dict(zip(indices, layer.kernel.shape)), part="kernel")
    if layer.bias is not None:
        yield shape_formula(layer.bias)


def _embedding(layer):
    yield Formula("v·d", {"v": layer.input_dim, "d": layer.output_dim})


def _reversible_embedding(layer):
    yield Formula("v·d", {"v": layer.input_dim, "d": layer.output_dim})
    if not layer.tie_weights:
        yield Formula("d·v", {"v": layer.input_dim, "d": layer.output_dim}, part="reverse")


def _scale_and_shift(layer):
    """Scale and shift of layer, group and RMS normalization."""
    tensors = unique_weights(layer.trainable_weights + layer.non_trainable_weights)
    names = " and ".join(tensor.name for tensor in tensors)
    symbols = "c" if isinstance(layer, layers.GroupNormalization) else "d"
    factor = f"{len(tensors)}·" if len(tensors) > 1 else ""
    size = math.prod(tensors[0].shape)
    yield Formula(f"{factor}{symbols}", {symbols: size}, part=names, trainable=bool(layer.trainable_weights))


def _batch_normalization(layer):
    learned = [name for name in ("gamma", "beta") if getattr(layer, name) is not None]
    values = {"c": layer.moving_mean.shape[0]}
    if learned:
        symbols = "2·c" if len(learned) == 2 else "c"
        yield Formula(symbols, values, part=" and ".join(learned), trainable=layer.trainable)
    yield Formula("2·c", values, part="moving mean and variance", trainable=False)


def _prelu(layer):
    yield shape_formula(layer.alpha)


def _data_normalization(layer):
    size = math.prod(layer.adapt_mean.shape)
    yield Formula("2·c + 1", {"c": size}, part="mean, variance and count of the data", trainable=False)


def _recurrent_cell(gates, bias_vectors=1):
    def formulas(layer):
        d, h = layer.kernel.shape[0], layer.units
        biases = bias_vectors(layer) if callable(bias_vectors) else bias_vectors
        inner = "(d + h)·h"
        if layer.use_bias:
            inner = f"({inner} + {'h' if biases == 1 else f'{biases}·h'})"
        if gates == 1:
            inner = inner.removeprefix("(").removesuffix(")") if layer.use_bias else inner
        yield Formula(inner if gates == 1 else f"{gates}·{inner}", {"d": d, "h": h})

    return formulas


def _gru_biases(layer):
    return 2 if layer.reset_after else 1


def _of_cell(layer):
    return parameter_formulas(layer.cell)


def _of_cells(layer):
    for index, cell in enumerate(layer.cells):
        for formula in parameter_formulas(cell):
            yield dataclasses.replace(formula, part=f"cell {index} {formula.part}".strip())


def _convolutional_lstm(layer):
    cell = layer.cell
    symbols = _WINDOW[len(cell.kernel_size)]
    window, values = "·".join(symbols), dict(zip(symbols, cell.kernel_size))
    values |= {"c_in": cell.kernel.shape[-2], "c_out": cell.filters}
    yield Formula(f"4·({window}·(c_in + c_out){' + 1' if cell.use_bias else ''})·c_out", values)


def _bidirectional(layer):
    for direction in ("forward", "backward"):
        for formula in parameter_formulas(getattr(layer, f"{direction}_layer")):
            yield dataclasses.replace(formula, part=f"{direction} {formula.part}".strip())


def _time_distributed(layer):
    return parameter_formulas(layer.layer)


def _attention_weights(layer):
    """{"query/kernel": the weight, …} of an attention layer."""
    return {"/".join(weight.path.rsplit("/", 2)[1:]): weight for weight in layer.weights}


def _attention_sizes(layer):
    weights = _attention_weights(layer)
    query, key, value = (weights[f"{part}/kernel"] for part in ("query", "key", "value"))
    return {
        "d_q_in": query.shape[0],
        "d_k_in": key.shape[0],
        "d_v_in": value.shape[0],
        "n": query.shape[1],
        "n_kv": key.shape[1],
        "d_k": query.shape[2],
        "d_v": value.shape[2],
        "d_out": weights["attention_output/kernel"].shape[-1],
    }


def _multi_head_attention(layer):
    sizes, heads = _attention_sizes(layer), "n"
    if isinstance(layer, layers.GroupQueryAttention):
        heads = "n_kv"
    bias = "query/bias" in _attention_weights(layer)
    yield _kernel_and_bias("d_q_in", "n·d_k", sizes, bias, part="query")
    yield _kernel_and_bias("d_k_in", f"{heads}·d_k", sizes, bias, part="key")
    yield _kernel_and_bias("d_v_in", f"{heads}·d_v", sizes, bias, part="value")
    if bias:
        yield Formula("(n·d_v + 1)·d_out", sizes, part="output")
    else:
        yield Formula("n·d_v·d_out", sizes, part="output")


PARAMETER_RULES = {
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _convolution),
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _transposed_convolution),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise_convolution),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _separable_convolution),
    layers.Dense: _dense,
    layers.EinsumDense: _einsum_dense,
    layers.Embedding: _embedding,
    layers.ReversibleEmbedding: _reversible_embedding,
    **dict.fromkeys((layers.LayerNormalization, layers.GroupNormalization, layers.RMSNormalization), _scale_and_shift),
    layers.BatchNormalization: _batch_normalization,
    layers.Normalization: _data_normalization,
    layers.PReLU: _prelu,
    layers.SimpleRNNCell: _recurrent_cell(1),
    layers.LSTMCell: _recurrent_cell(4),
    layers.GRUCell: _recurrent_cell(3, _gru_biases),
    **dict.fromkeys((layers.SimpleRNN, layers.LSTM, layers.GRU, layers.RNN), _of_cell),
    layers.StackedRNNCells: _of_cells,
    **dict.fromkeys((layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D), _convolutional_lstm),
    layers.Bidirectional: _bidirectional,
    layers.TimeDistributed: _time_distributed,
    **dict.fromkeys((layers.MultiHeadAttention, layers.GroupQueryAttention), _multi_head_attention),
}


# Multiply-accumulates, kind by kind ---------------------------------------------------------------------------------


def _positions(layer, shape, side):
    """Formula and values of the number of positions of a feature map (without the batch), e.g. "h_out·w_out"."""
    rank = len(shape) - 1
    sizes = shape[:-1] if layer.data_format == "channels_last" else shape[1:]
    symbols = [f"{symbol}_{side}" for symbol in _SPACE[rank]]
    return "·".join(symbols), dict(zip(symbols, sizes))


def _channels(layer, shape):
    return shape[-1] if layer.data_format == "channels_last" else shape[0]


def _convolution_macs(layer, inputs, outputs, arguments):
    positions, values = _positions(layer, outputs[0], "out")
    window, sizes = _window(layer)
    values |= sizes | {"c_in": _channels(layer, inputs[0]), "c_out": layer.filters, "g": layer.groups}
    yield Formula(f"{positions}·{window}·c_in{'/g' if layer.groups > 1 else ''}·c_out", values)


def _transposed_convolution_macs(layer, inputs, outputs, arguments):
    positions, values = _positions(layer, inputs[0], "in")
    window, sizes = _window(layer)
    values |= sizes | {"c_in": _channels(layer, inputs[0]), "c_out": layer.filters}
    yield Formula(f"{positions}·{window}·c_in·c_out", values)


def _depthwise_macs(layer, inputs, outputs, arguments):
    positions, values = _positions(layer, outputs[0], "out")
    window, sizes = _window(layer)
    values |= sizes | {"c_in": _channels(layer, inputs[0]), "m": layer.depth_multiplier}
    yield Formula(f"{positions}·{window}·c_in{'·m' if layer.depth_multiplier > 1 else ''}", values)


def _separable_macs(layer, inputs, outputs, arguments):
    positions, values = _positions(layer, outputs[0], "out")
    window, sizes = _window(layer)
    values |= sizes
    values |= {"c_in": _channels(layer, inputs[0]), "m": layer.depth_multiplier, "c_out": layer.filters}
    middle = "c_in·m" if layer.depth_multiplier > 1 else "c_in"
    yield Formula(f"{positions}·{window}·{middle}", values, part="depthwise")
    yield Formula(f"{positions}·{middle}·c_out", values, part="pointwise")


def _dense_macs(layer, inputs, outputs, arguments):
    positions = inputs[0][:-1]
    values = {"p": _product(positions), "d_in": inputs[0][-1], "d_out": layer.units}
    yield Formula("p·d_in·d_out" if positions else "d_in·d_out", values)


def _einsum_dense_macs(layer, inputs, outputs, arguments):
    yield _einsum_product(layer.equation, [(1, *inputs[0]), tuple(layer.kernel.shape)], batch_size=1)


def _einsum_product(equation, shapes, batch_size):
    """Product of the sizes of all indices of an einsum, but for the batch: the first index of its size."""
    operands = equation.replace(" ", "").split("->")[0].split(",")
    sizes, any_dots = {}, "..." in equation
    for indices, shape in zip(operands, shapes):
        head, dots, tail = indices.partition("...")
        if dots:  # the dims that the dots stand for are named p
            middle = shape[len(head) : len(shape) - len(tail)]
            sizes["p"] = _product(middle)
            shape = (*shape[: len(head)], *shape[len(shape) - len(tail) :])
        for index, size in zip(head + tail, shape):
            if sizes.get(index) in (None, 1):
                sizes[index] = size
    if any_dots:
        batch, sizes["p"] = None, _for_one_example(sizes["p"], batch_size)
    else:
        batch = next((index for index, size in sizes.items() if size == batch_size), None)
    symbols = [index for index in sizes if index != batch]
    return Formula("·".join(symbols) or "1", sizes)


def _reversible_embedding_macs(layer, inputs, outputs, arguments):
    if len(inputs[0]) == len(outputs[0]):  # reverse: features to entries; a look-up adds an axis
        values = {"p": _product(inputs[0][:-1]), "d": layer.output_dim, "v": layer.input_dim}
        yield Formula("p·d·v", values)


_GATES = {layers.LSTMCell: 4, layers.GRUCell: 3, layers.SimpleRNNCell: 1}


def _cells_macs(cell, d, **values):
    """Formulas of a recurrent cell, or several, with d input features, over t steps if t is among the values."""
    cells = getattr(cell, "cells", [cell])
    for index, cell in enumerate(cells):
        gates = next(_GATES[kind] for kind in type(cell).__mro__ if kind in _GATES)
        factors = [*values, *([str(gates)] if gates > 1 else []), "(d + h)", "h"]
        part = f"cell {index}" if len(cells) > 1 else ""
        yield Formula("·".join(factors), {"d": d, "h": cell.units, **values}, part=part)
        d = cell.units


def _cell_macs(layer, inputs, outputs, arguments):
    return _cells_macs(layer, inputs[0][-1])


def _recurrent_macs(layer, inputs, outputs, arguments):
    return _cells_macs(layer.cell, inputs[0][-1], t=inputs[0][0])


def _convolutional_lstm_macs(layer, inputs, outputs, arguments):
    cell = layer.cell
    symbols = _WINDOW[len(cell.kernel_size)]
    state = outputs[0][1:] if layer.return_sequences else outputs[0]
    positions, values = _positions(cell, state, "out")
    values |= dict(zip(symbols, cell.kernel_size))
    values |= {"t": inputs[0][0], "c_in": cell.kernel.shape[-2], "c_out": cell.filters}
    yield Formula(f"t·{positions}·4·{'·'.join(symbols)}·(c_in + c_out)·c_out", values)


def _known(formulas):
    """The formulas of a layer inside another, which is of an unknown kind if that is."""
    if formulas is None:
        raise ValueError("The layer inside is of an unknown kind.")
    return formulas


def _bidirectional_macs(layer, inputs, outputs, arguments):
    for direction in ("forward", "backward"):
        for formula in _known(mac_formulas(getattr(layer, f"{direction}_layer"), inputs, outputs)):
            yield dataclasses.replace(formula, part=f"{direction} {formula.part}".strip())


def _time_distributed_macs(layer, inputs, outputs, arguments):
    inner = mac_formulas(layer.layer, [shape[1:] for shape in inputs], [shape[1:] for shape in outputs])
    for formula in _known(inner):
        values = formula.values | {"t": inputs[0][0]}
        yield dataclasses.replace(formula, symbolic=f"t·{formula.symbolic}", values=values)


def _multi_head_attention_macs(layer, inputs, outputs, arguments):
    heads = "n_kv" if isinstance(layer, layers.GroupQueryAttention) else "n"
    values = _attention_sizes(layer) | {
        "t": _product(inputs[0][:-1]),
        "s": _product(inputs[min(1, len(inputs) - 1)][:-1]),
    }
    yield Formula("t·d_q_in·n·d_k", values, part="query")
    yield Formula(f"s·d_k_in·{heads}·d_k", values, part="key")
    yield Formula(f"s·d_v_in·{heads}·d_v", values, part="value")
    yield Formula("t·s·n·d_k", values, part="scores")
    yield Formula("t·s·n·d_v", values, part="weighted sum of values")
    yield Formula("t·n·d_v·d_out", values, part="output")


def _attention_macs(layer, inputs, outputs, arguments):
    query, value = inputs[0], inputs[1]
    values = {"t": query[-2], "s": value[-2], "d": query[-1], "d_v": value[-1]}
    if not isinstance(layer, layers.AdditiveAttention):
        yield Formula("t·s·d", values, part="scores")
    yield Formula("t·s·d_v", values, part="weighted sum of values")


def _dot_layer_macs(layer, inputs, outputs, arguments):
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    positions = _product(outputs[0] or (1,))
    yield Formula("p·d", {"p": positions, "d": (None, *inputs[0])[axis]})


MAC_RULES = {
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _convolution_macs),
    **dict.fromkeys(
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _transposed_convolution_macs
    ),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise_macs),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _separable_macs),
    layers.Dense: _dense_macs,
    layers.EinsumDense: _einsum_dense_macs,
    layers.ReversibleEmbedding: _reversible_embedding_macs,
    **dict.fromkeys((layers.SimpleRNN, layers.LSTM, layers.GRU, layers.RNN), _recurrent_macs),
    **dict.fromkeys((layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D), _convolutional_lstm_macs),
    layers.Bidirectional: _bidirectional_macs,
    layers.TimeDistributed: _time_distributed_macs,
    **dict.fromkeys((layers.MultiHeadAttention, layers.GroupQueryAttention), _multi_head_attention_macs),
    **dict.fromkeys((layers.Attention, layers.AdditiveAttention), _attention_macs),
    layers.Dot: _dot_layer_macs,
    **dict.fromkeys((layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell, layers.StackedRNNCells), _cell_macs),
}


# Multiply-accumulates of the operations in keras.ops, by the name of their class. Shapes are those of the whole batch.


def _for_one_example(size, batch_size):
    """A product of sizes without the batch, which is a prime among them."""
    return size // batch_size if size is not None and batch_size and size % batch_size == 0 else size


def _last_axis_product(operation, operands, outputs, batch_size):
    positions = _for_one_example(_product(outputs[0]), batch_size)
    yield Formula("p·d", {"p": positions, "d": operands[0][-1] if operands[0] else 1})


def _vdot(operation, operands, outputs, batch_size):
    yield Formula("d", {"d": _for_one_example(_product(operands[0]), batch_size)})


def _tensordot(operation, operands, outputs, batch_size):
    shape, axes = operands[0], operation.axes
    summed = shape[len(shape) - axes :] if isinstance(axes, int) else [shape[axis] for axis in axes[0]]
    yield Formula("p·d", {"p": _for_one_example(_product(outputs[0]), batch_size), "d": _product(summed)})


def _einsum(operation, operands, outputs, batch_size):
    yield _einsum_product(operation.subscripts, operands, batch_size)


def _dot_product_attention(operation, operands, outputs, batch_size):
    (_, t, n, d_k), (_, s, _, d_v) = operands[0], operands[2]
    values = {"t": t, "s": s, "n": n, "d_k": d_k, "d_v": d_v}
    yield Formula("t·s·n·d_k", values, part="scores")
    yield Formula("t·s·n·d_v", values, part="weighted sum of values")


def _kernel_at_positions(of_outputs):
    """A kernel applied at each position of the output, or of the input."""

    def formulas(operation, operands, outputs, batch_size):
        shape = outputs[0] if of_outputs else operands[0]
        first = operation.data_format == "channels_first" or (
            operation.data_format is None and keras.config.image_data_format() == "channels_first"
        )
        positions = _for_one_example(_product((shape[0], *(shape[2:] if first else shape[1:-1]))), batch_size)
        for part, kernel in zip(("depthwise", "pointwise") if len(operands) > 2 else ("",), operands[1:]):
            sizes = [str(size) for size in kernel if size > 1] or ["1"]
            yield Formula("·".join(["p", *sizes]), {"p": positions}, part=part)

    return formulas


OPERATION_MAC_RULES = {
    **dict.fromkeys(("Matmul", "Dot", "Inner"), _last_axis_product),
    "Vdot": _vdot,
    "Tensordot": _tensordot,
    "Einsum": _einsum,
    "DotProductAttention": _dot_product_attention,
    **dict.fromkeys(("Conv", "DepthwiseConv", "SeparableConv"), _kernel_at_positions(of_outputs=True)),
    "ConvTranspose": _kernel_at_positions(of_outputs=False),
}
# Operations that run a function of the user's, or an algorithm that is more than one product.
_UNCOUNTED_OPERATIONS = {"Map", "Scan", "AssociativeScan", "Switch", "WhileLoop", "ForiLoop", "Cond", "VectorizedMap"}
_UNCOUNTED_OPERATIONS |= {"Cholesky", "CholeskyInverse", "Det", "Logdet", "Eig", "Eigh", "Inv", "LuFactor", "Qr", "JVP"}
_UNCOUNTED_OPERATIONS |= {"Solve", "SolveTriangular", "SVD", "Lstsq", "MatrixRank", "Pinv", "CDist", "Correlate"}
_UNCOUNTED_OPERATIONS |= {"FFT", "FFT2", "IFFT2", "RFFT", "IRFFT", "STFT", "ISTFT"}


def saved_activations(operation: keras.Operation, inputs: Sequence[tuple[int | None, ...]]) -> int | None:
    """Number of values a layer saves for its backward pass besides its output, for one example.

    Attention saves queries, keys, values, scores before and after the softmax, and their weighted sum; a recurrent
    layer its gates and states at every step; batch normalization and the rest recompute from their input.

    Args:
        operation: a Keras layer or operation.
        inputs: shapes of its inputs, without the batch; open sizes are None.

    Returns:
        the number; None if a size is open.
    """
    if isinstance(operation, layers.Bidirectional):
        parts = [saved_activations(layer, inputs) for layer in (operation.forward_layer, operation.backward_layer)]
        return None if None in parts else sum(filter(None, parts))
    if isinstance(operation, (layers.MultiHeadAttention, layers.GroupQueryAttention)):
        sizes = _attention_sizes(operation)
        t, s = _product(inputs[0][:-1]), _product(inputs[min(1, len(inputs) - 1)][:-1])
        if None in (t, s):
            return None
        queries, keys = sizes["n"] * sizes["d_k"], sizes["n_kv"] * sizes["d_k"]
        values, scores = sizes["n_kv"] * sizes["d_v"], sizes["n"] * t * s
        return t * queries + s * (keys + values) + 2 * scores + t * sizes["n"] * sizes["d_v"]
    if isinstance(operation, (layers.LSTM, layers.GRU, layers.SimpleRNN)):
        steps = inputs[0][0]
        per_unit = 6 if isinstance(operation, layers.LSTM) else 4 if isinstance(operation, layers.GRU) else 1
        return None if steps is None else steps * per_unit * operation.units
    return 0
