"""Marian's translation models (opus-mt and kin) in the layout of Hugging Face, converted to the zoo's and back.

A folder holds                                        which becomes
config.json                                           the arguments of `zoo.models.transformer`
model.safetensors, pytorch_model.bin or their shards  its weights, read one tensor at a time
source.spm, target.spm, vocab.json,                   `zoo.tokenizers.marian.MarianTokenizer`
target_vocab.json, tokenizer_config.json
generation_config.json                                the preset's generation_config.json

Letters: V entries of a vocabulary, d width, P positions. Marian's dense layers have (outputs, inputs), Keras' the
transpose. The tensors are, with BLOCK_MAP below naming those of a layer:

model.shared.weight, model.encoder.embed_tokens.weight,     one embedding (V, d), or one for each side, or also one
model.decoder.embed_tokens.weight, lm_head.weight           for the logits, as config.json ties them
final_logits_bias                                           (1, V); may be absent, which means zeros
model.{encoder,decoder}.embed_positions.weight              (P, d); may be absent: sinusoids, which the zoo's computes
model.{encoder,decoder}.layers.{i}.{part}.{weight,bias}     see BLOCK_MAP

Everything is checked before a weight is assigned. config.json's normalize_before, normalize_embedding and
add_final_layer_norm are ignored, as transformers does.

Source: transformers 5.23, models/marian: modeling_marian.py, configuration_marian.py, tokenization_marian.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from zoo import backends
from zoo.errors import UserError
from zoo.io import schemas
from zoo.io.tensor_files import CheckpointReader, check_folder, check_state_dict, read_float_tensor
from zoo.tokenizers.clip import read_tokenizer_config, token_text
from zoo.tokenizers.marian import MarianTokenizer
from zoo.typing import StrPath

if TYPE_CHECKING:
    import keras

# How translations are generated where neither generation_config.json nor config.json says otherwise.
GENERATION_DEFAULTS = msgspec.structs.asdict(schemas.MarianGenerationConfig())
# Those that the zoo's decoding does not apply.
_UNSUPPORTED = ("bad_words_ids", "early_stopping", "no_repeat_ngram_size", "repetition_penalty", "min_length")
# Special tokens: the zoo's argument, the key in tokenizer_config.json, and its default.
_SPECIAL_TOKENS = {"unknown": ("unk_token", "<unk>"), "end": ("eos_token", "</s>"), "pad": ("pad_token", "<pad>")}

_ACTIVATIONS = {
    "swish": "silu",
    "silu": "silu",
    "relu": "relu",
    "gelu": "gelu",
}  # Marian's -> Keras'; gelu is exact in both
_EPSILON = 1e-5  # of the normalisations; torch's default, which transformers leaves

# Layers of a block, Keras -> Marian: encoder_0_self_attention_query is model.encoder.layers.0.self_attn.q_proj.
BLOCK_MAP = {
    f"{kind}_attention_{part}": f"{module}.{letter}_proj"
    for kind, module in (("self", "self_attn"), ("cross", "encoder_attn"))
    for part, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out"))
} | {
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "inner": "fc1",
    "outer": "fc2",
    "feed_forward_norm": "final_layer_norm",
}
_SHARED, _SOURCE, _TARGET, _LOGITS, _BIAS = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
    "final_logits_bias",
)
_POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def load_marian(folder: StrPath) -> tuple[keras.Model, MarianTokenizer, dict[str, Any]]:
    """Convert a Marian model.

    Args:
        folder: in the layout of Hugging Face, see above.

    Returns:
        (`keras.Model` made by `zoo.models.transformer`, float32; `MarianTokenizer`; dict, the generation settings by
        the names of transformers).

    Raises:
        UserError: if a file is missing, damaged or of another kind of model; if a tensor is missing, left over or of
            another shape; if the zoo has no such model. Each is named.

    Example:
        >>> model, tokenizer, generation_config = load_marian("opus-mt-en-de")
    """
    folder = check_folder(
        folder,
        holds="config.json, source.spm and so on",
        single_file="give the one that holds config.json, source.spm and so on beside the weights.",
    )
    config = _config(folder)
    tokenizer, generation_config = _tokenizer_and_generation_config(folder, config)
    checkpoint = CheckpointReader(folder)
    sizes = {name: config[name] for name in ("vocab_size", "decoder_vocab_size", "d_model", "encoder_ffn_dim")}
    layers = {name: config[name] for name in ("encoder_layers", "decoder_layers")}
    schemas.check_sizes(folder / "config.json", sizes, layers, checkpoint.shapes)

    backends.import_keras()  # only now: errors so far do not wait for a framework
    from zoo.models.transformer import transformer

    try:
        model = transformer(**_model_arguments(config, logits_bias=_BIAS in checkpoint.shapes))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} describes no model that can be built: {error}") from error
    entries = [entry for entry in _entries(model) if _BIAS not in entry.names or _BIAS in checkpoint.shapes]
    _check(checkpoint, entries, config)
    for entry in entries:
        array = read_float_tensor(checkpoint, _present(entry, checkpoint)[0])
        entry.variable.assign(
            np.ascontiguousarray(array.T if entry.transposed else array).reshape(entry.variable.shape)
        )
    return model, tokenizer, generation_config


def unsupported_settings(generation_config: Mapping[str, Any]) -> list[str]:
    """Names of the settings that the zoo's decoding does not apply.

    Args:
        generation_config: what `load_marian` returned.

    Returns:
        the names.
    """
    return [name for name in _UNSUPPORTED if generation_config[name] != GENERATION_DEFAULTS[name]]


def marian_state_dict(model: keras.Model, *, max_position_embeddings: int = 512) -> dict[str, np.ndarray]:
    """The weights of a transformer of the zoo as the state dict of a transformers MarianMTModel.

    Args:
        model: what `zoo.models.transformer` returned, post-norm and with sinusoidal positions.
        max_position_embeddings: rows P of the tables of positions, as in the MarianConfig.

    Returns:
        dict name -> NumPy array, with every name that the MarianMTModel of `marian_config(model)` has.

    Raises:
        UserError: if a MarianMTModel cannot be such a model.

    Example:
        >>> peer = MarianMTModel(MarianConfig(**marian_config(model)))
        >>> peer.load_state_dict({name: torch.from_numpy(array) for name, array in marian_state_dict(model).items()})
    """
    from keras import ops

    _check_convertible(model)
    entries = _entries(model)
    known = {id(entry.variable) for entry in entries}
    if others := [variable.path for variable in model.weights if id(variable) not in known]:
        raise UserError(f"The model {model.name} also has {', '.join(others)}, which Marian's models have not.")
    state_dict = {}
    for entry in entries:
        array = np.array(ops.convert_to_numpy(entry.variable), "float32")
        array = np.ascontiguousarray((array.T if entry.transposed else array).reshape(entry.shape))
        state_dict |= {name: array for name in entry.names}
    v, d = state_dict[_LOGITS].shape
    state_dict.setdefault(_BIAS, np.zeros((1, v), "float32"))
    return state_dict | {name: _sinusoids(max_position_embeddings, d) for name in _POSITIONS}


def marian_config(model: keras.Model, *, max_position_embeddings: int = 512) -> dict[str, Any]:
    """The config.json of a MarianMTModel for a transformer of the zoo.

    Args:
        model: as in `marian_state_dict`.
        max_position_embeddings: as in `marian_state_dict`.

    Returns:
        dict, the arguments of transformers' MarianConfig but for the ids of start and end, which the model does not
        know: without the vocabulary, its start is taken to be pad_id as Marian's is, and its end 0.

    Raises:
        UserError: if a MarianMTModel cannot be such a model.
    """
    config = _check_convertible(model)
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "vocab_size": config["source_vocabulary_size"] or config["vocabulary_size"],
        "decoder_vocab_size": config["vocabulary_size"],
        "max_position_embeddings": max_position_embeddings,
        "d_model": config["hidden_dim"],
        "encoder_layers": config["num_layers"],
        "decoder_layers": config["decoder_layers"],
        **{f"{side}_ffn_dim": config["intermediate_dim"] for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": config["num_heads"] for side in ("encoder", "decoder")},
        "activation_function": config["activation"],
        "scale_embedding": config["scale_embeddings"],
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": config["source_vocabulary_size"] is None,
        "tie_word_embeddings": config["tie_embeddings"],
        "pad_token_id": config["pad_id"],
        "decoder_start_token_id": config["pad_id"],
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }


# The configuration.


def _config(folder):
    """config.json with the defaults filled in, checked."""
    path = folder / "config.json"
    described = schemas.load(path, schemas.MarianConfig, "the description of the model")
    if described.model_type != "marian":
        raise UserError(f"{path} describes a model of type {described.model_type!r}, where 'marian' was expected.")
    config = msgspec.structs.asdict(described)
    if config["share_encoder_decoder_embeddings"] or not config["decoder_vocab_size"]:
        config["decoder_vocab_size"] = config["vocab_size"]
    for name in ("ffn_dim", "attention_heads"):
        encoder, decoder = config[f"encoder_{name}"], config[f"decoder_{name}"]
        if encoder != decoder:
            raise UserError(
                f"{path} says encoder_{name} is {encoder} and decoder_{name} {decoder}, which have to be the same in "
                "the zoo's models."
            )
    if config["activation_function"] not in _ACTIVATIONS:
        raise UserError(
            f"{path} says activation_function is {config['activation_function']!r}, and the zoo's models have "
            f"{', '.join(_ACTIVATIONS)}."
        )
    return config


def _model_arguments(config, logits_bias):
    """The arguments of `zoo.models.transformer`."""
    shared, tied = config["share_encoder_decoder_embeddings"], config["tie_word_embeddings"]
    return {
        "vocabulary_size": config["decoder_vocab_size"],
        "source_vocabulary_size": None if shared else config["vocab_size"],
        "num_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"],
        "hidden_dim": config["d_model"],
        "intermediate_dim": config["encoder_ffn_dim"],
        "num_heads": config["encoder_attention_heads"],
        "activation": _ACTIVATIONS[config["activation_function"]],
        "scale_embeddings": config["scale_embedding"],
        "tie_embeddings": tied,
        "logits_bias": tied and logits_bias,  # where they are not tied, the layer of the logits has it
        "pad_id": config["pad_token_id"],
        "epsilon": _EPSILON,
        "name": "marian",
    }


def _check_convertible(model):
    """`infer_config` of a model that a MarianMTModel can be; UserError for any other."""
    from zoo.models.transformer import infer_config

    try:
        config = infer_config(model)
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}: build it with zoo.models.transformer.") from error
    fixed = {"pre_norm": False, "positions": "sinusoidal", "epsilon": _EPSILON}
    if others := [f"{name}={config[name]!r}" for name, value in fixed.items() if config[name] != value]:
        raise UserError(f"The model {model.name} has {', '.join(others)}, which Marian's models cannot have.")
    return config


# The tokenizer and the generation settings.


def _tokenizer_and_generation_config(folder, config):
    saved = read_tokenizer_config(folder)
    tokens: dict[str, Any] = {
        argument: token_text(getattr(saved, key)) or default for argument, (key, default) in _SPECIAL_TOKENS.items()
    }
    models = {}
    for side in ("source", "target"):
        path = folder / f"{side}.spm"
        if not path.is_file():
            raise UserError(f"There is no {path.name}, the SentencePiece model of the {side}, in {folder}: fetch it.")
        models[f"{side}_model"] = path.read_bytes()
    vocabulary, own = schemas.load(folder / "vocab.json", schemas.VOCABULARY, "the vocabulary"), None
    if saved.separate_vocabs:
        own = schemas.load(folder / "target_vocab.json", schemas.VOCABULARY, "the vocabulary of the target")
    generation_config = _generation_config(folder)
    tokenizer = MarianTokenizer(
        vocabulary=vocabulary,
        target_vocabulary=own,
        source_lang=saved.source_lang,
        target_lang=saved.target_lang,
        clean_up_tokenization_spaces=saved.clean_up_tokenization_spaces,
        origin=str(folder),
        **models,
        **tokens,
    )
    _check_ids(tokenizer, generation_config, config, folder)
    return tokenizer, generation_config


def _generation_config(folder):
    """What generation_config.json says, or else config.json."""
    path = folder / "generation_config.json"
    values = schemas.read_object(folder / "config.json", "the description of the model")
    values |= schemas.read_object(path, "the generation settings", optional=True)
    for name in ("eos_token_id", "forced_eos_token_id"):
        if isinstance(values.get(name), list) and len(values[name]) == 1:
            (values[name],) = values[name]
    values = {name: value for name, value in values.items() if name in GENERATION_DEFAULTS}
    path = path if path.is_file() else folder / "config.json"
    settings = schemas.check(values, schemas.MarianGenerationConfig, path, keep_null=["forced_eos_token_id"])
    bad = settings.bad_words_ids
    return msgspec.structs.asdict(settings) | {
        "suppress_tokens": sorted({*settings.suppress_tokens, *(ids[0] for ids in bad if len(ids) == 1)}),
        "bad_words_ids": [ids for ids in bad if len(ids) > 1],
    }


def _check_ids(tokenizer, generation_config, config, folder):
    """Raise UserError for ids that have no embedding, and for another padding than the tokenizer's."""
    tables = [("vocab.json", tokenizer.vocabulary, "vocab_size")]
    if tokenizer.target_vocabulary:
        tables.append(("target_vocab.json", tokenizer.target_vocabulary, "decoder_vocab_size"))
    else:
        tables.append(("vocab.json", tokenizer.vocabulary, "decoder_vocab_size"))
    for name, vocabulary, size in tables:
        if max(vocabulary.values()) >= config[size]:
            raise UserError(
                f"{folder / name} has a piece with the id {max(vocabulary.values())}, and config.json says {size} is "
                f"{config[size]}: they belong to different models."
            )
    if tokenizer.pad_id != config["pad_token_id"]:
        raise UserError(
            f"{folder / 'config.json'} says pad_token_id is {config['pad_token_id']}, and {tokenizer.pad} has the id "
            f"{tokenizer.pad_id} in vocab.json: they belong to different models."
        )
    for name in ("decoder_start_token_id", "eos_token_id"):
        id_ = generation_config[name]
        if id_ >= config["decoder_vocab_size"]:
            raise UserError(
                f"{folder} says {name} is {id_}, where an id below {config['decoder_vocab_size']} was expected."
            )


