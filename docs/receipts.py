"""Write the results into the pages from what they were read of: cards, runs, anchors, benchmarks. For maintainers.

    python docs/receipts.py            # write
    python docs/receipts.py --check    # say where a page differs from its sources, or a template states a figure itself

A part of a page, between two comments, is rendered from a template of `docs/results/` (Jinja). A figure stands in one
place only:

    cards[NAME]      saved_models/NAME/card.json: of a published model
    runs[NAME]       docs/results/runs.json: of a run that was made and not published, good or bad
    anchors[NAME]    docs/results/anchors.json: a published figure, its convention, its source and when that was read
    speed_table      benchmarks/results/*.json, through benchmarks/table.py: speed beside peers
"""

import argparse
import json
import pathlib
import re
import sys

import jinja2

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.table import table

TEMPLATES = ROOT / "docs" / "results"
# {template: page}; in a page the text is between <!-- receipt: TEMPLATE --> and <!-- end receipt -->.
PAGES = {"readme_results.md": "README.md", "results.md": "docs/results.md", "speed_table.md": "docs/speed.md"}
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


def sources():
    """{"cards", "runs", "anchors", "speed_table"}: what templates read."""
    cards = {path.parent.name: json.loads(path.read_text("utf-8")) for path in ROOT.glob("saved_models/*/card.json")}
    return {"cards": cards, "speed_table": table(ROOT / "benchmarks" / "results")} | {
        name: json.loads((TEMPLATES / f"{name}.json").read_text("utf-8")) for name in ("runs", "anchors")
    }


def render(template):
    """The text of a template with the figures of its sources."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (percent, fixed, thousands, minutes)}
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
