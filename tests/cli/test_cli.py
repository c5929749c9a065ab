"""The `zoo` command as people type it: what it prints, how fast it answers, and what it says to mistakes."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.parity.test_verify import run_child_here
from zoo import cli as command
from zoo import data
from zoo.errors import UserError
from zoo.parity import verify
from zoo.parity.records import ParityRecord, parity_path

pytestmark = pytest.mark.once

SAVED = ROOT / "saved_models"


def zoo(run, *arguments, **environment):
    return run(["-m", "zoo", *arguments], **environment)


# ------------------------------------------------------------------------------------------------------- answers fast

COMMANDS = command.VERBS
HEAVY = "{'numpy', 'keras', 'tensorflow', 'jax', 'torch', 'PIL', 'matplotlib', 'sklearn'}"
ARGUMENTS = [["--help"], ["list"], *([name, "--help"] for name in COMMANDS)]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_help_and_list_answer_at_once(run, arguments):
    program = (
        f"import sys; sys.argv = ['zoo', *{arguments!r}]\n"
        "from zoo.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    ended = run(["-c", program])
    assert ended.returncode == 0, ended.stderr
    for _ in range(5):  # the best of at most five: others may be busy on this machine
        start = time.perf_counter()
        ended = zoo(run, *arguments)
        seconds = time.perf_counter() - start
        assert ended.returncode == 0 and ended.stderr == ""
        if seconds < 0.5:
            break
    assert seconds < 0.5


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_explains_every_flag_in_80_columns(verb, capsys, monkeypatch):
    """Each flag that takes a value says its default, but for files to write, which have none."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="^0$"):
        command.run([verb, "--help"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert f"zoo {verb} " in printed.partition("example")[2], "no example"
    parser = command._parser()._subparsers._group_actions[0].choices[verb]
    for action in parser._actions:
        assert action.help, action.dest
        if action.option_strings and action.nargs != 0 and not action.required:
            without = action.metavar == "FILE" or "default" in action.help
            assert without, f"{verb} {action.option_strings[0]} does not say its default"


def test_help_names_every_command(run):
    printed = zoo(run, "--help").stdout
    assert all(f"\n    {name} " in printed for name in COMMANDS)
    assert zoo(run).stdout == printed


def test_the_console_script_is_this_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"zoo": f"{command.__name__}:main"} and callable(command.main)


# --------------------------------------------------------------------------------------------------------------- list


PRETRAINED = "Presets in saved_models: cnn_gtsrb, cnn_mnist, diffusion_captions,"


def test_list(run):
    ended = zoo(run, "list")
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0 and max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split() for line in lines[: lines.index("")]}
    assert rows["cnn_mnist"] == "cnn_mnist image-classification 9,536,074 99.45% acc 38 MB".split()
    assert rows["cnn_single_pool"] == "cnn_single_pool image-classification 18,899,402".split()
    assert rows["lstm_shakespeare"] == "lstm_shakespeare text-generation 3,318,401 2.187 bpc 13 MB".split()
    assert rows["transformer_multi30k_en_de"][1:5] == ["translation", "7,066,624", "38.3", "BLEU"]
    assert rows["diffusion_captions"] == "diffusion_captions text-to-image 10,352,671 94.8% acc 43 MB".split()
    assert PRETRAINED in lines
    printed = zoo(run, "list", "--pretrained").stdout
    assert "cnn_gtsrb" in printed and "cnn_single_pool" not in printed


