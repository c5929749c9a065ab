"""zoo lessons: notebooks for a class, worksheets, and the answers of a class as a table."""

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys

from zoo.cli.common import log
from zoo.errors import UserError, install_command

HELP = "open a lesson in Jupyter, write its worksheets, grade a class"
EPILOG = """examples:
  zoo lessons
  zoo lessons 3
  KERAS_BACKEND=jax zoo lessons 3 --execute
  zoo lessons 3 --worksheet worksheet.html --answers answers.html
  zoo lessons grade handed_in --csv grades.csv

`zoo lessons 3` copies the notebook to the working folder, where one that is
there already stays as it is, and opens it in Jupyter."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "lesson",
        nargs="?",
        help="the number or the name of a lesson, or the word grade; without it, the lessons are listed",
    )
    add("folder", nargs="?", help="after grade: the folder with the notebooks that a class has handed in")
    add("--copy", action="store_true", help="copy the notebook without opening it")
    add(
        "--execute",
        action="store_true",
        help="run the notebook without Jupyter and write it with its output, as a page too",
    )
    add("--worksheet", metavar="FILE", help="write the questions of the lesson as a page to print")
    add("--answers", metavar="FILE", help="write the answers as a page, with typical mistakes")
    add("--csv", metavar="FILE", help="after grade: the table to write; default grades.csv in the folder")


def run(args: argparse.Namespace) -> int:
    from zoo.io import files
    from zoo.lessons import exercises, sheets

    if args.lesson == "grade":
        return _grade(args)
    if args.folder or args.csv:
        raise UserError(f"{args.folder or '--csv'} belongs to grading: write zoo lessons grade FOLDER.")
    if args.lesson is None:
        if args.copy or args.execute or args.worksheet or args.answers:
            raise UserError("Which lesson is missing: write its number, such as zoo lessons 3.")
        for lesson in exercises.list_lessons():
            log(f"{lesson.number}  {lesson.title} ({lesson.minutes} minutes)\n   {lesson.summary}")
        log("\nzoo lessons 3 opens lesson 3.")
        return 0
    lesson = exercises.find_lesson(args.lesson)
    for path, make in ((args.worksheet, sheets.worksheet), (args.answers, sheets.answer_sheet)):
        if path:
            files.write_text(path, make(lesson))
            log(f"Written: {path}")
    if args.execute:
        return _execute(lesson)
    if args.copy or not (args.worksheet or args.answers):
        return _open(lesson, start=not args.copy)
    return 0


def _open(lesson, *, start):
    from zoo.lessons import execution

    _check_backend()
    path, is_new = execution.copy_lesson(lesson)
    log(f"Copied: {path}" if is_new else f"{path} is there already and stays as it is.")
    if not start:
        return 0
    if importlib.util.find_spec("jupyterlab") is None:
        raise UserError(f"Jupyter is not installed, which opens {path}: {install_command('lessons')}.")
    return subprocess.run([sys.executable, "-m", "jupyterlab", str(path)]).returncode


def _execute(lesson):
    from zoo.io import files
    from zoo.lessons import execution

    _check_backend()
    log(f"Running lesson {lesson.number}, {lesson.title} …")
    notebook = execution.execute(lesson)
    path = pathlib.Path(f"lesson_{lesson.number}_{lesson.name}_executed.ipynb")
    execution.write_notebook(notebook, path)
    files.write_text(path.with_suffix(".html"), execution.to_html(notebook, lesson.title))
    log(f"Written: {path} and {path.with_suffix('.html')}")
    return 0


def _check_backend():
    """Say at once that a backend is missing."""
    from zoo.backends import check_backend, installed_backends

    if name := os.environ.get("KERAS_BACKEND"):
        check_backend(name, "KERAS_BACKEND")
    installed_backends()


def _grade(args):
    from zoo.io import files
    from zoo.lessons import grading

    if not args.folder:
        raise UserError("The folder is missing: write zoo lessons grade FOLDER, with the class's notebooks in it.")
    if args.copy or args.execute or args.worksheet or args.answers:
        raise UserError("zoo lessons grade FOLDER takes --csv FILE alone: leave the other flags out.")
    grades = grading.grade_folder(args.folder)
    path = pathlib.Path(args.csv or pathlib.Path(args.folder) / "grades.csv")
    files.write_text(path, grades.to_csv())
    for line in grades.summary():
        log(line)
    log(f"\nWritten: {path}, {len(grades.files)} notebooks.")
    return 0
