"""CLIP's tokenizer in the layout of transformers, as one of the package `tokenizers` that gives the same ids.

Source: transformers 5.23, models/clip/tokenization_clip.py; Radford et al. 2021, section 2.4.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError, error_summary
from zoo.io import schemas
from zoo.typing import StrPath

if TYPE_CHECKING:
    import tokenizers

# Special tokens: key of pipeline.json -> (key of tokenizer_config.json, default of transformers).
_SPECIAL_TOKENS = {"start_id": ("bos_token", "<|startoftext|>"), "end_id": ("eos_token", "<|endoftext|>")}
_SPECIAL_TOKENS |= {"pad_id": ("pad_token", "<|endoftext|>"), "unk_id": ("unk_token", "<|endoftext|>")}
_TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def clip_tokenizer(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    bos_token: str,
    eos_token: str,
    unk_token: str,
    special_tokens: Sequence[str | tokenizers.AddedToken] = (),
) -> tokenizers.Tokenizer:
    """Build CLIP's tokenizer with the package `tokenizers`: byte pairs of lower-case words, between start and end.

    Args:
        vocabulary: dict token -> id.
        merges: list of pairs of tokens.
        bos_token: the start, a token of the vocabulary.
        eos_token: the end, a token of the vocabulary.
        unk_token: the unknown, a token of the vocabulary.
        special_tokens: strings or `tokenizers.AddedToken`s that are never split.

    Returns:
        `tokenizers.Tokenizer`, which gives the ids of transformers' CLIPTokenizer; it neither pads nor truncates.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=unk_token, fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(schemas.TOKENIZER_PATTERNS["space"]), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(schemas.TOKENIZER_PATTERNS["clip"]), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special_tokens))
    eos, bos = ((token, vocabulary[token]) for token in (eos_token, bos_token))
    tokenizer.post_processor = processors.RobertaProcessing(eos, bos, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def load_clip_tokenizer(
    folder: StrPath, vocabulary_size: int
) -> tuple[tokenizers.Tokenizer, dict[str, int], int | None]:
    """Load CLIP's tokenizer in the layout of transformers: vocab.json and merges.txt, or tokenizer.json.

    Args:
        folder: where its files are.
        vocabulary_size: of its text encoder.

    Returns:
        (`tokenizers.Tokenizer`, {"start_id", "end_id", "pad_id"}, maximal number of tokens or None).

    Raises:
        UserError: if a file is missing or damaged, or the tokens are not those of such a text encoder.
    """
    from tokenizers import AddedToken

    folder = pathlib.Path(folder)
    config = read_tokenizer_config(folder)
    vocabulary, merges, flags = _vocabulary(folder)
    flags |= {token.content: token for token in config.added_tokens_decoder.values()}
    named: dict[str, Any] = {}
    for ours, (theirs, default) in _SPECIAL_TOKENS.items():
        token = getattr(config, theirs) or default
        if isinstance(token, schemas.AddedToken):
            flags.setdefault(token.content, token)
        token = token_text(token)
        if token not in vocabulary:
            raise UserError(
                f"The {theirs} of {folder} is {token!r}, which its vocabulary does not hold: fetch it again."
            )
        named[ours] = token
    if others := [token for token in flags if token not in vocabulary]:
        raise UserError(f"{folder} adds the tokens {', '.join(others)} to the vocabulary, which is not supported.")
    if max(vocabulary.values()) >= vocabulary_size:
        raise UserError(
            f"{folder} has a token with the id {max(vocabulary.values())}, and vocab_size of the text encoder is "
            f"{vocabulary_size}: they belong to different models."
        )
    special_tokens = [
        AddedToken(
            token,
            special=True,
            **{flag: getattr(flags.get(token), flag, False) for flag in _TOKEN_FLAGS},
        )
        for token in dict.fromkeys([*named.values(), *flags])
    ]
    try:
        tokenizer = clip_tokenizer(
            vocabulary,
            merges,
            bos_token=named["start_id"],
            eos_token=named["end_id"],
            unk_token=named.pop("unk_id"),
            special_tokens=special_tokens,
        )
    except Exception as error:  # tokenizers raises many kinds; all mean that the files do not fit one another
        raise UserError(
            f"The tokenizer of {folder} cannot be used ({error_summary(error)}): fetch it again."
        ) from error
    length = config.model_max_length  # 1e30 where there is none
    length = int(length) if length is not None and 2 < length < 1e6 else None
    return tokenizer, {name: vocabulary[token] for name, token in named.items()}, length


def read_tokenizer_config(folder: StrPath) -> schemas.TokenizerConfig:
    """Read what transformers knows of a tokenizer, in its order of precedence.

    What special_tokens_map.json says counts more than tokenizer_config.json, but is not read where the latter declares
    its tokens in added_tokens_decoder (transformers 5.24, `PreTrainedTokenizerBase._from_pretrained`).

    Args:
        folder: where the files are; each may be missing.

    Returns:
        `zoo.io.schemas.TokenizerConfig`.

    Raises:
        UserError: if a file is not JSON, or an entry is not of its type.
    """
    found: dict[str, Any] = {}
    folder = pathlib.Path(folder)
    for name, what in (
        ("tokenizer_config.json", "the description of the tokenizer"),
        ("special_tokens_map.json", "the special tokens"),
    ):
        if "added_tokens_decoder" not in found:
            found |= schemas.read_object(folder / name, what, optional=True)
            checked = schemas.check(found, schemas.TokenizerConfig, folder / name)
    return checked


def token_text(token: str | schemas.AddedToken | None) -> str | None:
    """The text of a token that may have flags.

    Args:
        token: an entry of a `TokenizerConfig`.

    Returns:
        the text; None for None.
    """
    return token.content if isinstance(token, schemas.AddedToken) else token


def _vocabulary(folder):
    """(dict token -> id, list of merges, dict of the flags of added tokens); transformers 5 writes one file only."""
    whole = folder / "tokenizer.json"
    if whole.is_file() and not (folder / "vocab.json").is_file():
        content = schemas.load(whole, schemas.BPETokenizer, "the tokenizer")
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in content.model.merges]
        if bad := next((merge for merge in merges if len(merge) != 2), None):
            raise UserError(
                f"{whole} has the merge {' '.join(bad)!r:.80}, where two tokens were expected: fetch it again."
            )
        return content.model.vocab, merges, {token.content: token for token in content.added_tokens}
    vocabulary = schemas.load(folder / "vocab.json", schemas.VOCABULARY, "the vocabulary")
    path = folder / "merges.txt"
    if not path.is_file():
        raise UserError(f"There is no {path.name} in {folder}, the merges of the byte-pair encoding: fetch it.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error_summary(error)}): fetch it again.") from error
    merges = [tuple(line.strip().split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    if bad := next((merge for merge in merges if len(merge) != 2), None):
        raise UserError(f"{path} has the line {' '.join(bad)!r}, where two tokens were expected: fetch it again.")
    return vocabulary, merges, {}
