"""Run the test suite on TensorFlow, JAX and PyTorch, each in its own process, then the tests that span backends.

python tests/all_backends.py            everything
python tests/all_backends.py -m "not heavy" -x      any pytest arguments are passed on
"""

import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main(arguments):
    failed = []
    for backend in ("tensorflow", "jax", "torch", "once"):
        title = "across backends" if backend == "once" else backend
        print(f"\n{f' {title} ':=^100}", flush=True)
        began = time.perf_counter()
        environment = os.environ | {
            "KERAS_BACKEND": "torch" if backend == "once" else backend,
            "ZOO_TESTS_ONCE": "1" if backend == "once" else "",
        }
        code = subprocess.call([sys.executable, "-m", "pytest", "-q", *arguments], cwd=ROOT, env=environment)
        if code not in (0, 5):  # 5: these arguments select no test here
            failed.append(title)
        print(f"{title}: {'failed' if title in failed else 'ok'} in {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nAll backends passed.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
