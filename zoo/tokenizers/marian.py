"""The tokenizer of Marian's translation models (opus-mt and kin), kept in one JSON file beside a model.

A text is cut into pieces by SentencePiece (Kudo and Richardson 2018), one model a language; the id of a piece is its
place in a vocabulary of the translation model's own, and what that does not hold becomes <unk>. Each text ends with
</s>. Models of several target languages take a code such as >>fra<< before the text, which is one token.

Ids and texts are those of transformers' MarianTokenizer. SentencePiece's own library does the cutting: its models
turned into the `tokenizers` package give the same pieces for plain text (all 93,042 sentences of Multi30k) but other
ones where marks combine with letters (decomposed Hangul, "ạ̈").
"""

import base64
import json
import pathlib
import re

from zoo.errors import UserError, nearest, reason
from zoo.io import files

KIND = "marian"
CODE = re.compile(r">>.*?<<", re.DOTALL)


class MarianTokenizer:
    """Text to ids of the source's vocabulary, and ids of the target's vocabulary to text.

    Args:
        source_model, target_model: bytes of the SentencePiece models (source.spm, target.spm).
        vocabulary: dict piece -> id; of the source, and of the target where they share one.
        target_vocabulary: dict piece -> id of a vocabulary of the target's own; None to share.
        unknown, end, pad: how these tokens are written.
        settings: dict of what else translating needs, by transformers' names: see `zoo.converters.marian.SETTINGS`.
        origin: where all this comes from, for errors.

    Attributes:
        source_vocabulary_size, vocabulary_size: the source's and the target's (the same where shared).
        pad_id: fills up sources in a batch.
        start_id: what a target begins with.
        end_id: what a target ends with.
        suppressed_ids: list of the ids that must never be written.
        settings: as given.

    Raises:
        UserError: if a SentencePiece model cannot be read, a vocabulary lacks one of the three tokens, or the package
            sentencepiece is missing.
    """

    def __init__(
        self,
        *,
        source_model,
        target_model,
        vocabulary,
        target_vocabulary=None,
        unknown="<unk>",
        end="</s>",
        pad="<pad>",
        settings=None,
        origin="the tokenizer",
    ):
        self.source_model, self.target_model = source_model, target_model
        self.vocabulary, self.target_vocabulary = vocabulary, target_vocabulary
        self.unknown, self.end, self.pad = unknown, end, pad
        self.settings = settings or {}
        for side, words in (("source", vocabulary), ("target", self._target_words)):
            _check_vocabulary(words, (unknown, end, pad), f"the vocabulary of the {side} of {origin}")
        self._source = _sentencepiece(source_model, f"the SentencePiece model source.spm of {origin}")
        self._target = _sentencepiece(target_model, f"the SentencePiece model target.spm of {origin}")
        self._target_pieces = {place: piece for piece, place in self._target_words.items()}
        self._specials = re.compile(f"({'|'.join(map(re.escape, (unknown, end, pad)))})")

    @property
    def _target_words(self):
        return self.vocabulary if self.target_vocabulary is None else self.target_vocabulary

    @property
    def source_vocabulary_size(self):
        return len(self.vocabulary)

    @property
    def vocabulary_size(self):
        return len(self._target_words)

    @property
    def pad_id(self):
        return self.vocabulary[self.pad]

    @property
    def start_id(self):
        return self.settings.get("decoder_start_token_id", self._target_words[self.pad])

    @property
    def end_id(self):
        return self.settings.get("eos_token_id", self._target_words[self.end])

    @property
    def suppressed_ids(self):
        return self.settings.get("suppress_tokens", [self._target_words[self.pad]])

    @property
    def languages(self):
        """Codes of the target languages of a model of several, e.g. ["fra", "ita"]; [] for a model of one."""
        return sorted(piece[2:-2] for piece in self.vocabulary if CODE.fullmatch(piece))

    def encode(self, text, language=None):
        """Ids of a text to translate, a list of int that ends with </s>.

        Args:
            text: in the source's language; it may begin with a code such as >>fra<<.
            language: one of `languages`, to put its code before the text; None to leave the text as it is.

        Raises:
            UserError: if the model has no such language.
        """
        if language is not None:
            if language not in self.languages:
                raise UserError(
                    f"The model has no target language {language!r}: choose one of "
                    f"{', '.join(self.languages) or '(none: it has one only)'}.{nearest(language, self.languages)}"
                )
            text = f">>{language}<< {text}"
        return self._ids(text, self._source, self.vocabulary)

    def encode_target(self, text):
        """Ids of a translation, a list of int that ends with </s>: what a model should write after `start_id`."""
        return self._ids(text, self._target, self._target_words)

    def decode(self, ids):
        """The text of ids that a model wrote; <unk>, </s>, <pad> and ids beyond the vocabulary are left out."""
        pieces = [self._target_pieces.get(int(place), self.unknown) for place in ids]
        pieces = [piece for piece in pieces if piece not in (self.unknown, self.end, self.pad)]
        # As transformers does: with one vocabulary for both sides, the source's model joins the pieces.
        model = self._source if self.target_vocabulary is None else self._target
        return model.decode_pieces(pieces).replace("▁", " ").strip()

    def pieces(self, ids):
        """The piece of each id of a source, its space written as one, for the axes of a picture."""
        return _named(ids, {place: piece for piece, place in self.vocabulary.items()}, self.unknown)

    def target_pieces(self, ids):
        """The piece of each id of a target."""
        return _named(ids, self._target_pieces, self.unknown)

    def _ids(self, text, model, vocabulary):
        pieces = []
        for part in self._specials.split(text):  # <unk>, </s> and <pad> in a text are the tokens, as in transformers
            if self._specials.fullmatch(part):
                pieces.append(part)
            elif part:
                code = CODE.match(part)
                pieces += [code[0]] if code else []
                pieces += model.encode(part[code.end() :] if code else part, out_type=str)
        unknown = vocabulary[self.unknown]
        return [vocabulary.get(piece, unknown) for piece in pieces] + [vocabulary[self.end]]

    def save(self, path):
        """Write the tokenizer as JSON, atomically; its SentencePiece models are in it in base64."""
        content = {
            "kind": KIND,
            "unknown": self.unknown,
            "end": self.end,
            "pad": self.pad,
            "settings": self.settings,
            "source_model": base64.b64encode(self.source_model).decode(),
            "target_model": base64.b64encode(self.target_model).decode(),
            "vocabulary": self.vocabulary,
            "target_vocabulary": self.target_vocabulary,
        }
        files.write_json(path, content)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises:
            UserError: if the file is missing or holds something else.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise UserError(f"There is no tokenizer at {path}: it lies beside its model as <name>.tokenizer.json.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("kind") != KIND:
                raise ValueError("of another kind")
            for side in ("source_model", "target_model"):
                content[side] = base64.b64decode(content[side], validate=True)
            return cls(**content, origin=path)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(
                f"{path} is not the tokenizer of a Marian model ({type(error).__name__}: {reason(error)}): convert the "
                "model again."
            ) from error


def _named(ids, pieces, unknown):
    return [pieces.get(int(place), unknown).replace("▁", " ") for place in ids]


def _check_vocabulary(vocabulary, needed, what):
    """Refuse a vocabulary that is no mapping from pieces to different ids, or lacks a token."""
    ids = list(vocabulary.values())
    if not all(type(place) is int and place >= 0 for place in ids) or len(set(ids)) < len(ids):
        raise UserError(f"In {what}, not every piece has an id of its own: fetch it again.")
    if missing := [token for token in needed if token not in vocabulary]:
        raise UserError(f"{what[0].upper()}{what[1:]} lacks {', '.join(missing)}: fetch it again.")


def _sentencepiece(content, what):
    """A SentencePiece model of its bytes."""
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(f"Reading {what} needs the package sentencepiece: run `pip install sentencepiece`.") from error
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise UserError(f"{what[0].upper()}{what[1:]} is damaged ({reason(error)}): fetch it again.") from error
    return model
