"""Fine-tuning: start a run from a trained model instead of from random weights, and train only a part of it.

In a recipe:

    pretrained = load_pretrained(args.init_from, task="translation", devices=args.devices)  # None without --init-from
    run = Run(args, folder=..., data_sha256=..., pretrained=pretrained)
    with zoo.strategy(...):
        model = ...
        set_initial_weights(model, seed=args.seed)                               # what is not in the file stays so
        run.fine_tuning |= init_weights(model, pretrained, row_names={"logits": (old_tokens, new_tokens)}, ...)
        run.fine_tuning |= set_trainable(model, freeze=args.freeze, train_only=args.train_only)
        model.compile(...)

A layer of the file is that of the same name, whatever the models are called. The rows of an embedding and the columns
of an output layer stand for tokens or classes: they are matched by what they stand for, as a string, not by position.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo import lora
from zoo.distribution.strategy import prepare_devices
from zoo.errors import UserError
from zoo.io import cards, files, model_files
from zoo.lora import unfreeze as unfreeze  # what ends `set_trainable`
from zoo.presets import find_preset
from zoo.tokenizers import load_tokenizer
from zoo.tokenizers.marian import MarianTokenizer
from zoo.tokenizers.text import tokenizer_kind
from zoo.training import flags
from zoo.training.run import print_wrapped
from zoo.typing import StrPath

if TYPE_CHECKING:
    import tokenizers

    from zoo.tokenizers.shared_bpe import SharedBPETokenizer

# Settings that change what a layer computes and not the shapes of its weights: they must be those of the file.
_COMPUTATION = (
    *("activation", "recurrent_activation", "reset_after", "use_bias", "strides", "padding", "dilation_rate", "groups"),
    *("axis", "epsilon", "target_shape"),
)
_MAX_NAMES = 4  # of layers in a sentence
LORA_FILE = "lora.safetensors"  # in a run's folder


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What `--init-from` names.

    Attributes:
        name: as the user gave it.
        models: {name of the `.keras` file: its model}.
        sha256: {name of a file: its sha256}, the tokenizer included.
        card: dict, what its card says; {} without one.
        tokenizer: its tokenizer; None where none was asked for.
    """

    name: str
    models: dict[str, keras.Model]
    sha256: dict[str, str]
    card: dict[str, Any]
    tokenizer: Any = None

    @property
    def model(self) -> keras.Model:
        """The first of `models`."""
        return next(iter(self.models.values()))


def load_pretrained(
    name: StrPath | None,
    *,
    task: str,
    names: Sequence[str] = (cards.MODEL_FILE,),
    with_tokenizer: bool = False,
    devices: str = "auto",
) -> Pretrained | None:
    """Load the models that a run starts from.

    Args:
        name: a preset's name, its folder, or a `.keras` file; None for none.
        task: what the recipe trains, Hugging Face's `pipeline_tag`.
        names: of the `.keras` files to load from a preset.
        with_tokenizer: load the tokenizer.json beside them, too.
        devices: of the run, as `zoo.strategy` takes them, which a backend must know before it computes anything.

    Returns:
        `Pretrained`; None without a name.

    Raises:
        UserError: if there is no such preset or file, it cannot be used, or it is for another task.
    """
    if name is None:
        return None
    preset = find_preset(name)
    if preset.task not in (None, task):
        raise UserError(f"{name} is a model for {preset.task}, this recipe trains one for {task}: give one of those.")
    single_file = str(name).endswith(".keras") or preset.model_file != cards.MODEL_FILE
    if single_file and len(names) > 1:
        raise UserError(f"This recipe starts from {' and '.join(names)}: give their folder instead of {name}.")
    paths = {names[0]: preset.model_path} if single_file else {file: preset.folder / file for file in names}
    for file, path in paths.items():
        if not single_file and not path.is_file() and preset.model_paths:
            found = ", ".join(path.name for path in preset.model_paths)
            raise UserError(f"{name} has no {file}, which this recipe starts from: it holds {found}.")
    prepare_devices(devices)
    models = {file: model_files.load_model(path) for file, path in paths.items()}
    digests = {file: files.sha256(path) for file, path in paths.items()}
    tokenizer = None
    if with_tokenizer:
        if not (path := preset.folder / cards.TOKENIZER_FILE).is_file():
            raise UserError(
                f"There is no {cards.TOKENIZER_FILE} beside {preset.model_path}, by which tokens are matched: give the "
                "folder of a preset that has one."
            )
        tokenizer = load_tokenizer(preset.file(cards.TOKENIZER_FILE))
        digests[cards.TOKENIZER_FILE] = files.sha256(path)
    return Pretrained(str(name), models, digests, preset.card, tokenizer)


