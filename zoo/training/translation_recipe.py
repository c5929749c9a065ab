"""What the translation recipe is made of: flags, batches of like length, BLEU while training, averaging, report."""

import argparse
import pathlib
import shlex
import sys
import time

import keras
import numpy as np

from zoo import data
from zoo.blocks.random_streams import set_random_streams
from zoo.compat.keras import zero_weight_init
from zoo.distribution import strategy as distribution
from zoo.errors import UserError, did_you_mean
from zoo.evaluation import translation as reports
from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
from zoo.io import cards, files, model_files
from zoo.models import transformer as models
from zoo.tasks.translator import Translator
from zoo.tokenizers.shared_bpe import SharedBPETokenizer
from zoo.training import callbacks
from zoo.training.checkpoints import load_checkpoint
from zoo.training.run import run_metadata
from zoo.training.initial_weights import set_initial_weights
from zoo.training.loop import train
from zoo.training.losses import LabelSmoothingCrossEntropy
from zoo.training.optimizers import TorchAdam
from zoo.training.schedules import InverseSquareRoot, warmup_cosine

set_compiler_flags()

SETTINGS = (
    *("source", "target", "variant", "num_layers", "width", "inner", "num_heads", "pre_norm"),
    *("dropout", "smoothing", "vocabulary"),
    *("epochs", "batch_tokens", "learning_rate", "schedule", "warm_up", "average", "seed", "limit", "parity"),
)
SIZES = ("num_layers", "width", "inner", "num_heads")


def argument_parser(doc, *, output):
    """The flags of a translation recipe; those of the other recipes mean the same."""
    parser = argparse.ArgumentParser(
        description=doc.strip().splitlines()[0],
        epilog="The backend is chosen by the environment: KERAS_BACKEND=tensorflow, jax or torch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--source", default="de", metavar="LANGUAGE", help="language to translate from")
    add("--target", default="en", metavar="LANGUAGE", help="language to translate into")
    add("--data-dir", default=None, help="folder of Multi30k, task 1")
    add("--pairs", nargs="+", metavar="FILE", default=None, help="sentences of yours: one TSV, or two aligned files")
    add("--variant", choices=tuple(models.VARIANTS), default="tiny", help="sizes of the model")
    for size in SIZES:
        add(f"--{size.replace('_', '-')}", type=int, default=None, help="instead of the variant's")
    add("--pre-norm", action="store_true", help="normalise what goes into a sublayer, not what comes out")
    add("--vocabulary", type=int, default=8000, help="most entries of the joint byte-pair tokenizer")
    add("--dropout", type=float, default=0.3)
    add("--smoothing", type=float, default=0.1, help="of the labels")
    add("--epochs", type=int, default=30)
    add("--batch-tokens", type=int, default=2048, help="most tokens of a batch on each side, padding included")
    add("--learning-rate", type=float, default=2e-3, help="of Adam; the highest of a schedule")
    add(
        "--schedule",
        choices=("inverse-sqrt", "cosine", "constant"),
        default="inverse-sqrt",
        help="inverse-sqrt and cosine rise first",
    )
    add("--warm-up", type=int, default=1000, help="steps until the highest rate of inverse-sqrt")
    add("--average", type=int, default=5, metavar="N", help="use the mean of the weights of the last N epochs")
    add("--seed", type=int, default=0)
    add("--limit", type=int, default=None, help="at most this many pairs to train, validate and test")
    add("--parity", action="store_true", help="no dropout: the same losses on every backend")
    distribution.add_flags(add)
    add("--output", default=output, help="folder for everything the run makes")
    add("--resume", action="store_true", help="continue an interrupted run from its last finished epoch")
    add("--evaluate", metavar="FILE", default=None, help="evaluate a saved model instead of training")
    return parser


def check_arguments(args):
    """Raise UserError for numbers out of range."""
    for flag in ("epochs", "batch_tokens", "limit", "warm_up", "average"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(args, flag)}.")
    for flag in ("learning_rate", "seed"):
        if getattr(args, flag) < 0:
            raise UserError(f"--{flag.replace('_', '-')} must not be negative, got {getattr(args, flag)}.")
    if not 0 <= args.smoothing < 1:
        raise UserError(f"--smoothing must be in [0, 1), got {args.smoothing}.")


