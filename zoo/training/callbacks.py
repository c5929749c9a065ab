"""Callbacks of the recipes: batch order, history and checkpoint, first losses, weight averaging, stopping."""

from __future__ import annotations

import csv
import io
import math
import pathlib
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from zoo.distribution import strategy as distribution
from zoo.errors import TrainingError
from zoo.io import files
from zoo.training.checkpoints import save_checkpoint
from zoo.typing import StrPath


class SetEpoch(keras.callbacks.Callback):
    """Call `batches.set_epoch(epoch)` when an epoch begins, for the batches of `zoo.data`.

    Args:
        batches: the training batches.
    """

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.batches.set_epoch(epoch)


class TerminateOnNaN(keras.callbacks.Callback):
    """Raise `TrainingError` as soon as the loss is not finite.

    `keras.callbacks.TerminateOnNaN` only ends the epoch: its checkpoint and model would hold the NaN.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {batch + 1} of the epoch: training stopped; what was saved before is "
                "intact; try a smaller --learning-rate."
            )


class StopOnInterrupt(keras.callbacks.Callback):
    """Make Ctrl-C end training, at the latest after the running step; a context manager around `fit` and a callback.

    The first Ctrl-C is noted and raised after the step, the second at once. An exception in the middle of a step would
    be lost: Keras 3.15 turns logs into numbers under a bare `except: pass` (`pythonify_logs`), where a step on JAX
    spends nearly all of its time, and TensorFlow turns what is raised while it reads a batch into an error of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.interrupted = False

    def __enter__(self):
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exception):
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._before or signal.SIG_DFL)

    def _on_signal(self, *_):
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    on_test_batch_end = on_train_batch_end


class LossRecorder(keras.callbacks.Callback):
    """Record the loss of each of the first `count` steps, to compare backends and numbers of devices step by step.

    Keras logs the mean of the epoch so far, in which a batch weighs as much as it has rows, those included that
    `zoo.strategy` adds so that all replicas have equally many.

    Args:
        batches: the training batches.
        count: number of steps.
        verbose: whether to print them when training ends.

    Attributes:
        losses: list of float.
    """

    def __init__(self, batches: Any, count: int = 20, verbose: bool = False) -> None:
        super().__init__()
        self.batches, self.count, self.verbose, self.losses = batches, count, verbose, []
        self._sum, self._rows = 0.0, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if len(self.losses) < self.count and batch == len(self.losses):
            rows = len(keras.tree.flatten(self.batches[batch])[0])
            rows += -rows % distribution.current_devices().num_replicas
            self._rows += rows
            total = float(logs["loss"]) * self._rows
            self.losses.append((total - self._sum) / rows)
            self._sum = total

    def on_train_end(self, logs: Any = None) -> None:
        if self.verbose:
            print("First losses:", " ".join(f"{loss:.6f}" for loss in self.losses), flush=True)


class TrainingLog(keras.callbacks.Callback):
    """After each epoch, add a row to `history.csv` and write a checkpoint, both atomically.

    Args:
        folder: where the two files go.
        checkpoint_file: name of the checkpoint.
        settings: what defines the run; stored in the checkpoint.
        history: list of one dict for each epoch already done; rows are appended to it.
        examples: number of training examples in an epoch, for the examples per second.
        unit: what an example is called.
    """

    def __init__(
        self,
        folder: StrPath,
        checkpoint_file: str,
        *,
        settings: dict[str, Any],
        history: list[dict[str, Any]],
        examples: int,
        unit: str = "images",
    ) -> None:
        super().__init__()
        self.folder, self.checkpoint_file, self.settings = pathlib.Path(folder), checkpoint_file, settings
        self.history, self.examples, self.unit = history, examples, unit

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start_time = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._seconds = time.perf_counter() - self._start_time  # validation comes after the last batch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        row = {"epoch": epoch + 1} | {key: float(value) for key, value in logs.items()}
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(self._seconds, 2)
        row[f"{self.unit}_per_second"] = round(self.examples / self._seconds, 1)
        self.history.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        files.write_text(self.folder / "history.csv", text.getvalue())
        save_checkpoint(self.folder / self.checkpoint_file, self.model, settings=self.settings, history=self.history)


class Progress(keras.callbacks.Callback):
    """Show the running step on a terminal and, after each epoch, its losses and scores; place it after `TrainingLog`.

    In lines of at most 80 columns: a longer one, as Keras' bar is with several losses, leaves its pieces on a terminal.

    Args:
        history: list of one dict an epoch, to which `TrainingLog` has added the row of this one.
    """

    def __init__(self, history: list[dict[str, Any]]) -> None:
        super().__init__()
        self.history = history
        self._is_terminal, self._shown, self._width = sys.stdout.isatty(), 0.0, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._title, self._start_time = f"epoch {epoch + 1}/{self.params['epochs']}", time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now, steps = time.perf_counter(), self.params["steps"]
        if self._is_terminal and (now - self._shown > 0.2 or batch + 1 == steps):
            self._shown = now
            left = (now - self._start_time) / (batch + 1) * (steps - batch - 1)
            text = f"{self._title}  step {batch + 1}/{steps}  {left:.0f} s left  {_format_logs(logs)}"[:79]
            print(f"\r{text:{self._width}}", end="", flush=True)
            self._width = len(text)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._is_terminal:
            print(f"\r{'':{self._width}}\r", end="")
        row, logs = self.history[-1], logs or {}
        rate = next(key for key in row if key.endswith("_per_second"))
        speed = f"{row['seconds']:.0f} s, {row[rate]:,.0f} {rate.removesuffix('_per_second')}/s"
        validation = {key.removeprefix("val_"): value for key, value in logs.items() if key.startswith("val_")}
        training = {key: value for key, value in logs.items() if not key.startswith("val_")}
        lines = [f"{self._title}  {_format_logs(training)}  ({speed})"]
        if validation:
            lines.append(f"validation  {_format_logs(validation)}")
        for line in lines:
            print(textwrap.fill(line, 80, subsequent_indent="  "), flush=True)


