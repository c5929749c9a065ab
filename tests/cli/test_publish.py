"""Publishing a run: what is written, what the card says, and what is said to a run that is not whole."""

import importlib
import json
import shutil
import sys

import huggingface_hub
import keras
import numpy as np
import pytest

import zoo
from zoo import cli
from zoo.cli import publish
from zoo.cli.model_card import license_fields
from zoo.errors import UserError
from zoo.io import cards, files, model_files
from zoo.models.rnn_language_model import rnn_language_model
from zoo.models.transformer import transformer
from zoo.parity.records import ParityRecord
from zoo.tokenizers.shared_bpe import SharedBPETokenizer
from zoo.tokenizers.text import save_tokenizer, train_tokenizer
from zoo.training import flags

pytestmark = pytest.mark.once

COMMAND = "KERAS_BACKEND=jax python recipes/any.py --data-dir 'a folder --resume' --resume --epochs 7 --output out"


def write_metrics(folder, score="test_accuracy", **changes):
    """metrics.json of a finished run, as far as `changes` leave it right; None leaves a key out."""
    metrics = dict.fromkeys(publish.CARD_KEYS[score], 1) | {"command": COMMAND, "first_losses": [1.0], "versions": {}}
    metrics |= changes
    metrics = {key: value for key, value in metrics.items() if value is not None}
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def image_run(tmp_path):
    image = keras.Input((6, 6, 1), name="image")
    logits = keras.layers.Dense(3, name="logits")(keras.layers.Flatten(name="flat")(image))
    task = zoo.ImageClassifier(keras.Model(image, logits, name="tiny"), class_names=("a", "b", "c"))
    folder = task.save_to_preset(tmp_path / "image_run")
    write_metrics(folder, class_names=["a", "b", "c"])
    return folder


@pytest.fixture
def language_run(tmp_path):
    """A run on a text without capitals and most marks."""
    tokenizer = train_tokenizer("the quick brown fox jumps over a lazy dog,\n", "char")
    model = rnn_language_model(cell="gru", vocabulary_size=tokenizer.get_vocab_size(), embedding_dim=4, units=5)
    folder = zoo.CausalLM(model, tokenizer).save_to_preset(tmp_path / "language_run")
    write_metrics(folder, "test_bits_per_character", cell="gru")
    return folder


@pytest.fixture
def translation_run(tmp_path):
    tokenizer = SharedBPETokenizer.train(list(publish.SENTENCES.values()), vocabulary_size=300)
    model = transformer(
        vocabulary_size=tokenizer.vocabulary_size,
        num_layers=1,
        hidden_dim=8,
        intermediate_dim=8,
        num_heads=2,
        pad_id=tokenizer.pad_id,
        name="tiny_translator",
    )
    folder = zoo.Translator(model, tokenizer).save_to_preset(tmp_path / "translation_run")
    write_metrics(folder, "test_bleu_beam_5", source_lang="de", target_lang="en")
    return folder


def publish_run(folder, target, *more):
    flags = ["--input", "numbers", "--license", "MIT", "--data-license", "none"]
    assert cli.run(["publish", str(folder), "--output", str(target), *flags, *more]) == 0
    return cards.read_card(target)


def readme(folder):
    """(the metadata of README.md as the Hub's own library reads them, the text below)."""
    card = huggingface_hub.ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    return card.data.to_dict(), card.text


@pytest.mark.parametrize("kind", ["image_run", "language_run", "translation_run"])
def test_the_card_describes_the_files_and_the_record_is_of_the_same(kind, request, tmp_path):
    folder = tmp_path / "saved" / "published"
    target = folder / "model.keras"
    card = publish_run(request.getfixturevalue(kind), folder)
    assert card["name"] == "published" and card["files"]["model.keras"]["bytes"] == target.stat().st_size
    assert card["input"] == "numbers" and card["data_license"] == "none"
    assert "first_losses" not in card
    record = ParityRecord.load(folder / "parity.npz")
    assert record.metadata["sha256"] == card["files"]["model.keras"]["sha256"] == files.sha256(target)
    assert model_files.load_model(target).count_params() > 0  # checked against its card
    tokenizer = set() if kind == "image_run" else {"tokenizer.json"}
    made = {"model.keras", "card.json", "parity.npz", "README.md"}
    assert {path.name for path in folder.iterdir()} == made | tokenizer
    assert card["license"] == "MIT" and card["data_sha256"] == card["seed"] == 1
    assert zoo.load_task(folder).card["task"] == card["task"]


