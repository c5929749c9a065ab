"""The encoder-decoder of `zoo.models.transformer` as plain PyTorch calls, for decoding on the torch backend.

A Keras layer costs tens of microseconds of Python a call, and a decoding step calls a hundred of them for little
arithmetic. Here a step is linear maps, PyTorch's fused attention and normalisations, with weights prepared once:

- query, key and value are one matrix;
- on a CPU the matrices are packed for oneDNN (as `torch.compile` packs frozen weights). PyTorch's own products go
  through MKL, which reaches half the speed of oneDNN on an AMD processor;
- there the logits come in blocks of the vocabulary, each used while it is in the processor's cache.

Letters: B sentences, S source positions, K texts of each, P positions of the buffers, M remembered positions of a
sentence's texts together, N heads, H width of a head, d = N·H, V vocabulary.
"""

import math

import keras
import numpy as np

from zoo.blocks.attention import sinusoids
from zoo.models.transformer import numbers_of

BLOCK = 16_384  # entries of the vocabulary in a block: 10 MB of logits for 160 texts


def suits(model):
    """Whether this is the torch backend and the layers are plain float32: not quantised, no low-rank additions."""
    return keras.backend.backend() == "torch" and all(
        layer.compute_dtype == "float32"
        and not getattr(layer, "quantization_mode", None)
        and not getattr(layer, "lora_enabled", False)
        for layer in model._flatten_layers()
    )


