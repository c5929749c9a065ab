"""Decoding an encoder-decoder against the full model, brute force, exhaustive search and `transformers`."""

import functools
import itertools

import keras
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.models.transformer import transformer
from zoo.text import translating
from zoo.text.decoding import next_token
from zoo.text.translating import Decoder
from zoo.text.writing import compiled

PAD, START, END = 0, 1, 2
KINDS = {
    "paper": {},
    "pre_norm": {"pre_norm": True, "activation": "gelu", "positions": "learned", "max_length": 64},
    "untied": {"tie_embeddings": False, "source_vocabulary_size": 23, "decoder_layers": 1, "scale_embeddings": False},
    "marian": {"logits_bias": True, "activation": "silu"},
}


@functools.cache
def small(kind="paper", vocabulary=29, end_bias=0.0, seed=0):
    """A model with weights so large that texts differ and no two tokens are nearly as likely."""
    numbers = {"vocabulary_size": vocabulary, "num_layers": 2, "width": 16, "inner": 24, "num_heads": 4, "pad_id": PAD}
    model, rng = transformer(**numbers | KINDS[kind]), np.random.default_rng(seed)
    for variable in model.trainable_variables:
        centre = 1.0 if "gamma" in variable.path else 0.0
        variable.assign(rng.normal(centre, 0.6 if "kernel" in variable.path else 0.4, variable.shape))
    if end_bias:
        bias = model.get_layer("logits_bias").embeddings
        bias.assign(np.where(np.arange(vocabulary) == END, end_bias, keras.ops.convert_to_numpy(bias)))
    return model


def sentences(count, *, vocabulary=23, longest=20, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


@functools.cache
def full(model):
    """The whole model, compiled for one shape."""
    return compiled(model)


@functools.cache
def _log_probabilities(model, source, text):
    ids = np.full((1, 20), PAD, "int32"), np.full((1, 20), PAD, "int32")  # what is behind the text is hidden from it
    ids[0][0, : len(source)], ids[1][0, : len(text) + 1] = source, (START, *text)
    logits = keras.ops.convert_to_numpy(full(model)(*map(keras.ops.convert_to_tensor, ids)))
    logits = logits[0, len(text)].astype(np.float64)
    return logits - np.logaddexp.reduce(logits)


def log_probabilities(model, source, text):
    """Those of the next token, float64 (V,), by the full model."""
    return _log_probabilities(model, tuple(source), tuple(text)).copy()


def decoder(model, **options):
    return Decoder(model, start_id=START, end_id=END, suppressed=(PAD,), **options)


@functools.cache
def decoder_of(*key):
    return decoder(small(*key))


# -------------------------------------------------------------------------------------------------- one token at a time


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_the_full_model_run_again_on_each_prefix(kind):
    model, sources = small(kind), sentences(3)
    for source, text in zip(sources, decoder_of(kind).decode(sources, max_length=20)):
        expected = []
        while len(expected) < 18:
            p = log_probabilities(model, source, expected)
            p[PAD] = -np.inf
            if (token := int(p.argmax())) == END:
                break
            expected.append(token)
        assert text == expected


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.8, "temperature": 0.6}])
def test_drawn_tokens_are_those_of_numpy(options):
    """The same draws with the NumPy code for one text at a time, over the full model."""
    model, sources = small(), sentences(3)
    texts = decoder_of().decode(sources, max_length=20, seed=7, **options)
    for row, (source, text) in enumerate(zip(sources, texts)):
        rng, expected = np.random.default_rng([7, row]), []
        while len(expected) < 18:
            p = log_probabilities(model, source, expected)
            p[PAD] = -np.inf
            if (token := next_token(p, rng, **options)) == END:
                break
            expected.append(token)
        assert text == expected
    assert decoder_of().decode(sources, max_length=20, seed=8, **options) != texts


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("drawing", [{}, {"seed": 3}])
def test_scores(drawing, renormalize):
    model, sources = small("marian", 29, 2.0), sentences(4)
    written = decoder(model, renormalize=renormalize)
    texts, scores = written.decode(sources, max_length=12, length_penalty=0.5, with_scores=True, **drawing)
    for source, text, score in zip(sources, texts, scores):
        tokens = text + [END] * (len(text) < 10)  # a forced end costs nothing
        p = [log_probabilities(model, source, text[:place]) for place in range(len(tokens))]
        left = [np.log1p(-np.exp(q[PAD])) if renormalize else 0.0 for q in p]
        total = sum(q[token] - more for q, token, more in zip(p, tokens, left))
        np.testing.assert_allclose(score, total / min(len(text) + 1, 11) ** 0.5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- beam search


def brute_force(model, source, *, beams, length_penalty, max_length):
    """Beam search with lists, from its definition: (text, score)."""
    running, pool, closed = [([], 0.0)], [], False
    for length in range(1, max_length):
        candidates = []
        for text, score in running:
            p = log_probabilities(model, source, text)
            tokens = [END] if length == max_length - 1 else [id_ for id_ in range(len(p)) if id_ != PAD]
            candidates += [(text + [t], score + (0.0 if length == max_length - 1 else p[t])) for t in tokens]
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * beams]
        pool += [(text[:-1], score / length**length_penalty) for text, score in candidates[:beams] if text[-1] == END]
        pool = sorted(pool, key=lambda c: -c[1])[:beams]
        running = [c for c in candidates if c[0][-1] != END][:beams]
        closed = not running or (len(pool) == beams and running[0][1] / length**length_penalty <= pool[-1][1])
        if closed:
            break
    return pool[0]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("kind,beams,end_bias", [("paper", 2, 0.0), ("pre_norm", 3, 0.0), ("marian", 4, 3.0)])
