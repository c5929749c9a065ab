"""The decoding step of `zoo.models.rnn_language_model` as plain PyTorch calls, for generation on the torch backend.

A step of one text reads every weight once, so that its time is that of the memory. The first layer's kernel is not read
at all: what a token contributes to its gates is looked up in the product of the embedding's table and that kernel.
"""

from collections.abc import Callable
from typing import Any

import keras

from zoo.compat.torch import tensor_version
from zoo.fast_paths.products import kernel_value
from zoo.fast_paths.recurrent import fast_step
from zoo.generation.torch_transformer import supports
from zoo.models.rnn_language_model import recurrent_layers
from zoo.typing import Tensor

_MAX_TABLE = 2**20  # numbers in the looked up product, which takes milliseconds then


def torch_step(model: keras.Model) -> Callable[[], Callable[..., list[Tensor]]] | None:
    """One step of a language model, as `decode_step_model` computes it.

    Args:
        model: a recurrent language model.

    Returns:
        a function that reads the weights and gives the step, a function (token (B,) int32, states...) -> [logits
        (B, v), new states...]. None on other backends, and where a layer is not as `rnn_language_model` builds it.
    """
    recurrent: list[Any] = [fast_step(layer) for layer in recurrent_layers(model)]
    embedding = model.get_layer("embedding")
    tied = isinstance(embedding, keras.layers.ReversibleEmbedding)
    if None in recurrent or not supports(model):
        return None
    if tied and not (embedding.tie_weights and embedding.logit_soft_cap is None and embedding.reverse_dtype is None):
        return None
    head: Any = None if tied else model.get_layer("logits")
    if head and not (head.use_bias and head.activation is keras.activations.linear):
        return None
    first_cell = recurrent_layers(model)[0].cell
    latest: tuple[Any, Any] = None, None  # the table of the first layer, and of which weights it was made

    def first_table(embeddings, project):
        """What each token contributes to the gates of the first layer (v, gates·h)."""
        import torch

        nonlocal latest
        weights = [embeddings, first_cell.kernel.value, first_cell.bias.value]
        version = [(weight.data_ptr(), tensor_version(weight)) for weight in weights]  # of assignments in place
        current = latest
        if current[1] != version:
            with torch.no_grad():
                latest = current = project(embeddings), version
        return current[0]

    def read_weights():
        import torch

        embeddings = embedding.embeddings  # a tensor after `enable_lora`
        embeddings = embeddings.value if isinstance(embeddings, keras.Variable) else embeddings
        (project, first_step), *others = [read() for read in recurrent]
        table = None
        if not embedding.lora_enabled and embedding.input_dim * first_cell.kernel.shape[1] <= _MAX_TABLE:
            table = first_table(embeddings, project)
        kernel, bias = (embeddings.T, None) if tied else (kernel_value(head), head.bias.value)
        num_states = 2 if isinstance(first_cell, keras.layers.LSTMCell) else 1  # of a layer

        def step(token, *states):
            projected = project(embeddings[token]) if table is None else table[token]  # (B, gates·h)
            new_states = first_step(projected, states[:num_states])
            for index, (project_output, recurrent_step) in enumerate(others, 1):
                x = new_states[-num_states]  # (B, h)
                new_states += recurrent_step(project_output(x), states[num_states * index : num_states * (index + 1)])
            x = new_states[-num_states]
            return [x @ kernel if bias is None else torch.addmm(bias, x, kernel), *new_states]

        return step

    return read_weights
