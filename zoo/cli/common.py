"""What several verbs share: help texts, types of arguments, printing, loading a model."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from zoo.errors import UserError

if TYPE_CHECKING:
    import pathlib

    import keras

    from zoo.presets import Preset
    from zoo.typing import StrPath

MODEL_HELP = "a name from `zoo list`, the folder of a preset, hf://owner/name, or the path of a .keras file"


def image_size(text: str) -> tuple[int, ...]:
    """(width, height) of a text such as 768x512."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 768x512")
    return tuple(int(side) for side in text.split("x"))


def comma_separated(text: str) -> list[str]:
    """The words of a list such as jax,torch."""
    return [word.strip() for word in text.split(",")]


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an integer argument with a smallest value."""

    def integer(text):
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    return integer


def input_shape(text: str) -> tuple[str | None, tuple[int, ...]]:
    """(name, sizes) of a text such as image=48,48,3; the name is None where there is none."""
    name, equals, sizes_text = text.rpartition("=")
    sizes = re.split(r"[,x]", sizes_text)
    if (equals and not name) or not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 48,48,3 or image=48,48,3")
    return name or None, tuple(int(size) for size in sizes)


def shapes_by_name(
    given: list[tuple[str | None, tuple[int, ...]]],
) -> dict[str, tuple[int, ...]] | tuple[int, ...]:
    """{name: shape} of what --input-shape was given, or the shape if it has no name."""
    named = {name: shape for name, shape in given if name is not None}
    if len(named) == len(given):
        return named
    if len(given) > 1:
        raise UserError("--input-shape takes one shape without a name, or each with the name of its input: NAME=H,W,C.")
    return given[0][1]


def add_lora_argument(parser: argparse.ArgumentParser) -> None:
    """Add --lora to a parser."""
    parser.add_argument(
        "--lora",
        action="append",
        metavar="FILE[:SCALE]",
        help="LoRA file or folder of a run to add, at a scale, 1 unless said; may be repeated; default none",
    )


def lora_files(args: argparse.Namespace) -> list[StrPath | tuple[StrPath, float]] | None:
    """What --lora names, for `from_preset`; None where it is not given."""
    from zoo.lora import parse_file_and_scale

    return [parse_file_and_scale(text) for text in args.lora] if args.lora else None


def log(text: str) -> None:
    """Print at once; in a terminal, long lines are broken at words, with the indent of their beginning."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(_wrapped(line, width) for line in text.split("\n"))
    print(text, flush=True)


def _wrapped(line, width):
    indent = len(line) - len(line.lstrip()) + (3 if line.lstrip()[:1].isdigit() and ". " in line[:6] else 0)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def note_unlisted_files(preset: Preset) -> None:
    """Say on stderr which model files of a preset no card vouches for: they may have been altered unseen."""
    from zoo.io import cards

    for path in preset.model_paths:
        if path.name not in preset.card.get("files", {}):
            print(
                f"note: nothing vouches for {path}: no {cards.CARD_FILE} beside it has its sha256, so that an altered "
                "file would not be noticed.",
                file=sys.stderr,
            )


def find_models(name_or_path: str) -> dict[str, pathlib.Path | None]:
    """The models that a preset, file or architecture consists of: {what to call each: its path}.

    The path is None for an architecture, which has no file.
    """
    from zoo import presets

    if _is_architecture(name_or_path):
        return {name_or_path: None}
    if name_or_path.endswith(".keras"):
        return {name_or_path: presets.resolve_model_path(name_or_path)}
    preset = presets.find_preset(name_or_path)
    if len(paths := preset.model_paths) > 1:
        return {f"{name_or_path}/{path.stem}": path for path in paths}
    return {name_or_path: preset.model_path}


def load_model(name_or_path: str) -> keras.Model:
    """The model of a preset or file, or else the architecture of that name; its layers have shapes, but no weights."""
    from zoo import presets

    path = None if _is_architecture(name_or_path) else presets.resolve_model_path(name_or_path)
    return load_found_model(name_or_path, path, load_weights=False)


def load_found_model(name: str, path: pathlib.Path | None, *, load_weights: bool = True) -> keras.Model:
    """One of `find_models`; without weights its layers have shapes alone, which takes no time."""
    from zoo import backends, presets
    from zoo.io import model_files

    if path is not None and not path.is_file():
        model_files.check_model_file(path)  # raises, before the wait for a framework
    backends.import_keras(preferred="jax")  # which starts soonest
    from zoo.compat.keras import skip_weight_init

    with contextlib.nullcontext() if load_weights else skip_weight_init():
        if path is None:
            return presets.create_model(name)
        return model_files.load_model(path, load_weights=load_weights)


def _is_architecture(name):
    from zoo import presets

    entry = presets.MODELS.get(name)
    return entry is not None and not entry.pretrained and name not in presets.preset_folders()
