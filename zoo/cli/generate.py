"""zoo generate: text that continues a prompt, or images of it; the model decides."""

import argparse
import re
import sys
import time
import warnings

from zoo.cli.common import (
    MODEL_HELP,
    add_lora_argument,
    at_least,
    image_size,
    log,
    lora_files,
    note_unlisted_files,
)
from zoo.errors import UserError, did_you_mean

HELP = "generate text or images from a prompt"
EPILOG = """examples:
  zoo generate lstm_shakespeare "ROMEO:" --max-new-tokens 200
  zoo generate lstm_shakespeare "ROMEO:" --top-tokens 5
  zoo generate diffusion_captions "a green three on white" --num-images 4
  zoo generate diffusion_captions "a red seven" --image in.png --strength 0.6"""

# `zoo.generation.diffusion.noise_sampler.SAMPLERS`, which loads Keras; a test compares them.
SAMPLERS = ("ddpm", "ddim", "plms", "euler", "euler_ancestral", "heun", "dpmpp_2m", "lcm")
_BAR = 30  # characters of the progress bar
_TEXT_FLAGS = ("max_new_tokens", "temperature", "top_k", "top_p", "greedy", "top_tokens")
_IMAGE_FLAGS = (
    *("negative_prompt", "num_steps", "guidance_scale", "sampler", "eta", "num_images", "size", "image", "strength"),
    *("mask_image", "save_strip", "save_gif", "output"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    add("prompt", help="text to continue, or what the image shows")
    add("--seed", type=at_least(0), default=0, metavar="N", help="seed of the random numbers; default 0")
    add_lora_argument(parser)

    add = parser.add_argument_group("text generation").add_argument
    add("--max-new-tokens", type=at_least(1), metavar="N", help="tokens to generate; default the preset's, or 400")
    add(
        "--temperature", type=float, metavar="X", help="sampling temperature, 0 is greedy; default the preset's, or 0.8"
    )
    add(
        "--top-k",
        type=at_least(1),
        metavar="N",
        help="sample from the N most probable tokens; default the preset's, or all",
    )
    add(
        "--top-p",
        type=float,
        metavar="X",
        help="sample from the fewest tokens of this total probability; default 1, all",
    )
    add("--greedy", action="store_true", default=None, help="take the most probable token at each step")
    add(
        "--top-tokens",
        type=at_least(1),
        metavar="N",
        help="generate nothing, show the N most probable next tokens; default: generate",
    )

    add = parser.add_argument_group("image generation").add_argument
    add("--negative-prompt", metavar="TEXT", help="what the image should not show; default nothing")
    add("--num-steps", type=at_least(1), metavar="N", help="denoising steps; default the preset's, or 50")
    add(
        "--guidance-scale",
        type=float,
        metavar="X",
        help="scale of classifier-free guidance; default the preset's, or 7.5",
    )
    add("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)}; default the preset's")
    add("--eta", type=float, metavar="X", help="η of ddim: share of fresh noise at each step, from 0 to 1; default 0")
    add("--num-images", type=at_least(1), metavar="N", help="number of images, of seeds that follow --seed; default 1")
    add(
        "--size",
        type=image_size,
        metavar="WxH",
        help="width and height in pixels; default the preset's, or that of --image",
    )
    add("--image", metavar="FILE", help="initial image, for image-to-image generation")
    add("--strength", type=float, metavar="X", help="image-to-image strength, in (0, 1]; default 0.8, with a mask 1")
    add("--mask-image", metavar="FILE", help="of the size of --image, white where it is repainted")
    add("--save-strip", metavar="FILE", help="write a row of intermediate images (small images: always)")
    add("--save-gif", metavar="FILE", help="write an animation of intermediate images")
    add(
        "--output",
        metavar="FILE",
        help="the PNG file to write; default named after the prompt; with --num-images the seed is added to its name",
    )


def run(args: argparse.Namespace) -> None:
    from zoo import backends
    from zoo.presets import find_preset

    if args.sampler is not None and args.sampler not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        hint = did_you_mean(args.sampler, SAMPLERS)
        raise UserError(f"There is no sampler {args.sampler!r}: choose one of {known}.{hint}")
    for flag, value in (("mask-image", args.mask_image), ("strength", args.strength)):
        if value is not None and args.image is None:
            raise UserError(f"--{flag} is for image-to-image generation: give the initial image with --image.")
    preset = find_preset(args.model)
    is_diffusion = (preset.folder / "pipeline.json").is_file() and not preset.model_path.is_file()
    task = preset.task or ("text-to-image" if is_diffusion else "text-generation")
    if task == "text-to-image":
        _refuse(args, _TEXT_FLAGS, f"{preset.name} generates images")
        backends.import_keras(preferred="torch")  # which starts and samples soonest
        _generate_images(args, preset)
        return
    _refuse(args, _IMAGE_FLAGS, f"{preset.name} generates text")
    if preset.model_path.is_file():
        backends.import_keras()
    _generate_text(args, preset)


def _refuse(args, names, why):
    for name in names:
        if getattr(args, name) is not None:
            raise UserError(f"{why}, for which --{name.replace('_', '-')} has no meaning: leave it out.")


def _generate_text(args, preset):
    from zoo.tasks.causal_lm import CausalLM

    model = CausalLM.from_preset(preset, lora=lora_files(args))
    note_unlisted_files(preset)
    if args.top_tokens is not None:
        for token, probability in model.top_next_tokens(args.prompt, count=args.top_tokens):
            print(f"{probability:6.1%}  {token!r}")
        return
    settings = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "greedy": bool(args.greedy)}
    settings |= {"top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    before = args.prompt  # printed with the first piece: until then the prompt may be refused
    for piece in model.stream(args.prompt, **settings):
        print(before + piece, end="", flush=True)
        before = ""
    print()


def _generate_images(args, preset):
    from zoo.tasks.text_to_image import TextToImage

    names = (
        "negative_prompt",
        "num_steps",
        "guidance_scale",
        "sampler",
        "eta",
        "seed",
        "image",
        "mask_image",
        "strength",
    )
    settings = {name: getattr(args, name) for name in (*names, "save_strip", "save_gif")}
    settings["width"], settings["height"] = args.size or (None, None)
    model = TextToImage.from_preset(preset, lora=lora_files(args))
    note_unlisted_files(preset)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *rest: print(f"note: {message}", file=sys.stderr)
        model.save_images(
            args.output or _file_name(args.prompt),
            args.prompt,
            num_images_per_prompt=args.num_images or 1,
            on_step=_Progress(),
            log=log,
            **settings,
        )


def _file_name(prompt):
    """A file name made of a prompt."""
    return f"{'-'.join(re.findall('[a-z0-9]+', prompt.lower()))[:40].strip('-') or 'image'}.png"


class _Progress:
    """Shows the progress of the steps, in a terminal."""

    def __init__(self):
        self.start = time.perf_counter()

    def __call__(self, step):
        if not sys.stderr.isatty():
            return
        filled = _BAR * step.step // step.num_evaluations
        rate = (time.perf_counter() - self.start) / step.step
        bar = "█" * filled + "░" * (_BAR - filled)
        left = rate * (step.num_evaluations - step.step)
        line = f"\r{bar} {step.step}/{step.num_evaluations}  {rate:.2f} s/step, {left:.0f} s left "
        print(line, end="\n" if step.step == step.num_evaluations else "", file=sys.stderr, flush=True)
