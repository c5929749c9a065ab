"""Recipes that start from a file and train a part of it: what they leave behind, resuming, devices, and mistakes."""

import importlib
import json

import keras
import numpy as np
import pytest

import zoo
from recipes import cnn_mnist, rnn_shakespeare, transformer_multi30k
from tests.conftest import interrupted_in_second_epoch, write_verses
from tests.recipes.test_diffusion_recipe import FLAGS as DIFFUSION
from tests.recipes.test_diffusion_recipe import make_small
from tests.recipes.test_translation_recipe import write_pairs
from zoo.errors import UserError
from zoo.io import files, model_files
from zoo.models.cnn import cnn
from zoo.models.rnn_language_model import rnn_language_model
from zoo.models.transformer import transformer
from zoo.tokenizers.shared_bpe import SharedBPETokenizer
from zoo.tokenizers.text import train_tokenizer
from zoo.training.initial_weights import set_initial_weights

RNN = "--sequence-length 16 --batch-size 8 --epochs 2 --new-head --freeze lstm_0 --freeze embedding".split()


def write_language_model(folder):
    """A preset of a language model of few characters, with the initial weights of another seed."""
    tokenizer = train_tokenizer("The king and queen sleep.\n", "char")
    model = rnn_language_model(
        cell="lstm", vocabulary_size=tokenizer.get_vocab_size(), units=16, embedding_dim=8, name="old"
    )
    set_initial_weights(model, seed=7, initializer="recurrent")
    return zoo.CausalLM(model, tokenizer).save_to_preset(folder)


def write_translator(folder):
    """A preset of a transformer whose tokenizer has learned other pieces."""
    tokenizer = SharedBPETokenizer.train(["one two one two", "seven eight"] * 9, vocabulary_size=275)
    sizes = {"num_layers": 1, "hidden_dim": 32, "intermediate_dim": 32, "num_heads": 2}
    model = transformer(vocabulary_size=tokenizer.vocabulary_size, **sizes, pad_id=tokenizer.pad_id, name="old")
    set_initial_weights(model, seed=7, initializer="transformer")
    languages = {"source_lang": "de", "target_lang": "en"}
    return zoo.Translator(model, tokenizer).save_to_preset(folder, card=languages)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_verses(tmp_path_factory.mktemp("text") / "verses.txt", words=1300, characters=6000)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("presets") / "language_model")


def fine_tune(text, language_model, output, *more):
    flags = [*RNN, "--init-from", str(language_model), "--text", str(text), "--output", str(output), *more]
    return rnn_shakespeare.main(rnn_shakespeare.parse_args(flags))


def weights(folder, name="model.keras"):
    model = model_files.load_model(folder / name)
    return {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights}