def open_pairs(args):
    """Load the pairs and say in one line what they are."""
    dataset, remark = data.load_pairs(args.source, args.target, data_dir=args.data_dir, pairs=args.pairs)
    if args.limit:
        parts = {part: getattr(dataset, part)[: args.limit] for part in ("train", "validation", "test")}
        dataset = data.PairDataset(dataset.name, dataset.source_lang, dataset.target_lang, **parts)
    if remark:
        print(remark, flush=True)
    print(
        f"{keras.backend.backend()} backend · {dataset.name}, {args.source} to {args.target}: {len(dataset.train):,} "
        f"pairs to train, {len(dataset.validation):,} to validate, {len(dataset.test):,} to test",
        flush=True,
    )
    return dataset


def make_tokenizer(dataset, args):
    """A joint byte-pair tokenizer, learned from the training part."""
    tokenizer = SharedBPETokenizer.train(
        [sentence for pair in dataset.train for sentence in pair], vocabulary_size=args.vocabulary
    )
    print(f"joint byte-pair tokenizer with {tokenizer.vocabulary_size:,} entries", flush=True)
    return tokenizer


def build(args, tokenizer):
    """The model, with weights made by NumPy from the seed."""
    sizes = models.VARIANTS[args.variant] | {size: getattr(args, size) for size in SIZES if getattr(args, size)}
    try:
        with zero_weight_init():
            model = models.transformer(
                vocabulary_size=tokenizer.vocabulary_size,
                **sizes,
                pre_norm=args.pre_norm,
                dropout=0.0 if args.parity else args.dropout,
                pad_id=tokenizer.pad_id,
                seed=args.seed,
                name=f"transformer_{args.source}_{args.target}",
            )
    except ValueError as error:
        raise UserError(str(error)) from error
    set_initial_weights(model, seed=args.seed, initializer="transformer")
    set_random_streams(model, seed=args.seed)
    return model


def fit(model, tokenizer, dataset, args):
    """Train with checkpoints and validation BLEU; the mean of the last epochs' weights ends in the model.

    Returns:
        (history rows, first 20 losses).
    """
    folder = files.prepare_folder(args.output)
    batches, validation = (
        data.BucketedBatches(
            encoded(tokenizer, getattr(dataset, part)),
            batch_tokens=args.batch_tokens,
            pad_id=tokenizer.pad_id,
            start_id=tokenizer.start_id,
            seed=args.seed if part == "train" else None,
        )
        for part in ("train", "validation")
    )
    model.compile(
        optimizer=TorchAdam(rate(args, steps=args.epochs * len(batches)), beta_2=0.98, epsilon=1e-9),
        loss=LabelSmoothingCrossEntropy(args.smoothing),
    )
    use_fast_paths(model)
    settings = {key: getattr(args, key) for key in SETTINGS} | {"data": dataset.fingerprint()}
    history = load_checkpoint(folder / "checkpoint.npz", model, settings=settings) if args.resume else []
    first = callbacks.LossRecorder()
    log = callbacks.TrainingLog(
        folder, "checkpoint.npz", settings=settings, history=history, examples=batches.target_tokens, unit="tokens"
    )
    average = callbacks.CheckpointAveraging(folder, num_checkpoints=args.average)
    bleu = callbacks.ValidationScore("val_bleu", lambda: validation_bleu(model, tokenizer, dataset))
    train(
        model,
        batches,
        log=log,
        epochs=args.epochs,
        callbacks=[first, average, bleu, log],  # what the log's checkpoint needs to go on comes before it
        validation_data=validation,
    )
    average.restore(model, epochs=args.epochs)
    return log.history, first.losses


def encoded(tokenizer, pairs):
    """Ids of both sides of each pair, ends included."""
    sources, targets = (tokenizer.encode_batch([pair[side] for pair in pairs]) for side in (0, 1))
    return list(zip(sources, targets))


