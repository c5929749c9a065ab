"""Small real files of every kind that the zoo reads, and the functions that read them: SOURCES[kind](folder)."""

import json
import os
import pathlib

import numpy as np

from zoo import backends

backends.import_keras()

import keras
import torch

torch.set_num_threads(1)  # a pool of threads does not survive a fork

import zoo
from zoo.io import files, model_files


def _small_model(name="small"):
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(3, 3, activation="relu", name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(image, keras.layers.Dense(4, name="logits")(x), name=name)


def keras_file(folder):
    path = folder / "small.keras"
    path.parent.mkdir(parents=True, exist_ok=True)
    model_files.save_model(_small_model(), path)
    return path, model_files.load_model


def classifier(folder):
    path = folder / "classifier"
    task = zoo.ImageClassifier(_small_model(), class_names=["a", "b", "c", "d"], generation_config={"top_k": 2})
    task.save_to_preset(path, card={"test_accuracy": 0.5, "command": "python recipes/cnn_mnist.py"})
    image = np.arange(64, dtype="uint8").reshape(8, 8)

    def use(path):
        from zoo import presets
        from zoo.cli import list as list_command

        _with_own_hashes(path)
        zoo.ImageClassifier.from_preset(path).classify(image)
        list_command._result(presets.find_preset(path).card)

    return path, use


def _with_own_hashes(path):
    """Give the card of a folder, if it is still one, the hashes of the files, so that what is behind them is read."""
    card = pathlib.Path(path) / "card.json"
    try:
        content = json.loads(card.read_text())
        for name, entry in content["files"].items():
            if isinstance(entry.get("sha256"), str):
                entry["sha256"] = files.sha256(card.with_name(name))
        card.write_text(json.dumps(content))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        pass


def language_model(folder):
    from zoo.models.rnn_language_model import rnn_language_model
    from zoo.tokenizers.text import train_tokenizer

    path = folder / "language_model"
    tokenizer = train_tokenizer("to be or not to be, that is the question", "char")
    model = rnn_language_model(
        cell="gru", vocabulary_size=tokenizer.get_vocab_size(), embedding_dim=4, units=5, num_layers=1
    )
    zoo.CausalLM(model, tokenizer, generation_config={"max_new_tokens": 3}).save_to_preset(path)

    def use(path):
        _with_own_hashes(path)
        zoo.CausalLM.from_preset(path).generate("to be", max_new_tokens=2)

    return path, use


def marian(folder):
    from tests.converters.test_marian import make_folder, train_sentencepiece
    from zoo.converters.marian import load_marian

    path = folder / "marian"
    path.mkdir(parents=True)
    rng, models = np.random.default_rng(0), []
    for syllables in (["ba", "lo", "mi", "re", "su"], ["ka", "ne", "pi", "tu", "vo"]):
        words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(40)]
        models.append(train_sentencepiece([" ".join(rng.choice(words, 6)) for _ in range(100)], vocab_size=40))
    make_folder(path, models)

    def use(path):
        _, tokenizer, _ = load_marian(path)
        tokenizer.decode(tokenizer.encode("balo mi"))

    return path, use


def diffusers(folder):
    from tests.converters.test_stable_diffusion import make_folder
    from zoo.converters.stable_diffusion import from_diffusers

    path = folder / "diffusers"
    make_folder(path)
    return path, from_diffusers


def text_to_image(folder):
    source, _ = diffusers(folder / "text_to_image_source")
    path = folder / "text_to_image"
    zoo.convert("stable-diffusion", source, path)

    def use(path):
        _with_own_hashes(path)
        task = zoo.TextToImage.from_preset(path)
        task.generate("a cat", num_steps=1, seed=0, height=8, width=8)

    return path, use


def _trained():
    model = _small_model()
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)
    return model


def checkpoint(folder):
    from zoo.training.checkpoints import load_checkpoint, save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    path, model = folder / "checkpoint.npz", _trained()
    save_checkpoint(path, model, settings={"epochs": 3, "seed": 0}, history=[{"loss": 1.5, "val_loss": 1.25}])
    return path, lambda path: load_checkpoint(path, model, settings={"epochs": 3, "seed": 0})


def parity_record(folder):
    from zoo.parity.records import ParityRecord, recorded_input_shapes, write_parity_record

    path, _ = keras_file(folder / "parity")
    record = write_parity_record(path)

    def use(record):
        ParityRecord.load(record)
        other = record.with_name("small.parity.npz")
        if other != record:
            os.link(record, other) if not other.exists() else None
        recorded_input_shapes(record.with_name("small.keras"))

    return record, use


def state_dict(folder):
    from zoo.converters.torch_rnn import build_model, read_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gru.pt"
    torch.save(torch.nn.GRU(3, 4, 2, bidirectional=True).state_dict(), path)
    return path, lambda path: build_model(read_state_dict(path))


def safetensors(folder):
    from safetensors.torch import save_file

    from zoo.converters.torch_rnn import build_model, read_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lstm.safetensors"
    save_file(torch.nn.LSTM(3, 4).state_dict(), path)
    return path, lambda path: build_model(read_state_dict(path))


def lora(folder):
    from zoo.lora import add_lora, load_lora, save_lora

    folder.mkdir(parents=True, exist_ok=True)
    path, model = folder / "lora.safetensors", _small_model()
    add_lora(model, rank=2, alpha=3, targets=".*")
    save_lora(model, path)
    base = _small_model()
    return path, lambda path: load_lora(base, path, check_base=False)


def labels(folder):
    from zoo.io.labels import read_labels

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "labels.json"
    path.write_text('{"id2label": {"0": "ant", "1": "bee", "2": "cat"}}')
    return path, read_labels


def notebook(folder):
    from zoo.lessons.grading import grade_notebook

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lesson.ipynb"
    printed = {"output_type": "stream", "name": "stdout", "text": ["Exercise 3.2: (22, 22, 8) is right. The kernel"]}
    cells = [
        {"cell_type": "markdown", "source": ["## Exercises\n", "Count the parameters. " * 100], "metadata": {}},
        {"cell_type": "code", "source": ["answer = (3 * 3 * 16 + 1) * 32\n", "lessons.check('3.1', answer)"]},
        {"cell_type": "code", "source": "lessons.check('3.2', layer.output.shape[1:])", "outputs": [printed]},
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path, grade_notebook


SOURCES = {
    "keras": keras_file,
    "classifier": classifier,
    "language model": language_model,
    "marian": marian,
    "diffusers": diffusers,
    "text-to-image": text_to_image,
    "checkpoint": checkpoint,
    "parity": parity_record,
    "state dict": state_dict,
    "safetensors": safetensors,
    "lora": lora,
    "labels": labels,
    "notebook": notebook,
}
