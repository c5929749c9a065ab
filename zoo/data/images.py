"""Labelled images as NumPy arrays: mnist, fashion_mnist, gtsrb and digits.

`mnist` and `fashion_mnist` are read from their original idx files, or through tensorflow-datasets: by a child process
(`zoo.data.tfds_export`), since preparing a data set imports TensorFlow, which must not happen in a process that trains
on JAX or PyTorch, and an unprepared one without a network makes `tfds.load` retry for minutes. What the child has read
is kept in the cache folder (`ZOO_CACHE_DIR`).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import hashlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib

import numpy as np

from zoo.errors import UserError, did_you_mean, require
from zoo.io import files
from zoo.io.images import load_image
from zoo.typing import StrPath

IMAGE_DATASETS = ("mnist", "fashion_mnist", "gtsrb", "digits")

_GTSRB_ARRAYS = ("x_train", "y_train", "track_train", "x_test", "y_test", "class_names")
_GTSRB_SIZE = 48  # official images have many sizes; they are brought to this one
_TFDS_HOST = ("storage.googleapis.com", 443)
_IDX_FILES = {"train": "train", "test": "t10k"}  # <prefix>-images-idx3-ubyte and <prefix>-labels-idx1-ubyte
_IDX_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (  # as tensorflow-datasets names them
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """Images with labels, in training and test parts.

    Attributes:
        name: of the data set.
        x_train: (N, H, W, C) uint8.
        y_train: (N,) int32.
        x_test: (M, H, W, C) uint8.
        y_test: (M,) int32.
        class_names: K names, in the order of the labels.
        source: where it comes from.
        group_train: (N,), numbers the physical object that an image shows, so that a split can keep an object on one
            side; None where each image shows another object.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    source: str
    group_train: np.ndarray | None = None

    def fingerprint(self) -> str:
        """sha256 over the four arrays, in the order x_train, y_train, x_test, y_test."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_images(name: str, data_dir: StrPath | None = None) -> ImageDataset:
    """Load a data set by name.

    Args:
        name: one of `IMAGE_DATASETS`.
        data_dir: location of the files. For mnist and fashion_mnist a tensorflow-datasets folder, TFRecord or
            ArrayRecord, or one with the original idx files, gzipped or not, in it or in <data_dir>/<name> (default
            `TFDS_DATA_DIR`, else ~/tensorflow_datasets); for gtsrb an `.npz` file, a folder holding one, or the
            official folder of PPM images (default `GTSRB_DIR`, else ~/gtsrb). `digits` needs none.

    Returns:
        `ImageDataset`.

    Raises:
        UserError: if the name is unknown, or the files are missing or incomplete.
    """
    if name not in IMAGE_DATASETS:
        raise UserError(
            f"Unknown data set {name!r}: choose one of {', '.join(IMAGE_DATASETS)}.{did_you_mean(name, IMAGE_DATASETS)}"
        )
    if name == "digits":
        return _load_digits()
    if name == "gtsrb":
        return _load_gtsrb(pathlib.Path(data_dir or os.environ.get("GTSRB_DIR") or "~/gtsrb").expanduser())
    return _load_mnist(name, _tfds_dir(data_dir))


def default_image_dataset(data_dir: StrPath | None = None) -> tuple[str, str | None]:
    """The data set of a recipe where none was chosen.

    Args:
        data_dir: tensorflow-datasets folder, as in `load_images`.

    Returns:
        (name, remark): "mnist" where it is prepared or reachable, else "digits" and one line saying so.
    """
    folder = _tfds_dir(data_dir)
    if _is_prepared("mnist", folder) or _idx_files("mnist", folder) or _server_reachable():
        return "mnist", None
    return "digits", (
        f"MNIST is neither in {folder} nor reachable: using scikit-learn's 1,797 digits instead "
        "(--data-dir or TFDS_DATA_DIR says where MNIST is)."
    )


def split_validation(
    dataset: ImageDataset, *, fraction: float, seed: int = 0, limit: int | None = None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Split the training part for training and validation.

    Whole groups go to one side (the frames of one traffic sign are near copies of each other), and within each class
    the same fraction of groups is held out, at least one of two or more.

    Args:
        dataset: `ImageDataset`.
        fraction: fraction of the groups of each class to hold out.
        seed: seed of the choice.
        limit: keep at most this many examples of each side, chosen at random.

    Returns:
        ((x, y) for training, (x, y) for validation).
    """
    labels = dataset.y_train
    groups = np.arange(len(labels)) if dataset.group_train is None else dataset.group_train
    validation = hold_out(labels, groups, fraction=fraction, seed=seed)
    splits = []
    for rows in (np.flatnonzero(~validation), np.flatnonzero(validation)):
        if limit is not None:
            rows = np.sort(np.random.default_rng([seed, len(rows)]).permutation(rows)[:limit])
        splits.append((dataset.x_train[rows], labels[rows]))
    return splits[0], splits[1]


