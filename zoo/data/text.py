"""Texts to learn a language model from, and batches of them: contiguous streams, or shuffled windows."""

import dataclasses
import hashlib
import pathlib

import keras
import numpy as np

from zoo.data.batches import epoch_order
from zoo.data.images import read_tfds_text
from zoo.errors import UserError


@dataclasses.dataclass(frozen=True)
class TextDataset:
    """A text in three parts, cut in order: 90 % to train, 5 % to validate, 5 % to test."""

    name: str
    text: str
    source: str

    def part(self, name):
        """The text of "train", "validation" or "test"."""
        first, second = int(len(self.text) * 0.9), int(len(self.text) * 0.95)
        return {
            "train": self.text[:first],
            "validation": self.text[first:second],
            "test": self.text[second:],
        }[name]

    def fingerprint(self):
        """sha256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_text(*, file=None, data_dir=None):
    """Load a text.

    Args:
        file: a UTF-8 text file of the user's own.
        data_dir: where tiny shakespeare is: a folder with `input.txt` (or that file itself), or a tensorflow-datasets
            folder with `tiny_shakespeare` prepared.

    Returns:
        (`TextDataset`, remark): the remark is one line to print where the text that ships with Python stands in for
        tiny shakespeare, else None.

    Raises:
        UserError: if a file is missing, empty or not UTF-8, or `data_dir` holds no tiny shakespeare.
    """
    if file is not None:
        return TextDataset(pathlib.Path(file).stem, _read(pathlib.Path(file)), str(file)), None
    if data_dir is not None:
        path = pathlib.Path(data_dir).expanduser()
        for candidate in (path, path / "input.txt"):
            if candidate.is_file():
                return TextDataset("tiny_shakespeare", _read(candidate), str(candidate)), None
        text = read_tfds_text("tiny_shakespeare", path)
        if text is None:
            raise UserError(f"{path} holds neither input.txt nor a prepared tiny_shakespeare: put the text there.")
        return TextDataset("tiny_shakespeare", text, str(path)), None
    text = read_tfds_text("tiny_shakespeare", None)
    if text is not None:
        return TextDataset("tiny_shakespeare", text, "tensorflow-datasets"), None
    from pydoc_data import topics

    return TextDataset(
        "python_topics", "\n\n".join(topics.topics[key] for key in sorted(topics.topics)), "pydoc_data"
    ), (
        "Tiny shakespeare is neither prepared nor reachable: using the help texts that ship with Python instead "
        "(--data-dir says where it is, --text FILE takes a text of yours)."
    )


def _read(path):
    if not path.is_file():
        raise UserError(f"There is no text file at {path}: give the path of a UTF-8 text.")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}): save it as UTF-8."
        ) from error
    if not text.strip():
        raise UserError(f"{path} holds no text: give a file with at least a few thousand characters.")
    return text


class Streams(keras.utils.PyDataset):
    """Batches that go on where the last one ended: for truncated back-propagation through time.

    The tokens are cut into `batch_size` streams side by side; batch k holds positions kT to (k+1)T of every stream, and
    each target is the token after. A model that carries its states sees every stream as one long text. Where the
    streams begin moves with the epoch, by less than T tokens, so that they are not always cut at the same places.

    Args:
        ids: token ids (N,).
        batch_size: number of streams B.
        length: tokens a batch and stream, T.
        seed: seed of the beginnings; None to begin at 0 always (validation).

    Each batch: (tokens (B, T), targets (B, T)), int32.

    Raises:
        UserError: if the text is too short for one batch.
    """

    def __init__(self, ids, *, batch_size, length, seed=None):
        super().__init__(workers=1, use_multiprocessing=False)
        self.ids, self.batch_size, self.length, self.seed = np.asarray(ids, np.int32), batch_size, length, seed
        spare = 0 if seed is None else length - 1
        self.steps = (len(self.ids) - 1 - spare) // batch_size // length
        if self.steps < 1:
            raise UserError(
                f"The text has {len(self.ids):,} tokens, but one batch needs {batch_size * length + 1 + spare:,}: give "
                "a longer text, or a smaller --batch-size or --length."
            )
        self.set_epoch(0)

    def set_epoch(self, epoch):
        offset = 0 if self.seed is None else int(np.random.default_rng([self.seed, epoch]).integers(self.length))
        span = self.batch_size * self.steps * self.length
        self.tokens = self.ids[offset : offset + span].reshape(self.batch_size, -1)
        self.targets = self.ids[offset + 1 : offset + span + 1].reshape(self.batch_size, -1)

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        part = slice(index * self.length, (index + 1) * self.length)
        return self.tokens[:, part], self.targets[:, part]


class Windows(Streams):
    """The same windows of T tokens in a shuffled order: every window begins from zero states."""

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        windows = self.batch_size * self.steps
        order = np.arange(windows) if self.seed is None else epoch_order(windows, seed=self.seed, epoch=epoch)
        # Window w of the stream-wise order goes to place `order[w]` of the batch-wise one.
        self.tokens, self.targets = (
            part.reshape(windows, self.length)[order].reshape(self.steps, self.batch_size, self.length)
            for part in (self.tokens, self.targets)
        )

    def __getitem__(self, index):
        return self.tokens[index], self.targets[index]
