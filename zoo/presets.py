"""Models by name: architectures that can be built, and presets (folders of trained models) that can be loaded.

    zoo.list_models()               every name
    zoo.create_model("cnn")         an architecture with fresh weights
    zoo.load_model("cnn_mnist")     the model of a preset, or any .keras file by its path

A preset is looked for in the folder `ZOO_MODELS_DIR` (if set), then in `saved_models/` beside the package, which is
where a checkout has the published ones; an installed wheel has none. A file of a preset that is not there and has a
"url" in the preset's card is fetched and checked against the card's sha256.
`hf://owner/name` is a repository of the Hugging Face Hub that holds a preset.
Importing this module loads neither Keras nor NumPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import os
import pathlib
import shutil
import sys
from typing import TYPE_CHECKING, Any

from zoo import backends
from zoo.errors import UserError, did_you_mean, error_summary
from zoo.io import cards, files
from zoo.io.foreign_files import explain_foreign_file
from zoo.models import variants
from zoo.typing import StrPath

if TYPE_CHECKING:
    import keras


CHECKOUT_MODELS = pathlib.Path(__file__).resolve().parent.parent / "saved_models"
HUB_PREFIX = "hf://"
# What to do where the package was installed without the checkout, which holds the published presets.
WHERE_TO_GET_PRESETS = "set ZOO_MODELS_DIR to the folder saved_models of the keras-model-zoo repository"


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """An architecture of the zoo.

    Attributes:
        name: what `create_model` knows it by.
        builder: where the function that builds it is, "module:function".
        kwargs: keyword arguments for the builder.
        task: what it is for: Hugging Face's `pipeline_tag`.
        parameters: number of parameters as built with `kwargs`.
        pretrained: whether a preset of that name is published.
    """

    name: str
    builder: str
    kwargs: dict[str, Any]
    task: str
    parameters: int
    pretrained: bool = False


_CNN, _CLASSIFICATION = "zoo.models.cnn:cnn", "image-classification"
_RNN, _TEXT = "zoo.models.rnn_language_model:rnn_language_model", "text-generation"
_SHAKESPEARE = {"vocabulary_size": 65, "dropout": 0.3}
_TRANSFORMER, _TRANSLATION = "zoo.models.transformer:transformer", "translation"
_TINY, _BASE = variants.TRANSFORMER["tiny"], variants.TRANSFORMER["base"]
_MULTI30K = {
    **{"vocabulary_size": 6_000, "num_layers": 3, "hidden_dim": 256, "intermediate_dim": 1024, "num_heads": 4},
    **{"pre_norm": True, "dropout": 0.3},
}
_DIFFUSION, _TEXT_TO_IMAGE = "zoo.models.stable_diffusion", "text-to-image"

MODELS = {
    entry.name: entry
    for entry in (
        ModelEntry("cnn", _CNN, {"num_classes": 10}, _CLASSIFICATION, 9_536_074),
        ModelEntry("cnn_single_pool", _CNN, {"num_classes": 10, "single_pool": True}, _CLASSIFICATION, 18_899_402),
        ModelEntry("cnn_mnist", _CNN, {"num_classes": 10}, _CLASSIFICATION, 9_536_074, pretrained=True),
        ModelEntry("cnn_gtsrb", _CNN, {"num_classes": 43}, _CLASSIFICATION, 9_553_003, pretrained=True),
        ModelEntry("lstm_language_model", _RNN, {"cell": "lstm", "vocabulary_size": 65}, _TEXT, 3_318_401),
        ModelEntry("gru_language_model", _RNN, {"cell": "gru", "vocabulary_size": 65}, _TEXT, 2_501_249),
        ModelEntry("lstm_shakespeare", _RNN, _SHAKESPEARE | {"cell": "lstm"}, _TEXT, 3_318_401, pretrained=True),
        ModelEntry("gru_shakespeare", _RNN, _SHAKESPEARE | {"cell": "gru"}, _TEXT, 2_501_249, pretrained=True),
        ModelEntry("transformer_tiny", _TRANSFORMER, {"vocabulary_size": 10_000} | _TINY, _TRANSLATION, 2_605_056),
        *(
            ModelEntry(f"transformer_multi30k_{pair}", _TRANSFORMER, _MULTI30K, _TRANSLATION, 7_066_624, True)
            for pair in ("de_en", "en_de")
        ),
        ModelEntry("transformer_base", _TRANSFORMER, {"vocabulary_size": 37_000} | _BASE, _TRANSLATION, 63_082_496),
        ModelEntry(
            "sd15_text_encoder",
            f"{_DIFFUSION}.text_encoder:text_encoder",
            variants.TEXT_ENCODER["sd15"],
            _TEXT_TO_IMAGE,
            123_060_480,
        ),
        ModelEntry(
            "sd15_autoencoder",
            f"{_DIFFUSION}.autoencoder:autoencoder",
            variants.AUTOENCODER["sd15"],
            _TEXT_TO_IMAGE,
            83_653_863,
        ),
        ModelEntry(
            "sd15_denoiser", f"{_DIFFUSION}.denoiser:denoiser", variants.DENOISER["sd15"], _TEXT_TO_IMAGE, 859_520_964
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A trained model as a folder of files.

    Attributes:
        name: of the preset.
        folder: where its files are.
        card: dict, what card.json says; {} without one.
        generation_config: dict, what generation_config.json says; {} without one.
        model_file: name of the `.keras` file, for a preset of one model.
    """

    name: str
    folder: pathlib.Path
    card: dict[str, Any]
    generation_config: dict[str, Any]
    model_file: str = cards.MODEL_FILE

    @property
    def task(self) -> str | None:
        """What the card says it is for, e.g. "translation"; None without a card."""
        return self.card.get("task")

    @property
    def model_path(self) -> pathlib.Path:
        """Path of the `.keras` file of a preset of one model."""
        return self.folder / self.model_file

    @property
    def model_paths(self) -> list[pathlib.Path]:
        """Paths of its `.keras` files: the one model, or, where that is not there, the parts it consists of."""
        if self.model_path.is_file():
            return [self.model_path]
        return sorted(path for path in self.folder.glob("*.keras") if not path.name.startswith("."))

    def file(self, name: str) -> pathlib.Path:
        """Path of a file of the preset, checked against the card.

        Args:
            name: of the file, e.g. "tokenizer.json".

        Returns:
            its path.

        Raises:
            UserError: if it is missing, or not the file that the card describes.
        """
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"There is no {name} in {self.folder}: the preset {self.name} is not complete.")
        cards.check_file(path)
        return path

    def load_model(
        self, name: str | None = None, *, dtype: str | None = None, load_weights: bool = True
    ) -> keras.Model:
        """Load a model of the preset.

        Args:
            name: of the `.keras` file; `model_file` if None.
            dtype: dtype policy of the layers, e.g. "bfloat16"; as saved if None.
            load_weights: False for fresh initial weights.

        Returns:
            `keras.Model`.

        Raises:
            UserError: as `zoo.io.model_files.load_model`.
        """
        from zoo.io import model_files  # here, because it imports NumPy

        return model_files.load_model(self.folder / (name or self.model_file), dtype=dtype, load_weights=load_weights)


