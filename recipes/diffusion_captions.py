"""Train a latent diffusion from scratch, part by part, to generate digits and clothes from a caption, and score it.

    KERAS_BACKEND=tensorflow python recipes/diffusion_captions.py \\
        --data-dir FOLDER

With --train-dir FOLDER it learns from captioned pictures of your own: a metadata.csv or metadata.jsonl with the columns
file_name and text, or a .txt file beside each picture. With --init-from and --lora-rank it trains an adapter of the
denoiser alone.

It runs the recipes diffusion_classifier (without --train-dir), diffusion_autoencoder, diffusion_text_encoder,
diffusion_denoiser and diffusion_evaluation in turn, three hours of training and an evaluation; with --resume finished
parts are kept and an interrupted one continues. Where MNIST and Fashion-MNIST are not at hand, scikit-learn's 1,797
digits: about five minutes on 2 CPU cores.
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
from zoo.errors import UserError
from zoo.training import diffusion, flags
from zoo.training.run import CHECKPOINT_FILE, check_no_run, print_command

RECIPES = {
    "classifier": diffusion_classifier,
    "autoencoder": diffusion_autoencoder,
    "text-encoder": diffusion_text_encoder,
    "denoiser": diffusion_denoiser,
    "evaluation": diffusion_evaluation,
}


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    parser.add_argument(
        "--stage", choices=(*RECIPES, "all"), default="all", help="run one of the recipes (default: %(default)s)"
    )
    flags.add(parser, *diffusion.DATA_FLAGS)
    flags.add(parser, "init_from", "new_head", *flags.LORA_FLAGS, *diffusion.RUN_FLAGS, "evaluate")
    # What the command does not say is up to each recipe.
    names = ("epochs", "batch_size", "learning_rate", "kl_weight", "perceptual_weight", "conditioning_dropout_prob")
    names = (*names, "ema_decay", "num_eval_prompts", "guidance_scale", "num_steps")
    flags.add(parser, no_default="the recipe's own", **dict.fromkeys(names))
    return parser.parse_args(argv)


def main(args):
    """Run the recipes; returns {stage: metrics}."""
    flags.check(args)
    stages = chosen_stages(args)
    folder, metrics = diffusion.run_folder(args), {}
    if not args.resume and not args.overwrite:
        for stage in stages:
            if stage != "evaluation":
                check_no_run(folder / stage.replace("-", "_"))
    if args.lora_rank and not (args.resume and (folder / "encoder.keras").is_file()):
        diffusion.copy_base(args.init_from, folder)
    for stage in stages:
        part = stage.replace("-", "_")
        made = diffusion.PARTS[part]["files"] if part in diffusion.PARTS else ["evaluation/metrics.json"]
        interrupted = (folder / part / CHECKPOINT_FILE).is_file()
        resume = args.resume and not metrics  # what depends on a part that was trained anew begins anew
        if resume and not interrupted and all((folder / name).is_file() for name in made):
            continue
        print(f"\n--- {stage} ---", flush=True)
        metrics[stage] = RECIPES[stage].main(own_arguments(RECIPES[stage], args, resume=resume and interrupted))
    if not args.evaluate and (folder / "denoiser.keras").is_file():
        captions = metrics.get("evaluation", {}).get("captions", [] if args.train_dir else ["a red seven on white"])
        for caption in captions[:1]:
            print_command(["zoo", "generate", str(folder), caption])
    return metrics


def chosen_stages(args):
    """The recipes that the command asks for."""
    stages = list(RECIPES) if args.stage == "all" else [args.stage]
    if args.evaluate:
        stages = ["evaluation"]
    elif args.lora_rank:
        if args.stage not in ("all", "denoiser", "evaluation"):
            raise UserError(f"--lora-rank adapts the denoiser alone: leave --stage {args.stage} out.")
        stages = [stage for stage in stages if stage in ("denoiser", "evaluation")]
    elif args.train_dir:
        if args.stage == "classifier":
            raise UserError("Captioned pictures have no classes to learn: leave --stage classifier out.")
        stages = [stage for stage in stages if stage != "classifier"]
    return stages


def own_arguments(recipe, args, *, resume):
    """The arguments of one recipe: what the command says, else the recipe's defaults."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    given |= {"resume": resume, "overwrite": args.overwrite or args.resume}
    defaults = recipe.parse_args([])
    arguments = argparse.Namespace(**{name: given.get(name, default) for name, default in vars(defaults).items()})
    arguments.fallback = {name: value for name, value in defaults.fallback.items() if name not in given}
    return arguments


if __name__ == "__main__":
    run_recipe(main, parse_args())