def test_an_image_card_names_the_classes(image_run, tmp_path):
    card = publish_run(image_run, tmp_path / "p")
    assert card["class_names"] == ["a", "b", "c"] and "tokenizer.json" not in card["files"]


@pytest.mark.parametrize(
    "kind, takes",
    [
        ("image_run", "grey images (N, 6, 6, 1), 0..255, uint8 or float"),
        ("language_run", "token ids (N, T), int32, as tokenizer.json numbers them"),
        ("translation_run", "[source ids (N, S), target ids (N, T) after the start token], int32, as tokenizer.json"),
    ],
)
def test_what_a_model_takes_need_not_be_said(kind, takes, request, tmp_path):
    options = ["--output", str(tmp_path / "p"), "--license", "MIT", "--data-license", "none"]
    cli.run(["publish", str(request.getfixturevalue(kind)), *options])
    assert cards.read_card(tmp_path / "p")["input"].startswith(takes)


@pytest.mark.parametrize(
    "name", ["cnn_mnist", "cnn_gtsrb", "cnn_image_folder", "rnn_shakespeare", "transformer_multi30k"]
)
def test_every_recipe_has_the_flags_of_its_card(name):
    score = {"cnn": "test_accuracy", "rnn": "test_bits_per_character", "transformer": "test_bleu_beam_5"}
    args = importlib.import_module(f"recipes.{name}").parse_args([])
    of_card = (set(publish.CARD_KEYS[score[name.partition("_")[0]]]) - set(publish.OPTIONAL_KEYS)) & set(flags.FLAGS)
    assert len(of_card) > 5 and of_card - {"dataset"} <= set(flags.settings(args))


def test_flags_that_a_recipe_lacks_are_left_out(image_run, tmp_path):
    write_metrics(image_run, class_names=["a", "b", "c"], random_erasing=None, label_smoothing=0.1)
    card = publish_run(image_run, tmp_path / "p")
    assert "random_erasing" not in card and card["label_smoothing"] == 0.1


def test_a_language_model_is_published_with_its_tokenizer(language_run, tmp_path):
    card = publish_run(language_run, tmp_path / "p")
    assert card["cell"] == "gru" and "class_names" not in card
    assert card["files"]["tokenizer.json"]["sha256"] == files.sha256(tmp_path / "p" / "tokenizer.json")
    task = zoo.CausalLM.from_preset(tmp_path / "p")
    (ids,) = ParityRecord.load(tmp_path / "p" / "parity.npz").inputs
    known = "".join(character for character in publish.TEXT if character in task.tokenizer.get_vocab())
    assert ids.dtype == np.int32 and ids.shape == (1, len(known)) and len(known) > 100
    assert task.tokenizer.decode(ids[0]) == known and ids.max() < task.model.output_shape[-1]


def test_a_translation_model_is_published_with_its_tokenizer(translation_run, tmp_path):
    card = publish_run(translation_run, tmp_path / "p")
    assert card["files"]["tokenizer.json"]["sha256"] == files.sha256(tmp_path / "p" / "tokenizer.json")
    assert card["source_lang"] == "de"
    tokenizer = zoo.Translator.from_preset(tmp_path / "p").tokenizer
    source, target = ParityRecord.load(tmp_path / "p" / "parity.npz").inputs
    assert source.dtype == target.dtype == np.int32
    assert tokenizer.decode(source[0]) == publish.SENTENCES["de"]
    assert target[0, 0] == tokenizer.start_id and tokenizer.decode(target[0, 1:]) == publish.SENTENCES["en"]


def test_a_tokenizer_that_knows_nothing_of_the_text(tmp_path):
    """Its model's record is of synthetic ids."""
    save_tokenizer(train_tokenizer("\u03b1\u03b2\u03b3", "char"), tmp_path / "tokenizer.json")
    assert publish._parity_inputs(tmp_path, {}) is None


def test_the_command_is_the_one_from_scratch(image_run, tmp_path):
    """The flag goes, the folder that is called like it stays."""
    card = publish_run(image_run, tmp_path / "p")
    expected = COMMAND.replace(" --resume --epochs 7 --output out", " --epochs 7")
    assert card["command"] == expected
    write_metrics(image_run, class_names=["a", "b", "c"], command=COMMAND.replace("recipes/", "/home/me/zoo/recipes/"))
    assert publish_run(image_run, tmp_path / "q")["command"] == expected


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"test_loss": None}, "metrics.json lacks test_loss: run the recipe again"),
        (
            {"test_bits_per_character": None},
            "metrics.json holds 0 of test_accuracy, test_bits_per_character, test_bleu",
        ),
        ({"test_accuracy": 1}, "metrics.json holds 2 of test_accuracy, test_bits_per_character"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_that_is_not_whole_leaves_nothing(language_run, tmp_path, changes, words):
    write_metrics(language_run, "test_bits_per_character", **changes)
    with pytest.raises(UserError, match=words):
        publish_run(language_run, tmp_path / "saved" / "p")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["model.keras", "tokenizer.json"])
