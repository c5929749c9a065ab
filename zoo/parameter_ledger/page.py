"""A ledger as one page of HTML: the layers as boxes from input to output, each opening to its arithmetic.

The page stands alone: no network, no fonts or scripts from elsewhere; pictures are inside it. It works without
JavaScript, which adds only "find a layer", "open all" and that printing opens the boxes.
"""

import base64
import html
import math
import re

import keras
from keras import layers

from zoo.parameter_ledger.filter_images import filter_picture, png
from zoo.parameter_ledger.formulas import LEGEND
from zoo.parameter_ledger.ledger import shape_text
from zoo.parameter_ledger.page_style import POLICY, SCRIPT, STYLE
from zoo.parameter_ledger.text import outputs, size, total_macs

# CSS class of a family: what the page calls it, and what the names of its kinds look like; the first match counts.
FAMILIES = {
    "net": ("nested model", r"^$"),
    "rnn": ("recurrent", r"LSTM|GRU|RNN|Bidirectional"),
    "att": ("attention", r"Attention"),
    "con": ("convolution", r"Conv"),
    "den": ("dense", r"Dense"),
    "nor": ("normalisation", r"Norm"),
    "poo": ("pooling", r"Pool"),
    "emb": ("embedding", r"Embedding"),
    "ops": ("activation, dropout, shape, sum and other", r""),
}
MEMORY = {
    "weights": "the parameters",
    "gradients": "one number for each trainable parameter",
    "optimizer": "what Adam keeps: two numbers for each trainable parameter",
    "activations": "the batch, and what layers keep of it for the backward pass",
    "backward": "the largest pair of gradients that lives at once in the backward pass",
}
PICTURED = 30  # convolutions whose filters are shown
LARGEST_WINDOW = 11  # of a convolution whose filters are shown
LANES = 12  # lines that may run side by side
PRINTED_OPEN = 60  # layers of the largest model whose boxes are opened for printing

# Sizes of the drawing, in CSS pixels; `page` puts them into the style.
GAP, LANE, INDENT = 20, 9, 16
ENTRY, EXIT = GAP + 16, GAP + 32  # where lines meet the side of a box


def page(book):
    """The whole page as text.

    Args:
        book: a `zoo.parameter_ledger.ledger.Ledger`.

    Example:
        >>> zoo.io.files.write_text("cnn.html", page(zoo.ledger(zoo.create_model("cnn"))))
    """
    boxes = _Boxes(book)
    rows = boxes.items(0, len(book.rows))
    title = f"{book.name}: where its {book.parameters:,} parameters come from"
    style = STYLE.replace("GUTTER", str(boxes.wires.gutter)).replace("GAP", str(GAP)).replace("INDENT", str(INDENT))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<main data-open="{int(len(book.layers) <= PRINTED_OPEN)}">\n'
        + _header(book)
        + _where(book)
        + _memory(book)
        + '<section aria-labelledby="layers">\n<h2 id="layers">The layers, from input to output</h2>\n'
        + _how_to_read(book, boxes)
        + '<div class="heads" aria-hidden="true"><span></span><span>layer</span><span>output</span>'
        + "<span>parameters</span><span>share</span></div>\n"
        + f'<ol class="rows">\n{rows}</ol>\n</section>\n</main>\n'
        + f"{boxes.slabs()}<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _text(text):
    return html.escape(str(text), quote=True)


def _family(row):
    if row.group:
        return "net"
    kind = row.kind
    if kind == "TimeDistributed":
        kind = type(getattr(row.layer, "layer", row.layer)).__name__
    return next(key for key, (_, pattern) in FAMILIES.items() if re.search(pattern, kind))


def _percent(share):
    return "&lt; 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


# The head of the page ------------------------------------------------------------------------------------------------


