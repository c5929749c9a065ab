"""The help of the recipes, ranges of flags, and defaults that depend on the data."""

import importlib
import pathlib
import re

import pytest

from zoo.errors import UserError
from zoo.training import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__")


def help_of(recipe, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"recipes.{recipe}").parse_args(["--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.once
@pytest.mark.parametrize("recipe", RECIPES)
def test_help_explains_every_flag_with_its_default(recipe, monkeypatch, capsys):
    text = help_of(recipe, monkeypatch, capsys)
    assert max(map(len, text.splitlines())) <= 80
    options = text.partition("\noptions:\n")[2].partition("\n\n")[0]
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=--)", options)[1:]]
    assert len(entries) >= 8
    for entry in entries:
        explained = re.fullmatch(r"--[a-z-]+( [^ ]+)*? (?P<help>[a-z].{5,}) \(default: .+\)", entry, re.IGNORECASE)
        assert explained, entry
    defaults = importlib.import_module(f"recipes.{recipe}").parse_args([])
    for name, value in vars(defaults).items():
        if name not in ("fallback", "given") and value not in (None, False):
            (entry,) = (entry for entry in entries if entry.startswith(f"--{name.replace('_', '-')} "))
            assert f"(default: {value}" in entry
    for name, value in defaults.fallback.items():
        (entry,) = (entry for entry in entries if entry.startswith(f"--{name.replace('_', '-')} "))
        assert re.search(rf"; for [^;]+: {re.escape(str(value))}\)$", entry)
    assert f"python recipes/{recipe}.py" in text and "minutes on 2 CPU cores" in " ".join(text.split())


def parser():
    parser = flags.parser("A recipe.")
    flags.add(parser, "limit", "parity", epochs=20, dropout=0.5)
    flags.add_fallback(parser, "digits", epochs=4, dropout=0.2)
    return parser


@pytest.mark.once
def test_fallback_defaults_leave_alone_what_was_given():
    args = parser().parse_args(["--epochs", "20"])
    flags.use_fallback(args)
    assert (args.epochs, args.dropout, args.limit) == (20, 0.2, None)
    args = parser().parse_args([])
    assert (args.epochs, args.dropout) == (20, 0.5)
    assert flags.settings(args) == {"limit": None, "parity": False, "epochs": 20, "dropout": 0.5}


@pytest.mark.once
def test_ranges():
    for arguments, message in (
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--dropout", "1"], r"--dropout must be in \[0, 1\), got 1"),
    ):
        with pytest.raises(UserError, match=message):
            flags.check(parser().parse_args(arguments))
