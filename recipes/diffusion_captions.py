"""Train a latent diffusion from scratch, part by part, to draw digits and clothes from a caption, and score it.

KERAS_BACKEND=tensorflow python recipes/diffusion_captions.py --data-dir FOLDER
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

from zoo.distribution.launch import run_recipe
from zoo.evaluation import diffusion as scores
from zoo.training import diffusion_recipe as recipe


def parse_args(argv=None):
    return recipe.argument_parser(__doc__, output="runs/diffusion_captions").parse_args(argv)


def main(args):
    recipe.check_arguments(args)
    output = pathlib.Path(args.output)
    stages = [] if args.evaluate else recipe.chosen_stages(args)
    dataset = recipe.open_data(args)
    metrics = {stage: recipe.run_stage(stage, dataset, args) for stage in stages}
    if args.evaluate:
        folder = output if args.evaluate is True else args.evaluate
        options = {"count": args.prompts, "seed": args.seed, "guidance": args.guidance}
        metrics["scores"] = scores.report(folder, dataset, output / "scores", **options)
    return metrics


if __name__ == "__main__":
    run_recipe(main, parse_args())
