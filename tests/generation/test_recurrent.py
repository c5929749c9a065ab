"""Text generation against a recurrence and a sampling loop written out in NumPy, the same on every backend."""

import keras
import numpy as np
import pytest

from zoo.generation import recurrent
from zoo.generation.recurrent import RecurrentGenerator
from zoo.models.rnn_language_model import rnn_language_model

VOCABULARY_SIZE, UNITS = 13, 8
PROMPTS = [[1, 2, 3], [4], list(range(1, 13)) * 3]  # the last is longer than the steps of one call
SAMPLINGS = [
    {"seeds": [5, 6, 7]},
    {"seeds": [5, 6, 7], "temperature": 0.7, "top_k": 5},
    {"seeds": [1, 2, 3], "temperature": 1.3, "top_p": 0.8},
    {"seeds": [1, 2, 3], "top_k": 6, "top_p": 0.6},
    {},
]


def make(cell, **options):
    """A model with random weights that are the same on every backend."""
    config = {"vocabulary_size": VOCABULARY_SIZE, "embedding_dim": UNITS, "units": UNITS, "num_layers": 2}
    model = rnn_language_model(cell=cell, **config | options)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(0, 0.8, weight.shape).astype("float32") for weight in model.get_weights()])
    return model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step_of_cell(cell, x, state, kernel, recurrent_kernel, bias):
    """The next state of a cell, in Keras' order of the gates: h, and for an LSTM c."""
    if cell == "simple":
        return [np.tanh(x @ kernel + state[0] @ recurrent_kernel + bias)]
    if cell == "lstm":
        i, f, g, o = np.split(x @ kernel + state[0] @ recurrent_kernel + bias, 4)
        c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(c), c]
    (xz, xr, xn), (az, ar, an) = np.split(x @ kernel + bias[0], 3), np.split(state[0] @ recurrent_kernel + bias[1], 3)
    z, r = sigmoid(xz + az), sigmoid(xr + ar)
    return [z * state[0] + (1 - z) * np.tanh(xn + r * an)]


def choose(logits, rng, temperature=1.0, top_k=None, top_p=None):
    """A token drawn by inversion from the most likely ones, one after the other."""
    if rng is None:
        return int(np.argmax(logits))
    p = np.exp(logits / temperature)
    p /= p.sum()
    kept, total = [], 0.0
    for token in np.argsort(-p, kind="stable"):
        if (top_k is not None and len(kept) == top_k) or (top_p is not None and total >= top_p):
            break
        kept.append(token)
        total += p[token]
    kept, left = sorted(kept), rng.random() * total
    for token in kept:
        left -= p[token]
        if left < 0:
            return int(token)
    return int(kept[-1])


def expected(model, cell, prompt, max_new_tokens, seed=None, stop=(), tied=False, **options):
    """The ids that continue one prompt."""
    table, *weights = [weight.astype("float64") for weight in model.get_weights()]
    cells, head = [weights[first : first + 3] for first in (0, 3)], weights[6:]
    states = [[np.zeros(UNITS)] * (2 if cell == "lstm" else 1) for _ in cells]
    rng, ids, given, token = None if seed is None else np.random.default_rng(seed), [], list(prompt), None
    while len(ids) < max_new_tokens:
        x = table[given.pop(0) if given else token]
        for index, parts in enumerate(cells):
            states[index] = step_of_cell(cell, x, states[index], *parts)
            x = states[index][0]
        if not given:
            token = choose(x @ table.T if tied else x @ head[0] + head[1], rng, **options)
            if token in stop:
                break
            ids.append(token)
    return ids


def generate(generator, prompts, max_new_tokens, **options):
    ids = [[] for _ in prompts]
    for row, token in generator.generate(prompts, max_new_tokens=max_new_tokens, **options):
        ids[row].append(token)
    return ids


@pytest.mark.parametrize("cell, tied", [("gru", False), ("lstm", True), ("simple", False)])
def test_text_equals_that_of_numpy(cell, tied):
    model = make(cell, tie_embeddings=tied)
    generator = RecurrentGenerator(model)
    for options in SAMPLINGS if cell == "gru" else SAMPLINGS[:1]:
        seeds, rest = options.get("seeds", [None] * 3), {key: options[key] for key in options if key != "seeds"}
        wanted = [expected(model, cell, p, 40, seed, tied=tied, **rest) for p, seed in zip(PROMPTS, seeds)]
        assert generate(generator, PROMPTS, 40, **options) == wanted
        assert len(set(wanted[0])) > 1 and all(len(ids) == 40 for ids in wanted)


