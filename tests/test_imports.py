"""Who may import whom (the arrows of the house), and what importing `zoo` loads."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FRAMEWORKS = {"tensorflow", "jax", "torch"}
# From the bottom up: a room imports from tiers below its own, never from another room of its tier.
TIERS = (
    {"errors", "typing"},
    {"compat"},
    {"backends"},
    {"io", "blocks"},
    {"models", "data", "tokenizers", "parameter_ledger"},
    {"fast_paths", "parity", "presets"},
    {"generation", "converters", "exporters", "distribution"},
    {"lora"},
    {"tasks"},
    {"evaluation", "lessons", "training"},
    {"cli", "recipes"},
)
TIER = {room: tier for tier, rooms in enumerate(TIERS) for room in rooms}
# Rooms whose point is a framework's own way: they import it, inside functions.
FRAMEWORK_ROOMS = {
    *("backends", "compat", "distribution", "exporters", "fast_paths", "generation", "io", "parity", "training")
}
FILES = sorted([*(ROOT / "zoo").rglob("*.py"), *(ROOT / "recipes").glob("*.py")])


def name_of(path):
    """The module that a file is."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


@functools.cache
def imports(path):
    """[(module, whether it is imported at the top level)] of every import in a file, but for type checkers' own."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    never = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in never:
        tree.body.remove(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write imports in full"
            names = []
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.append(full if full in MODULES or node.module == "zoo" else node.module)
        else:
            continue
        found += [(name, node in tree.body) for name in names]
    return found


def room_of(module):
    """The room of a module of ours, or None for the package itself."""
    head, *rest = module.split(".")
    return "recipes" if head == "recipes" else rest[0] if rest else None


@pytest.mark.once
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    room = room_of(name_of(path))
    if room in (None, "__main__"):  # the front door names every room
        return
    assert room in TIER, f"{room} stands in no tier"
    for name, _ in imports(path):
        if name.split(".")[0] not in ("zoo", "recipes"):
            continue
        other = room_of(name)
        if other == room or other is None or name == "zoo.__version__":
            continue
        if other in TIER:
            assert TIER[other] < TIER[room], f"{name_of(path)} must not import {name}"
        else:  # a function at the front door
            assert TIER[room] == len(TIERS) - 1, f"{name_of(path)} must import {name} from its own module"


@pytest.mark.once
def test_no_module_imports_itself_in_a_circle():
    graph = {name: {n for n, _ in imports(path) if n in MODULES and n != name} for name, path in MODULES.items()}
    done, path = set(), []

    def walk(name):
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in done:
            return
        path.append(name)
        for other in sorted(graph[name]):
            walk(other)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        walk(name)


@pytest.mark.once
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_frameworks_are_imported_where_they_are_the_point(path):
    room = room_of(name_of(path))
    for name, top_level in imports(path):
        head = name.split(".")[0]
        if head in FRAMEWORKS:
            assert room in FRAMEWORK_ROOMS and not top_level, f"{name_of(path)} must not import {name}"
        if room == "models":
            allowed = {"zoo", "keras", "numpy", "math", "importlib", "collections", "typing", "__future__"}
            assert head in allowed, f"{name_of(path)} must not import {name}"


@pytest.mark.once
@pytest.mark.parametrize("module", ["zoo.models.variants", "zoo.presets", "zoo.io.files", "zoo.io.cards"])
def test_what_names_models_imports_no_keras(module):
    assert not {name.split(".")[0] for name, top_level in imports(MODULES[module]) if top_level} & {"keras"}


@pytest.mark.once
@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_recipes_import_no_private_helper(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.once
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_no_tests(path):
    assert not [name for name, _ in imports(path) if name.split(".")[0] == "tests"]


@pytest.mark.once
def test_parts_are_reached_through_the_package(run):
    program = "import zoo; zoo.backends.skip_optional_imports(); zoo.backends.import_keras()\n"
    program += "print(zoo.models.cnn.cnn(num_classes=10).count_params(), zoo.data.__name__)"
    assert run(["-c", program], backend="torch").stdout.split() == ["9536074", "zoo.data"]


@pytest.mark.once
def test_importing_zoo_is_light(run):
    ended = run(["-c", "import sys, zoo; assert not {'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)"])
    assert ended.returncode == 0, ended.stderr