def list_models(pretrained: bool | None = None) -> list[str]:
    """List the names of the models.

    Args:
        pretrained: True for presets (whose files are here, or whose card says where to fetch them); False for
            architectures without a preset of that name; None for all.

    Returns:
        the names, sorted.

    Raises:
        UserError: if the folder in `ZOO_MODELS_DIR` does not exist or holds no preset.
    """
    presets = set(preset_folders())
    return sorted({None: presets | set(MODELS), True: presets, False: set(MODELS) - presets}[pretrained])


def create_model(name: str, /, **overrides: Any) -> keras.Model:
    """Build an architecture with fresh weights.

    Args:
        name: an architecture; `list_models()` has them.
        **overrides: keyword arguments of its builder, in place of the usual ones, e.g. `num_classes=43`.

    Returns:
        `keras.Model`.

    Raises:
        UserError: if the name or a keyword is unknown, or a value is out of range.

    Example:
        >>> zoo.create_model("cnn", num_classes=43).count_params()
        9553003
    """
    if name not in MODELS:
        raise UserError(
            f"There is no model {name!r} to build: choose one of {_names(MODELS)}.{did_you_mean(name, MODELS)}"
        )
    entry = MODELS[name]
    module, _, function = entry.builder.partition(":")
    build = getattr(importlib.import_module(module), function)
    accepted = inspect.signature(build).parameters
    for key in overrides:
        if key not in accepted:
            raise UserError(f"{name} takes no {key!r}: it takes {_names(accepted)}.{did_you_mean(key, accepted)}")
    kwargs = entry.kwargs | ({"name": name} if "name" in accepted else {}) | overrides
    try:
        return build(**kwargs)
    except ValueError as error:
        raise UserError(str(error)) from error
    except TypeError as error:
        raise UserError(f"{name} cannot be built with {overrides}: {error_summary(error)}.") from error


