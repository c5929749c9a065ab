"""The pieces of `benchmarks/gpu.py`: each is run in a process of its own and gives one row.

A piece is a dict: `kind`, `workload`, `contender` ("zoo", or a peer), `backend` (that of the process), `precision`,
`tiny`. `run(piece)` returns what it measured: `per_second` with its `unit`, `ms`, `peak_gb`, or for a recipe `losses`.

Whatever runs on an accelerator is waited for before a clock is read: `torch.cuda.synchronize`, or the values are
fetched. Peak memory is that of the framework's allocator on an accelerator (`torch.cuda.max_memory_allocated`, JAX's
`memory_stats`, TensorFlow's `get_memory_info`), and the largest resident memory of the process on a CPU. float32 means
float32 variables and, on both sides, products of TensorFloat-32 where the hardware has them, which is JAX's default.
"""

import gzip
import importlib
import json
import pathlib
import re
import time

import numpy as np

from zoo.models import variants

HALF = {"bfloat16": "bfloat16", "float16": "float16"}
RNN_UNITS, SEQUENCE_LENGTH, VOCABULARY_SIZE = 512, 64, 65
KERAS_IO_FIT_BATCH, KERAS_IO_PREDICT_BATCH = 8, 13  # keras.io/getting_started/benchmarks: Stable Diffusion
PIPELINE_CONFIG = {
    "kind": "stable_diffusion",
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "shift_factor": 0.0,
    "start_id": 0,
    "end_id": 1,
    "pad_id": 1,
    "noise_schedule": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
    },
    "prediction_type": "epsilon",
    "sampler": "ddim",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "use_karras_sigmas": False,
}


def run(piece):
    """What a piece measured, a dict."""
    prepare(piece)
    kinds = {"recipe": recipe, "train": train, "generate": generate, "translate": translate, "draw": draw}
    return kinds[piece["kind"]](piece)


# Devices


def prepare(piece):
    """Compiler flags for a CPU only, products alike on all sides, and no run that takes a CPU for an accelerator."""
    if piece["backend"] == "torch":
        import torch

        torch.set_float32_matmul_precision("highest" if piece["kind"] == "recipe" else "high")
        torch.backends.cudnn.allow_tf32 = piece["kind"] != "recipe"
    found = probe(piece["backend"])
    if not piece["tiny"] and not found["accelerator"]:
        raise RuntimeError(f"{piece['backend']} finds no accelerator: {found['device']}")
    if piece["tiny"] and piece["contender"] == "zoo":
        from zoo.fast_paths import set_compiler_flags

        set_compiler_flags()


def probe(backend):
    """{"backend", "version", "device", "accelerator"}: where a framework computes."""
    if backend == "torch":
        import torch

        cuda = torch.cuda.is_available()
        name = torch.cuda.get_device_name() if cuda else "cpu"
        return {"backend": backend, "version": torch.__version__, "device": name, "accelerator": cuda}
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        accelerator = device.platform != "cpu"
        return {
            "backend": backend,
            "version": jax.__version__,
            "device": device.device_kind,
            "accelerator": accelerator,
        }
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU") if devices else "cpu"
    return {"backend": backend, "version": tf.__version__, "device": name, "accelerator": bool(devices)}


def torch_device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(backend):
    """Wait until everything that a process on PyTorch has started is done; elsewhere values are fetched."""
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def peak_gb(backend):
    """Peak memory of this process, in GB of 1e9 bytes."""
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e9
    elif backend == "jax":
        import jax

        if statistics := jax.devices()[0].memory_stats():  # None on a CPU
            return statistics["peak_bytes_in_use"] / 1e9
    else:
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / 1e9


def measured(piece, seconds, count, unit, **more):
    """The row of so many seconds a step, in which `count` of a unit are done."""
    row = {"ms": 1000 * seconds, "per_second": count / seconds, "unit": unit, "peak_gb": peak_gb(piece["backend"])}
    return row | more


# Recipes


