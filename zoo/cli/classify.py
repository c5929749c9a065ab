"""zoo classify: the most probable classes of image files."""

import argparse
import sys
from typing import Literal

from zoo.cli.common import MODEL_HELP, at_least, note_unlisted_files

HELP = "classify images"
EPILOG = """examples:
  zoo classify digit.png
  zoo classify sign.jpg other.jpg --model cnn_gtsrb --top-k 1
  zoo classify digit.png --model runs/cnn_mnist-mnist
  zoo classify cat.jpg --model vgg.keras --preprocess caffe --labels names.txt

Class names come from the card or metrics.json beside the model, or --labels."""
_BAR = 30  # characters for a probability of 1
_FLAGS = {"preprocess_input": "--preprocess", "invert": "--invert", "class_names": "--labels FILE"}
_INVERT: dict[str, bool | Literal["auto"]] = {"auto": "auto", "yes": True, "no": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", nargs="+", help="image files of any kind and size")
    add("--model", default="cnn_mnist", help=f"{MODEL_HELP}; default cnn_mnist")
    add("--top-k", type=at_least(1), metavar="N", help="number of classes to show; default 3")
    add(
        "--preprocess",
        choices=("none", "unit", "tf", "torch", "caffe"),
        help="what a model that no card describes takes for pixels from 0 to 255: none, these; unit, from 0 to 1; tf, "
        "torch or caffe, as keras.applications; default none",
    )
    add("--labels", metavar="FILE", help="names of the classes, one a line, or JSON")
    add(
        "--invert",
        choices=tuple(_INVERT),
        default="auto",
        help="exchange dark and light; auto does so for grey-scale models where the border is light; default auto",
    )


def run(args: argparse.Namespace) -> None:
    from zoo import backends
    from zoo.io.images import load_image
    from zoo.io.labels import read_labels
    from zoo.presets import find_preset

    images, invert = [load_image(path) for path in args.image], _INVERT[args.invert]
    preset = find_preset(args.model)
    if preset.model_path.is_file():
        backends.import_keras()
    from zoo.tasks.image_classifier import ImageClassifier

    arguments = {"class_names": args.labels and read_labels(args.labels), "preprocess_input": args.preprocess}
    given = {name: value for name, value in arguments.items() if value is not None}
    classifier = ImageClassifier.from_preset(args.model, **given)
    note_unlisted_files(preset)
    assumed = classifier.assumptions()
    if args.invert != "auto":
        assumed.pop("invert", None)
    if assumed:
        words = "; ".join(f"{words} ({_FLAGS[name]})" for name, words in assumed.items())
        print(f"note: nothing says what {args.model} takes: {words}.", file=sys.stderr)
    results = classifier.classify(images, top_k=args.top_k, invert=invert)
    for path, image, classes in zip(args.image, images, results):
        why = ", because its border is light" if args.invert == "auto" else ""
        print(f"{path}  (inverted{why})" if classifier.is_inverted(image, invert) else path)
        width = max(len(one["label"]) for one in classes)
        for one in classes:
            bar = "█" * round(_BAR * one["score"])
            print(f"  {one['label']:<{width}}  {one['score']:>6.1%}  {bar}".rstrip())