def test_list_shows_the_users_folder_and_what_is_still_to_be_fetched(run, tmp_path):
    for name in ("mine", "far"):
        (tmp_path / name).mkdir()
    shutil.copy(SAVED / "gru_shakespeare" / "model.keras", tmp_path / "mine")
    entry = {"sha256": "0" * 64, "url": "https://example.org/far.keras", "bytes": 2_000_000}
    card = {"files": {"model.keras": entry}, "parameters": 12}
    (tmp_path / "far" / "card.json").write_text(json.dumps(card))
    lines = zoo(run, "list", ZOO_MODELS_DIR=str(tmp_path)).stdout.splitlines()
    assert f"Presets in {tmp_path}: mine" in lines and PRETRAINED in lines
    assert "Fetched from https://example.org/far.keras at first use: far" in lines
    assert ["far", "12", "2.0", "MB"] in [line.split() for line in lines]


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sumary", "cnn"], "There is no command 'sumary': .*Did you mean 'summary'"),
        (["summary", "cnn_mnits"], "Did you mean 'cnn_mnist'"),
        (["summary", "missing/file.keras"], "There is no model file at missing/file.keras"),
        (
            ["summary", "saved_models"],
            "saved_models is a folder without model.keras, .*: give the folder of a preset, e.g. ",
        ),
        (["summary", "cnn", "--input-shape", "48,b"], "'48,b' is not a shape such as 48,48,3 or image=48,48,3"),
        (["summary", "cnn", "--input-shape", "=48"], "'=48' is not a shape"),
        (["summary", "cnn", "--input-shape", "48,48,3", "40,40,3"], "one shape without a name, or each with the name"),
        (["summary", "diffusion_captions/denoisr"], "has no model 'denoisr': .*Did you mean 'denoiser'"),
        (["summary", "cnn", "--ful1"], "zoo summary does not take --ful1: .*Did you mean '--full'"),
        (["generate", "lstm_shakespeare", "O", "ROMEO"], "does not take ROMEO: .*Put what has spaces in quotes"),
        (["--verson"], "zoo does not take --verson: `zoo --help` lists the commands"),
        (["quiz", "diffusion_captions"], "consists of 5 models: give one of diffusion_captions/classifier, "),
        (["quiz", "cnn", "--questions", "0"], "--questions: must be at least 1, got 0"),
        (["verify", "saved_models/cnn_mnist/card.json"], "card.json is not a .keras file"),
        (["verify", "diffusion_captions/nothing"], "has no model 'nothing': choose one of classifier, decoder, "),
        (["summary"], "the following arguments are required: model"),
        (["quiz", "cnn", "--seed", "-1"], "--seed: must be at least 0, got -1"),
        (["quiz", "cnn", "--answers", "nowhere.txt"], "No such file or directory: nowhere.txt"),
        (["classify", "README.md"], "README.md is not an image"),
        (["classify", "nowhere.png"], "There is no image at nowhere.png"),
        (["classify", "saved_models"], "saved_models is not an image .Is a directory"),
        (["classify", "docs/images/digit.png", "README.md"], "README.md is not an image"),
        (["classify", "docs/images/digit.png", "--model", "cnn"], "cnn is an architecture without"),
        (["classify", "docs/images/digit.png", "--top-k", "0"], "--top-k: must be at least 1, got 0"),
        (["verify", "cnn"], "cnn is an architecture without a pretrained file"),
        (["verify", "cnn_mnist", "--backends", "jaks"], "Did you mean 'jax'"),
        (["verify", "cnn_mnist", "--tolerance", "-1"], "tolerance must be a number from 0 up"),
        (["verify", "cnn_mnist", "--tolerance", "x"], "argument --tolerance: invalid float value"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_told_in_one_line_at_once(run, arguments, words):
    start = time.perf_counter()
    ended = zoo(run, *arguments)
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(words, line), line
    assert time.perf_counter() - start < 3  # before any framework is loaded


def test_a_models_folder_without_models(run, tmp_path):
    for folder, words in ((tmp_path, "which holds no preset"), (tmp_path / "none", "which is not a folder")):
        ended = zoo(run, "list", ZOO_MODELS_DIR=str(folder))
        assert ended.returncode == 2 and words in ended.stderr and ended.stderr.count("\n") == 1


def test_backends_that_are_not_there(run, tmp_path):
    """A name that is none; one that is not installed; and none chosen where TensorFlow is not installed."""
    ended = zoo(run, "summary", "cnn", backend="torhc")
    assert ended.returncode == 2 and "KERAS_BACKEND is 'torhc'" in ended.stderr and "'torch'?" in ended.stderr
    hide = "import sys; sys.modules['tensorflow'] = None"
    (tmp_path / "sitecustomize.py").write_text(hide)
    ended = zoo(run, "summary", "cnn", backend="tensorflow", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 2 and "KERAS_BACKEND is tensorflow, which is not installed" in ended.stderr
    sentence = "is tensorflow, which is not installed: pip install 'keras-model-zoo[tensorflow]', or use jax or torch."
    assert sentence in ended.stderr
    ended = run(["-c", "import zoo; zoo.CausalLM"], backend="tensorflow", PYTHONPATH=str(tmp_path))
    assert f"UserError: the backend {sentence}" in ended.stderr
    (tmp_path / "sitecustomize.py").write_text(hide + "; sys.modules['jax'] = None")
    as_command = "from zoo import backends; backends.skip_optional_imports(); backends.import_keras()\nimport keras"
    as_library = "import sys; sys.modules.update(sklearn=None, matplotlib=None)  # which Keras imports for itself\n"
    as_library += "import zoo.models.cnn, keras"
    for program in (as_command, as_library):
        program = f"import os; os.environ.pop('KERAS_BACKEND')\n{program}; print(keras.backend.backend())"
        ended = run(["-c", program], PYTHONPATH=str(tmp_path))
        assert ended.stdout == "torch\n" and ended.stderr == "", ended.stderr


@pytest.mark.parametrize(
    "backend", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("tensorflow", "jax")), "torch"]
)
def test_what_the_command_leaves_out_can_be_imported_later(run, backend):
    """Packages that Keras would import for what nothing here uses, and PyTorch's compiler, which takes seconds."""
    program = (
        "import sys\n"
        "from zoo import backends; backends.skip_optional_imports(); backends.import_keras()\n"
        "left = [name for name in ('sklearn', 'matplotlib', 'torch._dynamo') if name in sys.modules]\n"
        "import keras\n"
        "keras.layers.Dropout(0.5)(keras.ops.ones((2, 2)), training=True)\n"
        "import matplotlib.pyplot, sklearn\n"
        "print(left, keras.backend.backend())"
    )
    ended = run(["-c", program], backend=backend)
    assert ended.stdout == f"[] {backend}\n", ended.stderr


