"""What the core does without: imported where it is used alone, and named with the line that installs it."""

import argparse
import ast
import pathlib
import sys

import pytest

from zoo import cli, errors
from zoo.errors import EXTRAS, UserError, require

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(path for folder in ("zoo", "recipes") for path in (ROOT / folder).rglob("*.py"))
PACKAGES = {name for extra in ("data", "train", "convert", "export") for name in EXTRAS[extra]}
CHILD = ROOT / "zoo" / "data" / "tfds_export.py"  # a program of its own, which zoo.data.images starts after `require`

pytestmark = pytest.mark.once


def imported(node):
    """Names of the packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {node.module.partition(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


def test_packages_of_extras_are_imported_in_functions_and_required_before():
    seen = set()
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = set().union(*map(imported, tree.body))
        others = {"tensorflow", "jax", "torch"} - ({path.stem} if path.parent.name == "compat" else set())
        assert not top & (PACKAGES | others), f"{path} imports {top & (PACKAGES | others)} whenever it is imported"
        used = set().union(*map(imported, ast.walk(tree))) & PACKAGES
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "require"]
        required = {part.value for call in calls for part in ast.walk(call) if isinstance(part, ast.Constant)}
        assert path == CHILD or used <= required, f"{path} imports {used - required} without require(...)"
        seen |= used
    assert seen >= {"matplotlib", "sklearn", "sacrebleu", "num2words", "safetensors", "sentencepiece"}


@pytest.fixture
def missing(monkeypatch):
    """Let packages look as if they were not installed."""

    def remove(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return remove


def test_the_sentence(missing):
    require("matplotlib", "numpy", what="A plot")
    missing("matplotlib", "sklearn", "num2words", "safetensors")
    for names, words in (
        (("matplotlib",), "needs matplotlib, which is not installed: pip install 'keras-model-zoo[train]'."),
        (("matplotlib", "sklearn"), "needs matplotlib and sklearn, which are not installed: "),
        (("matplotlib", "sklearn", "num2words"), "needs matplotlib, sklearn and num2words, which are not installed: "),
        (("numpy", "sklearn", "safetensors"), "installed: pip install 'keras-model-zoo[train,convert]'."),
    ):
        with pytest.raises(UserError) as error:
            require(*names, what="It")
        assert words in str(error.value)


def test_it_is_said_before_the_work_begins(missing, monkeypatch, tmp_path):
    from zoo.data.images import load_images
    from zoo.data.pairs import load_pairs
    from zoo.training import flags

    missing("matplotlib", "sklearn", "num2words", "tensorflow_datasets")
    train = r"pip install 'keras-model-zoo\[train\]'"
    with pytest.raises(UserError, match=f"A recipe needs matplotlib, sklearn and num2words, .* {train}"):
        flags.check(argparse.Namespace())
    with pytest.raises(UserError, match=f"--save-attention needs matplotlib, .* {train}"):
        cli.run(["translate", "no_such_preset", "Ein Hund.", "--save-attention", str(tmp_path / "attention.png")])
    with pytest.raises(UserError, match=f"digits, which is part of scikit-learn, needs sklearn, .* {train}"):
        load_images("digits")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"Numbers in words, .* needs num2words, .* {train}"):
        load_pairs("en", "de", data_dir=None)
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"needs tensorflow_datasets, .* pip install 'keras-model-zoo\[data\]'"):
        load_images("mnist", tmp_path)


def test_a_backend_that_is_configured_or_the_one_that_is_installed(missing, monkeypatch, tmp_path):
    """`keras.json` is a choice unless it says "tensorflow", which Keras writes there by itself."""
    from zoo import backends

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(backends, "_default_backend", None)
    for name in ("keras", "tensorflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    hidden, find_spec = {"tensorflow"}, errors.importlib.util.find_spec
    monkeypatch.setattr(
        errors.importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find_spec(name, *rest)
    )
    for configured, gone, expected in (
        (None, {"tensorflow"}, "jax"),
        (None, {"tensorflow", "jax"}, "torch"),
        (None, {"jax"}, None),
        (None, {"tensorflow", "jax", "torch"}, None),
        ('{"backend": "tensorflow"}', {"tensorflow", "jax"}, "torch"),
        ('{"backend": "torch"}', {"tensorflow"}, None),
        ("no JSON", {"tensorflow"}, "jax"),
    ):
        monkeypatch.delenv("KERAS_BACKEND", raising=False)
        hidden.clear()
        hidden.update(gone)
        if configured:
            (tmp_path / "keras.json").write_text(configured)
        backends.set_default_backend()
        assert backends.os.environ.get("KERAS_BACKEND") == expected
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    backends.set_default_backend()
    assert backends.os.environ["KERAS_BACKEND"] == "torch"
