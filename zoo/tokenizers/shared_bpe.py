"""A byte-pair tokenizer that both languages of a translation model share, saved as JSON of the package `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from zoo.errors import UserError
from zoo.io import files
from zoo.typing import StrPath

if TYPE_CHECKING:
    import tokenizers

PAD_TOKEN, START_TOKEN, END_TOKEN = "<pad>", "<s>", "</s>"


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

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` each of several texts, much faster than one at a time.

        Args:
            texts: the sentences.

        Returns:
            token ids of each.
        """
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        special = {self.pad_id, self.start_id, self.end_id}
        return [[id_ for id_ in encoding.ids if id_ not in special] + [self.end_id] for encoding in encodings]

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
