"""Models by name: listed, built, found, fetched; and what is said to a wrong name."""

import contextlib
import functools
import http.server
import json
import pathlib
import shutil
import threading

import keras
import numpy as np
import pytest

import zoo
from zoo import presets as registry
from zoo.compat.weights import unset
from zoo.errors import UserError
from zoo.io import files

pytestmark = pytest.mark.once

SAVED = pathlib.Path(__file__).resolve().parent.parent / "saved_models"


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    """An empty folder that ZOO_MODELS_DIR names; nothing is found in the checkout."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("ZOO_MODELS_DIR", str(folder))
    monkeypatch.setattr(registry, "CHECKOUT_MODELS", tmp_path / "no checkout")
    return folder


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A model file of a few hundred bytes of weights."""
    path = tmp_path_factory.mktemp("small") / "small.keras"
    x = keras.Input((3,), name="x")
    files.save_model(keras.Model(x, keras.layers.Dense(2, name="out")(x), name="small"), path)
    return path


# ---------------------------------------------------------------------------------------------------------- the rows


def test_names():
    assert {"cnn", "cnn_single_pool", "cnn_mnist", "cnn_gtsrb", "lstm_shakespeare"} <= set(zoo.list_models())
    assert zoo.list_models() == sorted(zoo.list_models(True) + zoo.list_models(False))
    assert set(zoo.list_models(True)) == {path.stem for path in SAVED.glob("*.keras")}
    assert {"cnn_mnist", "cnn_gtsrb", "lstm_shakespeare", "gru_shakespeare"} <= set(zoo.list_models(True))
    assert {"cnn", "cnn_single_pool"} <= set(zoo.list_models(False))
    assert {row.name for row in registry.MODELS.values() if row.pretrained} <= set(zoo.list_models(True))


@pytest.mark.parametrize("name", registry.MODELS)
def test_each_row_builds_what_it_states(name):
    large = registry.MODELS[name].parameters > 1e8
    with unset() if large else contextlib.nullcontext():
        model = zoo.create_model(name)
    assert model.count_params() == registry.MODELS[name].parameters
    assert model.name == name


def test_numbers_can_be_overridden():
    model = zoo.create_model("cnn", num_classes=7, image_size=8, name="little")
    assert model.output_shape == (None, 7) and model.input_shape == (None, 8, 8, 3) and model.name == "little"


def test_fresh_weights_are_not_the_pretrained_ones():
    pretrained = zoo.load_model("cnn_mnist").get_layer("cnn").get_layer("conv1").get_weights()[0]
    assert np.abs(zoo.create_model("cnn_mnist").get_layer("conv1").get_weights()[0] - pretrained).max() > 0.01


@pytest.mark.parametrize("name", ["lstm_shakespeare", "gru_shakespeare", "transformer_multi30k_en_de"])
def test_an_architecture_is_that_of_the_pretrained_file(name):
    fresh, pretrained = zoo.create_model(name), zoo.load_model(name)
    assert [layer.name for layer in fresh.layers] == [layer.name for layer in pretrained.layers]
    rates = [[layer.rate for layer in model.layers if hasattr(layer, "rate")] for model in (fresh, pretrained)]
    assert rates[0] == rates[1] and [w.shape for w in fresh.weights] == [w.shape for w in pretrained.weights]


