"""What the site needs beside its pages: two files of the root as pages, and docstrings as Markdown."""

import pathlib
import re
import textwrap

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files, config):
    """Add CONTRIBUTING.md and CHANGELOG.md, with the links that they have as files of the root."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files


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
