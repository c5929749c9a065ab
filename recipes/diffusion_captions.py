"""Train a latent diffusion from scratch, part by part, to generate digits and clothes from a caption, and score it.

    KERAS_BACKEND=tensorflow python recipes/diffusion_captions.py --data-dir FOLDER

It runs the recipes diffusion_classifier, diffusion_autoencoder, diffusion_text_encoder, diffusion_denoiser and
diffusion_evaluation in turn; with --resume finished parts are kept and an interrupted one continues.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

import argparse

from recipes import (
    diffusion_autoencoder,
    diffusion_classifier,
    diffusion_denoiser,
    diffusion_evaluation,
    diffusion_text_encoder,
)
from zoo.distribution.launch import run_recipe
from zoo.training import diffusion, flags
from zoo.training.run import CHECKPOINT_FILE

RECIPES = {
    "classifier": diffusion_classifier,
    "autoencoder": diffusion_autoencoder,
    "text-encoder": diffusion_text_encoder,
    "denoiser": diffusion_denoiser,
    "evaluation": diffusion_evaluation,
}


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    parser.add_argument("--stage", choices=(*RECIPES, "all"), default="all", help="run one of the recipes")
    # What the command does not say is up to each recipe.
    names = (*diffusion.RUN_FLAGS, "epochs", "batch_size", "learning_rate", "kl_weight", "perceptual_weight")
    names = (*names, "conditioning_dropout_prob", "ema_decay", "num_eval_prompts", "guidance_scale", "num_steps")
    flags.add(parser, "evaluate", **dict.fromkeys(names))
    return parser.parse_args(argv)


def main(args):
    """Run the recipes; returns {stage: metrics}."""
    flags.check(args)
    stages = list(RECIPES) if args.stage == "all" else [args.stage]
    if args.evaluate:
        stages = ["evaluation"]
    folder, metrics = diffusion.run_folder(args), {}
    for stage in stages:
        part = stage.replace("-", "_")
        made = diffusion.PARTS[part]["files"] if part in diffusion.PARTS else ["evaluation/metrics.json"]
        interrupted = (folder / part / CHECKPOINT_FILE).is_file()
        resume = args.resume and not metrics  # what depends on a part that was trained anew begins anew
        if resume and not interrupted and all((folder / name).is_file() for name in made):
            continue
        print(f"\n--- {stage} ---", flush=True)
        metrics[stage] = RECIPES[stage].main(own_arguments(RECIPES[stage], args, resume=resume and interrupted))
    return metrics


def own_arguments(recipe, args, *, resume):
    """The arguments of one recipe: what the command says, else the recipe's defaults."""
    given = {name: value for name, value in vars(args).items() if value is not None} | {"resume": resume}
    defaults = vars(recipe.parse_args([]))
    return argparse.Namespace(**{name: given.get(name, default) for name, default in defaults.items()})


if __name__ == "__main__":
    run_recipe(main, parse_args())
