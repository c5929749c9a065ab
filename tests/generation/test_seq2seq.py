"""Decoding an encoder-decoder against the full model, brute force, exhaustive search and `transformers`."""

import functools
import itertools

import keras
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.fast_paths.compile import compile_function
from zoo.generation import seq2seq
from zoo.generation.sampling import sample_token
from zoo.generation.seq2seq import Seq2SeqGenerator
from zoo.models.transformer import transformer

PAD, START, END = 0, 1, 2
KINDS = {
    "paper": {"dropout": 0.1},
    "pre_norm": {"pre_norm": True, "activation": "gelu", "positions": "learned", "max_length": 64},
    "untied": {"tie_embeddings": False, "source_vocabulary_size": 23, "scale_embeddings": False},
    "marian": {"logits_bias": True, "activation": "silu"},
}
LENGTH = 17  # start, 15 tokens and the end: as many steps as the first buffers have positions
# Where a loop is compiled for every case, in seconds, the quick run has the cases that show the most.
COMPILED = pytest.mark.slow("tensorflow", "jax")
CLOSE = 2e-4  # relative, of scores: float32, and the sharp attention of these weights magnifies rounding
NUMPY = keras.ops.convert_to_numpy


@functools.cache
def lively(kind="paper", vocabulary=29, end_bias=None, seed=0):
    """A model whose random weights write varied texts that end at many places, with no two tokens nearly as likely."""
    numbers = {
        "num_layers": 1,
        "decoder_layers": 2,
        "hidden_dim": 16,
        "intermediate_dim": 24,
        "num_heads": 4,
        "pad_id": PAD,
    }
    model, rng = transformer(vocabulary_size=vocabulary, **numbers | KINDS[kind]), np.random.default_rng(seed)
    spread = {"query": 3.0, "key": 3.0, "outer": 3.0, "embedding": 0.4, "positions": 0.4, "logits": 0.5}
    for layer in model.layers:
        for weight in layer.trainable_variables:
            own = spread.get(layer.name.split("_")[-1], 0.3) if weight.name in ("kernel", "embeddings") else 0.1
            weight.assign(rng.normal(1.0 if weight.name == "gamma" else 0.0, own, weight.shape))
    # Half of the last features change sign: otherwise every token would be its own likeliest successor.
    gamma = model.get_layer("decoder_norm" if kind == "pre_norm" else "decoder_1_feed_forward_norm").gamma
    gamma.assign(NUMPY(gamma) * np.resize([-2, 2], gamma.shape))
    if end_bias is not None:
        bias = model.get_layer("logits").bias if kind == "untied" else model.get_layer("logits_bias").embeddings
        bias.assign(np.where(np.arange(vocabulary) == END, end_bias, NUMPY(bias)))
    return model


