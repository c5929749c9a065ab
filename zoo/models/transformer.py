"""The transformer encoder-decoder of "Attention Is All You Need", and its parts made of the same layers.

source (B, S) ─ embedding + positions ─ L x [self-attention, feed-forward] ──────────┐ memory (B, S, d)
target (B, T) ─ embedding + positions ─ L x [causal self-attention, cross-attention, feed-forward] ─ logits (B, T, V)

Every sublayer f is joined to its residual: post-norm LayerNorm(x + f(x)), as in the paper, or pre-norm
x + f(LayerNorm(x)) with one more norm at the end of each stack (Xiong et al. 2020). Padding is hidden by a mask made of
the source's token ids; a target is padded at its end, where the causal mask hides it from everything before.

Letters: B sentences, S source and T target positions, L layers, N heads, H width of a head, d = N·H, f inner width,
V entries of the target vocabulary; K texts written side by side for each sentence (beams), M remembered positions.

Parameters with one tied embedding: V·d + L_enc·(4(d² + d) + 2df + f + d + 4d) + L_dec·(8(d² + d) + 2df + f + d + 6d).
"""

import math

import keras
from keras import layers, ops

from zoo.blocks.attention import LAYOUT as DIVIDED
from zoo.blocks.attention import attention, attention_layers, attention_step, attention_weights, heads, sinusoids

VARIANTS = {
    # Wu et al. 2021, "Good for Misconceived Reasons", table 1: the small one made for Multi30k
    "tiny": {"num_layers": 4, "width": 128, "inner": 256, "num_heads": 4},
    # Vaswani et al. 2017, table 3
    "base": {"num_layers": 6, "width": 512, "inner": 2048, "num_heads": 8},
}
# How devices divide the weights between them.
LAYOUT = DIVIDED | {
    ".*embedding/(reverse_)?embeddings": (None, "model"),
}
ACTIVATIONS = ("relu", "gelu", "silu")
POSITIONS = ("sinusoidal", "learned")


