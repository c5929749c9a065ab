"""Train a transformer encoder-decoder to translate and report its BLEU.

KERAS_BACKEND=torch python recipes/transformer_multi30k.py --source de --target en --data-dir FOLDER
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.start_script()

import zoo
from zoo.distribution.launch import run_recipe
from zoo.models.transformer import LAYOUT
from zoo.tasks.translator import load_translator
from zoo.training import translation_recipe as recipe


def parse_args(argv=None):
    args = recipe.argument_parser(__doc__, output=None).parse_args(argv)
    args.output = args.output or f"runs/transformer_{args.source}_{args.target}"
    return args


def main(args):
    began = time.perf_counter()
    recipe.check_arguments(args)
    dataset = recipe.open_pairs(args)
    if args.evaluate:
        translator = load_translator(args.evaluate)
        recipe.check_languages(dataset, args.evaluate)
        folder = pathlib.Path(args.output) / "evaluation"
        return recipe.report(translator.model, translator.tokenizer, dataset, folder)

    tokenizer = recipe.make_tokenizer(dataset, args)
    with zoo.strategy(args.devices, kind=args.parallel, layout=LAYOUT, precision=args.precision):
        model = recipe.build(args, tokenizer)
        model.summary()
        history, first_losses = recipe.fit(model, tokenizer, dataset, args)
    if args.parity:
        print("First losses:", " ".join(f"{loss:.6f}" for loss in first_losses))
    return recipe.finish(model, tokenizer, history, first_losses, dataset, args, began=began)


if __name__ == "__main__":
    run_recipe(main, parse_args())
