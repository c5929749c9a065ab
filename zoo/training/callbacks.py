"""What happens around epochs and steps: batch order, history, checkpoints, the first losses, and stopping on NaN."""

import csv
import io
import math
import signal
import threading
import time

import keras

from zoo import files
from zoo.errors import TrainingError
from zoo.training.checkpoints import save_checkpoint


class EpochOrder(keras.callbacks.Callback):
    """Move `zoo.data.Batches` to the order of the epoch that begins."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.set_epoch(epoch)


class StopOnNaN(keras.callbacks.Callback):
    """End training with one sentence as soon as the loss is not a number."""

    def on_train_batch_end(self, batch, logs=None):
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

    def __init__(self):
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

    def on_train_batch_end(self, batch, logs=None):
        if self.interrupted:
            raise KeyboardInterrupt

    on_test_batch_end = on_train_batch_end


class FirstLosses(keras.callbacks.Callback):
    """Collect the loss of each of the first `count` steps, to compare backends step by step."""

    def __init__(self, count=20):
        super().__init__()
        self.count, self.losses, self._previous_sum = count, [], 0.0

    def on_train_batch_end(self, batch, logs=None):
        if len(self.losses) < self.count and batch == len(self.losses):
            total = float(logs["loss"]) * (batch + 1)  # Keras logs the mean of the epoch so far
            self.losses.append(total - self._previous_sum)
            self._previous_sum = total


class History(keras.callbacks.Callback):
    """After each epoch: add a row to `history.csv` and write a checkpoint, both atomically.

    Args:
        folder: where the two files go.
        settings: what defines the run; stored in the checkpoint.
        rows: rows of epochs already done, when resuming.
        images: training images an epoch, for the images a second.
    """

    def __init__(self, folder, *, settings, rows=(), images):
        super().__init__()
        self.folder, self.settings, self.rows, self.images = folder, settings, list(rows), images

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._seconds = time.perf_counter() - self._began  # validation comes after the last batch

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1} | {key: float(value) for key, value in logs.items()}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        row["seconds"] = round(self._seconds, 2)
        row["images_per_second"] = round(self.images / self._seconds, 1)
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.folder / "history.csv", text.getvalue())
        save_checkpoint(self.folder / "checkpoint.npz", self.model, settings=self.settings, history=self.rows)