def transformer(
    *,
    vocabulary_size,
    source_vocabulary_size=None,
    num_layers=6,
    decoder_layers=None,
    width=512,
    inner=2048,
    num_heads=8,
    activation="relu",
    pre_norm=False,
    positions="sinusoidal",
    max_length=512,
    scale_embeddings=True,
    tie_embeddings=True,
    logits_bias=False,
    dropout=0.0,
    pad_id=0,
    epsilon=1e-5,
    seed=0,
    name="transformer",
):
    """Build the encoder-decoder in the functional API.

    Args:
        vocabulary_size: entries V of the target's vocabulary, and of the source's where they share one.
        source_vocabulary_size: entries of a vocabulary of the source's own, with its own embedding; None to share.
        num_layers: layers of the encoder, and of the decoder unless `decoder_layers` says otherwise.
        decoder_layers: layers of the decoder.
        width: d, even and divisible by `num_heads`.
        inner: f, width inside the feed-forward sublayers.
        num_heads: N.
        activation: "relu", "gelu" or "silu", inside the feed-forward sublayers.
        pre_norm: normalise what goes into each sublayer instead of what comes out.
        positions: "sinusoidal", or "learned" for a table of `max_length` positions on each side.
        max_length: rows of the learned tables.
        scale_embeddings: multiply embeddings by sqrt(d).
        tie_embeddings: use the target's embedding for the logits too.
        logits_bias: add a learned number to every logit (a dense layer of its own for the logits always has one).
        dropout: fraction dropped after embeddings and sublayers, before the residual is added, in [0, 1).
        pad_id: the token of the source that is padding.
        epsilon: of the normalisations.
        seed: seed of the dropouts.
        name: name of the model.

    Returns:
        `keras.Model` from [source (B, S) int32, target (B, T) int32] to logits (B, T, V): those at position t are for
        the token after target[t].

    Raises:
        ValueError: if a number is out of the range given above.

    Example:
        >>> transformer(vocabulary_size=10_000, **VARIANTS["tiny"]).count_params()
        2605056
    """
    decoder_layers = num_layers if decoder_layers is None else decoder_layers
    for key, value, lowest in (
        ("vocabulary_size", vocabulary_size, 2),
        ("source_vocabulary_size", 2 if source_vocabulary_size is None else source_vocabulary_size, 2),
        ("num_layers", num_layers, 1),
        ("decoder_layers", decoder_layers, 1),
        ("inner", inner, 1),
        ("num_heads", num_heads, 1),
        ("max_length", max_length, 1),
    ):
        if value < lowest:
            raise ValueError(f"{key} must be at least {lowest}, got {value}.")
    if width < 2 or width % num_heads or width % 2:
        raise ValueError(f"width must be even and divisible by num_heads, got {width} and {num_heads} heads.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}.")

    made = {}

    def make(kind, *args, **kwargs):
        made[kwargs["name"]] = kind(*args, **kwargs)

    shared = source_vocabulary_size is None
    target_embedding = layers.ReversibleEmbedding if tie_embeddings else layers.Embedding
    make(target_embedding, vocabulary_size, width, name="embedding" if shared else "target_embedding")
    if not shared:
        make(layers.Embedding, source_vocabulary_size, width, name="source_embedding")
    if not tie_embeddings:
        make(layers.Dense, vocabulary_size, name="logits")
    elif logits_bias:
        # A stock layer that holds V free numbers: the one row of a table, looked up for every position.
        make(layers.Embedding, 1, vocabulary_size, embeddings_initializer="zeros", name="logits_bias")
    if scale_embeddings:
        make(layers.Rescaling, math.sqrt(width), name="embedding_scale")
    for side, depth, attentions in (
        ("encoder", num_layers, ("self_attention",)),
        ("decoder", decoder_layers, ("self_attention", "cross_attention")),
    ):
        if positions == "learned":
            make(layers.Embedding, max_length, width, name=f"{side}_positions")
        for block in (f"{side}_{place}" for place in range(depth)):
            for kind in attentions:
                made |= {
                    part.name: part for part in attention_layers(f"{block}_{kind}", width=width, num_heads=num_heads)
                }
            make(layers.Dense, inner, activation=activation, name=f"{block}_inner")
            make(layers.Dense, width, name=f"{block}_outer")
            for kind in (*attentions, "feed_forward"):
                make(layers.LayerNormalization, epsilon=epsilon, name=f"{block}_{kind}_norm")
        if pre_norm:
            make(layers.LayerNormalization, epsilon=epsilon, name=f"{side}_norm")

    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    stack = _Stack(made, dropout=dropout, seed=seed)
    memory = stack.encode(source, pad_id)  # (B, S, d)
    logits = stack.decode(target, memory, _visible(source, pad_id))  # (B, T, V)
    return keras.Model([source, target], logits, name=name)


def _visible(source, pad_id):
    """True where the source is no padding, (B, 1, 1, S)."""
    return ops.expand_dims(ops.expand_dims(ops.not_equal(source, pad_id), 1), 1)


class _Stack:
    """How the layers of a transformer are joined: while it is built, and for the models made of a finished one."""

    def __init__(self, made, *, dropout=0.0, seed=0):
        self.made, self.dropout, self.seed, self.dropouts = made, dropout, seed, 0
        self.depth = {
            side: sum(f"{side}_{i}_inner" in made for i in range(len(made))) for side in ("encoder", "decoder")
        }

    def layer(self, name):
        return self.made[name]

    def drop(self, x, name):
        if not self.dropout:
            return x
        self.dropouts += 1
        return layers.Dropout(self.dropout, seed=self.seed + self.dropouts, name=f"{name}_dropout")(x)

    def residual(self, x, sublayer, name):
        """Post-norm or pre-norm around a sublayer; the norm and the dropout take its name."""
        norm = self.made[f"{name}_norm"]
        if self.pre_norm:
            return x + self.drop(sublayer(norm(x)), name)
        return norm(x + self.drop(sublayer(x), name))

    @property
    def pre_norm(self):
        return "encoder_norm" in self.made

    def feed_forward(self, x, block):
        return self.residual(
            x, lambda x: self.made[f"{block}_outer"](self.made[f"{block}_inner"](x)), f"{block}_feed_forward"
        )

    def embed(self, token, side, position):
        """Embeddings plus positions; `position` broadcasts to the shape of `token`."""
        own = {"encoder": "source_embedding", "decoder": "target_embedding"}[side]
        x = self.made.get(own, self.made.get("embedding"))(token)  # (B, T, d)
        if "embedding_scale" in self.made:
            x = self.made["embedding_scale"](x)
        table = self.made.get(f"{side}_positions")
        return x + (table(position) if table else ops.cast(sinusoids(position, x.shape[-1]), x.dtype))

    def finish(self, x, side):
        return self.made[f"{side}_norm"](x) if self.pre_norm else x

    def encode(self, source, pad_id):
        mask = _visible(source, pad_id)
        x = self.drop(self.embed(source, "encoder", _places(source)), "source")
        for block in (f"encoder_{i}" for i in range(self.depth["encoder"])):
            name = f"{block}_self_attention"
            x = self.residual(x, lambda x, name=name: attention(self.layer, name, x, x, mask), name)
            x = self.feed_forward(x, block)
        return self.finish(x, "encoder")

    def decode(self, target, memory, mask):
        x = self.drop(self.embed(target, "decoder", _places(target)), "target")
        for block in (f"decoder_{i}" for i in range(self.depth["decoder"])):
            name = f"{block}_self_attention"
            x = self.residual(x, lambda x, name=name: attention(self.layer, name, x, x, causal=True), name)
            name = f"{block}_cross_attention"
            x = self.residual(x, lambda x, name=name: attention(self.layer, name, x, memory, mask), name)
            x = self.feed_forward(x, block)
        return self.logits(self.finish(x, "decoder"), target)

    def logits(self, x, token):
        """Logits (..., V) of x (..., d)."""
        if "logits" in self.made:
            return self.made["logits"](x)
        logits = self.made.get("target_embedding", self.made.get("embedding"))(x, reverse=True)
        if "logits_bias" in self.made:
            logits = logits + self.made["logits_bias"](ops.zeros_like(token[:1, :1]))  # (1, 1, V)
        return logits


