"""Seconds and memory of text-to-image generation, beside the StableDiffusionPipeline of diffusers.

    python benchmarks/text_to_image.py --size tiny --rounds 3     # 48x48, 20 steps, 1 and 8 images
    python benchmarks/text_to_image.py --size sd15 --rounds 2     # 512x512, 2 steps, Stable Diffusion 1.5's size, 24 GB

A folder in the layout of diffusers is made once, with random weights (float32), and converted with
`zoo convert stable-diffusion`; both stay in --folder. Both sides then generate from the same folder with DDIM and
guidance scale 7.5, so that the denoiser works on two latents per image. Every measurement is a process of its own and
contenders take turns. "load" is from the files to models in memory, "first" the first call, compilation included,
"next" one more; "peak" is the largest resident memory of the process.
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

from benchmarks import rows
from benchmarks.diffusers_models import autoencoder_kl, clip_text_encoder, conditional_unet
from benchmarks.side_by_side import ratios, run_interleaved
from zoo.models import variants

CONTENDERS = ("diffusers", "zoo tensorflow", "zoo jax", "zoo torch")
PROMPT = "a red fox in the snow"
# Sampling steps, numbers of images at once, and calls after the first.
SIZES = {
    "tiny": {"num_steps": 20, "batch_sizes": (1, 8), "repeats": 3},
    "sd15": {"num_steps": 2, "batch_sizes": (1,), "repeats": 1},
}
IMAGE_SIZE = {"tiny": 48, "sd15": 512}


def make_folder(folder, size):
    """Save a pipeline of diffusers with random weights."""
    import diffusers
    import torch

    torch.manual_seed(0)
    text_config = {"vocabulary_size": 512} | variants.TEXT_ENCODER[size]
    vae_config, unet_config = variants.AUTOENCODER[size], variants.DENOISER[size]
    latent_size = IMAGE_SIZE[size] >> len(vae_config["block_out_channels"]) - 1
    pipeline = diffusers.StableDiffusionPipeline(
        tokenizer=clip_tokenizer(text_config["vocabulary_size"], text_config["max_length"]),
        text_encoder=clip_text_encoder(**text_config),
        vae=autoencoder_kl(**vae_config, sample_size=IMAGE_SIZE[size]),
        unet=conditional_unet(**unet_config, sample_size=latent_size),
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


def clip_tokenizer(vocabulary_size, max_length):
    """CLIP's tokenizer with a vocabulary of letters and unused words."""
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"<unused{index}>" for index in range(vocabulary_size - len(tokens) - 2)] + [
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = pathlib.Path(folder, "vocab.json"), pathlib.Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        merges.write_text("#version: 0.2\n")
        return transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=max_length)


def load_diffusers(folder, size):
    """A function of the number of images that generates them with diffusers."""
    import diffusers

    diffusers.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder / "diffusers")
    pipeline.set_progress_bar_config(disable=True)
    num_steps = SIZES[size]["num_steps"]
    return lambda count: pipeline(
        PROMPT, num_inference_steps=num_steps, guidance_scale=7.5, num_images_per_prompt=count
    )


def load_zoo(folder, size):
    """A function of the number of images that generates them with the zoo."""
    from zoo.tasks.text_to_image import TextToImage

    task, options = TextToImage.from_preset(folder / "zoo"), {"guidance_scale": 7.5, "sampler": "ddim"}
    num_steps = SIZES[size]["num_steps"]
    return lambda count: task.generate(PROMPT, num_steps=num_steps, num_images_per_prompt=count, **options)


def measure(contender, folder, size, batch_size):
    """{"load", "first", "next": seconds, "peak": GB}."""
    if contender.startswith("zoo"):
        from zoo.fast_paths.layers import set_compiler_flags

        set_compiler_flags()
        load = load_zoo
    else:
        load = load_diffusers
    seconds = []
    start = time.perf_counter()
    generate = load(folder, size)
    load_seconds = time.perf_counter() - start
    for _ in range(1 + SIZES[size]["repeats"]):
        start = time.perf_counter()
        generate(batch_size)
        seconds.append(time.perf_counter() - start)
    status = pathlib.Path("/proc/self/status").read_text()  # getrusage would count that of the parent too
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1e6
    return {"load": load_seconds, "first": seconds[0], "next": statistics.median(seconds[1:]), "peak": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir(), "zoo-text-to-image"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--batch-size", type=int, default=1, help="images at once, with --only")
    parser.add_argument("--only", help="measure this contender here and print the figures as JSON")
    rows.add_record_flag(parser)
    args = parser.parse_args()
    folder = args.folder / args.size
    if args.only:
        with contextlib.redirect_stdout(sys.stderr):
            figures = measure(args.only, folder, args.size, args.batch_size)
        return print(json.dumps(figures))

    if not (folder / "zoo" / "pipeline.json").is_file():
        make_folder(folder / "diffusers", args.size)
        command = [sys.executable, "-m", "zoo", "convert", "stable-diffusion", folder / "diffusers", folder / "zoo"]
        subprocess.run(command, check=True, env=os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)})
    num_steps = SIZES[args.size]["num_steps"]
    lines = [
        "| images | contender | load s | first s | next s | ms a step | GB | speed, diffusers = 1 (rounds) | memory |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for batch_size in SIZES[args.size]["batch_sizes"]:
        arguments = ["--size", args.size, "--folder", args.folder, "--batch-size", batch_size]
        results = run_interleaved(__file__, args.contenders, rounds=args.rounds, arguments=arguments)
        workload = f"{IMAGE_SIZE[args.size]} pixels, {num_steps} steps, {batch_size} images at once, float32"
        row = f"text_to_image_{args.size}_{batch_size}"
        rows.record(args, row, results, workload=workload, unit="s; peak: GB (1e9 bytes)")
        speed = ratios({name: [one["next"] for one in rounds] for name, rounds in results.items()}, args.contenders[0])
        medians = {
            name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            for name, rounds in results.items()
        }
        for name, one in medians.items():
            memory = one["peak"] / medians[args.contenders[0]]["peak"]
            lines.append(
                f"| {batch_size} | {name} | {one['load']:.1f} | {one['first']:.2f} | {one['next']:.2f} "
                f"| {1000 * one['next'] / num_steps:.0f} | {one['peak']:.2f} | {speed[name]} | {memory:.2f} |"
            )
    print(f"\n{os.cpu_count()} cores\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
