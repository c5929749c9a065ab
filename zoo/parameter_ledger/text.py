"""A ledger as a table for the terminal or in Markdown."""

import shutil

from zoo.parameter_ledger.format import (
    format_bytes,
    format_count,
    format_formula,
    format_macs,
    format_memory,
    format_outputs,
)
from zoo.parameter_ledger.formulas import LEGEND


def format_table(ledger, width=None):
    """The ledger for a terminal of `width` columns: two lines a layer, the formula above its numbers."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    trainable = "all trainable" if ledger.trainable == ledger.parameters else f"{ledger.trainable:,} trainable"
    title = f"{ledger.name}: {ledger.parameters:,} parameters ({trainable}, {format_bytes(ledger.weight_bytes)})"
    if (macs := format_macs(ledger)) != "?":
        title += f", {macs} multiply-accumulates (MACs) an example"
    lines = [*_wrapped("", title, width), ""]
    cells = [_cells(ledger, row) for row in ledger.rows]
    header = ("layer", "output", "parameters", "MACs", "formula of the parameters")
    widths = [max(len(line[column]) for lines_ in [[header], *cells] for line in lines_) for column in range(4)]
    widths[0] = min(widths[0], max(16, width - sum(widths[1:]) - 44))

    def join(line):
        name = line[0]
        if len(name) > widths[0]:  # names of like layers differ at their ends
            end = (widths[0] - 1) // 2
            name = f"{name[: widths[0] - 1 - end]}…{name[-end:]}"
        fixed = f"{name:<{widths[0]}}  {line[1]:<{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}  "
        return _wrapped(fixed, line[4], width)

    lines += join(header) + ["─" * min(width, max(70, sum(widths) + 44))]
    for row_lines in cells:
        for line in row_lines:
            lines += join(line)
    lines += ["─" * min(width, max(70, sum(widths) + 44)), ""]
    lines += _wrapped("", format_memory(ledger), width)
    if ledger.unknown_layers:
        names = ", ".join(row.path for row in ledger.unknown_layers[:5]) + (
            ", …" if len(ledger.unknown_layers) > 5 else "."
        )
        reason = "a size is open (give --input-shape)" if _has_open_sizes(ledger) else "they are of an unknown kind"
        lines += _wrapped("", f"MACs or activations not counted, because {reason}: {names}", width)
    symbols = {symbol for row in ledger.rows for formula in row.formulas for symbol in formula.symbols}
    legend = "; ".join(f"{symbol} {meaning}" for symbol, meaning in LEGEND.items() if symbol in symbols)
    if legend:
        lines += _wrapped("", f"Symbols: {legend}; + 1 is the bias.", width)
    return "\n".join(line.rstrip() for line in lines)


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


def format_markdown(ledger):
    """The ledger as a Markdown table with the formulas of each row."""
    lines = ["| layer | kind | output | parameters | arithmetic | MACs |", "| --- | --- | --- | ---: | --- | ---: |"]
    for row in ledger.rows:
        sums = "<br>".join([*(format_formula(formula) for formula in row.formulas), *([row.note] if row.note else [])])
        name = "&nbsp;&nbsp;" * row.depth + (f"*{row.name}*" if row.group else row.name)
        parameters = "" if row.group else f"{row.counted_parameters:,}"
        macs = "" if row.group else format_count(row.macs)
        lines.append(f"| {name} | {row.kind} | {format_outputs(row)} | {parameters} | {sums} | {macs} |")
    lines.append(f"| **total** | | | **{ledger.parameters:,}** | | **{format_macs(ledger)}** |")
    return "\n".join([*lines, "", format_memory(ledger), ""])
