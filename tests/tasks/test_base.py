"""What the tasks share: presets, settings, one item or many, seeds; on a task whose model counts letters."""

import json

import keras
import numpy as np
import pytest

import zoo
from zoo.errors import UserError
from zoo.io import cards, files
from zoo.tasks.base import TASK_CLASSES, Task, task_class


class Shouter(Task):
    """Repeats words in capitals, with a number for each that the seed decides."""

    task = "text-generation"
    DEFAULTS = {"times": 2, "loud": True, "pitch": 1.0, "mark": None}

    def shout(self, words, *, times=None, loud=None, pitch=None, mark=None, seed=0, batch_size=2):
        settings = self._settings(times=times, loud=loud, pitch=pitch, mark=mark)
        seed = self._seed(seed)

        def shout(batch, first):
            self.batches = [*getattr(self, "batches", []), len(batch)]
            texts = [word.upper() if settings["loud"] else word for word in batch]
            return [f"{text * settings['times']} {seed + first + index}" for index, text in enumerate(texts)]

        return self._map(shout, words, batch_size)


class Words:
    """A tokenizer as far as presets are concerned."""

    def save(self, path):
        files.write_text(path, '{"kind": "words"}')


def model():
    x = keras.Input((3,), name="x")
    return keras.Model(x, keras.layers.Dense(2, name="out")(x), name="small")


@pytest.fixture
def preset(tmp_path):
    """A preset folder."""
    task = Shouter(model(), Words(), card={"seed": 7, "task": "?"}, generation_config={"times": 3, "loud": False})
    return task.save_to_preset(tmp_path / "shouter", card={"data_license": "none"})


# ------------------------------------------------------------------------------------------------------------ presets


def test_a_saved_task_comes_back(preset):
    assert sorted(path.name for path in preset.iterdir()) == [
        *("card.json", "generation_config.json", "model.keras", "tokenizer.json")
    ]
    card = json.loads((preset / "card.json").read_text())
    assert {"name": "shouter", "task": "text-generation", "seed": 7, "data_license": "none"}.items() <= card.items()
    assert card["parameters"] == 8 and set(card["files"]) == {"model.keras", "tokenizer.json"}
    for name, entry in card["files"].items():
        assert entry == {"sha256": files.sha256(preset / name), "bytes": (preset / name).stat().st_size}
    task = Shouter.from_preset(preset)
    assert task.card == card and task.generation_config == {"times": 3, "loud": False}
    assert task.model.count_params() == 8 and not task.model.compiled


