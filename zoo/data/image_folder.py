"""Pictures of one's own: a folder with a sub-folder for each class, or a folder and a CSV file of labels.

Every picture is decoded once when the data set is opened: that finds the broken ones, and the copies, which stay on one
side of the split into training, validation and test pictures. It becomes RGB, upright as its EXIF data says, and is
resized to one size as the models resize (`zoo.models.preprocessing`: bilinear, averaged where it shrinks). A data set
that fits is kept so; of a larger one, files are decoded again in each epoch (`ImageFiles`).
"""

from __future__ import annotations

import collections
import concurrent.futures
import csv
import dataclasses
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from zoo.data.images import hold_out, read_tfds_images
from zoo.errors import UserError, did_you_mean
from zoo.io import files
from zoo.io.images import open_image
from zoo.typing import StrPath

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .ico .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm .qoi .sgi .tga .tif .tiff "
    ".webp".split()
)
# Pictures too, of formats that Pillow does not read by itself.
UNREAD_SUFFIXES = frozenset(".arw .cr2 .cr3 .dng .heic .heif .jxl .nef .orf .psd .raf .raw .rw2 .svg".split())
FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path")
LABEL_COLUMNS = ("label", "class", "class_name", "category")
ON_BROKEN = ("skip", "refuse")
STREAM = ("auto", "always", "never")
IMAGE_SIZE = 48  # of the CNN's pictures, height and width in pixels
PARTS = ("train", "validation", "test")
MEMORY_LIMIT = 2**30  # bytes of decoded pictures up to which stream="auto" keeps them

_MOST_CSV_BYTES = 2**28
_CHUNK = 256  # files that are handed to the threads together


