import gzip
import hashlib
import pathlib
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from zoo import data
from zoo.data import images
from zoo.errors import UserError


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(images, "_server_reachable", lambda: False)


def test_digits_are_scikit_learns():
    digits, scans = data.load_images("digits"), load_digits()
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert digits.x_train.dtype == np.uint8 and digits.x_train.shape[1:] == (8, 8, 1) and digits.x_train.max() == 255
    np.testing.assert_array_equal(digits.x_test[0, ..., 0], np.round(scans.images[4] * 255 / 16))
    np.testing.assert_array_equal(digits.y_test, scans.target[4::5])


@pytest.mark.once
def test_mnist_equals_the_original_files(mnist, tfds_dir):
    assert mnist.x_train.shape == (60000, 28, 28, 1) and mnist.x_test.shape == (10000, 28, 28, 1)
    assert np.bincount(mnist.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(mnist.x_train.mean() / 255 - 0.1307) < 5e-5 and abs(mnist.x_train.std() / 255 - 0.3081) < 5e-5
    originals = tfds_dir.parent / "data" / "mnist"
    if originals.is_dir():  # tensorflow-datasets keeps its own order: compare as sets of pictures
        raw = gzip.decompress((originals / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
        original = np.frombuffer(raw, np.uint8).reshape(10000, 784)
        ours = mnist.x_test.reshape(10000, 784)
        assert {hashlib.md5(row.tobytes()).digest() for row in ours} == {
            hashlib.md5(row.tobytes()).digest() for row in original
        }


@pytest.mark.once
def test_array_records_hold_the_same_images(mnist, tfds_dir):
    records = tfds_dir.parent / "tensorflow_datasets_array_record"
    if not records.is_dir():
        pytest.skip("no ArrayRecord folder here")
    assert data.load_images("mnist", records).fingerprint() == mnist.fingerprint()


WITHOUT_TENSORFLOW = """
import runpy, sys
runpy.run_path(sys.argv[1])["main"]("mnist", *sys.argv[2:])
assert "tensorflow" not in sys.modules
"""


def small_copy(source, target, count=30):
    """A data folder with the first `count` examples of each split of a prepared MNIST."""
    version = next((source / "mnist").iterdir())
    target = target / "mnist" / version.name
    target.mkdir(parents=True)
    (target / "features.json").write_text((version / "features.json").read_text())
    info = (version / "dataset_info.json").read_text()
    (target / "dataset_info.json").write_text(info.replace('"60000"', f'"{count}"').replace('"10000"', f'"{count}"'))
    for path in version.glob("*record*"):
        if ".array_record-" in path.name:
            from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

            writer = ArrayRecordWriter(str(target / path.name), "group_size:1")
            for record in ArrayRecordReader(str(path)).read(range(count)):
                writer.write(record)
            writer.close()
            continue
        content, end = path.read_bytes(), 0
        for _ in range(count):
            end += 16 + int.from_bytes(content[end : end + 8], "little")
        (target / path.name).write_bytes(content[:end])
    return target.parent.parent


@pytest.mark.once
def test_prepared_data_is_read_without_tensorflow(tmp_path, tfds_dir, run):
    """TFRecord and ArrayRecord, a few images of each; that all of them are right is another test's."""
    script, found = pathlib.Path(images.__file__).with_name("tfds_export.py"), []
    for kind in ("tensorflow_datasets", "tensorflow_datasets_array_record"):
        if not (tfds_dir.parent / kind).is_dir():
            continue
        folder = small_copy(tfds_dir.parent / kind, tmp_path / kind)
        ended = run(["-c", WITHOUT_TENSORFLOW, script, folder, tmp_path / "arrays.npz"])
        assert ended.returncode == 0, ended.stderr
        with np.load(tmp_path / "arrays.npz") as stored:
            found.append({key: stored[key] for key in stored.files})
    for arrays in found:
        assert arrays["x_train"].shape == (30, 28, 28, 1) and arrays["y_test"].shape == (30,)
        assert arrays["class_names"].tolist() == list("0123456789")
        for key, value in arrays.items():
            np.testing.assert_array_equal(value, found[0][key])


@pytest.mark.once
def test_what_was_read_is_kept_in_the_cache(tmp_path, tfds_dir, monkeypatch):
    """A second reading starts no process; a damaged file is made again, and other data have another file."""
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    folder, started = small_copy(tfds_dir, tmp_path / "data"), []
    start = images.subprocess.run
    monkeypatch.setattr(images.subprocess, "run", lambda *args, **options: started.append(1) or start(*args, **options))
    first = data.load_images("mnist", folder)
    (cached,) = (tmp_path / "cache" / "data").iterdir()
    assert data.load_images("mnist", folder).fingerprint() == first.fingerprint() and len(started) == 1
    folder.rename(tmp_path / "moved")
    assert data.load_images("mnist", tmp_path / "moved").fingerprint() == first.fingerprint() and len(started) == 1
    cached.write_bytes(cached.read_bytes()[:1000])
    assert data.load_images("mnist", tmp_path / "moved").fingerprint() == first.fingerprint() and len(started) == 2
    other = small_copy(tfds_dir, tmp_path / "other", count=20)
    assert len(data.load_images("mnist", other).x_train) == 20 and len(started) == 3
    monkeypatch.setenv("ZOO_CACHE_DIR", "/proc/nowhere")  # which cannot be written to
    assert data.load_images("mnist", other).x_train.shape == (20, 28, 28, 1) and len(started) == 4


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name, suffix, inside", [("mnist", ".gz", False), ("fashion_mnist", "", True)])
def test_original_idx_files(tmp_path, no_network, name, suffix, inside):
    rng = np.random.default_rng(0)
    folder = tmp_path / name if inside else tmp_path
    folder.mkdir(exist_ok=True)
    parts = {}
    for prefix, count in (("train", 12), ("t10k", 5)):
        parts[prefix] = (
            rng.integers(0, 256, (count, 28, 28)).astype("uint8"),
            rng.integers(0, 10, count).astype("uint8"),
        )
        for kind, array in zip(("images-idx3", "labels-idx1"), parts[prefix]):
            write_idx(folder / f"{prefix}-{kind}-ubyte{suffix}", array)
    dataset = data.load_images(name, tmp_path)
    np.testing.assert_array_equal(dataset.x_train[..., 0], parts["train"][0])
    np.testing.assert_array_equal(dataset.y_test, parts["t10k"][1])
    assert dataset.y_test.dtype == np.int32 and len(dataset.class_names) == 10
    assert name != "mnist" or data.default_image_dataset(tmp_path) == ("mnist", None)
    path = folder / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="train-images.* is not a whole idx file"):
        data.load_images(name, tmp_path)
    write_idx(path, parts["train"][0][:3])
    with pytest.raises(UserError, match="differ in number"):
        data.load_images(name, tmp_path)


def test_mnists_own_idx_files(tfds_dir):
    folder = tfds_dir.parent / "data"
    if not (folder / "mnist").is_dir():
        pytest.skip("no idx files here")
    mnist = data.load_images("mnist", folder)
    assert mnist.x_train.shape == (60000, 28, 28, 1) and mnist.x_test.shape == (10000, 28, 28, 1)
    assert np.bincount(mnist.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'mnist'"):
        data.load_images("minst")


def test_missing_mnist_says_where_to_put_it(tmp_path, no_network):
    with pytest.raises(UserError, match=f"{tmp_path}.*--data-dir"):
        data.load_images("mnist", tmp_path)


@pytest.mark.once
def test_default_without_mnist_is_digits_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_TFDS_HOST", ("192.0.2.1", 443))  # reserved for documentation: never answers
    began = time.perf_counter()
    name, remark = data.default_image_dataset(tmp_path)
    assert time.perf_counter() - began < 10
    assert name == "digits" and str(tmp_path) in remark and "\n" not in remark


def test_default_with_mnist_is_mnist(tfds_dir):
    assert data.default_image_dataset(tfds_dir) == ("mnist", None)


@pytest.mark.once
def test_incomplete_mnist_folder(tmp_path, tfds_dir, no_network):
    version = next((tfds_dir / "mnist").iterdir())
    target = tmp_path / "mnist" / version.name
    target.mkdir(parents=True)
    for file in version.iterdir():
        if "train.tfrecord" not in file.name:
            (target / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="incomplete or damaged"):
        data.load_images("mnist", tmp_path)


# ------------------------------------------------------------------------------------------------------------- GTSRB


def test_gtsrb_archive(gtsrb_file):
    signs = data.load_images("gtsrb", gtsrb_file)
    assert signs.x_train.shape == (11763, 32, 32, 3) and signs.x_test.shape == (6315, 32, 32, 3)
    assert signs.class_names == images.GTSRB_CLASSES and len(signs.class_names) == 43
    assert len(np.unique(signs.group_train)) == 1307


@pytest.fixture
def official_folder(tmp_path):
    """The published layout with three classes of two tracks of two frames, and three test images."""
    rng = np.random.default_rng(0)
    pictures = {}

    def write(path, size):
        pixels = rng.integers(0, 256, (*size, 3)).astype("uint8")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        pictures[path.name, path.parent.name] = pixels
        return f"{path.name};{size[1]};{size[0]};1;1;9;9"

    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    for label in range(3):
        folder = tmp_path / "Final_Training" / "Images" / f"{label:05d}"
        names = [f"{track:05d}_{frame:05d}.ppm" for track in range(2) for frame in range(2)]
        rows = [f"{write(folder / name, (48, 48))};{label}\n" for name in names]
        (folder / f"GT-{label:05d}.csv").write_text(header + "".join(rows))
    test = tmp_path / "Final_Test" / "Images"
    rows = [f"{write(test / f'{i:05d}.ppm', (48, 48))};{2 - i}\n" for i in range(3)]
    (test / "GT-final_test.csv").write_text(header + "".join(rows))
    return tmp_path, pictures


def test_official_gtsrb_folder(official_folder):
    folder, pictures = official_folder
    signs = data.load_images("gtsrb", folder)
    assert signs.y_train.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and signs.y_test.tolist() == [2, 1, 0]
    assert len(np.unique(signs.group_train)) == 6  # a track number belongs to its class
    np.testing.assert_array_equal(signs.x_train[5], pictures["00000_00001.ppm", "00001"])
    np.testing.assert_array_equal(signs.x_test[0], pictures["00000.ppm", "Images"])


def test_incomplete_official_folder(official_folder):
    folder, _ = official_folder
    (folder / "Final_Training" / "Images" / "00001" / "00000_00001.ppm").unlink()
    with pytest.raises(UserError, match="00000_00001.ppm is missing"):
        data.load_images("gtsrb", folder)
    (folder / "Final_Test" / "Images" / "GT-final_test.csv").unlink()
    with pytest.raises(UserError, match="missing"):
        data.load_images("gtsrb", folder)


@pytest.mark.parametrize("content, word", [(b"not a zip", "not a readable .npz"), (None, "There is no GTSRB data")])
def test_unreadable_gtsrb_archive(tmp_path, content, word):
    path = tmp_path / "signs.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=word):
        data.load_images("gtsrb", path)


def test_gtsrb_archive_without_tracks(tmp_path):
    np.savez(tmp_path / "signs.npz", x_train=np.zeros(1))
    with pytest.raises(UserError, match="lacks the arrays y_train"):
        data.load_images("gtsrb", tmp_path)
    with pytest.raises(UserError, match="holds neither"):
        (tmp_path / "empty").mkdir()
        data.load_images("gtsrb", tmp_path / "empty")


# ----------------------------------------------------------------------------------------------- validation and limit


def test_validation_keeps_tracks_on_one_side():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    labels = (groups % 3).astype("int32")
    signs = images.ImageDataset(
        name="x",
        x_train=groups[:, None, None, None].astype("uint8"),
        y_train=labels,
        x_test=rng.random((1, 1, 1, 1)),
        y_test=np.zeros(1),
        class_names=("a", "b", "c"),
        source="",
        group_train=groups,
    )
    (x, y), (x_held, y_held) = data.split_validation(signs, fraction=0.2, seed=1)
    assert len(x) + len(x_held) == 300 and not set(x.ravel()) & set(x_held.ravel())
    assert np.bincount(y_held).tolist() == [20, 20, 20]  # 4 of 20 tracks a class, 5 frames each


def test_limit():
    digits = data.load_images("digits")
    (x, y), (x_held, _) = data.split_validation(digits, fraction=0.1, limit=50)
    assert len(x) == len(y) == len(x_held) == 50 and len(np.unique(y)) == 10
    (x_all, _), _ = data.split_validation(digits, fraction=0.1)
    assert {row.tobytes() for row in x} <= {row.tobytes() for row in x_all}