def load_model(name_or_path: StrPath) -> keras.Model:
    """Load the model of a preset by name or folder, or any `.keras` file by its path, with its file checked.

    Args:
        name_or_path: a preset's name or folder, "hf://owner/name", or the path of a `.keras` file.

    Returns:
        `keras.Model`.

    Raises:
        UserError: if there is no such preset or file, or it cannot be trusted or used.

    Example:
        >>> zoo.load_model("cnn_mnist").count_params()
        9536074
    """
    from zoo.io import model_files

    return model_files.load_model(resolve_model_path(name_or_path))


def resolve_model_path(name_or_path: StrPath) -> pathlib.Path:
    """Find the `.keras` file of a preset of one model.

    Args:
        name_or_path: as in `load_model`.

    Returns:
        the path itself, or that of the preset's model.

    Raises:
        UserError: if there is no such preset, or it consists of several models.
    """
    text = os.fspath(name_or_path)
    if text.endswith(".keras"):
        return _file_path(text)
    preset = find_preset(text)
    paths = preset.model_paths or [preset.model_path]
    if preset.model_path not in paths:
        names = ", ".join(f"{text}/{path.stem}" for path in paths)
        raise UserError(f"{preset.name} consists of {len(paths)} models: give one of {names}.")
    return preset.model_path


def find_preset(name_or_path: StrPath | Preset, *, revision: str | None = None) -> Preset:
    """Find a preset, after fetching what is not here.

    Args:
        name_or_path: the name of a preset; the path of a folder or of a `.keras` file; or "hf://owner/name". One of
            several models is named after a slash: "diffusion_captions/denoiser". What is both a name and a folder here
            is taken as the name. A `Preset` is returned as it is.
        revision: branch, tag or commit of an "hf://" repository; its main branch if None.

    Returns:
        `Preset`.

    Raises:
        UserError: if there is none, it cannot be fetched, or the folder is one of diffusers or transformers.
    """
    if isinstance(name_or_path, Preset):
        return name_or_path
    text = os.fspath(name_or_path)
    if (whole := _preset_of_component(text)) is not None:
        return _component(find_preset(whole, revision=revision), text)
    if text.startswith(HUB_PREFIX):
        return _folder_preset(_snapshot(text.removeprefix(HUB_PREFIX), revision), name=text.rpartition("/")[2])
    if revision is not None:
        raise UserError(f"revision is for hf:// presets, got revision {revision!r} with {text}.")
    if text.endswith(".keras"):
        return _file_preset(_file_path(text))
    if not _is_path(text):
        return _folder_preset(_find_folder(text), name=text)
    if os.path.isfile(text):
        if words := explain_foreign_file(text, expected=[]):
            raise UserError(words)
        raise UserError(f"{text} is not a .keras file: give a preset's name or folder, or a .keras file.")
    if not os.path.isdir(text):
        raise UserError(
            f"There is no folder {text}: give a preset's name or folder.{did_you_mean(text, preset_folders())}"
        )
    return _folder_preset(pathlib.Path(text))


