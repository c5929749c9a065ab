"""Images per second when training the denoiser of the captioned images, beside diffusers' U-Net in plain PyTorch.

    python benchmarks/denoiser_training.py --rounds 3 --record

The "tiny" denoiser on latents of 12x12x4 and contexts of 16x128, batches of 64, mean squared error, Adam, float32.
"zoo" is what the recipe does, without the moving average of the weights. diffusers' `UNet2DConditionModel` is of the
same configuration and trained by an eager loop. Every measurement is a process of its own, contenders take turns, and
the first steps (compilation) are not counted.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import rows
from benchmarks.side_by_side import ratios, run_interleaved

CONTENDERS = ("diffusers", *(f"zoo {backend}" for backend in ("tensorflow", "jax", "torch")))
BATCH_SIZE, WARMUP_STEPS = 64, 3


def example_batch():
    """((latents, timesteps, contexts), noise)."""
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, BATCH_SIZE, 12, 12, 4), dtype="float32")
    context = rng.standard_normal((BATCH_SIZE, 16, 128), dtype="float32")
    return (latents, rng.integers(0, 1000, BATCH_SIZE).astype("float32"), context), noise


def timed(step, steps):
    """Median seconds of `step()` after the first few calls."""
    seconds = []
    for _ in range(WARMUP_STEPS + steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMUP_STEPS:])


def measure_diffusers(steps):
    import torch

    from benchmarks.diffusers_models import conditional_unet
    from zoo.models import variants

    model = conditional_unet(**variants.DENOISER["tiny"]).train()
    optimizer = torch.optim.Adam(model.parameters())
    (latents, timestep, context), noise = example_batch()
    latents, noise = (torch.tensor(x).permute(0, 3, 1, 2).contiguous() for x in (latents, noise))
    timestep, context = torch.tensor(timestep), torch.tensor(context)

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(latents, timestep, context).sample, noise)
        loss.backward()
        optimizer.step()
        loss.item()

    return timed(step, steps)


def measure_zoo(steps):
    from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
    from zoo.fast_paths.memory import keep_freed_memory
    from zoo.models import variants
    from zoo.models.stable_diffusion.denoiser import denoiser
    from zoo.training.optimizers import TorchAdam

    set_compiler_flags()
    keep_freed_memory()
    model = denoiser(**variants.DENOISER["tiny"])
    model.compile(optimizer=TorchAdam(1e-3), loss="mse")
    use_fast_paths(model)
    x, y = example_batch()
    return timed(lambda: model.train_on_batch(x, y), steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", help="measure this contender here and print seconds as JSON")
    rows.add_record_flag(parser)
    args = parser.parse_args()
    if args.only:
        return print(json.dumps((measure_zoo if args.only.startswith("zoo") else measure_diffusers)(args.steps)))
    times = run_interleaved(__file__, CONTENDERS, rounds=args.rounds, arguments=["--steps", args.steps])
    print(f"\n{os.cpu_count()} cores\n\n| contender | ms/step | images/s | diffusers = 1 (rounds) |")
    print("| --- | ---: | ---: | --- |")
    for name, ratio in ratios(times, "diffusers").items():
        median = statistics.median(times[name])
        print(f"| {name} | {1000 * median:.0f} | {BATCH_SIZE / median:.0f} | {ratio} |")
    workload = f"the tiny denoiser, 12x12x4 latents, batches of {BATCH_SIZE}, Adam, float32"
    rows.record(args, "denoiser_training", times, workload=workload, unit="s/step")


if __name__ == "__main__":
    main()
