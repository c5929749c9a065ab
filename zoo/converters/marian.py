"""Marian's translation models (opus-mt and kin), as Hugging Face keeps them, into ours; and their weights back.

A folder holds                                        which becomes
config.json                                           the numbers of `zoo.models.transformer`
model.safetensors, pytorch_model.bin or their shards  its weights, read one tensor at a time
source.spm, target.spm, vocab.json,                   `zoo.tokenizers.marian.MarianTokenizer`
target_vocab.json, tokenizer_config.json
generation_config.json                                its `settings`

Letters: V entries of a vocabulary, d width, P positions. Marian's dense layers hold (outputs, inputs), ours the
transpose. The tensors are, with PARTS below naming those of a layer:

model.shared.weight, model.encoder.embed_tokens.weight,     one embedding (V, d), or one for each side, or also one
model.decoder.embed_tokens.weight, lm_head.weight           for the logits, as config.json ties them
final_logits_bias                                           (1, V); may be absent, which means zeros
model.{encoder,decoder}.embed_positions.weight              (P, d); may be absent: sinusoids, which ours computes
model.{encoder,decoder}.layers.{i}.{part}.{weight,bias}     see PARTS

Everything is checked before a weight is set. config.json's normalize_before, normalize_embedding and
add_final_layer_norm are not looked at, as transformers does not.

Source: transformers 5.23, models/marian: modeling_marian.py, configuration_marian.py, tokenization_marian.py.
"""

import pathlib
import re
import shlex
from typing import NamedTuple

import numpy as np

from zoo import backends
from zoo.errors import UserError
from zoo.io import files
from zoo.io.tensor_files import Checkpoint, checked, read_floats, read_json, refuse_differences
from zoo.tokenizers.marian import MarianTokenizer

# What is read of config.json, and what MarianConfig takes where it is silent.
CONFIG = {
    "vocab_size": 58101,
    "decoder_vocab_size": 0,  # vocab_size
    "max_position_embeddings": 1024,
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "scale_embedding": False,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "pad_token_id": 58100,
}
# How a translation is written, kept as the tokenizer's settings: read of generation_config.json, else of config.json,
# else this (defaults of MarianConfig and GenerationConfig; for lengths, of MarianTokenizer).
SETTINGS = {
    "decoder_start_token_id": 58100,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,  # written where max_length is reached; None for none
    "suppress_tokens": [],  # ids never written; takes in the bad_words_ids of one token
    "bad_words_ids": [],  # of several tokens: sequences never written
    "renormalize_logits": False,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "min_length": 0,
    "max_length": 512,
}
# What is read of tokenizer_config.json: how three tokens are written, and more settings.
TOKENS = {"unknown": ("unk_token", "<unk>"), "end": ("eos_token", "</s>"), "pad": ("pad_token", "<pad>")}
TOKENIZER_SETTINGS = {"source_lang": None, "target_lang": None, "model_max_length": 512}

ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu"}  # theirs -> ours; gelu is exact in both
EPSILON = 1e-5  # of the normalisations; torch's default, which transformers leaves

