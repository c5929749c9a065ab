"""zoo verify: the same numbers on every backend."""

import argparse

from zoo.cli.common import MODEL_HELP, comma_separated, log

HELP, EPILOG = "check that a model gives the same numbers on every backend", None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    add("--tolerance", type=float, default=1e-4, metavar="X", help="the largest difference that passes; default 1e-4")
    add(
        "--backends",
        type=comma_separated,
        metavar="A,B",
        help="some of tensorflow, jax, torch; default those installed",
    )


def run(args: argparse.Namespace) -> int:
    from zoo.tasks.verify import verify

    return 0 if verify(args.model, backends=args.backends, tolerance=args.tolerance, log=log).passed else 1
