"""Beside KerasHub: its transformer layers with our weights, and its samplers driving our model."""

import numpy as np
import pytest
from keras import ops

from tests.generation.test_seq2seq import END, PAD, START, full, lively, sentences
from zoo.generation.seq2seq import Seq2SeqGenerator
from zoo.models.transformer import transformer

NUMPY = ops.convert_to_numpy


@pytest.fixture
def keras_hub():
    """Imported by the tests that use it: it brings TensorFlow on every backend."""
    return pytest.importorskip("keras_hub", reason="KerasHub is not installed (the extra nlp)")


def give(layer, prefix, peer, heads):
    """Copy our weights into one attention of KerasHub, whose kernels hold the heads as an axis."""
    for part in ("query", "key", "value"):
        kernel, bias = (NUMPY(weight) for weight in layer(f"{prefix}_{part}").weights)
        own = getattr(peer, f"_{part}_dense")
        own.kernel.assign(kernel.reshape(len(kernel), heads, -1))
        own.bias.assign(bias.reshape(heads, -1))
    kernel, bias = (NUMPY(weight) for weight in layer(f"{prefix}_output").weights)
    peer._output_dense.kernel.assign(kernel.reshape(heads, -1, kernel.shape[-1]))
    peer._output_dense.bias.assign(bias)


def copy(layer, name, peer):
    for variable, value in zip(peer.weights, layer(name).weights, strict=True):
        variable.assign(NUMPY(value))


@pytest.mark.parametrize("pre_norm", [pytest.param(False, marks=pytest.mark.slow("jax")), True])
def test_same_numbers_as_kerashub_layers(keras_hub, pre_norm):
    """Two encoder and two decoder layers: the logits, with padding in the source."""
    numbers = {"hidden_dim": 12, "intermediate_dim": 20, "num_heads": 3}
    model = transformer(vocabulary_size=17, num_layers=2, pre_norm=pre_norm, pad_id=PAD, **numbers)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) * 0.4 + (w.name == "gamma") for w in model.weights])
    own = model.get_layer
    source, target = rng.integers(3, 17, (4, 7)), rng.integers(3, 17, (4, 5))
    source[1:, 4:], visible = PAD, None
    visible = source != PAD
    options = {"layer_norm_epsilon": 1e-5, "normalize_first": pre_norm}

    def embed(tokens):
        table = NUMPY(own("embedding").embeddings)
        angle = np.arange(tokens.shape[1])[:, None] / 1e4 ** (2 * np.arange(6) / 12)
        return (table[tokens] * 12**0.5 + np.concatenate([np.sin(angle), np.cos(angle)], -1)).astype("float32")

    def feed_forward(block, peer):
        copy(own, f"{block}_inner", peer._feedforward_intermediate_dense)
        copy(own, f"{block}_outer", peer._feedforward_output_dense)
        copy(own, f"{block}_feed_forward_norm", peer._feedforward_layer_norm)

    def end(x, side):
        return NUMPY(own(f"{side}_norm")(x)) if pre_norm else NUMPY(x)

    x = embed(source)
    for block in ("encoder_0", "encoder_1"):
        peer = keras_hub.layers.TransformerEncoder(20, 3, **options)
        peer.build(x.shape)
        give(own, f"{block}_self_attention", peer._self_attention_layer, 3)
        copy(own, f"{block}_self_attention_norm", peer._self_attention_layer_norm)
        feed_forward(block, peer)
        x = NUMPY(peer(x, padding_mask=visible))
    memory, x = end(x, "encoder"), embed(target)
    for block in ("decoder_0", "decoder_1"):
        peer = keras_hub.layers.TransformerDecoder(20, 3, **options)
        peer.build(x.shape, memory.shape)
        for kind in ("self", "cross"):
            attention = getattr(peer, f"_{kind}_attention_layer")
            give(own, f"{block}_{kind}_attention", attention, 3)
            copy(own, f"{block}_{kind}_attention_norm", getattr(peer, f"_{kind}_attention_layer_norm"))
        feed_forward(block, peer)
        x = NUMPY(peer(x, memory, encoder_padding_mask=visible))
    expected = end(x, "decoder") @ NUMPY(own("embedding").embeddings).T
    found = NUMPY(model([source.astype("int32"), target.astype("int32")]))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow("tensorflow", "jax")), 4])
def test_same_texts_as_kerashub_samplers(keras_hub, beams):
    """Its greedy and beam samplers run the full model again on each prefix; no text may end before the last token."""
    model, sources, length = lively("marian", 29, -1e4, 7), sentences(6), 12
    found = Seq2SeqGenerator(model, start_id=START, end_id=END, suppress_tokens=(PAD,)).generate(
        sources, num_beams=beams, max_length=length, force_end=False
    )
    ids = np.full((6 * beams, 20), PAD, "int32")
    for row, source in enumerate(np.repeat(np.arange(6), beams)):
        ids[row, : len(sources[source])] = sources[source]
    run = full(model)

    def next_logits(prompt, cache, index):
        logits = np.array(NUMPY(run(ops.convert_to_tensor(ids), ops.cast(prompt, "int32"))))[:, int(index) - 1]
        logits[:, PAD] = -1e9
        return ops.convert_to_tensor(logits), None, cache

    samplers = keras_hub.samplers
    sampler = samplers.GreedySampler() if beams == 1 else samplers.BeamSampler(num_beams=beams)
    prompt = np.full((6, length), PAD, "int32")
    prompt[:, 0] = START
    # One token a call: the sampler's own loop would compile `next_logits`, which here is NumPy.
    sampler.run_loop = plain_loop
    written = sampler(next_logits, ops.convert_to_tensor(prompt), index=1)
    assert found == NUMPY(written)[:, 1:].tolist()


def plain_loop(cond, body, loop_vars, maximum_iterations=None, model=None):
    """`keras_hub.samplers.Sampler.run_loop` as plain Python."""
    for _ in range(int(maximum_iterations)):
        if not cond(*loop_vars):
            break
        loop_vars = body(*loop_vars)
    return loop_vars
