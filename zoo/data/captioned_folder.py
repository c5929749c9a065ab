"""Captioned pictures of one's own: the layout of Hugging Face's imagefolder, or a text file beside each picture.

    folder/metadata.csv         file_name,text          or      folder/metadata.jsonl   {"file_name": …, "text": …}
    folder/0001.png             0001.png,a red cup              folder/0001.png
                                                        or      folder/0001.png, folder/0001.txt, …

A metadata file names pictures of its own folder and of those below it, as in datasets 5.2,
packaged_modules/folder_based_builder. Pictures become RGB, upright as their EXIF data says, and are resized to one
size; broken files and copies are found as by `zoo.data.image_folder`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from zoo.data.batches import epoch_order
from zoo.data.image_folder import (
    IMAGE_SIZE,
    IMAGE_SUFFIXES,
    ON_BROKEN,
    PARTS,
    STREAM,
    ImageFiles,
    column_names,
    decode_files,
    listed_files,
    read_csv,
    split_pictures,
    unread_files,
)
from zoo.errors import UserError, did_you_mean
from zoo.io import schemas
from zoo.typing import StrPath

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN, CAPTION_COLUMN = "file_name", "text"  # of Hugging Face's imagefolder
SIZE_MULTIPLE = 16  # the autoencoder and the denoiser halve an image twice each
SIZES = range(32, 257, SIZE_MULTIPLE)  # of an image in pixels

_MOST_BYTES = 2**28  # of a metadata file
_MOST_CAPTION_BYTES = 2**16


class PictureBatch(NamedTuple):
    """A batch of captioned pictures.

    Attributes:
        images: (B, size, size, 3) uint8.
        captions: list of B strings.
        content_ids: (B,) int, index of the caption among `CaptionedFolder.all_captions()`.
    """

    images: np.ndarray
    captions: list[str]
    content_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class CaptionedFolder:
    """Captioned pictures in training, validation and test parts.

    Attributes:
        name: of the data set.
        images: {"train", "validation", "test": (N, size, size, 3) uint8, an array or `ImageFiles`}.
        captions: {part: list of N strings}.
        image_size: height and width in pixels.
        source: where it comes from.
        sha256: hex digest of the pixels and captions of all parts, in their order.
        broken: paths of the files that are no whole pictures.
        remarks: sentences about what was left out or found twice.
    """

    name: str
    images: dict[str, np.ndarray | ImageFiles]
    captions: dict[str, list[str]]
    image_size: int
    source: str
    sha256: str
    broken: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    _content_ids: dict[str, np.ndarray] = dataclasses.field(init=False, repr=False, compare=False)

    num_paraphrases = 1  # of a picture's caption, see `zoo.data.captions.CaptionedImages`

    def __post_init__(self):
        number = {caption: index for index, caption in enumerate(self.all_captions())}
        ids = {part: np.array([number[one] for one in captions], np.int64) for part, captions in self.captions.items()}
        object.__setattr__(self, "_content_ids", ids)

    def count(self, split: str) -> int:
        """Number of pictures.

        Args:
            split: "train", "validation" or "test".

        Returns:
            N.
        """
        return len(self.captions[split])

    def all_captions(self) -> list[str]:
        """The different captions of all parts, in alphabetical order."""
        return sorted({caption for captions in self.captions.values() for caption in captions})

    def vocabulary_captions(self) -> list[str]:
        """The captions that a tokenizer's words are taken from: those of the training part."""
        return self.captions["train"]

    def example_prompts(self, count: int = 10) -> list[str]:
        """Captions to generate examples from.

        Args:
            count: at most so many.

        Returns:
            different captions of the validation part.
        """
        return list(dict.fromkeys(self.captions["validation"]))[:count]

    def render(self, split: str, indices: np.ndarray, *, seed: int | Sequence[int] = 0) -> PictureBatch:
        """Some pictures.

        Args:
            split: "train", "validation" or "test".
            indices: (B,) of the pictures in that part.
            seed: not used: a picture has one caption and is as it is.

        Returns:
            `PictureBatch`.
        """
        indices = np.asarray(indices)
        content_ids = self._content_ids[split][indices]
        return PictureBatch(self.images[split][indices], [self.captions[split][row] for row in indices], content_ids)

    def batches(self, split: str, batch_size: int, *, seed: int, epoch: int = 0) -> Iterator[PictureBatch]:
        """Iterate once over a part; the order is a function of (seed, epoch).

        Args:
            split: "train", "validation" or "test".
            batch_size: pictures in a batch.
            seed: integer from 0 up.
            epoch: its number, from 0.

        Yields:
            `PictureBatch`.
        """
        order = epoch_order(self.count(split), seed=seed, epoch=epoch)
        for start in range(0, len(order), batch_size):
            yield self.render(split, order[start : start + batch_size])

    def subset(self, count: int, seed: int = 0) -> CaptionedFolder:
        """A copy with fewer pictures, chosen at random.

        Args:
            count: most pictures of each part.
            seed: of the choice.

        Returns:
            `CaptionedFolder`.
        """
        rng = np.random.default_rng(seed)
        rows = {part: np.sort(rng.permutation(self.count(part))[:count]) for part in PARTS}
        images = {part: _take(self.images[part], rows[part]) for part in PARTS}
        captions = {part: [self.captions[part][row] for row in rows[part]] for part in PARTS}
        return dataclasses.replace(self, images=images, captions=captions)

    def fingerprint(self) -> str:
        """sha256 of the pixels and captions of all parts, in their order."""
        return self.sha256


