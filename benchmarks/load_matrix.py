"""Load every published file in several releases of Keras on three backends, and compare its numbers.

    python benchmarks/load_matrix.py --output docs/results/load_matrix.json     fetch the releases, run everything
    python benchmarks/load_matrix.py --only keras-nightly --output docs/results/load_matrix.json    one of them anew
    python benchmarks/load_matrix.py --table docs/results/load_matrix.json      the table of docs/load_matrix.md, which
    python docs/receipts.py writes into the page

The environment is that of the command; each release of Keras is laid over it (`pip install --no-deps --target`), so
that the backends stay. A process for each release and backend imports Keras and nothing of this project's models,
loads each `.keras` file of saved_models/, calls it on the inputs of its parity record, and gives the largest
difference of an output, over the largest value of it or 1. Up to 1e-4 the numbers are the same.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RELEASES = ("keras==3.12.*", "keras==3.13.*", "keras==3.14.*", "keras==3.15.*", "keras-nightly")
BACKENDS = ("tensorflow", "jax", "torch")
TOLERANCE = 1e-4


def lay_over(release, folder):
    """Install a release into a folder of its own; returns the folder."""
    target = folder / release.replace("==", "-").replace(".*", "")
    if not (target / "keras").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(target)]
        pre = ["--pre"] if "nightly" in release else []
        subprocess.run([*command, *pre, release], check=True)
    return target


def load_files():
    """In a process of its own: {file: difference or error} on KERAS_BACKEND, and the versions."""
    from zoo.errors import error_summary

    about = {}
    try:
        import keras
    except Exception as error:  # an old Keras on a new backend
        return {"error": f"Keras cannot be imported: {error_summary(error)}"}
    import numpy as np

    from zoo.parity.records import ParityRecord, parity_path
    from zoo.parity.verify import max_scaled_error

    about["keras"], results = keras.__version__, {}
    for path in sorted((ROOT / "saved_models").glob("*/*.keras")):
        name = path.parent.name if path.name == "model.keras" else f"{path.parent.name}/{path.stem}"
        record = ParityRecord.load(parity_path(path))
        try:
            model = keras.saving.load_model(path, compile=False)
        except Exception as error:  # Keras raises many kinds
            results[name] = {"error": f"does not load: {error_summary(error)}"}
            continue
        try:
            inputs = keras.tree.pack_sequence_as(model.input, [keras.ops.convert_to_tensor(x) for x in record.inputs])
            outputs = keras.tree.flatten(model(inputs, training=False))
            outputs = [np.asarray(keras.ops.convert_to_numpy(x)) for x in outputs]
            results[name] = {"difference": max(map(max_scaled_error, outputs, record.outputs))}
        except Exception as error:
            results[name] = {"error": f"loads, does not run: {error_summary(error)}"}
    return about | {"files": results}


def run_release(release, backend, folder):
    """The row of a release and a backend."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
    }
    process = subprocess.run(
        [sys.executable, __file__, "--load"], env=environment, capture_output=True, text=True, errors="replace"
    )
    row = {"release": release, "backend": backend, "date": datetime.date.today().isoformat()}
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        return row | {"error": f"the process ended: {lines[-1] if lines else process.returncode}"}
    return row | json.loads(process.stdout.strip().splitlines()[-1])


def cell(row, name):
    """(text of a cell, reason or None)."""
    if "error" in row:
        return "no", row["error"]
    result = row["files"][name]
    if "error" in result:
        return "no", result["error"]
    if result["difference"] <= TOLERANCE:
        return "same", None
    return f"{result['difference']:.0e}", f"other numbers, by {result['difference']:.1e}"


def table(rows):
    """A line a file, a column a release; a cell names the backends where they do not all give the same numbers."""
    releases = list(dict.fromkeys(row["release"] for row in rows))
    names = sorted({name for row in rows for name in row.get("files", {})})
    version = {row["release"]: row["keras"] for row in rows if "keras" in row}
    heads = [version.get(release, release) for release in releases]
    lines = [f"| file | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    reasons = {}
    for name in names:
        cells = []
        for release in releases:
            found = {row["backend"]: cell(row, name) for row in rows if row["release"] == release}
            for backend, (_, reason) in found.items():
                if reason:
                    files = reasons.setdefault((version.get(release, release), reason), {}).setdefault(backend, [])
                    files.append(name)
            texts = {text for text, _ in found.values()}
            everywhere = len(texts) == 1 and len(found) == len(BACKENDS)
            words = "; ".join(f"{backend}: {text}" for backend, (text, _) in found.items())
            cells.append(texts.pop() if everywhere else words)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines.append("")
    for (release, reason), files in reasons.items():
        counts = ", ".join(f"{len(one)} on {backend}" for backend, one in files.items())
        lines.append(f"- Keras {release}, files: {counts}. {reason[0].upper()}{reason[1:]}.")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where the releases are kept; default a temporary folder")
    parser.add_argument("--output", help="JSON file that rows are added to, in place of those of the same run")
    parser.add_argument("--only", default="", help="releases with this in their name only")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, help="default all three")
    parser.add_argument("--table", help="print the table of this file")
    parser.add_argument("--load", action="store_true", help="load the files here, on KERAS_BACKEND, and print JSON")
    args = parser.parse_args()
    if args.table:
        return print(table(json.loads(pathlib.Path(args.table).read_text())))
    if args.load:
        return print("\n" + json.dumps(load_files()))
    output = pathlib.Path(args.output) if args.output else None
    rows = {}
    if output and output.is_file():
        rows = {(row["release"], row["backend"]): row for row in json.loads(output.read_text())}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(args.folder or scratch)
        for release in RELEASES:
            if args.only not in release:
                continue
            target = lay_over(release, folder)
            for backend in args.backends:
                rows[release, backend] = run_release(release, backend, target)
                print(rows[release, backend], flush=True)
                if output:
                    output.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    print(table(list(rows.values())))


if __name__ == "__main__":
    main()
