"""Score a latent diffusion: prompt accuracy, Fréchet distance, samplers and steps, ablation; choose the guidance scale.

    KERAS_BACKEND=torch python recipes/diffusion_evaluation.py \\
        --data-dir FOLDER --evaluate diffusion_captions

With --train-dir, for pictures of your own: how often the right caption ranks first among a hundred, of held-back
pictures and of the images that their captions give. Else, with --guidance-scale the report is short: accuracy and
distance. Without --evaluate it scores what the recipes trained, and the settings that it chose are written to
generation_config.json. The short report takes minutes on 2 CPU cores, the long one an hour.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

from zoo.distribution.strategy import on_main_process
from zoo.errors import run_command
from zoo.evaluation.captioned_folder import evaluate_pictures
from zoo.evaluation.diffusion import NUM_STEPS, evaluate
from zoo.io import cards, files
from zoo.presets import find_preset
from zoo.training import diffusion, flags

# Of the card; the tables are in metrics.json.
SCORES = (
    *("backend", "num_prompts", "num_steps", "guidance_scale", "seen", "held_out", "real", "frechet"),
    *("frechet_floor", "ablation", "generated", "candidates", "reconstruction_error"),
)


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, "data_dir", "seed", "limit", "num_eval_prompts", "guidance_scale", "output", "evaluate")
    flags.add(parser, *diffusion.DATA_FLAGS, num_steps=NUM_STEPS)
    flags.add_fallback(parser, "digits", num_eval_prompts=200, guidance_scale=2.0)
    return parser.parse_args(argv)


@on_main_process
def main(args):
    flags.check(args)
    needed = [part for part in diffusion.PARTS if part != "classifier" or not args.train_dir]
    parts = [name for part in needed for name in diffusion.PARTS[part]["files"]]
    folder = diffusion.run_folder(args, *([] if args.evaluate else parts))
    if args.evaluate:  # the long report
        args.fallback.pop("guidance_scale", None)
    dataset = diffusion.load_dataset(args)
    preset = args.evaluate or folder
    options = {"num_prompts": args.num_eval_prompts, "num_steps": args.num_steps, "seed": args.seed}
    options["guidance_scale"] = args.guidance_scale
    if args.train_dir:
        clip_file = find_preset(preset).folder / "text_encoder" / diffusion.CLIP_FILE
        metrics = evaluate_pictures(preset, dataset, folder / "evaluation", clip_file=clip_file, **options)
    else:
        metrics = evaluate(preset, dataset, folder / "evaluation", **options)
    if not args.evaluate:
        config = {key: metrics[key] for key in ("num_steps", "guidance_scale")}
        files.write_json(folder / cards.GENERATION_CONFIG_FILE, config)
        card = cards.read_card(folder) | {"scores": {key: metrics[key] for key in SCORES if key in metrics}}
        cards.write_card(folder, card, sorted(card["files"]))
    return metrics


if __name__ == "__main__":
    run_command(main, parse_args())
