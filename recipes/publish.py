"""Copy a finished run into saved_models/ with the card that describes it and the golden record that verifies it.

python recipes/publish.py runs/cnn_mnist saved_models/cnn_mnist.keras --input "…" --data-licence "MNIST: CC BY-SA 3.0 …"

The tokenizer of a language or translation model is copied beside it.
"""

import argparse
import json
import pathlib
import shutil
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # works from a checkout, installed or not

from zoo.errors import UserError, run_command
from zoo.io import cards, files
from zoo.parity.records import make_golden
from zoo.tasks.translator import load_tokenizer
from zoo.tokenizers import text as tokenizers

RUN = (
    *("command", "backend", "versions", "machine", "dataset", "data_sha256", "seed", "epochs", "learning_rate"),
    *("schedule", "parameters", "training_seconds"),
)
# What a card takes over from metrics.json, in this order. The kind of card goes by what was measured.
CARDS = {
    "test_accuracy": (
        *(
            *RUN,
            "batch_size",
            "weight_decay",
            "decay_kind",
            "test_images",
            "test_accuracy",
            "test_loss",
            "validation_accuracy",
            "class_names",
        ),
    ),
    "test_bits_per_character": (
        *(*RUN, "batch_size", "weight_decay", "epochs_trained", "length", "dropout", "clip", "patience", "windows"),
        *("cell", "level", "vocabulary", "embedding_dim", "units", "num_layers", "tie_embeddings"),
        *("validation_loss", "validation_perplexity", "validation_bits_per_character", "validation_tokens"),
        *("test_loss", "test_perplexity", "test_bits_per_character", "test_tokens", "tokenizer_sha256"),
    ),
    "test_bleu_beam_5": (
        *(*RUN, "source", "target", "variant", "num_layers", "width", "inner", "num_heads", "pre_norm", "vocabulary"),
        *("batch_tokens", "warm_up", "dropout", "smoothing", "average", "validation_bleu"),
        *("test_bleu_beam_1", "test_bleu_beam_5", "signature", "test_pairs", "tokenizer_sha256"),
    ),
}
# What a translation model reads and has written for its golden record.
SENTENCES = {
    "de": "Ein brauner Hund läuft mit einem Ball im Maul über den nassen Strand.",
    "en": "A brown dog is running across the wet beach with a ball in its mouth.",
}
# What a language model reads for its golden record: real text, so that its states are those of real use.
TEXT = """HAMLET:
To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles
And by opposing end them.
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder that a recipe made")
    parser.add_argument("target", help="the .keras file to write; its card goes beside it")
    parser.add_argument("--input", required=True, help="what the model takes, for the reader of the card")
    parser.add_argument("--data-licence", required=True, help="licence or terms of the training data")
    return parser.parse_args(argv)


def main(args):
    run, target = pathlib.Path(args.run), pathlib.Path(args.target)
    if target.suffix != ".keras":
        raise UserError(f"The file to write is {target}: give it a name that ends with .keras.")
    described = read_metrics(run / "metrics.json")
    copies = {run / "model.keras": (target, described.pop("model_sha256"))}
    if "tokenizer_sha256" in described:
        copies[(run / "model.keras").with_name(cards.TOKENIZER_FILE)] = target.with_name(cards.TOKENIZER_FILE), described["tokenizer_sha256"]
    for source, (_, digest) in copies.items():
        if not source.is_file() or files.sha256(source) != digest:
            raise UserError(f"{source} is missing or not the file its metrics.json describes: run the recipe again.")

    files.prepare_folder(target.parent)
    for source, (copy, _) in copies.items():
        with files.atomic_write(copy) as temporary:
            shutil.copyfile(source, temporary)
    card = {"name": target.stem, "file": target.name, "sha256": files.sha256(target), "bytes": target.stat().st_size}
    card |= {"input": args.input, "output": "logits; softmax gives probabilities"}
    files.write_json(target.with_suffix(".json"), card | described | {"data_licence": args.data_licence})
    inputs = None
    if "test_bleu_beam_5" in described:
        inputs = translation_inputs(target, described["source"], described["target"])
    elif "tokenizer_sha256" in described:
        inputs = golden_inputs(target)
    golden = make_golden(target, inputs)
    print(f"{target} ({card['bytes'] / 1e6:.1f} MB), its card and its golden record {golden.name} are in place.")


def read_metrics(path):
    """What the card takes over from a run's metrics.json, and "model_sha256".

    Raises:
        UserError: if the file is missing, or lacks something.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no metrics.json: give the folder of a finished run.")
    metrics = json.loads(path.read_text(encoding="utf-8"))
    kinds = [keys for measured, keys in CARDS.items() if measured in metrics]
    if len(kinds) != 1:
        raise UserError(f"{path} holds {len(kinds)} of {', '.join(CARDS)}: one says which card is to be written.")
    keys = (*kinds[0], "model_sha256")
    if missing := [key for key in keys if key not in metrics]:
        raise UserError(f"{path} lacks {', '.join(missing)}: run the recipe again.")
    return {key: metrics[key] for key in keys} | {"command": cards.without_resume_flag(metrics["command"])}


def golden_inputs(target):
    """[ids (1, T) int32] of `TEXT`, of the characters that the tokenizer beside a model knows; None if none."""
    tokenizer = tokenizers.load_tokenizer(target.with_name(cards.TOKENIZER_FILE))
    known = set(tokenizer.get_vocab()) if tokenizers.level(tokenizer) == "char" else set(TEXT)
    ids = tokenizers.encode(tokenizer, "".join(character for character in TEXT if character in known))
    return [np.array([ids], "int32")] if ids else None


def translation_inputs(path, source, target):
    """[source ids (1, S), target ids (1, T) after the start] of `SENTENCES`; English for languages not among them."""
    tokenizer = load_tokenizer(path.with_name(cards.TOKENIZER_FILE))
    read, written = (SENTENCES.get(language, SENTENCES["en"]) for language in (source, target))
    shifted = [tokenizer.start_id, *tokenizer.encode_target(written)[:-1]]
    return [np.array([ids], "int32") for ids in (tokenizer.encode(read), shifted)]


if __name__ == "__main__":
    run_command(main, parse_args())