# --------------------------------------------------------------------------------------------- the flags of the file


def adopt_config(
    args: argparse.Namespace,
    pretrained: Pretrained | None,
    infer_config: Callable[[keras.Model], dict[str, Any]],
    *names: str,
) -> None:
    """Build the model with the sizes of the file: set the flags that the command did not give.

    Args:
        args: parsed flags, changed in place.
        pretrained: what the run starts from; None changes nothing.
        infer_config: function of the file's model that returns its keyword arguments and raises `ValueError` if it is
            no model of that kind.
        *names: of the flags, which are keyword arguments of the builder.

    Raises:
        UserError: if the file holds another kind of model, or the command gives another size.
    """
    if pretrained is None:
        return
    try:
        config = infer_config(pretrained.model)
    except ValueError as error:
        raise UserError(f"{pretrained.name} is another kind of model: {str(error).rstrip('.')}.") from error
    flags.adopt(args, {name: config[name] for name in names}, pretrained.name)


def adopt_tokenizer(args: argparse.Namespace, pretrained: Pretrained | None, text: str = "") -> Any:
    """The tokenizer of the file, which a run keeps unless `--new-head` allows it to train one of its own.

    Args:
        args: parsed flags; `tokenizer` and `vocabulary_size`, where the recipe has them, are changed in place.
        pretrained: what the run starts from.
        text: what is to be encoded with it.

    Returns:
        the tokenizer, or None for a new one.

    Raises:
        UserError: if the command asks for another tokenizer without `--new-head`, or a character of the text is not in
            the vocabulary of a character tokenizer.
    """
    if pretrained is None:
        return None
    tokenizer, is_plain = pretrained.tokenizer, hasattr(pretrained.tokenizer, "get_vocab")
    if is_plain != hasattr(args, "tokenizer") or isinstance(tokenizer, MarianTokenizer):
        raise UserError(
            f"{pretrained.name} has another kind of tokenizer than this recipe trains: start from a model of its own."
        )
    kind = {"tokenizer": tokenizer_kind(tokenizer)} if is_plain else {}
    if args.new_head:
        flags.adopt(args, {name: value for name, value in kind.items() if name not in args.given}, pretrained.name)
        return None
    known = tokens(tokenizer)
    flags.adopt(args, kind | {"vocabulary_size": len(known)}, pretrained.name, hint=" or add --new-head")
    unknown = sorted(set(text) - set(known)) if kind.get("tokenizer") == "char" else []
    if unknown:
        listed = ", ".join(map(repr, unknown[:10])) + (", …" if len(unknown) > 10 else "")
        raise UserError(
            f"The text has {listed}, for which {pretrained.name} has no token: add --new-head for a vocabulary of this "
            "text, in which only known characters start from the file."
        )
    return tokenizer


def tokens(tokenizer: tokenizers.Tokenizer | SharedBPETokenizer) -> list[str]:
    """The tokens of a tokenizer, as strings.

    Args:
        tokenizer: of a language or translation model.

    Returns:
        the strings, at the place of their ids.
    """
    plain: Any = getattr(tokenizer, "tokenizer", tokenizer)
    vocabulary: dict[str, int] = plain.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


# ------------------------------------------------------------------------------------------------------------ weights


def init_weights(
    model: keras.Model | Mapping[str, keras.Model],
    pretrained: Pretrained | None,
    *,
    row_names: Mapping[str, tuple[Sequence[str] | None, Sequence[str]]] | None = None,
    new_head: bool = False,
    fresh: str | None = None,
) -> dict[str, Any]:
    """Give a model the weights of a file, layer by layer, and print what was taken.

    Args:
        model: built, with initial weights; or {name of a file: the model that starts from it}.
        pretrained: what the run starts from; None does nothing.
        row_names: {name of a layer: (what rows of the file stand for, what those of this model do)}, tokens or classes
            as strings; rows of an embedding, else columns and biases. None for those of the file if that is not
            known: then their number must be the same.
        new_head: allow entries that the file does not have; they keep their initial weights.
        fresh: regular expression of the names of layers that keep their initial weights whatever the file has.

    Returns:
        for metrics.json: "init_from" and "init_weights", a dict of the number of tensors "taken", and the layers that
        were taken "in_part" and those that are "new"; {} where nothing was to be done.

    Raises:
        UserError: if the file holds another kind of model, a layer or a shape does not fit, or an entry is missing.
    """
    if pretrained is None:
        return {}
    row_names = row_names or {}
    report: dict[str, Any] = {"taken": 0, "in_part": {}, "new": []}
    pairs = model if isinstance(model, Mapping) else {next(iter(pretrained.models)): model}
    values: list[tuple[keras.Variable, np.ndarray]] = []
    for file, target in pairs.items():
        new, old = _weighted_layers(target), _weighted_layers(pretrained.models[file])
        skipped = {key for key in new.keys() | old.keys() if fresh and re.match(fresh, key)}
        _check_layers(pretrained.name, old.keys() - skipped, new.keys() - skipped)
        _check_computation(pretrained.name, pretrained.models[file], target)
        for key, layer in new.items():
            if key in skipped:
                report["new"].append(key)
                continue
            index = None
            if key in row_names and row_names[key][0] is not None:
                index = _match(pretrained.name, *row_names[key], new_head)
            values += _layer_values(pretrained.name, key, old[key], layer, index, report)
    for variable, value in values:  # all or nothing
        variable.assign(value)
    _print_report(pretrained.name, report)
    return {"init_from": pretrained.name, "init_weights": report}


