"""Sentences in, sentences out: a transformer, its tokenizer and a decoder together."""

import json
import pathlib

import numpy as np

from zoo.errors import UserError
from zoo.generation.seq2seq import Decoder
from zoo.io import files
from zoo.models.transformer import attention_model, attention_names, numbers_of
from zoo.tokenizers.marian import KIND, MarianTokenizer
from zoo.tokenizers.shared_bpe import JointTokenizer


class Translator:
    """Translates with a model and the tokenizer it was trained with.

    Args:
        model: a transformer encoder-decoder.
        tokenizer: `JointTokenizer` or `MarianTokenizer`.

    Raises:
        ValueError: if the model is no transformer encoder-decoder.
        UserError: if the two do not belong together.
    """

    def __init__(self, model, tokenizer):
        numbers = numbers_of(model)
        sizes = (numbers["source_vocabulary_size"] or numbers["vocabulary_size"], numbers["vocabulary_size"])
        own = (tokenizer.source_vocabulary_size, tokenizer.vocabulary_size)
        # Marian fills its embeddings up to a round number.
        fits = own == sizes or (isinstance(tokenizer, MarianTokenizer) and own[0] <= sizes[0] and own[1] <= sizes[1])
        if not fits or tokenizer.pad_id != numbers["pad_id"]:
            raise UserError(
                f"The tokenizer has {own[1]:,} entries and pads with {tokenizer.pad_id}, the model has {sizes[1]:,} "
                f"and expects {numbers['pad_id']}: this tokenizer belongs to another model."
            )
        self.model, self.tokenizer = model, tokenizer
        self.decoder = Decoder(
            model, start_id=tokenizer.start_id, end_id=tokenizer.end_id, suppressed=tokenizer.suppressed_ids
        )

    def translate(self, sentences, *, beams=None, length_penalty=None, batch_size=64, **options):
        """Translate a list of sentences; returns a list of str. Empty sentences stay empty.

        Args:
            sentences: list of str.
            beams: 1 is greedy; None for what a converted model was published with, else 5.
            length_penalty: see `Decoder.decode`; None for what a converted model was published with, else 1.
            batch_size: sentences decoded at once, those of like length together.
            **options: of `Decoder.decode`; `max_length` defaults to twice the longest source and 20.
        """
        settings = self.tokenizer.settings
        beams = settings.get("num_beams", 5) if beams is None else beams
        if length_penalty is None:
            length_penalty = settings.get("length_penalty", 1.0)
        full = [place for place, sentence in enumerate(sentences) if sentence.strip()]
        sources = [self.tokenizer.encode(sentences[place].strip()) for place in full]
        texts = [""] * len(sentences)
        if sources:
            options = {"max_length": 2 * max(map(len, sources)) + 20, "length_penalty": length_penalty} | options
            for place, ids in zip(full, self.decoder.decode(sources, beams=beams, batch_size=batch_size, **options)):
                texts[place] = self.tokenizer.decode(ids)
        return texts

    def attention(self, source, translation):
        """Where the cross-attentions of a translation look.

        Args:
            source, translation: one sentence each.

        Returns:
            ({name: weights (N, T, S)}, the S pieces of the source, the T pieces that are written); row t belongs to
            the step that writes piece t.
        """
        read, written = self.tokenizer.encode(source.strip()), self.tokenizer.encode_target(translation)
        inputs = [np.array([read], "int32"), np.array([[self.tokenizer.start_id, *written[:-1]]], "int32")]
        weights = {
            name: np.asarray(attention_model(self.model, name).predict_on_batch(inputs))[0]
            for name in attention_names(self.model)
            if name.endswith("cross_attention")
        }
        return weights, self.tokenizer.pieces(read), self.tokenizer.target_pieces(written)


def load_translator(path):
    """Load a translation model and the tokenizer beside it, `<name>.tokenizer.json`.

    Raises:
        UserError: if a file is missing or unusable, is no translation model, or the two do not belong together.
    """
    path = pathlib.Path(path)
    model, beside = files.load_model(path), path.with_suffix(".tokenizer.json")
    try:
        numbers_of(model)
    except ValueError as error:
        raise UserError(f"{path} is not a translation model: give one of recipes/transformer_multi30k.py.") from error
    card = files.read_card(path) or {}
    if "tokenizer_sha256" in card and beside.is_file() and files.sha256(beside) != card["tokenizer_sha256"]:
        raise UserError(f"{beside} is not the tokenizer that the card of {path.name} describes: fetch it again.")
    return Translator(model, load_tokenizer(beside))


def load_tokenizer(path):
    """The tokenizer of a translation model, whatever its kind.

    Raises:
        UserError: if the file is missing or is no such tokenizer.
    """
    try:
        marian = json.loads(pathlib.Path(path).read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        marian = False  # what is wrong is said by the one that follows
    return (MarianTokenizer if marian else JointTokenizer).load(path)
