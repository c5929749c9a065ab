"""Weights of torch.nn.LSTM, GRU and RNN to Keras' recurrent layers and back, on any backend.

A state dict is a mapping from names to arrays: torch tensors or NumPy arrays. Only its names and shapes are used;
`batch_first` and dropout are not in it. Letters: d inputs, h units, g gates, v entries of the vocabulary.

torch                                        Keras
weight_ih_l{k}  (g·h, d)                     kernel            (d, g·h)   transposed, gates reordered
weight_hh_l{k}  (g·h, h)                     recurrent_kernel  (h, g·h)   transposed, gates reordered
bias_ih_l{k}, bias_hh_l{k}  (g·h,) each      bias              (g·h,)     their sum (LSTM, SimpleRNN)
                                                               (2, g·h)   one row each (GRU with reset_after)
…_reverse                                    the backward layer of a Bidirectional
the same without _l{k}: one LSTMCell, GRUCell or RNNCell, read as a layer of one

Everything is checked before anything is assigned: after an error the layers have the weights they had.

Sources: the tables "Variables" in the documentation of torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN (2.13); `call` of
keras.layers.LSTMCell, GRUCell and SimpleRNNCell (3.15.1); for the names of a language model,
https://github.com/pytorch/examples/blob/main/word_language_model/model.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from zoo.errors import UserError, did_you_mean
from zoo.io.tensor_files import TensorFile, check_state_dict
from zoo.models.rnn_language_model import recurrent_layers, rnn_language_model
from zoo.typing import StrPath


class _CellSpec(NamedTuple):
    """How torch and Keras store the same cell. A gate has the same letter, Keras' own, in both orders."""

    torch: str  # the module: torch.nn.<this>
    keras_gates: str
    torch_gates: str
    two_biases: bool  # whether Keras keeps bias_ih and bias_hh apart, or only their sum
    activations: tuple


_CELL_SPECS = {
    keras.layers.LSTM: _CellSpec("LSTM", "ifco", "ifco", False, ("tanh",)),  # torch writes g for c
    keras.layers.GRU: _CellSpec("GRU", "zrh", "rzh", True, ("tanh",)),  # torch writes n for h
    keras.layers.SimpleRNN: _CellSpec("RNN", "h", "h", False, ("tanh", "relu")),
}

_CELL_NAMES = {keras.layers.LSTM: "lstm", keras.layers.GRU: "gru", keras.layers.SimpleRNN: "simple"}

# Names of the weights of `zoo.models.rnn_language_model` in the state dict of PyTorch's word language model example.
KEY_MAP = {
    "embedding": "encoder.weight",  # (v, d), as it is
    "recurrent": "rnn.",  # prefix of the recurrent layers
    "logits_kernel": "decoder.weight",  # (v, h), transposed; the embedding again where they are tied
    "logits_bias": "decoder.bias",  # (v,)
}


def load_state_dict(state_dict: Mapping[str, Any], layers: Sequence[keras.layers.Layer], prefix: str = "") -> None:
    """Assign the weights of one torch.nn.LSTM, GRU or RNN to a stack of Keras layers.

    Args:
        state_dict: mapping name -> torch tensor or array. Names that do not begin with `prefix` are ignored;
            of the others, every one must be used.
        layers: built keras.layers.LSTM, GRU or SimpleRNN, or keras.layers.Bidirectional around them, first to last.
        prefix: what precedes "weight_ih_l0" in the names, such as "rnn.".

    Raises:
        UserError: if names are missing or left over, shapes are wrong, or the layers are not such a stack.

    Example:
        >>> load_state_dict(torch_model.state_dict(), recurrent_layers(model), prefix="rnn.")
    """
    parts = _parts(layers, prefix)
    arrays = _numbered(_arrays(state_dict, prefix), prefix)
    if f"{prefix}weight_hh_l0" not in arrays and (prefixes := recurrent_prefixes(state_dict)):
        raise UserError(
            f"The state dict has no {prefix}weight_hh_l0: its recurrent weights begin with {_quoted(prefixes)}, pass "
            f"prefix={prefixes[0]!r}."
        )
    _check_cell(arrays, layers, prefix)
    check_state_dict(
        _shapes_of(arrays), _shapes(parts), _names(layers), f"give the state dict of {_description(layers)}"
    )
    _assign(_to_keras_layout(parts, arrays))


