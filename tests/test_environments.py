"""The environments that `.ci/run --full` tests are those that pyproject.toml allows."""

import pathlib
import re
import runpy
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.once


def test_the_lowest_versions_are_the_tested_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = project["dependencies"] + extras["tensorflow"] + extras["jax"] + extras["torch"]
    lowest = {re.match(r"\w+", line)[0]: re.search(r">=([\d.]+)", line)[1] for line in required}
    tested = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / ".ci" / "oldest.txt").read_text(), re.MULTILINE))
    assert tested.pop("jaxlib") == tested["jax"]
    assert tested.keys() == lowest.keys()
    assert {name: version.removesuffix(".0") for name, version in tested.items()} == lowest


def test_constraints_are_the_pins_of_the_tests():
    test = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    pins = [line for line in test if "==" in line]
    assert pins == [line for line in (ROOT / ".ci" / "cpu.txt").read_text().splitlines() if not line.startswith("#")]


def test_every_environment_is_documented():
    environments = runpy.run_path(str(ROOT / ".ci" / "environments.py"))["ENVIRONMENTS"]
    table = (ROOT / "docs" / "maintainers.md").read_text(encoding="utf-8")
    assert list(environments) == ["nightly", "oldest", "keras-cv", "tensorflow", "jax", "torch"]
    for name in environments:
        assert f"`{name}`" in table
    for steps, programs in environments.values():
        for program in programs:
            assert (ROOT / program[0]).is_file()
        for argument in sum(steps, []):
            assert not argument.startswith(".ci/") or (ROOT / argument).is_file()


@pytest.mark.slow
def test_an_environment_ends_with_one_line(tmp_path):
    module = runpy.run_path(str(ROOT / ".ci" / "environments.py"))
    module["ENVIRONMENTS"] |= {
        "good": ([["--version"]], [["-c", "print('==== 3 passed, 1 skipped in 1.25s ====')"]] * 2),
        "bad": (
            [["--version"]],
            [["-c", "print('1 failed, 2 passed in 0.50s'); exit(1)"], ["-c", "print('9 passed')"]],
        ),
    }
    passed, line = module["test_in"]("good", tmp_path)
    assert passed and re.match(r"good: ok; 6 passed, 0 failed, \d+ s; .*good\.log\)$", line), line
    passed, line = module["test_in"]("bad", tmp_path)
    assert not passed and "failed at: -c print('1 failed" in line and "; 2 passed, 1 failed," in line, line
