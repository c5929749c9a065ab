"""Training speed of the 48x48 CNN in images per second, on each backend and in plain eager PyTorch.

    python benchmarks/cnn_training.py --rounds 3 --compiled --record

Every measurement is a process of its own, and contenders are interleaved, so that a machine that slows down slows all
of them. All train the same architecture (dropout included) on the same float32 batches of 64 with Adam and weight
decay; the first steps (compilation, caches) are not counted. "zoo" is what the recipes do; "stock" is plain Keras:
`keras.optimizers.Adam` and no fast paths. With --compiled, plain PyTorch also runs with its forward pass and loss
through `torch.compile`.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import rows
from benchmarks.side_by_side import ratios, run_interleaved

BATCH, WARMUP_STEPS = 64, 8
CONTENDERS = (
    "pytorch",
    *(f"{kind} {backend}" for kind in ("stock", "zoo") for backend in ("tensorflow", "jax", "torch")),
)

# Multiply-accumulates of one image's forward pass: convolutions, then dense layers.
FORWARD_MACS = 48 * 48 * 9 * (3 * 32 + 32 * 64) + 24 * 24 * 9 * 64 * 128 + 18432 * 512 + 512 * 10
# Two operations a multiply-accumulate; the backward pass repeats it for the weights and for the inputs of each layer,
# except for the inputs of the first.
STEP_GFLOP = 2 * BATCH * (3 * FORWARD_MACS - 48 * 48 * 9 * 3 * 32) / 1e9


def random_examples(count):
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 48, 48, 3)).astype("float32"), rng.integers(0, 10, count)


def pytorch_model():
    """The CNN in `torch.nn`, from images (B, 3, 48, 48) to logits (B, 10)."""
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(18432, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10)),
    )


def measure_pytorch(steps, compiled=False):
    """Plain PyTorch: a loop over `torch.nn` layers, eager or with the loss as a compiled function."""
    import torch

    torch.manual_seed(0)
    model = pytorch_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    x, y = random_examples(BATCH * 4)
    x, y = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y)

    def loss_of(images, labels):
        return torch.nn.functional.cross_entropy(model(images), labels)

    if compiled:
        loss_of = torch.compile(loss_of)
    for step in range(WARMUP_STEPS + steps):
        if step == WARMUP_STEPS:
            start_time = time.perf_counter()
        batch = slice(step % 4 * BATCH, (step % 4 + 1) * BATCH)
        optimizer.zero_grad()
        loss = loss_of(x[batch], y[batch])
        loss.backward()
        optimizer.step()
        loss.item()
    return (time.perf_counter() - start_time) / steps


def measure_keras(kind, steps):
    """`model.fit` on the backend that KERAS_BACKEND names."""
    import keras

    from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
    from zoo.fast_paths.memory import keep_freed_memory
    from zoo.models.cnn import cnn
    from zoo.training.optimizers import TorchAdam

    class StepTimer(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # wait for the step to end
            if batch == WARMUP_STEPS - 1:
                self.start_time = time.perf_counter()
            self.end_time = time.perf_counter()

    if kind == "zoo":
        set_compiler_flags()
        keep_freed_memory()
    model = cnn(num_classes=10)
    optimizer = TorchAdam(1e-3, weight_decay=1e-4) if kind == "zoo" else keras.optimizers.Adam(1e-3, weight_decay=1e-4)
    model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if kind == "zoo":
        use_fast_paths(model)
    x, y = random_examples(BATCH * 4)
    indices = np.arange(BATCH * (WARMUP_STEPS + steps)) % len(x)
    timer = StepTimer()
    model.fit(x[indices], y[indices], batch_size=BATCH, epochs=1, shuffle=False, verbose=0, callbacks=[timer])
    return (timer.end_time - timer.start_time) / steps


def matmul_rate(size=3072, repeats=4):
    """The machine's float32 rate in GFLOP/s: the best of a few large matrix products in NumPy."""
    a = np.random.default_rng(0).standard_normal((size, size)).astype("float32")
    seconds = []
    for _ in range(repeats + 1):
        start_time = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start_time)
    return 2 * size**3 / min(seconds[1:]) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed steps in each process")
    parser.add_argument("--compiled", action="store_true", help="plain PyTorch through torch.compile too")
    parser.add_argument("--no-stock", action="store_true", help="leave Keras as it comes out")
    parser.add_argument("--only", help="measure this contender here and print seconds a step as JSON")
    rows.add_record_flag(parser)
    args = parser.parse_args()
    if args.only:
        kind = args.only.split()[0]
        if kind.startswith("pytorch"):
            seconds = measure_pytorch(args.steps, compiled=kind != "pytorch")
        else:
            seconds = measure_keras(kind, args.steps)
        return print(json.dumps(seconds))

    rates = []
    contenders = [name for name in CONTENDERS if not (args.no_stock and name.startswith("stock"))]
    times = run_interleaved(
        __file__,
        contenders[:1] + ["pytorch-compiled"] * args.compiled + contenders[1:],
        rounds=args.rounds,
        arguments=["--steps", args.steps],
        before_round=lambda: rates.append(matmul_rate()),
    )
    rate = max(rates)
    floor = STEP_GFLOP / rate
    print(f"\n{os.cpu_count()} cores, {platform.machine()}; large float32 matrix product {rate:.0f} GFLOP/s;")
    print(f"{STEP_GFLOP:.1f} GFLOP a step, so {floor:.3f} s at that rate\n")
    print("| contender | s/step (median) | images/s | PyTorch eager = 1 (rounds) | times the arithmetic floor |")
    print("| --- | --- | --- | --- | --- |")
    for name, ratio in ratios(times, "pytorch").items():
        median = statistics.median(times[name])
        print(f"| {name} | {median:.3f} | {BATCH / median:.0f} | {ratio} | {median / floor:.2f} |")
    workload = f"48x48 CNN, batches of {BATCH}, Adam with weight decay, float32, mean of {args.steps} steps"
    rows.record(args, "cnn_training", times, workload=workload, unit="s/step")


if __name__ == "__main__":
    main()
