"""zoo verify: the same numbers on every backend."""

import argparse
import sys

from zoo.cli.common import MODEL_HELP, comma_separated, log

HELP = "check that a model gives the same numbers on every backend, or in a runtime"
EPILOG = """exit codes: 0 the numbers are the same, 1 they differ or a backend does not run
the file, 2 wrong input

examples:
  zoo verify cnn_mnist
  zoo verify cnn_mnist --backends jax,torch
  zoo verify diffusion_captions/denoiser
  zoo verify my_run/model.keras --tolerance 1e-3
  zoo verify cnn_mnist --runtimes onnxruntime
  zoo verify cnn_mnist_onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        help=f"{MODEL_HELP}, or a folder that zoo export wrote; of a preset of several models all, or one: "
        "diffusion_captions/denoiser",
    )
    add(
        "--tolerance",
        type=float,
        metavar="X",
        help="the largest difference that passes; default 1e-4, of an exported folder what its certificate says",
    )
    add(
        "--backends",
        type=comma_separated,
        metavar="A,B",
        help="some of tensorflow, jax, torch; default those installed",
    )
    add(
        "--runtimes",
        type=comma_separated,
        metavar="A,B",
        help="some of onnxruntime, openvino, litert, tensorflow, torch: export the model and run it there instead of "
        "on backends; default none, or for a folder that zoo export wrote the one of its certificate",
    )


def run(args: argparse.Namespace) -> int:
    from zoo.tasks.verify import verify

    terminal = sys.stdout.isatty()

    def log_over(line):
        """Print a line in place of what says that a backend is running."""
        print("\r\033[K" * terminal, end="")
        log(line)

    def on_start(backend):
        if terminal:
            print(f"{backend:<12}running …", end="", flush=True)

    options = {"backends": args.backends, "runtimes": args.runtimes, "tolerance": args.tolerance}
    report = verify(args.model, **options, log=log_over, on_start=on_start)
    return 0 if report.passed else 1
