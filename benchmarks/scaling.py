"""Rows a second from 1 to N devices, how much of N times one device that is, and whether the gradients are the same.

    KERAS_BACKEND=jax python benchmarks/scaling.py --devices cpu:4         simulated devices, which share the cores
    KERAS_BACKEND=torch python benchmarks/scaling.py --devices 8           GPUs

Trains a model of the zoo on random batches, in float32, with 1, 2, 4, … devices; every number of devices in a process
of its own, the global batch the same (strong scaling). "efficiency" is rows a second over N times those of one device.
"gradients" is the largest difference of the summed gradients to those of one device, over the largest gradient: taken
from one step of plain gradient descent with rate 1, by which weights move by their gradients.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import keras
import numpy as np

from zoo.data import Batches
from zoo.distribution import strategy as distribution
from zoo.distribution.devices import parse_devices
from zoo.distribution.launch import run_recipe
from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
from zoo.io import files
from zoo.models import transformer as transformers
from zoo.models import variants
from zoo.models.cnn import cnn
from zoo.models.stable_diffusion import denoiser as denoisers
from zoo.training import flags
from zoo.training.diffusion import IndexedBatches
from zoo.training.initial_weights import set_initial_weights
from zoo.training.optimizers import TorchAdam

set_compiler_flags()
WARMUP_STEPS = 3


def make_cnn(rows, steps):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(rows * steps, 48, 48, 3)).astype("float32")
    model = cnn(num_classes=10, dropout=0.0)
    set_initial_weights(model, seed=0, initializer="he")
    return model, Batches(images, rng.integers(0, 10, len(images)), batch_size=rows), _cross_entropy()


def make_transformer(rows, steps):
    rng = np.random.default_rng(0)
    model = transformers.transformer(vocabulary_size=8000, **variants.TRANSFORMER["tiny"])
    set_initial_weights(model, seed=0, initializer="transformer")

    def make(indices, rng, key):
        source, target, wanted = rng.integers(1, 8000, (3, rows, 32)).astype("int32")
        return (source, target), wanted

    return model, IndexedBatches(rows * steps, rows, seed=int(rng.integers(100)), make_batch=make), _cross_entropy()


def make_denoiser(rows, steps):
    model = denoisers.denoiser(**variants.DENOISER["tiny"])
    set_initial_weights(model, seed=0, initializer="transformer")

    def make(indices, rng, key):
        latents, noise = rng.standard_normal((2, rows, 12, 12, 4), dtype="float32")
        timestep = rng.integers(0, 1000, rows).astype("float32")
        return (latents, timestep, rng.standard_normal((rows, 16, 128), dtype="float32")), noise

    return model, IndexedBatches(rows * steps, rows, seed=0, make_batch=make), keras.losses.MeanSquaredError()


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


MODELS = {"cnn": make_cnn, "transformer": make_transformer, "denoiser": make_denoiser}
LAYOUTS = {"transformer": transformers.TENSOR_PARALLEL_LAYOUT_MAP, "denoiser": denoisers.TENSOR_PARALLEL_LAYOUT_MAP}


class StepTimes(keras.callbacks.Callback):
    """Records when each step ended, `time.perf_counter()`."""

    def __init__(self):
        super().__init__()
        self.at = []

    def on_train_batch_end(self, batch, logs=None):
        self.at.append(time.perf_counter())


def measure(args):
    """One number of devices: seconds a step, and the gradient of the first batch."""
    with distribution.strategy(
        args.devices, parallel=args.parallel, layout_map=LAYOUTS.get(args.model), precision=args.precision
    ):
        model, batches, loss = MODELS[args.model](args.rows, 1)
        before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]
        _fit(model, batches, loss, keras.optimizers.SGD(1.0), [])
        after = [np.array(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]
        gradient = np.concatenate([(a - b).ravel() for a, b in zip(before, after)])
        model, batches, loss = MODELS[args.model](args.rows, WARMUP_STEPS + args.steps)
        times = StepTimes()
        _fit(model, batches, loss, TorchAdam(1e-3), [times])
    if not files.discarding():
        np.savez(args.measured, gradient=gradient, seconds=statistics.median(np.diff(times.at[WARMUP_STEPS - 1 :])))


def _fit(model, batches, loss, optimizer, callbacks):
    model.compile(optimizer=optimizer, loss=loss)
    use_fast_paths(model)
    model.fit(batches, shuffle=False, callbacks=callbacks, verbose=0)


def main(args):
    if args.measured:
        return measure(args)
    platform, count = parse_devices(args.devices)
    counts = sorted({1, *(2**k for k in range(20) if 2**k < (count or 1)), count or 1})
    print(f"{keras.backend.backend()}, {args.model}, {args.rows} rows a batch, {os.cpu_count()} cores\n")
    print("| devices | ms/step | rows/s | efficiency | gradients |\n| ---: | ---: | ---: | ---: | ---: |")
    one = None
    for number in counts:
        with tempfile.TemporaryDirectory() as folder:
            measured = pathlib.Path(folder) / "measured.npz"
            devices = f"cpu:{number}" if platform == "cpu" else str(number)
            options = ["--model", args.model, "--rows", str(args.rows), "--steps", str(args.steps)]
            options += ["--devices", devices, "--parallel", args.parallel, "--precision", args.precision]
            command = [sys.executable, __file__, *options, "--measured", str(measured)]
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode:
                raise SystemExit(f"{number} devices failed:\n{ended.stderr}")
            with np.load(measured) as stored:
                seconds, gradient = float(stored["seconds"]), stored["gradient"]
        one = one or (seconds, gradient)
        difference = np.abs(gradient - one[1]).max() / np.abs(one[1]).max()
        efficiency = one[0] / seconds / number
        print(
            f"| {number} | {1000 * seconds:.0f} | {args.rows / seconds:.0f} | {efficiency:.2f} | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="denoiser")
    parser.add_argument("--rows", type=int, default=64, help="of a global batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--measured", help="measure here, and write this file")
    flags.add(parser, "devices", "parallel", "precision")
    arguments = parser.parse_args()
    run_recipe(main, arguments) if arguments.measured else main(arguments)
