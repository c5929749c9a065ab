"""Captioned pictures of one's own: the layouts that are read, splitting, and what is said of mistakes."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.test_image_folder import FORMATS, keys, write_picture
from zoo.data.captioned_folder import load_captioned_folder
from zoo.data.image_folder import ImageFiles, decode_image
from zoo.errors import UserError

pytestmark = pytest.mark.once
COUNT = 60


def write_pictures(folder, count=COUNT, first=0):
    """Pictures of many sizes, formats and modes; [(file name, caption)]."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first, first + count):
        suffix, mode = FORMATS[number % len(FORMATS)]
        name = f"{number:04}.{suffix}"
        write_picture(folder / name, number, number % 5, mode)
        rows.append((name, f"picture number {number}, “ünïcode”"))
    return rows


def write_csv(path, rows, header=("file_name", "text")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_jsonl(path, rows, header=("file_name", "text")):
    lines = [json.dumps(dict(zip(header, row)) | {"objects": {"bbox": [[1, 2, 3, 4]]}}) for row in rows]
    path.write_text("\n".join(lines) + "\n\n")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with metadata.csv, and its rows."""
    folder = tmp_path_factory.mktemp("captions") / "pictures"
    rows = write_pictures(folder)
    write_csv(folder / "metadata.csv", rows)
    return folder, rows


def pairs(dataset):
    """{pixels: caption} of all parts."""
    found = {}
    for part, captions in dataset.captions.items():
        found |= dict(zip(keys(dataset.images[part]), captions, strict=True))
    return found


def test_every_picture_has_its_caption(pictures):
    folder, rows = pictures
    dataset = load_captioned_folder(folder, image_size=64)
    assert {part: dataset.count(part) for part in dataset.captions} == {"train": 49, "validation": 5, "test": 6}
    assert pairs(dataset) == {decode_image(folder / name, image_size=64).tobytes(): text for name, text in rows}
    batch = dataset.render("train", np.array([3, 1, 3]))
    assert batch.images.shape == (3, 64, 64, 3) and batch.images.dtype == np.uint8
    assert batch.captions == [dataset.captions["train"][row] for row in (3, 1, 3)]
    assert [dataset.all_captions()[number] for number in batch.content_ids] == batch.captions
    assert set(dataset.example_prompts(4)) < set(dataset.captions["validation"])


@pytest.mark.parametrize("layout", ["jsonl", "other column", "txt", "folders of parts", "metadata above"])
def test_the_layouts_say_the_same(pictures, layout, tmp_path):
    """Hugging Face's imagefolder: metadata.csv or .jsonl with paths relative to it, in any folder; or .txt files."""
    folder, rows = pictures
    copy, options = tmp_path / "pictures", {}
    shutil.copytree(folder, copy)
    (copy / "metadata.csv").unlink()
    if layout == "jsonl":
        write_jsonl(copy / "metadata.jsonl", rows)
    elif layout == "other column":
        write_csv(copy / "metadata.csv", [(*row, "x") for row in rows], ("file_name", "caption", "text"))
        options["caption_column"] = "caption"
    elif layout == "txt":
        for name, text in rows:
            (copy / name).with_suffix(".txt").write_text(text.replace(" ", "\n ", 1), encoding="utf-8-sig")
    else:
        for number, (name, _) in enumerate(rows):
            (copy / f"part{number % 2}").mkdir(exist_ok=True)
            (copy / name).rename(copy / f"part{number % 2}" / name)
        if layout == "metadata above":
            moved = [(f"part{number % 2}/{name}", text) for number, (name, text) in enumerate(rows)]
            write_csv(copy / "metadata.csv", moved)
        else:
            write_csv(copy / "part0" / "metadata.csv", rows[::2])
            write_jsonl(copy / "part1" / "metadata.jsonl", rows[1::2])
    one, other = load_captioned_folder(folder), load_captioned_folder(copy, **options)
    assert one.fingerprint() == other.fingerprint() and one.captions == other.captions
    assert all(keys(one.images[part]) == keys(other.images[part]) for part in one.images)
    assert load_captioned_folder(copy, **options, image_size=64).fingerprint() != one.fingerprint()


def test_order_and_split_depend_on_content_and_seed(pictures, tmp_path):
    folder, rows = pictures
    renamed = []
    for number, (name, text) in enumerate(rows):
        renamed.append((f"{number * 37 % COUNT:03}-{name}", text))
        shutil.copy(folder / name, tmp_path / renamed[-1][0])
    write_csv(tmp_path / "metadata.csv", renamed[::-1])
    one, other = load_captioned_folder(folder), load_captioned_folder(tmp_path)
    assert one.fingerprint() == other.fingerprint() and one.captions == other.captions
    assert load_captioned_folder(folder, seed=1).captions != one.captions
    orders = [[text for batch in one.batches("train", 7, seed=s, epoch=e) for text in batch.captions] for s, e in
              ((0, 0), (0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert orders[0] == orders[1] != orders[2] and orders[0] != orders[3]
    assert sorted(orders[2]) == sorted(one.captions["train"])


def test_copies_stay_on_one_side_and_broken_files_are_named(tmp_path):
    rows = write_pictures(tmp_path, 30)
    for number in range(0, 24, 6):  # PNG or CMYK JPEG in RGB
        Image.open(tmp_path / rows[number][0]).convert("RGB").save(tmp_path / f"copy{number}.bmp")
        rows.append((f"copy{number}.bmp", "another caption"))
    (tmp_path / "cut.png").write_bytes((tmp_path / rows[0][0]).read_bytes()[:40])
    write_csv(tmp_path / "metadata.csv", [*rows, ("cut.png", "a broken one")])
    dataset = load_captioned_folder(tmp_path)
    sides = [set(keys(dataset.images[part])) for part in dataset.images]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 30
    assert [path.rsplit("/")[-1] for path in dataset.broken] == ["cut.png"]
    assert "Skipped 1 broken picture: " in dataset.remarks[0]
    assert (
        "4 of 34 pictures are copies" in dataset.remarks[1] and "4 pictures have several captions" in dataset.remarks[1]
    )
    with pytest.raises(UserError, match="^1 broken picture: .*cut.png: remove or repair them"):
        load_captioned_folder(tmp_path, on_broken="refuse")


def test_folders_of_parts_and_streaming(pictures, tmp_path):
    folder, _ = pictures
    for part, first in (("validation", 100), ("test", 120)):
        write_csv(tmp_path / part / "metadata.csv", write_pictures(tmp_path / part, 12, first))
    options = {"validation_dir": tmp_path / "validation", "test_dir": tmp_path / "test"}
    one = load_captioned_folder(folder, **options)
    assert [one.count(part) for part in ("train", "validation", "test")] == [COUNT, 12, 12]
    other = load_captioned_folder(folder, **options, stream="always")
    assert isinstance(other.images["train"], ImageFiles) and other.fingerprint() == one.fingerprint()
    rows = np.array([5, 2, 40])
    np.testing.assert_array_equal(one.render("train", rows).images, other.render("train", rows).images)
    few = other.subset(10)
    assert [few.count(part) for part in few.captions] == [10, 10, 10] and pairs(few).items() <= pairs(one).items()


MISTAKES = {
    "no folder": "There is no folder .*: give one with pictures",
    "no pictures": "holds no pictures: give a folder of pictures",
    "no captions": "holds 8 pictures and no captions: add a metadata.csv with the columns file_name and text",
    "file missing": r"metadata.csv names 2 files: a.png, b.png, not found in .*: correct the names",
    "no caption column": "has no column 'text' but file_name, txet: add it, or name its column with --caption-column. "
    "Did you mean 'txet'",
    "no file column": "has no column 'file_name' but file, text: add it",
    "without caption": "holds pictures without caption, 1 file: 0007.png: write one",
    "empty caption": "holds pictures without caption, 1 file: 0007.png: write one",
    "null caption": "holds pictures without caption, 1 file: 0007.png: write one",
    "no text": "Line 8 of .*metadata.jsonl says text is 5, where text was expected",
    "twice": "Line 9 of .*metadata.csv names 0000.png a second time: keep one",
    "both": "holds both metadata.csv and metadata.jsonl: keep one",
    "outside": r"names '\.\./0000.png', where a path below .* was expected",
    "no JSON": "Line 1 of .*metadata.jsonl is not valid JSON",
    "ragged": "Line 9 of .*metadata.csv has 1 values, but there are 2 columns",
    "not UTF-8": r"0003.txt is not text in UTF-8",
    "too few": "has too few pictures for the .* part, 2 whole ones in all",
    "size": "The image size must be a multiple of 16 from 32 to 256 pixels, got 50: try 48 or 64",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tmp_path, mistake):
    folder, options = tmp_path / "pictures", {}
    rows, header = write_pictures(folder, 2 if mistake == "too few" else 8), ("file_name", "text")
    name = "jsonl" if mistake in ("null caption", "no text", "no JSON") else "csv"
    changed = {
        "file missing": [*rows, ("a.png", "one"), ("b.png", "two")],
        "without caption": rows[:-1],
        "empty caption": [*rows[:-1], (rows[-1][0], "  ")],
        "null caption": [*rows[:-1], (rows[-1][0], None)],
        "no text": [*rows[:-1], (rows[-1][0], 5)],
        "twice": [*rows[:-1], rows[0]],
        "outside": [*rows[:-1], ("../0000.png", "one")],
        "ragged": [*rows[:-1], rows[-1][:1]],
    }.get(mistake, rows)
    header = {"no caption column": ("file_name", "txet"), "no file column": ("file", "text")}.get(mistake, header)
    if mistake == "not UTF-8":
        for picture, _ in rows:
            (folder / picture).with_suffix(".txt").write_bytes(b"\xff\xfe caption" if "0003" in picture else b"caption")
    elif mistake != "no captions":
        {"csv": write_csv, "jsonl": write_jsonl}[name](folder / f"metadata.{name}", changed, header)
    if mistake == "both":
        write_jsonl(folder / "metadata.jsonl", rows)
    elif mistake == "no JSON":
        (folder / "metadata.jsonl").write_text("file_name,text\n")
    elif mistake == "no folder":
        folder = tmp_path / "none"
    elif mistake == "no pictures":
        for picture, _ in rows:
            (folder / picture).unlink()
    elif mistake == "size":
        options["image_size"] = 50
    with pytest.raises(UserError, match=MISTAKES[mistake]) as caught:
        load_captioned_folder(folder, **options)
    assert "\n" not in str(caught.value)
