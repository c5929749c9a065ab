"""Private names of Keras, TensorFlow, JAX and PyTorch stand in `zoo/compat/` alone.

python tests/test_private_names.py [FOLDER]    prints those of a tree, by file
"""

import ast
import contextlib
import functools
import inspect
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}
GETTERS = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "patch", "object"}  # take a name as a string


def files(root=ROOT):
    """Every file of the tree that holds the rule, `zoo/compat/` left out."""
    found = [path for folder in ("zoo", "recipes", "benchmarks") for path in (root / folder).rglob("*.py")]
    return sorted(path for path in found if (root / "zoo" / "compat") not in path.parents)


def is_private(name):
    """Whether a name starts with one underscore."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def dotted(node):
    """`a.b.c` of a chain of attributes, or '' for another expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{head}.{node.attr}" if (head := dotted(node.value)) else ""
    return ""


def imported_names(tree):
    """{name in the file: full name of what was imported}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.split(".")[0]
                names[alias.asname or head] = alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def full_name(node, names):
    """The dotted name of what an expression that begins with an imported name stands for, or ''."""
    head, _, rest = dotted(node).partition(".")
    return f"{names[head]}.{rest}".rstrip(".") if head in names else ""


def own_names(trees):
    """Underscore names that the tree itself defines: functions, methods, attributes and constants."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self":
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return {name for name in names if is_private(name)}


@functools.cache
def names_of_class(full):
    """Underscore names that a framework's class and those it is made of define, read from their source."""
    head, *rest = full.split(".")
    try:
        kind = functools.reduce(getattr, rest, __import__(head))
    except (AttributeError, ImportError):  # of a backend that is not this process'
        return set()
    source = ""
    for one in inspect.getmro(kind) if isinstance(kind, type) else ():
        with contextlib.suppress(OSError, TypeError):  # what is written in C
            source += inspect.getsource(one) if one.__module__.split(".")[0] in FRAMEWORKS else ""
    return set(re.findall(r"(?:self\.|def )(_[a-z]\w*)", source))


def private_names(tree, own):
    """[(line, name)] of the frameworks' private names in a syntax tree."""
    names, found = imported_names(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                if is_private_path(base + alias.name):
                    found.add((node.lineno, base + alias.name))
        elif isinstance(node, ast.Attribute):
            full = full_name(node, names)
            if is_private_path(full) and not is_private_path(full.rpartition(".")[0]):
                found.add((node.lineno, full))
            elif not full and is_private(node.attr) and dotted(node.value) not in ("self", "cls"):
                if node.attr not in own:
                    found.add((node.lineno, f"….{node.attr}"))
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in GETTERS:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    if is_private(argument.value) and argument.value not in own:
                        found.add((node.lineno, argument.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private_path(node.value):
            found.add((node.lineno, node.value))  # of `sys.modules`, of `importlib`
        elif isinstance(node, ast.ClassDef):
            theirs = set().union(
                *(names_of_class(full_name(base, names)) for base in node.bases if full_name(base, names))
            )
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and part.attr in theirs and is_self(part.value):
                    found.add((part.lineno, f"self.{part.attr}"))
                elif isinstance(part, ast.FunctionDef) and part.name in theirs and is_private(part.name):
                    found.add((part.lineno, f"def {part.name}"))
    return sorted(found)


def is_self(node):
    """Whether an expression is `self`, `cls` or `super()`."""
    return dotted(node) in ("self", "cls") or (isinstance(node, ast.Call) and dotted(node.func) == "super")


def is_private_path(full):
    """Whether a dotted name of a framework has a private part: one with an underscore, or `keras.src`."""
    head, *rest = full.split(".")
    return (
        head in FRAMEWORKS
        and " " not in full
        and (any(map(is_private, rest)) or (head == "keras" and rest[:1] == ["src"]))
    )


def of_a_tree(root=ROOT):
    """{file: [(line, name)]} of a whole tree."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files(root)}
    own = own_names(trees.values())
    return {path: found for path, tree in trees.items() if (found := private_names(tree, own))}


@pytest.mark.once
def test_private_names_stand_in_compat_alone():
    lines = [f"{path.relative_to(ROOT)}:{line} {name}" for path, names in of_a_tree().items() for line, name in names]
    assert not lines, "\n".join(lines)


@pytest.mark.once
@pytest.mark.parametrize(
    "line",
    [
        "import keras.src",
        "from keras.src import backend",
        "from jax._src.distributed import global_state",
        "import torch\ntorch._VF.lstm(1)",
        "import keras\nkeras.src.models.Functional",
        "from keras import ops\nops._x",
        "layer._tracker.unlock()",
        "variable._value = 1",
        "getattr(model, '_functional', None)",
        "import sys\nsys.modules['torch._dynamo'] = None",
        "import keras\nclass Mine(keras.optimizers.Adam):\n    def f(self):\n        self._momentums",
        "import keras\nclass Mine(keras.layers.Layer):\n    def _flatten_layers(self):\n        pass",
    ],
)
def test_the_check_sees_a_private_name(line):
    assert len(private_names(ast.parse(line), set())) == 1


@pytest.mark.once
def test_the_check_lets_own_names_be():
    line = "import keras, os\nos._exit(1)\nclass Mine(keras.Model):\n    def f(self):\n        self._mine = other._mine"
    assert not private_names(ast.parse(line), {"_mine"})


if __name__ == "__main__":
    total = set()
    for path, names in of_a_tree(pathlib.Path(*sys.argv[1:2] or [ROOT])).items():
        print(path, *(f"  {line}: {name}" for line, name in names), sep="\n")
        total |= {(path, *one) for one in names}
    print(f"{len(total)} places, {len({one[2].rpartition('.')[2] for one in total})} names")
