"""zoo convert: published weights in another format to a preset."""

import argparse
import shlex

from zoo.cli.common import log

HELP = "convert published weights to a preset"
EPILOG = """examples:
  zoo convert marian opus-mt-de-en my_translator
  zoo convert stable-diffusion stable-diffusion-v1-5 my_diffusion"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "kind",
        choices=("marian", "stable-diffusion"),
        help="marian: a translation model (opus-mt) in the format of transformers; stable-diffusion: 1 or 2, in the "
        "format of diffusers",
    )
    add("source", help="folder with config.json or model_index.json, the weights and so on")
    add("folder", help="folder of the preset to write")


def run(args: argparse.Namespace) -> None:
    from zoo.tasks.convert import convert

    folder = shlex.quote(str(convert(args.kind, args.source, args.folder, log=log)))
    use = {"marian": f'zoo translate {folder} "…"', "stable-diffusion": f'zoo generate {folder} "…"'}
    log(f"Use it: {use[args.kind]}")
