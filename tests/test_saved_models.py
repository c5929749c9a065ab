"""The published presets: whole, described by their cards, small enough, and the same numbers on every backend."""

import importlib
import json
import pathlib

import keras
import numpy as np
import pytest

from zoo import data
from zoo.evaluation.translation import bleu
from zoo.io import files, model_files
from zoo.tokenizers import load_tokenizer

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "saved_models"
CARDS = sorted(FOLDER.glob("*/card.json"))
MODELS = sorted(FOLDER.glob("*/model.keras"))  # presets of one model
LANGUAGE = ["lstm_shakespeare", "gru_shakespeare"]
IMAGES = {"cnn_mnist": "mnist", "cnn_gtsrb": "gtsrb_file"}  # and the fixtures of their data
TRANSLATION = ["transformer_multi30k_de_en", "transformer_multi30k_en_de"]
# What every card says, and what those of a task.
ALL = {"name", "task", "files", "command", "command_as_run", "backend", "versions", "data_sha256", "seed", "input"}
ALL |= {"output", "parameters", "data_license"}
OF_A_TASK = {
    "image-classification": {"test_accuracy", "test_images", "class_names"},
    "text-generation": {"test_bits_per_character", "validation_loss", "cell", "tokenizer", "sequence_length"},
    "translation": {"test_bleu_beam_1", "test_bleu_beam_5", "signature", "test_pairs", "source_lang", "target_lang"},
    "text-to-image": {"scores", "components"},
}


