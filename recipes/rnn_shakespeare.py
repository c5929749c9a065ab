"""Train a recurrent language model on Shakespeare's plays and evaluate how well it predicts them.

    KERAS_BACKEND=torch python recipes/rnn_shakespeare.py --data-dir FOLDER \\
        --cell lstm --dropout 0.3 --epochs 7

Tiny shakespeare, by characters: 1.996 bits per character on the validation part, 2.187 on the test part (the preset
`lstm_shakespeare`), 10 minutes on 2 CPU cores; with `--cell gru` 2.066 and 2.225 (`gru_shakespeare`).
Where it is not at hand, the help texts that ship with Python: about four minutes.
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
from zoo.distribution import strategy as distribution
from zoo.distribution.launch import run_recipe
from zoo.errors import UserError
from zoo.evaluation.language import plot_training_curves
from zoo.evaluation.reports import evaluate_language_model
from zoo.io import files
from zoo.io.weight_memory import zero_weight_init
from zoo.models.rnn_language_model import copy_weights, infer_config, rnn_language_model
from zoo.tokenizers.text import encode, train_tokenizer
from zoo.training import fine_tuning, flags
from zoo.training.callbacks import BestCheckpoint, ResetStates, SampleText
from zoo.training.initial_weights import set_initial_weights
from zoo.training.optimizers import TorchAdam
from zoo.training.run import Run, print_wrapped, save_metrics
from zoo.training.schedules import InverseSquareRoot, limit_warmup, warmup_cosine

SIZES = ("cell", "embedding_dim", "units", "num_layers", "tie_embeddings")


def parse_args(argv=None):
    parser = flags.parser(__doc__)
    flags.add(parser, "text", "data_dir", tokenizer="char", vocabulary_size=None)
    flags.add(parser, cell="lstm", embedding_dim=64, units=512, num_layers=2, dropout=0.5, tie_embeddings=False)
    flags.add(parser, epochs=20, batch_size=32, sequence_length=64, stateless=False, patience=4)
    flags.add(parser, optimizer="adamw", learning_rate=2e-3, schedule="cosine", weight_decay=0.0, global_clipnorm=1.0)
    flags.add(parser, *flags.FINE_TUNING_FLAGS, *flags.RUN_FLAGS)
    flags.add_fallback(parser, "Python's help texts", units=256, epochs=5, dropout=0.2)
    return parser.parse_args(argv)


def main(args):
    flags.check(args)

    # Data: a text, in order 90 % for training, 5 % for validation and 5 % for the test, as token ids.
    print("Reading the text …", flush=True)
    dataset, remark = data.load_text(file=args.text, data_dir=args.data_dir)
    if args.limit:
        dataset = data.TextDataset(dataset.name, dataset.text[: args.limit], dataset.source)
    if remark:
        print_wrapped(remark)
        flags.use_fallback(args)
    print(f"{keras.backend.backend()} backend · {dataset.name}: {len(dataset.text):,} characters", flush=True)
    folder = pathlib.Path(args.output or f"runs/rnn_shakespeare-{dataset.name}-{args.cell}-{args.tokenizer}")
    if args.evaluate:
        task = zoo.CausalLM.from_preset(args.evaluate)
        folder = folder / "evaluation"
        return save_metrics(folder, evaluate_language_model(task.model, task.tokenizer, dataset, folder))
    pretrained = fine_tuning.load_pretrained(
        args.init_from, task="text-generation", with_tokenizer=True, devices=args.devices
    )
    fine_tuning.adopt_config(args, pretrained, infer_config, *SIZES)
    tokenizer = fine_tuning.adopt_tokenizer(args, pretrained, dataset.text)
    run = Run(args, folder=folder, data_sha256=dataset.fingerprint(), pretrained=pretrained)
    # Characters are those of the whole text; words and byte-pair pieces are learned from the training part.
    tokenizer = tokenizer or train_tokenizer(
        dataset.text if args.tokenizer == "char" else dataset.split("train"),
        args.tokenizer,
        vocabulary_size=args.vocabulary_size,
    )
    print(f"{args.tokenizer} tokenizer with {tokenizer.get_vocab_size():,} entries", flush=True)
    token_ids = {split: encode(tokenizer, dataset.split(split)) for split in ("train", "validation")}
    batch = {"batch_size": args.batch_size, "sequence_length": args.sequence_length}
    train = (data.ShuffledWindows if args.stateless else data.BPTTBatches)(token_ids["train"], **batch, seed=args.seed)
    validation = data.BPTTBatches(token_ids["validation"], **batch)

    with zoo.strategy(args.devices, parallel=args.parallel, precision=args.precision) as devices:
        # Model: one to train, whose states are carried from batch to batch (truncated backpropagation through time),
        # and one to use, of any batch size; their weights are equal.
        config = {
            "vocabulary_size": tokenizer.get_vocab_size(),
            **{key: getattr(args, key) for key in SIZES},
            "dropout": 0.0 if args.parity else args.dropout,
            "seed": args.seed,
        }
        stateful_batch_size = None if args.stateless else devices.per_replica_batch_size(args.batch_size)
        try:
            with zero_weight_init(), distribution.outside_scope():
                model = rnn_language_model(**config)
            with zero_weight_init():
                training_model = rnn_language_model(
                    **config, stateful_batch_size=stateful_batch_size, name=f"{model.name}_train"
                )
        except ValueError as error:
            raise UserError(str(error)) from error
        set_initial_weights(model, seed=args.seed, initializer="recurrent")
        run.fine_tuning |= fine_tuning.init_language_model(model, pretrained, tokenizer, new_head=args.new_head)
        copy_weights(model, training_model)
        set_random_streams(training_model, seed=args.seed)
        model.summary()

        steps = args.epochs * len(train)
        peak, warmup_steps = limit_warmup(args.learning_rate, steps=steps, warmup_steps=200)
        learning_rate = {
            "cosine": warmup_cosine(peak, steps=steps, warmup_steps=warmup_steps),
            "inverse-sqrt": InverseSquareRoot(peak, warmup_steps),
            "constant": args.learning_rate,
        }[args.schedule]
        optimizer = TorchAdam(
            learning_rate,
            weight_decay=args.weight_decay,
            decoupled_weight_decay=args.optimizer == "adamw",
            global_clipnorm=args.global_clipnorm or None,  # recurrent gradients explode now and then
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        run.fine_tuning |= fine_tuning.set_trainable(training_model, freeze=args.freeze, train_only=args.train_only)
        training_model.compile(optimizer=optimizer, loss=loss)

        prompt = dataset.split("validation").strip().partition("\n")[0][:80] + "\n"

        def generate():
            copy_weights(training_model, model)
            with distribution.outside_scope():
                return zoo.CausalLM(model, tokenizer).generate(
                    prompt, max_new_tokens=200, temperature=0.8, seed=args.seed
                )

        run.prepare(training_model)
        best = BestCheckpoint(run.folder / "best.npz", patience=args.patience, history=run.history)
        samples = SampleText(run.folder / "samples.txt", generate)
        if not best.out_of_patience:
            with run.interruptible():
                training_model.fit(
                    train,
                    validation_data=validation,
                    epochs=args.epochs,
                    initial_epoch=run.initial_epoch,
                    callbacks=[
                        ResetStates(),
                        best,
                        *run.callbacks(train, examples=train.tokens.size, unit="tokens"),
                        samples,
                    ],
                    shuffle=False,
                    verbose=run.verbose,
                )
        best.restore(training_model)
        copy_weights(training_model, model)
    return save_and_report(run, model, tokenizer, dataset)


@distribution.on_main_process
def save_and_report(run, model, tokenizer, dataset):
    plot_training_curves(run.folder / "training_curves.png", run.history)
    metrics = run.metrics() | evaluate_language_model(model, tokenizer, dataset, run.folder)
    zoo.CausalLM(model, tokenizer).save_to_preset(run.folder, card=metrics)
    files.remove(run.folder / "best.npz")
    prompt = dataset.split("test").split()[0]
    return run.save_metrics(metrics, ["zoo", "generate", str(run.folder), prompt])


if __name__ == "__main__":
    run_recipe(main, parse_args())
