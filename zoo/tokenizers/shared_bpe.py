"""A byte-pair tokenizer that both languages of a translation model share, saved as JSON of the package `tokenizers`."""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from zoo.errors import UserError
from zoo.io import files
from zoo.typing import StrPath

if TYPE_CHECKING:
    import tokenizers

PAD_TOKEN, START_TOKEN, END_TOKEN = "<pad>", "<s>", "</s>"
SPLITS_PER_WORD = 8  # of BPE-dropout, in a call


class SharedBPETokenizer:
    """Token ids of text and back, with one vocabulary for both languages (Sennrich et al. 2016, on bytes as in GPT-2).

    Args:
        tokenizer: `tokenizers.Tokenizer` whose vocabulary has <pad>, <s> and </s>.

    Attributes:
        vocabulary_size: entries.
        source_vocabulary_size: the same.
        pad_id: pads sources in a batch.
        start_id: the first token of a target.
        end_id: the last token of a source or target.
        suppress_tokens: ids that must not be generated.

    Raises:
        UserError: if one of the three is missing.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        pad_id, start_id, end_id = (tokenizer.token_to_id(token) for token in (PAD_TOKEN, START_TOKEN, END_TOKEN))
        if pad_id is None or start_id is None or end_id is None:
            raise UserError(
                f"This is no tokenizer of a translation model: it does not have all of {PAD_TOKEN}, {START_TOKEN} and "
                f"{END_TOKEN}."
            )
        self.pad_id, self.start_id, self.end_id = pad_id, start_id, end_id
        self.suppress_tokens = [self.pad_id, self.start_id]
        self.vocabulary_size = self.source_vocabulary_size = tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary_size: int) -> Self:
        """Train on sentences of both languages.

        Args:
            texts: the sentences.
            vocabulary_size: most entries, 3 special tokens and 256 bytes included.

        Returns:
            the tokenizer.

        Raises:
            UserError: if the vocabulary is too small for its bytes.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocabulary_size < 259:
            raise UserError(
                "A shared vocabulary has at least 259 entries, one for each byte and 3 special tokens, got "
                f"{vocabulary_size}."
            )
        tokenizer = Tokenizer(models.BPE())
        # A space goes before the first word too, so that a word has the same tokens wherever it stands.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocabulary_size,
                special_tokens=[PAD_TOKEN, START_TOKEN, END_TOKEN],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Encode a sentence; special tokens in the text are ordinary text.

        Args:
            text: a sentence of either language.

        Returns:
            token ids that end with </s>.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, dropout: float = 0.0, seed: int | str = 0) -> list[list[int]]:
        """`encode` each of several texts, much faster than one at a time.

        Args:
            texts: the sentences.
            dropout: probability of leaving a merge of two pieces out where it could be made, in [0, 1): BPE-dropout
                (Provilkov et al. 2020, algorithm 1), for training. A word is split anew up to 8 times; if it occurs
                more often, its occurrences share these.
            seed: of the dropout; the package `tokenizers` has BPE-dropout too, without a seed.

        Returns:
            token ids of each.
        """
        if dropout:
            return self._encode_with_dropout(texts, dropout, random.Random(seed).random)
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        special = {self.pad_id, self.start_id, self.end_id}
        return [[id_ for id_ in encoding.ids if id_ not in special] + [self.end_id] for encoding in encodings]

    def _encode_with_dropout(self, texts, dropout, draw):
        model = json.loads(self.tokenizer.to_str())["model"]
        ids = model["vocab"]
        ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        splits, uses = collections.defaultdict(list), collections.Counter()
        encoded = []
        for text in texts:
            encoded.append([])
            for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text):
                known = splits[word]
                if len(known) < SPLITS_PER_WORD:
                    known.append([ids[piece] for piece in _split(word, ranks, dropout, draw)])
                encoded[-1] += known[uses[word] % SPLITS_PER_WORD]
                uses[word] += 1
            encoded[-1].append(self.end_id)
        return encoded

    encode_target = encode  # both languages share one vocabulary

    def decode(self, ids: Iterable[int]) -> str:
        """Decode tokens.

        Args:
            ids: token ids.

        Returns:
            the text, without special tokens and without the space before the first word.
        """
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The text of each token, e.g. for the axes of a plot.

        Args:
            ids: token ids.

        Returns:
            a text for each.
        """
        return [self.tokenizer.decode([id_], skip_special_tokens=False) for id_ in ids]

    target_ids_to_tokens = ids_to_tokens

    def save(self, path: StrPath) -> None:
        """Write JSON, atomically.

        Args:
            path: of the file.
        """
        files.write_text(path, self.tokenizer.to_str(pretty=True) + "\n")


def _split(word, ranks, dropout, draw):
    """Pieces of a word: the first of the merges that are not dropped, again and again."""
    symbols = list(word)
    while True:
        merges = [
            (rank, place)
            for place, pair in enumerate(zip(symbols, symbols[1:]))
            if (rank := ranks.get(pair)) is not None and draw() >= dropout
        ]
        if not merges:
            return symbols
        _, place = min(merges)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
