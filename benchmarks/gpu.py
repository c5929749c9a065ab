"""Every recipe and every workload on a GPU, checked against a CPU and timed beside PyTorch, eager and compiled.

    python benchmarks/gpu.py --list                       the pieces of each part
    python benchmarks/gpu.py --part 1 --output 1.json     one part, at most 9 minutes: a table, and a JSON file
    python benchmarks/gpu.py --tiny --output tiny.json    all parts at tiny sizes on the CPU
    python benchmarks/gpu.py --table 1.json 2.json        one table of the files of several parts
    python benchmarks/gpu.py --pack carry.tar [--wheels FOLDER]    what another machine needs, at most 60 MB

Part 1 runs every recipe for some steps and compares the losses with those of a CPU (`gpu_losses.json`, made by
--write-losses), in float32, bfloat16 and float16. Parts 2 and 3 train: CNN, LSTM, GRU; translation, denoiser. Part 4
generates text and translates. Part 5 generates images at the size of Stable Diffusion 1.5. Part 6 is the form of Keras'
own published comparison (keras.io, getting started, benchmarks: Stable Diffusion, fit and predict). Weights are random
and data are made on the spot: nothing is downloaded.

Each piece is a process of its own, on the backends that are installed. One that fails, or that the time does not reach,
is named, and the others go on; the exit code is then 1. On a machine without a GPU, use --tiny.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rows import surroundings

BACKENDS = ("torch", "jax", "tensorflow")
PRECISIONS = ("float32", "bfloat16", "float16")
PARTS = (1, 2, 3, 4, 5, 6)
RECIPES = (
    "diffusion_captions and _distillation",  # the longest first
    "cnn_mnist",
    "cnn_gtsrb",
    "cnn_image_folder",
    "rnn_shakespeare, LSTM",
    "rnn_shakespeare, GRU",
    "transformer_multi30k",
)
# Largest difference of a loss from the CPU's, over the loss where that is above 1, in the first ten steps.
TOLERANCES = {"float32": 5e-3, "bfloat16": 8e-2, "float16": 3e-2}
LOSSES = pathlib.Path(__file__).with_name("gpu_losses.json")
MAX_PACK_BYTES = 60e6
PACKED = ("zoo", "recipes", "benchmarks", "pyproject.toml")


def pieces(backends, tiny):
    """The pieces of all parts, those that count most first in each part."""
    found = []

    def add(part, kind, workload, contender, backend, precision, **more):
        name = f"{kind} {workload}, {contender} {backend}, {precision}"
        name += "".join(f", {key} {value}" for key, value in more.items())
        piece = {"part": part, "kind": kind, "workload": workload, "contender": contender, "backend": backend}
        found.append(piece | {"precision": precision, "tiny": tiny, "name": name} | more)

    def add_all(part, kind, workload, precision, peers, **more):
        for backend in backends:
            add(part, kind, workload, "zoo", backend, precision, **more)
        if "torch" in backends:
            for peer in peers:
                add(part, kind, workload, peer, "torch", precision, **more)

    native, diffusers = ("pytorch", "pytorch-compiled"), ("diffusers", "diffusers-compiled")
    for precision in PRECISIONS:
        for backend in backends:
            for recipe in RECIPES:
                # The image classifiers differ in their data alone.
                if precision == "float32" or recipe not in ("cnn_gtsrb", "cnn_image_folder"):
                    add(1, "recipe", recipe, "zoo", backend, precision)
        for workload in ("CNN", "LSTM", "GRU"):
            add_all(2, "train", workload, precision, native)
        for workload, peers in (("translation", native), ("denoiser", diffusers)):
            add_all(3, "train", workload, precision, peers)
        for workload in ("LSTM", "GRU"):
            for batch_size in {"float32": (1, 64), "bfloat16": (64,), "float16": ()}[precision]:
                add_all(4, "generate", workload, precision, native, batch_size=batch_size)
        for beams in (1, 5):
            add_all(4, "translate", "opus-mt", precision, ("transformers",), num_beams=beams, batch_size=32)
        for batch_size in (1, 8) if precision == "bfloat16" and not tiny else (1,):
            add_all(5, "draw", "SD 1.5", precision, diffusers, batch_size=batch_size)
        if precision != "float16":
            add_all(6, "train", "autoencoder", precision, diffusers)
            add_all(6, "draw", "SD 1.5", precision, diffusers, batch_size=3 if tiny else 13)
    if "torch" in backends:
        for part, workload in ((2, "CNN"), (3, "denoiser")):
            add(part, "train", workload, "zoo-jit", "torch", "bfloat16")
    return sorted(found, key=lambda piece: piece["part"])


def is_possible(piece):
    """Whether a piece is run. On a CPU: each workload in float32, half precision and the compiler where they are quick.

    float16 is left out there: JAX has none on a CPU, and PyTorch's products of it are slow.
    """
    if not piece["tiny"]:
        return True
    quick = piece["workload"] in ("CNN", "rnn_shakespeare, LSTM")
    if piece["contender"].endswith(("-compiled", "-jit")) and (not quick or piece["precision"] != "float32"):
        return False
    if piece["kind"] == "generate" and piece["batch_size"] == 1 or piece.get("num_beams") == 1:
        return False  # the others run the same code
    return piece["precision"] == "float32" or piece["precision"] == "bfloat16" and quick


def environment(piece):
    """Of the process of a piece: its backend, memory as it is needed, no network, exact products for losses."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    new = {
        "KERAS_BACKEND": piece["backend"],
        "PYTHONPATH": os.pathsep.join(paths),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
    }
    if piece["tiny"]:
        new |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    if piece["kind"] == "recipe":
        new |= {"NVIDIA_TF32_OVERRIDE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return os.environ | new


def run_piece(piece, seconds):
    """The row of a piece: what it measured, or `error`."""
    start = time.perf_counter()
    if seconds < 5:
        return piece | {"error": "not run: the time was up"}
    command = [sys.executable, __file__, "--piece", json.dumps(piece)]
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment(piece), capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return piece | {"error": f"stopped after {seconds:.0f} s"}
    row = piece | {"seconds": round(time.perf_counter() - start, 1)}
    line = (ended.stdout.strip().splitlines() or [""])[-1]
    if ended.returncode or not line.startswith("{"):
        log = ended.stderr.strip()
        return row | {"error": (log.splitlines() or [f"exit code {ended.returncode}"])[-1][:300], "log": log[-4000:]}
    return check_losses(row | json.loads(line))


def check_losses(row):
    """The row of a recipe with its largest difference from the losses on a CPU; an error where that is too large."""
    if "losses" not in row:
        return row
    known = json.loads(LOSSES.read_text(encoding="utf-8"))["losses"].get(row["workload"]) if LOSSES.is_file() else None
    if known is None:
        return row | {"error": f"{LOSSES.name} has no losses of {row['workload']}: run with --write-losses"}
    if {name: len(values) for name, values in known.items()} != {n: len(v) for n, v in row["losses"].items()}:
        return row | {"error": f"losses of {sorted(row['losses'])} do not fit those of {sorted(known)}"}
    largest = max(
        abs(value - wanted) / max(1.0, abs(wanted))
        for name, values in known.items()
        for value, wanted in zip(row["losses"][name], values)
    )
    row |= {"largest_difference": largest, "tolerance": TOLERANCES[row["precision"]]}
    if not largest <= row["tolerance"]:  # nan, too
        row["error"] = f"losses differ from the CPU's by {largest:.1e}, more than {row['tolerance']:g}"
    return row


def run_part(part, chosen, minutes, jobs):
    """The rows of a part; where losses alone are of interest several pieces run at once."""
    deadline = time.monotonic() + 60 * minutes

    def run(piece):
        limit = 900 if piece["tiny"] else 400 if piece["kind"] == "recipe" else 240
        row = run_piece(piece, min(limit, deadline - time.monotonic()))
        print(f"{time.strftime('%H:%M:%S')}  {piece['name']:76s} {summary(row)}", flush=True)
        return row

    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs if part == 1 else 1) as pool:
        return list(pool.map(run, chosen))


