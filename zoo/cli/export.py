"""zoo export: a model in the format of another runtime, with a certificate."""

import argparse
import pathlib
import shlex

from zoo.cli.common import MODEL_HELP, log, note_unlisted_files

HELP = "write a model for another runtime, with a certificate"
EPILOG = """The folder holds model files, config.json (inputs, outputs, ids, labels and
settings), the tokenizer, and certificate.json: the sha256 of each file, and the
difference between the runtime and the model's parity record. Over --tolerance
nothing is written.

examples:
  zoo export cnn_mnist --to onnx
  zoo export lstm_shakespeare --to openvino --output lstm_openvino
  zoo export my_run/model.keras --to onnx
  zoo verify cnn_mnist_onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    add("--to", required=True, metavar="FORMAT", help="onnx or openvino")
    add("--output", metavar="FOLDER", help="where it goes; default the model's name and the format: cnn_mnist_onnx")
    add("--tolerance", type=float, default=1e-4, metavar="X", help="the largest difference that passes; default 1e-4")


def run(args: argparse.Namespace) -> None:
    from zoo.exporters.runtimes import check_format
    from zoo.presets import find_preset
    from zoo.tasks.export import export

    check_format(args.to)
    preset = find_preset(args.model)
    name = preset.name if preset.model_file == "model.keras" else pathlib.Path(preset.model_file).stem
    folder = export(args.model, args.output or f"{name}_{args.to}", format=args.to, tolerance=args.tolerance, log=log)
    note_unlisted_files(preset)
    size = sum(path.stat().st_size for path in folder.iterdir())
    log(f"{folder}: {size / 1e6:,.1f} MB")
    log(f"Check it anywhere: zoo verify {shlex.quote(str(folder))}")