def sentences(count, *, vocabulary=23, longest=16, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


@functools.cache
def generator(*key, **options):
    return Seq2SeqGenerator(lively(*key), start_id=START, end_id=END, suppress_tokens=(PAD,), **options)


@functools.cache
def full(model):
    """The whole model, compiled for one shape."""
    return compile_function(lambda *ids: model(list(ids), training=False), model.variables, trace=False)


KNOWN = {}  # (model, source, text): log-probabilities of the next token


def log_probabilities(model, source, texts):
    """Those of the next token of each text, float64 (V,) each, by the full model.

    A call gives them for every beginning of a text as well, because what stands behind it is hidden from it.
    """
    source = tuple(source)
    keys = [(model, source, tuple(text)) for text in texts]
    if missing := [text for _, _, text in keys if (model, source, text) not in KNOWN]:
        ids = np.full((8, 20), PAD, "int32"), np.full((8, 20), PAD, "int32")
        ids[0][:, : len(source)], ids[1][:, 0] = source, START
        for row, text in enumerate(missing):
            ids[1][row, 1 : len(text) + 1] = text
        logits = NUMPY(full(model)(*map(keras.ops.convert_to_tensor, ids))).astype(np.float64)
        logits -= np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for row, text in enumerate(missing):
            KNOWN.update({(model, source, text[:place]): logits[row, place] for place in range(len(text) + 1)})
    return [KNOWN[key] for key in keys]


def generate(model, source, choose, expected):
    """A text by the full model on each prefix; `choose` takes the log-probabilities.

    Those of the prefixes of the text that is expected come from one call; any other costs a call more.
    """
    log_probabilities(model, source, [expected])
    text = []
    while len(text) < LENGTH - 2:
        (p,) = log_probabilities(model, source, [text])
        p = np.where(np.arange(len(p)) == PAD, -np.inf, p)
        if (token := choose(p)) == END:
            break
        text.append(int(token))
    return text


LIVELY = [("paper",), ("pre_norm", 29, None, 0), ("untied", 29, 2.0, 1), ("marian", 29, 4.0, 7)]

# ------------------------------------------------------------------------------------------------ one token at a time


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(LIVELY[0], marks=COMPILED),
        LIVELY[1],
        pytest.param(LIVELY[2], marks=COMPILED),
        pytest.param(LIVELY[3], marks=COMPILED),
    ],
    ids=KINDS,
)
def test_greedy_equals_the_full_model_run_again_on_each_prefix(key):
    sources = sentences(4)
    texts = generator(*key).generate(sources, max_length=LENGTH)
    assert texts == [generate(lively(*key), source, np.argmax, text) for source, text in zip(sources, texts)]
    assert len({*map(tuple, texts)}) > 2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=COMPILED),
        pytest.param({"top_k": 4}, marks=COMPILED),
        pytest.param({"top_p": 0.7}, marks=COMPILED),
        {"top_k": 9, "top_p": 0.8, "temperature": 0.6},
    ],
    ids=str,
)
def test_sampled_tokens_are_those_of_numpy(options):
    """The same samples with the NumPy code for one text at a time, over the full model."""
    sources = sentences(4)
    texts = generator().generate(sources, max_length=LENGTH, do_sample=True, seed=7, **options)
    for row, (source, text) in enumerate(zip(sources, texts)):
        choose = functools.partial(sample_token, rng=np.random.default_rng(7 + row), **options)
        assert text == generate(lively(), source, choose, text)
    assert generator().generate(sources, max_length=LENGTH, do_sample=True, seed=8, **options) != texts
    assert generator().generate(sources[:3], max_length=LENGTH, do_sample=True, seed=7, **options) == texts[:3]


@pytest.mark.parametrize(
    "renormalize, sampling_options",
    [
        pytest.param(False, {}, marks=COMPILED),
        pytest.param(True, {}, marks=COMPILED),
        pytest.param(False, {"do_sample": True, "seed": 3}, marks=COMPILED),
        pytest.param(True, {"do_sample": True, "seed": 3}, marks=COMPILED),
    ],
)
def test_scores(sampling_options, renormalize):
    key, sources = ("marian", 12, 3.0, 0), sentences(4, vocabulary=12)
    texts, scores = generator(*key, renormalize_logits=renormalize).generate(
        sources, max_length=LENGTH, length_penalty=0.5, with_scores=True, **sampling_options
    )
    for source, text, score in zip(sources, texts, scores):
        tokens = text + [END] * (len(text) < LENGTH - 2)  # a forced end costs nothing
        log_probabilities(lively(*key), source, [text])  # and of all its beginnings
        p = [log_probabilities(lively(*key), source, [text[:place]])[0] for place in range(len(tokens))]
        left = [np.log1p(-np.exp(q[PAD])) if renormalize else 0.0 for q in p]
        total = sum(q[token] - more for q, token, more in zip(p, tokens, left))
        np.testing.assert_allclose(score, total / (len(text) + 1) ** 0.5, rtol=CLOSE)


# -------------------------------------------------------------------------------------------------------- beam search


