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
from zoo import presets
from zoo.compat.keras import skip_weight_init
from zoo.errors import UserError
from zoo.io import cards, files, model_files

pytestmark = pytest.mark.once

SAVED = pathlib.Path(__file__).resolve().parent.parent / "saved_models"


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    """An empty folder that ZOO_MODELS_DIR names; nothing is found in the checkout."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("ZOO_MODELS_DIR", str(folder))
    monkeypatch.setattr(presets, "CHECKOUT_MODELS", tmp_path / "no checkout")
    return folder


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """The model file of a preset, of a few hundred bytes of weights."""
    path = tmp_path_factory.mktemp("presets") / "small" / "model.keras"
    path.parent.mkdir()
    x = keras.Input((3,), name="x")
    model_files.save_model(keras.Model(x, keras.layers.Dense(2, name="out")(x), name="small"), path)
    return path


# ---------------------------------------------------------------------------------------------------------- the table


def test_names():
    assert {"cnn", "cnn_single_pool", "cnn_mnist", "cnn_gtsrb", "lstm_shakespeare"} <= set(zoo.list_models())
    assert zoo.list_models() == sorted(zoo.list_models(True) + zoo.list_models(False))
    assert set(zoo.list_models(True)) == {path.parent.name for path in SAVED.glob("*/card.json")}
    assert {"cnn_mnist", "cnn_gtsrb", "lstm_shakespeare", "gru_shakespeare"} <= set(zoo.list_models(True))
    assert {"cnn", "cnn_single_pool"} <= set(zoo.list_models(False))
    assert {entry.name for entry in presets.MODELS.values() if entry.pretrained} <= set(zoo.list_models(True))


@pytest.mark.parametrize("name", presets.MODELS)
def test_each_entry_builds_what_it_states(name):
    large = presets.MODELS[name].parameters > 1e8
    with skip_weight_init() if large else contextlib.nullcontext():
        model = zoo.create_model(name)
    assert model.count_params() == presets.MODELS[name].parameters
    assert model.name == name


def test_keyword_arguments_can_be_overridden():
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


def test_importing_the_presets_is_light(run):
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


def test_a_name_a_folder_and_a_file_give_the_same_model():
    models = [
        zoo.load_model(where)
        for where in ("gru_shakespeare", SAVED / "gru_shakespeare", SAVED / "gru_shakespeare/model.keras")
    ]
    for weights in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(weights[0], weights[1])
        np.testing.assert_array_equal(weights[0], weights[2])


def test_what_a_preset_says_of_itself():
    preset = presets.find_preset("lstm_shakespeare")
    assert (preset.name, preset.folder, preset.task) == ("lstm_shakespeare", SAVED / preset.name, "text-generation")
    assert preset.model_path == SAVED / "lstm_shakespeare" / "model.keras"
    assert preset.generation_config == {"max_new_tokens": 400, "temperature": 0.8}
    again = [presets.find_preset(where) for where in (str(preset.folder), str(preset.model_path))]
    assert [other.card for other in again] == 2 * [preset.card] and {other.name for other in again} == {preset.name}
    assert preset.file("tokenizer.json").is_file()
    with pytest.raises(UserError, match="no merges.txt in .*lstm_shakespeare is not complete"):
        preset.file("merges.txt")


def test_a_run_is_a_preset_before_it_has_a_card(small_file):
    preset = presets.find_preset(small_file.parent)
    assert (preset.name, preset.card, preset.task, preset.generation_config) == ("small", {}, None, {})
    assert preset.load_model().count_params() == 8


def test_a_file_that_the_card_beside_it_does_not_name(tmp_path, small_file):
    shutil.copy(small_file, tmp_path / "other.keras")
    (tmp_path / "card.json").write_text('{"task": "translation", "files": {"model.keras": {"bytes": 1}}}')
    preset = presets.find_preset(tmp_path / "other.keras")
    assert preset.card == {} and preset.name == "other" and preset.load_model().count_params() == 8


def test_the_users_folder_comes_first(tmp_path, monkeypatch, small_file):
    for name in ("cnn_mnist", "my_model"):
        shutil.copytree(small_file.parent, tmp_path / name)
    monkeypatch.setenv("ZOO_MODELS_DIR", str(tmp_path))
    assert zoo.load_model("cnn_mnist").count_params() == 8
    assert zoo.load_model("my_model").count_params() == 8
    assert presets.find_preset("cnn_gtsrb").folder == SAVED / "cnn_gtsrb"
    assert "my_model" in zoo.list_models(True) and "my_model" not in zoo.list_models(False)


def test_a_known_name_is_no_path(tmp_path, monkeypatch):
    """A run's folder called like a model does not stand in its way."""
    (tmp_path / "cnn_mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert presets.resolve_model_path("cnn_mnist") == SAVED / "cnn_mnist" / "model.keras"


@pytest.mark.parametrize(
    "name, words",
    [
        ("cnn", r"cnn is an architecture without a pretrained file: build it with create_model\('cnn'\)"),
        ("cnn_mnits", "no model 'cnn_mnits' .*Did you mean 'cnn_mnist'"),
        ("missing/file.keras", "There is no model file at missing/file.keras"),
        (str(SAVED / "cnn_mnist" / "modle.keras"), "no model file at .*Did you mean 'model.keras'"),
        ("cnn_mnist.keras", "the preset is loaded by its name, cnn_mnist"),
        ("missing/folder", "There is no folder missing/folder: give a preset's name or folder"),
        (str(SAVED), "is a folder without model.keras, .*: give the folder of a preset, e.g. .*cnn_gtsrb"),
        ("tests/", "is a folder without model.keras, .*: give the folder of a preset or a .keras file"),
        ("diffusion_captions", "consists of 5 models: give one of diffusion_captions/classifier, "),
    ],
)
def test_what_cannot_be_loaded(name, words, monkeypatch):
    monkeypatch.chdir(SAVED.parent)
    with pytest.raises(UserError, match=words):
        zoo.load_model(name)


def test_a_models_folder_that_holds_nothing(own_models, monkeypatch):
    with pytest.raises(UserError, match="ZOO_MODELS_DIR is .*models, which holds no preset"):
        zoo.load_model("cnn_mnist")
    monkeypatch.setenv("ZOO_MODELS_DIR", str(own_models / "deeper"))
    with pytest.raises(UserError, match="ZOO_MODELS_DIR is .*deeper, which is not a folder"):
        zoo.list_models()


def test_a_preset_that_is_not_here(own_models, small_file):
    shutil.copytree(small_file.parent, own_models / "small")
    with pytest.raises(
        UserError, match="The preset cnn_mnist is not in .*/models: set ZOO_MODELS_DIR to the folder saved_models of"
    ):
        zoo.load_model("cnn_mnist")


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("model_index.json", "{}", "in the format of diffusers: .*`zoo convert stable-diffusion .* FOLDER`"),
        ("config.json", '{"model_type": "marian"}', "in the format of transformers: .*`zoo convert marian .* FOLDER`"),
        ("config.json", '{"model_type": "gpt2"}', "transformers: `zoo convert` reads model_type 'marian', not 'gpt2'"),
        ("card.json", "[1]", "card.json holds a list, not a JSON object"),
        ("card.json", "{", "card.json is not valid JSON"),
        ("card.json", '{"files": 3}', "card.json says files is 3, where an object was expected"),
        ("card.json", '{"files": {"../a": {}}}', "card.json, a key of files is not the name of a file in its folder"),
    ],
)
def test_folders_in_other_formats_and_damaged_ones(tmp_path, file, content, words):
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=words):
        presets.find_preset(tmp_path)


