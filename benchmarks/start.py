"""Seconds from the start of `zoo generate` to its end, beside `import keras` alone, on each backend.

    python benchmarks/start.py --rounds 3 --record                 # a text: lstm_shakespeare
    python benchmarks/start.py --what image --rounds 3 --record    # an image: diffusion_captions

Both are processes of their own, one after the other: `python -c "import keras"`, and `zoo generate` with a preset of
this checkout, eight new tokens or an image in its default number of steps. The first run of each warms the file cache
and is not counted.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import rows
from benchmarks.side_by_side import run_interleaved

BACKENDS = ("tensorflow", "jax", "torch")
COMMANDS = {
    "text": ("generate", "lstm_shakespeare", "ROMEO:", "--max-new-tokens", "8"),
    "image": ("generate", "diffusion_captions", "a green three on white"),
}


def seconds_of(command, repeats):
    """Median seconds of a process, the first of which is not counted."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:  # the image is written to the working folder
        for _ in range(1 + repeats):
            start = time.perf_counter()
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def measure(what, repeats):
    """{"s", "import keras", "beyond import keras"}: seconds on the backend that KERAS_BACKEND names."""
    keras_seconds = seconds_of(["-c", "import keras"], repeats)
    zoo_seconds = seconds_of(["-m", "zoo", *COMMANDS[what]], repeats)
    return {"s": zoo_seconds, "import keras": keras_seconds, "beyond import keras": zoo_seconds - keras_seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=tuple(COMMANDS), default="text", help="default text")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--repeats", type=int, default=1, help="timed processes a round; default 1")
    parser.add_argument("--only", help="measure this contender here and print seconds as JSON")
    rows.add_record_flag(parser)
    args = parser.parse_args()
    if args.only:
        return print(json.dumps(measure(args.what, args.repeats)))
    contenders = [f"zoo {backend}" for backend in BACKENDS]
    arguments = ["--what", args.what, "--repeats", args.repeats]
    results = run_interleaved(__file__, contenders, rounds=args.rounds, arguments=arguments)
    print(f"\n{os.cpu_count()} cores\n\n| backend | zoo generate, s | import keras, s | beyond, s |")
    print("| --- | ---: | ---: | ---: |")
    for name, rounds in results.items():
        cells = [f"{statistics.median(one[key] for one in rounds):.2f}" for key in rounds[0]]
        print(f"| {name} | {' | '.join(cells)} |")
    workload = f"zoo {' '.join(COMMANDS[args.what])}, process start included"
    rows.record(args, f"start_{args.what}", results, workload=workload, unit="s")


if __name__ == "__main__":
    main()
