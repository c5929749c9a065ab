"""The public names, their signatures and every flag, kept in `public_api.txt`: a change of them is seen in review.

python tests/test_api.py    writes the file anew
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SNAPSHOT = pathlib.Path(__file__).with_name("public_api.txt")


def module_lines(path):
    """One line for each public name of a module: functions and methods with their arguments, constants by name."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{module}.{node.name}{signature(node)}"
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            yield f"{module}.{node.name}({bases})"
            for part in node.body:
                yield from (f"{module}.{node.name}.{line}" for line in member_lines(part))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name) and not name.id.startswith("_"):
                        yield f"{module}.{name.id}"


def signature(function):
    """The arguments and the result of a function, with their types."""
    returns = function.returns and ast.unparse(function.returns)
    return f"({ast.unparse(function.args)})" + (f" -> {returns}" if returns and returns != "None" else "")


def member_lines(node):
    """The public lines of one statement in a class."""
    if isinstance(node, ast.FunctionDef) and (node.name == "__init__" or not node.name.startswith("_")):
        kinds = {ast.unparse(kind).rsplit(".")[-1] for kind in node.decorator_list}
        kind = next(iter(kinds & {"property", "classmethod", "staticmethod", "cached_property", "overload"}), "")
        yield f"{node.name}" if "property" in kind else f"{node.name}{signature(node)}{kind and f' {kind}'}"
    elif isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_"):
        yield f"{node.target.id}: {ast.unparse(node.annotation)}"
    elif isinstance(node, ast.Assign):
        yield from (t.id for t in node.targets if isinstance(t, ast.Name) and not t.id.startswith("_"))


def flag_lines(path):
    """The flags that a file defines, adds to a parser, or (a recipe) picks with its own defaults."""
    name = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Assign(targets=[ast.Name(id="FLAGS")], value=ast.Dict(keys=keys)):
                yield from (f"{name}: --{key.value.replace('_', '-')}" for key in keys)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="flags"), attr="add")):
                yield f"{name}: {ast.unparse(node)}"
            case ast.Call(args=[ast.Constant(value=str(flag)), *_]) if flag.startswith("--") and " " not in flag:
                yield f"{name}: {flag}"


def public_api():
    """The text of the snapshot."""
    lines = []
    for path in sorted((ROOT / "zoo").rglob("*.py")):
        lines += module_lines(path)
    for path in sorted([*(ROOT / "zoo").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]):
        lines += sorted(set(flag_lines(path)))
    return "\n".join(lines) + "\n"


@pytest.mark.once
def test_the_public_names_are_those_of_the_snapshot():
    assert public_api() == SNAPSHOT.read_text(encoding="utf-8"), "run `python tests/test_api.py` and review the change"


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8")
    print(f"{SNAPSHOT} written: {public_api().count(chr(10))} lines")
