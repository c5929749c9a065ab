"""Each training recipe shows data, model, optimizer, schedule, loss, compile, fit and evaluation in its own file."""

import ast
import importlib.util
import io
import pathlib
import tokenize

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Recipes that train; a recipe that runs others in turn, or that only evaluates, is no lesson about training.
RECIPES = sorted(
    path
    for path in (ROOT / "recipes").glob("*.py")
    if any(word in path.read_text(encoding="utf-8") for word in (".fit(", ".compile(", "optimizer"))
)
OPTIMIZERS = {"TorchAdam"} | {name for name in dir(keras.optimizers) if name[:1].isupper()}
LOSSES = {name for name in dir(keras.losses) if name[:1].isupper()}


def calls(tree):
    """[(dotted name of the function, `ast.Call`)] of a syntax tree."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def code_lines(source):
    """Number of lines that hold code: no blank lines, comments or docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ignored:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def test_there_are_recipes():
    assert {"cnn_mnist", "cnn_gtsrb", "rnn_shakespeare", "transformer_multi30k"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_shows_all_of_its_training(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    names = [name for name, _ in calls(tree)]
    last = {name.rpartition(".")[2] for name in names}
    assert last & OPTIMIZERS, "it builds no optimizer"
    losses = {name for name in last if name in LOSSES or name.endswith(("Loss", "CrossEntropy"))}
    assert losses, "it builds no loss"
    compiling = [node for name, node in calls(tree) if name.endswith(".compile")]
    fitting = [node for name, node in calls(tree) if name.endswith(".fit")]
    assert len(compiling) == len(fitting) == 1, "it calls compile and fit once"
    assert {"optimizer", "loss"} <= {keyword.arg for keyword in compiling[0].keywords}
    assert {"epochs", "initial_epoch", "callbacks"} <= {keyword.arg for keyword in fitting[0].keywords}
    # In the order of a lesson.
    (scope,) = (node for name, node in calls(tree) if name == "zoo.strategy")
    optimizer = next(node for name, node in calls(tree) if name.rpartition(".")[2] in OPTIMIZERS)
    assert scope.lineno < optimizer.lineno <= compiling[0].lineno < fitting[0].lineno
    assert code_lines(source) <= 150
    command = ast.get_docstring(tree)
    assert f"python recipes/{path.name}" in command and any(letter.isdigit() for letter in command)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_changing_the_optimizer_in_the_recipe_alone_trains_with_the_other(tmp_path, capsys):
    """A copy of cnn_mnist.py in which one expression is another: Keras' SGD."""
    source = (ROOT / "recipes" / "cnn_mnist.py").read_text(encoding="utf-8")
    (built,) = (node for name, node in calls(ast.parse(source)) if name == "TorchAdam")
    expression = ast.get_source_segment(source, built)
    changed = source.replace(expression, "keras.optimizers.SGD(learning_rate, momentum=0.9)")
    changed = changed.replace("pathlib.Path(__file__).resolve().parent.parent", f"pathlib.Path({str(ROOT)!r})")
    changed = changed.replace(
        "run.prepare(training_model)",
        "run.prepare(training_model)\n        print(type(training_model.optimizer).__name__)",
    )
    (tmp_path / "cnn_mnist.py").write_text(changed, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("changed_recipe", tmp_path / "cnn_mnist.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    flags = "--dataset digits --limit 64 --epochs 1 --batch-size 32 --parity --output".split()
    recipe.main(recipe.parse_args([*flags, str(tmp_path / "run")]))
    assert "SGD" in capsys.readouterr().out and (tmp_path / "run" / "model.keras").is_file()