def test_importing_the_registry_is_light(run):
    program = (
        "import sys, zoo, zoo.presets; zoo.list_models(); "
        "assert not {'keras', 'numpy', 'tensorflow', 'jax', 'torch'} & set(sys.modules)"
    )
    ended = run(["-c", program])
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "name, overrides, words",
    [
        ("cnnn", {}, "no model 'cnnn' to build: choose one of cnn, .*Did you mean 'cnn'"),
        ("cnn", {"num_clases": 3}, "takes no 'num_clases': it takes channels, .*seed.*Did you mean 'num_classes'"),
        ("cnn", {"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ("cnn", {"image_size": 50}, "multiple of 4"),
        ("cnn", {"num_classes": "ten"}, "cnn cannot be built with {'num_classes': 'ten'}"),
    ],
)
def test_what_cannot_be_built(name, overrides, words):
    with pytest.raises(UserError, match=words):
        zoo.create_model(name, **overrides)


# --------------------------------------------------------------------------------------------------- finding a file


def test_a_name_and_a_path_give_the_same_model():
    by_name, by_path = zoo.load_model("cnn_mnist"), zoo.load_model(SAVED / "cnn_mnist.keras")
    for a, b in zip(by_name.get_weights(), by_path.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_the_users_folder_comes_first(tmp_path, monkeypatch, small_file):
    shutil.copy(small_file, tmp_path / "cnn_mnist.keras")
    shutil.copy(small_file, tmp_path / "my_model.keras")
    monkeypatch.setenv("ZOO_MODELS_DIR", str(tmp_path))
    assert zoo.load_model("cnn_mnist").count_params() == 8
    assert zoo.load_model("my_model").count_params() == 8
    assert registry.find_file("cnn_gtsrb") == SAVED / "cnn_gtsrb.keras"
    assert "my_model" in zoo.list_models(True) and "my_model" not in zoo.list_models(False)


def test_a_known_name_is_no_path(tmp_path, monkeypatch):
    """A run's folder called like a model does not stand in its way."""
    (tmp_path / "cnn_mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert registry.locate("cnn_mnist") == SAVED / "cnn_mnist.keras"


@pytest.mark.parametrize(
    "name, words",
    [
        ("cnn", r"cnn is an architecture without a pretrained file: build it with create_model\('cnn'\)"),
        ("cnn_mnits", "no model 'cnn_mnits' .*Did you mean 'cnn_mnist'"),
        ("missing/file.keras", "There is no model file at missing/file.keras"),
        (str(SAVED / "cnn_mnits.keras"), "no model file at .*Did you mean 'cnn_mnist.keras'"),
        ("cnn_mnist.keras", "the pretrained model is loaded by its name, cnn_mnist"),
        (str(SAVED), "is a folder: give the path of a .keras file, e.g. .*cnn_gtsrb.keras"),
        ("tests", "tests is a folder: .*holds none"),
    ],
)
def test_what_cannot_be_loaded(name, words, monkeypatch):
    monkeypatch.chdir(SAVED.parent)
    with pytest.raises(UserError, match=words):
        zoo.load_model(name)


def test_a_models_folder_that_holds_nothing(own_models, monkeypatch):
    with pytest.raises(UserError, match="ZOO_MODELS_DIR is .*models, which holds no model"):
        zoo.load_model("cnn_mnist")
    monkeypatch.setenv("ZOO_MODELS_DIR", str(own_models / "deeper"))
    with pytest.raises(UserError, match="ZOO_MODELS_DIR is .*deeper, which is not a folder"):
        zoo.list_models()


def test_a_pretrained_file_that_is_not_here(own_models, small_file):
    shutil.copy(small_file, own_models)
    with pytest.raises(UserError, match="cnn_mnist.keras is not in .*models or .*: set ZOO_MODELS_DIR"):
        zoo.load_model("cnn_mnist")


# --------------------------------------------------------------------------------------------------------- fetching


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/served on loopback: (address, folder, list of the paths asked for)."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder, asked
        httpd.shutdown()
        thread.join()


@pytest.fixture
def card(own_models, server, small_file):
    """Writes a card that leads to the small model on the server, as far as `changes` leave it right."""
    address, folder, _ = server
    shutil.copy(small_file, folder / "small.keras")

    def write(folder=own_models, **changes):
        right = {"name": "small", "sha256": files.sha256(small_file), "url": f"{address}/small.keras"}
        content = {key: value for key, value in (right | changes).items() if value is not None}
        (folder / "small.json").write_text(json.dumps(content))

    return write


def test_a_card_is_enough(own_models, card, server, capsys):
    card()
    assert zoo.list_models(True) == ["small"]
    assert zoo.load_model("small").count_params() == 8
    assert zoo.load_model("small").count_params() == 8
    assert server[2] == ["/small.keras"]  # fetched once
    assert {path.name for path in own_models.iterdir()} == {"small.json", "small.keras"}
    assert "Downloading" not in capsys.readouterr().out  # standard output is for results


def test_an_altered_copy_is_not_opened(own_models, card):
    card()
    path = registry.find_file("small")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="altered or cut short"):
        zoo.load_model("small")


def test_a_card_of_the_checkout_fetches_into_the_cache_and_checks_it_each_time(tmp_path, monkeypatch, card, server):
    checkout, cache = tmp_path / "checkout", tmp_path / "home" / "models" / "small.keras"
    checkout.mkdir()
    monkeypatch.setattr(registry, "CHECKOUT_MODELS", checkout)
    monkeypatch.delenv("ZOO_MODELS_DIR")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    card(checkout)
    assert registry.find_file("small") == cache
    assert files.read_card(cache)["sha256"] == files.sha256(cache)  # its card came with it
    cache.write_bytes(b"something else")
    assert zoo.load_model("small").count_params() == 8  # fetched again
    assert len(server[2]) == 2
    cache.write_bytes(b"something else")
    card(checkout, url="http://127.0.0.1:9/small.keras")
    with pytest.raises(UserError, match="small cannot be fetched from http://127.0.0.1:9"):
        zoo.load_model("small")


@pytest.mark.parametrize("digest", [None, "", "abc", 5])
def test_a_card_without_a_digest_is_refused_before_anything_is_fetched(card, server, digest):
    card(sha256=digest)
    with pytest.raises(UserError, match="no sha256, so what it leads to cannot be trusted"):
        zoo.load_model("small")
    assert server[2] == []


def test_what_is_fetched_must_be_what_the_card_describes(own_models, card):
    card(sha256="0" * 64)
    with pytest.raises(UserError, match="small cannot be fetched from .*hash does not match"):
        zoo.load_model("small")
    assert {path.name for path in own_models.iterdir()} == {"small.json"}


@pytest.fixture
def language_card(card, server):
    """A card that leads to a tokenizer, too; what it holds does not matter here."""
    (server[1] / "small.tokenizer.json").write_text('{"url": "a tokenizer is no card"}')
    digest = files.sha256(server[1] / "small.tokenizer.json")

    def write(**changes):
        card(**{"tokenizer_url": f"{server[0]}/small.tokenizer.json", "tokenizer_sha256": digest} | changes)

    return write


def test_a_tokenizer_is_fetched_with_its_model(own_models, language_card, server):
    language_card()
    assert zoo.list_models(True) == ["small"]
    path = registry.find_file("small")
    assert {path.name for path in own_models.iterdir()} == {"small.json", "small.keras", "small.tokenizer.json"}
    assert files.tokenizer_path(path).read_bytes() == (server[1] / "small.tokenizer.json").read_bytes()
    assert zoo.list_models(True) == ["small"]  # a tokenizer is not taken for a card
    registry.find_file("small")
    assert sorted(server[2]) == ["/small.keras", "/small.tokenizer.json"]  # each fetched once


@pytest.mark.parametrize("digest", ["0" * 64, "abc", None])
def test_a_tokenizer_must_be_the_one_that_the_card_describes(own_models, language_card, digest):
    """Else the model is not fetched either: one that is there would be used without it ever after."""
    language_card(tokenizer_sha256=digest)
    words = "hash does not match" if digest == "0" * 64 else "has a tokenizer_url but no tokenizer_sha256"
    with pytest.raises(UserError, match=words):
        zoo.load_model("small")
    assert {path.name for path in own_models.iterdir()} == {"small.json"}


def test_cards_are_told_from_tokenizers_and_unfinished_files(tmp_path):
    for name in ("b.json", "a.json", "a.tokenizer.json", "tokenizer.json", ".a.7.json", "a.keras"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in files.cards(tmp_path)] == ["a.json", "b.json", "tokenizer.json"]


def test_a_server_that_does_not_have_it(own_models, card, server):
    card(url=server[0] + "/gone.keras")
    with pytest.raises(UserError, match="small cannot be fetched from .*404") as caught:
        zoo.load_model("small")
    assert "\n" not in str(caught.value)
    caught.value.__cause__.__context__.close()  # the answer, which urllib leaves open
    assert {path.name for path in own_models.iterdir()} == {"small.json"}


def test_a_damaged_card(own_models):
    (own_models / "small.json").write_text("[1]")
    with pytest.raises(UserError, match="small.json holds a list, not the card of a model"):
        zoo.list_models()
