"""Recurrent language models: embedding, stacked recurrent layers, logits for the next token at every position.

token (B, T) int32
  embedding   v·d                             (B, T, d)
  lstm_0      4·((d + h)·h + h)               (B, T, h)     gru_0      3·((d + h)·h + 2h)
  dropout_0                                                 simple_0   (d + h)·h + h
  lstm_1 …    the same with d = h             (B, T, h)
  logits      (h + 1)·v                       (B, T, v)     tied to the embedding: none of its own

Letters: B batch, T positions, v entries of the vocabulary, d width of the embedding, h units.

References: LSTM, Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; GRU, Cho et al. 2014 in
the form of cuDNN and PyTorch (`reset_after`); dropout between layers only, Zaremba et al. 2014; tied embeddings,
Press and Wolf 2017.
"""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from zoo.compat.keras import track_variables

CELLS = {"lstm": layers.LSTM, "gru": layers.GRU, "simple": layers.SimpleRNN}


def rnn_language_model(
    *,
    cell: str,
    vocabulary_size: int,
    embedding_dim: int = 64,
    units: int = 512,
    num_layers: int = 2,
    dropout: float = 0.0,
    tie_embeddings: bool = False,
    stateful_batch_size: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> keras.Model:
    """Build a language model in the functional API.

    Args:
        cell: "lstm", "gru" or "simple".
        vocabulary_size: entries of the vocabulary, at least 2.
        embedding_dim: width of the embedding; equal to `units` where embeddings are tied.
        units: width of each recurrent layer.
        num_layers: how many of them are stacked.
        dropout: fraction dropped before, between and after the recurrent layers while training, in [0, 1).
        tie_embeddings: use the embedding's table for the logits too.
        stateful_batch_size: None for a model that starts every sequence from zero states. An int: the model takes
            batches of exactly that many sequences and carries its states from one batch to the next until
            `reset_states(model)` (`stateful=True` of the layers); its weights are those of the model without.
        seed: seed of the dropouts.
        name: name of the model; made of the cell if None.

    Returns:
        `keras.Model` from token ids (B, T) int32 to logits (B, T, vocabulary_size).

    Raises:
        ValueError: if an argument is out of the range given above.

    Example:
        >>> rnn_language_model(cell="lstm", vocabulary_size=65, units=256).count_params()
        874625
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}.")
    for key, value, lowest in (
        ("vocabulary_size", vocabulary_size, 2),
        ("embedding_dim", embedding_dim, 1),
        ("units", units, 1),
        ("num_layers", num_layers, 1),
    ):
        if value < lowest:
            raise ValueError(f"{key} must be at least {lowest}, got {value}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}.")
    if tie_embeddings and embedding_dim != units:
        raise ValueError(f"Tied embeddings need embedding_dim equal to units, got {embedding_dim} and {units}.")

    token = keras.Input((None,), batch_size=stateful_batch_size, dtype="int32", name="token")
    embedding = layers.ReversibleEmbedding if tie_embeddings else layers.Embedding
    embedding = embedding(vocabulary_size, embedding_dim, name="embedding")
    x = embedding(token)  # (B, T, d)
    for i in range(num_layers):
        if dropout and i == 0:
            x = layers.Dropout(dropout, seed=seed, name="dropout_in")(x)
        x = CELLS[cell](units, return_sequences=True, stateful=stateful_batch_size is not None, name=f"{cell}_{i}")(x)
        if dropout:
            x = layers.Dropout(dropout, seed=seed + i + 1, name=f"dropout_{i}")(x)  # (B, T, h)
    if tie_embeddings:
        logits = embedding(x, reverse=True)  # (B, T, v)
    else:
        logits = layers.Dense(vocabulary_size, name="logits")(x)  # (B, T, v)
    model = keras.Model(token, logits, name=name or f"{cell}_language_model")
    for layer in recurrent_layers(model) if stateful_batch_size else ():
        _make_stateful(layer)
    return model


def recurrent_layers(model: keras.Model) -> list[layers.RNN]:
    """The recurrent layers of a language model.

    Args:
        model: a language model.

    Returns:
        list of layers, from the first to the last.
    """
    return [layer for layer in model.layers if isinstance(layer, tuple(CELLS.values()))]


def infer_config(model: keras.Model) -> dict[str, Any]:
    """The keyword arguments that build a language model of the same shape, without dropout; read from its layers.

    Args:
        model: a language model.

    Returns:
        dict, for `rnn_language_model`.

    Raises:
        ValueError: if the model is no recurrent language model.
    """
    recurrent, named = recurrent_layers(model), {layer.name: layer for layer in model.layers}
    if not recurrent or "embedding" not in named:
        raise ValueError(f"{model.name} is not a recurrent language model.")
    embedding = named["embedding"]
    return {
        "cell": next(name for name, kind in CELLS.items() if isinstance(recurrent[0], kind)),
        "vocabulary_size": embedding.input_dim,
        "embedding_dim": embedding.output_dim,
        "units": recurrent[0].units,
        "num_layers": len(recurrent),
        "tie_embeddings": isinstance(embedding, layers.ReversibleEmbedding),
    }


def _make_stateful(layer):
    """Work around two bugs of Keras 3.15 in stateful recurrent layers.

    Its states are not variables of the layer (`RNN._create_state_variables`), so that on JAX a compiled step cannot
    return their new values and every batch silently starts from zero. And on PyTorch the new states are
    written over the old ones before the backward pass, which needs the old ones.
    """
    track_variables(layer, layer.states)
    loop = layer.inner_loop

    def inner_loop(sequences, initial_state, mask, training=False):
        return loop(sequences, keras.tree.map_structure(ops.copy, initial_state), mask, training)

    layer.inner_loop = inner_loop


def reset_states(model: keras.Model) -> None:
    """Reset the states of a stateful model to zero.

    Args:
        model: a language model built with `stateful_batch_size`.
    """
    for layer in recurrent_layers(model):
        layer.reset_state()


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Give one language model the weights of another of the same architecture; carried states stay.

    Args:
        source: has the weights.
        target: gets them.
    """
    old_weights, new_weights = (
        [weight for weight in model.weights if weight.name != "rnn_state"] for model in (source, target)
    )
    for old, new in zip(old_weights, new_weights, strict=True):
        new.assign(np.array(ops.convert_to_numpy(old)))


def decode_step_model(model: keras.Model) -> keras.Model:
    """One step of a language model, made of its own layers: the cost of a token does not grow with the text.

    Args:
        model: what `rnn_language_model` returned, or such a model loaded from a file.

    Returns:
        `keras.Model` (token (B,) int32, states...) -> (logits (B, v), new states...). The states, each (B, h), are
        in the order of the layers; an LSTM has two, h then c. They start as zeros.
    """
    token = keras.Input((), dtype="int32", name="token")
    embedding = model.get_layer("embedding")
    x = ops.squeeze(embedding(ops.expand_dims(token, 1)), 1)  # (B, d)
    old_states, new_states = [], []
    for layer in recurrent_layers(model):
        sizes = layer.cell.state_size if isinstance(layer.cell.state_size, (list, tuple)) else [layer.cell.state_size]
        names = [f"{layer.name}_{letter}" for letter in "hc"[: len(sizes)]]
        states = [keras.Input((size,), name=name) for size, name in zip(sizes, names)]
        layer.cell.name = f"{layer.name}_cell"  # Keras gives all cells one name; names in a model must differ
        x, new = layer.cell(x, states)
        old_states += states
        new_states += new
    if isinstance(embedding, layers.ReversibleEmbedding):
        logits = embedding(x, reverse=True)  # (B, v)
    else:
        logits = model.get_layer("logits")(x)
    return keras.Model([token, *old_states], [logits, *new_states], name=f"{model.name}_step")