def state_dict(layers: Sequence[keras.layers.Layer], prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of a stack of Keras layers as the state dict of one torch.nn.LSTM, GRU or RNN.

    Args:
        layers: as in `load_state_dict`.
        prefix: as in `load_state_dict`.

    Returns:
        dict name -> NumPy array (float32; float16 and float64 stay). Where Keras has one bias (LSTM, SimpleRNN),
        bias_ih is it and bias_hh is zero.

    Raises:
        UserError: if the layers are not a stack that one torch module can be.

    Example:
        >>> lstm.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict(layers).items()})
    """
    tensors = {}
    for layer, names in _parts(layers, prefix):
        cell = _cell(layer)
        order = [cell.keras_gates.index(gate) for gate in cell.torch_gates]
        values = [_numpy(layer.cell.kernel).T, _numpy(layer.cell.recurrent_kernel).T]  # (g·h, d), (g·h, h)
        if layer.cell.use_bias:
            bias = _numpy(layer.cell.bias)
            values += list(bias) if cell.two_biases else [bias, np.zeros_like(bias)]  # (g·h,) each
        tensors.update((name, _reorder(value, order)) for name, value in zip(names, values))
    return tensors


def load_language_model_state_dict(
    state_dict: Mapping[str, Any], model: keras.Model, key_map: Mapping[str, str] = KEY_MAP
) -> None:
    """Assign all weights of a PyTorch language model to a recurrent language model of the same sizes.

    Args:
        state_dict: mapping name -> torch tensor or array. Every name must be used.
        model: what `zoo.models.rnn_language_model` returned. If its embeddings are tied, decoder.weight may be absent
            and must else be equal to encoder.weight; decoder.bias may be absent and must else be zero, for the model
            has no such biases. A tied state dict also fits a model that is not tied.
        key_map: changes to `KEY_MAP`, such as {"embedding": "embed.weight", "recurrent": "lstm."}.

    Raises:
        UserError: if names are missing or left over, shapes are wrong, or `model` is no such model.
    """
    key_map, arrays = _full_key_map(key_map), _arrays(state_dict)
    layers, variables, tied = _language_model_parts(model)
    parts = _parts(layers, key_map["recurrent"])
    prefixes = [] if f"{key_map['recurrent']}weight_hh_l0" in arrays else recurrent_prefixes(arrays)
    if prefixes and key_map["embedding"] in arrays:
        raise UserError(
            f"The state dict has no {key_map['recurrent']}weight_hh_l0: its recurrent weights begin with "
            f"{_quoted(prefixes)}, pass key_map={{'recurrent': {prefixes[0]!r}}}."
        )
    _check_cell(arrays, layers, key_map["recurrent"])
    v, d = variables[0].shape
    decoder = {key_map["logits_kernel"]: (v, layers[-1].units), key_map["logits_bias"]: (v,)}
    shapes = {key_map["embedding"]: (v, d)} | _shapes(parts)
    shapes |= {name: shape for name, shape in decoder.items() if not tied or name in arrays}
    check_state_dict(
        _shapes_of(arrays),
        shapes,
        f"the model {model.name}",
        "give the state dict of the model with these sizes, or a `key_map` with the names of its weights",
    )
    if tied:
        _check_tied(arrays, key_map, model)
        values = [arrays[key_map["embedding"]]]
    else:
        kernel, bias = (arrays[name] for name in decoder)
        values = [arrays[key_map["embedding"]], kernel.T, bias]  # (v, d), (h, v), (v,)
    _assign([*zip(variables, values), *_to_keras_layout(parts, arrays)])


def language_model_state_dict(model: keras.Model, key_map: Mapping[str, str] = KEY_MAP) -> dict[str, np.ndarray]:
    """The weights of a recurrent language model as the state dict of PyTorch's word language model example.

    Args:
        model: as in `load_language_model_state_dict`.
        key_map: as in `load_language_model_state_dict`.

    Returns:
        dict name -> NumPy array. If the embeddings are tied, decoder.weight is the embedding again and decoder.bias
        is zero, as the PyTorch model with tied weights has it.

    Raises:
        UserError: if `model` is no such model.
    """
    key_map = _full_key_map(key_map)
    layers, variables, tied = _language_model_parts(model)
    embedding, *logits = [_numpy(variable) for variable in variables]
    kernel, bias = (embedding.copy(), np.zeros_like(embedding[:, 0])) if tied else (logits[0].T.copy(), logits[1])
    return {
        key_map["embedding"]: embedding,
        **state_dict(layers, key_map["recurrent"]),
        key_map["logits_kernel"]: kernel,
        key_map["logits_bias"]: bias,
    }


def build_layers(
    state_dict: Mapping[str, Any], prefix: str = "", *, activation: str = "tanh", return_sequences: bool = True
) -> list[keras.layers.Layer]:
    """Build the Keras layers of a torch.nn.LSTM, GRU or RNN, with its weights.

    Their kind, sizes, number, directions and biases are those of the state dict.

    Args:
        state_dict: mapping name -> torch tensor or array, or that of one LSTMCell, GRUCell or RNNCell.
        prefix: what precedes "weight_ih_l0" in the names, such as "rnn."; other names are ignored.
        activation: "tanh" or "relu" for a torch.nn.RNN, of which a state dict does not tell.
        return_sequences: whether the last layer returns all time steps, or the last one only.

    Returns:
        list of built keras.layers.LSTM, GRU or SimpleRNN, or Bidirectional around them, named "lstm_0" and so on: from
        (B, T, d) to (B, T, h), with both directions (B, T, 2·h).

    Raises:
        UserError: if names are missing or left over, or shapes are wrong.

    Example:
        >>> x = inputs = keras.Input((None, 3))
        >>> for layer in build_layers(torch.nn.GRU(3, 8, num_layers=2).state_dict()):
        ...     x = layer(x)
        >>> model = keras.Model(inputs, x)
    """
    arrays = _numbered(_arrays(state_dict, prefix), prefix)
    shape: tuple[int, ...] = arrays.get(f"{prefix}weight_hh_l0", np.zeros(())).shape  # (g·h, h)
    gates = shape[0] // shape[1] if len(shape) == 2 and shape[1] and shape[0] % shape[1] == 0 else None
    kind = next((kind for kind, spec in _CELL_SPECS.items() if len(spec.torch_gates) == gates), None)
    if kind is None:
        prefixes = recurrent_prefixes(state_dict)
        advice = f"pass prefix={prefixes[0]!r}" if prefixes and prefix not in prefixes else "give that of such a module"
        raise UserError(
            f"The state dict has no {prefix}weight_hh_l0, (gates·units, units), of a torch.nn.LSTM, GRU or RNN: "
            f"{advice}."
        )
    numbers = [int(match[1]) for name in arrays if (match := re.search(r"_l(\d+)(_reverse)?$", name))]
    both = any(name.endswith("_reverse") for name in arrays)
    options: dict[str, Any] = {"use_bias": f"{prefix}bias_ih_l0" in arrays}
    options |= {} if activation == "tanh" else {"activation": activation}
    layers, features = [], arrays[f"{prefix}weight_ih_l0"].shape[-1] if f"{prefix}weight_ih_l0" in arrays else shape[1]
    for number in range(max(numbers) + 1):
        sequences = return_sequences or number < max(numbers)
        layer = kind(shape[1], return_sequences=sequences, name=f"{_CELL_NAMES[kind]}_{number}", **options)
        layers.append(keras.layers.Bidirectional(layer, name=f"bidirectional_{number}") if both else layer)
        layers[-1].build((None, None, features))
        features = shape[1] * (1 + both)
    load_state_dict(arrays, layers, prefix)
    return layers


def build_model(state_dict: Mapping[str, Any], prefix: str = "") -> tuple[keras.Model, list[str]]:
    """Build a model of the recurrent layers in a state dict, with the embedding and logits around them if it has those.

    Args:
        state_dict: mapping name -> torch tensor or array.
        prefix: as in `build_layers`.

    Returns:
        (`keras.Model`; names of the tensors that are not in it). With the names of `KEY_MAP` beside the recurrent ones
        the model is a `zoo.models.rnn_language_model`, else one from (B, T, d) to the last layer's (B, T, h).

    Raises:
        UserError: as `build_layers` and `load_language_model_state_dict`.
    """
    arrays = _arrays(state_dict)
    own = re.compile(re.escape(prefix) + r"(weight|bias)_[ih][hr](_l\d+(_reverse)?)?")
    recurrent = {name: array for name, array in arrays.items() if own.fullmatch(name)}
    layers, others = build_layers(recurrent, prefix), [name for name in arrays if name not in recurrent]
    first = _directions(layers[0])[0]
    encoder, decoder, bias = (KEY_MAP[part] for part in ("embedding", "logits_kernel", "logits_bias"))
    logits, zeros = (arrays.get(name, np.zeros(())) for name in (decoder, bias))
    tied = decoder not in arrays or (np.array_equal(logits, arrays.get(encoder)) and not zeros.any())
    is_language_model = encoder in others and set(others) <= {encoder, decoder, bias} and (tied or bias in arrays)
    if is_language_model and arrays[encoder].ndim == 2 and first is layers[0]:
        model = rnn_language_model(
            cell=_CELL_NAMES[type(first)],
            vocabulary_size=arrays[encoder].shape[0],
            embedding_dim=arrays[encoder].shape[1],
            units=first.units,
            num_layers=len(layers),
            tie_embeddings=tied,
        )
        load_language_model_state_dict(_numbered(arrays, prefix), model, {"recurrent": prefix})
        return model, []
    x = inputs = keras.Input((None, first.cell.kernel.shape[0]), name="features")
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=_CELL_NAMES[type(first)]), others


def describe(model: keras.Model) -> str:
    """The torch module that the recurrent layers of a model are.

    Args:
        model: what `build_model` returned.

    Returns:
        e.g. "torch.nn.LSTM(64, 512, num_layers=2, bias=True, bidirectional=False)".
    """
    kinds = (*_CELL_SPECS, keras.layers.Bidirectional)
    return _description([layer for layer in model.layers if isinstance(layer, kinds)])


def recurrent_prefixes(state_dict: Mapping[str, Any]) -> list[str]:
    """Find the recurrent modules of a state dict.

    Args:
        state_dict: mapping from names.

    Returns:
        what precedes "weight_hh_l0" or, in that of a cell, "weight_hh" in the names; sorted.
    """
    return sorted(
        {name[: match.start()] for name in state_dict if (match := re.search(r"weight_hh(_l0)?$", str(name)))}
    )


def read_state_dict(path: StrPath, key: str | None = None) -> dict[str, np.ndarray]:
    """Read a state dict from a .safetensors file, or from a file of torch.save without running what it holds.

    Args:
        path: a .safetensors file needs the package safetensors; any other is taken for a torch file and needs torch.
        key: of the state dict in a checkpoint of a training, such as "model_state"; None for a file that is one.

    Returns:
        dict name -> NumPy array.

    Raises:
        UserError: if the file is missing, is damaged, holds code or anything but tensors by name, or if the package
            that reads it is missing.
    """
    file = TensorFile(path, key=key)
    return _arrays({name: file.get_tensor(name) for name in file.shapes})


# Keras: the layers, and their names in torch.


def _cell(layer):
    """The entry of _CELL_SPECS for a layer of one direction, or None."""
    return next((spec for kind, spec in _CELL_SPECS.items() if isinstance(layer, kind)), None)


def _directions(layer):
    """[forward layer] or [forward layer, backward layer]."""
    return [layer.forward_layer, layer.backward_layer] if isinstance(layer, keras.layers.Bidirectional) else [layer]


def _parts(layers, prefix):
    """[(layer of one direction, its torch names)]; the names are those of weight_ih, weight_hh, bias_ih, bias_hh.

    Raises:
        UserError: if the layers are not a stack that one torch module can be.
    """
    if not isinstance(layers, (list, tuple)) or not layers:
        raise UserError(
            f"The layers are {layers!r:.80}, where a list of at least one recurrent layer was expected: pass [layer], "
            "or recurrent_layers(model)."
        )
    parts = []
    for index, layer in enumerate(layers):
        for one, backwards in zip(_directions(layer), (False, True)):
            _check_layer(one, backwards)
            ending = f"_l{index}{'_reverse' * backwards}"
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if one.use_bias else 2]
            parts.append((one, [f"{prefix}{kind}{ending}" for kind in kinds]))
    _check_uniform(layers)
    return parts


def _check_layer(layer, backwards):
    """Raise UserError for a layer of one direction whose arithmetic is not torch's, or that is not built."""
    cell = _cell(layer)
    if cell is None:
        raise UserError(
            f"The layer {getattr(layer, 'name', layer)!r:.80} is a {type(layer).__name__}, where a recurrent layer was "
            "expected: pass keras.layers.LSTM, GRU or SimpleRNN, or Bidirectional around them."
        )
    if cell.torch == "GRU" and not layer.reset_after:
        raise UserError(
            f"The layer {layer.name} is a GRU with reset_after=False, and torch.nn.GRU resets after the product: "
            "build it with reset_after=True."
        )
    used = (layer.activation.__name__, getattr(layer, "recurrent_activation", keras.activations.sigmoid).__name__)
    if used[0] not in cell.activations or used[1] != "sigmoid":
        raise UserError(
            f"The layer {layer.name} has the activations {used[0]} and {used[1]}, and torch.nn.{cell.torch} has "
            f"{' or '.join(cell.activations)} and sigmoid: build it with those."
        )
    if layer.go_backwards != backwards:
        raise UserError(
            f"The layer {layer.name} has go_backwards={layer.go_backwards}, and torch has no such direction in this "
            "layer: use keras.layers.Bidirectional for both directions."
        )
    if not layer.built:
        raise UserError(f"The layer {layer.name} has no weights yet: build it, or call it on an input, first.")


