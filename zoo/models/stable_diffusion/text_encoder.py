"""CLIP's text transformer (Radford et al. 2021): token ids to the context of a denoiser's cross-attention.

tokens (B, T) ─ embedding + positions ─ L x [causal self-attention, feed-forward] ─ norm ─ context (B, T, d)

Every sublayer f is pre-norm, x + f(LayerNorm(x)). Self-attention is causal. Padding is not masked: it follows the end
token, and the denoiser attends to it as well, as it did in training.

Letters: B batch, T tokens, V vocabulary size, P positions, L layers, N heads, d hidden size, f intermediate size.

Parameters: V·d + P·d + L·(4(d² + d) + 2df + f + d + 4d) + 2d.

Source: transformers 5.23, models/clip/modeling_clip.py: CLIPTextModel.
"""

import keras
from keras import layers, ops

from zoo.blocks.attention import attention_layers, multi_head_attention

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),  # Hendrycks and Gimpel 2016, section 2
    "gelu": lambda x: ops.gelu(x, approximate=False),
}
_OUTPUT_LAYERS = ("last", "penultimate")


def text_encoder(
    *,
    vocabulary_size: int,
    num_layers: int = 12,
    hidden_dim: int = 768,
    intermediate_dim: int = 3072,
    num_heads: int = 12,
    max_length: int = 77,
    activation: str = "quick_gelu",
    output_layer: str = "last",
    epsilon: float = 1e-5,
    name: str = "text_encoder",
) -> keras.Model:
    """Build the text transformer in the functional API.

    Args:
        vocabulary_size: V.
        num_layers: L.
        hidden_dim: d, divisible by `num_heads`.
        intermediate_dim: f, size inside the feed-forward sublayers.
        num_heads: N.
        max_length: P, size of the position embedding; prompts may be shorter.
        activation: "quick_gelu" (OpenAI's CLIP, Stable Diffusion 1) or "gelu" (OpenCLIP, Stable Diffusion 2).
        output_layer: the layer whose output is normalized and returned: "last", or "penultimate" for the one before
            it, as Stable Diffusion 2 was trained; the last layer is then not built.
        epsilon: of the normalizations.
        name: name of the model.

    Returns:
        `keras.Model` from tokens (B, T) int32 to context (B, T, d).

    Raises:
        ValueError: if an argument is out of the range given above.

    Example:
        >>> text_encoder(**variants.TEXT_ENCODER["sd15"]).count_params()
        123060480
    """
    for argument, value, minimum in (
        ("vocabulary_size", vocabulary_size, 2),
        ("num_layers", num_layers, 1 if output_layer == "last" else 2),
        ("intermediate_dim", intermediate_dim, 1),
        ("num_heads", num_heads, 1),
        ("max_length", max_length, 1),
    ):
        if value < minimum:
            raise ValueError(f"{argument} must be at least {minimum}, got {value}.")
    if hidden_dim < 1 or hidden_dim % num_heads:
        raise ValueError(f"hidden_dim must be divisible by num_heads, got {hidden_dim} and {num_heads} heads.")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}.")
    if output_layer not in _OUTPUT_LAYERS:
        raise ValueError(f"output_layer must be one of {', '.join(_OUTPUT_LAYERS)}, got {output_layer!r}.")

    def norm(x, name):
        return layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm")(x)

    token = keras.Input((None,), dtype="int32", name="token")
    position = ops.cumsum(ops.ones_like(token[:1, :]), axis=1) - 1  # (1, T)
    x = layers.Embedding(vocabulary_size, hidden_dim, name="token_embedding")(token)  # (B, T, d)
    x = x + layers.Embedding(max_length, hidden_dim, name="position_embedding")(position)
    for block in (f"layer_{i}" for i in range(num_layers - (output_layer == "penultimate"))):
        sublayer = f"{block}_self_attention"
        attention_parts = attention_layers(sublayer, hidden_dim=hidden_dim, num_heads=num_heads)
        by_name = {layer.name: layer for layer in attention_parts}
        y = norm(x, sublayer)
        x = x + multi_head_attention(by_name.__getitem__, sublayer, y, y, causal=True)
        y = layers.Dense(intermediate_dim, name=f"{block}_inner")(norm(x, f"{block}_feed_forward"))  # (B, T, f)
        x = x + layers.Dense(hidden_dim, name=f"{block}_outer")(_ACTIVATIONS[activation](y))
    return keras.Model(token, norm(x, "final"), name=name)
