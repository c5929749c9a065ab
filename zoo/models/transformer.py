"""The transformer encoder-decoder of "Attention Is All You Need", and the models made of its layers.

source (B, S) ─ embedding + positions ─ L x [self-attention, feed-forward] ──────────┐ context (B, S, d)
target (B, T) ─ embedding + positions ─ L x [causal self-attention, cross-attention, feed-forward] ─ logits (B, T, V)

Every sublayer f is joined to its residual: post-norm LayerNorm(x + f(x)), as in the paper, or pre-norm
x + f(LayerNorm(x)) with one more norm at the end of each stack (Xiong et al. 2020). Padding is masked by the
source's token ids; a target is padded at its end, where the causal mask hides it from everything before.

Letters: B sentences, S source and T target positions, L layers, N heads, H width of a head, d = N·H hidden
width, f intermediate width, V entries of the target vocabulary; K hypotheses of each sentence side by side (beams),
M cached positions.

Parameters with one tied embedding: V·d + L_enc·(4(d² + d) + 2df + f + d + 4d) + L_dec·(8(d² + d) + 2df + f + d + 6d).
"""

import math
from typing import Any

import keras
from keras import layers, ops

from zoo.blocks.attention import (
    ATTENTION_LAYOUT_MAP,
    attention_layers,
    attention_weights,
    cached_attention,
    multi_head_attention,
    project_heads,
    sinusoidal_embedding,
)
from zoo.compat.keras import graph_calls

# Tensor parallelism, see `zoo.blocks.attention`.
TENSOR_PARALLEL_LAYOUT_MAP = ATTENTION_LAYOUT_MAP | {
    ".*embedding/(reverse_)?embeddings": (None, "model"),
}
ACTIVATIONS = ("relu", "gelu", "silu")
POSITIONS = ("sinusoidal", "learned")


