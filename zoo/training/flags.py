"""The flags of the recipes: each is defined once, here, so that it means the same everywhere; a recipe picks its own.

parser = flags.parser(__doc__)
flags.add(parser, "dataset", "data_dir", epochs=5, batch_size=64)   # a value is the recipe's default
flags.add(parser, *flags.RUN_FLAGS)
flags.add_fallback(parser, "digits", epochs=10)     # defaults for the small data that a recipe falls back on
args = parser.parse_args()
flags.check(args)                          # ranges, packages: one sentence if a value is wrong or a package missing
flags.settings(args)                                                 # what defines the run
"""

import argparse
import dataclasses
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from zoo.data import IMAGE_DATASETS
from zoo.data.image_folder import ON_BROKEN, STREAM
from zoo.distribution.devices import PARALLEL, PRECISIONS
from zoo.errors import EXTRAS, UserError, require
from zoo.models.rnn_language_model import CELLS
from zoo.models.variants import TRANSFORMER
from zoo.tokenizers.text import TOKENIZER_KINDS


@dataclasses.dataclass(frozen=True)
class Flag:
    """Definition of a flag.

    Attributes:
        help: for `--help`.
        default: value if the command does not say; a recipe may have its own.
        type: of the value; bool for a switch.
        minimum: smallest value allowed.
        exclusive_maximum: upper bound, excluded.
        defines_run: False for what changes where a run takes place and what it writes, but not its numbers. All others
            are recorded in `metrics.json`, and a checkpoint is resumed only under equal ones.
        no_default: what it means where there is no such value, for `--help`.
        options: further arguments of `ArgumentParser.add_argument`.
    """

    help: str
    default: object = None
    type: type = str
    minimum: float | None = None
    exclusive_maximum: float | None = None
    defines_run: bool = True
    no_default: str = "none"
    options: dict = dataclasses.field(default_factory=dict)


def _flag(
    help, default=None, type=str, minimum=None, exclusive_maximum=None, defines_run=True, no_default="none", **options
):
    return Flag(help, default, type, minimum, exclusive_maximum, defines_run, no_default, options)


SCHEDULES = ("cosine", "inverse-sqrt", "constant")
OPTIMIZERS = ("adam", "adamw")

