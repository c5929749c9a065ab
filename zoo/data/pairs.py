"""Pairs of sentences to learn translation from, and batches of them: sentences of like length side by side."""

import dataclasses
import gzip
import hashlib
import pathlib

import keras
import numpy as np

from zoo.data.batches import epoch_order
from zoo.errors import UserError, nearest

MULTI30K = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
LENGTHS = (
    8,
    12,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
)  # widths of batches: few shapes to compile
NUMBERS = 12_000  # pairs of the number words


@dataclasses.dataclass(frozen=True)
class PairDataset:
    """Pairs of sentences in three parts, each a list of (source, target)."""

    name: str
    source: str
    target: str
    train: list
    validation: list
    test: list

    def fingerprint(self):
        """sha256 of all pairs in UTF-8."""
        lines = (f"{a}\t{b}\n" for part in (self.train, self.validation, self.test) for a, b in part)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_pairs(source="de", target="en", *, data_dir=None, pairs=None):
    """Load sentence pairs.

    Args:
        source, target: languages, e.g. "de", "en".
        data_dir: folder of Multi30k, task 1: `train.de`, `val.de`, `test_2016_flickr.de` and so on, gzipped or not.
        pairs: files of the user's own: [one TSV file with source and target in its columns], or [source file, target
            file] whose lines correspond. Of every 20 pairs in order, one is kept to validate and one to test.

    Returns:
        (`PairDataset`, remark): the remark is one line to print where number words stand in for missing data, or
        None.

    Raises:
        UserError: if a file is missing, empty, not UTF-8, or the lines do not pair; if a language is unknown.
    """
    if source == target:
        raise UserError(f"Source and target are both {source!r}: give two languages.")
    if pairs is not None:
        return _own(source, target, [pathlib.Path(file) for file in pairs]), None
    if data_dir is not None:
        return _multi30k(source, target, pathlib.Path(data_dir).expanduser()), None
    return _number_words(source, target), (
        f"No data was named: learning to translate number words ({source} to {target}) instead (--data-dir says where "
        "Multi30k is, --pairs FILE takes sentences of yours)."
    )


def _multi30k(source, target, folder):
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give the one with Multi30k's train.{source}, val.{source} ….")
    languages = sorted({path.name.removesuffix(".gz").rpartition(".")[2] for path in folder.glob("train.*")})
    if not languages:
        raise UserError(f"{folder} holds no train.{source} (or .gz): give the folder of Multi30k, task 1, raw.")
    for language in (source, target):
        if language not in languages:
            raise UserError(
                f"{folder} has no {language!r}: choose from {', '.join(languages)}.{nearest(language, languages)}"
            )
    parts = {}
    for part, stem in MULTI30K.items():
        files = []
        for language in (source, target):
            found = [
                path for path in (folder / f"{stem}.{language}", folder / f"{stem}.{language}.gz") if path.is_file()
            ]
            if not found:
                raise UserError(f"{folder} lacks {stem}.{language} (or .gz): put the file there.")
            files.append(found[0])
        parts[part] = _aligned(*files)
    return PairDataset("multi30k", source, target, **parts)


def _own(source, target, paths):
    if len(paths) > 2:
        raise UserError(f"--pairs takes one TSV file or two aligned files, got {len(paths)}.")
    if len(paths) == 2:
        pairs = _aligned(*paths)
    else:
        pairs = []
        for number, line in enumerate(_lines(paths[0]), 1):
            cells = line.split("\t")
            if len(cells) < 2 or not cells[0].strip() or not cells[1].strip():
                raise UserError(f"{paths[0]}, line {number} is not source, tab, target: {line[:60]!r}.")
            pairs.append((cells[0].strip(), cells[1].strip()))
    if len(pairs) < 20:
        raise UserError(f"{paths[0]} has {len(pairs)} pairs, at least 20 are needed: 18 to learn, one each to check.")
    return PairDataset(
        paths[0].name.partition(".")[0],
        source,
        target,
        train=[pair for k, pair in enumerate(pairs) if k % 20 < 18],
        validation=pairs[18::20],
        test=pairs[19::20],
    )


def _aligned(one, other):
    """Pairs of the lines of two files."""
    a, b = _lines(one), _lines(other)
    if len(a) != len(b):
        raise UserError(f"{one} has {len(a):,} lines but {other} has {len(b):,}: line n of both must be one pair.")
    for number, pair in enumerate(zip(a, b), 1):
        for path, line in zip((one, other), pair):
            if not line.strip():
                raise UserError(f"{path}, line {number} is empty: remove that line from both files.")
    return [(x.strip(), y.strip()) for x, y in zip(a, b)]


