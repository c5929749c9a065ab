"""Which model works in which format and runtime, and how far its numbers are from the parity record.

    python benchmarks/export_matrix.py                       a table of all published presets
    python benchmarks/export_matrix.py cnn_mnist --keep DIR  some, and the exported folders stay in DIR

Each preset is exported to each format, and its records are replayed in each runtime of that format. A cell is the
largest difference as a fraction of the largest output (or of 1, if that is larger), or why there is none: "open length"
where the format would fix the length of a text, so that only the steps are written.
"""

import argparse
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import zoo
from zoo.errors import UserError
from zoo.exporters.runtimes import FORMATS

COLUMNS = [(folder_format, runtime) for folder_format, about in FORMATS.items() for runtime in about.runtimes]

LEFT_OUT = "open length"  # of a model that takes whole sequences, where the format would fix their length


def rows_of(name, folder):
    """{names of the models: [a cell for each of COLUMNS]} of a preset; exports stay in the folder."""
    rows = {}
    for column, (folder_format, runtime) in enumerate(COLUMNS):
        path = folder / f"{name}_{folder_format}"
        try:
            if not path.is_dir():
                zoo.export(name, path, format=folder_format)
            cells = {}
            for row in sorted(zoo.verify(path, runtimes=[runtime]).rows, key=lambda row: row.max_error):
                cells[" and ".join(pathlib.Path(model).stem for model in row.models)] = f"{row.max_error:.1e}"
        except UserError as error:
            cells = {"all": str(error)[:80]}
        for models, cell in cells.items():
            rows.setdefault(models, [LEFT_OUT for _ in COLUMNS])[column] = cell
    return rows


def main(args):
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(args.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print("| preset | model | " + " | ".join(f"{one} in {runtime}" for one, runtime in COLUMNS) + " |")
        print("| --- | --- |" + " ---: |" * len(COLUMNS))
        for name in args.presets or zoo.list_models(pretrained=True):
            for models, cells in rows_of(name, folder).items():
                print(f"| `{name}` | {models} | {' | '.join(cells)} |", flush=True)


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="names of presets; default all that are here")
    parser.add_argument("--keep", metavar="DIR", help="folder in which the exports stay; default a temporary one")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse_args())