FLAGS = {
    # data
    "dataset": _flag(f"one of {', '.join(IMAGE_DATASETS)}", no_default="the recipe's own", defines_run=False),
    "data_dir": _flag(
        "folder of the data set", no_default="where it is usually kept, if at all", metavar="FOLDER", defines_run=False
    ),
    "train_dir": _flag(
        "folder of pictures of your own, laid out as described in docs/guides/data.md",
        metavar="FOLDER",
        defines_run=False,
    ),
    "validation_dir": _flag(
        "such a folder for validation", metavar="FOLDER", no_default="a tenth of the others", defines_run=False
    ),
    "test_dir": _flag(
        "such a folder for testing", metavar="FOLDER", no_default="a tenth of the others", defines_run=False
    ),
    "labels": _flag(
        "CSV file with a column file and a column label", metavar="CSV", no_default="sub-folders", defines_run=False
    ),
    "group_column": _flag(
        "column of --labels; pictures of one group stay on one side of the split", metavar="NAME", defines_run=False
    ),
    "caption_column": _flag(
        "column of metadata.csv or metadata.jsonl with the captions of --train-dir",
        "text",
        metavar="NAME",
        defines_run=False,
    ),
    "image_size": _flag(
        "height and width to which the pictures of --train-dir are resized: 48, 64, …",
        48,
        type=int,
        metavar="PIXELS",
        defines_run=False,
    ),
    "on_broken": _flag("what to do with broken pictures", "skip", choices=ON_BROKEN, defines_run=False),
    "stream": _flag(
        "decode pictures while training: auto: where they take more than 1 GiB",
        "auto",
        choices=STREAM,
        defines_run=False,
    ),
    "tfds": _flag(
        "image classification data set of tensorflow-datasets, in --data-dir", metavar="NAME", defines_run=False
    ),
    "text": _flag(
        "UTF-8 text of your own to train on: a file, or a folder of .txt files",
        metavar="FILE",
        no_default="the recipe's text",
        defines_run=False,
    ),
    "pairs": _flag(
        "sentence pairs of your own: one TSV or JSON lines, or two aligned files",
        nargs="+",
        metavar="FILE",
        defines_run=False,
        no_default="the recipe's pairs",
    ),
    "source_lang": _flag("language to translate from", "de", metavar="LANGUAGE"),
    "target_lang": _flag("language to translate into", "en", metavar="LANGUAGE"),
    "limit": _flag(
        "use at most this many examples of each part (characters, of a text)", type=int, minimum=1, no_default="all"
    ),
    "tokenizer": _flag("what a token is", "char", choices=TOKENIZER_KINDS),
    "vocabulary_size": _flag("upper bound of the tokenizer's entries", type=int, minimum=1),
    # model
    "variant": _flag("sizes of the model, which single flags replace", "tiny", choices=tuple(TRANSFORMER)),
    "cell": _flag("recurrent cell", "lstm", choices=tuple(CELLS)),
    "num_layers": _flag("number of layers", type=int, minimum=1, no_default="the variant's"),
    "num_heads": _flag("attention heads", type=int, minimum=1, no_default="the variant's"),
    "hidden_dim": _flag("width of the model", type=int, minimum=1, no_default="the variant's"),
    "intermediate_dim": _flag("width of the feed-forward layers", type=int, minimum=1, no_default="the variant's"),
    "embedding_dim": _flag("width of the token embeddings", 64, type=int, minimum=1),
    "units": _flag("units of a recurrent layer", 512, type=int, minimum=1),
    "tie_embeddings": _flag("use the token embeddings as output weights too", False, type=bool),
    "pre_norm": _flag("normalise the input of each sublayer instead of its output", False, type=bool),
    "dropout": _flag("dropout rate", 0.5, type=float, minimum=0, exclusive_maximum=1),
    # fine-tuning
    "init_from": _flag(
        "start from the weights of a trained model: a preset's name, folder or .keras file",
        metavar="MODEL",
        defines_run=False,
        no_default="random weights",
    ),
    "new_head": _flag(
        "allow classes, tokens or languages that the model of --init-from lacks: they start from fresh weights",
        False,
        type=bool,
    ),
    "init_encoder_only": _flag("take the encoder of --init-from alone; the decoder starts fresh", False, type=bool),
    "freeze": _flag(
        "do not train weights that this regular expression is found in the paths of; may be repeated",
        metavar="PATTERN",
        no_default="none",
        action="append",
    ),
    "train_only": _flag(
        "train only weights that this regular expression is found in the paths of; may be repeated",
        metavar="PATTERN",
        no_default="all",
        action="append",
    ),
    "lora_rank": _flag(
        "train a low-rank adapter (LoRA) of this rank beside the weights of --init-from",
        type=int,
        minimum=1,
        no_default="train the weights",
    ),
    "lora_alpha": _flag("scale of the adapter, which is multiplied by alpha / rank", type=float, no_default="the rank"),
    # optimization
    "epochs": _flag("number of epochs", type=int, minimum=1),
    "batch_size": _flag("examples of a batch, over all devices", type=int, minimum=1),
    "batch_tokens": _flag("upper bound of a batch's tokens on each side, padding included", 2048, type=int, minimum=1),
    "sequence_length": _flag("tokens of a sequence, after which gradients are truncated", 64, type=int, minimum=1),
    "stateless": _flag("shuffled windows from zero states instead of states carried between batches", False, type=bool),
    "optimizer": _flag(
        "adam: L2 weight decay, adamw: decoupled weight decay, as in torch.optim", "adam", choices=OPTIMIZERS
    ),
    "learning_rate": _flag("peak learning rate", type=float, minimum=0),
    "schedule": _flag("of the learning rate; all but constant begin with a warm-up", "cosine", choices=SCHEDULES),
    "warmup_steps": _flag("steps until the peak learning rate, at most a quarter of all", type=int, minimum=1),
    "weight_decay": _flag("strength of the weight decay", 0.0, type=float, minimum=0),
    "global_clipnorm": _flag("upper bound of the norm of all gradients together; 0 for none", type=float, minimum=0),
    "bpe_dropout": _flag(
        "probability of leaving a merge of the tokenizer out in training, in [0, 1)",
        0.0,
        type=float,
        minimum=0,
        exclusive_maximum=1,
    ),
    "random_erasing": _flag(
        "probability that a random rectangle of a training image becomes grey, in [0, 1)",
        0.0,
        type=float,
        minimum=0,
        exclusive_maximum=1,
    ),
    "label_smoothing": _flag("of the cross-entropy, in [0, 1)", 0.1, type=float, minimum=0, exclusive_maximum=1),
    "patience": _flag("stop after this many epochs without a better validation loss", type=int, minimum=1),
    "average_checkpoints": _flag("average the weights of the last N epochs", metavar="N", type=int, minimum=1),
    "ema_decay": _flag(
        "decay of the moving average of the weights, in [0, 1)", 0.999, type=float, minimum=0, exclusive_maximum=1
    ),
    # latent diffusion
    "kl_weight": _flag("weight of the autoencoder's KL divergence", 1e-4, type=float, minimum=0),
    "perceptual_weight": _flag("weight of the autoencoder's perceptual loss", 0.0, type=float, minimum=0),
    "conditioning_dropout_prob": _flag(
        "fraction of captions dropped for classifier-free guidance, in [0, 1)",
        0.1,
        type=float,
        minimum=0,
        exclusive_maximum=1,
    ),
    "num_eval_prompts": _flag("prompts of each kind for the evaluation", 1000, type=int, minimum=4, defines_run=False),
    "guidance_scale": _flag(
        "classifier-free guidance", type=float, minimum=0, defines_run=False, no_default="chosen by the evaluation"
    ),
    "teacher_guidance_scale": _flag("classifier-free guidance of the teacher", 2.0, type=float, minimum=0),
    "num_steps": _flag("sampling steps", type=int, minimum=1, defines_run=False),
    # run
    "seed": _flag("of weights, batch order, dropout and augmentation", 0, type=int, minimum=0),
    "parity": _flag("no dropout and no augmentation: the same losses on every backend", False, type=bool),
    "devices": _flag("auto: all accelerators, else one CPU; a number; cpu:4 simulates four", "auto", defines_run=False),
    "parallel": _flag(
        "what the devices divide: the rows of a batch or the weights",
        "data",
        choices=PARALLEL,
        defines_run=False,
    ),
    "precision": _flag("Keras dtype policy of the training", "float32", choices=PRECISIONS, defines_run=False),
    "output": _flag("folder for everything the run writes", defines_run=False, no_default="runs/<recipe>-<data>"),
    "resume": _flag("continue an interrupted run from its last finished epoch", False, type=bool, defines_run=False),
    "overwrite": _flag("replace the run that the folder holds", False, type=bool, defines_run=False),
    "evaluate": _flag(
        "evaluate a model (name, folder or .keras file) instead of training",
        metavar="MODEL",
        defines_run=False,
        no_default="train",
    ),
}

