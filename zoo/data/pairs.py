"""Sentence pairs for translation, and batches of them: pairs of similar length together."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import pathlib
import zlib
from collections.abc import Callable, Sequence

import keras
import numpy as np

from zoo.data.batches import epoch_order
from zoo.errors import UserError, did_you_mean, require
from zoo.io import schemas
from zoo.typing import StrPath

MULTI30K = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
# Padded widths of batches: few, so that a backend compiles few programs.
BUCKET_WIDTHS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)
_NUM_NUMERAL_PAIRS = 12_000  # of the number words

TokenPair = tuple[list[int], list[int]]


@dataclasses.dataclass(frozen=True)
class PairDataset:
    """Sentence pairs in three splits.

    Attributes:
        name: of the data set.
        source_lang: language of the source, e.g. "de".
        target_lang: language of the target, e.g. "en".
        train: list of (source, target).
        validation: list of (source, target).
        test: list of (source, target).
    """

    name: str
    source_lang: str
    target_lang: str
    train: list[tuple[str, str]]
    validation: list[tuple[str, str]]
    test: list[tuple[str, str]]

    def fingerprint(self) -> str:
        """sha256 of all pairs in UTF-8."""
        lines = (f"{a}\t{b}\n" for part in (self.train, self.validation, self.test) for a, b in part)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_pairs(
    source_lang: str = "de",
    target_lang: str = "en",
    *,
    data_dir: StrPath | None = None,
    pairs: Sequence[StrPath] | None = None,
) -> tuple[PairDataset, str | None]:
    """Load sentence pairs.

    Args:
        source_lang: language of the source, e.g. "de".
        target_lang: language of the target, e.g. "en".
        data_dir: folder of Multi30k, task 1: `train.de`, `val.de`, `test_2016_flickr.de` and so on, gzipped or not.
        pairs: paths of your own files, gzipped or not: [one TSV file with source and target in its columns], [one file
            of JSON lines (.jsonl), each {"de": source, "en": target} by the names of the languages, or that under the
            key "translation", as Hugging Face has it], or [source file, target file] whose lines correspond. Of every
            20 pairs in order, one is for validation and one for the test.

    Returns:
        (`PairDataset`, remark): the remark is one line where number words were used instead of data, else None.

    Raises:
        UserError: if a file is missing, empty, not UTF-8, or the lines do not pair; if a language is unknown.
    """
    if source_lang == target_lang:
        raise UserError(f"Source and target_lang are both {source_lang!r}: give two languages.")
    if pairs is not None:
        return _load_own_pairs(source_lang, target_lang, [pathlib.Path(file).expanduser() for file in pairs]), None
    if data_dir is not None:
        return _load_multi30k(source_lang, target_lang, pathlib.Path(data_dir).expanduser()), None
    return _number_words(source_lang, target_lang), (
        f"No data was named: learning to translate number words ({source_lang} to {target_lang}) instead "
        "(--data-dir names Multi30k's folder, --pairs FILE sentences of your own)."
    )


def _load_multi30k(source_lang, target_lang, folder):
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give the one with Multi30k's train.{source_lang} and so on.")
    languages = sorted({path.name.removesuffix(".gz").rpartition(".")[2] for path in folder.glob("train.*")})
    if not languages:
        raise UserError(f"{folder} holds no train.{source_lang} (or .gz): give the folder of Multi30k, task 1, raw.")
    for language in (source_lang, target_lang):
        if language not in languages:
            raise UserError(
                f"{folder} has no {language!r}: choose from {', '.join(languages)}.{did_you_mean(language, languages)}"
            )
    parts = {}
    for part, stem in MULTI30K.items():
        files = []
        for language in (source_lang, target_lang):
            found = [
                path for path in (folder / f"{stem}.{language}", folder / f"{stem}.{language}.gz") if path.is_file()
            ]
            if not found:
                raise UserError(f"{folder} lacks {stem}.{language} (or .gz): put the file there.")
            files.append(found[0])
        parts[part] = _read_aligned(*files)
    return PairDataset("multi30k", source_lang, target_lang, **parts)


def _load_own_pairs(source_lang, target_lang, paths):
    if len(paths) > 2:
        raise UserError(f"--pairs takes one file of TSV or JSON lines, or two aligned files, got {len(paths)}.")
    if len(paths) == 2:
        pairs = _read_aligned(*paths)
    elif ".jsonl" in paths[0].name.lower():
        pairs = [
            _pair_of_json(line, source_lang, target_lang, f"{paths[0]}, line {number}")
            for number, line in enumerate(_read_lines(paths[0]), 1)
        ]
    else:
        pairs = []
        for number, line in enumerate(_read_lines(paths[0]), 1):
            cells = line.split("\t")
            if len(cells) < 2 or not cells[0].strip() or not cells[1].strip():
                raise UserError(
                    f"{paths[0]}, line {number} is not source, tab, target: {line[:60]!r}: give tab-separated text, "
                    "JSON lines in a file that ends with .jsonl, or two aligned files."
                )
            pairs.append((cells[0].strip(), cells[1].strip()))
    if len(pairs) < 20:
        raise UserError(f"{paths[0]} has {len(pairs)} pairs, at least 20 are needed: 18 to learn, one each to check.")
    return PairDataset(
        paths[0].name.partition(".")[0],
        source_lang,
        target_lang,
        train=[pair for k, pair in enumerate(pairs) if k % 20 < 18],
        validation=pairs[18::20],
        test=pairs[19::20],
    )


def _pair_of_json(line, source_lang, target_lang, place):
    """The pair in a line of JSON; `place` says where that is."""
    value = schemas.parse_object(line, place)
    nested = value.get("translation", value)
    sentences = nested if isinstance(nested, dict) else {}
    for language in (source_lang, target_lang):
        sentence = sentences.get(language)
        if not isinstance(sentence, str) or not sentence.strip():
            raise UserError(
                f'{place} has no sentence "{language}": write {{"{source_lang}": …, "{target_lang}": …}} in each line, '
                "or name its languages with --source-lang and --target-lang."
            )
    return sentences[source_lang].strip(), sentences[target_lang].strip()


def _read_aligned(one, other):
    """Pairs of the corresponding lines of two files."""
    a, b = _read_lines(one), _read_lines(other)
    if len(a) != len(b):
        raise UserError(f"{one} has {len(a):,} lines but {other} has {len(b):,}: line n of both must be one pair.")
    for number, pair in enumerate(zip(a, b), 1):
        for path, line in zip((one, other), pair):
            if not line.strip():
                raise UserError(f"{path}, line {number} is empty: remove that line from both files.")
    return [(x.strip(), y.strip()) for x, y in zip(a, b)]


def _read_lines(path):
    if not path.is_file():
        raise UserError(f"There is no file {path}: give a UTF-8 text, or a gzipped one that ends with .gz.")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}): save it as UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as gzip ({error}): fetch it again.") from error
    lines = text.split("\n")  # not splitlines: a sentence may hold a line separator of Unicode
    lines = lines[:-1] if lines[-1] == "" else lines
    if not any(line.strip() for line in lines):
        raise UserError(f"{path} holds no text.")
    return lines


def _number_words(source_lang, target_lang):
    """Distinct numbers below a million in words, sampled with a fixed seed: no number is in two splits."""
    require("num2words", what="Numbers in words, the data where there are no sentences,")
    from num2words import num2words

    numbers = np.random.default_rng(0).choice(1_000_000, _NUM_NUMERAL_PAIRS, replace=False)
    numbers[: _NUM_NUMERAL_PAIRS // 4] %= 10_000  # short ones too
    distinct = list(dict.fromkeys(int(n) for n in numbers))
    try:
        pairs = [
            tuple(num2words(number, lang=language) for language in (source_lang, target_lang)) for number in distinct
        ]
    except NotImplementedError as error:
        raise UserError(
            f"num2words does not know {source_lang!r} or {target_lang!r}: choose other languages, or name data with "
            "--data-dir or --pairs."
        ) from error
    cut = len(pairs) // 20
    return PairDataset("number_words", source_lang, target_lang, pairs[2 * cut :], pairs[:cut], pairs[cut : 2 * cut])


class BucketedBatches(keras.utils.PyDataset):
    """Batches of sentence pairs of similar length, padded to a bucket width.

    A pair goes to the smallest width of `BUCKET_WIDTHS` that fits both sentences. All batches of one width have the
    same number of rows, so that a backend compiles one program a width; missing rows of the last batch repeat its
    first pair with weight 0.

    Each batch: ((source (B, S), decoder input (B, S)), target (B, S), weights (B, S)); weights are equal at all target
    tokens, 0 at padding, and 1 on average.

    Args:
        pairs: list of (source ids with the end token, target ids with the end token), or a function that returns one
            for the number of an epoch, from 0, the same for the same number (BPE-dropout). An epoch has as many
            batches as the first one: where lengths make them more or fewer, some are left out or come twice.
        batch_tokens: upper bound of rows x width of a batch (at least one row).
        pad_id: id of the padding token.
        start_id: id of the start token.
        seed: seed of the order, a function of (seed, epoch) alone; None for a fixed order (validation).

    Raises:
        UserError: if there are no pairs, or one is longer than the widest bucket.
    """

    def __init__(
        self,
        pairs: Sequence[TokenPair] | Callable[[int], Sequence[TokenPair]],
        *,
        batch_tokens: int,
        pad_id: int,
        start_id: int,
        seed: int | None = None,
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self.pairs_of_epoch = pairs if callable(pairs) else lambda epoch: pairs
        self.batch_tokens, self.seed, self.pad_id, self.start_id = batch_tokens, seed, pad_id, start_id
        self._batches_per_epoch = 0  # those of the first
        self.set_epoch(0)
        self._batches_per_epoch, self.target_tokens = len(self.batches), sum(len(target) for _, target in self.pairs)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch.

        Args:
            epoch: its number, from 0.
        """
        self.pairs = self.pairs_of_epoch(epoch)
        if not self.pairs:
            raise UserError("There are no sentence pairs to make batches of.")
        lengths = np.array([max(len(source), len(target)) for source, target in self.pairs])
        if lengths.max() > BUCKET_WIDTHS[-1]:
            raise UserError(
                f"Pair {lengths.argmax() + 1} has {lengths.max()} tokens, at most {BUCKET_WIDTHS[-1]} fit: shorten it."
            )
        widths = np.array(BUCKET_WIDTHS)[np.searchsorted(BUCKET_WIDTHS, lengths)]  # (pairs,)
        count = len(self.pairs)
        order = np.arange(count) if self.seed is None else epoch_order(count, seed=self.seed, epoch=epoch)
        self.batches = []  # (width, rows, indices of pairs)
        for width in np.unique(widths):
            indices = order[widths[order] == width]
            rows = max(1, self.batch_tokens // int(width))
            self.batches += [(int(width), rows, indices[k : k + rows]) for k in range(0, len(indices), rows)]
        if self.seed is not None:
            shuffled = epoch_order(len(self.batches), seed=self.seed + 1, epoch=epoch)
            self.batches = [self.batches[k] for k in shuffled]
        self.batches = (2 * self.batches)[: self._batches_per_epoch or len(self.batches)]
        # Keras on TensorFlow compares the shapes of the first two batches to see which sizes change: make them differ.
        other = [k for k, batch in enumerate(self.batches) if batch[0] != self.batches[0][0]]
        if other:
            self.batches[1], self.batches[other[0]] = self.batches[other[0]], self.batches[1]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        width, rows, indices = self.batches[index]
        source, decoder_input, target = (np.full((rows, width), self.pad_id, "int32") for _ in range(3))
        weights = np.zeros((rows, width), "float32")
        for row, pair in enumerate([*indices, *indices[:1].repeat(rows - len(indices))]):
            source_ids, target_ids = self.pairs[pair]
            source[row, : len(source_ids)] = source_ids
            decoder_input[row, : len(target_ids)] = [self.start_id, *target_ids[:-1]]
            target[row, : len(target_ids)] = target_ids
            weights[row, : len(target_ids)] = row < len(indices)
        return (source, decoder_input), target, weights / weights.mean()
