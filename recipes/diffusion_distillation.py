"""Distill the denoiser of a latent diffusion, so that one to four steps generate an image.

    KERAS_BACKEND=tensorflow python recipes/diffusion_distillation.py \\
        --init-from diffusion_captions --data-dir FOLDER

Latent consistency distillation (Luo et al. 2023): the student learns that all points of a trajectory of the teacher
lead to the same image. The guidance becomes part of the student, which generates without, by the sampler "lcm". The
other parts of the preset are copied. Two epochs of MNIST and Fashion-MNIST in colors take about 60 minutes on 2 CPU
cores.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

import keras
from tokenizers import Tokenizer

import zoo
from zoo.distribution.launch import run_recipe
from zoo.distribution.strategy import on_main_process, prepare_devices
from zoo.errors import UserError
from zoo.evaluation.diffusion_plots import plot_grid, plot_training_curves
from zoo.generation.diffusion.noise_sampler import alphas_cumprod_from_config
from zoo.io.model_files import load_model
from zoo.models.stable_diffusion.denoiser import TENSOR_PARALLEL_LAYOUT_MAP
from zoo.training import diffusion, fine_tuning, flags
from zoo.training.consistency import PseudoHuberLoss, consistency_batches, consistency_model
from zoo.training.optimizers import TorchAdam
from zoo.training.run import Run, print_command
from zoo.training.schedules import limit_warmup, warmup_cosine

GENERATION_CONFIG = {"num_steps": 2, "guidance_scale": 1.0}
OWN_STEPS = 4000  # on pictures of your own, unless --epochs says otherwise


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, "init_from", *diffusion.RUN_FLAGS)
    flags.add(parser, epochs=2, batch_size=64, learning_rate=3e-4, teacher_guidance_scale=2.0, ema_decay=0.995)
    diffusion.add_data_flags(parser, steps=OWN_STEPS)
    flags.add_fallback(parser, "digits", epochs=10, ema_decay=0.98)
    return parser.parse_args(argv)


def main(args):
    flags.check(args)
    if args.init_from is None:
        raise UserError("A student needs a teacher: name a latent diffusion with --init-from, e.g. diffusion_captions.")
    args.output = args.output or "runs/diffusion_distillation"
    folder = diffusion.run_folder(args)
    prepare_devices(args.devices)
    pretrained = fine_tuning.load_pretrained(
        args.init_from, task="text-to-image", names=["denoiser.keras"], devices=args.devices
    )
    dataset = diffusion.load_dataset(args)
    run = Run(args, folder=folder / "denoiser", data_sha256=dataset.fingerprint(), pretrained=pretrained)
    if not args.resume:
        diffusion.copy_base(args.init_from, folder)

    # Data: latents (B, 12, 12, 4), contexts (B, 16, d), and what a step of the teacher needs.
    components = {name: load_model(folder / f"{name}.keras") for name in ("text_encoder", "encoder", "decoder")}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    captions, length = dataset.all_captions(), diffusion.max_length(components["text_encoder"])
    token_ids = diffusion.tokenize_captions(tokenizer, [*captions, ""], length)
    contexts = components["text_encoder"].predict(token_ids, batch_size=256, verbose=0)  # the last of the empty caption
    scaling_factor = diffusion.pretrained_scaling_factor(pretrained, folder)
    latents = {
        split: diffusion.LatentCache(
            components["encoder"], dataset, split, seed=args.seed, scaling_factor=scaling_factor
        )
        for split in ("train", "validation")
    }
    sizes = {"image_size": dataset.image_size, "max_length": length}
    pipeline_config = diffusion.pipeline_config(latents["train"].scaling_factor, **sizes) | {"sampler": "lcm"}
    alphas_cumprod = alphas_cumprod_from_config(pipeline_config["noise_schedule"])
    train, validation = (
        consistency_batches(
            latents[split],
            contexts[:-1],
            alphas_cumprod,
            args.batch_size,
            seed=args.seed,
            same_every_epoch=split == "validation",
            min_steps=diffusion.min_steps(args) if split == "train" else 1,
        )
        for split in ("train", "validation")
    )
    diffusion.default_epochs(args, train, steps=OWN_STEPS)

    # After each epoch, samples of the averaged student.
    ema_model = pretrained.model
    task = zoo.TextToImage(
        components | {"denoiser": ema_model}, tokenizer, pipeline_config, generation_config=GENERATION_CONFIG
    )
    prompts = dataset.example_prompts(10)

    with zoo.strategy(
        args.devices, parallel=args.parallel, layout_map=TENSOR_PARALLEL_LAYOUT_MAP, precision=args.precision
    ):
        teacher, student = (copy_model(pretrained.model, name=name) for name in ("teacher", "student"))
        run.fine_tuning |= fine_tuning.init_weights(student, pretrained)
        model = consistency_model(teacher, student, contexts[-1], guidance_scale=args.teacher_guidance_scale)
        steps = args.epochs * len(train)
        peak, warmup_steps = limit_warmup(args.learning_rate, steps=steps, warmup_steps=200)
        schedule = warmup_cosine(peak, steps=steps, warmup_steps=warmup_steps)
        optimizer = TorchAdam(schedule, use_ema=True, ema_momentum=args.ema_decay)
        model.compile(optimizer=optimizer, loss=PseudoHuberLoss())

        run.prepare(model)
        sample_grid = diffusion.SampleGrid(
            run.folder / "samples.png",
            ema_model,
            trained=student,
            generate=lambda: task.generate(prompts, seed=0),
            plot=lambda path, rows: plot_grid(path, rows, prompts),
        )
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
    ema_model.set_weights([keras.ops.convert_to_numpy(weight) for weight in student.weights])
    return save(run, task, dataset, prompts)


def copy_model(model, *, name):
    """A model of the same layers with weights of its own, which are equal."""
    copy = keras.models.clone_model(model)
    copy.set_weights([keras.ops.convert_to_numpy(weight) for weight in model.weights])
    return keras.Model(copy.inputs, copy.outputs[0], name=name)


@on_main_process
def save(run, task, dataset, prompts):
    model, config = task.components["denoiser"], task.pipeline_config
    plot_training_curves(run.folder / "training_curves.png", run.history)
    contents = {"denoiser.keras": model, "generation_config.json": GENERATION_CONFIG, "pipeline.json": config}
    scores = {"dataset": dataset.name, "parameters": model.count_params(), "scaling_factor": config["scaling_factor"]}
    scores["validation_consistency_loss"] = run.history[-1]["val_loss"]
    sizes = {name: config[name] for name in ("image_size", "max_length")}
    metrics = diffusion.save_part(run, "denoiser", contents, scores, **sizes)
    print_command(["zoo", "generate", str(run.folder.parent), prompts[0], "--num-steps", "1"])
    return metrics


if __name__ == "__main__":
    run_recipe(main, parse_args())
