"""A certificate of a model or of a training as one self-contained HTML page, in the style of the ledger's."""

from __future__ import annotations

import html

from zoo.parameter_ledger.page_style import CONTENT_SECURITY_POLICY, STYLE
from zoo.parity.certificate import Certificate
from zoo.parity.training import TrainingCertificate
from zoo.parity.units import ALARM

_PARTS = {
    "forward": ("forward", "the outputs, in inference and, of a model with moving averages, in training"),
    "gradients": (
        "gradients",
        "of every weight, frozen ones too; the loss is the mean of the outputs times fixed numbers",
    ),
    "states": ("states", "what a call in training leaves behind, such as moving averages"),
    "step": ("step", "the weights after one step of the optimizer from the reference's gradient"),
}
_TABLE_STYLE = """
h1{overflow-wrap:break-word}
.path{overflow-wrap:anywhere;margin:.5rem 0 0}
.totals{grid-template-columns:repeat(COLUMNS,1fr)}
.wrong{color:var(--m3)}
table.units{border-collapse:collapse;width:100%;margin:.8rem 0;background:var(--card);border:1px solid var(--line)}
table.units th,table.units td{padding:.45rem .8rem;text-align:right;border-bottom:1px solid var(--line)}
table.units th{font-weight:400;color:var(--soft);font-size:.875rem}
table.units td:first-child,table.units th:first-child,table.units td.word,table.units th.word{text-align:left}
table.units .wrong{font-weight:600}
table.units td.word{white-space:nowrap}
table.units small{display:block}
.scroll{overflow-x:auto}
dl.parts-of{display:grid;grid-template-columns:auto 1fr;gap:.25rem 1.2rem;max-width:46rem;color:var(--soft)}
dl.parts-of dt{color:var(--ink)}
ul.said{list-style:disc;padding-left:1.2rem;max-width:60rem}
ul.said li{margin:.35rem 0;overflow-wrap:anywhere}
@media (max-width:40rem){main{padding:1.5rem .9rem 3rem}h1{font-size:1.7rem}.totals{grid-template-columns:1fr 1fr}
.totals b{font-size:1.25rem;white-space:normal}table.units th,table.units td{padding:.4rem .25rem}
table.units,table.units th{font-size:.8125rem}table.units td.word{white-space:normal}
.totals div:last-child:nth-child(odd){grid-column:1/-1}}
"""


def render_certificate(certificate: Certificate | TrainingCertificate) -> str:
    """Make the page of a certificate.

    Args:
        certificate: of `zoo.parity.certificate.certify` or `zoo.parity.training.certify_training`.

    Returns:
        its HTML.
    """
    if isinstance(certificate, TrainingCertificate):
        title, body, tiles = f"{certificate.source}: losses of the first steps", _training(certificate), 3
    else:
        title, body, tiles = f"{certificate.model}: the same numbers on every backend", _model(certificate), 4
    style = STYLE.replace("GUTTER", "0").replace("GAP", "20").replace("INDENT", "16")
    style += _TABLE_STYLE.replace("COLUMNS", str(tiles))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">\n'
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _text(text):
    return html.escape(str(text), quote=True)


def _head(over, name, figures):
    """The name, short where it is a path, and tiles of (what, figure, remark, CSS class of the figure)."""
    tiles = "".join(
        f"<div><dt>{what}</dt><dd><b{_class(css)}>{_text(figure)}</b> <span>{_text(remark)}</span></dd></div>"
        for what, figure, remark, css in figures
    )
    short = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    path = f'<p class="path">{_text(name)}</p>\n' if short != name else ""
    return (
        f'<header>\n<p class="over">{over}</p>\n<h1>{_text(short)}</h1>\n{path}<dl class="totals">{tiles}</dl>\n'
        "</header>\n"
    )


def _table(columns, rows):
    """A table of (text, CSS class) cells; a third item is a remark under the text."""
    head = "".join(f'<th{_class(css)} scope="col">{_text(text)}</th>' for text, css in columns)
    body = "".join("<tr>" + "".join(_cell(*cell) for cell in row) + "</tr>\n" for row in rows)
    table = f'<table class="units"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>\n'


def _cell(text, css, remark=""):
    return f"<td{_class(css)}>{_text(text)}{f'<small>{_text(remark)}</small>' if remark else ''}</td>"


