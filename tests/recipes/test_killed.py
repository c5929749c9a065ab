"""What happens to a run from outside: it is killed, its disk is full, its folder is removed or used by another run.

A killed run ends when resumed as if nothing had happened. It is a fork of this process, on PyTorch, that kills itself
in a system call; it is resumed here.
"""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from recipes import cnn_image_folder, cnn_mnist, rnn_shakespeare, transformer_multi30k
from tests.conftest import write_verses
from tests.data.test_image_folder import write_pictures
from tests.recipes.test_translation_recipe import write_pairs
from zoo.errors import UserError
from zoo.io import files, model_files

pytestmark = [pytest.mark.once, pytest.mark.heavy]
EPOCHS = 2
RECIPES = {
    "cnn_mnist": (cnn_mnist, "--dataset digits --limit 64 --batch-size 32".split()),
    "cnn_image_folder": (cnn_image_folder, "--stream always --limit 64 --batch-size 32".split()),
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
    if module is cnn_image_folder:
        arguments = [*arguments, "--train-dir", str(write_pictures(folder / "pictures", count=200))]
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


def test_a_full_disk(recipe, tmp_path):
    """One sentence; what was written before it is kept, and with room the run goes on to the same weights."""
    train, whole, _ = recipe
    folder, last = tmp_path / "run", random.Random(len(whole)).randint(2, 5)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        written = []

        def replace(source, target, original=os.replace):
            original(source, target)
            written.append(target)
            if len(written) == last:  # nothing of more than a kilobyte can be written from now on
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

        os.replace = replace
        with contextlib.suppress(BaseException):
            try:
                train(folder)
            except UserError as error:
                os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        sentence = told.read()
    os.waitpid(child, 0)
    assert sentence.startswith(f"There is no room for {folder}/") and "free some space" in sentence, sentence
    left = {path.name for path in folder.iterdir()}
    assert left and not any(name.startswith(".") for name in left), "a part of a file stays"
    resumed = train(folder, *(["--resume"] if "checkpoint.npz" in left else ["--overwrite"]))
    for one, other in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_folder_that_is_removed_is_made_again(recipe, tmp_path, monkeypatch):
    train, whole, _ = recipe
    folder = tmp_path / "run"

    def replace(source, target, original=os.replace):
        original(source, target)
        if target.name == "checkpoint.npz" and folder.is_dir():
            shutil.rmtree(folder)

    monkeypatch.setattr(os, "replace", replace)
    for one, other in zip(train(folder), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_runs_in_one_folder(recipe, tmp_path):
    train, _, _ = recipe
    folder = tmp_path / "run"
    folder.mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        files.claim_folder(folder)
        os.write(writer, b"claimed")
        time.sleep(100)
        os._exit(0)
    try:
        os.read(reader, 7)
        with pytest.raises(UserError, match=f"^Another run is writing to {folder}: wait for its end, or name another"):
            train(folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not list(folder.iterdir())
    files.claim_folder(folder)  # the claim ends with the process


def test_a_home_that_cannot_be_written(run, tmp_path):
    arguments = ["recipes/cnn_mnist.py", *RECIPES["cnn_mnist"][1], "--epochs", "1", "--output", str(tmp_path / "run")]
    ended = run(arguments, backend="torch", HOME="/proc/1/none", XDG_CACHE_HOME="")
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    assert (tmp_path / "run" / "model.keras").is_file()