RUN_FLAGS = ("seed", "limit", "parity", "devices", "parallel", "precision", "output", "resume", "overwrite", "evaluate")
FINE_TUNING_FLAGS = ("init_from", "new_head", "freeze", "train_only")
LORA_FLAGS = ("lora_rank", "lora_alpha")


class _Parser(argparse.ArgumentParser):
    """A parser whose result has in `args.given` the names of the flags that were given, in `args.fallback` the fallback
    defaults of the others."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.actions, self.fallback = {}, {}  # {name: argparse.Action}, {name: value}

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        not_given: list[str] = []  # a list, for flags that may be repeated, which copy it
        seen = super().parse_args(args, argparse.Namespace(**dict.fromkeys(self.actions, not_given)))
        parsed.given = {name for name in self.actions if getattr(seen, name) is not not_given}
        parsed.fallback = {name: value for name, value in self.fallback.items() if name not in parsed.given}
        return parsed


def parser(doc: str | None) -> _Parser:
    """A parser described by a recipe's docstring: its first line above the flags, the rest below.

    Args:
        doc: the docstring.

    Returns:
        an `argparse.ArgumentParser`.
    """
    first, *rest = (doc or "").strip().split("\n\n")
    rest.append("The backend is chosen by the environment: KERAS_BACKEND=tensorflow, jax or torch.")
    # Commands are indented and stay as they are.
    rest = [part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), 79) for part in rest]
    return _Parser(
        usage="python recipes/%(prog)s [flags]",
        description=textwrap.fill(" ".join(first.split()), 79),
        epilog="\n\n".join(rest),
    )


def add(parser: _Parser, *names: str, no_default: str | None = None, **defaults: Any) -> None:
    """Add flags to a parser.

    Args:
        parser: of `parser`.
        *names: of `FLAGS`, with underscores.
        no_default: what it means, for `--help`, where a flag has no default; None for the text of `FLAGS`.
        **defaults: flags with a default of this recipe's own.
    """
    for name in (*names, *defaults):
        flag = FLAGS[name]
        options = {"action": "store_true"} if flag.type is bool else {"type": flag.type}
        default = defaults.get(name, flag.default)
        text = "off" if flag.type is bool else no_default or flag.no_default if default is None else "%(default)s"
        parser.actions[name] = parser.add_argument(
            _spelling(name), default=default, help=f"{flag.help} (default: {text})", **options, **flag.options
        )


def add_fallback(parser: _Parser, data: str, **defaults: Any) -> None:
    """Declare other defaults for the small data that a recipe falls back on.

    Args:
        parser: with these flags.
        data: what the data are called, for `--help`.
        **defaults: {flag: its default then}.
    """
    parser.fallback = defaults
    for name, value in defaults.items():
        action = parser.actions[name]
        action.help = f"{action.help.removesuffix(')')}; for {data}: {value})"


def use_fallback(args: argparse.Namespace) -> None:
    """Set the flags that the command did not give to the defaults of `add_fallback`.

    Args:
        args: parsed flags, changed in place.
    """
    for name, value in args.fallback.items():
        setattr(args, name, value)


def adopt(args: argparse.Namespace, values: Mapping[str, Any], origin: str, *, hint: str = "") -> None:
    """Set flags to what a file says, which the command may leave out.

    Args:
        args: parsed flags, changed in place.
        values: {name: value}.
        origin: name of the file.
        hint: what else the user may do where the command says otherwise; the end of the sentence.

    Raises:
        UserError: if the command gives a flag another value.
    """
    for name, value in values.items():
        if name in args.given and getattr(args, name) != value:
            found = _spelling(name) if getattr(args, name) is True else f"{_spelling(name)} {getattr(args, name)}"
            raise UserError(f"{found} does not fit {origin}, which has {value}: leave the flag out{hint}.")
        setattr(args, name, value)


def check(args: argparse.Namespace) -> None:
    """Check the range of every value, and that the packages are installed which a run reports with at its end.

    Args:
        args: parsed flags.

    Raises:
        UserError: if a value is out of range, a pattern is no regular expression, a flag lacks the one that it belongs
            to, or a package is missing.
    """
    require(*EXTRAS["train"], what="A recipe")
    for name in ("new_head", "init_encoder_only"):
        if getattr(args, name, False) and args.init_from is None:
            raise UserError(f"{_spelling(name)} belongs to --init-from: name the model to start from.")
    if getattr(args, "lora_rank", None) is not None:
        if args.init_from is None:
            raise UserError("--lora-rank adapts a trained model: name it with --init-from.")
        for name in ("new_head", "init_encoder_only", "freeze", "train_only"):
            if getattr(args, name, None):
                raise UserError(
                    f"--lora-rank trains A and B alone, beside all weights of --init-from: leave {_spelling(name)} out."
                )
    elif getattr(args, "lora_alpha", None) is not None:
        raise UserError("--lora-alpha belongs to --lora-rank: give the rank.")
    for name in ("freeze", "train_only"):
        for pattern in getattr(args, name, None) or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"{_spelling(name)} {pattern} is not a regular expression ({error}): see Python's module re."
                ) from error
    for name, value in vars(args).items():
        flag = FLAGS.get(name)
        if flag is None or value is None or flag.minimum is None:
            continue
        if flag.exclusive_maximum is not None and not flag.minimum <= value < flag.exclusive_maximum:
            expected = f"in [{flag.minimum}, {flag.exclusive_maximum})"
        elif value < flag.minimum:
            expected = f"at least {flag.minimum}"
        else:
            continue
        negative = expected == "at least 0"
        raise UserError(f"{_spelling(name)} must {'not be negative' if negative else f'be {expected}'}, got {value}.")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that define a run.

    Args:
        args: parsed flags.

    Returns:
        {name: value}.
    """
    return {name: value for name, value in vars(args).items() if name in FLAGS and FLAGS[name].defines_run}


def _spelling(name):
    return f"--{name.replace('_', '-')}"