class ImageFiles:
    """Picture files as an array (N, size, size, 3) uint8 that is decoded where it is indexed.

    Args:
        paths: of the files.
        image_size: height and width in pixels to which each is resized.

    Attributes:
        shape: (N, size, size, 3).
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[str], *, image_size: int = IMAGE_SIZE) -> None:
        self.paths, self.image_size = paths, image_size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, size, size, 3)."""
        return (len(self.paths), self.image_size, self.image_size, 3)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, rows: Any) -> Any:
        """Decode pictures.

        Args:
            rows: an index, an array of indices (B,), or a slice.

        Returns:
            (size, size, 3) uint8 of an index, (B, size, size, 3) of an array; of a slice, `ImageFiles`.

        Raises:
            UserError: if a file can no longer be read.
        """
        if isinstance(rows, slice):
            return ImageFiles(self.paths[rows], image_size=self.image_size)
        if np.ndim(rows) == 0:
            return decode_image(self.paths[rows], image_size=self.image_size)
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for target, row in zip(pixels, rows):
            target[:] = decode_image(self.paths[row], image_size=self.image_size)
        return pixels

    def take(self, rows: np.ndarray) -> ImageFiles:
        """Some of the files, not decoded.

        Args:
            rows: their indices, (B,).

        Returns:
            `ImageFiles`.
        """
        return ImageFiles([self.paths[row] for row in rows], image_size=self.image_size)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Labelled pictures in training, validation and test parts.

    Attributes:
        name: of the data set.
        x_train: pictures (N, H, W, C) uint8, an array or `ImageFiles`.
        y_train: (N,) int32.
        x_val: as `x_train`.
        y_val: as `y_train`.
        x_test: as `x_train`.
        y_test: as `y_train`.
        class_names: K names, in the order of the labels.
        source: where it comes from.
        sha256: hex digest of the pixels and labels of all parts, in their order.
        broken: paths of the files that are no whole pictures.
        remarks: sentences about what was left out or found twice.
    """

    name: str
    x_train: np.ndarray | ImageFiles
    y_train: np.ndarray
    x_val: np.ndarray | ImageFiles
    y_val: np.ndarray
    x_test: np.ndarray | ImageFiles
    y_test: np.ndarray
    class_names: tuple[str, ...]
    source: str
    sha256: str
    broken: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def is_streamed(self) -> bool:
        """Whether pictures are decoded from files in each epoch."""
        return isinstance(self.x_train, ImageFiles)

    def fingerprint(self) -> str:
        """sha256 of the pixels and labels of all parts, in their order."""
        return self.sha256

    def limited(self, limit: int | None, *, seed: int = 0) -> ImageFolder:
        """The data set with at most so many pictures of each part, chosen at random.

        Args:
            limit: how many; None for all.
            seed: seed of the choice.

        Returns:
            `ImageFolder`.
        """
        if limit is None:
            return self
        parts: dict[str, Any] = {}
        for part in ("train", "val", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            rows = np.sort(np.random.default_rng([seed, len(y)]).permutation(len(y))[:limit])
            parts |= {f"x_{part}": x.take(rows) if isinstance(x, ImageFiles) else x[rows], f"y_{part}": y[rows]}
        return dataclasses.replace(self, **parts)


def decode_image(path: StrPath, *, image_size: int = IMAGE_SIZE) -> np.ndarray:
    """Decode a picture file and resize it, as the models do (bilinear, averaged where it shrinks, not cropped).

    Args:
        path: of the file.
        image_size: height and width in pixels.

    Returns:
        (image_size, image_size, 3) uint8.

    Raises:
        UserError: if it is missing or no whole picture.
    """
    from PIL import Image

    return np.asarray(open_image(path).resize((image_size, image_size), Image.Resampling.BILINEAR))


def load_image_folder(
    train_dir: StrPath,
    *,
    validation_dir: StrPath | None = None,
    test_dir: StrPath | None = None,
    labels: StrPath | None = None,
    group_column: str | None = None,
    image_size: int = IMAGE_SIZE,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    on_broken: Literal["skip", "refuse"] = "skip",
    stream: Literal["auto", "always", "never"] = "auto",
) -> ImageFolder:
    """Load pictures with labels, and split them where no folder says which are for validation and for testing.

    Pictures of equal pixels at `image_size` are copies: a model could not tell them apart, whatever their files are
    called and however they store the pixels, without loss. Copies, and pictures of one group, go to one part. Where
    folders give the parts, a picture with a copy or a group in the test folder is left out of the others, and one with
    a copy or a group in the validation folder of the training pictures. Order and split depend on pixels, labels and
    groups and on `seed`, not on the names of files.

    Args:
        train_dir: folder with a sub-folder of pictures for each class, or the folder of the pictures that `labels`
            names.
        validation_dir: folder of the same kind for validation; a fraction of the others if None.
        test_dir: folder of the same kind for testing; a fraction of the others if None.
        labels: CSV file with a header: a column of paths below one of the folders (`FILE_COLUMNS`), and one of labels
            (`LABEL_COLUMNS`); None for sub-folders.
        group_column: column of `labels` with the group of each picture; None for none.
        image_size: height and width in pixels to which all are resized.
        validation_fraction: fraction of the groups of each class held out for validation.
        test_fraction: as `validation_fraction`, for testing.
        seed: seed of the split.
        on_broken: "skip" files that are no whole pictures, or "refuse" the data set.
        stream: "always" decode files in each epoch, "never" do and keep the pictures in memory, or "auto": in memory
            up to `MEMORY_LIMIT` bytes.

    Returns:
        `ImageFolder`.

    Raises:
        UserError: if there is no such folder or column, a class has no pictures, there is only one class, the labels
            name files that are missing, or a file is broken and `on_broken` is "refuse".
    """
    for name, value, known in (("on_broken", on_broken, ON_BROKEN), ("stream", stream, STREAM)):
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if group_column and not labels:
        raise UserError(f"The group column {group_column!r} is one of a CSV file of labels: name that with --labels.")
    named = {"train": train_dir, "validation": validation_dir, "test": test_dir}
    folders = {part: pathlib.Path(folder).expanduser() for part, folder in named.items() if folder is not None}
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: give one with pictures.")
    if labels:
        items = _labelled_files(folders, pathlib.Path(labels).expanduser(), group_column)
    else:
        items = [item for part, folder in folders.items() for item in _files_of_classes(folder, part)]
    class_names = sorted({item.label for item in items if item.part == "train"})
    if len(class_names) < 2:
        raise UserError(
            f"{folders['train']} holds pictures of one class alone, {class_names[0]!r}: a classifier needs two or more."
        )
    for item in items:
        if item.label not in class_names:
            raise UserError(
                f"{folders[item.part]} holds the class {item.label!r}, which has no training pictures: add some or "
                f"remove it.{did_you_mean(item.label, class_names)}"
            )
    x, whole, digests, broken = decode_files(
        [item.path for item in items], image_size=image_size, on_broken=on_broken, stream=stream
    )
    kept = [items[row] for row in whole]
    remarks = unread_files([] if labels else folders.values())
    remarks += [f"Skipped {listed_files(broken, 'broken picture')}."] if broken else []
    return _assemble(
        name=re.sub(r"\W+", "_", folders["train"].resolve().name) or "pictures",
        x=x,
        y=np.array([class_names.index(item.label) for item in kept], np.int32),
        parts=np.array([PARTS.index(item.part) for item in kept], np.int8),
        groups=[item.group for item in kept],
        digests=digests,
        given=set(folders),
        class_names=class_names,
        source=str(folders["train"]),
        fractions={"validation": validation_fraction, "test": test_fraction},
        seed=seed,
        broken=broken,
        remarks=remarks,
        paths=[item.path for item in kept],
    )


def load_tfds_folder(
    name: str,
    data_dir: StrPath | None = None,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> ImageFolder:
    """Load an image classification data set of tensorflow-datasets, kept in memory.

    Args:
        name: of the data set, e.g. "cats_vs_dogs" or, with a configuration, "imagenette/160px-v2"; it has
            one image and one class label an example. Its splits train, validation and test are used; what is missing of
            the latter two is held out of the first.
        data_dir: tensorflow-datasets folder; default `TFDS_DATA_DIR`, else ~/tensorflow_datasets.
        validation_fraction: see `load_image_folder`.
        test_fraction: see `load_image_folder`.
        seed: see `load_image_folder`.

    Returns:
        `ImageFolder` with images of their own size where the data set has one, else of `IMAGE_SIZE`.

    Raises:
        UserError: if it is neither prepared nor reachable, is none for image classification, or is too large.
    """
    arrays, source = read_tfds_images(name, data_dir, image_size=IMAGE_SIZE, most_bytes=MEMORY_LIMIT)
    given = [part for part in PARTS if f"x_{part}" in arrays]
    x = np.concatenate([arrays.pop(f"x_{part}") for part in given])
    labels = [arrays[f"y_{part}"] for part in given]
    return _assemble(
        name=re.sub(r"\W+", "_", name),
        x=x,
        y=np.concatenate(labels),
        parts=np.repeat([PARTS.index(part) for part in given], [len(y) for y in labels]).astype(np.int8),
        groups=[None] * len(x),
        digests=[hashlib.sha256(image.tobytes()).digest() for image in x],
        given=set(given),
        class_names=[str(n) for n in arrays["class_names"]],
        source=source,
        fractions={"validation": validation_fraction, "test": test_fraction},
        seed=seed,
        broken=[],
        remarks=[],
    )


# ------------------------------------------------------------------------------------------------------ finding files


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
    path: str
    label: str
    part: str
    group: str | None = None


def _files_of_classes(folder, part):
    """The pictures in the sub-folders of a folder."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not files.is_hidden(path, folder))
    items = []
    for class_folder in classes:
        paths = sorted(
            str(path)
            for path in class_folder.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES
            and not files.is_hidden(path, folder)
            and (path.is_file() or path.is_symlink())  # a link to nowhere is a broken picture
        )
        if not paths and len(classes) > 1 and any(_has_pictures(other) for other in classes):
            raise UserError(
                f"The class folder {class_folder} holds no pictures{_of_types(_unread(class_folder))}: put some into "
                "it or remove it."
            )
        items += [_Item(path, class_folder.name, part) for path in paths]
    if not items:
        found = "holds pictures but no sub-folders of them" if _has_pictures(folder) else "holds no pictures"
        raise UserError(
            f"{folder} {found}{_of_types(_unread(folder))}: give a folder with a sub-folder of pictures (PNG, JPEG, …) "
            "for each class, or name the classes of the files in a CSV file with --labels."
        )
    return items