def write_data(folder):
    """Small data for every recipe, the same everywhere: idx files, signs, pictures, a text, sentence pairs."""
    from PIL import Image

    rng = np.random.default_rng(0)

    def pictures(prototypes, labels):
        noisy = prototypes[labels].astype(int) + rng.integers(-40, 41, (len(labels), *prototypes.shape[1:]))
        return np.clip(noisy, 0, 255).astype("uint8")

    for name in ("mnist", "fashion_mnist"):
        (folder / "idx" / name).mkdir(parents=True)
        prototypes = rng.integers(0, 256, (10, 28, 28))
        for prefix, count in (("train", 320), ("t10k", 40)):
            labels = np.arange(count, dtype="uint8") % 10
            for kind, array in (("images-idx3", pictures(prototypes, labels)), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
                path = folder / "idx" / name / f"{prefix}-{kind}-ubyte.gz"
                path.write_bytes(gzip.compress(header + array.tobytes()))
    names, signs = np.array([f"sign {k}" for k in range(4)]), rng.integers(0, 256, (4, 48, 48, 3))
    images = {f"x_{split}": pictures(signs, np.arange(96) % 4) for split in ("train", "test")}
    labels = {f"y_{split}": np.arange(96) % 4 for split in ("train", "test")}
    np.savez(folder / "gtsrb.npz", **images, **labels, track_train=np.arange(96), class_names=names)
    for k, image in enumerate(images["x_train"]):
        place = folder / "pictures" / f"sign_{k % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k}.png")
    words = ["the", "king", "and", "queen", "speak", "of", "love", "war", "Lord,", "night.\n"]
    text = " ".join(words[index] for index in rng.integers(0, len(words), 4000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    nouns = [("Hund", "dog"), ("Mann", "man"), ("Ball", "ball"), ("Strand", "beach")]
    pairs = [(f"Ein {a} und ein {b}.", f"A {c} and a {d}.") for a, c in nouns for b, d in nouns]
    (folder / "pairs.tsv").write_text("\n".join("\t".join(pair) for pair in pairs * 20) + "\n", encoding="utf-8")


DIFFUSION = "--data-dir idx --limit 64 --batch-size 16 --epochs 1"
RNN = "--text text.txt --limit 12000 --units 64 --embedding-dim 16 --sequence-length 32 --batch-size 8"
# {name: commands}, each in a folder with the data above; of the last one, losses are read in all its run folders.
RECIPES = {
    "cnn_mnist": ["cnn_mnist --dataset mnist --data-dir idx --batch-size 32"],
    "cnn_gtsrb": ["cnn_gtsrb --data-dir gtsrb.npz --batch-size 16"],
    "cnn_image_folder": ["cnn_image_folder --train-dir pictures --batch-size 16"],
    "rnn_shakespeare, LSTM": [f"rnn_shakespeare {RNN} --cell lstm"],
    "rnn_shakespeare, GRU": [f"rnn_shakespeare {RNN} --cell gru"],
    "transformer_multi30k": [
        "transformer_multi30k --pairs pairs.tsv --num-layers 1 --hidden-dim 64 --intermediate-dim 64 --num-heads 2 "
        "--vocabulary-size 300 --batch-tokens 128"
    ],
    "diffusion_captions and _distillation": [
        f"diffusion_captions {DIFFUSION} --num-eval-prompts 4 --num-steps 2",
        f"diffusion_distillation {DIFFUSION} --init-from output0",
    ],
}


def recipe(piece):
    """Train by a recipe for some steps, as its command does; the losses of the first steps, in order."""
    import contextlib
    import os
    import sys
    import tempfile

    from zoo import backends

    backends.skip_optional_imports()
    backends.import_keras()
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        write_data(pathlib.Path(folder))
        with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
            os.environ["ZOO_CACHE_DIR"] = folder
            for index, command in enumerate(RECIPES[piece["workload"]]):
                name, *arguments = command.split()
                module = importlib.import_module(f"recipes.{name}")
                precision = "float32" if piece["precision"] == "float32" else f"mixed_{piece['precision']}"
                arguments += ["--parity", "--precision", precision, "--output", f"output{index}"]
                module.main(module.parse_args(arguments if "--epochs" in arguments else [*arguments, "--epochs", "1"]))
            for path in sorted(pathlib.Path(folder).glob("output*/**/metrics.json")):
                values = json.loads(path.read_text(encoding="utf-8")).get("first_losses")
                if values:
                    losses[path.parent.name] = values[:10]
    if len(RECIPES[piece["workload"]]) == 1:
        losses = {"loss": next(iter(losses.values()))}
    return {"losses": losses, "peak_gb": peak_gb(piece["backend"])}


# Training


def train(piece):
    """Training steps a second, of `model.fit` or of a loop of PyTorch over the same batches."""
    batches, count, unit = training_batches(piece)
    steps, warmup = (2, 2) if piece["tiny"] else (30, 10)
    steps, warmup = max(steps, len(batches)), max(warmup, len(batches))
    measure = train_keras if piece["contender"].startswith("zoo") else train_pytorch
    seconds, loss = measure(piece, batches, warmup, steps)
    if not np.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}")
    return measured(piece, seconds, count, unit, loss=loss)


def training_batches(piece):
    """([(inputs, targets, weights or None)] in the zoo's layout, items of a batch, unit)."""
    tiny, rng = piece["tiny"], np.random.default_rng(0)
    if piece["workload"] == "CNN":
        size = 8 if tiny else 256
        images, labels = rng.standard_normal((2, size, 48, 48, 3), "float32"), rng.integers(0, 10, (2, size))
        return [(x, y, None) for x, y in zip(images, labels)], size, "images"
    if piece["workload"] in ("LSTM", "GRU"):
        shape = (2, 8, 16) if tiny else (2, 128, SEQUENCE_LENGTH)
        tokens = [rng.integers(0, VOCABULARY_SIZE, shape).astype("int32") for _ in range(2)]
        return [(x, y, None) for x, y in zip(*tokens)], shape[1] * shape[2], "tokens"
    if piece["workload"] == "translation":
        from benchmarks.translation_training import make_batches

        batches = make_batches(2 if tiny else 20)
        return batches, float(np.mean([(weights > 0).sum() for *_, weights in batches])), "tokens"
    if piece["workload"] == "denoiser":
        size = 4 if tiny else 256
        latents, noise = rng.standard_normal((2, size, 12, 12, 4), "float32")
        context, timesteps = rng.standard_normal((size, 16, 128), "float32"), rng.integers(0, 1000, size)
        return [((latents, timesteps.astype("float32"), context), noise, None)], size, "images"
    # The form of keras.io's Stable Diffusion (fit): the encoder of the autoencoder, mean squared error of its moments.
    size, pixels = (2, 48) if tiny else (KERAS_IO_FIT_BATCH, 512)
    factor = 2 ** (len(variants.AUTOENCODER[sd_size(piece)]["block_out_channels"]) - 1)
    moments = rng.random((size, pixels // factor, pixels // factor, 8), "float32")
    return [(rng.random((size, pixels, pixels, 3), "float32"), moments, None)], size, "images"


def sd_size(piece):
    return "tiny" if piece["tiny"] else "sd15"


def rnn_config(piece):
    units = 16 if piece["tiny"] else RNN_UNITS
    return {
        "cell": piece["workload"].lower(),
        "vocabulary_size": VOCABULARY_SIZE,
        "embedding_dim": units,
        "units": units,
    }


def translation_size(piece):
    return "tiny" if piece["tiny"] else "published"


def keras_model(piece):
    """(the zoo's model, its loss)."""
    import keras

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if piece["workload"] == "CNN":
        from zoo.models.cnn import cnn

        return cnn(num_classes=10), cross_entropy
    if piece["workload"] in ("LSTM", "GRU"):
        from zoo.models.rnn_language_model import rnn_language_model

        return rnn_language_model(**rnn_config(piece)), cross_entropy
    if piece["workload"] == "translation":
        from benchmarks import translation_training as peer
        from zoo.models.transformer import transformer
        from zoo.training.losses import LabelSmoothingCrossEntropy

        sizes = peer.SIZES[translation_size(piece)]
        model = transformer(vocabulary_size=peer.VOCABULARY_SIZE, dropout=peer.DROPOUT, pad_id=peer.PAD_ID, **sizes)
        return model, LabelSmoothingCrossEntropy(peer.LABEL_SMOOTHING)
    if piece["workload"] == "denoiser":
        from zoo.models.stable_diffusion.denoiser import denoiser

        return denoiser(**variants.DENOISER["tiny"]), "mse"
    from zoo.models.stable_diffusion.autoencoder import encoder

    model = encoder(**variants.AUTOENCODER[sd_size(piece)])
    return keras.Model(model.inputs, model.get_layer("conv_out").output), "mse"


def train_keras(piece, batches, warmup, steps):
    """(seconds a step, last loss) of the zoo's model, trained as the recipes do; "zoo-jit" with jit_compile=True."""
    import keras

    from zoo.fast_paths import use_fast_paths
    from zoo.training.optimizers import TorchAdam

    class Repeated(keras.utils.PyDataset):
        """The batches over and over."""

        def __init__(self, count):
            super().__init__()
            self.count = count

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            inputs, targets, weights = batches[index % len(batches)]
            return (inputs, targets) if weights is None else (inputs, targets, weights)

    if piece["precision"] != "float32":
        keras.config.set_dtype_policy(f"mixed_{piece['precision']}")
    model, loss = keras_model(piece)
    jit = {"jit_compile": True} if piece["contender"] == "zoo-jit" else {}
    model.compile(TorchAdam(1e-4), loss, **jit)
    use_fast_paths(model)
    model.fit(Repeated(warmup), shuffle=False, verbose=0)
    synchronize(piece["backend"])
    start = time.perf_counter()
    history = model.fit(Repeated(steps), shuffle=False, verbose=0).history
    synchronize(piece["backend"])
    return (time.perf_counter() - start) / steps, float(history["loss"][-1])


def pytorch_model(piece):
    """(module, function (module, inputs, targets, weights) -> loss) of the peer, in plain PyTorch or diffusers."""
    from torch.nn import functional

    if piece["workload"] == "CNN":
        from benchmarks.cnn_training import pytorch_model

        def loss_of(model, images, labels, _):
            return functional.cross_entropy(model(images.permute(0, 3, 1, 2)), labels)

        return pytorch_model(), loss_of
    if piece["workload"] in ("LSTM", "GRU"):
        from benchmarks.rnn_training import pytorch_model

        def loss_of(model, tokens, targets, _):
            return functional.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten())

        return pytorch_model(piece["workload"].lower(), rnn_config(piece)["units"]), loss_of
    if piece["workload"] == "translation":
        from benchmarks import translation_training as peer

        def loss_of(model, inputs, targets, weights):
            logits, targets = model(*inputs).flatten(0, 1), targets.masked_fill(weights == 0, -100).flatten()
            return functional.cross_entropy(logits, targets, ignore_index=-100, label_smoothing=peer.LABEL_SMOOTHING)

        return peer.pytorch_model(**peer.SIZES[translation_size(piece)]), loss_of
    from benchmarks.diffusers_models import autoencoder_kl, conditional_unet

    if piece["workload"] == "denoiser":

        def loss_of(model, inputs, noise, _):
            latents, timesteps, context = inputs
            return functional.mse_loss(
                model(latents.permute(0, 3, 1, 2), timesteps, context).sample, noise.permute(0, 3, 1, 2)
            )

        return conditional_unet(**variants.DENOISER["tiny"]), loss_of

    def loss_of(model, images, moments, _):
        return functional.mse_loss(model(images.permute(0, 3, 1, 2)), moments.permute(0, 3, 1, 2))

    return autoencoder_kl(**variants.AUTOENCODER[sd_size(piece)]).encoder, loss_of


def train_pytorch(piece, batches, warmup, steps):
    """(seconds a step, last loss) of an eager loop with autocast and, on CUDA, the fused Adam; or through the compiler.

    Images come channels-last, as the zoo's do; the compiled one keeps its kernels in that order, too.
    """
    import torch

    device = torch_device()
    torch.manual_seed(0)
    with torch.device(device):
        model, loss_of = pytorch_model(piece)
    model = model.to(device).train()
    compiled = piece["contender"].endswith("-compiled")
    if compiled and piece["workload"] in ("CNN", "denoiser", "autoencoder"):
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    half = piece["precision"] in HALF
    dtype = getattr(torch, piece["precision"])
    scaler = torch.amp.GradScaler(device.type, enabled=piece["precision"] == "float16" and device.type == "cuda")
    compute_loss = torch.compile(loss_of) if compiled else loss_of

    def to_device(x):
        if x is None or isinstance(x, tuple):
            return x and tuple(map(to_device, x))
        x = torch.from_numpy(x)
        return (x if x.is_floating_point() else x.long()).to(device, non_blocking=True)

    def step(index):
        inputs, targets, weights = (to_device(part) for part in batches[index % len(batches)])
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype if half else torch.bfloat16, enabled=half):
            loss = compute_loss(model, inputs, targets, weights)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    for index in range(warmup):
        step(index)
    synchronize("torch")
    start = time.perf_counter()
    for index in range(steps):
        loss = step(index)
    synchronize("torch")
    return (time.perf_counter() - start) / steps, float(loss)


# Generation


def timed_call(piece, call, repeats):
    """Median seconds of a call whose result is on the host, after one that is not counted."""
    seconds = []
    for _ in range(1 + repeats):
        synchronize(piece["backend"])
        start = time.perf_counter()
        call()
        synchronize(piece["backend"])
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def generate(piece):
    """Characters a second of a recurrent language model of random weights, greedily, for one text or many at once."""
    length, batch_size = (8 if piece["tiny"] else 256), piece["batch_size"]
    measure = generate_keras if piece["contender"] == "zoo" else generate_pytorch
    seconds = timed_call(piece, measure(piece, length, batch_size), 1 if piece["tiny"] else 3)
    return measured(piece, seconds / length, batch_size, "characters")


def generate_keras(piece, length, batch_size):
    import keras

    import zoo
    from zoo.models.rnn_language_model import rnn_language_model
    from zoo.tokenizers.text import train_tokenizer

    if piece["precision"] != "float32":
        keras.config.set_dtype_policy(piece["precision"])
    text = "".join(map(chr, range(60, 60 + VOCABULARY_SIZE)))
    tokenizer = train_tokenizer(text, "char")
    config = rnn_config(piece) | {"vocabulary_size": tokenizer.get_vocab_size()}
    task = zoo.CausalLM(rnn_language_model(**config), tokenizer)
    return lambda: task.generate([text[0]] * batch_size, max_new_tokens=length, temperature=0.0)


def generate_pytorch(piece, length, batch_size):
    """`torch.nn.LSTM` or `GRU` a step at a time; compiled: the same cells, replayed as a CUDA graph by the compiler."""
    import torch

    from benchmarks.rnn_training import pytorch_model

    device, dtype = torch_device(), getattr(torch, piece["precision"])
    config = rnn_config(piece)
    with torch.device(device):
        model = pytorch_model(config["cell"], config["units"])
    model = model.to(device, dtype).eval()
    names = [f"{name}_l{{}}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    weights = [[getattr(model.rnn, name.format(layer)) for name in names] for layer in range(2)]

    def cells(token, states):
        x, after = model.encoder(token)[:, 0], []
        for state, layer in zip(states, weights):
            if config["cell"] == "lstm":
                state = torch.lstm_cell(x, state, *layer)
                x = state[0]
            else:
                x = state = torch.gru_cell(x, state, *layer)
            after.append(state)
        return model.decoder(x).argmax(-1, keepdim=True), after

    def whole(token, states):
        logits, states = model(token, states)
        return logits[:, -1].argmax(-1, keepdim=True), states

    compiled = piece["contender"].endswith("-compiled")
    step = torch.compile(cells, mode="reduce-overhead" if device.type == "cuda" else None) if compiled else whole
    zeros = torch.zeros(batch_size, config["units"], device=device, dtype=dtype)

    @torch.inference_mode()
    def call():
        token = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        states = None
        if compiled:
            states = [(zeros, zeros) if config["cell"] == "lstm" else zeros for _ in range(2)]
        tokens = []
        for _ in range(length):
            if compiled and device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            token, states = step(token, states)
            if compiled:  # what a CUDA graph gives is overwritten by its next replay
                token = token.clone()
                states = [tuple(map(torch.clone, s)) if isinstance(s, tuple) else s.clone() for s in states]
            tokens.append(token)
        return torch.cat(tokens, 1).cpu().numpy()

    return call


def translate(piece):
    """Sentences a second of a model of opus-mt's size and random weights that ends no sentence early."""
    import keras

    from benchmarks import translation_decoding as peer
    from zoo.models.transformer import transformer

    tiny, beams, batch_size = piece["tiny"], piece["num_beams"], piece["batch_size"]
    length = 4 if tiny else 32
    if piece["precision"] != "float32" and piece["contender"] == "zoo":
        keras.config.set_dtype_policy(piece["precision"])
    sizes = {"num_layers": 6, "hidden_dim": 512, "intermediate_dim": 2048, "num_heads": 8}
    if tiny:
        sizes = {"num_layers": 1, "hidden_dim": 32, "intermediate_dim": 32, "num_heads": 2}
    vocabulary_size = 100 if tiny else peer.VOCABULARY_SIZE
    pad_id, end_id = vocabulary_size - 1, peer.END_ID
    model = transformer(vocabulary_size=vocabulary_size, activation="silu", logits_bias=True, pad_id=pad_id, **sizes)
    bias = np.where(np.arange(vocabulary_size) == end_id, -1e4, 0.0)[None]
    model.get_layer("logits_bias").embeddings.assign(bias)
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 6, batch_size) if tiny else rng.integers(8, 33, batch_size)
    sources = [[*rng.integers(1, pad_id, size - 1).tolist(), end_id] for size in lengths]
    if piece["contender"] == "zoo":
        from zoo.generation.seq2seq import Seq2SeqGenerator

        generator = Seq2SeqGenerator(model, start_id=pad_id, end_id=end_id, suppress_tokens=(pad_id,))
        call = lambda: generator.generate(sources, num_beams=beams, max_length=length + 1)  # noqa: E731
    else:
        call = transformers_call(piece, model, sources, beams, length, pad_id)
    seconds = timed_call(piece, call, 1 if tiny else 3)
    return measured(piece, seconds, batch_size, "sentences")


def transformers_call(piece, model, sources, beams, length, pad_id):
    """`generate` of transformers with the weights of the zoo's model."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    from zoo.converters.marian import marian_config, marian_state_dict

    device = torch_device()
    peer = MarianMTModel(MarianConfig(**marian_config(model))).eval()
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in marian_state_dict(model).items()})
    peer = peer.to(device, getattr(torch, piece["precision"]))
    longest = max(map(len, sources))
    ids = torch.tensor([source + [pad_id] * (longest - len(source)) for source in sources], device=device)
    options = {"num_beams": beams, "max_length": length + 1, "bad_words_ids": [[pad_id]], "do_sample": False}
    return lambda: peer.generate(ids, attention_mask=ids != pad_id, **options).cpu()


def draw(piece):
    """Milliseconds of a denoising step with guidance, as keras.io measures it: two runs of unequal length.

    DDIM, 512x512, in a batch; the weights are random, so that no file is read. The text encoder and the decoder of the
    images are in both runs.
    """
    steps = 2 if piece["tiny"] else 20
    build = draw_keras if piece["contender"] == "zoo" else draw_diffusers
    call = build(piece)
    start = time.perf_counter()
    call(2)
    first = time.perf_counter() - start
    short = timed_call(piece, lambda: call(2), 1)
    long = timed_call(piece, lambda: call(2 + steps), 1)
    seconds = (long - short) / steps if long > short else long / (2 + steps)  # where both are lost in the noise
    row = measured(piece, seconds, piece["batch_size"], "images x steps", first_s=first)
    return row | {"rest_s": short - 2 * row["ms"] / 1000}


def draw_keras(piece):
    import keras

    from benchmarks.stable_diffusion_parts import fill
    from zoo.compat.keras import skip_weight_init
    from zoo.generation.diffusion.latent_diffusion import LatentDiffusion
    from zoo.models.stable_diffusion.autoencoder import decoder
    from zoo.models.stable_diffusion.denoiser import denoiser
    from zoo.models.stable_diffusion.text_encoder import text_encoder

    if piece["precision"] != "float32":
        keras.config.set_dtype_policy(piece["precision"])
    size = sd_size(piece)
    text_config = {"vocabulary_size": 512} | variants.TEXT_ENCODER[size]
    vae_config = variants.AUTOENCODER[size]
    with skip_weight_init():
        models = text_encoder(**text_config), decoder(**vae_config), denoiser(**variants.DENOISER[size])
    encoder_of_text, decoder_of_images, unet = map(fill, models)
    config = PIPELINE_CONFIG | {
        "vae_scale_factor": 2 ** (len(vae_config["block_out_channels"]) - 1),
        "image_size": 48 if piece["tiny"] else 512,
        "max_length": text_config["max_length"],
    }
    pipeline = LatentDiffusion(encoder_of_text, None, decoder_of_images, unet, config)
    ids = np.random.default_rng(0).integers(2, 500, text_config["max_length"])

    def call(steps):
        *_, last = pipeline.denoise(
            ids, negative_token_ids=ids, num_steps=steps, guidance_scale=7.5, seeds=tuple(range(piece["batch_size"]))
        )
        return last.decode()

    return call


def draw_diffusers(piece):
    """The pipeline of diffusers; compiled: its U-Net and its decoder through `torch.compile`."""
    import diffusers
    import torch

    from benchmarks.diffusers_models import autoencoder_kl, clip_text_encoder, conditional_unet
    from benchmarks.text_to_image import clip_tokenizer

    device, dtype, size = torch_device(), getattr(torch, piece["precision"]), sd_size(piece)
    text_config = {"vocabulary_size": 512} | variants.TEXT_ENCODER[size]
    pixels = 48 if piece["tiny"] else 512
    vae_config = variants.AUTOENCODER[size]
    with torch.device(device):
        models = {
            "text_encoder": clip_text_encoder(**text_config),
            "vae": autoencoder_kl(**vae_config, sample_size=pixels),
            "unet": conditional_unet(
                **variants.DENOISER[size], sample_size=pixels >> len(vae_config["block_out_channels"]) - 1
            ),
        }
    compiled = piece["contender"].endswith("-compiled")
    if compiled:
        for name in ("unet", "vae"):
            models[name].to(memory_format=torch.channels_last)
    pipeline = diffusers.StableDiffusionPipeline(
        **models,
        tokenizer=clip_tokenizer(text_config["vocabulary_size"], text_config["max_length"]),
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
    ).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        pipeline.unet.compile()
        pipeline.vae.decoder.compile()
    return lambda steps: pipeline(
        "a red fox in the snow",
        num_inference_steps=steps,
        guidance_scale=7.5,
        num_images_per_prompt=piece["batch_size"],
        output_type="np",
    )
