"""Train a recurrent language model to write like Shakespeare and report how well it predicts him.

KERAS_BACKEND=tensorflow python recipes/rnn_shakespeare.py --cell lstm --data-dir FOLDER
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.start_script()

import zoo
from zoo.distribution.launch import run_recipe
from zoo.generation.recurrent import load_with_tokenizer
from zoo.training import language_recipe as recipe


def parse_args(argv=None):
    args = recipe.argument_parser(__doc__, output=None).parse_args(argv)
    args.output = args.output or f"runs/rnn_shakespeare_{args.cell}_{args.level}"
    return args


def main(args):
    began = time.perf_counter()
    recipe.check_arguments(args)
    dataset = recipe.open_text(args)
    if args.evaluate:
        model, tokenizer = load_with_tokenizer(args.evaluate)
        return recipe.report(model, tokenizer, dataset, pathlib.Path(args.output) / "evaluation")

    tokenizer = recipe.make_tokenizer(dataset, args)
    with zoo.strategy(args.devices, kind=args.parallel, precision=args.precision):
        training_model, model = recipe.build(args, tokenizer.get_vocab_size())
        model.summary()
        history, first_losses = recipe.fit(training_model, model, tokenizer, dataset, args)
    if args.parity:
        print("First losses:", " ".join(f"{loss:.6f}" for loss in first_losses))
    return recipe.finish(model, tokenizer, history, first_losses, dataset, args, began=began)


if __name__ == "__main__":
    run_recipe(main, parse_args())
