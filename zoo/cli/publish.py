"""zoo publish: a finished training run as a preset with a card, a README and parity records; to the Hub with --push."""

import argparse
import json
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from zoo.errors import UserError, error_summary, require
from zoo.io.cards import DIFFUSION_PARTS
from zoo.typing import StrPath

HELP = "turn the folder of a finished training run into a preset"
EPILOG = """example:
  zoo publish runs/cnn_mnist-mnist --output my_cnn \\
      --license MIT --data-license "CC BY-SA 3.0"
  zoo publish runs/cnn_mnist-mnist --output my_cnn \\
      --license MIT --data-license "CC BY-SA 3.0" --push me/my_cnn"""

_RUN = (
    *("command", "backend", "versions", "machine", "dataset", "data_sha256", "seed", "epochs", "learning_rate"),
    *("schedule", "parameters", "training_seconds"),
)
# Flags that not every recipe has.
OPTIONAL_KEYS = ("label_smoothing", "random_erasing", "average_checkpoints")
# What a card takes over from metrics.json, in this order, by the score that the recipe measured.
CARD_KEYS = {
    "test_accuracy": (
        *(*_RUN, "batch_size", "weight_decay", "optimizer", *OPTIONAL_KEYS),
        *("test_images", "test_accuracy", "test_loss", "validation_accuracy", "class_names"),
    ),
    "test_bits_per_character": (
        *(*_RUN, "batch_size", "weight_decay", "epochs_trained", "sequence_length", "dropout", "global_clipnorm"),
        *("patience", "stateless", "cell", "tokenizer", "vocabulary_size", "embedding_dim", "units", "num_layers"),
        *("tie_embeddings", "validation_loss", "validation_perplexity", "validation_bits_per_character"),
        *("validation_tokens", "test_loss", "test_perplexity", "test_bits_per_character", "test_tokens"),
    ),
    "test_bleu_beam_5": (
        *(*_RUN, "source_lang", "target_lang", "variant", "num_layers", "hidden_dim", "intermediate_dim"),
        *("num_heads", "pre_norm", "vocabulary_size", "batch_tokens", "warmup_steps", "dropout", "label_smoothing"),
        *("bpe_dropout", "average_checkpoints", "validation_bleu", "test_bleu_beam_1", "test_bleu_beam_5"),
        *("test_bleu_beam_5_confidence", "signature", "test_moses_bleu_beam_5", "test_pairs"),
    ),
}
# What a card takes over where a run was fine-tuned.
FINE_TUNING_KEYS = (
    *("init_from", "init_sha256", "init_weights", "new_head", "init_encoder_only", "freeze", "train_only"),
    *("lora_rank", "lora_alpha", "trained_parameters", "frozen_parameters"),
)
# What models of text take, where neither the command nor the card says it.
INPUTS = {
    "text-generation": "token ids (N, T), int32, as tokenizer.json numbers them",
    "translation": (
        "[source ids (N, S), target ids (N, T) after the start token], int32, as tokenizer.json numbers them"
    ),
}
# A latent diffusion: the parts that its card must describe, and the files of its preset.
COMPONENTS = tuple(DIFFUSION_PARTS)
COMPONENT_FILES = tuple(name for names in DIFFUSION_PARTS.values() for name in names)
# Inputs of the parity record of a translation model: a source and a target sentence.
SENTENCES = {
    "de": "Ein brauner Hund läuft mit einem Ball im Maul über den nassen Strand.",
    "en": "A brown dog is running across the wet beach with a ball in its mouth.",
}
# Input of the parity record of a language model: real text, so that its states are those of real use.
TEXT = """HAMLET:
To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles
And by opposing end them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN_FOLDER", help="folder that a recipe wrote")
    add("--output", metavar="FOLDER", help="preset folder to write; default saved_models/ and the run folder's name")
    add("--input", metavar="TEXT", help="what the model takes, for the card; default its shape and dtype")
    add("--license", required=True, metavar="TEXT", help="license of the model, e.g. MIT or CC-BY-4.0, for the card")
    add("--data-license", required=True, metavar="TEXT", help="license or terms of the training data, for the card")
    add("--push", metavar="OWNER/NAME", help="repository of the Hugging Face Hub to upload to; default none")


def run(args: argparse.Namespace) -> None:
    from zoo import backends

    run_folder = pathlib.Path(args.run_folder)
    target = pathlib.Path(args.output or pathlib.Path("saved_models", run_folder.resolve().name))
    if target.suffix == ".keras" or target.resolve() == run_folder.resolve():
        raise UserError(f"--output is {target}: give another folder to write, such as saved_models/cnn_mnist.")
    if args.push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.push):
        raise UserError(f"--push is {args.push!r}: write OWNER/NAME, the repository on the Hugging Face Hub.")
    if not args.license.strip():
        raise UserError("--license is empty: name the license of the model, e.g. MIT, or none.")
    require("huggingface_hub", what="A model card for the Hugging Face Hub")
    card, names = _read_run(run_folder)
    backends.import_keras()
    takes = args.input or card.get("input") or _default_input(card["task"], run_folder)
    card |= {"input": takes, "license": args.license, "data_license": args.data_license}
    publish(run_folder, target, card, names, repository=args.push)
    if args.push:
        print(f"{target} is at {push(target, args.push)}.")


def publish(
    run_folder: StrPath,
    target: StrPath,
    card: Mapping[str, Any],
    names: Iterable[str],
    *,
    repository: str | None = None,
) -> None:
    """Copy files of a run into a preset folder; write its card, its README and a parity record of each model."""
    from zoo.cli.model_card import README_FILE, model_card
    from zoo.io import cards, files
    from zoo.parity.records import parity_path, write_parity_record

    run_folder, target = pathlib.Path(run_folder), files.prepare_folder(target)
    names = list(names)
    models = [name for name in names if name.endswith(".keras")]
    records = {name: parity_path(target / name) for name in models}
    # Of what was published before.
    for name in (cards.CARD_FILE, README_FILE, cards.GENERATION_CONFIG_FILE):
        files.remove(target / name)
    for path in records.values():
        files.remove(path)
    config = [cards.GENERATION_CONFIG_FILE] if (run_folder / cards.GENERATION_CONFIG_FILE).is_file() else []
    for name in (*names, *config):
        with files.atomic_write(target / name) as temporary:
            shutil.copyfile(run_folder / name, temporary)
    cards.write_card(target, {"name": target.resolve().name, **card}, names)
    for name in models:
        inputs = _parity_inputs(target, card) if name == cards.MODEL_FILE else None
        write_parity_record(target / name, inputs)
    files.write_text(target / README_FILE, model_card(cards.read_card(target), target, repository=repository))
    size = sum(path.stat().st_size for path in target.iterdir())
    parity = "its parity record" if len(models) == 1 else f"{len(models)} parity records"
    print(f"{target} ({size / 1e6:.1f} MB): {parity}, its card {cards.CARD_FILE} and {README_FILE} are in place.")


def push(folder: StrPath, repository: str) -> str:
    """Upload a preset folder to a repository of the Hugging Face Hub, which is made if there is none.

    Files and folders of the repository that the preset does not have stay.

    Raises:
        UserError: if the user is not logged in, or the Hub or the network refuses.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repository, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=str(folder),
            ignore_patterns=[".*"],
            commit_message="zoo publish",
        )
    except Exception as error:  # the hub, the network and the disk raise many kinds
        raise UserError(
            f"{folder} cannot be uploaded to {repository} ({error_summary(error)}): log in with `hf auth login` and "
            "check the name and the network; the folder itself is complete."
        ) from error
    return str(url)


