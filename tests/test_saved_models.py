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
from zoo.tasks.translator import Translator

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "saved_models"
CARDS = sorted(FOLDER.glob("*/card.json"))
MODELS = sorted(FOLDER.glob("*/model.keras"))  # presets of one model
LANGUAGE = ["lstm_shakespeare", "gru_shakespeare"]
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


PREDICT = """
from zoo import backends
backends.import_keras()
import sys
import keras, numpy as np
file, images, target = sys.argv[1:]
logits = keras.saving.load_model(file).predict(np.load(images), batch_size=250, verbose=0)
np.save(target, logits)
"""


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("name", ["cnn_mnist", "cnn_gtsrb"])
def test_same_logits_on_every_backend(tmp_path, run, name, request):
    """`import keras` alone, each backend in its own process; PyTorch, the quickest, over the whole test set."""
    if name == "cnn_mnist":
        dataset = request.getfixturevalue("mnist")
    else:
        dataset = data.load_images("gtsrb", request.getfixturevalue("gtsrb_file"))
    card = json.loads((FOLDER / f"{name}/card.json").read_text())
    assert dataset.fingerprint() == card["data_sha256"] and len(dataset.x_test) == card["test_images"]
    logits, some = {}, 2000
    for backend in ("torch", "tensorflow", "jax"):
        target = tmp_path / f"{backend}.npy"
        np.save(tmp_path / "images.npy", dataset.x_test[: None if backend == "torch" else some])
        ended = run(["-c", PREDICT, FOLDER / f"{name}/model.keras", tmp_path / "images.npy", target], backend=backend)
        assert ended.returncode == 0, ended.stderr
        logits[backend] = np.load(target)
    accuracy = (logits["torch"].argmax(axis=1) == dataset.y_test).mean()
    assert accuracy == pytest.approx(card["test_accuracy"], abs=1e-9)
    for backend in ("tensorflow", "jax"):
        difference = np.abs(logits[backend] - logits["torch"][:some]).max()
        print(f"{name}: largest difference of logits, {backend} to torch: {difference:.1e}")
        assert difference <= 1e-4


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("name", LANGUAGE)
def test_same_language_model_on_every_backend(tmp_path, run, name, shakespeare):
    """`import keras` alone, each backend in its own process: logits over the whole validation part, and its loss.

    The text is read as rows side by side. Each begins 500 characters before its own part, whose loss counts, so that
    the states have settled; the first begins with the text.
    """
    dataset, _ = data.load_text(data_dir=shakespeare)
    card = json.loads((FOLDER / f"{name}/card.json").read_text())
    assert dataset.fingerprint() == card["data_sha256"]
    vocabulary = json.loads((FOLDER / f"{name}/tokenizer.json").read_text())["model"]["vocab"]
    ids = np.array([vocabulary[character] for character in dataset.split("validation")], "int32")
    assert len(ids) - 1 == card["validation_tokens"]
    before, wide = 500, 2000
    begins = np.arange(0, len(ids) - 1 - before, wide - before)
    tokens = np.stack(
        [np.pad(ids[begin : begin + wide + 1], (0, max(0, begin + wide + 1 - len(ids)))) for begin in begins]
    )
    place = begins[:, None] + np.arange(wide)  # (rows, wide): where in the text
    counts = (place < len(ids) - 1) & ((np.arange(wide) >= before) | (begins[:, None] == 0))
    assert counts.sum() == len(ids) - 1 == np.unique(place[counts]).size  # every character but the first, once
    np.save(tmp_path / "tokens.npy", tokens[:, :-1])
    logits = {}
    for backend in ("tensorflow", "jax", "torch"):
        target = tmp_path / f"{backend}.npy"
        ended = run(["-c", PREDICT, FOLDER / f"{name}/model.keras", tmp_path / "tokens.npy", target], backend=backend)
        assert ended.returncode == 0, ended.stderr
        logits[backend] = np.load(target).astype("float64")
        losses = np.log(np.exp(logits[backend]).sum(axis=-1))
        losses -= np.take_along_axis(logits[backend], tokens[:, 1:, None], axis=-1)[..., 0]
        print(f"{name}: {losses[counts].mean():.6f} nats a character on {backend}, card {card['validation_loss']:.6f}")
        assert losses[counts].mean() == pytest.approx(card["validation_loss"], abs=1e-4)
    for backend in ("jax", "torch"):
        difference = np.abs(logits[backend] - logits["tensorflow"])
        print(f"{name}: largest difference of logits, {backend} to tensorflow: {difference.max():.1e}")
        assert difference.max() <= 1e-4


