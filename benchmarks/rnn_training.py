"""Tokens a second when training and generating with recurrent language models, beside plain PyTorch.

    python benchmarks/rnn_training.py --rounds 3 --record

Two layers, sequences of 64 tokens, batches of 32, Adam, float32; 65 characters. "zoo" is what the recipe does, "stock"
is Keras as it comes. Plain PyTorch is `torch.nn.Embedding`, `torch.nn.LSTM` or `GRU` and `torch.nn.Linear` in an eager
loop. Every measurement is a process of its own, contenders take turns, and the first steps (compilation) are not
counted.

`--generate`: one text, a character at a time with carried states, each sampled at temperature 0.8. Plain PyTorch does
so in four ways, under `torch.inference_mode()`: with `torch.nn.LSTM` or `GRU`, or with the cells, and each with oneDNN
and without. The fastest of the four is 1.
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

VOCABULARY_SIZE, BATCH_SIZE, SEQUENCE_LENGTH, WARMUP_STEPS = 65, 32, 64, 4
BACKENDS = ("tensorflow", "jax", "torch")
# Ways of plain PyTorch to generate: (name, whether by cells, whether with oneDNN).
PYTORCH_WAYS = (
    ("pytorch", False, True),
    ("pytorch-without-onednn", False, False),
    ("pytorch-cells", True, True),
    ("pytorch-cells-without-onednn", True, False),
)
TEMPERATURE, CALL_LENGTH = 0.8, 128  # characters of one call of `generate`


def examples():
    rng = np.random.default_rng(0)
    return (rng.integers(0, VOCABULARY_SIZE, (8, BATCH_SIZE, SEQUENCE_LENGTH)).astype("int32") for _ in range(2))


def median_seconds(step, steps):
    """Median seconds of `step(k)` after the first few calls."""
    seconds = []
    for index in range(WARMUP_STEPS + steps):
        began = time.perf_counter()
        step(index)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARMUP_STEPS:])


def pytorch_model(cell, units):
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Embedding(VOCABULARY_SIZE, units)
            self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](units, units, 2, batch_first=True)
            self.decoder = nn.Linear(units, VOCABULARY_SIZE)

        def forward(self, tokens, states=None):
            outputs, states = self.rnn(self.encoder(tokens), states)
            return self.decoder(outputs), states

    torch.manual_seed(0)
    return Model()


def measure_pytorch_generation(cell, units, steps, by_cells, with_onednn):
    import torch
    from torch import nn

    model = pytorch_model(cell, units)
    cells = [{"lstm": nn.LSTMCell, "gru": nn.GRUCell}[cell](units, units) for _ in range(2)]
    for index, one in enumerate(cells):
        for name, weight in one.named_parameters():
            weight.data = getattr(model.rnn, f"{name}_l{index}").data
    token, state = torch.zeros((1, 1), dtype=torch.int64), None

    def step(_):
        nonlocal token, state
        if by_cells:
            x, new_states = model.encoder(token[:, 0]), []
            for one, old in zip(cells, state or (None, None)):
                new_states.append(one(x, old))
                x = new_states[-1][0] if cell == "lstm" else new_states[-1]
            state, logits = new_states, model.decoder(x)
        else:
            logits, state = model(token, state)
            logits = logits[:, 0]
        token = torch.multinomial(torch.softmax(logits / TEMPERATURE, -1), 1)

    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=with_onednn):
        return median_seconds(step, steps * 20)


def measure_pytorch(cell, units, steps):
    import torch

    model = pytorch_model(cell, units)
    optimizer = torch.optim.Adam(model.parameters())
    x, y = (torch.tensor(part, dtype=torch.int64) for part in examples())

    def step(number):
        optimizer.zero_grad()
        logits, _ = model(x[number % 8])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y[number % 8].flatten())
        loss.backward()
        optimizer.step()
        loss.item()

    return median_seconds(step, steps)


def measure_keras(kind, cell, units, steps, generate):
    import keras

    from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
    from zoo.fast_paths.memory import keep_freed_memory
    from zoo.generation.recurrent import RecurrentGenerator
    from zoo.models.rnn_language_model import rnn_language_model
    from zoo.training.optimizers import TorchAdam

    if kind == "zoo":
        set_compiler_flags()
        keep_freed_memory()
    config = {"cell": cell, "vocabulary_size": VOCABULARY_SIZE, "embedding_dim": units, "units": units}
    if generate:
        generator, options = RecurrentGenerator(rnn_language_model(**config)), {"temperature": TEMPERATURE}
        options["max_new_tokens"] = CALL_LENGTH
        calls = max(3, steps * 20 // CALL_LENGTH)
        return (
            median_seconds(lambda call: list(generator.generate([[0]], seeds=[call], **options)), calls) / CALL_LENGTH
        )
    model = rnn_language_model(**config)
    model.compile(
        TorchAdam(1e-3) if kind == "zoo" else keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    if kind == "zoo":
        use_fast_paths(model)
    x, y = examples()
    return median_seconds(lambda number: float(model.train_on_batch(x[number % 8], y[number % 8])), steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed training steps in each process")
    parser.add_argument("--cell", choices=("lstm", "gru"), help="this cell only")
    parser.add_argument("--units", type=int, help="this width only; else 256 and 512")
    parser.add_argument("--generate", action="store_true", help="generation instead of training")
    parser.add_argument("--stock", action="store_true", help="Keras as it comes too")
    parser.add_argument("--only", help="measure this contender here and print seconds as JSON")
    rows.add_record_flag(parser)
    args = parser.parse_args()
    if args.only:
        kind = args.only.split()[0]
        case = (args.cell, args.units, args.steps)
        if args.generate and kind.startswith("pytorch"):
            seconds = measure_pytorch_generation(*case, *{name: way for name, *way in PYTORCH_WAYS}[kind])
        else:
            seconds = measure_pytorch(*case) if kind == "pytorch" else measure_keras(kind, *case, args.generate)
        return print(json.dumps(seconds))

    kinds = ("zoo", "stock") if args.stock and not args.generate else ("zoo",)
    peers = [name for name, *_ in PYTORCH_WAYS] if args.generate else ["pytorch"]
    contenders = (*peers, *(f"{kind} {backend}" for kind in kinds for backend in BACKENDS))
    tokens = 1 if args.generate else BATCH_SIZE * SEQUENCE_LENGTH
    lines = [
        "| cell, units | contender | ms/step | tokens/s | PyTorch = 1 (rounds) |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for cell in (args.cell,) if args.cell else ("lstm", "gru"):
        for units in (args.units,) if args.units else (256, 512):
            print(f"\n{cell}, 2 layers of {units}", flush=True)
            arguments = ["--cell", cell, "--units", units, "--steps", args.steps]
            arguments += ["--generate"] if args.generate else []
            times = run_interleaved(__file__, contenders, rounds=args.rounds, arguments=arguments)
            row = f"{cell}_{'generation' if args.generate else 'training'}_{units}"
            workload = f"{cell}, 2 layers of {units}, {tokens} tokens a step, float32"
            rows.record(args, row, times, workload=workload, unit="s/step")
            for name, ratio in ratios(times, min(peers, key=lambda name: statistics.median(times[name]))).items():
                median = statistics.median(times[name])
                lines.append(f"| {cell}, {units} | {name} | {1000 * median:.3f} | {tokens / median:,.0f} | {ratio} |")
    print(f"\n{os.cpu_count()} cores\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
