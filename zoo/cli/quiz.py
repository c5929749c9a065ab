"""zoo quiz: questions about a model's parameters."""

import argparse
import sys

from zoo.cli.common import MODEL_HELP, at_least, load_model, log

HELP = "ask you for parameters of a model and explain the answers"
EPILOG = """exit codes: 0 every answer was right, 1 not, 2 wrong input

examples:
  zoo quiz cnn
  zoo quiz cnn_mnist --questions 3 --seed 7
  zoo quiz cnn --answers > sheet.txt
  zoo quiz cnn --answers answers.txt

Numbers are asked to the last digit: 9437696 or 9,437,696. Shapes are without
the batch: 12x12x128, 12·12·128 or (12, 12, 128)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    add("--seed", type=at_least(0), default=0, metavar="N", help="other seeds ask other questions; default 0")
    add("--questions", type=at_least(1), default=5, metavar="N", help="how many to ask; default 5")
    add(
        "--answers",
        metavar="FILE",
        nargs="?",
        const="",
        help="print the questions and their answers as a worksheet instead of asking; with FILE (- is standard input), "
        "grade the answers in it, one a line",
    )


def run(args: argparse.Namespace) -> int:
    answers = None
    if args.answers == "-":
        answers = sys.stdin.read().splitlines()
    elif args.answers:  # "" is the worksheet
        with open(args.answers, encoding="utf-8", errors="replace") as file:
            answers = file.read().splitlines()
    model = load_model(args.model)
    from zoo.parameter_ledger import quiz

    if args.answers == "":
        log(quiz.worksheet(model, seed=args.seed, count=args.questions))
        return 0
    right, total = quiz.run_quiz(model, seed=args.seed, count=args.questions, answers=answers, log=log)
    return 0 if right == total else 1
