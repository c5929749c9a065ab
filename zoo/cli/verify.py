"""zoo verify: the same numbers on every backend."""

import argparse
import shlex
import sys

from zoo.cli.common import MODEL_HELP, at_least, comma_separated, input_shape, log, shapes_by_name
from zoo.errors import UserError

HELP = "check that a model gives the same numbers on every backend, or in a runtime"
EPILOG = """exit codes: 0 the numbers are the same, 1 they differ or a backend does not run
the model, 2 wrong input

examples:
  zoo verify cnn_mnist
  zoo verify cnn_mnist --gradients --backends jax,torch
  zoo verify my_run/model.keras --input-shape image=64,64,3 --html page.html
  zoo verify my_model.py:build --setup my_layers.py --precision mixed_bfloat16
  zoo verify --train my_script.py:main --steps 20
  zoo verify cnn_mnist --runtimes onnxruntime
  zoo verify cnn_mnist_onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        help=f"{MODEL_HELP}, FILE.py:FUNCTION that returns a built model, or a folder that zoo export wrote; of "
        "a preset of several models all, or one: diffusion_captions/denoiser",
    )
    add(
        "--tolerance",
        type=float,
        metavar="X",
        help="the largest difference from a parity record that passes; default 1e-4, of an exported folder what its "
        "certificate says",
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
    group = parser.add_argument_group(
        "certificate",
        "outputs, gradients and an optimizer step, of any model without a parity record",
    )
    add = group.add_argument
    add("--gradients", action="store_true", help="make a certificate also where there is a parity record")
    add(
        "--precision",
        type=comma_separated,
        metavar="A,B",
        help="float32, mixed_bfloat16, bfloat16, mixed_float16, float16; default float32",
    )
    add("--inputs", metavar="FILE.npz", help="arrays by the names of the inputs; default random ones")
    add(
        "--input-shape",
        type=input_shape,
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]H,W,C",
        help="sizes of one example where the model leaves them open, by the names of its inputs or, without a name, "
        "for all of them; default sizes that the model takes",
    )
    add("--seed", type=at_least(0), metavar="N", help="of the random inputs; default 0")
    add(
        "--setup",
        metavar="FILE.py",
        help="file to run before the model is loaded, e.g. to register classes; default none",
    )
    add("--json", metavar="FILE", help="write the certificate as JSON")
    add("--html", metavar="FILE", help="write the certificate as a page to look at in a browser")
    group = parser.add_argument_group(
        "training", "whether the losses of the backends part, from which step on, and why"
    )
    add = group.add_argument
    add(
        "--train",
        metavar="FILE.py:FUNCTION",
        help="function that returns a compiled model and batches, or calls model.fit, as a script or a recipe's main; "
        "default none",
    )
    add("--steps", type=at_least(1), default=20, metavar="N", help="how many steps to train; default 20")
    add(
        "--arguments",
        default="",
        metavar="TEXT",
        help="flags for a function that takes what parse_args of its file returns, as in a recipe; default none",
    )


def run(args: argparse.Namespace) -> int:
    from zoo.tasks.verify import verify

    if (args.model is None) == (args.train is None):
        raise UserError("Give either a model to verify or --train FILE.py:FUNCTION.")
    terminal = sys.stdout.isatty()

    def log_over(line):
        """Print a line in place of what says that a backend is running."""
        print("\r\033[K" * terminal, end="")
        log(line)

    def on_start(backend):
        if terminal:
            print(f"\r\033[K{backend:<12}running …", end="", flush=True)

    shapes = shapes_by_name(args.input_shape)
    report = verify(
        args.train or args.model,
        backends=args.backends,
        runtimes=args.runtimes,
        tolerance=args.tolerance,
        gradients=True if args.gradients or args.json or args.html else None,
        precisions=args.precision,
        inputs=args.inputs,
        input_shapes=(shapes if isinstance(shapes, dict) else {"": shapes}) or None,
        seed=args.seed,
        setup=args.setup,
        train_steps=args.steps if args.train else None,
        arguments=shlex.split(args.arguments),
        log=log_over,
        on_start=on_start,
    )
    _write(args, report)
    return 0 if report.passed else 1


def _write(args, report):
    """Write what --json and --html ask for."""
    from zoo.parity.certificate import Certificate
    from zoo.parity.training import TrainingCertificate

    wanted = [(option, file) for option, file in (("--json", args.json), ("--html", args.html)) if file]
    for option, file in wanted:
        if not isinstance(report, (Certificate, TrainingCertificate)):
            raise UserError(f"{option} is for the certificate of one model: name one `.keras` file of the preset.")
        if option == "--json":
            import json

            text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
        else:
            from zoo.tasks.certificate_page import render_certificate

            text = render_certificate(report)
        _write_text(option, file, text)


def _write_text(option, file, text):
    from zoo.io import files

    try:
        files.write_text(file, text)
    except OSError as error:
        raise UserError(f"Cannot write {file} ({error.strerror}): name another file with {option}.") from error
