"""The decoding step of `zoo.models.rnn_language_model` as plain PyTorch calls, for generation on the torch backend."""

from collections.abc import Callable
from typing import Any

import keras

from zoo.fast_paths.recurrent import fast_step
from zoo.fast_paths.torch_layers import kernel_value
from zoo.generation.torch_transformer import supports
from zoo.models.rnn_language_model import recurrent_layers
from zoo.typing import Tensor


def torch_step(model: keras.Model) -> Callable[..., list[Tensor]] | None:
    """One step of a language model, as `decode_step_model` computes it; the weights are read at each call.

    Args:
        model: a recurrent language model.

    Returns:
        function (token (B,) int32, states...) -> [logits (B, v), new states...]; None on other backends, and where a
        layer is not as `rnn_language_model` builds it.
    """
    steps: list[Any] = [fast_step(layer) for layer in recurrent_layers(model)]
    embedding = model.get_layer("embedding")
    tied = isinstance(embedding, keras.layers.ReversibleEmbedding)
    if None in steps or not supports(model):
        return None
    if tied and not (embedding.tie_weights and embedding.logit_soft_cap is None and embedding.reverse_dtype is None):
        return None
    head: Any = None if tied else model.get_layer("logits")
    if head and not (head.use_bias and head.activation is keras.activations.linear):
        return None

    def step(token: Tensor, *states: Tensor) -> list[Tensor]:
        import torch

        x, left, new_states = embedding.embeddings.value[token], list(states), []  # (B, d)
        num_states = len(states) // len(steps)  # of a layer
        for recurrent_step in steps:
            new_states += recurrent_step(x, [left.pop(0) for _ in range(num_states)])
            x = new_states[-num_states]  # (B, h)
        logits = x @ embedding.embeddings.value.T if tied else torch.addmm(head.bias.value, x, kernel_value(head))
        return [logits, *new_states]

    return step