TRANSLATE = """
from zoo import backends
backends.import_keras()
import sys
import keras, numpy as np
from zoo.tasks.translator import Translator
file, inputs, sentences, target = sys.argv[1:]
with np.load(inputs) as stored:
    logits = keras.saving.load_model(file).predict([stored["source"], stored["target"]], verbose=0)
texts = Translator.from_preset(file).translate(open(sentences, encoding="utf-8").read().splitlines(), num_beams=1)
np.savez(target, logits=logits, texts=np.array(texts))
"""


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("name", TRANSLATION)
def test_same_translation_model_on_every_backend(tmp_path, run, name, multi30k):
    """Each backend in its own process: logits of 64 validation pairs, and the test part translated with its BLEU."""
    card = json.loads((FOLDER / f"{name}/card.json").read_text())
    dataset, _ = data.load_pairs(card["source_lang"], card["target_lang"], data_dir=multi30k)
    assert dataset.fingerprint() == card["data_sha256"] and len(dataset.test) == card["test_pairs"]
    tokenizer = Translator.from_preset(name).tokenizer
    source, target = (np.full((64, 60), tokenizer.pad_id, "int32") for _ in range(2))
    for row, (read, written) in enumerate(dataset.validation[:64]):
        ids, given = tokenizer.encode(read), [tokenizer.start_id, *tokenizer.encode_target(written)[:-1]]
        source[row, : len(ids)], target[row, : len(given)] = ids, given
    np.savez(tmp_path / "inputs.npz", source=source, target=target)
    found = {}
    for backend in ("torch", "tensorflow", "jax"):
        # The whole test part once; the other backends translate its first sentences.
        count = len(dataset.test) if backend == "torch" else 32
        (tmp_path / "sentences.txt").write_text("\n".join(source for source, _ in dataset.test[:count]))
        made = tmp_path / f"{backend}.npz"
        arguments = [FOLDER / f"{name}/model.keras", tmp_path / "inputs.npz", tmp_path / "sentences.txt", made]
        ended = run(["-c", TRANSLATE, *arguments], backend=backend)
        assert ended.returncode == 0, ended.stderr
        with np.load(made) as stored:
            found[backend] = stored["logits"], stored["texts"].tolist()
    logits, texts = found["torch"]
    score, _ = bleu(texts, [target for _, target in dataset.test])
    assert score == pytest.approx(card["test_bleu_beam_1"], abs=0.05)
    for backend in ("tensorflow", "jax"):
        difference = np.abs(found[backend][0] - logits).max()
        print(f"{name}: largest difference of logits, {backend} to torch: {difference:.1e}")
        assert difference <= 1e-4 and found[backend][1] == texts[:32]


# ------------------------------------------------------------------------------------------------------ text to image


DIFFUSION = FOLDER / "diffusion_captions"
PROMPTS = ["a green three on white", "on a blue background a yellow ankle boot", "a dress in black on orange"]
GENERATE = """
import sys
from zoo import backends
backends.import_keras()
import numpy as np
import zoo
from zoo.data.captions import COLORS, classify_colors
folder, target, *prompts = sys.argv[1:]
images = zoo.TextToImage.from_preset(folder).generate(prompts)
logits = zoo.load_model(f"{folder}/classifier.keras").predict(images, verbose=0)
colors = list(COLORS)
predicted = zip(logits.argmax(-1), *classify_colors(images))
predicted = [[int(label), colors[foreground], colors[background]] for label, foreground, background in predicted]
np.savez(target, images=images, predicted=np.array(predicted))
"""


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


@pytest.mark.once
@pytest.mark.heavy
def test_same_images_on_every_backend(tmp_path, run):
    """What is asked for, and the same within 2 of 255."""
    images = {}
    for backend in ("torch", "tensorflow", "jax"):
        target = tmp_path / f"{backend}.npz"
        ended = run(["-c", GENERATE, DIFFUSION, target, *PROMPTS], backend=backend)
        assert ended.returncode == 0, ended.stderr
        with np.load(target) as stored:
            images[backend], predicted = stored["images"].astype(int), stored["predicted"].tolist()
        assert predicted == [["3", "green", "white"], ["19", "yellow", "blue"], ["13", "black", "orange"]]
        assert np.abs(images[backend] - images["torch"]).max() <= 2
