"""The recipes as a user runs them: what they leave behind, what they say to mistakes, and that a killed run resumes."""

import json
import os
import shutil
import signal
import stat
import sys
import time

import keras
import numpy as np
import pytest

from recipes import cnn_gtsrb, cnn_mnist
from tests.conftest import interrupted_in_second_epoch
from zoo.distribution.launch import run_recipe
from zoo.errors import TrainingError, UserError
from zoo.io import files, model_files

RECIPE = "recipes/cnn_mnist.py"
TINY = ["--dataset", "digits", "--limit", "128", "--epochs", "1", "--batch-size", "32"]


def train(output, *extra):
    return cnn_mnist.main(cnn_mnist.parse_args([*TINY, "--output", str(output), *extra]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, metrics) of a run of two epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(folder, "--epochs", "2")


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")  # trained there by test_same_losses.py
def test_a_run_leaves_everything_behind(finished, tmp_path):
    folder, metrics = finished
    made = {path.name for path in folder.iterdir()}
    pictures = {"confusion_matrix.png", "test_image.png", "training_curves.png", "worst_mistakes.png"}
    assert made == {"model.keras", "card.json", "history.csv", "metrics.json", "report.txt"} | pictures
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert max(metrics["first_losses"]) <= 1.2 * metrics["first_losses"][0], "the warm-up of a short run is too fast"
    assert metrics["backend"] == keras.backend.backend() and metrics["parameters"] == 9_536_074
    history = (folder / "history.csv").read_text().splitlines()
    assert history[0].split(",")[:5] == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"] and len(history) == 3

    # The file takes raw images of any size, in one call, and evaluates to the same numbers.
    model = keras.saving.load_model(folder / "model.keras")
    assert model.predict(np.zeros((2, 28, 28), "uint8"), verbose=0).shape == (2, 10)
    again = train(tmp_path, "--evaluate", str(folder))
    assert again["test_accuracy"] == metrics["test_accuracy"]
    assert abs(again["test_loss"] - metrics["test_loss"]) < 1e-6


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_traffic_signs(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (86, 32, 32, 3)).astype("uint8"),
        "y_train": np.repeat(np.arange(43), 2).astype("uint8"),
        "track_train": np.arange(86).astype("uint16"),
        "x_test": rng.integers(0, 256, (43, 32, 32, 3)).astype("uint8"),
        "y_test": np.arange(43).astype("uint8"),
        "class_names": np.array([f"sign {i}" for i in range(43)]),
    }
    np.savez(tmp_path / "signs.npz", **arrays)
    arguments = ["--data-dir", str(tmp_path), "--epochs", "2", "--output", str(tmp_path / "run")]
    arguments += ["--average-checkpoints", "2", "--label-smoothing", "0.1", "--random-erasing", "0.5"]
    metrics = cnn_gtsrb.main(cnn_gtsrb.parse_args(arguments))
    assert metrics["parameters"] == 9_553_003 and metrics["test_images"] == 43
    assert "taken for" in (tmp_path / "run" / "report.txt").read_text()
    assert not list((tmp_path / "run").glob("epoch_*"))


# --------------------------------------------------------------------------------------------------------- resuming


def weights_of(path):
    return [np.array(w) for w in keras.saving.load_model(path).get_weights()]


def assert_same_run(one, other):
    """The same weights, bit for bit, and the same history in two folders."""
    for a, b in zip(weights_of(one / "model.keras"), weights_of(other / "model.keras"), strict=True):
        np.testing.assert_array_equal(a, b)
    columns = slice(0, 6)  # up to the learning rate; the rest is time
    histories = [(folder / "history.csv").read_text().splitlines() for folder in (one, other)]
    assert [row.split(",")[columns] for row in histories[0]] == [row.split(",")[columns] for row in histories[1]]