def hold_out(labels: np.ndarray, groups: np.ndarray, *, fraction: float, seed: int = 0) -> np.ndarray:
    """Choose whole groups, within each class the same fraction of them, at least one of two or more.

    Args:
        labels: of the examples, (N,) int.
        groups: number of the group that each belongs to, (N,) int.
        fraction: fraction of the groups of each class to hold out.
        seed: seed of the choice.

    Returns:
        (N,) bool, True for what is held out.
    """
    rng = np.random.default_rng([seed, len(labels)])
    held_out = [np.empty(0, groups.dtype)]
    for label in np.unique(labels):
        members = np.unique(groups[labels == label])
        count = 0 if len(members) < 2 else max(1, round(fraction * len(members)))
        held_out.append(rng.permutation(members)[:count])
    return np.isin(groups, np.concatenate(held_out))


# ---------------------------------------------------------------------------------------------- tensorflow-datasets


def _tfds_dir(data_dir):
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _is_prepared(name, folder):
    """True if a version folder of the data set holds its description, as tensorflow-datasets leaves it when ready."""
    return any((folder / name).glob("*/dataset_info.json"))


def _with_config(name, folder):
    """The name of a data set with the configuration that is prepared, where it has some and none is named."""
    if "/" in name or _is_prepared(name, folder):
        return name
    configs = _configs(folder / name)
    if len(configs) > 1:
        raise UserError(f"{name} in {folder} has several configurations: give {' or '.join(configs)}.")
    return configs[0] if configs else name


def _configs(folder):
    """What is prepared in the folder of a data set that has configurations: ["<name>/<configuration>"]."""
    return sorted({f"{folder.name}/{path.parts[-3]}" for path in folder.glob("*/*/dataset_info.json")})


def _server_reachable(timeout=4.0):
    """True if the data server answers a connection within `timeout` seconds, name look-up included."""
    answer = []

    def connect():
        try:
            socket.create_connection(_TFDS_HOST, timeout=timeout).close()
            answer.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answer)


def _load_mnist(name, folder):
    prepared, idx_files = _is_prepared(name, folder), _idx_files(name, folder)
    if idx_files and not prepared:
        arrays = {key: _read_idx(path) for key, path in idx_files.items()}
        for split in _IDX_FILES:
            arrays[f"x_{split}"] = arrays[f"x_{split}"][..., None]
            arrays[f"y_{split}"] = arrays[f"y_{split}"].astype(np.int32)
            if len(arrays[f"x_{split}"]) != len(arrays[f"y_{split}"]):
                raise UserError(f"The images and labels in {idx_files[f'x_{split}'].parent} differ in number.")
        return ImageDataset(
            name=name, class_names=_IDX_CLASSES[name], source=str(idx_files["x_train"].parent), **arrays
        )
    if not prepared and not _server_reachable():
        raise UserError(
            f"{name} is not in {folder} and the data server cannot be reached: put the tensorflow-datasets folder "
            f"there (it holds {name}/<version>/dataset_info.json) or the idx files (train-images-idx3-ubyte.gz and so "
            "on), or name another folder with --data-dir or TFDS_DATA_DIR."
        )
    data = _export(name, folder, prepared)
    names = tuple(str(n) for n in data.pop("class_names"))
    return ImageDataset(name=name, class_names=names, source=str(folder / name), **data)


