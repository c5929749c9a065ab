"""CausalLM: one prompt, lists, seeds, streams, settings, on a small model with random weights; published texts."""

import threading

import numpy as np
import pytest

import zoo
from zoo.errors import UserError
from zoo.models.rnn_language_model import rnn_language_model
from zoo.tokenizers.text import train_tokenizer

TEXT = "to be, or not to be: that is the question"
OPTIONS = {"max_new_tokens": 20, "temperature": 1.0}
GREEDY = "ROMEO:\nI will not say the sentence of the worl"


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_tokenizer(TEXT, "char")
    model = rnn_language_model(cell="gru", vocabulary_size=tokenizer.get_vocab_size(), embedding_dim=8, units=8)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 1, weight.shape) for weight in model.get_weights()])
    return zoo.CausalLM(model, tokenizer)


def test_a_list_is_its_items_one_by_one(lm):
    prompts = ["to be", "t", "that is the question"]
    alone = [lm.generate(prompt, seed=5 + i, **OPTIONS) for i, prompt in enumerate(prompts)]
    assert all(text.startswith(prompt) and len(text) == len(prompt) + 20 for prompt, text in zip(prompts, alone))
    for batch_size in (1, 2, 32):
        assert lm.generate(prompts, seed=5, batch_size=batch_size, **OPTIONS) == alone
    assert lm.generate([]) == []
    assert lm.generate(prompts[:1], seed=5, **OPTIONS) == alone[:1]


def test_seeds(lm):
    def generate(**options):
        return lm.generate("to be", **OPTIONS | options)

    assert generate() == generate(seed=0) != generate(seed=1)
    assert generate(seed=None) != generate(seed=None)
    assert generate(greedy=True, seed=1) == generate(temperature=0) == generate(top_k=1) == generate(greedy=True)
    before = np.random.get_state()[1].copy()
    generate()
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_joined_pieces_are_the_text(lm):
    for options in ({}, {"greedy": True}, {"top_p": 0.5, "seed": 3}):
        pieces = list(lm.stream("to be", **OPTIONS | options))
        assert len(pieces) == 20
        assert "".join(pieces) == lm.generate("to be", strip_prompt=True, **OPTIONS | options)


def test_stop_tokens_end_the_text(lm):
    text = lm.generate("to be", strip_prompt=True, **OPTIONS)
    stop = text[7]
    ids = lm.preprocess(stop)
    assert lm.generate("to be", strip_prompt=True, stop_token_ids=ids, **OPTIONS) == text[: text.index(stop)]
    both = lm.generate(["to be", "t"], stop_token_ids=ids, **OPTIONS)
    assert both == [lm.generate(p, seed=i, stop_token_ids=ids, **OPTIONS) for i, p in enumerate(["to be", "t"])]


def test_settings_are_the_argument_the_presets_or_the_defaults(lm, tmp_path, monkeypatch):
    assert zoo.CausalLM.DEFAULTS["max_new_tokens"] == 400 and zoo.CausalLM.DEFAULTS["temperature"] == 0.8
    monkeypatch.setitem(zoo.CausalLM.DEFAULTS, "max_new_tokens", 30)
    assert lm.generate("to be") == lm.generate("to be", max_new_tokens=30, temperature=0.8, seed=0)
    task = zoo.CausalLM(lm.model, lm.tokenizer, generation_config={"max_new_tokens": 12, "temperature": 0.0})
    task = zoo.CausalLM.from_preset(task.save_to_preset(tmp_path / "p"))
    assert task.generation_config == {"max_new_tokens": 12, "temperature": 0.0}
    assert task.generate("to be") == lm.generate("to be", max_new_tokens=12, greedy=True)
    assert task.generate("to be", max_new_tokens=3, temperature=1.0) == lm.generate(
        "to be", max_new_tokens=3, temperature=1.0
    )


def test_new_weights_are_used_and_the_model_stays_as_it_is(lm):
    task = zoo.CausalLM(rnn_language_model(**{"cell": "gru", "vocabulary_size": 15, "units": 8}), lm.tokenizer)
    before = task.generate("to be", **OPTIONS)
    rng = np.random.default_rng(1)
    task.model.set_weights([rng.normal(0, 1, weight.shape) for weight in task.model.get_weights()])
    assert task.generate("to be", **OPTIONS) != before
    assert not any("call" in vars(layer) or "inner_loop" in vars(layer) for layer in task.model.layers)


def test_several_threads(lm):
    expected, found = [lm.generate("to be", seed=seed, **OPTIONS) for seed in range(3)], [None] * 3

    def generate(seed):
        found[seed] = lm.generate("to be", seed=seed, **OPTIONS)

    threads = [threading.Thread(target=generate, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_top_next_tokens(lm):
    tokens = lm.top_next_tokens("to be", 15)
    assert [token for token, _ in tokens[:1]] == [lm.generate("to be", max_new_tokens=1, greedy=True)[-1]]
    assert sum(p for _, p in tokens) == pytest.approx(1) and sorted(tokens, key=lambda t: -t[1]) == tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": "Zebra"}, "The text has 'Z', "),
        ({"prompt": 3}, "CausalLM takes one item or a list of them, got 3"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"top_k": 0, "greedy": True}, "top_k must be at least 1"),
        ({"stop_token_ids": [15]}, "stop_token_ids must be ids from 0 to 14, got 15"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_use(lm, options, message):
    with pytest.raises(UserError, match=message):
        lm.generate(**{"prompt": "to be"} | options)


def test_wrong_presets_and_models(lm, tmp_path):
    with pytest.raises(UserError, match="load it with zoo.Translator.from_preset"):
        zoo.CausalLM.from_preset("transformer_multi30k_de_en")
    assert {"gru_shakespeare", "lstm_shakespeare"} <= set(zoo.CausalLM.presets)
    with pytest.raises(UserError, match="belongs to another model"):
        zoo.CausalLM(lm.model, train_tokenizer("abc", "char"))
    with pytest.raises(UserError, match="is not a recurrent language model"):
        zoo.CausalLM(zoo.create_model("cnn"), lm.tokenizer)
    with pytest.raises(UserError, match="stream takes one prompt"):
        lm.stream(["to be"])


def test_the_published_text():
    """The beginning of what `zoo complete` wrote before this class, on every backend."""
    task = zoo.CausalLM.from_preset("gru_shakespeare")
    text = task.generate("ROMEO:", max_new_tokens=40, greedy=True)
    assert text == GREEDY
    assert "".join(task.stream("ROMEO:", max_new_tokens=40, greedy=True)) == GREEDY[6:]