# ------------------------------------------------------------------------------------------------ the Hugging Face Hub


@pytest.fixture
def hub(tmp_path, monkeypatch, small_file):
    """huggingface_hub's `snapshot_download` as it behaves, without a network: calls made are in the list returned."""
    calls = []

    def snapshot_download(repo_id, *, revision=None):
        calls.append((repo_id, revision))
        if repo_id != "someone/small":
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"cannot find {repo_id} on the Hub")
        folder = tmp_path / "snapshots" / (revision or "main")
        if not folder.exists():
            shutil.copytree(small_file.parent, folder)
        return str(folder)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_preset_of_the_hub(hub, tmp_path):
    preset = presets.find_preset("hf://someone/small", revision="v1")
    assert preset.name == "small" and preset.folder == tmp_path / "snapshots" / "v1"
    assert zoo.load_model("hf://someone/small").count_params() == 8
    assert hub == [("someone/small", "v1"), ("someone/small", None)]


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(
        UserError, match="hf://nobody/none at revision v2 cannot be fetched .cannot find nobody/none.*: check the name"
    ):
        presets.find_preset("hf://nobody/none", revision="v2")
    with pytest.raises(UserError, match="hf://small is not a repository: write hf://owner/name"):
        presets.find_preset("hf://small")
    with pytest.raises(UserError, match="revision is for hf:// presets, got revision 'v1' with cnn_mnist"):
        presets.find_preset("cnn_mnist", revision="v1")


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
    address, served, _ = server
    shutil.copy(small_file, served)
    (served / "tokenizer.json").write_text("{}")

    def write(root=own_models, tokenizer=None, **changes):
        right = {"sha256": files.sha256(small_file), "url": f"{address}/model.keras"}
        described = {"model.keras": {key: value for key, value in (right | changes).items() if value is not None}}
        if tokenizer is not None:
            right = {"sha256": files.sha256(served / "tokenizer.json"), "url": f"{address}/tokenizer.json"}
            described["tokenizer.json"] = {k: v for k, v in (right | tokenizer).items() if v is not None}
        (root / "small").mkdir(exist_ok=True)
        (root / "small" / "card.json").write_text(json.dumps({"name": "small", "files": described}))

    return write


