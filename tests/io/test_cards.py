"""Cards: what describes the files of a folder, and what is checked."""

import json

import pytest

from zoo.errors import UserError
from zoo.io import cards, files


def test_a_card_describes_the_files_it_names(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    cards.write_card(tmp_path, {"task": "translation"}, ["a.txt"])
    entry = {"sha256": files.sha256(tmp_path / "a.txt"), "bytes": 3}
    card = {"name": tmp_path.name, "task": "translation", "files": {"a.txt": entry}}
    assert cards.read_card(tmp_path) == cards.read_card(tmp_path / "a.txt") == card
    assert cards.read_card(tmp_path / "b.txt") == {} == cards.read_card(tmp_path / "nowhere" / "c.txt")
    for name in ("a.txt", "b.txt"):
        cards.check_file(tmp_path / name)
    (tmp_path / "a.txt").write_text("One")
    with pytest.raises(UserError, match="a.txt has sha256 .* but card.json beside it says .*: the file was altered"):
        cards.check_file(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "card.json is not valid JSON"),
        ("[]", "card.json holds a list, not a JSON object"),
        ('{"files": []}', "card.json says files is .*, where an object was expected"),
        *(
            (json.dumps({"files": {name: {}}}), "a key of files is not the name of a file in its folder")
            for name in ("../a", "/a", "a/b", "a\\b")
        ),
        ('{"files": {"a": 1}}', "an entry of files is not an object"),
    ],
)
def test_damaged_cards(tmp_path, content, words):
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(UserError, match=words):
        cards.read_card(tmp_path)


def test_the_command_without_resume():
    command = "KERAS_BACKEND=jax python recipes/cnn_mnist.py --resume --overwrite --output 'my runs'"
    assert cards.without_resume_flag(command) == "KERAS_BACKEND=jax python recipes/cnn_mnist.py --output 'my runs'"
