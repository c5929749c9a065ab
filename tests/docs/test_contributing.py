"""CONTRIBUTING.md, followed to the letter in a copy of the tree: its diffs apply, and what it says to run passes."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT, blocks

pytestmark = pytest.mark.once
COPIED = ("benchmarks", "docs", "recipes", "tests", "zoo")
COPIED_FILES = ("pyproject.toml", "mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
BLOCKS = [block for block in blocks(ROOT / "CONTRIBUTING.md") if block.language in ("bash", "diff")]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the tree; the presets are linked."""
    folder = tmp_path / "checkout"
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED_FILES:
        shutil.copy(ROOT / name, folder / name)
    (folder / "saved_models").symlink_to(ROOT / "saved_models")
    return folder


def run(command, folder, **options):
    """Run in the copy, whose `zoo` comes before the installed one."""
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder), "NO_MKDOCS_2_WARNING": "1"}
    environment |= {"ZOO_TESTS_ONCE": "", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, **options)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"


def test_the_diffs_apply_and_are_in_the_style_of_the_project(checkout):
    for block in BLOCKS:
        if block.language == "diff":
            run(["git", "apply", "-"], checkout, input=block.code)
    code = "".join(block.code for block in BLOCKS)
    new = re.findall(r"^--- /dev/null\n\+\+\+ b/(.*)$", code, re.MULTILINE)
    assert len(new) == 6
    run([sys.executable, "-m", "ruff", "check", *new], checkout)
    run([sys.executable, "-m", "ruff", "format", "--check", *new], checkout)


@pytest.mark.slow
def test_followed_to_the_letter(checkout):
    """Every diff is applied and every command run, in the order of the text."""
    for block in BLOCKS:
        if block.language == "diff":
            run(["git", "apply", "-"], checkout, input=block.code)
        elif not block.last_run:
            for command in block.code.splitlines():
                run(["bash", "-c", command], checkout)
