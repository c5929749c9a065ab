"""zoo summary: where every parameter of a model comes from."""

import argparse

from zoo.cli.common import MODEL_HELP, at_least, load_model
from zoo.errors import UserError

HELP = "show where every parameter of a model comes from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    add(
        "--batch-size", type=at_least(1), default=64, metavar="N", help="for the memory that training takes; default 64"
    )
    add("--input-shape", type=_shape, metavar="H,W,C", help="of one example, for a model that leaves sizes open")
    add("--full", action="store_true", help="show every layer of a deep model, which else is a line a block")
    add("--markdown", action="store_true", help="print a Markdown table")
    add("--json", action="store_true", help="print JSON")
    add("--html", metavar="FILE", help="write a page to look at in a browser")


def run(args: argparse.Namespace) -> None:
    import json

    model = load_model(args.model)
    from zoo.io import files
    from zoo.parameter_ledger.ledger import ledger

    result = ledger(model, batch_size=args.batch_size, input_shape=args.input_shape)
    if args.html:
        try:
            files.write_text(args.html, result.to_html())
        except OSError as error:
            raise UserError(f"Cannot write {args.html} ({error.strerror}): name another file with --html.") from error
        print(f"The summary of {args.model} is in {args.html}.")
    if args.json:
        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    elif args.markdown:
        print(result.to_markdown())
    elif not args.html:
        print(result.to_text(full=args.full))


def _shape(text):
    sizes = text.replace("x", ",").split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 48,48,3")
    return tuple(int(size) for size in sizes)
