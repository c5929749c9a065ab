"""The translation recipe, run at a tiny size: it learns, resumes, agrees between backends, and says what is wrong."""

import importlib
import os
import re
import signal
import time

import keras
import numpy as np
import pytest

from zoo import cli
from zoo.errors import UserError
from zoo.io import model_files
from zoo.models.transformer import transformer
from zoo.tasks.translator import Translator
from zoo.tokenizers import load_tokenizer
from zoo.tokenizers.shared_bpe import SharedBPETokenizer

RECIPE = "recipes/transformer_multi30k.py"
TINY = "--num-layers 1 --hidden-dim 32 --intermediate-dim 32 --num-heads 2 --vocabulary-size 300".split()
TINY += ["--batch-tokens", "256", "--epochs", "2", "--dropout", "0.1"]
recipe = importlib.import_module("recipes.transformer_multi30k")

WORDS = {"a": "one", "b": "two", "c": "three", "d": "four", "e": "five", "f": "six"}


def write_pairs(path):
    """A toy language: letters to words, 400 pairs of 1 to 4."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(400):
            letters = rng.choice(list(WORDS), rng.integers(1, 5))
            file.write(" ".join(letters) + "\t" + " ".join(WORDS[letter] for letter in letters) + "\n")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "toy.tsv")


def train(pairs, output, *more):
    return recipe.main(recipe.parse_args([*TINY, "--pairs", str(pairs), "--output", str(output), *more]))


RESUMABLE = ["--epochs", "3", "--average-checkpoints", "2", "--limit", "150"]


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory):
    """(folder, metrics) of a run of three epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(pairs, folder, *RESUMABLE)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")  # trained there by test_same_losses.py
def test_a_run_leaves_everything_behind(finished):
    folder, _ = finished
    found = {path.name for path in folder.iterdir()}
    expected = {"model.keras", "tokenizer.json", "metrics.json", "history.csv", "report.txt", "translations.txt"}
    assert found == expected | {"card.json", "attention.png", "training_curves.png"}
    for name in ("attention.png", "training_curves.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    header, *rows = (folder / "history.csv").read_text().split()
    assert header.startswith("epoch,loss,val_loss,val_bleu") and len(rows) == 3


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_the_folder_of_a_run_is_evaluated_and_translates(pairs, finished, tmp_path, capsys):
    folder, metrics = finished
    again = train(pairs, tmp_path, "--evaluate", str(folder), "--limit", "150")
    assert again["test_bleu_beam_5"] == metrics["test_bleu_beam_5"]
    # The command translates with it.
    texts = Translator.from_preset(folder).translate(["a b", "f"], num_beams=1)
    assert cli.run(["translate", str(folder), "a b", "f", "--num-beams", "1"]) == 0
    assert capsys.readouterr().out.endswith("".join(f"{text}\n" for text in texts))
    picture = tmp_path / "attention.png"
    assert cli.run(["translate", str(folder), "a b", "--save-attention", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="--save-attention plots one sentence, got 2"):
        cli.run(["translate", str(folder), "a", "b", "--save-attention", str(picture)])


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_it_learns(pairs, tmp_path, capsys):
    more = "--epochs 12 --learning-rate 0.01 --warmup-steps 30 --dropout 0 --average-checkpoints 1".split()
    metrics = train(pairs, tmp_path / "run", *more)
    told = capsys.readouterr().out
    assert metrics["test_exact_beam_1"] > 0.7 and metrics["test_bleu_beam_5"] > 70
    assert "BLEU" in told and "nrefs:1" in told
    assert Translator.from_preset(tmp_path / "run").translate(["a b", "", "f"]) == ["one two", "", "six"]


@pytest.mark.slow
@pytest.mark.heavy
def test_killed_and_resumed_is_the_run_that_was_not(pairs, finished, tmp_path, run):
    arguments = [RECIPE, *TINY, "--pairs", pairs, *RESUMABLE, "--output", tmp_path]
    process = run(arguments, wait=False)
    while process.poll() is None and not (tmp_path / "checkpoint.npz").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = run([*arguments, "--resume"])
    assert resumed.returncode == 0 and "Resuming after epoch" in resumed.stdout, resumed.stdout + resumed.stderr
    one, other = (model_files.load_model(folder / "model.keras").get_weights() for folder in (finished[0], tmp_path))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--label-smoothing", "1"], r"--label-smoothing must be in \[0, 1\)"),
        (["--learning-rate", "-1"], "must not be negative"),
        (["--vocabulary-size", "100"], "at least 259"),
        (["--hidden-dim", "30", "--num-heads", "4"], "divisible by num_heads"),
        (["--source-lang", "en"], "two languages"),
        (["--evaluate", "nowhere.keras"], "no model file at nowhere.keras"),
    ],
)
def test_wrong_input(pairs, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        train(pairs, tmp_path, *arguments)
    assert "\n" not in str(caught.value)


def test_tokenizer_gives_texts_back(tmp_path):
    texts = ["Ein Mann, der läuft.", "A man (running)!", "Zwei Hunde  spielen 12 Mal."]
    tokenizer = SharedBPETokenizer.train(texts, vocabulary_size=400)
    for text in [*texts, "日本 ß </s> <pad>"]:
        ids = tokenizer.encode(text)
        assert ids[-1] == tokenizer.end_id and ids.count(tokenizer.end_id) == 1
        assert tokenizer.decode(ids) == re.sub("</s>|<pad>", "", text).strip()
    tokenizer.save(tmp_path / "t.json")
    assert load_tokenizer(tmp_path / "t.json").encode(texts[0]) == tokenizer.encode(texts[0])
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match="does not say model"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(UserError, match="There is no tokenizer at"):
        load_tokenizer(tmp_path / "nowhere.json")


def test_tokenizer_of_another_model():
    tokenizer = SharedBPETokenizer.train(["some text"], vocabulary_size=300)
    other = transformer(vocabulary_size=17, num_layers=1, hidden_dim=8, intermediate_dim=8, num_heads=2)
    with pytest.raises(UserError, match="this tokenizer belongs to another model"):
        Translator(other, tokenizer)


def test_a_model_of_another_kind():
    numbers = keras.Input((4,))
    other = keras.Model(numbers, keras.layers.Dense(2)(numbers))
    with pytest.raises(UserError, match="is not a translation model"):
        Translator(other, SharedBPETokenizer.train(["some text"], vocabulary_size=300))