def _check_uniform(layers):
    """Raise UserError unless all layers have one cell, size, bias and direction, as those of a torch module have."""
    specs = [
        (layer.name, _describe_layer(one, len(_directions(layer)))) for layer in layers for one in _directions(layer)
    ]
    for name, spec in specs:
        if spec != specs[0][1]:
            raise UserError(
                f"The layers differ ({specs[0][0]}: {specs[0][1]}; {name}: {spec}), and one torch module has the same "
                "in every layer: convert them one at a time."
            )
    outputs = _directions(layers[0])[0].units * len(_directions(layers[0]))
    for before, layer in zip(layers, layers[1:]):
        inputs = _directions(layer)[0].cell.kernel.shape[0]
        if inputs != outputs:
            raise UserError(
                f"The layer {layer.name} takes {inputs} inputs, where the {outputs} outputs of {before.name} were "
                "expected: stack the layers directly (Bidirectional with merge_mode='concat'), first to last."
            )


def _describe_layer(layer, directions):
    """What is the same in every layer of a torch module, in words."""
    name = f"{_cell(layer).torch} ({layer.activation.__name__}) of {layer.units} units"
    return f"{name}, use_bias={layer.use_bias}, directions={directions}"


def _shapes(parts):
    """{torch name: shape} that a stack needs."""
    shapes = {}
    for layer, names in parts:
        d, gates_h = layer.cell.kernel.shape  # (d, g·h)
        shapes.update(zip(names, [(gates_h, d), (gates_h, layer.units), (gates_h,), (gates_h,)]))
    return shapes