def transformer(
    *,
    vocabulary_size: int,
    source_vocabulary_size: int | None = None,
    num_layers: int = 6,
    decoder_layers: int | None = None,
    hidden_dim: int = 512,
    intermediate_dim: int = 2048,
    num_heads: int = 8,
    activation: str = "relu",
    pre_norm: bool = False,
    positions: str = "sinusoidal",
    max_length: int = 512,
    scale_embeddings: bool = True,
    tie_embeddings: bool = True,
    logits_bias: bool = False,
    dropout: float = 0.0,
    pad_id: int = 0,
    epsilon: float = 1e-5,
    seed: int = 0,
    name: str = "transformer",
) -> keras.Model:
    """Build the encoder-decoder in the functional API.

    Args:
        vocabulary_size: entries V of the target's vocabulary, and of the source's where they share one.
        source_vocabulary_size: entries of a vocabulary of the source's own, with its own embedding; None to share.
        num_layers: layers of the encoder, and of the decoder unless `decoder_layers` says otherwise.
        decoder_layers: layers of the decoder.
        hidden_dim: d, even and divisible by `num_heads`.
        intermediate_dim: f, width inside the feed-forward sublayers.
        num_heads: N.
        activation: "relu", "gelu" or "silu", inside the feed-forward sublayers.
        pre_norm: normalize the input of each sublayer instead of its output.
        positions: "sinusoidal", or "learned" for a table of `max_length` positions on each side.
        max_length: rows of the learned tables.
        scale_embeddings: multiply embeddings by sqrt(d).
        tie_embeddings: use the target's embedding for the logits too.
        logits_bias: add a learned bias to every logit (a dense layer of its own for the logits always has one).
        dropout: fraction dropped after embeddings and sublayers, before the residual is added, in [0, 1).
        pad_id: the token of the source that is padding.
        epsilon: of the normalisations.
        seed: seed of the dropouts.
        name: name of the model.

    Returns:
        `keras.Model` from [source (B, S) int32, target (B, T) int32] to logits (B, T, V): those at position t are for
        the token after target[t].

    Raises:
        ValueError: if an argument is out of the range given above.

    Example:
        >>> transformer(vocabulary_size=10_000, **variants.TRANSFORMER["tiny"]).count_params()
        2605056
    """
    decoder_layers = num_layers if decoder_layers is None else decoder_layers
    for key, value, lowest in (
        ("vocabulary_size", vocabulary_size, 2),
        ("source_vocabulary_size", 2 if source_vocabulary_size is None else source_vocabulary_size, 2),
        ("num_layers", num_layers, 1),
        ("decoder_layers", decoder_layers, 1),
        ("intermediate_dim", intermediate_dim, 1),
        ("num_heads", num_heads, 1),
        ("max_length", max_length, 1),
    ):
        if value < lowest:
            raise ValueError(f"{key} must be at least {lowest}, got {value}.")
    if hidden_dim < 2 or hidden_dim % num_heads or hidden_dim % 2:
        raise ValueError(f"hidden_dim must be even and divisible by num_heads, got {hidden_dim} and {num_heads} heads.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}.")

    named = {}

    def add(kind, *args, **kwargs):
        named[kwargs["name"]] = kind(*args, **kwargs)

    shared = source_vocabulary_size is None
    target_embedding = layers.ReversibleEmbedding if tie_embeddings else layers.Embedding
    add(target_embedding, vocabulary_size, hidden_dim, name="embedding" if shared else "target_embedding")
    if not shared:
        add(layers.Embedding, source_vocabulary_size, hidden_dim, name="source_embedding")
    if not tie_embeddings:
        add(layers.Dense, vocabulary_size, name="logits")
    elif logits_bias:
        # A stock layer that holds V free weights: the one row of a table, looked up for every position.
        add(layers.Embedding, 1, vocabulary_size, embeddings_initializer="zeros", name="logits_bias")
    if scale_embeddings:
        add(layers.Rescaling, math.sqrt(hidden_dim), name="embedding_scale")
    for side, depth, attentions in (
        ("encoder", num_layers, ("self_attention",)),
        ("decoder", decoder_layers, ("self_attention", "cross_attention")),
    ):
        if positions == "learned":
            add(layers.Embedding, max_length, hidden_dim, name=f"{side}_positions")
        for block in (f"{side}_{i}" for i in range(depth)):
            for kind in attentions:
                named |= {
                    part.name: part
                    for part in attention_layers(f"{block}_{kind}", hidden_dim=hidden_dim, num_heads=num_heads)
                }
            add(layers.Dense, intermediate_dim, activation=activation, name=f"{block}_inner")
            add(layers.Dense, hidden_dim, name=f"{block}_outer")
            for kind in (*attentions, "feed_forward"):
                add(layers.LayerNormalization, epsilon=epsilon, name=f"{block}_{kind}_norm")
        if pre_norm:
            add(layers.LayerNormalization, epsilon=epsilon, name=f"{side}_norm")

    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    stack = _Stack(named, dropout=dropout, seed=seed)
    context = stack.encode(source, pad_id)  # (B, S, d)
    logits = stack.decode(target, context, _padding_mask(source, pad_id))  # (B, T, V)
    return keras.Model([source, target], logits, name=name)


def _padding_mask(source, pad_id):
    """True where the source is no padding, (B, 1, 1, S)."""
    return ops.expand_dims(ops.expand_dims(ops.not_equal(source, pad_id), 1), 1)


