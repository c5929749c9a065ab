"""Fixtures, and which tests a process runs: one process tests one backend; `once` tests run apart."""

import collections
import contextlib
import gc
import math
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from zoo import backends

backends.skip_optional_imports()
backends.import_keras()

from zoo import data
from zoo.fast_paths.layers import set_compiler_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
BACKENDS = ("tensorflow", "jax", "torch")

set_compiler_flags()  # as the recipes do, before JAX starts


@pytest.fixture(scope="session", autouse=True)
def initial_weights_drawn_by_numpy():
    """On JAX, which compiles the drawing of random numbers for each shape: half of the time of many tests."""
    import keras

    if keras.backend.backend() != "jax":
        yield
        return
    rng = np.random.default_rng(0)

    def draw(self, shape, dtype=None):
        *receptive_field, fan_in, fan_out = shape if len(shape) > 1 else (*shape, *shape) or (1, 1)
        fan_in, fan_out = (math.prod(receptive_field) * fan for fan in (fan_in, fan_out))
        limit = (6 / (fan_in + fan_out)) ** 0.5  # Glorot's, which layers have unless they say otherwise
        return keras.ops.convert_to_tensor(rng.uniform(-limit, limit, shape), dtype=dtype or "float32")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.initializers.VarianceScaling, "__call__", draw)
        yield


def pytest_collection_modifyitems(config, items):
    once, full = (bool(os.environ.get(name)) for name in ("ZOO_TESTS_ONCE", "ZOO_TESTS_FULL"))
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")

    def chosen(item):
        slow = item.get_closest_marker("slow")
        quick = slow is None or bool(slow.args) and backend not in slow.args
        return (item.get_closest_marker("once") is not None) == once and (full or quick)

    kept = [item for item in items if chosen(item)]
    config.hook.pytest_deselected(items=[item for item in items if not chosen(item)])
    items[:] = kept


def pytest_collection_finish():
    """Python looks for garbage less often, and not among what was imported: a tenth of the time on JAX."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


CPU_SECONDS = {}  # of a test with its set-up and its child processes; other work on the machine does not lengthen them


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        CPU_SECONDS[item.nodeid] = sum(os.times()[:4]) - before


def pytest_terminal_summary(terminalreporter):
    """With ZOO_TESTS_CPU=n: the CPU seconds of the session, of each file and of the n longest tests."""
    longest = int(os.environ.get("ZOO_TESTS_CPU") or 0)
    if not longest:
        return
    files = collections.Counter()
    for test, seconds in CPU_SECONDS.items():
        files[test.partition("::")[0]] += seconds
    terminalreporter.section("CPU seconds, child processes included")
    terminalreporter.line(f"{sum(os.times()[:4]):8.1f}  this process, its start included")
    for name, seconds in files.most_common() + collections.Counter(CPU_SECONDS).most_common(longest):
        terminalreporter.line(f"{seconds:8.1f}  {name}")


@pytest.fixture(scope="session")
def tfds_dir():
    """A folder with MNIST prepared by tensorflow-datasets; the test is skipped where there is none."""
    for folder in (os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "tensorflow_datasets"):
        if folder and (pathlib.Path(folder) / "mnist").is_dir():
            return pathlib.Path(folder)
    pytest.skip("MNIST is not prepared here (set TFDS_DATA_DIR)")


@pytest.fixture(scope="session")
def mnist(tfds_dir):
    """MNIST, read once: it takes TensorFlow Datasets 10 seconds and more."""
    return data.load_images("mnist", tfds_dir)


@pytest.fixture(scope="session")
def gtsrb_file():
    """The reduced GTSRB archive; the test is skipped where there is none."""
    for path in (os.environ.get("GTSRB_DIR"), ROOT.parent / "shared" / "data" / "gtsrb"):
        if path and pathlib.Path(path).exists():
            return pathlib.Path(path)
    pytest.skip("GTSRB is not here (set GTSRB_DIR)")


@pytest.fixture(scope="session")
def shakespeare():
    """The folder of tiny shakespeare; the test is skipped where there is none."""
    for path in (os.environ.get("SHAKESPEARE_DIR"), ROOT.parent / "shared" / "data" / "shakespeare"):
        if path and (pathlib.Path(path) / "input.txt").is_file():
            return pathlib.Path(path)
    pytest.skip("tiny shakespeare is not here (set SHAKESPEARE_DIR)")


@pytest.fixture(scope="session")
def multi30k():
    """The folder of Multi30k, task 1; the test is skipped where there is none."""
    for path in (os.environ.get("MULTI30K_DIR"), ROOT.parent / "shared" / "data" / "multi30k"):
        if path and (pathlib.Path(path) / "train.en.gz").is_file():
            return pathlib.Path(path)
    pytest.skip("Multi30k is not here (set MULTI30K_DIR)")


def write_verses(path, words, characters):
    """A text of which the next character can be learned: so many words out of ten, cut to so many characters."""
    rng = np.random.default_rng(0)
    known = ["the", "king", "and", "queen", "speak", "of", "love", "war", "Lord,", "night.\n"]
    path.write_text(" ".join(known[place] for place in rng.integers(0, len(known), words))[:characters])
    return path


@pytest.fixture(scope="session")
def run():
    """Start a command of the repository in a process of its own: run(["recipes/…", …], backend="jax")."""

    def start(arguments, *, backend=None, wait=True, **environment):
        environment = os.environ | {"KERAS_BACKEND": backend or os.environ["KERAS_BACKEND"]} | environment
        command = [sys.executable, *map(str, arguments)]
        if not wait:
            # Tests started in the background ignore Ctrl-C, and so would their children; one in a terminal does not.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=900)

    return start


@contextlib.contextmanager
def interrupted_in_second_epoch():
    """Ctrl-C in a run of a recipe, which says that the first epoch is kept."""
    import keras

    from zoo.training import run

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "TerminateOnNaN", Interrupt)
        with pytest.raises(KeyboardInterrupt, match="epoch 1 to 1 kept"):
            yield
