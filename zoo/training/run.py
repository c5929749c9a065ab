"""What every training run has beside its model: a folder, settings, a checkpoint, callbacks and metrics.

In a recipe:

    run = Run(args, folder="runs/cnn_mnist-mnist", data_sha256=dataset.fingerprint())
    with zoo.strategy(args.devices, parallel=args.parallel, precision=args.precision):
        model = ...
        model.compile(optimizer=..., loss=...)
        run.prepare(model)                    # fast paths; with --resume, the state of the checkpoint
        with run.interruptible():             # Ctrl-C and lost processes exit with a one-line error
            model.fit(
                train,
                validation_data=validation,
                epochs=args.epochs,
                initial_epoch=run.initial_epoch,
                callbacks=[..., *run.callbacks(train, examples=len(train.x))],
                shuffle=False,                # the order is that of the batches
                verbose=run.verbose,
            )
    run.history                               # one dict an epoch
    run.save_metrics({"test_accuracy": ...}, ["zoo", "classify", ...])  # metrics.json; the command to type next
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import platform
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras

import zoo
from zoo import backends
from zoo.distribution import strategy as distribution
from zoo.errors import TrainingError, UserError
from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
from zoo.fast_paths.memory import keep_freed_memory
from zoo.io import cards, files
from zoo.training import flags
from zoo.training.callbacks import LossRecorder, Progress, SetEpoch, StopOnInterrupt, TerminateOnNaN, TrainingLog
from zoo.training.checkpoints import load_checkpoint
from zoo.typing import StrPath

if TYPE_CHECKING:
    from zoo.training.fine_tuning import Pretrained

set_compiler_flags()  # before JAX starts
keep_freed_memory()

CHECKPOINT_FILE, METRICS_FILE = "checkpoint.npz", "metrics.json"


class Run:
    """A training run.

    Args:
        args: the recipe's flags, `zoo.training.flags`.
        folder: output folder; made if it does not exist.
        data_sha256: fingerprint of the data; with the flags that define a run it makes `settings`.
        pretrained: what the run starts from, `zoo.training.fine_tuning.load_pretrained`; None for random weights. The
            sha256 of its files belong to `settings`.

    Attributes:
        folder: `pathlib.Path`.
        settings: dict; a checkpoint is resumed only under equal settings.
        history: list of one dict an epoch, as in `history.csv`.
        verbose: for `fit`: 0, the callbacks show the progress.
        fine_tuning: dict for `metrics`, of what was taken from a file and how much is trained.

    Raises:
        UserError: if the folder cannot be written to, or holds a run that is neither to be resumed nor replaced.
    """

    def __init__(
        self, args: argparse.Namespace, *, folder: StrPath, data_sha256: str, pretrained: Pretrained | None = None
    ) -> None:
        self.args = args
        self.folder = files.prepare_folder(folder)
        if not args.resume and not args.overwrite:
            check_no_run(self.folder)
        self.settings = flags.settings(args) | {"data": data_sha256}
        if pretrained is not None:
            self.settings["init_sha256"] = pretrained.sha256
        self.fine_tuning: dict[str, Any] = {}
        self.history = []
        self.verbose = 0
        self._start_time = time.perf_counter()
        self._stop = StopOnInterrupt()
        self._recorder: LossRecorder | None = None

    @property
    def initial_epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def first_losses(self) -> list[float]:
        """Losses of the first 20 steps of this process, to compare backends."""
        return self._recorder.losses if self._recorder else []

    def prepare(self, model: keras.Model) -> None:
        """Give a compiled model the backend's fast paths and, with --resume, the state of the checkpoint.

        Args:
            model: built and compiled.

        Raises:
            UserError: if the run cannot be resumed, or another one is writing to the folder.
        """
        files.claim_folder(self.folder)
        use_fast_paths(model)
        if self.args.resume:
            self.history[:] = load_checkpoint(self.folder / CHECKPOINT_FILE, model, settings=self.settings)
            print(f"Resuming after epoch {len(self.history)} of {self.args.epochs}.", flush=True)

    def callbacks(self, batches: Any, *, examples: int, unit: str = "images") -> list[keras.callbacks.Callback]:
        """The callbacks of every run; place those that change the logs or keep weights before them.

        Args:
            batches: the training batches; `set_epoch(epoch)` moves them to the order of an epoch.
            examples: number of training examples in an epoch, for the examples per second.
            unit: what an example is called.

        Returns:
            list of `keras.callbacks.Callback`.
        """
        self._recorder = LossRecorder(batches, verbose=self.args.parity)
        log = TrainingLog(
            self.folder, CHECKPOINT_FILE, settings=self.settings, history=self.history, examples=examples, unit=unit
        )
        progress = Progress(self.history)
        return [self._stop, SetEpoch(batches), TerminateOnNaN(), self._recorder, log, progress]

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around `fit`: Ctrl-C and the loss of another process raise with what was kept.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the current step. TrainingError: if another process has ended.
        """
        try:
            with self._stop:
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._kept()) from None
        except Exception as error:
            if not distribution.is_peer_failure(error):
                raise
            raise TrainingError(f"{distribution.PEER_FAILURE_MESSAGE}: {self._kept()}.") from error

    def _kept(self):
        count = len(self.history)
        if not count:
            return "no epoch was finished yet"
        return f"epoch 1 to {count} kept in {self.folder}, go on with --resume"

    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` says of every run: settings, first losses, times, command and versions."""
        seconds, rate = sum(row["seconds"] for row in self.history), self._rate_key()
        return {
            **{key: value for key, value in self.settings.items() if key != "data"},
            "data_sha256": self.settings["data"],
            **self.fine_tuning,
            "epochs_trained": len(self.history),
            "first_losses": self.first_losses,
            "wall_seconds": round(time.perf_counter() - self._start_time, 1),
            "training_seconds": round(seconds, 1),
            rate: round(sum(row[rate] * row["seconds"] for row in self.history) / seconds, 1),
            **run_metadata(),
        }

    def save_metrics(self, metrics: dict[str, Any], next_command: Sequence[str] | None = None) -> dict[str, Any]:
        """Write `metrics.json` and remove the checkpoint, which only a run to be resumed needs; print what comes next.

        Args:
            metrics: added to those of every run.
            next_command: words of the command that uses what was trained.

        Returns:
            all that the file holds.
        """
        metrics = _write_metrics(self.folder, metrics)
        files.remove(self.folder / CHECKPOINT_FILE)
        rate = self._rate_key()
        speed = f"{metrics[rate]:,.0f} {rate.removesuffix('_per_second')}/s in training"
        print(f"The model and its report are in {self.folder}/ ({speed}).", flush=True)
        if next_command:
            print_command(next_command)
        return metrics

    def _rate_key(self):
        """Column of the history that has the examples per second, e.g. "images_per_second"."""
        return next(key for key in self.history[-1] if key.endswith("_per_second"))


def check_no_run(folder: StrPath) -> None:
    """Check that a folder holds no run which a new one would replace.

    Args:
        folder: of the new run.

    Raises:
        UserError: if it holds a finished or an interrupted run.
    """
    folder = pathlib.Path(folder)
    if (folder / CHECKPOINT_FILE).is_file():
        found, choices = "an interrupted run", "continue it with --resume, replace it with --overwrite"
    elif (folder / METRICS_FILE).is_file() or (folder / cards.CARD_FILE).is_file():
        found, choices = "a finished run", "replace it with --overwrite"
    else:
        return
    raise UserError(f"{folder} holds {found}: {choices}, or name another folder with --output.")


def print_wrapped(text: str) -> None:
    """Print a text in lines of at most 80 columns.

    Args:
        text: one paragraph.
    """
    print(textwrap.fill(text, 80, break_on_hyphens=False, break_long_words=False), flush=True)


def print_command(words: Sequence[str]) -> None:
    """Print the command to type next, in lines of at most 80 columns where a word is not longer.

    Args:
        words: of the command.
    """
    lines = ["Next:"]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + 1 + len(word) > 78:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {word}"
    print("\n".join(lines), flush=True)


def save_metrics(folder: StrPath, metrics: dict[str, Any]) -> dict[str, Any]:
    """Write `metrics.json` of an evaluation, with the command and the versions, and print where the report is.

    Args:
        folder: where it goes.
        metrics: what it says besides.

    Returns:
        all that it holds.
    """
    metrics = _write_metrics(folder, metrics)
    print(f"The report is in {folder}/.", flush=True)
    return metrics


def _write_metrics(folder, metrics):
    metrics = metrics | run_metadata()
    files.write_json(pathlib.Path(folder) / METRICS_FILE, metrics)
    return metrics


def run_metadata() -> dict[str, Any]:
    """Command, backend, versions and machine, for `metrics.json`."""
    backend = keras.backend.backend()
    versions = {name: backends.package_version(name) for name in ("keras", backend, "numpy")}
    return {
        "command": f"KERAS_BACKEND={backend} python {shlex.join(sys.argv)}",
        "backend": backend,
        "versions": {"zoo": zoo.__version__, "python": platform.python_version(), **versions},
        "machine": f"{platform.machine()}, {platform.system()}",
    }
