"""Sentence pairs from files and number words, and batches of like length."""

import gzip
import json

import numpy as np
import pytest

from zoo import data
from zoo.data.pairs import BUCKET_WIDTHS
from zoo.errors import UserError

pytestmark = pytest.mark.once  # NumPy only


def write(folder, stem, lines_by_language):
    for language, lines in lines_by_language.items():
        text = "".join(f"{line}\n" for line in lines).encode()
        (folder / f"{stem}.{language}.gz").write_bytes(gzip.compress(text))


@pytest.fixture
def folder(tmp_path):
    for stem in ("train", "val", "test_2016_flickr"):
        write(tmp_path, stem, {"de": [f"{stem} eins", "zwei"], "en": [f"{stem} one", "two"]})
    return tmp_path


def test_multi30k_folder(folder):
    dataset, remark = data.load_pairs("de", "en", data_dir=folder)
    assert remark is None and dataset.train == [("train eins", "train one"), ("zwei", "two")]
    assert dataset.validation[0] == ("val eins", "val one") and dataset.test[0][1] == "test_2016_flickr one"
    turned, _ = data.load_pairs("en", "de", data_dir=folder)
    assert turned.train[0] == ("train one", "train eins") and turned.fingerprint() != dataset.fingerprint()
    (folder / "val.de.gz").unlink()
    (folder / "val.de").write_text("val eins\nzwei")  # plain, and without a last line end
    assert data.load_pairs("de", "en", data_dir=folder)[0].fingerprint() == dataset.fingerprint()


def test_real_multi30k(multi30k):
    dataset, _ = data.load_pairs("de", "en", data_dir=multi30k)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [29_000, 1_014, 1_000]
    assert not set(dataset.train) & set(dataset.test)


def test_own_files(tmp_path):
    pairs = [(f"Satz {k}", f"sentence {k}") for k in range(43)]
    tsv = tmp_path / "mine.tsv"
    tsv.write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    one, other = tmp_path / "mine.de", tmp_path / "mine.en"
    one.write_text("\n".join(a for a, _ in pairs))
    other.write_text("\n".join(b for _, b in pairs))
    dataset, _ = data.load_pairs(pairs=[tsv])
    assert dataset == data.load_pairs(pairs=[one, other])[0]
    lines, nested = tmp_path / "mine.jsonl", tmp_path / "mine.jsonl.gz"
    lines.write_text("\ufeff" + "\r\n".join(json.dumps({"en": b, "de": a, "id": 3}) for a, b in pairs))
    nested.write_bytes(
        gzip.compress("\n".join(json.dumps({"translation": {"de": a, "en": b}}) for a, b in pairs).encode())
    )
    assert dataset == data.load_pairs(pairs=[lines])[0] == data.load_pairs(pairs=[nested])[0]
    assert dataset.name == "mine" and dataset.validation == [pairs[18], pairs[38]]
    assert sorted(dataset.train + dataset.validation + dataset.test) == sorted(pairs)