def _format_logs(logs):
    """Logs as "loss 0.1234  accuracy 0.9876", the loss first."""
    logs = logs or {}
    names = sorted(logs, key=lambda name: (name != "loss", list(logs).index(name)))
    return "  ".join(f"{name} {logs[name]:.4f}" for name in names)


class ResetStates(keras.callbacks.Callback):
    """Reset the states of stateful layers at the start of each epoch and each validation."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        for layer in self.model.layers:
            if getattr(layer, "stateful", False):
                layer.reset_state()

    def on_test_begin(self, logs: Any = None) -> None:
        self.on_epoch_begin(0)


def _save_weights(path, model):
    """Write the trainable weights of a model to an `.npz` file; returns them as a list of arrays."""
    weights = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.trainable_variables]
    with files.atomic_write(path) as temporary:
        np.savez(temporary, *weights)
    return weights


def _load_weights(path):
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return [stored[f"arr_{index}"] for index in range(len(stored.files))]


class BestCheckpoint(keras.callbacks.Callback):
    """Keep the trainable weights of the epoch with the lowest validation loss; stop when it does not get lower.

    Args:
        path: `.npz` file for the weights.
        patience: how many epochs may pass without a better one.
        history: one dict for each epoch already done, when resuming.
    """

    def __init__(self, path: StrPath, *, patience: int, history: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__()
        self.path, self.patience = pathlib.Path(path), patience
        self.losses = [row["val_loss"] for row in history]
        self._best: list[np.ndarray] = []  # of this process; the file may be removed while the run goes on

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` epochs brought no better loss."""
        return bool(self.losses) and len(self.losses) - 1 - int(np.argmin(self.losses)) >= self.patience

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(float(logs["val_loss"]))
        if self.losses[-1] == min(self.losses):
            self._best = _save_weights(self.path, self.model)
        self.model.stop_training = self.model.stop_training or self.out_of_patience

    def on_train_end(self, logs: Any = None) -> None:
        if self.out_of_patience:
            print(f"No better validation loss for {self.patience} epochs: stopped.", flush=True)

    def restore(self, model: keras.Model) -> None:
        """Give a model the weights of the best epoch.

        Args:
            model: the model that was trained, or one of the same architecture.
        """
        for variable, value in zip(model.trainable_variables, self._best or _load_weights(self.path), strict=True):
            variable.assign(value)


class SampleText(keras.callbacks.Callback):
    """After each epoch, print a text that the model generates and add it to a file; place it after `Progress`.

    Args:
        path: text file.
        generate: function without arguments that returns a text.
    """

    def __init__(self, path: StrPath, generate: Callable[[], str]) -> None:
        super().__init__()
        self.path, self.generate = pathlib.Path(path), generate

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        title = f"--- after epoch {epoch + 1} ---\n"
        text = f"{title}{self.generate()}\n"
        print(text, flush=True)
        earlier = self.path.read_text(encoding="utf-8") if epoch and self.path.is_file() else ""
        files.write_text(self.path, earlier.partition(title)[0] + text + "\n")


class CheckpointAveraging(keras.callbacks.Callback):
    """Keep the trainable weights of the last epochs in files, to average them.

    Args:
        folder: where `epoch_<n>.npz` go.
        num_checkpoints: how many epochs are kept.
    """

    def __init__(self, folder: StrPath, *, num_checkpoints: int) -> None:
        super().__init__()
        self.folder, self.num_checkpoints = pathlib.Path(folder), num_checkpoints
        self._kept: dict[int, list[np.ndarray]] = {}  # of this process; files may be removed while the run goes on

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._kept[epoch + 1] = _save_weights(self._path(epoch + 1), self.model)
        self._kept.pop(epoch + 1 - self.num_checkpoints, None)
        files.remove(self._path(epoch + 1 - self.num_checkpoints))

    def restore(self, model: keras.Model, *, epochs: int) -> None:
        """Give a model the mean of the weights after the last of so many epochs.

        Args:
            model: the model that was trained, or one of the same architecture.
            epochs: number of epochs that are done.
        """
        chosen = range(max(1, epochs - self.num_checkpoints + 1), epochs + 1)
        sums = [np.zeros(variable.shape, np.float64) for variable in model.trainable_variables]
        for epoch in chosen:
            weights = self._kept.get(epoch) or _load_weights(self._path(epoch))
            for total, value in zip(sums, weights, strict=True):
                total += value
        for variable, total in zip(model.trainable_variables, sums, strict=True):
            variable.assign((total / len(chosen)).astype(np.float32))

    def remove(self) -> None:
        """Delete the files."""
        for path in self.folder.glob("epoch_*.npz"):
            files.remove(path)

    def _path(self, epoch):
        return self.folder / f"epoch_{epoch}.npz"


class ValidationScore(keras.callbacks.Callback):
    """After each epoch, add a score to the logs.

    Args:
        name: key in the logs and in `history.csv`.
        score: function without arguments that returns a number.
    """

    def __init__(self, name: str, score: Callable[[], float]) -> None:
        super().__init__()
        self.name, self.score = name, score

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs[self.name] = self.score()
