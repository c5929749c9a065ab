"""Names of classes in a file of the user's own."""

from __future__ import annotations

import json
import pathlib

from zoo.errors import UserError
from zoo.typing import StrPath

_MOST_BYTES = 2**24


def read_labels(path: StrPath) -> list[str]:
    """Read the names of classes.

    Args:
        path: a text file with one name a line, in the order of the classes; or JSON, a list of names, an object from
            each class to its name such as {"0": "cat", "1": "dog"}, or a config.json of transformers with "id2label".

    Returns:
        the names.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    path = pathlib.Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, too many for names of classes: give another file."
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a file with one name of a class a line."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: give a file with one name of a class a line.") from error
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
        return names
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({str(error)[:80]}): give a list of the names of the classes."
        ) from error
    if isinstance(content, dict):
        content = content.get("id2label", content)
    if isinstance(content, dict):
        content = [content.get(str(index)) for index in range(len(content))]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise UserError(
            f'{path} holds no names of classes: give a list such as ["cat", "dog"], or an object, {{"0": "cat"}}.'
        )
    return content