def load_captioned_folder(
    train_dir: StrPath,
    *,
    validation_dir: StrPath | None = None,
    test_dir: StrPath | None = None,
    caption_column: str = CAPTION_COLUMN,
    image_size: int = IMAGE_SIZE,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    on_broken: Literal["skip", "refuse"] = "skip",
    stream: Literal["auto", "always", "never"] = "auto",
) -> CaptionedFolder:
    """Load pictures with captions, and split them where no folder says which are for validation and for testing.

    Copies, pictures of equal pixels at `image_size`, go to one part; where folders give the parts, a picture with a
    copy in a later one is left out. Order and split depend on pixels, captions and `seed`, not on the names of files.

    Args:
        train_dir: folder of pictures with a metadata.csv or metadata.jsonl, there or in folders below it, or with a
            UTF-8 .txt file of the same name beside each. Line breaks in a caption are spaces.
        validation_dir: folder of the same kind for validation; a fraction of the others if None.
        test_dir: folder of the same kind for testing; a fraction of the others if None.
        caption_column: column of the captions in a metadata file; that of the files is "file_name".
        image_size: height and width in pixels to which all are resized, one of `SIZES`.
        validation_fraction: fraction of the pictures held out for validation.
        test_fraction: as `validation_fraction`, for testing.
        seed: seed of the split.
        on_broken: "skip" files that are no whole pictures, or "refuse" the data set.
        stream: "always" decode files where they are used, "never" do and keep the pictures in memory, or "auto": in
            memory up to `zoo.data.image_folder.MEMORY_LIMIT` bytes.

    Returns:
        `CaptionedFolder`.

    Raises:
        UserError: if there is no such folder or column, a picture has no caption, a caption has no picture, there are
            too few pictures, the size does not fit, or a file is broken and `on_broken` is "refuse".
    """
    for name, value, known in (("on_broken", on_broken, ON_BROKEN), ("stream", stream, STREAM)):
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if image_size not in SIZES:
        raise UserError(
            f"The image size must be a multiple of {SIZE_MULTIPLE} from {SIZES[0]} to {SIZES[-1]} pixels, got "
            f"{image_size}: try 48 or 64."
        )
    named = {"train": train_dir, "validation": validation_dir, "test": test_dir}
    folders = {part: pathlib.Path(folder).expanduser() for part, folder in named.items() if folder is not None}
    items: list[tuple[str, str, str]] = []  # (path, caption, part)
    for part, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: give one with pictures.")
        items += [(path, caption, part) for path, caption in _captioned_files(folder, caption_column)]
    x, whole, digests, broken = decode_files(
        [path for path, *_ in items], image_size=image_size, on_broken=on_broken, stream=stream
    )
    captions = [items[row][1] for row in whole]
    rows_of, more = split_pictures(
        digests,
        contents=captions,
        strata=np.zeros(len(whole), np.int32),
        parts=np.array([PARTS.index(items[row][2]) for row in whole], np.int8),
        groups=[None] * len(whole),
        given=set(folders),
        fractions={"validation": validation_fraction, "test": test_fraction},
        seed=seed,
        several=("has several captions", "have several captions"),
    )
    for part, rows in rows_of.items():
        if not len(rows):
            advice = f", or give --{part}-dir" if part not in folders else ""
            raise UserError(
                f"{folders.get(part, folders['train'])} has too few pictures for the {part} part, {len(whole)} whole "
                f"ones in all (broken ones and copies do not count): add some{advice}."
            )
    sha256 = hashlib.sha256()
    for part in PARTS:
        for row in rows_of[part]:
            sha256.update(digests[row] + hashlib.sha256(captions[row].encode()).digest())
        sha256.update(f"{image_size} end of a part".encode())
    return CaptionedFolder(
        name=re.sub(r"\W+", "_", folders["train"].resolve().name) or "pictures",
        images={part: _take(x, rows) for part, rows in rows_of.items()},
        captions={part: [captions[row] for row in rows] for part, rows in rows_of.items()},
        image_size=image_size,
        source=str(folders["train"]),
        sha256=sha256.hexdigest(),
        broken=tuple(broken),
        remarks=(
            *unread_files(folders.values()),
            *([f"Skipped {listed_files(broken, 'broken picture')}."] if broken else []),
            *more,
        ),
    )