def preset_folders() -> dict[str, pathlib.Path]:
    """Find the folders of presets.

    Returns:
        {name: folder}; the user's own come before those of the checkout.

    Raises:
        UserError: if the folder in `ZOO_MODELS_DIR` does not exist or holds no preset.
    """
    presets = {}
    for root in _roots():
        here = {folder.name: folder for folder in sorted(root.glob("*/")) if _is_preset(folder)}
        if not here and root != CHECKOUT_MODELS:
            problem = "holds no preset" if root.is_dir() else "is not a folder"
            raise UserError(
                f"ZOO_MODELS_DIR is {root}, which {problem}: put folders with model.keras or card.json there, or unset "
                "it."
            )
        presets = here | presets
    return presets


def _is_preset(folder):
    return not folder.name.startswith(".") and any(
        (folder / name).is_file() for name in (cards.CARD_FILE, cards.MODEL_FILE, cards.PIPELINE_FILE)
    )


def _preset_of_component(text):
    """What names the preset in "diffusion_captions/denoiser"; None if the text names no model in a preset."""
    whole, slash, _ = text.rpartition("/")
    if text.startswith(HUB_PREFIX):
        return whole if text.removeprefix(HUB_PREFIX).count("/") == 2 else None
    if not slash or text.endswith(".keras") or os.path.exists(text):
        return None
    return whole if whole in preset_folders() or (whole and _is_preset(pathlib.Path(whole))) else None


def _component(preset, text):
    """The preset with one of its models as its model; its card is of the whole, so it does not count for one."""
    name, models = text.rpartition("/")[2], [path.stem for path in preset.model_paths]
    if name not in models:
        raise UserError(
            f"{preset.name} has no model {name!r}: choose one of {_names(models)}.{did_you_mean(name, models)}"
        )
    return dataclasses.replace(preset, model_file=f"{name}.keras", card={}, generation_config={})


def _is_path(text):
    """Whether a user who gives this means a file or folder, not the name of a model."""
    separator = os.sep in text or bool(os.altsep and os.altsep in text)
    return text.endswith(".keras") or separator or (text not in MODELS and os.path.exists(text))


def _file_path(text):
    path = pathlib.Path(text)
    if not path.exists() and path.stem in preset_folders():
        raise UserError(f"There is no model file at {text}: the preset is loaded by its name, {path.stem}.")
    return path


def _file_preset(path):
    name = path.parent.name if path.name == cards.MODEL_FILE and path.parent.name else path.stem
    config = cards.read_generation_config(path.parent)
    return Preset(name, path.parent, cards.read_card(path), config, path.name)


def _folder_preset(folder, name=None):
    """The preset that a folder holds; what its card says is elsewhere is fetched."""
    _check_format(folder)
    card = cards.read_card(folder)
    name = name or card.get("name") or folder.resolve().name
    folder = _fetch_missing(name, folder, card)
    if not _is_preset(folder):
        raise UserError(
            f"{folder} is a folder without {cards.MODEL_FILE}, {cards.PIPELINE_FILE} or {cards.CARD_FILE}: give the "
            f"folder of a preset{_presets_in(folder)}."
        )
    return Preset(name, folder, card, cards.read_generation_config(folder))


def _presets_in(folder):
    inside = sorted(path for path in folder.glob("*/") if _is_preset(path))
    return f", e.g. {inside[0]}" if inside else " or a .keras file"


