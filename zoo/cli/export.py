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
  zoo export transformer_multi30k_de_en --to onnx --quantize int8
  zoo export cnn_mnist --to litert
  zoo export my_run/model.keras --to onnx
  zoo verify cnn_mnist_onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    add("--to", required=True, metavar="FORMAT", help="onnx, openvino, litert, saved_model or torch")
    add(
        "--quantize",
        metavar="TYPE",
        help="int8, int4 or float16: smaller ONNX files that differ a little; default none, float32",
    )
    add(
        "--output",
        metavar="FOLDER",
        help="where it goes; default the model's name, the format and the quantization: cnn_mnist_onnx_int8",
    )
    add(
        "--tolerance",
        type=float,
        metavar="X",
        help="the largest difference that passes; default 1e-4, quantized 5e-3 (float16), 0.15 (int8) or 0.5 (int4)",
    )


def run(args: argparse.Namespace) -> None:
    from zoo.exporters.quantization import check_quantization
    from zoo.exporters.runtimes import check_format
    from zoo.presets import find_preset
    from zoo.tasks.export import export

    check_format(args.to)
    check_quantization(args.quantize, args.to)
    preset = find_preset(args.model)
    name = preset.name if preset.model_file == "model.keras" else pathlib.Path(preset.model_file).stem
    output = args.output or "_".join(filter(None, [name, args.to, args.quantize]))
    options = {"format": args.to, "quantize": args.quantize, "tolerance": args.tolerance}
    folder = export(args.model, output, **options, log=log)
    note_unlisted_files(preset)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    log(f"{folder}: {size / 1e6:,.1f} MB")
    log(f"Check it anywhere: zoo verify {shlex.quote(str(folder))}")