def _export(name, folder, prepared, *options):
    """The arrays of a tensorflow-datasets data set: from the cache, else read by a child process."""
    cached = _cache_file(name, folder, *options) if prepared else None
    if cached and (data := _read_arrays(cached)):
        return data
    require("tensorflow_datasets", what=f"Reading {name} in {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        arrays = pathlib.Path(scratch) / "arrays.npz"
        child = subprocess.run(
            [sys.executable, "-P", pathlib.Path(__file__).with_name("tfds_export.py"), name, folder, arrays, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if prepared else None,  # a download shows its progress
            text=True,
        )
        if child.returncode:
            reason = (child.stderr or child.stdout or "").strip().splitlines() or ["no message"]
            if not prepared:
                raise UserError(
                    f"{name} could not be prepared in {folder}, for the reason above: prepare it with "
                    "tensorflow-datasets, or name another folder with --data-dir."
                )
            raise UserError(
                f"{name} in {folder} cannot be read ({reason[-1][:200]}): the folder is incomplete or damaged, "
                f"prepare it again or name another with --data-dir."
            )
        data = _read_arrays(arrays)
        if not data or "message" in data:
            return data
        cached = cached or _cache_file(name, folder, *options)  # of what the child has prepared
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be written is none
            cached.parent.mkdir(parents=True, exist_ok=True)
            with files.atomic_write(cached) as temporary:
                shutil.copyfile(arrays, temporary)
        return data


def _cache_file(name, folder, *options):
    """Where the arrays of a data set are kept: a name made from the content of its files, wherever they lie."""
    digest = hashlib.sha256()
    for path in sorted((folder / name).rglob("*")):
        if path.is_file():
            digest.update(f"{path.name} {files.sha256(path)}\n".encode())
    return files.cache_dir() / "data" / "-".join([*name.split("/"), *options[:1], f"{digest.hexdigest()[:16]}.npz"])


def _read_arrays(path):
    """{name: array} of an .npz file; None if it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _idx_files(name, folder):
    """{"x_train": path, …} of the four idx files in a folder or in its `name`, or None if they are not all there."""
    for place in (folder / name, folder):
        found = {}
        for split, prefix in _IDX_FILES.items():
            for letter, kind in (("x", "images-idx3-ubyte"), ("y", "labels-idx1-ubyte")):
                candidates = (place / f"{prefix}-{kind}", place / f"{prefix}-{kind}.gz")
                found |= {f"{letter}_{split}": path for path in candidates if path.is_file()}
        if len(found) == 4:
            return found
    return None


def _read_idx(path):
    """The array of an idx file: 0, 0, a code for uint8 (8), the rank; the sizes, big-endian; the values.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        rank = raw[3]
        shape = np.frombuffer(raw, ">i4", rank, offset=4)
        if raw[:3] != b"\0\0\x08" or not 1 <= rank <= 3:
            raise ValueError("it does not begin as an idx file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is not a whole idx file ({error}): fetch it again.") from error


def read_tfds_images(
    name: str, data_dir: StrPath | None, *, image_size: int, most_bytes: int
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of any tensorflow-datasets data set with one image and one class label an example.

    Args:
        name: of the data set, e.g. "cats_vs_dogs", or with a configuration, "imagenette/160px-v2"; without one, the
            one that is prepared.
        data_dir: tensorflow-datasets folder; the default one if None.
        image_size: height and width in pixels of images that differ in size.
        most_bytes: upper bound of the arrays.

    Returns:
        ({"x_train", "y_train", "class_names", and "x_validation", "y_validation", "x_test", "y_test" where it has
        them}, where it was).

    Raises:
        UserError: if it is neither prepared nor reachable, is no such data set, or is larger.
    """
    folder = _tfds_dir(data_dir)
    known = sorted(path.name for path in folder.glob("*/") if _is_prepared(path.name, folder) or _configs(path))
    if not re.fullmatch(r"[a-z0-9_]+(/\w[\w.+-]*)?", name):
        raise UserError(
            f"{name!r} is no name of a tensorflow-datasets data set: give one such as cats_vs_dogs or "
            f"imagenette/160px-v2.{did_you_mean(name, known)}"
        )
    name = _with_config(name, folder)
    prepared = _is_prepared(name, folder)
    if not prepared and not _server_reachable():
        raise UserError(
            f"{name} is not in {folder} and the data server cannot be reached: put the tensorflow-datasets folder "
            f"there (it holds {name}/<version>/dataset_info.json), or name another with --data-dir or TFDS_DATA_DIR."
            f"{did_you_mean(name, known)}"
        )
    data = _export(name, folder, prepared, str(image_size), str(most_bytes))
    if "message" in data:
        raise UserError(f"{name} {data['message']}")
    return data, str(folder / name)


def read_tfds_text(name: str, data_dir: StrPath | None) -> str | None:
    """The text of a tensorflow-datasets data set, its parts joined in order.

    Args:
        name: of the data set, e.g. "tiny_shakespeare".
        data_dir: tensorflow-datasets folder; the default one if None.

    Returns:
        the text; None if the data set is neither prepared nor reachable.
    """
    folder = _tfds_dir(data_dir)
    prepared = _is_prepared(name, folder)
    if not prepared and not _server_reachable():
        return None
    return _export(name, folder, prepared)["text"].tobytes().decode("utf-8")


# ------------------------------------------------------------------------------------------------------------ digits


def _load_digits():
    """scikit-learn's 8x8 scans (UCI "Optical Recognition of Handwritten Digits"), 0..16 stretched to 0..255.

    Every fifth image is the test part: 1,438 for training, 359 for testing.
    """
    require("sklearn", what="The data set digits, which is part of scikit-learn,")
    from sklearn.datasets import load_digits

    scans = load_digits()
    x = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]
    y = scans.target.astype(np.int32)
    test = np.arange(len(x)) % 5 == 4
    return ImageDataset(
        name="digits",
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        class_names=tuple(str(n) for n in scans.target_names),
        source="sklearn.datasets.load_digits",
    )


# ------------------------------------------------------------------------------------------------------------- GTSRB


def _load_gtsrb(path):
    hint = (
        "give --data-dir (or GTSRB_DIR) an .npz with the arrays "
        f"{', '.join(_GTSRB_ARRAYS)}, or the official folder with Final_Training/Images and Final_Test/Images"
    )
    if not path.exists():
        raise UserError(f"There is no GTSRB data at {path}: {hint}; --dataset digits needs no files.")
    if path.is_file():
        return _load_gtsrb_npz(path, hint)
    for folder in (path, path / "GTSRB"):
        if (folder / "Final_Training" / "Images").is_dir():
            return _load_gtsrb_official(folder)
    archives = sorted(path.glob("*.npz"))
    if len(archives) == 1:
        return _load_gtsrb_npz(archives[0], hint)
    found = "holds neither" if not archives else f"holds {len(archives)} .npz files"
    raise UserError(f"{path} {found}: {hint}.")


def _load_gtsrb_npz(path, hint):
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            missing = [key for key in _GTSRB_ARRAYS if key not in stored.files]
            if missing:
                raise UserError(f"{path} lacks the arrays {', '.join(missing)}: {hint}.")
            data = {key: stored[key] for key in _GTSRB_ARRAYS}
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged archive
        raise UserError(f"{path} is not a readable .npz file ({error}): {hint}.") from error
    return ImageDataset(
        name="gtsrb",
        x_train=data["x_train"],
        y_train=data["y_train"].astype(np.int32),
        x_test=data["x_test"],
        y_test=data["y_test"].astype(np.int32),
        class_names=tuple(str(n) for n in data["class_names"]),
        source=str(path),
        group_train=data["track_train"].astype(np.int32),
    )


def _load_gtsrb_official(folder):
    """Read the folder as published: PPM images named `TTTTT_FFFFF.ppm` (track, frame) with semicolon-separated CSVs."""
    x_train, y_train, tracks = [], [], []
    for class_folder in sorted((folder / "Final_Training" / "Images").iterdir()):
        if not class_folder.is_dir():
            continue
        for row in _read_gtsrb_csv(class_folder / f"GT-{class_folder.name}.csv"):
            x_train.append(_read_ppm(class_folder / row["Filename"]))
            y_train.append(int(row["ClassId"]))
            tracks.append(int(row["ClassId"]) * 100_000 + int(row["Filename"].split("_")[0]))
    test_folder = folder / "Final_Test" / "Images"
    test_csv = test_folder / "GT-final_test.csv"
    rows = _read_gtsrb_csv(test_csv if test_csv.exists() else folder / "GT-final_test.csv")
    if rows and "ClassId" not in rows[0]:
        raise UserError(f"{test_csv} has no ClassId column: use the GT-final_test.csv published with the labels.")
    if not x_train or not rows:
        raise UserError(f"{folder} holds {len(x_train)} training and {len(rows)} test images: both are needed.")
    return ImageDataset(
        name="gtsrb",
        x_train=np.stack(x_train),
        y_train=np.array(y_train, np.int32),
        x_test=np.stack([_read_ppm(test_folder / row["Filename"]) for row in rows]),
        y_test=np.array([int(row["ClassId"]) for row in rows], np.int32),
        class_names=GTSRB_CLASSES,
        source=str(folder),
        group_train=np.array(tracks, np.int32),
    )


def _read_gtsrb_csv(path):
    if not path.is_file():
        raise UserError(f"{path} is missing: the official GTSRB folder has one CSV file for each folder of images.")
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def _read_ppm(path):
    from PIL import Image

    try:
        image = load_image(path)
    except UserError as error:
        raise UserError(f"{path} is missing or not an image: the official GTSRB folder is incomplete.") from error
    return np.asarray(Image.fromarray(image).resize((_GTSRB_SIZE, _GTSRB_SIZE), Image.Resampling.BILINEAR))


GTSRB_CLASSES = (
    "Speed limit (20km/h)",
    "Speed limit (30km/h)",
    "Speed limit (50km/h)",
    "Speed limit (60km/h)",
    "Speed limit (70km/h)",
    "Speed limit (80km/h)",
    "End of speed limit (80km/h)",
    "Speed limit (100km/h)",
    "Speed limit (120km/h)",
    "No passing",
    "No passing for vehicles over 3.5 t",
    "Right-of-way at the next intersection",
    "Priority road",
    "Yield",
    "Stop",
    "No vehicles",
    "Vehicles over 3.5 t prohibited",
    "No entry",
    "General caution",
    "Dangerous curve to the left",
    "Dangerous curve to the right",
    "Double curve",
    "Bumpy road",
    "Slippery road",
    "Road narrows on the right",
    "Road work",
    "Traffic signals",
    "Pedestrians",
    "Children crossing",
    "Bicycles crossing",
    "Beware of ice/snow",
    "Wild animals crossing",
    "End of all speed and passing limits",
    "Turn right ahead",
    "Turn left ahead",
    "Ahead only",
    "Go straight or right",
    "Go straight or left",
    "Keep right",
    "Keep left",
    "Roundabout mandatory",
    "End of no passing",
    "End of no passing by vehicles over 3.5 t",
)
