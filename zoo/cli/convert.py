"""zoo convert: published weights in another format to a preset."""

import argparse
import shlex

from zoo.cli.common import log

HELP = "convert published weights to a preset"
EPILOG = """examples:
  zoo convert marian opus-mt-de-en my_translator
  zoo convert stable-diffusion stable-diffusion-v1-5 my_diffusion
  zoo convert torch-rnn checkpoint.pt my_lstm --key model_state"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "kind",
        choices=("marian", "stable-diffusion", "torch-rnn"),
        help="marian: a translation model (opus-mt) in the format of transformers; stable-diffusion: 1 or 2, in the "
        "format of diffusers; torch-rnn: the state dict of a torch.nn.LSTM, GRU or RNN, or of a model with one",
    )
    add("source", help="folder with config.json or model_index.json, the weights and so on; for torch-rnn a file")
    add("folder", help="folder of the preset to write")
    add(
        "--key",
        help="torch-rnn: key of the state dict in a checkpoint of a training, e.g. model_state; default: the file is a "
        "state dict",
    )
    add("--prefix", help="torch-rnn: what precedes weight_ih_l0 in the names, e.g. rnn. (default: found)")


def run(args: argparse.Namespace) -> None:
    from zoo.tasks.convert import convert

    options = {"key": args.key, "prefix": args.prefix, "log": log}
    folder = shlex.quote(str(convert(args.kind, args.source, args.folder, **options)))
    use = {"marian": f'zoo translate {folder} "…"', "stable-diffusion": f'zoo generate {folder} "…"'}
    use |= {"torch-rnn": f"zoo summary {folder}"}
    log(f"Use it: {use[args.kind]}")
