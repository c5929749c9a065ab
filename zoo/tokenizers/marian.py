"""The tokenizer of Marian's translation models (opus-mt and kin), kept in one JSON file beside a model.

SentencePiece (Kudo and Richardson 2018) splits a text into pieces, with one model a language; the vocabulary of the
translation model gives their ids, and a piece that is not in it becomes <unk>. Each text ends with
</s>. Models of several target languages take a code such as >>fra<< before the text, which is one token.

Ids and texts are those of transformers' MarianTokenizer. SentencePiece's own library does the splitting: its models
converted to the `tokenizers` package give the same pieces for plain text (all 93,042 sentences of Multi30k) but other
ones where marks combine with letters (decomposed Hangul, "ạ̈").
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

import msgspec

from zoo.errors import UserError, did_you_mean, error_summary, require
from zoo.io import files, schemas
from zoo.typing import StrPath

KIND = "marian"
_LANGUAGE_CODE = re.compile(r">>.*?<<", re.DOTALL)
# What clean_up_tokenization_spaces replaces, in this order (transformers 5.24, `clean_up_tokenization`).
_CLEAN_UP = [(f" {mark}", mark) for mark in (".", "?", "!", ",")] + [(" ' ", "'")]
_CLEAN_UP += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]


class MarianTokenizer:
    """Text to ids of the source's vocabulary, and ids of the target's vocabulary to text.

    Args:
        source_model: bytes of the source's SentencePiece model (source.spm).
        target_model: bytes of the target's (target.spm).
        vocabulary: dict piece -> id; of the source, and of the target where they share one.
        target_vocabulary: dict piece -> id of a vocabulary of the target's own; None to share.
        unknown: how the token for what is unknown is written.
        end: how the end is written.
        pad: how the padding is written.
        source_lang: name of the source's language; None where unknown.
        target_lang: name of the target's; None where unknown.
        clean_up_tokenization_spaces: whether `decode` removes the spaces before punctuation and contractions.
        origin: where all this comes from, for errors.

    Attributes:
        source_vocabulary_size: entries of the source's vocabulary.
        vocabulary_size: entries of the target's (the same where shared).
        pad_id: pads sources in a batch.
        start_id: the first token of a target.
        end_id: the last token of a target.
        suppress_tokens: list of the ids that must not be generated.

    Raises:
        UserError: if a SentencePiece model cannot be read, a vocabulary lacks one of the three tokens, or the package
            sentencepiece is missing.
    """

    def __init__(
        self,
        *,
        source_model: bytes,
        target_model: bytes,
        vocabulary: Mapping[str, int],
        target_vocabulary: Mapping[str, int] | None = None,
        unknown: str = "<unk>",
        end: str = "</s>",
        pad: str = "<pad>",
        source_lang: str | None = None,
        target_lang: str | None = None,
        clean_up_tokenization_spaces: bool = False,
        origin: str = "the tokenizer",
    ) -> None:
        self.source_model, self.target_model = source_model, target_model
        self.vocabulary, self.target_vocabulary = vocabulary, target_vocabulary
        self.unknown, self.end, self.pad = unknown, end, pad
        self.source_lang, self.target_lang = source_lang, target_lang
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        for side, words in (("source", vocabulary), ("target", self._target_vocabulary)):
            _check_vocabulary(words, (unknown, end, pad), f"the vocabulary of the {side} of {origin}")
        self._source = _sentencepiece(source_model, f"the SentencePiece model source.spm of {origin}")
        self._target = _sentencepiece(target_model, f"the SentencePiece model target.spm of {origin}")
        self._target_pieces = {id_: piece for piece, id_ in self._target_vocabulary.items()}
        self._specials = re.compile(f"({'|'.join(map(re.escape, (unknown, end, pad)))})")

    @property
    def _target_vocabulary(self):
        return self.vocabulary if self.target_vocabulary is None else self.target_vocabulary

    @property
    def source_vocabulary_size(self) -> int:
        """Entries of the source's vocabulary."""
        return len(self.vocabulary)

    @property
    def vocabulary_size(self) -> int:
        """Entries of the target's vocabulary."""
        return len(self._target_vocabulary)

    @property
    def pad_id(self) -> int:
        """Id that pads sources in a batch."""
        return self.vocabulary[self.pad]

    @property
    def start_id(self) -> int:
        """Id of the first token of a target."""
        return self._target_vocabulary[self.pad]

    @property
    def end_id(self) -> int:
        """Id of the last token of a target."""
        return self._target_vocabulary[self.end]

    @property
    def suppress_tokens(self) -> list[int]:
        """Ids that must not be generated."""
        return [self._target_vocabulary[self.pad]]

    @property
    def languages(self) -> list[str]:
        """Codes of the target languages of a model of several, e.g. ["fra", "ita"]; [] for a model of one."""
        return sorted(piece[2:-2] for piece in self.vocabulary if _LANGUAGE_CODE.fullmatch(piece))

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Encode a text to translate.

        Args:
            text: in the source's language; it may begin with a code such as >>fra<<.
            language: one of `languages`, to put its code before the text; None to leave the text as it is.

        Returns:
            token ids that end with </s>.

        Raises:
            UserError: if the model has no such language.
        """
        if language is not None:
            if language not in self.languages:
                raise UserError(
                    f"The model has no target language {language!r}: choose one of "
                    f"{', '.join(self.languages) or '(none: it has one only)'}.{did_you_mean(language, self.languages)}"
                )
            text = f">>{language}<< {text}"
        return self._ids(text, self._source, self.vocabulary)

    def encode_target(self, text: str) -> list[int]:
        """Encode a translation.

        Args:
            text: in the target's language.

        Returns:
            token ids that end with </s>: labels of a target that begins with `start_id`.
        """
        return self._ids(text, self._target, self._target_vocabulary)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode generated tokens.

        Args:
            ids: token ids of a target.

        Returns:
            the text; <unk>, </s>, <pad> and ids beyond the vocabulary are left out.
        """
        pieces = [self._target_pieces.get(int(id_), self.unknown) for id_ in ids]
        pieces = [piece for piece in pieces if piece not in (self.unknown, self.end, self.pad)]
        # As transformers does: with one vocabulary for both sides, the source's model joins the pieces.
        model = self._source if self.target_vocabulary is None else self._target
        text = model.decode_pieces(pieces).replace("▁", " ").strip()
        for spaced, joined in _CLEAN_UP if self.clean_up_tokenization_spaces else ():
            text = text.replace(spaced, joined)
        return text

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces of a source, e.g. for the axes of a plot.

        Args:
            ids: token ids of a source.

        Returns:
            the piece of each, with spaces for "▁".
        """
        return _pieces_of(ids, {id_: piece for piece, id_ in self.vocabulary.items()}, self.unknown)

    def target_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces of a target.

        Args:
            ids: token ids of a target.

        Returns:
            the piece of each, with spaces for "▁".
        """
        return _pieces_of(ids, self._target_pieces, self.unknown)

    def _ids(self, text, model, vocabulary):
        pieces = []
        for part in self._specials.split(
            text
        ):  # <unk>, </s> and <pad> in a text are special tokens, as in transformers
            if self._specials.fullmatch(part):
                pieces.append(part)
            elif part:
                code = _LANGUAGE_CODE.match(part)
                pieces += [code[0]] if code else []
                pieces += model.encode(part[code.end() :] if code else part, out_type=str)
        unknown = vocabulary[self.unknown]
        return [vocabulary.get(piece, unknown) for piece in pieces] + [vocabulary[self.end]]

    def save(self, path: StrPath) -> None:
        """Write the tokenizer as JSON, atomically; its SentencePiece models are in it in base64.

        Args:
            path: of the file.
        """
        content = {
            "kind": KIND,
            "unknown": self.unknown,
            "end": self.end,
            "pad": self.pad,
            "source_lang": self.source_lang,
            "target_lang": self.target_lang,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "source_model": base64.b64encode(self.source_model).decode(),
            "target_model": base64.b64encode(self.target_model).decode(),
            "vocabulary": self.vocabulary,
            "target_vocabulary": self.target_vocabulary,
        }
        files.write_json(path, content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, origin: StrPath) -> Self:
        """Make the tokenizer of what `save` wrote.

        Args:
            content: of the file, read as JSON.
            origin: path of the file, for errors.

        Returns:
            the tokenizer.

        Raises:
            UserError: if it is something else.
        """
        stored = schemas.check(content, schemas.MarianTokenizerFile, origin)
        return cls(**msgspec.structs.asdict(stored), origin=str(origin))


def _pieces_of(ids, pieces, unknown):
    return [pieces.get(int(id_), unknown).replace("▁", " ") for id_ in ids]


def _check_vocabulary(vocabulary, required, description):
    """Raise UserError if a vocabulary is no mapping from pieces to different ids, or lacks a token."""
    ids = list(vocabulary.values())
    if not all(type(id_) is int and id_ >= 0 for id_ in ids) or len(set(ids)) < len(ids):
        raise UserError(f"In {description}, not every piece has an id of its own: fetch it again.")
    if missing := [token for token in required if token not in vocabulary]:
        raise UserError(f"{description[0].upper()}{description[1:]} lacks {', '.join(missing)}: fetch it again.")


def _sentencepiece(content, description):
    """A SentencePiece model from its bytes."""
    require("sentencepiece", what=f"Reading {description}")
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise UserError(
            f"{description[0].upper()}{description[1:]} is damaged ({error_summary(error)}): fetch it again."
        ) from error
    return model
