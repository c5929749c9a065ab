"""What benchmarks leave behind: a dated JSON file for each run of a row, which `benchmarks/table.py` reads.

A benchmark calls `add_record_flag(parser)` and, after its rounds, `record(args, row, results, ...)`. With `--record`,
a file `benchmarks/results/ROW.DATE.json` is written:

    row, workload, unit     "cnn_training", what was run, what the numbers are ("s/step")
    results                 {contender: [what each round gave: a number, or {metric: number}]}
    machine                 processor, vector_units, cores, threads
    versions, commit, date  of the packages, of this repository, of the run (UTC)

A table is made of all files of a row. Once the code that a file measured is replaced, delete the file: git keeps it.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = pathlib.Path(__file__).resolve().parent / "results"
PACKAGES = ("keras", "tensorflow", "jax", "torch", "diffusers", "transformers", "keras-hub", "zeromodels", "numpy")
# Names of the processor's vector and matrix units, as Linux lists them, that decide how fast matrix products are.
VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "asimd", "sve", "bf16")


def add_record_flag(parser):
    """Add `--record` to a benchmark's flags."""
    parser.add_argument("--record", action="store_true", help="write the row as dated JSON to benchmarks/results")


def record(args, row, results, *, workload, unit):
    """Write what a benchmark measured, if `--record` was given.

    Args:
        args: the benchmark's flags.
        row: name of the row, one that `benchmarks/table.py` knows.
        results: {contender: [number, or {metric: number}, of each round]}, as `run_interleaved` gives it.
        workload: what was run, in words.
        unit: of the numbers, or {metric: unit}.

    Returns:
        path of the file, or None.
    """
    if not args.record:
        return None
    run = {"row": row, "workload": workload, "unit": unit, "results": results} | surroundings()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{row}.{run['date'].replace(':', '')}.json"
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    print(f"recorded in {path.relative_to(ROOT)}", flush=True)
    return path


def surroundings():
    """What a figure holds for: {"machine", "versions", "commit", "date"}."""
    return {
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def machine():
    """The processor, its vector units, its cores, and the threads that this process may use."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    known = set(cpu.get("flags", cpu.get("Features", "")).split())
    cores = os.cpu_count()
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "vector_units": [name for name in VECTOR_UNITS if name in known],
        "cores": cores,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or cores),
    }


def versions():
    """{package: version} of the frameworks and peers that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit():
    """The commit of this repository, with "+" where tracked files differ from it; "" outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def read_runs(folder=None):
    """{row: [its recorded runs, the oldest first]} of a folder, `benchmarks/results` unless said."""
    runs = {}
    for path in (folder or RESULTS).glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for run in content if isinstance(content, list) else [content]:
            runs.setdefault(run["row"], []).append(run)
    return {row: sorted(found, key=lambda run: run["date"]) for row, found in runs.items()}
