"""What the site needs beside its pages: two files of the root as pages, the lessons, and docstrings as Markdown.

The lessons are executed when the site is built, on the backend of KERAS_BACKEND, and shown with what they printed. What
was executed is kept in the cache folder until a lesson or a version changes. ZOO_DOCS_LESSONS says which are executed:
"all" unless it is set, "none", or numbers such as 3,5; the others are shown without output.
"""

import base64
import hashlib
import html
import importlib.metadata
import logging
import os
import pathlib
import re
import sys
import tempfile
import textwrap

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
NOT_EXECUTED = "*This page was built without running the notebook: its output is left out.*"
log = logging.getLogger("mkdocs.hooks.lessons")


def on_files(files, config):
    """Add CONTRIBUTING.md and CHANGELOG.md, with the links that they have as files of the root."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    for name, content in lesson_files().items():
        files.append(File.generated(config, name, content=content))
    return files


def lesson_files():
    """{path in the site: content} of the lessons: pages, pictures, notebooks, worksheets and answer sheets."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import nbformat

    from zoo.lessons import execution, exercises, sheets

    chosen, found = os.environ.get("ZOO_DOCS_LESSONS", "all"), {}
    for lesson in exercises.list_lessons():
        executed = chosen == "all" or str(lesson.number) in chosen.split(",")
        notebook = executed_lesson(lesson) if executed else execution.to_notebook(lesson)
        stem = f"lessons/{lesson.path.stem}"
        text, pictures = lesson_page(lesson, notebook, executed=executed)
        found[f"{stem}.md"] = text
        found |= {f"lessons/{name}": content for name, content in pictures.items()}
        found[f"{stem}.ipynb"] = nbformat.writes(execution.to_notebook(lesson))
        found[f"{stem}_worksheet.html"] = sheets.worksheet(lesson)
        found[f"{stem}_answers.html"] = sheets.answer_sheet(lesson)
    return found


def executed_lesson(lesson):
    """A lesson with its output, from the cache folder where it was executed before."""
    import nbformat

    from zoo.io import files
    from zoo.lessons import execution

    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    digest = hashlib.sha256(backend.encode())
    for name in ("keras", "numpy", "matplotlib", backend):
        digest.update(importlib.metadata.version(name).encode())
    for path in (lesson.path, lesson.path.with_suffix(".json"), *sorted(lesson.path.parent.glob("*.py"))):
        digest.update(path.read_bytes())
    cached = files.cache_dir() / "lessons" / f"{lesson.path.stem}-{digest.hexdigest()[:16]}.ipynb"
    if not cached.is_file():
        log.info("Running lesson %s on %s …", lesson.number, backend)
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            execution.write_notebook(execution.execute(lesson, folder=folder, backend=backend), cached)
    return nbformat.read(cached, as_version=4)


def lesson_page(lesson, notebook, *, executed):
    """(Markdown, {name: PNG}) of a notebook: prose, code, what was printed, pictures with their text alternatives."""
    stem, parts, pictures = lesson.path.stem, [], {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(formulas_to_mathml(cell.source))
            if number == 0:
                parts += [lesson_links(lesson), *([] if executed else [NOT_EXECUTED])]
            continue
        parts.append(f"```python\n{cell.source}\n```")
        printed = "".join(one.text for one in cell.outputs if one.output_type == "stream" and one.name == "stdout")
        if printed:
            parts.append(f"```{{.text .output}}\n{printed.rstrip()}\n```")
        for output in cell.outputs:
            if content := output.get("data", {}).get("image/png"):
                name = f"{stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(content)
                alt = html.escape(output.metadata["image/png"]["alt"])
                parts.append(f'<img class="picture" src="{name}" alt="{alt}">')
    return "\n\n".join(parts) + "\n", pictures


def lesson_links(lesson):
    """The line under a lesson's heading."""
    stem = lesson.path.stem
    return (
        f"{lesson.minutes} minutes · `zoo lessons {lesson.number}` opens it · [notebook]({stem}.ipynb) · "
        f"[worksheet]({stem}_worksheet.html) · [answers]({stem}_answers.html)"
    )


def formulas_to_mathml(text):
    """$…$ and $$…$$ as MathML, which browsers draw without a script; code stays as it is."""
    from latex2mathml.converter import convert

    def formula(match):
        if match["code"]:
            return match["code"]
        latex = " ".join((match["block"] or match["line"]).split())
        drawn = convert(latex, display="block" if match["block"] else "inline")
        drawn = f'<span class="formula" role="math" aria-label="{html.escape(latex)}">{drawn}</span>'
        return f'\n\n<div class="formulas">{drawn}</div>\n\n' if match["block"] else drawn

    pattern = r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|\$(?P<line>[^$\n]+(?:\n[^$\n]+)?)\$"
    return re.sub(pattern, formula, text, flags=re.DOTALL)


class MarkdownDocstrings(griffe.Extension):
    """Docstrings are plain text with Google's sections: tables and code by layout become fenced blocks."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text):
    """A docstring as Markdown: what is aligned by spaces is a block, and a "Returns:" is prose without a type."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = text.replace(": > ", ": \\> ")  # no quotation
    head, *sections = re.split(r"^(?=(?:Args|Attributes|Returns|Yields|Raises|Examples):$)", text, flags=re.MULTILINE)
    blocks = [
        f"```text\n{block}\n```" if _is_aligned(block) else block for block in re.split(r"\n\s*\n", head.strip("\n"))
    ]
    return "\n\n".join(["\n\n".join(blocks), *map(_as_prose, sections)])


def _is_aligned(block):
    """Whether a paragraph is laid out by spaces (a table, code, a figure of layers) and not indented code already."""
    return not block.startswith("    ") and re.search(r"\S {2,}\S", block) and not block.lstrip().startswith(("-", "|"))


def _as_prose(section):
    title, _, body = section.partition("\n")
    if title not in ("Returns:", "Yields:"):
        return section
    return f"**{title}** {textwrap.dedent(body).strip()}\n"
