"""Train the 48x48 CNN on handwritten digits and evaluate it on the test images.

    KERAS_BACKEND=tensorflow python recipes/cnn_mnist.py

Five epochs of MNIST: test accuracy 99.45 %, test loss 0.0167 (the preset `cnn_mnist`), 26 minutes on 2 CPU cores.
Where MNIST is not at hand, scikit-learn's 1,797 digits: three minutes, 98.05 %.
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
from zoo.training.initial_weights import set_initial_weights
from zoo.training.optimizers import TorchAdam
from zoo.training.run import Run, print_wrapped, save_metrics
from zoo.training.schedules import InverseSquareRoot, limit_warmup, warmup_cosine


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, "dataset", "data_dir", epochs=5, batch_size=64)
    flags.add(parser, optimizer="adam", learning_rate=1e-3, schedule="cosine", weight_decay=1e-4)
    flags.add(parser, *flags.FINE_TUNING_FLAGS, *flags.RUN_FLAGS)
    flags.add_fallback(parser, "digits", epochs=10)
    return parser.parse_args(argv)


def main(args):
    flags.check(args)

    # Data: images (N, H, W, 1) uint8, a twelfth of the training images held out for validation.
    name, remark = (args.dataset, None) if args.dataset else data.default_image_dataset(args.data_dir)
    if remark:
        print_wrapped(remark)
    print(f"Reading {name} …", flush=True)
    dataset = data.load_images(name, args.data_dir)
    if dataset.name == "digits":
        flags.use_fallback(args)
    print_wrapped(
        f"{keras.backend.backend()} backend · {dataset.name}: {len(dataset.x_train):,} training and "
        f"{len(dataset.x_test):,} test images, {len(dataset.class_names)} classes",
    )
    folder = pathlib.Path(args.output or f"runs/cnn_mnist-{dataset.name}")
    if args.evaluate:
        task = zoo.ImageClassifier.from_preset(args.evaluate)
        folder = folder / "evaluation"
        names = task.card.get("class_names")
        metrics = evaluate_classifier(task.model, dataset, folder, limit=args.limit, class_names=names)
        return save_metrics(folder, metrics)
    pretrained = fine_tuning.load_pretrained(args.init_from, task="image-classification", devices=args.devices)
    run = Run(args, folder=folder, data_sha256=dataset.fingerprint(), pretrained=pretrained)
    (x_train, y_train), (x_val, y_val) = data.split_validation(
        dataset, fraction=1 / 12, seed=args.seed, limit=args.limit
    )
    train = data.Batches(x_train, y_train, batch_size=args.batch_size, seed=args.seed)
    validation = data.Batches(x_val, y_val, batch_size=256, seed=None) if len(x_val) else None

    with zoo.strategy(args.devices, parallel=args.parallel, precision=args.precision):
        # Model: the CNN behind two pipelines that share its weights; the one for training augments.
        classifier = cnn(num_classes=len(dataset.class_names), dropout=0.0 if args.parity else 0.5)
        set_initial_weights(classifier, seed=args.seed, initializer="he")
        run.fine_tuning |= fine_tuning.init_classifier(
            classifier, pretrained, class_names=dataset.class_names, new_head=args.new_head
        )
        classifier.summary()
        input_shape = (None, None, dataset.x_train.shape[-1])
        pipeline = preprocessing("test", input_shape=input_shape, seed=args.seed)
        augmentation = preprocessing("test" if args.parity else "train", input_shape=input_shape, seed=args.seed)
        model = attach_preprocessing(pipeline, classifier, name=f"{classifier.name}_{dataset.name}")
        training_model = attach_preprocessing(augmentation, classifier, name=f"{model.name}_train")
        set_random_streams(training_model, seed=args.seed)

        # Schedule: Adam's first steps move every weight by the full rate whatever its gradient. Over the 18,432 inputs
        # of the first dense layer that adds up: without a warm-up the loss jumps from 2.4 to 6.7 at the second step.
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
                callbacks=run.callbacks(train, examples=len(x_train)),
                shuffle=False,
                verbose=run.verbose,
            )
        fine_tuning.unfreeze(training_model)
    return save_and_report(run, model, dataset)


@on_main_process
def save_and_report(run, model, dataset):
    model = to_single_device(model)
    plot_training_curves(run.folder / "training_curves.png", run.history)
    metrics = run.metrics() | evaluate_classifier(model, dataset, run.folder, limit=run.args.limit)
    metrics["validation_accuracy"] = run.history[-1].get("val_accuracy")
    zoo.ImageClassifier(model, class_names=dataset.class_names).save_to_preset(run.folder, card=metrics)
    image = run.folder / "test_image.png"
    write_png(image, dataset.x_test[0].squeeze(), {"class": dataset.class_names[dataset.y_test[0]]})
    return run.save_metrics(metrics, ["zoo", "classify", str(image), "--model", str(run.folder)])


if __name__ == "__main__":
    run_recipe(main, parse_args())
