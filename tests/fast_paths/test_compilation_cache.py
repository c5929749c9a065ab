"""Where what JAX compiles is kept, and that a second process reads it."""

import os
import stat
import subprocess
import sys

import keras
import pytest

from zoo.fast_paths.compilation_cache import use_compilation_cache

pytestmark = pytest.mark.once
FOLDER, MAX_SIZE, MIN_SECONDS, MIN_BYTES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in (FOLDER, MAX_SIZE, MIN_SECONDS, MIN_BYTES):
        monkeypatch.setenv(name, "")  # restored at the end, whatever the function sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(
        sys, "modules", {name: one for name, one in sys.modules.items() if name not in ("jax", "keras")}
    )


def test_in_a_folder_of_the_users_own(tmp_path):
    use_compilation_cache()
    folder = os.environ[FOLDER]
    assert os.path.isdir(folder) and folder.startswith(str(tmp_path / "cache" / "jax"))
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert os.environ[MAX_SIZE] == str(256 * 1024**2)


def test_an_open_folder_is_closed(tmp_path):
    use_compilation_cache()
    folder = os.environ.pop(FOLDER)
    os.chmod(folder, 0o777)
    use_compilation_cache()
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_what_the_user_has_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, "")  # off
    use_compilation_cache()
    assert os.environ[FOLDER] == "" and not (tmp_path / "cache").exists()


def test_nothing_is_made_on_another_backend(monkeypatch, tmp_path):
    assert keras.backend.backend() != "jax"  # tests marked `once` run on PyTorch
    monkeypatch.setitem(sys.modules, "keras", keras)
    use_compilation_cache()
    assert FOLDER not in os.environ and not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    use_compilation_cache()
    assert FOLDER not in os.environ


PROGRAM = """
import sys
if sys.argv[1] == "after":
    import jax
from zoo.fast_paths.compilation_cache import use_compilation_cache
use_compilation_cache()
import jax
print(float(jax.jit(lambda x: (x * 3).sum())(jax.numpy.arange(5.0))))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_second_process_reads_what_the_first_compiled(tmp_path, when):
    environment = {name: value for name, value in os.environ.items() if name != FOLDER}
    written = []
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM, when]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "30.0"
        files = [path for path in (tmp_path / "cache").rglob("*-cache") if path.is_file()]
        written.append({path.name: path.stat().st_mtime_ns for path in files})
    assert written[0] and written[0] == written[1]
