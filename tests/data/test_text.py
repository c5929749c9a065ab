"""Texts and their batches: contiguous streams, shuffled windows, clear errors."""

import numpy as np
import pytest

from zoo.data import BPTTBatches, ShuffledWindows, load_text
from zoo.errors import UserError

pytestmark = pytest.mark.once


def test_parts_are_in_order_and_cover_the_text(tmp_path):
    (tmp_path / "t.txt").write_text("".join(chr(97 + i % 26) for i in range(1003)))
    dataset, remark = load_text(file=tmp_path / "t.txt")
    parts = [dataset.split(name) for name in ("train", "validation", "test")]
    assert "".join(parts) == dataset.text and [len(part) for part in parts] == [902, 50, 51] and remark is None


def test_tiny_shakespeare(shakespeare):
    dataset, _ = load_text(data_dir=shakespeare)
    assert len(dataset.text) == 1_115_394 and dataset.text.startswith("First Citizen:")
    assert len(set(dataset.text)) == 65


def test_without_data_the_text_of_python_stands_in(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("zoo.data.images._server_reachable", lambda: False)
    dataset, remark = load_text()
    assert dataset.name == "python_topics" and len(dataset.text) > 100_000 and "\n" not in remark


def test_streams_go_on_where_the_last_batch_ended():
    ids = np.arange(1000)
    streams = BPTTBatches(ids, batch_size=4, sequence_length=10, seed=3)
    for epoch in range(3):
        streams.set_epoch(epoch)
        x = np.concatenate([streams[i][0] for i in range(len(streams))], axis=1)
        y = np.concatenate([streams[i][1] for i in range(len(streams))], axis=1)
        assert (y == x + 1).all() and (np.diff(x, axis=1) == 1).all()
        assert len(np.unique(x)) == x.size == 4 * 10 * len(streams)
    begins = {int(streams.tokens[0, 0]) for epoch in range(20) if streams.set_epoch(epoch) is None}
    assert len(begins) > 3 and max(begins) < 10


def test_validation_streams_do_not_move():
    streams = BPTTBatches(np.arange(100), batch_size=2, sequence_length=10)
    first = streams.tokens.copy()
    streams.set_epoch(7)
    np.testing.assert_array_equal(streams.tokens, first)


def test_windows_are_the_same_tokens_in_another_order():
    ids = np.random.default_rng(0).permutation(1000)
    streams, windows = (kind(ids, batch_size=4, sequence_length=10, seed=3) for kind in (BPTTBatches, ShuffledWindows))
    x = np.concatenate([windows[i][0] for i in range(len(windows))])
    assert sorted(x.ravel()) == sorted(streams.tokens.ravel())
    place = {token: index for index, token in enumerate(ids)}
    for i in range(len(windows)):
        for row, target in zip(*windows[i]):
            where = [place[token] for token in row]
            assert where == list(range(where[0], where[0] + 10)) and place[target[-1]] == where[-1] + 1
    again = ShuffledWindows(ids, batch_size=4, sequence_length=10, seed=3)
    np.testing.assert_array_equal(again[0][0], windows[0][0])
    again.set_epoch(1)
    assert not np.array_equal(again[0][0], windows[0][0])


@pytest.mark.parametrize(
    "content, message",
    [(b"", "holds no text"), (b" \n\n", "holds no text"), (b"caf\xe9", "not UTF-8 .byte 0xe9 at position 3")],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_text(file=tmp_path / "t.txt")


def test_a_folder_of_texts(tmp_path):
    (tmp_path / "b").mkdir()
    for name, content in (("a.txt", "one\n"), ("b/c.txt", "\ufefftwo"), ("b/a.txt", "\nthree\n\n"), ("notes.md", "no")):
        (tmp_path / name).write_text(content)
    dataset, remark = load_text(file=tmp_path)
    assert dataset.text == "one\n\nthree\n\ntwo\n" and remark is None and dataset.name == tmp_path.name
    (tmp_path / "b/empty.txt").touch()
    with pytest.raises(UserError, match="empty.txt holds no text"):
        load_text(file=tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none holds no .txt file"):
        load_text(file=tmp_path / "none")


def test_what_systems_leave_in_a_folder_of_texts(tmp_path):
    """Line ends of Windows are one character, endings may be upper-case, and hidden files are none of the texts."""
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".git").mkdir()
    for name, content in {
        "a.TXT": b"one\r\ntwo\r\n",
        "b.txt": b"\xef\xbb\xbfthree\n",
        "._b.txt": b"\xff",
        "__MACOSX/b.txt": b"\xff",
        ".git/c.txt": b"no",
    }.items():
        (tmp_path / name).write_bytes(content)
    assert load_text(file=tmp_path)[0].text == "one\ntwo\n\nthree\n"
    assert load_text(file=tmp_path / "a.TXT")[0].text == "one\ntwo\n"


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="no text file"):
        load_text(file=tmp_path / "none.txt")


def test_text_shorter_than_a_batch():
    with pytest.raises(UserError, match="This part of the text has 50 tokens, but one batch needs 330: .* twentieth"):
        BPTTBatches(np.arange(50), batch_size=32, sequence_length=10, seed=0)
