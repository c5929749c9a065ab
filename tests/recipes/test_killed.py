"""Runs that are killed while they write, or at any moment, end when resumed as if nothing had happened.

The run is a fork of this process, on PyTorch, that kills itself in a system call; it is resumed here.
"""

import contextlib
import io
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from recipes import cnn_mnist, rnn_shakespeare, transformer_multi30k
from tests.conftest import write_verses
from tests.recipes.test_translation_recipe import write_pairs
from zoo.io import model_files

pytestmark = [pytest.mark.once, pytest.mark.heavy]
EPOCHS = 2
RECIPES = {
    "cnn_mnist": (cnn_mnist, "--dataset digits --limit 64 --batch-size 32".split()),
    "rnn_shakespeare": (
        rnn_shakespeare,
        "--units 8 --embedding-dim 4 --batch-size 8 --sequence-length 10 --patience 1".split(),
    ),
    "transformer_multi30k": (
        transformer_multi30k,
        "--num-layers 1 --hidden-dim 16 --intermediate-dim 16 --num-heads 2 --vocabulary-size 300 --limit 60 "
        "--batch-tokens 256 --average-checkpoints 2".split(),
    ),
}


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request, tmp_path_factory):
    """(function that trains in a folder, weights of the run that was not killed, seconds that it took)."""
    module, arguments = RECIPES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    if module is rnn_shakespeare:
        arguments = [*arguments, "--text", str(write_verses(folder / "verses.txt", words=900, characters=4000))]
    if module is transformer_multi30k:
        arguments = [*arguments, "--pairs", str(write_pairs(folder / "pairs.tsv"))]

    def train(output, *more):
        with contextlib.redirect_stdout(io.StringIO()):
            module.main(module.parse_args([*arguments, "--epochs", str(EPOCHS), "--output", str(output), *more]))
        return model_files.load_model(output / "model.keras").get_weights()

    began = time.perf_counter()
    return train, train(folder / "whole"), time.perf_counter() - began


def kill_in(name, number):
    """From the n-th call of a function of `os` on, this process is killed in it, before or after its work."""
    original, calls = getattr(os, name), [0]

    def killed(*arguments, **options):
        calls[0] += 1
        if calls[0] == number:
            if number % 2:
                original(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(os, name, killed)


def kill_after(seconds):
    def kill():
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


@pytest.mark.parametrize("moment", ["replace", "fsync", "random"])
def test_a_killed_run_resumes_to_the_same_weights(recipe, moment, tmp_path):
    train, whole, seconds = recipe
    rng = random.Random(f"{moment} {len(whole)}")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            if moment == "random":
                kill_after(rng.uniform(0.1, 0.5) * seconds)
            else:
                kill_in(moment, rng.randint(1, EPOCHS))
            train(tmp_path / "run")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if moment != "random":
        assert os.WIFSIGNALED(status), "it was done before it was killed"
    left = {path.name for path in (tmp_path / "run").glob("*")} if (tmp_path / "run").is_dir() else set()
    if "model.keras" in left and os.WIFEXITED(status):
        pytest.skip("it was done before the random moment came")
    resumed = train(tmp_path / "run", *(["--resume"] if "checkpoint.npz" in left else ["--overwrite"]))
    assert len(resumed) == len(whole)
    for one, other in zip(resumed, whole):
        np.testing.assert_array_equal(one, other)
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")], "temporary files stay"