def brute_force(model, source, *, num_beams, length_penalty, max_length):
    """Beam search with lists, from its definition: (text, score)."""
    running, pool = [([], 0.0)], []
    for length in range(1, max_length):
        candidates = []
        for (text, score), p in zip(running, log_probabilities(model, source, [text for text, _ in running])):
            if length < max_length - 1:
                candidates += [([*text, id_], score + p[id_]) for id_ in range(len(p)) if id_ != PAD]
            else:
                candidates.append(([*text, END], score))
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * num_beams]
        pool += [
            (text[:-1], score / length**length_penalty) for text, score in candidates[:num_beams] if text[-1] == END
        ]
        pool = sorted(pool, key=lambda c: -c[1])[:num_beams]
        running = [c for c in candidates if c[0][-1] != END][:num_beams]
        if not running or (len(pool) == num_beams and running[0][1] / length**length_penalty <= pool[-1][1]):
            break
    return pool[0]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize(
    "beams,key",
    [
        pytest.param(2, LIVELY[0], marks=COMPILED),
        pytest.param(3, LIVELY[1], marks=COMPILED),
        (4, ("marian", 12, 3.0, 0)),
    ],
)
def test_beam_search_equals_brute_force(beams, key, length_penalty):
    sources, options = sentences(4, vocabulary=12), {"num_beams": beams, "length_penalty": length_penalty}
    texts, scores = generator(*key).generate(sources, max_length=LENGTH, with_scores=True, **options)
    for source, text, score in zip(sources, texts, scores):
        expected, expected_score = brute_force(lively(*key), source, max_length=LENGTH, **options)
        assert text == expected
        np.testing.assert_allclose(score, expected_score, rtol=CLOSE)


@pytest.mark.slow("tensorflow")
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_texts(length_penalty):
    """Of the texts of at most two tokens, every one is looked at with as many beams as there are tokens."""
    key, sources = ("marian", 7, 1.0, 3), sentences(12, vocabulary=7, longest=6)
    options = {"num_beams": 6, "length_penalty": length_penalty, "max_length": 4}
    texts, scores = generator(*key).generate(sources, with_scores=True, **options)
    words = [id_ for id_ in range(7) if id_ not in (PAD, END)]
    for source, text, score in zip(sources, texts, scores):
        first, *second = log_probabilities(lively(*key), source, [[], *([word] for word in words)])
        second = dict(zip(words, second))
        every = {(): first[END]}
        every |= {(a,): (first[a] + second[a][END]) / 2**length_penalty for a in words}
        every |= {(a, b): (first[a] + second[a][b]) / 3**length_penalty for a, b in itertools.product(words, words)}
        best = max(every, key=every.get)
        assert tuple(text) == best
        np.testing.assert_allclose(score, every[best], rtol=CLOSE)


# ------------------------------------------------------------------------------------------------------- transformers


