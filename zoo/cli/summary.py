"""zoo summary: where every parameter of a model comes from."""

import argparse
import pathlib

from zoo.cli.common import MODEL_HELP, at_least, find_models, input_shape, load_found_model, shapes_by_name
from zoo.errors import UserError

HELP = "show where every parameter of a model comes from"
EPILOG = """examples:
  zoo summary cnn_mnist
  zoo summary diffusion_captions/denoiser --full
  zoo summary transformer_multi30k_de_en --input-shape source=64 target=64
  zoo summary my_run/model.keras --html page.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=f"{MODEL_HELP}; of a preset of several models all, or one: diffusion_captions/denoiser")
    add("--full", action="store_true", help="show every layer of a deep model, which else is a line a block")
    add(
        "--batch-size", type=at_least(1), default=64, metavar="N", help="for the memory that training takes; default 64"
    )
    add(
        "--input-shape",
        type=input_shape,
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]H,W,C",
        help="sizes of one example where the model leaves them open, by the names of its inputs or, without a name, "
        "for all of them; default those of the model's parity record",
    )
    add("--markdown", action="store_true", help="print a Markdown table")
    add("--json", action="store_true", help="print JSON; a list where the preset has several models")
    add("--html", metavar="FILE", help="write a page to look at in a browser; of several models one page each")


def run(args: argparse.Namespace) -> None:
    shapes = shapes_by_name(args.input_shape)
    models = find_models(args.model)
    several, dicts, unused = len(models) > 1, [], set(shapes if isinstance(shapes, dict) else ())
    for name, path in models.items():
        model = load_found_model(name, path, load_weights=bool(args.html))
        own = shapes
        if several and isinstance(shapes, dict):  # each model takes the shapes of its own inputs
            own = {x.name: shapes[x.name] for x in model.inputs if x.name in shapes}
            unused -= own.keys()
        result, recorded = _ledger(model, path, own, args.batch_size)
        if args.html:
            _write_page(args.html, name, several, result)
        if args.json:
            dicts.append(result.to_dict())
        elif args.markdown:
            print(f"## {name}\n\n{result.to_markdown()}" if several else result.to_markdown())
        elif not args.html:
            print(f"── {name}\n" * several + result.to_text(full=args.full), flush=True)
            if recorded:
                print(f"Open sizes are those of the parity record: {recorded}.")
            print("\n" * (several and name != list(models)[-1]), end="")
    if several and unused:
        raise UserError(f"--input-shape names {', '.join(unused)}, which is an input of none of these models.")
    if args.json:
        import json

        print(json.dumps(dicts if several else dicts[0], indent=2, ensure_ascii=False))


def _ledger(model, path, shapes, batch_size):
    """(the ledger, the sizes that the parity record gave, in words)."""
    from zoo.parameter_ledger.format import format_shape
    from zoo.parameter_ledger.ledger import ledger, open_inputs
    from zoo.parity.records import recorded_input_shapes

    taken = {}
    if path and isinstance(shapes, dict) and (open_names := open_inputs(model).keys() - shapes.keys()):
        recorded = zip((x.name for x in model.inputs), recorded_input_shapes(path))
        taken = {name: shape for name, shape in recorded if name in open_names}
        shapes = shapes | taken
    words = ", ".join(f"{name} {format_shape(shape)}" for name, shape in taken.items())
    return ledger(model, batch_size=batch_size, input_shape=shapes or None), words


def _write_page(file, name, several, result):
    from zoo.io import files

    path = pathlib.Path(file)
    if several:
        path = path.with_name(f"{path.stem}_{name.rpartition('/')[2]}{path.suffix}")
    try:
        files.write_text(path, result.to_html())
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): name another file with --html.") from error
    print(f"The summary of {name} is in {path}.")
