"""Write the results into the pages from what they were read of: cards, runs, anchors, benchmarks. For maintainers.

    python docs/receipts.py            # write
    python docs/receipts.py --check    # say where a page differs from its sources, or a template states a figure itself

A part of a page, between two comments, is rendered from a template of `docs/results/` (Jinja). A figure stands in one
place only:

    cards[NAME]      saved_models/NAME/card.json: of a published model
    runs[NAME]       docs/results/runs.json: of a run that was made and not published, good or bad
    anchors[NAME]    docs/results/anchors.json: a published figure, its convention, its source and when that was read
    speed_table      benchmarks/results/*.json, through benchmarks/table.py: speed beside peers
    certificates     docs/results/certificates.json, of benchmarks/certificates.py: {"packages", "applications"}
    planted_faults   docs/results/planted_faults.json, of benchmarks/planted_faults.py
    load_matrix      docs/results/load_matrix.json, of benchmarks/load_matrix.py
"""

import argparse
import datetime
import json
import pathlib
import re
import sys

import jinja2

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import certificates, load_matrix
from benchmarks.table import table

TEMPLATES = ROOT / "docs" / "results"
# {template: page}; in a page the text is between <!-- receipt: TEMPLATE --> and <!-- end receipt -->.
PAGES = {
    "readme_results.md": "README.md",
    "results.md": "docs/results.md",
    "speed_table.md": "docs/speed.md",
    "planted_faults.md": "docs/guides/verification.md",
    "certificates_packages.md": "docs/guides/verification.md",
    "certificates_applications.md": "docs/guides/verification.md",
    "load_matrix.md": "docs/load_matrix.md",
}
UNITS = r"%|BLEU|bits|nats|seconds|minutes|min|hours|s|h|ms|MB|GB|points|images/s|tokens/s"
FIGURE = re.compile(rf"\d(?:[\d.,]*\d)?(?:\*\*)?\s?(?:{UNITS})(?![\w%])")


def percent(value, digits=2):
    """0.9945 as "99.45 %"."""
    return f"{100 * value:.{digits}f} %"


def fixed(value, digits=2):
    """A number with so many digits after the point."""
    return f"{value:.{digits}f}"


def thousands(value):
    """9536074 as "9,536,074"."""
    return f"{value:,}"


def minutes(seconds):
    """1560.2 as "26 min", 10800 as "3 h"."""
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} h"


def days(rows):
    """The dates of rows as "28 November 2026", or the first and the last."""
    dates = [datetime.date.fromisoformat(day) for day in sorted({row["date"] for row in rows})]
    words = [f"{day.day} {day:%B %Y}" for day in dict.fromkeys((dates[0], dates[-1]))]
    return " to ".join(words)


def versions(rows):
    """The releases that certificates are of, as "Keras 3.15.1, TensorFlow 2.21.0"."""
    names = {"keras": "Keras", "tensorflow": "TensorFlow", "jax": "JAX", "torch": "torch"}
    found = {("keras", row["keras"]) for row in rows}
    found |= {(one["backend"], one["version"]) for row in rows for one in row.get("rows", ()) if one["version"]}
    return ", ".join(f"{names[name]} {version}" for name, version in sorted(found, key=lambda x: [*names].index(x[0])))


def sources():
    """{"cards", "runs", "anchors", "speed_table", …}: what templates read."""
    cards = {path.parent.name: json.loads(path.read_text("utf-8")) for path in ROOT.glob("saved_models/*/card.json")}
    found = {"cards": cards, "speed_table": table(ROOT / "benchmarks" / "results")}
    for name in ("runs", "anchors", "certificates", "planted_faults", "load_matrix"):
        found[name] = json.loads((TEMPLATES / f"{name}.json").read_text("utf-8"))
    groups = {"applications": [], "packages": []}
    for row in found["certificates"]:
        groups["applications" if "keras.applications" in row["model"] else "packages"].append(row)
    return found | {"certificates": groups}


def render(template):
    """The text of a template with the figures of its sources."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (percent, fixed, thousands, minutes, days, versions)}
    environment.filters |= {"certificate_table": certificates.table, "load_table": load_matrix.table}
    return environment.get_template(template).render(sources())


def place(page, template, text):
    """A page with the rendered text of a template between its comments."""
    start, end = f"<!-- receipt: {template} -->\n", "<!-- end receipt -->\n"
    before, found, rest = page.partition(start)
    if not found or end not in rest:
        raise SystemExit(f"The page has no {start.strip()} … {end.strip()}: put them where {template} goes.")
    return before + start + text.strip("\n") + "\n" + end + rest.partition(end)[2]


def own_figures(text):
    """Figures with a unit that a template states itself, instead of reading them of a source."""
    text = re.sub(r"```.*?```|{{.*?}}|{%.*?%}|`[^`]*`", " ", text, flags=re.DOTALL)
    return [match[0] for match in FIGURE.finditer(text)]


def problems():
    """A sentence for each page that differs from its sources, and for each figure in a template."""
    found = []
    for template, name in PAGES.items():
        page = (ROOT / name).read_text("utf-8")
        if page != place(page, template, render(template)):
            found.append(f"{name} differs from its sources: run python docs/receipts.py.")
        figures = own_figures((TEMPLATES / template).read_text("utf-8"))
        if figures:
            found.append(
                f"docs/results/{template} states {', '.join(figures)}: put each into a card, runs.json or anchors.json "
                "and read it from there."
            )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something differs")
    args = parser.parse_args()
    if args.check:
        found = problems()
        print("\n".join(found) or "The pages say what their sources say.")
        return 1 if found else 0
    for template, name in PAGES.items():
        page = (ROOT / name).read_text("utf-8")
        (ROOT / name).write_text(place(page, template, render(template)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