def test_saving_again_replaces_all(preset):
    (preset / "parity.npz").write_bytes(b"of the model before")
    task = Shouter(model(), Words())
    task.save_to_preset(preset)
    assert sorted(path.name for path in preset.iterdir()) == ["card.json", "model.keras", "tokenizer.json"]
    for a, b in zip(Shouter.from_preset(preset).model.get_weights(), task.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dtype_and_fresh_weights(preset):
    saved = Shouter.from_preset(preset).model.get_weights()
    half = Shouter.from_preset(preset, dtype="bfloat16").model
    assert half.weights[0].dtype == "bfloat16" and half.layers[-1].compute_dtype == "bfloat16"
    values = keras.ops.convert_to_numpy(keras.ops.cast(half.weights[0], "float32"))
    np.testing.assert_allclose(values, saved[0], rtol=2**-8)
    mixed = Shouter.from_preset(preset, dtype="mixed_bfloat16").model
    assert mixed.weights[0].dtype == "float32" and mixed.layers[-1].compute_dtype == "bfloat16"
    fresh = Shouter.from_preset(preset, load_weights=False).model.get_weights()
    assert [w.shape for w in fresh] == [w.shape for w in saved] and np.abs(fresh[0] - saved[0]).max() > 0
    with pytest.raises(UserError, match="dtype is 'float13', expected a policy such as float32"):
        Shouter.from_preset(preset, dtype="float13")


def test_the_presets_that_fit(preset, monkeypatch):
    monkeypatch.setenv("ZOO_MODELS_DIR", str(preset.parent))
    assert Shouter.presets == ["gru_shakespeare", "lstm_shakespeare", "shouter"]
    assert {name: task_class(name).presets for name in TASK_CLASSES} == {
        "image-classification": ["cnn_gtsrb", "cnn_mnist"],
        "text-generation": Shouter.presets,
        "translation": ["transformer_multi30k_de_en", "transformer_multi30k_en_de"],
        "text-to-image": ["diffusion_captions"],
    }


@pytest.mark.parametrize("task", TASK_CLASSES)
def test_a_preset_of_another_task_names_the_class(task):
    for other in set(TASK_CLASSES) - {task}:
        name = task_class(other).presets[0]
        words = f"{name} is a preset for {other}, not for {task}: load it with zoo.{TASK_CLASSES[other][1]}.from_preset"
        with pytest.raises(UserError, match=words):
            task_class(task).from_preset(name)


@pytest.mark.slow("tensorflow", "jax")
@pytest.mark.parametrize("task", TASK_CLASSES)
def test_load_task_picks_the_class(task):
    loaded = zoo.load_task(task_class(task).presets[0])
    assert type(loaded) is task_class(task) and loaded.card["task"] == task


def test_load_task_of_a_preset_that_says_no_task(tmp_path):
    model().save(tmp_path / "model.keras")
    with pytest.raises(UserError, match="The card of .* says no task: load it with one of zoo.ImageClassifier, "):
        zoo.load_task(tmp_path)
    cards.write_card(tmp_path, {"task": "juggling"}, ["model.keras"])
    with pytest.raises(UserError, match="says task 'juggling'"):
        zoo.load_task(tmp_path)
    with pytest.raises(UserError, match="is a preset for 'juggling', which no class here does"):
        zoo.ImageClassifier.from_preset(tmp_path)


def test_a_folder_of_another_library(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    for task in TASK_CLASSES:
        with pytest.raises(UserError, match="format of diffusers: .*zoo convert stable-diffusion"):
            task_class(task).from_preset(tmp_path)


# ----------------------------------------------------------------------------------------------------------- settings


def test_the_argument_the_preset_the_default():
    plain, own = Shouter(model()), Shouter(model(), generation_config={"times": 3, "loud": False})
    assert [plain.shout("a"), own.shout("a"), own.shout("a", times=1)] == ["AA 0", "aaa 0", "a 0"]
    assert own.shout("a", loud=True) == "AAA 0"
    assert own._settings() == {"times": 3, "loud": False, "pitch": 1.0, "mark": None}


@pytest.mark.parametrize("config", [{"times": "many"}, {"loud": 1}, {"times": True}, {"pitch": "high"}])
def test_a_generation_config_of_the_wrong_type(config):
    ((name, value),) = config.items()
    with pytest.raises(UserError, match=f"says {name} is {value!r}, where .* was expected"):
        Shouter(model(), generation_config=config)
    assert Shouter(model(), generation_config={"pitch": 2, "mark": "any", "more": 1, "times": None})


# ----------------------------------------------------------------------------------------------- one item, or a list


def test_one_in_one_out_a_list_in_a_list_out():
    task = Shouter(model())
    assert task.shout("a") == "AA 0" and task.shout(["a"]) == ["AA 0"] and task.shout([]) == []
    assert task.shout(word for word in ("a", "b")) == ["AA 0", "BB 1"]


def test_item_i_uses_seed_plus_i_whatever_the_batch_size():
    task, words = Shouter(model()), list("abcde")
    expected = ["AA 4", "BB 5", "CC 6", "DD 7", "EE 8"]
    for batch_size, batches in ((1, 5 * [1]), (2, [2, 2, 1]), (9, [5])):
        task.batches = []
        assert task.shout(words, seed=4, batch_size=batch_size) == expected and task.batches == batches
    assert task.shout("b", seed=5) == expected[1]


def test_fresh_seeds_differ_and_leave_the_global_ones_alone():
    np.random.seed(3)
    task, before = Shouter(model()), np.random.get_state()[1].copy()
    assert len({task.shout("a", seed=None) for _ in range(4)}) == 4
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer, got 1.5"),
        ({"seed": -1}, "seed must be an integer from 0 up, or None for a fresh one, got -1"),
        ({"seed": "a"}, "seed must be an integer from 0 up, .*got 'a'"),
        ({"words": 3}, "Shouter takes one item or a list of them, got 3"),
        ({"words": ["a", None]}, "Shouter takes one item or a list of them, got None in the list"),
    ],
)
def test_what_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        Shouter(model()).shout(**{"words": "a"} | arguments)
