"""Who may import whom (the arrows of the house), and what importing `zoo` loads."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FRAMEWORKS = {"tensorflow", "jax", "torch"}
# What the modules of each part of `zoo` may import from `zoo`.
ALLOWED = {
    "blocks": {"blocks"},
    "models": {"blocks", "models"},
    "convert": {"convert", "models", "text", "files", "unset_weights", "backends", "errors"},
    "data": {"data", "errors"},
    "drawing": {"drawing", "models", "reports", "speed", "files", "errors"},
    "errors": set(),
    "backends": {"errors"},
    "files": {"unset_weights", "errors"},
    "registry": {"backends", "files", "errors"},  # the models are named in it, and imported when they are built
    "reports": {"reports", "files", "backends", "errors"},
    "speed": {"speed"},
    "text": {"text", "models", "blocks", "speed", "files", "errors"},
    "training": {
        *("training", "data", "models", "reports", "text", "drawing", "speed", "files", "unset_weights", "errors"),
    },
    "unset_weights": set(),
}
# Lazy imports of a framework are allowed where its own fast path is the point.
FRAMEWORK_FILES = {
    "zoo/backends.py",
    "zoo/io/tensor_files.py",
    "zoo/fast_paths/compile.py",
    "zoo/generation/torch_transformer.py",
    "zoo/generation/recurrent.py",
    "zoo/fast_paths/layers.py",
    "zoo/fast_paths/recurrent.py",
    "zoo/distribution/strategy.py",
    "zoo/distribution/launch.py",
    "zoo/training/optimizers.py",
}


def imports(path):
    """(module, is at the top level) of every import in a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" if node.module == "zoo" else node.module for alias in node.names]
        for name in names:
            yield name, node in tree.body


@pytest.mark.once
@pytest.mark.parametrize("path", sorted((ROOT / "zoo").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    relative = path.relative_to(ROOT)
    part = relative.parts[1].removesuffix(".py")
    for name, top_level in imports(path):
        head, *rest = name.split(".")
        if head == "zoo" and rest and part in ALLOWED:
            assert rest[0] in ALLOWED[part] | {"__version__"}, f"{relative} must not import {name}"
        if head == "recipes":
            raise AssertionError(f"{relative} must not import a recipe")
        if head in FRAMEWORKS:
            assert not top_level and str(relative) in FRAMEWORK_FILES, f"{relative} must not import {name}"
        if part == "models":
            assert head in {"zoo", "keras", "numpy", "math", "dataclasses"}, f"{relative} must not import {name}"


@pytest.mark.once
@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_recipes_import_no_other_recipe(path):
    assert not any(name.split(".")[0] == "recipes" for name, _ in imports(path))
    assert len(path.read_text().splitlines()) <= 150


@pytest.mark.once
def test_parts_are_reached_through_the_package(run):
    program = (
        "import zoo; print(zoo.models.cnn.cnn(num_classes=10).count_params(), len(zoo.data.load('digits').y_test))"
    )
    assert run(["-c", program], backend="jax").stdout.split() == ["9536074", "359"]


@pytest.mark.once
def test_importing_zoo_is_light(run):
    ended = run(["-c", "import sys, zoo; assert not {'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)"])
    assert ended.returncode == 0, ended.stderr
