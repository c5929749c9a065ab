"""Tokens a second when training the translation recipe's transformer, beside plain PyTorch.

    python benchmarks/translation_training.py --rounds 3 --record

The model published for Multi30k (3 + 3 layers, hidden width 256, intermediate width 1024, 4 heads, 6,000 entries, pre-
norm) and the "tiny" variant (4 + 4, 128, 256, 4, post-norm); batches of 2,048 tokens a side in the recipe's own
buckets, dropout 0.3, label smoothing 0.1, Adam, float32. "zoo" is what the recipe does, "stock" is Keras' own optimizer
in its place; "keras-hub" is the network of KerasHub's layers as they come, with Keras' Adam. Plain PyTorch is
`torch.nn.Transformer` between a tied `torch.nn.Embedding` with sinusoidal positions and its transpose, in an eager
loop; its dropouts of attention weights and inner activations, which the recipe's model does not have, are off. Tokens
are those of the target, padding not counted. Every measurement is a process of its own, contenders take turns, and a
first pass over the batches (compilation) is not counted.
"""

import argparse
import functools
import json
import math
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

BACKENDS = ("tensorflow", "jax", "torch")
VOCABULARY_SIZE, PAD_ID, START_ID, DROPOUT, LABEL_SMOOTHING, LEARNING_RATE = 6_000, 0, 1, 0.3, 0.1, 1e-3
SIZES = {
    "published": {"num_layers": 3, "hidden_dim": 256, "intermediate_dim": 1024, "num_heads": 4, "pre_norm": True},
    "tiny": {"num_layers": 4, "hidden_dim": 128, "intermediate_dim": 256, "num_heads": 4, "pre_norm": False},
}


def make_batches(count):
    """The recipe's batches of pairs whose lengths spread like Multi30k's (mean 15, deviation 5)."""
    from zoo.data import BucketedBatches

    rng = np.random.default_rng(0)

    def sentence(length):
        return rng.integers(3, VOCABULARY_SIZE, length)

    lengths = np.clip(rng.normal(15, 5, (200 * count, 1)) + rng.normal(0, 1.5, (200 * count, 2)), 4, 40).astype(int)
    pairs = [(sentence(source), sentence(target)) for source, target in lengths]
    batches = BucketedBatches(pairs, batch_tokens=2048, pad_id=PAD_ID, start_id=START_ID, seed=0)
    return [batches[index] for index in range(count)]


def seconds_per_token(step, batches):
    """Of a pass over the batches, after one that is not counted."""
    for batch in batches:
        step(batch)
    began = time.perf_counter()
    for batch in batches:
        step(batch)
    return (time.perf_counter() - began) / sum(int((weights > 0).sum()) for *_, weights in batches)


def pytorch_model(num_layers, hidden_dim, intermediate_dim, num_heads, pre_norm):
    import torch
    from torch import nn

    from zoo.blocks.attention import sinusoidal_embedding

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY_SIZE, hidden_dim)
            self.register_buffer("positions", torch.as_tensor(sinusoidal_embedding(np.arange(512), hidden_dim)))
            self.dropout = nn.Dropout(DROPOUT)
            self.transformer = nn.Transformer(
                hidden_dim,
                num_heads,
                num_layers,
                num_layers,
                intermediate_dim,
                DROPOUT,
                norm_first=pre_norm,
                batch_first=True,
            )
            if not pre_norm:  # nn.Transformer ends each stack with one more, which the paper does not have
                self.transformer.encoder.norm = self.transformer.decoder.norm = None
            for module in self.transformer.modules():
                if isinstance(module, nn.MultiheadAttention):
                    module.dropout = 0.0
                if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                    module.dropout = nn.Identity()

        def embed(self, tokens):
            return self.dropout(self.embedding(tokens) * math.sqrt(hidden_dim) + self.positions[: tokens.shape[1]])

        def forward(self, source, target):
            padding = source == PAD_ID
            causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], target.device, torch.bool)
            hidden = self.transformer(
                self.embed(source),
                self.embed(target),
                tgt_mask=causal,
                tgt_is_causal=True,
                src_key_padding_mask=padding,
                memory_key_padding_mask=padding,
            )
            return hidden @ self.embedding.weight.T

    torch.manual_seed(0)
    model = Model()
    nn.init.normal_(model.embedding.weight, std=hidden_dim**-0.5)
    return model


def measure_pytorch(size, count):
    import torch

    model = pytorch_model(**SIZES[size]).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-9)
    batches = make_batches(count)

    def step(batch):
        (source, given), wanted, weights = batch
        source, given, wanted = (torch.from_numpy(part).long() for part in (source, given, wanted))
        wanted[torch.from_numpy(weights) == 0] = -100
        optimizer.zero_grad()
        logits = model(source, given)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, label_smoothing=LABEL_SMOOTHING
        )
        loss.backward()
        optimizer.step()
        loss.item()

    return seconds_per_token(step, batches), sum(part.numel() for part in model.parameters())