def unread_files(folders: Collection[pathlib.Path]) -> list[str]:
    """A sentence about the pictures of types that are not read, such as `.heic`.

    Args:
        folders: to look through.

    Returns:
        [sentence], or [] if there are none.
    """
    paths = [path for folder in folders for path in _unread(folder)]
    if not paths:
        return []
    names = listed_files([path.name for path in paths], "file", most=3)
    return [f"Skipped {names}, of types that are not read: convert them to JPEG or PNG."]


def _unread(folder):
    """The pictures in a folder whose type is not read."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in UNREAD_SUFFIXES)
    return sorted(path for path in found if not files.is_hidden(path, folder))


def _of_types(paths):
    """The types of files in words, e.g. " of types that are read (there are .heic files)"."""
    suffixes = sorted({path.suffix.lower() for path in paths})
    return f" of types that are read (there are {' and '.join(suffixes)} files)" if suffixes else ""


def _has_pictures(folder):
    return any(
        path.suffix.lower() in IMAGE_SUFFIXES and not files.is_hidden(path, folder) for path in folder.rglob("*")
    )


def _labelled_files(folders, path, group_column):
    """The pictures that a CSV file names, each looked for in the folders."""
    header, rows = read_csv(path, "labels")
    columns = {name.strip().lower(): index for index, name in reversed(list(enumerate(header)))}

    def find(names, what):
        for name in names:
            if name in columns:
                return columns[name]
        raise UserError(
            f"{path} has the columns {column_names(header)}: the one of the {what} is to be called "
            f"{' or '.join(names[:3])}."
        )

    file_column, label_column = find(FILE_COLUMNS, "files"), find(LABEL_COLUMNS, "labels")
    group_index = None
    if group_column:
        group_index = columns.get(group_column.strip().lower())
        if group_index is None:
            raise UserError(
                f"{path} has no column {group_column!r} for --group-column: its columns are {column_names(header)}."
                f"{did_you_mean(group_column, header)}"
            )
    items, seen, missing = [], set(), []
    for line, row in rows:
        name, label = row[file_column].strip(), row[label_column].strip()
        if not name or not label:
            raise UserError(f"Line {line} of {path} has no {'label' if name else 'file'}: fill it in or remove it.")
        if name in seen:
            raise UserError(f"Line {line} of {path} names {name} a second time: keep one of the lines.")
        seen.add(name)
        places = [part for part, folder in folders.items() if (folder / name).is_file()]
        if len(places) > 1:
            raise UserError(f"{path} names {name}, which is in {len(places)} of the folders: give each its own name.")
        if not places:
            missing.append(name)
            continue
        group = row[group_index].strip() if group_index is not None else None
        items.append(_Item(str(folders[places[0]] / name), label, places[0], group or None))
    if missing:
        where = " or ".join(str(folder) for folder in folders.values())
        raise UserError(
            f"{path} names {listed_files(missing, 'file')} not found in {where}: correct the names, or name the folder "
            "that they are relative to with --train-dir."
        )
    for part, folder in folders.items():
        if not any(item.part == part for item in items):
            raise UserError(f"{path} names no pictures in {folder}: add lines with a file and its label.")
    return items


def read_csv(path: pathlib.Path, what: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file; commas, semicolons or tabs.

    Args:
        path: of the file.
        what: it tells of each picture: "labels" or "captions".

    Returns:
        (header, [(line number, values)]).

    Raises:
        UserError: if it cannot be read, is no CSV file, or a line has more or fewer values than the header.
    """
    try:
        if path.stat().st_size > _MOST_CSV_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for {what}: give another file.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a CSV file of {what}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: save the CSV file of {what} as UTF-8.") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(
            f"{path} is no CSV file ({error}): give one with a column of files and one of {what}."
        ) from error
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"Line {line} of {path} has {len(row)} values, but there are {len(header)} columns.")
    return [name.strip() for name in header], rows


