"""What the test command runs: which tests in which process, and with --full those marked slow."""

import types

import pytest

from tests import all_backends, conftest

pytestmark = pytest.mark.once


@pytest.mark.parametrize("full", [False, True])
def test_each_backend_and_what_spans_them(monkeypatch, full):
    ran = []

    def run(command, *, env, **options):
        ran.append((env["KERAS_BACKEND"], env["ZOO_TESTS_ONCE"], env["ZOO_TESTS_FULL"], command))
        return types.SimpleNamespace(returncode=5, stdout="")

    monkeypatch.setattr("subprocess.run", run)
    assert all_backends.main(["-x", *(["--full"] if full else [])]) == 0
    assert sorted({(backend, once) for backend, once, *_ in ran}) == [
        ("jax", ""),
        ("tensorflow", ""),
        ("torch", ""),
        ("torch", "1"),
    ]
    assert all(flag == ("1" if full else "") and "-x" in command for *_, flag, command in ran)
    assert not any("--full" in command for *_, command in ran)


@pytest.mark.parametrize(
    ("marks", "once", "full", "backend", "kept"),
    [
        ({}, "", "", "jax", True),
        ({}, "1", "", "jax", False),
        ({"once": ()}, "1", "", "jax", True),
        ({"once": ()}, "", "1", "jax", False),
        ({"slow": ()}, "", "", "jax", False),
        ({"slow": ()}, "", "1", "jax", True),
        ({"slow": ("tensorflow", "jax")}, "", "", "jax", False),
        ({"slow": ("tensorflow", "jax")}, "", "", "torch", True),
        ({"slow": (), "once": ()}, "1", "", "torch", False),
        ({"slow": (), "once": ()}, "1", "1", "torch", True),
    ],
)
def test_which_tests_a_process_keeps(monkeypatch, marks, once, full, backend, kept):
    for name, value in (("ZOO_TESTS_ONCE", once), ("ZOO_TESTS_FULL", full), ("KERAS_BACKEND", backend)):
        monkeypatch.setenv(name, value)
    item = types.SimpleNamespace(
        get_closest_marker=lambda name: types.SimpleNamespace(args=marks[name]) if name in marks else None
    )
    hook = types.SimpleNamespace(pytest_deselected=lambda items: None)
    items = [item]
    conftest.pytest_collection_modifyitems(types.SimpleNamespace(hook=hook), items)
    assert items == ([item] if kept else [])
