"""Keras models of other people before and after `zoo.use_fast_paths`: seconds, and the difference of the numbers.

    python benchmarks/fast_paths.py --output fast_paths.jsonl      one row of JSON for each model and backend
    python benchmarks/fast_paths.py --table fast_paths.jsonl       the table of those rows

Each row is a process of its own with two models of the same weights, one of them with fast paths, that take turns step
by step. Seconds are medians of the steps, the ratio that of each pair of steps; the last number in brackets is that
of processor seconds, which other work on the machine lengthens less. "Difference" is the largest of outputs and of
gradients in inference, over the largest output and gradient (in training, networks of many BatchNormalization layers at
random weights make a thousandth of float32's rounding, without fast paths too).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BACKENDS = ("tensorflow", "jax", "torch")
NUM_CLASSES, VOCABULARY_SIZE, SEQUENCE_LENGTH = 10, 1000, 64


def image_classifier(kind, size, batch_size):
    import keras

    rng = np.random.default_rng(0)
    model = getattr(keras.applications, kind)(input_shape=(size, size, 3), weights=None, classes=NUM_CLASSES)
    return (
        model,
        rng.normal(size=(batch_size, size, size, 3)).astype("float32"),
        rng.integers(0, NUM_CLASSES, batch_size),
    )


def bidirectional_lstm():
    """Two layers each way, sequences of 20 to 64 tokens padded at the right, with their mask."""
    import keras
    from keras import layers

    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((SEQUENCE_LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY_SIZE, 128, mask_zero=True),
            layers.Bidirectional(layers.LSTM(128, return_sequences=True)),
            layers.Bidirectional(layers.LSTM(128)),
            layers.Dense(NUM_CLASSES, activation="softmax"),
        ]
    )
    tokens = rng.integers(1, VOCABULARY_SIZE, (32, SEQUENCE_LENGTH)).astype("int32")
    for row in tokens:
        row[rng.integers(20, SEQUENCE_LENGTH + 1) :] = 0
    return model, tokens, rng.integers(0, NUM_CLASSES, 32)


def transformer():
    """Two `TransformerEncoder`s and two `TransformerDecoder`s of KerasHub, without dropout."""
    import keras
    import keras_hub

    rng = np.random.default_rng(0)
    source, target = (keras.Input((SEQUENCE_LENGTH,), dtype="int32") for _ in range(2))
    embedding = keras.layers.Embedding(VOCABULARY_SIZE, 128)
    x, y = embedding(source), embedding(target)
    for _ in range(2):
        x = keras_hub.layers.TransformerEncoder(512, 4, dropout=0.0)(x)
    for _ in range(2):
        y = keras_hub.layers.TransformerDecoder(512, 4, dropout=0.0)(y, x)
    model = keras.Model([source, target], keras.layers.Dense(VOCABULARY_SIZE, activation="softmax")(y))
    tokens = [rng.integers(1, VOCABULARY_SIZE, (16, SEQUENCE_LENGTH)).astype("int32") for _ in range(3)]
    return model, tokens[:2], tokens[2]


MODELS = {
    "MobileNetV2, 16 x 96x96": lambda: image_classifier("MobileNetV2", 96, 16),
    "ResNet50, 16 x 64x64": lambda: image_classifier("ResNet50", 64, 16),
    "EfficientNetB0, 16 x 64x64": lambda: image_classifier("EfficientNetB0", 64, 16),
    "ConvNeXtTiny, 8 x 64x64": lambda: image_classifier("ConvNeXtTiny", 64, 8),
    "bidirectional LSTM with mask, 2 layers of 128": bidirectional_lstm,
    "KerasHub transformer, 2 + 2 layers of 128": transformer,
}


def measure(name, steps):
    """The row of one model on the backend of this process."""
    import keras

    from benchmarks.gradients import largest_error, outputs_and_gradients
    from zoo import fast_paths

    fast_paths.set_compiler_flags()
    (stock, x, y), (fast, _, _) = MODELS[name](), MODELS[name]()
    for before, after in zip(stock.variables, fast.variables, strict=True):  # the seeds of dropout too
        after.assign(np.array(before))
    for model in (stock, fast):
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
    fast_paths.use_fast_paths(fast)
    report = fast_paths.report(fast)
    taken = sum(row.is_fast for row in report.layers)
    row = {"model": name, "backend": keras.backend.backend(), "layers": taken, "of": len(report.layers)}
    row["optimizer"] = report.optimizer.means
    if taken:
        results = [outputs_and_gradients(model, x, training=False)[:2] for model in (stock, fast)]
        row["output_difference"], row["gradient_difference"] = (
            largest_error(after, before) for before, after in zip(*results)
        )
    if taken or report.optimizer.is_fast:
        row["training"] = compare(lambda model: model.train_on_batch(x, y), stock, fast, steps)
        row["inference"] = compare(lambda model: model.predict_on_batch(x), stock, fast, steps)
    return row


def compare(step, stock, fast, steps):
    seconds = {"stock": [], "fast": []}
    for index in range(steps + 2):  # two to warm up
        for name, model in (("stock", stock), ("fast", fast)):
            began, processor = time.perf_counter(), time.process_time()
            step(model)
            if index >= 2:
                seconds[name].append((time.perf_counter() - began, time.process_time() - processor))
    (stock_s, stock_cpu), (fast_s, fast_cpu) = (zip(*seconds[name]) for name in ("stock", "fast"))
    ratios = [a / b for a, b in zip(stock_s, fast_s)]
    return {
        "stock_s": statistics.median(stock_s),
        "fast_s": statistics.median(fast_s),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "processor_ratio": statistics.median(a / b for a, b in zip(stock_cpu, fast_cpu)),
    }


def machine():
    """What a figure holds for."""
    names = [
        line.split(":")[1].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def table(rows):
    lines = [
        "| model | backend | fast | training | inference | difference of outputs, gradients |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [row["model"], row["backend"], f"{row['layers']} of {row['of']}"]
        cells[-1] += ", Adam" if row["optimizer"] else ""
        for part in ("training", "inference"):
            times = (
                "{stock_s:.3f} to {fast_s:.3f} s, **{ratio:.2f}x** ({lowest:.2f}–{highest:.2f}; {processor_ratio:.2f})"
            )
            cells.append(times.format(**row[part]) if part in row else "as it was")
        cells.append("{output_difference:.0e}, {gradient_difference:.0e}".format(**row) if row["layers"] else "none")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="models whose name begins with this only")
    parser.add_argument("--backend", choices=BACKENDS, help="this backend only")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each model")
    parser.add_argument("--output", default="fast_paths.jsonl", help="file that rows are appended to")
    parser.add_argument("--table", help="print the table of the rows of this file")
    parser.add_argument("--only", help="measure this model here, on KERAS_BACKEND")
    args = parser.parse_args()
    if args.table:
        return print(table([json.loads(line) for line in pathlib.Path(args.table).read_text().splitlines()]))
    if args.only:
        return print(json.dumps(measure(args.only, args.steps)))
    for name in MODELS:
        for backend in (args.backend,) if args.backend else BACKENDS:
            if args.model and not name.startswith(args.model):
                continue
            command = [sys.executable, __file__, "--only", name, "--steps", str(args.steps)]
            environment = os.environ | {"KERAS_BACKEND": backend}
            process = subprocess.run(command, env=environment, capture_output=True, text=True)
            if process.returncode:
                raise SystemExit(f"{name} on {backend} failed:\n{process.stderr}")
            row = machine() | json.loads(process.stdout.strip().splitlines()[-1])
            with open(args.output, "a", encoding="utf-8") as file:
                print(json.dumps(row), file=file)
            print(table([row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
