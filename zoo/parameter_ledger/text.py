"""A ledger as a table for the terminal or in Markdown."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from zoo.parameter_ledger.blocks import BLOCK, BLOCKS, fold
from zoo.parameter_ledger.format import (
    format_bytes,
    format_count,
    format_formula,
    format_macs,
    format_memory,
    format_outputs,
)
from zoo.parameter_ledger.formulas import LEGEND

if TYPE_CHECKING:
    from zoo.parameter_ledger.ledger import Ledger

_TERMINAL = (80, 24)  # where the output is none


def format_table(ledger: Ledger, width: int | None = None, full: bool = False) -> str:
    """The ledger as a table for a terminal.

    Args:
        ledger: a `zoo.parameter_ledger.ledger.Ledger`.
        width: columns; the terminal's own if None, 80 where there is none.
        full: show each layer of a deep model, which else is a line a block.

    Returns:
        the table.
    """
    width = width or shutil.get_terminal_size(_TERMINAL).columns
    trainable = "all trainable" if ledger.trainable == ledger.parameters else f"{ledger.trainable:,} trainable"
    title = f"{ledger.name}: {ledger.parameters:,} parameters ({trainable}, {format_bytes(ledger.weight_bytes)})"
    if (macs := format_macs(ledger)) != "?":
        title += f", {macs} multiply-accumulates (MACs) an example"
    lines = [*_wrapped("", title, width), ""]
    rows = tuple(ledger.rows) if full else fold(ledger.rows)
    is_folded = any(row.kind in (BLOCK, BLOCKS) for row in rows)
    lines += _block_lines(ledger, rows, width) if is_folded else _layer_lines(ledger, width)
    lines += ["", *_wrapped("", format_memory(ledger), width)]
    if unknown := ledger.unknown_layers:
        names = ", ".join(row.path for row in unknown[:5]) + (", …" if len(unknown) > 5 else ".")
        reason = "they are of an unknown kind"
        if _has_open_sizes(ledger):
            reason = f"a size is open (give --input-shape {_example_shapes(ledger)})"
        where = f" in {len(unknown)} layers and operations" if is_folded else ""
        remark = f"MACs or activations not counted{where}, because {reason}"
        lines += _wrapped("", f"{remark}." if is_folded else f"{remark}: {names}", width)
    if is_folded:
        lines += _wrapped("", "A line is a block or a layer that changes the shape: --full shows every layer.", width)
        return "\n".join(line.rstrip() for line in lines)
    symbols = {symbol for row in ledger.rows for formula in row.formulas for symbol in formula.symbols}
    legend = "; ".join(f"{symbol} {meaning}" for symbol, meaning in LEGEND.items() if symbol in symbols)
    if legend:
        lines += _wrapped("", f"Symbols: {legend}; + 1 is the bias.", width)
    return "\n".join(line.rstrip() for line in lines)


# ------------------------------------------------------------------------------------------------------ a line a block


def _block_lines(ledger, rows, width):
    """Head, lines and rule of the table that has a line for each block, and for each layer outside of blocks."""
    cells, index = [], 0
    while index < len(rows):
        row, end = rows[index], index + 1
        if row.kind in (BLOCK, BLOCKS):
            while end < len(rows) and rows[end].depth > row.depth:
                end += 1
            cells.append(_block_cells(ledger, row, [inner for inner in rows[index:end] if not inner.group]))
        elif row.group or _is_shown(row):
            cells.append(_single_cells(ledger, row))
        index = end
    header = ("block or layer", "output", "parameters", "", "MACs", "in numbers")
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(6)]
    fixed = sum(widths[1:5]) + 5 * 2
    widths[0] = min(widths[0], max(18, width - fixed - min(widths[5], 24)))
    widths[5] = max(0, min(widths[5], width - fixed - widths[0]))
    rule = "─" * min(width, fixed + widths[0] + widths[5])

    def join(line):
        name, output, parameters, fraction, macs, text = (_shortened(cell, n) for cell, n in zip(line, widths))
        return (
            f"{name:<{widths[0]}}  {output:<{widths[1]}}  {parameters:>{widths[2]}}  {fraction:>{widths[3]}}  "
            f"{macs:>{widths[4]}}  {text}"
        )

    return [join(header), rule, *map(join, cells), rule]


def _is_shown(row):
    """Whether a row outside of blocks has a line: an input, parameters, work, or a layer that changes the shape."""
    changes_shape = hasattr(row.layer, "weights") and row.kind != "Reshape" and row.outputs[:1] != row.inputs[:1]
    return bool(row.parameters) or row.macs != 0 or row.kind == "InputLayer" or changes_shape


def _block_cells(ledger, row, inner):
    macs = None if any(one.macs is None for one in inner) else sum(one.macs for one in inner)
    if row.kind == BLOCKS:
        repeats = int(row.note.removeprefix("×"))
        name, text = f"{row.name}  ×{repeats}", f"{repeats} × {row.parameters // repeats:,}"
    else:
        name, layers = row.name, sum(bool(one.counted_parameters) for one in inner)
        text = f"{layers} layers" if row.parameters else row.note
    return _line_cells(ledger, row, name, row.parameters, macs, text)


def _single_cells(ledger, row):
    if row.group:
        return (f"{'  ' * row.depth}{row.name} ({row.kind})", format_outputs(row), "", "", "", row.note)
    texts = [formula.substituted for formula in row.formulas]
    text = row.note.replace("shared: counted at", "shared with") or (
        "" if not texts else texts[0] if len(texts) == 1 else f"{len(texts)} parts"
    )
    return _line_cells(ledger, row, row.name, row.counted_parameters, row.macs, text)


def _line_cells(ledger, row, name, counted, macs, text):
    fraction = f"{counted / ledger.parameters:.1%}" if counted else ""
    parameters = f"{counted:,}" if counted or row.parameters else ""
    return ("  " * row.depth + name, format_outputs(row), parameters, fraction, format_count(macs) * (macs != 0), text)


def _shortened(text, length):
    """A text of at most so many characters: names of like layers differ at their ends."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[-end:]}" if end else text[:length]


