"""What the language-model recipe is made of: flags, training on streams or windows, exact evaluation, report."""

import argparse
import pathlib
import shlex
import sys
import time

import keras
import numpy as np
from keras import ops

from zoo import data
from zoo.blocks.random_streams import set_random_streams
from zoo.compat.keras import zero_weight_init
from zoo.distribution import strategy as distribution
from zoo.errors import UserError
from zoo.evaluation import language
from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
from zoo.generation import recurrent as writing
from zoo.io import files, model_files
from zoo.models import rnn_language_model as rnn
from zoo.tokenizers import text as tokenizers
from zoo.training import callbacks
from zoo.training.checkpoints import load_checkpoint
from zoo.training.run import run_metadata, learning_rate
from zoo.training.initial_weights import set_initial_weights
from zoo.training.loop import train
from zoo.training.optimizers import TorchAdam

set_compiler_flags()

SETTINGS = (
    *("cell", "level", "embedding_dim", "units", "num_layers", "dropout", "tie_embeddings", "vocabulary"),
    *("epochs", "batch_size", "length", "learning_rate", "schedule", "weight_decay", "clip", "patience"),
    *("windows", "seed", "limit", "parity"),
)


def argument_parser(doc, *, output):
    """The flags of a language-model recipe; those of the image recipes mean the same."""
    parser = argparse.ArgumentParser(
        description=doc.strip().splitlines()[0],
        epilog="The backend is chosen by the environment: KERAS_BACKEND=tensorflow, jax or torch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--cell", choices=tuple(rnn.CELLS), default="lstm")
    add("--level", choices=tokenizers.LEVELS, default="char", help="what a token is")
    add("--text", metavar="FILE", default=None, help="a UTF-8 text of yours to learn from")
    add("--data-dir", default=None, help="where tiny shakespeare is")
    add("--vocabulary", type=int, default=None, help="most entries, for words and byte-pair pieces")
    add("--embedding-dim", type=int, default=64)
    add("--units", type=int, default=512)
    add("--num-layers", type=int, default=2)
    add("--dropout", type=float, default=0.5)
    add("--tie-embeddings", action="store_true", help="one table for tokens and logits")
    add("--epochs", type=int, default=20)
    add("--batch-size", type=int, default=32, help="streams side by side")
    add("--length", type=int, default=64, help="tokens between two cuts of the gradient")
    add("--learning-rate", type=float, default=2e-3, help="of Adam; the highest of a schedule")
    add("--schedule", choices=("cosine", "constant"), default="cosine", help="cosine rises, then falls to 0")
    add("--weight-decay", type=float, default=0.0, help="decoupled, as AdamW")
    add("--clip", type=float, default=1.0, help="largest norm of all gradients together")
    add("--patience", type=int, default=4, help="stop after so many epochs without a better validation loss")
    add("--windows", action="store_true", help="shuffled windows from zero states instead of carried states")
    add("--seed", type=int, default=0)
    add("--limit", type=int, default=None, help="at most this many characters of the text")
    add("--parity", action="store_true", help="no dropout: the same losses on every backend")
    distribution.add_flags(add)
    add("--output", default=output, help="folder for everything the run makes")
    add("--resume", action="store_true", help="continue an interrupted run from its last finished epoch")
    add("--evaluate", metavar="FILE", default=None, help="evaluate a saved model instead of training")
    return parser


def check_arguments(args):
    """Raise UserError for numbers out of range."""
    for flag in ("epochs", "batch_size", "length", "limit", "patience"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(args, flag)}.")
    for flag in ("learning_rate", "weight_decay", "seed", "clip"):
        if getattr(args, flag) < 0:
            raise UserError(f"--{flag.replace('_', '-')} must not be negative, got {getattr(args, flag)}.")


