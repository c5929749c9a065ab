"""The models by name: architectures that can be built, and pretrained files that can be loaded.

    zoo.list_models()               every name
    zoo.create_model("cnn")         the architecture, with fresh weights
    zoo.load_model("cnn_mnist")     the pretrained file of that name, or any .keras file by its path

A pretrained file is looked for in the folder `ZOO_MODELS_DIR` (if set), then in `saved_models/` beside the package.
Where only its card lies, and the card has a "url", the file is fetched and checked against the card's sha256; so is
the tokenizer of a language model ("tokenizer_url", "tokenizer_sha256").
Importing this module loads neither Keras nor NumPy.
"""

import contextlib
import dataclasses
import importlib
import inspect
import os
import pathlib
import re
import shutil
import sys

from zoo import backends
from zoo.errors import UserError, nearest, reason
from zoo.io import files

CHECKOUT_MODELS = pathlib.Path(__file__).resolve().parent.parent / "saved_models"


@dataclasses.dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: what people call it by.
        builder: where the function that builds its architecture is, "module:function".
        numbers: keyword arguments for the builder.
        task: what it is for, in a few words.
        parameters: of the architecture as built with `numbers`.
        pretrained: whether there is a trained file of that name.
    """

    name: str
    builder: str
    numbers: dict
    task: str
    parameters: int
    pretrained: bool = False


_CNN, _IMAGES = "zoo.models.cnn:cnn", "classification"
_RNN, _TEXT = "zoo.models.rnn_language_model:rnn_language_model", "language model"
_SHAKESPEARE = {"vocabulary_size": 65, "dropout": 0.3}
_TRANSFORMER, _TRANSLATION = "zoo.models.transformer:transformer", "translation"
# `zoo.models.transformer.VARIANTS`, written out here because importing it would load Keras; a test compares them.
_TINY = {"num_layers": 4, "width": 128, "inner": 256, "num_heads": 4}
_MULTI30K = {
    **{"vocabulary_size": 6_000, "num_layers": 3, "width": 256, "inner": 1024, "num_heads": 4},
    **{"pre_norm": True, "dropout": 0.3},
}
_BASE = {"num_layers": 6, "width": 512, "inner": 2048, "num_heads": 8}
_DIFFUSION, _DRAWING = "zoo.models.stable_diffusion", "text to image"
# The variants "sd15" of its three parts, compared likewise.
_SD_TEXT = {
    "vocabulary_size": 49408,
    "num_layers": 12,
    "width": 768,
    "inner": 3072,
    "num_heads": 12,
    "max_length": 77,
    "activation": "quick_gelu",
}
_SD_IMAGE = {"widths": (128, 256, 512, 512), "blocks": 2, "groups": 32}
_SD_NOISE = {
    "widths": (320, 640, 1280, 1280),
    "blocks": 2,
    "attention": (True, True, True, False),
    "num_heads": 8,
    "context_width": 768,
    "groups": 32,
}

MODELS = {
    row.name: row
    for row in (
        Row("cnn", _CNN, {"num_classes": 10}, _IMAGES, 9_536_074),
        Row("cnn_single_pool", _CNN, {"num_classes": 10, "single_pool": True}, _IMAGES, 18_899_402),
        Row("cnn_mnist", _CNN, {"num_classes": 10}, _IMAGES, 9_536_074, pretrained=True),
        Row("cnn_gtsrb", _CNN, {"num_classes": 43}, _IMAGES, 9_553_003, pretrained=True),
        Row("lstm_language_model", _RNN, {"cell": "lstm", "vocabulary_size": 65}, _TEXT, 3_318_401),
        Row("gru_language_model", _RNN, {"cell": "gru", "vocabulary_size": 65}, _TEXT, 2_501_249),
        Row("lstm_shakespeare", _RNN, _SHAKESPEARE | {"cell": "lstm"}, _TEXT, 3_318_401, pretrained=True),
        Row("gru_shakespeare", _RNN, _SHAKESPEARE | {"cell": "gru"}, _TEXT, 2_501_249, pretrained=True),
        Row("transformer_tiny", _TRANSFORMER, {"vocabulary_size": 10_000} | _TINY, _TRANSLATION, 2_605_056),
        *(
            Row(f"transformer_multi30k_{pair}", _TRANSFORMER, _MULTI30K, _TRANSLATION, 7_066_624, pretrained=True)
            for pair in ("de_en", "en_de")
        ),
        Row("transformer_base", _TRANSFORMER, {"vocabulary_size": 37_000} | _BASE, _TRANSLATION, 63_082_496),
        Row(
            "sd15_text_encoder",
            f"{_DIFFUSION}.text_encoder:text_encoder",
            _SD_TEXT,
            _DRAWING,
            123_060_480,
        ),
        Row("sd15_autoencoder", f"{_DIFFUSION}.autoencoder:autoencoder", _SD_IMAGE, _DRAWING, 83_653_863),
        Row("sd15_denoiser", f"{_DIFFUSION}.denoiser:denoiser", _SD_NOISE, _DRAWING, 859_520_964),
    )
}


def list_models(pretrained=None):
    """Return the sorted names of the models.

    Args:
        pretrained: True for those with a file, or a card that says where to fetch it; False for the architectures
            without one; None for all.

    Raises:
        UserError: if the folder in `ZOO_MODELS_DIR` does not exist or holds no model.
    """
    with_file = set(pretrained_files())
    chosen = {None: with_file | set(MODELS), True: with_file, False: set(MODELS) - with_file}
    return sorted(chosen[pretrained])


def create_model(name, /, **overrides):
    """Build an architecture with fresh weights.

    Args:
        name: an architecture; `list_models()` has them.
        **overrides: numbers for its builder other than the usual ones, e.g. `num_classes=43`.

    Returns:
        `keras.Model`.

    Raises:
        UserError: if the name or a number's name is unknown, or a number is out of range.

    Example:
        >>> zoo.create_model("cnn", num_classes=43).count_params()
        9553003
    """
    if name not in MODELS:
        raise UserError(f"There is no model {name!r} to build: choose one of {_names(MODELS)}.{nearest(name, MODELS)}")
    row = MODELS[name]
    module, _, function = row.builder.partition(":")
    build = getattr(importlib.import_module(module), function)
    accepted = inspect.signature(build).parameters
    for key in overrides:
        if key not in accepted:
            raise UserError(f"{name} takes no {key!r}: it takes {_names(accepted)}.{nearest(key, accepted)}")
    numbers = row.numbers | ({"name": name} if "name" in accepted else {}) | overrides
    try:
        return build(**numbers)
    except ValueError as error:
        raise UserError(str(error)) from error
    except TypeError as error:
        raise UserError(f"{name} cannot be built with {overrides}: {reason(error)}.") from error


def load_model(name_or_path):
    """Load a pretrained model by its name, or any `.keras` file by its path, checked as `files.load_model` says.

    Raises:
        UserError: if there is no such model or file, or it cannot be trusted or used.
    """
    return files.load_model(locate(name_or_path))


def locate(name_or_path):
    """Return the path of a model's file: the path itself, or what `find_file` finds for a name.

    Anything that ends with .keras or holds a separator is a path. So is what exists, unless a model has that name.
    """
    text = os.fspath(name_or_path)
    path = pathlib.Path(text)
    if is_path(text):
        if not path.exists() and path.stem in pretrained_files():
            raise UserError(
                f"There is no model file at {text}: the pretrained model is loaded by its name, {path.stem}."
            )
        return path
    return find_file(text)


def is_path(text):
    """Whether a user who gives this means a file, not the name of a model."""
    separator = os.sep in text or bool(os.altsep and os.altsep in text)
    return text.endswith(".keras") or separator or (text not in MODELS and os.path.exists(text))


def pretrained_files():
    """Return {name: path of its file, or of its card where the file is still to be fetched}.

    Raises:
        UserError: if the folder in `ZOO_MODELS_DIR` does not exist or holds no model.
    """
    found = {}
    for folder in _folders():
        here = {path.stem: path for path in folder.glob("*.keras") if not path.name.startswith(".")}
        for card in files.cards(folder):
            if card.stem not in here and (files.read_card(card) or {}).get("url"):
                here[card.stem] = card
        if not here and folder != CHECKOUT_MODELS:
            problem = "holds no model" if folder.is_dir() else "is not a folder"
            raise UserError(
                f"ZOO_MODELS_DIR is {folder}, which {problem}: put .keras files or their cards there, or unset it."
            )
        found = here | found
    return found


def find_file(name):
    """Return the path of the pretrained file of that name, after fetching it if only its card is here.

    Raises:
        UserError: if there is none, or it cannot be fetched.
    """
    found = pretrained_files()
    if name in found:
        path = found[name]
        return _fetch(path) if path.suffix == ".json" else path
    if name in MODELS and not MODELS[name].pretrained:
        raise UserError(
            f"{name} is an architecture without a pretrained file: build it with create_model({name!r}), or load one "
            f"of {_names(found)}."
        )
    looked = " or ".join(str(folder) for folder in _folders())
    if name in MODELS:
        raise UserError(f"The file {name}.keras is not in {looked}: set ZOO_MODELS_DIR to the folder that holds it.")
    known = set(found) | set(MODELS)
    raise UserError(f"There is no model {name!r} in {looked}: choose one of {_names(known)}.{nearest(name, known)}")


def pipelines():
    """Return {name: folder} of the pipelines beside the pretrained files."""
    return {path.parent.name: path.parent for folder in reversed(_folders()) for path in folder.glob("*/pipeline.json")}


def locate_pipeline(name_or_path):
    """Return the folder of a pipeline: the path itself, or one of that name beside the pretrained files.

    Raises:
        UserError: if there is none.
    """
    text = os.fspath(name_or_path)
    if os.path.isdir(text):
        return pathlib.Path(text)
    found = pipelines()
    if text in found:
        return found[text]
    looked = " or ".join(str(folder) for folder in _folders())
    raise UserError(
        f"There is no folder {text}, and none of that name with a pipeline in {looked}: give the folder that "
        f"`zoo convert stable-diffusion` wrote.{nearest(text, found)}"
    )


def _names(names):
    return ", ".join(sorted(names)) or "none"


def _folders():
    """The folders that may hold pretrained files, first the user's own."""
    own = os.environ.get("ZOO_MODELS_DIR")
    return [folder for folder in (own and pathlib.Path(own).expanduser(), CHECKOUT_MODELS) if folder]