def init_classifier(
    model: keras.Model, pretrained: Pretrained | None, *, class_names: Sequence[str], new_head: bool = False
) -> dict[str, Any]:
    """`init_weights` of a classifier with the output layer "logits".

    Args:
        model: built, with initial weights.
        pretrained: what the run starts from; None does nothing.
        class_names: of the data. The columns of the output layer are put into their order; where the file does not name
            its classes, it must have as many, in this order.
        new_head: start the output layer from fresh weights.

    Returns:
        for metrics.json, as `init_weights`.

    Raises:
        UserError: as `init_weights`; if the classes differ, without `new_head`.
    """
    if pretrained is None:
        return {}
    old = pretrained.card.get("class_names")
    layers = _weighted_layers(pretrained.model)
    columns = layers["logits"].weights[-1].shape[-1] if "logits" in layers else None
    same_kind = layers.keys() == _weighted_layers(model).keys()
    if old is None and not new_head and same_kind and columns != len(class_names):
        raise UserError(
            f"The head of {pretrained.name} does not fit, since it has {columns} classes and this data "
            f"{len(class_names)}: add --new-head to start it from fresh weights."
        )
    row_names = {"logits": (old, class_names)}
    return init_weights(model, pretrained, row_names=row_names, fresh="logits$" if new_head else None)


def init_language_model(
    model: keras.Model,
    pretrained: Pretrained | None,
    tokenizer: tokenizers.Tokenizer,
    *,
    new_head: bool = False,
) -> dict[str, Any]:
    """`init_weights` of a recurrent language model: rows and columns of tokens that the file has are taken from it.

    Args:
        model: built, with initial weights.
        pretrained: what the run starts from; None does nothing.
        tokenizer: of this run.
        new_head: allow tokens that the file does not have.

    Returns:
        for metrics.json, as `init_weights`.

    Raises:
        UserError: as `init_weights`.
    """
    if pretrained is None:
        return {}
    both = (tokens(pretrained.tokenizer), tokens(tokenizer))
    return init_weights(model, pretrained, row_names={"embedding": both, "logits": both}, new_head=new_head)


def init_translator(
    model: keras.Model,
    pretrained: Pretrained | None,
    tokenizer: SharedBPETokenizer,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """`init_weights` of a transformer: rows of tokens that the file has are taken from it, or the encoder alone.

    Args:
        model: built, with initial weights.
        pretrained: what the run starts from; None does nothing.
        tokenizer: of this run.
        args: the flags `source_lang`, `target_lang`, `new_head` and `init_encoder_only`.

    Returns:
        for metrics.json, as `init_weights`.

    Raises:
        UserError: as `init_weights`; if the file is for other languages, without `new_head` or `init_encoder_only`.
    """
    if pretrained is None:
        return {}
    for key in ("source_lang", "target_lang"):
        language = pretrained.card.get(key, getattr(args, key))
        allowed = args.new_head or (args.init_encoder_only and key == "target_lang")
        if language != getattr(args, key) and not allowed:
            raise UserError(
                f"{pretrained.name} has the {key.replace('_lang', ' language')} {language}, this run "
                f"{getattr(args, key)}: add --new-head for a vocabulary of its own, or start from another."
            )
    both = (tokens(pretrained.tokenizer), tokens(tokenizer))
    return init_weights(
        model,
        pretrained,
        row_names=dict.fromkeys(("embedding", "source_embedding", "target_embedding", "logits", "logits_bias"), both),
        new_head=args.new_head or args.init_encoder_only,
        fresh="decoder_|target_embedding$|logits" if args.init_encoder_only else None,
    )


def _match(name, old, new, new_head):
    """For each entry of `new` its position in `old`, -1 for none."""
    place = {entry: position for position, entry in enumerate(old)}
    index = np.array([place.get(entry, -1) for entry in new])
    missing = [entry for entry, position in zip(new, index) if position < 0]
    if (missing or len(new) != len(old)) and not new_head:
        gone = [entry for entry in old if entry not in set(new)]
        what = f"has no entry {missing[0]!r}" if missing else f"has the entry {gone[0]!r}, which this data lacks"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"The head of {name} does not fit, since it {what}{more}: add --new-head to start what is new from fresh "
            "weights."
        )
    return index