class TorchTransformer:
    """What `zoo.generation.seq2seq` needs of a model: `read` the sources, and `step`. New weights are noticed.

    Args:
        model: a transformer that `suits`.
    """

    def __init__(self, model):
        self.model, self.numbers, self.stamp = model, numbers_of(model), None
        self.depth = {"encoder": self.numbers["num_layers"], "decoder": self.numbers["decoder_layers"]}

    def read(self, source):
        """As `zoo.models.transformer.memory_model`: source (B, S) -> [visible, keys and values of each layer]."""
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        self._prepare()
        visible = source != self.numbers["pad_id"]
        mask = _bias(visible[:, None, None])  # (B, 1, 1, S)
        x = self._embed(source, "encoder", torch.arange(source.shape[1], device=source.device))  # (B, S, d)
        for block in self.blocks["encoder"]:

            def attend(x, block=block):
                mixed = scaled_dot_product_attention(*self._heads(block["self_in"](x), 3), attn_mask=mask)
                return block["self_out"](_joined(mixed))

            x = self._residual(x, attend, block["self_norm"])
            x = self._residual(x, lambda x, block=block: block["outer"](block["inner"](x)), block["forward_norm"])
        x = self.norms["encoder"](x)
        memory = [visible]
        for block in self.blocks["decoder"]:
            memory += [part.contiguous() for part in self._heads(block["cross_memory"](x), 2)]
        return memory

    def step(self, state, memory):
        """One step of the decoder; see `zoo.generation.decode_step` for the state.

        Returns:
            (blocks of the logits (B, K, some), one after the other; the caches, which are written in place).
        """
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        place, beams = int(state["place"]), state["token"].shape[1]
        visible = _bias(memory[0][:, None, None])  # (B, 1, 1, S)
        seen = None
        if beams > 1:
            own = torch.eye(beams, dtype=torch.bool, device=visible.device).expand(len(visible), beams, beams)
            seen = _bias(torch.cat([state["seen"][:, :, :place].flatten(2), own], dim=2)[:, None])  # (B, 1, K, M)
        x = self._embed(state["token"], "decoder", torch.full((1,), place, device=visible.device))  # (B, K, d)
        for i, block in enumerate(self.blocks["decoder"]):

            def attend_to_own(x, i=i, block=block):
                query, *new = self._heads(block["self_in"](x), 3)  # (B, N, K, H)
                past = []
                for cache, part in zip(state["caches"][2 * i : 2 * i + 2], new):
                    cache[:, :, place] = part
                    past.append(cache[:, :, : place + 1].flatten(2, 3))  # (B, N, M, H)
                return block["self_out"](_joined(scaled_dot_product_attention(query, *past, attn_mask=seen)))

            def attend_to_source(x, i=i, block=block):
                (query,) = self._heads(block["cross_in"](x), 1)
                mixed = scaled_dot_product_attention(query, *memory[2 * i + 1 : 2 * i + 3], attn_mask=visible)
                return block["cross_out"](_joined(mixed))

            x = self._residual(x, attend_to_own, block["self_norm"])
            x = self._residual(x, attend_to_source, block["cross_norm"])
            x = self._residual(x, lambda x, block=block: block["outer"](block["inner"](x)), block["forward_norm"])
        x = self.norms["decoder"](x)
        return (logits(x) for logits in self.logits), state["caches"]

    def _residual(self, x, sublayer, norm):
        return x + sublayer(norm(x)) if self.numbers["pre_norm"] else norm(x + sublayer(x))

    def _embed(self, token, side, place):
        """Embeddings (B, T, d) of tokens (B, T) at places (T,) or (1,)."""
        from torch.nn.functional import embedding

        x = embedding(token, self.embeddings[side]) * self.scale
        return x + self.positions[side](place)

    def _heads(self, x, parts):
        """Split x (B, T, parts·d) into as many (B, N, T, H)."""
        x = x.unflatten(2, (parts, self.numbers["num_heads"], -1))  # (B, T, parts, N, H)
        return [part.transpose(1, 2) for part in x.unbind(2)]

    def _prepare(self):
        """Make the model's weights ready, unless they are those made ready before."""
        values = [variable.value for variable in self.model.variables]
        stamp = [(value.data_ptr(), value._version) for value in values]  # writing in place counts the version up
        if stamp == self.stamp:
            return
        made = {layer.name: layer for layer in self.model.layers}
        self.blocks = {
            side: [self._block(made, f"{side}_{i}") for i in range(depth)] for side, depth in self.depth.items()
        }
        self.norms = {side: _norm(made.get(f"{side}_norm")) for side in self.depth}
        shared = made.get("embedding")
        self.embeddings = {
            "encoder": made.get("source_embedding", shared).embeddings.value,
            "decoder": made.get("target_embedding", shared).embeddings.value,
        }
        self.positions = {side: _positions(made.get(f"{side}_positions"), self.numbers["width"]) for side in self.depth}
        self.scale = math.sqrt(self.numbers["width"]) if self.numbers["scale_embeddings"] else 1.0
        if "logits" in made:
            table, bias = made["logits"].kernel.value.T, made["logits"].bias.value  # (V, d), (V,)
        else:
            table = self.embeddings["decoder"]
            bias = made["logits_bias"].embeddings.value[0] if "logits_bias" in made else None
        size = BLOCK if table.device.type == "cpu" else len(table)
        parts = [slice(first, first + size) for first in range(0, len(table), size)]
        self.logits = [_linear(table[part], None if bias is None else bias[part]) for part in parts]
        self.stamp = stamp

    def _block(self, made, name):
        """The linear maps and norms of one layer of the encoder or decoder."""
        import torch
        from torch.nn import functional

        def dense(*parts):
            kernels, biases = zip(
                *((made[f"{name}_{part}"].kernel.value, made[f"{name}_{part}"].bias.value) for part in parts)
            )
            return _linear(torch.cat([kernel.T for kernel in kernels]), torch.cat(biases))

        activation, inner = getattr(functional, self.numbers["activation"]), dense("inner")
        block = {
            "self_in": dense("self_attention_query", "self_attention_key", "self_attention_value"),
            "self_out": dense("self_attention_output"),
            "self_norm": _norm(made[f"{name}_self_attention_norm"]),
            "inner": lambda x: activation(inner(x)),
            "outer": dense("outer"),
            "forward_norm": _norm(made[f"{name}_feed_forward_norm"]),
        }
        if f"{name}_cross_attention_query" in made:
            block |= {
                "cross_in": dense("cross_attention_query"),
                "cross_memory": dense("cross_attention_key", "cross_attention_value"),
                "cross_out": dense("cross_attention_output"),
                "cross_norm": _norm(made[f"{name}_cross_attention_norm"]),
            }
        return block


def _positions(layer, width):
    """Function from places to their vectors (…, d): rows of a layer's table, or sinusoids if there is none."""
    return layer.embeddings.value.__getitem__ if layer else lambda place: sinusoids(place, width)


def _linear(weight, bias):
    """The function x -> x weightᵀ + bias of weight (out, in) and bias (out,) or None."""
    import torch

    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda x: torch.nn.functional.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _norm(layer):
    """The function of a Keras layer normalisation; None stands for none."""
    from torch.nn.functional import layer_norm

    if layer is None:
        return lambda x: x
    gamma, beta = layer.gamma.value, layer.beta.value
    return lambda x: layer_norm(x, gamma.shape, gamma, beta, layer.epsilon)


def _bias(mask):
    """What is added to scores: 0 where a bool mask is True, -inf elsewhere."""
    import torch

    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -np.inf)


def _joined(mixed):
    """(B, N, T, H) -> (B, T, d)."""
    return mixed.transpose(1, 2).flatten(2)
