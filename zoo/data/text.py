"""Texts for language models, and batches of them: contiguous streams, or shuffled windows."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import TYPE_CHECKING

import keras
import numpy as np

from zoo.data.batches import epoch_order
from zoo.data.images import read_tfds_text
from zoo.errors import UserError
from zoo.io import files
from zoo.typing import StrPath

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class TextDataset:
    """A text and its splits, in order: 90 % training, 5 % validation, 5 % test.

    Attributes:
        name: of the data set.
        text: all of it.
        source: where it comes from.
    """

    name: str
    text: str
    source: str

    def split(self, name: str) -> str:
        """The text of a split.

        Args:
            name: "train", "validation" or "test".

        Returns:
            the text.
        """
        first, second = int(len(self.text) * 0.9), int(len(self.text) * 0.95)
        return {
            "train": self.text[:first],
            "validation": self.text[first:second],
            "test": self.text[second:],
        }[name]

    def fingerprint(self) -> str:
        """sha256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_text(*, file: StrPath | None = None, data_dir: StrPath | None = None) -> tuple[TextDataset, str | None]:
    """Load a text: a file, a folder of files, or tiny shakespeare.

    Args:
        file: path of a UTF-8 text file, whose lines may end as on Windows; or of a folder, whose `.txt` files, those of
            its sub-folders too, are joined in the order of their paths, with an empty line between two.
        data_dir: location of tiny shakespeare: a folder with `input.txt` (or that file itself), or a
            tensorflow-datasets folder with `tiny_shakespeare` prepared.

    Returns:
        (`TextDataset`, remark): the remark is one line where Python's own help texts were used instead, else None.

    Raises:
        UserError: if a file is missing, empty or not UTF-8, or `data_dir` holds no tiny shakespeare.
    """
    if file is not None:
        path = pathlib.Path(file).expanduser()
        return TextDataset(
            path.resolve().stem, _read_folder(path) if path.is_dir() else _read_text(path), str(file)
        ), None
    if data_dir is not None:
        path = pathlib.Path(data_dir).expanduser()
        for candidate in (path, path / "input.txt"):
            if candidate.is_file():
                return TextDataset("tiny_shakespeare", _read_text(candidate), str(candidate)), None
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
        "(--data-dir names its folder, --text FILE a text of your own)."
    )


def _read_folder(folder):
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() == ".txt" and path.is_file() and not files.is_hidden(path, folder)
    )
    if not paths:
        raise UserError(f"{folder} holds no .txt file: give a UTF-8 text, or a folder of such files.")
    return "\n\n".join(_read_text(path).strip("\n") for path in paths) + "\n"


def _read_text(path):
    if not path.is_file():
        raise UserError(f"There is no text file at {path}: give the path of a UTF-8 text.")
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")  # lines may end as on Windows
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}): save it as UTF-8."
        ) from error
    if not text.strip():
        raise UserError(f"{path} holds no text: give a file with at least a few thousand characters.")
    return text


class BPTTBatches(keras.utils.PyDataset):
    """Batches for truncated back-propagation through time: each continues where the one before ended.

    The tokens are cut into `batch_size` contiguous streams; batch k holds positions kT to (k+1)T of every stream, and
    the target of a token is the next one. A stateful model sees every stream as one long text. With a seed, the streams
    start at an offset below T that depends on (seed, epoch), so that the cuts differ between epochs.

    Each batch: (tokens (B, T), targets (B, T)), int32.

    Args:
        token_ids: token ids (N,).
        batch_size: number of streams B.
        sequence_length: tokens of a stream in one batch, T.
        seed: seed of the offsets; None for offset 0 in every epoch (validation).

    Raises:
        UserError: if the text is too short for one batch.
    """

    def __init__(
        self, token_ids: npt.ArrayLike, *, batch_size: int, sequence_length: int, seed: int | None = None
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self.token_ids, self.seed = np.asarray(token_ids, np.int32), seed
        self.batch_size, self.sequence_length = batch_size, sequence_length
        max_offset = 0 if seed is None else sequence_length - 1
        self.steps_per_epoch = (len(self.token_ids) - 1 - max_offset) // batch_size // sequence_length
        if self.steps_per_epoch < 1:
            raise UserError(
                f"This part of the text has {len(self.token_ids):,} tokens, but one batch needs "
                f"{batch_size * sequence_length + 1 + max_offset:,}: give a longer text (a twentieth of it is for "
                "validation), or a smaller --batch-size or --sequence-length."
            )
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the offset of an epoch.

        Args:
            epoch: its number, from 0.
        """
        rng = np.random.default_rng([self.seed or 0, epoch])
        offset = 0 if self.seed is None else int(rng.integers(self.sequence_length))
        span = self.batch_size * self.steps_per_epoch * self.sequence_length
        self.tokens: np.ndarray = self.token_ids[offset : offset + span].reshape(self.batch_size, -1)
        self.targets: np.ndarray = self.token_ids[offset + 1 : offset + span + 1].reshape(self.batch_size, -1)

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, index):
        columns = slice(index * self.sequence_length, (index + 1) * self.sequence_length)
        return self.tokens[:, columns], self.targets[:, columns]


class ShuffledWindows(BPTTBatches):
    """The same windows of T tokens in shuffled order, for a stateless model."""

    def set_epoch(self, epoch: int) -> None:
        """Set the offset and the order of an epoch.

        Args:
            epoch: its number, from 0.
        """
        super().set_epoch(epoch)
        windows = self.batch_size * self.steps_per_epoch
        order = np.arange(windows) if self.seed is None else epoch_order(windows, seed=self.seed, epoch=epoch)
        self.tokens, self.targets = (
            array.reshape(windows, self.sequence_length)[order].reshape(
                self.steps_per_epoch, self.batch_size, self.sequence_length
            )
            for array in (self.tokens, self.targets)
        )

    def __getitem__(self, index):
        return self.tokens[index], self.targets[index]
