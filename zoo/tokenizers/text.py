"""Tokenizers of language models, trained with the `tokenizers` package and saved as its JSON beside a model.

char   every character is a token; decoding gives the text back exactly
word   words with the space before them, punctuation and line breaks; rare words become <unk>
bpe    byte-pair encoding (Sennrich et al. 2016, on bytes as in GPT-2); decoding gives the text back exactly
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.errors import UserError, error_summary
from zoo.io import files
from zoo.io.schemas import TOKENIZER_PATTERNS
from zoo.typing import StrPath

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_KINDS = ("char", "word", "bpe")
UNKNOWN_TOKEN = "<unk>"


def train_tokenizer(text: str, kind: str, *, vocabulary_size: int | None = None) -> tokenizers.Tokenizer:
    """Train a tokenizer on a text.

    Args:
        text: the training text; for "char" every character of it gets an id, in the order of code points.
        kind: "char", "word" or "bpe".
        vocabulary_size: most entries; ignored for "char". None for 10,000 words or 1,024 byte pairs.

    Returns:
        `tokenizers.Tokenizer`.

    Raises:
        UserError: if the kind is unknown, the text empty, or the vocabulary too small for its bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind not in TOKENIZER_KINDS:
        raise UserError(f"Unknown tokenizer {kind!r}: choose one of {', '.join(TOKENIZER_KINDS)}.")
    if not text:
        raise UserError("The text is empty: a tokenizer is trained on at least one character.")
    if kind == "char":
        vocabulary = {character: index for index, character in enumerate(sorted(set(text)))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))  # <unk> has no id: see `encode`
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKENIZER_PATTERNS["character"]), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return tokenizer
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN_TOKEN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKENIZER_PATTERNS["word"]), "isolated")
        tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocabulary_size or 10_000, special_tokens=[UNKNOWN_TOKEN], show_progress=False
        )
    else:
        size = vocabulary_size or 1024
        if size < 256:
            raise UserError(f"A byte-pair vocabulary has at least 256 entries, one for each byte, got {size}.")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(  # type: ignore[assignment]
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Encode a text.

    Args:
        tokenizer: what `train_tokenizer` returned.
        text: the text.

    Returns:
        token ids.

    Raises:
        UserError: if the text has characters that are not in the vocabulary of a character tokenizer (they are named),
            or pieces that have no id and no token for what is unknown.
    """
    if tokenizer_kind(tokenizer) == "char":
        unknown = sorted(set(text) - set(tokenizer.get_vocab()))
        if unknown:
            listed = ", ".join(repr(character) for character in unknown[:10]) + (", …" if len(unknown) > 10 else "")
            raise UserError(
                f"The text has {listed}, which the model was not trained on: use the {tokenizer.get_vocab_size()} "
                "characters of its vocabulary."
            )
    try:
        return tokenizer.encode(text).ids
    except Exception as error:  # the package raises plain Exception
        raise UserError(
            f"The tokenizer has no tokens for this text ({error_summary(error)}): its file is not the one that the "
            "model was trained with."
        ) from error


def tokenizer_kind(tokenizer: tokenizers.Tokenizer) -> str:
    """The kind of a trained tokenizer.

    Args:
        tokenizer: what `train_tokenizer` returned.

    Returns:
        "char", "word" or "bpe".
    """
    if type(tokenizer.model).__name__ == "BPE":
        return "bpe"
    return "word" if tokenizer.token_to_id(UNKNOWN_TOKEN) is not None else "char"


def save_tokenizer(tokenizer: tokenizers.Tokenizer, path: StrPath) -> None:
    """Write a tokenizer as JSON, atomically.

    Args:
        tokenizer: what `train_tokenizer` returned.
        path: of the file.
    """
    files.write_text(path, tokenizer.to_str(pretty=True) + "\n")