# The weights.


class _Entry(NamedTuple):
    """A Keras variable and the names of the tensor with its values; tensors of several names are equal."""

    variable: object
    names: tuple
    shape: tuple  # of the tensors
    transposed: bool = False


def _entries(model):
    """An entry for each variable of a transformer of the zoo."""
    named = {layer.name: layer for layer in model.layers}
    tied = "logits" not in named
    head = (_LOGITS,) if tied else ()
    if "embedding" in named:
        tables = [("embedding", (_SHARED, _SOURCE, _TARGET, *head))]
    else:
        tables = [("source_embedding", (_SOURCE,)), ("target_embedding", (_TARGET, *head))]
    entries = [_Entry(named[name].embeddings, names, named[name].embeddings.shape) for name, names in tables]
    v = entries[-1].shape[0]
    if not tied:
        entries.append(_Entry(named["logits"].kernel, (_LOGITS,), named["logits"].kernel.shape[::-1], transposed=True))
        entries.append(_Entry(named["logits"].bias, (_BIAS,), (1, v)))
    elif "logits_bias" in named:
        entries.append(_Entry(named["logits_bias"].embeddings, (_BIAS,), (1, v)))
    for name, layer in named.items():
        match = re.fullmatch(r"(encoder|decoder)_(\d+)_(\w+)", name)
        if not match or match[3] not in BLOCK_MAP:
            continue
        side, index, part = match.groups()
        prefix = f"model.{side}.layers.{index}.{BLOCK_MAP[part]}"
        weight, bias = (layer.gamma, layer.beta) if part.endswith("_norm") else (layer.kernel, layer.bias)
        entries.append(
            _Entry(weight, (f"{prefix}.weight",), weight.shape[::-1], transposed=True)
        )  # (d,) is its transpose
        entries.append(_Entry(bias, (f"{prefix}.bias",), bias.shape))
    return entries