def _places(token):
    """Positions 0, 1, 2, … of tokens (B, T), as (1, T) int32."""
    return ops.cumsum(ops.ones_like(token[:1, :]), axis=1) - 1


# ------------------------------------------------------------------------------- models made of a finished one's layers


def numbers_of(model):
    """The keyword arguments that build a transformer of the same shape, without dropout; read from its layers.

    Raises:
        ValueError: if the model is no transformer of this file.
    """
    made = {layer.name: layer for layer in model.layers}
    if not {"encoder_0_self_attention_query_heads", "decoder_0_cross_attention_query_heads"} <= made.keys():
        raise ValueError(f"{model.name} is not a transformer encoder-decoder.")
    depth = _Stack(made).depth
    embedding = made.get("target_embedding", made.get("embedding"))
    return {
        "vocabulary_size": embedding.input_dim,
        "source_vocabulary_size": made["source_embedding"].input_dim if "source_embedding" in made else None,
        "num_layers": depth["encoder"],
        "decoder_layers": depth["decoder"],
        "width": embedding.output_dim,
        "inner": made["encoder_0_inner"].units,
        "num_heads": made["encoder_0_self_attention_query_heads"].target_shape[-2],
        "activation": made["encoder_0_inner"].activation.__name__,
        "pre_norm": "encoder_norm" in made,
        "positions": "learned" if "encoder_positions" in made else "sinusoidal",
        "max_length": made["encoder_positions"].input_dim if "encoder_positions" in made else 512,
        "scale_embeddings": "embedding_scale" in made,
        "tie_embeddings": "logits" not in made,
        "logits_bias": "logits_bias" in made,
        "pad_id": _pad_id(model),
        "epsilon": made["encoder_0_feed_forward_norm"].epsilon,
    }


def _pad_id(model):
    """The token that the model's own mask compares the source with."""
    for operation in model.operations:  # not get_config(), for which Keras imports TensorFlow on every backend
        if type(operation).__name__ == "NotEqual":
            call = operation._inbound_nodes[0].arguments
            return int((*call.args, *call.kwargs.values())[1])
    raise ValueError(f"{model.name} has no mask of its source.")


def _finished(model):
    return _Stack({layer.name: layer for layer in model.layers})


def encoder_model(model):
    """The encoder: source (B, S) int32 -> memory (B, S, d)."""
    source = keras.Input((None,), dtype="int32", name="source")
    return keras.Model(source, _finished(model).encode(source, _pad_id(model)), name=f"{model.name}_encoder")


