"""Pictures of one's own: reading, splitting, streaming, and what is said of mistakes."""

import csv
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from zoo import data
from zoo.data import image_folder
from zoo.errors import UserError

pytestmark = pytest.mark.once
CLASSES = ("bird", "cat", "dog", "fish", "newt")
FORMATS = (("png", "RGB"), ("jpg", "RGB"), ("png", "L"), ("png", "LA"), ("png", "P"), ("png", "RGBA"))
FORMATS += (("jpg", "CMYK"), ("png", "I;16"), ("bmp", "RGB"), ("gif", "P"), ("tif", "RGB"), ("webp", "RGB"))
COPIES = 20  # of pictures, under another name and in another format


def write_picture(path, number, label, mode="RGB"):
    """A picture of a colour that tells its class, with a pattern of its own."""
    rng = np.random.default_rng([7, number])
    pixels = rng.integers(0, 90, (*rng.integers(20, 90, 2), 3)).astype("uint8")
    pixels[..., label % 3] += np.uint8(60 + 25 * label)
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype("uint16") * 257).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """600 pictures in 5 classes, of many sizes and formats; three are broken, and twenty are copies of others."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def write_pictures(folder, count=600):
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(count - COPIES - 3):
        label = number % 5
        suffix, mode = FORMATS[number % len(FORMATS)]
        write_picture(folder / CLASSES[label] / f"{number:04}.{suffix}", number, label, mode)
    for number in range(COPIES):  # 60 n is a PNG in RGB and a bird
        image = Image.open(folder / "bird" / f"{number % (count // 60) * 60:04}.png")
        image.save(folder / "bird" / f"copy{number}.{('bmp', 'tif')[number % 2]}")
    whole = (folder / "cat" / "0001.jpg").read_bytes()
    (folder / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "empty.png").write_bytes(b"")
    (folder / "fish" / "text.PNG").write_text("no picture")
    (folder / "fish" / "notes.txt").write_text("not called a picture")
    (folder / "fish" / ".hidden.png").write_text("nor this")
    return folder


def keys(x):
    """The pixels of pictures, to compare as sets."""
    return [image.tobytes() for image in x[np.arange(len(x))]]


@pytest.fixture(scope="session")
def folder(pictures):
    return data.load_image_folder(pictures, stream="never")


def test_all_that_is_whole_is_read(folder, pictures):
    assert folder.class_names == CLASSES and folder.name == "pictures"
    assert len(folder.y_train) + len(folder.y_val) + len(folder.y_test) == 597
    assert folder.x_train.shape[1:] == (48, 48, 3) and folder.x_train.dtype == np.uint8
    broken = {str(pictures / name) for name in ("cat/cut.jpg", "dog/empty.png", "fish/text.PNG")}
    assert set(folder.broken) == broken and all(path in folder.remarks[0] for path in broken)
    with pytest.raises(UserError, match=r"^3 broken pictures: .*cut.jpg.*: remove or repair them"):
        data.load_image_folder(pictures, on_broken="refuse")


@pytest.mark.parametrize("suffix, mode", FORMATS)
def test_the_pixels_are_those_that_the_model_makes(tmp_path, suffix, mode):
    """Of the resizing of `zoo.models.preprocessing` on the whole picture, which `zoo classify` does."""
    path = tmp_path / f"picture.{suffix}"
    write_picture(path, 3, 2, mode)
    from zoo.io.images import load_image

    resized = keras.layers.Resizing(48, 48, antialias=True)(load_image(path)[None].astype("float32"))
    np.testing.assert_allclose(data.decode_image(path), np.array(resized)[0], atol=1.01)  # rounded twice


def test_upright_as_exif_says(tmp_path):
    image, exif = Image.new("RGB", (40, 80), "white"), Image.Exif()
    image.paste("red", (0, 0, 40, 40))  # the upper half
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = data.decode_image(tmp_path / "turned.png")
    assert pixels[24, 40, 1] < 10 and pixels[24, 8, 1] > 245  # the right half


def test_copies_stay_on_one_side(folder):
    sides = [set(keys(x)) for x in (folder.x_train, folder.x_val, folder.x_test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert sum(map(len, sides)) == 597 - COPIES
    assert f"{COPIES} of 597 pictures are copies" in folder.remarks[1]
    for y in (folder.y_val, folder.y_test):  # a tenth of each class
        assert np.bincount(y, minlength=5).min() >= 9 and len(y) < 100


def test_what_systems_leave_in_a_folder(tmp_path):
    """Folders of theirs and hidden ones are no classes and hold no pictures; a link to nowhere is a broken picture."""
    for number in range(20):
        path = tmp_path / ("Cat", "cat")[number % 2] / "a b" / f"{number} ü.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, number, number % 2)
    for name in ("__MACOSX/cat/._1.png", "@eaDir/1.png", "cat/.ipynb_checkpoints/1.png", "cat/@eaDir/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        write_picture(tmp_path / name, 100, 0)
    (tmp_path / "cat" / "link.png").symlink_to("nowhere.png")
    (tmp_path / "Cat" / "link.png").symlink_to(tmp_path / "cat" / "a b" / "1 ü.PNG")
    loaded = data.load_image_folder(tmp_path)
    assert loaded.class_names == ("Cat", "cat") and loaded.broken == (str(tmp_path / "cat" / "link.png"),)
    assert sum(len(y) for y in (loaded.y_train, loaded.y_val, loaded.y_test)) == 21
    remark = loaded.remarks[-1]
    assert remark.startswith("1 of 21 pictures is a copy of another;")
    assert "; 1 picture stands in several classes, such as " in remark
    assert str(tmp_path / "cat" / "a b" / "1 ü.PNG") in remark and str(tmp_path / "Cat" / "link.png") in remark


def test_the_split_depends_on_content_and_seed(folder, pictures, tmp_path):
    renamed = tmp_path / "renamed"
    shutil.copytree(pictures, renamed)
    for number, path in enumerate(sorted(renamed.glob("*/0*"))):
        path.rename(path.with_name(f"{number * 7919 % 1000:04}-x{path.suffix}"))
    again = data.load_image_folder(renamed)
    assert again.fingerprint() == folder.fingerprint()
    for part in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(again, part), getattr(folder, part))
    other = data.load_image_folder(pictures, seed=1)
    assert other.fingerprint() != folder.fingerprint() and set(keys(other.x_test)) != set(keys(folder.x_test))


def write_csv(path, rows, header, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture
def labelled(tmp_path):
    """A flat folder of 60 pictures and the rows (file, label, group) of its CSV file; a group is of two classes."""
    (tmp_path / "flat").mkdir()
    rows = []
    for number in range(60):
        write_picture(tmp_path / "flat" / f"{number}.png", number, number % 2)
        rows.append((f"{number}.png", CLASSES[number % 2], f"g{number // 4}"))
    return tmp_path, rows


@pytest.mark.parametrize("header, delimiter", [(("file", "label", "who"), ","), (("Image", "CLASS", "Who"), ";")])
def test_labels_in_a_csv_file_and_groups(labelled, header, delimiter):
    folder, rows = labelled
    path = write_csv(folder / "labels.csv", rows, header, delimiter)
    loaded = data.load_image_folder(folder / "flat", labels=path, group_column="who")
    group_of = {data.decode_image(folder / "flat" / name).tobytes(): group for name, _, group in rows}
    label_of = {data.decode_image(folder / "flat" / name).tobytes(): label for name, label, _ in rows}
    sides = [{group_of[key] for key in keys(x)} for x in (loaded.x_train, loaded.x_val, loaded.x_test)]
    assert all(sides) and sum(map(len, sides)) == len(set.union(*sides)) == 15
    for x, y in ((loaded.x_train, loaded.y_train), (loaded.x_test, loaded.y_test)):
        assert [label_of[key] for key in keys(x)] == [loaded.class_names[label] for label in y]


def test_folders_for_validation_and_testing(pictures, folder, tmp_path):
    """Copies of their pictures, also through a chain, are left out of training."""
    test = tmp_path / "test"
    for name in CLASSES[:2]:
        (test / name).mkdir(parents=True)
        write_picture(test / name / "new.png", 5000 + len(name), 1)
    shutil.copy(pictures / "bird" / "0000.png", test / "bird" / "seen.png")  # of which there are copies
    loaded = data.load_image_folder(pictures, test_dir=test)
    assert len(loaded.y_test) == 3 and set(loaded.y_test) == {0, 1}
    seen = data.decode_image(pictures / "bird" / "0000.png").tobytes()
    assert seen in keys(folder.x_train) + keys(folder.x_val) + keys(folder.x_test)
    assert seen in keys(loaded.x_test) and seen not in keys(loaded.x_train) + keys(loaded.x_val)
    assert any("left out" in remark for remark in loaded.remarks)
    three = data.load_image_folder(pictures, test_dir=test, validation_dir=test)
    assert len(three.y_val) == 0 and len(three.y_test) == 3  # all of it is tested on


# -------------------------------------------------------------------------------------------------------- streaming


def test_streamed_batches_equal_those_in_memory(pictures, folder):
    streamed = data.load_image_folder(pictures, stream="always")
    assert streamed.is_streamed and not folder.is_streamed and streamed.fingerprint() == folder.fingerprint()
    assert streamed.x_train.shape == folder.x_train.shape and streamed.x_train.dtype == folder.x_train.dtype
    one = data.Batches(folder.x_train, folder.y_train, batch_size=32, seed=3)
    other = data.PrefetchedBatches(streamed.x_train, streamed.y_train, batch_size=32, seed=3)
    assert len(one) == len(other)
    for epoch in (0, 1, 5):
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        for index in range(len(one)):
            for a, b in zip(one[index], other[index], strict=True):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(other[index // 2][0], one[index // 2][0])  # a look back
    np.testing.assert_array_equal(streamed.x_test[:7][np.arange(7)], folder.x_test[:7])
    np.testing.assert_array_equal(streamed.x_test[np.int64(3)], folder.x_test[3])
    a, b = streamed.limited(9, seed=1), folder.limited(9, seed=1)
    np.testing.assert_array_equal(a.x_val[np.arange(9)], b.x_val)


def test_no_more_batches_are_kept_than_asked_for():
    class Counting:
        """An array that counts the rows which were taken and the batches that are alive."""

        def __init__(self, length):
            self.length, self.taken = length, []

        def __len__(self):
            return self.length

        def __getitem__(self, rows):
            self.taken.append(tuple(rows))
            return np.asarray(rows)

    x = Counting(1000)
    batches = data.PrefetchedBatches(x, np.arange(1000), batch_size=10, seed=0, workers=2, prefetch=3)
    for index in range(100):
        rows, labels = batches[index]
        np.testing.assert_array_equal(rows, labels)
        assert len(batches._made) <= 3 + 1 + batches._KEPT
    assert sorted(np.concatenate(x.taken)) == list(range(1000)), "no row is read twice in an epoch"
    np.testing.assert_array_equal(batches[0][0], data.epoch_order(1000, seed=0, epoch=0)[:10])
    batches.set_epoch(1)
    np.testing.assert_array_equal(batches[0][0], data.epoch_order(1000, seed=0, epoch=1)[:10])


def test_what_fits_stays_in_memory(pictures, monkeypatch):
    assert not data.load_image_folder(pictures).is_streamed
    monkeypatch.setattr(image_folder, "MEMORY_LIMIT", 599 * 48 * 48 * 3)
    assert data.load_image_folder(pictures).is_streamed
    assert not data.load_image_folder(pictures, stream="never").is_streamed


def test_a_file_that_goes_away(labelled):
    folder, rows = labelled
    loaded = data.load_image_folder(folder / "flat", labels=write_csv(folder / "a.csv", rows, ("file", "label", "g")))
    streamed = data.ImageFiles([str(folder / "flat" / "0.png"), str(folder / "flat" / "1.png")])
    (folder / "flat" / "1.png").unlink()
    batches = data.PrefetchedBatches(streamed, loaded.y_train[:2], batch_size=2)
    with pytest.raises(UserError, match="no image at .*1.png"):
        batches[0]


# --------------------------------------------------------------------------------------------------------- mistakes


def test_pictures_of_types_that_are_not_read_are_named(tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=60)
    (folder / "cat" / "IMG_1.HEIC").write_bytes(b"a telephone's")
    (folder / "cat" / ".hidden.heic").write_bytes(b"")
    found = data.load_image_folder(folder, image_size=16)
    said = "Skipped 1 file: IMG_1.HEIC, of types that are not read: convert them to JPEG or PNG."
    assert found.remarks[0] == said
    (tmp_path / "telephone" / "cat").mkdir(parents=True)
    (tmp_path / "telephone" / "cat" / "1.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no pictures of types that are read \(there are \.heic files\): give"):
        data.load_image_folder(tmp_path / "telephone")


def test_mistakes_in_folders(tmp_path):
    with pytest.raises(UserError, match=r"^There is no folder .*nowhere: give one"):
        data.load_image_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no pictures: give a folder with a sub-folder of pictures"):
        data.load_image_folder(tmp_path)
    write_picture(tmp_path / "one.png", 0, 0)
    with pytest.raises(UserError, match=r"holds pictures but no sub-folders .* --labels"):
        data.load_image_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    write_picture(tmp_path / "cat" / "one.png", 0, 0)
    with pytest.raises(UserError, match=r"pictures of one class alone, 'cat': a classifier needs two or more"):
        data.load_image_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"^The class folder .*dog holds no pictures: put some into it or remove it"):
        data.load_image_folder(tmp_path)
    (tmp_path / "dog" / "broken.png").write_text("broken")
    with pytest.raises(UserError, match=r"^The class 'dog' .* has no pictures left to train on"):
        data.load_image_folder(tmp_path)
    write_picture(tmp_path / "dog" / "two.png", 1, 0)
    with pytest.raises(UserError, match=r"too few pictures to hold some out for testing: add some, or give --test-dir"):
        data.load_image_folder(tmp_path)
    test = tmp_path / "tests"
    (test / "dogs").mkdir(parents=True)
    write_picture(test / "dogs" / "two.png", 1, 0)
    shutil.rmtree(tmp_path / "dog" / "none", ignore_errors=True)
    train = tmp_path / "train"
    train.mkdir()
    for name in ("cat", "dog"):
        (tmp_path / name).rename(train / name)
    with pytest.raises(UserError, match=r"the class 'dogs', which has no training pictures.*Did you mean 'dog'"):
        data.load_image_folder(train, test_dir=test)
    with pytest.raises(UserError, match=r"group column 'who' is one of a CSV file .*--labels"):
        data.load_image_folder(train, group_column="who")


@pytest.mark.parametrize(
    "rows, header, words",
    [
        ([("0.png", "a"), ("x.png", "b"), ("y.png", "b")], "file label", "names 2 files: x.png, y.png not found in"),
        ([("0.png", "a")], "picture label", "columns picture, label: the one of the files is to be called file or"),
        ([("0.png", "a")], "file kind", "the one of the labels is to be called label or class"),
        ([("0.png", "a", "g")], "file label group", "no column 'who' for --group-column: its columns are file, "),
        ([("0.png", "a", "g"), ("1.png", "")], "file label who", "Line 3 of .* has 2 values, but there are 3 columns"),
        ([("0.png", "", "g")], "file label who", "Line 2 of .* has no label: fill it in"),
        ([("0.png", "a", "g"), ("0.png", "b", "g")], "file label who", "Line 3 of .* names 0.png a second time"),
        ([("0.png", 'a"b', "g")], "file label who", None),
        ([], "file label who", "names no pictures in .*flat"),
    ],
)  # fmt: skip
def test_mistakes_in_labels(labelled, rows, header, words):
    folder, _ = labelled
    path = write_csv(folder / "labels.csv", rows, header.split())
    group = "who" if len(header.split()) == 3 else None
    if words is None:
        path.write_text(path.read_text().replace('""', '"'))
        words = "is no CSV file"
    with pytest.raises(UserError, match=words) as error:
        data.load_image_folder(folder / "flat", labels=path, group_column=group)
    assert str(error.value).count(". ") == 0, "one sentence"


def test_labels_that_are_no_text(labelled):
    folder, _ = labelled
    with pytest.raises(UserError, match="is not text in UTF-8: save the CSV file of labels as UTF-8"):
        data.load_image_folder(folder / "flat", labels=folder / "flat" / "0.png")
    with pytest.raises(UserError, match="cannot be read"):
        data.load_image_folder(folder / "flat", labels=folder / "none.csv")
