"""The README's four tasks as they stand: snippet, command and output are the same, on every backend."""

import ast
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from zoo import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TASK = re.compile(
    r"<!-- task: [\w ]+ -->\n```python\n(?P<snippet>.*?)```\n```bash\n(?P<command>.*?)```\n"
    r"(?:```text\n(?P<output>.*?)```\n)?<!-- end -->",
    re.DOTALL,
)
TASKS = [match.groupdict() for match in TASK.finditer(README)]
SNIPPETS = "".join(task["snippet"] for task in TASKS)
# Runs the statements of the snippets and prints what each gives, the image as a list.
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


def run_snippets(run, backend=None):
    """[classes, text, translation, image] of the README's snippets, run in a process of their own."""
    ended = run(["-c", PROGRAM % SNIPPETS], backend=backend)
    assert ended.returncode == 0, ended.stderr
    classes, text, translation, image = json.loads(ended.stdout.splitlines()[-1])
    return classes, text, translation, np.array(image)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_the_snippets_give_what_the_commands_give(run, tmp_path, capsys, monkeypatch):
    classes, text, translation, image = run_snippets(run)
    monkeypatch.chdir(ROOT)
    printed = []
    for task, more in zip(TASKS, ([], [], [], ["--output", str(tmp_path / "three.png")])):
        assert cli.run([*shlex.split(task["command"])[1:], *more]) == 0
        printed.append(capsys.readouterr().out)
    rows = re.findall(r"^ *(\d) +([\d.]+)%", printed[0], re.MULTILINE)
    assert rows == [(row["label"], f"{100 * row['score']:.1f}") for row in classes] and classes[0]["label"] == "3"
    assert printed[1].rstrip("\n") == text.rstrip("\n") and text.startswith("ROMEO:")
    assert printed[2].strip() == translation == "A dog is running."
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "three.png")), image)
    assert image.shape == (48, 48, 3)
    # The README shows what they print, and the strip that the last one writes.
    assert [output.rstrip("\n") for output in printed[:3]] == [task["output"].rstrip("\n") for task in TASKS[:3]]
    strip, shown = (
        np.asarray(Image.open(path), int)
        for path in (tmp_path / "three-steps.png", ROOT / "docs" / "images" / "diffusion_captions_three.png")
    )
    assert "docs/images/diffusion_captions_three.png" in README and np.abs(strip - shown).max() <= 1


@pytest.mark.heavy
@pytest.mark.once
@pytest.mark.slow  # the test above compares with what the README shows, on every backend
def test_the_snippets_give_the_same_on_every_backend(run):
    classes, text, translation, image = run_snippets(run, "torch")
    for backend in ("tensorflow", "jax"):
        others = run_snippets(run, backend)
        assert [row["label"] for row in others[0]][:1] == [row["label"] for row in classes][:1]
        np.testing.assert_allclose([r["score"] for r in others[0]], [r["score"] for r in classes], atol=1e-5)
        assert others[1] == text and others[2] == translation
        assert np.abs(others[3] - image).max() <= 1


def test_the_snippets_are_the_four_of_the_issue():
    calls = [node.func.attr for node in ast.walk(ast.parse(SNIPPETS)) if isinstance(node, ast.Call)]
    assert [name for name in calls if name != "from_preset"] == ["classify", "generate", "translate", "generate"]
    assert [task["command"].split()[1] for task in TASKS] == ["classify", "generate", "translate", "generate"]


@pytest.mark.once
def test_the_readme_is_short():
    assert len(README.encode()) <= 8192