def _to_keras_layout(parts, arrays):
    """[(Keras variable, its new value)] for a state dict that was checked."""
    pairs = []
    for layer, names in parts:
        cell = _cell(layer)
        order = [cell.torch_gates.index(gate) for gate in cell.keras_gates]
        weight_ih, weight_hh, *biases = [_reorder(arrays[name], order) for name in names]
        pairs += [(layer.cell.kernel, weight_ih.T), (layer.cell.recurrent_kernel, weight_hh.T)]
        if biases:
            pairs.append((layer.cell.bias, np.stack(biases) if cell.two_biases else sum(biases)))
    return pairs


def _reorder(array, order):
    """Put the gates, which lie one after the other on the first axis (g·h, …), into another order; a copy."""
    gates = array.reshape(len(order), -1, *array.shape[1:])  # (g, h, …)
    return np.ascontiguousarray(gates[order].reshape(array.shape))


def _language_model_parts(model):
    """(recurrent layers, [embedding, logits kernel, logits bias] or [embedding], are the embeddings tied?)."""
    try:
        embedding = model.get_layer("embedding")
        tied = isinstance(embedding, keras.layers.ReversibleEmbedding) and embedding.tie_weights
        logits = [] if tied else [model.get_layer("logits").kernel, model.get_layer("logits").bias]
        if any(variable is None for variable in logits):
            raise ValueError("no biases")
        layers, variables = recurrent_layers(model), [embedding.embeddings, *logits]
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"{getattr(model, 'name', model)!r:.80} is not a recurrent language model (it lacks a layer 'embedding', "
            "or 'logits' with biases): build it with zoo.models.rnn_language_model."
        ) from error
    known = {id(variable) for part in (variables, *(layer.weights for layer in layers)) for variable in part}
    if others := [variable.path for variable in model.weights if id(variable) not in known]:
        raise UserError(
            f"The model {model.name} also has {', '.join(others)}, which the PyTorch model does not have: build "
            "it with zoo.models.rnn_language_model."
        )
    return layers, variables, tied


