"""The recipe on pictures of one's own, as a user runs it: from a folder to `zoo classify` with its own labels."""

import json

import pytest

from recipes import cnn_image_folder
from tests.data.test_image_folder import CLASSES, write_picture, write_pictures
from zoo import cli as command
from zoo.distribution.launch import run_recipe
from zoo.errors import UserError

SMALL = "--epochs 2 --batch-size 32 --learning-rate 2e-4 --schedule constant".split()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("own") / "pictures", count=240)


def train(*arguments):
    return cnn_image_folder.main(cnn_image_folder.parse_args([*map(str, arguments)]))


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_a_run_classifies_a_new_picture_by_its_own_labels(pictures, tmp_path, capsys):
    metrics = train("--train-dir", pictures, "--stream", "always", "--output", tmp_path / "run", *SMALL)
    printed = capsys.readouterr().out
    assert "Skipped 3 broken pictures" in " ".join(printed.split()) and len(metrics["broken_files"]) == 3
    assert metrics["class_names"] == list(CLASSES) and metrics["dataset"] == "pictures"
    assert metrics["first_losses"][-1] < 0.9 * metrics["first_losses"][0]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    again = train("--train-dir", pictures, "--evaluate", tmp_path / "run", "--output", tmp_path / "again")
    assert again["test_accuracy"] == metrics["test_accuracy"]

    write_picture(tmp_path / "new.jpg", 9999, 1)
    capsys.readouterr()
    assert command.main(["classify", str(tmp_path / "new.jpg"), "--model", str(tmp_path / "run"), "--top-k", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines[1:]) == list(CLASSES)


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_streamed_or_in_memory_the_run_is_the_same(pictures, tmp_path, run, devices):
    histories = []
    for stream in ("always", "never"):
        output = tmp_path / stream
        arguments = ["--train-dir", pictures, "--stream", stream, "--devices", devices, "--output", output, *SMALL]
        ended = run(["recipes/cnn_image_folder.py", *arguments, "--limit", "75"])
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ("decoded while training" in " ".join(ended.stdout.split())) == (stream == "always")
        histories.append([row.split(",")[:5] for row in (output / "history.csv").read_text().splitlines()])
    assert histories[0] == histories[1] and len(histories[0]) == 3


@pytest.mark.once
def test_mistakes_in_flags(pictures, tmp_path):
    with pytest.raises(UserError, match="either --train-dir FOLDER or --tfds NAME"):
        train("--output", tmp_path)
    with pytest.raises(UserError, match="either --train-dir FOLDER or --tfds NAME"):
        train("--train-dir", pictures, "--tfds", "mnist")
    with pytest.raises(UserError, match="There is no folder .*none: give one with pictures"):
        train("--train-dir", tmp_path / "none")
    with pytest.raises(UserError, match="--on-broken skip"):
        train("--train-dir", pictures, "--on-broken", "refuse")
    with pytest.raises(UserError, match="is no name of a tensorflow-datasets data set"):
        train("--tfds", "../mnist")


@pytest.mark.once
def test_a_mistake_ends_in_one_sentence(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))  # the end of the process
    with pytest.raises(SystemExit) as ended:
        run_recipe(cnn_image_folder.main, cnn_image_folder.parse_args(["--train-dir", str(tmp_path)]))
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and said.startswith(f"error: {tmp_path} holds no pictures: give a folder")
