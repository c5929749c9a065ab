"""Seconds and memory of one part of Stable Diffusion 1.5, beside ZeroModels, diffusers and the arithmetic floor.

    python benchmarks/stable_diffusion_parts.py --rounds 3 --record                  # the U-Net, 32x32 latents
    python benchmarks/stable_diffusion_parts.py --part text-encoder --rounds 3 --record
    python benchmarks/stable_diffusion_parts.py --part decoder --rounds 3 --record

One call in float32, a batch of one. ZeroModels is another Keras 3 collection (`pip install zeromodels`): its models run
on the same backend, compiled as its pipeline compiles them (`jax.jit`, `tf.function(jit_compile=True)`, eager on
PyTorch). diffusers' (transformers') class runs in plain PyTorch, with --compiled also through `torch.compile`. All have
random weights of the same shapes: the time does not depend on their values. "matmul" is the floor: twice the ledger's
multiply-accumulates at the rate of a 4096x4096 float32 matrix product in the same round, on the backend where that is
fastest. "GB above Keras" is the largest resident memory of the process above what it was after importing Keras and the
models' code; in "GB above weights" the weights are taken off as well. Every measurement is a process of its own,
contenders take turns, and the first call (compilation) is not counted. On JAX the zoo's later processes find what the
first one compiled, in the user's cache folder, and need no memory to compile.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import rows
from benchmarks.side_by_side import run_interleaved
from zoo.models import variants

BACKENDS = ("tensorflow", "jax", "torch")
PARTS = ("unet", "text-encoder", "decoder")
MATMUL_SIZE = 4096


def resident_gb(kind):
    """Memory of this process in GB: "VmRSS" now, "VmHWM" the largest so far."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{kind}:\s*(\d+) kB", status)[1]) * 1024 / 1e9


def median_seconds(call, repeats):
    """(seconds of the first call, median of the others)."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds[1:])


def tokens_of(config):
    return np.random.default_rng(0).integers(0, config["vocabulary_size"], (1, config["max_length"])).astype("int32")


def zoo_model(part, size, latents):
    """(the zoo's model, its inputs)."""
    from zoo.models.stable_diffusion.autoencoder import decoder
    from zoo.models.stable_diffusion.denoiser import denoiser
    from zoo.models.stable_diffusion.text_encoder import text_encoder

    rng = np.random.default_rng(0)
    if part == "unet":
        config, text = variants.DENOISER[size], variants.TEXT_ENCODER[size]
        inputs = (
            rng.standard_normal((1, latents, latents, 4), "float32"),
            np.full(1, 500.0, "float32"),
            rng.standard_normal((1, text["max_length"], config["cross_attention_dim"]), "float32"),
        )
        return lambda: denoiser(**config), inputs
    if part == "decoder":
        inputs = rng.standard_normal((1, latents, latents, 4), "float32")
        return lambda: decoder(**variants.AUTOENCODER[size]), inputs
    config = {"vocabulary_size": 512} | variants.TEXT_ENCODER[size]
    return lambda: text_encoder(**config), tokens_of(config)


def zeromodels_model(part, size, latents):
    """ZeroModels' model of the same architecture, with a function of the inputs that computes the part."""
    from zeromodels.diffusers.stable_diffusion import AutoencoderKL, UNet2DConditionModel
    from zeromodels.models.clip import CLIPTextModel

    if part == "unet":
        config, text = variants.DENOISER[size], variants.TEXT_ENCODER[size]
        down = tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in config["has_attention"])
        model = UNet2DConditionModel(
            sample_size=latents,
            down_block_types=down,
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
            block_out_channels=config["block_out_channels"],
            layers_per_block=config["layers_per_block"],
            cross_attention_dim=config["cross_attention_dim"],
            num_attention_heads=config["num_heads"],
            norm_num_groups=config["norm_num_groups"],
            text_seq_len=text["max_length"],
        )
        names = ("sample", "timestep", "encoder_hidden_states")
        return model, lambda *inputs: model(dict(zip(names, inputs)), training=False)["sample"]
    if part == "decoder":
        config = variants.AUTOENCODER[size]
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        model = AutoencoderKL(sample_size=latents * factor, **config)
        return model, model.decode
    config = {"vocabulary_size": 512} | variants.TEXT_ENCODER[size]
    model = CLIPTextModel(
        max_seq_len=config["max_length"],
        vocab_size=config["vocabulary_size"],
        text_hidden_dim=config["hidden_dim"],
        text_num_heads=config["num_heads"],
        text_num_layers=config["num_layers"],
        text_mlp_ratio=config["intermediate_dim"] / config["hidden_dim"],
    )

    def encode(tokens):
        import keras

        mask = keras.ops.ones_like(tokens)
        return model({"token_ids": tokens, "padding_mask": mask}, training=False)["last_hidden_state"]

    return model, encode


