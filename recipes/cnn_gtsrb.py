"""Train the 48x48 CNN on German traffic signs (43 classes) and evaluate it on the test images.

    KERAS_BACKEND=tensorflow python recipes/cnn_gtsrb.py --data-dir FOLDER

30 epochs on a reduced copy of GTSRB (11,763 training images, 32x32): test accuracy 97.85 %, test loss 0.0833 on 6,315
images, every second one of the official test set (the preset `cnn_gtsrb`), 35 minutes on 2 CPU cores.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo import backends

backends.import_keras_or_exit()

import keras

import zoo
from zoo import data
from zoo.blocks.random_streams import set_random_streams
from zoo.distribution.launch import run_recipe
from zoo.distribution.strategy import on_main_process, to_single_device
from zoo.evaluation.classification import plot_training_curves
from zoo.evaluation.reports import evaluate_classifier
from zoo.io.images import write_png
from zoo.models.cnn import cnn
from zoo.models.preprocessing import attach_preprocessing, preprocessing
from zoo.training import fine_tuning, flags
from zoo.training.callbacks import CheckpointAveraging
from zoo.training.initial_weights import set_initial_weights
from zoo.training.losses import LabelSmoothingCrossEntropy
from zoo.training.optimizers import TorchAdam
from zoo.training.run import Run, print_wrapped, save_metrics
from zoo.training.schedules import InverseSquareRoot, limit_warmup, warmup_cosine

# Photographs differ from scans: each is normalised by its own mean and contrast, since a sign in the shade is the same
# sign, and the crops vary in position, size and viewing angle.
PREPROCESSING = {
    "per_image_standardization": True,
    "local_contrast_window": 13,
    "translation": 0.08,
    "scale": 0.15,
    "shear": 8.0,
    "brightness": 0.2,
    "contrast": 0.4,
}


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, "dataset", "data_dir", epochs=30, batch_size=64)
    flags.add(parser, optimizer="adamw", learning_rate=1e-3, schedule="cosine", weight_decay=1e-4)
    flags.add(parser, "random_erasing", label_smoothing=0.0, average_checkpoints=1)
    flags.add(parser, *flags.FINE_TUNING_FLAGS, *flags.RUN_FLAGS)
    flags.add_fallback(parser, "digits", epochs=10)
    return parser.parse_args(argv)


def main(args):
    flags.check(args)

    # Data: images (N, H, W, 3) uint8, a tenth held out for validation, by whole tracks: the 30 images of a track show
    # the same sign.
    name = args.dataset or "gtsrb"
    print(f"Reading {name} …", flush=True)
    dataset = data.load_images(name, args.data_dir)
    if dataset.name == "digits":
        flags.use_fallback(args)
    print_wrapped(
        f"{keras.backend.backend()} backend · {dataset.name}: {len(dataset.x_train):,} training and "
        f"{len(dataset.x_test):,} test images, {len(dataset.class_names)} classes",
    )
    folder = pathlib.Path(args.output or f"runs/cnn_gtsrb-{dataset.name}")
    if args.evaluate:
        task = zoo.ImageClassifier.from_preset(args.evaluate)
        folder = folder / "evaluation"
        names = task.card.get("class_names")
        metrics = evaluate_classifier(task.model, dataset, folder, limit=args.limit, class_names=names)
        return save_metrics(folder, metrics)
    pretrained = fine_tuning.load_pretrained(args.init_from, task="image-classification", devices=args.devices)
    run = Run(args, folder=folder, data_sha256=dataset.fingerprint(), pretrained=pretrained)
    (x_train, y_train), (x_val, y_val) = data.split_validation(dataset, fraction=0.1, seed=args.seed, limit=args.limit)
    train = data.Batches(x_train, y_train, batch_size=args.batch_size, seed=args.seed)
    validation = data.Batches(x_val, y_val, batch_size=256, seed=None) if len(x_val) else None

    with zoo.strategy(args.devices, parallel=args.parallel, precision=args.precision):
        # Model: the CNN behind two pipelines that share its weights; the one for training augments.
        classifier = cnn(num_classes=len(dataset.class_names), dropout=0.0 if args.parity else 0.5)
        set_initial_weights(classifier, seed=args.seed, initializer="glorot")
        run.fine_tuning |= fine_tuning.init_classifier(
            classifier, pretrained, class_names=dataset.class_names, new_head=args.new_head
        )
        classifier.summary()
        options = PREPROCESSING | {"input_shape": (None, None, dataset.x_train.shape[-1]), "seed": args.seed}
        pipeline = preprocessing("test", **options)
        augmentation = preprocessing("test" if args.parity else "train", erasing=args.random_erasing, **options)
        model = attach_preprocessing(pipeline, classifier, name=f"{classifier.name}_{dataset.name}")
        training_model = attach_preprocessing(augmentation, classifier, name=f"{model.name}_train")
        set_random_streams(training_model, seed=args.seed)

        # Schedule: a warm-up, for the reason that cnn_mnist.py gives.
        steps = args.epochs * len(train)
        peak, warmup_steps = limit_warmup(args.learning_rate, steps=steps, warmup_steps=200)
        learning_rate = {
            "cosine": warmup_cosine(peak, steps=steps, warmup_steps=warmup_steps),
            "inverse-sqrt": InverseSquareRoot(peak, warmup_steps),
            "constant": args.learning_rate,
        }[args.schedule]
        optimizer = TorchAdam(
            learning_rate, weight_decay=args.weight_decay, decoupled_weight_decay=args.optimizer == "adamw"
        )
        loss = LabelSmoothingCrossEntropy(args.label_smoothing)
        run.fine_tuning |= fine_tuning.set_trainable(training_model, freeze=args.freeze, train_only=args.train_only)
        training_model.compile(optimizer=optimizer, loss=loss, weighted_metrics=["accuracy"])

        run.prepare(training_model)
        average = CheckpointAveraging(run.folder, num_checkpoints=args.average_checkpoints)
        with run.interruptible():
            training_model.fit(
                train,
                validation_data=validation,
                epochs=args.epochs,
                initial_epoch=run.initial_epoch,
                callbacks=[average, *run.callbacks(train, examples=len(x_train))],
                shuffle=False,
                verbose=run.verbose,
            )
        average.restore(training_model, epochs=args.epochs)
        fine_tuning.unfreeze(training_model)
    return save_and_report(run, model, dataset, average)


@on_main_process
def save_and_report(run, model, dataset, average):
    model = to_single_device(model)
    plot_training_curves(run.folder / "training_curves.png", run.history)
    metrics = run.metrics() | evaluate_classifier(model, dataset, run.folder, limit=run.args.limit)
    metrics["validation_accuracy"] = run.history[-1].get("val_accuracy")
    zoo.ImageClassifier(model, class_names=dataset.class_names).save_to_preset(run.folder, card=metrics)
    average.remove()
    image = run.folder / "test_image.png"
    write_png(image, dataset.x_test[0].squeeze(), {"class": dataset.class_names[dataset.y_test[0]]})
    return run.save_metrics(metrics, ["zoo", "classify", str(image), "--model", str(run.folder)])


if __name__ == "__main__":
    run_recipe(main, parse_args())
