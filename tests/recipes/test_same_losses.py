"""A recipe takes the same steps on every backend: the losses of 20 of them agree."""

import json

import numpy as np
import pytest

from tests.conftest import BACKENDS, write_verses
from tests.recipes.test_fine_tuned_runs import write_language_model, write_translator
from tests.recipes.test_translation_recipe import write_pairs

RECIPES = ["cnn_mnist", "rnn_shakespeare", "transformer_multi30k"]
CNN = "--dataset digits --limit 160 --batch-size 8".split()
RNN = "--cell lstm --units 16 --embedding-dim 8 --sequence-length 16 --batch-size 8".split()
TRANSFORMER = "--num-layers 1 --hidden-dim 32 --intermediate-dim 32 --num-heads 2 --vocabulary-size 300".split()
TRANSFORMER += ["--batch-tokens", "128"]
PROGRAM = """
import importlib, json, os, sys
from zoo import backends
backends.skip_optional_imports()  # as recipes do that are run as scripts
from recipes import cnn_mnist
from zoo.training import run

class Enough(Exception):
    pass

class FirstLosses(run.LossRecorder):
    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if len(self.losses) == 20:
            raise Enough(self.losses)

run.LossRecorder = FirstLosses
recipes, folder, found = json.loads(sys.argv[1]), sys.argv[2], {}
for name, arguments in recipes.items():
    recipe = importlib.import_module(f"recipes.{name.partition(' ')[0]}")
    try:
        recipe.main(recipe.parse_args([*arguments, "--parity", "--epochs", "1", "--output", f"{folder}/{name}"]))
    except Enough as enough:
        found[name] = enough.args[0]
if os.environ["KERAS_BACKEND"] != "tensorflow":
    arguments = ["--dataset", "digits", "--limit", "32", "--output", folder, "--evaluate", "cnn_mnist"]
    cnn_mnist.main(cnn_mnist.parse_args(arguments))
print(json.dumps([found, "tensorflow" in sys.modules]))
"""


def fine_tuned(folder):
    return ["--init-from", str(folder), "--new-head", "--freeze", "embedding", "--freeze", "lstm_0|encoder_.*bias"]


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory, run):
    """{backend: ({recipe: its losses}, whether TensorFlow is imported)}, by one process a backend."""
    folder = tmp_path_factory.mktemp("everywhere")
    verses = write_verses(folder / "verses.txt", words=1300, characters=6000)
    pairs = write_pairs(folder / "pairs.tsv")
    recipes = {
        "cnn_mnist": CNN,
        "rnn_shakespeare": [*RNN, "--text", str(verses)],
        "transformer_multi30k": [*TRANSFORMER, "--pairs", str(pairs)],
        "rnn_shakespeare fine-tuned": [*RNN, "--text", str(verses), *fine_tuned(write_language_model(folder / "rnn"))],
        "transformer_multi30k fine-tuned": [
            *("--vocabulary-size", "290", "--batch-tokens", "128", "--pairs", str(pairs)),
            *fine_tuned(write_translator(folder / "transformer")),
        ],
    }
    found = {}
    for backend in BACKENDS:
        ended = run(["-c", PROGRAM, json.dumps(recipes), folder / backend], backend=backend)
        assert ended.returncode == 0, ended.stderr
        found[backend] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("name", [*RECIPES, *(f"{name} fine-tuned" for name in RECIPES[1:])])
def test_same_losses_on_every_backend(everywhere, name):
    losses = {backend: found[0][name] for backend, found in everywhere.items()}
    assert len(losses["jax"]) == 20 and losses["jax"][-1] < losses["jax"][0]
    assert max(losses["jax"]) <= 1.2 * losses["jax"][0], "the warm-up of a short run is too fast"
    for backend in ("jax", "torch"):
        np.testing.assert_allclose(losses[backend], losses["tensorflow"], atol=1e-3, rtol=0)


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_training_and_evaluation_do_not_import_tensorflow(everywhere, backend):
    assert not everywhere[backend][1]
