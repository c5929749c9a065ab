"""Copy a finished and scored latent diffusion into saved_models/, with a card for each part.

python recipes/publish_diffusion.py runs/diffusion_captions saved_models/diffusion_captions --data-licence "MNIST: …"

What `zoo draw` takes where the command says nothing, steps and guidance, is what the scores chose.
"""

import argparse
import json
import pathlib
import shlex
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

from zoo.errors import UserError, run_command
from zoo.io import cards, files, model_files

# Of each file of a model: the stage that makes it, what it takes and what it gives.
PARTS = {
    "judge": ("judge", "pictures (B, H, W, 3), 0 to 255", "logits (B, 20); softmax gives probabilities"),
    "encoder": ("autoencoder", "pictures (B, 48, 48, 3), -1 to 1", "[mean, log-variance] of latents (B, 12, 12, 4)"),
    "decoder": ("autoencoder", "latents (B, 12, 12, 4)", "pictures (B, 48, 48, 3), about -1 to 1"),
    "text_encoder": ("text-encoder", "ids (B, 16) int32, as tokenizer.json numbers them", "context (B, 16, 128)"),
    "denoiser": (
        "denoiser",
        "[latents (B, 12, 12, 4), timestep (B,), context (B, S, 128)]",
        "the noise in the latents",
    ),
}
LEFT_OUT = ("sha256", "first_losses", "wall_seconds", "command")  # of a stage's metrics
SCORES = (
    "backend",
    "prompts",
    "steps",
    "guidance",
    "seen",
    "never_seen",
    "real",
    "frechet",
    "frechet_floor",
    "ablation",
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder that recipes/diffusion_captions.py made, with its scores")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--data-licence", required=True, help="licence or terms of the training data")
    return parser.parse_args(argv)


def main(args):
    run, target = pathlib.Path(args.run), pathlib.Path(args.target)
    stages = {stage: read(run / stage.replace("-", "_") / "metrics.json") for stage, *_ in PARTS.values()}
    scores = read(run / "scores" / "metrics.json")
    for stage, metrics in stages.items():
        for name, digest in metrics["sha256"].items():
            if not (run / name).is_file() or files.sha256(run / name) != digest:
                raise UserError(f"{run / name} is not what the stage {stage} made: run the recipe again.")

    files.prepare_folder(target)
    (target / "pipeline.json").unlink(missing_ok=True)
    for name in (*(f"{part}.keras" for part in PARTS), "tokenizer.json"):
        with files.atomic_write(target / name) as temporary:
            shutil.copyfile(run / name, temporary)
    for part, (stage, takes, gives) in PARTS.items():
        path, metrics = target / f"{part}.keras", stages[stage]
        card = {"name": part, "file": path.name, "sha256": files.sha256(path), "bytes": path.stat().st_size}
        card |= {"input": takes, "output": gives, "command": repeatable(metrics["command"])}
        card |= {key: value for key, value in metrics.items() if key not in LEFT_OUT}
        # Of this part alone, where a stage made several. Read from the run: the card beside `path` may be an older one.
        card["parameters"] = model_files.load_model(run / path.name).count_params()
        if part == "denoiser":
            card["scores"] = {key: scores[key] for key in SCORES}
        files.write_json(path.with_suffix(".json"), card | {"data_licence": args.data_licence})
    settings = read(run / "pipeline.json") | {"steps": scores["steps"], "guidance": scores["guidance"]}
    files.write_json(target / "pipeline.json", settings)  # last: where it is, all is there
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {len(PARTS)} models with their cards, {size / 1e6:.1f} MB in all.")
    print(f'Draw with it: zoo draw {shlex.quote(str(target))} "a green three on white"')


def repeatable(command):
    """The command that repeats a run, in the folder of the recipe's choice."""
    words = shlex.split(command)
    while "--output" in words:
        place = words.index("--output")
        del words[place : place + 2]
    return cards.without_resume_flag(shlex.join(words))


def read(path):
    """A JSON file of a run.

    Raises:
        UserError: if it is missing.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}: finish and score the run with recipes/diffusion_captions.py first.")
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_command(main, parse_args())