def _layer_values(name, key, old, new, index, report):
    """[(variable, its new value)] of a layer; `index` has the rows to take."""
    if len(old.weights) != len(new.weights):
        raise UserError(
            f"{name} has {len(old.weights)} weights in layer {key}, this model {len(new.weights)}: give this run the "
            "settings of the file."
        )
    values = []
    for source, variable in zip(_weights(old), _weights(new), strict=True):
        value = np.asarray(keras.ops.convert_to_numpy(source)).astype("float32")
        if index is not None:
            axis = _entry_axis(new, variable)
            carried = np.moveaxis(np.array(keras.ops.convert_to_numpy(variable), "float32"), axis, 0)
            rows = np.moveaxis(value, axis, 0)
            if carried.shape[1:] == rows.shape[1:] and len(carried) == len(index) and len(rows) > index.max():
                carried[index >= 0] = rows[index[index >= 0]]
                value = np.moveaxis(carried, 0, axis)
        if value.shape != tuple(variable.shape):
            raise UserError(
                f"{name} has shape {tuple(source.shape)} in {key}/{variable.name}, this model {tuple(variable.shape)}: "
                "give this run the sizes of the file, or start from another."
            )
        values.append((variable, value))
    if index is None or (index >= 0).all():
        report["taken"] += len(values)
    elif (index >= 0).any():
        report["in_part"][key] = f"{(index >= 0).sum()} of {len(index)}"
    else:
        report["new"].append(key)
    return values


def _entry_axis(layer, variable):
    """The axis of a weight that counts tokens or classes: rows of a table, else columns (a bias is a row of them)."""
    is_table = isinstance(layer, keras.layers.Embedding) and variable.name == "embeddings"
    return 0 if is_table and layer.input_dim > 1 else -1  # one row that holds a bias, as the transformer's


def _check_layers(name, old, new):
    """Raise UserError if the layers with weights are not the same."""
    if old == new:
        return
    if len(old & new) < 2:  # "logits" is in many
        raise UserError(
            f"{name} is another kind of model: it has the layers {_listed(old)}, this one {_listed(new)}: start from a "
            "model of this recipe."
        )
    whose, other, names = (name, "this model", old - new) if old - new else ("This model", name, new - old)
    raise UserError(
        f"{whose} has the layers {_listed(names)}, which {other} lacks: give this run the settings of the file, or "
        "start from another."
    )


def _listed(names):
    names = sorted(names)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _check_computation(name, old, new):
    """Raise UserError if a layer of the same name computes something else with weights of the same shape."""
    before = _by_name(old)
    for key, layer in _by_name(new).items():
        if (source := before.get(key)) is None:
            continue
        if type(source) is not type(layer):
            raise UserError(
                f"The layer {key} of {name} is of the type {type(source).__name__}, this model's of "
                f"{type(layer).__name__}: give this run the settings of the file."
            )
        for setting in _COMPUTATION:
            was, now = (_plain(getattr(one, setting, None)) for one in (source, layer))
            if was != now:
                raise UserError(
                    f"The layer {key} of {name} has {setting}={was}, this model's {setting}={now}: give this run the "
                    "settings of the file."
                )


def _plain(value):
    """A setting of a layer, comparable between a model that was built and one that was loaded."""
    value = getattr(value, "__name__", value)
    return tuple(value) if isinstance(value, list) else value