def test_number_words():
    dataset, remark = data.load_pairs("de", "en")
    assert "--data-dir" in remark and "\n" not in remark
    assert dataset.train and all("tausend" in a for a, b in dataset.train if "thousand" in b)
    parts = [set(part) for part in (dataset.train, dataset.validation, dataset.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def wrong(message, *arguments, **options):
    with pytest.raises(UserError, match=message) as caught:
        data.load_pairs(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_bad_input(folder, tmp_path_factory):
    mine = tmp_path_factory.mktemp("mine")
    wrong("two languages", "de", "de")
    wrong("no 'dee'.*Did you mean 'de'", "dee", "en", data_dir=folder)
    wrong("no folder", data_dir=folder / "nowhere")
    wrong("holds no train.de", data_dir=mine)
    wrong("num2words does not know 'xx'", "xx", "en")
    write(folder, "train", {"en": ["one"]})
    wrong("2 lines but .*train.en.gz has 1", data_dir=folder)
    write(folder, "train", {"en": ["one", " "]})
    wrong("train.en.gz, line 2 is empty", data_dir=folder)
    (folder / "train.en.gz").write_bytes(b"no gzip")
    wrong("cannot be read as gzip", data_dir=folder)
    damaged = bytearray(gzip.compress(b"".join(b"%d" % (k * k) for k in range(999))))
    damaged[40:60] = b"\xff" * 20
    (folder / "train.en.gz").write_bytes(damaged)
    wrong("cannot be read as gzip", data_dir=folder)
    (folder / "test_2016_flickr.en.gz").unlink()
    write(folder, "train", {"en": ["one", "two"]})
    wrong("lacks test_2016_flickr.en", data_dir=folder)
    bad = mine / "bad.tsv"
    wrong("There is no file", pairs=[bad])
    bad.write_bytes(b"a\tb\nc \xff\td\n")
    wrong("not UTF-8 .byte 0xff at position 6", pairs=[bad])
    bad.write_text("a\tb\nc d\n")
    wrong("line 2 is not source, tab, target: 'c d': give tab-separated text, JSON lines", pairs=[bad])
    bad.write_text("a\tb\n" * 3)
    wrong("has 3 pairs, at least 20", pairs=[bad])
    bad.write_text("\n")
    wrong("holds no text", pairs=[bad])
    wrong("takes one file of TSV or JSON lines, or two", pairs=[bad] * 3)
    lines = mine / "bad.jsonl"
    for content, message in (
        (
            '{"de": "a", "en": "b"}\n{"de": "a"}\n',
            """bad.jsonl, line 2 has no sentence "en": write {"de": …, "en": …}""",
        ),
        ('{"de": "a", "en": 3}\n', 'line 1 has no sentence "en"'),
        ("[]\n", "line 1 holds a list"),
        ('{"translation": "a"}\n', 'line 1 has no sentence "de"'),
        ("a\tb\n", "line 1 is not valid JSON"),
    ):
        lines.write_text(content)
        wrong(message, pairs=[lines])


PAIRS = [([9] * (1 + k % 23), [8] * (1 + k % 17)) for k in range(300)]


def batches(seed=0, batch_tokens=96):
    return data.BucketedBatches(PAIRS, batch_tokens=batch_tokens, pad_id=0, start_id=1, seed=seed)


def test_each_pair_is_in_one_batch_with_its_weight():
    made, counted = batches(), 0
    for (source, given), wanted, weights in (made[k] for k in range(len(made))):
        width = source.shape[1]
        assert (
            width in BUCKET_WIDTHS
            and source.size <= 96
            and source.shape == given.shape == wanted.shape == weights.shape
        )
        assert len(source) == 96 // width  # one shape a width
        rows = weights.any(axis=1)
        np.testing.assert_array_equal(weights[rows] > 0, wanted[rows] > 0)
        np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
        assert len(np.unique(weights[weights > 0])) == 1
        np.testing.assert_array_equal(given[:, 0], 1)
        np.testing.assert_array_equal(given[:, 1:][wanted[:, 1:] > 0], wanted[:, :-1][wanted[:, 1:] > 0])
        counted += rows.sum()
    assert counted == len(PAIRS) and made.target_tokens == sum(len(target) for _, target in PAIRS)


def test_order_is_a_function_of_seed_and_epoch():
    one, other = batches(), batches()
    other.set_epoch(1)
    moved = [b[2].tolist() for b in other.batches]
    assert moved != [b[2].tolist() for b in one.batches]
    one.set_epoch(1)
    assert moved == [b[2].tolist() for b in one.batches]
    assert batches(seed=None).batches[0][2].tolist() == batches(seed=None).batches[0][2].tolist()


def test_pairs_may_differ_by_epoch():
    """As with BPE-dropout: longer ones, as many batches as in the first epoch, the same for the same epoch."""

    def longer(epoch):
        return [(source * (1 + epoch), target) for source, target in PAIRS]

    made = data.BucketedBatches(longer, batch_tokens=96, pad_id=0, start_id=1, seed=0)
    plain = batches()
    assert [b[2].tolist() for b in made.batches] == [b[2].tolist() for b in plain.batches]
    for epoch in (2, 1, 0):
        made.set_epoch(epoch)
        assert len(made) == len(plain)
        fixed = data.BucketedBatches(longer(epoch), batch_tokens=96, pad_id=0, start_id=1, seed=0)
        fixed.set_epoch(epoch)
        for k in range(len(made)):
            for a, b in zip(np.broadcast_arrays(*made[k][0]), np.broadcast_arrays(*fixed[k % len(fixed)][0])):
                np.testing.assert_array_equal(a, b)


def test_the_first_two_batches_show_that_widths_change():
    for seed in (None, 0, 1, 2):
        made = batches(seed=seed)
        assert made.batches[0][0] != made.batches[1][0]


def test_too_long_a_pair_is_named():
    with pytest.raises(UserError, match="Pair 2 has 600 tokens, at most 512"):
        data.BucketedBatches([([1], [1]), ([1] * 600, [1])], batch_tokens=64, pad_id=0, start_id=1)
    with pytest.raises(UserError, match="no sentence pairs"):
        data.BucketedBatches([], batch_tokens=64, pad_id=0, start_id=1)
