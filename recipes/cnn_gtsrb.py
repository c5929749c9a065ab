"""Train the 48x48 CNN on German traffic signs (43 classes) and report how good it is.

KERAS_BACKEND=jax python recipes/cnn_gtsrb.py --data-dir FOLDER
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.start_script()

import zoo
from zoo import data
from zoo.distribution.launch import run_recipe
from zoo.models.cnn import cnn
from zoo.training import image_recipe as recipe
from zoo.training.initial_weights import set_initial_weights

# Photographs differ from scans: each is normalised by its own mean and contrast, since a sign in the shade is the same
# sign, and the crops vary in position, size and viewing angle.
PIPELINE = {
    "per_image": True,
    "local_contrast": 13,
    "translation": 0.08,
    "scale": 0.15,
    "shear": 8.0,
    "brightness": 0.2,
    "contrast": 0.4,
}


def parse_args(argv=None):
    parser = recipe.argument_parser(__doc__, epochs=30, decay_kind="decoupled", output="runs/cnn_gtsrb")
    return parser.parse_args(argv)


def main(args):
    began = time.perf_counter()
    recipe.check_arguments(args)
    dataset = recipe.open_dataset(args, args.dataset or "gtsrb")
    if args.evaluate:
        model = recipe.load_for(dataset, args.evaluate)
        return recipe.report(model, dataset, pathlib.Path(args.output) / "evaluation", limit=args.limit)

    # Whole tracks on one side: the 30 pictures of a track show the same sign.
    train, validation = data.split_validation(dataset, fraction=0.1, seed=args.seed, limit=args.limit)
    with zoo.strategy(args.devices, kind=args.parallel, precision=args.precision):
        classifier = cnn(num_classes=len(dataset.class_names), dropout=0.0 if args.parity else 0.5)
        set_initial_weights(classifier, seed=args.seed, initializer="glorot")
        classifier.summary()
        training_model, model = recipe.build(classifier, dataset, args, **PIPELINE)
        history, first_losses = recipe.fit(training_model, train, validation, dataset, args)
    if args.parity:
        print("First losses:", " ".join(f"{loss:.6f}" for loss in first_losses))
    return recipe.finish(model, history, first_losses, dataset, args, began=began)


if __name__ == "__main__":
    run_recipe(main, parse_args())
