"""What the recipe of the latent diffusion is made of: its flags, its four stages, and what each leaves behind.

A folder `--output` fills up stage by stage: judge.keras, then encoder.keras and decoder.keras, then text_encoder.keras
and tokenizer.json, then denoiser.keras and pipeline.json; beside them a folder for each stage with `history.csv`,
`metrics.json`, its curves, and while it runs its checkpoint.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import shlex
import sys
import time

import keras
import numpy as np

from zoo.blocks.random_streams import set_random_streams
from zoo.compat.keras import zero_weight_init
from zoo.data.captions import IMAGE_SIZE, CaptionedImages, load_captioned_images
from zoo.distribution import strategy as distribution
from zoo.errors import UserError
from zoo.evaluation import diffusion as scores
from zoo.evaluation import diffusion_plots as reports
from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
from zoo.generation.diffusion import noise_sampler
from zoo.generation.diffusion.latent_diffusion import to_bytes
from zoo.io import files, model_files
from zoo.io.images import write_strip
from zoo.models.stable_diffusion import autoencoder, denoiser, text_encoder
from zoo.tasks.text_to_image import Painter, fast_pipeline, load_tokenizer
from zoo.training import callbacks
from zoo.training import diffusion as parts
from zoo.training.checkpoints import load_checkpoint
from zoo.training.run import run_metadata
from zoo.training.initial_weights import set_initial_weights
from zoo.training.loop import train
from zoo.training.optimizers import TorchAdam
from zoo.training.schedules import warmup_cosine

set_compiler_flags()

# Of each stage, unless the command says otherwise: epochs over the scans, pictures of a batch, highest learning rate.
STAGES = {
    "judge": {"epochs": 3, "batch_size": 64, "learning_rate": 1e-3},
    "autoencoder": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3},
    "text-encoder": {"epochs": 1, "batch_size": 128, "learning_rate": 1e-3},
    "denoiser": {"epochs": 8, "batch_size": 64, "learning_rate": 1e-3},
}
# What each stage needs of those before it, and what it makes.
NEEDS = {
    "judge": (),
    "autoencoder": (),
    "text-encoder": ("judge.keras",),
    "denoiser": ("encoder.keras", "decoder.keras", "text_encoder.keras", "tokenizer.json"),
}
MAKES = {
    "judge": ("judge.keras",),
    "autoencoder": ("encoder.keras", "decoder.keras"),
    "text-encoder": ("text_encoder.keras", "tokenizer.json"),
    "denoiser": ("denoiser.keras", "pipeline.json"),
}
LATENT_SHAPE = (12, 12, 4)
MAX_LENGTH = 16  # tokens of a caption, with start and end
# Ho et al. 2020, section 4. It ends with hardly any signal left, so that black and white backgrounds can be drawn.
SCHEDULE = {"kind": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}
SETTINGS = ("seed", "limit", "kl", "looks", "drop", "ema", "parity")


def argument_parser(doc, *, output):
    """The flags of the recipe; those of the other recipes mean the same."""
    parser = argparse.ArgumentParser(
        description=doc.strip().splitlines()[0],
        epilog="The backend is chosen by the environment: KERAS_BACKEND=tensorflow, jax or torch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--stage", choices=(*STAGES, "all"), default="all", help="which part to train")
    add("--data-dir", default=None, help="folder of tensorflow-datasets with mnist and fashion_mnist")
    add("--epochs", type=int, default=None, help="instead of the stage's own, like the next two")
    add("--batch-size", type=int, default=None)
    add("--learning-rate", type=float, default=None, help="of Adam; the highest of a cosine")
    add("--kl", type=float, default=1e-4, help="weight of the autoencoder's KL divergence")
    add("--looks", type=float, default=0.0, help="weight of its perceptual term, which needs the judge")
    add("--drop", type=float, default=0.1, help="share of captions left out, for guidance")
    add("--ema", type=float, default=0.999, help="momentum of the moving average of the denoiser's weights")
    distribution.add_flags(add)
    add("--seed", type=int, default=0)
    add("--limit", type=int, default=None, help="at most this many scans to train, validate and test")
    add("--parity", action="store_true", help="no dropout: the same losses on every backend")
    add("--output", default=output, help="folder for everything the run makes")
    add("--resume", action="store_true", help="go on: finished stages stay, an interrupted one continues")
    add("--evaluate", metavar="FOLDER", nargs="?", const=True, default=None, help="score a finished folder instead")
    add("--guidance", type=float, default=None, help="do not choose it, and score in short: accuracy and distance only")
    add("--prompts", type=int, default=1000, help="how many of each kind are drawn for the scores")
    return parser


def check_arguments(args):
    """Raise UserError for numbers out of range."""
    for flag in ("epochs", "batch_size", "limit", "prompts"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, got {value}.")
    for flag in ("learning_rate", "kl", "looks", "seed", "guidance"):
        if (getattr(args, flag) or 0) < 0:
            raise UserError(f"--{flag.replace('_', '-')} must not be negative, got {getattr(args, flag)}.")
    for flag in ("drop", "ema"):
        if not 0 <= getattr(args, flag) < 1:
            raise UserError(f"--{flag} must be in [0, 1), got {getattr(args, flag)}.")


def open_data(args):
    """Load the scans and say in one line what they are."""
    dataset, remark = load_captioned_images(args.data_dir)
    if remark:
        print(remark, flush=True)
    if args.limit:
        dataset = dataset.subset(args.limit)
    count = {part: len(labels) for part, labels in dataset.labels.items()}
    print(
        f"{keras.backend.backend()} backend · {dataset.name}: {count['train']:,} scans to train, "
        f"{count['validation']:,} to validate, {count['test']:,} to test, {len(dataset.class_names)} classes",
        flush=True,
    )
    return dataset


def chosen_stages(args):
    """The stages that this command runs, in order.

    Raises:
        UserError: if a stage lacks what an earlier one makes.
    """
    folder = pathlib.Path(args.output)
    stages = list(STAGES) if args.stage == "all" else [args.stage]
    if args.resume:
        stages = [stage for stage in stages if not all((folder / name).is_file() for name in MAKES[stage])]
    made = set()
    for stage in stages:
        needed = (*NEEDS[stage], *(("judge.keras",) if stage == "autoencoder" and args.looks else ()))
        for name in needed:
            if name not in made and not (folder / name).is_file():
                before = next(other for other, names in MAKES.items() if name in names)
                raise UserError(f"The stage {stage} needs {folder / name}: run --stage {before} first.")
        made |= set(MAKES[stage])
    return stages


@dataclasses.dataclass(frozen=True)
class Run:
    """A stage that is run.

    Attributes:
        dataset: `CaptionedImages`.
        data_sha256: its fingerprint.
        numbers: those of `STAGES`, or the command's.
        args: the recipe's.
        out: folder of what all stages make.
        folder: the stage's own.
    """

    dataset: CaptionedImages
    data_sha256: str
    numbers: dict
    args: argparse.Namespace
    out: pathlib.Path
    folder: pathlib.Path


def run_stage(stage, dataset, args):
    """Train one part and save it; returns what its `metrics.json` holds."""
    began = time.perf_counter()
    numbers = {key: value if getattr(args, key) is None else getattr(args, key) for key, value in STAGES[stage].items()}
    train_stage = {
        "judge": train_judge,
        "autoencoder": train_autoencoder,
        "text-encoder": train_text_encoder,
        "denoiser": train_denoiser,
    }[stage]
    out = files.prepare_folder(args.output)
    folder = files.prepare_folder(out / stage.replace("-", "_"))
    print(f"\n--- {stage}: {', '.join(f'{key} {value}' for key, value in numbers.items())} ---", flush=True)
    run = Run(dataset, dataset.fingerprint(), numbers, args, out, folder)
    history, first_losses, finish = train_stage(run)
    return finish_stage(stage, run, history, first_losses, finish, began=began)


@distribution.on_main_process
def finish_stage(stage, run, history, first_losses, finish, *, began):
    """Let a stage evaluate and save what it trained; write its curves and metrics."""
    folder, numbers, args, measured = run.folder, run.numbers, run.args, finish()
    reports.save_curves(folder / "training_curves.png", history)
    seconds = sum(row["seconds"] for row in history)
    metrics = {
        "stage": stage,
        **numbers,
        **{key: getattr(args, key) for key in SETTINGS},
        **measured,
        "first_losses": first_losses,
        "data": run.dataset.name,
        "data_sha256": run.data_sha256,
        "sha256": {name: files.sha256(run.out / name) for name in MAKES[stage]},
        "training_seconds": round(seconds, 1),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "images_per_second": round(sum(row["images_per_second"] * row["seconds"] for row in history) / seconds, 1),
        "command": f"KERAS_BACKEND={keras.backend.backend()} python {shlex.join(sys.argv)}",
        **run_metadata(),
    }
    files.write_json(folder / "metrics.json", metrics)
    files.remove(folder / "checkpoint.npz")
    told = ", ".join(f"{key} {value:.4g}" for key, value in measured.items() if isinstance(value, float))
    print(f"{stage}: {told} ({metrics['images_per_second']:,.0f} images/s)", flush=True)
    return metrics


def fit(run, model, batches, validation, *, loss, more=(), ema=None, **compile_options):
    """Compile and train with a checkpoint after each epoch.

    Returns:
        (history rows, first 20 losses).
    """
    steps = run.numbers["epochs"] * len(batches)
    rate = warmup_cosine(run.numbers["learning_rate"], steps=steps, warmup_steps=min(500, steps // 4))
    options = {"use_ema": True, "ema_momentum": ema} if ema else {}
    model.compile(optimizer=TorchAdam(rate, **options), loss=loss, **compile_options)
    use_fast_paths(model)
    settings = run.numbers | {key: getattr(run.args, key) for key in SETTINGS} | {"data": run.data_sha256}
    checkpoint = run.folder / "checkpoint.npz"
    history = load_checkpoint(checkpoint, model, settings=settings) if run.args.resume and checkpoint.exists() else []
    first = callbacks.LossRecorder()
    log = callbacks.TrainingLog(
        run.folder, "checkpoint.npz", settings=settings, history=history, examples=len(batches) * batches.batch_size
    )
    train(
        model,
        batches,
        log=log,
        epochs=run.numbers["epochs"],
        callbacks=[first, log, *more],
        validation_data=validation,
    )
    return log.history, first.losses


def on_devices(run, layout=None):
    """The scope that the command asks for; see `zoo.distribution.strategy.strategy`."""
    return distribution.strategy(
        run.args.devices, parallel=run.args.parallel, layout_map=layout, precision=run.args.precision
    )


# Each of the following trains one part and returns (history rows, first 20 losses, a function): the function evaluates
# and saves what was trained, and returns what is to be told of it.


def train_judge(run):
    """The CNN that says what a picture shows; its accuracy is that on test pictures, drawn once."""
    batches, validation, test = (
        parts.judge_batches(run.dataset, part, run.numbers["batch_size"], seed=run.args.seed)
        for part in ("train", "validation", "test")
    )
    with on_devices(run):
        with zero_weight_init():
            model = parts.judge(len(run.dataset.class_names), seed=run.args.seed)
        if run.args.parity:
            model.get_layer("classifier").get_layer("dropout1").rate = 0.0
            model.get_layer("classifier").get_layer("dropout2").rate = 0.0
        set_initial_weights(model, seed=run.args.seed, initializer="he")
        set_random_streams(model, seed=run.args.seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        rows, first = fit(run, model, batches, validation, loss=loss, weighted_metrics=["accuracy"])

    def finish():
        trained, right = distribution.to_single_device(model), 0
        use_fast_paths(trained)
        for place in range(len(test)):
            images, labels = test[place]
            right += int((np.asarray(trained.predict_on_batch(images)).argmax(-1) == labels).sum())
        model_files.save_model(trained, run.out / "judge.keras")
        accuracy = right / (len(test) * test.batch_size)
        return {"parameters": trained.count_params(), "test_accuracy": accuracy}

    return rows, first, finish


def train_autoencoder(run):
    """Encoder and decoder; the error of test pictures is told in grey levels of 255."""
    batches, validation, test = (
        parts.autoencoder_batches(
            run.dataset,
            part,
            run.numbers["batch_size"],
            seed=run.args.seed,
            latent_shape=LATENT_SHAPE,
            looks=bool(run.args.looks),
        )
        for part in ("train", "validation", "test")
    )
    losses, weights = {"image": keras.losses.MeanAbsoluteError(), "kl": parts.AsIs()}, {"image": 1.0, "kl": run.args.kl}
    if run.args.looks:
        losses["looks"], weights["looks"] = parts.AsIs(), run.args.looks
    with on_devices(run):
        looks = model_files.load_model(run.out / "judge.keras") if run.args.looks else None
        with zero_weight_init():
            encoder, decoder = (
                getattr(autoencoder, name)(**autoencoder.VARIANTS["tiny"], latent_channels=LATENT_SHAPE[-1])
                for name in ("encoder", "decoder")
            )
        for place, model in enumerate((encoder, decoder)):
            set_initial_weights(model, seed=run.args.seed + place, initializer="transformer")
        model = parts.autoencoder_in_training(encoder, decoder, looks)
        rows, first = fit(run, model, batches, validation, loss=losses, loss_weights=weights)

    def finish():
        trained = [distribution.to_single_device(encoder), distribution.to_single_device(decoder)]
        whole = parts.autoencoder_in_training(*trained)
        use_fast_paths(whole)
        error, shown = 0.0, None
        for place in range(len(test)):
            (images, noise), _ = test[place]
            restored = np.asarray(keras.ops.convert_to_numpy(whole.predict_on_batch((images, noise))["image"]))
            error += float(np.abs(np.clip(restored, -1, 1) - images).mean()) * 127.5 / len(test)
            shown = (images, restored) if shown is None else shown
        # Twelve pictures, below each what became of it, a pixel drawn as 2x2.
        pairs = to_bytes(np.stack(shown, axis=1)[:12]).repeat(2, axis=2).repeat(2, axis=3)  # (12, 2, 96, 96, 3)
        write_strip(run.folder / "restored.png", pairs)
        for name, part in zip(("encoder", "decoder"), trained):
            model_files.save_model(part, run.out / f"{name}.keras")
        return {"parameters": sum(part.count_params() for part in trained), "test_error_grey_levels": error}

    return rows, first, finish


def train_text_encoder(run):
    """The text encoder, by contrast with pictures that a copy of the judge's trunk looks at."""
    tokenizer = parts.caption_tokenizer(run.dataset)
    entries = tokenizer.get_vocab_size()
    batches, validation = (
        parts.pair_batches(
            run.dataset, part, run.numbers["batch_size"], seed=run.args.seed, tokenizer=tokenizer, length=MAX_LENGTH
        )
        for part in ("train", "validation")
    )
    with on_devices(run) as devices, contextlib.ExitStack() as stack:
        if devices.parts > 1 and keras.backend.backend() != "jax":
            print("The contrast is between all rows of a batch: this stage is trained on one device.", flush=True)
            stack.enter_context(distribution.single_device())
        with zero_weight_init():
            encoder = text_encoder.text_encoder(
                vocabulary_size=entries, **text_encoder.VARIANTS["tiny"] | {"max_length": MAX_LENGTH}
            )
        set_initial_weights(encoder, seed=run.args.seed, initializer="transformer")
        trunk = parts.features(model_files.load_model(run.out / "judge.keras"))
        model = parts.pairs_in_training(encoder, trunk, end_id=2)
        rng = np.random.default_rng(run.args.seed)
        for name in ("text_projection", "image_projection"):
            (kernel,) = model.get_layer(name).weights
            kernel.assign(rng.normal(size=kernel.shape) / kernel.shape[0] ** 0.5)
        rows, first = fit(run, model, batches, validation, loss=parts.Contrast())

    def finish():
        measured = retrieval(distribution.to_single_device(model), run.dataset, tokenizer, seed=run.args.seed)
        trained = distribution.to_single_device(encoder)
        model_files.save_model(trained, run.out / "text_encoder.keras")
        files.write_text(run.out / "tokenizer.json", tokenizer.to_str(pretty=True))
        return {"parameters": trained.count_params(), "vocabulary": entries} | measured

    return rows, first, finish