def _read_run(run_folder):
    """(the card to write, names of the files to publish) of a finished run.

    Raises:
        UserError: if the run is not finished, or a file is not the one that its card describes.
    """
    from zoo.io import cards, files

    card = cards.read_card(run_folder) if run_folder.is_dir() else {}
    names, published = sorted(card.get("files", {})), {"task": card.get("task")}
    if card.get("task") == "text-to-image":
        parts = card.get("components", {})
        # What was trained on pictures of one's own has no classifier, and scores that take none.
        needed = [part for part in COMPONENTS if part != "classifier" or part in parts]
        if missing := [part for part in needed if part not in parts] + ([] if "scores" in card else ["scores"]):
            raise UserError(
                f"The card of {run_folder} lacks {', '.join(missing)}: finish and score the run with "
                "recipes/diffusion_captions.py first."
            )
        names = [name for name in COMPONENT_FILES if name in card["files"]]
        published |= {key: value for key, value in card.items() if key not in ("name", "files")}
        published["components"] = {part: _with_clean_command(entry) for part, entry in parts.items()}
    else:
        published |= {"input": card.get("input"), "output": "logits; softmax gives probabilities"}
        published |= _read_metrics(run_folder / "metrics.json")
    described = card.get("files", {})
    if cards.MODEL_FILE not in names and published["task"] != "text-to-image":
        raise UserError(f"{run_folder} has no card that describes {cards.MODEL_FILE}: run the recipe again.")
    for name in names:
        path = run_folder / name
        if not path.is_file() or files.sha256(path) != described.get(name, {}).get("sha256"):
            raise UserError(f"{path} is missing or not the file that its card describes: run the recipe again.")
    return _with_clean_command(published), names


