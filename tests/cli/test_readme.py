"""The README's first screen as it stands: four snippets, four commands, the same results, on every backend."""

import ast
import json
import pathlib
import re
import shlex

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Runs the statements of the snippet and prints what each gives, the image as a list.
PROGRAM = """
import ast, json
results, names = [], {}
for statement in ast.parse(%r).body:
    if isinstance(statement, ast.Import):
        exec(ast.unparse(statement), names)
    else:
        results.append(eval(ast.unparse(statement.value), names))
results[3] = results[3].tolist()
print(json.dumps(results))
"""


def block(name):
    """The code between the markers of the README."""
    return re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- end -->", README, re.DOTALL).group(1)


def run_snippets(run, backend=None):
    """[classes, text, translation, image] of the README's snippets, run in a process of their own."""
    ended = run(["-c", PROGRAM % block("tasks")], backend=backend)
    assert ended.returncode == 0, ended.stderr
    classes, text, translation, image = json.loads(ended.stdout.splitlines()[-1])
    return classes, text, translation, np.array(image)


@pytest.mark.heavy
def test_the_snippets_give_what_the_commands_give(run, tmp_path):
    classes, text, translation, image = run_snippets(run)
    classify, generate, translate, text_to_image = (shlex.split(line)[1:] for line in block("commands").splitlines())
    printed = []
    for arguments in (classify, generate, translate, [*text_to_image, "--output", tmp_path / "three.png"]):
        ended = run(["-m", "zoo", *arguments])
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout)
    rows = re.findall(r"^ *(\d) +([\d.]+)%", printed[0], re.MULTILINE)
    assert rows == [(row["label"], f"{100 * row['score']:.1f}") for row in classes] and classes[0]["label"] == "3"
    assert printed[1].rstrip("\n") == text.rstrip("\n") and text.startswith("ROMEO:")
    assert printed[2].strip() == translation == "A dog is running."
    from PIL import Image

    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "three.png")), image)
    assert image.shape == (48, 48, 3)


@pytest.mark.heavy
@pytest.mark.once
def test_the_snippets_give_the_same_on_every_backend(run):
    classes, text, translation, image = run_snippets(run, "torch")
    for backend in ("tensorflow", "jax"):
        others = run_snippets(run, backend)
        assert [row["label"] for row in others[0]][:1] == [row["label"] for row in classes][:1]
        np.testing.assert_allclose([r["score"] for r in others[0]], [r["score"] for r in classes], atol=1e-5)
        assert others[1] == text and others[2] == translation
        assert np.abs(others[3] - image).max() <= 1


def test_the_snippets_are_the_four_of_the_issue():
    calls = [node.func.attr for node in ast.walk(ast.parse(block("tasks"))) if isinstance(node, ast.Call)]
    assert [name for name in calls if name != "from_preset"] == ["classify", "generate", "translate", "generate"]
