"""Train the 48x48 CNN on handwritten digits and report how good it is.

KERAS_BACKEND=jax python recipes/cnn_mnist.py
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


def parse_args(argv=None):
    return recipe.argument_parser(__doc__, epochs=5, decay_kind="l2", output="runs/cnn_mnist").parse_args(argv)


def main(args):
    began = time.perf_counter()
    recipe.check_arguments(args)
    name, remark = (args.dataset, None) if args.dataset else data.choose_dataset(args.data_dir)
    if remark:
        print(remark, flush=True)
    dataset = recipe.open_dataset(args, name)
    if args.evaluate:
        model = recipe.load_for(dataset, args.evaluate)
        return recipe.report(model, dataset, pathlib.Path(args.output) / "evaluation", limit=args.limit)

    train, validation = data.split_validation(dataset, fraction=1 / 12, seed=args.seed, limit=args.limit)
    with zoo.strategy(args.devices, kind=args.parallel, precision=args.precision):
        classifier = cnn(num_classes=len(dataset.class_names), dropout=0.0 if args.parity else 0.5)
        set_initial_weights(classifier, seed=args.seed, initializer="he")
        classifier.summary()
        training_model, model = recipe.build(classifier, dataset, args)
        history, first_losses = recipe.fit(training_model, train, validation, dataset, args)
    if args.parity:
        print("First losses:", " ".join(f"{loss:.6f}" for loss in first_losses))
    return recipe.finish(model, history, first_losses, dataset, args, began=began)


if __name__ == "__main__":
    run_recipe(main, parse_args())