def test_beam_search_equals_brute_force(kind, beams, end_bias, length_penalty):
    model, sources = small(kind, 12, end_bias), sentences(4, vocabulary=12)
    options = {"beams": beams, "length_penalty": length_penalty, "max_length": 10}
    texts, scores = decoder_of(kind, 12, end_bias).decode(sources, with_scores=True, **options)
    for source, text, score in zip(sources, texts, scores):
        expected, expected_score = brute_force(model, source, **options)
        assert text == expected
        np.testing.assert_allclose(score, expected_score, rtol=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_texts(length_penalty):
    """Of the texts of at most two tokens, every one is looked at with as many beams as there are tokens."""
    model, sources = small("marian", 7, 1.0), sentences(12, vocabulary=7, longest=6)
    options = {"beams": 6, "length_penalty": length_penalty, "max_length": 4}
    texts, scores = decoder_of("marian", 7, 1.0).decode(sources, with_scores=True, **options)
    words = [id_ for id_ in range(7) if id_ not in (PAD, END)]
    for source, text, score in zip(sources, texts, scores):
        first = log_probabilities(model, source, [])
        second = {word: log_probabilities(model, source, [word]) for word in words}
        every = {(): first[END]}
        every |= {(a,): (first[a] + second[a][END]) / 2**length_penalty for a in words}
        every |= {(a, b): (first[a] + second[a][b]) / 3**length_penalty for a, b in itertools.product(words, words)}
        best = max(every, key=every.get)
        assert tuple(text) == best
        np.testing.assert_allclose(score, every[best], rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- transformers


@functools.cache
def marian(seed=3, size=80, width=32):
    """A MarianMTModel whose random weights write varied texts that end at many different places, and it in ours."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = transformers.MarianConfig(
        vocab_size=size,
        d_model=width,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=size - 1,
        decoder_start_token_id=size - 1,
        eos_token_id=0,
        forced_eos_token_id=0,
        max_position_embeddings=64,
    )
    theirs, generator = transformers.MarianMTModel(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "positions" in name:
                continue
            kind = [part for part in ("norm", "bias", "shared", "q_proj", "k_proj", "fc2") if part in name]
            spread = {"norm": 0.1, "bias": 0.1, "shared": 0.4, "q_proj": 5, "k_proj": 5, "fc2": 3}
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            weight.normal_(mean, spread[kind[0]] if kind else 0.3, generator=generator)
        # Half of the final features change sign: otherwise every token would be its own likeliest successor.
        theirs.model.decoder.layers[-1].final_layer_norm.weight.mul_(2)[::2].mul_(-1)
        theirs.final_logits_bias.normal_(0, 0.5, generator=generator)[0, 0] = 6.0
    ours = transformer(
        vocabulary_size=size,
        num_layers=2,
        width=width,
        inner=48,
        num_heads=4,
        activation="silu",
        logits_bias=True,
        pad_id=size - 1,
    )
    weights = {name: weight.detach().numpy() for name, weight in theirs.state_dict().items()}
    ours.get_layer("embedding").embeddings.assign(weights["model.shared.weight"])
    ours.get_layer("logits_bias").embeddings.assign(weights["final_logits_bias"])
    parts = {"inner": "fc1", "outer": "fc2", "feed_forward_norm": "final_layer_norm"}
    for kind, name in (("self", "self_attn"), ("cross", "encoder_attn")):
        parts |= {f"{kind}_attention_{p}": f"{name}.{p[0]}_proj" for p in ("query", "key", "value")}
        parts |= {f"{kind}_attention_output": f"{name}.out_proj", f"{kind}_attention_norm": f"{name}_layer_norm"}
    for side, i, (part, name) in itertools.product(("encoder", "decoder"), range(2), parts.items()):
        if side == "decoder" or "cross" not in part:
            weight, bias = (weights[f"model.{side}.layers.{i}.{name}.{kind}"] for kind in ("weight", "bias"))
            ours.get_layer(f"{side}_{i}_{part}").set_weights([weight.T if weight.ndim == 2 else weight, bias])
    return theirs, ours


@pytest.mark.parametrize(
    "beams,options,theirs",
    [
        (1, {}, {}),
        (5, {}, {}),
        (5, {"length_penalty": 0.0, "renormalize": True}, {"length_penalty": 0.0, "renormalize_logits": True}),
        (2, {"force_end": False}, {"forced_eos_token_id": None}),
    ],
)
def test_same_tokens_as_transformers(beams, options, theirs):
    model, ours = marian()
    import torch

    if theirs.get("forced_eos_token_id", 0) is None:
        model.generation_config.forced_eos_token_id = None
    pad, rng = 79, np.random.default_rng(0)
    sources = [[*rng.integers(1, pad, length).tolist(), 0] for length in rng.integers(1, 20, 50)]
    ids = np.array([source + [pad] * (20 - len(source)) for source in sources])
    settings = {"num_beams": beams, "max_length": 40, "bad_words_ids": [[pad]], "do_sample": False}
    try:
        output = model.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(ids != pad),
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
            **theirs,
        )
    finally:
        model.generation_config.forced_eos_token_id = 0
    expected = [[*itertools.takewhile(bool, row[1:])] for row in output.sequences.tolist()]
    expected = [[id_ for id_ in row if id_ != pad] for row in expected]
    renormalize = options.pop("renormalize", False)
    decoder = Decoder(ours, start_id=pad, end_id=0, suppressed=(pad,), renormalize=renormalize)
    texts, scores = decoder.decode(sources, beams=beams, max_length=40, with_scores=True, **options)
    assert texts == expected
    if beams > 1:
        np.testing.assert_allclose(scores, output.sequences_scores.numpy(), rtol=1e-4)
    assert len({len(text) for text in texts}) > 10 and len({*map(tuple, texts)}) > 20  # not all the same
    assert sum(len(text) < 36 for text in texts) > 20


# ---------------------------------------------------------------------------------------------- batches, stops, weights


@pytest.mark.parametrize("options", [{}, {"beams": 3}])
def test_neighbours_and_padding_change_nothing(options):
    sources = sentences(9)
    sources[4] = sources[4] * 6
    decode = functools.partial(decoder_of("marian", 29, 2.5).decode, max_length=40, **options)
    texts = decode(sources)
    assert len({len(text) for text in texts}) > 2
    assert [decode([source])[0] for source in sources] == texts
    array = np.full((9, 150), PAD)
    for row, source in enumerate(sources):
        array[row, : len(source)] = source
    assert decode(array) == texts
    assert decode(sources, batch_size=2) == texts
    assert decode(sources[::-1]) == texts[::-1]
    assert decode([]) == []


def test_draws_belong_to_the_sentence():
    sources = sentences(5)
    texts = decoder_of().decode(sources, seed=1, max_length=20)
    assert decoder_of().decode(sources, seed=1, max_length=20, batch_size=2) == texts
    assert decoder_of().decode(sources[:2], seed=1, max_length=20) == texts[:2]


def test_ends_when_all_have_ended():
    early, sources = decoder_of("marian", 29, 9.0), sentences(6)
    texts = early.decode(sources, max_length=200)
    assert early.steps == max(map(len, texts)) + 1 < 20
    early.decode(sources, max_length=200, beams=3)
    assert early.steps < 40


def test_weights_that_change_are_noticed():
    model, sources = small("marian", 29, 1.0, 5), sentences(3)
    before, other = decoder(model), small("marian", 29, 1.0, 6)
    texts = before.decode(sources, max_length=12)
    model.set_weights(other.get_weights())
    assert before.decode(sources, max_length=12) == decoder(other).decode(sources, max_length=12) != texts


def test_keras_and_pytorch_layers_write_the_same(monkeypatch):
    if keras.backend.backend() != "torch":
        pytest.skip("there are two ways on torch only")
    sources = sentences(3)
    for options in ({}, {"beams": 3}):
        plain = decoder_of("pre_norm").decode(sources, max_length=20, **options)
        with monkeypatch.context() as patch:
            patch.setattr(translating, "suits", lambda model: False)
            assert decoder(small("pre_norm")).decode(sources, max_length=20, **options) == plain


# ------------------------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    "options,message",
    [
        ({"sources": [[3], []]}, "Source 1 is empty"),
        ({"sources": [[3], [PAD, PAD]]}, "Source 1 is empty"),
        ({"sources": [[3] * 65]}, "65 tokens, and the model has 64 positions"),
        ({"sources": [[29]]}, "ids outside the vocabulary of 29"),
        ({"max_length": 66}, "at most 65"),
        ({"max_length": 1}, "at least 2"),
        ({"beams": 29}, "from 1 to 28"),
        ({"beams": 0}, "from 1 to 28"),
        ({"temperature": 0.5}, "give a seed"),
        ({"seed": 1, "beams": 2}, "a seed or 2 beams"),
        ({"seed": 1, "temperature": 0.0}, "temperature must be above 0"),
        ({"seed": 1, "top_p": 1.5}, "top_p must be"),
    ],
)
def test_wrong_use_is_told_in_a_sentence(options, message):
    options = {"sources": [[3, 4]], "max_length": 10} | options
    with pytest.raises(UserError, match=message) as told:
        decoder_of("pre_norm").decode(options.pop("sources"), **options)
    assert "\n" not in str(told.value)


def test_wrong_tokens_are_told():
    with pytest.raises(UserError, match="29 is not in the vocabulary"):
        Decoder(small(), start_id=29, end_id=END)
    with pytest.raises(UserError, match="must not be suppressed"):
        Decoder(small(), start_id=START, end_id=END, suppressed=(END,))
    with pytest.raises(ValueError, match="not a transformer"):
        Decoder(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), start_id=1, end_id=2)