@pytest.fixture(scope="module")
def finished(text, language_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, fine_tune(text, language_model, folder)


@pytest.mark.heavy
def test_what_a_run_says_of_its_beginning(finished, text, language_model):
    folder, metrics = finished
    tokenizer = zoo.CausalLM.from_preset(folder).tokenizer
    old, new = set("The king and queen sleep.\n"), set(text.read_text())
    assert set(tokenizer.get_vocab()) == new and len(new - old) > 3
    shared = f"{len(old & new)} of {len(new)}"
    assert metrics["init_weights"] == {"taken": 6, "in_part": {"embedding": shared, "logits": shared}, "new": []}
    assert metrics["init_from"] == str(language_model)
    names = ("model.keras", "tokenizer.json")
    assert metrics["init_sha256"] == {name: files.sha256(language_model / name) for name in names}
    trained = 4 * ((16 + 16) * 16 + 16) + (16 + 1) * len(new)  # the second LSTM and the logits, by formula
    assert metrics["trained_parameters"] == trained
    assert metrics["trained_parameters"] + metrics["frozen_parameters"] == metrics["parameters"]
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    before, after = weights(language_model), weights(folder)
    for path in after:
        if path.startswith("lstm"):
            assert np.array_equal(before[path], after[path]) == path.startswith("lstm_0")
    model = model_files.load_model(folder / "model.keras")
    assert len(model.trainable_variables) == len(model.weights)


@pytest.mark.heavy
def test_interrupted_and_resumed_is_bit_for_bit_the_uninterrupted_run(finished, text, language_model, tmp_path):
    with interrupted_in_second_epoch():
        fine_tune(text, language_model, tmp_path)
    with pytest.raises(UserError, match="was written by a run with freeze="):
        fine_tune(text, language_model, tmp_path, "--resume", "--freeze", "lstm_1")
    other = write_language_model(tmp_path / "other")
    task = zoo.CausalLM.from_preset(other)
    task.model.set_weights([value + 1 for value in task.model.get_weights()])
    task.save_to_preset(other)
    with pytest.raises(UserError, match="was written by a run with init_sha256="):
        fine_tune(text, other, tmp_path, "--resume")
    metrics = fine_tune(text, language_model, tmp_path, "--resume")
    one, again = weights(finished[0]), weights(tmp_path)
    for path in one:
        np.testing.assert_array_equal(one[path], again[path])
    keys = ("init_weights", "init_sha256", "trained_parameters", "validation_loss")
    assert all(metrics[key] == finished[1][key] for key in keys)


@pytest.mark.heavy
@pytest.mark.slow("jax")  # which compiles for half a minute
def test_two_devices_take_the_steps_of_one(finished, text, language_model, tmp_path, run):
    flags = [*RNN, "--init-from", language_model, "--text", text, "--parity", "--epochs", "1"]
    one = rnn_shakespeare.main(rnn_shakespeare.parse_args([*map(str, flags), "--output", str(tmp_path / "one")]))
    ended = run(["recipes/rnn_shakespeare.py", *flags, "--devices", "cpu:2", "--output", tmp_path / "two"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    np.testing.assert_allclose(two["first_losses"], one["first_losses"], atol=1e-4, rtol=0)
    assert two["trained_parameters"] == one["trained_parameters"]
    for path, value in weights(tmp_path / "two").items():
        if path.startswith("lstm_0"):
            np.testing.assert_array_equal(value, weights(language_model)[path])


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")  # trained there by test_same_losses.py
def test_the_encoder_of_another_translation(tmp_path):
    old = write_translator(tmp_path / "old")
    flags = ["--pairs", str(write_pairs(tmp_path / "toy.tsv")), "--limit", "60", "--epochs", "1", "--target-lang", "fr"]
    flags += [
        "--init-from",
        str(old),
        "--init-encoder-only",
        "--train-only",
        "decoder",
        "--output",
        str(tmp_path / "new"),
    ]
    metrics = transformer_multi30k.main(transformer_multi30k.parse_args(flags))
    before, after = weights(old), weights(tmp_path / "new")
    assert before.keys() == after.keys()  # the sizes are those of the file, and so is the tokenizer
    for path in after:
        assert np.array_equal(before[path], after[path]) == (not path.startswith("decoder")), path
    assert {name.partition("_")[0] for name in metrics["init_weights"]["new"]} == {"decoder"}
    assert metrics["trained_parameters"] == sum(after[path].size for path in after if path.startswith("decoder"))
    assert zoo.Translator.from_preset(tmp_path / "new").card["init_from"] == str(old)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_images_of_other_classes(tmp_path):
    classifier = cnn(num_classes=3, name="old")
    set_initial_weights(classifier, seed=7, initializer="he")
    model_files.save_model(classifier, tmp_path / "old.keras")
    flags = ["--dataset", "digits", "--limit", "32", "--epochs", "1", "--init-from", str(tmp_path / "old.keras")]
    flags += ["--freeze", "conv", "--freeze", "dense1", "--output", str(tmp_path / "new")]
    with pytest.raises(UserError, match="does not fit, since it has 3 classes and this data 10: add --new-head"):
        cnn_mnist.main(cnn_mnist.parse_args(flags))
    metrics = cnn_mnist.main(cnn_mnist.parse_args([*flags, "--new-head", "--overwrite"]))
    assert metrics["init_weights"] == {"taken": 8, "in_part": {}, "new": ["logits"]}
    assert metrics["trained_parameters"] == 513 * 10
    before, after = weights(tmp_path, "old.keras"), weights(tmp_path / "new")
    for path in after:
        assert path.startswith("logits") or np.array_equal(before[path], after[path])


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_parts_of_a_latent_diffusion(tmp_path, monkeypatch):
    """Each part starts from its own files of another run, and the average of a frozen weight is the weight."""
    make_small(monkeypatch)
    recipe = importlib.import_module("recipes.diffusion_captions")
    for stage in recipe.RECIPES:
        if stage != "evaluation":
            flags = [*DIFFUSION, "--output", str(tmp_path / "old"), "--stage", stage, "--epochs", "1"]
            recipe.main(recipe.parse_args(flags))
    taken = {}
    for stage, module in recipe.RECIPES.items():
        if stage == "evaluation":
            continue
        flags = [*DIFFUSION, "--epochs", "1", "--output", str(tmp_path / "new"), "--init-from", str(tmp_path / "old")]
        flags += {"denoiser": ["--freeze", "^down_"], "autoencoder": ["--train-only", "decoder"]}.get(stage, [])
        taken[stage] = module.main(module.parse_args(flags))
        assert taken[stage]["init_weights"]["in_part"] == {} and taken[stage]["init_weights"]["new"] == []
    for name in ("classifier", "encoder", "decoder", "text_encoder", "denoiser"):
        before, after = (weights(tmp_path / folder, f"{name}.keras") for folder in ("old", "new"))
        same = {path for path in after if np.array_equal(before[path], after[path])}
        expected = {"encoder": set(after), "denoiser": {path for path in after if path.startswith("down_")}}
        assert same >= expected.get(name, set()) and (name == "encoder" or len(same) < len(after)), name
    assert set(taken["autoencoder"]["init_sha256"]) == {"encoder.keras", "decoder.keras"}
    assert set(taken["text-encoder"]["init_sha256"]) == {"text_encoder.keras", "tokenizer.json"}


@pytest.mark.once
def test_mistakes(text, language_model, tmp_path):
    """Each is one sentence, and is told before anything is trained."""

    def refused(recipe, flags, words):
        with pytest.raises(UserError, match=words) as caught:
            recipe.main(recipe.parse_args([*flags, "--output", str(tmp_path / "out")]))
        assert "\n" not in str(caught.value) and not (tmp_path / "out" / "history.csv").exists()

    base = ["--text", str(text), "--sequence-length", "16", "--batch-size", "8", "--epochs", "1"]
    flags = [*base, "--init-from", str(language_model)]
    refused(
        rnn_shakespeare, flags, "The text has .*, for which .*language_model has no token: add --new-head for a voc"
    )
    refused(rnn_shakespeare, [*flags, "--units", "9"], "--units 9 does not fit .*, which has 16: leave the flag out")
    refused(rnn_shakespeare, [*flags, "--tokenizer", "bpe"], "--tokenizer bpe does not fit .* or add --new-head")
    refused(rnn_shakespeare, [*flags, "--new-head", "--freeze", "gru"], "--freeze gru is found in no weight")
    refused(rnn_shakespeare, [*flags, "--new-head", "--freeze", "l|e"], "--freeze l|e leaves nothing to train")
    refused(rnn_shakespeare, [*base, "--init-from", "cnn_mnist"], "cnn_mnist is a model for image-classification, this")
    refused(rnn_shakespeare, [*base, "--init-from", "no_such"], "There is no model 'no_such'")
    digits = ["--dataset", "digits", "--limit", "16", "--epochs", "1"]
    refused(
        cnn_mnist, [*digits, "--init-from", "cnn_gtsrb"], "The head of cnn_gtsrb does not fit, since it has no entry"
    )
    model_files.save_model(rnn_language_model(cell="gru", vocabulary_size=4, units=4), tmp_path / "text.keras")
    refused(cnn_mnist, [*digits, "--init-from", str(tmp_path / "text.keras")], "text.keras is another kind of model")
    refused(cnn_mnist, [*digits, "--new-head"], "--new-head belongs to --init-from")
    refused(cnn_mnist, [*digits, "--freeze", "["], r"--freeze \[ is not a regular expression")
    (tmp_path / "damaged.keras").write_bytes(b"PK\3\4 cut short")
    refused(cnn_mnist, [*digits, "--init-from", str(tmp_path / "damaged.keras")], "is not a whole .keras file")