def _present(entry, checkpoint):
    """The names of an entry that a checkpoint has; a file may have a tensor of several names once."""
    return [name for name in entry.names if name in checkpoint.shapes]


def _check(checkpoint, entries, config):
    """Raise UserError if names, shapes, ties or positions of a checkpoint are not those of the model."""
    expected = {name: entry.shape for entry in entries for name in _present(entry, checkpoint) or entry.names[:1]}
    table = (config["max_position_embeddings"], config["d_model"])  # (P, d)
    expected |= {name: table for name in _POSITIONS if name in checkpoint.shapes}
    check_state_dict(
        checkpoint.shapes,
        expected,
        f"the model that config.json beside {checkpoint.path} describes",
        "fetch both of the same model",
    )
    for entry in entries:
        first, *others = _present(entry, checkpoint)
        for other in others:
            if not np.array_equal(read_float_tensor(checkpoint, first), read_float_tensor(checkpoint, other)):
                raise UserError(
                    f"In {checkpoint.path}, {other} differs from {first}, and config.json says that they are one: set "
                    "share_encoder_decoder_embeddings or tie_word_embeddings to false in it if they are not."
                )
    for name in _POSITIONS:
        # Another order of sines and cosines is off by 1; bfloat16 rounds by 2e-3.
        if name in checkpoint.shapes and np.abs(read_float_tensor(checkpoint, name) - _sinusoids(*table)).max() > 1e-2:
            raise UserError(f"In {checkpoint.path}, {name} does not hold sinusoids, which the zoo's models compute.")


def _sinusoids(positions, hidden_dim):
    """(P, d) float32: sin(p / 10000^(2i/d)) in the first half, cosines in the second."""
    angle = np.arange(positions)[:, None] / 1e4 ** (2 * np.arange(hidden_dim // 2) / hidden_dim)  # (P, d/2)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype("float32")
