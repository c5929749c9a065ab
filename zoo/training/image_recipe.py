"""What the image recipes share: flags, compiling, fitting with checkpoints, evaluating and reporting.

Each function is one line of a recipe's `main`, in the order they appear there.
"""

import argparse
import importlib.metadata
import pathlib
import platform
import shlex
import sys
import time

import keras
import numpy as np

import zoo
from zoo import data
from zoo.blocks.random_streams import set_random_streams
from zoo.distribution import strategy as distribution
from zoo.errors import UserError
from zoo.evaluation import classification
from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
from zoo.io import files, model_files
from zoo.models.preprocessing import preprocessing, with_preprocessing
from zoo.training import callbacks
from zoo.training.checkpoints import load_checkpoint
from zoo.training.loop import train as train_model
from zoo.training.optimizers import TorchAdam
from zoo.training.schedules import warmup_cosine

set_compiler_flags()

# What defines a run: recorded in `metrics.json`, and a checkpoint is only resumed under the same.
SETTINGS = (
    *("epochs", "batch_size", "learning_rate", "schedule", "weight_decay", "decay_kind"),
    *("seed", "limit", "parity"),
)


def argument_parser(doc, *, epochs, decay_kind, output):
    """The flags of an image recipe; they mean the same in every recipe."""
    parser = argparse.ArgumentParser(
        description=doc.strip().splitlines()[0],
        epilog="The backend is chosen by the environment: KERAS_BACKEND=tensorflow, jax or torch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", default=None, help=f"one of {', '.join(data.IMAGE_DATASETS)}; the recipe's own if not given")
    add("--data-dir", default=None, help="where the data is")
    add("--epochs", type=int, default=epochs)
    add("--batch-size", type=int, default=64)
    add("--learning-rate", type=float, default=1e-3, help="of Adam; the highest of a schedule")
    add(
        "--schedule",
        choices=("cosine", "constant"),
        default="cosine",
        help="cosine rises, then falls to 0",
    )
    add("--weight-decay", type=float, default=1e-4)
    add(
        "--decay-kind",
        choices=("l2", "decoupled"),
        default=decay_kind,
        help="l2 as torch.optim.Adam, decoupled as AdamW",
    )
    add("--seed", type=int, default=0)
    add(
        "--limit",
        type=int,
        default=None,
        help="at most this many images to train, validate and test",
    )
    add("--parity", action="store_true", help="no dropout and no augmentation: the same losses on every backend")
    distribution.add_flags(add)
    add("--output", default=output, help="folder for everything the run makes")
    add("--resume", action="store_true", help="continue an interrupted run from its last finished epoch")
    add("--evaluate", metavar="FILE", default=None, help="evaluate a saved model instead of training")
    return parser


def check_arguments(args):
    """Raise UserError for numbers out of range."""
    for flag, lowest in (("epochs", 1), ("batch_size", 1), ("limit", 1)):
        value = getattr(args, flag)
        if value is not None and value < lowest:
            raise UserError(f"--{flag.replace('_', '-')} must be at least {lowest}, got {value}.")
    for flag in ("learning_rate", "weight_decay", "seed"):
        if getattr(args, flag) < 0:
            raise UserError(f"--{flag.replace('_', '-')} must not be negative, got {getattr(args, flag)}.")


def open_dataset(args, name):
    """Load the data set and say in one line what it is."""
    dataset = data.load_images(name, args.data_dir)
    print(
        f"{keras.backend.backend()} backend · {dataset.name}: {len(dataset.x_train):,} training and "
        f"{len(dataset.x_test):,} test images, {len(dataset.class_names)} classes",
        flush=True,
    )
    return dataset


def build(classifier, dataset, args, **pipeline_options):
    """Join the classifier to its pipelines: (model for training, model for use); both share the weights."""
    raw = (None, None, dataset.x_train.shape[-1])
    test = preprocessing("test", input_shape=raw, seed=args.seed, **pipeline_options)
    train = test if args.parity else preprocessing("train", input_shape=raw, seed=args.seed, **pipeline_options)
    name = f"{classifier.name}_{dataset.name}"
    training_model = with_preprocessing(train, classifier, name=f"{name}_train")
    set_random_streams(training_model, seed=args.seed)
    return training_model, with_preprocessing(test, classifier, name=name)


