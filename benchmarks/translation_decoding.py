"""Sentences a second when translating with a model of opus-mt's size, beside `generate` of transformers.

    python benchmarks/translation_decoding.py --rounds 3 --record

6 + 6 layers, hidden width 512, intermediate width 2048, 8 heads, 58,101 pieces, float32; 32 sentences of 8 to 32
tokens, translated greedily or with 5 beams into 32 tokens each: the weights are random, the same on both sides, and no
text ends before. Every measurement is a process of its own, contenders take turns, and the first translation
(compilation) is not counted. "zoo" is what `zoo translate` does, with the compiler flags of the recipes.
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

BACKENDS = ("tensorflow", "jax", "torch")
VOCABULARY_SIZE, PAD_ID, END_ID = 58_101, 58_100, 0


def sentences(batch_size):
    rng = np.random.default_rng(0)
    return [[*rng.integers(1, PAD_ID, length - 1).tolist(), END_ID] for length in rng.integers(8, 33, batch_size)]


def build():
    """The zoo's model, with weights from NumPy and an end token that is never generated."""
    from zoo.models.transformer import transformer

    model = transformer(
        vocabulary_size=VOCABULARY_SIZE,
        num_layers=6,
        hidden_dim=512,
        intermediate_dim=2048,
        num_heads=8,
        activation="silu",
        logits_bias=True,
        pad_id=PAD_ID,
    )
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if variable.name in ("kernel", "embeddings"):
            variable.assign(rng.standard_normal(variable.shape, "float32") * 0.03)
    model.get_layer("logits_bias").embeddings.assign(np.where(np.arange(VOCABULARY_SIZE) == END_ID, -1e4, 0.0)[None])
    return model


def median_seconds(translate, repeats):
    """Median seconds of translating the batch, after the first time."""
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        translate()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def measure_transformers(model, sources, num_beams, max_new_tokens, repeats):
    import torch
    from transformers import MarianConfig, MarianMTModel

    from zoo.converters.marian import marian_config, marian_state_dict

    peer = MarianMTModel(MarianConfig(**marian_config(model))).eval()
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in marian_state_dict(model).items()})
    longest = max(map(len, sources))
    ids = torch.tensor([source + [PAD_ID] * (longest - len(source)) for source in sources])
    options = {
        "num_beams": num_beams,
        "max_length": max_new_tokens + 1,
        "bad_words_ids": [[PAD_ID]],
        "do_sample": False,
    }
    return median_seconds(lambda: peer.generate(ids, attention_mask=ids != PAD_ID, **options), repeats)


def measure_zoo(model, sources, num_beams, max_new_tokens, repeats):
    from zoo.generation.seq2seq import Seq2SeqGenerator

    generator = Seq2SeqGenerator(model, start_id=PAD_ID, end_id=END_ID, suppress_tokens=(PAD_ID,))
    return median_seconds(
        lambda: generator.generate(sources, num_beams=num_beams, max_length=max_new_tokens + 1), repeats
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="timed translations of the batch in each process")
    parser.add_argument("--num-beams", type=int, help="this many beams only; else 1 and 5")
    parser.add_argument("--batch-size", type=int, default=32, help="sentences translated at once")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="length of each translation")
    parser.add_argument("--only", help="measure this contender here and print seconds as JSON")
    rows.add_record_flag(parser)
    args = parser.parse_args()
    if args.only:
        from zoo.fast_paths.layers import set_compiler_flags

        set_compiler_flags()
        measure = measure_zoo if args.only.startswith("zoo") else measure_transformers
        return print(
            json.dumps(measure(build(), sentences(args.batch_size), args.num_beams, args.max_new_tokens, args.repeats))
        )

    contenders = ("transformers", *(f"zoo {backend}" for backend in BACKENDS))
    lines = [
        "| beams | contender | s/batch | sentences/s | transformers = 1 (rounds) |",
        "| ---: | --- | ---: | ---: | --- |",
    ]
    for num_beams in (args.num_beams,) if args.num_beams else (1, 5):
        print(f"\n{num_beams} beams", flush=True)
        arguments = [
            "--num-beams",
            num_beams,
            "--batch-size",
            args.batch_size,
            "--max-new-tokens",
            args.max_new_tokens,
            "--repeats",
            args.repeats,
        ]
        times = run_interleaved(__file__, contenders, rounds=args.rounds, arguments=arguments)
        row = f"translation_{num_beams}_beam{'s' * (num_beams > 1)}_{args.batch_size}"
        workload = f"{args.batch_size} sentences, {num_beams} beams, {args.max_new_tokens} tokens each, float32"
        rows.record(args, row, times, workload=workload, unit="s/batch")
        for name, ratio in ratios(times, "transformers").items():
            median = statistics.median(times[name])
            lines.append(f"| {num_beams} | {name} | {median:.3f} | {args.batch_size / median:.2f} | {ratio} |")
    print(f"\n{os.cpu_count()} cores\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