def _take(x, rows):
    return x.take(rows) if isinstance(x, ImageFiles) else x[rows]


# ------------------------------------------------------------------------------------------------- finding captions


def _captioned_files(folder, caption_column):
    """[(path, caption)] of the pictures in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not pictures:
        raise UserError(
            f"{folder} holds no pictures: give a folder of pictures (PNG, JPEG, …) with metadata.csv, metadata.jsonl "
            "or a .txt file beside each."
        )
    metadata = [path for path in files if path.name in METADATA_FILES]
    captions: dict[pathlib.Path, str] = {}
    if metadata:
        for path in metadata:
            if path.name != METADATA_FILES[0] and path.with_name(METADATA_FILES[0]) in metadata:
                raise UserError(f"{path.parent} holds both {' and '.join(METADATA_FILES)}: keep one of them.")
            for place, name, caption in _read_metadata(path, caption_column):
                picture = _named_picture(path, place, name)
                if picture in captions:
                    raise UserError(f"{place} names {name} a second time: keep one of the rows.")
                captions[picture] = caption
        if missing := [path.relative_to(folder) for path in captions if not path.is_file()]:
            where = f"{metadata[0]}{' and others name' if len(metadata) > 1 else ' names'}"
            raise UserError(
                f"{where} {listed_files(missing, 'file')}, not found in {folder}: correct the names, which are "
                "relative to the metadata file, or remove the rows."
            )
    else:
        texts = {path: path.with_suffix(".txt") for path in pictures}
        captions = {path: _read_caption(text) for path, text in texts.items() if text.is_file()}
        if not captions:
            raise UserError(
                f"{folder} holds {len(pictures):,} pictures and no captions: add a metadata.csv with the columns "
                f"{FILE_COLUMN} and {caption_column}, a metadata.jsonl, or a .txt file beside each picture."
            )
    if without := [path.relative_to(folder) for path in pictures if not captions.get(path)]:
        raise UserError(
            f"{folder} holds pictures without caption, {listed_files(without, 'file')}: write one, or move them "
            "elsewhere."
        )
    return [(str(path), caption) for path, caption in captions.items()]


def _read_caption(path):
    """The caption in a .txt file."""
    try:
        if path.stat().st_size > _MOST_CAPTION_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for a caption: cut it.")
        return _one_line(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): write the caption again.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: save it as UTF-8.") from error


def _read_metadata(path, caption_column):
    """Yield (where it stands, file name, caption) of each row of a metadata file."""
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    for place, row in rows:
        for column in (FILE_COLUMN, caption_column):
            if column not in row:
                hint = ", or name its column with --caption-column" if column == caption_column else ""
                raise UserError(
                    f"{place} has no column {column!r} but {column_names(list(row))}: add it{hint}."
                    f"{did_you_mean(column, row)}"
                )
        name, caption = row[FILE_COLUMN], row[caption_column]
        for column, value in ((FILE_COLUMN, name), (caption_column, "" if caption is None else caption)):
            if not isinstance(value, str):
                raise UserError(f"{place} says {column} is {value!r:.60}, where text was expected: write a text.")
        if len(caption or "") > _MOST_CAPTION_BYTES:
            raise UserError(f"{place} has a caption of {len(caption):,} characters, which is too long: cut it.")
        yield place, name.strip(), _one_line(caption or "")


def _csv_rows(path):
    header, rows = read_csv(path, "captions")
    for line, values in rows or [(1, [""] * len(header))]:  # without rows, the header is looked at all the same
        yield f"Line {line} of {path}", dict(zip(header, values))


def _json_rows(path):
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for captions: give another file.")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): write it again.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: save it as UTF-8.") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"Line {number} of {path}"
            yield place, schemas.parse_object(line, place)


def _named_picture(metadata, place, name):
    """The path of the picture that a row names."""
    relative = pathlib.PurePosixPath(name.replace("\\", "/"))
    if not name or relative.is_absolute() or ".." in relative.parts or re.match("[A-Za-z]:", name):
        raise UserError(
            f"{place} names {name or 'no file'!r}, where a path below {metadata.parent} was expected: correct it."
        )
    return metadata.parent / relative


def _one_line(text):
    return " ".join(text.split())