class _Stack:
    """How the layers of a transformer are connected, in a new model and in the models made of a built one."""

    def __init__(self, named, *, dropout=0.0, seed=0):
        self.named, self.dropout, self.seed, self.dropouts = named, dropout, seed, 0
        self.depth = {
            side: sum(f"{side}_{i}_inner" in named for i in range(len(named))) for side in ("encoder", "decoder")
        }

    def layer(self, name):
        return self.named[name]

    def dropout_layer(self, x, name):
        if not self.dropout:
            return x
        self.dropouts += 1
        return layers.Dropout(self.dropout, seed=self.seed + self.dropouts, name=f"{name}_dropout")(x)

    def residual(self, x, sublayer, name):
        """Post-norm or pre-norm around a sublayer; the norm and the dropout take its name."""
        norm = self.named[f"{name}_norm"]
        if self.pre_norm:
            return x + self.dropout_layer(sublayer(norm(x)), name)
        return norm(x + self.dropout_layer(sublayer(x), name))

    @property
    def pre_norm(self):
        return "encoder_norm" in self.named

    def feed_forward(self, x, block):
        return self.residual(
            x,
            lambda x: self.named[f"{block}_outer"](self.named[f"{block}_inner"](x)),
            f"{block}_feed_forward",
        )

    def embed(self, token, side, position):
        """Embeddings plus positions; `position` broadcasts to the shape of `token`."""
        own = {"encoder": "source_embedding", "decoder": "target_embedding"}[side]
        x = self.named.get(own, self.named.get("embedding"))(token)  # (B, T, d)
        if "embedding_scale" in self.named:
            x = self.named["embedding_scale"](x)
        table = self.named.get(f"{side}_positions")
        return x + (table(position) if table else ops.cast(sinusoidal_embedding(position, x.shape[-1]), x.dtype))

    def final_norm(self, x, side):
        return self.named[f"{side}_norm"](x) if self.pre_norm else x

    def encode(self, source, pad_id):
        mask = _padding_mask(source, pad_id)
        x = self.dropout_layer(self.embed(source, "encoder", _positions(source)), "source")
        for block in (f"encoder_{i}" for i in range(self.depth["encoder"])):
            name = f"{block}_self_attention"
            x = self.residual(x, lambda x, name=name: multi_head_attention(self.layer, name, x, x, mask), name)
            x = self.feed_forward(x, block)
        return self.final_norm(x, "encoder")

    def decode(self, target, context, mask):
        x = self.dropout_layer(self.embed(target, "decoder", _positions(target)), "target")
        for block in (f"decoder_{i}" for i in range(self.depth["decoder"])):
            name = f"{block}_self_attention"
            x = self.residual(x, lambda x, name=name: multi_head_attention(self.layer, name, x, x, causal=True), name)
            name = f"{block}_cross_attention"
            x = self.residual(x, lambda x, name=name: multi_head_attention(self.layer, name, x, context, mask), name)
            x = self.feed_forward(x, block)
        return self.logits(self.final_norm(x, "decoder"), target)

    def logits(self, x, token):
        """Logits (..., V) of x (..., d)."""
        if "logits" in self.named:
            return self.named["logits"](x)
        logits = self.named.get("target_embedding", self.named.get("embedding"))(x, reverse=True)
        if "logits_bias" in self.named:
            logits = logits + self.named["logits_bias"](ops.zeros_like(token[:1, :1]))  # (1, 1, V)
        return logits


def _positions(token):
    """Positions 0, 1, 2, … of tokens (B, T), as (1, T) int32."""
    return ops.cumsum(ops.ones_like(token[:1, :]), axis=1) - 1


# ------------------------------------------------------------------------------- models made of a built one's layers


