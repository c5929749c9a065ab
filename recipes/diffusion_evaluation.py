"""Score a latent diffusion: prompt accuracy, Fréchet distance, samplers and steps, ablation; choose the guidance scale.

    KERAS_BACKEND=torch python recipes/diffusion_evaluation.py \\
        --data-dir FOLDER --evaluate diffusion_captions

With --guidance-scale the report is short: accuracy and distance. Without --evaluate it scores what the recipes trained,
and the settings that it chose are written to generation_config.json. The short report takes minutes on 2 CPU cores, the
long one an hour.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

from zoo.distribution.strategy import on_main_process
from zoo.errors import run_command
from zoo.evaluation.diffusion import NUM_STEPS, evaluate
from zoo.io import cards, files
from zoo.training import diffusion, flags

SCORES = ("backend", "num_prompts", "num_steps", "guidance_scale", "seen", "held_out", "real", "frechet")
SCORES = (*SCORES, "frechet_floor", "ablation")  # of the card; the tables are in metrics.json


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, "data_dir", "seed", "limit", "num_eval_prompts", "guidance_scale", "output", "evaluate")
    flags.add(parser, num_steps=NUM_STEPS)
    flags.add_fallback(parser, "digits", num_eval_prompts=200, guidance_scale=2.0)
    return parser.parse_args(argv)


@on_main_process
def main(args):
    flags.check(args)
    parts = [name for part in diffusion.PARTS.values() for name in part["files"]]
    folder = diffusion.run_folder(args, *([] if args.evaluate else parts))
    if args.evaluate:  # the long report
        args.fallback.pop("guidance_scale", None)
    dataset = diffusion.load_dataset(args)
    metrics = evaluate(
        args.evaluate or folder,
        dataset,
        folder / "evaluation",
        num_prompts=args.num_eval_prompts,
        num_steps=args.num_steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
    )
    if not args.evaluate:
        config = {key: metrics[key] for key in ("num_steps", "guidance_scale")}
        files.write_json(folder / cards.GENERATION_CONFIG_FILE, config)
        card = cards.read_card(folder) | {"scores": {key: metrics[key] for key in SCORES if key in metrics}}
        cards.write_card(folder, card, sorted(card["files"]))
    return metrics


if __name__ == "__main__":
    run_command(main, parse_args())