def _lines(path):
    if not path.is_file():
        raise UserError(f"There is no file {path}: give a UTF-8 text, or a gzipped one that ends with .gz.")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}): save it as UTF-8."
        ) from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as gzip ({error}): fetch it again.") from error
    lines = text.split("\n")  # not splitlines: a sentence may hold a line separator of Unicode
    lines = lines[:-1] if lines[-1] == "" else lines
    if not any(line.strip() for line in lines):
        raise UserError(f"{path} holds no text.")
    return lines


def _number_words(source, target):
    """Numbers below a million in words, drawn once each from a fixed seed: none is in two parts."""
    from num2words import num2words

    numbers = np.random.default_rng(0).choice(1_000_000, NUMBERS, replace=False)
    numbers[: NUMBERS // 4] %= 10_000  # short ones too
    numbers = list(dict.fromkeys(int(number) for number in numbers))
    try:
        pairs = [tuple(num2words(number, lang=language) for language in (source, target)) for number in numbers]
    except NotImplementedError as error:
        raise UserError(
            f"num2words does not know {source!r} or {target!r}: choose others, or name data with --data-dir or --pairs."
        ) from error
    cut = len(pairs) // 20
    return PairDataset("number_words", source, target, pairs[2 * cut :], pairs[:cut], pairs[cut : 2 * cut])


class PairBatches(keras.utils.PyDataset):
    """Batches of like length for `model.fit(batches, shuffle=False)`: as many rows as the tokens of a batch allow.

    A pair belongs to the narrowest of `LENGTHS` that holds both of its sides. Batches of one width have one number of
    rows, so that a backend compiles one program a width; rows that are missing in the last repeat its first pair and
    weigh nothing.

    Args:
        pairs: list of (source ids with the end token, target ids with the end token).
        tokens: rows x width of a batch, at most (at least one row).
        pad_id, start_id: tokens.
        seed: seed of the order, a function of (seed, epoch) alone; None for a fixed order (validation).

    Each batch: ((source (B, S), target input (B, S)), target (B, S), weights (B, S)), the last equal at all
    tokens of the target, 0 at padding, and 1 on average.

    Raises:
        UserError: if there are no pairs, or one is longer than the widest of `LENGTHS`.
    """

    def __init__(self, pairs, *, tokens, pad_id, start_id, seed=None):
        super().__init__(workers=1, use_multiprocessing=False)
        if not pairs:
            raise UserError("There are no sentence pairs to make batches of.")
        self.pairs, self.tokens, self.pad_id, self.start_id, self.seed = pairs, tokens, pad_id, start_id, seed
        longest = np.array([max(len(source), len(target)) for source, target in pairs])
        if longest.max() > LENGTHS[-1]:
            raise UserError(
                f"Pair {longest.argmax() + 1} has {longest.max()} tokens, at most {LENGTHS[-1]} fit: shorten it."
            )
        self.width = np.array(LENGTHS)[np.searchsorted(LENGTHS, longest)]  # (pairs,)
        self.target_tokens = sum(len(target) for _, target in pairs)
        self.set_epoch(0)

    def set_epoch(self, epoch):
        count = len(self.pairs)
        order = np.arange(count) if self.seed is None else epoch_order(count, seed=self.seed, epoch=epoch)
        self.batches = []
        for width in np.unique(self.width):
            rows = order[self.width[order] == width]
            size = max(1, self.tokens // int(width))
            self.batches += [(int(width), size, rows[begin : begin + size]) for begin in range(0, len(rows), size)]
        if self.seed is not None:
            mixed = epoch_order(len(self.batches), seed=self.seed + 1, epoch=epoch)
            self.batches = [self.batches[place] for place in mixed]
        # Keras on TensorFlow looks at the first two batches to see which sizes change: they have different widths.
        other = [place for place, batch in enumerate(self.batches) if batch[0] != self.batches[0][0]]
        if other:
            self.batches[1], self.batches[other[0]] = self.batches[other[0]], self.batches[1]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        width, size, rows = self.batches[index]
        source, given, wanted = (np.full((size, width), self.pad_id, "int32") for _ in range(3))
        weights = np.zeros((size, width), "float32")
        for place, row in enumerate([*rows, *rows[:1].repeat(size - len(rows))]):
            ids, target = self.pairs[row]
            source[place, : len(ids)] = ids
            given[place, : len(target)] = [self.start_id, *target[:-1]]
            wanted[place, : len(target)] = target
            weights[place, : len(target)] = place < len(rows)
        return (source, given), wanted, weights / weights.mean()