def open_text(args):
    """Load the text and say in one line what it is."""
    dataset, remark = data.load_text(file=args.text, data_dir=args.data_dir)
    if args.limit:
        dataset = data.TextDataset(dataset.name, dataset.text[: args.limit], dataset.source)
    if remark:
        print(remark, flush=True)
    print(f"{keras.backend.backend()} backend · {dataset.name}: {len(dataset.text):,} characters", flush=True)
    return dataset


def make_tokenizer(dataset, args):
    """Characters are those of the whole text; words and pieces are learned from the training part."""
    text = dataset.text if args.level == "char" else dataset.split("train")
    tokenizer = tokenizers.train_tokenizer(text, args.level, vocabulary_size=args.vocabulary)
    print(f"{args.level} tokenizer with {tokenizer.get_vocab_size():,} entries", flush=True)
    return tokenizer


def build(args, vocabulary_size):
    """(model to train, model to use), with equal weights.

    The first carries its states from batch to batch, unless `--windows` asks for windows that begin from zero.
    """
    numbers = {key: getattr(args, key) for key in ("cell", "embedding_dim", "units", "num_layers", "tie_embeddings")}
    numbers |= {"vocabulary_size": vocabulary_size, "dropout": 0.0 if args.parity else args.dropout, "seed": args.seed}
    rows = distribution.current().per_replica_batch_size(args.batch_size)
    try:
        with zero_weight_init(), distribution.outside_scope():
            model = rnn.rnn_language_model(**numbers)
        with zero_weight_init():
            training_model = rnn.rnn_language_model(
                **numbers, stateful_batch_size=None if args.windows else rows, name=f"{model.name}_train"
            )
    except ValueError as error:
        raise UserError(str(error)) from error
    set_initial_weights(model, seed=args.seed, initializer="recurrent")
    copy_weights(model, training_model)
    set_random_streams(training_model, seed=args.seed)
    return training_model, model


def copy_weights(source, target):
    """Give one model the weights of another of the same architecture; carried states stay."""
    for old, new in zip(source.trainable_variables, target.trainable_variables, strict=True):
        new.assign(np.array(ops.convert_to_numpy(old)))