def test_the_reader_of_a_pipe_may_leave():
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo", "list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


# ------------------------------------------------------------------------------------------------ summary and quiz


def test_summary_of_an_architecture_and_of_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert command.main(["summary", "cnn"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "9,536,074" in printed.out and "(3·3·32 + 1)·64" in printed.out
    assert max(map(len, printed.out.splitlines())) <= 80
    page = tmp_path / "page.html"
    assert command.main(["summary", str(SAVED / "cnn_gtsrb/model.keras"), "--html", str(page)]) == 0
    assert capsys.readouterr().out == f"The summary of {SAVED / 'cnn_gtsrb/model.keras'} is in {page}.\n"
    assert "9,553,003" in page.read_text()


def test_summary_for_programs(capsys):
    assert command.main(["summary", "cnn", "--json", "--batch-size", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 9_536_074
    assert command.main(["summary", "cnn_mnist", "--markdown", "--input-shape", "28x28x1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("|") and "28·28·1" in printed
    with pytest.raises(UserError, match="Cannot write /nowhere/page.html .*name another file with --html"):
        command.run(["summary", "cnn", "--html", "/nowhere/page.html"])


def test_summary_of_several_models_is_each(capsys):
    assert command.main(["summary", "diffusion_captions", "--json", "--input-shape", "latents=8,8,4"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [one["parameters"] for one in described] == [2_455_252, 1_049_303, 5_599_652, 645_968, 602_496]
    assert sum(one["parameters"] for one in described) == 10_352_671  # as `zoo list` says
    assert [one["rows"][0]["outputs"] for one in described[1:3]] == [[[8, 8, 4]], [[8, 8, 4]]]
    with pytest.raises(UserError, match="--input-shape names nothing, which is an input of none of these models"):
        command.run(["summary", "diffusion_captions", "--json", "--input-shape", "nothing=8,8,4"])


@pytest.mark.parametrize("name", sorted(path.parent.name for path in SAVED.glob("*/card.json")))
def test_the_macs_of_every_preset_are_known(name, capsys):
    command.main(["summary", name, "--json"])
    described = json.loads(capsys.readouterr().out)
    for one in described if isinstance(described, list) else [described]:
        assert one["unknown"] == [] and one["macs"] > 0


def test_a_summary_needs_no_weights(monkeypatch, capsys):
    """Drawing those of sd15_denoiser takes 3.4 GB and half a minute; those of a file take reading it."""
    import keras

    def refuse(*args, **kwargs):
        pytest.fail("weights are drawn or read")

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", refuse)
    monkeypatch.setattr(keras.Model, "load_weights", refuse)
    monkeypatch.setattr(keras.saving, "load_model", refuse)
    for name in ("cnn", "cnn_mnist"):
        command.run(["summary", name])
        assert "9,536,074 parameters" in capsys.readouterr().out


def test_input_shapes_by_name(capsys):
    from zoo.parity.records import recorded_input_shapes

    def inputs(*shapes):
        command.run(["summary", "transformer_multi30k_de_en", "--json", "--input-shape", *shapes])
        rows = json.loads(capsys.readouterr().out)["rows"]
        return {row["path"]: row["outputs"][0][0] for row in rows if row["kind"] == "InputLayer"}

    recorded = recorded_input_shapes(SAVED / "transformer_multi30k_de_en" / "model.keras")
    assert inputs("target=9", "source=64") == {"source": 64, "target": 9}
    assert inputs("source=64") == {"source": 64, "target": recorded[1][0]}
    assert inputs("30") == {"source": 30, "target": 30}
    with pytest.raises(
        UserError, match="There is no input 'sorce': choose among source, target. Did you mean 'source'"
    ):
        inputs("sorce=3")
    with pytest.raises(UserError, match=r"one example for .* has shape \? for source, \? for target"):
        inputs("source=3,3")
    command.run(["summary", "transformer_multi30k_de_en"])
    printed = capsys.readouterr().out
    assert f"parity record: source {recorded[0][0]}, target {recorded[1][0]}." in printed
    assert "encoder_0…2  ×3" in printed and len(printed.splitlines()) < 24
    command.run(["summary", "transformer_multi30k_de_en", "--full"])
    assert "= (256 + 1)·1024" in capsys.readouterr().out


def test_quiz_sheet(capsys):
    assert not command.main(["quiz", "cnn", "--questions", "12", "--answers"])
    assert "(128·12·12 + 1)·512 = 9,437,696" in capsys.readouterr().out.partition("Answers")[2]


def test_quiz(run, tmp_path):
    (tmp_path / "answers.txt").write_text("1\n2\n")
    ended = zoo(run, "quiz", "cnn", "--questions", "2", "--answers", str(tmp_path / "answers.txt"))
    assert ended.returncode == 1 and "0 of 2 right" in ended.stdout and ended.stderr == ""


# ---------------------------------------------------------------------------------------------------- generate: text


def test_generate_text(tmp_path, capsys):
    from zoo.io import model_files
    from zoo.models.rnn_language_model import rnn_language_model
    from zoo.tokenizers.text import save_tokenizer, train_tokenizer

    model_files.save_model(rnn_language_model(cell="gru", vocabulary_size=4, units=5), tmp_path / "m.keras")
    save_tokenizer(train_tokenizer("abcd", "char"), tmp_path / "tokenizer.json")

    def generate(*arguments):
        command.run(["generate", str(tmp_path / "m.keras"), *arguments])
        return capsys.readouterr().out

    texts = [generate("abc", "--max-new-tokens", "30", "--seed", seed) for seed in ("1", "1", "2")]
    assert re.fullmatch(r"abc[abcd]{30}\n", texts[0]) and texts[0] == texts[1] != texts[2]
    greedy = [generate("abc", "--max-new-tokens", "30", *more) for more in (["--greedy"], ["--temperature", "0"])]
    assert greedy[0] == greedy[1]
    printed = generate("abc", "--top-tokens", "3").splitlines()
    assert len(printed) == 3 and all(re.fullmatch(r" +\d+\.\d%  '[abcd]'", line) for line in printed)
    for arguments, message in (
        (["abxy"], "'x', 'y'"),
        ([""], "prompt is empty"),
        (["a", "--temperature", "-1"], "-1"),
        (["a", "--top-p", "2"], "2"),
        (["a", "--num-steps", "2"], "m generates text, for which --num-steps has no meaning"),
    ):
        with pytest.raises(UserError, match=message):
            generate(*arguments)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("name", ["lstm_shakespeare", "gru_shakespeare"])
def test_same_text_on_two_backends(run, name):
    arguments = ["generate", name, "ROMEO:", "--max-new-tokens", "60"]
    texts = [zoo(run, *arguments, backend=backend) for backend in ("jax", "torch")]
    assert [ended.returncode for ended in texts] == [0, 0], texts[0].stderr + texts[1].stderr
    assert texts[0].stdout == texts[1].stdout and texts[0].stderr == ""
    assert texts[0].stdout.startswith("ROMEO:\n") and len(texts[0].stdout) == len("ROMEO:") + 60 + 1
    probability, token = zoo(run, "generate", name, "ROMEO:", "--top-tokens", "1", backend="torch").stdout.split()
    assert token == repr("\n") and float(probability.rstrip("%")) > 90


def test_a_preset_of_another_task(capsys):
    for arguments, message in (
        (["generate", "cnn_mnist", "a"], "preset for image-classification, .*: load it with zoo.ImageClassifier"),
        (["classify", "--model", "lstm_shakespeare", "docs/images/digit.png"], "load it with zoo.CausalLM"),
        (["translate", "cnn_mnist", "a"], "load it with zoo.ImageClassifier"),
    ):
        with pytest.raises(UserError, match=message) as error:
            command.run(arguments)
        assert capsys.readouterr().out == "" and "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- classify


@pytest.fixture(scope="module")
def scan(tmp_path_factory, request):
    """A MNIST test image as a file, and its label; light ink on dark ground."""
    dataset = request.getfixturevalue("mnist")
    path = tmp_path_factory.mktemp("scan") / "digit.png"
    Image.fromarray(dataset.x_test[0, ..., 0]).save(path)
    return path, str(dataset.y_test[0])


def variants(path, folder):
    """The same digit in other files, (name, whether it must be inverted)."""
    digit = Image.open(path)
    dark = Image.fromarray(255 - np.asarray(digit))
    large = dark.resize((1200, 1200), Image.Resampling.BICUBIC)
    large.save(folder / "large.jpg")
    turned = large.rotate(90)
    exif = turned.getexif()
    exif[0x0112] = 6  # "turn me by 90 degrees to the right to see me upright"
    turned.save(folder / "turned.jpg", exif=exif)
    ink = Image.new("RGBA", digit.size, (0, 0, 0, 0))
    ink.putalpha(digit)
    ink.save(folder / "transparent.png")
    Image.fromarray(np.asarray(digit).astype("uint16") * 257).save(folder / "deep.png")
    digit.convert("RGB").save(folder / "colour.bmp")
    digit.convert("P").save(folder / "palette.gif")
    names = ("large.jpg", "turned.jpg", "transparent.png", "deep.png", "colour.bmp", "palette.gif")
    return [(folder / name, name in names[:3]) for name in names]


def test_classify_reads_any_image(scan, tmp_path, capsys):
    path, label = scan
    files = [(path, False), *variants(path, tmp_path)]
    assert command.main(["classify", *(str(file) for file, _ in files), "--top-k", "2"]) == 0
    blocks = capsys.readouterr().out.splitlines()
    assert len(blocks) == 3 * len(files)
    for (file, inverted), head, best in zip(files, blocks[::3], blocks[1::3]):
        assert head == f"{file}  (inverted, because its border is light)" if inverted else head == str(file)
        name, probability, bar = best.split()
        assert name == label and float(probability.rstrip("%")) > 90 and bar == "█" * len(bar)


def test_invert_is_the_users_word(scan, tmp_path, capsys):
    path, label = scan
    Image.fromarray(255 - np.asarray(Image.open(path))).save(tmp_path / "dark.png")
    for invert, head in (("no", ""), ("yes", "  (inverted)")):
        command.main(["classify", str(tmp_path / "dark.png"), "--invert", invert])
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == f"{tmp_path / 'dark.png'}{head}"
        assert (printed[1].split()[0] == label) == (invert == "yes")


def test_classify_signs_by_name(tmp_path, gtsrb_file, capsys):
    dataset = data.load_images("gtsrb", gtsrb_file)
    stop = int(np.flatnonzero(dataset.y_test == dataset.class_names.index("Stop"))[0])
    Image.fromarray(dataset.x_test[stop]).save(tmp_path / "sign.png")
    command.main(["classify", str(tmp_path / "sign.png"), "--model", "cnn_gtsrb", "--top-k", "1"])
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "Stop"


def test_cards_name_the_classes(gtsrb_file):
    names = data.load_images("gtsrb", gtsrb_file).class_names
    assert json.loads((SAVED / "cnn_gtsrb/card.json").read_text())["class_names"] == list(names)
    assert json.loads((SAVED / "cnn_mnist/card.json").read_text())["class_names"] == list("0123456789")


def test_a_model_of_any_size_with_a_softmax_and_without_a_card(tmp_path, capsys):
    import keras

    image = keras.Input((6, 9, 3))
    output = keras.layers.Dense(4, activation="softmax")(keras.layers.Flatten()(image))
    keras.Model(image, output).save(tmp_path / "soft.keras")
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype("uint8")
    Image.fromarray(picture).save(tmp_path / "picture.png")
    command.main(["classify", str(tmp_path / "picture.png"), "--model", str(tmp_path / "soft.keras"), "--top-k", "9"])
    printed = capsys.readouterr()
    assert f"note: nothing vouches for {tmp_path / 'soft.keras'}: no card.json beside it" in printed.err
    printed = printed.out.splitlines()
    assert printed[0] == str(tmp_path / "picture.png")  # colour pictures are not inverted by themselves
    shown = {int(line.split()[0]): float(line.split()[1].rstrip("%")) for line in printed[1:]}
    expected = keras.saving.load_model(tmp_path / "soft.keras").predict(picture[None].astype("float32"), verbose=0)[0]
    assert shown == {k: pytest.approx(100 * expected[k], abs=0.06) for k in range(4)}

    words = keras.Input((7,))
    keras.Model(words, keras.layers.Dense(3)(words)).save(tmp_path / "words.keras")
    with pytest.raises(UserError, match="an image classifier maps .batch, height, width, 1 or 3."):
        command.run(["classify", str(tmp_path / "picture.png"), "--model", str(tmp_path / "words.keras")])


def test_class_names_beside_the_model(tmp_path, capsys):
    """Those of a run's metrics.json or of a card, for a file that no card describes; numbers where they do not fit."""
    import keras

    image = keras.Input((4, 4, 1))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(image)))
    Image.new("L", (4, 4), 9).save(tmp_path / "picture.png")

    def labels(name):
        command.main(["classify", str(tmp_path / "picture.png"), "--model", str(tmp_path / name)])
        return {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}

    for name in ("model.keras", "other.keras"):
        model.save(tmp_path / name)
    assert labels("model.keras") == {"0", "1", "2"}
    (tmp_path / "metrics.json").write_text(json.dumps({"class_names": ["cat", "dog", "hen"]}))
    assert labels("model.keras") == labels("other.keras") == labels("") == {"cat", "dog", "hen"}
    (tmp_path / "card.json").write_text(json.dumps({"class_names": ["one", "two", "three"], "files": {}}))
    assert labels("other.keras") == {"one", "two", "three"}
    for file in ("metrics.json", "card.json"):
        (tmp_path / file).write_text(json.dumps({"class_names": ["cat", "dog"]}))
    assert labels("other.keras") == {"0", "1", "2"}


def test_every_image_is_read_before_the_model_is_loaded(tmp_path, monkeypatch):
    from zoo.tasks.image_classifier import ImageClassifier

    Image.new("L", (5, 5)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((ROOT / "docs/images/cnn_mnist_mistakes.png").read_bytes()[:3000])
    monkeypatch.setattr(ImageClassifier, "from_preset", lambda *arguments: pytest.fail("too early"))
    with pytest.raises(UserError, match="cut.png is not an image"):
        command.run(["classify", str(tmp_path / "good.png"), str(tmp_path / "cut.png")])


# ------------------------------------------------------------------------------------------------------------- verify


@pytest.mark.heavy
def test_verify_ends_with_0_or_1(run, tmp_path, monkeypatch, capsys):
    ended = zoo(run, "verify", "cnn_mnist", "--backends", "torch")
    assert ended.returncode == 0 and "torch gives the numbers of the parity record." in ended.stdout
    assert max(map(len, ended.stdout.splitlines()[1:])) <= 80 and ended.stderr == ""  # the first line has the path
    path = pathlib.Path(shutil.copy(SAVED / "cnn_mnist/model.keras", tmp_path / "other.keras"))
    record = ParityRecord.load(parity_path(SAVED / "cnn_mnist/model.keras"))
    record.outputs[0][0, 0] += 1
    record.save(parity_path(path))
    monkeypatch.setattr(verify, "_run_child", run_child_here)
    assert command.main(["verify", str(path), "--backends", "torch"]) == 1
    assert "torch differs from the parity record in its outputs" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted(path.parent.name for path in SAVED.glob("*/card.json")))
def test_parity_records_of_the_presets(run, name):
    """One file on every backend; of the others, of which `test_saved_models` compares the backends, the record."""
    backends, words = ["--backends", "torch"], "torch gives the numbers of the parity record."
    if name == "cnn_mnist":
        backends, words = [], "All 3 backends give the numbers of the parity record."
    ended = zoo(run, "verify", name, *backends)
    assert ended.returncode == 0 and words in ended.stdout, ended.stdout + ended.stderr