def retrieval(model, dataset, tokenizer, *, seed, rounds=20, among=100):
    """How often the right one is found among `among` test pictures and captions, no two of which say the same."""
    right = {"retrieval_caption": 0, "retrieval_image": 0}
    rng = np.random.default_rng([seed, 2])
    among = min(among, len(dataset.labels["test"]) // 2)
    for number in range(rounds):
        rows, said = [], set()
        batch = dataset.render("test", rng.permutation(len(dataset.labels["test"]))[: 2 * among], seed=[seed, number])
        for row, triple in enumerate(zip(batch.labels, batch.foregrounds, batch.backgrounds)):
            if triple not in said and len(rows) < among:
                said.add(triple)
                rows.append(row)
        ids = parts.encode_captions(tokenizer, [batch.captions[row] for row in rows], MAX_LENGTH)
        logits = np.asarray(
            keras.ops.convert_to_numpy(model.predict_on_batch((ids, batch.images[rows].astype("float32"))))
        )
        for key, axis in (("retrieval_caption", 1), ("retrieval_image", 0)):
            right[key] += float((logits.argmax(axis) == np.arange(len(rows))).mean()) / rounds
    return right | {"retrieval_among": among}


def train_denoiser(run):
    """The denoiser, on latents encoded once; what is saved is the moving average of its weights."""
    encoder, decoder, reader = (
        model_files.load_model(run.out / f"{name}.keras") for name in ("encoder", "decoder", "text_encoder")
    )
    latents = parts.EncodedPictures(encoder, run.dataset, "train", seed=run.args.seed)
    checked = parts.EncodedPictures(encoder, run.dataset, "validation", seed=run.args.seed, scale=latents.scale)
    levels = noise_sampler.scheduled(SCHEDULE)
    settings = settings_of(latents.scale)
    tokenizer = load_tokenizer(run.out / "tokenizer.json", settings)
    contexts = encode_contexts(reader, tokenizer, [*parts.every_caption(run.dataset), ""])
    batches, validation = (
        parts.denoiser_batches(
            source,
            contexts,
            levels,
            run.numbers["batch_size"],
            seed=run.args.seed,
            drop=run.args.drop,
            fixed=source is checked,
        )
        for source in (latents, checked)
    )
    variant = denoiser.VARIANTS["tiny"] | {"cross_attention_dim": contexts.shape[-1]}
    with zero_weight_init():
        averaged = denoiser.denoiser(**variant)
    painter = Painter(fast_pipeline(reader, None, decoder, averaged, settings), tokenizer)
    pictures = AsItLearns(run.folder / "as_it_learns.png", painter, averaged, run.dataset)
    with on_devices(run, denoiser.TENSOR_PARALLEL_LAYOUT_MAP):
        with zero_weight_init():
            model = denoiser.denoiser(**variant)
        set_initial_weights(model, seed=run.args.seed, initializer="transformer")
        loss = keras.losses.MeanSquaredError()
        rows, first = fit(run, model, batches, validation, loss=loss, more=[pictures], ema=run.args.ema)

    def finish():
        # `fit` ends with the average
        averaged.set_weights([np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights])
        by_timestep = loss_by_timestep(averaged, validation, levels)
        reports.save_loss_by_timestep(run.folder / "loss_by_timestep.png", by_timestep)
        model_files.save_model(averaged, run.out / "denoiser.keras")
        files.write_json(run.out / "pipeline.json", settings)
        return {"parameters": averaged.count_params(), "latent_scale": latents.scale}

    return rows, first, finish


class AsItLearns(keras.callbacks.Callback):
    """After each epoch, draw the same prompts with the average of the weights so far, a row of a picture file an epoch.

    Args:
        path: PNG; beside it, in an .npz, the pictures of earlier epochs, for a run that is resumed.
        painter: draws with `averaged`.
        averaged: a model like the one that is trained; its weights are set here.
        dataset: names the prompts.
    """

    def __init__(self, path, painter, averaged, dataset, count=10, steps=20, guidance=2.0):
        super().__init__()
        self.path, self.painter, self.averaged = path, painter, averaged
        half = [dataset.prompts(count // 2, held_out=side, seed=1)[0] for side in (False, True)]
        self.prompts, self.options = [*half[0], *half[1]], {"steps": steps, "guidance": guidance}

    def on_epoch_end(self, epoch, logs=None):
        averages = self.model.optimizer._model_variables_moving_average
        for variable, average in zip(self.averaged.trainable_variables, averages, strict=True):
            variable.assign(keras.ops.cast(keras.ops.convert_to_numpy(average), "float32"))
        store = self.path.with_suffix(".npz")
        rows = []
        if epoch and store.is_file():
            with store.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                rows = list(stored["rows"][:epoch])
        with distribution.outside_scope():
            rows.append(scores.draw_prompts(self.painter, self.prompts, **self.options))
        with files.atomic_write(store) as temporary:
            np.savez_compressed(temporary, rows=np.stack(rows))
        reports.save_grid(self.path, rows, self.prompts)


def loss_by_timestep(model, batches, levels, bins=20):
    """Mean squared error of the noise by timestep: (bins,) over equal ranges of timesteps."""
    total, count = np.zeros(bins), np.zeros(bins)
    for place in range(len(batches)):
        inputs, noise = batches[place]
        error = ((np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(inputs))) - noise) ** 2).mean((1, 2, 3))
        bin_ = (inputs[1] * bins / len(levels)).astype(int)
        np.add.at(total, bin_, error)
        np.add.at(count, bin_, 1)
    return total / np.maximum(count, 1)


def encode_contexts(reader, tokenizer, captions, batch_size=256):
    """Contexts (N, S, d) float32 of captions."""
    ids = parts.encode_captions(tokenizer, captions, MAX_LENGTH)
    return np.asarray(reader.predict(ids, batch_size=batch_size, verbose=0))


def settings_of(scale):
    """What pipeline.json says; see `zoo.converters.stable_diffusion`."""
    return {
        "kind": "stable_diffusion",
        "latent_channels": LATENT_SHAPE[-1],
        "latent_scale": scale,
        "latent_shift": 0.0,
        "downsampling": IMAGE_SIZE // LATENT_SHAPE[0],
        "image_size": IMAGE_SIZE,
        "max_length": MAX_LENGTH,
        "start_id": 1,
        "end_id": 2,
        "pad_id": 0,
        "schedule": SCHEDULE,
        "prediction": "epsilon",
        "sampler": "dpm++",
        "spacing": "linspace",
        "offset": 0,
        "final_alpha_one": True,
        "karras": False,
    }