def _header(book):
    fixed = book.parameters - book.trainable
    learned = f"{book.trainable:,} trainable, {fixed:,} not" if fixed else "all of them trainable"
    total = book.training_memory()["total"]
    least, exactly = ("≥ ", "at least") if book.unknown else ("", "exactly")
    figures = [
        ("parameters", f"{book.parameters:,}", learned),
        ("size of the weights", size(book.weight_bytes), f"{book.weight_bytes:,} bytes"),
        ("MACs for one example", total_macs(book), f"{exactly} {book.macs:,}" if book.macs >= 1e6 else ""),
        ("memory of training", least + size(total), f"with Adam at batch {book.batch_size}"),
    ]
    tiles = "".join(
        f"<div><dt>{name}</dt><dd><b>{_text(value)}</b> <span>{_text(more)}</span></dd></div>"
        for name, value, more in figures
    )
    unknown = ""
    if book.unknown:
        names = ", ".join(
            f'<a href="#r{index}">{_text(row.path)}</a>'
            for index, row in enumerate(book.rows)
            if any(row is other for other in book.unknown[:5])
        )
        more = f" and {len(book.unknown) - 5:,} more" if len(book.unknown) > 5 else ""
        unknown = f"<p>MACs or memory unknown, because a size is open or the kind is unknown: {names}{more}.</p>"
    return (
        f'<header>\n<p class="over">Parameter ledger</p>\n<h1>{_text(book.name)}</h1>\n'
        f'<dl class="totals">{tiles}</dl>\n'
        "<p>A multiply-accumulate (MAC) is one multiplication and one addition inside a matrix product or a "
        "convolution; elementwise work, normalisation and look-ups are not counted. Shapes are those of one example."
        f"</p>{unknown}\n</header>\n"
    )


def _bar(parts, name=""):
    """A stacked bar and its list; parts are (CSS class, share, name as HTML, figure, explanation)."""
    segments = "".join(f'<i class="{key}" style="flex-grow:{share:.5f}"></i>' for key, share, *_ in parts if share)
    items = "".join(
        f'<li><i class="key {key}"></i><span class="what">{what} <small>{more}</small></span> <b>{figure}</b></li>'
        for key, _, what, figure, more in parts
    )
    return f'<div class="stack" aria-hidden="true">{segments}</div>\n<ul class="parts {name}">{items}</ul>\n'


def _where(book):
    """The largest layers, in the order of calls, and the rest together."""
    rows = [(index, row) for index, row in enumerate(book.rows) if row.counted]
    if not rows:
        return ""
    named = {index for index, row in sorted(rows, key=lambda pair: -pair[1].counted)[:7]}
    if len(rows) == 8:
        named = {index for index, _ in rows}
    parts = [
        (
            _family(row),
            book.share(row),
            f'<a href="#r{index}">{_text(row.path)}</a>',
            _percent(book.share(row)),
            f"{row.counted:,}",
        )
        for index, row in rows
        if index in named
    ]
    others = [row for index, row in rows if index not in named]
    if others:
        share, total = sum(book.share(row) for row in others), sum(row.counted for row in others)
        parts.append(("rest", share, f"{len(others):,} smaller layers", _percent(share), f"{total:,}"))
    return (
        '<section aria-labelledby="where">\n<h2 id="where">Where the parameters are</h2>\n'
        + _bar(parts)
        + _sum([row.counted for _, row in rows], book.parameters)
        + "</section>\n"
    )


def _sum(terms, total):
    """The parameters added up, where that is short enough to read."""
    if sum(terms) != total or not 1 < len(terms) <= 12:
        return ""
    return f'<p class="sum">{" + ".join(f"{term:,}" for term in terms)} = <b>{total:,}</b></p>\n'


def _memory(book):
    memory = book.training_memory()
    total = memory.pop("total")
    parts = [
        (f"m{place % 5}", value / total if total else 0, _text(name), _text(size(value)), MEMORY.get(name, ""))
        for place, (name, value) in enumerate(memory.items())
    ]
    return (
        '<section aria-labelledby="memory">\n<h2 id="memory">What training keeps in memory</h2>\n'
        f"<p>{'At least' if book.unknown else 'About'} {_text(size(total))} with Adam at batch {book.batch_size}: "
        "the blue parts depend on the model alone, the orange ones grow with the batch.</p>\n"
        + _bar(parts, "told")
        + "</section>\n"
    )


