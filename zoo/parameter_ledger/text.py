"""A ledger as a table for the terminal or in Markdown."""

import shutil

from zoo.parameter_ledger.formulas import LEGEND
from zoo.parameter_ledger.ledger import shape_text


def count(number):
    """12,345 in full; from a million on with three digits: "227 M", "1.36 G"; "?" for None."""
    return _scaled(number, ((1e12, "T"), (1e9, "G"), (1e6, "M")), "")


def size(number):
    """Bytes in decimal units: "295 kB", "38.1 MB"; "?" for None."""
    return _scaled(number, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")), " B")


def _scaled(number, units, plain):
    if number is None:
        return "?"
    for factor, unit in units:
        if number >= factor:
            scaled = number / factor
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:.0f} {unit}"
    return f"{number:,}{plain}"


def outputs(row):
    """The shapes a row gives, e.g. "48·48·32"."""
    return ", ".join(shape_text(shape) for shape in row.outputs)


def sentence(formula):
    """A formula in full: "query (d_q_in + 1)·n·d_k = (64 + 1)·4·16 = 4,160"."""
    letters = formula.letters if formula.letters == formula.numbers else f"{formula.letters} = {formula.numbers}"
    value = "?" if formula.value is None else f"{formula.value:,}"
    part = f"{formula.part}: " if formula.part else ""
    return f"{part}{letters} = {value}" if letters != value else f"{part}{value}"


def total_macs(book):
    """The MACs of an example: "96.4 M"; "≥ 96.4 M" where some rows are unknown, "?" where nothing is known."""
    if not book.unknown:
        return count(book.macs)
    return f"≥ {count(book.macs)}" if book.macs else "?"


def memory_line(book):
    """The memory of training in one line; parts that cannot be counted are left out."""
    parts = book.training_memory()
    total = parts.pop("total")
    shown = ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value or not book.unknown)
    return (
        f"Training with Adam at batch {book.batch_size} takes {'at least' if book.unknown else 'about'} "
        f"{size(total)}: {shown}."
    )


def table(book, width=None):
    """The ledger for a terminal of `width` columns: two lines a layer, letters above numbers."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    trainable = "all trainable" if book.trainable == book.parameters else f"{book.trainable:,} trainable"
    title = f"{book.name}: {book.parameters:,} parameters ({trainable}, {size(book.weight_bytes)})"
    if (macs := total_macs(book)) != "?":
        title += f", {macs} multiply-accumulates (MACs) an example"
    lines = [*_wrapped("", title, width), ""]
    cells = [_cells(book, row) for row in book.rows]
    header = ("layer", "output", "parameters", "MACs", "where the parameters come from")
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
    lines += _wrapped("", memory_line(book), width)
    if book.unknown:
        names = ", ".join(row.path for row in book.unknown[:5]) + (", …" if len(book.unknown) > 5 else ".")
        reason = "a size is open (give --input-shape)" if _open(book) else "they are of an unknown kind"
        lines += _wrapped("", f"MACs or activations not counted, because {reason}: {names}", width)
    used = {letter for row in book.rows for formula in row.formulas for letter in formula.used}
    legend = "; ".join(f"{letter} {meaning}" for letter, meaning in LEGEND.items() if letter in used)
    if legend:
        lines += _wrapped("", f"Letters: {legend}; + 1 is the bias.", width)
    return "\n".join(line.rstrip() for line in lines)


def _open(book):
    """Whether the rows that are not counted have open sizes."""
    return any(None in shape for row in book.unknown for shape in (*row.inputs, *row.outputs))


def _cells(book, row):
    """The lines of one row: (name, output, parameters, MACs, text)."""
    indent = "  " * row.depth
    if row.group:
        return [(f"{indent}{row.name} ({row.kind})", outputs(row), "", "", row.note)]
    shown = f"{row.counted:,}" if row.parameters or row.counted else ""
    macs = count(row.macs) if row.macs != 0 else ""
    texts = []
    for formula in row.formulas:
        part = f"{formula.part}: " if formula.part and len(row.formulas) > 1 else ""
        texts.append(f"{part}{formula.letters}" if formula.letters != formula.numbers else f"{part}{formula.numbers}")
        if formula.letters != formula.numbers:
            texts.append(f"= {formula.numbers}" + (f" = {formula.value:,}" if len(row.formulas) > 1 else ""))
    if row.note:
        texts.append(f"({row.note})")
    first = (f"{indent}{row.name}", outputs(row), shown, macs, texts[0] if texts else "")
    share = f"{book.share(row):.1%}" if row.counted else ""
    second = (f"{indent}  {row.kind}", "", share, "", texts[1] if len(texts) > 1 else "")
    return [first, second, *(("", "", "", "", text) for text in texts[2:])]


def _wrapped(fixed, text, width):
    """Lines of at most `width` columns, the text continued under where it began."""
    if len(fixed) > width - 20:
        return [fixed.rstrip(), *_wrapped("    ", text, width)] if text else [fixed.rstrip()]
    lines, line = [], fixed
    for word in text.split(" "):
        if len(line) + len(word) > width and line.strip() and line != " " * len(fixed):
            lines.append(line)
            line = " " * len(fixed)
        line += word + " "
    return [*lines, line]


def markdown(book):
    """The ledger as a Markdown table with the arithmetic of each row."""
    lines = ["| layer | kind | output | parameters | arithmetic | MACs |", "| --- | --- | --- | ---: | --- | ---: |"]
    for row in book.rows:
        sums = "<br>".join([*(sentence(formula) for formula in row.formulas), *([row.note] if row.note else [])])
        name = "&nbsp;&nbsp;" * row.depth + (f"*{row.name}*" if row.group else row.name)
        shown = "" if row.group else f"{row.counted:,}"
        macs = "" if row.group else count(row.macs)
        lines.append(f"| {name} | {row.kind} | {outputs(row)} | {shown} | {sums} | {macs} |")
    lines.append(f"| **total** | | | **{book.parameters:,}** | | **{total_macs(book)}** |")
    return "\n".join([*lines, "", memory_line(book), ""])
