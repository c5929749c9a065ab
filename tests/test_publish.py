"""Publishing a run: what is written, what the card says, and what is said to a run that is not whole."""

import json

import keras
import numpy as np
import pytest

from recipes import publish
from zoo.errors import UserError
from zoo.generation import recurrent as writing
from zoo.io import files
from zoo.models.rnn_language_model import rnn_language_model
from zoo.models.transformer import transformer
from zoo.parity import records as golden
from zoo.tasks.translator import load_translator
from zoo.tokenizers import text as tokenizers
from zoo.tokenizers.shared_bpe import JointTokenizer

pytestmark = pytest.mark.once

COMMAND = "KERAS_BACKEND=jax python recipes/any.py --data-dir 'a folder --resume' --resume --epochs 7"


def write_metrics(folder, **changes):
    """metrics.json of a finished run, as far as `changes` leave it right; None leaves a key out."""
    measured = changes.pop("measured", "test_accuracy")
    metrics = dict.fromkeys(publish.CARDS[measured], 1) | {"command": COMMAND, "first_losses": [1.0]}
    metrics["model_sha256"] = files.sha256(folder / "model.keras")
    if measured != "test_accuracy":
        metrics["tokenizer_sha256"] = files.sha256(folder / "model.tokenizer.json")
    metrics = {key: value for key, value in (metrics | changes).items() if value is not None}
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def image_run(tmp_path):
    folder = tmp_path / "image_run"
    folder.mkdir()
    image = keras.Input((6, 6, 1), name="image")
    logits = keras.layers.Dense(3, name="logits")(keras.layers.Flatten(name="flat")(image))
    files.save_model(keras.Model(image, logits, name="tiny"), folder / "model.keras")
    write_metrics(folder, class_names=["a", "b", "c"])
    return folder


@pytest.fixture
def language_run(tmp_path):
    """A run on a text without capitals and most marks."""
    folder = tmp_path / "language_run"
    folder.mkdir()
    tokenizer = tokenizers.train_tokenizer("the quick brown fox jumps over a lazy dog,\n", "char")
    model = rnn_language_model(cell="gru", vocabulary_size=tokenizer.get_vocab_size(), embedding_dim=4, units=5)
    files.save_model(model, folder / "model.keras")
    tokenizers.save_tokenizer(tokenizer, folder / "model.tokenizer.json")
    write_metrics(folder, measured="test_bits_per_character", cell="gru")
    return folder


@pytest.fixture
def translation_run(tmp_path):
    folder = tmp_path / "translation_run"
    folder.mkdir()
    tokenizer = JointTokenizer.train(list(publish.SENTENCES.values()), vocabulary_size=300)
    model = transformer(
        vocabulary_size=tokenizer.vocabulary_size,
        num_layers=1,
        width=8,
        inner=8,
        num_heads=2,
        pad_id=tokenizer.pad_id,
        name="tiny_translator",
    )
    files.save_model(model, folder / "model.keras")
    tokenizer.save(folder / "model.tokenizer.json")
    write_metrics(folder, measured="test_bleu_beam_5", source="de", target="en")
    return folder


def publish_run(folder, target):
    publish.main(publish.parse_args([str(folder), str(target), "--input", "numbers", "--data-licence", "none"]))
    return files.read_card(target)


@pytest.mark.parametrize("kind", ["image_run", "language_run", "translation_run"])
def test_the_card_describes_the_files_and_the_record_is_of_the_same(kind, request, tmp_path):
    target = tmp_path / "saved" / "published.keras"
    card = publish_run(request.getfixturevalue(kind), target)
    assert card["name"] == "published" and card["bytes"] == target.stat().st_size
    assert card["input"] == "numbers" and card["data_licence"] == "none"
    assert "first_losses" not in card and "model_sha256" not in card
    record = golden.Record.load(golden.golden_path(target))
    assert record.about["sha256"] == card["sha256"] == files.sha256(target)
    assert files.load_model(target).count_params() > 0  # checked against its card
    made = {path.name for path in target.parent.iterdir()}
    tokenizer = set() if kind == "image_run" else {"published.tokenizer.json"}
    assert made == {"published.keras", "published.json", "published.golden.npz"} | tokenizer


