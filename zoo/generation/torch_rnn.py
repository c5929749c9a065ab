"""The decoding step of `zoo.models.rnn_language_model` as plain PyTorch calls, for generation on the torch backend.

A step of one text reads every weight once, so that its time is that of the memory. The first layer's kernel is not read
at all: what a token contributes to its gates is looked up in the product of the embedding's table and that kernel.
"""

from collections.abc import Callable
from typing import Any

import keras

from zoo.compat.torch import tensor_version
from zoo.fast_paths.recurrent import fast_step
from zoo.fast_paths.torch_layers import kernel_value
from zoo.generation.torch_transformer import supports
from zoo.models.rnn_language_model import recurrent_layers
from zoo.typing import Tensor

_MAX_TABLE = 2**20  # numbers in the looked up product, which takes milliseconds then


def torch_step(model: keras.Model) -> Callable[..., list[Tensor]] | None:
    """One step of a language model, as `decode_step_model` computes it; weights that change meanwhile are noticed.

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
    (project_first, _), first_cell = steps[0], recurrent_layers(model)[0].cell
    latest: tuple[Any, Any] = None, None  # the first layer's table, and of which weights

    def embeddings():
        table = embedding.embeddings  # a tensor after `enable_lora`
        return table.value if isinstance(table, keras.Variable) else table

    def first_inputs(token):
        """What the tokens contribute to the gates of the first layer."""
        nonlocal latest
        if embedding.lora_enabled or embedding.input_dim * first_cell.kernel.shape[1] > _MAX_TABLE:
            return project_first(embeddings()[token])
        weights = [variable.value for variable in (embedding.embeddings, first_cell.kernel, first_cell.bias)]
        version = [(weight.data_ptr(), tensor_version(weight)) for weight in weights]  # of assignments in place
        current = latest
        if current[1] != version:
            latest = current = project_first(weights[0]), version
        return current[0][token]

    def step(token: Tensor, *states: Tensor) -> list[Tensor]:
        import torch

        left, new_states = list(states), []
        num_states = len(states) // len(steps)  # of a layer
        x = None
        for index, (project, recurrent_step) in enumerate(steps):
            projected = first_inputs(token) if index == 0 else project(x)  # (B, gates·h)
            new_states += recurrent_step(projected, [left.pop(0) for _ in range(num_states)])
            x = new_states[-num_states]  # (B, h)
        logits = x @ embeddings().T if tied else torch.addmm(head.bias.value, x, kernel_value(head))
        return [logits, *new_states]

    return step