def summary(row):
    """What a row says, in one line."""
    if "error" in row:
        return f"FAILED: {row['error']}"
    if "largest_difference" in row:
        return f"losses within {row['largest_difference']:.1e} of the CPU's ({row['seconds']:.0f} s)"
    return f"{row['per_second']:,.1f} {row['unit']}/s, {row['ms']:.2f} ms, {row['peak_gb']:.2f} GB"


def table(rows):
    """Markdown: losses of recipes, then rates beside the peers in the same precision, then what failed."""
    lines = [
        "| recipe | backend | precision | largest difference of a loss | tolerance |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "largest_difference" in row:
            cells = (f"{row['largest_difference']:.1e}", f"{row['tolerance']:g}")
            lines.append(f"| {row['workload']} | {row['backend']} | {row['precision']} | {' | '.join(cells)} |")
    lines = lines if len(lines) > 2 else []
    rates = [row for row in rows if "per_second" in row and "error" not in row]
    if rates:
        lines += [""] * bool(lines) + [
            "| workload | contender | precision | rate | ms | peak GB | eager = 1 | compiled = 1 |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
    for row in rates:
        same = [one for one in rates if setting(one) == setting(row)]
        eager, compiled = (
            next((one for one in same if one["backend"] == "torch" and is_peer(one, kind)), None)
            for kind in ("eager", "compiled")
        )
        ratios = [f"{peer['ms'] / row['ms']:.2f}" if peer else "" for peer in (eager, compiled)]
        more = "".join(
            f", {words} {row[key]}" for key, words in (("num_beams", "beams"), ("batch_size", "batch")) if key in row
        )
        contender = f"{row['contender']} {row['backend']}" if row["contender"].startswith("zoo") else row["contender"]
        cells = (f"{row['per_second']:,.1f} {row['unit']}/s", f"{row['ms']:.2f}", f"{row['peak_gb']:.2f}", *ratios)
        lines.append(
            f"| {row['kind']} {row['workload']}{more} | {contender} | {row['precision']} | {' | '.join(cells)} |"
        )
    failed = [row for row in rows if "error" in row]
    if failed:
        lines += ["", *(f"- FAILED: {row['name']}: {row['error']}" for row in failed)]
    return "\n".join(lines)


def setting(row):
    """What rows have in common that are compared."""
    return tuple(row.get(key) for key in ("part", "kind", "workload", "precision", "num_beams", "batch_size"))


def is_peer(row, kind):
    return not row["contender"].startswith("zoo") and row["contender"].endswith("-compiled") == (kind == "compiled")


def probe_backends(backends, tiny):
    """[what each installed backend finds]; without --tiny, those without an accelerator are left out, with a word."""
    found = []
    for backend in backends:
        if not importlib.util.find_spec(backend):
            continue
        program = f"import json; from benchmarks.gpu_pieces import probe; print(json.dumps(probe({backend!r})))"
        env = environment({"backend": backend, "tiny": tiny, "kind": "probe"})
        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
        if ended.returncode:
            print(f"{backend} does not start: {ended.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        device = json.loads(ended.stdout.strip().splitlines()[-1])
        print(f"{backend} {device['version']} on {device['device']}", flush=True)
        if tiny or device["accelerator"]:
            found.append(device)
        else:
            print(f"{backend} finds no accelerator: left out (--tiny runs on a CPU)", flush=True)
    return found


def pack(path, wheels):
    """Write what another machine needs into a tar file: the code, and packages as wheels."""

    def kept(member):
        return None if "__pycache__" in member.name or member.name.startswith("benchmarks/results") else member

    with tarfile.open(path, "w") as archive:
        for name in PACKED:
            archive.add(ROOT / name, name, filter=kept)
        for wheel in sorted(pathlib.Path(wheels).glob("*.whl")) if wheels else ():
            archive.add(wheel, f"wheels/{wheel.name}")
    size = pathlib.Path(path).stat().st_size
    print(f"{path}: {size / 1e6:.1f} MB")
    if size > MAX_PACK_BYTES:
        raise SystemExit(
            f"{path} has {size / 1e6:.1f} MB, at most {MAX_PACK_BYTES / 1e6:.0f} are carried: fewer wheels."
        )


def write_losses():
    """Make `gpu_losses.json`: the losses of every recipe in float32 on this CPU, by PyTorch."""
    losses = {}
    for piece in pieces(("torch",), tiny=True):
        if piece["kind"] == "recipe" and piece["precision"] == "float32":
            row = run_piece(piece, 900)
            if "losses" not in row:
                raise SystemExit(f"{piece['name']}: {row['error']}\n{row.get('log', '')}")
            losses[piece["workload"]] = row["losses"]
            print(f"{piece['name']}: {row['seconds']} s", flush=True)
    LOSSES.write_text(json.dumps({"losses": losses} | surroundings(), indent=1) + "\n", encoding="utf-8")


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--part", type=int, choices=PARTS, action="append", help="run this part; default all, in order")
    add("--tiny", action="store_true", help="tiny sizes, on the CPU")
    add("--pieces", metavar="REGEX", help="only pieces that this is found in the names of; default all")
    add("--backends", nargs="+", choices=BACKENDS, help="default those installed")
    add("--minutes", type=float, default=9, help="time of a part, after which pieces are left out; default 9")
    add("--jobs", type=int, help="pieces of part 1 that run at once; default a quarter of the cores, at most 4")
    add("--output", metavar="FILE", help="JSON file to write; default none")
    add("--list", action="store_true", help="print the names of the pieces and run none")
    add("--table", nargs="+", metavar="FILE", help="print the table of such JSON files")
    add("--pack", metavar="FILE", help="write a tar file of what another machine needs")
    add("--wheels", metavar="FOLDER", help="wheels to add to --pack; default none")
    add("--write-losses", action="store_true", help="make gpu_losses.json on this CPU")
    add("--piece", metavar="JSON", help="run this piece in this process")
    return parser.parse_args(arguments)


def main(args):
    if args.piece:
        from benchmarks.gpu_pieces import run

        result = json.dumps(run(json.loads(args.piece)))
        print(f"\n{result}", flush=True)
        return 0
    if args.table:
        files = [json.loads(pathlib.Path(name).read_text(encoding="utf-8")) for name in args.table]
        print(table([row for file in files for row in file["rows"]]))
        return 0
    if args.pack:
        return pack(args.pack, args.wheels)
    if args.write_losses:
        return write_losses()
    if args.list:
        for piece in pieces(args.backends or BACKENDS, args.tiny):
            print(piece["part"], piece["name"])
        return 0
    start = time.monotonic()
    devices = probe_backends(args.backends or BACKENDS, args.tiny)
    if not devices:
        raise SystemExit("No backend finds an accelerator here: install its CUDA build, or use --tiny.")
    rows, jobs = [], args.jobs or max(1, min(4, (os.cpu_count() or 4) // 4))
    report = surroundings() | {"devices": devices, "tiny": args.tiny, "rows": rows}
    every = [piece for piece in pieces([one["backend"] for one in devices], args.tiny) if is_possible(piece)]
    for part in args.part or PARTS:
        chosen = [one for one in every if one["part"] == part and re.search(args.pieces or "", one["name"])]
        rows += run_part(part, chosen, args.minutes, jobs)
        report["seconds"] = round(time.monotonic() - start, 1)
        if args.output:
            pathlib.Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failed = sum("error" in row for row in rows)
    print(f"\n{table(rows)}\n\n{len(rows)} pieces, {failed} failed, {report['seconds']:.0f} s")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
