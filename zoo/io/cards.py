"""The files of a preset folder: their names, the card that describes them, the settings used for generation."""

import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from zoo.errors import UserError
from zoo.io import files, schemas
from zoo.typing import StrPath

MODEL_FILE = "model.keras"
CARD_FILE = "card.json"
PARITY_FILE = "parity.npz"
METRICS_FILE = "metrics.json"  # of a run of a recipe
TOKENIZER_FILE = "tokenizer.json"
GENERATION_CONFIG_FILE = "generation_config.json"
PIPELINE_FILE = "pipeline.json"  # what a latent diffusion consists of
# The parts that a latent diffusion is trained in, in this order, and the files that each leaves in the preset folder.
DIFFUSION_PARTS = {
    "classifier": ("classifier.keras",),
    "autoencoder": ("encoder.keras", "decoder.keras"),
    "text_encoder": ("text_encoder.keras", TOKENIZER_FILE),
    "denoiser": ("denoiser.keras", PIPELINE_FILE),
}

_SHA256 = re.compile("[0-9a-f]{64}")


def read_json(path: StrPath) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: of the file.

    Returns:
        the object as a dict, {} if there is no such file.

    Raises:
        UserError: if it is not valid JSON, or holds something else than an object.
    """
    return schemas.read_object(path, "a description", optional=True)


def read_generation_config(folder: StrPath) -> dict[str, Any]:
    """Read the settings used for generation of a preset folder.

    Args:
        folder: the folder.

    Returns:
        the settings; {} if there are none.

    Raises:
        UserError: if the file is damaged, or a setting is not of its type or within its bounds.
    """
    path = pathlib.Path(folder) / GENERATION_CONFIG_FILE
    settings = schemas.read_object(path, "the settings used for generation", optional=True)
    schemas.check(settings, schemas.GenerationSettings, path)
    return settings


def read_card(path: StrPath) -> dict[str, Any]:
    """Read the card of a preset folder, or the one that describes a file.

    Args:
        path: a folder, or a file in one: a card counts for a file only if it names it.

    Returns:
        the card; {} if there is none.

    Raises:
        UserError: if the card is damaged.
    """
    path = pathlib.Path(path)
    card_path = (path if path.is_dir() else path.parent) / CARD_FILE
    card = {key: value for key, value in read_json(card_path).items() if value is not None}
    schemas.check(card, schemas.Card, card_path)
    described = card.setdefault("files", {}) if card else {}
    return card if path.is_dir() or path.name in described else {}


def check_file(path: StrPath) -> bool:
    """Compare a file with the sha256 in the card of its folder; a file that no card names passes.

    Args:
        path: of the file.

    Returns:
        whether a card names it, so that it is whole.

    Raises:
        UserError: if they differ.
    """
    path = pathlib.Path(path)
    entry = read_card(path).get("files", {}).get(path.name)
    if entry is not None and entry.get("sha256") != (digest := files.sha256(path)):
        raise UserError(
            f"{path} has sha256 {digest[:12]}… but {CARD_FILE} beside it says {str(entry.get('sha256'))[:12]}…: the "
            "file was altered or cut short, fetch it again."
        )
    return entry is not None


def write_card(folder: StrPath, card: Mapping[str, Any], names: Iterable[str]) -> None:
    """Write the card of a folder, with the sha256 and the size of each file named.

    Args:
        folder: the preset folder.
        card: dict.
        names: names of files in the folder.
    """
    if files.discarding():
        return
    folder = pathlib.Path(folder)
    entries = {name: {"sha256": files.sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    files.write_json(folder / CARD_FILE, {"name": folder.name, "task": None, **card, "files": entries})


def is_sha256(value: object) -> bool:
    """Whether a value of a card is a hexadecimal sha256.

    Args:
        value: anything.

    Returns:
        True if it is.
    """
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def without_resume_flag(command: str) -> str:
    """The command that repeats a run: a resumed run equals, bit for bit, one that was never interrupted.

    Args:
        command: of the run, as for a shell.

    Returns:
        the command without `--resume` and `--overwrite`.
    """
    return shlex.join(word for word in shlex.split(command) if word not in ("--resume", "--overwrite"))
