"""Atomic writes, what a killed process leaves, and where the cache is."""

import os
import pathlib
import subprocess
import sys

import pytest

from zoo.io import files

KILLED_WHILE_WRITING = """
import os, signal, sys
from zoo.io import files
with files.atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.once
def test_the_next_run_in_a_folder_removes_what_a_killed_process_left(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, tmp_path / "checkpoint.npz"], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".checkpoint.") and left.suffix == ".npz"
    kept = [tmp_path / name for name in ("checkpoint.npz", ".hidden.npz", ".another.host-1.npz", ".note.txt")]
    with files.atomic_write(tmp_path / "model.keras") as running:  # of a process that lives
        for path in (running, *kept):
            path.write_text("")
        files.prepare_folder(tmp_path)
        assert set(tmp_path.iterdir()) == {running, *kept}
    assert set(tmp_path.iterdir()) == {tmp_path / "model.keras", *kept}


@pytest.mark.once
def test_a_file_of_another_host_stays(tmp_path, monkeypatch):
    """There a process of the same number may live."""
    monkeypatch.setattr(files, "_is_running", lambda pid: False)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "else.where")
        with files.atomic_write(tmp_path / "a.npz") as temporary:
            name = temporary.name
            temporary.write_text("")
    for path in (tmp_path / name, tmp_path / f".b.{files._host()}-7.npz"):
        path.write_text("")
    files.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", name}


@pytest.mark.once
def test_cache_folder(monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", "~/here")
    assert files.cache_dir() == pathlib.Path.home() / "here"
    monkeypatch.delenv("ZOO_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", f"{os.sep}there")
    monkeypatch.setattr(sys, "platform", "linux")
    assert files.cache_dir() == pathlib.Path(os.sep, "there", "keras-model-zoo")