def _fetch(card_path):
    """Fetch the files that a card describes, into `ZOO_MODELS_DIR` or Keras' cache, but for good copies there."""
    card, name = files.read_card(card_path), card_path.stem
    own = os.environ.get("ZOO_MODELS_DIR")
    cache = pathlib.Path(own or os.path.join(os.environ.get("KERAS_HOME") or "~/.keras", "models")).expanduser()
    target = cache / f"{name}.keras"
    wanted = [("url", "sha256", target)]
    if "tokenizer_url" in card:  # first, because a model file that is in place is never fetched again
        wanted.insert(0, ("tokenizer_url", "tokenizer_sha256", files.tokenizer_path(target)))
    for url, digest, _ in wanted:
        if not (isinstance(card.get(digest), str) and re.fullmatch("[0-9a-f]{64}", card[digest])):
            raise UserError(
                f"{card_path} has a {url} but no {digest}, so what it leads to cannot be trusted: add the {digest}."
            )
    for url, digest, path in wanted:
        if path.is_file() and files.sha256(path) == card[digest]:
            continue
        try:
            _download(card[url], path, card[digest])
        except Exception as error:  # urllib, the disk and Keras raise many kinds
            raise UserError(
                f"{name} cannot be fetched from {card[url]} into {cache} ({reason(error)}): check both, try again."
            ) from error
    beside = target.with_suffix(".json")  # so that every later load is checked against the card, too
    if not beside.is_file() or beside.read_bytes() != card_path.read_bytes():
        with files.atomic(beside) as temporary:
            shutil.copyfile(card_path, temporary)
    return target


def _download(url, target, digest):
    """Fetch to a file beside `target`, check its sha256, and only then put it in place."""
    backends.start()
    import keras

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the progress bar
            keras.utils.get_file(
                part.name,
                url,
                cache_dir=str(target.parent.parent),
                cache_subdir=target.parent.name,
                file_hash=digest,
                hash_algorithm="sha256",
            )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