def learning_rate(args, *, steps):
    """A number, or a cosine that rises linearly over the first steps (200, at most a quarter) and falls to 0.

    The rise is there because Adam's first steps move every weight by the full rate whatever its gradient, which over
    the 18,432 inputs of the first dense layer adds up: without it the loss jumps from 2.4 to 6.7 at the second step.
    """
    if args.schedule == "constant":
        return args.learning_rate
    warm_up = min(200, steps // 4)
    return warmup_cosine(args.learning_rate, steps=steps, warmup_steps=warm_up)


def fit(model, train, validation, dataset, args):
    """Compile and train with checkpoints; returns (history rows, first 20 losses).

    Raises:
        UserError: if the run cannot be resumed. TrainingError: if the loss is not a number.
    """
    folder = files.prepare_folder(args.output)
    batches = data.Batches(*train, batch_size=args.batch_size, seed=args.seed)
    model.compile(
        optimizer=TorchAdam(
            learning_rate(args, steps=args.epochs * len(batches)),
            weight_decay=args.weight_decay,
            decoupled_weight_decay=args.decay_kind == "decoupled",
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    use_fast_paths(model)
    settings = {key: getattr(args, key) for key in SETTINGS} | {"data": dataset.fingerprint()}
    history = load_checkpoint(folder / "checkpoint.npz", model, settings=settings) if args.resume else []
    first = callbacks.LossRecorder()
    log = callbacks.TrainingLog(folder, "checkpoint.npz", settings=settings, history=history, examples=len(batches.x))
    train_model(
        model,
        batches,
        log=log,
        epochs=args.epochs,
        callbacks=[first, log],
        validation_data=data.Batches(*validation, batch_size=256, seed=None) if len(validation[0]) else None,
    )
    return log.history, first.losses


def predict(model, images):
    """Logits (N, classes) for raw images (N, H, W, C)."""
    use_fast_paths(model)
    return np.asarray(model.predict(images, batch_size=250, verbose=0))


def load_for(dataset, path):
    """Load a saved classifier and check that it takes and gives what the data set has.

    Raises:
        UserError: if the file is unusable or of another architecture.
    """
    model = model_files.load_model(path)
    channels, classes = dataset.x_test.shape[-1], len(dataset.class_names)
    takes, gives = model.input_shape, model.output_shape
    one_in_one_out = isinstance(takes, tuple) and isinstance(gives, tuple)
    if not (one_in_one_out and len(takes) == 4 and takes[-1] == channels and gives[1:] == (classes,)):
        raise UserError(
            f"{path} maps {takes} to {gives}, but {dataset.name} needs a classifier from (batch, height, width, "
            f"{channels}) to (batch, {classes}): this is a file of another architecture."
        )
    return model


def report(model, dataset, folder, *, limit=None, extra=None):
    """Evaluate on the test images (or the first `limit`); print and write the report, pictures and `metrics.json`.

    Returns:
        the metrics, a dict.
    """
    folder = files.prepare_folder(folder)
    images, labels = dataset.x_test[:limit], dataset.y_test[:limit]
    logits = predict(model, images)
    score = classification.scores(labels, logits)
    text = classification.text_report(labels, logits, dataset.class_names)
    print(f"\n{text}\nTest loss {score['loss']:.4f}, test accuracy {score['accuracy']:.2%}", flush=True)
    files.write_text(folder / "report.txt", text)
    classification.save_confusion_matrix(folder / "confusion_matrix.png", labels, logits, dataset.class_names)
    classification.save_worst_mistakes(folder / "worst_mistakes.png", images, labels, logits, dataset.class_names)
    metrics = {
        "test_loss": score["loss"],
        "test_accuracy": score["accuracy"],
        "test_images": len(labels),
        "parameters": model.count_params(),
        "class_names": list(dataset.class_names),
        "dataset": dataset.name,
        "data_sha256": dataset.fingerprint(),
        "command": f"KERAS_BACKEND={keras.backend.backend()} python {shlex.join(sys.argv)}",
        **run_metadata(),
        **(extra or {}),
    }
    files.write_json(folder / "metrics.json", metrics)
    return metrics


@distribution.on_main_process
def finish(model, history, first_losses, dataset, args, *, began):
    """Save the model, draw the curves, report, and remove the checkpoint that is no longer needed."""
    folder, model = pathlib.Path(args.output), distribution.to_single_device(model)
    model_files.save_model(model, folder / "model.keras")
    classification.save_training_curves(folder / "training_curves.png", history)
    seconds = sum(row["seconds"] for row in history)
    extra = {
        **{key: getattr(args, key) for key in SETTINGS},
        "first_losses": first_losses,
        "wall_seconds": round(time.perf_counter() - began, 1),
        "training_seconds": round(seconds, 1),
        "images_per_second": round(sum(row["images_per_second"] * row["seconds"] for row in history) / seconds, 1),
        "validation_accuracy": history[-1].get("val_accuracy"),
        "model_sha256": files.sha256(folder / "model.keras"),
    }
    metrics = report(model, dataset, folder, limit=args.limit, extra=extra)
    files.remove(folder / "checkpoint.npz")
    print(f"Model, report and pictures are in {folder}/ ({metrics['images_per_second']:,.0f} images/s in training).")
    return metrics


def environment():
    """Backend, versions and machine, for `metrics.json`."""
    packages = ("keras", {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}[keras.backend.backend()], "numpy")
    return {
        "backend": keras.backend.backend(),
        "versions": {
            "zoo": zoo.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "machine": f"{platform.machine()}, {platform.system()}",
    }