def rate(args, *, steps):
    """The learning rate: a number or a schedule."""
    warm_up = min(args.warm_up, max(1, steps // 4))
    if args.schedule == "inverse-sqrt":
        return InverseSquareRoot(args.learning_rate, warm_up)
    if args.schedule == "cosine":
        return warmup_cosine(args.learning_rate, steps=steps, warmup_steps=warm_up)
    return args.learning_rate


def validation_bleu(model, tokenizer, dataset):
    """Greedy BLEU on the validation part."""
    sources, references = zip(*dataset.validation)
    with distribution.outside_scope():
        translator = Translator(distribution.to_single_device(model), tokenizer)
        return reports.bleu(translator.translate(list(sources), beams=1), references)[0]


def report(model, tokenizer, dataset, folder, *, extra=None):
    """Translate the test part; print and write the report, sample translations and attention maps; returns metrics."""
    folder = files.prepare_folder(folder)
    translator, metrics = Translator(model, tokenizer), {"parameters": model.count_params(), "dataset": dataset.name}
    metrics |= {"source": dataset.source_lang, "target": dataset.target_lang, "data_sha256": dataset.fingerprint()}
    sources, references = (list(side) for side in zip(*dataset.test))
    for beams in (1, 5):
        began = time.perf_counter()
        translations = translator.translate(sources, beams=beams)
        seconds = time.perf_counter() - began
        metrics[f"test_bleu_beam_{beams}"], metrics["signature"] = reports.bleu(translations, references)
        metrics[f"test_exact_beam_{beams}"] = float(np.mean([a == b for a, b in zip(translations, references)]))
        metrics[f"sentences_per_second_beam_{beams}"] = round(len(sources) / seconds, 1)
    metrics["test_pairs"] = len(sources)
    text = reports.text_report(metrics, list(zip(sources, references, translations)))
    print("\n" + text, flush=True)
    files.write_text(folder / "report.txt", text + "\n")
    files.write_text(folder / "translations.txt", "\n".join(translations) + "\n")
    reports.save_attention(folder / "attention.png", *translator.attention(sources[0], translations[0]))
    metrics |= {"command": f"KERAS_BACKEND={keras.backend.backend()} python {shlex.join(sys.argv)}", **run_metadata()}
    metrics |= extra or {}
    files.write_json(folder / "metrics.json", metrics)
    return metrics


@distribution.on_main_process
def finish(model, tokenizer, history, first_losses, dataset, args, *, began):
    """Save the model and its tokenizer, draw the curves, report, and remove what only a resumed run needs."""
    folder, model = pathlib.Path(args.output), distribution.to_single_device(model)
    model_files.save_model(model, folder / "model.keras")
    tokenizer.save(folder / "tokenizer.json")
    reports.save_training_curves(folder / "training_curves.png", history)
    seconds = sum(row["seconds"] for row in history)
    extra = {
        **{key: getattr(args, key) for key in SETTINGS},
        "first_losses": first_losses,
        "validation_bleu": history[-1]["val_bleu"],
        "wall_seconds": round(time.perf_counter() - began, 1),
        "training_seconds": round(seconds, 1),
        "tokens_per_second": round(sum(row["tokens_per_second"] * row["seconds"] for row in history) / seconds, 1),
        "model_sha256": files.sha256(folder / "model.keras"),
        "tokenizer_sha256": files.sha256(folder / "tokenizer.json"),
    }
    metrics = report(model, tokenizer, dataset, folder, extra=extra)
    for leftover in ("checkpoint.npz", *(path.name for path in folder.glob("epoch_*.npz"))):
        files.remove(folder / leftover)
    print(
        f"Model, tokenizer, translations and pictures are in {folder}/ ({metrics['tokens_per_second']:,.0f} tokens/s)."
    )
    return metrics


def check_languages(dataset, path):
    """Raise UserError where a card says that a model translates between other languages than those of the data."""
    card = cards.read_card(path) or {}
    for side in ("source", "target"):
        if side in card and card[side] != getattr(dataset, side):
            raise UserError(
                f"{path} translates {card['source']} to {card['target']}: give --source {card['source']} --target "
                f"{card['target']}.{did_you_mean(getattr(dataset, side), [card[side]])}"
            )