# Parts of a layer, ours -> theirs: encoder_0_self_attention_query is model.encoder.layers.0.self_attn.q_proj.
PARTS = {
    f"{ours}_attention_{part}": f"{theirs}.{letter}_proj"
    for ours, theirs in (("self", "self_attn"), ("cross", "encoder_attn"))
    for part, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out"))
} | {
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "inner": "fc1",
    "outer": "fc2",
    "feed_forward_norm": "final_layer_norm",
}
SHARED, SOURCE, TARGET, LOGITS, BIAS = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
    "final_logits_bias",
)
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def convert(folder, path, say=print):
    """Write a Marian model as `path` (a .keras file) and its tokenizer beside it, `<name>.tokenizer.json`.

    Args:
        folder: in the layout of Hugging Face, see above.
        path: where the model goes; what was there is replaced.
        say: is given each line of what was done.

    Raises:
        UserError: as `from_marian`; if `path` does not end with .keras, or a card there describes another file.
    """
    path = pathlib.Path(path)
    if path.suffix != ".keras":
        raise UserError(f"The file to write is {path}: give it a name that ends with .keras.")
    if files.read_card(path):
        raise UserError(f"{path.with_suffix('.json')} is the card of another model: choose another name than {path}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = from_marian(folder)
    tokenizer.save(files.tokenizer_path(path))
    files.save_model(model, path)
    for line in _told(path, model, tokenizer):
        say(line)


def _told(path, model, tokenizer):
    """What was converted, in lines."""
    from zoo.models.transformer import numbers_of

    numbers, settings = numbers_of(model), tokenizer.settings
    layers = f"{numbers['num_layers']} + {numbers['decoder_layers']} layers"
    sizes = f"width {numbers['width']}, inner width {numbers['inner']}, {numbers['num_heads']} heads"
    yield f"{path}: {model.count_params():,} parameters, {layers}, {sizes}, {numbers['activation']}"
    pieces = f"{tokenizer.vocabulary_size:,} pieces"
    if tokenizer.target_vocabulary:
        pieces += f" ({tokenizer.source_vocabulary_size:,} of the source)"
    if settings["source_lang"] and settings["target_lang"]:
        pieces += f", {settings['source_lang']} to {settings['target_lang']}"
    if tokenizer.languages:
        pieces += f", with codes for {', '.join(tokenizer.languages)}"
    yield f"{files.tokenizer_path(path)}: {pieces}"
    beams = f"{settings['num_beams']} beams, length penalty {settings['length_penalty']:g}"
    yield f"Settings: {beams}, at most {settings['max_length']} tokens"
    yield f'Translate with it: zoo translate {shlex.quote(str(path))} "…"'


def from_marian(folder):
    """Build our model and tokenizer of a Marian model.

    Args:
        folder: in the layout of Hugging Face, see above.

    Returns:
        (`keras.Model` made by `zoo.models.transformer`, float32, `MarianTokenizer`).

    Raises:
        UserError: if a file is missing, damaged or of another kind of model; if a tensor is missing, left over or of
            another shape; if the model is none that ours can be. Each is named.

    Example:
        >>> model, tokenizer = from_marian("opus-mt-en-de")
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}: give the one that holds config.json, source.spm and so on, fetched with `hf "
            "download NAME --local-dir FOLDER`."
        )
    config = _config(folder)
    tokenizer = _tokenizer(folder, config)
    checkpoint = Checkpoint(folder)

    backends.start()  # only now: what was wrong so far was said without the wait for a framework
    from zoo.models.transformer import transformer

    try:
        model = transformer(**_numbers(config, logits_bias=BIAS in checkpoint.shapes))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} describes no model that can be built: {error}") from error
    rows = [row for row in _rows(model) if BIAS not in row.names or BIAS in checkpoint.shapes]
    _check(checkpoint, rows, config)
    for row in rows:
        array = read_floats(checkpoint, _present(row, checkpoint)[0])
        row.variable.assign(np.ascontiguousarray(array.T if row.transposed else array).reshape(row.variable.shape))
    return model, tokenizer


def to_marian(model, *, positions=512):
    """The weights of one of our transformers as the state dict of a transformers MarianMTModel.

    Args:
        model: what `zoo.models.transformer` returned, post-norm and with sinusoidal positions.
        positions: rows P of the tables of positions: max_position_embeddings of the MarianMTModel.

    Returns:
        dict name -> NumPy array, with every name that the MarianMTModel of `marian_config(model)` has.

    Raises:
        UserError: if a MarianMTModel cannot be such a model.

    Example:
        >>> peer = MarianMTModel(MarianConfig(**marian_config(model)))
        >>> peer.load_state_dict({name: torch.from_numpy(array) for name, array in to_marian(model).items()})
    """
    from keras import ops

    _refuse_other_models(model)
    rows = _rows(model)
    known = {id(row.variable) for row in rows}
    if others := [variable.path for variable in model.weights if id(variable) not in known]:
        raise UserError(f"The model {model.name} also holds {', '.join(others)}, for which Marian's have no place.")
    state_dict = {}
    for row in rows:
        array = np.array(ops.convert_to_numpy(row.variable), "float32")
        array = np.ascontiguousarray((array.T if row.transposed else array).reshape(row.shape))
        state_dict |= {name: array for name in row.names}
    v, d = state_dict[LOGITS].shape
    state_dict.setdefault(BIAS, np.zeros((1, v), "float32"))
    return state_dict | {name: _sinusoids(positions, d) for name in POSITIONS}


def marian_config(model, *, positions=512):
    """What config.json of a MarianMTModel says for one of our transformers.

    Args:
        model, positions: as in `to_marian`.

    Returns:
        dict, the arguments of transformers' MarianConfig but for the ids of start and end, which the model does not
        know: without the vocabulary, its start is taken to be pad_id as Marian's is, and its end 0.

    Raises:
        UserError: if a MarianMTModel cannot be such a model.
    """
    numbers = _refuse_other_models(model)
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "vocab_size": numbers["source_vocabulary_size"] or numbers["vocabulary_size"],
        "decoder_vocab_size": numbers["vocabulary_size"],
        "max_position_embeddings": positions,
        "d_model": numbers["width"],
        "encoder_layers": numbers["num_layers"],
        "decoder_layers": numbers["decoder_layers"],
        **{f"{side}_ffn_dim": numbers["inner"] for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": numbers["num_heads"] for side in ("encoder", "decoder")},
        "activation_function": numbers["activation"],
        "scale_embedding": numbers["scale_embeddings"],
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": numbers["source_vocabulary_size"] is None,
        "tie_word_embeddings": numbers["tie_embeddings"],
        "pad_token_id": numbers["pad_id"],
        "decoder_start_token_id": numbers["pad_id"],
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }


# The configuration.


def _config(folder):
    """config.json with the defaults filled in, checked."""
    path = folder / "config.json"
    config = read_json(path, "the description of the model")
    if config.get("model_type") != "marian":
        raise UserError(f"{path} describes a model of type {config.get('model_type')!r}, where 'marian' was expected.")
    config |= {name: checked(path, name, config.get(name), default) for name, default in CONFIG.items()}
    if config["share_encoder_decoder_embeddings"] or not config["decoder_vocab_size"]:
        config["decoder_vocab_size"] = config["vocab_size"]
    for name in ("ffn_dim", "attention_heads"):
        ours, theirs = config[f"encoder_{name}"], config[f"decoder_{name}"]
        if ours != theirs:
            raise UserError(
                f"{path} says encoder_{name} is {ours} and decoder_{name} {theirs}, which have to be the same in our "
                "models."
            )
    if config["activation_function"] not in ACTIVATIONS:
        raise UserError(
            f"{path} says activation_function is {config['activation_function']!r}, and our models have "
            f"{', '.join(ACTIVATIONS)}."
        )
    return config


def _numbers(config, logits_bias):
    """The arguments of `zoo.models.transformer`."""
    shared, tied = config["share_encoder_decoder_embeddings"], config["tie_word_embeddings"]
    return {
        "vocabulary_size": config["decoder_vocab_size"],
        "source_vocabulary_size": None if shared else config["vocab_size"],
        "num_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"],
        "width": config["d_model"],
        "inner": config["encoder_ffn_dim"],
        "num_heads": config["encoder_attention_heads"],
        "activation": ACTIVATIONS[config["activation_function"]],
        "scale_embeddings": config["scale_embedding"],
        "tie_embeddings": tied,
        "logits_bias": tied and logits_bias,  # where they are not tied, the layer of the logits has it
        "pad_id": config["pad_token_id"],
        "epsilon": EPSILON,
        "name": "marian",
    }


def _refuse_other_models(model):
    """The numbers of a model that a MarianMTModel can be; any other is refused."""
    from zoo.models.transformer import numbers_of

    try:
        numbers = numbers_of(model)
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}: build it with zoo.models.transformer.") from error
    fixed = {"pre_norm": False, "positions": "sinusoidal", "epsilon": EPSILON}
    if others := [f"{name}={numbers[name]!r}" for name, value in fixed.items() if numbers[name] != value]:
        raise UserError(f"The model {model.name} has {', '.join(others)}, which Marian's models cannot have.")
    return numbers


# The tokenizer and the settings.


def _tokenizer(folder, config):
    path = folder / "tokenizer_config.json"
    saved, tokens = _json_or_nothing(path, "the description of the tokenizer"), {}
    for ours, (theirs, default) in TOKENS.items():
        token = saved.get(theirs)
        token = token.get("content") if isinstance(token, dict) else token  # {"content": "<pad>", "lstrip": …}
        tokens[ours] = checked(path, theirs, token, default)
    models = {}
    for side in ("source", "target"):
        path = folder / f"{side}.spm"
        if not path.is_file():
            raise UserError(f"There is no {path.name}, the SentencePiece model of the {side}, in {folder}: fetch it.")
        models[f"{side}_model"] = path.read_bytes()
    vocabulary, own = read_json(folder / "vocab.json", "the vocabulary"), None
    if saved.get("separate_vocabs"):
        own = read_json(folder / "target_vocab.json", "the vocabulary of the target")
    settings = _settings(folder, config, saved)
    tokenizer = MarianTokenizer(
        vocabulary=vocabulary, target_vocabulary=own, settings=settings, origin=folder, **models, **tokens
    )
    _check_ids(tokenizer, config, folder)
    return tokenizer


def _settings(folder, config, tokenizer_config):
    path = folder / "generation_config.json"
    found = config | _json_or_nothing(path, "how translations are written")
    settings = {}
    for name, default in SETTINGS.items():
        value = found.get(name)
        if name in ("eos_token_id", "forced_eos_token_id") and isinstance(value, list) and len(value) == 1:
            value = value[0]
        none_forced = name == "forced_eos_token_id" and name in found and value is None
        as_it_is = none_forced or (name == "early_stopping" and value == "never")
        settings[name] = value if as_it_is else checked(path if path.is_file() else folder, name, value, default)
    bad = settings["bad_words_ids"]
    if not all(isinstance(ids, list) and ids and all(type(place) is int for place in ids) for ids in bad):
        raise UserError(f"{folder} says bad_words_ids is {bad!r}, where a list of lists of ids was expected.")
    settings["suppress_tokens"] = sorted({*settings["suppress_tokens"], *(ids[0] for ids in bad if len(ids) == 1)})
    settings["bad_words_ids"] = [ids for ids in bad if len(ids) > 1]
    return settings | {name: tokenizer_config.get(name, default) for name, default in TOKENIZER_SETTINGS.items()}


def _check_ids(tokenizer, config, folder):
    """Refuse ids that the model has no embedding for, and another padding than the tokenizer's."""
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
        place = tokenizer.settings[name]
        if place >= config["decoder_vocab_size"]:
            raise UserError(
                f"{folder} says {name} is {place}, where an id below {config['decoder_vocab_size']} was expected."
            )


def _json_or_nothing(path, what):
    return read_json(path, what) if path.is_file() else {}


# The weights.


class Row(NamedTuple):
    """A variable of ours and the tensors that hold its numbers, all of them the same where there are several."""

    variable: object
    names: tuple
    shape: tuple  # of the tensors
    transposed: bool = False


def _rows(model):
    """A row for each variable of a transformer of ours."""
    made = {layer.name: layer for layer in model.layers}
    tied = "logits" not in made
    head = (LOGITS,) if tied else ()
    if "embedding" in made:
        tables = [("embedding", (SHARED, SOURCE, TARGET, *head))]
    else:
        tables = [("source_embedding", (SOURCE,)), ("target_embedding", (TARGET, *head))]
    rows = [Row(made[name].embeddings, names, made[name].embeddings.shape) for name, names in tables]
    v = rows[-1].shape[0]
    if not tied:
        rows.append(Row(made["logits"].kernel, (LOGITS,), made["logits"].kernel.shape[::-1], transposed=True))
        rows.append(Row(made["logits"].bias, (BIAS,), (1, v)))
    elif "logits_bias" in made:
        rows.append(Row(made["logits_bias"].embeddings, (BIAS,), (1, v)))
    for name, layer in made.items():
        match = re.fullmatch(r"(encoder|decoder)_(\d+)_(\w+)", name)
        if not match or match[3] not in PARTS:
            continue
        side, place, part = match.groups()
        theirs = f"model.{side}.layers.{place}.{PARTS[part]}"
        weight, bias = (layer.gamma, layer.beta) if part.endswith("_norm") else (layer.kernel, layer.bias)
        rows.append(Row(weight, (f"{theirs}.weight",), weight.shape[::-1], transposed=True))  # (d,) is its transpose
        rows.append(Row(bias, (f"{theirs}.bias",), bias.shape))
    return rows


def _present(row, checkpoint):
    """The names of a row that a checkpoint has; a file may keep a tensor of several names once."""
    return [name for name in row.names if name in checkpoint.shapes]


def _check(checkpoint, rows, config):
    """Refuse a checkpoint whose names, shapes, ties or positions are not those of the model."""
    expected = {name: row.shape for row in rows for name in _present(row, checkpoint) or row.names[:1]}
    table = (config["max_position_embeddings"], config["d_model"])  # (P, d)
    expected |= {name: table for name in POSITIONS if name in checkpoint.shapes}
    refuse_differences(
        checkpoint.shapes,
        expected,
        f"the model that config.json beside {checkpoint.path} describes",
        "fetch both of the same model",
    )
    for row in rows:
        first, *others = _present(row, checkpoint)
        for other in others:
            if not np.array_equal(read_floats(checkpoint, first), read_floats(checkpoint, other)):
                raise UserError(
                    f"In {checkpoint.path}, {other} differs from {first}, and config.json says that they are one: set "
                    "share_encoder_decoder_embeddings or tie_word_embeddings to false in it if they are not."
                )
    for name in POSITIONS:
        # Another order of sines and cosines is off by 1; bfloat16 rounds by 2e-3.
        if name in checkpoint.shapes and np.abs(read_floats(checkpoint, name) - _sinusoids(*table)).max() > 1e-2:
            raise UserError(f"In {checkpoint.path}, {name} does not hold sinusoids, which our models compute.")


def _sinusoids(positions, width):
    """(P, d) float32: sin(p / 10000^(2i/d)) in the first half, cosines in the second."""
    angle = np.arange(positions)[:, None] / 1e4 ** (2 * np.arange(width // 2) / width)  # (P, d/2)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype("float32")