def fit(training_model, model, tokenizer, dataset, args):
    """Train with checkpoints, samples and early stopping; the best epoch's weights end in both models.

    Returns:
        (history rows, first 20 losses).
    """
    folder = files.prepare_folder(args.output)
    ids = {part: tokenizers.encode(tokenizer, dataset.split(part)) for part in ("train", "validation")}
    batch = {"batch_size": args.batch_size, "sequence_length": args.length}
    batches = (data.ShuffledWindows if args.windows else data.BPTTBatches)(ids["train"], **batch, seed=args.seed)
    validation = data.BPTTBatches(ids["validation"], **batch)
    training_model.compile(
        optimizer=TorchAdam(
            learning_rate(args, steps=args.epochs * len(batches)),
            weight_decay=args.weight_decay,
            decoupled_weight_decay=True,
            global_clipnorm=args.clip or None,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    use_fast_paths(training_model)
    settings = {key: getattr(args, key) for key in SETTINGS} | {"data": dataset.fingerprint()}
    history = load_checkpoint(folder / "checkpoint.npz", training_model, settings=settings) if args.resume else []
    best = callbacks.BestCheckpoint(folder / "best.npz", patience=args.patience, history=history)
    first = callbacks.LossRecorder()
    log = callbacks.TrainingLog(
        folder, "checkpoint.npz", settings=settings, history=history, examples=batches.tokens.size, unit="tokens"
    )
    samples = callbacks.SampleText(
        folder / "samples.txt", lambda: sample(training_model, model, tokenizer, dataset, args)
    )
    if not best.exhausted:
        train(
            training_model,
            batches,
            log=log,
            epochs=args.epochs,
            # The best weights are written before the checkpoint: a run killed between resumes before both.
            callbacks=[callbacks.ResetStates(), first, best, log, samples],
            validation_data=validation,
        )
    best.restore(training_model)
    copy_weights(training_model, model)
    return log.history, first.losses


def sample(training_model, model, tokenizer, dataset, args, length=200):
    """What the model writes now, after the first line of the validation part."""
    copy_weights(training_model, model)
    prompt = dataset.split("validation").strip().partition("\n")[0][:80] + "\n"
    with distribution.outside_scope():
        text = writing.generate(model, tokenizer, prompt, length=length, seed=args.seed, temperature=0.8)
        return prompt + "".join(text)


def nats(model, ids, *, length=64):
    """Negative log-likelihood of each token after the first, in nats, each seen with all the text before it.

    The text is read once from start to end with carried states, so that the result does not depend on how it is cut.

    Args:
        model: a language model.
        ids: token ids (N,), at least 2.
        length: tokens read at once.

    Returns:
        float64 array (N - 1,).
    """
    reader = rnn.rnn_language_model(**rnn.infer_config(model), stateful_batch_size=1)
    copy_weights(model, reader)
    use_fast_paths(reader)
    ids, losses = np.asarray(ids, np.int32), []
    for begin in range(0, len(ids) - 1, length):
        read, wanted = ids[begin : begin + length], ids[begin + 1 : begin + length + 1]
        # The last part is filled up: what comes after a token changes nothing, and a backend compiles one length.
        logits = reader.predict_on_batch(np.pad(read, (0, length - len(read)))[None])[0, : len(wanted)]  # (T, v)
        losses.append(ops.convert_to_numpy(ops.logsumexp(logits, axis=-1)) - logits[np.arange(len(wanted)), wanted])
    return np.concatenate(losses).astype(np.float64)


def report(model, tokenizer, dataset, folder, *, extra=None):
    """Evaluate on validation and test; print and write the report and `metrics.json`; returns the metrics."""
    folder = files.prepare_folder(folder)
    metrics = {"parameters": model.count_params(), "dataset": dataset.name, "data_sha256": dataset.fingerprint()}
    for part in ("validation", "test"):
        text = dataset.split(part)
        ids = tokenizers.encode(tokenizer, text)
        if len(ids) < 2:
            raise UserError(f"The {part} part of the text holds {len(ids)} tokens: give a longer text.")
        losses = nats(model, ids)
        metrics |= {
            f"{part}_{key}": value
            for key, value in language.scores(losses, characters=len(text) - len(tokenizer.decode(ids[:1]))).items()
        }
    text = language.text_report(metrics)
    print("\n" + text, flush=True)
    files.write_text(folder / "report.txt", text + "\n")
    metrics |= {"command": f"KERAS_BACKEND={keras.backend.backend()} python {shlex.join(sys.argv)}", **run_metadata()}
    metrics |= extra or {}
    files.write_json(folder / "metrics.json", metrics)
    return metrics


@distribution.on_main_process
def finish(model, tokenizer, history, first_losses, dataset, args, *, began):
    """Save the model and its tokenizer, draw the curves, report, and remove what only a resumed run needs."""
    folder = pathlib.Path(args.output)
    model_files.save_model(model, folder / "model.keras")
    tokenizers.save_tokenizer(tokenizer, folder / "tokenizer.json")
    language.save_training_curves(folder / "training_curves.png", history)
    seconds = sum(row["seconds"] for row in history)
    extra = {
        **{key: getattr(args, key) for key in SETTINGS},
        "epochs_trained": len(history),
        "first_losses": first_losses,
        "wall_seconds": round(time.perf_counter() - began, 1),
        "training_seconds": round(seconds, 1),
        "tokens_per_second": round(sum(row["tokens_per_second"] * row["seconds"] for row in history) / seconds, 1),
        "model_sha256": files.sha256(folder / "model.keras"),
        "tokenizer_sha256": files.sha256(folder / "tokenizer.json"),
    }
    metrics = report(model, tokenizer, dataset, folder, extra=extra)
    for leftover in ("checkpoint.npz", "best.npz"):
        files.remove(folder / leftover)
    print(f"Model, tokenizer, samples and curves are in {folder}/ ({metrics['tokens_per_second']:,.0f} tokens/s).")
    return metrics