def fill(model):
    """Give every weight of a Keras model random values, one block of them over and over, that keep outputs about 1."""
    from zoo.compat.keras import set_initial_value
    from zoo.io.weight_memory import aligned_zeros, share_memory

    block = np.random.default_rng(0).standard_normal(1 << 20, "float32")
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) > 1:
            values = aligned_zeros(shape)  # no more memory than the weights take
            flat = values.reshape(-1)
            for start in range(0, flat.size, block.size):
                flat[start : start + block.size] = block[: flat.size - start]
            flat /= np.sqrt(np.prod(shape[:-1]), dtype="float32")
            values = share_memory(values)
        elif "int" in str(weight.dtype):
            continue
        else:
            values = np.full(shape, "gamma" in weight.name, "float32")
        set_initial_value(weight, values)
    return model


def compiled_as_zeromodels_does(model, call):
    """The function of tensors, compiled as `BaseDiffusion.make_denoise_step` of ZeroModels 1.3 compiles its step."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        @jax.jit
        def run(values, *inputs):
            with keras.StatelessScope(state_mapping=list(zip(model.variables, values))):
                return call(*inputs)

        return lambda *inputs: run([variable.value for variable in model.variables], *inputs)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(call, jit_compile=True)

    def run_eagerly(*inputs):
        import torch

        with torch.no_grad():
            return call(*inputs)

    return run_eagerly


def measure_keras(kind, part, size, latents, repeats):
    from zoo.backends import import_keras

    import_keras()
    import keras

    from zoo.compat.keras import skip_weight_init
    from zoo.fast_paths import inference_function, set_compiler_flags, use_compilation_cache

    if kind == "zoo":  # as `zoo.load_task` does
        set_compiler_flags()
        use_compilation_cache()
    build, inputs = zoo_model(part, size, latents)
    if kind == "zeromodels":
        import zeromodels.diffusers.stable_diffusion  # noqa: F401
    imported = resident_gb("VmRSS")
    if kind == "zoo":
        with skip_weight_init():
            model = build()
        function = inference_function(fill(model))
        inputs = list(inputs) if isinstance(inputs, tuple) else inputs
        call = lambda: function(inputs)  # noqa: E731
    else:
        with skip_weight_init():
            model, part_call = zeromodels_model(part, size, latents)
        function = compiled_as_zeromodels_does(fill(model), part_call)
        tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        call = lambda: function(*(tensors if isinstance(tensors, tuple) else (tensors,)))  # noqa: E731
    first, median = median_seconds(lambda: keras.ops.convert_to_numpy(call()), repeats)
    weights = sum(np.prod(weight.shape) for weight in model.weights) * 4 / 1e9
    above = resident_gb("VmHWM") - imported
    return {"s": median, "first": first, "GB above Keras": above, "GB above weights": above - weights}


def measure_diffusers(part, size, latents, repeats, compiled):
    import torch

    from benchmarks.diffusers_models import autoencoder_kl, clip_text_encoder, conditional_unet

    _, inputs = zoo_model(part, size, latents)
    imported = resident_gb("VmRSS")
    if part == "unet":
        model = conditional_unet(**variants.DENOISER[size])
        latent, timestep, context = (torch.from_numpy(x) for x in inputs)
        arguments = (latent.permute(0, 3, 1, 2).contiguous(), timestep, context)
        forward = lambda *inputs: model(*inputs).sample  # noqa: E731
    elif part == "decoder":
        model = autoencoder_kl(**variants.AUTOENCODER[size])
        arguments = (torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous(),)
        forward = lambda latent: model.decode(latent).sample  # noqa: E731
    else:
        model = clip_text_encoder(**({"vocabulary_size": 512} | variants.TEXT_ENCODER[size]))
        arguments = (torch.from_numpy(inputs).long(),)
        forward = lambda tokens: model(tokens).last_hidden_state  # noqa: E731
    if compiled:
        forward = torch.compile(forward)
    with torch.inference_mode():
        first, median = median_seconds(lambda: forward(*arguments).numpy(), repeats)
    weights = sum(weight.numel() for weight in model.parameters()) * 4 / 1e9
    above = resident_gb("VmHWM") - imported
    return {"s": median, "first": first, "GB above Keras": above, "GB above weights": above - weights}


def measure_matmul(backend, macs, repeats=4):
    """Seconds of so many multiply-accumulates at the best rate of a large float32 product, and that rate."""
    x = np.random.default_rng(0).standard_normal((MATMUL_SIZE, MATMUL_SIZE), "float32")
    if backend == "torch":
        import torch

        x = torch.from_numpy(x)
        product = lambda: torch.mm(x, x)  # noqa: E731
    elif backend == "jax":
        import jax

        x, multiply = jax.numpy.asarray(x), jax.jit(jax.numpy.dot)
        product = lambda: multiply(x, x).block_until_ready()  # noqa: E731
    else:
        import tensorflow as tf

        x = tf.constant(x)
        product = lambda: tf.matmul(x, x).numpy()[0, 0]  # noqa: E731
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    rate = 2 * MATMUL_SIZE**3 / min(seconds[1:])
    return {"s": 2 * macs / rate, "GFLOP/s": rate / 1e9}


def count_macs(part, size, latents):
    """Multiply-accumulates of one call, by the ledger."""
    import zoo
    from zoo.compat.keras import skip_weight_init

    build, inputs = zoo_model(part, size, latents)
    with skip_weight_init():
        model = build()
    shapes = [x.shape[1:] for x in inputs] if isinstance(inputs, tuple) else inputs.shape[1:]
    return int(zoo.ledger(model, input_shape=shapes).macs)


def measure(contender, args):
    kind, _, backend = contender.partition(" ")
    if kind == "matmul":
        return measure_matmul(backend, args.macs)
    if kind.startswith("diffusers"):
        return measure_diffusers(args.part, args.size, args.latents, args.repeats, kind != "diffusers")
    return measure_keras(kind, args.part, args.size, args.latents, args.repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, default="unet", help="default unet")
    parser.add_argument("--size", choices=("tiny", "sd15"), default="sd15", help="default sd15")
    parser.add_argument("--latents", type=int, default=32, help="height and width of the latents; default 32")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls in each process; default 3")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="default all")
    parser.add_argument("--compiled", action="store_true", help="diffusers through torch.compile too; minutes")
    parser.add_argument("--macs", type=int, help="multiply-accumulates of a call, with --only; default: counted")
    parser.add_argument("--only", help="measure this contender here and print the figures as JSON")
    rows.add_record_flag(parser)
    args = parser.parse_args()
    if args.only:
        with contextlib.redirect_stdout(sys.stderr):
            figures = measure(args.only, args)
        return print(json.dumps(figures))

    os.environ.setdefault("KERAS_BACKEND", "torch")
    macs = args.macs or count_macs(args.part, args.size, args.latents)
    kinds = ("zeromodels", "zoo", "matmul")
    contenders = ["diffusers", *["diffusers-compiled"] * args.compiled]
    contenders += [f"{kind} {backend}" for backend in args.backends for kind in kinds]
    arguments = [
        *("--part", args.part, "--size", args.size, "--latents", args.latents),
        *("--repeats", args.repeats, "--macs", macs),
    ]
    results = run_interleaved(__file__, contenders, rounds=args.rounds, arguments=arguments)
    floor = min(statistics.median(one["s"] for one in results[f"matmul {backend}"]) for backend in args.backends)
    print(f"\n{os.cpu_count()} cores; {macs / 1e9:.1f} GMACs, {floor:.3f} s at the rate of a matrix product\n")
    print("| contender | s | first s | GB above Keras | GB above weights | times the floor |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, rounds in results.items():
        if not name.startswith("matmul"):
            one = {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}
            cells = (one["s"], one["first"], one["GB above Keras"], one["GB above weights"], one["s"] / floor)
            print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    row = f"{args.part.replace('-', '_')}_{args.size}"
    workload = f"{args.part} of the size {args.size}, {args.latents}x{args.latents} latents, {macs} MACs, float32"
    rows.record(args, row, results, workload=workload, unit="s; GB (1e9 bytes)")


if __name__ == "__main__":
    main()