def _read_metrics(path):
    """What the card takes over from a run's metrics.json.

    Raises:
        UserError: if the file is missing, or lacks something.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no metrics.json: give the folder of a finished run.")
    metrics = json.loads(path.read_text(encoding="utf-8"))
    kinds = [keys for score, keys in CARD_KEYS.items() if score in metrics]
    if len(kinds) != 1:
        raise UserError(f"{path} holds {len(kinds)} of {', '.join(CARD_KEYS)}: one says which card is to be written.")
    if missing := [key for key in kinds[0] if key not in metrics and key not in OPTIONAL_KEYS]:
        raise UserError(f"{path} lacks {', '.join(missing)}: run the recipe again.")
    found = {key: metrics[key] for key in kinds[0] if key in metrics}
    return found | {key: metrics[key] for key in FINE_TUNING_KEYS if metrics.get(key)}


def _default_input(task, folder):
    """What a model takes, for its card."""
    from zoo.io.cards import MODEL_FILE
    from zoo.io.model_files import load_model

    if task in INPUTS:
        return INPUTS[task]
    _, height, width, channels = load_model(folder / MODEL_FILE).input_shape
    size = "(N, height, width, {}) of any size" if None in (height, width) else f"(N, {height}, {width}, {{}})"
    return f"{'grey' if channels == 1 else 'RGB'} images {size.format(channels)}, 0..255, uint8 or float"


def _with_clean_command(entry):
    """A card, or a component's entry, with the command that repeats the run from the start, in the usual folder."""
    from zoo.io.cards import without_resume_flag

    words = shlex.split(without_resume_flag(entry["command"]))
    while "--output" in words:
        index = words.index("--output")
        del words[index : index + 2]
    words = [re.sub(r"^.*[/\\](recipes)[/\\](\w+\.py)$", r"\1/\2", word) for word in words]  # wherever it was
    return entry | {"command": shlex.join(words)}


def _parity_inputs(folder, card):
    """Inputs of the parity record of a preset: real text for models of text, None (synthetic ones) for others.

    Of a character tokenizer, the characters of `TEXT` that it knows; None if it knows none.
    """
    import numpy as np

    from zoo.io.cards import TOKENIZER_FILE
    from zoo.tokenizers import load_tokenizer
    from zoo.tokenizers.text import encode, tokenizer_kind

    if not (folder / TOKENIZER_FILE).is_file():
        return None
    tokenizer: Any = load_tokenizer(folder / TOKENIZER_FILE)
    if "source_lang" in card:
        source, target = (SENTENCES.get(card[key], SENTENCES["en"]) for key in ("source_lang", "target_lang"))
        decoder_input = [tokenizer.start_id, *tokenizer.encode_target(target)[:-1]]
        return [np.array([ids], "int32") for ids in (tokenizer.encode(source), decoder_input)]
    known = set(tokenizer.get_vocab()) if tokenizer_kind(tokenizer) == "char" else set(TEXT)
    ids = encode(tokenizer, "".join(character for character in TEXT if character in known))
    return [np.array([ids], "int32")] if ids else None
