"""The fenced blocks of the documentation, and what the comment above each says about running it.

    <!-- run -->                                       the default, for a block without a comment
    <!-- slow -->                                      runs with --full only, after the blocks above it
    <!-- too long: last run 2026-11-21, 27 min -->     does not run in tests; the date, and what it took where known
    <!-- needs two machines: last run 2026-11-22 -->   likewise

No reader of a page sees these comments.
"""

import dataclasses
import datetime
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in PAGES if page.parent.name != "results"]  # templates of docs/receipts.py
_FENCE = re.compile(
    r"(?:^<!-- *(?P<comment>[^\n]*?) *-->\n)?^ *```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
_LAST_RUN = re.compile(r"(?:too long|needs [\w ]+): last run (\d{4}-\d{2}-\d{2})(?:, .+)?")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of its page.
        line: number of the line of its fence.
        language: after the fence, e.g. "bash".
        code: what it holds.
        comment: of the line above; "" without one.
    """

    page: pathlib.Path
    line: int
    language: str
    code: str
    comment: str

    @property
    def last_run(self):
        """The date of a block that is too long to run here, else None."""
        match = _LAST_RUN.fullmatch(self.comment)
        return match and datetime.date.fromisoformat(match[1])

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page):
    """The `Block`s of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match["language"], match["code"], match["comment"] or "")
        for match in _FENCE.finditer(text)
    ]
