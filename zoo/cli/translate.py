"""zoo translate: sentences of the command line, or of standard input."""

import argparse
import sys

from zoo.cli.common import MODEL_HELP, add_lora_argument, at_least, lora_files, note_unlisted_files
from zoo.errors import UserError, require

HELP = "translate sentences"
EPILOG = """examples:
  zoo translate transformer_multi30k_de_en "Ein Hund läuft."
  zoo translate transformer_multi30k_en_de < sentences.txt
  zoo translate transformer_multi30k_de_en "Ein Hund läuft." --num-beams 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    add("sentence", nargs="*", help="sentences to translate; without any, the lines of standard input")
    add(
        "--num-beams",
        type=at_least(1),
        metavar="N",
        help="beams of the search, 1 is greedy; default the preset's, or 5",
    )
    add(
        "--length-penalty",
        type=float,
        metavar="X",
        help="exponent of the length that divides a score, above 0 favours longer texts; default the preset's, or 1",
    )
    add_lora_argument(parser)
    add("--save-attention", metavar="FILE", help="write a plot of the cross-attention weights (one sentence)")


def run(args: argparse.Namespace) -> None:
    if args.save_attention and len(args.sentence) != 1:
        raise UserError(f"--save-attention plots one sentence, got {len(args.sentence)}: give one in quotes.")
    if args.save_attention:
        require("matplotlib", what="--save-attention")
    from zoo import backends
    from zoo.presets import find_preset

    preset = find_preset(args.model)
    if preset.model_path.is_file():
        backends.import_keras()
    from zoo.tasks.translator import Translator

    translator = Translator.from_preset(preset, lora=lora_files(args))
    note_unlisted_files(preset)
    settings = {"num_beams": args.num_beams, "length_penalty": args.length_penalty}
    if not args.sentence:
        if sys.stdin.isatty():
            print("Type a sentence a line; Ctrl-D ends.", file=sys.stderr)
        for line in sys.stdin:  # one by one, so that a person who types is answered
            print(translator.translate(line, **settings), flush=True)
        return
    translations = translator.translate(args.sentence, **settings)
    print(*translations, sep="\n")
    if args.save_attention:
        from zoo.evaluation.translation import plot_attention

        try:
            plot_attention(args.save_attention, *translator.cross_attention_weights(args.sentence[0], translations[0]))
        except OSError as error:
            raise UserError(f"Cannot write {args.save_attention} ({error.strerror}): name another file.") from error
        print(f"The cross-attention weights are in {args.save_attention}.")