def keras_hub_model(num_layers, hidden_dim, intermediate_dim, num_heads, pre_norm):
    """The same network of KerasHub's layers, which drop out where `nn.Transformer` does but for attention weights."""
    import keras
    import keras_hub

    options = {"intermediate_dim": intermediate_dim, "num_heads": num_heads, "dropout": DROPOUT}
    options |= {"activation": "relu", "normalize_first": pre_norm}
    source, target = (keras.Input((None,), dtype="int32", name=name) for name in ("source", "target"))
    embedding = keras_hub.layers.ReversibleEmbedding(VOCABULARY_SIZE, hidden_dim, tie_weights=True)
    positions, dropout = keras_hub.layers.SinePositionEncoding(), keras.layers.Dropout(DROPOUT)

    def embed(tokens):
        x = embedding(tokens) * math.sqrt(hidden_dim)
        return dropout(x + positions(x))

    x, y, padding = embed(source), embed(target), keras.ops.not_equal(source, PAD_ID)
    for _ in range(num_layers):
        x = keras_hub.layers.TransformerEncoder(**options)(x, padding_mask=padding)
    for _ in range(num_layers):
        y = keras_hub.layers.TransformerDecoder(**options)(y, x, encoder_padding_mask=padding)
    if pre_norm:
        y = keras.layers.LayerNormalization()(y)
    return keras.Model([source, target], embedding(y, reverse=True))


def measure_keras(kind, size, count):
    import keras

    from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
    from zoo.fast_paths.memory import keep_freed_memory
    from zoo.models.transformer import transformer
    from zoo.training.initial_weights import set_initial_weights
    from zoo.training.losses import LabelSmoothingCrossEntropy
    from zoo.training.optimizers import TorchAdam

    set_compiler_flags()
    if kind == "zoo":
        keep_freed_memory()
    if kind == "keras-hub":
        model = keras_hub_model(**SIZES[size])
    else:
        model = transformer(vocabulary_size=VOCABULARY_SIZE, dropout=DROPOUT, pad_id=PAD_ID, **SIZES[size])
        set_initial_weights(model, seed=0, initializer="transformer")
    adam = TorchAdam if kind == "zoo" else keras.optimizers.Adam
    model.compile(adam(LEARNING_RATE, beta_2=0.98, epsilon=1e-9), LabelSmoothingCrossEntropy(LABEL_SMOOTHING))
    if kind == "zoo":
        use_fast_paths(model)
    batches = make_batches(count)

    def step(batch):
        inputs, wanted, weights = batch
        float(model.train_on_batch(inputs, wanted, weights))

    return seconds_per_token(step, batches), model.count_params()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed training steps in each process")
    parser.add_argument("--size", choices=tuple(SIZES), help="this size only")
    parser.add_argument("--stock", action="store_true", help="Keras' own optimizer too")
    parser.add_argument("--keras-hub", action="store_true", help="the same network of KerasHub's layers too")
    parser.add_argument("--only", help="measure this contender here and print seconds per token as JSON")
    rows.add_record_flag(parser)
    args = parser.parse_args()
    if args.only:
        kind = args.only.split()[0]
        measure = measure_pytorch if kind == "pytorch" else functools.partial(measure_keras, kind)
        seconds, parameters = measure(args.size, args.steps)
        print(f"{args.only}: {parameters:,} parameters", file=sys.stderr)
        return print(json.dumps(seconds))

    kinds = ("zoo", *["stock"] * args.stock, *["keras-hub"] * args.keras_hub)
    contenders = ("pytorch", *(f"{kind} {backend}" for kind in kinds for backend in BACKENDS))
    lines = ["| model | contender | tokens/s | PyTorch = 1 (rounds) |", "| --- | --- | ---: | --- |"]
    for size in (args.size,) if args.size else SIZES:
        print(f"\n{size}", flush=True)
        times = run_interleaved(
            __file__, contenders, rounds=args.rounds, arguments=["--size", size, "--steps", args.steps]
        )
        workload = f"training the {size} transformer, batches of 2,048 tokens, float32"
        rows.record(args, f"translation_training_{size}", times, workload=workload, unit="s/token")
        for name, ratio in ratios(times, "pytorch").items():
            lines.append(f"| {size} | {name} | {1 / statistics.median(times[name]):,.0f} | {ratio} |")
    print(f"\n{os.cpu_count()} cores\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
