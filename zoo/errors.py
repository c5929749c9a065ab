"""Mistakes a user can make, said in one sentence, and the exit codes they end a command with."""

import difflib
import sys


class UserError(Exception):
    """Something the user can put right. The message is one sentence: what was found, what was expected, what to do."""

    exit_code = 2


class TrainingError(UserError):
    """Training cannot go on, e.g. because the loss is no longer a number."""

    exit_code = 1


def nearest(name, known):
    """Return ' Did you mean X?' for the closest of the known names, or '' when none is close."""
    close = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def run_command(main, *arguments):
    """Run a command's `main`; end the process with one clear line, never a traceback, when the user must act.

    Exit codes: 0 done, 1 training failed, 2 wrong input, 130 interrupted with Ctrl-C.
    """
    try:
        main(*arguments)
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{f': {interrupt}' if str(interrupt) else '.'}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        print(f"\nerror: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.", file=sys.stderr)
        sys.exit(2)