# Torch: names and arrays.


def _full_key_map(key_map):
    """`KEY_MAP` with changes."""
    for key in key_map:
        if key not in KEY_MAP:
            raise UserError(
                f"There is no part {key!r} in a language model: use {', '.join(KEY_MAP)}.{did_you_mean(key, KEY_MAP)}"
            )
    return KEY_MAP | dict(key_map)


def _arrays(state_dict, prefix=""):
    """{name: NumPy array} of the names that begin with `prefix`; what is not float64 becomes float32."""
    if not isinstance(state_dict, Mapping):
        raise UserError(
            f"The state dict is a {type(state_dict).__name__}, where a mapping from names to arrays was expected: pass "
            "module.state_dict(), or what read_state_dict returned."
        )
    arrays = {}
    for name, value in state_dict.items():
        if not str(name).startswith(prefix):
            continue
        try:
            array = value
            if hasattr(value, "detach"):
                array = value.detach().cpu()
                array = (array if str(array.dtype) == "torch.float64" else array.float()).numpy()
            array = np.asarray(array)
            if array.dtype.kind in "OSU":  # float() would make a number of None
                raise TypeError("not numbers")
            arrays[name] = array if array.dtype == "float64" else array.astype("float32")
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{name} in the state dict is a {type(value).__name__} and no array of numbers: remove it, or pass the "
                "state dict alone."
            ) from error
    return arrays


