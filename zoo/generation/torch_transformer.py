"""The encoder-decoder of `zoo.models.transformer` as plain PyTorch calls, for decoding on the torch backend.

A Keras layer costs tens of microseconds of Python a call, and a decoding step calls a hundred of them for little
arithmetic. Here a step is linear maps, PyTorch's fused attention and normalisations, with weights prepared once:

- query, key and value are one matrix;
- on a CPU the matrices are packed for oneDNN (as `torch.compile` packs frozen weights). PyTorch's own products go
  through MKL, which reaches half the speed of oneDNN on an AMD processor;
- there the logits come in blocks of the vocabulary, each used while it is in the processor's cache.

Letters: B sentences, S source positions, K hypotheses of each, P positions of the buffers, M cached positions of
a sentence's hypotheses together, N heads, H width of a head, d = N·H, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from zoo.blocks.attention import sinusoidal_embedding
from zoo.compat.keras import flatten_layers
from zoo.compat.torch import packed_linear, tensor_version
from zoo.fast_paths.products import kernel_value
from zoo.models.transformer import infer_config
from zoo.typing import Tensor

_VOCABULARY_BLOCK = 16_384  # entries of the vocabulary in a block: 10 MB of logits for 160 hypotheses


def supports(model: keras.Model) -> bool:
    """Whether this is the torch backend and the layers are plain float32, not quantised.

    Args:
        model: a transformer.

    Returns:
        True if it is.
    """
    return keras.backend.backend() == "torch" and computes_in_float32(model)


def computes_in_float32(model: keras.Model) -> bool:
    """Whether all layers of a model compute in float32 and none is quantised.

    Args:
        model: any.

    Returns:
        True if so.
    """
    return all(
        layer.compute_dtype == "float32" and not getattr(layer, "quantization_mode", None)
        for layer in flatten_layers(model)
    )


class TorchTransformer:
    """The encoder and decoding step that `zoo.generation.seq2seq` needs. Weights that change are noticed.

    Args:
        model: a transformer that `supports` accepts.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model, self.config = model, infer_config(model)
        self.version: list[tuple[int, int]] | None = None
        self.num_layers = {"encoder": self.config["num_layers"], "decoder": self.config["decoder_layers"]}

    def encode(self, source: Tensor) -> list[Tensor]:
        """What decoding needs of a source, as `cross_attention_cache_model` gives it.

        Args:
            source: (B, S) int32.

        Returns:
            [padding mask, keys and values of each layer].
        """
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        self._prepare()
        padding_mask = source != self.config["pad_id"]
        mask = _bias(padding_mask[:, None, None])  # (B, 1, 1, S)
        x = self._embed(source, "encoder", torch.arange(source.shape[1], device=source.device))  # (B, S, d)
        for block in self.blocks["encoder"]:

            def attend(x, block=block):
                attended = scaled_dot_product_attention(*self._split_heads(block["self_in"](x), 3), attn_mask=mask)
                return block["self_out"](_merge_heads(attended))

            x = self._residual(x, attend, block["self_norm"])
            x = self._residual(x, lambda x, block=block: block["outer"](block["inner"](x)), block["forward_norm"])
        x = self.norms["encoder"](x)
        context = [padding_mask]
        for block in self.blocks["decoder"]:
            context += [part.contiguous() for part in self._split_heads(block["cross_context"](x), 2)]
        return context

    def step(self, state: dict[str, Any], context: Sequence[Tensor]) -> tuple[Iterator[Tensor], list[Tensor]]:
        """One step of the decoder; `zoo.generation.decode_step` describes the state.

        Args:
            state: of the last step.
            context: of `encode`.

        Returns:
            (blocks of the logits (B, K, some), one after the other; the caches, which are written in place).
        """
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        position, beams = int(state["position"]), state["token"].shape[1]
        source_mask = _bias(context[0][:, None, None])  # (B, 1, 1, S)
        own_mask = None
        if beams > 1:
            own = torch.eye(beams, dtype=torch.bool, device=context[0].device).expand(len(context[0]), beams, beams)
            mask = torch.cat([state["self_attention_mask"][:, :, :position].flatten(2), own], dim=2)
            own_mask = _bias(mask[:, None])  # (B, 1, K, M)
        x = self._embed(state["token"], "decoder", torch.full((1,), position, device=context[0].device))  # (B, K, d)
        for i, block in enumerate(self.blocks["decoder"]):

            def attend_to_own(x, i=i, block=block):
                query, *new = self._split_heads(block["self_in"](x), 3)  # (B, N, K, H)
                past = []
                for cache, part in zip(state["caches"][2 * i : 2 * i + 2], new):
                    cache[:, :, position] = part
                    past.append(cache[:, :, : position + 1].flatten(2, 3))  # (B, N, M, H)
                return block["self_out"](_merge_heads(scaled_dot_product_attention(query, *past, attn_mask=own_mask)))

            def attend_to_source(x, i=i, block=block):
                (query,) = self._split_heads(block["cross_in"](x), 1)
                attended = scaled_dot_product_attention(query, *context[2 * i + 1 : 2 * i + 3], attn_mask=source_mask)
                return block["cross_out"](_merge_heads(attended))

            x = self._residual(x, attend_to_own, block["self_norm"])
            x = self._residual(x, attend_to_source, block["cross_norm"])
            x = self._residual(x, lambda x, block=block: block["outer"](block["inner"](x)), block["forward_norm"])
        x = self.norms["decoder"](x)
        return (logits(x) for logits in self.logits), state["caches"]

    def _residual(self, x, sublayer, norm):
        return x + sublayer(norm(x)) if self.config["pre_norm"] else norm(x + sublayer(x))

    def _embed(self, token, side, position):
        """Embeddings (B, T, d) of tokens (B, T) at positions (T,) or (1,)."""
        from torch.nn.functional import embedding

        x = embedding(token, self.embeddings[side]) * self.scale
        return x + self.positions[side](position)

    def _split_heads(self, x, parts):
        """Split x (B, T, parts·d) into as many (B, N, T, H)."""
        x = x.unflatten(2, (parts, self.config["num_heads"], -1))  # (B, T, parts, N, H)
        return [part.transpose(1, 2) for part in x.unbind(2)]

    def _prepare(self):
        """Pack the model's weights, unless they are those packed before."""
        values = [variable.value for variable in self.model.variables]
        # An assignment in place increments the version.
        version = [(value.data_ptr(), tensor_version(value)) for value in values]
        if version == self.version:
            return
        layers = {layer.name: layer for layer in self.model.layers}
        self.blocks = {
            side: [self._block(layers, f"{side}_{i}") for i in range(depth)] for side, depth in self.num_layers.items()
        }
        self.norms = {side: _layer_norm(layers.get(f"{side}_norm")) for side in self.num_layers}
        sides = {"encoder": "source_embedding", "decoder": "target_embedding"}
        self.embeddings = {
            side: layers[name if name in layers else "embedding"].embeddings.value for side, name in sides.items()
        }
        self.positions = {
            side: _position_embedding(layers.get(f"{side}_positions"), self.config["hidden_dim"])
            for side in self.num_layers
        }
        self.scale = math.sqrt(self.config["hidden_dim"]) if self.config["scale_embeddings"] else 1.0
        if "logits" in layers:
            table, bias = kernel_value(layers["logits"]).T, layers["logits"].bias.value  # (V, d), (V,)
        else:
            table = self.embeddings["decoder"]
            bias = layers["logits_bias"].embeddings.value[0] if "logits_bias" in layers else None
        size = _VOCABULARY_BLOCK if table.device.type == "cpu" else len(table)
        parts = [slice(first, first + size) for first in range(0, len(table), size)]
        self.logits = [_linear(table[part], None if bias is None else bias[part]) for part in parts]
        self.version = version

    def _block(self, layers, name):
        """The linear maps and norms of one layer of the encoder or decoder."""
        import torch
        from torch.nn import functional

        def dense(*parts):
            kernels, biases = zip(
                *((kernel_value(layers[f"{name}_{part}"]), layers[f"{name}_{part}"].bias.value) for part in parts)
            )
            return _linear(torch.cat([kernel.T for kernel in kernels]), torch.cat(biases))

        activation, inner = getattr(functional, self.config["activation"]), dense("inner")
        block = {
            "self_in": dense("self_attention_query", "self_attention_key", "self_attention_value"),
            "self_out": dense("self_attention_output"),
            "self_norm": _layer_norm(layers[f"{name}_self_attention_norm"]),
            "inner": lambda x: activation(inner(x)),
            "outer": dense("outer"),
            "forward_norm": _layer_norm(layers[f"{name}_feed_forward_norm"]),
        }
        if f"{name}_cross_attention_query" in layers:
            block |= {
                "cross_in": dense("cross_attention_query"),
                "cross_context": dense("cross_attention_key", "cross_attention_value"),
                "cross_out": dense("cross_attention_output"),
                "cross_norm": _layer_norm(layers[f"{name}_cross_attention_norm"]),
            }
        return block


def _position_embedding(layer, hidden_dim):
    """Function from positions to their vectors (…, d): rows of a layer's table, or sinusoids if there is none."""
    return layer.embeddings.value.__getitem__ if layer else lambda position: sinusoidal_embedding(position, hidden_dim)


def _linear(weight, bias):
    """The function x -> x weightᵀ + bias of weight (out, in) and bias (out,) or None."""
    import torch

    if weight.device.type == "cpu":
        return packed_linear(weight, bias)
    return lambda x: torch.nn.functional.linear(x, weight, bias)


def _layer_norm(layer):
    """The function of a Keras LayerNormalization; the identity for None."""
    from torch.nn.functional import layer_norm

    if layer is None:
        return lambda x: x
    gamma, beta = layer.gamma.value, layer.beta.value
    return lambda x: layer_norm(x, gamma.shape, gamma, beta, layer.epsilon)


def _bias(mask):
    """The bias of attention scores: 0 where a bool mask is True, -inf elsewhere."""
    import torch

    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -np.inf)


def _merge_heads(attended):
    """(B, N, T, H) -> (B, T, d)."""
    return attended.transpose(1, 2).flatten(2)
