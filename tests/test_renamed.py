"""Names that were given up stay given up: `renamed.tsv` holds (module, old name, new name)."""

import ast
import csv
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = pathlib.Path(__file__).with_name("renamed.tsv")


def rows():
    """[(module, old name, new name)] of the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file, delimiter="\t")][1:]


@functools.cache
def names_in(module):
    """Every identifier of a module's syntax tree, and every string in it that is one word (flags, keys, values)."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.alias(name=name, asname=asname):
                names |= {*name.split("."), asname}
            case ast.Constant(value=str(text)) if " " not in text:
                names.add(f'"{text}"')
    return names


def is_there(name, module):
    """Whether a module still uses a name; a flag or a value (with quotes) is looked for among its strings."""
    if name.startswith("--"):
        return f'"{name}"' in names_in(module)
    return name in names_in(module)


@pytest.mark.once
def test_the_table_has_rows_that_say_something():
    table = rows()
    assert len(table) > 300 and len(set(table)) == len(table)
    assert not [row for row in table if len(row) != 3 or row[1] == row[2] or not all(row)]


@pytest.mark.once
def test_no_module_has_its_old_names():
    assert not [row for row in rows() if is_there(row[1], row[0])]


@pytest.mark.once
def test_the_check_sees_an_old_name():
    """The other way round: what stands in the column of new names is found in most modules."""
    found = [is_there(new, module) for module, _, new in rows() if new.isidentifier() or new.startswith("--")]
    assert sum(found) > 0.8 * len(found)
