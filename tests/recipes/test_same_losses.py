"""A recipe takes the same steps on every backend: losses of 20 steps, and the text that one of the models writes."""

import json

import numpy as np
import pytest

from tests.conftest import BACKENDS, write_verses
from tests.recipes.test_translation_recipe import write_pairs

CNN = "--dataset digits --limit 320 --batch-size 16 --learning-rate 1.5e-4".split()  # it rises to the rate in 5 steps
RNN = "--cell lstm --units 16 --embedding-dim 8 --sequence-length 16 --batch-size 8".split()
TRANSFORMER = "--num-layers 1 --hidden-dim 32 --intermediate-dim 32 --num-heads 2 --vocabulary-size 300".split()
TRANSFORMER += ["--batch-tokens", "128"]
PROGRAM = """
import importlib, json, sys
from recipes import cnn_mnist
import zoo

names, folder, written_by = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
for name, arguments in names.items():
    recipe = importlib.import_module(f"recipes.{name}")
    arguments += ["--parity", "--epochs", "1", "--output", f"{folder}/{name}"]
    recipe.main(recipe.parse_args(arguments))
arguments = ["--dataset", "digits", "--limit", "32", "--output", folder, "--evaluate", f"{folder}/cnn_mnist"]
cnn_mnist.main(cnn_mnist.parse_args(arguments))
task = zoo.CausalLM.from_preset(f"{written_by}/rnn_shakespeare")
text = task.generate("the ", max_new_tokens=80, seed=4, temperature=0.7, top_p=0.9)
print(json.dumps([text, "tensorflow" in sys.modules]))
"""


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory, run):
    """{backend: ({recipe: its losses}, text, whether TensorFlow is imported)}, by one process a backend."""
    folder = tmp_path_factory.mktemp("everywhere")
    verses = write_verses(folder / "verses.txt", words=1300, characters=6000)
    pairs = write_pairs(folder / "pairs.tsv")
    arguments = {
        "cnn_mnist": CNN,
        "rnn_shakespeare": [*RNN, "--text", str(verses)],
        "transformer_multi30k": [*TRANSFORMER, "--pairs", str(pairs)],
    }
    found = {}
    for backend in BACKENDS:
        command = ["-c", PROGRAM, json.dumps(arguments), folder / backend, folder / BACKENDS[0]]
        ended = run(command, backend=backend)
        assert ended.returncode == 0, ended.stderr
        metrics = {name: json.loads((folder / backend / name / "metrics.json").read_text()) for name in arguments}
        losses = {name: metrics[name]["first_losses"] for name in arguments}
        found[backend] = (losses, *json.loads(ended.stdout.splitlines()[-1]))
    return found


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("name", ["cnn_mnist", "rnn_shakespeare", "transformer_multi30k"])
def test_same_losses_on_every_backend(everywhere, name):
    losses = {backend: found[0][name] for backend, found in everywhere.items()}
    assert len(losses["jax"]) == 20 and losses["jax"][-1] < losses["jax"][0]
    for backend in ("jax", "torch"):
        np.testing.assert_allclose(losses[backend], losses["tensorflow"], atol=1e-3, rtol=0)


@pytest.mark.once
@pytest.mark.heavy
def test_same_text_on_every_backend(everywhere):
    assert len({text for _, text, _ in everywhere.values()}) == 1 and everywhere["jax"][1]


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_training_and_evaluation_do_not_import_tensorflow(everywhere, backend):
    assert not everywhere[backend][2]