def _how_to_read(book, boxes):
    present = {_family(row) for row in book.rows}
    keys = "".join(f'<li><i class="key {key}"></i>{name}</li>' for key, (name, _) in FAMILIES.items() if key in present)
    lines = ""
    if boxes.wires.lanes:
        lines = " An arrow joins a box to the next; a line at the left carries an output past the boxes between."
    if boxes.wires.undrawn:
        lines += f" {boxes.wires.undrawn} such lines are not drawn for want of room: opened boxes name their sources."
    filters = ""
    if boxes.without_picture:
        filters = f" The filters of the first {PICTURED} convolutions are shown in their boxes."
    return (
        "<p>Open a box to see where its parameters come from. The drawn slab hints at the output: its height and depth "
        f"are positions, its length channels or features, on a logarithmic scale.{lines}{filters}</p>\n"
        f'<ul class="legend">{keys}</ul>\n'
        '<form class="tools" hidden><label>Find a layer <input type="search" id="find" autocomplete="off" '
        'spellcheck="false"></label> <output for="find"></output><span></span> '
        '<button type="button" data-to="1">Open all</button> <button type="button" data-to="0">Close all</button>'
        "</form>\n"
    )


# The boxes -----------------------------------------------------------------------------------------------------------


class _Boxes:
    """The rows as a nested list; keeps what is drawn once for several of them."""

    def __init__(self, book):
        self.book, self.rows = book, book.rows
        self.wires = _Wires(book.rows)
        self.slab_of = {}  # sizes -> (number, drawing)
        self.pictured = self.without_picture = 0

    def items(self, start, stop):
        """Rows from start to stop as list items, nested models with theirs inside."""
        parts, index = [], start
        while index < stop:
            row, end = self.rows[index], index + 1
            if row.group:
                while end < stop and self.rows[end].depth > row.depth:
                    end += 1
                parts.append(self.group(index, row, end))
            else:
                parts.append(self.box(index, row))
            index = end
        return "".join(parts)

    def group(self, index, row, end):
        kind = "" if row.kind in ("Functional", "Model", "Sequential") else f" {_text(row.kind)}"
        inner = [inner for inner in self.rows[index + 1 : end] if not inner.group]
        counted, share = sum(row.counted for row in inner), sum(self.book.share(row) for row in inner)
        wires = self.wires.svg(index, index, row.depth, "open") + self.wires.svg(index, end - 1, row.depth, "shut")
        return (
            f'<li class="row{self.wires.arrow(index)}" id="r{index}"><details class="group net" open><summary>{wires}'
            f'<span class="face"><span class="slab"></span><span class="name">{_name(row.name)}'
            f"<small>nested model{kind}, {_plural(end - index - 1, 'row')}</small></span>"
            f'<span class="out">{_text(outputs(row))}</span><span class="num">{_figures(row, counted)}</span>'
            f'{_share(share)}</span></summary>\n<ol style="--d:{row.depth + 1}">\n'
            f"{self.items(index + 1, end)}</ol></details></li>\n"
        )

    def box(self, index, row):
        return (
            f'<li class="row{self.wires.arrow(index)}" id="r{index}">{self.wires.svg(index, index, row.depth)}'
            f'<details class="box {_family(row)}"><summary class="face"><span class="slab">{self.slab(row)}</span>'
            f'<span class="name">{_name(row.name)}<small>{_text(row.kind)}</small></span>'
            f'<span class="out">{_text(outputs(row))}</span><span class="num">{_figures(row, row.counted)}</span>'
            f'{_share(self.book.share(row))}</summary><div class="in">{self.inside(row)}</div></details></li>\n'
        )

    def inside(self, row):
        """What an opened box shows."""
        parameters = _equations("Parameters", row.formulas, row.parameters)
        macs = _equations("Multiply-accumulates for one example", row.mac_formulas, row.macs)
        meanings = _meanings(row, (*row.formulas, *row.mac_formulas))
        return f"<div>{parameters}{macs}{meanings}{self.facts(row)}</div>{self.filters(row)}"

    def facts(self, row):
        facts = []
        if row.inputs:
            sources = ", ".join(f'<a href="#r{source}">{_text(self.rows[source].path)}</a>' for source in row.sources)
            shapes = ", ".join(dict.fromkeys(shape_text(shape) for shape in row.inputs))
            facts.append(("takes", _text(shapes) + (f" from {sources}" if sources else "")))
        if row.outputs:
            facts.append(("gives", _text(outputs(row))))
        if row.outputs and row.activation_bytes != 0:
            kept = "unknown, because a size is open"
            if row.activation_bytes is not None:
                batch = self.book.batch_size
                kept = f"{size(row.activation_bytes)} an example, {size(batch * row.activation_bytes)} at batch {batch}"
            facts.append(("keeps for the backward pass", _text(kept)))
        if row.macs is None:
            facts.append(("MACs", "unknown: a size is open, or the layer is of an unknown kind"))
        if row.parameters and row.counted and row.trainable < row.counted:
            fixed = row.counted - row.trainable
            facts.append(("trainable", f"{row.trainable:,} parameters, {fixed:,} not" if row.trainable else "nothing"))
        if row.note:
            facts.append(("note", _text(row.note)))
        items = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in facts)
        return f'<dl class="facts">{items}</dl>' if facts else ""

    def filters(self, row):
        """The filters of a convolution as a picture."""
        if not _has_filters(row):
            return ""
        if self.pictured >= PICTURED:
            self.without_picture += 1
            return ""
        self.pictured += 1
        pixels, caption = filter_picture(row.layer)
        scale = max(3, 30 // max(row.layer.kernel_size))
        height, width = scale * pixels.shape[0], scale * pixels.shape[1]
        return (
            f'<figure><img src="data:image/png;base64,{base64.b64encode(png(pixels, scale)).decode()}" '
            f'width="{width}" height="{height}" alt="Filters of {_text(row.name)}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )

    def slab(self, row):
        """A reference to the drawing of a row's first output."""
        if not row.outputs:
            return ""
        shape = row.outputs[0]
        if len(shape) > 2 and keras.config.image_data_format() == "channels_first":
            shape = (*shape[1:], shape[0])
        sizes = shape[-3:]
        if sizes not in self.slab_of:
            self.slab_of[sizes] = (len(self.slab_of), _slab(sizes))
        return f'<svg aria-hidden="true"><use href="#s{self.slab_of[sizes][0]}"/></svg>'

    def slabs(self):
        """The drawings that rows refer to."""
        drawings = "".join(f'<g id="s{number}">{drawing}</g>' for number, drawing in self.slab_of.values())
        return f'<svg class="defs" aria-hidden="true"><defs>{drawings}</defs></svg>\n' if drawings else ""


def _has_filters(row):
    if not isinstance(row.layer, (layers.Conv2D, layers.DepthwiseConv2D)) or not row.counted:
        return False
    shape = getattr(getattr(row.layer, "kernel", None), "shape", ())
    return len(shape) == 4 and 1 < max(shape[:2]) <= LARGEST_WINDOW


def _plural(number, word):
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _figures(row, counted):
    """A row's parameters that are counted here and, small, the numbers they are the product of."""
    if not (row.parameters or counted):
        return ""
    small = ""
    if counted < row.parameters:
        small = f"of {row.parameters:,}" if counted else row.note.partition(":")[0]
    elif row.formulas:
        small = row.formulas[0].numbers if len(row.formulas) == 1 else f"{len(row.formulas)} parts"
        small = "" if small == str(counted) else small
    return f"{counted:,}" + (f"<small>{_breakable(_text(small))}</small>" if small else "")


def _share(share):
    if not share:
        return '<span class="share"></span>'
    return f'<span class="share"><i style="--p:{min(1, share):.2%}"></i>{_percent(share)}</span>'


def _name(name):
    """The heading of a box; a long name may wrap after its underscores."""
    text = _text(name).replace("_", "_<wbr>") if len(name) > 14 else _text(name)
    return f'<b role="heading" aria-level="3">{text}</b>'


def _breakable(text):
    """Let a long product wrap after its dots."""
    return text.replace("·", "·<wbr>") if len(text) > 22 else text


def _letters(text):
    """A formula with its letters set as variables: "k_h" as k with an index."""
    pieces = re.split(r"([A-Za-z_]\w*)", text)
    pieces[1::2] = [_letter(piece) for piece in pieces[1::2]]
    pieces[::2] = [_text(piece) for piece in pieces[::2]]
    return "".join(pieces).replace("·", "·<wbr>") if len(text) > 22 else "".join(pieces)


def _letter(name):
    letter, _, index = name.partition("_")
    return f"<var>{_text(letter)}" + (f"<sub>{_text(index.replace('_', ' '))}</sub>" if index else "") + "</var>"


def _equations(caption, formulas, total):
    """Formulas in letters, in numbers, and their values, as a table."""
    if not formulas:
        return ""
    lines = []
    for formula in formulas:
        value = "?" if formula.value is None else f"{formula.value:,}"
        numbers, plain = formula.numbers, value.replace(",", "")
        steps = [_letters(formula.letters)] if formula.letters != plain else []
        if numbers not in (formula.letters, plain):
            steps.append(f"=&nbsp;{_breakable(_text(numbers))}")
        fixed = "" if formula.trainable else " <small>not learned</small>"
        cells = [*steps, *[""] * (2 - len(steps)), f"=&nbsp;<b>{value}</b>"]
        part = f'<th scope="row">{_text(formula.part)}{fixed}</th>'
        lines.append(f"<tr>{part} {' '.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    if len(formulas) > 1 and total is not None:
        lines.append(
            f'<tr class="all"><th scope="row">together</th><td></td><td></td><td>=&nbsp;<b>{total:,}</b></td></tr>'
        )
    return f'<table class="eq"><caption>{caption}</caption><tbody>{"".join(lines)}</tbody></table>'


def _meanings(row, formulas):
    """What each letter of a row's formulas stands for, with its value."""
    values = {
        name: formula.values[name] for formula in formulas for name in re.findall(r"[A-Za-z_]\w*", formula.letters)
    }
    equation = getattr(row.layer, "equation", None) or getattr(row.layer, "subscripts", None)
    items = []
    for name, value in values.items():
        meaning = LEGEND.get(name, "")
        if isinstance(equation, str):
            meaning = "what the dots stand for" if name == "p" else f"size of the index {name} in {equation}"
        items.append((_letter(name), "open" if value is None else value, meaning))
    items += [(_letters(sign), "", meaning) for sign, meaning in _signs(row)]
    inner = "".join(
        f"<div><dt>{name}</dt><dd>{f'= {value}' if value != '' else ''} <span>{_text(meaning)}</span></dd></div>"
        for name, value, meaning in items
    )
    return f'<dl class="letters">{inner}</dl>' if items else ""


def _signs(row):
    """What the plain numbers in a row's formulas stand for."""
    text = " ".join(formula.letters for formula in row.formulas)
    if "+ 1)" in text:
        yield "+ 1", "the bias: one for each output"
    if _family(row) != "rnn":
        return
    if re.search(r"\b4·\(", text):
        yield "4", "input, forget and output gate, and the candidate state"
    if re.search(r"\b3·\(", text):
        yield "3", "update and reset gate, and the candidate state"
    rest = text.replace("(d + h)", "")
    if "+ 2·h" in rest:
        yield "+ 2·h", "two biases for each unit: of the inputs and of the state"
    elif "+ h" in rest:
        yield "+ h", "the bias of each unit"


# The drawing ---------------------------------------------------------------------------------------------------------


class _Wires:
    """How outputs reach the rows that take them: from the box above, or by a lane at the left of the boxes.

    Attributes:
        lanes: {row: (its lane, rows below that take its output from there)}; lane 0 is next to the boxes.
        undrawn: how many rows would need a lane beyond the last.
        gutter: width of all lanes in pixels.
    """

    def __init__(self, rows):
        self.follows, takers, above = set(), {}, None
        for index, row in enumerate(rows):
            if row.group:
                continue
            for source in row.sources:
                if source == above:
                    self.follows.add(index)
                else:
                    takers.setdefault(source, []).append(index)
            above = index
        # A heading stands between what its first row takes and that row.
        for index in range(len(rows) - 1, -1, -1):
            if rows[index].group and index + 1 in self.follows:
                self.follows.add(index)
        spans = {source: (source, below[-1]) for source, below in takers.items()}
        beside = [sum(first < index <= last for first, last in spans.values()) for index in range(len(rows))]
        width = min(LANES, max(beside, default=0))
        self.lanes, ends = {}, [0] * width  # of each lane: the row where its last line ends
        for source, height in sorted(_heights(spans).items()):
            free = [lane for lane in range(width) if ends[lane] <= source]
            if free:
                lane = min(free, key=lambda lane: (lane < height, abs(lane - height)))
                self.lanes[source], ends[lane] = (lane, takers[source]), spans[source][1]
        self.undrawn = len(takers) - len(self.lanes)
        self.gutter = 16 + LANE * width if width else 0

    def arrow(self, index):
        """The CSS class of a row that takes the output of the box above."""
        return " after" if index in self.follows else ""

    def svg(self, first, last, depth, name=""):
        """The lines beside rows first to last drawn as one box: those that pass, begin, branch off and end there.

        Lines run to y = 9999 and are cut where the row ends, so that they grow with an opened box.
        """
        if not self.lanes:
            return ""
        right, lines, entered = self.gutter + INDENT * depth, [], False
        for source, (lane, takers) in self.lanes.items():
            x = self.gutter - 14 - LANE * lane
            from_above, to_below = source < first <= takers[-1], source <= last < takers[-1]
            if from_above and to_below:
                lines.append(f"M{x} 0V9999")
            elif from_above:
                lines.append(f"M{x} 0V{ENTRY - 7}")
            if from_above and any(first <= taker <= last for taker in takers):
                lines.append(f"M{x} {ENTRY - 7}q0 7 7 7H{right - 3}")
                entered = True
            if to_below and source >= first:
                lines.append(f"M{right} {EXIT}H{x + 7}q-7 0 -7 7V9999")
        if not lines:
            return ""
        head = f'<path class="head" d="M{right - 7} {ENTRY - 4}l7 4 -7 4z"/>' if entered else ""
        return (
            f'<svg class="wires {name}" aria-hidden="true" style="width:{right}px">'
            f'<path d="{"".join(lines)}"/>{head}</svg>'
        )


def _heights(spans):
    """How many lines at most lie one inside the other within each: where lanes of that order cross the least."""
    heights = {}
    for source, (first, last) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        inside = [heights[other] for other in heights if first <= spans[other][0] and spans[other][1] <= last]
        heights[source] = 1 + max(inside, default=-1)
    return heights


def _slab(sizes):
    """A box of a shape's sizes (positions…, channels) in oblique projection, each on a logarithmic scale."""

    def scaled(number):
        return 12 if number is None else 3 + 2.6 * math.log2(max(1, number))

    length, height = scaled(sizes[-1] if sizes else 1), 2 + scaled(sizes[-2] if len(sizes) > 1 else 1)
    deep = scaled(sizes[-3]) * 0.45 if len(sizes) > 2 else 0
    length, height, deep = (round(min(limit, x), 1) for x, limit in ((length, 42), (height, 28), (deep, 13)))
    left, top = round((60 - length - deep) / 2, 1), round((44 - height + deep) / 2, 1)
    front = f'<path d="M{left} {top}h{length}v{height}h-{length}z"/>'
    if not deep:
        return front
    lid = f'<path class="lid" d="M{left} {top}l{deep} -{deep}h{length}l-{deep} {deep}z"/>'
    side = f'<path class="end" d="M{round(left + length, 1)} {top}l{deep} -{deep}v{height}l-{deep} {deep}z"/>'
    return front + lid + side
