"""Train the autoencoder of the latent diffusion: images to latents of a 16th of the pixels, and back.

    KERAS_BACKEND=tensorflow python recipes/diffusion_autoencoder.py \\
        --data-dir FOLDER

With --train-dir it learns from pictures of your own. One epoch of MNIST and Fashion-MNIST in colors: mean error of test
images 2.19 of 255. It takes 44 minutes on 2 CPU cores.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

import keras
import numpy as np

import zoo
from zoo.distribution.launch import run_recipe
from zoo.distribution.strategy import on_main_process, to_single_device
from zoo.errors import UserError
from zoo.evaluation.diffusion_plots import plot_training_curves
from zoo.fast_paths.layers import use_fast_paths
from zoo.generation.diffusion.latent_diffusion import to_uint8
from zoo.io.images import write_strip
from zoo.io.model_files import load_model
from zoo.models import variants
from zoo.models.stable_diffusion import autoencoder
from zoo.training import diffusion, fine_tuning, flags
from zoo.training.initial_weights import set_initial_weights
from zoo.training.optimizers import TorchAdam
from zoo.training.run import Run
from zoo.training.schedules import limit_warmup, warmup_cosine

OWN_STEPS = 3000  # on pictures of your own, unless --epochs says otherwise


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, *flags.FINE_TUNING_FLAGS, *diffusion.RUN_FLAGS, epochs=1, batch_size=16, learning_rate=1e-3)
    flags.add(parser, "kl_weight", "perceptual_weight")
    diffusion.add_data_flags(parser, steps=OWN_STEPS)
    flags.add_fallback(parser, "digits", epochs=2)
    return parser.parse_args(argv)


def main(args):
    flags.check(args)
    if args.train_dir and args.perceptual_weight:
        raise UserError("--perceptual-weight takes a classifier's features, and --train-dir has none: leave it out.")
    perceptual = args.perceptual_weight > 0
    folder = diffusion.run_folder(args, *(["classifier.keras"] if perceptual else []))

    # Data: images (B, 48, 48, 3) in [-1, 1] and noise (B, 12, 12, 4) to sample the latents.
    dataset = diffusion.load_dataset(args)
    options = {"seed": args.seed, "perceptual": perceptual, "min_steps": diffusion.min_steps(args)}
    train, validation, test = (
        diffusion.autoencoder_batches(dataset, split, args.batch_size, **options)
        for split in ("train", "validation", "test")
    )
    diffusion.default_epochs(args, train, steps=OWN_STEPS)
    pretrained = fine_tuning.load_pretrained(
        args.init_from,
        task="text-to-image",
        names=("encoder.keras", "decoder.keras"),
        devices=args.devices,
    )
    run = Run(args, folder=folder / "autoencoder", data_sha256=dataset.fingerprint(), pretrained=pretrained)

    with zoo.strategy(args.devices, parallel=args.parallel, precision=args.precision):
        # Model: encoder and decoder, joined by the sampled latents.
        variant = variants.AUTOENCODER["tiny"] | {"latent_channels": diffusion.LATENT_CHANNELS}
        encoder, decoder = autoencoder.encoder(**variant), autoencoder.decoder(**variant)
        set_initial_weights(encoder, seed=args.seed, initializer="transformer")
        set_initial_weights(decoder, seed=args.seed + 1, initializer="transformer")
        run.fine_tuning |= fine_tuning.init_weights({"encoder.keras": encoder, "decoder.keras": decoder}, pretrained)
        classifier = load_model(folder / "classifier.keras") if perceptual else None
        model = diffusion.autoencoder_training_model(encoder, decoder, classifier)

        steps = args.epochs * len(train)
        peak, warmup_steps = limit_warmup(args.learning_rate, steps=steps, warmup_steps=500)
        schedule = warmup_cosine(peak, steps=steps, warmup_steps=warmup_steps)
        optimizer = TorchAdam(schedule)
        # Loss: |x - x̂| + w·KL(q(z|x) ‖ N(0, 1)), and a perceptual term if asked for.
        loss = {"image": keras.losses.MeanAbsoluteError(), "kl": diffusion.IdentityLoss()}
        loss_weights = {"image": 1.0, "kl": args.kl_weight}
        if perceptual:
            loss["perceptual"], loss_weights["perceptual"] = diffusion.IdentityLoss(), args.perceptual_weight
        run.fine_tuning |= fine_tuning.set_trainable(model, freeze=args.freeze, train_only=args.train_only)
        model.compile(optimizer=optimizer, loss=loss, loss_weights=loss_weights)

        run.prepare(model)
        with run.interruptible():
            model.fit(
                train,
                validation_data=validation,
                epochs=args.epochs,
                initial_epoch=run.initial_epoch,
                callbacks=run.callbacks(train, examples=len(train) * train.batch_size),
                shuffle=False,
                verbose=run.verbose,
            )
        fine_tuning.unfreeze(model)
    return evaluate_and_save(run, encoder, decoder, test, dataset)


@on_main_process
def evaluate_and_save(run, encoder, decoder, test, dataset):
    """Mean absolute error of the test images, in gray levels of 255; restored.png shows twelve above their copies."""
    encoder, decoder = to_single_device(encoder), to_single_device(decoder)
    model = diffusion.autoencoder_training_model(encoder, decoder)
    use_fast_paths(model)
    error = 0.0
    for index in range(len(test)):
        (images, noise), _ = test[index]
        restored = keras.ops.convert_to_numpy(model.predict_on_batch((images, noise))["image"])
        error += float(np.abs(np.clip(restored, -1, 1) - images).mean()) * 127.5 / len(test)
        if index == 0:
            pairs = to_uint8(np.stack([images, restored], axis=1)[:12])  # (12, 2, 48, 48, 3)
    write_strip(run.folder / "restored.png", pairs.repeat(2, axis=2).repeat(2, axis=3))
    plot_training_curves(run.folder / "training_curves.png", run.history)
    contents = {"encoder.keras": encoder, "decoder.keras": decoder}
    scores = {"dataset": dataset.name, "parameters": encoder.count_params() + decoder.count_params()}
    scores["test_error_grey_levels"] = error
    return diffusion.save_part(run, "autoencoder", contents, scores, image_size=dataset.image_size)


if __name__ == "__main__":
    run_recipe(main, parse_args())
