"""The transformer: parameters in closed form, attention as a plain loop, torch.nn.Transformer, steps, masks."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from zoo import presets
from zoo.blocks.attention import cached_attention, sinusoidal_embedding
from zoo.compat.keras import skip_weight_init
from zoo.io import model_files
from zoo.models.transformer import (
    attention_names,
    attention_weights_model,
    cross_attention_cache_model,
    decode_step_model,
    encoder_model,
    infer_config,
    transformer,
)
from zoo.models.variants import TRANSFORMER

NUMPY = ops.convert_to_numpy
PAD = 3
KINDS = {
    "paper": {},
    "marian": {"logits_bias": True, "activation": "silu", "decoder_layers": 3},
    "pre-norm": {"pre_norm": True, "positions": "learned", "max_length": 20, "activation": "gelu"},
    "apart": {"source_vocabulary_size": 13, "tie_embeddings": False, "scale_embeddings": False},
}


def small(kind="paper", seed=0):
    model = transformer(
        vocabulary_size=17,
        **{"num_layers": 2, "hidden_dim": 12, "intermediate_dim": 20, "num_heads": 3, "pad_id": PAD} | KINDS[kind],
    )
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) * 0.4 + (w.name == "gamma") for w in model.weights])
    return model


def sentences(batch, length, seed=1, vocabulary=13):
    """Token ids without padding."""
    return np.random.default_rng(seed).integers(4, vocabulary, (batch, length)).astype("int32")


def logits(model, source, target):
    return NUMPY(model([source, target]))


def closed_form(v, d, f, encoder, decoder):
    attention, feed_forward, norm = 4 * (d * d + d), d * f + f + f * d + d, 2 * d
    return v * d + encoder * (attention + feed_forward + 2 * norm) + decoder * (2 * attention + feed_forward + 3 * norm)


def test_parameters():
    """Tied embeddings; `base` is that of Vaswani et al. 2017 with a joint vocabulary of 37,000."""
    with skip_weight_init():
        tiny = transformer(vocabulary_size=10_000, **TRANSFORMER["tiny"]).count_params()
        base = transformer(vocabulary_size=37_000, **TRANSFORMER["base"]).count_params()
    assert tiny == closed_form(10_000, 128, 256, 4, 4) == 2_605_056
    assert base == closed_form(37_000, 512, 2048, 6, 6) == 63_082_496


def test_the_registry_has_the_variants():
    for name, numbers in TRANSFORMER.items():
        assert numbers.items() <= presets.MODELS[f"transformer_{name}"].kwargs.items()


def test_other_parts_have_their_parameters():
    v, d, f = 17, 12, 20
    paper = closed_form(v, d, f, 2, 2)
    assert small("paper").count_params() == paper
    assert small("marian").count_params() == closed_form(v, d, f, 2, 3) + v
    assert small("pre-norm").count_params() == paper + 2 * 2 * d + 2 * 20 * d
    assert small("apart").count_params() == paper + 13 * d + (d + 1) * v


def by_hand(model, source, target):
    """Logits from NumPy loops over sentences, heads, queries and keys, in float64, written from the paper."""
    numbers = infer_config(model)
    weight = {v.path.replace(f"{model.name}/", ""): NUMPY(v).astype("float64") for v in model.weights}
    d, heads = numbers["hidden_dim"], numbers["num_heads"]

    def dense(name, x):
        return x @ weight[f"{name}/kernel"] + weight[f"{name}/bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + numbers["epsilon"])
        return scaled * weight[f"{name}/gamma"] + weight[f"{name}/beta"]

    def attend(name, x, memory, seen):
        q, k, v = dense(f"{name}_query", x), dense(f"{name}_key", memory), dense(f"{name}_value", memory)
        out, size = np.zeros_like(x), d // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(x)):
                keys = [s for s in range(len(memory)) if seen(t, s)]
                scores = np.array([q[t, part] @ k[s, part] / math.sqrt(size) for s in keys])
                share = np.exp(scores - scores.max())
                out[t, part] = sum(p * v[s, part] for p, s in zip(share / share.sum(), keys))
        return dense(f"{name}_output", out)

    def embed(tokens, table, side):
        x = weight[table][tokens] * (math.sqrt(d) if numbers["scale_embeddings"] else 1)
        if numbers["positions"] == "learned":
            return x + weight[f"{side}_positions/embeddings"][: len(tokens)]
        angle = np.arange(len(tokens))[:, None] / 1e4 ** (2 * np.arange(d // 2) / d)
        return x + np.concatenate([np.sin(angle), np.cos(angle)], -1)

    activation = {
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    }[numbers["activation"]]

    def sublayer(name, x, function):
        if numbers["pre_norm"]:
            return x + function(norm(f"{name}_norm", x))
        return norm(f"{name}_norm", x + function(x))

    def feed_forward(block, x):
        return sublayer(
            f"{block}_feed_forward", x, lambda x: dense(f"{block}_outer", activation(dense(f"{block}_inner", x)))
        )

    shared = numbers["source_vocabulary_size"] is None
    tables = ("embedding",) * 2 if shared else ("source_embedding", "target_embedding")
    results = []
    for ids, wanted in zip(source, target):
        real = ids != PAD
        memory = embed(ids, f"{tables[0]}/embeddings", "encoder")
        for i in range(numbers["num_layers"]):
            name = f"encoder_{i}_self_attention"
            memory = sublayer(name, memory, lambda x, name=name, real=real: attend(name, x, x, lambda t, s: real[s]))
            memory = feed_forward(f"encoder_{i}", memory)
        x = embed(wanted, f"{tables[1]}/embeddings", "decoder")
        if numbers["pre_norm"]:
            memory = norm("encoder_norm", memory)
        for i in range(numbers["decoder_layers"]):
            name = f"decoder_{i}_self_attention"
            x = sublayer(name, x, lambda x, name=name: attend(name, x, x, lambda t, s: s <= t))
            name = f"decoder_{i}_cross_attention"
            x = sublayer(name, x, lambda x, name=name, m=memory, real=real: attend(name, x, m, lambda t, s: real[s]))
            x = feed_forward(f"decoder_{i}", x)
        if numbers["pre_norm"]:
            x = norm("decoder_norm", x)
        if numbers["tie_embeddings"]:
            result = x @ weight[f"{tables[1]}/embeddings"].T
            results.append(result + (weight["logits_bias/embeddings"][0] if numbers["logits_bias"] else 0))
        else:
            results.append(dense("logits", x))
    return np.stack(results)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_loops(kind):
    model, source, target = small(kind), sentences(3, 6), sentences(3, 5, seed=2)
    source[1, 4:] = PAD
    np.testing.assert_allclose(logits(model, source, target), by_hand(model, source, target), atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # of torch.nn.Transformer
def test_equals_torch_nn_transformer():
    import torch

    d, heads, f, depth = 12, 3, 20, 2
    model = small()
    theirs = torch.nn.Transformer(d, heads, depth, depth, f, dropout=0.0, batch_first=True)
    theirs.encoder.norm = theirs.decoder.norm = None  # the paper's post-norm has none at the end
    theirs.eval()
    weight = {v.path.replace(f"{model.name}/", ""): torch.tensor(NUMPY(v)) for v in model.weights}

    def fill(module, name):
        module.weight.copy_(weight[f"{name}/kernel"].T)
        module.bias.copy_(weight[f"{name}/bias"])

    def fill_norm(module, name):
        module.weight.copy_(weight[f"{name}/gamma"])
        module.bias.copy_(weight[f"{name}/beta"])

    with torch.no_grad():
        for side, stack in (("encoder", theirs.encoder), ("decoder", theirs.decoder)):
            for i, block in enumerate(stack.layers):
                kinds = {"self_attention": block.self_attn}
                if side == "decoder":
                    kinds["cross_attention"] = block.multihead_attn
                for place, (kind, attention) in enumerate(kinds.items()):
                    name = f"{side}_{i}_{kind}"
                    parts = ("query", "key", "value")
                    attention.in_proj_weight.copy_(torch.cat([weight[f"{name}_{p}/kernel"].T for p in parts]))
                    attention.in_proj_bias.copy_(torch.cat([weight[f"{name}_{p}/bias"] for p in parts]))
                    fill(attention.out_proj, f"{name}_output")
                    fill_norm(getattr(block, f"norm{place + 1}"), f"{name}_norm")
                fill(block.linear1, f"{side}_{i}_inner")
                fill(block.linear2, f"{side}_{i}_outer")
                fill_norm(getattr(block, f"norm{len(kinds) + 1}"), f"{side}_{i}_feed_forward_norm")
        source, target = sentences(3, 6), sentences(3, 5, seed=2)
        source[1, 4:] = PAD
        table = weight["embedding/embeddings"]

        def embed(ids):
            angle = torch.arange(ids.shape[1])[:, None] / 1e4 ** (2 * torch.arange(d // 2) / d)
            return table[torch.tensor(ids).long()] * math.sqrt(d) + torch.cat([angle.sin(), angle.cos()], -1)

        hidden = torch.tensor(source == PAD)
        mixed = theirs(
            embed(source),
            embed(target),
            tgt_mask=torch.ones(5, 5).triu(1).bool(),
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
        )
        expected = (mixed @ table.T).numpy()
    np.testing.assert_allclose(logits(model, source, target), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_full_model(kind):
    """One position at a time, each sentence with K = 2 texts side by side whose memories lie among each other."""
    model, source = small(kind), sentences(3, 6)
    source[2, 3:] = PAD
    texts = sentences(6, 5, seed=2).reshape(3, 2, 5)
    full = logits(model, source.repeat(2, axis=0), texts.reshape(6, 5)).reshape(3, 2, 5, 17)
    visible, *memory = (NUMPY(x) for x in cross_attention_cache_model(model)(source))
    step, depth = decode_step_model(model), infer_config(model)["decoder_layers"]
    past = [np.zeros((3, 3, 5, 2, 4), "float32") for _ in range(2 * depth)]  # (B, N, P, K, H)
    for place in range(5):
        # Text k sees the positions before this one of text k.
        seen = (np.arange(5) < place)[None, :, None] & np.eye(2, dtype=bool)[:, None]  # (K, P, K)
        result, *new = step(
            [
                *(texts[:, :, place], np.full(3, place, "int32"), visible),
                np.broadcast_to(seen.reshape(1, 2, 10), (3, 2, 10)),
                *(*memory, *(part.reshape(3, 3, 10, 4) for part in past)),
            ]
        )
        np.testing.assert_allclose(NUMPY(result), full[:, :, place], atol=1e-5)
        for part, fresh in zip(past, new):
            part[:, :, place] = NUMPY(fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_no_look_at_the_future(kind):
    model, source, target = small(kind), sentences(3, 6), sentences(3, 5, seed=2)
    before = logits(model, source, target)
    changed = target.copy()
    changed[:, 3] = changed[:, 3] % 9 + 4
    assert (changed[:, 3] != target[:, 3]).all()
    after = logits(model, source, changed)
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert np.abs(after[:, 3] - before[:, 3]).max() > 1e-3


@pytest.mark.slow("jax")  # it compiles each operation for each of the three sizes
@pytest.mark.parametrize("kind", KINDS)
def test_no_look_at_padding(kind):
    model, source, target = small(kind), sentences(3, 6), sentences(3, 5, seed=2)
    source[0, 4:] = PAD
    before = logits(model, source, target)
    longer = logits(model, np.pad(source, ((0, 0), (0, 3)), constant_values=PAD), np.pad(target, ((0, 0), (0, 2))))
    np.testing.assert_allclose(longer[:, :5], before, atol=1e-5)
    alone = logits(model, source[:1, :4], target[:1])
    np.testing.assert_allclose(alone, before[:1], atol=1e-5)


def test_source_and_target_are_not_interchangeable():
    model, source, target = small(), sentences(3, 5), sentences(3, 5, seed=2)
    assert np.abs(logits(model, source, target) - logits(model, target, source)).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_file_loads_with_keras_alone_and_tells_its_numbers(kind, tmp_path):
    model, source, target = small(kind), sentences(3, 6), sentences(3, 5, seed=2)
    model_files.save_model(model, tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(logits(loaded, source, target), logits(model, source, target), atol=1e-6)
    numbers = infer_config(loaded)
    wanted = {"num_layers": 2, "hidden_dim": 12, "intermediate_dim": 20, "num_heads": 3, "pad_id": PAD} | KINDS[kind]
    assert {key: numbers[key] for key in wanted} == wanted
    assert transformer(**numbers).count_params() == model.count_params()
    np.testing.assert_allclose(NUMPY(encoder_model(loaded)(source)), NUMPY(encoder_model(model)(source)), atol=1e-6)


def test_models_are_made_of_one_that_was_loaded_first_thing(tmp_path):
    """In a process that has made nothing yet, automatic names begin again with those that the file holds."""
    model_files.save_model(small(), tmp_path / "model.keras")
    keras.utils.clear_session()
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for name in attention_names(loaded):
        attention_weights_model(loaded, name)
    for make in (encoder_model, cross_attention_cache_model, decode_step_model):
        make(loaded)


def test_attention_weights():
    model, source, target = small(), sentences(3, 6), sentences(3, 5, seed=2)
    source[0, 4:] = PAD
    names = attention_names(model)
    assert len(names) == 6 and "decoder_1_cross_attention" in names
    for name in names:
        weights = NUMPY(attention_weights_model(model, name)([source, target]))
        queries, keys = (6, 6) if name.startswith("encoder") else (5, 5 if "self" in name else 6)
        assert weights.shape == (3, 3, queries, keys)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        if "decoder" in name and "self" in name:
            assert (np.triu(weights, 1) == 0).all()
        else:
            assert (weights[0, :, :, 4:] == 0).all()
    # The weights are those that the model mixes with: the values mixed by hand give the attention's output.
    name = "decoder_1_cross_attention"
    tensors = [model.get_layer(f"{name}_{part}").output for part in ("value_heads", "output")]
    value, mixed = (NUMPY(x) for x in keras.Model(model.inputs, tensors)([source, target]))
    weights = NUMPY(attention_weights_model(model, name)([source, target]))
    joined = np.einsum("bnts,bsnh->btnh", weights, value).reshape(3, 5, 12)
    kernel, bias = (NUMPY(w) for w in model.get_layer(f"{name}_output").weights)
    np.testing.assert_allclose(joined @ kernel + bias, mixed, atol=1e-5)
    with pytest.raises(ValueError, match="no attention 'decoder_9_cross_attention'"):
        attention_weights_model(model, "decoder_9_cross_attention")


def test_a_step_without_its_own_position_is_attention_over_what_is_seen():
    model = small()
    x, keys = np.random.default_rng(0).normal(size=(2, 1, 12)), np.random.default_rng(1).normal(size=(2, 3, 5, 4))
    seen = np.array([True, True, False, True, False])
    name, layer = "decoder_0_cross_attention", model.get_layer
    arrays = [part.astype("float32") for part in (x, keys, keys + 1)]
    some = cached_attention(layer, name, *arrays, seen[None, None, None])
    cut = cached_attention(
        layer, name, arrays[0], *(part[:, :, seen] for part in arrays[1:]), np.ones((1, 1, 1, 3), bool)
    )
    np.testing.assert_allclose(NUMPY(some), NUMPY(cut), atol=1e-6)


def test_sinusoids():
    """Position 0 is all zeros, then ones; a shift by k turns each pair (sin, cos) by an angle of its own."""
    vectors = NUMPY(sinusoidal_embedding(np.arange(50), 8)).astype("float64")
    np.testing.assert_allclose(vectors[0], [0] * 4 + [1] * 4)
    pairs = vectors[:, :4] * 1j + vectors[:, 4:]
    np.testing.assert_allclose(pairs[7:] / pairs[:-7], np.broadcast_to(pairs[7] / pairs[0], (43, 4)), atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_dim": 10, "num_heads": 3}, "divisible by num_heads"),
        ({"hidden_dim": 9, "num_heads": 3}, "even"),
        ({"activation": "tanh"}, "relu, gelu, silu"),
        ({"positions": "rotary"}, "sinusoidal, learned"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_layers": 0}, "num_layers"),
    ],
)
def test_numbers_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        transformer(
            vocabulary_size=10, **{"num_layers": 1, "hidden_dim": 12, "intermediate_dim": 8, "num_heads": 3} | wrong
        )


def test_numbers_of_another_model():
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="not a transformer"):
        infer_config(other)
