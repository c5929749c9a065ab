"""Training on picture files that are decoded while the step runs: images per second, and peak memory by their number.

    python benchmarks/image_streaming.py --rounds 3

Speed: the 48x48 CNN on batches of 64 JPEG pictures, epochs of arrays in memory (`zoo.data.Batches`) and of files
(`zoo.data.PrefetchedBatches`) in turn in one process for each backend, the first of each not counted. On two processors
no more than 1 / (step time + decoding time / 2) is possible; decoding is timed in one thread. Memory: the peak of a
process that opens a folder of N or 4 N pictures with stream="always" and trains a small model for an epoch; beside it,
what stream="never" takes.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.side_by_side import run_interleaved

BATCH = 64
BACKENDS = ("tensorflow", "jax", "torch")


def write_pictures(folder, count, side):
    """JPEG pictures of smooth noise in two class folders."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        coarse = rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / "ab"[number % 2] / f"{number}.jpg", quality=90)


def measure_speed(folder, epochs):
    """Seconds an image of steps on arrays, of steps on files, and of decoding in one thread."""
    import keras

    from zoo import data
    from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
    from zoo.models.cnn import cnn
    from zoo.models.preprocessing import attach_preprocessing, preprocessing
    from zoo.training.optimizers import TorchAdam

    set_compiler_flags()
    files = data.ImageFiles(sorted(map(str, pathlib.Path(folder).rglob("*.jpg"))))
    files = files[: len(files) // BATCH * BATCH]
    y = np.arange(len(files)) % 2
    seconds = {"memory": [], "files": [], "decoding": []}
    began = time.perf_counter()
    x = files[np.arange(len(files))]
    seconds["decoding"].append(time.perf_counter() - began)
    pipeline = preprocessing("train", input_shape=(None, None, 3), per_image_standardization=True)
    model = attach_preprocessing(pipeline, cnn(num_classes=2), name="model")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=TorchAdam(1e-4), loss=loss)
    use_fast_paths(model)
    batches = {
        "memory": data.Batches(x, y, batch_size=BATCH),
        "files": data.PrefetchedBatches(files, y, batch_size=BATCH),
    }
    for epoch in range(epochs + 1):
        for kind, batch in batches.items():
            batch.set_epoch(epoch)
            began = time.perf_counter()
            model.fit(batch, epochs=1, shuffle=False, verbose=0)
            seconds[kind].append(time.perf_counter() - began)
        began = time.perf_counter()
        files[np.arange(len(files))]
        seconds["decoding"].append(time.perf_counter() - began)
    found = {kind: statistics.median(values[1:]) / len(files) for kind, values in seconds.items()}
    rates = [
        (m + d / 2) / f for m, f, d in zip(seconds["memory"][1:], seconds["files"][1:], seconds["decoding"][2:])
    ]  # of each epoch by itself: the machine may be shared
    return found | {"fraction": statistics.median(rates)}


def measure_memory(folder, stream):
    """Peak memory in MB of a process that trains on a folder."""
    import keras

    from zoo import data

    pictures = data.load_image_folder(folder, stream=stream)
    kind = data.PrefetchedBatches if pictures.is_streamed else data.Batches
    image = keras.Input((48, 48, 3))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(image)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = kind(pictures.x_train, pictures.y_train, batch_size=BATCH)
    model.fit(batches, epochs=1, shuffle=False, verbose=0)
    return {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of each kind in a process")
    parser.add_argument("--images", type=int, default=640, help="pictures of the speed measurement")
    parser.add_argument("--side", type=int, default=256, help="their height and width in pixels")
    parser.add_argument("--memory-images", type=int, default=10_000, help="N of the memory measurement; 0 to leave out")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--folder", help="of the pictures; made if None")
    parser.add_argument("--only", help="measure this contender here and print the result as JSON")
    args = parser.parse_args()
    if args.only:
        kind, *options = args.only.split()
        if kind == "speed":
            return print(json.dumps(measure_speed(args.folder, args.epochs)))
        return print(json.dumps(measure_memory(args.folder, options[0])))

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(args.folder or scratch)
        write_pictures(folder / "speed", args.images, args.side)
        times = run_interleaved(
            __file__,
            [f"speed {backend}" for backend in args.backends],
            rounds=args.rounds,
            arguments=["--folder", folder / "speed", "--epochs", args.epochs],
        )
        print(f"\n{os.cpu_count()} cores; {args.images} JPEG pictures of {args.side}x{args.side}; ms an image\n")
        print("| backend | step in memory | decoding, one thread | step on files | fraction of what is possible |")
        print("| --- | --- | --- | --- | --- |")
        for backend in args.backends:
            rounds = times[f"speed {backend}"]
            ms = [1000 * statistics.median(r[key] for r in rounds) for key in ("memory", "decoding", "files")]
            rates = [r["fraction"] for r in rounds]
            fraction = f"{statistics.median(rates):.2f} ({min(rates):.2f}–{max(rates):.2f})"
            print(f"| {backend} | {ms[0]:.2f} | {ms[1]:.2f} | {ms[2]:.2f} | {fraction} |")
        if not args.memory_images:
            return
        for name, factor in (("n", 1), ("4n", 4)):
            write_pictures(folder / name, args.memory_images * factor, 64)
        print(f"\nPeak memory in MB with N = {args.memory_images:,} and 4 N pictures\n")
        print("| backend | files, N | files, 4 N | difference | in memory, N | in memory, 4 N |")
        print("| --- | --- | --- | --- | --- | --- |")
        for backend in args.backends:
            found = {}
            for stream in ("always", "never"):
                for name in ("n", "4n"):
                    command = [sys.executable, __file__, "--only", f"memory {stream}", "--folder", str(folder / name)]
                    environment = os.environ | {"KERAS_BACKEND": backend}
                    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                    found[stream, name] = json.loads(ended.stdout.strip().splitlines()[-1])["MB"]
            streamed, kept = ([found[stream, name] for name in ("n", "4n")] for stream in ("always", "never"))
            cells = (*streamed, streamed[1] - streamed[0], *kept)
            print(f"| {backend} | {' | '.join(f'{cell:.0f}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
