"""Type hints: mypy accepts the package, what is public is typed, and a user's editor knows what comes out."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import zoo

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "zoo").rglob("*.py"))

USER = """
import numpy as np
import zoo

lm = zoo.CausalLM.from_preset("lstm_shakespeare")
reveal_type(lm)
reveal_type(lm.generate("ROMEO:", max_new_tokens=5, seed=None))
reveal_type(lm.generate(["ROMEO:", "JULIET:"]))
reveal_type(lm.stream("ROMEO:"))
reveal_type(zoo.Translator.from_preset("transformer_multi30k_de_en").translate("Ein Hund."))
classifier = zoo.ImageClassifier.from_preset("cnn_mnist", dtype="bfloat16")
reveal_type(classifier.classify("digit.png"))
reveal_type(classifier.classify(["digit.png", np.zeros((28, 28))], top_k=1))
reveal_type(classifier.predict(np.zeros((2, 28, 28, 1))).shape)
reveal_type(zoo.TextToImage.from_preset("diffusion_captions").generate("a red two", num_steps=4))
reveal_type(zoo.verify("cnn_mnist").passed)
reveal_type(zoo.ledger(zoo.create_model("cnn")).macs)
reveal_type(zoo.list_models())
with zoo.strategy("cpu:2") as devices:
    reveal_type(devices.num_replicas)
"""
REVEALED = [
    "zoo.tasks.causal_lm.CausalLM",
    "str",
    "list[str]",
    "typing.Iterator[str]",
    "str",
    "list[TypedDict(zoo.tasks.image_classifier.Prediction, {'label': str, 'score': float})]",
    "list[list[TypedDict(zoo.tasks.image_classifier.Prediction, {'label': str, 'score': float})]]",
    "tuple[Any, ...]",
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]",
    "bool",
    "int",
    "list[str]",
    "int",
]
# A wrong line and the code of mypy's error.
WRONG = {
    "zoo.Translator.from_preset('transformer_multi30k_de_en').translate(3)": "call-overload",
    "zoo.CausalLM.from_preset('lstm_shakespeare').generate('ROMEO:', max_tokens=3)": "call-overload",
    "zoo.CausalLM.from_preset('lstm_shakespeare').generate('ROMEO:').shape": "attr-defined",
    "zoo.TextToImage.from_preset('diffusion_captions').stream('a red two', batch_size=3)": "call-arg",
    "zoo.create_model(3)": "arg-type",
    "zoo.load_modle('cnn_mnist')": "attr-defined",
    "zoo.verify('cnn_mnist', backends=3)": "arg-type",
    "zoo.ledger(zoo.create_model('cnn')).to_text(width='80')": "arg-type",
}


def test_mypy_accepts_the_package_and_knows_it_from_outside(tmp_path):
    pytest.importorskip("mypy")
    user, wrong = tmp_path / "user.py", tmp_path / "wrong.py"
    user.write_text(USER)
    wrong.write_text("import zoo\n" + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", "zoo", str(user), str(wrong)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    errors = re.findall(r"^(.+):(\d+): error: .*\[([a-z-]+)\]$", output, re.M)
    assert [where for where in errors if not where[0].endswith("wrong.py")] == [], output
    assert {int(line): code for _, line, code in errors} == dict(enumerate(WRONG.values(), start=2)), output
    revealed = re.findall(r'Revealed type is "(.+)"$', output, re.M)
    assert [text.replace("builtins.", "") for text in revealed] == REVEALED, output


def test_the_hints_are_in_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert (ROOT / "zoo" / "py.typed").is_file() and "py.typed" in settings["tool"]["setuptools"]["package-data"]["zoo"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_is_typed(path):
    missing = []
    for name, function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
        arguments = function.args
        stars = [star for star in (arguments.vararg, arguments.kwarg) if star]
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *stars):
            if argument.annotation is None and argument.arg not in ("self", "cls"):
                missing.append(f"{name}: {argument.arg}")
        if function.returns is None:
            missing.append(f"{name}: what it returns")
    assert not missing


def public_functions(tree):
    """(name, node) of the functions and methods of a module that are in `public_api.txt`."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and (part.name == "__init__" or not part.name.startswith("_")):
                    yield f"{node.name}.{part.name}", part


def test_type_checkers_see_the_lazy_names():
    tree = ast.parse((ROOT / "zoo" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    lazy = dict.fromkeys(zoo._ROOMS, "zoo") | zoo._MODULES
    assert imported == lazy
    assert sorted(zoo.__all__) == sorted(lazy)
