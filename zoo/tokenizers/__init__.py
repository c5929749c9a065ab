"""Tokenizers: of language models (`text`), translation models (`shared_bpe`, `marian`) and text encoders (`clip`)."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING

from zoo.errors import UserError, error_summary
from zoo.io import schemas
from zoo.tokenizers.marian import KIND, MarianTokenizer
from zoo.tokenizers.shared_bpe import END_TOKEN, PAD_TOKEN, START_TOKEN, SharedBPETokenizer
from zoo.typing import StrPath

if TYPE_CHECKING:
    import tokenizers


def load_tokenizer(
    path: StrPath, *, vocabulary_size: int | None = None
) -> MarianTokenizer | SharedBPETokenizer | tokenizers.Tokenizer:
    """Load a tokenizer.json, whatever its kind.

    Args:
        path: the file.
        vocabulary_size: entries of the model that it is for; None to accept any number.

    Returns:
        `MarianTokenizer` or `SharedBPETokenizer` for those of translation models, else `tokenizers.Tokenizer`.

    Raises:
        UserError: if the file is missing, is no tokenizer, or belongs to a model with another vocabulary.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"There is no tokenizer at {path}: it belongs beside its model.")
    content = schemas.read_object(path, "the tokenizer")
    if content.get("kind") == KIND:
        return MarianTokenizer.from_dict(content, origin=path)
    tokenizer = _tokenizer(content, path)
    size = tokenizer.get_vocab_size()
    if vocabulary_size is not None and size != vocabulary_size:
        raise UserError(
            f"{path} has {size} entries but the model has {vocabulary_size}: this tokenizer belongs to another model."
        )
    shared = all(tokenizer.token_to_id(token) is not None for token in (PAD_TOKEN, START_TOKEN, END_TOKEN))
    return SharedBPETokenizer(tokenizer) if shared else tokenizer


def read_tokenizer(path: StrPath) -> tokenizers.Tokenizer:
    """Read a file of the package tokenizers that the zoo has written.

    Args:
        path: the file.

    Returns:
        the tokenizer.

    Raises:
        UserError: if the file is missing or damaged, or has components that the zoo does not write.
    """
    return _tokenizer(schemas.read_object(path, "the tokenizer"), path)


def _tokenizer(content, path):
    """The tokenizer that JSON describes; `path` is where it comes from."""
    from tokenizers import Tokenizer

    described = schemas.check(content, schemas.TokenizerFile, path)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the package raises plain Exception
        raise UserError(f"{path} is not a tokenizer ({error_summary(error)}): fetch it or train it again.") from error
    entries = described.model.vocab | {token.content: token.id for token in described.added_tokens}
    if len(set(entries.values())) < len(entries) or max(entries.values(), default=0) >= max(1, len(entries)):
        raise UserError(f"In {path}, the ids of {len(entries)} tokens are not 0 to {len(entries) - 1}: fetch it again.")
    return tokenizer