def infer_config(model: keras.Model) -> dict[str, Any]:
    """The keyword arguments that build a transformer of the same shape, without dropout; read from its layers.

    Args:
        model: a transformer.

    Returns:
        dict, for `transformer`.

    Raises:
        ValueError: if the model is no transformer of this file.
    """
    named = {layer.name: layer for layer in model.layers}
    if not {"encoder_0_self_attention_query_heads", "decoder_0_cross_attention_query_heads"} <= named.keys():
        raise ValueError(f"{model.name} is not a transformer encoder-decoder.")
    depth = _Stack(named).depth
    embedding = named["target_embedding"] if "target_embedding" in named else named["embedding"]
    return {
        "vocabulary_size": embedding.input_dim,
        "source_vocabulary_size": named["source_embedding"].input_dim if "source_embedding" in named else None,
        "num_layers": depth["encoder"],
        "decoder_layers": depth["decoder"],
        "hidden_dim": embedding.output_dim,
        "intermediate_dim": named["encoder_0_inner"].units,
        "num_heads": named["encoder_0_self_attention_query_heads"].target_shape[-2],
        "activation": named["encoder_0_inner"].activation.__name__,
        "pre_norm": "encoder_norm" in named,
        "positions": "learned" if "encoder_positions" in named else "sinusoidal",
        "max_length": named["encoder_positions"].input_dim if "encoder_positions" in named else 512,
        "scale_embeddings": "embedding_scale" in named,
        "tie_embeddings": "logits" not in named,
        "logits_bias": "logits_bias" in named,
        "pad_id": _pad_id(model),
        "epsilon": named["encoder_0_feed_forward_norm"].epsilon,
    }


def _pad_id(model):
    """The token that the model's own mask compares the source with."""
    for call in graph_calls(model):  # not get_config(), for which Keras imports TensorFlow on every backend
        if type(call.operation).__name__ == "NotEqual":
            args, kwargs = call.arguments
            return int((*args, *kwargs.values())[1])
    raise ValueError(f"{model.name} has no mask of its source.")


def _stack_of(model):
    return _Stack({layer.name: layer for layer in model.layers})


def encoder_model(model: keras.Model) -> keras.Model:
    """The encoder.

    Args:
        model: what `transformer` returned, or such a model loaded from a file.

    Returns:
        `keras.Model` from source (B, S) int32 to context (B, S, d).
    """
    source = keras.Input((None,), dtype="int32", name="source")
    return keras.Model(source, _stack_of(model).encode(source, _pad_id(model)), name=f"{model.name}_encoder")


def cross_attention_cache_model(model: keras.Model) -> keras.Model:
    """What decoding needs of a source, evaluated once.

    Args:
        model: what `transformer` returned, or such a model loaded from a file.

    Returns:
        `keras.Model` from source (B, S) int32 to a list of the padding mask (B, S) bool, False at padding, and keys and
        values of the cross-attention of each decoder layer, each (B, N, S, H).
    """
    source, stack = keras.Input((None,), dtype="int32", name="source"), _stack_of(model)
    context, cache = stack.encode(source, _pad_id(model)), []
    for i in range(stack.depth["decoder"]):
        for part in ("key", "value"):
            projected = project_heads(stack.layer, f"decoder_{i}_cross_attention_{part}", context)  # (B, S, N, H)
            cache.append(ops.transpose(projected, (0, 2, 1, 3)))  # (B, N, S, H)
    return keras.Model(
        source, [ops.not_equal(source, _pad_id(model)), *cache], name=f"{model.name}_cross_attention_cache"
    )