def test_stop_tokens_and_lengths():
    model = make("gru")
    generator = RecurrentGenerator(model)
    whole = [expected(model, "gru", prompt, 40, 5 + row) for row, prompt in enumerate(PROMPTS)]
    stop = whole[0][20]
    wanted = [expected(model, "gru", prompt, 40, 5 + row, {stop}) for row, prompt in enumerate(PROMPTS)]
    assert generate(generator, PROMPTS, 40, seeds=[5, 6, 7], stop_token_ids={stop}) == wanted
    assert len({len(ids) for ids in wanted}) > 1
    for length in (1, 31, 32, 33):
        assert generate(generator, PROMPTS[:1], length, seeds=[5]) == [whole[0][:length]]
    assert generate(generator, [], 5) == []


def test_tokens_come_before_the_text_is_finished(monkeypatch):
    generator, calls = RecurrentGenerator(make("gru")), []
    for name in ("_generate_stepwise", "_generate_compiled"):
        run = getattr(generator, name)
        monkeypatch.setattr(generator, name, lambda *args, run=run, **rest: calls.append(args) or run(*args, **rest))
    tokens = generator.generate([[1]], max_new_tokens=1000, seeds=[0])
    assert calls == []
    next(tokens)
    assert len(calls) == 1


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="nothing is compiled")
def test_a_token_that_float32_draws_otherwise_is_that_of_numpy(monkeypatch):
    model = make("gru")
    wanted = [expected(model, "gru", prompt, 40, 5 + row) for row, prompt in enumerate(PROMPTS)]
    monkeypatch.setattr(recurrent, "sample_on_device", lambda logits, *_: keras.ops.argmax(logits, 1, keepdims=True))
    assert generate(RecurrentGenerator(model), PROMPTS, 40, seeds=[5, 6, 7]) == wanted


def test_a_large_vocabulary_steps_one_by_one(monkeypatch):
    model = make("gru")
    monkeypatch.setattr(recurrent, "_MAX_LOGITS", VOCABULARY_SIZE)
    monkeypatch.setattr(RecurrentGenerator, "_loop", lambda *_: pytest.fail("compiled"))
    wanted = [expected(model, "gru", prompt, 20, 5 + row) for row, prompt in enumerate(PROMPTS)]
    assert generate(RecurrentGenerator(model), PROMPTS, 20, seeds=[5, 6, 7]) == wanted


def test_new_weights_are_used():
    model = make("lstm")
    generator = RecurrentGenerator(model)
    generate(generator, PROMPTS, 20, seeds=[5, 6, 7])
    rng = np.random.default_rng(9)
    model.set_weights([rng.normal(0, 0.8, weight.shape).astype("float32") for weight in model.get_weights()])
    wanted = [expected(model, "lstm", prompt, 20, 5 + row) for row, prompt in enumerate(PROMPTS)]
    assert generate(generator, PROMPTS, 20, seeds=[5, 6, 7]) == wanted


@pytest.mark.parametrize("kind", ["bfloat16", "lora", "quantized"])
def test_other_models_generate_what_they_compute(kind):
    model = make("gru")
    if kind == "bfloat16":
        weights = model.get_weights()
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            model = make("gru")
        finally:
            keras.config.set_dtype_policy("float32")
        model.set_weights(weights)
    elif kind == "quantized":
        model.get_layer("logits").quantize("int8")
    else:
        rng = np.random.default_rng(4)
        for name in ("embedding", "logits"):
            layer = model.get_layer(name)
            layer.enable_lora(2)
            for variable in layer.trainable_variables:
                if "lora" in variable.name:
                    variable.assign(rng.normal(0, 0.5, variable.shape))
    prompt, (ids,) = [1, 2], generate(RecurrentGenerator(model), [[1, 2]], 20, seeds=[3])
    logits = keras.ops.convert_to_numpy(keras.ops.cast(model(np.array([prompt + ids])), "float32"))[0].astype("float64")
    rng = np.random.default_rng(3)
    assert ids == [choose(row, rng) for row in logits[len(prompt) - 1 : -1]]
