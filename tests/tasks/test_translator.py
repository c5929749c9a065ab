"""Translator: one sentence, lists, seeds, streams, settings, on a small model with random weights; published ones."""

import threading

import numpy as np
import pytest

import zoo
from zoo import cli, lora
from zoo.errors import UserError
from zoo.models.transformer import transformer
from zoo.tokenizers.shared_bpe import SharedBPETokenizer

TEXTS = ["ein Mann", "zwei Hunde laufen im Park", "", "der", "ein Mann und zwei Hunde im Park", "   "]


@pytest.fixture(scope="module")
def translator():
    tokenizer = SharedBPETokenizer.train([text for text in TEXTS if text.strip()], vocabulary_size=280)
    sizes = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16, "num_heads": 2}
    model = transformer(vocabulary_size=280, pad_id=tokenizer.pad_id, logits_bias=True, **sizes)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(weight.name == "gamma", 0.5, weight.shape) for weight in model.weights])
    bias = np.where(np.arange(280) == tokenizer.end_id, 4.0, 0.0)[None]
    model.get_layer("logits_bias").set_weights([bias])
    return zoo.Translator(model, tokenizer)


@pytest.mark.slow("tensorflow", "jax")
@pytest.mark.parametrize(
    "options",
    [{"max_length": 6}, {"temperature": 1.0}, {}, {"num_beams": 1}, {"num_beams": 2, "length_penalty": 0.2}],
    ids=str,
)
def test_a_list_is_its_items_one_by_one(translator, options):
    sampled = "temperature" in options
    alone = [
        translator.translate(text, **options | ({"seed": 3 + i} if sampled else {})) for i, text in enumerate(TEXTS)
    ]
    for batch_size in (2, 64):
        assert translator.translate(TEXTS, seed=3, batch_size=batch_size, **options) == alone
    assert alone[2] == alone[5] == "" and len({*alone}) > 3
    assert translator.translate([], **options) == [] and translator.translate(TEXTS[:1], seed=3, **options) == alone[:1]


@pytest.mark.slow("tensorflow", "jax")
def test_seeds_and_greedy(translator):
    def translate(**options):
        return translator.translate(TEXTS[4], max_length=12, **options)

    assert translate(temperature=2.0) == translate(temperature=2.0, seed=0) != translate(temperature=2.0, seed=1)
    assert translate(temperature=2.0, seed=None) != translate(temperature=2.0, seed=None)
    assert translate(num_beams=1) == translate(greedy=True) == translate(temperature=0) == translate(top_k=1, seed=4)
    assert translate() == translate(seed=5)


