"""A certificate of a model or of a training as one self-contained HTML page, in the style of the ledger's."""

from __future__ import annotations

import html

from zoo.parameter_ledger.page_style import CONTENT_SECURITY_POLICY, STYLE
from zoo.parity.certificate import Certificate
from zoo.parity.training import TrainingCertificate
from zoo.parity.units import ALARM

_PARTS = {"forward": "forward", "gradients": "gradients", "states": "states", "step": "optimizer step"}
_TABLE_STYLE = """
table.units{border-collapse:collapse;width:100%;margin:.8rem 0;background:var(--card);border:1px solid var(--line)}
table.units th,table.units td{padding:.45rem .8rem;text-align:right;border-bottom:1px solid var(--line)}
table.units th{font-weight:400;color:var(--soft);font-size:.875rem}
table.units td:first-child,table.units th:first-child,table.units td.word,table.units th.word{text-align:left}
table.units .wrong{color:var(--m3);font-weight:600}
.scroll{overflow-x:auto}
ul.said{list-style:disc;padding-left:1.2rem;max-width:60rem}
ul.said li{margin:.35rem 0}
"""


def render_certificate(certificate: Certificate | TrainingCertificate) -> str:
    """Make the page of a certificate.

    Args:
        certificate: of `zoo.parity.certificate.certify` or `zoo.parity.training.certify_training`.

    Returns:
        its HTML.
    """
    if isinstance(certificate, TrainingCertificate):
        title, body = f"{certificate.source}: losses of the first steps", _training(certificate)
    else:
        title, body = f"{certificate.model}: the same numbers on every backend", _model(certificate)
    style = STYLE.replace("GUTTER", "0").replace("GAP", "20").replace("INDENT", "16") + _TABLE_STYLE
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
    tiles = "".join(f"<div><dt>{a}</dt><dd><b>{_text(b)}</b> <span>{_text(c)}</span></dd></div>" for a, b, c in figures)
    return f'<header>\n<p class="over">{over}</p>\n<h1>{_text(name)}</h1>\n<dl class="totals">{tiles}</dl>\n</header>\n'


def _table(columns, rows):
    """A table of (text, CSS class) cells."""
    head = "".join(f'<th{_class(css)} scope="col">{_text(text)}</th>' for text, css in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{_class(css)}>{_text(text)}</td>" for text, css in row) + "</tr>\n" for row in rows
    )
    table = f'<table class="units"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>\n'


def _class(css):
    return f' class="{css}"' if css else ""


def _list(name, sentences):
    items = "".join(f"<li>{_text(sentence)}</li>\n" for sentence in sentences)
    return f'<section>\n<h2>{name}</h2>\n<ul class="said">{items}</ul>\n</section>\n' if items else ""


def _model(certificate):
    verdict = "the same" if certificate.passed else "not the same"
    backends = list(dict.fromkeys(row.backend for row in certificate.rows))
    figures = [
        ("numbers", verdict, f"on {', '.join(backends)}"),
        ("parameters", f"{certificate.parameters:,}", f"in {certificate.layers} layers"),
        ("reference", certificate.reference, "its float64 run"),
        ("optimizer", certificate.optimizer, "one step from the reference's gradient"),
    ]
    columns = [(text, "word" if text in ("version", "precision", "verdict") else "")
               for text in ("backend", "version", "precision", *_PARTS.values(), "verdict")]  # fmt: skip
    rows = []
    for row in certificate.rows:
        cells = [(row.backend, ""), (row.version, "word"), (row.precision, "word")]
        for part in _PARTS:
            units = row.units.get(part)
            cells.append(("–" if units is None else f"{units:,.1f}", "wrong" if units and units > ALARM else ""))
        rows.append([*cells, (row.verdict, "word" if row.verdict == "same" else "word wrong")])
    inputs = ", ".join(f"{name} {shape}" for name, shape in certificate.inputs.items())
    problems = [f"{row.backend}: {row.error}" for row in certificate.rows if row.error]
    return (
        _head("Certificate", certificate.model, figures)
        + "<section>\n<h2>Differences in units of rounding</h2>\n"
        + "<p>The largest difference of a tensor from the float64 run, in units of what rounding makes of it. "
        f"Up to {ALARM:g} units are rounding. Inputs: {_text(inputs)}.</p>\n"
        + _table(columns, rows)
        + "</section>\n"
        + _list("What differs", map(str, certificate.findings))
        + _list("What does not run", dict.fromkeys(problems))
        + _list("Notes", certificate.notes)
    )


def _training(certificate):
    steps = max(map(len, certificate.losses.values()))
    figures = [
        (
            "losses",
            f"part at step {certificate.parts_at}" if certificate.parts_at else "stay together",
            f"of {steps} steps",
        ),
        ("causes", str(len(certificate.causes)), ", ".join(certificate.causes)),
    ]
    backends = list(certificate.losses)
    rows = []
    for step in range(steps):
        wrong = "wrong" if certificate.parts_at == step + 1 else ""
        rows.append([(step + 1, ""), *((f"{certificate.losses[b][step]:.7g}", wrong) for b in backends)])
    return (
        _head("Training certificate", certificate.source, figures)
        + _list("Causes", certificate.causes.values())
        + _list("What does not train", [f"{key}: {value}" for key, value in certificate.problems.items()])
        + "<section>\n<h2>Losses</h2>\n"
        + _table([("step", ""), *((b, "") for b in backends)], rows)
        + "</section>\n"
        + (_model(certificate.model) if certificate.model else "")
    )