def _numbered(arrays, prefix):
    """A state dict of one LSTMCell, GRUCell or RNNCell with the names of a layer; any other as it is."""
    if f"{prefix}weight_hh" not in arrays:
        return arrays
    return {
        f"{name}_l0" if re.fullmatch(r"(weight|bias)_[ih]h", name[len(prefix) :]) else name: arrays[name]
        for name in arrays
    }


def _quoted(prefixes):
    return " or ".join(map(repr, prefixes))


def _shapes_of(arrays):
    return {name: array.shape for name, array in arrays.items()}


def _numpy(variable):
    """A Keras variable as a NumPy array of its own, of a kind that torch knows (bfloat16 becomes float32)."""
    array = np.array(keras.ops.convert_to_numpy(variable))
    return array if array.dtype in ("float16", "float32", "float64") else array.astype("float32")


def _assign(pairs):
    """Assign values that have been checked to Keras variables."""
    for variable, value in pairs:
        variable.assign(np.ascontiguousarray(value))


def _check_cell(arrays, layers, prefix):
    """Raise UserError for projections (proj_size), and for another cell than that of the layers."""
    if projections := [name for name in arrays if name.startswith(f"{prefix}weight_hr_l")]:
        raise UserError(
            f"The state dict holds {', '.join(projections)}, the projections of an LSTM with proj_size, which Keras "
            "does not have: use a model trained with proj_size=0."
        )
    cell, name = _cell(_directions(layers[0])[0]), f"{prefix}weight_hh_l0"
    shape: tuple[int, ...] = arrays[name].shape if name in arrays else ()  # (g·h, h)
    if len(shape) != 2 or not shape[1] or shape[0] == len(cell.torch_gates) * shape[1]:
        return
    for other in _CELL_SPECS.values():
        if shape[0] == len(other.torch_gates) * shape[1]:
            raise UserError(
                f"{name} has shape {shape}, as in a torch.nn.{other.torch} of {shape[1]} units, where {_names(layers)} "
                f"can hold a torch.nn.{cell.torch}: use layers of the same kind."
            )


def _check_tied(arrays, key_map, model):
    """Raise UserError for a state dict that a model with tied embeddings cannot have."""
    encoder, kernel, bias = (key_map[part] for part in ("embedding", "logits_kernel", "logits_bias"))
    if kernel in arrays and not np.array_equal(arrays[kernel], arrays[encoder]):
        problem = f"{kernel} differs from {encoder}"
    elif bias in arrays and arrays[bias].any():
        problem = f"{bias} is not zero"
    else:
        return
    raise UserError(
        f"The model {model.name} uses its embedding for the logits, without biases, and {problem} in the state dict: "
        "build the model with tie_embeddings=False."
    )


def _names(layers):
    return f"the layer{'s' * (len(layers) > 1)} {', '.join(layer.name for layer in layers)}"


def _description(layers):
    """The torch module that a stack is, as it would be written."""
    first = _directions(layers[0])[0]
    return (
        f"torch.nn.{_cell(first).torch}({first.cell.kernel.shape[0]}, {first.units}, num_layers={len(layers)}, "
        f"bias={first.use_bias}, bidirectional={len(_directions(layers[0])) == 2})"
    )
