#!/usr/bin/env python3
"""Run the tests in environments other than the README's, each a new virtual environment; a line for each.

    python .ci/environments.py                  all of them
    python .ci/environments.py nightly          the next Keras, keras-nightly, with the peers that fit it
    python .ci/environments.py oldest           the lowest versions that pyproject.toml allows (.ci/oldest.txt)
    python .ci/environments.py keras-cv         KerasCV beside the extra `test`, for its converter
    python .ci/environments.py torch            PyTorch and no other backend; also: tensorflow, jax

Needs Python 3.11 and a network. What each command printed is in FOLDER/<environment>.log.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUITE = ["tests/all_backends.py", "-m", "not heavy"]
DEVICES = ["tests/all_backends.py", "tests/distribution/test_strategy.py"]
TOOLS = ["--ignore=tests/docs", "--ignore=tests/test_types.py"]  # need the extra `test`

# The steps of pip, and the programs to run after them.
ENVIRONMENTS = {
    # keras-nightly has Keras' files under another name, so that Keras must go before it comes; without --no-deps,
    # TensorFlow's and KerasHub's requirements would bring Keras back. KerasHub uses private names of its Keras.
    "nightly": (
        [
            ["install", "-e", ".[test]"],
            ["uninstall", "-y", "keras", "keras-hub"],
            ["install", "--no-deps", "--pre", "keras-nightly", "keras-hub-nightly"],
        ],
        [SUITE, DEVICES],
    ),
    "oldest": (
        [["install", "-c", ".ci/oldest.txt", "-e", ".[all]", "pytest", "setuptools>=77"]],
        [[*SUITE, *TOOLS]],
    ),
    "keras-cv": (
        [["install", "-e", ".[test]", "keras-cv"]],
        [["tests/all_backends.py", "tests/converters/test_keras_cv.py"]],
    ),
} | {
    backend: ([["install", "-c", ".ci/cpu.txt", "-e", f".[{backend}]"]], [["tests/one_backend.py", backend]])
    for backend in ("tensorflow", "jax", "torch")
}


def test_in(name, folder):
    """Make an environment and run its tests; returns (passed, one line)."""
    steps, programs = ENVIRONMENTS[name]
    python, log, began = folder / name / "bin" / "python", folder / f"{name}.log", time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PIP_NO_COMPILE": "0", "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]])}
    commands = [[python, "-m", "pip", *step] for step in steps] + [[python, *program] for program in programs]
    with open(log, "w") as output:
        for command in commands:
            print("+", *command, file=output, flush=True)
            ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            if ended.returncode:
                break
    endings = re.findall(r"^(?!\+ ).* in [\d.]+s.*$", log.read_text(), re.MULTILINE)  # of pytest's processes
    num_passed, num_failed = (
        sum(int(count) for line in endings for count in re.findall(rf"(\d+) {word}", line))
        for word in ("passed", "failed")
    )
    versions = re.findall(
        r"^(keras|keras-nightly|numpy|tensorflow|jax|torch)==(\S+)$",
        subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True).stdout,
        re.MULTILINE,
    )
    verdict = f"failed at: {' '.join(map(str, command[1:]))}" if ended.returncode else "ok"
    return not ended.returncode, (
        f"{name}: {verdict}; {num_passed} passed, {num_failed} failed, {time.perf_counter() - began:.0f} s; "
        + ", ".join(" ".join(version) for version in versions)
        + f" ({log})"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="environment", help=f"{', '.join(ENVIRONMENTS)}; all if none")
    parser.add_argument("--folder", type=pathlib.Path, help="where environments and logs go (a temporary folder)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(ENVIRONMENTS):
        parser.error(f"unknown environment {unknown.pop()!r}: choose from {', '.join(ENVIRONMENTS)}")
    folder = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="zoo-environments-"))
    folder.mkdir(parents=True, exist_ok=True)
    all_passed = True
    for name in args.names or ENVIRONMENTS:
        passed, line = test_in(name, folder.resolve())
        all_passed &= passed
        print(line, flush=True)
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