def names_in(folder):
    """The names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


def test_a_card_is_enough(own_models, card, server, capsys):
    card()
    assert zoo.list_models(True) == ["small"]
    assert zoo.load_model("small").count_params() == 8
    assert zoo.load_model("small").count_params() == 8
    assert server[2] == ["/model.keras"]  # fetched once
    assert names_in(own_models / "small") == {"card.json", "model.keras"}
    assert "Downloading" not in capsys.readouterr().out  # standard output is for results


def test_an_altered_copy_is_not_opened(own_models, card):
    card()
    path = presets.resolve_model_path("small")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="altered or cut short"):
        zoo.load_model("small")


def test_a_card_of_the_checkout_fetches_into_the_cache_and_checks_it_each_time(tmp_path, monkeypatch, card, server):
    checkout, cache = tmp_path / "checkout", tmp_path / "home" / "models" / "small" / "model.keras"
    checkout.mkdir()
    monkeypatch.setattr(presets, "CHECKOUT_MODELS", checkout)
    monkeypatch.delenv("ZOO_MODELS_DIR")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    card(checkout)
    assert presets.resolve_model_path("small") == cache
    assert cards.read_card(cache)["files"]["model.keras"]["sha256"] == files.sha256(cache)  # its card came with it
    cache.write_bytes(b"something else")
    assert zoo.load_model("small").count_params() == 8  # fetched again
    assert len(server[2]) == 2
    cache.write_bytes(b"something else")
    card(checkout, url="http://127.0.0.1:9/model.keras")
    with pytest.raises(UserError, match="small cannot be fetched from http://127.0.0.1:9"):
        zoo.load_model("small")


@pytest.mark.parametrize("digest", [None, "", "abc", 5])
def test_a_card_without_a_digest_is_refused_before_anything_is_fetched(card, server, digest):
    card(sha256=digest)
    words = {None: "no sha256, so what it leads to cannot be trusted", 5: "is not a string or null"}
    with pytest.raises(UserError, match=words.get(digest, "an entry of files.sha256 is not a sha256")):
        zoo.load_model("small")
    assert server[2] == []


def test_what_is_fetched_must_be_what_the_card_describes(own_models, card):
    card(sha256="0" * 64)
    with pytest.raises(UserError, match="small cannot be fetched from .*hash does not match"):
        zoo.load_model("small")
    assert names_in(own_models / "small") == {"card.json"}


def test_a_tokenizer_is_fetched_with_its_model(own_models, card, server):
    card(tokenizer={})
    folder = presets.find_preset("small").folder
    assert names_in(folder) == {"card.json", "model.keras", "tokenizer.json"}
    assert (folder / "tokenizer.json").read_bytes() == (server[1] / "tokenizer.json").read_bytes()
    presets.find_preset("small")
    assert sorted(server[2]) == ["/model.keras", "/tokenizer.json"]  # each fetched once


@pytest.mark.parametrize("digest", ["0" * 64, "abc", None])
def test_a_tokenizer_must_be_the_one_that_the_card_describes(own_models, card, digest):
    """Else the model is not fetched either: one that is there would be used without it ever after."""
    card(tokenizer={"sha256": digest})
    words = {"0" * 64: "hash does not match", "abc": "is not a sha256"}
    words = words.get(digest, "has a url for tokenizer.json but no sha256")
    with pytest.raises(UserError, match=words):
        zoo.load_model("small")
    assert names_in(own_models / "small") == {"card.json"}


def test_a_server_that_does_not_have_it(own_models, card, server):
    card(url=server[0] + "/gone.keras")
    with pytest.raises(UserError, match="small cannot be fetched from .*404") as caught:
        zoo.load_model("small")
    assert "\n" not in str(caught.value)
    caught.value.__cause__.__context__.close()  # the answer, which urllib leaves open
    assert names_in(own_models / "small") == {"card.json"}


def test_a_link_that_was_checked_out_as_text(tmp_path, small_file):
    """As on Windows: the sha256 tells, in one sentence."""
    (tmp_path / "model.keras").write_text("../small.keras")
    digest = files.sha256(small_file)
    (tmp_path / "card.json").write_text(json.dumps({"files": {"model.keras": {"sha256": digest}}}))
    with pytest.raises(
        UserError, match="model.keras has sha256 .* but card.json beside it says .* fetch it again"
    ) as caught:
        zoo.load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_of_several_models_is_named_after_a_slash():
    for whole in ("diffusion_captions", str(SAVED / "diffusion_captions")):
        found = presets.find_preset(f"{whole}/decoder")
        assert found.model_path == SAVED / "diffusion_captions" / "decoder.keras" == found.model_paths[0]
        assert presets.resolve_model_path(f"{whole}/decoder") == found.model_path and found.task is None
    with pytest.raises(UserError, match="diffusion_captions has no model 'decodr': .*Did you mean 'decoder'"):
        presets.find_preset("diffusion_captions/decodr")
    with pytest.raises(UserError, match="There is no folder nothing/decoder"):
        presets.find_preset("nothing/decoder")
    with pytest.raises(UserError, match="card.json is not a .keras file"):
        presets.find_preset(SAVED / "cnn_mnist" / "card.json")