def _check_format(folder):
    """Raise UserError if a folder is in the format of diffusers or transformers."""
    convert = f"first turn it into a preset with `zoo convert {{}} {folder} FOLDER`"
    if (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is in the format of diffusers: {convert.format('stable-diffusion')}.")
    if not (folder / cards.MODEL_FILE).is_file() and (folder / "config.json").is_file():
        if model_type := cards.read_json(folder / "config.json").get("model_type"):
            how = convert.format("marian")
            if model_type != "marian":
                how = f"`zoo convert` reads model_type 'marian', not {model_type!r}"
            raise UserError(f"{folder} is in the format of transformers: {how}.")


def _find_folder(name):
    """The folder of the preset of that name."""
    presets = preset_folders()
    if name in presets:
        return presets[name]
    if name in MODELS and not MODELS[name].pretrained:
        raise UserError(
            f"{name} is an architecture without a pretrained file: build it with create_model({name!r}), or load one "
            f"of {_names(presets)}."
        )
    searched = " or ".join(str(root) for root in _roots() if root.is_dir())
    if name in MODELS:
        where = f"in {searched}" if searched else "installed with the package"
        raise UserError(f"The preset {name} is not {where}: {WHERE_TO_GET_PRESETS}.")
    known = set(presets) | set(MODELS)
    if not presets:
        raise UserError(
            f"There is no model {name!r}, and no preset is installed with the package: {WHERE_TO_GET_PRESETS}."
            f"{did_you_mean(name, known)}"
        )
    raise UserError(
        f"There is no model {name!r} in {searched}: choose one of {_names(known)}.{did_you_mean(name, known)}"
    )


def _names(names):
    return ", ".join(sorted(names)) or "none"


def _roots():
    """The folders that may hold presets, first the user's own."""
    own = os.environ.get("ZOO_MODELS_DIR")
    return [root for root in (own and pathlib.Path(own).expanduser(), CHECKOUT_MODELS) if root]


# ---------------------------------------------------------------------------------------------------------- fetching


def _snapshot(repository, revision):
    """The local folder of a repository of the Hugging Face Hub, fetched if need be."""
    import huggingface_hub

    if len(parts := repository.split("/")) != 2 or not all(parts):
        raise UserError(f"{HUB_PREFIX}{repository} is not a repository: write {HUB_PREFIX}owner/name.")
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision))
    except Exception as error:  # the hub, the network and the disk raise many kinds
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{HUB_PREFIX}{repository}{at} cannot be fetched ({error_summary(error)}): check the name, the revision "
            "and the network."
        ) from error


def _fetch_missing(name, folder, card):
    """Fetch the files that a card has a "url" for and that are not here; returns the folder where all files are.

    They go into the preset's folder if it is in `ZOO_MODELS_DIR`, else into one in Keras' cache. Copies that are there
    already and are those that the card describes stay.
    """
    missing = {
        file: entry for file, entry in card.get("files", {}).items() if "url" in entry and not (folder / file).is_file()
    }
    if not missing:
        return folder
    own, target = os.environ.get("ZOO_MODELS_DIR"), folder
    if not own or pathlib.Path(own).expanduser() != folder.parent:
        target = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras", "models", name).expanduser()
    for file, entry in missing.items():
        if not cards.is_sha256(entry.get("sha256")):
            raise UserError(
                f"{folder / cards.CARD_FILE} has a url for {file} but no sha256, so what it leads to cannot be trusted:"
                " add the sha256."
            )
    # The model comes last, because a preset whose model is in place counts as complete.
    for file, entry in sorted(missing.items(), key=lambda item: item[0].endswith(".keras")):
        if (target / file).is_file() and files.sha256(target / file) == entry["sha256"]:
            continue
        try:
            _download(entry["url"], target / file, entry["sha256"])
        except Exception as error:  # urllib, the disk and Keras raise many kinds
            raise UserError(
                f"{name} cannot be fetched from {entry['url']} into {target} ({error_summary(error)}): check both, "
                "then try again."
            ) from error
    if target != folder:  # its other files come along, so that every later load is checked against the card, too
        for path in folder.iterdir():
            if path.is_file() and path.name not in missing:
                with files.atomic_write(target / path.name) as temporary:
                    shutil.copyfile(path, temporary)
    return target


def _download(url, target, sha256):
    """Fetch to a file beside `target`, check its sha256, and only then put it in place."""
    backends.import_keras()
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
                file_hash=sha256,
                hash_algorithm="sha256",
            )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