def test_files_that_the_card_does_not_describe_are_refused(language_run, tmp_path, name):
    with (language_run / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match=f"{name} is missing or not the file that its card describes"):
        publish_run(language_run, tmp_path / "saved" / "p")
    assert not (tmp_path / "saved").exists()


def test_other_mistakes(language_run, tmp_path):
    with pytest.raises(UserError, match="holds no metrics.json: give the folder of a finished run"):
        publish_run(tmp_path, tmp_path / "p")
    for target in (tmp_path / "p.keras", language_run):
        with pytest.raises(UserError, match="--output is .*: give another folder to write"):
            publish_run(language_run, target)
    (language_run / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        publish_run(language_run, tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.fixture
def diffusion_run(tmp_path):
    """A scored run of a latent diffusion, with one small model in the place of all."""
    folder = tmp_path / "diffusion_run"
    folder.mkdir()
    x = keras.Input((3,))
    model_files.save_model(keras.Model(x, keras.layers.Dense(2, name="dense")(x)), folder / "any.keras")
    for name in publish.COMPONENT_FILES:
        (folder / name).write_bytes((folder / "any.keras").read_bytes() if name.endswith(".keras") else b"{}")
    (folder / "any.keras").unlink()
    files.write_json(folder / "generation_config.json", {"num_steps": 20})
    entry = {"command": COMMAND, "parameters": 1}
    scores = {"seen": {"all": 0.75}, "held_out": {"all": 0.5}}
    card = {"task": "text-to-image", "input": "a caption", "command": COMMAND, "parameters": 4, "scores": scores}
    card |= {"output": "an image", "dataset": "digits and more"}
    card["components"] = dict.fromkeys(publish.COMPONENTS, entry)
    cards.write_card(folder, card, publish.COMPONENT_FILES)
    return folder


def test_a_latent_diffusion_is_published_with_one_card(diffusion_run, tmp_path):
    card = publish_run(diffusion_run, tmp_path / "p")
    assert set(card["files"]) == set(publish.COMPONENT_FILES) and set(card["components"]) == set(publish.COMPONENTS)
    assert card["name"] == "p" and card["scores"]["seen"] == {"all": 0.75} and card["data_license"] == "none"
    assert "--resume --epochs" not in card["command"] + card["components"]["denoiser"]["command"]
    published = {path.name for path in (tmp_path / "p").iterdir()}
    models = [name for name in publish.COMPONENT_FILES if name.endswith(".keras")]
    records = {name: name.replace(".keras", ".parity.npz") for name in models}
    assert len(models) == 5
    assert published == {
        *publish.COMPONENT_FILES,
        *records.values(),
        "card.json",
        "generation_config.json",
        "README.md",
    }
    for name, record in records.items():
        assert ParityRecord.load(tmp_path / "p" / record).metadata["sha256"] == card["files"][name]["sha256"]
    metadata, _ = readme(tmp_path / "p")
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert result["dataset"] == {"name": "digits and more", "type": "digits-and-more"}
    assert [(one["name"][:40], one["value"]) for one in result["metrics"]] == [
        ("class and colors as prompted, trained co", 0.75),
        ("class and colors as prompted, held-out c", 0.5),
    ]


@pytest.mark.parametrize("key", ["scores", "components"])
def test_a_latent_diffusion_that_is_not_finished(diffusion_run, tmp_path, key):
    card = cards.read_json(diffusion_run / "card.json")
    del card[key]
    files.write_json(diffusion_run / "card.json", card)
    with pytest.raises(UserError, match="lacks .*: finish and score the run with recipes/diffusion_captions.py"):
        publish_run(diffusion_run, tmp_path / "saved" / "p")
    assert not (tmp_path / "saved").exists()


# ------------------------------------------------------------------------------------------------- the Hub's model card


def test_the_readme_is_what_the_hub_reads(translation_run, tmp_path):
    scores = {"test_bleu_beam_1": 39.2, "test_bleu_beam_5": 40.7}
    write_metrics(
        translation_run,
        "test_bleu_beam_5",
        **scores,
        source_lang="de",
        target_lang="en",
        dataset="Multi30k, task 1",
        data_sha256="f" * 64,
        backend="jax",
        versions={"keras": "3.15.1"},
    )
    card = publish_run(translation_run, tmp_path / "p", "--license", "CC BY 4.0")
    metadata, text = readme(tmp_path / "p")
    assert metadata["license"] == "cc-by-4.0" and card["license"] == "CC BY 4.0"
    assert metadata["library_name"] == "keras" and metadata["pipeline_tag"] == "translation"
    assert metadata["language"] == ["de", "en"] and "keras-model-zoo" in metadata["tags"]
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "p" and result["task"] == {"type": "translation"}
    assert result["dataset"] == {"type": "multi30k-task-1", "name": "Multi30k, task 1"}
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("bleu", 39.2), ("bleu", 40.7), ("bleu", 1)]
    for words in (card["command"], "f" * 64, card["files"]["model.keras"]["sha256"], "Training data: none", "seed | 1"):
        assert words in text
    assert 'zoo.Translator.from_preset("p")' in text


@pytest.mark.parametrize(
    "text, fields",
    [
        ("MIT", {"license": "mit"}),
        ("CC BY-SA 3.0", {"license": "cc-by-sa-3.0"}),
        ("my own terms", {"license": "other", "license_name": "my-own-terms"}),
    ],
)
def test_licenses_in_the_words_of_the_hub(text, fields):
    assert license_fields(text) == fields


def test_the_license_is_asked_for(image_run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(["publish", str(image_run), "--output", str(tmp_path / "p"), "--data-license", "none"])
    assert ended.value.code == 2 and "required: --license" in capsys.readouterr().err
    with pytest.raises(UserError, match="--license is empty: name the license of the model"):
        publish_run(image_run, tmp_path / "p", "--license", " ")
    assert not (tmp_path / "p").exists()


def test_a_fine_tuned_run_says_what_it_started_from(language_run, tmp_path):
    tuning = {"init_from": "lstm_shakespeare", "init_sha256": {"model.keras": "0" * 64}, "trained_parameters": 7}
    tuning |= {"lora_rank": 2}
    write_metrics(language_run, "test_bits_per_character", **tuning, freeze=["lstm_0"], train_only=None, new_head=False)
    card = publish_run(language_run, tmp_path / "p")
    assert {key: card[key] for key in tuning} == tuning and card["freeze"] == ["lstm_0"]
    assert "train_only" not in card and "new_head" not in card
    assert "started from | lstm_shakespeare" in readme(tmp_path / "p")[1]


class FakeHub:
    """`huggingface_hub.HfApi` as far as `zoo publish` uses it: repositories are folders."""

    root, refuses = None, False

    def create_repo(self, repo_id, *, repo_type, exist_ok):
        assert repo_type == "model" and exist_ok
        if self.refuses:
            raise PermissionError("401 Unauthorized")
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, repo_type, folder_path, ignore_patterns, commit_message):
        assert repo_type == "model" and commit_message
        ignored = shutil.ignore_patterns(*ignore_patterns)
        shutil.copytree(folder_path, self.root / repo_id, ignore=ignored, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeHub, "root", tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    return FakeHub


def test_nothing_is_uploaded_unasked(image_run, tmp_path, hub):
    publish_run(image_run, tmp_path / "p")
    assert not hub.root.exists()


def test_pushed_and_loaded_again(language_run, tmp_path, hub, monkeypatch, capsys):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / ".cache").write_text("of an editor")
    publish_run(language_run, tmp_path / "p", "--push", "me/my_model")
    assert capsys.readouterr().out.endswith("/p is at https://hub.example/me/my_model.\n")
    uploaded = hub.root / "me" / "my_model"
    names = {"model.keras", "tokenizer.json", "card.json", "parity.npz", "README.md"}
    assert {path.name for path in uploaded.iterdir()} == names
    assert 'zoo.CausalLM.from_preset("hf://me/my_model")' in (uploaded / "README.md").read_text()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, revision=None: str(hub.root / name))
    assert zoo.CausalLM.from_preset("hf://me/my_model").card["license"] == "MIT"


def test_a_hub_that_refuses(image_run, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(hub, "refuses", True)
    with pytest.raises(UserError, match="cannot be uploaded to me/x .401 Unauthorized.: log in .* folder itself is"):
        publish_run(image_run, tmp_path / "p", "--push", "me/x")
    assert zoo.load_task(tmp_path / "p").card["license"] == "MIT"
    with pytest.raises(UserError, match="--push is 'x': write OWNER/NAME"):
        publish_run(image_run, tmp_path / "other", "--push", "x")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs huggingface_hub, which is not installed: pip install huggingface_hub.$"):
        publish_run(image_run, tmp_path / "other")
    assert not (tmp_path / "other").exists()
