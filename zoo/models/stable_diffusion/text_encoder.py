"""CLIP's text transformer (Radford et al. 2021): a prompt's tokens into the context that a denoiser looks at.

tokens (B, T) ─ embedding + positions ─ L x [causal self-attention, feed-forward] ─ norm ─ context (B, T, d)

Every sublayer f is pre-norm, x + f(LayerNorm(x)). Each token sees itself and those before it. Padding is not hidden: it
follows the end token, and the denoiser looks at it too, as it did in training.

Letters: B prompts, T tokens, V entries of the vocabulary, P positions, L layers, N heads, d width, f inner width.

Parameters: V·d + P·d + L·(4(d² + d) + 2df + f + d + 4d) + 2d.

Source: transformers 5.23, models/clip/modeling_clip.py: CLIPTextModel.
"""

import keras
from keras import layers, ops

from zoo.blocks.attention import attention, attention_layers

VARIANTS = {
    # Chosen here, for captions of a few words: a token sees at most 31 before it
    "tiny": {"num_layers": 3, "width": 128, "inner": 512, "num_heads": 4, "max_length": 32},
    # Radford et al. 2021, table 20, text transformer of ViT-L/14; the rest: openai/clip-vit-large-patch14, config.json
    "sd15": {
        "vocabulary_size": 49408,
        "num_layers": 12,
        "width": 768,
        "inner": 3072,
        "num_heads": 12,
        "max_length": 77,
        "activation": "quick_gelu",
    },
}
ACTIVATIONS = {
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),  # Hendrycks and Gimpel 2016, section 2
    "gelu": lambda x: ops.gelu(x, approximate=False),
}
OUTPUTS = ("last", "penultimate")


def text_encoder(
    *,
    vocabulary_size,
    num_layers=12,
    width=768,
    inner=3072,
    num_heads=12,
    max_length=77,
    activation="quick_gelu",
    output="last",
    epsilon=1e-5,
    name="text_encoder",
):
    """Build the text transformer in the functional API.

    Args:
        vocabulary_size: V.
        num_layers: L.
        width: d, divisible by `num_heads`.
        inner: f, width inside the feed-forward sublayers.
        num_heads: N.
        max_length: P, rows of the table of positions; prompts may be shorter.
        activation: "quick_gelu" (OpenAI's CLIP, Stable Diffusion 1) or "gelu" (OpenCLIP, Stable Diffusion 2).
        output: which layer's states are normalised and given: "last", or "penultimate" for the one before it, as
            Stable Diffusion 2 was trained; the last layer is then not built.
        epsilon: of the normalisations.
        name: name of the model.

    Returns:
        `keras.Model` from tokens (B, T) int32 to context (B, T, d).

    Raises:
        ValueError: if a number is out of the range given above.

    Example:
        >>> text_encoder(**VARIANTS["sd15"]).count_params()
        123060480
    """
    for key, value, lowest in (
        ("vocabulary_size", vocabulary_size, 2),
        ("num_layers", num_layers, 1 if output == "last" else 2),
        ("inner", inner, 1),
        ("num_heads", num_heads, 1),
        ("max_length", max_length, 1),
    ):
        if value < lowest:
            raise ValueError(f"{key} must be at least {lowest}, got {value}.")
    if width < 1 or width % num_heads:
        raise ValueError(f"width must be divisible by num_heads, got {width} and {num_heads} heads.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}.")

    def norm(x, name):
        return layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm")(x)

    token = keras.Input((None,), dtype="int32", name="token")
    place = ops.cumsum(ops.ones_like(token[:1, :]), axis=1) - 1  # (1, T)
    x = layers.Embedding(vocabulary_size, width, name="token_embedding")(token)  # (B, T, d)
    x = x + layers.Embedding(max_length, width, name="position_embedding")(place)
    for block in (f"layer_{i}" for i in range(num_layers - (output == "penultimate"))):
        part = f"{block}_self_attention"
        made = {layer.name: layer for layer in attention_layers(part, width=width, num_heads=num_heads)}
        y = norm(x, part)
        x = x + attention(made.__getitem__, part, y, y, causal=True)
        y = layers.Dense(inner, name=f"{block}_inner")(norm(x, f"{block}_feed_forward"))  # (B, T, f)
        x = x + layers.Dense(width, name=f"{block}_outer")(ACTIVATIONS[activation](y))
    return keras.Model(token, norm(x, "final"), name=name)