def column_names(header: Sequence[str]) -> str:
    """The columns of a table in a sentence, at most ten.

    Args:
        header: their names.

    Returns:
        the words.
    """
    shown = ", ".join(name[:40] or "(no name)" for name in header[:10])
    return shown + (", …" if len(header) > 10 else "") if header else "(none)"


def listed_files(paths: Sequence[Any], what: str, most: int = 10) -> str:
    """Files in a sentence: "3 broken pictures: a.png, b.png, c.png".

    Args:
        paths: of the files, at least one.
        what: one of them is called.
        most: of them that are named.

    Returns:
        the words.
    """
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return f"{len(paths):,} {what}{'s' if len(paths) > 1 else ''}: {', '.join(map(str, paths[:most]))}{more}"


# ----------------------------------------------------------------------------------------------------------- decoding


def decode_files(
    paths: Sequence[str], *, image_size: int, on_broken: str, stream: str
) -> tuple[np.ndarray | ImageFiles, list[int], list[bytes], list[str]]:
    """Decode files once: to keep the pixels, or to find the broken ones and the copies.

    Args:
        paths: of the files.
        image_size: height and width in pixels.
        on_broken: "skip" or "refuse", see `load_image_folder`.
        stream: "auto", "always" or "never", see `load_image_folder`.

    Returns:
        (pixels (N, size, size, 3) uint8 or `ImageFiles` of the N whole ones, their indices, the sha256 of the pixels of
        each, paths of the broken ones).

    Raises:
        UserError: if a file is broken and `on_broken` is "refuse".
    """
    size = len(paths) * image_size**2 * 3
    streamed = stream == "always" or (stream == "auto" and size > MEMORY_LIMIT)
    pixels = None if streamed else np.empty((len(paths), image_size, image_size, 3), np.uint8)
    broken, whole, digests = [], [], []
    for row, image in enumerate(_decode_all(paths, image_size)):
        if image is None:
            broken.append(paths[row])
            continue
        if pixels is not None:
            pixels[len(whole)] = image
        whole.append(row)
        digests.append(hashlib.sha256(image).digest())
    if broken and on_broken == "refuse":
        raise UserError(
            f"{listed_files(broken, 'broken picture')}: remove or repair them, or skip them (--on-broken skip)."
        )
    x = ImageFiles([paths[row] for row in whole], image_size=image_size) if pixels is None else pixels[: len(whole)]
    return x, whole, digests, broken


