"""Tokenizers of three levels, made with the `tokenizers` package and kept in its JSON beside a model.

char   every character is a token; the text comes back exactly
word   words with the space before them, punctuation and line ends; rare words become <unk>
bpe    byte-pair pieces (Sennrich et al. 2016, on bytes as in GPT-2); the text comes back exactly
"""

import pathlib

from zoo.errors import UserError
from zoo.io import files

LEVELS = ("char", "word", "bpe")
UNKNOWN = "<unk>"
# A word with the space before it, a run of line ends, a mark with the space before it, any other space.
WORDS = r" ?\w+(?:['’-]\w+)*|\n+| ?[^\w\s]|\s"


def train_tokenizer(text, level, *, vocabulary_size=None):
    """Make a tokenizer from a text.

    Args:
        text: what it is made from; for "char" every character of it gets an id, in the order of code points.
        level: "char", "word" or "bpe".
        vocabulary_size: the most entries it may have; ignored for "char". None: 10,000 words, 1,024 pieces.

    Returns:
        `tokenizers.Tokenizer`.

    Raises:
        UserError: if the level is unknown, the text empty, or the vocabulary too small for its bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if level not in LEVELS:
        raise UserError(f"Unknown level {level!r}: choose one of {', '.join(LEVELS)}.")
    if not text:
        raise UserError("The text is empty: a tokenizer is made from at least one character.")
    if level == "char":
        vocabulary = {character: place for place, character in enumerate(sorted(set(text)))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))  # <unk> has no id: see `encode`
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return tokenizer
    if level == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
        tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocabulary_size or 10_000, special_tokens=[UNKNOWN], show_progress=False
        )
    else:
        size = vocabulary_size or 1024
        if size < 256:
            raise UserError(f"A byte-pair vocabulary has at least 256 entries, one for each byte, got {size}.")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def encode(tokenizer, text):
    """Token ids of a text, a list of int.

    Raises:
        UserError: if the text holds characters that a character tokenizer does not know; they are named.
    """
    if level(tokenizer) == "char":
        strange = sorted(set(text) - set(tokenizer.get_vocab()))
        if strange:
            shown = ", ".join(repr(character) for character in strange[:10]) + (", …" if len(strange) > 10 else "")
            raise UserError(
                f"The text holds {shown}, which the model never saw: use the {tokenizer.get_vocab_size()} characters "
                "it was trained on."
            )
    return tokenizer.encode(text).ids


def level(tokenizer):
    """ "char", "word" or "bpe"."""
    if type(tokenizer.model).__name__ == "BPE":
        return "bpe"
    return "word" if tokenizer.token_to_id(UNKNOWN) is not None else "char"


def save_tokenizer(tokenizer, path):
    """Write a tokenizer as JSON, atomically."""
    files.write_text(path, tokenizer.to_str(pretty=True) + "\n")


def load_tokenizer(path, *, vocabulary_size=None):
    """Read a tokenizer.

    Args:
        path: its JSON file.
        vocabulary_size: entries that the model it is for has; None to take any.

    Raises:
        UserError: if the file is missing, is not a tokenizer, or belongs to a model with another vocabulary.
    """
    from tokenizers import Tokenizer

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"There is no tokenizer at {path}: it lies beside its model as <name>.tokenizer.json.")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises plain Exception
        raise UserError(f"{path} is not a tokenizer ({error}): fetch or make it again.") from error
    size = tokenizer.get_vocab_size()
    if vocabulary_size is not None and size != vocabulary_size:
        raise UserError(
            f"{path} has {size} entries but the model has {vocabulary_size}: this tokenizer belongs to another model."
        )
    return tokenizer
