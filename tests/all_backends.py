"""Run the test suite on TensorFlow, JAX and PyTorch, each in its own process, and the tests that span backends.

python tests/all_backends.py            the quick run
python tests/all_backends.py --full     the tests marked `slow` as well
python tests/all_backends.py -m "not heavy" -x      any pytest arguments are passed on

Two processes run side by side, since much of the time goes into imports and compilation on one core; what each printed
is shown when it ends.
"""

import concurrent.futures
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BACKENDS = ("tensorflow", "jax", "torch")
ACROSS = "across backends"
DEVICES = "tests/distribution/test_strategy.py"


def jobs(arguments):
    """(title, backend, arguments of pytest) of each process, the longest first.

    Unless the arguments name files, the tests of several devices are apart, so that two workers end at about one time.
    """
    titles = ("tensorflow", "jax", ACROSS, "torch")  # where models are compiled takes longest
    backend_of = {title: "torch" if title == ACROSS else title for title in titles}
    if any((ROOT / argument.partition("::")[0]).exists() for argument in arguments):
        return [(title, backend_of[title], arguments) for title in titles]
    apart = [f"--ignore={DEVICES}"]
    return [
        *((title, backend_of[title], arguments if title == ACROSS else arguments + apart) for title in titles),
        *((f"{backend}, several devices", backend, [*arguments, DEVICES]) for backend in BACKENDS),
    ]


def flags_to_compile_less():
    """XLA's flags that take a third of the time to compile, on JAX and in TensorFlow's compiled functions.

    XLA ends the process on a flag that it does not know: none for releases other than those tried.
    """
    versions = {"jaxlib": "0.10.", "tensorflow": "2.21."}
    known = all(importlib.metadata.version(name).startswith(version) for name, version in versions.items())
    return "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false" if known else ""


def run(title, backend, arguments, cache, full):
    """(exit code, output, seconds) of one pytest process; processes on JAX share what they compile in a folder."""
    began = time.perf_counter()
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "ZOO_TESTS_ONCE": "1" if title == ACROSS else "",
        "ZOO_TESTS_FULL": "1" if full else "",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    # Each of the two gets its share of the cores: OpenMP's threads wait for each other in busy loops, so that two
    # processes with a thread a core take several times as long as one after the other.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
    if compile_less := flags_to_compile_less():
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {compile_less}".strip()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--durations=15", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return ended.returncode, ended.stdout, time.perf_counter() - began


def main(arguments):
    full, arguments = "--full" in arguments, [argument for argument in arguments if argument != "--full"]
    failed = []
    with (
        tempfile.TemporaryDirectory(prefix="zoo-tests-jax-") as cache,
        concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool,
    ):
        waiting = {pool.submit(run, *job, cache, full): job[0] for job in jobs(arguments)}
        print(f"Testing {'; '.join(waiting.values())}: a few minutes each, two at a time.", flush=True)
        for future in concurrent.futures.as_completed(waiting):
            title, (code, output, seconds) = waiting[future], future.result()
            if code not in (0, 5):  # 5: these arguments select no test here
                failed.append(title)
            print(f"\n{f' {title} ':=^100}\n{output}", flush=True)
            print(f"{title}: {'failed' if title in failed else 'ok'} in {seconds:.0f} s", flush=True)
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nAll backends passed.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