def _decode_all(paths, image_size):
    """Yield each picture (size, size, 3) in order, decoded by threads; None for a file that is none."""

    def decode(path):
        try:
            return decode_image(path, image_size=image_size)
        except UserError:
            return None

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(decode, paths[start : start + _CHUNK])


# ---------------------------------------------------------------------------------------------------------- splitting


def _assemble(
    *, name, x, y, parts, groups, digests, given, class_names, source, fractions, seed, broken, remarks, paths=()
):
    """The data set of pictures whose parts are given, or chosen here."""
    rows_of, more = split_pictures(
        digests,
        contents=y,
        strata=y,
        parts=parts,
        groups=groups,
        given=given,
        fractions=fractions,
        seed=seed,
        several=("stands in several classes", "stand in several classes"),
        paths=paths,
    )
    remarks = [*remarks, *more]
    for label, class_name in enumerate(class_names):
        if not np.any(y[rows_of["train"]] == label):
            raise UserError(
                f"The class {class_name!r} of {source} has no pictures left to train on (broken ones, and copies and "
                "groups that stand on the other side, do not count): add some or remove it."
            )
    if not len(rows_of["test"]):
        raise UserError(f"{source} has too few pictures to hold some out for testing: add some, or give --test-dir.")
    sha256 = hashlib.sha256("\0".join(class_names).encode())
    arrays: dict[str, Any] = {}
    for part, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = rows_of[part]
        for row in rows:
            sha256.update(digests[row] + int(y[row]).to_bytes(4, "little"))
        sha256.update(b"end of a part")
        arrays[f"x_{short}"] = x.take(rows) if isinstance(x, ImageFiles) else x[rows]
        arrays[f"y_{short}"] = y[rows]
    return ImageFolder(
        name=name,
        class_names=tuple(class_names),
        source=source,
        sha256=sha256.hexdigest(),
        broken=tuple(broken),
        remarks=tuple(remarks),
        **arrays,
    )