@pytest.mark.slow
@pytest.mark.heavy
def test_killed_after_any_epoch_and_resumed_is_bit_for_bit_the_uninterrupted_run(tmp_path, run):
    arguments = [RECIPE, "--dataset", "digits", "--limit", "160", "--epochs", "3", "--batch-size", "32"]
    whole = run([*arguments, "--output", tmp_path / "whole"])
    assert whole.returncode == 0, whole.stderr

    broken = [*arguments, "--output", tmp_path / "broken"]
    for epoch in (1, 2):
        process = run(broken + (["--resume"] if epoch > 1 else []), wait=False)
        history = tmp_path / "broken" / "history.csv"
        deadline = time.monotonic() + 300
        while not (
            history.exists() and len(history.read_text().splitlines()) > epoch and checkpoint_of(epoch, tmp_path)
        ):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = run([*broken, "--resume"])
    assert last.returncode == 0, last.stderr
    assert "Resuming after epoch 2 of 3" in last.stdout
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def checkpoint_of(epoch, folder):
    """True once the checkpoint of this epoch is in place (a file from before the kill counts its own epochs)."""
    try:
        with np.load(folder / "broken" / "checkpoint.npz") as stored:
            return len(json.loads(str(stored["meta"]))["history"]) >= epoch
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A folder with the checkpoint of a run that was interrupted in its second epoch."""
    folder = tmp_path_factory.mktemp("unfinished")

    with interrupted_in_second_epoch():
        train(folder, "--epochs", "2")
    return folder


@pytest.mark.heavy
@pytest.mark.slow  # killed and resumed in test_killed.py
def test_interrupted_and_resumed_is_bit_for_bit_the_uninterrupted_run(finished, unfinished, tmp_path):
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    train(tmp_path, "--epochs", "2", "--resume")
    assert_same_run(finished[0], tmp_path)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_resuming_under_other_settings_names_the_difference(unfinished):
    with pytest.raises(UserError, match="seed=0, this one has seed=1"):
        train(unfinished, "--epochs", "2", "--seed", "1", "--resume")


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_a_damaged_checkpoint(unfinished, tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes((unfinished / "checkpoint.npz").read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="damaged"):
        train(tmp_path, "--epochs", "2", "--resume")


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        train(tmp_path, "--resume")


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "model.keras"
    image = keras.Input((None, None, 1))
    model_files.save_model(
        keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(image))), path
    )
    return path


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--learning-rate", "-1"], "must not be negative"),
        (["--dataset", "fashion-mnist"], "Did you mean 'fashion_mnist'"),
        (["--evaluate", "nowhere.keras"], "no model file at nowhere.keras"),
    ],
)
def test_wrong_flags(tmp_path, flags, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path, *flags)


def test_truncated_altered_and_foreign_files(tmp_path, good_file):
    whole = good_file.read_bytes()
    target = tmp_path / "m.keras"
    evaluate = ["--evaluate", str(target)]

    target.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole .keras file"):
        train(tmp_path, *evaluate)

    position = whole.index(b"model.weights.h5") + 2000  # inside the stored weights
    target.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
    with pytest.raises(UserError, match="is damaged"):
        train(tmp_path, *evaluate)

    target.write_bytes(whole)
    files.write_json(tmp_path / "card.json", {"files": {"m.keras": {"sha256": "0" * 64}}})
    with pytest.raises(UserError, match="card.json beside it says 0000"):
        train(tmp_path, *evaluate)
    (tmp_path / "card.json").unlink()

    tokens = keras.Input((7,))
    model_files.save_model(keras.Model(tokens, keras.layers.Dense(3)(tokens)), target)
    with pytest.raises(UserError, match=r"maps \(None, 7\) to \(None, 3\), but an image classifier maps"):
        train(tmp_path, *evaluate)

    image = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    model_files.save_model(keras.Model(image, keras.layers.Dense(3)(pooled)), target)
    with pytest.raises(UserError, match="another architecture"):
        train(tmp_path, *evaluate)


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="Cannot write to"):
        train(tmp_path / "file" / "run")
    if os.geteuid():  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir()
        closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(UserError, match="Cannot write to"):
            train(closed / "run")


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path):
    (tmp_path / "model.keras").write_text("from an earlier run")
    with pytest.raises(TrainingError, match="The loss is nan|The loss is inf"):
        train(tmp_path, "--learning-rate", "1e30", "--schedule", "constant", "--limit", "320")
    assert (tmp_path / "model.keras").read_text() == "from an earlier run"


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_control_c_in_mid_epoch(tmp_path, run):
    arguments = [RECIPE, "--dataset", "digits", *"--limit 64 --epochs 50 --batch-size 32 --output".split(), tmp_path]
    process = run(arguments, wait=False)
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoint.npz").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert "Traceback" not in said and "kept in" in said.splitlines()[-1] and "--resume" in said.splitlines()[-1]
    with np.load(tmp_path / "checkpoint.npz") as stored:
        assert "meta" in stored.files


MISTAKES = [
    (["--limit", "0"], 2, "--limit must be at least 1"),
    (["--dataset", "mnsit"], 2, "Did you mean 'mnist'"),
    (["--dataset", "mnist", "--data-dir", "/nowhere"], 2, "/nowhere"),
    (["--dataset", "gtsrb", "--data-dir", "/nowhere"], 2, "/nowhere"),
    (["--dataset", "digits", "--output", "/proc/run"], 2, "Cannot write to /proc/run"),
    (["--dataset", "digits", "--evaluate", "README.md"], 2, "README.md is not a .keras file"),
    ([*TINY, "--learning-rate", "1e30", "--schedule", "constant", "--limit", "320"], 1, "The loss is"),
]


@pytest.mark.once
@pytest.mark.parametrize("flags, code, words", MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_a_mistake_ends_in_one_sentence_and_a_code(tmp_path, monkeypatch, capfd, flags, code, words):
    monkeypatch.setattr("os._exit", sys.exit)  # the end of the process
    output = [] if "--output" in flags else ["--output", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        run_recipe(cnn_mnist.main, cnn_mnist.parse_args([*flags, *output]))
    said = capfd.readouterr()
    last = said.err.strip().splitlines()[-1]
    assert ended.value.code == code
    assert last.startswith("error: ") and words in last
    assert "Traceback" not in said.err + said.out


@pytest.mark.once
def test_a_mistake_ends_the_process(tmp_path, run):
    flags, code, words = MISTAKES[1]
    ended = run([RECIPE, *flags, "--output", tmp_path])
    assert ended.returncode == code and "Traceback" not in ended.stderr + ended.stdout
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