def _class(css):
    return f' class="{css}"' if css else ""


def _list(name, sentences):
    items = "".join(f"<li>{_text(sentence)}</li>\n" for sentence in sentences)
    return f'<section>\n<h2>{name}</h2>\n<ul class="said">{items}</ul>\n</section>\n' if items else ""


def _model(certificate):
    backends = list(dict.fromkeys(row.backend for row in certificate.rows))
    precisions = list(dict.fromkeys(row.precision for row in certificate.rows))
    absent = [backend for backend in backends if any(row.error for row in certificate.rows if row.backend == backend)]
    present = ", ".join(backend for backend in backends if backend not in absent)
    verdict, remark = ("not the same" if certificate.findings else "the same"), f"on {present}"
    if absent:
        remark += f"; {', '.join(absent)} {'do' if len(absent) > 1 else 'does'} not run it"
    if absent and not certificate.findings:
        verdict, remark = "incomplete", f"the same {remark}"
    figures = [
        ("numbers", verdict, remark, "" if certificate.passed else "wrong"),
        ("parameters", f"{certificate.parameters:,}", f"in {certificate.layers} layers", ""),
        ("reference", certificate.reference, "its float64 run", ""),
        ("optimizer", certificate.optimizer, "one step", ""),
    ]
    several = ["precision"] if len(precisions) > 1 else []
    columns = [("backend", ""), *((name, "word") for name in [*several, "verdict"])]
    columns += [(name, "") for name, _ in _PARTS.values()]
    rows = []
    for row in certificate.rows:
        cells = [(row.backend, "", row.version), *((row.precision, "word") for _ in several)]
        cells.append((row.verdict, "word" if row.verdict == "same" else "word wrong"))
        rows.append(cells + [_units(row.units.get(part)) for part in _PARTS])
    inputs = ", ".join(f"{name} {shape}" for name, shape in certificate.inputs.items())
    problems = [f"{row.backend}: {row.error}" for row in certificate.rows if row.error]
    parts = "".join(f"<dt>{name}</dt><dd>{words}</dd>" for name, words in _PARTS.values())
    return (
        _head("Certificate", certificate.model, figures)
        + _list("What differs", map(str, certificate.findings))
        + _list("What does not run", dict.fromkeys(problems))
        + "<section>\n<h2>Differences in units of rounding</h2>\n"
        + "<p>The largest difference of a tensor from the float64 run, in units of what rounding"
        + f"{'' if several else f' to {_text(precisions[0])}'} makes of it. "
        f"Up to {ALARM:g} units are rounding. Inputs: {_text(inputs)}.</p>\n"
        + _table(columns, rows)
        + f'<dl class="parts-of">{parts}</dl>\n</section>\n'
        + _list("Notes", certificate.notes)
    )


def _units(units):
    """The cell of a difference."""
    if units is None:
        return "–", ""
    return f"{units:,.1f}" if units < 1000 else f"{units:,.0f}", "wrong" if units > ALARM else ""


def _training(certificate):
    steps = max(map(len, certificate.losses.values()))
    parted = certificate.parts_at is not None
    figures = [
        ("losses", f"part at step {certificate.parts_at}" if parted else "stay together", f"of {steps} steps",
         "wrong" if parted else ""),
        ("causes", str(len(certificate.causes)), ", ".join(certificate.causes) or "nothing to explain", ""),
        ("backends", str(len(certificate.losses)), ", ".join(certificate.losses), ""),
    ]  # fmt: skip
    backends = list(certificate.losses)
    rows = []
    for step in range(steps):
        wrong = "wrong" if certificate.parts_at == step + 1 else ""
        rows.append([(step + 1, ""), *((f"{certificate.losses[b][step]:.6f}", wrong) for b in backends)])
    return (
        _head("Training certificate", certificate.source, figures)
        + _list("Causes", certificate.causes.values())
        + _list("What does not train", [f"{key}: {value}" for key, value in certificate.problems.items()])
        + "<section>\n<h2>Losses</h2>\n"
        + _table([("step", ""), *((b, "") for b in backends)], rows)
        + "</section>\n"
        + (_model(certificate.model) if certificate.model else "")
    )
