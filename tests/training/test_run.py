"""What a run says and refuses: folders that hold another run, progress, short warm-ups, the next command."""

import argparse
import re

import keras
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.training import run as run_module
from zoo.training.callbacks import SampleText, ValidationScore
from zoo.training.run import Run
from zoo.training.schedules import InverseSquareRoot, limit_warmup, warmup_cosine


def arguments(**values):
    return argparse.Namespace(**{"resume": False, "overwrite": False, "parity": False, "epochs": 3} | values)


@pytest.mark.once
@pytest.mark.parametrize(
    "file, words",
    [
        ("metrics.json", "holds a finished run: replace it with --overwrite, or name another folder with --output"),
        ("card.json", "holds a finished run: replace it with --overwrite"),
        ("checkpoint.npz", "holds an interrupted run: continue it with --resume, replace it with --overwrite, or name"),
    ],
)
def test_a_folder_that_holds_a_run_is_refused(tmp_path, file, words):
    Run(arguments(), folder=tmp_path, data_sha256="")
    (tmp_path / "history.csv").write_text("of a run that was not finished")
    Run(arguments(), folder=tmp_path, data_sha256="")
    (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=words) as caught:
        Run(arguments(), folder=tmp_path, data_sha256="")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    for allowed in ("resume", "overwrite"):
        Run(arguments(**{allowed: True}), folder=tmp_path, data_sha256="")
    assert (tmp_path / file).is_file()  # until the new one is done


@pytest.mark.once
def test_an_interrupted_run_that_replaces_a_finished_one_can_be_resumed(tmp_path):
    for name in ("metrics.json", "checkpoint.npz"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="continue it with --resume"):
        run_module.check_no_run(tmp_path)


# ------------------------------------------------------------------------------------------------- what is printed


class Terminal:
    """Standard output of a terminal that takes note of its lines, and of how wide they were on the way."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True

    def lines(self):
        """What stands there in the end: a carriage return lets what follows be written over a line."""
        shown = []
        for line in self.text.split("\n"):
            cells = ""
            for part in line.split("\r"):
                cells = part + cells[len(part) :]
            shown.append(cells.rstrip())
        return shown


def fit(tmp_path, monkeypatch, stdout):
    monkeypatch.setattr("sys.stdout", stdout)
    run = Run(arguments(epochs=2), folder=tmp_path, data_sha256="")
    inputs = keras.Input((3,))
    names = ("image", "kl", "perceptual")
    model = keras.Model(inputs, {name: keras.layers.Dense(1)(inputs) for name in names})
    model.compile(loss=dict.fromkeys(names, "mse"), loss_weights=dict.fromkeys(names, 1.0))

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            x = np.ones((4, 3), "float32")
            return x, dict.fromkeys(names, x[:, :1])

        def set_epoch(self, epoch):
            pass

    callbacks = [
        ValidationScore("val_bleu", lambda: 12.345),
        *run.callbacks(Batches(), examples=20),
        SampleText(tmp_path / "samples.txt", lambda: "To be,\nor not"),
    ]
    model.fit(Batches(), validation_data=Batches(), epochs=2, callbacks=callbacks, shuffle=False, verbose=run.verbose)


def test_lines_of_a_terminal_are_short_and_whole(tmp_path, monkeypatch):
    terminal = Terminal()
    fit(tmp_path, monkeypatch, terminal)
    assert max(len(part) for part in re.split("[\r\n]", terminal.text)) <= 80
    lines = [line for line in terminal.lines() if line]
    starts = ["epoch 1/2  loss ", "validation  loss ", "--- after epoch 1 ---", "To be,", "or not", "epoch 2/2  loss"]
    for line in lines:
        if starts and line.startswith(starts[0]):
            starts.pop(0)
    assert not starts, lines
    assert "step 5/5" in terminal.text and "step" not in "\n".join(lines)
    assert sum("bleu 12.3450" in line for line in lines) == 2


def test_lines_of_a_file(tmp_path, monkeypatch):
    class Log(Terminal):
        def isatty(self):
            return False

    log = Log()
    fit(tmp_path, monkeypatch, log)
    assert "\r" not in log.text and "step" not in log.text and max(map(len, log.lines())) <= 80


@pytest.mark.once
def test_the_next_command_can_be_typed(capsys):
    run_module.print_command(["zoo", "translate", "runs/transformer_multi30k-number_words-de_en", "Ein Hund läuft."])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Next: zoo translate runs/") and max(map(len, lines)) <= 80
    assert all(line.endswith(" \\") for line in lines[:-1]) and lines[-1].strip() == "'Ein Hund läuft.'"


# -------------------------------------------------------------------------------------------------- short warm-ups


@pytest.mark.once
def test_a_short_run_rises_no_faster_than_to_its_peak_in_a_hundred_steps():
    for steps in range(1, 300):
        peak, warmup_steps = limit_warmup(1e-3, steps=steps, warmup_steps=200)
        for schedule in (
            warmup_cosine(peak, steps=steps, warmup_steps=warmup_steps),
            InverseSquareRoot(peak, warmup_steps),
        ):
            rates = [float(schedule(step)) for step in range(min(steps, 6))]
            assert all(np.isfinite(rates)) and max(np.diff([0, *rates])) <= 1e-3 / 100 + 1e-9
    # A run that is long enough is as it was.
    assert limit_warmup(1e-3, steps=4300, warmup_steps=200) == (1e-3, 200)
    assert limit_warmup(2e-3, steps=400, warmup_steps=1000) == (2e-3, 100)


@pytest.mark.once
def test_versions_are_those_of_the_modules(monkeypatch):
    """Distributions have other names: keras-nightly, tensorflow-cpu."""
    import importlib.metadata

    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    versions = run_module.run_metadata()["versions"]
    assert (versions["keras"], versions["numpy"]) == (keras.__version__, np.__version__)
