"""Docstrings of what is public, as the site generator reads them: a summary, every argument, and no argument too many.

Overridden methods of Keras' classes (`call`, `get_config`, `on_epoch_end`, …) are documented there.
"""

import logging
import operator
import pathlib

import keras
import pytest

pytestmark = pytest.mark.once
griffe = pytest.importorskip("griffe")
ROOT = pathlib.Path(__file__).resolve().parent.parent
# Commands are documented by `--help`, private names by what they stand for.
UNDOCUMENTED_ARGUMENTS = ("zoo.cli", "zoo.compat")


def public_objects(module):
    """Classes and functions of a module and its submodules, methods included."""
    for name, member in sorted(module.members.items()):
        if member.is_alias or name.startswith("_") and name != "__init__":
            continue
        if member.is_module:
            yield from public_objects(member)
        elif member.is_class or member.is_function or "property" in member.labels:
            yield member
            if member.is_class:
                yield from public_objects(member)


def is_keras_method(member):
    """Whether a method overrides one that Keras documents."""
    return any(hasattr(base, member.name) for base in keras_bases(member.parent))


def keras_bases(owner):
    for base in owner.bases if owner.is_class else ():
        path = str(base)
        if path.startswith("keras."):
            yield operator.attrgetter(path.removeprefix("keras."))(keras)
        elif path in owner.parent.members:
            yield from keras_bases(owner.parent.members[path])


OBJECTS = list(public_objects(griffe.load("zoo", search_paths=[ROOT], docstring_parser="google")))


def arguments(member):
    """Names of the arguments, with stars, in order."""
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    return [stars.get(one.kind, "") + one.name for one in member.parameters if one.name not in ("self", "cls")]


def test_there_is_a_docstring():
    missing = []
    for member in OBJECTS:
        if member.name != "__init__" and not is_keras_method(member) and not inherited_docstring(member):
            missing.append(member.path)
    assert not [path for path in missing if not path.startswith(UNDOCUMENTED_ARGUMENTS)]


def inherited_docstring(member):
    """A member's docstring, or that of the method it overrides."""
    if member.docstring or not member.parent.is_class:
        return member.docstring
    bases = [base for base in member.parent.mro() if member.name in base.members]
    return next((base.members[member.name].docstring for base in bases), None)


def test_it_begins_with_a_line_of_summary():
    wrong = []
    for member in OBJECTS:
        lines = member.docstring.value.splitlines() if member.docstring else []
        if lines and (len(lines) > 1 and lines[1] or not lines[0].rstrip().endswith((".", ":", "?", "!"))):
            wrong.append(f"{member.path}: {lines[0]}")
    assert not wrong


def test_every_argument_is_documented_and_nothing_else():
    wrong = []
    for member in OBJECTS:
        if member.path.startswith(UNDOCUMENTED_ARGUMENTS) or "property" in member.labels or not member.docstring:
            continue
        if member.is_class:
            init = member.members.get("__init__")
            if init is None or "dataclass" in member.labels:  # its attributes are listed
                continue
            expected = arguments(init)
        elif member.is_function:
            if is_keras_method(member) or member.name == "__init__":
                continue
            expected = arguments(member)
        else:
            continue
        found = [
            one.name for section in sections(member) if section.kind.value == "parameters" for one in section.value
        ]
        if found != expected:
            wrong.append(f"{member.path}: documents {found}, takes {expected}")
    assert not wrong, "\n".join(wrong)


def test_data_classes_document_their_attributes():
    wrong = []
    for member in OBJECTS:
        if "dataclass" not in member.labels:
            continue
        found = [
            one.name for section in sections(member) if section.kind.value == "attributes" for one in section.value
        ]
        expected = [
            name
            for name, one in member.members.items()
            if one.is_attribute
            and "property" not in one.labels
            and not name.startswith("_")
            and one.annotation is not None
        ]
        if found != expected:
            wrong.append(f"{member.path}: documents {found}, has {expected}")
    assert not wrong, "\n".join(wrong)


def test_what_is_returned_is_documented():
    """Of functions that return something and document their arguments."""
    wrong = []
    for member in OBJECTS:
        if not member.is_function or member.path.startswith(UNDOCUMENTED_ARGUMENTS) or is_keras_method(member):
            continue
        kinds = {section.kind.value for section in sections(member)}
        if "parameters" in kinds and str(member.returns) != "None" and not kinds & {"returns", "yields"}:
            wrong.append(member.path)
    assert not wrong, "\n".join(wrong)


def sections(member):
    logger = logging.getLogger("griffe")
    before, logger.disabled = logger.disabled, True
    try:
        options = {"returns_named_value": False, "returns_multiple_items": False, "warn_unknown_params": False}
        return member.docstring.parse("google", **options) if member.docstring else []
    finally:
        logger.disabled = before