@pytest.mark.once
def test_each_preset_has_a_card_and_a_parity_record():
    names = {path.parent.name for path in CARDS}
    assert names == {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert {"cnn_mnist", "cnn_gtsrb", "diffusion_captions", *LANGUAGE, *TRANSLATION} <= names
    assert all((path.parent / "parity.npz").is_file() for path in MODELS)


@pytest.mark.once
@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_card_describes_its_files(path):
    card, folder = json.loads(path.read_text()), path.parent
    assert card.keys() >= ALL | OF_A_TASK[card["task"]] and card["name"] == folder.name
    for name, entry in card["files"].items():
        file = folder / name
        assert entry == {"sha256": files.sha256(file), "bytes": file.stat().st_size} and entry["bytes"] < 50e6
    known = {*card["files"], "card.json", "parity.npz", "generation_config.json"}
    known |= {name.replace(".keras", ".parity.npz") for name in card["files"]}  # of each of several models
    assert {file.name for file in folder.iterdir()} <= known
    assert all(file.name in card["files"] for file in folder.glob("*.keras"))


def commands():
    """(name, command) of every card."""
    for path in CARDS:
        card = json.loads(path.read_text())
        for part in (card, *card.get("components", {}).values()):
            yield card["name"], part["command"]


@pytest.mark.once
@pytest.mark.parametrize("command", sorted({command for _, command in commands()}))
def test_the_command_of_a_card_runs_today(command):
    """Its recipe is here and knows its flags."""
    assert "--resume" not in command
    backend, python, script, *arguments = command.split()
    recipe = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    assert (python, backend.partition("=")[0]) == ("python", "KERAS_BACKEND")
    recipe.parse_args(arguments)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_keras_alone_loads_the_file(path):
    card = json.loads((path.parent / "card.json").read_text())
    model = keras.saving.load_model(path)  # keras alone: no custom objects of ours
    assert model.count_params() == card["parameters"]
    if "tokenizer.json" in card["files"]:
        vocabulary = json.loads((path.parent / "tokenizer.json").read_text())["model"]["vocab"]
        assert sorted(vocabulary.values()) == list(range(model.output_shape[-1]))


def test_a_raw_digit_is_classified_in_one_call():
    """A uint8 image of any size, without any preparation by the caller."""
    digits = data.load_images("digits")  # other scans than MNIST's: 8x8 pixels, another hand
    model = model_files.load_model(FOLDER / "cnn_mnist/model.keras")
    predicted = model.predict(digits.x_test[..., 0], verbose=0).argmax(axis=1)
    assert (predicted == digits.y_test).mean() > 0.6
    assert model.predict(np.zeros((1, 28, 28), "uint8"), verbose=0).shape == (1, 10)


# ------------------------------------------------------------------------------------------------ the same everywhere

DIFFUSION = FOLDER / "diffusion_captions"
PROMPTS = ["a green three on white", "on a blue background a yellow ankle boot", "a dress in black on orange"]
PROGRAM = """
from zoo import backends
backends.skip_optional_imports()
backends.import_keras()
import pathlib, sys
import keras, numpy as np
inputs, target, presets = map(pathlib.Path, sys.argv[1:4])
found = {}
for path in sorted(inputs.glob("*.npz")):  # logits, by Keras alone
    with np.load(path) as stored:
        arrays = [stored[name] for name in stored.files]
    model = keras.saving.load_model(presets / path.stem / "model.keras")
    found[path.stem] = model.predict(arrays if len(arrays) > 1 else arrays[0], batch_size=250, verbose=0)
if prompts := sys.argv[4:]:  # the tasks
    import zoo
    from zoo.data.captions import COLORS, classify_colors

    for path in sorted(inputs.glob("*.txt")):
        texts = zoo.Translator.from_preset(path.stem).translate(path.read_text("utf-8").splitlines(), num_beams=1)
        found[f"texts of {path.stem}"] = np.array(texts)
    images = zoo.TextToImage.from_preset("diffusion_captions").generate(prompts)
    classes = zoo.load_model(presets / "diffusion_captions/classifier.keras").predict(images, verbose=0).argmax(-1)
    colors = list(COLORS)
    predicted = zip(classes, *classify_colors(images))
    predicted = [[str(label), colors[foreground], colors[background]] for label, foreground, background in predicted]
    found |= {"images": images, "predicted": np.array(predicted)}
np.savez(target, **found)
"""


def available(request, fixture):
    """The value of a fixture of data; None where the data are not here."""
    try:
        return request.getfixturevalue(fixture)
    except pytest.skip.Exception:
        return None


def of_every_backend(names):
    """Parameters of a test: the first preset, then all of them with more of their data.

    With --full only: in the quick run, `zoo verify` and the tests of the tasks use presets on every backend.
    """
    cases = [("some", names[0]), *(("all", name) for name in names)]
    cases = [pytest.param(*case, marks=pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize("everywhere, name", cases, indirect=["everywhere"], scope="module")


@pytest.fixture(scope="module")
def everywhere(request, run, tmp_path_factory):
    """{backend: what the presets give}, by one process a backend.

    "some": logits of the first images, characters and sentences, by the first preset of each kind. "all": of whole
    texts and, on PyTorch, the quickest, of all test images; and what the tasks make of prompts and of sentences, on
    PyTorch all of the test part, so that the scores are those of the cards.
    """
    folder, whole = tmp_path_factory.mktemp("everywhere"), request.param == "all"
    names = [*IMAGES, *LANGUAGE, *TRANSLATION] if whole else [[*IMAGES][0], LANGUAGE[0], TRANSLATION[0]]
    found = {}
    for backend in ("torch", "tensorflow", "jax"):
        inputs = folder / backend
        inputs.mkdir()
        count = 10_000 if whole and backend == "torch" else 2000 if whole else 100
        for name in names:
            if name in IMAGES and (source := available(request, IMAGES[name])):
                np.savez(inputs / f"{name}.npz", images_of(name, source).x_test[:count])
            if name in LANGUAGE and (source := available(request, "shakespeare")):
                tokens, _ = validation_rows(name, data.load_text(data_dir=source)[0], whole=whole)
                np.savez(inputs / f"{name}.npz", tokens[:, :-1])
            if name in TRANSLATION and (source := available(request, "multi30k")):
                dataset = pairs_of(name, source)
                np.savez(inputs / f"{name}.npz", **teacher_forced(name, dataset.validation[: 64 if whole else 16]))
                count = len(dataset.test) if backend == "torch" else 32
                sentences = "\n".join(read for read, _ in dataset.test[:count])
                (inputs / f"{name}.txt").write_text(sentences, encoding="utf-8")
        prompts = PROMPTS if whole else []
        arguments = [inputs, folder / f"{backend}.npz", FOLDER, *prompts]
        ended = run(["-c", PROGRAM, *arguments], backend=backend, XLA_FLAGS="")  # as users run them
        assert ended.returncode == 0, ended.stderr
        with np.load(folder / f"{backend}.npz") as stored:
            found[backend] = dict(stored)
    return found


def card_of(name):
    return json.loads((FOLDER / f"{name}/card.json").read_text())


def images_of(name, source):
    """The data set of a classifier: `source` itself, or what the file or folder holds."""
    return source if name == "cnn_mnist" else data.load_images("gtsrb", source)


def validation_rows(name, dataset, *, whole):
    """(ids (rows, wide + 1), which of the predicted ones count (rows, wide)): the validation part as rows side by side.

    Each begins some characters before its own part, whose loss counts, so that the states have settled; the first
    begins with the text.
    """
    vocabulary = json.loads((FOLDER / f"{name}/tokenizer.json").read_text())["model"]["vocab"]
    ids = np.array([vocabulary[character] for character in dataset.split("validation")], "int32")
    before, wide = (500, 2000) if whole else (100, 300)
    ids = ids if whole else ids[:801]
    begins = np.arange(0, len(ids) - 1 - before, wide - before)
    tokens = np.stack(
        [np.pad(ids[begin : begin + wide + 1], (0, max(0, begin + wide + 1 - len(ids)))) for begin in begins]
    )
    place = begins[:, None] + np.arange(wide)  # (rows, wide): where in the text
    counts = (place < len(ids) - 1) & ((np.arange(wide) >= before) | (begins[:, None] == 0))
    assert counts.sum() == len(ids) - 1 == np.unique(place[counts]).size  # every character but the first, once
    return tokens, counts


def pairs_of(name, folder):
    card = card_of(name)
    dataset, _ = data.load_pairs(card["source_lang"], card["target_lang"], data_dir=folder)
    return dataset


def teacher_forced(name, pairs):
    """{"source", "target"}: ids of pairs, (pairs, 60) each, as the model gets them in training."""
    tokenizer = load_tokenizer(FOLDER / name / "tokenizer.json")
    source, target = (np.full((len(pairs), 60), tokenizer.pad_id, "int32") for _ in range(2))
    for row, (read, written) in enumerate(pairs):
        ids, given = tokenizer.encode(read), [tokenizer.start_id, *tokenizer.encode_target(written)[:-1]]
        source[row, : len(ids)], target[row, : len(given)] = ids, given
    return {"source": source, "target": target}


@pytest.mark.once
@pytest.mark.parametrize("name", IMAGES)
def test_the_images_are_those_of_the_card(name, request):
    dataset, card = images_of(name, request.getfixturevalue(IMAGES[name])), card_of(name)
    assert dataset.fingerprint() == card["data_sha256"] and len(dataset.x_test) == card["test_images"]


@pytest.mark.once
@pytest.mark.parametrize("name", LANGUAGE)
def test_the_text_is_that_of_the_card(name, shakespeare):
    dataset, card = data.load_text(data_dir=shakespeare)[0], card_of(name)
    assert dataset.fingerprint() == card["data_sha256"]
    _, counts = validation_rows(name, dataset, whole=True)
    assert counts.sum() == card["validation_tokens"]


@pytest.mark.once
@pytest.mark.parametrize("name", TRANSLATION)
def test_the_pairs_are_those_of_the_card(name, multi30k):
    dataset, card = pairs_of(name, multi30k), card_of(name)
    assert dataset.fingerprint() == card["data_sha256"] and len(dataset.test) == card["test_pairs"]


def assert_same_logits(everywhere, name):
    for backend in ("tensorflow", "jax"):
        logits = everywhere[backend][name]
        difference = np.abs(logits - everywhere["torch"][name][: len(logits)]).max()
        print(f"{name}: largest difference of logits, {backend} to torch: {difference:.1e}")
        assert difference <= 1e-4


@pytest.mark.once
@pytest.mark.heavy
@of_every_backend([*IMAGES])
def test_same_logits_on_every_backend(everywhere, name, request):
    dataset, card = images_of(name, request.getfixturevalue(IMAGES[name])), card_of(name)
    assert_same_logits(everywhere, name)
    predicted = everywhere["torch"][name].argmax(axis=1)
    accuracy = (predicted == dataset.y_test[: len(predicted)]).mean()
    assert accuracy == pytest.approx(card["test_accuracy"], abs=1e-9 if len(predicted) == card["test_images"] else 0.02)


@pytest.mark.once
@pytest.mark.heavy
@of_every_backend(LANGUAGE)
def test_same_language_model_on_every_backend(everywhere, name, shakespeare):
    """Logits, and over the whole validation part the loss."""
    dataset, card = data.load_text(data_dir=shakespeare)[0], card_of(name)
    assert_same_logits(everywhere, name)
    tokens, counts = validation_rows(name, dataset, whole=True)
    for backend in everywhere:
        logits = everywhere[backend][name].astype("float64")
        if logits.shape[:2] != counts.shape:
            continue  # a part of it
        losses = np.log(np.exp(logits).sum(axis=-1))
        losses -= np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        print(f"{name}: {losses[counts].mean():.6f} nats a character on {backend}, card {card['validation_loss']:.6f}")
        assert losses[counts].mean() == pytest.approx(card["validation_loss"], abs=1e-4)


@pytest.mark.once
@pytest.mark.heavy
@of_every_backend(TRANSLATION)
def test_same_translation_model_on_every_backend(everywhere, name, multi30k):
    """Logits of validation pairs; of all: test sentences translated, and over the whole test part the BLEU."""
    dataset, card = pairs_of(name, multi30k), card_of(name)
    assert_same_logits(everywhere, name)
    if f"texts of {name}" not in everywhere["torch"]:
        return  # the README's sentence is translated on every backend, see tests/cli/test_readme.py
    texts = everywhere["torch"][f"texts of {name}"].tolist()
    for backend in ("tensorflow", "jax"):
        assert everywhere[backend][f"texts of {name}"].tolist() == texts[:32]
    score, _ = bleu(texts, [written for _, written in dataset.test])
    assert score == pytest.approx(card["test_bleu_beam_1"], abs=0.05)


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("everywhere", ["all"], indirect=True)
def test_same_images_on_every_backend(everywhere):
    """What is asked for, and the same within 2 of 255."""
    for found in everywhere.values():
        assert found["predicted"].tolist() == [
            ["3", "green", "white"],
            ["19", "yellow", "blue"],
            ["13", "black", "orange"],
        ]
        assert np.abs(found["images"].astype(int) - everywhere["torch"]["images"]).max() <= 2


@pytest.mark.once
def test_the_diffusion_is_whole_and_small():
    parts = {"text_encoder", "encoder", "decoder", "denoiser", "classifier"}
    assert {path.stem for path in DIFFUSION.glob("*.keras")} == parts
    assert sum(path.stat().st_size for path in DIFFUSION.iterdir()) < 60e6
    card, parameters = json.loads((DIFFUSION / "card.json").read_text()), 0
    for part in parts:
        assert files.sha256(DIFFUSION / f"{part}.keras") == card["files"][f"{part}.keras"]["sha256"]
        parameters += model_files.load_model(DIFFUSION / f"{part}.keras").count_params()
    assert parameters == card["parameters"] == sum(part["parameters"] for part in card["components"].values())
