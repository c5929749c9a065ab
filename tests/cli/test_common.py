"""Where the command keeps what JAX compiles."""

import os

import pytest

from zoo.cli import common

pytestmark = pytest.mark.once
NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # restored at the end, whatever the function sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))


def test_in_the_cache_folder(tmp_path):
    common.keep_compiled_functions()
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert os.path.isdir(folder) and folder.startswith(str(tmp_path / "cache" / "jax"))
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(256 * 1024**2)


def test_what_the_user_has_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # off
    common.keep_compiled_functions()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "" and not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    common.keep_compiled_functions()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