@pytest.mark.slow("tensorflow", "jax")
def test_lora_of_a_preset(translator, tmp_path, capsys):
    """Added at load it gives what the adapter gives that is kept apart, in the class and in the command."""
    preset, file, texts = translator.save_to_preset(tmp_path / "preset"), tmp_path / "a.safetensors", TEXTS[:2]
    adapted, rng = zoo.Translator.from_preset(preset), np.random.default_rng(1)
    before = adapted.translate(texts)
    lora.add_lora(adapted.model, rank=2, alpha=4)
    for variable in adapted.model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    lora.save_lora(adapted.model, file)
    expected = adapted.translate(texts)
    assert expected != before
    assert zoo.Translator.from_preset(preset, lora=file).translate(texts) == expected
    assert zoo.Translator.from_preset(preset, lora=[(file, 0.25), (file, 0.75)]).translate(texts) == expected
    assert zoo.Translator.from_preset(preset, lora=(file, 0.0)).translate(texts) == before
    assert cli.run(["translate", str(preset), *texts, "--lora", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    with pytest.raises(UserError, match="transformer has LoRA layers, .*merge_lora"):
        adapted.save_to_preset(tmp_path / "other")
    with pytest.raises(UserError, match="There is no file at .*b.safetensors: .*Did you mean 'a.safetensors'"):
        zoo.Translator.from_preset(preset, lora=tmp_path / "b.safetensors")


@pytest.mark.slow("tensorflow", "jax")
def test_joined_pieces_are_the_translation(translator):
    for options in ({}, {"greedy": True}, {"top_p": 0.9, "seed": 3}):
        assert "".join(translator.stream(TEXTS[0], **options)) == translator.translate(TEXTS[0], **options)


@pytest.mark.slow("tensorflow", "jax")
def test_settings_are_the_argument_the_presets_or_the_defaults(translator, tmp_path):
    assert zoo.Translator.DEFAULTS["num_beams"] == 5 and zoo.Translator.DEFAULTS["length_penalty"] == 1.0
    length = 2 * len(translator.preprocess(TEXTS[1])) + 20
    default = translator.translate(TEXTS[1])
    assert default == translator.translate(TEXTS[1], num_beams=5, length_penalty=1.0, max_length=length)
    best = max(translator.translate(text).split()[0] for text in TEXTS if text.strip())
    banned = translator.tokenizer.encode(best)[0]
    config = {"num_beams": 2, "max_length": 7, "suppress_tokens": [0, 1, banned], "forced_eos_token_id": None}
    task = zoo.Translator(translator.model, translator.tokenizer, generation_config=config)
    task = zoo.Translator.from_preset(task.save_to_preset(tmp_path / "p"))
    assert task.generation_config == config
    assert task.translate(TEXTS) == task.translate(TEXTS, num_beams=2, max_length=7)
    assert task.translate(TEXTS) != translator.translate(TEXTS, num_beams=2, max_length=7)
    assert task.translate(TEXTS, max_length=4) != task.translate(TEXTS)


@pytest.mark.slow("tensorflow", "jax")
def test_new_weights_are_used(translator):
    task = zoo.Translator(translator.model, translator.tokenizer)
    weights = [np.array(weight) for weight in task.model.get_weights()]
    before = task.translate(TEXTS[1])
    task.model.set_weights([-weight for weight in weights])
    assert task.translate(TEXTS[1]) != before
    task.model.set_weights(weights)
    assert task.translate(TEXTS[1]) == before


def test_several_threads(translator):
    expected, found = [translator.translate(text) for text in TEXTS], [None] * len(TEXTS)

    def translate(row):
        found[row] = translator.translate(TEXTS[row])

    threads = [threading.Thread(target=translate, args=(row,)) for row in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_cross_attention_weights(translator):
    weights, source, target = translator.cross_attention_weights(TEXTS[0], "zwei Hunde")
    assert list(weights) == ["decoder_0_cross_attention"]
    (weights,) = weights.values()
    assert weights.shape == (2, len(target), len(source))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert "".join(source).strip() == "ein Mann</s>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": 3}, "Translator takes one item or a list of them, got 3"),
        ({"text": ["a", None]}, "got None in the list"),
        ({"num_beams": 0}, "num_beams must be from 1 to"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_beams": 3, "temperature": 0.5}, "got num_beams=3 too: leave it out"),
        ({"num_beams": 3, "greedy": True}, "got num_beams=3 too: leave it out"),
        ({"temperature": -0.5}, "temperature must be above 0"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_use(translator, options, message):
    with pytest.raises(UserError, match=message):
        translator.translate(**{"text": TEXTS[0]} | options)


def test_wrong_presets(translator):
    with pytest.raises(UserError, match="load it with zoo.CausalLM.from_preset"):
        zoo.Translator.from_preset("lstm_shakespeare")
    assert {"transformer_multi30k_de_en", "transformer_multi30k_en_de"} <= set(zoo.Translator.presets)
    with pytest.raises(UserError, match="stream takes one sentence"):
        translator.stream(TEXTS)


def test_the_published_translations():
    """What `zoo translate` wrote before this class, on every backend."""
    task, texts = (
        zoo.Translator.from_preset("transformer_multi30k_de_en"),
        ["Ein Hund läuft.", "Zwei Männer spielen Fußball im Park."],
    )
    expected = ["A dog is running.", "Two men are playing soccer in the park."]
    assert task.translate(texts) == expected == [task.translate(text) for text in texts]
