"""One byte-pair tokenizer for both sides of a translation, kept in one JSON file of the `tokenizers` package."""

import pathlib

from zoo.errors import UserError, reason
from zoo.io import files

PAD, START, END = "<pad>", "<s>", "</s>"


class JointTokenizer:
    """Text to ids and ids to text, the same pieces for both languages (Sennrich et al. 2016, on bytes as in GPT-2).

    Args:
        tokenizer: `tokenizers.Tokenizer` whose vocabulary holds <pad>, <s> and </s>.

    Attributes:
        vocabulary_size, source_vocabulary_size: entries.
        pad_id: fills up sources in a batch.
        start_id: what a target begins with.
        end_id: what a source or target ends with.
        suppressed_ids: ids that must never be written.
        settings: what else translating needs; nothing.

    Raises:
        UserError: if one of the three is missing.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.settings = tokenizer, {}
        self.pad_id, self.start_id, self.end_id = (tokenizer.token_to_id(token) for token in (PAD, START, END))
        if None in (self.pad_id, self.start_id, self.end_id):
            raise UserError(f"This is no tokenizer of a translation model: it has not all of {PAD}, {START} and {END}.")
        self.suppressed_ids = [self.pad_id, self.start_id]
        self.vocabulary_size = self.source_vocabulary_size = tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts, *, vocabulary_size):
        """Make one from sentences of both languages.

        Args:
            texts: list of str.
            vocabulary_size: the most entries, 3 marks and 256 bytes included.

        Raises:
            UserError: if the vocabulary is too small for its bytes.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocabulary_size < 259:
            raise UserError(
                f"A joint vocabulary has at least 259 entries, one for each byte and 3 marks, got {vocabulary_size}."
            )
        tokenizer = Tokenizer(models.BPE())
        # A space goes before the first word too, so that a word is one piece wherever it stands.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocabulary_size,
                special_tokens=[PAD, START, END],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        return cls(tokenizer)

    def encode(self, text):
        """Ids of a sentence, a list of int that ends with </s>; marks written in the text are mere text."""
        return self.encode_all([text])[0]

    def encode_all(self, texts):
        """`encode` of each text of a list, much faster than one by one."""
        pieces = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        marks = {self.pad_id, self.start_id, self.end_id}
        return [[id_ for id_ in piece.ids if id_ not in marks] + [self.end_id] for piece in pieces]

    encode_target = encode  # both sides share one vocabulary

    def decode(self, ids):
        """Text of ids, without marks and without the space before the first word."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def pieces(self, ids):
        """The text of each id, for the axes of a picture."""
        return [self.tokenizer.decode([id_], skip_special_tokens=False) for id_ in ids]

    target_pieces = pieces

    def save(self, path):
        """Write JSON, atomically."""
        files.write_text(path, self.tokenizer.to_str(pretty=True) + "\n")

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises:
            UserError: if the file is missing or is no tokenizer of a translation model.
        """
        from tokenizers import Tokenizer

        path = pathlib.Path(path)
        if not path.is_file():
            raise UserError(f"There is no tokenizer at {path}: it lies beside its model as <name>.tokenizer.json.")
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the package raises plain Exception
            raise UserError(f"{path} is not a tokenizer ({reason(error)}): fetch or make it again.") from error
        return cls(tokenizer)