@functools.cache
def marian(model):
    """A MarianMTModel with the weights of one of ours."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = transformers.MarianConfig(
        vocab_size=29,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=PAD,
        decoder_start_token_id=START,
        eos_token_id=END,
        max_position_embeddings=64,
    )
    theirs = transformers.MarianMTModel(config).eval()
    parts = {"inner": "fc1", "outer": "fc2", "feed_forward_norm": "final_layer_norm"}
    for kind, name in (("self", "self_attn"), ("cross", "encoder_attn")):
        parts |= {f"{kind}_attention_{part}": f"{name}.{part[0]}_proj" for part in ("query", "key", "value")}
        parts |= {f"{kind}_attention_output": f"{name}.out_proj", f"{kind}_attention_norm": f"{name}_layer_norm"}
    weights = {"shared.weight": model.get_layer("embedding").get_weights()[0]}
    for layer in model.layers:
        if layer.name[:9] in ("encoder_0", "decoder_0", "decoder_1") and layer.weights:
            name = f"{layer.name[:7]}.layers.{layer.name[8]}.{parts[layer.name[10:]]}"
            weight, bias = layer.get_weights()
            weights |= {f"{name}.weight": weight.T, f"{name}.bias": bias}
    with torch.no_grad():
        for name, weight in weights.items():
            theirs.model.get_parameter(name).copy_(torch.tensor(weight))
        theirs.final_logits_bias.copy_(torch.tensor(model.get_layer("logits_bias").get_weights()[0]))
    return theirs


@pytest.mark.parametrize(
    "beams,options,renormalize,force_end",
    [
        pytest.param(1, {}, False, True, marks=COMPILED),
        (5, {}, True, True),
        pytest.param(5, {"length_penalty": 0.3}, False, False, marks=COMPILED),
    ],
)
def test_same_tokens_as_transformers(beams, options, renormalize, force_end):
    """Fifty sources; their texts end at many different places, through several buffers."""
    theirs = marian(lively(*LIVELY[3]))
    import torch

    sources = sentences(50, seed=2)
    ids = torch.tensor([source + [PAD] * (16 - len(source)) for source in sources])
    output = theirs.generate(
        ids,
        attention_mask=ids != PAD,
        num_beams=beams,
        max_length=33,
        bad_words_ids=[[PAD]],
        do_sample=False,
        forced_eos_token_id=END if force_end else None,
        renormalize_logits=renormalize,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    expected = [
        [id_ for id_ in itertools.takewhile(lambda id_: id_ != END, row[1:])] for row in output.sequences.tolist()
    ]
    texts, scores = generator(*LIVELY[3], renormalize_logits=renormalize).generate(
        sources, num_beams=beams, max_length=33, force_end=force_end, with_scores=True, **options
    )
    assert texts == [[id_ for id_ in row if id_ != PAD] for row in expected]
    if beams > 1:
        np.testing.assert_allclose(scores, output.sequences_scores.numpy(), rtol=CLOSE)
    assert len({len(text) for text in texts}) > 8 and len({*map(tuple, texts)}) > 15


# ---------------------------------------------------------------------------------------------- batches, stops, weights


@pytest.mark.parametrize("options", [pytest.param({}, marks=COMPILED), {"num_beams": 3}], ids=str)
@pytest.mark.slow("tensorflow", "jax")
def test_neighbours_and_padding_change_nothing(options):
    sources = sentences(5, longest=14)
    sources[2] = sources[2] * 5
    generate_all = functools.partial(generator("marian", 29, 5.0, 7).generate, max_length=LENGTH, **options)
    texts = generate_all(sources)
    assert len({len(text) for text in texts}) > 2
    assert [generate_all([source])[0] for source in sources[:2]] == texts[:2]
    array = np.full((5, 150), PAD)
    for row, source in enumerate(sources):
        array[row, : len(source)] = source
    assert generate_all(array) == texts
    assert generate_all(sources, batch_size=4) == texts
    assert generate_all(sources[::-1]) == texts[::-1]
    assert generate_all([]) == []


@pytest.mark.parametrize(
    "options, force_end",
    [
        pytest.param({}, True, marks=COMPILED),
        pytest.param({}, False, marks=COMPILED),
        pytest.param({"num_beams": 3}, True, marks=COMPILED),
        pytest.param({"num_beams": 3}, False, marks=COMPILED),
        pytest.param({"do_sample": True}, True, marks=COMPILED),
        pytest.param({"do_sample": True}, False, marks=COMPILED),
    ],
)
def test_each_source_has_its_own_longest_target(options, force_end):
    sources, lengths = sentences(6, seed=3), [3, 30, 9, 18, 5, 12]
    generate_all = functools.partial(generator("marian", 29, 2.0, 7).generate, force_end=force_end, **options)
    targets, scores = generate_all(sources, max_length=lengths, with_scores=True)
    for row, length in enumerate(lengths):
        seed = {"seed": row} if "do_sample" in options else {}
        target, score = generate_all([sources[row]], max_length=length, with_scores=True, **seed)
        assert target == [targets[row]] and len(targets[row]) <= length - 1 - force_end
        np.testing.assert_allclose(score[0], scores[row], rtol=CLOSE)
    assert len({len(target) for target in targets}) > 2


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        pytest.param({}, marks=COMPILED),
        pytest.param({"do_sample": True, "seed": 1}, marks=COMPILED),
    ],
    ids=str,
)
@pytest.mark.slow("tensorflow", "jax")
def test_finished_sentences_leave_the_batch(options, monkeypatch):
    key, sources = ("marian", 29, 7.0, 4), sentences(16, seed=2)
    writer, kept = generator(*key), []
    monkeypatch.setattr(
        writer, "_kept", lambda unfinished: kept.append(Seq2SeqGenerator._kept(writer, unfinished)) or kept[-1]
    )
    texts = writer.generate(sources, max_length=40, **options)
    assert len(kept[-1]) < 16
    monkeypatch.setattr(writer, "_kept", lambda unfinished: np.arange(len(unfinished)))
    assert writer.generate(sources, max_length=40, **options) == texts


@pytest.mark.slow("tensorflow")
def test_ends_when_all_have_ended():
    writer, sources = generator("marian", 29, 12.0, 2), sentences(4)
    texts = writer.generate(sources, max_length=200)
    assert writer.num_steps == max(map(len, texts)) + 1 <= 16
    writer.generate(sources, max_length=200, num_beams=2)
    assert writer.num_steps <= 16


@pytest.mark.slow("tensorflow")
def test_weights_that_change_are_noticed():
    model, sources = lively("marian", 29, 4.0, 2), sentences(4)
    writer, other = Seq2SeqGenerator(model, start_id=START, end_id=END, suppress_tokens=(PAD,)), lively(*LIVELY[3])
    texts = writer.generate(sources, max_length=LENGTH)
    model.set_weights(other.get_weights())
    expected = generator(*LIVELY[3]).generate(sources, max_length=LENGTH)
    assert writer.generate(sources, max_length=LENGTH) == expected != texts


def test_keras_and_pytorch_layers_write_the_same(monkeypatch):
    if keras.backend.backend() != "torch":
        pytest.skip("there are two ways on torch only")
    sources = sentences(3)
    for options in ({}, {"num_beams": 3}):
        plain = generator(*LIVELY[1]).generate(sources, max_length=20, **options)
        with monkeypatch.context() as patch:
            patch.setattr(seq2seq, "supports", lambda model: False)
            writer = Seq2SeqGenerator(lively(*LIVELY[1]), start_id=START, end_id=END, suppress_tokens=(PAD,))
            assert writer.generate(sources, max_length=20, **options) == plain


# ---------------------------------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    "options,message",
    [
        ({"sources": [[3], []]}, "Source 1 is empty"),
        ({"sources": [[3], [PAD, PAD]]}, "Source 1 is empty"),
        ({"sources": [[3] * 65]}, "65 tokens, and the model has 64 positions"),
        ({"sources": [[29]]}, "ids outside the vocabulary of 29"),
        ({"max_length": 66}, "at most 65"),
        ({"max_length": 1}, "at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_beams": 29}, "from 1 to 28"),
        ({"num_beams": 0}, "from 1 to 28"),
        ({"temperature": 0.5}, "give do_sample=True"),
        ({"do_sample": True, "num_beams": 2}, "sampling or 2 beams"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be above 0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p must be"),
    ],
)
def test_wrong_use_is_reported_in_a_sentence(options, message):
    options = {"sources": [[3, 4]], "max_length": 10} | options
    with pytest.raises(UserError, match=message) as caught:
        generator(*LIVELY[1]).generate(options.pop("sources"), **options)
    assert "\n" not in str(caught.value)


def test_wrong_tokens_are_reported():
    with pytest.raises(UserError, match="29 is not in the vocabulary"):
        Seq2SeqGenerator(lively(), start_id=29, end_id=END)
    with pytest.raises(UserError, match="must not be suppressed"):
        Seq2SeqGenerator(lively(), start_id=START, end_id=END, suppress_tokens=(END,))
    with pytest.raises(ValueError, match="not a transformer"):
        Seq2SeqGenerator(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), start_id=1, end_id=2)
