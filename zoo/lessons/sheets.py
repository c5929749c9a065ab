"""Worksheets and answer sheets of a lesson, as pages to print."""

import html
import re

from zoo.lessons.exercises import Exercise, Lesson

_STYLE = """
body { font: 11pt/1.45 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
h1 { font-size: 1.4rem; } ol { padding: 0; list-style: none; } li { margin: 0 0 1.4rem; break-inside: avoid; }
code { background: #f2f2f2; padding: 0 .2em; overflow-wrap: anywhere; }
.line { border-bottom: 1px solid #555; height: 2rem; }
.work { height: 5rem; } .name { display: flex; gap: 2rem; } .name span { flex: 1; border-bottom: 1px solid #555; }
dl { margin: .4rem 0 0; } dt { float: left; clear: left; min-width: 7rem; padding-right: 1rem; }
dd { margin: 0 0 .3rem 8rem; }
@media (max-width: 30rem) { dt { float: none; } dd { margin-left: 1rem; } }
@media print { body { margin: 0; max-width: none; } }
""".strip()


def worksheet(lesson: Lesson) -> str:
    """The questions of a lesson with room for the answers.

    Args:
        lesson: of `zoo.lessons.exercises`.

    Returns:
        an HTML page.
    """
    items = [
        f'<li><b>{one.id}</b> {_question(one)}<div class="work"></div><div class="line">Answer:</div></li>'
        for one in lesson.exercises
    ]
    heading = '<p class="name"><span>Name:</span><span>Date:</span></p>'
    return _page(lesson, "Worksheet", heading + _list(items))


def answer_sheet(lesson: Lesson) -> str:
    """The answers of a lesson with their explanations, and typical mistakes with what they come from.

    Args:
        lesson: of `zoo.lessons.exercises`.

    Returns:
        an HTML page.
    """
    from zoo.lessons.exercises import format_answer

    items = []
    for one in lesson.exercises:
        mistakes = "".join(
            f"<dt>{html.escape(format_answer(mistake.answer))}</dt><dd>{_inline(mistake.explanation)}</dd>"
            for mistake in one.mistakes
        )
        within = f" (within {one.tolerance:g})" if one.tolerance else ""
        items.append(
            f"<li><b>{one.id}</b> {_question(one)}"
            f"<p><b>{html.escape(one.answer_text)}</b>{within}. {_inline(one.explanation)}</p>"
            f"<p>In Python: <code>{html.escape(one.solution)}</code></p>"
            f"<p>Typical mistakes:</p><dl>{mistakes}</dl></li>"
        )
    return _page(lesson, "Answer sheet", _list(items))


def _question(exercise: Exercise) -> str:
    choices = f" ({', '.join(exercise.choices)})" if exercise.choices else ""
    return _inline(exercise.question + choices)


def _inline(text):
    """Text with `code` as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _list(items):
    return f"<ol>{''.join(items)}</ol>"


def _page(lesson, kind, body):
    title = f"{kind}, lesson {lesson.number}: {html.escape(lesson.title)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>{body}</body></html>\n"
    )
