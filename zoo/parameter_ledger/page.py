"""A ledger as one HTML page: the layers as boxes from input to output, each opening to its formulas.

The page is self-contained: no network, no external fonts or scripts; images are embedded. It works without JavaScript,
which adds only "find a layer", "open all" and that printing opens the boxes.
"""

from __future__ import annotations

import base64
import collections
import html
import math
import re
from typing import TYPE_CHECKING

import keras
from keras import layers

from zoo.parameter_ledger.blocks import BLOCK, BLOCKS, fold
from zoo.parameter_ledger.filter_images import encode_png, filter_image
from zoo.parameter_ledger.format import format_bytes, format_macs, format_outputs, format_shape
from zoo.parameter_ledger.formulas import LEGEND
from zoo.parameter_ledger.page_style import CONTENT_SECURITY_POLICY, SCRIPT, STYLE

if TYPE_CHECKING:
    from zoo.parameter_ledger.ledger import Ledger

# CSS class of a family of layers: its name on the page, and a pattern of class names; the first match counts.
_FAMILIES = {
    "net": ("nested model", r"^$"),
    "rnn": ("recurrent", r"LSTM|GRU|RNN|Bidirectional"),
    "att": ("attention", r"Attention"),
    "con": ("convolution", r"Conv"),
    "den": ("dense", r"Dense"),
    "nor": ("normalization", r"Norm"),
    "poo": ("pooling", r"Pool"),
    "emb": ("embedding", r"Embedding"),
    "ops": ("activation, dropout, shape, sum and other", r""),
}
_MEMORY = {
    "weights": "the parameters",
    "gradients": "one for each trainable parameter",
    "optimizer": "Adam's two moments for each trainable parameter",
    "activations": "the batch, and what layers save for the backward pass",
    "backward": "the largest pair of gradients alive at once in the backward pass",
}
_MAX_FILTER_IMAGES = 30  # convolutions whose filters are shown
_MAX_KERNEL_SIZE = 11  # of a convolution whose filters are shown
_MAX_LANES = 12  # skip connections drawn side by side
_MAX_PARTS = 11  # blocks and layers named in the bar of all parameters
_MAX_PRINTED_LAYERS = 60  # of a model whose boxes are opened for printing

# Sizes of the drawing, in CSS pixels; `render_page` substitutes them in the style.
_GAP, _LANE, _INDENT = 20, 9, 16
_ENTRY, _EXIT = _GAP + 16, _GAP + 32  # y where connections meet the side of a box


