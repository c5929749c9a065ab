"""zoo list: a table of every model."""

import argparse
import os
import shutil
import textwrap

from zoo.errors import UserError

HELP = "show every model: its task, size and result"
EPILOG = """examples:
  zoo list
  zoo list --pretrained
  ZOO_MODELS_DIR=~/models zoo list"""
# Where a card holds one of these, it is shown as the result: accuracy, bits per character, BLEU.
_METRICS = (
    ("test_accuracy", "{:.2%} acc"),
    ("test_bits_per_character", "{:.3f} bpc"),
    ("test_bleu_beam_5", "{:.1f} BLEU"),
)
_ARCHITECTURES = "Architectures, built with fresh weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pretrained", action="store_true", help="presets only, no architectures")


def run(args: argparse.Namespace) -> None:
    from zoo import presets
    from zoo.io import cards

    not_here = f"Presets that are not here ({presets.WHERE_TO_GET_PRESETS})"
    folders = presets.preset_folders()
    rows, sources = [("name", "task", "parameters", "result", "size")], {}
    for name in presets.list_models(True if args.pretrained else None):
        entry, folder = presets.MODELS.get(name), folders.get(name)
        card = cards.read_card(folder) if folder else {}
        task = card.get("task") or (entry.task if entry else "")
        parameters = card.get("parameters") or (entry.parameters if entry else None)
        rows.append(
            (name, task, f"{parameters:,}" if parameters else "", _result(card), _size(folder, card) if folder else "")
        )
        source = not_here if not folder and entry and entry.pretrained else _source(folder, card)
        sources.setdefault(source, []).append(name)
    if len(rows) == 1:
        raise UserError(f"No preset is installed with the package: {presets.WHERE_TO_GET_PRESETS}.")
    print(_table(rows, right_aligned=(2, 3, 4)) + "\n")
    for source, names in sorted(sources.items(), key=lambda item: (item[0] == not_here, item[0] == _ARCHITECTURES)):
        line = f"{source}: {', '.join(names)}"
        print(textwrap.fill(line, shutil.get_terminal_size().columns, break_long_words=False))


def _result(card):
    results = [text.format(card[key]) for key, text in _METRICS if card.get(key) is not None]
    if held_out := (card.get("scores") or {}).get("held_out"):  # the share of images that show what their prompt says
        results.append(f"{held_out['all']:.1%} acc")
    return ", ".join(results)


def _size(folder, card):
    """The size of a preset's files, e.g. "38 MB"."""
    described = card.get("files", {})
    here = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    size = sum(
        {name: entry.get("bytes", 0) for name, entry in described.items()}.values() if described else here.values()
    )
    unit, divisor = ("MB", 1e6) if size >= 1e5 else ("kB", 1e3)
    return f"{size / divisor:.{0 if size >= 10 * divisor else 1}f} {unit}" if size else ""


def _source(folder, card):
    """Where a model comes from, in words."""
    if folder is None:
        return _ARCHITECTURES
    for name, entry in card.get("files", {}).items():
        if "url" in entry and not (folder / name).is_file():
            return f"Fetched from {entry['url']} at first use"
    shown = os.path.relpath(folder.parent)
    return f"Presets in {folder.parent if shown.startswith('..') else shown}"


def _table(rows, right_aligned):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if k in right_aligned else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
