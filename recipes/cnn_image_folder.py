"""Train the 48x48 CNN on pictures of your own, and evaluate it on those held out.

    KERAS_BACKEND=jax python recipes/cnn_image_folder.py --train-dir FOLDER

The folder has a sub-folder of pictures for each class; or --labels names a CSV file with the columns file and label. A
tenth of the pictures is held out for validation and a tenth for testing, where no folders are given for that. Copies of
a picture stay on one side of the split. Pictures that take more than 1 GiB in memory are decoded while training.

Three epochs of 482 generated pictures in 5 classes, decoded while training: 0.7 minutes on 2 CPU cores, loaded.
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
from zoo.errors import UserError
from zoo.evaluation.classification import plot_training_curves
from zoo.evaluation.reports import evaluate_classifier
from zoo.io.images import write_png
from zoo.models.cnn import cnn
from zoo.models.preprocessing import attach_preprocessing, preprocessing
from zoo.training import fine_tuning, flags
from zoo.training.initial_weights import set_initial_weights
from zoo.training.optimizers import TorchAdam
from zoo.training.run import Run, print_wrapped, save_metrics
from zoo.training.schedules import InverseSquareRoot, limit_warmup, warmup_cosine

# Photographs differ from scans: each is normalised by its own mean and contrast, and what they show varies in place and
# size.
PREPROCESSING = {
    "per_image_standardization": True,
    "translation": 0.08,
    "scale": 0.15,
    "brightness": 0.2,
    "contrast": 0.4,
}


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, "train_dir", "validation_dir", "test_dir", "labels", "group_column", "on_broken", "stream")
    flags.add(parser, "tfds", "data_dir", epochs=20, batch_size=64)
    flags.add(parser, optimizer="adamw", learning_rate=1e-3, schedule="cosine", weight_decay=1e-4)
    flags.add(parser, *flags.FINE_TUNING_FLAGS, *flags.RUN_FLAGS)
    return parser.parse_args(argv)


def main(args):
    flags.check(args)
    if bool(args.train_dir) == bool(args.tfds):
        raise UserError("There is no data set, or there are two: give either --train-dir FOLDER or --tfds NAME.")

    # Data: images (N, 48, 48, 3) uint8; a tenth for validation and a tenth for testing, copies and groups together.
    print(f"Reading {args.train_dir or args.tfds} …", flush=True)
    if args.tfds:
        dataset = data.load_tfds_folder(args.tfds, args.data_dir, seed=args.seed)
    else:
        names = ("validation_dir", "test_dir", "labels", "group_column", "on_broken", "stream", "seed")
        dataset = data.load_image_folder(args.train_dir, **{name: getattr(args, name) for name in names})
    for remark in dataset.remarks:
        print_wrapped(remark)
    dataset = dataset.limited(args.limit, seed=args.seed)
    print_wrapped(
        f"{keras.backend.backend()} backend · {dataset.name}: {len(dataset.x_train):,} training, "
        f"{len(dataset.x_val):,} validation and {len(dataset.x_test):,} test images, {len(dataset.class_names)} "
        f"classes{', decoded while training' if dataset.is_streamed else ''}",
    )
    folder = pathlib.Path(args.output or f"runs/cnn_image_folder-{dataset.name}")
    if args.evaluate:
        task = zoo.ImageClassifier.from_preset(args.evaluate)
        folder = folder / "evaluation"
        names = task.card.get("class_names")
        metrics = evaluate_classifier(task.model, dataset, folder, class_names=names)
        return save_metrics(folder, metrics)
    pretrained = fine_tuning.load_pretrained(args.init_from, task="image-classification", devices=args.devices)
    run = Run(args, folder=folder, data_sha256=dataset.fingerprint(), pretrained=pretrained)
    batches = data.PrefetchedBatches if dataset.is_streamed else data.Batches
    train = batches(dataset.x_train, dataset.y_train, batch_size=args.batch_size, seed=args.seed)
    validation = batches(dataset.x_val, dataset.y_val, batch_size=256, seed=None) if len(dataset.x_val) else None

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
        augmentation = preprocessing("test" if args.parity else "train", **options)
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
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        run.fine_tuning |= fine_tuning.set_trainable(training_model, freeze=args.freeze, train_only=args.train_only)
        training_model.compile(optimizer=optimizer, loss=loss, weighted_metrics=["accuracy"])

        run.prepare(training_model)
        with run.interruptible():
            training_model.fit(
                train,
                validation_data=validation,
                epochs=args.epochs,
                initial_epoch=run.initial_epoch,
                callbacks=run.callbacks(train, examples=len(dataset.x_train)),
                shuffle=False,
                verbose=run.verbose,
            )
        fine_tuning.unfreeze(training_model)
    return save_and_report(run, model, dataset)


@on_main_process
def save_and_report(run, model, dataset):
    model = to_single_device(model)
    plot_training_curves(run.folder / "training_curves.png", run.history)
    metrics = run.metrics() | evaluate_classifier(model, dataset, run.folder)
    metrics["validation_accuracy"] = run.history[-1].get("val_accuracy")
    zoo.ImageClassifier(model, class_names=dataset.class_names).save_to_preset(run.folder, card=metrics)
    image = run.folder / "test_image.png"
    write_png(image, dataset.x_test[0].squeeze(), {"class": dataset.class_names[dataset.y_test[0]]})
    metrics["broken_files"] = list(dataset.broken)
    return run.save_metrics(metrics, ["zoo", "classify", str(image), "--model", str(run.folder)])


if __name__ == "__main__":
    run_recipe(main, parse_args())
