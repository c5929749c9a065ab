"""The `zoo` command: one file a verb, each a thin layer over what Python offers.

Everything heavy is imported inside the verb that needs it, so that --help answers at once.
"""

import argparse
import importlib
import re
import shutil
import sys
from collections.abc import Sequence

import zoo
from zoo.backends import skip_optional_imports
from zoo.errors import UserError, did_you_mean, run_command
from zoo.fast_paths.compilation_cache import use_compilation_cache

VERBS = (
    *("list", "summary", "quiz", "classify", "generate", "translate"),
    *("verify", "convert", "export", "publish", "lessons"),
)
BACKEND_HELP = "The environment chooses the backend: KERAS_BACKEND=tensorflow, jax or torch."
_WIDTH = 80  # columns of the help, at most


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 1 a check failed, 2 wrong input)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "…" or bars shows "?"
    if argv is None:  # a process of the command alone
        skip_optional_imports()
        use_compilation_cache()
    return run_command(run, sys.argv[1:] if argv is None else argv)


def run(argv: Sequence[str]) -> int:
    """Run the command; what is wrong is raised.

    Raises:
        UserError: if the user must act.
    """
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        known = ", ".join(VERBS)
        raise UserError(f"There is no command {argv[0]!r}: choose one of {known}.{did_you_mean(argv[0], VERBS)}")
    parser = _parser()
    if not argv:
        parser.print_help()
        return 0
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown_arguments(args, unknown))
    return args.run(args) or 0


def _unknown_arguments(args, unknown):
    """The sentence for what a verb does not take, with the nearest of its flags."""
    if not hasattr(args, "verb"):
        return f"zoo does not take {' '.join(unknown)}: `zoo --help` lists the commands."
    flag, flags = unknown[0].partition("=")[0], re.findall(r"--[\w-]+", args.usage)
    hint = did_you_mean(flag, flags) if flag.startswith("-") else " Put what has spaces in quotes."
    return f"zoo {args.verb} does not take {' '.join(unknown)}: `zoo {args.verb} --help` explains what it takes.{hint}"


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(formatter_class=_Formatter, **options)

    def error(self, message):
        self.exit(2, f"error: {message} (`{self.prog} --help` explains).\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, the rest in at most 80 columns."""

    def __init__(self, prog):
        super().__init__(prog, width=min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns) - 2)


def _parser():
    """The parser: a verb's module has its help line `HELP`, `add_arguments` and `run`, and may have `EPILOG`."""
    parser = _Parser(prog="zoo", description="Models with every parameter explained.", epilog=BACKEND_HELP)
    parser.add_argument("--version", action="version", version=f"zoo {zoo.__version__}")
    # The metavar is longer than every verb: Python 3.11 forgets their indent when it aligns what they are for.
    parser.usage = "zoo [-h] COMMAND ..."
    choices = parser.add_subparsers(title="commands", metavar="COMMAND ...", prog="zoo")
    for verb in VERBS:
        module = importlib.import_module(f"zoo.cli.{verb}")
        text, epilog = module.HELP, getattr(module, "EPILOG", BACKEND_HELP)
        choice = choices.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
        module.add_arguments(choice)
        choice.set_defaults(run=module.run, verb=verb, usage=choice.format_usage())
    return parser
