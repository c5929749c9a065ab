"""Seconds and memory that a picture takes, beside the StableDiffusionPipeline of diffusers.

    python benchmarks/drawing.py --size tiny --rounds 3          # 48x48, 20 steps, 1 and 8 pictures
    python benchmarks/drawing.py --size sd15 --rounds 2          # 512x512, 2 steps, Stable Diffusion 1.5 itself, 24 GB

A folder in the layout of diffusers is made once, with random weights (float32), and converted with
`zoo convert stable-diffusion`; both stay in --folder. Both sides then draw from the same folder with DDIM and guidance
7.5, so that the denoiser works on two latents a picture. Every measurement is a process of its own and contenders take
turns. "load" is from the files to models in memory, "first" the first picture, compilation included, "next" one more;
"peak" is the largest resident memory of the process.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.side_by_side import ratios, run_interleaved
from zoo.models.stable_diffusion import autoencoder, denoiser, text_encoder

CONTENDERS = ("diffusers", "zoo tensorflow", "zoo jax", "zoo torch")
PROMPT = "a red fox in the snow"
# Steps, how many pictures at once, and how often after the first time.
SIZES = {"tiny": {"steps": 20, "counts": (1, 8), "repeats": 3}, "sd15": {"steps": 2, "counts": (1,), "repeats": 1}}
IMAGE_SIZE = {"tiny": 48, "sd15": 512}


def make_folder(folder, size):
    """A pipeline of diffusers with random weights, saved."""
    import diffusers
    import torch

    from tests.stable_diffusion_peers import their_text_encoder, their_unet, their_vae

    torch.manual_seed(0)
    reads, draws, codes = (part.VARIANTS[size] for part in (text_encoder, denoiser, autoencoder))
    reads = {"vocabulary_size": 512} | reads
    pipeline = diffusers.StableDiffusionPipeline(
        tokenizer=tokenizer(reads["vocabulary_size"], reads["max_length"]),
        text_encoder=their_text_encoder(**reads),
        vae=their_vae(**codes, sample_size=IMAGE_SIZE[size]),
        unet=their_unet(**draws, sample_size=IMAGE_SIZE[size] >> len(codes["widths"]) - 1),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def tokenizer(entries, length):
    """CLIP's, with letters and made-up words for as many entries as the model has."""
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"<unused{place}>" for place in range(entries - len(tokens) - 2)] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = pathlib.Path(folder, "vocab.json"), pathlib.Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
        merges.write_text("#version: 0.2\n")
        return transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=length)


def diffusers_drawing(folder, size):
    import diffusers

    diffusers.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder / "diffusers")
    pipeline.set_progress_bar_config(disable=True)
    steps = SIZES[size]["steps"]
    return lambda count: pipeline(PROMPT, num_inference_steps=steps, guidance_scale=7.5, num_images_per_prompt=count)


def zoo_drawing(folder, size):
    from zoo.tasks.text_to_image import load_painter

    painter = load_painter(folder / "zoo", encoder=False)

    def draw(count):
        *_, last = painter.draw(PROMPT, steps=SIZES[size]["steps"], guidance=7.5, count=count, sampler="ddim")
        return painter.pictures(last.latents)

    return draw


def measure(contender, folder, size, count):
    """{"load", "first", "next": seconds, "peak": GB}."""
    if contender.startswith("zoo"):
        from zoo.fast_paths.layers import set_compiler_flags

        set_compiler_flags()
        load = zoo_drawing
    else:
        load = diffusers_drawing
    seconds = []
    began = time.perf_counter()
    draw = load(folder, size)
    loaded = time.perf_counter() - began
    for _ in range(1 + SIZES[size]["repeats"]):
        began = time.perf_counter()
        draw(count)
        seconds.append(time.perf_counter() - began)
    status = pathlib.Path("/proc/self/status").read_text()  # getrusage would count what the parent took, too
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1e6
    return {"load": loaded, "first": seconds[0], "next": statistics.median(seconds[1:]), "peak": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir(), "zoo-drawing"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--count", type=int, default=1, help="pictures at once, with --only")
    parser.add_argument("--only", help="measure this contender here and print the figures as JSON")
    args = parser.parse_args()
    folder = args.folder / args.size
    if args.only:
        with contextlib.redirect_stdout(sys.stderr):
            measured = measure(args.only, folder, args.size, args.count)
        return print(json.dumps(measured))

    if not (folder / "zoo" / "pipeline.json").is_file():
        make_folder(folder / "diffusers", args.size)
        command = [sys.executable, "-m", "zoo", "convert", "stable-diffusion", folder / "diffusers", folder / "zoo"]
        subprocess.run(command, check=True, env=os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)})
    steps = SIZES[args.size]["steps"]
    lines = [
        "| count | contender | load s | first s | next s | ms a step | GB | speed, diffusers = 1 (rounds) | memory |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for count in SIZES[args.size]["counts"]:
        arguments = ["--size", args.size, "--folder", args.folder, "--count", count]
        found = run_interleaved(__file__, args.contenders, rounds=args.rounds, arguments=arguments)
        faster = ratios({name: [one["next"] for one in rounds] for name, rounds in found.items()}, args.contenders[0])
        middle = {
            name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            for name, rounds in found.items()
        }
        for name, one in middle.items():
            memory = one["peak"] / middle[args.contenders[0]]["peak"]
            lines.append(
                f"| {count} | {name} | {one['load']:.1f} | {one['first']:.2f} | {one['next']:.2f} "
                f"| {1000 * one['next'] / steps:.0f} | {one['peak']:.2f} | {faster[name]} | {memory:.2f} |"
            )
    print(f"\n{os.cpu_count()} cores\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
