"""Tokenizers: decoding gives the text back, unknown characters are named, the file belongs to its model."""

import pytest

from zoo.errors import UserError
from zoo.tokenizers import load_tokenizer
from zoo.tokenizers import text as tokenizers
from zoo.tokenizers.shared_bpe import SharedBPETokenizer

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak. It's — 1.5 °C.\n" * 4

pytestmark = pytest.mark.once


@pytest.mark.parametrize("kind", tokenizers.TOKENIZER_KINDS)
def test_encoding_and_the_file_keep_the_text(kind, tmp_path):
    tokenizer = tokenizers.train_tokenizer(TEXT, kind)
    assert tokenizers.tokenizer_kind(tokenizer) == kind
    ids = tokenizers.encode(tokenizer, TEXT)
    assert tokenizer.decode(ids) == TEXT
    tokenizers.save_tokenizer(tokenizer, tmp_path / "t.json")
    again = load_tokenizer(tmp_path / "t.json", vocabulary_size=tokenizer.get_vocab_size())
    assert tokenizers.encode(again, TEXT) == ids and again.decode(ids) == TEXT


def test_characters_are_numbered_in_order():
    assert tokenizers.encode(tokenizers.train_tokenizer("hello", "char"), "hello") == [1, 0, 2, 2, 3]


def test_words_keep_the_space_before_them():
    tokenizer = tokenizers.train_tokenizer(TEXT, "word")
    assert tokenizer.encode("All: we speak.\n\n").tokens == ["All", ":", " we", " speak", ".", "\n\n"]
    assert tokenizer.encode("All zebras").tokens == ["All", tokenizers.UNKNOWN_TOKEN]


def test_pieces_cover_any_text():
    tokenizer = tokenizers.train_tokenizer(TEXT, "bpe", vocabulary_size=300)
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.decode(tokenizers.encode(tokenizer, "Žluťoučký kůň 馬 🐎")) == "Žluťoučký kůň 馬 🐎"


def test_unknown_characters_are_named():
    tokenizer = tokenizers.train_tokenizer("abc", "char")
    with pytest.raises(UserError, match="'ß', 'é', which"):
        tokenizers.encode(tokenizer, "aßbé")


def test_wrong_use(tmp_path):
    with pytest.raises(UserError, match="Unknown tokenizer 'letters'"):
        tokenizers.train_tokenizer("abc", "letters")
    with pytest.raises(UserError, match="empty"):
        tokenizers.train_tokenizer("", "char")
    with pytest.raises(UserError, match="at least 256 entries"):
        tokenizers.train_tokenizer(TEXT, "bpe", vocabulary_size=100)
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="does not say model"):
        load_tokenizer(tmp_path / "bad.json")
    tokenizers.save_tokenizer(tokenizers.train_tokenizer("abc", "char"), tmp_path / "t.json")
    with pytest.raises(UserError, match="3 entries but the model has 65"):
        load_tokenizer(tmp_path / "t.json", vocabulary_size=65)


def test_a_file_says_of_what_kind_it_is(tmp_path):
    tokenizer = SharedBPETokenizer.train(["a man", "ein Mann"], vocabulary_size=300)
    tokenizer.save(tmp_path / "t.json")
    loaded = load_tokenizer(tmp_path / "t.json")
    assert isinstance(loaded, SharedBPETokenizer) and loaded.encode("a Mann") == tokenizer.encode("a Mann")
    tokenizers.save_tokenizer(tokenizers.train_tokenizer(TEXT, "bpe"), tmp_path / "t.json")
    assert not isinstance(load_tokenizer(tmp_path / "t.json"), SharedBPETokenizer)


def test_bpe_dropout_splits_as_the_package_tokenizers_does():
    """Without a drop the same pieces; with drops pieces of the same distribution, the same ones for a seed."""
    tokenizer = SharedBPETokenizer.train([TEXT], vocabulary_size=330)
    texts = TEXT.splitlines() + ["", "Žluťoučký kůň"]
    never = 1e-300
    assert tokenizer.encode_batch(texts, dropout=never) == tokenizer.encode_batch(texts)
    one, same, other = (tokenizer.encode_batch(texts, dropout=0.5, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert [tokenizer.decode(ids) for ids in one] == [text.strip() for text in texts]
    always = tokenizer.encode_batch(["speak"], dropout=1 - 1e-16)[0]
    assert len(always) == len(" speak") + 1  # characters, and the end

    text, count = "proceed", 4000
    ours = [len(tokenizer.encode_batch([text], dropout=0.3, seed=seed)[0]) - 1 for seed in range(count)]
    tokenizer.tokenizer.model.dropout = 0.3
    theirs = [len(tokenizer.tokenizer.encode(text).ids) for _ in range(count)]
    for length in range(1, 9):
        share, expected = (lengths.count(length) / count for lengths in (ours, theirs))
        assert abs(share - expected) < 5 * (0.5 / count) ** 0.5, (length, share, expected)
