"""Tokenizers: of language models (`text`), translation models (`shared_bpe`, `marian`) and text encoders (`clip`)."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING

from zoo.errors import UserError, error_summary
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
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        marian = isinstance(content, dict) and content.get("kind") == KIND
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{path} is not a tokenizer ({error_summary(error)}): fetch it or train it again.") from error
    if marian:
        return MarianTokenizer.from_dict(content, origin=path)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain Exception
        raise UserError(f"{path} is not a tokenizer ({error_summary(error)}): fetch it or train it again.") from error
    size = tokenizer.get_vocab_size()
    if vocabulary_size is not None and size != vocabulary_size:
        raise UserError(
            f"{path} has {size} entries but the model has {vocabulary_size}: this tokenizer belongs to another model."
        )
    shared = all(tokenizer.token_to_id(token) is not None for token in (PAD_TOKEN, START_TOKEN, END_TOKEN))
    return SharedBPETokenizer(tokenizer) if shared else tokenizer
