"""Copy a finished run into saved_models/ with the card that describes it and the golden record that verifies it.

python recipes/publish.py runs/cnn_mnist saved_models/cnn_mnist.keras --data-licence "MNIST: CC BY-SA 3.0 …"
"""

import argparse
import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import files
from zoo.errors import UserError, run_command
from zoo.reports.golden import make_golden

# What a card takes over from metrics.json, in this order.
CARD = (
    *("command", "backend", "versions", "machine", "dataset", "data_sha256", "seed", "epochs", "batch_size"),
    *("learning_rate", "schedule", "weight_decay", "decay_kind", "parameters", "test_images"),
    *("test_accuracy", "test_loss", "validation_accuracy", "training_seconds", "class_names"),
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder that a recipe made")
    parser.add_argument("target", help="the .keras file to write; its card goes beside it")
    parser.add_argument("--input", required=True, help="what the model takes, for the reader of the card")
    parser.add_argument("--data-licence", required=True, help="licence or terms of the training data")
    return parser.parse_args(argv)


def main(args):
    run, target = pathlib.Path(args.run), pathlib.Path(args.target)
    if not (run / "metrics.json").is_file():
        raise UserError(f"{run} holds no metrics.json: give the folder of a finished run.")
    metrics = json.loads((run / "metrics.json").read_text())
    if missing := [key for key in CARD if key not in metrics]:
        raise UserError(f"{run / 'metrics.json'} lacks {', '.join(missing)}: run the recipe again.")
    digest = files.sha256(run / "model.keras")
    if digest != metrics["model_sha256"]:
        raise UserError(f"{run / 'model.keras'} is not the file its metrics.json describes: run the recipe again.")
    files.prepare_folder(target.parent)
    with files.atomic(target) as temporary:
        shutil.copyfile(run / "model.keras", temporary)
    card = {"name": target.stem, "file": target.name, "sha256": digest, "bytes": target.stat().st_size}
    card |= {"input": args.input, "output": "logits; softmax gives probabilities"}
    card |= {key: metrics[key] for key in CARD} | {"data_licence": args.data_licence}
    files.write_json(target.with_suffix(".json"), card)
    golden = make_golden(target)
    print(f"{target} ({card['bytes'] / 1e6:.1f} MB), its card and its golden record {golden.name} are in place.")


if __name__ == "__main__":
    run_command(main, parse_args())