def split_pictures(
    digests: Sequence[bytes],
    *,
    contents: Sequence[Any],
    strata: np.ndarray,
    parts: np.ndarray,
    groups: Sequence[str | None],
    given: Collection[str],
    fractions: Mapping[str, float],
    seed: int,
    several: tuple[str, str],
    paths: Sequence[StrPath] = (),
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Split pictures into parts of which none has a copy in another; copies and groups stay together.

    Args:
        digests: of the pixels of each of N pictures.
        contents: what belongs to each: labels or captions, which can be sorted.
        strata: (N,) int; of each number the same fraction is held out.
        parts: (N,) int, index of the part that each was found in: train, validation, test. Pictures are held out of the
            first for those that are not given.
        groups: of each; None for none.
        given: names of the parts that were given.
        fractions: {"validation", "test": fraction to hold out}.
        seed: of the choice.
        several: what is said of one picture, and of more, whose copies have other contents.
        paths: of each, to name such copies; () where they are not known.

    Returns:
        ({part: its rows, (N,) int64, in an order of the contents alone}, remarks).
    """
    order = np.array(sorted(range(len(digests)), key=lambda row: (digests[row], contents[row], parts[row])), np.int64)
    strata, parts = strata[order], parts[order]
    sorted_digests = [digests[row] for row in order]
    together = _connected(sorted_digests, [groups[row] for row in order])
    remarks = []
    copies = len(digests) - len(set(digests))
    if copies:
        contents_of = collections.defaultdict(set)
        for digest, content in zip(digests, contents):
            contents_of[digest].add(content)
        differing = {digest for digest, found in contents_of.items() if len(found) > 1}
        verb = "is a copy" if copies == 1 else "are copies"
        remark = f"{copies:,} of {len(digests):,} pictures {verb} of another; copies stay on one side of the split"
        where = ""
        if differing and paths:
            one = min(differing)
            where = ", such as " + " and ".join(str(paths[row]) for row in order if digests[row] == one)
        noun = f"picture {several[0]}" if len(differing) == 1 else f"pictures {several[1]}"
        remarks.append(remark + (f"; {len(differing):,} {noun}{where}." if differing else "."))
    used = np.ones(len(digests), bool)
    for later in ("test", "validation"):
        code = PARTS.index(later)
        if later in given:
            repeated = used & (parts < code) & np.isin(together, together[used & (parts == code)])
            if repeated.any():
                remarks.append(
                    f"{repeated.sum():,} pictures are left out of what the model learns from, since they have a copy "
                    f"or a group in the {later} pictures."
                )
            used &= ~repeated
        else:
            rows = np.flatnonzero(used & (parts == 0))
            held_out = hold_out(strata[rows], together[rows], fraction=fractions[later], seed=seed)
            parts[rows[held_out]] = code
    return {part: order[used & (parts == code)] for code, part in enumerate(PARTS)}, remarks


def _connected(digests, groups):
    """(N,) int: equal numbers for what is connected by equal digests or groups; they rise with the first digest."""
    parents = list(range(len(digests)))

    def root(row):
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    first: dict[Any, int] = {}
    for row, (digest, group) in enumerate(zip(digests, groups)):
        for key in (digest, None if group is None else f"group {group}"):
            if key is not None:
                one, other = root(first.setdefault(key, row)), root(row)
                parents[max(one, other)] = min(one, other)
    return np.array([root(row) for row in range(len(digests))], np.int64)