def test_an_image_card_names_the_classes(image_run, tmp_path):
    card = publish_run(image_run, tmp_path / "p.keras")
    assert card["class_names"] == ["a", "b", "c"] and "tokenizer_sha256" not in card


def test_a_language_model_is_published_with_its_tokenizer(language_run, tmp_path):
    target = tmp_path / "p.keras"
    card = publish_run(language_run, target)
    assert card["cell"] == "gru" and "class_names" not in card
    assert card["tokenizer_sha256"] == files.sha256(tmp_path / "p.tokenizer.json")
    model, tokenizer = writing.load_with_tokenizer(target)
    (ids,) = golden.Record.load(golden.golden_path(target)).inputs
    known = "".join(character for character in publish.TEXT if character in tokenizer.get_vocab())
    assert ids.dtype == np.int32 and ids.shape == (1, len(known)) and len(known) > 100
    assert tokenizer.decode(ids[0]) == known and ids.max() < model.output_shape[-1]


def test_a_translation_model_is_published_with_its_tokenizer(translation_run, tmp_path):
    card = publish_run(translation_run, tmp_path / "p.keras")
    assert card["tokenizer_sha256"] == files.sha256(tmp_path / "p.tokenizer.json") and card["source"] == "de"
    tokenizer = load_translator(tmp_path / "p.keras").tokenizer
    source, target = golden.Record.load(golden.golden_path(tmp_path / "p.keras")).inputs
    assert source.dtype == target.dtype == np.int32
    assert tokenizer.decode(source[0]) == publish.SENTENCES["de"]
    assert target[0, 0] == tokenizer.start_id and tokenizer.decode(target[0, 1:]) == publish.SENTENCES["en"]


def test_a_tokenizer_that_knows_nothing_of_the_golden_text(tmp_path):
    """Its model's record is of synthetic ids."""
    tokenizers.save_tokenizer(tokenizers.train_tokenizer("\u03b1\u03b2\u03b3", "char"), tmp_path / "m.tokenizer.json")
    assert publish.golden_inputs(tmp_path / "m.keras") is None


def test_the_command_is_the_one_from_scratch(image_run, tmp_path):
    """The flag goes, the folder that is called like it stays."""
    card = publish_run(image_run, tmp_path / "p.keras")
    assert card["command"] == COMMAND.replace(" --resume --epochs", " --epochs")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"test_loss": None}, "metrics.json lacks test_loss: run the recipe again"),
        (
            {"test_bits_per_character": None},
            "metrics.json holds 0 of test_accuracy, test_bits_per_character, test_bleu",
        ),
        ({"test_accuracy": 1}, "metrics.json holds 2 of test_accuracy, test_bits_per_character"),
        ({"model_sha256": "0"}, "model.keras is missing or not the file its metrics.json describes"),
        ({"tokenizer_sha256": "0"}, "model.tokenizer.json is missing or not the file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_that_is_not_whole_leaves_nothing(language_run, tmp_path, changes, words):
    write_metrics(language_run, measured="test_bits_per_character", **changes)
    with pytest.raises(UserError, match=words):
        publish_run(language_run, tmp_path / "saved" / "p.keras")
    assert not (tmp_path / "saved").exists()


def test_other_mistakes(language_run, tmp_path):
    with pytest.raises(UserError, match="holds no metrics.json: give the folder of a finished run"):
        publish_run(tmp_path, tmp_path / "p.keras")
    with pytest.raises(UserError, match="The file to write is .*p.h5: give it a name that ends with .keras"):
        publish_run(language_run, tmp_path / "p.h5")
    (language_run / "model.tokenizer.json").unlink()
    with pytest.raises(UserError, match="model.tokenizer.json is missing"):
        publish_run(language_run, tmp_path / "p.keras")