def decode_step_model(model: keras.Model) -> keras.Model:
    """One step of the decoder for K hypotheses of each sentence, with keys and values cached.

    The hypotheses of a sentence share its source, and their caches lie side by side: M = P·K keys, of which the
    self-attention mask says which belong to which hypothesis. So beams that change their parents need no copying.

    Args:
        model: what `transformer` returned, or such a model loaded from a file.

    Returns:
        `keras.Model` from a list of
            token (B, K) int32, position (B,) int32: the token at that position of each hypothesis;
            padding_mask (B, S) bool: of `cross_attention_cache_model`;
            self_attention_mask (B, K, M) bool: the cached positions that each hypothesis attends to;
            cross-attention keys and values of each decoder layer, (B, N, S, H): of `cross_attention_cache_model`;
            self-attention keys and values of each decoder layer at the cached positions, (B, N, M, H);
        to a list of
            logits (B, K, V) for the next token;
            keys and values of each decoder layer at this position, (B, N, K, H), to be cached.
    """
    stack, config = _stack_of(model), infer_config(model)
    shape = (config["num_heads"], None, config["hidden_dim"] // config["num_heads"])
    token = keras.Input((None,), dtype="int32", name="token")
    position = keras.Input((), dtype="int32", name="position")
    padding_mask = keras.Input((None,), dtype="bool", name="padding_mask")
    self_attention_mask = keras.Input((None, None), dtype="bool", name="self_attention_mask")
    cross_caches, self_caches = (
        [
            (keras.Input(shape, name=f"{kind}_keys_{i}"), keras.Input(shape, name=f"{kind}_values_{i}"))
            for i in range(stack.depth["decoder"])
        ]
        for kind in ("cross", "self")
    )
    cross_mask = ops.expand_dims(ops.expand_dims(padding_mask, 1), 1)  # (B, 1, 1, S)
    self_mask = ops.expand_dims(self_attention_mask, 1)  # (B, 1, K, M)
    x, new = stack.embed(token, "decoder", ops.expand_dims(position, 1)), []  # (B, K, d)
    for i, (cross_cache, self_cache) in enumerate(zip(cross_caches, self_caches)):

        def attend_to_own(x, name=f"decoder_{i}_self_attention", cache=self_cache):
            own = [
                ops.transpose(project_heads(stack.layer, f"{name}_{part}", x), (0, 2, 1, 3))
                for part in ("key", "value")
            ]
            new.extend(own)  # (B, N, K, H)
            (keys, values), (key, value) = cache, own
            return cached_attention(stack.layer, name, x, keys, values, self_mask, current_key_value=(key, value))

        def attend_to_source(x, name=f"decoder_{i}_cross_attention", cache=cross_cache):
            keys, values = cache
            return cached_attention(stack.layer, name, x, keys, values, cross_mask)

        x = stack.residual(x, attend_to_own, f"decoder_{i}_self_attention")
        x = stack.residual(x, attend_to_source, f"decoder_{i}_cross_attention")
        x = stack.feed_forward(x, f"decoder_{i}")
    logits = stack.logits(stack.final_norm(x, "decoder"), token)
    inputs = [token, position, padding_mask, self_attention_mask, *sum(cross_caches, ()), *sum(self_caches, ())]
    return keras.Model(inputs, [logits, *new], name=f"{model.name}_step")


def attention_names(model: keras.Model) -> list[str]:
    """Names of the attentions of a transformer.

    Args:
        model: a transformer.

    Returns:
        the names, in the order of the layers, e.g. "decoder_3_cross_attention".
    """
    ending = "_attention_query"
    return [layer.name.removesuffix("_query") for layer in model.layers if layer.name.endswith(ending)]


def attention_weights_model(model: keras.Model, name: str) -> keras.Model:
    """The attention weights of one attention layer.

    Args:
        model: a transformer.
        name: one of `attention_names(model)`, e.g. "decoder_3_cross_attention".

    Returns:
        `keras.Model` from [source (B, S), target (B, T)] to the weights (B, N, queries, keys); rows sum to 1.

    Raises:
        ValueError: if there is no attention of that name.
    """
    if name not in attention_names(model):
        raise ValueError(f"{model.name} has no attention {name!r}: choose one of {', '.join(attention_names(model))}.")
    # A nested model: automatic names of new operations may clash with those of a loaded file.
    found = [model.get_layer(f"{name}_{part}_heads").output for part in ("query", "key")]
    projections = keras.Model(model.inputs, found, name=f"{name}_heads")
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in ("source", "target")]
    causal = name.startswith("decoder") and name.endswith("self_attention")
    mask = None if causal else _padding_mask(inputs[0], _pad_id(model))
    query, key = projections(inputs)
    return keras.Model(inputs, attention_weights(query, key, mask, causal), name=f"{model.name}_{name}")