def render_page(ledger: Ledger) -> str:
    """Make the page of a ledger.

    Args:
        ledger: a `zoo.parameter_ledger.ledger.Ledger`.

    Returns:
        its HTML, one self-contained page.

    Example:
        >>> zoo.io.files.write_text("cnn.html", render_page(zoo.ledger(zoo.create_model("cnn"))))
    """
    boxes = _LayerBoxes(ledger)
    rows = boxes.items(0, len(boxes.rows))
    title = f"{ledger.name}: {ledger.parameters:,} parameters"
    style = (
        STYLE.replace("GUTTER", str(boxes.connections.gutter)).replace("GAP", str(_GAP)).replace("INDENT", str(_INDENT))
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">\n'
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<main data-open="{int(len(ledger.leaf_rows) <= _MAX_PRINTED_LAYERS)}">\n'
        + _header(ledger, boxes.rows)
        + _largest_layers(ledger, boxes.rows)
        + _memory(ledger)
        + '<section aria-labelledby="layers">\n<h2 id="layers">The layers, from input to output</h2>\n'
        + _explanation(ledger, boxes)
        + '<div class="heads" aria-hidden="true"><span></span><span>layer</span><span>output</span>'
        + "<span>parameters</span><span>fraction</span></div>\n"
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
    return next(key for key, (_, pattern) in _FAMILIES.items() if re.search(pattern, kind))


def _percent(fraction):
    return "&lt; 0.1%" if 0 < fraction < 0.0005 else f"{fraction:.1%}"


# The head of the page ------------------------------------------------------------------------------------------------


def _header(ledger, rows):
    fixed = ledger.parameters - ledger.trainable
    learned = f"{ledger.trainable:,} trainable, {fixed:,} not" if fixed else "all of them trainable"
    total = ledger.training_memory()["total"]
    least, exactly = ("≥ ", "at least") if ledger.unknown_layers else ("", "exactly")
    figures = [
        ("parameters", f"{ledger.parameters:,}", learned),
        ("size of the weights", format_bytes(ledger.weight_bytes), f"{ledger.weight_bytes:,} bytes"),
        ("MACs for one example", format_macs(ledger), f"{exactly} {ledger.macs:,}" if ledger.macs >= 1e6 else ""),
        ("memory of training", least + format_bytes(total), f"with Adam at batch {ledger.batch_size}"),
    ]
    tiles = "".join(
        f"<div><dt>{name}</dt><dd><b>{_text(value)}</b> <span>{_text(more)}</span></dd></div>"
        for name, value, more in figures
    )
    unknown = ""
    if ledger.unknown_layers:
        names = ", ".join(f'<a href="#r{index}">{_text(row.path)}</a>' for index, row in _unknown_rows(rows)[:5])
        more = f" and {len(ledger.unknown_layers) - 5:,} more" if len(ledger.unknown_layers) > 5 else ""
        unknown = f"<p>MACs or memory unknown, because a size is open or the kind is unknown: {names}{more}.</p>"
    return (
        f'<header>\n<p class="over">Parameter ledger</p>\n<h1>{_text(ledger.name)}</h1>\n'
        f'<dl class="totals">{tiles}</dl>\n'
        "<p>A multiply-accumulate (MAC) is one multiplication and one addition inside a matrix product or a "
        "convolution; elementwise work, normalization and look-ups are not counted. Shapes are those of one example."
        f"</p>{unknown}\n</header>\n"
    )


def _unknown_rows(rows):
    """The rows whose MACs or activations are unknown, with their indices."""
    return [(i, row) for i, row in enumerate(rows) if not row.group and None in (row.macs, row.activation_bytes)]


def _bar(parts, name=""):
    """A stacked bar and its list; parts are (CSS class, fraction, name as HTML, figure, explanation)."""
    segments = "".join(
        f'<i class="{key}" style="flex-grow:{fraction:.5f}"></i>' for key, fraction, *_ in parts if fraction
    )
    items = "".join(
        f'<li><i class="key {key}"></i><span class="what">{what} <small>{more}</small></span> <b>{figure}</b></li>'
        for key, _, what, figure, more in parts
    )
    return f'<div class="stack" aria-hidden="true">{segments}</div>\n<ul class="parts {name}">{items}</ul>\n'


def _largest_layers(ledger, rows):
    """The largest blocks and layers, in the order of calls, and the rest together."""
    items = [item for item in _blocks_and_layers(rows) if item[2]]  # (index, CSS class, parameters)
    if not items:
        return ""
    named = {index for index, _, _ in sorted(items, key=lambda item: -item[2])[:_MAX_PARTS]}
    if len(items) == _MAX_PARTS + 1:
        named = {index for index, _, _ in items}
    parts = [
        (
            family,
            counted / ledger.parameters,
            f'<a href="#r{index}">{_text(rows[index].path)}</a>{_times(rows[index])}',
            _percent(counted / ledger.parameters),
            f"{counted:,}",
        )
        for index, family, counted in items
        if index in named
    ]
    others = [counted for index, _, counted in items if index not in named]
    if others:
        what = "blocks and layers" if any(row.kind in (BLOCK, BLOCKS) for row in rows) else "layers"
        fraction = sum(others) / ledger.parameters
        parts.append(("rest", fraction, f"{len(others):,} smaller {what}", _percent(fraction), f"{sum(others):,}"))
    return (
        '<section aria-labelledby="where">\n<h2 id="where">Where the parameters are</h2>\n'
        + _bar(parts)
        + _sum([counted for *_, counted in items], ledger.parameters)
        + "</section>\n"
    )


def _blocks_and_layers(rows):
    """(index, CSS class, parameters) of each block, and of each layer outside of blocks."""
    index = 0
    while index < len(rows):
        row, end = rows[index], index + 1
        if row.kind in (BLOCK, BLOCKS):
            end = _end(rows, index)
            yield index, _block_family(rows[index:end]), row.parameters
        elif not row.group:
            yield index, _family(row), row.counted_parameters
        index = end


def _end(rows, index):
    """The index after the last row inside a heading."""
    return next((i for i in range(index + 1, len(rows)) if rows[i].depth <= rows[index].depth), len(rows))


def _block_family(rows):
    """The family that most of a block's parameters are of."""
    sizes = collections.Counter()
    for row in rows:
        if not row.group:
            sizes[_family(row)] += row.counted_parameters
    return sizes.most_common(1)[0][0]


def _times(row):
    return f" {row.note}" if row.kind == BLOCKS else ""


def _sum(terms, total):
    """The sum of the parameters, where that is short enough to read."""
    if sum(terms) != total or not 1 < len(terms) <= 12:
        return ""
    return f'<p class="sum">{" + ".join(f"{term:,}" for term in terms)} = <b>{total:,}</b></p>\n'


def _memory(ledger):
    memory = ledger.training_memory()
    total = memory.pop("total")
    parts = [
        (f"m{index % 5}", value / total if total else 0, _text(name), _text(format_bytes(value)), _MEMORY.get(name, ""))
        for index, (name, value) in enumerate(memory.items())
    ]
    return (
        '<section aria-labelledby="memory">\n<h2 id="memory">Memory of training</h2>\n'
        f"<p>{'At least' if ledger.unknown_layers else 'About'} {_text(format_bytes(total))} with Adam at batch "
        f"{ledger.batch_size}: the blue parts depend on the model alone, the orange ones grow with the batch.</p>\n"
        + _bar(parts, "explained")
        + "</section>\n"
    )


def _explanation(ledger, boxes):
    present = {_family(row) for row in boxes.rows if row.kind not in (BLOCK, BLOCKS)}
    families = [(key, name) for key, (name, _) in _FAMILIES.items() if key in present]
    keys = "".join(f'<li><i class="key {key}"></i>{name}</li>' for key, name in families)
    lines = ""
    if boxes.connections.lanes:
        lines = " An arrow connects a box to the next; a line at the left skips the boxes between."
    if boxes.connections.undrawn:
        lines += f" {boxes.connections.undrawn} such lines are not drawn: opened boxes name their inputs."
    what = "the formulas of its parameters."
    if any(row.kind in (BLOCK, BLOCKS) for row in boxes.rows):
        what = "the layers of a block, and of a layer the formulas of its parameters."
    filters = ""
    if boxes.hidden_filters:
        filters = f" The filters of the first {_MAX_FILTER_IMAGES} convolutions are shown in their boxes."
    return (
        f"<p>Open a box to see {what} The drawn slab shows the output: its height and depth "
        f"are positions, its length channels or features, on a logarithmic scale.{lines}{filters}</p>\n"
        f'<ul class="legend">{keys}</ul>\n'
        '<form class="tools" hidden><label>Find a layer <input type="search" id="find" autocomplete="off" '
        'spellcheck="false"></label> <output for="find"></output><span></span> '
        '<button type="button" data-to="1">Open all</button> <button type="button" data-to="0">Close all</button>'
        "</form>\n"
    )


# The boxes -----------------------------------------------------------------------------------------------------------


class _LayerBoxes:
    """The rows as a nested list, and the drawings that several of them share."""

    def __init__(self, ledger):
        self.ledger, self.rows = ledger, fold(ledger.rows)
        self.connections = _Connections(self.rows)
        self.slab_of = {}  # sizes -> (number, drawing)
        self.shown_filters = self.hidden_filters = 0

    def items(self, start, stop):
        """Rows from start to stop as list items, nested models with theirs inside."""
        parts, index = [], start
        while index < stop:
            row, end = self.rows[index], index + 1
            if row.group:
                end = _end(self.rows, index)
                parts.append(self.group(index, row, end))
            else:
                parts.append(self.box(index, row))
            index = end
        return "".join(parts)

    def group(self, index, row, end):
        is_block = row.kind in (BLOCK, BLOCKS)
        inner = [inner for inner in self.rows[index + 1 : end] if not inner.group]
        counted = sum(row.counted_parameters for row in inner)
        fraction = sum(self.ledger.fraction(row) for row in inner)
        svg = self.connections.svg(index, index, row.depth, "open") + self.connections.svg(
            index, end - 1, row.depth, "shut"
        )
        classes = f'"group block {_block_family(self.rows[index:end])}"' if is_block else '"group net" open'
        slab = self.slab(row) if is_block else ""
        return (
            f'<li class="row{self.connections.arrow(index)}" id="r{index}"><details class={classes}>'
            f'<summary>{svg}<span class="face"><span class="slab">{slab}</span><span class="name">{_name(row.name)}'
            f"<small>{self.heading(row, inner, end - index - 1)}</small></span>"
            f'<span class="out">{_text(format_outputs(row))}</span><span class="num">{_figures(row, counted)}</span>'
            f'{_fraction_bar(fraction)}</span></summary>\n<ol style="--d:{row.depth + 1}">\n'
            f"{self.items(index + 1, end)}</ol></details></li>\n"
        )

    @staticmethod
    def heading(row, inner, count):
        """What a heading is, and how much is in it."""
        if row.kind == BLOCKS:
            return f"{row.note.removeprefix('×')} equal blocks"
        if row.kind == BLOCK:
            return f"block of {_plural(sum(bool(one.parameters) for one in inner), 'layer')}"
        kind = "" if row.kind in ("Functional", "Model", "Sequential") else f" {_text(row.kind)}"
        return f"nested model{kind}, {_plural(count, 'row')}"

    def box(self, index, row):
        return (
            f'<li class="row{self.connections.arrow(index)}" id="r{index}">'
            f"{self.connections.svg(index, index, row.depth)}"
            f'<details class="box {_family(row)}"><summary class="face"><span class="slab">{self.slab(row)}</span>'
            f'<span class="name">{_name(row.name)}<small>{_text(row.kind)}</small></span>'
            f'<span class="out">{_text(format_outputs(row))}</span>'
            f'<span class="num">{_figures(row, row.counted_parameters)}</span>'
            f"{_fraction_bar(self.ledger.fraction(row))}</summary>"
            f'<div class="in">{self.details(row)}</div></details></li>\n'
        )

    def details(self, row):
        """The content of an opened box."""
        parameters = _equations("Parameters", row.formulas, row.parameters)
        macs = _equations("Multiply-accumulates for one example", row.mac_formulas, row.macs)
        meanings = _meanings(row, (*row.formulas, *row.mac_formulas))
        return f"<div>{parameters}{macs}{meanings}{self.facts(row)}</div>{self.filters(row)}"

    def facts(self, row):
        facts = []
        if row.inputs:
            sources = ", ".join(f'<a href="#r{source}">{_text(self.rows[source].path)}</a>' for source in row.sources)
            shapes = ", ".join(dict.fromkeys(format_shape(shape) for shape in row.inputs))
            facts.append(("inputs", _text(shapes) + (f" from {sources}" if sources else "")))
        if row.outputs:
            facts.append(("outputs", _text(format_outputs(row))))
        if row.outputs and row.activation_bytes != 0:
            saved = "unknown, because a size is open"
            if row.activation_bytes is not None:
                batch = self.ledger.batch_size
                example, whole = (format_bytes(n * row.activation_bytes) for n in (1, batch))
                saved = f"{example} an example, {whole} at batch {batch}"
            facts.append(("saved for the backward pass", _text(saved)))
        if row.macs is None:
            facts.append(("MACs", "unknown: a size is open, or the layer is of an unknown kind"))
        if row.parameters and row.counted_parameters and row.trainable < row.counted_parameters:
            fixed = row.counted_parameters - row.trainable
            facts.append(("trainable", f"{row.trainable:,} parameters, {fixed:,} not" if row.trainable else "none"))
        if row.note:
            facts.append(("note", _text(row.note)))
        items = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in facts)
        return f'<dl class="facts">{items}</dl>' if facts else ""

    def filters(self, row):
        """The filters of a convolution as an image."""
        if not _has_filters(row):
            return ""
        if self.shown_filters >= _MAX_FILTER_IMAGES:
            self.hidden_filters += 1
            return ""
        self.shown_filters += 1
        pixels, caption = filter_image(row.layer)
        scale = max(3, 30 // max(row.layer.kernel_size))
        height, width = scale * pixels.shape[0], scale * pixels.shape[1]
        return (
            f'<figure><img src="data:image/png;base64,{base64.b64encode(encode_png(pixels, scale)).decode()}" '
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
    if not isinstance(row.layer, (layers.Conv2D, layers.DepthwiseConv2D)) or not row.counted_parameters:
        return False
    shape = getattr(getattr(row.layer, "kernel", None), "shape", ())
    return len(shape) == 4 and 1 < max(shape[:2]) <= _MAX_KERNEL_SIZE


def _plural(number, word):
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _figures(row, counted):
    """A row's counted parameters and, small, their formula in numbers."""
    if not (row.parameters or counted):
        return ""
    small = ""
    if row.kind == BLOCKS:
        count = int(row.note.removeprefix("×"))
        small = f"{count} × {counted // count:,}"
    elif counted < row.parameters:
        small = f"of {row.parameters:,}" if counted else row.note.partition(":")[0]
    elif row.formulas:
        small = row.formulas[0].substituted if len(row.formulas) == 1 else f"{len(row.formulas)} parts"
        small = "" if small == str(counted) else small
    return f"{counted:,}" + (f"<small>{_breakable(_text(small))}</small>" if small else "")


def _fraction_bar(fraction):
    if not fraction:
        return '<span class="share"></span>'
    return f'<span class="share"><i style="--p:{min(1, fraction):.2%}"></i>{_percent(fraction)}</span>'


def _name(name):
    """The heading of a box; a long name may wrap after its underscores."""
    text = _text(name).replace("_", "_<wbr>") if len(name) > 14 else _text(name)
    return f'<b role="heading" aria-level="3">{text}</b>'


def _breakable(text):
    """Let a long product wrap after its dots."""
    return text.replace("·", "·<wbr>") if len(text) > 22 else text


def _symbols(text):
    """A formula as HTML with its symbols as variables: "k_h" as k with a subscript."""
    pieces = re.split(r"([A-Za-z_]\w*)", text)
    pieces[1::2] = [_symbol(piece) for piece in pieces[1::2]]
    pieces[::2] = [_text(piece) for piece in pieces[::2]]
    return "".join(pieces).replace("·", "·<wbr>") if len(text) > 22 else "".join(pieces)


def _symbol(name):
    symbol, _, index = name.partition("_")
    return f"<var>{_text(symbol)}" + (f"<sub>{_text(index.replace('_', ' '))}</sub>" if index else "") + "</var>"


def _equations(caption, formulas, total):
    """Formulas, symbolic and substituted, with their values, as a table."""
    if not formulas:
        return ""
    lines = []
    for formula in formulas:
        value = "?" if formula.value is None else f"{formula.value:,}"
        substituted, digits = formula.substituted, value.replace(",", "")
        steps = [_symbols(formula.symbolic)] if formula.symbolic != digits else []
        if substituted not in (formula.symbolic, digits):
            steps.append(f"=&nbsp;{_breakable(_text(substituted))}")
        fixed = "" if formula.trainable else " <small>not trainable</small>"
        cells = [*steps, *[""] * (2 - len(steps)), f"=&nbsp;<b>{value}</b>"]
        part = f'<th scope="row">{_text(formula.part)}{fixed}</th>'
        lines.append(f"<tr>{part} {' '.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    if len(formulas) > 1 and total is not None:
        lines.append(
            f'<tr class="all"><th scope="row">together</th><td></td><td></td><td>=&nbsp;<b>{total:,}</b></td></tr>'
        )
    return f'<table class="eq"><caption>{caption}</caption><tbody>{"".join(lines)}</tbody></table>'


def _meanings(row, formulas):
    """Meaning and value of each symbol in a row's formulas."""
    values = {
        name: formula.values[name] for formula in formulas for name in re.findall(r"[A-Za-z_]\w*", formula.symbolic)
    }
    equation = getattr(row.layer, "equation", None) or getattr(row.layer, "subscripts", None)
    items = []
    for name, value in values.items():
        meaning = LEGEND.get(name, "")
        if isinstance(equation, str):
            meaning = (
                "product of the dims that the dots stand for"
                if name == "p"
                else f"size of the index {name} in {equation}"
            )
        items.append((_symbol(name), "open" if value is None else value, meaning))
    items += [(_symbols(sign), "", meaning) for sign, meaning in _constants(row)]
    inner = "".join(
        f"<div><dt>{name}</dt><dd>{f'= {value}' if value != '' else ''} <span>{_text(meaning)}</span></dd></div>"
        for name, value, meaning in items
    )
    return f'<dl class="letters">{inner}</dl>' if items else ""


def _constants(row):
    """Meaning of the constants in a row's formulas."""
    text = " ".join(formula.symbolic for formula in row.formulas)
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


class _Connections:
    """Connections from rows to the rows that use their outputs: from the box above, or by a lane left of the boxes.

    Attributes:
        lanes: {row: (its lane, rows below that use its output)}; lane 0 is next to the boxes.
        undrawn: number of rows that would need a lane beyond the last.
        gutter: width of all lanes in pixels.
    """

    def __init__(self, rows):
        self.follows, consumers, above = set(), {}, None
        for index, row in enumerate(rows):
            if row.group:
                continue
            for source in row.sources:
                if source == above:
                    self.follows.add(index)
                else:
                    consumers.setdefault(source, []).append(index)
            above = index
        # A heading stands between its first row and the input of that row.
        for index in range(len(rows) - 1, -1, -1):
            if rows[index].group and index + 1 in self.follows:
                self.follows.add(index)
        spans = {source: (source, below[-1]) for source, below in consumers.items()}
        beside = [sum(first < index <= last for first, last in spans.values()) for index in range(len(rows))]
        width = min(_MAX_LANES, max(beside, default=0))
        self.lanes, ends = {}, [0] * width  # of each lane: the row where its last line ends
        for source, height in sorted(_heights(spans).items()):
            free = [lane for lane in range(width) if ends[lane] <= source]
            if free:
                lane = min(free, key=lambda lane: (lane < height, abs(lane - height)))
                self.lanes[source], ends[lane] = (lane, consumers[source]), spans[source][1]
        self.undrawn = len(consumers) - len(self.lanes)
        self.gutter = 16 + _LANE * width if width else 0

    def arrow(self, index):
        """The CSS class of a row that uses the output of the box above."""
        return " after" if index in self.follows else ""

    def svg(self, first, last, depth, name=""):
        """The lines beside rows first to last drawn as one box: those that pass, start, branch off and end there.

        Lines run to y = 9999 and are cut where the row ends, so that they grow with an opened box.
        """
        if not self.lanes:
            return ""
        right, lines, entered = self.gutter + _INDENT * depth, [], False
        for source, (lane, consumers) in self.lanes.items():
            x = self.gutter - 14 - _LANE * lane
            from_above, to_below = source < first <= consumers[-1], source <= last < consumers[-1]
            if from_above and to_below:
                lines.append(f"M{x} 0V9999")
            elif from_above:
                lines.append(f"M{x} 0V{_ENTRY - 7}")
            if from_above and any(first <= consumer <= last for consumer in consumers):
                lines.append(f"M{x} {_ENTRY - 7}q0 7 7 7H{right - 3}")
                entered = True
            if to_below and source >= first:
                lines.append(f"M{right} {_EXIT}H{x + 7}q-7 0 -7 7V9999")
        if not lines:
            return ""
        head = f'<path class="head" d="M{right - 7} {_ENTRY - 4}l7 4 -7 4z"/>' if entered else ""
        return (
            f'<svg class="wires {name}" aria-hidden="true" style="width:{right}px">'
            f'<path d="{"".join(lines)}"/>{head}</svg>'
        )


def _heights(spans):
    """Nesting depth of the lines within each line: lanes in that order cross the least."""
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