def _leaf_layers(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """(path, layer) of every layer that is no model, those of models within included; the root has no part in paths."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaf_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def _by_name(model):
    """{name: layer} of all layers; by the path where two models within a model have one of the same name."""
    found, names = {}, [layer.name for layer in dict(_leaf_layers(model)).values()]
    for path, layer in _leaf_layers(model):
        found[layer.name if names.count(layer.name) == 1 else path] = layer
    return found


def _weighted_layers(model):
    return {key: layer for key, layer in _by_name(model).items() if _weights(layer)}


def _weights(layer):
    return [weight for weight in layer.weights if weight.name != "rnn_state"]  # carried from batch to batch


def _print_report(name, report):
    parts = [f"{report['taken']} tensors taken"]
    if report["in_part"]:
        parts.append("in part " + ", ".join(f"{key} ({count})" for key, count in report["in_part"].items()))
    if report["new"]:
        parts.append(f"new {_listed(report['new'])}")
    print_wrapped(f"From {name}: {'; '.join(parts)}.")


# ------------------------------------------------------------------------------------------------------------ freezing


def set_trainable(
    model: keras.Model, *, freeze: Collection[str] | None = None, train_only: Collection[str] | None = None
) -> dict[str, int]:
    """Choose what is trained; call it before `compile`, and `unfreeze` before the model is saved.

    A pattern is looked for in the paths of layers, such as "cnn/conv1", and of weights, such as "cnn/conv1/kernel". A
    layer of which nothing is trained gets `trainable = False`: a normalization layer with statistics then uses those it
    has, as in inference (Keras' documentation of `BatchNormalization`). Dropout layers have no weights and go on.

    Args:
        model: built, not compiled.
        freeze: regular expressions; a weight that one of them is found in is not trained.
        train_only: regular expressions; only weights that one of them is found in are trained.

    Returns:
        for metrics.json: the number of "trained_parameters" and "frozen_parameters"; {} without patterns.

    Raises:
        UserError: if a pattern is found in no path, or nothing is left to train.
    """
    freeze, train_only = list(freeze or ()), list(train_only or ())
    if not freeze and not train_only:
        return {}
    paths = {}  # id of a layer: (its path, the layer)
    for path, layer in _leaf_layers(model):
        if layer.trainable_variables:
            paths.setdefault(id(layer), (path, layer))

    def is_found(pattern, path, variable):
        return re.search(pattern, path) or re.search(pattern, f"{path}/{variable.name}")

    trainable = [(path, layer, variable) for path, layer in paths.values() for variable in layer.trainable_variables]
    for flag, patterns in (("--freeze", freeze), ("--train-only", train_only)):
        for pattern in patterns:
            if not any(is_found(pattern, path, variable) for path, _, variable in trainable):
                raise UserError(
                    f"{flag} {pattern} is found in no weight of this model: it has the layers "
                    f"{_listed({path for path, _, _ in trainable})}."
                )
    trained = {
        id(variable)
        for path, _, variable in trainable
        if not any(is_found(pattern, path, variable) for pattern in freeze)
        and (not train_only or any(is_found(pattern, path, variable) for pattern in train_only))
    }
    if not trained:
        frozen = " ".join(f"--freeze {pattern}" for pattern in freeze)
        raise UserError(f"{frozen} leaves nothing to train: freeze less.")
    for _, layer in paths.values():
        if not any(id(variable) in trained for variable in layer.trainable_variables):
            layer.trainable = False
    for _, _, variable in trainable:
        variable.trainable = id(variable) in trained
    count = sum(int(np.prod(variable.shape)) for _, _, variable in trainable if id(variable) in trained)
    total = sum(int(np.prod(weight.shape)) for weight in _weights(model))
    print(f"Training {count:,} of {total:,} parameters.", flush=True)
    return {"trained_parameters": count, "frozen_parameters": total - count}


def add_lora(model: keras.Model, args: argparse.Namespace) -> dict[str, int]:
    """With --lora-rank, add LoRA to the projections of every attention and train nothing else.

    Args:
        model: built, with the weights of the file, not compiled.
        args: the flags `lora_rank`, `lora_alpha` and `seed`.

    Returns:
        for metrics.json, as `set_trainable`; {} without --lora-rank.

    Raises:
        UserError: as `zoo.lora.add_lora`.
    """
    if args.lora_rank is None:
        return {}
    total = sum(int(np.prod(weight.shape)) for weight in _weights(model))
    names = lora.add_lora(model, args.lora_rank, args.lora_alpha, seed=args.seed)
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    print(f"Training LoRA of rank {args.lora_rank} in {len(names)} layers: {count:,} parameters beside {total:,}.")
    return {"trained_parameters": count, "frozen_parameters": total}


def save_lora(model: keras.Model, args: argparse.Namespace, folder: StrPath) -> None:
    """With --lora-rank, write the adapter to lora.safetensors, then merge it, so that the model can be saved.

    Args:
        model: of `add_lora`, trained, on one device; changed in place.
        args: the flag `lora_rank`.
        folder: of the file.
    """
    if args.lora_rank is not None:
        lora.save_lora(model, pathlib.Path(folder) / LORA_FILE)
        lora.merge_lora(model)
