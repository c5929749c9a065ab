"""Train the denoiser of the latent diffusion on latents of captioned images; what is saved is its moving average.

    KERAS_BACKEND=tensorflow python recipes/diffusion_denoiser.py \\
        --data-dir FOLDER

With --train-dir it learns from pictures of your own. Eight epochs of MNIST and Fashion-MNIST in colors: class and both
colors as asked for in 96.5 % of the images generated from 1,000 captions (recipes/diffusion_evaluation.py). It takes 94
minutes on 2 CPU cores.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

import keras
from tokenizers import Tokenizer

import zoo
from zoo import lora
from zoo.distribution.launch import run_recipe
from zoo.distribution.strategy import on_main_process, prepare_devices
from zoo.evaluation.diffusion import loss_by_timestep
from zoo.evaluation.diffusion_plots import plot_grid, plot_loss_by_timestep, plot_training_curves
from zoo.generation.diffusion.noise_sampler import alphas_cumprod_from_config
from zoo.io.model_files import load_model
from zoo.models import variants
from zoo.models.stable_diffusion import denoiser
from zoo.training import diffusion, fine_tuning, flags
from zoo.training.initial_weights import set_initial_weights
from zoo.training.optimizers import TorchAdam
from zoo.training.run import Run
from zoo.training.schedules import limit_warmup, warmup_cosine

GENERATION_CONFIG = {"num_steps": 20, "guidance_scale": 2.0}  # until the evaluation has chosen

OWN_STEPS = 4000  # on pictures of your own, unless --epochs says otherwise


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, *flags.FINE_TUNING_FLAGS, *flags.LORA_FLAGS, *diffusion.RUN_FLAGS)
    flags.add(parser, epochs=8, batch_size=64, learning_rate=1e-3)
    flags.add(parser, "conditioning_dropout_prob", "ema_decay")
    diffusion.add_data_flags(parser, steps=OWN_STEPS)
    flags.add_fallback(parser, "digits", epochs=12, ema_decay=0.99)
    return parser.parse_args(argv)


def main(args, dataset=None):
    """Train and save; `dataset` is given by who trains on a part of the data, as benchmarks/lora_new_class.py."""
    flags.check(args)
    folder = diffusion.run_folder(args, "encoder.keras", "decoder.keras", "text_encoder.keras", "tokenizer.json")

    prepare_devices(args.devices)  # before the encoders compute anything

    pretrained = fine_tuning.load_pretrained(
        args.init_from, task="text-to-image", names=["denoiser.keras"], devices=args.devices
    )

    # Data: latents (B, 12, 12, 4), encoded once, with noise; timesteps (B,); contexts (B, 16, d) of all captions.
    dataset = dataset or diffusion.load_dataset(args)
    components = {name: load_model(folder / f"{name}.keras") for name in ("text_encoder", "encoder", "decoder")}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    captions, length = dataset.all_captions(), diffusion.max_length(components["text_encoder"])
    diffusion.warn_of_captions(tokenizer, captions, length)
    token_ids = diffusion.tokenize_captions(tokenizer, [*captions, ""], length)
    contexts = components["text_encoder"].predict(token_ids, batch_size=256, verbose=0)
    encoder = components["encoder"]
    scaling_factor = diffusion.pretrained_scaling_factor(pretrained, folder)
    latents = diffusion.LatentCache(encoder, dataset, "train", seed=args.seed, scaling_factor=scaling_factor)
    validation_latents = diffusion.LatentCache(
        encoder, dataset, "validation", seed=args.seed, scaling_factor=latents.scaling_factor
    )
    sizes = {"image_size": dataset.image_size, "max_length": length}
    pipeline_config = diffusion.pipeline_config(latents.scaling_factor, **sizes)
    alphas_cumprod = alphas_cumprod_from_config(pipeline_config["noise_schedule"])
    train, validation = (
        diffusion.denoiser_batches(
            cache,
            contexts,
            alphas_cumprod,
            args.batch_size,
            seed=args.seed,
            conditioning_dropout_prob=args.conditioning_dropout_prob,
            same_every_epoch=cache is validation_latents,
            min_steps=1 if cache is validation_latents else diffusion.min_steps(args),
        )
        for cache in (latents, validation_latents)
    )
    diffusion.default_epochs(args, train, steps=OWN_STEPS)
    run = Run(args, folder=folder / "denoiser", data_sha256=dataset.fingerprint(), pretrained=pretrained)

    # After each epoch, samples of the averaged weights.
    variant = variants.DENOISER["tiny"] | {"cross_attention_dim": contexts.shape[-1]}
    ema_model = denoiser.denoiser(**variant)
    if args.lora_rank:
        lora.add_lora(ema_model, args.lora_rank, args.lora_alpha)
    task = zoo.TextToImage(
        components | {"denoiser": ema_model}, tokenizer, pipeline_config, generation_config=GENERATION_CONFIG
    )
    prompts = dataset.example_prompts(10)
    sample_grid = diffusion.SampleGrid(
        run.folder / "samples.png",
        ema_model,
        generate=lambda: task.generate(prompts, seed=0),
        plot=lambda path, rows: plot_grid(path, rows, prompts),
    )

    with zoo.strategy(
        args.devices,
        parallel=args.parallel,
        layout_map=denoiser.TENSOR_PARALLEL_LAYOUT_MAP,
        precision=args.precision,
    ):
        model = denoiser.denoiser(**variant)
        set_initial_weights(model, seed=args.seed, initializer="transformer")
        run.fine_tuning |= fine_tuning.init_weights(model, pretrained)

        steps = args.epochs * len(train)
        peak, warmup_steps = limit_warmup(args.learning_rate, steps=steps, warmup_steps=500)
        schedule = warmup_cosine(peak, steps=steps, warmup_steps=warmup_steps)
        optimizer = TorchAdam(schedule, use_ema=True, ema_momentum=args.ema_decay)
        run.fine_tuning |= fine_tuning.set_trainable(model, freeze=args.freeze, train_only=args.train_only)
        run.fine_tuning |= fine_tuning.add_lora(model, args)
        model.compile(optimizer=optimizer, loss=keras.losses.MeanSquaredError())

        run.prepare(model)
        with run.interruptible():
            model.fit(
                train,
                validation_data=validation,
                epochs=args.epochs,
                initial_epoch=run.initial_epoch,
                callbacks=[*run.callbacks(train, examples=len(train) * train.batch_size), sample_grid],
                shuffle=False,
                verbose=run.verbose,
            )
    # `fit` ends with the averaged weights.
    ema_model.set_weights([keras.ops.convert_to_numpy(weight) for weight in model.weights])
    return evaluate_and_save(run, task, validation, dataset)


@on_main_process
def evaluate_and_save(run, task, validation, dataset):
    """Loss by timestep."""
    model, config = task.components["denoiser"], task.pipeline_config
    fine_tuning.save_lora(model, run.args, run.folder)
    losses = loss_by_timestep(model, validation, config["noise_schedule"]["num_train_timesteps"])
    plot_loss_by_timestep(run.folder / "loss_by_timestep.png", losses)
    plot_training_curves(run.folder / "training_curves.png", run.history)
    contents = {"denoiser.keras": model, "generation_config.json": GENERATION_CONFIG, "pipeline.json": config}
    scores = {"dataset": dataset.name, "parameters": model.count_params(), "scaling_factor": config["scaling_factor"]}
    scores["validation_noise_loss"] = float(losses.mean())
    sizes = {name: config[name] for name in ("image_size", "max_length")}
    return diffusion.save_part(run, "denoiser", contents, scores, **sizes)


if __name__ == "__main__":
    run_recipe(main, parse_args())