def memory_model(model):
    """What a step needs of the source: source (B, S) int32 -> [visible, keys and values of each decoder layer].

    visible (B, S) bool is False at padding; keys and values, each (B, N, S, H), are those of the cross-attentions,
    computed once for a sentence.
    """
    source, stack = keras.Input((None,), dtype="int32", name="source"), _finished(model)
    memory, kept = stack.encode(source, _pad_id(model)), []
    for place in range(stack.depth["decoder"]):
        for part in ("key", "value"):
            projected = heads(stack.layer, f"decoder_{place}_cross_attention_{part}", memory)  # (B, S, N, H)
            kept.append(ops.transpose(projected, (0, 2, 1, 3)))  # (B, N, S, H)
    return keras.Model(source, [ops.not_equal(source, _pad_id(model)), *kept], name=f"{model.name}_memory")


def step_model(model):
    """One step of the decoder for K texts of each sentence: nothing is computed twice but the attention's own sums.

    The texts of a sentence share its memory, and what they wrote before lies side by side: M = P·K keys, of which
    `seen` says which belong to which text. So beams that change places need no copying.

    Args:
        model: what `transformer` returned, or such a model loaded from a file.

    Returns:
        `keras.Model` from a list of
            token (B, K) int32, place (B,) int32: the token at that position of each text;
            visible (B, S) bool: of `memory_model`;
            seen (B, K, M) bool: which remembered positions each text sees;
            memory keys and values of each decoder layer, (B, N, S, H), as `memory_model` gives them;
            keys and values of each decoder layer at the remembered positions, (B, N, M, H);
        to a list of
            logits (B, K, V) for the next token;
            keys and values of each decoder layer at this position, (B, N, K, H), to be remembered.
    """
    stack, numbers = _finished(model), numbers_of(model)
    shape = (numbers["num_heads"], None, numbers["width"] // numbers["num_heads"])
    token = keras.Input((None,), dtype="int32", name="token")
    place = keras.Input((), dtype="int32", name="place")
    visible = keras.Input((None,), dtype="bool", name="visible")
    seen = keras.Input((None, None), dtype="bool", name="seen")
    memories, pasts = (
        [
            (keras.Input(shape, name=f"{kind}_keys_{i}"), keras.Input(shape, name=f"{kind}_values_{i}"))
            for i in range(stack.depth["decoder"])
        ]
        for kind in ("memory", "past")
    )
    visible_mask = ops.expand_dims(ops.expand_dims(visible, 1), 1)  # (B, 1, 1, S)
    seen_mask = ops.expand_dims(seen, 1)  # (B, 1, K, M)
    x, new = stack.embed(token, "decoder", ops.expand_dims(place, 1)), []  # (B, K, d)
    for i, (memory, past) in enumerate(zip(memories, pasts)):

        def attend_to_own(x, name=f"decoder_{i}_self_attention", past=past):
            own = [ops.transpose(heads(stack.layer, f"{name}_{part}", x), (0, 2, 1, 3)) for part in ("key", "value")]
            new.extend(own)  # (B, N, K, H)
            return attention_step(stack.layer, name, x, *past, seen_mask, own=own)

        def attend_to_source(x, name=f"decoder_{i}_cross_attention", memory=memory):
            return attention_step(stack.layer, name, x, *memory, visible_mask)

        x = stack.residual(x, attend_to_own, f"decoder_{i}_self_attention")
        x = stack.residual(x, attend_to_source, f"decoder_{i}_cross_attention")
        x = stack.feed_forward(x, f"decoder_{i}")
    logits = stack.logits(stack.finish(x, "decoder"), token)
    inputs = [token, place, visible, seen, *sum(memories, ()), *sum(pasts, ())]
    return keras.Model(inputs, [logits, *new], name=f"{model.name}_step")


def attention_names(model):
    """Names of the attentions of a transformer, in the order of the layers."""
    ending = "_attention_query"
    return [layer.name.removesuffix("_query") for layer in model.layers if layer.name.endswith(ending)]


def attention_model(model, name):
    """A model that shows where an attention looks.

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
    # A model of its own within the new one: automatic names of new operations may be those of operations in a file.
    found = [model.get_layer(f"{name}_{part}_heads").output for part in ("query", "key")]
    inner = keras.Model(model.inputs, found, name=f"{name}_heads")
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in ("source", "target")]
    causal = name.startswith("decoder") and name.endswith("self_attention")
    mask = None if causal else _visible(inputs[0], _pad_id(model))
    return keras.Model(inputs, attention_weights(*inner(inputs), mask, causal), name=f"{model.name}_{name}")