# ------------------------------------------------------------------------------------------------ layers with formulas


def _layer_lines(ledger, width):
    """Head, lines and rule of the table that has two lines for each layer, the formula above its numbers."""
    cells = [_cells(ledger, row) for row in ledger.rows]
    header = ("layer", "output", "parameters", "MACs", "formula of the parameters")
    widths = [max(len(line[column]) for lines_ in [[header], *cells] for line in lines_) for column in range(4)]
    widths[0] = min(widths[0], max(16, width - sum(widths[1:]) - 44))
    rule = "─" * min(width, max(70, sum(widths) + 44))

    def join(line):
        name = _shortened(line[0], widths[0])
        fixed = f"{name:<{widths[0]}}  {line[1]:<{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}  "
        return _wrapped(fixed, line[4], width)

    return [*join(header), rule, *(text for lines in cells for line in lines for text in join(line)), rule]


def _example_shapes(ledger):
    """What could be given for the inputs that leave sizes open: "latents=64,64,4 context=16,128"."""
    inputs = [row for row in ledger.rows if row.kind == "InputLayer" and row.depth == 0 and None in row.outputs[0]]
    shapes = []
    for row in inputs:
        example = 64 if len(row.outputs[0]) > 2 else 16
        shapes.append(",".join(str(one or example) for one in row.outputs[0]))
    return " ".join(f"{row.name}={shape}" for row, shape in zip(inputs, shapes)) or "48,48,3"


def _has_open_sizes(ledger):
    """Whether the rows of unknown MACs have open sizes."""
    return any(None in shape for row in ledger.unknown_layers for shape in (*row.inputs, *row.outputs))


def _cells(ledger, row):
    """The lines of one row: (name, output, parameters, MACs, text)."""
    indent = "  " * row.depth
    if row.group:
        return [(f"{indent}{row.name} ({row.kind})", format_outputs(row), "", "", row.note)]
    parameters = f"{row.counted_parameters:,}" if row.parameters or row.counted_parameters else ""
    macs = format_count(row.macs) if row.macs != 0 else ""
    texts = []
    for formula in row.formulas:
        part = f"{formula.part}: " if formula.part and len(row.formulas) > 1 else ""
        texts.append(f"{part}{formula.symbolic}")
        if formula.symbolic != formula.substituted:
            texts.append(f"= {formula.substituted}" + (f" = {formula.value:,}" if len(row.formulas) > 1 else ""))
    if row.note:
        texts.append(f"({row.note})")
    first = (f"{indent}{row.name}", format_outputs(row), parameters, macs, texts[0] if texts else "")
    fraction = f"{ledger.fraction(row):.1%}" if row.counted_parameters else ""
    second = (f"{indent}  {row.kind}", "", fraction, "", texts[1] if len(texts) > 1 else "")
    return [first, second, *(("", "", "", "", text) for text in texts[2:])]


def _wrapped(prefix, text, width):
    """Lines of at most `width` columns, the text continued under where it began."""
    if len(prefix) > width - 20:
        return [prefix.rstrip(), *_wrapped("    ", text, width)] if text else [prefix.rstrip()]
    lines, line = [], prefix
    for word in text.split(" "):
        if len(line) + len(word) > width and line.strip() and line != " " * len(prefix):
            lines.append(line)
            line = " " * len(prefix)
        line += word + " "
    return [*lines, line]


def format_markdown(ledger: Ledger) -> str:
    """The ledger as a Markdown table.

    Args:
        ledger: a `Ledger`.

    Returns:
        the table.
    """
    lines = ["| layer | kind | output | parameters | arithmetic | MACs |", "| --- | --- | --- | ---: | --- | ---: |"]
    for row in ledger.rows:
        sums = "<br>".join([*(format_formula(formula) for formula in row.formulas), *([row.note] if row.note else [])])
        name = "&nbsp;&nbsp;" * row.depth + (f"*{row.name}*" if row.group else row.name)
        parameters = "" if row.group else f"{row.counted_parameters:,}"
        macs = "" if row.group else format_count(row.macs)
        lines.append(f"| {name} | {row.kind} | {format_outputs(row)} | {parameters} | {sums} | {macs} |")
    lines.append(f"| **total** | | | **{ledger.parameters:,}** | | **{format_macs(ledger)}** |")
    return "\n".join([*lines, "", format_memory(ledger), ""])
